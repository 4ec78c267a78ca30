"""A run that stops and resumes against one that does not: bit for bit, wherever it stops and whatever is damaged."""

import errno
import os
import random
import re
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppl_vae.kl_weights import LinearWarmUp
from ppl_vae.objectives import Elbo
from ppl_vae.programs import seeded
from ppl_vae.system.files import LockedError, locked
from ppl_vae.training.checkpoints import Checkpoints, from_file, to_bytes
from ppl_vae.training.fitting import fit
from ppl_vae.training.history import DivergedError, History, Stopped
from ppl_vae.training.optimizers import OneOptimizer, adam
from ppl_vae.training.schedules import Cosine, Plateau

EVERY_STEP = 1e-9  # minutes
NUM_STEPS = 4  # an epoch, the last one shorter


class Pair(nn.Module):
    """A VAE that has all that training changes: parameters, counts and means of BatchNorm, dropout's noise, and a
    buffer that a state dict leaves out."""

    def __init__(self, seed=0, width=5):
        super().__init__()
        with seeded(seed):
            self.encode = nn.Sequential(
                nn.Linear(6, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 4)
            )
            self.decode = nn.Linear(2, 6)
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def model(self, x):
        pyro.module("pair", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 1 + 1 / (1 + self.count)).to_event(1), obs=x)
        if self.training:
            self.count.add_(1)

    def guide(self, x):
        pyro.module("pair", self)
        loc, log_scale = self.encode(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def noisy(x, generator=None):
    return (x + 0.1 * torch.randn(x.shape, generator=generator),)


@pytest.fixture
def x():
    return torch.randn(22, 6, generator=torch.Generator().manual_seed(0))


def train(x, pair=None, epochs=4, **options):
    """All that is left after training: weights, buffers, and the history but for seconds."""
    pair = pair or Pair()
    arguments = {
        "encode": noisy,
        "elbo": Elbo().weighted(LinearWarmUp(10)),
        "optim": adam(1e-2, schedule=Cosine().by_step(NUM_STEPS * epochs), clip_norm=0.5, weight_decay=0.1),
        "validation": x[:5],
    } | options
    history = fit(
        pair.model, pair.guide, x, epochs=epochs, batch_size=6, seed=3, show_progress=False, **arguments
    )  # fmt: skip
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]
    return [*(t.clone() for t in (*pair.parameters(), *pair.buffers())), arguments["elbo"].kl_weight.step, rows]


def same(a, b):
    return all(torch.equal(s, t) if isinstance(s, torch.Tensor) else s == t for s, t in zip(a, b, strict=True))


def stop_at(step):
    calls = iter(range(1, step + 1))
    return lambda: next(calls) == step


class Killed(Exception): ...


def killed_at(step):
    """An encoding that ends the run within a step, where no checkpoint is."""
    calls = iter(range(-2 - NUM_STEPS, step + 1))  # before: two of what is monitored, and each batch is checked

    def encode(x, generator=None):
        if next(calls) == step:
            raise Killed
        return noisy(x, generator)

    return encode


def kept(x, folder, **options):
    """What a run leaves, with its checkpoints after each step as copies, in folders of that number."""
    after = iter(range(100))

    def keep():  # called after a step, before its checkpoint is written
        shutil.copytree(folder / "run", folder / str(next(after)))

    return train(x, checkpoints=Checkpoints(folder / "run", every_minutes=EVERY_STEP), stop=keep, **options)


def test_a_run_that_stops_after_a_step_ends_as_one_that_does_not(x, tmp_path):
    expected = train(x)
    for step in (1, 4, 7, 16):
        checkpoints = Checkpoints(tmp_path / str(step))
        with pytest.raises(Stopped) as stopped:
            train(x, checkpoints=checkpoints, stop=stop_at(step))
        epoch, after = (step - 1) // NUM_STEPS + 1, (step - 1) % NUM_STEPS + 1
        assert str(stopped.value) == f"stopped in epoch {epoch} of 4, after {after} of 4 steps"
        assert same(train(x, Pair(seed=9), checkpoints=checkpoints, resume=True), expected), step


def test_a_compiled_run_goes_on_from_any_step(x, tmp_path, graphs):
    expected = kept(x, tmp_path, compiled=True)
    for step in (1, 2, 7):
        checkpoints = Checkpoints(tmp_path / str(step))
        assert same(train(x, Pair(seed=9), compiled=True, checkpoints=checkpoints, resume=True), expected), step


