"""Proofs of stability for any W_r: float64 on the host, with every rounding bounded.

What is claimed is checked by three tests of a fixed point x, approximately known, with A close to the inverse
of the Jacobian there (theory.md derives them):

* Krawczyk: |A F(x)| + |I - A J(X)| r < r on the box X = x +- r proves one fixed point in X, and no second.
* Lyapunov: P > 0 and -(J^T P + P J) - 2 alpha P > 0 for every J in J(X) prove that it attracts, at the rate alpha;
  -(J^T P + P J) > 0 and one v with v^T P v < 0 prove that it repels (inertia).
* The same over the box around an ellipsoid of P proves that whatever starts in the ellipsoid returns.

J(X) is a float matrix and a bound of what it may be off (rounding, the box, intervals of parameters). Definiteness is
read off a floating-point Cholesky factor R: of M - c I = R R^T + E with the bound of E below c. No claim rests on an
eigenvalue, on A or on P being accurate; these come from a search that may fail, and then the answer is "undecided".
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from . import checks, weights
from .backend import Array, to_numpy
from .circuit import (
    VARIANTS,
    Circuit,
    State,
    identity_fixed_point,
    is_identity,
    prepare,
    validate_circuit,
    validate_state,
)
from .equilibria import steady_state
from .io.archives import UNREADABLE, open_npz
from .io.atomic import write_atomically
from .linalg import broadcast_shapes
from .model import check_model, check_products, full

Floats = np.ndarray[Any, Any]

_U = 2.0**-53
_TINY = 2.0**-1022
_NO_DRIVE = 1e-200
_FORMAT = "organics proof 1"
_SINGLE = 400  # above this many variables P is searched for in float32
_CONTENT = (
    "about", "reason", "stable", "radius", "decay_rate", "p", "basin", "z", "z_radius",
    *(f"circuit.{name}" for name in Circuit._fields if name != "w_r"),
    *(f"{name}.{part}" for name in ("state", "enclosure") for part in State._fields),
)  # fmt: skip
_UNDECIDED, _NOTHING = "undecided", "nothing is claimed"


class Proof(NamedTuple):
    """What is proven about one fixed point of a circuit, or of every circuit in a range.

    Attributes
    ----------
    stable : True, False or None
        True: proven to attract what starts near it. False: proven to repel (an eigenvalue with positive real part).
        None: undecided. For a batch, an object array (...) of them.
    state : State of arrays (..., n)
        Close to the fixed point; NaN where none was found.
    radius : array (...)
        The fixed point lies within it of ``state``, in every component: the largest half-width of ``enclosure``.
        NaN where no fixed point is proven.
    enclosure : State of arrays (..., n)
        Half-widths of the box around ``state`` that contains exactly one fixed point.
    decay_rate : array (...)
        Per second: small perturbations x shrink at least as exp(-decay_rate t) in the norm sqrt(x^T p x).
        NaN where none is proven.
    p : array (..., 2n, 2n)
        Lyapunov matrix, in the order (y, a).
    basin : array (...)
        Whatever starts where (x - state)^T p (x - state) <= basin returns to the fixed point. NaN where none is proven.
    reason : str
        One sentence; for a batch an object array (...).
    circuit : Circuit
    z : array (..., n)
    variant : str
    z_radius : array (..., n)
        The claims hold for every drive z +- z_radius,
    parameter_fraction : float
        and for all parameters within this fraction of theirs.
    """

    stable: Any
    state: State
    radius: Array
    enclosure: State
    decay_rate: Array
    p: Array
    basin: Array
    reason: Any
    circuit: Circuit
    z: Array
    variant: str
    z_radius: Array
    parameter_fraction: float

    def save(self, path: Any) -> None:
        """Write the proof, with its circuit and drive, for :func:`load_proof` and :func:`check_proof`.

        Parameters
        ----------
        path : path-like
            Ending in .npz.

        Raises
        ------
        ValueError
            For another ending.
        """
        path = _npz(path)
        about = {"format": _FORMAT, "variant": self.variant, "parameter_fraction": self.parameter_fraction}
        content: Any = {"about": np.asarray(json.dumps(about)), "reason": np.asarray(self.reason, dtype=str)}
        stable = np.asarray(self.stable, dtype=object)
        content["stable"] = np.reshape([-1 if one is None else int(one) for one in stable.flat], stable.shape)
        for name in ("radius", "decay_rate", "p", "basin", "z", "z_radius"):
            content[name] = to_numpy(getattr(self, name))
        for prefix, parts in (("circuit", self.circuit), ("state", self.state), ("enclosure", self.enclosure)):
            for name, value in parts._asdict().items():
                if value is not None:
                    content[f"{prefix}.{name}"] = to_numpy(value)
        write_atomically(path, lambda file: np.savez_compressed(file, **content))


_MEANS = {1: True, 0: False, -1: None}


class ProofCheck(NamedTuple):
    """Whether every claim of a proof was verified.

    Attributes
    ----------
    valid : bool
    reason : str
        What was verified, or the first claim that was not.
    """

    valid: bool
    reason: str


# Intervals ------------------------------------------------------------------------------------------------------


class _Interval:
    """Vectors known to lie between two others; every operation rounds outwards."""

    __slots__ = ("high", "low")

    def __init__(self, low: Floats, high: Floats) -> None:
        self.low, self.high = low, high

    @classmethod
    def around(cls, center: Floats, radius: Floats | float) -> _Interval:
        return cls(_down(center - radius), _up(center + radius)) if np.any(radius) else cls(center, center)

    def __add__(self, other: _Interval) -> _Interval:
        return _Interval(_down(self.low + other.low), _up(self.high + other.high))

    def __neg__(self) -> _Interval:
        return _Interval(-self.high, -self.low)

    def __sub__(self, other: _Interval) -> _Interval:
        return self + -other

    def __mul__(self, other: _Interval) -> _Interval:
        ends = [x * y for x in (self.low, self.high) for y in (other.low, other.high)]
        return _Interval(_down(np.minimum.reduce(ends)), _up(np.maximum.reduce(ends)))

    def inverse(self) -> _Interval:
        """1 / x for positive x."""
        return _Interval(_down(1.0 / self.high), _up(1.0 / self.low))

    def sqrt(self) -> _Interval:
        """For x >= 0."""
        return _Interval(np.maximum(_down(np.sqrt(self.low)), 0.0), _up(np.sqrt(self.high)))

    def square(self) -> _Interval:
        least = np.where((self.low <= 0) & (self.high >= 0), 0.0, np.minimum(np.abs(self.low), np.abs(self.high)))
        most = np.maximum(np.abs(self.low), np.abs(self.high))
        return _Interval(np.maximum(_down(least * least), 0.0), _up(most * most))

    def relu(self) -> _Interval:
        return _Interval(np.maximum(self.low, 0.0), np.maximum(self.high, 0.0))

    def distance(self, point: Floats) -> Floats:
        """The largest distance from a point."""
        return np.maximum(_up(np.maximum(self.high - point, point - self.low)), 0.0)

    @property
    def middle(self) -> Floats:
        return 0.5 * (self.low + self.high)

    @property
    def size(self) -> Floats:
        return np.maximum(np.abs(self.low), np.abs(self.high))


_ONE = _Interval(np.asarray(1.0), np.asarray(1.0))
_HALF = _Interval(np.asarray(0.5), np.asarray(0.5))


def _down(x: Floats) -> Floats:
    return np.nextafter(x, -np.inf)


def _up(x: Floats) -> Floats:
    return np.nextafter(x, np.inf)


def _gamma(n: int) -> float:
    """More than n u / (1 - n u), the relative rounding of n operations, whatever their order."""
    return 1.01 * n * _U


def _above(x: Floats, n: int) -> Floats:
    """More than the exact value of a sum of non-negative products, computed as x in up to n roundings each."""
    return x * (1.0 + 2.0 * _gamma(n)) + n * _TINY


class _NoSlope(Exception):
    """A region reaches a = 0, where the slope of sqrt(a) is infinite."""


def _product(matrix: Floats, size: Floats, off: Floats | None, v: _Interval) -> _Interval:
    """``matrix`` (of absolute value ``size``, uncertain by ``off``) times a vector."""
    center, n = v.middle, len(v.low)
    radius, most = v.distance(center), v.size
    radius = size @ (radius + _gamma(n + 2) * most)
    if off is not None:
        radius = radius + off @ most
    radius = _above(radius, 2 * n + 10)
    result = matrix @ center
    return _Interval(_down(result - radius), _up(result + radius))


# The circuit over a region -------------------------------------------------------------------------------------


class _Slopes(NamedTuple):
    """The Jacobian (without time constants) is [[diag(g) R diag(source) - I, diag(k)], [W diag(m), W diag(q) - I]]."""

    g: Any
    k: Any
    m: Any
    q: Any
    source: Any


class _Problem:
    """One circuit and drive, or a range of them, as intervals."""

    def __init__(self, circuit: Circuit, z: Floats, variant: str, z_radius: Floats, fraction: float) -> None:
        n = self.n = len(z)
        self.flags = VARIANTS[variant]
        self.exact_identity = circuit.w_r is None or (fraction == 0.0 and bool(np.all(circuit.w_r == np.eye(n))))
        self.w_r: Floats = np.eye(n) if circuit.w_r is None else circuit.w_r
        self.w: Floats = circuit.w
        self.abs_r = np.abs(self.w_r)
        self.off_r: Floats | None = None if fraction == 0.0 or circuit.w_r is None else _up(fraction * self.abs_r)
        self.off_w: Floats | None = None if fraction == 0.0 else _up(fraction * self.w)

        def interval(value: Floats) -> _Interval:
            wide = np.broadcast_to(value, (n,)).astype(float)
            return _Interval.around(wide, _up(fraction * np.abs(wide)) if fraction else 0.0)

        b, b0, sigma, tau_y, tau_a = (interval(value) for value in circuit[2:])
        self.input = b * _Interval.around(z, z_radius)
        self.floor = (b0 * sigma).square()
        rates = [tau.inverse() for tau in (tau_y, tau_a)]
        self.rates = _Interval(np.concatenate([r.low for r in rates]), np.concatenate([r.high for r in rates]))

    def recurrence(self, y: _Interval) -> tuple[_Interval, _Interval | None]:
        """The recurrent drive, and the slopes of its rectification, if there is one."""
        found = _product(self.w_r, self.abs_r, self.off_r, y.relu() if self.flags.source else y)
        return (found.relu(), _mask(found)) if self.flags.drive else (found, None)

    def pooled(self, v: _Interval) -> _Interval:
        return _product(self.w, self.w, self.off_w, v)

    def response(self, y: _Interval) -> _Interval:
        return y.relu() if self.flags.response else y

    def imbalance(self, x: Floats) -> _Interval:
        """tau_y y' and tau_a a' at a point."""
        return self.balance(x, self.input, self.floor)

    def balance(self, x: Floats, drive: _Interval, floor: _Interval) -> _Interval:
        """The same for another gated drive and floor."""
        y, a = (_Interval(part, part) for part in (x[: self.n], x[self.n :]))
        gate = _ONE - a.sqrt()
        first = drive - y + gate * self.recurrence(y)[0]
        second = floor - a + self.pooled(a * self.response(y).square())
        return _Interval(np.concatenate([first.low, second.low]), np.concatenate([first.high, second.high]))

    def slopes(self, x: Floats, radius: Floats) -> _Slopes:
        """Over the box x +- radius."""
        box = _Interval.around(x, radius)
        y = _Interval(box.low[: self.n], box.high[: self.n])
        a = _Interval(box.low[self.n :], box.high[self.n :])
        if not np.all(a.low > 0.0):
            raise _NoSlope("the modulators may reach 0")
        root = a.sqrt()
        recurrent, drive = self.recurrence(y)
        response = self.response(y)
        gate = _ONE - root
        ones = np.ones(self.n)
        return _Slopes(
            gate if drive is None else gate * drive,
            -(recurrent * (root + root).inverse()),
            (a + a) * response,
            response.square(),
            _mask(y) if self.flags.source else _Interval(ones, ones),
        )


def _mask(x: _Interval) -> _Interval:
    """The slopes of max(x, 0): all from 0 to 1 where x may be on either side of the kink."""
    return _Interval((x.low > 0.0).astype(float), (x.high > 0.0).astype(float))


class _Linear:
    """A float matrix ``matrix`` (Jacobian at x, without time constants), and what the Jacobians of a box are off it."""

    def __init__(self, problem: _Problem, x: Floats) -> None:
        self.problem, self.x = problem, x
        n = problem.n
        at = problem.slopes(x, np.zeros(2 * n))
        self.centers = _Slopes._make(part.middle for part in at)
        g, k, m, q, source = self.centers
        matrix = np.zeros((2 * n, 2 * n))
        matrix[:n, :n] = g[:, None] * problem.w_r * source
        matrix[n:, :n] = problem.w * m
        matrix[n:, n:] = problem.w * q
        index = np.arange(n)
        matrix[index, index + n] = k
        matrix[index, index] -= 1.0
        matrix[index + n, index + n] -= 1.0
        self.matrix = matrix
        self.size = np.abs(matrix)
        self.imbalance = problem.imbalance(x)

    def spread(self, radius: Floats) -> _Spread:
        """What the Jacobians of x +- radius are off ``matrix``, entry by entry."""
        found = self.problem.slopes(self.x, radius)
        offs = [part.distance(center) for part, center in zip(found, self.centers, strict=True)]
        return _Spread(self, _Slopes._make(offs))

    def units(self) -> Floats:
        """Powers of two near the natural size of each variable: a, and the y that would double some a, balanced."""
        n = self.problem.n
        y, a = self.x[:n], self.x[n:]
        gain = np.max(self.problem.w * a / a[:, None], axis=0)
        natural = np.maximum(1.0 / np.sqrt(np.where(gain > 0.0, gain, 1.0)), np.abs(y))
        down = np.max(np.abs(self.centers.k) * a / natural)  # of the modulators on the neurons, and back
        up = self.size[n:, :n] * natural / a[:, None]
        up = np.sqrt(np.linalg.norm(up, 1) * np.linalg.norm(up, np.inf))
        # a recurrent drive of 0 is rounded outwards
        ratio = np.sqrt(down / up) if down > _NO_DRIVE and up > _NO_DRIVE else 1.0
        return np.exp2(np.round(np.log2(np.concatenate([natural * ratio, a]))))


class _Spread:
    """Products with a bound of |J - matrix|: of the offs of each factor, 4 u (|matrix| + I), and uncertain weights."""

    def __init__(self, linear: _Linear, off: Any) -> None:
        self.problem, self.size = linear.problem, linear.size
        self.off = off
        self.most = _Slopes._make(np.abs(center) + part for center, part in zip(linear.centers, off, strict=True))
        self.g = np.abs(linear.centers.g)

    def times(self, v: Floats) -> Floats:
        """Of a non-negative vector."""
        here, n, off, most = self.problem, self.problem.n, self.off, self.most
        y, a = v[:n], v[n:]
        source = most.source * y
        top = off.g * (here.abs_r @ source) + off.k * a
        bottom = here.w @ (off.m * y + off.q * a)
        if here.flags.source:
            top = top + self.g * (here.abs_r @ (off.source * y))
        if here.off_r is not None:
            top = top + most.g * (here.off_r @ source)
        if here.off_w is not None:
            bottom = bottom + here.off_w @ (most.m * y + most.q * a)
        return _above(np.concatenate([top, bottom]) + 4.0 * _U * (self.size @ v + v), 3 * n + 20)

    def transposed(self, v: Floats) -> Floats:
        """The transpose, of a non-negative vector."""
        here, n, off, most = self.problem, self.problem.n, self.off, self.most
        y, a = v[:n], v[n:]
        pooled = a @ here.w
        left, right = most.source * ((off.g * y) @ here.abs_r) + off.m * pooled, off.k * y + off.q * pooled
        if here.flags.source:
            left = left + off.source * ((self.g * y) @ here.abs_r)
        if here.off_r is not None:
            left = left + most.source * ((most.g * y) @ here.off_r)
        if here.off_w is not None:
            uncertain = a @ here.off_w
            left, right = left + most.m * uncertain, right + most.q * uncertain
        return _above(np.concatenate([left, right]) + 4.0 * _U * (v @ self.size + v), 3 * n + 20)


# The three tests -----------------------------------------------------------------------------------------------


class _Krawczyk:
    """Existence and uniqueness in boxes around a point."""

    def __init__(self, linear: _Linear, inverse: Floats) -> None:
        self.linear, self.inverse = linear, inverse
        self.size = np.abs(self.inverse)
        n = self.n = len(linear.x)
        self.defect = np.abs(np.eye(n) - inverse @ linear.matrix) + n * _TINY

    def image(self, radius: Floats) -> Floats:
        """Half-widths of a box that x - A F(x) maps x +- radius into: where smaller, one fixed point is in it."""
        spread = self.linear.spread(radius).times(radius)
        rounding = _gamma(self.n + 4) * (self.linear.size @ radius)
        total = self.size @ (self.linear.imbalance.size + spread + rounding) + self.defect @ radius
        return _above(total + 4.0 * _U * radius, 3 * self.n + 20)

    def encloses(self, radius: Floats) -> bool:
        return bool(np.all(self.image(radius) < radius))

    def search(self) -> Floats | None:
        """A small box that encloses a fixed point."""
        radius = 2.0 * self.size @ self.linear.imbalance.size + 1e3 * _TINY
        best = None
        for _ in range(30):
            image = self.image(radius)
            if np.all(image < radius):
                best = radius
                smaller = 1.1 * image + 1e3 * _TINY
                if not np.all(smaller < radius) or np.max(smaller / radius) > 0.9:
                    break
                radius = smaller
            elif best is not None or not np.all(np.isfinite(image)):
                break
            else:
                radius = np.maximum(1.2 * image + 1e3 * _TINY, radius)
        return best


def _scale(matrix: Floats) -> Floats | None:
    """Powers of two that bring the diagonal near 1; None where it is not positive."""
    diagonal = np.diagonal(matrix)
    if not np.all((diagonal > 0.0) & np.isfinite(diagonal)):
        return None
    return np.exp2(-np.round(0.5 * np.log2(diagonal)))


def _exceeds(matrix: Floats, like: Floats, level: float) -> bool:
    """Proves that matrix - level diag(like) is positive definite, for symmetric float matrices."""
    scale = _scale(like)
    if scale is None or not level < 1.0:
        return False
    n = len(scale)
    scaled = matrix * scale * scale[:, None]
    room = 4.0 * n * _gamma(n + 4)
    index = np.arange(n)
    shift = level * np.diagonal(like) * scale * scale + room
    scaled[index, index] -= shift
    if not np.all(np.isfinite(scaled)):
        return False
    try:
        factor = np.linalg.cholesky(scaled)
    except np.linalg.LinAlgError:
        return False
    size = np.abs(factor)
    residual = np.abs(factor @ factor.T - scaled)
    diagonal = 8.0 * _U * (1.0 + np.abs(np.diagonal(scaled)) + shift)
    bound = np.sum(residual, axis=1) + _gamma(n + 4) * (size @ (size.T @ np.ones(n))) + diagonal
    return bool(np.max(_above(bound, 3 * n + 20)) < room)


class _Lyapunov:
    """What a symmetric matrix P proves of the Jacobians of a box."""

    def __init__(self, linear: _Linear, p: Floats) -> None:
        self.linear, self.p = linear, p
        n = self.n = len(p)
        rates = linear.problem.rates
        center = rates.middle
        self.rate_off = _up(rates.distance(center) / center) + 4.0 * _U
        self.h = p * center
        product = self.h @ linear.matrix
        self.m = -(product + product.T)
        self.scale = _scale(self.m)
        self.size_h, self.size_m = np.abs(self.h), np.abs(self.m)
        self.rounding = (_gamma(n + 4) + self.rate_off) * 1.01

    def off(self, spread: _Spread, alpha: float = 0.0) -> float:
        """c such that -(J^T P + P J) - 2 alpha P of any J of the box is off its float by at most c diag(M)."""
        assert self.scale is not None
        scale, size = self.scale, self.linear.size
        size_p = np.abs(self.p) if alpha else None
        lost = 4 * self.n * _TINY * (1.0 + self.n * np.max(size))  # to underflow
        diagonal = np.diagonal(self.m)
        vector, best = scale, np.inf
        for _ in range(4):  # E >= 0 symmetric, D > 0 diagonal: |x^T E x| <= x^T D x max (E v) / (D v), for any v > 0
            one = spread.times(vector)
            one = one * (1.0 + self.rate_off) + self.rounding * (size @ vector)
            half = self.size_h @ one
            other = vector @ self.size_h
            other = spread.transposed((1.0 + self.rate_off) * other) + (self.rounding * other) @ size
            total = half + other + 4.0 * _U * (self.size_m @ vector) + lost * np.sum(vector)
            if size_p is not None:
                total = total + 8.0 * _U * alpha * (size_p @ vector)
            total = _above(total, 8 * self.n + 60)
            best = min(best, float(np.max(total / (diagonal * vector))))
            vector = scale * (scale * total / np.max(scale * total) + 1e-3)
        return best * (1.0 + 8.0 * _U)

    def level(self) -> float:
        """c such that M is proven to exceed c diag(M); 0 if none."""
        levels = (0.9, 0.5, 0.2, 0.05, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
        return next((level for level in levels if _exceeds(self.m, self.m, level)), 0.0)

    def positive(self) -> bool:
        return _exceeds(self.p, self.p, 0.0)

    def decays(self, alpha: float, radius: Floats) -> bool:
        """Whether -(J^T P + P J) - 2 alpha P > 0 for all J of the box, or for P > 0 the rate is alpha."""
        if self.scale is None:
            return False
        matrix = self.m - (2.0 * alpha) * self.p if alpha else self.m
        return _exceeds(matrix, self.m, self.off(self.linear.spread(radius), alpha))

    def negative_direction(self) -> bool:
        """Whether v^T P v < 0 for some v, proven."""
        scale = np.exp2(-np.round(0.5 * np.log2(np.maximum(np.abs(np.diagonal(self.p)), _TINY))))
        v = scale * np.linalg.eigh(self.p * scale * scale[:, None])[1][:, 0]
        size = np.abs(v) @ (np.abs(self.p) @ np.abs(v))
        return bool(v @ self.p @ v + _above(3.0 * _gamma(self.n + 4) * size, 3 * self.n) < 0.0)

    def spans(self) -> Floats | None:
        """Upper bounds of the diagonal of P^-1, P > 0: a component of x is at most sqrt(c span) where x^T P x <= c."""
        scale = _scale(self.p)
        if scale is None:
            return None
        scaled = self.p * scale * scale[:, None]
        found = np.linalg.inv(scaled)
        n = self.n
        rounding = _gamma(n + 4) * np.linalg.norm(scaled) * np.linalg.norm(found)
        defect = 1.01 * float(np.linalg.norm(np.eye(n) - scaled @ found) + rounding + n * n * _TINY)
        if not defect < 0.5:
            return None
        rest = 1.01 * np.linalg.norm(found, axis=1) * defect / (1.0 - defect)
        return _up(_up(np.diagonal(found) + rest) * scale * scale)


class _Basin:
    """Ellipsoids {(x - state)^T P (x - state) <= c} that return, for P > 0."""

    def __init__(self, lyapunov: _Lyapunov, radius: Floats) -> None:
        self.lyapunov, self.radius = lyapunov, radius
        self.level, self.spans = lyapunov.level(), lyapunov.spans()
        self.shift = np.sqrt(_above(radius @ (np.abs(lyapunov.p) @ radius), 3 * len(radius) + 10))

    def box(self, c: float) -> Floats:
        """Half-widths of a box about the state around all that a trajectory from the ellipsoid may reach."""
        assert self.spans is not None
        reach = np.sqrt(c) + self.shift  # seen from the fixed point itself, which is within radius of the state
        return _above(self.radius + reach * np.sqrt(self.spans), 20)

    def returns(self, c: float) -> bool:
        if self.spans is None or not (self.level > 0.0 and c > 0.0):
            return False
        try:
            return self.lyapunov.off(self.lyapunov.linear.spread(self.box(c))) < self.level
        except _NoSlope:
            return False

    def search(self) -> float:
        """The largest ellipsoid, to a few percent."""
        if self.spans is None or not self.level > 0.0:
            return np.nan
        x = self.lyapunov.linear.x
        half = len(x) // 2
        c = float(np.min(x[half:] ** 2 / self.spans[half:]))
        for _ in range(200):
            if self.returns(c):
                break
            c *= 0.25
        else:
            return np.nan
        step = 2.0
        while step > 1.03:
            if self.returns(c * step):
                c *= step
            step = np.sqrt(step)
        return 0.999 * c


# The search, which proves nothing ------------------------------------------------------------------------------


def _lyapunov_solution(matrix: Floats, q: Floats, inverse_norm: float) -> Floats | None:
    """P with matrix^T P + P matrix = -q by Smith's doubling; None where it does not converge."""
    n = len(matrix)
    eye = np.eye(n, dtype=matrix.dtype)
    shift = np.sqrt(np.linalg.norm(matrix, 1) / inverse_norm).astype(matrix.dtype)
    if not 0.0 < shift < np.inf:
        return None
    resolvent = np.linalg.inv(matrix - shift * eye)
    return _doubling(eye + 2.0 * shift * resolvent, 2.0 * shift * (resolvent.T @ q @ resolvent))


