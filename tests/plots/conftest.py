import pytest
from matplotlib.axes import Axes

from ppl_vae import plots


@pytest.fixture
def ax() -> Axes:
    return plots.figure(4, 3)[1]
