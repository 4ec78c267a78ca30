import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from ppl_vae.components import UsageError
from ppl_vae.data.dataset import Dataset
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.decoding import encode, restore, sample_images
from ppl_vae.experiments.evaluating import anneal_run, evaluate_run, sandwich_run, save_evaluation
from ppl_vae.experiments.preparation import assemble, build, labelled, prepare
from ppl_vae.experiments.runs import finished, history_of, load_run
from ppl_vae.experiments.training import seconds_per_step, train
from ppl_vae.networks import Network
from ppl_vae.priors import VampPrior
from ppl_vae.programs import seeded
from ppl_vae.training.history import DivergedError

CONFIG = TrainConfig(model="dense-vae", latent_size=2, hidden=(8,), epochs=1, batch_size=16)


@pytest.fixture
def dataset():
    generator = torch.Generator().manual_seed(0)

    def images(n):
        return torch.randint(0, 256, (n, 1, 12, 12), generator=generator, dtype=torch.uint8)

    return Dataset("toy", images(60), images(12), torch.arange(60) % 10, torch.arange(12) % 10)


def quiet_train(config, folder, dataset, **kwargs):
    return train(config, folder, dataset=dataset, show_progress=False, **kwargs)


def test_a_run_folder_holds_what_it_takes_to_load_it(tmp_path, dataset):
    run = quiet_train(CONFIG, tmp_path / "run", dataset)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "config.json",
        "weights.safetensors",
        "history.csv",
        "metrics.json",
        "checksums.json",
    }
    again = load_run(tmp_path / "run", dataset=dataset)
    assert again.config == run.config
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), again.model.parameters(), strict=True))
    noisy = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(restore(run, noisy), restore(again, noisy))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train_images"] == 50
    assert {"seed", "seconds", "versions", "last_epoch", "dataset_fingerprint"} <= set(metrics)
    assert history_of(tmp_path / "run")["epoch"] == [1.0]
    assert metrics["last_epoch"]["train_elbo"] == history_of(tmp_path / "run")["train_elbo"][-1]


def test_the_same_config_gives_the_same_files(tmp_path, dataset):
    for name in ("a", "b"):
        quiet_train(CONFIG, tmp_path / name, dataset)
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (
        tmp_path / "b" / "weights.safetensors"
    ).read_bytes()


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


def test_models_with_and_without_noise_observe_the_same_test_images(dataset):
    clean = assemble(CONFIG).observe.frozen(dataset.test, 7)
    noisy = assemble(dataclasses.replace(CONFIG, noise="masking")).observe.frozen(dataset.test, 7)
    assert torch.equal(clean[0], noisy[0])
    assert len(noisy) == 2
    assert bool((noisy[1] <= dataset.test / 255).all())


@pytest.mark.parametrize("model", ["dense-ae", "conv-ae", "dense-vae"])
def test_encoders_see_levels_and_counts_rescaled(model):
    config = TrainConfig(model=model, likelihood="discretized-logistic", hidden=None)
    encoder = build(config, (1, 28, 28)).encoder
    levels = torch.randint(0, 256, (3, 1, 28, 28), generator=torch.Generator().manual_seed(0)).float()
    seen = []
    encoder[-1].register_forward_hook(lambda module, x, y: seen.append(x[0]))
    encoder(levels)
    assert torch.equal(seen[0], levels / 255)


def test_defaults_follow_from_the_model_and_the_likelihood():
    def resolved(**kwargs):
        config = assemble(TrainConfig(**kwargs)).config
        return config.likelihood, config.encoding

    assert resolved() == ("bernoulli", "binarize")
    assert resolved(likelihood="gaussian-learned") == ("gaussian-learned", "dequantize")
    assert resolved(model="conv-ae") == ("gaussian:scale=0.7071", "scale")
    assert resolved(model="conv-ae", likelihood="bernoulli") == ("bernoulli", "scale")
    assert resolved(model="conv-ae", likelihood="categorical") == ("categorical", "levels")
    assert resolved(likelihood="bernoulli", encoding="scale") == ("bernoulli", "scale")


