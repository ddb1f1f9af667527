"""Products and solves with the shapes the circuit uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import device

from .backend import Array, GenericBackend, get_backend


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
