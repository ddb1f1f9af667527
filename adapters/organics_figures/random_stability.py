"""Random circuits, W_r of spectral norm 1: stable for inputs of order one, often not for strong drive."""

from __future__ import annotations

import numpy as np

import organics_core as oc
from organics_plot import analysis as plot
from organics_plot.styles import CYCLE, THEORY, new_figure, percent

from ._shared import Figure, Numbers, random_circuits

STRONG = 5.0
"""Norm of the strong input drive."""


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Largest real eigenvalue part of random circuits with ||W_r|| = 1, and of those with strong drive."""
    sizes = (2, 10) if quick else (2, 10, 30)
    found: Numbers = {"sizes": np.array(sizes)}
    for n in sizes:
        circuit, z = random_circuits(300, n, seed + n)
        steady = oc.steady_state(circuit, z)
        found[f"converged_{n}"] = steady.converged
        found[f"abscissa_{n}"] = oc.spectral_abscissa(circuit, steady.state)
    # gains up to one: rarely, with nearly negative W_r of two neurons, the state is unstable after all
    circuit, z = random_circuits(300, 2, seed + 2, gain=1.0)
    found["gains_to_one"] = oc.spectral_abscissa(circuit, oc.steady_state(circuit, z).state)
    # the bound on the inputs matters: drive so strong that sqrt(a) > 1, with an orthogonal W_r
    rng = np.random.default_rng(seed)
    circuit, z = random_circuits(300, 10, seed)
    circuit = circuit._replace(w_r=np.linalg.qr(rng.standard_normal((300, 10, 10)))[0])
    steady = oc.steady_state(circuit, STRONG * z)
    found["strong"] = np.where(steady.converged, oc.spectral_abscissa(circuit, steady.state), np.nan)
    return found


def draw(n: Numbers) -> Figure:
    """Histograms over random circuits."""
    figure, axes = new_figure(1, 2, (10.5, 4.0))
    left, right = axes[0]
    groups = {f"n = {size}": n[f"abscissa_{size}"] for size in n["sizes"]}
    every = np.concatenate(list(groups.values()))
    plot.abscissa_histogram(groups, bins=np.linspace(np.quantile(every, 0.002), 0.0, 31), ax=left)
    left.set_xlim(left.get_xlim()[0] if every.max() > 0 else np.quantile(every, 0.002), 15)
    left.set_title(f"Inputs of order one: {(every < 0).sum()} of {len(every)} stable")
    left.legend(loc="upper left")
    strong = n["strong"][np.isfinite(n["strong"])]
    lowest, highest = np.quantile(strong, (0.0, 0.98))
    edges = np.linspace(lowest, highest, 41)
    edges -= edges[np.argmin(np.abs(edges))]  # no bar across zero
    groups = {"stable": strong[strong < 0], "unstable": strong[strong >= 0]}
    plot.abscissa_histogram(groups, bins=edges, color=[CYCLE[0], THEORY], ax=right)
    right.set_xlim(edges[0], edges[-1])
    right.set_title(f"Strong drive, orthogonal $W_r$: {percent(round((strong >= 0).mean(), 2))} unstable")
    right.legend(loc="upper right")
    return figure