def test_networks_have_their_own_widths_or_those_of_the_config():
    def widths(**kwargs):
        vae = build(TrainConfig(latent_size=2, **kwargs), (1, 4, 4))
        return [m.in_features for m in vae.encoder.modules() if isinstance(m, torch.nn.Linear)]

    assert widths(model="dense-vae") == [16, 400]
    assert widths(model="gated-dense-vae") == [16, 300, 300]
    assert widths(model="gated-dense-vae", hidden=(5, 6)) == [16, 5, 6]
    assert widths(model="dense-vae:hidden=7+8,activation=tanh") == [16, 7, 8]


def test_a_width_that_says_nothing_makes_no_other_run(tmp_path, dataset):
    """Configs once named hidden widths for every network, as [400]."""
    quiet_train(dataclasses.replace(CONFIG, model="conv-vae", hidden=(400,)), tmp_path / "run", dataset)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    corrupt(tmp_path / "run", "config.json", json.dumps(config | {"hidden": [400]}))
    assert finished(tmp_path / "run", dataclasses.replace(CONFIG, model="conv-vae", hidden=None))
    load_run(tmp_path / "run", dataset=dataset)
    old, new, other = (assemble(TrainConfig(model="dense-vae", hidden=h)).config for h in ((400,), None, (401,)))
    assert old == new != other


def test_bernoulli_on_grey_pixels_trains_by_name_and_has_no_log_likelihood(tmp_path, dataset):
    run = quiet_train(dataclasses.replace(CONFIG, encoding="scale"), tmp_path / "run", dataset)
    with pytest.raises(ValueError, match="no likelihood"):
        evaluate_run(run, num_samples=2)


def test_a_density_on_discrete_values_is_no_likelihood(tmp_path, dataset):
    config = dataclasses.replace(CONFIG, likelihood="gaussian-learned", encoding="scale")
    run = quiet_train(config, tmp_path / "run", dataset)
    with pytest.raises(ValueError, match="expected images encoded by dequantize; got scale"):
        evaluate_run(run, num_samples=2)


def test_training_images_are_split_with_the_seed(dataset):
    prepared = prepare(CONFIG, dataset)
    (train_images,), (validation,) = prepared.train, prepared.validation
    assert (len(train_images), len(validation)) == (50, 10)
    (other,) = prepare(dataclasses.replace(CONFIG, seed=1), dataset).train
    assert not torch.equal(train_images, other)
    with pytest.raises(ValueError, match="at least 6"):
        prepare(dataclasses.replace(CONFIG, train_images=5), dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "conv-vea"}, "did you mean 'conv-vae'"),
        ({"model": "vae"}, "of .dense, .*, residual-conv.*.-.ae, vae, .*m2., ppca; got 'vae'"),
        ({"model": "dense-vae:hiden=3"}, "expected hidden=..., activation=...; got 'hiden=3'"),
        ({"model": "dense-vae:hidden=3", "hidden": (4,)}, "expected activation=...; got 'hidden=3'"),
        ({"model": "ppca:hidden=3"}, "model ppca: expected no arguments; got 'hidden=3'"),
        ({"model": "ppca", "likelihood": "bernoulli"}, "expected 'gaussian-learned' for ppca .probabilistic PCA.; got"),
        ({"model": "ppca", "prior": "laplace"}, "prior: expected 'standard-normal' for ppca"),
        ({"model": "conv-ae", "prior": "laplace"}, "prior: expected 'standard-normal' for conv-ae .autoencoder."),
        ({"model": "dense-ae", "objective": "free-bits"}, "objective: expected 'elbo' for dense-ae"),
        ({"model": "ppca", "hidden": (3,)}, "hidden: expected None for ppca"),
        ({"model": "dense-cvae", "noise": "masking"}, "noise: expected 'no-noise' for dense-cvae"),
        ({"model": "dense-m2", "kl_weight": "linear-warm-up"}, "kl_weight: expected 'constant' for dense-m2"),
        (
            {"model": "dense-m2", "objective": "importance-weighted"},
            "expected 'elbo' for dense-m2 .semi-supervised VAE",
        ),
        ({"model": "dense-m2", "prior": "vamp-prior"}, "without pseudo-inputs, which have no label, for dense-m2"),
        ({"model": "dense-vae", "num_labels": 3}, "num_labels: expected a semi-supervised model"),
        ({"model": "dense-m2", "num_labels": 0}, "num_labels: input should be greater than or equal to 1; got 0"),
        ({"epochs": 0}, "epochs: input should be greater than or equal to 1; got 0"),
        ({"latent_size": -2}, "latent_size"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"hidden": ()}, "hidden"),
        ({"noise": "gaussian-noise:scale=-1"}, "scale >= 0"),
        ({"likelihood": "gaussian:scale=0"}, "scale > 0"),
        ({"likelihood": "gauss"}, "expected one of"),
        ({"encoding": "binarise"}, "did you mean 'binarize'"),
        ({"prior": "flow"}, "expected one of"),
        ({"posterior": "flow"}, "expected one of"),
        ({"encoding": "dequantize"}, "encoding dequantize: expected x in the support of the likelihood bernoulli"),
    ],
)
def test_a_config_out_of_range_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        assemble(TrainConfig(**change))


