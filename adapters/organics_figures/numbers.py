"""The numbers behind the figures: each function computes, draws nothing, and returns a dict of numpy arrays.

Section numbers refer to the equations of Rawat, Heeger & Martiniani (NeurIPS 2024) as the documentation's
theory page has them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

import organics_core as oc

Numbers = dict[str, Any]

PORTRAITS: dict[str, tuple[dict[str, float], str]] = {
    "w_r = 0.5": ({"w_r": 0.5}, "main"),
    "w_r = 2": ({"w_r": 2.0}, "main"),
    "w_r = 2, b0 = sigma = 1": ({"w_r": 2.0, "b0": 1.0, "sigma": 1.0}, "main"),
    "w_r = 2, tau_a = 5 tau_y": ({"w_r": 2.0, "tau_a": 0.010}, "main"),
    "w_r = 0.5, rectified": ({"w_r": 0.5}, "rectified"),
    "w_r = 2, rectified": ({"w_r": 2.0}, "rectified"),
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
    grid = 24 if quick else 60
    y = np.linspace(-2.0, 2.0, grid)
    found: Numbers = {"y": y}
    for index, (changes, variant) in enumerate(PORTRAITS.values()):
        circuit, z = one_neuron(**changes), np.array([1.0])
        points = oc.fixed_points(circuit, z, variant=variant)
        a = np.linspace(1e-4, 2.2 * max(float(p.state.a[0]) for p in points), grid)
        yy, aa = np.meshgrid(y, a)
        state = oc.State(yy[..., None], aa[..., None])
        slope = oc.vector_field(circuit, state, z, variant=variant)
        span = np.array([0.0, 200 * max(float(circuit.tau_y), float(circuit.tau_a))])
        # where trajectories end: the nearest fixed point, or none (-1)
        end = oc.simulate(circuit, z, span, state0=state, variant=variant, rtol=1e-4, atol=1e-6).state.y[-1, ..., 0]
        ends = np.full(end.shape, -1)
        for k, point in enumerate(points):
            ends = np.where(np.abs(end - float(point.state.y[0])) < 0.02, k, ends)
        found |= {
            f"a_{index}": a,
            f"dy_{index}": slope.y[..., 0],
            f"da_{index}": slope.a[..., 0],
            f"basin_{index}": ends,
            f"points_{index}": np.array([[p.state.y[0], p.state.a[0]] for p in points]),
            f"stable_{index}": np.array([bool(p.stable) for p in points]),
            f"abscissa_{index}": np.array([float(p.spectral_abscissa) for p in points]),
        }
    return found


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
    found: Numbers = {}
    for method, steps in (("iteration", 15 if quick else 40), ("newton", 8)):
        runs = [
            oc.steady_state(circuit, z, method=method, tol=1e-300, max_iterations=k).residual
            for k in range(1, steps + 1)
        ]
        found[method] = np.maximum(np.stack(runs), 1e-17)
    return found


def iterates(*, seed: int = 0, quick: bool = False) -> Numbers:
    """The recurrent weights of one circuit, and the modulators over the fixed-point iteration."""
    circuit, z = random_circuits(1, 10, seed)
    circuit, z = oc.Circuit(*(field[0] for field in circuit)), z[0]
    steps = range(1, 25)
    a = [oc.steady_state(circuit, z, method="iteration", tol=1e-300, max_iterations=k).state.a for k in steps]
    return {"w_r": circuit.w_r, "a": np.stack(a), "fixed": oc.steady_state(circuit, z).state.a}


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
    return found


def noise_spectra(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Power spectra of y at rising contrast: the two-population circuit, and the V1 circuit with its gamma peak."""
    contrasts = np.array([0.03, 0.1, 0.3, 1.0])
    frequencies = np.geomspace(1.0, 400.0, 300)
    circuit = oc.Circuit(None, np.ones((1, 1)), 1.0, 1.0, 0.1, 0.004, 0.004)
    v1 = oc.V1Circuit(None, np.ones((1, 1)), 0.5, 0.1, 1.0, 0.001, 0.002, 0.001)
    z = contrasts[:, None]
    main = oc.power_spectrum(circuit, oc.steady_state(circuit, z).state, np.array([1.0, 0.0]), frequencies)
    gamma = oc.v1_power_spectrum(v1, z, (1.0, 0.0, 0.0), frequencies)
    peak, _ = oc.gamma_peak(v1, z)
    return {
        "contrasts": contrasts,
        "frequencies": frequencies,
        "main": main[..., 0, 0].real,
        "v1": gamma[..., 0, 0].real,
        "gamma_peak": peak,
    }


def phase_diagram(*, seed: int = 0, quick: bool = False) -> Numbers:
    """Share of stable fixed points over recurrence strength and input norm, and the breakdown of normalization."""
    from organics_core.sweep import phase_diagram as diagram

    n = 10 if quick else 20
    circuit = oc.Circuit(None, np.full((n, n), 1.0 / n), 0.5, 0.5, 0.1, 0.002, 0.002)
    deltas = np.linspace(0.0, 4.0, 5 if quick else 9)
    norms = np.geomspace(0.1, 10.0, 4 if quick else 7)
    found = diagram(circuit, deltas, norms, 3 if quick else 6, seed=seed)
    return found._asdict()


