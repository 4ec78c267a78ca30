import numpy as np
import torch
from small_runs import CONFIG, quiet_train

from ppl_vae.experiments.folders import PANEL
from ppl_vae.experiments.restoration_panel import CORRUPTIONS, STAGES, restoration_panel
from ppl_vae.system.arrays import read_npz


def test_every_stage_of_every_corruption_is_there_once(tmp_path, dataset):
    run, said = quiet_train(CONFIG, tmp_path / "run", dataset), []
    for _ in range(2):
        restoration_panel(tmp_path, run, num_images=3, say=said.append)
    assert len(said) == 1
    arrays = read_npz(tmp_path / PANEL)
    assert [*arrays] == [*CORRUPTIONS]
    clean = dataset.test[:3]
    for name, levels in arrays.items():
        assert levels.shape == (len(STAGES), *clean.shape)
        assert levels.dtype == np.uint8
        assert torch.equal(torch.from_numpy(levels[0]), clean)
        assert not np.array_equal(levels[1], levels[0]), name
    half = arrays["lower half missing"][1, :, :, clean.shape[2] // 2 :]
    assert (half == 0).all()
