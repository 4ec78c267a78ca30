"""A prior that is fitted afterwards, to the latents of the training data, with the rest of the model as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from torch import Generator, Tensor

from ppl_vae.evaluation.results import PerDatum
from ppl_vae.experiments.preparation import prepare
from ppl_vae.experiments.runs import Run, versions
from ppl_vae.experiments.training import NUM_MONITORED, save_run
from ppl_vae.priors import Prior
from ppl_vae.programs import evaluating, seeded
from ppl_vae.system.files import write_json
from ppl_vae.training.fitting import fit

FILE = "refit.json"
NUM_DRAWS = 16  # of each validation datum, to compare the priors by


def refit_prior(
    run: Run,
    prior: str,
    output: Path,
    *,
    epochs: int = 100,
    patience: int = 10,
    batch_size: int = 500,
    learning_rate: float = 1e-3,
    seed: int = 0,
    **options: Any,
) -> Run:
    """A run whose model is that of `run` but for its prior, which is fitted to the aggregate posterior of the training
    data, with latents drawn anew for each batch:

        max_p 1/N sum_n E_{q(z|x_n)}[log p(z)].

    That is the ELBO as a function of the prior alone: networks, likelihood and posterior stay as they are. (A VampPrior
    is the model's own posterior at its pseudo-inputs, and these alone are fitted; of an exemplar prior it is the
    scale.) Of a hierarchy it is the prior of the top layer.

    Bin Dai, David Wipf: Diagnosing and Enhancing VAE Models, 2019, arXiv:1903.05789. Matthew Hoffman, Matthew Johnson:
    ELBO surgery, 2016.

    Arguments:
        prior: as `TrainConfig.prior` names it.
        output: the folder of the new run, whose history is that of this fit, with log p(z) for an ELBO, and where
            `refit.json` says by how much it is better on validation data. An earlier run there is replaced.
        epochs, patience, batch_size, learning_rate, seed: of this fit, with early stopping on validation data.
        options: of `fit`.

    Raises `ValueError` for a model that has no prior of its own (an autoencoder, PPCA) or takes labels, and for a prior
    without parameters.
    """
    if not isinstance(getattr(run.model, "prior", None), Prior) or run.model.labelled:
        raise ValueError(f"{run.config.model}: expected a model with a prior, and without labels; got another")
    config, dataset = dataclasses.replace(run.config, prior=prior), run.dataset
    prepared = prepare(config, dataset)
    new = prepared.model
    of_run = {name: t for name, t in run.model.state_dict().items() if not name.startswith("prior.")}
    new.load_state_dict({**new.state_dict(), **of_run})
    prepared.initialise()  # exemplars are seen by the encoder that is trained
    new.to(run.device)
    p_z, old_p_z = cast(Prior, new.prior), cast(Prior, run.model.prior)
    if not [*p_z.parameters()]:
        raise ValueError(f"prior: expected one with parameters to fit; got {prior}")
    for p in {*new.parameters()} - {*p_z.parameters()}:
        p.requires_grad_(False)

    def model(z: Tensor, *index: Tensor) -> None:
        pyro.module("prior", p_z)
        with pyro.plate("data", len(z), dim=-1):
            pyro.sample("z", p_z(*index), obs=z)

    def latents(images: Tensor, *index: Tensor, generator: Generator) -> tuple[Tensor, ...]:
        with seeded(int(torch.randint(2**62, (), generator=generator, device=generator.device))), evaluating(new.model):
            z = new.encode(prepared.observe(images, generator=generator)[-1].to(run.device)).sample()
        return z, *index

    history = fit(
        model,
        lambda z, *index: None,
        *prepared.train,
        validation=prepared.validation[0][:NUM_MONITORED],
        encode=latents,
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        description=f"{prior.partition(':')[0]}",
        **options,
    )
    with evaluating(new.model, run.model.model):
        draws = [Generator().manual_seed(seed + 1 + i) for i in range(NUM_DRAWS)]
        z = torch.stack([latents(prepared.validation[0][:NUM_MONITORED], generator=draw)[0] for draw in draws])
        gain = PerDatum.of_samples(p_z().log_prob(z) - old_p_z().log_prob(z))
    for p in new.parameters():
        p.requires_grad_(True)
    refitted = save_run(output, new, config, history, dataset=dataset)
    summary = {
        "from": {"prior": run.config.prior, "weights": run.weights},
        "prior": prior,
        "elbo_gain": gain.mean,
        "elbo_gain_se": gain.data_se_of_mean,
        "num_validation": len(gain.values),
        "epochs": len(history),
        "best_epoch": history.best_epoch,
        "patience": patience,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "versions": versions(),
    }
    write_json(output / FILE, summary)
    return refitted
