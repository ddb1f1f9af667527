"""The array libraries that are installed, each in the precisions it is compared in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

Array = Any


class Column(NamedTuple):
    """One array library in one precision.

    Attributes
    ----------
    library : str
        A name of ``LIBRARIES``.
    dtype : str
        "float64" or "float32".
    asarray : callable
        A numpy array to an array of the library; integers keep their kind.
    context : callable
        A context manager under which the library has the precision.
    gradient : callable or None
        ``gradient(f, x)`` for a scalar f of a vector, in reverse mode.
    compile : callable
        Compiles a function, where the library compiles whole functions with their loops.
    """

    library: str
    dtype: str
    asarray: Callable[[Any], Array]
    context: Callable[[], AbstractContextManager[Any]]
    gradient: Callable[[Callable[[Array], Array], Array], Array] | None
    compile: Callable[[Callable[[Any], Any]], Callable[[Any], Any]] = lambda function: function

    @property
    def key(self) -> str:
        """Library and dtype."""
        return f"{self.library} {self.dtype}"

    @property
    def reference(self) -> bool:
        """Whether the others are compared with this one."""
        return self.key == "numpy float64"


def as_kind(value: Any, dtype: str) -> np.ndarray[Any, Any]:
    """``value`` as numpy, floating numbers in ``dtype``."""
    value = np.asarray(value)
    return value.astype(dtype) if value.dtype.kind == "f" else value


def numpy_columns() -> list[Column]:
    """numpy in float64, the reference."""
    return [Column("numpy", "float64", lambda v: as_kind(v, "float64"), nullcontext, None)]


def plain_columns(library: str, module: str, *dtypes: str) -> list[Column]:
    """A library that makes its arrays of numpy's, in some precisions."""
    xp = import_module(module)

    def column(dtype: str) -> Column:
        return Column(library, dtype, lambda v: xp.asarray(as_kind(v, dtype)), nullcontext, None)

    return [column(dtype) for dtype in dtypes]


def torch_columns() -> list[Column]:
    """torch on the CPU, float64 and float32."""
    import torch

    def gradient(f: Callable[[Array], Array], x: Array) -> Array:
        x = x.clone().requires_grad_(True)
        return torch.autograd.grad(f(x), x)[0]

    def column(dtype: str) -> Column:
        return Column(
            "torch", dtype, lambda v: torch.as_tensor(np.array(as_kind(v, dtype)), device="cpu"), nullcontext, gradient
        )

    return [column("float64"), column("float32")]


def jax_columns() -> list[Column]:
    """jax on the CPU, float64 and float32."""
    import jax
    import jax.numpy as jnp

    enable: Any = getattr(jax, "enable_x64", None)
    if not callable(enable):
        from jax.experimental import enable_x64

        enable = enable_x64
    cpu = jax.devices("cpu")[0]

    def context(wide: bool) -> AbstractContextManager[Any]:
        from contextlib import ExitStack

        stack = ExitStack()
        stack.enter_context(enable(wide))
        stack.enter_context(jax.default_device(cpu))
        return stack

    def column(dtype: str) -> Column:
        return Column(
            "jax",
            dtype,
            lambda v: jnp.asarray(as_kind(v, dtype)),
            lambda: context(dtype == "float64"),
            lambda f, x: jax.jit(jax.grad(f))(x),
            jax.jit,
        )

    return [column("float64"), column("float32")]


def cupy_columns() -> list[Column]:
    """cupy on its GPU, float64 and float32; RuntimeError where there is none."""
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(f"installed, but no GPU in sight ({error})") from None
    if count == 0:
        raise RuntimeError("installed, but no GPU in sight")

    def column(dtype: str) -> Column:
        return Column("cupy", dtype, lambda v: cupy.asarray(as_kind(v, dtype)), nullcontext, None)

    return [column("float64"), column("float32")]


MAKERS: dict[str, Callable[[], list[Column]]] = {
    "numpy": numpy_columns,
    "strict": partial(plain_columns, "strict", "array_api_strict", "float64"),
    "torch": torch_columns,
    "jax": jax_columns,
    "cupy": cupy_columns,
}
"""What makes the columns of a library, or raises ImportError or RuntimeError where it is not to be had."""

LIBRARIES = tuple(MAKERS)


def installed(missing: dict[str, str] | None = None) -> tuple[Column, ...]:
    """The libraries found here, numpy float64 (the reference) first.

    Parameters
    ----------
    missing : dict, optional
        Collects the name of every other one and the reason.

    Returns
    -------
    tuple of Column

    Examples
    --------
    >>> missing = {}
    >>> columns = installed(missing)
    >>> columns[0].library, columns[0].dtype
    ('numpy', 'float64')
    """
    missing = {} if missing is None else missing
    columns: list[Column] = []
    for library, make in MAKERS.items():
        try:
            columns += make()
        except ImportError as error:
            missing[library] = f"not installed ({' '.join(str(error).split())})"
        except RuntimeError as error:
            missing[library] = " ".join(str(error).split())
    return tuple(columns)


def require_libraries(wanted: Sequence[str], columns: Sequence[Column], missing: dict[str, str]) -> None:
    """ValueError if one of ``wanted`` is not among ``columns``."""
    here = {column.library for column in columns}
    for name in wanted:
        if name not in here:
            raise ValueError(f"{name} is required but {missing.get(name, 'missing')}")
