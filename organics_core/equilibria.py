"""Fixed points: closed form, iteration, Newton, and every root for one neuron.

All solvers eliminate y. Given a, the first equation is linear in y,

    M(a) y = b z,   M(a) = I - diag(1 - sqrt(a)) R,

with R = W_r (for the rectified variants R also masks the silent units), and
what remains is G(a) = (b0 sigma)**2 + W (a resp(y(a))**2) - a = 0 with
a >= (b0 sigma)**2.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
from array_api_compat import array_namespace, device

from . import checks
from .attractors import (
    DIVERGED,
    MOVING,
    SETTLED,
    alone,
    attraction,
    attracts,
    deciders,
    follow,
    gathered,
    lively_starts,
    members,
    newton_in_both,
    nudged,
    random_starts,
    relative_imbalance,
    relative_residual,
    unit_of_y,
)
from .backend import Array, as_one, get_backend, kernel_for, quiet, to_numpy, tree_leaves, tree_map
from .circuit import (
    VARIANTS,
    Circuit,
    State,
    balance,
    has_closed_form,
    identity,
    identity_fixed_point,
    is_identity,
    of_variant,
    pooled_response,
    prepare,
    recurrent_slope,
    sqrt_relu,
    validate_circuit,
    validate_state,
    without_time,
)
from .implicit import differentiable
from .linalg import bicgstab, broadcast_shapes, inverse, matmul, solve, solve_vector, widen
from .model import Layout, check_model, check_products, field_jacobian, full, rest, state_fields, validate
from .one_neuron import roots_of_variant
from .stability import Linear, _spectral_abscissa, abscissa_of, linearized
from .weights import Operator, matvec, without_operators

METHODS = ("auto", "closed_form", "iteration", "newton")
REASONS = (
    "found by the method",
    "the method led to no attracting point, or to another; from rest the circuit settles here, as its steps tell",
    "the method led to no attracting point, nor the motion from rest within its steps; another start led here",
    "no attracting point was found: from rest the circuit does not settle within the steps it is followed",
    "no attracting point was found: from rest the circuit diverges",
    "no attracting point was found: from rest the circuit settles where none could be confirmed",
    "the iterations ran out",
    "found by the method, but from rest the circuit does not settle within the steps it is followed",
    "found by the method, but from rest the circuit diverges",
    "found by the method, but from rest the circuit settles where no point could be confirmed",
    "the drive is at the end of the range of the dtype, where its square overflows",
    "the fixed point has values that the model does not allow (of V1: some u >= 1)",
)
"""What the codes of :class:`SteadyState` mean, in their order."""
_FOUND, _FROM_REST, _ELSEWHERE, _MOVES, _DIVERGES, _UNCONFIRMED, _RAN_OUT, _UNREACHED = range(8)
_BEYOND, NONE_ALLOWED = 10, 11


class SteadyState(NamedTuple):
    """A fixed point, and how far to trust it.

    Attributes
    ----------
    state : State (of a model: its own) of arrays (..., n)
        The best state found; where ``converged`` is false it is not a fixed point.
    converged : boolean array (...)
        Whether the residual is within the tolerance.
    iterations : integer array (...)
        Steps taken; 0 for the closed form.
    residual : array (...)
        Largest imbalance of the two equations, relative to their largest term.
    stable, unstable : boolean arrays (...)
        Whether the fixed point attracts or repels, by its linearization. Both
        are false where that is unknown: nothing was found, the decision lies
        within rounding, or it was not asked for.
    status : integer array (...)
        How it was come by: an index into ``REASONS``.
    abscissa : array (...)
        The spectral abscissa, per second; NaN where it was not asked for.
    """

    state: Any
    converged: Array
    iterations: Array
    residual: Array
    stable: Array = None
    unstable: Array = None
    status: Array = None
    abscissa: Array = None

    @property
    def message(self) -> str:
        """What ``status`` says in words, of a single circuit or of a batch, with counts."""
        codes = to_numpy(self.status)
        if codes.ndim == 0:
            return REASONS[int(codes)]
        counts = [(int((codes == code).sum()), reason) for code, reason in enumerate(REASONS)]
        return "; ".join(f"{count}: {reason}" for count, reason in counts if count)


class FixedPoint(NamedTuple):
    """One fixed point of a one-neuron circuit.

    Attributes
    ----------
    state : State of arrays (1,)
    stable : bool
        Whether all eigenvalues of the Jacobian have negative real part, as it was computed: where
        ``spectral_abscissa`` is 0 but for rounding, its sign decides nothing.
    spectral_abscissa : float
        Largest real part of the eigenvalues, per second.
    """

    state: State
    stable: bool
    spectral_abscissa: float


def steady_state(
    circuit: Any,
    z: Array,
    *,
    method: str = "auto",
    variant: str = "main",
    tol: float | None = None,
    max_iterations: int = 500,
    state0: State | None = None,
    attracting: bool = True,
    elsewhere: bool = True,
    abscissa: bool = False,
) -> SteadyState:
    """Fixed point of a circuit, or of any other model, under a constant input drive: an attracting one if it finds any.

    Parameters
    ----------
    circuit : Circuit or Model
    z : array (..., n)
        Input drive.
    method : {"auto", "closed_form", "iteration", "newton"}
        ``"closed_form"`` is exact and needs W_r = I; ``"iteration"`` is the
        fixed-point iteration in a; ``"newton"`` solves G(a) = 0 by Newton's
        method, damped, falling back on the iteration where it makes no
        progress. ``"auto"`` takes the closed form where W_r is the identity
        (while tracing: where ``w_r is None``) and Newton otherwise.
    variant : {"main", "rectified", "rectified_recurrence"}
    tol : float, optional
        Bound on the relative residual; ``eps**0.75`` of the dtype by default
        (1.8e-12 in float64, 6e-6 in float32).
    max_iterations : int
    state0 : State, optional
        Start of the iterations, whose end is the answer whether it attracts or
        not; by default the fixed point for W_r = I, and for other models rest. ``"newton"`` takes a fixed point
        within 10 % of it where Newton's method in y and a finds one in 8 steps, which are not counted; else it
        starts from a alone, as ``"iteration"`` does.
    attracting : bool
        Decide whether the fixed point attracts, and where it does not look for
        one that does (see the notes); for a Circuit, without ``state0``. If
        false, the point that the method leads to is the answer, unjudged:
        ``stable`` and ``unstable`` are false.
    elsewhere : bool
        Where neither the method nor the motion from rest leads to an attracting point, look for one from other starts,
        which takes most of the time that such circuits take.
    abscissa : bool
        Also give the spectral abscissa, from eigenvalues.

    Returns
    -------
    SteadyState
        With ``converged``, ``stable`` and the rest of the report for every
        circuit of the batch. Non-convergence is a result, not an error, and so
        is a repelling point. The state is
        differentiable in the circuit and in z, by the implicit function
        theorem, at every order and without storing the iterations: in torch,
        torch.func and jax, mapped too. Members that did not converge have
        derivatives of zero. At a kink of a rectified variant (y = 0) they are
        those of the silent side.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; among others ``"closed_form"`` with
        a W_r that is not the identity; in torch, functions that hold tensors
        which need a gradient (name them in ``Operator(product, arrays)``), and
        ``torch.compile`` of anything but the closed form.

    Notes
    -----
    For W_r = I, the normalization equation (Rawat, Heeger & Martiniani 2024)::

        a = (b0 sigma)**2 + W (b z)**2,      y = b z / sqrt(a)

    This one is stable whatever the parameters. For other W_r the answer is the
    attracting point that the circuit reaches from rest, where there is one. The
    motion from rest is followed (a nudge off it where rest is a fixed point
    itself, and off any repelling point it comes to), for 300 to 3,000 steps of a
    stiff method whose step follows the error, as long as it slows down, unless the method's point attracts
    and the gain, the norm of diag(1 - sqrt(a)) W_r, is below one at rest and
    there: all of 1,509 such random circuits settled there. One neuron with 0 < w_r <= 1 settles wherever it
    starts, by theorem. The motion is followed at a relative accuracy of 0.1 % a step. Of 3,361 random circuits (W_r of
    norm 0.5 to 5, drive 0.01 to 100, n from 1 to 20) it was said of 1,605 that they settle at the answer and of 1,298
    that they diverge; by scipy's LSODA one of the former diverges and all others do as was said, 19 of them after
    more than 300 time constants. Where the motion does not
    settle, the method's point is the answer if it attracts. If it does not, or there is none
    (Newton's within 60 iterations, where more were allowed), Newton's method looks from 64
    random starts, and where it finds nothing the motion is followed from 32 others, unless the call
    is traced (and under torch.func.vmap none of this is done: ``stable`` and
    ``unstable`` are both false); of several attracting points the answer is the one that most
    starts led to. Nothing more is looked for where a circuit of more than 4 neurons diverges from rest and its largest
    ``|b z|`` exceeds ``2 (1 + norm of W_r) / sqrt(max W 1)``, twice what y of the size that W allows can balance
    with modulators below one: of 1,729 such random circuits none had an attracting point to which Newton's method
    led from 256 starts; with fewer neurons only Newton's method looks. Where none was found there may be one all the
    same: of 1,811 such random circuits there were two for which 64 starts of scipy's root found one. (These counts
    were taken once; ``benchmarks/motions.py`` makes one of the motions anew.)
    ``status`` says which of these it was. In numpy and in torch on the CPU the motion of up to 256 neurons, and
    Newton's method for up to 64, are native
    code where a C++ compiler is found (it is compiled on first use, once, in about four seconds) or
    a wheel brought it; elsewhere, or with the environment variable ``ORGANICS_NATIVE_MOTION=0``, the same takes
    about five times as long.
    :func:`classify` tells what happens from rest otherwise,
    :func:`find_fixed_points` looks for all fixed points.

    With weights that are operators no matrix is made: the fixed-point iteration
    in a, y = (I - diag(1 - sqrt(a)) W_r)^-1 b z, a <- (b0 sigma)**2 + W (a y**2),
    solves its linear systems by BiCGSTAB (van der Vorst 1992). Other models are
    solved by implicit Euler steps that grow as the field shrinks, until they are
    Newton's (pseudo-transient continuation, Kelley & Keyes 1998); their residual
    is the last correction relative to the size of the state.

    Examples
    --------
    >>> import numpy as np
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> found = steady_state(circuit, np.array([1.0, 0.0]))
    >>> found.state.a
    array([2., 2.])
    """
    checks.one_of("method", method, METHODS)
    max_iterations = checks.positive_integer("max_iterations", max_iterations)
    made = of_variant(circuit, variant)
    if not isinstance(made, Circuit):
        return _of_any_model(made, z, method, tol, max_iterations, state0, attracting, abscissa)
    others = {} if state0 is None else validate_state(state0, "state0")
    xp = validate_circuit(circuit, values=True, z=z, **others)
    checks.values(xp, "z", z, "any")
    for name, value in others.items():
        checks.values(xp, name, value, "any")
    if state0 is None:
        circuit, z = prepare(xp, circuit, z)
    else:
        circuit, z, y0, a0 = prepare(xp, circuit, z, *state0)
        state0 = State(y0, a0)
    eps = float(xp.finfo(z.dtype).eps)
    tolerance = eps**0.75 if tol is None else checks.positive_number("tol", tol)

    backend = get_backend(xp)
    if any(isinstance(part, Operator) for part in circuit[:2]):
        found = _by_products(xp, circuit, z, method, variant, tolerance, max_iterations, state0)
        return _whole(xp, circuit, z, _reported(xp, circuit, found, variant, abscissa, proven=circuit.w_r is None))
    unit = is_identity(xp, circuit.w_r) if has_closed_form(variant) else False
    if method == "closed_form" and not has_closed_form(variant):
        raise ValueError(f"variant {variant!r} has no closed form; use 'newton', 'iteration' or 'auto'")
    if method == "closed_form" and unit is False:
        raise ValueError(
            "method 'closed_form' needs w_r to be the identity (or None); "
            "use 'newton', 'iteration' or 'auto' for this w_r"
        )
    if method == "closed_form" or (unit and (method == "auto" or (method == "newton" and state0 is None))):
        # Round-off of a sum of many terms is not a failure to converge.
        known = partial(_known, variant, max(tolerance, 1e3 * eps))
        with quiet(backend):
            # the formula has no W_r to be differentiated by, the equations do
            if circuit.w_r is not None and (unit or backend.traces_loops):
                made = of_variant(without_time(xp, circuit), variant)
                found = cast(SteadyState, differentiable(xp, known, made, z, None))
            else:
                found = known(circuit, z, None)
        return _in_range(xp, circuit, z, _reported(xp, circuit, found, variant, abscissa, proven=True))
    concrete = all(backend.is_concrete(leaf) for leaf in tree_leaves((circuit, z, state0)))
    attracting = attracting and (concrete or backend.traces_loops)  # torch.func.vmap traces no loop
    look = attracting and state0 is None
    first = min(max_iterations, _PATIENCE) if look and method != "iteration" else max_iterations
    search = Settings(variant, tolerance, first, method != "iteration")
    with quiet(backend):
        found = _search(search, circuit, z, state0)
        if look:
            wanted = found.converged if max_iterations <= _PATIENCE else None  # few were asked for
            found = _attracting(xp, backend, concrete, search, circuit, z, found, wanted, elsewhere)
        elif attracting:
            found = _judged(xp, circuit, found, variant)
        return _in_range(xp, circuit, z, _reported(xp, circuit, found, variant, abscissa))


def _known(variant: str, tolerance: float, circuit: Circuit, z: Array, _: None) -> SteadyState:
    """The closed form, with the batch axes of all parts: its derivatives are taken member by member."""
    xp = array_namespace(z)
    z = full(xp, circuit, z)
    state = identity_fixed_point(xp, circuit, z, variant)
    residual = relative_residual(xp, circuit, state, z, variant)
    iterations = xp.zeros(residual.shape, dtype=xp.int32, device=device(z))
    return SteadyState(state, residual <= tolerance, iterations, residual)


def _whole(xp: Any, made: Any, z: Array, found: SteadyState) -> SteadyState:
    """With all batch axes in every field: a parameter that a point does not depend on may bring some, too."""
    leaves = tree_leaves(found[1:])
    points = [tuple(part.shape[:-1]) for part in found.state]
    batch = broadcast_shapes(tuple(full(xp, made, z).shape[:-1]), *points, *(tuple(leaf.shape) for leaf in leaves))
    if all(shape == batch for shape in points) and all(tuple(leaf.shape) == batch for leaf in leaves):
        return found
    everywhere = xp.ones(batch, dtype=xp.bool, device=device(z))
    state = tree_map(lambda part: xp.where(everywhere[..., None], part, part), found.state)
    return SteadyState(state, *(xp.where(everywhere, leaf, leaf) for leaf in found[1:]))


def _in_range(xp: Any, circuit: Circuit, z: Array, found: SteadyState) -> SteadyState:
    """Whole, with the reason where the square of the drive is none of the dtype's numbers."""
    largest = xp.max(xp.abs(get_backend(xp).stop_gradient(circuit.b * z)), axis=-1)
    beyond = (found.status >= _MOVES) & (largest > 0.1 * float(xp.finfo(z.dtype).max) ** 0.5)
    status = xp.where(beyond, xp.full_like(found.status, _BEYOND), found.status)
    return _whole(xp, circuit, z, found._replace(status=status))


