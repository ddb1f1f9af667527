"""From numbers to pictures, in the house style. The panels are those of organics_plot, for a circuit of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import organics_core as oc
from organics_core.analysis.classification import KINDS
from organics_plot import analysis as plot
from organics_plot import matrix
from organics_plot.style import COLORS, CYCLE, INK, MUTED, SHADE, THEORY, new_figure, percent, shades
from organics_plot.training import few_log_ticks

from .numbers import ONE_OSCILLATING, PORTRAITS, Numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SYMBOLS = {
    "w_r": "$w_r$",
    "b0": "$b_0$",
    "sigma": "$\\sigma$",
    "tau_a": "$\\tau_a$",
    "tau_y": "$\\tau_y$",
    "-": "\N{MINUS SIGN}",
}
TASKS = {"digits": "small digits", "mnist": "MNIST", "rowmnist": "rows of MNIST"}
RATE = "Firing rate  ⌊y⌋²"


def _line(color: str, label: str, **style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"color": color, "lw": 2, "label": label, **style})


def _dot(fill: str, label: str) -> Any:
    return _line(INK, label, ls="", marker="o", ms=8, mfc=fill, mec=INK, mew=1.6)


def _patch(color: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color, label=label)


def phase_portraits(n: Numbers) -> Figure:
    """Nine portraits."""
    figure, axes = new_figure(3, 3, (11.5, 10.2))
    for index, (title, ax) in enumerate(zip(PORTRAITS, axes.flat, strict=True)):
        plot.phase_portrait(plot.Portrait(*(n[f"{name}_{index}"] for name in plot.Portrait._fields)), ax=ax)
        for plain, symbol in SYMBOLS.items():
            title = title.replace(plain, symbol)
        ax.set_title(title)
        ax.locator_params(nbins=5)
        if index % 3:
            ax.set_ylabel("")
        if index < 6:
            ax.set_xlabel("")
    handles = [
        _line(COLORS["blue"], "dy/dt = 0"),
        _line(COLORS["red"], "da/dt = 0"),
        _dot(INK, "stable"),
        _dot("white", "unstable"),
        _patch(plot.BASINS[0], "basin"),
        _patch(plot.BASINS[1], "second basin"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6)
    return figure


def stability_boundary(n: Numbers) -> Figure:
    """Three maps."""
    figure, axes = new_figure(1, 3, (13.0, 4.3))
    titles = ("Input against recurrence", "Pool against recurrence", "$w_r = -2$: input against sigma")
    for ax, name, title in zip(axes.flat, ("input", "pool", "sigma"), titles, strict=True):
        fields = {field: n[f"{name}_{field}"] for field in oc.StabilityBoundary._fields}
        first, second = (str(parameter) for parameter in fields.pop("parameters"))
        plot.boundary_map(oc.StabilityBoundary((first, second), tuple(fields.pop("values")), **fields), ax=ax)
        ax.set_title(title)
        ax.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
    axes[0, 2].set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
    handles = [
        _patch(plot.BASINS[0], "a stable fixed point exists"),
        _patch("#FFFFFF", "none is stable"),
        _line(THEORY, "boundary"),
    ]
    handles[1].set_edgecolor(MUTED)
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def convergence(n: Numbers) -> Figure:
    """Residuals against iterations."""
    figure, axes = new_figure(1, 1, (6.8, 4.6))
    ax = axes[0, 0]
    names = (("iteration", "fixed-point iteration", CYCLE[0]), ("newton", "Newton", COLORS["red"]))
    for method, _, color in names:
        plot.convergence(n[method], color=color, ax=ax)
    ax.axhline(np.finfo(float).eps, color=MUTED, lw=1, ls=":", zorder=0)
    edge = ax.get_yaxis_transform()
    ax.text(1.01, np.finfo(float).eps, "machine\nprecision", transform=edge, color=MUTED, va="center", fontsize=10)
    ax.set(xlim=(1, len(n["newton"])), ylim=(5e-18, 3))
    count = n["newton"].shape[1]
    ax.set_title(f"{count} random circuits of 10 + 10 units")
    handles = [_line(color, label) for _, label, color in names]
    handles += [_patch("#D5D9DD", "± one standard deviation"), _line(INK, "worst circuit", ls=(0, (4, 2)), lw=1.5)]
    ax.legend(handles=handles, loc="upper right")
    return figure


def iterates(n: Numbers) -> Figure:
    """Weights and iterates."""
    figure, axes = new_figure(1, 3, (13.5, 4.0), width_ratios=(1.15, 1.2, 1.2))
    matrix(n["w_r"], label="weight", ax=axes[0, 0])
    axes[0, 0].set_title("Recurrent weights $W_r$")
    ticks = np.arange(0, len(n["w_r"]), 3)
    axes[0, 0].set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axes[0, 0].set_yticks(ticks, [str(tick + 1) for tick in ticks])
    axes[0, 0].set(xlabel="From neuron", ylabel="To neuron")
    shown = n["a"][:9]
    plot.iterates(shown, fixed=n["fixed"], ax=axes[0, 1])
    axes[0, 1].set_title("Modulators (dots: Newton)")
    distance = np.maximum(np.abs(n["a"] - n["fixed"]) / n["fixed"], plot.FLOOR)
    ax = axes[0, 2]
    for path, color in zip(distance.T, shades(distance.shape[1]), strict=True):
        ax.semilogy(np.arange(len(path)), path, color=color, lw=1.6)
    ax.set(xlabel="Iteration", ylabel="Relative distance", title="Distance from the fixed point")
    ax.set(xlim=(0, len(distance) - 1), ylim=(1e-16, 3))
    for ax, step in zip(axes[0, 1:], (2, 5), strict=True):
        ax.set_xticks(range(0, round(ax.get_xlim()[1]) + 1, step))
    return figure


def random_stability(n: Numbers) -> Figure:
    """Histograms over random circuits."""
    figure, axes = new_figure(1, 2, (10.5, 4.0))
    left, right = axes[0]
    groups = {f"n = {size}": n[f"abscissa_{size}"] for size in n["sizes"]}
    every = np.concatenate(list(groups.values()))
    plot.abscissa_histogram(groups, bins=np.linspace(np.quantile(every, 0.002), 0.0, 31), ax=left)
    left.set_xlim(left.get_xlim()[0] if every.max() > 0 else np.quantile(every, 0.002), 15)
    left.set_title(f"Inputs of order one: {(every < 0).sum()} of {len(every)} stable")
    left.legend(loc="upper left")
    strong = n["strong"][np.isfinite(n["strong"])]
    lowest, highest = np.quantile(strong, (0.0, 0.98))
    edges = np.linspace(lowest, highest, 41)
    edges -= edges[np.argmin(np.abs(edges))]  # no bar across zero
    groups = {"stable": strong[strong < 0], "unstable": strong[strong >= 0]}
    plot.abscissa_histogram(groups, bins=edges, color=[CYCLE[0], THEORY], ax=right)
    right.set_xlim(edges[0], edges[-1])
    right.set_title(f"Strong drive, orthogonal $W_r$: {percent(round((strong >= 0).mean(), 2))} unstable")
    right.legend(loc="upper right")
    return figure


def energy(n: Numbers) -> Figure:
    """Levels of the energy for one neuron, and energies over time."""
    figure, axes = new_figure(1, 3, (13.5, 4.1))
    run = oc.Trajectory(None, oc.State(n["path_y"], n["path_a"]), None, None, None)
    plot.energy_landscape(ONE_OSCILLATING, np.array([1.0]), run, ax=axes[0, 0])
    axes[0, 0].set_title("One neuron: down the energy")
    for ax, name, title in zip(axes[0, 1:], ("small", "large"), ("by 5 %", "by 80 %"), strict=True):
        plot.energy_lines(n["times"], n[name] / n[name][0], ax=ax)
        ax.set(title=f"Ten neurons, disturbed {title}", ylim=(1e-5, 2))
    axes[0, 2].set_ylabel("")
    return figure


def noise_spectra(n: Numbers) -> Figure:
    """Spectra against contrast, and the frequency of the gamma peak."""
    figure, axes = new_figure(1, 3, (14.0, 4.3))
    labels = [percent(contrast) for contrast in n["contrasts"]]
    for ax, name, title in zip(axes.flat, ("main", "v1"), ("Two populations", "V1, three populations"), strict=False):
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
    ax.set(ylabel="Frequency of the peak (Hz)", title="The peak of V1 rises with contrast", ylim=(0, 85))
    ax.set_xticks([0.1, 0.3, 1.0], [percent(c) for c in (0.1, 0.3, 1.0)])
    return figure


def phase_diagram(n: Numbers) -> Figure:
    """What becomes of random circuits, two ensembles."""
    figure, axes = new_figure(2, 5, (16.5, 6.6), sharex=True)
    quantities = (*KINDS, "distance")
    titles = ("Stable fixed point", "Limit cycle", "Divergence", "Slow or irregular", "Distance to normalization")
    for index, (row, ensemble) in enumerate(zip(axes, ("goe", "gaussian"), strict=True)):
        diagram = oc.PhaseDiagram(*(n[f"{ensemble}_{field}"] for field in oc.PhaseDiagram._fields))
        for ax, quantity, title in zip(row, quantities, titles, strict=True):
            plot.phase_map(diagram, quantity, colorbar=quantity in ("undecided", "distance"), ax=ax)
            if index == 0:
                ax.set_title(title)
                ax.set_xlabel("")
            if ax is not row[0]:
                ax.set_ylabel("")
                ax.set_yticklabels([])
    axes[0, 0].set_ylabel("Symmetric (GOE)\nRecurrence strength  δ")
    axes[1, 0].set_ylabel("Asymmetric Gaussian\nRecurrence strength  δ")
    return figure


def training(n: Numbers) -> Figure:
    """Loss, gradient norm, eigenvalue while training."""
    figure, axes = new_figure(1, 3, (13.0, 3.9))
    runs = (("free", "$W_r$ learned", CYCLE[0]), ("identity", "$W_r$ = identity", COLORS["orange"]))
    for name, label, color in runs:
        epochs = np.arange(len(n[f"loss_{name}"]))
        axes[0, 0].plot(epochs, n[f"loss_{name}"], color=color, label=label)
        axes[0, 1].plot(epochs, n[f"norm_{name}"], color=color)
        axes[0, 2].plot(epochs, n[f"along_{name}"], color=color)
        axes[0, 2].plot(epochs, n[f"settled_{name}"], color=color, lw=1.6, ls=(0, (4, 2)))
    axes[0, 0].legend(loc="upper right")
    task = TASKS[str(n["task"])]
    both = " and ".join(percent(round(float(n[f"accuracy_{name}"][-1]), 3)) for name, _, _ in runs)
    axes[0, 0].set(ylabel="Training loss (nats)", title=f"{task[:1].upper()}{task[1:]}: {both} right", ylim=0)
    axes[0, 1].set(ylabel="Largest gradient norm", title="Gradients, never clipped", yscale="log")
    axes[0, 2].set(ylabel=f"{plot.ABSCISSA}  (1/step)", title="Eigenvalues while it learns")
    handles = [_line(INK, "along trajectories"), _line(INK, "at their fixed points", lw=1.6, ls=(0, (4, 2)))]
    axes[0, 2].legend(handles=handles, loc="center right")
    few_log_ticks(axes[0, 1])
    plot.stable_side(axes[0, 2])
    for ax in axes.flat:
        ax.set(xlabel="Epoch", xlim=(0, len(n["loss_free"]) - 1))
    return figure


def trajectories(n: Numbers) -> Figure:
    """Hidden states in their principal plane."""
    figure, axes = new_figure(1, 1, (6.8, 5.4))
    ax = axes[0, 0]
    plot.hidden_trajectories(n["paths"], n["labels"], classes=(0, 1, 4, 7), ax=ax)
    start = n["paths"][:, 0].mean(axis=0)
    ax.plot(*start, "o", ms=8, mfc="white", mec=INK, mew=1.6, zorder=5, label="first step")
    ax.set_title(f"Reading {TASKS.get(str(n['task']), str(n['task']))}, step by step")
    ax.legend(title="Digit", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def static_stability(n: Numbers) -> Figure:
    """Histograms per layer, and the eigenvalue while training."""
    count = sum(name.startswith("layer_") for name in n)
    learned = "median_1" in n
    figure, axes = new_figure(1, count + learned, (4.6 * (count + learned), 4.0))
    for index, ax in enumerate(axes[0, :count], start=1):
        values = n[f"layer_{index}"]
        plot.abscissa_histogram(values, unit="1/τ", what="Test images", color=CYCLE[index - 1], ax=ax)
        ax.locator_params(axis="x", nbins=6)
        images = f"{len(values):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
        ax.set_title(f"Layer {index}: {(values < 0).sum() if (values >= 0).any() else 'all'} of {images} stable")
    if learned:
        ax = axes[0, count]
        for index in range(1, count + 1):
            epochs, color = np.arange(len(n[f"median_{index}"])), CYCLE[index - 1]
            ax.fill_between(epochs, n[f"lowest_{index}"], n[f"highest_{index}"], color=color, alpha=0.18, lw=0)
            ax.plot(epochs, n[f"median_{index}"], color=color, label=f"layer {index}")
        ax.set(xlabel="Epoch", ylabel=f"{plot.ABSCISSA}  (1/τ)", title="While it learns (band: all images)")
        ax.set_xlim(0, epochs[-1])
        plot.stable_side(ax)
        ax.legend(loc="upper right", bbox_to_anchor=(1.0, 0.86))
    accuracy = f", {percent(round(float(n['accuracy'][-1]), 4))} right" if learned else ""
    figure.suptitle(f"A static network on {TASKS.get(str(n['task']), str(n['task']))}{accuracy}", x=0.01, ha="left")
    return figure


def _curves(x: Any, rows: Any, labels: Any, ax: Axes) -> None:
    """Lines from light to dark, normalized by none."""
    for row, label, color in zip(rows, labels, shades(len(rows)), strict=True):
        ax.plot(x, row, color=color, label=label)
    ax.set(ylabel=RATE)
    ax.set_ylim(bottom=0)
    ax.margins(x=0)


def contrast_saturation(n: Numbers) -> Figure:
    """Contrast responses, and tuning at all contrasts."""
    figure, axes = new_figure(1, 2, (10.5, 4.2))
    left, right = axes[0]
    degrees = np.rad2deg(n["preferences"])
    chosen = [0, int(np.argmin(np.abs(degrees - 20))), int(np.argmin(np.abs(degrees - 35)))]
    for i, color in zip(chosen, CYCLE, strict=False):
        name = "preferred" if i == 0 else f"{degrees[i]:.0f}° from preferred"
        left.plot(n["contrasts"], n["curves"][:, i], color=color, label=name)
    plot.contrast_axis(left, n["contrasts"])
    left.set(ylabel=RATE, title="Responses saturate", ylim=(0, None))
    left.legend(title="Grating", loc="upper left")
    half = len(degrees) // 2
    centered = np.concatenate([degrees[half:] - 180, degrees[:half], [degrees[half]]])
    rows = np.concatenate([n["tuning"][:, half:], n["tuning"][:, : half + 1]], axis=1)
    _curves(centered, rows, [percent(c) for c in n["shown"]], right)
    right.set(xlabel="Orientation minus preferred (°)", title="Tuning keeps its width")
    right.set_xticks([-90, -45, 0, 45, 90])
    right.legend(title="Contrast", loc="upper right", reverse=True)
    return figure


def cross_orientation(n: Numbers) -> Figure:
    """Contrast responses under masks, and the population."""
    figure, axes = new_figure(1, 2, (10.5, 4.2))
    left, right = axes[0]
    labels = ["none" if mask == 0 else percent(mask) for mask in n["masks"]]
    _curves(n["contrasts"], n["curves"], labels, left)
    plot.contrast_axis(left, n["contrasts"])
    left.set(xlabel="Contrast of the grating", title="An orthogonal mask suppresses")
    left.legend(title="Contrast of the mask", loc="upper left")
    degrees = np.rad2deg(n["preferences"])
    order = np.argsort((degrees + 45) % 180)
    _curves((degrees[order] + 45) % 180 - 45, n["population"][:, order], labels, right)
    right.set(xlabel="Preferred orientation (°)", title="Population: grating at 0°, mask at 90°")
    right.set_xticks([-45, 0, 45, 90, 135])
    right.set_xlim(-45, 135)
    return figure


def surround_suppression(n: Numbers) -> Figure:
    """Responses against the diameter."""
    figure, axes = new_figure(1, 1, (6.6, 4.4))
    ax = axes[0, 0]
    rates = n["rates"]
    _curves(n["diameters"], rates, [percent(c) for c in n["contrasts"]], ax)
    for row, color in zip(rates, shades(len(rates)), strict=True):
        best = int(np.argmax(row))
        ax.plot(n["diameters"][best], row[best], "o", ms=7, color=color, mec="white", mew=1)
    ax.set(xlabel="Diameter of the patch (°)", title="Beyond the best size (dots), a surround suppresses")
    ax.set_ylim(0, 1.05 * rates.max())
    ax.set_xlim(0, n["diameters"][-1])
    ax.set_xticks(range(0, 21, 5))
    ax.legend(title="Contrast", loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    return figure


def attention(n: Numbers) -> Figure:
    """Contrast gain and response gain."""
    figure, axes = new_figure(1, 2, (10.5, 4.2))
    titles = ("Contrast gain: small stimulus, wide focus", "Response gain: large stimulus, narrow focus")
    for ax, name, title in zip(axes.flat, ("contrast_gain", "response_gain"), titles, strict=True):
        ax.plot(n["contrasts"], n[f"{name}_attended"], color=COLORS["red"], label="attended")
        ax.plot(n["contrasts"], n[f"{name}_neutral"], color=CYCLE[0], label="not attended")
        plot.contrast_axis(ax, n["contrasts"])
        ax.set(ylabel=RATE, title=title)
        ax.set_ylim(bottom=0)
    axes[0, 0].legend(loc="upper left")
    return figure


def temporal_pair(n: Numbers) -> Figure:
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
