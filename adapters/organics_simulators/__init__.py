"""ORGaNICs circuits as models of other simulation frameworks, one module each, imported when first used.

==================  =====================================  ===========================================
module              framework                              extra
==================  =====================================  ===========================================
``scipy``           ``solve_ivp``, ``odeint``              ``organics-core[scipy]``
``diffrax``         diffrax, optimistix                    ``organics-core[diffrax]``
``torch``           torchdiffeq, torchode, norse, ncps     ``organics-core[torchdiffeq]``, and so on
``lightning``       Lightning                              ``organics-core[lightning]``
``brainstate``      brainstate                             ``organics-core[brainstate]``
``brainpy``         BrainPy                                ``organics-core[brainpy]``
``nengo``           Nengo                                  ``organics-core[nengo]``
``brian2``          Brian2                                 ``organics-core[brian2]``
``pyrates``         PyRates                                ``organics-core[pyrates]``
``keras``           Keras 3 on torch or jax                ``organics-core[keras]``
``tvb``             The Virtual Brain                      ``organics-core[tvb]``
==================  =====================================  ===========================================

The equations stay in :mod:`organics_core.circuit`; only frameworks that
generate code from text (Brian2, PyRates) are handed them as text.

>>> import numpy as np, organics_core as oc
>>> import organics_simulators
>>> circuit = oc.Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
>>> fun, x0, unpack = organics_simulators.scipy.to_ivp(circuit, np.array([1.0, 0.0]))
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = [
    "brainpy",
    "brainstate",
    "brian2",
    "diffrax",
    "keras",
    "lightning",
    "nengo",
    "pyrates",
    "scipy",
    "torch",
    "tvb",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
