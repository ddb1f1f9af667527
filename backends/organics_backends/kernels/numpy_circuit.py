"""numpy: the circuit's vector field on packed states [y, a], in buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from organics_core.backend import Array
from organics_core.circuit import VARIANTS, Circuit
from organics_core.weights import Operator


def is_one_dense(variant: str, circuit: Circuit, drive: Array) -> bool:
    """Whether this is one circuit of the variant main, with a W_r of its own: what some kernels are for."""
    return drive.ndim == 1 and variant == "main" and circuit.w_r is not None and circuit.w_r.ndim == circuit.w.ndim == 2


def slope(circuit: Circuit, z: Array, start: Array, columns: bool) -> Callable[..., Array] | None:
    """x' under the constant drive ``z`` for states shaped like ``start``; None where it does not apply.

    With ``columns`` states are (N, B), neurons before the members of the batch:
    the halves of the state are then one block each, and short rows need no copies.
    """
    if any(not isinstance(part, Operator) and part is not None and part.ndim > 2 for part in circuit[:2]):
        return None
    if columns:
        if start.ndim != 2 or any(isinstance(part, Operator) for part in circuit[:2]):
            return None
        return _columns(circuit, z, start)
    n = int(z.shape[-1])
    half = (*start.shape[:-1], n)

    def packed(one: Array, two: Array) -> Array:
        return np.concatenate([np.broadcast_to(one, half), np.broadcast_to(two, half)], axis=-1)

    base = packed(circuit.b * z, (circuit.b0 * circuit.sigma) ** 2)
    rate = 1.0 / packed(circuit.tau_y, circuit.tau_a)
    source, drive, squared = VARIANTS[circuit.variant]
    rectified = source or squared
    w_r, w = (_Product(part) if isinstance(part, Operator) else part for part in circuit[:2])
    w_r, w = (part if part is None else part.T for part in (w_r, w))

    def field(t: Any, x: Array) -> Array:
        y, a = np.ascontiguousarray(x[..., :n]), np.ascontiguousarray(x[..., n:])  # short rows are slow
        pooled = np.maximum(a, 0.0)
        positive = np.maximum(y, 0.0) if rectified else y
        recurrent = positive if source else y
        if w_r is not None:
            recurrent = recurrent @ w_r
        if drive:
            recurrent = np.maximum(recurrent, 0.0)
        response = positive if squared else y
        gated = np.sqrt(pooled)
        np.subtract(1.0, gated, out=gated)
        gated *= recurrent
        pooled *= response
        pooled *= response
        result = np.concatenate([gated, pooled @ w], axis=-1)
        result += base
        result -= x
        result *= rate
        return result

    return field


def _columns(circuit: Circuit, z: Array, start: Array) -> Callable[..., Array]:
    n, shape = int(z.shape[-1]), start.shape

    def packed(one: Array, two: Array) -> Array:
        rows = [np.broadcast_to(part, (shape[0], n)).T for part in (one, two)]
        return np.ascontiguousarray(np.concatenate(rows, axis=0))

    base = packed(circuit.b * z, (circuit.b0 * circuit.sigma) ** 2)
    rate = 1.0 / packed(circuit.tau_y, circuit.tau_a)
    source, drive, squared = VARIANTS[circuit.variant]
    rectified = source or squared
    w_r, w = circuit.w_r, circuit.w

    def field(t: Any, x: Array, out: Array | None = None) -> Array:
        result = np.empty_like(x) if out is None else out
        y, a, gated, pool = x[:n], x[n:], result[:n], result[n:]
        pooled = np.maximum(a, 0.0)
        positive = np.maximum(y, 0.0) if rectified else y
        recurrent = positive if source else y
        if w_r is None:
            gated[...] = recurrent
        else:
            np.matmul(w_r, recurrent, out=gated)
        if drive:
            np.maximum(gated, 0.0, out=gated)
        response = positive if squared else y
        gate = np.sqrt(pooled)
        np.subtract(1.0, gate, out=gate)
        gated *= gate
        pooled *= response
        pooled *= response
        np.matmul(w, pooled, out=pool)
        result += base
        result -= x
        result *= rate
        return result

    return field


class _Product:
    """An operator on the right of ``@``."""

    __array_ufunc__ = None

    def __init__(self, operator: Operator) -> None:
        self.T = self
        self._product = operator.product

    def __rmatmul__(self, vector: Array) -> Array:
        return self._product(vector)
