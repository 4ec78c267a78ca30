"""Without torch, so that it runs in an environment that has ArviZ alone, of either version."""

import math
import warnings

import numpy as np
import pytest

from ppl_vae.evaluation.arviz_groups import arviz_groups, elpd
from ppl_vae.evaluation.diagnostics import pareto_khat, tail_size

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz

ONE_TREE = not arviz.__version__.startswith("0.")
K, N, L, SCALE = 200, 6, 2, 0.5


def normal(x, mean=0.0, sd=1.0):
    """log N(x; mean, sd), summed over the last dimension."""
    return (-0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * math.log(2 * math.pi)).sum(-1)


def statistics(log_weight):
    w = np.exp(log_weight - log_weight.max(0))
    return {
        "log_p": np.log(w.mean(0)) + log_weight.max(0),
        "mc_se": w.std(0) / w.mean(0) / math.sqrt(len(w)),
        "ess": w.sum(0) ** 2 / (w**2).sum(0),
        "khat": pareto_khat(-np.sort(-log_weight, 0)[: tail_size(len(w))], np.full(log_weight.shape[1], len(w))),
    }


def ppca(shape=(1, 2, 3), width=1.0, seed=0, **kwargs):
    """The export of x = W z + scale e, by a guide that is the exact posterior, but `width` times as wide; and log p(x).
    W has orthogonal columns, so that the posterior is diagonal."""
    rng, D = np.random.default_rng(seed), math.prod(shape)
    W = np.linalg.qr(np.random.default_rng(7).normal(size=(D, L)))[0] * [1.0, 2.0]
    x = np.random.default_rng(8).normal(size=(N, L)) @ W.T + SCALE * np.random.default_rng(9).normal(size=(N, D))
    variance = 1 / (1 + (W**2).sum(0) / SCALE**2)
    mean, sd = x @ W * variance / SCALE**2, width * np.sqrt(variance)
    z = mean + sd * rng.normal(size=(K, N, L))
    log_p_x = normal(x, z @ W.T, SCALE)

    def predictive(z):
        return {"x": (z @ W.T + SCALE * rng.normal(size=(*z.shape[:2], D))).reshape(*z.shape[:2], *shape)}

    prior = rng.normal(size=(50, N, L))
    covariance = W @ W.T + SCALE**2 * np.eye(D)
    quadratic = np.einsum("nd,de,ne->n", x, np.linalg.inv(covariance), x)
    exact = -0.5 * (quadratic + np.linalg.slogdet(covariance)[1] + D * math.log(2 * math.pi))
    log_weight = log_p_x + normal(z) - normal(z, mean, sd)
    groups = arviz_groups(
        {"z": z},
        log_weight=log_weight,
        statistics=statistics(log_weight),
        log_likelihood={"x": log_p_x},
        observed={"x": x.reshape(N, *shape)},
        posterior_predictive=predictive(z[:50]),
        prior={"z": prior},
        prior_predictive=predictive(prior),
        **kwargs,
    )
    return groups, exact


def names(data):
    return set(data.children) if ONE_TREE else set(data.groups())


def test_groups_have_named_dimensions_and_coordinates():
    data, _ = ppca(datum=[3, 1, 4, 15, 9, 2], attributes={"model": "ppca"})
    assert names(data) == {
        *("posterior", "posterior_predictive", "prior", "prior_predictive"),
        *("log_likelihood", "sample_stats", "observed_data"),
    }
    draws, pixels = ("chain", "draw", "datum"), ("channel", "height", "width")
    for group, dims, shape in (
        ("posterior", (*draws, "latent"), (1, K, N, L)),
        ("prior", (*draws, "latent"), (1, 50, N, L)),
    ):
        assert (data[group]["z"].dims, data[group]["z"].shape) == (dims, shape)
    for group in ("posterior_predictive", "prior_predictive"):
        assert (data[group]["x"].dims, data[group]["x"].shape) == ((*draws, *pixels), (1, 50, N, 1, 2, 3))
    assert data["log_likelihood"]["x"].dims == draws
    assert data["observed_data"]["x"].dims == ("datum", *pixels)
    assert data["sample_stats"]["log_weight"].dims == draws
    for group in names(data):
        assert data[group].coords["datum"].values.tolist() == [3, 1, 4, 15, 9, 2]
    assert data["posterior"].coords["draw"].values.tolist() == list(range(K))
    assert data["posterior_predictive"].coords["width"].values.tolist() == [0, 1, 2]
    assert (data.attrs["model"], data.attrs["K"], data.attrs["sampled_from"]) == ("ppca", K, "guide")
    assert data.attrs["arviz_version"] == arviz.__version__
    assert data["posterior"].attrs["sampled_from"] == "guide"


