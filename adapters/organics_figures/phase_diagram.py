"""Recurrence W_r = I + δ M/√n, M symmetric or not: stable fixed points, limit cycles, divergence, irregular activity,
and the distance of the fixed points from normalization.

Shares of ten random circuits per point. Twenty neurons, W = 1/20, b = b0 = 0.5, sigma = 0.1, tau_y = tau_a = 2 ms;
the input drive has a random direction and the norm on the axis. Distance: median over the stable fixed points,
relative to that of W_r = I.
"""

from __future__ import annotations

import numpy as np

import organics_core as oc
from organics_core.analysis.classification import KINDS
from organics_plot import analysis as plot
from organics_plot.styles import new_figure

from ._shared import Figure, Numbers

SECONDS = 540


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Shares of the kinds over recurrence strength and input norm, and the breakdown of normalization."""
    n = 8 if quick else 20
    circuit = oc.Circuit(None, np.full((n, n), 1.0 / n), 0.5, 0.5, 0.1, 0.002, 0.002)
    found: Numbers = {}
    for ensemble, strongest in (("goe", 4.0), ("gaussian", 3.0)):
        deltas = np.linspace(0.0, strongest, 3 if quick else 9)
        norms = np.geomspace(0.03, 30.0, 3 if quick else 7)
        diagram = oc.phase_diagram(circuit, deltas, norms, 2 if quick else 10, ensemble=ensemble, seed=seed)
        found |= {f"{ensemble}_{name}": value for name, value in diagram._asdict().items()}
    return found


def draw(n: Numbers) -> Figure:
    """What becomes of random circuits, two ensembles."""
    figure, axes = new_figure(2, 5, (16.5, 6.6), sharex=True)
    quantities = (*KINDS, "distance")
    titles = ("Stable fixed point", "Limit cycle", "Divergence", "Slow or irregular", "Distance to normalization")
    for index, (row, ensemble) in enumerate(zip(axes, ("goe", "gaussian"), strict=True)):
        diagram = oc.PhaseDiagram(*(n[f"{ensemble}_{field}"] for field in oc.PhaseDiagram._fields))
        for ax, quantity, title in zip(row, quantities, titles, strict=True):
            plot.phase_map(diagram, quantity, colorbar=quantity in ("undecided", "distance"), ax=ax)
            if index == 0:
                ax.set_title(title)
                ax.set_xlabel("")
            if ax is not row[0]:
                ax.set_ylabel("")
                ax.set_yticklabels([])
    axes[0, 0].set_ylabel("Symmetric (GOE)\nRecurrence strength  δ")
    axes[1, 0].set_ylabel("Asymmetric Gaussian\nRecurrence strength  δ")
    return figure
