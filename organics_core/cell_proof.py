"""Proofs for the trained cell at a constant input: its fixed point, as a continuous circuit and as the map it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .backend import Array
from .cell import (
    CELL_VARIANTS,
    VECTORS,
    CellParameters,
    CellState,
    MaxRates,
    Rates,
    cell_rates,
    check_max_rates,
    normalization_weights,
    step,
    validate_cell,
)
from .circuit import Circuit
from .proof import (
    _ONE,
    _TINY,
    _U,
    Floats,
    _above,
    _at_kinks,
    _candidates,
    _doubling,
    _exceeds,
    _gamma,
    _host,
    _Interval,
    _Krawczyk,
    _Linear,
    _Lyapunov,
    _NoSlope,
    _Problem,
    _product,
    _rate,
    _up,
)


class CellProof(NamedTuple):
    """What is proven of the fixed point of a trained cell under a constant input.

    Attributes
    ----------
    continuous : True or None
        True: proven to attract, as the circuit in continuous time of y, a and both gates. None: undecided.
    discrete : True or None
        The same of the map of one step: a spectral radius below one.
    state : CellState of float64 arrays (n,)
        Close to the fixed point; NaN where none was found.
    radius : float
        The fixed point lies within it of ``state`` in every component, the only one in
        ``enclosure``. NaN where none is proven.
    enclosure : CellState of arrays (n,)
        Half-widths of the box that contains exactly one fixed point.
    decay_rate : float
        Per step, of the continuous circuit: small perturbations x shrink at least as
        exp(-decay_rate t), t in steps, in sqrt(x^T p x). NaN where none is proven.
    p : array (4n, 4n)
        The Lyapunov matrix, in the order (y, a, b0, b1).
    reason : str
    """

    continuous: bool | None
    discrete: bool | None
    state: CellState
    radius: float
    enclosure: CellState
    decay_rate: float
    p: Floats
    reason: str


class _Cell:
    """A cell and its constant input, as intervals."""

    def __init__(self, p: CellParameters, x: Floats, x_radius: Floats, max_rates: MaxRates, variant: str) -> None:
        n = self.n = p.log_w.shape[-1]
        ones = np.ones(n)
        w = normalization_weights(np, p.log_w)
        self.base = _Problem(Circuit(p.w_r, w, ones, ones, ones, ones, ones), np.zeros(n), variant, np.zeros(n), 0.0)
        self.base.off_w = _off_exp(w)
        given = _Interval.around(x, x_radius)
        self.drive = _product(p.w_zx, np.abs(p.w_zx), None, given).relu()
        sigma = np.broadcast_to(p.sigma, (n,))
        self.sigma = _Interval(sigma, sigma)
        self.gates = [np.concatenate(pair, axis=1) for pair in ((p.w_by0, p.w_ba0), (p.w_by1, p.w_ba1))]
        self.shifts = [_product(m, np.abs(m), None, given) for m in (p.w_bx0, p.w_bx1)]
        largest = np.repeat([max_rates.y, max_rates.a, max_rates.b, max_rates.b], n)
        theta = np.concatenate([p.theta_y, p.theta_a, p.theta_b0, p.theta_b1])
        self.rates = _Interval(largest, largest) * _sigmoid(_point(theta))

    def targets(self, x: _Interval) -> list[_Interval]:
        """Of both gates."""
        pairs = zip(self.gates, self.shifts, strict=True)
        return [_sigmoid(shift + _product(gate, np.abs(gate), None, x)) for gate, shift in pairs]

    def imbalance(self, x: Floats) -> _Interval:
        n = self.n
        b0, b1 = (_Interval(part, part) for part in (x[2 * n : 3 * n], x[3 * n :]))
        core = self.base.balance(x[: 2 * n], b1 * self.drive, (self.sigma * b0).square())
        parts = [core, *(t - b for t, b in zip(self.targets(_point(x[: 2 * n])), (b0, b1), strict=True))]
        return _Interval(np.concatenate([p.low for p in parts]), np.concatenate([p.high for p in parts]))

    def slopes(self, x: Floats, radius: Floats) -> list[_Interval]:
        """Those that the gates add: of the targets, and of the drive and the floor."""
        n = self.n
        box = _Interval.around(x, radius)
        inner = _Interval(box.low[: 2 * n], box.high[: 2 * n])
        b0 = _Interval(box.low[2 * n : 3 * n], box.high[2 * n : 3 * n])
        squared = self.sigma * self.sigma * b0
        return [*(t * (_ONE - t) for t in self.targets(inner)), self.drive, squared + squared]


class _CellLinear:
    """As :class:`_Linear`, of the cell."""

    def __init__(self, cell: _Cell, x: Floats) -> None:
        n = cell.n
        self.problem, self.x = cell, x
        self.base = _Linear(cell.base, x[: 2 * n])
        self.centers = [part.middle for part in cell.slopes(x, np.zeros(4 * n))]
        first, second, drive, floor = self.centers
        matrix = -np.eye(4 * n)
        matrix[: 2 * n, : 2 * n] = self.base.matrix
        index = np.arange(n)
        matrix[index, index + 3 * n] = drive
        matrix[index + n, index + 2 * n] = floor
        matrix[2 * n : 3 * n, : 2 * n] = first[:, None] * cell.gates[0]
        matrix[3 * n :, : 2 * n] = second[:, None] * cell.gates[1]
        self.matrix, self.size = matrix, np.abs(matrix)
        self.imbalance = cell.imbalance(x)

    def units(self) -> Floats:
        return np.concatenate([self.base.units(), np.ones(2 * self.problem.n)])

    def spread(self, radius: Floats) -> _CellSpread:
        found = self.problem.slopes(self.x, radius)
        offs = [part.distance(center) for part, center in zip(found, self.centers, strict=True)]
        return _CellSpread(self, self.base.spread(radius[: 2 * self.problem.n]), offs)


class _CellSpread:
    """As :class:`_Spread`, of the cell."""

    def __init__(self, linear: _CellLinear, base: Any, offs: list[Floats]) -> None:
        self.linear, self.base, self.offs = linear, base, offs
        self.gates = [np.abs(gate) for gate in linear.problem.gates]

    def times(self, v: Floats) -> Floats:
        n = self.linear.problem.n
        first, second, drive, floor = self.offs
        core = self.base.times(v[: 2 * n]) + np.concatenate([drive * v[3 * n :], floor * v[2 * n : 3 * n]])
        gated = [off * (gate @ v[: 2 * n]) for off, gate in zip((first, second), self.gates, strict=True)]
        return _above(np.concatenate([core, *gated]) + 4.0 * _U * (self.linear.size @ v + v), 8 * n + 30)

    def transposed(self, v: Floats) -> Floats:
        n = self.linear.problem.n
        first, second, drive, floor = self.offs
        core = self.base.transposed(v[: 2 * n])
        core = core + (first * v[2 * n : 3 * n]) @ self.gates[0] + (second * v[3 * n :]) @ self.gates[1]
        found = np.concatenate([core, floor * v[n : 2 * n], drive * v[:n]])
        return _above(found + 4.0 * _U * (v @ self.linear.size + v), 8 * n + 30)


def _point(x: Floats) -> _Interval:
    return _Interval(x, x)


def _off_exp(value: Floats) -> Floats:
    """More than what exp and few operations after it may be off: 8 units in the last place, numpy's are within one."""
    return _up(32.0 * _U * value)


