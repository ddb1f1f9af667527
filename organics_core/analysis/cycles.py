"""Limit cycles: Newton's method on the return to a section (shooting), Floquet multipliers.

Source: Kuznetsov, Elements of Applied Bifurcation Theory (2004), sections 1.5 and 10.1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..attractors import unit_of_y
from ..backend import Array
from ..circuit import Circuit
from ..integration import integrate
from .host import XP, Hosted, Vector, on_host

_ROUGH = 1e-6  # relative tolerance of the simulation before Newton's method
_CLOSE = 0.05  # a return within this share of the motion is tried


class Cycle(NamedTuple):
    """A limit cycle, or why none was found.

    Attributes
    ----------
    period : float
        In seconds; NaN where none was found.
    times : array (T,)
        From 0 to the period.
    state : State of arrays (T, n)
        The cycle at those times; NaN where none was found.
    multipliers : complex array (N,)
        Floquet multipliers, the largest first: what a disturbance of the N
        components of the state is multiplied by in one period. One of them is 1,
        up to the error of the integration: that along the cycle.
    stable : bool or None
        Whether all others lie within the unit circle; None where none was found,
        or where one is as near to the circle as that error.
    converged : bool
    residual : float
        Distance of the state after one period from that at its start, relative to
        the largest state on the cycle.
    message : str
        What was found, or what happened instead.
    """

    period: float
    times: Array
    state: Any
    multipliers: Array
    stable: bool | None
    converged: bool
    residual: float
    message: str


def limit_cycle(
    model: Any,
    z: Array,
    *,
    state0: Any = None,
    period: float | None = None,
    duration: float | None = None,
    variant: str = "main",
    rtol: float = 1e-9,
    points: int = 201,
    max_iterations: int = 20,
) -> Cycle:
    """The limit cycle that a circuit, or any other model, runs into; or one near a given start.

    Parameters
    ----------
    model : Circuit or Model
        Without batch axes.
    z : array (n,)
        Constant input drive.
    state0 : State of arrays (n,), optional
        Where the simulation starts; by default at rest, slightly disturbed.
    period : float, optional
        A guess, in seconds. Then nothing is simulated first: Newton's method starts
        at ``state0``, which must be given, and may find a cycle that repels.
    duration : float, optional
        Longest simulation, in seconds; by default 1000 times the longest time
        constant (of a model without time constants: of its Jacobian at the start).
    variant : {"main", "rectified", "rectified_recurrence"}
        Of a Circuit.
    rtol : float
        Relative tolerance of the method "dopri5" on the cycle, between 1e-12 and 1e-3; the absolute one
        is a hundredth of it, relative to the size of the states (for a Circuit with y in units of
        1 / sqrt(max W)). The simulation before has 1e-6.
    points : int
        T, 2 at least.
    max_iterations : int
        Of Newton's method.

    Returns
    -------
    Cycle
        In the library of the arguments; it is computed by numpy, in float64. That
        none was found is a result, not an error: ``message`` tells whether the
        simulation settled at a fixed point, diverged, failed or did neither.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong. Values must be visible: this does not trace.

    Notes
    -----
    The monodromy matrix M, whose eigenvalues are the multipliers, is the solution
    after one period of the variational equation M' = J(x(t)) M from the identity,
    integrated with the cycle itself. Newton's method solves x(T) = x(0), with x(0)
    in the plane through the first guess at right angles to the field, for x(0) and T.
    A model that depends on time is taken at the time 0. All integration is explicit:
    stiff models take many steps, and a cycle along which disturbances grow by many
    orders of magnitude within a period is out of reach.

    Examples
    --------
    The oscillation of Wilson and Cowan's populations:

    >>> import numpy as np
    >>> import organics_core as oc
    >>> w = np.array([[16.0, -12.0], [15.0, -3.0]])
    >>> a, theta = np.array([1.3, 2.0]), np.array([4.0, 3.7])
    >>> populations = oc.WilsonCowan(w, a, theta, tau=0.01)
    >>> cycle = oc.limit_cycle(populations, np.array([1.25, 0.0]))
    >>> cycle.stable, f"{1 / cycle.period:.1f} Hz"
    (True, '20.0 Hz')
    """
    rtol = checks.positive_number("rtol", rtol)
    if not 1e-12 <= rtol <= 1e-3:
        raise ValueError(f"rtol must lie between 1e-12 and 1e-3, got {rtol:g}")
    points = checks.positive_integer("points", points)
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}")
    max_iterations = checks.positive_integer("max_iterations", max_iterations)
    for name, value in (("period", period), ("duration", duration)):
        if value is not None:
            checks.positive_number(name, value)
    if period is not None and state0 is None:
        raise ValueError("state0 must be given with period: a state near the cycle")
    hosted, x = on_host(model, z, variant, state0, what="limit_cycle")
    if not isinstance(hosted.model, Circuit):
        return _cycle_of(hosted, x, rtol, max_iterations, period, duration, points)
    # in units in which y is of the size of the modulators, so that one tolerance does for both; powers of two are exact
    unit = 2.0 ** round(math.log2(float(unit_of_y(XP, hosted.model, hosted.z))))
    scaled = hosted._replace(model=hosted.model._replace(w=hosted.model.w * unit * unit), z=hosted.z / unit)
    if x is not None:
        x = x / np.repeat([unit, 1.0], len(hosted.z))
    found = _cycle_of(scaled, x, rtol, max_iterations, period, duration, points)
    return found._replace(state=found.state._replace(y=unit * found.state.y))


def _cycle_of(
    hosted: Hosted,
    x: Vector | None,
    rtol: float,
    max_iterations: int,
    period: float | None,
    duration: float | None,
    points: int,
) -> Cycle:
    """What :func:`limit_cycle` returns, in the units of the model."""
    search = _Search(hosted, rtol, max_iterations)
    if period is not None and x is not None:
        found = search.newton(x, float(period))
        if isinstance(found, str):
            return search.none(found, points)
        return search.cycle(*found, points)
    if x is None:
        x = hosted.rest()
        # off a fixed point, and off any symmetry
        push = 1e-3 * np.linspace(0.5, 1.0, len(hosted.z)) * (1.0 + np.abs(hosted.z))
        x = x + np.concatenate([push, np.zeros(len(x) - len(push))])
    return search.run(x, duration, points)


class _Search(NamedTuple):
    hosted: Hosted
    rtol: float
    most: int

    def flow(self, x: Vector, times: Any, size: float, rtol: float, **options: Any) -> Any:
        """The trajectory from ``x``, in one array."""
        return integrate(
            lambda _, s: (self.hosted.field(s[0]),), (x,), np.asarray(times, dtype=float),
            rtol=rtol, atol=1e-2 * rtol * size, **options,
        )  # fmt: skip

    def around(self, x: Vector, period: float, size: float, rtol: float) -> tuple[Vector, Vector] | None:
        """The state after one period, and the monodromy matrix."""
        n = len(x)

        def field(_: Any, s: tuple[Vector]) -> tuple[Vector]:
            # in units of the size of the state: one absolute tolerance for it and the matrix
            state, matrix = size * s[0][:n], s[0][n:].reshape(n, n)
            return (np.append(self.hosted.field(state) / size, self.hosted.quick_jacobian(state) @ matrix),)

        run = integrate(
            field, (np.append(x / size, np.eye(n)),), np.array([0.0, period]), rtol=rtol,
            atol=1e-2 * rtol,
        )  # fmt: skip
        if not run.success:
            return None
        end = run.state[0][-1]
        return size * end[:n], end[n:].reshape(n, n)

    def newton(self, x: Vector, period: float) -> tuple[Vector, float, Vector, float] | str:
        """State, period, monodromy matrix and residual of the cycle near ``x``; or why there is none."""
        hosted, anchor = self.hosted, x
        size = float(np.abs(x).max()) or 1.0
        normal = hosted.field(x)
        speed = float(np.linalg.norm(normal))
        if not (math.isfinite(speed) and speed * period > 1e-8 * size):
            return "Newton's method starts at a fixed point, not on a cycle"
        normal = normal / speed
        residual = math.inf
        rtol = max(self.rtol, _ROUGH)
        made = self.around(x, period, size, rtol)
        for _ in range(self.most):
            if made is None:
                return "not converged: the integration of one period failed"
            end, matrix = made
            n = len(x)
            residual = float(np.abs(end - x).max()) / size
            slope = hosted.field(end)
            jac = np.block([[matrix - np.eye(n), slope[:, None]], [normal[None, :], np.zeros((1, 1))]])
            right = -np.append(end - x, normal @ (x - anchor))
            if not (np.isfinite(jac).all() and np.isfinite(right).all()):
                return "not converged: Newton's method diverged"
            change = np.linalg.lstsq(jac, right, rcond=1e-14)[0]
            share = 1.0
            while abs(share * change[-1]) > 0.3 * period or np.abs(share * change[:-1]).max() > size:
                share *= 0.5
            for _ in range(6):
                moved = self.around(x + share * change[:-1], period + share * change[-1], size, rtol)
                if moved is not None:
                    after = float(np.abs(moved[0] - x - share * change[:-1]).max()) / size
                    if after < residual or after < 10 * rtol:
                        break
                share *= 0.5
            else:
                return f"not converged: Newton's method stopped at a residual of {residual:.1e}"
            x, period, made = x + share * change[:-1], period + float(share * change[-1]), moved
            step = share * max(float(np.abs(change[:-1]).max()) / size, abs(float(change[-1])) / period)
            if max(step, after) < 1e2 * rtol:
                if rtol == self.rtol:
                    break
                rtol = self.rtol
                made = self.around(x, period, size, rtol)
        else:
            return f"not converged: a residual of {residual:.1e} after {self.most} iterations"
        if moved is None:
            return "not converged: the integration of one period failed"
        # not a fixed point, and not several rounds
        run = self.flow(x, period * np.array([0.0, *(1 / k for k in range(7, 1, -1)), 1.0]), size, self.rtol)
        if not run.success:
            return "not converged: the integration of one period failed"
        path = run.state[0]
        extent = float(np.abs(path - x).max())
        if not extent > 1e-5 * size:
            return "Newton's method went to a fixed point, not to a cycle"
        for k, there in zip(range(7, 1, -1), path[1:-1], strict=True):
            if np.abs(there - x).max() < 1e-4 * extent:
                shorter = self.newton(x, period / k)
                if not isinstance(shorter, str):  # as it is where the cycle merely is slow here
                    return shorter
        return x, period, moved[1], after

    def cycle(self, x: Vector, period: float, matrix: Vector, residual: float, points: int) -> Cycle:
        """What is told of a cycle."""
        times = np.linspace(0.0, period, points)
        run = self.flow(x, times, float(np.abs(x).max()) or 1.0, self.rtol)
        if not run.success:
            return self.none("not converged: the integration of one period failed", points)
        path = run.state[0]
        multipliers = np.linalg.eigvals(matrix)
        multipliers = multipliers[np.argsort(-np.abs(multipliers), kind="stable")]
        trivial = int(np.argmin(np.abs(multipliers - 1.0)))
        others = np.abs(np.delete(multipliers, trivial))
        error = 10 * abs(multipliers[trivial] - 1.0) + 1e2 * self.rtol
        largest = float(others.max(initial=0.0))
        stable = None if abs(largest - 1.0) <= error else largest < 1.0
        kind = {True: "a stable cycle", False: "an unstable cycle", None: "a cycle of undecided stability"}[stable]
        give, state = self.hosted.give, self.hosted.state(path)
        message = f"{kind} of period {period:.6g} s"
        return Cycle(period, give(times), state, give(multipliers.astype(complex)), stable, True, residual, message)

    def none(self, message: str, points: int) -> Cycle:
        n = sum(self.hosted.layout.sizes)
        give, nothing = self.hosted.give, math.nan
        return Cycle(
            nothing, give(np.full(points, nothing)), self.hosted.state(np.full((points, n), nothing)),
            give(np.full(n, complex(nothing, 0.0))), None, False, nothing, message,
        )  # fmt: skip

    def slowest(self, x: Vector) -> float:
        """The longest time constant."""
        decay = getattr(self.hosted.model, "decay", None)
        if decay is not None:
            return max(float(np.max(tau)) for tau in decay())
        rates = np.abs(np.linalg.eigvals(self.hosted.jacobian(x)))
        rates = rates[np.isfinite(rates) & (rates > 1e-6 * rates.max(initial=0.0))]
        return 1.0 / float(rates.min()) if len(rates) else 1.0

    def run(self, x: Vector, duration: float | None, points: int) -> Cycle:
        """Simulate until the trajectory returns, and then Newton's method; or say what happens instead."""
        chunk = 25 * self.slowest(x)
        duration = 40 * chunk if duration is None else float(duration)
        chunk, spent, reason = min(chunk, duration), 0.0, ""
        start = largest = float(np.abs(x).max()) or 1.0
        while spent < duration * (1 - 1e-12):
            length = min(chunk, duration - spent)
            anchor, normal = x, self.hosted.field(x)

            def event(_: Any, s: tuple[Vector], anchor: Vector = anchor, normal: Vector = normal) -> Any:
                return np.asarray(normal @ (s[0] - anchor))

            run = self.flow(x, np.linspace(0.0, length, 201), largest, _ROUGH, events=[event], max_steps=20_000)
            path = run.state[0][np.isfinite(run.state[0]).all(axis=-1)]
            largest = max(largest, float(np.abs(path).max()))
            if largest > 1e6 * max(start, 1.0) or (not run.success and largest > 1e2 * max(start, 1.0)):
                return self.none("none found: the trajectory diverges", points)
            if not run.success:
                return self.none(f"none found: the simulation failed: {run.message}", points)
            x, spent = path[-1], spent + length
            extent = float(np.ptp(path[100:], axis=0).max())
            if self.settles(path, extent, largest):
                return self.none("none found: the trajectory settles at a stable fixed point", points)
            guess = self.returns(run, extent)
            if guess is not None:
                found = self.newton(*guess)
                if isinstance(found, str):
                    reason = f" ({found})"
                else:
                    made = self.cycle(*found, points)
                    # the cycle that the trajectory runs into is one that it is near to, and that does not repel
                    if made.stable is not False and np.abs(found[0] - guess[0]).max() < 2 * _CLOSE * extent:
                        return made
                    reason = f" (near the trajectory lies {made.message})"
            chunk *= 1.5
        return self.none(f"none found: not converged, still moving after {spent:.4g} s{reason}", points)

    def settles(self, path: Vector, extent: float, size: float) -> bool:
        """Whether a trajectory approaches a stable fixed point, or is there."""
        x = path[-1]
        for _ in range(20):
            change = np.linalg.lstsq(self.hosted.jacobian(x), -self.hosted.field(x))[0]
            x = x + change
            if not np.isfinite(x).all():
                return False
            if np.abs(change).max() <= 1e-12 * size:
                break
        else:
            return False
        if not self.hosted.solves(x):
            return False
        away = np.abs(path - x).max(axis=-1)
        there = max(extent, away[-1]) <= 1e2 * _ROUGH * size
        near = away[150:].max() < min(0.5 * away[50:100].max(), 0.02 * size)
        return bool((there or near) and np.linalg.eigvals(self.hosted.jacobian(x)).real.max() < 0)

    def returns(self, run: Any, extent: float) -> tuple[Vector, float] | None:
        """A state to which the trajectory came back, and after what time; None where it did not."""
        times, states = run.events[0].times, run.events[0].state[0]
        if len(times) < 3:
            return None
        speeds = np.array([self.hosted.field(s) for s in states])
        forward = speeds @ speeds[-1] > 0
        times, states = times[forward], states[forward]
        for lag in range(1, min(len(times), 12)):
            if np.abs(states[-1] - states[-1 - lag]).max() < _CLOSE * extent:
                return states[-1], float(times[-1] - times[-1 - lag])
        return None
