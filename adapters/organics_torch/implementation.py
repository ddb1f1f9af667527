"""What the implementations of a sequence have in common."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import cache, wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

WEIGHTS = ("w_zx", "w_r", "w", "w_bx0", "w_by0", "w_ba0", "w_bx1", "w_by1", "w_ba1", "r_y", "r_a", "r_b0", "r_b1")


_keys = torch._C._dispatch_keys  # noqa: SLF001 - torch has no public name for it


@cache
def _keys_of(device: str) -> int:
    """What torch's dispatcher knows of an ordinary tensor on a device."""
    return _keys(torch.empty(0, device=device)).raw_repr()


_META = torch.device("meta")
_ORDINARY = (Tensor, nn.Parameter, nn.Buffer)
_keys_of("cpu")  # now, while no mode of torch is in force


def is_ordinary(value: Tensor) -> bool:
    """Whether a tensor is its memory and no more: dense, on a real device, no subclass and no transform's wrapper."""
    if type(value) not in _ORDINARY or value.is_meta:
        return False
    return not _keys(value).raw_repr() & ~_keys_of(value.device.type)  # DTensor, fake, batched, sparse, negated, ...


Function = TypeVar("Function", bound=Callable[..., Any])


def constant(function: Function) -> Function:
    """``torch.compiler.assume_constant_result``, which would import the compiler: longer than torch itself takes."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001 - all that torch does
    return function


@constant
def transformed() -> str | None:
    """Whether a transform of torch.func is in force, also while the compiler looks at what is within one."""
    if torch._C._functorch.peek_interpreter_stack() is not None:  # noqa: SLF001 - torch has no public name for it
        return "a torch.func transform is around it"
    return None


def intercepted() -> str | None:
    """What stands between torch's operations and the memory at the moment, or None."""
    reason = transformed()
    if reason is not None:
        return reason
    if torch._C._len_torch_dispatch_stack():  # noqa: SLF001
        return "a dispatch mode of torch is in force"
    if torch.autograd.forward_ad._current_level >= 0:  # noqa: SLF001
        return "forward derivatives are being taken"
    return None


@cache
def shapes_of(n: int, k: int) -> dict[str, tuple[int, ...]]:
    """Of the weights, for n units and k inputs."""
    shapes = {name: (n, k) if name.startswith(("w_zx", "w_bx")) else (n, n) for name in WEIGHTS[:9]}
    return shapes | dict.fromkeys(WEIGHTS[9:], (n,))


def misfit(tensors: Mapping[str, Tensor | None], shapes: Mapping[str, tuple[int, ...]], like: Tensor) -> str | None:
    """Why code that is given addresses cannot take some tensors, or None."""
    dtype, device = like.dtype, like.device
    foreign = ~_keys_of(device.type)
    for name, value in tensors.items():
        if value is None or (  # one look at each: a step of a stream pays for it
            type(value) in _ORDINARY
            and value.dtype is dtype
            and value.shape == shapes[name]
            and not _keys(value).raw_repr() & foreign
            and (value.is_cpu or value.device == device != _META)
        ):
            continue
        if not is_ordinary(value):
            return f"{name} is no ordinary tensor but {type(value).__name__} on {value.device}"
        if value.dtype != dtype or value.device != device:
            return f"{name} has {value.dtype} on {value.device}, not {dtype} on {device}"
        if value.shape != shapes[name]:
            return f"{name} has shape {tuple(value.shape)}, not {shapes[name]}"
    return None


def check(
    xs: Tensor, sigma: Tensor, weights: Sequence[Tensor | None], more: dict[str, Tensor | None], **shapes: Any
) -> None:
    """RuntimeError unless all tensors of a sequence are ordinary, of one dtype and device, of the shapes they need."""
    w = weights[WEIGHTS.index("w")]
    if xs.ndim != 3 or w is None or w.ndim != 2 or xs.dtype not in (torch.float32, torch.float64):
        raise RuntimeError(f"xs must be (T, N, k) of float32 or float64, got {tuple(xs.shape)} of {xs.dtype}")
    (steps, batch, k), n = xs.shape, w.shape[0]
    tensors = dict(zip(WEIGHTS, weights, strict=True)) | {"xs": xs, "sigma": sigma} | more
    shapes |= shapes_of(n, k) | {"xs": (steps, batch, k), "sigma": (n,) if sigma.ndim else ()}
    shapes |= dict.fromkeys(("start", "g_last"), (4, batch, n)) | {"g_ys": (steps, batch, n)}
    reason = misfit(tensors, shapes, xs)
    if reason is not None:
        raise RuntimeError(f"the sequence cannot be computed: {reason}")


