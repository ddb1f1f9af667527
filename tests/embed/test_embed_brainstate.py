"""ORGaNICs inside brainstate."""

import numpy as np
import pytest
from embedding import IDENTITY, PROBLEM, error, framework, record, rectified_transient

framework("brainstate", "jax", "brainstate", "brainunit")

import jax  # noqa: E402

jax.config.update("jax_enable_x64", True)

import brainstate  # noqa: E402
import brainunit as u  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import organics_core as oc  # noqa: E402
from organics_simulators.brainstate import ORGaNICs  # noqa: E402


def run(problem, steps, dt, batch_size=None, **options):
    model = ORGaNICs(problem.circuit, **options)
    model.init_state(batch_size)
    z = jnp.asarray(problem.z) if batch_size is None else jnp.broadcast_to(problem.z, (batch_size, 8))
    with brainstate.environ.context(dt=dt):
        brainstate.transform.for_loop(lambda k: model.update(z), jnp.arange(steps))
    return oc.State(np.asarray(model.y.value), np.asarray(model.a.value))


def test_transient_and_fixed_point():
    transient = error(run(PROBLEM, 100, 0.05 * u.ms), PROBLEM.transient)
    fixed = error(run(PROBLEM, 1250, 0.2 * u.ms), PROBLEM.fixed)
    record("brainstate", transient, fixed, note="rk4 of 0.05 ms")
    assert transient < 1e-7
    assert fixed < 1e-9


def test_closed_form_of_the_identity():
    assert error(run(IDENTITY, 1250, 0.2 * u.ms), IDENTITY.fixed) < 1e-9


@pytest.mark.parametrize("dt", [0.1, 0.1 * u.ms, 1e-4 * u.second, 100 * u.us])
def test_units_and_plain_milliseconds(dt):
    assert error(run(PROBLEM, 50, dt), PROBLEM.transient) < 1e-6


def test_batches_and_substeps():
    found = run(PROBLEM, 10, 0.5 * u.ms, batch_size=3, substeps=10)
    assert found.y.shape == (3, 8)
    assert error((found.y[2], found.a[2]), PROBLEM.transient) < 1e-7


@pytest.mark.parametrize("variant", ["rectified", "rectified_recurrence"])
def test_variants(variant):
    assert error(run(PROBLEM, 100, 0.05 * u.ms, variant=variant), rectified_transient(variant)) < 1e-5


def test_hidden_states_and_derivative():
    model = ORGaNICs(PROBLEM.circuit)
    model.init_state()
    assert set(model.states(brainstate.HiddenState).keys()) == {("y",), ("a",)}
    slope = model.derivative(jnp.asarray(PROBLEM.z))
    expected = oc.vector_field(PROBLEM.circuit, PROBLEM.start, PROBLEM.z)
    np.testing.assert_allclose(slope.y.to_decimal(u.hertz), expected.y, rtol=1e-12)
    with brainstate.environ.context(dt=0.1 * u.ms):
        model.update(jnp.asarray(PROBLEM.z))
    model.reset_state()
    assert error((model.y.value, model.a.value), PROBLEM.start) == 0
