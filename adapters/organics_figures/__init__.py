"""The figures: ``organics figures``. Each is a function that computes its numbers, and one that draws them.

>>> from organics_figures import FIGURES
>>> sorted(FIGURES)[:2]
['convergence', 'energy']
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import draw, numbers

__all__ = ["FIGURES", "Entry"]


class Entry(NamedTuple):
    """One figure.

    Attributes
    ----------
    numbers : callable
        ``numbers(seed=0, quick=False)`` returns a dict of arrays.
    draw : callable
        From that dict to a matplotlib Figure.
    caption : str
        What it shows.
    trains : bool
        Whether it needs jax or torch.
    """

    numbers: Callable[..., dict[str, Any]]
    draw: Callable[[dict[str, Any]], Any]
    caption: str
    trains: bool = False


FIGURES: dict[str, Entry] = {
    "phase-portraits": Entry(
        numbers.phase_portraits,
        draw.phase_portraits,
        "One neuron: flow, nullclines, fixed points and basins, for the main and the rectified circuit.",
    ),
    "convergence": Entry(
        numbers.convergence,
        draw.convergence,
        "How fast the fixed point is found: iteration and Newton over 100 random circuits of 10 + 10 units.",
    ),
    "iterates": Entry(
        numbers.iterates, draw.iterates, "One random circuit: its recurrent weights, and the fixed-point iteration."
    ),
    "random-stability": Entry(
        numbers.random_stability,
        draw.random_stability,
        "Random circuits with a spectral norm of W_r of 1: stable for inputs of order one, often not for strong drive.",
    ),
    "energy": Entry(
        numbers.energy,
        draw.energy,
        "The Lyapunov function along trajectories: it falls without exception near the fixed point.",
    ),
    "noise-spectra": Entry(
        numbers.noise_spectra,
        draw.noise_spectra,
        "Power spectra of noisy circuits at rising contrast; the V1 circuit resonates in the gamma band.",
    ),
    "phase-diagram": Entry(
        numbers.phase_diagram,
        draw.phase_diagram,
        "Recurrence W_r = I + δ GOE/√n: stable fixed points, limit cycles, divergence, and distance to normalization.",
    ),
    "training": Entry(
        numbers.train_recurrent,
        draw.training,
        "A recurrent classifier of digits while it learns, without gradient clipping.",
        trains=True,
    ),
    "trajectories": Entry(
        numbers.train_recurrent,
        draw.trajectories,
        "Membrane potentials of the trained recurrent classifier, in the plane of their first two principal axes.",
        trains=True,
    ),
    "static-stability": Entry(
        numbers.train_static,
        draw.static_stability,
        "A trained static network: largest real eigenvalue part at every test image, per layer. All negative.",
        trains=True,
    ),
}
