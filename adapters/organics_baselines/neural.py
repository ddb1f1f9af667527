"""Neurodynamical models: circuits of excitatory and inhibitory populations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .base import Recurrent, normal, uniform


def excitatory_count(hidden_size: int, excitatory: float) -> int:
    """How many of the neurons are excitatory: the first ones; at least one of either kind, where there are two."""
    if not 0 < excitatory < 1:
        raise ValueError(f"excitatory must be between 0 and 1, got {excitatory!r}")
    return min(max(round(excitatory * hidden_size), 1), max(hidden_size - 1, 1))


def by_kind(signs: Tensor, excitatory: float, inhibitory: float) -> Tensor:
    """One value for the neurons of sign +1, another for those of sign -1."""
    return 0.5 * (excitatory + inhibitory) + 0.5 * (excitatory - inhibitory) * signs


class SSN(Recurrent):
    """The stabilized supralinear network: tau r' = -r + k max(W r + h, 0)^n, with h = W_in x + c.

    Parameters
    ----------
    excitatory : float
        Share of excitatory neurons, 0.8 or 0.5.
    power, gain : float
        n and k; any other k is the same network with r in another unit.
    rate : float
        dt/tau of excitatory neurons; that of inhibitory ones is twice as large.
    strength : float
        Sum of the incoming weights of either kind at the start.
    substeps : int
        Euler steps for every step of the input; a static input wants many.

    Notes
    -----
    Ahmadian, Rubin & Miller, Neural Computation 25 (2013), equation 1; Rubin,
    Van Hooser & Miller, Neuron 85 (2015), the E/I network with faster
    inhibition. Dale's law holds by W_ij = +-|V_ij|. Explicit Euler.
    """

    signs: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        excitatory: float = 0.8,
        power: float = 2.0,
        gain: float = 1.0,
        rate: float = 0.1,
        strength: float = 0.5,
        substeps: int = 1,
        every_step: bool = False,
    ) -> None:
        super().__init__(hidden_size, classes, every_step=every_step, substeps=substeps)
        count = excitatory_count(hidden_size, excitatory)
        self.power, self.gain, self.rate = power, gain, rate
        sign = torch.ones(hidden_size)
        sign[count:] = -1.0
        kind = torch.where(sign > 0, float(count), float(max(hidden_size - count, 1)))
        self.v = nn.Parameter(torch.rand(hidden_size, hidden_size) * 2 * strength / kind)
        self.input = nn.Linear(input_size, hidden_size)
        self.register_buffer("signs", sign)

    def drive(self, x: Tensor) -> Tensor:
        return self.input(x)

    def constants(self) -> tuple[Tensor, Tensor]:
        return (self.v.abs() * self.signs).T, by_kind(self.signs, self.rate, 2 * self.rate)

    def start(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def advance(self, drive: Tensor, state: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor:
        weights, rates = constants
        target = self.gain * torch.relu(state @ weights + drive) ** self.power
        return state + rates * (target - state)


class WilsonCowan(Recurrent):
    """Wilson-Cowan populations: tau r' = -r + (k - r) S(W r + P), with P = W_in x + c.

    Parameters
    ----------
    excitatory : float
        Share of excitatory populations.
    rate : float
        dt/tau of all populations.
    strength : float
        Sum of the incoming weights of either kind at the start.
    substeps : int
        Euler steps for every step of the input.

    Notes
    -----
    Wilson & Cowan, Biophysical Journal 12 (1972), equations 11 and 12 with
    refractory period 1, and the response function of equation 15,
    S(x) = 1 / (1 + exp(-a (x - theta))) - 1 / (1 + exp(a theta)), whose largest
    value is k, with the constants of their figure 4: a = 1.2, theta = 2.8 for excitatory and a = 1,
    theta = 4 for inhibitory populations. Dale's law holds by W_ij = +-|V_ij|.
    Explicit Euler.
    """

    signs: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        excitatory: float = 0.8,
        rate: float = 0.1,
        strength: float = 10.0,
        substeps: int = 1,
        every_step: bool = False,
    ) -> None:
        super().__init__(hidden_size, classes, every_step=every_step, substeps=substeps)
        count = excitatory_count(hidden_size, excitatory)
        self.rate = rate
        sign = torch.ones(hidden_size)
        sign[count:] = -1.0
        kind = torch.where(sign > 0, float(count), float(max(hidden_size - count, 1)))
        self.v = nn.Parameter(torch.rand(hidden_size, hidden_size) * 2 * strength / kind)
        self.w_in = normal(1 / math.sqrt(input_size), hidden_size, input_size)
        self.c = uniform(0.0, 4.0, hidden_size)
        self.register_buffer("signs", sign)

    def drive(self, x: Tensor) -> Tensor:
        return x @ self.w_in.T + self.c

    def constants(self) -> tuple[Tensor, Tensor, Tensor]:
        slope, threshold = by_kind(self.signs, 1.2, 1.0), by_kind(self.signs, 2.8, 4.0)
        return (self.v.abs() * self.signs).T, slope, threshold

    def start(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def advance(self, drive: Tensor, state: Tensor, constants: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        weights, slope, threshold = constants
        response = torch.sigmoid(slope * (state @ weights + drive - threshold)) - torch.sigmoid(-slope * threshold)
        largest = torch.sigmoid(slope * threshold)  # 1 - 1 / (1 + exp(a theta))
        return state + self.rate * ((largest - state) * response - state)
