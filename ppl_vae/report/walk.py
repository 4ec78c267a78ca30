"""A latent space of more than two dimensions to move through: a walk between the latents of two test images, and each
of the most active latents moved alone.

A small dense decoder is in the page itself, so that all of these can be combined; what others decode is computed
beforehand, for one move at a time.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ppl_vae.experiments.runs import Run
from ppl_vae.report.embedding import address

NUM_IMAGES = 6
NUM_LATENTS = 4
STEPS = 9
"""From one image to the other."""
OFFSETS = [0.5 * i for i in range(-6, 7)]
"""Of a latent, in standard deviations of it over test images."""
MOST_WEIGHTS = 500_000
ACTIVATIONS = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.GLU: "glu"}


@dataclass(frozen=True)
class Walk:
    """What the page needs: `thumbs` and `tiles` are addresses of images, the rest goes to its script as JSON.

    `tiles` has a row for each image and other image, with `STEPS` columns, below them a row for each image and latent,
    with a column for each of `OFFSETS`; "" where the page has the `decoder`.
    """

    thumbs: str
    tiles: str
    z: list[list[float]]
    latents: list[int]
    scale: list[float]
    shape: list[int]
    decoder: dict[str, Any] | None

    @property
    def data(self) -> dict[str, Any]:
        names = ("z", "latents", "scale", "shape", "decoder")
        return {name: getattr(self, name) for name in names} | {"steps": STEPS, "offsets": OFFSETS}


def walk(run: Run) -> Walk:
    """Of a run on images of 1 or 3 channels: between its first test images."""
    z = run.encode(run.dataset.test[:1000])
    scale, latents = z.std(0).topk(min(NUM_LATENTS, z.shape[-1]))
    z = z[:NUM_IMAGES]
    decoder = decoder_of(run, z)
    moves = scale * nn.functional.one_hot(latents, z.shape[-1]).T  # (latent, latents)
    return Walk(
        sprite(run.decode(z)[:, None]),
        "" if decoder else _tiles(run, z, moves),
        [[round(v, 4) for v in row] for row in z.tolist()],
        latents.tolist(),
        [round(v, 4) for v in scale.tolist()],
        list(run.event_shape),
        decoder,
    )


def _tiles(run: Run, z: Tensor, moves: Tensor) -> str:
    share = torch.linspace(0, 1, STEPS)[:, None]
    between = z[:, None, None] * (1 - share) + z[:, None] * share  # (from, to, step, latent)
    beside = z[:, None, None] + torch.tensor(OFFSETS)[:, None] * moves.T[:, None]  # (image, latents, offset, latent)
    walked, moved = (run.decode(latents.flatten(0, 1)) for latents in (between, beside))
    return sprite(torch.cat([nn.functional.pad(walked, (0, 0) * 3 + (0, len(OFFSETS) - STEPS)), moved]))


def sprite(images: Tensor) -> str:
    """One image of images in [0, 1], (rows, columns, C, H, W), of 1 or 3 channels."""
    levels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    one = levels.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return address(Image.fromarray(one.squeeze(-1).numpy()))


def decoder_of(run: Run, z: Tensor) -> dict[str, Any] | None:
    """The layers of a dense decoder whose last gives E[x|z] at the latents z as the run does, to half a level of 255:
    as it stands, or by a sigmoid; its weights in bfloat16. None for another, and for one of over `MOST_WEIGHTS`."""
    net = getattr(getattr(run.model, "decoder", None), "net", None)
    if not isinstance(net, nn.Sequential) or sum(p.numel() for p in net.parameters()) > MOST_WEIGHTS:
        return None
    linear = [part for part in net[::2] if type(part) is nn.Linear]
    between = [ACTIVATIONS[type(part)] for part in net[1::2] if type(part) in ACTIVATIONS]
    if len(linear) + len(between) < len(net) or linear[0].in_features != z.shape[-1]:
        return None
    expected = run.decode(z).clamp(0, 1)
    with torch.no_grad():
        outputs = net(z.to(run.device)).cpu()
    for end, mean in ("", outputs), ("sigmoid", outputs.sigmoid()):
        if mean.numel() == expected.numel() and (mean.clamp(0, 1) - expected.flatten(1)).abs().max() < 0.5 / 255:
            return {"layers": [_layer(part, end) for part, end in zip(linear, [*between, end], strict=True)]}
    return None


def _layer(linear: nn.Linear, activation: str) -> dict[str, Any]:
    return {"weight": _base64(linear.weight), "bias": _base64(linear.bias), "activation": activation}


def _base64(t: Tensor) -> str:
    return base64.b64encode(
        t.detach().cpu().to(torch.bfloat16).view(torch.int16).numpy().astype("<i2").tobytes()
    ).decode()
