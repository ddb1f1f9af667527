"""Coupled oscillators."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from organics_core import checks

from ._base import Recurrent
from ._registry import Array, Arrays, Entry


class CoRNN(Recurrent):
    """Coupled oscillators: y'' = tanh(W y + U y' + V x + b) - gamma y - epsilon y'.

    Parameters
    ----------
    dt : float
        Step size.
    gamma, epsilon : float
        Frequency and damping.

    Notes
    -----
    Rusch & Mishra (ICLR 2021), arXiv 2010.00951, the implicit-explicit scheme
    of section 2 with the damping taken at the old state::

        z <- z + dt (tanh(W y + U z + V x + b) - gamma y - epsilon z)
        y <- y + dt z          (with the new z)

    dt, gamma and epsilon are tuned for every task there.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        dt: float = 0.042,
        gamma: float = 2.7,
        epsilon: float = 4.7,
        every_step: bool = False,
    ) -> None:
        super().__init__(hidden_size, classes, every_step=every_step)
        self.dt = checks.positive_number("dt", dt)
        self.gamma, self.epsilon = checks.not_negative("gamma", gamma), checks.not_negative("epsilon", epsilon)
        self.input = nn.Linear(input_size, hidden_size)
        self.recurrent = nn.Linear(2 * hidden_size, hidden_size, bias=False)  # acts on (z, y)

    def drive(self, x: Tensor) -> Tensor:
        return self.input(x)

    def start(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(like), torch.zeros_like(like)

    def advance(self, drive: Tensor, state: tuple[Tensor, Tensor], constants: None) -> tuple[Tensor, Tensor]:
        y, z = state
        force = torch.tanh(drive + self.recurrent(torch.cat([z, y], dim=-1)))
        z = z + self.dt * (force - self.gamma * y - self.epsilon * z)
        return y + self.dt * z, z

    def features(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return state[0]


def equations(p: Arrays, x: Array, model: nn.Module) -> Array:
    """The published equations, for one sequence."""
    n = len(p["input.bias"])
    y = z = np.zeros(n)
    u, w = p["recurrent.weight"][:, :n], p["recurrent.weight"][:, n:]
    for step in x:
        force = np.tanh(w @ y + u @ z + p["input.weight"] @ step + p["input.bias"])
        z = z + 0.042 * force - 0.042 * 2.7 * y - 0.042 * 4.7 * z
        y = y + 0.042 * z
    return y


MODEL = Entry("coRNN", "Rusch & Mishra 2021", CoRNN, equations=equations)
