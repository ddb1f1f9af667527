"""Products and solves with the shapes the circuit uses."""

from __future__ import annotations

from typing import Any

from array_api_compat import device

from .backend import Array, get_backend


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
    batch = broadcast_shapes(tuple(matrix.shape[:-2]), tuple(right.shape[:-2]))
    matrix, right = (widen(xp, array, batch) for array in (matrix, right))
    try:
        return xp.linalg.solve(matrix, right)
    except (ValueError, RuntimeError, ArithmeticError):
        # Some libraries raise for one singular matrix of a whole batch.
        if matrix.ndim == 2:
            return xp.full(right.shape, xp.nan, dtype=right.dtype, device=device(right))
        return xp.stack([solve(xp, matrix[i, ...], right[i, ...]) for i in range(matrix.shape[0])])


def inverse(xp: Any, matrix: Array) -> Array:
    """The inverse of (..., n, n); singular matrices give NaN."""
    try:
        return xp.linalg.inv(matrix)
    except (ValueError, RuntimeError, ArithmeticError):
        # Some libraries raise for one singular matrix of a whole batch.
        if matrix.ndim == 2:
            return xp.full(matrix.shape, xp.nan, dtype=matrix.dtype, device=device(matrix))
        return xp.stack([inverse(xp, matrix[i, ...]) for i in range(matrix.shape[0])])


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
