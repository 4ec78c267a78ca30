"""Encoders and decoders: plain networks between data, codes and the parameters of distributions.

Every network takes any leading (particle and batch) dimensions `*`. An encoder maps a datum `(*, *event)` to
`(*, num_outputs)`, or for `PoolEncoder` to a code `(*, 8, h, w)`. A decoder maps a code to the parameters of a
likelihood, `(*, *event, params_per_dim)`: one group of parameters for each dimension of the datum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


class _Batched(nn.Module):
    """Applies `net` with the leading dimensions flattened to one, so that convolutions see (batch, C, H, W)."""

    def __init__(self, net: nn.Module, in_shape: Shape, out_shape: Shape):
        super().__init__()
        self.net, self.in_shape, self.out_shape = net, tuple(in_shape), tuple(out_shape)
        layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
        for layer in layers:
            # torch's own initialisation shrinks the signal at each ReLU, and eight layers of it learn slowly.
            # Kaiming He et al.: Delving Deep into Rectifiers, 2015, arXiv:1502.01852.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if layer is layers[-1] else "relu")
            nn.init.constant_(layer.get_parameter("bias"), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        batch, event = x.shape[: x.dim() - len(self.in_shape)], x.shape[x.dim() - len(self.in_shape) :]
        if event != self.in_shape:
            raise ValueError(
                f"{type(self).__name__}: expected a tensor of shape (*, {', '.join(map(str, self.in_shape))}); "
                f"got {tuple(x.shape)}"
            )
        return self._arrange(self.net(x.reshape(-1, *event))).reshape(*batch, *self.out_shape)

    def _arrange(self, y: Tensor) -> Tensor:
        """From the network's own layout (batch, ...) to one that reshapes to (*, *out_shape)."""
        return y


class _ChannelsLast(nn.Module):
    """The same images with the channels last in memory: convolutions train 1.5 times faster on a CPU this way.

    Their weights stay as they are, since Pyro's param store copies a parameter that is not contiguous, and would
    train the copy.
    """

    def forward(self, x: Tensor) -> Tensor:
        # clone and not contiguous(), for which one channel is already last
        return x.clone(memory_format=torch.channels_last)


class DenseEncoder(_Batched):
    """Fully connected: (*, *event_shape) -> (*, num_outputs), with ReLU after each hidden layer."""

    def __init__(self, event_shape: Shape, num_outputs: int, hidden: Sequence[int] = (400,)):
        layers = _dense([math.prod(event_shape), *hidden, num_outputs])
        super().__init__(nn.Sequential(nn.Flatten(), *layers), event_shape, (num_outputs,))


class DenseDecoder(_Batched):
    """Fully connected: (*, num_inputs) -> (*, *event_shape, params_per_dim)."""

    def __init__(self, num_inputs: int, event_shape: Shape, params_per_dim: int, hidden: Sequence[int] = (400,)):
        out_shape = (*event_shape, params_per_dim)
        layers = _dense([num_inputs, *hidden, math.prod(out_shape)])
        super().__init__(nn.Sequential(*layers), (num_inputs,), out_shape)


class _ImageDecoder(_Batched):
    """A decoder whose net ends in C * params_per_dim channels."""

    def __init__(self, net: nn.Module, in_shape: Shape, image_shape: Shape, params_per_dim: int):
        super().__init__(net, in_shape, (*image_shape, params_per_dim))

    def _arrange(self, y: Tensor) -> Tensor:
        channels, _, _, params_per_dim = self.out_shape
        return y.unflatten(1, (channels, params_per_dim)).movedim(2, -1)


class ConvEncoder(_Batched):
    """Convolutions with stride 2, then dense: (*, C, H, W) -> (*, num_outputs).

    As in the report: 32 and 64 channels, dense 16, then the outputs (mean and log-variance).
    """

    def __init__(self, image_shape: Shape, num_outputs: int, channels: Sequence[int] = (32, 64), hidden: int = 16):
        in_channels, *size = image_shape
        layers: list[nn.Module] = [_ChannelsLast()]
        for out_channels in channels:
            layers += [nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1), nn.ReLU()]
            in_channels, size = out_channels, [_half(s) for s in size]
        layers += [nn.Flatten(), *_dense([in_channels * math.prod(size), hidden]), nn.ReLU()]
        layers += [nn.Linear(hidden, num_outputs)]
        super().__init__(nn.Sequential(*layers), image_shape, (num_outputs,))