def _doubling(power: Floats, p: Floats) -> Floats | None:
    """The sum of power^T^k p power^k over k >= 0; None where it does not converge."""
    for _ in range(60):
        p = p + power.T @ (p @ power)
        power = power @ power
        size = np.linalg.norm(power)
        if size < 1e-2:
            p = p + power.T @ (p @ power)
            return 0.5 * (p + p.T) if np.all(np.isfinite(p)) else None
        if not size < 1e8:
            return None
    return None


def _sign(matrix: Floats) -> Floats | None:
    """The matrix sign function by Newton's iteration; None where it does not converge."""
    for _ in range(60):
        inverse = np.linalg.inv(matrix)
        factor = np.sqrt(np.linalg.norm(inverse) / np.linalg.norm(matrix))
        factor = factor if abs(factor - 1.0) > 0.1 else 1.0
        following = 0.5 * (factor * matrix + inverse / factor)
        change = np.linalg.norm(following - matrix)
        matrix = following
        if change < 1e-7 * np.linalg.norm(matrix):
            return matrix
        if not np.isfinite(change):
            return None
    return None


def _candidates(krawczyk: _Krawczyk) -> Iterator[Floats]:
    """Matrices P that may prove something: of a stable point (float32 first where faster), of an unstable one."""
    linear = krawczyk.linear
    units, rates = linear.units(), linear.problem.rates.middle
    matrix = linear.matrix * rates[:, None] * units / units[:, None]
    inverse_norm = float(np.linalg.norm(krawczyk.inverse / rates * units / units[:, None], 1))
    weight = np.diag(rates)
    back = 1.0 / (units * units[:, None])
    single = len(rates) > _SINGLE
    for dtype in (np.float32, np.float64) if single else (np.float64,):
        p = _lyapunov_solution(matrix.astype(dtype), weight.astype(dtype), inverse_norm)
        if p is not None:
            yield p.astype(float) * back
    mean = np.sqrt(rates)
    balanced = matrix * mean / mean[:, None]  # similar: the rates on both sides
    sign = _sign(balanced) if np.all(np.isfinite(balanced)) else None
    if sign is not None and np.trace(sign) > -len(rates) + 1.0:
        back_sign = sign / mean * mean[:, None]
        reflected = -matrix @ back_sign
        p = _lyapunov_solution(reflected, 0.5 * (weight + back_sign.T @ weight @ back_sign), inverse_norm)
        if p is not None:
            p = -p @ back_sign
            yield 0.5 * (p + p.T) * back


