"""A whole sequence in one kernel per direction, for CUDA: the state stays on the chip from the first step to the last.

A program takes ``ROWS`` sequences through all steps. Their states live in
registers; the six hidden matrices in shared memory as far as they fit, the
others are read again from the cache at every step. What comes from the input
is one large product before the loop, the gradients of the weights are large
products after it.

How exact the products are follows ``torch.set_float32_matmul_precision``:
``"highest"`` three products of the high and low parts of the numbers, which
together keep nearly float32's precision, ``"high"`` tf32, ``"medium"``
bfloat16. Sums are float32's, but the tensor cores cut off what does not fit,
always towards zero. Products therefore have sums of their own, which join the
state and its gradient by an ordinary addition: these change little at a step,
and cut at every step they would be wrong by 1e-3 at the end of a long sequence.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import on_chip

ROWS = 16  # the least that a product of the tensor cores takes
WARPS = 8
MOST_UNITS = 128
_DOTS = {"highest": "tf32x3", "high": "tf32", "medium": "bf16"}
"""How the tensor cores multiply: three products of high and low parts in tf32, one in tf32, or one in bfloat16."""
_BYTES = {"highest": 8, "high": 4, "medium": 2}
"""Bytes that a number of a matrix takes in shared memory: tf32x3 keeps a high and a low part."""


@triton.jit
def _relu(x):
    return tl.where(x <= 0, 0.0, x)  # NaN stays NaN


@triton.jit
def _matrix(weights, index, UNITS: tl.constexpr):
    """Matrix ``index`` of the stack (6, UNITS, UNITS)."""
    rows, columns = tl.arange(0, UNITS), tl.arange(0, UNITS)
    return tl.load(weights + index * UNITS * UNITS + rows[:, None] * UNITS + columns[None, :])


@triton.jit
def _kept(weights, INDEX: tl.constexpr, RESIDENT: tl.constexpr, UNITS: tl.constexpr):
    """Matrix ``INDEX``, if it is among those that stay on the chip; else where the stack begins."""
    if INDEX < RESIDENT:
        return _matrix(weights, INDEX, UNITS)
    else:
        return weights


@triton.jit
def _tf32(x):
    """x rounded to the 11 significant bits of tf32."""
    return ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def _add_one(total, x, matrix, DOT: tl.constexpr, ROUND: tl.constexpr):
    """total + x @ matrix, by one product of the tensor cores, or three."""
    if DOT == "bf16":
        if ROUND:
            return tl.dot(x.to(tl.bfloat16).to(tl.float32), matrix.to(tl.float32), acc=total)
        else:
            return tl.dot(x.to(tl.bfloat16), matrix, acc=total)
    elif DOT == "tf32":
        if ROUND:
            x, matrix = _tf32(x), _tf32(matrix)
        return tl.dot(x, matrix, acc=total, input_precision="tf32")
    else:
        high, matrix_high = _tf32(x), _tf32(matrix)
        low, matrix_low = x - high, matrix - matrix_high
        if ROUND:
            low, matrix_low = _tf32(low), _tf32(matrix_low)
        total = tl.dot(low, matrix_high, acc=total, input_precision="tf32")
        total = tl.dot(high, matrix_low, acc=total, input_precision="tf32")
        return tl.dot(high, matrix_high, acc=total, input_precision="tf32")


@triton.jit
def _add_product(
    total,
    x,
    kept,
    weights,
    once,
    INDEX: tl.constexpr,
    RESIDENT: tl.constexpr,
    UNITS: tl.constexpr,
    DOT: tl.constexpr,
    ROUND: tl.constexpr,
):
    """total + x @ matrix ``INDEX``."""
    if INDEX < RESIDENT:
        return _add_one(total, x, kept, DOT, ROUND)
    else:
        # A loop of one turn, which the compiler does not know: it would read all the matrices first,
        # and run out of registers.
        for k in range(once):
            total = _add_one(total, x, _matrix(weights, INDEX + k, UNITS), DOT, ROUND)
        return total


@triton.jit(do_not_specialize=["once"])
def _forward(
    inputs,  # (steps, batch, 3 n): what x gives to the targets of b0, b1 and to z; with SAVE the targets replace it
    weights,  # (6, UNITS, UNITS), transposed: y -> b0, a -> b0, y -> b1, a -> b1, pool -> a, y -> y
    rates,  # (4, n): dt/tau of y, a, b0, b1
    sigma2,  # (n,)
    start,  # (4, batch, n)
    last,  # (4, batch, n)
    ys,  # (steps, batch, n)
    tape_ya,  # (steps, batch, 2 n)
    tape_b,  # (steps, batch, 2 n)
    tape_h,  # (steps, batch, n)
    steps,
    batch,
    n,
    once,  # 1
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    MAIN: tl.constexpr,
    RECURRENT: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SAVE: tl.constexpr,
    RESIDENT: tl.constexpr,
    DOT: tl.constexpr,
    ROUND: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, UNITS)
    unit = columns < n
    live = (rows < batch)[:, None] & unit[None, :]
    at = rows[:, None] * n + columns[None, :]
    at2 = rows[:, None] * 2 * n + columns[None, :]
    at3 = rows[:, None] * 3 * n + columns[None, :]
    plane = batch * n
    rate_y = tl.load(rates + columns, mask=unit, other=0.0)[None, :]
    rate_a = tl.load(rates + n + columns, mask=unit, other=0.0)[None, :]
    rate_0 = tl.load(rates + 2 * n + columns, mask=unit, other=0.0)[None, :]
    rate_1 = tl.load(rates + 3 * n + columns, mask=unit, other=0.0)[None, :]
    square = tl.load(sigma2 + columns, mask=unit, other=0.0)[None, :]
    y = tl.load(start + at, mask=live, other=0.0)
    a = tl.load(start + plane + at, mask=live, other=0.0)
    b0 = tl.load(start + 2 * plane + at, mask=live, other=0.0)
    b1 = tl.load(start + 3 * plane + at, mask=live, other=0.0)
    y0 = _kept(weights, 0, RESIDENT, UNITS)
    a0 = _kept(weights, 1, RESIDENT, UNITS)
    y1 = _kept(weights, 2, RESIDENT, UNITS)
    a1 = _kept(weights, 3, RESIDENT, UNITS)
    w = _kept(weights, 4, RESIDENT, UNITS)
    r = _kept(weights, 5, RESIDENT, UNITS)
    next0 = tl.load(inputs + at3, mask=live, other=0.0)
    next1 = tl.load(inputs + n + at3, mask=live, other=0.0)
    next_z = tl.load(inputs + 2 * n + at3, mask=live, other=0.0)
    for t in range(steps):
        target0, target1, z = next0, next1, _relu(next_z)
        here = inputs
        inputs += tl.where(t + 1 < steps, 3 * plane, 0)  # the last step reads its own again, for nothing
        next0 = tl.load(inputs + at3, mask=live, other=0.0)
        next1 = tl.load(inputs + n + at3, mask=live, other=0.0)
        next_z = tl.load(inputs + 2 * n + at3, mask=live, other=0.0)
        if SAVE:
            tl.store(tape_ya + at2, y, mask=live)
            tl.store(tape_ya + n + at2, a, mask=live)
            tl.store(tape_b + at2, b0, mask=live)
            tl.store(tape_b + n + at2, b1, mask=live)
            tape_ya += 2 * plane
            tape_b += 2 * plane
        positive = _relu(a)
        response = y if MAIN else _relu(y)
        pool = tl.zeros([ROWS, UNITS], dtype=tl.float32)
        ya0, ya1 = pool, pool
        ya0 = _add_product(ya0, y, y0, weights, once, 0, RESIDENT, UNITS, DOT, ROUND)
        ya0 = _add_product(ya0, a, a0, weights, once, 1, RESIDENT, UNITS, DOT, ROUND)
        ya1 = _add_product(ya1, y, y1, weights, once, 2, RESIDENT, UNITS, DOT, ROUND)
        ya1 = _add_product(ya1, a, a1, weights, once, 3, RESIDENT, UNITS, DOT, ROUND)
        pool = _add_product(pool, positive * response * response, w, weights, once, 4, RESIDENT, UNITS, DOT, ROUND)
        if RECURRENT:
            h = tl.zeros([ROWS, UNITS], dtype=tl.float32)
            h = _add_product(h, y, r, weights, once, 5, RESIDENT, UNITS, DOT, ROUND)
            if SAVE:
                tl.store(tape_h + at, h, mask=live)
                tape_h += plane
        else:
            h = y
        target0, target1 = tl.sigmoid(target0 + ya0), tl.sigmoid(target1 + ya1)
        if SAVE:
            tl.store(here + at3, target0, mask=live)
            tl.store(here + n + at3, target1, mask=live)
        drive = h if MAIN else _relu(h)
        y = y + rate_y * (b1 * z - y + (1.0 - tl.sqrt(positive)) * drive)
        a = a + rate_a * (square * b0 * b0 - a + pool)
        b0 = b0 + rate_0 * (target0 - b0)
        b1 = b1 + rate_1 * (target1 - b1)
        if OUTPUTS:
            tl.store(ys + at, y, mask=live)
            ys += plane
    tl.store(last + at, y, mask=live)
    tl.store(last + plane + at, a, mask=live)
    tl.store(last + 2 * plane + at, b0, mask=live)
    tl.store(last + 3 * plane + at, b1, mask=live)


@triton.jit(do_not_specialize=["once"])
def _backward(
    # of the last step, walked backwards
    inputs,  # (steps, batch, 3 n): both targets, and what x gives to z
    tape_ya,
    tape_b,
    tape_h,
    g_ys,  # (steps, batch, n)
    g_inputs,  # (steps, batch, 3 n), as is all that follows an output
    g_h,  # (steps, batch, n)
    g_a,  # (steps, batch, n): the adjoint of a
    pools,  # (steps, batch, n): max(a, 0) resp**2, what W multiplies
    # once
    weights,  # (6, UNITS, UNITS), as they are
    rates,
    sigma2,
    g_last,  # (4, batch, n)
    g_start,  # (4, batch, n)
    g_rates,  # (programs, 4, n), that of a without its pool
    steps,
    batch,
    n,
    once,  # 1
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    MAIN: tl.constexpr,
    RECURRENT: tl.constexpr,
    OUTPUTS: tl.constexpr,
    RESIDENT: tl.constexpr,
    DOT: tl.constexpr,
    ROUND: tl.constexpr,
):
    program = tl.program_id(0)
    rows = program * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, UNITS)
    unit = columns < n
    live = (rows < batch)[:, None] & unit[None, :]
    at = rows[:, None] * n + columns[None, :]
    at2 = rows[:, None] * 2 * n + columns[None, :]
    at3 = rows[:, None] * 3 * n + columns[None, :]
    plane = batch * n
    rate_y = tl.load(rates + columns, mask=unit, other=0.0)[None, :]
    rate_a = tl.load(rates + n + columns, mask=unit, other=0.0)[None, :]
    rate_0 = tl.load(rates + 2 * n + columns, mask=unit, other=0.0)[None, :]
    rate_1 = tl.load(rates + 3 * n + columns, mask=unit, other=0.0)[None, :]
    square = tl.load(sigma2 + columns, mask=unit, other=0.0)[None, :]
    gy = tl.load(g_last + at, mask=live, other=0.0)
    ga = tl.load(g_last + plane + at, mask=live, other=0.0)
    g0 = tl.load(g_last + 2 * plane + at, mask=live, other=0.0)
    g1 = tl.load(g_last + 3 * plane + at, mask=live, other=0.0)
    sum_y = tl.zeros([ROWS, UNITS], dtype=tl.float32)
    sum_a = tl.zeros([ROWS, UNITS], dtype=tl.float32)
    sum_0 = tl.zeros([ROWS, UNITS], dtype=tl.float32)
    sum_1 = tl.zeros([ROWS, UNITS], dtype=tl.float32)
    y0 = _kept(weights, 0, RESIDENT, UNITS)
    a0 = _kept(weights, 1, RESIDENT, UNITS)
    y1 = _kept(weights, 2, RESIDENT, UNITS)
    a1 = _kept(weights, 3, RESIDENT, UNITS)
    w = _kept(weights, 4, RESIDENT, UNITS)
    r = _kept(weights, 5, RESIDENT, UNITS)
    for _ in range(steps):
        target0 = tl.load(inputs + at3, mask=live, other=0.0)
        target1 = tl.load(inputs + n + at3, mask=live, other=0.0)
        raw_z = tl.load(inputs + 2 * n + at3, mask=live, other=0.0)
        y = tl.load(tape_ya + at2, mask=live, other=0.0)
        a = tl.load(tape_ya + n + at2, mask=live, other=0.0)
        b0 = tl.load(tape_b + at2, mask=live, other=0.0)
        b1 = tl.load(tape_b + n + at2, mask=live, other=0.0)
        if RECURRENT:
            h = tl.load(tape_h + at, mask=live, other=0.0)
        else:
            h = y
        if OUTPUTS:
            gy += tl.load(g_ys + at, mask=live, other=0.0)
        positive = _relu(a)
        root = tl.sqrt(positive)
        response = y if MAIN else _relu(y)
        drive = h if MAIN else _relu(h)
        pool = positive * response * response
        z = _relu(raw_z)
        change_y = rate_y * gy
        change_a = rate_a * ga
        sum_y += gy * (b1 * z - y + (1.0 - root) * drive)
        sum_a += ga * (square * b0 * b0 - a)
        sum_0 += g0 * (target0 - b0)
        sum_1 += g1 * (target1 - b1)
        delta0 = rate_0 * g0 * target0 * (1.0 - target0)
        delta1 = rate_1 * g1 * target1 * (1.0 - target1)
        delta_h = change_y * (1.0 - root)
        if not MAIN:
            delta_h = tl.where(h <= 0, 0.0, delta_h)
        tl.store(g_inputs + at3, delta0, mask=live)
        tl.store(g_inputs + n + at3, delta1, mask=live)
        tl.store(g_inputs + 2 * n + at3, tl.where(raw_z <= 0, 0.0, change_y * b1), mask=live)
        tl.store(g_a + at, ga, mask=live)
        tl.store(pools + at, pool, mask=live)
        g_pool = tl.zeros([ROWS, UNITS], dtype=tl.float32)
        new_y, new_a = g_pool, g_pool
        if RECURRENT:
            tl.store(g_h + at, delta_h, mask=live)
            new_y = _add_product(new_y, delta_h, r, weights, once, 5, RESIDENT, UNITS, DOT, ROUND)
        new_y = _add_product(new_y, delta0, y0, weights, once, 0, RESIDENT, UNITS, DOT, ROUND)
        new_a = _add_product(new_a, delta0, a0, weights, once, 1, RESIDENT, UNITS, DOT, ROUND)
        new_y = _add_product(new_y, delta1, y1, weights, once, 2, RESIDENT, UNITS, DOT, ROUND)
        new_a = _add_product(new_a, delta1, a1, weights, once, 3, RESIDENT, UNITS, DOT, ROUND)
        if not RECURRENT:
            new_y += delta_h
        g_pool = _add_product(g_pool, change_a, w, weights, once, 4, RESIDENT, UNITS, DOT, ROUND)
        new_y += g_pool * 2.0 * positive * response
        silent = a <= 0
        steep = 0.5 * change_y * drive / tl.where(silent, 1.0, root)
        new_a += tl.where(silent, 0.0, g_pool * response * response - steep)
        g0 = g0 - rate_0 * g0 + 2.0 * change_a * square * b0
        g1 = g1 - rate_1 * g1 + change_y * z
        gy = gy - change_y + new_y
        ga = ga - change_a + new_a
        inputs -= 3 * plane
        tape_ya -= 2 * plane
        tape_b -= 2 * plane
        g_inputs -= 3 * plane
        g_a -= plane
        pools -= plane
        if RECURRENT:
            tape_h -= plane
            g_h -= plane
        if OUTPUTS:
            g_ys -= plane
    tl.store(g_start + at, gy, mask=live)
    tl.store(g_start + plane + at, ga, mask=live)
    tl.store(g_start + 2 * plane + at, g0, mask=live)
    tl.store(g_start + 3 * plane + at, g1, mask=live)
    sums = g_rates + program * 4 * n + columns
    tl.store(sums, tl.sum(sum_y, axis=0), mask=unit)
    tl.store(sums + n, tl.sum(sum_a, axis=0), mask=unit)
    tl.store(sums + 2 * n, tl.sum(sum_0, axis=0), mask=unit)
    tl.store(sums + 3 * n, tl.sum(sum_1, axis=0), mask=unit)


def padded(units: int) -> int:
    """The width of the kernel's tiles: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(units))