class ConvDecoder(_ImageDecoder):
    """Dense, then transposed convolutions with stride 2: (*, num_inputs) -> (*, C, H, W, params_per_dim).

    As in the report: dense 7x7x64 (for 28x28), transposed convolutions 64 and 32, one convolution to the image.
    """

    def __init__(
        self,
        num_inputs: int,
        image_shape: Shape,
        params_per_dim: int,
        channels: Sequence[int] = (64, 32),
    ):
        out_channels, *size = image_shape
        sizes = _halvings(size, len(channels))
        in_channels = channels[0]
        layers: list[nn.Module] = [
            nn.Linear(num_inputs, in_channels * math.prod(sizes[-1])),
            nn.ReLU(),
            nn.Unflatten(1, (in_channels, *sizes[-1])),
            _ChannelsLast(),
        ]
        for width, small, large in zip(channels, sizes[:0:-1], sizes[-2::-1], strict=True):
            # out = 2 * small - 1 + output_padding: 0 restores an odd size, 1 an even one
            padding = [b - (2 * a - 1) for a, b in zip(small, large, strict=True)]
            up = nn.ConvTranspose2d(in_channels, width, 3, stride=2, padding=1, output_padding=padding)  # type: ignore[arg-type]
            layers += [up, nn.ReLU()]
            in_channels = width
        layers += [nn.Conv2d(in_channels, out_channels * params_per_dim, 3, padding=1)]
        super().__init__(nn.Sequential(*layers), (num_inputs,), image_shape, params_per_dim)


class PoolEncoder(_Batched):
    """Four convolutions and three poolings: (*, C, H, W) -> (*, 8, ceil(H/8), ceil(W/8)).

    As in the report: (28, 28, 1) -> (4, 4, 8), there with the channels last.
    """

    def __init__(self, image_shape: Shape, channels: Sequence[int] = (16, 8, 8), code_channels: int = 8):
        in_channels, *size = image_shape
        layers: list[nn.Module] = [_ChannelsLast()]
        for width in channels:
            # ceil_mode keeps the last odd row, as "same" padding does: 28 -> 14 -> 7 -> 4
            layers += [
                nn.Conv2d(in_channels, width, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
            in_channels = width
        layers += [nn.Conv2d(in_channels, code_channels, 3, padding=1)]
        code_shape = (code_channels, *_halvings(size, len(channels))[-1])
        super().__init__(nn.Sequential(*layers), image_shape, code_shape)


class UpsampleDecoder(_ImageDecoder):
    """Five convolutions and three upsamplings: (*, 8, ceil(H/8), ceil(W/8)) -> (*, C, H, W, params_per_dim)."""

    def __init__(
        self,
        image_shape: Shape,
        params_per_dim: int,
        channels: Sequence[int] = (8, 8, 16),
        code_channels: int = 8,
    ):
        out_channels, *size = image_shape
        sizes = _halvings(size, len(channels))
        in_channels = code_channels
        layers: list[nn.Module] = [_ChannelsLast()]
        for width, large in zip(channels, sizes[-2::-1], strict=True):
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(), nn.Upsample(tuple(large))]
            in_channels = width
        layers += [nn.Conv2d(in_channels, in_channels, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(in_channels, out_channels * params_per_dim, 3, padding=1)]
        code_shape = (code_channels, *sizes[-1])
        super().__init__(nn.Sequential(*layers), code_shape, image_shape, params_per_dim)


def _dense(sizes: Sequence[int]) -> list[nn.Module]:
    """Linear layers of these sizes with ReLU between them, none after the last."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return layers[:-1]


def _half(size: int) -> int:
    return (size + 1) // 2


def _halvings(size: Sequence[int], times: int) -> list[list[int]]:
    """`size`, and what is left of it after each of `times` halvings that round up."""
    sizes = [list(size)]
    for _ in range(times):
        sizes.append([_half(s) for s in sizes[-1]])
    return sizes


class Divided(nn.Module):
    """x / divisor: levels 0..255 as the brightness in [0, 1] that encoders begin well with."""

    def __init__(self, divisor: float):
        super().__init__()
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        return x / self.divisor

    def extra_repr(self) -> str:
        return f"divisor={self.divisor:g}"
