import dataclasses
import json

import numpy as np
import pytest
import torch
from image_files import pixels, write_images
from small_runs import CONFIG, corrupt, quiet_train

from ppl_vae.data.dataset import Dataset
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import assemble
from ppl_vae.experiments.runs import finished, history_of, load_run


def test_a_run_folder_holds_what_it_takes_to_load_it(tmp_path, dataset):
    run = quiet_train(CONFIG, tmp_path / "run", dataset)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "config.json",
        "weights.safetensors",
        "history.csv",
        "metrics.json",
        "state.safetensors",
        "checksums.json",
    }
    again = load_run(tmp_path / "run", dataset=dataset)
    assert again.config == run.config
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), again.model.parameters(), strict=True))
    noisy = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run.reconstruct(noisy, *run.test_labels(len(noisy))), again.reconstruct(noisy))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train_images"] == 50
    assert {"seed", "seconds", "versions", "last_epoch", "dataset_fingerprint"} <= set(metrics)
    assert history_of(tmp_path / "run")["epoch"] == [1.0]
    assert metrics["last_epoch"]["train_elbo"] == history_of(tmp_path / "run")["train_elbo"][-1]


@pytest.mark.parametrize(("model", "now"), [("conv-vae", "conv-vae:hidden=16"), ("conv-ae", "conv-ae")])
def test_a_config_of_before_conv_had_a_width_means_16(tmp_path, dataset, model, now):
    """It might name hidden widths that said nothing."""
    quiet_train(dataclasses.replace(CONFIG, model=now, hidden=None), tmp_path / "run", dataset)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["standardize"]
    corrupt(tmp_path / "run", "config.json", json.dumps(config | {"model": model, "hidden": [400]}))
    assert finished(tmp_path / "run", dataclasses.replace(CONFIG, model=now, hidden=None))
    assert load_run(tmp_path / "run", dataset=dataset).config.model == now


def test_a_width_that_says_nothing_makes_no_other_run():
    old, new, other = (assemble(TrainConfig(model="dense-vae", hidden=h)).config for h in ((400,), None, (401,)))
    assert old == new != other


def test_finished_means_this_config(tmp_path, dataset):
    quiet_train(CONFIG, tmp_path / "run", dataset)
    assert finished(tmp_path / "run", CONFIG)
    assert not finished(tmp_path / "run", dataclasses.replace(CONFIG, seed=1))
    assert not finished(tmp_path / "nothing", CONFIG)


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
    with pytest.raises(ValueError, match=r"expected data of shape \(1, 12, 12\), as trained on"):
        load_run(tmp_path / "run", dataset=other)


def test_a_run_scores_arrays_and_tensors_of_new_data(tmp_path, dataset, quick_ladder):
    run = quiet_train(CONFIG, tmp_path, dataset)
    images = dataset.test[:5]
    scored = run.score(images, num_samples=30)
    expected = log_likelihood(*run.programs, *run.observe.frozen(images, 0), num_samples=30)
    assert torch.equal(scored.log_p, expected.log_p)
    for same in (images.numpy(), images / 255, (images / 255).numpy()):
        assert torch.equal(run.score(same, num_samples=30).log_p, scored.log_p)
        torch.testing.assert_close(run.encode(same), run.encode(images))
    torch.testing.assert_close(run.encode(images, chunk=2), run.encode(images))
    ae = quiet_train(dataclasses.replace(CONFIG, model="dense-ae"), tmp_path / "ae", dataset)
    with pytest.raises(ValueError, match="dense-ae: expected a VAE; got an autoencoder, which has no log p"):
        ae.score(images)


def test_a_run_reads_its_own_data_as_it_was_trained_on_them(tmp_path):
    """The config has how; and other data are read without what they don't take."""
    rows = "".join(f"{i % 5}.5,{i},{'ab'[i % 2]}\n" for i in range(60))
    (tmp_path / "own.csv").write_text("x,y,kind\n" + rows)
    config = {"dataset": str(tmp_path / "own.csv"), "label": "kind", "model": "dense-cvae", "likelihood": "laplace"}
    quiet_train(TrainConfig(**config, epochs=1, hidden=(4,), standardize=True), tmp_path / "run", None)
    run = load_run(tmp_path / "run")
    assert (run.config.label, run.dataset.columns, run.dataset.classes) == ("kind", ("x", "y"), ("a", "b"))
    assert run.test_labels(3)[0].tolist() == run.dataset.test_labels[:3].tolist()
    assert load_run(tmp_path / "run", dataset=str(tmp_path / "own.csv")).dataset.classes == ("a", "b")
    np.save(tmp_path / "other.npy", np.ones((12, 2), np.float32))
    assert load_run(tmp_path / "run", dataset=str(tmp_path / "other.npy")).dataset.test_labels is None
    write_images(tmp_path / "images", [f"{i}.png" for i in range(60)], pixels(60, 5, 4))
    config = TrainConfig(
        dataset=str(tmp_path / "images"), resize=(8, 8), channels=3, model="dense-vae", hidden=(4,), epochs=1
    )
    quiet_train(config, tmp_path / "of-images", None)
    run = load_run(tmp_path / "of-images")
    assert (run.config.resize, run.dataset.image_shape) == ((8, 8), (3, 8, 8))
