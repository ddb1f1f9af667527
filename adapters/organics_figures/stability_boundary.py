"""One neuron: where a stable fixed point exists, over recurrent weight, input, pool and sigma.

w_r = w = z = 1, b = b0 = 0.5, sigma = 0.1, tau_y = tau_a = 2 ms, but for the axes and w_r = -2 in c. Searched on a
grid of 80 x 80.
"""

from __future__ import annotations

import numpy as np

import organics_core as oc
from organics_plot import analysis as plot
from organics_plot.styles import MUTED, THEORY, new_figure

from ._shared import Figure, Numbers, line, one_neuron, patch

SECONDS = 3


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Where one neuron has a stable fixed point, over pairs of its parameters."""
    count = 10 if quick else 80  # even, so that w_r = 0, a line of its own, is between two points
    w_r, positive = np.linspace(-4.0, 4.0, count), np.geomspace(0.05, 20.0, count)
    found: Numbers = {}
    for name, circuit, parameters, values in (
        ("input", one_neuron(), ("w_r", "z"), (w_r, positive)),
        ("pool", one_neuron(), ("w_r", "w"), (w_r, positive)),
        ("sigma", one_neuron(w_r=-2.0), ("sigma", "z"), (positive, positive)),
    ):
        boundary = oc.stability_boundary(circuit, np.array([1.0]), parameters, values)
        found |= {f"{name}_{field}": value for field, value in _fields(boundary).items()}
    return found


def _fields(boundary: oc.StabilityBoundary) -> Numbers:
    first, second = boundary.values
    return boundary._asdict() | {"values": np.stack([first, second]), "parameters": np.array(boundary.parameters)}


def draw(n: Numbers) -> Figure:
    """Three maps."""
    figure, axes = new_figure(1, 3, (13.0, 4.3))
    titles = ("Input against recurrence", "Pool against recurrence", "$w_r = -2$: input against sigma")
    for ax, name, title in zip(axes.flat, ("input", "pool", "sigma"), titles, strict=True):
        fields = {field: n[f"{name}_{field}"] for field in oc.StabilityBoundary._fields}
        first, second = (str(parameter) for parameter in fields.pop("parameters"))
        plot.boundary_map(oc.StabilityBoundary((first, second), tuple(fields.pop("values")), **fields), ax=ax)
        ax.set_title(title)
        ax.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
    axes[0, 2].set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
    handles = [
        patch(plot.BASINS[0], "a stable fixed point exists"),
        patch("white", "none is stable", edge=MUTED),
        line(THEORY, "boundary"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
