"""What cannot be traced or compiled runs uncompiled, as if it had not been tried."""

import warnings

import pyro
import pytest
import torch
from compiling import Regularised, data
from pyro.infer import SVI

from ppl_vae.kl_weights import LinearWarmUp
from ppl_vae.objectives import Elbo
from ppl_vae.programs import seeded
from ppl_vae.training.compilation import CompiledTrace_ELBO, Step
from ppl_vae.training.optimizers import adam
from ppl_vae.training.schedules import Cosine


class Branches(Regularised):
    """Reads a buffer, or a plain tensor, as a number, after BatchNorm has counted and noise was drawn; and counts in
    Python."""

    how = "item"

    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(()))
        self.plain, self.calls = torch.zeros(()), 0

    def model(self, x):
        super().model(x)
        if self.how == "item":
            pyro.factor("f", torch.tensor(self.n.item()))
            self.n.add_(1)
        elif self.how == "plain":
            self.plain += 1
            self.calls += 1
            pyro.factor("f", torch.tensor(self.plain.item() + self.calls))
        elif self.how == "branch":
            self.n.add_(1)
            pyro.factor("f", torch.tensor(1.0 if self.n > 2 else 7.0))


@pytest.mark.parametrize("how", ["item", "plain", "branch", "compiler"])
def test_without_a_graph_it_says_so_once_and_goes_on_as_if_it_had_not_been_tried(how, monkeypatch):
    def compile(graph, **kwargs):
        def call(*args):
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", compile)

    class Pair(Branches):
        pass

    Pair.how = how
    objective = lambda: Elbo().weighted(LinearWarmUp(10))  # noqa: E731
    ends = []
    for kind in (Step, SVI):
        for compiled in (False, True):
            pair, optim, elbo = Pair(), adam(1e-2, schedule=Cosine().by_step(10), clip_norm=1.0), objective()
            with seeded(1), pyro.get_param_store().scope(), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if kind is Step:
                    step = Step(pair.model, pair.guide, elbo, optim, compiled=compiled)
                else:
                    step = SVI(pair.model, pair.guide, optim, loss=CompiledTrace_ELBO(elbo) if compiled else elbo).step
                losses = [float(step(data())) for _ in range(6)]
                end = [torch.tensor(losses), *pair.parameters(), *pair.buffers(), elbo.kl_weight.step, torch.rand(())]
                state = optim.get_state()
                end += [t for s in state["optimizer"]["state"].values() for t in s.values()]
                ends.append([t.detach().clone() for t in [*end, torch.tensor(state["num_steps"])]])
            if how == "plain":
                assert (pair.plain.item(), pair.calls) == (6, 6)
            ours = [str(w.message) for w in caught if "not compiled" in str(w.message)]
            assert len(ours) == compiled
            if compiled:
                assert ours[0].startswith("not compiled, the results are the same but slower: RuntimeError: ")
        if how == "compiler":  # its second step is the trace's, which rounds apart
            torch.testing.assert_close(ends[-1], ends[-2], rtol=1e-5, atol=1e-6)
        else:
            assert all(torch.equal(a, b) for a, b in zip(ends[-1], ends[-2], strict=True))
