"""Linearization, spectra, and the certificate of unconditional stability.

Source: Rawat, Heeger & Martiniani (NeurIPS 2024), the theorem on W_r = I.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from . import checks
from .backend import Array, as_one, get_backend, quiet, to_numpy, tree_map
from .circuit import (
    VARIANTS,
    Circuit,
    State,
    circuit_jacobian,
    identity,
    identity_fixed_point,
    is_identity,
    kinks,
    of_variant,
    prepare,
    share_pool,
    validate_circuit,
    validate_state,
)
from .linalg import broadcast_shapes, diagonal_matrix, eigenvalues, inverse, m_matrix_inverse, transpose
from .model import Layout, block_matrix, check_model, check_products, field_jacobian, full, state_fields, validate
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

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit, z = oc.Circuit(None, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0, 0.5])
    >>> state = oc.steady_state(circuit, z).state
    >>> oc.jacobian(circuit, state).shape
    (4, 4)
    >>> bool(np.linalg.eigvals(oc.jacobian(circuit, state)).real.max() < 0)
    True
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

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit, z = oc.Circuit(None, np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> state = oc.steady_state(circuit, z).state
    >>> eigenvalues = oc.spectrum(circuit, state)  # a damped oscillation
    >>> eigenvalues.real.round(1), (abs(eigenvalues.imag) / (2 * np.pi)).round(1)  # per second, Hz
    (array([-128.1, -128.1]), array([52.6, 52.6]))
    """
    linear = linearized(circuit, state, variant, z)
    return eigenvalues(linear.xp, linear.jacobian)


def spectral_abscissa(circuit: Any, state: Any, *, variant: str = "main", z: Array | None = None) -> Array:
    """Largest real part of the eigenvalues of the Jacobian; negative means locally stable.

    Parameters
    ----------
    circuit, state, variant, z
        As in :func:`jacobian`.

    Returns
    -------
    array (...)
        Per second. NaN where the state is not finite, and where eigenvalues spread
        over thirty decades and more hide it. At a kink (a rectified
        unit at y = 0, or a rectified recurrent drive of 0, both up to
        eps**0.75 of the other terms) the largest of all the linear pieces that
        meet there: negative only where every piece decays. NaN where more than
        8 kinks meet, of units that drive each other, and none of the pieces
        that were looked at grows; while tracing, where more than one meets.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Warns
    -----
    RuntimeWarning
        Where the state is not finite.

    Notes
    -----
    Lyapunov's indirect method: stable where max Re lambda(J) < 0. Where the
    eigenvalues span so many decades that the slow ones drown in the rounding of
    the fast ones, they are found from the inverse of J (not while tracing).

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit = oc.Circuit(None, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002)
    >>> state = oc.steady_state(circuit, np.array([[0.1, 0.0], [1.0, 0.5]])).state
    >>> oc.spectral_abscissa(circuit, state).round(1)  # stronger drive, faster return
    array([ -35.4, -142.3])
    """
    linear = linearized(circuit, state, variant, z)
    xp = linear.xp
    finite = xp.all(xp.isfinite(xp.concat(list(linear.state), axis=-1)), axis=-1)
    if get_backend(xp).is_concrete(finite) and not bool(xp.all(finite)):
        bad = int((~to_numpy(finite)).reshape(-1).argmax())
        where = "" if finite.ndim == 0 else f" in member {bad} of the batch"
        warnings.warn(f"state is not finite{where}: its spectral abscissa is NaN", RuntimeWarning, stacklevel=2)
    return abscissa_of(linear)


def abscissa_of(linear: Linear) -> Array:
    """Spectral abscissa of a model around a state, unchecked."""
    if isinstance(linear.model, Circuit):
        return _spectral_abscissa(linear.xp, linear.model, linear.state, linear.model.variant)
    matrix = linear.jacobian
    return _largest_real_part(linear.xp, matrix, linear.xp.ones_like(matrix[..., 0]))


def _spectral_abscissa(xp: Any, circuit: Circuit, state: State, variant: str) -> Array:
    """The largest of all pieces around a kink; NaN where some were not looked at and the others decay."""
    pooled = share_pool(xp, circuit)

    a = xp.max(state.a, axis=-1, keepdims=True) if pooled else state.a
    largest = xp.max(xp.abs(state.y), axis=-1, keepdims=True)
    sizes = [xp.where(part > 0, part, 1.0) for part in (xp.broadcast_to(largest, state.y.shape), a)]
    units = xp.concat(sizes, axis=-1)

    def of_piece(slope: Array | None) -> Array:
        jac = circuit_jacobian(xp, circuit, state, variant, pooled=pooled, slope=slope)
        return _largest_real_part(xp, jac, units)

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


