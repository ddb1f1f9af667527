"""First order in K = W_r - I, and the stability boundary of one neuron."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support import VARIANTS, Library, numpy_tree, small_circuit

import organics_core as oc


def test_first_order_leaves_a_second_order_error(xp64: Library) -> None:
    """Half the K, a quarter of the distance to Newton's fixed point, for a batch of drives."""
    case = small_circuit(4, identity=True)
    rng = np.random.default_rng(0)
    k = rng.standard_normal((4, 4)) / 4
    z = xp64.array(rng.standard_normal((3, 4)))
    errors = []
    for epsilon in (1e-2, 5e-3, 2.5e-3):
        circuit = xp64.tree(case.circuit._replace(w_r=np.eye(4) + epsilon * k))
        estimate = numpy_tree(oc.first_order_correction(circuit, z).state)
        exact = numpy_tree(oc.steady_state(circuit, z, method="newton").state)
        errors.append([np.max(np.abs(p - q)) for p, q in zip(estimate, exact, strict=True)])
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders, 2.0, atol=0.1)


def test_first_order_is_the_derivative(xp: Library) -> None:
    """The correction is linear in K and vanishes for W_r = I, given as None or as a matrix."""
    case = small_circuit(3, identity=True)
    z = xp.array(case.z)
    k = np.random.default_rng(1).standard_normal((3, 3))
    parts = {}
    for scale in (0.0, 1.0, 2.0):
        circuit = xp.tree(case.circuit._replace(w_r=np.eye(3) + scale * k))
        parts[scale] = oc.first_order_correction(circuit, z)
    for once, twice, none in zip(*(parts[s].correction for s in (1.0, 2.0, 0.0)), strict=True):
        xp.assert_close(twice, 2 * numpy_tree(once), rtol=1e-10, atol=1e-12)
        xp.assert_close(none, np.zeros(3), atol=1e-12)
    alone = oc.first_order_correction(xp.tree(case.circuit), z)
    xp.assert_close(alone.state.y, numpy_tree(alone.zeroth.y), rtol=1e-14)


def one_neuron(**fields: float) -> oc.Circuit:
    values = {"w_r": 1.0, "w": 1.0, "b": 0.5, "b0": 0.5, "sigma": 0.1, "tau_y": 0.002, "tau_a": 0.002, **fields}
    w_r, w, *others = values.values()
    return oc.Circuit(np.array([[w_r]]), np.array([[w]]), *(np.array([value]) for value in others))


def test_boundary_of_the_linear_circuit(xp64: Library) -> None:
    """Without normalization (w = 0) the fixed point is stable exactly where w_r (1 - b0 sigma) < 1."""
    w_r, sigma = np.linspace(0.5, 3.0, 9), np.linspace(0.1, 1.8, 8)
    found = oc.stability_boundary(
        xp64.tree(one_neuron(w=0.0)), xp64.array([1.0]), ("w_r", "sigma"), (xp64.array(w_r), xp64.array(sigma))
    )
    points = numpy_tree((found.points,))[0]
    assert len(points) > 8
    np.testing.assert_allclose(points[:, 0] * (1 - 0.5 * points[:, 1]), 1.0, rtol=1e-9)
    stable = numpy_tree((found.abscissa,))[0] < 0
    assert np.array_equal(stable, w_r[:, None] * (1 - 0.5 * sigma) < 1)
    # a connected line: every inner point ends two segments
    ends = numpy_tree((found.segments,))[0].reshape(-1, 2)
    counts = [np.sum(np.all(np.abs(ends - p) < 1e-9, axis=1)) for p in points]
    assert sorted(counts)[:2] == [1, 1]
    assert set(counts) == {1, 2}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("parameters", "values"),
    [
        (("w_r", "z"), (np.linspace(-6.0, 6.0, 13), np.linspace(-2.0, 2.0, 9))),
        (("tau_a", "w_r"), (np.geomspace(1e-4, 1e-1, 9), np.linspace(-4.0, 4.0, 9))),
        (("b", "w"), (np.geomspace(0.05, 3.0, 7), np.geomspace(0.05, 20.0, 7))),
    ],
)
def test_boundary_separates_stable_from_unstable(
    variant: str, parameters: tuple[str, str], values: tuple[np.ndarray, np.ndarray]
) -> None:
    """The table agrees with fixed_points, and just beside every boundary point the circuit changes."""
    base, drive = one_neuron(w_r=-2.0), 1.0

    def stable(p: float, q: float) -> bool:
        at = {parameters[0]: float(p), parameters[1]: float(q)}
        z = np.array([at.pop("z", drive)])
        circuit = one_neuron(**{"w_r": -2.0, **at})
        return any(point.stable for point in oc.fixed_points(circuit, z, variant=variant))

    found = oc.stability_boundary(base, np.array([drive]), parameters, values, variant=variant)
    for i in range(0, len(values[0]), 3):
        for j in range(0, len(values[1]), 3):
            assert (found.abscissa[i, j] < 0) == stable(values[0][i], values[1][j])
            at = {parameters[0]: float(values[0][i]), parameters[1]: float(values[1][j])}
            z = np.array([at.pop("z", drive)])
            points = oc.fixed_points(one_neuron(**{"w_r": -2.0, **at}), z, variant=variant)
            want = min((point.spectral_abscissa for point in points), default=math.inf)
            assert found.abscissa[i, j] == pytest.approx(want, rel=1e-7, abs=1e-6)
    steps = [1e-6 * (value[-1] - value[0]) for value in values]
    for p, q in found.points[::5]:
        around = {stable(p + i * steps[0], q + j * steps[1]) for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1))}
        assert around == {True, False}, (p, q)


