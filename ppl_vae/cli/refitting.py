"""`ppl-vae refit-prior`: another prior for a trained model, and what it gains."""

from __future__ import annotations

from ppl_vae.cli.options import RefitPriorCommand
from ppl_vae.cli.terminal import say
from ppl_vae.components import UsageError
from ppl_vae.evaluation.comparison import compare
from ppl_vae.experiments.evaluating import evaluate_once
from ppl_vae.experiments.refitting import FILE, refit_prior
from ppl_vae.report.figures import draw_before_and_after
from ppl_vae.system.files import read_json, writable


def refit(options: RefitPriorCommand) -> None:
    run = options.load()
    if not run.has_its_own_data:
        raise UsageError(f"--dataset: expected the data of the training, at another place; got {run.dataset.name}")
    name = options.prior.partition(":")[0]
    output = options.output or options.run.parent / f"{options.run.resolve().name}-{name}"
    if (output / "metrics.json").exists() and not options.overwrite:
        raise UsageError(f"--output: expected a new folder; got {output}, a finished run (see --overwrite)")
    writable(output)
    new = refit_prior(
        run,
        options.prior,
        output,
        epochs=options.epochs,
        patience=options.patience,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    fit = read_json(output / FILE)
    gain = f"{fit['elbo_gain']:+.2f} ± {fit['elbo_gain_se']:.2f} nats per datum"
    say(f"ELBO of {fit['num_validation']} validation data: {gain}, {options.prior} for {run.config.prior}")
    num_images = min(options.num_images, len(run.dataset.test))
    asked = {"num_samples": options.num_samples, "num_images": num_images, "seed": options.seed}
    runs = {str(options.run): (run, options.run), str(output): (new, output)}
    results = {}
    for title, (each, folder) in runs.items():
        say(f"log p(x) of {num_images} test data by {title}")
        results[title], _ = evaluate_once(each, folder, "ladder", asked, show_progress=True)
    say(str(compare(results)))
    if run.is_of_images:
        samples = {
            f"{when}: {each.config.prior}": each.sample(10, seed=options.seed)
            for when, each in (("before", run), ("after", new))
        }
        say(str(draw_before_and_after(output, samples)))
    say(f"Run folder: {output}")
