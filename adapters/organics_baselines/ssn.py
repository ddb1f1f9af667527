"""The stabilized supralinear network, 80 percent of it excitatory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from organics_core import checks

from ._base import Recurrent, by_kind, euler_rate, excitatory_count, relu
from ._registry import Array, Arrays, Entry


class SSN(Recurrent):
    """The stabilized supralinear network: tau r' = -r + k max(W r + h, 0)^n, with h = W_in x + c.

    Parameters
    ----------
    excitatory : float
        Share of excitatory neurons, 0.8 or 0.5.
    power, gain : float
        n and k; any other k is the same network with r in another unit.
    rate : float
        dt/tau of excitatory neurons, at most 0.5; that of inhibitory ones is twice as large.
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
        self.power, self.gain = checks.positive_number("power", power), checks.positive_number("gain", gain)
        self.rate, strength = euler_rate(rate), checks.not_negative("strength", strength)
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


def equations(p: Arrays, x: Array, model: SSN) -> Array:
    """The published equations, for one sequence."""
    sign = p["signs"]
    rate = np.where(sign > 0, 0.1, 0.2)
    w = np.abs(p["v"]) * sign[None, :]
    r = np.zeros(len(sign))
    for step in x:
        h = p["input.weight"] @ step + p["input.bias"]
        for _ in range(model.substeps):
            r = r + rate * (-r + 1.0 * relu(w @ r + h) ** 2)
    return r


MODEL = Entry("SSN (80:20)", "Ahmadian et al. 2013", SSN, options={"excitatory": 0.8}, equations=equations)
