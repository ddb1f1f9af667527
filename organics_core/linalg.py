"""Products and solves with the shapes the circuit uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import device

from .backend import Array, GenericBackend, get_backend


def matmul(xp: Any, left: Array, right: Array) -> Array:
    """``left @ right`` with no more rounding than its dtype has, whatever the library does by default."""
    product = getattr(get_backend(xp), "matmul", None)  # of a backend whose library rounds more than that
    return xp.matmul(left, right) if product is None else product(left, right)


def vecdot(xp: Any, left: Array, right: Array, axis: int = -1) -> Array:
    """Sums of products along an axis, rounded as by :func:`matmul`."""
    product = getattr(get_backend(xp), "vecdot", None)
    return xp.vecdot(left, right, axis=axis) if product is None else product(left, right, axis)


def solve(xp: Any, matrix: Array, right: Array) -> Array:
    """Solve ``matrix x = right`` for (..., n, n) and (..., n, k); singular matrices give NaN."""
    if matrix.shape[:-2] != right.shape[:-2]:
        batch = broadcast_shapes(tuple(matrix.shape[:-2]), tuple(right.shape[:-2]))
        matrix, right = (widen(xp, array, batch) for array in (matrix, right))
    try:
        return xp.linalg.solve(matrix, right)
    except (ValueError, RuntimeError, ArithmeticError):
        # Some libraries raise for one singular matrix of a whole batch.
        if matrix.ndim == 2:
            return xp.full(right.shape, xp.nan, dtype=right.dtype, device=device(right))
        return xp.stack([solve(xp, matrix[i, ...], right[i, ...]) for i in range(matrix.shape[0])])


def bicgstab(
    xp: Any,
    product: Callable[[Array], Array],
    right: Array,
    guess: Array,
    goal: Array | float,
    *,
    max_steps: int = 1000,
) -> Array:
    """Solve ``product(x) = right`` for (..., n) by BiCGSTAB (van der Vorst 1992), to residuals of ``goal`` (..., 1).

    Members that break down start again; one that overflows stops. Look at what it returns.
    """

    def dot(one: Array, other: Array) -> Array:
        return xp.sum(one * other, axis=-1, keepdims=True)

    def ratio(one: Array, other: Array) -> Array:
        zero = other == 0
        return xp.where(zero, 0.0, one / xp.where(zero, 1.0, other))

    def size(r: Array) -> Array:
        return xp.max(xp.abs(r), axis=-1, keepdims=True)

    def body(c: Any) -> Any:
        x, r, shadow, p, rho, active = c
        v = product(p)
        alpha = ratio(rho, dot(shadow, v))
        s = r - alpha * v
        t = product(s)
        omega = ratio(dot(t, s), dot(t, t))
        moved, rest = x + alpha * p + omega * s, s - omega * t
        next_rho = dot(shadow, rest)
        broken = (next_rho == 0) | (omega == 0)
        shadow = xp.where(broken, rest, shadow)
        next_p = xp.where(broken, rest, rest + ratio(next_rho, rho) * ratio(alpha, omega) * (p - omega * v))
        next_rho = xp.where(broken, dot(rest, rest), next_rho)
        active = active & xp.isfinite(size(rest))
        x, r, p, rho = (
            xp.where(active, new, old) for new, old in ((moved, x), (rest, r), (next_p, p), (next_rho, rho))
        )
        return x, r, shadow, p, rho, active & (size(r) > goal)

    r = right - product(guess)
    start = (guess, r, r, r, dot(r, r), size(r) > goal)
    backend = get_backend(xp)
    seen = backend.is_concrete(r) and backend.is_concrete(guess)  # then a loop on the host: nothing to be compiled anew
    loop = GenericBackend().while_loop if seen else backend.while_loop
    return loop(lambda c: xp.any(c[5]), body, start, max_steps=max_steps)[0]


def inverse(xp: Any, matrix: Array) -> Array:
    """The inverse of (..., n, n); singular matrices give NaN."""
    try:
        return xp.linalg.inv(matrix)
    except (ValueError, RuntimeError, ArithmeticError):
        # Some libraries raise for one singular matrix of a whole batch.
        if matrix.ndim == 2:
            return xp.full(matrix.shape, xp.nan, dtype=matrix.dtype, device=device(matrix))
        return xp.stack([inverse(xp, matrix[i, ...]) for i in range(matrix.shape[0])])


def eigenvalues(xp: Any, matrix: Array) -> Array:
    """Eigenvalues (..., N), complex, of general matrices (..., N, N) of any size.

    Some builds of LAPACK, scipy's and jaxlib's among them, answer wrongly where the
    largest entry lies beyond sqrt(smallest) / eps or its inverse (1e12 in float32):
    such matrices go in divided by it.
    """
    backend = get_backend(xp)
    info = xp.finfo(matrix.dtype)
    most = 1e-3 * float(info.eps) / float(info.smallest_normal) ** 0.5
    largest = backend.stop_gradient(xp.max(xp.abs(matrix), axis=(-2, -1)))
    beyond = xp.isfinite(largest) & ((largest > most) | ((largest < 1.0 / most) & (largest > 0)))
    size = xp.where(beyond, largest, xp.ones_like(largest))
    return backend.eigvals(matrix / size[..., None, None]) * size[..., None]


def m_matrix_inverse(xp: Any, couplings: Array, excess: Array) -> Array:
    """Inverse of the M-matrix with entries ``-couplings`` (..., n, n) off the diagonal and row sums ``excess`` > 0.

    Block elimination without a subtraction, each entry to a relative accuracy
    of some n eps however near to singular the matrix is (Grassmann, Taksar &
    Heyman 1985; Alfa, Xue & Ye 2002). The diagonal of ``couplings`` is not used.
    """
    n = int(excess.shape[-1])
    couplings = widen(xp, couplings, tuple(excess.shape[:-1]))
    if n == 1:
        return 1.0 / excess[..., None]
    k = n // 2
    head, tail = slice(None, k), slice(k, None)
    over, under = couplings[..., head, tail], couplings[..., tail, head]
    first = m_matrix_inverse(xp, couplings[..., head, head], excess[..., head] + xp.sum(over, axis=-1))
    moved = matmul(xp, under, first)
    second = m_matrix_inverse(
        xp,
        couplings[..., tail, tail] + matmul(xp, moved, over),
        excess[..., tail] + matmul(xp, moved, excess[..., head, None])[..., 0],
    )
    corner = matmul(xp, matmul(xp, first, over), second)
    return xp.concat(
        [
            xp.concat([first + matmul(xp, corner, moved), corner], axis=-1),
            xp.concat([matmul(xp, second, moved), second], axis=-1),
        ],
        axis=-2,
    )


def solve_vector(xp: Any, matrix: Array, right: Array) -> Array:
    """Solve ``matrix x = right`` for (..., n, n) and (..., n); singular matrices give NaN."""
    return solve(xp, matrix, right[..., None])[..., 0]


def widen(xp: Any, matrix: Array, batch: tuple[int, ...]) -> Array:
    """``matrix`` (..., k, l) with the batch axes ``batch``."""
    shape = (*batch, *matrix.shape[-2:])
    return matrix if matrix.shape == shape else xp.broadcast_to(matrix, shape)


def transpose(xp: Any, matrix: Array) -> Array:
    return xp.matrix_transpose(matrix)


def diagonal_matrix(xp: Any, vector: Array) -> Array:
    """(..., n) -> (..., n, n) with ``vector`` on the diagonal."""
    eye = xp.eye(vector.shape[-1], dtype=vector.dtype, device=device(vector))
    return eye * vector[..., None]


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The common shape of ``shapes``; ValueError where they do not broadcast. Plain Python, so it traces."""
    result: list[int] = []
    for shape in shapes:
        result = [1] * (len(shape) - len(result)) + result
        for i in range(1, len(shape) + 1):
            if result[-i] == 1:
                result[-i] = shape[-i]
            elif shape[-i] not in (1, result[-i]):
                raise ValueError(f"shapes {shapes} do not broadcast")
    return tuple(result)
