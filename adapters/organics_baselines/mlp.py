"""The multilayer perceptron, which sees all steps at once."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from organics_core import checks

from ._base import relu
from ._registry import Array, Arrays, Entry


class MLP(nn.Module):
    """Linear layers with rectifiers in between, on the flattened sequence.

    Parameters
    ----------
    input_size, steps : int
        k and T: the first layer sees all T k numbers.
    hidden_size : int
    classes : int
    num_layers : int
        Hidden layers.

    Notes
    -----
    Goodfellow, Bengio & Courville, Deep Learning (2016), equations 6.40 and
    6.41: h_l = max(W_l h_{l-1} + b_l, 0), and a linear readout.
    """

    def __init__(self, input_size: int, hidden_size: int, classes: int, *, steps: int = 1, num_layers: int = 1) -> None:
        super().__init__()
        sizes = [input_size * steps, *[hidden_size] * checks.positive_integer("num_layers", num_layers)]
        layers: list[nn.Module] = []
        for below, above in pairwise(sizes):
            layers += [nn.Linear(below, above), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.readout = nn.Linear(hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of x (N, T, k)."""
        return self.readout(self.layers(x.flatten(1)))


def equations(p: Arrays, x: Array, model: nn.Module) -> Array:
    """The published equations, for one sequence."""
    return relu(p["layers.0.weight"] @ x.ravel() + p["layers.0.bias"])


MODEL = Entry("MLP", "Goodfellow et al. 2016", MLP, static=True, equations=equations)