def _largest_real_part(xp: Any, matrix: Array, size: Array) -> Array:
    """Spectral abscissa (...) of a matrix (..., N, N) for components of ``size`` (..., N).

    Eigenvalues have errors of some eps times the largest. Where that matters, the
    small ones are the inverses of those of the inverse matrix, which has them
    large; it is found with rows and components in units of their size.
    """
    backend = get_backend(xp)
    values = eigenvalues(xp, matrix)
    abscissa = xp.max(xp.real(values), axis=-1)
    if not backend.is_concrete(matrix):
        return abscissa
    eps = float(xp.finfo(matrix.dtype).eps)
    top = xp.max(xp.abs(values), axis=-1, keepdims=True)
    if not bool(xp.any(10.0 * eps**0.5 * top[..., 0] > xp.abs(abscissa))):  # false for NaN
        return abscissa
    with quiet(backend):
        scaled = matrix * (size[..., None, :] / size[..., :, None])
        values = eigenvalues(xp, scaled)
        rows = xp.max(xp.abs(scaled), axis=-1)
        turned = inverse(xp, scaled / rows[..., None]) / rows[..., None, :]
        inverses = eigenvalues(xp, turned)
        size = xp.abs(inverses)
        live = size > 0
        size = xp.where(live, size, 1.0)
        bottom = 1.0 / xp.max(size, axis=-1, keepdims=True)
        small = 1.0 / size
        chosen = live & (small < xp.sqrt(top) * xp.sqrt(bottom)) & (small < 0.01 / eps * bottom)
        smaller = xp.sum(xp.astype(xp.abs(values)[..., None, :] < xp.abs(values)[..., :, None], xp.int32), axis=-1)
        others = smaller >= xp.sum(xp.astype(chosen, xp.int32), axis=-1, keepdims=True)
        slow = xp.max(xp.where(chosen, xp.real(inverses) * small * small, -xp.inf), axis=-1)
        fast = xp.max(xp.where(others, xp.real(values), -xp.inf), axis=-1)
        hidden = (fast > slow) & (xp.abs(fast) < 10.0 * eps * top[..., 0])  # rounding, in both
        better = xp.where(slow > fast, slow, xp.where(hidden, xp.nan, fast))
    return xp.where((xp.isfinite(better) | hidden) & (bottom[..., 0] > 0), better, abscissa)


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

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit, z = oc.Circuit(None, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0, 0.5])
    >>> state = oc.steady_state(circuit, z).state
    >>> direction = oc.State(np.array([1.0, 0.0]), np.array([0.0, 2.0]))
    >>> product = oc.jacobian_product(circuit, state, direction)
    >>> bool(np.allclose(np.concatenate(product), oc.jacobian(circuit, state) @ np.concatenate(direction)))
    True
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

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit, z = oc.Circuit(None, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0, 0.5])
    >>> state = oc.steady_state(circuit, z).state
    >>> found = oc.leading_eigenvalues(circuit, state, count=1)
    >>> bool(np.isclose(found.real.max(), oc.spectral_abscissa(circuit, state)))
    True
    """
    try:
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs
    except ImportError as error:
        raise ImportError("leading_eigenvalues needs scipy; install it with: pip install scipy") from error
    linear = linearized(circuit, state, variant, z, values=True)
    xp, layout = linear.xp, Layout.of(linear.state)
    like, total = linear.state[0], sum(layout.sizes)
    if like.ndim != 1:
        raise ValueError(f"state must have no batch axes here, got arrays of shape {tuple(like.shape)}")
    if total < 3:
        raise ValueError(
            f"state must have 3 components at least for Arnoldi's method, got {total}; spectrum has them all"
        )
    count = min(6, total - 2) if count is None else checks.positive_integer("count", count)
    if count > total - 2 or count < 1:
        raise ValueError(f"count must be below N - 1 = {total - 1}, got {count}")
    checks.seen(xp, "leading_eigenvalues", like)

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
        identity, a drive with zeros, and where the fixed point or y**2 leaves
        the range of the dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit, z = oc.Circuit(None, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0, 0.5])
    >>> form = oc.oscillator_form(circuit, z)
    >>> bool((np.linalg.inv(form.damping) >= 0).all())  # C is an M-matrix
    True
    """
    xp, circuit, z = _identity_circuit(circuit, z)
    if get_backend(xp).is_concrete(z) and bool(xp.any(z == 0)):
        raise ValueError("z must have no zeros here: units without input drive decouple; certify treats them apart")
    state, _ = _fixed_point_within_range(xp, circuit, z)
    y2 = state.y * state.y
    least = 1e3 * float(xp.finfo(y2.dtype).smallest_normal)
    if get_backend(xp).is_concrete(y2) and bool(xp.any(y2 < least)):
        raise ValueError(
            f"z must leave y**2 within the range of {str(y2.dtype).rpartition('.')[2]}, above {least:.0e}, but the "
            f"smallest is {float(xp.min(y2)):.1e}; units of so little drive decouple, and certify treats them apart"
        )
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
        Whether ``margin`` is positive; by the theorem it always is.
    margin : array (...)
        min_i (C v)_i over the driven units, relative to the diagonal's part of
        it, where C is the damping matrix of the oscillator form and v = a y**2 /
        tau_y > 0; in (0, 1], and 1 where no unit is driven. C is a Z-matrix, so
        C v > 0 makes it a nonsingular M-matrix.
    state : State
        The fixed point.
    p, q : arrays (..., 2n, 2n) or None
        Lyapunov pair in the order (y, a): p > 0, and q = -(J^T p + p J) >= 0; see
        :func:`check_certificate`. Entries beyond the range of the dtype are 0 or
        infinite, and of no use. None where ``lyapunov=False``, and for a W that
        is an operator.
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
        one product with W; the matrices cost one inverse.

    Returns
    -------
    Certificate
        While tracing, the margin is NaN where the fixed point leaves the range of the dtype.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError for a W_r that is not the
        identity (use :func:`steady_state` and :func:`spectral_abscissa`), and
        where the fixed point leaves the range of the dtype.

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

    Nothing here is a difference: C v is the sum above, S is known by its row sums
    and what couples its rows, and so is every Schur complement of it. Where V
    would leave the range of the dtype it is a multiple of this.

    Examples
    --------
    >>> import numpy as np
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> bool(certify(circuit, np.array([1.0, 0.5])).stable)
    True
    """
    xp, circuit, z = _identity_circuit(circuit, z)
    with quiet(get_backend(xp)):
        return _certificate(xp, circuit, z, lyapunov)


def _certificate(xp: Any, circuit: Circuit, z: Array, lyapunov: bool) -> Certificate:
    state, inside = _fixed_point_within_range(xp, circuit, z)
    if isinstance(circuit.w, Operator):
        return _certificate_at(False, circuit, z, state, inside)
    return as_one(_certificate_at, circuit, z, state, inside, settings=(lyapunov,))


def _certificate_at(lyapunov: bool, circuit: Circuit, z: Array, state: State, inside: Array) -> Certificate:
    xp = checks.namespace({"z": z})
    parts = _energy_parts(xp, circuit, z, state, solve=lyapunov)
    margin = xp.min(xp.where(parts.driven, parts.excess, 1.0), axis=-1)
    margin = xp.where(inside, margin, xp.nan)
    stable = margin > 0
    if parts.loss is None:
        return Certificate(stable, margin, state, None, None)
    per_y, per_a = parts.kinetic_y, parts.kinetic_a
    p = block_matrix(
        xp,
        [
            [diagonal_matrix(xp, per_y**2 + parts.potential**2), diagonal_matrix(xp, per_y * per_a)],
            [diagonal_matrix(xp, per_y * per_a), diagonal_matrix(xp, per_a**2)],
        ],
    )
    decay = xp.where(parts.driven, 0.0, 2.0 * parts.potential**2 * xp.sqrt(state.a) / circuit.tau_y)
    q = block_matrix(
        xp,
        [
            [_scaled(parts.loss, per_y, per_y) + diagonal_matrix(xp, decay), _scaled(parts.loss, per_y, per_a)],
            [_scaled(parts.loss, per_a, per_y), _scaled(parts.loss, per_a, per_a)],
        ],
    )
    return Certificate(stable, margin, state, p, q)


class CertificateCheck(NamedTuple):
    """A certificate, checked; in units in which the diagonal of p is one.

    Attributes
    ----------
    p, q : arrays (...)
        Smallest eigenvalue of p and of q, relative to the largest.
    residual : array (...)
        Largest entry of J^T p + p J + q, relative to its largest term.
    """

    p: Array
    q: Array
    residual: Array


def check_certificate(circuit: Circuit, certificate: Certificate) -> CertificateCheck:
    """Check the Lyapunov pair of a certificate without trusting how it was found, on the host.

    Parameters
    ----------
    circuit : Circuit
        The one that was certified.
    certificate : Certificate
        With its p and q.

    Returns
    -------
    CertificateCheck of numpy arrays (...)
        Eigenvalues of a matrix of size 2n are known to some 2n eps: p > 0 and
        q >= 0 hold up to that.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError for a certificate without p and q.

    Examples
    --------
    >>> import numpy as np
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> check = check_certificate(circuit, certify(circuit, np.array([1.0, 0.5])))
    >>> bool(check.p > 0), bool(check.q > -1e-15), bool(check.residual < 1e-15)
    (True, True, True)
    """
    if certificate.p is None:
        raise ValueError("certificate must have p and q: certify with lyapunov=True and a dense W")
    circuit, state, p, q = (
        tree_map(lambda leaf: leaf if checks.is_number(leaf) else to_numpy(leaf).astype(np.float64), part)
        for part in (circuit, certificate.state, certificate.p, certificate.q)
    )
    jac = jacobian(circuit, state)
    diagonal = np.diagonal(p, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore", over="ignore"):
        scale = np.sqrt(np.where(diagonal > 0, diagonal, np.nan))
        p, q = (_scaled(part, 1.0 / scale, 1.0 / scale) for part in (p, q))
        left = np.swapaxes(_scaled(jac, scale, 1.0 / scale), -1, -2) @ p
        terms = np.abs(np.swapaxes(_scaled(jac, scale, 1.0 / scale), -1, -2)) @ np.abs(p)
        residual = np.max(np.abs(left + np.swapaxes(left, -1, -2) + q), axis=(-2, -1)) / np.max(terms, axis=(-2, -1))
    smallest = []
    for matrix in (p, q):
        finite = np.all(np.isfinite(matrix), axis=(-2, -1))
        values = np.linalg.eigvalsh(np.where(finite[..., None, None], matrix, 0.0))
        smallest.append(np.where(finite, values[..., 0], np.nan) / np.where(finite, np.abs(values).max(axis=-1), 1.0))
    return CertificateCheck(smallest[0], smallest[1], residual)


def _scaled(matrix: Array, left: Array, right: Array) -> Array:
    """diag(left) matrix diag(right)."""
    return left[..., :, None] * matrix * right[..., None, :]


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
        Non-negative; 0 at the fixed point only. It never rises along a trajectory
        of the linearized circuit. Along one of the circuit itself it may for a
        while, at a relative rate that vanishes towards the fixed point.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError for a W_r that is not the
        identity, and where the fixed point leaves the range of the dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit, z = oc.Circuit(None, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0, 0.5])
    >>> state = oc.steady_state(circuit, z).state
    >>> near = oc.State(state.y * 1.01, state.a)
    >>> run = oc.simulate(circuit, z, np.linspace(0, 0.01, 5), state0=near)
    >>> bool((np.diff(oc.energy(circuit, run.state, z)) < 0).all())
    True
    """
    xp = validate_circuit(circuit, **validate_state(state), z=z)
    circuit, z, y, a = prepare(xp, circuit, z, *state)
    xp, circuit, z = _identity_circuit(circuit, z)
    fixed, _ = _fixed_point_within_range(xp, circuit, z)
    parts = _energy_parts(xp, circuit, z, fixed, solve=True)
    dy, da = y - fixed.y, a - fixed.a
    return xp.sum((parts.kinetic_y * dy + parts.kinetic_a * da) ** 2 + (parts.potential * dy) ** 2, axis=-1)


