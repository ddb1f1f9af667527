"""Where a stable fixed point exists, for one neuron and for many, and the search for more than one."""

from __future__ import annotations

import numpy as np
import pytest
from support import VARIANTS, Library, largest, numpy_tree, small_circuit

import organics_core as oc


def random_neuron(rng: np.random.Generator, low: float, high: float, drive: float) -> tuple[oc.Circuit, np.ndarray]:
    """One neuron with w_r in (low, high), a drive around ``drive`` and every parameter over two decades."""

    def positive(center: float) -> np.ndarray:
        return center * 10.0 ** rng.uniform(-1.5, 0.5, 1)

    w_r = np.array([[rng.uniform(low, high)]])
    numbers = (positive(c) for c in (0.5, 0.5, 0.3, 0.005, 0.005))
    return oc.Circuit(w_r, positive(1.0)[None], *numbers), positive(drive) * rng.choice([-1.0, 1.0])


def census(
    low: float, high: float, drive: float = 1.0, count: int = 400
) -> list[tuple[tuple[oc.FixedPoint, ...], float]]:
    rng = np.random.default_rng(17)
    cases = [random_neuron(rng, low, high, drive) for _ in range(count)]
    return [(oc.fixed_points(circuit, z), float(z[0])) for circuit, z in cases]


def test_weak_recurrence_has_one_stable_fixed_point() -> None:
    """One neuron, 0 < w_r <= 1: one fixed point, and it is stable, in 400 of 400 random circuits."""
    assert all(len(points) == 1 and points[0].stable for points, _ in census(0.0, 1.0))


def test_strong_recurrence_has_one_or_three() -> None:
    """One neuron, w_r > 1: one fixed point or three, one of them with y z > 0, and that one stable."""
    counts = set()
    for points, z in census(1.0, 5.0):
        counts.add(len(points))
        aligned = [point for point in points if float(point.state.y[0]) * z > 0]
        assert len(aligned) == 1
        assert aligned[0].stable
    assert counts == {1, 3}


def test_tiny_input_and_slow_principal_neurons_change_nothing() -> None:
    """For w_r > 0 a point with y z > 0 is always stable: its trace is negative and its determinant positive.

    Both follow from 1 - w_r + w_r s = b z / y > 0 and 1 - w y**2 = (b0 sigma)**2 / a > 0. Where the input is tiny
    two fixed points almost coincide, and a solver that loses digits there calls some of them unstable.
    """
    rng = np.random.default_rng(3)
    for _ in range(300):
        sigma, drive, tau_y, tau_a = 10.0 ** rng.uniform((-3, -9, 0, -5), (0, -4, 2, -1))
        circuit = oc.Circuit(
            np.array([[rng.uniform(0.0, 5.0)]]), 10.0 ** rng.uniform(-2, 1, (1, 1)), *(1.0, 1.0), *(sigma, tau_y, tau_a)
        )
        points = oc.fixed_points(circuit, np.array([drive]))
        (aligned,) = (point for point in points if float(point.state.y[0]) > 0)
        assert aligned.stable
        for point in points:
            y, a = float(point.state.y[0]), float(point.state.a[0])
            assert a * (1 - float(circuit.w[0, 0]) * y * y) == pytest.approx(sigma**2, abs=1e-14 * a)


