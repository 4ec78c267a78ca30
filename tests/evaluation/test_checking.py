import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ppl_vae.evaluation import checking
from ppl_vae.evaluation.annealing import annealed_log_likelihood
from ppl_vae.evaluation.checking import Report, check_model
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VAE, Autoencoder
from ppl_vae.networks import DenseDecoder, DenseEncoder
from ppl_vae.posteriors import DiagonalNormal
from ppl_vae.priors import StandardNormal
from ppl_vae.training.fitting import fit

D, L = 10, 2


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def grey(n: int = 6) -> Tensor:
    return torch.rand(n, D) * 0.9 + 0.05


def binary(n: int = 6) -> Tensor:
    return grey(n).round()


class Pair(nn.Module):
    """Pyro's tutorial VAE, cut in pieces of which a test replaces one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder: nn.Module = nn.Sequential(nn.Linear(D, 5), nn.Softplus(), nn.Linear(5, 2 * L))
        self.decoder: nn.Module = nn.Sequential(nn.Linear(L, 5), nn.Softplus(), nn.Linear(5, D))

    def prior(self, x: Tensor) -> Any:
        return dist.Normal(x.new_zeros(L), 1.0).to_event(1)

    def posterior(self, x: Tensor) -> Any:
        loc, s = self.encoder(x).chunk(2, -1)
        return dist.Normal(loc, s.exp()).to_event(1)

    def likelihood(self, z: Tensor) -> Any:
        return dist.Bernoulli(logits=self.decoder(z)).to_event(1)

    def plate(self, x: Tensor) -> Any:
        return pyro.plate("data", len(x))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with self.plate(x):
            z = pyro.sample("latent", self.prior(x))
            pyro.sample("obs", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with self.plate(x):
            pyro.sample("latent", self.posterior(x))


class Observing(Pair):
    """The pair with a likelihood on the reals, so that x is never outside of its support."""

    def likelihood(self, z: Tensor) -> Any:
        return dist.Normal(self.decoder(z), 1.0).to_event(1)


def check(pair: Any, x: Tensor | None = None, *args: Tensor) -> Report:
    return check_model(pair.model, pair.guide, binary() if x is None else x, *args)


def errors(report: Report) -> list[tuple[str, str]]:
    return [(f.check, f.site) for f in report.findings if f.severity == "error"]


def only(report: Report, check: str, *sites: str, severity: str = "error") -> str:
    """The report has findings of this check, for these sites, and no other; returns its text."""
    assert [(f.check, f.site, f.severity) for f in report.findings] == [(check, s, severity) for s in sites], report
    assert report.ok == (severity == "warning")
    assert len(str(report).splitlines()) == len(sites) + report.ok
    return str(report)


# Sound pairs


@pytest.mark.parametrize("event", [(D,), (1, 3, 4)])
def test_own_vae_is_sound(event: tuple[int, ...]) -> None:
    posterior = DiagonalNormal(L)
    vae = VAE(
        DenseEncoder(event, posterior.num_params, (8,)),
        DenseDecoder(L, event, 1, (8,)),
        prior=StandardNormal(L),
        likelihood=Gaussian(1.0),
        posterior=posterior,
    )
    report = check(vae, torch.rand(6, *event))
    assert report.ok
    assert str(report) == f"sound: latent sites z; observed x (density on real); 6 data, event {event}"
    assert check_model(vae.model, vae.guide, torch.rand(3, *event), torch.rand(3, *event)).ok


@pytest.mark.parametrize("n", [2, 3, 10, 11])
def test_tutorial_vae_is_sound(n: int) -> None:
    assert str(check(Pair(), binary(n))) == (
        f"sound: latent sites latent; observed obs (mass on boolean); {n} data, event (10,)"
    )


def test_functions_over_modules_are_sound() -> None:
    encoder, decoder = nn.Linear(D, L), nn.Linear(L, D)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
            mean = pyro.deterministic("mean", decoder(z), event_dim=1)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    assert str(check_model(model, guide, grey())) == (
        "sound: latent sites z; observed x (density on real); 6 data, event (10,)"
    )


def test_a_fixed_pair_batchnorm_and_dropout_are_sound() -> None:
    class Regular(Observing):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(D, 2 * L), nn.BatchNorm1d(2 * L), nn.Dropout(0.5))
            self.decoder = nn.Sequential(nn.Linear(L, D), nn.Dropout(0.5))

    for pair in (Regular(), Observing().requires_grad_(False)):
        assert str(check(pair)) == "sound: latent sites latent; observed obs (density on real); 6 data, event (10,)"


def test_nothing_is_left_behind() -> None:
    class Regular(Observing):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(D, 2 * L), nn.BatchNorm1d(2 * L))

        def guide(self, x: Tensor) -> None:
            pyro.param("bare", torch.ones(()))
            super().guide(x)

    pair = Regular()
    pair.decoder.eval()
    x = grey()
    with pyro.get_param_store().scope():
        pyro.param("mine", torch.ones(2))
        state = torch.get_rng_state()
        buffers = {k: b.clone() for k, b in pair.named_buffers()}
        check(pair, x)
        assert torch.get_rng_state().equal(state)
        assert list(pyro.get_param_store().keys()) == ["mine"]
    assert pair.training
    assert pair.encoder.training
    assert not any(m.training for m in pair.decoder.modules())
    assert all(b.equal(buffers[k]) for k, b in pair.named_buffers())
    assert all(p.grad is None for p in pair.parameters())


@pytest.mark.parametrize("args", [(torch.zeros(0, D),), (torch.zeros(3, D), torch.zeros(2))])
def test_empty_or_unequal_data_raise(args: tuple[Tensor, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \d rows; got"):
        check(Pair(), *args)


def test_one_datum_is_a_warning() -> None:
    assert "expected two data or more; got 1" in only(check(Pair(), binary(1)), "data", "", severity="warning")


# 1. The programs run


@pytest.mark.parametrize("program", ["model", "guide"])
def test_an_exception_is_a_finding(program: str) -> None:
    class Faulty(Pair): ...

    def broken(self: Pair, x: Tensor) -> None:
        raise KeyError("my weights\nare gone")

    setattr(Faulty, program, broken)
    text = only(check(Faulty()), "runs", "")
    assert program in text
    assert "my weights" in text


def test_validation_of_arguments_is_the_programs_own() -> None:
    class Faulty(Pair):
        def likelihood(self, z: Tensor) -> Any:
            return dist.Bernoulli(probs=self.decoder(z) + 9, validate_args=True).to_event(1)

    assert "Expected parameter probs" in only(check(Faulty()), "runs", "")


# 2. Plates and shapes


def test_a_plate_at_another_dim() -> None:
    class Plated(Observing):
        def plate(self, x: Tensor) -> Any:
            return pyro.plate("data", len(x), dim=-2)

        def prior(self, x: Tensor) -> Any:
            return super().prior(x).expand([len(x), 1])

        def posterior(self, x: Tensor) -> Any:
            return super().posterior(x[:, None])

        def model(self, x: Tensor) -> None:
            super().model(x[:, None])

    assert "at dim -2" in only(check(Plated(), grey()), "plates", "latent", "obs")


def test_a_subsample() -> None:
    class Subsampled(Pair):
        def model(self, x: Tensor) -> None:
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x), subsample_size=4) as rows:
                z = pyro.sample("latent", self.prior(x))
                pyro.sample("obs", self.likelihood(z), obs=x[rows])

        def guide(self, x: Tensor) -> None:
            pyro.module("encoder", self.encoder)
            with pyro.plate("data", len(x), subsample_size=4) as rows:
                pyro.sample("latent", self.posterior(x[rows]))

    assert "'data' with 4 of 6 at dim -1. Leave subsample_size out" in only(
        check(Subsampled()), "plates", "latent", "obs"
    )


def test_two_plates() -> None:
    class Pixels(Observing):
        def model(self, x: Tensor) -> None:
            pyro.module("decoder", self.decoder)
            data = self.plate(x)
            with data:
                z = pyro.sample("latent", self.prior(x))
            with pyro.plate("pixels", D, dim=-2), data:
                pyro.sample("obs", dist.Normal(self.decoder(z).T, 1.0), obs=x.T)

    text = only(check(Pixels(), grey()), "plates", "obs")
    assert "'pixels' with 10 of 10 at dim -2" in text
    assert "Keep the plate of the data" in text


def test_a_global_latent_is_named() -> None:
    class Global(Observing):
        def model(self, x: Tensor) -> None:
            pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
            super().model(x)

        def guide(self, x: Tensor) -> None:
            pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
            super().guide(x)

    assert "got none" in only(check(Global()), "plates", "sigma")


def test_a_plate_of_another_size() -> None:
    class Fixed(Pair):
        def plate(self, x: Tensor) -> Any:
            return pyro.plate("data", 1)

        def posterior(self, x: Tensor) -> Any:
            return super().posterior(x[:1])

        def model(self, x: Tensor) -> None:
            super().model(x[:1])

    assert "with 1 of 1" in only(check(Fixed()), "plates", "latent", "obs")


def test_an_undeclared_event() -> None:
    class Loose(Observing):
        def likelihood(self, z: Tensor) -> Any:
            return dist.Normal(self.decoder(z), 1.0)

    # as many data as dims: Pyro has nothing to object to, without particles
    assert "particles" in only(check(Loose(), grey(D)), "particles", "obs")

    class OneDim(Pair):
        def prior(self, x: Tensor) -> Any:
            return dist.Normal(torch.zeros(len(x), 1), 1.0)

        def posterior(self, x: Tensor) -> Any:
            return dist.Normal(self.encoder(x)[:, :1], 1.0)

        def likelihood(self, z: Tensor) -> Any:
            return dist.Normal(torch.zeros(D), 1.0).to_event(1)

    assert errors(check(OneDim())) == [("particles", "latent")]


def test_networks_that_know_no_particles() -> None:
    class View(Observing):
        def likelihood(self, z: Tensor) -> Any:
            return dist.Normal(self.decoder(z.view(-1, L)), 1.0).to_event(1)

    only(check(View()), "particles", "obs")


class Images(nn.Module):
    """A pair of images (data, 1, 4, 5), whose likelihood declares `dims` of them as the event."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims, self.encoder, self.decoder = dims, nn.Linear(20, L), nn.Linear(L, 20)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(L), 1.0).to_event(1))
            mean = self.decoder(z).unflatten(-1, (1, 4, 5))
            pyro.sample("obs", dist.Normal(mean, 1.0).to_event(self.dims), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("latent", dist.Normal(self.encoder(x.flatten(1)), 1.0).to_event(1))


@pytest.mark.parametrize("n", [4, 6])
def test_too_few_dims_of_an_image_are_an_event_and_what_is_advised_is_sound(n: int) -> None:
    x = torch.rand(n, 1, 4, 5)
    assert ".to_event(3) for x" in str(check(Images(1), x))
    assert check(Images(3), x).ok


def test_another_dtype_is_named_and_what_is_advised_is_sound() -> None:
    x = torch.rand(6, 1, 4, 5, dtype=torch.float64)
    report = check(Images(3), x)
    assert "got torch.float64. Convert them: x.to(torch.float32)" in report.findings[0].message
    assert check(Images(3), x.to(torch.float32)).ok
    with pytest.raises(ValueError, match=r"got torch\.float64 of numbers that it would round\. Convert them"):
        log_likelihood(Images(3).model, Images(3).guide, x)


def test_a_declared_module_that_is_not_found_is_named() -> None:
    encoder = nn.Sequential(nn.Linear(D, L), nn.Dropout())
    hidden = weakref.ref(encoder)

    class Hidden(Observing):
        def guide(self, x: Tensor) -> None:
            pyro.module("hidden", hidden())
            with self.plate(x):
                pyro.sample("latent", dist.Normal(hidden()(x), 1.0).to_event(1))

    text = only(check(Hidden()), "modules", "hidden$$$0.weight", "hidden$$$0.bias")
    assert "Let the program use the module by a variable, an attribute or a global name" in text
    pair = Hidden()
    for run in (partial(fit, show_progress=False), log_likelihood, annealed_log_likelihood):
        with pytest.raises(ValueError, match="expected a parameter of a module that the program refers to"):
            run(pair.model, pair.guide, grey())


def test_a_flow_that_scores_its_own_draws_alone_is_sound_and_told() -> None:
    class Planar(Observing):
        def __init__(self) -> None:
            super().__init__()
            self.flow = dist.transforms.Planar(L)

        def posterior(self, x: Tensor) -> Any:
            return dist.TransformedDistribution(super().posterior(x), [self.flow])

        def guide(self, x: Tensor) -> None:
            pyro.module("flow", self.flow)
            super().guide(x)

    text = only(check(Planar(), grey()), "density", "", severity="warning")
    assert "got a flow without an inverse, that scores its own draws alone" in text


# 3. Latent and observed sites


def test_a_latent_site_of_one_program_alone() -> None:
    class Renamed(Pair):
        def guide(self, x: Tensor) -> None:
            with self.plate(x):
                pyro.sample("z", self.posterior(x))

    text = only(check(Renamed()), "latents", "latent", "z")
    assert "'latent' expected it in both model and guide; got it in the model alone" in text
    assert "'z' expected it in both model and guide; got it in the guide alone" in text


def test_an_autoencoder() -> None:
    ae = Autoencoder(DenseEncoder((D,), L), DenseDecoder(L, (D,), 1), likelihood=Gaussian())
    assert "An autoencoder has a reconstruction loss and no log p(x)" in only(check(ae), "latents", "")


def test_nothing_observed() -> None:
    class Blind(Pair):
        def model(self, x: Tensor) -> None:
            with self.plate(x):
                z = pyro.sample("latent", self.prior(x))
                pyro.deterministic("mean", self.decoder(z), event_dim=1)

    only(check(Blind()), "observed", "")


# 4. Independence


@pytest.mark.parametrize(
    "mix", [lambda h: h - h.mean(-2, keepdim=True), lambda h: h.roll(1, -2), lambda h: h.cumsum(-2)]
)
def test_a_decoder_that_mixes_rows(mix: Callable[[Tensor], Tensor]) -> None:
    class Mixed(Observing):
        def likelihood(self, z: Tensor) -> Any:
            return dist.Normal(mix(self.decoder(z)), 1.0).to_event(1)

    assert "in the model" in only(check(Mixed()), "independence", "obs")


def test_a_decoder_that_knows_the_position() -> None:
    class Positioned(Observing):
        def likelihood(self, z: Tensor) -> Any:
            h = self.decoder(z)
            return dist.Normal(h + torch.arange(h.shape[-2])[:, None], 1.0).to_event(1)

    assert "in another order" in only(check(Positioned()), "independence", "obs")


def test_batch_statistics_in_the_guide() -> None:
    class Normalised(Observing):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(D, 2 * L), nn.BatchNorm1d(2 * L, track_running_stats=False))

    assert "in the guide" in only(check(Normalised()), "independence", "latent")


