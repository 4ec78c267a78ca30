import math

import pyro
import pytest
import torch
from torch import nn

from ppl_vae.components import UsageError, choices, create, describe
from ppl_vae.networks import (
    Conv,
    ConvDecoder,
    ConvEncoder,
    Dense,
    DenseEncoder,
    GatedDense,
    Network,
    PoolEncoder,
    ResidualConv,
    UpsampleDecoder,
    _ChannelsLast,
)

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 28, 20), (3, 17, 23), (1, 5, 5)]
NETWORKS = list(choices(Network).values())
ENCODERS = [*(lambda s, n=n: n().encoder(s, 6) for n in NETWORKS), PoolEncoder]
DECODERS = [*(lambda s, k, n=n: n().decoder(4, s, k) for n in NETWORKS), UpsampleDecoder]


def seeded(build, *args):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*args)


def rand(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("build", ENCODERS)
def test_encoders_take_any_image_size_and_leading_dimensions(build, shape):
    encoder = seeded(build, shape)
    x = rand(3, 2, *shape)
    code = encoder(x)
    assert code.shape == (3, 2, *encoder.out_shape)
    # one at a time, and without leading dimensions at all
    torch.testing.assert_close(code[2, 1], encoder(x[2, 1]))


@pytest.mark.parametrize("params_per_dim", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("build", DECODERS)
def test_decoders_give_parameters_for_each_dimension(build, shape, params_per_dim):
    decoder = seeded(build, shape, params_per_dim)
    z = rand(3, 2, *decoder.in_shape)
    params = decoder(z)
    assert params.shape == (3, 2, *shape, params_per_dim)
    torch.testing.assert_close(params[2, 1], decoder(z[2, 1]))


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_for_each_of_several_inputs_come_from_one_vmap(network):
    encoder, decoder = (
        seeded(lambda: network().encoder((3, 8, 8), 4)),
        seeded(lambda: network().decoder(4, (3, 8, 8), 1)),
    )
    for module, x in (encoder, rand(2, 5, 3, 8, 8)), (decoder, rand(2, 5, 4)):
        grad = torch.func.grad(lambda x, module=module: module(x).square().sum())
        expected = torch.stack([grad(x_i) for x_i in x])
        torch.testing.assert_close(torch.func.vmap(grad)(x), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_last_in_memory_alone(channels):
    x = rand(2, channels, 5, 4)
    last = _ChannelsLast()(x)
    assert last.equal(x)
    assert last.stride() == x.clone(memory_format=torch.channels_last).stride()


def test_the_convolutional_autoencoder_has_the_shapes_of_the_report():
    encoder, decoder = seeded(PoolEncoder, (1, 28, 28)), seeded(UpsampleDecoder, (1, 28, 28), 1)
    assert encoder(rand(1, 28, 28)).shape == (8, 4, 4)
    assert decoder(rand(8, 4, 4)).shape == (1, 28, 28, 1)

    def count(net, kind):
        return sum(isinstance(m, kind) for m in net.modules())

    assert (count(encoder, nn.Conv2d), count(encoder, nn.MaxPool2d)) == (4, 3)
    assert (count(decoder, nn.Conv2d), count(decoder, nn.Upsample)) == (5, 3)


def test_the_convolutional_vae_has_the_layers_of_the_report():
    encoder, decoder = seeded(Conv((16,)).encoder, (1, 28, 28), 40), seeded(ConvDecoder, 20, (1, 28, 28), 1)
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.stride) for m in convolutions] == [(32, (2, 2)), (64, (2, 2))]
    dense = [(m.in_features, m.out_features) for m in encoder.modules() if isinstance(m, nn.Linear)]
    assert dense == [(64 * 7 * 7, 16), (16, 40)]
    assert [m.out_features for m in decoder.modules() if isinstance(m, nn.Linear)] == [7 * 7 * 64]
    transposed = [m for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [(m.out_channels, m.stride) for m in transposed] == [(64, (2, 2)), (32, (2, 2))]
    assert [m.out_channels for m in decoder.modules() if isinstance(m, nn.Conv2d)] == [1]


def test_channels_and_parameters_are_not_mixed_up():
    """params[..., c, h, w, k] comes from output channel c * K + k of the last convolution."""
    decoder = seeded(ConvDecoder, 4, (3, 8, 8), 2)
    last = [m for m in decoder.modules() if isinstance(m, nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.arange(6.0))
    expected = torch.arange(6.0).reshape(3, 1, 1, 2).expand(3, 8, 8, 2)
    assert torch.equal(decoder(rand(4)), expected)


@pytest.mark.parametrize("build", [*ENCODERS, *[lambda s, d=d: d(s, 1) for d in DECODERS]])
def test_every_parameter_is_one_that_pyro_trains(build):
    """Pyro's param store copies a parameter that is not contiguous, and the optimiser would then train the copy."""
    net = seeded(build, (1, 28, 28))
    with pyro.get_param_store().scope():
        pyro.module("net", net)
        stored = {id(p) for _, p in pyro.get_param_store().named_parameters()}
    assert all(id(p) in stored for p in net.parameters())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GLU, nn.Tanh])
@pytest.mark.parametrize("depth", [1, 6])
def test_the_signal_neither_dies_nor_explodes_with_depth(depth, activation):
    """torch's own initialisation shrinks the variance by 6 at each ReLU: to 2e-5 after six layers of it. With He's
    gain for ReLU, gated layers would shrink it to 0.07 after six."""
    net = seeded(DenseEncoder, (256,), 256, (256,) * depth, activation)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        variance = net(torch.randn(2000, 256)).var().item()
    assert 0.3 < variance < 3


def test_gated_layers_are_what_they_say():
    net = seeded(GatedDense(hidden=(5,)).encoder, (3,), 2).net
    x = rand(7, 3)
    (A, C), (b, d) = net[1].weight.chunk(2), net[1].bias.chunk(2)
    h = (x @ A.T + b) * (x @ C.T + d).sigmoid()
    assert A.shape == (5, 3)
    torch.testing.assert_close(net(x), h @ net[-1].weight.T + net[-1].bias)


def test_residual_blocks_are_near_the_identity_at_first():
    x, z = rand(2, 1, 28, 28), rand(2, 4)
    deep = ResidualConv((3, 5), num_blocks=2)
    changes = []
    for build, args, given in ((deep.encoder, ((1, 28, 28), 6), x), (deep.decoder, (4, (1, 28, 28), 2), z)):
        net = seeded(build, *args)
        for block in (m for m in net.modules() if type(m).__name__ == "_Residual"):
            block.register_forward_hook(lambda _, inputs, y: changes.append((y - inputs[0]).norm() / y.norm()))
        net(given)
    assert len(changes) == 8
    assert 0 < min(changes) < max(changes) < 0.3


@pytest.mark.parametrize("network", [Dense((6,)), Dense((6, 4), "tanh"), GatedDense((6, 4))])
def test_dense_networks_take_plain_vectors(network):
    encoder, decoder = seeded(network.encoder, (5,), 4), seeded(network.decoder, 2, (5,), 3)
    assert encoder(rand(3, 2, 5)).shape == (3, 2, 4)
    assert decoder(rand(3, 2, 2)).shape == (3, 2, 5, 3)
    widths = [m.in_features for m in decoder.modules() if isinstance(m, nn.Linear)]
    assert widths == [2, *network.hidden[::-1]]


@pytest.mark.parametrize("network", [Conv(), ResidualConv()])
def test_convolutions_want_images(network):
    for build in (
        lambda: network.encoder((5,), 2),
        lambda: network.decoder(2, (5,), 1),
        lambda: network.autoencoder((5,), 2, 1),
    ):
        with pytest.raises(ValueError, match=r"expected data of shape \(C, H, W\); got \(5,\)"):
            build()


def test_networks_by_name():
    assert create(Network, "gated-dense") == GatedDense((300, 300))
    assert create(Network, "dense:hidden=200+100,activation=tanh") == Dense((200, 100), "tanh")
    assert create(Network, "dense", hidden=(7,)) == Dense((7,))
    assert create(Network, "conv", hidden=(7,)) == Conv((7,))
    assert Conv() == Conv((256,))
    assert "gated-dense:hidden=300+300" in describe(Network)
    for spec, message in (
        ("dense:hidden=200+", "dense: hidden: expected int; got ''"),
        ("dense:activation=tan", "dense: activation: expected one of relu, tanh; got 'tan' .did you mean 'tanh'"),
    ):
        with pytest.raises(UsageError, match=message):
            create(Network, spec)
    for spec, message in (
        ("gated-dense:hidden=300+0", r"hidden: expected sizes of at least 1; got \(300, 0\)"),
        ("residual-conv:num_blocks=-1", "num_blocks >= 0"),
        ("residual-conv:channels=0", "channels"),
    ):
        with pytest.raises(ValueError, match=message):
            create(Network, spec)


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"ConvEncoder: expected a tensor of shape \(\*, 1, 28, 28\); got \(2, 784\)"):
        seeded(ConvEncoder, (1, 28, 28), 4)(rand(2, 784))
    assert math.prod((1, 28, 28)) == 784
