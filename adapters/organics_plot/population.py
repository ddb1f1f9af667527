"""A tuned population that looks at gratings: the circuit most pictures are about.

Each neuron prefers one orientation. A grating drives it in proportion to its
contrast and to how near its orientation is to the preferred one; the pool that
normalizes it is broad.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import organics_core as oc
from organics_core import checks
from organics_core.circuit import is_identity

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


class Population(NamedTuple):
    """A population tuned to orientation.

    Attributes
    ----------
    circuit : organics_core.Circuit
        With W_r = I.
    orientations : array (n,)
        Preferred orientations in radians, in [0, pi).
    tuning : float
        Concentration of the drive's tuning curve.
    """

    circuit: oc.Circuit
    orientations: FloatArray
    tuning: float

    def drive(self, contrast: Any, orientation: float = np.pi / 2) -> FloatArray:
        """Input drive (..., n) of gratings of ``contrast`` (...) in [0, 1], else ValueError; orientation in radians."""
        orientation = checks.finite_number("orientation", orientation)
        contrast = np.asarray(contrast, dtype=np.float64)
        wrong = contrast[~((contrast >= 0) & (contrast <= 1))]
        if wrong.size:
            raise ValueError(f"contrast must be between 0 and 1, got {wrong.flat[0]:g}")
        bump = np.exp(self.tuning * (np.cos(2 * (self.orientations - orientation)) - 1))
        return np.asarray(contrast[..., None] * bump)

    def nearest(self, orientation: float) -> int:
        """Index of the neuron whose preferred orientation is nearest to ``orientation``, in radians."""
        return int(np.argmax(np.cos(2 * (self.orientations - checks.finite_number("orientation", orientation)))))


def tuned_population(
    n: int = 36,
    *,
    sigma: float = 0.15,
    gain: float = 0.5,
    tau: float = 0.002,
    tuning: float = 2.0,
    pool: float = 0.5,
) -> Population:
    """A population of ``n`` neurons tuned to orientation, normalized by a broad pool.

    Parameters
    ----------
    n : int
        Number of neurons; preferred orientations are evenly spaced.
    sigma : float
        Contrast at which the neuron that prefers the grating reaches half its
        largest rate.
    gain : float
        b = b0.
    tau : float
        tau_y = tau_a, in seconds.
    tuning, pool : float
        Concentrations of the drive's tuning and of the normalization pool, not
        negative (0 is a uniform pool).

    Returns
    -------
    Population
        Scaled so that the steady rate of the preferring neuron is
        c**2 / (sigma**2 + c**2) at contrast c.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import organics_core as oc
    >>> import organics_plot as plot
    >>> population = plot.tuned_population(8)
    >>> y = oc.steady_state(population.circuit, population.drive(0.15)).state.y
    >>> float((y**2).max().round(6))  # half the largest rate, at a contrast of sigma
    0.5
    """
    orientations = np.arange(checks.positive_integer("n", n)) * np.pi / n
    sigma, gain = checks.positive_number("sigma", sigma), checks.positive_number("gain", gain)
    tau = checks.positive_number("tau", tau)
    tuning, pool = checks.not_negative("tuning", tuning), checks.not_negative("pool", pool)
    weights = np.exp(pool * (np.cos(2 * (orientations[:, None] - orientations)) - 1))
    bump = np.exp(tuning * (np.cos(2 * orientations) - 1))
    weights /= (weights @ bump**2).max()
    circuit = oc.Circuit(
        None,
        weights,
        b=np.full(n, gain),
        b0=np.full(n, gain),
        sigma=np.full(n, sigma),
        tau_y=np.full(n, tau),
        tau_a=np.full(n, tau),
    )
    return Population(circuit, orientations, tuning)


class ContrastExperiment(NamedTuple):
    """Responses of a population to gratings of rising contrast, switched on and off.

    Attributes
    ----------
    population : Population
    contrasts : array (C,)
    orientation : float
        Of the grating, in radians.
    times : array (T,)
        In seconds.
    on, off : float
        When the grating appears and disappears, in seconds.
    trajectory : organics_core.Trajectory
        State (T, C, n).
    steady : organics_core.SteadyState
        Under the grating, state (C, n).
    """

    population: Population
    contrasts: FloatArray
    orientation: float
    times: FloatArray
    on: float
    off: float
    trajectory: oc.Trajectory
    steady: oc.SteadyState

    @property
    def faintest(self) -> float:
        """The smallest contrast above zero; ValueError where there is none."""
        seen = self.contrasts[self.contrasts > 0]
        if not seen.size:
            raise ValueError("contrasts must hold one above zero for this picture, got zeros only")
        return float(seen.min())

    @property
    def rates(self) -> FloatArray:
        """Firing rates max(y, 0)**2, (T, C, n)."""
        return np.asarray(np.maximum(self.trajectory.state.y, 0.0) ** 2)

    @property
    def sustained(self) -> FloatArray:
        """Simulated rates just before the grating disappears, (C, n)."""
        return np.asarray(self.rates[int(np.searchsorted(self.times, self.off, side="right")) - 1])

    @property
    def predicted(self) -> FloatArray:
        """Rates by the normalization equation, (C, n)."""
        return np.asarray(np.maximum(self.steady.state.y, 0.0) ** 2)


def contrast_experiment(
    population: Population | None = None,
    contrasts: Any = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0),
    *,
    orientation: float = np.pi / 2,
    on: float = 0.02,
    off: float = 0.32,
    end: float = 0.4,
    rtol: float = 1e-8,
) -> ContrastExperiment:
    """Show the population gratings of rising contrast, from ``on`` to ``off`` seconds, and simulate.

    Parameters
    ----------
    population : Population, optional
        With W_r = I; :func:`tuned_population` by default.
    contrasts : sequence of float
        One at least, from 0 to 1.
    orientation : float
        In radians.
    on, off, end : float
        In seconds, 0 < on < off < end.
    rtol : float
        Relative tolerance of the simulation.

    Returns
    -------
    ContrastExperiment

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong: contrasts that are not between 0 and 1, say.
    ArithmeticError
        Where the simulation fails.

    Examples
    --------
    >>> import organics_plot as plot
    >>> experiment = plot.contrast_experiment(plot.tuned_population(4), (0.1, 1.0), rtol=1e-4)
    >>> bool(abs(experiment.sustained - experiment.predicted).max() < 1e-3)
    True
    """
    population = tuned_population() if population is None else population
    if not bool(is_identity(np, population.circuit.w_r)):
        raise ValueError(
            "population.circuit must have W_r = I (w_r None or the identity): the pictures compare its responses with "
            "the normalization equation"
        )
    contrasts = np.asarray(contrasts, dtype=np.float64)
    if contrasts.ndim != 1 or not contrasts.size:
        raise ValueError(f"contrasts must have shape (C,) with C >= 1, got shape {contrasts.shape}")
    on, off, end = (checks.finite_number(name, at) for name, at in (("on", on), ("off", off), ("end", end)))
    if not 0.0 < on < off < end:
        raise ValueError(
            f"on, off and end must be rising times above zero, in seconds, got {on:g}, {off:g} and {end:g}"
        )
    drive = population.drive(contrasts, orientation)
    pieces = []
    state: oc.State | None = None
    for start, stop, gate in ((0.0, on, 0.0), (on, off, 1.0), (off, end, 0.0)):  # the drive jumps in between
        times = np.linspace(start, stop, max(2, round((stop - start) / 0.0005) + 1))
        run = oc.simulate(
            population.circuit, gate * drive, times, state0=state, rtol=rtol, atol=1e-3 * rtol, drive="constant"
        )
        if not run.success:
            raise ArithmeticError(f"the simulation of the experiment did not reach its end: {run.message}")
        pieces.append(run)
        state = oc.State(run.state.y[-1], run.state.a[-1])
    keep = [slice(0, -1), slice(0, None), slice(1, None)]  # the moments of change once each
    times = np.concatenate([run.times[part] for run, part in zip(pieces, keep, strict=True)])
    y, a = (np.concatenate([run.state[i][part] for run, part in zip(pieces, keep, strict=True)]) for i in range(2))
    trajectory = oc.Trajectory(
        times,
        oc.State(y, a),
        np.maximum.reduce([run.status for run in pieces]),
        sum(run.steps for run in pieces),
        sum(run.rejected for run in pieces),
    )
    steady = oc.steady_state(population.circuit, drive)
    return ContrastExperiment(population, contrasts, orientation, times, on, off, trajectory, steady)
