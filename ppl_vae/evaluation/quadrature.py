"""log p(x) by brute force, where z has one or two dimensions: what every estimate is measured by."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from itertools import chain

import torch
from torch import Tensor

from ppl_vae.contract import only_latent, plain_trace, raise_first, scored, support_name, support_of, tensors_of
from ppl_vae.evaluation.chunks import rows_per_chunk
from ppl_vae.programs import (
    Program,
    evaluating,
    guide_trace_of,
    log_prob_per_datum,
    model_trace_of,
    seeded,
    sum_of_sites,
    trace_of,
)
from ppl_vae.system.progress import progress

MAX_SIZE = 2
PRIOR_DRAWS = 2000  # for the box where the grid lies
BLOCK_DATA = 128
COARSE = {1: (1024, 801), 2: (64, 49)}  # cells a side, of two grids that have to agree
DOUBLINGS = 3
KEEP_NATS, KEEP_CELLS = 20.0, 64  # cells so near to a datum's best, and so many of the best, are divided
LEVELS, MAX_WIDENINGS = 16, 6
MAX_CELLS = 1 << 20  # at once, for each datum on average
NUM_STARTS, NUM_ASCENTS = 4, 50  # of the search for modes, and its steps
FARTHEST = 1e5  # half widths, of what is no escape to infinity
MISSED_NATS = 1.0  # a cell beside a mode is no further below it
EDGE = 1e-6  # share of p(x) in the outermost cells

LogF = Callable[[Tensor, Tensor], Tensor]


def log_p_by_quadrature(
    model: Program,
    x: Tensor,
    *args: Tensor,
    tolerance: float = 1e-3,
    memory: int | None = None,
    show_progress: bool = False,
) -> Tensor:
    """log p(x) of each datum, in nats, shape (data,), in double precision, by an adaptive midpoint rule,

        log p(x) ~ log sum_i p(x, z_i) h_i^d,   z_i the centers of cells of side h_i that fill a box.

    The box holds the prior, and the modes of p(x, z) that are found from it and from where p(x|z) is largest, and is
    widened while mass lies at its edge. Cells within 20 nats of a datum's best are halved until the sum changes by less
    than `tolerance` nats; it has to be the same, to ten tolerances, from a second grid, and no cell of either may be
    below a mode, or else both begin with cells of half the side, up to three times. For smooth densities the error
    falls faster than any power of h: what is returned is more exact than asked.

    Raises `ValueError` unless the model has one latent site, on all of R or R^2, for data outside of their support, and
    where the sum stays unsure: a posterior that is no density there, or far narrower than a hundred-thousandth of the
    prior. A mode that neither 2,000 draws of the prior nor an ascent of p(x|z) comes near is not seen.
    """
    data = tensors_of(model, model, x, *args)
    with evaluating(model), seeded(0):
        trace = guide_trace_of(model, *(t[:1] for t in data), num_samples=1)
        name, site = only_latent("model", trace)
        shape, support = site["value"].shape[2:], support_name(site["fn"].support)
        if shape.numel() > MAX_SIZE or support != "real":
            raise ValueError(f"site {name!r}: expected a latent site on R or R^2; got one on {support}^{shape.numel()}")
        rows = rows_per_chunk(model, model, *(t[:1] for t in data), memory=memory)
        blocks, parts = list(zip(*(t.split(BLOCK_DATA) for t in data), strict=True)), []
        for block in blocks:
            plain = plain_trace(model, *block)
            raise_first(chain(scored(plain, len(block[0])), support_of(plain)))
        with progress("log p(x) by quadrature", len(blocks), enabled=show_progress) as report:
            for block in blocks:
                parts.append(_block(model, name, shape, block, rows, tolerance))
                report()
    return torch.cat(parts)


def _block(
    model: Program, name: str, shape: torch.Size, data: tuple[Tensor, ...], rows: int, tolerance: float
) -> Tensor:
    z = guide_trace_of(model, *data, num_samples=PRIOR_DRAWS).nodes[name]["value"].reshape(-1, shape.numel())
    center, half_width = z.mean(0), (z - z.mean(0)).abs().amax(0) * 1.5
    modes, mode_log_f = _modes(model, name, shape, data, z[:NUM_STARTS])
    far = (modes - center).abs().reshape(-1, len(center))
    half_width = torch.maximum(half_width, 1.5 * far.where(far < FARTHEST * half_width, 0.0).amax(0))
    z_is_wide = False  # whether the model wants each place once for each datum

    def log_f(z: Tensor, of: Tensor) -> Tensor:
        """log p(x, z) of places z (cells, d) and the data at `of` (cells,), in double precision."""
        values = []
        for z_part, part in zip(z.split(rows), of.split(rows), strict=True):
            trace = trace_of({name: z_part.to(center.dtype).reshape(1, -1, *shape)})
            log_p = sum_of_sites(model_trace_of(model, trace, *(t[part] for t in data), num_samples=1), (1, len(part)))
            values.append(log_p[0].double())
        return torch.cat(values) if values else torch.empty(0, dtype=torch.float64)

    def log_f_of_all(z: Tensor) -> Tensor:
        """The same of each place and datum (cells, data): what depends on z alone is computed once."""
        nonlocal z_is_wide
        values = []
        for part in z.to(center.dtype).split(max(rows // len(data[0]), 1)):
            try:
                values.append(of_all(part, len(data[0]) if z_is_wide else 1))
            except (RuntimeError, ValueError):
                if z_is_wide:
                    raise
                z_is_wide = True
                values.append(of_all(part, len(data[0])))
        return torch.cat(values)

    def of_all(z: Tensor, width: int) -> Tensor:
        trace = trace_of({name: z.reshape(-1, 1, *shape).expand(-1, width, *shape)})
        log_p = sum_of_sites(model_trace_of(model, trace, *data, num_samples=len(z)), (len(z), len(data[0])))
        return log_p.double()

    def by_two_grids(cells: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The integrals of all data, and how far they are apart."""
        nonlocal half_width
        for _ in range(MAX_WIDENINGS):
            grids = [Grid(center.double(), half_width.double(), n) for n in cells]
            first, second = (grid.integral(log_f, log_f_of_all, len(data[0]), tolerance) for grid in grids)
            if all(grid.edge < EDGE for grid in grids):
                has_missed = torch.minimum(grids[0].best, grids[1].best) < mode_log_f - MISSED_NATS
                return first, (first - second).abs().nan_to_num(nan=math.inf).where(~has_missed, math.inf)
            half_width = 2 * half_width
        raise ValueError(f"p(x, z): expected mass inside of a box; got {grids[0].edge:.1e} of it at the edge")

    every, every_mode, cells = data, mode_log_f, COARSE[shape.numel()]
    log_p, apart = by_two_grids(cells)
    for _ in range(DOUBLINGS):  # of the sides of the grids, for data of which one has missed a part
        unsure = (apart >= 10 * tolerance).nonzero()[:, 0]
        if not len(unsure):
            break
        data, cells = tuple(t[unsure] for t in every), (2 * cells[0], 2 * cells[1] - 1)
        mode_log_f = every_mode[unsure]
        of_unsure = by_two_grids(cells)
        log_p, apart = (t.index_copy(0, unsure, new) for t, new in zip((log_p, apart), of_unsure, strict=True))
    if (apart >= 10 * tolerance).any():
        worst = f"{10 * tolerance:g} nats; got {apart.max():.2g} apart"
        raise ValueError(f"log p(x): expected the same from two grids, to {worst}")
    return log_p


