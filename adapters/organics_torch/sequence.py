"""A whole sequence through the cell: the reference loop and the faster roads to the same numbers."""

from __future__ import annotations

import array_api_compat.torch as xp
import torch
from torch import Tensor

from organics_core.cell import CellParameters, CellState, Rates, step

IMPLEMENTATIONS = ("auto", "fused", "function", "reference")


def reference_sequence(
    fields: CellParameters, w: Tensor, rates: Rates, state: CellState, xs: Tensor, variant: str
) -> tuple[Tensor, CellState]:
    """The core's step in a loop; ys (T, N, n) and the last state."""
    ys = []
    for x in xs.unbind(0):
        state = step(xp, fields, w, rates, state, x, variant)
        ys.append(state.y)
    return torch.stack(ys), state


def run_sequence(
    fields: CellParameters,
    w: Tensor,
    rates: Rates,
    state: CellState,
    xs: Tensor,
    variant: str,
    implementation: str = "auto",
) -> tuple[Tensor, CellState]:
    """ys (T, N, n) and the last state (N, n), for inputs xs (T, N, k)."""
    return reference_sequence(fields, w, rates, state, xs, variant)
