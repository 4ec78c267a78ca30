import dataclasses
import json

import pytest
import torch
from small_runs import CONFIG, quiet_train

from ppl_vae.data.noise import GaussianNoise, Masking, NoNoise, PhotonCounts
from ppl_vae.data.operators import Blur, Missing, Then
from ppl_vae.experiments import restoring
from ppl_vae.experiments.restoring import (
    is_restored,
    keeps_pixels,
    restore_cell,
    restore_images,
    restore_run,
    restore_study,
)
from ppl_vae.report.tables import restoration_table


def test_what_leaves_pixels_as_they_are_has_a_misfit(tmp_path, dataset, monkeypatch):
    kept = [corruption for corruption in (Masking(), NoNoise(), Then(Missing(), NoNoise())) if keeps_pixels(corruption)]
    assert len(kept) == 3
    assert not keeps_pixels(GaussianNoise(0.1))
    assert not keeps_pixels(PhotonCounts())
    run, asked = quiet_train(CONFIG, tmp_path, dataset), []
    monkeypatch.setattr(restoring, "restore", lambda *args, **options: asked.append(options))
    y = torch.zeros(2, *run.event_shape)
    for corruption in (GaussianNoise(0.1), Masking(), Then(Blur(), NoNoise())):
        restore_run(run, y, corruption)
    restore_run(run, y, Masking(), misfit=0.3, climb=True)
    chosen = [(options.get("clean"), options.get("misfit")) for options in asked]
    assert chosen == [(None, None), ("drawn", 0.2), ("mean", 0.2), ("drawn", 0.3)]
    assert [options["climb"] for options in asked] == [False, False, False, True]


def test_rows_are_kept_and_one_that_fails_does_not_stop_the_others(tmp_path, dataset, monkeypatch):
    run, made, failed = quiet_train(CONFIG, tmp_path / "run", dataset), [], {}
    ae = quiet_train(CONFIG.__class__(model="dense-ae", epochs=1, hidden=(8,)), tmp_path / "ae", dataset)

    def cell(run, noise, *, num_images, seed):
        made.append((noise, num_images))
        if noise == "masking":
            raise ValueError("no")
        return restore_cell(run, noise, num_images=num_images, seed=seed)

    monkeypatch.setattr(restoring, "restore_cell", cell)
    noises, options = ("masking", "gaussian-noise:scale=0.5"), {"failed": failed, "say": lambda text: None}
    for num_images in (2, 2, 1, 3):
        rows = restore_study(tmp_path, {"vae": run, "ae": ae}, noises, num_images=num_images, **options)
    assert [(noise, n) for noise, n in made if noise != "masking"] == [(noises[1], 2), (noises[1], 3)]
    assert [*failed] == ["vae, by inference"]
    stored = json.loads((tmp_path / "inference.json").read_text())
    assert stored["rows"] == rows
    baselines = stored["baselines"][noises[1]]
    assert [name.partition(" ")[0] for name in baselines] == ["noisy", "PCA", "Wiener"]
    assert baselines["Wiener filter"]["mse"]["mean"] < baselines["noisy"]["mse"]["mean"]
    inference = rows[noises[1]]["vae"]["inference"]
    assert inference["num_images"] == 3
    assert 0 <= inference["covers"]["50%"] <= inference["covers"]["90%"] <= 1
    assert 0.5 < rows[noises[1]]["vae"]["simulated"]["90%"] <= 1
    assert restoration_table(rows[noises[1]], baselines).count("\n") == 6
    again = {"vae": quiet_train(dataclasses.replace(CONFIG, seed=1), tmp_path / "again", dataset)}
    restore_study(tmp_path, again, noises[1:], num_images=3, **options)
    assert len(made) == 7  # of other weights


def test_an_autoencoder_is_refused(tmp_path, dataset):
    ae = quiet_train(CONFIG.__class__(model="dense-ae", epochs=1, hidden=(8,)), tmp_path, dataset)
    with pytest.raises(ValueError, match="dense-ae: expected a VAE; got an autoencoder, which has no prior of images"):
        restore_run(ae, torch.zeros(1, *ae.event_shape), GaussianNoise())


def test_what_was_restored_is_known_by_model_corruption_images_and_seed(tmp_path, dataset):
    run, noise = quiet_train(CONFIG, tmp_path / "run", dataset), GaussianNoise(0.5)
    assert not is_restored(run, noise, tmp_path, num_images=2)
    restore_images(run, noise, tmp_path, num_images=2, num_samples=30)
    assert is_restored(run, noise, tmp_path, num_images=2)
    assert not is_restored(run, noise, tmp_path, num_images=3)
    assert not is_restored(run, noise, tmp_path, num_images=2, seed=1)
    assert not is_restored(run, GaussianNoise(0.4), tmp_path, num_images=2)