@pytest.mark.parametrize(
    ("compiled", "every"),
    [(False, {"every_minutes": EVERY_STEP}), (True, {"every_epochs": 2, "every_minutes": None})],
)
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(every, compiled, x, tmp_path, graphs):
    expected = train(x, compiled=compiled)
    checkpoints = Checkpoints(tmp_path, **every)
    for seed, step in enumerate((11, 6)):
        with pytest.raises(Killed):
            train(x, Pair(seed), compiled=compiled, checkpoints=checkpoints, resume=True, encode=killed_at(step))
    assert len(checkpoints.paths()) == (1 if "every_epochs" in every else 2)
    assert same(train(x, Pair(seed=9), compiled=compiled, checkpoints=checkpoints, resume=True), expected)
    # and one that is done is done
    assert same(train(x, Pair(seed=8), checkpoints=checkpoints, resume=True, compiled=compiled), expected)


def test_one_batch_an_epoch_and_whether_a_run_is_compiled_go_on_too(x, tmp_path, graphs, monkeypatch):
    monkeypatch.setattr("ppl_vae.graphs.COMPILE_SECONDS", 1e-6)  # by default, then
    expected = train(x[:6])
    assert not same(train(x[:6], compiled=False), expected)  # the two round apart, so that this test sees which it is
    for step in (1, 3):
        checkpoints = Checkpoints(tmp_path / str(step))
        with pytest.raises(Stopped):
            train(x[:6], checkpoints=checkpoints, stop=stop_at(step))
        assert same(train(x[:6], Pair(seed=9), checkpoints=checkpoints, resume=True), expected)


def test_a_graph_of_the_third_step_is_that_of_a_run_that_was_not_stopped(x, tmp_path, graphs):
    expected = kept(x[:9], tmp_path, compiled=True)  # batches of 6 and 3: the second is not traced
    for step in (1, 2, 3, 6):
        checkpoints = Checkpoints(tmp_path / str(step))
        again = train(x[:9], Pair(seed=9), compiled=True, checkpoints=checkpoints, resume=True)
        assert same(again, expected), step


def test_another_optimiser_goes_on(x, tmp_path, graphs):
    optim = lambda: OneOptimizer(torch.optim.SGD, lr=0.01, momentum=0.9)  # noqa: E731
    expected = train(x, optim=optim(), compiled=True)
    with pytest.raises(Stopped):
        train(x, optim=optim(), compiled=True, checkpoints=Checkpoints(tmp_path), stop=stop_at(6))
    again = train(x, Pair(seed=9), optim=optim(), compiled=True, checkpoints=Checkpoints(tmp_path), resume=True)
    assert same(again, expected)


def lasting(**options):
    """Options that have a state of their own, at a learning rate at which the validation ELBO goes up and down."""
    optim = adam(0.3, schedule=Plateau(patience=1, factor=0.5).warmed(2))
    return {"optim": optim, "elbo": Elbo().weighted(LinearWarmUp(epochs=1)), "epochs": 7} | options


@pytest.mark.parametrize("options", [{"patience": 7}, {"ema_decay": 0.8, "patience": 3}])
def test_averages_the_best_weights_plateaus_and_patience_go_on_from_the_middle_of_an_epoch(options, x, tmp_path):
    expected = train(x, **lasting(**options))
    assert not same(expected, train(x, **lasting()))
    best, num_epochs = History(expected[-1]).best_epoch, len(expected[-1])
    assert 1 < best < num_epochs == min(best + options["patience"], 7)
    for step in (NUM_STEPS - 1, NUM_STEPS * (num_epochs - 1) + 2):
        checkpoints = Checkpoints(tmp_path / str(step))
        with pytest.raises(Stopped):
            train(x, **lasting(**options), checkpoints=checkpoints, stop=stop_at(step))
        resumed = {"checkpoints": checkpoints, "resume": True}
        assert same(train(x, Pair(seed=9), **lasting(**options), **resumed), expected), step
    assert same(train(x, Pair(seed=8), **lasting(**options), **resumed), expected)  # one that is done is done


