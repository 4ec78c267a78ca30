"""What tests of several ranks use: processes that are started together, what they train, and what comes of it."""

import multiprocessing
import os
import pickle
import signal
import sys
import time
import warnings

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from torch import distributed, nn

from ppl_vae.kl_weights import LinearWarmUp
from ppl_vae.likelihoods import GaussianOptimal
from ppl_vae.objectives import Elbo, FreeBits, ImportanceWeighted
from ppl_vae.programs import seeded
from ppl_vae.training import parallel
from ppl_vae.training.checkpoints import Checkpoints
from ppl_vae.training.fitting import fit
from ppl_vae.training.history import Stopped
from ppl_vae.training.optimizers import adam
from ppl_vae.training.schedules import Plateau

SIZE = 2


def run_ranks(case, folder, *args):
    """`case(group, *args)` in each of two processes of one group: what they return, or raise, None for one that is
    gone; and what they wrote on standard error."""
    folder.mkdir()
    context = multiprocessing.get_context("forkserver")  # torch is imported once
    context.set_forkserver_preload(["ppl_vae.training.fitting"])
    processes = [context.Process(target=_rank, args=(rank, folder, case, args)) for rank in range(SIZE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()  # one that hangs
    paths = [folder / f"{rank}.pkl" for rank in range(SIZE)]
    return [pickle.loads(p.read_bytes()) if p.exists() else None for p in paths], (folder / "stderr").read_text()


def _rank(rank, folder, case, args):
    with (folder / "stderr").open("ab") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    torch.compile = lambda graph, **options: graph
    parallel.BEAT, parallel.SILENCE = 0.2, 8.0
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    try:
        result = case(distributed.group.WORLD, *args)
    except Exception as error:
        result = error
    (folder / f"{rank}.pkl").write_bytes(pickle.dumps(result))


class Pair(nn.Module):
    """A VAE with all that a step may have besides: dropout, noise by hand, a parameter in Pyro's store alone, one that
    is not used, and a buffer that counts steps."""

    def __init__(self, seed=0):
        super().__init__()
        with seeded(seed):
            self.encode = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 4))
            self.decode = nn.Linear(2, 5)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("count", torch.zeros(()))
        self.double()  # so that what differs is more than rounding

    def model(self, x):
        pyro.module("pair", self)
        scale = pyro.param("scale", torch.tensor(0.5, dtype=x.dtype), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), scale).to_event(1), obs=x)
        if self.training:
            self.count.add_(1)

    def guide(self, x):
        pyro.module("pair", self)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = self.encode(x + 0.1 * torch.randn(x.shape, dtype=x.dtype)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def data(n=45):
    """In batches of 14 the last is of 3, of which one rank has 1."""
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(0)).double()


def noisy(x, generator=None):
    return (x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype),)


def train(group=None, *, objective="elbo", compiled=False, seed=0, **options):
    """All that is left after training: weights, buffers, and the history but for seconds."""
    pyros = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    elbo = {"elbo": Elbo(), "iwae": ImportanceWeighted(3), "pyros": pyros}[objective]
    if objective != "pyros":
        elbo = elbo.weighted(LinearWarmUp(6))
    pair = Pair(seed)
    arguments = {"epochs": 3, "validation": data()[:9], "ema_decay": 0.9, "patience": 2} | options
    with pyro.get_param_store().scope():
        history = fit(
            pair.model, pair.guide, data(), encode=noisy, elbo=elbo, batch_size=14, seed=3, compiled=compiled,
            optim=adam(0.05, schedule=Plateau(), clip_norm=5.0, weight_decay=0.1), show_progress=False,
            process_group=group, **arguments,
        )  # fmt: skip
        scale = pyro.param("scale").detach().clone()
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]
    return {**{k: v.clone() for k, v in pair.state_dict().items()}, "scale": scale}, rows


WAYS = [("elbo", False), ("elbo", True), ("iwae", True), ("pyros", False)]


def in_all_ways(group, folder):
    """To the end; from the checkpoint of one process; and to one for another, when the second rank is told to stop."""
    seed = group.rank()  # of weights that are not the first rank's
    ways = [train(group, objective=objective, compiled=compiled, seed=seed) for objective, compiled in WAYS]
    resumed = train(group, seed=9, compiled=True, checkpoints=Checkpoints(folder / "of one"), resume=True)
    steps = iter(range(100))
    try:
        train(group, checkpoints=Checkpoints(folder / "of two"), stop=lambda: next(steps) == 3 and group.rank() == 1)
    except Stopped as stopped:
        return ways, resumed, str(stopped)


class Together(nn.Module):
    """Observes x with a scale of the batch, by one of several means."""

    def __init__(self, part):
        super().__init__()
        self.part, self.loc = part, nn.Parameter(torch.zeros(5))
        self.generator = torch.Generator().manual_seed(0)
        self.register_buffer("mean", torch.zeros(5))
        if isinstance(part, nn.Module):
            self.inner = part

    def model(self, x):
        pyro.module("together", self)
        scale, noise = torch.ones(5), torch.zeros(len(x), 5)
        if self.part == "batch":
            scale = scale + x.std()
        elif self.part == "buffer" and self.training:
            self.mean.copy_(x.mean(0))
        elif self.part == "generator":
            noise = torch.randn(len(x), 5, generator=self.generator)
        elif self.part == "gamma":
            noise = dist.Gamma(torch.ones(len(x), 5), 1.0).sample()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(self.loc + noise, scale).to_event(1), obs=x)

    def guide(self, x): ...


REFUSED = {
    "BatchNorm1d": lambda: {"part": nn.BatchNorm1d(5)},
    "GaussianOptimal": lambda: {"part": GaussianOptimal()},
    "FreeBits": lambda: {"elbo": FreeBits()},
    "_standard_gamma": lambda: {"part": "gamma"},
    "a loss that is a sum": lambda: {"part": "batch"},
    "another generator": lambda: {"part": "generator"},
    "'mean', which": lambda: {"part": "buffer"},
    "a batch of 1.": lambda: {"batch_size": 11},
    "seed: 0 -> 1": lambda: {"seed": distributed.get_rank()},
}


def refusals(group):
    """What is said of each."""
    said = {}
    for name, make in REFUSED.items():
        options = {"part": "", "batch_size": 6} | make()
        pair = Together(options.pop("part"))
        try:
            fit(pair.model, pair.guide, data(12).float(), epochs=1, process_group=group, show_progress=False, **options)
        except ValueError as error:
            said[name] = str(error)
    return said


def killed(group, folder):
    """The second rank is, after its sixth step."""
    steps = iter(range(100))
    stop = lambda: group.rank() == 1 and next(steps) == 5 and os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    return train(group, checkpoints=Checkpoints(folder, every_minutes=EVERY_STEP), stop=stop)


def hanging(group):
    """The second rank leaves by an error, and its process stays: no collective fails."""

    def stop():
        if group.rank() == 1:
            raise OSError("its disk is full")

    parallel.GRACE = 1.0
    try:
        return train(group, stop=stop)
    except OSError as error:
        time.sleep(10)
        return error


EVERY_STEP = 1e-9  # minutes


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)  # Pyro's own losses are rounded to float32
