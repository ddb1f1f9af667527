"""numpy and torch on the CPU: the motion that ``organics_core.attractors.follow`` follows, in C++ (motion.cpp)."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from organics_backends.native import Library, processors, source
from organics_core.attractors import EXPLICIT, LARGE
from organics_core.backend import Array, get_backend, to_numpy, tree_leaves
from organics_core.circuit import VARIANTS
from organics_core.weights import Operator

VARIABLE = "ORGANICS_NATIVE_MOTION"
MOST, MOST_MOVING = 64, 256
"""Neurons for Newton's method and for the motion: the matrices of larger circuits are LAPACK's."""
_PRODUCTS = 2e8
"""What a thread computes between two looks at the keyboard."""
_FEW = 6e6
"""Steps times neurons cubed for which a thread is worth its start."""


class Arguments(ctypes.Structure):
    """As the struct of this name in motion.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "members", "threads", "steps", "flags", "aimed")),
        *((name, ctypes.c_int64) for name in ("rows_stride", "w_r_stride", "w_stride")),
        *((name, ctypes.c_void_p) for name in ("w_r", "w", "rows", "numbers", "outcome", "pair", "stop")),
        *((name, ctypes.c_double) for name in ("rtol", "still", "slow_below", "d", "e")),
    )


class Pair(ctypes.Structure):
    """As the struct of this name in motion.cpp."""

    _fields_ = (("stages", ctypes.c_int64), *((name, ctypes.c_void_p) for name in ("inner", "weights", "error")))


def _pair() -> tuple[Pair, Any]:
    """The explicit pair of the core, and what keeps its numbers in memory."""
    tableau = EXPLICIT.tableau
    inner = np.zeros((len(tableau.stages), len(tableau.stages)))
    for k, row in enumerate(tableau.stages):
        inner[k, :k] = row
    kept = inner, np.array(tableau.weights), np.array(tableau.error)
    return Pair(len(inner), *(part.ctypes.data for part in kept)), kept


_PAIR, _KEPT = _pair()


def _open(path: Path) -> Any:
    library = ctypes.CDLL(str(path))
    for name in ("organics_motion_f32", "organics_motion_f64"):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_int32
    library.organics_motion_arguments.restype = ctypes.c_int64
    if library.organics_motion_arguments() != ctypes.sizeof(Arguments):
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
    code = _code(xp, circuit, (*rows, active), MOST_MOVING)
    if code is None:
        return None
    steps, *rest = rules
    states = _packed(rows)
    members = states.shape[:-2]
    scalars = np.stack([np.broadcast_to(to_numpy(number), members) for number in numbers], axis=-1)
    outcome = np.array(np.broadcast_to(to_numpy(active), members), dtype=np.int32)  # MOVING is 1
    _run(code, _threads(xp), variant, circuit, states, scalars, outcome, steps, rows[-1] is not None, rest)
    return xp.asarray(states[..., 0, :]), xp.asarray(outcome)


def newton(
    xp: Any, variant: str, circuit: Any, x: Array, base: Array, steps: int, enough: float
) -> tuple[Array, Array] | None:
    """The best states (..., 2n) and their residuals (...); None as for :func:`motion`."""
    code = _code(xp, circuit, (x, base), MOST)
    if code is None:
        return None
    states = _packed((x, xp.ones_like(x), base))
    residual = np.empty(states.shape[:-2], dtype=states.dtype)
    _run(code, _threads(xp), variant, circuit, states, residual, None, steps, False, (enough, 0.0, 0.0, 0.0, 0.0))
    return xp.asarray(states[..., 0, :]), xp.asarray(residual)


def _code(xp: Any, circuit: Any, others: tuple[Array, ...], most: int) -> Any:
    """The function of the native library for arrays of this dtype, or None where it cannot take them."""
    n = int(others[0].shape[-1]) // 2
    if n > most or any(isinstance(part, Operator) for part in circuit[:2]):
        return None
    seen = get_backend(xp).is_concrete
    if not all(seen(leaf) and getattr(leaf, "is_cpu", True) for leaf in tree_leaves((tuple(circuit[:2]), others))):
        return None
    dtype = others[0].dtype
    if dtype not in (xp.float32, xp.float64) or (code := library.load()) is None:
        return None
    return code.organics_motion_f32 if dtype == xp.float32 else code.organics_motion_f64


def _threads(xp: Any) -> int:
    """torch's number, else as for the matrix products of numpy."""
    if hasattr(xp, "get_num_threads"):
        return int(xp.get_num_threads())
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(processors(), int(wanted)) if wanted.isdecimal() and int(wanted) else processors()


def _packed(rows: tuple[Array, ...]) -> Any:
    """(..., rows, 2n): zeros where there is none."""
    first = to_numpy(rows[0])
    nothing = np.zeros((), dtype=first.dtype)
    parts = [nothing if row is None else to_numpy(row) for row in rows]
    return np.stack([np.broadcast_to(part, first.shape) for part in parts], axis=-2)


def _run(
    code: Any,
    most: int,
    variant: str,
    circuit: Any,
    states: Any,
    numbers: Any,
    outcome: Any,
    steps: int,
    aimed: bool,
    rules: Any,
) -> None:
    """What is named changes in place; some members at a time, so that one may interrupt."""
    members, n, dtype = states.shape[:-2], states.shape[-1] // 2, states.dtype
    matrices = []
    for part in circuit[:2]:
        matrix = np.eye(n, dtype=dtype) if part is None else to_numpy(part)
        if matrix.ndim > 2:
            matrix = np.broadcast_to(matrix, (*members, n, n))
        matrices.append(np.ascontiguousarray(np.swapaxes(matrix, -1, -2)))
    flags = sum(flag << k for k, flag in enumerate(VARIANTS[variant]))
    strides = [states.shape[-2] * 2 * n, *(0 if matrix.ndim == 2 else n * n for matrix in matrices)]
    count, size = int(np.prod(members, dtype=int)), dtype.itemsize
    threads = max(1, min(most, count, int(count * steps * max(n, 8) ** 3 / _FEW)))
    each = int(_PRODUCTS / (steps * 8 * max(n, 4) ** 3))
    at_once = threads * max(each, 1 if threads == 1 else 4)  # of four one may take long
    stop = ctypes.c_int64(0)
    pair = ctypes.addressof(_PAIR) if n >= LARGE else None
    for first in range(0, count, at_once):
        places = [
            part.ctypes.data + first * stride * size for part, stride in zip((states, *matrices), strides, strict=True)
        ]
        beside = numbers.ctypes.data + first * (numbers.size // count) * size
        ends = None if outcome is None else outcome.ctypes.data + 4 * first
        some = min(at_once, count - first)
        counts, arrays = (n, some, threads, steps, flags, aimed), (*places[1:], places[0], beside, ends)
        call = Arguments(*counts, *strides, *arrays, pair, ctypes.addressof(stop), *rules)
        if _waited_for(code, call, stop) if n > MOST else code(ctypes.addressof(call)):
            raise MemoryError(f"no memory for the motion of a circuit of {n} neurons")


def _waited_for(code: Any, call: Arguments, stop: ctypes.c_int64) -> int:
    """What takes long, in a thread of its own, so that one may interrupt."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(code, ctypes.addressof(call))
        try:
            while not wait((done,), timeout=0.1).done:
                pass
        except BaseException:
            stop.value = 1
            raise
        return int(done.result())
