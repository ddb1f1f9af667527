"""Branches of fixed points: pseudo-arclength continuation, folds, Hopf points, branch points.

Source: Kuznetsov, Elements of Applied Bifurcation Theory (2004): chapter 10, and for
the first Lyapunov coefficient in n dimensions chapter 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np

from .. import checks
from ..backend import Array, to_numpy
from ..circuit import Circuit
from ..equilibria import steady_state
from ..model import validate
from .host import Hosted, Vector, on_host

KINDS = ("fold", "hopf", "branch point", "kink")
"""Kinds of special points."""

_TIGHT = 1e-6  # what lies closer together along the branch, relative to its size, is one event
_SHORT = 1e-9  # shortest step
_TURN = 0.3  # largest angle between the tangents of neighbours, in radians


class SpecialPoint(NamedTuple):
    """A point of a branch where its stability or its direction changes.

    Attributes
    ----------
    kind : {"fold", "hopf", "branch point", "kink"}
        ``"fold"``: the branch turns back, a real eigenvalue passes zero;
        ``"hopf"``: a complex pair crosses the imaginary axis; ``"branch point"``:
        a real eigenvalue passes zero and the branch goes on, another one crosses
        it; ``"kink"``: stability or direction jumps, as at a kink of a
        rectified model.
    value : float
        Of the parameter.
    state : State of arrays (n,)
    eigenvalue : complex
        The one that crosses, per second.
    frequency : float
        In Hz, of a Hopf point; NaN for others.
    lyapunov : float
        First Lyapunov coefficient of a Hopf point, for the critical eigenvector of
        norm one, per square of the state: negative where the cycles that are born
        there attract on the centre manifold (supercritical), positive where they
        repel. NaN for others, and where finite differences do not tell it to a thousandth of its terms. It holds
        where the field is smooth.
    after : int
        It lies between the points ``after`` and ``after + 1`` of the branch.
    """

    kind: str
    value: float
    state: Any
    eigenvalue: complex
    frequency: float
    lyapunov: float
    after: int


class Branch(NamedTuple):
    """A branch of fixed points.

    Attributes
    ----------
    parameter : str
        What was varied.
    values : array (K,)
        Of the parameter, in the order along the branch.
    points : State of arrays (K, n)
        The fixed points.
    stable : boolean array (K,)
        Whether all eigenvalues of the Jacobian have negative real part (at a kink
        that of the silent side, which alone decides nothing there).
    abscissa : array (K,)
        Their largest real part, per second.
    special : tuple of SpecialPoint
        In the order along the branch.
    message : str
        Where the branch ends, and why.
    """

    parameter: str
    values: Array
    points: Any
    stable: Array
    abscissa: Array
    special: tuple[SpecialPoint, ...]
    message: str


class _Node(NamedTuple):
    """A point of the curve: (x, p) scaled, its unit tangent, the eigenvalues by falling real part."""

    u: Vector
    tangent: Vector
    eigenvalues: Vector

    @property
    def unstable(self) -> int:
        return int((self.eigenvalues.real >= 0).sum())


def continue_fixed_points(
    model: Any,
    z: Array,
    parameter: str | Callable[[float], tuple[Any, Array]],
    values: Any,
    *,
    state0: Any = None,
    variant: str = "main",
    max_step: float = 0.05,
    max_points: int = 1000,
) -> Branch:
    """Follow a branch of fixed points as a parameter varies, around its folds, and find where it changes stability.

    Parameters
    ----------
    model : Circuit or Model
        Without batch axes.
    z : array (n,)
        Input drive.
    parameter : str or callable
        The name of a parameter of the model, or ``"z"``. One that is a number, or
        an array of one entry, takes the value itself; any other array is
        multiplied by it (None, of weights, counts as the identity): contrast, for
        ``"z"``. A callable ``value -> (model, z)`` varies whatever it likes, and
        is asked for values in the range only; ``model`` and ``z`` then are not
        used, and may be None.
    values : pair of numbers, or array (V,)
        The branch starts at the first value, in the direction of the last, and
        ends where it leaves the interval between them on either side. Values
        between those, in rising or falling order, become points of the branch
        where it passes them.
    state0 : State of arrays (n,), optional
        Near a fixed point at the first value; by default :func:`steady_state`
        finds one.
    variant : {"main", "rectified", "rectified_recurrence"}
        Of a Circuit.
    max_step : float
        Longest step, relative to the interval and to the size of the states.
        Steps are shorter where the branch bends.
    max_points : int

    Returns
    -------
    Branch
        In the library of the arguments; it is computed by numpy, in float64.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError where no fixed point is
        found at the first value. Values must be visible: this does not trace.

    Notes
    -----
    Pseudo-arclength continuation: Newton's method on f(x, p) = 0 in the plane at
    right angles to the predictor. Between two points whose tangents point
    opposite ways in p, or whose numbers of unstable eigenvalues differ, the zero
    of the tangent's p, or of the real part that crosses, is found by bisection
    and false position, to 1e-11 of the interval. What happens and is undone
    within one step is not seen: take a shorter ``max_step``. A model that depends
    on time is taken at the time 0.

    Examples
    --------
    One neuron with strong recurrence has three fixed points for weak drive, two of
    which meet at a fold:

    >>> import numpy as np
    >>> import organics_core as oc
    >>> neuron = oc.Circuit(np.array([[2.0]]), np.array([[1.0]]), 0.5, 0.5, 0.1, 0.002, 0.002)
    >>> z = np.array([0.2])
    >>> start = oc.fixed_points(neuron, z)[0].state
    >>> branch = oc.continue_fixed_points(neuron, z, "z", (0.2, 3.0), state0=start)
    >>> [point.kind for point in branch.special], branch.message
    (['fold'], 'left the range at z = 0.2')
    """
    max_step = checks.positive_number("max_step", max_step)
    max_points = checks.positive_integer("max_points", max_points)
    knots = _knots(values)
    name, at = _family(model, z, parameter, knots, variant)
    hosted, x0 = at(knots[0]), None
    if state0 is not None:
        given, zz = parameter(knots[0]) if callable(parameter) else (model, z)
        x0 = on_host(given, zz, variant, state0)[1]
    curve = _Curve(at, min(knots), max(knots))
    start = curve.start(knots, x0, name)
    nodes, special, message = curve.follow(start, knots, max_step, max_points, name)
    u = np.stack([node.u for node in nodes])
    largest = np.array([node.eigenvalues[0].real for node in nodes])
    return Branch(
        name,
        hosted.give(u[:, -1]),
        hosted.state(u[:, :-1]),
        hosted.give(largest < 0),
        hosted.give(largest),
        tuple(special),
        message,
    )


def _knots(values: Any) -> list[float]:
    knots = [float(v) for v in np.ravel(np.asarray(values if isinstance(values, tuple | list) else to_numpy(values)))]
    rising = np.diff(knots)
    if len(knots) < 2 or not np.isfinite(knots).all() or not ((rising > 0).all() or (rising < 0).all()):
        raise ValueError(f"values must be two or more finite numbers, rising or falling, got {values!r}")
    return knots


def _family(
    model: Any, z: Array, parameter: Any, knots: list[float], variant: str
) -> tuple[str, Callable[[float], Hosted]]:
    """What is varied, and the model as a function of it."""
    if callable(parameter):

        def called(value: float) -> Hosted:
            made = parameter(value)
            if not (isinstance(made, tuple) and len(made) == 2):
                raise TypeError(f"parameter must return (model, z), got {checks.describe(made)}")
            return on_host(*made, variant)[0]

        at = lru_cache(maxsize=16)(called)
        name = getattr(parameter, "__name__", "parameter")
        name = "parameter" if name == "<lambda>" else name
    else:
        base = on_host(model, z, variant)[0]
        if not isinstance(parameter, str):
            raise TypeError(f"parameter must be a name or a function, got {checks.describe(parameter)}")
        checks.one_of("parameter", parameter, (*base.model._fields, "z"))
        given = z if parameter == "z" else getattr(model, parameter)
        old = base.z if parameter == "z" else getattr(base.model, parameter)
        if old is None and base.model.spec[parameter].axes == 2:
            old, given = np.eye(len(base.z)), "identity"
        alone = old is None or checks.is_number(given) or np.size(old) == 1

        def varied(value: float) -> Hosted:
            new = np.asarray(value) if old is None else np.full(old.shape, value) if alone else value * old
            if parameter == "z":
                return base._replace(z=np.broadcast_to(new, base.z.shape))
            return base._replace(model=base.model._replace(**{parameter: new}))

        for end in (knots[0], knots[-1]):
            made = varied(end)
            validate(made.model, values=True, z=made.z)
        at, name = lru_cache(maxsize=16)(varied), parameter if alone else f"multiple of {parameter}"
    at(knots[-1])
    return name, at


class _Curve:
    """The solutions (x, p) of f(x, p) = 0, with lengths measured in units of the states and of the interval."""

    def __init__(self, at: Callable[[float], Hosted], low: float, high: float) -> None:
        self.at, self.low, self.high = at, low, high
        self.size = 1.0  # of the states
        self.scale: Vector = np.ones(0)  # of (x, p)

    def measure(self, size: float, n: int) -> None:
        """Set the size of the states; that of p is the interval."""
        self.size = size
        self.scale = np.append(np.full(n, size * math.sqrt(n)), self.high - self.low)

    def inside(self, u: Vector) -> bool:
        return bool(np.isfinite(u).all()) and self.low <= u[-1] <= self.high

    def slope(self, u: Vector) -> Vector:
        """Derivative (N, N + 1) of f by (x, p); by p on five points, none of which leaves the interval."""
        x, p = u[:-1], float(u[-1])
        width = self.high - self.low
        h = min(1e-3 * max(abs(p), 1e-3 * width), 0.2 * width)
        centre = min(max(p, self.low + 2 * h), self.high - 2 * h)
        nodes = np.arange(-2.0, 3.0)
        where = (p - centre) / h
        powers = np.array([k * where ** (k - 1) if k else 0.0 for k in range(5)])
        weights = np.linalg.solve(np.vander(nodes, 5, increasing=True).T, powers) / h
        sides = [float(min(max(centre + h * node, self.low), self.high)) for node in nodes]
        by_p = sum(w * self.at(side).field(x) for w, side in zip(weights, sides, strict=True))
        return np.column_stack([self.at(p).jacobian(x), cast(Vector, by_p)])

    def solve(self, guess: Vector, normal: Vector) -> tuple[Vector, int] | None:
        """Newton's method in the plane through ``guess`` at right angles to ``normal``, and its iterations."""
        u = guess
        last = math.inf
        for iteration in range(1, 13):
            if not self.inside(u):
                return None
            f = self.at(float(u[-1])).field(u[:-1])
            right = -np.append(f, normal @ ((u - guess) / self.scale))
            if not right.any():
                return u, iteration
            matrix = np.vstack([self.slope(u) * self.scale, normal])
            if not (np.isfinite(matrix).all() and np.isfinite(right).all()):
                return None
            try:
                change = np.linalg.solve(matrix, right)
            except np.linalg.LinAlgError:
                return None
            u = u + self.scale * change
            size = float(np.abs(change).max())
            if normal[-1] == 1.0:
                u[-1] = guess[-1]
            if size <= 1e-10 or (size <= 1e-7 and size > 0.5 * last):
                if not self.inside(u):
                    return None
                if self.at(float(u[-1])).solves(u[:-1]):
                    return u, iteration
            last = size
        return None

    def node(self, u: Vector, along: Vector) -> _Node:
        """The point ``u`` with its tangent, in the direction of ``along``."""
        slope = self.slope(u)
        matrix = slope * self.scale
        try:
            tangent = np.linalg.solve(np.vstack([matrix, along]), np.append(np.zeros(len(u) - 1), 1.0))
        except np.linalg.LinAlgError:
            tangent = np.linalg.svd(matrix)[2][-1]
        tangent = tangent / np.linalg.norm(tangent)
        tangent = tangent if tangent @ along >= 0 else -tangent
        values = np.linalg.eigvals(slope[:, :-1])
        return _Node(u, tangent, values[np.argsort(-values.real, kind="stable")])

    def settled(self, p: float) -> tuple[Vector, bool]:
        """The state that :func:`steady_state` finds, and whether it is a fixed point."""
        hosted = self.at(p)
        variant = hosted.model.variant if isinstance(hosted.model, Circuit) else "main"
        found = steady_state(hosted.model, hosted.z, variant=variant)
        x = np.concatenate([np.asarray(part, dtype=float) for part in found.state])
        return x, bool(found.converged) and bool(np.isfinite(x).all())

    def start(self, knots: list[float], x0: Vector | None, name: str) -> _Node:
        """The first point."""
        p = knots[0]
        if x0 is None:
            x0, sound = self.settled(p)
            if not sound:
                raise ValueError(f"no fixed point was found at {name} = {p:g}; give state0 near one")
        ahead = np.append(np.zeros(len(x0)), 1.0)
        # how large the states are: at the start, and a tenth of the interval further
        later, sound = self.settled(p + 0.1 * (knots[-1] - p))
        size = max(float(np.abs(x0).max()), float(np.abs(later).max()) if sound else 0.0)
        self.measure(size if size > 1e-100 else 1.0, len(x0))
        solved = self.solve(np.append(x0, p), ahead)
        if solved is None:
            raise ValueError(f"no fixed point was found at {name} = {p:g} near state0; give a state0 closer to one")
        u = solved[0]
        return self.node(u, ahead * (knots[-1] - knots[0]))

    def follow(
        self, start: _Node, knots: list[float], longest: float, most: int, name: str
    ) -> tuple[list[_Node], list[SpecialPoint], str]:
        """The nodes of the branch, what lies between them, and why it ends."""
        inner = sorted(knots)
        nodes, special, length = [start], list[SpecialPoint](), 0.2 * longest
        limit = 1e4 * self.size
        while len(nodes) < most:
            last = nodes[-1]
            heading = float(last.tangent[-1])
            aims = [v for v in inner if (v - last.u[-1]) * heading > 1e-12 * (self.high - self.low)]
            aim = (min(aims) if heading > 0 else max(aims)) if aims else None
            if aim is None and abs(heading) > 1e-6:
                return nodes, special, f"left the range at {name} = {last.u[-1]:g}"
            made, landed, iterations = self.step(last, length, aim)
            if made is None:
                length *= 0.5
                if length < _SHORT and (made := self.around(last)) is None:
                    return nodes, special, f"{self.stuck(last)} at {name} = {last.u[-1]:.6g}"
                if made is None:
                    continue
                length = 1e-5
            special += [self.special(*event, len(nodes) - 1) for event in self.events(last, made)]
            nodes.append(made)
            size = float(np.abs(made.u[:-1]).max())
            if size > limit:
                return nodes, special, f"grows without bound near {name} = {made.u[-1]:.6g}"
            if size > 1.2 * self.size:  # tangents are unit vectors in the new measure too
                self.measure(size, len(made.u) - 1)
                nodes[-1] = self.node(made.u, (made.u - last.u) / self.scale)
            if landed and aim in (self.low, self.high):
                return nodes, special, f"left the range at {name} = {aim:g}"
            if iterations <= 4 and not landed:
                length = min(1.4 * length, longest)
        return nodes, special, f"stopped after max_points = {most} points at {name} = {nodes[-1].u[-1]:.6g}"

    def step(self, last: _Node, length: float, aim: float | None) -> tuple[_Node | None, bool, int]:
        """The next point, whether it lies at ``aim``, and the iterations; None where the step was too long."""
        guess, normal, landed = last.u + length * self.scale * last.tangent, last.tangent, False
        beyond = aim is not None and (guess[-1] - aim) * last.tangent[-1] >= 0
        solved = None if beyond else self.solve(guess, normal)
        if aim is not None and (beyond or (solved and (solved[0][-1] - aim) * last.tangent[-1] > 0)):
            share = (aim - last.u[-1]) / (self.scale[-1] * last.tangent[-1])
            guess, landed = last.u + share * self.scale * last.tangent, True
            guess[-1] = aim
            normal = np.append(np.zeros(len(guess) - 1), 1.0)
            solved = self.solve(guess, normal)
        if solved is None:
            return None, False, 0
        u, iterations = solved
        made = self.node(u, (u - last.u) / self.scale)
        sharp = length < 1e-5  # so short a step that turns goes around the corner of a kink
        near = np.linalg.norm((u - guess) / self.scale) <= (1.0 if sharp else 0.5) * length
        if not near or (not sharp and made.tangent @ last.tangent < math.cos(_TURN)):
            return None, False, 0
        return made, landed, iterations

    def around(self, last: _Node) -> _Node | None:
        """A point on the other side of a corner, which no step along the tangent reaches."""
        ahead = np.append(np.zeros(len(last.u) - 1), 1.0)
        for sign in (math.copysign(1.0, last.tangent[-1]), -math.copysign(1.0, last.tangent[-1])):
            guess = last.u + sign * _TIGHT * self.scale * ahead
            solved = self.solve(guess, ahead)
            if solved is None:
                continue
            chord = (solved[0] - last.u) / self.scale
            length = np.linalg.norm(chord)
            if length < 1e3 * _TIGHT and chord @ last.tangent > -0.9 * length:
                return self.node(solved[0], chord)
        return None

    def stuck(self, last: _Node) -> str:
        """Why no step is short enough: does the Jacobian jump?"""
        h = 1e-5 * self.size * np.where(last.tangent[:-1] == 0, 1.0, np.sign(last.tangent[:-1]))
        hosted = self.at(float(last.u[-1]))
        before, after = hosted.jacobian(last.u[:-1] - h), hosted.jacobian(last.u[:-1] + h)
        jump = np.abs(after - before).max() > 0.05 * np.abs(before).max()
        return "ends, or turns too sharply, at a kink of the field" if jump else "no next point was found"

    def between(self, a: _Node, b: _Node, share: float) -> _Node | None:
        """The point of the curve beside a point of the chord."""
        chord = (b.u - a.u) / self.scale
        length = float(np.linalg.norm(chord))
        solved = self.solve(a.u + share * (b.u - a.u), chord / length)
        if solved is None or np.linalg.norm((solved[0] - a.u) / self.scale) > 1.5 * length:
            return None
        return self.node(solved[0], chord)

    def events(self, a: _Node, b: _Node, depth: int = 10) -> list[tuple[str, _Node, int]]:
        """(kind, where, which eigenvalue) of what happens between two neighbours, in order."""
        flips = a.tangent[-1] * b.tangent[-1] < 0
        if depth == 0 or (not flips and a.unstable == b.unstable):
            return []
        rank = min(a.unstable, b.unstable)  # of the eigenvalue that crosses

        def measure(node: _Node) -> float:
            return float(node.tangent[-1] if flips else node.eigenvalues[rank].real)

        length = float(np.linalg.norm((b.u - a.u) / self.scale))
        low, high = (0.0, measure(a)), (1.0, measure(b))
        at, best, before = 0.5, a if abs(low[1]) < abs(high[1]) else b, -1.0
        for count in range(80):
            if (high[0] - low[0]) * length < 1e-11 or abs(at - before) * length < 1e-12:
                break
            before = at
            spread = high[1] - low[1]
            # false position, and every third time the middle
            at = low[0] - low[1] * (high[0] - low[0]) / spread if spread and count % 3 < 2 else 0.5 * (low[0] + high[0])
            made = self.between(a, b, at)
            if made is None:  # too near to a singular point, perhaps
                at = low[0] + 0.37 * (high[0] - low[0])
                made = self.between(a, b, at)
            if made is None:
                break
            best, value = made, measure(made)
            low, high = ((at, value), high) if (value >= 0) == (low[1] >= 0) else (low, (at, value))
        # what happens within a tight bracket is one event; then look on both sides of it
        sides = [self.between(a, b, side) for side in (at - _TIGHT / length, at + _TIGHT / length) if 0 < side < 1]
        left = next((s for s in sides[:1] if s is not None and at * length > _TIGHT), a)
        right = next((s for s in sides[-1:] if s is not None and (1 - at) * length > _TIGHT), b)
        turned = left.tangent[-1] * right.tangent[-1] < 0
        change, rank = right.unstable - left.unstable, min(left.unstable, right.unstable)
        found = [(self.kind(best, turned, change, rank), best, rank)] if turned or change else []
        if left is a and right is b:
            return found
        return [*self.events(a, left, depth - 1), *found, *self.events(right, b, depth - 1)]

    def kind(self, node: _Node, turned: bool, change: int, rank: int) -> str:
        largest = float(np.abs(node.eigenvalues).max())
        crossing = node.eigenvalues[rank]
        if abs(crossing.real) > 1e-5 * largest or (turned and abs(node.tangent[-1]) > 1e-3):
            return "kink"
        if turned and change % 2:
            return "fold"
        return "hopf" if abs(crossing.imag) > 1e-7 * largest and change % 2 == 0 else "branch point"

    def special(self, kind: str, node: _Node, rank: int, index: int) -> SpecialPoint:
        hosted = self.at(float(node.u[-1]))
        values = node.eigenvalues
        crossing = complex(values[rank])
        frequency = lyapunov = math.nan
        if kind == "hopf":
            crossing = complex(crossing.real, abs(crossing.imag))
            frequency = crossing.imag / (2 * math.pi)
            lyapunov = _first_lyapunov(hosted, node.u[:-1], crossing.imag)
        return SpecialPoint(kind, float(node.u[-1]), hosted.state(node.u[:-1]), crossing, frequency, lyapunov, index)


