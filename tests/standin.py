"""organics_cupy where there is no cupy."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any


def organics_cupy() -> Any:
    """The package; where there is no cupy, an empty module stands in while it is imported, and only then."""
    if importlib.util.find_spec("cupy") is not None:
        return importlib.import_module("organics_cupy")
    sys.modules["cupy"] = types.ModuleType("cupy")
    try:
        return importlib.import_module("organics_cupy")
    finally:
        del sys.modules["cupy"]
