"""Pictures of ORGaNICs circuits, in matplotlib.

Functions take the user's own data and an ``Axes``, draw and return the axes,
as seaborn's do; the ``*_figure`` functions compose them. No matplotlib backend
is chosen and no global style is changed: use ``with organics_plot.style():``
for the look of the project.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError("organics_plot needs matplotlib; install it with: pip install 'organics-core[plot]'") from error

from .analysis import (
    Portrait,
    abscissa_histogram,
    bifurcation_diagram,
    boundary_map,
    convergence,
    energies,
    energy_landscape,
    hidden_trajectories,
    iterates,
    phase_map,
    phase_portrait,
    portrait,
    power_spectra,
    residuals,
)
from .circuits import contrast_response, eigenvalues, matrix, responses, trajectory, tuning_curves
from .figures import (
    agreement_figure,
    contrast_response_figure,
    overview_figure,
    responses_figure,
    simulation_figure,
    spectrum_figure,
    training_figure,
)
from .population import ContrastExperiment, Population, contrast_experiment, tuned_population
from .styles import save, style
from .training import training_curve

__all__ = [
    "ContrastExperiment",
    "Population",
    "Portrait",
    "abscissa_histogram",
    "agreement_figure",
    "bifurcation_diagram",
    "boundary_map",
    "contrast_experiment",
    "contrast_response",
    "contrast_response_figure",
    "convergence",
    "eigenvalues",
    "energies",
    "energy_landscape",
    "hidden_trajectories",
    "iterates",
    "matrix",
    "overview_figure",
    "phase_map",
    "phase_portrait",
    "portrait",
    "power_spectra",
    "residuals",
    "responses",
    "responses_figure",
    "save",
    "simulation_figure",
    "spectrum_figure",
    "style",
    "training_curve",
    "training_figure",
    "trajectory",
    "tuned_population",
    "tuning_curves",
]
