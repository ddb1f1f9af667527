"""The static layer in the core: its equations in loops, its start, its ball, and the same start in torch and jax."""

from __future__ import annotations

import math

import numpy as np
import pytest
from array_api_compat import array_namespace
from support import Library, gradient, numpy_tree, to_numpy

import organics_core as oc
from organics_core.cell import sigmoid
from organics_core.static import (
    POOLS,
    STATIC_RECURRENT,
    Convolution,
    check_places,
    convolutional_rates,
    init_normalization,
    init_static_2d,
    normalized,
    spectral_ball,
    unit,
)

K, N = 4, 5
SIGMA = 0.4

pytestmark = pytest.mark.one_dtype


def parameters_and_input(recurrent: str) -> tuple[oc.StaticParameters, np.ndarray]:
    rng = np.random.default_rng(3)
    parameters = oc.init_static(rng, K, N, recurrent=recurrent)
    parameters = parameters._replace(beta=rng.standard_normal(N))
    if recurrent == "spectral":
        parameters = parameters._replace(w_r=0.6 * parameters.w_r)
    return parameters, rng.standard_normal((3, K))


def in_library(xp: Library, parameters: oc.StaticParameters) -> oc.StaticParameters:
    return oc.StaticParameters(*(None if value is None else xp.array(value) for value in parameters))


@pytest.mark.parametrize("recurrent", STATIC_RECURRENT)
def test_output_is_the_fixed_point(xp64: Library, recurrent: str) -> None:
    """SPEC section 8 with plain loops, at the fixed point that was found."""
    p, x = parameters_and_input(recurrent)
    there = in_library(xp64, p)
    found = oc.static_steady_state(there, xp64.array(x), sigma=SIGMA)
    rates = oc.static_rates(there, xp64.array(x), sigma=SIGMA)
    y, a = numpy_tree(found.state)
    w_r = np.eye(N) if p.w_r is None else p.w_r
    for row in range(len(x)):
        drive = [sum(p.w_zx[i, j] * x[row, j] for j in range(K)) for i in range(N)]
        length = math.sqrt(sum(d * d for d in drive))
        for i in range(N):
            b = 1 / (1 + math.exp(-sum(p.w_bx[i, j] * x[row, j] for j in range(K))))
            b0 = 1 / (1 + math.exp(-p.beta[i]))
            recurrence = sum(w_r[i, j] * y[row, j] for j in range(N))
            pool = sum(math.exp(p.log_w[i, j]) * a[row, j] * y[row, j] ** 2 for j in range(N))
            expected = b * drive[i] / length + (1 - math.sqrt(a[row, i])) * recurrence
            assert y[row, i] == pytest.approx(expected, rel=1e-8, abs=1e-10)
            assert a[row, i] == pytest.approx((b0 * SIGMA) ** 2 + pool, rel=1e-8)
    xp64.assert_close(rates, np.maximum(y, 0) ** 2, rtol=1e-12)
    more = xp64.array(np.broadcast_to(x, (2, 3, K)).copy())  # any number of batch axes
    xp64.assert_close(oc.static_rates(there, more, sigma=SIGMA), np.maximum([y, y], 0) ** 2, rtol=1e-9, atol=1e-12)
    one = oc.static_rates(there, xp64.array(x[1]), sigma=SIGMA)
    xp64.assert_close(one, np.maximum(y[1], 0) ** 2, rtol=1e-9, atol=1e-12)


def test_start() -> None:
    """The ranges and the scales of the initialization; a generator goes on where it stands."""
    p = oc.init_static(0, 9, 40, recurrent="spectral")
    assert (np.diag(p.log_w) == 0).all()
    off = np.exp(p.log_w[~np.eye(40, dtype=bool)])
    assert off.min() > 0
    assert off.max() <= 1
    assert off.mean() == pytest.approx(0.5, abs=5 / math.sqrt(12 * off.size))
    for w in (p.w_zx, p.w_bx):
        assert np.abs(w).max() <= 1 / 3
        assert w.std() == pytest.approx(1 / 3 / math.sqrt(3), rel=5 / math.sqrt(w.size))
    assert (p.beta == 0).all()
    np.testing.assert_allclose(p.w_r.T @ p.w_r, (1 - 1e-6) ** 2 * np.eye(40), rtol=0, atol=1e-12)
    rng = np.random.default_rng(0)
    again = oc.init_static(rng, 9, 40)
    assert again.w_r is None
    for one, other in zip(p[:4], again[:4], strict=True):
        np.testing.assert_array_equal(one, other)
    assert (oc.init_static(rng, 9, 40).w_zx != p.w_zx).all()


