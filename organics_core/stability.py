"""Linearization, spectra, and the certificate of unconditional stability.

Source: Rawat, Heeger & Martiniani (NeurIPS 2024), the theorem on W_r = I.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from array_api_compat import device

from . import checks
from .backend import Array, get_backend
from .circuit import Circuit, State, is_identity, prepare, validate_circuit, validate_state
from .dynamics import identity_fixed_point, pooled_response, recurrent_drive, recurrent_slope, relu, sqrt_relu
from .linalg import broadcast_shapes, diagonal_matrix, matvec, solve_vector, transpose, widen


def jacobian(circuit: Circuit, state: State, *, variant: str = "main") -> Array:
    """Jacobian of the vector field, analytically.

    Parameters
    ----------
    circuit : Circuit
    state : State of arrays (..., n)
    variant : {"main", "rectified", "rectified_recurrence"}

    Returns
    -------
    array (..., 2n, 2n)
        In the order (y, a), per second. At a kink (y = 0 of a rectified unit,
        a = 0) it is the derivative of the silent side.

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
    checks.one_of("variant", variant, checks.VARIANTS)
    xp = validate_circuit(circuit, **validate_state(state))
    circuit, y, a = prepare(xp, circuit, *state)
    return _jacobian(xp, circuit, State(y, a), variant)


def _jacobian(
    xp: Any, circuit: Circuit, state: State, variant: str, *, pooled: bool = False, shift: Array | None = None
) -> Array:
    """The Jacobian, minus ``shift`` (...) on its diagonal; with ``pooled``, that of (y, change common to all a).

    Where all neurons share one pool (:func:`_share_pool`), changes common to all a
    are an invariant subspace, on which the Jacobian has size n + 1; its other
    n - 1 eigenvalues are -1 / tau_a.
    """
    y, a = state
    y, a = y + xp.zeros_like(a), a + xp.zeros_like(y)
    eye = xp.eye(y.shape[-1], dtype=y.dtype, device=device(y))
    positive = a > 0
    root = sqrt_relu(xp, a)
    slope = recurrent_slope(xp, circuit.w_r, y, variant)
    response = pooled_response(xp, y, variant)
    drive = recurrent_drive(xp, circuit.w_r, y, variant)
    half = xp.where(positive, 0.5 / xp.where(positive, root, xp.ones_like(root)), xp.zeros_like(root))
    live = xp.where(positive, response * response, xp.zeros_like(a))
    tau_y, tau_a = circuit.tau_y, circuit.tau_a
    w, coupling = circuit.w, -drive * half
    if pooled:
        w = w[..., :1, :]
        tau_a = tau_a if tau_a.ndim == 0 else tau_a[..., :1]
    decay_y, decay_a = (1.0, 1.0) if shift is None else (1.0 + shift[..., None] * tau for tau in (tau_y, tau_a))
    right = coupling[..., None] if pooled else eye * coupling[..., None]
    pool = w * live[..., None, :]
    pool = xp.sum(pool, axis=-1, keepdims=True) - _rows(decay_a) if pooled else pool - eye * _rows(decay_a)
    per_y, per_a = _rows(tau_y), _rows(tau_a)
    blocks = [
        [((1.0 - root)[..., None] * slope - eye * _rows(decay_y)) / per_y, right / per_y],
        [w * (2.0 * relu(xp, a) * response)[..., None, :] / per_a, pool / per_a],
    ]
    return _block(xp, blocks)


def _share_pool(xp: Any, circuit: Circuit) -> bool:
    """Whether all modulators obey one equation but for their floor: equal rows of W, equal tau_a; seen, not traced."""
    backend = get_backend(xp)
    w, tau = circuit.w, circuit.tau_a
    if w.shape[-1] == 1 or not (backend.is_concrete(w) and backend.is_concrete(tau)):
        return False
    return bool(xp.all(w == w[..., :1, :])) and (tau.ndim == 0 or bool(xp.all(tau == tau[..., :1])))


def _rows(tau: Array | float) -> Array | float:
    """Time constants as a column, so that they divide rows."""
    return tau if isinstance(tau, float) or tau.ndim == 0 else tau[..., None]


def _block(xp: Any, blocks: list[list[Array]]) -> Array:
    """Concatenate blocks (..., k, l), broadcasting their batch axes."""
    batch = broadcast_shapes(*(tuple(block.shape[:-2]) for row in blocks for block in row))
    rows = [xp.concat([widen(xp, block, batch) for block in row], axis=-1) for row in blocks]
    return xp.concat(rows, axis=-2)


def spectrum(circuit: Circuit, state: State, *, variant: str = "main") -> Array:
    """Eigenvalues of the Jacobian.

    Parameters
    ----------
    circuit, state, variant
        As in :func:`jacobian`.

    Returns
    -------
    complex array (..., 2n)
        Per second, in no particular order.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    checks.one_of("variant", variant, checks.VARIANTS)
    xp = validate_circuit(circuit, **validate_state(state))
    circuit, y, a = prepare(xp, circuit, *state)
    return get_backend(xp).eigvals(_jacobian(xp, circuit, State(y, a), variant))


def spectral_abscissa(circuit: Circuit, state: State, *, variant: str = "main") -> Array:
    """Largest real part of the eigenvalues of the Jacobian; negative means locally stable.

    Parameters
    ----------
    circuit, state, variant
        As in :func:`jacobian`.

    Returns
    -------
    array (...)
        Per second. NaN where the state is not finite.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    Lyapunov's indirect method: stable where max Re lambda(J) < 0.
    """
    checks.one_of("variant", variant, checks.VARIANTS)
    xp = validate_circuit(circuit, **validate_state(state))
    circuit, y, a = prepare(xp, circuit, *state)
    return _spectral_abscissa(xp, circuit, State(y, a), variant)


def _spectral_abscissa(xp: Any, circuit: Circuit, state: State, variant: str) -> Array:
    pooled = _share_pool(xp, circuit)
    abscissa = xp.max(xp.real(get_backend(xp).eigvals(_jacobian(xp, circuit, state, variant, pooled=pooled))), axis=-1)
    if not pooled:
        return abscissa
    rest = -1.0 / (circuit.tau_a if circuit.tau_a.ndim == 0 else circuit.tau_a[..., 0])
    return xp.where(abscissa < rest, rest + xp.zeros_like(abscissa), abscissa)  # NaN stays


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
    damping = diagonal_matrix(xp, (tau_y + circuit.tau_a * root) / y2) - circuit.w * tau_y[..., None, :]
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
        None where ``lyapunov=False``.
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
    parts = _energy_parts(xp, circuit, state, solve=lyapunov)
    margin = _margin(xp, circuit, state, parts)
    stable = margin > 0
    if not lyapunov:
        return Certificate(stable, margin, state, None, None)
    half = 0.5 / state.a
    kinetic = parts.weight * circuit.tau_a * state.a
    potential = parts.weight * circuit.tau_y * xp.sqrt(state.a)
    per_y = parts.inverse_y
    silent = 1.0 - parts.active
    p = _block(
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
    q = _block(
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
    scaled = diagonal_matrix(xp, diagonal) - circuit.w * pooled[..., None, :]
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
    return xp, circuit, z
