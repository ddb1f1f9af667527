"""A whole sequence in plain torch, on any device, with its derivative by hand.

Units run along rows and sequences along columns, so that y, a and the gains are
contiguous halves of what is stacked: a step is few operations on whole blocks of
memory. The input's products of many steps are taken at once, and so are the
factors of the backward pass and the gradients of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .implementation import Reserve, Setup

_CHUNK_NUMBERS = 1 << 16  # numbers (steps * batch * n) handled at once: the arrays of a chunk stay in the cache
_CHUNK_NUMBERS_ELSEWHERE = 1 << 20  # the more at once, the fewer kernels
_LARGE = 1 << 21  # multiplications in a product, from which oneDNN is worth its overhead
_tapes, _scratch = Reserve(), Reserve()
_zero_below = torch.ops.aten.threshold_backward.grad_input  # (of what, where this is at most, threshold, grad_input=)


def _layout(setup: Setup, xs: Tensor, n: int) -> tuple[int, int]:
    """Steps handled at once, and steps between checkpoints, a multiple of them."""
    steps, batch, _ = xs.shape
    every = setup.checkpoint_every or steps
    numbers = _CHUNK_NUMBERS if xs.device.type == "cpu" else _CHUNK_NUMBERS_ELSEWHERE
    chunk = max(1, min(steps, numbers // max(batch * n, 1), every))
    return chunk, min(steps, every // chunk * chunk)


def _tape_shapes(steps: int, batch: int, n: int, identity: bool, chunk: int) -> list[tuple[int, ...]]:
    """Of [y; a], [B1; B0] and h of so many steps, and of [b1; b0] before every chunk."""
    wide = (steps, 2 * n, batch)
    return [wide, wide, (0 if identity else steps, n, batch), (-(-steps // chunk), 2 * n, batch)]


def kept_shapes(setup: Setup, xs: Tensor, n: int, identity: bool) -> list[tuple[int, ...]]:
    """Shapes of the tensors that wait for the backward pass."""
    steps, batch, _ = xs.shape
    if not setup.gradient:
        return []
    chunk, period = _layout(setup, xs, n)
    if setup.checkpoint_every:
        return [(-(-steps // period), 4 * n, batch)]
    return [(sum(map(math.prod, _tape_shapes(steps, batch, n, identity, chunk))),)]


def forward(
    setup: Setup, xs: Tensor, start: Tensor, sigma: Tensor, weights: Sequence[Tensor | None]
) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """ys (T, N, n) if wanted, the last state (4, N, n), and what waits for the backward pass."""
    steps, batch, _ = xs.shape
    stacked = _Stacked(sigma, setup.main, *weights)
    n, identity = stacked.n, stacked.w_r is None
    chunk, period = _layout(setup, xs, n)
    kept = [_empty(_tapes, xs, shape) for shape in kept_shapes(setup, xs, n, identity)]
    whole = setup.gradient and not setup.checkpoint_every
    tape = _Tape(stacked, steps if whole else chunk, batch, chunk, kept[0] if whole else None)
    ys = xs.new_empty(steps, batch, n) if setup.outputs else None
    state = _stack_state(start)
    for first in range(0, steps, chunk):
        if kept and not whole and first % period == 0:
            kept[0][first // period].copy_(state)
        part = slice(first, first + chunk)
        tape.forward(first if whole else 0, xs[part], state, None if ys is None else ys[part])
    return ys, _unstack_state(state), kept


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
    n = stacked.n
    chunk, period = _layout(setup, xs, n)
    adjoint = xs.new_zeros(4 * n, batch) if g_last is None else _stack_state(g_last)
    g_x = torch.empty_like(xs, memory_format=torch.contiguous_format) if wants_x else None
    whole = not setup.checkpoint_every
    tape = _Tape(stacked, steps if whole else period, batch, chunk, kept[0] if whole else None)
    factors = _Factors(stacked, batch, chunk)
    total: list[Tensor] | None = None
    for from_ in reversed(range(0, steps, period)):
        to = min(steps, from_ + period)
        if not whole:
            state = kept[0][from_ // period].clone()
            for first in range(from_, to, chunk):
                tape.forward(first - from_, xs[first : min(to, first + chunk)], state, None)
        for first in reversed(range(from_, to, chunk)):
            part = slice(first, min(to, first + chunk))
            found = factors.backward(
                tape.chunk(first if whole else first - from_, part.stop - first),
                xs[part],
                adjoint,
                None if g_ys is None else g_ys[part],
                None if g_x is None else g_x[part],
            )
            # each is a large product of its own: adding it to the running total loses nothing
            total = found if total is None else [old.add_(new) for old, new in zip(total, found, strict=True)]
    assert total is not None
    return g_x, _unstack_state(adjoint), stacked.unstack(total)


def _stack_state(state: Tensor) -> Tensor:
    """[b1; b0; y; a] (4n, N), contiguous, from y, a, b0, b1 (4, N, n)."""
    y, a, b0, b1 = state.transpose(1, 2)
    return torch.cat([b1, b0, y, a])


def _unstack_state(state: Tensor) -> Tensor:
    """The other way."""
    b1, b0, y, a = state.T.chunk(4, dim=1)
    return torch.stack([y, a, b0, b1])


def _empty(reserve: Reserve, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return reserve.empty(shape, like.dtype) if like.device.type == "cpu" else like.new_empty(shape)


def _split(memory: Tensor, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Arrays one behind the other in a flat one."""
    parts = memory.split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