def train_recurrent(*, seed: int = 0, quick: bool = False) -> Numbers:
    """A recurrent classifier trained on digits: largest real eigenvalue part while training, hidden trajectories."""
    images, labels = digits()
    train, test = slice(0, 1500), slice(1500, None)
    options = {"epochs": 2 if quick else 30, "batch_size": 128, "learning_rate": 0.01}
    rates = oc.MaxRates(y=1.0, a=0.5, b=0.1)
    data = (images[train], labels[train])
    tests = {"x_test": images[test], "y_test": labels[test]}
    if framework() == "jax":
        import jax

        import organics_jax

        model = organics_jax.ORGaNICsClassifier(8, 64, 10, max_rates=rates, key=jax.random.key(seed))
        model, records = organics_jax.fit(model, *data, **tests, **options)
        shown = np.asarray(model.layer(images[test][:200])[0])
    else:
        import torch

        import organics_torch

        model = organics_torch.ORGaNICsClassifier(8, 64, 10, max_rates=rates, seed=seed)
        records = organics_torch.fit(model, *data, **tests, **options)
        with torch.no_grad():
            shown = model.layer(torch.from_numpy(images[test][:200]))[0].numpy()
    fields = ("loss", "test_accuracy", "gradient_norm_max", "spectral_abscissa")
    found: Numbers = {name: np.array([getattr(record, name) for record in records]) for name in fields}
    flat = shown.reshape(-1, shown.shape[-1])
    center = flat.mean(axis=0)
    _, _, axes = np.linalg.svd(flat - center, full_matrices=False)
    return found | {"trajectories": (shown - center) @ axes[:3].T, "labels": labels[test][:200]}


def train_static(*, seed: int = 0, quick: bool = False) -> Numbers:
    """A static two-layer classifier of digits; the largest real eigenvalue part at every test image, per layer."""
    images, labels = digits()
    images = images.reshape(len(images), -1)
    sizes, epochs = (64, 60, 30), 3 if quick else 30
    layers = (_static_jax if framework() == "jax" else _static_torch)(images, labels, sizes, epochs, seed)
    found: Numbers = {}
    x = images[1500:].astype(np.float64)
    for index, (w_zx, w_bx, log_w, beta) in enumerate(layers, start=1):
        drive = x @ w_zx.T
        z = drive / np.linalg.norm(drive, axis=-1, keepdims=True)
        gain, b0 = 1 / (1 + np.exp(-x @ w_bx.T)), 1 / (1 + np.exp(-beta))
        circuit = oc.Circuit(None, np.exp(log_w), gain, b0, 1.0, 1.0, 1.0)
        state = oc.steady_state(circuit, z).state
        found[f"layer_{index}"] = oc.spectral_abscissa(circuit, state)
        x = np.maximum(state.y, 0) ** 2
    return found


def _static_jax(images: Any, labels: Any, sizes: Any, epochs: int, seed: int) -> list[tuple[np.ndarray, ...]]:
    import equinox as eqx
    import jax

    import organics_jax

    keys = jax.random.split(jax.random.key(seed), len(sizes))
    layers = [organics_jax.DivisiveNorm(k, n, key=key) for k, n, key in zip(sizes, sizes[1:], keys, strict=False)]
    readout = eqx.nn.Linear(sizes[-1], 10, key=keys[-1])
    model = eqx.nn.Sequential([*map(eqx.nn.Lambda, layers), eqx.nn.Lambda(jax.vmap(readout))])
    model, _ = organics_jax.fit(model, images[:1500], labels[:1500], epochs=epochs, batch_size=128, abscissa_every=0)
    return [
        tuple(np.asarray(part, np.float64) for part in (m.w_zx, m.w_bx, m.log_w, m.beta))
        for m in (layer.fn for layer in model.layers[:-1])
    ]


def _static_torch(images: Any, labels: Any, sizes: Any, epochs: int, seed: int) -> list[tuple[np.ndarray, ...]]:
    import torch

    import organics_torch

    torch.manual_seed(seed)
    layers = [organics_torch.DivisiveNorm(k, n) for k, n in pairwise(sizes)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], 10))
    organics_torch.fit(model, images[:1500], labels[:1500], epochs=epochs, batch_size=128, abscissa_every=0)
    return [tuple(part.detach().double().numpy() for part in (m.w_zx, m.w_bx, m.log_w, m.beta)) for m in layers]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits in a fixed random order: images (N, 8, 8) in [0, 1], and labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order] / 16).reshape(-1, 8, 8).astype(np.float32), labels[order]


def framework() -> str:
    """jax or torch, whichever is installed; jax first, or an ImportError naming the extras."""
    from importlib.util import find_spec

    for name, needs in (("jax", ("jax", "equinox", "optax")), ("torch", ("torch",))):
        if all(find_spec(module) for module in needs):
            return name
    raise ImportError(
        'this figure trains a small network, which needs jax or torch: pip install "organics-core[jax]" or '
        '"organics-core[torch]"'
    )
