"""The agreement table: every installed array library computes the same circuits, side by side.

>>> import organics_agree
>>> columns = [column for column in organics_agree.installed() if column.library == "numpy"]
>>> organics_agree.compare(columns, quantities=organics_agree.compact()[:1]).ok
True
"""

from .cases import QUANTITIES, Problem, Quantity, compact
from .comparison import BOUND64, TORCH_JAX, Agreement, Cell, compare, difference, torch_against_jax
from .libraries import LIBRARIES, Column, installed

__all__ = [
    "BOUND64",
    "LIBRARIES",
    "QUANTITIES",
    "TORCH_JAX",
    "Agreement",
    "Cell",
    "Column",
    "Problem",
    "Quantity",
    "compact",
    "compare",
    "difference",
    "installed",
    "torch_against_jax",
]