# ---- products ----

try:
    _linear = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001 - torch has no public name for it
    _linear_plus = torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001
except (AttributeError, RuntimeError):  # a torch without oneDNN
    _linear = _linear_plus = None


def _by_onednn(left: Tensor, columns: int) -> bool:
    """Whether oneDNN multiplies: on some processors at twice the rate of torch's own matrix product."""
    return (
        _linear is not None
        and left.dtype == torch.float32
        and left.device.type == "cpu"
        and left.numel() * columns >= _LARGE
    )


def times(left: Tensor, right: Tensor) -> Tensor:
    """left @ right."""
    if _by_onednn(left, right.shape[1]):
        return _linear(left, right.T, None, "none", [], "")
    return torch.mm(left, right)


def _plus_times(base: Tensor, left: Tensor, right: Tensor) -> Tensor:
    if _by_onednn(left, right.shape[1]):
        return _linear_plus(left, base, right.T, None, "add")
    return torch.addmm(base, left, right)


def _add_product(to: Tensor, left: Tensor, right: Tensor) -> None:
    if _by_onednn(left, right.shape[1]):
        to.add_(_linear(left, right.T, None, "none", [], ""))
    else:
        to.addmm_(left, right)


def _over_all(left: Tensor, right: Tensor) -> Tensor:
    """Sum over steps and sequences of the outer products of the columns: (T, m, N), (T, k, N) -> (m, k)."""
    if not _by_onednn(left[0], right.shape[1]):
        return torch.bmm(left, right.transpose(1, 2)).sum(0)
    total = _linear(left[0], right[0], None, "none", [], "")
    for one, other in zip(left[1:], right[1:], strict=True):
        total = _linear_plus(one, total, other, None, "add")  # which comes last: no digits are lost
    return total


def _from_inputs(weights: Tensor, xs: Tensor) -> Tensor:
    """weights (m, k) times inputs (T, N, k): (T, m, N)."""
    x = xs.transpose(1, 2)
    return weights * x if xs.shape[-1] == 1 else torch.matmul(weights, x)


def _with_inputs(left: Tensor, xs: Tensor) -> Tensor:
    """The same sum as of :func:`_over_all` with inputs (T, N, k): (m, k)."""
    if xs.shape[-1] == 1:
        return (left * xs.transpose(1, 2)).sum((0, 2))[:, None]
    return torch.bmm(left, xs).sum(0)


