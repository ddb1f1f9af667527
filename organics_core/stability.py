"""Linearization, spectra, and the certificate of unconditional stability.

Source: Rawat, Heeger & Martiniani (NeurIPS 2024), the theorem on W_r = I.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from . import checks
from .backend import Array, get_backend, to_numpy
from .circuit import (
    VARIANTS,
    Circuit,
    State,
    circuit_jacobian,
    identity_fixed_point,
    is_identity,
    kinks,
    of_variant,
    prepare,
    share_pool,
    validate_circuit,
    validate_state,
)
from .linalg import broadcast_shapes, diagonal_matrix, solve_vector, transpose
from .model import Layout, block_matrix, check_model, check_products, field_jacobian, state_fields, validate
from .weights import Operator, dense, matvec


class Linear(NamedTuple):
    """A model around a state, checked and prepared.

    Attributes
    ----------
    xp : module
    model : Model
    state : tuple of arrays (..., n)
    z : array (..., n)
    """

    xp: Any
    model: Any
    state: Any
    z: Array

    @property
    def jacobian(self) -> Array:
        """The Jacobian (..., N, N)."""
        time = self.xp.zeros((), dtype=self.z.dtype, device=device(self.z))
        return field_jacobian(self.xp, self.model, time, self.state, self.z)


def linearized(
    circuit: Any, state: Any, variant: str, z: Array | None, *, values: bool = False, **others: Array
) -> Linear:
    """Check a model, a state and arrays (..., n) that go with them.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError where the Jacobian may depend on z and z is not given.
    """
    made = of_variant(circuit, variant)
    check_model(made, "circuit")
    fields = state_fields(made, state)
    drive = {} if z is None else {"z": z}
    xp = validate(made, values=values, name="circuit", **fields, **drive, **others)
    if z is None and not getattr(made, "additive", False):
        raise ValueError(f"z must be given: the Jacobian of a {type(made).__name__} may depend on the input drive")
    if values:
        for name, value in {**fields, **drive}.items():
            checks.values(xp, name, value, "any")
    made, *parts = prepare(xp, made, *fields.values(), *drive.values())
    parts, drives = parts[: len(fields)], parts[len(fields) :]
    shape = broadcast_shapes(*(tuple(part.shape) for part in (*parts, *drives)))
    parts = [part if tuple(part.shape) == shape else xp.broadcast_to(part, shape) for part in parts]
    return Linear(xp, made, made.state(*parts), drives[0] if drives else xp.zeros_like(parts[0]))


def jacobian(circuit: Any, state: Any, *, variant: str = "main", z: Array | None = None) -> Array:
    """Jacobian of the vector field: analytically where the model has one, else by the library's derivatives.

    Parameters
    ----------
    circuit : Circuit or Model
    state : State of arrays (..., n)
    variant : {"main", "rectified", "rectified_recurrence"}
        Of a Circuit.
    z : array (..., n), optional
        Input drive; for models whose Jacobian depends on it, which those of
        Circuit and V1Circuit do not.

    Returns
    -------
    array (..., N, N)
        In the order of the state's parts, (y, a), per second. At a kink (y = 0
        of a rectified unit, a = 0) it is the derivative of the silent side.
        Where a library has no derivatives (numpy) that of a model without an
        analytic one is a central difference of order 8, whose steps follow the
        size of the components and an estimate of its error.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    For the main circuit, with s = sqrt(a) > 0::

        J = [ (-I + diag(1 - s) W_r) / tau_y     -diag(W_r y / (2 s)) / tau_y ]
            [ 2 W diag(a y) / tau_a              (-I + W diag(y**2)) / tau_a  ]
    """
    return linearized(circuit, state, variant, z).jacobian


def spectrum(circuit: Any, state: Any, *, variant: str = "main", z: Array | None = None) -> Array:
    """Eigenvalues of the Jacobian.

    Parameters
    ----------
    circuit, state, variant, z
        As in :func:`jacobian`.

    Returns
    -------
    complex array (..., N)
        Per second, in no particular order. At a kink those of the silent side,
        as :func:`jacobian`; :func:`spectral_abscissa` looks at all sides.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    linear = linearized(circuit, state, variant, z)
    return get_backend(linear.xp).eigvals(linear.jacobian)


