"""A layer step by step, for inference: what is the same at every step is prepared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from organics_core import checks
from organics_core.cell import CellParameters, CellState, Rates, step

from . import fused
from .cell import check_state, check_tensor
from .implementation import Setup, as_autocast_gives, intercepted, is_ordinary, not_compiled, without_autocast
from .sequence import choose_implementation

if TYPE_CHECKING:
    from .layer import ORGaNICs


class Stream:
    """A layer step by step, for inference; made by :meth:`ORGaNICs.stream`.

    It is prepared once from the parameters that the layer has at that moment, and what is done to them later does not
    reach it: make another one then. It gives what the layer gives in ``eval()`` (no dropout), to rounding, and no
    gradients. Hooks of the cells are called when it is made and not at its steps. One thread may call it at a time.

    Parameters
    ----------
    layer, batch_size, hx
        As for :meth:`ORGaNICs.stream`, where ``layer`` is that layer.

    Attributes
    ----------
    implementation : {"fused", "reference"}
        Native code, where the layer's ``implementation`` is "auto" or "fused" and it can be had (the CPU, float32 and
        float64); otherwise the core's step.

    Examples
    --------
    >>> import torch, organics_torch
    >>> layer = organics_torch.ORGaNICs(3, 8, num_layers=2)
    >>> stream = layer.stream()
    >>> for _ in range(10):
    ...     y = stream(torch.ones(1, 3))
    >>> y.shape, stream.state.y.shape
    (torch.Size([1, 8]), torch.Size([2, 1, 8]))
    >>> stream.reset()
    """

    def __init__(self, layer: ORGaNICs, batch_size: int | None = 1, hx: CellState | None = None) -> None:
        if layer.bidirectional:
            raise ValueError(
                "a stream goes from step to step, and the layer is bidirectional: its second direction begins at the "
                "end of the sequence"
            )
        rows = () if batch_size is None else (checks.positive_integer("batch_size", batch_size),)
        self._shape = (*rows, layer.input_size)
        self.implementation = "reference"
        self._cells: list[tuple[Tensor, Callable[[], None], Tensor, Tensor | None]] = []
        with torch.inference_mode(False), torch.no_grad(), without_autocast(layer.cells[0].start_y):
            start = [torch.stack(list(cell.start_state(*(rows or (1,))))) for cell in layer.cells]  # (4, N, n) each
            self._start = torch.stack(start, 1)
            self._check("the start state", self._start)
            self._states = [part.clone() for part in start]
            for index, cell in enumerate(layer.cells):
                xs = start[0].new_zeros(1, start[0].shape[1], cell.input_size)
                # by a call of the cell, as through a sequence: so hooks that make its parameters do their work
                cell(xs, None, through=lambda *given, index=index: self._prepare(layer, index, *given))
        self.reset(hx)

    def _prepare(
        self,
        layer: ORGaNICs,
        index: int,
        fields: CellParameters,
        w: Tensor,
        rates: Rates,
        _: None,
        xs: Tensor,
        variant: str,
    ) -> tuple[None, CellState]:
        state, x = self._states[index], xs[0]
        own = [None if value is None else value.detach().clone() for value in (*fields, w, *rates)]
        fields, w, rates = CellParameters(*own[:-5]), own[-5], Rates(*own[-4:])
        parts = CellState(*state.unbind(0))

        def advance() -> None:
            with without_autocast(x):
                for part, value in zip(parts, step(xp, fields, w, rates, parts, x, variant), strict=True):
                    part.copy_(value)

        if choose_implementation(layer.implementation, fields, xs, None, parts) == "fused":
            self.implementation = "fused"
            gains = (fields.w_bx0, fields.w_by0, fields.w_ba0, fields.w_bx1, fields.w_by1, fields.w_ba1)
            setup = Setup(variant == "main", False, False, 0, torch.get_num_threads())
            advance = fused.Step(setup, x, state, fields.sigma, (fields.w_zx, fields.w_r, w, *gains, *rates))
        projection = None
        if layer.proj_size:  # W' as I W', by a call for the same reason
            projection = layer.projections[index](torch.eye(state.shape[-1], dtype=x.dtype, device=x.device))
        y = state[0] if len(self._shape) == 2 else state[0, 0]
        self._cells.append((x[:, : layer.cells[index].input_size], advance, y, projection))
        return None, parts

    @property
    def state(self) -> CellState:
        """A copy of the state: tensors (num_layers, N, n), or (num_layers, n) unbatched, which the layer takes too."""
        parts = torch.stack(self._states, 1)
        return CellState(*(parts if len(self._shape) == 2 else parts.squeeze(2)).unbind(0))

    def reset(self, hx: CellState | None = None) -> None:
        """Go to a state, of the shapes of :attr:`state`, or to the start state that the layer had.

        Parameters
        ----------
        hx : CellState, optional

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As for a step's ``x``.
        """
        start = self._start
        if hx is not None:
            shape = (start.shape[1], *self._shape[:-1], start.shape[-1])
            parts = check_state(hx, shape, start, "hx")
            for name, part in zip(CellState._fields, parts, strict=True):
                self._check(f"hx.{name}", part)
            start = torch.stack(list(parts)).view(start.shape)
        for own, part in zip(self._states, start.unbind(1), strict=True):
            own.copy_(part)

    @not_compiled
    def __call__(self, x: Tensor) -> Tensor:
        """One step.

        Parameters
        ----------
        x : tensor (N, k), or (k,) with ``batch_size=None``

        Returns
        -------
        tensor (N, n) or (n,)
            y of the last layer, projected where the layer has projections; in the dtype that the layer would give.

        Raises
        ------
        TypeError, ValueError
            Where dtype, device or shape are wrong.
        RuntimeError
            Where a gradient is asked for, or ``x`` is more than its memory (traces, transforms of ``torch.func``,
            subclasses): the layer itself, called with one step and a state, takes these.
        """
        check_tensor("x", x, self._start)
        self._check("x", x)
        if x.shape != self._shape:
            raise ValueError(f"x must have shape {self._shape}, got shape {tuple(x.shape)}")
        for into, advance, y, projection in self._cells:
            into.copy_(x)
            advance()
            x = y
            if projection is not None:
                with without_autocast(y):
                    x = y @ projection
        return as_autocast_gives(x.clone())

    @staticmethod
    def _check(name: str, value: Tensor) -> None:
        """RuntimeError where the memory of ``value`` is not all that is wanted of it."""
        if value.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"a stream gives no gradients, and {name} requires one: call it within torch.no_grad(), or for "
                "gradients the layer with one step and a state"
            )
        reason = intercepted()
        if torch.jit.is_tracing():
            reason = "a graph is being recorded"
        elif reason is None and not is_ordinary(value):
            reason = f"{name} is no ordinary tensor but {type(value).__name__} on {value.device}"
        if reason is not None:
            raise RuntimeError(
                f"a stream computes at once and in memory of its own, and here {reason}: call the layer with one step "
                "and a state"
            )

    def __reduce__(self) -> Any:
        raise TypeError("a stream cannot be copied or pickled: make another by layer.stream(hx=stream.state)")