def test_a_run_that_diverges_keeps_its_weights_and_is_not_finished(tmp_path, dataset):
    config = dataclasses.replace(CONFIG, likelihood="gaussian:scale=1e-3", learning_rate=1e15, epochs=3)
    with pytest.raises(DivergedError, match="expected a finite loss"):
        quiet_train(config, tmp_path / "run", dataset)
    assert (tmp_path / "run" / "weights.safetensors").is_file()
    assert not finished(tmp_path / "run", config)
    with pytest.raises(FileNotFoundError, match=r"metrics\.json"):
        load_run(tmp_path / "run", dataset=dataset)


def test_finished_means_this_config(tmp_path, dataset):
    quiet_train(CONFIG, tmp_path / "run", dataset)
    assert finished(tmp_path / "run", CONFIG)
    assert not finished(tmp_path / "run", dataclasses.replace(CONFIG, seed=1))
    assert not finished(tmp_path / "nothing", CONFIG)


def corrupt(folder, name, text):
    """In a folder without checksums, as older versions left it."""
    (folder / "checksums.json").unlink()
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{", "expected JSON"),
        ("config.json", "[]", "expected a JSON object; got list"),
        ("config.json", "{}", "event_shape: expected"),
        ("config.json", '{"image_shape": [1, 12, 12], "epohcs": 3}', "did you mean 'epochs'"),
        (
            "config.json",
            '{"image_shape": [1, 12, 12], "epochs": "3"}',
            "epochs: input should be a valid integer; got '3'",
        ),
        ("config.json", '{"image_shape": [1, 12, 12], "model": "vae"}', "expected one of"),
        (
            "config.json",
            '{"image_shape": [1, 12, 12], "hidden": [3, "4"]}',
            "hidden.1: input should be a valid integer; got '4'",
        ),
        ("config.json", '{"image_shape": [1, 12, 12], "model": "dense-cvae"}', "num_classes: expected a number"),
        (
            "config.json",
            '{"image_shape": [1, 12, 12], "model": "mine-vae"}',
            "got 'mine-vae'.*name its module with --plugin",
        ),
        ("weights.safetensors", "not safetensors", "expected the weights"),
    ],
)
def test_a_damaged_run_is_one_line(tmp_path, dataset, name, text, message):
    quiet_train(CONFIG, tmp_path / "run", dataset)
    corrupt(tmp_path / "run", name, text)
    with pytest.raises(ValueError, match=message) as error:
        load_run(tmp_path / "run", dataset=dataset)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_run(tmp_path, dataset):
    with pytest.raises(FileNotFoundError, match="expected the folder of a run"):
        load_run(tmp_path / "none", dataset=dataset)
    with pytest.raises(FileNotFoundError, match=r"with config\.json"):
        load_run(tmp_path, dataset=dataset)


def test_images_of_another_size_are_refused(tmp_path, dataset):
    quiet_train(CONFIG, tmp_path / "run", dataset)
    other = Dataset("other", torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"expected images of shape \(1, 12, 12\), as trained on"):
        load_run(tmp_path / "run", dataset=other)


def test_what_an_autoencoder_does_not_have(tmp_path, dataset):
    run = quiet_train(dataclasses.replace(CONFIG, model="dense-ae"), tmp_path / "run", dataset)
    with pytest.raises(ValueError, match="no log p"):
        evaluate_run(run, num_samples=2)
    with pytest.raises(ValueError, match="no prior to sample from"):
        sample_images(run, 2)


