"""numpy: a step of the motion that ``organics_core.attractors.follow`` follows, of one circuit, in one buffer:
where there is no native code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from organics_core.backend import Array
from organics_core.linalg import inverse

from .numpy_circuit import is_one_dense


def motion(
    xp: Any, variant: str, circuit: Any, z: Array, tau: Array, small: Array, d: float, e: float
) -> tuple[Callable[..., Any], ...] | None:
    """``slope(x)``, ``step(x, f, h) -> moved, field there, error``, the sizes of a state, largest and least numbers.

    None for a batch, a variant, or W_r = None.
    """
    if not is_one_dense(variant, circuit, z):
        return None
    n = z.shape[-1]
    rate, per_y, per_a = 1.0 / tau, circuit.w_r / tau[:n, None], circuit.w / tau[n:, None]
    half, minus, minus_two = 0.5 * per_y, -per_a, -2.0 * per_a
    base = np.empty_like(tau)
    base[:n], base[n:] = circuit.b * z, (circuit.b0 * circuit.sigma) ** 2
    base *= rate
    matrix = np.zeros((2 * n, 2 * n), dtype=tau.dtype)
    diagonal, corner = matrix.reshape(-1)[:: 2 * n + 1], matrix.reshape(-1)[n : 2 * n * n : 2 * n + 1]
    y_by_y, a_by_y, a_by_a = matrix[:n, :n], matrix[n:, :n], matrix[n:, n:]

    def slope(x: Array) -> Array:
        y, result = x[:n], np.empty_like(x)
        gated, pooled = result[:n], np.maximum(x[n:], 0.0)
        per_y.dot(y, gated)
        gated *= 1.0 - np.sqrt(pooled)
        pooled *= y
        pooled *= y
        per_a.dot(pooled, result[n:])
        result += base
        result -= x * rate
        return result

    def step(x: Array, f: Array, h: float) -> tuple[Array, Array, Array]:
        y, a = x[:n], np.maximum(x[n:], 0.0)
        root, per_h, live = np.sqrt(a), 1.0 / (d * h), a > 0  # only a start has an a that is not
        np.multiply(per_y, (root - 1.0)[:, None], out=y_by_y)
        np.multiply(minus_two, a * y, out=a_by_y)
        np.multiply(minus, y * y * live, out=a_by_a)
        np.divide(half.dot(y), root, out=corner, where=live)
        np.add(diagonal, rate + per_h, out=diagonal)
        w = inverse(xp, matrix)
        w *= per_h
        k1 = w.dot(f)
        middle = slope(x + (0.5 * h) * k1)
        k2 = w.dot(middle - k1)
        k2 += k1
        moved = x + h * k2
        new = slope(moved)
        off = w.dot(new - e * (k2 - middle) - 2.0 * (k1 - f))
        off += k1
        off -= 2.0 * k2
        return moved, new, off

    def sizes(x: Array) -> Array:
        size = np.abs(x)
        size[:n] = np.maximum.reduce(size[:n])
        size += small
        return size

    def top(x: Array) -> float:
        return float(np.maximum.reduce(x))

    def least(x: Array) -> float:
        return float(np.minimum.reduce(x))

    return slope, step, sizes, top, least
