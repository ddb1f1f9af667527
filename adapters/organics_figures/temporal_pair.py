"""Of two equal pulses the second is normalized by the memory of the first; with a longer pause it recovers."""

from __future__ import annotations

import numpy as np

from organics_core import phenomena
from organics_plot.styles import CYCLE, MUTED, new_figure, shades

from ._shared import Figure, Numbers


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Two equal pulses, the second normalized by the memory of the first."""
    shown = phenomena.temporal_pair(np.array([0.05, 0.1, 0.2, 0.4]))
    fine = phenomena.temporal_pair(np.linspace(0.0, 0.6, 7 if quick else 40))
    return shown._asdict() | {"fine_gaps": fine.gaps, "ratio": fine.second / fine.first}


def draw(n: Numbers) -> Figure:
    """Responses over time, and the second response relative to the first."""
    figure, axes = new_figure(1, 2, (10.5, 4.4), width_ratios=(1.25, 1))
    left, right = axes[0]
    colors = shades(len(n["gaps"]))
    rates, top = n["rates"], 1.25 * float(n["rates"].max())
    for k, color in enumerate(colors):
        on = n["drive"][:, k] > 0
        left.fill_between(1e3 * n["times"], k * top, k * top + 0.12 * top * on, where=on, color="#D5D9DD", lw=0)
        left.plot(1e3 * n["times"], k * top + rates[:, k], color=color)
    left.set_yticks(top * np.arange(len(colors)), [f"{1e3 * gap:.0f} ms" for gap in n["gaps"]])
    left.tick_params(axis="y", length=0)
    left.spines["left"].set_visible(False)
    left.set(xlabel="Time (ms)", ylabel="Pause between the pulses", title="Responses to two pulses (grey)")
    left.margins(x=0)
    right.plot(1e3 * n["fine_gaps"], 100 * n["ratio"], color=CYCLE[0])
    for gap, color in zip(n["gaps"], colors, strict=True):
        ratio = 100 * np.interp(gap, n["fine_gaps"], n["ratio"])
        right.plot(1e3 * gap, ratio, "o", ms=8, color=color, mec="white", mew=1)
    right.axhline(100, color=MUTED, lw=1, ls=":")
    right.set(xlabel="Pause between the pulses (ms)", ylabel="Second response (% of the first)")
    right.set(title="Recovery with the pause", xlim=(0, None))
    return figure
