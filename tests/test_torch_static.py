"""The static layers: fixed points of the core, exact derivatives, and honesty about failures."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
from support import to_numpy

torch = pytest.importorskip("torch", reason="torch is not installed")

import organics_core as oc  # noqa: E402
import organics_torch as ot  # noqa: E402

K, H = 4, 6
KINDS = ("identity", "spectral")


def numbers(seed, *shape, dtype=torch.float64):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def make(recurrent, **options):
    layer = ot.DivisiveNorm(K, H, recurrent=recurrent, **{"seed": 1, "dtype": torch.float64} | options)
    if recurrent == "spectral":
        with torch.no_grad():
            layer.parametrizations.w_r.original *= 0.6  # inside the ball: no kink of the norm
    return layer


def values(layer):
    return {name: to_numpy(value) for name, value in layer.named_parameters()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("recurrent", KINDS)
def test_output_is_the_fixed_point(recurrent):
    layer, x = make(recurrent), numbers(2, 5, K)
    p = values(layer)
    drive = to_numpy(x) @ p["w_zx"].T
    z = drive / np.linalg.norm(drive, axis=-1, keepdims=True)
    b, b0 = sigmoid(to_numpy(x) @ p["w_bx"].T), sigmoid(p["beta"])
    w_r = np.eye(H) if recurrent == "identity" else to_numpy(layer.w_r)
    w = np.exp(p["log_w"])
    found = layer.steady_state(x)
    y, a = (to_numpy(part) for part in found.state)
    np.testing.assert_allclose(y, b * z + (1 - np.sqrt(a)) * (y @ w_r.T), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(a, b0**2 + (a * y**2) @ w.T, rtol=1e-9)
    assert bool(found.converged.all())
    np.testing.assert_allclose(to_numpy(layer(x)), np.maximum(y, 0) ** 2, rtol=1e-12)


def test_identity_is_the_normalization_equation():
    layer, x = make("identity", sigma=0.3), numbers(2, 5, K)
    circuit, z = layer.circuit(x)
    drive = circuit.b * z
    expected = torch.relu(drive) ** 2 / ((0.3 * torch.sigmoid(layer.beta)) ** 2 + drive**2 @ layer.log_w.exp().T)
    assert torch.allclose(layer(x), expected, rtol=1e-12)


@pytest.mark.parametrize("recurrent", KINDS)
def test_gradients(recurrent):
    layer, x = make(recurrent), numbers(2, 3, K).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()))


def test_gradients_2d():
    layer, x = ot.DivisiveNorm2d(2, 3, 3, padding=1, seed=1, dtype=torch.float64), numbers(3, 2, 2, 5, 4)
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    options = {"fast_mode": True, "nondet_tol": 1e-12}  # cuDNN sums in any order
    assert torch.autograd.gradcheck(function, (x.requires_grad_(), *layer.parameters()), **options)


def test_2d_is_the_normalization_equation_pixel_by_pixel():
    layer = ot.DivisiveNorm2d(2, 3, 3, stride=2, padding=1, pool_size=3, sigma=0.4, seed=1, dtype=torch.float64)
    x = numbers(3, 2, 2, 9, 7)
    p = values(layer)
    z, gain = (torch.nn.functional.conv2d(x, layer.get_parameter(name), None, 2, 1) for name in ("w_zx", "w_bx"))
    z, gain = to_numpy(z), to_numpy(gain)
    z = z / np.sqrt((z**2).sum((-2, -1), keepdims=True))
    drive = sigmoid(gain) * z
    found = to_numpy(layer(x))
    assert found.shape == drive.shape == (2, 3, 5, 4)
    for channel, row, column in np.ndindex(3, 5, 4):
        a = (0.4 * sigmoid(p["beta"][channel])) ** 2
        for i, j in np.ndindex(3, 3):
            r, c = row + i - 1, column + j - 1
            if 0 <= r < 5 and 0 <= c < 4:
                a = a + np.exp(p["log_w"][channel, i, j]) * drive[:, channel, r, c] ** 2
        expected = np.maximum(drive[:, channel, row, column], 0) ** 2 / a
        np.testing.assert_allclose(found[:, channel, row, column], expected, rtol=1e-10)
    assert torch.allclose(layer(x[0]), layer(x)[0], rtol=1e-12)


class KeptTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts what autograd keeps for the backward pass."""

    def __init__(self):
        self.sizes = []
        super().__init__(self.keep, lambda tensor: tensor)

    def keep(self, tensor):
        self.sizes.append(tensor.numel())
        return tensor


def test_memory_does_not_grow_with_the_iterations():
    """What autograd keeps is the same however many iterations there were."""
    layer, x = make("spectral"), numbers(2, 7, K)
    kept = []
    for size in (1e-3, 1.0):
        layer.sigma = size  # weak semi-saturation takes more iterations
        saved = KeptTensors()
        with saved:
            found = layer.steady_state(x)
        kept.append((int(found.iterations.max()), len(saved.sizes), sum(saved.sizes)))
    assert kept[0][0] != kept[1][0]
    assert kept[0][1:] == kept[1][1:]


def test_not_converged_is_said():
    layer, x = make("spectral", max_iterations=1), numbers(2, 5, K)
    with pytest.warns(RuntimeWarning, match=r"no fixed point for \d of 5 inputs.*after 1 iterations"):
        output = layer(x)
    found = layer.steady_state(x)
    assert not bool(found.converged.all())
    assert torch.equal(output.isnan().all(-1), ~found.converged)
    assert torch.equal(output.isnan().any(-1), ~found.converged)
    assert (found.residual[~found.converged] > 1e-6).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make("spectral")(x).isfinite().all()


