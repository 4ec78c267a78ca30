import json
import shutil

from ppl_vae.report.page import write_page
from ppl_vae.report.warnings import warnings_of
from ppl_vae.system.files import write_json


def test_warnings_are_at_the_top(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["last_epoch"]["validation_kl"] = 0.004
    write_json(copy / "metrics.json", metrics)
    (copy / "checksums.json").unlink()
    summary = json.loads((copy / "log_likelihood.json").read_text())
    changed = {"khat_over_limit": 2, "errors_hold": False, "bound": "lower (interrupted before the tolerance was met)"}
    write_json(copy / "log_likelihood.json", summary | changed)
    found = " ".join(warnings_of(copy))
    for words in ("posterior collapse", "(2 of 3)", "interrupted", "errors are too small", "one training run"):
        assert words in found
    write_page([copy], tmp_path / "page.html", say=lambda text: None)
    page = (tmp_path / "page.html").read_text()
    assert page.index("posterior collapse") < page.index("<section")
    assert "posterior collapse" not in " ".join(warnings_of(folder))
