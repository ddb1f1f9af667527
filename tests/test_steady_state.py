"""Fixed points: they are ones, the three methods agree, and failure is reported."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from support import VARIANTS, Case, Library, for_cases, numpy_tree, small_circuit, to_numpy

import organics_core as oc


def residual(case: Case, state: oc.State, variant: str = "main") -> np.ndarray:
    """Largest imbalance of the two equations, each relative to its largest term; from numpy's vector field."""
    circuit = case.circuit
    slope = oc.vector_field(circuit, state, case.z, variant=variant)
    drive = np.abs(circuit.b * case.z)
    scale_y = np.max(np.abs(state.y), axis=-1) + np.max(drive, axis=-1)
    relative_y = np.max(np.abs(circuit.tau_y * slope.y), axis=-1) / np.where(scale_y == 0, 1.0, scale_y)
    relative_a = np.max(np.abs(circuit.tau_a * slope.a) / (np.abs(state.a) + (circuit.b0 * circuit.sigma) ** 2), -1)
    return np.maximum(relative_y, relative_a)


def assert_told(converged: np.ndarray, actual: np.ndarray) -> None:
    """The tolerance of 1e-12 divides the two kinds, but for what the two measures of a residual differ by."""
    assert (actual[converged] <= 2e-12).all()
    assert (actual[~converged] > 0.5e-12).all()


@pytest.mark.parametrize("variant", VARIANTS)
@for_cases(decades=3.0)
def test_what_is_called_converged_zeroes_the_vector_field(xp64: Library, case: Case, variant: str) -> None:
    """Any circuit: ``converged`` says whether the two equations balance, and ``residual`` by how much."""
    solve = xp64.compiled(oc.steady_state, variant=variant, max_iterations=40)
    found = solve(xp64.tree(case.circuit), xp64.array(case.z))
    converged, claimed = numpy_tree((found.converged, found.residual))
    actual = residual(case, oc.State(*numpy_tree(found.state)), variant)
    np.testing.assert_allclose(claimed, actual, rtol=0.5, atol=1e-13)
    assert_told(converged.astype(bool), actual)


@pytest.mark.parametrize("method", ["newton", "iteration"])
@for_cases(norm=1.0, unit_input=True, sizes=(2, 5, 12))
def test_norm_one_recurrence_converges_to_a_stable_point(xp64: Library, case: Case, method: str) -> None:
    """SPEC 3 and 6: with a largest singular value of 1 and inputs of order one, both methods always arrive."""
    found = xp64.compiled(oc.steady_state, method=method)(xp64.tree(case.circuit), xp64.array(case.z))
    assert numpy_tree(found.converged).all()
    assert np.max(residual(case, oc.State(*numpy_tree(found.state)))) < 2e-12
    assert np.max(numpy_tree(found.iterations)) < (40 if method == "newton" else 400)
    assert np.all(oc.spectral_abscissa(case.circuit, oc.State(*numpy_tree(found.state))) < 0)


