"""Power spectra of noisy circuits at rising contrast; the V1 circuit resonates in the gamma band, at a frequency that
rises with contrast, and with a power that falls.

The noise drives y with amplitude 1 at every contrast, so that stronger normalization damps it: the frequency of the
peak rises as in cortex, its power falls, where that recorded in V1 grows (Henrie & Shapley 2005). Densities are
two-sided, dots the peaks. One neuron, W_r = I, w = 1. Two populations: b = b0 = 1, sigma = 0.1, tau_y = tau_a = 4 ms.
V1: b0 = 0.5, sigma = 0.1, alpha = 1, tau_y = 1 ms, tau_u = 2 ms, tau_a = 1 ms.
"""

from __future__ import annotations

import numpy as np

import organics_core as oc
from organics_plot import analysis as plot
from organics_plot.styles import CYCLE, MUTED, SHADE, new_figure, percent, shades

from ._shared import Figure, Numbers

SOURCE = "phenomena"
SECONDS = 2


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Power spectra of y at rising contrast: the two-population circuit, and the V1 circuit with its gamma peak."""
    contrasts = np.array([0.03, 0.1, 0.3, 1.0])
    frequencies = np.geomspace(1.0, 400.0, 300)
    circuit = oc.Circuit(None, np.ones((1, 1)), 1.0, 1.0, 0.1, 0.004, 0.004)
    v1 = oc.V1Circuit(None, np.ones((1, 1)), 0.5, 0.1, 1.0, 0.001, 0.002, 0.001)
    z = contrasts[:, None]
    main = oc.power_spectrum(circuit, oc.steady_state(circuit, z).state, (1.0, 0.0), frequencies)
    gamma = oc.power_spectrum(v1, oc.steady_state(v1, z).state, (1.0, 0.0, 0.0), frequencies)
    fine = np.geomspace(0.03, 1.0, 12 if quick else 60)
    return {
        "contrasts": contrasts,
        "frequencies": frequencies,
        "main": main[..., 0, 0].real,
        "v1": gamma[..., 0, 0].real,
        "gamma_peak": oc.gamma_peak(v1, z)[0],
        "fine_contrasts": fine,
        "fine_peak": oc.gamma_peak(v1, fine[:, None])[0],
    }


def draw(n: Numbers) -> Figure:
    """Spectra against contrast, and the frequency of the gamma peak."""
    figure, axes = new_figure(1, 3, (14.0, 4.3))
    labels = [percent(contrast) for contrast in n["contrasts"]]
    titles = ("Two populations", "V1, three populations: power falls")
    for ax, name, title in zip(axes.flat, ("main", "v1"), titles, strict=False):
        plot.spectrum_lines(n["frequencies"], n[name], labels=labels, ax=ax)
        ax.set_title(title)
    gamma = {"color": SHADE, "lw": 0, "zorder": 0}
    axes[0, 1].axvspan(30, 80, **gamma)
    axes[0, 1].text(49, 0.03, "gamma", transform=axes[0, 1].get_xaxis_transform(), color=MUTED, ha="center")
    axes[0, 0].legend(title="Contrast", loc="upper right")
    ax = axes[0, 2]
    ax.axhspan(30, 80, **gamma)
    ax.text(0.985, 77, "gamma", transform=ax.get_yaxis_transform(), color=MUTED, ha="right", va="top")
    ax.plot(n["fine_contrasts"], n["fine_peak"], color=CYCLE[0])
    for contrast, peak, color in zip(n["contrasts"], n["gamma_peak"], shades(len(labels)), strict=True):
        ax.plot(contrast, peak, "o", ms=8, color=color, mec="white", mew=1, clip_on=False)
    plot.contrast_axis(ax, n["fine_contrasts"])
    ax.set_xlim(0.08, 1.0)
    ax.set(ylabel="Frequency of the peak (Hz)", title="V1: the peak's frequency rises", ylim=(0, 85))
    ax.set_xticks([0.1, 0.3, 1.0], [percent(c) for c in (0.1, 0.3, 1.0)])
    return figure
