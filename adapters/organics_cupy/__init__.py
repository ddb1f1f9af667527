"""ORGaNICs on the GPU: the core's calls with cupy arrays, and simulations without overhead per step.

Circuits, steady states and certificates are the core's own functions: give
them cupy arrays. What this package adds is :func:`simulate` and
:func:`simulate_sde`, which run a batch of small circuits in one launch, and the
ways in and out: :func:`to_device`, :func:`to_host`, and the exchange with torch
and jax without a copy.

>>> import numpy as np, organics_cupy as og  # doctest: +SKIP
>>> circuit = og.Circuit(None, np.full((8, 8), 1 / 8), 0.5, 0.5, 0.1, 0.002, 0.002)  # doctest: +SKIP
>>> circuit, z, times = og.to_device((circuit, np.ones((1000, 8)), np.linspace(0, 0.1, 11)))  # doctest: +SKIP
>>> run = og.to_host(og.simulate(circuit, z, times, method="rk4", substeps=100))  # doctest: +SKIP
"""

try:
    import cupy as _cupy  # noqa: F401
except ImportError as error:
    raise ImportError('organics_cupy needs cupy: run pip install "organics-core[cupy]"') from error

from organics_core import (
    Circuit,
    State,
    certify,
    energy,
    jacobian,
    oscillator_form,
    spectral_abscissa,
    spectrum,
    steady_state,
    vector_field,
)
from organics_core.integration import wiener_increments

from .exchange import from_jax, from_torch, to_device, to_host, to_jax, to_torch
from .simulation import simulate, simulate_sde

__all__ = [
    "Circuit",
    "State",
    "certify",
    "energy",
    "from_jax",
    "from_torch",
    "jacobian",
    "oscillator_form",
    "simulate",
    "simulate_sde",
    "spectral_abscissa",
    "spectrum",
    "steady_state",
    "to_device",
    "to_host",
    "to_jax",
    "to_torch",
    "vector_field",
    "wiener_increments",
]
