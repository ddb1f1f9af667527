"""The static normalization layer: its parameters, their initialization, and the circuit whose fixed point it puts out.

Source: Rawat, Heeger & Martiniani (NeurIPS 2024), the layer that is trained at its fixed point::

    z = W_zx x / ||W_zx x||,   b = sigmoid(W_bx x),   b0 = sigmoid(beta),   W = exp(V)
    y = b z + (1 - sqrt(a)) W_r y,   a = (b0 sigma)**2 + W (a y**2),   output max(y, 0)**2

W_r is the identity, or free within the ball of spectral norm 1. The layers of
torch and jax hold the parameters and call what stands here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from . import checks
from .backend import Array, get_backend
from .cell import sigmoid
from .circuit import Circuit, identity_fixed_point, relu
from .equilibria import SteadyState, steady_state
from .linalg import diagonal_matrix
from .weights import matvec

STATIC_RECURRENT = ("identity", "spectral")


class StaticParameters(NamedTuple):
    """What the static layer learns (n neurons, k inputs).

    Attributes
    ----------
    w_zx, w_bx : array (n, k)
        Input weights, and those of the input gain. In the convolutional layer
        kernels (d, c, s, s), for d channels out of c.
    log_w : array (n, n)
        V, with the normalization weights W = exp(V). In the convolutional
        layer a kernel (d, m, m).
    beta : array (n,) or (d,)
        Logit of the normalization gain b0.
    w_r : array (n, n) or None
        Recurrent weights W_r; ``None`` is the identity.
    """

    w_zx: Array
    w_bx: Array
    log_w: Array
    beta: Array
    w_r: Array = None


def init_static(
    seed: int | np.random.Generator,
    in_features: int,
    out_features: int,
    *,
    recurrent: str = "identity",
    dtype: Any = np.float64,
) -> StaticParameters:
    """Fresh parameters of the static layer, as numpy arrays.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    in_features, out_features : int
        k and n.
    recurrent : {"identity", "spectral"}
        W_r the identity (``w_r=None``), or learned within the ball of spectral
        norm 1.
    dtype : numpy dtype
        float32 or float64.

    Returns
    -------
    StaticParameters
        V with zero diagonal and off-diagonal log U(0, 1); the input weights
        U(-1/sqrt(k), 1/sqrt(k)), that is Kaiming-uniform with a = sqrt(5);
        beta = 0; W_r orthogonal, a hair inside the ball, so that rounding does
        not put it outside.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1 or an unknown ``recurrent``.

    Examples
    --------
    >>> init_static(0, 3, 5).log_w.shape
    (5, 5)
    """
    k = checks.positive_integer("in_features", in_features)
    n = checks.positive_integer("out_features", out_features)
    checks.one_of("recurrent", recurrent, STATIC_RECURRENT)
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    log_w = np.log(1.0 - rng.random((n, n)))  # 1 - U is in (0, 1]: no log of zero
    np.fill_diagonal(log_w, 0.0)
    w_zx, w_bx = _kaiming(rng, n, k), _kaiming(rng, n, k)
    w_r = np.linalg.qr(rng.standard_normal((n, n)))[0] * (1 - 1e-6) if recurrent == "spectral" else None
    return _cast((w_zx, w_bx, log_w, np.zeros(n), w_r), dtype)


def init_static_2d(
    seed: int | np.random.Generator,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    pool_size: int = 5,
    dtype: Any = np.float64,
) -> StaticParameters:
    """Fresh parameters of the convolutional static layer, as numpy arrays.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    in_channels, out_channels, kernel_size : int
        c, d and s.
    pool_size : int
        Side m of the normalization pool, odd.
    dtype : numpy dtype
        float32 or float64.

    Returns
    -------
    StaticParameters
        As :func:`init_static`, V zero at the centre of every kernel; ``w_r=None``.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1 or an even pool.
    """
    c = checks.positive_integer("in_channels", in_channels)
    d = checks.positive_integer("out_channels", out_channels)
    s = checks.positive_integer("kernel_size", kernel_size)
    m = checks.positive_integer("pool_size", pool_size)
    if m % 2 == 0:
        raise ValueError(f"pool_size must be odd, got {m}")
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    log_w = np.log(1.0 - rng.random((d, m, m)))
    log_w[:, m // 2, m // 2] = 0.0
    return _cast((_kaiming(rng, d, c, s, s), _kaiming(rng, d, c, s, s), log_w, np.zeros(d), None), dtype)


def _kaiming(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), that is Kaiming-uniform with a = sqrt(5)."""
    bound = 1.0 / np.sqrt(np.prod(shape[1:]))
    return rng.uniform(-bound, bound, shape)


