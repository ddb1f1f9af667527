"""The static normalization layer: its parameters, their initialization, and the circuit whose fixed point it puts out.

Source: Rawat, Heeger & Martiniani (NeurIPS 2024), the layer that is trained at its fixed point::

    z = W_zx x / ||W_zx x||,   b = sigmoid(W_bx x),   b0 = sigmoid(beta),   W = exp(V)
    y = b z + (1 - sqrt(a)) W_r y,   a = (b0 sigma)**2 + W (a y**2),   output max(y, 0)**2

W_r is the identity, or free within the ball of spectral norm 1. The layers of
torch and jax hold the parameters and call what stands here. With W_r = I the
fixed point is y = b z / sqrt(a), a = (b0 sigma)**2 + W (b z)**2, which is also
the convolutional layer, and normalization without weights in front (b = 1).
"""

from __future__ import annotations

import math
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
DRIVE_SCALES = ("rms", "norm")
POOLS = ("channels", "space", "both")
OUTPUTS = ("potentials", "rates")


class StaticParameters(NamedTuple):
    """What the static layer learns (n neurons, k inputs).

    Attributes
    ----------
    w_zx, w_bx : array (n, k)
        Input weights, and those of the input gain. In the convolutional layer
        kernels (d, c, s, s), for d channels out of c; of any height and width.
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
    kernel_size: int | tuple[int, int],
    *,
    groups: int = 1,
    pool_size: int = 5,
    dtype: Any = np.float64,
) -> StaticParameters:
    """Fresh parameters of the convolutional static layer, as numpy arrays.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    in_channels, out_channels : int
        c and d.
    kernel_size : int or (int, int)
        Height and width of the kernels.
    groups : int
        Groups of channels that see one another, a divisor of c and d.
    pool_size : int
        Side m of the normalization pool, odd.
    dtype : numpy dtype
        float32 or float64.

    Returns
    -------
    StaticParameters
        As :func:`init_static`, with kernels W = exp(V) that are averages: 1 at
        the centre and U(0, 1) elsewhere, divided by their sum; ``w_r=None``.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1, an even pool, or groups that do not divide the channels.

    Examples
    --------
    >>> init_static_2d(0, 4, 6, (3, 1), groups=2).w_zx.shape
    (6, 2, 3, 1)
    """
    c = checks.positive_integer("in_channels", in_channels)
    d = checks.positive_integer("out_channels", out_channels)
    kernel = pair("kernel_size", kernel_size)
    groups = checks.positive_integer("groups", groups)
    if c % groups or d % groups:
        raise ValueError(f"groups must divide in_channels {c} and out_channels {d}, got {groups}")
    m = odd("pool_size", pool_size)
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    log_w = _average_over_space(rng, d, m)
    w_zx, w_bx = (_kaiming(rng, d, c // groups, *kernel) for _ in range(2))
    return _cast((w_zx, w_bx, log_w, np.zeros(d), None), dtype)


class NormalizationParameters(NamedTuple):
    """What normalization without weights in front learns (c channels).

    Attributes
    ----------
    log_w : array (c, c) or None
        V, with the weights W = exp(V) between channels; ``None`` where a
        channel normalizes itself alone.
    log_w_space : array (c, m, m) or None
        Likewise the kernel of every channel over space; ``None`` where a place
        normalizes itself alone.
    beta : array (c,)
        Logit of the normalization gain b0.
    """

    log_w: Array
    log_w_space: Array
    beta: Array


def init_normalization(
    seed: int | np.random.Generator,
    num_features: int,
    *,
    pool: str = "channels",
    pool_size: int = 5,
    dtype: Any = np.float64,
) -> NormalizationParameters:
    """Fresh parameters of normalization without weights in front, as numpy arrays.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    num_features : int
        Channels c.
    pool : {"channels", "space", "both"}
    pool_size : int
        Side m of the pool over space, odd.
    dtype : numpy dtype

    Returns
    -------
    NormalizationParameters
        Weights that are averages: 1 from a channel or place to itself and
        U(0, 1) elsewhere, divided by their sum; beta = 0.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1, an even pool or an unknown ``pool``.

    Examples
    --------
    >>> init_normalization(0, 4, pool="both", pool_size=3).log_w_space.shape
    (4, 3, 3)
    """
    c = checks.positive_integer("num_features", num_features)
    checks.one_of("pool", pool, POOLS)
    m = odd("pool_size", pool_size)
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    log_w = log_w_space = None
    if pool != "space":
        log_w = np.log(1.0 - rng.random((c, c)))
        np.fill_diagonal(log_w, 0.0)
        log_w = np.asarray(log_w - np.log(np.exp(log_w).sum(1, keepdims=True)), dtype)
    if pool != "channels":
        log_w_space = np.asarray(_average_over_space(rng, c, m), dtype)
    return NormalizationParameters(log_w, log_w_space, np.zeros(c, dtype))


def pair(name: str, value: object, least: int = 1) -> tuple[int, int]:
    """An integer, or two, of at least ``least`` as two; ValueError naming it otherwise."""
    values = value if isinstance(value, (tuple, list)) else (value, value)
    whole = [isinstance(part, (int, np.integer)) and not isinstance(part, bool) for part in values]
    if len(values) != 2 or not all(whole) or min(values) < least:
        raise ValueError(f"{name} must be an integer of at least {least}, or two of them, got {value!r}")
    return int(values[0]), int(values[1])


def odd(name: str, value: object) -> int:
    """``value``, or an error naming it unless it is a positive odd integer."""
    size = checks.positive_integer(name, value)
    if size % 2 == 0:
        raise ValueError(f"{name} must be odd, got {size}")
    return size


class Convolution(NamedTuple):
    """Geometry of a convolution over the last two axes; each setting an integer where height and width agree."""

    kernel_size: int | tuple[int, int]
    stride: int | tuple[int, int]
    padding: int | tuple[int, int] | str
    dilation: int | tuple[int, int]
    groups: int

    @classmethod
    def checked(cls, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any) -> Convolution:
        """With ValueError or TypeError naming the setting that is wrong."""
        if padding not in ("same", "valid"):
            if isinstance(padding, str):
                raise ValueError(
                    f"padding must be an integer of at least 0, two of them, 'same' or 'valid', got {padding!r}"
                )
            padding = pair("padding", padding, 0)
        stride = pair("stride", stride)
        if padding == "same" and stride != (1, 1):
            raise ValueError(f"padding 'same' needs stride 1, got stride {stride}")

        def flat(part: Any) -> Any:
            return part[0] if isinstance(part, tuple) and part[0] == part[1] else part

        kernel, dilation = pair("kernel_size", kernel_size), pair("dilation", dilation)
        groups = checks.positive_integer("groups", groups)
        return cls(flat(kernel), flat(stride), flat(padding), flat(dilation), groups)

    def around(self) -> list[tuple[int, int]]:
        """Zeros before and after, along height and along width."""
        if self.padding == "valid":
            return [(0, 0), (0, 0)]
        if self.padding == "same":
            return [(extent // 2, extent - extent // 2) for extent in self._extents()]
        return [(zeros, zeros) for zeros in pair("padding", self.padding, 0)]

    def _extents(self) -> list[int]:
        return [
            step * (size - 1)
            for step, size in zip(pair("dilation", self.dilation), pair("kernel_size", self.kernel_size), strict=True)
        ]

    def check_image(self, x: Array, in_channels: int) -> None:
        """ValueError unless ``x`` is (N, in_channels, H, W), N optional, and as large as the kernel."""
        shape = tuple(x.shape)
        if len(shape) not in (3, 4) or shape[-3] != in_channels:
            raise ValueError(f"x must have shape (N, {in_channels}, H, W), N optional, got shape {shape}")
        for size, zeros, extent in zip(shape[-2:], self.around(), self._extents(), strict=True):
            if size + sum(zeros) <= extent:
                raise ValueError(
                    f"x is smaller than the kernel of size {self.kernel_size}, dilation {self.dilation} and padding "
                    f"{self.padding!r}: got shape {shape}"
                )


def with_weights(layer: str, arguments: str, *given: Any) -> Any:
    """``given``; TypeError where some of it is missing, for who replaces a normalization by a layer with weights."""
    if any(value is None for value in given):
        raise TypeError(
            f"{layer}({arguments}) takes the place of a layer with weights (linear, convolution) and its normalization "
            "together; in place of a BatchNorm or LayerNorm alone write DivisiveNormalization(num_features)"
        )
    return given if len(given) > 1 else given[0]


def pool_axes(dimensions: object, pool: str) -> int:
    """``dimensions``, or an error unless normalization can have so many axes behind that of the channels."""
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or dimensions < 0:
        raise ValueError(f"dimensions must be an integer of at least 0, got {dimensions!r}")
    if pool != "channels" and dimensions != 2:
        raise ValueError(f"a pool over space needs dimensions 2, got dimensions {dimensions} with pool {pool!r}")
    return dimensions


def check_places(name: str, x: Array, channels: int, dimensions: int, pool: str) -> None:
    """ValueError unless ``x`` is (..., channels, *places), with one batch axis at most for pools over space."""
    shape, axes = tuple(x.shape), dimensions + 1
    over_space = pool != "channels"
    if len(shape) < axes or shape[-axes] != channels or (over_space and len(shape) > axes + 1):
        places = "".join(f", {letter}" for letter in ("HW" if dimensions == 2 else "LMNOPQ"[:dimensions]))
        wanted = f"(N, {channels}{places}), N optional" if over_space else f"(..., {channels}{places})"
        raise ValueError(f"{name} must have shape {wanted}, got shape {shape}; the channels are num_features")


def _average_over_space(rng: np.random.Generator, channels: int, side: int) -> np.ndarray[Any, Any]:
    """V of kernels of sum 1: 1 at the centre and U(0, 1) elsewhere, divided by their sum."""
    log_w = np.log(1.0 - rng.random((channels, side, side)))  # 1 - U is in (0, 1]: no log of zero
    log_w[:, side // 2, side // 2] = 0.0
    return log_w - np.log(np.exp(log_w).sum((1, 2), keepdims=True))


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
    least = float(xp.finfo(gain.dtype).smallest_normal)
    gain = xp.where(gain <= 0, least, gain)  # rounded to 0, which no gain is
    vanishes = (normalization * sigma) ** 2 == 0  # nor is that of silent neurons
    normalization = xp.where(vanishes, math.sqrt(least) / sigma, normalization)
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
    scale: str = "rms",
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
    scale : {"rms", "norm"}
        What of the drive z, over the pixels of a channel, is 1.
    """
    dtype = drive.dtype
    gain, beta, log_w = (widened(xp, value) for value in (gain, parameters.beta, parameters.log_w))
    size = math.sqrt(math.prod(drive.shape[-2:])) if scale == "rms" else 1.0
    driven = sigmoid(xp, gain) * (size * unit(xp, drive, (-2, -1)))
    floor = (sigmoid(xp, beta) * sigma)[:, None, None]
    a = modulators(driven, floor, lambda squares: pool(squares, xp.exp(log_w)))
    rates = squared_rates(xp, driven) / xp.where(a == 0, 1.0, a)  # silent, with a floor whose square vanishes
    return xp.astype(rates, dtype)