def test_a_batchnorm_that_evaluation_mode_does_not_reach() -> None:
    encoder = nn.Sequential(nn.Linear(D, 2 * L), nn.BatchNorm1d(2 * L, affine=False))
    hidden = weakref.ref(encoder)

    class Hidden(Observing):
        def posterior(self, x: Tensor) -> Any:
            loc, s = hidden()(x).chunk(2, -1)
            return dist.Normal(loc, s.exp()).to_event(1)

        def guide(self, x: Tensor) -> None:
            with self.plate(x):
                pyro.sample("latent", self.posterior(x))

    only(check(Hidden()), "independence", "latent")


def test_a_guide_with_a_parameter_for_each_datum() -> None:
    class PerDatum(Observing):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(6, L))

        def guide(self, x: Tensor) -> None:
            pyro.module("pair", self)
            with self.plate(x):
                pyro.sample("latent", dist.Normal(self.loc, 1.0).to_event(1))

    assert ("independence", "latent") in errors(check(PerDatum()))


# 5. Support


def test_a_bernoulli_on_grey_pixels() -> None:
    text = only(check(Pair(), grey()), "support", "obs")
    assert "binarise" in text
    assert "ContinuousBernoulli" in text
    assert "{0, 1}" in text


def test_data_outside_of_another_support() -> None:
    class Counts(Observing):
        def likelihood(self, z: Tensor) -> Any:
            return dist.Poisson(self.decoder(z).exp()).to_event(1)

    assert "got 6 data outside, values in [-" in only(check(Counts(), binary() - 1), "support", "obs")


