"""The antisymmetric network, gated or not."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from organics_core import checks

from ._base import Recurrent, normal, sigmoid, zeros
from ._registry import Array, Arrays, Entry


class AntisymmetricRNN(Recurrent):
    """h <- h + epsilon tanh((W - W^T - gamma I) h + V x + b), optionally gated.

    Parameters
    ----------
    epsilon : float
        Step size.
    gamma : float
        Diffusion.
    gated : bool
        Multiply the change by sigmoid((W - W^T - gamma I) h + V_z x + b_z).
    std : float
        W starts from N(0, std^2 / n).

    Notes
    -----
    Chang, Chen, Haber & Chi (ICLR 2019), arXiv 1902.09689, section 3.2 (the
    update with diffusion) and section 3.3 (gated). Step size and diffusion are
    tuned for every task there. W has n^2 numbers here, of which only the
    n (n - 1) / 2 of W - W^T matter; counts in the paper are of these.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        epsilon: float = 0.1,
        gamma: float = 0.01,
        gated: bool = False,
        std: float = 1.0,
        every_step: bool = False,
    ) -> None:
        super().__init__(hidden_size, classes, every_step=every_step)
        self.epsilon, self.gamma = checks.positive_number("epsilon", epsilon), checks.not_negative("gamma", gamma)
        self.gated, std = checks.flag("gated", gated), checks.not_negative("std", std)
        self.w = normal(std / math.sqrt(hidden_size), hidden_size, hidden_size)
        self.v = normal(1 / math.sqrt(input_size), hidden_size * (2 if gated else 1), input_size)
        self.b = nn.Parameter(torch.zeros(len(self.v)))

    def drive(self, x: Tensor) -> Tensor:
        return x @ self.v.T + self.b

    def constants(self) -> Tensor:
        return self.w - self.w.T - self.gamma * torch.eye(len(self.w), dtype=self.w.dtype, device=self.w.device)

    def start(self, like: Tensor) -> Tensor:
        return zeros(like, len(self.w))

    def advance(self, drive: Tensor, state: Tensor, constants: Tensor) -> Tensor:
        inner = state @ constants.T
        if not self.gated:
            return state + self.epsilon * torch.tanh(inner + drive)
        drive, gate = drive.chunk(2, dim=-1)
        return state + self.epsilon * torch.sigmoid(inner + gate) * torch.tanh(inner + drive)


def equations(p: Arrays, x: Array, model: AntisymmetricRNN) -> Array:
    """The published equations, for one sequence."""
    n = len(p["w"])
    h = np.zeros(n)
    m = p["w"] - p["w"].T - 0.01 * np.eye(n)
    for step in x:
        inner = m @ h
        gate = sigmoid(inner + p["v"][n:] @ step + p["b"][n:]) if model.gated else 1.0
        h = h + 0.1 * gate * np.tanh(inner + p["v"][:n] @ step + p["b"][:n])
    return h


MODEL = Entry("AntisymmetricRNN", "Chang et al. 2019", AntisymmetricRNN, equations=equations)
