"""The posterior of each datum as normals at its highest modes, by natural gradients: for posteriors with several."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ppl_vae.contract import check_scores_any, check_structure, tensors_of
from ppl_vae.evaluation.chunks import BLOCK_DATA, rows_per_chunk, seed_of
from ppl_vae.evaluation.hamiltonian import Densities, latent_sites, pack, size_of
from ppl_vae.evaluation.hamiltonian import log_joint as joint_of
from ppl_vae.evaluation.refined import Refined, mixture_of
from ppl_vae.evaluation.refinement import MIN_SPREAD, SMALL_SIZE, WIDE_SHARE
from ppl_vae.graphs import Compiled, flop_counter, repays
from ppl_vae.programs import Program, evaluating, guide_trace_of, seeded, sum_of_sites
from ppl_vae.system.places import Constants
from ppl_vae.system.progress import progress

Value = Callable[[Tensor], tuple[Tensor, Tensor]]
"""log p(x, u) and its gradient in u, in units of the prior's spread."""

GUIDE_DRAWS, PRIOR_DRAWS, PRIOR_ROUNDS = 32, 32, 4
RATE = 0.1  # of Adam, in units of the prior's spread; it falls to 0 along a cosine
APART = 0.2  # the root mean square distance of two modes, in these units
FIRST_WIDTH, LONGEST_STEP, LEAST_PRECISION = 0.3, 0.3, 0.3  # in these units


