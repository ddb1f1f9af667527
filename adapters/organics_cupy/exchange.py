"""Arrays in and out: from the host and back, and to torch and jax without a copy (DLPack)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from organics_core import checks
from organics_core.backend import Tree, to_numpy, tree_leaves, tree_map


def _cupy() -> Any:
    import cupy

    return cupy


def to_device(tree: Tree, *, dtype: Any = None, module: Any = None) -> Tree:
    """Numpy arrays as arrays of the GPU.

    Parameters
    ----------
    tree : array or (named) tuple of arrays
        Circuits, states and the like; Python numbers and None stay as they are. Sparse matrices of scipy
        become csr_matrix of cupyx.
    dtype : numpy dtype, optional
        For the floating arrays among them; their own by default.
    module : module, optional
        Where the arrays are made: cupy by default.

    Returns
    -------
    The same tree of cupy arrays.

    Raises
    ------
    TypeError
        For what is no array: functions and :class:`organics_core.Operator`, whose arrays are to be moved before.
    """
    module = _cupy() if module is None else module

    def move(leaf: Any) -> Any:
        if isinstance(leaf, (bool, int, float)):
            return leaf
        if type(leaf).__module__.startswith("scipy.sparse"):
            rows = import_module(f"{module.__name__}x.scipy.sparse").csr_matrix(leaf)
            return rows if dtype is None else rows.astype(dtype)
        given, leaf = leaf, np.asarray(leaf)
        if leaf.dtype.kind not in "fiub":
            raise TypeError(f"tree must hold arrays of numbers, got {checks.describe(given)}; move what is in it first")
        return module.asarray(leaf if dtype is None or leaf.dtype.kind != "f" else leaf.astype(dtype))

    return tree_map(move, tree)


def to_host(tree: Tree) -> Tree:
    """Arrays of the GPU as numpy arrays: a state, a circuit, or a whole trajectory.

    Parameters
    ----------
    tree : array or (named) tuple of arrays

    Returns
    -------
    The same tree of numpy arrays.
    """

    def move(leaf: Any) -> Any:
        if type(leaf).__module__.startswith("cupyx."):  # sparse: a matrix of scipy
            return leaf.get()
        return to_numpy(leaf) if hasattr(leaf, "shape") else leaf

    return tree_map(move, tree)


def _exchange(tree: Tree, module: Any) -> Tree:
    def share(leaf: Any) -> Any:
        if not hasattr(leaf, "__dlpack__"):
            return leaf
        # torch gives no tensor away that autograd still watches
        return module.from_dlpack(leaf.detach() if hasattr(leaf, "detach") else leaf)

    return tree_map(share, tree)


def from_torch(tree: Tree, *, module: Any = None) -> Tree:
    """Tensors of torch as cupy arrays that share their memory; gradients are left behind.

    Parameters
    ----------
    tree : tensor or (named) tuple of tensors
        On the GPU.
    module : module, optional
        The library that takes them: cupy by default.

    Returns
    -------
    array or (named) tuple of arrays
    """
    return _exchange(tree, _cupy() if module is None else module)


def from_jax(tree: Tree, *, module: Any = None) -> Tree:
    """Arrays of jax as cupy arrays that share their memory; jax takes its arrays to be constant: do not write.

    Parameters
    ----------
    tree : array or (named) tuple of arrays
        On the GPU.
    module : module, optional
        The library that takes them: cupy by default.

    Returns
    -------
    array or (named) tuple of arrays
    """
    return _exchange(tree, _cupy() if module is None else module)


def to_torch(tree: Tree) -> Tree:
    """Cupy arrays as tensors of torch that share their memory.

    Parameters
    ----------
    tree : array or (named) tuple of arrays

    Returns
    -------
    tensor or (named) tuple of tensors
    """
    import torch

    return _exchange(tree, torch)


def to_jax(tree: Tree) -> Tree:
    """Cupy arrays as arrays of jax that share their memory; leave them unchanged afterwards.

    Parameters
    ----------
    tree : array or (named) tuple of arrays

    Returns
    -------
    array or (named) tuple of arrays

    Raises
    ------
    TypeError
        For a dtype that jax would narrow in a copy of its own: 64 bits without ``jax_enable_x64``.
    """
    import jax

    if not jax.config.jax_enable_x64:
        for leaf in tree_leaves(tree):
            if str(getattr(leaf, "dtype", "")) in ("float64", "complex128", "int64", "uint64"):
                raise TypeError(
                    f"tree holds an array of {leaf.dtype}, which jax would narrow in a copy of its own; set "
                    "jax_enable_x64, or convert it first"
                )
    return _exchange(tree, jax.numpy)