class _Stacked:
    """The weights of one sequence, stacked by what they multiply from the left.

    The targets [B1; B0] come from [y; a] (2n, 2n) and from x (2n, k), the input
    drive z from x, the recurrent drive from y.
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
        self.from_x = torch.cat([w_bx1, w_bx0, w_zx])
        self.from_ya = torch.cat([torch.cat([w_by1, w_ba1], dim=1), torch.cat([w_by0, w_ba0], dim=1)])
        rate_y, rate_a, rate_b0, rate_b1 = (rate[:, None] for rate in rates)
        self.rate_y, self.rate_a = rate_y, rate_a
        self.rate_ya, self.rate_b = torch.cat([rate_y, rate_a]), torch.cat([rate_b1, rate_b0])
        self.sigma2 = (sigma * sigma).expand(self.n)[:, None]
        one = sigma.ndim == 0 and sigma.device.type == "cpu"
        self.one_sigma2 = float(sigma) ** 2 if one else None

    def unstack(self, total: list[Tensor]) -> list[Tensor | None]:
        """Gradients in the order of the arguments, from those of the stacked weights and rates."""
        n = self.n
        from_x, from_ya, w, rate_b, rate_y, rate_a = total
        rates = torch.cat([self.rate_b, self.rate_y])
        x1, x0, zx = (rates * from_x).split(n)
        rows = (rates[: len(from_ya)] * from_ya).split(n)
        (y1, a1), (y0, a0) = (part.split(n, dim=1) for part in rows[:2])
        r = None if self.w_r is None else rows[2][:, :n]
        rate_a = (self.w * w).sum(1) - rate_a
        rate_b1, rate_b0 = rate_b.split(n)
        return [zx, r, self.rate_a * w, x0, y0, a0, x1, y1, a1, -rate_y, rate_a, rate_b0, rate_b1]


class _Tape:
    """[y; a], [B1; B0] and h of some steps (max(h, 0) in the rectified variant), and [b1; b0] before every chunk."""

    def __init__(self, stacked: _Stacked, steps: int, batch: int, chunk: int, memory: Tensor | None) -> None:
        self.stacked = stacked
        self.size = chunk
        n, w = stacked.n, stacked.w
        shapes = _tape_shapes(steps, batch, n, stacked.w_r is None, chunk)
        if memory is None:
            memory = _empty(_tapes, w, (sum(map(math.prod, shapes)),))
        self.ya, self.target, self.h, self.b = _split(memory, *shapes)
        self.positive, self.goal, self.pool = (w.new_empty(rows * n, batch) for rows in (2, 2, 1))

    def chunk(self, first: int, count: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        part = slice(first, first + count)
        h = None if self.stacked.w_r is None else self.h[part]
        return self.ya[part], self.target[part], h, self.b[first // self.size]

    def forward(self, first: int, xs: Tensor, state: Tensor, ys: Tensor | None) -> None:
        """The steps of one chunk from ``state``, which afterwards is the new one; y after every step to ``ys``."""
        s, n = self.stacked, self.stacked.n
        count = xs.shape[0]
        inputs = _from_inputs(s.from_x, xs)
        from_x, drives = inputs[:, : 2 * n].unbind(), inputs[:, 2 * n :].relu_().unbind()
        b, end = state[: 2 * n], state[2 * n :]
        b1, b0 = b[:n], b[n:]
        self.b[first // self.size].copy_(b)
        self.ya[first].copy_(end)
        part = slice(first, first + count)
        every_ya, targets = self.ya[part].unbind(), self.target[part].unbind()
        every_y, every_a = self.ya[part, :n].unbind(), self.ya[part, n:].unbind()
        every_h = () if s.w_r is None else self.h[part].unbind()
        positive, pool, goal = self.positive, self.pool, self.goal
        positive_y, positive_a = positive[:n], positive[n:]
        goal_y, goal_a = goal[:n], goal[n:]
        for t, (ya, y, a, target) in enumerate(zip(every_ya, every_y, every_a, targets, strict=True)):
            torch.sigmoid(_plus_times(from_x[t], s.from_ya, ya), out=target)
            if s.main:
                response = y
                torch.clamp_min(a, 0, out=positive_a)
            else:
                response = positive_y
                torch.clamp_min(ya, 0, out=positive)
            torch.mul(positive_a, response, out=pool).mul_(response)
            if s.w_r is None:
                drive = response
            elif s.main:
                drive = every_h[t].copy_(times(s.w_r, y))
            else:
                drive = torch.clamp_min(times(s.w_r, y), 0, out=every_h[t])
            torch.addcmul(drive, positive_a.sqrt_(), drive, value=-1, out=goal_y).addcmul_(b1, drives[t])
            if s.one_sigma2 is None:
                torch.addcmul(times(s.w, pool), b0, b0 * s.sigma2, out=goal_a)
            else:
                torch.addcmul(times(s.w, pool), b0, b0, value=s.one_sigma2, out=goal_a)
            torch.lerp(ya, goal, s.rate_ya, out=every_ya[t + 1] if t + 1 < count else end)
            b.lerp_(target, s.rate_b)
            if ys is not None:
                ys[t].copy_((every_y[t + 1] if t + 1 < count else end[:n]).T)


def _parts(adjoint: Tensor, n: int) -> list[Tensor]:
    """Parts of [b1; b0; y; a] (..., 4n, N): all, all but a, the gains, [y; a], y, a."""
    return [adjoint[..., first * n : last * n, :] for first, last in ((0, 4), (0, 3), (0, 2), (2, 4), (2, 3), (3, 4))]


class _Factors:
    """What the adjoint is multiplied by, for the steps of a chunk, and the adjoint itself: [b1; b0; y; a]."""

    def __init__(self, stacked: _Stacked, batch: int, chunk: int) -> None:
        s = self.stacked = stacked
        n = s.n
        shapes = [(chunk, rows * n, batch) for rows in (4, 3, 3, 2, 2, 2, 1, 1, 1, 1, 1)]
        self.arrays = _split(_empty(_scratch, s.w, (sum(map(math.prod, shapes)),)), *shapes)
        by_delta = (s.rate_b * s.from_ya).T
        if s.w_r is None:
            self.to_ya = by_delta.contiguous()
        else:
            by_h = torch.cat([(s.rate_y * s.w_r).T, torch.zeros_like(s.w)])
            self.to_ya = torch.cat([by_delta, by_h], dim=1)
        self.to_pool = (s.rate_a * s.w).T.contiguous()
        self.stay = 1 - torch.cat([s.rate_b, s.rate_ya])
        self.from_z = s.from_x[2 * n :]
        self.to_x = (torch.cat([s.rate_b, s.rate_y]) * s.from_x).T

    def backward(
        self,
        tape: tuple[Tensor, Tensor, Tensor | None, Tensor],
        xs: Tensor,
        adjoint: Tensor,
        g_ys: Tensor | None,
        g_x: Tensor | None,
    ) -> list[Tensor]:
        """Gradients of the stacked weights and rates from one chunk; ``adjoint`` becomes that of the state before."""
        s, n, count = self.stacked, self.stacked.n, xs.shape[0]
        ya, target, h, b_start = tape
        adjoints, factor, delta, b, to_b, positive, to_a, pool_y, pool_a, pool, z = (
            array[:count] for array in self.arrays
        )
        y, a = ya[:, :n], ya[:, n:]
        b[0] = b_start
        for old, goal, new in zip(b[:-1].unbind(), target[:-1].unbind(), b[1:].unbind(), strict=True):
            torch.lerp(old, goal, s.rate_b, out=new)
        b1, b0 = b[:, :n], b[:, n:]
        torch.clamp_min(_from_inputs(self.from_z, xs), 0, out=z)
        if s.main:
            response = y
            torch.clamp_min(a, 0, out=positive[:, n:])
        else:
            torch.clamp_min(ya, 0, out=positive)
            response = positive[:, :n]
        drive = response if h is None else h
        gate = factor[:, 2 * n :]
        torch.addcmul(target, target, target, value=-1, out=factor[:, : 2 * n])
        torch.mul(positive[:, n:], response, out=pool_y)
        torch.mul(pool_y, response, out=pool)
        torch.mul(response, response, out=pool_a)
        _zero_below(pool_a, a, 0, grad_input=pool_a)
        root = positive[:, n:].sqrt_()
        torch.div(drive, root, out=to_a)
        _zero_below(to_a, a, 0, grad_input=to_a)
        to_a.mul_(-0.5 * s.rate_y)
        torch.sub(1, root, out=gate)
        if not s.main:
            _zero_below(gate, drive, 0, grad_input=gate)
        torch.mul(z, s.rate_y, out=to_b[:, :n])
        torch.mul(b0, 2 * s.rate_a * s.sigma2, out=to_b[:, n:])

        adjoints[-1] = adjoint
        _, _, all_b, _, all_y, all_a = every = _parts(adjoints, n)
        now = list(zip(*(part.unbind() for part in every), strict=True))
        before = [_parts(adjoint, n), *now[:-1]]
        factors = zip(*(part.unbind() for part in (factor, to_b, to_a, pool_y, pool_a, delta)), strict=True)
        ways = list(zip(before, now, factors, strict=True))
        for t, (new_parts, parts, (by, by_b, by_a, by_y, by_pool, d)) in reversed(list(enumerate(ways))):
            new, _, new_b, new_ya, new_y, new_a = new_parts
            g, g_rest, _, g_ya, g_y, g_a = parts
            if g_ys is not None:
                g_y.add_(g_ys[t].T)
            torch.mul(g_rest, by, out=d)
            torch.mul(g, self.stay, out=new)
            g_pool = times(self.to_pool, g_a)
            new_y.addcmul_(g_pool, by_y, value=2)
            new_a.addcmul_(g_pool, by_pool).addcmul_(g_y, by_a)
            new_b.addcmul_(g_ya, by_b)
            if h is None:
                _add_product(new_ya, self.to_ya, d[: 2 * n])
                new_y.addcmul_(d[2 * n :], s.rate_y)
            else:
                _add_product(new_ya, self.to_ya, d)

        delta_b, delta_z = delta[:, : 2 * n], torch.mul(b1, all_y, out=root)
        _zero_below(delta_z, z, 0, grad_input=delta_z)
        if g_x is not None:
            found_x = torch.matmul(self.to_x[:, : 2 * n], delta_b) + torch.matmul(self.to_x[:, 2 * n :], delta_z)
            g_x.copy_(found_x.transpose(1, 2))
        from_x = torch.cat([_with_inputs(part, xs) for part in (delta_b, delta_z)])
        error_y = torch.addcmul(y, b1, z, value=-1, out=pool_y).addcmul_(gate, drive, value=-1)
        error_a = torch.addcmul(a, b0, torch.mul(b0, s.sigma2, out=pool_a), value=-1, out=to_a)
        return [
            from_x,
            _over_all(delta_b if h is None else delta, ya),
            _over_all(all_a, pool),
            torch.sub(target, b, out=b).mul_(all_b).sum((0, 2)),
            error_y.mul_(all_y).sum((0, 2)),
            error_a.mul_(all_a).sum((0, 2)),
        ]