def test_they_go_on_compiled(x, tmp_path, graphs):
    options = lambda: lasting(ema_decay=0.8, patience=3, compiled=True)  # noqa: E731
    expected = train(x, **options())
    for step in (2, 10):
        checkpoints = Checkpoints(tmp_path / str(step))
        with pytest.raises(Stopped):
            train(x, **options(), checkpoints=checkpoints, stop=stop_at(step))
        assert same(train(x, Pair(seed=9), **options(), checkpoints=checkpoints, resume=True), expected), step


def test_a_run_that_diverges_after_it_went_on_keeps_the_epoch_before(x, tmp_path):
    def poisoned(x, generator=None):
        (y,) = noisy(x, generator)
        return (y * float("nan"),)

    expected = train(x, epochs=4, checkpoints=Checkpoints(tmp_path / "one"), stop=lambda: False)[:-2]
    pair, checkpoints = Pair(), Checkpoints(tmp_path / "two")
    with pytest.raises(Stopped):
        train(x, checkpoints=checkpoints, stop=stop_at(10))
    state = from_file(checkpoints.paths()[0])
    steps = iter(range(100))
    encode = lambda x, generator=None: (noisy if next(steps) < 9 else poisoned)(x, generator)  # noqa: E731
    with pytest.raises(DivergedError, match="epoch 3, step 3") as error:
        train(x, pair, checkpoints=checkpoints, resume=True, encode=encode)
    assert len(error.value.history) == 2
    after_two_epochs = state["weights"][0]
    assert all(torch.equal(t, after_two_epochs[name]) for name, t in pair.named_parameters())
    assert not same(list(pair.parameters()), expected[: len(list(pair.parameters()))])


# --- which checkpoints there are


