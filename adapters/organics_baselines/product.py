"""ORGaNICs behind the interface of the table; the product itself is :mod:`organics_torch`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import organics_torch


class EveryStep(nn.Module):
    """ORGaNICs and a linear readout of y at every step."""

    def __init__(self, input_size: int, hidden_size: int, classes: int, **options: Any) -> None:
        super().__init__()
        self.layer = organics_torch.ORGaNICs(input_size, hidden_size, batch_first=True, **options)
        self.readout = nn.Linear(hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, T, classes) of sequences x (N, T, k)."""
        return self.readout(self.layer(x)[0])


def organics(input_size: int, hidden_size: int, classes: int, *, every_step: bool = False, **options: Any) -> nn.Module:
    """ORGaNICs and a linear readout of y, at the last step or at every one."""
    kind = EveryStep if every_step else organics_torch.ORGaNICsClassifier
    return kind(input_size, hidden_size, classes, **options)


class StaticClassifier(nn.Module):
    """Two static normalization layers on the code of an autoencoder, and a linear readout.

    Parameters
    ----------
    input_size, steps : int
        k and T: the encoder sees all T k numbers.
    hidden_size : int
        Of the first normalization layer; the second has half as many.
    classes : int
    code : int
        Of the autoencoder, 40 in the paper.
    reconstruction : float
        Weight of the mean squared error of the reconstruction in the loss.
    options
        Of :class:`organics_torch.DivisiveNorm`.

    Notes
    -----
    Rawat, Heeger & Martiniani (NeurIPS 2024), the static classifier of MNIST.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        steps: int = 1,
        code: int = 40,
        reconstruction: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__()
        second = max(hidden_size // 2, 1)
        self.encoder = nn.Linear(input_size * steps, code)
        self.decoder = nn.Linear(code, input_size * steps)
        self.first = organics_torch.DivisiveNorm(code, hidden_size, **options)
        self.second = organics_torch.DivisiveNorm(hidden_size, second, **options)
        self.readout = nn.Linear(second, classes)
        self.reconstruction = reconstruction

    def training_outputs(self, x: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) of x, and the loss of the reconstruction of ``clean`` that is added to theirs."""
        code = self.encoder(x.flatten(1))
        extra = nn.functional.mse_loss(torch.sigmoid(self.decoder(code)), clean.flatten(1))
        return self.readout(self.second(self.first(code))), self.reconstruction * extra

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of x (N, T, k)."""
        return self.readout(self.second(self.first(self.encoder(x.flatten(1)))))
