"""numpy: Python loops, quiet about overflow (solvers report divergence themselves), steps with buffers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from organics_core.backend import Array, GenericBackend, Tree, host_eigvals

if TYPE_CHECKING:
    from organics_core.integration import Tableau


class NumpyBackend(GenericBackend):
    """numpy: Python loops without overflow warnings, numpy's random numbers and eigenvalues."""

    name = "numpy"

    def quiet(self) -> AbstractContextManager[Any]:
        """No warnings from loops that look out for overflow themselves."""
        return np.errstate(all="ignore")

    def scan(self, step: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
        with self.quiet():
            return super().scan(step, carry, xs)

    def while_loop(
        self,
        condition: Callable[[Tree], Array],
        body: Callable[[Tree], Tree],
        carry: Tree,
        *,
        max_steps: int,
        differentiable: bool = False,
    ) -> Tree:
        with self.quiet():
            return super().while_loop(condition, body, carry, max_steps=max_steps)

    def normal(self, seed: int, shape: tuple[int, ...], like: Array) -> Array:
        return np.random.default_rng(seed).standard_normal(shape).astype(like.dtype)

    def eigvals(self, matrix: Array) -> Any:
        return host_eigvals(matrix)

    def runge_kutta(
        self, tableau: Tableau, slope: Callable[[Any, Array], Array], t: float, h: float, x: Array, first: Array
    ) -> tuple[Array, Array, Array] | None:
        """One step by the tableau, in buffers: the new state, the slopes, the estimate of the error."""
        rows = _rows(tableau, x.dtype)
        stages = np.empty((len(rows), *x.shape), dtype=x.dtype)
        flat = stages.reshape(len(rows), -1)
        stages[0] = first
        new = x
        for k, (node, row) in enumerate(zip((*tableau.nodes[1:], 1.0), rows[:-1], strict=True), 1):
            change = np.dot(h * row, flat[:k]).reshape(x.shape)
            new = np.add(x, change, out=change)
            stages[k] = slope(t + node * h, new)
        return new, stages, np.dot(h * rows[-1], flat).reshape(x.shape)

    def circuit_slope(
        self, variant: str, arguments: tuple[Array, ...], start: Array
    ) -> Callable[[Any, Array], Array] | None:
        """The circuit's vector field on packed states [y, a], in buffers; None where it does not apply."""
        w_r, w, drive, floor, tau_y, tau_a = arguments
        if w.ndim > 2 or (w_r is not None and w_r.ndim > 2):
            return None
        n = w.shape[-1]
        half = (*start.shape[:-1], n)

        def packed(one: Array, two: Array) -> Array:
            return np.concatenate([np.broadcast_to(one, half), np.broadcast_to(two, half)], axis=-1)

        base, rate = packed(drive, floor), 1.0 / packed(tau_y, tau_a)
        w, w_r = w.T, None if w_r is None else w_r.T

        def slope(t: Any, x: Array) -> Array:
            y, a = np.ascontiguousarray(x[..., :n]), np.ascontiguousarray(x[..., n:])  # short rows are slow
            pooled = np.maximum(a, 0.0)
            response = y if variant == "main" else np.maximum(y, 0.0)
            recurrent = response if variant == "rectified" else y
            if w_r is not None:
                recurrent = np.matmul(recurrent, w_r)
            if variant == "rectified_recurrence":
                recurrent = np.maximum(recurrent, 0.0)
            gated = np.sqrt(pooled)
            np.subtract(1.0, gated, out=gated)
            gated *= recurrent
            pooled *= response
            pooled *= response
            result = np.concatenate([gated, np.matmul(pooled, w)], axis=-1)
            result += base
            result -= x
            result *= rate
            return result

        return slope


@cache
def _rows(tableau: Tableau, dtype: Any) -> tuple[np.ndarray[Any, Any], ...]:
    """The rows of the tableau below the first, the weights, and the weights of the error."""
    return tuple(np.asarray(row, dtype=dtype) for row in (*tableau.stages[1:], tableau.weights, tableau.error or ()))


backend = NumpyBackend()