def _cast(values: tuple[Any, ...], dtype: Any) -> StaticParameters:
    return StaticParameters(*(None if value is None else np.asarray(value, dtype=dtype) for value in values))


def unit(xp: Any, u: Array, axis: int | tuple[int, ...]) -> Array:
    """u / ||u|| along ``axis``, and 0 (with derivative 0) where u is 0; half precision gives float32.

    The numbers are first divided by a power of two near the largest of them: their squares would overflow, or vanish.
    """
    u = widened(xp, u)
    largest = xp.max(xp.abs(u), axis=axis, keepdims=True)
    largest = xp.where((largest > 0) & (largest < xp.inf), largest, 1.0)
    exponent = xp.astype(xp.floor(xp.log2(largest)), xp.int32)  # integers: what depends on them has no derivative
    most = 126 if xp.finfo(u.dtype).bits == 32 else 1022  # so that the power, too, is a number
    exponent = xp.astype(xp.clip(exponent, -most, most), u.dtype)
    u = u * xp.asarray(2.0, dtype=u.dtype, device=device(u)) ** -exponent
    square = xp.sum(u * u, axis=axis, keepdims=True)
    silent = square == 0
    return u / xp.where(silent, 1.0, xp.sqrt(xp.where(silent, 1.0, square)))


def widened(xp: Any, x: Array) -> Array:
    """``x`` in float32 at least."""
    return xp.astype(x, xp.float32) if xp.finfo(x.dtype).bits < 32 else x


def spectral_ball(xp: Any, v: Array) -> Array:
    """V / max(1, ||V||_2): matrices (..., n, n) inside the ball of spectral norm 1 stay as they are."""
    wide = widened(xp, v)  # half precision has no decomposition
    outside = xp.linalg.matrix_norm(get_backend(xp).stop_gradient(wide), ord=2) > 1
    # inside, where matrices may have equal singular values, the norm's second derivatives are no one's business
    levels = xp.arange(1, v.shape[-1] + 1, dtype=wide.dtype, device=device(v))
    norm = xp.linalg.matrix_norm(xp.where(outside[..., None, None], wide, diagonal_matrix(xp, levels)), ord=2)
    return v / xp.where(outside, xp.astype(norm, v.dtype), 1.0)[..., None, None]


def static_circuit(xp: Any, parameters: StaticParameters, x: Array, sigma: Array | float) -> tuple[Circuit, Array]:
    """The circuit under x (..., k), of time constants 1, and its drive z (..., n); unchecked, so that it traces."""
    p = parameters
    drive = matvec(xp, p.w_zx, x)
    z = xp.astype(unit(xp, drive, -1), drive.dtype)
    gain, normalization = sigmoid(xp, matvec(xp, p.w_bx, x)), sigmoid(xp, p.beta)
    return Circuit._make((p.w_r, xp.exp(p.log_w), gain, normalization, sigma, 1.0, 1.0)), z


def squared_rates(xp: Any, y: Array) -> Array:
    """The output max(y, 0)**2."""
    return relu(xp, y) ** 2


def closed_form_rates(xp: Any, circuit: Circuit, z: Array) -> Array:
    """The output for W_r = I; unchecked, so that it traces."""
    return squared_rates(xp, identity_fixed_point(xp, circuit, z, "main").y)


def found_rates(xp: Any, found: SteadyState) -> Array:
    """The output at fixed points that were searched for, NaN where none was found."""
    return xp.where(found.converged[..., None], squared_rates(xp, found.state.y), xp.nan)


