import dataclasses
import json

import numpy as np
import pytest
import torch
from small_runs import CONFIG, SMALL, quiet_train

from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.evaluating import (
    anneal_run,
    evaluate_run,
    held_out,
    sandwich_run,
    save_evaluation,
    summarise,
)
from ppl_vae.experiments.preparation import build, prepare
from ppl_vae.experiments.runs import load_run
from ppl_vae.experiments.training import train


def test_log_likelihood_of_a_run_does_not_depend_on_training_noise(tmp_path, dataset):
    run = quiet_train(CONFIG, tmp_path / "run", dataset)
    result, summary = evaluate_run(run, num_samples=20, num_images=5, seed=3)
    _, again = evaluate_run(run, num_samples=20, num_images=5, seed=3)
    assert summary == again
    assert summary["num_images"] == len(result) == 5
    assert summary["encoding"] == "Binarize(), seed 3"
    assert summary["elbo"] < summary["log_p"]
    assert summary["elbo"] == pytest.approx(summary["reconstruction"] - summary["kl"], rel=1e-6)
    save_evaluation(tmp_path / "run", result, summary)
    with np.load(tmp_path / "run" / "log_likelihood.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["log_p"], result.log_p.numpy())
    assert json.loads((tmp_path / "run" / "log_likelihood.json").read_text())["log_p"] == summary["log_p"]


def test_the_least_and_the_most_samples_of_an_image_are_told(tmp_path, dataset):
    run = quiet_train(CONFIG, tmp_path, dataset)
    result, summary = evaluate_run(run, num_samples=30, num_images=4)
    assert (summary["least_samples"], summary["num_samples"]) == (30, 30)
    data, _ = held_out(run, 4, 0)
    mixed = dataclasses.replace(result, num_samples=torch.tensor([30, 0, 480, 120]))  # an interrupt left one out
    summary = summarise(run, mixed, data, 0)
    assert (summary["least_samples"], summary["num_samples"]) == (30, 480)


def test_bernoulli_on_grey_pixels_is_refused_before_the_first_step(tmp_path, dataset):
    with pytest.raises(ValueError, match="A Bernoulli on grey pixels is no likelihood: binarise x"):
        quiet_train(dataclasses.replace(CONFIG, encoding="scale"), tmp_path / "run", dataset)


def test_a_density_on_discrete_values_is_no_likelihood(tmp_path, dataset):
    config = dataclasses.replace(CONFIG, likelihood="gaussian-learned", encoding="scale")
    run = quiet_train(config, tmp_path / "run", dataset)
    with pytest.raises(ValueError, match="expected images encoded by dequantize; got scale"):
        evaluate_run(run, num_samples=2)


def test_what_an_autoencoder_does_not_have(tmp_path, dataset):
    run = quiet_train(dataclasses.replace(CONFIG, model="dense-ae"), tmp_path / "run", dataset)
    with pytest.raises(ValueError, match="no log p"):
        evaluate_run(run, num_samples=2)
    with pytest.raises(ValueError, match="no prior to sample from"):
        run.sample(2)


@pytest.mark.parametrize("evaluate", [evaluate_run, anneal_run, sandwich_run])
def test_evaluation_learns_nothing_from_test_images(tmp_path, dataset, evaluate):
    config = TrainConfig(model="dense-vae", latent_size=2, hidden=(8,), epochs=1)
    run = train(config, tmp_path / "run", dataset=dataset, show_progress=False)
    before = {name: t.clone() for name, t in run.model.state_dict().items()}
    sizes = {"num_samples": 5} if evaluate is evaluate_run else {"num_chains": 2, "num_steps": 3}
    evaluate(run, num_images=4, **sizes)
    assert all(torch.equal(t, before[name]) for name, t in run.model.state_dict().items())
    assert all(p.grad is None for p in run.model.parameters())


def test_a_conditional_model_is_given_the_labels_of_the_same_images(tmp_path, dataset):
    run = quiet_train(TrainConfig(model="dense-cvae:hidden=8", **SMALL), tmp_path / "run", dataset)
    run = load_run(tmp_path / "run", dataset=dataset)
    x, y = run.observe.frozen(dataset.test[:5], 3)[0], dataset.test_labels[:5]
    result, _ = evaluate_run(run, num_samples=20, num_images=5, seed=3)
    expected = log_likelihood(run.model.model, run.model.guide, x, y, num_samples=20, seed=3).log_p
    assert torch.equal(result.log_p, expected)
    other = log_likelihood(run.model.model, run.model.guide, x, (y + 1) % 10, num_samples=20, seed=3).log_p
    assert not torch.equal(result.log_p, other)
    prepared = prepare(run.config, dataset)
    for images, labels in (prepared.train, prepared.validation):
        rows = [int((dataset.train == image).flatten(1).all(1).nonzero()) for image in images]
        assert torch.equal(labels, dataset.train_labels[rows])
    # a sample of each class in turn, and pictures restored under their own labels
    assert run.sample(12).shape == (12, 1, 12, 12)
    grey = dataset.test / 255
    expected = run.model.reconstruct(grey, dataset.test_labels)
    torch.testing.assert_close(run.reconstruct(grey, dataset.test_labels), expected, rtol=0, atol=1e-6)


def test_the_class_is_summed_out_of_what_is_evaluated(tmp_path, dataset):
    config = TrainConfig(model="dense-m2:hidden=8", num_labels=20, **SMALL)
    run = quiet_train(config, tmp_path / "run", dataset)
    result, _ = evaluate_run(run, num_samples=4000, num_images=3, seed=3)
    x = run.observe.frozen(dataset.test[:3], 3)[0]
    drawn = log_likelihood(run.model.model, run.model.guide, x, num_samples=4000, seed=3)
    assert bool(((result.log_p - drawn.log_p).abs() < 5 * (result.mc_se**2 + drawn.mc_se**2).sqrt() + 1e-3).all())
    assert result.mc_se.mean() < drawn.mc_se.mean()


def test_labels_that_are_not_there(tmp_path, dataset):
    for labels in (None, dataset.train_labels - 1):
        unlabelled = dataclasses.replace(dataset, train_labels=labels)
        with pytest.raises(ValueError, match=r"toy: expected labels 0, 1, \.\.\., for dense-cvae; got"):
            quiet_train(TrainConfig(model="dense-cvae"), tmp_path / "run", unlabelled)
    run = quiet_train(TrainConfig(model="dense-cvae:hidden=8", **SMALL), tmp_path / "run", dataset)
    run = run.on(dataclasses.replace(dataset, test_labels=None))
    with pytest.raises(ValueError, match="toy: expected test labels, for dense-cvae"):
        evaluate_run(run, num_samples=2)


def test_labels_that_the_model_does_not_know(tmp_path, dataset):
    labels = torch.arange(len(dataset.train)) % 3
    labelled_set = dataclasses.replace(dataset, train_labels=labels, test_labels=labels[: len(dataset.test)])
    run = quiet_train(dataclasses.replace(CONFIG, model="dense-cvae"), tmp_path / "run", labelled_set)
    for bad, got in ((3, "got 0 to 3"), (-1, "got -1 to 2")):
        test_labels = labelled_set.test_labels.clone()
        test_labels[-1] = bad
        other = run.on(dataclasses.replace(labelled_set, test_labels=test_labels))
        with pytest.raises(ValueError, match=f"expected test labels 0 to 2, as trained on, for dense-cvae; {got}"):
            evaluate_run(other, num_samples=2)
    labels = labels.clone()
    labels[3] = 10**12
    with pytest.raises(ValueError, match="expected labels below 10000; got the label 1000000000000"):
        quiet_train(
            dataclasses.replace(CONFIG, model="dense-cvae"),
            tmp_path / "run",
            dataclasses.replace(labelled_set, train_labels=labels),
        )


def test_a_collapsed_posterior_is_told_in_evaluation(tmp_path, dataset):
    run = quiet_train(CONFIG, tmp_path / "run", dataset)
    assert evaluate_run(run, num_samples=2)[1]["active_units"] > 0
    with torch.no_grad():
        for p in run.model.encoder.parameters():
            p.zero_()
    with pytest.warns(RuntimeWarning, match="posterior collapse: expected active units; got 0 of"):
        _, summary = evaluate_run(run, num_samples=2)
    assert summary["active_units"] == 0


def test_ppca_begins_at_its_solution_and_is_evaluated_exactly(tmp_path, dataset):
    config = TrainConfig(model="ppca", **{**SMALL, "latent_size": 3})
    run = quiet_train(config, tmp_path / "run", dataset)
    result, _ = evaluate_run(run, num_samples=2, num_images=5)
    exact = run.model.log_prob(run.observe.frozen(dataset.test[:5], 0)[0])
    torch.testing.assert_close(result.log_p, exact.to(result.log_p), rtol=1e-5, atol=1e-2)
    x = run.observe.frozen(prepare(config, dataset).train[0], 0)[0]
    fresh = build(config, (1, 12, 12))
    best = type(fresh).maximum_likelihood(x, 3).log_prob(x).mean()
    assert fresh.log_prob(x).mean() < best - 50
    assert best >= run.model.log_prob(x).mean() > best - 1  # a few steps from it
