"""Membrane potentials of the trained recurrent classifier, in the plane of their first two principal axes.

200 test sequences of all ten digits; lines: the steps, dots: the last, circle: the mean of the first. The axes say
how much of the variance of y over all steps and sequences they explain. Unless it comes from a checkpoint the network
has cells of the variant rectified_recurrence with a learned W_r that starts orthogonal, and is trained with learning
rate 0.01 in batches of 128.
"""

from __future__ import annotations

import numpy as np

from organics_plot import analysis as plot
from organics_plot.analysis import principal_plane
from organics_plot.styles import INK, new_figure

from . import _networks
from ._shared import TASKS, Figure, Numbers

SOURCE = "the paper's"
SECONDS = 30
TRAINS = True
TAKES = "recurrent"


def numbers(*, seed: int = 0, quick: bool = False, checkpoint: _networks.Given | None = None) -> Numbers:
    """Membrane potentials of a trained recurrent classifier for 200 test sequences, in their principal plane."""
    given = _networks.train_recurrent(seed, quick, "orthogonal").given if checkpoint is None else checkpoint
    paths, explained = principal_plane(given.recurrent.outputs(given.x[:200]))
    return {
        "task": np.array(given.task),
        "paths": paths,
        "explained": explained,
        "labels": given.y[:200],
    }


def draw(n: Numbers) -> Figure:
    """Hidden states in their principal plane."""
    figure, axes = new_figure(1, 1, (6.8, 5.4))
    ax = axes[0, 0]
    plot.hidden_trajectories(n["paths"], n["labels"], explained=n["explained"], lw=0.6, alpha=0.3, ax=ax)
    start = n["paths"][:, 0].mean(axis=0)
    ax.plot(*start, "o", ms=8, mfc="white", mec=INK, mew=1.6, zorder=5, label="first, mean")
    ax.set_title(f"Reading {TASKS.get(str(n['task']), str(n['task']))}, step by step")
    ax.legend(title="Digit", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
