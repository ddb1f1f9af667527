"""Fixed points: closed form, iteration, Newton, and every root for one neuron.

All solvers eliminate y. Given a, the first equation is linear in y,

    M(a) y = b z,   M(a) = I - diag(1 - sqrt(a)) R,

with R = W_r (for the rectified variants R also masks the silent units), and
what remains is G(a) = (b0 sigma)**2 + W (a resp(y(a))**2) - a = 0 with
a >= (b0 sigma)**2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import cache, partial
from typing import Any, NamedTuple, cast

from array_api_compat import device

from . import checks
from .backend import Array, get_backend, to_numpy, tree_leaves, tree_map
from .circuit import (
    VARIANTS,
    Circuit,
    State,
    has_closed_form,
    identity,
    identity_fixed_point,
    imbalance,
    is_identity,
    of_variant,
    pooled_response,
    prepare,
    recurrent_slope,
    relu,
    sqrt_relu,
    validate_circuit,
    validate_state,
    without_time,
)
from .implicit import differentiable
from .linalg import bicgstab, diagonal_matrix, matmul, solve, solve_vector
from .model import Layout, check_model, check_products, field_jacobian, full, rest, state_fields, validate
from .stability import _spectral_abscissa
from .weights import Operator, matvec

METHODS = ("auto", "closed_form", "iteration", "newton")


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
    """

    state: Any
    converged: Array
    iterations: Array
    residual: Array


class FixedPoint(NamedTuple):
    """One fixed point of a one-neuron circuit.

    Attributes
    ----------
    state : State of arrays (1,)
    stable : bool
        Whether all eigenvalues of the Jacobian have negative real part.
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
) -> SteadyState:
    """Fixed point of a circuit, or of any other model, under a constant input drive.

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
        Start of the iterations; by default the fixed point for W_r = I, and for
        other models rest.

    Returns
    -------
    SteadyState
        With ``converged``, ``iterations`` and ``residual`` for every circuit of
        the batch. Non-convergence is a result, not an error. The state is
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
        return _of_any_model(made, z, method, tol, max_iterations, state0)
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

    if any(isinstance(part, Operator) for part in circuit[:2]):
        return _by_products(xp, circuit, z, method, variant, tolerance, max_iterations, state0)
    unit = is_identity(xp, circuit.w_r) if has_closed_form(variant) else False
    if method == "closed_form" and not has_closed_form(variant):
        raise ValueError(f"variant {variant!r} has no closed form; use 'newton', 'iteration' or 'auto'")
    if method == "closed_form" and unit is False:
        raise ValueError(
            "method 'closed_form' needs w_r to be the identity (or None); "
            "use 'newton', 'iteration' or 'auto' for this w_r"
        )
    if method == "closed_form" or (method == "auto" and unit):
        state = identity_fixed_point(xp, circuit, z, variant)
        residual = relative_residual(xp, circuit, state, z, variant)
        iterations = xp.zeros(residual.shape, dtype=xp.int32, device=device(z))
        # Round-off of a sum of many terms is not a failure to converge.
        return SteadyState(state, residual <= max(tolerance, 1e3 * eps), iterations, residual)
    backend = get_backend(xp)
    search = _Settings(variant, tolerance, max_iterations, method != "iteration")
    concrete = all(backend.is_concrete(leaf) for leaf in tree_leaves((circuit, z, state0)))
    solve: Callable[..., Any] = _compiled(cast(Hashable, backend)) if concrete else _solve
    found = SteadyState(*solve(search, circuit, z, state0))
    return found._replace(state=State(*found.state))


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
    xp = checks.namespace({"z": z})
    backend = get_backend(xp)
    batch = full(xp, circuit, z)
    state = identity_fixed_point(xp, circuit, batch, "main") if state0 is None else state0
    residual = relative_residual(xp, circuit, state, z, "main")
    if not all(backend.is_concrete(leaf) for leaf in (z, residual)):
        raise ValueError("steady_state with a w_r that is an operator looks at values; call it outside of jit and vmap")
    if batch.ndim > 1:
        if any(getattr(part, "ndim", 0) > 1 for part in circuit if not isinstance(part, Operator)):
            raise ValueError("a circuit with operators takes a batch of drives, but must have no batch axes itself")
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


