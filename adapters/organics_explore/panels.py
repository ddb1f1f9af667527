"""The pictures and the words of the explorer, each made of the settings; what core and figures can do, they do."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import organics_core as oc
import organics_plot as plot
from organics_plot import analysis, circuits, styles

from .settings import Settings, circuit_code, population_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONTRASTS = np.geomspace(0.01, 1.0, 13)
FREQUENCIES = np.geomspace(1.0, 400.0, 64)
FEW = 5
"""Intervals between ticks: text takes the longest to draw."""
CLOSE = 0.05
"""Least length of an axis, of the numbers on it: the run is right to some 1e-5 of them."""
NONE = "no stable fixed point was found"


class Solved(NamedTuple):
    """A circuit, its fixed points and its motion.

    Attributes
    ----------
    settings : Settings
    population : organics_plot.Population
    circuit : organics_core.Circuit
    z : array (n,)
    points : tuple of (organics_core.State, bool or None)
        Fixed points, and whether each is stable (None: not decided): of one neuron
        every one of them, else what :func:`organics_core.steady_state` found.
    run : organics_core.Trajectory
        From rest, the grating on, over 40 times the longer time constant.
    message : str
        How the fixed points were come by.
    """

    settings: Settings
    population: plot.Population
    circuit: oc.Circuit
    z: np.ndarray[Any, Any]
    points: tuple[tuple[oc.State, bool | None], ...]
    run: oc.Trajectory
    message: str

    @property
    def stable(self) -> oc.State | None:
        """The stable fixed point; of several, the one that is nearest to the end of the run."""
        own = [state for state, stable in self.points if stable]
        return min(own, key=lambda state: float(np.abs(state.y - self.run.state.y[-1]).max()), default=None)


def _fixed_points(circuit: oc.Circuit, z: Any) -> tuple[tuple[tuple[oc.State, bool | None], ...], str]:
    if len(z) == 1:
        every = oc.fixed_points(circuit, z)
        return tuple((point.state, point.stable) for point in every), "every fixed point of one neuron"
    found = oc.steady_state(circuit, z)
    decided = True if found.stable else False if found.unstable else None
    return ((found.state, decided),) if found.converged else (), found.message


def solve(settings: Settings) -> Solved:
    """The fixed points and the motion of a circuit.

    Parameters
    ----------
    settings : Settings

    Returns
    -------
    Solved

    Examples
    --------
    >>> solved = solve(Settings(neurons=1, w_r=2.0))
    >>> [stable for _, stable in solved.points]
    [False, False, True]
    """
    population, circuit, z = population_of(settings)
    points, message = _fixed_points(circuit, z)
    times = np.linspace(0.0, _duration(settings), 300)
    return Solved(settings, population, circuit, z, points, oc.simulate(circuit, z, times, rtol=_RTOL), message)


_RTOL = 1e-5
"""Of the run that the page draws, which its Python code repeats."""


def _duration(settings: Settings) -> float:
    """Of that run, in seconds."""
    return 40 * max(settings.tau_y, settings.tau_a) / 1000


def _title(ax: Axes, title: str) -> None:
    ax.set_title(title, y=1.0)  # said, so that matplotlib does not look for a place


def _empty(ax: Axes, why: str) -> None:
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", color=styles.MUTED)
    ax.set_axis_off()


def _to_ticks(axis: Any, low: float, high: float) -> None:
    """Limits at the ticks around both, so that an axis seldom changes; none so close that it would show the errors."""
    if axis.get_scale() == "linear":
        axis.get_major_locator().set_params(nbins=FEW)
        axis.get_major_formatter().set_useOffset(False)
        axis.get_major_formatter().set_powerlimits((-3, 4))
        lacking = CLOSE * max(abs(low), abs(high)) - (high - low)
        if lacking > 0:
            low, high = low - lacking / 2, high + lacking / 2
    ticks = axis.get_major_locator().tick_values(low, high)
    axis.axes.set(**{f"{axis.axis_name}lim": (ticks[0], ticks[-1])})


def responses(solved: Solved, ax: Axes) -> None:
    """Membrane potentials over time, with the stable fixed point dashed."""
    _title(ax, "From rest, with the grating on")
    _over_time(solved, "y", ax)


def modulators(solved: Solved, ax: Axes) -> None:
    """Of one neuron its phase portrait, else the modulators over time."""
    if len(solved.z) > 1:
        _title(ax, "Modulators")
        _over_time(solved, "a", ax)
        return
    _title(ax, "Phase portrait, with basins")
    plot.phase_portrait(solved.circuit, solved.z, grid=25, arrows=10, ax=ax)
    ax.plot(solved.run.state.y[:, 0], np.sqrt(solved.run.state.a[:, 0]), color=styles.INK, lw=1.4, zorder=3)
    ax.locator_params(nbins=FEW)


def _over_time(solved: Solved, part: str, ax: Axes) -> None:
    n = len(solved.z)
    outward = sorted({(n // 2 + round(step)) % n for step in np.linspace(0, n // 2, 6)})  # both sides may be alike
    shown = range(n) if n <= 6 else outward
    plot.trajectory(solved.run, part=part, steady=solved.stable, neurons=shown, ax=ax)
    ax.locator_params(nbins=FEW)
    _to_ticks(ax.yaxis, *ax.dataLim.intervaly)
    if not solved.run.success:
        words = {"transform": ax.transAxes, "ha": "left", "va": "top", "fontsize": 10, "color": styles.MUTED}
        ax.text(0.015, 0.98, "the simulation ended early", **words)
    if n > 1:  # a legend takes several times as long to draw
        words = {"transform": ax.transAxes, "ha": "center", "va": "center", "fontsize": 9}
        ax.text(1.09, 1.0, "neuron", color=styles.MUTED, **words)
        for k, line in enumerate(ax.lines):
            ax.text(1.09, 0.91 - 0.09 * k, line.get_label(), color=line.get_color(), fontweight="bold", **words)


def contrast_response(solved: Solved, ax: Axes) -> None:
    """Fixed points of the neuron that prefers the grating, over contrast: filled where stable.

    Of one neuron all; of others the one that the circuit reaches from rest, where there is one.
    """
    _title(ax, "Contrast response")
    found = _over_contrast(solved.settings._replace(contrast=0.5))
    for wanted, face in ((True, styles.INK), (False, "white")):
        chosen = [(CONTRASTS[k], y) for k, y, stable in found if stable == wanted]
        if chosen:
            shown = zip(*chosen, strict=True)
            ax.plot(*shown, "o", ms=5, mfc=face, mec=styles.INK, mew=1.2, zorder=3, clip_on=False)
    analysis.contrast_axis(ax, CONTRASTS)
    ax.set_ylabel(circuits.PARTS["y"])
    _to_ticks(ax.yaxis, *(ax.dataLim.intervaly if found else (0.0, 1.0)))
    ax.text(1.0, 1.03, "● stable   ○ not stable", transform=ax.transAxes, ha="right", va="bottom", fontsize=10)


@lru_cache(16)  # the contrast itself changes nothing
def _over_contrast(settings: Settings) -> tuple[tuple[int, float, bool], ...]:
    """Number of the contrast, potential, and whether it is stable."""
    population, circuit, _ = population_of(settings)
    best = settings.neurons // 2
    drives = population.drive(CONTRASTS, population.orientations[best])
    if settings.neurons == 1:
        each = [_fixed_points(circuit, z)[0] for z in drives]
        return tuple((k, float(state.y[0]), bool(on)) for k, points in enumerate(each) for state, on in points)
    reached = oc.steady_state(circuit, drives, elsewhere=False)
    where = np.flatnonzero(reached.converged)
    return tuple((int(k), float(reached.state.y[k, best]), bool(reached.stable[k])) for k in where)


def eigenvalues(solved: Solved, ax: Axes) -> None:
    """Eigenvalues of the Jacobian at the fixed points."""
    _title(ax, "Eigenvalues at the fixed points")
    if not solved.points:
        _empty(ax, "no fixed point was found")
        return
    plot.eigenvalues(solved.circuit, [state for state, _ in solved.points], ax=ax)
    _to_ticks(ax.xaxis, *ax.get_xlim())
    _to_ticks(ax.yaxis, *ax.get_ylim())
    ax.axvspan(ax.get_xlim()[0], 0.0, color=styles.SHADE, lw=0, zorder=0)


def spectrum(solved: Solved, ax: Axes) -> None:
    """Power spectrum of the neuron that prefers the grating, under white noise in its drive."""
    _title(ax, "Power spectrum under white noise")
    state = solved.stable
    if state is None:
        _empty(ax, NONE)
        return
    n = len(solved.z)
    from_best = np.eye(2 * n)[:, n // 2, None]
    transposed = oc.jacobian(solved.circuit, state).T  # what noise of all neurons does to one, in one column
    power = oc.linear_power_spectrum(transposed, from_best, FREQUENCIES)
    power = np.einsum("fjj->f", power[:, :n, :n].real)
    analysis.spectrum_lines(FREQUENCIES, power, ax=ax)
    _to_ticks(ax.yaxis, power.min(), power.max())


def weights(solved: Solved, ax: Axes) -> None:
    """The normalization weights."""
    if len(solved.z) > 1:
        plot.matrix(solved.circuit.w, colorbar=False, ax=ax)
        _title(ax, f"Normalization weights W, up to {solved.circuit.w.max():.3g}")
    else:
        _title(ax, "Normalization weights W")
        _empty(ax, "of one neuron: 1")


PANELS: tuple[Callable[[Solved, Axes], None], ...] = (
    responses,
    modulators,
    contrast_response,
    eigenvalues,
    spectrum,
    weights,
)
"""What the page shows, in order: each draws what :func:`solve` found, on axes that :class:`Picture` has."""


def report(solved: Solved) -> str:
    """The fixed points in words, as Markdown.

    Parameters
    ----------
    solved : Solved

    Returns
    -------
    str

    Examples
    --------
    >>> print(report(solve(Settings(neurons=1, w_r=0.0))).splitlines()[-1])
    - fixed points: every fixed point of one neuron
    """
    words = {True: "stable", False: "unstable", None: "stability not decided"}
    lines = []
    for state, stable in solved.points:
        leading = oc.spectrum(solved.circuit, state)
        leading = leading[np.argmax(leading.real)]
        imaginary = f" ± {abs(leading.imag):.3g} i" if leading.imag else ""
        lines.append(
            f"- **{words[stable]}**: leading eigenvalue {leading.real:.3g}{imaginary} per second, "
            f"potential of the neuron that prefers the grating {state.y[len(solved.z) // 2]:.3g}"
        )
    if not lines:
        lines.append("- **no fixed point was found**")
    if solved.circuit.w_r is None:
        proof = oc.certify(solved.circuit, solved.z, lyapunov=False)
        lines.append(f"- W_r = I: {'certified stable' if proof.stable else 'not certified'} (`oc.certify`)")
    if not solved.run.success:
        lines.append(f"- the simulation ended early: {solved.run.message}")
    return "\n".join([*lines, f"- fixed points: {solved.message}"])


def python_code(settings: Settings) -> str:
    """A script that computes what the page shows.

    Parameters
    ----------
    settings : Settings

    Returns
    -------
    str

    Examples
    --------
    >>> code = python_code(Settings(neurons=3))
    >>> compile(code, "circuit.py", "exec").co_filename
    'circuit.py'
    """
    points = (
        "for found in oc.fixed_points(circuit, z):  # every one of one neuron\n"
        '    print("y =", found.state.y, " stable:", found.stable)\n'
        if settings.neurons == 1
        else "found = oc.steady_state(circuit, z)\n"
        'print("converged:", found.converged, " stable:", found.stable)\n'
        "if found.converged:\n"
    ) + '    print("spectral abscissa (1/s):", oc.spectral_abscissa(circuit, found.state))\n'
    return circuit_code(settings) + (
        f"\n{points}"
        f"run = oc.simulate(circuit, z, np.linspace(0.0, {_duration(settings)}, 300), rtol={_RTOL})\n"
        'print("the run", run.message)\n'
        'print("it ends at y =", run.state.y[-1].round(4))\n'
    )