def test_samples_are_seeded_images(tmp_path, dataset):
    run = quiet_train(CONFIG, tmp_path / "run", dataset)
    a, b = sample_images(run, 3, seed=1), sample_images(run, 3, seed=1)
    assert a.shape == (3, 1, 12, 12)
    assert torch.equal(a, b)
    assert not torch.equal(a, sample_images(run, 3, seed=2))


def test_a_step_is_timed(dataset):
    assert seconds_per_step(CONFIG, dataset) > 0


def test_unknown_names_are_bad_usage():
    with pytest.raises(UsageError):
        build(TrainConfig(model="x"), (1, 5, 7))
    assert build(CONFIG, (1, 5, 7)).reconstruct(torch.zeros(2, 1, 5, 7)).shape == (2, 1, 5, 7)


def test_training_never_looks_at_test_images(tmp_path, dataset):
    """Trap 22: neither weights, nor what was chosen or logged on the way, depend on them."""
    other = dataclasses.replace(dataset, test=255 - dataset.test)
    config = TrainConfig(model="dense-vae", prior="vamp-prior:num_components=5", latent_size=2, hidden=(8,), epochs=2)
    runs = [
        train(config, tmp_path / name, dataset=d, show_progress=False) for name, d in (("a", dataset), ("b", other))
    ]
    assert all(map(torch.equal, runs[0].model.state_dict().values(), runs[1].model.state_dict().values()))
    assert runs[0].metrics["last_epoch"] == runs[1].metrics["last_epoch"]
    assert runs[0].metrics["dataset_fingerprint"] == runs[1].metrics["dataset_fingerprint"]


def test_pseudo_inputs_come_from_training_images_alone(tmp_path, dataset, monkeypatch):
    """Trap 18: neither from test nor from validation images."""
    config = TrainConfig(model="dense-vae", prior="vamp-prior:num_components=5", latent_size=2, hidden=(8,), epochs=1)
    seen = []
    monkeypatch.setattr(VampPrior, "initialise", lambda self, x: seen.append(x))
    train(config, tmp_path / "run", dataset=dataset, show_progress=False)
    (images,) = prepare(config, dataset).train
    assert torch.equal(seen[0], assemble(config).observe.frozen(images, config.seed)[0])


@pytest.mark.parametrize("evaluate", [evaluate_run, anneal_run, sandwich_run])
def test_evaluation_learns_nothing_from_test_images(tmp_path, dataset, evaluate):
    """Trap 23."""
    config = TrainConfig(model="dense-vae", latent_size=2, hidden=(8,), epochs=1)
    run = train(config, tmp_path / "run", dataset=dataset, show_progress=False)
    before = {name: t.clone() for name, t in run.model.state_dict().items()}
    sizes = {"num_samples": 5} if evaluate is evaluate_run else {"num_chains": 2, "num_steps": 3}
    evaluate(run, num_images=4, **sizes)
    assert all(torch.equal(t, before[name]) for name, t in run.model.state_dict().items())
    assert all(p.grad is None for p in run.model.parameters())


SMALL = {"latent_size": 2, "epochs": 1, "batch_size": 16}


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
    assert sample_images(run, 12).shape == (12, 1, 12, 12)
    grey = dataset.test / 255
    torch.testing.assert_close(restore(run, grey), run.model.reconstruct(grey, dataset.test_labels), rtol=0, atol=1e-6)


def test_a_semi_supervised_model_sees_few_labels_and_weighs_them_as_the_paper(dataset):
    config = TrainConfig(model="dense-m2:hidden=8", num_labels=20, **SMALL)
    prepared = prepare(config, dataset)
    labels, validation = prepared.train[1], prepared.validation[1]
    truth = prepare(dataclasses.replace(config, num_labels=None), dataset).train[1]
    assert bool(((labels == truth) | (labels == -1)).all())
    assert torch.equal(labels[labels >= 0].bincount(), torch.full((10,), 2))
    assert bool((validation == -1).all())
    assert torch.equal(labelled(truth, len(truth)), truth)
    m2 = prepared.model
    prepared.initialise()
    assert m2.alpha == 0.1 * 50 / 20


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
    run = dataclasses.replace(run, dataset=dataclasses.replace(dataset, test_labels=None))
    with pytest.raises(ValueError, match="toy: expected test labels, for dense-cvae"):
        evaluate_run(run, num_samples=2)


