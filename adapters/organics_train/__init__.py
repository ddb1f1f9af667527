"""Training ORGaNICs and what it is compared with: data sets, a driver that survives being killed, tables.

>>> from organics_train import Config, train
>>> results = train(Config(task="digits", epochs=1), out="runs/digits")  # doctest: +SKIP
"""

from .config import Config
from .datasets import TASKS, Dataset, load_dataset
from .loop import FRAMEWORKS, Learner, train
from .records import EpochRecord, batch_indices

__all__ = [
    "FRAMEWORKS",
    "TASKS",
    "Config",
    "Dataset",
    "EpochRecord",
    "Learner",
    "batch_indices",
    "load_dataset",
    "train",
]
