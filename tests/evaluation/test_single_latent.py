from __future__ import annotations

import re
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from linear_pairs import X, program, standard

from ppl_vae.evaluation.information import active_units, aggregate_posterior

NORMAL = standard(2)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (program(("a", NORMAL), ("b", NORMAL)), "the guide: expected one latent site; got 'a', 'b'"),
        (program(), "the guide: expected one latent site; got none"),
        (program(("z", lambda x: dist.Poisson(torch.ones(2)).to_event(1))), "site 'z': expected a reparameterised"),
        (program(("z", lambda x: dist.LogNormal(torch.ones(2), 1.0).to_event(1))), "distribution on the reals; got"),
    ],
)
def test_refuses_guides_without_one_real_latent_site(guide: Callable[..., None], message: str):
    model = program(("z", NORMAL))
    for call in (
        lambda: active_units(guide, X),
        lambda: aggregate_posterior(model, guide, X),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
