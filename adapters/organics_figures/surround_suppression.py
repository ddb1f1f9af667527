"""A neuron prefers a patch of some size; a larger one suppresses it, the more so the higher the contrast.

81 neurons along 40°, W_r = I, receptive fields of 1° (standard deviation), a Gaussian pool of 3° with weights that
sum to 4, b = b0 = 0.5, sigma = 0.1. The neuron in the centre; dots: the best size.
"""

from __future__ import annotations

import numpy as np

from organics_core import phenomena
from organics_plot.styles import new_figure, percent, shades

from ._shared import Figure, Numbers, curves

SOURCE = "phenomena"
SECONDS = 1


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """The neuron in the centre of patches of growing diameter."""
    diameters, contrasts = 20.0 * np.linspace(0.01, 1.0, 600) ** 2, np.array([0.05, 0.1, 0.2, 1.0])
    found = phenomena.surround_suppression(diameters, contrasts)
    middle = found.rates.shape[-1] // 2
    return {"diameters": diameters, "contrasts": contrasts, "rates": found.rates[..., middle]}


def draw(n: Numbers) -> Figure:
    """Responses against the diameter."""
    figure, axes = new_figure(1, 1, (6.6, 4.4))
    ax = axes[0, 0]
    rates = n["rates"]
    curves(n["diameters"], rates, [percent(c) for c in n["contrasts"]], ax)
    for row, color in zip(rates, shades(len(rates)), strict=True):
        best = int(np.argmax(row))
        ax.plot(n["diameters"][best], row[best], "o", ms=7, color=color, mec="white", mew=1)
    ax.set(xlabel="Diameter of the patch (°)", title="Beyond the best size (dots), a surround suppresses")
    ax.set_ylim(0, 1.05 * rates.max())
    ax.set_xlim(0, n["diameters"][-1])
    ax.set_xticks(range(0, 21, 5))
    ax.legend(title="Contrast", loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    return figure
