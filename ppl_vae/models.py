"""Models as Pyro pairs: a `model` p(x, z) and a `guide` q(z|x), side by side.

Every program takes the data x, shape (data, *event), then arguments batched with it, in a plate "data" at
dim -1. Particles may stand to the left of it. A network of several arguments sees them concatenated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import embedding

from ppl_vae.likelihoods import Likelihood
from ppl_vae.posteriors import DiagonalNormal, Posterior
from ppl_vae.priors import Prior
from ppl_vae.programs import seeded

Program = Callable[..., Any]


class PyroPair(nn.Module):
    """A model and a guide, which say what can be done with them.

    Class attributes: `has_log_p`, whether there is a p(x), and a prior to sample from; `labelled`, whether p(x|z) and
    q(z|x) depend on a label, so that z says the rest once the label is known; `needs_labels`, whether the programs take
    a label for each datum, always; `enumerates`, whether its objective is the ELBO with a class summed out.
    """

    has_log_p: ClassVar[bool] = True
    labelled: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    enumerates: ClassVar[bool] = False

    model: Program
    guide: Program
    encode: Callable[..., TorchDistribution]
    decode: Callable[..., Tensor]
    reconstruct: Callable[..., Tensor]
    generate: Callable[..., TorchDistribution]

    @property
    def num_classes(self) -> int:
        """Of the labels; 0 for a model without."""
        return 0

    @property
    def programs(self) -> tuple[Program, Program]:
        """Model and guide for log p(x)."""
        return self.model, self.guide

    def initialise(self, x: Tensor, *labels: Tensor) -> None:
        """Takes from training data what starts from them: pseudo-inputs, and units. x (data, *event) is what the
        encoder sees of some of them; labels are those of all."""
        for part in self.children():
            for module in part.modules():
                if callable(initialise := getattr(module, "initialise", None)):
                    initialise(x)


class Autoencoder(PyroPair):
    """A deterministic autoencoder, x' = g(f(x)), as a pair with no latent variable and an empty guide.

    The same SVI and `Trace_ELBO` train it, and its loss is the negative log-likelihood of its reconstruction,
    -log p(x | g(f(x))), in nats: under `Gaussian(scale)` the squared error over 2 scale^2, and a constant.
    It has no log p(x): x stands on both sides of the bar.
    """

    has_log_p = False

    def __init__(self, encoder: nn.Module, decoder: nn.Module, *, likelihood: Likelihood):
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood

    def model(self, x: Tensor, given: Tensor | None = None) -> None:
        """Scores x given the code of `given` (a noisy image, to learn denoising), which is x if left out."""
        pyro.module("autoencoder", self)
        with pyro.plate("data", len(x), dim=-1):
            params = self.decoder(self.encoder(x if given is None else given))
            pyro.sample("x", self.likelihood(params).to_event(x.dim() - 1), obs=x)

    def guide(self, x: Tensor, given: Tensor | None = None) -> None:
        """Empty: there is nothing to infer."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(. | g(f(x))), shape (data, *event), of images, noisy or not, (data, *event)."""
        return self.likelihood(self.decoder(self.encoder(x))).mean


class VAE(PyroPair):
    """A variational autoencoder from its four parts: networks, prior, likelihood and posterior.

        p(x, z) = p(z) p(x | decoder(z)),    q(z | x) = q(z | encoder(x)).

    Diederik P. Kingma, Max Welling: Auto-Encoding Variational Bayes, 2013, arXiv:1312.6114.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        prior: Prior,
        likelihood: Likelihood,
        posterior: Posterior,
    ):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.prior, self.likelihood, self.posterior = prior, likelihood, posterior

    def model(self, x: Tensor, given: Tensor | None = None, *index: Tensor) -> None:
        """p(x, z). It scores x, whatever the guide is given. With an exemplar prior, `index` says which training data
        they are."""
        pyro.module("vae", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior(*index))
            pyro.sample("x", self.likelihood(self.decoder(z)).to_event(x.dim() - 1), obs=x)

    def guide(self, x: Tensor, given: Tensor | None = None, *index: Tensor) -> None:
        """q(z | given), where given is x if left out, or for example a noisy version of it."""
        pyro.module("vae", self)
        with pyro.plate("data", len(x), dim=-1):
            q_z = self.encode(x if given is None else given)
            if index:
                self.prior.remember(index[0], q_z.mean)
            pyro.sample("z", q_z)

    def encode(self, x: Tensor) -> TorchDistribution:
        """q(z|x), batch shape (data,) and event shape (latent,), of x (data, *event)."""
        return self.posterior(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """E[x|z], shape (*, *event), of latents z (*, latent)."""
        return self.likelihood(self.decoder(z)).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z = E_q[z|x]], shape (data, *event), of images, noisy or not, (data, *event)."""
        return self.decode(self.encode(x).mean)

    def generate(self, num_samples: int) -> TorchDistribution:
        """p(x|z) for draws z ~ p(z), batch shape (num_samples, *event): its `mean` to look at, `sample()` for data."""
        return self.likelihood(self.decoder(self.prior().sample((num_samples,))))


