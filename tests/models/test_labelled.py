"""Labels, given and latent. M2: the class summed out, by hand, by enumeration and in the marginal programs."""

import math

import pyro
import pytest
import torch
from linear_models import (
    CLASSES,
    EVENT,
    PROBS,
    Bayes,
    classes,
    partly_labelled,
    semi_supervised,
)
from pyro.infer import SVI, TraceEnum_ELBO
from torch import nn

from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import ConditionalVAE, JointEncoder, SemiSupervisedVAE
from ppl_vae.networks import DenseDecoder, DenseEncoder
from ppl_vae.objectives import DoublyReparameterized, Elbo
from ppl_vae.posteriors import DiagonalNormal
from ppl_vae.priors import StandardNormal
from ppl_vae.programs import seeded
from ppl_vae.training.fitting import fit
from ppl_vae.training.optimizers import adam


def summed_by_hand(m2, x, y, noise):
    """-(-L(x, y)) of labelled data, -(-U(x)) of the others, and the classification term, with the noise (K, N, latent)
    of the draws of z under each class."""
    vae, loss = m2.conditional, torch.zeros(())
    log_q_y = m2.classifier(x).log_softmax(-1)
    for n in range(len(x)):
        bounds = []
        for k in range(CLASSES):
            label = torch.tensor([k])
            q = vae.encode(x[n : n + 1], label)
            z = q.loc + q.scale_tril[0] @ noise[k, n]
            log_p = PROBS[k].log() + vae.prior().log_prob(z) + vae.p_x(z, label).log_prob(x[n]).sum()
            bounds.append((log_p - q.log_prob(z)).squeeze())
        if y[n] >= 0:
            loss = loss - bounds[y[n]] - m2.alpha * log_q_y[n, y[n]]
        else:
            loss = loss - sum(log_q_y[n, k].exp() * (bounds[k] - log_q_y[n, k]) for k in range(CLASSES))
    return loss


@pytest.mark.parametrize("labels", [0, 2, 5])
def test_the_class_is_summed_out_exactly(labels):
    case = semi_supervised(width=1.4, N=5, labels=labels)
    x, y = case.data
    params = dict(case.module.named_parameters())
    with pyro.get_param_store().scope():
        with seeded(2):
            loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(*case.pair, x, y)
        with seeded(2):
            noise = torch.randn(CLASSES, 5, 2)
    by_hand = summed_by_hand(case.module, x, y, noise)
    torch.testing.assert_close(loss, by_hand, atol=1e-3, rtol=1e-5)
    for name, p in params.items():
        got, expected = (torch.autograd.grad(t, p, retain_graph=True)[0] for t in (loss, by_hand))
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4, msg=name)


def test_without_labels_is_all_unlabelled_and_the_classification_is_for_training_alone():
    case = semi_supervised(width=1.4, labels=0)
    m2, (x, none) = case.module, case.data
    elbo = TraceEnum_ELBO(max_plate_nesting=1)

    def loss(*data):
        with seeded(0), pyro.get_param_store().scope(), torch.no_grad():
            return elbo.loss(m2.model, m2.guide, *data)

    assert loss(x) == pytest.approx(loss(x, none), abs=1e-4)
    y = m2.predict(x).probs.argmax(-1)
    classification = m2.alpha * m2.predict(x).log_prob(y).sum().item()
    training = loss(x, y)
    m2.eval()
    assert loss(x, y) == pytest.approx(training + classification, abs=1e-3)
    assert loss(x) == pytest.approx(loss(x, none), abs=1e-4)


def test_a_classifier_is_learned_from_a_few_labels():
    """Two classes far apart, of which four data are labelled; the marginal likelihood has to know p(y) too."""
    with seeded(0):
        vae = ConditionalVAE(
            JointEncoder(DenseEncoder((2,), 8, (8,)), nn.Linear(8 + 2, 2)),
            DenseDecoder(1 + 2, (2,), 1, (8,)),
            num_classes=2,
            prior=StandardNormal(1),
            likelihood=Gaussian(0.5),
            posterior=DiagonalNormal(1),
        )
        m2 = SemiSupervisedVAE(vae, DenseEncoder((2,), 2, (8,)), alpha=5.0)
        true = torch.arange(200) % 2
        x = torch.randn(200, 2) * 0.5 + torch.where(true[:, None] == 1, 1.0, -1.0)
        y = torch.where(torch.arange(200) < 4, true, -1)
    before = {name: p.detach().clone() for name, p in m2.named_parameters()}
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    history = fit(
        m2.model, m2.guide, x, y, elbo=elbo, epochs=15, batch_size=20, learning_rate=1e-2, show_progress=False
    )
    assert history["train_elbo"][-1] > history["train_elbo"][0]
    assert not [name for name, p in m2.named_parameters() if torch.equal(p, before[name])]
    assert (m2.predict(x).probs.argmax(-1) == true).float().mean() > 0.95
    assert m2.reconstruct(x).shape == (200, 2)
    assert log_likelihood(m2.marginal_model, m2.marginal_guide, x, num_samples=50).mean < 0


