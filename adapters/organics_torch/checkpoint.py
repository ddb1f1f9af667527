"""Save and load layers and classifiers in the format of :mod:`organics_core.io.checkpoints`."""

from __future__ import annotations

import os
from typing import Any

import torch

from organics_core.cell import CellParameters, CellState
from organics_core.io.checkpoints import LayerSettings, load_checkpoint, save_checkpoint

from .cell import stored
from .layer import ORGaNICs, ORGaNICsClassifier


def save(path: str | os.PathLike[str], model: ORGaNICs | ORGaNICsClassifier) -> None:
    """Write a layer or a classifier to one file, which every framework reads.

    Parameters
    ----------
    path : path
    model : ORGaNICs or ORGaNICsClassifier

    Raises
    ------
    TypeError
        For another model, or parameters of another dtype than float32 and float64.
    ValueError
        For a bidirectional layer, and one with biases or projections.
    ImportError
        Without safetensors.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from organics_torch import ORGaNICs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder) / "layer.safetensors", ORGaNICs(3, 8, seed=0))
    ...     layer = load(Path(folder) / "layer.safetensors")
    >>> layer.hidden_size
    8
    """
    if not isinstance(model, (ORGaNICs, ORGaNICsClassifier)):
        raise TypeError(f"model must be ORGaNICs or ORGaNICsClassifier, got {type(model).__name__}")
    layer = model if isinstance(model, ORGaNICs) else model.layer
    first = layer.cells[0]
    if first.log_w.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"model has {first.log_w.dtype} and files hold float32 or float64: save model.float(), which rounds nothing"
        )
    if layer.bidirectional or layer.bias or layer.proj_size:
        raise ValueError(
            "files hold layers of one direction, without biases and projections: keep this model's state_dict with "
            "torch.save"
        )
    settings = LayerSettings(first.max_rates, first.variant, first.learn_rates, first.recurrent, layer.batch_first)
    readout = None if isinstance(model, ORGaNICs) else (model.readout.weight.detach(), model.readout.bias.detach())
    with torch.no_grad():
        layers = [(_detached(cell.fields()), _detached(cell.start_state())) for cell in layer.cells]
    save_checkpoint(path, layers, readout, settings)


def load(path: str | os.PathLike[str], *, device: Any = None) -> ORGaNICs | ORGaNICsClassifier:
    """Read a layer, or a classifier where the file has a readout.

    Parameters
    ----------
    path : path
        Of a file that any framework wrote.
    device
        Of the parameters; torch's default if not given.

    Returns
    -------
    ORGaNICs or ORGaNICsClassifier
        In the dtype of the file; without dropout, which files do not hold.

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
    >>> from organics_torch import ORGaNICsClassifier
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder) / "net.safetensors", ORGaNICsClassifier(3, 8, 10, seed=0))
    ...     model = load(Path(folder) / "net.safetensors")
    >>> type(model).__name__
    'ORGaNICsClassifier'
    """
    found = load_checkpoint(path)
    first = found.layers[0].parameters
    n, k = first.w_zx.shape
    options: dict[str, Any] = found.settings._asdict()
    batch_first = options.pop("batch_first")
    options |= {"num_layers": len(found.layers), "seed": 0, "device": device}
    options["dtype"] = torch.from_numpy(first.w_zx).dtype
    model: ORGaNICs | ORGaNICsClassifier
    if found.readout is None:
        layer = model = ORGaNICs(k, n, batch_first=batch_first, **options)
    else:
        model = ORGaNICsClassifier(k, n, found.readout.bias.shape[0], **options)
        layer = model.layer
    with torch.no_grad():
        for cell, (parameters, start) in zip(layer.cells, found.layers, strict=True):
            for name, value in parameters._asdict().items():
                if name == "sigma":
                    cell.sigma = torch.from_numpy(value).to(cell.sigma.device)
                elif value is not None:
                    stored(cell, name).copy_(torch.from_numpy(value))
            for name, value in start._asdict().items():
                getattr(cell, f"start_{name}").copy_(torch.from_numpy(value))
        if found.readout is not None:
            model.readout.weight.copy_(torch.from_numpy(found.readout.weight))
            model.readout.bias.copy_(torch.from_numpy(found.readout.bias))
    return model


def _detached(fields: CellParameters | CellState) -> Any:
    return type(fields)._make(None if value is None else value.detach() for value in fields)
