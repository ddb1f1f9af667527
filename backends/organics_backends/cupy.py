"""cupy: loops recorded as CUDA graphs, random numbers on the device, eigenvalues on the host."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import cupy as cp

from organics_core.backend import Array, host_eigvals
from organics_core.weights import Operator

from .graphs import RecordingBackend
from .products import dense_product


@cache
def function(text: str, name: str) -> Any:
    """A function of CUDA C++; cupy compiles the text on the first launch and keeps it on disk."""
    return cp.RawModule(code=text, options=("-std=c++17",)).get_function(name)


def launch(text: str, name: str, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
    """Run a function of the text on cupy's current stream."""
    function(text, name)((blocks,), (threads,), arguments)


def _no_transfer(size: int) -> Any:
    raise RuntimeError("a step that copies from the host cannot be recorded")


class GraphRecorder:
    """Records work on a stream of its own, with memory of its own, as a CUDA graph."""

    def record(self, function: Callable[[], None]) -> Callable[[], None] | None:
        """The work of ``function``, undone, as a callable that does it; None where it cannot be recorded."""
        pool = cp.cuda.MemoryPool()  # what the graph writes must belong to nobody else while it lives
        stream = cp.cuda.Stream(non_blocking=True)
        # A copy from the host would be recorded with the address of a buffer that is used again.
        cp.cuda.set_pinned_memory_allocator(_no_transfer)
        try:
            with cp.cuda.using_allocator(pool.malloc), stream:
                stream.begin_capture()
                try:
                    function()
                finally:
                    graph = stream.end_capture()
        except Exception:  # whatever the library objects to, the ordinary loop does
            return None
        finally:
            cp.cuda.set_pinned_memory_allocator(cp.get_default_pinned_memory_pool().malloc)

        def replay(pool: Any = pool) -> None:
            graph.launch(cp.cuda.get_current_stream())

        return replay


class CupyBackend(RecordingBackend):
    """cupy: loops recorded as CUDA graphs, random numbers on the device, eigenvalues on the host."""

    name = "cupy"

    def recordable_product(self, matrix: Array, vector: Array) -> Array | None:
        return dense_product(matrix, vector, launch)

    def normal(self, seed: int, shape: tuple[int, ...], like: Array) -> Array:
        with like.device:
            return cp.random.default_rng(seed).standard_normal(shape, dtype=like.dtype)

    def eigvals(self, matrix: Array) -> Any:
        values = host_eigvals(cp.asnumpy(matrix))
        with matrix.device:
            return cp.asarray(values)

    def sparse(self, matrix: Any, like: Array) -> Operator:
        from cupyx.scipy import sparse

        rows = sparse.csr_matrix(matrix).astype(like.dtype)
        return Operator(
            lambda v: (rows @ v.reshape(-1, v.shape[-1]).T).T.reshape(v.shape), shape=rows.shape, batched=True
        )


backend = CupyBackend(GraphRecorder())