def _of_any_model(made: Any, z: Array, method: str, tol: float | None, max_iterations: int, state0: Any) -> SteadyState:
    """The model's own solver, or pseudo-transient continuation from rest."""
    check_model(made, "circuit")
    own = getattr(made, "equilibrium", None)
    if own is not None:
        if state0 is not None:
            raise ValueError(f"state0 must be None: a {type(made).__name__} has a solver of its own")
        return own(z, method=method, tol=tol, max_iterations=max_iterations)  # type: ignore[no-any-return]
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
    return cast(SteadyState, found)


def _continuation(tolerance: float, max_iterations: int, made: Any, z: Array, state0: Any) -> SteadyState:
    """Pseudo-transient continuation of a prepared model."""
    xp = checks.namespace({"z": z})
    wide = full(xp, made, z)
    start = rest(xp, made, wide) if state0 is None else state0
    start = tree_map(lambda part: part + xp.zeros_like(wide), start)
    backend = get_backend(xp)

    def frozen(leaf: Any) -> Any:
        return leaf if isinstance(leaf, Operator) else backend.stop_gradient(leaf)

    free_model, free_z, free = (tree_map(frozen, part) for part in (made, wide, start))
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


def relative_residual(xp: Any, circuit: Circuit, state: State, z: Array, variant: str) -> Array:
    """Largest imbalance over the neurons, relative to the largest term of its equation; shape (...)."""
    found = imbalance(xp, circuit, state, z, variant)
    drive = circuit.b * z
    scale_y = xp.max(xp.abs(state.y), axis=-1) + xp.max(xp.abs(drive), axis=-1)
    residual_y = xp.max(xp.abs(found.y), axis=-1)
    silent = scale_y == 0
    relative_y = xp.where(silent, residual_y, residual_y / xp.where(silent, xp.ones_like(scale_y), scale_y))
    scale_a = xp.abs(state.a) + (circuit.b0 * circuit.sigma) ** 2
    relative_a = xp.max(xp.abs(found.a) / scale_a, axis=-1)
    worst = xp.where(relative_a > relative_y, relative_a, relative_y)
    # a comparison with NaN is false: let NaN of either equation through
    return worst + 0.0 * (relative_a + relative_y)


def _eliminated_y(xp: Any, circuit: Circuit, a: Array, z: Array, slope: Array) -> tuple[Array, Array]:
    """y from M(a) y = b z, and M."""
    gate = 1.0 - sqrt_relu(xp, a)
    drive = circuit.b * z
    drive = drive + xp.zeros_like(a)
    matrix = identity(xp, a) - gate[..., None] * slope
    return solve_vector(xp, matrix, drive), matrix


def _pool(xp: Any, circuit: Circuit, a: Array, y: Array, variant: str) -> Array:
    response = pooled_response(xp, y, variant)
    return (circuit.b0 * circuit.sigma) ** 2 + matvec(xp, circuit.w, relu(xp, a) * response * response)


def _newton_matrix(xp: Any, circuit: Circuit, a: Array, y: Array, slope: Array, matrix: Array, variant: str) -> Array:
    """-dG/da = I - W diag(resp**2) - W diag(2 a resp) dy/da."""
    response = pooled_response(xp, y, variant)
    root = sqrt_relu(xp, a)
    recurrent = matvec(xp, slope, y)
    dy_da = -solve(xp, matrix, diagonal_matrix(xp, recurrent / (2.0 * root)))
    w = circuit.w
    return (
        identity(xp, a)
        - w * (response * response)[..., None, :]
        - matmul(xp, w * (2.0 * a * response)[..., None, :], dy_da)
    )


