"""VAEs of data with labels: given the label, and with a label that is latent where nobody gives it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import embedding

from ppl_vae.likelihoods import Likelihood
from ppl_vae.models.pair import PyroPair, concatenate
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
from ppl_vae.programs import Program


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
        return self.likelihood(self.decoder(concatenate(z, self.one_hot(y))))

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
