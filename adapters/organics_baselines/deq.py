"""A deep equilibrium layer, which sees all steps at once."""

from __future__ import annotations

from typing import Any

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
                self.residual = _largest(new - z)
                self.iterations += 1
                z = new
        return _Equilibrium.apply(z.detach(), w, drive, tol, self.max_iterations)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of x (N, T, k)."""
        return self.readout(self.equilibrium(x))


class _Equilibrium(torch.autograd.Function):
    """z = tanh(W z + drive) at the fixed point that was found, with derivatives of every order."""

    @staticmethod
    def forward(found: Tensor, w: Tensor, drive: Tensor, tol: float, most: int) -> Tensor:
        return torch.tanh(found @ w.T + drive)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])
        ctx.save_for_forward(output, inputs[1])
        ctx.limits = inputs[3:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        z, w = ctx.saved_tensors
        slope = 1 - z * z
        delta = slope * _Solution.apply(gradient, slope, w, True, *ctx.limits)
        return None, delta.T @ z, delta, None, None

    @staticmethod
    def jvp(ctx: Any, _: Tensor | None, d_w: Tensor | None, d_drive: Tensor | None, *rest: None) -> Tensor:
        z, w = ctx.saved_tensors
        slope = 1 - z * z
        moved = (0 if d_drive is None else d_drive) + (0 if d_w is None else z @ d_w.T)
        return _Solution.apply(slope * moved, slope, w, False, *ctx.limits)


class _Solution(torch.autograd.Function):
    """u = g + J u or, transposed, u = g + J^T u, with J = diag(slope) W, by iteration."""

    @staticmethod
    def forward(g: Tensor, slope: Tensor, w: Tensor, transposed: bool, tol: float, most: int) -> Tensor:
        u, scale = g, _largest(g)
        for _ in range(most):
            new = g + ((u * slope) @ w if transposed else (u @ w.T) * slope)
            done = _largest(new - u) <= tol * scale
            u = new
            if done:
                break
        return u.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output, *inputs[1:3])
        ctx.save_for_forward(output, *inputs[1:3])
        ctx.transposed, ctx.limits = inputs[3], inputs[4:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        u, slope, w = ctx.saved_tensors
        v = _Solution.apply(gradient, slope, w, not ctx.transposed, *ctx.limits)
        first, second = (u, v) if ctx.transposed else (v, u)  # both ways J^T stands between them
        return v, first * (second @ w.T), (first * slope).T @ second, None, None, None

    @staticmethod
    def jvp(ctx: Any, d_g: Tensor | None, d_slope: Tensor | None, d_w: Tensor | None, *rest: None) -> Tensor:
        u, slope, w = ctx.saved_tensors
        moved = torch.zeros_like(u) if d_g is None else d_g
        if d_slope is not None:
            moved = moved + ((u * d_slope) @ w if ctx.transposed else (u @ w.T) * d_slope)
        if d_w is not None:
            moved = moved + ((u * slope) @ d_w if ctx.transposed else (u @ d_w.T) * slope)
        return _Solution.apply(moved, slope, w, ctx.transposed, *ctx.limits)


def _largest(change: Tensor) -> float:
    """The largest absolute value; 0 where there is none, of no samples."""
    return float(change.detach().abs().max()) if change.numel() else 0.0


def equations(p: Arrays, x: Array, model: nn.Module) -> Array:
    """The published equations, for one sequence."""
    w = p["v"] * 0.9 / max(0.9, float(np.linalg.norm(p["v"], 2)))
    z = np.zeros(len(w))
    for _ in range(1000):
        z = np.tanh(w @ z + p["input.weight"] @ x.ravel() + p["input.bias"])
    return z


MODEL = Entry("DEQ-style fixed point", "Bai et al. 2019", FixedPoint, static=True, equations=equations)