class _Settings(NamedTuple):
    """Everything about a search that is not an array: hashable, so that a compiler can specialize on it."""

    variant: str
    tolerance: float
    max_iterations: int
    newton: bool


@cache
def _compiled(backend: Any) -> Callable[..., Any]:
    """The whole search, compiled once per backend, settings and shapes, where the library compiles loops."""
    return backend.compile(_solve, static=(0,), loops=True)


class _Search(NamedTuple):
    """Carry of the solver's loop; every leaf has the batch axes."""

    state: State
    residual: Array
    candidate: State
    damping: Array
    plain: Array  # iterations still to be made before Newton's method gets its next chance
    patience: Array  # how many, the next time that Newton's method makes no progress
    iterations: Array
    active: Array


def _solve(settings: _Settings, circuit: Circuit, z: Array, state0: State | None) -> SteadyState:
    """The fixed point with its derivatives: the time constants have no part in it."""
    xp = checks.namespace({"z": z})
    model = of_variant(without_time(xp, circuit), settings.variant)
    found = differentiable(xp, partial(_search, settings), model, z, state0)
    return cast(SteadyState, found)


def _search(settings: _Settings, circuit: Circuit, z: Array, state0: State | None) -> SteadyState:
    xp = checks.namespace({"z": z})
    backend = get_backend(xp)
    variant, tolerance, max_iterations, newton = settings
    free = tree_map(backend.stop_gradient, circuit)
    free_z = backend.stop_gradient(z)
    start = identity_fixed_point(xp, free, free_z, variant)
    floor = (free.b0 * free.sigma) ** 2 + xp.zeros_like(start.a)
    if state0 is None:
        # batch axes that only W_r has
        extra = xp.zeros_like(floor) if free.w_r is None else 0.0 * free.w_r[..., 0]
    else:
        state0 = tree_map(backend.stop_gradient, state0)
        extra = 0.0 * (state0.y + state0.a) + (0.0 if free.w_r is None else 0.0 * free.w_r[..., 0])
        start = state0
    start = State(start.y + extra, start.a + extra)
    floor = floor + extra
    start = State(start.y + xp.zeros_like(floor), xp.where(start.a > floor, start.a + xp.zeros_like(floor), floor))

    def advance(state: State, damping: Array) -> State:
        """The next candidate: a damped Newton step, or where damping is 0 one plain iteration.

        The iteration is y = M(a)^-1 b z, a <- (b0 sigma)**2 + W (a resp(y)**2);
        y is brought up to date with the new a before the residual is taken.
        """
        slope = recurrent_slope(xp, free.w_r, state.y, variant)
        y, matrix = _eliminated_y(xp, free, state.a, free_z, slope)
        image = _pool(xp, free, state.a, y, variant)
        plain = image
        if newton:
            minus_dg = _newton_matrix(xp, free, state.a, y, slope, matrix, variant)
            change = solve_vector(xp, minus_dg, image - state.a)
            full = state.a + damping[..., None] * change
            usable = xp.isfinite(full) & (damping[..., None] > 0)
            plain = xp.where(usable, full, image)
        a = xp.where(plain > floor, plain, floor)
        slope = recurrent_slope(xp, free.w_r, y, variant)
        y, _ = _eliminated_y(xp, free, a, free_z, slope)
        return State(y, a)

    def choose(search: _Search) -> _Search:
        residual = relative_residual(xp, free, search.candidate, free_z, variant)
        better = residual < search.residual  # false for NaN
        # The plain iteration need not decrease the residual at every step.
        accept = search.active & (better | ((search.damping == 0) & xp.isfinite(residual)))
        state = State(
            xp.where(accept[..., None], search.candidate.y, search.state.y),
            xp.where(accept[..., None], search.candidate.a, search.state.a),
        )
        current = xp.where(accept, residual, search.residual)
        grown = xp.where(search.damping > 0.5, xp.ones_like(search.damping), 2.0 * search.damping)
        shrunk = 0.25 * search.damping
        shrunk = xp.where(shrunk < 0.01, xp.zeros_like(shrunk), shrunk)
        damping, plain, patience = search.damping, search.plain, search.patience
        if newton:
            # ever longer runs of plain steps between the attempts with Newton
            plain = xp.where(damping == 0, plain - 1, plain)
            fresh = xp.where(plain > 0, xp.zeros_like(grown), xp.ones_like(grown))
            next_damping = xp.where(damping == 0, fresh, xp.where(better, grown, shrunk))
            gives_up = (damping > 0) & (next_damping == 0)
            plain = xp.where(gives_up, patience, plain)
            patience = xp.where(gives_up, 2 * patience, patience)
            damping = next_damping
        lost = ~xp.isfinite(residual) & (search.damping == 0)
        iterations = search.iterations + xp.astype(search.active, search.iterations.dtype)
        active = search.active & ~(current <= tolerance) & ~lost
        return _Search(state, current, search.candidate, damping, plain, patience, iterations, active)

    def body(search: _Search) -> _Search:
        search = search._replace(candidate=advance(search.state, search.damping))
        return choose(search)

    residual = relative_residual(xp, free, start, free_z, variant)
    ones = xp.ones_like(residual)
    zeros = xp.zeros(residual.shape, dtype=xp.int32, device=device(z))
    damping = ones if newton else 0.0 * ones
    search = _Search(start, residual, start, damping, zeros, zeros + 1, zeros, ~(residual <= tolerance))

    search = backend.while_loop(lambda s: xp.any(s.active), body, search, max_steps=max_iterations)
    search = _Search(*search)
    state = State(*search.state)
    converged = search.residual <= tolerance

    def polish(c: Any) -> Any:
        """One Newton step more, for the last digits, where it is a better one."""
        # what did not converge starts over: its own state may overflow
        old = State(*(xp.where(converged[..., None], *parts) for parts in zip(c[0], start, strict=True)))
        slope = recurrent_slope(xp, free.w_r, old.y, variant)
        y, matrix = _eliminated_y(xp, free, old.a, free_z, slope)
        minus_dg = _newton_matrix(xp, free, old.a, y, slope, matrix, variant)
        a = old.a + solve_vector(xp, minus_dg, _pool(xp, free, old.a, y, variant) - old.a)
        y, _ = _eliminated_y(xp, free, a, free_z, slope)
        residual = relative_residual(xp, free, State(y, a), free_z, variant)
        sound = converged & ((residual <= tolerance) | (residual <= c[1]))
        state = State(*(xp.where(sound[..., None], *parts) for parts in zip((y, a), c[0], strict=True)))
        return state, xp.where(sound, residual, c[1])

    # a few thousand roundings are not worth one
    enough = 1e3 * float(xp.finfo(z.dtype).eps)
    state, residual = backend.while_loop(
        lambda c: xp.any(converged & (c[1] > enough)), polish, (state, search.residual), max_steps=1
    )
    return SteadyState(State(*state), converged, search.iterations, residual)


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
        Naming the argument that is wrong; ValueError if n is not 1.

    Notes
    -----
    With s = sqrt(a), the fixed points are the roots s > 0 of::

        (s**2 - (b0 sigma)**2) (1 - w_r + w_r s)**2 = w s**2 (b z)**2,   y = b z / (1 - w_r + w_r s)

    Taking the root of both sides leaves a line on the left and a convex,
    falling function of s on the right: one crossing with one sign of
    1 - w_r + w_r s, and none or two with the other, bracketed by the lowest
    point of their sum. No root is missed, and none loses digits where the
    input is tiny. The rectified variants are treated piece by piece.
    """
    checks.one_of("variant", variant, VARIANTS)
    xp = validate_circuit(circuit, values=True, z=z)
    checks.values(xp, "z", z, "any")
    if circuit.w.shape != (1, 1) or z.shape != (1,):
        raise ValueError(
            "fixed_points is for one neuron without batch axes: w must have shape (1, 1) and z shape (1,), "
            f"got {tuple(circuit.w.shape)} and {tuple(z.shape)}; for more neurons use steady_state"
        )
    circuit, z = prepare(xp, circuit, z)
    w_r = 1.0 if circuit.w_r is None else float(circuit.w_r[0, 0])
    w, drive = float(circuit.w[0, 0]), _scalar(circuit.b) * float(z[0])
    floor = _scalar(circuit.b0) * _scalar(circuit.sigma)
    pairs = sorted(_roots_of_variant(w_r, w, drive, floor, variant), key=lambda pair: (pair[1], pair[0]))
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


def _roots_of_variant(w_r: float, w: float, drive: float, floor: float, variant: str) -> list[tuple[float, float]]:
    """All (y, a) of one neuron: solve on each side of the kink, keep what lies there."""
    flags = VARIANTS[variant]
    if not any(flags):
        return _linear_roots(w_r, w, drive, floor, pooled=True)
    found = []
    for sign in (1, -1):  # the sign of y
        source = sign > 0 or not flags.source
        on = source and (w_r * sign > 0 or not flags.drive)
        pooled = sign > 0 or not flags.response
        for y, a in _linear_roots(w_r if on else 0.0, w, drive, floor, pooled=pooled):
            if y * sign > 0 or (y == 0 and sign > 0):
                found.append((y, a))
    return found


def _linear_roots(w_r: float, w: float, drive: float, floor: float, *, pooled: bool) -> list[tuple[float, float]]:
    """(y, a) with y (1 - w_r + w_r s) = drive and a = floor**2 + [pooled] w a y**2."""
    if not pooled or w == 0.0:
        denominator = 1.0 - w_r + w_r * floor
        return [(drive / denominator, floor**2)] if denominator != 0.0 else []
    if drive == 0.0:
        found = [(0.0, floor**2)]
        s = (w_r - 1.0) / w_r if w_r != 0.0 else -1.0
        if s > floor:  # the symmetric pair
            y = math.sqrt((s * s - floor**2) / (w * s * s))
            found += [(-y, s * s), (y, s * s)]
        return found
    if w_r == 0.0:
        rest = 1.0 - w * drive**2
        return [(drive, floor**2 / rest)] if rest > 0.0 else []
    # |1 - w_r + w_r s| = h: with s = floor + t, q + r t = h has one root and q + r t = -h none or two
    r = abs(w_r)
    q = math.copysign(1.0, w_r) * (1.0 - w_r + w_r * floor)
    root_c = math.sqrt(w) * abs(drive)

    def h(t: float) -> float:
        return root_c * (floor + t) / math.sqrt(t * (2.0 * floor + t))

    # there q + r t > 1.2 root_c, and h < 1.2 root_c
    far = max(floor, (abs(q) + 2.0 * root_c) / r)
    roots = [(1.0, _bisect(lambda t: q + r * t - h(t), 0.0, far))]
    # q + r t + h is convex; its lowest point
    gap = (root_c * floor**2 / r) ** (2.0 / 3.0)
    lowest = gap / (math.sqrt(floor**2 + gap) + floor)
    if lowest > 0.0 and q + r * lowest + h(lowest) < 0.0:
        roots.append((-1.0, _bisect(lambda t: -(q + r * t + h(t)), 0.0, lowest)))
        roots.append((-1.0, _bisect(lambda t: q + r * t + h(t), lowest, -q / r)))
    return [(drive / ((side if w_r > 0 else -side) * h(t)), (floor + t) ** 2) for side, t in roots]


def _bisect(rising: Callable[[float], float], low: float, high: float) -> float:
    """The root of a function that is negative just above ``low`` and positive at ``high``."""
    for _ in range(1100):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if rising(middle) < 0.0:
            low = middle
        else:
            high = middle
    return high
