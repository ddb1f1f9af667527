"""The curve of a training run, as a PNG."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#555555"


def draw(results: dict[str, Any]) -> bytes:
    """Loss, accuracy and gradient norm over the epochs.

    Parameters
    ----------
    results : dict
        Of :func:`organics_train.train`.

    Returns
    -------
    bytes
        A PNG file.
    """
    records = results["epochs"]
    epochs = [record["epoch"] for record in records]

    def column(name: str) -> list[float]:
        return [record[name] for record in records]

    figure = Figure(figsize=(10, 3), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(epochs, column("loss"), ".-", color=BLUE, label="training")
    left.plot(epochs, column("validation_loss"), ".--", color=ORANGE, label="validation")
    left.set_ylabel("loss")
    middle.plot(epochs, column("train_accuracy"), ".-", color=BLUE, label="training")
    middle.plot(epochs, column("validation_accuracy"), ".--", color=ORANGE, label="validation")
    middle.axhline(results["test_accuracy"], color=GREY, lw=1, ls=":", label="test, at the end")
    middle.set_ylabel("accuracy")
    right.plot(epochs, column("gradient_norm"), ".-", color=BLUE, label="mean")
    right.plot(epochs, column("gradient_norm_max"), ".--", color=ORANGE, label="largest")
    right.set_ylabel("gradient norm, never clipped")
    if min(column("gradient_norm")) > 0:
        right.set_yscale("log")
    for axes in (left, middle, right):
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=8)
    config = results["config"]
    title = f"{results['model']} on {config['task']}, {results['hidden']} hidden, {results['parameters']} parameters"
    figure.suptitle(f"{title}: {100 * results['test_accuracy']:.2f} % test", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
