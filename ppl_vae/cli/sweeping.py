"""`ppl-vae sweep`: a grid of trainings, in a table."""

from __future__ import annotations

from pathlib import Path

from ppl_vae.cli.main import fail
from ppl_vae.cli.options import SweepCommand
from ppl_vae.cli.plugins import setup_of
from ppl_vae.cli.terminal import say
from ppl_vae.cli.training import folder_of
from ppl_vae.components import UsageError
from ppl_vae.experiments.preparation import assemble
from ppl_vae.experiments.sweep import models_of, run_sweep
from ppl_vae.report.figures import draw_sweep
from ppl_vae.report.tables import swap_table
from ppl_vae.system.executors import executor_of
from ppl_vae.system.files import locked, writable
from ppl_vae.system.machine import device_of


def sweep(options: SweepCommand) -> None:
    config = options.config
    for name, model in models_of(config).items():
        try:
            assemble(model, of_images=model.encoding != "identity")
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from None
    output = (options.output or Path("sweeps") / folder_of(config.grid.dataset)).absolute()
    device_of(options.device)
    setup = setup_of(options.plugin)
    with locked(output), executor_of(options.executor, writable(output), setup) as executor:
        metrics = run_sweep(
            config,
            output,
            data_dir=options.data_dir,
            device=options.device,
            executor=executor,
            say=say,
            after_each=draw_sweep,
        )
    for table in metrics["sweep"]["tables"]:
        say(swap_table(table))
    for name, why in metrics["sweep"]["left_out"].items():
        say(f"{name} is left out: {why}")
    say(f"Pictures: {output / 'figures'}. Numbers: {output / 'metrics.json'}")
    say(f"All on one page: ppl-vae report {output} --output {output.name}.html")
    if metrics["failed"]:
        what = "; ".join(f"{part} ({why})" for part, why in metrics["failed"].items())
        fail(f"failed: {what}. The others are kept, and not done again", 1)
