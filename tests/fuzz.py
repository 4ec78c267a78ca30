"""A fuzzer that follows the code, on demand: `pip install -e '.[fuzz]'`, then

    python tests/fuzz.py idx -runs=100000

with a reader of `readers.READERS`, and what libFuzzer takes. It ends with a traceback where a reader raises what it may
not or the process has taken 2 GB, and with the number of inputs otherwise. The input is
then in the folder for temporary files.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ppl_vae", "numpy.lib", "zipfile", "json"]):
    from readers import READERS, read


def main() -> None:
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in READERS:
        raise SystemExit(f"expected one of {', '.join(READERS)}; got {name!r}")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as corpus:
        (Path(corpus) / "whole").write_bytes(READERS[name].whole)

        def one_input(content: bytes) -> None:
            read(name, content, Path(folder))

        limits = (f"-artifact_prefix={tempfile.gettempdir()}/ppl-vae-{name}-", "-rss_limit_mb=2048", "-max_len=8192")
        atheris.Setup([*sys.argv, corpus, *limits], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
