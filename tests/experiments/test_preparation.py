import dataclasses

import pytest
import torch
from small_runs import CONFIG, SMALL, quiet_train

from ppl_vae.components import UsageError
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import assemble, build, labelled, prepare
from ppl_vae.experiments.training import train
from ppl_vae.priors import VampPrior


def test_models_with_and_without_noise_observe_the_same_test_images(dataset):
    clean = assemble(CONFIG).observe.frozen(dataset.test, 7)
    noisy = assemble(dataclasses.replace(CONFIG, noise="masking")).observe.frozen(dataset.test, 7)
    assert torch.equal(clean[0], noisy[0])
    assert len(noisy) == 2
    assert bool((noisy[1] <= dataset.test / 255).all())


@pytest.mark.parametrize("model", ["dense-ae", "conv-ae", "dense-vae"])
def test_encoders_see_levels_and_counts_rescaled(model):
    config = TrainConfig(model=model, likelihood="discretized-logistic", hidden=None)
    encoder = build(config, (1, 28, 28)).encoder
    levels = torch.randint(0, 256, (3, 1, 28, 28), generator=torch.Generator().manual_seed(0)).float()
    seen = []
    encoder[-1].register_forward_hook(lambda module, x, y: seen.append(x[0]))
    encoder(levels)
    assert torch.equal(seen[0], levels / 255)


def test_defaults_follow_from_the_model_and_the_likelihood():
    def resolved(**kwargs):
        config = assemble(TrainConfig(**kwargs)).config
        return config.likelihood, config.encoding

    assert resolved() == ("bernoulli", "binarize")
    assert resolved(likelihood="gaussian-learned") == ("gaussian-learned", "dequantize")
    assert resolved(model="conv-ae") == ("gaussian:scale=0.7071", "scale")
    assert resolved(model="conv-ae", likelihood="bernoulli") == ("bernoulli", "scale")
    assert resolved(model="conv-ae", likelihood="categorical") == ("categorical", "levels")
    assert resolved(likelihood="bernoulli", encoding="scale") == ("bernoulli", "scale")


def test_networks_have_their_own_widths_or_those_of_the_config():
    def widths(**kwargs):
        vae = build(TrainConfig(latent_size=2, **kwargs), (1, 4, 4))
        return [m.in_features for m in vae.encoder.modules() if isinstance(m, torch.nn.Linear)]

    assert widths(model="dense-vae") == [16, 400]
    assert widths(model="gated-dense-vae") == [16, 300, 300]
    assert widths(model="gated-dense-vae", hidden=(5, 6)) == [16, 5, 6]
    assert widths(model="dense-vae:hidden=7+8,activation=tanh") == [16, 7, 8]


def test_training_images_are_split_with_the_seed(dataset):
    prepared = prepare(CONFIG, dataset)
    (train_images,), (validation,) = prepared.train, prepared.validation
    assert (len(train_images), len(validation)) == (50, 10)
    (other,) = prepare(dataclasses.replace(CONFIG, seed=1), dataset).train
    assert not torch.equal(train_images, other)
    with pytest.raises(ValueError, match="at least 6"):
        prepare(dataclasses.replace(CONFIG, train_images=5), dataset)


def test_unknown_names_are_bad_usage():
    with pytest.raises(UsageError):
        build(TrainConfig(model="x"), (1, 5, 7))
    assert build(CONFIG, (1, 5, 7)).reconstruct(torch.zeros(2, 1, 5, 7)).shape == (2, 1, 5, 7)


def test_pseudo_inputs_come_from_training_images_alone(tmp_path, dataset, monkeypatch):
    """Neither from test nor from validation images."""
    config = TrainConfig(model="dense-vae", prior="vamp-prior:num_components=5", latent_size=2, hidden=(8,), epochs=1)
    seen = []
    monkeypatch.setattr(VampPrior, "initialise", lambda self, x: seen.append(x))
    train(config, tmp_path / "run", dataset=dataset, show_progress=False)
    (images,) = prepare(config, dataset).train
    assert torch.equal(seen[0], assemble(config).observe.frozen(images, config.seed)[0])


def test_a_semi_supervised_model_sees_few_labels_and_weighs_them_as_the_paper(dataset):
    config = TrainConfig(model="dense-m2:hidden=8", num_labels=20, **SMALL)
    prepared = prepare(config, dataset)
    labels, validation = prepared.train[1], prepared.validation[1]
    truth = prepare(dataclasses.replace(config, num_labels=None), dataset).train[1]
    assert bool(((labels == truth) | (labels == -1)).all())
    assert torch.equal(labels[labels >= 0].bincount(), torch.full((10,), 2))
    assert bool((validation == -1).all())
    assert torch.equal(labelled(truth, len(truth)), truth)
    m2 = prepared.model
    prepared.initialise()
    assert m2.alpha == 0.1 * 50 / 20


def test_images_that_are_all_the_same(tmp_path, dataset):
    same = dataclasses.replace(dataset, train=dataset.train[:1].expand(60, -1, -1, -1).contiguous())
    with pytest.raises(ValueError, match="expected data that differ; got 60 times the same"):
        quiet_train(CONFIG, tmp_path / "run", same)
    assert not (tmp_path / "run").exists()


def test_pseudo_inputs_begin_as_what_the_encoder_sees(tmp_path, dataset):
    """Noisy images in [0, 1] where there is noise, and not the levels that the model scores."""
    config = dataclasses.replace(
        CONFIG, likelihood="discretized-logistic", prior="vamp-prior:num_components=5", noise="masking:fraction=1"
    )
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppl_vae.priors.VampPrior.initialise", lambda self, x: seen.append(x))
        quiet_train(config, tmp_path / "run", dataset)
    assert seen[0].shape[1:] == dataset.image_shape
    assert not seen[0].any()
