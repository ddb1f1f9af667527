"""Which fixed points attract, and where a circuit settles: a test by products, the motion from rest, many starts.

Nothing here computes an eigenvalue: the test of stability is a matrix whose powers
vanish or grow, so it runs wherever matrices can be multiplied, while tracing too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
from array_api_compat import array_namespace, device

from .backend import Array, as_one, from_numpy, get_backend, kernel_for, quiet, to_numpy, tree_map
from .circuit import (
    VARIANTS,
    Circuit,
    Imbalance,
    State,
    balance,
    circuit_jacobian,
    identity,
    identity_fixed_point,
    kinks,
    without_time,
)
from .linalg import inverse, matmul, solve_vector
from .methods import INTEGRATORS, RungeKutta, Slope
from .weights import matvec

SETTLED, MOVING, DIVERGED = 0, 1, 2
"""What :func:`follow` says of a motion."""
_ENDLESS = 3


class Attraction(NamedTuple):
    """Whether a linear system decays; neither where it is too close to call.

    Attributes
    ----------
    stable, unstable : boolean arrays (...)
    """

    stable: Array
    unstable: Array


def attraction(xp: Any, jac: Array, slowest: Array) -> Attraction:
    """Whether all eigenvalues of ``jac`` (..., N, N) have negative real parts, without computing any.

    The Cayley transform A = (s I - J)^-1 (s I + J) maps the left half plane into the unit disk. Its powers
    A**2, A**4, ... are formed until one has a Frobenius norm below 1 (all eigenvalues lie in the disk) or a trace
    above N (one lies outside). ``slowest`` (...) is the longest time constant, which chooses s.
    """
    return Attraction(*as_one(_decide, jac, slowest))


def _decide(jac: Array, slowest: Array) -> Attraction:
    xp = array_namespace(jac)
    backend = get_backend(xp)
    n = int(jac.shape[-1])
    size = xp.max(xp.sum(xp.abs(jac), axis=-1), axis=-1)
    one = alone(xp, size)
    where, invert, column = deciders(xp, one)
    known = size < math.inf
    jac = xp.where(known[..., None, None], jac, 0.0)
    shift = xp.sqrt(xp.where(known & (size > 0), size, 1.0) / slowest)[..., None, None]
    eye = shift * identity(xp, jac)
    power = matmul(xp, inverse(xp, eye - jac), eye + jac)
    known = bool(known) if one else known

    def judge(power: Array) -> tuple[Array, Array]:
        norm = xp.sqrt(xp.sum(power * power, axis=(-2, -1)))
        trace = xp.abs(xp.linalg.trace(power))
        if one:
            norm, trace = float(norm), float(trace)
        # NaN: a pole of the transform, an eigenvalue at s; or a power beyond the range of the dtype
        return known & (norm < 0.9), known & ((trace > 1.1 * n) | invert(norm < math.inf))

    def body(carry: Any) -> Any:
        power, stable, unstable = carry
        active = invert(stable | unstable)
        power = where(column(column(active)), matmul(xp, power, power), power)
        low, high = judge(power)
        return power, stable | (active & low), unstable | (active & high)

    def going(carry: Any) -> Any:
        open_yet = known & invert(carry[1] | carry[2])
        return open_yet if one else xp.any(open_yet)

    doublings = 24 if xp.finfo(jac.dtype).bits > 32 else 12  # beyond, rounding decides
    _, *found = backend.while_loop(going, body, (power, *judge(power)), max_steps=doublings)
    return Attraction(*(xp.asarray(flag, device=device(jac)) if one else flag for flag in found))


def attracts(xp: Any, circuit: Circuit, state: State, variant: str) -> Attraction:
    """Whether states attract, by linearization; at a kink, where every piece around it does: seen, not traced."""
    slowest = xp.max(circuit.tau_y + circuit.tau_a + 0.0 * state.y, axis=-1)
    known = xp.all(xp.isfinite(state.y) & xp.isfinite(state.a), axis=-1)
    state = State(*(xp.where(known[..., None], part, 1.0) for part in state))
    if not any(VARIANTS[variant][:2]):
        found = Attraction(*as_one(_smooth, circuit, state, slowest, settings=(variant,)))
        return Attraction(found.stable & known, found.unstable & known)
    pieces = kinks(xp, circuit, state, variant)
    stable = unstable = None
    for slope in pieces.slopes:
        jac = circuit_jacobian(xp, circuit, state, variant, slope=slope)
        found = attraction(xp, _in_own_units(xp, state, jac), slowest)
        stable = found.stable if stable is None else stable & found.stable
        unstable = found.unstable if unstable is None else unstable | found.unstable
    return Attraction(stable & known & pieces.complete, unstable & known)


def _smooth(variant: str, circuit: Circuit, state: State, slowest: Array) -> Attraction:
    xp = array_namespace(state.y)
    return _decide(_in_own_units(xp, state, circuit_jacobian(xp, circuit, state, variant)), slowest)


def _in_own_units(xp: Any, state: State, jac: Array) -> Array:
    """The Jacobian of y in units of the largest of them and of every a in units of itself: of one size throughout."""
    largest = xp.max(xp.abs(state.y), axis=-1, keepdims=True)
    largest = xp.where(largest > 0, largest, 1.0)
    units = xp.concat([largest + xp.zeros_like(state.y), state.a + xp.zeros_like(state.y)], axis=-1)
    return jac * (units[..., None, :] / units[..., :, None])


def unit_of_y(xp: Any, circuit: Circuit, z: Array) -> Array:
    """The size (...) above which y is normalized, 1 / sqrt(W); without W that of the drive. With it nothing depends
    on the units of y."""
    w = xp.max(circuit.w, axis=(-2, -1)) + xp.zeros_like(z[..., 0])
    drive = xp.max(xp.abs(circuit.b * z), axis=-1) + xp.zeros_like(w)
    pooled = w > 0
    return xp.where(pooled, 1.0 / xp.sqrt(xp.where(pooled, w, 1.0)), xp.where(drive > 0, drive, 1.0))


def limits(xp: Any, circuit: Circuit, start: State, z: Array, factor: float, unit: Array = None) -> State:
    """Sizes (...) of y and of a, ``factor`` times what drive, floor and start explain, beyond which a motion diverges.

    Modulators go with the square of W_r^-1 b z.
    """
    unit = unit_of_y(xp, circuit, z) if unit is None else unit
    strength = 1.0 + xp.max(xp.abs(circuit.b * z), axis=-1) / unit
    if circuit.w_r is not None:
        least = xp.min(xp.linalg.svdvals(circuit.w_r), axis=-1)
        eps = float(xp.finfo(least.dtype).eps)
        strength = strength / xp.where(least > 1.0, 1.0, xp.where(least > eps, least, eps))
    floor = xp.max((circuit.b0 * circuit.sigma) ** 2 + xp.zeros_like(start.a), axis=-1)
    begun = (xp.max(xp.abs(part), axis=-1) for part in start)
    sizes = (one + other for one, other in zip((unit * strength, floor + strength**2), begun, strict=True))
    return State(*(factor * size for size in sizes))


def relative_residual(xp: Any, circuit: Circuit, state: State, z: Array, variant: str) -> Array:
    """Largest imbalance over the neurons, relative to the largest term of its equation; shape (...)."""
    drive, floor = circuit.b * z, (circuit.b0 * circuit.sigma) ** 2
    found = balance(xp, circuit.w_r, circuit.w, drive, floor, state, variant)
    return relative_imbalance(xp, found, state, drive, floor)


def relative_imbalance(xp: Any, found: Imbalance, state: State, drive: Array, floor: Array) -> Array:
    """The residual of an imbalance, with the gated drive b z and the floor (b0 sigma)**2."""
    scale_y = xp.max(xp.abs(state.y), axis=-1) + xp.max(xp.abs(drive), axis=-1)
    relative_y = xp.max(xp.abs(found.y), axis=-1) / xp.where(scale_y == 0, 1.0, scale_y)
    relative_a = xp.max(xp.abs(found.a) / (xp.abs(state.a) + floor), axis=-1)
    return xp.maximum(relative_y, relative_a)  # NaN if either is


class Motion(NamedTuple):
    """Where a circuit has come to.

    Attributes
    ----------
    state : State of arrays (..., n)
    outcome : integer array (...)
        ``SETTLED``, ``MOVING`` (steps ran out) or ``DIVERGED``.
    """

    state: State
    outcome: Array


def alone(xp: Any, value: Array) -> bool:
    """Whether ``value`` is that of a single member, whose loops run on the host: Python's numbers then decide."""
    backend = get_backend(xp)
    return value.ndim == 0 and not backend.traces_loops and backend.is_concrete(value)


