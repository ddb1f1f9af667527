"""Wilson-Cowan populations."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from organics_core import checks

from ._base import Recurrent, by_kind, euler_rate, excitatory_count, normal, uniform
from ._registry import Array, Arrays, Entry


class WilsonCowan(Recurrent):
    """Wilson-Cowan populations: tau r' = -r + (k - r) S(W r + P), with P = W_in x + c.

    Parameters
    ----------
    excitatory : float
        Share of excitatory populations.
    rate : float
        dt/tau of all populations, at most 0.5.
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
        self.rate, strength = euler_rate(rate), checks.not_negative("strength", strength)
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


def equations(p: Arrays, x: Array, model: nn.Module) -> Array:
    """The published equations, for one sequence."""
    sign = p["signs"]
    a, theta = np.where(sign > 0, 1.2, 1.0), np.where(sign > 0, 2.8, 4.0)

    def s(x: Array) -> Array:
        return 1 / (1 + np.exp(-a * (x - theta))) - 1 / (1 + np.exp(a * theta))

    w = np.abs(p["v"]) * sign
    k = s(np.full(len(sign), 1e3))  # the largest value of S
    r = np.zeros(len(sign))
    for step in x:
        r = r + 0.1 * (-r + (k - r) * s(w @ r + p["w_in"] @ step + p["c"]))
    return r


MODEL = Entry("Wilson-Cowan", "Wilson & Cowan 1972", WilsonCowan, equations=equations)