@pytest.mark.parametrize("recurrent", KINDS)
def test_silent_input_and_batch_axes(recurrent):
    layer, x = make(recurrent), numbers(2, 2, 3, K)
    assert torch.allclose(layer(x)[1, 2], layer(x[1, 2]), rtol=1e-10)
    silent = torch.zeros(2, K, dtype=torch.float64, requires_grad=True)
    output = layer(silent)
    output.sum().backward()
    assert (output == 0).all()
    assert silent.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("recurrent", KINDS)
def test_module_habits(recurrent):
    layer, other, x = make(recurrent), make(recurrent, seed=7), numbers(2, 5, K)
    wanted = layer(x)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), wanted)
    assert torch.equal(copy.deepcopy(layer)(x), wanted)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=recurrent == "identity")
    assert torch.allclose(compiled(x), wanted, rtol=1e-12)
    single = make(recurrent, dtype=torch.float32)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        assert single(x.bfloat16()).dtype == torch.float32
    assert torch.allclose(single(x.float()).double(), wanted, rtol=1e-3, atol=1e-6)


def test_agrees_with_the_core():
    layer, x = make("spectral"), numbers(2, K)
    circuit, z = layer.circuit(x)
    fields = (to_numpy(part) if isinstance(part, torch.Tensor) else part for part in circuit)
    found = oc.steady_state(oc.Circuit(*fields), to_numpy(z), method="iteration")
    np.testing.assert_allclose(to_numpy(layer.steady_state(x).state.y), found.state.y, rtol=1e-8)


@pytest.mark.parametrize("size", [30.0, 1e20, 1e-25])
@pytest.mark.parametrize("kind", ["vector", "image"])
def test_size_of_the_input_drive_does_not_matter(kind, size):
    """Numbers whose squares overflow, or vanish: the drive is of unit norm before its gain."""
    dtype = torch.float16 if size == 30 else torch.float32
    if kind == "vector":
        layer, x = ot.DivisiveNorm(K, 300, seed=1), numbers(2, 5, K, dtype=torch.float32)
    else:
        layer, x = ot.DivisiveNorm2d(2, 3, 3, padding=1, seed=1), numbers(2, 2, 2, 40, 40, dtype=torch.float32)
    with torch.no_grad():
        layer.w_bx *= 0  # the gain alone does depend on it
        layer.w_zx *= 300 if size == 30 else 1
    wanted = layer(x)
    found = layer.to(dtype)((size * x).to(dtype))
    assert found.dtype == dtype
    worst = (found.float() - wanted).detach().abs().max() / wanted.max()
    assert float(worst) < (0.01 if dtype == torch.float16 else 1e-5)
    grown = (size * x).requires_grad_()
    [slope] = torch.autograd.grad(layer.float()(grown).square().sum(), grown)
    assert slope.isfinite().all()


def test_nan_comes_through():
    x = numbers(2, 3, K)
    x[1, 0] = torch.nan
    assert make("identity")(x).isnan().all(-1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="must be finite"):
        make("spectral")(x)
    images = numbers(2, 2, 2, 6, 6)
    images[0, 0, 0, 0] = torch.nan
    found = ot.DivisiveNorm2d(2, 3, 3, dtype=torch.float64)(images)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


def test_half_precision():
    x = numbers(2, 5, K)
    half = make("identity").bfloat16()
    assert torch.allclose(half(x.bfloat16()).double(), make("identity")(x), atol=0.05)
    with pytest.raises(TypeError, match="float32 or float64"):
        make("spectral").bfloat16()(x.bfloat16())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ot.DivisiveNorm(0, 3), ValueError, "in_features"),
        (lambda: ot.DivisiveNorm(3, 3, recurrent="free"), ValueError, "recurrent"),
        (lambda: ot.DivisiveNorm(3, 3, sigma=-1.0), ValueError, "sigma"),
        (lambda: ot.DivisiveNorm(3, 3, max_iterations=0), ValueError, "max_iterations"),
        (lambda: ot.DivisiveNorm(3, 3, dtype=torch.int32), TypeError, "dtype"),
        (lambda: ot.DivisiveNorm2d(1, 1, 3, pool_size=4), ValueError, "pool_size must be odd"),
        (lambda: ot.DivisiveNorm2d(1, 1, 3, padding=-1), ValueError, "padding"),
        (lambda: ot.DivisiveNorm(3, 3)(torch.zeros(2, 4)), ValueError, r"x must have shape \(..., 3\)"),
        (lambda: ot.DivisiveNorm(3, 3)(torch.zeros(2, 3).double()), TypeError, "x has dtype"),
        (lambda: ot.DivisiveNorm(3, 3)([1.0, 2.0, 3.0]), TypeError, "x must be a torch tensor"),
        (lambda: ot.DivisiveNorm2d(2, 1, 3)(torch.zeros(1, 5, 5)), ValueError, r"x must have shape \(N, 2, H, W\)"),
        (lambda: ot.DivisiveNorm2d(1, 1, 3)(torch.zeros(1, 2, 2)), ValueError, "smaller than the kernel"),
    ],
)
def test_bad_input(make, error, words):
    with pytest.raises(error, match=words):
        make()