def deciders(xp: Any, single: bool) -> tuple[Callable[..., Any], Callable[[Any], Any], Callable[[Any], Any]]:
    """``where``, ``not``, and a column of it, for decisions of the members of a batch or of one that is alone."""
    if single:
        return lambda condition, one, other: one if condition else other, operator.not_, lambda value: value
    return xp.where, operator.invert, lambda value: value[..., None]


class RosenbrockPair:
    """What kernels of a single step of the motion are registered for; those of the whole motion are for Motion."""


class NewtonInBoth:
    """What kernels of :func:`newton_in_both` are registered for."""


EXPLICIT = RungeKutta(INTEGRATORS["dopri5"])
LARGE = 12
"""Neurons from which it pays to go in explicit steps where the motion is not stiff."""


class _Field(NamedTuple):
    """A field without a time of its own, as the methods of simulations take it."""

    xp: Any
    slope: Callable[[Array], Array]

    def __call__(self, t: Any, x: Array) -> Array:
        return self.slope(x)


_D, _E = 1.0 / (2.0 + 2.0**0.5), 6.0 + 2.0**0.5
"""Of the Rosenbrock pair."""


def follow(
    xp: Any,
    circuit: Circuit,
    start: State,
    z: Array,
    variant: str,
    active: Array,
    *,
    steps: int = 3000,
    longest: Array,
    rtol: float = 1e-3,
    still: float = 1e-5,
    target: State | None = None,
) -> Motion:
    """Follow the motion of the ``active`` members of a batch until they settle, or diverge, or the steps run out.

    The pair of Rosenbrock methods of Shampine & Reichelt (SIAM J. Sci. Comput. 18 (1997) 1), of order 2 and L-stable,
    to a relative accuracy of ``rtol`` a step: its steps, at most ``longest`` of the longest time constants each, grow
    as the motion slows down. From ``LARGE`` neurons on, that of Dormand & Prince to the same accuracy where it is not
    held back by stability, as the power method tells: it takes products with the weights only. It has settled where
    nothing moves by more than ``still`` of its size in a time constant, for four steps, or by a hundredth of that.
    From 300 steps on it ends where the fastest motion within 100 steps has twice not been slower, by 3 %, than within
    the 100 before: what decays is slower, what cycles is not. A ``target`` ends the motion of those that come within
    1 % of it and, for three steps more, ever nearer, or for one that halves the distance.
    """
    settings = variant, (steps, rtol, still)
    state, outcome = as_one(_move, circuit, start, z, active, longest, target, settings=settings)
    return Motion(State(*state), outcome)


