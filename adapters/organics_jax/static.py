"""Static layers: the output is the circuit's fixed point under the input, differentiated implicitly."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from organics_core import checks
from organics_core.circuit import Circuit
from organics_core.equilibria import SteadyState, steady_state
from organics_core.static import (
    DRIVE_SCALES,
    OUTPUTS,
    STATIC_RECURRENT,
    Convolution,
    NormalizationParameters,
    StaticParameters,
    check_places,
    closed_form_rates,
    convolutional_rates,
    found_rates,
    init_normalization,
    init_static,
    init_static_2d,
    normalized,
    pair,
    pool_axes,
    spectral_ball,
    static_circuit,
    widened,
    with_weights,
)

from .modules import Part, float_dtype, floating, from_host

Array = Any


class DivisiveNorm(Part):
    """Static divisive normalization layer: the squared rates max(y, 0)**2 at the circuit's fixed point.

    It takes the place of a linear layer, its normalization and its nonlinearity;
    :class:`DivisiveNormalization` is the normalization alone.

    Parameters
    ----------
    in_features, out_features : int
        k and n.
    key : jax random key
    recurrent : {"identity", "spectral"}
        W_r the identity, with its closed form; or learned within the ball of
        spectral norm 1 (orthogonal at the start), solved by Newton's method.
    sigma : float
        Semi-saturation constant.
    max_iterations : int
        Of Newton's method.
    dtype : floating dtype, optional

    Attributes
    ----------
    w_zx, w_bx : arrays (n, k)
        Input weights, and those of the input gain.
    log_w : array (n, n)
        V, with W = exp(V).
    beta : array (n,)
        Logit of the normalization gain b0.
    w_r : array (n, n) or None

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    Rawat, Heeger & Martiniani (NeurIPS 2024), the static layer::

        z = W_zx x / ||W_zx x||,   b = sigmoid(W_bx x),   b0 = sigmoid(beta)
        y = b z + (1 - sqrt(a)) W_r y,   a = (b0 sigma)**2 + W (a y**2)

    Derivatives are those of the implicit function theorem; no iteration is
    stored. Samples whose fixed point was not found give NaN, never a silent
    number; :meth:`steady_state` says more about them.

    Examples
    --------
    >>> layer = DivisiveNorm(3, 5, key=jax.random.key(0))
    >>> layer(jnp.ones((2, 3))).shape
    (2, 5)
    """

    w_zx: Array
    w_bx: Array
    log_w: Array
    beta: Array
    w_r: Array
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)
    recurrent: str = eqx.field(static=True)
    sigma: float = eqx.field(static=True)
    max_iterations: int = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        *,
        key: Array,
        recurrent: str = "identity",
        sigma: float = 1.0,
        max_iterations: int = 100,
        dtype: Any = None,
    ) -> None:
        out_features = with_weights("DivisiveNorm", "in_features, out_features", out_features)
        self.in_features = k = checks.positive_integer("in_features", in_features)
        self.out_features = n = checks.positive_integer("out_features", out_features)
        checks.one_of("recurrent", recurrent, STATIC_RECURRENT)
        self.recurrent = recurrent
        self.sigma = checks.positive_number("sigma", sigma)
        self.max_iterations = checks.positive_integer("max_iterations", max_iterations)
        dtype = float_dtype(dtype)
        if recurrent == "spectral" and dtype not in (jnp.float32, jnp.float64):
            raise TypeError(f"dtype must be float32 or float64 with recurrent='spectral', got {dtype}")

        self.w_zx, self.w_bx, self.log_w, self.beta, self.w_r = from_host(
            key, lambda generator: init_static(generator, k, n, recurrent=recurrent), dtype
        )

    def circuit(self, x: Array) -> tuple[Circuit, Array]:
        """The circuit under an input (..., k), of time constants 1, and its input drive z (..., n)."""
        circuit, z = self._circuit(x)
        return Circuit(*circuit), z  # checked, and of the type that jax can take apart

    def _circuit(self, x: Array) -> tuple[Circuit, Array]:
        x = floating("x", x).astype(self.log_w.dtype)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must have shape (..., {self.in_features}), got shape {x.shape}")
        w_r = None if self.recurrent == "identity" else spectral_ball(jnp, self.w_r)
        parameters = StaticParameters(self.w_zx, self.w_bx, self.log_w, self.beta, w_r)
        return static_circuit(jnp, parameters, x, self.sigma)

    def steady_state(self, x: Array) -> SteadyState:
        """The fixed point under x (..., k), whether it was found, the residual and the iterations."""
        method = "closed_form" if self.recurrent == "identity" else "newton"
        if method == "newton":
            checks.values(jnp, "x", floating("x", x), "any")
        circuit, z = self.circuit(x)
        return steady_state(circuit, z, method=method, max_iterations=self.max_iterations, attracting=False)

    def __call__(self, x: Array) -> Array:
        """Squared rates (..., n) for inputs x (..., k); NaN where the fixed point was not found.

        Raises
        ------
        TypeError, ValueError
            If x has a wrong dtype or shape; with ``"spectral"`` also if x is seen to be not finite.
        """
        if self.recurrent == "identity":
            return closed_form_rates(jnp, *self._circuit(x))
        return found_rates(jnp, self.steady_state(x))


class DivisiveNorm2d(Part):
    """Static convolutional layer: divisive normalization over space, within every channel.

    It takes the place of a convolution, its normalization and its nonlinearity;
    :class:`DivisiveNormalization` is the normalization alone.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        Of the convolutions that give the input drive and the input gain, as
        for torch's ``nn.Conv2d``: integers, or two for height and width; padding also "same" or "valid".
    key : jax random key
    pool_size : int
        Side of the normalization pool in output pixels, odd.
    sigma : float
    scale : {"rms", "norm"}
        What of the drive z, over the pixels of a channel, is 1: its root mean
        square, or its norm, as it was in older versions. A file of leaves does
        not say: what an older version wrote is read into a layer of ``scale="norm"``.
    dtype : floating dtype, optional

    Attributes
    ----------
    w_zx, w_bx : arrays (out_channels, in_channels / groups, height, width)
    log_w : array (out_channels, pool_size, pool_size)
        V; the normalization weights of a channel are the kernel W = exp(V), at the start of sum 1.
    beta : array (out_channels,)
        Logit of the normalization gain b0.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    The fixed point for W_r = I, with convolutions for products, and the drive
    z scaled over the P pixels of a channel::

        z = sqrt(P) (w_zx * x) / ||w_zx * x||,   b = sigmoid(w_bx * x),   b0 = sigmoid(beta)
        a = (b0 sigma)**2 + W * (b z)**2,    output max(b z / sqrt(a), 0)**2

    A drive of root mean square 1 and a pool that starts as an average keep both
    terms of a near 1/4 for images of every size: outputs average about 1/4, in
    a stack, too, and so gradients have one order of magnitude in all its layers.

    Examples
    --------
    >>> layer = DivisiveNorm2d(1, 4, (3, 5), padding="same", dilation=2, key=jax.random.key(0))
    >>> layer(jnp.ones((2, 1, 8, 8))).shape
    (2, 4, 8, 8)
    """

    w_zx: Array
    w_bx: Array
    log_w: Array
    beta: Array
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    kernel_size: int | tuple[int, int] = eqx.field(static=True)
    stride: int | tuple[int, int] = eqx.field(static=True)
    padding: int | tuple[int, int] | str = eqx.field(static=True)
    dilation: int | tuple[int, int] = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    pool_size: int = eqx.field(static=True)
    sigma: float = eqx.field(static=True)
    scale: str = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | tuple[int, int] | None = None,
        *,
        key: Array,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        pool_size: int = 5,
        sigma: float = 1.0,
        scale: str = "rms",
        dtype: Any = None,
    ) -> None:
        arguments = "in_channels, out_channels, kernel_size"
        out_channels, kernel_size = with_weights("DivisiveNorm2d", arguments, out_channels, kernel_size)
        self.in_channels = c = checks.positive_integer("in_channels", in_channels)
        self.out_channels = d = checks.positive_integer("out_channels", out_channels)
        geometry = Convolution.checked(kernel_size, stride, padding, dilation, groups)
        self.kernel_size, self.stride, self.padding, self.dilation, self.groups = geometry
        self.pool_size = m = checks.positive_integer("pool_size", pool_size)
        self.sigma = checks.positive_number("sigma", sigma)
        checks.one_of("scale", scale, DRIVE_SCALES)
        self.scale = scale

        def make(generator: Any) -> StaticParameters:
            return init_static_2d(generator, c, d, kernel_size, groups=groups, pool_size=m)

        self.w_zx, self.w_bx, self.log_w, self.beta, _ = from_host(key, make, float_dtype(dtype))

    def __call__(self, x: Array) -> Array:
        """Squared rates (N, out_channels, H', W') for images x (N, in_channels, H, W); both also without N.

        Raises
        ------
        TypeError, ValueError
            If x has a wrong dtype or shape.
        """
        x = floating("x", x).astype(self.log_w.dtype)
        geometry = Convolution(self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        geometry.check_image(x, self.in_channels)
        images = x if x.ndim == 4 else x[None]
        drive, gain = (_convolve(images, w, geometry) for w in (self.w_zx, self.w_bx))
        parameters = StaticParameters(self.w_zx, self.w_bx, self.log_w, self.beta)
        rate = convolutional_rates(jnp, parameters, drive, gain, self.sigma, _over_space, self.scale)
        return rate if x.ndim == 4 else rate[0]


class DivisiveNormalization(Part):
    """Divisive normalization alone, without weights in front, in place of ``eqx.nn.BatchNorm`` or ``eqx.nn.LayerNorm``.

    Parameters
    ----------
    num_features : int
        Channels C.
    key : jax random key
    pool : {"channels", "space", "both"}
        What is pooled: all channels at a place; the places around, within
        every channel; or these, and then all channels.
    pool_size : int
        Side of the pool over space, odd.
    dimensions : int
        Axes behind that of the channels: 2 for images, which pools over space
        need, 1 for sequences (N, C, L), 0 for vectors (..., C).
    output : {"potentials", "rates"}
        y, of the sign of x; or max(y, 0)**2, which needs no nonlinearity behind it.
    sigma : float
        Semi-saturation constant, in the unit of x.
    dtype : floating dtype, optional

    Attributes
    ----------
    log_w : array (C, C) or None
        V, with the weights W = exp(V) between channels, at the start averages.
    log_w_space : array (C, pool_size, pool_size) or None
        Likewise the kernel of every channel over space.
    beta : array (C,)
        Logit of the normalization gain b0.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    The fixed point for W_r = I of the drive x and the gain b = 1::

        y = x / sqrt(a),   a = (b0 sigma)**2 + W x**2,   b0 = sigmoid(beta)

    Where x is small this divides by b0 sigma; where it is large, y stays below one
    over the root of the weight that a number has in its own pool. There are no running averages.

    Examples
    --------
    >>> layer = DivisiveNormalization(8, pool="both", key=jax.random.key(0))
    >>> layer(jnp.ones((2, 8, 6, 6))).shape
    (2, 8, 6, 6)
    """

    log_w: Array
    log_w_space: Array
    beta: Array
    num_features: int = eqx.field(static=True)
    pool: str = eqx.field(static=True)
    dimensions: int = eqx.field(static=True)
    output: str = eqx.field(static=True)
    sigma: float = eqx.field(static=True)

    def __init__(
        self,
        num_features: int,
        *,
        key: Array,
        pool: str = "channels",
        pool_size: int = 5,
        dimensions: int = 2,
        output: str = "potentials",
        sigma: float = 1.0,
        dtype: Any = None,
    ) -> None:
        self.num_features = checks.positive_integer("num_features", num_features)
        checks.one_of("output", output, OUTPUTS)
        self.pool, self.dimensions, self.output = pool, pool_axes(dimensions, pool), output
        self.sigma = checks.positive_number("sigma", sigma)

        def make(generator: Any) -> NormalizationParameters:
            return init_normalization(generator, num_features, pool=pool, pool_size=pool_size)

        self.log_w, self.log_w_space, self.beta = from_host(key, make, float_dtype(dtype))

    def __call__(self, x: Array) -> Array:
        """The normalized x, as large as x: (N, C, H, W), N optional, or with other ``dimensions`` (..., C, *places).

        Raises
        ------
        TypeError, ValueError
            If x has a wrong dtype or shape.
        """
        x = floating("x", x).astype(self.beta.dtype)
        check_places("x", x, self.num_features, self.dimensions, self.pool)

        def pooled(squares: Array) -> Array:
            if self.log_w_space is not None:
                images = squares if squares.ndim == 4 else squares[None]
                squares = _over_space(images, jnp.exp(widened(jnp, self.log_w_space))).reshape(squares.shape)
            if self.log_w is not None:
                axis = -1 - self.dimensions
                weights = jnp.exp(widened(jnp, self.log_w))
                squares = jnp.moveaxis(jnp.moveaxis(squares, axis, -1) @ weights.T, -1, axis)
            return squares

        return normalized(jnp, x, self.beta, self.sigma, pooled, self.dimensions, self.output)


def _convolve(images: Array, kernel: Array, geometry: Convolution) -> Array:
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        pair("stride", geometry.stride),
        geometry.around(),
        rhs_dilation=pair("dilation", geometry.dilation),
        feature_group_count=geometry.groups,
    )


def _over_space(squares: Array, kernels: Array) -> Array:
    """Every channel of (N, C, H, W) convolved with its own kernel, zeros beyond the border."""
    around = [(kernels.shape[-1] // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(squares, kernels[:, None], (1, 1), around, feature_group_count=kernels.shape[0])
