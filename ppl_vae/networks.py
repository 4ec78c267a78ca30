"""Networks: encoders from data to the parameters of posteriors, and decoders from latents to those of likelihoods.

A `Network` builds encoders and decoders of one kind for any shape of data. These take any leading (particle and batch)
dimensions `*`. An encoder maps x, `(*, *event)`, to `(*, num_outputs)`, or for `PoolEncoder` to feature maps
`(*, 8, h, w)`. A decoder maps a latent to the parameters of a likelihood, `(*, *event, params_per_dim)`: one group of
parameters for each dimension of x.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ppl_vae.components import Component
from ppl_vae.distributions import standard_units

Shape = tuple[int, ...]


class Network(Component, ABC):
    """A kind of encoder and decoder, with its sizes. Subclass it to add one, with keyword arguments that have a type
    and a default (most simply as a frozen dataclass): they can be set by name, also on the command line.

    Name the widths of dense layers `hidden`. Raises `ValueError` for shapes that the network does not support.
    """

    @abstractmethod
    def encoder(self, event_shape: Shape, num_outputs: int) -> nn.Module:
        """(*, *event_shape) -> (*, num_outputs)."""

    @abstractmethod
    def decoder(self, num_inputs: int, event_shape: Shape, params_per_dim: int) -> nn.Module:
        """(*, num_inputs) -> (*, *event_shape, params_per_dim)."""

    def dense(self, num_inputs: int, num_outputs: int) -> nn.Module:
        """(*, num_inputs) -> (*, num_outputs), between vectors: latent variables, features, labels."""
        return DenseEncoder((num_inputs,), num_outputs, (300,))

    def autoencoder(self, event_shape: Shape, code_size: int, params_per_dim: int) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder of a deterministic autoencoder, whose latent need not be a vector."""
        return self.encoder(event_shape, code_size), self.decoder(code_size, event_shape, params_per_dim)


@dataclass(frozen=True)
class Dense(Network):
    """Fully connected, with these hidden widths in the encoder, and in reverse in the decoder."""

    hidden: tuple[int, ...] = (400,)
    activation: Literal["relu", "tanh"] = "relu"

    def __post_init__(self) -> None:
        _check_sizes("dense", hidden=self.hidden)

    def encoder(self, event_shape: Shape, num_outputs: int) -> nn.Module:
        return DenseEncoder(event_shape, num_outputs, self.hidden, _ACTIVATIONS[self.activation])

    def decoder(self, num_inputs: int, event_shape: Shape, params_per_dim: int) -> nn.Module:
        hidden = self.hidden[::-1]
        return DenseDecoder(num_inputs, event_shape, params_per_dim, hidden, _ACTIVATIONS[self.activation])

    def dense(self, num_inputs: int, num_outputs: int) -> nn.Module:
        return self.encoder((num_inputs,), num_outputs)


@dataclass(frozen=True)
class GatedDense(Network):
    """Fully connected, each hidden layer h = (A x + b) * sigmoid(C x + d).

    Jakub M. Tomczak, Max Welling: VAE with a VampPrior, 2017, arXiv:1705.07120, with two layers of 300.
    """

    hidden: tuple[int, ...] = (300, 300)

    def __post_init__(self) -> None:
        _check_sizes("gated-dense", hidden=self.hidden)

    def encoder(self, event_shape: Shape, num_outputs: int) -> nn.Module:
        return DenseEncoder(event_shape, num_outputs, self.hidden, nn.GLU)

    def decoder(self, num_inputs: int, event_shape: Shape, params_per_dim: int) -> nn.Module:
        return DenseDecoder(num_inputs, event_shape, params_per_dim, self.hidden[::-1], nn.GLU)

    def dense(self, num_inputs: int, num_outputs: int) -> nn.Module:
        return self.encoder((num_inputs,), num_outputs)


@dataclass(frozen=True)
class Conv(Network):
    """Convolutions with stride 2, then dense layers of these widths in the encoder; the report's own has one of 16. The
    autoencoder has none: its latent is 8 feature maps of 1/8 the resolution."""

    hidden: tuple[int, ...] = (256,)

    def __post_init__(self) -> None:
        _check_sizes("conv", hidden=self.hidden)

    def encoder(self, event_shape: Shape, num_outputs: int) -> nn.Module:
        return ConvEncoder(_image(event_shape), num_outputs, hidden=self.hidden)

    def decoder(self, num_inputs: int, event_shape: Shape, params_per_dim: int) -> nn.Module:
        return ConvDecoder(num_inputs, _image(event_shape), params_per_dim)

    def autoencoder(self, event_shape: Shape, code_size: int, params_per_dim: int) -> tuple[nn.Module, nn.Module]:
        return PoolEncoder(_image(event_shape)), UpsampleDecoder(event_shape, params_per_dim)


