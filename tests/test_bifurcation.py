"""Branches of fixed points with their folds and Hopf points, and limit cycles."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from support import FitzHughNagumo, Library, Membrane, largest, numpy_tree, small_circuit

import organics_core as oc
from organics_core.analysis.bifurcation import _Curve, _Node
from organics_core.analysis.host import on_host
from organics_core.backend import to_numpy

OSCILLATION = {"mu": oc.Parameter("> 0")}
DECAY = {"tau": oc.Parameter("> 0")}
ROTATION = {"s": oc.Parameter(), "omega": oc.Parameter("> 0")}


class VanDerPol(NamedTuple):
    mu: Any
    spec = OSCILLATION
    state = Membrane

    def field(self, xp: Any, t: Any, x: Membrane, z: Any) -> Membrane:
        return Membrane(x.w + 0.0 * z, self.mu * (1.0 - x.v**2) * x.w - x.v)


class NormalForm(NamedTuple):
    """r' = z r + s r^3, at the angular velocity omega."""

    s: Any
    omega: Any
    spec = ROTATION
    state = Membrane

    def field(self, xp: Any, t: Any, x: Membrane, z: Any) -> Membrane:
        rate = z + self.s * (x.v**2 + x.w**2)
        return Membrane(rate * x.v - self.omega * x.w, self.omega * x.v + rate * x.w)


def neuron(w_r: float = 2.0, sigma: float = 0.1) -> oc.Circuit:
    return oc.Circuit(np.array([[w_r]]), np.array([[1.0]]), 0.5, 0.5, sigma, 0.002, 0.002)


OSCILLATOR = oc.Circuit(
    np.array([[2.1, 2.0], [-2.2, 0.2]]), np.array([[0.3, 0.5], [0.6, 0.1]]), 0.5, 0.5, 0.2, 0.002, 0.002
)
"""Settles for weak recurrence, and oscillates from about 0.97 of it on."""
DRIVE = np.array([0.7, -0.4])


def test_fold_of_one_neuron(xp64: Library) -> None:
    """Where three fixed points become one: the maximum of h(s), h = w (b z)^2 being the equation of all of them."""
    from scipy.optimize import minimize_scalar

    def h(s: float) -> float:
        return (s * s - 0.05**2) * (1.0 - 2.0 + 2.0 * s) ** 2 / (s * s)

    exact = math.sqrt(-minimize_scalar(lambda s: -h(s), bounds=(0.05, 0.5), options={"xatol": 1e-10}).fun) / 0.5
    for z, count in ((exact * (1 - 1e-8), 3), (exact * (1 + 1e-8), 1)):
        assert len(oc.fixed_points(neuron(), np.array([z]))) == count
    circuit, z = xp64.tree(neuron()), xp64.array([0.2])
    kinds = []
    for start in oc.fixed_points(circuit, z):
        branch = oc.continue_fixed_points(circuit, z, "z", (0.2, 3.0), state0=start.state)
        assert branch.parameter == "z"
        xp64.assert_kind(branch.values, branch.values.shape)
        xp64.assert_kind(branch.points.y, (*branch.values.shape, 1))
        assert branch.stable.dtype == xp64.namespace.bool
        kinds.append([point.kind for point in branch.special])
        for point in branch.special:
            assert point.value == pytest.approx(exact, rel=1e-12)
            assert abs(point.eigenvalue) < 1e-6  # per second, beside rates of 500
            assert math.isnan(point.frequency)
            assert math.isnan(point.lyapunov)
            before, after = (float(branch.values[point.after + k]) for k in (0, 1))
            assert max(before, after) <= point.value
        np.testing.assert_array_equal(to_numpy(branch.stable), to_numpy(branch.abscissa) < 0)
        # at its ends the branch has the fixed points that are found otherwise
        end = branch.values[-1:]
        found = [numpy_tree(other.state) for other in oc.fixed_points(circuit, end)]
        last = numpy_tree((branch.points.y[-1, :], branch.points.a[-1, :]))
        assert min(largest(tuple(p - q for p, q in zip(last, other, strict=True))) for other in found) < 1e-10
    assert sorted(kinds) == [[], ["fold"], ["fold"]]


