"""The native sequence for XLA: :mod:`organics_backends.native` compiles it on first use.

Nothing here is needed: without a compiler, :func:`load` returns None and the
chunked scan is taken.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import jax

from organics_backends.native import ARGUMENTS, Library, source

VARIABLE = "ORGANICS_JAX_FUSED"


def _sources() -> dict[str, bytes]:
    headers = Path(jax.ffi.include_dir(), "xla", "ffi", "api").glob("*.h")
    return {
        "native.cpp": source("organics_jax", "native.cpp"),
        "sequence.cpp": source("organics_backends", "sequence.cpp"),
        **{path.name: path.read_bytes() for path in sorted(headers)},  # another jaxlib's are other code
    }


def _open(path: Path) -> Any:
    library = ctypes.CDLL(str(path))
    if library.organics_arguments() != len(ARGUMENTS):
        raise RuntimeError("the native library does not fit this version")
    for name in ("forward", "backward"):
        handler = jax.ffi.pycapsule(getattr(library, f"organics_xla_{name}"))
        jax.ffi.register_ffi_target(f"organics_{name}", handler, platform="cpu")
    return library


library = Library("sequence-xla", VARIABLE, _sources, _open, lambda: str(jax.ffi.include_dir()))
load, status = library.load, library.status
