"""A whole sequence in plain torch, on any device, with its derivative by hand.

The input's products of all steps at once, the hidden products of a step
stacked, and the gradients of the weights by large products after the loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .road import Setup

_CHUNK_NUMBERS = 1 << 18  # numbers (steps * batch * n) handled at once: the arrays of a chunk stay in the cache


def _layout(setup: Setup, steps: int, batch: int, n: int) -> tuple[int, int]:
    """Steps handled at once, and steps between checkpoints, a multiple of them."""
    every = setup.checkpoint_every or steps
    chunk = max(1, min(steps, _CHUNK_NUMBERS // max(batch * n, 1), every))
    return chunk, min(steps, every // chunk * chunk)


def kept_shapes(setup: Setup, xs: Tensor, n: int, identity: bool) -> list[tuple[int, ...]]:
    """Shapes of the tensors that wait for the backward pass."""
    steps, batch, _ = xs.shape
    if not setup.gradient:
        return []
    chunk, period = _layout(setup, steps, batch, n)
    if setup.checkpoint_every:
        return [(-(-steps // period), batch, 4 * n)]
    return _Tape.shapes(steps, batch, n, identity, chunk)


def forward(
    setup: Setup, xs: Tensor, start: Tensor, sigma: Tensor, weights: Sequence[Tensor | None]
) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """ys (T, N, n) if wanted, the last state (4, N, n), and what waits for the backward pass."""
    steps, batch, _ = xs.shape
    stacked = _Stacked(sigma, setup.main, *weights)
    n, identity = stacked.n, stacked.w_r is None
    chunk, period = _layout(setup, steps, batch, n)
    kept = [xs.new_empty(shape) for shape in kept_shapes(setup, xs, n, identity)]
    whole = setup.gradient and not setup.checkpoint_every
    arrays = kept if whole else [xs.new_empty(s) for s in _Tape.shapes(chunk, batch, n, identity, chunk)]
    tape = _Tape(stacked, chunk, arrays)
    ys = xs.new_empty(steps, batch, n) if setup.outputs else None
    ya, b = torch.cat([start[0], start[1]], dim=-1), torch.cat([start[2], start[3]], dim=-1)
    for first in range(0, steps, chunk):
        if kept and not whole and first % period == 0:
            torch.cat([ya, b], dim=-1, out=kept[0][first // period])
        at = first if whole else 0
        ya, b = tape.forward(at, xs[first : first + chunk], ya, b)
        if ys is not None:
            tape.outputs(at, ya, ys[first : first + chunk])
    return ys, _unstack_state(ya, b), kept


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
    stacked = _Stacked(sigma, setup.main, *weights)
    steps, batch, _ = xs.shape
    n, identity = stacked.n, stacked.w_r is None
    chunk, period = _layout(setup, steps, batch, n)
    if g_last is None:
        g_last = xs.new_zeros(4, batch, n)
    adjoint = torch.cat([g_last[0], g_last[1]], dim=-1), torch.cat([g_last[2], g_last[3]], dim=-1)
    g_x = torch.empty_like(xs, memory_format=torch.contiguous_format) if wants_x else None
    whole = not setup.checkpoint_every
    arrays = kept if whole else [xs.new_empty(s) for s in _Tape.shapes(period, batch, n, identity, chunk)]
    tape = _Tape(stacked, chunk, arrays)
    total: list[Tensor] | None = None
    for from_ in reversed(range(0, steps, period)):
        to = min(steps, from_ + period)
        if not whole:
            ya, b = kept[0][from_ // period].split(2 * n, dim=-1)
            for first in range(from_, to, chunk):
                ya, b = tape.forward(first - from_, xs[first : min(to, first + chunk)], ya, b)
        for first in reversed(range(from_, to, chunk)):
            part = slice(first, min(to, first + chunk))
            found, adjoint = _chunk_backward(
                stacked,
                tape.chunk(first - from_, part.stop - first),
                xs[part],
                adjoint,
                None if g_ys is None else g_ys[part],
                None if g_x is None else g_x[part],
            )
            # each is a large product of its own: adding it to the running total loses nothing
            total = found if total is None else [old.add_(new) for old, new in zip(total, found, strict=True)]
    assert total is not None
    return g_x, _unstack_state(*adjoint), stacked.unstack(total)


def _unstack_state(ya: Tensor, b: Tensor) -> Tensor:
    """y, a, b0, b1 (4, N, n) from [y, a] and [b0, b1]."""
    return torch.stack([*ya.chunk(2, dim=-1), *b.chunk(2, dim=-1)])


class _Stacked:
    """The weights of one sequence, stacked by what they multiply, transposed for products from the right.

    The targets come from [y, a] (2n, 2n) and x (k, 2n), columns B0 then B1; the
    input drive z from x; the recurrent drive from y.
    """

    def __init__(
        self,
        sigma: Tensor,
        main: bool,
        w_zx: Tensor,
        w_r: Tensor | None,
        w: Tensor,
        w_bx0: Tensor,
        w_by0: Tensor,
        w_ba0: Tensor,
        w_bx1: Tensor,
        w_by1: Tensor,
        w_ba1: Tensor,
        *rates: Tensor,
    ) -> None:
        self.main = main
        self.w_r, self.w, self.n = w_r, w, w.shape[0]
        self.from_x = torch.cat([w_bx0, w_bx1, w_zx])
        self.from_ya = torch.cat([torch.cat([w_by0, w_ba0], dim=1), torch.cat([w_by1, w_ba1], dim=1)])
        self.rate_y, self.rate_a, *rate_b = rates
        self.rate_ya, self.rate_b = torch.cat([self.rate_y, self.rate_a]), torch.cat(rate_b)
        self.sigma2 = sigma * sigma

    def unstack(self, total: list[Tensor]) -> list[Tensor | None]:
        """Gradients in the order of the arguments, from those of the stacked weights."""
        x, ya, r, w, rate_y, rate_a, rate_b = total
        n = self.n
        x0, x1, zx = x.split(n)
        (y0, a0), (y1, a1) = (rows.split(n, dim=1) for rows in ya.split(n))
        return [zx, (None if self.w_r is None else r), w, x0, y0, a0, x1, y1, a1, rate_y, rate_a, *rate_b.split(n)]


class _Tape:
    """[y, a], [B0, B1] and h of some steps, and [b0, b1] at the start of every chunk."""

    def __init__(self, stacked: _Stacked, chunk: int, arrays: Sequence[Tensor]) -> None:
        self.stacked = stacked
        self.size = chunk
        self.ya, self.target, self.h, self.b = arrays

    @staticmethod
    def shapes(steps: int, batch: int, n: int, identity: bool, chunk: int) -> list[tuple[int, ...]]:
        wide = (steps, batch, 2 * n)
        return [wide, wide, (0 if identity else steps, batch, n), (-(-steps // chunk), batch, 2 * n)]

    def chunk(self, first: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        part = slice(first, first + count)
        ya = self.ya[part]
        h = ya[..., : self.stacked.n] if self.stacked.w_r is None else self.h[part]
        return ya, self.target[part], h, self.b[first // self.size]

    def outputs(self, first: int, last: Tensor, to: Tensor) -> None:
        """y after every step of a chunk, of which ``last`` is the state at the end."""
        n, count = self.stacked.n, to.shape[0]
        to[:-1] = self.ya[first + 1 : first + count, :, :n]
        to[-1] = last[:, :n]

    def forward(self, first: int, xs: Tensor, ya: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The steps of one chunk; returns the state after it."""
        s, n = self.stacked, self.stacked.n
        count, batch, k = xs.shape
        inputs = (xs.reshape(-1, k) @ s.from_x.T).view(count, batch, 3 * n)
        drives = torch.relu(inputs[..., 2 * n :])
        to_ya, to_w, to_r = s.from_ya.T, s.w.T, None if s.w_r is None else s.w_r.T
        self.b[first // self.size] = b
        self.ya[first] = ya
        pool = torch.empty_like(drives[0])
        for i in range(count):
            t = first + i
            old = self.ya[t]
            new = self.ya[t + 1] if i + 1 < count else torch.empty_like(ya)
            y, a = old[:, :n], old[:, n:]
            target = torch.addmm(inputs[i, :, : 2 * n], old, to_ya, out=self.target[t]).sigmoid_()
            positive = torch.relu(a)
            response = y if s.main else torch.relu(y)
            torch.mm((positive * response).mul_(response), to_w, out=pool)
            h = y if to_r is None else torch.mm(y, to_r, out=self.h[t])
            drive = h if s.main else torch.relu(h)
            goal = torch.addcmul(drive, positive.sqrt_(), drive, value=-1).addcmul_(b[:, n:], drives[i])
            torch.lerp(y, goal, s.rate_y, out=new[:, :n])
            torch.lerp(a, pool.addcmul_(s.sigma2 * b[:, :n], b[:, :n]), s.rate_a, out=new[:, n:])
            b = torch.lerp(b, target, s.rate_b)
        return new, b


def _chunk_backward(
    s: _Stacked,
    tape: tuple[Tensor, Tensor, Tensor, Tensor],
    xs: Tensor,
    adjoint: tuple[Tensor, Tensor],
    g_ys: Tensor | None,
    g_x: Tensor | None,
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """Gradients of the stacked weights and rates from one chunk, and the adjoint of the state before it."""
    ya, target, h, b_start = tape
    n, steps = s.n, xs.shape[0]
    y, a = ya[..., :n], ya[..., n:]
    b = torch.empty_like(target)
    b[0] = b_start
    for t in range(steps - 1):
        torch.lerp(b[t], target[t], s.rate_b, out=b[t + 1])
    b0, b1 = b[..., :n], b[..., n:]
    z = torch.relu(xs @ s.from_x[2 * n :].T)
    # what the adjoint is multiplied by, elementwise, for all steps at once
    positive = torch.relu(a)
    root = torch.sqrt(positive)
    response = y if s.main else torch.relu(y)
    drive = h if s.main else torch.relu(h)
    gate = 1 - root
    to_h = s.rate_y * gate if s.main else s.rate_y * gate * (h > 0)
    to_a = torch.where(a > 0, drive / root, 0.0) * (-0.5 * s.rate_y)
    to_z = s.rate_y * b1 * (z > 0)
    to_b1 = s.rate_y * z
    to_b0 = (2 * s.rate_a * s.sigma2) * b0
    to_target = s.rate_b * target * (1 - target)
    squared = response * response
    pool = positive * squared
    pool_y = 2 * positive * response
    pool_a = squared * (a > 0)
    delta = torch.empty_like(target)
    delta_h = torch.empty_like(h, memory_format=torch.contiguous_format)
    all_ya, all_b = torch.empty_like(ya), torch.empty_like(target)
    scaled_w = s.w * s.rate_a[:, None]
    stay_ya, stay_b = 1 - s.rate_ya, 1 - s.rate_b
    all_ya[-1], all_b[-1] = adjoint
    gp = torch.empty_like(z[0])
    for t in reversed(range(steps)):
        g_ya, gb = all_ya[t], all_b[t]
        gy, ga = g_ya[:, :n], g_ya[:, n:]
        if g_ys is not None:
            gy += g_ys[t]
        new_ya = all_ya[t - 1] if t else torch.empty_like(g_ya)
        new_b = all_b[t - 1] if t else torch.empty_like(gb)
        torch.mul(gb, to_target[t], out=delta[t])
        torch.mul(gy, to_h[t], out=delta_h[t])
        torch.mm(ga, scaled_w, out=gp)
        torch.mul(g_ya, stay_ya, out=new_ya)
        new_ya.addmm_(delta[t], s.from_ya)
        new_y, new_a = new_ya[:, :n], new_ya[:, n:]
        if s.w_r is None:
            new_y += delta_h[t]
        else:
            new_y.addmm_(delta_h[t], s.w_r)
        new_y.addcmul_(gp, pool_y[t])
        new_a.addcmul_(gp, pool_a[t]).addcmul_(gy, to_a[t])
        torch.mul(gb, stay_b, out=new_b)
        new_b[:, :n].addcmul_(ga, to_b0[t])
        new_b[:, n:].addcmul_(gy, to_b1[t])
    all_y, all_a = all_ya[..., :n], all_ya[..., n:]

    def over_all(left: Tensor, right: Tensor) -> Tensor:
        return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])

    from_x = torch.cat([delta, all_y * to_z], dim=-1)
    if g_x is not None:
        torch.matmul(from_x, s.from_x, out=g_x)
    raw_w = over_all(all_a, pool)
    found = [
        over_all(from_x, xs),
        over_all(delta, ya),
        raw_w if s.w_r is None else over_all(delta_h, y),
        raw_w * s.rate_a[:, None],
        (all_y * torch.addcmul(torch.addcmul(-y, b1, z), gate, drive)).sum((0, 1)),
        (all_a * (s.sigma2 * b0 * b0 - a)).sum((0, 1)) + (raw_w * s.w).sum(1),
        (all_b * (target - b)).sum((0, 1)),
    ]
    return found, (new_ya, new_b)
