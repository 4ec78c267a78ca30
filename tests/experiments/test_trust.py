import dataclasses
import json

import pytest
import torch

from ppl_vae.data.dataset import Dataset
from ppl_vae.experiments import trust
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.training import train
from ppl_vae.experiments.trust import TrustConfig, run_trust
from ppl_vae.report.figures import draw_trust
from ppl_vae.report.sections import savings, trust_section


def test_every_method_on_every_vae_of_a_study(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randint(0, 256, (n, 1, 5, 5), generator=generator, dtype=torch.uint8) for n in (60, 12)]
    dataset = Dataset("toy", *parts)
    monkeypatch.setattr("ppl_vae.experiments.trust.load", lambda *args: dataset)
    monkeypatch.setattr("ppl_vae.evaluation.adaptive.ANNEALING_STEPS", (10,))
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
    config = TrustConfig(num_images=3, num_samples=(5, 200), most_samples=2000, **sizes)
    said: list[str] = []
    models = run_trust(tmp_path, config, say=said.append)
    assert set(models) == {"vae", "gaussian"}  # not the autoencoder, nor the guide that sees noise
    for row in models.values():
        few, many = row["importance"]
        assert row["elbo"] < few["log_p"] + 5 * few["mc_se"]
        assert (few["decoder_rows"], many["decoder_rows"]) == (15, 600)
        for method in (many, row["annealed"]["guide"], row["most"], *row["tolerance"]):
            assert abs(method["log_p"] - row["exact"]) < 5 * method["mc_se"] + 1e-3
            assert method["rms_error"] > abs(method["log_p"] - row["exact"]) - 1e-6
        assert row["most"]["rms_error"] < few["rms_error"]
        assert row["sandwich"]["gap"] == pytest.approx(row["sandwich"]["upper"] - row["sandwich"]["lower"])
    assert tmp_path / "figures" / "trust.png" in draw_trust(tmp_path)
    assert (tmp_path / "figures" / "trust.png").is_file()
    assert len(said) == 2
    assert run_trust(tmp_path, config, say=said.append) == json.loads((tmp_path / "trust.json").read_text())["models"]
    assert len(said) == 2  # what is there is not done again
    text = trust_section(tmp_path)
    assert "K = 200" in text
    assert "| vae |" in text
    assert "log_likelihood_within(tolerance=0.1)" in text

    def known(run, config):  # the numbers of the first time: from here on it is only told what is evaluated again
        name = "vae" if run.config.likelihood == "bernoulli" else "gaussian"
        return models[name] | {"tolerance": [{"tolerance": tolerance} for tolerance in config.tolerances]}

    monkeypatch.setattr(trust, "trust_of", known)
    asked_again = dataclasses.replace(config, tolerances=(0.5,))
    again = run_trust(tmp_path, asked_again, say=said.append)
    assert len(said) == 4  # both have a log p(x) that is known
    assert [row["tolerance"] for row in again["vae"]["tolerance"]] == [0.5]
    in_many_dimensions = {k: v for k, v in again["gaussian"].items() if k not in ("exact", "most", "tolerance")}
    stored = json.loads((tmp_path / "trust.json").read_text())
    stored["models"]["gaussian"] = in_many_dimensions
    (tmp_path / "trust.json").write_text(json.dumps(stored))
    assert run_trust(tmp_path, config, say=said.append)["gaussian"] == in_many_dimensions  # no tolerance concerns it
    assert len(said) == 5
    (tmp_path / "vae" / "checksums.json").unlink()
    retrained = json.loads((tmp_path / "vae" / "metrics.json").read_text())
    retrained["last_epoch"]["loss"] -= 1
    (tmp_path / "vae" / "metrics.json").write_text(json.dumps(retrained))
    run_trust(tmp_path, config, say=said.append)
    assert len(said) == 6
    (tmp_path / "vae" / "weights.safetensors").write_bytes(b"")
    assert set(run_trust(tmp_path, config, say=said.append)) == {"vae", "gaussian"}
    assert "vae: failed: " in said[6]
    assert list(json.loads((tmp_path / "trust.json").read_text())["failed"]) == ["vae"]


def test_savings_are_against_the_least_fixed_k_of_the_same_error():
    def row(K, error, **more):
        return {"num_samples": K, "decoder_rows": 2 * K, "seconds": 3 * K, "rms_error": error, **more}

    spent = [row(50, 0.5, tolerance=1.0), row(60, 0.05, tolerance=0.1)]
    vae = {"importance": [row(10, 0.9), row(200, 0.45)], "most": row(1000, 0.4), "tolerance": spent}
    first, second = savings({"models": {"vae": vae, "other": {}}}).splitlines()
    assert "0.500 nats by 100 decoder rows, those of annealing with their gradients, in 150.0 s" in first
    assert first.endswith("A fixed K = 200 takes 400 without, 4.0 times as long, for 0.450.")
    assert second.endswith("K = 1,000 takes 2,000 without, 16.7 times as long, for 0.400, and does not reach it.")
