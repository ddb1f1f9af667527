"""A whole sequence through the cell: the reference loop and the faster implementations to the same numbers.

``reference``
    The core's step in a loop, differentiated by autograd.
``function``
    Plain torch with a derivative by hand, on any device (plain.py).
``fused``
    C++ for float32 and float64 on the CPU, where a compiler is found (fused.py).
``cuda``
    One kernel per direction for float32 on CUDA, without tensor cores, for batches of up to about a thousand
    sequences (cuda_kernel.py).
``triton``
    Likewise with tensor cores, for larger ones, where Triton is (triton_kernel.py).
``parallel``
    All steps at once by iterations, on any device, where they converge (parallel.py).

An implementation is a module with ``kept_shapes``, ``forward`` and ``backward``.
"""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from organics_core.cell import CellParameters, CellState, Rates, step

from . import fused, native, parallel, plain
from .implementation import WEIGHTS, Setup

IMPLEMENTATIONS = ("auto", "fused", "triton", "cuda", "function", "parallel", "reference")
_MODULES: dict[str, Any] = {"fused": fused, "function": plain, "parallel": parallel}


def _module(name: str) -> Any:
    if name == "triton":
        from . import triton_kernel

        return triton_kernel
    if name == "cuda":
        from . import cuda_kernel

        return cuda_kernel
    return _MODULES[name]


def _obstacle(name: str, xs: Tensor, units: int, checkpoint_every: int | None) -> str | None:
    """Why the kernels for CUDA cannot run, or None."""
    try:
        return _module(name).obstacle(xs, units, checkpoint_every)
    except ImportError as error:
        return f"Triton is missing ({error})"


def reference_sequence(
    fields: CellParameters, w: Tensor, rates: Rates, state: CellState, xs: Tensor, variant: str
) -> tuple[Tensor, CellState]:
    """The core's step in a loop; ys (T, N, n) and the last state."""
    ys = []
    for x in xs.unbind(0):
        state = step(xp, fields, w, rates, state, x, variant)
        ys.append(state.y)
    return torch.stack(ys), state


def _without_autocast(xs: Tensor) -> Any:
    """The implementations compute in the dtype of their tensors; the backward pass, too, may run inside of autocast."""
    return torch.autocast(xs.device.type, enabled=False)


class SequenceFunction(torch.autograd.Function):
    """ys (T, N, n) or None, and the last state (4, N, n), by one of the implementations."""

    @staticmethod
    def forward(
        ctx: Any, implementation: str, setup: Setup, xs: Tensor, start: Tensor, sigma: Tensor, *weights: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        with _without_autocast(xs):
            ys, last, kept = _module(implementation).forward(setup, xs, start, sigma, weights)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(xs, sigma, *weights, *kept)
        ctx.implementation, ctx.setup = implementation, setup
        return ys, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_ys: Tensor | None, g_last: Tensor | None) -> tuple[Any, ...]:
        xs, sigma, *rest = ctx.saved_tensors
        weights, kept = rest[: len(WEIGHTS)], rest[len(WEIGHTS) :]
        wants_x = ctx.needs_input_grad[2]
        with _without_autocast(xs):
            found = _module(ctx.implementation).backward(ctx.setup, xs, sigma, weights, kept, g_ys, g_last, wants_x)
        g_x, g_start, gradients = found
        return None, None, g_x, g_start, None, *gradients


_TENSORS = ", ".join(f"Tensor{'?' if name == 'w_r' else ''} {name}" for name in WEIGHTS)
_SETUP = "str implementation, bool main, bool outputs, bool gradient, int checkpoint_every, int threads"


def module_for(wanted: str, xs: Tensor, units: int, checkpoint_every: int | None = None) -> Any:
    """The implementation that will run, as a module."""
    return _module(_choose(wanted, xs, units, checkpoint_every))


def _module_of_op(wanted: str, setup: Setup, xs: Tensor, units: int) -> Any:
    return module_for(wanted, xs, units, setup.checkpoint_every or None)


@torch.library.custom_op(
    "organics_torch::sequence",
    mutates_args=(),
    schema=f"({_SETUP}, Tensor xs, Tensor start, Tensor sigma, {_TENSORS}) -> Tensor[]",
)
def sequence_op(*arguments: Any) -> list[Tensor]:
    """:class:`SequenceFunction` as one operation that torch.compile need not look into: [ys, last, *kept]."""
    setup, (xs, start, sigma, *weights) = Setup(*arguments[1:6]), arguments[6:]
    with _without_autocast(xs):
        ys, last, kept = _module_of_op(arguments[0], setup, xs, start.shape[-1]).forward(
            setup, xs, start, sigma, weights
        )
    return [xs.new_empty(0) if ys is None else ys, last, *kept]


@sequence_op.register_fake
def _(*arguments: Any) -> list[Tensor]:
    setup, (xs, start, _, _, w_r, *_) = Setup(*arguments[1:6]), arguments[6:]
    n = start.shape[-1]
    kept = _module_of_op(arguments[0], setup, xs, start.shape[-1]).kept_shapes(setup, xs, n, w_r is None)
    ys = (*xs.shape[:2], n) if setup.outputs else (0,)
    return [xs.new_empty(shape) for shape in (ys, start.shape, *kept)]


