"""Large circuits, whose weights are anything with a product: sparse matrices, functions, convolutions.

The equations are those of :mod:`dynamics` and :mod:`stability`; no n x n array
is ever made.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device, is_array_api_obj

from . import checks
from .backend import Array, get_backend, to_numpy
from .circuit import Circuit, State
from .dynamics import field, identity_fixed_point, sqrt_relu
from .equilibria import SteadyState, relative_residual
from .linalg import Operator, matvec
from .stability import Certificate, _energy_parts, _margin

_NUMBERS = ("b", "b0", "sigma", "tau_y", "tau_a")


class LargeCircuit(NamedTuple):
    """A circuit whose weights are known by their products.

    Attributes
    ----------
    w_r, w : Operator, matrix, callable or None
        Recurrent and normalization weights: anything with a product. A sparse
        matrix of scipy, torch, cupy or jax (BCOO), a dense array, a function of
        a vector (n,), or :func:`ring_convolution`. ``None`` for W_r is the
        identity. The entries of W must be non-negative; of a function this
        cannot be checked, only that W 1 >= 0.
    b, b0, sigma, tau_y, tau_a : array (n,) or number
        As of :class:`Circuit`.
    """

    w_r: Any
    w: Any
    b: Array
    b0: Array
    sigma: Array
    tau_y: Array
    tau_a: Array


def ring_convolution(kernel: Array) -> Operator:
    """The product with a circulant matrix, in O(n log n).

    Parameters
    ----------
    kernel : array (n,)
        The first column: ``kernel[k]`` is the weight from a neuron to the one k
        places further on the ring.

    Returns
    -------
    Operator

    Raises
    ------
    TypeError, ValueError
        If ``kernel`` is no array (n,).

    Examples
    --------
    >>> import numpy as np
    >>> shift = ring_convolution(np.array([0.0, 1.0, 0.0]))
    >>> shift.product(np.array([1.0, 2.0, 3.0])).round(12)
    array([3., 1., 2.])
    """
    xp = checks.namespace({"kernel": kernel})
    if kernel.ndim != 1 or kernel.shape[0] == 0:
        raise ValueError(f"kernel must have shape (n,), got shape {tuple(kernel.shape)}")
    n = int(kernel.shape[0])
    transform = xp.fft.rfft(kernel)
    return Operator(lambda vector: xp.fft.irfft(xp.fft.rfft(vector) * transform, n=n))


def _operator(name: str, matrix: Any, n: int) -> Operator | None:
    if matrix is None or isinstance(matrix, Operator):
        return matrix
    shape = getattr(matrix, "shape", None)
    if shape is not None:
        if tuple(shape) != (n, n):
            raise ValueError(f"{name} must have shape ({n}, {n}), got shape {tuple(shape)}")
        return Operator(lambda vector: matrix @ vector)
    if callable(matrix):
        return Operator(matrix)
    raise TypeError(f"{name} must be a matrix, a function of a vector or an Operator, got {checks.describe(matrix)}")


def _prepare(circuit: LargeCircuit, **vectors: Array) -> tuple[Any, Circuit, tuple[Array, ...]]:
    """Check everything; the circuit with operators for weights and arrays for numbers."""
    if not isinstance(circuit, tuple) or getattr(circuit, "_fields", None) != LargeCircuit._fields:
        raise TypeError(f"circuit must be a LargeCircuit, got {checks.describe(circuit)}")
    if circuit.w is None:
        raise TypeError("w must be anything with a product, got None")
    numbers = {name: getattr(circuit, name) for name in _NUMBERS}
    xp = checks.namespace({**numbers, **vectors}, numbers=_NUMBERS)
    first = next(iter(vectors.values()))
    if first.ndim != 1:
        raise ValueError(f"{next(iter(vectors))} must have shape (n,), got shape {tuple(first.shape)}")
    n = int(first.shape[0])
    for name, value in {**numbers, **vectors}.items():
        checks.vector_shape(name, value, n, scalar=name in numbers)
        checks.values(xp, name, value, "> 0" if name in numbers else "any")
    dtype = xp.result_type(*(value for value in (*numbers.values(), *vectors.values()) if is_array_api_obj(value)))

    def convert(value: Any) -> Array:
        if checks.is_number(value):
            return xp.asarray(float(value), dtype=dtype, device=device(first))
        return xp.astype(value, dtype, copy=False)

    w_r, w = _operator("w_r", circuit.w_r, n), _operator("w", circuit.w, n)
    sums = matvec(xp, w, xp.ones_like(convert(first)))
    if tuple(sums.shape) != (n,):
        raise ValueError(f"w must map a vector ({n},) to a vector ({n},), got shape {tuple(sums.shape)}")
    checks.values(xp, "w @ 1", sums + 1e-12 * xp.max(xp.abs(sums)), ">= 0")
    made = Circuit._make((w_r, w, *(convert(value) for value in numbers.values())))
    return xp, made, tuple(convert(value) for value in vectors.values())


def large_vector_field(circuit: LargeCircuit, state: State, z: Array) -> State:
    """Time derivative of the state, as :func:`vector_field`; one product with W_r and one with W.

    Parameters
    ----------
    circuit : LargeCircuit
    state : State of arrays (n,)
    z : array (n,)

    Returns
    -------
    State of arrays (n,)
        Per second.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    y, a = state
    xp, made, (z, y, a) = _prepare(circuit, **{"z": z, "state.y": y, "state.a": a})
    return field(xp, made, State(y, a), z, "main")


