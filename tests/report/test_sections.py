from ppl_vae.report.sections import verdict


def metrics(**ssim):
    def row(mean, noise):
        figure = {"mean": mean, "se": 0.001}
        return {"trained_on_noise": noise, "mse": figure, "psnr": figure, "ssim": figure}

    rows = {name.replace("_", "-"): row(mean, not name.endswith("clean")) for name, mean in ssim.items()}
    return {"denoising": {"rows": {"noisy": row(0.1, False), "PCA (3 components)": row(0.5, False), **rows}}}


def test_the_verdict_names_what_does_not_beat_pca():
    assert verdict(metrics(good=0.6)).startswith(
        "Every network is ahead of linear methods in SSIM. Not ahead in squared error: good."
    )
    assert "close" in verdict(metrics(good=0.6, close=0.5035))
    text = verdict(metrics(good=0.6, vae_clean=0.2))
    assert "Not ahead of the better linear method in SSIM: vae-clean." in text
    assert "never saw noise" in text
    assert "never saw noise" not in verdict(metrics(bad=0.2))
    assert "squared error: none" in verdict(metrics(bad=0.2))


def test_one_image_has_no_verdict():
    found = metrics(good=0.6)
    for row in found["denoising"]["rows"].values():
        row["ssim"]["se"] = None  # as in the file: one image has no error
    assert verdict(found) == "One image tells nothing of their order."