def test_pyros_own_svi_takes_the_same_programs():
    case = partly_labelled()
    with seeded(0), pyro.get_param_store().scope():
        for elbo in (TraceEnum_ELBO(max_plate_nesting=1), Elbo()):
            svi = SVI(*case.pair, adam(1e-3), loss=elbo)
            assert math.isfinite(svi.step(*case.data))


def test_labels_choose_what_is_generated():
    vae, p_x = classes()
    y = torch.arange(3 * 2000) % CLASSES
    with seeded(0), torch.no_grad():
        x = vae.generate(y).sample().flatten(1)
    for k in range(CLASSES):
        error = x[y == k].mean(0) - p_x.loc[k]
        assert bool((error.abs() < 5 * (p_x.covariance_matrix.diagonal(dim1=-2, dim2=-1) / 2000).sqrt()).all())
    in_turn, one_by_one = [], torch.arange(2 * CLASSES + 1) % CLASSES
    for labels in (2 * CLASSES + 1, one_by_one):
        with seeded(0), torch.no_grad():
            in_turn.append(vae.generate(labels).mean)
    assert torch.equal(*in_turn)
    m2 = semi_supervised().module
    with seeded(0), torch.no_grad():
        x = m2.generate(3000).sample()
    log_p = semi_supervised().exact
    assert x.shape == (3000, *EVENT)
    share = (x.flatten(1).mean(0) - PROBS @ p_x.loc).abs()
    assert bool((share < 5 * x.flatten(1).std(0) / math.sqrt(3000)).all())
    assert log_p.isfinite().all()


def test_what_is_refused():
    vae, p_x = classes()
    x = torch.zeros(2, *EVENT)
    for y in (torch.tensor([0, 3]), torch.tensor([-1, 1])):
        with pytest.raises(ValueError, match=r"y: expected labels 0 to 2; got (0 to 3|-1 to -1)\Z"):
            log_likelihood(vae.model, vae.guide, x, y, num_samples=2)
    for y in (torch.zeros(2), torch.tensor([True, False]), torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 4)):
        message = r"y: expected integer labels \(data,\), or floats \(data, 3\); got torch.* \(labels: y.*\)\Z"
        with pytest.raises(ValueError, match=message):
            log_likelihood(vae.model, vae.guide, x, y, num_samples=2)
        with pytest.raises(ValueError, match=message):
            fit(vae.model, vae.guide, x, y, epochs=1, show_progress=False)
        with pytest.raises(ValueError, match=message):
            vae.reconstruct(x, y)
    m2 = SemiSupervisedVAE(vae, Bayes(p_x, 1.0))
    for y in (torch.zeros(2), torch.tensor([True, False]), torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"y: expected integer labels \(data,\); got torch.* \(labels: y.*\)\Z"):
            log_likelihood(m2.model, m2.guide, x, y, num_samples=2)
    torch.testing.assert_close(m2.class_logits.exp(), torch.full((3,), 1 / 3))
    with pytest.raises(ValueError, match="y: expected labels 0 to 2; got 0 to 3"):
        log_likelihood(m2.model, m2.guide, x, torch.tensor([0, 3]), num_samples=2)
    with pytest.raises(ValueError, match="class_probs: expected 3 numbers above 0; got"):
        SemiSupervisedVAE(vae, Bayes(p_x, 1.0), class_probs=torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="alpha: expected a number of at least 0; got -1"):
        SemiSupervisedVAE(vae, Bayes(p_x, 1.0), alpha=-1)
    with pytest.raises(ValueError, match="num_classes: expected at least 1; got 0"):
        ConditionalVAE(
            nn.Identity(),
            nn.Identity(),
            num_classes=0,
            prior=StandardNormal(1),
            likelihood=Gaussian(),
            posterior=DiagonalNormal(1),
        )
    with seeded(0), pyro.get_param_store().scope(), pytest.raises(ValueError, match="'y': expected a reparameterised"):
        DoublyReparameterized().loss(m2.model, m2.guide, x)
