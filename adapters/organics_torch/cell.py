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

from .implementation import in_autocast, is_ordinary

RECURRENT = ("orthogonal", "identity", "spectral")
BIASES = {"bias_z": "w_zx", "bias_b0": "w_bx0", "bias_b1": "w_bx1"}
"""Each beside the weights of the input that it goes with."""


def stored(module: nn.Module, name: str) -> Tensor:
    """The tensor behind a name: the one that is trained, where it is parametrized."""
    if parametrize.is_parametrized(module, name):
        return module.parametrizations[name].original
    return getattr(module, name)


def fill(module: nn.Module, values: dict[str, Any]) -> None:
    """Numpy arrays into the tensors of a module, also where these are sharded; None is left out."""
    with torch.no_grad():
        for name, value in values.items():
            if value is None:
                continue
            target, value = stored(module, name), torch.as_tensor(value)
            if hasattr(target, "device_mesh"):  # a DTensor
                from torch.distributed.tensor import distribute_tensor

                value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
            target.copy_(value)


class SpectralBall(nn.Module):
    """Parametrization that keeps the largest singular value of a matrix at or below 1.

    V -> V / max(1, ||V||_2): matrices inside the ball stay as they are.
    """

    def forward(self, v: Tensor) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            return spectral_ball(xp, v)
        # ONNX has no singular values: the norm of (V'V)^p is that of V to the power 2 p, and for a large p it is
        # Frobenius' norm, but for a factor of at most sqrt(n)
        power, log_norm = v.mT @ v, torch.zeros_like(v[0, 0])
        for doubled in range(25):
            size = power.square().sum().sqrt().clamp(min=torch.finfo(v.dtype).tiny)
            power, log_norm = (power / size) @ (power / size), log_norm + torch.log(size) / 2 ** (doubled + 1)
        return v / torch.exp(log_norm).clamp(min=1.0)

    def right_inverse(self, w: Tensor) -> Tensor:
        return w


class Picklable(nn.Module):
    """A module that can be pickled although its W_r is kept in the ball; torch refuses parametrized modules."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        lists = dict(getattr(self, "parametrizations", {}))
        if not lists or any([type(part) for part in parts] != [SpectralBall] for parts in lists.values()):
            return super().__reduce_ex__(protocol)
        state = dict(self.__dict__, _modules={k: v for k, v in self._modules.items() if k != "parametrizations"})
        return _unpickled, (parametrize.type_before_parametrizations(self), state, {k: stored(self, k) for k in lists})


def _unpickled(kind: Any, state: dict[str, Any], kept: dict[str, nn.Parameter]) -> nn.Module:
    module: nn.Module = kind.__new__(kind)
    module.__setstate__(state)
    for name, value in kept.items():
        module.register_parameter(name, value)
        parametrize.register_parametrization(module, name, SpectralBall())
    return module


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


class ORGaNICsCell(Picklable):
    """One step of the trained ORGaNICs cell, in place of ``nn.LSTMCell``.

    Parameters
    ----------
    input_size, hidden_size : int
        Number k of inputs and n of principal neurons.
    bias : bool
        Whether the input drive and the targets of the gains have biases: weights of a further input that is
        always 1, which is how the core sees them.
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
    max_rates : MaxRates, or "auto"
        (dt/tau)_max of y, of a, and of both gains. The default suits sequences
        of several hundred steps; "auto" is what :func:`organics_core.rates_for`
        gives for sequences of ``steps`` steps.
    steps : int, optional
        With ``max_rates="auto"``.
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
    bias_z, bias_b0, bias_b1 : Parameter (n,) or None
        Zero at the start.
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

    Examples
    --------
    >>> import torch
    >>> cell = ORGaNICsCell(3, 8, seed=0)
    >>> state = cell(torch.ones(2, 3))
    >>> state = cell(torch.ones(2, 3), state)
    >>> state.y.shape
    torch.Size([2, 8])
    """

    bias, initialization, rate_spread = False, "paper", 1.0  # of cells that an older version pickled

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = False,
        *,
        recurrent: str = "orthogonal",
        variant: str = "rectified_recurrence",
        initialization: str = "paper",
        rate_spread: float = 1.0,
        max_rates: MaxRates | tuple[float, float, float] | str = MaxRates(),
        steps: int | None = None,
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
        self.bias = checks.flag("bias", bias)
        self.recurrent = recurrent
        self.variant = variant
        self.initialization, self.rate_spread = initialization, rate_spread
        self.max_rates = check_max_rates(max_rates, steps)
        self.learn_rates = checks.flag("learn_rates", learn_rates)
        dtype = floating_dtype(dtype)
        values = self._draw(random_source(seed, generator))
        for name, value in values.items():
            tensor = None if value is None else torch.as_tensor(value).to(device=device, dtype=dtype, copy=True)
            fixed = name == "sigma" or name.startswith("start") or (name.startswith("theta") and not learn_rates)
            if fixed:
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, None if tensor is None else nn.Parameter(tensor))
        if recurrent == "spectral":
            parametrize.register_parametrization(self, "w_r", SpectralBall())

    def _draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """The numbers to start from, by the names of the tensors."""
        values, start = init_cell(
            rng,
            self.input_size,
            self.hidden_size,
            recurrent="identity" if self.recurrent == "identity" else "orthogonal",
            initialization=self.initialization,
            rate_spread=self.rate_spread,
            max_rates=self.max_rates,
        )
        biases = dict.fromkeys(BIASES, np.zeros(self.hidden_size) if self.bias else None)
        return values._asdict() | biases | {f"start_{name}": value for name, value in start._asdict().items()}

    def reset_parameters(
        self, seed: int | np.random.Generator | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Draw all numbers anew, those of the start state among them; ``seed`` and ``generator`` as at construction."""
        fill(self, self._draw(random_source(seed, generator)))

    def get_extra_state(self) -> Tensor:
        """What the numbers of a state_dict depend on beside its tensors, as a tensor that any format can hold."""
        names = ("recurrent", "variant", "max_rates")
        return packed_settings({name: getattr(self, name) for name in names})

    def set_extra_state(self, state: Tensor) -> None:
        """ValueError where the state_dict is of a cell with other settings."""
        check_settings(self, state)

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        load_with_or_without_settings(self, super()._load_from_state_dict, *arguments, **keywords)

    def fields(self) -> CellParameters:
        """The parameters as the core's named tuple, still attached to autograd; biases as the last columns."""
        fields = CellParameters(*(getattr(self, name) for name in CellParameters._fields))
        if not self.bias:
            return fields
        pairs = {of: (getattr(fields, of), getattr(self, name)[:, None]) for name, of in BIASES.items()}
        return fields._replace(**{of: torch.cat(pair, 1) for of, pair in pairs.items()})

    def _with_one(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, 1), value=1.0) if self.bias else x

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
            return through(fields, *self.derived(fields), state, self._with_one(x), self.variant)
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
        return step(xp, fields, w, rates, state, self._with_one(x), self.variant)

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, bias={self.bias}, recurrent={self.recurrent!r}, "
            f"variant={self.variant!r}, max_rates={tuple(self.max_rates)}, learn_rates={self.learn_rates}"
        )


