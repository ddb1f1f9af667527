"""numpy: the circuit's vector field on packed states [y, a], in buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from organics_core.backend import Array
from organics_core.circuit import VARIANTS, Circuit
from organics_core.weights import Operator


def slope(circuit: Circuit, z: Array, start: Array) -> Callable[[Any, Array], Array] | None:
    """x' under the constant drive ``z`` for states shaped like ``start``; None where it does not apply."""
    flags = VARIANTS[circuit.variant]
    if any(not isinstance(part, Operator) and part is not None and part.ndim > 2 for part in (circuit.w_r, circuit.w)):
        return None
    n = int(z.shape[-1])
    half = (*start.shape[:-1], n)

    def packed(one: Array, two: Array) -> Array:
        return np.concatenate([np.broadcast_to(one, half), np.broadcast_to(two, half)], axis=-1)

    base = packed(circuit.b * z, (circuit.b0 * circuit.sigma) ** 2)
    rate = 1.0 / packed(circuit.tau_y, circuit.tau_a)
    recur, pool = (_product(part) for part in (circuit.w_r, circuit.w))

    def field(t: Any, x: Array) -> Array:
        y, a = np.ascontiguousarray(x[..., :n]), np.ascontiguousarray(x[..., n:])  # short rows are slow
        pooled = np.maximum(a, 0.0)
        positive = np.maximum(y, 0.0) if flags.source or flags.response else y
        recurrent = recur(positive if flags.source else y)
        if flags.drive:
            recurrent = np.maximum(recurrent, 0.0)
        response = positive if flags.response else y
        gated = np.sqrt(pooled)
        np.subtract(1.0, gated, out=gated)
        gated *= recurrent
        pooled *= response
        pooled *= response
        result = np.concatenate([gated, pool(pooled)], axis=-1)
        result += base
        result -= x
        result *= rate
        return result

    return field


def _product(weights: Any) -> Callable[[Array], Array]:
    """The product with weights: nothing for the identity."""
    if weights is None:
        return lambda v: v
    if isinstance(weights, Operator):
        return weights.product
    transposed = weights.T
    return lambda v: np.matmul(v, transposed)
