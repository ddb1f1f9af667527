"""The Lyapunov function V, a local one: its levels for one neuron, and V along trajectories of ten.

V falls along all trajectories of the linearized circuit; of the circuit itself it may rise for a while (hatched), the
less the nearer to the fixed point. W_r = I.
a: w = z = 1, b = b0 = 0.5, sigma = 0.1, tau_y = 2 ms, tau_a = 6 ms, six starts at 85 % from the fixed point.
b, c: random W in [0, 1], |z| = 1, b, b0 and sigma in [0.05, 0.5], time constants of 1 to 10 ms, twelve starts each.
"""

from __future__ import annotations

import numpy as np

import organics_core as oc
from organics_plot import analysis as plot
from organics_plot.styles import COLORS, MUTED, THEORY, new_figure

from ._shared import Figure, Numbers, line, one_neuron, random_circuits, reached

SOURCE = "the paper's"
SECONDS = 3

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
    rising = plot.energy_slope(circuit, run.state, z) > 1e-6 * oc.energy(circuit, start, z)
    return found | {
        "path_y": run.state.y,
        "path_a": run.state.a,
        "path": oc.energy(circuit, run.state, z),
        "rising": rising,
    }


def draw(n: Numbers) -> Figure:
    """Levels of the energy for one neuron, and energies over time."""
    from matplotlib.patches import Patch

    figure, axes = new_figure(1, 3, (14.0, 4.3))
    run = oc.Trajectory(None, oc.State(n["path_y"], n["path_a"]), None, None, None)
    plot.energy_landscape(ONE_OSCILLATING, np.array([1.0]), run, ax=axes[0, 0])
    climbing = np.where(n["rising"], 1.0, np.nan)
    axes[0, 0].plot(n["path_y"][..., 0] * climbing, n["path_a"][..., 0] * climbing, color=COLORS["purple"], lw=2.6)
    rises = n["path"] > np.maximum(1.01 * np.minimum.accumulate(n["path"], axis=0), 1e-8 * n["path"][0])
    axes[0, 0].set_title(f"One neuron: V rises by > 1 % in {rises.any(axis=0).sum()} of {rises.shape[1]}")
    handles = [
        line(THEORY, "V falls", lw=1.4),
        line(COLORS["purple"], "V rises", lw=2.6),
        Patch(facecolor="none", edgecolor=MUTED, hatch="////", lw=0, label="where V rises"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=3)
    for ax, name, title in zip(axes[0, 1:], ("small", "large"), ("by 5 %", "by 80 %"), strict=True):
        plot.energy_lines(n["times"], n[name] / n[name][0], ax=ax)
        rises = (np.diff(n[name], axis=0) > 1e-12 * n[name][0]).any(axis=0).sum()
        ends = "falls in all" if not rises else f"rises in {rises} of {n[name].shape[1]}"
        ax.set(title=f"Ten neurons, {title}: V {ends}", ylim=(1e-5, 2))
    axes[0, 2].set_ylabel("")
    return figure