def _move(
    variant: str,
    settings: tuple[int, float, float],
    circuit: Circuit,
    start: State,
    z: Array,
    active: Array,
    longest: Array,
    target: State | None,
) -> tuple[State, Array]:
    steps, rtol, still = settings
    xp = array_namespace(z)
    backend = get_backend(xp)
    n = int(z.shape[-1])
    wide = xp.zeros_like(start.y)
    tau = xp.concat([circuit.tau_y + wide, circuit.tau_a + wide], axis=-1)
    slow, fast = xp.max(tau, axis=-1), xp.min(tau, axis=-1)
    gated = circuit.b * z
    drive = xp.max(xp.abs(gated) + wide, axis=-1)
    unit = unit_of_y(xp, circuit, z)
    shortest = 1e-9 * fast / (1.0 + drive / unit)
    floor = (circuit.b0 * circuit.sigma) ** 2 + wide
    most_y, most_a = limits(xp, circuit, start, z, 1e6, unit)

    drive_of_y, parts = 1e-3 * drive + 1e-9 * unit, xp.arange(2 * n, device=device(z)) < n
    small = xp.concat([drive_of_y[..., None] + wide, floor], axis=-1)
    per_most = 1.0 / xp.where(parts, most_y[..., None], most_a[..., None])
    farthest, slow_below = longest * slow, max(still, 1e-3)

    def slope(x: Array) -> Array:
        return (
            xp.concat(
                balance(xp, circuit.w_r, circuit.w, gated, floor, State(x[..., :n], x[..., n:]), variant), axis=-1
            )
            / tau
        )

    def plain(x: Array, f: Array, h: Array) -> tuple[Array, Array, Array]:
        """Where a step leads, the field there, and how far it may be off."""
        step = h[..., None]
        jac = circuit_jacobian(xp, circuit, State(x[..., :n], x[..., n:]), variant)
        w = inverse(xp, eye - (_D * step)[..., None] * jac)
        k1 = matvec(xp, w, f)
        middle = slope(x + 0.5 * step * k1)
        k2 = matvec(xp, w, middle - k1) + k1
        moved = x + step * k2
        new = slope(moved)
        k3 = matvec(xp, w, new - _E * (k2 - middle) - 2.0 * (k1 - f))
        return moved, new, k1 - 2.0 * k2 + k3

    def explicit(x: Array, f: Array, h: Array) -> tuple[Array, Array, Array]:
        """The same in explicit steps."""
        step, field = column(h), cast(Slope, _Field(xp, slope))
        made = EXPLICIT.step(field, 0.0, step, x, f)
        return made.x, made.memory, 6.0 * cast(Array, made.error) / step

    def sizes(x: Array) -> Array:
        """Of all y one, of every a its own."""
        size = xp.abs(x)
        return small + xp.where(parts, xp.max(size[..., :n], axis=-1, keepdims=True), size)

    x = xp.concat([start.y + wide, start.a + wide], axis=-1)
    goal = None if target is None else xp.concat(list(target), axis=-1)
    per_goal = None if target is None else 1.0 / sizes(goal)

    native = kernel_for(Motion, xp)
    if native is not None:
        rows = x, tau, xp.concat([gated + wide, floor], axis=-1), small, per_most, goal, per_goal
        rules = steps, rtol, still, slow_below, _D, _E
        done = native(xp, variant, circuit, rows, (fast, slow, shortest, farthest), active, rules)
        if done is not None:
            return State(done[0][..., :n], done[0][..., n:]), done[1]

    eye = xp.eye(2 * n, dtype=z.dtype, device=device(z))
    kernel = kernel_for(RosenbrockPair, xp)
    single = None if kernel is None else kernel(xp, variant, circuit, z, tau, small, _D, _E)
    one = single is not None
    column = deciders(xp, one)[2]
    if single is not None:
        (slope, advance, scale, top, least), where = single, deciders(xp, True)[0]
        fast, slow, shortest, farthest = (float(value) for value in (fast, slow, shortest, farthest))
    else:
        advance, scale, where = plain, sizes, xp.where
        top, least = partial(xp.max, axis=-1), partial(xp.min, axis=-1)

    nearby = float(xp.finfo(z.dtype).eps) ** 0.25

    def fastest(x: Array, f: Array, size: Array, v: Array) -> tuple[Array, Array]:
        """A step of the power method: the next v, of length one in units of ``size``, and the rate of this one."""
        new = (slope(x + nearby * size * v) - f) / (nearby * size)
        rate = top(xp.abs(new))
        known = (rate > 0) & (rate < math.inf)
        rate = where(known, rate, 1.0 / fast)
        return where(column(known), new / column(rate), v), rate

    def fitting(x: Array, f: Array, h: Array, stiff: Array) -> tuple[Array, Array, Array]:
        """A step of one pair or the other."""
        if one:
            return advance(x, f, h) if stiff else explicit(x, f, h)
        made = explicit(x, f, h)
        if backend.is_concrete(stiff) and not bool(xp.any(stiff)):
            return made
        other = advance(x, f, h)
        moved, new, off = (xp.where(stiff[..., None], *parts) for parts in zip(other, made, strict=True))
        return moved, new, off

    def body(carry: Any) -> Any:
        x, f, size, h, fits, outcome, calm, away, count, peak, last, doubts, excess, *rest = carry
        live = outcome == MOVING
        if rest:
            stiff, pressed, v = rest
            v, rate = fastest(x, f, size, v)
            limit = 2.5 / rate  # of stability, with something to spare
            pressing = where(stiff, h < 0.6 * limit, h > 0.5 * limit)
            pressed = where(pressing, pressed + 1, where(stiff | (pressed < 1), 0, pressed - 1))
            turns = where(stiff, pressed > 10, pressed > 50)
            stiff, pressed = stiff ^ turns, where(turns, 0, pressed)
            h = where(stiff | (h < limit), h, limit)
            moved, new, off = fitting(x, f, h, stiff)
            rest = [stiff, pressed, v]
        else:
            moved, new, off = advance(x, f, h)
        reached = scale(moved)
        error = h * top(xp.abs(off) / reached) / (6.0 * rtol)
        good = live & (error <= 1.0) & (least(moved[..., n:]) > 0)
        safe = where(error <= 1e-3, 1e-3, where(error < math.inf, error, 64.0))
        far = excess > 1e-5  # far away the rest only confirms
        root = safe ** (-1.0 / 3.0)
        if rest:
            root = where(stiff, root, safe ** (-1.0 / 5.0))
        factor = where(far, 0.75 * root, 0.8 * root)
        failed = where(far, where(factor < 0.8, factor, 0.8), where(factor < 0.5, factor, 0.5))
        factor = where(good, factor, failed)
        kept = good if one else good[..., None]
        x, f, size = where(kept, moved, x), where(kept, new, f), where(kept, reached, size)
        # steps that fit become ever shorter where a motion runs away: so does the next (Gustafsson 1994); one much
        # shorter than what fits, after a failure, says nothing of that
        before, fits = fits, where(good, h * factor, fits)  # negative: none has yet
        h = where(live, where(good & (error > 1e-3) & (fits < before), fits * fits / before, h * factor), h)
        h = where(h > farthest, farthest, h)
        speed = top(xp.abs(tau * f) / size)
        steady, slowly, soon = speed < still, speed < slow_below, speed < 1e-2 * still
        if goal is not None:
            before, away = away, top(xp.abs(x - goal) * per_goal)
            near = (away < 1e-2) & (away <= before)
            steady, slowly, soon = steady | near, slowly | near, soon | (near & (calm > 0) & (away <= 0.5 * before))
        calm = where(good, where(slowly, calm + 1, 0), calm)
        settled = live & (soon | ((calm > 3) & steady) | (h > 1e4 * slow))
        excess = top(size * per_most)
        lost = live & ((h < shortest) | (excess > 1))
        outcome = where(lost, DIVERGED, where(settled, SETTLED, outcome))
        count, peak = count + 1, where(speed > peak, speed, peak)
        over = count % 100 == 0
        doubts = where(over, where(peak < 0.97 * last, 0, doubts + 1), doubts)
        outcome = where((count >= 300) & (doubts > 1) & (outcome == MOVING), _ENDLESS, outcome)
        peak, last = where(over, 0.0, peak), where(over, peak, last)
        return x, f, size, h, fits, outcome, calm, away, count, peak, last, doubts, excess, *rest

    outcome = MOVING * xp.astype(active, xp.int32) + SETTLED
    nothing, forever = 0.0 * fast, math.inf * fast
    count = 0 if one else xp.zeros((), dtype=xp.int32, device=device(z))
    outcome = int(outcome) if one else outcome
    zero = 0 * outcome
    begun = x, slope(x), scale(x), 0.1 * fast, -fast, outcome
    carry: tuple[Any, ...] = *begun, zero, forever, count, nothing, forever, zero, nothing
    if n >= LARGE:
        carry = *carry, outcome > MOVING, zero, xp.ones_like(x)
    carry = backend.while_loop(
        lambda c: c[5] == MOVING if one else xp.any(c[5] == MOVING), body, carry, max_steps=steps
    )
    x, outcome = carry[0], carry[5]
    outcome = where(outcome == _ENDLESS, MOVING, outcome)
    return State(x[..., :n], x[..., n:]), xp.asarray(outcome, dtype=xp.int32, device=device(z)) if one else outcome