def _modes(
    model: Program, name: str, shape: torch.Size, data: tuple[Tensor, ...], starts: Tensor
) -> tuple[Tensor, Tensor]:
    """Modes of log p(x, z) in z (modes, data, d), ascended to from `starts` (starts, d), and from where log p(x|z) is
    ascended to; and the largest log p(x, z) of each datum (data,). Of those 20 nats below it, the largest instead."""

    def log_probs(z: Tensor) -> dict[str, Tensor]:
        trace = trace_of({name: z.reshape(*z.shape[:2], *shape)})
        return log_prob_per_datum(model_trace_of(model, trace, *data, num_samples=len(z)), (len(z), len(data[0])))

    def joint(z: Tensor) -> Tensor:
        return sum(log_probs(z).values(), torch.zeros(()))

    def likelihood(z: Tensor) -> Tensor:
        return sum((log_p for site, log_p in log_probs(z).items() if site != name), torch.zeros(()))

    starts = starts[:, None].expand(-1, len(data[0]), -1)
    places = torch.cat([_ascended(joint, starts), _ascended(joint, _ascended(likelihood, starts))])
    log_f = joint(places.where(places.isfinite(), 0.0)).where(places.isfinite().all(-1), -math.inf)
    best, where = log_f.nan_to_num(nan=-math.inf).max(0)
    of_best = places.gather(0, where[None, :, None].expand(1, -1, places.shape[-1]))
    return places.where((log_f > best - KEEP_NATS)[..., None], of_best), best


