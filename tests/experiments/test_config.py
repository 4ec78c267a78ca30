import math

import pytest

from ppl_vae.components import UsageError
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import assemble


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "conv-vea"}, "did you mean 'conv-vae'"),
        ({"model": "vae"}, "of .dense, .*, residual-conv.*.-.ae, vae, .*m2., ppca; got 'vae'"),
        ({"model": "dense-vae:hiden=3"}, "expected hidden=..., activation=...; got 'hiden=3'"),
        ({"model": "dense-vae:hidden=3", "hidden": (4,)}, "expected activation=...; got 'hidden=3'"),
        ({"model": "ppca:hidden=3"}, "model ppca: expected no arguments; got 'hidden=3'"),
        ({"model": "ppca", "likelihood": "bernoulli"}, "expected 'gaussian-learned' for ppca .probabilistic PCA.; got"),
        ({"model": "ppca", "prior": "laplace"}, "prior: expected 'standard-normal' for ppca"),
        ({"model": "conv-ae", "prior": "laplace"}, "prior: expected 'standard-normal' for conv-ae .autoencoder."),
        ({"model": "dense-ae", "objective": "free-bits"}, "objective: expected 'elbo' for dense-ae"),
        ({"model": "ppca", "hidden": (3,)}, "hidden: expected None for ppca"),
        ({"model": "dense-cvae", "noise": "masking"}, "noise: expected 'no-noise' for dense-cvae"),
        ({"model": "dense-m2", "kl_weight": "linear-warm-up"}, "kl_weight: expected 'constant' for dense-m2"),
        (
            {"model": "dense-m2", "objective": "importance-weighted"},
            "expected 'elbo' for dense-m2 .semi-supervised VAE",
        ),
        (
            {"model": "dense-m2", "prior": "vamp-prior"},
            "without pseudo-inputs or exemplars, which have no label, for dense-m2",
        ),
        ({"model": "dense-vae", "num_labels": 3}, "num_labels: expected a semi-supervised model"),
        ({"model": "dense-m2", "num_labels": 0}, "num_labels: input should be greater than or equal to 1; got 0"),
        ({"epochs": 0}, "epochs: input should be greater than or equal to 1; got 0"),
        ({"latent_size": -2}, "latent_size"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"hidden": ()}, "hidden"),
        ({"noise": "gaussian-noise:scale=-1"}, "scale >= 0"),
        ({"likelihood": "gaussian:scale=0"}, "scale > 0"),
        ({"likelihood": "gauss"}, "expected one of"),
        ({"encoding": "binarise"}, "did you mean 'binarize'"),
        ({"prior": "flow"}, "expected one of"),
        ({"posterior": "flow"}, "expected one of"),
        ({"encoding": "dequantize"}, "encoding dequantize: expected x in the support of the likelihood bernoulli"),
    ],
)
def test_a_config_out_of_range_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        assemble(TrainConfig(**change))
