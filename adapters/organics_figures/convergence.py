"""How fast the fixed point is found: iteration and Newton over 100 random circuits of 10 + 10 units.

Lines: the median circuit; bands: the middle half, from the first quartile to the third; dashed: the worst. Gaussian
W_r of spectral norm 1, W in [0, 1], |z| = 1, b, b0 and sigma in [0.05, 0.5], time constants of 1 to 10 ms.
"""

from __future__ import annotations

import numpy as np

from organics_plot import analysis as plot
from organics_plot.analysis import residuals
from organics_plot.styles import COLORS, CYCLE, INK, MUTED, new_figure

from ._shared import Figure, Numbers, line, patch, random_circuits

SOURCE = "the paper's"
SECONDS = 2


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Residuals of the fixed-point iteration and of Newton's method, 100 circuits of 10 + 10 units."""
    circuit, z = random_circuits(20 if quick else 100, 10, seed)
    steps = 15 if quick else 30
    return {method: residuals(circuit, z, method=method, iterations=steps) for method in ("iteration", "newton")}


def draw(n: Numbers) -> Figure:
    """Residuals against iterations."""
    figure, axes = new_figure(1, 1, (6.8, 4.6))
    ax = axes[0, 0]
    names = (("iteration", "fixed-point iteration", CYCLE[0]), ("newton", "Newton", COLORS["red"]))
    for method, _, color in names:
        plot.convergence(n[method], color=color, ax=ax)
    ax.axhline(np.finfo(float).eps, color=MUTED, lw=1, ls=":", zorder=0)
    edge = ax.get_yaxis_transform()
    ax.text(1.01, np.finfo(float).eps, "machine\nprecision", transform=edge, color=MUTED, va="center", fontsize=10)
    ax.set(xlim=(1, len(n["newton"])), ylim=(5e-18, 3))
    count = n["newton"].shape[1]
    ax.set_title(f"{count} random circuits of 10 + 10 units")
    handles = [line(color, f"{label}, median") for _, label, color in names]
    handles += [patch("#D5D9DD", "middle half (quartiles)"), line(INK, "worst circuit", ls=(0, (4, 2)), lw=1.5)]
    ax.legend(handles=handles, loc="upper right")
    return figure
