"""Pictures of training: loss, accuracy, gradient norm and stability, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from organics_core import checks
from organics_train.records import EpochRecord

from .styles import CYCLE, INK, LIBRARY_COLORS, MARKERS, MUTED, SHADE, axes_or_current

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTITIES = {
    "loss": "Training loss (nats)",
    "test_accuracy": "Test accuracy (%)",
    "gradient_norm": "Gradient norm",
    "spectral_abscissa": "Largest Re λ  (1/step)",
}


def training_curve(
    records: Mapping[str, Sequence[EpochRecord]],
    quantity: str,
    *,
    target: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One quantity of the training records over the epochs, one line per run.

    Parameters
    ----------
    records : mapping of str to sequences of EpochRecord
        Runs by name, of a framework for instance.
    quantity : {"loss", "test_accuracy", "gradient_norm", "spectral_abscissa"}
        The gradient norm is drawn with a band up to its largest value in the
        epoch; the largest real eigenvalue part with its stable side shaded.
    target : float, optional
        A line to reach.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For an unknown quantity.

    Examples
    --------
    >>> from organics_train import EpochRecord
    >>> records = [EpochRecord(k, 2.0 / k, 0.5, 0.5, 1.0, 2.0, -0.01, 3.0) for k in (1, 2, 3)]
    >>> ax = training_curve({"torch": records}, "loss")
    """
    checks.one_of("quantity", quantity, QUANTITIES)
    from matplotlib.ticker import MaxNLocator

    ax = axes_or_current(ax)
    scale = 100.0 if quantity == "test_accuracy" else 1.0
    spare = iter(CYCLE * 4)
    low, high = np.inf, -np.inf
    for k, (name, run) in enumerate(records.items()):
        color = LIBRARY_COLORS.get(name) or next(spare)
        epochs = np.asarray([record.epoch for record in run], dtype=float)
        values = scale * np.asarray([getattr(record, quantity) for record in run], dtype=float)
        known = np.isfinite(values)
        if not known.any():
            continue
        if quantity == "gradient_norm":
            largest = np.asarray([record.gradient_norm_max for record in run], dtype=float)
            ax.fill_between(epochs[known], values[known], largest[known], color=color, alpha=0.13, lw=0)
        low, high = min(low, float(values[known].min())), max(high, float(values[known].max()))
        ax.plot(epochs[known], values[known], color=color, marker=MARKERS[k % len(MARKERS)], ms=4, label=name)
    ax.set(xlabel="Epoch", ylabel=QUANTITIES[quantity])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y")
    if quantity in ("loss", "gradient_norm") and low > 0:
        ax.set_yscale("log")
        few_log_ticks(ax)
    if quantity == "spectral_abscissa" and np.isfinite(low):
        span = max(high, 0.0) - low or 1.0
        ax.set_ylim(low - 0.12 * span, max(high, 0.0) + 0.12 * span)
        ax.axhspan(ax.get_ylim()[0], 0, color=SHADE, lw=0, zorder=0)
        ax.axhline(0, color=INK, lw=1)
        ax.text(0.985, 0.03, "stable", transform=ax.transAxes, ha="right", va="bottom", color=MUTED)
    if target is not None:
        ax.axhline(scale * target, color=MUTED, lw=1.2, ls=(0, (4, 3)))
    return ax


def few_log_ticks(ax: Axes) -> None:
    """Plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
