"""organics_cupy without a GPU: its kernel's text compiled for the CPU, numpy in place of cupy elsewhere."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ahead
import array_api_compat.numpy
import numpy as np
import pytest
import standin
from support import ELSEWHERE, VARIANTS, run_python, small_circuit

import organics_core as oc
import organics_core.weights
from organics_backends import products
from organics_backends.graphs import RecordingBackend
from organics_core.integration import simulate_sde as core_simulate_sde
from organics_core.integration import wiener_increments
from organics_core.methods import INTEGRATORS

HERE = Path(__file__).parent
TIMES = np.asarray([0.0, 0.0004, 0.001, 0.0013])
MAIN = """
extern "C" void on_cpu(unsigned blocks, unsigned threads, void **v) {
  launch(blocks, threads, organics_run, (const REAL *)v[0], (long long)v[1], (const REAL *)v[2], (long long)v[3],
         (const REAL *)v[4], (long long)v[5], (const REAL *)v[6], (const REAL *)v[7], (const REAL *)v[8],
         (const REAL *)v[9], (const REAL *)v[10], (const REAL *)v[11], (const REAL *)v[12], (const REAL *)v[13],
         (long long)v[14], (long long)v[15], (unsigned long long)v[16], (long long)v[17], (REAL *)v[18],
         (REAL *)v[19]);
}
"""


@pytest.fixture(scope="module")
def og() -> Any:
    return standin.organics_cupy()


PRODUCTS = """
extern "C" void dense_on_cpu(unsigned blocks, unsigned threads, void **v) {
  launch(blocks, threads, organics_dense, (const REAL *)v[0], (long long)v[1], (const REAL *)v[2], (REAL *)v[3],
         (long long)v[4], (long long)v[5], (long long)v[6]);
}
extern "C" void sparse_on_cpu(unsigned blocks, unsigned threads, void **v) {
  launch(blocks, threads, organics_sparse, (const REAL *)v[0], (const int *)v[1], (const int *)v[2],
         (const REAL *)v[3], (REAL *)v[4], (long long)v[5]);
}
"""


class OnCpu:
    """A ``launch`` that compiles the kernel's text with the C++ compiler and runs its threads in turn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.libraries: dict[str, Any] = {}

    def library(self, text: str) -> Any:
        if text not in self.libraries:
            compiler = shutil.which("c++") or shutil.which("g++")
            assert compiler, "these tests compile the kernel with a C++ compiler, and none was found"
            stem = self.folder / hashlib.sha256(text.encode()).hexdigest()[:16]
            main = MAIN if "organics_run" in text else PRODUCTS
            stem.with_suffix(".cpp").write_text(f'#include "cuda_on_cpu.h"\n{text}{main}')
            command = [compiler, "-std=c++17", "-O0", "-shared", "-fPIC", "-w", f"-I{HERE / 'cuda_on_cpu'}"]
            subprocess.run([*command, "-o", f"{stem}.so", f"{stem}.cpp"], check=True)
            self.libraries[text] = ctypes.CDLL(f"{stem}.so")
        return self.libraries[text]

    def __call__(self, text: str, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        self.run(text, "on_cpu", blocks, threads, arguments)

    def product(self, text: str, name: str, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        """The ``launch`` of the products' kernels."""
        self.run(text, name.replace("organics_", "") + "_on_cpu", blocks, threads, arguments)

    def run(self, text: str, name: str, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        real = "float64" if "#define REAL double" in text else "float32"
        for value in arguments:
            if isinstance(value, np.ndarray):
                assert value.flags.c_contiguous
                assert value.dtype in (real, "int32")  # the kernel takes addresses: nobody else would notice
            else:
                assert value.dtype.itemsize == 8
        values = [value.ctypes.data if isinstance(value, np.ndarray) else int(value) for value in arguments]
        getattr(self.library(text), name)(blocks, threads, (ctypes.c_uint64 * len(values))(*values))


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> OnCpu:
    return OnCpu(tmp_path_factory.mktemp("kernels"))


def batch_of_circuits(count: int, n: int, seed: int = 0, dtype: str = "float64") -> tuple[oc.Circuit, np.ndarray]:
    """Circuits that all differ, and a drive for each."""
    cases = [small_circuit(n, seed=seed + k) for k in range(count)]
    fields = (np.stack([case.circuit[i] for case in cases]).astype(dtype) for i in range(7))
    return oc.Circuit(*fields), np.stack([case.z for case in cases]).astype(dtype)


def close(run: Any, want: Any, rtol: float = 1e-11) -> None:
    assert run.message == want.message
    for got, expected in zip(run.state, want.state, strict=True):
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("method", [name for name, tableau in INTEGRATORS.items() if tableau.error is None])
@pytest.mark.parametrize("variant", VARIANTS)
def test_kernel_is_the_core(og: Any, on_cpu: Any, method: str, variant: str) -> None:
    """Every method and variant, for circuits that all differ: the core's numbers."""
    circuit, z = batch_of_circuits(3, 5)
    options = {"method": method, "variant": variant, "substeps": 3, "drive": "constant"}
    run = og.simulate(circuit, z, TIMES, engine="kernel", launch=on_cpu, **options)
    close(run, oc.simulate(circuit, z, TIMES, **options))


@pytest.mark.parametrize("method", [name for name, tableau in INTEGRATORS.items() if tableau.error is None])
def test_graph_engine_is_the_core(og: Any, method: str) -> None:
    """Constant, sampled and callable drives, every method of fixed steps."""
    circuit, z = batch_of_circuits(2, 3)
    for drive in (z, np.stack([z * factor for factor in (1.0, 0.5, 0.2, -1.0)]), lambda t: z * np.cos(300 * t)):
        for substeps in (1, 3):
            how = "sampled" if getattr(drive, "ndim", 0) == 3 else "auto"
            options = {"method": method, "substeps": substeps, "variant": "rectified", "drive": how}
            run = og.simulate(circuit, drive, TIMES, engine="graph", **options)
            close(run, oc.simulate(circuit, drive, TIMES, **options), 1e-12)
    with pytest.raises(ValueError, match="engine 'graph' takes methods of fixed steps, not 'dopri5'"):
        og.simulate(circuit, z, TIMES, engine="graph")
    for options in ({"dense": True}, {"events": [lambda t, s: s.y[..., 0]]}, {"until": "steady"}):
        with pytest.raises(ValueError, match=f"engine 'graph' has no {next(iter(options))}; use 'core'"):
            og.simulate(circuit, z, TIMES, method=method, engine="graph", **options)
    for engine in ("auto", "kernel", "graph"):
        with pytest.raises(TypeError, match="simulate has no argument 'event'"):
            og.simulate(circuit, z, TIMES, method=method, engine=engine, event=[])


def test_large_circuits_are_the_core(og: Any) -> None:
    """Weights known by their products: a sparse matrix and a convolution, drives constant and sampled."""
    from scipy.sparse import csr_array

    n = 12
    rng = np.random.default_rng(0)
    w_r = np.where(rng.random((n, n)) < 0.3, rng.standard_normal((n, n)), 0.0) / 3
    kernel = np.concatenate([[0.5, 0.3], np.zeros(n - 3), [0.3]])
    w = np.stack([np.roll(kernel, k) for k in range(n)], axis=1)
    numbers = (0.5, 0.6, 0.2, 0.002, 0.003)
    large = oc.Circuit(csr_array(w_r), oc.ring_convolution(kernel), *numbers)
    dense = oc.Circuit(w_r, w, *numbers)
    z = rng.standard_normal(n)
    start = oc.State(rng.standard_normal(n), rng.random(n))
    for drive in (z, np.stack([z, -z, 0.5 * z, z])):
        for options in ({"method": "rk4", "substeps": 3}, {"method": "euler", "state0": start, "variant": "rectified"}):
            options = {**options, "drive": "sampled" if drive.ndim == 2 else "constant"}
            close(og.simulate(large, drive, TIMES, **options), oc.simulate(dense, drive, TIMES, **options))
    with pytest.raises(ValueError, match="engine 'kernel' cannot run this simulation: its weights must be plain"):
        og.simulate(large, z, TIMES, method="rk4", engine="kernel")


@pytest.mark.parametrize("n", [1, 7, 33, 64])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_kernel_serves_every_size(og: Any, on_cpu: Any, n: int, dtype: str) -> None:
    """Sizes that fill the lanes of a neuron, and sizes that do not; more circuits than one block packs."""
    layout = og.simulation.kernel.geometry(n, dtype)
    count = min(layout.pack, 40) + 1
    circuit, z = batch_of_circuits(1, n, dtype=dtype)
    circuit = circuit._replace(b=np.linspace(0.5, 1.0, count, dtype=dtype)[:, None])
    times = TIMES.astype(dtype)
    run = og.simulate(circuit, z, times, method="heun", engine="kernel", launch=on_cpu)
    close(run, oc.simulate(circuit, z, times, method="heun"), 1e-11 if dtype == "float64" else 2e-5)


@pytest.fixture(scope="module")
def nvrtc() -> Any:
    """CUDA's own compiler, which needs no GPU."""
    library = ahead.nvrtc()
    if library is None:
        where = "" if sys.platform == "linux" else ELSEWHERE
        pytest.skip(f"{where}CUDA's run-time compiler is missing: pip install nvidia-cuda-nvrtc")
    return library


@pytest.mark.parametrize(("n", "dtype"), [(1, "float32"), (64, "float32"), (128, "float32"), (64, "float64")])
@pytest.mark.parametrize(
    ("method", "variant", "noise"),
    [("rk4", "main", "none"), ("euler", "rectified", "drawn"), ("heun", "rectified_recurrence", "given")],
)
def test_kernel_compiles_for_an_h100(
    og: Any, nvrtc: Any, n: int, dtype: str, method: str, variant: str, noise: str
) -> None:
    """Nothing is spilled, and the registers of a block are there."""
    kernel = og.simulation.kernel
    layout = kernel.geometry(n, dtype)
    text = kernel.source(layout, INTEGRATORS[method], variant, True, noise)
    cost = ahead.nvrtc_cost(nvrtc, text, "-std=c++17")
    assert cost.stack == 0
    assert 0 < cost.registers * layout.threads <= 2**16
    assert cost.shared <= 48 * 1024


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lanes", [1, 32])
def test_products_compile_for_an_h100(nvrtc: Any, dtype: str, lanes: int) -> None:
    """For one vector and for several."""
    for vectors in (1, products.VECTORS):
        cost = ahead.nvrtc_cost(nvrtc, products.source(dtype, lanes, vectors), "-std=c++17")
        assert cost.stack == 0
        assert 0 < cost.registers * products.THREADS <= 2**16


def test_what_does_not_compile_is_reported(nvrtc: Any) -> None:
    """Otherwise the two tests above could not fail."""
    with pytest.raises(RuntimeError, match='identifier "nothing" is undefined'):
        ahead.nvrtc_cost(nvrtc, "__global__ void f(int *x) { *x = nothing; }")


def test_mixed_precisions_meet_in_one(og: Any, on_cpu: Any) -> None:
    """A circuit in float32 and a drive in float64: the kernel takes addresses, so all must have been converted."""
    circuit, z = batch_of_circuits(2, 3, dtype="float32")
    options = {"method": "rk4", "drive": "constant"}
    run = og.simulate(circuit, z.astype("float64"), TIMES, engine="kernel", launch=on_cpu, **options)
    close(run, oc.simulate(circuit, z.astype("float64"), TIMES, **options))
    options = {"noise": np.full(6, 0.05, dtype="float32"), "drive": "constant"}
    increments = wiener_increments(TIMES, 6, seed=3).astype("float32")
    run = og.simulate_sde(
        circuit, z.astype("float64"), TIMES, increments=increments, engine="kernel", launch=on_cpu, **options
    )
    close(run, core_simulate_sde(circuit, z.astype("float64"), TIMES, increments=increments, **options))


def test_sampled_drive_shared_weights_and_a_start(og: Any, on_cpu: Any) -> None:
    """A drive that changes in time, shared by a batch that differs in b alone; two batch axes."""
    case = small_circuit(4)
    rng = np.random.default_rng(0)
    circuit = case.circuit._replace(b=rng.uniform(0.3, 1.0, (2, 3, 4)))
    z = rng.standard_normal((len(TIMES), 4))
    for w_r in (circuit.w_r, None):
        options = {"method": "rk4", "substeps": 2, "state0": case.state, "drive": "sampled"}
        run = og.simulate(circuit._replace(w_r=w_r), z, TIMES, engine="kernel", launch=on_cpu, **options)
        want = oc.simulate(circuit._replace(w_r=w_r), z, TIMES, **options)
        assert want.state.y.shape == (len(TIMES), 2, 3, 4)
        close(run, want)


def test_divergence_is_reported(og: Any, on_cpu: Any) -> None:
    """A member that is no longer finite says so; the others go on."""
    circuit, z = batch_of_circuits(2, 3)
    state0 = oc.State(np.stack([np.full(3, 1e200), np.zeros(3)]), np.ones((2, 3)))
    options = {"method": "euler", "state0": state0, "drive": "constant"}
    run = og.simulate(circuit, z, TIMES, engine="kernel", launch=on_cpu, **options)
    with np.errstate(all="ignore"):
        close(run, oc.simulate(circuit, z, TIMES, **options))
    assert run.status.tolist() == [3, 0]


@pytest.mark.parametrize("method", ["euler_maruyama", "stochastic_heun"])
def test_given_noise_gives_the_core_s_path(og: Any, on_cpu: Any, method: str) -> None:
    """With the same increments, one set for all circuits or one each, the paths are the core's."""
    circuit, z = batch_of_circuits(2, 3)
    for batch in ((), (2,)):
        increments = wiener_increments(TIMES, 6, seed=3, substeps=2, batch=batch)
        options = {"noise": 0.05, "method": method, "substeps": 2, "increments": increments, "drive": "constant"}
        run = og.simulate_sde(circuit, z, TIMES, engine="kernel", launch=on_cpu, **options)
        close(run, core_simulate_sde(circuit, z, TIMES, **options))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 3), (33, 40), (64, 64)])