# Weights of central differences on the points 1 to 4: of orders 4 and 6, for the second and the third derivative.
_SECOND = np.array([[16 / 12, -1 / 12, 0.0, 0.0], [270 / 180, -27 / 180, 2 / 180, 0.0]])
_THIRD = np.array([[-13 / 8, 8 / 8, -1 / 8, 0.0], [-488 / 240, 338 / 240, -72 / 240, 7 / 240]])
_SHARES = 0.2 * 0.5 ** np.arange(24.0)  # lengths of their steps, relative to the size of what moves
_DOUBT = 1e-3  # a coefficient that may be off by more, relative to its terms, is none


def _first_lyapunov(hosted: Hosted, x: Vector, omega: float) -> float:
    """First Lyapunov coefficient at a Hopf point, with second and third derivatives by central differences.

    All of it is computed for steps of many lengths and by two orders, arrays (2, K, N) of both orders and K lengths;
    the answer is that on which orders and neighbouring lengths agree best, NaN where they disagree.
    """
    jac = hosted.jacobian(x)
    eye = np.eye(len(x))
    q = _null(jac - 1j * omega * eye)
    p = _null(jac.T + 1j * omega * eye)
    p = p / np.vdot(p, q).conj()
    # a population is of one size, that of its largest
    sizes = np.concatenate([np.full(len(part), np.abs(part).max()) for part in hosted.layout.unpack(x)])
    sizes = np.where(sizes > 0, sizes, np.abs(x).max() or 1.0)
    points = np.arange(1.0, 5.0)[:, None, None, None]

    def sides(v: Vector) -> tuple[Vector, Vector, Vector]:
        """The field on both sides of x (4, 2, K, N) along real vectors, and the lengths of the steps."""
        most = (np.abs(v) / sizes).max(axis=-1, keepdims=True)
        h = _SHARES[:, None] / np.where(most > 0, most, 1.0)
        return hosted.field(x + points * h * v), hosted.field(x - points * h * v), h

    def second(v: Vector) -> Vector:
        up, down, h = sides(v)
        return np.asarray(np.einsum("op,pokn->okn", _SECOND, up + down - 2 * hosted.field(x)) / h**2)

    def third(v: Vector) -> Vector:
        up, down, h = sides(v)
        return np.asarray(np.einsum("op,pokn->okn", _THIRD, up - down) / h**3)

    def both(v: Vector, w: Vector) -> Vector:
        """B(v, w) of real vectors."""
        return 0.25 * (second(v + w) - second(v - w))

    def bilinear(v: Vector, w: Vector) -> Vector:
        real = both(v.real, w.real) - both(v.imag, w.imag)
        return real + 1j * (both(v.real, w.imag) + both(v.imag, w.real))

    with np.errstate(all="ignore"):
        q = q + np.zeros((2, len(_SHARES), 1))
        # C(q, q, conj q) from third derivatives along real directions: |q|^2 q in polar form
        r, i = q.real, q.imag
        rrr, iii = third(r), third(i)
        plus, minus = third(r + i), third(r - i)
        rri, rii = (plus - minus - 2 * iii) / 6, (plus + minus - 2 * rrr) / 6
        cubic = rrr + rii + 1j * (rri + iii)
        inner = bilinear(q, q.conj()).real @ np.linalg.inv(jac).T
        double = bilinear(q, q) @ np.linalg.inv(2j * omega * eye - jac).T
        terms = np.stack([cubic, -2 * bilinear(q, inner + 0j), bilinear(q.conj(), double)]) @ p.conj() / (2 * omega)
        found, size = terms.sum(axis=0).real, np.abs(terms).sum(axis=0).max(axis=0)
        apart = np.abs(np.diff(found[1], append=np.nan))
        doubt = np.maximum(np.abs(found[1] - found[0]), apart) / np.where(size > 0, size, 1.0)
    doubt = np.where(np.isfinite(doubt), doubt, np.inf)
    best = int(doubt.argmin())
    return float(found[1, best]) if doubt[best] <= _DOUBT else math.nan


def _null(matrix: Vector) -> Vector:
    """The unit vector that a singular matrix takes to zero."""
    return np.asarray(np.linalg.svd(matrix)[2][-1].conj())