def test_the_abscissa_is_found_where_it_is_asked_for() -> None:
    """It costs a decomposition."""
    circuit, z, _ = small_circuit(3)
    assert np.isnan(oc.steady_state(circuit, z).abscissa)
    found = oc.steady_state(circuit, z, abscissa=True)
    values = np.linalg.eigvals(oc.jacobian(circuit, found.state))
    np.testing.assert_allclose(found.abscissa, values.real.max(), rtol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
@for_cases(decades=3.0, identity=True)
def test_closed_form_newton_and_iteration_agree(xp64: Library, case: Case, variant: str) -> None:
    """W_r = I, started far from the solution: one fixed point, by any method, and the normalization equation."""
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    closed = xp64.compiled(oc.steady_state, method="closed_form", variant=variant)(circuit, z)
    assert numpy_tree(closed.converged).all()
    want = numpy_tree(closed.state)
    far = xp64.tree(oc.State(0.3 * want[0] + 0.1, 3.0 * want[1] + 1.0))
    for method in ("newton", "iteration"):
        found = xp64.compiled(oc.steady_state, method=method, variant=variant)(circuit, z, state0=far)
        assert numpy_tree(found.converged).all()
        assert np.min(numpy_tree(found.iterations)) > 0
        xp64.assert_close(found.state.y, want[0], rtol=1e-9, atol=1e-9 * np.max(np.abs(want[0])))
        xp64.assert_close(found.state.a, want[1], rtol=1e-9)
    if variant == "main":
        drive = case.circuit.b * case.z
        pool = (case.circuit.b0 * case.circuit.sigma) ** 2 + np.einsum("...ij,...j->...i", case.circuit.w, drive**2)
        xp64.assert_close(closed.state.y**2, np.broadcast_to(drive**2 / pool, want[0].shape), rtol=1e-10)
        xp64.assert_close(closed.state.a, np.broadcast_to(pool, want[1].shape), rtol=1e-10)


def test_a_simulation_ends_at_the_fixed_point(xp64: Library) -> None:
    """Newton's fixed point of a circuit with random recurrence is where its dynamics lead."""
    case = small_circuit(4, seed=2)
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    found = oc.steady_state(circuit, z)
    run = oc.simulate(circuit, z, xp64.array([0.0, 0.2]), rtol=1e-9, atol=1e-12)
    xp64.assert_close(run.state.y[-1, ...], numpy_tree(found.state.y), rtol=1e-7, atol=1e-8)
    xp64.assert_close(run.state.a[-1, ...], numpy_tree(found.state.a), rtol=1e-7, atol=1e-8)


def test_single_precision(xp: Library) -> None:
    """float32 converges by its own tolerance, to the double-precision result."""
    case = small_circuit(5, seed=3)
    found = oc.steady_state(xp.tree(case.circuit), xp.array(case.z))
    assert bool(found.converged)
    want = oc.steady_state(case.circuit, case.z)
    xp.assert_close(found.state.y, want.state.y, rtol=1e-9, atol=1e-9)
    xp.assert_close(found.state.a, want.state.a, rtol=1e-9)


def test_no_input_gives_the_resting_state(xp64: Library) -> None:
    """z = 0, where the relative residual has nothing to be relative to."""
    case = small_circuit(3)
    circuit, zero = xp64.tree(case.circuit), xp64.array(np.zeros(3))
    for method in ("newton", "iteration"):
        found = oc.steady_state(circuit, zero, method=method)
        assert bool(found.converged)
        xp64.assert_close(found.state.y, np.zeros(3), atol=1e-12)
        xp64.assert_close(found.state.a, (case.circuit.b0 * case.circuit.sigma) ** 2)


def strong(n: int, gain: float, seed: int) -> Case:
    """A circuit whose recurrence has the largest singular value ``gain``."""
    rng = np.random.default_rng(seed)
    w_r = rng.standard_normal((n, n))
    case = small_circuit(n, seed=seed)
    return case._replace(circuit=case.circuit._replace(w_r=gain * w_r / np.linalg.norm(w_r, 2)))


@pytest.mark.library("numpy", "torch", "jax")
@pytest.mark.parametrize("method", ["newton", "iteration"])
def test_failure_to_converge_is_reported(xp64: Library, method: str) -> None:
    """Strong recurrence: some of a batch fail, each for itself, with finite states and honest residuals."""
    cases = [strong(6, 4.0, seed) for seed in range(12)]
    circuit = oc.Circuit(*(np.stack(parts) for parts in zip(*(case.circuit for case in cases), strict=True)))
    batch = Case(circuit, np.stack([case.z for case in cases]), cases[0].state)
    found = oc.steady_state(xp64.tree(circuit), xp64.array(batch.z), method=method, max_iterations=60)
    converged = numpy_tree(found.converged).astype(bool)
    if method == "iteration":  # Newton's method may well solve them all
        assert converged.any()
        assert not converged.all()
    actual = residual(batch, oc.State(*numpy_tree(found.state)))
    assert np.isfinite(actual).all()
    assert_told(converged, actual)
    np.testing.assert_allclose(numpy_tree(found.residual), actual, rtol=1e-3, atol=1e-13)
    iterations = numpy_tree(found.iterations)
    assert (iterations[~converged] == 60).all()
    assert (iterations[converged] <= 60).all()


def test_a_step_taken_back_does_not_slow_down_the_rest() -> None:
    """Of 60 strongly coupled circuits some need damped steps; all reach Newton's speed again, and arrive soon."""
    cases = [strong(n, 2.0, seed) for n in (3, 6) for seed in range(60)]
    reports = [oc.steady_state(case.circuit, case.z, method="newton", max_iterations=200) for case in cases]
    assert all(bool(report.converged) for report in reports)
    iterations = [int(report.iterations) for report in reports]
    assert sum(count > 6 for count in iterations) >= 5
    assert max(iterations) < 40  # 17; with steps that stay short, 95 and more


@pytest.mark.parametrize("method", ["newton", "iteration"])
def test_states_that_overflow_raise_no_warning(method: str) -> None:
    """Very strong recurrence: iterates of all sizes, and no word of it but the report."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(5):
            case = strong(8, 30.0, seed)
            for variant in VARIANTS:
                z = 5.0 * np.abs(case.z)
                found.append(oc.steady_state(case.circuit, z, variant=variant, method=method, max_iterations=300))
    assert not all(bool(report.converged) for report in found)


def test_newton_doubles_the_digits() -> None:
    """Strongly coupled circuits: the logarithm of the residual doubles from step to step."""
    ratios = []
    for seed in range(40):
        case = strong(6, 1.0, seed)
        circuit = case.circuit._replace(b=1.5 * case.circuit.b)
        r = np.array(
            [
                float(oc.steady_state(circuit, case.z, method="newton", tol=1e-300, max_iterations=k).residual)
                for k in range(1, 8)
            ]
        )
        ratios += [np.log(r[k + 1]) / np.log(r[k]) for k in range(6) if 1e-2 > r[k] > 1e-6 and r[k + 1] > 1e-15]
    assert len(ratios) > 15
    assert np.median(ratios) > 1.8


def test_stopping_early_and_loose_tolerances(xp64: Library) -> None:
    """``max_iterations`` and ``tol`` mean what they say."""
    case = small_circuit(5, seed=1)
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    full = oc.steady_state(circuit, z, method="iteration")
    short = oc.steady_state(circuit, z, method="iteration", max_iterations=1)
    loose = oc.steady_state(circuit, z, method="iteration", tol=1e-3)
    assert not bool(short.converged)
    assert int(short.iterations) == 1
    assert float(short.residual) > 1e-6
    assert bool(loose.converged)
    assert float(loose.residual) <= 1e-3
    assert 0 < int(loose.iterations) < int(full.iterations)


def test_a_start_near_a_fixed_point_leads_to_it(xp64: Library) -> None:
    """Without drive, one neuron with w_r = 3 has y**2 = (a - f) / (w a), a = 4 / 9, of either sign, beside y = 0."""
    circuit = oc.Circuit(np.full((1, 1), 3.0), np.full((1, 1), 2.0), 1.0, 1.0, 0.1, 0.002, 0.004)
    a = 4.0 / 9.0
    y = np.sqrt((a - 0.01) / (2.0 * a)) * np.array([[1.0], [-1.0], [0.0]])
    a = np.array([[a], [a], [0.01]])
    solve = xp64.compiled(oc.steady_state)
    start = oc.State(1.01 * y, 0.99 * a + 1e-4)
    found = solve(xp64.tree(circuit), xp64.array(np.zeros((3, 1))), state0=xp64.tree(start))
    assert to_numpy(found.converged).all()
    np.testing.assert_allclose(to_numpy(found.state.y), y, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(to_numpy(found.state.a), a, rtol=1e-9)
    one = oc.steady_state(xp64.tree(circuit), xp64.array(np.zeros(1)), state0=xp64.tree(oc.State(y[1], a[1])))
    np.testing.assert_allclose(to_numpy(one.state.y), y[1], rtol=1e-9)


def test_a_fixed_point_is_its_own_start(xp64: Library) -> None:
    """``state0`` at the solution takes no iterations."""
    case = small_circuit(3)
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    found = oc.steady_state(circuit, z)
    again = oc.steady_state(circuit, z, state0=found.state)
    assert bool(again.converged)
    assert int(again.iterations) == 0


# One neuron: every fixed point.


def neuron(w_r: float, *, b: float = 0.5, b0: float = 0.5, sigma: float = 0.1, tau: tuple = (0.002, 0.002), w=1.0):
    """A one-neuron circuit in numpy."""
    tau_y, tau_a = (np.full(1, value) for value in tau)
    matrices = np.full((1, 1), w_r), np.full((1, 1), w)
    return oc.Circuit(*matrices, *(np.full(1, value) for value in (b, b0, sigma)), tau_y, tau_a)


def test_stability_turns_at_the_right_ratio_of_time_constants() -> None:
    """w_r = 2: the middle one of three is stable where its trace is negative, just beyond tau_y = 12.2 tau_a."""
    middle = oc.fixed_points(neuron(2.0), np.ones(1))[1]
    y, a = float(middle.state.y[0]), float(middle.state.a[0])
    ratio = (1.0 - np.sqrt(a)) * 2.0 - 1.0
    turn = ratio / (1.0 - y * y)  # tau_y / tau_a at which (-1 + (1 - s) w_r) / tau_y + (-1 + w y^2) / tau_a is zero
    for factor, stable in ((0.999, False), (1.001, True)):
        points = oc.fixed_points(neuron(2.0, tau=(0.002 * turn * factor, 0.002)), np.ones(1))
        assert [point.stable for point in points] == [False, stable, True]


def quartic_roots(circuit: oc.Circuit, z: float) -> np.ndarray:
    """s = sqrt(a) of the main circuit's fixed points, from the eigenvalues of the companion matrix."""
    w_r, w, b, b0, sigma = (float(np.ravel(field)[0]) for field in circuit[:5])
    floor = np.array([1.0, 0.0, -((b0 * sigma) ** 2)])
    denominator = np.array([w_r, 1.0 - w_r])
    polynomial = np.polymul(floor, np.polymul(denominator, denominator))
    roots = np.roots(np.polysub(polynomial, [w * (b * z) ** 2, 0.0, 0.0]))
    return np.sort(roots[(np.abs(roots.imag) < 1e-7 * np.abs(roots)) & (roots.real > 0)].real)


def random_neurons(seed: int, low: float, high: float, count: int) -> list[tuple[oc.Circuit, float]]:
    rng = np.random.default_rng(seed)
    return [
        (
            neuron(
                rng.uniform(low, high),
                b=10 ** rng.uniform(-1.5, 0),
                b0=10 ** rng.uniform(-1.5, 0),
                sigma=10 ** rng.uniform(-1.5, 0),
                w=10 ** rng.uniform(-1, 1),
                tau=tuple(10 ** rng.uniform(-3, -1, 2)),
            ),
            float(rng.choice([-1, 1]) * 10 ** rng.uniform(-1, 0.5)),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 4.0), (-4.0, 0.0)])
