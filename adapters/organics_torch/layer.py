"""The sequence layer, which follows ``nn.LSTM``'s calling convention, and a classifier."""

from __future__ import annotations

import dis
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree  # noqa: PLC2701 - torch has no public name for what is needed of it

from organics_core import checks
from organics_core.cell import CellState, MaxRates

from .cell import ORGaNICsCell, check_state, check_tensor, fill, random_source
from .implementation import as_autocast_gives, without_autocast
from .sequence import IMPLEMENTATIONS, run_sequence
from .stream import Stream

_UNPACK = bytes([dis.opmap["UNPACK_SEQUENCE"], 2])


class LayerState(CellState):
    """The state that a layer gives: a :class:`CellState` that answers those who unpack it as an LSTM's."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        if not torch.compiler.is_compiling():
            caller = sys._getframe(1)  # noqa: SLF001 - who unpacks this is seen nowhere else
            at, code = caller.f_lasti, caller.f_code.co_code
            if code[at : at + 2] == _UNPACK and self._is_unpacked_by(caller):
                raise ValueError(
                    "ORGaNICs give (output, state), where state is a CellState(y, a, b0, b1) and not an LSTM's (h, c): "
                    "write `output, state = layer(x)`, read state.y in place of h, and pass state on as a whole"
                )
        return super().__iter__()

    def _is_unpacked_by(self, caller: FrameType) -> bool:
        """Whether it is this state that falls in two there, and nothing that merely reads it, as map(tuple, ...)."""
        before = None
        for instruction in dis.get_instructions(caller.f_code):
            if instruction.offset >= caller.f_lasti:
                break
            before = instruction
        if before is None:
            return False
        if before.opname.startswith(("STORE_", "LOAD_ATTR", "BINARY_")):  # o, (h, c) = ...; self.hn; layer(x)[1]
            return True
        name = before.argval[-1] if isinstance(before.argval, tuple) else before.argval
        variables = {**caller.f_globals, **caller.f_locals}
        return before.opname.startswith("LOAD_") and isinstance(name, str) and variables.get(name) is self


torch.serialization.add_safe_globals([CellState, LayerState])  # torch.load(..., weights_only=True) takes states
for _kind in (CellState, LayerState):  # so that torch.export.save knows them
    _pytree._register_namedtuple(_kind, serialized_type_name=f"organics_torch.{_kind.__name__}")  # noqa: SLF001


class ORGaNICs(nn.Module):
    """Layers of ORGaNICs over a sequence; calls like ``nn.LSTM``.

    Parameters
    ----------
    input_size, hidden_size : int
        Number k of inputs and n of principal neurons of every layer.
    num_layers : int
        Layers stacked; each sees the membrane potentials y of the one below.
    bias : bool
        Whether the cells have biases; see :class:`ORGaNICsCell`. The paper's have none.
    batch_first : bool
        Input and output (N, T, ...) instead of (T, N, ...). The states are
        (num_layers, N, n) either way.
    dropout : float
        Probability of dropping an output between layers while training.
    bidirectional : bool
        Whether every layer has a second cell, which takes the sequence from its end. Outputs are those of both,
        (..., 2 n), and the states (2 num_layers, N, n), of the cells of a layer one after another, as in ``nn.LSTM``.
    proj_size : int
        Where not 0, the output of every cell is multiplied by a learned matrix (proj_size, n), so that the layer
        above and the caller see proj_size numbers of it. The recurrence keeps y itself, unlike ``nn.LSTM``'s.
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
    recurrent, variant, initialization, rate_spread, max_rates, steps, learn_rates, seed, generator, device, dtype
        As for :class:`ORGaNICsCell`.

    Notes
    -----
    The whole layer computes in the dtype of its parameters, also under
    autocast, which decides on the dtype of the output alone. The environment
    variable ``ORGANICS_TORCH_FUSED=0`` keeps "auto" from compiling native code.
    Only ``"reference"`` takes transforms of ``torch.func``, forward derivatives,
    float16 and bfloat16, and tensors that are more than their memory (subclasses,
    DTensor, fake and meta tensors); ``"auto"`` takes it for them. Second
    derivatives, and the derivatives of many cotangents at once, go by it whatever
    the implementation. The layer calls its cells, once per sequence, so that
    hooks on them fire and FSDP2 may shard cell by cell. A ``state_dict`` carries
    the settings that its numbers depend on, and one of other settings is refused.

    Attributes
    ----------
    cells : ModuleList of ORGaNICsCell
        One per layer.
    reverse_cells : ModuleList of ORGaNICsCell
        One per layer, where ``bidirectional``.
    projections : ModuleList of Linear
        One per cell in the order of the states, where ``proj_size`` is not 0.

    Examples
    --------
    >>> import torch
    >>> layer = ORGaNICs(3, 8, seed=0)
    >>> output, state = layer(torch.ones(20, 2, 3))
    >>> output.shape, state.y.shape
    (torch.Size([20, 2, 8]), torch.Size([1, 2, 8]))
    >>> again, _ = layer(torch.ones(5, 2, 3), state)  # goes on where it ended
    """

    bias, bidirectional, proj_size = False, False, 0  # of layers that an older version pickled

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = False,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        implementation: str = "auto",
        checkpoint_every: int | None = None,
        recurrent: str = "orthogonal",
        variant: str = "rectified_recurrence",
        initialization: str = "paper",
        rate_spread: float = 1.0,
        max_rates: MaxRates | tuple[float, float, float] | str = MaxRates(),
        steps: int | None = None,
        learn_rates: bool = True,
        seed: int | np.random.Generator | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_layers = checks.positive_integer("num_layers", num_layers)
        self.batch_first = checks.flag("batch_first", batch_first)
        self.bidirectional = checks.flag("bidirectional", bidirectional)
        if not (checks.is_number(dropout) and 0 <= dropout <= 1):
            raise ValueError(f"dropout must be a number in [0, 1], got {dropout!r}")
        if dropout and self.num_layers == 1:
            warnings.warn(
                f"dropout {dropout} does nothing: it is between layers, and num_layers is 1", UserWarning, stacklevel=2
            )
        self.dropout = float(dropout)
        self.proj_size = checks.positive_integer("proj_size", proj_size) if proj_size else 0
        checks.one_of("implementation", implementation, IMPLEMENTATIONS)
        self.implementation = implementation
        if checkpoint_every is not None:
            checkpoint_every = checks.positive_integer("checkpoint_every", checkpoint_every)
        self.checkpoint_every = checkpoint_every
        rng = random_source(seed, generator)
        directions = 1 + self.bidirectional

        def cells() -> nn.ModuleList:
            return nn.ModuleList(
                ORGaNICsCell(
                    input_size if layer == 0 else directions * (self.proj_size or hidden_size),
                    hidden_size,
                    bias,
                    recurrent=recurrent,
                    variant=variant,
                    initialization=initialization,
                    rate_spread=rate_spread,
                    max_rates=max_rates,
                    steps=steps,
                    learn_rates=learn_rates,
                    seed=rng,
                    device=device,
                    dtype=dtype,
                )
                for layer in range(self.num_layers)
            )

        self.cells = cells()
        first = self.cells[0]
        self.input_size, self.hidden_size, self.bias = first.input_size, first.hidden_size, first.bias
        if bidirectional:
            self.reverse_cells = cells()
        if self.proj_size:
            self.projections = nn.ModuleList(
                nn.Linear(self.hidden_size, self.proj_size, bias=False, device=device, dtype=dtype)
                for _ in range(directions * self.num_layers)
            )
            self._draw_projections(rng)

    def _draw_projections(self, rng: np.random.Generator) -> None:
        bound = self.hidden_size**-0.5
        for projection in self.projections if self.proj_size else ():
            fill(projection, {"weight": rng.uniform(-bound, bound, projection.weight.shape)})

    def reset_parameters(
        self, seed: int | np.random.Generator | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Draw all parameters and start states anew; ``seed`` and ``generator`` as at construction."""
        rng = random_source(seed, generator)
        for cell in (*self.cells, *(self.reverse_cells if self.bidirectional else ())):
            cell.reset_parameters(rng)
        self._draw_projections(rng)

    def flatten_parameters(self) -> None:
        """Do nothing: for callers of ``nn.LSTM``, whose cuDNN wants its weights in one piece."""

    def _in_order_of_states(self) -> list[ORGaNICsCell]:
        if not self.bidirectional:
            return list(self.cells)
        return [cell for pair in zip(self.cells, self.reverse_cells, strict=True) for cell in pair]

    def start_state(self, *batch: int) -> CellState:
        """The start state of all cells; tensors ``(num_layers, *batch, n)``, twice as many where bidirectional."""
        states = [cell.start_state(*batch) for cell in self._in_order_of_states()]
        return CellState(*(torch.stack(parts) for parts in zip(*states, strict=True)))

    def stream(self, batch_size: int | None = 1, hx: CellState | None = None) -> Stream:
        """This layer step by step, for inference, faster than calls of the layer with one step each.

        Parameters
        ----------
        batch_size : int or None
            Number N of sequences side by side; None for one without a batch axis.
        hx : CellState of tensors (num_layers, N, n), or (num_layers, n) unbatched; optional
            The start state by default.

        Returns
        -------
        Stream
            Prepared from the parameters as they are now: ``y = stream(x)`` is the output after one more step,
            ``stream.state`` the state, ``stream.reset()`` goes back to the start. It gives no gradients.

        Raises
        ------
        TypeError, ValueError
            Naming the argument that is wrong; ValueError where the layer is bidirectional.
        RuntimeError
            Where an implementation was asked for by name and cannot be had.
        """
        return Stream(self, batch_size, hx)

    def forward(
        self, input: Tensor | PackedSequence, hx: CellState | None = None, *, outputs: bool = True
    ) -> tuple[Tensor | PackedSequence | None, CellState]:
        """Run the sequence.

        Parameters
        ----------
        input : tensor (T, N, k), (N, T, k) with ``batch_first``, (T, k), or PackedSequence
        hx : CellState of tensors (num_layers, N, n), or (num_layers, n) for input (T, k); optional
            The start state by default. (2 num_layers, ...) where bidirectional.
        outputs : bool
            Where False, ``output`` is None, which saves its memory.

        Returns
        -------
        output : tensor (T, N, n), (N, T, n) or (T, n), or PackedSequence
            Membrane potentials y of the last layer after every step; projected, and of both directions side by side,
            where there are these. Within autocast it has the dtype that ``nn.LSTM`` would give.
        hn : CellState of tensors as ``hx``
            The state after the last step, of packed sequences after each one's own last step, in the dtype of the
            parameters.

        Raises
        ------
        TypeError, ValueError
            Naming the tensor whose dtype or shape is wrong; ValueError for an empty sequence.
        """
        if isinstance(input, PackedSequence):
            packed, hn = self._forward_packed(input, hx)
            return (packed if outputs else None), hn
        if not isinstance(input, Tensor) and isinstance(input, torch.fx.Proxy):  # a node, as torch's own layers are
            given = (input,) if hx is None else (input, hx)
            where = input.tracer.path_of_module(self)
            return input.tracer.create_proxy("call_module", where, given, {} if outputs else {"outputs": False})
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
        ys, hn = self._through(xs, state, self._run, lambda xs: xs.flip(0), outputs)
        if not batched:
            hn = LayerState(*(part.squeeze(1) for part in hn))
        if ys is None:
            return None, hn
        if not batched:
            return ys.squeeze(1), hn
        return (ys.transpose(0, 1) if self.batch_first else ys), hn

    def _through(
        self,
        xs: Tensor,
        state: CellState,
        run: Callable[[ORGaNICsCell, Tensor, CellState, bool], tuple[Tensor | None, CellState]],
        turned: Callable[[Tensor], Tensor],
        outputs: bool = True,
    ) -> tuple[Tensor | None, LayerState]:
        """Sequences through all cells: ``run`` takes one cell through them, ``turned`` are they from end to start."""
        found: list[Tensor | None] = [xs]
        states: list[CellState] = []
        directions = 1 + self.bidirectional
        for index, cell in enumerate(self._in_order_of_states()):
            layer, back = divmod(index, directions)
            if not back:
                below = self._drop(found[0] if len(found) == 1 else torch.cat(found, -1), layer)
                found = []
            start = CellState(*(part[index] for part in state))
            ys, last = run(cell, turned(below) if back else below, start, outputs or layer + 1 < self.num_layers)
            states.append(last)
            if ys is not None and self.proj_size:
                with without_autocast(ys):
                    ys = self.projections[index](ys)
            found.append(turned(ys) if back and ys is not None else ys)
        hn = LayerState(*(torch.stack(parts) for parts in zip(*states, strict=True)))
        if found[0] is None:
            return None, hn
        return as_autocast_gives(found[0] if len(found) == 1 else torch.cat(found, -1)), hn

    def _initial_state(self, hx: CellState | None, batch: int, batched: bool = True) -> CellState:
        if hx is None:
            return self.start_state(batch)
        cells = self.num_layers * (1 + self.bidirectional)
        shape = (cells, batch, self.hidden_size) if batched else (cells, self.hidden_size)
        like = self.cells[0].w_zx
        state = CellState(*(part.to(like.dtype) for part in check_state(hx, shape, like, "hx")))
        return state if batched else CellState(*(part.unsqueeze(1) for part in state))

    def _drop(self, xs: Tensor, layer: int) -> Tensor:
        return nn.functional.dropout(xs, self.dropout, self.training) if layer and self.dropout else xs

    def _run(self, cell: ORGaNICsCell, xs: Tensor, start: CellState, outputs: bool) -> tuple[Tensor | None, CellState]:
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
        backwards = _turned_indices(batch_sizes).to(data.device) if self.bidirectional else None
        ys, hn = self._through(
            data, state, partial(self._run_packed, sizes), lambda data: data.index_select(0, backwards)
        )
        if unsorted_indices is not None:
            hn = LayerState(*(part.index_select(1, unsorted_indices) for part in hn))
        return PackedSequence(ys, batch_sizes, sorted_indices, unsorted_indices), hn

    def _run_packed(
        self, sizes: list[int], cell: ORGaNICsCell, data: Tensor, state: CellState, _: bool
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
            ys, state = self._run(cell, xs, state, True)
            assert ys is not None
            outputs.append(ys.reshape(count * size, -1))
            step, offset = step + count, offset + count * size
        parts = [state, *reversed(ended)]
        return torch.cat(outputs), CellState(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def extra_repr(self) -> str:
        return (
            f"num_layers={self.num_layers}, batch_first={self.batch_first}, bidirectional={self.bidirectional}, "
            f"proj_size={self.proj_size}, implementation={self.implementation!r}"
        )


def _turned_indices(batch_sizes: Tensor) -> Tensor:
    """Where in packed data the entry is that stands in a place once every sequence is turned around."""
    batch_sizes = batch_sizes.cpu()
    steps = torch.arange(len(batch_sizes), device="cpu").repeat_interleave(batch_sizes)
    first = batch_sizes.cumsum(0) - batch_sizes
    rows = torch.arange(len(steps), device="cpu") - first[steps]
    lengths = (batch_sizes[:, None] > torch.arange(int(batch_sizes[0]), device="cpu")).sum(0)
    return first[lengths[rows] - 1 - steps] + rows


class ORGaNICsClassifier(nn.Module):
    """ORGaNICs over a sequence, and a linear readout of y at the last step.

    Of a bidirectional layer y at the last step of either direction is read, which are both ends of the sequence.

    Parameters
    ----------
    input_size, hidden_size, classes : int
    num_layers, bias, dropout, bidirectional, implementation, checkpoint_every, recurrent, variant
        As for :class:`ORGaNICs`.
    initialization, rate_spread, max_rates, steps, learn_rates
        As for :class:`ORGaNICs`.
    seed, generator, device, dtype
        As for :class:`ORGaNICs`.

    Examples
    --------
    >>> import torch
    >>> model = ORGaNICsClassifier(3, 8, 10, seed=0)
    >>> model(torch.ones(2, 20, 3)).shape  # batch first
    torch.Size([2, 10])
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
        if options.get("proj_size"):
            raise ValueError("proj_size is for ORGaNICs: the readout of a classifier is a projection")
        self.layer = ORGaNICs(
            input_size, hidden_size, num_layers, batch_first=True, seed=rng, device=device, dtype=dtype, **options
        )
        inputs = self.layer.hidden_size * (1 + self.layer.bidirectional)
        self.readout = nn.Linear(inputs, classes, device=device, dtype=dtype)
        self._draw_readout(rng)

    def _draw_readout(self, rng: np.random.Generator) -> None:
        bound = self.readout.in_features**-0.5
        parameters = dict(self.readout.named_parameters())
        fill(self.readout, {name: rng.uniform(-bound, bound, value.shape) for name, value in parameters.items()})

    def reset_parameters(
        self, seed: int | np.random.Generator | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Draw all parameters and start states anew; ``seed`` and ``generator`` as at construction."""
        rng = random_source(seed, generator)
        self.layer.reset_parameters(rng)
        self._draw_readout(rng)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of sequences x (N, T, k)."""
        _, hn = self.layer(x, outputs=False)
        return self.readout(torch.cat(hn.y[-2:].unbind(), -1) if self.layer.bidirectional else hn.y[-1])
