"""ORGaNICs inside Brian2."""

import numpy as np
import pytest
from embedding import IDENTITY, PROBLEM, error, framework, record, rectified_transient

framework("brian2", "brian2")

import brian2  # noqa: E402
from brian2 import ms, us  # noqa: E402

import organics_core as oc  # noqa: E402
from organics_simulators.brian2 import brian_group  # noqa: E402

brian2.prefs.codegen.target = "numpy"


def run(problem, duration, dt, coupling, **options):
    group, objects = brian_group(problem.circuit, problem.z, dt, coupling, **options)
    brian2.Network(objects).run(duration)
    return oc.State(np.array(group.y), np.array(group.a))


def test_operation():
    transient = error(run(PROBLEM, 5 * ms, 50 * us, "operation"), PROBLEM.transient)
    fixed = error(run(PROBLEM, 250 * ms, 200 * us, "operation"), PROBLEM.fixed)
    record("brian2", transient, fixed, note="coupling='operation', rk4 of 0.05 ms")
    assert transient < 1e-6
    assert fixed < 1e-9


def test_summed_is_of_first_order():
    errors = [error(run(PROBLEM, 5 * ms, dt, "summed"), PROBLEM.transient) for dt in (20 * us, 10 * us)]
    fixed = error(run(PROBLEM, 250 * ms, 200 * us, "summed"), PROBLEM.fixed)
    record("brian2", errors[1], fixed, note="coupling='summed', 0.01 ms, first order")
    assert errors[1] < 5e-3
    assert 1.6 < errors[0] / errors[1] < 2.4
    assert fixed < 1e-9


@pytest.mark.parametrize("coupling", ["operation", "summed"])
def test_closed_form_of_the_identity(coupling):
    assert error(run(IDENTITY, 250 * ms, 200 * us, coupling), IDENTITY.fixed) < 1e-9


@pytest.mark.parametrize("variant", ["main", "rectified", "rectified_recurrence"])
def test_generated_equations_are_the_core_s(variant):
    """One tiny Euler step of the text against the core's vector field, at states of either sign."""
    rng = np.random.default_rng(0)
    state = oc.State(rng.standard_normal(8), rng.uniform(0.1, 1.0, 8))
    h = 1e-9
    options = {"state0": state, "variant": variant, "method": "euler"}
    found = _one_step(h, options)
    expected = oc.vector_field(PROBLEM.circuit, state, PROBLEM.z, variant=variant)
    np.testing.assert_allclose((found.y - state.y) / h, expected.y, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose((found.a - state.a) / h, expected.a, rtol=1e-5, atol=1e-3)


def _one_step(h, options):
    group, objects = brian_group(PROBLEM.circuit, PROBLEM.z, h, "summed", **options)
    brian2.Network(objects).run(h * brian2.second)
    return oc.State(np.array(group.y), np.array(group.a))


@pytest.mark.parametrize("variant", ["rectified", "rectified_recurrence"])
def test_variants(variant):
    found = run(PROBLEM, 5 * ms, 50 * us, "operation", variant=variant)
    assert error(found, rectified_transient(variant)) < 1e-5


def test_monitors_and_a_drive_that_changes():
    group, objects = brian_group(PROBLEM.circuit, np.zeros(8), 0.1 * ms)
    monitor = brian2.StateMonitor(group, ["y", "a"], record=True)
    net = brian2.Network([*objects, monitor])
    net.run(10 * ms)
    assert np.abs(monitor.y).max() == 0
    group.z = PROBLEM.z
    net.run(200 * ms)
    assert error((group.y, group.a), PROBLEM.fixed) < 1e-8
    assert monitor.y.shape == (8, 2100)


def test_operation_raises_under_standalone(tmp_path):
    brian2.set_device("cpp_standalone", build_on_run=False, directory=str(tmp_path))
    try:
        with pytest.raises(NotImplementedError, match="summed"):
            brian_group(PROBLEM.circuit, PROBLEM.z, 0.1 * ms, "operation")
    finally:
        brian2.device.reinit()
        brian2.set_device("runtime")


def test_errors_name_the_culprit():
    with pytest.raises(ValueError, match="coupling"):
        brian_group(PROBLEM.circuit, PROBLEM.z, 0.1 * ms, "other")
    with pytest.raises(ValueError, match="z must have shape"):
        brian_group(PROBLEM.circuit, np.ones(3), 0.1 * ms)
    with pytest.raises(ValueError, match="dt"):
        brian_group(PROBLEM.circuit, PROBLEM.z, -1.0)
    for dt in (-1 * ms, 0 * ms, float("nan") * ms, 1 * brian2.mV, [0.1, 0.2] * ms):
        for coupling in ("operation", "summed"):
            with pytest.raises(ValueError, match="dt must be"):
                brian_group(PROBLEM.circuit, PROBLEM.z, dt, coupling)
    with pytest.raises(TypeError, match="z must hold real numbers, got dtype complex128"):
        brian_group(PROBLEM.circuit, 1j * PROBLEM.z, 0.1 * ms)
