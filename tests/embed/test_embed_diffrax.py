"""ORGaNICs inside diffrax and optimistix."""

import numpy as np
import pytest
from embedding import IDENTITY, PROBLEM, T_FIXED, T_TRANSIENT, error, examples, framework, record, rectified_transient

framework("diffrax", "jax", "diffrax", "optimistix")

import jax  # noqa: E402

jax.config.update("jax_enable_x64", True)

import diffrax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optimistix  # noqa: E402

import organics_core as oc  # noqa: E402
from organics_simulators.diffrax import ode_term, start, steady_state  # noqa: E402


def to_jax(circuit):
    return oc.Circuit(*(None if v is None else jnp.asarray(v) for v in circuit))


CIRCUIT = to_jax(PROBLEM.circuit)
Z = jnp.asarray(PROBLEM.z)


def solve(circuit, z, t1, *, solver=None, adjoint=None, variant="main", t0=0.0, tol=1e-10):
    return diffrax.diffeqsolve(
        ode_term(variant),
        diffrax.Tsit5() if solver is None else solver,
        t0,
        t1,
        None,
        start(circuit, z),
        args=(circuit, z),
        stepsize_controller=diffrax.PIDController(rtol=tol, atol=tol * 1e-2),
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        max_steps=16_384,
    )


def last(run):
    return oc.State(*(part[-1] for part in run.ys))


def test_transient_and_fixed_point():
    transient = error(last(solve(CIRCUIT, Z, T_TRANSIENT)), PROBLEM.transient)
    fixed = error(last(solve(CIRCUIT, Z, T_FIXED)), PROBLEM.fixed)
    record("diffrax", transient, fixed, note="Tsit5")
    assert transient < 1e-9
    assert fixed < 1e-9


def test_implicit_solver():
    run = solve(CIRCUIT, Z, T_TRANSIENT, solver=diffrax.Kvaerno5(), tol=1e-8)
    assert error(last(run), PROBLEM.transient) < 1e-7


def test_closed_form_of_the_identity():
    assert error(last(solve(to_jax(IDENTITY.circuit), jnp.asarray(IDENTITY.z), T_FIXED)), IDENTITY.fixed) < 1e-9


@pytest.mark.parametrize("variant", ["rectified", "rectified_recurrence"])
def test_variants(variant):
    assert error(last(solve(CIRCUIT, Z, T_TRANSIENT, variant=variant)), rectified_transient(variant)) < 1e-8


def test_numpy_circuits_are_taken():
    assert error(last(solve(PROBLEM.circuit, PROBLEM.z, T_TRANSIENT)), PROBLEM.transient) < 1e-9


def test_drive_as_function_and_as_interpolation():
    def z(t):
        return PROBLEM.z * (1 + 0.5 * np.sin(2 * np.pi * 200 * t))

    def z_jax(t):
        return Z * (1 + 0.5 * jnp.sin(2 * jnp.pi * 200 * t))

    ours = oc.simulate(PROBLEM.circuit, z, np.array([0.0, T_TRANSIENT]), rtol=1e-10, atol=1e-12)
    expected = oc.State(*(part[-1] for part in ours.state))
    assert error(last(solve(CIRCUIT, z_jax, T_TRANSIENT)), expected) < 1e-9

    times = np.linspace(0, T_TRANSIENT, 41)
    samples = np.stack([z(t) for t in times])
    path = diffrax.LinearInterpolation(jnp.asarray(times), jnp.asarray(samples))
    sampled = oc.simulate(PROBLEM.circuit, samples, times, rtol=1e-10, atol=1e-12)
    expected = oc.State(*(part[-1] for part in sampled.state))
    assert error(last(solve(CIRCUIT, path, T_TRANSIENT, tol=1e-9)), expected) < 1e-6


def test_batches_and_vmap():
    scales = jnp.linspace(0.5, 1.0, 3)[:, None]
    together = last(solve(CIRCUIT, scales * Z, T_TRANSIENT))
    mapped = jax.vmap(lambda z: last(solve(CIRCUIT, z, T_TRANSIENT)))(scales * Z)
    assert together.y.shape == (3, 8)
    assert error(together, oc.State(*(np.asarray(p) for p in mapped))) < 1e-8
    assert error((mapped.y[-1], mapped.a[-1]), PROBLEM.transient) < 1e-9