def address(name: str, value: Tensor) -> int:
    """Where the numbers of a tensor begin; RuntimeError where its memory is not there."""
    pointer = value.data_ptr()
    if not pointer and value.numel():
        raise RuntimeError(f"{name} has no memory that native code could use: it is a {type(value).__name__}")
    return pointer


def not_compiled(function: Function) -> Function:
    """``torch.compiler.disable``, which would import the compiler, where no program is being compiled."""

    @wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*arguments, **keywords)
        return function(*arguments, **keywords)

    return call  # type: ignore[return-value]


@constant
def _has_autocast(kind: str) -> bool:
    """Whether there is autocast for a kind of device; torch 2.11 cannot trace the question."""
    return bool(torch.amp.is_autocast_available(kind))


def in_autocast(like: Tensor) -> bool:
    """Whether autocast is on where a tensor is."""
    kind = like.device.type
    return _has_autocast(kind) and torch.is_autocast_enabled(kind)


def without_autocast(like: Tensor) -> Any:
    """Computations in the dtype of their tensors; a backward pass, too, may run inside of autocast."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if _has_autocast(kind) else nullcontext()


def as_autocast_gives(value: Tensor) -> Tensor:
    """A result in the dtype that torch's own layers give within autocast, which leaves float64 alone."""
    if value.dtype == torch.float64 or not in_autocast(value):
        return value
    return value.to(torch.get_autocast_dtype(value.device.type))


class Setup(NamedTuple):
    """Everything about a pass over a sequence that is no tensor.

    Attributes
    ----------
    main : bool
        The unrectified variant.
    outputs : bool
        Whether y of every step is wanted.
    gradient : bool
        Whether there will be a backward pass.
    checkpoint_every : int
        Steps between the states that are kept; 0 keeps everything.
    threads : int
        On the CPU.
    """

    main: bool
    outputs: bool
    gradient: bool
    checkpoint_every: int
    threads: int


class Reserve:
    """Large buffers, lent again and again: a fresh one costs more in page faults than what is computed in it.

    A buffer comes back when the last tensor upon it is gone. Kept are those that were lent at once, and a quarter more.
    """

    def __init__(self, smallest: int = 1 << 20) -> None:
        self.smallest = smallest
        self._spare: dict[int, list[Tensor]] = {}  # by size; lists, whose pop no two threads can have
        self._lent: dict[int, int] = {}  # sizes by address
        self._most = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialized tensor on the CPU, on a spare buffer if one fits."""
        count = 1
        for size in shape:
            count *= size
        wanted = count * dtype.itemsize
        if wanted < self.smallest:
            return torch.empty(shape, dtype=dtype, device="cpu")
        memory = self._fitting(wanted)
        if memory is None:
            self._make_room(wanted)
            memory = torch.empty(wanted, dtype=torch.uint8, device="cpu")
        self._lent[memory.data_ptr()] = memory.numel()
        lent = (ctypes.c_char * wanted).from_address(memory.data_ptr())
        weakref.finalize(lent, self._take_back, memory).atexit = False
        return torch.frombuffer(lent, dtype=dtype).view(shape)

    def _fitting(self, wanted: int) -> Tensor | None:
        """The smallest spare buffer that is large enough, unless it is more than twice as large."""
        for size in sorted(self._spare):
            if wanted <= size <= 2 * wanted:
                with suppress(KeyError, IndexError):
                    return self._spare[size].pop()
        return None

    def _make_room(self, wanted: int) -> None:
        """Let go of spare buffers, the smallest first, until a new one does not make the whole too large."""
        lent = wanted + sum(list(self._lent.values()))
        self._most = max(self._most, lent)
        room = 1.25 * self._most - lent - sum(size * len(spare) for size, spare in list(self._spare.items()))
        for size in sorted(self._spare):
            while room < 0 and self._spare.get(size):
                with suppress(KeyError, IndexError):
                    self._spare[size].pop()
                    room += size
            if not self._spare.get(size):
                self._spare.pop(size, None)

    def _take_back(self, memory: Tensor) -> None:
        self._lent.pop(memory.data_ptr(), None)
        self._spare.setdefault(memory.numel(), []).append(memory)
