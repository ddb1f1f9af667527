"""Looking into a model while it trains."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from organics_core import checks
from organics_core.cell import CellParameters, CellState, cell_jacobian_abscissa

from .cell import ORGaNICsCell
from .layer import ORGaNICs

_logger = logging.getLogger("organics_torch")


class CellReport(NamedTuple):
    """What :func:`inspect` finds out about one cell.

    Attributes
    ----------
    name : str
        Of the cell within the model, as in ``named_modules``.
    spectral_abscissa : float
        Largest real part of the eigenvalues of the Jacobian of the (y, a)
        circuit along the trajectories, the gains frozen, in units of 1/step;
        negative where all of it is locally stable. NaN where a state is not finite, and where there are no sequences.
    spectral_radius : float
        Largest absolute eigenvalue of W_r.
    gradient_norm : float
        Norm of the gradient over the cell's parameters; NaN before a backward pass.
    """

    name: str
    spectral_abscissa: float
    spectral_radius: float
    gradient_norm: float


def inspect(model: nn.Module, x: Tensor, *, points: int = 4) -> tuple[CellReport, ...]:
    """The state of every ORGaNICs cell of a model.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(x)``.
    x : tensor
        A few sequences.
    points : int
        Steps looked at along every trajectory, equally spaced, the last one among them.

    Returns
    -------
    tuple of CellReport
        One per cell, empty for a model without ORGaNICs layers.

    Raises
    ------
    TypeError, ValueError
        Where ``points`` is no positive integer.

    Examples
    --------
    >>> import torch
    >>> layer = ORGaNICs(3, 8, seed=0)
    >>> (report,) = inspect(layer, torch.ones(20, 2, 3))
    >>> report.spectral_abscissa < 0, round(report.spectral_radius, 6)  # an orthogonal W_r
    (True, 1.0)
    """
    points = checks.positive_integer("points", points)
    layers = [part for part in model.modules() if isinstance(part, ORGaNICs)]
    inside = {cell for layer in layers for cell in layer.modules() if isinstance(cell, ORGaNICsCell)}
    cells = {name: part for name, part in model.named_modules() if part in inside}
    found: dict[str, float] = {}

    def record(cell: ORGaNICsCell, arguments: tuple[Any, ...], named: dict[str, Any], _: Any) -> None:
        name = next(name for name, part in cells.items() if part is cell)
        for state in _states(cell, points, *arguments, **named):
            found[name] = float(np.maximum(found.get(name, -math.inf), _abscissa(cell, state)))  # NaN where one is

    handles = [cell.register_forward_hook(record, with_kwargs=True) for cell in cells.values()]
    training = [part for part in model.modules() if part.training]
    try:
        model.eval()
        with torch.no_grad():
            if cells:
                model(x)
    finally:
        for handle in handles:
            handle.remove()
        for part in training:
            part.training = True
    return tuple(CellReport(name, value, _radius(cells[name]), _norm(cells[name])) for name, value in found.items())


def measure_abscissa(model: nn.Module, x: Tensor, *, points: int = 4) -> float:
    """Largest real part of the eigenvalues of the Jacobian, over all ORGaNICs layers and sequences of ``x``.

    Parameters
    ----------
    model, x, points
        As for :func:`inspect`.

    Returns
    -------
    float
        In units of 1/step, negative where all of it is locally stable; NaN for
        a model without ORGaNICs layers, and where that of a layer is NaN.

    Examples
    --------
    >>> import torch
    >>> measure_abscissa(ORGaNICs(3, 8, seed=0), torch.ones(20, 2, 3)) < 0
    True
    """
    found = [report.spectral_abscissa for report in inspect(model, x, points=points)]
    return float(np.max(found)) if found else math.nan


class Monitor:
    """A callback that inspects a model every so many calls, keeps what it finds, and logs it.

    Parameters
    ----------
    model, x, points
        As for :func:`inspect`.
    every : int
        Of how many calls one is acted upon, beginning with the first.
    log : callable, optional
        Takes a line of text; the logger ``organics_torch`` at level INFO by default.

    Attributes
    ----------
    history : list of (int, tuple of CellReport)
        The number of the call, counted from 1, and what was found.

    Examples
    --------
    As ``fit(..., on_epoch=Monitor(model, x))``; in a loop of one's own, after ``backward()``:

    >>> layer = ORGaNICs(2, 4)
    >>> monitor = Monitor(layer, torch.zeros(5, 3, 2))
    >>> monitor()
    >>> [report.name for _, reports in monitor.history for report in reports]
    ['cells.0']
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        *,
        every: int = 1,
        points: int = 4,
        log: Callable[[str], Any] | None = None,
    ) -> None:
        self.model, self.x = model, x
        self.every = checks.positive_integer("every", every)
        self.points = checks.positive_integer("points", points)
        self.log = _logger.info if log is None else log
        self.history: list[tuple[int, tuple[CellReport, ...]]] = []
        self._calls = 0

    def __call__(self, record: Any = None) -> None:
        """Inspect, if it is time to; ``record`` is not looked at."""
        self._calls += 1
        if (self._calls - 1) % self.every:
            return
        reports = inspect(self.model, self.x, points=self.points)
        self.history.append((self._calls, reports))
        for report in reports:
            self.log(
                f"{self._calls}: {report.name}: largest Re eigenvalue {report.spectral_abscissa:.4g} per step, "
                f"spectral radius of W_r {report.spectral_radius:.4g}, gradient norm {report.gradient_norm:.4g}"
            )


def _states(cell: ORGaNICsCell, points: int, xs: Tensor, state: CellState, **rest: Any) -> Iterator[CellState]:
    """The states (..., n) of a cell, which a layer takes through sequences (T, N, k), at some of the steps."""
    edges = sorted({round(len(xs) * part / points) for part in range(points + 1)})
    for begin, end in itertools.pairwise(edges):
        _, state = cell.forward(xs[begin:end], state, **rest)
        yield state


def _abscissa(cell: ORGaNICsCell, state: CellState) -> float:
    fields = CellParameters(*(None if p is None else p.detach().double() for p in cell.fields()))
    state = CellState(*(part.double() for part in state))
    drive = state.y.new_zeros(*state.y.shape[:-1], fields.w_zx.shape[-1])  # the Jacobian does not depend on it
    found = cell_jacobian_abscissa(fields, state, drive, max_rates=cell.max_rates, variant=cell.variant)
    return float(found.max()) if found.numel() else math.nan


def _radius(cell: ORGaNICsCell) -> float:
    return 1.0 if cell.w_r is None else float(torch.linalg.eigvals(cell.w_r.detach().double()).abs().max())


def _norm(cell: ORGaNICsCell) -> float:
    gradients = [p.grad for p in cell.parameters() if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients)) if gradients else math.nan
