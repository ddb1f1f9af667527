"""Checkpoints in one safetensors file, arrays and JSON together, replaced in one stroke; no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from organics_core.io import atomic
from organics_core.io.tensors import Arrays, read_tensors, write_tensors

__all__ = ["Arrays", "load_checkpoint", "remove_parts", "save_checkpoint", "write_atomically"]

VERSION = "1"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file such that, whenever the process dies, there is the old one or the new one, whole."""
    remove_parts(path)
    atomic.write_atomically(path, lambda file: file.write(content))


def remove_parts(path: Path) -> None:
    """What a process left that was killed while it wrote this file."""
    place = path.resolve()
    for left in place.parent.glob(f".{place.name}.*.part"):
        left.unlink(missing_ok=True)


def save_checkpoint(path: Path, arrays: Arrays, record: dict[str, Any]) -> None:
    """Arrays, and a record for JSON, as one safetensors file; the same bytes for the same content."""
    remove_parts(path)
    write_tensors(path, arrays, {"organics_train": VERSION, "record": json.dumps(record)})


def load_checkpoint(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """What :func:`save_checkpoint` wrote.

    Raises
    ------
    ValueError
        Naming the file, where it is none or damaged.
    """
    arrays, metadata = read_tensors(path)
    if metadata.get("organics_train") != VERSION:
        raise ValueError(f"{path} is no checkpoint of organics train, or of another version")
    return arrays, json.loads(metadata["record"])