def spectral_abscissa(circuit: Any, state: Any, *, variant: str = "main", z: Array | None = None) -> Array:
    """Largest real part of the eigenvalues of the Jacobian; negative means locally stable.

    Parameters
    ----------
    circuit, state, variant, z
        As in :func:`jacobian`.

    Returns
    -------
    array (...)
        Per second. NaN where the state is not finite. At a kink (a rectified
        unit at y = 0, or a rectified recurrent drive of 0, both up to
        eps**0.75 of the other terms) the largest of all the linear pieces that
        meet there: negative only where every piece decays. NaN where more than
        8 kinks meet, of units that drive each other, and none of the pieces
        that were looked at grows; while tracing, where more than one meets.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    Lyapunov's indirect method: stable where max Re lambda(J) < 0.
    """
    linear = linearized(circuit, state, variant, z)
    return abscissa_of(linear)


def abscissa_of(linear: Linear) -> Array:
    """Spectral abscissa of a model around a state, unchecked."""
    if isinstance(linear.model, Circuit):
        return _spectral_abscissa(linear.xp, linear.model, linear.state, linear.model.variant)
    return linear.xp.max(linear.xp.real(get_backend(linear.xp).eigvals(linear.jacobian)), axis=-1)


def _spectral_abscissa(xp: Any, circuit: Circuit, state: State, variant: str) -> Array:
    """The largest of all pieces around a kink; NaN where some were not looked at and the others decay."""
    pooled = share_pool(xp, circuit)

    def of_piece(slope: Array | None) -> Array:
        jac = circuit_jacobian(xp, circuit, state, variant, pooled=pooled, slope=slope)
        return xp.max(xp.real(get_backend(xp).eigvals(jac)), axis=-1)

    if any(VARIANTS[variant][:2]):
        pieces = kinks(xp, circuit, state, variant)
        abscissa = of_piece(pieces.slopes[0])
        for slope in pieces.slopes[1:]:
            other = of_piece(slope)
            abscissa = xp.where(other <= abscissa, abscissa, other)  # NaN stays
        abscissa = xp.where(pieces.complete | (abscissa >= 0), abscissa, xp.full_like(abscissa, xp.nan))
    else:
        abscissa = of_piece(None)
    if not pooled:
        return abscissa
    rest = -1.0 / (circuit.tau_a if circuit.tau_a.ndim == 0 else circuit.tau_a[..., 0])
    return xp.where(abscissa < rest, rest + xp.zeros_like(abscissa), abscissa)  # NaN stays