def test_start_of_the_convolutional_layer() -> None:
    """Shapes, ranges and scales; pools are averages, largest at the centre; a generator goes on where it stands."""
    p = init_static_2d(3, 4, 50, 3, pool_size=7)
    assert p.w_r is None
    assert (p.beta == np.zeros(50)).all()
    assert p.log_w.shape == (50, 7, 7)
    centre = np.zeros((50, 7, 7), dtype=bool)
    centre[:, 3, 3] = True
    np.testing.assert_allclose(np.exp(p.log_w).sum((1, 2)), 1, rtol=1e-14)
    relative = np.exp(p.log_w - p.log_w[:, 3:4, 3:4])
    np.testing.assert_array_equal(relative == 1, centre)
    off = relative[~centre]
    assert off.min() > 0
    assert off.max() <= 1
    assert off.mean() == pytest.approx(0.5, abs=5 / math.sqrt(12 * off.size))
    for w in (p.w_zx, p.w_bx):  # 4 * 3 * 3 inputs
        assert w.shape == (50, 4, 3, 3)
        assert np.abs(w).max() <= 1 / 6
        assert w.std() == pytest.approx(1 / 6 / math.sqrt(3), rel=5 / math.sqrt(w.size))
    assert (p.w_zx != p.w_bx).all()
    rng = np.random.default_rng(3)
    again = init_static_2d(rng, 4, 50, 3, pool_size=7, dtype=np.float32)
    assert {part.dtype for part in again[:4]} == {np.dtype(np.float32)}
    for one, other in zip(p[:4], again[:4], strict=True):
        np.testing.assert_array_equal(one.astype(np.float32), other)
    assert (init_static_2d(rng, 4, 50, 3, pool_size=7).w_zx != p.w_zx).all()
    assert init_static_2d(0, 1, 1, 1).log_w.shape == (1, 5, 5)
    assert init_static_2d(0, 1, 1, 1).w_zx.dtype == np.float64
    grouped = init_static_2d(0, 4, 6, (3, 2), groups=2)
    assert grouped.w_zx.shape == (6, 2, 3, 2)
    assert np.abs(grouped.w_zx).max() <= 1 / math.sqrt(12)
    assert init_static_2d(0, 1, 2, 1, pool_size=1).log_w.tolist() == [[[0.0]], [[0.0]]]


@pytest.mark.parametrize("scale", ["rms", "norm"])
def test_rates_of_the_convolutional_layer(xp: Library, scale: str) -> None:
    """max(b z, 0)**2 / ((b0 sigma)**2 + W * (b z)**2) pixel by pixel; z of size one per channel, or silent."""
    rng = np.random.default_rng(0)
    drive, gain = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 3, 4, 5))
    drive[1, 2] = 0.0
    p = init_static_2d(1, 2, 3, 3, pool_size=3)._replace(beta=np.array([0.5, -1.0, 0.2]))

    def pool(squares: np.ndarray, kernels: np.ndarray) -> np.ndarray:
        found = np.zeros_like(squares)
        for b, d, i, j in np.ndindex(squares.shape):
            for k, m in np.ndindex(3, 3):
                if 0 <= i + k - 1 < 4 and 0 <= j + m - 1 < 5:
                    found[b, d, i, j] += kernels[d, k, m] * squares[b, d, i + k - 1, j + m - 1]
        return found

    want = np.zeros_like(drive)
    for b, d in np.ndindex(2, 3):
        square = sum(value**2 for value in drive[b, d].flat) / (20 if scale == "rms" else 1)
        length = math.sqrt(square) or 1.0
        y = drive[b, d] / length / (1 + np.exp(-gain[b, d]))
        floor = (SIGMA / (1 + math.exp(-p.beta[d]))) ** 2
        pooled = pool((y * y)[None, None], np.exp(p.log_w[d])[None])[0, 0]
        want[b, d] = np.maximum(y, 0) ** 2 / (floor + pooled)
    found = convolutional_rates(
        xp.namespace,
        in_library(xp, p),
        xp.array(drive),
        xp.array(gain),
        SIGMA,
        lambda squares, kernels: xp.array(pool(to_numpy(squares), to_numpy(kernels))),
        scale,
    )
    xp.assert_close(found, want, rtol=1e-12)


