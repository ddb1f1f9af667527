"""Long short-term memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ._base import Gated, sigmoid
from ._registry import Array, Arrays, Entry


def lstm(input_size: int, hidden_size: int, classes: int, **options: Any) -> Gated:
    """An LSTM; see :class:`Gated`."""
    return Gated(nn.LSTM, input_size, hidden_size, classes, **options)


def equations(p: Arrays, x: Array, model: nn.Module) -> Array:
    """The published equations, for one sequence."""
    h = c = np.zeros(p["layer.weight_hh_l0"].shape[1])
    for step in x:
        gates = p["layer.weight_ih_l0"] @ step + p["layer.weight_hh_l0"] @ h
        gates = gates + p["layer.bias_ih_l0"] + p["layer.bias_hh_l0"]
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h


MODEL = Entry("LSTM", "Hochreiter & Schmidhuber 1997", lstm, equations=equations)
