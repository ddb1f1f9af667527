"""Pictures of a circuit: responses, contrast-response curves, tuning, spectra.

Every function takes the data of the user's own circuit and an ``Axes`` (the
current one by default), draws, and returns the axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import organics_core as oc
from organics_core import checks
from organics_core.backend import to_numpy

from .population import ContrastExperiment
from .styles import CYCLE, GRID, INK, MARKERS, MUTED, SHADE, THEORY, axes_or_current, log_axis, percent, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATE = "Firing rate  ⌊y⌋²"
"""On every axis of firing rates. They have no unit: 1 is the rate at which a neuron saturates whose pool responds as it
does, with weights that sum to one.
"""

UNKNOWN = "#C9CFD5"
"""Of what is no number."""

PARTS = {"y": "Membrane potential  y", "a": "Modulator potential  a"}
"""What the parts of a circuit's state are called on axes; those of other models go by their name."""


def part_index(state: Any, part: str | None) -> int:
    """Place of a part in a state, a named tuple, or in its type; the first by default."""
    names = state._fields
    if part is not None and part not in names:
        raise ValueError(f"part must be {' or '.join(map(repr, names))}, got {part!r}")
    return 0 if part is None else int(names.index(part))


def unit_index(unit: Any, n: int, name: str = "unit") -> int:
    """Place of a neuron among ``n``, negative ones counted from the end; ValueError for one that is not there."""
    if not hasattr(unit, "__index__") or not -n <= int(unit) < n:
        raise ValueError(f"{name} must be one of the {n} neurons, got {unit}")
    return int(unit) % n


def check_labels(labels: Sequence[str] | None, count: int, of: str) -> None:
    """ValueError unless there are as many labels as things that they are of."""
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels must be {count}, one per {of}, got {len(labels)}")


