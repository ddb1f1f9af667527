"""Attention as a change of the input gain b: contrast gain or response gain, depending on the focus.

81 neurons in space, W_r = I, a Gaussian pool of 4° (standard deviation), b0 = 0.5, b = 0.5 and up to twice that where
attention is, sigma = 0.05. a: stimulus of 1°, attention over 20°. b: stimulus of 10°, attention over 1°. The neuron
in the centre.
"""

from __future__ import annotations

import numpy as np

from organics_core import phenomena
from organics_plot import analysis as plot
from organics_plot.styles import COLORS, CYCLE, new_figure

from ._shared import RATE, Figure, Numbers

SOURCE = "phenomena"
SECONDS = 1


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Attention as a change of the input gain: contrast gain, and response gain."""
    contrasts = np.geomspace(0.005, 1.0, 60)
    found: Numbers = {"contrasts": contrasts}
    for name, stimulus, attended in (("contrast_gain", 1.0, 20.0), ("response_gain", 10.0, 1.0)):
        case = phenomena.attention(contrasts, stimulus=stimulus, attended=attended)
        found |= {f"{name}_attended": case.attended, f"{name}_neutral": case.neutral}
    return found


def draw(n: Numbers) -> Figure:
    """Contrast gain and response gain."""
    figure, axes = new_figure(1, 2, (10.5, 4.2))
    titles = ("Contrast gain: small stimulus, wide focus", "Response gain: large stimulus, narrow focus")
    for ax, name, title in zip(axes.flat, ("contrast_gain", "response_gain"), titles, strict=True):
        ax.plot(n["contrasts"], n[f"{name}_attended"], color=COLORS["red"], label="attended")
        ax.plot(n["contrasts"], n[f"{name}_neutral"], color=CYCLE[0], label="not attended")
        plot.contrast_axis(ax, n["contrasts"])
        ax.set(ylabel=RATE, title=title)
        ax.set_ylim(bottom=0)
    axes[0, 0].legend(loc="upper left")
    return figure