def test_fixed_points_are_all_there(low: float, high: float) -> None:
    """As many as the quartic has positive roots, each zeroing the vector field; counts as SPEC 6 says."""
    same_sign_stable, total = 0, 0
    for circuit, z in random_neurons(11, low, high, 60):
        drive = np.array([z])
        points = oc.fixed_points(circuit, drive)
        roots = [np.sqrt(point.state.a[0]) for point in points]
        np.testing.assert_allclose(roots, quartic_roots(circuit, z), rtol=1e-5)
        for point in points:
            assert residual(Case(circuit, drive, point.state), point.state) < 1e-9
            assert point.stable == (point.spectral_abscissa < 0)
            values = np.linalg.eigvals(oc.jacobian(circuit, point.state))
            np.testing.assert_allclose(point.spectral_abscissa, values.real.max(), rtol=1e-9)
        with_drive = [point for point in points if point.state.y[0] * z > 0]
        if (low, high) == (0.0, 1.0):
            assert len(points) == 1
            assert points[0].stable
        if low == 1.0:
            assert len(points) in (1, 3)
            assert len(with_drive) == 1
            total += 1
            same_sign_stable += with_drive[0].stable
    if low == 1.0:  # all but 5 of 24,000
        assert same_sign_stable >= total - 1


@pytest.mark.parametrize(
    ("circuit", "count"),
    [(neuron(0.5), 1), (neuron(2.0), 3), (neuron(2.0, b=0.5, b0=1.0, sigma=1.0), 1)],
    ids=["w_r=0.5", "w_r=2", "w_r=2, b0=sigma=1"],
)
def test_stability_of_the_phase_portraits(circuit: oc.Circuit, count: int) -> None:
    """The three portraits of the paper: where a small push ends is what ``stable`` foretells."""
    z = np.array([1.0])
    points = oc.fixed_points(circuit, z)
    assert len(points) == count
    for point in points:
        y, a = point.state
        start = oc.State(np.stack([y + 1e-4, y - 1e-4]), np.stack([a, a]))
        run = oc.simulate(circuit, z, np.array([0.0, 0.5]), state0=start)
        distance = np.abs(run.state.y[-1] - y).max()
        assert (distance < 1e-5) == point.stable


