"""What the implementations of a sequence have in common."""

from __future__ import annotations

import ctypes
import weakref
from typing import NamedTuple

import torch
from torch import Tensor

WEIGHTS = ("w_zx", "w_r", "w", "w_bx0", "w_by0", "w_ba0", "w_bx1", "w_by1", "w_ba1", "r_y", "r_a", "r_b0", "r_b1")


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
    """One large buffer, lent again and again: a fresh one costs more in page faults than what is computed in it.

    The buffer comes back when the last tensor upon it is gone.
    """

    def __init__(self, smallest: int = 1 << 20) -> None:
        self.smallest = smallest
        self._spare: list[Tensor] = []  # at most one; a list, whose pop no two threads can have

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialized tensor on the CPU, on the spare buffer if that fits."""
        count = 1
        for size in shape:
            count *= size
        wanted = count * dtype.itemsize
        if wanted < self.smallest:
            return torch.empty(shape, dtype=dtype, device="cpu")
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = None
        if memory is None or not wanted <= memory.numel() <= 2 * wanted:
            memory = torch.empty(wanted, dtype=torch.uint8, device="cpu")
        lent = (ctypes.c_char * wanted).from_address(memory.data_ptr())
        weakref.finalize(lent, self._take_back, memory).atexit = False
        return torch.frombuffer(lent, dtype=dtype).view(shape)

    def _take_back(self, memory: Tensor) -> None:
        self._spare[:] = [memory]