@dataclass(frozen=True)
class ResidualConv(Network):
    """Convolutions with stride 2, and at each resolution `num_blocks` residual blocks; in reverse in the decoder.

    Kaiming He et al.: Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385.
    """

    channels: tuple[int, ...] = (32, 64)
    num_blocks: int = 1

    def __post_init__(self) -> None:
        _check_sizes("residual-conv", channels=self.channels)
        if self.num_blocks < 0:
            raise ValueError(f"residual-conv: expected num_blocks >= 0; got {self.num_blocks}")

    def encoder(self, event_shape: Shape, num_outputs: int) -> nn.Module:
        return ConvEncoder(_image(event_shape), num_outputs, self.channels, (), self.num_blocks)

    def decoder(self, num_inputs: int, event_shape: Shape, params_per_dim: int) -> nn.Module:
        return ConvDecoder(num_inputs, _image(event_shape), params_per_dim, self.channels[::-1], self.num_blocks)


def _check_sizes(name: str, **values: tuple[int, ...]) -> None:
    for key, sizes in values.items():
        if not sizes or min(sizes) < 1:
            raise ValueError(f"{name}: {key}: expected sizes of at least 1; got {sizes}")


def _image(event_shape: Shape) -> Shape:
    if len(event_shape) != 3:
        raise ValueError(
            f"convolutional network: expected data of shape (C, H, W); got {tuple(event_shape)} (see dense)"
        )
    return event_shape


_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}

_GATED_GAIN = 1 / math.sqrt(0.293379)
"""1 / sqrt(E[sigmoid(c)^2]), c ~ N(0, 1): it undoes what a gate of unit variance takes from the signal."""


class _Batched(nn.Module):
    """Applies `net` with the leading dimensions flattened to one, so that convolutions see (batch, C, H, W)."""

    def __init__(self, net: nn.Module, in_shape: Shape, out_shape: Shape):
        super().__init__()
        self.net, self.in_shape, self.out_shape = net, tuple(in_shape), tuple(out_shape)
        parts = [m for m in net.modules() if not list(m.children())]
        for layer, following in itertools.zip_longest(parts, parts[1:]):
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                _initialise(layer, following)
        for block in (m for m in net.modules() if isinstance(m, _Residual)):
            block.begin_near_identity()

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


def _initialise(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, activation: nn.Module | None) -> None:
    """Initialises weights so that the layer and its activation preserve the variance of the signal.

    torch's own initialisation shrinks it at each ReLU, and eight such layers learn slowly. The gain of He et al. for
    ReLU is sqrt 2, since ReLU keeps half of E[x^2]. A gated unit keeps E[sigmoid(c)^2] = 0.29 of it where its gate c
    has unit variance, at which the gate is not saturated: so the gain is 1 for the gate, and 1 / sqrt(0.29) for what
    it gates. With He's sqrt 2 for both, a third of E[x^2] is lost at each layer.
    Kaiming He et al.: Delving Deep into Rectifiers, 2015, arXiv:1502.01852.
    """
    names = {nn.ReLU: "relu", nn.Tanh: "tanh"}
    nn.init.kaiming_normal_(layer.weight, nonlinearity=names.get(type(activation), "linear"))  # type: ignore[arg-type]
    nn.init.constant_(layer.get_parameter("bias"), 0.0)
    if isinstance(activation, nn.GLU):  # a * sigmoid(c) of (a, c)
        with torch.no_grad():
            layer.weight[: len(layer.weight) // 2] *= _GATED_GAIN


class _Residual(nn.Module):
    """relu(x + branch(x)), where x >= 0 and the branch is a convolution, ReLU, and a convolution.

    It begins near the identity, so that depth does no harm; not at the identity, as in Goyal et al. (Accurate, Large
    Minibatch SGD, 2017, arXiv:1706.02677), where the first convolution has no gradient.
    """

    def __init__(self, channels: int):
        super().__init__()
        first, last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.branch = nn.Sequential(first, nn.ReLU(), last)

    def begin_near_identity(self) -> None:
        with torch.no_grad():
            self.branch[-1].get_parameter("weight").mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.branch(x)).relu()


class _ChannelsLast(nn.Module):
    """The same images with the channels last in memory: convolutions train 1.5 times faster on a CPU this way.

    The weights stay contiguous: Pyro's param store copies a parameter that is not, and would train the copy.
    """

    def forward(self, x: Tensor) -> Tensor:
        # not contiguous(), for which one channel is already last, nor a clone in `torch.channels_last`, unknown to vmap
        return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