@pytest.mark.parametrize("z", [1e-150, 1e-160, 1e-163, 1e-200, 1e-300])
@pytest.mark.parametrize("w_r", [2.0, 0.5, -1.0])
def test_drive_whose_square_is_no_number(w_r: float, z: float) -> None:
    """The point near rest is that of the linear equation, y (1 - w_r + w_r s) = b z; the others those without drive."""
    circuit = oc.Circuit(np.array([[w_r]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002)
    near, *others = oc.fixed_points(circuit, np.array([z]))
    assert near.state.y[0] == pytest.approx(0.5 * z / (1 - w_r + 0.05 * w_r), rel=1e-14, abs=0.0)
    assert near.state.a[0] == pytest.approx(0.05**2)
    at_rest = oc.fixed_points(circuit, np.zeros(1))[1:]
    for one, other in zip(others, at_rest, strict=True):
        assert one.state.y[0] == pytest.approx(other.state.y[0])
        assert one.stable == other.stable


def test_negative_recurrence_often_has_no_stable_fixed_point() -> None:
    """One neuron, w_r < 0: some random circuits have no stable fixed point, and the others have one."""
    stable = [sum(point.stable for point in points) for points, _ in census(-5.0, 0.0, drive=30.0)]
    assert set(stable) == {0, 1}
    assert 0.02 < np.mean(np.array(stable) == 0) < 0.9


def random_circuits(
    count: int, n: int, rng: np.random.Generator, *, gain: float = 1.0, kind: str = "gaussian", drive: float = 1.0
) -> tuple[oc.Circuit, np.ndarray]:
    """A batch with largest singular value ``gain`` of W_r and modulators below one for drives of norm one."""
    a = rng.standard_normal((count, n, n))
    if kind == "orthogonal":
        a = np.linalg.qr(a)[0]
    elif kind == "negative":
        a = -a @ np.swapaxes(a, -1, -2)
    a = gain * a / np.linalg.norm(a, 2, axis=(-2, -1))[:, None, None]

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (count, n))

    z = rng.standard_normal((count, n))
    z = drive * z / np.linalg.norm(z, axis=-1, keepdims=True)
    numbers = (uniform(0.1, 0.7), uniform(0.1, 0.7), uniform(0.1, 1.0), uniform(1e-3, 1e-2), uniform(1e-3, 1e-2))
    return oc.Circuit(a, rng.random((count, n, n)), *numbers), z


SIZES = (2, 4, 6, 10, 20, 40)


def test_norm_one_recurrence_is_stable() -> None:
    """900 of 900 random circuits with ||W_r|| = 1 and order-one parameters: converged, stable, few iterations."""
    rng = np.random.default_rng(0)
    iterations = []
    for n in SIZES:
        circuit, z = random_circuits(150, n, rng)
        found = oc.steady_state(circuit, z, method="newton")
        assert found.converged.all()
        assert np.all(oc.spectral_abscissa(circuit, found.state) < 0)
        iterations += list(found.iterations)
    assert len(iterations) == 900
    assert np.median(iterations) <= 5
    assert np.mean(np.array(iterations) < 8) > 0.95  # all but 13: the last digit decides about some


def test_gain_above_one_loses_stability() -> None:
    """Unstable fixed points appear at gain 2 and are common at gain 4."""
    shares = []
    for gain in (2.0, 4.0):
        rng, unstable = np.random.default_rng(1), []
        for n in SIZES[:4]:
            circuit, z = random_circuits(100, n, rng, gain=gain)
            found = oc.steady_state(circuit, z, method="newton", max_iterations=100)
            stable = found.converged & (oc.spectral_abscissa(circuit, found.state) < 0)
            unstable.append(~stable)
        shares.append(np.mean(unstable))
    assert 0.0 < shares[0] < 0.25
    assert shares[0] + 0.1 < shares[1] < 0.8


@pytest.mark.parametrize("kind", ["orthogonal", "negative"])
def test_strong_drive_breaks_norm_one_recurrence(kind: str) -> None:
    """With ||W_r|| = 1 but sqrt(a) > 1, most orthogonal and negative definite circuits are unstable."""
    circuit, z = random_circuits(100, 5, np.random.default_rng(2), kind=kind, drive=10.0)
    found = oc.steady_state(circuit, z, method="newton", max_iterations=200)
    abscissa = oc.spectral_abscissa(circuit, found.state)[found.converged]
    assert len(abscissa) > 80
    assert np.mean(abscissa > 0) > 0.4


def test_order_one_alone_does_not_suffice() -> None:
    """A circuit with ||W_r|| = 1 and no parameter above one: Newton's point repels, another one attracts."""
    w_r = np.array([[-0.5875808, 0.78967044], [-0.21110729, 0.06102597]])
    circuit = oc.Circuit(
        w_r / np.linalg.norm(w_r, 2),
        np.array([[0.96945827, 0.25151993], [0.40617707, 0.66531879]]),
        np.array([0.95856826, 0.32252955]),
        1.0,
        np.array([0.22015271, 0.40224463]),
        np.array([0.00198252, 0.00101708]),
        np.array([0.0018051, 0.00135689]),
    )
    z = np.array([-0.96691553, -0.25509676])
    first = oc.steady_state(circuit, z, attracting=False)
    assert first.converged
    assert first.state.a[0] > 1
    assert oc.spectral_abscissa(circuit, first.state) > 100.0
    found = oc.steady_state(circuit, z)
    assert found.stable
    assert oc.spectral_abscissa(circuit, found.state) < 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_search_finds_all_three_of_one_neuron(xp: Library, variant: str) -> None:
    """For n = 1 the search finds what fixed_points proves to be everything."""
    circuit = oc.Circuit(xp.array([[4.0]]), xp.array([[1.0]]), 0.5, 0.5, 0.1, 0.002, 0.002)
    z = xp.array([0.3])
    every = oc.fixed_points(circuit, z, variant=variant)
    found = oc.find_fixed_points(circuit, z, variant=variant, starts=64)
    assert len(found) == len(every)
    for one, other in zip(found, every, strict=True):
        xp.assert_close(one.state.y, numpy_tree(other.state.y), rtol=1e-9)
        xp.assert_close(one.state.a, numpy_tree(other.state.a), rtol=1e-9)
        assert one.stable == other.stable


def test_search_in_uncoupled_neurons(xp64: Library) -> None:
    """Two neurons that do not touch, three fixed points each: nine together, as products."""
    w = xp64.array(np.eye(2))
    circuit = oc.Circuit(xp64.array(4.0 * np.eye(2)), w, 0.5, 0.5, 0.1, 0.002, 0.002)
    single = oc.Circuit(xp64.array([[4.0]]), xp64.array([[1.0]]), 0.5, 0.5, 0.1, 0.002, 0.002)
    one = [float(point.state.y[0]) for point in oc.fixed_points(single, xp64.array([0.3]))]
    found = oc.find_fixed_points(circuit, xp64.array([0.3, 0.3]), starts=400, seed=1)
    stable = sum(point.stable for point in oc.fixed_points(single, xp64.array([0.3])))
    pairs = {tuple(np.round(numpy_tree(point.state.y), 9)) for point in found}
    assert pairs == {tuple(np.round(np.array([p, q]), 9)) for p in one for q in one}
    assert len(one) == 3
    assert sum(point.stable for point in found) == stable**2


def test_found_points_are_fixed_points(xp64: Library) -> None:
    """Each zeroes the field, they are distinct, and the unique one of a certified circuit is found alone."""
    case = small_circuit(4, scale=4.0)
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    found = oc.find_fixed_points(circuit, z, starts=48)
    assert len(found) >= 1
    for point in found:
        slope = numpy_tree(oc.vector_field(circuit, point.state, z))
        assert largest(slope) * 0.001 < 1e-9 * (1 + largest(numpy_tree(point.state)))
    identity = small_circuit(4, identity=True)
    (only,) = oc.find_fixed_points(xp64.tree(identity.circuit), xp64.array(identity.z), starts=16)
    xp64.assert_close(only.state.y, oc.steady_state(identity.circuit, identity.z).state.y, rtol=1e-9)


def test_batches_are_refused() -> None:
    case = small_circuit(2)
    with pytest.raises(ValueError, match="no batch axes"):
        oc.find_fixed_points(case.circuit, np.ones((3, 2)))
    with pytest.raises(ValueError, match="starts must be at least 1"):
        oc.find_fixed_points(case.circuit, case.z, starts=0)


@pytest.mark.library("numpy", "torch", "jax")
@pytest.mark.parametrize("w_12", [0.0, 1e-3])
def test_one_point_does_not_pass_for_several_by_its_rounding(xp: Library, w_12: float) -> None:
    """sqrt(a) = 1e-5 beside one: in float32 the circuit's y has two digits, and used to be found five times."""
    w_r = np.eye(4)
    w_r[0, 1] = w_12
    w = np.array(
        [[0.25, 0.39, 0.52, 0.41], [0.33, 0.55, 0.07, 0.09], [0.03, 0.33, 0.38, 0.18], [0.63, 0.03, 0.32, 0.53]]
    )
    circuit = xp.tree(oc.Circuit(w_r, 1e4 * w, 0.5, 0.5, np.array([9e-5, 5e-5, 3e-5, 4e-5]), 0.002, 0.002))
    found = oc.find_fixed_points(circuit, xp.array(np.array([-1.75e-12, -2.4e-12, 1e-12, 1.2e-12])))
    assert len(found) == 1
    assert found[0].stable
    assert found.complete == (w_12 == 0.0)
