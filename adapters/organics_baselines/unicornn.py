"""Independent, undamped oscillators."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from organics_core import checks

from ._base import Recurrent, uniform
from ._registry import Array, Arrays, Entry


class UnICORNN(Recurrent):
    """Layers of undamped, independent, controlled oscillators.

    Parameters
    ----------
    num_layers : int
        Neurons of a layer do not see each other; they mix between layers.
    dt : float
        Step size.
    alpha : float
        Restoring force.

    Notes
    -----
    Rusch & Mishra (ICML 2021), arXiv 2103.05487, section 2, with
    s(c) = 1/2 + 1/2 tanh(c/2)::

        z <- z - dt s(c) (tanh(w y + V x + b) + alpha y)
        y <- y + dt s(c) z          (with the new z)

    where the x of a layer is the new y of the one below.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        num_layers: int = 3,
        dt: float = 0.2,
        alpha: float = 1.0,
        every_step: bool = False,
    ) -> None:
        super().__init__(hidden_size, classes, every_step=every_step)
        self.dt, self.alpha = checks.positive_number("dt", dt), checks.not_negative("alpha", alpha)
        self.num_layers = checks.positive_integer("num_layers", num_layers)
        self.w = uniform(0.0, 1.0, num_layers, hidden_size)
        self.c = uniform(-0.1, 0.1, num_layers, hidden_size)
        self.inputs = nn.ModuleList(
            nn.Linear(input_size if layer == 0 else hidden_size, hidden_size) for layer in range(num_layers)
        )

    def drive(self, x: Tensor) -> Tensor:
        return self.inputs[0](x)

    def constants(self) -> Tensor:
        return self.dt * torch.sigmoid(self.c)  # sigmoid(c) = 1/2 + 1/2 tanh(c/2)

    def start(self, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        rest = [torch.zeros_like(like)] * self.num_layers
        return rest, rest

    def advance(
        self, drive: Tensor, state: tuple[list[Tensor], list[Tensor]], constants: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        ys: list[Tensor] = []
        zs: list[Tensor] = []
        for layer, (y, z) in enumerate(zip(*state, strict=True)):
            below = drive if layer == 0 else self.inputs[layer](ys[-1])
            z = z - constants[layer] * (torch.tanh(self.w[layer] * y + below) + self.alpha * y)
            ys.append(y + constants[layer] * z)
            zs.append(z)
        return ys, zs

    def features(self, state: tuple[list[Tensor], list[Tensor]]) -> Tensor:
        return state[0][-1]


def equations(p: Arrays, x: Array, model: nn.Module) -> Array:
    """The published equations, for one sequence."""
    ys, zs = np.zeros(p["w"].shape), np.zeros(p["w"].shape)
    for step in x:
        below = step
        for layer in range(len(ys)):
            rate = 0.2 * (0.5 + 0.5 * np.tanh(p["c"][layer] / 2))
            inner = p["w"][layer] * ys[layer] + p[f"inputs.{layer}.weight"] @ below + p[f"inputs.{layer}.bias"]
            zs[layer] = zs[layer] - rate * (np.tanh(inner) + 1.0 * ys[layer])
            ys[layer] = ys[layer] + rate * zs[layer]
            below = ys[layer]
    return ys[-1]


MODEL = Entry("UnICORNN", "Rusch & Mishra 2021", UnICORNN, equations=equations)
