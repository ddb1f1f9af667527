"""The ReLU network that starts from the identity."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from organics_core import checks

from ._base import Recurrent, normal, relu
from ._registry import Array, Arrays, Entry


class IRNN(Recurrent):
    """The ReLU network that starts from the identity: h <- max(W h + V x + b, 0).

    Parameters
    ----------
    scale : float
        W starts as ``scale`` times the identity.
    input_std : float
        Standard deviation of V at the start.

    Notes
    -----
    Le, Jaitly & Hinton (2015), arXiv 1504.00941, section 2: W = I, V from
    N(0, 0.001^2), b = 0.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        scale: float = 1.0,
        input_std: float = 0.001,
        every_step: bool = False,
    ) -> None:
        super().__init__(hidden_size, classes, every_step=every_step)
        self.w = nn.Parameter(torch.eye(hidden_size) * checks.not_negative("scale", scale))
        self.v = normal(checks.not_negative("input_std", input_std), hidden_size, input_size)
        self.b = nn.Parameter(torch.zeros(hidden_size))

    def drive(self, x: Tensor) -> Tensor:
        return x @ self.v.T + self.b

    def start(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def advance(self, drive: Tensor, state: Tensor, constants: None) -> Tensor:
        return torch.relu(drive + state @ self.w.T)


def equations(p: Arrays, x: Array, model: nn.Module) -> Array:
    """The published equations, for one sequence."""
    h = np.zeros(len(p["b"]))
    for step in x:
        h = relu(p["w"] @ h + p["v"] @ step + p["b"])
    return h


MODEL = Entry("IRNN", "Le et al. 2015", IRNN, equations=equations)