def large_certify(circuit: LargeCircuit, z: Array) -> Certificate:
    """Certify that a large circuit with W_r = I is stable, by one product with W.

    Parameters
    ----------
    circuit : LargeCircuit
        With ``w_r=None``.
    z : array (n,)
        Input drive.

    Returns
    -------
    Certificate
        Without the Lyapunov matrices.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    xp, made, (z,) = _prepare(circuit, z=z)
    if made.w_r is not None:
        raise ValueError("w_r must be None (the identity) for the certificate; see leading_eigenvalues for another w_r")
    state = identity_fixed_point(xp, made, z, "main")
    margin = _margin(xp, made, state, _energy_parts(xp, made, state, solve=False))
    return Certificate(margin > 0, margin, state, None, None)


def large_steady_state(
    circuit: LargeCircuit, z: Array, *, tol: float | None = None, max_iterations: int = 500
) -> SteadyState:
    """Fixed point of a large circuit.

    Parameters
    ----------
    circuit : LargeCircuit
    z : array (n,)
        Input drive.
    tol : float, optional
        Bound on the relative residual, ``eps**0.75`` by default.
    max_iterations : int

    Returns
    -------
    SteadyState

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    The closed form for W_r = I; otherwise the fixed-point iteration in a,
    y = (I - diag(1 - sqrt(a)) W_r)^-1 b z, a <- (b0 sigma)**2 + W (a y**2),
    whose linear systems are solved by BiCGSTAB (van der Vorst 1992).
    """
    max_iterations = checks.positive_integer("max_iterations", max_iterations)
    xp, made, (z,) = _prepare(circuit, z=z)
    eps = float(xp.finfo(z.dtype).eps)
    tolerance = eps**0.75 if tol is None else checks.positive_number("tol", tol)
    state = identity_fixed_point(xp, made, z, "main")
    count, residual = 0, relative_residual(xp, made, state, z, "main")
    drive, floor = made.b * z, (made.b0 * made.sigma) ** 2
    while made.w_r is not None and count < max_iterations and float(residual) > tolerance:
        y = _solve_for_y(xp, made.w_r, 1.0 - sqrt_relu(xp, state.a), drive, state.y, 0.1 * tolerance)
        state = State(y, floor + matvec(xp, made.w, state.a * y * y))
        residual = relative_residual(xp, made, state, z, "main")
        count += 1
        if not math.isfinite(float(residual)):
            break
    iterations = xp.asarray(count, dtype=xp.int32, device=device(z))
    limit = max(tolerance, 1e3 * eps) if made.w_r is None else tolerance
    return SteadyState(state, residual <= limit, iterations, residual)


def _solve_for_y(xp: Any, w_r: Operator, gate: Array, drive: Array, guess: Array, tolerance: float) -> Array:
    """(I - diag(gate) W_r) y = drive by BiCGSTAB from ``guess``."""

    def apply(y: Array) -> Array:
        return y - gate * w_r.product(y)

    y, r = guess, drive - apply(guess)
    shadow, p, rho = r, r, float(xp.sum(r * r))
    goal = tolerance * float(xp.max(xp.abs(drive)))
    for _ in range(1000):
        if not float(xp.max(xp.abs(r))) > goal or rho == 0.0:
            break
        v = apply(p)
        alpha = rho / float(xp.sum(shadow * v))
        s = r - alpha * v
        t = apply(s)
        square = float(xp.sum(t * t))
        omega = float(xp.sum(t * s)) / square if square > 0 else 0.0
        y = y + alpha * p + omega * s
        r = s - omega * t
        rho, before = float(xp.sum(shadow * r)), rho
        if omega == 0.0:
            break
        p = r + (rho / before) * (alpha / omega) * (p - omega * v)
    return y


def jacobian_product(circuit: LargeCircuit, state: State, direction: State) -> State:
    """The Jacobian of a large circuit times a vector; never the matrix.

    Parameters
    ----------
    circuit : LargeCircuit
    state, direction : State of arrays (n,)
        ``state.a`` positive.

    Returns
    -------
    State of arrays (n,)

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    arrays = {"state.y": state[0], "state.a": state[1], "direction.y": direction[0], "direction.a": direction[1]}
    xp, made, (y, a, dy, da) = _prepare(circuit, **arrays)
    return _jacobian_product(xp, made, State(y, a), State(dy, da))


