"""What several models share: the loop over the steps and the linear readout, weights at the start, Dale's law."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from organics_core import checks

from ._registry import Array


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
        self.substeps = checks.positive_integer("substeps", substeps)

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


class Gated(nn.Module):
    """torch's own LSTM or GRU and a linear readout.

    Notes
    -----
    LSTM: Hochreiter & Schmidhuber (1997) with the forget gate of Gers,
    Schmidhuber & Cummins (2000)::

        i, f, o = sigmoid(W x + U h + b),  g = tanh(W_g x + U_g h + b_g)
        c <- f c + i g,  h <- o tanh(c)

    GRU: Cho et al. (2014), in the form of cuDNN::

        r, u = sigmoid(W x + U h + b),  n = tanh(W_n x + b_n + r (U_n h + c_n))
        h <- (1 - u) n + u h

    With ``longest_delay`` the gates start as in Tallec & Ollivier, ICLR 2018
    ("chrono"): by biases log(U(1, longest_delay - 1)) of f, their negatives of i,
    or the former of u, units forget with time constants that are uniform between
    2 and it, in steps. Without it biases are torch's, and all forget in about two steps.
    """

    def __init__(
        self,
        kind: type[nn.LSTM] | type[nn.GRU],
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        every_step: bool = False,
        num_layers: int = 1,
        longest_delay: int | None = None,
    ) -> None:
        super().__init__()
        self.layer = kind(input_size, hidden_size, num_layers, batch_first=True)
        if longest_delay is not None:
            self._remember(longest_delay)
        self.readout = nn.Linear(hidden_size, classes)
        self.every_step = every_step

    def _remember(self, longest_delay: int) -> None:
        if checks.positive_integer("longest_delay", longest_delay) < 3:
            raise ValueError(f"longest_delay must be at least 3 steps, got {longest_delay}")
        n = self.layer.hidden_size
        for k in range(self.layer.num_layers):
            first, second = (getattr(self.layer, f"bias_{of}_l{k}").data for of in ("ih", "hh"))
            kept = torch.empty(n).uniform_(1.0, longest_delay - 1.0).log_()
            gates = ((0, -kept), (1, kept)) if isinstance(self.layer, nn.LSTM) else ((1, kept),)  # i, f; u
            for gate, bias in gates:
                first[gate * n : (gate + 1) * n] = bias
                second[gate * n : (gate + 1) * n] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes), or (N, T, classes), of sequences x (N, T, k)."""
        output, _ = self.layer(x)
        return self.readout(output if self.every_step else output[:, -1])


def excitatory_count(hidden_size: int, excitatory: float) -> int:
    """How many of the neurons are excitatory: the first ones; at least one of either kind, where there are two."""
    if not (checks.is_number(excitatory) and 0 < excitatory < 1):
        raise ValueError(f"excitatory must be between 0 and 1, got {excitatory!r}")
    return min(max(round(excitatory * hidden_size), 1), max(hidden_size - 1, 1))


def euler_rate(rate: float) -> float:
    """``rate``, or an error that names it unless it is positive and at most 1/2.

    So far no Euler step of an SSN, whose inhibitory neurons take twice the rate, makes a rate negative.
    """
    if checks.positive_number("rate", rate) > 0.5:
        raise ValueError(f"rate must be at most 0.5, got {rate!r}: steps so long leave no decay to follow")
    return rate


def by_kind(signs: Tensor, excitatory: float, inhibitory: float) -> Tensor:
    """One value for the neurons of sign +1, another for those of sign -1."""
    return 0.5 * (excitatory + inhibitory) + 0.5 * (excitatory - inhibitory) * signs


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), in numpy."""
    return 1 / (1 + np.exp(-x))


def relu(x: Array) -> Array:
    """max(x, 0), in numpy."""
    return np.maximum(x, 0)