def test_start_of_normalization() -> None:
    """Weights that are averages, largest from a channel or a place to itself."""
    for pool in POOLS:
        p = init_normalization(1, 6, pool=pool, pool_size=3, dtype=np.float32)
        assert (p.log_w is None) == (pool == "space")
        assert (p.log_w_space is None) == (pool == "channels")
        assert (p.beta == 0).all()
        assert p.beta.dtype == np.float32
        if p.log_w is not None:
            assert p.log_w.dtype == np.float32
            np.testing.assert_allclose(np.exp(p.log_w).sum(1), 1, rtol=1e-6)
            np.testing.assert_array_equal(p.log_w.argmax(1), np.arange(6))
        if p.log_w_space is not None:
            assert p.log_w_space.shape == (6, 3, 3)
            np.testing.assert_allclose(np.exp(p.log_w_space).sum((1, 2)), 1, rtol=1e-6)
    assert (init_normalization(1, 6).log_w != init_normalization(2, 6).log_w).any()


def test_normalization_whatever_the_size_of_its_numbers(xp: Library) -> None:
    """x / sqrt((b0 sigma)**2 + W x**2) against numpy's long double, also where sizes are mixed."""
    rng = np.random.default_rng(0)
    w, beta = np.exp(rng.standard_normal((4, 4))), np.array([0.3, -1.0, 0.0, 2.0])
    most = 1e200 if xp.eps < 1e-10 else 1e30
    sizes = np.array([1.0, 1 / most, most, 1e3, 1e10, 1e16, 1e25])
    x = rng.standard_normal((8, 4))
    x[:7] *= sizes[:, None]
    x[7] *= [1.0, most, 1e10, 0.0]

    def pool(squares: object) -> object:
        return xp.array(to_numpy(squares) @ w.T)

    wide = xp.array(x)
    x, long = to_numpy(wide).astype(np.longdouble), np.longdouble
    b0, w_seen = 1 / (1 + np.exp(-beta.astype(long))), w.astype(long)
    y = x / np.sqrt((b0 * SIGMA) ** 2 + x**2 @ w_seen.T)
    for output, want in (("potentials", y), ("rates", np.maximum(y, 0) ** 2)):
        found = normalized(xp.namespace, wide, xp.array(beta), SIGMA, pool, 0, output)
        limit = np.finfo(np.float32 if xp.eps > 1e-10 else np.float64).tiny
        xp.assert_close(found, want.astype(float), rtol=100 * xp.eps, atol=10 * limit)
    for wrong in (np.nan, np.inf):
        x = np.ones((2, 4))
        x[1, 2] = wrong
        with np.errstate(invalid="ignore"):
            found = to_numpy(normalized(xp.namespace, xp.array(x), xp.array(beta), SIGMA, pool, 0, "potentials"))
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1, 2])
    x = np.zeros((1, 4))
    tiny = normalized(xp.namespace, xp.array(x), xp.array(beta), 1e-30 if xp.eps > 1e-10 else 1e-200, pool, 0, "rates")
    xp.assert_close(tiny, x)


def test_ball(xp: Library) -> None:
    """Inside it a matrix stays as it is, outside it is scaled onto the ball; batches work."""
    rng = np.random.default_rng(1)
    v = rng.standard_normal((3, 4, 4))
    v[0] *= 0.5 / np.linalg.norm(v[0], 2)
    v[1] *= 3 / np.linalg.norm(v[1], 2)
    v[2] *= 1.5 / np.linalg.norm(v[2], 2)
    expected = np.stack([m / max(1.0, np.linalg.norm(m, 2)) for m in v])
    xp.assert_close(spectral_ball(xp.namespace, xp.array(v)), expected, rtol=1e-13)


def test_ball_in_half_precision() -> None:
    """Which has no decomposition of its own: by way of single precision."""
    v = np.array([[3.0, 0.0], [0.0, 0.5]], dtype=np.float16)
    found = spectral_ball(array_namespace(v), v)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, v / 3, rtol=2e-3)


@pytest.mark.parametrize("recurrent", STATIC_RECURRENT)
def test_silent_input(xp: Library, recurrent: str) -> None:
    p, _ = parameters_and_input(recurrent)
    xp.assert_close(oc.static_rates(in_library(xp, p), xp.array(np.zeros((2, K)))), np.zeros((2, N)))


