"""Products and solves with the shapes the circuit uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import device

from .backend import Array, get_backend


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


def bicgstab(
    xp: Any, product: Callable[[Array], Array], right: Array, guess: Array, goal: Array | float, *, max_steps: int = 1000
) -> Array:
    """Solve ``product(x) = right`` for (..., n) by BiCGSTAB (van der Vorst 1992) until no residual is above ``goal`` (..., 1).

    It restarts where it breaks down or its residual is not the true one, twice at most: look at what it returns.
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
        new_x, new_r = x + alpha * p + omega * s, s - omega * t
        new_rho = dot(shadow, new_r)
        new_p = new_r + ratio(new_rho, rho) * ratio(alpha, omega) * (p - omega * v)
        sound = active & xp.isfinite(size(new_r))
        x, r, p, rho = (
            xp.where(sound, new, old) for new, old in ((new_x, x), (new_r, r), (new_p, p), (new_rho, rho))
        )
        return x, r, shadow, p, rho, sound & (size(r) > goal) & (omega != 0) & (rho != 0)

    backend, x = get_backend(xp), guess
    for _ in range(3):
        r = right - product(x)
        start = (x, r, r, r, dot(r, r), size(r) > goal)
        x = backend.while_loop(lambda c: xp.any(c[5]), body, start, max_steps=max_steps)[0]
    return x


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