def _ascended(log_f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """The places that quasi-Newton steps come to, of which none is sure to be a maximum."""
    z = z.clone().requires_grad_()
    optim = torch.optim.LBFGS([z], max_iter=NUM_ASCENTS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        z.grad = None
        negative = -log_f(z).sum()
        if negative.requires_grad:
            negative.backward()
        return negative

    with torch.enable_grad(), suppress(IndexError):  # of a line search that meets no finite loss
        optim.step(loss)
    return z.detach()


class Grid:
    """A box of cells. `edge` is the largest share of p(x), over the data, of the outermost ones, and `best` the largest
    log p(x, z) of each datum."""

    def __init__(self, center: Tensor, half_width: Tensor, cells: int):
        size = len(center)
        axis = (torch.arange(cells, device=center.device, dtype=torch.float64) + 0.5) / cells * 2 - 1
        unit = torch.cartesian_prod(*[axis] * size).reshape(-1, size)
        self.z, self.side = center + half_width * unit, 2 * half_width / cells
        self.is_outer = unit.abs().amax(-1) > 1 - 1.5 / cells
        self.edge, self.best = 0.0, torch.empty(0)
        self.corners = torch.cartesian_prod(
            *[torch.tensor([-0.25, 0.25], dtype=torch.float64, device=center.device)] * size
        ).reshape(-1, size)

    def integral(
        self, log_f: LogF, log_f_of_all: Callable[[Tensor], Tensor], num_data: int, tolerance: float
    ) -> Tensor:
        size = self.z.shape[1]
        values, log_area, side = log_f_of_all(self.z), self.side.log().sum(), self.side
        self.best = values.amax(0)
        estimate = values.logsumexp(0) + log_area
        self.edge = (values[self.is_outer].logsumexp(0) + log_area - estimate).exp().max().item()
        nth = values.topk(min(KEEP_CELLS, len(values)), 0).values[-1]
        keep = (values > values.amax(0) - KEEP_NATS) | (values >= nth)
        settled = values.where(~keep, -math.inf).logsumexp(0) + log_area  # of cells that are not divided any more
        place, of = keep.nonzero(as_tuple=True)
        z = self.z[place]
        result = torch.full_like(estimate, math.nan)
        for _ in range(LEVELS):
            z = (z[:, None] + self.corners * side).reshape(-1, size)
            of = of.repeat_interleave(len(self.corners))
            side, log_area = side / 2, log_area - size * math.log(2)
            if len(z) > MAX_CELLS * num_data:
                break
            values = log_f(z, of)
            best = torch.full_like(estimate, -math.inf).scatter_reduce(0, of, values, "amax")
            self.best = torch.maximum(self.best, best)
            relative = (values - best[of]).exp()
            new = torch.logaddexp(settled, best + torch.zeros_like(best).index_add(0, of, relative).log() + log_area)
            active = torch.zeros_like(best, dtype=torch.bool).index_fill(0, of, True)
            done = active & ((new - estimate).abs() < tolerance)
            result, estimate = new.where(done, result), new.where(active, estimate)
            keep = ((values > best[of] - KEEP_NATS) | (_rank(values, of, num_data) < KEEP_CELLS)) & ~done[of]
            dropped = torch.zeros_like(best).index_add(0, of, relative * ~keep)
            settled = torch.logaddexp(settled, best + dropped.log() + log_area)
            z, of = z[keep], of[keep]
            if not len(z):
                return result
        return result


def _rank(values: Tensor, of: Tensor, num_data: int) -> Tensor:
    """Of each value among those of its datum, from 0 for the largest."""
    order = values.argsort(descending=True)
    order = order[of[order].argsort(stable=True)]  # by datum, the largest first
    counts = torch.bincount(of, minlength=num_data)
    first = counts.cumsum(0) - counts
    return torch.empty_like(of).index_put((order,), torch.arange(len(of), device=of.device) - first[of[order]])
