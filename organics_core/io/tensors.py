"""Arrays by name, and texts by name, in a safetensors file with a checksum; the same content is the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import write_atomically

Arrays = dict[str, np.ndarray[Any, Any]]
CHECKSUM = "checksum"


def write_tensors(path: str | os.PathLike[str], tensors: Arrays, metadata: dict[str, str]) -> None:
    """Write a file at once.

    Parameters
    ----------
    path : path
    tensors : dict of arrays
    metadata : dict of str

    Raises
    ------
    ImportError
        Without safetensors.
    """
    # safetensors wants contiguous arrays; ascontiguousarray alone would turn () into (1,)
    whole = {name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in tensors.items()}
    content = _safetensors().numpy.save(whole, metadata={**metadata, CHECKSUM: _checksum(whole, metadata)})
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])  # whose texts come in another order in every process
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    parts = (len(text).to_bytes(8, "little"), text, content[8 + size :])
    write_atomically(Path(path), lambda file: file.writelines(parts))


def read_tensors(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, str]]:
    """What :func:`write_tensors` wrote, or any other safetensors file; those have no checksum to be compared.

    Parameters
    ----------
    path : path

    Returns
    -------
    tensors : dict of arrays
    metadata : dict of str
        Without the checksum.

    Raises
    ------
    ValueError
        Naming the file, where it is none, or where it is damaged.
    ImportError
        Without safetensors.
    """
    library = _safetensors()
    try:
        with library.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (library.SafetensorError, TypeError, AttributeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"{path} is not a readable safetensors file: {reason}") from None
    wanted = metadata.pop(CHECKSUM, None)
    if wanted is not None and wanted != _checksum(tensors, metadata):
        raise ValueError(f"{path} is damaged: its content does not have the checksum that it had when it was written")
    return tensors, metadata


def _checksum(tensors: Arrays, metadata: dict[str, str]) -> str:
    found = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, value in sorted(tensors.items()):
        found.update(json.dumps([name, str(value.dtype), value.shape]).encode())
        found.update(value.tobytes())
    return found.hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy  # noqa: F401 - not loaded by the line above
    except ImportError:
        raise ImportError(
            'checkpoints need safetensors: pip install safetensors (or "organics-core[torch]", "organics-core[jax]")'
        ) from None
    return safetensors
