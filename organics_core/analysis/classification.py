"""What becomes of a circuit: fixed point, limit cycle, divergence or undecided; phase diagrams around W_r = I.

Source: the phase diagrams over recurrence strength and input norm of random
recurrence (Morone, Rawat, Heeger & Martiniani, bioRxiv 2025.05.16.654567).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from .. import checks
from ..attractors import limits, members, relative_residual, unit_of_y
from ..backend import Array, from_numpy, get_backend, quiet, to_numpy
from ..circuit import (
    VARIANTS,
    Circuit,
    State,
    circuit_jacobian,
    field,
    identity_fixed_point,
    prepare,
    share_pool,
    validate_circuit,
    validate_state,
)
from ..equilibria import Settings, settle
from ..integration import simulate
from ..linalg import solve_vector
from ..model import rest as model_rest
from ..stability import _spectral_abscissa
from ..trajectory import TOO_MANY_STEPS
from ..weights import without_operators

FIXED_POINT, LIMIT_CYCLE, DIVERGENCE, UNDECIDED = 0, 1, 2, 3
KINDS = ("fixed point", "limit cycle", "divergence", "undecided")
"""Names of the codes of :func:`classify`, in their order."""

ENSEMBLES = ("goe", "gaussian")


class Classification(NamedTuple):
    """What becomes of circuits under constant input, from rest or from where they were started.

    Attributes
    ----------
    kind : integer array (...)
        0 stable fixed point, 1 limit cycle, 2 divergence, 3 undecided; see ``KINDS``.
    abscissa : array (...)
        Spectral abscissa at ``state``, per second, positive where it is
        unstable; NaN where no fixed point was found.
    distance : array (...)
        Distance of that fixed point's y from the closed form for W_r = I,
        relative to the latter's norm: the breakdown of normalization.
    simulated : boolean array (...)
        Whether the motion had to be simulated at length, because it did not settle soon.
    state : State of arrays (..., n)
        The fixed point where the circuit settles; where it does not, one that
        was found elsewhere; NaN where none was found.
    others : State of arrays (..., m, n)
        Attracting fixed points that were found beside what becomes of the
        circuit, to which other starts lead; NaN beyond those of a member. A
        member without any may have some that were not found.
    """

    kind: Array
    abscissa: Array
    distance: Array
    simulated: Array
    state: State
    others: State


def classify(
    circuit: Circuit,
    z: Array,
    *,
    variant: str = "main",
    chunks: int = 10,
    rtol: float = 1e-6,
    max_steps: int = 20_000,
    start: State | None = None,
    starts: int = 0,
) -> Classification:
    """Decide whether circuits settle, oscillate or diverge from rest, or from another start.

    Parameters
    ----------
    circuit : Circuit
        Leading axes are batch axes.
    z : array (..., n)
        Input drive.
    variant : {"main", "rectified", "rectified_recurrence"}
    chunks : int
        Simulate at most so many times 100 of the longest time constant.
    rtol : float
        Tolerance of that simulation.
    max_steps : int
        Bound on the steps of a stiff method between two outputs, 1000 of which make a chunk; it takes over
        where an explicit one would take more than 50.
    start : State of arrays (..., n), optional
        Where the motion begins; at rest by default, a nudge off it where there
        is no input.
    starts : int
        How many random starts, besides the fixed point for W_r = I, to look for
        other attracting points from.

    Returns
    -------
    Classification

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong. Values must be visible: this does not trace.

    Notes
    -----
    The motion is followed first, for 300 to 3,000 steps of a stiff method whose
    step follows the error, as long as it slows down; where it settles at a fixed point whose linearization
    decays, that is the answer. Only what is left is simulated, at length, and measured with each a in units of its
    largest value and y in units of the largest of all. Settled
    means a motion below a tenth in a whole chunk, around a
    stable fixed point to which implicit steps lead from there; a limit cycle,
    that two successive stretches of one chunk or several have the same extent
    to 5 %, that the state comes back to 3 % of it and that something moves by a thousandth; divergence, that y or a
    exceeds 1e6 times what the drive, its square, the floor and the start explain, or that the simulation fails
    while the drive is below 1e-3 / eps of what W normalizes. Anything else, chaos included, stays undecided. One
    neuron with 0 < w_r <= 1 settles wherever it starts: a theorem, for which nothing is followed.

    Other fixed points are sought from that for W_r = I and from random starts, by
    implicit Euler steps that grow as the field shrinks, until they are Newton's
    (pseudo-transient continuation, Kelley & Keyes 1998).

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit, z = oc.Circuit(np.array([[2.0]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> from organics_core.analysis.classification import KINDS
    >>> KINDS[int(oc.classify(circuit, z).kind)]
    'fixed point'
    """
    checks.one_of("variant", variant, VARIANTS)
    chunks = checks.positive_integer("chunks", chunks)
    rtol = checks.positive_number("rtol", rtol)
    max_steps = checks.positive_integer("max_steps", max_steps)
    starts = 0 if starts == 0 else checks.positive_integer("starts", starts)
    xp = validate_circuit(circuit, values=True, z=z)
    checks.values(xp, "z", z, "any")
    circuit, z = prepare(xp, circuit, z)
    circuit = without_operators(xp, circuit, z)
    checks.seen(xp, "classify", circuit, z, start)
    rest = State(*model_rest(xp, circuit, z))
    wide = xp.zeros_like(rest.y)
    tolerance = float(xp.finfo(z.dtype).eps) ** 0.75
    if start is not None:
        fields = validate_state(start, "start")
        validate_circuit(circuit, z=z, **fields)
        for name, value in fields.items():
            checks.values(xp, name, value, "any")
        start = State(*(xp.astype(part, z.dtype, copy=False) + wide for part in start))
    with quiet(get_backend(xp)):
        settings = Settings(variant, tolerance, 60, newton=True)
        everywhere = xp.sum(wide, axis=-1) == 0
        first, _ = settle(xp, get_backend(xp), True, settings, circuit, z + wide, everywhere, start)
        kind = np.where(to_numpy(first.stable), FIXED_POINT, UNDECIDED)
        simulated = kind == UNDECIDED
        rates, settled, sound = xp.full_like(rest.y[..., 0], xp.inf), first.state, first.stable
        found, abscissa = rest, rates
        ends: list[tuple[State, Array]] = []
        begins = [identity_fixed_point(xp, circuit, wide + z, variant)]
        for seed in range(starts):
            begins.append(_random_start(xp, begins[0], unit_of_y(xp, circuit, z), seed))
        for begin in begins:
            state = _settle(xp, circuit, begin, z, variant)
            reached = relative_residual(xp, circuit, state, z, variant) <= tolerance
            state = State(*(xp.where(reached[..., None], part, other) for part, other in zip(state, rest, strict=True)))
            rate = _spectral_abscissa(xp, circuit, state, variant)
            ends.append((state, reached & (rate < 0)))
            better = reached & ~first.stable & (~sound | ((rate < 0) & (abscissa >= 0)))
            found = State(*(xp.where(better[..., None], new, old) for new, old in zip(state, found, strict=True)))
            sound, abscissa = sound | reached, xp.where(better, rate, abscissa)
        found = State(*(xp.where(first.stable[..., None], new, old) for new, old in zip(settled, found, strict=True)))
        abscissa = xp.where(first.stable, _spectral_abscissa(xp, circuit, found, variant), abscissa)
        within = np.isfinite(to_numpy(circuit.b * z + wide)).all(axis=-1)  # a drive that overflows moves nothing
        for index in np.argwhere(simulated & within):
            at = tuple(int(i) for i in index)
            one, drive = members(circuit, z, at)
            origin = None if start is None else State(start.y[(*at, ...)], start.a[(*at, ...)])
            kind[at], end = _simulated_kind(xp, one, drive, variant, chunks, rtol, max_steps, origin)
            if end is not None:  # a fixed point that the search above did not find
                mask = xp.asarray((np.indices(kind.shape) == index.reshape(-1, *(1,) * kind.ndim)).all(axis=0).tolist())
                mask = xp.asarray(mask, device=device(z))
                found = State(*(xp.where(mask[..., None], new, old) for new, old in zip(end, found, strict=True)))
                abscissa = xp.where(mask, _spectral_abscissa(xp, one, end, variant), abscissa)
                sound = sound | mask
        nothing = xp.full_like(abscissa, xp.nan)
        reference = identity_fixed_point(xp, circuit, z, variant)
        norm = xp.linalg.vector_norm(reference.y + 0.0 * found.y, axis=-1)
        away = xp.linalg.vector_norm(found.y - reference.y, axis=-1)
        away = xp.where(norm > 0, away / xp.where(norm > 0, norm, xp.ones_like(norm)), away)
        where = device(z)
        return Classification(
            xp.asarray(kind.tolist(), dtype=xp.int32, device=where),
            xp.where(sound, abscissa, nothing),
            xp.where(sound, away, nothing),
            xp.asarray(simulated.tolist(), dtype=xp.bool, device=where),
            State(*(xp.where(sound[..., None], part, xp.full_like(part, xp.nan)) for part in found)),
            _others(xp, found, kind, ends),
        )


def _random_start(xp: Any, reference: State, unit: Array, seed: int) -> State:
    """States of the size of ``reference`` with any signs, modulators within a factor of ten of its."""
    rng = np.random.default_rng(seed)
    y, log = rng.standard_normal(reference.y.shape), rng.uniform(-1.0, 1.0, reference.a.shape)
    size = xp.max(xp.abs(reference.y), axis=-1, keepdims=True) + 1e-3 * unit[..., None]
    return State(2.0 * size * from_numpy(xp, y, reference.y), reference.a * from_numpy(xp, 10.0**log, reference.y))


def _others(xp: Any, found: State, kind: np.ndarray[Any, Any], ends: list[tuple[State, Array]]) -> State:
    """The distinct attracting ends (..., m, n), without the point at which a circuit settles."""
    n = int(found.y.shape[-1])
    shape = tuple(found.y.shape[:-1])
    settled = np.concatenate([to_numpy(part) for part in found], axis=-1)
    near = float(xp.finfo(found.y.dtype).eps) ** 0.375
    lists: dict[tuple[int, ...], list[np.ndarray[Any, Any]]] = {}
    for at in np.ndindex(shape):
        known = [settled[at]] if kind[at] == FIXED_POINT else []
        lists[at] = []
        for state, attracting in ends:
            point = np.concatenate([to_numpy(part)[at] for part in state])
            far = all(np.abs(point - other).max() > near * np.abs(other).max() for other in known)
            if bool(to_numpy(attracting)[at]) and far:
                known.append(point)
                lists[at].append(point)
    most = max((len(points) for points in lists.values()), default=0)
    table = np.full((*shape, most, 2 * n), np.nan)
    for at in np.ndindex(shape):
        for k, point in enumerate(lists[at]):
            table[(*at, k)] = point
    where = {"dtype": found.y.dtype, "device": device(found.y)}
    parts = (table[..., :n], table[..., n:])
    return State(*(xp.reshape(xp.asarray(part.reshape(-1).tolist(), **where), part.shape) for part in parts))


def _settle(xp: Any, circuit: Circuit, start: State, z: Array, variant: str, steps: int = 100) -> State:
    """Implicit Euler steps (I/h - J) dx = f(x), with h inversely proportional to the size of the field."""
    n = int(z.shape[-1])
    eps = float(xp.finfo(z.dtype).eps)
    tiny = float(xp.finfo(z.dtype).smallest_normal)
    slow = xp.max(circuit.tau_y + circuit.tau_a + 0.0 * start.y, axis=-1)
    tau = xp.concat([circuit.tau_y + 0.0 * start.y, circuit.tau_a + 0.0 * start.y], axis=-1)
    # one pool and one floor for all neurons: the modulators move as one
    floor = circuit.b0 * circuit.sigma
    pooled = share_pool(xp, circuit) and bool(xp.all(floor == (floor if floor.ndim == 0 else floor[..., :1])))
    size_a = 1 if pooled else n
    state = State(start.y, start.a[..., :size_a] + 0.0 * start.a)
    slope = xp.concat(list(field(xp, circuit, state, z, variant)), axis=-1)
    size = xp.max(xp.abs(tau * slope), axis=-1)
    length = 0.5 * slow
    for _ in range(steps):
        matrix = circuit_jacobian(xp, circuit, state, variant, pooled=pooled, shift=1.0 / length)
        change = solve_vector(xp, matrix, -slope[..., : n + size_a])
        moved = State(state.y + change[..., :n], state.a + change[..., n:])
        new_slope = xp.concat(list(field(xp, circuit, moved, z, variant)), axis=-1)
        new_size = xp.max(xp.abs(tau * new_slope), axis=-1)
        # a step on which a modulator changes fivefold, or the field grows, is taken back and shortened
        bounded = xp.all((moved.a > 0.2 * state.a) & (moved.a < 5.0 * state.a), axis=-1)
        good = bounded & (new_size <= 1.5 * size)
        keep = good[..., None]
        state = State(xp.where(keep, moved.y, state.y), xp.where(keep, moved.a, state.a))
        slope = xp.where(keep, new_slope, slope)
        scale = xp.max(xp.abs(state.y), axis=-1) + xp.max(state.a, axis=-1)
        falls = good & (new_size < size)
        ratio = xp.where(falls, size / xp.where(falls & (new_size > 0), new_size, 0.1 * size + tiny), 1.0)
        growth = xp.where(ratio > 5.0, 10.0, 2.0 * ratio)
        # close to the fixed point, where steps become Newton's, faster still
        growth = xp.where((ratio > 5.0) & (new_size < 1e-3 * scale), ratio * ratio, growth)
        length = xp.where(good, length * growth, 0.25 * length)
        size = xp.where(good, new_size, size)
        if bool(xp.all((size <= 32.0 * eps * scale) | (length < 1e-9 * slow))):
            break
    return state


def _simulated_kind(
    xp: Any,
    circuit: Circuit,
    z: Array,
    variant: str,
    chunks: int,
    rtol: float,
    max_steps: int,
    start: State | None,
) -> tuple[int, State | None]:
    """What a simulation says of one circuit, and the fixed point it settles on, if it does."""
    state = State(*model_rest(xp, circuit, z))
    # off the fixed point, and off any symmetry
    unit = float(unit_of_y(xp, circuit, z))
    push = unit * xp.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=device(z)) / z.shape[-1]
    state = State(state.y + 1e-3 * (xp.abs(circuit.b * z) + push), state.a)
    state = state if start is None else start
    tau = max(float(xp.max(circuit.tau_y)), float(xp.max(circuit.tau_a)))
    times = xp.linspace(0.0, 100.0 * tau, 1001, dtype=z.dtype, device=device(z))
    most = [float(size) for size in limits(xp, circuit, state, z, 1e6)]
    n = int(z.shape[-1])
    small = min(1.0, unit, float(xp.min((circuit.b0 * circuit.sigma) ** 2)))
    # a drive that hides all y in its own rounding is one under which a failed step says nothing
    seen = float(xp.finfo(z.dtype).eps * xp.max(xp.abs(circuit.b * z))) < 1e-3 * unit
    tolerance = float(xp.finfo(z.dtype).eps) ** 0.75
    paths: list[np.ndarray[Any, Any]] = []
    methods: tuple[str, ...] = ("dopri5", "rodas5p")  # where the first takes many steps the circuit is stiff
    for _ in range(chunks):
        for method in methods:
            run = simulate(
                circuit, z, times, state0=state, rtol=rtol, atol=1e-3 * rtol * small, variant=variant, drive="constant",
                max_steps=min(max_steps, 50) if method == "dopri5" else max_steps, method=method,
            )  # fmt: skip
            if run.success:
                methods = methods[methods.index(method) :]
                break
        path = np.concatenate([to_numpy(run.state.y), to_numpy(run.state.a)], axis=-1)
        finite = np.isfinite(path).all(axis=-1)
        reached = np.abs(path[finite][:, :n]).max(), path[finite][:, n:].max()
        failed = not run.success and int(run.status) != TOO_MANY_STEPS
        if reached[0] > most[0] or reached[1] > most[1] or (failed and seen):
            return DIVERGENCE, None
        if not run.success:
            return UNDECIDED, None
        state = State(run.state.y[-1, ...], run.state.a[-1, ...])
        largest = np.abs(path).max(axis=0)  # of all y one, of every a its own: one may be much larger than another
        largest[:n] = largest[:n].max() + 1e-3 * unit
        spread = (np.ptp(path, axis=0) / largest).max()
        paths.append(path)
        if spread < 0.1:
            found = _settle(xp, circuit, state, z, variant)
            away = np.abs(np.concatenate([to_numpy(part) for part in found]) - path[-1]) / largest
            near = away.max() <= 5.0 * spread + 1e-6
            exact = float(relative_residual(xp, circuit, found, z, variant)) <= tolerance
            if near and exact and float(_spectral_abscissa(xp, circuit, found, variant)) < 0:
                return FIXED_POINT, found
        if any(_cycles(paths, length, largest) for length in range(1, len(paths) // 2 + 1)):
            return LIMIT_CYCLE, None
    return UNDECIDED, None


def _cycles(paths: list[np.ndarray[Any, Any]], length: int, sizes: np.ndarray[Any, Any]) -> bool:
    """Whether the last ``length`` chunks have the extent of those before, and come back to where they began.

    In units of ``sizes`` (2n,), of which some number must move by a thousandth.
    """
    late, early = (np.concatenate(some) / sizes for some in (paths[-length:], paths[-2 * length : -length]))
    extent, previous = (float(np.linalg.norm(np.ptp(path, axis=0))) for path in (late, early))
    away = np.linalg.norm(late - late[0], axis=-1)
    farthest = int(away.argmax())
    returns = bool(away[farthest:].min() < 0.03 * away[farthest])
    return abs(extent - previous) < 0.05 * extent and returns and bool(np.ptp(late, axis=0).max() > 1e-3)


def random_recurrence(n: int, delta: Array, *, ensemble: str = "goe", seed: int = 0, like: Array) -> Array:
    """W_r = I + delta M / sqrt(n), with M a random matrix with entries of variance one.

    Parameters
    ----------
    n : int
    delta : number or array (...)
        Strengths; the same M for all of them.
    ensemble : {"goe", "gaussian"}
        ``"goe"``: symmetric, (A + A^T) / sqrt(2) with A of independent normal
        entries, eigenvalues of M / sqrt(n) within [-2, 2] for large n;
        ``"gaussian"``: A itself, asymmetric, eigenvalues within the unit disk.
    seed : int
        Of the library's own generator.
    like : array
        Whose library, dtype and device the result has.

    Returns
    -------
    array (..., n, n)

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> w_r = oc.random_recurrence(4, 0.5, like=np.ones(1))
    >>> w_r.shape, bool(np.allclose(w_r, w_r.T))
    ((4, 4), True)
    """
    checks.one_of("ensemble", ensemble, ENSEMBLES)
    n = checks.positive_integer("n", n)
    seed = checks.seed(seed)
    xp = checks.namespace({"like": like, "delta": delta}, numbers=("delta",))
    checks.values(xp, "delta", delta, "any")
    m = get_backend(xp).normal(seed, (n, n), like)
    if ensemble == "goe":
        m = (m + m.T) / math.sqrt(2.0)
    m = m / math.sqrt(n)
    eye = xp.eye(n, dtype=m.dtype, device=device(m))
    return eye + (delta if checks.is_number(delta) else delta[..., None, None]) * m


class PhaseDiagram(NamedTuple):
    """Classification over recurrence strength, input norm and random draws.

    Attributes
    ----------
    deltas, norms : arrays (D,), (N,)
    kind, abscissa, distance, simulated : arrays (D, N, R)
        As in :class:`Classification`.
    """

    deltas: Array
    norms: Array
    kind: Array
    abscissa: Array
    distance: Array
    simulated: Array


def phase_diagram(
    circuit: Circuit,
    deltas: Array,
    norms: Array,
    draws: int | range,
    *,
    ensemble: str = "goe",
    seed: int = 0,
    variant: str = "main",
    chunks: int = 10,
) -> PhaseDiagram:
    """Classify random circuits W_r = I + delta M / sqrt(n) for every strength, input norm and draw.

    Parameters
    ----------
    circuit : Circuit
        The other parameters, without batch axes; its W_r is not used.
    deltas, norms : arrays (D,), (N,)
        Strengths of the random recurrence, and norms of the input drive, both >= 0.
    draws : int or range
        How many draws, or which of them: draw r depends on ``seed`` and r alone,
        and has one M and one direction of the drive for all strengths and norms.
    ensemble : {"goe", "gaussian"}
    seed : int
    variant, chunks
        As in :func:`classify`.

    Returns
    -------
    PhaseDiagram

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> circuit = Circuit(None, np.full((4, 4), 0.25), 0.5, 0.5, 0.1, 0.002, 0.002)
    >>> phase_diagram(circuit, np.array([0.0, 0.1]), np.array([1.0]), 2).kind[:, 0]
    array([[0, 0],
           [0, 0]], dtype=int32)
    """
    xp = checks.namespace({"w": circuit.w, "deltas": deltas, "norms": norms})
    for name, value in (("deltas", deltas), ("norms", norms)):
        if value.ndim != 1 or value.shape[0] == 0:
            raise ValueError(f"{name} must have shape (K,) with K >= 1, got shape {tuple(value.shape)}")
        checks.values(xp, name, value, ">= 0")
    if circuit.w.ndim != 2:
        raise ValueError(f"w must have shape (n, n) here, without batch axes, got {tuple(circuit.w.shape)}")
    seed = checks.seed(seed)
    chosen = draws if isinstance(draws, range) else range(checks.positive_integer("draws", draws))
    if len(chosen) == 0 or min(chosen) < 0:
        raise ValueError(f"draws must be at least one, none of them negative, got {draws!r}")
    n = int(circuit.w.shape[-1])
    parts = []
    for draw in chosen:
        keys = [int(key) for key in np.random.SeedSequence([seed, draw]).generate_state(2)]
        w_r = random_recurrence(n, deltas, ensemble=ensemble, seed=keys[0], like=circuit.w)
        direction = get_backend(xp).normal(keys[1], (n,), circuit.w)
        z = norms[:, None] * (direction / xp.linalg.vector_norm(direction))
        parts.append(classify(circuit._replace(w_r=w_r[:, None, ...]), z, variant=variant, chunks=chunks))
    stacked = [xp.stack([part[k] for part in parts], axis=-1) for k in range(4)]
    return PhaseDiagram(deltas, norms, *stacked)
