"""Looking into a model while it trains."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from organics_core.cell import CellParameters, CellState, cell_jacobian_abscissa

from .cell import ORGaNICsCell
from .layer import ORGaNICs


def measure_abscissa(model: nn.Module, x: Tensor) -> float:
    """Largest real part of the eigenvalues of the Jacobian, over all ORGaNICs layers and sequences of ``x``.

    Every layer is looked at in its state after the last step, its gains frozen;
    see :func:`organics_core.cell.cell_jacobian_abscissa`.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(x)``.
    x : tensor
        A few sequences.

    Returns
    -------
    float
        In units of 1/step, negative where all of it is locally stable; NaN for
        a model without ORGaNICs layers.
    """
    seen: list[tuple[ORGaNICsCell, CellState]] = []

    def record(layer: nn.Module, _: Any, result: Any) -> None:
        hn = result[1]
        for index, cell in enumerate(layer.cells):
            seen.append((cell, CellState(*(part[index] for part in hn))))

    handles = [part.register_forward_hook(record) for part in model.modules() if isinstance(part, ORGaNICs)]
    was_training = model.training
    try:
        model.eval()
        with torch.no_grad():
            if handles:
                model(x)
            largest = -math.inf if seen else math.nan
            for cell, state in seen:
                fields = CellParameters(*(None if p is None else p.detach().double() for p in cell.fields()))
                state = CellState(*(part.double() for part in state))
                drive = state.y.new_zeros(*state.y.shape[:-1], cell.input_size)
                found = cell_jacobian_abscissa(fields, state, drive, max_rates=cell.max_rates, variant=cell.variant)
                largest = max(largest, float(found.max()))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return largest