def _sigmoid(u: _Interval) -> _Interval:
    low, high = (1.0 / (1.0 + np.exp(-end)) for end in (u.low, u.high))
    return _Interval(np.maximum(low - _off_exp(low) - _TINY, 0.0), np.minimum(high + _off_exp(high) + _TINY, 1.0))


def _contracts(lyapunov: _Lyapunov, radius: Floats) -> bool:
    """Whether P - B^T P B > 0, P > 0, for B = I + rates J and every J of the box: proven."""
    linear = lyapunov.linear
    if lyapunov.scale is None:
        return False
    rates, n = linear.problem.rates.middle, lyapunov.n
    k = linear.matrix * rates[:, None]
    size_k, size_p = np.abs(k), np.abs(lyapunov.p)
    second = k.T @ (lyapunov.p @ k)
    second = 0.5 * (second + second.T)  # P - B^T P B = -(K^T P + P K) - K^T P K, K = rates J
    spread, off = linear.spread(radius), lyapunov.rate_off
    v = lyapunov.scale
    there = size_k @ v
    wide = rates * (1.0 + off) * spread.times(v) + off * there
    pushed = size_p @ (there + wide)
    back = spread.transposed((1.0 + off) * rates * pushed) + (off * pushed) @ size_k
    total = (size_p @ wide) @ size_k + back + 3.0 * _gamma(n + 4) * ((size_p @ there) @ size_k)
    total = _above(total + 8.0 * _U * (np.abs(second) @ v) + 4 * n * _TINY * (1.0 + np.sum(v)), 10 * n + 80)
    level = lyapunov.off(spread) + float(np.max(total / (np.diagonal(lyapunov.m) * v)))
    return _exceeds(lyapunov.m - second, lyapunov.m, level * (1.0 + 8.0 * _U))