def refine_modes(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    num_starts: int = 4,
    num_steps: int = 40,
    num_modes: int = 2,
    num_newton: int = 5,
    seed: int = 0,
    memory: int | None = None,
    compiled: bool | None = None,
    show_progress: bool = False,
) -> Refined:
    """A guide that is fitted to each datum anew, as `refine`'s is, for less: the posterior is a mixture of normals at
    the highest modes that are found from the mean of the guide and those of 128 prior draws that the model likes best.

    Adam climbs log p(x, u) from each of these starts, u in unconstrained space. At the highest `num_modes` places, that
    differ, a normal N(m, S) then goes to where its ELBO has no gradient,

        E_q[grad log p(x, u)] = 0,    S^-1 = -E_q[Hessian of log p(x, u)],

    by steps of Newton's method with expectations over 2 size points m +- sqrt(size) L v_i, S = L L^T, V a random
    rotation: where draws of q mostly are. Manfred Opper, Cedric Archambeau: The Variational Gaussian Approximation
    Revisited, Neural Computation 21(3), 2009.

    In one or two dimensions, a tenth of the mixture is as wide as the prior: there it is cheap, and finds the modes
    that no start does.

    It costs num_starts x num_steps + num_modes x num_newton x 2 size gradients of the decoder for each datum, and 128
    samples. The other arguments are those of `refine`, and it raises `ValueError` as that does.
    """
    limits = {"num_starts": num_starts, "num_steps": num_steps, "num_modes": num_modes, "num_newton": num_newton}
    for name, number in limits.items():
        if number < 1:
            raise ValueError(f"{name}: expected at least 1; got {number}")
    data = tensors_of(model, guide, x, *args)
    with evaluating(model, guide), seeded(seed):
        datum = [t[:1] for t in data]
        check_structure(model, guide, *datum)
        sites = latent_sites(model, guide, *datum)
        check_scores_any(guide, *datum)
        rows = rows_per_chunk(model, guide, *datum, memory=memory, gradients=True)
        log_joint = Densities(joint_of(model), sites, rows)
        wide_share = WIDE_SHARE if size_of(sites) <= SMALL_SIZE else 0.0

        def of_prior(*data: Tensor) -> tuple[Tensor, ...]:
            trace = guide_trace_of(model, *data, num_samples=PRIOR_DRAWS)
            u = pack({name: trace.nodes[name]["value"] for name in sites}, sites)
            return u, sum_of_sites(trace, (PRIOR_DRAWS, len(data[0])))

        def of_guide(data: list[Tensor]) -> Tensor:
            trace = guide_trace_of(guide, *data, num_samples=GUIDE_DRAWS)
            return pack({name: trace.nodes[name]["value"] for name in sites}, sites).mean(0, keepdim=True)

        draw: Callable[..., tuple[Tensor, ...]] = of_prior
        blocks = torch.arange(len(data[0]), device=data[0].device).split(BLOCK_DATA)
        if compiled is None:
            block = [t[blocks[0]] for t in data]
            with flop_counter() as flops:
                log_joint(of_guide(block), *block)
            per_step = num_starts * flops.get_total_flops()
            compiled = len(blocks) > 1 and repays(len(blocks) * num_steps, per_step)
        if compiled:
            log_joint.compile(model)
            draw = Compiled(of_prior, Constants(model))
        fits = []
        with progress("refining", len(blocks), enabled=show_progress) as report:
            for number, rows in enumerate(blocks):
                torch.manual_seed(seed_of(seed, number))
                # the last block is filled up with others, so that one graph serves all
                filled = torch.arange(len(blocks[0]), device=rows.device) % len(rows)
                block = [t[rows[filled]] for t in data]
                first, drawn = of_guide(block), [draw(*block) for _ in range(PRIOR_ROUNDS)]
                prior, log_p = (torch.cat(t) for t in zip(*drawn, strict=True))
                best = log_p.nan_to_num(nan=-math.inf).topk(min(num_starts - 1, len(prior)), 0).indices
                u = torch.cat([first, prior.gather(0, best[..., None].expand(-1, -1, prior.shape[-1]))])
                spread = prior.std(0).clamp(min=MIN_SPREAD)

                def value(v: Tensor, spread: Tensor = spread, block: list[Tensor] = block) -> tuple[Tensor, Tensor]:
                    # always as many at once, so that one graph serves all
                    index = torch.arange(-(-len(v) // num_starts) * num_starts, device=v.device) % len(v)
                    parts = [log_joint(u, *block) for u in (v[index] * spread).split(num_starts)]
                    log_p, gradient = (torch.cat(t)[: len(v)] for t in zip(*parts, strict=True))
                    return log_p, gradient * spread

                v = _climb(value, u / spread, num_steps)
                elbo, v, tril = _normals(value, _highest(value, v, num_modes), num_newton)
                fit: tuple[Tensor, ...] = elbo, v * spread, spread[..., None] * tril
                if wide_share:
                    fit = _and_as_wide_as(prior.mean(0), spread, *fit)
                fits.append([t.transpose(0, 1)[: len(rows)] for t in fit])
                report()
    elbo, loc, tril = (torch.cat(t) for t in zip(*fits, strict=True))
    return mixture_of(guide, sites, data, elbo, loc, tril, wide_share=wide_share)


def _and_as_wide_as(mean: Tensor, spread: Tensor, elbo: Tensor, loc: Tensor, tril: Tensor) -> tuple[Tensor, ...]:
    """Fits (modes, data, *), and a normal with this mean and spread (data, size), which is none."""
    wide = torch.full_like(elbo[0], -math.inf), mean, spread.diag_embed()
    return tuple(torch.cat([t, last[None]]) for t, last in zip((elbo, loc, tril), wide, strict=True))


def _climb(value: Value, v: Tensor, num_steps: int) -> Tensor:
    """Where Adam gets from v (starts, data, size) in so many steps."""
    v = v.clone()
    adam = torch.optim.Adam([v], lr=RATE, betas=(0.9, 0.95))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, num_steps)
    for _ in range(num_steps):
        v.grad = -value(v)[1].nan_to_num(nan=0.0)
        adam.step()
        cosine.step()
    return v


def _highest(value: Value, v: Tensor, num_modes: int) -> Tensor:
    """So many of the places v (starts, data, size), the highest first, of two that are close the higher one: if there
    are fewer, the lower one too."""
    log_p, chosen = value(v)[0].nan_to_num(nan=-math.inf), []
    for _ in range(min(num_modes, len(v))):
        at = log_p.argmax(0)[None]
        chosen.append(v.gather(0, at[..., None].expand(-1, -1, v.shape[-1])))
        is_near = (v - chosen[-1]).square().mean(-1) < APART**2
        log_p = (log_p - 1e6 * is_near).scatter(0, at, -math.inf)
    return torch.cat(chosen)


def _normals(value: Value, v: Tensor, num_newton: int) -> tuple[Tensor, Tensor, Tensor]:
    """ELBO (-inf for what diverged), mean and Cholesky factor of normals, (modes, data, *), that begin at v."""
    modes, num_data, size = v.shape
    unit = torch.eye(size).to(v).expand(modes, num_data, -1, -1)
    tril, precision, ok = FIRST_WIDTH * unit, unit, torch.ones_like(v[..., 0], dtype=torch.bool)
    for number in range(num_newton):
        # first at one standard deviation, for the width is not known yet
        radius, share = (1.0, 1.0) if number == 0 else (math.sqrt(size), 1.0 if number == 1 else 0.5)
        rotation = torch.linalg.qr(torch.randn(size, size, device=v.device))[0].to(v)
        steps = radius * (tril @ rotation)
        points = v + torch.cat([steps, -steps], -1).permute(3, 0, 1, 2)  # (2 size, modes, data, size)
        log_p, gradient = value(points.flatten(0, 1))
        log_p, gradient = log_p.unflatten(0, (-1, modes)).mean(0), gradient.unflatten(0, (-1, modes))
        change = (gradient[:size] - gradient[size:]).permute(1, 2, 3, 0) / 2  # Hessian times each step
        curvature = -torch.linalg.solve_triangular(tril, change @ rotation.T / radius, upper=False, left=False)
        ok = ok & curvature.isfinite().all(-1).all(-1) & gradient.isfinite().all(-1).all(0) & log_p.isfinite()
        curvature = curvature.where(ok[..., None, None], unit)
        precision = (1 - share) * precision + share * (curvature + curvature.mT) / 2
        eigenvalues, V = torch.linalg.eigh(precision)
        covariance = V @ (V / eigenvalues.clamp(min=LEAST_PRECISION)[..., None, :]).mT
        shift = (covariance @ gradient.mean(0).where(ok[..., None], 0.0)[..., None])[..., 0]
        length = shift.square().mean(-1, keepdim=True).sqrt()
        v = v + share * shift * (LONGEST_STEP / length.clamp(min=1e-9)).clamp(max=1)
        tril = torch.linalg.cholesky(covariance)
    elbo = log_p + tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return elbo.where(ok, -math.inf), v, tril
