"""ORGaNICs in torch: recurrent layers that are called like ``nn.LSTM``, static normalization layers, and training.

The equations live in :mod:`organics_core`; here are the modules around them.

>>> import torch, organics_torch
>>> layer = organics_torch.ORGaNICs(1, 64, batch_first=True)  # was: nn.LSTM(1, 64, batch_first=True)
>>> output, hn = layer(torch.zeros(8, 28, 1))
>>> output.shape, hn.y.shape
(torch.Size([8, 28, 64]), torch.Size([1, 8, 64]))
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:  # pragma: no cover - seen only without torch
    raise ImportError('organics_torch needs torch: run pip install "organics-core[torch]"') from error

from organics_core.cell import CellState, MaxRates, rates_for
from organics_train.records import EpochRecord

from .advice import parallel_advice, parallel_report
from .cell import ORGaNICsCell
from .checkpoint import load, save
from .introspection import CellReport, Monitor, inspect, measure_abscissa
from .layer import ORGaNICs, ORGaNICsClassifier
from .proving import prove_stable
from .static import DivisiveNorm, DivisiveNorm2d, DivisiveNormalization
from .stream import Stream
from .training import fit

__all__ = [
    "CellReport",
    "CellState",
    "DivisiveNorm",
    "DivisiveNorm2d",
    "DivisiveNormalization",
    "EpochRecord",
    "MaxRates",
    "Monitor",
    "ORGaNICs",
    "ORGaNICsCell",
    "ORGaNICsClassifier",
    "Stream",
    "fit",
    "inspect",
    "load",
    "measure_abscissa",
    "parallel_advice",
    "parallel_report",
    "prove_stable",
    "rates_for",
    "save",
]
