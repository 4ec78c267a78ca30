"""Compilation leaves Pyro's param store and the compiler's settings as they were."""

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def own_store():
    config = torch._dynamo.config.get_config_copy(), torch._inductor.config.get_config_copy()
    with pyro.get_param_store().scope():
        yield
    assert (torch._dynamo.config.get_config_copy(), torch._inductor.config.get_config_copy()) == config
