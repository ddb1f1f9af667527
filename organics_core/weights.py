"""A matrix of weights: a dense array, or anything with a product (sparse, convolution, function)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from . import checks
from .backend import Array, get_backend, to_numpy

_SMALL = 32
_MOST_DENSE = 4096


class Operator:
    """A matrix known by its product with a vector alone.

    Parameters
    ----------
    product : callable
        ``product(*arrays, v)`` for v (n,), linear and real. What it returns is
        converted to the dtype of v.
    arrays : sequence of arrays
        What the product needs, given to it first. Arrays that are named here
        may be traced and differentiated; those inside ``product`` are constants.
    shape : (int, int), optional
        (n, n), where it is known.
    batched : bool
        Whether ``product`` takes vectors (..., n) as well; otherwise the members
        of a batch are multiplied one by one.
    """

    __slots__ = ("arrays", "batched", "function", "shape")

    def __init__(
        self,
        product: Callable[..., Array],
        arrays: Sequence[Any] = (),
        *,
        shape: tuple[int, int] | None = None,
        batched: bool = False,
    ) -> None:
        if not callable(product):
            raise TypeError(f"product must be a function of a vector, got {checks.describe(product)}")
        self.function = product
        self.arrays = tuple(arrays)
        self.shape = shape
        self.batched = batched

    def product(self, vector: Array) -> Array:
        """The product with a vector (n,), or with vectors (..., n), in their dtype."""
        if self.batched or vector.ndim <= 1:
            made = self.function(*self.arrays, vector)
            if getattr(made, "shape", None) != vector.shape:  # which would broadcast
                raise ValueError(
                    f"weights must map vectors {tuple(vector.shape)} to the same shape, got {checks.describe(made)}"
                )
            if made.dtype == vector.dtype:
                return made
            _check_real("weights", made)
            return array_namespace(vector).astype(made, vector.dtype)
        xp = array_namespace(vector)
        if 0 in vector.shape:
            return xp.zeros_like(vector)
        flat = xp.reshape(vector, (-1, vector.shape[-1]))
        return xp.reshape(xp.stack([self.product(flat[i, ...]) for i in range(flat.shape[0])]), vector.shape)


def ring_convolution(kernel: Array) -> Operator:
    """The product with a circulant matrix, in O(n log n).

    Parameters
    ----------
    kernel : array (n,)
        The first column: ``kernel[k]`` is the weight from a neuron to the one k
        places further on the ring.

    Returns
    -------
    Operator

    Raises
    ------
    TypeError, ValueError
        If ``kernel`` is no array (n,).

    Examples
    --------
    >>> import numpy as np
    >>> shift = ring_convolution(np.array([0.0, 1.0, 0.0]))
    >>> shift.product(np.array([1.0, 2.0, 3.0])).round(12)
    array([3., 1., 2.])
    """
    xp = checks.namespace({"kernel": kernel})
    if kernel.ndim != 1 or kernel.shape[0] == 0:
        raise ValueError(f"kernel must have shape (n,), got shape {tuple(kernel.shape)}")
    n = int(kernel.shape[0])
    return Operator(_ring_product, (xp.fft.rfft(kernel),), shape=(n, n), batched=True)


def _ring_product(transform: Array, vector: Array) -> Array:
    xp = array_namespace(vector)
    return xp.fft.irfft(xp.fft.rfft(vector) * transform, n=vector.shape[-1])


def _check_real(name: str, product: Array) -> None:
    """TypeError where a product is complex, which a cast would hide."""
    if "complex" in str(product.dtype):
        raise TypeError(f"{name} must map real vectors to real ones, got {product.dtype}")


def is_operator(value: Any) -> bool:
    """Whether ``value`` stands for a matrix without being a dense array: sparse, a function, an Operator."""
    if isinstance(value, Operator):
        return True
    if is_array_api_obj(value):
        layout = getattr(value, "layout", None)  # of torch: its sparse tensors are tensors
        return layout is not None and "sparse" in str(layout)
    return callable(value) or _is_sparse(value)


def _is_sparse(value: Any) -> bool:
    """Whether ``value`` is a sparse matrix of scipy, cupy (nnz) or jax (nse)."""
    return hasattr(value, "shape") and hasattr(value, "__matmul__") and (hasattr(value, "nnz") or hasattr(value, "nse"))


def _stored(matrix: Any) -> Array | None:
    """The stored values of a sparse matrix of scipy, cupy, jax or torch; None for what has none to see."""
    if isinstance(matrix, Operator):
        return None
    # of scipy: lists, a dictionary, diagonals with what lies outside of the matrix, entries to be added up
    if getattr(matrix, "format", None) in ("lil", "dok", "dia", "coo"):
        matrix = matrix.tocsr()
    values = matrix.coalesce().values() if str(getattr(matrix, "layout", "")) == "torch.sparse_coo" else None
    if values is None and hasattr(matrix, "values") and is_array_api_obj(matrix):
        try:
            values = matrix.values()
        except RuntimeError:  # within the transforms of torch.func, which know no rows or columns of sparse matrices
            return None
    if values is None:
        values = getattr(matrix, "data", None)
    return values if is_array_api_obj(values) else None


def check_operator(name: str, matrix: Any, n: int | None, *, values: bool) -> None:
    """TypeError or ValueError, by name, for operators of a wrong shape, or with stored values below 0."""
    shape = getattr(matrix, "shape", None)
    if shape is not None and (len(shape) != 2 or shape[0] != shape[1] or (n is not None and shape[1] != n)):
        wanted = "(n, n)" if n is None else f"({n}, {n})"
        raise ValueError(f"{name} must have shape {wanted}, got shape {tuple(shape)}")
    stored = _stored(matrix)
    if stored is None:
        return
    xp = checks.namespace({name: stored}, half=True)
    checks.values(xp, name, stored, ">= 0" if values else "any")


def operator(xp: Any, matrix: Any, dtype: Any, like: Array) -> Operator:
    """Anything with a product as an Operator for vectors of this library, dtype and device."""
    if isinstance(matrix, Operator):
        return matrix
    if _is_sparse(matrix) or is_array_api_obj(matrix):
        return get_backend(xp).sparse(matrix, like if like.dtype == dtype else xp.astype(like, dtype))
    return Operator(matrix)


def padded_rows(matrix: Any, like: Array) -> Operator:
    """A sparse matrix of scipy for any array library: the values and columns of each row, padded to the longest."""
    xp = array_namespace(like)
    rows = matrix.tocsr()
    n, counts = rows.shape[0], np.diff(rows.indptr)
    width = max(int(counts.max()), 1)
    at = np.arange(rows.nnz) - np.repeat(rows.indptr[:-1], counts)
    lines = np.repeat(np.arange(n), counts)
    values, columns = np.zeros((n, width)), np.zeros((n, width), dtype=np.int64)
    values[lines, at], columns[lines, at] = rows.data, rows.indices
    where = device(like)
    return Operator(
        _padded_product,
        (xp.asarray(values, dtype=like.dtype, device=where), xp.asarray(columns.reshape(-1), device=where)),
        shape=tuple(rows.shape),
        batched=True,
    )


def _padded_product(values: Array, columns: Array, vector: Array) -> Array:
    xp = array_namespace(vector)
    gathered = xp.take(vector, columns, axis=-1)
    return xp.sum(values * xp.reshape(gathered, (*vector.shape[:-1], *values.shape)), axis=-1)


def matvec(xp: Any, matrix: Any, vector: Array) -> Array:
    """``matrix @ vector`` for (..., n, m) and (..., m), batch axes broadcast.

    A matrix without batch axes multiplies all vectors in one matrix product.
    """
    if isinstance(matrix, Operator):
        return matrix.product(vector)
    backend = get_backend(xp)
    product = getattr(backend, "product", None)  # of a backend that records loops
    result = None if product is None else product(matrix, vector)
    if result is not None:
        return result
    times = getattr(backend, "matmul", xp.matmul)  # as linalg.matmul, which would look the backend up again
    if matrix.ndim == 2:
        if vector.ndim == 1 and matrix.shape[0] <= _SMALL and backend.traces_loops:
            return xp.sum(matrix * vector, axis=-1)  # fuses with its neighbours, where a call of BLAS would not
        return times(vector, matrix.T)
    return times(matrix, vector[..., None])[..., 0]


def dense(xp: Any, matrix: Any, like: Array, name: str = "w") -> Array:
    """The matrix itself; an Operator is multiplied with the n unit vectors.

    Raises
    ------
    ValueError
        For an Operator too large to be made dense.
    """
    if not isinstance(matrix, Operator):
        return matrix
    n = int(like.shape[-1])
    if n > _MOST_DENSE:
        raise ValueError(
            f"{name} of {n} neurons is an operator, and this function needs the matrix, which it makes for at most "
            f"{_MOST_DENSE} neurons; steady_state, simulate, certify, jacobian_product and leading_eigenvalues do "
            "without"
        )
    columns = matrix.product(xp.eye(n, dtype=like.dtype, device=device(like)))
    return xp.matrix_transpose(columns)


def without_operators(xp: Any, circuit: Any, like: Array) -> Any:
    """The circuit with dense weights."""
    return circuit._replace(w_r=dense(xp, circuit.w_r, like, "w_r"), w=dense(xp, circuit.w, like, "w"))


def check_product(xp: Any, name: str, matrix: Operator, one: Array, *, values: bool) -> None:
    """ValueError where the product with ones, shaped like ``one`` (n,), is no vector (n,), or with values negative.

    That is all that can be asked of a function; and while tracing, the shape.
    """
    sums = matrix.function(*matrix.arrays, xp.ones_like(one))
    if tuple(getattr(sums, "shape", ())) != tuple(one.shape):
        raise ValueError(
            f"{name} must map a vector {tuple(one.shape)} to the same shape, got "
            + (f"shape {tuple(sums.shape)}" if hasattr(sums, "shape") else checks.describe(sums))
        )
    _check_real(name, sums)
    backend = get_backend(xp)
    if not values or not backend.is_concrete(sums):
        return
    found = to_numpy(backend.stop_gradient(sums))
    if not (found >= -1e-6 * np.abs(found).max()).all():
        raise ValueError(f"{name} must be non-negative, but its product with ones is not")
