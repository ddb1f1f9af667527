"""ORGaNICs as their authors' code of October 2024 has them; the cell of January 2025 is :mod:`organics_torch`'s."""

from __future__ import annotations

from typing import NamedTuple

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor

import organics_torch
from organics_core.cell import CellState, Rates
from organics_core.circuit import sqrt_relu

from ._base import Recurrent, relu, sigmoid
from ._registry import Array, Arrays, Entry


class _Constants(NamedTuple):
    """What does not change between steps: W_r, W, the rates, and the weights of both gains' targets as one matrix."""

    w_r: Tensor
    w: Tensor
    rates: Rates
    w_by: Tensor
    w_ba: Tensor


class October(Recurrent):
    """The cell with an input drive that is not rectified, and W_r = I + M that acts on max(y, 0).

    Parameters
    ----------
    max_rates : tuple of 3 floats
        (dt/tau)_max of y, a and the gains.
    learn_rates : bool
        Whether dt/tau is learned, or stays at half of ``max_rates``.

    Attributes
    ----------
    cell : organics_torch.ORGaNICsCell
        Parameters and start state; its ``w_r`` is V, of which M = V / ||V||_2
        has the spectral norm 1. V starts orthogonal, which is our choice.

    Notes
    -----
    Rawat, Heeger & Martiniani (NeurIPS 2024). By explicit Euler steps::

        y <- y + dt/tau_y (-y + b1 W_zx x + (1 - sqrt(max(a, 0))) (I + M) max(y, 0))

    and a, b0, b1 as in :func:`organics_core.cell_step`, the pool of max(y, 0)**2.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        max_rates: tuple[float, float, float] = (0.02, 0.005, 0.1),
        learn_rates: bool = True,
        every_step: bool = False,
    ) -> None:
        super().__init__(hidden_size, classes, every_step=every_step)
        self.cell = organics_torch.ORGaNICsCell(input_size, hidden_size, max_rates=max_rates, learn_rates=learn_rates)

    def drive(self, x: Tensor) -> Tensor:
        c = self.cell
        return x @ torch.cat([c.w_zx, c.w_bx0, c.w_bx1]).T

    def constants(self) -> _Constants:
        c = self.cell
        m = c.w_r / torch.linalg.matrix_norm(c.w_r, ord=2)
        gains = torch.cat([c.w_by0, c.w_by1]), torch.cat([c.w_ba0, c.w_ba1])
        return _Constants(torch.eye(len(m)).to(m) + m, *c.derived(c.fields()), *gains)

    def start(self, like: Tensor) -> CellState:
        return self.cell.start_state(len(like))

    def advance(self, drive: Tensor, state: CellState, constants: _Constants) -> CellState:
        c, r = constants, constants.rates
        y, a, b0, b1 = state
        z, x0, x1 = drive.chunk(3, -1)
        y0, y1 = (y @ c.w_by.T + a @ c.w_ba.T).chunk(2, -1)
        up = torch.relu(y)
        pool = (torch.relu(a) * up * up) @ c.w.T
        return CellState(
            y + r.y * (b1 * z - y + (1 - sqrt_relu(xp, a)) * (up @ c.w_r.T)),
            a + r.a * ((self.cell.sigma * b0) ** 2 - a + pool),
            b0 + r.b0 * (torch.sigmoid(x0 + y0) - b0),
            b1 + r.b1 * (torch.sigmoid(x1 + y1) - b1),
        )

    def features(self, state: CellState) -> Tensor:
        return state.y


def equations(p: Arrays, x: Array, model: October) -> Array:
    """The equations, for one sequence."""
    p = {name.removeprefix("cell."): value for name, value in p.items()}
    n = len(p["log_w"])
    w_r = np.eye(n) + p["w_r"] / np.linalg.svd(p["w_r"], compute_uv=False)[0]
    w = np.minimum(np.exp(p["log_w"]), 1)
    largest = dict(zip(("y", "a", "b0", "b1"), (0.02, 0.005, 0.1, 0.1), strict=True))
    rate = {name: most * sigmoid(p[f"theta_{name}"]) for name, most in largest.items()}
    y, a, b0, b1 = (p[f"start_{name}"] for name in largest)
    for step in x:
        z = p["w_zx"] @ step
        target0, target1 = (sigmoid(p[f"w_bx{i}"] @ step + p[f"w_by{i}"] @ y + p[f"w_ba{i}"] @ a) for i in (0, 1))
        dy = -y + b1 * z + (1 - np.sqrt(a)) * (w_r @ relu(y))
        da = -a + b0**2 + w @ (a * relu(y) ** 2)
        y, a = y + rate["y"] * dy, a + rate["a"] * da
        b0, b1 = b0 + rate["b0"] * (target0 - b0), b1 + rate["b1"] * (target1 - b1)
    return y


MODEL = Entry("ORGaNICs, October 2024", "Rawat et al. 2024", October, equations=equations)
