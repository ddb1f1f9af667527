"""Integrators against exact solutions: order, drives, dense output, and failure that says so."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace
from scipy.integrate import solve_ivp
from support import VARIANTS, Library, central_difference, gradient, numpy_tree, small_circuit, to_numpy

import organics_core as oc
from organics_core.backend import kernel_for
from organics_core.circuit import of_variant
from organics_core.trajectory import NOT_FINITE, STEP_TOO_SMALL, STIFF, SUCCESS, TOO_MANY_STEPS

FIXED = {name: tableau._replace(error=None, dense=None) for name, tableau in oc.INTEGRATORS.items()}
"""Every integrator, dopri5 among them, taking the steps it is told to take."""


def logistic(t: object, state: tuple) -> tuple:
    """x' = x (1 - x)."""
    return (state[0] * (1.0 - state[0]),)


def logistic_solution(times: np.ndarray, x0: float) -> np.ndarray:
    return x0 / (x0 + (1 - x0) * np.exp(-times))


def leaky(w: float = 0.0, n: int = 2) -> oc.Circuit:
    """Without pooling a stays at its floor 0.25 and tau y' = b z - y / 2 for W_r = I."""
    return oc.Circuit(None, np.full((n, n), w), np.full(n, 2.0), np.full(n, 1.0), 0.5, 0.01, 0.02)


RATE = 0.5 / 0.01
GAIN = 2.0 / 0.01
"""The leaky circuit is y' = -RATE y + GAIN z."""


@pytest.mark.parametrize("name", FIXED)
def test_order_of_convergence(xp64: Library, name: str) -> None:
    """Halving the steps divides the error by 2**order, on the logistic equation."""
    tableau = FIXED[name]
    start, times = (xp64.array([0.1, 0.3]),), xp64.array([0.0, 2.0])
    errors = []
    for substeps in (16, 32):
        tau = (xp64.array([1.0, 1.0]),) if tableau.exponential else None
        run = oc.integrate(logistic, start, times, method=tableau, substeps=substeps, tau=tau)
        exact = logistic_solution(np.array(2.0), np.array([0.1, 0.3]))
        errors.append(np.max(np.abs(numpy_tree(run.state[0])[-1] - exact)))
    assert abs(np.log2(errors[0] / errors[1]) - tableau.order) < 0.25
    assert int(run.steps) == 32


@pytest.mark.parametrize("name", FIXED)
def test_order_on_a_circuit_with_a_changing_drive(name: str) -> None:
    """The same through ``simulate``, with a drive that is a function of time: nodes at the right times."""
    times = np.array([0.0, 0.02])
    exact = solve_ivp(lambda t, y: -RATE * y + GAIN * np.sin(200 * t), (0, 0.02), [0.0], rtol=1e-12, atol=1e-14).y[
        0, -1
    ]
    errors = []
    for substeps in (16, 32, 64):
        run = oc.simulate(leaky(), lambda t: np.full(2, np.sin(200 * t)), times, method=FIXED[name], substeps=substeps)
        errors.append(abs(run.state.y[-1, 0] - exact))
    assert abs(np.log2(errors[-2] / errors[-1]) - FIXED[name].order) < 0.25


def test_exponential_euler_is_exact_for_linear_decay(xp: Library) -> None:
    """y' = (drive - y) / tau in one step, however long."""
    circuit = leaky()._replace(w_r=np.zeros((2, 2)))
    z = np.array([1.0, -0.5])
    run = oc.simulate(xp.tree(circuit), xp.array(z), xp.array([0.0, 0.05]), method="exponential_euler")
    xp.assert_close(run.state.y[-1, ...], 2.0 * z * (1 - np.exp(-5.0)), rtol=1e-12)


def test_adaptive_error_follows_the_tolerance(xp64: Library) -> None:
    """A tighter tolerance buys a smaller error, of its own size, with more steps."""
    errors, steps = [], []
    for rtol in (1e-4, 1e-7, 1e-10):
        run = oc.integrate(logistic, (xp64.array([0.1]),), xp64.array([0.0, 1.0, 5.0]), rtol=rtol, atol=rtol)
        exact = logistic_solution(np.array([0.0, 1.0, 5.0]), 0.1)
        errors.append(np.max(np.abs(numpy_tree(run.state[0])[:, 0] - exact)) / rtol)
        steps.append(int(run.steps))
        assert run.success
        assert run.message == "reached the last time"
    assert max(errors) < 20
    assert steps[0] < steps[1] < steps[2]


