"""The comparison: every quantity in every library against numpy in float64.

All libraries are given the same numbers, rounded to float32 first, so that a
difference is one of arithmetic and not of input. A difference is relative and
taken per array: the largest absolute difference over the largest absolute
value of the reference, the worst over the circuits of the batch.

The bound in float64 is 1e-10 throughout. In float32, whose resolution is
1.2e-7, each quantity has its own, for a reason given beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .cases import QUANTITIES, Numbers, Problem, Quantity, directional, every_gradient
from .libraries import Column, installed, numpy_columns

BOUND64 = 1e-10
TORCH_JAX = "gradients, torch against jax"


class Cell(NamedTuple):
    """Largest relative difference of one quantity in one library, and its bound.

    Attributes
    ----------
    difference : float
        NaN where something is missing or not finite.
    bound : float
    """

    difference: float
    bound: float

    @property
    def ok(self) -> bool:
        """Whether the difference is within its bound; not where it is NaN."""
        return self.difference <= self.bound


class Agreement(NamedTuple):
    """The table.

    Attributes
    ----------
    columns : tuple of Column
    quantities : tuple of Quantity
    cells : dict of (quantity name, column key) to Cell
        Without the reference, and without what a library cannot compute.
    wall : dict of column key to float
        Seconds spent.
    """

    columns: tuple[Column, ...]
    quantities: tuple[Quantity, ...]
    cells: dict[tuple[str, str], Cell]
    wall: dict[str, float]

    def cell(self, quantity: Quantity, key: str) -> Cell | None:
        """The entry of a quantity in the column ``key``, if there is one."""
        return self.cells.get((quantity.name, key))

    @property
    def ok(self) -> bool:
        """Whether all differences are within their bounds."""
        return all(cell.ok for cell in self.cells.values())

    def worst(self, key: str) -> float:
        """Largest difference of a column; NaN counts as the largest."""
        found = [cell.difference for (_, column), cell in self.cells.items() if column == key]
        return math.nan if any(math.isnan(x) for x in found) else max(found, default=0.0)


def difference(found: Numbers, reference: Numbers) -> float:
    """Largest relative difference.

    Parameters
    ----------
    found, reference : tuple of arrays
        With a leading batch axis.

    Returns
    -------
    float
        The worst over arrays and batch; NaN where anything is not finite.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> float(difference((np.array([[1.0, 2.0]]),), (np.array([[1.0, 2.5]]),)))
    0.2
    """
    worst = 0.0
    for mine, theirs in zip(found, reference, strict=True):
        if mine.shape != theirs.shape:
            raise ValueError(f"shapes differ: {mine.shape} and {theirs.shape}")
        axes = tuple(range(1, theirs.ndim))
        scale = np.max(np.abs(theirs), axis=axes)
        gap = np.max(np.abs(mine.astype(np.float64) - theirs), axis=axes)
        relative = gap / np.where(scale > 0, scale, 1.0)
        if not np.isfinite(relative).all():
            return math.nan
        worst = max(worst, float(relative.max()))
    return worst


def compare(
    columns: Sequence[Column] | None = None,
    *,
    quantities: Sequence[Quantity] = QUANTITIES,
    seed: int = 0,
    neurons: int = 12,
    circuits: int = 8,
    on_step: Callable[[str, str], Any] | None = None,
) -> Agreement:
    """Compute every quantity in every library and compare with numpy float64.

    Parameters
    ----------
    columns : sequence of Column, optional
        All that are installed by default; numpy float64 is added if missing.
    quantities : sequence of Quantity
    seed, neurons, circuits : int
        Of the random circuits.
    on_step : callable, optional
        Called with the names of the column and the quantity before each.

    Returns
    -------
    Agreement

    Examples
    --------
    >>> from organics_agree import compact, installed
    >>> columns = [column for column in installed() if column.library in ("numpy", "strict")]
    >>> compare(columns, quantities=compact()[:1]).ok
    True
    """
    chosen = tuple(installed() if columns is None else columns)
    if not any(column.reference for column in chosen):
        chosen = (*numpy_columns(), *chosen)
    chosen = tuple(sorted(chosen, key=lambda column: not column.reference))
    problem = Problem(seed, neurons, circuits)
    reference: dict[str, Numbers] = {}
    cells: dict[tuple[str, str], Cell] = {}
    wall: dict[str, float] = {}
    for column in chosen:
        began = time.perf_counter()
        with column.context():
            for quantity in quantities:
                if on_step is not None:
                    on_step(column.key, quantity.name)
                found = quantity.compute(problem, column)
                if found is None:
                    continue
                if column.reference:
                    reference[quantity.name] = found
                    continue
                _check_dtype(found, column, quantity)
                bound = BOUND64 if column.dtype == "float64" else quantity.bound32
                cells[quantity.name, column.key] = Cell(difference(found, reference[quantity.name]), bound)
        wall[column.key] = time.perf_counter() - began
    return Agreement(chosen, tuple(quantities), cells, wall)


def _check_dtype(found: Numbers, column: Column, quantity: Quantity) -> None:
    """A float64 column computed in float32, or the other way round, would compare something else."""
    wrong = [array.dtype for array in found if array.dtype.name != column.dtype]
    if wrong and quantity.compute is not directional:  # that one is collected in float64
        raise TypeError(f"{column.key} computed {quantity.name} in {wrong[0]}")


def torch_against_jax(seed: int = 0, neurons: int = 12, circuits: int = 8) -> Cell | None:
    """Difference of the full reverse-mode gradients of torch and jax in float64.

    Parameters
    ----------
    seed, neurons, circuits : int
        Of the random circuits.

    Returns
    -------
    Cell or None
        None if one of the two is missing.

    Examples
    --------
    >>> cell = torch_against_jax()
    >>> cell is None or cell.ok  # None: one of them is not installed
    True
    """
    columns = {column.key: column for column in installed()}
    pair = [columns.get("torch float64"), columns.get("jax float64")]
    if None in pair:
        return None
    problem = Problem(seed, neurons, circuits)
    found = []
    for column in pair:
        assert column is not None
        with column.context():
            found.append(every_gradient(problem, column))
    return Cell(difference(found[1], found[0]), BOUND64)  # type: ignore[arg-type]
