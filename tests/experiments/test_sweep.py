"""A grid of tiny trainings: its folders, table and plots; in worker processes it is the same, bit for bit."""

import dataclasses
import math
import re

import pytest
import torch
from ladders import make_quick_for_good

from ppl_vae.components import UsageError
from ppl_vae.experiments import batch
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.evaluating import evaluate_run, load_evaluation
from ppl_vae.experiments.folders import runs_of
from ppl_vae.experiments.runs import load_run
from ppl_vae.experiments.settings import Grid, SweepConfig, SweepSizes
from ppl_vae.experiments.sweep import models_of, run_sweep
from ppl_vae.report.figures import draw_sweep
from ppl_vae.report.page import html_of, write_page
from ppl_vae.report.sections import sweep_section
from ppl_vae.report.tables import swap_table
from ppl_vae.report.warnings import warnings_of
from ppl_vae.system.executors import executor_of

TINY = {"model": ("dense-vae:hidden=8",), "epochs": (1,), "batch_size": (16,), "train_images": (60,)}
PRIORS = ("standard-normal", "laplace")
SIZES = SweepSizes(num_images=6, num_samples=30)
SMALL = SweepConfig(Grid(**TINY, latent_size=(2, 3), prior=PRIORS, seed=(0, 1)), SIZES)


def quiet(config, folder, **options):
    return run_sweep(config, folder, say=lambda text: None, show_progress=False, **options)


def contents(folder):
    """What must not depend on where it was computed."""
    names = ("weights.safetensors", "log_likelihood-ladder.npz", "samples.npz")
    return {
        path.relative_to(folder): path.read_bytes() for name in names for path in sorted(folder.glob(f"*/*/{name}"))
    }


def test_a_model_for_each_combination_by_what_is_swept():
    models = models_of(SMALL)
    assert [*models] == [f"prior={prior},latent-size={size}" for prior in PRIORS for size in (2, 3)]
    common = {name: values[0] for name, values in TINY.items()}
    assert models["prior=laplace,latent-size=3"] == TrainConfig(**common, latent_size=3, prior="laplace")
    widths = Grid(model=("dense-vae:hidden=8+8", "dense-vae:hidden=9"), learning_rate=(1e-3, 1e-4), standardize=True)
    assert [*models_of(SweepConfig(widths))][1] == "model=dense-vae-hidden=8+8,learning-rate=0.0001"
    assert [*models_of(SweepConfig(Grid(seed=(0, 1))))] == ["conv-vae"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"latent_size": ()}, "--latent-size: expected values that differ; got none"),
        ({"batch_size": (5, 5)}, "--batch-size: expected values that differ; got 5 5"),
        ({"prior": ("a:b", "a-b")}, "expected ones that name different folders; got prior=a-b twice"),
        ({"latent_size": (2, 0)}, "latent_size: input should be greater than or equal to 1; got 0"),
    ],
)
def test_values_that_make_no_grid_are_refused(grid, message):
    with pytest.raises(UsageError, match=message):
        models_of(SweepConfig(Grid(**grid)))