def test_states_between_do_not_depend_on_the_grid(xp64: Library) -> None:
    """Many output times are interpolated, not stepped on: same states, no more steps."""
    case = small_circuit(3)
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    fine, coarse = np.linspace(0, 0.02, 101), np.linspace(0, 0.02, 5)
    many = oc.simulate(circuit, z, xp64.array(fine))
    few = oc.simulate(circuit, z, xp64.array(coarse))
    assert int(many.steps) == int(few.steps)
    for one, other in zip(many.state, few.state, strict=True):
        xp64.assert_close(one[::25, ...], numpy_tree(other), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("variant", VARIANTS)
def test_agreement_with_scipy(xp64: Library, variant: str) -> None:
    """Every variant's whole trajectory is that of scipy's eighth-order method."""
    case = small_circuit(3, seed=5)
    times = np.linspace(0, 0.02, 9)
    rest = oc.resting_state(case.circuit, case.z)

    def packed(t: float, x: np.ndarray) -> np.ndarray:
        return np.concatenate(oc.vector_field(case.circuit, oc.State(x[:3], x[3:]), case.z, variant=variant))

    want = solve_ivp(packed, (0, 0.02), np.concatenate(rest), "DOP853", times, rtol=1e-12, atol=1e-13).y
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    run = oc.simulate(circuit, z, xp64.array(times), variant=variant, rtol=1e-9, atol=1e-11)
    xp64.assert_close(run.state.y, want[:3].T, rtol=1e-7, atol=1e-8)
    xp64.assert_close(run.state.a, want[3:].T, rtol=1e-7, atol=1e-8)


def test_a_batch_is_its_members(xp64: Library) -> None:
    """Batch axes of the drive and of the start, in one run."""
    case = small_circuit(3)
    times = xp64.array([0.0, 0.003, 0.01])
    z = np.stack([case.z, -0.5 * case.z])
    start = oc.State(np.stack([case.state.y, 0 * case.state.y]), np.stack([case.state.a, 2 * case.state.a]))
    tight = {"rtol": 1e-9, "atol": 1e-12}
    circuit = xp64.tree(case.circuit)
    run = oc.simulate(circuit, xp64.array(z), times, state0=xp64.tree(start), **tight)
    xp64.assert_kind(run.state.y, (3, 2, 3))
    for i in range(2):
        alone = oc.simulate(
            circuit, xp64.array(z[i]), times, state0=xp64.tree(oc.State(start.y[i], start.a[i])), **tight
        )
        xp64.assert_close(run.state.y[:, i, :], numpy_tree(alone.state.y), rtol=1e-6, atol=1e-8)
        xp64.assert_close(run.state.a[:, i, :], numpy_tree(alone.state.a), rtol=1e-6, atol=1e-8)
        xp64.assert_close(run.state.y[0, i, :], start.y[i], rtol=1e-15)


# Drives.


def ramp_response(times: np.ndarray, slope: float) -> np.ndarray:
    """Exact y of the leaky circuit for z = slope t."""
    return GAIN * slope * (times / RATE - (1 - np.exp(-RATE * times)) / RATE**2)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_sampled_callable_and_exact_ramp_agree(xp64: Library, method: str) -> None:
    """A ramp is linear between samples: the three drives are one, and the solution is known."""
    times = np.concatenate([[0.0], np.cumsum(np.tile([0.001, 0.0005], 12))])
    slopes = np.array([10.0, -4.0])
    options = {"method": method, "rtol": 1e-9, "atol": 1e-12}
    circuit, grid = xp64.tree(leaky()), xp64.array(times)
    sampled = oc.simulate(circuit, xp64.array(times[:, None] * slopes), grid, drive="sampled", **options)
    rates = xp64.array(slopes)
    called = oc.simulate(circuit, lambda t: t * rates, grid, **options)
    exact = np.stack([ramp_response(times, slope) for slope in slopes], axis=-1)
    for run in (sampled, called):
        xp64.assert_close(run.state.y, exact, rtol=1e-5 if method == "rk4" else 1e-7, atol=1e-7)
        xp64.assert_close(run.state.a, np.full((25, 2), 0.25), rtol=1e-12)


def test_how_an_array_of_the_length_of_the_times_is_read(xp64: Library) -> None:
    """(T, n): a sample per time by default, a batch of T constants if so said."""
    times = xp64.array([0.0, 0.01, 0.02])
    z = xp64.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    circuit = xp64.tree(leaky())
    with pytest.warns(oc.AmbiguousDriveWarning):
        sampled = oc.simulate(circuit, z, times)
    batch = oc.simulate(circuit, z, times, drive="constant")
    constant = oc.simulate(circuit, z[0, ...], times)
    xp64.assert_kind(sampled.state.y, (3, 2))
    xp64.assert_kind(batch.state.y, (3, 3, 2))
    xp64.assert_close(sampled.state.y, numpy_tree(constant.state.y), rtol=1e-5, atol=1e-9)
    xp64.assert_close(batch.state.y[:, 1, :], numpy_tree(constant.state.y), rtol=1e-5, atol=1e-9)


# Dense output.


def test_dense_output(xp64: Library) -> None:
    """Between the steps the interpolant is as good as the steps; it holds at any time, in any order."""
    run = oc.integrate(logistic, (xp64.array([[0.1, 0.5]]),), xp64.array([0.0, 6.0]), rtol=1e-7, atol=1e-9, dense=True)
    assert run.interpolant is not None
    assert run.interpolant.steps.shape[0] == int(run.steps)
    times = np.random.default_rng(0).uniform(0, 6, 200)
    exact = np.stack([logistic_solution(times, x0) for x0 in (0.1, 0.5)], axis=-1)[:, None, :]
    xp64.assert_close(run.interpolant(xp64.array(times))[0], exact, rtol=2e-6)
    ends = run.interpolant(xp64.array([0.0, 6.0]))[0]
    xp64.assert_close(ends, numpy_tree(run.state[0]), rtol=1e-12)
    with pytest.raises(ValueError, match=r"times must lie in \[0, 6\]"):
        run.interpolant(xp64.array([1.0, 7.0]))


def test_dense_output_of_a_circuit_is_a_state(xp64: Library) -> None:
    """With a sampled drive as well."""
    times = np.linspace(0, 0.02, 5)
    slopes = np.array([10.0, -4.0])
    run = oc.simulate(
        xp64.tree(leaky()),
        xp64.array(times[:, None] * slopes),
        xp64.array(times),
        drive="sampled",
        rtol=1e-8,
        atol=1e-10,
        dense=True,
    )
    between = np.array([0.0171, 0.0013, 0.009])
    state = run.interpolant(xp64.array(between))
    exact = np.stack([ramp_response(between, slope) for slope in slopes], axis=-1)
    xp64.assert_close(state.y, exact, rtol=1e-5, atol=1e-8)
    xp64.assert_close(state.a, np.full((3, 2), 0.25), rtol=1e-10)


# Failure is a result.


def quadratic(t: object, state: tuple) -> tuple:
    """x' = x**2, which ends at t = 1 / x0."""
    return (state[0] * state[0],)


def test_a_singular_solution_stops_with_what_was_reached(xp64: Library) -> None:
    """1 / (1 - t): right until 1, then NaN, and a message that says so."""
    times = np.array([0.0, 0.5, 0.9, 1.1, 2.0])
    run = oc.integrate(quadratic, (xp64.array([1.0]),), xp64.array(times), rtol=1e-5, atol=1e-8)
    assert not run.success
    assert int(run.status) == STEP_TOO_SMALL
    assert "step size" in run.message
    assert run.reached == 3
    states = numpy_tree(run.state[0])[:, 0]
    np.testing.assert_allclose(states[:3], 1 / (1 - times[:3]), rtol=1e-3)
    assert np.isnan(states[3:]).all()


def test_one_member_of_a_batch_may_fail(xp64: Library) -> None:
    """The others go on to the end."""
    times = np.array([0.0, 0.5, 2.0])
    run = oc.integrate(quadratic, (xp64.array([[1.0], [0.1], [-1.0]]),), xp64.array(times), rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(numpy_tree(run.status), [STEP_TOO_SMALL, SUCCESS, SUCCESS])
    assert not run.success
    assert run.message.startswith("2 of 3 reached the last time; 1 of 3 stopped")
    states = numpy_tree(run.state[0])[..., 0]
    np.testing.assert_allclose(states[:, 1], 0.1 / (1 - 0.1 * times), rtol=1e-3)
    np.testing.assert_allclose(states[:, 2], -1 / (1 + times), rtol=1e-3)
    assert np.isnan(states[2, 0])
    assert run.reached == 2


def diverging() -> tuple[oc.Circuit, np.ndarray]:
    """Negative recurrence under so much inhibition (sqrt(a) > 1) that y and a drive each other without bound."""
    return oc.Circuit(np.array([[-4.0]]), np.ones((1, 1)), np.ones(1), np.ones(1), 3.0, 0.001, 0.001), np.array([1.0])


@pytest.mark.parametrize("method", ["dopri5", "rk4", "euler"])
def test_a_diverging_circuit_stops_with_a_readable_status(xp64: Library, method: str) -> None:
    """No exception, no endless loop, no number that is not one."""
    circuit, z = diverging()
    times = np.linspace(0, 0.2, 21)
    run = oc.simulate(xp64.tree(circuit), xp64.array(z), xp64.array(times), method=method, substeps=10)
    assert not run.success
    assert int(run.status) in (STEP_TOO_SMALL, NOT_FINITE)
    assert run.message.startswith("stopped: ")
    assert 1 <= run.reached < 21
    for part in numpy_tree(tuple(run.state)):
        assert np.isfinite(part[: run.reached]).all()
        assert np.isnan(part[run.reached :]).all()


def test_too_many_steps_are_reported(xp64: Library) -> None:
    """``max_steps`` bounds the steps between two output times."""
    run = oc.integrate(logistic, (xp64.array([0.1]),), xp64.array([0.0, 0.01, 50.0]), rtol=1e-10, max_steps=10)
    assert int(run.status) == TOO_MANY_STEPS
    assert "max_steps" in run.message
    assert run.reached == 2


def test_every_message_is_a_sentence() -> None:
    """One per status."""
    from organics_core.trajectory import MESSAGES

    assert set(MESSAGES) == {SUCCESS, STEP_TOO_SMALL, TOO_MANY_STEPS, NOT_FINITE, STIFF}


# Methods of one's own.


def test_a_tableau_of_ones_own(xp64: Library) -> None:
    """The midpoint rule, given as data."""
    midpoint = oc.Tableau("midpoint", 2, (0.0, 0.5), ((), (0.5,)), (0.0, 1.0))
    errors = []
    for substeps in (16, 32):
        run = oc.integrate(logistic, (xp64.array([0.1]),), xp64.array([0.0, 2.0]), method=midpoint, substeps=substeps)
        errors.append(abs(float(run.state[0][-1, 0]) - logistic_solution(2.0, 0.1)))
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.2


@pytest.mark.parametrize("name", oc.INTEGRATORS)
def test_tableaus_are_consistent(name: str) -> None:
    """Weights sum to one, rows to their nodes, and the embedded error of dopri5 to zero."""
    tableau = oc.INTEGRATORS[name]
    np.testing.assert_allclose(sum(tableau.weights), 1.0, rtol=1e-14)
    for node, row in zip(tableau.nodes, tableau.stages, strict=True):
        np.testing.assert_allclose(sum(row), node, rtol=0, atol=1e-14)
    if tableau.error is not None:
        np.testing.assert_allclose(sum(tableau.error), 0.0, atol=1e-14)
    if tableau.dense is not None:
        # at the end of the step the interpolant is the step
        ends = [sum(row) for row in tableau.dense]
        np.testing.assert_allclose(ends, [*tableau.weights, 0.0], rtol=0, atol=1e-13)


SPOILT = {
    "stages": {"stages": ((), (0.5, 0.5))},
    "weights": {"weights": (1.0,)},
    "weights that add up to": {"weights": (0.5, 0.25)},
    "error": {"error": (0.5, -0.5)},
    "dense": {"dense": ((1.0,),)},
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_tableau_that_does_not_fit_together_is_refused(kind: str) -> None:
    """By the name of its part, before any step."""
    tableau = oc.INTEGRATORS["heun"]._replace(**SPOILT[kind])
    with pytest.raises(ValueError, match=f"^{kind.split()[0]} of the tableau 'heun' must"):
        oc.integrate(logistic, (np.ones(2),), np.array([0.0, 1.0]), method=tableau)


def test_stiff_methods_take_states_of_several_parts(xp64: Library) -> None:
    """The Jacobian is that of all parts together, in the order of the state."""

    def field(t: Any, state: tuple) -> tuple:
        x, y = state
        return -y[..., :1], xp64.namespace.concat([x, -2.0 * y[..., 1:]], axis=-1)

    start = (xp64.array([1.0]), xp64.array([0.0, 3.0]))
    run = oc.integrate(field, start, xp64.array([0.0, 1.0]), method="rodas5p", rtol=1e-8, atol=1e-10)
    xp64.assert_close(run.state[0][-1, :], np.array([math.cos(1.0)]), rtol=1e-6)
    xp64.assert_close(run.state[1][-1, :], np.array([math.sin(1.0), 3.0 * math.exp(-2.0)]), rtol=1e-6)
    assert int(run.steps) < 40


def test_a_field_that_returns_the_wrong_shapes_is_named() -> None:
    """Not a broadcast that goes unnoticed."""
    with pytest.raises(ValueError, match="field must return"):
        oc.integrate(lambda t, x: (x[0], x[0]), (np.ones(2),), np.array([0.0, 1.0]))


@pytest.mark.library("numpy", "torch")
@pytest.mark.parametrize("variant", VARIANTS)
def test_fast_slopes_are_the_equations(xp: Library, variant: str) -> None:
    """The kernel's vector field on packed states, for one circuit and for batches, a <= 0 included."""
    rng = np.random.default_rng(0)
    for identity, batch in ((False, ()), (True, ()), (False, (3,)), (True, (2, 3))):
        circuit, z, _ = small_circuit(5, seed=1, identity=identity)
        z = z + 0.1 * rng.standard_normal((*batch, 5))
        state = oc.State(*rng.standard_normal((2, *batch, 5)))
        want = np.concatenate(oc.vector_field(circuit, state, z, variant=variant), axis=-1)
        made = of_variant(xp.tree(circuit), variant)
        made = made._make([xp.array(part) if isinstance(part, float) else part for part in made])
        packed, before = (xp.array(np.concatenate(state, axis=-1)) for _ in range(2))
        kernel = kernel_for(type(made), xp.namespace)(made, xp.array(z), packed, False)
        # every component sums some ten terms of up to the largest, divided by the time constants
        xp.assert_close(kernel(0.0, packed), want, rtol=1e-12, atol=1e-13 * np.abs(want).max())
        xp.assert_close(packed, to_numpy(before), rtol=0.0)
        columns = kernel_for(type(made), xp.namespace)(made, xp.array(z), packed, True)
        assert (columns is not None) == (xp.name == "numpy" and len(batch) == 1)
        if columns is not None:  # neurons before the members of the batch, and a buffer to write to
            out = np.empty_like(packed.T)
            assert columns(0.0, np.ascontiguousarray(packed.T), out) is out
            xp.assert_close(out.T, want, rtol=1e-12, atol=1e-13 * np.abs(want).max())


@pytest.mark.library("torch")
def test_derivatives_pass_through_adaptive_steps(xp64: Library) -> None:
    """In torch the fast steps make way where a derivative is wanted: of the drive, the circuit, a user's field."""
    circuit, z, _ = small_circuit()
    times = np.linspace(0.0, 0.004, 3)

    def end(p: float) -> float:
        run = oc.simulate(circuit._replace(sigma=circuit.sigma + p), z + p, times, rtol=1e-10, atol=1e-12)
        return float(np.sum(run.state.y[-1] + run.state.a[-1]))

    made = xp64.tree(circuit)

    def loss(p: Any) -> Any:
        moved = made._replace(sigma=made.sigma + p)
        run = oc.simulate(moved, xp64.array(z) + p, xp64.array(times), rtol=1e-10, atol=1e-12)
        return (run.state.y[-1] + run.state.a[-1]).sum()

    np.testing.assert_allclose(gradient(xp64, loss, np.array(0.0)), central_difference(end), rtol=1e-6)

    def decay(p: Any) -> Any:
        run = oc.integrate(lambda t, x: (-p * x[0],), (xp64.array([1.0]),), xp64.array([0.0, 1.0]), rtol=1e-9)
        return run.state[0][-1, 0]

    np.testing.assert_allclose(gradient(xp64, decay, np.array(1.5)), -np.exp(-1.5), rtol=1e-6)


@pytest.mark.library("numpy", "strict", "torch")
@pytest.mark.parametrize("method", ["dopri5", "rk4", "rodas5p"])
def test_a_clock_of_double_precision_is_kept(xp64: Library, method: str) -> None:
    """float64 if any array is: times that would be one in float32 do not become one beside a state of float32."""
    one = xp64.array([1.0])
    names = array_namespace(one)
    single = (names.astype(one, names.float32),)
    times = 1e6 + np.array([0.0, 0.01, 0.02])
    run = oc.integrate(lambda t, x: (-x[0],), single, xp64.array(times), method=method)
    np.testing.assert_array_equal(numpy_tree((run.times,))[0], times)
    np.testing.assert_allclose(numpy_tree(run.state)[0][:, 0], np.exp(-(times - 1e6)), rtol=1e-6)
