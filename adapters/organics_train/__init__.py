"""Training ORGaNICs and what it is compared with: data sets, a driver that survives being killed, tables.

>>> from organics_train import Config, train
>>> results = train(Config(task="digits", epochs=1), out="runs/digits")  # doctest: +SKIP
"""

from .config import Config
from .datasets import TASKS, Dataset, load_dataset
from .loop import FRAMEWORKS, Learner, train

__all__ = ["FRAMEWORKS", "TASKS", "Config", "Dataset", "Learner", "load_dataset", "train"]
