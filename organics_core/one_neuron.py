"""Every root of the equations of one neuron, in plain numbers: bracketed, so that none is missed."""

from __future__ import annotations

import math
from collections.abc import Callable

from .circuit import VARIANTS


def roots_of_variant(w_r: float, w: float, drive: float, floor: float, variant: str) -> list[tuple[float, float]]:
    """All (y, a) of one neuron: solve on each side of the kink, keep what lies there."""
    flags = VARIANTS[variant]
    if not any(flags):
        return _linear_roots(w_r, w, drive, floor, pooled=True)
    found = []
    for sign in (1, -1):  # the sign of y
        source = sign > 0 or not flags.source
        on = source and (w_r * sign > 0 or not flags.drive)
        pooled = sign > 0 or not flags.response
        for y, a in _linear_roots(w_r if on else 0.0, w, drive, floor, pooled=pooled):
            if y * sign > 0 or (y == 0 and sign > 0):
                found.append((y, a))
    return found


def _linear_roots(w_r: float, w: float, drive: float, floor: float, *, pooled: bool) -> list[tuple[float, float]]:
    """(y, a) with y (1 - w_r + w_r s) = drive and a = floor**2 + [pooled] w a y**2."""
    if not pooled or w == 0.0:
        denominator = 1.0 - w_r + w_r * floor
        return [(drive / denominator, floor**2)] if denominator != 0.0 else []
    if drive == 0.0:
        found = [(0.0, floor**2)]
        s = (w_r - 1.0) / w_r if w_r != 0.0 else -1.0
        if s > floor:  # the symmetric pair
            y = math.sqrt((s * s - floor**2) / (w * s * s))
            found += [(-y, s * s), (y, s * s)]
        return found
    if w_r == 0.0:
        rest = 1.0 - w * drive**2
        return [(drive, floor**2 / rest)] if rest > 0.0 else []
    # |1 - w_r + w_r s| = h: with s = floor + t, q + r t = h has one root and q + r t = -h none or two. They are sought
    # in u = sqrt(s**2 - floor**2), which goes with the drive where that is tiny, and t with its square
    r = abs(w_r)
    q = math.copysign(1.0, w_r) * (1.0 - w_r + w_r * floor)
    root_c = math.sqrt(w) * abs(drive)

    def h(u: float) -> float:
        return root_c * math.hypot(floor, u) / u

    def line(u: float) -> float:
        return q + r * (u * (u / (math.hypot(floor, u) + floor)))

    def u_of(t: float) -> float:
        return math.sqrt(t) * math.sqrt(2.0 * floor + t)

    # there q + r t > 1.2 root_c, and h < 1.2 root_c
    far = max(floor, (abs(q) + 2.0 * root_c) / r)
    roots = [(1.0, _bisect(lambda u: line(u) - h(u), 0.0, u_of(far)))]
    # q + r t + h is convex in t; its lowest point
    lowest = (root_c * floor**2 / r) ** (1.0 / 3.0)
    if lowest > 0.0 and line(lowest) + h(lowest) < 0.0:
        roots.append((-1.0, _bisect(lambda u: -(line(u) + h(u)), 0.0, lowest)))
        roots.append((-1.0, _bisect(lambda u: line(u) + h(u), lowest, u_of(-q / r))))
    return [(drive / ((side if w_r > 0 else -side) * h(u)), math.hypot(floor, u) ** 2) for side, u in roots]


def _bisect(rising: Callable[[float], float], low: float, high: float) -> float:
    """The root of a function that is negative just above ``low`` and positive at ``high``."""
    for _ in range(1100):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if rising(middle) < 0.0:
            low = middle
        else:
            high = middle
    return high
