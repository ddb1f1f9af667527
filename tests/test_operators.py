"""Large circuits: the same answers as with dense matrices, and one hundred thousand neurons in seconds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from support import Library, numpy_tree, run_python

import organics_core as oc

pytestmark = pytest.mark.one_dtype

N = 12


def kernels() -> tuple[np.ndarray, np.ndarray]:
    """First columns of W_r and W on a ring: signed and local, non-negative and local."""
    distance = np.minimum(np.arange(N), N - np.arange(N))
    recurrent = 0.8 * np.exp(-distance) * np.cos(distance)
    return recurrent / np.abs(np.fft.fft(recurrent)).max(), np.exp(-(distance**2) / 4.0) / 3.0


def circulant(kernel: np.ndarray) -> np.ndarray:
    index = (np.arange(N)[:, None] - np.arange(N)[None, :]) % N
    return kernel[index]


def dense(*, identity: bool) -> tuple[oc.Circuit, np.ndarray]:
    recurrent, pool = kernels()
    rng = np.random.default_rng(0)
    numbers = (rng.uniform(0.3, 0.8, N), 0.5, 0.2, rng.uniform(1e-3, 3e-3, N), 0.002)
    return oc.Circuit(None if identity else circulant(recurrent), circulant(pool), *numbers), rng.standard_normal(N)


def forms(xp: Library, kernel: np.ndarray) -> list[object]:
    """The circulant matrix as everything that has a product in this library."""
    matrix = xp.array(circulant(kernel))
    found = [matrix, lambda v: matrix @ v]
    if xp.name != "strict":  # its Fourier transform returns another kind of array for odd lengths
        found.append(oc.ring_convolution(xp.array(kernel)))
    if xp.name == "numpy":
        sparse = pytest.importorskip("scipy.sparse")
        found += [
            sparse.csr_array(circulant(kernel).astype(xp.precision)),
            sparse.coo_matrix(circulant(kernel).astype(xp.precision)),
        ]
    elif xp.name == "torch":
        found += [matrix.to_sparse(), matrix.to_sparse_csr()]
    elif xp.name == "jax":
        from jax.experimental.sparse import BCOO

        found.append(BCOO.fromdense(matrix))
    elif xp.name == "cupy":
        from cupyx.scipy import sparse

        found.append(sparse.csr_matrix(matrix))
    return found


@pytest.mark.parametrize("identity", [True, False])
def test_every_form_gives_the_dense_answer(xp: Library, identity: bool) -> None:
    """Steady state, field, Jacobian product and certificate, for every kind of weights."""
    circuit, drive = dense(identity=identity)
    want = oc.steady_state(circuit, drive).state
    slope = oc.vector_field(circuit, oc.State(drive, want.a), drive)
    direction = oc.State(*np.random.default_rng(1).standard_normal((2, N)))
    moved = oc.jacobian(circuit, want) @ np.concatenate(direction)
    recurrent, pool = kernels()
    z = xp.array(drive)
    numbers = [xp.array(v) if isinstance(v, np.ndarray) else v for v in circuit[2:]]
    for w_r, w in zip(forms(xp, recurrent), forms(xp, pool), strict=True):
        large = oc.Circuit(None if identity else w_r, w, *numbers)
        found = oc.steady_state(large, z)
        assert bool(found.converged)
        # a sum over all neurons: small responses carry the error of large ones
        xp.assert_close(found.state.y, want.y, rtol=1e-9, atol=1e-9 * np.abs(want.y).max())
        xp.assert_close(found.state.a, want.a, rtol=1e-9)
        field = oc.vector_field(large, xp.tree(oc.State(drive, want.a)), z)
        xp.assert_close(field.y, slope.y, rtol=1e-9, atol=1e-9 * np.abs(slope.y).max())
        xp.assert_close(field.a, slope.a, rtol=1e-9, atol=1e-9 * np.abs(slope.a).max())
        product = oc.jacobian_product(large, xp.tree(want), xp.tree(direction))
        for part, wanted in zip(product, (moved[:N], moved[N:]), strict=True):
            xp.assert_close(part, wanted, rtol=1e-9, atol=1e-9 * np.abs(moved).max())
        if identity:
            certificate = oc.certify(large, z)
            assert bool(certificate.stable)
            xp.assert_close(certificate.margin, numpy_tree((oc.certify(circuit, drive).margin,))[0], rtol=1e-9)


def test_certificates_of_operators_have_no_matrices(xp64: Library) -> None:
    """The decision and its margin are the dense ones; the Lyapunov pair, n by n, is made of matrices alone."""
    circuit, z = dense(identity=True)
    whole = oc.certify(xp64.tree(circuit), xp64.array(z))
    assert whole.p.shape == whole.q.shape == (2 * N, 2 * N)
    for w in forms(xp64, kernels()[1])[1:]:
        found = oc.certify(xp64.tree(circuit._replace(w=None))._replace(w=w), xp64.array(z))
        assert bool(found.stable)
        assert (found.p, found.q) == (None, None)
        xp64.assert_close(found.margin, numpy_tree(whole.margin), rtol=1e-12)


def test_leading_eigenvalues(xp64: Library) -> None:
    """Arnoldi's eigenvalues are the dense ones with the largest real parts."""
    pytest.importorskip("scipy")
    circuit, drive = dense(identity=False)
    state = oc.steady_state(circuit, drive).state
    every = np.linalg.eigvals(oc.jacobian(circuit, state))
    recurrent, pool = kernels()
    numbers = [xp64.array(v) if isinstance(v, np.ndarray) else v for v in circuit[2:]]
    w_r, w = (forms(xp64, kernel)[-1] for kernel in (recurrent, pool))
    found = oc.leading_eigenvalues(oc.Circuit(w_r, w, *numbers), xp64.tree(state), count=4)
    want = every[np.argsort(-every.real)][:4]
    np.testing.assert_allclose(found.real, want.real, rtol=1e-7)
    np.testing.assert_allclose(np.abs(found.imag), np.abs(want.imag), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
def test_an_iteration_solves_its_linear_system_to_the_end(scale: float) -> None:
    """One iteration: y is that of the modulators it started from, those of W_r = I, by a direct solution."""
    circuit, drive = dense(identity=False)
    drive = scale * drive
    found = oc.steady_state(circuit._replace(w_r=lambda v: circuit.w_r @ v), drive, max_iterations=1)
    assert int(found.iterations) == 1
    a = oc.steady_state(circuit._replace(w_r=None), drive).state.a
    matrix = np.eye(N) - (1 - np.sqrt(a))[:, None] * circuit.w_r
    want = np.linalg.solve(matrix, circuit.b * drive)
    np.testing.assert_allclose(found.state.y, want, atol=1e-11 * np.abs(want).max())


def test_failure_to_converge_is_reported() -> None:
    """A recurrence far too strong: no crash, no claim."""
    circuit, drive = dense(identity=False)
    large = oc.Circuit(lambda v: -50.0 * v, circuit.w, *circuit[2:])
    found = oc.steady_state(large, 10.0 * drive, max_iterations=5)
    assert not bool(found.converged)
    assert int(found.iterations) <= 5


LARGE = """
import json, re, resource
from pathlib import Path
import numpy as np, organics_core as oc, scipy.sparse as sparse

n, reach = 100_000, 5
rng = np.random.default_rng(0)
near = np.arange(1, reach + 1)
offsets = np.concatenate([[0], near, -near, n - near, near - n])
w = sparse.diags_array([np.full(n - abs(k), 0.3 / reach) for k in offsets], offsets=offsets, shape=(n, n)).tocsr()
kernel = np.zeros(n)
kernel[[0, 1, -1]] = 0.4, 0.3, 0.3
z = rng.standard_normal(n)
identity = oc.Circuit(None, w, 0.5, 0.5, 0.1, 0.002, 0.002)
certificate = oc.certify(identity, z)
general = identity._replace(w_r=oc.ring_convolution(kernel))
found = oc.steady_state(general, z)
slope = oc.vector_field(general, found.state, z)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if Path("/proc/self/status").exists():  # Linux hands the process that starts another one's peak on to it
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps({
    "stable": bool(certificate.stable),
    "margin": float(certificate.margin),
    "converged": bool(found.converged),
    "slope": 0.002 * float(max(abs(slope.y).max(), abs(slope.a).max())),
    "gigabytes": peak / 2**20,
}))
"""


@pytest.mark.size
def test_one_hundred_thousand_neurons() -> None:
    """Certified and solved with local pools, under 2 GiB."""
    pytest.importorskip("scipy")
    done = run_python(LARGE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["stable"]
    assert found["margin"] > 0
    assert found["converged"]
    assert found["slope"] < 1e-10
    assert found["gigabytes"] < 2


def test_bad_arguments_are_named() -> None:
    """Operators are checked like dense weights: by name, when the circuit is made or used."""
    sparse = pytest.importorskip("scipy.sparse")
    z = np.ones(3)
    good = oc.Circuit(None, sparse.eye_array(3).tocsr(), 1.0, 1.0, 1.0, 1.0, 1.0)
    signed = sparse.csr_array(
        np.array([[1.0, -0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    )  # its row sums are positive
    for fields, error, message in (
        ({"w": sparse.eye_array(2).tocsr()}, ValueError, r"z must have shape \(..., 2\)"),
        ({"w": "pool"}, TypeError, "w must be an array"),
        ({"w": None}, TypeError, "w must be an array"),
        ({"w": signed}, ValueError, "w must be non-negative, got -0.1"),
        ({"w": lambda v: -v}, ValueError, "w must be non-negative, but its product with ones is not"),
        ({"tau_a": 0.0}, ValueError, "tau_a must be positive"),
        ({"b": -0.5}, ValueError, "b must be positive"),
        ({"w_r": lambda v: v}, ValueError, r"w_r must be the identity \(or None\)"),
    ):
        with pytest.raises(error, match=message):
            oc.certify(good._replace(**fields), z)
        if error is ValueError and "w_r" not in fields and not callable(fields.get("w")) and "shape" not in message:
            with pytest.raises(error, match=message):
                oc.Circuit(**{**good._asdict(), **fields})
    with pytest.raises(ValueError, match="kernel must have shape"):
        oc.ring_convolution(np.ones((2, 2)))
    with pytest.raises(ValueError, match="count must be below"):
        oc.leading_eigenvalues(good, oc.State(z, z), count=5)
    with pytest.raises(ValueError, match=r"state\.y must be finite"):
        oc.leading_eigenvalues(good, oc.State(np.nan * z, z))
    with pytest.raises(ValueError, match="state must have 3 components at least for Arnoldi's method, got 2"):
        oc.leading_eigenvalues(oc.Circuit(None, np.ones((1, 1)), *[1.0] * 5), oc.State(z[:1], z[:1]))


def test_an_operator_too_large_to_be_made_dense_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its size, the largest, and what does without; as many neurons as that are made dense."""
    circuit, drive = dense(identity=False)
    monkeypatch.setattr("organics_core.weights._MOST_DENSE", N)
    state = oc.State(drive, np.ones(N))
    want = oc.jacobian(circuit, state)
    functions = {"w_r": lambda v: circuit.w_r @ v, "w": lambda v: circuit.w @ v}
    for name, function in functions.items():
        large = circuit._replace(**{name: function})
        np.testing.assert_allclose(oc.jacobian(large, state), want, atol=1e-12 * np.abs(want).max())
    monkeypatch.setattr("organics_core.weights._MOST_DENSE", N - 1)
    for name, function in functions.items():
        message = (
            f"^{name} of 12 neurons is an operator, and this function needs the matrix, which it makes for at most "
            "11 neurons; steady_state, simulate, certify, jacobian_product and leading_eigenvalues do without$"
        )
        with pytest.raises(ValueError, match=message):
            oc.jacobian(circuit._replace(**{name: function}), state)
    np.testing.assert_array_equal(oc.jacobian(circuit, state), want)


def test_the_product_with_ones_says_whether_weights_are_negative() -> None:
    """Up to a rounding of a millionth of the largest; and whether a function is a square matrix at all."""
    circuit, drive = dense(identity=True)
    sums = np.linspace(1.0, 2.0, N)
    for least, fine in ((0.0, True), (-1.9e-6, True), (-2.1e-6, False), (-1.0, False)):
        sums[0] = least
        large = circuit._replace(w=lambda v: sums * v)
        for z in (drive, np.stack([drive, -drive])):
            if fine:
                assert oc.simulate(large, z, np.array([0.0, 1e-4]), drive="constant").success
            else:
                with pytest.raises(ValueError, match=r"^w must be non-negative, but its product with ones is not$"):
                    oc.simulate(large, z, np.array([0.0, 1e-4]), drive="constant")
    message = r"^w must map a vector \(12,\) to the same shape, got shape \(11,\)$"
    with pytest.raises(ValueError, match=message):
        oc.certify(circuit._replace(w=lambda v: v[1:]), drive)


@pytest.mark.parametrize(
    ("product", "got"),
    [
        (lambda v: v[1:], r"shape \(11,\)"),
        (lambda v: v[:1], r"shape \(1,\)"),
        (lambda v: v.sum(), r"shape \(\)"),
        (lambda v: None, "NoneType"),
    ],
)
def test_a_product_of_another_shape_is_refused(product: Any, got: str) -> None:
    """Of recurrent weights, too, whose values may be any: it would broadcast, and the answer be wrong."""
    circuit, drive = dense(identity=True)
    times, state = np.array([0.0, 1e-4]), oc.State(drive, np.ones(N))
    for name in ("w", "w_r"):
        wrong = circuit._replace(**{name: product})
        message = rf"^{name} must map a vector \(12,\) to the same shape, got {got}"
        for call in (oc.simulate, lambda circuit, z, times: oc.steady_state(circuit, z)):
            with pytest.raises(ValueError, match=message):
                call(wrong, drive, times)
        for made in (oc.vector_field, lambda circuit, state, z: oc.jacobian(circuit, state)):
            with pytest.raises(ValueError, match=r"^weights must map vectors \(.*12,?\) to the same shape, got "):
                made(wrong, state, drive)


def test_what_scipy_stores_beside_the_matrix_is_not_looked_at() -> None:
    """Diagonals reach outside of the matrix; entries of the same place are added up."""
    sparse = pytest.importorskip("scipy.sparse")
    diagonals = sparse.dia_array((np.array([[-5.0, 1.0, 1.0], [1.0, 1.0, 1.0]]), [1, 0]), shape=(3, 3))
    twice = sparse.coo_array((np.array([2.0, -1.0, 1.0]), (np.array([0, 0, 2]), np.array([1, 1, 0]))), shape=(3, 3))
    for matrix in (diagonals, twice):
        made = [oc.Circuit(None, w, 0.5, 0.5, 0.1, 0.002, 0.003) for w in (matrix, matrix.toarray())]
        one, other = (oc.simulate(circuit, np.array([1.0, 0.5, 0.2]), np.array([0.0, 0.01])) for circuit in made)
        np.testing.assert_allclose(one.state.y, other.state.y, rtol=1e-5, atol=1e-8)
    with pytest.raises(ValueError, match="w must be non-negative, got -1"):
        oc.Circuit(None, -diagonals, 0.5, 0.5, 0.1, 0.002, 0.003)


@pytest.mark.library("numpy", "torch", "jax")
def test_sparse_weights_have_the_dtype_of_the_run(xp64: Library) -> None:
    """In single precision where all else is; in double where a parameter is, whatever the drive."""
    sparse = pytest.importorskip("scipy.sparse")
    third = sparse.csr_array(np.eye(2) / 3)
    ns, z = xp64.namespace, xp64.array([1.0, -2.0])
    low = ns.astype(z, ns.float32)
    a = ns.ones_like(low)
    for b, wanted, tolerance in ((0.5, ns.float32, 1e-6), (xp64.array([0.5, 0.5]), ns.float64, 1e-14)):
        slope = oc.vector_field(oc.Circuit(third, third, b, 1.0, 1.0, 1.0, 1.0), oc.State(low, a), low)
        assert slope.a.dtype == wanted
        np.testing.assert_allclose(numpy_tree(slope.a), [1 / 3, 4 / 3], rtol=tolerance)
        np.testing.assert_allclose(numpy_tree(slope.y), [-0.5, 1.0], rtol=tolerance)


def test_simulation_with_operators(xp: Library) -> None:
    """Every form of weights gives the trajectory of the dense ones, for one drive and for a batch, and a variant."""
    circuit, drive = dense(identity=False)
    times = np.linspace(0, 0.02, 3)
    recurrent, pool = kernels()
    numbers = [xp.array(v) if isinstance(v, np.ndarray) else v for v in circuit[2:]]
    want = oc.simulate(circuit, np.stack([drive, -drive]), times, rtol=1e-9, atol=1e-11)
    half = oc.simulate(circuit, drive, times, variant="rectified", rtol=1e-9, atol=1e-11)
    tight = {"rtol": 1e-6, "atol": 1e-8} if xp.single else {"rtol": 1e-9, "atol": 1e-11}
    for w_r, w in zip(forms(xp, recurrent), forms(xp, pool), strict=True):
        large = oc.Circuit(w_r, w, *numbers)
        run = oc.simulate(large, xp.array(np.stack([drive, -drive])), xp.array(times), **tight)
        xp.assert_close(run.state.y, want.state.y, rtol=1e-7, atol=1e-8)
        run = oc.simulate(large, xp.array(drive), xp.array(times), variant="rectified", **tight)
        xp.assert_close(run.state.a, half.state.a, rtol=1e-7, atol=1e-8)


@pytest.mark.library("numpy", "torch", "jax")
def test_sparse_matrices_of_scipy_serve_every_library(xp: Library) -> None:
    """A scipy matrix as W and W_r; in jax also one whose rows are too uneven to be padded."""
    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(0)
    n = 30
    weights = np.where(rng.random((n, n)) < 0.1, rng.random((n, n)), 0.0) + 0.1 * np.eye(n)
    weights[0, :] = 0.02
    recurrent = np.where(rng.random((n, n)) < 0.1, rng.standard_normal((n, n)), 0.0) / 3
    z, times = rng.standard_normal(n), np.linspace(0, 0.02, 3)
    numbers = (0.5, 0.5, 0.2, 0.002, 0.003)
    want = oc.simulate(oc.Circuit(recurrent, weights, *numbers), z, times).state
    circuit = oc.Circuit(sparse.csr_array(recurrent), sparse.coo_array(weights), *numbers)
    run = oc.simulate(circuit, xp.array(z), xp.array(times))
    xp.assert_close(run.state.y, want.y, rtol=1e-6, atol=1e-8)
    matrix = oc.jacobian(circuit, oc.State(xp.array(z), xp.array(np.ones(n))))
    full = oc.jacobian(oc.Circuit(recurrent, weights, *numbers), oc.State(z, np.ones(n)))
    xp.assert_close(matrix, full, rtol=1e-9, atol=1e-9 * np.abs(full).max())


LONG = """
import json, re, resource, time
from pathlib import Path
import numpy as np, organics_core as oc, scipy.sparse as sparse
import {module} as xp

n, reach = 100_000, 10
offsets = np.concatenate([[0], np.arange(1, reach + 1), -np.arange(1, reach + 1)])
w = sparse.diags_array([np.full(n - abs(k), 0.3 / reach) for k in offsets], offsets=offsets, shape=(n, n)).tocsr()
rng = np.random.default_rng(0)
circuit = oc.Circuit(None, w, 0.5, 0.5, 0.1, 0.002, 0.002)
z = xp.asarray(rng.standard_normal(n).astype("float32"))
begun = time.perf_counter()
run = oc.simulate(circuit, z, xp.asarray(np.array([0.0, 0.2], "float32")))
seconds = time.perf_counter() - begun
want = oc.steady_state(circuit, z).state
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if Path("/proc/self/status").exists():  # Linux hands the process that starts another one's peak on to it
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps({{
    "success": run.success, "seconds": seconds,
    "error": float(abs(run.state.y[-1] - want.y).max()),
    "gigabytes": peak / 2**20,
}}))
"""


@pytest.mark.size
@pytest.mark.library("numpy", "torch", "jax")
def test_one_hundred_thousand_neurons_simulated(xp64: Library) -> None:
    """100 tau of local pools in each library: it settles, with memory of the order of the weights."""
    done = run_python(LONG.format(module={"numpy": "numpy", "torch": "torch", "jax": "jax.numpy"}[xp64.name]))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["success"]
    assert found["error"] < 1e-3
    assert found["gigabytes"] < 2.5


def test_a_batch_of_drives_is_solved_as_each_alone() -> None:
    """With operators, of several leading axes, by the iteration."""
    n = 6
    ring = oc.ring_convolution(np.exp(-np.minimum(np.arange(n), n - np.arange(n)) / 2.0))
    circuit = oc.Circuit(oc.Operator(lambda x: 0.7 * x), ring, 0.5, 0.5, 0.1, 0.002, 0.002)
    z = np.random.default_rng(0).uniform(0.1, 1.0, (2, 3, n))
    found = oc.steady_state(circuit, z, method="iteration")
    assert found.converged.shape == (2, 3)
    assert found.converged.all()
    for at in np.ndindex(2, 3):
        alone = oc.steady_state(circuit, z[at], method="iteration")
        np.testing.assert_allclose(found.state.y[at], alone.state.y, rtol=1e-12)
        np.testing.assert_allclose(found.state.a[at], alone.state.a, rtol=1e-12)
    with pytest.raises(ValueError, match="but must have no batch axes itself"):
        oc.steady_state(circuit._replace(b=np.full((2, 3, n), 0.5)), z, method="iteration")


@pytest.mark.library("numpy", "torch", "jax")
def test_a_product_has_the_dtype_of_the_vectors(xp64: Library) -> None:
    """A kernel, or a function, in double precision leaves a run in single precision."""
    ns = xp64.namespace
    kernel = xp64.array([0.5, 0.2, 0.1, 0.2])
    z = ns.astype(xp64.array([1.0, -0.5, 0.2, 0.3]), ns.float32)
    times = ns.astype(xp64.array([0.0, 0.005, 0.01]), ns.float32)
    matrix = xp64.array([[0.5, 0.2, 0.1, 0.2], [0.2, 0.5, 0.2, 0.1], [0.1, 0.2, 0.5, 0.2], [0.2, 0.1, 0.2, 0.5]])
    circuits = [oc.Circuit(None, w, 0.6, 0.5, 0.3, 0.002, 0.002) for w in (matrix, oc.ring_convolution(kernel))]
    circuits.append(circuits[0]._replace(w=lambda v: matrix @ ns.astype(v, ns.float64)))
    runs = [[oc.simulate(c, z, times, method=m, substeps=10).state.y for m in ("dopri5", "rk4")] for c in circuits]
    for run in runs[1:]:
        assert [y.dtype for y in run] == [ns.float32] * 2
        np.testing.assert_allclose(numpy_tree(run), numpy_tree(runs[0]), rtol=1e-4, atol=1e-6)
    assert [oc.steady_state(c, z).state.y.dtype for c in circuits[1:]] == [ns.float32] * 2


def test_complex_products_are_refused() -> None:
    """As of a Fourier transform whose imaginary part was forgotten."""
    transform = np.fft.fft([0.5, 0.2, 0.1, 0.2])
    circuit = oc.Circuit(None, lambda v: np.fft.ifft(transform * np.fft.fft(v)), 0.6, 0.5, 0.3, 0.002, 0.002)
    z = np.array([1.0, -0.5, 0.2, 0.3])
    for call in (
        lambda: oc.steady_state(circuit, z),
        lambda: oc.simulate(circuit, z, np.array([0.0, 0.01])),
        lambda: oc.vector_field(circuit, oc.State(z, z**2), z),
        lambda: oc.jacobian(circuit, oc.State(z, z**2)),
    ):
        with pytest.raises(TypeError, match=r"^(w|weights) must map real vectors to real ones, got complex128"):
            call()


def test_no_drives_at_all() -> None:
    """As with dense weights, an empty batch has an empty answer, or a simulation refuses it."""
    recurrent, pool = kernels()
    functions = [lambda v, m=circulant(kernel): m @ v for kernel in (recurrent, pool)]
    z = np.zeros((0, N))
    for w_r in (None, functions[0]):
        circuit = oc.Circuit(w_r, functions[1], 0.6, 0.5, 0.3, 0.002, 0.002)
        assert oc.steady_state(circuit, z).state.y.shape == (0, N)
        assert oc.vector_field(circuit, oc.State(z, z), z).a.shape == (0, N)
        with pytest.raises(ValueError, match="the batch must not be empty"):
            oc.simulate(circuit, z, np.array([0.0, 0.01]), drive="constant")


@pytest.mark.library("numpy", "torch")
def test_dense_weights_beside_an_operator_are_no_batch(xp64: Library) -> None:
    """A matrix (n, n) has no batch axes."""
    circuit, drive = dense(identity=False)
    z = xp64.array(np.stack([drive, -0.5 * drive]))
    whole = xp64.tree(circuit)
    found = oc.steady_state(whole._replace(w_r=lambda v: whole.w_r @ v), z, method="iteration")
    wanted = oc.steady_state(whole, z, method="iteration")
    np.testing.assert_allclose(numpy_tree(found.state.y), numpy_tree(wanted.state.y), rtol=1e-8)
    np.testing.assert_allclose(numpy_tree(found.state.a), numpy_tree(wanted.state.a), rtol=1e-8)


@pytest.mark.library("torch")
@pytest.mark.parametrize("form", ["scipy", "csr", "csc", "coo"])
def test_sparse_weights_have_the_derivatives_of_dense_ones(xp64: Library, form: str) -> None:
    """Of fixed points and of runs, backward, forward, twice, and mapped."""
    import torch

    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(0)
    w = rng.random((4, 4)) * (rng.random((4, 4)) < 0.6)
    w_r = rng.standard_normal((4, 4)) * (rng.random((4, 4)) < 0.7) / 4
    forms = {
        "scipy": sparse.csr_array,
        "csr": lambda m: xp64.array(m).to_sparse_csr(),
        "csc": lambda m: xp64.array(m).to_sparse_csc(),
        "coo": lambda m: xp64.array(m).to_sparse(),
    }
    numbers = (0.6, 0.5, 0.3, 0.002, 0.003)
    z, times = xp64.array(rng.standard_normal((2, 4))), xp64.array([0.0, 0.002])
    found = []
    for make in (xp64.array, forms[form]):
        circuit = oc.Circuit(make(w_r), make(w), *numbers)

        def settled(z: Any, circuit: oc.Circuit = circuit) -> Any:
            return oc.steady_state(circuit, z, attracting=False).state.y

        def last(z: Any, circuit: oc.Circuit = circuit) -> Any:
            return oc.simulate(circuit, z, times, method="rk4", substeps=5, drive="constant").state.y[-1]

        own = z.clone().requires_grad_()
        settled(own).square().sum().backward()
        found.append(
            [
                own.grad,
                torch.func.grad(lambda z: settled(z).square().sum())(z),
                torch.func.jvp(settled, (z,), (z,))[1],
                torch.func.hessian(lambda z: settled(z).square().sum())(z[0]),
                torch.func.grad(lambda z: last(z).square().sum())(z),
                torch.func.jvp(last, (z,), (z,))[1],
                torch.func.vmap(last)(z),
            ]
        )
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(numpy_tree(other), numpy_tree(one), rtol=1e-8, atol=1e-10)