def nudged(xp: Any, circuit: Circuit, state: State, z: Array, size: float) -> State:
    """A state off any symmetry: y moved by about ``size`` relative to the states and drives of the circuit."""
    n = int(z.shape[-1])
    scale = xp.max(xp.abs(state.y) + xp.abs(circuit.b * z), axis=-1, keepdims=True)
    still = xp.sqrt(xp.min(state.a, axis=-1, keepdims=True)) * unit_of_y(xp, circuit, z)[..., None]
    scale = xp.where(scale > 0, scale, still)
    ramp = xp.asarray([1.0 - 0.5 * ((0.618034 * i) % 1.0) for i in range(n)], dtype=z.dtype, device=device(z))
    sign = xp.where(z < 0, -xp.ones_like(z), xp.ones_like(z))
    return State(state.y + size * scale * ramp * sign, state.a)


def random_starts(xp: Any, circuit: Circuit, z: Array, variant: str, count: int, seed: int) -> State:
    """States (count, n) from which to look for fixed points of a circuit without batch axes.

    Modulators log-uniform between (b0 sigma)**2 and ten times what W_r = I gives, or 4 where that is less, each by
    itself or all at one level; y of the size that W_r = I gives, or of 1 / sqrt(w_ii), below which every fixed point
    has its |y_i|.
    """
    n = int(z.shape[-1])
    rng = np.random.default_rng(seed)
    reference = identity_fixed_point(xp, circuit, z, variant)
    low = to_numpy((circuit.b0 * circuit.sigma) ** 2) + np.zeros(n)
    high = np.maximum(10.0 * to_numpy(reference.a), 4.0)
    a = np.exp(np.log(low) + rng.random((count, n)) * np.log(high / low))
    # a whole profile at once as well: solutions often differ by the common level
    common = np.exp(np.log(low) + rng.random((count, 1)) * np.log(high / low))
    a = np.where((np.arange(count) % 2 == 0)[:, None], a, common)
    own = np.abs(to_numpy(reference.y)).max() + 1e-3 * float(unit_of_y(xp, circuit, z))
    most = 1.0 / np.sqrt(np.maximum(np.diagonal(to_numpy(circuit.w)), 1e-2 * to_numpy(circuit.w).max() + 1e-300))
    wide = (np.arange(count) % 4 < 2)[:, None]
    y = np.where(wide, rng.uniform(-1.0, 1.0, (count, n)) * np.minimum(most, 1e3 * own), 0.0)
    y = np.where(wide, y, rng.standard_normal((count, n)) * own)

    return State(from_numpy(xp, y, z), from_numpy(xp, a, z))


