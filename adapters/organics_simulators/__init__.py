"""ORGaNICs circuits as models of other simulation frameworks, one module each, imported when first used.

``__all__`` names them: every public module of this package is one. The extra to
install is called like the module; ``torch`` works with torchdiffeq, torchode,
norse and ncps, of which each has an extra.

The equations stay in :mod:`organics_core.circuit`; only frameworks that
generate code from text (Brian2, PyRates) are handed them as text.

>>> import numpy as np, organics_core as oc
>>> import organics_simulators
>>> circuit = oc.Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
>>> fun, x0, unpack = organics_simulators.scipy.to_ivp(circuit, np.array([1.0, 0.0]))
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

__all__ = sorted(module.name for module in iter_modules(__path__) if module.name[0] != "_")


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