def convolutional_rates(
    xp: Any,
    parameters: StaticParameters,
    drive: Array,
    gain: Array,
    sigma: float,
    pool: Callable[[Array, Array], Array],
) -> Array:
    """The convolutional layer: max(b z, 0)**2 / ((b0 sigma)**2 + W * (b z)**2), channel by channel.

    Parameters
    ----------
    parameters : StaticParameters
        Of :func:`init_static_2d`.
    drive, gain : array (..., d, h, w)
        The convolutions of the input with ``w_zx`` and with ``w_bx``.
    sigma : float
    pool : callable
        ``pool(squares, kernels)``: every channel of (..., d, h, w) convolved
        with its own kernel of (d, m, m), zeros beyond the border.
    """
    dtype = drive.dtype
    gain, beta, log_w = (widened(xp, value) for value in (gain, parameters.beta, parameters.log_w))
    driven = sigmoid(xp, gain) * unit(xp, drive, (-2, -1))
    floor = (sigmoid(xp, beta) * sigma) ** 2
    rates = squared_rates(xp, driven) / (floor[:, None, None] + pool(driven * driven, xp.exp(log_w)))
    return xp.astype(rates, dtype)


def static_steady_state(
    parameters: StaticParameters, x: Array, *, sigma: float = 1.0, max_iterations: int = 100
) -> SteadyState:
    """The fixed point of the static layer.

    Parameters
    ----------
    parameters : StaticParameters
    x : array (..., k)
        Input.
    sigma : float
        Semi-saturation constant.
    max_iterations : int
        Of Newton's method; W_r = I has a closed form.

    Returns
    -------
    SteadyState of arrays (..., n)
        Derivatives are those of the implicit function theorem.

    Raises
    ------
    TypeError, ValueError
        Naming the argument whose library, device, dtype or shape is wrong.

    Examples
    --------
    >>> bool(static_steady_state(init_static(0, 3, 5, recurrent="spectral"), np.ones(3)).converged)
    True
    """
    xp = _validate(parameters, x)
    circuit, z = static_circuit(xp, parameters, x, checks.positive_number("sigma", sigma))
    method = "closed_form" if parameters.w_r is None else "newton"
    return steady_state(circuit, z, method=method, max_iterations=max_iterations, attracting=False)


def static_rates(parameters: StaticParameters, x: Array, *, sigma: float = 1.0, max_iterations: int = 100) -> Array:
    """The output of the static layer: the squared rates max(y, 0)**2 at its fixed point.

    Parameters
    ----------
    parameters, x, sigma, max_iterations
        As in :func:`static_steady_state`.

    Returns
    -------
    array (..., n)
        NaN where the fixed point was not found.

    Raises
    ------
    TypeError, ValueError
        As :func:`static_steady_state`.

    Examples
    --------
    >>> static_rates(init_static(0, 3, 5), np.ones((2, 3))).shape
    (2, 5)
    """
    xp = _validate(parameters, x)
    if parameters.w_r is None:
        return closed_form_rates(xp, *static_circuit(xp, parameters, x, checks.positive_number("sigma", sigma)))
    return found_rates(xp, static_steady_state(parameters, x, sigma=sigma, max_iterations=max_iterations))


def _validate(parameters: StaticParameters, x: Array) -> Any:
    """Check libraries, devices and shapes of the parameters and the input; return the namespace."""
    if not isinstance(parameters, tuple) or getattr(parameters, "_fields", None) != StaticParameters._fields:
        raise TypeError(f"parameters must be StaticParameters, got {checks.describe(parameters)}")
    fields = parameters._asdict()
    xp = checks.namespace({**fields, "x": x}, optional=("w_r",))
    n = checks.matrix_shape("log_w", parameters.log_w, None)
    if parameters.w_r is not None:
        checks.matrix_shape("w_r", parameters.w_r, n)
    k = int(parameters.w_zx.shape[-1])
    for name in ("w_zx", "w_bx"):
        shape = tuple(fields[name].shape)
        if shape != (n, k):
            raise ValueError(f"{name} must have shape ({n}, {k}), got shape {shape}")
    checks.vector_shape("beta", parameters.beta, n)
    checks.vector_shape("x", x, k)
    return xp