def trajectory(
    run: oc.Trajectory,
    *,
    part: str | None = None,
    steady: Any = None,
    neurons: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One part of the state over time, such as membrane potentials, with the fixed point they should reach.

    Parameters
    ----------
    run : organics_core.Trajectory
        Of one circuit or other model, state (T, n).
    part : str, optional
        Which part of the state: of a circuit "y", the principal neurons, or "a", the
        modulators. By default the first.
    steady : state, optional
        As the model's, (n,); drawn as dashed lines.
    neurons : sequence of int, optional
        Which; by default all, or 12 spread evenly where there are more.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For an unknown part, a neuron that is not there, or a fixed point of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> import organics_core as oc
    >>> import organics_plot as plot
    >>> circuit, z = oc.Circuit(np.array([[2.0]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> run = oc.simulate(circuit, z, np.linspace(0.0, 0.1, 50))
    >>> ax = plot.trajectory(run, steady=oc.steady_state(circuit, z).state, ax=Figure().subplots())
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('Time (ms)', 'Membrane potential  y')
    """
    index = part_index(run.state, part)
    ax = axes_or_current(ax)
    times = 1e3 * to_numpy(run.times)
    values = to_numpy(run.state[index])
    if values.ndim != 2:
        raise ValueError(f"trajectory draws one circuit, of state (T, n); got shape {values.shape}")
    if not len(times):
        raise ValueError("trajectory draws one time at least, got a run of none")
    n = values.shape[1]
    spread = np.unique(np.linspace(0, n - 1, min(n, 12)).round().astype(int))
    chosen = [unit_index(i, n, "neurons") for i in (spread if neurons is None else neurons)]
    colors = list(CYCLE[: len(chosen)]) if len(chosen) <= len(CYCLE) else shades(len(chosen))
    alone = len(times) == 1  # a line through one point is not seen
    first, last = (times[0] - 1.0, times[0] + 1.0) if alone else (times[0], times[-1])
    for color, i in zip(colors, chosen, strict=True):
        ax.plot(times, values[:, i], color=color, label=f"{i + 1}", marker="o" if alone else None)
    if steady is not None:
        levels = to_numpy(steady[index])
        if levels.shape != (n,):
            raise ValueError(f"steady must be one fixed point, of shape ({n},) as the run's states, got {levels.shape}")
        ax.hlines(levels[chosen], first, last, colors=colors, lw=1.1, ls=(0, (4, 3)), alpha=0.8)
    ax.set(xlabel="Time (ms)", ylabel=PARTS.get(run.state._fields[index], run.state._fields[index]))
    ax.margins(x=0)
    if alone:
        ax.set_xlim(first, last)
    return ax


def responses(experiment: ContrastExperiment, *, neuron: int | None = None, ax: Axes | None = None) -> Axes:
    """Firing rate of one neuron over time, one line per contrast.

    Parameters
    ----------
    experiment : ContrastExperiment
    neuron : int, optional
        By default the one that prefers the grating.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For a neuron that is not there.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import organics_plot as plot
    >>> experiment = plot.contrast_experiment(plot.tuned_population(4), (0.1, 1.0), rtol=1e-4)
    >>> len(plot.responses(experiment, ax=Figure().subplots()).get_lines())  # one per contrast
    2
    """
    ax = axes_or_current(ax)
    e = experiment
    n = len(e.population.orientations)
    i = e.population.nearest(e.orientation) if neuron is None else unit_index(neuron, n, "neuron")
    ax.axvspan(1e3 * e.on, 1e3 * e.off, color=SHADE, lw=0, zorder=0)
    for k, color in enumerate(shades(len(e.contrasts))):
        ax.plot(1e3 * e.times, e.rates[:, k, i], color=color, label=percent(e.contrasts[k]), zorder=2 + k / 100)
    ax.text(
        1e3 * (e.off - 0.004),
        0.965,
        "grating on",
        transform=ax.get_xaxis_transform(),
        color=MUTED,
        ha="right",
        va="top",
    )
    ax.set(xlabel="Time (ms)", ylabel=RATE)
    ax.margins(x=0)
    ax.set_ylim(0, 1.12 * float(e.rates[..., i].max()) or 1.0)  # room for the words
    return ax


def contrast_response(
    experiment: ContrastExperiment, *, offsets: Sequence[float] = (0, 15, 30), ax: Axes | None = None
) -> Axes:
    """Simulated steady rates against contrast, on top of the normalization equation.

    Parameters
    ----------
    experiment : ContrastExperiment
    offsets : sequence of float
        Which neurons, by the distance of their preferred orientation from the
        grating's, in degrees: of those that there are the nearest, each once,
        called by their own distance.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError, ValueError
        For offsets that are no finite numbers, and contrasts that are all zero.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import organics_plot as plot
    >>> experiment = plot.contrast_experiment(plot.tuned_population(4), (0.1, 1.0), rtol=1e-4)
    >>> plot.contrast_response(experiment, ax=Figure().subplots()).get_xlabel()
    'Grating contrast'
    """
    ax = axes_or_current(ax)
    e = experiment
    fine = np.geomspace(e.faintest / 1.5, min(1.0, e.contrasts.max()), 120)
    curve = np.maximum(oc.steady_state(e.population.circuit, e.population.drive(fine, e.orientation)).state.y, 0) ** 2
    apart = np.rad2deg(e.population.orientations - e.orientation)
    apart = (apart + 90.0) % 180.0 - 90.0
    nearest = [
        e.population.nearest(e.orientation + np.deg2rad(checks.finite_number("offsets", offset))) for offset in offsets
    ]
    for k, i in enumerate(dict.fromkeys(nearest)):
        offset = round(float(abs(apart[i])), 1)
        ax.plot(fine, curve[:, i], color=THEORY, lw=1.8, zorder=2, label="normalization equation" if k == 0 else None)
        ax.plot(
            e.contrasts,
            e.sustained[:, i],
            ls="",
            marker=MARKERS[k % len(MARKERS)],
            ms=7.5,
            mfc="white",
            mec=INK,
            mew=1.6,
            zorder=3,
            label=f"simulated, {offset:g}° from preferred" if offset else "simulated, preferred",
        )
    log_axis(ax, float(fine[0]), float(fine[-1]), percent, (1.0, 3.0))
    ax.set(xlabel="Grating contrast", ylabel=RATE)
    ax.set_ylim(0, 1.06 * max(float(curve.max()), float(e.sustained.max())))
    if nearest:
        ax.legend(loc="upper left" if fine[-1] > 10 * fine[0] else "best")
    return ax


def tuning_curves(experiment: ContrastExperiment, *, ax: Axes | None = None) -> Axes:
    """Steady rates of the whole population, one line per contrast: simulation (dots) on the equation (lines).

    Parameters
    ----------
    experiment : ContrastExperiment
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import organics_plot as plot
    >>> experiment = plot.contrast_experiment(plot.tuned_population(4), (0.1, 1.0), rtol=1e-4)
    >>> plot.tuning_curves(experiment, ax=Figure().subplots()).get_xlabel()
    'Preferred orientation (°)'
    """
    ax = axes_or_current(ax)
    e = experiment
    degrees = np.rad2deg(e.population.orientations)
    for k, color in enumerate(shades(len(e.contrasts))):
        ax.plot(degrees, e.predicted[k], color=color, lw=1.8, label=percent(e.contrasts[k]))
        ax.plot(degrees[::2], e.sustained[k, ::2], ls="", marker="o", ms=4.2, color=color)
    ax.set(xlabel="Preferred orientation (°)", ylabel=RATE)
    ax.set_xticks([0, 45, 90, 135, 180])
    ax.set_xlim(0, 180)
    ax.set_ylim(bottom=0)
    return ax


def eigenvalues(
    circuit: Any,
    states: Any,
    *,
    z: Any = None,
    labels: Sequence[str] | None = None,
    variant: str = "main",
    ax: Axes | None = None,
) -> Axes:
    """Eigenvalues of the Jacobian in the complex plane; the stable half is shaded.

    Parameters
    ----------
    circuit : organics_core.Circuit or Model
        Without batch axes.
    states : state of the model, or sequence of them
        One at least. Fixed points, usually; drawn from light to dark, the darker the smaller, so that none hides
        another.
    z : array (n,) or (S, n), optional
        Input drive, or one per state, for models whose Jacobian depends on it.
    labels : sequence of str, optional
        One per state.
    variant : str
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError, ValueError
        As :func:`organics_core.spectrum`; ValueError for no states, others than labels or drives, or eigenvalues that
        are no numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> import organics_core as oc
    >>> import organics_plot as plot
    >>> circuit, z = oc.Circuit(np.array([[2.0]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> state = oc.steady_state(circuit, z).state
    >>> plot.eigenvalues(circuit, state, ax=Figure().subplots()).get_xlabel()
    'Re λ  (1/s)'
    """
    ax = axes_or_current(ax)
    several = [states] if hasattr(states, "_fields") else list(states)
    if not several:
        raise ValueError("states must hold one state at least, got none")
    check_labels(labels, len(several), "state")
    if getattr(z, "ndim", 1) > 1 and z.shape[0] != len(several):
        raise ValueError(f"z must have one drive, or {len(several)}, one per state, got shape {tuple(z.shape)}")
    colors = shades(len(several)) if len(several) > 1 else [CYCLE[0]]
    drives = [z] * len(several) if getattr(z, "ndim", 1) == 1 else [z[k, ...] for k in range(len(several))]
    spectra = [
        to_numpy(oc.spectrum(circuit, circuit.state(*state), variant=variant, z=drive))
        for state, drive in zip(several, drives, strict=True)
    ]
    everything = np.concatenate(spectra)
    if not np.isfinite(everything).all():
        raise ValueError("states must be finite, and their eigenvalues, got NaN or infinity among them")
    left, right = float(everything.real.min()), float(everything.real.max())
    width = max(right, 0.0) - min(left, 0.0) or 1.0
    high = max(float(np.abs(everything.imag).max()), 0.04 * width)
    ax.set_xlim(min(left, 0.0) - 0.07 * width, max(right, 0.0) + 0.12 * width)
    ax.set_ylim(-1.25 * high, 1.25 * high)
    ax.axvspan(ax.get_xlim()[0], 0, color=SHADE, lw=0, zorder=0)
    ax.axhline(0, color=GRID, lw=1, zorder=1)
    ax.axvline(0, color=INK, lw=1, zorder=1)
    sizes = np.geomspace(110.0, 8.0, len(several)) if len(several) > 1 else [34.0]
    for k, (values, color, size) in enumerate(zip(spectra, colors, sizes, strict=True)):
        label = None if labels is None else labels[k]
        ax.scatter(values.real, values.imag, s=size, color=[color], linewidth=0, zorder=3, label=label)
    ax.text(0.015, 0.97, "stable", transform=ax.transAxes, color=MUTED, ha="left", va="top")
    ax.set(xlabel="Re λ  (1/s)", ylabel="Im λ  (1/s)")
    ax.ticklabel_format(scilimits=(-4, 5))
    return ax


def matrix(values: Any, *, title: str = "", label: str = "", colorbar: bool = True, ax: Axes | None = None) -> Axes:
    """A weight matrix as an image, zero in white, what is not finite in grey; neurons are counted from 1.

    Parameters
    ----------
    values : array (n, m)
        Or a sparse one, that is made dense.
    title, label : str
        Of the axes and of the colour bar.
    colorbar : bool
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError, ValueError
        For what is no matrix, or empty.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> import organics_plot as plot
    >>> plot.matrix(np.eye(3), label="weight", ax=Figure().subplots()).get_ylabel()
    'to'
    """
    ax = axes_or_current(ax)
    from matplotlib import colormaps

    given = values
    for dense in ("toarray", "to_dense"):  # sparse ones of scipy and cupy, of torch
        values = getattr(values, dense)() if hasattr(values, dense) else values
    values = np.asarray(to_numpy(values))
    if values.dtype.kind not in "biuf":
        raise TypeError(f"values must be a matrix of real numbers, got {checks.describe(given)}")
    values = values.astype(float)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"values must be a matrix, of shape (n, m), got shape {values.shape}")
    values = np.ma.masked_invalid(values)
    bound = float(np.abs(values).max()) if values.count() else 0.0
    bound = bound or 1.0
    signed = bool((values < 0).any())
    image = ax.imshow(
        values,
        cmap=colormaps["RdBu_r" if signed else "Blues"].with_extremes(bad=UNKNOWN),
        vmin=-bound if signed else 0.0,
        vmax=bound,
        interpolation="nearest",
    )
    if colorbar:
        figure = ax.get_figure()
        assert figure is not None
        bar = figure.colorbar(image, ax=ax, shrink=0.8, label=label)
        bar.outline.set_visible(False)  # type: ignore[operator]
    ax.set(title=title, xlabel="from", ylabel="to")
    ax.locator_params(integer=True)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda place, _: f"{place + 1:.0f}")  # as the neurons are called elsewhere
    return ax
