"""The native whole-sequence derivative as an autograd Function."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from . import native

# The order of the arguments in sequence.cpp.
ARGUMENTS = (
    *("steps", "batch", "inputs", "units", "main", "threads", "rows", "chunk", "period", "keep"),
    *("x_t", "x_r", "y_t", "y_r", "gy_t", "gy_r", "gx_t", "gx_r"),
    *("x", "w_zx", "w_r", "w", "w_bx0", "w_by0", "w_ba0", "w_bx1", "w_by1", "w_ba1"),
    *("r_y", "r_a", "r_b0", "r_b1", "sigma"),
    *("start", "ys", "last", "tape", "marks"),
    *("g_ys", "g_last", "g_x", "g_start"),
    *("g_w_zx", "g_w_r", "g_w", "g_w_bx0", "g_w_by0", "g_w_ba0", "g_w_bx1", "g_w_by1", "g_w_ba1"),
    *("g_r_y", "g_r_a", "g_r_b0", "g_r_b1"),
)
WEIGHTS = ("w_zx", "w_r", "w", "w_bx0", "w_by0", "w_ba0", "w_bx1", "w_by1", "w_ba1", "r_y", "r_a", "r_b0", "r_b1")
_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
_ROWS = 64
_CHUNK_NUMBERS = 32768  # per array: rows * steps * units of a chunk, so that a chunk's arrays fit into the cache


def available(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the native sequence can take tensors of this kind."""
    return device.type == "cpu" and dtype in _SUFFIX and native.load() is not None


class _Arguments:
    """Named 64-bit arguments; keeps the tensors alive whose addresses it holds."""

    def __init__(self, **numbers: int) -> None:
        self._array = (ctypes.c_int64 * len(ARGUMENTS))()
        self._tensors: list[Tensor] = []
        for name, value in numbers.items():
            self.number(name, value)

    def number(self, name: str, value: int) -> None:
        self._array[ARGUMENTS.index(name)] = value

    def tensor(self, name: str, value: Tensor | None) -> None:
        if value is not None:
            self._tensors.append(value)
            self.number(name, value.data_ptr())

    def call(self, function: str, dtype: torch.dtype) -> int:
        return int(getattr(native.load(), f"organics_{function}_{_SUFFIX[dtype]}")(ctypes.addressof(self._array)))

    def run(self, function: str, dtype: torch.dtype) -> None:
        if self.call(function, dtype):
            raise MemoryError("the native sequence ran out of memory")


def _rows(batch: int, threads: int) -> int:
    """Sequences per block: at most 64, and the same number of blocks for every thread."""
    rounds = math.ceil(batch / (threads * _ROWS))
    return math.ceil(batch / (threads * rounds))


def _with_unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


class FusedSequence(torch.autograd.Function):
    """ys (T, N, n) or None, and the last y, a, b0, b1, of the native sequence."""

    @staticmethod
    def forward(
        ctx: Any,
        xs: Tensor,
        y: Tensor,
        a: Tensor,
        b0: Tensor,
        b1: Tensor,
        sigma: Tensor,
        variant: str,
        outputs: bool,
        checkpoint_every: int | None,
        needs_gradient: bool,
        *weights: Tensor | None,
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
        steps, batch, k = xs.shape
        n = y.shape[-1]
        xs = _with_unit_stride(xs)
        threads = max(1, min(torch.get_num_threads(), batch))
        rows = _rows(batch, threads)
        chunk = max(1, min(steps, 16, _CHUNK_NUMBERS // (rows * n)))
        period = steps
        if checkpoint_every is not None and checkpoint_every < steps:
            chunk = min(chunk, checkpoint_every)
            period = checkpoint_every // chunk * chunk
        checkpointed = checkpoint_every is not None
        start = torch.stack([y, a, b0, b1])
        last = torch.empty_like(start)
        ys = xs.new_empty(steps, batch, n) if outputs else None
        weights = tuple(None if value is None else value.contiguous() for value in weights)
        sigma = sigma.expand(n).contiguous()
        numbers = {"steps": steps, "batch": batch, "inputs": k, "units": n, "main": int(variant == "main")}
        numbers |= {"threads": threads, "rows": rows, "chunk": chunk, "period": period, "keep": int(not checkpointed)}
        numbers |= {"x_t": xs.stride(0), "x_r": xs.stride(1), "y_t": batch * n, "y_r": n}
        arguments = _Arguments(**numbers)
        for name, value in zip(WEIGHTS, weights, strict=True):
            arguments.tensor(name, value)
        for name, value in (("x", xs), ("sigma", sigma), ("start", start), ("last", last), ("ys", ys)):
            arguments.tensor(name, value)
        tape = marks = None
        if needs_gradient:
            if checkpointed:
                marks = xs.new_empty(math.ceil(steps / period), 4, batch, n)
            else:
                tape = xs.new_empty(arguments.call("tape", xs.dtype))
            arguments.tensor("tape", tape)
            arguments.tensor("marks", marks)
        arguments.run("forward", xs.dtype)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(xs, sigma, tape, marks, *weights)
        ctx.numbers = numbers
        return ys, *last.unbind(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_ys: Tensor | None, *g_last: Tensor | None) -> tuple[Any, ...]:
        xs, sigma, tape, marks, *weights = ctx.saved_tensors
        numbers = ctx.numbers
        batch, n = numbers["batch"], numbers["units"]
        arguments = _Arguments(**numbers)
        for name, value in (("x", xs), ("sigma", sigma), ("tape", tape), ("marks", marks)):
            arguments.tensor(name, value)
        gradients: list[Tensor | None] = []
        for name, value in zip(WEIGHTS, weights, strict=True):
            arguments.tensor(name, value)
            gradients.append(None if value is None else torch.zeros_like(value))
            arguments.tensor(f"g_{name}", gradients[-1])
        if g_ys is not None:
            g_ys = g_ys if n == 1 and g_ys.stride(-1) != 0 else _with_unit_stride(g_ys)
            arguments.tensor("g_ys", g_ys)
            arguments.number("gy_t", g_ys.stride(0))
            arguments.number("gy_r", g_ys.stride(1))
        if any(value is not None for value in g_last):
            zero = xs.new_zeros(batch, n)
            arguments.tensor("g_last", torch.stack([zero if value is None else value for value in g_last]))
        g_x = torch.empty_like(xs, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        if g_x is not None:
            arguments.tensor("g_x", g_x)
            arguments.number("gx_t", g_x.stride(0))
            arguments.number("gx_r", g_x.stride(1))
        g_start = xs.new_empty(4, batch, n) if any(ctx.needs_input_grad[1:5]) else None
        arguments.tensor("g_start", g_start)
        arguments.run("backward", xs.dtype)
        starts = (None,) * 4 if g_start is None else g_start.unbind(0)
        return g_x, *starts, None, None, None, None, None, *gradients
