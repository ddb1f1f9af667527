"""The numbers behind the figures: each function computes, draws nothing, and returns a dict of numpy arrays.

Section numbers refer to the equations of Rawat, Heeger & Martiniani (NeurIPS 2024) as the documentation's
theory page has them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import organics_core as oc
from organics_core import phenomena
from organics_plot.analysis import iterate_path, portrait, principal_plane, residuals

from . import networks

Numbers = dict[str, Any]

PORTRAITS: dict[str, tuple[dict[str, float], str]] = {
    "w_r = 0.5": ({"w_r": 0.5}, "main"),
    "w_r = 2": ({"w_r": 2.0}, "main"),
    "w_r = 2, b0 = sigma = 1": ({"w_r": 2.0, "b0": 1.0, "sigma": 1.0}, "main"),
    "w_r = 0.5, rectified": ({"w_r": 0.5}, "rectified"),
    "w_r = 2, rectified": ({"w_r": 2.0}, "rectified"),
    "w_r = 2, b0 = sigma = 1, rectified": ({"w_r": 2.0, "b0": 1.0, "sigma": 1.0}, "rectified"),
    "w_r = 2, tau_a = 5 tau_y": ({"w_r": 2.0, "tau_a": 0.010}, "main"),
    "w_r = 2, tau_y = 20 tau_a": ({"w_r": 2.0, "tau_y": 0.040}, "main"),
    "w_r = -2": ({"w_r": -2.0}, "main"),
}
"""Title: (parameters that differ from b = b0 = 0.5, sigma = 0.1, tau = 2 ms, w = z = 1; variant)."""


STRONG = 5.0
"""Norm of the strong input drive."""


def one_neuron(**changes: float) -> oc.Circuit:
    """The neuron of the phase portraits, with some parameters changed."""
    p = {"w_r": 1.0, "w": 1.0, "b": 0.5, "b0": 0.5, "sigma": 0.1, "tau_y": 0.002, "tau_a": 0.002} | changes
    matrices = {name: np.array([[p.pop(name)]]) for name in ("w_r", "w")}
    return oc.Circuit(**matrices, **p)


def phase_portraits(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Vector field, fixed points and basins of one neuron for every set of :data:`PORTRAITS`."""
    found: Numbers = {}
    for index, (changes, variant) in enumerate(PORTRAITS.values()):
        plane = portrait(one_neuron(**changes), np.array([1.0]), variant=variant, grid=24 if quick else 80)
        found |= {f"{name}_{index}": value for name, value in plane._asdict().items()}
    return found


def stability_boundary(*, seed: int = 0, quick: bool = False) -> Numbers:
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


def random_circuits(
    count: int, n: int, seed: int, *, norm: float = 1.0, gain: float = 0.5
) -> tuple[oc.Circuit, np.ndarray]:
    """A batch of circuits: largest singular value ``norm`` of W_r, unit input; b, b0 and sigma up to ``gain``."""
    rng = np.random.default_rng(seed)
    w_r = rng.standard_normal((count, n, n))
    w_r *= norm / np.linalg.norm(w_r, 2, axis=(-2, -1), keepdims=True)
    z = rng.standard_normal((count, n))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    b, b0, sigma = (rng.uniform(0.1 * gain, gain, (count, n)) for _ in range(3))
    tau_y, tau_a = (rng.uniform(0.001, 0.01, (count, n)) for _ in range(2))
    return oc.Circuit(w_r, rng.uniform(0.0, 1.0, (count, n, n)), b, b0, sigma, tau_y, tau_a), z


