"""torch: a Runge-Kutta step whose stages lie in one buffer, combined by products."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from organics_core.methods import RungeKutta, Slope, Step, Tableau

from .torch_buffers import plain


def step(
    method: RungeKutta, slope: Slope, t: float, h: float, x: torch.Tensor, memory: torch.Tensor | None, noise: None
) -> Step | None:
    """As ``RungeKutta.plain_step``; None where a derivative is wanted."""
    call: Callable[..., torch.Tensor] = getattr(slope, "fast", None) or slope
    first = call(t, x) if memory is None else memory
    if not plain(x, first):
        return None
    tableau, closed = method.tableau, method.ends_with_slope
    rows, error = _rows(tableau, x.dtype, x.device)
    count = len(rows) + closed
    stages = x.new_empty((count, *x.shape))
    columns, flat = stages.view(count, -1).T, x.reshape(-1)
    stages[0] = first
    new = x
    for k, (node, row) in enumerate(zip((*tableau.nodes[1:], 1.0), rows, strict=True), 1):
        new = torch.addmv(flat, columns[:, :k], row, alpha=h).view(x.shape)
        if k < count:
            stages[k] = call(t + node * h, new)
    if not closed:
        return Step(new, None, None, None)
    estimate = None if error is None else h * torch.mv(columns, error).view(x.shape)
    return Step(new, estimate, (x, *stages), stages[-1])


@cache
def _rows(
    tableau: Tableau, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
    """The rows of the tableau below the first with the weights as the last, and the weights of the error."""
    rows = tuple(torch.asarray(row, dtype=dtype, device=device) for row in (*tableau.stages[1:], tableau.weights))
    return rows, None if tableau.error is None else torch.asarray(tableau.error, dtype=dtype, device=device)
