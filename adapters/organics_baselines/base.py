"""What all recurrent models share: the loop over the steps and the linear readout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """A recurrent model with a linear readout, of the last step or of every one.

    Parameters
    ----------
    features : int
        What the readout sees.
    classes : int
    every_step : bool
        Logits (N, T, classes) instead of (N, classes).
    substeps : int
        Steps of the dynamics for every step of the input.

    Notes
    -----
    A subclass says how the input enters (:meth:`drive`, of all steps in one
    product), where it starts, what does not change between steps
    (:meth:`constants`), one step, and what is read out.
    """

    def __init__(self, features: int, classes: int, *, every_step: bool = False, substeps: int = 1) -> None:
        super().__init__()
        self.readout = nn.Linear(features, classes)
        self.every_step = every_step
        self.substeps = substeps

    def drive(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def constants(self) -> Any:
        return None

    def start(self, like: Tensor) -> Any:
        """The first state; ``like`` is the drive of one step, (N, ...)."""
        raise NotImplementedError

    def advance(self, drive: Tensor, state: Any, constants: Any) -> Any:
        raise NotImplementedError

    def features(self, state: Any) -> Tensor:
        return state

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes), or (N, T, classes), of sequences x (N, T, k)."""
        drive = self.drive(x)
        constants = self.constants()
        state = self.start(drive[:, 0])
        seen = []
        for step in drive.unbind(1):
            for _ in range(self.substeps):
                state = self.advance(step, state, constants)
            if self.every_step:
                seen.append(self.features(state))
        return self.readout(torch.stack(seen, dim=1) if self.every_step else self.features(state))


def normal(std: float, *shape: int) -> nn.Parameter:
    """A parameter with entries N(0, std^2)."""
    return nn.Parameter(torch.randn(*shape) * std)


def uniform(low: float, high: float, *shape: int) -> nn.Parameter:
    """A parameter with entries U(low, high)."""
    return nn.Parameter(torch.empty(*shape).uniform_(low, high))


def zeros(like: Tensor, size: int) -> Tensor:
    """A state of zeros (N, size)."""
    return like.new_zeros(like.shape[0], size)
