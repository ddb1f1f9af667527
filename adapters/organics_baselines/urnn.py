"""The unitary network."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ._base import Recurrent, uniform
from ._registry import Array, Arrays, Entry


class UnitaryRNN(Recurrent):
    """h <- modReLU(W h + V x) with W = D3 R2 F^-1 D2 P R1 F D1 unitary, h complex.

    Notes
    -----
    Arjovsky, Shah & Bengio (2015), arXiv 1511.06464, sections 4.1 to 4.3: D are
    diagonal phases, R reflections I - 2 v v* / |v|^2, F the unitary Fourier
    transform, P a fixed permutation, modReLU(z) = max(|z| + b, 0) z / |z|; the
    readout sees the real and the imaginary part.
    """

    permutation: Tensor

    def __init__(self, input_size: int, hidden_size: int, classes: int, *, every_step: bool = False) -> None:
        super().__init__(2 * hidden_size, classes, every_step=every_step)
        n = hidden_size
        self.phases = uniform(-math.pi, math.pi, 3, n)
        self.reflections = uniform(-1.0, 1.0, 2, 2, n)  # two vectors, real and imaginary parts
        bound = math.sqrt(6 / (input_size + 2 * n))
        self.v = uniform(-bound, bound, 2, n, input_size)
        self.b = nn.Parameter(torch.zeros(n))
        bound = math.sqrt(3 / (2 * n))
        self.h0 = uniform(-bound, bound, 2, n)
        self.register_buffer("permutation", torch.randperm(n))

    def drive(self, x: Tensor) -> Tensor:
        return torch.complex(x @ self.v[0].T, x @ self.v[1].T)

    def constants(self) -> tuple[Tensor, Tensor]:
        vectors = torch.complex(self.reflections[:, 0], self.reflections[:, 1])
        return torch.polar(torch.ones_like(self.phases), self.phases), vectors / vectors.norm(dim=-1, keepdim=True)

    def start(self, like: Tensor) -> Tensor:
        return torch.complex(self.h0[0], self.h0[1]).expand(len(like), -1)

    def rotate(self, state: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor:
        """W h."""
        phases, vectors = constants
        state = torch.fft.fft(phases[0] * state, norm="ortho")
        state = _reflect(state, vectors[0])[:, self.permutation]
        state = torch.fft.ifft(phases[1] * state, norm="ortho")
        return phases[2] * _reflect(state, vectors[1])

    def advance(self, drive: Tensor, state: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor:
        z = self.rotate(state, constants) + drive
        size = z.abs()
        return z * (torch.relu(size + self.b) / size.clamp_min(torch.finfo(size.dtype).tiny))

    def features(self, state: Tensor) -> Tensor:
        return torch.cat([state.real, state.imag], dim=-1)


def _reflect(state: Tensor, vector: Tensor) -> Tensor:
    """(I - 2 v v*) h for a unit vector v."""
    return state - 2 * (state @ vector.conj()).unsqueeze(-1) * vector


def matrix(p: Arrays) -> Array:
    """W by dense matrices: D3 R2 F^-1 D2 P R1 F D1."""
    n = len(p["b"])
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) / np.sqrt(n)
    d1, d2, d3 = (np.diag(np.exp(1j * phase)) for phase in p["phases"])
    r1, r2 = (
        np.eye(n) - 2 * np.outer(v, v.conj()) / np.vdot(v, v).real
        for v in p["reflections"][:, 0] + 1j * p["reflections"][:, 1]
    )
    permute = np.eye(n)[p["permutation"]]
    return d3 @ r2 @ fourier.conj().T @ d2 @ permute @ r1 @ fourier @ d1


def equations(p: Arrays, x: Array, model: nn.Module) -> Array:
    """The published equations, for one sequence."""
    w, v = matrix(p), p["v"][0] + 1j * p["v"][1]
    h = p["h0"][0] + 1j * p["h0"][1]
    for step in x:
        z = w @ h + v @ step
        h = np.where(np.abs(z) + p["b"] >= 0, (np.abs(z) + p["b"]) * z / np.abs(z), 0)
    return np.concatenate([h.real, h.imag])


MODEL = Entry("Unitary RNN", "Arjovsky et al. 2015", UnitaryRNN, equations=equations)
