"""Random circuits, W_r of spectral norm 1: stable for inputs of order one and small gains, else not always."""

from __future__ import annotations

from typing import Any

import numpy as np

import organics_core as oc
from organics_plot import analysis as plot
from organics_plot.styles import CYCLE, THEORY, new_figure, percent

from ._shared import Figure, Numbers, random_circuits

STRONG = 5.0
"""Norm of the strong input drive."""


def _abscissa(circuit: oc.Circuit, z: np.ndarray) -> np.ndarray:
    """At the fixed point that Newton's method reaches from that of W_r = I; NaN where it reaches none."""
    steady = oc.steady_state(circuit, z, attracting=False)
    return np.where(steady.converged, oc.spectral_abscissa(circuit, steady.state), np.nan)


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Largest real eigenvalue part of random circuits with ||W_r|| = 1, with gains up to one, and with strong drive."""
    sizes = (2, 10) if quick else (2, 10, 30)
    found: Numbers = {"sizes": np.array(sizes)}
    for n in sizes:
        found[f"abscissa_{n}"] = _abscissa(*random_circuits(300, n, seed + n))
    # gains up to one: rarely, with nearly negative W_r of two neurons, that point is unstable after all
    found["gains_to_one"] = _abscissa(*random_circuits(300 if quick else 2000, 2, seed + 2, gain=1.0))
    # the bound on the inputs matters: drive so strong that sqrt(a) > 1, with an orthogonal W_r
    rng = np.random.default_rng(seed)
    circuit, z = random_circuits(300, 10, seed)
    circuit = circuit._replace(w_r=np.linalg.qr(rng.standard_normal((300, 10, 10)))[0])
    found["strong"] = _abscissa(circuit, STRONG * z)
    return found


def draw(n: Numbers) -> Figure:
    """Histograms over random circuits; circuits that are not shown are counted."""
    figure, axes = new_figure(1, 3, (13.5, 4.0))
    left, middle, right = axes[0]
    groups = {f"n = {size}": n[f"abscissa_{size}"] for size in n["sizes"]}
    every = np.concatenate(list(groups.values()))
    lowest = np.nanquantile(every, 0.002)
    plot.abscissa_histogram(groups, bins=np.linspace(lowest, 0.0, 31), ax=left)
    left.set_xlim(lowest, 15)
    left.set_title(f"Gains up to 1/2: {(every < 0).sum()} of {len(every)} stable")
    left.legend(loc="upper left", title="stacked")
    _count(left, every, lowest, np.inf, side=0.03)
    for ax, values, title in (
        (middle, n["gains_to_one"], "Gains up to 1, n = 2: {bad} of {count} unstable"),
        (right, n["strong"], "Strong drive: {share} unstable"),
    ):
        seen = values[np.isfinite(values)]
        lowest, highest = np.quantile(seen, (0.002, 1.0 if ax is middle else 0.98))
        edges = np.linspace(lowest, max(highest, 15.0), 41)
        edges -= edges[np.argmin(np.abs(edges))]  # no bar across zero
        pair = {"stable": seen[seen < 0], "unstable": seen[seen >= 0]}
        plot.abscissa_histogram(pair, bins=edges, color=[CYCLE[0], THEORY], ax=ax)
        ax.set_xlim(edges[0], edges[-1])
        bad = int((seen >= 0).sum())
        ax.set_title(title.format(bad=bad, count=len(seen), share=percent(round(bad / len(seen), 2))))
        ax.legend(loc="upper right")
        _count(ax, values, edges[0], edges[-1])
    right.text(
        0.98, 0.66, "$W_r$ orthogonal, n = 10", transform=right.transAxes, ha="right", va="top", fontsize="small"
    )
    middle.set_yscale("log")
    return figure


def _count(ax: Any, values: np.ndarray, lowest: float, highest: float, side: float = 0.98) -> None:
    """Say how many circuits the panel does not show."""
    finite = values[np.isfinite(values)]
    beyond = int(((finite < lowest) | (finite > highest)).sum())
    missing = len(values) - len(finite)
    parts = [f"{beyond} beyond the axis"] * (beyond > 0) + [f"{missing} without a point found"] * (missing > 0)
    if parts:
        ax.text(
            side,
            0.6,
            "\n".join(parts),
            transform=ax.transAxes,
            ha="left" if side < 0.5 else "right",
            va="top",
            fontsize="small",
        )
