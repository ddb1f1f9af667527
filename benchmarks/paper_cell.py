"""The trained cell as one writes it from the paper: a module per step, differentiated by autograd.

Rawat, Heeger & Martiniani (NeurIPS 2024). It is here to be measured against, and shares no code with the library.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PaperCell(nn.Module):
    """The rectified cell of n units on inputs (T, N, k); returns y at the last step, (N, n)."""

    def __init__(self, k: int, n: int, rate_y: float = 0.05, rate_a: float = 0.01, rate_b: float = 0.1) -> None:
        super().__init__()
        self.max_rates = (rate_y, rate_a, rate_b, rate_b)
        self.w_zx = nn.Linear(k, n, bias=False)
        self.w_r = nn.Linear(n, n, bias=False)
        nn.init.orthogonal_(self.w_r.weight)
        self.log_w = nn.Parameter(torch.rand(n, n).log().fill_diagonal_(0.0))
        self.b0, self.b1 = (nn.ModuleList(nn.Linear(size, n, bias=False) for size in (k, n, n)) for _ in range(2))
        for gains in (*self.b0, *self.b1):
            nn.init.kaiming_uniform_(gains.weight, a=math.sqrt(5))
        self.theta = nn.ParameterList(torch.zeros(n) for _ in range(4))
        y = torch.rand(n)
        self.register_buffer("start", torch.stack([y / y.norm(), torch.rand(n), torch.ones(n), torch.rand(n)]))

    def forward(self, xs: Tensor) -> Tensor:
        w = self.log_w.exp().clamp(max=1.0)
        rate_y, rate_a, rate_b0, rate_b1 = (
            largest * torch.sigmoid(theta) for largest, theta in zip(self.max_rates, self.theta, strict=True)
        )
        y, a, b0, b1 = (part.expand(xs.shape[1], -1) for part in self.start)
        for x in xs:
            z = torch.relu(self.w_zx(x))
            recurrent = torch.relu(self.w_r(y))
            target0 = torch.sigmoid(sum(weights(part) for weights, part in zip(self.b0, (x, y, a), strict=True)))
            target1 = torch.sigmoid(sum(weights(part) for weights, part in zip(self.b1, (x, y, a), strict=True)))
            positive = torch.relu(a)
            pool = nn.functional.linear(positive * torch.relu(y) ** 2, w)
            y, a, b0, b1 = (
                y + rate_y * (-y + b1 * z + (1 - torch.sqrt(positive)) * recurrent),
                a + rate_a * (-a + b0**2 + pool),
                b0 + rate_b0 * (target0 - b0),
                b1 + rate_b1 * (target1 - b1),
            )
        return y