def test_products_that_a_graph_can_hold(on_cpu: Any, dtype: str, rows: int, columns: int) -> None:
    """One vector, several that share a matrix, and a matrix for each; a sparse matrix with an empty row."""
    from scipy.sparse import csr_array

    rng = np.random.default_rng(rows)
    tolerance = {"rtol": 1e-12 if dtype == "float64" else 2e-5, "atol": 1e-12 if dtype == "float64" else 2e-5}
    for first, second in (((), ()), ((), (5,)), ((), (2, 3)), ((2, 3), (2, 3))):
        matrix = rng.standard_normal((*first, rows, columns)).astype(dtype)
        vector = rng.standard_normal((*second, columns)).astype(dtype)
        found = products.dense_product(matrix, vector, on_cpu.product)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, (matrix @ vector[..., None])[..., 0], **tolerance)
        found = products.dense_product(np.asfortranarray(matrix), vector, on_cpu.product)
        np.testing.assert_allclose(found, (matrix @ vector[..., None])[..., 0], **tolerance)
    sparse = matrix[0, 0] * (rng.random((rows, columns)) < 0.4)
    sparse[0] = 0.0
    operator = products.sparse_operator(csr_array(sparse.astype("float64")), vector.dtype, on_cpu.product)
    np.testing.assert_allclose(operator.function(vector[0, 0]), sparse @ vector[0, 0], **tolerance)


