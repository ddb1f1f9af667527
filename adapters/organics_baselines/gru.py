"""Gated recurrent units."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ._base import Gated, sigmoid
from ._registry import Array, Arrays, Entry


def gru(input_size: int, hidden_size: int, classes: int, **options: Any) -> Gated:
    """A GRU; see :class:`Gated`."""
    return Gated(nn.GRU, input_size, hidden_size, classes, **options)


def equations(p: Arrays, x: Array, model: nn.Module) -> Array:
    """The published equations, for one sequence."""
    h = np.zeros(p["layer.weight_hh_l0"].shape[1])
    for step in x:
        r, u, new = np.split(p["layer.weight_ih_l0"] @ step + p["layer.bias_ih_l0"], 3)
        rh, uh, nh = np.split(p["layer.weight_hh_l0"] @ h + p["layer.bias_hh_l0"], 3)
        u = sigmoid(u + uh)
        h = (1 - u) * np.tanh(new + sigmoid(r + rh) * nh) + u * h
    return h


MODEL = Entry("GRU", "Cho et al. 2014", gru, equations=equations)
