"""ORGaNICs for Lightning: the classifier with the paper's optimizer as a ``LightningModule``."""

from __future__ import annotations

from typing import Any

from ._common import require

require("lightning", "torch", "lightning")

import lightning  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402


class LightningClassifier(lightning.LightningModule):
    """A classifier of sequences around ORGaNICs cells, trained by backpropagation through time without clipping.

    Parameters
    ----------
    input_size, hidden_size, classes : int
    lr, weight_decay : float
        Of Adam.
    step_size, gamma : int, float
        Of the learning rate's schedule: times ``gamma`` every ``step_size`` epochs.
    **options
        For ``organics_torch.ORGaNICs``: ``num_layers``, ``recurrent``, ``max_rates``, ``seed``, ...

    Notes
    -----
    Rawat, Heeger & Martiniani (NeurIPS 2024): Adam, weight decay 1e-5, StepLR, a linear readout of the last y.

    Examples
    --------
    >>> model = LightningClassifier(8, 16, 10)
    >>> model(torch.zeros(5, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        lr: float = 0.01,
        weight_decay: float = 1e-5,
        step_size: int = 50,
        gamma: float = 0.8,
        **options: Any,
    ) -> None:
        from organics_torch import ORGaNICs

        super().__init__()
        self.save_hyperparameters()
        self.rnn = ORGaNICs(input_size, hidden_size, batch_first=True, **options)
        self.readout = nn.Linear(hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of sequences (B, T, k)."""
        output, _ = self.rnn(x)
        return self.readout(output[:, -1])

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The cross entropy of a batch (sequences, labels)."""
        return self._measure("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The same on validation data."""
        return self._measure("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The same on test data."""
        return self._measure("test", batch)

    def _measure(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, labels = batch
        logits = self(x)
        loss = nn.functional.cross_entropy(logits, labels)
        self.log(f"{stage}_loss", loss, prog_bar=True)
        self.log(f"{stage}_accuracy", (logits.argmax(-1) == labels).float().mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam and StepLR."""
        options = self.hparams
        optimizer = torch.optim.Adam(self.parameters(), lr=options.lr, weight_decay=options.weight_decay)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, options.step_size, options.gamma)
        return {"optimizer": optimizer, "lr_scheduler": schedule}
