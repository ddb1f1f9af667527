"""ORGaNICs inside scipy.integrate."""

import numpy as np
import pytest
from embedding import IDENTITY, PROBLEM, T_FIXED, T_TRANSIENT, error, examples, framework, record, rectified_transient

framework("scipy", "scipy")

from scipy.integrate import odeint, solve_ivp  # noqa: E402
from scipy.optimize import approx_fprime  # noqa: E402
from scipy.sparse import csr_array  # noqa: E402

import organics_core as oc  # noqa: E402
from organics_simulators.scipy import to_ivp  # noqa: E402

TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def last(run, unpack):
    assert run.success, run.message
    return oc.State(*(part[-1] for part in unpack(run.y)))


def test_transient_and_fixed_point():
    fun, x0, unpack = to_ivp(PROBLEM.circuit, PROBLEM.z)
    transient = error(last(solve_ivp(fun, (0, T_TRANSIENT), x0, method="DOP853", **TIGHT), unpack), PROBLEM.transient)
    fixed = error(last(solve_ivp(fun, (0, T_FIXED), x0, method="Radau", jac=fun.jac, **TIGHT), unpack), PROBLEM.fixed)
    record("scipy", transient, fixed, note="DOP853, Radau with its Jacobian")
    assert transient < 1e-9
    assert fixed < 1e-9


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("method", ["RK45", "RK23", "DOP853", "LSODA", "BDF", "Radau"])
def test_every_method_with_and_without_columns(method, vectorized):
    fun, x0, unpack = to_ivp(PROBLEM.circuit, PROBLEM.z)
    run = solve_ivp(fun, (0, T_TRANSIENT), x0, method=method, vectorized=vectorized, rtol=1e-7, atol=1e-9)
    assert error(last(run, unpack), PROBLEM.transient) < 1e-5


def test_columns_are_independent():
    fun, x0, _ = to_ivp(PROBLEM.circuit, PROBLEM.z)
    x = x0[:, None] + np.random.default_rng(0).random((16, 5))
    one_by_one = np.stack([fun(0.0, x[:, k]) for k in range(5)], axis=1)
    np.testing.assert_allclose(fun(0.0, x), one_by_one, rtol=1e-12)


@pytest.mark.parametrize("variant", ["main", "rectified", "rectified_recurrence"])
def test_jacobian_is_the_derivative(variant):
    fun, x0, _ = to_ivp(PROBLEM.circuit, PROBLEM.z, variant=variant)
    x = x0 + np.random.default_rng(1).uniform(0.1, 1.0, 16)
    measured = approx_fprime(x, lambda x: fun(0.0, x), 1e-7)
    np.testing.assert_allclose(fun.jac(0.0, x), measured, rtol=1e-4, atol=1e-2)


def test_jacobian_saves_evaluations():
    fun, x0, _ = to_ivp(PROBLEM.circuit, PROBLEM.z)

    def evaluations(method, **options):
        calls = []
        run = solve_ivp(lambda t, x: calls.append(t) or fun(t, x), (0, 0.05), x0, method=method, rtol=1e-8, **options)
        assert run.success
        return len(calls)

    for method in ("BDF", "Radau"):
        assert evaluations(method, jac=fun.jac) < evaluations(method)


def test_odeint():
    fun, x0, unpack = to_ivp(PROBLEM.circuit, PROBLEM.z)
    times = [0.0, T_TRANSIENT, T_FIXED]
    states = unpack(odeint(fun, x0, times, Dfun=fun.jac, tfirst=True, **TIGHT).T)
    assert error((states.y[1], states.a[1]), PROBLEM.transient) < 1e-8
    assert error((states.y[2], states.a[2]), PROBLEM.fixed) < 1e-8


def test_closed_form_of_the_identity():
    fun, x0, unpack = to_ivp(IDENTITY.circuit, IDENTITY.z)
    run = solve_ivp(fun, (0, T_FIXED), x0, method="LSODA", jac=fun.jac, **TIGHT)
    assert error(last(run, unpack), IDENTITY.fixed) < 1e-8


def test_drive_of_time():
    def z(t):
        return PROBLEM.z * (1 + 0.5 * np.sin(2 * np.pi * 200 * t))

    fun, x0, unpack = to_ivp(PROBLEM.circuit, z)
    ours = oc.simulate(PROBLEM.circuit, z, np.array([0.0, T_TRANSIENT]), **TIGHT)
    run = solve_ivp(fun, (0, T_TRANSIENT), x0, method="BDF", jac=fun.jac, vectorized=True, rtol=1e-9, atol=1e-12)
    assert error(last(run, unpack), oc.State(*(part[-1] for part in ours.state))) < 1e-6


@pytest.mark.parametrize("variant", ["rectified", "rectified_recurrence"])
def test_variants(variant):
    fun, x0, unpack = to_ivp(PROBLEM.circuit, PROBLEM.z, variant=variant)
    run = solve_ivp(fun, (0, T_TRANSIENT), x0, **TIGHT)
    assert error(last(run, unpack), rectified_transient(variant)) < 1e-8


def test_start_state():
    fun, x0, unpack = to_ivp(PROBLEM.circuit, PROBLEM.z, state0=PROBLEM.fixed)
    assert error(unpack(x0), PROBLEM.fixed) == 0
    assert np.abs(fun(0.0, x0)).max() < 1e-6


def test_errors_name_the_culprit():
    with pytest.raises(ValueError, match="z must have shape"):
        to_ivp(PROBLEM.circuit, np.ones(3))
    with pytest.raises(ValueError, match="w has batch axes"):
        to_ivp(PROBLEM.circuit._replace(w=PROBLEM.circuit.w[None]), PROBLEM.z)
    with pytest.raises(ValueError, match="variant"):
        to_ivp(PROBLEM.circuit, PROBLEM.z, variant="other")
    with pytest.raises(TypeError, match="scipy takes weights as dense arrays, but w is scipy"):
        to_ivp(PROBLEM.circuit._replace(w=csr_array(PROBLEM.circuit.w)), PROBLEM.z)
    with pytest.raises(ValueError, match=r"state0\.y must have shape \(8,\), got shape \(3, 8\)"):
        to_ivp(PROBLEM.circuit, PROBLEM.z, state0=oc.State(np.ones((3, 8)), np.ones((3, 8))))
    with pytest.raises(ValueError, match=r"state0\.a must be finite"):
        to_ivp(PROBLEM.circuit, PROBLEM.z, state0=oc.State(np.ones(8), np.full(8, np.nan)))


def test_arrays_may_change_after_the_call() -> None:
    """The field has copies; before there were such of the vectors alone."""
    w_r, w, z = np.array([[0.5, 0.1], [0.2, 0.3]]), np.ones((2, 2)), np.array([1.0, 0.5])
    circuit = oc.Circuit(w_r, w, np.ones(2), np.ones(2), np.ones(2), np.full(2, 0.002), np.full(2, 0.004))
    fun, x0, _ = to_ivp(circuit, z)
    before = fun(0.0, x0 + 0.5)
    for array in (*circuit, z):
        array *= 2.0
    np.testing.assert_array_equal(fun(0.0, x0 + 0.5), before)


def test_its_examples_run() -> None:
    assert examples("organics_simulators.scipy") == ""
