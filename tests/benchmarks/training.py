"""Contenders in training: each takes a case and returns a step, a function that trains on one more batch."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import torch
from cases import LEARNING_RATE, Case, Pair, batches, binarized, convolutions, images, networks, products
from PIL import Image
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from ppl_vae.data.encodings import Binarize
from ppl_vae.data.noise import NoNoise
from ppl_vae.data.observation import Observe
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.objectives import Elbo
from ppl_vae.training.compilation import CompiledTrace_ELBO, Step
from ppl_vae.training.optimizers import adam
from ppl_vae.training.parallel import ParallelStep, Ranks

Run = Callable[[], object]


class _Pictures(Dataset):
    """As torchvision's MNIST: a picture and a transform for each image."""

    def __init__(self) -> None:
        self.images, self.transform = images().unflatten(1, (28, 28)), ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index].numpy(), mode="L")), 0


def pyro_tutorial(case: Case) -> Run:
    """Pyro's VAE tutorial: a data loader with one worker, Pyro's Adam, Trace_ELBO, and the loss read at each step."""
    pair = Pair(case.architecture)
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": LEARNING_RATE}), loss=Trace_ELBO())
    loader = DataLoader(_Pictures(), batch_size=case.batch_size, shuffle=True, drop_last=True, num_workers=1)

    def forever():
        while True:
            yield from loader

    data = forever()
    return lambda: svi.step(next(data)[0].reshape(-1, 784))


def _svi(case: Case, optim: pyro.optim.PyroOptim, loss: object) -> Run:
    pair, data = Pair(case.architecture), batches(images(), case.batch_size)
    svi = SVI(pair.model, pair.guide, optim, loss=loss)
    return lambda: svi.step(binarized(next(data)))


def pyro_svi(case: Case) -> Run:
    """Pyro's SVI and Adam on images in memory, shuffled by index and binarised in the batch."""
    return _svi(case, pyro.optim.Adam({"lr": LEARNING_RATE}), Trace_ELBO())


def svi_compiled(case: Case) -> Run:
    """The same pair in the same SVI, with this package's optimiser and CompiledTrace_ELBO; the loss is read."""
    return _svi(case, adam(LEARNING_RATE), CompiledTrace_ELBO())


def _ours(case: Case, compiled: bool, make_step: Callable[..., Step] = Step) -> Run:
    names = {"dense 400-20": "dense-vae", "gated 300-300-40": "gated-dense-vae", "conv": "conv-vae"}
    config = TrainConfig(model=names[case.architecture], latent_size=40 if "gated" in case.architecture else 20)
    vae, encode = build(config, (1, 28, 28)), Observe(Binarize(), NoNoise())
    step = make_step(vae.model, vae.guide, Elbo(), adam(LEARNING_RATE), compiled=compiled)
    data = batches(images().unflatten(1, (1, 28, 28)), case.batch_size)
    pyro.enable_validation(False)  # as `fit` does after the first batch
    return lambda: step(*encode(next(data)))


def ours(case: Case) -> Run:
    """This package as `fit` runs it by default: compiled, Adam in the graph, no step waits for its loss."""
    return _ours(case, compiled=True)


def ours_eager(case: Case) -> Run:
    """This package, not compiled: one fused Adam."""
    return _ours(case, compiled=False)


def ours_two_ranks(case: Case) -> Run:
    """This package on two processes of one thread, each of which takes half of every batch."""
    store = Path(tempfile.mkdtemp()) / "store"
    multiprocessing.get_context("spawn").Process(target=_second_rank, args=(case, store), daemon=True).start()
    return _rank(case, 0, store)


def _second_rank(case: Case, store: Path) -> None:
    step = _rank(case, 1, store)
    while True:  # until the first is gone
        step()


def _rank(case: Case, rank: int, store: Path) -> Run:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)  # the same weights and batches
    return _ours(case, compiled=True, make_step=partial(ParallelStep, ranks=Ranks(distributed.group.WORLD)))


def _by_hand(case: Case, compiled: bool) -> Run:
    pair, data = Pair(case.architecture), batches(images(), case.batch_size)
    optimizer = torch.optim.Adam(pair.parameters(), lr=LEARNING_RATE, fused=True)
    loss = torch.compile(pair.loss, dynamic=False) if compiled else pair.loss

    def step() -> None:
        optimizer.zero_grad()
        loss(binarized(next(data))).backward()
        optimizer.step()

    return step


def by_hand(case: Case) -> Run:
    """Plain torch, by hand: fused Adam, no step waits for its loss."""
    return _by_hand(case, compiled=False)


def by_hand_compiled(case: Case) -> Run:
    """The same with torch.compile on the loss."""
    return _by_hand(case, compiled=True)


def numpyro_jit(case: Case) -> Run:
    """NumPyro's SVI under jit, binarising inside of it; no step waits for its loss."""
    import peers

    return peers.numpyro_training(case)


def pythae(case: Case) -> Run:
    """pythae's VAE and BaseTrainer, on images in memory that are binarised once."""
    import peers

    return peers.pythae_training(case)


def bare_products(case: Case) -> Run:
    """The floor: the matrix products, or convolutions, of forward and backward pass, and nothing else."""
    if case.architecture == "conv":
        return _bare_convolutions(case)
    tensors = [
        (torch.randn(case.batch_size, n), torch.randn(n, m), torch.randn(case.batch_size, m))
        for n, m in products(case.architecture)
    ]

    @torch.no_grad()
    def run() -> None:
        for i, (x, W, y) in enumerate(tensors):
            torch.mm(x, W)
            torch.mm(x.T, y)
            if i:  # images need no gradient
                torch.mm(y, W.T)

    return run


def _bare_convolutions(case: Case) -> Run:
    encoder, decoder, latent_size = networks(case.architecture)
    calls = []
    for net, x in ((encoder, torch.randn(case.batch_size, 784)), (decoder, torch.randn(case.batch_size, latent_size))):
        for layer in net:
            if layer in convolutions(net):
                inputs = x.detach()
                if inputs.dim() == 4:
                    inputs = inputs.to(memory_format=torch.channels_last)
                calls.append((layer, inputs.requires_grad_(bool(calls)), torch.randn_like(layer(inputs))))
            x = layer(x)

    def run() -> None:
        for layer, inputs, gradient in calls:
            wanted = [t for t in (inputs, layer.weight) if t.requires_grad]
            torch.autograd.grad(layer(inputs), wanted, gradient)

    return run