@pytest.mark.one_dtype
@pytest.mark.parametrize("variant", VARIANTS)
def test_fixed_points_of_every_variant(xp: Library, variant: str) -> None:
    """They zero the field, for drives of either sign and none, and Newton's solution is among them."""
    for w_r in (-1.5, 0.0, 0.5, 1.0, 2.0):
        for drive in (-1.0, 0.0, 0.3):
            case = Case(neuron(w_r), np.array([drive]), oc.State(np.zeros(1), np.ones(1)))
            circuit, z = xp.tree(case.circuit), xp.array(case.z)
            points = oc.fixed_points(circuit, z, variant=variant)
            for point in points:
                xp.assert_kind(point.state.y, (1,))
                state = oc.State(*numpy_tree(point.state))
                assert residual(case, state, variant) < (1e-5 if xp.single else 1e-10)
            if xp.name == "numpy" and not xp.single:
                found = oc.steady_state(circuit, z, variant=variant)
                if found.converged:
                    distance = [abs(found.state.a - p.state.a)[0] + abs(found.state.y - p.state.y)[0] for p in points]
                    assert min(distance) < 1e-8


def test_symmetric_fixed_points_without_input() -> None:
    """z = 0 and w_r > 1: rest, unstable, and a pair of mirror images."""
    points = oc.fixed_points(neuron(2.0), np.array([0.0]))
    assert len(points) == 3
    by_y = sorted(points, key=lambda point: point.state.y[0])
    assert by_y[0].state.y == -by_y[2].state.y
    assert [point.stable for point in by_y] == [True, False, True]


