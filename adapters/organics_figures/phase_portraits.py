"""One neuron: flow, nullclines, fixed points and basins of attraction, main and rectified, for several recurrent
weights and time constants.

b = b0 = 0.5, sigma = 0.1, tau_y = tau_a = 2 ms, w = z = 1, but for what the titles say. Blue: what ends at the stable
point with y >= 0, in all panels; orange: at that with y < 0; white: what was not seen to settle.
"""

from __future__ import annotations

import numpy as np

from organics_plot import analysis as plot
from organics_plot.analysis import portrait
from organics_plot.styles import COLORS, INK, MUTED, new_figure

from ._shared import Figure, Numbers, dot, line, one_neuron, patch

SOURCE = "the paper's"
SECONDS = 10

PORTRAITS: dict[str, tuple[dict[str, float], str]] = {
    "w_r = 0.5": ({"w_r": 0.5}, "main"),
    "w_r = 2": ({"w_r": 2.0}, "main"),
    "w_r = 2, b0 = sigma = 1": ({"w_r": 2.0, "b0": 1.0, "sigma": 1.0}, "main"),
    "w_r = 0.5, rectified": ({"w_r": 0.5}, "rectified"),
    "w_r = 2, rectified": ({"w_r": 2.0}, "rectified"),
    "w_r = 2, b0 = sigma = 1, rectified": ({"w_r": 2.0, "b0": 1.0, "sigma": 1.0}, "rectified"),
    "w_r = 2, tau_a = 5 tau_y": ({"w_r": 2.0, "tau_a": 0.010}, "main"),
    "w_r = 2, tau_y = 20 tau_a": ({"w_r": 2.0, "tau_y": 0.040}, "main"),
    "w_r = -2": ({"w_r": -2.0}, "main"),
}
"""Title: (parameters that differ from b = b0 = 0.5, sigma = 0.1, tau = 2 ms, w = z = 1; variant)."""

SYMBOLS = {
    "w_r": "$w_r$",
    "b0": "$b_0$",
    "sigma": "$\\sigma$",
    "tau_a": "$\\tau_a$",
    "tau_y": "$\\tau_y$",
    "-": "\N{MINUS SIGN}",
}


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Vector field, fixed points and basins of one neuron for every set of :data:`PORTRAITS`."""
    found: Numbers = {}
    for index, (changes, variant) in enumerate(PORTRAITS.values()):
        plane = portrait(one_neuron(**changes), np.array([1.0]), variant=variant, grid=24 if quick else 80)
        found |= {f"{name}_{index}": value for name, value in plane._asdict().items()}
    return found


def draw(n: Numbers) -> Figure:
    """Nine portraits."""
    figure, axes = new_figure(3, 3, (11.5, 10.2))
    for index, (title, ax) in enumerate(zip(PORTRAITS, axes.flat, strict=True)):
        plot.phase_portrait(plot.Portrait(*(n[f"{name}_{index}"] for name in plot.Portrait._fields)), ax=ax)
        for plain, symbol in SYMBOLS.items():
            title = title.replace(plain, symbol)
        ax.set_title(title)
        ax.locator_params(nbins=5)
        if index % 3:
            ax.set_ylabel("")
        if index < 6:
            ax.set_xlabel("")
    handles = [
        line(COLORS["blue"], "dy/dt = 0"),
        line(COLORS["red"], "da/dt = 0"),
        dot(INK, "stable"),
        dot("white", "unstable"),
        patch(plot.BASINS[0], "basin, y ≥ 0"),
        patch(plot.BASINS[1], "basin, y < 0"),
        patch("white", "reaches none", edge=MUTED),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=7)
    return figure