def test_other_events_have_other_dimensions():
    z, u, x, y = np.zeros((5, 3, 2)), np.zeros((5, 3)), np.zeros((3, 4)), np.zeros((3, 2, 2))
    both = {"z": z, "u": u}
    data = arviz_groups(
        both,
        log_weight=np.zeros((5, 3)),
        statistics=statistics(np.zeros((5, 3))),
        log_likelihood={"x": u, "y": u},
        observed={"x": x, "y": y},
        posterior_predictive={"x": x[None], "y": y[None]},
        prior=both,
        prior_predictive={"x": x[None], "y": y[None]},
    )
    assert data["posterior"]["z"].dims == ("chain", "draw", "datum", "z_latent")
    assert data["posterior"]["u"].dims == ("chain", "draw", "datum")
    assert data["observed_data"]["x"].dims == ("datum", "x_dim_0")
    assert data["observed_data"]["y"].dims == ("datum", "y_dim_0", "y_dim_1")
    assert ppca(shape=(6,))[0]["observed_data"]["x"].dims == ("datum", "dimension")


@pytest.mark.parametrize("k", [0.2, 0.5, 1.0])
def test_khat_is_the_exponent_of_the_tail_in_either_version(k):
    """Weights u^-k. ArviZ 1.x takes minus the log-weights, of which k-hat would be -1 here."""
    K = 20_000
    log_w = -k * np.log(np.random.default_rng(0).random((K, 5)))
    khat = pareto_khat(-np.sort(-log_w, 0)[: tail_size(K)], np.full(5, K))
    # the maximum likelihood error of a Pareto exponent from m tail weights is (1 + k) / sqrt(m)
    assert khat.mean() == pytest.approx(k, abs=4 * (1 + k) / math.sqrt(3 * math.sqrt(K)) / math.sqrt(5))


def test_a_tail_of_equal_weights_has_no_exponent():
    tail = np.zeros((tail_size(100), 1))
    tail[-1] = -1.0  # the threshold below them
    khat = pareto_khat(tail, np.array([100]))
    assert not khat > 0.7


@pytest.mark.parametrize("sampled_from", ["guide", "importance resampling"])
def test_to_netcdf_and_back(tmp_path, sampled_from):
    data, _ = ppca(sampled_from=sampled_from, attributes={"model": "ppca", "seed": 3, "sd": 0.5})
    data.to_netcdf(tmp_path / "export.nc")
    again = arviz.from_netcdf(tmp_path / "export.nc")
    assert names(again) == names(data)
    for group in names(data):
        a, b = (d[group].to_dataset() if ONE_TREE else d[group] for d in (data, again))
        assert a.identical(b), group
    assert dict(again.attrs) == dict(data.attrs)
    assert (again.attrs["sd"], again.attrs["K"]) == (0.5, K)
    if hasattr(again, "close"):
        again.close()


def test_resampled_draws_cannot_be_weighted_again():
    data, _ = ppca(sampled_from="importance resampling")
    assert data["sample_stats"]["log_weight"].dims == ("guide_draw", "datum")
    for group in ("posterior", "posterior_predictive", "log_likelihood"):
        assert data[group].attrs["sampled_from"] == "importance resampling"


@pytest.mark.parametrize(("khats", "warning"), [([0.1, 0.55], False), ([0.1, 0.57], True), ([0.1, math.nan], True)])
def test_elpd_warns_of_a_khat_that_is_over_the_limit_of_200_draws_or_unknown(khats, warning):
    data, _ = ppca()
    data["sample_stats"]["khat"][:] = np.resize(khats, N)
    assert elpd(data).warning == warning