def convergence(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Residuals of the fixed-point iteration and of Newton's method, 100 circuits of 10 + 10 units."""
    circuit, z = random_circuits(20 if quick else 100, 10, seed)
    steps = 15 if quick else 30
    return {method: residuals(circuit, z, method=method, iterations=steps) for method in ("iteration", "newton")}


def iterates(*, seed: int = 0, quick: bool = False) -> Numbers:
    """The recurrent weights of one circuit, and the modulators over the fixed-point iteration."""
    circuit, z = random_circuits(1, 10, seed, gain=1.0)
    circuit, z = oc.Circuit(*(field[0] for field in circuit)), z[0]
    fixed = oc.steady_state(circuit, z).state.a
    return {"w_r": circuit.w_r, "a": iterate_path(circuit, z, iterations=20), "fixed": fixed}


def random_stability(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Largest real eigenvalue part of random circuits with ||W_r|| = 1, and of those with strong drive."""
    sizes = (2, 10) if quick else (2, 10, 30)
    found: Numbers = {"sizes": np.array(sizes)}
    for n in sizes:
        circuit, z = random_circuits(300, n, seed + n)
        steady = oc.steady_state(circuit, z)
        found[f"converged_{n}"] = steady.converged
        found[f"abscissa_{n}"] = oc.spectral_abscissa(circuit, steady.state)
    # gains up to one: rarely, with nearly negative W_r of two neurons, the state is unstable after all
    circuit, z = random_circuits(300, 2, seed + 2, gain=1.0)
    found["gains_to_one"] = oc.spectral_abscissa(circuit, oc.steady_state(circuit, z).state)
    # the bound on the inputs matters: drive so strong that sqrt(a) > 1, with an orthogonal W_r
    rng = np.random.default_rng(seed)
    circuit, z = random_circuits(300, 10, seed)
    circuit = circuit._replace(w_r=np.linalg.qr(rng.standard_normal((300, 10, 10)))[0])
    steady = oc.steady_state(circuit, STRONG * z)
    found["strong"] = np.where(steady.converged, oc.spectral_abscissa(circuit, steady.state), np.nan)
    return found


def energy(*, seed: int = 0, quick: bool = False) -> Numbers:
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
        run = oc.simulate(circuit, z, times, state0=start, rtol=1e-9, atol=1e-12)
        found[name] = oc.energy(circuit, run.state, z)
    # one neuron, from a ring around its fixed point
    circuit, z = ONE_OSCILLATING, np.array([1.0])
    fixed = oc.steady_state(circuit, z).state
    angle = 2 * np.pi * np.arange(6)[:, None] / 6
    start = oc.State(fixed.y * (1 + 0.85 * np.cos(angle)), fixed.a * (1 + 0.85 * np.sin(angle)))
    run = oc.simulate(circuit, z, np.linspace(0.0, 0.1, 600), state0=start, rtol=1e-8, atol=1e-10)
    return found | {"path_y": run.state.y, "path_a": run.state.a}


ONE_OSCILLATING = one_neuron(tau_a=0.006)._replace(w_r=None)
"""A neuron with W_r = I whose modulator is slow enough for damped oscillations."""


def noise_spectra(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Power spectra of y at rising contrast: the two-population circuit, and the V1 circuit with its gamma peak."""
    contrasts = np.array([0.03, 0.1, 0.3, 1.0])
    frequencies = np.geomspace(1.0, 400.0, 300)
    circuit = oc.Circuit(None, np.ones((1, 1)), 1.0, 1.0, 0.1, 0.004, 0.004)
    v1 = oc.V1Circuit(None, np.ones((1, 1)), 0.5, 0.1, 1.0, 0.001, 0.002, 0.001)
    z = contrasts[:, None]
    main = oc.power_spectrum(circuit, oc.steady_state(circuit, z).state, (1.0, 0.0), frequencies)
    gamma = oc.v1_power_spectrum(v1, z, (1.0, 0.0, 0.0), frequencies)
    fine = np.geomspace(0.03, 1.0, 12 if quick else 60)
    return {
        "contrasts": contrasts,
        "frequencies": frequencies,
        "main": main[..., 0, 0].real,
        "v1": gamma[..., 0, 0].real,
        "gamma_peak": oc.gamma_peak(v1, z)[0],
        "fine_contrasts": fine,
        "fine_peak": oc.gamma_peak(v1, fine[:, None])[0],
    }


def phase_diagram(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Shares of the kinds over recurrence strength and input norm, and the breakdown of normalization."""
    n = 8 if quick else 20
    circuit = oc.Circuit(None, np.full((n, n), 1.0 / n), 0.5, 0.5, 0.1, 0.002, 0.002)
    found: Numbers = {}
    for ensemble, strongest in (("goe", 4.0), ("gaussian", 3.0)):
        deltas = np.linspace(0.0, strongest, 3 if quick else 9)
        norms = np.geomspace(0.03, 30.0, 3 if quick else 7)
        diagram = oc.phase_diagram(circuit, deltas, norms, 2 if quick else 10, ensemble=ensemble, seed=seed)
        found |= {f"{ensemble}_{name}": value for name, value in diagram._asdict().items()}
    return found


def training(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Two recurrent classifiers of digits while they learn: W_r learned without bounds, and W_r = I."""
    found: Numbers = {}
    for name, recurrent in (("free", "orthogonal"), ("identity", "identity")):
        trained = networks.train_recurrent(seed, quick, recurrent)
        found["task"] = np.array(trained.given.task)
        found |= {f"{field}_{name}": values for field, values in trained.history.items()}
    return found


def trajectories(*, seed: int = 0, quick: bool = False, checkpoint: networks.Given | None = None) -> Numbers:
    """Membrane potentials of a trained recurrent classifier for 200 test sequences, in their principal plane."""
    given = networks.train_recurrent(seed, quick, "orthogonal").given if checkpoint is None else checkpoint
    run = given.recurrent.run(given.x[:200])
    return {
        "task": np.array(given.task),
        "paths": principal_plane(run.y),
        "labels": given.y[:200],
        "along": run.along,
        "settled": run.settled,
    }


def static_stability(*, seed: int = 0, quick: bool = False, checkpoint: networks.Given | None = None) -> Numbers:
    """A trained static classifier: the largest real eigenvalue part at every test image, and while it learned."""
    history: Numbers = {}
    if checkpoint is None:
        trained = networks.train_static(seed, quick)
        checkpoint, history = trained.given, trained.history
    x = checkpoint.x.reshape(len(checkpoint.x), -1)
    layers = {f"layer_{index}": values for index, values in enumerate(checkpoint.static.abscissae(x), start=1)}
    return {"task": np.array(checkpoint.task)} | layers | history


def contrast_saturation(*, seed: int = 0, quick: bool = False) -> Numbers:
    """A hypercolumn under gratings of rising contrast."""
    contrasts, shown = np.geomspace(0.01, 1.0, 60), np.array([0.05, 0.1, 0.2, 0.5, 1.0])
    curves, tuning = (phenomena.contrast_saturation(c, n=144) for c in (contrasts, shown))
    return {
        "contrasts": contrasts,
        "curves": curves.rates,
        "shown": shown,
        "tuning": tuning.rates,
        "preferences": tuning.preferences,
    }


def cross_orientation(*, seed: int = 0, quick: bool = False) -> Numbers:
    """A hypercolumn under a grating and an orthogonal mask."""
    contrasts, masks = np.geomspace(0.01, 1.0, 60), np.array([0.0, 0.1, 0.3, 1.0])
    found = phenomena.cross_orientation_suppression(contrasts, masks, n=144)
    population = phenomena.cross_orientation_suppression(np.array([0.3]), masks, n=144)
    return {
        "contrasts": contrasts,
        "masks": masks,
        "curves": found.rates[..., 0],
        "preferences": population.preferences,
        "population": population.rates[:, 0],
    }


def surround_suppression(*, seed: int = 0, quick: bool = False) -> Numbers:
    """The neuron in the centre of patches of growing diameter."""
    diameters, contrasts = np.linspace(0.2, 20.0, 120), np.array([0.05, 0.1, 0.2, 1.0])
    found = phenomena.surround_suppression(diameters, contrasts)
    middle = found.rates.shape[-1] // 2
    return {"diameters": diameters, "contrasts": contrasts, "rates": found.rates[..., middle]}


def attention(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Attention as a change of the input gain: contrast gain, and response gain."""
    contrasts = np.geomspace(0.005, 1.0, 60)
    found: Numbers = {"contrasts": contrasts}
    for name, stimulus, attended in (("contrast_gain", 1.0, 20.0), ("response_gain", 10.0, 1.0)):
        case = phenomena.attention(contrasts, stimulus=stimulus, attended=attended)
        found |= {f"{name}_attended": case.attended, f"{name}_neutral": case.neutral}
    return found


def temporal_pair(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Two equal pulses, the second normalized by the memory of the first."""
    shown = phenomena.temporal_pair(np.array([0.05, 0.1, 0.2, 0.4]))
    fine = phenomena.temporal_pair(np.linspace(0.0, 0.6, 7 if quick else 40))
    return shown._asdict() | {"fine_gaps": fine.gaps, "ratio": fine.second / fine.first}
