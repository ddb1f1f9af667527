"""Pictures of a circuit's analysis: phase portraits, convergence, stability, energy, noise, phases, trajectories.

Every function takes the user's own circuit (or what was computed of it) and an
``Axes`` (the current one by default), draws, and returns the axes. Keywords
that are not listed go to the lines or bars that are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

import organics_core as oc
from organics_core import checks
from organics_core.analysis.classification import KINDS
from organics_core.attractors import SETTLED, follow
from organics_core.backend import to_numpy
from organics_core.circuit import prepare
from organics_core.equilibria import settles_by_theorem

from .circuits import PARTS, UNKNOWN, check_labels, part_index, unit_index
from .styles import (
    CLASSES,
    COLORS,
    CYCLE,
    INK,
    MUTED,
    SHADE,
    THEORY,
    axes_or_current,
    distinct,
    log_axis,
    percent,
    plain,
    ramp,
    shades,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ABSCISSA = "Largest real eigenvalue part"
BASINS = ("#DCEBF7", "#FBE6C4", "#D5EEE3", "#F2DFEA")
"""Of the stable fixed point with y >= 0, of that with y < 0, and of more."""
FLOW = "#8E9BA6"
FLOOR = 1e-17
"""Smallest residual that is drawn."""


class Portrait(NamedTuple):
    """The phase plane of one neuron.

    Attributes
    ----------
    y, rate : arrays (K,), (L,)
        The grid: membrane potential, and the modulator's rate sqrt(a).
    dy, da : arrays (L, K)
        The vector field on it, per second.
    basin : integer array (L, K)
        Index of the stable fixed point where a trajectory settles, -1 where it
        was not seen to: it leaves for good, goes round, or is slower than 3,000
        steps of a method whose steps follow the error reach.
    points : array (P, 2)
        Fixed points (y, a).
    stable : boolean array (P,)
    """

    y: Any
    rate: Any
    dy: Any
    da: Any
    basin: Any
    points: Any
    stable: Any


def portrait(
    circuit: oc.Circuit,
    z: Any,
    *,
    variant: str = "main",
    y: Any = None,
    rate: Any = None,
    grid: int = 60,
) -> Portrait:
    """Vector field, fixed points and basins of attraction of one neuron.

    Parameters
    ----------
    circuit : organics_core.Circuit
        With n = 1, in numpy.
    z : array (1,)
        Input drive.
    variant : {"main", "rectified", "rectified_recurrence"}
    y, rate : arrays (K,), (L,), optional
        The grid, rising and evenly spaced; sqrt(a) not negative. By default it
        holds every fixed point.
    grid : int
        Points of a default grid in each direction, 2 at least.

    Returns
    -------
    Portrait

    Raises
    ------
    TypeError, ValueError
        As :func:`organics_core.fixed_points`, and for a grid of fewer than two points, or that is not even.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> import organics_plot as plot
    >>> circuit, z = oc.Circuit(np.array([[2.0]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> plane = plot.portrait(circuit, z, grid=5)
    >>> plane.dy.shape, plane.stable.tolist()
    ((5, 5), [False, False, True])
    """
    grid = checks.positive_integer("grid", grid)
    if grid < 2:
        raise ValueError(f"grid must be at least 2, got {grid}")
    found = oc.fixed_points(circuit, z, variant=variant)
    points = np.array([[float(p.state.y[0]), float(p.state.a[0])] for p in found]).reshape(-1, 2)
    farthest, input_alone = np.abs(points[:, 0]).max(initial=0.0), 0.5 * abs(float((circuit.b * z).reshape(-1)[0]))
    if farthest:  # under strong drive the points are small beside it, and are what is looked for
        input_alone = min(input_alone, 10.0 * farthest)
    reach = 2.0 * max(farthest, input_alone) or 1.0  # of a neuron at rest
    height = 1.6 * max(np.sqrt(points[:, 1]).max(initial=0.0), float(np.ravel(circuit.b0 * circuit.sigma)[0]))
    y = np.linspace(-reach, reach, grid) if y is None else np.asarray(y, dtype=float)
    rate = np.linspace(0.0, height, grid) if rate is None else np.asarray(rate, dtype=float)
    for name, values in (("y", y), ("rate", rate)):
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(f"{name} must have shape (K,) with K >= 2, got shape {values.shape}")
        steps = np.diff(values)
        if not (steps > 0).all() or np.ptp(steps) > 1e-6 * steps.mean():
            raise ValueError(f"{name} must be rising and evenly spaced, as np.linspace makes it")
    if rate[0] < 0:
        raise ValueError(f"rate must not be negative, it is sqrt(a), got {rate[0]:g}")
    yy, ss = np.meshgrid(y, rate)
    state = oc.State(yy[..., None], ss[..., None] ** 2)
    slope = oc.vector_field(circuit, state, z, variant=variant)
    stable = np.array([bool(p.stable) for p in found], dtype=bool)
    basin = _basins(circuit, z, variant, state, points, stable, (np.ptp(y), np.ptp(rate)))
    return Portrait(y, rate, slope.y[..., 0], slope.a[..., 0], basin, points, stable)


def _basins(
    circuit: oc.Circuit, z: Any, variant: str, state: oc.State, points: Any, stable: Any, size: tuple[float, float]
) -> np.ndarray[Any, Any]:
    """Index of the stable fixed point at which each state (..., 1) settles, -1 where it was not seen to.

    By theorem where all lead to one, else by following the motion.
    """
    shape = state.y.shape[:-1]
    xp = array_namespace(z)
    circuit, z = prepare(xp, circuit, z)
    if bool(settles_by_theorem(xp, circuit)) and stable.any():
        return np.full(shape, np.flatnonzero(stable)[0])
    start = oc.State(*(part.reshape(-1, 1) for part in state))
    every = np.ones(len(start.y), dtype=bool)
    with np.errstate(all="ignore"):  # of those that leave for good
        motion = follow(
            xp, circuit, start, z + 0.0 * start.y, variant, every, longest=np.full(len(every), np.inf), rtol=1e-2,
            still=1e-3,
        )  # fmt: skip
    if not len(points):
        return np.full(shape, -1)
    end_y, end_s = motion.state.y, np.sqrt(np.maximum(motion.state.a, 0.0))
    away = np.hypot((end_y - points[:, 0]) / size[0], (end_s - np.sqrt(points[:, 1])) / size[1])
    nearest = away.argmin(axis=-1)
    arrived = (motion.outcome == SETTLED) & stable[nearest] & (away.min(axis=-1) < 0.02)
    return np.where(arrived, nearest, -1).reshape(shape)


def phase_portrait(
    circuit: oc.Circuit | Portrait,
    z: Any = None,
    *,
    basins: bool = True,
    arrows: int | None = None,
    ax: Axes | None = None,
    **options: Any,
) -> Axes:
    """Flow, nullclines, fixed points (filled: stable) and basins of attraction of one neuron.

    The vertical axis is the modulator's rate, sqrt(a). The basin of a stable point
    with y >= 0 is blue, that of one with y < 0 orange.

    Parameters
    ----------
    circuit : organics_core.Circuit or Portrait
    z : array (1,)
        Input drive; not needed with a :class:`Portrait`.
    basins : bool
        Whether to shade the plane by the stable fixed point that is reached;
        what reaches none stays white.
    arrows : int, optional
        Draw the direction of the flow by about so many arrows each way, which is quicker than streamlines.
    ax : matplotlib Axes, optional
    options
        Of :func:`portrait`.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError, ValueError
        As :func:`portrait`.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> import organics_core as oc
    >>> import organics_plot as plot
    >>> circuit, z = oc.Circuit(np.array([[2.0]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> plot.phase_portrait(circuit, z, grid=8, ax=Figure().subplots()).get_xlabel()
    'Membrane potential  y'
    """
    if not isinstance(circuit, Portrait):
        circuit = portrait(circuit, z, **options)
    elif options or z is not None:
        raise TypeError("a Portrait is complete: it takes neither z nor options of portrait()")
    p = circuit
    arrows = None if arrows is None else checks.positive_integer("arrows", arrows)
    ax = axes_or_current(ax)
    y, s = np.asarray(p.y), np.asarray(p.rate)
    if basins and (np.asarray(p.basin) >= 0).any():
        from matplotlib.colors import ListedColormap

        number = np.full(len(p.points) + 1, np.nan)  # the last for -1, no point
        spare = 1
        for k in sorted(np.flatnonzero(p.stable), key=lambda k: -p.points[k][0]):
            own = 1 if p.points[k][0] < 0 else 0
            spare += own in number
            number[k] = min(spare, len(BASINS) - 1) if own in number else own
        shown = number[np.asarray(p.basin)]
        ax.pcolormesh(
            y, s, shown, cmap=ListedColormap(BASINS), vmin=-0.5, vmax=len(BASINS) - 0.5, shading="nearest",
            rasterized=True, zorder=0,
        )  # fmt: skip
    ds = p.da / (2.0 * np.maximum(s, 0.25 * (s[1] - s[0])))[:, None]
    if arrows is None:
        ax.streamplot(y, s, p.dy, ds, color=FLOW, linewidth=0.7, arrowsize=0.7, density=0.9, zorder=1)
    else:
        u, v = p.dy * (ax.bbox.width / np.ptp(y)), ds * (ax.bbox.height / np.ptp(s))
        size = np.maximum(np.hypot(u, v), 1e-300)
        place = tuple(slice(None, None, max(1, round(len(values) / arrows))) for values in (s, y))
        ax.quiver(
            y[place[1]], s[place[0]], (u / size)[place], (v / size)[place], color=FLOW, pivot="mid",
            scale=1.3 * arrows, width=0.004, zorder=1,
        )  # fmt: skip
    for values, color in ((p.dy, COLORS["blue"]), (p.da, COLORS["red"])):
        if (values > 0).any() and (values < 0).any():
            ax.contour(y, s, values, levels=[0.0], colors=[color], linewidths=2.2, zorder=2)
    for (at_y, at_a), fine in zip(p.points, p.stable, strict=True):
        ax.plot(at_y, np.sqrt(at_a), "o", ms=8.5, mfc=INK if fine else "white", mec=INK, mew=1.7, zorder=4)
    ax.set(xlim=(y[0], y[-1]), ylim=(s[0], s[-1]), xlabel="Membrane potential  y", ylabel="Modulator's rate  √a")
    return ax


def residuals(
    circuit: oc.Circuit, z: Any, *, method: str = "newton", iterations: int = 12, variant: str = "main"
) -> np.ndarray[Any, Any]:
    """Relative residuals of a solver after 1, 2, ... iterations.

    Parameters
    ----------
    circuit : organics_core.Circuit
    z : array (..., n)
        Input drive.
    method : {"newton", "iteration"}
        As for :func:`organics_core.steady_state`.
    iterations : int
        K, the largest number of iterations.
    variant : {"main", "rectified", "rectified_recurrence"}

    Returns
    -------
    array (K, ...)

    Raises
    ------
    TypeError, ValueError
        As :func:`organics_core.steady_state`.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> import organics_plot as plot
    >>> circuit, z = oc.Circuit(np.array([[0.5]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> found = plot.residuals(circuit, z, iterations=8)
    >>> found.shape, bool(found[-1] < found[0])
    ((8,), True)
    """
    options: dict[str, Any] = {"method": method, "variant": variant, "tol": 1e-300, "attracting": False}
    iterations = checks.positive_integer("iterations", iterations)
    runs = [
        to_numpy(oc.steady_state(circuit, z, max_iterations=k, **options).residual) for k in range(1, iterations + 1)
    ]
    return np.maximum(np.stack(runs), FLOOR)


def convergence(
    circuit: oc.Circuit | np.ndarray[Any, Any],
    z: Any = None,
    *,
    method: str = "newton",
    iterations: int = 12,
    variant: str = "main",
    color: str = CYCLE[0],
    label: str | None = None,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """How fast the fixed points of a batch of circuits are found: median, quartiles and worst residual.

    Parameters
    ----------
    circuit : organics_core.Circuit, or array (K, ...)
        A batch; or residuals of :func:`residuals`.
    z : array (..., n)
        Input drives, with a circuit.
    method : {"newton", "iteration"}
    iterations, variant
        As for :func:`residuals`.
    color, label : str
    ax : matplotlib Axes, optional
    style
        Of the line of the median.

    Returns
    -------
    matplotlib Axes
        With the median residual as a line, the middle half of the circuits (from
        the first quartile to the third) as a band, and the worst as a dashed line.
        Residuals that are not finite count as larger than all, and are not drawn.

    Raises
    ------
    TypeError, ValueError
        As :func:`residuals`; ValueError where there are none.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> import organics_plot as plot
    >>> plot.convergence(np.array([[1.0, 0.5], [0.1, 0.01]]), ax=Figure().subplots()).get_yscale()
    'log'
    """
    ax = axes_or_current(ax)
    if isinstance(circuit, oc.Circuit):
        circuit = residuals(circuit, z, method=method, iterations=iterations, variant=variant)
    values = np.asarray(circuit, dtype=float)
    if not (values.ndim and values.size):
        raise ValueError(f"residuals must have shape (K, ...) and not be empty, got shape {values.shape}")
    values = values.reshape(len(values), -1)
    steps = np.arange(1, len(values) + 1)
    ranks = np.quantile(np.where(np.isfinite(values), values, 1e300), (0.25, 0.5, 0.75, 1.0), axis=1)
    low, middle, high, worst = np.where(ranks < 1e290, ranks, np.inf)
    ax.fill_between(steps, low, high, color=color, alpha=0.18, lw=0)
    ax.plot(steps, middle, **{"color": color, "label": label, **style})
    ax.plot(steps, worst, color=color, lw=1.5, ls=(0, (4, 2)))
    ax.set(yscale="log", xlabel="Iteration", ylabel="Relative residual")
    return ax


def iterates(
    circuit: oc.Circuit | np.ndarray[Any, Any],
    z: Any = None,
    *,
    fixed: Any = None,
    iterations: int = 15,
    variant: str = "main",
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """The modulators of one circuit over the fixed-point iteration, labelled 1, 2, ...; dots show the fixed point.

    Parameters
    ----------
    circuit : organics_core.Circuit, or array (K, n)
        Without batch axes; or modulators of :func:`iterate_path`.
    z : array (n,)
        Input drive, with a circuit.
    fixed : array (n,), optional
        Modulators at the fixed point; with a circuit, those that Newton's
        method finds.
    iterations, variant
        As for :func:`iterate_path`.
    ax : matplotlib Axes, optional
    style
        Of the lines.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError, ValueError
        As :func:`organics_core.steady_state`; ValueError for a batch, and a fixed point of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> import organics_core as oc
    >>> import organics_plot as plot
    >>> circuit, z = oc.Circuit(0.5 * np.eye(2), np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0, 0.5])
    >>> len(plot.iterates(circuit, z, iterations=5, ax=Figure().subplots()).get_lines()) > 0
    True
    """
    ax = axes_or_current(ax)
    if isinstance(circuit, oc.Circuit):
        fixed = oc.steady_state(circuit, z, method="newton", variant=variant).state.a if fixed is None else fixed
        circuit = iterate_path(circuit, z, iterations=iterations, variant=variant)
    path = np.asarray(circuit)
    if path.ndim != 2 or len(path) < 2:
        raise ValueError(f"iterates draws one circuit, modulators (K, n) with K >= 2, got shape {path.shape}")
    if fixed is not None and to_numpy(fixed).shape != path.shape[1:]:
        raise ValueError(f"fixed must have shape {path.shape[1:]}, got {to_numpy(fixed).shape}")
    steps = np.arange(len(path))
    for i, look in enumerate(distinct(path.shape[1])):
        ax.plot(steps, path[:, i], **{**look, "lw": 1.6, "label": f"{i + 1}", **style})
        if fixed is not None:
            ax.plot(1.04 * steps[-1], to_numpy(fixed)[i], "o", ms=5, color=look["color"], clip_on=False)
    ax.set(xlabel="Iteration", ylabel="Modulator potential  a", xlim=(0, steps[-1]))
    return ax


def iterate_path(circuit: oc.Circuit, z: Any, *, iterations: int = 15, variant: str = "main") -> np.ndarray[Any, Any]:
    """Modulators (K + 1, n) of the fixed-point iteration, from the fixed point for W_r = I on."""
    iterations = checks.positive_integer("iterations", iterations)
    start = oc.steady_state(circuit._replace(w_r=None), z, variant=variant).state
    found = [to_numpy(start.a)]
    for k in range(1, iterations + 1):
        report = oc.steady_state(
            circuit, z, method="iteration", variant=variant, tol=1e-300, max_iterations=k, attracting=False
        )
        found.append(to_numpy(report.state.a))
    if any(a.ndim != 1 for a in found):
        raise ValueError(f"iterates draws one circuit, without batch axes; modulators have shape {found[-1].shape}")
    return np.stack(found)


def abscissa_histogram(
    values: Any,
    *,
    bins: Any = 40,
    unit: str = "1/s",
    what: str = "Circuits",
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Histogram of the largest real eigenvalue parts, the stable side shaded.

    Parameters
    ----------
    values : array, or mapping of str to arrays
        Spectral abscissae; several groups are drawn as labelled outlines over each other.
    bins
        As ``Axes.hist`` takes them; the same for all groups.
    unit, what : str
        Of the two axes.
    ax : matplotlib Axes, optional
    style
        Of the bars.

    Returns
    -------
    matplotlib Axes
        Values that are not finite are left out.

    Raises
    ------
    ValueError
        Where no value is finite.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> import organics_plot as plot
    >>> plot.abscissa_histogram(np.array([-3.0, -1.0, 0.5]), bins=3, ax=Figure().subplots()).get_ylabel()
    'Circuits'
    """
    from matplotlib.colors import is_color_like

    ax = axes_or_current(ax)
    groups = dict(values) if isinstance(values, Mapping) else {"": values}
    kept = [np.ravel(to_numpy(group)) for group in groups.values()]
    kept = [group[np.isfinite(group)] for group in kept]
    if not any(len(group) for group in kept):
        raise ValueError("values has no finite spectral abscissa")
    edges = np.histogram_bin_edges(np.concatenate(kept), bins)
    several = len(kept) > 1
    color = style.pop("color", None)
    colors = (shades(len(kept)) if several else [CYCLE[0]]) if color is None else color
    looks = [colors] * len(kept) if is_color_like(colors) else list(colors)
    if len(looks) != len(kept):
        raise ValueError(f"color must be one, or {len(kept)}, one per group, got {len(looks)}")
    for group, name, look in zip(kept, groups, looks, strict=True):
        counts, _ = np.histogram(group, edges)
        ax.stairs(counts, edges, **{"color": look, "label": name or None, "fill": not several, "lw": 1.8, **style})
    left, right = min(group.min() for group in kept if len(group)), max(g.max() for g in kept if len(g))
    width = max(right, 0.0) - min(left, 0.0) or 1.0
    ax.set_xlim(min(left, 0.0) - 0.05 * width, max(right, 0.0) + 0.05 * width)
    ax.axvspan(ax.get_xlim()[0], 0, color=SHADE, lw=0, zorder=0)
    ax.axvline(0, color=INK, lw=1)
    ax.set(xlabel=f"{ABSCISSA}  ({unit})", ylabel=what)
    ax.ticklabel_format(scilimits=(-4, 5))
    return ax


def energies(
    circuit: oc.Circuit, z: Any, run: oc.Trajectory, *, relative: bool = True, ax: Axes | None = None, **style: Any
) -> Axes:
    """The Lyapunov function along trajectories of a circuit with W_r = I.

    Parameters
    ----------
    circuit : organics_core.Circuit
    z : array (n,)
        The constant input drive of the run.
    run : organics_core.Trajectory
        State (T, n) or (T, B, n).
    relative : bool
        To its value at the start; a run that starts at the fixed point has none, and is not drawn.
    ax : matplotlib Axes, optional
    style
        Of the lines.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError, ValueError
        As :func:`organics_core.energy`; ValueError where all energies are relative to zero.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> import organics_core as oc
    >>> import organics_plot as plot
    >>> circuit, z = oc.Circuit(None, np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> run = oc.simulate(circuit, z, np.linspace(0.0, 0.1, 50))
    >>> plot.energies(circuit, z, run, ax=Figure().subplots()).get_xlabel()
    'Time (ms)'
    """
    values = to_numpy(oc.energy(circuit, run.state, z))
    if relative:
        if not np.any(values[0] > 0):
            raise ValueError(
                "relative must be False for a run that starts at the fixed point: its energy there is zero"
            )
        values = values / np.where(values[0] > 0, values[0], np.nan)
    return energy_lines(to_numpy(run.times), values, relative=relative, ax=ax, **style)


def energy_lines(times: Any, values: Any, *, relative: bool = True, ax: Axes | None = None, **style: Any) -> Axes:
    """Energies (T,) or (T, B), relative to the start or not, over times (T,) in seconds."""
    ax = axes_or_current(ax)
    ax.plot(1e3 * np.asarray(times), values, **{"color": CYCLE[0], "lw": 1.2, "alpha": 0.7, **style})
    ax.set(yscale="log", xlabel="Time (ms)", ylabel="Energy, relative to the start" if relative else "Energy")
    ax.margins(x=0)
    return ax


def energy_landscape(
    circuit: oc.Circuit, z: Any, run: oc.Trajectory | None = None, *, ax: Axes | None = None, **style: Any
) -> Axes:
    """Levels of the energy of one neuron with W_r = I in the plane of y and a, and trajectories across them.

    The energy falls along every trajectory of the linearized circuit; where it
    rises along those of the circuit itself, the plane is hatched.

    Parameters
    ----------
    circuit : organics_core.Circuit
        With n = 1.
    z : array (1,)
        Input drive.
    run : organics_core.Trajectory, optional
        State (T, 1) or (T, B, 1).
    ax : matplotlib Axes, optional
    style
        Of the trajectories.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError, ValueError
        As :func:`organics_core.energy`; ValueError for more than one neuron.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> import organics_core as oc
    >>> import organics_plot as plot
    >>> circuit, z = oc.Circuit(None, np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> plot.energy_landscape(circuit, z, ax=Figure().subplots()).get_xlabel()
    'Membrane potential  y'
    """
    if circuit.w.shape != (1, 1):
        raise ValueError(f"energy_landscape is for one neuron: w must have shape (1, 1), got {circuit.w.shape}")
    ax = axes_or_current(ax)
    fixed = oc.steady_state(circuit, z).state
    center = float(fixed.y[0]), float(fixed.a[0])
    y = center[0] + np.linspace(-1.2, 1.2, 121) * (abs(center[0]) or 1.0)
    a = np.linspace(0.02, 2.2, 121) * center[1]
    paths: list[tuple[Any, Any]] = []
    if run is not None:
        at_y, at_a = (np.reshape(to_numpy(part), (len(part), -1)) for part in run.state)
        paths = list(zip(at_y.T, at_a.T, strict=True))
    yy, aa = np.meshgrid(y, a)
    value = to_numpy(oc.energy(circuit, oc.State(yy[..., None], aa[..., None]), z))
    levels = value.max() * np.linspace(0.02, 1.0, 14) ** 2
    ax.contourf(y, a, value, levels=[0.0, *levels], cmap="Blues", alpha=0.75)
    rising = energy_slope(circuit, oc.State(yy[..., None], aa[..., None]), z) > 0
    if rising.any():
        ax.contourf(y, a, rising, levels=[0.5, 1.5], colors="none", hatches=["////"]).set(edgecolor=MUTED, linewidth=0)
    for path_y, path_a in paths:
        ax.plot(path_y, path_a, **{"color": THEORY, "lw": 1.4, **style})
        ax.plot(path_y[0], path_a[0], "o", ms=4, color=THEORY)
    ax.plot(*center, "o", ms=8.5, color=INK, zorder=4)
    ax.set(xlim=(y[0], y[-1]), ylim=(a[0], a[-1]), xlabel="Membrane potential  y", ylabel="Modulator potential  a")
    return ax


def energy_slope(circuit: oc.Circuit, state: oc.State, z: Any) -> np.ndarray[Any, Any]:
    """How fast the energy changes along the motion of the circuit through states (..., n), per time constant."""
    slope = oc.vector_field(circuit, state, z)
    step = 0.5 * float(np.min(to_numpy(circuit.tau_y)))
    # the energy is quadratic: this difference is its derivative at any step, up to rounding
    ahead, behind = (
        to_numpy(oc.energy(circuit, oc.State(*(part + sign * d for part, d in zip(state, slope, strict=True))), z))
        for sign in (step, -step)
    )
    return np.asarray(ahead - behind)


def power_spectra(
    circuit: Any,
    z: Any,
    noise: Any = None,
    *,
    frequencies: Any = None,
    part: str | None = None,
    unit: int = 0,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Power spectra of one neuron under noise, one line per input drive; dots mark resonances.

    Parameters
    ----------
    circuit : organics_core.Circuit or Model
    z : array (C, n) or (n,)
        Input drives, of rising contrast say.
    noise : optional
        As for :func:`organics_core.power_spectrum`; by default noise of
        amplitude 1 in the first part of the state alone, y of a circuit.
    frequencies : array (F,), optional
        In Hz; 1 to 400 by default.
    part : str, optional
        Of the state; the first by default.
    unit : int
        Which neuron.
    labels : sequence of str, optional
        One per drive.
    ax : matplotlib Axes, optional
    style
        Of the lines.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError, ValueError
        As :func:`organics_core.power_spectrum`; ValueError for a neuron that is not there, a drive that leads to no
        fixed point, and others than labels.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> import organics_core as oc
    >>> import organics_plot as plot
    >>> circuit, z = oc.Circuit(None, np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([[0.2], [1.0]])
    >>> ax = plot.power_spectra(circuit, z, labels=["weak", "strong"], ax=Figure().subplots())
    >>> ax.get_legend_handles_labels()[1]
    ['weak', 'strong']
    """
    xp = checks.namespace({"z": z})
    if z.ndim not in (1, 2) or not z.shape[0]:
        raise ValueError(f"z must have shape (C, n), one drive per line, got shape {tuple(z.shape)}")
    check_labels(labels, int(z.shape[0]) if z.ndim == 2 else 1, "drive")
    steady = oc.steady_state(circuit, z)
    state = steady.state
    lost = np.flatnonzero(~np.atleast_1d(to_numpy(steady.converged)))
    if lost.size:
        where = f" of drive {lost[0]}" if z.ndim == 2 else ""
        raise ValueError(f"z must lead to a fixed point, and that{where} was not found: {steady.message}")
    index = part_index(state, part)
    at = sum(int(other.shape[-1]) for other in state[:index]) + unit_index(unit, int(state[index].shape[-1]))
    f = np.geomspace(1.0, 400.0, 300) if frequencies is None else np.asarray(to_numpy(frequencies), dtype=float)
    noise = (1.0, *(0.0 for _ in state[1:])) if noise is None else noise
    points = xp.asarray(f, dtype=z.dtype, device=device(z))
    spectrum = to_numpy(oc.power_spectrum(circuit, state, noise, points, z=z))
    name = state._fields[index]
    return spectrum_lines(f, spectrum[..., at, at].real, labels=labels, what=name, ax=ax, **style)


def spectrum_lines(
    frequencies: Any,
    power: Any,
    *,
    labels: Sequence[str] | None = None,
    what: str = "y",
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Power of ``what``, (C, F), over frequencies (F,) in Hz, from light to dark; a dot at each highest inner peak."""
    ax = axes_or_current(ax)
    power, frequencies = np.atleast_2d(power), np.asarray(frequencies, dtype=float)
    seen = frequencies[frequencies > 0]
    if frequencies.ndim != 1 or not seen.size:
        raise ValueError("frequencies must have shape (F,) and hold one above zero, to be drawn on a logarithmic axis")
    check_labels(labels, len(power), "spectrum")
    colors = shades(len(power)) if len(power) > 1 else [CYCLE[0]]
    for k, (line, color) in enumerate(zip(power, colors, strict=True)):
        label = None if labels is None else labels[k]
        ax.loglog(frequencies, line, **{"color": color, "label": label, **style})
        inner = np.flatnonzero((line[1:-1] > line[:-2]) & (line[1:-1] > line[2:])) + 1
        if len(inner):
            top = inner[np.argmax(line[inner])]
            ax.plot(frequencies[top], line[top], "o", ms=6, color=color, mec="white", mew=1)
    log_axis(ax, float(seen.min()), float(seen.max()), plain)
    ax.set(xlabel="Frequency (Hz)", ylabel=f"Two-sided power density of {what}  ({what}² / Hz)")
    ax.margins(x=0)
    return ax


def _edges(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Edges of cells around rising values, halfway in between; geometrically where all are positive."""
    positive = bool((values > 0).all())
    at = np.log(values) if positive else values
    middle = 0.5 * (at[1:] + at[:-1])
    edges = np.concatenate([[2 * at[0] - middle[0]], middle, [2 * at[-1] - middle[-1]]])
    return np.exp(edges) if positive else edges


def phase_map(
    diagram: oc.PhaseDiagram,
    quantity: str = "fixed point",
    *,
    colorbar: bool = True,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """One quantity of a phase diagram over recurrence strength and input norm.

    Parameters
    ----------
    diagram : organics_core.PhaseDiagram
        With two strengths and two norms at least, in any order, each once.
    quantity : {"fixed point", "limit cycle", "divergence", "undecided", "distance"}
        A kind: its share of the draws, in percent. ``"distance"``: the median
        distance of the stable fixed points from the normalization equation;
        grey where there are none.
    colorbar : bool
    ax : matplotlib Axes, optional
    style
        Of ``Axes.pcolormesh``.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For an unknown quantity, or a diagram of one strength or norm, or of the same twice.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit = oc.Circuit(None, np.full((3, 3), 1 / 3), 0.5, 0.5, 0.1, 0.002, 0.002)
    >>> diagram = oc.phase_diagram(circuit, np.array([0.0, 1.0]), np.array([0.5, 1.0]), 2)
    >>> ax = phase_map(diagram)
    """
    checks.one_of("quantity", quantity, (*KINDS, "distance"))
    ax = axes_or_current(ax)
    deltas, norms, kind = (to_numpy(part) for part in (diagram.deltas, diagram.norms, diagram.kind))
    if len(deltas) < 2 or len(norms) < 2:
        raise ValueError(f"a map needs two strengths and two norms, got {len(deltas)} and {len(norms)}")
    rows, columns = np.argsort(deltas, kind="stable"), np.argsort(norms, kind="stable")
    deltas, norms, kind = deltas[rows], norms[columns], kind[np.ix_(rows, columns)]
    if not ((np.diff(deltas) > 0).all() and (np.diff(norms) > 0).all()):
        raise ValueError("a map needs strengths and norms that differ from each other, got one of them twice")
    options: dict[str, Any]
    if quantity == "distance":
        stable = kind == 0
        distance = to_numpy(diagram.distance)[np.ix_(rows, columns)]
        value = np.full(kind.shape[:2], np.nan)
        some = stable.any(axis=-1)
        value[some] = np.nanmedian(np.where(stable, distance, np.nan)[some], axis=-1)
        from matplotlib import colormaps
        from matplotlib.colors import LogNorm

        colors = colormaps["cividis_r"].with_extremes(bad=UNKNOWN)
        options = {"cmap": colors, "norm": LogNorm(1e-2, 10.0)}
        value = np.where(value == 0.0, 1e-9, value)
        label, extend = "relative distance", "both"
        value = np.ma.masked_invalid(value)
    else:
        value = 100.0 * (kind == KINDS.index(quantity)).mean(axis=-1)
        options = {"cmap": ramp("#EEF2F5"), "vmin": 0, "vmax": 100}
        label, extend = "share of draws (%)", "neither"
    image = ax.pcolormesh(
        _edges(norms), _edges(deltas), value, **{"edgecolor": "white", "linewidth": 0.5, **options, **style}
    )
    if (norms > 0).all():
        log_axis(ax, float(norms[0]), float(norms[-1]), plain)
    ax.set(xlabel="Norm of the input", ylabel="Recurrence strength  δ")
    if colorbar:
        figure = ax.get_figure()
        assert figure is not None
        bar = figure.colorbar(image, ax=ax, label=label, extend=extend)
        bar.outline.set_visible(False)  # type: ignore[operator]
    return ax


def boundary_map(found: oc.StabilityBoundary, *, ax: Axes | None = None, **style: Any) -> Axes:
    """Where one neuron is stable (shaded) over two of its parameters, and the boundary; grey is unknown (NaN).

    Parameters
    ----------
    found : organics_core.StabilityBoundary
    ax : matplotlib Axes, optional
    style
        Of the boundary.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> import organics_core as oc
    >>> import organics_plot as plot
    >>> circuit, z = oc.Circuit(np.array([[2.0]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> grid = np.linspace(0.5, 3.0, 4), np.array([0.001, 0.004])
    >>> found = oc.stability_boundary(circuit, z, ("w_r", "tau_y"), grid)
    >>> plot.boundary_map(found, ax=Figure().subplots()).get_xlabel()
    'Recurrent weight  $w_r$'
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap

    ax = axes_or_current(ax)
    first, second = (to_numpy(value) for value in found.values)
    abscissa = to_numpy(found.abscissa)
    ax.pcolormesh(
        first,
        second,
        np.where(abscissa < 0, 0.0, np.where(np.isnan(abscissa), 2.0, 1.0)).T,
        cmap=ListedColormap([BASINS[0], "white", "0.8"]),
        vmin=0,
        vmax=2,
        shading="nearest",
        rasterized=True,
        zorder=0,
    )
    lines = LineCollection(
        list(to_numpy(found.segments)), **{"color": THEORY, "linewidth": 2.0, "capstyle": "round", **style}
    )
    ax.add_collection(lines, autolim=False)
    for values, set_scale in ((first, ax.set_xscale), (second, ax.set_yscale)):
        ratios = values[1:] / values[:-1] if (values > 0).all() else np.array([1.0, 2.0])
        if np.ptp(ratios) < 1e-6 * ratios[0]:  # a geometric grid
            set_scale("log")
    ax.set(xlim=(first[0], first[-1]), ylim=(second[0], second[-1]))
    names = [SYMBOLS.get(name, name) for name in found.parameters]
    ax.set(xlabel=names[0], ylabel=names[1])
    return ax


SPECIAL = {"fold": ("s", "red"), "hopf": ("o", "orange"), "branch point": ("D", "purple"), "kink": ("^", "sky")}
"""Marker and colour of each kind of special point."""


def bifurcation_diagram(
    branch: oc.Branch,
    *,
    part: str | None = None,
    unit: int = 0,
    cycles: Sequence[tuple[float, oc.Cycle]] = (),
    color: str = INK,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """A branch of fixed points over its parameter: solid where stable, dashed where not, with its special points.

    Parameters
    ----------
    branch : organics_core.Branch
    part : str, optional
        Which part of the state: of a circuit "y" or "a". By default the first.
    unit : int
        Which neuron.
    cycles : sequence of (float, organics_core.Cycle), optional
        Limit cycles at values of the parameter, in the order in which lines are to
        join them: their smallest and largest values are drawn, filled where the
        cycle is stable. Those that were not found are left out.
    color : str
        Of the branch.
    ax : matplotlib Axes, optional
        With another branch in it, for instance.
    style
        Of the lines of the branch.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For an unknown part, or a neuron that is not there.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> import organics_core as oc
    >>> import organics_plot as plot
    >>> circuit, z = oc.Circuit(np.array([[0.5]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> branch = oc.continue_fixed_points(circuit, z, "sigma", (0.1, 0.3))
    >>> plot.bifurcation_diagram(branch, ax=Figure().subplots()).get_ylabel()
    'Membrane potential  y'
    """
    index = part_index(branch.points, part)
    values, heights = to_numpy(branch.values), to_numpy(branch.points[index])
    unit = unit_index(unit, heights.shape[1])
    ax = axes_or_current(ax)
    stable = to_numpy(branch.stable)
    corners = [(point, (point.value, float(to_numpy(point.state[index])[unit]))) for point in branch.special]
    # pieces of one stability, which meet at the special points
    pieces: list[tuple[bool, list[tuple[float, float]]]] = []
    for k, place in enumerate(zip(values, heights[:, unit], strict=True)):
        between = [at for point, at in corners if point.after == k - 1]
        if not pieces:
            pieces.append((bool(stable[k]), []))
        elif pieces[-1][0] == stable[k]:
            pieces[-1][1].extend(between)
        else:
            pieces[-1][1].extend(between[:1])
            pieces.append((bool(stable[k]), [*pieces[-1][1][-1:], *between[1:]]))
        pieces[-1][1].append(place)
    seen = {line.get_label() for line in ax.lines}

    def once(label: str) -> str:
        """A label for the legend, which lists it once."""
        fresh = label not in seen
        seen.add(label)
        return label if fresh else "_" + label

    for fine, line in pieces:
        look = {"lw": 2.6, "ls": "-"} if fine else {"lw": 1.7, "ls": (0, (4, 2.2)), "dash_capstyle": "butt"}
        label = once("stable" if fine else "unstable")
        ax.plot(*np.array(line).T, **{"color": color, "label": label, "zorder": 3, **look, **style})
    found = [(value, cycle) for value, cycle in cycles if cycle.converged]
    if found:
        green = COLORS["green"]
        paths = [to_numpy(cycle.state[index])[:, unit] for _, cycle in found]
        places = np.array([value for value, _ in found])
        edges = [np.array([edge(path) for path in paths]) for edge in (np.min, np.max)]
        ax.fill_between(places, *edges, color=green, alpha=0.13, lw=0, zorder=1)
        for edge in edges:
            ax.plot(places, edge, color=green, lw=1.4, zorder=2)
            for attracts in (True, False):
                chosen = np.array([bool(cycle.stable) == attracts for _, cycle in found])
                if chosen.any():
                    ax.plot(
                        places[chosen], edge[chosen], "o", ms=4.5, mec=green, mfc=green if attracts else "white",
                        label=once(f"{'stable' if attracts else 'unstable'} limit cycle, extremes"), zorder=2.5,
                    )  # fmt: skip
    for point, (x, y) in corners:
        marker, name = SPECIAL[point.kind]
        label = once("Hopf point" if point.kind == "hopf" else point.kind)
        ax.plot(x, y, marker, ms=8.5, mfc=COLORS[name], mec="white", mew=1.3, label=label, zorder=5)
        if point.kind == "hopf":
            ax.annotate(
                f"{point.frequency:.3g} Hz", (x, y), (9, -4), textcoords="offset points", color=MUTED, fontsize=9.5,
                va="top", zorder=6,
            )  # fmt: skip
    name = branch.parameter.removeprefix("multiple of ")
    symbol = SYMBOLS.get(name, name)
    part_name = branch.points._fields[index]
    ax.set(
        xlabel=symbol if name == branch.parameter else f"{symbol.removesuffix('  (s)')}  (multiple)",
        ylabel=PARTS.get(part_name, part_name),
    )
    ax.margins(x=0.02)
    return ax


SYMBOLS = {
    "w_r": "Recurrent weight  $w_r$",
    "w": "Normalization weight  w",
    "b": "Input gain  b",
    "b0": "Normalization gain  $b_0$",
    "sigma": "Semi-saturation  $\\sigma$",
    "tau_y": "$\\tau_y$  (s)",
    "tau_a": "$\\tau_a$  (s)",
    "z": "Input drive  z",
}


def principal_axes(states: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Mean (n,) of states (N, T, n), their first two principal axes (2, n), and what share of the variance each of the
    two explains, (2,).
    """
    states = np.asarray(to_numpy(states), dtype=float)
    if states.ndim != 3 or states.shape[-1] < 2:
        raise ValueError(f"states must have shape (N, T, n) with n >= 2, got {states.shape}")
    flat = states.reshape(-1, states.shape[-1])
    if len(flat) < 2:
        raise ValueError(f"states must hold two states at least, got shape {states.shape}")
    if not np.isfinite(flat).all():
        raise ValueError("states must be finite, got NaN or infinity among their values")
    center = flat.mean(axis=0)
    _, sizes, axes = np.linalg.svd(flat - center, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2, np.argmax(np.abs(axes[:2]), axis=1)].diagonal())[:, None]
    return center, axes, sizes[:2] ** 2 / ((sizes**2).sum() or 1.0)


def principal_plane(states: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """States (N, T, n) in the plane of their first two principal axes, (N, T, 2), and what share of the variance
    each of the two explains, (2,).
    """
    center, axes, explained = principal_axes(states)
    return np.asarray((np.asarray(to_numpy(states), dtype=float) - center) @ axes.T), explained


def hidden_trajectories(
    states: Any,
    labels: Any,
    *,
    explained: Any = None,
    classes: Sequence[Any] | None = None,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Trajectories of a trained layer in the plane of two principal axes, one colour per class; dots at their ends.

    Parameters
    ----------
    states : array (N, T, n)
        Membrane potentials for N sequences; with n = 2 they are drawn as they are, those of the two units
        unless ``explained`` says that they are in a plane.
    labels : array (N,)
        Their classes.
    explained : array (2,), optional
        With n = 2: the shares of the variance along the two axes, as
        :func:`principal_plane` has them. They stand at the axes.
    classes : sequence, optional
        Which are drawn, ten at most; the first ten by default.
    ax : matplotlib Axes, optional
    style
        Of the lines.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For wrong shapes, or more classes than there are colours.

    Examples
    --------
    >>> import numpy as np
    >>> states = np.random.default_rng(0).standard_normal((6, 20, 5)).cumsum(axis=1)
    >>> ax = hidden_trajectories(states, np.repeat([0, 1], 3))
    >>> len(ax.get_lines()) >= 6
    True
    """
    ax = axes_or_current(ax)
    states, labels = np.asarray(to_numpy(states)), np.asarray(to_numpy(labels))
    paths, names = states, ["First principal axis of y", "Second principal axis of y"]
    if states.ndim != 3 or states.shape[-1] != 2:
        paths, explained = principal_plane(states)
    elif explained is None:
        names = ["Membrane potential  $y_1$", "Membrane potential  $y_2$"]
    if not paths.shape[1]:
        raise ValueError(f"states must hold one step at least, got shape {paths.shape}")
    if labels.shape != paths.shape[:1]:
        raise ValueError(f"labels must have shape ({len(paths)},), one per trajectory, got {labels.shape}")
    shown = list(np.unique(labels)[: len(CLASSES)] if classes is None else classes)
    if len(shown) > len(CLASSES):
        raise ValueError(f"classes must be {len(CLASSES)} at most, one per colour, got {len(shown)}")
    for name, color in zip(shown, CLASSES, strict=False):
        chosen = paths[labels == name]
        for path in chosen:
            ax.plot(path[:, 0], path[:, 1], **{"color": color, "lw": 0.8, "alpha": 0.35, **style})
        ax.plot(
            chosen[:, -1, 0],
            chosen[:, -1, 1],
            ls="",
            marker="o",
            ms=5,
            color=color,
            mec="white",
            mew=0.6,
            label=f"{name}",
        )
    shares = (
        ["", ""] if explained is None else [f"  ({percent(round(float(s), 3))} of the variance)" for s in explained]
    )
    ax.set(xlabel=names[0] + shares[0], ylabel=names[1] + shares[1])
    return ax


def contrast_axis(ax: Axes, contrasts: Any) -> Axes:
    """A logarithmic axis of rising contrasts in percent."""
    log_axis(ax, float(contrasts[0]), float(contrasts[-1]), percent)
    ax.set_xlim(contrasts[0], contrasts[-1])
    ax.set_xlabel("Contrast")
    return ax


def stable_side(ax: Axes, below: float = 0.0) -> Axes:
    """Shade what lies below zero, or another bound, and say so."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, max(high, below + 0.12 * (max(high, below) - low)))
    ax.axhspan(low, below, color=SHADE, lw=0, zorder=0)
    ax.axhline(below, color=INK, lw=1)
    ax.text(0.985, 0.03, "stable", transform=ax.transAxes, ha="right", va="bottom", color=MUTED)
    return ax
