"""Static layers: the output is the circuit's fixed point under the input, differentiated implicitly."""

from __future__ import annotations

import warnings
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from organics_core import checks
from organics_core.circuit import Circuit
from organics_core.equilibria import SteadyState, steady_state
from organics_core.static import (
    StaticParameters,
    closed_form_rates,
    convolutional_rates,
    found_rates,
    init_static,
    init_static_2d,
    static_circuit,
)

from .cell import (
    Picklable,
    SpectralBall,
    check_settings,
    check_tensor,
    floating_dtype,
    load_with_or_without_settings,
    packed_settings,
    random_source,
)
from .implementation import without_autocast


class DivisiveNorm(Picklable):
    """Static divisive normalization: the squared rates max(y, 0)**2 at the circuit's fixed point.

    Parameters
    ----------
    in_features, out_features : int
        k and n.
    recurrent : {"identity", "spectral"}
        W_r the identity, with its closed form; or learned within the ball of
        spectral norm 1 (orthogonal at the start), solved by Newton's method.
    sigma : float
        Semi-saturation constant.
    max_iterations : int
        Of Newton's method.
    seed : int or numpy.random.Generator, optional
        Fixes the initialization; otherwise torch's random numbers do.
    generator : torch.Generator, optional
        Draws the seed, in place of torch's global generator.
    device, dtype
        Of the parameters; torch's defaults if not given.

    Attributes
    ----------
    w_zx, w_bx : Parameter (n, k)
        Input weights, and those of the input gain.
    log_w : Parameter (n, n)
        V, with W = exp(V).
    beta : Parameter (n,)
        Logit of the normalization gain b0.
    w_r : Parameter (n, n) or None

    Notes
    -----
    Rawat, Heeger & Martiniani (NeurIPS 2024), the static layer::

        z = W_zx x / ||W_zx x||,   b = sigmoid(W_bx x),   b0 = sigmoid(beta)
        y = b z + (1 - sqrt(a)) W_r y,   a = (b0 sigma)**2 + W (a y**2)

    Derivatives are those of the implicit function theorem; no iteration is
    stored. Samples whose fixed point was not found give NaN and a
    ``RuntimeWarning``, never a silent number; :meth:`steady_state` says more
    about them.

    Examples
    --------
    >>> layer = DivisiveNorm(3, 5)
    >>> layer(torch.ones(2, 3)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        recurrent: str = "identity",
        sigma: float = 1.0,
        max_iterations: int = 100,
        seed: int | np.random.Generator | None = None,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        values = init_static(random_source(seed, generator), in_features, out_features, recurrent=recurrent)
        self.in_features, self.out_features = int(in_features), int(out_features)
        self.recurrent = recurrent
        self.sigma = checks.positive_number("sigma", sigma)
        self.max_iterations = checks.positive_integer("max_iterations", max_iterations)
        _add_parameters(self, values, device, dtype)
        if recurrent == "spectral":
            parametrize.register_parametrization(self, "w_r", SpectralBall())

    def get_extra_state(self) -> Tensor:
        """What the numbers of a state_dict depend on beside its tensors."""
        return packed_settings({"recurrent": self.recurrent, "sigma": self.sigma})

    def set_extra_state(self, state: Tensor) -> None:
        """ValueError where the state_dict is of a layer with other settings."""
        check_settings(self, state)

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        load_with_or_without_settings(super()._load_from_state_dict, *arguments, **keywords)

    def circuit(self, x: Tensor) -> tuple[Circuit, Tensor]:
        """The circuit under an input (..., k), of time constants 1, and its input drive z (..., n)."""
        check_tensor("x", x, self.log_w)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must have shape (..., {self.in_features}), got shape {tuple(x.shape)}")
        x = x.to(self.log_w.dtype)
        with without_autocast(x):
            return static_circuit(xp, _fields(self), x, self.sigma)

    @torch.compiler.disable
    def steady_state(self, x: Tensor) -> SteadyState:
        """The fixed point under x (..., k), whether it was found, the residual and the iterations."""
        circuit, z = self.circuit(x)
        method = "closed_form" if self.recurrent == "identity" else "newton"
        if method == "newton" and z.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"Newton's method needs parameters of float32 or float64, these are {z.dtype}")
        with without_autocast(x):
            return steady_state(circuit, z, method=method, max_iterations=self.max_iterations, attracting=False)

    def forward(self, x: Tensor) -> Tensor:
        """Squared rates (..., n) for inputs x (..., k); NaN where the fixed point was not found.

        Raises
        ------
        TypeError, ValueError
            If x has a wrong dtype, device or shape; with ``"spectral"`` also
            TypeError for half precision and ValueError for an x that is not finite.
        """
        if self.recurrent == "identity":
            return closed_form_rates(xp, *self.circuit(x))
        found = self.steady_state(x)
        _warn(found)
        return found_rates(xp, found)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, recurrent={self.recurrent!r}, sigma={self.sigma}"


class DivisiveNorm2d(nn.Module):
    """Static convolutional layer: divisive normalization over space, within every channel.

    Parameters
    ----------
    in_channels, out_channels, kernel_size : int
        Of the convolutions that give the input drive and the input gain.
    stride, padding : int
        Of those convolutions.
    pool_size : int
        Side of the normalization pool in output pixels, odd.
    sigma : float
        Semi-saturation constant.
    seed, generator, device, dtype
        As for :class:`DivisiveNorm`.

    Attributes
    ----------
    w_zx, w_bx : Parameter (out_channels, in_channels, kernel_size, kernel_size)
    log_w : Parameter (out_channels, pool_size, pool_size)
        V; the normalization weights of a channel are the kernel W = exp(V).
    beta : Parameter (out_channels,)
        Logit of the normalization gain b0.

    Notes
    -----
    The fixed point for W_r = I, with convolutions for products, and the drive
    z of unit norm over the pixels of a channel::

        a = (b0 sigma)**2 + W * (b z)**2,    output max(b z / sqrt(a), 0)**2

    Examples
    --------
    >>> layer = DivisiveNorm2d(1, 4, 3, padding=1)
    >>> layer(torch.ones(2, 1, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        pool_size: int = 5,
        sigma: float = 1.0,
        seed: int | np.random.Generator | None = None,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.stride = checks.positive_integer("stride", stride)
        if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
            raise ValueError(f"padding must be an integer of at least 0, got {padding!r}")
        self.padding = padding
        self.sigma = checks.positive_number("sigma", sigma)
        rng = random_source(seed, generator)
        values = init_static_2d(rng, in_channels, out_channels, kernel_size, pool_size=pool_size)
        self.in_channels, self.out_channels = int(in_channels), int(out_channels)
        self.kernel_size, self.pool_size = int(kernel_size), int(pool_size)
        _add_parameters(self, values, device, dtype)

    def get_extra_state(self) -> Tensor:
        """What the numbers of a state_dict depend on beside its tensors."""
        return packed_settings({name: getattr(self, name) for name in ("stride", "padding", "sigma")})

    def set_extra_state(self, state: Tensor) -> None:
        """ValueError where the state_dict is of a layer with other settings."""
        check_settings(self, state)

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        load_with_or_without_settings(super()._load_from_state_dict, *arguments, **keywords)

    def forward(self, x: Tensor) -> Tensor:
        """Squared rates (N, out_channels, H', W') for images x (N, in_channels, H, W); both also without N.

        Raises
        ------
        TypeError, ValueError
            If x has a wrong dtype, device or shape.
        """
        check_tensor("x", x, self.log_w)
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(f"x must have shape (N, {self.in_channels}, H, W), N optional, got shape {tuple(x.shape)}")
        if min(x.shape[-2:]) + 2 * self.padding < self.kernel_size:
            raise ValueError(f"x is smaller than the kernel of side {self.kernel_size}: got shape {tuple(x.shape)}")
        x = x.to(self.log_w.dtype)
        convolve = nn.functional.conv2d
        with without_autocast(x):
            drive, gain = (convolve(x, w, None, self.stride, self.padding) for w in (self.w_zx, self.w_bx))

            def pool(squares: Tensor, kernels: Tensor) -> Tensor:
                return convolve(squares, kernels[:, None], padding=self.pool_size // 2, groups=self.out_channels)

            return convolutional_rates(xp, _fields(self), drive, gain, self.sigma, pool)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, pool_size={self.pool_size}, sigma={self.sigma}"
        )


def _add_parameters(module: nn.Module, values: StaticParameters, device: Any, dtype: torch.dtype | None) -> None:
    dtype = floating_dtype(dtype)
    for name, value in values._asdict().items():
        tensor = None if value is None else torch.as_tensor(value).to(device=device, dtype=dtype)
        module.register_parameter(name, None if tensor is None else nn.Parameter(tensor))


def _fields(module: nn.Module) -> StaticParameters:
    """The parameters as the core's named tuple, still attached to autograd."""
    return StaticParameters(*(getattr(module, name) for name in StaticParameters._fields))


@torch.compiler.disable
def _warn(found: SteadyState) -> None:
    """One sentence about the fixed points that were not found."""
    try:
        missing = int((~found.converged).sum())
    except RuntimeError:  # a transform of torch.func: the values cannot be seen
        return
    if missing:
        worst = float(found.residual.detach().max())
        warnings.warn(
            f"DivisiveNorm found no fixed point for {missing} of {found.converged.numel()} inputs, whose outputs are "
            f"NaN: the largest relative residual is {worst:.2g} after {int(found.iterations.max())} iterations; see "
            "steady_state, or raise max_iterations",
            RuntimeWarning,
            stacklevel=3,
        )
