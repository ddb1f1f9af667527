"""numpy and torch on the CPU: the motion that ``organics_core.attractors.follow`` follows, in C++ (motion.cpp)."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from organics_backends.native import Library, source
from organics_core.backend import Array, get_backend, to_numpy, tree_leaves
from organics_core.circuit import VARIANTS
from organics_core.weights import Operator

VARIABLE = "ORGANICS_NATIVE_MOTION"
MOST = 64
"""Neurons: the matrices of larger circuits are LAPACK's."""
_PRODUCTS = 2e8
"""What is computed between two looks at the keyboard."""


class Arguments(ctypes.Structure):
    """As the struct of this name in motion.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "members", "steps", "flags", "aimed", "w_r_stride", "w_stride")),
        *((name, ctypes.c_void_p) for name in ("w_r", "w", "rows", "numbers", "outcome")),
        *((name, ctypes.c_double) for name in ("rtol", "still", "slow_below")),
    )


def _open(path: Path) -> Any:
    library = ctypes.CDLL(str(path))
    for name in ("organics_follow_f32", "organics_follow_f64"):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_int32
    library.organics_follow_size.restype = ctypes.c_int64
    if library.organics_follow_size() != ctypes.sizeof(Arguments):
        raise OSError("the native library does not fit this version")
    return library


library = Library("motion", VARIABLE, lambda: {"motion.cpp": source("organics_backends", "motion.cpp")}, _open)


def motion(
    xp: Any, variant: str, circuit: Any, rows: tuple[Array, ...], numbers: tuple[Array, ...], active: Array, rules: Any
) -> tuple[Array, Array] | None:
    """States and outcomes; None for what it does not take: other dtypes, larger circuits, operators, no compiler.

    ``rows`` (..., 2n) are the states, time constants, the constant terms of both equations, and by what sizes are
    measured: what counts as small, the inverse of the largest, and a goal with its inverse, or None twice.
    ``numbers`` (...) are the shortest and the longest time constant and the shortest and the longest step.
    """
    x = rows[0]
    n = int(x.shape[-1]) // 2
    weights = [part for part in circuit[:2] if part is not None]
    if n > MOST or any(isinstance(part, Operator) for part in weights):
        return None
    seen = get_backend(xp).is_concrete
    if not all(seen(leaf) and getattr(leaf, "is_cpu", True) for leaf in tree_leaves((tuple(circuit), rows, active))):
        return None
    dtype = to_numpy(x).dtype
    if dtype not in (np.float32, np.float64) or (code := library.load()) is None:
        return None
    steps, rtol, still, slow_below = rules
    aimed = rows[-1] is not None
    members = tuple(x.shape[:-1])
    nothing = np.zeros((), dtype=dtype)
    packed = np.stack(
        [np.broadcast_to(nothing if row is None else to_numpy(row), (*members, 2 * n)) for row in rows], axis=-2
    )
    scalars = np.stack([np.broadcast_to(to_numpy(number), members) for number in numbers], axis=-1)
    outcome = np.array(np.broadcast_to(to_numpy(active), members), dtype=np.int32)  # MOVING is 1
    matrices = [
        np.ascontiguousarray(np.swapaxes(to_numpy(part) if part.ndim == 2 else _spread(part, members, n), -1, -2))
        for part in (np.eye(n, dtype=dtype) if circuit.w_r is None else circuit.w_r, circuit.w)
    ]
    flags = sum(flag << k for k, flag in enumerate(VARIANTS[variant]))
    follow = code.organics_follow_f32 if dtype == np.float32 else code.organics_follow_f64
    strides = [0 if matrix.ndim == 2 else n * n for matrix in matrices]
    count, size = outcome.size, dtype.itemsize
    at_once = max(1, int(_PRODUCTS / (steps * 8 * max(n, 4) ** 3)))
    for first in range(0, count, at_once):
        call = Arguments(
            *(n, min(at_once, count - first), steps, flags, aimed, *strides),
            *(matrix.ctypes.data + first * stride * size for matrix, stride in zip(matrices, strides, strict=True)),
            *(packed.ctypes.data + first * 14 * n * size, scalars.ctypes.data + first * 4 * size),
            *(outcome.ctypes.data + 4 * first, rtol, still, slow_below),
        )
        if follow(ctypes.addressof(call)):
            raise MemoryError(f"no memory for the motion of a circuit of {n} neurons")
    return xp.asarray(packed[..., 0, :]), xp.asarray(outcome)


def _spread(part: Array, members: tuple[int, ...], n: int) -> Any:
    return np.broadcast_to(to_numpy(part), (*members, n, n))