def _map_candidate(linear: _CellLinear) -> Floats | None:
    """P of P - B^T P B = diag(rates), which proves both, the map and the circuit, where it exists."""
    units, rates = linear.units(), linear.problem.rates.middle
    jump = np.eye(len(units)) + linear.matrix * rates[:, None] * units / units[:, None]
    p = _doubling(jump, np.diag(rates))
    return None if p is None else p / (units * units[:, None])


def _settled(p: CellParameters, start: CellState, x: Floats, max_rates: MaxRates, variant: str) -> CellState:
    """Where the cell is after many steps."""
    w, rates = normalization_weights(np, p.log_w), cell_rates(np, p, max_rates)
    calm = 0.1 / max(float(np.max(rate)) for rate in rates)  # the circuit's course: the map itself may diverge
    unit = Rates(*(calm * rate for rate in rates))
    state = start
    for _ in range(5000):
        following = step(np, p, w, unit, state, x, variant)
        change = max(float(np.max(np.abs(a - b))) for a, b in zip(following, state, strict=True))
        state = following
        if not change > 1e-8:
            break
    return state


def prove_cell(
    parameters: CellParameters,
    x: Array,
    *,
    max_rates: MaxRates | tuple[float, float, float] = MaxRates(),
    variant: str = "rectified_recurrence",
    start: CellState | None = None,
    x_radius: Any = 0.0,
) -> CellProof:
    """Prove that a trained cell under a constant input has a stable fixed point, gates and all.

    As :func:`prove`, for the cell's 4n variables: in float64 on the host, every
    rounding bounded, for the exact values of the parameters. Exponentials are
    taken to be right to 8 units in the last place. What the cell computes in
    float32 is that map with rounding errors.

    Parameters
    ----------
    parameters : CellParameters
        Of any library.
    x : array (k,)
        The input, the same at every step.
    max_rates : MaxRates
    variant : {"rectified_recurrence", "main"}
    start : CellState of arrays (n,), optional
        Where the search for the fixed point begins; by default y = 0, a = 1, gates of 1/2.
    x_radius : array (k,) or number
        Prove it for every input x +- x_radius at once.

    Returns
    -------
    CellProof

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> parameters, start = oc.init_cell(0, 2, 6)
    >>> proof = oc.prove_cell(parameters, np.array([0.5, 0.2]), start=start)
    >>> proof.continuous, proof.discrete
    (True, True)
    """
    checks.one_of("variant", variant, CELL_VARIANTS)
    max_rates = check_max_rates(max_rates)
    if not isinstance(parameters, CellParameters):
        raise TypeError(f"parameters must be CellParameters, got {checks.describe(parameters)}")
    given = _host(parameters)
    for name, array in given._asdict().items():
        if array is not None and array.ndim > (1 if name in VECTORS else 2):
            raise ValueError(f"{name} must be of one cell, without batch axes, got shape {array.shape}")
    n = given.log_w.shape[-1]
    if start is not None and (not isinstance(start, tuple) or len(start) != 4):
        raise TypeError(f"start must be a CellState(y, a, b0, b1), got {checks.describe(start)}")
    half = np.full(n, 0.5)
    begin = CellState(np.zeros(n), np.ones(n), half, half) if start is None else CellState(*_host(start))
    value, width = _host((x, x_radius))
    validate_cell(given, begin, value)
    k = given.w_zx.shape[-1]
    if value.ndim != 1:
        raise ValueError(f"x must have shape ({k},), got shape {value.shape}")
    for name, part in begin._asdict().items():
        if part.shape != (n,):
            raise ValueError(f"start.{name} must have shape ({n},), got shape {part.shape}")
    if width.shape not in ((), (1,), (k,)):
        raise ValueError(f"x_radius must be a number or have shape ({k},), got shape {width.shape}")
    if np.any(np.isnan(given.log_w)):  # not of the weights made of them
        raise ValueError("log_w must not be NaN, got NaN among its values")
    if not np.all(width >= 0.0):
        raise ValueError(f"x_radius must be non-negative, got {np.min(width):g} as its smallest value")
    with np.errstate(all="ignore"):
        return _prove(given, value, width, max_rates, variant, begin)


