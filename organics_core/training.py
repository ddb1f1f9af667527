"""Deprecated: ``EpochRecord`` and ``batch_indices`` are in ``organics_train.records``."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("EpochRecord", "batch_indices"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"organics_core.training.{name} has moved; import it from organics_train", DeprecationWarning, stacklevel=2
    )
    return getattr(import_module("organics_train.records"), name)