_PATIENCE = 60
"""Iterations of Newton's method after which the motion of the circuit itself is the better guide."""
_STARTS = 64
_STEPS_NEARBY = 8
"""Of Newton's method in y and a from a start, for a point near it."""
_FEW = 4
"""Neurons: up to so many a search costs little, also under strong drive."""


def _search(search: Settings, circuit: Circuit, z: Array, state0: State | None) -> SteadyState:
    found = SteadyState(*as_one(_solve, circuit, z, state0, settings=(search,)))
    return found._replace(state=State(*found.state))


def _judged(xp: Any, circuit: Any, found: SteadyState, variant: str) -> SteadyState:
    """With the stability of a circuit's points, by products alone, or by the theorem."""
    stop = get_backend(xp).stop_gradient
    stable, unstable = attracts(xp, tree_map(stop, circuit), tree_map(stop, found.state), variant)
    proven = settles_by_theorem(xp, circuit)
    return found._replace(stable=(stable | proven) & found.converged, unstable=unstable & ~proven & found.converged)


def settles_by_theorem(xp: Any, circuit: Circuit) -> Array:
    """Whether all motions lead to one fixed point: one neuron with 0 < w_r <= 1, in every variant; shape (...) or ().

    With f and g the two fields, d(f / a)/dy + d(g / a)/da = -(1 - w_r + w_r sqrt(a)) / (a tau_y) - (b0 sigma / a)**2
    / tau_a < 0: no orbit is closed (Bendixson & Dulac), none grows without bound, and there is one fixed point.
    """
    single = xp.asarray(circuit.w.shape[-1] == 1, device=device(circuit.w))
    if circuit.w_r is None or circuit.w.shape[-1] != 1:
        return single
    w_r = circuit.w_r[..., 0, 0]
    return (w_r > 0) & (w_r <= 1)


