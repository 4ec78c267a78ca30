import pytest

from ppl_vae.report.words import evaluation_lines

SUMMARY = {
    "measure": "mass",
    "space": "boolean^784",
    "bound": "lower",
    "encoding": "",
    "num_images": 1000,
    "num_samples": 16_000,
    "khat_over_limit": 0,
    **dict.fromkeys(("log_p", "mc_se", "data_se", "elbo", "reconstruction", "kl"), -1.0),
}


@pytest.mark.parametrize(("least", "K"), [(1000, "K = 1,000 to 16,000 samples"), (16_000, "K = 16,000 samples")])
def test_how_many_samples_the_data_have(least, K):
    assert K in "\n".join(evaluation_lines(SUMMARY | {"least_samples": least}, of="images of mnist"))
