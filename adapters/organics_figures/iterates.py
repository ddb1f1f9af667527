"""One random circuit of ten neurons: its recurrent weights, and the fixed-point iteration.

Colours and dashes tell the neurons apart; they have no order. Gaussian W_r of spectral norm 1, W in [0, 1], |z| = 1,
b, b0 and sigma in [0.1, 1], time constants of 1 to 10 ms. The iteration starts at the fixed point for W_r = I.
"""

from __future__ import annotations

import numpy as np

import organics_core as oc
from organics_plot import analysis as plot
from organics_plot import matrix
from organics_plot.analysis import iterate_path
from organics_plot.styles import distinct, new_figure

from ._shared import Figure, Numbers, random_circuits

SOURCE = "the paper's"
SECONDS = 2


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """The recurrent weights of one circuit, and the modulators over the fixed-point iteration."""
    circuit, z = random_circuits(1, 10, seed, gain=1.0)
    circuit, z = oc.Circuit(*(field[0] for field in circuit)), z[0]
    fixed = oc.steady_state(circuit, z).state.a
    return {"w_r": circuit.w_r, "a": iterate_path(circuit, z, iterations=20), "fixed": fixed}


def draw(n: Numbers) -> Figure:
    """Weights and iterates."""
    figure, axes = new_figure(1, 3, (14.2, 4.0), width_ratios=(1.15, 1.2, 1.2))
    matrix(n["w_r"], label="weight", ax=axes[0, 0])
    axes[0, 0].set_title("Recurrent weights $W_r$")
    ticks = np.arange(0, len(n["w_r"]), 3)
    axes[0, 0].set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axes[0, 0].set_yticks(ticks, [str(tick + 1) for tick in ticks])
    axes[0, 0].set(xlabel="From neuron", ylabel="To neuron")
    shown = n["a"][:9]
    plot.iterates(shown, fixed=n["fixed"], ax=axes[0, 1])
    axes[0, 1].set_title("Modulators (dots: Newton)")
    distance = np.maximum(np.abs(n["a"] - n["fixed"]) / n["fixed"], plot.FLOOR)
    ax = axes[0, 2]
    for i, (path, look) in enumerate(zip(distance.T, distinct(distance.shape[1]), strict=True)):
        ax.semilogy(np.arange(len(path)), path, lw=1.6, label=f"{i + 1}", **look)
    ax.legend(title="Neuron", loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.2)
    ax.set(xlabel="Iteration", ylabel="Relative distance", title="Distance from the fixed point")
    ax.set(xlim=(0, len(distance) - 1), ylim=(1e-16, 3))
    for ax, step in zip(axes[0, 1:], (2, 5), strict=True):
        ax.set_xticks(range(0, round(ax.get_xlim()[1]) + 1, step))
    return figure