def _rate(lyapunov: _Lyapunov, radius: Floats) -> float:
    """A decay rate that P proves, near the largest; 0 if none."""
    if lyapunov.scale is None:
        return 0.0
    scaled = lyapunov.p * lyapunov.scale * lyapunov.scale[:, None]
    vector = np.ones(lyapunov.n)
    for _ in range(60):  # the largest eigenvalue of P in units where M is nearly I
        vector = scaled @ vector
        vector = vector / np.linalg.norm(vector)
    largest = float(np.linalg.norm(scaled @ vector))
    best = 0.5 / largest if largest > 0.0 else 0.0
    tries = (best * factor for factor in (0.99, 0.9, 0.7, 0.4, 0.1, 1e-2, 1e-4))
    return next((0.999 * alpha for alpha in tries if lyapunov.decays(alpha, radius)), 0.0)


# The claims ----------------------------------------------------------------------------------------------------


class _Claims(NamedTuple):
    """A proof of one member: arrays (2n,)."""

    stable: bool | None
    x: Floats
    radius: Floats
    decay_rate: float
    p: Floats
    basin: float
    reason: str


def _theorem(problem: _Problem) -> str | None:
    """What is proven on paper for this circuit, or for all of the range: one fixed point, which is stable."""
    if any(problem.flags):
        return None
    if problem.exact_identity:
        return "W_r = I: by theorem there is one fixed point, and it is stable"
    if problem.n == 1:
        off = np.zeros((1, 1)) if problem.off_r is None else problem.off_r
        w_r = _Interval.around(problem.w_r, off)
        if w_r.low[0, 0] > 0.0 and w_r.high[0, 0] <= 1.0:
            return "0 < w_r <= 1: by theorem there is one fixed point, and it is stable"
    return None


