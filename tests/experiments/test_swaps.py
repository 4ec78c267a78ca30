import dataclasses
import gc
import json
import math
import runpy
from pathlib import Path

import pytest
import torch

import ppl_vae.evaluation.importance
import ppl_vae.training.fitting
from ppl_vae.components import choices
from ppl_vae.data.loading import load
from ppl_vae.distributions import LevelCategorical
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.experiments import batch, evaluating, swaps
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import assemble, build
from ppl_vae.experiments.runs import history_of
from ppl_vae.experiments.swaps import SwapsConfig, run_swaps
from ppl_vae.likelihoods import Categorical, Likelihood
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
from ppl_vae.report.figures import draw_swaps
from ppl_vae.report.sections import swaps_section
from ppl_vae.report.tables import swap_table
from ppl_vae.training.fitting import fit
from ppl_vae.training.history import DivergedError, History

pytestmark = pytest.mark.usefixtures("quick_ladder")

SMALL = SwapsConfig(latent_size=2, epochs=1, num_images=6, num_samples=3, seeds=(0, 1), train_images=60)
KEPT = ("base", "prior-laplace", "likelihood-gaussian-learned", "likelihood-discretized-logistic")


def test_every_component_is_swapped_in_alone():
    gc.collect()  # components that other tests made, and that nothing refers to
    models = swaps.models_of(SMALL, "mnist-mini")
    base = models["base"]
    for kind, group in ((Prior, "prior"), (Posterior, "posterior"), (Likelihood, "likelihood")):
        swapped = {getattr(model, group) for name, model in models.items() if name.startswith(f"{group}-")}
        assert swapped == {*choices(kind)} - {getattr(assemble(base).config, group)}
    for name, model in models.items():
        changed = {k for k, v in dataclasses.asdict(model).items() if v != dataclasses.asdict(base)[k]}
        assert len(changed) == (0 if name == "base" else 2 if name == "layers-two-vamp-prior" else 1)


@pytest.fixture
def few(monkeypatch):
    models = swaps.models_of

    def few_of(config, dataset):
        return {name: model for name, model in models(config, dataset).items() if name in KEPT}

    monkeypatch.setattr(swaps, "models_of", few_of)


def test_tables_are_paired_means_over_seeds_and_what_is_done_is_not_done_again(few, tmp_path, monkeypatch):
    said = []
    metrics = run_swaps("mnist-mini", SMALL, tmp_path, say=said.append, show_progress=False)
    assert len([text for text in said if "seed" in text]) == 2 * len(KEPT)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    (best, other) = metrics["groups"]["prior"]["rows"]
    assert {best["component"], other["component"]} == {"standard-normal", "laplace"}
    assert best["value"] > other["value"]
    log_p = {
        row["name"]: torch.stack([swaps.load_evaluation(tmp_path / row["name"] / f"seed-{s}").log_p for s in (0, 1)])
        for row in (best, other)
    }
    difference = (log_p[other["name"]] - log_p[best["name"]]).mean(0)
    assert other["difference"] == pytest.approx(difference.mean().item())
    assert other["difference_se"] == pytest.approx((difference.std() / 6**0.5).item())
    assert other["sd_of_seeds"] == pytest.approx(log_p[other["name"]].mean(1).std().item())
    likelihoods = metrics["groups"]["likelihood"]
    assert likelihoods["unit"] == "bits per dimension"
    assert [r["value"] for r in likelihoods["rows"]] == sorted(r["value"] for r in likelihoods["rows"])
    assert all(r["value"] > 0 for r in likelihoods["rows"])  # a mass, also where it was a density
    bits = 784 * math.log(2)
    for row in likelihoods["rows"]:
        offset = 8 if row["measure"] == "density" else 0
        runs = [swaps.load_evaluation(tmp_path / row["name"] / f"seed-{s}") for s in (0, 1)]
        elbos = [
            json.loads((tmp_path / row["name"] / f"seed-{s}/log_likelihood.json").read_text())["elbo"] for s in (0, 1)
        ]
        assert row["sd_of_seeds"] == pytest.approx(abs(runs[0].mean - runs[1].mean) / 2**0.5 / bits)
        assert row["elbo"] == pytest.approx(offset - sum(elbos) / 2 / bits)
    assert tmp_path / "figures" / "likelihood-samples.png" in draw_swaps(tmp_path)
    assert (tmp_path / "figures" / "likelihood-samples.png").is_file()
    assert swap_table(metrics["groups"]["prior"]) in swaps_section(tmp_path)

    for weights in tmp_path.glob("*/*/weights.safetensors"):
        weights.unlink()
    again = run_swaps("mnist-mini", SMALL, tmp_path, say=said.append)
    assert sum(line.startswith("mnist-mini ") for line in said) == 2 * len(KEPT)  # each was trained once
    assert again == metrics

    other["overfitting"] = 2.53
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    text = swaps_section(tmp_path)
    assert text.count("Overfitted") == text.count("below that of their best epoch: laplace 2.5 nats.") == 1


