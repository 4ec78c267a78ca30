"""How far the stated errors of log p(x) hold: estimates against exact values, for good guides and bad ones.

    python results/calibration/run.py [--data-dir FOLDER_OF_MNIST]

On linear-Gaussian data with ten latent dimensions and with fifty, and on the study's VAE of two against quadrature. It
takes some minutes and writes calibration.json here; `python results/render.py` makes a table of it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import ppl_vae as pv
from ppl_vae.evaluation.results import LogLikelihood, PerDatum
from ppl_vae.experiments.evaluating import held_out
from ppl_vae.experiments.runs import versions
from ppl_vae.programs import seeded
from ppl_vae.system.files import write_json

HERE = Path(__file__).parent
NUM_DATA, NOISE = 400, 0.5
SIZE, LARGE = 10, 50  # latent dimensions, with twice as many of x and two
SAMPLES = (50, 200, 1000)
ROUNDING = 1e-5  # nats, of float32: an error below it is none
GUIDES = {  # shift of the mean and factor on the standard deviations, in those of the exact posterior
    "exact": (0.0, 1.0),
    "wide": (0.0, 1.5),
    "narrow": (0.0, 0.6),
    "shifted": (1.0, 1.0),
    "mean field": (0.0, None),
}

Estimator = Callable[..., LogLikelihood]


class Linear:
    """z ~ N(0, I), x = W z + 0.5 e, and a guide around the exact posterior."""

    def __init__(self, guide: str, size: int = SIZE, factor: float = 1.0):
        self.size, self.dims = size, 2 * size + 2
        with seeded(0):
            self.W = factor * torch.randn(self.dims, size)
        self.covariance = torch.linalg.inv(torch.eye(size) + self.W.T @ self.W / NOISE**2)
        self.shift, self.width = GUIDES[guide]

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.size), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.W.T, NOISE).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        std = self.covariance.diag().sqrt()
        mean = x @ self.W @ self.covariance / NOISE**2 + self.shift * std / math.sqrt(self.size)
        with pyro.plate("data", len(x), dim=-1):
            if self.width is None:  # the diagonal normal of least KL(q || p)
                pyro.sample("z", dist.Normal(mean, torch.linalg.inv(self.covariance).diag().rsqrt()).to_event(1))
            else:
                pyro.sample("z", dist.MultivariateNormal(mean, self.width**2 * self.covariance))

    def log_p(self, x: Tensor) -> Tensor:
        covariance = (self.W @ self.W.T + NOISE**2 * torch.eye(self.dims)).double()
        return torch.distributions.MultivariateNormal(torch.zeros(self.dims).double(), covariance).log_prob(x.double())

    def data(self) -> Tensor:
        with seeded(1):
            return torch.randn(NUM_DATA, self.size) @ self.W.T + NOISE * torch.randn(NUM_DATA, self.dims)


def estimators(num_samples: int) -> dict[str, Estimator]:
    """Each of about so many samples for each datum."""
    steps = max(num_samples // 10, 10)
    return {
        "importance": lambda *a: pv.log_likelihood(*a, num_samples=num_samples),
        "ladder": lambda *a: pv.log_likelihood_within(*a, num_samples=num_samples),
        "annealing": lambda *a: pv.annealed_log_likelihood(*a, num_chains=16, num_steps=steps),
        "tolerance": lambda *a: pv.log_likelihood_within(*a, num_samples=num_samples, tolerance=0.1),
    }


def row(of: str, guide: str, method: str, num_samples: int, estimate: PerDatum, exact: Tensor, **more: Any) -> dict:
    error = estimate.values - exact
    z = error / estimate.mc_se
    found = {
        "data": of,
        "guide": guide,
        "method": method,
        "num_samples": num_samples,
        "num_data": len(error),
        "mean_error": error.mean().item(),
        "mean_error_se": error.std().item() / math.sqrt(len(error)),
        "rms_error": error.square().mean().sqrt().item(),
        "sd_of_z": z.std().item() if estimate.mc_se.median() > ROUNDING else None,
        "coverage": ((error.abs() <= 1.96 * estimate.mc_se + ROUNDING).double().mean()).item(),
        **more,
    }
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}, flush=True)
    return found


def share_over(result: LogLikelihood) -> float | None:
    return None if result.num_unreliable is None else result.num_unreliable / len(result)


def linear_rows() -> Iterator[dict]:
    pairs = {guide: Linear(guide) for guide in GUIDES}
    other, x = Linear("wide", factor=1.1), pairs["exact"].data()
    for guide, pair in pairs.items():
        exact = pair.log_p(x)
        for K in SAMPLES:
            for method, estimate in estimators(K).items():
                result = estimate(pair.model, pair.guide, x)
                over = share_over(result)
                yield row(f"linear, {SIZE}-d", guide, method, K, PerDatum.of(result), exact, over_limit=over)
                if method == "importance":
                    # of other samples: those of one seed would miss both by the same
                    theirs = pv.log_likelihood(other.model, other.guide, x, num_samples=K, seed=1)
                    difference = PerDatum.of(result) - PerDatum.of(theirs)
                    truth = exact - other.log_p(x)
                    yield row(f"linear, {SIZE}-d", guide, "compare", K, difference, truth, over_limit=over)


def large_rows() -> Iterator[dict]:
    K = SAMPLES[-1]
    for guide in ("wide", "narrow", "shifted"):
        pair = Linear(guide, size=LARGE)
        x = pair.data()
        exact = pair.log_p(x)
        for method in ("importance", "ladder"):
            result = estimators(K)[method](pair.model, pair.guide, x)
            over = share_over(result)
            yield row(f"linear, {LARGE}-d", guide, method, K, PerDatum.of(result), exact, over_limit=over)


def vae_rows(data_dir: Path | None) -> Iterator[dict]:
    run = pv.load_run(HERE.parent / "study/mnist/dense-vae-2d", data_dir=data_dir)
    data, _ = held_out(run, 100, 0)
    exact = pv.log_p_by_quadrature(run.programs[0], *data)
    for K in SAMPLES:
        for method, estimate in estimators(K).items():
            result = estimate(*run.programs, *data)
            over = share_over(result)
            yield row("VAE, two latents", "its own", method, K, PerDatum.of(result), exact, over_limit=over)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="where torchvision's MNIST is")
    options = parser.parse_args()
    rows = [*linear_rows(), *large_rows(), *vae_rows(options.data_dir)]
    write_json(HERE / "calibration.json", {"rows": rows, "interval": 0.95, "seed": 0, "versions": versions()})


if __name__ == "__main__":
    main()
