"""cupy: Python loops on the GPU, random numbers on the device, eigenvalues on the host."""

from __future__ import annotations

from typing import Any

import cupy as cp

from organics_core.backend import Array, GenericBackend, host_eigvals


class CupyBackend(GenericBackend):
    name = "cupy"

    def normal(self, seed: int, shape: tuple[int, ...], like: Array) -> Array:
        with like.device:
            return cp.random.default_rng(seed).standard_normal(shape, dtype=like.dtype)

    def eigvals(self, matrix: Array) -> Any:
        values = host_eigvals(cp.asnumpy(matrix))
        with matrix.device:
            return cp.asarray(values)


backend = CupyBackend()
