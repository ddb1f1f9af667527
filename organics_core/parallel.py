"""The trained cell, all steps at once: quasi-Newton iterations whose linear systems are elementwise recurrences.

The states x_1 .. x_T of a sequence solve x_t = f_t(x_{t-1}). Newton's method on
all of them at once needs, per iteration, the step and its Jacobian at every t,
both in parallel, and the solution of a linear recurrence. With the diagonal D_t
of the Jacobian in its place (quasi-DEER) the recurrence is elementwise,

    delta_t = D_t delta_{t-1} + f_t(x_{t-1}) - x_t,        x_t <- x_t + delta_t,

and an associative scan solves it in O(log T) levels. The fixed point is that of
the sequential loop, whatever D_t is, and after k undamped iterations the first k steps
are exact. How many are needed is a matter of the largest Lyapunov exponent
(:func:`cell_lyapunov_exponent`). The adjoint is linear and solved in the same way.

Sources: Lim, Zhu, Selfridge & Kasim (ICLR 2024), DEER; Gonzalez, Warrington,
Smith & Linderman (NeurIPS 2024), its quasi-Newton form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from . import checks
from .backend import Array, from_numpy, get_backend, tree_leaves, tree_map
from .cell import (
    CELL_VARIANTS,
    CellParameters,
    CellState,
    MaxRates,
    Rates,
    cell_rates,
    normalization_weights,
    step,
    step_diagonal,
    three_rates,
    validate_sequence,
)

MAX_ITERATIONS = 100
LARGEST_UPDATE = 1.0
"""Of an entry of the state in one iteration: the states of a cell are of the order of one."""


class ParallelReport(NamedTuple):
    """How the iterations over all steps of a sequence went.

    Attributes
    ----------
    converged : array () of bool, or bool
        Whether the last update was small enough, and no larger than the one before it, or nothing; otherwise the
        states are not to be used.
    iterations : array () of int, or int
    change : array (), or float
        The last update, before it is damped, relative: the largest entry over the largest state, of y, a, b0 and b1
        of every sequence by themselves, over all steps and at the last step; of these ratios the largest.
    residual : array (), or float
        Largest f(x_{t-1}) - x_t before the last update, relative in the same sense.
    """

    converged: Array
    iterations: Array
    change: Array
    residual: Array

    def on_host(self) -> ParallelReport:
        """With a bool, an int and floats."""
        return ParallelReport(bool(self.converged), int(self.iterations), float(self.change), float(self.residual))


class ParallelAdvice(NamedTuple):
    """Whether all steps at once are faster than one after another.

    Attributes
    ----------
    pays : bool
        Whether they were.
    reason : str
        Why, in words.
    exponent : float
        Largest Lyapunov exponent, per step.
    iterations : int
        The most of any layer.
    seconds_parallel, seconds_sequential : float
        Of a forward pass; NaN where none was measured.
    """

    pays: bool
    reason: str
    exponent: float
    iterations: int
    seconds_parallel: float
    seconds_sequential: float


class _Progress(NamedTuple):
    states: CellState
    iterations: Array
    change: Array
    residual: Array
    growing: Array


class Solution(NamedTuple):
    """States, or adjoints, (T, ..., n) of all steps, and how they were found."""

    states: CellState
    report: ParallelReport


def linear_recurrence(xp: Any, factor: Array, term: Array) -> Array:
    """s_t = factor_t s_{t-1} + term_t along axis 0 from s_{-1} = 0, in O(log T) levels of elementwise operations.

    Parameters
    ----------
    xp : module
    factor, term : array (T, ...)
        Of one shape.

    Returns
    -------
    array (T, ...)

    Examples
    --------
    >>> import numpy as np
    >>> linear_recurrence(np, np.full(4, 0.5), np.ones(4))
    array([1.   , 1.5  , 1.75 , 1.875])
    """
    scan = getattr(get_backend(xp), "linear_recurrence", None)  # of a library that has one
    if scan is not None:
        return scan(factor, term)
    length = int(term.shape[0])
    if length == 1:
        return term
    half = length // 2
    f0, t0 = factor[: 2 * half : 2, ...], term[: 2 * half : 2, ...]
    f1, t1 = factor[1::2, ...], term[1::2, ...]
    odd = linear_recurrence(xp, f1 * f0, f1 * t0 + t1)
    later = factor[2::2, ...] * odd[: (length - 1) // 2, ...] + term[2::2, ...]
    even = xp.concat([term[:1, ...], later])
    paired = xp.reshape(xp.stack([even[:half, ...], odd], axis=1), (2 * half, *term.shape[1:]))
    return paired if length == 2 * half else xp.concat([paired, even[half:, ...]])


def shifted(xp: Any, first: Array, rest: Array) -> Array:
    """(T, ...): ``first`` (...), then all but the last of ``rest`` (T, ...)."""
    return xp.concat([first[None, ...], rest[:-1, ...]])


def relative_size(xp: Any, update: CellState, states: CellState) -> Array:
    """The largest ratio of the parts' maxima, per sequence, over all steps and at the last one; NaN where one is.

    At the last step, where adjoints may have decayed by orders of magnitude, what is below eps of the largest of
    all steps counts as rounding. Of no sequences it is 0.
    """
    if 0 in states.y.shape:
        return xp.asarray(0.0, dtype=states.y.dtype, device=device(states.y))

    def size(part: Array, axes: tuple[int, ...]) -> Array:
        return xp.max(xp.abs(part), axis=axes)

    info = xp.finfo(states.y.dtype)
    eps = float(info.eps)
    zero = float(info.smallest_normal) / eps  # what is smaller counts as zero
    ratios = []
    for small, large in zip(update, states, strict=True):
        whole = size(large, (0, -1)) + zero
        end = size(large[-1, ...], (-1,)) + eps * whole
        ratios += [xp.max(size(small, (0, -1)) / whole), xp.max(size(small[-1, ...], (-1,)) / end)]
    return xp.max(xp.stack(ratios))


def default_tolerance(xp: Any, like: Array) -> float:
    """The relative update from which on the iterations stop: 1e-13 in float64, 1e-6 in float32.

    That is tighter than the 1e-10 that is wanted of values: in the gradients of the rates large terms cancel.
    """
    return 1e-13 if xp.finfo(like.dtype).bits >= 64 else 1e-6


def solve_recurrence(
    xp: Any,
    system: Callable[[CellState], tuple[CellState, CellState]],
    guess: CellState,
    *,
    tolerance: float | None = None,
    max_iterations: int = MAX_ITERATIONS,
    largest_update: float | None = None,
) -> Solution:
    """Solve x_t = f_t(x_{t-1}) for all t by quasi-Newton iterations, unchecked.

    Parameters
    ----------
    xp : module
    system : callable
        Takes all x_t (T, ..., n) and returns all f_t(x_{t-1}) and the diagonals of their
        derivatives. These are cut to [-1, 1], so that no scan overflows.
    guess : CellState of arrays (T, ..., n)
    tolerance : float, optional
        The last update, relative as in :class:`ParallelReport`; :func:`default_tolerance`. A first update is not
        trusted, nor one that is larger than that before it: beside a state at rest that does not attract, updates
        are small and grow.
    max_iterations : int
    largest_update : float, optional
        The damping: to this an entry's update is cut. It acts where the iterations
        would run away, and not near the solution.

    Returns
    -------
    Solution
    """
    like = guess.y
    bound = default_tolerance(xp, like) if tolerance is None else tolerance

    def together(tree: CellState) -> Array:
        return xp.stack(tree_leaves(tree), axis=1)  # one scan for all four

    def body(progress: _Progress) -> _Progress:
        new, diagonal = system(progress.states)
        residual = tree_map(lambda n, x: n - x, new, progress.states)
        update = linear_recurrence(xp, xp.clip(together(diagonal), -1.0, 1.0), together(residual))
        delta = CellState(*(update[:, part, ...] for part in range(4)))
        bounded = delta
        if largest_update is not None:
            bounded = tree_map(lambda d: xp.clip(d, -largest_update, largest_update), delta)
        states = tree_map(lambda x, d: x + d, progress.states, bounded)
        change, off = (relative_size(xp, part, states) for part in (delta, residual))
        before = xp.where(progress.iterations > 0, progress.change, xp.zeros_like(change))
        return _Progress(states, progress.iterations + 1, change, off, change > before)

    infinite = xp.asarray(xp.inf, dtype=like.dtype, device=device(like))
    counted = xp.asarray(0, dtype=xp.int32, device=device(like))
    begin = _Progress(guess, counted, infinite, infinite, infinite > 0)
    going = get_backend(xp).while_loop(
        lambda p: (p.change > bound) | p.growing, body, begin, max_steps=max_iterations
    )  # which NaN ends
    converged = (going.change <= bound) & ~going.growing
    return Solution(going.states, ParallelReport(converged, going.iterations, going.change, going.residual))


def solve_states(
    xp: Any,
    parameters: CellParameters,
    w: Array,
    rates: Rates,
    start: CellState,
    xs: Array,
    variant: str,
    *,
    largest_update: float | None = LARGEST_UPDATE,
    **options: Any,
) -> Solution:
    """All states of a sequence (T, ..., n) from ``start`` (..., n), unchecked; options of :func:`solve_recurrence`."""

    def system(states: CellState) -> tuple[CellState, CellState]:
        before = tree_map(lambda first, rest: shifted(xp, first, rest), start, states)
        return (
            step(xp, parameters, w, rates, before, xs, variant),
            step_diagonal(xp, parameters, w, rates, before, variant),
        )

    guess = tree_map(lambda part: xp.broadcast_to(part, (xs.shape[0], *part.shape)), start)
    return solve_recurrence(xp, system, guess, largest_update=largest_update, **options)


def solve_adjoint(
    xp: Any,
    pull: Callable[[CellState], CellState],
    diagonal: CellState,
    gradient: CellState,
    **options: Any,
) -> Solution:
    """Adjoints of all states: l_t = gradient_t + J_{t+1}^T l_{t+1}, unchecked; options of :func:`solve_recurrence`.

    Parameters
    ----------
    xp : module
    pull : callable
        Takes adjoints l_t (T, ..., n) of the states after the steps to J_t^T l_t, those of the states before them.
    diagonal : CellState of arrays (T, ..., n)
        Of the J_t.
    gradient : CellState of arrays (T, ..., n)
        Derivatives of the loss by every state after a step, by itself.
    """

    def flip(tree: CellState) -> CellState:
        return tree_map(lambda part: xp.flip(part, axis=0), tree)

    last, back = flip(gradient), flip(diagonal)
    factors = tree_map(lambda part: shifted(xp, xp.zeros_like(part[0, ...]), part), back)

    def system(adjoint: CellState) -> tuple[CellState, CellState]:
        pulled = flip(pull(flip(adjoint)))
        through = tree_map(lambda part: shifted(xp, xp.zeros_like(part[0, ...]), part), pulled)
        return tree_map(lambda g, t: g + t, last, through), factors

    found = solve_recurrence(xp, system, last, **options)
    return found._replace(states=flip(found.states))


def parallel_cell_sequence(
    parameters: CellParameters,
    state: CellState,
    xs: Array,
    *,
    max_rates: MaxRates = MaxRates(),
    variant: str = "rectified_recurrence",
    tolerance: float | None = None,
    max_iterations: int = MAX_ITERATIONS,
    damped: bool = True,
) -> tuple[CellState, Array, ParallelReport]:
    """Run the cell over a sequence, all steps at once.

    Parameters
    ----------
    parameters, state, xs, max_rates, variant
        As for :func:`cell_sequence`.
    tolerance : float, optional
        Relative update at which the iterations stop, where it is no larger than the one before; 1e-13 in float64,
        1e-6 in float32.
    max_iterations : int
    damped : bool
        Whether an entry of the state moves by at most 1 per iteration.

    Returns
    -------
    state : CellState of arrays (..., n)
        The last state.
    y : array (T, ..., n)
        Membrane potentials after every step: those of :func:`cell_sequence`
        where the report says converged, and not to be used otherwise.
    report : ParallelReport

    Raises
    ------
    TypeError, ValueError
        As :func:`cell_sequence`, and for a tolerance that is not positive or a
        number of iterations below 1.

    Notes
    -----
    Every iteration costs what a pass over the sequence does, in few large
    operations. Convergence is a matter of the largest Lyapunov exponent of the trajectory: where
    it is positive, do not expect any, and do not rely on what is reported of disturbances below the tolerance,
    which grow. Derivatives do not pass through (for torch and jax
    the results are constants): iterations that stop where values have converged say nothing of their
    derivatives. The layers of ``organics_torch`` and ``organics_jax`` have the exact gradient.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> parameters, start = oc.init_cell(0, 1, 16)
    >>> xs = np.random.default_rng(1).random((200, 1))
    >>> last, ys, report = oc.parallel_cell_sequence(parameters, start, xs)
    >>> bool(report.converged), bool(np.allclose(ys, oc.cell_sequence(parameters, start, xs)[1], rtol=1e-10))
    (True, True)
    """
    checks.one_of("variant", variant, CELL_VARIANTS)
    max_iterations = checks.positive_integer("max_iterations", max_iterations)
    if tolerance is not None:
        tolerance = checks.positive_number("tolerance", tolerance)
    xp, start, xs = validate_sequence(parameters, state, xs)
    rates = cell_rates(xp, parameters, three_rates(max_rates))
    w = normalization_weights(xp, parameters.log_w)
    stop = get_backend(xp).stop_gradient
    given = tree_map(lambda value: stop(value) if hasattr(value, "dtype") else value, (parameters, w, rates, start, xs))
    parameters, w, rates, start, xs = given
    found = solve_states(
        xp,
        parameters,
        w,
        rates,
        start,
        xs,
        variant,
        tolerance=tolerance,
        max_iterations=max_iterations,
        largest_update=LARGEST_UPDATE if damped else None,
    )
    last = tree_map(lambda part: part[-1, ...], found.states)
    return last, found.states.y, found.report


def cell_lyapunov_exponent(
    parameters: CellParameters,
    state: CellState,
    xs: Array,
    *,
    max_rates: MaxRates = MaxRates(),
    variant: str = "rectified_recurrence",
) -> Array:
    """Largest Lyapunov exponent along a trajectory of the cell, over the steps of a sequence.

    Parameters
    ----------
    parameters, state, xs, max_rates, variant
        As for :func:`cell_sequence`.

    Returns
    -------
    array (...)
        Per step: a small disturbance grows as exp(exponent * steps). It is the
        mean growth of one vector, multiplied by the step's Jacobian and
        normalized at every step, over the second half of the sequence, after it has turned
        into the direction that decays most slowly; with few steps it is rough.

    Raises
    ------
    TypeError, ValueError
        As :func:`cell_sequence`.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> parameters, state = oc.init_cell(0, input_size=3, hidden_size=4)
    >>> bool(oc.cell_lyapunov_exponent(parameters, state, np.ones((200, 3))) < 0)  # neighbours approach
    True
    """
    checks.one_of("variant", variant, CELL_VARIANTS)
    xp, start, xs = validate_sequence(parameters, state, xs)
    rates = cell_rates(xp, parameters, three_rates(max_rates))
    w = normalization_weights(xp, parameters.log_w)
    return growth_rate(xp, parameters, w, rates, start, xs, variant)


def growth_rate(
    xp: Any, parameters: CellParameters, w: Array, rates: Rates, start: CellState, xs: Array, variant: str
) -> Array:
    """The same (...), unchecked, with W and the rates already computed."""
    backend = get_backend(xp)
    n = start.y.shape[-1]

    def parts(flat: Array) -> CellState:
        return CellState(*(flat[..., i * n : (i + 1) * n] for i in range(4)))

    def joined(state: CellState) -> Array:
        return xp.concat(tree_leaves(state), axis=-1)

    def body(carry: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], Array]:
        flat, direction = carry

        def one(before: Array) -> Array:
            return joined(step(xp, parameters, w, rates, parts(before), x, variant))

        moved = backend.jvp(one, flat, direction)
        size = xp.sqrt(xp.sum(moved * moved, axis=-1))
        return (one(flat), moved / size[..., None]), xp.log(size)

    flat = joined(start)
    if 0 in flat.shape:
        return flat[..., 0]
    # the same direction for every member and in every library, so that a batch is its members
    numbers = np.random.default_rng(0).standard_normal(int(flat.shape[-1]))
    first = xp.broadcast_to(from_numpy(xp, numbers, flat), tuple(flat.shape))
    _, growth = backend.scan(body, (flat, first), xs)
    return xp.mean(growth[xs.shape[0] // 2 :, ...], axis=0)


def advise(
    exponents: Sequence[float], reports: Sequence[ParallelReport], parallel: float, sequential: float
) -> ParallelAdvice:
    """What the exponents and reports of all layers and the seconds of both ways come to."""
    exponent = float(np.max(exponents)) if exponents else math.nan  # NaN where one is
    iterations = max((report.iterations for report in reports), default=0)
    if not reports:
        pays, reason = False, "there was nothing to compute"
    elif not all(report.converged for report in reports):
        pays, reason = (
            False,
            f"the iterations did not converge; the largest Lyapunov exponent is {exponent:.2g} per step",
        )
    else:
        pays = parallel < sequential
        reason = f"{iterations} iterations took {parallel:.2g} s, one step after another {sequential:.2g} s"
    return ParallelAdvice(pays, reason, exponent, iterations, parallel, sequential)
