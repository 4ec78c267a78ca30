"""What is known of a state of training as it changes; that it resumes is in test_checkpoints."""

import pyro
import pytest
import torch
from torch import Generator, nn

from ppl_vae.training.optimizers import adam
from ppl_vae.training.state import TrainingState


@pytest.mark.parametrize("where", ["losses", "weight", "bare"])
def test_a_state_is_finite_if_its_losses_and_all_its_parameters_are(where):
    module = nn.ParameterDict({"weight": torch.zeros(3)})
    with pyro.get_param_store().scope():
        bare = pyro.param("bare", torch.zeros(2))
        state = TrainingState([module], adam(), Generator(), 2, torch.device("cpu"), bare=["bare"])
        assert state.is_finite()
        with torch.no_grad():
            {"losses": state.losses, "weight": module["weight"], "bare": bare}[where][1] = torch.inf
        assert not state.is_finite()
        state.restore(state.weights)
        assert state.is_finite() == (where != "losses")
