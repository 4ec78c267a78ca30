"""The laws of every likelihood, prior and posterior together, on 2 x 2 images with two latent dimensions.

Any two components meet, in 112 combinations. All 672, in some minutes:

    PPL_VAE_LAWS=all pytest tests/test_laws.py

Components are found as the command line finds them, so that a new one is tested at once. The tests of its module hold
what each of them is (a density that integrates to 1, samples that follow it); here is what they are together, as a
`VAE`.

Run as a program, `test_laws.py folder`, the file is the fresh process that loads what a test has saved.
"""

import copy
import functools
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine
from safetensors.torch import load_file, save_file
from tiny import LATENT, tiny_vae
from torch import nn

from ppl_vae.components import choices
from ppl_vae.evaluation.chunks import seed_of
from ppl_vae.evaluation.importance import log_likelihood, log_weights
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import assemble
from ppl_vae.likelihoods import Likelihood
from ppl_vae.objectives import Elbo
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
from ppl_vae.programs import guide_trace_of, model_trace_of, part_of, sample_sites, seeded

SHAPE, N, K = (1, 2, 2), 3, 3  # of x; how many data and samples
SEED = 5
LIKELIHOODS, PRIORS, POSTERIORS = (list(choices(base)) for base in (Likelihood, Prior, Posterior))
COMBINATIONS = [
    (likelihood, prior, posterior)
    for (i, likelihood), (j, prior), (k, posterior) in itertools.product(
        *map(enumerate, (LIKELIHOODS, PRIORS, POSTERIORS))
    )
    if k == (i + j) % len(POSTERIORS) or "PPL_VAE_LAWS" in os.environ
]
SMALL = {  # a component that isn't here is built with its defaults
    "gaussian-mixture": "num_components=3",
    "vamp-prior": "num_components=3",
    "exemplar-prior": "num_exemplars=3",
    "normalizing-flow": "num_transforms=1,hidden_size=4,num_bins=3",
    "low-rank-normal": "rank=1",
    "mixture-normal": "num_components=2",
    "inverse-autoregressive-flow": "num_transforms=1,hidden_size=4,context_size=2",
    "neural-spline-flow": "num_transforms=1,hidden_size=4,context_size=2,num_bins=3",
}

# Each likelihood, prior and posterior once, where each has its state for itself.
SOME = [c for c in COMBINATIONS if LIKELIHOODS.index(c[0]) % len(PRIORS) == PRIORS.index(c[1])]

every_combination = pytest.mark.parametrize("names", COMBINATIONS, ids=" ".join)


def build(names, seed=0):
    """An untrained VAE in evaluation mode, float64."""
    parts = (f"{name}:{SMALL.get(name, '')}" for name in names)
    return tiny_vae(*parts, event_shape=SHAPE, hidden=32, divided=True, noise=0.1, seed=seed).double().eval()


def data_of(vae):
    """Data sampled from the model, shape (N, *SHAPE), and so in the support. Of 16 samples they are the largest counts,
    since images that are all 0 have no gradient to the encoder's weights; or else the smallest values, since a spline
    has no gradient for latents far outside of its box."""
    with seeded(1), torch.no_grad():
        z = torch.randn(16, LATENT, dtype=torch.float64)  # a prior with heavy tails makes counts beyond reason
        x = vae.likelihood(vae.decoder(z)).sample()
    order = x.abs().flatten(1).sum(-1).argsort()
    return x[order[-N:] if vae.likelihood.support.is_discrete else order[:N]]


def recorded(guide):
    """The guide, and a list to which each of its runs adds its samples of z."""
    draws = []

    def recording(x):
        with poutine.trace() as tracer:
            guide(x)
        draws.append(tracer.trace.nodes["z"]["value"].detach())

    return recording, draws


@functools.cache
def evaluated(names):
    """(vae, x, the samples (K, N, LATENT) that log p(x) is estimated from, log p(x) (N,), their weights by a loop)."""
    vae = build(names)
    x = data_of(vae)
    guide, draws = recorded(vae.guide)
    log_p = log_likelihood(vae.model, guide, x, num_samples=K, seed=SEED, compiled=False).log_p
    return vae, x, draws[-1], log_p, log_weights_one_by_one(vae, x, draws[-1])


@torch.no_grad()
def log_weights_one_by_one(vae, x, draws):
    """log p(x|z) + log p(z) - log q(z|x) as lists [n][k], for one datum and one sample at a time. A sample is scored
    anew here, so that a flow's determinant is that of its inverse."""
    log_w, p = [], vae.prior()
    for x_n, draws_n in zip(x, draws.unbind(1), strict=True):
        log_w.append([])
        q = vae.encode(x_n)
        for z in draws_n:
            log_p = vae.likelihood(vae.decoder(z)).log_prob(x_n).sum() + p.log_prob(z)
            log_w[-1].append((log_p - q.log_prob(z)).item())
    return log_w


def log_mean_exp(values):
    largest = max(values)
    return largest + math.log(sum(math.exp(v - largest) for v in values) / len(values))


def test_any_two_components_meet():
    for two in itertools.combinations(range(3), 2):
        all_pairs = itertools.product(*((LIKELIHOODS, PRIORS, POSTERIORS)[i] for i in two))
        assert {tuple(names[i] for i in two) for names in COMBINATIONS} == {*all_pairs}


@every_combination
def test_log_likelihood_is_that_of_a_loop(names):
    """Densities have their constants, the prior is the model's own, each datum has its own weights, whose mean is taken
    before the log, and a flow's determinant is that of its inverse."""
    *_, draws, log_p, log_w = evaluated(names)
    assert draws.shape == (K, N, LATENT)
    expected = torch.tensor([log_mean_exp(log_w_n) for log_w_n in log_w], dtype=torch.float64)
    torch.testing.assert_close(log_p, expected, rtol=1e-6, atol=1e-6)


@every_combination
def test_particles_are_independent_draws_with_gradients_to_every_parameter(names):
    """In training the loss is the mean over particles of the weight that each has on its own, and under one seed they
    are those of log p(x)."""
    vae, x, draws, _, log_w = evaluated(names)
    guide, drawn = recorded(vae.guide)
    with seeded(seed_of(SEED, 0, 0)), pyro.get_param_store().scope():
        loss = Elbo(K).loss_and_grads(vae.model, guide, x)
    gradients = {name: p.grad for name, p in vae.named_parameters()}
    vae.zero_grad()
    assert torch.equal(*drawn, draws)
    assert len(draws.unique()) == draws.numel()
    assert loss == pytest.approx(-sum(map(sum, log_w)) / K, rel=1e-6, abs=1e-6)
    assert [k for k, g in gradients.items() if g is None or not g.any() or not g.isfinite().all()] == []


@every_combination
def test_shapes_and_names(names):
    vae, x, z, *_ = evaluated(names)
    assert bool(vae.likelihood.support.check(x).all())
    with torch.no_grad():
        q, p = vae.encode(x), vae.prior()
        assert (q.batch_shape, q.event_shape) == ((N,), (LATENT,))
        assert (p.batch_shape, p.event_shape) == ((), (LATENT,))
        assert p.log_prob(z).shape == (K, N)
        assert vae.decode(z).shape == (K, N, *SHAPE)
        assert vae.reconstruct(x).shape == x.shape
    for part in (vae.likelihood, vae.prior, vae.posterior):
        assert repr(part).startswith(f"{type(part).__name__}(")
        assert "\n" not in repr(part)
        assert repr(part) in repr(vae)