@pytest.mark.parametrize("variant", tuple(oc.VARIANTS))
def test_points_are_fixed_points(variant: str) -> None:
    """All points satisfy f = 0, stability is that of the Jacobian, and instability changes at special points only."""
    count = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        w_r = rng.standard_normal((3, 3))
        circuit = oc.Circuit(2.0 * w_r / np.linalg.norm(w_r, 2), rng.random((3, 3)), 0.5, 0.5, 0.1, 0.002, 0.002)
        z = rng.standard_normal(3)
        start = oc.steady_state(circuit, 0.1 * z, variant=variant)
        if not start.converged:
            continue
        branch = oc.continue_fixed_points(circuit, z, "z", (0.1, 2.0), variant=variant)
        count += len(branch.values)
        slope = oc.vector_field(circuit, branch.points, branch.values[:, None] * z, variant=variant)
        assert 0.002 * largest(slope) < 1e-10 * max(1.0, largest(branch.points))
        rates = oc.spectrum(circuit, branch.points, variant=variant).real
        np.testing.assert_allclose(branch.abscissa, rates.max(axis=-1), rtol=1e-6, atol=1e-6)
        changes = set(np.flatnonzero(np.diff((rates >= 0).sum(axis=-1))))
        assert changes <= {point.after for point in branch.special}
        for point in branch.special:
            near = np.abs(oc.spectrum(circuit, point.state, variant=variant).real)
            assert point.kind == "kink" or near.min() < 1e-6 * near.max()
    assert count > 20


@pytest.mark.parametrize("strength", [1e2, 1e3])
def test_a_small_modulator_beside_a_large_one(strength: float) -> None:
    """Without recurrence y = z and a = (b0 sigma)**2 / (1 - z**2): no fixed point from z = 1 on."""
    w_r, floor = np.diag([0.0, 1.0]), 1e-6
    circuit = oc.Circuit(w_r, np.eye(2), 1.0, 1.0, math.sqrt(floor), 0.002, 0.002)
    branch = oc.continue_fixed_points(circuit, np.array([1.0, strength]), "z", (0.1, 2.0), max_points=300)
    values = to_numpy(branch.values)
    assert values.max() < 1.0
    assert branch.special == ()
    assert branch.stable.all()
    assert values.max() > 1.0 - 1e-6
    assert "left the range" not in branch.message
    early = values < 1.0 - 1e-6
    exact = np.stack([floor / (1.0 - values**2), floor + (strength * values) ** 2], axis=-1)
    np.testing.assert_allclose(branch.points.a[early], exact[early], rtol=1e-7)


@pytest.mark.parametrize("name", ["z", "a"])
def test_hopf_points_of_fitzhugh_and_nagumo(name: str) -> None:
    """Where the trace vanishes: v^2 = 1 - b epsilon; frequency and Lyapunov coefficient by hand."""
    a, b, epsilon, tau = 0.7, 0.8, 0.08, 0.001
    model, z = FitzHughNagumo(a, b, epsilon, tau), np.array([0.5])
    exact = []
    for v in (-math.sqrt(1 - b * epsilon), math.sqrt(1 - b * epsilon)):
        if name == "z":
            exact.append((v + a) / b - v + v**3 / 3)
        else:
            exact.append(b * (v - v**3 / 3 + z[0]) - v)
    inside = [value for value in exact if 0 < value < 2]
    branch = oc.continue_fixed_points(model, z, name, (2.0, 1e-3))
    assert [point.kind for point in branch.special] == ["hopf"] * len(inside)
    for point, value in zip(branch.special, sorted(inside, reverse=True), strict=True):
        assert point.value == pytest.approx(value, rel=1e-9)
        omega = math.sqrt(epsilon * (1 - b * b * epsilon)) / tau
        assert point.frequency == pytest.approx(omega / (2 * math.pi), rel=1e-9)
        v = float(point.state.v[0])
        # Kuznetsov's formula with B(p, q) = -2 v p q / tau and C = -2 / tau, both in the first component alone
        jac = np.array([[1 - v * v, -1.0], [epsilon, -epsilon * b]]) / tau
        rates, vectors = np.linalg.eig(jac)
        q = vectors[:, rates.imag.argmax()]
        rates, vectors = np.linalg.eig(jac.T)
        p = vectors[:, rates.imag.argmin()]
        p = p / np.vdot(q, p)
        first = np.array([1.0, 0.0])
        quadratic, cubic = -2 * v / tau, -2 / tau
        inner = np.linalg.solve(jac, first * quadratic * abs(q[0]) ** 2)
        double = np.linalg.solve(2j * omega * np.eye(2) - jac, first * quadratic * q[0] ** 2)
        total = cubic * q[0] * abs(q[0]) ** 2 - 2 * quadratic * q[0] * inner[0] + quadratic * q[0].conj() * double[0]
        assert point.lyapunov == pytest.approx((p[0].conj() * total).real / (2 * omega), rel=1e-5)


