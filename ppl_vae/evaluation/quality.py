"""How good a model's samples are, beside its likelihood, which is another question: fidelity and diversity."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ppl_vae.system.progress import progress

CHUNK = 256  # rows of a kernel at a time


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error, over the choice of data and samples."""

    value: float
    se: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.se:.4f}"


@dataclass(frozen=True)
class SampleQuality:
    """Figures of samples against data, of features: they compare only within one set of features and one number of
    data and of samples.

    - `precision`: the share of samples that are within reach of the data, `recall` the share of data within reach of
      the samples. A set reaches as far around each of its points as to that point's k-th neighbour in the set;
    - `density`: in how many of the data's balls a sample is, over k, 1 in expectation for samples of the data's
      own distribution; `coverage`: the share of the data's balls that have a sample in them. Both take no ball around a
      sample, of which one far off would reach over everything;
    - `frechet`: the squared Fréchet (2-Wasserstein) distance of the normals with mean and covariance of the two sets,
      0 at best; too large by what falls as 1 / number;
    - `kernel`: the squared maximum mean discrepancy under k(x, y) = (x . y / D + 1)^3, unbiased, so that it may fall
      below 0.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    frechet: Estimate
    kernel: Estimate

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name)}" for field in dataclasses.fields(self))


def sample_quality(
    data: Tensor,
    samples: Tensor,
    *,
    num_neighbours: int = 5,
    num_halves: int = 30,
    seed: int = 0,
    show_progress: bool = False,
) -> SampleQuality:
    """Precision, recall, density, coverage, Fréchet distance and kernel distance of samples to data, each with its
    standard error, from their features (data, *features) and (samples, *features).

    The error is the spread over `num_halves` random halves of both sets, without replacement: of a mean over N, that of
    a half has the variance s^2 / (N / 2) (1 - 1/2) = s^2 / N. A bootstrap with replacement would not do, for a copy is
    its own nearest neighbour, and its kernel no pair's. Where both sets are of one distribution the kernel distance
    varies less, and its error is up to sqrt 3 times too large. The model is the one at hand: of training again, and of
    other features, it says nothing.

    Tuomas Kynkäänniemi and others: Improved Precision and Recall Metric for Assessing Generative Models, 2019,
    arXiv:1904.06991. Muhammad Ferjad Naeem and others: Reliable Fidelity and Diversity Metrics for Generative Models,
    2020, arXiv:2002.09797. Martin Heusel and others: GANs Trained by a Two Time-Scale Update Rule, 2017,
    arXiv:1706.08500. Mikołaj Bińkowski and others: Demystifying MMD GANs, 2018, arXiv:1801.01401.

    Time and memory grow as the square of the number: 5,000 of each take half a minute of one core and 1 GB. Raises
    `ValueError` for features that differ in size or are not finite, for less than 2 (num_neighbours + 1) of either set,
    and for num_neighbours < 1 or num_halves < 2.

    >>> x = torch.arange(12.0)[:, None]
    >>> sample_quality(x, x + 100, num_neighbours=2).precision.value
    0.0
    """
    if num_neighbours < 1 or num_halves < 2:
        raise ValueError(
            f"expected num_neighbours of at least 1 and num_halves of at least 2; got {num_neighbours}, {num_halves}"
        )
    x, y = (t.detach().flatten(1).double() for t in (data, samples))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"samples: expected features of the size of the data's, {x.shape[1]}; got {y.shape[1]}")
    for name, t in (("data", x), ("samples", y)):
        if len(t) < 2 * (num_neighbours + 1):
            raise ValueError(
                f"{name}: expected at least {2 * (num_neighbours + 1)}, for halves with {num_neighbours} neighbours; "
                f"got {len(t)}"
            )
        if not bool(t.isfinite().all()):
            raise ValueError(f"{name}: expected finite features; got NaN or an infinite one")
    generator = Generator().manual_seed(seed)
    in_x, in_y = (_all_and_halves(len(t), num_halves, generator).to(t.device) for t in (x, y))
    parts = []
    with progress("sample quality", num_halves + 5, enabled=show_progress) as report:
        kernel = kernel_distances(x, y, in_x, in_y)
        report()
        for number, (i, j) in enumerate(zip(in_x.T, in_y.T, strict=True)):
            x_i, y_j = x[i], y[j]
            parts.append([*_of_neighbours(x_i, y_j, num_neighbours), frechet_distance(x_i, y_j)])
            report(1 if number else 4)
    figures = torch.cat([torch.tensor(parts, dtype=torch.float64), kernel.cpu()[:, None]], 1)
    return SampleQuality(*map(Estimate, figures[0].tolist(), figures[1:].std(0).tolist()))


def _all_and_halves(number: int, num_halves: int, generator: Generator) -> Tensor:
    """Which of so many are in each set, (number, 1 + num_halves): all in the first, a random half in each other."""
    order = torch.rand(number, num_halves, generator=generator).argsort(0)
    return torch.cat([torch.ones(number, 1, dtype=torch.bool), order < number // 2], 1)


def _of_neighbours(x: Tensor, y: Tensor, k: int) -> list[Tensor]:
    """Precision, recall, density and coverage, of features (data, D) and (samples, D)."""
    x, y = ((t - x.mean(0)).float() for t in (x, y))  # in half the time; distances need no more digits
    distance = torch.cdist(x, y)
    in_balls = distance <= _radii(x, k)[:, None]  # the data's
    recall = (distance <= _radii(y, k)).any(1).double().mean()
    density = in_balls.sum() / (k * len(y))
    return [in_balls.any(0).double().mean(), recall, density, in_balls.any(1).double().mean()]


def _radii(x: Tensor, k: int) -> Tensor:
    """From each point (N, D) to its k-th neighbour among the others, (N,)."""
    return torch.cdist(x, x).fill_diagonal_(torch.inf).topk(k, largest=False).values[:, -1]


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), shape (), of means and covariances of (N, D) and (M, D)."""
    S_x, S_y = (torch.cov(t.T).reshape(t.shape[1], -1) for t in (x, y))
    values, V = torch.linalg.eigh(S_x)
    root = V * values.clamp(min=0).sqrt() @ V.T
    trace = torch.linalg.eigvalsh(root @ S_y @ root).clamp(min=0).sqrt().sum()  # of (S_x S_y)^(1/2)
    return (x.mean(0) - y.mean(0)).square().sum() + S_x.trace() + S_y.trace() - 2 * trace


def kernel_distances(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j), of features (N, D) and (M, D):
    without bias the squared MMD of the distributions that they are of, k(x, y) = (x . y / D + 1)^3.

    Of each of several subsets, (subsets,): `in_x` (N, subsets) and `in_y` (M, subsets) say who is in them.
    """
    x, y, in_x, in_y = x.double(), y.double(), in_x.double(), in_y.double()

    def total(a: Tensor, b: Tensor, in_a: Tensor, in_b: Tensor) -> Tensor:
        rows = zip(a.split(CHUNK), in_a.split(CHUNK), strict=True)
        parts = [(in_rows * ((part @ b.T / b.shape[1] + 1) ** 3 @ in_b)).sum(0) for part, in_rows in rows]
        return torch.stack(parts).sum(0)

    def within(t: Tensor, in_t: Tensor) -> Tensor:
        itself = (t.square().mean(1) + 1) ** 3 @ in_t
        n = in_t.sum(0)
        return (total(t, t, in_t, in_t) - itself) / (n * (n - 1))

    between = total(x, y, in_x, in_y) / (in_x.sum(0) * in_y.sum(0))
    return within(x, in_x) + within(y, in_y) - 2 * between
