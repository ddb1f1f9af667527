"""One or two static normalization layers and an autoencoder; the layers are those of :mod:`organics_torch`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import organics_torch
from organics_core import checks

from ._registry import Entry


class StaticClassifier(nn.Module):
    """One or two static normalization layers on the code of an autoencoder, and a linear readout.

    Parameters
    ----------
    input_size, steps : int
        k and T: the encoder sees all T k numbers.
    hidden_size : int
        Of the first normalization layer; a second has half as many.
    classes : int
    layers : {2, 1}
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
        layers: int = 2,
        code: int = 40,
        reconstruction: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__()
        if layers not in (1, 2):
            raise ValueError(f"layers must be 1 or 2, got {layers!r}")
        code = checks.positive_integer("code", code)
        self.encoder = nn.Linear(input_size * steps, code)
        self.decoder = nn.Linear(code, input_size * steps)
        self.first = organics_torch.DivisiveNorm(code, hidden_size, **options)
        self.second = nn.Identity()
        if layers == 2:
            self.second = organics_torch.DivisiveNorm(hidden_size, max(hidden_size // 2, 1), **options)
        self.readout = nn.Linear(max(hidden_size // 2, 1) if layers == 2 else hidden_size, classes)
        self.reconstruction = checks.not_negative("reconstruction", reconstruction)

    def training_outputs(self, x: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) of x, and the loss of the reconstruction of ``clean`` that is added to theirs."""
        code = self.encoder(x.flatten(1))
        extra = nn.functional.mse_loss(torch.sigmoid(self.decoder(code)), clean.flatten(1))
        return self.readout(self.second(self.first(code))), self.reconstruction * extra

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of x (N, T, k)."""
        return self.readout(self.second(self.first(self.encoder(x.flatten(1)))))


MODEL = Entry("ORGaNICs, static", "Rawat et al. 2024", StaticClassifier, static=True)
