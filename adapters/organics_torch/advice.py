"""Whether ``implementation="parallel"`` converges for a model and its inputs, and whether it pays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from organics_core import checks
from organics_core.cell import CellState
from organics_core.parallel import ParallelAdvice, ParallelReport, advise, growth_rate

from . import parallel
from .layer import ORGaNICs

_ONE = threading.RLock()
"""Held while layers have another implementation than their own."""


def parallel_report(model: nn.Module, x: Tensor | PackedSequence) -> tuple[ParallelReport, ...]:
    """How the iterations of ``implementation="parallel"`` go for a model, whatever its layers' own implementation.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(x)``, in evaluation mode and without gradients. No other thread may run it meanwhile;
        reports and advice themselves wait for each other.
    x : tensor or PackedSequence

    Returns
    -------
    tuple of ParallelReport
        One per recurrent layer and sequence of constant batch size, in the order in which they run. Where one has
        not converged, the layer computes step after step. None where there are no sequences.

    Raises
    ------
    TypeError, ValueError
        Where the model has no ORGaNICs layers, or does not take ``x``.

    Examples
    --------
    >>> layer = ORGaNICs(1, 16, seed=0)
    >>> [report.converged for report in parallel_report(layer, torch.ones(100, 3, 1))]
    [True]
    """
    reports: list[ParallelReport] = []
    with _as(model, "parallel"), _observed(lambda found, *_: reports.append(found.report.on_host())):
        model(x)
    return tuple(reports)


def parallel_advice(model: nn.Module, x: Tensor | PackedSequence, *, steps: int = 1000) -> ParallelAdvice:
    """Whether ``implementation="parallel"`` pays for a model, inputs of this length and batch, and this device.

    It is found out, not guessed: one pass in parallel and one in sequence (by ``"auto"``) are timed,
    after one each that is not.

    Parameters
    ----------
    model, x
        As for :func:`parallel_report`. What is found holds for inputs like ``x``.
    steps : int
        The Lyapunov exponent is that of the first so many steps of the first four sequences, of the worst layer.

    Returns
    -------
    ParallelAdvice

    Raises
    ------
    TypeError, ValueError
        As :func:`parallel_report`, and for ``steps`` that are no positive integer.

    Examples
    --------
    >>> import torch
    >>> from organics_torch import ORGaNICs
    >>> advice = parallel_advice(ORGaNICs(3, 8, seed=0), torch.ones(50, 1, 3))
    >>> advice.exponent < 0  # trajectories come together, so the iterations converge
    True
    """
    steps = checks.positive_integer("steps", steps)
    exponents: list[float] = []

    def measure(_: Any, xp: Any, fields: Any, w: Any, rates: Any, start: Any, xs: Tensor, variant: str) -> None:
        few = CellState(*(part[:4] for part in start))
        exponents.append(float(growth_rate(xp, fields, w, rates, few, xs[:steps, :4], variant).max()))

    reports: list[ParallelReport] = []
    with (
        _as(model, "parallel"),
        _observed(measure),
        _observed(lambda found, *_: reports.append(found.report.on_host())),
    ):
        model(x)
    seconds = {}
    for implementation in ("parallel", "auto"):
        with _as(model, implementation):
            if implementation == "auto":
                model(x)
            seconds[implementation] = _seconds(lambda: model(x))
    return advise(exponents, reports, seconds["parallel"], seconds["auto"])


def _seconds(function: Callable[[], Any]) -> float:
    def wait() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    begin = wait()
    function()
    return wait() - begin


@contextmanager
def _observed(observe: Callable[..., Any]) -> Iterator[None]:
    thread = threading.get_ident()

    def here(*arguments: Any) -> None:  # what other threads compute is another model's
        if threading.get_ident() == thread:
            observe(*arguments)

    parallel.observers.append(here)
    try:
        yield
    finally:
        parallel.observers.remove(here)


@contextmanager
def _as(model: nn.Module, implementation: str) -> Iterator[None]:
    """All ORGaNICs layers with one implementation, in evaluation mode, without gradients."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {checks.describe(model)}")
    with _ONE:
        layers = {part: part.implementation for part in model.modules() if isinstance(part, ORGaNICs)}
        if not layers:
            raise ValueError("model has no ORGaNICs layers")
        training = [part for part in model.modules() if part.training]
        try:
            for layer in layers:
                layer.implementation = implementation
            model.eval()
            with torch.no_grad():
                yield
        finally:
            for layer, before in layers.items():
                layer.implementation = before
            for part in training:
                part.training = True