def test_a_guide_that_draws_what_the_prior_cannot() -> None:
    class Positive(Observing):
        def prior(self, x: Tensor) -> Any:
            return dist.Gamma(x.new_ones(L), 1.0).to_event(1)

    only(check(Positive()), "support", "latent")


def test_a_guide_that_reaches_a_part_of_the_prior() -> None:
    class Half(Observing):
        def posterior(self, x: Tensor) -> Any:
            loc, s = self.encoder(x).chunk(2, -1)
            return dist.LogNormal(loc, s.exp()).to_event(1)

    assert "comes out too low" in only(check(Half()), "support", "latent")


def test_a_guide_of_points() -> None:
    class Points(Observing):
        def posterior(self, x: Tensor) -> Any:
            return dist.Delta(self.encoder(x)[..., :L]).to_event(1)

    assert "got a point (Delta)" in only(check(Points()), "support", "latent")


# 6. Gradients


def test_a_gradient_that_is_nan_in_training() -> None:
    class Rooted(Observing):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(D))

        def likelihood(self, z: Tensor) -> Any:
            h = self.decoder(z)
            return dist.Normal(h + (self.bias**2).sqrt() if self.training else h, 1.0).to_event(1)

        def model(self, x: Tensor) -> None:
            pyro.module("pair", self)
            super().model(x)

    assert "got NaN" in only(check(Rooted()), "gradients", "pair$$$bias")