def test_an_evaluation_is_of_the_weights_beside_it_and_of_all_test_images_at_most(tmp_path, monkeypatch):
    """Trained for longer in the same folder, and stopped before or in the evaluation, it is evaluated anew."""
    models = swaps.models_of
    monkeypatch.setattr(swaps, "models_of", lambda config, name: {"base": models(config, name)["base"]})
    config = dataclasses.replace(SMALL, seeds=(0,), num_images=5000)
    dataset = load("mnist-mini")
    few = dataclasses.replace(dataset, test=dataset.test[:7], test_labels=None)
    monkeypatch.setattr(swaps, "load", lambda *args: few)

    def run(epochs):
        longer = dataclasses.replace(config, epochs=epochs)
        (row,) = run_swaps("mnist-mini", longer, tmp_path, say=lambda text: None, show_progress=False)["groups"][
            "prior"
        ]["rows"]
        assert row["num_images"] == 7
        return row["value"]

    before, evaluate = run(1), evaluating.evaluate_run

    def interrupted(*args, **options):
        result, summary = evaluate(*args, **options)
        return dataclasses.replace(result, complete=False), summary

    monkeypatch.setattr(evaluating, "evaluate_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(3)
    monkeypatch.setattr(evaluating, "evaluate_run", evaluate)
    assert run(3) > before
    by_epoch = history_of(tmp_path / "base" / "seed-0")["validation_elbo"]
    (row,) = json.loads((tmp_path / "metrics.json").read_text())["groups"]["prior"]["rows"]
    assert row["overfitting"] == pytest.approx(max(by_epoch) - by_epoch[-1])


def test_one_that_fails_is_named_and_the_others_go_on(few, tmp_path, monkeypatch):
    trained = batch.trained

    def failing(config, *args, **kwargs):
        if config.prior == "laplace":
            raise DivergedError("NaN", History())
        return trained(config, *args, **kwargs)

    monkeypatch.setattr(batch, "trained", failing)
    one_seed = dataclasses.replace(SMALL, seeds=(0,))
    metrics = run_swaps("mnist-mini", one_seed, tmp_path, say=lambda text: None, show_progress=False)
    assert metrics["failed"] == {"prior-laplace/seed-0": "NaN"}
    assert [row["name"] for row in metrics["groups"]["prior"]["rows"]] == ["base"]
    assert metrics["groups"]["prior"]["rows"][0]["sd_of_seeds"] is None
    assert "prior-laplace/seed-0: NaN" in swaps_section(tmp_path)


SCRIPT = Path(__file__).parents[2] / "results" / "swaps" / "categorical.py"


@pytest.mark.skipif(not SCRIPT.is_file(), reason="results are not part of an installed package")
def test_the_categorical_likelihood_in_parts_is_the_same_to_rounding():
    """How its results were made: log p(x) and all gradients, with a last part that is shorter."""
    script = runpy.run_path(str(SCRIPT))
    rng = torch.Generator().manual_seed(0)
    shapes = (5, 30), (40 * 256, 30), (40 * 256,)
    inputs = [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes]
    x = torch.randint(256, (5, 40), generator=rng)
    h, W, b = inputs
    whole = LevelCategorical(logits=(h @ W.T + b).view(5, 40, 256)).log_prob(x)
    in_parts = script["LogProb"].apply(h, W, b, x, True)
    torch.testing.assert_close(in_parts, whole, rtol=1e-5, atol=1e-4)
    grads = (torch.autograd.grad(-log_p.sum(), inputs) for log_p in (in_parts, whole))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):  # of another loss
        torch.autograd.grad(script["LogProb"].apply(h, W, b, x, True).mean(), inputs)


@pytest.mark.skipif(not SCRIPT.is_file(), reason="results are not part of an installed package")
def test_a_pair_with_its_last_layer_in_parts_is_trained_and_evaluated_the_same(monkeypatch):
    for patched, name in (
        (torch.nn.Linear, "forward"),
        (Categorical, "forward"),
        (ppl_vae.training.fitting, "repays"),
        (ppl_vae.evaluation.importance, "repays"),
    ):
        monkeypatch.setattr(patched, name, getattr(patched, name))  # put back at the end
    x = torch.randint(256, (6, 1, 5, 8), generator=torch.Generator().manual_seed(0)).float()
    config = TrainConfig(model="gated-dense-vae", likelihood="categorical", latent_size=3, hidden=(7,))

    def all_of_it():
        vae = build(config, (1, 5, 8))
        history = fit(vae.model, vae.guide, x, epochs=2, batch_size=4, show_progress=False)
        result = log_likelihood(vae.model, vae.guide, x, num_samples=5, show_progress=False)
        with torch.no_grad():
            return [*vae.parameters(), vae.decode(torch.ones(2, 3)), result.log_p, torch.tensor(history["loss"])]

    whole = all_of_it()
    runpy.run_path(str(SCRIPT))["in_parts"](40)
    for ours, theirs in zip(all_of_it(), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
