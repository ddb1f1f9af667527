"""The curve of a training run, as a PNG."""

from __future__ import annotations

import io
import math
from typing import Any

from organics_plot.styles import COLORS, MUTED, new_figure, style
from organics_plot.training import few_log_ticks


def draw(results: dict[str, Any]) -> bytes:
    """Loss, accuracy and gradient norm over the epochs.

    Parameters
    ----------
    results : dict
        Of :func:`organics_train.train`, or read from its ``results.json``.

    Returns
    -------
    bytes
        A PNG file.
    """
    records = results["epochs"]
    epochs = [record["epoch"] for record in records]

    def column(name: str) -> list[float]:
        values = [math.nan if record[name] is None else record[name] for record in records]  # JSON has no NaN
        return [(100 if name.endswith("accuracy") else 1) * value for value in values]

    with style():
        figure, axes = new_figure(1, 3, (13, 4.2))
        loss, accuracy, norm = axes[0]
        for ax, label, first, second in (
            (loss, "Loss", ("training", "loss"), ("validation", "validation_loss")),
            (accuracy, "Accuracy (%)", ("training", "train_accuracy"), ("validation", "validation_accuracy")),
            (norm, "Gradient norm, never clipped", ("mean", "gradient_norm"), ("largest", "gradient_norm_max")),
        ):
            for (name, field), color, mark in ((first, COLORS["blue"], "o-"), (second, COLORS["red"], "s--")):
                ax.plot(epochs, column(field), mark, color=color, ms=4, label=name)
            ax.set(xlabel="Epoch", ylabel=label)
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.grid(axis="y")
        accuracy.axhline(100 * results["test_accuracy"], color=MUTED, lw=1.2, ls=":", label="test")
        for ax, fields in ((loss, ("loss", "validation_loss")), (norm, ("gradient_norm",))):
            if min(value for field in fields for value in column(field)) > 0:
                ax.set_yscale("log")
                few_log_ticks(ax)
        for ax in axes[0]:
            ax.legend()
        config = results["config"]
        title = (
            f"{results['model']} on {config['task']}, {results['hidden']} hidden, {results['parameters']} parameters"
        )
        figure.suptitle(f"{title}: {100 * results['test_accuracy']:.2f} % test")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