def test_a_parameter_without_gradient_is_a_warning() -> None:
    class Detached(Observing):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = nn.Linear(L, D)

        def likelihood(self, z: Tensor) -> Any:
            weight, bias = self.decoder.parameters()
            return dist.Normal(nn.functional.linear(z, weight, bias.detach()), 1.0).to_event(1)

    assert "got none" in only(check(Detached()), "gradients", "decoder$$$bias", severity="warning")


def test_a_parameter_that_is_not_contiguous() -> None:
    class Transposed(Observing):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = nn.Linear(L, D)
            self.decoder.weight = nn.Parameter(torch.randn(L, D).T)

    assert "expected a contiguous nn.Parameter" in only(check(Transposed()), "gradients", "decoder$$$weight")


def test_two_modules_of_one_name() -> None:
    class Namesakes(Observing):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(D, 2 * L, bias=False), nn.Linear(L, D)

        def guide(self, x: Tensor) -> None:
            pyro.module("decoder", self.encoder)
            with self.plate(x):
                pyro.sample("latent", self.posterior(x))

    report = check(Namesakes())
    assert errors(report) == [("gradients", "decoder$$$weight")]
    assert "a name of its own" in str(report)


def test_a_bare_param_is_sound() -> None:
    class Bare(Observing):
        def likelihood(self, z: Tensor) -> Any:
            scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
            return dist.Normal(self.decoder(z), scale).to_event(1)

    assert str(check(Bare())).startswith("sound")


