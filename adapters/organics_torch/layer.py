"""The sequence layer, which follows ``nn.LSTM``'s calling convention, and a classifier."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from organics_core import checks
from organics_core.cell import CellState, MaxRates

from .cell import ORGaNICsCell, check_state, check_tensor, random_source
from .sequence import IMPLEMENTATIONS, run_sequence


class ORGaNICs(nn.Module):
    """Layers of ORGaNICs over a sequence; calls like ``nn.LSTM``.

    Parameters
    ----------
    input_size, hidden_size : int
        Number k of inputs and n of principal neurons of every layer.
    num_layers : int
        Layers stacked; each sees the membrane potentials y of the one below.
    batch_first : bool
        Input and output (N, T, ...) instead of (T, N, ...). The states are
        (num_layers, N, n) either way.
    dropout : float
        Probability of dropping an output between layers while training.
    implementation : {"auto", "fused", "cuda", "triton", "function", "parallel", "reference"}
        How a sequence is computed; all give the same numbers. ``"auto"`` takes
        the fastest that the tensors and the machine allow, ``"fused"`` is
        native code compiled on first use (CPU), ``"cuda"`` and ``"triton"``
        kernels for float32 on CUDA, ``"function"`` plain torch with
        the derivative by hand, ``"parallel"`` all steps at once by iterations, where
        they converge (:func:`parallel_advice` says whether it pays, and "auto" never
        takes it), ``"reference"`` the core's step under autograd.
    checkpoint_every : int, optional
        Keep the states of every so many steps only, and compute the others
        again in the backward pass: little memory for about a third more
        arithmetic. ``"parallel"`` and ``"reference"`` do not use it.
    recurrent, variant, initialization, rate_spread, max_rates, learn_rates, seed, generator, device, dtype
        As for :class:`ORGaNICsCell`.

    Notes
    -----
    The whole layer computes in the dtype of its parameters, also under
    autocast. The environment variable ``ORGANICS_TORCH_FUSED=0`` keeps "auto"
    from compiling native code. Only ``"reference"`` takes transforms of
    ``torch.func``, forward derivatives, float16 and bfloat16, and tensors that
    are more than their memory (subclasses, DTensor, fake and meta tensors);
    ``"auto"`` takes it for them. Second derivatives, and the derivatives of
    many cotangents at once, go by it whatever the implementation. The layer
    calls its cells, once per sequence, so that hooks on them fire and FSDP2
    may shard cell by cell. A ``state_dict`` carries the settings that its
    numbers depend on, and one of other settings is refused. A layer with
    ``recurrent="spectral"`` is saved by its ``state_dict`` or by :func:`save`:
    torch cannot pickle parametrized modules.

    Attributes
    ----------
    cells : ModuleList of ORGaNICsCell
        One per layer.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        implementation: str = "auto",
        checkpoint_every: int | None = None,
        recurrent: str = "orthogonal",
        variant: str = "rectified_recurrence",
        initialization: str = "paper",
        rate_spread: float = 1.0,
        max_rates: MaxRates | tuple[float, float, float] = MaxRates(),
        learn_rates: bool = True,
        seed: int | np.random.Generator | None = None,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_layers = checks.positive_integer("num_layers", num_layers)
        if not (checks.is_number(dropout) and 0 <= dropout <= 1):
            raise ValueError(f"dropout must be a number in [0, 1], got {dropout!r}")
        checks.one_of("implementation", implementation, IMPLEMENTATIONS)
        if checkpoint_every is not None:
            checkpoint_every = checks.positive_integer("checkpoint_every", checkpoint_every)
        rng = random_source(seed, generator)
        self.cells = nn.ModuleList(
            ORGaNICsCell(
                input_size if layer == 0 else hidden_size,
                hidden_size,
                recurrent=recurrent,
                variant=variant,
                initialization=initialization,
                rate_spread=rate_spread,
                max_rates=max_rates,
                learn_rates=learn_rates,
                seed=rng,
                device=device,
                dtype=dtype,
            )
            for layer in range(self.num_layers)
        )
        self.input_size = self.cells[0].input_size
        self.hidden_size = self.cells[0].hidden_size
        self.batch_first = bool(batch_first)
        self.dropout = float(dropout)
        self.implementation = implementation
        self.checkpoint_every = checkpoint_every

    def start_state(self, *batch: int) -> CellState:
        """The start state of all layers; tensors ``(num_layers, *batch, n)``."""
        states = [cell.start_state(*batch) for cell in self.cells]
        return CellState(*(torch.stack(parts) for parts in zip(*states, strict=True)))

    def forward(
        self, input: Tensor | PackedSequence, hx: CellState | None = None, *, outputs: bool = True
    ) -> tuple[Tensor | PackedSequence | None, CellState]:
        """Run the sequence.

        Parameters
        ----------
        input : tensor (T, N, k), (N, T, k) with ``batch_first``, (T, k), or PackedSequence
        hx : CellState of tensors (num_layers, N, n), or (num_layers, n) for input (T, k); optional
            The start state by default.
        outputs : bool
            Where False, ``output`` is None, which saves its memory.

        Returns
        -------
        output : tensor (T, N, n), (N, T, n) or (T, n), or PackedSequence
            Membrane potentials y of the last layer after every step.
        hn : CellState of tensors (num_layers, N, n) or (num_layers, n)
            The state after the last step, of packed sequences after each one's own last step.

        Raises
        ------
        TypeError, ValueError
            Naming the tensor whose dtype or shape is wrong; ValueError for an empty sequence.
        """
        if isinstance(input, PackedSequence):
            packed, hn = self._forward_packed(input, hx)
            return (packed if outputs else None), hn
        check_tensor("input", input, self.cells[0].w_zx)
        k = self.input_size
        if input.ndim not in (2, 3) or input.shape[-1] != k:
            batched = f"(N, T, {k})" if self.batch_first else f"(T, N, {k})"
            raise ValueError(f"input must have shape {batched}, or (T, {k}) unbatched, got shape {tuple(input.shape)}")
        batched = input.ndim == 3
        xs = input.to(self.cells[0].w_zx.dtype)  # another dtype only comes through under autocast
        if batched and self.batch_first:
            xs = xs.transpose(0, 1)
        if not batched:
            xs = xs.unsqueeze(1)
        if xs.shape[0] == 0:
            raise ValueError("input has no steps: the sequence must have at least one")
        state = self._initial_state(hx, xs.shape[1], batched)
        states = []
        for layer, cell in enumerate(self.cells):
            start = CellState(*(part[layer] for part in state))
            wanted = outputs or layer + 1 < self.num_layers
            xs, last = self._run(cell, self._drop(xs, layer), start, wanted)
            states.append(last)
        hn = CellState(*(torch.stack(parts) for parts in zip(*states, strict=True)))
        if not batched:
            hn = CellState(*(part.squeeze(1) for part in hn))
        if xs is None:
            return None, hn
        if not batched:
            return xs.squeeze(1), hn
        return (xs.transpose(0, 1) if self.batch_first else xs), hn

    def _initial_state(self, hx: CellState | None, batch: int, batched: bool = True) -> CellState:
        if hx is None:
            return self.start_state(batch)
        shape = (self.num_layers, batch, self.hidden_size) if batched else (self.num_layers, self.hidden_size)
        like = self.cells[0].w_zx
        state = CellState(*(part.to(like.dtype) for part in check_state(hx, shape, like, "hx")))
        return state if batched else CellState(*(part.unsqueeze(1) for part in state))

    def _drop(self, xs: Tensor, layer: int) -> Tensor:
        return nn.functional.dropout(xs, self.dropout, self.training) if layer and self.dropout else xs

    def _run(
        self, cell: ORGaNICsCell, xs: Tensor, start: CellState, outputs: bool = True
    ) -> tuple[Tensor | None, CellState]:
        options: dict[str, Any] = {"outputs": outputs, "checkpoint_every": self.checkpoint_every}
        return cell(xs, start, through=partial(run_sequence, implementation=self.implementation, **options))

    def _forward_packed(self, packed: PackedSequence, hx: CellState | None) -> tuple[PackedSequence, CellState]:
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        check_tensor("input.data", data, self.cells[0].w_zx)
        if data.ndim != 2 or data.shape[-1] != self.input_size:
            raise ValueError(
                f"the packed steps must have {self.input_size} inputs, got data of shape {tuple(data.shape)}"
            )
        data = data.to(self.cells[0].w_zx.dtype)
        sizes = batch_sizes.tolist()
        state = self._initial_state(hx, sizes[0])
        if hx is not None and sorted_indices is not None:
            state = CellState(*(part.index_select(1, sorted_indices) for part in state))
        states = []
        for layer, cell in enumerate(self.cells):
            start = CellState(*(part[layer] for part in state))
            data, last = self._run_packed(cell, self._drop(data, layer), sizes, start)
            states.append(last)
        hn = CellState(*(torch.stack(parts) for parts in zip(*states, strict=True)))
        if unsorted_indices is not None:
            hn = CellState(*(part.index_select(1, unsorted_indices) for part in hn))
        return PackedSequence(data, batch_sizes, sorted_indices, unsorted_indices), hn

    def _run_packed(
        self, cell: ORGaNICsCell, data: Tensor, sizes: list[int], state: CellState
    ) -> tuple[Tensor, CellState]:
        """Stretches of constant batch size, one after another; the rows that end leave their state behind."""
        outputs: list[Tensor] = []
        ended: list[CellState] = []
        step = offset = 0
        while step < len(sizes):
            size = sizes[step]
            count = 1
            while step + count < len(sizes) and sizes[step + count] == size:
                count += 1
            if size < state.y.shape[0]:
                ended.append(CellState(*(part[size:] for part in state)))
                state = CellState(*(part[:size] for part in state))
            xs = data[offset : offset + count * size].reshape(count, size, -1)
            ys, state = self._run(cell, xs, state)
            assert ys is not None
            outputs.append(ys.reshape(count * size, -1))
            step, offset = step + count, offset + count * size
        parts = [state, *reversed(ended)]
        return torch.cat(outputs), CellState(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def extra_repr(self) -> str:
        return f"num_layers={self.num_layers}, batch_first={self.batch_first}, implementation={self.implementation!r}"


class ORGaNICsClassifier(nn.Module):
    """ORGaNICs over a sequence, and a linear readout of y at the last step.

    Parameters
    ----------
    input_size, hidden_size, classes : int
    num_layers, implementation, checkpoint_every, recurrent, variant
        As for :class:`ORGaNICs`.
    initialization, rate_spread, max_rates, learn_rates
        As for :class:`ORGaNICs`.
    seed, generator, device, dtype
        As for :class:`ORGaNICs`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        *,
        num_layers: int = 1,
        seed: int | np.random.Generator | None = None,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        classes = checks.positive_integer("classes", classes)
        rng = random_source(seed, generator)
        self.layer = ORGaNICs(
            input_size, hidden_size, num_layers, batch_first=True, seed=rng, device=device, dtype=dtype, **options
        )
        self.readout = nn.Linear(self.layer.hidden_size, classes, device=device, dtype=dtype)
        bound = self.layer.hidden_size**-0.5
        with torch.no_grad():
            for parameter in self.readout.parameters():
                parameter.copy_(torch.as_tensor(rng.uniform(-bound, bound, tuple(parameter.shape))))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of sequences x (N, T, k)."""
        _, hn = self.layer(x, outputs=False)
        return self.readout(hn.y[-1])