def _fixed_point_within_range(xp: Any, circuit: Circuit, z: Array) -> tuple[State, Array]:
    """The fixed point, and where (...) it lies within the range of the dtype; ValueError where it is seen not to."""
    state = identity_fixed_point(xp, circuit, z, "main")
    inside = xp.all(xp.isfinite(state.a) & (state.a > 0) & xp.isfinite(state.y), axis=-1)
    if get_backend(xp).is_concrete(inside) and not bool(xp.all(inside)):
        bad = int((~to_numpy(inside)).reshape(-1).argmax())
        where = "" if inside.ndim == 0 else f" (member {bad} of the batch)"
        raise ValueError(
            f"z must leave a fixed point within the range of {str(z.dtype).rpartition('.')[2]}, but "
            f"a = (b0 sigma)**2 + W (b z)**2 overflows or vanishes{where}; scale z, b, w or sigma"
        )
    return state, inside


class _EnergyParts(NamedTuple):
    driven: Array  # whether a unit has drive
    excess: (
        Array  # row sums of S over its diagonal's part a + tau_a a**1.5 / tau_y; without the latter for silent units
    )
    kinetic_y: Array  # V = sum (kinetic_y dy + kinetic_a da)**2 + (potential dy)**2
    kinetic_a: Array
    potential: Array
    loss: Array  # V' = -x^T loss x, x = kinetic_y dy + kinetic_a da


