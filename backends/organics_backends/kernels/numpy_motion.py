"""numpy: a step of the motion that ``organics_core.attractors.follow`` follows, of one circuit, in one buffer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from organics_core.backend import Array
from organics_core.circuit import of_variant
from organics_core.linalg import inverse

from . import numpy_circuit


def motion(
    xp: Any, variant: str, circuit: Any, z: Array, tau: Array, small: Array, d: float, e: float
) -> tuple[Callable[..., Any], ...] | None:
    """``step(x, f, h) -> moved, field there, error``, the sizes of a state, and the largest of some numbers.

    None for a batch, a variant, or W_r = None.
    """
    if z.ndim > 1 or variant != "main" or circuit.w_r is None or circuit.w_r.ndim > 2 or circuit.w.ndim > 2:
        return None
    n = z.shape[-1]
    slope: Any = numpy_circuit.slope(of_variant(circuit, variant), z, z, False)
    w_r, per_y, per_a = circuit.w_r, circuit.w_r / tau[:n, None], circuit.w / tau[n:, None]
    decay, coupling = d / tau, 0.5 * d / tau[:n]
    matrix = np.zeros((2 * n, 2 * n), dtype=tau.dtype)
    diagonal, corner = matrix.reshape(-1)[:: 2 * n + 1], matrix.reshape(-1)[n : 2 * n * n : 2 * n + 1]

    def step(x: Array, f: Array, h: Array) -> tuple[Array, Array, Array]:
        y, a = x[:n], x[n:]
        root, pull, length = np.sqrt(a), y * (-d * h), -d * h
        np.multiply(per_y, ((1.0 - root) * length)[:, None], out=matrix[:n, :n])
        np.multiply(per_a, 2.0 * a * pull, out=matrix[n:, :n])
        np.multiply(per_a, y * pull, out=matrix[n:, n:])
        diagonal[...] += 1.0 + h * decay
        corner[...] = (w_r @ y) * coupling * h / root
        w = inverse(xp, matrix)
        k1 = w @ f
        middle = slope(None, x + (0.5 * h) * k1)
        k2 = w @ (middle - k1) + k1
        moved = x + h * k2
        new = slope(None, moved)
        k3 = w @ (new - e * (k2 - middle) - 2.0 * (k1 - f))
        return moved, new, k1 - 2.0 * k2 + k3

    def sizes(x: Array) -> Array:
        size = np.abs(x)
        size[:n] = np.maximum.reduce(size[:n])
        size += small
        return size

    return step, sizes, np.maximum.reduce
