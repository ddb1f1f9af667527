"""A trained static network: largest real eigenvalue part at every test image, by layer, and while learning.

Circuits with time constants of 1, hence the unit 1/tau. Unless it comes from a checkpoint: an encoder and two layers
of 40 units with W_r = I and sigma = 1, trained with Adam on MNIST where it is found, else on small digits. Images for
which a layer finds no fixed point are not drawn, and not counted as stable. Last panel: the median image and the range
of all.
"""

from __future__ import annotations

import numpy as np

from organics_plot import analysis as plot
from organics_plot.styles import CYCLE, new_figure, percent

from . import _networks
from ._shared import TASKS, Figure, Numbers

SOURCE = "the paper's"
SECONDS = 60
TRAINS = True
TAKES = "static"


def numbers(*, seed: int = 0, quick: bool = False, checkpoint: _networks.Given | None = None) -> Numbers:
    """A trained static classifier: the largest real eigenvalue part at every test image, and while it learned."""
    history: Numbers = {}
    if checkpoint is None:
        trained = _networks.train_static(seed, quick)
        checkpoint, history = trained.given, trained.history
    x = checkpoint.x.reshape(len(checkpoint.x), -1)
    layers = {f"layer_{index}": values for index, values in enumerate(checkpoint.static.abscissae(x), start=1)}
    return {"task": np.array(checkpoint.task)} | layers | history


def draw(n: Numbers) -> Figure:
    """Histograms per layer, and the eigenvalue while training."""
    count = sum(name.startswith("layer_") for name in n)
    learned = "median_1" in n
    figure, axes = new_figure(1, count + learned, (4.6 * (count + learned), 4.0))
    for index, ax in enumerate(axes[0, :count], start=1):
        values = n[f"layer_{index}"]
        plot.abscissa_histogram(values, unit="1/τ", what="Test images", color=CYCLE[index - 1], ax=ax)
        ax.locator_params(axis="x", nbins=6)
        images = f"{len(values):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
        ax.set_title(f"Layer {index}: {'all' if (values < 0).all() else (values < 0).sum()} of {images} stable")
    if learned:
        ax = axes[0, count]
        for index in range(1, count + 1):
            epochs, color = np.arange(len(n[f"median_{index}"])), CYCLE[index - 1]
            ax.fill_between(epochs, n[f"lowest_{index}"], n[f"highest_{index}"], color=color, alpha=0.18, lw=0)
            ax.plot(epochs, n[f"median_{index}"], color=color, label=f"layer {index}")
        ax.set(xlabel="Epoch", ylabel=f"{plot.ABSCISSA}  (1/τ)", title="While it learns (band: all images)")
        ax.set_xlim(0, epochs[-1])
        ax.xaxis.get_major_locator().set_params(integer=True)
        plot.stable_side(ax)
        ax.legend(loc="upper right", bbox_to_anchor=(1.0, 0.86))
    accuracy = f", {percent(round(float(n['accuracy'][-1]), 4))} right" if learned else ""
    figure.suptitle(f"A static network on {TASKS.get(str(n['task']), str(n['task']))}{accuracy}", x=0.01, ha="left")
    return figure
