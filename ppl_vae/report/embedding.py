"""Images as addresses, `data:image/webp;base64,...`: a page that holds its images needs no other file."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

ALT = {
    "training": "Loss, ELBO, reconstruction and KL by epoch",
    "reconstructions": "Test images above their reconstructions",
    "samples": "Images decoded from samples of the prior",
    "interpolations": "Images decoded between the latents of two test images, a row a pair",
    "latent-grid": "Images decoded on a grid over the two latent dimensions",
    "latent-codes": "Latents of test images in the two latent dimensions, coloured by label",
    "denoising": "Original images, noisy images, and what each model makes of them",
    "denoising-quality": "Squared error, PSNR and SSIM of each model, with their standard errors",
    "log-likelihood-mass": "log p(x) of each model of binarised images, with its errors",
    "log-likelihood-density": "log p(x) of each model of dequantised images, with its errors",
    "imputation": "Test images, what is seen of them, and samples of the missing pixels",
    "trust": "log p(x) against the number of importance samples, by model, with annealed estimates",
}


@dataclass(frozen=True)
class Figure:
    """A figure on a page: its address, and what it shows in words."""

    address: str
    alt: str


def figure(path: Path, alt: str = "") -> Figure:
    """The figure of a PNG file. Raises `ValueError` for another file."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return Figure(address(image), alt or ALT.get(path.stem, path.stem.replace("-", " ")))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: expected a PNG image; got {error}") from None


def address(image: Image.Image) -> str:
    """The image itself as an address, without loss, at two thirds of the size of a PNG."""
    data = io.BytesIO()
    image.save(data, "WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
