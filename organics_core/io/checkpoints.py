"""One file format for trained layers, read and written by every framework: safetensors, the core's field names.

The tensors are ``layers.0.w_zx`` ... ``layers.0.sigma`` (the fields of
:class:`organics_core.CellParameters`; no ``w_r`` where it is the identity),
``layers.0.start.y`` ... ``layers.0.start.b1``, and for a linear readout
``readout.weight`` and ``readout.bias``. The header holds ``format``, ``version``
and the settings, each as JSON. Nothing in such a file is ever executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..backend import Array, to_numpy
from ..cell import CELL_VARIANTS, CellParameters, CellState, MaxRates, check_max_rates, validate_cell
from .tensors import read_tensors, write_tensors

FORMAT = "organics-core layers"
VERSION = 1
RECURRENT = ("orthogonal", "identity", "spectral")


class LayerSettings(NamedTuple):
    """What the layers of a checkpoint have in common, of what their outputs hang on; dropout is not kept.

    Attributes
    ----------
    max_rates : MaxRates
    variant : {"rectified_recurrence", "main"}
    learn_rates : bool
    recurrent : {"orthogonal", "identity", "spectral"}
        W_r free, the identity, or kept within spectral norm 1.
    batch_first : bool
        Of the sequence layer.
    """

    max_rates: MaxRates = MaxRates()
    variant: str = "rectified_recurrence"
    learn_rates: bool = True
    recurrent: str = "orthogonal"
    batch_first: bool = False


class Readout(NamedTuple):
    """A linear readout of y: weight (classes, n) and bias (classes,)."""

    weight: Array
    bias: Array


class Layer(NamedTuple):
    """One layer: its parameters, and the state it starts from."""

    parameters: CellParameters
    start: CellState


class Checkpoint(NamedTuple):
    """What a checkpoint file holds, in numpy.

    Attributes
    ----------
    layers : tuple of Layer(parameters, start)
    readout : Readout(weight, bias) or None
    settings : LayerSettings
    """

    layers: tuple[Layer, ...]
    readout: Readout | None
    settings: LayerSettings


def save_checkpoint(
    path: str | os.PathLike[str],
    layers: Iterable[tuple[CellParameters, CellState]],
    readout: tuple[Array, Array] | None = None,
    settings: LayerSettings = LayerSettings(),
) -> None:
    """Write layers to one file, atomically: there is the old file or the new one, never half of it.

    Parameters
    ----------
    path : path
        Its folder is made if need be.
    layers : sequence of (CellParameters, CellState)
        Parameters as the step uses them, and start states (n,), from any
        array library; from the first layer to the last.
    readout : (weight, bias), optional
        Arrays (classes, n) and (classes,).
    settings : LayerSettings

    Raises
    ------
    TypeError, ValueError
        Naming the tensor that is wrong.
    ImportError
        Without safetensors.

    Examples
    --------
    >>> from organics_core import init_cell
    >>> save_checkpoint("/tmp/layer.safetensors", [init_cell(0, 2, 4)])  # doctest: +SKIP
    >>> load_checkpoint("/tmp/layer.safetensors").layers[0].parameters.w_zx.shape  # doctest: +SKIP
    (4, 2)
    """
    settings = _check_settings(settings, "settings")
    whole = _assemble("the checkpoint to save", _tensors(layers, readout), settings)
    tensors = _tensors(whole.layers, whole.readout)
    metadata = {"format": FORMAT, "version": str(VERSION)}
    metadata |= {name: json.dumps(value) for name, value in settings._asdict().items()}
    metadata["max_rates"] = json.dumps(settings.max_rates._asdict())
    write_tensors(path, tensors, metadata)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote, whatever framework it came from.

    Parameters
    ----------
    path : path

    Returns
    -------
    Checkpoint
        In numpy.

    Raises
    ------
    ValueError
        Naming the file, and what is wrong with it: no such file, no
        safetensors file, a damaged one, another format or version, a tensor that is missing,
        unexpected, or of the wrong shape or dtype, a broken setting.
    ImportError
        Without safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint file {path}")
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of ORGaNICs layers: its header lacks format {FORMAT!r}")
    if metadata.get("version") != str(VERSION):
        version = metadata.get("version")
        raise ValueError(f"{path} has version {version!r} of the checkpoint format; this library reads '{VERSION}'")
    return _assemble(str(path), tensors, _read_settings(path, metadata))


def _tensors(
    layers: Iterable[tuple[CellParameters, CellState]], readout: tuple[Array, Array] | None
) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays by their names in the file."""
    found: dict[str, Any] = {}
    for index, layer in enumerate(layers):
        if not isinstance(layer, tuple) or len(layer) != 2:
            raise TypeError(f"layers must be pairs (CellParameters, CellState), got {checks.describe(layer)}")
        parameters, start = layer
        if getattr(parameters, "_fields", None) != CellParameters._fields:
            raise TypeError(f"layers[{index}][0] must be CellParameters, got {checks.describe(parameters)}")
        if not isinstance(start, tuple) or len(start) != 4:
            raise TypeError(f"layers[{index}][1] must be a CellState, got {checks.describe(start)}")
        found |= {f"layers.{index}.{name}": value for name, value in parameters._asdict().items()}
        pairs = zip(CellState._fields, start, strict=True)
        found |= {f"layers.{index}.start.{name}": value for name, value in pairs}
    if readout is not None:
        if not isinstance(readout, tuple) or len(readout) != 2:
            raise TypeError(f"readout must be a pair (weight, bias), got {checks.describe(readout)}")
        found |= {"readout.weight": readout[0], "readout.bias": readout[1]}
    return {name: np.asarray(to_numpy(value)) for name, value in found.items() if value is not None}


