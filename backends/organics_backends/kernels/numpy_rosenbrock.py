"""numpy: a Rosenbrock step whose increments lie in one buffer, combined by products."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from organics_core.backend import Array
from organics_core.linalg import inverse
from organics_core.methods import Rosenbrock, RosenbrockTableau, Slope, Step, time_derivative


def step(method: Rosenbrock, slope: Slope, t: float, h: float, x: Array, memory: None, noise: None) -> Step:
    """As ``Rosenbrock.plain_step``."""
    tableau, n, xp = method.tableau, x.shape[-1], slope.xp
    matrix = np.negative(slope.jacobian(t, x), order="C")
    matrix.reshape(*matrix.shape[:-2], n * n)[..., :: n + 1] += 1.0 / (tableau.gamma * h)
    solution = inverse(xp, matrix)
    first = slope(t, x)
    drift = None if slope.autonomous else h * time_derivative(slope, t, h, x, first)
    rows, ends = _rows(tableau, x.dtype)
    stages = np.empty((len(rows), *x.shape), dtype=x.dtype)
    flat = stages.reshape(len(rows), -1)
    for k, (node, pair) in enumerate(zip(tableau.nodes, rows, strict=True)):
        right = first
        if k:
            at, coupling = np.dot(pair, flat[:k]).reshape(2, *x.shape)
            coupling /= h
            right = np.add(coupling, slope(t + node * h, np.add(x, at, out=at)), out=coupling)
        if drift is not None and tableau.drift[k]:
            right = right + tableau.drift[k] * drift
        if solution.ndim == 2:
            np.matmul(right, solution.T, out=stages[k])
        else:
            np.matmul(solution, right[..., None], out=stages[k][..., None])
    change, *rest = np.dot(ends, flat).reshape(len(ends), *x.shape)
    new = x + change
    error = None if tableau.error is None else rest.pop()
    return Step(new, error, None if tableau.dense is None else (x, new, *rest), None)


@cache
def _rows(tableau: RosenbrockTableau, dtype: Any) -> tuple[tuple[np.ndarray[Any, Any], ...], np.ndarray[Any, Any]]:
    """The rows of both triangles, stage by stage; and those of the weights, the dense output and the error."""
    rows = tuple(np.asarray(pair, dtype=dtype) for pair in zip(tableau.stages, tableau.coupling, strict=True))
    last = () if tableau.error is None else (tableau.error,)
    return rows, np.asarray((tableau.weights, *(tableau.dense or ()), *last), dtype=dtype)
