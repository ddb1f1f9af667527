"""A whole sequence through the cell: the reference loop and the faster roads to the same numbers.

``reference``
    The core's step in a loop, differentiated by autograd.
``function``
    Plain torch with a derivative by hand, on any device (plain.py).
``fused``
    C++ for float32 and float64 on the CPU, where a compiler is found (fused.py).

A road is a module with ``kept_shapes``, ``forward`` and ``backward``.
"""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from organics_core.cell import CellParameters, CellState, Rates, step

from . import fused, native, plain
from .road import WEIGHTS, Setup

IMPLEMENTATIONS = ("auto", "fused", "function", "reference")
_ROADS: dict[str, Any] = {"fused": fused, "function": plain}


def reference_sequence(
    fields: CellParameters, w: Tensor, rates: Rates, state: CellState, xs: Tensor, variant: str
) -> tuple[Tensor, CellState]:
    """The core's step in a loop; ys (T, N, n) and the last state."""
    ys = []
    for x in xs.unbind(0):
        state = step(xp, fields, w, rates, state, x, variant)
        ys.append(state.y)
    return torch.stack(ys), state


class SequenceFunction(torch.autograd.Function):
    """ys (T, N, n) or None, and the last state (4, N, n), by one of the roads."""

    @staticmethod
    def forward(
        ctx: Any, road: str, setup: Setup, xs: Tensor, start: Tensor, sigma: Tensor, *weights: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        ys, last, kept = _ROADS[road].forward(setup, xs, start, sigma, weights)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(xs, sigma, *weights, *kept)
        ctx.road, ctx.setup = road, setup
        return ys, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_ys: Tensor | None, g_last: Tensor | None) -> tuple[Any, ...]:
        xs, sigma, *rest = ctx.saved_tensors
        weights, kept = rest[: len(WEIGHTS)], rest[len(WEIGHTS) :]
        wants_x = ctx.needs_input_grad[2]
        g_x, g_start, gradients = _ROADS[ctx.road].backward(ctx.setup, xs, sigma, weights, kept, g_ys, g_last, wants_x)
        return None, None, g_x, g_start, None, *gradients


def choose_implementation(wanted: str, fields: CellParameters, xs: Tensor) -> str:
    """The implementation that will run: ``wanted``, or for "auto" the fastest there is for these tensors.

    Raises
    ------
    RuntimeError
        When "fused" or "function" was asked for and cannot be had.
    """
    if wanted == "reference":
        return wanted
    plain = fields.sigma.requires_grad is False and xs.dtype in (torch.float32, torch.float64)
    if torch._C._functorch.peek_interpreter_stack() is not None or torch.compiler.is_compiling():
        plain = False
    if not plain:
        if wanted == "auto":
            return "reference"
        raise RuntimeError(
            f"implementation {wanted!r} needs float32 or float64, a fixed sigma, and no torch.func transform or "
            "torch.compile around it; choose 'auto' or 'reference'"
        )
    if wanted in ("auto", "fused"):
        if fused.available(xs.dtype, xs.device):
            return "fused"
        if wanted == "fused":
            raise RuntimeError(
                f"the fused implementation runs on the CPU only; the native library is {native.status()}"
            )
    return "function"


def run_sequence(
    fields: CellParameters,
    w: Tensor,
    rates: Rates,
    state: CellState,
    xs: Tensor,
    variant: str,
    implementation: str = "auto",
    *,
    outputs: bool = True,
    checkpoint_every: int | None = None,
) -> tuple[Tensor | None, CellState]:
    """ys (T, N, n), or None where they are not wanted, and the last state (N, n), for inputs xs (T, N, k)."""
    chosen = choose_implementation(implementation, fields, xs)
    if chosen == "reference":
        ys, state = reference_sequence(fields, w, rates, state, xs, variant)
        return (ys if outputs else None), state
    weights = (fields.w_zx, fields.w_r, w, fields.w_bx0, fields.w_by0, fields.w_ba0)
    weights += (fields.w_bx1, fields.w_by1, fields.w_ba1, *rates)
    start = torch.stack(list(state))
    gradient = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in (xs, start, *weights))
    setup = Setup(variant == "main", outputs, gradient, checkpoint_every or 0, torch.get_num_threads())
    with torch.autocast(xs.device.type, enabled=False):
        ys, last = SequenceFunction.apply(chosen, setup, xs, start, fields.sigma, *weights)
    return ys, CellState(*last.unbind(0))