@torch.library.custom_op(
    "organics_torch::sequence_backward",
    mutates_args=(),
    schema=(
        f"({_SETUP}, Tensor xs, Tensor sigma, {_TENSORS}, Tensor[] kept, Tensor? g_ys, Tensor? g_last, bool wants_x) "
        "-> Tensor[]"
    ),
)
def sequence_backward_op(*arguments: Any) -> list[Tensor]:
    """Its derivative: [g_xs or nothing, g_start, *g_weights without g_w_r for the identity]."""
    setup, (xs, sigma, *weights) = Setup(*arguments[1:6]), arguments[6:-4]
    with _without_autocast(xs):
        g_x, g_start, gradients = _module_of_op(arguments[0], setup, xs, weights[0].shape[0]).backward(
            setup, xs, sigma, weights, *arguments[-4:]
        )
    found = [xs.new_empty(0) if g_x is None else g_x, g_start, *(g for g in gradients if g is not None)]
    return [gradient.clone() for gradient in found]  # no two in the same memory


@sequence_backward_op.register_fake
def _(*arguments: Any) -> list[Tensor]:
    xs, weights = arguments[6], arguments[8:-4]
    g_x = xs.shape if arguments[-1] else (0,)
    shapes = [g_x, (4, xs.shape[1], weights[0].shape[0]), *(w.shape for w in weights if w is not None)]
    return [xs.new_empty(shape) for shape in shapes]


def _keep_for_op(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.setup = inputs[:6]
    ctx.wants_x = inputs[6].requires_grad
    ctx.save_for_backward(inputs[6], *inputs[8:], *output[2:])


def _differentiate_op(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    xs, sigma, *rest = ctx.saved_tensors
    weights, kept = rest[: len(WEIGHTS)], rest[len(WEIGHTS) :]
    g_ys, g_last = gradients[0] if ctx.setup[2] else None, gradients[1]
    g_x, g_start, *found = torch.ops.organics_torch.sequence_backward(
        *ctx.setup, xs, sigma, *weights, kept, g_ys, g_last, ctx.wants_x
    )
    if weights[1] is None:
        found.insert(1, None)
    return *(None,) * 6, (g_x if ctx.wants_x else None), g_start, None, *found


torch.library.register_autograd(sequence_op, _differentiate_op, setup_context=_keep_for_op)


def choose_implementation(wanted: str, fields: CellParameters, xs: Tensor, checkpoint_every: int | None = None) -> str:
    """The implementation that will run: ``wanted``, or for "auto" the fastest there is for these tensors.

    Raises
    ------
    RuntimeError
        When an implementation was asked for by name and cannot be had.
    """
    if wanted == "reference":
        return wanted
    plain = fields.sigma.requires_grad is False and xs.dtype in (torch.float32, torch.float64)
    functorch = torch._C._functorch  # noqa: SLF001 - torch has no public name for it
    if not torch.compiler.is_compiling() and functorch.peek_interpreter_stack() is not None:
        plain = False
    if not plain:
        if wanted == "auto":
            return "reference"
        raise RuntimeError(
            f"implementation {wanted!r} needs float32 or float64, a fixed sigma, and no torch.func transform "
            "around it; choose 'auto' or 'reference'"
        )
    if torch.compiler.is_compiling():
        return wanted  # the operation chooses when it runs
    return _choose(wanted, xs, fields.log_w.shape[-1], checkpoint_every)


def _choose(wanted: str, xs: Tensor, units: int, checkpoint_every: int | None) -> str:
    if wanted == "parallel":
        return wanted
    if wanted in ("auto", "fused"):
        if fused.available(xs.dtype, xs.device):
            return "fused"
        if wanted == "fused":
            raise RuntimeError(
                f"the fused implementation runs on the CPU only; the native library is {native.status()}"
            )
    names = (wanted,) if wanted in ("triton", "cuda") else ()
    if wanted == "auto" and xs.is_cuda:
        names = ("cuda", "triton") if _module("cuda").suits(xs, units) else ("triton", "cuda")
    for name in names:
        reason = _obstacle(name, xs, units, checkpoint_every)
        if reason is None:
            return name
        if wanted != "auto":
            raise RuntimeError(f"the {wanted} implementation cannot run this sequence: {reason}")
    return "function"


@torch.compiler.assume_constant_result
def _threads() -> int:
    return torch.get_num_threads()


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
    chosen = choose_implementation(implementation, fields, xs, checkpoint_every)
    if chosen == "reference":
        with _without_autocast(xs):
            ys, state = reference_sequence(fields, w, rates, state, xs, variant)
        return (ys if outputs else None), state
    gains = (fields.w_bx0, fields.w_by0, fields.w_ba0, fields.w_bx1, fields.w_by1, fields.w_ba1)
    weights = (fields.w_zx, fields.w_r, w, *gains, *rates)
    start = torch.stack(list(state))
    gradient = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in (xs, start, *weights))
    setup = Setup(variant == "main", outputs, gradient, checkpoint_every or 0, _threads())
    if torch.compiler.is_compiling():
        ys, last, *_ = torch.ops.organics_torch.sequence(chosen, *setup, xs, start, fields.sigma, *weights)
        return (ys if outputs else None), CellState(*last.unbind(0))
    ys, last = SequenceFunction.apply(chosen, setup, xs, start, fields.sigma, *weights)
    return ys, CellState(*last.unbind(0))
