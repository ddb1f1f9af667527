"""The Lipschitz network."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from organics_core import checks

from ._base import Recurrent, normal
from ._registry import Array, Arrays, Entry


class LipschitzRNN(Recurrent):
    """h <- h + epsilon (A h + tanh(W h + U x + b)), A and W partly antisymmetric.

    Parameters
    ----------
    epsilon : float
        Step size.
    beta : float
        In [0, 1]; 1 is antisymmetric, 0 symmetric.
    gamma : float
        Shift of the diagonal.
    std : float
        The matrices M start from N(0, std^2 / n).

    Notes
    -----
    Erichson, Azencot, Queiruga, Hodgkinson & Mahoney (ICLR 2021), arXiv
    2006.12070, sections 3 and 5 (forward Euler), both matrices made by::

        (1 - beta) (M + M^T) + beta (M - M^T) - gamma I
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        epsilon: float = 0.03,
        beta: float = 0.75,
        gamma: float = 0.001,
        std: float = 1.0,
        every_step: bool = False,
    ) -> None:
        super().__init__(hidden_size, classes, every_step=every_step)
        self.epsilon, self.gamma = checks.positive_number("epsilon", epsilon), checks.not_negative("gamma", gamma)
        self.beta, std = checks.not_negative("beta", beta), checks.not_negative("std", std)
        if beta > 1:
            raise ValueError(f"beta must be between 0 and 1, got {beta!r}")
        self.m_a = normal(std / math.sqrt(hidden_size), hidden_size, hidden_size)
        self.m_w = normal(std / math.sqrt(hidden_size), hidden_size, hidden_size)
        self.input = nn.Linear(input_size, hidden_size)

    def _matrix(self, m: Tensor) -> Tensor:
        shift = self.gamma * torch.eye(len(m), dtype=m.dtype, device=m.device)
        return (1 - self.beta) * (m + m.T) + self.beta * (m - m.T) - shift

    def drive(self, x: Tensor) -> Tensor:
        return self.input(x)

    def constants(self) -> Tensor:
        return torch.cat([self._matrix(self.m_a), self._matrix(self.m_w)]).T

    def start(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def advance(self, drive: Tensor, state: Tensor, constants: Tensor) -> Tensor:
        linear, inner = (state @ constants).chunk(2, dim=-1)
        return state + self.epsilon * (linear + torch.tanh(inner + drive))


def equations(p: Arrays, x: Array, model: nn.Module) -> Array:
    """The published equations, for one sequence."""
    a, w = (0.25 * (m + m.T) + 0.75 * (m - m.T) - 0.001 * np.eye(len(m)) for m in (p["m_a"], p["m_w"]))
    h = np.zeros(len(a))
    for step in x:
        h = h + 0.03 * (a @ h) + 0.03 * np.tanh(w @ h + p["input.weight"] @ step + p["input.bias"])
    return h


MODEL = Entry("Lipschitz RNN", "Erichson et al. 2021", LipschitzRNN, equations=equations)