def _closed_form(problem: _Problem) -> _Interval:
    """The fixed point for W_r = I: a = (b0 sigma)**2 + W (b z)**2, y = b z / sqrt(a)."""
    a = problem.floor + problem.pooled(problem.input.square())
    y = problem.input * a.sqrt().inverse()
    return _Interval(np.concatenate([y.low, a.low]), np.concatenate([y.high, a.high]))


def _by_closed_form(problem: _Problem) -> bool:
    return problem.exact_identity and not any(problem.flags)


def _approach(problem: _Problem, x: Floats) -> _Krawczyk:
    """Close to the fixed point near x."""
    inverse = np.linalg.inv(_Linear(problem, x).matrix)
    for _ in range(3):
        following = x - inverse @ problem.imbalance(x).middle
        if np.all(np.isfinite(following)) and np.all(following[problem.n :] > 0.0):
            x = following
    x = _at_kinks(problem, x)
    return _Krawczyk(_Linear(problem, x), np.linalg.inv(_Linear(problem, x).matrix))


def _at_kinks(problem: _Problem, x: Floats) -> Floats:
    """Potentials that are all but 0 as 0, where that is a kink: then both sides are equally far."""
    if not (problem.flags.source or problem.flags.drive):
        return x
    y = x[: problem.n]
    return np.concatenate([np.where(np.abs(y) < 1e-13 * np.max(np.abs(y)), 0.0, y), x[problem.n :]])


