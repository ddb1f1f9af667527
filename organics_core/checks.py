"""Validation at the boundary: every public function checks once, here, and passes ``xp`` inward.

Shapes, dtypes, libraries and devices are known while tracing, so they are
always checked. Values are checked only where the backend can see them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

from array_api_compat import array_namespace, device, is_array_api_obj, is_jax_array
from numpy import bool_
from numpy.ma import MaskedArray

from .backend import Array, get_backend, tree_leaves
from .linalg import broadcast_shapes


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


BOUNDS = ("any", ">= 0", "> 0")
"""What the values of an argument may be asked to be."""


def one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """ValueError unless ``value`` is one of the strings ``allowed``."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(map(repr, allowed))}")


def flag(name: str, value: object) -> bool:
    """``value``, or TypeError unless it is True or False: a string that says "false" counts as true elsewhere."""
    if not isinstance(value, (bool, bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def describe(value: object) -> str:
    shape = getattr(value, "shape", None)
    kind = type(value).__module__.split(".")[0] + "." + type(value).__name__
    if type(value).__module__ == "builtins":
        kind = type(value).__name__
    return kind if shape is None else f"{kind} of shape {tuple(shape)}"


def remedy(name: str, value: object) -> str:
    """What makes an array of a list, to be said behind its refusal."""
    return f"; give np.asarray({name}, dtype=float) or the like" if type(value) in (list, tuple) else ""


def namespace(
    fields: dict[str, Any], *, numbers: Iterable[str] = (), optional: Iterable[str] = (), half: bool = False
) -> Any:
    """The one array namespace behind ``fields`` (name -> value), or a TypeError naming the culprit.

    ``numbers`` are the fields for which a Python number will do, ``optional``
    those that may be ``None``. ``half`` allows 16 bits, which linear algebra does not; numpy's longdouble it does
    not either, and no other library has it.
    """
    numbers, optional = frozenset(numbers), frozenset(optional)
    first: str | None = None
    xp: Any = None
    kind: Any = None
    dtype: Any = None
    for name, value in fields.items():
        if value is None and name in optional:
            continue
        if is_number(value):
            if name in numbers:
                continue
            raise TypeError(f"{name} must be an array, got the number {value!r}")
        if type(value) is kind and value.dtype == dtype:  # as one that has passed
            continue
        if not is_array_api_obj(value):
            wanted = "a number or an array" if name in numbers else "an array"
            raise TypeError(
                f"{name} must be {wanted} of numpy, torch, jax, cupy or another array-API library, "
                f"got {describe(value)}{remedy(name, value)}"
            )
        if isinstance(value, MaskedArray):
            raise TypeError(
                f"{name} is a masked array, whose mask would be ignored; give {name}.filled(...) or {name}.data"
            )
        this = array_namespace(value)
        if xp is None:
            xp, first = this, name
        elif this is not xp:
            raise TypeError(
                f"all arrays must come from one library, but {first} is {describe(fields[str(first)])} "
                f"and {name} is {describe(value)}"
            )
        if not xp.isdtype(value.dtype, "real floating"):
            raise TypeError(f"{name} must have a real floating dtype, got {value.dtype}; convert it first")
        text = str(value.dtype)
        if text.endswith(("float96", "float128", "longdouble")) or (not half and "16" in text):
            raise TypeError(f"{name} must be of float32 or float64, got {value.dtype}; convert it first")
        kind, dtype = type(value), value.dtype
    if xp is None:
        raise TypeError(f"at least one of {', '.join(fields)} must be an array")
    _one_device(fields)
    return xp


def _one_device(fields: dict[str, Any]) -> None:
    first: str | None = None
    for name, value in fields.items():
        # jax arrays live on shardings, which jit itself reconciles
        if value is None or is_number(value) or is_jax_array(value):
            continue
        where = device(value)
        if first is None:
            first, there = name, where
        elif where != there:
            raise ValueError(f"all arrays must be on one device, but {first} is on {there} and {name} is on {where}")


def matrix_shape(name: str, value: Array, n: int | None) -> int:
    """Check (..., n, n) and return n."""
    shape = tuple(value.shape)
    if len(shape) < 2 or shape[-1] != shape[-2] or (n is not None and shape[-1] != n):
        want = "(..., n, n)" if n is None else f"(..., {n}, {n})"
        raise ValueError(f"{name} must be square, of shape {want}, got shape {shape}")
    if shape[-1] == 0:
        raise ValueError(f"{name} must have at least one neuron, got shape {shape}")
    return int(shape[-1])


def vector_shape(name: str, value: Array, n: int, *, scalar: bool = False) -> None:
    """Check (..., n), or also a scalar () / (..., 1) where ``scalar``."""
    if is_number(value):
        return
    shape = tuple(value.shape)
    if scalar and (shape == () or shape[-1] == 1):
        return
    if not shape or shape[-1] != n:
        allowed = f"(..., {n})" + (" or a scalar" if scalar else "")
        raise ValueError(f"{name} must have shape {allowed}, got shape {shape}")


def batch_shape(fields: dict[str, tuple[Any, int]]) -> tuple[int, ...]:
    """The common leading axes of ``fields`` (name -> (array, number of core axes))."""
    result: tuple[int, ...] = ()
    owner = ""
    for name, (value, core) in fields.items():
        if value is None or is_number(value):
            continue
        shape = tuple(value.shape)
        leading = shape[: max(len(shape) - core, 0)]
        try:
            merged = broadcast_shapes(result, leading)
        except ValueError:
            raise ValueError(
                f"the batch axes {leading} of {name} (shape {shape}) do not broadcast "
                f"with the batch axes {result} of {owner}"
            ) from None
        if len(leading) >= len(result):
            owner = name
        result = merged
    return result


def values(xp: Any, name: str, value: Array, allowed: str) -> None:
    """ValueError unless every value is finite and ``allowed``: "any", ">= 0" or "> 0".

    Values that cannot be seen (traced) are passed.
    """
    if value is None:
        return
    if is_number(value):
        low = high = _float(value)
        finite = -math.inf < low < math.inf  # math.isfinite of a number that torch.compile traces is no bool
    else:
        backend = get_backend(xp)
        if not backend.is_concrete(value) or 0 in value.shape:
            return
        value = backend.stop_gradient(value)
        low, high = float(xp.min(value)), float(xp.max(value))  # NaN if there is any
        finite = -math.inf < low and high < math.inf
    if not finite:
        raise ValueError(f"{name} must be finite, got NaN or infinity among its values")
    if (allowed == "> 0" and not low > 0) or (allowed == ">= 0" and not low >= 0):
        word = "positive" if allowed == "> 0" else "non-negative"
        raise ValueError(f"{name} must be {word}, got {low:g}" + ("" if low == high else " as its smallest value"))


def seen(xp: Any, what: str, *arguments: Any) -> None:
    """ValueError where values among ``arguments`` cannot be seen, as under jax.jit and vmap."""
    backend = get_backend(xp)
    if not all(backend.is_concrete(leaf) for leaf in tree_leaves(arguments) if is_array_api_obj(leaf)):
        raise ValueError(f"{what} looks at values and cannot be traced; call it outside of jit and vmap")


def _float(value: Any) -> float:
    """A Python number as a float; infinite where an integer is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _number(name: str, value: object) -> float:
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    return _float(value)


def positive_number(name: str, value: object) -> float:
    """``value`` as a positive finite float, or an error that names it."""
    number = _number(name, value)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{name} must be positive and finite, got {number:g}")
    return number


def not_negative(name: str, value: object) -> float:
    """``value`` as a finite float of at least 0, or an error that names it."""
    number = _number(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {number:g}")
    return number


def finite_number(name: str, value: object) -> float:
    """``value`` as a finite float, or an error that names it."""
    number = _number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number:g}")
    return number


def positive_integer(name: str, value: object) -> int:
    """``value`` as an int of at least 1, or an error that names it."""
    number = _integer(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def _integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:  # arrays have __index__, and most of them refuse
        raise TypeError(f"{name} must be an integer, got {describe(value)}") from None


def seed(value: object) -> int:
    """``value`` as a seed, an integer of at least 0, or an error that names it."""
    number = _integer("seed", value)
    if number < 0:
        raise ValueError(f"seed must not be negative, got {number}")
    return number


def classes(name: str, least: int, largest: int, count: int) -> None:
    """ValueError unless classes from ``least`` to ``largest`` are numbers of ``count`` outputs."""
    if least < 0 or largest >= count:
        wrong = least if least < 0 else largest
        raise ValueError(
            f"{name} must hold classes from 0 to {count - 1}, of a model with {count} outputs, got {wrong}"
        )
