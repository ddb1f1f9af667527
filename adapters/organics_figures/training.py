"""Two recurrent classifiers of digits while they learn, without gradient clipping: loss, gradients, largest real
eigenvalue part, along the trajectories and at the fixed points, where W_r = I stays stable.

Rows of MNIST where it is found (6,000 examples, 8 epochs), else of small digits (20 epochs): 48 units, the variant
rectified_recurrence, learning rate 0.01, batches of 128, W_r learned from an orthogonal start or the identity.
Eigenvalues: the largest of the circuits at five moments of four test sequences, gains frozen, per step. Dashed lines
leave out circuits in which Newton's method finds no fixed point; where it finds none in any, the line ends with a
cross.
"""

from __future__ import annotations

import numpy as np

from organics_plot import analysis as plot
from organics_plot.styles import COLORS, CYCLE, INK, new_figure, percent
from organics_plot.training import few_log_ticks

from . import _networks
from ._shared import TASKS, Figure, Numbers, line

SOURCE = "the paper's"
SECONDS = 60
TRAINS = True


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Two recurrent classifiers of digits while they learn: W_r learned without bounds, and W_r = I."""
    found: Numbers = {}
    for name, recurrent in (("free", "orthogonal"), ("identity", "identity")):
        trained = _networks.train_recurrent(seed, quick, recurrent)
        found["task"] = np.array(trained.given.task)
        found |= {f"{field}_{name}": values for field, values in trained.history.items()}
    return found


def draw(n: Numbers) -> Figure:
    """Loss, gradient norm, eigenvalue while training."""
    figure, axes = new_figure(1, 3, (13.0, 3.9))
    runs = (("free", "$W_r$ learned", CYCLE[0]), ("identity", "$W_r$ = identity", COLORS["orange"]))
    lost = False
    for name, label, color in runs:
        epochs = np.arange(len(n[f"loss_{name}"]))
        axes[0, 0].plot(epochs, n[f"loss_{name}"], color=color, label=label)
        axes[0, 1].plot(epochs, n[f"norm_{name}"], color=color)
        axes[0, 2].plot(epochs, n[f"along_{name}"], color=color)
        settled = np.where(np.isfinite(n[f"settled_{name}"]), n[f"settled_{name}"], np.nan)
        axes[0, 2].plot(epochs, settled, color=color, lw=1.6, ls=(0, (4, 2)))
        # where a line ends because nothing was found
        ends = np.flatnonzero(np.isfinite(settled[:-1]) & np.isnan(settled[1:]))
        axes[0, 2].plot(epochs[ends], settled[ends], "x", color=color, ms=9, mew=2.4)
        lost |= bool(len(ends))
    axes[0, 0].legend(loc="upper right")
    task = TASKS[str(n["task"])]
    both = " and ".join(percent(round(float(n[f"accuracy_{name}"][-1]), 3)) for name, _, _ in runs)
    axes[0, 0].set(ylabel="Training loss (nats)", title=f"{task[:1].upper()}{task[1:]}: {both} right", ylim=0)
    axes[0, 1].set(ylabel="Largest gradient norm", title="Gradients, never clipped", yscale="log")
    axes[0, 2].set(ylabel=f"{plot.ABSCISSA}  (1/step)", title="Eigenvalues while it learns")
    handles = [line(INK, "along trajectories"), line(INK, "at their fixed points, where found", lw=1.6, ls=(0, (4, 2)))]
    handles += [line(INK, "none found after this", ls="", marker="x", ms=8, mew=2.2)] * lost
    axes[0, 2].legend(handles=handles, loc="upper left", fontsize="small")
    few_log_ticks(axes[0, 1])
    plot.stable_side(axes[0, 2])
    for ax in axes.flat:
        ax.set(xlabel="Epoch", xlim=(0, len(n["loss_free"]) - 1))
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure
