"""Objectives of training, as Pyro ELBOs: bounds on log p(x), and estimators of their gradients.

Each works on any Pyro pair with one data plate at dim -1: `SVI(model, guide, optim, loss=objective)`, or
`fit(..., elbo=objective)`. A loss is a sum over the batch, in nats, times the scales that the programs have
(subsampling, `poutine.scale`).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal, Self

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.trace_elbo import _compute_log_r
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Distribution, Independent, OneHotCategorical

from ppl_vae.components import Component
from ppl_vae.distributions import RelaxedOneHot, kl_divergence
from ppl_vae.kl_weights import KLWeight
from ppl_vae.programs import SCORES_ITS_OWN, Program, check_per_datum, check_unmasked, innermost, mode, sample_sites


class KLScale(Messenger):
    """Multiplies the log-prob of latent sites by beta, a number or a tensor of shape (): around model and guide
    together, beta KL(q(z|x) || p(z)) stands where the KL stood. Observed sites and values stay as they are, and
    so does log p(x), which is evaluated without scales.

    `poutine.scale` would scale the likelihood as well, and refuses beta = 0.
    """

    def __init__(self, beta: float | Tensor):
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = self.beta * msg["scale"]


class Objective(Component, ELBO, ABC):
    """A loss of a Pyro pair, estimated with `num_particles` draws from the guide, at once, in a plate at dim -2
    (and without that plate for one draw, so that networks see the batch as it is).

    Subclass it to add one: `estimate(model_trace, guide_trace)` returns the loss, a tensor of shape () whose value
    is the loss and whose gradient is the estimator's. It doesn't branch on values: `differentiable_loss` can be
    traced by `make_fx` and compiled. Keyword arguments of `__init__` with a type and a default can be set by name.

    Raises `ValueError` for num_particles < 1.
    """

    kl_weight: KLWeight | None = None

    def __init__(self, num_particles: int = 1):
        if num_particles < 1:
            raise ValueError(f"num_particles: expected at least 1; got {num_particles}")
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)

    @abstractmethod
    def estimate(self, model_trace: Trace, guide_trace: Trace) -> Tensor: ...

    def weighted(self, kl_weight: KLWeight) -> Self:
        """The same objective with the log-prob of latent sites times beta, the KL weight of the gradient step:
        the loss is -E_q[log p(x|z)] + beta KL for the ELBOs, and of importance weights p(x|z) (p(z) / q(z|x))^beta.
        `loss` evaluates at the present beta, and doesn't count as a step."""
        other = copy.copy(self)
        other.kl_weight = kl_weight
        return other

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, shape (), in nats; its gradient is the estimator's."""
        with KLScale(1.0 if self.kl_weight is None else self.kl_weight()):
            ((model_trace, guide_trace),) = self._get_traces(model, guide, args, kwargs)
        return self.estimate(model_trace, guide_trace)

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, without gradients."""
        with torch.no_grad(), mode(*filter(None, [self.kl_weight]), training=False):
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss in nats; gradients are added to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


class Elbo(Objective):
    """The ELBO, E_q[log p(x, z) - log q(z|x)], by draws from q.

    The gradient is Pyro's `Trace_ELBO`'s: of the path z(phi) and of the density for reparameterised sites, of the
    score function for the others, which may be discrete.

    Diederik P. Kingma, Max Welling: Auto-Encoding Variational Bayes, 2013, arXiv:1312.6114.
    """

    def estimate(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        return _elbo_loss(model_trace, guide_trace) / self.num_particles


class LeaveOneOut(Objective):
    """The ELBO, with a control variate for sites that aren't reparameterised, such as discrete ones. Of K =
    `num_particles` draws each has a log-weight log w_k = log p(x, z_k) - log q(z_k|x), which multiplies its score
    function. From it the mean of the others is taken off, which are independent of the score:

        1/K sum_k (log w_k - 1/(K - 1) sum_{j != k} log w_j) d log q(z_k|x) / dphi.

    The gradient has no bias, and a far smaller variance than `Elbo`'s.

    Andriy Mnih, Danilo J. Rezende: Variational Inference for Monte Carlo Objectives, 2016, arXiv:1602.06725. Wouter
    Kool, Herke van Hoof, Max Welling: Buy 4 REINFORCE Samples, Get a Baseline for Free!, 2019.
    Raises `ValueError` for num_particles < 2.
    """

    def __init__(self, num_particles: int = 4):
        super().__init__(num_particles)
        if num_particles < 2:
            raise ValueError(f"leave-one-out: expected num_particles >= 2; got {num_particles}")

    def estimate(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        def centred(log_w: Tensor) -> Tensor:
            """Of log-weights (particles, data)."""
            return log_w - (log_w.sum(-2, keepdim=True) - log_w) / (self.num_particles - 1)

        return _elbo_loss(model_trace, guide_trace, centred) / self.num_particles


def _elbo_loss(model_trace: Trace, guide_trace: Trace, signal: Callable[[Tensor], Tensor] = lambda log_w: log_w) -> Any:
    """The sum of -log w over particles and data, whose gradient is of the path for reparameterised sites, and of the
    score function times `signal(log w)` for the others."""
    loss = -_log_prob(_samples(model_trace)) + _log_prob(_samples(guide_trace))
    surrogate = -_log_prob(_samples(model_trace))
    for site in _samples(guide_trace):
        _, score_function, entropy = site["score_parts"]
        if not is_identically_zero(entropy):
            surrogate = surrogate + entropy.sum()
        if not is_identically_zero(score_function):
            log_w = _compute_log_r(model_trace, guide_trace).sum_to(site["cond_indep_stack"])
            surrogate = surrogate - (signal(log_w) * score_function).sum()
    return _with_gradient_of(surrogate, loss)


class ClosedFormKL(Objective, ABC):
    """E_q[log p(x|z)] - KL(q(z|x) || p(z)), with the KL of each latent site in closed form.

    A site's KL is taken between q and p given the draws of the sites above it. It is right where what p conditions
    the site on is drawn before it by q: then the KL is the expectation over the site alone, given the rest
    (Rao-Blackwell). So q has to draw its sites in the order of the model. It holds for a mean field, and for a
    hierarchy z_2 -> z_1 of which both programs run from the top down; in a guide that runs from the bottom up,
    z_1 -> z_2, the KL of z_1 would be to p(z_1 | z_2) at a z_2 that depends on z_1.

    (`TraceMeanField_ELBO` warns of another order if validation is on, and takes to sampling where there is no closed
    form, without a word.)

    Raises `ValueError` at the first step for another order, a latent site of the guide alone, and a site that has no
    closed form or isn't reparameterised.
    """

    of_kl: str = ""  # what about a KL is wanted, for the error

    @abstractmethod
    def kl(self, q: dict, p: dict) -> Tensor:
        """KL of one latent site, per particle and datum, unscaled; `NotImplementedError` where it isn't known."""

    def estimate(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        qs, ps = (sample_sites(trace, observed=False) for trace in (guide_trace, model_trace))
        if [*qs] != [*ps]:
            raise ValueError(f"latent sites: expected the guide's in the model's order {[*ps]}; got {[*qs]}")
        _check_reparameterised(guide_trace)
        loss = -_log_prob(sample_sites(model_trace, observed=True).values())
        for name, q in qs.items():
            try:
                kl = self.kl(q, ps[name])
            except NotImplementedError:
                raise ValueError(
                    f"site {name!r}: expected a closed-form KL for {type(self).__name__}; got {_family(q)} to "
                    f"{_family(ps[name])}, which has none{self.of_kl} (Elbo takes any)"
                ) from None
            loss = loss + scale_and_mask(kl, q["scale"], q["mask"]).sum()
        return loss / self.num_particles


class AnalyticKL(ClosedFormKL):
    """The ELBO with the KL in closed form, where there is one for the two distributions: torch's, Pyro's, and that of
    normals of any covariance to independent ones."""

    def kl(self, q: dict, p: dict) -> Tensor:
        return kl_divergence(q["fn"], p["fn"])


class FreeBits(ClosedFormKL):
    """The ELBO with at least `nats` of KL granted to each dimension j of each latent site,

        E_q[log p(x|z)] - sum_j max(nats, mean KL(q(z_j|x) || p(z_j))),    the mean over the batch and the particles,

    times the size of the batch. A dimension whose mean is below `nats` has no gradient of its KL. With per="layer" they
    are granted to each latent site as a whole, such as a layer of a hierarchy: j runs over the sites.

    Diederik P. Kingma et al.: Improving Variational Inference with Inverse Autoregressive Flow, 2016,
    arXiv:1606.04934. Raises `ValueError` unless nats >= 0, and for a masked site.
    """

    def __init__(self, nats: float = 0.5, num_particles: int = 1, per: Literal["dimension", "layer"] = "dimension"):
        super().__init__(num_particles)
        if not (nats >= 0 and math.isfinite(nats)):
            raise ValueError(f"free bits: expected nats >= 0; got {nats}")
        if per not in ("dimension", "layer"):
            raise ValueError(f"free bits: expected per dimension or layer; got {per!r}")
        self.nats, self.per = nats, per
        self.of_kl = " by dimension" if per == "dimension" else ""

    def kl(self, q: dict, p: dict) -> Tensor:
        check_unmasked(q["name"], q)
        batch = q["fn"].batch_shape
        of_q, of_p = q["fn"], p["fn"]
        if self.per == "dimension":
            of_q, of_p = _per_dimension(of_q), _per_dimension(of_p)
        return kl_divergence(of_q, of_p).reshape(batch.numel(), -1).mean(0).clamp(min=self.nats).sum().expand(batch)


class GumbelSoftmax(ClosedFormKL):
    """The ELBO of one-hot categorical latents, in which a relaxed draw stands for z where x is reconstructed,

        E[log p(x|z~)] - KL(q(z|x) || p(z)),    z~ = softmax((log q + g) / temperature),    g Gumbel noise,

    with a gradient that has a bias, and a small variance. With `straight_through` the draw is the one-hot argmax of
    z~, so that the loss is that of the ELBO, and the gradient of z~ stands for its own. The programs stay as they are:
    what is evaluated is the ELBO of discrete z.

    Eric Jang, Shixiang Gu, Ben Poole: Categorical Reparameterization with Gumbel-Softmax, 2016, arXiv:1611.01144. Chris
    J. Maddison, Andriy Mnih, Yee Whye Teh: The Concrete Distribution, 2016, arXiv:1611.00712.
    Raises `ValueError` unless temperature > 0, and for a site that is neither one-hot nor reparameterised.
    """

    def __init__(self, temperature: float = 0.5, straight_through: bool = False, num_particles: int = 1):
        super().__init__(num_particles)
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"gumbel-softmax: expected temperature > 0; got {temperature}")
        self.temperature, self.straight_through = temperature, straight_through

    def kl(self, q: dict, p: dict) -> Tensor:
        return kl_divergence(q["fn"], p["fn"])

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        with _Relax(self.temperature, self.straight_through):
            return super()._get_trace(model, guide, args, kwargs)


