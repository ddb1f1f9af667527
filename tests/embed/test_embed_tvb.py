"""ORGaNICs inside The Virtual Brain."""

import numpy as np
import pytest
from embedding import IDENTITY, PROBLEM, error, framework, record, rectified_transient

framework("tvb", "tvb")

from tvb.datatypes.connectivity import Connectivity  # noqa: E402
from tvb.simulator import coupling, integrators, monitors, simulator  # noqa: E402

import organics_core as oc  # noqa: E402
from organics_simulators.tvb import ORGaNICs  # noqa: E402


def run(model, milliseconds, weights, *, dt=0.025, gain=0.0):
    regions = len(weights)
    brain = Connectivity(
        weights=np.asarray(weights, dtype=float),
        tract_lengths=np.zeros((regions, regions)),
        region_labels=np.array([f"region {k}" for k in range(regions)]),
        centres=np.arange(3.0 * regions).reshape(regions, 3),
        speed=np.array([4.0]),
    )
    sim = simulator.Simulator(
        model=model,
        connectivity=brain,
        coupling=coupling.Linear(a=np.array([gain]), b=np.array([0.0])),
        integrator=integrators.RungeKutta4thOrderDeterministic(dt=dt),
        monitors=(monitors.Raw(),),
        initial_conditions=model.initial_conditions(regions),
        simulation_length=milliseconds,
    ).configure()
    ((_, data),) = sim.run()
    return data[-1]  # (variable, region, unit)


ALONE = np.zeros((2, 2))


def test_transient_and_fixed_point():
    z = np.stack([PROBLEM.z, 0.5 * PROBLEM.z])
    x = run(ORGaNICs(PROBLEM.circuit, z), 5.0, ALONE)
    transient = error(x[:, 0], PROBLEM.transient)
    fixed = error(run(ORGaNICs(PROBLEM.circuit, z), 250.0, ALONE, dt=0.2)[:, 0], PROBLEM.fixed)
    record("tvb", transient, fixed, package="tvb-library", note="units as modes, rk4 of 0.025 ms")
    assert transient < 1e-7
    assert fixed < 1e-9
    assert np.abs(x[0, 0] - x[0, 1]).max() > 1e-3


def test_closed_form_of_the_identity():
    x = run(ORGaNICs(IDENTITY.circuit, IDENTITY.z), 250.0, ALONE, dt=0.2)
    assert error(x[:, 1], IDENTITY.fixed) < 1e-9


@pytest.mark.parametrize("variant", ["main", "rectified", "rectified_recurrence"])
def test_equations_are_the_core_s(variant):
    model = ORGaNICs(PROBLEM.circuit, PROBLEM.z, variant=variant)
    model.configure()
    rng = np.random.default_rng(0)
    x = np.stack([rng.standard_normal((3, 8)), rng.random((3, 8))])
    expected = oc.vector_field(PROBLEM.circuit, oc.State(*x), np.broadcast_to(PROBLEM.z, (3, 8)), variant=variant)
    np.testing.assert_allclose(model.dfun(x, np.zeros((1, 3, 8))), 1e-3 * np.stack(expected), rtol=1e-12)
    if variant != "main":
        assert error(run(model, 5.0, ALONE)[:, 0], rectified_transient(variant)) < 1e-5


def test_coupled_regions_settle_where_their_drives_say():
    """Region 1 hears region 0: its fixed point is that of the drive plus the coupling."""
    gain = 0.3
    x = run(ORGaNICs(PROBLEM.circuit, PROBLEM.z), 250.0, [[0, 0], [1.0, 0]], dt=0.1, gain=gain)
    assert error(x[:, 0], PROBLEM.fixed) < 1e-8
    expected = oc.steady_state(PROBLEM.circuit, PROBLEM.z + gain * x[0, 0]).state
    assert error(x[:, 1], expected) < 1e-6


def test_errors_name_the_culprit():
    with pytest.raises(ValueError, match="z must have shape"):
        ORGaNICs(PROBLEM.circuit, np.ones(3))
    with pytest.raises(ValueError, match="variant"):
        ORGaNICs(PROBLEM.circuit, PROBLEM.z, variant="other")
    with pytest.raises(ValueError, match="z must be finite"):
        ORGaNICs(PROBLEM.circuit, np.full(8, np.nan))
    with pytest.raises(TypeError, match="z must hold real numbers, got dtype complex128"):
        ORGaNICs(PROBLEM.circuit, 1j * PROBLEM.z)