def _by_kink(problem: _Problem, x: Floats) -> str:
    """That what failed may be for a kink at x, where the slopes of both sides and all between count; or nothing."""
    if not (problem.flags.source or problem.flags.drive):
        return ""
    y = x[: problem.n]
    wide = _Interval.around(y, np.full(problem.n, 1e-12 * np.max(np.abs(y)) + _TINY))
    masks = [_mask(wide)] if problem.flags.source else []
    masks += [one for one in problem.recurrence(wide)[1:] if one is not None]
    at = any(np.any(mask.low < mask.high) for mask in masks)
    return "; a unit or its recurrent drive is at a kink, where the slopes of both sides count" if at else ""


def _prove_one(problem: _Problem, start: Floats | None) -> _Claims:
    """Everything that can be proven of one circuit and drive."""
    size = 2 * problem.n
    blank = np.full(size, np.nan)
    none = _Claims(None, blank, blank, np.nan, np.full((size, size), np.nan), np.nan, "")
    theorem = _theorem(problem)
    claims, krawczyk = none, None
    try:
        if _by_closed_form(problem):
            found = _closed_form(problem)
            x = found.middle
            radius = 1.1 * found.distance(x) + 1e3 * _TINY
            claims = claims._replace(x=x)
            linear = _Linear(problem, x)
            krawczyk = _Krawczyk(linear, np.linalg.inv(linear.matrix))
        elif start is None:
            return none._replace(
                stable=True if theorem else None, reason=theorem or f"{_UNDECIDED}: no fixed point was found"
            )
        else:
            claims = claims._replace(x=start)
            krawczyk = _approach(problem, start)
            x = krawczyk.linear.x
            best = krawczyk.search()
            if best is None:
                why = f"no box around the state could be shown to hold a fixed point{_by_kink(problem, x)}"
                return claims._replace(stable=True if theorem else None, reason=theorem or f"{_UNDECIDED}: {why}")
            radius = best
    except (_NoSlope, np.linalg.LinAlgError) as error:
        why = str(error) if isinstance(error, _NoSlope) else "the Jacobian is singular"
        return claims._replace(stable=True if theorem else None, reason=theorem or f"{_UNDECIDED}: {why}")
    if not (np.all(np.isfinite(x)) and np.all(np.isfinite(radius))):
        return none._replace(reason=f"{_UNDECIDED}: the fixed point is beyond the range of float64")
    claims = claims._replace(x=x, radius=radius)
    where = f"one fixed point within {np.max(radius):.2g} of the state"
    for p in _candidates(krawczyk):
        lyapunov = _Lyapunov(krawczyk.linear, p)
        if lyapunov.positive():
            rate = _rate(lyapunov, radius)
            if rate > 0.0:
                reason = theorem or f"{where}, and it attracts"
                reason = f"{reason}; perturbations decay at {rate:.4g} /s or faster"
                return claims._replace(
                    stable=True, decay_rate=rate, p=p, basin=_Basin(lyapunov, radius).search(), reason=reason
                )
        elif theorem is None and lyapunov.decays(0.0, radius) and lyapunov.negative_direction():
            return claims._replace(
                stable=False, p=p, reason=f"{where}, and it repels: an eigenvalue has a positive real part"
            )
    if theorem:
        return claims._replace(stable=True, reason=f"{theorem}; no decay rate was proven")
    border = _by_kink(problem, x) or ", but too close to the border of stability for float64"
    return claims._replace(reason=f"{_UNDECIDED}: {where}{border}")


