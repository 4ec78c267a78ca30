"""A ladder VAE: any number of layers of latent vectors along one path from the top down, which both programs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vae.likelihoods import Likelihood
from ppl_vae.models.pair import PyroPair, concatenate
from ppl_vae.posteriors import DiagonalNormal, Posterior
from ppl_vae.priors import Prior


class LadderLayer(nn.Module):
    """A layer below the top: h is the state of the path down to it, z' the latent above, d the features of x,

        h <- h + step([h, z']),    p(z|h) = N(conditional(h)),    q(z|h, d) = posterior(head([h, d])).

    Below the top there is no h yet, and h <- step(z').

    Arguments:
        step: (*, width + size of z') -> (*, width).
        conditional: (*, width) -> (*, 2 size), mean and log-variance of a diagonal normal.
        head: (*, width + features) -> (*, num_params of the posterior).
    """

    def __init__(self, step: nn.Module, conditional: nn.Module, head: nn.Module, posterior: Posterior):
        super().__init__()
        self.step, self.conditional, self.head, self.posterior = step, conditional, head, posterior
        self.normal = DiagonalNormal(posterior.latent_size)

    def forward(self, h: Tensor | None, z: Tensor) -> Tensor:
        """The state of this layer (*, width), of that of the layer above and of its latent (*, size of z')."""
        return self.step(z) if h is None else h + self.step(concatenate(h, z))

    def p(self, h: Tensor) -> TorchDistribution:
        return self.normal(self.conditional(h))

    def q(self, h: Tensor, d: Tensor) -> TorchDistribution:
        return self.posterior(self.head(concatenate(h, d)))


class Residual(nn.Module):
    """d + net(d)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, d: Tensor) -> Tensor:
        return d + self.net(d)


class LadderVAE(PyroPair):
    """L layers of latent variables, z_L at the top and z_1 at the bottom, both programs from the top down:

        p(x, z) = p(z_L) prod_{l<L} p(z_l|h_l) p(x|h_1, z_1),    q(z|x) = q(z_L|d_L) prod_{l<L} q(z_l|h_l, d_l),
        h_l = h_{l+1} + step_l([h_{l+1}, z_{l+1}]),              d_{l+1} = up_l(d_l),    d_1 = encoder(x).

    The state h_l has all that is above layer l. The guide shares it with the model and adds features d_l of x, from the
    bottom up. Along h the layers above reach x without passing through those below; both paths are residual. With one
    layer it is a `VAE`.

    Casper Kaae Sønderby, Tapani Raiko, Lars Maaløe, Søren Kaae Sønderby, Ole Winther: Ladder Variational Autoencoders,
    2016, arXiv:1602.02282 (there q(z_l) is a product of two normals, here any posterior). Residual, with skip paths:
    Rewon Child: Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images, 2020,
    arXiv:2011.10650.

    Arguments:
        encoder: x to features d_1, (*, *event) -> (*, features).
        ups: L - 1 networks on the features, from the bottom up.
        head: d_L to the parameters of q(z_L|x). A VampPrior takes encoder, ups and head in a row, and `posterior`.
        layers: those below the top, from the top down.
        decoder: [h_1, z_1] to the parameters of p(x|z): any decoder of latents (*, width + size of z_1).
        prior: p(z_L).
    """

    layers: Any  # of `LadderLayer`

    def __init__(
        self,
        encoder: nn.Module,
        ups: Sequence[nn.Module],
        head: nn.Module,
        layers: Sequence[LadderLayer],
        decoder: nn.Module,
        *,
        prior: Prior,
        likelihood: Likelihood,
        posterior: Posterior,
    ):
        super().__init__()
        if len(ups) != len(layers):
            raise ValueError(f"ups: expected one for each of {len(layers)} layers below the top; got {len(ups)}")
        self.encoder, self.ups, self.head = encoder, nn.ModuleList(ups), head
        self.layers, self.decoder = nn.ModuleList(layers), decoder
        self.prior, self.likelihood, self.posterior = prior, likelihood, posterior

    @property
    def num_layers(self) -> int:
        return len(self.layers) + 1

    def model(self, x: Tensor, given: Tensor | None = None, *index: Tensor) -> None:
        """p(x, z). It scores x, whatever the guide is given. With an exemplar prior, `index` says which training data
        they are."""
        pyro.module("ladder_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self._p_x(pyro.sample, (), *index).to_event(x.dim() - 1), obs=x)

    def guide(self, x: Tensor, given: Tensor | None = None, *index: Tensor) -> None:
        """q(z | given), where given is x if left out."""
        pyro.module("ladder_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            self._descend(pyro.sample, self.features(x if given is None else given), *index)

    def features(self, x: Tensor) -> list[Tensor]:
        """d_1, ..., d_L, each (*, features), of x (*, *event)."""
        d = [self.encoder(x)]
        for up in self.ups:
            d.append(up(d[-1]))
        return d

    def _descend(
        self, draw: Callable[[str, TorchDistribution], Tensor], d: Sequence[Tensor] = (), *index: Tensor
    ) -> Tensor:
        """[h_1, z_1], for z_l as `draw(name, distribution)` gives them, from the top down: of q(z_l|h_l, d_l) in as
        many layers as there are features, the last of which are the top's, and of p(z_l|h_l) below."""
        d, h = list(d), None
        top = self.posterior(self.head(d.pop())) if d else None
        if top is not None and index:
            self.prior.remember(index[0], top.mean)
        z = draw(f"z{self.num_layers}", self.prior(*index) if top is None else top)
        for number, layer in zip(range(self.num_layers - 1, 0, -1), self.layers, strict=True):
            h = layer(h, z)
            z = draw(f"z{number}", layer.q(h, d.pop()) if d else layer.p(h))
        return z if h is None else concatenate(h, z)

    def _p_x(
        self, draw: Callable[[str, TorchDistribution], Tensor], d: Sequence[Tensor] = (), *index: Tensor
    ) -> TorchDistribution:
        return self.likelihood(self.decoder(self._descend(draw, d, *index)))

    def encode(self, x: Tensor) -> TorchDistribution:
        """q(z_L|x), of the top layer, batch shape (data,) and event shape (size of z_L,), of x (data, *event)."""
        return self.posterior(self.head(self.features(x)[-1]))

    def decode(self, z: Tensor) -> Tensor:
        """E[x|z], shape (*, *event), of z_L (*, size of z_L), with all below it at the means of p(z_l|h_l)."""
        return self._p_x(lambda name, p: z if name == f"z{self.num_layers}" else p.mean).mean

    def reconstruct(self, x: Tensor, num_layers: int | None = None, *, sample: bool = False) -> Tensor:
        """E[x|z], shape (data, *event), of images (data, *event), with z_l in the top `num_layers` layers (all by
        default) at the mean of q(z_l|h_l, d_l), or a `sample` of it, and below at that of p(z_l|h_l): what each layer
        adds. Raises `ValueError` unless 1 <= num_layers <= L."""
        k = self.num_layers if num_layers is None else num_layers
        if not 1 <= k <= self.num_layers:
            raise ValueError(f"num_layers: expected 1 to {self.num_layers}; got {k}")
        first = self.num_layers - k + 1

        def draw(name: str, z: TorchDistribution) -> Tensor:
            return z.sample() if sample and int(name[1:]) >= first else z.mean

        return self._p_x(draw, self.features(x)[-k:]).mean

    def generate(self, num_samples: int) -> TorchDistribution:
        """p(x|z) for draws z ~ p(z), batch shape (num_samples, *event)."""
        size = torch.Size([num_samples])
        return self._p_x(lambda _, p: p.sample(size[len(p.batch_shape) :]))
