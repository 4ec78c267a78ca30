import json

import pytest
import torch

from ppl_vae.data import Dataset
from ppl_vae.experiments import TrainConfig, train
from ppl_vae.report import trust_section
from ppl_vae.trust import TrustConfig, run_trust


def test_every_method_on_every_vae_of_a_study(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randint(0, 256, (n, 1, 5, 5), generator=generator, dtype=torch.uint8) for n in (60, 12)]
    dataset = Dataset("toy", *parts)
    monkeypatch.setattr("ppl_vae.trust.load", lambda *args: dataset)
    monkeypatch.setattr("ppl_vae.evaluation.importance.ANNEALING_STEPS", (10,))
    small = {"latent_size": 2, "hidden": (8,), "epochs": 1, "batch_size": 16}
    for name, options in {
        "vae": {"model": "dense-vae"},
        "gaussian": {"model": "dense-vae", "likelihood": "gaussian-learned"},
        "ae": {"model": "dense-ae"},
        "noisy": {"model": "dense-vae", "noise": "masking"},
    }.items():
        train(TrainConfig(**small, **options), tmp_path / name, dataset=dataset, show_progress=False)
    with pytest.raises(FileNotFoundError, match="expected a finished study"):
        run_trust(tmp_path, TrustConfig())
    (tmp_path / "metrics.json").write_text('{"config": {"dataset": "toy"}}')
    sizes = {"num_chains": 4, "num_steps": 20, "leapfrog_steps": 2}
    config = TrustConfig(num_images=3, num_samples=(5, 200), most_samples=2000, grid_points=60, **sizes)
    said: list[str] = []
    models = run_trust(tmp_path, config, say=said.append)
    assert set(models) == {"vae", "gaussian"}  # not the autoencoder, nor the guide that sees noise
    for row in models.values():
        few, many = row["importance"]
        assert row["elbo"] < few["log_p"] + 5 * few["mc_se"]
        assert (few["decoder_rows"], many["decoder_rows"]) == (15, 600)
        for method in (many, row["annealed"]["guide"], row["most"], row["tolerance"]):
            assert abs(method["log_p"] - row["exact"]) < 5 * method["mc_se"] + 1e-3
            assert method["rms_error"] > abs(method["log_p"] - row["exact"]) - 1e-6
        assert row["most"]["rms_error"] < few["rms_error"]
        assert row["sandwich"]["gap"] == pytest.approx(row["sandwich"]["upper"] - row["sandwich"]["lower"])
    assert (tmp_path / "figures" / "trust.png").is_file()
    assert len(said) == 2
    assert run_trust(tmp_path, config, say=said.append) == json.loads((tmp_path / "trust.json").read_text())["models"]
    assert len(said) == 2  # what is there is not done again
    text = "\n".join(trust_section(tmp_path, "###"))
    assert "K = 200" in text
    assert "| vae |" in text
    assert "log_likelihood(tolerance=0.1)" in text
