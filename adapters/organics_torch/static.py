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
    DRIVE_SCALES,
    OUTPUTS,
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
    pool_axes,
    static_circuit,
    widened,
    with_weights,
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
from .implementation import not_compiled, without_autocast


class DivisiveNorm(Picklable):
    """Static divisive normalization: the squared rates max(y, 0)**2 at the circuit's fixed point.

    It takes the place of a linear layer, its normalization and its nonlinearity;
    :class:`DivisiveNormalization` is the normalization alone.

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
        out_features: int | None = None,
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
        out_features = with_weights("DivisiveNorm", "in_features, out_features", out_features)
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
        load_with_or_without_settings(self, super()._load_from_state_dict, *arguments, **keywords)

    def circuit(self, x: Tensor) -> tuple[Circuit, Tensor]:
        """The circuit under an input (..., k), of time constants 1, and its input drive z (..., n)."""
        check_tensor("x", x, self.log_w)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must have shape (..., {self.in_features}), got shape {tuple(x.shape)}")
        x = x.to(self.log_w.dtype)
        with without_autocast(x):
            return static_circuit(xp, _fields(self), x, self.sigma)

    @not_compiled
    def steady_state(self, x: Tensor) -> SteadyState:
        """The fixed point under x (..., k), whether it was found, the residual and the iterations."""
        circuit, z = self.circuit(x)
        method = "closed_form" if self.recurrent == "identity" else "newton"
        if method == "newton":
            if z.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"Newton's method needs parameters of float32 or float64, these are {z.dtype}")
            checks.values(xp, "x", x, "any")
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

    It takes the place of a convolution, its normalization and its nonlinearity;
    :class:`DivisiveNormalization` is the normalization alone.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        Of the convolutions that give the input drive and the input gain, as for
        ``nn.Conv2d``: integers, or two for height and width; padding also "same" or "valid".
    pool_size : int
        Side of the normalization pool in output pixels, odd.
    sigma : float
        Semi-saturation constant.
    scale : {"rms", "norm"}
        What of the drive z, over the pixels of a channel, is 1: its root mean
        square, or its norm, as it was in older versions.
    seed, generator, device, dtype
        As for :class:`DivisiveNorm`.

    Attributes
    ----------
    w_zx, w_bx : Parameter (out_channels, in_channels / groups, height, width)
    log_w : Parameter (out_channels, pool_size, pool_size)
        V; the normalization weights of a channel are the kernel W = exp(V), at the start of sum 1.
    beta : Parameter (out_channels,)
        Logit of the normalization gain b0.

    Notes
    -----
    The fixed point for W_r = I, with convolutions for products, and the drive
    z scaled over the P pixels of a channel::

        z = sqrt(P) (w_zx * x) / ||w_zx * x||,   b = sigmoid(w_bx * x),   b0 = sigmoid(beta)
        a = (b0 sigma)**2 + W * (b z)**2,    output max(b z / sqrt(a), 0)**2

    A drive of root mean square 1 and a pool that starts as an average keep both
    terms of a near 1/4 for images of every size: outputs average about 1/4, in
    a stack, too, and so gradients have one order of magnitude in all its layers.
    With a drive of norm 1 outputs fall with the pixels, as 1/P.

    A ``state_dict`` of an older version, which names no scale, makes the layer
    that loads it one of ``scale="norm"``: its outputs are what they were.

    Examples
    --------
    >>> layer = DivisiveNorm2d(1, 4, (3, 5), padding="same", dilation=2)
    >>> layer(torch.ones(2, 1, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    # of layers that an older version pickled
    dilation: int | tuple[int, int] = 1
    groups = 1
    scale = "norm"

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | tuple[int, int] | None = None,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        pool_size: int = 5,
        sigma: float = 1.0,
        scale: str = "rms",
        seed: int | np.random.Generator | None = None,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        arguments = "in_channels, out_channels, kernel_size"
        out_channels, kernel_size = with_weights("DivisiveNorm2d", arguments, out_channels, kernel_size)
        geometry = Convolution.checked(kernel_size, stride, padding, dilation, groups)
        self.kernel_size, self.stride, self.padding, self.dilation, self.groups = geometry
        self.sigma = checks.positive_number("sigma", sigma)
        checks.one_of("scale", scale, DRIVE_SCALES)
        self.scale = scale
        rng = random_source(seed, generator)
        values = init_static_2d(rng, in_channels, out_channels, kernel_size, groups=groups, pool_size=pool_size)
        self.in_channels, self.out_channels, self.pool_size = int(in_channels), int(out_channels), int(pool_size)
        _add_parameters(self, values, device, dtype)

    def get_extra_state(self) -> Tensor:
        """What the numbers of a state_dict depend on beside its tensors."""
        names = ("stride", "padding", "dilation", "groups", "sigma", "scale")
        return packed_settings({name: getattr(self, name) for name in names})

    def set_extra_state(self, state: Tensor) -> None:
        """ValueError where the state_dict is of a layer with other settings."""
        found = check_settings(self, state)
        if found is not None and "scale" not in found:
            self.scale = "norm"

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        load_with_or_without_settings(self, super()._load_from_state_dict, state, prefix, *rest)
        if f"{prefix}log_w" in state and f"{prefix}_extra_state" not in state:
            self.scale = "norm"

    def forward(self, x: Tensor) -> Tensor:
        """Squared rates (N, out_channels, H', W') for images x (N, in_channels, H, W); both also without N.

        Raises
        ------
        TypeError, ValueError
            If x has a wrong dtype, device or shape.
        """
        check_tensor("x", x, self.log_w)
        geometry = Convolution(self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        geometry.check_image(x, self.in_channels)
        x = x.to(self.log_w.dtype)
        convolve = nn.functional.conv2d
        with without_autocast(x):
            drive, gain = (convolve(x, w, None, *geometry[1:]) for w in (self.w_zx, self.w_bx))
            return convolutional_rates(xp, _fields(self), drive, gain, self.sigma, _over_space, self.scale)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}, pool_size={self.pool_size}, "
            f"sigma={self.sigma}, scale={self.scale!r}"
        )


class DivisiveNormalization(nn.Module):
    """Divisive normalization alone, without weights in front, in place of ``nn.BatchNorm2d`` or ``nn.LayerNorm``.

    Parameters
    ----------
    num_features : int
        Channels C.
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
    seed, generator, device, dtype
        As for :class:`DivisiveNorm`.

    Attributes
    ----------
    log_w : Parameter (C, C) or None
        V, with the weights W = exp(V) between channels, at the start averages.
    log_w_space : Parameter (C, pool_size, pool_size) or None
        Likewise the kernel of every channel over space.
    beta : Parameter (C,)
        Logit of the normalization gain b0.

    Notes
    -----
    The fixed point for W_r = I of the drive x and the gain b = 1::

        y = x / sqrt(a),   a = (b0 sigma)**2 + W x**2,   b0 = sigmoid(beta)

    Where x is small this divides by b0 sigma; where it is large, y stays below one
    over the root of the weight that a number has in its own pool. There are no running
    averages: a sample's output does not depend on the others, and is the same in training
    and evaluation.

    Examples
    --------
    >>> block = nn.Sequential(nn.Conv2d(3, 8, 3), DivisiveNormalization(8), nn.ReLU())
    >>> block(torch.ones(2, 3, 8, 8)).shape
    torch.Size([2, 8, 6, 6])
    """

    def __init__(
        self,
        num_features: int,
        *,
        pool: str = "channels",
        pool_size: int = 5,
        dimensions: int = 2,
        output: str = "potentials",
        sigma: float = 1.0,
        seed: int | np.random.Generator | None = None,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        values = init_normalization(random_source(seed, generator), num_features, pool=pool, pool_size=pool_size)
        self.num_features, self.pool, self.pool_size = int(num_features), pool, int(pool_size)
        self.dimensions, self.output = pool_axes(dimensions, pool), output
        checks.one_of("output", output, OUTPUTS)
        self.sigma = checks.positive_number("sigma", sigma)
        _add_parameters(self, values, device, dtype)

    def get_extra_state(self) -> Tensor:
        """What the numbers of a state_dict depend on beside its tensors."""
        return packed_settings({name: getattr(self, name) for name in ("pool", "dimensions", "output", "sigma")})

    def set_extra_state(self, state: Tensor) -> None:
        """ValueError where the state_dict is of a layer with other settings."""
        check_settings(self, state)

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        load_with_or_without_settings(self, super()._load_from_state_dict, *arguments, **keywords)

    def forward(self, x: Tensor) -> Tensor:
        """The normalized x, as large as x: (N, C, H, W) or, with other ``dimensions``, ``(..., C, *places)``.

        Raises
        ------
        TypeError, ValueError
            If x has a wrong dtype, device or shape.
        """
        check_tensor("x", x, self.beta)
        check_places("x", x, self.num_features, self.dimensions, self.pool)
        x = x.to(self.beta.dtype)

        def pooled(squares: Tensor) -> Tensor:
            if self.log_w_space is not None:
                squares = _over_space(squares, widened(xp, self.log_w_space).exp())
            if self.log_w is not None:
                axis, weights = -1 - self.dimensions, widened(xp, self.log_w).exp()
                if self.dimensions == 2 and squares.ndim < 5:  # keeps the memory format
                    return nn.functional.conv2d(squares, weights[..., None, None])
                squares = nn.functional.linear(squares.movedim(axis, -1), weights).movedim(-1, axis).contiguous()
            return squares

        with without_autocast(x):
            return normalized(xp, x, self.beta, self.sigma, pooled, self.dimensions, self.output)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, pool={self.pool!r}, pool_size={self.pool_size}, dimensions={self.dimensions}, "
            f"output={self.output!r}, sigma={self.sigma}"
        )


def _over_space(squares: Tensor, kernels: Tensor) -> Tensor:
    """Every channel convolved with its own kernel, zeros beyond the border."""
    side = kernels.shape[-1]
    return nn.functional.conv2d(squares, kernels[:, None], padding=side // 2, groups=len(kernels))


def _add_parameters(
    module: nn.Module, values: StaticParameters | NormalizationParameters, device: Any, dtype: torch.dtype | None
) -> None:
    dtype = floating_dtype(dtype)
    for name, value in values._asdict().items():
        tensor = None if value is None else torch.as_tensor(value).to(device=device, dtype=dtype, copy=True)
        module.register_parameter(name, None if tensor is None else nn.Parameter(tensor))


def _fields(module: nn.Module) -> StaticParameters:
    """The parameters as the core's named tuple, still attached to autograd."""
    return StaticParameters(*(getattr(module, name) for name in StaticParameters._fields))


@not_compiled
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