def _reported(
    xp: Any, circuit: Circuit, found: SteadyState, variant: str, abscissa: bool, *, proven: bool = False
) -> SteadyState:
    """With the fields of the report that are missing; ``proven``: what converged is stable by the theorem."""
    nothing = xp.zeros_like(found.converged)
    if found.stable is None:
        found = found._replace(stable=found.converged if proven else nothing, unstable=nothing)
    if found.status is None:
        found = found._replace(status=_ran_out(xp, found.converged))
    rate = _spectral_abscissa(xp, circuit, found.state, variant) if abscissa else xp.full_like(found.residual, xp.nan)
    return found._replace(abscissa=xp.where(found.converged, rate, xp.full_like(rate, xp.nan)))


def _ran_out(xp: Any, converged: Array) -> Array:
    """The status of what was not looked into."""
    zero = xp.astype(converged, xp.int32) * _FOUND
    return xp.where(converged, zero, zero + _RAN_OUT)


def _chosen(xp: Any, take: Array, new: SteadyState, old: SteadyState, status: int) -> SteadyState:
    """``new`` where ``take`` is true, with its ``status``."""

    state = State(*(xp.where(take[..., None], one, other) for one, other in zip(new.state, old.state, strict=True)))
    return SteadyState(
        state,
        take | old.converged,
        xp.where(take, old.iterations + new.iterations, old.iterations),
        xp.where(take, new.residual, old.residual),
        take | old.stable,
        ~take & old.unstable,
        xp.where(take, xp.full_like(old.status, status), old.status),
    )


def _attracting(
    xp: Any,
    backend: Any,
    concrete: bool,
    search: Settings,
    circuit: Circuit,
    z: Array,
    found: SteadyState,
    wanted: Array | None,
    elsewhere: bool,
) -> SteadyState:
    """An attracting point in place of every one that repels, or was not found, where there is one to be found.

    ``wanted`` limits this to some members of the batch.
    """
    found = _whole(
        xp, circuit, z, _reported(xp, circuit, _judged(xp, circuit, found, search.variant), search.variant, False)
    )
    wide = xp.zeros_like(found.state.y)
    free, ends, free_z = tree_map(backend.stop_gradient, (circuit, found.state, z))
    doubtful = ~found.stable
    if not concrete or bool(xp.any(found.stable)):
        doubtful = doubtful | _far_from_rest(xp, free, ends)
    lacking = doubtful if wanted is None else doubtful & wanted
    if concrete and not bool(xp.any(lacking)):
        return found
    search = search._replace(max_iterations=_PATIENCE, newton=True)
    known = State(*(xp.where(found.stable[..., None], part, xp.nan) for part in ends))
    shape = tuple(lacking.shape)
    if backend.traces_loops and concrete:  # one program
        better, outcome = as_one(_settle_traced, circuit, z + wide, lacking, known, settings=(search,))
        better = SteadyState(*better)
        better = better._replace(state=State(*better.state))
    elif not concrete or not shape:
        better, outcome = settle(xp, backend, concrete, search, circuit, z + wide, lacking, known=known)
    else:  # what is not lacking costs nothing
        index = [tuple(int(i) for i in at) for at in np.argwhere(to_numpy(lacking))]
        some, drives = gathered(xp, circuit, z + wide, index)
        every = xp.ones_like(drives[:, 0]) > 0
        picked = State(*(xp.stack([part[(*at, ...)] for at in index]) for part in known))
        place = np.zeros(shape, dtype=int)
        place[tuple(np.asarray(index).T)] = np.arange(len(index))
        where = xp.asarray(place.reshape(-1).tolist(), dtype=xp.int64, device=device(z))

        def back(leaf: Array) -> Array:
            return xp.reshape(xp.take(leaf, where, axis=0), (*shape, *leaf.shape[1:]))

        better, outcome = tree_map(
            back, tuple(settle(xp, backend, concrete, search, some, drives, every, known=picked))
        )
        better = SteadyState(State(*better[0]), *better[1:])
    failed = xp.full_like(found.status, _MOVES)
    failed = xp.where(outcome == SETTLED, xp.full_like(failed, _UNCONFIRMED), failed)
    failed = xp.where(outcome == DIVERGED, xp.full_like(failed, _DIVERGES), failed)
    failed = xp.where(found.stable, failed - _MOVES + _UNREACHED, failed)
    same = found.stable & better.stable
    if not concrete or bool(xp.any(same)):
        same = same & _close(xp, unit_of_y(xp, free, free_z), better.state, found.state)
    found = found._replace(status=xp.where(lacking & ~same, failed, found.status))
    take = lacking & better.stable & ~same
    if not concrete or bool(xp.any(take)):
        found = _chosen(xp, take, better, found, _FROM_REST)
    if not concrete or not elsewhere:
        return found
    for left in np.argwhere(to_numpy(lacking & ~found.stable)):
        at = tuple(int(i) for i in left)
        one, drive = members(circuit, z + wide, at)
        other = _from_many(xp, backend, search, one, drive, int(found.status[at]) == _DIVERGES)
        if other is not None and bool(other.stable):
            here = np.zeros(shape, dtype=bool)
            here[at] = True
            found = _chosen(xp, xp.asarray(here.tolist(), device=device(z)), other, found, _ELSEWHERE)
    return found