@pytest.mark.parametrize("variant", VARIANTS)
def test_table_at_a_kink_and_of_slow_modulators(variant: str) -> None:
    """Without drive a rectified unit has two linearizations, and for w_r = 2 rest repels on one side; beside a fast
    unit the slow eigenvalue keeps its digits."""
    zero, taus = np.array([-1.0, 0.0, 1.0]), np.array([0.001, 0.002])
    for w_r in (0.9, 2.0):
        circuit = one_neuron(w_r=w_r, w=0.0)
        found = oc.stability_boundary(circuit, np.ones(1), ("z", "tau_a"), (zero, taus), variant=variant)
        assert found.abscissa[1, 1] == pytest.approx((-1 + 0.95 * w_r) / 0.002)
        for i, z in enumerate(zero):
            points = oc.fixed_points(circuit, np.array([z]), variant=variant)
            want = min((point.spectral_abscissa for point in points), default=math.inf)
            assert found.abscissa[i, 1] == pytest.approx(want)
    grid = np.array([0.5, 1.0]), np.array([1e-9, 2e-9])
    slow = one_neuron(w_r=0.5, tau_a=1e9)
    found = oc.stability_boundary(slow, np.ones(1), ("z", "tau_y"), grid, variant=variant)
    for i, z in enumerate(grid[0]):
        (point,) = oc.fixed_points(slow._replace(tau_y=np.array([1e-9])), np.array([z]), variant=variant)
        assert found.abscissa[i, 0] == pytest.approx(point.spectral_abscissa, rel=1e-9)


def test_boundary_of_strong_negative_recurrence_exists() -> None:
    """The circuit of the paper's phase portraits with w_r < 0 is not stable everywhere: there is a boundary."""
    grid = (np.linspace(-8.0, 0.0, 17), np.linspace(0.1, 5.0, 15))
    found = oc.stability_boundary(one_neuron(), np.array([1.0]), ("w_r", "z"), grid)
    assert len(found.segments) > 5
    assert np.any(found.abscissa < 0)
    assert np.any(found.abscissa >= 0)


def test_principal_fixed_point_for_strong_recurrence() -> None:
    """For w_r = 2 the point with y z > 0 is stable on the whole grid; b0 = sigma = 1 included."""
    grid = (np.linspace(0.1, 1.0, 5), np.linspace(0.1, 1.0, 5))
    found = oc.stability_boundary(one_neuron(w_r=2.0), np.array([1.0]), ("b0", "sigma"), grid, which="principal")
    assert np.all(found.abscissa < 0)
    assert found.points.shape == (0, 2)


def test_bad_arguments_are_named() -> None:
    circuit, z = one_neuron(), np.array([1.0])
    rising = np.linspace(0.1, 1.0, 3)
    for parameters, values, message in (
        (("w_r", "w_r"), (rising, rising), "two different names"),
        (("w_r", "gain"), (rising, rising), "unknown parameters 'gain'"),
        (("w_r", "b"), (rising, -rising), "values of b must be a rising array"),
        (("w_r", "b"), (rising, rising - 1.0), "values of b must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            oc.stability_boundary(circuit, z, parameters, values)
    with pytest.raises(ValueError, match="one neuron without batch axes"):
        oc.stability_boundary(small_circuit(2).circuit, np.ones(2), ("w_r", "b"), (rising, rising))
    assert math.isfinite(oc.fixed_points(circuit, z)[0].spectral_abscissa)