def tensors_of(value, seen):
    """Every tensor that can be reached from a module: parameters, buffers, plain attributes, those in containers."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors_of(v, seen)
    elif isinstance(value, list | tuple | set):
        for v in value:
            yield from tensors_of(v, seen)
    elif isinstance(value, nn.Module):
        yield from tensors_of(vars(value), seen)


@every_combination
def test_a_move_leaves_no_tensor_behind(names):
    """No device but the CPU is needed: "meta" is one. Whatever tensor an attribute holds has gone there."""
    vae = copy.deepcopy(evaluated(names)[0]).to("meta")
    assert {t.device.type for t in tensors_of(vae, set())} == {"meta"}


@pytest.mark.parametrize(
    "names",
    [
        *itertools.product(["bernoulli"], PRIORS, POSTERIORS),
        *itertools.product(LIKELIHOODS[1:], ["standard-normal"], ["diagonal-normal"]),
    ],
    ids=" ".join,
)
def test_programs_run_where_they_were_moved(names):
    """And on the way no tensor is made on the CPU, which "meta" would refuse to be mixed with. A likelihood sees
    neither prior nor posterior, so that each of them is here once, and those two, which may meet, in every pair."""
    vae, x = build(names).to("meta"), torch.empty(N, *SHAPE, dtype=torch.float64, device="meta")
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        guide_trace = guide_trace_of(vae.guide, x, num_samples=K)
        model_trace = model_trace_of(vae.model, guide_trace, x, num_samples=K)
        for trace in (guide_trace, model_trace):
            trace.compute_log_prob()
            sites = (sample_sites(trace, observed=False) | sample_sites(trace, observed=True)).values()
            assert {site["log_prob"].device.type for site in sites} == {"meta"}
            assert {site["log_prob"].dtype for site in sites} == {torch.float64}


LADDER, DISCRETE = "dense-ladder:layers=3+2,hidden=8", "dense-dvae:hidden=8,categories=3"


@pytest.mark.parametrize(
    ("model", "kind", "name"),
    [
        *itertools.product([LADDER, DISCRETE], ["likelihood"], LIKELIHOODS),
        *itertools.product([LADDER], ["prior"], PRIORS),
        *itertools.product([LADDER], ["posterior"], POSTERIORS),
    ],
)
def test_other_models_take_every_component(model, kind, name):
    """With the log-weights that one datum and one sample have alone, and gradients to every parameter."""
    config = TrainConfig(model=model, latent_size=2, **{kind: f"{name}:{SMALL.get(name, '')}"})
    assembly = assemble(config, of_images=False)
    vae = assembly.build((4,)).double().eval()
    with seeded(1), torch.no_grad():
        x = vae.generate(N).sample()

    def log_prob(program, part, x):
        """Of all sites, at latents of one sample of one datum."""
        trace = model_trace_of(program, part, x, num_samples=1)
        sites = sample_sites(trace, observed=False) | sample_sites(trace, observed=True)
        return sum(site["fn"].log_prob(site["value"]) for site in sites.values())

    expected = torch.empty(K, N, dtype=torch.float64)
    with seeded(2):
        log_w = log_weights(vae.model, vae.guide, x, num_samples=K)
    with seeded(2), pyro.get_param_store().scope(), torch.no_grad(), pyro.validation_enabled(False):
        draws = guide_trace_of(vae.guide, x, num_samples=K)
        for k, n in itertools.product(range(K), range(N)):
            part, datum = part_of(draws, slice(k, k + 1), slice(n, n + 1)), x[n : n + 1]
            expected[k, n] = log_prob(vae.model, part, datum) - log_prob(vae.guide, part, datum)
    torch.testing.assert_close(log_w, expected, rtol=1e-6, atol=1e-6)
    with seeded(0), pyro.get_param_store().scope():
        assembly.objective.loss_and_grads(vae.model, vae.guide, x)
    assert [k for k, p in vae.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_a_fresh_process_has_the_same_log_p_bit_for_bit(tmp_path):
    """Before any training step, and in models that began with another seed: all that log p(x) needs is in the state."""
    saved = {}
    for i, names in enumerate(SOME):
        vae, x, *_ = evaluated(names)
        saved |= {f"{i}.{name}": tensor.contiguous() for name, tensor in (vae.state_dict() | {"x": x}).items()}
    save_file(saved, tmp_path / "saved.safetensors")
    with subprocess.Popen([sys.executable, __file__, str(tmp_path)]) as process:
        log_p = [log_p_under_one_seed(*evaluated(names)[:2]) for names in SOME]
    assert process.returncode == 0
    loaded = load_file(tmp_path / "log_p.safetensors")
    assert [c for i, c in enumerate(SOME) if not torch.equal(loaded[str(i)], log_p[i])] == []


def log_p_under_one_seed(vae, x):
    with seeded(SEED):
        return log_weights(vae.model, vae.guide, x, num_samples=K).logsumexp(0) - math.log(K)


def fresh_process(folder):
    saved, log_p = load_file(folder / "saved.safetensors"), {}
    for i, names in enumerate(SOME):
        vae = build(names, seed=9)
        vae.load_state_dict({name: saved[f"{i}.{name}"] for name in vae.state_dict()})
        x = saved[f"{i}.x"].clone()  # elsewhere in memory, sums may be in another order and differ in their last bits
        log_p[str(i)] = log_p_under_one_seed(vae, x)
    save_file(log_p, folder / "log_p.safetensors")


if __name__ == "__main__":
    fresh_process(Path(sys.argv[1]))
