import dataclasses

import pyro
import pytest
import torch
from small_runs import CONFIG, quiet_train

from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.experiments.refitting import FILE, refit_prior
from ppl_vae.experiments.runs import load_run
from ppl_vae.programs import evaluating
from ppl_vae.system.files import read_json

OPTIONS = {"epochs": 3, "batch_size": 20, "learning_rate": 0.03, "show_progress": False}
PRIORS = (
    "learned-normal",
    "gaussian-mixture:num_components=3",
    "vamp-prior:num_components=5",
    "exemplar-prior:num_exemplars=20",
)


@pytest.fixture
def run(tmp_path, dataset):
    return quiet_train(CONFIG, tmp_path / "run", dataset)


@pytest.mark.parametrize("prior", PRIORS)
def test_the_prior_alone_changes(run, tmp_path, dataset, prior):
    before = {name: t.clone() for name, t in run.model.state_dict().items()}
    new = refit_prior(run, prior, tmp_path / "new", **OPTIONS)
    loaded = load_run(tmp_path / "new", dataset=dataset)
    assert loaded.config.prior == prior
    for name, t in before.items():
        assert torch.equal(new.model.state_dict()[name], t)
        assert torch.equal(loaded.model.state_dict()[name], t)
        assert torch.equal(run.model.state_dict()[name], t)
    assert all(p.requires_grad for p in new.model.parameters())
    x = run.observe.frozen(dataset.test, 0)
    assert not torch.equal(*(log_likelihood(*r.programs, *x, num_samples=5).log_p for r in (run, new)))
    assert read_json(tmp_path / "new" / FILE)["from"]["prior"] == run.config.prior


def test_a_normal_prior_gets_the_moments_of_the_latents(run, tmp_path):
    """Of a diagonal normal the best mean and variance are the aggregate posterior's, E[m] and E[s^2] + Var[m]."""
    options = OPTIONS | {"epochs": 150, "patience": 150, "learning_rate": 0.02}
    new = refit_prior(run, "learned-normal", tmp_path / "new", **options)
    images = run.train_data(10**6)[0]
    with evaluating(run.model.model):
        q = run.model.encode(run.observe.frozen(images, 0)[-1])
        mean, variance = q.mean.mean(0), q.variance.mean(0) + q.mean.var(0, correction=0)
        p = new.model.prior()
    # Adam at a rate of 0.02 stays within some of its steps of the optimum, which moves from batch to batch
    torch.testing.assert_close(p.mean / variance.sqrt(), mean / variance.sqrt(), rtol=0, atol=0.15)
    torch.testing.assert_close(p.variance.log(), variance.log(), rtol=0, atol=0.3)
    summary = read_json(tmp_path / "new" / FILE)
    assert summary["elbo_gain"] > 2 * summary["elbo_gain_se"] > 0


def test_a_prior_without_parameters_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="prior: expected one with parameters to fit; got laplace"):
        refit_prior(run, "laplace", tmp_path / "new")


def test_models_without_a_prior_of_their_own_are_refused(tmp_path, dataset):
    ae = quiet_train(dataclasses.replace(CONFIG, model="dense-ae", prior="standard-normal"), tmp_path / "ae", dataset)
    with pytest.raises(ValueError, match="dense-ae: expected a model with a prior, and without labels; got another"):
        refit_prior(ae, "learned-normal", tmp_path / "new")
    assert not pyro.get_param_store().keys()


def test_exemplars_are_where_the_trained_encoder_has_them_and_a_datums_own_is_left_out(run, tmp_path):
    """Of a posterior so narrow that the best scale with one's own exemplar would be next to 0."""
    with torch.no_grad():
        last = run.model.encoder.net[-1]
        last.bias[2:] -= 10
    options = OPTIONS | {"epochs": 20, "patience": 20, "learning_rate": 0.1}
    new = refit_prior(run, "exemplar-prior:num_exemplars=50", tmp_path / "new", **options)
    x = run.observe.frozen(run.train_data(50)[0], 0)[-1]
    with evaluating(run.model.model):
        means = run.model.encode(x).mean
    torch.testing.assert_close(new.model.prior.means, means)
    nearest = torch.cdist(means, means).fill_diagonal_(torch.inf).min(1).values.median()
    assert new.model.prior.log_scale.exp() > 0.5 * nearest
