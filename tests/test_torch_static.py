"""The static layers: fixed points of the core, exact derivatives, and honesty about failures."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import numpy as np
import pytest
from support import RECENT_TORCH, to_numpy

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


GEOMETRIES = (
    {"stride": 2, "padding": 1, "scale": "norm"},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 0), "dilation": (2, 1)},
    {"kernel_size": (3, 5), "padding": "same", "dilation": 2, "groups": 2},
    {"kernel_size": 1, "padding": "valid"},
)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_2d_is_the_normalization_equation_pixel_by_pixel(geometry):
    options = {"pool_size": 3, "sigma": 0.4, "seed": 1, "dtype": torch.float64}
    layer = ot.DivisiveNorm2d(2, 4, **{"kernel_size": 3} | geometry | options)
    x = numbers(3, 2, 2, 9, 7)
    p = values(layer)
    settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
    z, gain = (
        to_numpy(torch.nn.functional.conv2d(x, layer.get_parameter(name), None, *settings)) for name in ("w_zx", "w_bx")
    )
    square = (z**2).sum((-2, -1), keepdims=True)
    z = z / np.sqrt(square if layer.scale == "norm" else square / (z.shape[-2] * z.shape[-1]))
    drive = sigmoid(gain) * z
    found = to_numpy(layer(x))
    assert found.shape == drive.shape
    height, width = drive.shape[-2:]
    for channel, row, column in np.ndindex(4, height, width):
        a = (0.4 * sigmoid(p["beta"][channel])) ** 2
        for i, j in np.ndindex(3, 3):
            r, c = row + i - 1, column + j - 1
            if 0 <= r < height and 0 <= c < width:
                a = a + np.exp(p["log_w"][channel, i, j]) * drive[:, channel, r, c] ** 2
        expected = np.maximum(drive[:, channel, row, column], 0) ** 2 / a
        np.testing.assert_allclose(found[:, channel, row, column], expected, rtol=1e-10)
    assert torch.allclose(layer(x[0]), layer(x)[0], rtol=1e-12)
    if RECENT_TORCH:
        assert torch.allclose(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x), rtol=1e-12)
    other = ot.DivisiveNorm2d(2, 4, **{"kernel_size": 3} | geometry | options | {"seed": 2})
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    with pytest.raises(ValueError, match="of a DivisiveNorm2d with"):
        ot.DivisiveNorm2d(2, 4, layer.kernel_size, groups=layer.groups, pool_size=3).load_state_dict(layer.state_dict())


@pytest.mark.parametrize("size", [8, 32])
def test_a_stack_starts_with_outputs_and_gradients_of_order_one(size):
    """Six layers before a readout, cross entropy: 0.17 to 0.30 and 0.06 to 0.9; with drives of norm 1 below 2e-3."""
    torch.manual_seed(0)
    layers = [ot.DivisiveNorm2d(16 if i else 3, 16, 3, padding=1, seed=i) for i in range(6)]
    h, means = torch.randn(4, 3, size, size), []
    for layer in layers:
        h = layer(h)
        means.append(float(h.detach().mean()))
    logits = torch.nn.Linear(16, 10)(h.mean((-2, -1)))
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    norms = [float(torch.stack([p.grad.norm() for p in layer.parameters()]).norm()) for layer in layers]
    assert 0.1 < min(means) <= max(means) < 0.5
    assert 0.03 < min(norms) <= max(norms) < 3


def test_old_state_dicts_give_what_they_gave():
    """Of versions with settings but no scale, and without settings; a state_dict of other modules decides nothing."""
    x, old = numbers(3, 2, 1, 6, 6), ot.DivisiveNorm2d(1, 2, 3, padding=1, seed=1, scale="norm", dtype=torch.float64)
    assert float(old(x).detach().max()) < 0.5
    settings = {"stride": 1, "padding": 1, "sigma": 1.0}
    packed = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8, device="cpu")
    for state in (
        old.state_dict() | {"_extra_state": packed},
        {k: v for k, v in old.state_dict().items() if k != "_extra_state"},
    ):
        layer = ot.DivisiveNorm2d(1, 2, 3, padding=1, dtype=torch.float64)
        layer.load_state_dict({}, strict=False)
        assert layer.scale == "rms"
        layer.load_state_dict(state)
        assert torch.equal(layer(x), old(x))
        again = ot.DivisiveNorm2d(1, 2, 3, padding=1, dtype=torch.float64)
        with pytest.raises(ValueError, match="with scale 'norm', and this one has scale 'rms'"):
            again.load_state_dict(layer.state_dict())


def pooled(layer, x):
    """x / sqrt((b0 sigma)**2 + W x**2) in loops over places and channels."""
    p, squares = values(layer), to_numpy(x) ** 2
    if layer.pool != "channels":
        side, (h, w) = layer.pool_size, squares.shape[-2:]
        padded = np.pad(squares, [(0, 0)] * 2 + [(side // 2,) * 2] * 2)
        kernel = np.exp(p["log_w_space"])[:, :, :, None, None]
        squares = sum(kernel[:, i, j] * padded[..., i : i + h, j : j + w] for i, j in np.ndindex(side, side))
    squares = np.moveaxis(squares, -1 - layer.dimensions, -1)
    if layer.pool != "space":
        squares = squares @ np.exp(p["log_w"]).T
    a = np.moveaxis((layer.sigma * sigmoid(p["beta"])) ** 2 + squares, -1, -1 - layer.dimensions)
    return to_numpy(x) / np.sqrt(a)


NORMALIZATIONS = ({"pool": "channels"}, {"pool": "space", "pool_size": 3}, {"pool": "both", "pool_size": 3})


def normalization(channels=4, **options):
    layer = ot.DivisiveNormalization(channels, **{"sigma": 0.4, "seed": 1, "dtype": torch.float64} | options)
    with torch.no_grad():
        layer.beta += 0.3 * torch.arange(channels)
    return layer


@pytest.mark.parametrize("options", NORMALIZATIONS)
def test_normalization_is_the_equation(options):
    layer, x = normalization(**options), numbers(3, 2, 4, 5, 6)
    np.testing.assert_allclose(to_numpy(layer(x)), pooled(layer, x), rtol=1e-12)
    assert torch.allclose(layer(x[0]), layer(x)[0], rtol=1e-12)
    rates = normalization(output="rates", **options)
    assert torch.allclose(rates(x), layer(x).relu() ** 2, rtol=1e-12)
    assert torch.equal(layer.train()(x), layer.eval()(x))
    other = normalization(seed=2, **options)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    with pytest.raises(ValueError, match="DivisiveNormalization with output 'potentials'"):
        rates.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    assert torch.allclose(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x), rtol=1e-12)
    for order in (torch.channels_last, torch.contiguous_format):
        assert layer(x.contiguous(memory_format=order)).is_contiguous(memory_format=order)


def test_the_memory_format_of_images_is_kept():
    layer, x = ot.DivisiveNorm2d(4, 6, 3, padding="same", seed=1), numbers(3, 2, 4, 5, 6, dtype=torch.float32)
    for order in (torch.channels_last, torch.contiguous_format):
        found = layer(x.contiguous(memory_format=order))
        assert found.is_contiguous(memory_format=order)
        assert torch.allclose(found, layer(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", NORMALIZATIONS)
def test_normalization_has_right_slopes(options):
    layer, x = normalization(3, **options), numbers(3, 1, 3, 3, 4).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    options = {"fast_mode": True, "nondet_tol": 1e-12}
    assert torch.autograd.gradcheck(function, (x, *layer.parameters()), **options)
    assert torch.autograd.gradgradcheck(function, (x, *layer.parameters()), **options)


@pytest.mark.parametrize(("dimensions", "shape"), [(0, (4,)), (0, (2, 7, 4)), (1, (2, 4, 7)), (3, (2, 4, 2, 3, 2))])
def test_normalization_over_channels_wherever_they_are(dimensions, shape):
    layer, x = normalization(dimensions=dimensions), numbers(3, *shape)
    np.testing.assert_allclose(to_numpy(layer(x)), pooled(layer, x), rtol=1e-12)
    assert layer(x).is_contiguous()


@pytest.mark.parametrize("options", NORMALIZATIONS)
def test_normalization_of_large_and_small_numbers(options):
    x = numbers(3, 2, 4, 5, 6, dtype=torch.float32)
    wide, layer = normalization(**options), normalization(dtype=torch.float32, **options)
    for size in (1e20, 1e-25):
        given = (size * x).requires_grad_()
        want = to_numpy(wide(given.detach().double()))
        np.testing.assert_allclose(to_numpy(layer(given)), want, rtol=1e-5)
        [slope] = torch.autograd.grad(layer(given).square().sum() if size > 1 else layer(given).sum(), given)
        assert slope.isfinite().all()
    found = layer.half()((300 * x).half())  # whose squares are beyond half precision
    assert found.dtype == torch.float16
    np.testing.assert_allclose(to_numpy(found), to_numpy(wide(300 * x.double())), rtol=0.01, atol=1e-3)
    x[1, 0, 0, 0] = torch.nan
    found = layer.float()(x)
    assert bool(found[1, 0, 0, 0].isnan())
    assert bool(found[0].isfinite().all())
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("kind", ["normalization", "layer"])
def test_a_small_convolutional_network_learns(kind):
    """Which way a grating is turned, whatever its contrast: 0.5 by chance."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 128)
    phase, contrast = rng.uniform(0, 6.3, (128, 1, 1)), rng.uniform(0.1, 3, (128, 1, 1))
    waves = contrast * np.sin(2.1 * np.mgrid[:8, :8][labels] + phase)
    images, labels = torch.as_tensor(waves[:, None], dtype=torch.float32), torch.as_tensor(labels)
    if kind == "layer":
        body = [ot.DivisiveNorm2d(1, 6, 3, padding=1, pool_size=3, seed=0), ot.DivisiveNorm2d(6, 6, 3, seed=1)]
    else:
        block = [torch.nn.Conv2d(1, 6, 3, padding=1), ot.DivisiveNormalization(6, pool="both", pool_size=3, seed=0)]
        body = [*block, torch.nn.ReLU()]
    network = torch.nn.Sequential(*body, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    assert float((network(images).argmax(-1) == labels).float().mean()) > 0.95


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
    if RECENT_TORCH:
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
    with pytest.raises(ValueError, match=r"^x must be finite"):
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
        (lambda: ot.DivisiveNorm2d(1, 1, 3, padding="full"), ValueError, "padding must be .* got 'full'"),
        (lambda: ot.DivisiveNorm2d(1, 1, 3, stride=2, padding="same"), ValueError, "padding 'same' needs stride 1"),
        (lambda: ot.DivisiveNorm2d(1, 1, 3, stride=(1, 0)), ValueError, r"stride must be .* got \(1, 0\)"),
        (lambda: ot.DivisiveNorm2d(1, 1, 3, dilation=0), ValueError, "dilation must be .* got 0"),
        (lambda: ot.DivisiveNorm2d(4, 6, 3, groups=4), ValueError, "groups must divide in_channels 4"),
        (lambda: ot.DivisiveNorm2d(1, 1, 3, scale="max"), ValueError, "unknown scale 'max'"),
        (lambda: ot.DivisiveNorm2d(1, 1, 3, dilation=2)(torch.zeros(1, 4, 9)), ValueError, "smaller than the kernel"),
        (lambda: ot.DivisiveNorm(64), TypeError, "BatchNorm or LayerNorm alone write DivisiveNormalization"),
        (lambda: ot.DivisiveNorm2d(64), TypeError, "BatchNorm or LayerNorm alone write DivisiveNormalization"),
        (lambda: ot.DivisiveNorm2d(64, 64), TypeError, r"DivisiveNorm2d\(in_channels, out_channels, kernel_size\)"),
        (lambda: ot.DivisiveNormalization(0), ValueError, "num_features"),
        (lambda: ot.DivisiveNormalization(3, pool="all"), ValueError, "unknown pool 'all'"),
        (lambda: ot.DivisiveNormalization(3, output="y"), ValueError, "unknown output 'y'"),
        (lambda: ot.DivisiveNormalization(3, pool="space", dimensions=1), ValueError, "needs dimensions 2, got"),
        (lambda: ot.DivisiveNormalization(3, dimensions=-1), ValueError, "dimensions must be .* got -1"),
        (lambda: ot.DivisiveNormalization(3)(torch.zeros(2, 4, 5, 5)), ValueError, r"\(\.\.\., 3, H, W\), got shape"),
        (
            lambda: ot.DivisiveNormalization(3, pool="both")(torch.zeros(1, 2, 3, 5, 5)),
            ValueError,
            r"x must have shape \(N, 3, H, W\), N optional, got shape \(1, 2, 3, 5, 5\)",
        ),
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
