"""Figures: functions that draw arrays on an Axes.

Arrays are NumPy's, or torch's on the CPU without gradient. Images have values in [0, 1] and one channel
(grey) or three (RGB). Nothing is global: no pyplot, no style, no rcParams.
`figure` makes a figure, and `save` writes it.
"""

from ppl_vae.plots.comparisons import by_setting as by_setting
from ppl_vae.plots.comparisons import denoising_dots as denoising_dots
from ppl_vae.plots.comparisons import differences as differences
from ppl_vae.plots.comparisons import histograms as histograms
from ppl_vae.plots.comparisons import log_likelihood_bars as log_likelihood_bars
from ppl_vae.plots.comparisons import per_datum_differences as per_datum_differences
from ppl_vae.plots.comparisons import side_by_side as side_by_side
from ppl_vae.plots.curves import Columns as Columns
from ppl_vae.plots.curves import convergence as convergence
from ppl_vae.plots.curves import error_lines as error_lines
from ppl_vae.plots.curves import loss_curve as loss_curve
from ppl_vae.plots.curves import training_curves as training_curves
from ppl_vae.plots.figures import LABEL_COLOURS as LABEL_COLOURS
from ppl_vae.plots.figures import OKABE_ITO as OKABE_ITO
from ppl_vae.plots.figures import Figure as Figure
from ppl_vae.plots.figures import figure as figure
from ppl_vae.plots.figures import save as save
from ppl_vae.plots.latents import latent_scatter as latent_scatter
from ppl_vae.plots.latents import prior_and_posterior as prior_and_posterior
from ppl_vae.plots.mosaics import images as images
from ppl_vae.plots.mosaics import interpolations as interpolations
from ppl_vae.plots.mosaics import latent_grid as latent_grid
from ppl_vae.plots.mosaics import rows_of_images as rows_of_images