class JointEncoder(nn.Module):
    """head([features(x), c]), of a datum x (*, *event) and a vector c (*, C), as the parameters of a distribution.

    `features` is any encoder, to (*, num_features), and `head` any network on vectors, from (*, num_features + C).
    """

    def __init__(self, features: nn.Module, head: nn.Module):
        super().__init__()
        self.features, self.head = features, head

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.head(_concatenate(self.features(x), c))


def _concatenate(a: Tensor, b: Tensor) -> Tensor:
    """Vectors (*, A) and (*, B) to (*, A + B), where the leading dimensions broadcast."""
    batch = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return torch.cat([a.expand(*batch, -1), b.expand(*batch, -1)], -1)


class HierarchicalVAE(PyroPair):
    """Two layers of latent variables, both programs from the top down:

        p(x, z1, z2) = p(z2) p(z1|z2) p(x|z1, z2),    q(z1, z2 | x) = q(z2|x) q(z1|x, z2).

    Jakub M. Tomczak, Max Welling: VAE with a VampPrior, 2017, arXiv:1705.07120, section 4.

    Arguments:
        encoder2: x to the parameters of q(z2|x); a VampPrior on z2 takes it and `posterior2`.
        encoder1: (x, z2) to the parameters of q(z1|x, z2), for example a `JointEncoder`.
        decoder2: z2 to mean and log-variance of p(z1|z2), a diagonal normal: (*, latent2) -> (*, 2 latent1).
        decoder1: [z1, z2] to the parameters of p(x|z1, z2): any decoder of latents (*, latent1 + latent2).
        prior: p(z2).
    """

    def __init__(
        self,
        encoder2: nn.Module,
        encoder1: nn.Module,
        decoder2: nn.Module,
        decoder1: nn.Module,
        *,
        prior: Prior,
        likelihood: Likelihood,
        posterior2: Posterior,
        posterior1: Posterior,
    ):
        super().__init__()
        self.encoder2, self.encoder1, self.decoder2, self.decoder1 = encoder2, encoder1, decoder2, decoder1
        self.prior, self.likelihood = prior, likelihood
        self.posterior2, self.posterior1 = posterior2, posterior1
        self.conditional = DiagonalNormal(posterior1.latent_size)

    def model(self, x: Tensor, given: Tensor | None = None, *index: Tensor) -> None:
        """p(x, z1, z2). It scores x, whatever the guide is given."""
        pyro.module("hierarchical_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", self.prior(*index))
            z1 = pyro.sample("z1", self.conditional(self.decoder2(z2)))
            pyro.sample("x", self._p_x(z1, z2).to_event(x.dim() - 1), obs=x)

    def guide(self, x: Tensor, given: Tensor | None = None, *index: Tensor) -> None:
        """q(z1, z2 | given), where given is x if left out."""
        pyro.module("hierarchical_vae", self)
        given = x if given is None else given
        with pyro.plate("data", len(x), dim=-1):
            q_z2 = self.encode(given)
            if index:
                self.prior.remember(index[0], q_z2.mean)
            z2 = pyro.sample("z2", q_z2)
            pyro.sample("z1", self.posterior1(self.encoder1(given, z2)))

    def encode(self, x: Tensor) -> TorchDistribution:
        """q(z2|x), of the top layer, batch shape (data,) and event shape (latent2,), of x (data, *event)."""
        return self.posterior2(self.encoder2(x))

    def decode(self, z2: Tensor, z1: Tensor | None = None) -> Tensor:
        """E[x|z1, z2], shape (*, *event), of latents (*, latent2) and (*, latent1): E[z1|z2] if z1 is left out."""
        return self._p_x(self.conditional(self.decoder2(z2)).mean if z1 is None else z1, z2).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z1, z2] at z2 = E_q[z2|x] and z1 = E_q[z1|x, z2], shape (data, *event), of images (data, *event)."""
        z2 = self.encode(x).mean
        return self.decode(z2, self.posterior1(self.encoder1(x, z2)).mean)

    def generate(self, num_samples: int) -> TorchDistribution:
        """p(x|z1, z2) for draws z2 ~ p(z2), z1 ~ p(z1|z2), batch shape (num_samples, *event)."""
        z2 = self.prior().sample((num_samples,))
        return self._p_x(self.conditional(self.decoder2(z2)).sample(), z2)

    def _p_x(self, z1: Tensor, z2: Tensor) -> TorchDistribution:
        return self.likelihood(self.decoder1(_concatenate(z1, z2)))


class ConditionalVAE(PyroPair):
    """A VAE of x given its label y in 0..num_classes - 1, which the networks see as one of num_classes unit vectors, or
    given any vector y of num_classes numbers:

        p(x, z | y) = p(z) p(x | decoder([z, y])),    q(z | x, y) = q(z | encoder(x, y)).

    Its log p(x) is log p(x|y). Kihyuk Sohn, Honglak Lee, Xinchen Yan: Learning Structured Output Representation using
    Deep Conditional Generative Models, NeurIPS 2015; p(z) does not depend on y, as in Diederik P. Kingma, Danilo J.
    Rezende, Shakir Mohamed, Max Welling: Semi-Supervised Learning with Deep Generative Models, 2014, arXiv:1406.5298.

    `encoder` takes x (*, *event) and unit vectors (*, num_classes), for example a `JointEncoder`; `decoder` is any
    decoder of latents (*, latent + num_classes). Labels are integers (*), and vectors floats (*, num_classes); others
    raise `ValueError`.
    """

    labelled = needs_labels = True
    unit_vectors: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        num_classes: int,
        prior: Prior,
        likelihood: Likelihood,
        posterior: Posterior,
    ):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1; got {num_classes}")
        self.encoder, self.decoder = encoder, decoder
        self.prior, self.likelihood, self.posterior = prior, likelihood, posterior
        self.register_buffer("unit_vectors", torch.eye(num_classes), persistent=False)

    @property
    def num_classes(self) -> int:
        return len(self.unit_vectors)

    def model(self, x: Tensor, y: Tensor) -> None:
        """p(x, z | y)."""
        self._check_one_each(x, y)
        pyro.module("conditional_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.p_x(z, y).to_event(x.dim() - 1), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """q(z | x, y)."""
        self._check_one_each(x, y)
        pyro.module("conditional_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x, y))

    def _check_one_each(self, x: Tensor, y: Tensor) -> None:
        if y.shape != (x.shape[:1] if self._are_labels(y) else (len(x), self.num_classes)):
            raise _unexpected(y, self.num_classes)

    def _are_labels(self, y: Tensor) -> bool:
        """... or vectors. Raises `ValueError` for what is neither."""
        is_vectors = y.is_floating_point() and y.shape[-1:] == (self.num_classes,)
        if (y.is_floating_point() and not is_vectors) or y.dtype == torch.bool:
            raise _unexpected(y, self.num_classes)
        return not is_vectors

    def one_hot(self, y: Tensor) -> Tensor:
        """Unit vectors (*, num_classes) of labels (*); vectors (*, num_classes) are what they are."""
        if not self._are_labels(y):
            return y
        try:
            return embedding(y.long(), self.unit_vectors)
        except IndexError:
            got = f"{y.min().item()} to {y.max().item()}"
            raise ValueError(f"y: expected labels 0 to {self.num_classes - 1}; got {got}") from None

    def p_x(self, z: Tensor, y: Tensor) -> TorchDistribution:
        """p(x|z, y), batch shape (*, *event), of latents (*, latent) and labels (*)."""
        return self.likelihood(self.decoder(_concatenate(z, self.one_hot(y))))

    def encode(self, x: Tensor, y: Tensor) -> TorchDistribution:
        """q(z|x, y), batch shape (data,) and event shape (latent,), of x (data, *event) and labels (data,)."""
        return self.posterior(self.encoder(x, self.one_hot(y)))

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """E[x|z, y], shape (*, *event), of latents (*, latent) and labels (*)."""
        return self.p_x(z, y).mean

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """E[x | z = E_q[z|x, y], y], shape (data, *event), of images (data, *event) and labels (data,)."""
        self._check_one_each(x, y)
        return self.decode(self.encode(x, y).mean, y)

    def generate(self, y: Tensor | int) -> TorchDistribution:
        """p(x|z, y) for a sample z ~ p(z) for each label (*), or vector (*, num_classes), batch shape (*, *event); for
        a number of samples in place of labels, of each class in turn."""
        if isinstance(y, int):
            y = torch.arange(y, device=self.unit_vectors.device) % self.num_classes
        return self.p_x(self.prior().sample(y.shape[:-1] if y.is_floating_point() else y.shape), y)


def _unexpected(y: Tensor, num_classes: int = 0) -> ValueError:
    vectors = f", or floats (data, {num_classes})" * bool(num_classes)
    got = f"{y.dtype} {tuple(y.shape)} (labels: y.long().flatten())"
    return ValueError(f"y: expected integer labels (data,){vectors}; got {got}")


class SemiSupervisedVAE(PyroPair):
    """M2: a conditional VAE whose labels are latent where nobody gives them,

        p(x, y, z) = p(y) p(z) p(x|z, y),    q(y, z | x) = q(y | classifier(x)) q(z | x, y).

    Diederik P. Kingma, Danilo J. Rezende, Shakir Mohamed, Max Welling: Semi-Supervised Learning with Deep Generative
    Models, 2014, arXiv:1406.5298.

    Labels y are 0..num_classes - 1, or -1 where there is none, as in scikit-learn; without y nothing is labelled. A
    label is what the guide knows of y: q(y|x) is 1 at the label, so that the ELBO is the paper's -L(x, y), a bound on
    log p(x, y), for a labelled datum, and -U(x), a bound on log p(x), for another. Both programs keep their sites.

        fit(m2.model, m2.guide, x, y, elbo=TraceEnum_ELBO(max_plate_nesting=1))

    sums the class out of the ELBO, by Pyro's enumeration, which is not compiled; with another objective classes are
    drawn, and their gradient is of high variance. In training mode `alpha` log q(y|x) is added for each labelled datum,
    by a factor "classification" of the model, and never in evaluation. (The paper's alpha, 0.1 N, weighs their mean.)

    `log_likelihood(m2.model, m2.guide, x)` draws classes from q(y|x). With `marginal_model` and `marginal_guide`, the
    same p(x) and q(z|x) with the class summed out of both, weights vary less, for num_classes times the work.

    Arguments:
        conditional: p(x, z|y) and q(z|x, y).
        classifier: x (*, *event) to the logits (*, num_classes) of q(y|x).
        class_probs: p(y), shape (num_classes,), above 0; equal ones by default.
    """

    labelled = enumerates = True
    class_logits: Tensor

    def __init__(
        self,
        conditional: ConditionalVAE,
        classifier: nn.Module,
        *,
        alpha: float = 1.0,
        class_probs: Tensor | None = None,
    ):
        super().__init__()
        self.conditional, self.classifier, self.alpha = conditional, classifier, alpha
        probs = torch.ones(conditional.num_classes) if class_probs is None else class_probs
        if probs.shape != (conditional.num_classes,) or not bool((probs > 0).all()):
            raise ValueError(f"class_probs: expected {conditional.num_classes} numbers above 0; got {probs.tolist()}")
        if not alpha >= 0:
            raise ValueError(f"alpha: expected a number of at least 0; got {alpha}")
        self.register_buffer("class_logits", (probs / probs.sum()).log())

    @property
    def programs(self) -> tuple[Program, Program]:
        """Those with the class summed out of both."""
        return self.marginal_model, self.marginal_guide

    def initialise(self, x: Tensor, *labels: Tensor) -> None:
        """The paper's alpha, 0.1 N, weighs the mean over the labelled data, and this one their sum."""
        super().initialise(x)
        (y,) = labels
        self.alpha = 0.1 * len(y) / int((y >= 0).sum())

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """p(x, y, z), and in training mode alpha log q(y|x) of the labels."""
        self._check_labels(x, y)
        pyro.module("semi_supervised_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            if y is not None and self.training and self.alpha:
                log_q = self.predict(x).log_prob(y.clamp(min=0))
                pyro.factor("classification", self.alpha * log_q * (y >= 0))
            y = pyro.sample("y", dist.Categorical(logits=self.class_logits))
            z = pyro.sample("z", self.conditional.prior())
            pyro.sample("x", self.conditional.p_x(z, y).to_event(x.dim() - 1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """q(y|x) q(z|x, y), with q(y|x) = 1 at the labels that are given."""
        self._check_labels(x, y)
        pyro.module("semi_supervised_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            q_y = self.predict(x)
            if y is not None:
                known = self.conditional.one_hot(y.clamp(min=0)).log()
                q_y = dist.Categorical(logits=torch.where(y[:, None] >= 0, known, q_y.logits))
            y = pyro.sample("y", q_y, infer={"enumerate": "parallel"})
            pyro.sample("z", self.conditional.encode(x, y))

    def _check_labels(self, x: Tensor, y: Tensor | None) -> None:
        if y is not None and (y.shape != x.shape[:1] or y.is_floating_point() or y.dtype == torch.bool):
            raise _unexpected(y)

    def marginal_model(self, x: Tensor) -> None:
        """p(x, z) = p(z) sum_y p(y) p(x|z, y)."""
        pyro.module("semi_supervised_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.conditional.prior())
            p_x = self.conditional.p_x(z[..., None, :], self._classes).to_event(x.dim() - 1)
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(logits=self.class_logits), p_x), obs=x)

    def marginal_guide(self, x: Tensor) -> None:
        """q(z|x) = sum_y q(y|x) q(z|x, y)."""
        pyro.module("semi_supervised_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            q_z = self.conditional.encode(x[:, None], self._classes)
            pyro.sample("z", dist.MixtureSameFamily(self.predict(x), q_z))

    def predict(self, x: Tensor) -> TorchDistribution:
        """q(y|x), a categorical distribution of batch shape (data,), of x (data, *event)."""
        return dist.Categorical(logits=self.classifier(x))

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """q(z|x, y), batch shape (data,), of x (data, *event) and labels (data,), the likeliest if left out."""
        return self.conditional.encode(x, self.predict(x).logits.argmax(-1) if y is None else y)

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """E[x|z, y], shape (*, *event), of latents (*, latent) and labels (*)."""
        return self.conditional.decode(z, y)

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """E[x | z = E_q[z|x, y], y], shape (data, *event), under labels (data,), the likeliest if left out."""
        return self.conditional.reconstruct(x, self.predict(x).logits.argmax(-1) if y is None else y)

    def generate(self, num_samples: int) -> TorchDistribution:
        """p(x|z, y) for draws y ~ p(y), z ~ p(z), batch shape (num_samples, *event)."""
        return self.conditional.generate(dist.Categorical(logits=self.class_logits).sample((num_samples,)))

    @property
    def _classes(self) -> Tensor:
        return torch.arange(self.conditional.num_classes, device=self.class_logits.device)


class PPCA(PyroPair):
    """Probabilistic principal component analysis: a linear VAE with the exact posterior, and log p(x) in closed form,

        z ~ N(0, I),    x = W z + mean + scale e,    e ~ N(0, I),
        q(z|x) = p(z|x) = N(M^-1 W^T (x - mean), scale^2 M^-1),    M = W^T W + scale^2 I.

    Michael E. Tipping, Christopher M. Bishop: Probabilistic Principal Component Analysis, Journal of the Royal
    Statistical Society B 61(3), 1999, doi:10.1111/1467-9868.00196.

    Parameters W (D, latent), mean (D,) and log_scale () for data (data, *event) of D dimensions; `fit` trains them as
    any pair's, and `maximum_likelihood` finds them at once. Raises `ValueError` unless 1 <= latent_size.
    """

    zeros: Tensor

    def __init__(self, event_shape: tuple[int, ...], latent_size: int):
        super().__init__()
        if latent_size < 1:
            raise ValueError(f"latent_size: expected at least 1; got {latent_size}")
        D = math.prod(event_shape)
        self.event_shape = tuple(event_shape)
        self.W = nn.Parameter(torch.empty(D, latent_size))
        with torch.no_grad():
            self.W.normal_().div_(math.sqrt(D))
        self.mean = nn.Parameter(torch.zeros(D))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("zeros", torch.zeros(latent_size), persistent=False)

    @classmethod
    @torch.no_grad()
    def maximum_likelihood(cls, x: Tensor, latent_size: int) -> PPCA:
        """The PPCA of highest likelihood for data x (data, *event), of their covariance S = U diag(l) U^T:

            scale^2 = mean of the D - L smallest l,    W = U_L (diag(l_L) - scale^2 I)^(1/2),    L = latent_size.

        Raises `ValueError` unless 1 <= latent_size < D, and for data that L dimensions hold without noise.
        """
        with seeded(0):  # the weights that are drawn here don't stay
            ppca = cls(tuple(x.shape[1:]), latent_size).to(x)
        D, L = ppca.W.shape
        if L >= D:
            raise ValueError(f"latent_size: expected less than the {D} dimensions of x; got {L}")
        flat = x.flatten(1).double()
        mean = flat.mean(0)
        S = (flat - mean).T @ (flat - mean) / len(flat)
        eigenvalues, U = torch.linalg.eigh(S)  # in ascending order
        variance = eigenvalues[: D - L].mean()
        if not variance > 1e-12 * eigenvalues[-1]:
            raise ValueError(f"x: expected data that spread over more than {L} dimensions; got none beyond")
        ppca.W.copy_(U[:, D - L :] * (eigenvalues[D - L :] - variance).clamp(min=0).sqrt())  # equal but for rounding
        ppca.mean.copy_(mean)
        ppca.log_scale.copy_(0.5 * variance.log())
        return ppca

    def initialise(self, x: Tensor, *labels: Tensor) -> None:
        """The maximum-likelihood solution, where there is one."""
        latent_size = len(self.zeros)
        if latent_size < min(math.prod(x.shape[1:]), len(x)):
            self.load_state_dict(self.maximum_likelihood(x, latent_size).state_dict())

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        pyro.module("ppca", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.zeros, 1.0).to_event(1))
            pyro.sample("x", self._p_x(z).to_event(x.dim() - 1), obs=x)

    def guide(self, x: Tensor) -> None:
        """p(z|x)."""
        pyro.module("ppca", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x))

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), exactly, in nats and in double precision, shape (*), of x (*, *event): N(mean, C), C = W W^T +
        scale^2 I, by the matrix determinant lemma and the matrix inversion lemma, which torch's distribution uses,

            log |C| = log |M| + (D - L) log scale^2,    C^-1 = (I - W M^-1 W^T) / scale^2.
        """
        W, mean, variance = self.W.double(), self.mean.double(), (2 * self.log_scale.double()).exp()
        p = dist.LowRankMultivariateNormal(mean, W, variance.expand(len(mean)))
        return p.log_prob(x.double().flatten(-len(self.event_shape)))

    def encode(self, x: Tensor) -> TorchDistribution:
        """p(z|x), batch shape (data,) and event shape (latent,), of x (data, *event)."""
        variance = (2 * self.log_scale).exp()
        M = self.W.T @ self.W + variance * torch.eye(len(self.zeros)).to(self.W)
        L = torch.linalg.cholesky(M)
        mean = torch.cholesky_solve(self.W.T @ (x.flatten(1) - self.mean).T, L).T
        precision = (M + M.mT) / (2 * variance)  # W^T W is symmetric but for rounding
        return dist.MultivariateNormal(mean, precision_matrix=precision)

    def decode(self, z: Tensor) -> Tensor:
        """E[x|z], shape (*, *event), of latents z (*, latent)."""
        return self._p_x(z).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z = E[z|x]], shape (data, *event), of x (data, *event)."""
        return self.decode(self.encode(x).mean)

    def generate(self, num_samples: int) -> TorchDistribution:
        """p(x|z) for draws z ~ N(0, I), batch shape (num_samples, *event)."""
        return self._p_x(torch.randn(num_samples, *self.zeros.shape).to(self.W))

    def _p_x(self, z: Tensor) -> TorchDistribution:
        loc = z @ self.W.T + self.mean
        return dist.Normal(loc.unflatten(-1, self.event_shape), self.log_scale.exp())

    def extra_repr(self) -> str:
        return f"event_shape={self.event_shape}, latent_size={len(self.zeros)}"
