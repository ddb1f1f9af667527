"""The figures: ``organics figures``. Each is a function that computes its numbers, and one that draws them.

>>> from organics_figures import FIGURES
>>> sorted(FIGURES)[:2]
['attention', 'contrast-saturation']
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
        ``numbers(seed=0, quick=False)`` returns a dict of arrays; with
        ``takes`` also ``checkpoint=``, a :class:`networks.Given`.
    draw : callable
        From that dict to a matplotlib Figure.
    caption : str
        What it shows.
    trains : bool
        Whether it trains a small network, with jax or torch.
    takes : str
        The kind of network a checkpoint must hold to be shown instead:
        ``"static"``, ``"recurrent"``, or ``""`` for none.
    """

    numbers: Callable[..., dict[str, Any]]
    draw: Callable[[dict[str, Any]], Any]
    caption: str
    trains: bool = False
    takes: str = ""


def _entry(name: str, caption: str, **options: Any) -> Entry:
    return Entry(getattr(numbers, name), getattr(draw, name), caption, **options)


FIGURES: dict[str, Entry] = {
    name.replace("_", "-"): _entry(name, caption, **options)
    for name, caption, options in (
        (
            "phase_portraits",
            "One neuron: flow, nullclines, fixed points and basins of attraction, main and rectified, for several "
            "recurrent weights and time constants.",
            {},
        ),
        (
            "stability_boundary",
            "One neuron: where a stable fixed point exists, over recurrent weight, input, pool and sigma.",
            {},
        ),
        (
            "convergence",
            "How fast the fixed point is found: iteration and Newton over 100 random circuits of 10 + 10 units.",
            {},
        ),
        ("iterates", "One random circuit: its recurrent weights, and the fixed-point iteration.", {}),
        (
            "random_stability",
            "Random circuits, W_r of spectral norm 1: stable for inputs of order one, often not for strong drive.",
            {},
        ),
        (
            "energy",
            "The Lyapunov function: its levels for one neuron, and its fall along trajectories of ten.",
            {},
        ),
        (
            "noise_spectra",
            "Power spectra of noisy circuits at rising contrast; the V1 circuit resonates in the gamma band, at a "
            "frequency that rises with contrast.",
            {},
        ),
        (
            "phase_diagram",
            "Recurrence W_r = I + δ M/√n, M symmetric or not: stable fixed points, limit cycles, divergence, irregular "
            "activity, and the distance of the fixed points from normalization.",
            {},
        ),
        (
            "training",
            "Two recurrent classifiers of digits while they learn, without gradient clipping: loss, gradients, largest "
            "real eigenvalue part, along the trajectories and at the fixed points, where W_r = I stays stable.",
            {"trains": True},
        ),
        (
            "trajectories",
            "Membrane potentials of the trained recurrent classifier, in the plane of their first two principal axes.",
            {"trains": True, "takes": "recurrent"},
        ),
        (
            "static_stability",
            "A trained static network: largest real eigenvalue part at every test image, by layer, and while learning.",
            {"trains": True, "takes": "static"},
        ),
        (
            "contrast_saturation",
            "Responses saturate with contrast, and the tuning to orientation keeps its width.",
            {},
        ),
        (
            "cross_orientation",
            "An orthogonal mask that hardly drives a neuron suppresses it: its contrast response moves to the right.",
            {},
        ),
        (
            "surround_suppression",
            "A neuron prefers a patch of some size; a larger one suppresses it, the more so the higher the contrast.",
            {},
        ),
        (
            "attention",
            "Attention as a change of the input gain b: contrast gain or response gain, depending on the focus.",
            {},
        ),
        (
            "temporal_pair",
            "Of two equal pulses the second is normalized by the memory of the first; with a longer pause it recovers.",
            {},
        ),
    )
}
