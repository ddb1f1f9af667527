"""ORGaNICs inside PyRates."""

import numpy as np
import pytest
from embedding import IDENTITY, PROBLEM, T_TRANSIENT, error, framework, record

framework("pyrates", "pyrates")

from pyrates import clear_frontend_caches  # noqa: E402

import organics_core as oc  # noqa: E402
from organics_simulators.pyrates import run, to_template  # noqa: E402


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # PyRates writes its generated code where it runs
    clear_frontend_caches()


def last(trajectory):
    return oc.State(*(part[-1] for part in trajectory.state))


def test_transient_and_fixed_point():
    early = run(PROBLEM.circuit, PROBLEM.z, T_TRANSIENT, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(early.times[[0, -1]], [0.0, T_TRANSIENT], atol=1e-12)
    transient = error(last(early), PROBLEM.transient)
    fixed = error(last(run(PROBLEM.circuit, PROBLEM.z, 0.25, rtol=1e-10, atol=1e-12)), PROBLEM.fixed)
    record("pyrates", transient, fixed, note="DOP853 of scipy, float64")
    assert transient < 1e-10
    assert fixed < 1e-9


@pytest.mark.parametrize("method", ["RK45", "DOP853", "LSODA", "BDF", "Radau"])
def test_every_sample_of_every_method(method):
    """PyRates hands out one array again and again; some of scipy's methods keep it."""
    found = run(PROBLEM.circuit, PROBLEM.z, T_TRANSIENT, method=method, rtol=1e-9, atol=1e-12)
    ours = oc.simulate(PROBLEM.circuit, PROBLEM.z, found.times, rtol=1e-10, atol=1e-12)
    assert error(found.state, ours.state) < 1e-7


def test_heun_is_of_second_order():
    coarse, fine = (
        error(last(run(PROBLEM.circuit, PROBLEM.z, T_TRANSIENT, step_size=h, solver="heun")), PROBLEM.transient)
        for h in (1e-4, 5e-5)
    )
    assert 3.5 < coarse / fine < 4.6


def test_closed_form_of_the_identity():
    assert error(last(run(IDENTITY.circuit, IDENTITY.z, 0.25)), IDENTITY.fixed) < 1e-6


def field_of(circuit, z, name):
    template = to_template(circuit, z, name=name)
    field, arguments, names, _ = template.get_run_func(
        f"{name}_field", step_size=1e-4, verbose=False, float_precision="float64", in_place=False, clear=False
    )
    return lambda x: np.array(field(0.0, x, *arguments[2:])), dict(zip(names, arguments, strict=True))


def test_generated_equations_are_the_core_s():
    field, _ = field_of(PROBLEM.circuit, PROBLEM.z, "equations")
    rng = np.random.default_rng(0)
    for _ in range(5):
        state = oc.State(rng.standard_normal(8), rng.uniform(0.01, 2.0, 8))
        expected = oc.vector_field(PROBLEM.circuit, state, PROBLEM.z)
        np.testing.assert_allclose(field(np.concatenate(state)), np.concatenate(expected), rtol=1e-10, atol=1e-9)


def test_tiny_weights_are_not_dropped():
    w_r = PROBLEM.circuit.w_r.copy()
    w_r[2, 5] = 1e-8
    _, arguments = field_of(PROBLEM.circuit._replace(w_r=w_r), PROBLEM.z, "tiny")
    matrices = [value for name, value in arguments.items() if "weight" in name]
    assert any(np.array_equal(matrix, w_r) for matrix in matrices)


def test_a_start_of_one_s_own():
    run_from_there = run(PROBLEM.circuit, PROBLEM.z, 0.01, state0=PROBLEM.fixed)
    assert error(last(run_from_there), PROBLEM.fixed) < 1e-8


def test_errors_name_the_culprit():
    with pytest.raises(ValueError, match="z must have shape"):
        to_template(PROBLEM.circuit, np.ones(3))
    with pytest.raises(ValueError, match=r"state0\.a must be positive"):
        to_template(PROBLEM.circuit, PROBLEM.z, state0=oc.State(np.zeros(8), np.zeros(8)))
    with pytest.raises(ValueError, match="duration"):
        run(PROBLEM.circuit, PROBLEM.z, -1.0)
    with pytest.raises(ValueError, match=r"duration must be a multiple of step_size, 0\.003, got 0\.01"):
        run(PROBLEM.circuit, PROBLEM.z, 0.01, step_size=0.003)
