"""Near and far from W_r = I: the first-order correction, several fixed points, stability boundaries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device, is_array_api_obj

from .. import checks
from ..attractors import newton_in_both, random_starts
from ..backend import Array, from_numpy, to_numpy
from ..circuit import (
    VARIANTS,
    Circuit,
    State,
    has_closed_form,
    identity_fixed_point,
    is_identity,
    prepare,
    validate_circuit,
)
from ..equilibria import FixedPoint, check_range, fixed_points, steady_state
from ..model import full
from ..one_neuron import roots_of_variant
from ..stability import _spectral_abscissa
from ..weights import matvec, without_operators
from .exhaustive import grid_of_two, none_exists


class FirstOrder(NamedTuple):
    """Fixed point of W_r = I + K to first order in K.

    Attributes
    ----------
    state : State of arrays (..., n)
        Zeroth plus first order; its error is of second order in K.
    zeroth : State
        The fixed point for W_r = I.
    correction : State
        The first-order term, linear in K.
    """

    state: State
    zeroth: State
    correction: State


def first_order_correction(circuit: Circuit, z: Array) -> FirstOrder:
    """Fixed point of the main circuit to first order in K = W_r - I.

    Parameters
    ----------
    circuit : Circuit
        With W_r near the identity.
    z : array (..., n)
        Input drive.

    Returns
    -------
    FirstOrder

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    Around the fixed point (y0, a0) for W_r = I (Rawat, Heeger & Martiniani 2024)::

        y1 = (diag(1/sqrt(a0) - 1) - diag(y0/a0) W diag(b z (1 - sqrt(a0)))) K y0
        a1 = W diag(2 b z (1 - sqrt(a0))) K y0

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> k = np.array([[0.0, 0.01], [0.02, 0.0]])
    >>> circuit = oc.Circuit(np.eye(2) + k, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002)
    >>> z = np.array([1.0, 0.5])
    >>> exact = oc.steady_state(circuit, z).state
    >>> near = oc.first_order_correction(circuit, z)
    >>> errors = [abs(state.y - exact.y).max() for state in (near.zeroth, near.state)]
    >>> bool(errors[1] < errors[0] / 10)
    True
    """
    xp = validate_circuit(circuit, values=True, z=z)
    checks.values(xp, "z", z, "any")
    circuit, z = prepare(xp, circuit, z)
    z = full(xp, circuit, z)
    zeroth = identity_fixed_point(xp, circuit, z, "main")
    y, a = zeroth
    k_y = xp.zeros_like(y) if circuit.w_r is None else matvec(xp, circuit.w_r, y) - y
    root = xp.sqrt(a)
    pooled = matvec(xp, circuit.w, circuit.b * z * (1.0 - root) * k_y)
    correction = State((1.0 / root - 1.0) * k_y - (y / a) * pooled, 2.0 * pooled)
    return FirstOrder(State(y + correction.y, a + correction.a), zeroth, correction)


class FixedPoints(tuple[FixedPoint, ...]):
    """Fixed points as a tuple, with what is known about others.

    Attributes
    ----------
    complete : bool
        Whether it is proved that there are no others: for one neuron, for
        W_r = I, and where none exists.
    report : str
        In words: all of them, those found, none found, or none exists.
    """

    complete: bool
    report: str

    @classmethod
    def of(cls, points: Iterable[FixedPoint], *, complete: bool, report: str) -> FixedPoints:
        made = cls(points)
        made.complete, made.report = complete, report
        return made


_SAFE = 32
"""How many searches that plain Newton steps do not end are taken on by safe ones, which cost twenty times as much."""


def find_fixed_points(
    circuit: Circuit,
    z: Array,
    *,
    starts: int = 1024,
    seed: int = 0,
    variant: str = "main",
    tol: float | None = None,
    max_iterations: int = 200,
    distinct: float | None = None,
) -> FixedPoints:
    """Search for the fixed points of a circuit by Newton's method from many starts at once.

    Parameters
    ----------
    circuit : Circuit
        Without batch axes, any n.
    z : array (n,)
        Input drive.
    starts : int
        Number of random starts, besides the fixed point for W_r = I: modulators
        log-uniform between (b0 sigma)**2 and ten times what W_r = I gives, or 4
        where that is less, each by itself or all at one level; y of the size that
        W_r = I gives, or within 1 / sqrt(w_ii). Each takes plain
        Newton steps in y and a, and where these do not converge, of the first 32
        such, the safe ones of :func:`steady_state`. For two neurons also every cell of a grid over y
        at whose corners both equations change their sign.
    seed : int
    variant : {"main", "rectified", "rectified_recurrence"}
    tol, max_iterations
        As in :func:`steady_state`.
    distinct : float, optional
        Fixed points closer than this, relative to their norm, are one;
        ``sqrt(tol)`` by default.

    Returns
    -------
    FixedPoints
        A tuple of those found, in order of rising mean a, each with its
        stability. One neuron has them all, as :func:`fixed_points` gives them,
        W_r = I has one, the closed form, and ``complete`` is true. For more a search is no proof that there are no
        others: of 180 random circuits of three neurons (norm of W_r 2 to 5, drive
        0.3 or 1, all variants; counted once) 2 had points that only 20,000 starts found. Where
        it finds none, up to six neurons of the main circuit with w_ii > 0, it
        tries to prove that none exists, by intervals.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError where fixed points
        leave the range of the dtype.

    Examples
    --------
    >>> import numpy as np
    >>> circuit = Circuit(np.array([[0.0, 1.0], [0.0, 0.0]]), np.eye(2), 1.0, 1.0, 0.1, 0.002, 0.002)
    >>> found = find_fixed_points(circuit, np.array([1.0, 2.0]))  # y_2 = 2, above its bound of 1
    >>> len(found), found.complete
    (0, True)
    """
    starts = checks.positive_integer("starts", starts)
    seed = checks.seed(seed)
    distinct = None if distinct is None else checks.positive_number("distinct", distinct)
    xp = validate_circuit(circuit, values=True, z=z)
    n = int(z.shape[-1])
    axes = {"z": 1, **{name: circuit.spec[name].axes for name in circuit._fields}}
    for name, value in {"z": z, **circuit._asdict()}.items():
        if is_array_api_obj(value) and value.ndim > axes[name]:
            raise ValueError(f"{name} must have no batch axes here, got shape {tuple(value.shape)}")
    circuit, z = prepare(xp, circuit, z)
    circuit = without_operators(xp, circuit, z)
    checks.values(xp, "z", z, "any")
    if n == 1:
        every = fixed_points(circuit, z, variant=variant)
        report = "every fixed point of this one neuron" if every else "none exists: proved for one neuron"
        return FixedPoints.of(every, complete=True, report=report)
    check_range(xp, circuit, z)
    if has_closed_form(variant) and is_identity(xp, circuit.w_r):
        one = identity_fixed_point(xp, circuit, z, variant)
        abscissa = float(_spectral_abscissa(xp, circuit, one, variant))
        return FixedPoints.of(
            (FixedPoint(one, True, abscissa),), complete=True, report="the fixed point: W_r = I has one"
        )
    eps = float(xp.finfo(z.dtype).eps)
    tolerance = eps**0.75 if tol is None else tol
    drive = to_numpy(circuit.b * z).astype(float)
    floor = (to_numpy(circuit.b0 * circuit.sigma).astype(float) + np.zeros(n)) ** 2
    w = to_numpy(circuit.w).astype(float)
    w_r = np.eye(n) if circuit.w_r is None else to_numpy(circuit.w_r).astype(float)

    begun = random_starts(xp, circuit, z, variant, starts, seed)
    if n == 2:
        cells = grid_of_two(w_r, w, drive, floor, variant)
        if len(cells[0]):
            begun = State(*(xp.concat([one, from_numpy(xp, more, z)]) for one, more in zip(begun, cells, strict=True)))
    plain, residual = newton_in_both(xp, circuit, begun, z, variant, tolerance)
    reference = identity_fixed_point(xp, circuit, z, variant)
    left = np.flatnonzero(~(to_numpy(residual) <= tolerance))[:_SAFE]
    start = State(
        *(xp.stack([one, *(part[int(k), :] for k in left)]) for one, part in zip(reference, plain, strict=True))
    )
    safe = steady_state(
        circuit, z, method="newton", variant=variant, tol=tol, max_iterations=max_iterations, state0=start,
        attracting=False,
    )  # fmt: skip
    state = State(*(xp.concat([one, other]) for one, other in zip(plain, safe.state, strict=True)))
    if not drive.any() and not any(VARIANTS[variant]):  # the equations are odd in y
        state = State(xp.concat([state.y, -state.y]), xp.concat([state.a, state.a]))
    if xp.finfo(z.dtype).bits <= 32:  # one point must not pass for several by its rounding
        double = Circuit._make(None if part is None else to_numpy(part).astype(float) for part in circuit)
        begun = State(*(to_numpy(part).astype(float) for part in state))
        state, residual = newton_in_both(np, double, begun, to_numpy(z).astype(float), variant, 1e-6 * tolerance, 6)
    else:
        state, residual = newton_in_both(xp, circuit, state, z, variant, 1e-3 * tolerance, steps=3)
    near = math.sqrt(tolerance) if distinct is None else distinct
    points = np.concatenate([to_numpy(state.y), to_numpy(state.a)], axis=-1).astype(float)
    worth = to_numpy(residual)
    sound = (worth <= tolerance) & np.isfinite(points).all(axis=-1)
    kept: list[int] = []
    for k in np.argsort(worth, kind="stable"):
        if not sound[k]:
            continue
        size = 1e-12 + np.abs(points[k]).max()
        if not kept or (np.abs(points[kept] - points[k]).max(axis=-1) > near * size).all():
            kept.append(int(k))
    kept.sort(key=lambda k: (points[k, n:].mean(), tuple(points[k, :n])))
    result = []
    for k in kept:
        one = State(from_numpy(xp, points[k, :n], z), from_numpy(xp, points[k, n:], z))
        abscissa = float(_spectral_abscissa(xp, circuit, one, variant))
        result.append(FixedPoint(one, abscissa < 0, abscissa))
    if not result and not any(VARIANTS[variant]) and none_exists(w_r, w, drive, floor):
        return FixedPoints.of((), complete=True, report="none exists: proved by intervals that cover all bounded y")
    report = (
        f"{len(result)} found; whether there are others is not known" if result else "none found, which proves nothing"
    )
    return FixedPoints.of(result, complete=False, report=report)


class StabilityBoundary(NamedTuple):
    """Where a one-neuron circuit gains or loses stability, over two parameters.

    Attributes
    ----------
    parameters : (str, str)
    values : pair of arrays (P,), (Q,)
        The grid.
    abscissa : array (P, Q)
        Spectral abscissa of the fixed point that was asked for, per second;
        infinite where there is none. Negative is stable.
    points : array (M, 2)
        The boundary on the lines of the grid, by bisection.
    segments : array (S, 2, 2)
        The boundary cell by cell: S pieces, each from one point to another.
    """

    parameters: tuple[str, str]
    values: tuple[Array, Array]
    abscissa: Array
    points: Array
    segments: Array


_PARAMETERS = ("w_r", "w", "b", "b0", "sigma", "tau_y", "tau_a", "z")


def stability_boundary(
    circuit: Circuit,
    z: Array,
    parameters: tuple[str, str],
    values: tuple[Array, Array],
    *,
    which: str = "any",
    variant: str = "main",
) -> StabilityBoundary:
    """Trace the stability boundary of a one-neuron circuit in any two of its parameters.

    Parameters
    ----------
    circuit : Circuit
        With n = 1 and no batch axes.
    z : array (1,)
        Input drive.
    parameters : (str, str)
        Two of w_r, w, b, b0, sigma, tau_y, tau_a, z.
    values : pair of arrays (P,), (Q,)
        Rising values of each, two at least.
    which : {"any", "principal"}
        ``"any"``: the circuit counts as stable where any of its fixed points
        is; ``"principal"``: where the one with y z > 0 is.
    variant : {"main", "rectified", "rectified_recurrence"}

    Returns
    -------
    StabilityBoundary

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    All fixed points at every point of the grid are found as by
    :func:`fixed_points`; between two neighbours of different stability the
    boundary is found by bisection, to 1e-12 of their distance.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit, z = oc.Circuit(np.array([[2.0]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> grid = np.linspace(0.5, 3.0, 6), np.array([0.001, 0.002, 0.004])
    >>> found = oc.stability_boundary(circuit, z, ("w_r", "tau_y"), grid, which="principal")
    >>> found.abscissa.shape
    (6, 3)
    """
    checks.one_of("variant", variant, VARIANTS)
    checks.one_of("which", which, ("any", "principal"))
    xp = validate_circuit(circuit, values=True, z=z)
    if circuit.w.shape != (1, 1) or z.shape != (1,):
        raise ValueError(
            "stability_boundary is for one neuron without batch axes: w must have shape (1, 1) and z shape (1,), "
            f"got {tuple(circuit.w.shape)} and {tuple(z.shape)}"
        )
    if len(parameters) != 2 or parameters[0] == parameters[1]:
        raise ValueError(f"parameters must be two different names, got {parameters!r}")
    for name in parameters:
        checks.one_of("parameters", name, _PARAMETERS)
    for name, value in zip(parameters, values, strict=True):
        checks.namespace({"w": circuit.w, f"values of {name}": value})
        if value.ndim != 1 or value.shape[0] < 2 or not bool(xp.all(value[1:] > value[:-1])):
            raise ValueError(f"values of {name} must be a rising array of shape (P,) with P >= 2")
        allowed = {"w_r": "any", "z": "any", "w": ">= 0"}.get(name, "> 0")
        checks.values(xp, f"values of {name}", value, allowed)
    prepared, drive = prepare(xp, circuit, z)
    fixed = {
        name: 1.0 if value is None else float(to_numpy(value).reshape(-1)[0])
        for name, value in prepared._asdict().items()
    }
    fixed["z"] = float(to_numpy(drive)[0])
    first, second = ([float(v) for v in to_numpy(value)] for value in values)

    def measure(p: float, q: float) -> float:
        at = {**fixed, parameters[0]: p, parameters[1]: q}
        found = _one_neuron(at, variant)
        if which == "principal":
            found = [point for point in found if point[0] * at["z"] > 0]
        return min((point[2] for point in found), default=math.inf)

    table = [[measure(p, q) for q in second] for p in first]
    points, segments = _trace(measure, first, second, table)

    def convert(value: Any, shape: tuple[int, ...]) -> Array:
        if 0 in shape:
            return xp.zeros(shape, dtype=drive.dtype, device=device(drive))
        return xp.asarray(value, dtype=drive.dtype, device=device(drive))

    return StabilityBoundary(
        (parameters[0], parameters[1]),
        (values[0], values[1]),
        convert(table, (len(first), len(second))),
        convert(points, (len(points), 2)),
        convert(segments, (len(segments), 2, 2)),
    )


def _one_neuron(at: dict[str, float], variant: str) -> list[tuple[float, float, float]]:
    """(y, a, spectral abscissa) of every fixed point."""
    found = []
    w_r, w, tau_y, tau_a = at["w_r"], at["w"], at["tau_y"], at["tau_a"]
    for y, a in roots_of_variant(w_r, w, at["b"] * at["z"], at["b0"] * at["sigma"], variant):
        flags = VARIANTS[variant]
        response = max(y, 0.0) if flags.response else y
        source = y if not flags.source else max(y, 0.0)
        slope = 0.0 if flags.source and y <= 0 else w_r
        slope = 0.0 if flags.drive and w_r * source <= 0 else slope
        pieces = (0.0, w_r) if y == 0 and (flags.source or flags.drive) else (slope,)  # both sides of the kink
        s = math.sqrt(a)
        a21 = 2.0 * w * a * response / tau_a
        a22 = (-1.0 + w * response * response) / tau_a
        largest = max(
            _largest_real((-1.0 + (1.0 - s) * slope) / tau_y, -slope * y / (2.0 * s) / tau_y, a21, a22)
            for slope in pieces
        )
        found.append((y, a, largest))
    return found


def _largest_real(a11: float, a12: float, a21: float, a22: float) -> float:
    """Largest real part of the eigenvalues of a matrix, to its digits also where it is small beside the other."""
    half, det = 0.5 * (a11 + a22), a11 * a22 - a12 * a21
    disc = half * half - det
    if disc <= 0:
        return half
    return half + math.sqrt(disc) if half > 0 else det / (half - math.sqrt(disc))


Point = tuple[float, float]


def _trace(
    measure: Callable[[float, float], float], first: list[float], second: list[float], table: list[list[float]]
) -> tuple[list[Point], list[tuple[Point, Point]]]:
    """Boundary points on the edges of the grid, and their links inside its cells (marching squares)."""

    def cross(at: Callable[[float], Point], low_stable: bool) -> Point:
        left, right = 0.0, 1.0
        for _ in range(40):
            middle = 0.5 * (left + right)
            if (measure(*at(middle)) < 0) == low_stable:
                left = middle
            else:
                right = middle
        return at(0.5 * (left + right))

    stable = [[value < 0 for value in row] for row in table]
    along_first: dict[tuple[int, int], Point] = {}
    along_second: dict[tuple[int, int], Point] = {}
    for i, p in enumerate(first):
        for j, q in enumerate(second):
            if i + 1 < len(first) and stable[i][j] != stable[i + 1][j]:
                step = first[i + 1] - p
                along_first[i, j] = cross(lambda t, p=p, q=q, step=step: (p + t * step, q), stable[i][j])  # type: ignore[misc]
            if j + 1 < len(second) and stable[i][j] != stable[i][j + 1]:
                step = second[j + 1] - q
                along_second[i, j] = cross(lambda t, p=p, q=q, step=step: (p, q + t * step), stable[i][j])  # type: ignore[misc]
    segments = []
    for i in range(len(first) - 1):
        for j in range(len(second) - 1):
            bottom, top = along_first.get((i, j)), along_first.get((i, j + 1))
            left, right = along_second.get((i, j)), along_second.get((i + 1, j))
            edges = [point for point in (bottom, left, top, right) if point is not None]
            if len(edges) == 2:
                segments.append((edges[0], edges[1]))
            elif len(edges) == 4:
                # a saddle: the value in the middle says which corners belong together
                middle = measure(0.5 * (first[i] + first[i + 1]), 0.5 * (second[j] + second[j + 1])) < 0
                joined = middle == stable[i][j]
                pairs = ((bottom, right), (left, top)) if joined else ((bottom, left), (top, right))
                segments += [(a, b) for a, b in pairs if a is not None and b is not None]
    return [*along_first.values(), *along_second.values()], segments