def jacobian_product(circuit: Any, state: Any, direction: Any, *, variant: str = "main", z: Array | None = None) -> Any:
    """The Jacobian times a vector; never the matrix where the model has its own product, as circuits have.

    At a kink it is the derivative of the silent side, as in :func:`jacobian`.

    Parameters
    ----------
    circuit, state, variant, z
        As in :func:`jacobian`; weights may be operators.
    direction : State of arrays (..., n)

    Returns
    -------
    State of arrays (..., n)

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    made = of_variant(circuit, variant)
    check_model(made, "circuit")
    fields = state_fields(made, direction, "direction")
    linear = linearized(circuit, state, variant, z, **fields)
    parts = [linear.xp.astype(part, linear.z.dtype, copy=False) for part in fields.values()]
    return _product(linear, linear.model.state(*parts))


def _product(linear: Linear, direction: Any) -> Any:
    xp, made, state, z = linear
    time = xp.zeros((), dtype=z.dtype, device=device(z))
    if hasattr(made, "product"):
        return made.product(xp, time, state, z, direction)
    layout = Layout.of(state)
    moved = matvec(xp, linear.jacobian, layout.pack(xp, direction))
    return layout.unpack(moved)


def leading_eigenvalues(
    circuit: Any,
    state: Any,
    *,
    count: int | None = None,
    tol: float = 1e-8,
    max_iterations: int = 1000,
    variant: str = "main",
    z: Array | None = None,
) -> np.ndarray[Any, Any]:
    """Eigenvalues of the Jacobian with the largest real parts, by Arnoldi's method (needs scipy).

    Parameters
    ----------
    circuit : Circuit or Model
        Large, with weights that are operators, for instance.
    state : State of arrays (n,)
        A fixed point, from :func:`steady_state`.
    count : int
        How many, below N - 1 for the N = 2n components of the state; 6 by
        default, or as many as there can be.
    tol : float
        Relative accuracy.
    max_iterations : int
        Restarts of the method.
    variant, z
        As in :func:`jacobian`.

    Returns
    -------
    numpy complex array (count,)
        Per second, in order of falling real part; at a kink those of the silent
        side, as :func:`jacobian`.

    Raises
    ------
    ImportError
        Without scipy.
    TypeError, ValueError
        Naming the argument that is wrong.
    ArithmeticError
        Where the method did not converge: eigenvalues that lie close together
        need more restarts or a larger ``tol``.
    """
    try:
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs
    except ImportError as error:
        raise ImportError("leading_eigenvalues needs scipy; install it with: pip install scipy") from error
    linear = linearized(circuit, state, variant, z)
    xp, layout = linear.xp, Layout.of(linear.state)
    like, total = linear.state[0], sum(layout.sizes)
    if like.ndim != 1:
        raise ValueError(f"state must have no batch axes here, got arrays of shape {tuple(like.shape)}")
    count = min(6, total - 2) if count is None else checks.positive_integer("count", count)
    if count > total - 2 or count < 1:
        raise ValueError(f"count must be below N - 1 = {total - 1}, got {count}")
    if not get_backend(xp).is_concrete(like):
        raise ValueError("leading_eigenvalues cannot be traced; call it outside of jit")

    def product(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        packed = xp.asarray(np.ascontiguousarray(x), dtype=like.dtype, device=device(like))
        return np.concatenate([to_numpy(v) for v in _product(linear, layout.unpack(packed))])

    operator = LinearOperator((total, total), matvec=lambda x: product(np.reshape(x, -1)), dtype=to_numpy(like).dtype)
    start = np.random.default_rng(0).standard_normal(total).astype(operator.dtype)
    size = min(total, max(4 * count, 40))
    try:
        values = eigs(
            operator, k=count, which="LR", ncv=size, tol=tol, maxiter=max_iterations, v0=start,
            return_eigenvectors=False,
        )  # fmt: skip
    except ArpackNoConvergence as error:
        raise ArithmeticError(
            f"only {len(error.eigenvalues)} of {count} eigenvalues converged; raise max_iterations or tol"
        ) from None
    return values[np.argsort(-values.real)]


class OscillatorForm(NamedTuple):
    """Coupled damped oscillators M w'' + C w' + K w = 0 with w_i = sqrt(a_i) y_i dy_i.

    Attributes
    ----------
    mass : array (..., n)
        Diagonal of M = diag(tau_a tau_y / y**2).
    damping : array (..., n, n)
        C = diag((tau_y + tau_a sqrt(a)) / y**2) - W diag(tau_y).
    stiffness : array (..., n)
        Diagonal of K = diag(sqrt(a) / y**2).
    """

    mass: Array
    damping: Array
    stiffness: Array


def oscillator_form(circuit: Circuit, z: Array) -> OscillatorForm:
    """The circuit with W_r = I, linearized at its fixed point, as coupled damped oscillators.

    Parameters
    ----------
    circuit : Circuit
        With W_r = I.
    z : array (..., n)
        Input drive, nowhere zero: units without drive decouple and have no such form.

    Returns
    -------
    OscillatorForm
        Its quadratic eigenvalues are the eigenvalues of the Jacobian.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError for a W_r that is not the
        identity, or a drive with zeros.
    """
    xp, circuit, z = _identity_circuit(circuit, z)
    if get_backend(xp).is_concrete(z) and bool(xp.any(z == 0)):
        raise ValueError("z must have no zeros here: units without input drive decouple; certify treats them apart")
    state = identity_fixed_point(xp, circuit, z, "main")
    y2 = state.y * state.y
    root = xp.sqrt(state.a)
    tau_y = circuit.tau_y + xp.zeros_like(y2)
    damping = (
        diagonal_matrix(xp, (tau_y + circuit.tau_a * root) / y2) - dense(xp, circuit.w, tau_y) * tau_y[..., None, :]
    )
    return OscillatorForm(circuit.tau_a * tau_y / y2, damping, root / y2)


class Certificate(NamedTuple):
    """Proof of stability of a circuit with W_r = I, which anyone can check.

    Attributes
    ----------
    stable : boolean array (...)
        Whether ``margin`` is positive.
    margin : array (...)
        min_i (C v)_i relative to the diagonal's part of it, where C is the
        damping matrix of the oscillator form and v = a y**2 / tau_y > 0; in
        (0, 1]. C is a Z-matrix, so C v > 0 makes it a nonsingular M-matrix.
    state : State
        The fixed point.
    p, q : arrays (..., 2n, 2n) or None
        Lyapunov pair in the order (y, a): p > 0, and q = -(J^T p + p J) >= 0.
        None where ``lyapunov=False``, and for a W that is an operator.
    """

    stable: Array
    margin: Array
    state: State
    p: Array
    q: Array


def certify(circuit: Circuit, z: Array, *, lyapunov: bool = True) -> Certificate:
    """Certify that the fixed point of a circuit with W_r = I is stable.

    Parameters
    ----------
    circuit : Circuit
        With W_r = I (or ``w_r=None``).
    z : array (..., n)
        Input drive. Units with zero drive decouple and are treated apart.
    lyapunov : bool
        Also return the Lyapunov matrices p and q. The decision alone costs
        one product with W; the matrices cost one linear solve.

    Returns
    -------
    Certificate

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError for a W_r that is not the
        identity (use :func:`steady_state` and :func:`spectral_abscissa`).

    Notes
    -----
    At the fixed point (C v)_i = (b0 sigma)_i**2 + tau_a a_i**1.5 / tau_y. The
    energy of the oscillators, V = sum_i d_i (tau_a tau_y a_i dy'_i**2 +
    a_i**1.5 dy_i**2) with d = r / v and r = C^-T (1 / v), falls along every
    trajectory of the linearized circuit (Rawat, Heeger & Martiniani 2024).
    In the units eta = dy / y + da / (2 a) and u = dy / y used here, with
    S = C diag(v)::

        V  = sum_i r_i (tau_a a_i eta_i**2 + tau_y sqrt(a_i) u_i**2),    S^T r = 1
        V' = -eta^T (diag(r) S + S^T diag(r)) eta

    Examples
    --------
    >>> import numpy as np
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> bool(certify(circuit, np.array([1.0, 0.5])).stable)
    True
    """
    xp, circuit, z = _identity_circuit(circuit, z)
    state = identity_fixed_point(xp, circuit, z, "main")
    parts = _energy_parts(xp, circuit, state, solve=lyapunov and not isinstance(circuit.w, Operator))
    margin = _margin(xp, circuit, state, parts)
    stable = margin > 0
    if not lyapunov or isinstance(circuit.w, Operator):
        return Certificate(stable, margin, state, None, None)
    half = 0.5 / state.a
    kinetic = parts.weight * circuit.tau_a * state.a
    potential = parts.weight * circuit.tau_y * xp.sqrt(state.a)
    per_y = parts.inverse_y
    silent = 1.0 - parts.active
    p = block_matrix(
        xp,
        [
            [
                diagonal_matrix(xp, (kinetic + potential) * per_y**2 + silent * potential),
                diagonal_matrix(xp, kinetic * per_y * half),
            ],
            [diagonal_matrix(xp, kinetic * per_y * half), diagonal_matrix(xp, kinetic * half**2)],
        ],
    )
    loss = parts.weight[..., None] * parts.scaled_damping
    loss = loss + transpose(xp, loss)
    decay = silent * 2.0 * potential * xp.sqrt(state.a) / circuit.tau_y
    columns_y, columns_a = per_y[..., None, :], half[..., None, :]
    rows_y, rows_a = per_y[..., :, None], half[..., :, None]
    q = block_matrix(
        xp,
        [
            [rows_y * loss * columns_y + diagonal_matrix(xp, decay), rows_y * loss * columns_a],
            [rows_a * loss * columns_y, rows_a * loss * columns_a],
        ],
    )
    return Certificate(stable, margin, state, p, q)


def _margin(xp: Any, circuit: Circuit, state: State, parts: _EnergyParts) -> Array:
    """min_i (C v)_i relative to the diagonal's part: one product with W."""
    share = matvec(xp, circuit.w, state.a * state.y**2)
    return xp.min((parts.diagonal - share) / parts.diagonal, axis=-1)