def test_a_parameter_with_a_constraint_is_sound() -> None:
    class Constrained(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.scale = PyroParam(torch.tensor(2.0), constraint=dist.constraints.positive)
            self.encoder = PyroModule[nn.Linear](D, L)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("latent", dist.Normal(self.encoder(x), self.scale).to_event(1))

    assert check_model(Observing().model, Constrained(), grey()).findings == ()


def test_a_module_that_is_not_declared_is_a_warning() -> None:
    class Undeclared(Observing):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(D, 2 * L, bias=False)

        def guide(self, x: Tensor) -> None:
            with self.plate(x):
                pyro.sample("latent", self.posterior(x))

    assert "no pyro.module declares" in only(check(Undeclared()), "gradients", "encoder.weight", severity="warning")


# 7. Evaluation mode


@pytest.mark.parametrize(("part", "site"), [("decoder", "obs"), ("encoder", "latent")])
def test_dropout_that_stays_on(part: str, site: str) -> None:
    class Dropping(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), 0.5, training=True)

    pair = Observing()
    setattr(pair, part, Dropping(L, D) if part == "decoder" else Dropping(D, 2 * L))
    only(check(pair), "repeatable", site)


def test_a_program_that_switches_to_training_mode() -> None:
    class Switching(Observing):
        def guide(self, x: Tensor) -> None:
            self.get_submodule("encoder.1").train()
            super().guide(x)

    only(check(Switching()), "mode", "encoder.1")

    pair = Switching()
    pair.encoder = nn.Sequential(nn.Linear(D, 2 * L), nn.BatchNorm1d(2 * L))
    assert {check for check, _ in errors(check(pair))} == {"mode"}  # and not what follows from it