def test_labels_that_the_model_does_not_know(tmp_path, dataset):
    labels = torch.arange(len(dataset.train)) % 3
    labelled_set = dataclasses.replace(dataset, train_labels=labels, test_labels=labels[: len(dataset.test)])
    run = quiet_train(dataclasses.replace(CONFIG, model="dense-cvae"), tmp_path / "run", labelled_set)
    for bad, got in ((3, "got 0 to 3"), (-1, "got -1 to 2")):
        test_labels = labelled_set.test_labels.clone()
        test_labels[-1] = bad
        other = dataclasses.replace(run, dataset=dataclasses.replace(labelled_set, test_labels=test_labels))
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


def test_images_that_are_all_the_same(tmp_path, dataset):
    same = dataclasses.replace(dataset, train=dataset.train[:1].expand(60, -1, -1, -1).contiguous())
    with pytest.raises(ValueError, match="expected data that differ; got 60 times the same"):
        quiet_train(CONFIG, tmp_path / "run", same)
    assert not (tmp_path / "run").exists()


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


def test_encoders_of_levels_see_levels(tmp_path, dataset):
    config = dataclasses.replace(CONFIG, likelihood="categorical")
    run = quiet_train(config, tmp_path / "run", dataset)
    grey = dataset.test / 255
    with torch.no_grad():
        expected = run.model.reconstruct(dataset.test.float()) / 255
        torch.testing.assert_close(encode(run, grey), run.model.encode(dataset.test.float()).mean)
    torch.testing.assert_close(restore(run, grey), expected)


def test_two_layers_are_between_x_and_the_prior(dataset):
    hvae = build(TrainConfig(model="conv-hvae", prior="vamp-prior:num_components=3", latent_size=4), (1, 12, 12))
    assert hvae.prior.pseudo_inputs.shape == (3, 1, 12, 12)
    assert hvae.decoder2(torch.zeros(2, 4)).shape == (2, 8)
    assert hvae.decoder1(torch.zeros(2, 8)).shape == (2, 1, 12, 12, 1)


@pytest.mark.parametrize("model", ["dense-vae", "gated-dense-vae", "gated-dense-hvae"])
def test_models_of_counts_begin_near_their_priors(model):
    """exp(N(0, 7)), the scale under which an output of unit gain puts z for counts of 1,000, is 14 at one s.d."""
    config = TrainConfig(model=model, likelihood="poisson", encoding="identity", latent_size=4)
    x = 10 ** (3 * torch.rand(200, 5, generator=torch.Generator().manual_seed(0)))
    vae = build(config, (5,))
    with seeded(0), torch.no_grad():
        q = vae.encode(x.round())
        rates = vae.generate(500).mean
    assert q.mean.abs().max() < 3
    assert q.stddev.max() < 3
    assert rates.log().abs().max() < 3


def test_a_network_of_ones_own_makes_models_of_every_kind():
    class TwiceLinear(Network):
        def __init__(self, bias: bool = True):
            self.bias = bias

        def encoder(self, event_shape, num_outputs):
            return torch.nn.Sequential(torch.nn.Flatten(-3), torch.nn.Linear(16, num_outputs, self.bias))

        def decoder(self, num_inputs, event_shape, params_per_dim):
            return torch.nn.Sequential(torch.nn.Linear(num_inputs, 16), torch.nn.Unflatten(-1, (1, 4, 4, 1)))

    vae = build(TrainConfig(model="twice-linear-vae:bias=false", latent_size=2), (1, 4, 4))
    assert vae.encoder[1].bias is None
    hvae = build(TrainConfig(model="twice-linear-hvae", latent_size=2), (1, 4, 4))
    assert hvae.reconstruct(torch.zeros(3, 1, 4, 4)).shape == (3, 1, 4, 4)


def test_pseudo_inputs_begin_as_what_the_encoder_sees(tmp_path, dataset):
    """Noisy images in [0, 1] where there is noise, and not the levels that the model scores."""
    config = dataclasses.replace(
        CONFIG, likelihood="discretized-logistic", prior="vamp-prior:num_components=5", noise="masking:fraction=1"
    )
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppl_vae.priors.VampPrior.initialise", lambda self, x: seen.append(x))
        quiet_train(config, tmp_path / "run", dataset)
    assert seen[0].shape[1:] == dataset.image_shape
    assert not seen[0].any()