def energy(circuit: Circuit, state: State, z: Array) -> Array:
    """The Lyapunov function x^T p x, with x the distance of ``state`` from the fixed point.

    Parameters
    ----------
    circuit : Circuit
        With W_r = I.
    state : State of arrays (..., n)
        Any states, a trajectory for instance.
    z : array (..., n)
        Input drive.

    Returns
    -------
    array (...)
        Non-negative; 0 at the fixed point only. It falls along every trajectory
        of the linearized circuit, and of the circuit itself near the fixed point.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError for a W_r that is not the
        identity.
    """
    validate_circuit(circuit, **validate_state(state), z=z)
    xp, circuit, z = _identity_circuit(circuit, z)
    y, a = (xp.astype(part, z.dtype, copy=False) for part in state)
    fixed = identity_fixed_point(xp, circuit, z, "main")
    parts = _energy_parts(xp, circuit, fixed, solve=True)
    dy, da = y - fixed.y, a - fixed.a
    u = dy * parts.inverse_y
    eta = u + da * (0.5 / fixed.a)
    potential = circuit.tau_y * xp.sqrt(fixed.a) * (u**2 + (1.0 - parts.active) * dy**2)
    return xp.sum(parts.weight * (circuit.tau_a * fixed.a * eta**2 + potential), axis=-1)


