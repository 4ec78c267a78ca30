"""From a batch of images to the arguments of model and guide: encoded, with noise for the guide, and labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from ppl_vae.data.encodings import Encoding
from ppl_vae.data.noise import Noise, NoNoise


@dataclass(frozen=True)
class Observe:
    """From 8-bit images, perhaps with their labels, to the arguments of model and guide: x, then the noisy image for
    the guide if there is noise, then the labels.

    x is sampled first, so that under one seed it is the same for models with and without noise.
    """

    encoding: Encoding
    noise: Noise

    def __call__(self, images: Tensor, *labels: Tensor, generator: Generator | None = None) -> tuple[Tensor, ...]:
        x = self.encoding(images, generator)
        noisy = () if isinstance(self.noise, NoNoise) else (self.noise(images / 255, generator),)
        return (x, *noisy, *labels)

    def frozen(self, images: Tensor, seed: int) -> tuple[Tensor, ...]:
        """Observed once under a seed: for validation and test data."""
        return self(images, generator=Generator(images.device).manual_seed(seed))

    def for_encoder(self, grey: Tensor) -> Tensor:
        """Images in [0, 1] as the encoder expects them: one that is trained on noisy images sees them as they are."""
        return grey * self.encoding.white if isinstance(self.noise, NoNoise) else grey


class Indexed(Observe):
    """The same for models whose prior leaves out each datum's own exemplar: x, what the guide sees, and the index of
    each datum, which is given beside the images in place of labels."""

    def __call__(self, images: Tensor, *index: Tensor, generator: Generator | None = None) -> tuple[Tensor, ...]:
        x, *noisy = super().__call__(images, generator=generator)
        return (x, *(noisy or [x]), *index)