def _assemble(source: str, tensors: dict[str, np.ndarray[Any, Any]], settings: LayerSettings) -> Checkpoint:
    """Tensors by name as layers and readout, every shape checked; ValueErrors begin with ``source``."""
    tensors = dict(tensors)

    def take(name: str, shape: tuple[int | None, ...]) -> np.ndarray[Any, Any]:
        if name not in tensors:
            raise ValueError(f"{source} lacks the tensor {name!r}")
        array = tensors.pop(name)
        if array.dtype not in (np.float32, np.float64) or (dtype is not None and array.dtype != dtype):
            wanted = "float32 or float64" if dtype is None else f"{dtype}, as the first tensor"
            raise ValueError(f"{source}: tensor {name!r} must have dtype {wanted}, got {array.dtype}")
        fits = len(array.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits or 0 in array.shape:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{source}: tensor {name!r} must have shape ({wanted}), got {tuple(array.shape)}")
        return array

    dtype: Any = None
    layers: list[Layer] = []
    n: int | None = None
    while not layers or any(name.startswith(f"layers.{len(layers)}.") for name in tensors):
        prefix = f"layers.{len(layers)}."
        w_zx = take(prefix + "w_zx", (n, n))
        dtype = w_zx.dtype
        n, k = w_zx.shape
        fields: dict[str, Any] = {"w_zx": w_zx}
        if settings.recurrent == "identity":
            fields["w_r"] = None
        else:
            fields["w_r"] = take(prefix + "w_r", (n, n))
        for name in CellParameters._fields:
            if name in fields:
                continue
            if name == "sigma" and prefix + name in tensors and tensors[prefix + name].ndim == 1:
                shape: tuple[int, ...] = (n,)
            elif name == "sigma":
                shape = ()
            else:
                shape = (n, k) if name.startswith("w_bx") else (n,) if name.startswith("theta") else (n, n)
            fields[name] = take(prefix + name, shape)
        start = CellState(*(take(f"{prefix}start.{name}", (n,)) for name in CellState._fields))
        layer = Layer(CellParameters(**fields), start)
        validate_cell(layer.parameters, layer.start, np.zeros(k, dtype=dtype))
        layers.append(layer)
    readout = None
    if any(name.startswith("readout.") for name in tensors):
        weight = take("readout.weight", (None, n))
        readout = Readout(weight, take("readout.bias", (weight.shape[0],)))
    if tensors:
        raise ValueError(f"{source} has an unexpected tensor {min(tensors)!r}")
    return Checkpoint(tuple(layers), readout, settings)


def _check_settings(settings: Any, name: str) -> LayerSettings:
    if not isinstance(settings, tuple) or getattr(settings, "_fields", None) != LayerSettings._fields:
        raise TypeError(f"{name} must be LayerSettings, got {checks.describe(settings)}")
    settings = LayerSettings._make(settings)
    checks.one_of("variant", settings.variant, CELL_VARIANTS)
    checks.one_of("recurrent", settings.recurrent, RECURRENT)
    for flag in ("learn_rates", "batch_first"):
        if not isinstance(getattr(settings, flag), bool):
            raise TypeError(f"{flag} must be true or false, got {getattr(settings, flag)!r}")
    return settings._replace(max_rates=check_max_rates(settings.max_rates))


def _read_settings(path: Path, metadata: dict[str, str]) -> LayerSettings:
    values: dict[str, Any] = {}
    for name in LayerSettings._fields:
        if name not in metadata:
            raise ValueError(f"{path} lacks the setting {name!r} in its header")
        try:
            values[name] = json.loads(metadata[name])
        except ValueError:
            raise ValueError(f"{path} has a broken setting {name!r} in its header: {metadata[name]!r}") from None
    rates = values["max_rates"]
    if not isinstance(rates, dict) or set(rates) != set(MaxRates._fields):
        raise ValueError(f"{path} has a broken setting 'max_rates' in its header: {metadata['max_rates']!r}")
    try:
        return _check_settings(LayerSettings(**{**values, "max_rates": MaxRates(**rates)}), "settings")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has a broken setting in its header: {error}") from None