def test_products_that_are_left_to_the_library(on_cpu: Any) -> None:
    """Other dtypes, matrices that broadcast, and large batches."""
    ones = np.ones((2, 2))
    for matrix, vector in (
        (ones, np.ones(2, dtype="float32")),
        (ones.astype(complex), np.ones(2, dtype=complex)),
        (np.ones((3, 2, 2)), np.ones(2)),
        (np.ones((0, 2)), np.ones(2)),
        (np.broadcast_to(1.0, (1000, 1000)), np.broadcast_to(1.0, (200, 1000))),
    ):
        assert products.dense_product(matrix, vector, on_cpu.product) is None


def test_recorded_loops_need_no_product_of_the_library(on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on cupy, a recorder that a call of BLAS breaks: the core's loops and the graph engine get through it."""

    class Backend(RecordingBackend):
        def recordable_product(self, matrix: Any, vector: Any) -> Any:
            return products.dense_product(matrix, vector, on_cpu.product)

    recorder = NoBlas(monkeypatch)
    monkeypatch.setitem(organics_core.backend._LOADED, "numpy", Backend(recorder))
    circuit, z = batch_of_circuits(2, 5)
    shared = circuit._replace(w=circuit.w[0], w_r=circuit.w_r[0])
    times = np.linspace(0.0, 0.002, 41)
    og = standin.organics_cupy()

    def runs() -> list[Any]:
        found = [core_simulate_sde(c, z, times, noise=0.05, seed=1, drive="constant").state for c in (circuit, shared)]
        options = {"method": "rk4", "drive": "constant", "engine": "graph"}
        found += [og.simulate(c, z, times, **options).state for c in (circuit, shared)]
        large = oc.Circuit(*shared._replace(b=0.5, b0=0.5, sigma=0.3, tau_y=0.002, tau_a=0.002))
        found.append(og.simulate(large, z[0], times, method="rk4").state)
        return found

    recorded = runs()
    assert (recorder.recordings, recorder.replays) == (5, 5 * 39)  # the first of 40 steps is not replayed
    monkeypatch.setitem(organics_core.backend._LOADED, "numpy", organics_core.backend.GenericBackend())
    for got, want in zip(recorded, runs(), strict=True):
        for part, expected in zip(got, want, strict=True):
            np.testing.assert_allclose(part, expected, rtol=1e-10, atol=1e-12)


class NoBlas:
    """Records as tests of graphs do, but neither records nor replays products of the library."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recordings = self.replays = 0
        self.monkeypatch = monkeypatch

    def record(self, function: Any) -> Any:
        self.recordings += 1

        def replay() -> None:
            self.replays += 1
            with self.monkeypatch.context() as patch:
                patch.setattr(array_api_compat.numpy, "matmul", self.refuse)
                function()

        return replay

    @staticmethod
    def refuse(*_: Any) -> Any:
        raise NotImplementedError("calls of BLAS cannot be recorded")


def test_drawn_noise_is_normal_and_repeats(og: Any, on_cpu: Any) -> None:
    """The kernel's own numbers have the moments of a normal distribution; the seed decides them, the batch does not."""
    n, count = 32, 128
    zero = np.zeros((n, n))
    # no input, slow neurons: what is left after one step is the kick itself
    circuit = oc.Circuit(None, zero, 1.0, 1.0, 1.0, 1e9, 1e9)
    times = np.asarray([0.0, 1.0, 2.0])

    def kicks(seed: int, size: int) -> np.ndarray:
        z = np.zeros((size, n))
        run = og.simulate_sde(circuit, z, times, noise=1.0, seed=seed, engine="kernel", launch=on_cpu)
        return np.diff(np.concatenate(run.state, axis=-1), axis=0)

    found = kicks(7, count)
    np.testing.assert_array_equal(found, kicks(7, count))
    np.testing.assert_allclose(found[:, :5], kicks(7, 5), atol=1e-9)
    assert not np.any(found == kicks(8, count))
    numbers = found.ravel()
    size = numbers.size
    assert np.unique(np.round(numbers, 12)).size > 0.999 * size
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(numbers**power) - moment) < 4.5 * np.sqrt(spread / size)
    y, a = found[..., :n].ravel(), found[..., n:].ravel()
    for left, right in ((y, a), (found[0].ravel(), found[1].ravel()), (y[:-1], y[1:])):
        assert abs(np.mean(left * right)) < 4.5 / np.sqrt(left.size)


