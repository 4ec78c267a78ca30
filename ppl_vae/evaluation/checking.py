"""Can a Pyro pair be trained and evaluated? A check that finds what is wrong before hours are spent on it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from ppl_vae import contract, programs
from ppl_vae.contract import Finding, observed_sites, plain_trace, support_name, tensors_of
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.programs import Program, log_prob_per_datum, sample_sites
from ppl_vae.system.places import modules_of

Data = tuple[Tensor, ...]
Buffer = tuple[str, nn.Module, str, Tensor, Tensor]  # path, module, name in the module, itself, its value before

RTOL, ATOL = 1e-4, 1e-3  # of equal log-probs: a batch of another size is summed in another order


@dataclass(frozen=True)
class Report:
    """What `check_model` found; as text, a line each. `summary` is the first line for a sound pair, else ""."""

    summary: str
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """No error was found; warnings may have been."""
        return not _errors(self.findings)

    def __str__(self) -> str:
        return "\n".join([self.summary] * self.ok + [str(finding) for finding in self.findings])


def check_model(model: Program, guide: Program, x: Tensor, *args: Tensor) -> Report:
    """Can `fit` and `log_likelihood` be trusted with this Pyro pair? Tries it out, and collects what is wrong:

    - runs: both programs run;
    - plates: each site is in one plate, of all the data, at dim -1;
    - mask, scale: no site is masked (an error) or scaled (a warning: evaluation ignores the scale);
    - latents, observed: the two share their latent sites, one at least, and the model observes something;
    - modules: those that train are found, so that their mode is known;
    - dtype: the observed values are such as their distributions score;
    - particles: the programs run in a further plate at dim -2, and each site has one log-prob per datum;
    - mode: the programs stay in evaluation mode, and change no buffer (BatchNorm's, say) in it;
    - repeatable: log-probs at the same z are the same twice (dropout is off);
    - independence: log-probs at the same z are the same without the other data, and in another order;
    - density: the guide scores any z (a warning: a flow without an inverse scores its own draws alone);
    - support: data lie in their site's; the guide samples nothing but what the prior can, and reaches all of that;
    - finite: no log-prob is NaN or infinite;
    - gradients: the ELBO's in training mode are finite, and SVI trains the modules' own parameters;
    - chunks: `log_likelihood` is the same one row at a time;
    - data: there are two or more (a warning: independence cannot be seen in one).

    What could fail in consequence of an error that was found is not tried until that is mended.

    Arguments:
        model, guide: any Pyro pair with one data plate. No fault in it raises.
        x, args: the programs' arguments, batched together along dim 0. A few data are enough: all are used.

    Param store, random generators, buffers, gradients and training mode are left as they were found.
    Raises `ValueError` for empty data, or data of unequal length.
    """
    try:
        data = tensors_of(model, guide, x, *args)
    except ValueError:  # numbers that would be rounded are a finding, as they come
        data = tensors_of(_nothing, _nothing, x, *args)
    found: list[Finding] = []
    with warnings.catch_warnings(), programs.seeded(0), programs.evaluating(model, guide):
        warnings.simplefilter("ignore")
        with _kept_buffers(model, guide) as buffers:
            summary = _examine(found, model, guide, data, buffers)
    if len(data[0]) == 1:
        found.append(Finding("data", "", "expected two data or more; got 1", "Independence was not checked", "warning"))
    return Report(summary, tuple(dict.fromkeys(found)))


def _nothing(*data: Tensor) -> None:
    """A program without parameters, whose dtype data would have to have."""


def _examine(found: list[Finding], model: Program, guide: Program, data: Data, buffers: list[Buffer]) -> str:
    """Adds to `found`, check by check; returns the summary of a sound pair, "" of another."""
    n, traces, log_probs = len(data[0]), {}, {}
    runs = "The pair has to run on these data as they are"

    def misfit(error: Exception) -> Finding | None:
        return contract.misfit(error, model, guide, *data)

    with poutine.trace(param_only=True) as declared:
        with _noting(found, "runs", "the guide", runs, misfit):
            traces["guide"] = plain_trace(guide, *data)
        with _noting(found, "runs", "the model", runs, misfit):
            traces["model"] = plain_trace(model, *data, latents=traces.get("guide"))
    for trace in traces.values():
        found += contract.plates(trace, n)
    if not _errors(found):
        found += contract.sites(traces["model"], traces["guide"])
        found += contract.unseen(declared.trace, model, guide)
    if not _errors(found):
        with _noting(found, "runs", "a log-prob", runs):
            found += contract.scored(traces["model"], n)
    if _errors(found):
        return ""
    shape, plain = (3, n), traces["model"]
    left = "It should run with any dims to the left of the data"
    with _noting(found, "particles", "in a plate of particles at dim -2, the pair", left, misfit):
        traces["guide"] = programs.guide_trace_of(guide, *data, num_samples=shape[0])
        log_probs["guide"] = log_prob_per_datum(traces["guide"], shape)
        traces["model"] = programs.model_trace_of(model, traces["guide"], *data, num_samples=shape[0])
        log_probs["model"] = log_prob_per_datum(traces["model"], shape)
    if _errors(found):
        return ""
    found += _mode(model, guide, buffers)
    own_draws = [] if _errors(found) else [*_own_draws(guide, data)]
    found += own_draws
    rerun = {"model": model} if own_draws else {"guide": guide, "model": model}
    for title, program in () if _errors(found) else rerun.items():
        with _noting(found, "independence", f"on a part of the data, the {title}", "It should run for any len(x)"):
            found += _reruns(title, program, traces["guide"], data, log_probs[title])
    with _noting(found, "support", "the support of a site", "Its distribution should tell what it allows"):
        found += [*contract.support_of(plain), *_latent_support(traces)]
    if not any(f.check == "support" for f in found):
        found += _finite(log_probs)
    if all(t.isfinite().all() for by_site in log_probs.values() for t in by_site.values()):
        with _noting(found, "gradients", "a step of the ELBO", "The pair has to run in training mode as well"):
            found += _gradients(model, guide, data)
    if not _errors(found):
        with _noting(found, "chunks", "log_likelihood", "It should run for any len(x)"):
            found += _chunks(model, guide, tuple(t[:8] for t in data))  # one row at a time takes long
    if _errors(found):
        return ""
    supports = {name: site["fn"].support for name, site in observed_sites(traces["model"]).items()}
    observed = ", ".join(
        f"{k} ({'mass' if s.is_discrete else 'density'} on {support_name(s)})" for k, s in supports.items()
    )
    latents = ", ".join(sample_sites(traces["guide"], observed=False))
    return f"sound: latent sites {latents}; observed {observed}; {n} data, event {tuple(data[0].shape[1:])}"


def _errors(findings: Iterable[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)


@contextmanager
def _noting(
    found: list[Finding],
    check: str,
    what: str,
    remedy: str,
    known: Callable[[Exception], Finding | None] = lambda error: None,
) -> Iterator[None]:
    """An exception inside is a finding: one that is known for it, or of the site that its message names."""
    try:
        yield
    except Exception as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        site = re.search(r"site(?:s named)? ['\"](.+?)['\"]|at site (\S+)", message)
        name = (site[1] or site[2]) if site else ""
        finding = known(error) or Finding(check, name, f"{what} raises {message}", remedy)
        found.append(replace(finding, check=check) if finding.check == "runs" else finding)


@contextmanager
def _kept_buffers(*pair: Program) -> Iterator[list[Buffer]]:
    submodules = [named for module in modules_of(*pair) for named in module.named_modules()]
    owned = [(f"{path}.{k}".strip("."), m, k, b) for path, m in submodules for k, b in m.named_buffers(recurse=False)]
    buffers = [(*buffer, buffer[-1].clone()) for buffer in owned]
    try:
        yield buffers
    finally:
        for _, module, name, buffer, before in buffers:
            setattr(module, name, buffer)
            if not buffer.equal(before):
                buffer.copy_(before)


def _mode(model: Program, guide: Program, buffers: list[Buffer]) -> Iterator[Finding]:
    for path, submodule in [named for module in modules_of(model, guide) for named in module.named_modules()]:
        if submodule.training:
            got = "expected evaluation mode in evaluation; got training mode"
            yield Finding("mode", path or type(submodule).__name__, got, "Take .train() out: `fit` calls it")
    for path, module, name, _, before in buffers:
        if not getattr(module, name).equal(before):
            got = "expected a buffer that evaluation leaves alone; got it changed"
            yield Finding("mode", path, got, "Update it in training mode alone (self.training)")


def _own_draws(guide: Program, data: Data) -> Iterator[Finding]:
    try:
        contract.check_scores_any(guide, *data)
    except ValueError:
        got = f"the guide: {programs.SCORES_ITS_OWN}"
        remedy = "`log_likelihood` wants no more; but whether its data are independent can't be checked"
        yield Finding("density", "", got, remedy, "warning")


def _reruns(
    title: str, program: Program, latents: Trace, data: Data, log_probs: dict[str, Tensor]
) -> Iterator[Finding]:
    """The program once more at the same latent values: as it was, without half of the data, in another order."""
    num_samples, everything = len(next(iter(log_probs.values()))), torch.arange(len(data[0]))
    mixed = "Let no datum see another: no statistics of the batch, no sums over dim 0"
    for check, rows, words, remedy in (
        ("repeatable", everything, "a second time", "Switch noise off in evaluation (nn.Dropout, self.training)"),
        ("independence", everything[: (len(everything) + 1) // 2], "without the other data", mixed),
        ("independence", everything.flip(0), "in another order", mixed),
    ):
        part = programs.part_of(latents, slice(None), rows)
        trace = programs.model_trace_of(program, part, *(t[rows] for t in data), num_samples=num_samples)
        moved = False
        for name, now in log_prob_per_datum(trace, (num_samples, len(rows))).items():
            if off := _difference(now, log_probs[name][:, rows]):
                moved = True
                got = f"in the {title}: expected the same log-prob at the same z {words}; got it {off}"
                yield Finding(check, name, got, remedy)
        if moved:
            return


def _difference(a: Tensor, b: Tensor) -> str:
    return "" if a.allclose(b, RTOL, ATOL, equal_nan=True) else f"{(a - b).abs().max().item():.3g} nats off"


def _latent_support(traces: dict[str, Trace]) -> Iterator[Finding]:
    for name, site in sample_sites(traces["guide"], observed=False).items():
        prior, posterior = traces["model"].nodes[name]["fn"], site["fn"]
        if message := _outside(prior.support, site["value"]):
            yield Finding("support", name, f"in the guide: {message}", "Let the guide sample what the prior allows")
        elif _outside(posterior.support, prior.sample()):
            all_of, part = support_name(prior.support), support_name(posterior.support)
            message = f"in the guide: expected all of the prior's {all_of}; got {part} alone"
            yield Finding("support", name, message, "Let the guide reach all of it, else log p(x) comes out too low")


def _outside(support: Constraint, z: Tensor) -> str:
    """What is wrong with latents (samples, data, *event) outside of a support. `_finite` names NaN and infinity."""
    return "" if not z.isfinite().all() else contract.outside(support, z.flatten(0, 1), "samples")


def _finite(log_probs: dict[str, dict[str, Tensor]]) -> Iterator[Finding]:
    for title, by_site in log_probs.items():
        faulty = [name for name, t in by_site.items() if not t.isfinite().all()]
        for name in faulty:
            got = f"in the {title}: expected finite log-probs; got NaN or infinity"
            yield Finding("finite", name, got, "Look for NaN in x or the weights, a scale of 0, an exp that overflows")
        if faulty:
            return  # a guide's NaN is the model's too


def _gradients(model: Program, guide: Program, data: Data) -> Iterator[Finding]:
    with programs.mode(model, guide, training=True), torch.enable_grad(), poutine.trace(param_only=True) as capture:
        loss = Trace_ELBO().differentiable_loss(model, guide, *data)
    faults = {fault.site: fault for fault in contract.params(capture.trace, model, guide)}
    yield from faults.values()
    declared = {name: (site["value"].unconstrained(), site["args"][-1]) for name, site in capture.trace.nodes.items()}
    params = {name: param for name, (param, _) in declared.items() if name not in faults}
    known = {id(p) for both in declared.values() for p in both}
    named = [pair for module in modules_of(model, guide) for pair in module.named_parameters()]
    tensors = [*params.items(), *((name, p) for name, p in named if p.requires_grad and id(p) not in known)]
    gradients: Sequence[Tensor | None] = [None] * len(tensors)
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, [p for _, p in tensors], allow_unused=True)
    for (name, _), gradient in zip(tensors, gradients, strict=True):
        if gradient is None and name in params:
            got = "expected a gradient of the ELBO; got none"
            yield Finding("gradients", name, got, "Look for a detach, or leave the parameter out", "warning")
        elif gradient is not None and not gradient.isfinite().all():
            got = "expected a finite gradient of the ELBO; got NaN or infinity"
            yield Finding("gradients", name, got, "Look for a sqrt, log or division of 0 on its way")
        elif gradient is not None and name not in params:
            got = "expected a parameter that SVI trains; got one that no pyro.module declares"
            yield Finding("gradients", name, got, "Declare its module in the program by pyro.module", "warning")


def _chunks(model: Program, guide: Program, data: Data) -> Iterator[Finding]:
    whole, by_row = (log_likelihood(model, guide, *data, num_samples=3, memory=m).log_p for m in (None, 1))
    if off := _difference(by_row, whole):
        got = f"expected the same log p(x) one row at a time; got it {off}"
        yield Finding("chunks", "", got, "Let no particle see another: no statistics or sums over leading dims")