def _far_from_rest(xp: Any, circuit: Circuit, state: State) -> Array:
    """Whether a gain of one or more, the norm of diag(1 - sqrt(a)) W_r, lies between rest and ``state``.

    Below it y follows the modulators, whatever these are. This is no proof that the motion from rest leads to the
    state: it is counted in the notes of steady_state.
    """
    first = 1.0 - xp.min(circuit.b0 * circuit.sigma + 0.0 * state.a, axis=-1)
    last = xp.max(xp.abs(1.0 - sqrt_relu(xp, state.a)), axis=-1)
    norm = _norm(xp, circuit.w_r)
    return ~((xp.abs(first) * norm < 1.0) & (last * norm < 1.0) | settles_by_theorem(xp, circuit))


def _strong(xp: Any, circuit: Circuit, z: Array) -> Array:
    """Whether a drive is so strong that few circuits have an attracting point: see the notes of steady_state."""
    # y**2 is about 1 / (W 1) at most, and (1 + |W_r|) |y| all that modulators below one can balance
    least = 1.0 / xp.sqrt(xp.max(xp.sum(circuit.w, axis=-1), axis=-1))
    return xp.max(xp.abs(circuit.b * z), axis=-1) > 2.0 * (1.0 + _norm(xp, circuit.w_r)) * least


def _norm(xp: Any, w_r: Array) -> Any:
    """The largest singular value of W_r."""
    return 1.0 if w_r is None else xp.max(xp.linalg.svdvals(w_r), axis=-1)


def _close(xp: Any, unit: Array, state: State, other: State) -> Array:
    """Whether two states are the same to within 5 % of the modulators and of the largest y."""
    size = xp.max(xp.abs(other.y), axis=-1)
    away = xp.max(xp.abs(state.y - other.y), axis=-1) <= 5e-2 * size + 1e-9 * unit
    return away & xp.all(xp.abs(state.a - other.a) <= 5e-2 * xp.abs(other.a), axis=-1)


def _beginning(xp: Any, circuit: Circuit, z: Array) -> tuple[State, Array]:
    """Rest, or a nudge off it where it is a fixed point, and the longest step to be taken from there."""
    floor = (circuit.b0 * circuit.sigma) ** 2 + 0.0 * z
    rest = State(xp.zeros_like(floor), floor)
    at_rest = ~xp.any(circuit.b * z != 0, axis=-1)
    ones = xp.ones_like(z[..., 0])
    if get_backend(xp).is_concrete(at_rest) and not bool(xp.any(at_rest)):
        return rest, math.inf * ones
    moved = nudged(xp, circuit, rest, z, 1e-2)
    # long steps would pass over the instability of a point that the motion begins at
    return State(xp.where(at_rest[..., None], moved.y, rest.y), floor), xp.where(at_rest, ones, math.inf * ones)


def _settle_traced(
    search: Settings, circuit: Circuit, z: Array, active: Array, known: tuple[Array, Array]
) -> tuple[SteadyState, Array]:
    xp = array_namespace(z)
    return settle(xp, get_backend(xp), False, search, circuit, z, active, known=State(*known))


def settle(
    xp: Any,
    backend: Any,
    concrete: bool,
    search: Settings,
    circuit: Circuit,
    z: Array,
    active: Array,
    start: State | None = None,
    known: State | None = None,
) -> tuple[SteadyState, Array]:
    """The point at which the active members settle, with its stability, and what became of their motion.

    It begins at rest, or at ``start``. Attracting points that are ``known`` (NaN: none is) end the motion that comes
    near; others are confirmed by Newton's method. What comes to rest at a repelling point is pushed on twice, but not
    while tracing, where each time would be compiled anew.
    """
    variant = search.variant
    free = tree_map(backend.stop_gradient, circuit)
    free_z = backend.stop_gradient(z)
    ones = xp.ones_like(free_z[..., 0])
    found: Any = None
    outcome: Any = None
    proven = active & settles_by_theorem(xp, free)
    if concrete and bool(xp.any(proven)):  # wherever it starts
        found = _judged(xp, free, _search(search._replace(max_iterations=500), circuit, z, None), variant)
        found = _reported(xp, free, found._replace(stable=found.stable & proven), variant, False)
        outcome = xp.where(found.stable, xp.full_like(found.status, SETTLED), xp.full_like(found.status, MOVING))
        active = active & ~proven
        if not bool(xp.any(active)):
            return found, outcome
    state, longest = _beginning(xp, free, free_z) if start is None else (start, math.inf * ones)
    unit = unit_of_y(xp, free, free_z)
    if concrete and known is not None and bool(xp.all(xp.isnan(known.a))):
        known = None
    for _ in range(3 if concrete else 1):
        motion = follow(xp, free, state, free_z, variant, active, longest=longest, target=known)
        settled = active & (motion.outcome == SETTLED)
        nothing = xp.zeros_like(settled)
        arrived = nothing if known is None else settled & _close(xp, unit, motion.state, known)
        if concrete and not bool(xp.any(settled & ~arrived)):
            end = motion.state if known is None else known
            end = State(*(xp.where(arrived[..., None], *parts) for parts in zip(end, motion.state, strict=True)))
            zero = xp.zeros_like(motion.outcome)
            polished = SteadyState(end, arrived, zero, math.inf * ones, arrived, nothing, zero)
            near = arrived
        else:
            exact, _ = newton_in_both(
                xp, free, motion.state, free_z, variant, search.tolerance, steps=8 if concrete else 4
            )
            polished = _judged(xp, free, _search(search, circuit, z, exact), variant)
            polished = _reported(xp, free, polished, variant, False)
            away = xp.max(xp.abs(polished.state.y - motion.state.y), axis=-1)
            size = xp.max(xp.abs(motion.state.y) + xp.abs(free.b * free_z), axis=-1)
            near = settled & polished.converged & (away <= 0.1 * size + 1e-9 * unit)
            if known is not None:
                kept = zip(known, polished.state, strict=True)
                polished = polished._replace(
                    state=State(*(xp.where(arrived[..., None], *parts) for parts in kept)),
                    converged=polished.converged | arrived,
                    stable=polished.stable | arrived,
                    unstable=polished.unstable & ~arrived,
                )
                near = near | arrived
        good = near & polished.stable
        polished = polished._replace(stable=good, unstable=polished.unstable & near)
        if found is None:
            found, outcome = polished, motion.outcome
        else:
            found = _chosen(xp, good, polished, found, _FROM_REST)
            outcome = xp.where(active, motion.outcome, outcome)
        # where it came to rest at a repelling point, a push leads on
        active = near & polished.unstable
        if concrete and not bool(xp.any(active)):
            break
        push = nudged(xp, free, tree_map(backend.stop_gradient, polished.state), free_z, 1e-2)
        state = State(
            *(xp.where(active[..., None], beyond, last) for beyond, last in zip(push, motion.state, strict=True))
        )
        longest = xp.where(active, ones, math.inf * ones)
    return found, outcome


