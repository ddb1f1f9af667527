"""Stochastic simulation, dx = f(x) dt + L dB, with seeds that reproduce or increments of your own."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np
from array_api_compat import device

from . import checks
from .backend import Array, Tree, get_backend, tree_leaves, tree_map
from .circuit import Circuit, State
from .integration import NOT_FINITE, SUCCESS, Trajectory, _check_times, _pose, _UserField
from .linalg import broadcast_shapes, matvec
from .noise import Noise, NoiseTerm, noise_arrays, noise_term

SDE_METHODS = ("euler_maruyama", "stochastic_heun")

_CHUNK = 2**22
"""At most about this many random numbers are held at once."""


class _Settings(NamedTuple):
    """Everything about a run that is not an array: hashable, so that a compiler can specialize on it."""

    field: Callable[..., Tree]
    heun: bool
    substeps: int


def simulate_sde(
    circuit: Circuit,
    z: Array | Callable[[Array], Array],
    times: Array,
    *,
    noise: Noise,
    seed: int = 0,
    method: str = "euler_maruyama",
    substeps: int = 1,
    state0: State | None = None,
    variant: str = "main",
    drive: str = "auto",
    increments: Array | None = None,
) -> Trajectory:
    """Simulate the circuit under additive white noise.

    Parameters
    ----------
    circuit : Circuit
    z : array (..., n), array (T, ..., n) or callable
        Input drive, as in :func:`simulate`.
    times : array (T,)
        Output times in seconds, increasing; the first is the start.
    noise : number, array (..., 2n), array (..., 2n, m) or tuple
        L in dx = f(x) dt + L dB, in the order (y, a), in units of the state per
        square root of a second; as in :func:`noise_covariance`.
    seed : int
        Of the library's own generator: the same seed, library and shapes give
        the same noise.
    method : {"euler_maruyama", "stochastic_heun"}
        With additive noise both converge strongly with order 1; weakly
        Euler-Maruyama has order 1 and stochastic Heun order 2.
    substeps : int
        Equal steps between successive output times.
    state0 : State, optional
        At ``times[0]``; at rest by default.
    variant : {"main", "rectified", "rectified_recurrence"}
    drive : {"auto", "constant", "sampled"}
        How to read an array ``z``, as in :func:`simulate`.
    increments : array ((T-1)*substeps, ..., m), optional
        Wiener increments dB of your own, one per step, with the length of the
        step as their variance, in place of ``seed``: the same noise for several
        circuits or libraries. See :func:`wiener_increments`.

    Returns
    -------
    Trajectory
        A member of the batch that stops being finite says so in its status.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> times = np.linspace(0, 0.01, 101)
    >>> run = simulate_sde(circuit, np.array([1.0, 0.0]), times, noise=0.1, seed=1)
    >>> run.success, run.state.y.shape
    (True, (101, 2))
    """
    more = {**noise_arrays(noise), "increments": increments}
    xp, _, problem = _pose(circuit, z, times, state0, variant, drive, **more)
    return run_sde(xp, *problem, noise, increments, seed=seed, method=method, substeps=substeps)


def integrate_sde(
    field: Callable[[Array, Tree], Tree],
    state0: Tree,
    times: Array,
    *,
    noise: Noise,
    seed: int = 0,
    method: str = "euler_maruyama",
    substeps: int = 1,
    increments: Array | None = None,
) -> Trajectory:
    """Integrate dx = field(t, x) dt + L dB for a user's own vector field.

    Parameters
    ----------
    field : callable
        ``field(t, state) -> state``, of (named) tuples of arrays (..., n).
    state0 : tuple of arrays (..., n)
        State at ``times[0]``.
    times : array (T,)
        In seconds, increasing.
    noise : number, array (..., N), array (..., N, m) or tuple
        L, for the N components of all arrays of the state one after another; or
        one amplitude (number or array) per array of the state.
    seed, method, substeps, increments
        As in :func:`simulate_sde`.

    Returns
    -------
    Trajectory

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    if not isinstance(state0, tuple) or not state0 or any(isinstance(part, tuple) for part in state0):
        raise TypeError(f"state0 must be a (named) tuple of arrays, got {checks.describe(state0)}")
    leaves = {f"state0[{i}]": leaf for i, leaf in enumerate(state0)}
    extra = {**noise_arrays(noise), "increments": increments}
    xp = checks.namespace({"times": times, **leaves, **extra}, optional=("increments",))
    for name, value in {**leaves, **extra}.items():
        checks.values(xp, name, value, "any")
    times = _check_times(xp, times)
    dtype = xp.result_type(*leaves.values())
    start = tree_map(lambda leaf: xp.astype(leaf, dtype, copy=False), state0)
    times = xp.astype(times, dtype, copy=False)
    return run_sde(
        xp, _UserField(field), None, start, times, None, noise, increments, seed=seed, method=method, substeps=substeps
    )


