"""Save and load layers and classifiers in the format of :mod:`organics_core.io.checkpoints`."""

from __future__ import annotations

import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from organics_core.io.checkpoints import LayerSettings, load_checkpoint, save_checkpoint

from .recurrent import ORGaNICs, ORGaNICsClassifier


def save(path: str | os.PathLike[str], model: ORGaNICs | ORGaNICsClassifier) -> None:
    """Write a layer or a classifier to one file, which every framework reads.

    Parameters
    ----------
    path : path
    model : ORGaNICs or ORGaNICsClassifier

    Raises
    ------
    TypeError
        For another model.
    ValueError
        For a bidirectional layer.
    ImportError
        Without safetensors.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import jax
    >>> from organics_jax import ORGaNICs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder) / "layer.safetensors", ORGaNICs(3, 8, key=jax.random.key(0)))
    ...     layer = load(Path(folder) / "layer.safetensors")
    >>> type(layer).__name__
    'ORGaNICs'
    """
    if not isinstance(model, (ORGaNICs, ORGaNICsClassifier)):
        raise TypeError(f"model must be ORGaNICs or ORGaNICsClassifier, got {type(model).__name__}")
    layer = model if isinstance(model, ORGaNICs) else model.layer
    if layer.bidirectional:
        raise ValueError("files hold layers of one direction: keep this model with equinox.tree_serialise_leaves")
    readout = None if isinstance(model, ORGaNICs) else (model.readout.weight, model.readout.bias)
    first = layer.cells[0]
    settings = LayerSettings(first.max_rates, first.variant, first.learn_rates, first.recurrent, layer.batch_first)
    save_checkpoint(path, [(cell.effective(), cell.start) for cell in layer.cells], readout, settings)


def load(path: str | os.PathLike[str]) -> ORGaNICs | ORGaNICsClassifier:
    """Read a layer, or a classifier where the file has a readout.

    Parameters
    ----------
    path : path
        Of a file that any framework wrote.

    Returns
    -------
    ORGaNICs or ORGaNICsClassifier
        In the dtype of the file (float32 at most, unless x64 is enabled); without
        dropout, which files do not hold.

    Raises
    ------
    ValueError
        Naming the file and what is wrong with it.
    ImportError
        Without safetensors.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import jax
    >>> from organics_jax import ORGaNICsClassifier
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder) / "net.safetensors", ORGaNICsClassifier(3, 8, 10, key=jax.random.key(0)))
    ...     model = load(Path(folder) / "net.safetensors")
    >>> type(model).__name__
    'ORGaNICsClassifier'
    """
    found = load_checkpoint(path)
    first = found.layers[0].parameters
    n, k = first.w_zx.shape
    options: dict[str, Any] = found.settings._asdict()
    batch_first = options.pop("batch_first")
    options |= {"num_layers": len(found.layers), "key": jax.random.key(0)}
    options["dtype"] = jax.dtypes.canonicalize_dtype(first.w_zx.dtype)
    model: ORGaNICs | ORGaNICsClassifier
    if found.readout is None:
        layer = model = ORGaNICs(k, n, batch_first=batch_first, **options)
    else:
        model = ORGaNICsClassifier(k, n, found.readout.bias.shape[0], **options)
        layer = model.layer
        readout = jax.tree.map(jnp.asarray, tuple(found.readout))
        model = eqx.tree_at(lambda m: (m.readout.weight, m.readout.bias), model, readout)
    cells = tuple(
        eqx.tree_at(lambda c: (c.parameters, c.start), cell, jax.tree.map(jnp.asarray, tuple(read)))
        for cell, read in zip(layer.cells, found.layers, strict=True)
    )
    return eqx.tree_at(lambda m: (m if isinstance(m, ORGaNICs) else m.layer).cells, model, cells)
