"""What all modules share: random numbers from a key, and which leaves are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from organics_core.backend import tree_map


class Part(eqx.Module):
    """A module that knows which of its arrays are trained."""

    def trained(self) -> Any:
        """A tree of this module's structure with True at every trained array."""
        return jax.tree.map(eqx.is_inexact_array, self)


def trainable(model: Any) -> Any:
    """Which leaves of a model are trained.

    Parameters
    ----------
    model : pytree
        A module of this package, or any tree that contains some.

    Returns
    -------
    pytree of bool
        True at floating arrays, except those that the modules of this package
        keep fixed: the start state, sigma, and the rates where
        ``learn_rates=False``. For ``equinox.partition``, so that an optimizer
        with weight decay does not touch what has no gradient; or as it is for
        ``optax.adamw(..., mask=trainable)``, which keeps the decay off that.

    Examples
    --------
    >>> from organics_jax import ORGaNICs
    >>> params, static = eqx.partition(model := ORGaNICs(1, 4, key=jax.random.key(0)), trainable(model))
    >>> params.cells[0].start.y is None
    True
    """
    return jax.tree.map(
        lambda leaf: leaf.trained() if isinstance(leaf, Part) else eqx.is_inexact_array(leaf),
        model,
        is_leaf=lambda leaf: isinstance(leaf, Part),
    )


def float_dtype(dtype: Any) -> Any:
    """A real floating dtype, jax's default one for None; TypeError otherwise."""
    if dtype is None:
        return jnp.zeros(()).dtype
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype must be a real floating dtype, got {dtype!r}") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a real floating dtype, got {dtype}")
    return jnp.zeros((), dtype).dtype  # jax warns where it has no such dtype: float64 without x64


def floating(name: str, x: Any) -> Any:
    """``x`` as a real floating array of jax, or a TypeError that names it."""
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an array, got {_describe(x)}") from None
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must have a real floating dtype, got {x.dtype}; convert it first")
    return x


def from_host(key: Any, make: Callable[[np.random.Generator], Any], dtype: Any) -> Any:
    """``make(generator)``, a nested tuple of numpy arrays, as jax arrays; a pure function of ``key``.

    The initialization is written once, in numpy, in the core, and seeded with
    the integer that the key's words write: ``jax.random.key(s)`` draws what the
    seed s does. While tracing (``jit``, or ``vmap`` over keys for an ensemble)
    it is called back.

    Raises
    ------
    TypeError
        If ``key`` is no random key of jax.
    """
    if isinstance(key, (jax.Array, np.ndarray)) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data(key)
    else:
        data = key
    if not isinstance(data, (jax.Array, np.ndarray)) or data.dtype != jnp.uint32 or data.ndim != 1:
        raise TypeError(f"key must be one key of jax.random.key or PRNGKey, got {_describe(key)}")

    def build(numbers: Any) -> Any:
        words = (int(word) << 32 * place for place, word in enumerate(reversed(np.asarray(numbers))))
        generator = np.random.default_rng(sum(words))
        return tree_map(lambda array: np.asarray(array, dtype=dtype), make(generator))

    if not isinstance(data, jax.core.Tracer):
        return tree_map(jnp.asarray, build(data))
    example = build(np.zeros(data.shape, np.uint32))
    shapes = tree_map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), example)
    return jax.pure_callback(build, shapes, data, vmap_method="sequential")


def _describe(value: object) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"an array of shape {tuple(shape)} and dtype {value.dtype}"  # type: ignore[attr-defined]


def split(key: Any, count: int) -> list[Any]:
    """``jax.random.split`` as a list, or a TypeError naming the key."""
    try:
        return list(jax.random.split(key, count))
    except (TypeError, ValueError):
        raise TypeError(f"key must be one key of jax.random.key or PRNGKey, got {_describe(key)}") from None
