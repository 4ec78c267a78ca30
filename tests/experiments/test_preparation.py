import dataclasses
import math

import pytest
import torch
from small_runs import CONFIG, SMALL, quiet_train

from ppl_vae.components import UsageError
from ppl_vae.data.dataset import Dataset
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import assemble, build, labelled, prepare
from ppl_vae.experiments.runs import load_run
from ppl_vae.experiments.training import train
from ppl_vae.priors import VampPrior
from ppl_vae.programs import seeded
from ppl_vae.training.fitting import fit


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


@pytest.mark.parametrize("noise", ["no-noise", "masking:fraction=0.5"])
def test_exemplars_are_training_images_which_go_by_their_index(dataset, noise):
    """Each batch says which of them it has, beside x and what the guide sees; validation images have no index."""
    config = dataclasses.replace(CONFIG, prior="exemplar-prior:num_exemplars=5", encoding="threshold", noise=noise)
    prepared = prepare(config, dataset)
    images, index = prepared.train
    assert torch.equal(index, torch.arange(50))
    assert len(prepared.validation) == 1
    x, given, own = prepared.encode(images[:7], index[:7], generator=torch.Generator().manual_seed(0))
    assert torch.equal(own, index[:7])
    assert torch.equal(x, prepared.observe.encoding(images[:7]))
    assert torch.equal(x, given) == (noise == "no-noise")
    prepared.initialise()
    prior = prepared.model.prior
    assert prior.exemplars.tolist() == [0, 10, 20, 30, 40]
    seen = prepared.observe.frozen(images, config.seed)[-1]
    torch.testing.assert_close(prior.means, prepared.model.encode(seen[::10]).mean.detach())


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


def test_each_image_has_its_own_label_in_both_parts(dataset):
    images = dataset.train.clone()
    images[:, 0, 0, 0] = dataset.train_labels
    marked = dataclasses.replace(dataset, train=images)
    prepared = prepare(TrainConfig(model="dense-cvae:hidden=8", **SMALL), marked)
    for x, y in (prepared.train, prepared.validation):
        assert torch.equal(x[:, 0, 0, 0].long(), y)


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


def columns(n):
    generator = torch.Generator().manual_seed(0)
    return torch.tensor([0.0, 50.0, 2e4]) + torch.tensor([1.0, 10.0, 1000.0]) * torch.randn(n, 3, generator=generator)


def a_vae_of(num_columns, **settings):
    config = TrainConfig(model="dense-vae:hidden=16", likelihood="gaussian-learned", latent_size=2, **settings)
    return build(config, (num_columns,))


def test_the_encoder_sees_vectors_in_standard_units():
    x = columns(500)
    vae = a_vae_of(3)
    vae.initialise(x)
    seen = vae.encoder[0](x)
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    vae.initialise(torch.ones(7, 3))  # of a constant column there is no deviation to divide by
    assert torch.equal(vae.encoder[0](torch.full((1, 3), 3.0)), torch.full((1, 3), 2.0))


@pytest.mark.parametrize("initialised", [True, False])
def test_data_of_any_scale_can_be_trained(initialised):
    with seeded(0):
        x = 1000 * torch.randn(200, 5)
    vae = a_vae_of(5)
    if initialised:
        vae.initialise(x)
    with pytest.warns(RuntimeWarning, match="Try standardised data"):
        history = fit(vae.model, vae.guide, x, epochs=5, show_progress=False)
    assert math.isfinite(history["loss"][-1])
    assert history["loss"][-1] < history["loss"][0]


def test_standardised_data_are_learned_in_few_epochs():
    """x ~ N(0, 1000^2 I) has -41.7 nats a datum, the ELBO's bound; the model begins at a scale of 0.3 of them."""
    with seeded(0):
        x = 1000 * torch.randn(200, 5)
    vae = a_vae_of(5, standardize=True)
    vae.initialise(x)
    history = fit(vae.model, vae.guide, x, epochs=15, batch_size=50, learning_rate=3e-2, show_progress=False)
    assert history["train_elbo"][-1] > -43


def test_standardised_data_have_a_log_likelihood_in_their_own_units():
    """That of the same model on data in standard units, less the sum of the log scales."""
    x = columns(300)
    own, standard = a_vae_of(3, standardize=True), a_vae_of(3)
    own.initialise(x)
    y = own.encoder[0](x)
    log_p, of_y = (log_likelihood(v.model, v.guide, t, num_samples=10).log_p for v, t in ((own, x), (standard, y)))
    jacobian = math.log(10) + math.log(1000)
    # the scales of 300 data are not just those of the columns
    exact = of_y - own.likelihood.scale.double().log().sum()
    torch.testing.assert_close(log_p, exact, atol=1e-3, rtol=1e-5)
    assert own.likelihood.scale.log().sum().item() == pytest.approx(jacobian, abs=0.3)
    expected = own.likelihood.mean + own.likelihood.scale * standard.reconstruct(y)
    torch.testing.assert_close(own.reconstruct(x), expected)


def test_units_are_part_of_a_run_and_refused_where_they_mean_nothing(tmp_path):
    dataset = Dataset("table", columns(60), columns(12))
    settings = {"standardize": True, "latent_size": 2, "epochs": 20, "batch_size": 16, "learning_rate": 0.03}
    config = TrainConfig(model="dense-vae:hidden=8", likelihood="gaussian-learned", **settings)
    run = quiet_train(config, tmp_path / "run", dataset)
    torch.testing.assert_close(run.model.likelihood.scale, prepare(config, dataset).train[0].std(0, correction=0))
    again = load_run(tmp_path / "run", dataset=dataset)
    assert torch.equal(again.model.likelihood.scale, run.model.likelihood.scale)
    with pytest.warns(RuntimeWarning, match="Try standardised data.*--standardize.: x has a standard deviation of"):
        quiet_train(dataclasses.replace(config, standardize=False), tmp_path / "other", dataset)
    with pytest.raises(UsageError, match="standardize: expected a density on the real line; got poisson"):
        assemble(dataclasses.replace(config, likelihood="poisson"), of_images=False)
    images = torch.zeros(20, 1, 4, 4, dtype=torch.uint8).random_(generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="standardize: expected vectors; got images"):
        prepare(config, Dataset("images", images, images))


def test_widths_of_dense_layers_are_refused_where_there_are_none():
    with pytest.raises(
        UsageError, match=r"hidden: expected none for residual-conv, which has no dense layers; got \(8,\)"
    ):
        assemble(TrainConfig(model="residual-conv-vae", hidden=(8,)))
    for config in (TrainConfig(model="conv-ae", hidden=(8,)), TrainConfig(model="conv-ae:hidden=8")):
        with pytest.raises(UsageError, match="hidden: expected none for conv-ae, whose code is feature maps; got"):
            assemble(config)
