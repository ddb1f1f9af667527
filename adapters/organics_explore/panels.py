"""The pictures and the words of the explorer, each made of the settings; what core and figures can do, they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import organics_core as oc
import organics_plot as plot
from organics_plot import analysis, circuits, styles

from .settings import Settings, circuit_code, population_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (5.2, 3.9)
CONTRASTS = np.geomspace(0.01, 1.0, 25)
FREQUENCIES = np.geomspace(1.0, 400.0, 100)
NONE = "no stable fixed point was found"


class Solved(NamedTuple):
    """A circuit, its fixed points and its motion.

    Attributes
    ----------
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
    times = np.linspace(0.0, 40e-3 * max(settings.tau_y, settings.tau_a), 300)
    return Solved(population, circuit, z, points, oc.simulate(circuit, z, times), message)


def _axes(title: str) -> tuple[Figure, Any]:
    figure, axes = styles.new_figure(1, 1, SIZE)
    axes[0, 0].set_title(title)
    return figure, axes[0, 0]


def _empty(ax: Any, why: str) -> None:
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", color=styles.MUTED)
    ax.set_axis_off()


def responses(solved: Solved) -> Figure:
    """Membrane potentials over time, with the stable fixed point dashed."""
    figure, ax = _axes("From rest, with the grating on")
    return _over_time(solved, "y", figure, ax)


def modulators(solved: Solved) -> Figure:
    """Of one neuron its phase portrait, else the modulators over time."""
    if len(solved.z) > 1:
        return _over_time(solved, "a", *_axes("Modulators"))
    figure, ax = _axes("Phase portrait, with basins")
    plot.phase_portrait(solved.circuit, solved.z, grid=20, ax=ax)
    ax.plot(solved.run.state.y[:, 0], np.sqrt(solved.run.state.a[:, 0]), color=styles.INK, lw=1.4, zorder=3)
    return figure


def _over_time(solved: Solved, part: str, figure: Figure, ax: Any) -> Figure:
    plot.trajectory(solved.run, part=part, steady=solved.stable, ax=ax)
    if len(solved.z) > 1:
        ax.legend(title="Neuron", loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure


def _followed(solved: Solved, drives: Any) -> list[tuple[int, oc.State, bool]]:
    """Fixed points at drives (C, n), and whether they are stable: Newton's method from one to the next.

    It begins at the point of the page, at the drive that is nearest to its own.
    """
    start = int(np.abs(drives - solved.z).max(axis=-1).argmin())
    found = []
    for places in (range(start, len(drives)), range(start - 1, -1, -1)):
        state = solved.stable
        for k in places:
            step = oc.steady_state(solved.circuit, drives[k], state0=state, method="newton", attracting=False)
            if step.converged:
                state = step.state
                found.append((k, state, bool(oc.spectral_abscissa(solved.circuit, state) < 0)))
    return found


def contrast_response(solved: Solved) -> Figure:
    """Fixed points of the neuron that prefers the grating, over contrast: filled where stable."""
    figure, ax = _axes("Contrast response")
    best = len(solved.z) // 2
    drives = solved.population.drive(CONTRASTS, solved.population.orientations[best])
    if len(solved.z) == 1:
        each = [_fixed_points(solved.circuit, z)[0] for z in drives]
        found = [(k, state, bool(stable)) for k, points in enumerate(each) for state, stable in points]
    else:
        found = _followed(solved, drives)
    for wanted, face, label in ((True, styles.INK, "stable"), (False, "white", "not stable")):
        chosen = [(CONTRASTS[k], state.y[best]) for k, state, stable in found if stable is wanted]
        if chosen:
            ax.plot(*zip(*chosen, strict=True), "o", ms=5, mfc=face, mec=styles.INK, mew=1.2, label=label)
    analysis.contrast_axis(ax, CONTRASTS)
    ax.set_ylabel(circuits.PARTS["y"])
    ax.margins(y=0.08)
    if found:
        ax.legend(loc="best")
    return figure


def eigenvalues(solved: Solved) -> Figure:
    """Eigenvalues of the Jacobian at the fixed points."""
    figure, ax = _axes("Eigenvalues at the fixed points")
    if not solved.points:
        _empty(ax, "no fixed point was found")
        return figure
    plot.eigenvalues(solved.circuit, [state for state, _ in solved.points], ax=ax)
    return figure


def spectrum(solved: Solved) -> Figure:
    """Power spectrum of the neuron that prefers the grating, under white noise in its drive."""
    figure, ax = _axes("Power spectrum under white noise")
    state = solved.stable
    if state is None:
        _empty(ax, NONE)
        return figure
    best = len(solved.z) // 2
    power = oc.power_spectrum(solved.circuit, state, (1.0, 0.0), FREQUENCIES)[:, best, best].real
    analysis.spectrum_lines(FREQUENCIES, power, ax=ax)
    return figure


def weights(solved: Solved) -> Figure:
    """The normalization weights."""
    figure, ax = _axes("Normalization weights W")
    if len(solved.z) > 1:
        plot.matrix(solved.circuit.w, title="Normalization weights W", ax=ax)
        ax.locator_params(integer=True)
    else:
        _empty(ax, "of one neuron: 1")
    return figure


PANELS: tuple[Callable[[Solved], Figure], ...] = (
    responses,
    modulators,
    contrast_response,
    eigenvalues,
    spectrum,
    weights,
)
"""What the page shows, in order: each makes a figure of what :func:`solve` found."""


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
        lines.append(
            f"- **{words[stable]}**: leading eigenvalue {leading.real:.3g} ± {abs(leading.imag):.3g} i per second, "
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
    return circuit_code(settings) + (
        "\n"
        "found = oc.steady_state(circuit, z)\n"
        'print("converged:", found.converged, " stable:", found.stable)\n'
        'print("spectral abscissa (1/s):", oc.spectral_abscissa(circuit, found.state))\n'
        f"run = oc.simulate(circuit, z, np.linspace(0.0, {40 * max(settings.tau_y, settings.tau_a) / 1000}, 300))\n"
        'print("it ends at y =", run.state.y[-1].round(4))\n'
    )