class DenseEncoder(_Batched):
    """Fully connected: (*, *event_shape) -> (*, num_outputs), with an activation after each hidden layer.

    With `nn.GLU` as activation the hidden layers are gated.
    """

    def __init__(
        self,
        event_shape: Shape,
        num_outputs: int,
        hidden: Sequence[int] = (400,),
        activation: type[nn.Module] = nn.ReLU,
    ):
        layers = _dense([math.prod(event_shape), *hidden, num_outputs], activation)
        super().__init__(nn.Sequential(nn.Flatten(), *layers), event_shape, (num_outputs,))


class DenseDecoder(_Batched):
    """Fully connected: (*, num_inputs) -> (*, *event_shape, params_per_dim), activated as `DenseEncoder`."""

    def __init__(
        self,
        num_inputs: int,
        event_shape: Shape,
        params_per_dim: int,
        hidden: Sequence[int] = (400,),
        activation: type[nn.Module] = nn.ReLU,
    ):
        out_shape = (*event_shape, params_per_dim)
        layers = _dense([num_inputs, *hidden, math.prod(out_shape)], activation)
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

    As in the report 32 and 64 channels; there one dense layer of 16 units follows.
    There are `num_blocks` residual blocks after each convolution.
    """

    def __init__(
        self,
        image_shape: Shape,
        num_outputs: int,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (256,),
        num_blocks: int = 0,
    ):
        in_channels, *size = image_shape
        layers: list[nn.Module] = [_ChannelsLast()]
        for out_channels in channels:
            layers += [nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1), nn.ReLU()]
            layers += [_Residual(out_channels) for _ in range(num_blocks)]
            in_channels, size = out_channels, [_half(s) for s in size]
        layers += [nn.Flatten(), *_dense([in_channels * math.prod(size), *hidden, num_outputs])]
        super().__init__(nn.Sequential(*layers), image_shape, (num_outputs,))


class ConvDecoder(_ImageDecoder):
    """Dense, then transposed convolutions with stride 2: (*, num_inputs) -> (*, C, H, W, params_per_dim).

    As in the report: dense 7x7x64 (for 28x28), transposed convolutions 64 and 32, one convolution to the image.
    There are `num_blocks` residual blocks before each transposed convolution.
    """

    def __init__(
        self,
        num_inputs: int,
        image_shape: Shape,
        params_per_dim: int,
        channels: Sequence[int] = (64, 32),
        num_blocks: int = 0,
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
            layers += [*(_Residual(in_channels) for _ in range(num_blocks)), up, nn.ReLU()]
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


def _dense(sizes: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    """Linear layers of these sizes with activations between them, none after the last."""
    *hidden, (last_in, last_out) = itertools.pairwise(sizes)
    layers: list[nn.Module] = []
    for n_in, n_out in hidden:
        layers += [nn.Linear(n_in, 2 * n_out if activation is nn.GLU else n_out), activation()]
    return [*layers, nn.Linear(last_in, last_out)]


def _half(size: int) -> int:
    return (size + 1) // 2


def _halvings(size: Sequence[int], times: int) -> list[list[int]]:
    """`size`, and what is left of it after each of `times` halvings that round up."""
    sizes = [list(size)]
    for _ in range(times):
        sizes.append([_half(s) for s in sizes[-1]])
    return sizes


class Divided(nn.Module):
    """x / divisor: scales levels 0..255 to [0, 1], which suits the initialisation of encoders."""

    def __init__(self, divisor: float):
        super().__init__()
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        return x / self.divisor

    def extra_repr(self) -> str:
        return f"divisor={self.divisor:g}"


class Filled(nn.Module):
    """0 where x is NaN, which is missing: in standard units, its mean."""

    def forward(self, x: Tensor) -> Tensor:
        return x.nan_to_num(nan=0.0)


class Log1p(nn.Module):
    """log(1 + x): scales counts to a range that suits the initialisation of encoders."""

    def forward(self, x: Tensor) -> Tensor:
        return x.log1p()


class Standardized(nn.Module):
    """(x - mean) / scale, by the mean and the standard deviation of each dimension of the training data, which
    `initialise` takes: 0 and 1 before."""

    mean: Tensor
    scale: Tensor

    def __init__(self, event_shape: Shape):
        super().__init__()
        self.register_buffer("mean", torch.zeros(event_shape))
        self.register_buffer("scale", torch.ones(event_shape))

    def initialise(self, x: Tensor) -> None:
        """From training data x (data, *event)."""
        for buffer, value in zip((self.mean, self.scale), standard_units(x), strict=True):
            buffer.copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale
