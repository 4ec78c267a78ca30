import dataclasses

import torch
from small_runs import CONFIG, quiet_train


def test_samples_are_seeded_images(tmp_path, dataset):
    run = quiet_train(CONFIG, tmp_path / "run", dataset)
    a, b = run.sample(3, seed=1), run.sample(3, seed=1)
    assert a.shape == (3, 1, 12, 12)
    assert torch.equal(a, b)
    assert not torch.equal(a, run.sample(3, seed=2))


def test_encoders_of_levels_see_levels(tmp_path, dataset):
    config = dataclasses.replace(CONFIG, likelihood="categorical")
    run = quiet_train(config, tmp_path / "run", dataset)
    grey = dataset.test / 255
    with torch.no_grad():
        expected = run.model.reconstruct(dataset.test.float()) / 255
        torch.testing.assert_close(run.encode(grey), run.model.encode(dataset.test.float()).mean)
    torch.testing.assert_close(run.reconstruct(grey, *run.test_labels(len(grey))), expected)
