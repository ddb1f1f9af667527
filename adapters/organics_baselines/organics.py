"""ORGaNICs behind the interface of the table; the product itself is :mod:`organics_torch`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import organics_torch

from ._registry import Entry


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


MODEL = Entry("ORGaNICs", "Rawat et al. 2024", organics)
