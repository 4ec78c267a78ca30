"""The components that there are, kind by kind, in the words of `--help`."""

from __future__ import annotations

from ppl_vae.components import Component, describe, with_defaults
from ppl_vae.data.encodings import Encoding
from ppl_vae.data.noise import Noise
from ppl_vae.experiments.architectures import KINDS, model_names
from ppl_vae.kl_weights import KLWeight
from ppl_vae.likelihoods import Likelihood
from ppl_vae.networks import Network
from ppl_vae.objectives import Objective
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
from ppl_vae.training.schedules import Schedule

BASES: dict[str, type[Component]] = {
    "network": Network,
    "likelihood": Likelihood,
    "prior": Prior,
    "posterior": Posterior,
    "encoding": Encoding,
    "objective": Objective,
    "kl_weight": KLWeight,
    "noise": Noise,
    "schedule": Schedule,
}


def components() -> dict[str, str]:
    """Each kind of component with its choices, and of networks the kinds of model that they make.

    `ppl_vae/experiments/components.json` has those of the package, so that `--help` does not wait for torch:
    `python results/render.py` writes it.
    """
    found = {name: describe(base) for name, base in BASES.items()}
    with_networks = ((with_defaults(name, kind.build), kind) for name, kind in KINDS.items() if kind.has_network)
    kinds = ", ".join(f"{name} ({kind.about})" for name, kind in with_networks)
    return found | {"model": ", ".join(model_names()), "network": f"{found['network']}. KIND is one of {kinds}"}
