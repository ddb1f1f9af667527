"""What is bounded can be searched to its end: a grid over two neurons, and proofs that no fixed point exists.

Given y, the second equation is linear in a: (I - W diag(y**2)) a = (b0 sigma)**2. It has a positive solution where
I - W diag(y**2) is an M-matrix and nowhere else, which bounds every y_i by 1 / sqrt(w_ii); what remains is
-y + b z + (1 - sqrt(a(y))) W_r y = 0 within these bounds. Plain numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..circuit import VARIANTS

Numbers = np.ndarray[Any, Any]


def pooled_modulators(w: Numbers, floor: Numbers, squares: Numbers) -> Numbers:
    """a (..., n) of (I - W diag(squares)) a = floor, infinite where there is no positive solution."""
    n = len(floor)
    matrix = np.eye(n) - w * squares[..., None, :]
    near = np.abs(np.linalg.det(matrix)) < 1e-300
    a = np.linalg.solve(np.where(near[..., None, None], np.eye(n), matrix), np.broadcast_to(floor[:, None], (n, 1)))
    a = a[..., 0]
    good = (a > 0).all(axis=-1) & ~near
    return np.where(good[..., None], a, np.inf)


def _pair(w: Numbers, floor: Numbers, squares: Numbers) -> Numbers:
    """As :func:`pooled_modulators` for n = 2, by Cramer's rule."""
    first, second = 1.0 - w[0, 0] * squares[..., 0], 1.0 - w[1, 1] * squares[..., 1]
    right, left = w[0, 1] * squares[..., 1], w[1, 0] * squares[..., 0]
    det = first * second - right * left
    good = (first > 0) & (second > 0) & (det > 0)
    a = np.stack([floor[0] * second + right * floor[1], floor[1] * first + left * floor[0]], axis=-1)
    return np.where(good[..., None], a / np.where(good, det, 1.0)[..., None], np.inf)


def grid_of_two(
    w_r: Numbers, w: Numbers, drive: Numbers, floor: Numbers, variant: str, lines: int = 101
) -> tuple[Numbers, Numbers]:
    """(y, a) at the middle of every cell of a grid over y on whose corners both equations change sign, for n = 2."""
    flags = VARIANTS[variant]
    axes = []
    for i in range(2):
        top = 1.0 / np.sqrt(w[i, i]) if w[i, i] > 0 else 0.0
        size = max(top, 3.0 * abs(drive[i]), 1e-3)
        u = np.linspace(-1.0, 1.0, lines)
        # dense at 0 and at the bound, where a is large
        fine = np.concatenate(
            [np.sin(0.5 * np.pi * u) * (top or size), np.sinh(7.0 * u) / np.sinh(7.0) * (top or size)]
        )
        if not top or flags.response or flags.source:
            fine = np.concatenate([fine, np.sinh(5.0 * u) / np.sinh(5.0) * 10.0 * size])
        near = abs(drive[i]) * (1.0 + np.sinh(6.0 * u) / np.sinh(6.0))
        axes.append(np.unique(np.concatenate([fine, np.sign(drive[i]) * near, [-1e-9 * size, 1e-9 * size]])))
    y = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    response = np.maximum(y, 0.0) if flags.response else y
    a = _pair(w, floor, response**2)
    source = np.maximum(y, 0.0) if flags.source else y
    recurrent = source @ w_r.T
    recurrent = np.maximum(recurrent, 0.0) if flags.drive else recurrent
    with np.errstate(all="ignore"):
        value = -y + drive + (1.0 - np.sqrt(a)) * recurrent
    value = np.where(np.isfinite(value), value, np.nan)
    corners = np.stack([value[:-1, :-1], value[1:, :-1], value[:-1, 1:], value[1:, 1:]])
    # a corner beyond the bound is of either sign
    lost = np.isnan(corners)
    low = np.where(lost, -np.inf, corners).min(axis=0)
    high = np.where(lost, np.inf, corners).max(axis=0)
    inside = ~lost.all(axis=(0, -1))
    chosen = ((low <= 0) & (high >= 0)).all(axis=-1) & inside
    row, column = np.nonzero(chosen)
    with np.errstate(all="ignore"):
        middles = [0.5 * (axis[1:] + axis[:-1]) for axis in axes]
        y = np.stack([middles[0][row], middles[1][column]], axis=-1)
        response = np.maximum(y, 0.0) if flags.response else y
        a = _pair(w, floor, response**2)
    beyond = ~np.isfinite(a)
    some = np.where(np.isfinite(a[..., :1]), a, 100.0 * floor + 10.0)
    return y, np.where(beyond, some, a)


def none_exists(w_r: Numbers, w: Numbers, drive: Numbers, floor: Numbers, most: int = 60_000) -> bool:
    """Whether the main circuit is proved to have no fixed point: boxes of y are split until each is excluded.

    In a box a lies between the solutions for the smallest and for the largest squares, so every term of the equation
    lies in an interval; the intervals are widened by 1e-9 of their terms, far above rounding. False: not proved.
    """
    n = len(drive)
    if not (np.diagonal(w) > 0).all() or n > 6:
        return False
    bound = (1.0 + 1e-9) / np.sqrt(np.diagonal(w))
    low, high = -bound[None], bound[None]
    seen = 0
    while len(low):
        seen += len(low)
        if seen > most:
            return False
        zero = (low < 0) & (high > 0)
        smallest = np.where(zero, 0.0, np.minimum(low**2, high**2)) * (1.0 - 1e-9)
        largest = np.maximum(low**2, high**2) * (1.0 + 1e-9)
        with np.errstate(all="ignore"):
            least, most_a = pooled_modulators(w, floor, smallest), pooled_modulators(w, floor, largest)
            possible = np.isfinite(least).all(axis=-1)
            gate_high = 1.0 - np.sqrt(np.where(np.isfinite(least), least, 1.0)) * (1.0 - 1e-9)
            gate_low = np.where(np.isfinite(most_a), 1.0 - np.sqrt(most_a) * (1.0 + 1e-9), -np.inf)
            plus, minus = np.maximum(w_r, 0.0), np.minimum(w_r, 0.0)
            slack = 1e-9 * (np.maximum(np.abs(low), np.abs(high)) @ np.abs(w_r).T)
            r_low = low @ plus.T + high @ minus.T - slack
            r_high = high @ plus.T + low @ minus.T + slack
            products = np.stack([gate_low * r_low, gate_low * r_high, gate_high * r_low, gate_high * r_high])
            products = np.where(np.isnan(products), 0.0, products)  # infinity times zero
            margin = 1e-9 * (np.abs(drive) + np.maximum(np.abs(low), np.abs(high)))
            value_low = -high + drive + products.min(axis=0) - margin
            value_high = -low + drive + products.max(axis=0) + margin
        left = possible & ((value_low <= 0) & (value_high >= 0)).all(axis=-1)
        low, high = low[left], high[left]
        if not len(low):
            return True
        # in half, along the side that is longest in units of its bound
        side = ((high - low) / bound).argmax(axis=-1)
        one = np.arange(len(low)), side
        if ((high - low)[one] < 1e-7 * bound[side]).any():
            return False
        middle = 0.5 * (low[one] + high[one])
        upper, lower = low.copy(), high.copy()
        upper[one], lower[one] = middle, middle
        low, high = np.concatenate([low, upper]), np.concatenate([lower, high])
    return True
