"""Whether ``implementation="parallel"`` converges for a layer and its inputs, and whether it pays."""

from __future__ import annotations

import time
from typing import Any

import equinox as eqx
import jax

from organics_core import checks
from organics_core.cell import CellState
from organics_core.parallel import (
    ParallelAdvice,
    ParallelReport,
    advise,
    cell_lyapunov_exponent,
    parallel_cell_sequence,
)

from .recurrent import ORGaNICs, ORGaNICsCell
from .sequence import sequence

Array = Any


def parallel_report(layer: ORGaNICs, inputs: Array, hx: CellState | None = None) -> tuple[ParallelReport, ...]:
    """How the iterations of ``implementation="parallel"`` go for a layer, whatever its own implementation.

    Parameters
    ----------
    layer : ORGaNICs
    inputs, hx
        As the layer takes them.

    Returns
    -------
    tuple of ParallelReport
        Of every cell of the layer. Where one has not converged, it computes step after step. None where there
        are no sequences.

    Raises
    ------
    TypeError, ValueError
        Where ``layer`` is none or has two directions, or as calling it does.

    Examples
    --------
    >>> layer = ORGaNICs(1, 16, key=jax.random.key(0))
    >>> [report.converged for report in parallel_report(layer, jax.numpy.ones((100, 3, 1)))]
    [True]
    """
    return tuple(report for report, _ in _of_every_cell(layer, inputs, hx, None))


def parallel_advice(
    layer: ORGaNICs, inputs: Array, hx: CellState | None = None, *, steps: int = 1000
) -> ParallelAdvice:
    """Whether ``implementation="parallel"`` pays for a layer, inputs of this length and batch, and this device.

    It is found out, not guessed: one compiled pass in parallel and one in sequence (by ``"auto"``) are timed.

    Parameters
    ----------
    layer, inputs, hx
        As for :func:`parallel_report`. What is found holds for inputs like these.
    steps : int
        The Lyapunov exponent is that of the first so many steps, of the worst cell and sequence.

    Returns
    -------
    ParallelAdvice

    Raises
    ------
    TypeError, ValueError
        As :func:`parallel_report`, and for ``steps`` that are no positive integer.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from organics_jax import ORGaNICs
    >>> advice = parallel_advice(ORGaNICs(3, 8, key=jax.random.key(0)), jnp.ones((50, 1, 3)))
    >>> advice.exponent < 0  # trajectories come together, so the iterations converge
    True
    """
    steps = checks.positive_integer("steps", steps)
    found = _of_every_cell(layer, inputs, hx, steps)
    xs, starts = layer.time_first(inputs, hx)
    seconds = {}
    for implementation in ("parallel", "auto"):
        jax.block_until_ready(_run(layer.cells, xs, starts, implementation))
        begin = time.perf_counter()
        jax.block_until_ready(_run(layer.cells, xs, starts, implementation))
        seconds[implementation] = time.perf_counter() - begin
    exponents, reports = [exponent for _, exponent in found], [report for report, _ in found]
    return advise(exponents, reports, seconds["parallel"], seconds["auto"])


def _of_every_cell(
    layer: ORGaNICs, inputs: Array, hx: CellState | None, steps: int | None
) -> list[tuple[ParallelReport, float]]:
    """Report and, over so many steps, Lyapunov exponent."""
    if not isinstance(layer, ORGaNICs):
        raise TypeError(f"layer must be an ORGaNICs layer, got {checks.describe(layer)}")
    if layer.bidirectional:
        raise ValueError("layer must have one direction: ask about its cells as layers of their own")
    found: list[tuple[ParallelReport, float]] = []
    xs, starts = layer.time_first(inputs, hx)
    if not xs.size:
        return found
    for cell, start in zip(layer.cells, starts, strict=True):
        options: dict[str, Any] = {"max_rates": cell.max_rates, "variant": cell.variant}
        fields = cell.effective()
        *_, report = parallel_cell_sequence(fields, start, xs, **options)
        growth = float("nan")
        if steps is not None:
            growth = float(cell_lyapunov_exponent(fields, start, xs[:steps], **options).max())
        found.append((report.on_host(), growth))
        _, xs = sequence(fields, start, xs, **options)
    return found


@eqx.filter_jit
def _run(cells: tuple[ORGaNICsCell, ...], xs: Array, starts: list[CellState], implementation: str) -> Array:
    for cell, start in zip(cells, starts, strict=True):
        options: dict[str, Any] = {"max_rates": cell.max_rates, "variant": cell.variant}
        _, xs = sequence(cell.effective(), start, xs, implementation=implementation, **options)
    return xs
