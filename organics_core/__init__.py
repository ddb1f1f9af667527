"""ORGaNICs: recurrent cortical circuits that compute divisive normalization, stably.

One framework-neutral core, written once against the Python array API: numpy,
torch, jax, cupy and any other conforming library.
"""

from .backend import Backend, GenericBackend, get_backend, registered_backends
from .cell import (
    CellParameters,
    CellState,
    MaxRates,
    cell_sequence,
    cell_step,
    init_cell,
)
from .circuit import Circuit, State, resting_state
from .dynamics import vector_field
from .integrate import INTEGRATORS, DenseOutput, Tableau, Trajectory, integrate, simulate
from .stability import (
    Certificate,
    OscillatorForm,
    certify,
    energy,
    jacobian,
    oscillator_form,
    spectral_abscissa,
    spectrum,
)
from .steady_state import FixedPoint, SteadyState, fixed_points, steady_state

__version__ = "0.1.0"

__all__ = [
    "INTEGRATORS",
    "Backend",
    "CellParameters",
    "CellState",
    "Certificate",
    "Circuit",
    "DenseOutput",
    "FixedPoint",
    "GenericBackend",
    "MaxRates",
    "OscillatorForm",
    "State",
    "SteadyState",
    "Tableau",
    "Trajectory",
    "cell_sequence",
    "cell_step",
    "certify",
    "energy",
    "fixed_points",
    "get_backend",
    "init_cell",
    "integrate",
    "jacobian",
    "oscillator_form",
    "registered_backends",
    "resting_state",
    "simulate",
    "spectral_abscissa",
    "spectrum",
    "steady_state",
    "vector_field",
]
