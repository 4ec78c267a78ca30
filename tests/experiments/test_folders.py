from ppl_vae.experiments.folders import best_evaluation, best_evaluations
from ppl_vae.system.files import to_json, write_checked


def write(folder, method, **summary):
    stem = f"log_likelihood-{method}" if method else "log_likelihood"
    folder.mkdir(exist_ok=True)
    write_checked(folder, {f"{stem}.json": to_json({"fingerprint": "a", **summary})})


def test_the_best_evaluation_is_exact_then_the_ladders_and_has_the_guides_beside_it(tmp_path):
    assert best_evaluation(tmp_path) is None
    write(tmp_path, "", log_p=-3.0)
    guide = {"fingerprint": "a", "log_p": -3.0}
    assert best_evaluation(tmp_path) == guide
    write(tmp_path, "ladder", log_p=-2.0)
    assert best_evaluation(tmp_path) == {"fingerprint": "a", "log_p": -2.0, "guide": guide}
    write(tmp_path, "quadrature", log_p=-1.0, fingerprint="b")  # of other data it comes alone
    assert best_evaluation(tmp_path) == {"fingerprint": "b", "log_p": -1.0}
    assert best_evaluation(tmp_path, guide)["log_p"] == -2.0
    write(tmp_path, "quadrature", log_p=-1.0)
    assert best_evaluation(tmp_path, guide)["log_p"] == -1.0


def test_runs_without_a_better_one_keep_what_is_known(tmp_path):
    write(tmp_path / "x", "ladder", log_p=-2.0)
    other = {"fingerprint": "b", "log_p": -5.0}
    rows = best_evaluations({"x": {"fingerprint": "a", "log_p": -3.0}, "y": other, "z": other}, tmp_path.joinpath)
    assert [row["log_p"] for row in rows.values()] == [-2.0, -5.0, -5.0]
    assert best_evaluations({"x": other}, tmp_path.joinpath)["x"] == other
