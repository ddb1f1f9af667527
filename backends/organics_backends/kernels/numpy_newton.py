"""numpy: what an iteration of ``organics_core.equilibria`` computes, of one circuit, in buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from organics_core.backend import Array
from organics_core.linalg import solve

from .numpy_circuit import is_one_dense


def newton(
    xp: Any, variant: str, circuit: Any, drive: Array, floor: Array
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]] | None:
    """``solved(a, slope) -> y, M(a)^-1``, ``direction(y, a, slope, inverted) -> image, change``, the residual.

    None for a batch, a variant, or W_r = None.
    """
    if not is_one_dense(variant, circuit, drive):
        return None
    n, w_r, w = drive.shape[-1], circuit.w_r, circuit.w
    right = np.eye(n, n + 1, 1, dtype=drive.dtype)
    right[:, 0] = drive
    matrix = np.empty((n, n), dtype=w_r.dtype)  # in C order, as the view of its diagonal needs
    diagonal, size = matrix.reshape(-1)[:: n + 1], np.maximum.reduce(np.abs(drive))

    def solved(a: Array, slope: Array) -> tuple[Array, Array]:
        np.multiply(w_r, (np.sqrt(a) - 1.0)[:, None], out=matrix)
        np.add(diagonal, 1.0, out=diagonal)
        both = solve(np, matrix, right)
        return both[:, 0], both[:, 1:]

    def direction(y: Array, a: Array, slope: Array, inverted: Array) -> tuple[Array, Array]:
        pool = a * y
        np.multiply(inverted, w_r.dot(y) / np.sqrt(a), out=matrix)
        change = (w * pool).dot(matrix)
        pool *= y
        image = floor + w.dot(pool)
        np.subtract(change, w * (y * y), out=matrix)
        np.add(diagonal, 1.0, out=diagonal)
        return image, solve(np, matrix, (image - a)[:, None])[:, 0]

    def measure(y: Array, a: Array) -> float:
        scale = np.maximum.reduce(np.abs(y)) + size
        off_y = np.maximum.reduce(np.abs(drive - y + (1.0 - np.sqrt(a)) * w_r.dot(y)))
        off_a = np.maximum.reduce(np.abs(floor - a + w.dot(a * y * y)) / (a + floor))
        return float(np.maximum(off_y / scale if scale else off_y, off_a))

    return solved, direction, measure
