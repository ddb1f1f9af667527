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
    STATIC_RECURRENT,
    StaticParameters,
    closed_form_rates,
    convolutional_rates,
    found_rates,
    init_static,
    init_static_2d,
    spectral_ball,
    static_circuit,
)

from .modules import Part, float_dtype, floating, from_host

Array = Any


class DivisiveNorm(Part):
    """Static divisive normalization layer: the squared rates max(y, 0)**2 at the circuit's fixed point.

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
        out_features: int,
        *,
        key: Array,
        recurrent: str = "identity",
        sigma: float = 1.0,
        max_iterations: int = 100,
        dtype: Any = None,
    ) -> None:
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
        circuit, z = self.circuit(x)
        method = "closed_form" if self.recurrent == "identity" else "newton"
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

    Parameters
    ----------
    in_channels, out_channels, kernel_size : int
        Of the convolutions that give the input drive and the input gain.
    key : jax random key
    stride, padding : int
        Of those convolutions.
    pool_size : int
        Side of the normalization pool in output pixels, odd.
    sigma : float
    dtype : floating dtype, optional

    Attributes
    ----------
    w_zx, w_bx : arrays (out_channels, in_channels, kernel_size, kernel_size)
    log_w : array (out_channels, pool_size, pool_size)
        V; the normalization weights of a channel are the kernel W = exp(V).
    beta : array (out_channels,)
        Logit of the normalization gain b0.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    The fixed point for W_r = I, with convolutions for products, and the drive
    z of unit norm over the pixels of a channel::

        a = (b0 sigma)**2 + W * (b z)**2,    output max(b z / sqrt(a), 0)**2

    Examples
    --------
    >>> layer = DivisiveNorm2d(1, 4, 3, padding=1, key=jax.random.key(0))
    >>> layer(jnp.ones((2, 1, 8, 8))).shape
    (2, 4, 8, 8)
    """

    w_zx: Array
    w_bx: Array
    log_w: Array
    beta: Array
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    kernel_size: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)
    padding: int = eqx.field(static=True)
    pool_size: int = eqx.field(static=True)
    sigma: float = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        key: Array,
        stride: int = 1,
        padding: int = 0,
        pool_size: int = 5,
        sigma: float = 1.0,
        dtype: Any = None,
    ) -> None:
        self.in_channels = c = checks.positive_integer("in_channels", in_channels)
        self.out_channels = d = checks.positive_integer("out_channels", out_channels)
        self.kernel_size = s = checks.positive_integer("kernel_size", kernel_size)
        self.stride = checks.positive_integer("stride", stride)
        if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
            raise ValueError(f"padding must be an integer of at least 0, got {padding!r}")
        self.padding = padding
        self.pool_size = m = checks.positive_integer("pool_size", pool_size)
        self.sigma = checks.positive_number("sigma", sigma)

        self.w_zx, self.w_bx, self.log_w, self.beta, _ = from_host(
            key, lambda generator: init_static_2d(generator, c, d, s, pool_size=m), float_dtype(dtype)
        )

    def __call__(self, x: Array) -> Array:
        """Squared rates (N, out_channels, H', W') for images x (N, in_channels, H, W); both also without N.

        Raises
        ------
        TypeError, ValueError
            If x has a wrong dtype or shape.
        """
        x = floating("x", x).astype(self.log_w.dtype)
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(f"x must have shape (N, {self.in_channels}, H, W), N optional, got shape {x.shape}")
        if min(x.shape[-2:]) + 2 * self.padding < self.kernel_size:
            raise ValueError(f"x is smaller than the kernel of side {self.kernel_size}: got shape {x.shape}")
        images = x if x.ndim == 4 else x[None]
        drive, gain = (self._convolve(images, w) for w in (self.w_zx, self.w_bx))

        def pool(squares: Array, kernels: Array) -> Array:
            around = [(self.pool_size // 2,) * 2] * 2
            return jax.lax.conv_general_dilated(
                squares, kernels[:, None], (1, 1), around, feature_group_count=self.out_channels
            )

        parameters = StaticParameters(self.w_zx, self.w_bx, self.log_w, self.beta)
        rate = convolutional_rates(jnp, parameters, drive, gain, self.sigma, pool)
        return rate if x.ndim == 4 else rate[0]

    def _convolve(self, images: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            images, kernel, (self.stride, self.stride), [(self.padding, self.padding)] * 2
        )