def wiener_increments(
    times: Array, size: int, *, seed: int = 0, substeps: int = 1, batch: tuple[int, ...] = ()
) -> Array:
    """The increments dB that :func:`simulate_sde` draws for a seed.

    Parameters
    ----------
    times : array (T,)
        In seconds, increasing.
    size : int
        Number m of independent noises: 2n for amplitudes, the columns of L otherwise.
    seed : int
    substeps : int
        Equal steps between successive times.
    batch : tuple of int
        Batch axes of the state.

    Returns
    -------
    array ((T-1)*substeps, *batch, size)
        Normal, with the length of the step as variance. Sums of k neighbours
        are the increments of steps k times as long.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    xp = checks.namespace({"times": times})
    times = _check_times(xp, times)
    size = checks.positive_integer("size", size)
    substeps = checks.positive_integer("substeps", substeps)
    parts = []
    for first, last in _chunks(times.shape[0] - 1, substeps, (*batch, size)):
        part = _draw(xp, _seed(seed), times, first, last, substeps, (*batch, size))
        parts.append(xp.reshape(part, ((last - first) * substeps, *batch, size)))
    return xp.concat(parts, axis=0)


def _seed(seed: object) -> int:
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed must be an integer, got {checks.describe(seed)}")
    number = int(seed)  # type: ignore[call-overload]
    if number < 0:
        raise ValueError(f"seed must not be negative, got {number}")
    return number


def _chunks(intervals: int, substeps: int, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    length = max(1, _CHUNK // (substeps * math.prod(shape)))
    return [(first, min(first + length, intervals)) for first in range(0, intervals, length)]


def _draw(xp: Any, seed: int, times: Array, first: int, last: int, substeps: int, shape: tuple[int, ...]) -> Array:
    """Increments (last - first, substeps, *shape) of the output intervals first to last."""
    own = int(np.random.SeedSequence([seed, first]).generate_state(1)[0])
    numbers = get_backend(xp).normal(own, (last - first, substeps, *shape), times)
    root = xp.sqrt((times[first + 1 : last + 1] - times[first:last]) / substeps)
    return numbers * xp.reshape(root, (last - first, *(1,) * (1 + len(shape))))


def run_sde(
    xp: Any,
    field: Callable[..., Tree],
    arguments: Any,
    start: Tree,
    times: Array,
    values: Array,
    noise: Noise,
    increments: Array | None,
    *,
    seed: int,
    method: str,
    substeps: int,
) -> Trajectory:
    """The loop behind the public functions; ``field(xp, t, state, arguments, z)`` as in :mod:`integrate`."""
    checks.one_of("method", method, SDE_METHODS)
    substeps = checks.positive_integer("substeps", substeps)
    seed = _seed(seed)
    backend = get_backend(xp)
    sizes = tuple(int(leaf.shape[-1]) for leaf in start)
    term = noise_term(xp, noise, sizes, start[0])
    if term.matrix is None:
        count, term_batch = sum(sizes), tuple(term.amplitude.shape[:-1])
    else:
        count, term_batch = int(term.matrix.shape[-1]), tuple(term.matrix.shape[:-2])
    batch = broadcast_shapes(term_batch, *(tuple(leaf.shape[:-1]) for leaf in start))
    intervals = times.shape[0] - 1
    if increments is not None:
        if increments.ndim < 2 or increments.shape[0] != intervals * substeps or increments.shape[-1] != count:
            raise ValueError(
                f"increments must have shape ({intervals * substeps}, ..., {count}), one per step, "
                f"got {tuple(increments.shape)}"
            )
        batch = broadcast_shapes(batch, tuple(increments.shape[1:-1]))
        increments = xp.astype(increments, times.dtype, copy=False)
        increments = xp.reshape(increments, (intervals, substeps, *increments.shape[1:]))
    start = tree_map(lambda leaf: xp.broadcast_to(leaf, (*batch, leaf.shape[-1])), start)
    settings = _Settings(field, method == "stochastic_heun", substeps)
    leaves = [
        leaf for leaf in tree_leaves((arguments, start, times, values, tuple(term), increments)) if leaf is not None
    ]
    run: Callable[..., Any] = (
        _compiled(cast(Hashable, backend)) if all(backend.is_concrete(leaf) for leaf in leaves) else _run
    )
    try:
        hash(settings)
    except TypeError:
        run = _run
    carry, pieces = start, [tree_map(lambda leaf: leaf[None, ...], start)]
    chunks = [(0, intervals)] if increments is not None else _chunks(intervals, substeps, (*batch, count))
    for first, last in chunks:
        db = increments
        if db is None:
            db = _draw(xp, seed, times, first, last, substeps, (*batch, count))
        part = None if values is None else values[first : last + 1, ...]
        carry, states = run(settings, arguments, carry, times[first : last + 1], part, tuple(term), db)
        pieces.append(states)
    states = tree_map(lambda *parts: xp.concat(list(parts), axis=0), *pieces)
    fine: Any = True
    for leaf in tree_leaves(states):
        fine = fine & xp.all(xp.isfinite(leaf), axis=-1)
    states = tree_map(lambda leaf: xp.where(fine[..., None], leaf, xp.full_like(leaf, xp.nan)), states)
    lost = xp.astype(~fine[-1, ...], xp.int32)
    zero = xp.zeros((), dtype=xp.int32, device=device(times))
    steps = xp.full((), substeps * intervals, dtype=xp.int32, device=device(times))
    status = SUCCESS + NOT_FINITE * lost
    return Trajectory(times, type(start)._make(states) if hasattr(start, "_make") else states, status, steps, zero)


@cache
def _compiled(backend: Any) -> Callable[..., Any]:
    return backend.compile(_run, static=(0,), loops=True)


def _run(
    settings: _Settings, arguments: Any, start: Tree, times: Array, values: Array, noise: Any, increments: Array
) -> Any:
    xp = checks.namespace({"times": times})
    backend = get_backend(xp)
    term = NoiseTerm(*noise)
    edges = [0]
    for leaf in start:
        edges.append(edges[-1] + int(leaf.shape[-1]))
    xs: Tree = (times[:-1], times[1:], increments)
    if values is not None:
        xs = (*xs, values[:-1, ...], values[1:, ...])

    def kicks(db: Array) -> Tree:
        kick = term.amplitude * db if term.matrix is None else matvec(xp, term.matrix, db)
        parts = tuple(kick[..., low:high] for low, high in pairwise(edges))
        return type(start)._make(parts) if hasattr(start, "_make") else parts

    def interval(state: Tree, x: Tree) -> tuple[Tree, Tree]:
        t0, t1 = x[0], x[1]
        h = (t1 - t0) / settings.substeps

        def slope(t: Array, at: Tree) -> Tree:
            z = None if values is None else x[3] + ((t - t0) / (t1 - t0)) * (x[4] - x[3])
            return settings.field(xp, t, at, arguments, z)

        def one(state: Tree, step: Tree) -> tuple[Tree, None]:
            k, db = step
            t = t0 + k * h
            kick = kicks(db)
            first = slope(t, state)
            moved = tree_map(lambda s, f, g: s + h * f + g, state, first, kick)
            if not settings.heun:
                return moved, None
            second = slope(t + h, moved)
            return tree_map(lambda s, f, g, b: s + (0.5 * h) * (f + g) + b, state, first, second, kick), None

        if settings.substeps == 1:
            state, _ = one(state, (0.0, x[2][0, ...]))
        else:
            counter = xp.arange(settings.substeps, dtype=times.dtype, device=device(times))
            state, _ = backend.scan(one, state, (counter, x[2]))
        return state, state

    return backend.scan(interval, start, xs)