@pytest.mark.parametrize("beta", [-20.0, -60.0, -800.0])
def test_silent_input_under_a_small_floor(xp: Library, beta: float) -> None:
    """Zeros where the square of b0 sigma is small, or vanishes; and elsewhere what the equations say."""
    p, x = parameters_and_input("identity")
    p = p._replace(beta=np.full(N, beta))
    x[0] = 0.0
    found = to_numpy(oc.static_rates(in_library(xp, p), xp.array(x)))
    bz = x[1:] @ p.w_zx.T
    bz = bz / np.linalg.norm(bz, axis=-1, keepdims=True) / (1 + np.exp(-x[1:] @ p.w_bx.T))
    want = np.maximum(bz, 0) ** 2 / (bz**2 @ np.exp(p.log_w).T)
    assert not found[0].any()
    xp.assert_close(xp.array(found[1:]), want, rtol=1e-9)
    zero = np.zeros((1, 2, 3, 3))
    parameters = in_library(xp, init_static_2d(1, 2, 2, 1, pool_size=1)._replace(beta=np.full(2, beta)))
    images = convolutional_rates(
        xp.namespace, parameters, xp.array(zero), xp.array(zero), SIGMA, lambda squares, kernels: squares
    )
    assert not to_numpy(images).any()


def test_small_shares(xp: Library) -> None:
    """Of b0 the sigmoid is as accurate where it is small."""
    x = np.array([-80.0, -30.0, -16.0, -1.0, 0.0, 2.0, 90.0, -np.inf, np.inf])
    found = sigmoid(xp.namespace, xp.array(x))
    with np.errstate(over="ignore"):
        xp.assert_close(found, 1 / (1 + np.exp(-x)), rtol=20 * xp.eps)
    assert np.isnan(to_numpy(sigmoid(xp.namespace, xp.array(np.array([np.nan])))))


@pytest.mark.library("torch", "jax")
def test_slope_of_small_shares(xp64: Library) -> None:
    x = np.array([-30.0, -1.0, 0.0, 2.0, 40.0])
    found = gradient(xp64, lambda v: sigmoid(xp64.namespace, v).sum(), x)
    np.testing.assert_allclose(found, np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))) ** 2, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("size", [1e20, 1e-25, 1e30, 1e-40])