def resident(units: int, precision: str, shared: int) -> int:
    """How many of the six matrices stay in shared memory beside what the products need.

    Parameters
    ----------
    units : int
        Padded.
    precision : {"highest", "high", "medium"}
        As torch.get_float32_matmul_precision() says it.
    shared : int
        Bytes of shared memory a program may take.
    """
    one = units * units * _BYTES[precision]
    if 6 * one <= shared - 2 * ROWS * units * 4:
        return 6
    return max(0, (shared - 3 * one // 2) // one)  # one and a half of the others are in transit


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU (``TRITON_INTERPRET=1`` when this module was imported)."""
    return not isinstance(_forward, triton.runtime.JITFunction)


def options(units: int, precision: str, shared: int, *, main: bool, recurrent: bool) -> dict[str, Any]:
    """What a launch fixes for both directions: constants of the kernels, warps, stages.

    Parameters
    ----------
    units : int
    precision : {"highest", "high", "medium"}
        As torch.get_float32_matmul_precision() says it.
    shared : int
        Bytes of shared memory a program may take.
    main : bool
        The unrectified variant.
    recurrent : bool
        Whether there is a W_r other than the identity.
    """
    width = padded(units)
    roomy = 2 * 6 * width**2 * _BYTES[precision] <= shared
    return {
        "UNITS": width,
        "ROWS": ROWS,
        "MAIN": main,
        "RECURRENT": recurrent,
        "RESIDENT": resident(width, precision, shared),
        "DOT": _DOTS[precision],
        "ROUND": interpreted(),  # it multiplies float32 only: what the tensor cores round, it rounds before
        "num_warps": WARPS,
        # with two stages the next step's tape is fetched early; more would also buffer the matrices
        "num_stages": 2 if roomy else 1,
        "enable_fp_fusion": True,
    }


class _Launch(on_chip.Launch):
    """The weights of one sequence as the kernels take them, and the options of a launch."""

    def __init__(self, stacked: on_chip.Stacked, xs: Tensor) -> None:
        super().__init__(stacked, padded(stacked.n))
        precision = torch.get_float32_matmul_precision()
        if precision == "medium":
            self.matrices = self.matrices.to(torch.bfloat16)
        self.programs = self.sums = triton.cdiv(xs.shape[1], ROWS)
        shared = 227 * 1024
        if xs.is_cuda:
            shared = torch.cuda.get_device_properties(xs.device).shared_memory_per_block_optin
        self.options = options(stacked.n, precision, shared, main=stacked.main, recurrent=stacked.w_r is not None)

    def __call__(self, direction: str, *arguments: Any, **options: Any) -> None:
        """Run the kernel, with fewer matrices in shared memory where it turns out too small."""
        kernel = _forward if direction == "forward" else _backward
        options = {**self.options, **options}
        key = (kernel, *options.items())
        for kept in range(_fits.get(key, options["RESIDENT"]), -1, -1):
            try:
                with torch.cuda.device_of(self.rates):
                    kernel[(self.programs,)](*arguments, 1, **{**options, "RESIDENT": kept})
                _fits[key] = kept
                return
            except triton.runtime.errors.OutOfResources:
                if kept == 0:
                    raise


_fits: dict[Any, int] = {}
"""How many matrices turned out to fit, per kernel and options."""


def obstacle(xs: Tensor, units: int, checkpoint_every: int | None) -> str | None:
    """Why the kernels do not take a sequence of this kind, or None."""
    if xs.dtype != torch.float32:
        return f"it takes float32, not {xs.dtype}"
    if not (xs.is_cuda or interpreted()):
        return f"it runs on CUDA, not on {xs.device}"
    if units > MOST_UNITS:
        return f"it takes at most {MOST_UNITS} units, not {units}"
    if checkpoint_every is not None:
        return "it keeps every state: checkpoint_every must be None"
    return None


kept_shapes = on_chip.kept_shapes
forward = functools.partial(on_chip.forward, _Launch)
backward = functools.partial(on_chip.backward, _Launch)
