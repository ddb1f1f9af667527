"""Random circuits, W_r of spectral norm 1: stable for inputs of order one and small gains, else not always.

Every circuit is drawn at the fixed point that Newton's method reaches from that of W_r = I; titles count, where it
reaches none the circuit is counted in the legend. W in [0, 1], time constants of 1 to 10 ms, b, b0 and sigma from a
tenth of the largest gain up.
a: 300 circuits of each size, Gaussian W_r, |z| = 1, gains up to 0.5. b: 2,000 of two neurons, gains up to 1.
c: 300 of ten neurons, orthogonal W_r, |z| = 5, gains up to 0.5.
"""

from __future__ import annotations

import numpy as np

import organics_core as oc
from organics_plot import analysis as plot
from organics_plot.styles import CYCLE, THEORY, new_figure

from ._shared import Figure, Numbers, random_circuits

SOURCE = "the paper's"
SECONDS = 5

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
    """Histograms of every circuit; those whose fixed point was not found are counted."""
    figure, axes = new_figure(1, 3, (14.0, 4.2))
    left, middle, right = axes[0]
    groups = {f"n = {size}": n[f"abscissa_{size}"] for size in n["sizes"]}
    every = np.concatenate(list(groups.values()))
    plot.abscissa_histogram(groups, bins=30, ax=left)
    left.set_title(f"Gains up to 1/2: {(every < 0).sum()} of {len(every)} stable")
    left.legend(loc="upper left")
    for ax, values, title in (
        (middle, n["gains_to_one"], "Gains up to 1, n = 2: {bad} of {count} unstable"),
        (right, n["strong"], "Strong drive: {bad} of {count} unstable"),
    ):
        seen = values[np.isfinite(values)]
        edges = np.linspace(seen.min(), seen.max(), 41)
        edges -= edges[np.argmin(np.abs(edges))]  # no bar across zero
        width = edges[1] - edges[0]
        edges = np.concatenate([edges[:1] - width, edges, edges[-1:] + width])  # the shift leaves none out
        pair = {"stable": seen[seen < 0], "unstable": seen[seen >= 0]}
        pair = {name: group for name, group in pair.items() if len(group)}
        colors = [{"stable": CYCLE[0], "unstable": THEORY}[name] for name in pair]
        plot.abscissa_histogram(pair, bins=edges, color=colors, fill=True, lw=0, ax=ax)
        ax.set_xlim(edges[0], edges[-1])
        bad, missing = len(seen[seen >= 0]), len(values) - len(seen)
        ax.set_title(title.format(bad=bad, count=len(seen)))
        ax.legend(loc="upper right", title=f"{missing} more: none found" if missing else None, alignment="right")
    middle.set_yscale("log")
    middle.set_ylabel("Circuits  (logarithmic)")
    return figure