def test_size_does_not_matter(xp: Library, size: float) -> None:
    """The unit vector of numbers whose squares overflow or vanish."""
    u = np.random.default_rng(1).standard_normal((3, 7))
    u[1] = 0
    size = size if xp.eps > 1e-10 else size**7
    found = unit(xp.namespace, xp.array(size * u), -1)
    expected = u / np.where(u.any(-1, keepdims=True), np.linalg.norm(u, axis=-1, keepdims=True), 1)
    xp.assert_close(found, expected, rtol=1e-3 if size == 1e-40 else 1e-6)
    u[0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        assert np.isnan(to_numpy(unit(xp.namespace, xp.array(u), -1))).any()


@pytest.mark.library("torch", "jax")
def test_slope_of_a_unit_vector(xp64: Library) -> None:
    """(I - v v^T) / ||u||, whatever the size of u."""
    u = np.random.default_rng(1).standard_normal(5)
    v = u / np.linalg.norm(u)
    weights = np.arange(5.0)
    expected = (weights - v * (v @ weights)) / np.linalg.norm(u)
    for size in (1.0, 1e200, 1e-200):
        found = gradient(xp64, lambda x: (unit(xp64.namespace, x, -1) * xp64.array(weights)).sum(), size * u)
        np.testing.assert_allclose(size * found, expected, rtol=1e-12)


def test_nan_comes_through(xp: Library) -> None:
    p, x = parameters_and_input("identity")
    x[1, 0] = np.nan
    found = to_numpy(oc.static_rates(in_library(xp, p), xp.array(x)))
    assert np.isnan(found).tolist() == [[False] * N, [True] * N, [False] * N]


def test_a_gain_that_rounds_to_zero(xp: Library) -> None:
    """Inputs so large that a sigmoid rounds to 0 have a fixed point; what is not finite is refused by its name."""
    p, x = parameters_and_input("spectral")
    wanted = oc.static_rates(p, 1e4 * x, sigma=SIGMA)
    assert (1e4 * x @ p.w_bx.T < -800).any()
    found = oc.static_rates(in_library(xp, p), xp.array(1e4 * x), sigma=SIGMA)
    xp.assert_close(found, wanted, rtol=0, atol=1e-5 if xp.precision == "float32" else 1e-12)
    x[1, 0] = np.nan
    with pytest.raises(ValueError, match=r"^x must be finite"):
        oc.static_rates(in_library(xp, p), xp.array(x))


def test_nothing_found_is_nan() -> None:
    p, x = parameters_and_input("spectral")
    p = p._replace(w_r=p.w_r / 0.6)
    assert np.isnan(oc.static_rates(p, x, max_iterations=1)).all()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda p, x: oc.static_rates(tuple(p), x), TypeError, "^parameters must be StaticParameters, got tuple$"),
        (lambda p, x: oc.static_rates([*p], x), TypeError, "^parameters must be StaticParameters, got list$"),
        (
            lambda p, x: oc.static_rates(p, x[:, 1:]),
            ValueError,
            r"^x must have shape \(\.\.\., 4\), got shape \(3, 3\)$",
        ),
        (lambda p, x: oc.static_rates(p, x.tolist()), TypeError, "^x must be an array"),
        (lambda p, x: oc.static_rates(p._replace(beta=None), x), TypeError, "^beta must be an array"),
        (
            lambda p, x: oc.static_rates(p._replace(w_bx=p.w_bx[1:]), x),
            ValueError,
            r"^w_bx must have shape \(5, 4\), got shape \(4, 4\)$",
        ),
        (
            lambda p, x: oc.static_rates(p._replace(w_zx=p.w_zx[1:]), x),
            ValueError,
            r"^w_zx must have shape \(5, 4\), got",
        ),
        (
            lambda p, x: oc.static_rates(p._replace(log_w=np.ones((5, 4))), x),
            ValueError,
            "^log_w must be square, of shape",
        ),
        (
            lambda p, x: oc.static_rates(p._replace(w_r=np.eye(3)), x),
            ValueError,
            r"^w_r must be square, of shape \(\.\.\., 5, 5",
        ),
        (
            lambda p, x: oc.static_rates(p._replace(beta=p.beta[1:]), x),
            ValueError,
            r"^beta must have shape \(\.\.\., 5\), got",
        ),
        (lambda p, x: oc.static_rates(p, x, sigma=0.0), ValueError, "^sigma must be positive and finite, got 0$"),
        (
            lambda p, x: oc.static_steady_state(p, x, sigma=-1.0),
            ValueError,
            "^sigma must be positive and finite, got -1$",
        ),
        (lambda p, x: oc.init_static(0, 0, 3), ValueError, "^in_features must be at least 1, got 0$"),
        (lambda p, x: oc.init_static(0, 3, 0), ValueError, "^out_features must be at least 1, got 0$"),
        (lambda p, x: oc.init_static(0, 3, 3, recurrent="orthogonal"), ValueError, "^unknown recurrent 'orthogonal'"),
        (lambda p, x: init_static_2d(0, 0, 1, 3), ValueError, "^in_channels must be at least 1, got 0$"),
        (lambda p, x: init_static_2d(0, 1, 0, 3), ValueError, "^out_channels must be at least 1, got 0$"),
        (lambda p, x: init_static_2d(0, 1, 1, 0), ValueError, "^kernel_size must be an integer of at least 1, or two"),
        (lambda p, x: init_static_2d(0, 1, 1, (3, 3, 3)), ValueError, r"kernel_size .* got \(3, 3, 3\)$"),
        (lambda p, x: init_static_2d(0, 4, 6, 3, groups=4), ValueError, "groups must divide in_channels 4 and out_"),
        (lambda p, x: init_normalization(0, 0), ValueError, "^num_features must be at least 1, got 0$"),
        (lambda p, x: init_normalization(0, 3, pool="batch"), ValueError, "^unknown pool 'batch'; choose one of"),
        (lambda p, x: init_normalization(0, 3, pool="space", pool_size=2), ValueError, "^pool_size must be odd, got 2"),
        (lambda p, x: init_static_2d(0, 1, 1, 3, pool_size=0), ValueError, "^pool_size must be at least 1, got 0$"),
        (lambda p, x: init_static_2d(0, 1, 1, 3, pool_size=4), ValueError, "pool_size must be odd, got 4"),
    ],
)
def test_bad_input(make, error, words) -> None:
    with pytest.raises(error, match=words):
        make(*parameters_and_input("identity"))


