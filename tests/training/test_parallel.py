"""Several ranks against one process: the same weights, whoever resumes, and a line where one is lost."""

import pyro.distributions as dist
import pytest
import torch
from ranks import REFUSED, WAYS, assert_same, hanging, in_all_ways, killed, refusals, run_ranks, train
from torch import nn
from torch.distributions import MixtureSameFamily
from torch.nn.functional import dropout

from ppl_vae.programs import seeded
from ppl_vae.training.checkpoints import Checkpoints
from ppl_vae.training.history import Stopped
from ppl_vae.training.parallel import _OfRows, _Recorded

NUM_PARTICLES, NUM_ROWS = 3, 7


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder, steps = tmp_path_factory.mktemp("ranks"), iter(range(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda graph, **options: graph)
        with pytest.raises(Stopped):
            train(compiled=True, checkpoints=Checkpoints(folder / "of one"), stop=lambda: next(steps) == 5)
    results, said = run_ranks(in_all_ways, folder / "two", folder)
    assert said == ""
    for error in (result for result in results if isinstance(result, Exception)):
        raise error
    return folder, results


@pytest.fixture(scope="module")
def of_one():
    return {objective: train(objective=objective) for objective, _ in WAYS}


@pytest.mark.parametrize("way", range(len(WAYS)), ids=[f"{o}-{'compiled' * c or 'eager'}" for o, c in WAYS])
def test_ranks_end_where_one_process_does(way, of_two, of_one):
    for ways, _, _ in of_two[1]:
        assert_same(ways[way], of_one[WAYS[way][0]])


def test_ranks_resume_what_one_process_began(of_two, of_one):
    for _, resumed, _ in of_two[1]:
        assert_same(resumed, of_one["elbo"])


def test_one_process_resumes_what_ranks_began_that_stopped_together(of_two, of_one):
    folder, results = of_two
    assert {said for *_, said in results} == {"stopped in epoch 2 of 3, after 2 of 4 steps"}  # two after it was told
    assert_same(train(seed=9, checkpoints=Checkpoints(folder / "of two"), resume=True), of_one["elbo"])


def test_what_takes_the_data_together_is_refused_in_a_line(tmp_path):
    results, errors = run_ranks(refusals, tmp_path / "two")
    assert errors == ""
    for said in results:
        assert said.keys() == REFUSED.keys()
        for name, line in said.items():
            assert line.startswith("process_group: expected ")
            assert name in line
            assert "\n" not in line


def test_a_rank_that_is_killed_ends_the_other_with_its_name_and_a_good_checkpoint(tmp_path, of_one):
    checkpoints = Checkpoints(tmp_path / "run")
    (lost, nothing), _ = run_ranks(killed, tmp_path / "two", checkpoints.folder)
    assert isinstance(lost, ConnectionError)
    assert str(lost) == "rank 1 of 2 ended: no sign of life for 8 s"
    assert nothing is None
    assert checkpoints.paths()[0] == checkpoints.path(6)
    assert_same(train(seed=9, checkpoints=checkpoints, resume=True), of_one["elbo"])


def test_a_rank_that_waits_for_one_that_left_ends_with_its_error(tmp_path):
    (nothing, error), said = run_ranks(hanging, tmp_path / "two")
    assert nothing is None
    assert isinstance(error, OSError)
    assert said == "ppl-vae: error: rank 1 of 2 ended: its disk is full\n"


def channels_last(x):
    """Filled in another order than that of its dims."""
    return dropout(x[:, :, None, None].expand(-1, -1, 2, 3).contiguous(memory_format=torch.channels_last))


def particles(fn):
    """Draws in the plates of particles and data."""
    return lambda x: fn(x).expand([NUM_PARTICLES, len(x)]).sample()


DRAWS = {
    "normal": particles(lambda x: dist.Normal(x, 1.0).to_event(1)),
    "bernoulli": particles(lambda x: dist.Bernoulli(x).to_event(1)),
    "categorical": particles(lambda x: dist.Categorical(x)),
    "categorical by dimension": particles(lambda x: dist.Categorical(torch.stack([x, 1 - x], -1)).to_event(1)),
    "mixture": particles(lambda x: MixtureSameFamily(dist.Categorical(x), dist.Normal(x, 1.0))),
    "multivariate": particles(lambda x: dist.MultivariateNormal(x, torch.eye(4))),
    "low rank": particles(lambda x: dist.LowRankMultivariateNormal(x, x[..., None], x)),
    "laplace": particles(lambda x: dist.Laplace(x, 1.0).to_event(1)),
    "one for all, and dropout": lambda x: dropout(x) + torch.randn(1, 4),
    "channels last": channels_last,
    "whole numbers": lambda x: torch.randint(9, x.shape),
    "no draw": lambda x: nn.functional.scaled_dot_product_attention(*[x.reshape(-1, 1, 2, 2)] * 3),
}


@pytest.mark.parametrize("name", DRAWS)
def test_ranks_draw_their_rows_of_what_the_whole_batch_draws(name):
    draw, x = DRAWS[name], torch.rand(NUM_ROWS, 4, generator=torch.Generator().manual_seed(0))
    with seeded(1), _Recorded() as recorded:
        whole, after = draw(x), torch.rand(())
    parts = []
    for rows in (range(3), range(3, NUM_ROWS)):
        with seeded(1), _OfRows([*recorded.draws], rows, NUM_ROWS, NUM_PARTICLES):
            parts.append(draw(x[rows.start : rows.stop]))
            assert torch.rand(()) == after  # and as much is drawn
    assert torch.cat(parts, 1 if len(whole) == NUM_PARTICLES else 0).equal(whole)


def test_a_program_that_draws_otherwise_than_on_the_whole_batch_is_refused():
    with seeded(0), _Recorded() as recorded:
        torch.randn(NUM_ROWS, 2)
    rows = _OfRows(recorded.draws, range(3), NUM_ROWS, NUM_PARTICLES)
    with rows, pytest.raises(ValueError, match=r"process_group: .* got another rand, of shape \(3, 2\)"):
        torch.rand(3, 2)