class _Relax(Messenger):
    """Draws one-hot categorical sites as `RelaxedOneHot` does."""

    def __init__(self, temperature: float, straight_through: bool):
        super().__init__()
        self.options = temperature, straight_through

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and isinstance(innermost(msg["fn"]), OneHotCategorical):
            msg["fn"] = self._relaxed(msg["fn"])

    def _relaxed(self, fn: Any) -> Any:
        if isinstance(fn, Independent):
            return self._relaxed(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
        return RelaxedOneHot(fn.logits, *self.options)


class ImportanceWeighted(Objective):
    """The importance-weighted bound of each datum, with K = `num_particles` draws,

        E[log 1/K sum_k w_k],    w_k = p(x, z_k) / q(z_k|x),    z_k ~ q(z|x).

    It rises with K to log p(x). Its gradient is that of the bound as a function of reparameterised draws; for the
    guide its signal-to-noise ratio falls as 1/sqrt(K) (Tom Rainforth et al.: Tighter Variational Bounds are Not
    Necessarily Better, 2018, arXiv:1802.04537), which `DoublyReparameterized` mends.

    A scale that the observed site has (subsampling, `poutine.scale` around both programs) weighs the datum's bound.
    (Pyro's `RenyiELBO(alpha=0)` takes the scale into the logarithm, as a power of w, which is another bound; it
    weighs the data jointly if there is a site outside of the plate, and gives a guide that isn't reparameterised the
    gradient 0.)

    Yuri Burda, Roger Grosse, Ruslan Salakhutdinov: Importance Weighted Autoencoders, 2015, arXiv:1509.00519.
    Raises `ValueError` for a latent site that isn't reparameterised, or a log-prob that isn't one number a datum.
    """

    def __init__(self, num_particles: int = 5):
        super().__init__(num_particles)

    def estimate(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        _check_reparameterised(guide_trace)
        log_w = _log_weights(model_trace, guide_trace, self.max_plate_nesting)
        return -(_data_scale(model_trace) * _log_mean_exp(log_w)).sum()


class StickingTheLanding(Objective):
    """The ELBO with the gradient of the path z(phi) alone: the score, d/dphi log q(z; phi) at a fixed z, has mean 0
    and is left out. At q(z|x) = p(z|x) the gradient of phi is then 0 for each draw, and not on average only.

    The score is found by the guide's log_prob at the same draws, cut off from their path. For a transformed
    distribution that means to invert the transform, which an inverse autoregressive flow does one dimension after
    the other. In a hierarchy the guide's path through the sites above is kept.

    Geoffrey Roeder, Yuhuai Wu, David Duvenaud: Sticking the Landing, 2017, arXiv:1703.09194.
    Raises `ValueError` for a latent site that isn't reparameterised.
    """

    def estimate(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        _check_reparameterised(guide_trace)
        return (_path_log_q(guide_trace, 1.0) - _log_prob(_samples(model_trace))) / self.num_particles


class DoublyReparameterized(Objective):
    """The importance-weighted bound with K = `num_particles` draws, and its doubly reparameterised gradient (DReG):

        theta: sum_k w~_k d log w_k / dtheta,
        phi:   sum_k w~_k^2 (d log w_k / dz_k) (dz_k / dphi),    w~_k = w_k / sum_j w_j.

    Both have the mean of `ImportanceWeighted`'s, and the guide's signal-to-noise ratio doesn't fall with K. With a
    KL weight, w_k = p(x|z) (p(z) / q(z|x))^beta, the factor is w~_k (1 - beta + beta w~_k) instead of w~_k^2, for
    latent sites of one scale. One draw gives the gradient of `StickingTheLanding`, with its demands on the guide.

    George Tucker, Dieterich Lawson, Shixiang Gu, Chris J. Maddison: Doubly Reparameterized Gradient Estimators for
    Monte Carlo Objectives, 2018, arXiv:1810.04152. Raises `ValueError` as `ImportanceWeighted` does.
    """

    def __init__(self, num_particles: int = 5):
        super().__init__(num_particles)

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        with _Alias():
            return super()._get_trace(model, guide, args, kwargs)

    def estimate(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        _check_reparameterised(guide_trace)
        log_w, scale = _log_weights(model_trace, guide_trace, self.max_plate_nesting), _data_scale(model_trace)
        latents = sample_sites(model_trace, observed=False).values()
        w, beta = log_w.detach().softmax(0), next((p["scale"] / scale for p in latents), 1.0)
        factor = 1 - beta + beta * w
        for p in latents:
            _scale_gradient(p, factor)
        surrogate = _path_log_q(guide_trace, w * factor)
        for p in _samples(model_trace):
            surrogate = surrogate - (w * p["log_prob"]).sum()
        return _with_gradient_of(surrogate, -(scale * _log_mean_exp(log_w)).sum())


class _Alias(Messenger):
    """Hands the model an alias of each of the guide's draws, so that gradients which come to a draw from the model
    are told from those that come from the guide's own sites below it."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] and not msg["is_observed"]:  # replayed
            msg["value"] = msg["value"].view_as(msg["value"])


def _scale_gradient(site: dict, factor: Tensor) -> None:
    """Whatever gradient reaches the site's value is multiplied by the factor, shape (particles, data)."""
    shape, z = site["log_prob"].shape, site["value"]
    if z.requires_grad:
        factor = factor.reshape(shape + (1,) * (z.dim() - len(shape)))
        z.register_hook(lambda gradient: factor * gradient)


def _path_log_q(guide_trace: Trace, weight: float | Tensor) -> Any:
    """sum weight log q(z), whose gradient is that of the path z(phi) alone, the densities' parameters fixed."""
    log_q: Any = 0.0
    score: Any = 0.0
    latents = [*sample_sites(guide_trace, observed=False).values()]
    for site in latents:
        log_q = log_q + (weight * site["log_prob"]).sum()
        try:
            log_prob = site["fn"].log_prob(site["value"].detach())
        except (KeyError, NotImplementedError):  # as Pyro's transforms raise
            raise ValueError(
                f"site {site['name']!r}: {SCORES_ITS_OWN} (Elbo takes it, and ImportanceWeighted)"
            ) from None
        score = score + (weight * scale_and_mask(log_prob, site["scale"], site["mask"])).sum()
    # In a hierarchy the parameters of q(z_1 | z_2) depend on the path of z_2. From the last site up, what reaches
    # each draw is taken off the score, until it is the derivative at fixed draws.
    for site in reversed(latents):
        z = site["value"]
        if z.requires_grad and score.requires_grad:
            (gradient,) = torch.autograd.grad(score, z, retain_graph=True, allow_unused=True)
            if gradient is not None:
                score = score - (gradient * z).sum()
    return log_q - (score - score.detach()) if latents else log_q


def _samples(trace: Trace) -> list[dict]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _log_prob(sites: Iterable[dict]) -> Any:
    return sum(site["log_prob_sum"] for site in sites)


def _with_gradient_of(surrogate: Tensor, value: Tensor) -> Tensor:
    return value.detach() + (surrogate - surrogate.detach())


def _log_mean_exp(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def _data_scale(model_trace: Trace) -> Any:
    """What weighs a datum: the scale of its (first) observed site, a number or a tensor that broadcasts to (data,)."""
    return next((site["scale"] for site in sample_sites(model_trace, observed=True).values()), 1.0)


def _log_weights(model_trace: Trace, guide_trace: Trace, num_dims: int) -> Tensor:
    """log w = log p(x, z) - log q(z|x), shape (particles, data), relative to the datum's scale."""
    p = sample_sites(model_trace, observed=False) | sample_sites(model_trace, observed=True)
    q = sample_sites(guide_trace, observed=False)
    shapes = (site["log_prob"].shape for site in (*p.values(), *q.values()))
    shape = torch.broadcast_shapes((1,) * num_dims, *shapes)[-num_dims:]
    for name, site in (*p.items(), *q.items()):
        check_per_datum(name, site, site["log_prob"].shape, shape)
    log_w = sum(site["log_prob"] for site in p.values()) - sum(site["log_prob"] for site in q.values())
    return (log_w / _data_scale(model_trace)).reshape(-1, shape[-1])


def _check_reparameterised(guide_trace: Trace) -> None:
    for name, site in sample_sites(guide_trace, observed=False).items():
        if not is_identically_zero(site["score_parts"].score_function):
            raise ValueError(f"site {name!r}: expected a reparameterised distribution; got {_family(site)}")


def _per_dimension(fn: Distribution) -> Distribution:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if fn.event_shape:
        raise NotImplementedError
    return fn


def _family(site: dict) -> str:
    return type(innermost(site["fn"])).__name__