class _EnergyParts(NamedTuple):
    active: Array  # 1 for units with drive, 0 for those without
    inverse_y: Array  # 1 / y, 0 for units without drive
    diagonal: Array  # the diagonal's part of S = C diag(v)
    scaled_damping: Array  # S
    weight: Array  # r, positive


def _energy_parts(xp: Any, circuit: Circuit, state: State, *, solve: bool) -> _EnergyParts:
    """S = C diag(v) = diag(a + tau_a a**1.5 / tau_y) - W diag(a y**2), and r with S^T r = 1.

    S has no division by y. A unit without drive has no oscillator: its y decays
    by itself and its a is driven by the others, so the inertia tau_a a**1.5/tau_y
    is absent from its row.
    """
    y, a = state
    tiny = float(xp.finfo(y.dtype).smallest_normal) ** 0.5 * 1e3
    driven = xp.abs(y) > tiny
    active = xp.where(driven, xp.ones_like(y), xp.zeros_like(y))
    inverse_y = xp.where(driven, 1.0 / xp.where(driven, y, xp.ones_like(y)), xp.zeros_like(y))
    diagonal = a + active * (circuit.tau_a * a * xp.sqrt(a) / circuit.tau_y)
    if not solve:
        return _EnergyParts(active, inverse_y, diagonal, None, None)
    pooled = active * a * y * y
    scaled = diagonal_matrix(xp, diagonal) - dense(xp, circuit.w, y) * pooled[..., None, :]
    weight = solve_vector(xp, transpose(xp, scaled), xp.ones_like(diagonal))
    return _EnergyParts(active, inverse_y, diagonal, scaled, weight)


def _identity_circuit(circuit: Circuit, z: Array) -> tuple[Any, Circuit, Array]:
    """Validate a circuit that must have W_r = I."""
    xp = validate_circuit(circuit, values=True, z=z)
    checks.values(xp, "z", z, "any")
    if is_identity(xp, circuit.w_r) is False:
        raise ValueError(
            "w_r must be the identity (or None) for the certificate; "
            "for another w_r use steady_state and spectral_abscissa"
        )
    circuit, z = prepare(xp, circuit, z)
    check_products(xp, circuit, z)
    return xp, circuit, z
