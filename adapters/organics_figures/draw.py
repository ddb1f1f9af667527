"""From numbers to pictures, in the house style. Every panel is drawn by a function that takes an ``Axes``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from organics_plot import matrix
from organics_plot.style import COLORS, CYCLE, INK, MUTED, SHADE, THEORY, new_figure, percent, ramp, shades

from .numbers import PORTRAITS, Numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SYMBOLS = {"w_r": "$w_r$", "b0": "$b_0$", "sigma": "$\\sigma$", "tau_a": "$\\tau_a$", "tau_y": "$\\tau_y$"}
BASINS = ("#E3EFF8", "#FBEBD3", "#DDF1E8")


def phase_portrait(y: Any, a: Any, dy: Any, da: Any, points: Any, stable: Any, basin: Any = None, *, ax: Axes) -> Axes:
    """Flow, nullclines, fixed points (filled: stable) and basins of one neuron.

    Parameters
    ----------
    y, a : arrays (K,), (L,)
        The grid.
    dy, da : arrays (L, K)
        The vector field on it.
    points : array (P, 2)
        Fixed points (y, a).
    stable : boolean array (P,)
    basin : integer array (L, K), optional
        Index of the fixed point where a trajectory ends, -1 for none.
    ax : matplotlib Axes

    Returns
    -------
    matplotlib Axes
    """
    if basin is not None and len(np.unique(basin)) > 1:
        from matplotlib.colors import BoundaryNorm, ListedColormap

        colors = ListedColormap(["white", *BASINS])
        ax.pcolormesh(y, a, basin, cmap=colors, norm=BoundaryNorm(np.arange(-1.5, 3.0), 4), rasterized=True, zorder=0)
    ax.streamplot(y, a, dy, da, color="#A9B4BD", linewidth=0.7, arrowsize=0.7, density=0.9, zorder=1)
    for field, color in ((dy, COLORS["blue"]), (da, COLORS["red"])):
        ax.contour(y, a, field, levels=[0.0], colors=[color], linewidths=2.0, zorder=2)
    for (py, pa), fine in zip(points, stable, strict=True):
        ax.plot(py, pa, "o", ms=9, mfc=INK if fine else "white", mec=INK, mew=1.8, zorder=4)
    ax.set(xlim=(y[0], y[-1]), ylim=(0, a[-1]), xlabel="y", ylabel="a")
    return ax


def phase_portraits(n: Numbers) -> Figure:
    """Six portraits."""
    figure, axes = new_figure(2, 3, (11.5, 6.8))
    for index, (title, ax) in enumerate(zip(PORTRAITS, axes.flat, strict=True)):
        parts = (n[f"{name}_{index}"] for name in ("a", "dy", "da", "points", "stable", "basin"))
        phase_portrait(n["y"], *parts, ax=ax)
        for plain, symbol in SYMBOLS.items():
            title = title.replace(plain, symbol)
        ax.set_title(title)
    handles = [
        _line(COLORS["blue"], "dy/dt = 0"),
        _line(COLORS["red"], "da/dt = 0"),
        _dot(INK, "stable"),
        _dot("white", "unstable"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _line(color: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, lw=2, label=label)


def _dot(fill: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], ls="", marker="o", ms=8, mfc=fill, mec=INK, mew=1.6, label=label)


def convergence(n: Numbers) -> Figure:
    """Residuals against iterations."""
    figure, axes = new_figure(1, 2, (9.5, 4.0), sharey=True)
    for ax, method, title in zip(axes.flat, ("iteration", "newton"), ("Fixed-point iteration", "Newton"), strict=True):
        residual = n[method]
        steps = np.arange(1, len(residual) + 1)
        logs = np.log10(residual)
        mean, spread = logs.mean(axis=1), logs.std(axis=1)
        ax.fill_between(steps, 10 ** (mean - spread), 10 ** (mean + spread), color=CYCLE[0], alpha=0.18, lw=0)
        ax.plot(steps, 10**mean, color=CYCLE[0], label="mean (band: one standard deviation)")
        ax.plot(steps, residual.max(axis=1), color=THEORY, lw=1.5, ls="--", label="worst circuit")
        ax.set(yscale="log", xlabel="Iteration", title=title, xlim=(1, steps[-1]))
    axes[0, 0].set_ylabel("Relative residual")
    axes[0, 0].legend(loc="upper right")
    return figure


def iterates(n: Numbers) -> Figure:
    """Weights and iterates."""
    figure, axes = new_figure(1, 2, (9.5, 4.0), width_ratios=(1, 1.35))
    matrix(n["w_r"], label="weight", ax=axes[0, 0])
    axes[0, 0].set_title("Recurrent weights $W_r$")
    ax = axes[0, 1]
    steps = np.arange(1, len(n["a"]) + 1)
    for color, path, end in zip(shades(n["a"].shape[1]), n["a"].T, n["fixed"], strict=True):
        ax.plot(steps, path, color=color, lw=1.6)
        ax.plot(steps[-1] + 0.8, end, "o", ms=5, color=color, clip_on=False)
    ax.set(
        xlabel="Iteration", ylabel="Modulators  a", title="Iterates (dots: Newton's fixed point)", xlim=(1, steps[-1])
    )
    return figure


def random_stability(n: Numbers) -> Figure:
    """Histograms over random circuits."""
    figure, axes = new_figure(1, 2, (10.0, 4.0))
    left, right = axes[0]
    values = [n[f"abscissa_{size}"] for size in n["sizes"]]
    total, stable = sum(map(len, values)), int(sum((v < 0).sum() for v in values))
    bins = np.linspace(min(v.min() for v in values), 0.0, 31)
    colors = shades(len(values))
    left.hist(values, bins=bins, color=colors, stacked=True, label=[f"n = {size}" for size in n["sizes"]])
    left.set_title(f"Inputs of order one: {stable} of {total} stable")
    left.legend(loc="upper left")
    strong = n["strong"][np.isfinite(n["strong"])]
    edges = np.linspace(strong.min(), np.quantile(strong, 0.98), 41)
    right.hist(strong[strong < 0], bins=edges, color=CYCLE[0], label="stable")
    right.hist(strong[strong >= 0], bins=edges, color=THEORY, label="unstable")
    right.set_title(f"Strong drive, orthogonal $W_r$: {percent((strong >= 0).mean())} unstable")
    right.legend(loc="upper right")
    for ax in (left, right):
        ax.axvline(0, color=INK, lw=1)
        ax.set(xlabel="Largest real eigenvalue part  (1/s)", ylabel="Circuits")
    return figure


def energy(n: Numbers) -> Figure:
    """Energies over time."""
    figure, axes = new_figure(1, 2, (9.5, 4.0), sharey=True)
    for ax, name, title in zip(axes.flat, ("small", "large"), ("Disturbed by 5 %", "Disturbed by 80 %"), strict=True):
        ax.plot(1e3 * n["times"], n[name] / n[name][0], color=CYCLE[0], lw=1.2, alpha=0.7)
        ax.set(yscale="log", xlabel="Time (ms)", title=title, ylim=(1e-5, 2))
        ax.margins(x=0)
    axes[0, 0].set_ylabel("Energy, relative to the start")
    return figure


def noise_spectra(n: Numbers) -> Figure:
    """Spectra against contrast."""
    figure, axes = new_figure(1, 2, (10.0, 4.2))
    titles = ("Two populations", "V1, three populations")
    for ax, name, title in zip(axes.flat, ("main", "v1"), titles, strict=True):
        for contrast, power, color in zip(n["contrasts"], n[name], shades(len(n["contrasts"])), strict=True):
            ax.loglog(n["frequencies"], power, color=color, label=percent(contrast))
        ax.set_xticks([1, 10, 100], ["1", "10", "100"])
        ax.set(xlabel="Frequency (Hz)", ylabel="Power of y  (1/Hz)", title=title)
        ax.margins(x=0)
    axes[0, 1].axvspan(30, 80, color=SHADE, lw=0, zorder=0)
    axes[0, 1].text(49, 0.03, "gamma", transform=axes[0, 1].get_xaxis_transform(), color=MUTED, ha="center")
    axes[0, 0].legend(title="contrast", loc="upper right")
    return figure


def phase_diagram(n: Numbers) -> Figure:
    """What becomes of random circuits."""
    from matplotlib.colors import LogNorm

    figure, axes = new_figure(1, 4, (14.0, 3.7), sharey=True)
    kinds = ("stable fixed point", "limit cycle", "divergence")
    for ax, code, title in zip(axes.flat, range(3), kinds, strict=False):
        share = (n["kind"] == code).mean(axis=-1)
        image = ax.pcolormesh(n["norms"], n["deltas"], share, cmap=ramp(), vmin=0, vmax=1, shading="nearest")
        ax.set_title(title.capitalize())
    figure.colorbar(image, ax=list(axes[0, :3]), label="share of draws", shrink=0.9)
    with np.errstate(all="ignore"):
        distance = np.nanmedian(np.where(n["kind"] == 0, n["distance"], np.nan), axis=-1)
    scale = LogNorm(0.01, 10.0)
    image = axes[0, 3].pcolormesh(n["norms"], n["deltas"], distance, cmap="magma_r", norm=scale, shading="nearest")
    axes[0, 3].set_title("Distance to normalization")
    figure.colorbar(image, ax=axes[0, 3], label="relative, where stable", shrink=0.9)
    for ax in axes.flat:
        ax.set(xscale="log", xlabel="Norm of the input")
        ax.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
    axes[0, 0].set_ylabel("Recurrence strength  δ")
    return figure


def training(n: Numbers) -> Figure:
    """Loss, gradient norm, eigenvalue while training."""
    figure, axes = new_figure(1, 3, (12.5, 3.7))
    epochs = np.arange(1, len(n["loss"]) + 1)
    panels = (("loss", "Loss (nats)"), ("gradient_norm_max", "Largest gradient norm"), ("spectral_abscissa", None))
    for ax, (name, label) in zip(axes.flat, panels, strict=True):
        ax.plot(epochs, n[name], color=CYCLE[0])
        ax.set(xlabel="Epoch", ylabel=label or "Largest real eigenvalue part  (1/step)")
        ax.margins(x=0)
    axes[0, 0].set_title(f"Test accuracy {percent(n['test_accuracy'][-1])}")
    axes[0, 1].set_title("No clipping")
    axes[0, 2].set_title(
        "Stable while it learns" if np.nanmax(n["spectral_abscissa"]) < 0 else "Stability while it learns"
    )
    axes[0, 2].axhline(0, color=INK, lw=1)
    return figure


def trajectories(n: Numbers) -> Figure:
    """Hidden states in their principal plane."""
    figure, axes = new_figure(1, 1, (6.4, 5.2))
    ax = axes[0, 0]
    chosen = (0, 1, 4, 7)
    for digit, color in zip(chosen, CYCLE, strict=False):
        paths = n["trajectories"][n["labels"] == digit]
        for path in paths:
            ax.plot(path[:, 0], path[:, 1], color=color, lw=0.7, alpha=0.35)
        ax.plot(paths[:, -1, 0], paths[:, -1, 1], ls="", marker="o", ms=5, color=color, label=f"digit {digit}")
    ax.set(xlabel="First principal axis of y", ylabel="Second principal axis of y", title="Eight rows of a digit")
    ax.legend(loc="best")
    return figure


def static_stability(n: Numbers) -> Figure:
    """Histograms per layer."""
    names = sorted(name for name in n if name.startswith("layer_"))
    figure, axes = new_figure(1, len(names), (4.8 * len(names), 3.9))
    for ax, name in zip(axes.flat, names, strict=True):
        ax.hist(n[name], bins=30, color=CYCLE[0])
        ax.axvline(0, color=INK, lw=1)
        ax.set(
            xlabel="Largest real eigenvalue part  (1/τ)",
            ylabel="Test images",
            title=name.replace("_", " ").capitalize(),
        )
    return figure
