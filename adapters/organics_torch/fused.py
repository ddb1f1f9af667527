"""A whole sequence in C++ (sequence.cpp of organics_backends), for float32 and float64 on the CPU."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from organics_backends.native import ARGUMENTS, layout

from . import native
from .implementation import WEIGHTS, Reserve, Setup, address, check

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
_reserve = Reserve()


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
            self.number(name, address(name, value))

    def call(self, function: str, dtype: torch.dtype) -> int:
        found = getattr(native.load(), f"organics_{function}_{_SUFFIX[dtype]}")(ctypes.addressof(self._array))
        return int(found or 0)

    def run(self, function: str, dtype: torch.dtype) -> None:
        status = self.call(function, dtype)
        if status == 1:
            raise MemoryError("the native sequence ran out of memory")
        if status:
            raise RuntimeError("the native sequence was given no memory for one of its arguments")


def _layout(setup: Setup, xs: Tensor, n: int) -> dict[str, int]:
    """The numbers that say how the tape is laid out: the same in both passes."""
    steps, batch, k = xs.shape
    numbers = layout(steps, batch, k, n, setup.main, setup.threads, setup.checkpoint_every)
    return numbers | {"x_t": xs.stride(0), "x_r": xs.stride(1), "y_t": batch * n, "y_r": n}


def kept_shapes(setup: Setup, xs: Tensor, n: int, identity: bool) -> list[tuple[int, ...]]:
    """Shapes of the tensors that wait for the backward pass."""
    if not setup.gradient:
        return []
    numbers = _layout(setup, xs, n)
    if setup.checkpoint_every:
        return [(math.ceil(numbers["steps"] / numbers["period"]), 4, numbers["batch"], n)]
    arguments = _Arguments(**numbers)
    arguments.number("w_r", int(not identity))
    return [(arguments.call("tape", xs.dtype),)]


def forward(
    setup: Setup, xs: Tensor, start: Tensor, sigma: Tensor, weights: Sequence[Tensor | None]
) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """ys (T, N, n) if wanted, the last state (4, N, n), and what waits for the backward pass."""
    steps, batch, _ = xs.shape
    n = start.shape[-1]
    xs = _with_unit_stride(xs)
    kept = [_reserve.empty(shape, xs.dtype) for shape in kept_shapes(setup, xs, n, weights[1] is None)]
    ys = xs.new_empty(steps, batch, n) if setup.outputs else None
    last = xs.new_empty(4, batch, n)
    arguments = _common(setup, xs, sigma, weights, kept, n)
    for name, value in (("start", start.contiguous()), ("last", last), ("ys", ys)):
        arguments.tensor(name, value)
    arguments.run("forward", xs.dtype)
    return ys, last, kept


class Step:
    """One step of a cell, again and again: packs the weights once, reads ``x`` (N, k), writes ``state`` (4, N, n)."""

    def __init__(self, setup: Setup, x: Tensor, state: Tensor, sigma: Tensor, weights: Sequence[Tensor | None]) -> None:
        check(x[None], sigma, weights, {"start": state})
        self._memory = (x, state)  # the stream holds their addresses
        arguments = _common(setup, x[None], sigma, weights, (), state.shape[-1])
        arguments.tensor("start", state)
        arguments.tensor("last", state)
        self._stream = arguments.call("stream_open", x.dtype)
        if not self._stream:
            raise MemoryError("the native step ran out of memory")
        library, suffix = native.load(), _SUFFIX[x.dtype]
        self._step = getattr(library, f"organics_stream_step_{suffix}")
        close = getattr(library, f"organics_stream_close_{suffix}")
        weakref.finalize(self, close, self._stream).atexit = False

    def __call__(self) -> None:
        self._step(self._stream)


def backward(
    setup: Setup,
    xs: Tensor,
    sigma: Tensor,
    weights: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    g_ys: Tensor | None,
    g_last: Tensor | None,
    wants_x: bool,
) -> tuple[Tensor | None, Tensor, list[Tensor | None]]:
    """Gradients of xs (where wanted), of the start state (4, N, n), and of the weights."""
    assert weights[2] is not None  # W; only W_r may be missing
    batch, n = xs.shape[1], weights[2].shape[0]
    [shape] = kept_shapes(setup._replace(gradient=True), xs, n, weights[1] is None)
    check(xs, sigma, weights, {"g_ys": g_ys, "g_last": g_last, "kept": kept[0]}, kept=shape)
    xs = _with_unit_stride(xs)
    arguments = _common(setup, xs, sigma, weights, kept, n)
    gradients = [
        None if value is None else torch.zeros_like(value, memory_format=torch.contiguous_format) for value in weights
    ]
    for name, value in zip(WEIGHTS, gradients, strict=True):
        arguments.tensor(f"g_{name}", value)
    g_x = torch.empty_like(xs, memory_format=torch.contiguous_format) if wants_x else None
    for name, value, letters in (("g_ys", None if g_ys is None else _with_unit_stride(g_ys), "gy"), ("g_x", g_x, "gx")):
        arguments.tensor(name, value)
        if value is not None:
            arguments.number(f"{letters}_t", value.stride(0))
            arguments.number(f"{letters}_r", value.stride(1))
    g_start = xs.new_empty(4, batch, n)
    arguments.tensor("g_start", g_start)
    arguments.tensor("g_last", None if g_last is None else g_last.contiguous())
    arguments.run("backward", xs.dtype)
    return g_x, g_start, gradients


def _common(
    setup: Setup, xs: Tensor, sigma: Tensor, weights: Sequence[Tensor | None], kept: Sequence[Tensor], n: int
) -> _Arguments:
    """What both passes are given."""
    arguments = _Arguments(**_layout(setup, xs, n))
    arguments.tensor("x", xs)
    arguments.tensor("sigma", sigma.expand(n).contiguous())
    for name, value in zip(WEIGHTS, weights, strict=True):
        arguments.tensor(name, None if value is None else value.contiguous())
    if kept:
        arguments.tensor("marks" if setup.checkpoint_every else "tape", kept[0])
    return arguments


def _with_unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or (x.shape[-1] == 1 and x.stride(-1) != 0) else x.contiguous()