def packed_settings(settings: dict[str, Any]) -> Tensor:
    """Settings as the bytes of their JSON."""
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8, device="cpu")


def check_settings(module: nn.Module, state: Tensor) -> dict[str, Any] | None:
    """The settings in ``state``, of :func:`packed_settings`; ValueError naming one that ``module`` has otherwise."""
    if not is_ordinary(state):  # on no device, or not computed: there is nothing to see
        return None
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
    return found


def load_with_or_without_settings(
    module: nn.Module, load: Callable[..., None], state: Any, prefix: str, *rest: Any
) -> None:
    """A module's own part of a state_dict; those of older versions have no settings.

    Other settings are refused before a number is copied.
    """
    missing, key = rest[2], f"{prefix}_extra_state"
    if key in state:
        check_settings(module, state[key])
    load(state, prefix, *rest)
    if key in missing:
        missing.remove(key)


def check_tensor(name: str, value: object, like: Tensor) -> None:
    """TypeError or ValueError unless ``value`` is a tensor of the dtype and device of ``like``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {checks.describe(value)}")
    if value.dtype != like.dtype and not (value.is_floating_point() and in_autocast(value)):
        raise TypeError(f"{name} has dtype {value.dtype} but the parameters have {like.dtype}; convert one of them")
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device} but the parameters are on {like.device}; move one of them")


def check_state(state: object, shape: tuple[int, ...], like: Tensor, name: str) -> CellState:
    """``state`` as a CellState of tensors of exactly ``shape``."""
    if not isinstance(state, (tuple, list)) or len(state) != 4:
        size = f" of {len(state)}" if isinstance(state, (tuple, list)) else ""
        advice = (
            "; in place of an LSTM's (h, c) pass the state that the last call gave, nothing for the start state, or "
            "start_state(N)._replace(y=h)"
        )
        raise TypeError(
            f"{name} must be a CellState(y, a, b0, b1) of tensors, got {checks.describe(state)}{size}"
            + (advice if size == " of 2" else "")
        )
    for field, value in zip(CellState._fields, state, strict=True):
        check_tensor(f"{name}.{field}", value, like)
        if tuple(value.shape) != tuple(shape):
            raise ValueError(f"{name}.{field} must have shape {tuple(shape)}, got shape {tuple(value.shape)}")
    return CellState(*state)
