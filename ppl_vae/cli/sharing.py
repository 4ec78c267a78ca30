"""`ppl-vae export`: a run to hand on."""

from __future__ import annotations

from pathlib import Path

from ppl_vae.cli.options import HUB, ExportCommand
from ppl_vae.cli.terminal import say
from ppl_vae.report.sharing import export_run, push_to_hub
from ppl_vae.system.files import writable


def export(options: ExportCommand) -> None:
    if options.to.startswith(HUB):
        repo_id = options.to.removeprefix(HUB)
        say(f"{push_to_hub(options.run, repo_id, private=options.private)}")
        say(f'In Python: pv.from_pretrained("{repo_id}")')
        return
    path = Path(options.to)
    writable(path.parent)
    export_run(options.run, path)
    say(f"{path}, {path.stat().st_size:,} bytes")
    say(f'In Python: pv.load_run("{path}")')
