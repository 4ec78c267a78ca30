from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest
import torch
from drawing import assert_refused_in_one_line, pixels
from matplotlib.axes import Axes

from ppl_vae import plots


@pytest.mark.parametrize("names", [None, ["zero", "one", "two", "three"]])
def test_scatter_colours_and_names_the_labels(ax: Axes, names: list[str] | None) -> None:
    z, labels = pixels(6, 2), torch.tensor([3, 0, 3, 1, 0, 3])
    plots.latent_scatter(ax, torch.from_numpy(z), labels, names)
    (points,) = ax.collections
    assert np.allclose(points.get_offsets(), z)
    wanted = [mpl.colors.to_hex(plots.LABEL_COLOURS[k]) for k in labels]
    assert [mpl.colors.to_hex(c) for c in points.get_facecolors()] == wanted  # type: ignore[attr-defined]
    legend = ax.get_legend()
    assert legend is not None
    keys = {t.get_text(): h.get_color() for t, h in zip(legend.texts, legend.legend_handles, strict=True)}  # type: ignore[union-attr]
    assert keys == {f"{k}: {names[k]}" if names else str(k): plots.LABEL_COLOURS[k] for k in (0, 1, 3)}
    assert [(t.get_text(), *t.get_position()) for t in ax.texts] == [
        (str(k), *np.median(z[labels.numpy() == k], axis=0)) for k in (0, 1, 3)
    ]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("mean of $q(z_1|x)$", "mean of $q(z_2|x)$")


def test_scatter_says_what_its_points_are(ax: Axes) -> None:
    plots.latent_scatter(ax, pixels(6, 2), [0] * 6, of="sample of")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("sample of $q(z_1|x)$", "sample of $q(z_2|x)$")
    assert "q(z_2|x)" in ax.get_ylabel()


def test_prior_and_posterior_are_told_apart(ax: Axes) -> None:
    prior, posterior = np.zeros((3, 2)), np.ones((5, 2))
    plots.prior_and_posterior(ax, prior, posterior)
    drawn = {c.get_label(): c.get_offsets().tolist() for c in ax.collections}
    assert drawn == {"prior": prior.tolist(), "aggregate posterior": posterior.tolist()}
    with pytest.raises(ValueError, match=r"prior: expected samples of shape \(N, 2\); got \(3, 3\)"):
        plots.prior_and_posterior(ax, np.zeros((3, 3)), posterior)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda ax: plots.latent_scatter(ax, pixels(4, 3), [0] * 4), r"z \(N, 2\).*got \(4, 3\) and \(4,\)"),
        (lambda ax: plots.latent_scatter(ax, pixels(4, 2), [0] * 3), r"got \(4, 2\) and \(3,\)"),
        (lambda ax: plots.latent_scatter(ax, pixels(2, 2), [0, 10]), r"labels in 0..9; got \[0, 10\]"),
        (lambda ax: plots.latent_scatter(ax, pixels(2, 2), [0, -1]), r"labels in 0..9; got \[-1, 0\]"),
        (lambda ax: plots.latent_scatter(ax, pixels(2, 2), [0, 2], ["a", "b"]), "up to 2; got 2 names"),
    ],
)
def test_errors_are_one_line(ax: Axes, draw: Callable[[Axes], None], message: str) -> None:
    assert_refused_in_one_line(ax, draw, message)
