"""The trained cell as a module: its parameters under the core's names, and one step."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from organics_core import checks
from organics_core.cell import (
    CELL_VARIANTS,
    CellParameters,
    CellState,
    MaxRates,
    Rates,
    cell_rates,
    check_max_rates,
    init_cell,
    normalization_weights,
    step,
)
from organics_core.static import spectral_ball

from .implementation import is_ordinary

RECURRENT = ("orthogonal", "identity", "spectral")


class SpectralBall(nn.Module):
    """Parametrization that keeps the largest singular value of a matrix at or below 1.

    V -> V / max(1, ||V||_2): matrices inside the ball stay as they are.
    """

    def forward(self, v: Tensor) -> Tensor:
        return spectral_ball(xp, v)

    def right_inverse(self, w: Tensor) -> Tensor:
        return w


def random_source(seed: int | np.random.Generator | None, generator: torch.Generator | None) -> np.random.Generator:
    """The numpy generator of an initialization: from ``seed``, else seeded by torch's own random numbers."""
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    if isinstance(seed, np.random.Generator):
        return seed
    if seed is None:
        seed = int(
            torch.randint(0, 2**62, (), generator=generator, device="cpu" if generator is None else generator.device)
        )
    return np.random.default_rng(seed)


def floating_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """``dtype``, torch's default one for None; TypeError unless it is a real floating dtype."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating dtype of torch, got {dtype}")
    return dtype


class ORGaNICsCell(nn.Module):
    """One step of the trained ORGaNICs cell, in place of ``nn.LSTMCell``.

    Parameters
    ----------
    input_size, hidden_size : int
        Number k of inputs and n of principal neurons.
    recurrent : {"orthogonal", "identity", "spectral"}
        W_r: free, orthogonal at the start; the fixed identity; or free within
        the ball of spectral norm 1 (orthogonal at the start).
    variant : {"rectified_recurrence", "main"}
        Recurrent drive max(W_r y, 0) and pool of max(y, 0)**2, as trained in
        the paper, or W_r y and y**2.
    initialization : {"paper", "oscillators"}
        The paper's, or W_r = I + K with a K that turns pairs of units, a long
        memory for the variant "main"; see :func:`organics_core.init_cell`.
    rate_spread : float
        The fastest dt/tau_y over the slowest at the start.
    max_rates : MaxRates
        (dt/tau)_max of y, of a, and of both gains. The default suits sequences
        of several hundred steps; short sequences want larger rates.
    learn_rates : bool
        Whether dt/tau is learned, per neuron; otherwise it stays at half of
        ``max_rates``, or as ``rate_spread`` has it.
    seed : int or numpy.random.Generator, optional
        Fixes the initialization; otherwise torch's random numbers do.
    generator : torch.Generator, optional
        Draws the seed, in place of torch's global generator.
    device, dtype
        Of the parameters; torch's defaults if not given.

    Attributes
    ----------
    w_zx, w_r, log_w, w_bx0, w_by0, w_ba0, w_bx1, w_by1, w_ba1 : Parameter
        Weights, as in :class:`organics_core.CellParameters`; ``w_r`` is None
        for the identity.
    theta_y, theta_a, theta_b0, theta_b1 : Parameter or buffer (n,)
        Rates: dt/tau = (dt/tau)_max * sigmoid(theta).
    sigma : buffer ()
        Semi-saturation constant, 1.
    start_y, start_a, start_b0, start_b1 : buffers (n,)
        Start state where none is given.

    Notes
    -----
    Rawat, Heeger & Martiniani (NeurIPS 2024); the equations stand in
    :func:`organics_core.cell_step`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        recurrent: str = "orthogonal",
        variant: str = "rectified_recurrence",
        initialization: str = "paper",
        rate_spread: float = 1.0,
        max_rates: MaxRates | tuple[float, float, float] = MaxRates(),
        learn_rates: bool = True,
        seed: int | np.random.Generator | None = None,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.one_of("recurrent", recurrent, RECURRENT)
        checks.one_of("variant", variant, CELL_VARIANTS)
        if initialization == "oscillators" and recurrent == "spectral":
            raise ValueError("oscillators are outside of the ball of spectral norm 1, and recurrent is 'spectral'")
        self.input_size = checks.positive_integer("input_size", input_size)
        self.hidden_size = checks.positive_integer("hidden_size", hidden_size)
        self.recurrent = recurrent
        self.variant = variant
        self.max_rates = check_max_rates(max_rates)
        self.learn_rates = bool(learn_rates)
        dtype = floating_dtype(dtype)
        values, start = init_cell(
            random_source(seed, generator),
            self.input_size,
            self.hidden_size,
            recurrent="identity" if recurrent == "identity" else "orthogonal",
            initialization=initialization,
            rate_spread=rate_spread,
            max_rates=self.max_rates,
        )
        for name, value in values._asdict().items():
            tensor = None if value is None else torch.as_tensor(value).to(device=device, dtype=dtype)
            if name == "sigma" or (name.startswith("theta") and not learn_rates):
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, None if tensor is None else nn.Parameter(tensor))
        for name, value in start._asdict().items():
            self.register_buffer(f"start_{name}", torch.as_tensor(value).to(device=device, dtype=dtype))
        if recurrent == "spectral":
            parametrize.register_parametrization(self, "w_r", SpectralBall())

    def get_extra_state(self) -> Tensor:
        """What the numbers of a state_dict depend on beside its tensors, as a tensor that any format can hold."""
        names = ("recurrent", "variant", "max_rates")
        return packed_settings({name: getattr(self, name) for name in names})

    def set_extra_state(self, state: Tensor) -> None:
        """ValueError where the state_dict is of a cell with other settings."""
        check_settings(self, state)

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        load_with_or_without_settings(super()._load_from_state_dict, *arguments, **keywords)

    def fields(self) -> CellParameters:
        """The parameters as the core's named tuple, still attached to autograd."""
        return CellParameters(*(getattr(self, name) for name in CellParameters._fields))

    def start_state(self, *batch: int) -> CellState:
        """A copy of the start state, for batch axes ``batch``; tensors ``(*batch, n)``."""
        shape = (*batch, self.hidden_size)
        return CellState(*(getattr(self, f"start_{name}").expand(shape).clone() for name in CellState._fields))

    def derived(self, fields: CellParameters) -> tuple[Tensor, Rates]:
        """W and the rates dt/tau, which are the same at every step."""
        return normalization_weights(xp, fields.log_w), cell_rates(xp, fields, self.max_rates)

    def forward(self, x: Tensor, state: CellState | None = None, *, through: Callable[..., Any] | None = None) -> Any:
        """One step.

        Parameters
        ----------
        x : tensor (k,) or (N, k)
        state : CellState of tensors (n,) or (N, n), optional
            The start state by default.
        through : callable, optional
            How a layer takes this cell through a sequence, x (T, N, k), in one call: so hooks of the cell are called
            once per sequence, around all that uses its parameters. What it gives is returned.

        Returns
        -------
        CellState of tensors (n,) or (N, n)

        Raises
        ------
        TypeError, ValueError
            Naming the tensor whose dtype or shape is wrong.
        """
        if through is not None:
            fields = self.fields()
            return through(fields, *self.derived(fields), state, x, self.variant)
        check_tensor("x", x, self.w_zx)
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_size:
            raise ValueError(
                f"x must have shape ({self.input_size},) or (N, {self.input_size}), got shape {tuple(x.shape)}"
            )
        if state is None:
            state = self.start_state(*x.shape[:-1])
        else:
            state = check_state(state, (*x.shape[:-1], self.hidden_size), self.w_zx, "state")
        fields = self.fields()
        w, rates = self.derived(fields)
        return step(xp, fields, w, rates, state, x, self.variant)

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, recurrent={self.recurrent!r}, variant={self.variant!r}, "
            f"max_rates={tuple(self.max_rates)}, learn_rates={self.learn_rates}"
        )


