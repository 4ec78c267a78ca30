from ppl_vae.report.tables import denoising_table, likelihood_table


def metrics(ssim, se=0.001):
    """Of a network alone, as in a study's file."""
    figure = {"mean": ssim, "se": se}
    return {"denoising": {"rows": {"net": {"trained_on_noise": True, "mse": figure, "psnr": figure, "ssim": figure}}}}


def test_tables_show_the_numbers():
    table = denoising_table(metrics(0.61234))
    assert "| net | noisy → clean | 0.61234 ± 0.00100 | 0.61 ± 0.00 | 0.6123 ± 0.0010 |" in table
    row = {
        "likelihood": "bernoulli",
        "measure": "mass",
        "log_p": -90.126,
        "mc_se": 0.1,
        "data_se": 0.2,
        "elbo": -95,
        "reconstruction": -70,
        "kl": 25,
        "khat_over_limit": 3,
        "num_images": 9,
    }
    assert "| vae | bernoulli | mass | -90.13 | 0.10 | 0.20 | 3/9 | -95.00 | -70.00 | 25.00 |" in likelihood_table(
        {"log_likelihood": {"vae": row}}
    )
    exact = row | {"bound": "exact (by quadrature)", "mc_se": 0.0, "khat_over_limit": 0}
    assert "| -90.13 | exact | 0.20 | — | -95.00 | -70.00 | 25.00 |" in likelihood_table(
        {"log_likelihood": {"2d": exact}}
    )
    ladder = row | {"log_p": -88.5, "khat_over_limit": 0, "gap": 0.0031, "gap_se": 0.002, "guide": row}
    lines = likelihood_table({"log_likelihood": {"vae": ladder, "other": row}}).splitlines()
    assert "| -88.50 | 0.10 | 0.20 | 0/9 | 0.003 ± 0.002 | -90.13 | 3/9 | -95.00 |" in lines[2]
    assert "| -90.13 | 0.10 | 0.20 | 3/9 | — | -90.13 | 3/9 | -95.00 |" in lines[3]


def test_an_error_that_is_not_known_is_said_to_be():
    assert "| 0.6000 ± unknown |" in denoising_table(metrics(0.6, se=None))  # as in the file: one image has no error
