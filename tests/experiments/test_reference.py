import dataclasses

import pytest
import torch

from ppl_vae.components import UsageError
from ppl_vae.data.loading import load
from ppl_vae.experiments import reference
from ppl_vae.experiments.evaluating import load_evaluation
from ppl_vae.experiments.reference import ROWS, Row, models_of, run_reference
from ppl_vae.experiments.runs import history_of
from ppl_vae.experiments.settings import ReferenceConfig
from ppl_vae.report.figures import draw_reference
from ppl_vae.report.sections import reference_section
from ppl_vae.report.tables import reference_table

pytestmark = pytest.mark.usefixtures("quick_ladder")

SMALL = ReferenceConfig(
    epochs=2, warm_up=0, num_images=6, num_samples=30, num_refined_samples=30, seeds=(0, 1), train_images=60
)


@pytest.fixture
def few_rows(monkeypatch):
    tiny = {"model": "dense-vae:hidden=8", "latent_size": 2}
    rows = {"a": Row("A", tiny, 700.0, 0.1, "a paper"), "b": Row("B", tiny | {"likelihood": "discretized-logistic"})}
    monkeypatch.setitem(reference.ROWS, "mnist-mini", rows)


def test_a_row_is_trained_once_and_scored_by_the_protocol_and_the_ladder(tmp_path, few_rows):
    options = {"show_progress": False}
    said = []
    metrics = run_reference("mnist-mini", SMALL, tmp_path, say=said.append, **options)
    assert [line for line in said if "seed" in line] == [
        f"mnist-mini {name}, seed {seed}" for seed in (0, 1) for name in ("a", "b")
    ]
    assert metrics["failed"] == {}
    a, b = metrics["reference"].values()
    runs = [tmp_path / "a" / f"seed-{seed}" for seed in (0, 1)]
    means = [-load_evaluation(run).mean for run in runs]
    assert a["importance"]["value"] == pytest.approx(sum(means) / 2)
    assert a["importance"]["sd_of_seeds"] == pytest.approx(abs(means[0] - means[1]) / 2**0.5)
    of_ladder = [-load_evaluation(run, "ladder").mean for run in runs]
    assert a["ladder"]["value"] == pytest.approx(sum(of_ladder) / 2)
    assert a["best_epochs"] == [history_of(run).best_epoch for run in runs]
    assert (a["epochs"], a["num_seeds"]) == ([2, 2], 2)
    assert a["verdict"] == ("better" if a["importance"]["value"] < 699 else f"behind by {sum(means) / 2 - 700:.2f}")
    nats = -load_evaluation(tmp_path / "b" / "seed-0").mean
    bits = nats / (load("mnist-mini").image_shape[-1] ** 2 * 0.6931471805599453)
    assert b["unit"] == "bits per dimension"
    assert abs(b["importance"]["value"] - bits) < 2 * b["importance"]["sd_of_seeds"]
    table = reference_table(metrics)
    assert "| A | 700.00 ± 0.10 |" in table
    assert "| B | — |" in table
    assert "Published: a paper." in reference_section(tmp_path)
    drawn = draw_reference(tmp_path)
    assert [path.name for path in drawn] == ["reference.png", "samples.png"]
    assert f"{tmp_path.name}/figures/reference.png" in reference_section(tmp_path)
    said.clear()
    again = run_reference("mnist-mini", SMALL, tmp_path, say=said.append, **options)
    assert again == metrics
    assert said == []
    one = dataclasses.replace(SMALL, rows=("a",))
    assert run_reference("mnist-mini", one, tmp_path, **options)["reference"] == metrics["reference"]
    other = dataclasses.replace(one, epochs=1)  # the runs of the other row are of another config
    assert [*run_reference("mnist-mini", other, tmp_path, **options)["reference"]] == ["a"]


def test_a_ladder_of_the_first_images_adds_what_it_gains_there(tmp_path, few_rows):
    config = dataclasses.replace(SMALL, rows=("a",), num_refined_images=4, seeds=(0,))
    row = run_reference("mnist-mini", config, tmp_path, show_progress=False)["reference"]["a"]
    guide, ladder = (load_evaluation(tmp_path / "a" / "seed-0", method) for method in ("importance", "ladder"))
    gain = ladder.log_p - guide.log_p[:4]
    assert (len(guide), row["ladder"]["num_images"]) == (6, 4)
    assert row["ladder"]["value"] == pytest.approx(-(guide.mean + gain.mean().item()))
    errors = guide.log_p.std() / 6**0.5, gain.std() / 4**0.5
    assert row["ladder"]["data_se"] == pytest.approx(torch.stack(errors).norm().item())
    assert "of the first 4, whose gain is added" in reference_section(tmp_path)


def test_rows_are_those_of_the_papers():
    mnist = models_of(ReferenceConfig(), "mnist")
    assert len(mnist) == len(ROWS["mnist"]) == 12
    assert {(m.latent_size, m.prior) for name, m in mnist.items() if name.endswith("vamp-prior")} == {
        (40, "vamp-prior:num_components=500")
    }
    assert {m.kl_weight for m in mnist.values()} == {"linear-warm-up:epochs=100"}
    assert {m.patience for m in mnist.values()} == {1000}  # the best epoch's weights, of all
    assert [*models_of(ReferenceConfig(), "data/freyfaces.npz")] == ["vae", "vamp-prior", "hvae-vamp-prior"]


@pytest.mark.parametrize(
    ("rows", "dataset", "message"),
    [
        (("vea",), "mnist", "--rows: .*vae"),
        ((), "mnist-mini", "expected one with published figures, mnist, fashion-mnist, freyfaces; got mnist-mini"),
    ],
)
def test_what_was_not_published_is_refused(rows, dataset, message):
    with pytest.raises(UsageError, match=message):
        models_of(ReferenceConfig(rows=rows), dataset)