def test_gradients_of_circuit_and_drive():
    def loss(args):
        return last(solve(*args, T_TRANSIENT, tol=1e-9)).y.sum()

    gradient = jax.grad(loss)((CIRCUIT, Z))
    h = 1e-5
    for index in (0, 3):
        bump = jnp.zeros(8).at[index].set(h)
        measured = (loss((CIRCUIT, Z + bump)) - loss((CIRCUIT, Z - bump))) / (2 * h)
        np.testing.assert_allclose(gradient[1][index], measured, rtol=1e-5)
    bump = jnp.zeros((8, 8)).at[1, 5].set(h)
    up, down = (CIRCUIT._replace(w_r=CIRCUIT.w_r + s * bump) for s in (1, -1))
    np.testing.assert_allclose(gradient[0].w_r[1, 5], (loss((up, Z)) - loss((down, Z))) / (2 * h), rtol=1e-5)


def test_optimistix_fixed_point():
    found = steady_state(CIRCUIT, Z)
    assert found.result == optimistix.RESULTS.successful
    fixed = error(found.value, PROBLEM.fixed)
    record("optimistix", float("nan"), fixed, note="steady state, implicit gradient")
    assert fixed < 1e-10
    closed = steady_state(to_jax(IDENTITY.circuit), jnp.asarray(IDENTITY.z))
    assert error(closed.value, IDENTITY.fixed) < 1e-10
    newton = steady_state(CIRCUIT, Z, solver=optimistix.Newton(rtol=1e-10, atol=1e-10))
    assert error(newton.value, PROBLEM.fixed) < 1e-9


def test_optimistix_gradient_is_implicit():
    def theirs(circuit, z):
        return steady_state(circuit, z).value.y @ jnp.arange(1.0, 9.0)

    def ours(circuit, z):
        return oc.steady_state(circuit, z).state.y @ jnp.arange(1.0, 9.0)

    got, want = (jax.grad(f, argnums=(0, 1))(CIRCUIT, Z) for f in (theirs, ours))
    for name in ("w_r", "w", "b", "b0", "sigma"):
        np.testing.assert_allclose(getattr(got[0], name), getattr(want[0], name), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(got[0].tau_y, 0.0, atol=1e-9)


@pytest.mark.parametrize("unit", [1e-14, 1e-8, 1e6])
def test_optimistix_in_any_unit_of_y(unit):
    """y, and z, in another unit: W takes its square, and the solution is the same one."""
    circuit = CIRCUIT._replace(w_r=2.0 * CIRCUIT.w_r)
    want = oc.steady_state(circuit, Z, attracting=False).state
    found = steady_state(circuit._replace(w=circuit.w / unit**2), unit * Z)
    assert error((found.value.y / unit, found.value.a), want) < 1e-10


def test_optimistix_says_when_it_fails():
    found = steady_state(CIRCUIT, Z, max_steps=1, throw=False)
    assert found.result != optimistix.RESULTS.successful


def test_backsolve_fails_late_and_checkpoints_do_not():
    """Why the documentation steers users to checkpointed adjoints."""
    closed = to_jax(IDENTITY.circuit)._replace(tau_y=jnp.asarray(0.002), tau_a=jnp.asarray(0.002))
    z = jnp.asarray(IDENTITY.z)
    exact = jax.grad(lambda z: oc.steady_state(closed, z, method="closed_form").state.y.sum())(z)

    def relative(adjoint, taus):
        gradient = jax.grad(lambda z: last(solve(closed, z, taus * 0.002, adjoint=adjoint, tol=1e-7)).y.sum())(z)
        return float(jnp.max(jnp.abs(gradient - exact)) / jnp.max(jnp.abs(exact)))

    assert relative(diffrax.RecursiveCheckpointAdjoint(), 60.0) < 1e-4
    assert relative(diffrax.BacksolveAdjoint(), 5.0) < 10.0
    assert not relative(diffrax.BacksolveAdjoint(), 60.0) < 1e-2


def test_errors_name_the_culprit():
    with pytest.raises(ValueError, match="variant"):
        ode_term("other")
    with pytest.raises(ValueError, match="z must have shape"):
        steady_state(CIRCUIT, jnp.ones(3))
    with pytest.raises(ValueError, match="z has batch axes"):
        steady_state(CIRCUIT, jnp.ones((2, 8)))
    with pytest.raises(TypeError, match="diffrax takes weights as dense arrays, but w is function"):
        start(CIRCUIT._replace(w=lambda v: v), Z)
    with pytest.raises(TypeError, match=r"root_find takes weights as dense arrays, but w_r is function"):
        steady_state(CIRCUIT._replace(w_r=lambda v: v), Z)
    with pytest.raises(TypeError, match="z must have a real floating dtype"):
        steady_state(CIRCUIT, jnp.arange(8))
    with pytest.raises(ValueError, match=r"state0.y must have shape \(8,\), got shape \(1,\)"):
        steady_state(CIRCUIT, Z, state0=oc.State(jnp.zeros(1), jnp.ones(1)))


def test_its_examples_run() -> None:
    assert examples("organics_simulators.diffrax") == ""
