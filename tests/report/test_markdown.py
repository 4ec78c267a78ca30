from ppl_vae.report.markdown import number, unreliable


def test_what_is_not_known_is_said_to_be():
    assert [number(value) for value in (1.005, None, float("nan"))] == ["1.00", "unknown", "unknown"]
    assert unreliable({"khat_over_limit": 0, "num_images": 9}) == "0/9"
    assert unreliable({"khat_over_limit": None, "num_images": 9}) == "unknown"