def test_compare_gives_the_paired_differences():
    exports = {"right": ppca(width=1.5)[0], "wide": ppca(width=4.0)[0]}
    a, b = (data["sample_stats"]["log_p"].values for data in exports.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = arviz.compare({k: elpd(v) for k, v in exports.items()}, **({"round_to": "none"} if ONE_TREE else {}))
    worse = "wide" if a.sum() > b.sum() else "right"
    assert list(table.index)[-1] == worse
    assert abs(table.loc[worse, "elpd_diff"]) == pytest.approx(abs((a - b).sum()), rel=1e-9)
    assert table.loc[worse, "dse"] == pytest.approx(math.sqrt(N) * (a - b).std(), rel=1e-6)
    assert table.loc["right", "elpd" if ONE_TREE else "elpd_loo"] == pytest.approx(a.sum())
    assert table.loc["right", "se"] == pytest.approx(math.sqrt(N) * a.std(), rel=1e-6)
    assert str(K) in str(elpd(exports["right"]))


def drawn(plot):
    """The matplotlib Axes of what an ArviZ function returned."""
    if ONE_TREE:
        plot = plot.viz["plot"]
        plot = [v for a in plot.data_vars.values() for v in np.ravel(a.values)] if hasattr(plot, "data_vars") else plot
        return list(np.ravel(getattr(plot, "values", plot)))
    return list(np.ravel(plot))


@pytest.fixture
def pyplot():
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.use("agg")
        from matplotlib import pyplot

        yield pyplot
        pyplot.close("all")


@pytest.mark.filterwarnings("ignore")
def test_plot_khat_draws_the_khats(pyplot):
    data, _ = ppca(width=3.0)
    (ax,) = drawn(arviz.plot_khat(elpd(data), **({"backend": "matplotlib"} if ONE_TREE else {})))
    ys = [offset[1] for c in ax.collections for offset in c.get_offsets()]
    for khat in data["sample_stats"]["khat"].values:
        assert any(math.isclose(khat, y, rel_tol=1e-6) for y in ys)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("group", ["posterior", "prior"])
def test_plot_ppc(pyplot, group):
    data, _ = ppca()
    if ONE_TREE:
        plot = arviz.plot_ppc_dist(data, group=f"{group}_predictive", num_samples=5, backend="matplotlib")
    else:
        plot = arviz.plot_ppc(data, group=group, num_pp_samples=5, random_seed=0)
    (ax,) = drawn(plot)
    assert len(ax.lines) >= 5


@pytest.mark.filterwarnings("ignore")
def test_plot_forest_and_plot_pair_draw_the_posterior(pyplot):
    data, _ = ppca()
    one = {"datum": [0]}
    backend = {"backend": "matplotlib"} if ONE_TREE else {}
    assert drawn(arviz.plot_forest(data, var_names=["z"], coords=one, **backend))
    axes = [ax for ax in drawn(arviz.plot_pair(data, var_names=["z"], coords=one, **backend)) if ax is not None]
    points = [c.get_offsets() for ax in axes for c in ax.collections]
    points += [line.get_xydata() for ax in axes for line in ax.lines]
    z = data["posterior"]["z"].values[0, :, 0]
    same = [p for p in map(np.asarray, points) if p.shape == z.shape]
    assert any(np.allclose(p, z) or np.allclose(p, z[:, ::-1]) for p in same)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampled_from": "prior"}, "expected 'guide' or 'importance resampling'; got 'prior'"),
        ({"datum": [1, 2]}, r"datum: expected a coordinate for each of 3 data; got \(2,\)"),
        ({"prior": {"z": np.zeros((5, 2, 2))}}, r"prior, site 'z': expected \(draws, 3 data, latent\); got \(5, 2"),
        ({"prior": {"u": np.zeros((5, 3, 2))}}, r"prior: expected sites \['z'\]; got \['u'\]"),
        ({"log_likelihood": {"x": np.zeros((5, 3, 4))}}, r"log_likelihood, site 'x': expected \(draws, 3 data\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    z, x = {"z": np.zeros((5, 3, 2))}, {"x": np.zeros((5, 3, 4))}
    arrays = {
        "log_weight": np.zeros((5, 3)),
        "statistics": statistics(np.zeros((5, 3))),
        "log_likelihood": {"x": np.zeros((5, 3))},
        "observed": {"x": np.zeros((3, 4))},
        "posterior_predictive": x,
        "prior": z,
        "prior_predictive": x,
    }
    arviz_groups(z, **arrays)
    with pytest.raises(ValueError, match=message):
        arviz_groups(z, **(arrays | change))


def test_dimensions_give_way_to_sites_of_their_name():
    """As in Pyro's own tutorial, whose latent site is called latent."""
    z, x = {"latent": np.ones((5, 3, 2)), "datum": np.zeros((5, 3))}, {"dimension": np.zeros((3, 4))}
    weights = np.zeros((5, 3))
    data = arviz_groups(
        z,
        log_weight=weights,
        statistics=statistics(weights),
        log_likelihood={"dimension": weights},
        observed=x,
        posterior_predictive={"dimension": np.zeros((1, 3, 4))},
        prior=z,
        prior_predictive={"dimension": np.zeros((1, 3, 4))},
    )
    assert data["posterior"]["latent"].dims == ("chain", "draw", "datum_dim", "latent_latent")
    assert data["prior"]["datum"].dims == ("chain", "draw", "datum_dim")
    assert data["observed_data"]["dimension"].dims == ("datum_dim", "dimension_dim")
    assert (data["posterior"]["latent"].values == 1).all()
    one = {"latent": z["latent"]}
    arrays = {"log_weight": weights, "statistics": statistics(weights), "log_likelihood": {"x": weights}}
    arrays |= {"observed": {"x": np.zeros((3, 4))}, "posterior_predictive": {"x": np.zeros((1, 3, 4))}}
    data = arviz_groups(one, **arrays, prior=one, prior_predictive={"x": np.zeros((1, 3, 4))})
    assert data["posterior"]["latent"].dims == ("chain", "draw", "datum", "latent_dim")
    draw = {"draw": z["latent"]}
    with pytest.raises(ValueError, match="site 'draw': expected another name; got that of a dimension in ArviZ"):
        arviz_groups(draw, **arrays, prior=draw, prior_predictive={"x": np.zeros((1, 3, 4))})