PHILOX = """
extern "C" void philox_on_cpu(unsigned *c, unsigned k0, unsigned k1) { philox(c, k0, k1); }
"""


def test_philox_gives_the_published_numbers(og: Any, on_cpu: Any) -> None:
    """The known answers of its authors' distribution (Random123, kat_vectors, philox4x32-10)."""
    kernel = og.simulation.kernel
    text = kernel.source(kernel.geometry(2, "float64"), INTEGRATORS["euler"], "main", False, "drawn") + PHILOX
    library = on_cpu.library(text)
    ones = 0xFFFFFFFF
    for counter, key, want in (
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ):
        numbers = (ctypes.c_uint32 * 4)(*counter)
        library.philox_on_cpu(numbers, *map(ctypes.c_uint32, key))
        assert tuple(numbers) == want


def test_auto_takes_the_core_where_there_is_no_gpu(og: Any) -> None:
    """numpy arrays, adaptive methods and drives in time go through the core, with the same answers."""
    circuit, z = batch_of_circuits(2, 3)
    for options in ({}, {"method": "rk4", "substeps": 2}):
        close(og.simulate(circuit, z, TIMES, drive="constant", **options), oc.simulate(circuit, z, TIMES, **options), 0)
    run = og.simulate_sde(circuit, z, TIMES, noise=0.1, seed=2)
    close(run, core_simulate_sde(circuit, z, TIMES, noise=0.1, seed=2), 0)


