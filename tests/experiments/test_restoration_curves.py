from small_runs import CONFIG, quiet_train

from ppl_vae.experiments import restoration_curves as curves
from ppl_vae.experiments.folders import CURVES
from ppl_vae.report.figures import draw_restoration_curves
from ppl_vae.system.files import read_json


def test_curves_are_of_one_run_and_are_drawn(tmp_path, dataset, monkeypatch):
    monkeypatch.setattr(curves, "NUM_STEPS", (1, 40))
    monkeypatch.setattr(curves, "TRUE_SCALES", (0.2, 0.5))
    run, said = quiet_train(CONFIG, tmp_path / "run", dataset), []
    sizes = {"num_images": 4, "num_scaled": 3, "say": said.append}
    made = curves.restoration_curves(tmp_path, run, "gaussian-noise:scale=0.5", **sizes)
    assert read_json(tmp_path / CURVES) == made
    assert [row["num_steps"] for row in made["steps"]] == [1, 40]
    assert all(0 < row["ssim"]["mean"] <= 1 and row["cpu_seconds_per_image"] > 0 for row in made["steps"])
    # images that the model made have its scale, within what 3 images of 784 pixels can tell of one
    for row in made["scales"]["simulated"]:
        assert abs(row["estimate"] - row["scale"]) < 4 * row["se"] + 0.1 * row["scale"]
    assert curves.restoration_curves(tmp_path, run, "gaussian-noise:scale=0.5", **sizes) == made
    assert len(said) == 1
    assert draw_restoration_curves(tmp_path, "tiny").is_file()
