"""torch: the circuit's vector field on packed states [y, a], in buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from organics_core.circuit import VARIANTS, Circuit
from organics_core.weights import Operator

from .torch_buffers import plain


def slope(
    circuit: Circuit, z: torch.Tensor, start: torch.Tensor, columns: bool
) -> Callable[[Any, torch.Tensor], torch.Tensor] | None:
    """x' under the constant drive ``z`` for states shaped like ``start``; None where it does not apply."""
    if columns:
        return None
    flags = VARIANTS[circuit.variant]
    dense = [part for part in circuit if isinstance(part, torch.Tensor)]
    if any(part is not None and not isinstance(part, Operator) and part.ndim > 2 for part in circuit[:2]):
        return None
    if any(isinstance(part, Operator) for part in circuit[:2]) or not plain(*dense, z, start):
        return None
    n = int(z.shape[-1])
    half = (*start.shape[:-1], n)

    def packed(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return torch.cat([one.expand(half), two.expand(half)], dim=-1)

    base = packed(circuit.b * z, (circuit.b0 * circuit.sigma) ** 2)
    rate = 1.0 / packed(circuit.tau_y, circuit.tau_a)
    w_r, w = circuit.w_r, circuit.w

    def product(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        return torch.mv(matrix, vector) if vector.ndim == 1 else torch.matmul(vector, matrix.T)

    def field(t: Any, x: torch.Tensor) -> torch.Tensor:
        y, a = x.tensor_split(2, dim=-1)
        pooled = torch.relu(a)
        positive = torch.relu(y) if flags.source or flags.response else y
        recurrent = positive if flags.source else y
        if w_r is not None:
            recurrent = product(w_r, recurrent)
        if flags.drive:
            recurrent = torch.relu(recurrent)
        response = positive if flags.response else y
        gated = torch.addcmul(recurrent, torch.sqrt(pooled), recurrent, value=-1.0)
        result = torch.cat([gated, product(w, pooled.mul_(response).mul_(response))], dim=-1)
        return result.add_(base).sub_(x).mul_(rate)

    return field
