"""The peers of the extra `bench`: NumPyro and pythae, each used as its users would."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from cases import LEARNING_RATE, Case, binarized, images, networks
from torch import Tensor, nn

# NumPyro


def _apply(architecture: str) -> tuple[Callable, Callable, Callable, int]:
    """init(key) -> parameters, encoder(parameters, x), decoder(parameters, z), and the size of the code, in JAX."""
    import jax
    from jax import lax
    from jax import numpy as jnp

    encoder, decoder, latent_size = networks(architecture)

    def arrays(net: nn.Module) -> list[Any]:
        layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
        return [tuple(jnp.asarray(p.detach().numpy()) for p in (m.weight, m.bias)) for m in layers]

    def linear(p: Any, x: Any) -> Any:
        return x @ p[0].T + p[1]

    def gated(p: Any, q: Any, x: Any) -> Any:
        return linear(p, x) * jax.nn.sigmoid(linear(q, x))

    if architecture == "conv":

        def conv(p: Any, x: Any, stride: int) -> Any:
            kernel = jnp.transpose(p[0], (2, 3, 1, 0))
            return lax.conv_general_dilated(x, kernel, (stride, stride), [(1, 1)] * 2, dimension_numbers=NHWC) + p[1]

        def up(p: Any, x: Any) -> Any:
            kernel = jnp.flip(jnp.transpose(p[0], (2, 3, 0, 1)), (0, 1))
            y = lax.conv_general_dilated(x, kernel, (1, 1), [(1, 2)] * 2, lhs_dilation=(2, 2), dimension_numbers=NHWC)
            return y + p[1]

        NHWC = ("NHWC", "HWIO", "NHWC")

        def encode(ps: Any, x: Any) -> Any:
            h = jax.nn.relu(conv(ps[0], x.reshape(-1, 28, 28, 1), 2))
            h = jax.nn.relu(conv(ps[1], h, 2)).reshape(len(x), -1)
            return linear(ps[3], jax.nn.relu(linear(ps[2], h)))

        def decode(ps: Any, z: Any) -> Any:
            h = jax.nn.relu(linear(ps[0], z)).reshape(-1, 7, 7, 64)
            h = jax.nn.relu(up(ps[2], jax.nn.relu(up(ps[1], h))))
            return conv(ps[3], h, 1).reshape(len(z), 784)

    elif "gated" in architecture:

        def encode(ps: Any, x: Any) -> Any:
            return linear(ps[4], gated(ps[2], ps[3], gated(ps[0], ps[1], x)))

        decode = encode
    else:

        def encode(ps: Any, x: Any) -> Any:
            return linear(ps[1], jax.nn.relu(linear(ps[0], x)))

        decode = encode
    return lambda: (arrays(encoder), arrays(decoder)), encode, decode, latent_size


def _pair(architecture: str) -> tuple[Callable, Callable, Callable]:
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    init, encode, decode, latent_size = _apply(architecture)
    encoder, decoder = init()

    def model(x: Any) -> None:
        params = numpyro.param("decoder", decoder)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("latent", dist.Normal(jnp.zeros(latent_size), 1.0).to_event(1))
            numpyro.sample("obs", dist.Bernoulli(logits=decode(params, z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        params = numpyro.param("encoder", encoder)
        mean, log_variance = jnp.split(encode(params, x), 2, -1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("latent", dist.Normal(mean, jnp.exp(0.5 * log_variance)).to_event(1))

    return model, guide, lambda: {"encoder": encoder, "decoder": decoder}


def numpyro_training(case: Case) -> Callable[[], object]:
    import jax
    import numpyro
    from jax import numpy as jnp
    from numpyro.infer import SVI, Trace_ELBO

    model, guide, _ = _pair(case.architecture)
    data = jnp.asarray(images().numpy())
    svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), Trace_ELBO())
    state = [svi.init(jax.random.PRNGKey(0), data[: case.batch_size].astype(float)), jax.random.PRNGKey(1)]

    @jax.jit
    def step(state: Any, key: Any, levels: Any) -> tuple[Any, Any, Any]:
        key, now = jax.random.split(key)
        x = (jax.random.uniform(now, levels.shape) * 255 < levels).astype(jnp.float32)
        state, loss = svi.update(state, x)
        return state, key, loss

    numbers = _numbers(len(data), case.batch_size)

    def run() -> None:
        *state[:], loss = step(*state, data[next(numbers)])
        losses[:] = [loss]

    losses: list[Any] = []
    run.wait = lambda: jax.block_until_ready(losses)  # type: ignore[attr-defined]
    return run


def _numbers(size: int, batch_size: int) -> Any:
    import numpy as np

    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(size)
        for first in range(0, size - batch_size + 1, batch_size):
            yield order[first : first + batch_size]


def numpyro_importance(case: Case) -> Callable[[Tensor], object]:
    import jax
    from jax import numpy as jnp
    from numpyro import handlers
    from numpyro.infer.util import log_density

    model, guide, params = _pair(case.architecture)

    @jax.jit
    def log_p(key: Any, x: Any) -> Any:
        def log_weight(key: Any) -> Any:
            seeded = handlers.seed(handlers.substitute(guide, data=params()), key)
            z = handlers.trace(seeded).get_trace(x)["latent"]["value"]
            values = {**params(), "latent": z}
            return log_density(model, (x,), {}, values)[0] - log_density(guide, (x,), {}, values)[0]

        log_w = jax.vmap(log_weight)(jax.random.split(key, case.num_samples))
        return jax.nn.logsumexp(log_w) - jnp.log(case.num_samples)

    keys = [jax.random.PRNGKey(0)]

    def evaluate(x: Tensor) -> None:
        keys[0], key = jax.random.split(keys[0])
        log_p(key, jnp.asarray(x.numpy())).block_until_ready()

    return evaluate


# pythae


def _pythae_model(architecture: str) -> Any:
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    logging.disable(logging.INFO)
    encoder, decoder, latent_size = networks(architecture)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.net, self.latent_dim = encoder, latent_size

        def forward(self, x: Tensor) -> Any:
            mean, log_variance = self.net(x).chunk(2, -1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.net = decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z).sigmoid())

    config = VAEConfig(input_dim=(784,), latent_dim=latent_size, reconstruction_loss="bce")
    return VAE(config, encoder=Encoder(), decoder=Decoder())


def pythae_training(case: Case) -> Callable[[], object]:
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    data = binarized(images()[: 20 * case.batch_size])  # an epoch is the least that it can be asked for
    trainer = BaseTrainer(
        model=_pythae_model(case.architecture),
        train_dataset=BaseDataset(data, torch.zeros(len(data))),
        training_config=BaseTrainerConfig(
            output_dir=tempfile.mkdtemp(),
            learning_rate=LEARNING_RATE,
            per_device_train_batch_size=case.batch_size,
            num_epochs=1,
            train_dataloader_num_workers=0,
        ),
    )
    trainer.prepare_training()
    epochs = [0]

    def epoch() -> None:
        epochs[0] += 1
        trainer.train_step(epochs[0])

    epoch.steps = len(data) // case.batch_size  # type: ignore[attr-defined]
    return epoch


def pythae_importance(case: Case) -> Callable[[Tensor], object]:
    model = _pythae_model(case.architecture)

    @torch.no_grad()
    def evaluate(x: Tensor) -> float:
        return model.get_nll(x, n_samples=case.num_samples)

    return evaluate