def modulators(driven: Array, floor: Array, pool: Callable[[Array], Array]) -> Array:
    """a = (b0 sigma)**2 + W (b z)**2 of the fixed point for W_r = I, for b z and b0 sigma."""
    return floor**2 + pool(driven * driven)


def normalized(
    xp: Any, x: Array, beta: Array, sigma: float, pool: Callable[[Array], Array], axes_after: int, output: str
) -> Array:
    """The fixed point for W_r = I of the drive x and the gain b = 1: y = x / sqrt(a), a = (b0 sigma)**2 + W x**2.

    Parameters
    ----------
    xp : namespace
    x : array (..., c, ...)
    beta : array (c,)
        Logit of b0.
    sigma : float
    pool : callable
        The product of the squares, as large as x, with W; in float32 at least.
    axes_after : int
        Axes of x behind that of the channels.
    output : {"potentials", "rates"}
        y, or max(y, 0)**2.

    Notes
    -----
    Numbers whose squares would overflow are pooled by themselves, divided by a
    power of two, so that y is right whatever the size of x and whatever stands
    beside it.
    """
    wide = widened(xp, x)
    floor = xp.reshape(sigmoid(xp, widened(xp, beta)) * sigma, (-1, *(1,) * axes_after))
    most, shrink = (2.0**50, 2.0**-90) if xp.finfo(wide.dtype).bits == 32 else (2.0**400, 2.0**-700)
    large = xp.abs(wide) > most
    a = modulators(xp.where(large, 0.0, wide), floor, pool)
    shrunk = wide * shrink
    beyond = pool(xp.where(large, shrunk, 0.0) ** 2)
    overflows = beyond > 0
    a = xp.where(overflows, beyond + a * shrink * shrink, a)
    silent = a == 0  # with a sigma whose square vanishes
    y = xp.where(overflows, shrunk, wide) / xp.where(silent, 1.0, xp.sqrt(xp.where(silent, 1.0, a)))
    return xp.astype(squared_rates(xp, y) if output == "rates" else y, x.dtype)


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
    if parameters.w_r is not None:
        checks.values(xp, "x", x, "any")
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
    xp = checks.namespace({**fields, "x": x}, optional=("w_r",), half=True)
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