def lively_starts(xp: Any, circuit: Circuit, z: Array, count: int, seed: int) -> State:
    """States (count, n) from which to follow the motion of a circuit without batch axes, away from rest.

    y of the size at which W normalizes, 1 / sqrt(W 1), and modulators below one, which let it go on.
    """
    rng = np.random.default_rng(seed)
    n = int(z.shape[-1])
    pool, unit = to_numpy(circuit.w).sum(axis=-1), float(unit_of_y(xp, circuit, z))
    size = np.where(pool > 0, 1.0 / np.sqrt(np.where(pool > 0, pool, 1.0)), unit)
    y = 1.5 * size * rng.standard_normal((count, n))
    a = np.maximum(to_numpy((circuit.b0 * circuit.sigma) ** 2), rng.uniform(0.2, 0.9, (count, n)))
    return State(from_numpy(xp, y, z), from_numpy(xp, a, z))


def newton_in_both(
    xp: Any, circuit: Circuit, start: State, z: Array, variant: str, tolerance: float, steps: int = 30
) -> tuple[State, Array]:
    """Newton's method in y and a together, and the residual: without the poles that eliminating y leaves."""
    with quiet(get_backend(xp)):
        best, least = as_one(_newton_steps, circuit, start, z, settings=(variant, steps, 1e-2 * tolerance))
    return State(*best), least


