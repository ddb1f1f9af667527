"""What several figures share: their types, random circuits, one neuron, and pieces of legends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import organics_core as oc
from organics_plot.circuits import RATE
from organics_plot.styles import INK, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = Any  # drawing loads matplotlib, the list of the figures does not

__all__ = [
    "RATE",
    "TASKS",
    "Figure",
    "Numbers",
    "curves",
    "dot",
    "line",
    "one_neuron",
    "patch",
    "random_circuits",
    "reached",
]

Numbers = dict[str, Any]
"""What a figure computes: arrays by name."""

TASKS = {"digits": "small digits", "mnist": "MNIST", "rowmnist": "rows of MNIST"}


def one_neuron(**changes: float) -> oc.Circuit:
    """The neuron of the phase portraits, with some parameters changed."""
    p = {"w_r": 1.0, "w": 1.0, "b": 0.5, "b0": 0.5, "sigma": 0.1, "tau_y": 0.002, "tau_a": 0.002} | changes
    matrices = {name: np.array([[p.pop(name)]]) for name in ("w_r", "w")}
    return oc.Circuit(**matrices, **p)


def random_circuits(
    count: int, n: int, seed: int, *, norm: float = 1.0, gain: float = 0.5
) -> tuple[oc.Circuit, np.ndarray]:
    """A batch of circuits: largest singular value ``norm`` of W_r, unit input; b, b0 and sigma up to ``gain``."""
    rng = np.random.default_rng(seed)
    w_r = rng.standard_normal((count, n, n))
    w_r *= norm / np.linalg.norm(w_r, 2, axis=(-2, -1), keepdims=True)
    z = rng.standard_normal((count, n))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    b, b0, sigma = (rng.uniform(0.1 * gain, gain, (count, n)) for _ in range(3))
    tau_y, tau_a = (rng.uniform(0.001, 0.01, (count, n)) for _ in range(2))
    return oc.Circuit(w_r, rng.uniform(0.0, 1.0, (count, n, n)), b, b0, sigma, tau_y, tau_a), z


def line(color: str, label: str, **style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"color": color, "lw": 2, "label": label, **style})


def dot(fill: str, label: str) -> Any:
    return line(INK, label, ls="", marker="o", ms=8, mfc=fill, mec=INK, mew=1.6)


def patch(color: str, label: str, edge: str | None = None) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=color, edgecolor=edge or color, label=label)


def curves(x: Any, rows: Any, labels: Any, ax: Axes) -> None:
    """Lines from light to dark, normalized by none."""
    for row, label, color in zip(rows, labels, shades(len(rows)), strict=True):
        ax.plot(x, row, color=color, label=label)
    ax.set(ylabel=RATE)
    ax.set_ylim(bottom=0)
    ax.margins(x=0)


def reached(run: oc.Trajectory) -> oc.Trajectory:
    """The run itself; ArithmeticError where it did not reach its last time."""
    if not run.success:
        raise ArithmeticError(f"a simulation of this figure did not reach its end: {run.message}")
    return run
