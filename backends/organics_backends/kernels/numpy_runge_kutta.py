"""numpy: a Runge-Kutta step whose stages lie in one buffer, combined by products."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from organics_core.backend import Array
from organics_core.methods import RungeKutta, Slope, Step, Tableau


def step(method: RungeKutta, slope: Slope, t: float, h: float, x: Array, memory: Array, noise: None) -> Step:
    """As ``RungeKutta.plain_step``."""
    tableau, closed = method.tableau, method.ends_with_slope
    rows, error = _rows(tableau, x.dtype)
    stages = np.empty((len(rows) + closed, *x.shape), dtype=x.dtype)
    flat = stages.reshape(len(stages), -1)
    stages[0] = slope(t, x) if memory is None else memory
    new = x
    for k, (node, row) in enumerate(zip((*tableau.nodes[1:], 1.0), rows, strict=True), 1):
        change = np.dot(h * row, flat[:k]).reshape(x.shape)
        new = np.add(x, change, out=change)
        if k < len(stages):
            stages[k] = slope(t + node * h, new)
    if not closed:
        return Step(new, None, None, None)
    estimate = None if error is None else np.dot(h * error, flat).reshape(x.shape)
    return Step(new, estimate, (x, *stages), stages[-1])


@cache
def _rows(tableau: Tableau, dtype: Any) -> tuple[tuple[np.ndarray[Any, Any], ...], np.ndarray[Any, Any] | None]:
    """The rows of the tableau below the first with the weights as the last, and the weights of the error."""
    rows = tuple(np.asarray(row, dtype=dtype) for row in (*tableau.stages[1:], tableau.weights))
    return rows, None if tableau.error is None else np.asarray(tableau.error, dtype=dtype)
