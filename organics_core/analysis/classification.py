"""What becomes of a circuit: fixed point, limit cycle, divergence or undecided; phase diagrams around W_r = I.

Source: the phase diagrams over recurrence strength and input norm of random
recurrence (Morone, Rawat, Heeger & Martiniani, bioRxiv 2025.05.16.654567).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from .. import checks
from ..backend import Array, get_backend, to_numpy
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
)
from ..equilibria import relative_residual
from ..integration import simulate
from ..linalg import solve_vector
from ..model import rest as model_rest
from ..stability import _spectral_abscissa

FIXED_POINT, LIMIT_CYCLE, DIVERGENCE, UNDECIDED = 0, 1, 2, 3
KINDS = ("fixed point", "limit cycle", "divergence", "undecided")
"""Names of the codes of :func:`classify`, in their order."""

ENSEMBLES = ("goe", "gaussian")


class Classification(NamedTuple):
    """What becomes of circuits under constant input.

    Attributes
    ----------
    kind : integer array (...)
        0 stable fixed point, 1 limit cycle, 2 divergence, 3 undecided; see ``KINDS``.
    abscissa : array (...)
        Spectral abscissa at the fixed point that was found, per second,
        positive where it is unstable; NaN where none was found.
    distance : array (...)
        Distance of that fixed point's y from the closed form for W_r = I,
        relative to the latter's norm: the breakdown of normalization.
    simulated : boolean array (...)
        Whether the linearization left the question open.
    state : State of arrays (..., n)
        The fixed point; NaN where none was found.
    """

    kind: Array
    abscissa: Array
    distance: Array
    simulated: Array
    state: State


def classify(
    circuit: Circuit,
    z: Array,
    *,
    variant: str = "main",
    chunks: int = 10,
    rtol: float = 1e-6,
    max_steps: int = 20_000,
) -> Classification:
    """Decide whether circuits settle, oscillate or diverge.

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
        Bound on its steps between two outputs, 1000 of which make a chunk.

    Returns
    -------
    Classification

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong. Values must be visible: this does not trace.

    Notes
    -----
    A fixed point is sought first, from that of W_r = I and then from rest, by implicit Euler steps that grow
    as the field shrinks, until they are Newton's (pseudo-transient
    continuation, Kelley & Keyes 1998); where its eigenvalues say stable, that
    is the answer. Only what is left is simulated, from rest: settled means a
    motion below a tenth of the state's size in a whole chunk, around a stable
    fixed point to which the search leads from there; a limit cycle, that
    two successive chunks have the same extent to 5 % and that the state comes
    back to 3 % of it; divergence, that the state exceeds 1e6 times its scale
    or stops being finite. Anything else, chaos included, stays undecided.
    """
    checks.one_of("variant", variant, VARIANTS)
    chunks = checks.positive_integer("chunks", chunks)
    rtol = checks.positive_number("rtol", rtol)
    max_steps = checks.positive_integer("max_steps", max_steps)
    xp = validate_circuit(circuit, values=True, z=z)
    checks.values(xp, "z", z, "any")
    circuit, z = prepare(xp, circuit, z)
    if not get_backend(xp).is_concrete(z + circuit.b):
        raise ValueError("classify looks at values and cannot be traced; call it outside of jit and vmap")
    rest = State(*model_rest(xp, circuit, z))
    tolerance = float(xp.finfo(z.dtype).eps) ** 0.75
    found, abscissa = rest, xp.full_like(rest.y[..., 0], xp.inf)
    sound = abscissa < 0
    for start in (identity_fixed_point(xp, circuit, rest.y + z, variant), rest):
        state = _settle(xp, circuit, start, z, variant)
        reached = relative_residual(xp, circuit, state, z, variant) <= tolerance
        state = State(*(xp.where(reached[..., None], part, other) for part, other in zip(state, rest, strict=True)))
        rate = _spectral_abscissa(xp, circuit, state, variant)
        better = reached & (~sound | ((rate < 0) & (abscissa >= 0)))
        found = State(*(xp.where(better[..., None], new, old) for new, old in zip(state, found, strict=True)))
        sound, abscissa = sound | reached, xp.where(better, rate, abscissa)
        if bool(xp.all(sound & (abscissa < 0))):
            break
    kind = np.where(to_numpy(sound & (abscissa < 0)), FIXED_POINT, UNDECIDED)
    simulated = kind == UNDECIDED
    for index, one, drive in _members(circuit, z, simulated):
        at = tuple(int(i) for i in index)
        kind[at], end = _simulated_kind(xp, one, drive, variant, chunks, rtol, max_steps)
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
    )


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


def _members(circuit: Circuit, z: Array, wanted: np.ndarray[Any, Any]) -> Iterator[tuple[Any, Circuit, Array]]:
    """(index, circuit, drive) of each wanted member of a batch."""

    def pick(value: Array, core: int, at: tuple[int, ...]) -> Array:
        if value is None or value.ndim <= core:
            return value
        batch = value.shape[: value.ndim - core]
        own = at[len(at) - len(batch) :]
        return value[tuple(0 if length == 1 else i for i, length in zip(own, batch, strict=True))]

    for index in np.argwhere(wanted):
        at = tuple(int(i) for i in index)
        cores = (2, 2, 1, 1, 1, 1, 1)
        fields = [pick(value, core, at) for value, core in zip(circuit, cores, strict=True)]
        yield index, Circuit._make(fields), pick(z, 1, at)


def _simulated_kind(
    xp: Any, circuit: Circuit, z: Array, variant: str, chunks: int, rtol: float, max_steps: int
) -> tuple[int, State | None]:
    """What a simulation from rest says of one circuit, and the fixed point it settles on, if it does."""
    state = State(*model_rest(xp, circuit, z))
    # off the fixed point, and off any symmetry
    state = State(state.y + 1e-3 * (xp.abs(z) + xp.arange(1, z.shape[-1] + 1, dtype=z.dtype) / z.shape[-1]), state.a)
    tau = max(float(xp.max(circuit.tau_y)), float(xp.max(circuit.tau_a)))
    times = xp.linspace(0.0, 100.0 * tau, 1001, dtype=z.dtype, device=device(z))
    large = 1e6 * (1.0 + float(xp.max(xp.abs(circuit.b * z))) + float(xp.max((circuit.b0 * circuit.sigma) ** 2)))
    tolerance = float(xp.finfo(z.dtype).eps) ** 0.75
    extent = math.inf
    for _ in range(chunks):
        run = simulate(
            circuit, z, times, state0=state, rtol=rtol, atol=1e-3 * rtol, variant=variant, drive="constant",
            max_steps=max_steps,
        )  # fmt: skip
        path = np.concatenate([to_numpy(run.state.y), to_numpy(run.state.a)], axis=-1)
        finite = np.isfinite(path).all(axis=-1)
        if np.abs(path[finite]).max() > large or (not run.success and int(run.status) != 2):
            return DIVERGENCE, None
        if not run.success:
            return UNDECIDED, None
        state = State(run.state.y[-1, ...], run.state.a[-1, ...])
        spread = np.ptp(path, axis=0)
        previous, extent = extent, float(np.linalg.norm(spread))
        size = np.abs(path).max()
        if spread.max() < 0.1 * size:
            found = _settle(xp, circuit, state, z, variant)
            near = float(xp.max(xp.abs(found.y - state.y))) <= 5.0 * spread.max() + 1e-6 * size
            exact = float(relative_residual(xp, circuit, found, z, variant)) <= tolerance
            if near and exact and float(_spectral_abscissa(xp, circuit, found, variant)) < 0:
                return FIXED_POINT, found
        away = np.linalg.norm(path - path[0], axis=-1)
        farthest = int(away.argmax())
        returns = away[farthest:].min() < 0.03 * away[farthest]
        if abs(extent - previous) < 0.05 * extent and returns and away[farthest] > 1e-3 * size:
            return LIMIT_CYCLE, None
    return UNDECIDED, None


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
    """
    checks.one_of("ensemble", ensemble, ENSEMBLES)
    n = checks.positive_integer("n", n)
    xp = checks.namespace({"like": like})
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
    chosen = draws if isinstance(draws, range) else range(checks.positive_integer("draws", draws))
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
