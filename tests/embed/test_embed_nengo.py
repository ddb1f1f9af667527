"""ORGaNICs inside Nengo."""

import pickle

import numpy as np
import pytest
from embedding import IDENTITY, PROBLEM, T_FIXED, T_TRANSIENT, error, framework, record, rectified_transient

framework("nengo", "nengo")

import nengo  # noqa: E402

import organics_core as oc  # noqa: E402
from organics_simulators.nengo import ORGaNICsProcess  # noqa: E402


def network(process, z):
    with nengo.Network() as net:
        drive = nengo.Node(z)
        node = nengo.Node(process)
        nengo.Connection(drive, node, synapse=None)
        net.probe = nengo.Probe(node)
    return net


def run(problem, duration, *, dt=0.0005, substeps=20, **options):
    net = network(ORGaNICsProcess(problem.circuit, substeps=substeps, out="state", **options), problem.z)
    with nengo.Simulator(net, dt=dt, progress_bar=False) as sim:
        sim.run(duration)
        x = sim.data[net.probe][-1]
    return oc.State(x[:8], x[8:])


def test_transient_and_fixed_point():
    transient = error(run(PROBLEM, T_TRANSIENT), PROBLEM.transient)
    fixed = error(run(PROBLEM, T_FIXED, dt=0.001, substeps=10), PROBLEM.fixed)
    record("nengo", transient, fixed, note="Process in a Node, rk4 of 0.025 ms")
    assert transient < 1e-7
    assert fixed < 1e-9


def test_substeps_converge_at_the_order_of_the_method():
    errors = [error(run(PROBLEM, T_TRANSIENT, substeps=k), PROBLEM.transient) for k in (1, 2)]
    assert errors[0] / errors[1] > 8


def test_closed_form_of_the_identity():
    assert error(run(IDENTITY, T_FIXED, dt=0.001, substeps=10), IDENTITY.fixed) < 1e-9


@pytest.mark.parametrize("variant", ["rectified", "rectified_recurrence"])
def test_variants(variant):
    assert error(run(PROBLEM, T_TRANSIENT, variant=variant), rectified_transient(variant)) < 1e-6


def test_reset_gives_the_same_run():
    net = network(ORGaNICsProcess(PROBLEM.circuit), PROBLEM.z)
    with nengo.Simulator(net, progress_bar=False) as sim:
        sim.run(0.02)
        first = sim.data[net.probe].copy()
        sim.reset()
        sim.run(0.02)
        np.testing.assert_array_equal(sim.data[net.probe], first)
    with nengo.Simulator(net, progress_bar=False) as again:
        again.run(0.02)
    np.testing.assert_array_equal(again.data[net.probe], first)


def test_pickle():
    process = pickle.loads(pickle.dumps(ORGaNICsProcess(PROBLEM.circuit, z=PROBLEM.z, out="a")))
    x = np.zeros((5, 8))
    expected = ORGaNICsProcess(PROBLEM.circuit, z=PROBLEM.z, out="a").apply(x)
    np.testing.assert_array_equal(process.apply(x), expected)


def test_outputs_and_probes():
    shown = {}
    for out in ("y", "a", "rate", "state"):
        net = network(ORGaNICsProcess(PROBLEM.circuit, out=out), PROBLEM.z)
        with nengo.Simulator(net, progress_bar=False) as sim:
            sim.run(0.01)
        shown[out] = sim.data[net.probe]
    np.testing.assert_array_equal(shown["rate"], np.maximum(shown["y"], 0) ** 2)
    np.testing.assert_array_equal(shown["state"], np.concatenate([shown["y"], shown["a"]], axis=1))


def test_in_a_network_of_neurons():
    with nengo.Network(seed=0) as net:
        stimulus = nengo.Node([0.8])
        ensemble = nengo.Ensemble(100, 1)
        node = nengo.Node(ORGaNICsProcess(PROBLEM.circuit))
        nengo.Connection(stimulus, ensemble)
        nengo.Connection(ensemble, node, transform=np.ones((8, 1)))
        probe = nengo.Probe(node, synapse=0.01)
    with nengo.Simulator(net, progress_bar=False) as sim:
        sim.run(0.2)
    expected = oc.steady_state(PROBLEM.circuit, np.full(8, 0.8)).state.y
    assert np.abs(sim.data[probe][-50:].mean(axis=0) - expected).max() < 0.1


def test_errors_name_the_culprit():
    with pytest.raises(ValueError, match="out"):
        ORGaNICsProcess(PROBLEM.circuit, out="rates")
    with pytest.raises(ValueError, match="z must have shape"):
        ORGaNICsProcess(PROBLEM.circuit, z=np.ones(3))
    with pytest.raises(TypeError, match="substeps"):
        ORGaNICsProcess(PROBLEM.circuit, substeps=1.5)
    with nengo.Network() as net:
        nengo.Node(ORGaNICsProcess(PROBLEM.circuit), size_in=3)
    with pytest.raises(ValueError, match="size_in"):
        nengo.Simulator(net, progress_bar=False)
    with pytest.raises(TypeError, match="z must hold real numbers, got dtype complex128"):
        ORGaNICsProcess(PROBLEM.circuit, 1j * PROBLEM.z)
    one = oc.Circuit(None, np.ones((1, 1)), 1.0, 1.0, 1.0, 0.002, 0.002)
    with nengo.Network() as net:
        nengo.Node(ORGaNICsProcess(one), size_out=4)  # which numpy would fill with four times the same
    with pytest.raises(ValueError, match="size_out must be 1"):
        nengo.Simulator(net, progress_bar=False)
