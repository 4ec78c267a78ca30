"""A fuzzer that follows the code, on demand: `pip install -e '.[fuzz]'`, then

    python tests/fuzz.py idx -runs=100000

with a reader of `readers.READERS`, and what libFuzzer takes. It ends with a traceback where a reader raises what it may
not, or takes a gigabyte for a file of a few bytes, and with the number of inputs otherwise.
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

        atheris.Setup([*sys.argv, corpus, "-malloc_limit_mb=1024", "-rss_limit_mb=2048", "-max_len=8192"], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