def _energy_parts(xp: Any, circuit: Circuit, z: Array, state: State, *, solve: bool) -> _EnergyParts:
    """The energy from S = C diag(v) = diag(a + tau_a a**1.5 / tau_y) - W diag(a y**2), and r with S^T r = 1.

    S has no division by y, and its rows, over the diagonal's part, hold numbers
    up to one. A unit without drive has no oscillator: its y decays by itself and
    its a is driven by the others, so the inertia tau_a a**1.5 / tau_y is absent
    from its row, and it weighs on the others without being weighed on.
    """
    a = state.a
    drive = circuit.b * z + xp.zeros_like(a)
    pooled = drive * drive  # a y**2
    driven = pooled >= float(xp.finfo(a.dtype).smallest_normal)
    root = xp.sqrt(a)
    inertia = xp.where(driven, circuit.tau_a / circuit.tau_y * root, 0.0)
    excess = ((circuit.b0 * circuit.sigma) ** 2 / a + inertia) / (1.0 + inertia)
    if not solve:
        return _EnergyParts(driven, excess, None, None, None, None)
    share = dense(xp, circuit.w, a) * xp.where(driven, pooled, 0.0)[..., None, :] / a[..., :, None]
    share = share / (1.0 + inertia)[..., :, None]
    share = share * (1.0 - identity(xp, a))  # what returns to the unit itself is in its excess
    inside = m_matrix_inverse(xp, xp.where(driven[..., :, None], share, 0.0), xp.where(driven, excess, 1.0))
    right = 1.0 + xp.sum(xp.where(driven[..., :, None], 0.0, share), axis=-2)
    weight = xp.sqrt(matvec(xp, transpose(xp, inside), right) / (1.0 + inertia))
    kinetic = weight * xp.sqrt(circuit.tau_a + xp.zeros_like(a))
    kinetic_a = 0.5 * kinetic / a
    inverse_y = xp.where(driven, root / xp.where(driven, drive, 1.0), 0.0)
    kinetic_y = kinetic * inverse_y
    potential = weight * xp.sqrt(circuit.tau_y / root) * xp.where(driven, xp.abs(inverse_y), 1.0)
    scale = _scale_into_range(xp, kinetic_a, potential, xp.where(driven, xp.abs(kinetic_y), potential))
    # r_i S_ij + r_j S_ji over kinetic_i kinetic_j, S_ii from the terms that it is the sum of
    flow = diagonal_matrix(xp, excess + xp.sum(share, axis=-1)) - share
    ratio = weight[..., :, None] * (1.0 + inertia)[..., :, None] / weight[..., None, :]
    tau = (
        circuit.tau_a if circuit.tau_a.ndim == 0 else xp.sqrt(circuit.tau_a[..., :, None] * circuit.tau_a[..., None, :])
    )
    loss = ratio * flow / tau
    loss = loss + transpose(xp, loss)
    return _EnergyParts(driven, excess, scale * kinetic_y, scale * kinetic_a, scale * potential, loss)


def _scale_into_range(xp: Any, *roots: Array) -> Array:
    """A factor (..., 1) that centres the squares of ``roots`` (..., n) in the range of the dtype; 1 where they fit."""
    info = xp.finfo(roots[0].dtype)
    every = xp.concat(roots, axis=-1)
    top, bottom = xp.max(every, axis=-1, keepdims=True), xp.min(every, axis=-1, keepdims=True)
    low = 1e3 * float(info.smallest_normal) ** 0.5 / float(info.eps)
    fits = (top < 1.0 / low) & (bottom > low)
    return xp.where(fits, 1.0, 1.0 / (xp.sqrt(xp.where(fits, 1.0, top)) * xp.sqrt(xp.where(bottom > 0, bottom, low))))


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
    return xp, circuit, full(xp, circuit, z)
