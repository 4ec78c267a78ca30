import dataclasses

import pytest
import torch
from small_runs import CONFIG, SMALL, quiet_train

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.evaluating import load_evaluation, save_evaluation
from ppl_vae.experiments.exact import integrate_run


def test_ppca_in_closed_form(tmp_path, dataset):
    run = quiet_train(TrainConfig(model="ppca", **SMALL), tmp_path / "run", dataset)
    result, summary = integrate_run(run, num_images=3, seed=1)
    exact = run.model.log_prob(run.observe.frozen(dataset.test[:3], 1)[0]).double()
    torch.testing.assert_close(result.log_p, exact, rtol=1e-6, atol=1e-3)
    assert (summary["mc_se"], summary["khat_over_limit"]) == (0.0, 0)
    assert summary["elbo"] < summary["log_p"] + 5 * summary["elbo_mc_se"]
    save_evaluation(tmp_path / "run", result, summary, method="quadrature")
    assert torch.equal(load_evaluation(tmp_path / "run", "quadrature").log_p, result.log_p)


def test_more_dimensions_have_no_grid(tmp_path, dataset):
    run = quiet_train(dataclasses.replace(CONFIG, latent_size=3), tmp_path / "run", dataset)
    with pytest.raises(ValueError, match=r"expected a latent site on R or R\^2; got one on real\^3"):
        integrate_run(run, num_images=3)