def _newton_steps(
    variant: str, steps: int, enough: float, circuit: Circuit, start: State, z: Array
) -> tuple[State, Array]:
    xp = array_namespace(z)
    n = int(z.shape[-1])

    drive, floor, still = circuit.b * z, (circuit.b0 * circuit.sigma) ** 2, without_time(xp, circuit)

    def measured(state: State) -> tuple[State, Array]:
        found = balance(xp, circuit.w_r, circuit.w, drive, floor, state, variant)
        return State(*found), relative_imbalance(xp, found, state, drive, floor)

    def body(carry: Any) -> Any:
        state, off, best, least = carry
        change = solve_vector(xp, circuit_jacobian(xp, still, state, variant), xp.concat(list(off), axis=-1))
        # in log a, by a factor of e**3 at most: to where a falls below zero no step leads
        factor = -change[..., n:] / state.a
        factor = xp.where(factor > 3.0, 3.0, xp.where(factor < -3.0, -3.0, factor))
        moved = State(state.y - change[..., :n], state.a * xp.exp(factor))
        sound = xp.all(xp.isfinite(moved.y) & xp.isfinite(moved.a) & (moved.a > 0), axis=-1)[..., None]
        # a step out of the domain: stay, at half the modulators
        state = State(
            xp.where(sound, moved.y, state.y),
            xp.where(sound, moved.a, xp.where(state.a > 1e-12, 0.5 * state.a, state.a)),
        )
        off, residual = measured(state)
        better = (residual < least)[..., None]
        best = State(*(xp.where(better, new, old) for new, old in zip(state, best, strict=True)))
        return state, off, best, xp.where(better[..., 0], residual, least)

    wide = xp.zeros_like(drive + floor + start.y)
    start = State(start.y + wide, start.a + wide)
    native = kernel_for(NewtonInBoth, xp)
    if native is not None:
        packed, base = (xp.concat([one + wide, two + wide], axis=-1) for one, two in (start, (drive, floor)))
        done = native(xp, variant, circuit, packed, base, steps, enough)
        if done is not None:
            return State(done[0][..., :n], done[0][..., n:]), done[1]
    off, least = measured(start)
    loop = get_backend(xp).while_loop
    carry = loop(lambda c: xp.any(~(c[3] <= enough)), body, (start, off, start, least), max_steps=steps)
    return carry[2], carry[3]


def members(circuit: Circuit, z: Array, index: tuple[int, ...]) -> tuple[Circuit, Array]:
    """One member of a batch: the circuit and its drive."""

    def pick(value: Array, core: int) -> Array:
        if value is None or value.ndim <= core:
            return value
        batch = value.shape[: value.ndim - core]
        own = index[len(index) - len(batch) :]
        return value[(*(0 if length == 1 else i for i, length in zip(own, batch, strict=True)), ...)]

    fields = [pick(value, Circuit.spec[name].axes) for name, value in circuit._asdict().items()]
    return Circuit._make(fields), pick(z, 1)


def gathered(xp: Any, circuit: Circuit, z: Array, wanted: list[tuple[int, ...]]) -> tuple[Circuit, Array]:
    """Several members of a batch as a batch with one axis."""
    picked = [members(circuit, z, index) for index in wanted]
    made = tree_map(lambda *parts: xp.stack(list(parts)), *(tuple(one) for one, _ in picked))
    cores = [Circuit.spec[name].axes for name in Circuit._fields]
    # a number stands for all neurons
    made = [part if part is None or part.ndim > core else part[:, None] for part, core in zip(made, cores, strict=True)]
    return Circuit._make(made), xp.stack([drive for _, drive in picked])