def test_the_kernel_says_what_it_cannot_do(og: Any) -> None:
    """Asked for by name, it names the obstacle."""
    circuit, z = batch_of_circuits(2, 3)
    big = oc.Circuit(None, np.ones((300, 300)), 1.0, 1.0, 1.0, 0.002, 0.002)
    for call, message in (
        (lambda: og.simulate(circuit, z, TIMES, engine="kernel"), "chooses its own steps"),
        (lambda: og.simulate(circuit, lambda t: z, TIMES, method="rk4", engine="kernel"), "not a function of time"),
        (lambda: og.simulate(big, np.ones(300), TIMES, method="rk4", engine="kernel"), "300 neurons in float64"),
        (lambda: og.simulate_sde(circuit, z, TIMES, noise=np.eye(6), engine="kernel"), "no noise matrix"),
        (
            lambda: og.simulate_sde(circuit, z, TIMES, noise=1.0, increments=np.ones((2, 6)), engine="kernel"),
            r"increments must have shape \(3, \.\.\., 6\)",
        ),
        (lambda: og.simulate(circuit, z, TIMES, engine="gpu"), "unknown engine 'gpu'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_trees_move_and_are_shared_without_a_copy(og: Any) -> None:
    """to_device and to_host keep the tree; the exchange shares memory."""
    case = small_circuit(2)
    circuit = case.circuit._replace(sigma=0.1)
    moved = og.to_device((circuit, None), dtype="float32", module=np)
    assert type(moved[0]).__name__ == "Circuit"
    assert moved[1] is None
    assert moved[0].w.dtype == np.float32
    assert moved[0].sigma == 0.1
    for foreign in (oc.Operator(lambda v: v), lambda v: v, np.array([None])):
        with pytest.raises(TypeError, match="tree must hold arrays of numbers, got "):
            og.to_device(circuit._replace(w=foreign), module=np)
    back = og.to_host(moved[0])
    np.testing.assert_array_equal(back.w, case.circuit.w.astype("float32"))
    shared = og.from_jax(case.state, module=np)  # numpy speaks DLPack as well
    assert isinstance(shared, oc.State)
    assert np.shares_memory(shared.y, case.state.y)


@pytest.mark.cpu
def test_sparse_weights_move(og: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """scipy stands in for cupyx."""
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    monkeypatch.setitem(sys.modules, "numpyx.scipy.sparse", sparse)
    case = small_circuit(2)
    circuit = case.circuit._replace(w=sparse.coo_array(case.circuit.w))
    moved = og.to_device(circuit, dtype="float32", module=np).w
    assert isinstance(moved, sparse.csr_matrix)
    np.testing.assert_array_equal(moved.toarray(), case.circuit.w.astype("float32"))


@pytest.mark.cpu
@pytest.mark.library("torch")
@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.1.0", reason=f"{ELSEWHERE}numpy since 2.1 may write there")
def test_exchange_with_torch_shares_memory(og: Any) -> None:
    """Both ways, numpy in place of cupy."""
    import torch

    state = oc.State(torch.ones(3, requires_grad=True), torch.zeros(3))
    taken = og.from_torch(state, module=np)
    assert taken.y.ctypes.data == state.y.data_ptr()
    given = og.to_torch(taken)
    assert isinstance(given, oc.State)
    assert given.a.data_ptr() == state.a.data_ptr()


@pytest.mark.cpu
@pytest.mark.library("jax")
def test_exchange_with_jax_keeps_values(og: Any) -> None:
    """Both ways, numpy in place of cupy."""
    import jax

    array = np.arange(4.0)
    given = og.to_jax(oc.State(array, array))
    assert isinstance(given.y, jax.Array)
    np.testing.assert_array_equal(og.from_jax(given, module=np).a, array)


@pytest.mark.cpu
@pytest.mark.library("jax")
@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_jax_does_not_narrow_silently(og: Any, dtype: str) -> None:
    """Without 64 bits jax would copy, and lose half of the digits; what fits is shared."""
    import jax

    array = np.arange(4, dtype=dtype)
    with jax.enable_x64(False):
        with pytest.raises(TypeError, match=f"array of {dtype}, which jax would narrow"):
            og.to_jax((array[:1].astype("float32"), array))
        assert og.to_jax(array.astype("float32")).dtype == "float32"
    assert og.to_jax(array).dtype == dtype


def test_without_cupy_the_message_names_the_extra() -> None:
    """One readable sentence."""
    code = "import sys; sys.modules['cupy'] = None\nimport organics_cupy"
    result = run_python(code)
    assert result.returncode != 0
    assert 'ImportError: organics_cupy needs cupy: run pip install "organics-core[cupy]"' in result.stderr