@pytest.mark.library("torch", "jax", together=True)
@pytest.mark.parametrize("seed", [0, 7, 2**31 + 5])
@pytest.mark.parametrize("recurrent", STATIC_RECURRENT)
def test_one_seed_is_one_start_in_torch_and_jax(recurrent: str, seed: int) -> None:
    """And both layers are the core's."""
    import jax
    import torch

    import organics_jax
    import organics_torch

    core = oc.init_static(seed, K, N, recurrent=recurrent, dtype=np.float32)
    one = organics_torch.DivisiveNorm(K, N, recurrent=recurrent, seed=seed)
    other = organics_jax.DivisiveNorm(K, N, recurrent=recurrent, key=jax.random.key(seed), dtype=np.float32)
    for name, value in core._asdict().items():
        if value is None:
            assert getattr(one, name) is None
            assert getattr(other, name) is None
        else:
            np.testing.assert_array_equal(to_numpy(getattr(one, name)), value)
            np.testing.assert_array_equal(getattr(other, name), value)
    x = np.random.default_rng(2).standard_normal((3, K)).astype(np.float32)
    expected = oc.static_rates(core, x)
    np.testing.assert_allclose(to_numpy(one(torch.as_tensor(x))), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(other(x), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.library("torch", "jax", together=True)
def test_one_seed_is_one_start_of_the_convolutional_layer_and_of_the_cell() -> None:
    import jax

    import organics_jax
    import organics_torch

    core = init_static_2d(5, 2, 3, 3, pool_size=3, dtype=np.float32)
    one = organics_torch.DivisiveNorm2d(2, 3, 3, pool_size=3, seed=5)
    other = organics_jax.DivisiveNorm2d(2, 3, 3, pool_size=3, key=jax.random.key(5), dtype=np.float32)
    for name in ("w_zx", "w_bx", "log_w", "beta"):
        np.testing.assert_array_equal(to_numpy(getattr(one, name)), getattr(core, name))
        np.testing.assert_array_equal(getattr(other, name), getattr(core, name))
    cell = organics_torch.ORGaNICsCell(K, N, seed=5)
    its = organics_jax.ORGaNICsCell(K, N, key=jax.random.key(5), dtype=np.float32)
    np.testing.assert_array_equal(to_numpy(cell.w_r), its.parameters.w_r)
    np.testing.assert_array_equal(cell.start_y, its.start.y)


@pytest.mark.parametrize(
    ("settings", "around"),
    [
        ((3, 1, "valid", 1, 1), [(0, 0), (0, 0)]),
        ((3, 2, 0, 1, 1), [(0, 0), (0, 0)]),
        ((3, 1, (1, 2), 1, 1), [(1, 1), (2, 2)]),
        ((5, 1, "same", 1, 1), [(2, 2), (2, 2)]),
        (((2, 5), 1, "same", (1, 3), 1), [(0, 1), (6, 6)]),
    ],
)
def test_zeros_around_an_image(settings, around) -> None:
    """dilation (kernel - 1) of them keep the size, the odd one behind; and no image is smaller than the kernel."""
    made = Convolution.checked(*settings)
    assert made.around() == around
    kernel, dilation = (np.broadcast_to(settings[k], 2) for k in (0, 3))
    least = np.maximum(dilation * (kernel - 1) + 1 - np.sum(around, axis=1), 1)
    made.check_image(np.ones((1, *least)), 1)
    for axis in np.flatnonzero(least > 1):
        less = least - (np.arange(2) == axis)
        with pytest.raises(ValueError, match="x is smaller than the kernel"):
            made.check_image(np.ones((1, *less)), 1)


@pytest.mark.parametrize(
    ("shape", "pool", "wanted"),
    [
        ((4, 6, 6), "channels", r"\(\.\.\., 3, H, W\)"),
        ((3, 6), "channels", r"\(\.\.\., 3, H, W\)"),
        ((4, 6, 6), "space", r"\(N, 3, H, W\), N optional"),
        ((2, 2, 3, 6, 6), "space", r"\(N, 3, H, W\), N optional"),
    ],
)
def test_shapes_of_what_is_normalized(shape, pool, wanted) -> None:
    """Pools over space allow one batch axis, others any number."""
    with pytest.raises(ValueError, match=rf"^x must have shape {wanted}, got shape \({', '.join(map(str, shape))}\)"):
        check_places("x", np.ones(shape), 3, 2, pool)
    check_places("x", np.ones((2, 2, 3, 6, 6)), 3, 2, "channels")
    check_places("x", np.ones((2, 3, 6, 6)), 3, 2, "space")
