"""A deep equilibrium layer, which sees all steps at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from organics_core import checks

from ._registry import Array, Arrays, Entry


class FixedPoint(nn.Module):
    """A deep equilibrium layer: the fixed point of z = tanh(W z + U x + b), and a linear readout.

    Parameters
    ----------
    input_size, steps : int
        k and T: the layer sees all T k numbers.
    hidden_size : int
    classes : int
    contraction : float
        Largest spectral norm of W, below 1, so that there is one fixed point
        and the iteration finds it.
    tol : float, optional
        Of the largest change in an iteration; by default a few units of the
        dtype's resolution.
    max_iterations : int

    Attributes
    ----------
    iterations : int
        Of the last forward pass.
    residual : float
        Largest change in its last iteration.

    Notes
    -----
    Bai, Kolter & Koltun (NeurIPS 2019), arXiv 1909.01377, section 3.1: the
    forward pass solves for the equilibrium (equation 3 there), the backward
    pass solves the linear system of theorem 1, u = g + J^T u, so that memory
    does not grow with the iterations.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        steps: int = 1,
        contraction: float = 0.9,
        tol: float | None = None,
        max_iterations: int = 300,
    ) -> None:
        super().__init__()
        if not checks.positive_number("contraction", contraction) < 1:
            raise ValueError(f"contraction must be between 0 and 1, got {contraction!r}")
        self.contraction, self.tol = contraction, None if tol is None else checks.positive_number("tol", tol)
        self.max_iterations = checks.positive_integer("max_iterations", max_iterations)
        self.v = nn.Parameter(torch.randn(hidden_size, hidden_size) / (2 * hidden_size**0.5))
        self.input = nn.Linear(input_size * steps, hidden_size)
        self.readout = nn.Linear(hidden_size, classes)
        self.iterations = 0
        self.residual = float("nan")

    def weights(self) -> Tensor:
        """W = V, scaled down to spectral norm ``contraction`` where it is larger."""
        norm = torch.linalg.matrix_norm(self.v, 2)
        return self.v * (self.contraction / norm.clamp_min(self.contraction))

    def equilibrium(self, x: Tensor) -> Tensor:
        """The fixed point (N, n), differentiated implicitly."""
        w = self.weights()
        drive = self.input(x.flatten(1))
        tol = 10 * torch.finfo(drive.dtype).eps if self.tol is None else self.tol
        fixed = w.detach()
        with torch.no_grad():
            z = torch.tanh(drive)
            self.iterations, self.residual = 0, float("inf")
            while self.iterations < self.max_iterations and not self.residual <= tol:
                new = torch.tanh(z @ fixed.T + drive)
                self.residual = float((new - z).abs().max())
                self.iterations += 1
                z = new
        z = torch.tanh(z @ w.T + drive)
        if z.requires_grad:
            slope = 1 - z.detach() ** 2

            def solve(gradient: Tensor | None) -> Tensor | None:
                """u = g + J^T u, with J = diag(1 - z^2) W."""
                if gradient is None:
                    return None
                u = gradient
                scale = float(gradient.abs().max())
                for _ in range(self.max_iterations):
                    new = gradient + (u * slope) @ fixed
                    done = float((new - u).abs().max()) <= tol * scale
                    u = new
                    if done:
                        break
                return u

            z.register_hook(solve)
        return z

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of x (N, T, k)."""
        return self.readout(self.equilibrium(x))


def equations(p: Arrays, x: Array, model: nn.Module) -> Array:
    """The published equations, for one sequence."""
    w = p["v"] * 0.9 / max(0.9, float(np.linalg.norm(p["v"], 2)))
    z = np.zeros(len(w))
    for _ in range(1000):
        z = np.tanh(w @ z + p["input.weight"] @ x.ravel() + p["input.bias"])
    return z


MODEL = Entry("DEQ-style fixed point", "Bai et al. 2019", FixedPoint, static=True, equations=equations)
