"""Of two equal pulses the second is normalized by the memory of the first; with a longer pause it recovers.

One neuron, W_r = I, pulses of 100 ms at contrast 1, tau_y = 5 ms, tau_a = 100 ms, w = 4, sigma = 0.5, b = b0 = 1.
Right: mean rates over the pulses.
"""

from __future__ import annotations

import numpy as np

from organics_core import phenomena
from organics_plot.styles import CYCLE, INK, MUTED, new_figure, shades

from ._shared import RATE, Figure, Numbers

SOURCE = "phenomena"
SECONDS = 5


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Two equal pulses, the second normalized by the memory of the first."""
    shown = phenomena.temporal_pair(np.array([0.05, 0.1, 0.2, 0.4]))
    fine = phenomena.temporal_pair(0.6 * np.linspace(0.0, 1.0, 7 if quick else 61) ** 2)
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
    end = 1e3 * float(n["times"][-1])
    left.plot([end, end], [0.3 * top, 0.3 * top + 1], color=INK, lw=2.5, solid_capstyle="butt", clip_on=False)
    left.text(0.985 * end, 0.3 * top + 0.5, f"1 in {RATE[0].lower()}{RATE[1:]}", ha="right", va="center", fontsize=9)
    left.set_yticks(top * np.arange(len(colors)), [f"{1e3 * gap:.0f} ms" for gap in n["gaps"]])
    left.tick_params(axis="y", length=0)
    left.spines["left"].set_visible(False)
    left.set(xlabel="Time (ms)", ylabel="Pause between the pulses", title="Responses to two pulses (grey)")
    left.margins(x=0)
    right.plot(1e3 * n["fine_gaps"], 100 * n["ratio"], color=CYCLE[0])
    for gap, ratio, color in zip(n["gaps"], n["second"] / n["first"], colors, strict=True):
        right.plot(1e3 * gap, 100 * ratio, "o", ms=8, color=color, mec="white", mew=1)
    right.axhline(100, color=MUTED, lw=1, ls=":")
    right.set(xlabel="Pause between the pulses (ms)", ylabel="Second response (% of the first)")
    right.set(title="Recovery with the pause", xlim=(0, None))
    return figure