def _jacobian_product(xp: Any, circuit: Circuit, state: State, direction: State) -> State:
    (y, a), (dy, da) = state, direction
    root = xp.sqrt(a)
    recurrent, moved = (v if circuit.w_r is None else matvec(xp, circuit.w_r, v) for v in (y, dy))
    row_y = -dy + (1.0 - root) * moved - recurrent / (2.0 * root) * da
    row_a = -da + matvec(xp, circuit.w, 2.0 * a * y * dy + y * y * da)
    return State(row_y / circuit.tau_y, row_a / circuit.tau_a)


def leading_eigenvalues(
    circuit: LargeCircuit, state: State, *, count: int = 6, tol: float = 1e-8, max_iterations: int = 1000
) -> np.ndarray[Any, Any]:
    """Eigenvalues of the Jacobian with the largest real parts, by Arnoldi's method (needs scipy).

    Parameters
    ----------
    circuit : LargeCircuit
    state : State of arrays (n,)
        A fixed point, from :func:`large_steady_state`.
    count : int
        How many, below 2n - 1.
    tol : float
        Relative accuracy.
    max_iterations : int
        Restarts of the method.

    Returns
    -------
    numpy complex array (count,)
        Per second, in order of falling real part.

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
    count = checks.positive_integer("count", count)
    xp, made, (y, a) = _prepare(circuit, **{"state.y": state[0], "state.a": state[1]})
    n = int(y.shape[0])
    if count > 2 * n - 2:
        raise ValueError(f"count must be below 2n - 1 = {2 * n - 1}, got {count}")
    if not get_backend(xp).is_concrete(y):
        raise ValueError("leading_eigenvalues cannot be traced; call it outside of jit")

    def product(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        parts = (xp.asarray(np.ascontiguousarray(v), dtype=y.dtype, device=device(y)) for v in (x[:n], x[n:]))
        return np.concatenate([to_numpy(v) for v in _jacobian_product(xp, made, State(y, a), State(*parts))])

    operator = LinearOperator((2 * n, 2 * n), matvec=lambda x: product(np.reshape(x, -1)), dtype=to_numpy(y).dtype)
    start = np.random.default_rng(0).standard_normal(2 * n).astype(operator.dtype)
    size = min(2 * n, max(4 * count, 40))
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
