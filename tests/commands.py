"""Commands on little data, and what they say."""

TINY = ["--hidden", "8", "--latent-size", "2", "--epochs", "1", "--batch-size", "16", "--train-images", "60"]


def one_line(err):
    assert err.startswith("ppl-vae: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert "tyro" not in err
    return err