def test_the_last_two_are_kept_and_nothing_else_is_left(x, tmp_path):
    train(x, checkpoints=Checkpoints(tmp_path, every_epochs=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-000000000012.safetensors",
        "checkpoint-000000000016.safetensors",
    ]


def test_minutes_are_counted_from_the_last_checkpoint(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, every_epochs=3, every_minutes=2)
    assert (checkpoints.is_due(), checkpoints.is_due(1), checkpoints.is_due(3)) == (False, False, True)
    now[0] = 120.0
    assert checkpoints.is_due()
    checkpoints.save({}, 1)
    assert not checkpoints.is_due()
    now[0] = 239.0
    assert not checkpoints.is_due()
    assert not Checkpoints(tmp_path, every_epochs=None, every_minutes=None).is_due(1)
    with pytest.raises(ValueError, match="every_minutes: expected a number above 0; got 0"):
        Checkpoints(tmp_path, every_minutes=0)


def test_another_run_is_not_gone_on_with(x, tmp_path):
    def go_on(data=x, pair=None, config=None, **options):
        train(data, pair, checkpoints=Checkpoints(tmp_path, config=config or {"beta": 1}), resume=True, **options)

    with pytest.raises(Stopped):
        train(x, checkpoints=Checkpoints(tmp_path, config={"beta": 1}), stop=stop_at(6))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for options, message in [
        ({"epochs": 5}, "epochs: 4 -> 5"),
        ({"compiled": True}, "compiled: None -> True"),
        ({"config": {"beta": 2, "layers": (1, 2)}}, r"beta: 1 -> 2, layers: None -> \[1, 2\]"),
        ({"data": x + 1}, "data: '[0-9a-f]{16}' -> '[0-9a-f]{16}'"),
        ({"validation": x[:6]}, "data: "),
        ({"optim": adam(1e-3)}, "optimiser: "),
        ({"patience": 3, "ema_decay": 0.9}, "ema_decay: None -> 0.9, patience: None -> 3"),
        ({"pair": Pair(width=7)}, r"encode.0.weight: \[5, 6\] -> \[7, 6\]"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            go_on(**options)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="expected resume=True, or a folder without checkpoints"):
        train(x, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(ValueError, match="optim: expected a OneOptimizer"):
        train(x, checkpoints=Checkpoints(tmp_path), optim=pyro.optim.Adam({"lr": 1e-3}))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- damage


def test_another_version_of_torch_goes_on_and_says_so(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"epoch": 1}, 1)
    assert checkpoints.load()["epoch"] == 1  # and warns of nothing
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    with pytest.warns(RuntimeWarning, match=r"expected torch \d.*; got 2\.99\.0: resumes, but not bit for bit"):
        assert checkpoints.load()["epoch"] == 1


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_taken(x, tmp_path):
    expected = train(x)
    generator = random.Random(0)
    for how in ("truncated", "flipped", "emptied"):
        checkpoints = Checkpoints(tmp_path / how, every_minutes=EVERY_STEP)
        with pytest.raises(Stopped):
            train(x, checkpoints=checkpoints, stop=stop_at(7))
        newest, before = checkpoints.paths()
        content = newest.read_bytes()
        newest.write_bytes({"truncated": content[: generator.randrange(len(content))],
                            "flipped": flipped(content, generator), "emptied": b""}[how])  # fmt: skip
        with pytest.warns(RuntimeWarning, match=rf"000007.safetensors: expected a whole.*resumes from {before.name}"):
            again = train(x, Pair(seed=9), checkpoints=checkpoints, resume=True)
        assert same(again, expected)
        assert newest.with_name(newest.name + ".damaged").exists()


def test_where_all_are_damaged_it_does_not_begin_again(x, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    train(x, epochs=2, checkpoints=checkpoints)
    for path in checkpoints.paths():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="expected a whole checkpoint; got 2 damaged ones") as error:
        train(x, epochs=2, checkpoints=checkpoints, resume=True)
    assert "\n" not in str(error.value)
    assert len(checkpoints.paths()) == 2


def flipped(content, generator):
    i = generator.randrange(len(content))
    return content[:i] + bytes([content[i] ^ 1 << generator.randrange(8)]) + content[i + 1 :]


STATE = {
    "epoch": 3,
    "rows": [{"loss": 0.1 + 0.2, "epoch": 1}],
    "moments": {"0": {"step": torch.tensor(4.0)}},
    "modules": [{"weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).T, "n": torch.tensor(2)}],
    "losses": torch.tensor([1 / 3, float("nan")], dtype=torch.float64),
    "empty": [torch.zeros(0), torch.zeros(2, 2, dtype=torch.uint8), None, True, "a"],
}


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return all(map(equal, a, b)) and len(a) == len(b) if isinstance(a, list) else a == b


def test_a_state_comes_back_bit_for_bit(tmp_path):
    shared = torch.ones(3)
    state = {**STATE, "tied": [shared, shared, shared[:2]]}
    (tmp_path / "state").write_bytes(to_bytes(state))
    assert equal(from_file(tmp_path / "state"), state)


@pytest.mark.parametrize("how", ["flip", "truncate", "overwrite"])
def test_damage_at_random_places_is_found(how, tmp_path):
    content, path, generator = to_bytes(STATE), tmp_path / "state", random.Random(how)
    found = 0
    for _ in range(200):
        if how == "flip":
            damaged = flipped(content, generator)
        elif how == "truncate":
            damaged = content[: generator.randrange(len(content))]
        else:
            i, n = generator.randrange(len(content)), generator.randrange(1, 40)
            damaged = (content[:i] + generator.randbytes(n) + content[i + n :])[: len(content)]
        path.write_bytes(damaged)
        try:
            assert equal(from_file(path), STATE)  # damage to what JSON does not care for
        except ValueError as error:
            found += "\n" not in str(error)
    assert found >= 190


# --- what can't be written, and who else is there


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_an_error_that_leaves_the_last_checkpoint(call, x, tmp_path, monkeypatch):
    expected = train(x)
    calls = iter(range(100))
    original = getattr(os, call)

    def full(*args, **kwargs):
        if next(calls) == {"fsync": 4, "replace": 2}[call]:  # a file and its folder are synced, two times before
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args, **kwargs)

    checkpoints = Checkpoints(tmp_path, every_minutes=EVERY_STEP)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left") as error:
            train(x, checkpoints=checkpoints)
    assert re.search(r"checkpoint-0+3\.safetensors$", error.value.filename)
    assert sorted(path.name[-15:] for path in tmp_path.iterdir()) == ["001.safetensors", "002.safetensors"]
    assert same(train(x, Pair(seed=9), checkpoints=checkpoints, resume=True), expected)


def test_a_second_run_in_a_folder_is_refused(x, tmp_path):
    with locked(tmp_path), pytest.raises(LockedError, match="no other run is at work; got one in use"):
        train(x, checkpoints=Checkpoints(tmp_path))
    train(x, epochs=1, checkpoints=Checkpoints(tmp_path))
    with locked(tmp_path):
        pass
