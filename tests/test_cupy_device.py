"""organics_cupy on a GPU: the engines against the core on the CPU, large circuits, memory shared with torch and jax."""

from __future__ import annotations

import importlib.util
from typing import Any

import cupy as cp
import numpy as np
import pytest
from support import VARIANTS, small_circuit

import organics_core as oc
import organics_core.weights
import organics_cupy as og
from organics_backends.cupy import GraphRecorder
from organics_core.integration import simulate_sde as core_simulate_sde
from organics_core.integration import wiener_increments

TIMES = np.asarray([0.0, 0.0004, 0.001, 0.0013])


def close(run: Any, want: Any, rtol: float = 1e-10) -> None:
    assert run.message == want.message
    for got, expected in zip(og.to_host(run.state), want.state, strict=True):
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("n", [1, 3, 33, 64])
@pytest.mark.parametrize("engine", ["kernel", "graph"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_engines_on_the_device_are_the_core(n: int, engine: str, variant: str) -> None:
    """More circuits than one block packs, different drives, every variant."""
    case = small_circuit(n)
    z = case.z * np.linspace(0.2, 1.5, 150)[:, None]
    options = {"method": "rk4", "substeps": 20, "variant": variant}
    run = og.simulate(*og.to_device((case.circuit, z, TIMES)), engine=engine, **options)
    close(run, oc.simulate(case.circuit, z, TIMES, **options))


@pytest.mark.parametrize("engine", ["kernel", "core"])
def test_noise_on_the_device(engine: str) -> None:
    """The same increments give the same paths; drawn ones repeat with their seed."""
    case = small_circuit(4)
    increments = wiener_increments(TIMES, 8, seed=1, substeps=10)
    options = {"noise": 0.05, "method": "stochastic_heun", "substeps": 10}
    on_device = og.to_device((case.circuit, case.z, TIMES))
    given = cp.asarray(increments)
    run = og.simulate_sde(*on_device, increments=given, engine=engine, **options)
    close(run, core_simulate_sde(case.circuit, case.z, TIMES, increments=increments, **options))
    first, second, other = (og.simulate_sde(*on_device, seed=s, engine=engine, **options).state.y for s in (1, 1, 2))
    assert bool((first == second).all())
    assert not bool((first == other).all())


def test_steps_are_recorded() -> None:
    """A plain step becomes a graph that can be replayed, and a step that looks at values does not."""
    x = cp.arange(4.0)

    def body() -> None:
        x[...] = x * 2.0

    replay = GraphRecorder().record(body)
    assert replay is not None
    np.testing.assert_array_equal(cp.asnumpy(x), [0, 1, 2, 3])
    replay()
    replay()
    np.testing.assert_array_equal(cp.asnumpy(x), [0, 4, 8, 12])
    assert GraphRecorder().record(lambda: float(x[1])) is None
    assert GraphRecorder().record(lambda: x.__setitem__(..., cp.asarray([1.0, 2.0, 3.0, 4.0]))) is None
    replay()
    np.testing.assert_array_equal(cp.asnumpy(x), [0, 8, 16, 24])


@pytest.mark.parametrize("n", [3, 200])
def test_loops_with_products_become_graphs(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense weights, a batch of them, sparse ones and a convolution: all recorded, with the core's numbers."""
    from cupyx.scipy.sparse import csr_matrix

    outcomes: list[bool] = []
    record = GraphRecorder.record

    def watched(recorder: GraphRecorder, function: Any) -> Any:
        replay = record(recorder, function)
        outcomes.append(replay is not None)
        return replay

    monkeypatch.setattr(GraphRecorder, "record", watched)
    case = small_circuit(n)
    times = np.linspace(0.0, 0.002, 81)
    batch = case.circuit._replace(w=np.stack([case.circuit.w, 0.5 * case.circuit.w]))
    options = {"method": "rk4", "drive": "constant"}
    for circuit in (case.circuit, batch):
        run = og.simulate(*og.to_device((circuit, case.z, times)), engine="graph", **options)
        close(run, oc.simulate(circuit, case.z, times, **options))
    pool = np.where(np.arange(n) < 2, 0.3, 0.0)
    wide = np.stack([np.roll(pool, k) for k in range(n)], axis=1)
    numbers = (0.5, 0.6, 0.2, 0.002, 0.003)
    want = oc.simulate(oc.Circuit(None, wide, *numbers), case.z, times, method="rk4")
    for weights in (csr_matrix(cp.asarray(wide)), oc.ring_convolution(cp.asarray(pool)), cp.asarray(wide)):
        large = oc.Circuit(None, weights, *numbers)
        close(og.simulate(large, cp.asarray(case.z), cp.asarray(times), method="rk4", engine="graph"), want)
    increments = wiener_increments(times, 2 * n, seed=1)
    noisy = {"noise": 0.05, "drive": "constant"}
    run = og.simulate_sde(
        *og.to_device((case.circuit, case.z, times)), increments=cp.asarray(increments), engine="core", **noisy
    )
    close(run, core_simulate_sde(case.circuit, case.z, times, increments=increments, **noisy))
    assert outcomes == [True] * 6


@pytest.mark.size
def test_ten_thousand_circuits_and_a_large_one() -> None:
    """10,000 circuits of 64 neurons; one of 20,000."""
    case = small_circuit(64)
    circuit, times = og.to_device((case.circuit, np.asarray([0.0, 0.01])), dtype="float32")
    z = cp.random.default_rng(0).standard_normal((10_000, 64), dtype=cp.float32) / 8
    run = og.simulate(circuit, z, times, method="rk4", substeps=100, drive="constant")
    assert run.success
    want = oc.simulate(
        case.circuit, cp.asnumpy(z[:3]).astype(float), np.asarray([0.0, 0.01]), method="rk4", substeps=100
    )
    np.testing.assert_allclose(cp.asnumpy(run.state.y[-1, :3]), want.state.y[-1], rtol=1e-3, atol=1e-4)
    n = 20_000
    w = cp.random.default_rng(1).random((n, n), dtype=cp.float32) / n
    large = og.Circuit(None, w, 0.5, 0.5, 0.5, 0.002, 0.002)
    z = cp.random.default_rng(2).standard_normal(n, dtype=cp.float32)
    run = og.simulate(large, z, cp.asarray([0.0, 0.06], dtype=cp.float32), method="rk4", substeps=300)
    fixed = og.steady_state(large, z, method="closed_form")
    cp.testing.assert_allclose(run.state.y[-1], fixed.state.y, rtol=1e-3, atol=1e-4)


def test_memory_is_shared_with_torch_and_jax() -> None:
    """Through DLPack, where they are installed with CUDA."""
    state = og.State(cp.arange(3.0), cp.ones(3))
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            there = og.to_torch(state)
            there.y[0] = 5.0
            torch.cuda.synchronize()
            assert float(state.y[0]) == 5.0
            assert og.from_torch(there).y.data.ptr == state.y.data.ptr
    if importlib.util.find_spec("jax") is not None:
        import jax

        if any(device.platform == "gpu" for device in jax.devices()):
            state = og.to_device(og.to_host(state), dtype="float32")  # without jax_enable_x64
            there = og.to_jax(state)
            assert there.a.unsafe_buffer_pointer() == state.a.data.ptr
            np.testing.assert_array_equal(cp.asnumpy(og.from_jax(there).a), np.ones(3))
