"""Circuit families: each in one file, on top of everything the core offers to a model.

Whatever model or state a file of this folder defines is found here under its name, so
that a file is all that a family needs: ``organics_core.models.SSN``.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def _found() -> dict[str, Any]:
    """The public classes that the modules of this folder define."""
    classes: dict[str, Any] = {}
    for module in sorted(entry.name for entry in pkgutil.iter_modules(__path__)):
        made = importlib.import_module(f"{__name__}.{module}")
        for name, value in vars(made).items():
            if isinstance(value, type) and name[0] != "_" and value.__module__ == made.__name__:
                classes[name] = value
    return classes


globals().update(_FOUND := _found())
__all__ = sorted(_FOUND)
