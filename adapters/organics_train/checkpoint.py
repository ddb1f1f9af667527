"""Checkpoints in one safetensors file, arrays and JSON together, replaced in one stroke; no pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]
VERSION = "1"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file such that, whenever the process dies, there is the old one or the new one, whole."""
    for left in path.parent.glob(f"{path.name}.*.part"):  # by a process that was killed while it wrote
        left.unlink(missing_ok=True)
    temporary = path.with_name(path.name + f".{os.getpid()}.part")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_checkpoint(path: Path, arrays: Arrays, record: dict[str, Any]) -> None:
    """Arrays, and a record for JSON, as one safetensors file."""
    from safetensors.numpy import save

    whole = {name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in arrays.items()}
    metadata = {"organics_train": VERSION, "record": json.dumps(record)}
    write_atomically(path, save(whole, metadata=metadata))


def load_checkpoint(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """What :func:`save_checkpoint` wrote.

    Raises
    ------
    ValueError
        Naming the file, where it is none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stream:
            metadata = stream.metadata() or {}
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is no checkpoint: {str(error).rstrip('.')}") from None
    if metadata.get("organics_train") != VERSION:
        raise ValueError(f"{path} is no checkpoint of organics train, or of another version")
    return arrays, json.loads(metadata["record"])