def test_a_buffer_that_evaluation_changes() -> None:
    class Counting(Observing):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def guide(self, x: Tensor) -> None:
            self.calls += 1
            super().guide(x)

    class Replacing(Counting):
        def guide(self, x: Tensor) -> None:
            self.calls = self.calls + 1
            Observing.guide(self, x)

    for pair in (Counting(), Replacing()):
        only(check(pair), "mode", "calls")
        assert pair.calls == 0


# 8. Chunks and handlers


def test_particles_that_see_each_other() -> None:
    class Crowded(Observing):
        def likelihood(self, z: Tensor) -> Any:
            return dist.Normal(self.decoder(z - z.mean(0) if z.dim() == 3 else z), 1.0).to_event(1)

    only(check(Crowded()), "chunks", "")


def test_a_refusal_by_log_likelihood_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ValueError("site 'obs': no")

    monkeypatch.setattr(checking, "log_likelihood", refuse)
    only(check(Pair()), "chunks", "obs")


def test_a_mask() -> None:
    class Masked(Pair):
        def model(self, x: Tensor) -> None:
            with poutine.mask(mask=x[:, 0] > 0):
                super().model(x)

    only(check(Masked()), "mask", "latent", "obs")


def test_a_scale_is_a_warning() -> None:
    class Scaled(Pair):
        def model(self, x: Tensor) -> None:
            pyro.module("decoder", self.decoder)
            with self.plate(x):
                with poutine.scale(scale=torch.tensor(0.5)):
                    z = pyro.sample("latent", self.prior(x))
                pyro.sample("obs", self.likelihood(z), obs=x)

    assert "ignores it" in only(check(Scaled()), "scale", "latent", severity="warning")


# 9. NaN and infinity


@pytest.mark.parametrize(
    ("program", "site", "value"), [("likelihood", "obs", torch.nan), ("posterior", "latent", torch.nan)]
)
def test_nan_is_named_by_site(program: str, site: str, value: float) -> None:
    class Faulty(Observing): ...

    def faulty(self: Pair, t: Tensor) -> Any:
        d = getattr(Observing, program)(self, t).base_dist
        return dist.Normal(d.loc + value, d.scale).to_event(1)

    setattr(Faulty, program, faulty)
    only(check(Faulty()), "finite", site)


def test_infinity_and_nan_in_x_are_named() -> None:
    class Narrow(Observing):
        def likelihood(self, z: Tensor) -> Any:
            return dist.Normal(self.decoder(z), 1e-30).to_event(1)

    only(check(Narrow()), "finite", "obs")
    x = grey()
    x[2, 3] = torch.nan
    assert "got 1 data outside, NaN" in only(check(Observing(), x), "support", "obs")


def test_independent_faults_are_reported_together() -> None:
    class Faulty(Pair):
        def likelihood(self, z: Tensor) -> Any:
            h = self.decoder(z)
            return dist.Bernoulli(logits=h - h.mean(-2, keepdim=True)).to_event(1)

    assert errors(check(Faulty(), grey())) == [("independence", "obs"), ("support", "obs")]
