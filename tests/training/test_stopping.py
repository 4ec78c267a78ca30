"""Early stopping, on a script of validation ELBOs: the epochs are the steps of another run that is made of fewer."""

import math

import pytest
import torch
from tiny import tiny_images, tiny_vae

from ppl_vae.kl_weights import LinearWarmUp
from ppl_vae.objectives import Elbo
from ppl_vae.training import fitting
from ppl_vae.training.fitting import fit
from ppl_vae.training.history import DivergedError
from ppl_vae.training.optimizers import OneOptimizer
from ppl_vae.training.schedules import Plateau

pytestmark = pytest.mark.filterwarnings("ignore:posterior collapse")  # of noise there is nothing to learn

X = (tiny_images(20) > 127).float()


def trained(monkeypatch=None, elbos=(), vae=None, **options):
    """A tiny VAE's weights and its history, with these ELBOs of the validation data if there are some."""
    vae = vae or tiny_vae(event_shape=(1, 6, 6))
    if elbos:
        script = iter(elbo for validation in elbos for elbo in (0.0, validation))
        monkeypatch.setattr(fitting, "mean_parts", lambda *args: {"elbo": next(script)})
    options = {"validation": X[:5], "batch_size": 10, "epochs": 9, **options}
    history = fit(vae.model, vae.guide, X, **options, show_progress=False)
    return torch.nn.utils.parameters_to_vector(vae.parameters()).detach(), history


@pytest.mark.parametrize(
    ("patience", "elbos", "epochs", "best"),
    [
        (2, [-9, -7, -8, -7, -5], 4, 2),  # an equal one is not better
        (3, [math.nan, -7, -8, -7, -5, -6, math.nan, -5.5, -1], 8, 5),
        (9, [-1, -2, -3, -4, -5, -6, -7, -8, -9], 9, 1),
    ],
)
@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_patience_counts_and_the_weights_are_those_of_the_best_epoch(
    patience, elbos, epochs, best, ema_decay, monkeypatch
):
    weights, history = trained(monkeypatch, elbos, patience=patience, ema_decay=ema_decay)
    monkeypatch.undo()
    assert (len(history), history.best_epoch) == (epochs, best)
    shorter, _ = trained(epochs=best, ema_decay=ema_decay)
    assert torch.equal(weights, shorter)


def test_the_warm_up_of_the_kl_is_not_counted(monkeypatch):
    objective = Elbo().weighted(LinearWarmUp(epochs=3))
    _, history = trained(monkeypatch, [-1, -2, -3, -4, -5, -6], patience=2, elbo=objective)
    assert objective.kl_weight.warm_up == 6  # steps, two an epoch
    assert (len(history), history.best_epoch) == (5, 1)
    assert objective.kl_weight.beta(torch.tensor(3)) == 0.5


def test_a_plateau_lowers_the_learning_rate(monkeypatch):
    optim, rates = OneOptimizer(torch.optim.SGD, lr=1e-3, schedule=Plateau(patience=2, factor=0.5)), []
    metrics = lambda row: rates.append(optim.optimizer.param_groups[0]["lr"])  # noqa: E731
    trained(monkeypatch, [-9, -7, -8, -7, -6, -7, -8], optim=optim, epochs=7, metrics=metrics)
    assert rates == [1e-3] * 4 + [5e-4] * 3


def test_a_run_that_diverges_leaves_the_best_weights(monkeypatch):
    calls = iter(range(100))

    def poisoned(x, generator=None):  # two of what is monitored, three batches that are checked, and two epochs' steps
        return (x * math.nan if next(calls) > 9 else x,)

    vae = tiny_vae(event_shape=(1, 6, 6))
    with pytest.raises(DivergedError, match=r"epoch 3, .* The weights are those after epoch 1") as error:
        trained(monkeypatch, [-1, -2, -3], vae, patience=9, encode=poisoned)
    assert error.value.history.best_epoch == 1
    monkeypatch.undo()
    weights, _ = trained(epochs=1)
    assert torch.equal(torch.nn.utils.parameters_to_vector(vae.parameters()), weights)


def test_it_needs_validation_data_and_patience():
    with pytest.raises(ValueError, match="patience: expected validation data beside it, whose ELBO decides; got none"):
        trained(patience=3, validation=None)
    with pytest.raises(ValueError, match="patience: expected a number above 0; got 0"):
        trained(patience=0)
