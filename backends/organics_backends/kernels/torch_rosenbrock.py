"""torch: a Rosenbrock step whose increments lie in one buffer, combined by products."""

from __future__ import annotations

from functools import cache

import torch

from organics_core.linalg import inverse
from organics_core.methods import Rosenbrock, RosenbrockTableau, Slope, Step, time_derivative

from .torch_buffers import plain


def step(
    method: Rosenbrock, slope: Slope, t: float, h: float, x: torch.Tensor, memory: None, noise: None
) -> Step | None:
    """As ``Rosenbrock.plain_step``; None where a derivative is wanted."""
    if not plain(x):
        return None
    matrix, first = slope.jacobian(t, x).neg(), slope(t, x)
    if not plain(matrix, first):
        return None
    tableau = method.tableau
    matrix.diagonal(dim1=-2, dim2=-1).add_(1.0 / (tableau.gamma * h))
    solution = inverse(slope.xp, matrix)
    drift = None if slope.autonomous else h * time_derivative(slope, t, h, x, first)
    rows, ends = _rows(tableau, x.dtype, x.device)
    stages = x.new_empty((len(rows), *x.shape))
    flat = stages.view(len(rows), -1)
    for k, (node, pair) in enumerate(zip(tableau.nodes, rows, strict=True)):
        right = first
        if k:
            at, coupling = torch.mm(pair, flat[:k]).view(2, *x.shape)
            right = torch.add(slope(t + node * h, at.add_(x)), coupling, alpha=1.0 / h)
        if drift is not None and tableau.drift[k]:
            right = torch.add(right, drift, alpha=tableau.drift[k])
        if solution.ndim > 2:
            stages[k] = torch.matmul(solution, right[..., None])[..., 0]
        elif x.ndim == 1:
            torch.mv(solution, right, out=stages[k])
        else:
            torch.matmul(right, solution.T, out=stages[k])
    change, *rest = torch.mm(ends, flat).view(len(ends), *x.shape)
    new = x + change
    error = None if tableau.error is None else rest.pop()
    return Step(new, error, None if tableau.dense is None else (x, new, *rest), None)


@cache
def _rows(
    tableau: RosenbrockTableau, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """The rows of both triangles, stage by stage; and those of the weights, the dense output and the error."""
    pairs = zip(tableau.stages, tableau.coupling, strict=True)
    rows = tuple(torch.asarray(pair, dtype=dtype, device=device) for pair in pairs)
    last = () if tableau.error is None else (tableau.error,)
    ends = (tableau.weights, *(tableau.dense or ()), *last)
    return rows, torch.asarray(ends, dtype=dtype, device=device)
