"""The native sequence for torch: :mod:`organics_backends.native` compiles it on first use.

Nothing here is needed: without a compiler, :func:`load` returns None and the
plain torch implementation is taken.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from organics_backends.native import ARGUMENTS, Library, source

VARIABLE = "ORGANICS_TORCH_FUSED"


def _sources() -> dict[str, bytes]:
    return {"sequence.cpp": source("organics_backends", "sequence.cpp")}


def _open(path: Path) -> Any:
    library = ctypes.CDLL(str(path))
    for suffix in ("f32", "f64"):
        size = getattr(library, f"organics_tape_{suffix}")
        size.argtypes, size.restype = [ctypes.c_void_p], ctypes.c_int64
        for name in ("forward", "backward"):
            function = getattr(library, f"organics_{name}_{suffix}")
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_int
        for name, result in (("open", ctypes.c_void_p), ("step", None), ("close", None)):
            function = getattr(library, f"organics_stream_{name}_{suffix}")
            function.argtypes, function.restype = [ctypes.c_void_p], result
    if library.organics_arguments() != len(ARGUMENTS):
        raise RuntimeError("the native library does not fit this version")
    return library


library = Library("sequence", VARIABLE, _sources, _open)
load, status = library.load, library.status
