"""ORGaNICs: recurrent cortical circuits that compute divisive normalization, stably.

One framework-neutral core, written once against the Python array API: numpy,
torch, jax, cupy and any other conforming library.
"""

from . import models, phenomena
from .analysis.bifurcation import Branch, SpecialPoint, continue_fixed_points
from .analysis.classification import Classification, PhaseDiagram, classify, phase_diagram, random_recurrence
from .analysis.cycles import Cycle, limit_cycle
from .analysis.multistability import (
    FirstOrder,
    FixedPoints,
    StabilityBoundary,
    find_fixed_points,
    first_order_correction,
    stability_boundary,
)
from .backend import Backend, GenericBackend, get_backend, registered_backends
from .cell import (
    CellParameters,
    CellState,
    MaxRates,
    cell_jacobian,
    cell_sequence,
    cell_step,
    init_cell,
    rates_for,
)
from .cell_proof import CellProof, prove_cell
from .circuit import VARIANTS, Circuit, State, Variant, resting_state, vector_field
from .deprecated import (
    LargeCircuit,
    large_certify,
    large_steady_state,
    large_vector_field,
    simulate_v1,
    v1_jacobian,
    v1_power_spectrum,
    v1_steady_state,
    v1_vector_field,
)
from .drive import AmbiguousDriveWarning, PulseTrain, pulse_train
from .equilibria import FixedPoint, SteadyState, fixed_points, steady_state
from .integration import (
    integrate,
    integrate_sde,
    simulate,
    simulate_sde,
    wiener_increments,
)
from .io.trajectories import load_trajectory
from .methods import INTEGRATORS, METHODS, Method, RosenbrockTableau, Tableau
from .model import Model, Parameter
from .models.ssn import SSN, SSNState
from .models.v1 import V1Circuit, V1State, gamma_peak
from .models.wilson_cowan import WilsonCowan, WilsonCowanState
from .noise import (
    ColouredNoise,
    FiringRateNoise,
    MultiplicativeNoise,
    coherence,
    linear_coherence,
    linear_covariance,
    linear_power_spectrum,
    noise_covariance,
    power_spectrum,
    transfer_function,
)
from .parallel import ParallelAdvice, ParallelReport, cell_lyapunov_exponent, parallel_cell_sequence
from .proof import Proof, ProofCheck, check_proof, euler_step_bound, load_proof, prove
from .rational import RationalSpectrum, linear_rational_spectrum, rational_spectrum, symbolic_spectrum
from .spikes import SpikeTrains, spike_trains
from .stability import (
    Certificate,
    CertificateCheck,
    OscillatorForm,
    certify,
    check_certificate,
    energy,
    jacobian,
    jacobian_product,
    leading_eigenvalues,
    oscillator_form,
    spectral_abscissa,
    spectrum,
)
from .static import StaticParameters, init_static, static_rates, static_steady_state
from .trajectory import DenseOutput, Event, Trajectory
from .weights import Operator, ring_convolution

__version__ = "0.2.0"

__all__ = [
    "INTEGRATORS",
    "METHODS",
    "SSN",
    "VARIANTS",
    "AmbiguousDriveWarning",
    "Backend",
    "Branch",
    "CellParameters",
    "CellProof",
    "CellState",
    "Certificate",
    "CertificateCheck",
    "Circuit",
    "Classification",
    "ColouredNoise",
    "Cycle",
    "DenseOutput",
    "Event",
    "FiringRateNoise",
    "FirstOrder",
    "FixedPoint",
    "FixedPoints",
    "GenericBackend",
    "LargeCircuit",
    "MaxRates",
    "Method",
    "Model",
    "MultiplicativeNoise",
    "Operator",
    "OscillatorForm",
    "ParallelAdvice",
    "ParallelReport",
    "Parameter",
    "PhaseDiagram",
    "Proof",
    "ProofCheck",
    "PulseTrain",
    "RationalSpectrum",
    "RosenbrockTableau",
    "SSNState",
    "SpecialPoint",
    "SpikeTrains",
    "StabilityBoundary",
    "State",
    "StaticParameters",
    "SteadyState",
    "Tableau",
    "Trajectory",
    "V1Circuit",
    "V1State",
    "Variant",
    "WilsonCowan",
    "WilsonCowanState",
    "cell_jacobian",
    "cell_lyapunov_exponent",
    "cell_sequence",
    "cell_step",
    "certify",
    "check_certificate",
    "check_proof",
    "classify",
    "coherence",
    "continue_fixed_points",
    "energy",
    "euler_step_bound",
    "find_fixed_points",
    "first_order_correction",
    "fixed_points",
    "gamma_peak",
    "get_backend",
    "init_cell",
    "init_static",
    "integrate",
    "integrate_sde",
    "jacobian",
    "jacobian_product",
    "large_certify",
    "large_steady_state",
    "large_vector_field",
    "leading_eigenvalues",
    "limit_cycle",
    "linear_coherence",
    "linear_covariance",
    "linear_power_spectrum",
    "linear_rational_spectrum",
    "load_proof",
    "load_trajectory",
    "models",
    "noise_covariance",
    "oscillator_form",
    "parallel_cell_sequence",
    "phase_diagram",
    "phenomena",
    "power_spectrum",
    "prove",
    "prove_cell",
    "pulse_train",
    "random_recurrence",
    "rates_for",
    "rational_spectrum",
    "registered_backends",
    "resting_state",
    "ring_convolution",
    "simulate",
    "simulate_sde",
    "simulate_v1",
    "spectral_abscissa",
    "spectrum",
    "spike_trains",
    "stability_boundary",
    "static_rates",
    "static_steady_state",
    "steady_state",
    "symbolic_spectrum",
    "transfer_function",
    "v1_jacobian",
    "v1_power_spectrum",
    "v1_steady_state",
    "v1_vector_field",
    "vector_field",
    "wiener_increments",
]