@pytest.mark.usefixtures("quick_ladder", "undrawn")
def test_the_table_has_means_over_seeds_and_paired_differences(tmp_path, monkeypatch):
    folder, said = tmp_path / "a", []
    metrics = run_sweep(SMALL, folder, say=said.append, show_progress=False)
    names = [*models_of(SMALL)]
    assert [text for text in said if "seed" in text] == [
        f"mnist-mini {name}, seed {seed}" for seed in (0, 1) for name in names
    ]
    (table,) = metrics["sweep"]["tables"]
    log_p = {
        name: torch.stack([load_evaluation(folder / name / f"seed-{seed}", "ladder").log_p for seed in (0, 1)])
        for name in names
    }
    values = sorted((t.mean().item() for t in log_p.values()), reverse=True)
    assert [row["value"] for row in table["rows"]] == pytest.approx(values)
    best, other = table["rows"][0], table["rows"][-1]
    difference = (log_p[other["name"]] - log_p[best["name"]]).mean(0)
    assert other["difference"] == pytest.approx(difference.mean().item())
    assert other["difference_se"] == pytest.approx((difference.std() / math.sqrt(6)).item())
    assert other["of_seeds"] == pytest.approx(log_p[other["name"]].mean(1).tolist())
    assert other["sd_of_seeds"] == pytest.approx(log_p[other["name"]].mean(1).std().item())
    prior, size = re.fullmatch("prior=(.*),latent-size=(.*)", best["name"]).groups()
    assert best["settings"] == {"prior": prior, "latent_size": int(size)}

    assert [path.name for path in draw_sweep(folder)] == ["prior.png", "latent-size.png"]
    section = sweep_section(folder)
    assert "Prior standard-normal, laplace; latent-size 2, 3; seeds 0, 1." in section
    assert swap_table(table) in section
    assert "![log p(x) by prior](a/figures/prior.png)" in section
    assert not any("spread between seeds" in text for text in warnings_of(folder))
    write_page([folder], tmp_path / "page.html", say=lambda text: None)
    page = (tmp_path / "page.html").read_text()
    assert html_of(swap_table(table)) in page
    command = "ppl-vae sweep --model dense-vae:hidden=8 --prior standard-normal laplace --latent-size 2 3 --epochs 1"
    assert f"{command} --batch-size 16 --seed 0 1 --train-images 60 --num-images 6 --num-samples 30" in page

    trained = batch.trained
    monkeypatch.setattr(batch, "trained", lambda *args, **options: pytest.fail("trained again"))
    assert quiet(SMALL, folder) == metrics
    more = dataclasses.replace(SMALL, grid=dataclasses.replace(SMALL.grid, seed=(0, 1, 2)))

    def failing(config, *args, **options):
        if config.prior == "laplace":
            raise ArithmeticError("NaN")
        return trained(config, *args, **options)

    monkeypatch.setattr(batch, "trained", failing)
    metrics = quiet(more, folder)
    assert metrics["failed"] == {f"prior=laplace,latent-size={size}/seed-2": "NaN" for size in (2, 3)}
    assert {row["num_seeds"] for row in metrics["sweep"]["tables"][0]["rows"]} == {2, 3}
    assert "Without prior=laplace,latent-size=2/seed-2: NaN." in sweep_section(folder)


@pytest.mark.usefixtures("quick_ladder", "undrawn")
def test_what_cannot_be_compared_is_in_tables_of_its_own(tmp_path):
    likelihoods = ("bernoulli", "gaussian-learned", "discretized-logistic")
    config = SweepConfig(Grid(**TINY, latent_size=(2,), likelihood=likelihoods), SIZES)
    binary, levels = quiet(config, tmp_path / "a")["sweep"]["tables"]
    assert [row["component"] for row in binary["rows"]] == ["likelihood bernoulli"]
    assert {row["measure"] for row in levels["rows"]} == {"density", "mass"}
    density = next(row for row in levels["rows"] if row["measure"] == "density")
    of_density = load_evaluation(tmp_path / "a" / density["name"] / "seed-0", "ladder").mean - 784 * math.log(256)
    assert [density["value"], *density["of_seeds"]] == pytest.approx([of_density] * 2)
    assert [path.name for path in draw_sweep(tmp_path / "a")] == ["likelihood-2.png"]
    assert "one training run of each model" in "".join(warnings_of(tmp_path / "a"))


@pytest.mark.usefixtures("quick_ladder")
def test_two_processes_leave_bit_for_bit_what_this_one_does(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, grid=dataclasses.replace(SMALL.grid, latent_size=(2,), seed=(0,)))
    here = quiet(config, tmp_path / "here")
    with executor_of("processes:2", tmp_path / "apart", make_quick_for_good) as executor:
        apart = quiet(config, tmp_path / "apart", executor=executor)
        monkeypatch.setattr("ppl_vae.evaluation.chunks.BLOCK_DATA", 5)
        run = load_run(runs_of(tmp_path / "here")[0])
        sizes = {"num_samples": 30, "num_images": 12}
        of_blocks, of_all = (evaluate_run(run, **sizes, **where)[0] for where in ({"executor": executor}, {}))
    assert torch.equal(of_blocks.log_p, of_all.log_p)
    assert here["failed"] == apart["failed"] == {}
    assert here["sweep"] == apart["sweep"]
    assert len(runs_of(tmp_path / "apart")) == 2
    assert contents(tmp_path / "here") == contents(tmp_path / "apart")