def _verify(problem: _Problem, claims: _Claims) -> str | None:
    """None where every claim holds, else the first that could not be verified."""
    stable, x, radius, rate, p, basin, _ = claims
    theorem = _theorem(problem)
    enclosed = bool(np.all(np.isfinite(radius)))
    if stable is not True and not (np.isnan(rate) and np.isnan(basin)):
        return "a decay rate or a basin, which only a point that attracts can have"
    if not enclosed:
        if stable is True and theorem and np.isnan(rate) and np.isnan(basin):
            return None
        return _NOTHING if stable is None else "no enclosure of a fixed point is given"
    try:
        linear = _Linear(problem, x)
        if _by_closed_form(problem):
            inside = bool(np.all(_closed_form(problem).distance(x) <= radius))
        else:
            inside = _Krawczyk(linear, np.linalg.inv(linear.matrix)).encloses(radius)
        if not inside:
            return "that the box encloses exactly one fixed point"
        if stable is None:
            return None
        if stable and theorem and np.isnan(rate) and np.isnan(basin):
            return None
        if not np.array_equal(p, p.T):
            return "that p is symmetric"
        lyapunov = _Lyapunov(linear, p)
        if not stable:
            repels = lyapunov.decays(0.0, radius) and lyapunov.negative_direction()
            return None if repels else "that the fixed point repels"
        if not (rate > 0.0 and lyapunov.positive() and lyapunov.decays(rate, radius)):
            return f"that perturbations decay at {rate:.4g} /s"
        if not (np.isnan(basin) or _Basin(lyapunov, radius).returns(basin)):
            return "that all that starts in the ellipsoid returns"
    except (_NoSlope, np.linalg.LinAlgError):
        return "that the box encloses exactly one fixed point"
    return None