@pytest.mark.parametrize("s", [-1.0, 2.0])
def test_normal_form_of_hopf(s: float) -> None:
    """The first Lyapunov coefficient is 2 s / omega where the state is twice the real part of the amplitude."""
    branch = oc.continue_fixed_points(NormalForm(s, 5.0), np.array([1.0]), "z", (-1.0, 1.5))
    (point,) = branch.special
    assert point.kind == "hopf"
    assert point.value == pytest.approx(0.0, abs=1e-9)
    assert point.frequency == pytest.approx(5.0 / (2 * math.pi), rel=1e-9)
    assert point.lyapunov == pytest.approx(2 * s / 5.0, rel=1e-6)


@pytest.mark.parametrize("w", [1e-4, 1e-2, 1.0, 1e2, 1e4])
@pytest.mark.parametrize(("w_r", "tau_y", "z"), [(2.0, 0.008, 1.3), (3.0, 0.032, 2.5), (2.0, 0.008, 0.05)])
def test_lyapunov_coefficient_where_y_and_a_are_of_other_sizes(w_r: float, tau_y: float, z: float, w: float) -> None:
    """y is of the size 1 / sqrt(w) and the modulators are small: Kuznetsov's formula with derivatives by hand."""
    unit, f, tau_a = 1.0 / math.sqrt(w), 0.05, 0.002
    circuit = oc.Circuit(np.array([[w_r]]), np.array([[w]]), 0.5, 0.5, 2 * f, tau_y, tau_a)
    starts = [point for point in oc.fixed_points(circuit, np.array([z * unit])) if point.state.y[0] < 0]
    start = min(starts, key=lambda point: point.state.a[0] if z > 1 else -point.state.a[0])
    branch = oc.continue_fixed_points(circuit, np.array([z * unit]), "z", (z * unit, 2 * z * unit), state0=start.state)
    (point,) = (one for one in branch.special if one.kind == "hopf")
    y, a = float(point.state.y[0]), float(point.state.a[0])
    jac = np.array(
        [
            [(-1 + (1 - math.sqrt(a)) * w_r) / tau_y, -w_r * y / (2 * math.sqrt(a)) / tau_y],
            [2 * w * a * y / tau_a, (-1 + w * y * y) / tau_a],
        ]
    )
    bend, third = np.zeros((2, 2, 2)), np.zeros((2, 2, 2, 2))
    bend[0, 0, 1] = bend[0, 1, 0] = -w_r / (2 * math.sqrt(a)) / tau_y
    bend[0, 1, 1] = w_r * y / 4 * a**-1.5 / tau_y
    bend[1, 0, 0], bend[1, 0, 1], bend[1, 1, 0] = 2 * w * a / tau_a, 2 * w * y / tau_a, 2 * w * y / tau_a
    for at in ((0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0)):
        third[at] = w_r / 4 * a**-1.5 / tau_y
    third[0, 1, 1, 1] = -3 * w_r * y / 8 * a**-2.5 / tau_y
    for at in ((1, 0, 0, 1), (1, 0, 1, 0), (1, 1, 0, 0)):
        third[at] = 2 * w / tau_a
    rates, vectors = np.linalg.eig(jac)
    omega, q = rates.imag.max(), vectors[:, rates.imag.argmax()]
    rates, vectors = np.linalg.eig(jac.T)
    p = vectors[:, rates.imag.argmin()]
    p = p / np.vdot(q, p)

    def both(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.einsum("kij,i,j", bend, u, v)

    total = np.einsum("kijl,i,j,l", third, q, q, q.conj()) - 2 * both(q, np.linalg.solve(jac, both(q, q.conj())))
    total = total + both(q.conj(), np.linalg.solve(2j * omega * np.eye(2) - jac, both(q, q)))
    want = np.vdot(p, total).real / (2 * omega)
    assert want < 0
    assert point.lyapunov == pytest.approx(want, rel=1e-5)


def test_hopf_point_of_a_circuit() -> None:
    """The abscissa passes zero there; and for one neuron, slow beside its modulator, the trace does."""
    branch = oc.continue_fixed_points(OSCILLATOR, DRIVE, "w_r", (0.0, 1.3))
    (point,) = branch.special
    assert point.kind == "hopf"
    assert branch.parameter == "multiple of w_r"
    assert point.lyapunov < 0
    for factor, stable in ((1 - 1e-7, True), (1 + 1e-7, False)):
        at = OSCILLATOR._replace(w_r=factor * point.value * OSCILLATOR.w_r)
        found = oc.steady_state(at, DRIVE, state0=point.state)
        assert bool(oc.spectral_abscissa(at, found.state) < 0) is stable
    rates = oc.spectrum(OSCILLATOR._replace(w_r=point.value * OSCILLATOR.w_r), point.state)
    assert np.abs(rates.imag[np.abs(rates.real).argmin()]) / (2 * math.pi) == pytest.approx(point.frequency, rel=1e-9)
    circuit, z = neuron()._replace(tau_y=0.02), np.array([0.05])
    start = next(point.state for point in oc.fixed_points(circuit, z) if point.stable and point.state.y[0] < 0)
    branch = oc.continue_fixed_points(circuit, z, "z", (0.05, 3.0), state0=start)
    assert [point.kind for point in branch.special] == ["hopf", "hopf", "fold"]
    for point in branch.special[:2]:
        jac = oc.jacobian(circuit, point.state)
        assert abs(np.trace(jac)) < 1e-7 * np.abs(jac).max()
        assert np.linalg.det(jac) > 0


def test_branch_point() -> None:
    """Without input y = 0 loses its stability at w_r (1 - b0 sigma) = 1, where two branches leave it."""
    branch = oc.continue_fixed_points(neuron(), np.array([0.0]), "w_r", (0.5, 2.0))
    (point,) = branch.special
    assert (point.kind, point.value) == ("branch point", pytest.approx(1 / 0.95, rel=1e-10))
    assert branch.message == "left the range at w_r = 2"


def test_where_branches_end() -> None:
    """No fixed point beyond, growth without bound, a kink, too many points: each says so."""
    v1 = oc.V1Circuit(None, np.ones((2, 2)), 0.5, 0.1, 0.1, 0.002, 0.002, 0.002)
    branch = oc.continue_fixed_points(v1, np.array([1.0, 0.5]), "z", (0.1, 10.0))
    pole = math.sqrt((1 - (0.1 / 3) ** 2) / (1.25 / 9))  # where the pool u reaches 1
    assert branch.message.startswith("grows without bound near multiple of z = 2.68")
    assert float(branch.values[-1]) == pytest.approx(pole, rel=1e-3)
    kinked = oc.continue_fixed_points(neuron(sigma=0.2), np.array([1.0]), "z", (-1.0, 1.0), variant="rectified")
    kink = next(point for point in kinked.special if point.kind == "kink")
    assert kink.value == pytest.approx(0.0, abs=1e-6)
    assert largest(kink.state.y) < 1e-6
    short = oc.continue_fixed_points(neuron(), np.array([1.0]), "w_r", (0.5, 2.0), max_points=4)
    assert short.message.startswith("stopped after max_points = 4 points at w_r = ")
    assert len(short.values) == 4
    one_sided = oc.Circuit(
        np.array([[0.0, -3.0], [3.0, 0.0]]), np.eye(2), 0.5, 0.5, 0.1, 0.002, 0.002
    )  # at rest all units of the rectified circuit are at their kink
    rest = oc.continue_fixed_points(one_sided, np.array([1.0, 1.0]), "z", (0.0, 1.0), variant="rectified")
    assert rest.message.startswith(("left the range", "ends, or turns too sharply, at a kink"))


class Logarithm(NamedTuple):
    """tau v' = log(z) - v."""

    tau: Any
    spec = DECAY
    state = Membrane

    def field(self, xp: Any, t: Any, x: Membrane, z: Any) -> Membrane:
        return Membrane((xp.log(z) - x.v) / self.tau, -x.w / self.tau)


def test_slopes_over_decades_of_the_parameter() -> None:
    """The step of the differences goes with the parameter: log z has the slope 1/z near the end of the range too."""
    model = Logarithm(np.asarray(1.0))
    curve = _Curve(lambda p: on_host(model, np.array([p]), "main")[0], 1e-3, 1.0)
    for p in (1e-3, 1.1e-3, 0.01, 0.3, 1.0):
        slope = curve.slope(np.array([math.log(p), 0.0, p]))
        # round-off of eps |log p| / h, h = 1e-3 p
        np.testing.assert_allclose(slope, [[-1.0, 0.0, 1.0 / p], [0.0, -1.0, 0.0]], rtol=1e-8, atol=1e-9)


def test_a_branch_that_cannot_go_on_says_why() -> None:
    """At a corner of the field the Jacobian jumps in the direction of the branch; elsewhere it does not."""
    along, values = np.array([0.6, 0.0, 0.8]), np.zeros(2, dtype=complex)
    form = NormalForm(np.asarray(-1.0), np.asarray(1.0))
    smooth = _Curve(lambda p: on_host(form, np.array([p]), "main")[0], 0.0, 1.0)
    assert smooth.stuck(_Node(np.array([0.5, 0.2, 0.4]), along, values)) == "no next point was found"
    kinked = _Curve(lambda p: on_host(neuron(), np.array([p]), "rectified")[0], 0.0, 1.0)
    corner = _Node(np.array([0.0, 0.05**2, 0.4]), along, values)
    assert kinked.stuck(corner) == "ends, or turns too sharply, at a kink of the field"


class Cubic(NamedTuple):
    """tau v' = z + v - v^3: a branch that folds twice."""

    tau: Any
    spec = DECAY
    state = Membrane

    def field(self, xp: Any, t: Any, x: Membrane, z: Any) -> Membrane:
        return Membrane((z + x.v - x.v**3) / self.tau, -x.w / self.tau)


def test_points_lie_close_where_a_branch_bends() -> None:
    """Neighbouring tangents, in units of the states and of the interval, are at most 0.3 apart, however long a step."""
    curve = _Curve(lambda p: on_host(Cubic(np.asarray(1.0)), np.array([p]), "main")[0], -1.0, 1.0)
    nodes, special, message = curve.follow(curve.start([-1.0, 1.0], None, "z"), [-1.0, 1.0], 1.0, 500, "z")
    assert message.startswith("left the range at z = 1")
    assert [point.kind for point in special] == ["fold", "fold"]
    np.testing.assert_allclose([point.value for point in special], np.array([1, -1]) * 2 / math.sqrt(27), rtol=1e-9)
    turns = [math.acos(min(1.0, a.tangent @ b.tangent)) for a, b in itertools.pairwise(nodes)]
    assert max(turns) < 0.301
    assert max(turns) > 0.1  # and no closer than they need to


class Bent(NamedTuple):
    """tau v' = |z| - v: a corner at z = 0."""

    tau: Any
    spec = DECAY
    state = Membrane

    def field(self, xp: Any, t: Any, x: Membrane, z: Any) -> Membrane:
        return Membrane((abs(z) - x.v) / self.tau, -x.w / self.tau)


@pytest.mark.parametrize("width", [1.0, 1e3])
def test_the_other_side_of_a_corner(width: float) -> None:
    """In units of the interval and of the states, whatever those are: from either side, on in the same direction."""
    curve = _Curve(lambda p: on_host(Bent(np.asarray(1.0)), np.array([p]), "main")[0], -width, width)
    curve.measure(width, 2)
    for side in (-1.0, 1.0):
        p = side * 1e-12 * width
        last = curve.node(np.array([abs(p), 0.0, p]), np.array([0.0, 0.0, -side]))
        assert last.tangent[0] < 0
        found = curve.around(last)
        assert found.u[-1] * side < 0
        assert found.u[0] == pytest.approx(abs(found.u[-1]), rel=1e-6)
        assert found.tangent[0] > 0
        assert found.tangent[-1] * side < 0


def test_what_may_be_varied(xp64: Library) -> None:
    """A number or one entry is set, others are multiplied; a function varies anything; values between are points."""
    case = small_circuit(3)
    circuit, z = xp64.tree(case.circuit._replace(sigma=0.5)), xp64.array(case.z)
    values = np.linspace(0.5, 1.0, 5)
    branch = oc.continue_fixed_points(circuit, z, "z", xp64.array(values))
    assert set(values) <= set(to_numpy(branch.values).tolist())
    same = oc.continue_fixed_points(None, None, lambda value: (circuit, value * z), list(values))
    assert (branch.parameter, same.parameter) == ("multiple of z", "parameter")

    def contrast(value: float) -> Any:
        return circuit, value * z

    assert oc.continue_fixed_points(None, None, contrast, (0.5, 0.6)).parameter == "contrast"
    xp64.assert_close(same.points.y[-1, :], to_numpy(branch.points.y[-1, :]), rtol=1e-10)
    number = oc.continue_fixed_points(circuit, z, "sigma", (0.5, 0.8))
    assert number.parameter == "sigma"
    end = oc.steady_state(circuit._replace(sigma=0.8), z)
    xp64.assert_close(number.points.y[-1, :], to_numpy(end.state.y), rtol=1e-9)
    unit = circuit._replace(w_r=None)
    recurrent = oc.continue_fixed_points(unit, z, "w_r", (1.0, 0.5))
    end = oc.steady_state(unit._replace(w_r=xp64.array(0.5 * np.eye(3))), z)
    xp64.assert_close(recurrent.points.a[-1, :], to_numpy(end.state.a), rtol=1e-9)


def test_a_number_that_was_left_out_is_varied() -> None:
    """k of Wilson and Cowan's populations, by default the largest value of the response function."""
    model = oc.WilsonCowan(np.array([[2.0]]), 1.0, 1.0, 0.01)
    branch = oc.continue_fixed_points(model, np.array([0.5]), "k", (1.0, 0.5))
    assert branch.parameter == "k"
    for value, x in zip(to_numpy(branch.values), to_numpy(branch.points.x)[:, 0], strict=True):
        v = 2.0 * x + 0.5
        response = 1.0 / (1.0 + math.exp(1.0 - v)) - 1.0 / (1.0 + math.e)
        assert abs((value - x) * response - x) < 1e-9


def test_weights_that_are_operators() -> None:
    """They are made dense; multiples of them as well."""
    kernel = np.array([0.4, 0.3, 0.0, 0.0, 0.3])
    ring = np.stack([np.roll(kernel, i) for i in range(5)], axis=1)
    dense = oc.Circuit(0.8 * np.eye(5), ring, 0.5, 0.5, 0.5, 0.002, 0.002)
    z = np.linspace(0.1, 1.0, 5)
    for parameter in ("z", "w"):
        found = [
            oc.continue_fixed_points(circuit, z, parameter, (0.5, 1.0))
            for circuit in (dense, dense._replace(w=oc.ring_convolution(kernel)))
        ]
        np.testing.assert_allclose(found[1].points.y, found[0].points.y, rtol=1e-10)


def test_bad_input_of_a_branch() -> None:
    circuit, z = neuron(), np.array([1.0])
    for arguments, error, message in (
        ((circuit, z, "gain", (0.0, 1.0)), ValueError, "parameter"),
        ((circuit, z, 3, (0.0, 1.0)), TypeError, "parameter must be a name or a function"),
        ((circuit, z, lambda value: value, (0.0, 1.0)), TypeError, r"parameter must return \(model, z\)"),
        ((circuit, z, "z", (1.0, 1.0)), ValueError, "values must be two or more finite numbers, rising or falling"),
        ((circuit, z, "z", (0.0, math.nan)), ValueError, "values must be two or more finite numbers"),
        ((circuit, z, "sigma", (0.1, -1.0)), ValueError, "sigma must be positive"),
        ((circuit, z[None], "z", (0.1, 1.0)), ValueError, r"z must have no batch axes here, got shape \(1, 1\)"),
        ((3, z, "z", (0.1, 1.0)), TypeError, "model"),
    ):
        with pytest.raises(error, match=message):
            oc.continue_fixed_points(*arguments)
    with pytest.raises(ValueError, match="max_step must be positive"):
        oc.continue_fixed_points(circuit, z, "z", (0.0, 1.0), max_step=-1.0)
    # without recurrence the pool of a strong input has no balance: W diag((b z)^2) has a radius above 1
    strong = neuron()._replace(w_r=np.array([[0.0]]))
    with pytest.raises(ValueError, match="no fixed point was found at w_r = 0; give state0 near one"):
        oc.continue_fixed_points(strong, np.array([4.0]), "w_r", (0.0, 1.0))


def period_of(field: Any, start: Any, section: int, span: float) -> tuple[float, Any]:
    """The time between the last two upward crossings of zero, by DOP853; and a state on the cycle."""
    from scipy.integrate import solve_ivp

    def event(t: float, x: Any) -> float:
        return float(x[section])

    event.direction = 1.0  # type: ignore[attr-defined]
    run = solve_ivp(lambda t, x: field(x), (0, span), start, method="DOP853", rtol=1e-11, atol=1e-12, events=event)
    return float(np.diff(run.t_events[0])[-1]), run.y_events[0][-1]


def test_cycle_of_van_der_pol(xp64: Library) -> None:
    """Period, trivial multiplier and Liouville's formula."""
    cycle = oc.limit_cycle(VanDerPol(0.5), xp64.array([0.0]), points=401)
    period, _ = period_of(lambda x: np.array([x[1], 0.5 * (1 - x[0] ** 2) * x[1] - x[0]]), [2.0, 0.0], 0, 80.0)
    assert cycle.converged
    assert cycle.stable is True
    assert cycle.message == f"a stable cycle of period {period:.6g} s"
    assert cycle.period == pytest.approx(period, rel=1e-9)
    xp64.assert_kind(cycle.state.v, (401, 1))
    xp64.assert_close(cycle.state.v[-1, :], to_numpy(cycle.state.v[0, :]), atol=1e-8)
    multipliers = to_numpy(cycle.multipliers)
    assert abs(multipliers[0] - 1.0) < 1e-7
    v = to_numpy(cycle.state.v)[:-1, 0]
    trace = 0.5 * np.mean(1 - v**2) * cycle.period  # the trapezoidal rule converges fast on a period
    assert np.prod(multipliers).real == pytest.approx(math.exp(trace), rel=1e-6)


@pytest.mark.slow
def test_cycle_of_fitzhugh_and_nagumo() -> None:
    """A relaxation oscillation, of a model in milliseconds."""
    model, z = FitzHughNagumo(0.7, 0.8, 0.08, 0.001), np.array([0.5])
    cycle = oc.limit_cycle(model, z, rtol=1e-8)
    period, _ = period_of(
        lambda x: np.array([x[0] - x[0] ** 3 / 3 - x[1] + 0.5, 0.08 * (x[0] + 0.7 - 0.8 * x[1])]), [0.1, 0.0], 0, 200.0
    )
    assert cycle.period == pytest.approx(1e-3 * period, rel=1e-7)
    assert cycle.stable
    assert abs(cycle.multipliers[0] - 1.0) < 1e-6
    assert abs(cycle.multipliers[1]) < 1e-6


@pytest.mark.parametrize("unit", [1e-6, 1e8])
def test_a_cycle_in_other_units(unit: float) -> None:
    """y in other units, W in their inverse square: the same cycle, though one tolerance for y and a would hide one."""
    plain = oc.limit_cycle(OSCILLATOR, DRIVE, rtol=1e-6, points=51)
    other = oc.limit_cycle(OSCILLATOR._replace(w=OSCILLATOR.w / unit**2), unit * DRIVE, rtol=1e-6, points=51)
    assert other.stable is True
    assert other.period == pytest.approx(plain.period, rel=1e-5)
    np.testing.assert_allclose(other.multipliers, plain.multipliers, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.ptp(other.state.y, axis=0), unit * np.ptp(plain.state.y, axis=0), rtol=1e-2)
    np.testing.assert_allclose(np.ptp(other.state.a, axis=0), np.ptp(plain.state.a, axis=0), rtol=1e-2)
    x, again = (oc.State(other.state.y[0], other.state.a[0]), other.period)
    near = oc.limit_cycle(
        OSCILLATOR._replace(w=OSCILLATOR.w / unit**2), unit * DRIVE, state0=x, period=again, rtol=1e-6, points=51
    )
    assert near.period == pytest.approx(plain.period, rel=1e-5)


def test_cycle_of_a_circuit() -> None:
    """An oscillating circuit: period by DOP853, multipliers by differences of its flow, Liouville's formula."""
    from scipy.integrate import solve_ivp

    cycle = oc.limit_cycle(OSCILLATOR, DRIVE)

    def field(x: Any) -> Any:
        return np.concatenate(oc.vector_field(OSCILLATOR, oc.State(x[:2], x[2:]), DRIVE))

    start = np.array([float(part[0, i]) for part in cycle.state for i in range(2)])
    period, _ = period_of(field, start, 1, 4 * cycle.period)
    assert cycle.stable
    assert cycle.period == pytest.approx(period, rel=1e-7)

    def flow(x: Any) -> Any:
        return solve_ivp(lambda t, s: field(s), (0, period), x, method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]

    columns = [(flow(start + h) - flow(start - h)) / 2e-5 for h in 1e-5 * np.eye(4)]
    wanted = np.linalg.eigvals(np.stack(columns, axis=1))
    np.testing.assert_allclose(np.sort(np.abs(cycle.multipliers)), np.sort(np.abs(wanted)), rtol=1e-4, atol=1e-6)
    trace = np.trace(oc.jacobian(OSCILLATOR, cycle.state), axis1=1, axis2=2)[:-1].mean() * cycle.period
    assert np.prod(cycle.multipliers).real == pytest.approx(math.exp(trace), rel=1e-5)


def test_a_cycle_that_repels() -> None:
    """r' = -r + r^3: the unit circle, multiplier exp(2 T)."""
    start = Membrane(np.array([1.02]), np.array([0.1]))
    cycle = oc.limit_cycle(NormalForm(1.0, 5.0), np.array([-1.0]), state0=start, period=1.2)
    assert cycle.stable is False
    assert cycle.period == pytest.approx(2 * math.pi / 5, rel=1e-8)
    np.testing.assert_allclose(cycle.multipliers, [math.exp(4 * math.pi / 5), 1.0], rtol=1e-6)
    np.testing.assert_allclose(np.hypot(*cycle.state), 1.0, rtol=1e-7)
    assert cycle.message.startswith("an unstable cycle of period 1.2566")


def test_several_rounds_are_one_cycle() -> None:
    start = Membrane(np.array([1.0]), np.array([0.05]))
    cycle = oc.limit_cycle(NormalForm(-1.0, 5.0), np.array([1.0]), state0=start, period=3 * 2 * math.pi / 5 + 0.01)
    assert cycle.period == pytest.approx(2 * math.pi / 5, rel=1e-8)


def test_no_cycle_is_a_result() -> None:
    """Settling, divergence and Newton's failures are told, in NaN and a message."""
    settled = oc.limit_cycle(OSCILLATOR._replace(w_r=0.5 * OSCILLATOR.w_r), DRIVE)
    assert settled.message == "none found: the trajectory settles at a stable fixed point"
    assert math.isnan(settled.period)
    assert not settled.converged
    assert settled.stable is None
    assert np.isnan(settled.state.y).all()
    assert settled.state.y.shape == (201, 2)
    assert np.isnan(settled.multipliers).all()
    diverged = oc.limit_cycle(NormalForm(1.0, 5.0), np.array([1.0]))
    assert "diverges" in diverged.message
    linear = oc.limit_cycle(NormalForm(0.0, 5.0), np.array([0.5]))
    assert linear.message == "none found: the trajectory diverges"
    start = Membrane(np.array([0.0]), np.array([0.0]))
    nothing = oc.limit_cycle(NormalForm(-1.0, 5.0), np.array([1.0]), state0=start, period=1.0)
    assert nothing.message == "Newton's method starts at a fixed point, not on a cycle"
    slow = oc.limit_cycle(NormalForm(-1.0, 5.0), np.array([-1e-3]), duration=10.0)
    assert slow.message.startswith("none found: not converged, still moving after 10 s")


def test_a_slow_approach_is_told_before_it_is_over() -> None:
    """Five time constants from a twentieth off: 0.03 % are left, less than half of what was before."""
    start = Membrane(np.array([1.05 * math.log(3.0)]), np.array([0.0]))
    found = oc.limit_cycle(Logarithm(np.asarray(5.0)), np.array([3.0]), state0=start, duration=25.0)
    assert not found.converged
    assert found.message == "none found: the trajectory settles at a stable fixed point"
    short = oc.limit_cycle(Logarithm(np.asarray(5.0)), np.array([3.0]), state0=start, duration=1.0)
    assert short.message.startswith("none found: not converged, still moving after 1 s")


def test_bad_input_of_a_cycle() -> None:
    for options, error, message in (
        ({"period": 0.1}, ValueError, "state0 must be given with period"),
        ({"duration": -1.0}, ValueError, "duration must be positive"),
        ({"rtol": 0.1}, ValueError, "rtol must lie between 1e-12 and 1e-3, got 0.1"),
        ({"variant": "best"}, ValueError, "variant"),
        ({"points": 1}, ValueError, "points must be at least 2, got 1"),
    ):
        with pytest.raises(error, match=message):
            oc.limit_cycle(OSCILLATOR, DRIVE, **options)
