"""A whole sequence by one kernel per direction, whatever the kernels are: what is computed before and after them.

What comes from the input is one large product before the loop over the steps,
the gradients of the weights are large products after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .implementation import Setup


class Stacked:
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


class Launch:
    """The weights of one sequence as the kernels take them.

    Attributes
    ----------
    matrices : Tensor
        (6, width, width), rows are outputs: y -> b0, a -> b0, y -> b1, a -> b1, pool -> a, y -> y.
    rates : Tensor
        (4, n): dt/tau of y, a, b0, b1, flat.
    sigma2 : Tensor
        (n,).
    sums : int
        How many sums over sequences the backward pass leaves for the rates.
    """

    sums: int

    def __init__(self, stacked: Stacked, width: int) -> None:
        n = stacked.n
        self.stacked = stacked
        y0a0, y1a1 = stacked.from_ya.split(n)
        zero = torch.zeros_like(stacked.w)
        six = torch.stack(
            [*y0a0.split(n, dim=1), *y1a1.split(n, dim=1), stacked.w, zero if stacked.w_r is None else stacked.w_r]
        )
        room = width - n
        self.matrices = torch.nn.functional.pad(six, (0, room, 0, room))
        self.sigma2 = stacked.sigma2.expand(n).contiguous()
        self.rates = torch.cat([stacked.rate_ya, stacked.rate_b])

    def __call__(self, direction: str, *arguments: Any, **options: Any) -> None:
        """Run the kernel of a direction; ``options`` are OUTPUTS and, forward, SAVE."""
        raise NotImplementedError


def kept_shapes(setup: Setup, xs: Tensor, n: int, identity: bool) -> list[tuple[int, ...]]:
    """Shapes of the tensors that wait for the backward pass: targets and raw z, [y, a], [b0, b1], h."""
    steps, batch, _ = xs.shape
    if not setup.gradient:
        return []
    return [(steps, batch, 3 * n), (steps, batch, 2 * n), (steps, batch, 2 * n), (0 if identity else steps, batch, n)]


def forward(
    made: type[Launch],
    setup: Setup,
    xs: Tensor,
    start: Tensor,
    sigma: Tensor,
    weights: Sequence[Tensor | None],
) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """ys (T, N, n) if wanted, the last state (4, N, n), and what waits for the backward pass."""
    steps, batch, k = xs.shape
    launch = made(Stacked(sigma, setup.main, *weights), xs)
    n = launch.stacked.n
    kept = [xs.new_empty(shape) for shape in kept_shapes(setup, xs, n, weights[1] is None)]
    inputs = kept[0] if kept else xs.new_empty(steps, batch, 3 * n)
    torch.matmul(xs.reshape(-1, k), launch.stacked.from_x.T, out=inputs.view(-1, 3 * n))
    last = xs.new_empty(4, batch, n)
    ys = xs.new_empty(steps, batch, n) if setup.outputs else None
    launch(
        "forward",
        *(inputs, launch.matrices.transpose(1, 2).contiguous(), launch.rates, launch.sigma2, start.contiguous(), last),
        *(xs if ys is None else ys, *(kept[1:] if kept else (xs, xs, xs))),  # xs in place of what is unused
        *(steps, batch, n),
        OUTPUTS=setup.outputs,
        SAVE=setup.gradient,
    )
    return ys, last, kept


def backward(
    made: type[Launch],
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
    steps, batch, _ = xs.shape
    launch = made(Stacked(sigma, setup.main, *weights), xs)
    stacked = launch.stacked
    n = stacked.n
    inputs, ya, b, h = kept
    g_start = xs.new_empty(4, batch, n)
    g_inputs, g_h = torch.empty_like(inputs), torch.empty_like(h)
    g_a, pools = (xs.new_empty(steps, batch, n) for _ in range(2))
    g_rates = xs.new_empty(launch.sums, 4, n)
    given = None if g_ys is None else g_ys.contiguous()
    tapes = (inputs, ya, b, h, given, g_inputs, g_h, g_a, pools)
    launch(
        "backward",
        *(xs if tape is None or tape.numel() == 0 else tape[-1] for tape in tapes),  # xs in place of what is unused
        *(launch.matrices, launch.rates, launch.sigma2),
        *(xs.new_zeros(4, batch, n) if g_last is None else g_last.contiguous(), g_start, g_rates),
        *(steps, batch, n),
        OUTPUTS=given is not None,
    )

    def over_all(left: Tensor, right: Tensor) -> Tensor:
        return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])

    raw_w = over_all(g_a, pools)
    rate_y, rate_a, *rate_b = g_rates.sum(0).unbind(0)
    total = [
        over_all(g_inputs, xs),
        over_all(g_inputs[..., : 2 * n], ya),
        raw_w if stacked.w_r is None else over_all(g_h, ya[..., :n]),
        raw_w * stacked.rate_a[:, None],
        rate_y,
        rate_a + (raw_w * stacked.w).sum(1),
        torch.cat(rate_b),
    ]
    g_x = torch.matmul(g_inputs, stacked.from_x) if wants_x else None
    return g_x, g_start, stacked.unstack(total)
