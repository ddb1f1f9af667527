"""Loops whose steps are recorded once, as a graph of kernels, and replayed without Python in between.

Written against a :class:`Recorder`, so that the bookkeeping can be tested
without a GPU; cupy's recorder is in :mod:`organics_backends.cupy`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol

from array_api_compat import array_namespace, device

from organics_core.backend import Array, GenericBackend, Tree, tree_leaves, tree_map
from organics_core.linalg import broadcast_shapes

STEPS = 64
"""Basic steps recorded in one graph, at most; loops shorter than a quarter of it are not recorded."""
COST = 16
"""A step costs so many times as much to record as a graph to launch, about; on an H200 it was 30."""
LONG = 8 * STEPS
"""An inner loop at least this long is recorded itself, instead of the loop around it."""
NUMBERS = 2**26
"""Numbers held in the buffers of one recording, at most."""


class Recorder(Protocol):
    """What a library must offer to have its loops recorded."""

    def record(self, function: Callable[[], None]) -> Callable[[], None] | None:
        """Record the work of ``function`` on the device, undone, as a callable that does it; None where it cannot."""
        ...


def _empty(leaf: Array, length: int) -> Array:
    xp = array_namespace(leaf)
    return xp.empty((length, *leaf.shape), dtype=leaf.dtype, device=device(leaf))


def _copy(leaf: Array) -> Array:
    return array_namespace(leaf).asarray(leaf, copy=True)


def _fill(buffers: Tree, values: Tree, part: Any = ...) -> None:
    """Copy ``values`` into ``buffers[part]``, leaf by leaf."""

    def copy(buffer: Array, value: Array) -> None:
        buffer[part] = value

    tree_map(copy, buffers, values)


class RecordingBackend(GenericBackend):
    """A generic backend whose ``scan`` replays recorded steps.

    Parameters
    ----------
    recorder : Recorder

    Notes
    -----
    The first step runs as it is, which also compiles its kernels. The next
    steps are recorded in chunks that read and write fixed buffers. What cannot
    be recorded (a step that looks at values, say) runs as an ordinary loop.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._inside = 0  # scans around the present one
        self._counted = 0  # basic steps of inner scans since the outermost began
        self._recorded = 0
        self._recording = False  # or about to: the first step readies what the recorded ones need

    def product(self, matrix: Array, vector: Array) -> Array | None:
        """``matrix @ vector`` in a step to be recorded, where the library's own product cannot be; else None."""
        return self.recordable_product(matrix, vector) if self._recording else None

    def recordable_product(self, matrix: Array, vector: Array) -> Array | None:
        """None where the library's own product can be recorded, or nothing takes its place."""
        return None

    def join(self, parts: list[Array]) -> Array:
        """Arrays side by side along the last axis, by copies: cupy's concatenation sends pointers to the device."""
        xp = array_namespace(*parts)
        edges = [0, *itertools.accumulate(int(part.shape[-1]) for part in parts)]
        batch = broadcast_shapes(*(tuple(part.shape[:-1]) for part in parts))
        made = xp.empty((*batch, edges[-1]), dtype=parts[0].dtype, device=device(parts[0]))
        for part, (low, high) in zip(parts, itertools.pairwise(edges), strict=True):
            made[..., low:high] = part
        return made

    def scan(self, step: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
        length = int(tree_leaves(xs)[0].shape[0])
        self._counted += length
        if length < STEPS // 4 or (self._inside and length < LONG):
            return super().scan(step, carry, xs)
        recorded, counted = self._recorded, self._counted
        self._inside += 1
        recording, self._recording = self._recording, True
        try:
            carry, first = step(carry, tree_map(lambda leaf: leaf[0, ...], xs))
            inner = self._counted - counted
            if self._recorded > recorded:  # an inner loop is recorded itself
                return self._loop(step, carry, xs, first, None, 1)
            size = sum(math.prod(leaf.shape) for leaf in tree_leaves((first, tree_map(lambda leaf: leaf[0, ...], xs))))
            inner = max(1, inner)
            # c recorded and L / c launched: the sum of their times is least at c = sqrt(L / COST)
            steps = min(STEPS, math.isqrt(length * inner // COST))
            chunk = max(1, min(steps // inner, (length - 1) // 2, NUMBERS // max(1, size)))
            self._recorded += 1
            return self._loop(step, carry, xs, first, self.recorder, chunk)
        finally:
            self._inside -= 1
            self._recording = recording
            self._counted = counted if self._inside else 0

    def _loop(
        self,
        step: Callable[[Tree, Tree], tuple[Tree, Tree]],
        carry: Tree,
        xs: Tree,
        first: Tree,
        recorder: Recorder | None,
        chunk: int,
    ) -> tuple[Tree, Tree]:
        """The steps after the first, in recorded chunks where possible."""
        length = int(tree_leaves(xs)[0].shape[0])
        ys = tree_map(lambda leaf: _empty(leaf, length), first)
        _fill(ys, first, 0)
        done = 1
        if recorder is not None:
            state = tree_map(_copy, carry)
            inputs = tree_map(lambda leaf: _empty(leaf[0, ...], chunk), xs)
            outputs = tree_map(lambda leaf: _empty(leaf, chunk), first)

            def body() -> None:
                now = state
                for k in range(chunk):
                    now, y = step(now, tree_map(lambda leaf, k=k: leaf[k, ...], inputs))
                    _fill(outputs, y, k)
                # a step may hand back parts of the buffers themselves
                _fill(state, tree_map(_copy, now))

            replay = recorder.record(body)
            while replay is not None and done + chunk <= length:
                part = slice(done, done + chunk)
                _fill(inputs, tree_map(lambda leaf, part=part: leaf[part], xs))
                replay()
                _fill(ys, outputs, part)
                done += chunk
            carry = state
        self._recording = False
        for k in range(done, length):
            carry, y = step(carry, tree_map(lambda leaf, k=k: leaf[k, ...], xs))
            _fill(ys, y, k)
        return carry, ys