def prove_stack(cells: Sequence[tuple[CellParameters, CellState, MaxRates, str]], x: Array) -> tuple[CellProof, ...]:
    """:func:`prove_cell` of stacked cells (parameters, start, max_rates, variant), up to the first undecided."""
    proofs: list[CellProof] = []
    given, width = x, 0.0
    for parameters, start, max_rates, variant in cells:
        proof = prove_cell(parameters, given, max_rates=max_rates, variant=variant, start=start, x_radius=width)
        proofs.append(proof)
        given, width = proof.state.y, proof.enclosure.y
        if proof.continuous is None:
            break
    return tuple(proofs)


def _prove(
    p: CellParameters, x: Floats, width: Floats, max_rates: MaxRates, variant: str, start: CellState
) -> CellProof:
    n = p.log_w.shape[-1]
    cell = _Cell(p, x, width, max_rates, variant)
    at = np.concatenate(_settled(p, start, x, max_rates, variant))
    blank = np.full(4 * n, np.nan)

    def split(vector: Floats) -> CellState:
        return CellState(*np.split(vector, 4))

    none = CellProof(None, None, split(blank), np.nan, split(blank), np.nan, np.full((4 * n, 4 * n), np.nan), "")
    try:
        for _ in range(10):
            inverse = np.linalg.inv(_CellLinear(cell, at).matrix)
            following = at - inverse @ cell.imbalance(at).middle
            if np.all(np.isfinite(following)) and np.all(following[n : 2 * n] > 0.0):
                at = following
        at = np.concatenate([_at_kinks(cell.base, at[: 2 * n]), at[2 * n :]])
        linear: Any = _CellLinear(cell, at)
        krawczyk = _Krawczyk(linear, np.linalg.inv(linear.matrix))
        radius = krawczyk.search()
    except (_NoSlope, np.linalg.LinAlgError):
        radius = None
    if radius is None:
        return none._replace(reason="undecided: no box could be shown to hold a fixed point")
    proof = none._replace(state=split(at), radius=float(np.max(radius)), enclosure=split(radius))
    where = f"one fixed point within {proof.radius:.2g} of the state"
    both = _map_candidate(linear)
    for candidate in (*(() if both is None else (both,)), *_candidates(krawczyk)):
        lyapunov = _Lyapunov(linear, candidate)
        rate = _rate(lyapunov, radius) if lyapunov.positive() else 0.0
        if rate > 0.0:
            discrete = True if _contracts(lyapunov, radius) else None
            told = "as a circuit and as a map" if discrete else "as a circuit; as a map it is undecided"
            return proof._replace(
                continuous=True,
                discrete=discrete,
                decay_rate=rate,
                p=candidate,
                reason=f"{where}, and it attracts, {told}",
            )
    return proof._replace(reason=f"undecided: {where}, but no proof that it attracts was found")
