"""Where the learning rate is on its way; examples of each schedule are in the docstrings."""

import pytest
import torch
from tiny import Scaled

from ppl_vae.components import create
from ppl_vae.training.fitting import fit
from ppl_vae.training.optimizers import OneOptimizer, adam
from ppl_vae.training.schedules import Cosine, Moment, Plateau, Schedule, Steps


def test_epochs_are_counted_in_steps_and_rows_as_they_come():
    rows: list = []
    steps = Steps(at=(2,), factor=0.25).warmed(2).by_step(12, per_epoch=4)
    assert [steps(step) for step in range(9)] == [0.5, 1, 1, 1, 1, 1, 1, 1, 0.25]
    plateau = Plateau(patience=2, factor=0.5).by_step(100, per_epoch=1, rows=rows, since=2)
    found = []
    for elbo in (-1, -2, -3, -4, -5, -6, -1, -1):  # the best two are of a warm-up
        rows.append({"train_elbo": elbo})
        found.append(plateau(9))
    assert found == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]


def test_the_importance_weighted_autoencoders_schedule_is_written_by_name():
    """3^i epochs at 10^(-i/7) for i = 0, ..., 7."""
    schedule = create(Schedule, "steps:at=1+4+13+40+121+364+1093,factor=0.7197")
    ends = [(3 ** (i + 1) - 1) // 2 for i in range(8)]
    assert ends[-1] == 3280
    for i, end in enumerate(ends):
        assert schedule(Moment(0, end - 0.01, [])) == pytest.approx(10 ** (-i / 7), rel=1e-3)


@pytest.mark.filterwarnings("ignore:posterior collapse")
def test_it_is_an_option_of_fit_or_of_the_optimiser():
    ends = []
    for options in (
        {"schedule": Cosine().warmed(2), "weight_decay": 0.1, "clip_norm": 0.5, "learning_rate": 0.01},
        {"optim": adam(0.01, weight_decay=0.1, clip_norm=0.5, schedule=Cosine().warmed(2))},
        {"optim": adam(0.01, weight_decay=0.1, clip_norm=0.5, schedule=Cosine().warmed(2).by_step(6))},
    ):
        pair = Scaled()
        fit(pair.model, pair.guide, torch.arange(4.0), epochs=3, batch_size=2, **options, show_progress=False)
        ends.append(pair.log_scale.item())
    assert ends[0] == ends[1] == ends[2] != 0


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: Steps(at=(0,)), "schedule steps: expected epochs from 1; got at="),
        (lambda: Steps(factor=1.0), "schedule steps: factor: expected a number between 0 and 1; got 1"),
        (lambda: Plateau(patience=0), "schedule plateau: expected patience >= 1; got 0"),
        (lambda: Plateau(factor=0.0), "schedule plateau: factor: expected a number between 0 and 1; got 0"),
        (lambda: Cosine().warmed(3).by_step(3), "schedule: expected 0 <= warm_up < num_steps; got 3 and 3"),
    ],
)
def test_what_is_out_of_range_is_refused(refused, message):
    with pytest.raises(ValueError, match=message):
        refused()


def test_outside_of_fit_there_are_no_epochs():
    p = torch.zeros(1, requires_grad=True)
    p.grad = torch.ones(1)
    with pytest.raises(ValueError, match=r"schedule: expected Cosine\(\)\.by_step\(num_steps\) outside of fit"):
        OneOptimizer(torch.optim.SGD, lr=0.1, schedule=Cosine())([p])
    with pytest.raises(ValueError, match="schedule: expected it in the optimiser"):
        fit(Scaled().model, Scaled().guide, torch.zeros(2), optim=adam(), schedule=Cosine())
