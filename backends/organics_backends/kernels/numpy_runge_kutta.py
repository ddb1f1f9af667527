"""numpy: a Runge-Kutta step whose state and stages lie in one buffer, combined by products."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from organics_core.backend import Array
from organics_core.methods import RungeKutta, Slope, Step, Tableau


def step(method: RungeKutta, slope: Slope, t: float, h: float, x: Array, memory: Array, noise: None) -> Step:
    """As ``RungeKutta.plain_step``."""
    tableau, closed = method.tableau, method.ends_with_slope
    call: Callable[..., Array] = getattr(slope, "fast", None) or slope
    into = getattr(slope, "into", False)  # whether it writes where it is told
    nodes, rows, error = _rows(tableau, x.dtype)
    count, shape = len(nodes), x.shape
    weights = h * rows  # row k: x, and the stages 0 to k - 1
    weights[:, 0] = 1.0
    buffer = np.empty((count + closed + 1, *shape), dtype=x.dtype)
    flat = buffer.reshape(len(buffer), -1)
    buffer[0] = x
    buffer[1] = call(t, x) if memory is None else memory
    new = x
    for k in range(1, count + 1):
        new = np.dot(weights[k - 1, : k + 1], flat[: k + 1]).reshape(shape)
        if k < count or closed:
            if into:
                call(t + nodes[k - 1] * h, new, buffer[k + 1])
            else:
                buffer[k + 1] = call(t + nodes[k - 1] * h, new)
    if not closed:
        return Step(new, None, None, None)
    estimate = None if error is None else np.dot(h * error, flat[1:]).reshape(shape)
    return Step(new, estimate, (x, *buffer[1:]), buffer[-1])


@cache
def _rows(tableau: Tableau, dtype: Any) -> tuple[tuple[float, ...], np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """The times of the states made; the weights of the stages in each, the state's own first; those of the error."""
    count = len(tableau.nodes)
    rows = np.zeros((count, count + 1), dtype=dtype)
    for k, row in enumerate((*tableau.stages[1:], tableau.weights)):
        rows[k, 1 : len(row) + 1] = row
    return (*tableau.nodes[1:], 1.0), rows, None if tableau.error is None else np.asarray(tableau.error, dtype=dtype)