def test_without_normalization_there_is_one_linear_fixed_point() -> None:
    """w = 0: a stays at its floor and y solves a linear equation."""
    circuit = neuron(0.5, w=0.0)
    (point,) = oc.fixed_points(circuit, np.array([1.0]))
    floor = 0.05
    np.testing.assert_allclose(point.state.a, floor**2, rtol=1e-14)
    np.testing.assert_allclose(point.state.y, 0.5 / (1 - 0.5 + 0.5 * floor), rtol=1e-14)


@pytest.mark.one_dtype
def test_fixed_points_of_weights_that_are_products(xp: Library) -> None:
    circuit, z = oc.Circuit(xp.array([[2.0]]), xp.array([[1.0]]), 0.5, 0.5, 0.1, 0.002, 0.002), xp.array([1.0])
    want = oc.fixed_points(circuit, z)
    assert len(want) == 3
    for weights in ({"w": oc.Operator(lambda v: 1.0 * v)}, {"w_r": lambda v: 2.0 * v}):
        found = oc.fixed_points(circuit._replace(**weights), z)
        assert [point.spectral_abscissa for point in found] == [point.spectral_abscissa for point in want]


@pytest.mark.one_dtype
@pytest.mark.parametrize("variant", ["main", "rectified_recurrence"])
@pytest.mark.parametrize("name", ["w_r", "tau_a"])
def test_every_field_has_the_batch_axes_of_every_parameter(xp: Library, name: str, variant: str) -> None:
    """Also those of an identity, and of time constants, on which the point does not depend; and an empty batch."""
    case = small_circuit(3, identity=True)
    plain, z = xp.tree(case.circuit)._replace(w_r=None), xp.array(case.z)
    want = oc.steady_state(plain, z, variant=variant)
    for size in (2, 0):
        batch = {"w_r": np.broadcast_to(np.eye(3), (size, 3, 3)), "tau_a": np.full((size, 1), 0.003)}[name]
        circuit = plain._replace(**{name: xp.array(batch)})
        found = oc.steady_state(circuit, z, variant=variant, method="closed_form", abscissa=True)
        assert [tuple(leaf.shape) for leaf in found[1:]] == [(size,)] * 7
        for part, one in zip(found.state, want.state, strict=True):
            xp.assert_close(part, np.broadcast_to(numpy_tree(one), (size, 3)), rtol=1e-12)
        if variant == "main":
            certificate = oc.certify(circuit, z)
            shapes = [tuple(leaf.shape) for leaf in (*certificate.state, certificate.stable, certificate.p)]
            assert shapes == [(size, 3), (size, 3), (size,), (size, 6, 6)]
            assert tuple(oc.euler_step_bound(circuit, z).shape) == (size,)
            correction = oc.first_order_correction(circuit, z)
            assert {tuple(part.shape) for state in correction for part in state} == {(size, 3)}


