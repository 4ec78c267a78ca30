"""Renders the pages of results."""

from __future__ import annotations

import argparse
from pathlib import Path

from ppl_vae.report.markdown import fill
from ppl_vae.report.pages import readme_blocks, results_page


def main() -> None:
    """python -m ppl_vae.report RESULTS README: renders RESULTS/README.md, and the tables in README."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("readme", type=Path)
    args = parser.parse_args()
    (args.results / "README.md").write_text(results_page(args.results))
    args.readme.write_text(fill(args.readme.read_text(), readme_blocks(args.results)))


if __name__ == "__main__":
    main()