def _from_many(
    xp: Any, backend: Any, search: Settings, circuit: Circuit, z: Array, diverges: bool
) -> SteadyState | None:
    """The attracting point to which most of random starts lead, or None: by Newton's method, then by the motion.

    Less for circuits that diverge from rest under a strong drive: see the notes of steady_state.
    """
    variant, tolerance = search.variant, search.tolerance
    free, free_z = tree_map(backend.stop_gradient, circuit), backend.stop_gradient(z)
    strong = diverges and bool(_strong(xp, free, free_z))
    if strong and z.shape[-1] > _FEW:
        return None

    def found_from(starts: State, steps: int) -> tuple[State, Any]:
        state, residual = newton_in_both(xp, free, starts, free_z, variant, tolerance, steps=steps)
        good = to_numpy(residual <= tolerance)
        return state, good & to_numpy(attracts(xp, free, state, variant).stable) if good.any() else good

    state, good = found_from(random_starts(xp, free, free_z, variant, _STARTS, 0), 30)
    if not good.any() and not strong:
        starts = lively_starts(xp, free, free_z, _STARTS // 2, 0)
        drives = free_z + xp.zeros_like(starts.y)
        ones = xp.ones_like(starts.y[:, 0])
        motion = follow(
            xp, free, starts, drives, variant, ones > 0, steps=60, longest=math.inf * ones, rtol=5e-2, still=1e-2
        )
        state, good = found_from(motion.state, 8)
    if not good.any():
        return None
    points = to_numpy(xp.concat([state.y, state.a], axis=-1))[good]
    close = np.abs(points[:, None] - points).max(axis=-1) <= 1e-4 * np.abs(points).max(axis=-1)
    best = int(np.flatnonzero(good)[close.sum(axis=-1).argmax()])
    found = _search(search, circuit, z, State(state.y[best, :], state.a[best, :]))
    return _judged(xp, circuit, found, variant)


def _by_products(
    xp: Any,
    circuit: Circuit,
    z: Array,
    method: str,
    variant: str,
    tolerance: float,
    max_iterations: int,
    state0: State | None,
) -> SteadyState:
    """The closed form, or the iteration in a whose systems are solved by BiCGSTAB: products only."""
    eps = float(xp.finfo(z.dtype).eps)
    if circuit.w_r is not None and (method == "closed_form" or variant != "main"):
        raise ValueError(
            f"weights that are operators have the method 'iteration' of the variant 'main', got {method!r} of "
            f"{variant!r}; a dense w and w_r have all"
        )
    check_products(xp, circuit, full(xp, circuit, z))
    if circuit.w_r is None:
        state = identity_fixed_point(xp, circuit, full(xp, circuit, z), variant)
        residual = relative_residual(xp, circuit, state, z, variant)
        iterations = xp.zeros(residual.shape, dtype=xp.int32, device=device(z))
        return SteadyState(state, residual <= max(tolerance, 1e3 * eps), iterations, residual)
    search = partial(_iteration_by_products, tolerance, max_iterations)
    found = differentiable(xp, search, without_time(xp, circuit), z, state0, by_products=True)
    return cast(SteadyState, found)


def _iteration_by_products(
    tolerance: float, max_iterations: int, circuit: Circuit, z: Array, state0: State | None
) -> SteadyState:
    xp = array_namespace(z)
    batch = full(xp, circuit, z)
    state = identity_fixed_point(xp, circuit, batch, "main") if state0 is None else state0
    residual = relative_residual(xp, circuit, state, z, "main")
    checks.seen(xp, "steady_state with a w_r that is an operator", z, residual)
    if batch.ndim > 1:
        for name, part in zip(circuit._fields, circuit, strict=True):
            if not isinstance(part, Operator) and getattr(part, "ndim", 0) > circuit.spec[name].axes:
                raise ValueError(
                    "a circuit with operators takes a batch of drives, but must have no batch axes itself, got "
                    f"{name} of shape {tuple(part.shape)}"
                )
        if 0 in batch.shape:
            iterations = xp.zeros(residual.shape, dtype=xp.int32, device=device(z))
            return SteadyState(state, residual <= tolerance, iterations, residual)
        flat = xp.reshape(batch, (-1, batch.shape[-1]))
        starts = State(*(xp.reshape(part, flat.shape) for part in state))
        found = [
            _iteration_by_products(
                tolerance, max_iterations, circuit, flat[i, :], State(starts.y[i, :], starts.a[i, :])
            )
            for i in range(flat.shape[0])
        ]
        shape = tuple(batch.shape[:-1])
        made = tree_map(lambda *parts: xp.reshape(xp.stack(list(parts)), (*shape, *parts[0].shape)), *found)
        return SteadyState(State(*made[0]), *made[1:])
    count = 0
    drive, floor = circuit.b * z, (circuit.b0 * circuit.sigma) ** 2
    goal = 0.1 * tolerance * float(xp.max(xp.abs(drive)))
    while count < max_iterations and float(residual) > tolerance:
        gate = 1.0 - sqrt_relu(xp, state.a)
        y = bicgstab(xp, partial(_gated, xp, circuit.w_r, gate), drive, state.y, goal)
        state = State(y, floor + matvec(xp, circuit.w, state.a * y * y))
        residual = relative_residual(xp, circuit, state, z, "main")
        count += 1
        if not math.isfinite(float(residual)):
            break
    iterations = xp.asarray(count, dtype=xp.int32, device=device(z))
    return SteadyState(state, residual <= tolerance, iterations, residual)


def _gated(xp: Any, w_r: Any, gate: Array, y: Array) -> Array:
    """(I - diag(gate) W_r) y."""
    return y - gate * matvec(xp, w_r, y)


def _frozen(backend: Any, tree: Any) -> Any:
    """Without gradients; operators stay as they are."""
    return tree_map(lambda leaf: leaf if isinstance(leaf, Operator) else backend.stop_gradient(leaf), tree)


def _of_model_judged(xp: Any, made: Any, z: Array, found: SteadyState, attracting: bool, abscissa: bool) -> SteadyState:
    """With the stability of the points of any model, from its Jacobian."""
    backend = get_backend(xp)
    made, z, state = (_frozen(backend, part) for part in (made, z, found.state))
    linear = Linear(xp, made, state, z)
    nothing = xp.zeros_like(found.converged)
    stable = unstable = nothing
    concrete = all(backend.is_concrete(leaf) for leaf in tree_leaves((made, z, state)) if hasattr(leaf, "dtype"))
    if attracting and (concrete or backend.traces_loops):
        with quiet(backend):  # points that are not allowed may be infinite
            jac = linear.jacobian
        # of the size of the longest time constant: the inverse of the smallest rate that a row of the Jacobian has
        size = xp.min(xp.sum(xp.abs(jac), axis=-1), axis=-1)
        stable, unstable = attraction(xp, jac, 1.0 / xp.where(size > 0, size, xp.ones_like(size)))
    found = found._replace(stable=stable & found.converged, unstable=unstable & found.converged)
    if found.status is None:
        found = found._replace(status=_ran_out(xp, found.converged))
    rate = abscissa_of(linear) if abscissa else xp.full_like(found.residual, xp.nan)
    found = found._replace(abscissa=xp.where(found.converged, rate, xp.full_like(rate, xp.nan)))
    return _whole(xp, made, z, found)


def _of_any_model(
    made: Any,
    z: Array,
    method: str,
    tol: float | None,
    max_iterations: int,
    state0: Any,
    attracting: bool,
    abscissa: bool,
) -> SteadyState:
    """The model's own solver, or pseudo-transient continuation from rest."""
    check_model(made, "circuit")
    own = getattr(made, "equilibrium", None)
    if own is not None:
        if state0 is not None:
            raise ValueError(f"state0 must be None: a {type(made).__name__} has a solver of its own")
        found: SteadyState = own(z, method=method, tol=tol, max_iterations=max_iterations)
        xp, made, _, z = linearized(made, found.state, "main", z)
        return _of_model_judged(xp, made, z, found._replace(stable=None), attracting, abscissa)
    if method not in ("auto", "newton"):
        raise ValueError(f"method {method!r} is one of a Circuit's; a {type(made).__name__} has 'newton'")
    others = {} if state0 is None else state_fields(made, state0, "state0")
    xp = validate(made, values=True, name="circuit", z=z, **others)
    for name, value in {"z": z, **others}.items():
        checks.values(xp, name, value, "any")
    made, z, *parts = prepare(xp, made, z, *others.values())
    eps = float(xp.finfo(z.dtype).eps)
    tolerance = eps**0.75 if tol is None else checks.positive_number("tol", tol)
    state0 = made.state(*parts) if parts else None
    found = differentiable(xp, partial(_continuation, tolerance, max_iterations), made, z, state0)
    return _of_model_judged(xp, made, z, found, attracting, abscissa)


def _continuation(tolerance: float, max_iterations: int, made: Any, z: Array, state0: Any) -> SteadyState:
    """Pseudo-transient continuation of a prepared model."""
    xp = array_namespace(z)
    wide = full(xp, made, z)
    start = rest(xp, made, wide) if state0 is None else state0
    start = tree_map(lambda part: part + xp.zeros_like(wide), start)
    backend = get_backend(xp)
    free_model, free_z, free = (_frozen(backend, part) for part in (made, wide, start))
    layout = Layout.of(start)
    n = sum(layout.sizes)
    eye = xp.eye(n, dtype=z.dtype, device=device(z))
    time = xp.zeros((), dtype=z.dtype, device=device(z))

    def field(model: Any, x: Array, drive: Array) -> Array:
        return layout.pack(xp, model.field(xp, time, layout.unpack(x), drive))

    def newton(model: Any, x: Array, drive: Array, shift: Array) -> Array:
        """-(J - shift I)^-1 f."""
        jac = backend_jacobian(model, x, drive) - shift[..., None, None] * eye
        return -solve_vector(xp, jac, field(model, x, drive))

    def backend_jacobian(model: Any, x: Array, drive: Array) -> Array:
        return field_jacobian(xp, model, time, layout.unpack(x), drive)

    def size(x: Array) -> Array:
        return xp.max(xp.abs(x), axis=-1)

    def body(c: Any) -> Any:
        x, slope, shift, residual, count, active = c
        moved = x + newton(free_model, x, free_z, shift)
        new = field(free_model, moved, free_z)
        old_size, new_size = size(slope), size(new)
        good = active & (new_size <= 1.5 * old_size)  # false for NaN
        falls = good & (new_size < old_size)
        ratio = xp.where(falls, new_size / xp.where(old_size > 0, old_size, xp.ones_like(old_size)), 0.5)
        shrink = xp.where(ratio > 0.2, 0.5 * ratio, ratio * ratio)
        x = xp.where(good[..., None], moved, x)
        slope = xp.where(good[..., None], new, slope)
        shift = xp.where(active, xp.where(good, shift * shrink, 4.0 * shift), shift)
        scale = size(x)
        step = size(newton(free_model, x, free_z, xp.zeros_like(shift)))
        relative = step / xp.where(scale > 0, scale, xp.ones_like(scale))
        exact = size(slope) == 0
        residual = xp.where(active, xp.where(exact, xp.zeros_like(relative), relative), residual)
        count = count + xp.astype(active, count.dtype)
        return x, slope, shift, residual, count, active & ~(residual <= tolerance)

    x = layout.pack(xp, free)
    slope = field(free_model, x, free_z)
    rate = size(slope) / xp.where(size(x) > 0, size(x), xp.ones_like(size(x)))
    decay = getattr(free_model, "decay", None)
    if decay is not None:
        slowest = size(layout.pack(xp, [tau + xp.zeros_like(part) for tau, part in zip(decay(), start, strict=True)]))
        rate = 2.0 / slowest
    shift = xp.where(rate > 0, rate, xp.ones_like(rate))
    residual = xp.full_like(shift, xp.inf)
    count = xp.zeros(shift.shape, dtype=xp.int32, device=device(z))
    carry = (x, slope, shift, residual, count, residual > 0)
    carry = backend.while_loop(lambda c: xp.any(c[5]), body, carry, max_steps=max_iterations)
    x, _, _, residual, count, _ = carry
    converged = residual <= tolerance
    polished = x + newton(free_model, x, free_z, xp.zeros_like(shift))
    x = xp.where((converged & xp.all(xp.isfinite(polished), axis=-1))[..., None], polished, x)
    return SteadyState(layout.unpack(x), converged, count, residual)


def _matrix_of_y(xp: Any, a: Array, slope: Array) -> Array:
    """M(a), with M(a) y = b z."""
    return identity(xp, a) - (1.0 - xp.sqrt(a))[..., None] * slope


def _pool(xp: Any, circuit: Circuit, floor: Array, a: Array, y: Array, variant: str) -> Array:
    response = pooled_response(xp, y, variant)
    return floor + matvec(xp, circuit.w, a * response * response)


def _newton_matrix(xp: Any, circuit: Circuit, a: Array, y: Array, slope: Array, inverted: Array, variant: str) -> Array:
    """-dG/da = I - W diag(resp**2) - W diag(2 a resp) dy/da, with M(a)^-1."""
    response = pooled_response(xp, y, variant)
    minus_dy_da = inverted * (matvec(xp, slope, y) / xp.sqrt(a))[..., None, :]  # twice
    w = circuit.w
    change = matmul(xp, w * (a * response)[..., None, :], minus_dy_da)
    return identity(xp, a) - w * (response * response)[..., None, :] + change


class Settings(NamedTuple):
    """Everything about a search that is not an array: hashable, so that a compiler can specialize on it."""

    variant: str
    tolerance: float
    max_iterations: int
    newton: bool


class _Search(NamedTuple):
    """Carry of the solver's loop; every leaf has the batch axes."""

    state: State
    inverted: Array  # M(a)^-1, for Newton's method
    residual: Array
    damping: Array
    plain: Array  # iterations still to be made before Newton's method gets its next chance
    patience: Array  # how many, the next time that Newton's method makes no progress
    iterations: Array
    active: Array


def _solve(settings: Settings, circuit: Circuit, z: Array, state0: State | None) -> SteadyState:
    """The fixed point with its derivatives: the time constants have no part in it."""
    xp = array_namespace(z)
    model = of_variant(without_time(xp, circuit), settings.variant)
    found = differentiable(xp, partial(_iterate, settings), model, z, state0)
    return cast(SteadyState, found)


def _iterate(settings: Settings, circuit: Circuit, z: Array, state0: State | None) -> SteadyState:
    xp = array_namespace(z)
    backend = get_backend(xp)
    variant, tolerance, max_iterations, newton = settings
    free = tree_map(backend.stop_gradient, circuit)
    free_z = backend.stop_gradient(z)
    start = tree_map(backend.stop_gradient, state0)
    if start is None:
        start = identity_fixed_point(xp, free, free_z, variant)
    drive, floor = free.b * free_z, (free.b0 * free.sigma) ** 2
    wide = xp.zeros_like(start.y + start.a + drive + floor)
    if free.w_r is not None:  # it may have batch axes of its own
        wide = wide + 0.0 * free.w_r[..., 0]
    drive, floor = drive + wide, floor + wide
    start = State(start.y + wide, xp.where(start.a > floor, start.a + wide, floor))
    if state0 is not None and newton:  # what follows knows nothing of y: without a drive it would lead to y = 0
        near, off = newton_in_both(xp, free, start, free_z, variant, tolerance, steps=_STEPS_NEARBY)
        away = xp.max(xp.abs(near.y - start.y), axis=-1)
        kept = (off <= tolerance) & (away <= 0.1 * xp.max(xp.abs(start.y), axis=-1))
        kept = kept & xp.all(xp.abs(near.a - start.a) <= 0.1 * start.a, axis=-1)
        start = State(*(xp.where(kept[..., None], *parts) for parts in zip(near, start, strict=True)))

    bends = any(VARIANTS[variant][:2])  # W_r without the units that are silent
    right = drive[..., None]
    if newton:
        right = xp.concat([right, widen(xp, identity(xp, drive), tuple(drive.shape[:-1]))], axis=-1)

    def solved(a: Array, slope: Array) -> tuple[Array, Array]:
        """The y that belongs to a, and for Newton's method M(a)^-1."""
        both = solve(xp, _matrix_of_y(xp, a, slope), right)
        return both[..., 0], both[..., 1:]

    def direction(y: Array, a: Array, slope: Array, inverted: Array) -> tuple[Array, Array]:
        """The image of a, and Newton's step."""
        image = _pool(xp, free, floor, a, y, variant)
        return image, solve_vector(xp, _newton_matrix(xp, free, a, y, slope, inverted, variant), image - a)

    def measure(y: Array, a: Array) -> Any:
        state = State(y, a)
        found = relative_imbalance(xp, balance(xp, free.w_r, free.w, drive, floor, state, variant), state, drive, floor)
        return float(found) if one else found

    residual: Any = relative_residual(xp, free, start, free_z, variant)
    zeros: Any = xp.zeros(residual.shape, dtype=xp.int32, device=device(z))
    ones: Any = xp.ones_like(residual)
    one = alone(xp, residual)
    where, invert, column = deciders(xp, one)
    if one:
        residual, zeros, ones = float(residual), 0, 1.0
    kernel = kernel_for(SteadyState, xp) if newton else None
    fast = None if kernel is None else kernel(xp, variant, free, drive, floor)
    if fast is not None:
        solved, direction, measure = fast

    def body(search: _Search) -> _Search:
        """A damped Newton step, or where damping is 0 one plain iteration.

        The iteration is y = M(a)^-1 b z, a <- (b0 sigma)**2 + W (a resp(y)**2);
        y is brought up to date with the new a before the residual is taken.
        """
        (y, a), inverted, damping = search.state, search.inverted, search.damping
        slope = recurrent_slope(xp, free.w_r, y, variant)
        if newton and not bends:
            y = matvec(xp, inverted, drive)
        else:
            y, inverted = solved(a, slope)
        if newton:
            image, change = direction(y, a, slope, inverted)
            moved = a + column(damping) * change
            moved = xp.where(xp.isfinite(moved) & (column(damping) > 0), moved, image)
        else:
            moved = _pool(xp, free, floor, a, y, variant)
        moved = xp.where(moved > floor, moved, floor)
        y, inverted = solved(moved, recurrent_slope(xp, free.w_r, y, variant))
        residual = measure(y, moved)

        finite, better = residual < math.inf, residual < search.residual  # false for NaN
        # The plain iteration need not decrease the residual at every step.
        accept = search.active & (better | ((damping == 0) & finite))
        lost = invert(finite) & (damping == 0)
        kept = column(accept)
        state = State(where(kept, y, search.state.y), where(kept, moved, a))
        inverted = where(column(kept), inverted, search.inverted)
        current = where(accept, residual, search.residual)
        plain, patience = search.plain, search.patience
        if newton:
            grown = where(damping > 0.5, ones, 2.0 * damping)
            shrunk = where(damping < 0.04, 0.0 * ones, 0.25 * damping)
            # ever longer runs of plain steps between the attempts with Newton
            plain = where(damping == 0, plain - 1, plain)
            fresh = where(plain > 0, 0.0 * ones, ones)
            following = where(damping == 0, fresh, where(better, grown, shrunk))
            gives_up = (damping > 0) & (following == 0)
            plain = where(gives_up, patience, plain)
            patience = where(gives_up, 2 * patience, patience)
            damping = following
        iterations = search.iterations + where(search.active, zeros + 1, zeros)
        active = search.active & invert((current <= tolerance) | lost)
        return _Search(state, inverted, current, damping, plain, patience, iterations, active)

    inverted = solved(start.a, recurrent_slope(xp, free.w_r, start.y, variant))[1]
    search = _Search(
        start, inverted, residual, float(newton) * ones, zeros, zeros + 1, zeros, invert(residual <= tolerance)
    )
    going: Any = (lambda s: s[-1]) if one else (lambda s: xp.any(s[-1]))
    search = _Search(*backend.while_loop(going, body, search, max_steps=max_iterations))
    residual, iterations = (
        xp.asarray(value, dtype=dtype, device=device(z)) if one else value
        for value, dtype in ((search.residual, z.dtype), (search.iterations, xp.int32))
    )
    converged = residual <= tolerance

    def polish(c: Any) -> Any:
        """One Newton step more, for the last digits, where it is a better one."""
        # what did not converge starts over: its own state may overflow
        old = State(*(xp.where(converged[..., None], *parts) for parts in zip(c[0], start, strict=True)))
        slope = recurrent_slope(xp, free.w_r, old.y, variant)
        inverted = inverse(xp, _matrix_of_y(xp, old.a, slope))
        y = matvec(xp, inverted, drive)
        minus_dg = _newton_matrix(xp, free, old.a, y, slope, inverted, variant)
        a = old.a + solve_vector(xp, minus_dg, _pool(xp, free, floor, old.a, y, variant) - old.a)
        y = solve_vector(xp, _matrix_of_y(xp, a, slope), drive)
        residual = relative_residual(xp, free, State(y, a), free_z, variant)
        sound = converged & ((residual <= tolerance) | (residual <= c[1]))
        state = State(*(xp.where(sound[..., None], *parts) for parts in zip((y, a), c[0], strict=True)))
        return state, xp.where(sound, residual, c[1])

    # a few thousand roundings are not worth one
    enough = 1e3 * float(xp.finfo(z.dtype).eps)
    state, residual = backend.while_loop(
        lambda c: xp.any(converged & (c[1] > enough)), polish, (State(*search.state), residual), max_steps=1
    )
    return SteadyState(State(*state), converged, iterations, residual)


def check_range(xp: Any, circuit: Circuit, z: Array) -> None:
    """ValueError where a, ten times over and per second, leaves the range of the dtype: starts and Jacobians hold it.

    Where W_r = I that is; otherwise a is about as large.
    """
    with quiet(get_backend(xp)):
        a = identity_fixed_point(xp, circuit, z, "main").a
        tau = circuit.tau_a + 0.0 * circuit.tau_y
        largest = 10.0 * a * (1.0 + xp.max(circuit.w)) / xp.where(tau < 1.0, tau, 1.0)
    if not bool(xp.all(xp.isfinite(largest))):
        dtype = str(z.dtype).rpartition(".")[2]
        raise ValueError(
            f"z must leave fixed points well within the range of {dtype}, but a of about (b0 sigma)**2 + W (b z)**2 "
            "does not lie there; scale z, b, w or sigma"
        )


def fixed_points(circuit: Circuit, z: Array, *, variant: str = "main") -> tuple[FixedPoint, ...]:
    """Every fixed point of a one-neuron circuit, each with its stability.

    Parameters
    ----------
    circuit : Circuit
        With n = 1 and no batch axes; any real w_r.
    z : array (1,)
        Input drive.
    variant : {"main", "rectified", "rectified_recurrence"}

    Returns
    -------
    tuple of FixedPoint
        In order of rising a, then y. Empty where the circuit has none.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError if n is not 1, and where
        fixed points leave the range of the dtype.

    Notes
    -----
    With s = sqrt(a), the fixed points are the roots s > 0 of::

        (s**2 - (b0 sigma)**2) (1 - w_r + w_r s)**2 = w s**2 (b z)**2,   y = b z / (1 - w_r + w_r s)

    Taking the root of both sides leaves a line on the left and a convex,
    falling function of s on the right: one crossing with one sign of
    1 - w_r + w_r s, and none or two with the other, bracketed by the lowest
    point of their sum. No root is missed, and none loses digits where the
    input is tiny. The rectified variants are treated piece by piece.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit, z = oc.Circuit(np.array([[2.0]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> [(round(float(p.state.y[0]), 3), bool(p.stable)) for p in oc.fixed_points(circuit, z)]
    [(-0.569, False), (-0.979, False), (0.998, True)]
    """
    checks.one_of("variant", variant, VARIANTS)
    xp = validate_circuit(circuit, values=True, z=z)
    checks.values(xp, "z", z, "any")
    circuit, z = prepare(xp, circuit, z)
    circuit = without_operators(xp, circuit, z)
    if circuit.w.shape != (1, 1) or z.shape != (1,):
        raise ValueError(
            "fixed_points is for one neuron without batch axes: w must have shape (1, 1) and z shape (1,), "
            f"got {tuple(circuit.w.shape)} and {tuple(z.shape)}; for more neurons use steady_state"
        )
    for name, value in circuit._asdict().items():
        if value is not None and value.ndim > circuit.spec[name].axes:
            raise ValueError(
                f"fixed_points is for one neuron without batch axes: {name} must have none, "
                f"got shape {tuple(value.shape)}; for batches use steady_state"
            )
    check_range(xp, circuit, z)
    w_r = 1.0 if circuit.w_r is None else float(circuit.w_r[0, 0])
    w, drive = float(circuit.w[0, 0]), _scalar(circuit.b) * float(z[0])
    floor = _scalar(circuit.b0) * _scalar(circuit.sigma)
    pairs = sorted(roots_of_variant(w_r, w, drive, floor, variant), key=lambda pair: (pair[1], pair[0]))
    points = []
    for y, a in pairs:
        state = State(
            xp.asarray([y], dtype=z.dtype, device=device(z)),
            xp.asarray([a], dtype=z.dtype, device=device(z)),
        )
        abscissa = float(_spectral_abscissa(xp, circuit, state, variant))
        points.append(FixedPoint(state, abscissa < 0, abscissa))
    return tuple(points)


def _scalar(value: Array) -> float:
    return float(to_numpy(value).reshape(-1)[0])
