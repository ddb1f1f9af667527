"""Recurrent models of machine learning."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .base import Recurrent, normal, uniform, zeros


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
    ) -> None:
        super().__init__()
        self.layer = kind(input_size, hidden_size, num_layers, batch_first=True)
        self.readout = nn.Linear(hidden_size, classes)
        self.every_step = every_step

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes), or (N, T, classes), of sequences x (N, T, k)."""
        output, _ = self.layer(x)
        return self.readout(output if self.every_step else output[:, -1])


def lstm(input_size: int, hidden_size: int, classes: int, **options: Any) -> Gated:
    """An LSTM; see :class:`Gated`."""
    return Gated(nn.LSTM, input_size, hidden_size, classes, **options)


def gru(input_size: int, hidden_size: int, classes: int, **options: Any) -> Gated:
    """A GRU; see :class:`Gated`."""
    return Gated(nn.GRU, input_size, hidden_size, classes, **options)


class IRNN(Recurrent):
    """The ReLU network that starts from the identity: h <- max(W h + V x + b, 0).

    Parameters
    ----------
    scale : float
        W starts as ``scale`` times the identity.
    input_std : float
        Standard deviation of V at the start.

    Notes
    -----
    Le, Jaitly & Hinton (2015), arXiv 1504.00941, section 2: W = I, V from
    N(0, 0.001^2), b = 0.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        scale: float = 1.0,
        input_std: float = 0.001,
        every_step: bool = False,
    ) -> None:
        super().__init__(hidden_size, classes, every_step=every_step)
        self.w = nn.Parameter(torch.eye(hidden_size) * scale)
        self.v = normal(input_std, hidden_size, input_size)
        self.b = nn.Parameter(torch.zeros(hidden_size))

    def drive(self, x: Tensor) -> Tensor:
        return x @ self.v.T + self.b

    def start(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def advance(self, drive: Tensor, state: Tensor, constants: None) -> Tensor:
        return torch.relu(drive + state @ self.w.T)


class AntisymmetricRNN(Recurrent):
    """h <- h + epsilon tanh((W - W^T - gamma I) h + V x + b), optionally gated.

    Parameters
    ----------
    epsilon : float
        Step size.
    gamma : float
        Diffusion.
    gated : bool
        Multiply the change by sigmoid((W - W^T - gamma I) h + V_z x + b_z).
    std : float
        W starts from N(0, std^2 / n).

    Notes
    -----
    Chang, Chen, Haber & Chi (ICLR 2019), arXiv 1902.09689, section 3.2 (the
    update with diffusion) and section 3.3 (gated). Step size and diffusion are
    tuned for every task there.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        epsilon: float = 0.1,
        gamma: float = 0.01,
        gated: bool = False,
        std: float = 1.0,
        every_step: bool = False,
    ) -> None:
        super().__init__(hidden_size, classes, every_step=every_step)
        self.epsilon, self.gamma, self.gated = epsilon, gamma, gated
        self.w = normal(std / math.sqrt(hidden_size), hidden_size, hidden_size)
        self.v = normal(1 / math.sqrt(input_size), hidden_size * (2 if gated else 1), input_size)
        self.b = nn.Parameter(torch.zeros(len(self.v)))

    def drive(self, x: Tensor) -> Tensor:
        return x @ self.v.T + self.b

    def constants(self) -> Tensor:
        return self.w - self.w.T - self.gamma * torch.eye(len(self.w), dtype=self.w.dtype, device=self.w.device)

    def start(self, like: Tensor) -> Tensor:
        return zeros(like, len(self.w))

    def advance(self, drive: Tensor, state: Tensor, constants: Tensor) -> Tensor:
        inner = state @ constants.T
        if not self.gated:
            return state + self.epsilon * torch.tanh(inner + drive)
        drive, gate = drive.chunk(2, dim=-1)
        return state + self.epsilon * torch.sigmoid(inner + gate) * torch.tanh(inner + drive)


class CoRNN(Recurrent):
    """Coupled oscillators: y'' = tanh(W y + U y' + V x + b) - gamma y - epsilon y'.

    Parameters
    ----------
    dt : float
        Step size.
    gamma, epsilon : float
        Frequency and damping.

    Notes
    -----
    Rusch & Mishra (ICLR 2021), arXiv 2010.00951, the implicit-explicit scheme
    of section 2 with the damping taken at the old state::

        z <- z + dt (tanh(W y + U z + V x + b) - gamma y - epsilon z)
        y <- y + dt z          (with the new z)

    dt, gamma and epsilon are tuned for every task there.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        dt: float = 0.042,
        gamma: float = 2.7,
        epsilon: float = 4.7,
        every_step: bool = False,
    ) -> None:
        super().__init__(hidden_size, classes, every_step=every_step)
        self.dt, self.gamma, self.epsilon = dt, gamma, epsilon
        self.input = nn.Linear(input_size, hidden_size)
        self.recurrent = nn.Linear(2 * hidden_size, hidden_size, bias=False)  # acts on (z, y)

    def drive(self, x: Tensor) -> Tensor:
        return self.input(x)

    def start(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(like), torch.zeros_like(like)

    def advance(self, drive: Tensor, state: tuple[Tensor, Tensor], constants: None) -> tuple[Tensor, Tensor]:
        y, z = state
        force = torch.tanh(drive + self.recurrent(torch.cat([z, y], dim=-1)))
        z = z + self.dt * (force - self.gamma * y - self.epsilon * z)
        return y + self.dt * z, z

    def features(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return state[0]


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
        self.dt, self.alpha, self.num_layers = dt, alpha, num_layers
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


class LipschitzRNN(Recurrent):
    """h <- h + epsilon (A h + tanh(W h + U x + b)), A and W partly antisymmetric.

    Parameters
    ----------
    epsilon : float
        Step size.
    beta : float
        In [0, 1]; 1 is antisymmetric, 0 symmetric.
    gamma : float
        Shift of the diagonal.
    std : float
        The matrices M start from N(0, std^2 / n).

    Notes
    -----
    Erichson, Azencot, Queiruga, Hodgkinson & Mahoney (ICLR 2021), arXiv
    2006.12070, sections 3 and 5 (forward Euler), both matrices made by::

        (1 - beta) (M + M^T) + beta (M - M^T) - gamma I
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        epsilon: float = 0.03,
        beta: float = 0.75,
        gamma: float = 0.001,
        std: float = 1.0,
        every_step: bool = False,
    ) -> None:
        super().__init__(hidden_size, classes, every_step=every_step)
        self.epsilon, self.beta, self.gamma = epsilon, beta, gamma
        self.m_a = normal(std / math.sqrt(hidden_size), hidden_size, hidden_size)
        self.m_w = normal(std / math.sqrt(hidden_size), hidden_size, hidden_size)
        self.input = nn.Linear(input_size, hidden_size)

    def _matrix(self, m: Tensor) -> Tensor:
        shift = self.gamma * torch.eye(len(m), dtype=m.dtype, device=m.device)
        return (1 - self.beta) * (m + m.T) + self.beta * (m - m.T) - shift

    def drive(self, x: Tensor) -> Tensor:
        return self.input(x)

    def constants(self) -> Tensor:
        return torch.cat([self._matrix(self.m_a), self._matrix(self.m_w)]).T

    def start(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def advance(self, drive: Tensor, state: Tensor, constants: Tensor) -> Tensor:
        linear, inner = (state @ constants).chunk(2, dim=-1)
        return state + self.epsilon * (linear + torch.tanh(inner + drive))


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