def test_time_constants_alone_have_batch_axes(xp64: Library) -> None:
    """They decide what attracts, not where it lies; the motions from rest are those of the members."""
    w_r, w, z = (xp64.array(part) for part in ([[0.0, 3.0], [-3.0, 0.0]], np.ones((2, 2)), [0.05, 0.02]))
    tau = np.array([[0.002], [0.2], [2e-5]])
    found = oc.steady_state(oc.Circuit(w_r, w, 0.5, 0.5, 0.5, xp64.array(tau), 0.002), z, abscissa=True)
    assert [tuple(leaf.shape) for leaf in (*found.state, found.stable)] == [(3, 2), (3, 2), (3,)]
    for i in range(3):
        circuit = oc.Circuit(w_r, w, 0.5, 0.5, 0.5, xp64.array(tau[i]), 0.002)
        one = oc.steady_state(circuit, z, abscissa=True)
        assert (bool(found.stable[i]), int(found.status[i])) == (bool(one.stable), int(one.status))
        xp64.assert_close(found.abscissa[i], numpy_tree(one.abscissa), rtol=1e-9)
        xp64.assert_close(found.state.y[i, :], numpy_tree(one.state.y), rtol=1e-9)


@pytest.mark.library("numpy", "jax")
def test_no_input_of_a_rectified_circuit_is_found_by_the_method(xp64: Library) -> None:
    """From rest, nudged, it comes back to y = 0, where it has a kink."""
    w_r = xp64.array([[0.82, -1.02, 0.17], [-0.23, -0.18, -0.09], [-0.8, -0.09, -0.35]])
    circuit = oc.Circuit(w_r, xp64.array(0.2 + np.eye(3)), 0.8, 0.5, 0.4, 0.002, 0.003)
    found = oc.steady_state(circuit, xp64.array(np.zeros(3)), variant="rectified", elsewhere=False)
    assert bool(found.stable)
    assert int(found.status) == 0


@pytest.mark.library("numpy", "torch")
def test_weights_in_any_order_of_memory(xp64: Library) -> None:
    """As the transpose of an array, or a part of one with steps: numpy's buffers took the order, and the answer."""
    case = small_circuit(3)
    plain, z = xp64.tree(case.circuit), xp64.array(case.z)
    want = oc.steady_state(plain, z, attracting=False)
    w_r, w = (np.asarray(to_numpy(part)) for part in plain[:2])
    turned = [xp64.array(np.ascontiguousarray(part.T)).T for part in (w_r, w)]
    spread = [xp64.array(np.ascontiguousarray(np.repeat(part, 2, axis=1)))[:, ::2] for part in (w_r, w)]
    for w_r, w in (turned, spread):
        found = oc.steady_state(plain._replace(w_r=w_r, w=w), z, attracting=False)
        assert bool(found.converged)
        assert int(found.iterations) == int(want.iterations)
        xp64.assert_close(found.state.y, numpy_tree(want.state)[0], rtol=1e-12)


@pytest.mark.size
def test_newton_for_hundreds_of_neurons() -> None:
    """300 neurons with random recurrence of norm one take a handful of steps."""
    case = strong(300, 1.0, seed=0)
    case = case._replace(circuit=case.circuit._replace(w=case.circuit.w / 300))
    found = oc.steady_state(case.circuit, case.z)
    assert found.converged
    assert found.iterations < 20
