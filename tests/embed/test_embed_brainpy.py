"""ORGaNICs inside BrainPy."""

import numpy as np
import pytest
from embedding import IDENTITY, PROBLEM, error, framework, record, rectified_transient

framework("brainpy", "jax", "brainpy")

import brainpy as bp  # noqa: E402
import brainpy.math as bm  # noqa: E402

bm.enable_x64()

import organics_core as oc  # noqa: E402
from organics_simulators.brainpy import ORGaNICs  # noqa: E402


def runner(problem, dt, **options):
    model = ORGaNICs(problem.circuit, problem.z, **options)
    return bp.DSRunner(model, monitors=["y", "a"], dt=dt, progress_bar=False)


def run(problem, duration, dt, **options):
    r = runner(problem, dt, **options)
    r.run(duration)
    return oc.State(np.asarray(r.mon.y)[-1], np.asarray(r.mon.a)[-1])


def test_transient_and_fixed_point():
    transient = error(run(PROBLEM, 5.0, 0.05), PROBLEM.transient)
    fixed = error(run(PROBLEM, 250.0, 0.2), PROBLEM.fixed)
    record("brainpy", transient, fixed, note="NeuDyn in DSRunner, rk4 of 0.05 ms")
    assert transient < 1e-7
    assert fixed < 1e-9


def test_closed_form_of_the_identity():
    assert error(run(IDENTITY, 250.0, 0.2), IDENTITY.fixed) < 1e-9


@pytest.mark.parametrize("variant", ["rectified", "rectified_recurrence"])
def test_variants(variant):
    assert error(run(PROBLEM, 5.0, 0.05, variant=variant), rectified_transient(variant)) < 1e-5


def test_monitors_and_inputs():
    r = bp.DSRunner(ORGaNICs(PROBLEM.circuit), monitors=["y", "a"], dt=0.1, progress_bar=False)
    r.run(inputs=bm.asarray(np.broadcast_to(PROBLEM.z, (50, 8))))
    assert np.asarray(r.mon.y).shape == (50, 8)
    assert error((np.asarray(r.mon.y)[-1], np.asarray(r.mon.a)[-1]), PROBLEM.transient) < 1e-6


def test_reset():
    r = runner(PROBLEM, 0.1)
    r.run(5.0)
    r.target.reset_state()
    assert error((np.asarray(r.target.y), np.asarray(r.target.a)), PROBLEM.start) == 0
