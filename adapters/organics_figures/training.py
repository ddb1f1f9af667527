"""Three recurrent classifiers of digits while they learn, gradients never clipped: what bounds on W_r change and cost.

Rows of MNIST where it is found (6,000 examples, 8 epochs), else of small digits (20 epochs): 48 units, the variant
rectified_recurrence, learning rate 0.01, batches of 128; W_r is learned from an orthogonal start, without bounds or
with a spectral norm of at most 1, or is the identity. Stability at five moments of four test sequences, the worst of
them. Eigenvalues: of the circuits, gains frozen, per step. Dashed lines leave out circuits in which Newton's method
finds no fixed point; where it finds none in any, the line ends with a cross. Spectral radius: of the Jacobian of the
step, the discrete map that is trained, gains included; below 1 small differences vanish.
"""

from __future__ import annotations

import numpy as np

from organics_plot import analysis as plot
from organics_plot.styles import COLORS, CYCLE, INK, new_figure, percent
from organics_plot.training import few_log_ticks

from . import _networks
from ._shared import TASKS, Figure, Numbers, line

SOURCE = "the paper's"
SECONDS = 90
TRAINS = True


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Recurrent classifiers of digits while they learn: W_r learned without bounds or within them, and W_r = I."""
    found: Numbers = {}
    for name, recurrent in (("free", "orthogonal"), ("spectral", "spectral"), ("identity", "identity")):
        trained = _networks.train_recurrent(seed, quick, recurrent)
        found["task"] = np.array(trained.given.task)
        found |= {f"{field}_{name}": values for field, values in trained.history.items()}
    return found


def draw(n: Numbers) -> Figure:
    """Accuracy, gradient norm, eigenvalues and spectral radius while training."""
    figure, axes = new_figure(2, 2, (10.5, 7.6))
    runs = (
        ("free", "$W_r$ learned", CYCLE[0]),
        ("spectral", r"$\Vert W_r\Vert \leq 1$", COLORS["green"]),
        ("identity", "$W_r$ = identity", COLORS["orange"]),
    )
    lost = False
    for name, label, color in runs:
        epochs = np.arange(len(n[f"loss_{name}"]))
        right = n[f"accuracy_{name}"]
        share = percent(round(float(right[-1]), 3))
        axes[0, 0].plot(epochs, 100 * right, color=color, label=f"{label}: {share}")
        axes[0, 1].plot(epochs, n[f"norm_{name}"], color=color)
        axes[1, 0].plot(epochs, n[f"along_{name}"], color=color)
        axes[1, 1].plot(epochs, n[f"radius_{name}"], color=color)
        settled = np.where(np.isfinite(n[f"settled_{name}"]), n[f"settled_{name}"], np.nan)
        axes[1, 0].plot(epochs, settled, color=color, lw=1.6, ls=(0, (4, 2)))
        # where a line ends because nothing was found
        ends = np.flatnonzero(np.isfinite(settled[:-1]) & np.isnan(settled[1:]))
        axes[1, 0].plot(epochs[ends], settled[ends], "x", color=color, ms=9, mew=2.4)
        lost |= bool(len(ends))
    learned = all(n[f"accuracy_{name}"][-1] > 0.5 for name, _, _ in runs)
    axes[0, 0].legend(loc="lower right" if learned else "upper right", title="right at the end")
    task = TASKS[str(n["task"])]
    axes[0, 0].set(ylabel="Test accuracy (%)", title=f"{task[:1].upper()}{task[1:]}", ylim=(0, 100))
    axes[0, 1].set(ylabel="Largest gradient norm", title="Gradients, never clipped", yscale="log")
    axes[1, 0].set(ylabel=f"{plot.ABSCISSA}  (1/step)", title="Eigenvalues while it learns")
    handles = [line(INK, "along trajectories"), line(INK, "at their fixed points, where found", lw=1.6, ls=(0, (4, 2)))]
    handles += [line(INK, "none found after this", ls="", marker="x", ms=8, mew=2.2)] * lost
    axes[1, 0].legend(handles=handles, loc="center right", fontsize="small")
    few_log_ticks(axes[0, 1])
    plot.stable_side(axes[1, 0])
    axes[1, 1].set(ylabel="Largest spectral radius of the step", title="The discrete map while it learns")
    plot.stable_side(axes[1, 1], below=1.0)
    for ax in axes.flat:
        ax.set(xlabel="Epoch", xlim=(0, len(n["loss_free"]) - 1))
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure
