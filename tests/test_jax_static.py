"""organics_jax: the static normalization layers."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import organics_core as oc
from organics_jax import DivisiveNorm, DivisiveNorm2d, DivisiveNormalization

KEY = jax.random.key(3)


@pytest.mark.parametrize("recurrent", ["identity", "spectral"])
def test_output_is_the_fixed_point_of_the_circuit(recurrent):
    """Against the core, and against the equations themselves."""
    layer = DivisiveNorm(3, 5, key=KEY, recurrent=recurrent, dtype=jnp.float64)
    x = jax.random.normal(jax.random.key(1), (4, 3))
    found = layer.steady_state(x)
    assert bool(jnp.all(found.converged))
    z = x @ layer.w_zx.T
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    b, b0 = jax.nn.sigmoid(x @ layer.w_bx.T), jax.nn.sigmoid(layer.beta)
    w_r = jnp.eye(5) if layer.w_r is None else layer.w_r
    for i in range(4):
        circuit = oc.Circuit(w_r, jnp.exp(layer.log_w), b[i], b0, layer.sigma, 1.0, 1.0)
        slope = oc.vector_field(circuit, oc.State(found.state.y[i], found.state.a[i]), z[i])
        assert float(jnp.max(jnp.abs(jnp.concatenate(slope)))) < 1e-10
    np.testing.assert_allclose(layer(x), jnp.maximum(found.state.y, 0) ** 2, rtol=1e-12)


@pytest.mark.parametrize("size", [30.0, 1e20, 1e-25])
@pytest.mark.parametrize("kind", ["vector", "image"])
def test_size_of_the_input_drive_does_not_matter(kind, size):
    """Numbers whose squares overflow, or vanish: the drive is of unit norm before its gain."""
    dtype = jnp.float16 if size == 30 else jnp.float32
    made = (DivisiveNorm, (3, 300)) if kind == "vector" else (DivisiveNorm2d, (2, 3, 3))
    layer = made[0](*made[1], key=KEY, dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(1), (2, 3) if kind == "vector" else (2, 2, 40, 40), jnp.float32)
    grown = 300 if size == 30 else 1
    layer = eqx.tree_at(lambda m: (m.w_bx, m.w_zx), layer, (0 * layer.w_bx, grown * layer.w_zx))
    outputs = eqx.filter_jit(lambda layer, x: layer(x))
    wanted = outputs(layer, x)
    found = outputs(jax.tree.map(lambda leaf: leaf.astype(dtype), layer), (size * x).astype(dtype))
    assert found.dtype == dtype
    worst = jnp.abs(found.astype(jnp.float32) - wanted).max() / wanted.max()
    assert float(worst) < (0.01 if dtype == jnp.float16 else 1e-5)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(layer(x) ** 2)))(size * x)
    assert bool(jnp.isfinite(slope).all())


def test_nan_comes_through():
    x = jnp.ones((3, 3)).at[1, 0].set(jnp.nan)
    for recurrent in ("identity", "spectral"):
        found = jax.jit(DivisiveNorm(3, 5, key=KEY, recurrent=recurrent).__call__)(x)
        assert jnp.isnan(found[1]).all()
    assert jnp.isnan(DivisiveNorm(3, 5, key=KEY)(x)).all(-1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"^x must be finite"):
        DivisiveNorm(3, 5, key=KEY, recurrent="spectral")(x)
    images = jnp.ones((2, 1, 6, 6)).at[0, 0, 0, 0].set(jnp.nan)
    found = DivisiveNorm2d(1, 3, 3, key=KEY)(images)
    assert bool(jnp.isnan(found[0]).all())
    assert bool(jnp.isfinite(found[1]).all())


@pytest.mark.parametrize("recurrent", ["identity", "spectral"])
def test_gradients_against_finite_differences(recurrent):
    layer = DivisiveNorm(3, 4, key=KEY, recurrent=recurrent, dtype=jnp.float64)
    if recurrent == "spectral":  # away from the kink at norm 1, where it starts
        layer = eqx.tree_at(lambda m: m.w_r, layer, jax.random.normal(jax.random.key(2), (4, 4)))
    x = jax.random.normal(jax.random.key(1), (2, 3))
    weights = jnp.arange(8.0).reshape(2, 4)

    def loss(layer, x):
        return jnp.sum(weights * layer(x))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True))(layer, x)
    leaves, tree = jax.tree.flatten((layer, x))
    rng = np.random.default_rng(0)
    compiled = jax.jit(loss)
    for index, leaf in enumerate(leaves):
        direction = jnp.asarray(rng.standard_normal(leaf.shape))

        def along(h, index=index, direction=direction):
            moved = [value + h * direction if i == index else value for i, value in enumerate(leaves)]
            return float(compiled(*jax.tree.unflatten(tree, moved)))

        numeric = (along(1e-5) - along(-1e-5)) / 2e-5
        analytic = float(jnp.sum(jax.tree.leaves(gradient)[index] * direction))
        assert analytic == pytest.approx(numeric, rel=1e-5, abs=1e-7)


def test_convolution_normalizes_within_a_channel():
    """Against loops over pixels and channels."""
    layer = DivisiveNorm2d(2, 3, 3, padding=1, pool_size=3, scale="norm", key=KEY, dtype=jnp.float64)
    x = jax.random.normal(jax.random.key(1), (2, 2, 5, 4))
    got = np.asarray(layer(x))
    assert got.shape == (2, 3, 5, 4)
    pad = np.pad(np.asarray(x), ((0, 0), (0, 0), (1, 1), (1, 1)))

    def convolve(kernel, i, j):
        return np.einsum("ncuv,dcuv->nd", pad[:, :, i : i + 3, j : j + 3], np.asarray(kernel))

    z, gain = (
        np.stack([np.stack([convolve(k, i, j) for j in range(4)], -1) for i in range(5)], -2)
        for k in (layer.w_zx, layer.w_bx)
    )
    z = z / np.sqrt((z**2).sum((-2, -1), keepdims=True))
    drive = z / (1 + np.exp(-gain))
    squared = np.pad(drive**2, ((0, 0), (0, 0), (1, 1), (1, 1)))
    pool = np.zeros_like(drive)
    for u in range(3):
        for v in range(3):
            pool += np.exp(np.asarray(layer.log_w))[:, u, v][:, None, None] * squared[:, :, u : u + 5, v : v + 4]
    floor = (0.5 * layer.sigma) ** 2
    np.testing.assert_allclose(got, np.maximum(drive, 0) ** 2 / (floor + pool), rtol=1e-10)
    np.testing.assert_allclose(layer(x[0]), got[0], rtol=1e-10)


def test_silent_input_has_finite_gradients():
    layer = DivisiveNorm(3, 4, key=KEY)
    gradient = jax.grad(lambda x: jnp.sum(layer(x)))(jnp.zeros((2, 3)))
    assert bool(jnp.all(jnp.isfinite(gradient)))


def test_newton_wants_more_than_half_precision():
    with pytest.raises(TypeError, match="dtype must be float32 or float64 with recurrent='spectral', got bfloat16"):
        DivisiveNorm(3, 4, key=KEY, recurrent="spectral", dtype=jnp.bfloat16)
    assert DivisiveNorm(3, 4, key=KEY, dtype=jnp.bfloat16)(jnp.ones(3)).dtype == jnp.bfloat16


def test_not_converged_is_nan_and_readable():
    layer = DivisiveNorm(3, 4, key=KEY, recurrent="spectral", max_iterations=1)
    found = layer.steady_state(jnp.ones((2, 3)))
    assert not bool(jnp.any(found.converged))
    assert bool(jnp.all(jnp.isnan(layer(jnp.ones((2, 3))))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DivisiveNorm(0, 2, key=KEY), "in_features"),
        (lambda: DivisiveNorm(2, 2, key=KEY, recurrent="orthogonal"), "recurrent"),
        (lambda: DivisiveNorm(2, 2, key=KEY, sigma=0.0), "sigma"),
        (lambda: DivisiveNorm2d(1, 2, 3, key=KEY, pool_size=4), "pool_size must be odd, got 4"),
        (lambda: DivisiveNorm2d(1, 2, 3, key=KEY, padding=-1), "padding must be an integer of at least 0, .* got -1"),
        (lambda: DivisiveNorm2d(1, 2, 3, key=KEY, padding="full"), "padding must be an integer .* got 'full'"),
        (lambda: DivisiveNorm2d(1, 2, 3, key=KEY, scale="max"), "unknown scale 'max'"),
        (lambda: DivisiveNormalization(0, key=KEY), "num_features must be at least 1"),
        (lambda: DivisiveNormalization(3, key=KEY, output="y"), "unknown output 'y'"),
        (lambda: DivisiveNormalization(3, key=KEY)(jnp.ones((2, 4, 5, 5))), r"x must have shape \(\.\.\., 3, H, W\)"),
        (lambda: DivisiveNorm(2, 2, key=KEY)(jnp.ones((3, 3))), "x must have shape"),
        (lambda: DivisiveNorm2d(1, 2, 3, key=KEY)(jnp.ones((2, 2))), "x must have shape"),
        (lambda: DivisiveNorm2d(1, 2, 3, key=KEY)(jnp.ones((1, 2, 2))), "smaller than the kernel"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_layer_in_place_of_a_normalization_says_what_it_replaces():
    for make in (lambda: DivisiveNorm(64, key=KEY), lambda: DivisiveNorm2d(64, key=KEY)):
        with pytest.raises(TypeError, match="BatchNorm or LayerNorm alone write DivisiveNormalization"):
            make()


@pytest.mark.library("torch", "jax", together=True)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 0), "dilation": (2, 1)},
        {"kernel_size": (2, 5), "padding": "same", "dilation": 2, "groups": 2},
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_convolutions_are_those_of_torch(options):
    import torch

    import organics_torch

    x = np.random.default_rng(0).standard_normal((2, 2, 9, 8))
    found = DivisiveNorm2d(2, 4, key=KEY, dtype=jnp.float64, **options)(x)
    want = organics_torch.DivisiveNorm2d(2, 4, seed=3, dtype=torch.float64, device="cpu", **options)(torch.as_tensor(x))
    np.testing.assert_allclose(found, want.detach().numpy(), rtol=1e-10)


@pytest.mark.library("torch", "jax", together=True)
@pytest.mark.parametrize("pool", ["channels", "space", "both"])
def test_normalization_is_that_of_torch(pool):
    """In values and slopes, in every size; and without a batch."""
    import torch

    import organics_torch

    x = np.random.default_rng(0).standard_normal((2, 4, 5, 6)).astype(np.float32)
    x[1] *= 1e20
    layer = DivisiveNormalization(4, pool=pool, pool_size=3, key=KEY, dtype=jnp.float32)
    like = organics_torch.DivisiveNormalization(4, pool=pool, pool_size=3, seed=3, dtype=torch.float32, device="cpu")
    given = torch.as_tensor(x).requires_grad_()
    want = like(given)
    [slope] = torch.autograd.grad(want.sum(), given)
    found = jax.jit(jax.grad(lambda x: layer(x).sum()))(x)
    np.testing.assert_allclose(layer(x), want.detach().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[0], slope[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(1e20 * found[1], 1e20 * slope[1], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(layer(x[0]), layer(x)[0], rtol=1e-5)
    assert bool(jnp.isnan(layer(jnp.full((4, 5, 6), jnp.nan))).all())