def prove(
    circuit: Circuit,
    z: Array,
    *,
    variant: str = "main",
    state: State | None = None,
    z_radius: Array | float = 0.0,
    parameter_fraction: float = 0.0,
) -> Proof:
    """Prove that a fixed point exists and is stable, or that it is unstable, for any W_r.

    The computation is in float64 on the host, every rounding is bounded, and no
    claim rests on an eigenvalue routine: what is claimed holds for the circuit
    with exactly the parameters given, as a theorem does. What cannot be shown is
    "undecided", never guessed. Arrays of other libraries go in and come out (as
    float64; as numpy arrays where the library has no float64).

    Parameters
    ----------
    circuit : Circuit
        Any W_r; batch axes are proven member by member. Operators are made dense.
    z : array (..., n)
        Input drive.
    variant : {"main", "rectified", "rectified_recurrence"}
        At a kink of the rectified ones (a rectified unit at 0) a proof holds for
        the slopes of both sides and all between; often that is undecided.
    state : State of arrays (..., n), optional
        Near the fixed point in question; by default what :func:`steady_state` finds.
    z_radius : array (..., n) or number
        Prove it for every drive z +- z_radius at once.
    parameter_fraction : float
        Prove it for all parameters within this fraction of theirs at once (0.01:
        every entry of W_r and W, every b, b0, sigma and tau by itself, +- 1 %).
        ``w_r=None`` stays the identity.

    Returns
    -------
    Proof

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong. Values must be visible: this does not trace.

    Notes
    -----
    Existence and uniqueness by Krawczyk's form of the Newton-Kantorovich theorem;
    stability by a Lyapunov matrix whose definiteness a floating-point Cholesky
    factor proves (Rump, BIT 46 (2006) 433); instability by the inertia theorem.
    For W_r = I, and one neuron with 0 < w_r <= 1, stability is proven on paper,
    and only the enclosure, the decay rate and the basin are computed. It is
    assumed that floats follow IEEE 754 (gradual underflow, rounding to nearest)
    and that matrix products sum products in some order.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit = oc.Circuit(np.array([[0.0, 0.9], [-0.9, 0.0]]), np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002)
    >>> proof = oc.prove(circuit, np.array([1.0, 0.5]))
    >>> proof.stable, bool(proof.radius < 1e-12), bool(proof.decay_rate > 100)
    (True, True, True)
    """
    checks.one_of("variant", variant, VARIANTS)
    if state is None:
        xp = validate_circuit(circuit, values=True, z=z)
    else:
        fields = validate_state(state)
        xp = validate_circuit(circuit, values=True, z=z, **fields)
        for (name, value), allowed in zip(fields.items(), ("any", "> 0"), strict=True):
            checks.values(xp, name, value, allowed)
    checks.values(xp, "z", z, "any")
    checks.seen(xp, "prove", circuit, z, state, z_radius)
    if not checks.is_number(z_radius):
        checks.namespace({"z": z, "z_radius": z_radius})
        checks.vector_shape("z_radius", z_radius, int(z.shape[-1]))
    checks.values(xp, "z_radius", z_radius, ">= 0")
    _check_fraction(parameter_fraction)
    prepared, like = prepare(xp, circuit, z)
    check_products(xp, prepared, like)
    dense = weights.without_operators(xp, prepared, like)
    host = _host(dense)
    drive, width = _host((z, z_radius))
    batch = _batch(host, drive, width, *(() if state is None else _host(state)))
    n = drive.shape[-1]
    if state is None:
        with np.errstate(all="ignore"):
            found = steady_state(host, np.broadcast_to(drive, (*batch, n)), variant=variant)
        starts, known = _packed(found.state, batch), np.broadcast_to(found.converged, batch)
    else:
        starts, known = _packed(State(*_host(state)), batch), np.ones(batch, dtype=bool)
    proven = []
    for index, problem in _members(host, drive, width, variant, parameter_fraction, batch):
        with np.errstate(all="ignore"):
            proven.append(_prove_one(problem, starts[index] if known[index] else None))

    def gather(part: Callable[[_Claims], Any], shape: tuple[int, ...]) -> Array:
        return _like(xp, np.reshape([part(one) for one in proven], (*batch, *shape)), like)

    return Proof(
        _told([one.stable for one in proven], batch),
        State(gather(lambda one: one.x[:n], (n,)), gather(lambda one: one.x[n:], (n,))),
        gather(lambda one: np.max(one.radius), ()),
        State(gather(lambda one: one.radius[:n], (n,)), gather(lambda one: one.radius[n:], (n,))),
        gather(lambda one: one.decay_rate, ()),
        gather(lambda one: one.p, (2 * n, 2 * n)),
        gather(lambda one: one.basin, ()),
        _told([one.reason for one in proven], batch),
        dense,
        like,
        variant,
        _like(xp, np.broadcast_to(width, drive.shape).copy() if width.ndim == 0 else width, like),
        float(parameter_fraction),
    )


def _check_fraction(value: Any) -> None:
    if not checks.is_number(value) or not 0.0 <= value < 0.5:
        raise ValueError(f"parameter_fraction must be a number from 0 to 0.5, got {value!r}")


def euler_step_bound(circuit: Circuit, z: Array) -> Array:
    """The step up to which explicit Euler inherits the stability of W_r = I at its fixed point.

    Parameters
    ----------
    circuit : Circuit
        With ``w_r=None``, or the identity.
    z : array (..., n)
        Input drive.

    Returns
    -------
    array (...)
        Seconds: the smallest of tau_a / 2 and (4/3) tau_y / sqrt(a) over the neurons.
        With any positive step up to it, all eigenvalues of the map of one step are within
        the unit circle, whatever the parameters; with longer steps they may be or not.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError where W_r is not the identity.

    Notes
    -----
    Derived in theory.md. For one neuron alone dt <= tau_a and dt < 2 tau_y / sqrt(a) would do.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit = oc.Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.004)
    >>> euler_step_bound(circuit, np.array([1.0, 1.0])).round(5)
    np.float64(0.00154)
    """
    xp = validate_circuit(circuit, values=True, z=z)
    if is_identity(xp, circuit.w_r) is False:
        raise ValueError("euler_step_bound is for W_r = I: w_r must be None or the identity; see prove for others")
    checks.values(xp, "z", z, "any")
    circuit, z = prepare(xp, circuit, z)
    check_products(xp, circuit, z)
    a = identity_fixed_point(xp, circuit, full(xp, circuit, z), "main").a
    steps = 4.0 / 3.0 * circuit.tau_y / xp.sqrt(a)
    half = 0.5 * circuit.tau_a + xp.zeros_like(steps)
    return xp.min(xp.where(steps > half, half, steps), axis=-1)  # NaN stays NaN


def check_proof(proof: Any) -> ProofCheck:
    """Verify every claim of a proof anew, from its circuit, drive, state, enclosure and p alone.

    Parameters
    ----------
    proof : Proof or path-like
        Or the file that :meth:`Proof.save` wrote.

    Returns
    -------
    ProofCheck
        ``valid`` where all claims of all members of the batch were verified. A
        proof that claims nothing is not valid.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        For what holds no proof.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit = oc.Circuit(0.5 * np.eye(2), np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002)
    >>> proof = oc.prove(circuit, np.array([1.0, 0.5]))
    >>> oc.check_proof(proof).valid, oc.check_proof(proof._replace(basin=1e3 * proof.basin)).reason
    (True, 'not verified: that all that starts in the ellipsoid returns')
    """
    if not isinstance(proof, Proof):
        proof = load_proof(proof)
    for name in ("radius", "decay_rate", "p", "basin", "z", "z_radius"):
        value = getattr(proof, name)
        if not (checks.is_number(value) or hasattr(value, "shape")):
            raise TypeError(f"{name} must be an array, got {checks.describe(value)}")
    check_model(proof.circuit, "circuit", Circuit)
    for name in ("state", "enclosure"):
        validate_state(getattr(proof, name), name)
    circuit = _host(proof.circuit)
    drive, width, radius, rate, p, basin = _host(
        (proof.z, proof.z_radius, proof.radius, proof.decay_rate, proof.p, proof.basin)
    )
    state, enclosure = State(*_host(proof.state)), State(*_host(proof.enclosure))
    checks.one_of("variant", proof.variant, VARIANTS)
    xp = validate_circuit(circuit, values=True, z=drive, z_radius=width, **{
        f"{name}.{part}": value
        for name, one in (("state", state), ("enclosure", enclosure)) for part, value in one._asdict().items()
    })  # fmt: skip
    checks.values(xp, "z", drive, "any")
    checks.values(xp, "z_radius", width, ">= 0")
    _check_fraction(proof.parameter_fraction)
    stable = np.asarray(proof.stable, dtype=object)
    for told in stable.flat:
        if not (told is None or isinstance(told, (bool, np.bool_))):
            raise TypeError(f"stable must be True, False or None, got {told!r}")
    batch, n = _batch(circuit, drive, width, *state, *enclosure), drive.shape[-1]
    for name, value in (("stable", stable), ("radius", radius), ("decay_rate", rate), ("basin", basin), ("p", p)):
        wanted = (*batch, 2 * n, 2 * n) if name == "p" else batch
        if value.shape != wanted:
            raise ValueError(f"{name} must have shape {wanted}, got {value.shape}")
    points, boxes = _packed(state, batch), _packed(enclosure, batch)
    for index, problem in _members(circuit, drive, width, proof.variant, proof.parameter_fraction, batch):
        box, told = boxes[index], stable[index]
        told = None if told is None else bool(told)
        claims = _Claims(told, points[index], box, float(rate[index]), p[index], float(basin[index]), "")
        with np.errstate(all="ignore"):
            failed = _verify(problem, claims)
        if failed is None and not (np.isnan(radius[index]) and np.any(np.isnan(box))):
            failed = None if radius[index] >= np.max(box) else "that the radius covers the enclosure"
        if failed is not None:
            member = f" (member {index} of the batch)" if batch else ""
            return ProofCheck(False, failed + member if failed == _NOTHING else f"not verified: {failed}{member}")
    return ProofCheck(True, "every claim was verified")


