"""The Lyapunov function: its levels for one neuron, and its fall along trajectories of ten."""

from __future__ import annotations

import numpy as np

import organics_core as oc
from organics_plot import analysis as plot
from organics_plot.styles import new_figure

from ._shared import Figure, Numbers, one_neuron, random_circuits, reached

ONE_OSCILLATING = one_neuron(tau_a=0.006)._replace(w_r=None)
"""A neuron with W_r = I whose modulator is slow enough for damped oscillations."""


def numbers(*, seed: int = 0, quick: bool = False) -> Numbers:
    """The Lyapunov function along trajectories from small and large disturbances, W_r = I."""
    rng = np.random.default_rng(seed)
    n, starts = 10, 12
    circuit, z = random_circuits(1, n, seed)
    circuit, z = oc.Circuit(None, *(field[0] for field in circuit[1:])), z[0]
    fixed = oc.steady_state(circuit, z).state
    times = np.linspace(0.0, 0.2, 400)
    found: Numbers = {"times": times}
    for name, size in (("small", 0.05), ("large", 0.8)):
        kick = rng.uniform(-size, size, (2, starts, n))
        start = oc.State(fixed.y * (1 + kick[0]), fixed.a * (1 + kick[1]))
        run = reached(oc.simulate(circuit, z, times, state0=start, rtol=1e-9, atol=1e-12))
        found[name] = oc.energy(circuit, run.state, z)
    # one neuron, from a ring around its fixed point
    circuit, z = ONE_OSCILLATING, np.array([1.0])
    fixed = oc.steady_state(circuit, z).state
    angle = 2 * np.pi * np.arange(6)[:, None] / 6
    start = oc.State(fixed.y * (1 + 0.85 * np.cos(angle)), fixed.a * (1 + 0.85 * np.sin(angle)))
    run = reached(oc.simulate(circuit, z, np.linspace(0.0, 0.1, 600), state0=start, rtol=1e-8, atol=1e-10))
    return found | {"path_y": run.state.y, "path_a": run.state.a}


def draw(n: Numbers) -> Figure:
    """Levels of the energy for one neuron, and energies over time."""
    figure, axes = new_figure(1, 3, (13.5, 4.1))
    run = oc.Trajectory(None, oc.State(n["path_y"], n["path_a"]), None, None, None)
    plot.energy_landscape(ONE_OSCILLATING, np.array([1.0]), run, ax=axes[0, 0])
    axes[0, 0].set_title("One neuron: down the energy")
    for ax, name, title in zip(axes[0, 1:], ("small", "large"), ("by 5 %", "by 80 %"), strict=True):
        plot.energy_lines(n["times"], n[name] / n[name][0], ax=ax)
        ax.set(title=f"Ten neurons, disturbed {title}", ylim=(1e-5, 2))
    axes[0, 2].set_ylabel("")
    return figure
