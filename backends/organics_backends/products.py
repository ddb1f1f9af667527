"""Products by kernels of our own, for loops that are recorded as CUDA graphs.

cupy refuses to record calls of cuBLAS and cuSPARSE, so that a loop with an
ordinary product in it could never become a graph. Nothing here imports cupy:
the text is launched through a function, on the device by cupy's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from organics_core.backend import Array
from organics_core.weights import Operator

THREADS = 128
VECTORS = 4
MOST_WORK = 2**27
"""Multiplications of several vectors' product that are not left to cuBLAS, which is far faster for large ones."""

Launch = Callable[[str, str, int, int, tuple[Any, ...]], None]
"""``launch(text, name, blocks, threads, arguments)`` runs one function of a text."""

_REALS = {"float32": "float", "float64": "double"}


@cache
def source(dtype: str, lanes: int, vectors: int) -> str:
    """CUDA C++ with the functions ``organics_dense`` and ``organics_sparse``."""
    names = {"REAL": _REALS[dtype], "LANES": lanes, "VECTORS": vectors}
    header = "".join(f"#define {name} {value}\n" for name, value in names.items())
    return header + (Path(__file__).parent / "products.cu").read_text()


def _lanes(length: float) -> int:
    """Threads for the sum of a row: a power of two up to 32, about half its length."""
    return 2 ** min(5, max(0, math.ceil(math.log2(max(length, 1.0))) - 1))


def _blocks(groups: int, lanes: int) -> int:
    return -(-groups * lanes // THREADS)


def dense_product(matrix: Array, vector: Array, launch: Launch) -> Array | None:
    """``matrix @ vector`` for (n, m) and (..., m), or (..., n, m) and (..., m); None for what is left to cuBLAS.

    Parameters
    ----------
    matrix, vector : array
    launch : callable
        ``launch(text, name, blocks, threads, arguments)``.
    """
    dtype = str(vector.dtype)
    if dtype not in _REALS or str(matrix.dtype) != dtype:
        return None
    xp = array_namespace(matrix, vector)
    shared = matrix.ndim == 2
    rows, columns = matrix.shape[-2:]
    batch = tuple(vector.shape[:-1])
    if not shared and tuple(matrix.shape[:-2]) != batch:
        return None
    count = math.prod(batch)
    if rows == 0 or columns == 0 or count == 0 or (batch and count * rows * columns > MOST_WORK):
        return None
    vectors = VECTORS if shared and count > 1 else 1
    lanes = _lanes(columns)
    out = xp.empty((*batch, rows), dtype=vector.dtype, device=device(vector))
    sizes = (0 if shared else rows * columns, rows, columns, count)
    stride, *rest = map(np.int64, sizes)
    arguments = (xp.ascontiguousarray(matrix), stride, xp.ascontiguousarray(vector), out, *rest)
    groups = rows * -(-count // vectors)
    launch(source(dtype, lanes, vectors), "organics_dense", _blocks(groups, lanes), THREADS, arguments)
    return out


def sparse_operator(matrix: Any, dtype: Any, launch: Launch) -> Operator | None:
    """The product with a sparse matrix by a kernel that can be recorded; None where its indices are not of 32 bits.

    Parameters
    ----------
    matrix : sparse matrix
        Of cupyx.scipy.sparse, or one that looks like it.
    dtype : dtype
        Of the vectors, float32 or float64.
    launch : callable
        ``launch(text, name, blocks, threads, arguments)``.
    """
    rows = matrix.tocsr().astype(dtype)
    if str(dtype) not in _REALS or {str(rows.indices.dtype), str(rows.indptr.dtype)} != {"int32"}:
        return None
    return Operator(lambda vector: sparse_product(rows, vector, launch))


def sparse_product(matrix: Any, vector: Array, launch: Launch) -> Array:
    """``matrix @ vector`` for a matrix (n, m) in compressed rows, with 32-bit indices, and a vector (m,) of its dtype.

    Parameters
    ----------
    matrix : object
        With ``data``, ``indices``, ``indptr`` and ``shape``, as of cupyx.scipy.sparse.csr_matrix.
    vector : array
    launch : callable
        ``launch(text, name, blocks, threads, arguments)``.
    """
    xp = array_namespace(vector)
    rows = matrix.shape[0]
    lanes = _lanes(matrix.data.shape[0] / max(rows, 1))
    out = xp.empty((rows,), dtype=vector.dtype, device=device(vector))
    arguments = (matrix.data, matrix.indices, matrix.indptr, xp.ascontiguousarray(vector), out, np.int64(rows))
    launch(source(str(vector.dtype), lanes, 1), "organics_sparse", _blocks(rows, lanes), THREADS, arguments)
    return out