def load_proof(path: Any) -> Proof:
    """Read what :meth:`Proof.save` wrote; :func:`check_proof` says whether it holds.

    Parameters
    ----------
    path : path-like
        Ending in .npz.

    Returns
    -------
    Proof
        Of numpy arrays.

    Raises
    ------
    FileNotFoundError
        Where there is nothing.
    ValueError
        For another ending, or a file that holds no proof.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> import tempfile, pathlib
    >>> circuit, z = oc.Circuit(np.array([[2.0]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "proof.npz"
    >>> _ = oc.prove(circuit, z).save(path)
    >>> oc.load_proof(path).stable, bool(oc.check_proof(oc.load_proof(path)).valid)
    (True, True)
    """
    path = _npz(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {str(path)!r}")
    try:
        with open_npz(path) as file:
            arrays = {name: file[name] for name in file.files}
        lacking = [name for name in _CONTENT if name not in arrays]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        strange = [name for name in arrays if name not in ("about", "reason") and arrays[name].dtype.kind not in "fiu"]
        if strange:
            raise ValueError(f"its {', '.join(strange)} must be numbers")
        about = json.loads(str(arrays["about"]))
        if not isinstance(about, dict):
            raise ValueError("its text about itself is no JSON object")
        if about["format"] != _FORMAT:
            raise ValueError(f"its format is {about['format']!r}, not {_FORMAT!r}")
        checks.one_of("variant", about["variant"], VARIANTS)
        fields = [arrays.get("circuit.w_r"), *(arrays[f"circuit.{name}"] for name in Circuit._fields[1:])]
        circuit = Circuit(*fields)
        state, enclosure = (State(arrays[f"{name}.y"], arrays[f"{name}.a"]) for name in ("state", "enclosure"))
        if not np.all(np.isin(arrays["stable"], list(_MEANS))):
            raise ValueError("its stable is none of 1, 0 and -1")
        told = [_MEANS[int(code)] for code in arrays["stable"].reshape(-1)]
        batch = arrays["stable"].shape
        return Proof(
            _told(told, batch),
            state,
            arrays["radius"],
            enclosure,
            arrays["decay_rate"],
            arrays["p"],
            arrays["basin"],
            _told([str(text) for text in arrays["reason"].reshape(-1)], batch),
            circuit,
            arrays["z"],
            str(about["variant"]),
            arrays["z_radius"],
            float(about["parameter_fraction"]),
        )
    except KeyError as error:
        raise ValueError(f"{str(path)!r} holds no proof: its text about itself lacks {error}") from None
    except (TypeError, *UNREADABLE) as error:
        raise ValueError(f"{str(path)!r} holds no proof: {error}") from None


def _npz(path: Any) -> Path:
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"a proof must be a Proof or the path of a file, got {checks.describe(path)}")
    path = Path(os.fsdecode(path))
    if path.suffix != ".npz":
        raise ValueError(f"path must end in .npz, got {str(path)!r}")
    return path


def _host(tree: Any) -> Any:
    """The arrays of a tuple as float64 numpy arrays, which holds float32 exactly."""
    made = [None if value is None else np.asarray(to_numpy(value) if hasattr(value, "shape") else value, dtype=float)
            for value in tree]  # fmt: skip
    return tree._make(made) if hasattr(tree, "_make") else tuple(made)


def _like(xp: Any, array: Floats, like: Array) -> Array:
    """In the library of ``like``, as float64; numpy's where it has none."""
    dtype = getattr(xp, "float64", None)
    if isinstance(like, np.ndarray) or dtype is None:
        return array
    with warnings.catch_warnings():  # jax says that it has no float64
        warnings.simplefilter("ignore")
        made = xp.asarray(array, dtype=dtype, device=device(like))
    return made if made.dtype == dtype else array


def _told(values: list[Any], batch: tuple[int, ...]) -> Any:
    """What has no dtype, of a batch: an object array; of one circuit: itself."""
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made.reshape(batch) if batch else values[0]


def _batch(circuit: Circuit, *vectors: Floats) -> tuple[int, ...]:
    shapes = [value.shape[:-2] for value in circuit[:2] if value is not None]
    return broadcast_shapes(*shapes, *(value.shape[:-1] for value in (*circuit[2:], *vectors)))


def _packed(state: State, batch: tuple[int, ...]) -> Floats:
    n = state.y.shape[-1]
    return np.concatenate([np.broadcast_to(part, (*batch, n)) for part in state], axis=-1)


def _members(
    circuit: Circuit, z: Floats, width: Floats, variant: str, fraction: float, batch: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], _Problem]]:
    """The circuits of a batch one by one, by index."""
    n = z.shape[-1]

    def wide(value: Floats | None, axes: tuple[int, ...]) -> Floats | None:
        return None if value is None else np.broadcast_to(value, (*batch, *axes))

    fields = [wide(value, (n, n)) for value in circuit[:2]] + [wide(value, (n,)) for value in circuit[2:]]
    drives, widths = np.broadcast_to(z, (*batch, n)), np.broadcast_to(width, (*batch, n))
    for index in np.ndindex(batch):
        one = Circuit(*(None if value is None else value[index] for value in fields))
        yield index, _Problem(one, drives[index], variant, widths[index], fraction)
