"""ORGaNICs as Equinox modules: recurrent layers, static normalization layers, training, checkpoints.

>>> import jax
>>> layer = ORGaNICs(2, 8, key=jax.random.key(0))
>>> output, hn = layer(jax.numpy.ones((20, 4, 2)))  # (time, batch, input), as torch.nn.LSTM takes it
>>> output.shape
(20, 4, 8)
"""

from importlib.util import find_spec as _find_spec

_missing = [name for name in ("jax", "equinox") if _find_spec(name) is None]
if _missing:
    raise ImportError(
        f'organics_jax needs {" and ".join(_missing)}, which is not installed: pip install "organics-core[jax]"'
    )

from organics_core.cell import CellParameters, CellState, MaxRates, rates_for  # noqa: E402
from organics_train.records import EpochRecord  # noqa: E402

from .advice import parallel_advice, parallel_report  # noqa: E402
from .checkpoint import load, save  # noqa: E402
from .modules import trainable  # noqa: E402
from .proving import prove_stable  # noqa: E402
from .recurrent import ORGaNICs, ORGaNICsCell, ORGaNICsClassifier  # noqa: E402
from .static import DivisiveNorm, DivisiveNorm2d, DivisiveNormalization  # noqa: E402
from .training import fit  # noqa: E402

__all__ = [
    "CellParameters",
    "CellState",
    "DivisiveNorm",
    "DivisiveNorm2d",
    "DivisiveNormalization",
    "EpochRecord",
    "MaxRates",
    "ORGaNICs",
    "ORGaNICsCell",
    "ORGaNICsClassifier",
    "fit",
    "load",
    "parallel_advice",
    "parallel_report",
    "prove_stable",
    "rates_for",
    "save",
    "trainable",
]
