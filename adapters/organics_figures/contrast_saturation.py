"""Responses saturate with contrast, and the tuning to orientation keeps its width.

A hypercolumn of 144 neurons, W_r = I, each normalized by all alike, b = b0 = 0.5, sigma = 0.1; the drive falls with
the angle d from the preferred orientation as exp(2 (cos 2d - 1)).
"""

from __future__ import annotations

import numpy as np

from organics_core import phenomena
from organics_plot import analysis as plot
from organics_plot.styles import CYCLE, new_figure, percent

from ._shared import RATE, Figure, Numbers, curves

SOURCE = "phenomena"
SECONDS = 1


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """A hypercolumn under gratings of rising contrast."""
    contrasts, shown = np.geomspace(0.01, 1.0, 60), np.array([0.05, 0.1, 0.2, 0.5, 1.0])
    curves, tuning = (phenomena.contrast_saturation(c, n=144) for c in (contrasts, shown))
    return {
        "contrasts": contrasts,
        "curves": curves.rates,
        "shown": shown,
        "tuning": tuning.rates,
        "preferences": tuning.preferences,
    }


def draw(n: Numbers) -> Figure:
    """Contrast responses, and tuning at all contrasts."""
    figure, axes = new_figure(1, 2, (10.5, 4.2))
    left, right = axes[0]
    degrees = np.rad2deg(n["preferences"])
    chosen = [0, int(np.argmin(np.abs(degrees - 20))), int(np.argmin(np.abs(degrees - 35)))]
    for i, color in zip(chosen, CYCLE, strict=False):
        name = "preferred" if i == 0 else f"{degrees[i]:.0f}° from preferred"
        left.plot(n["contrasts"], n["curves"][:, i], color=color, label=name)
    plot.contrast_axis(left, n["contrasts"])
    left.set(ylabel=RATE, title="Responses saturate", ylim=(0, None))
    left.legend(title="Grating", loc="upper left")
    half = len(degrees) // 2
    centered = np.concatenate([degrees[half:] - 180, degrees[:half], [degrees[half]]])
    rows = np.concatenate([n["tuning"][:, half:], n["tuning"][:, : half + 1]], axis=1)
    curves(centered, rows, [percent(c) for c in n["shown"]], right)
    right.set(xlabel="Orientation minus preferred (°)", title="Tuning keeps its width")
    right.set_xticks([-90, -45, 0, 45, 90])
    right.legend(title="Contrast", loc="upper right", reverse=True)
    return figure
