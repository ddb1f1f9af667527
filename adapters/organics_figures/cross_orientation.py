"""An orthogonal mask that hardly drives a neuron suppresses it: its contrast response moves to the right.

A hypercolumn of 144 neurons, W_r = I, each normalized by all alike, b = b0 = 0.5, sigma = 0.1. a: the neuron that
prefers the grating. b: all neurons, grating of contrast 30 %.
"""

from __future__ import annotations

import numpy as np

from organics_core import phenomena
from organics_plot import analysis as plot
from organics_plot.styles import new_figure, percent

from ._shared import Figure, Numbers, curves

SOURCE = "phenomena"
SECONDS = 1


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """A hypercolumn under a grating and an orthogonal mask."""
    contrasts, masks = np.geomspace(0.01, 1.0, 60), np.array([0.0, 0.1, 0.3, 1.0])
    found = phenomena.cross_orientation_suppression(contrasts, masks, n=144)
    population = phenomena.cross_orientation_suppression(np.array([0.3]), masks, n=144)
    return {
        "contrasts": contrasts,
        "masks": masks,
        "curves": found.rates[..., 0],
        "preferences": population.preferences,
        "population": population.rates[:, 0],
    }


def draw(n: Numbers) -> Figure:
    """Contrast responses under masks, and the population."""
    figure, axes = new_figure(1, 2, (10.5, 4.2))
    left, right = axes[0]
    labels = ["none" if mask == 0 else percent(mask) for mask in n["masks"]]
    curves(n["contrasts"], n["curves"], labels, left)
    plot.contrast_axis(left, n["contrasts"])
    left.set(xlabel="Contrast of the grating", title="An orthogonal mask suppresses")
    left.legend(title="Contrast of the mask", loc="upper left")
    degrees = np.rad2deg(n["preferences"])
    order = np.argsort((degrees + 45) % 180)
    curves((degrees[order] + 45) % 180 - 45, n["population"][:, order], labels, right)
    right.set(xlabel="Preferred orientation (°)", title="Population: grating at 0°, mask at 90°")
    right.set_xticks([-45, 0, 45, 90, 135])
    right.set_xlim(-45, 135)
    return figure