def packed_settings(settings: dict[str, Any]) -> Tensor:
    """Settings as the bytes of their JSON."""
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8, device="cpu")


def check_settings(module: nn.Module, state: Tensor) -> None:
    """ValueError naming the setting of ``module`` that is not as in ``state``, of :func:`packed_settings`."""
    if not is_ordinary(state):  # on no device, or not computed: there is nothing to see
        return
    try:
        codes = state.detach().to("cpu", torch.float64).round()  # whatever was done to all tensors of a state_dict
        found = json.loads(bytes(codes.to(torch.uint8).tolist()))
        items = list(found.items())
    except (ValueError, AttributeError):
        raise ValueError("the settings in the state_dict are damaged: they are no JSON") from None
    for name, value in items:
        here = getattr(module, name, None)
        if json.loads(json.dumps(here)) != value:
            raise ValueError(
                f"the state_dict is of a {type(module).__name__} with {name} {value!r}, and this one has {name} "
                f"{json.loads(json.dumps(here))!r}: its numbers would mean something else; build it with the same"
            )


def load_with_or_without_settings(load: Callable[..., None], state: Any, prefix: str, *rest: Any) -> None:
    """A module's own part of a state_dict; those of older versions have no settings."""
    missing = rest[2]
    load(state, prefix, *rest)
    key = f"{prefix}_extra_state"
    if key in missing:
        missing.remove(key)


def check_tensor(name: str, value: object, like: Tensor) -> None:
    """TypeError or ValueError unless ``value`` is a tensor of the dtype and device of ``like``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {checks.describe(value)}")
    kind = value.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if value.dtype != like.dtype and not (value.is_floating_point() and mixed):
        raise TypeError(f"{name} has dtype {value.dtype} but the parameters have {like.dtype}; convert one of them")
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device} but the parameters are on {like.device}; move one of them")


def check_state(state: object, shape: tuple[int, ...], like: Tensor, name: str) -> CellState:
    """``state`` as a CellState of tensors of exactly ``shape``."""
    if not isinstance(state, (tuple, list)) or len(state) != 4:
        size = f" of {len(state)}" if isinstance(state, (tuple, list)) else ""
        raise TypeError(f"{name} must be a CellState(y, a, b0, b1) of tensors, got {checks.describe(state)}{size}")
    for field, value in zip(CellState._fields, state, strict=True):
        check_tensor(f"{name}.{field}", value, like)
        if tuple(value.shape) != tuple(shape):
            raise ValueError(f"{name}.{field} must have shape {tuple(shape)}, got shape {tuple(value.shape)}")
    return CellState(*state)
