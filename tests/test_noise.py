"""Noise at a stable fixed point: covariance, spectra and coherence, against each other and against simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from support import Case, Library, for_cases, numpy_tree, small_circuit

import organics_core as oc


def stable_case(n: int = 3) -> tuple[oc.Circuit, oc.State]:
    """A circuit with its stable fixed point, in numpy."""
    case = small_circuit(n)
    return case.circuit, oc.steady_state(case.circuit, case.z).state


def slope_and_noise(circuit: oc.Circuit, state: oc.State, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return oc.jacobian(circuit, state), factor @ np.swapaxes(factor, -1, -2)


@for_cases(identity=True, sizes=(1, 3))
def test_covariance_solves_the_lyapunov_equation(xp: Library, case: Case) -> None:
    """J P + P J^T + L L^T = 0 to round-off of its terms, over decades of parameters; P is symmetric and >= 0."""
    circuit, z = xp.tree(case.circuit), xp.array(case.z)
    state = oc.steady_state(circuit, z).state
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((2 * case.z.shape[-1], 3))
    p = numpy_tree(oc.noise_covariance(circuit, state, xp.array(factor)))
    jac, intensity = slope_and_noise(numpy_tree(circuit), numpy_tree(state), factor)
    left = jac @ p
    residual = left + np.swapaxes(left, -1, -2) + intensity
    terms = np.abs(jac) @ np.abs(p)
    scale = np.max(terms + np.swapaxes(terms, -1, -2), axis=(-2, -1))
    # the solution of (2n)**2 = 36 equations at most, by elimination: some hundred roundings of its largest terms
    assert np.all(np.max(np.abs(residual), axis=(-2, -1)) <= 2000 * xp.eps * scale)
    assert np.array_equal(p, np.swapaxes(p, -1, -2))
    values = np.linalg.eigvalsh(p)
    assert np.all(values >= -500 * xp.eps * values[..., -1:])


def test_covariance_of_one_oscillator(xp: Library) -> None:
    """For x'' + c x' + k x = s xi the textbook says var x = s**2 / (2 c k), var x' = s**2 / (2 c), no covariance."""
    c, k, s = 3.0, 50.0, 0.7
    p = oc.linear_covariance(xp.array([[0.0, 1.0], [-k, -c]]), xp.array([0.0, s]))
    # the covariance that is 0 is a difference of terms as large as var x'
    xp.assert_close(p, [[s**2 / (2 * c * k), 0.0], [0.0, s**2 / (2 * c)]], rtol=1e-12, atol=1e-11 * s**2 / (2 * c))


def test_forms_of_noise_agree(xp: Library) -> None:
    """A number, amplitudes, a matrix and a tuple per population say the same."""
    circuit, state = (xp.tree(part) for part in stable_case(3))
    amplitudes = np.array([0.1, 0.2, 0.3, 0.5, 0.5, 0.5])
    want = numpy_tree(oc.noise_covariance(circuit, state, xp.array(amplitudes)))
    for noise in (xp.array(np.diag(amplitudes)), (xp.array(amplitudes[:3]), 0.5)):
        xp.assert_close(oc.noise_covariance(circuit, state, noise), want, rtol=1e-12, atol=1e-15)
    same = numpy_tree(oc.noise_covariance(circuit, state, 0.5))
    xp.assert_close(oc.noise_covariance(circuit, state, xp.array(np.full(6, 0.5))), same, rtol=1e-12)


def test_integral_of_the_spectrum_is_the_covariance(xp64: Library) -> None:
    """Over all frequencies, by the trapezoidal rule after f = s tan(theta), which converges geometrically."""
    circuit, state = (xp64.tree(part) for part in stable_case(2))
    count, s = 400, 100.0
    theta = (np.arange(count) + 0.5) * math.pi / count - math.pi / 2
    weights = s / np.cos(theta) ** 2 * math.pi / count
    factor = xp64.array(np.random.default_rng(1).standard_normal((4, 4)))
    spectrum = oc.power_spectrum(circuit, state, factor, xp64.array(s * np.tan(theta)))
    total = np.einsum("f,fij->ij", weights, np.asarray(spectrum))
    want = numpy_tree(oc.noise_covariance(circuit, state, factor))
    assert np.max(np.abs(total.imag)) < 1e-10 * np.max(np.abs(want))
    np.testing.assert_allclose(total.real, want, rtol=1e-9, atol=1e-9 * np.max(np.abs(want)))


def test_spectrum_is_its_definition(xp: Library) -> None:
    """(i omega - J)^-1 L L^T (i omega - J)^-H at each frequency of each member of a batch; Hermitian."""
    case = small_circuit(2)
    z = case.z * np.array([[0.3], [0.6], [1.0]])
    state = oc.steady_state(case.circuit, z).state
    frequencies = np.array([-20.0, 0.0, 40.0])
    spectrum = oc.power_spectrum(xp.tree(case.circuit), xp.tree(state), 0.3, xp.array(frequencies))
    jac = oc.jacobian(case.circuit, state)
    want = np.empty((3, 3, 4, 4), dtype=complex)
    for i in range(3):
        for k, f in enumerate(frequencies):
            response = np.linalg.inv(2j * math.pi * f * np.eye(4) - jac[i]) * 0.3
            want[i, k] = response @ response.conj().T
    xp.assert_close(spectrum, want, rtol=1e-9, atol=1e-10 * np.max(np.abs(want)))


def test_coherence(xp: Library) -> None:
    """Between 0 and 1, 1 on the diagonal; one source makes everything coherent, an unmixed pair nothing."""
    circuit, state = (xp.tree(part) for part in stable_case(3))
    frequencies = xp.array([0.0, 10.0, 100.0])
    found = numpy_tree(oc.coherence(circuit, state, 0.2, frequencies))
    assert np.all(found >= 0)
    assert np.all(found <= 1 + 100 * xp.eps)
    np.testing.assert_allclose(np.diagonal(found, axis1=-2, axis2=-1), 1.0, rtol=100 * xp.eps)
    assert np.max(found - np.eye(6)) < 0.999
    one = oc.coherence(circuit, state, xp.array(np.ones((6, 1))), frequencies)
    xp.assert_close(one, np.ones((3, 6, 6)), rtol=1e-9)
    apart = oc.linear_coherence(xp.array([[-1.0, 0.0], [0.0, -3.0]]), 1.0, frequencies)
    xp.assert_close(apart, np.broadcast_to(np.eye(2), (3, 2, 2)), rtol=1e-12, atol=1e-14)
    silent = numpy_tree(oc.linear_coherence(xp.array([[-1.0, 0.0], [0.0, -3.0]]), xp.array([1.0, 0.0]), frequencies))
    assert np.all(np.isnan(silent[:, 0, 1]))


def test_unstable_states_are_refused(xp: Library) -> None:
    with pytest.raises(ValueError, match=r"jacobian must be stable.*abscissa is 1 per second"):
        oc.linear_covariance(xp.array([[1.0, 0.0], [0.0, -1.0]]), 1.0)


def test_an_unstable_member_is_nan_for_itself(xp: Library) -> None:
    """Not an exception for all; a warning names it."""
    jac, one = xp.array([[[-1.0]], [[2.0]], [[-4.0]]]), xp.array([0.0])
    with pytest.warns(RuntimeWarning, match=r"NaN for member 1 of the batch: jacobian must be stable.*abscissa is 2"):
        covariance = oc.linear_covariance(jac, 1.0)
    xp.assert_close(covariance, np.array([0.5, np.nan, 0.125])[:, None, None], rtol=1e-12)
    with pytest.warns(RuntimeWarning, match="member 1 of the batch"):
        spectrum = oc.linear_power_spectrum(jac, 1.0, one)
    np.testing.assert_allclose(np.asarray(oc.backend.to_numpy(spectrum)).real[:, 0, 0, 0], [1.0, np.nan, 1 / 16])
    circuit, state = stable_case(2)
    saddle = oc.State(np.stack([state.y, 3 * state.y]), np.stack([state.a, 40 * state.a]))
    assert oc.spectral_abscissa(circuit, oc.State(*(part[1] for part in saddle))) > 0
    with pytest.warns(RuntimeWarning, match="member 1 of the batch: state must be stable"):
        found = numpy_tree(oc.noise_covariance(xp.tree(circuit), xp.tree(saddle), 0.1))
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("d", [1.0, 1e-3, 1e-4, 1e-6, 1e-9])
def test_covariance_near_oscillation(xp: Library, d: float) -> None:
    """A rotation at 1e3 /s damped by d: the variance is 1 / 2d, to 1e-9 in float64; where it is lost, it is said."""
    jac = xp.array([[-d, 1e3], [-1e3, -d]])
    if xp.single and d < 1e-5:
        with pytest.raises(ValueError, match="relative accuracy of 7e-05 that float32 must have"):
            oc.linear_covariance(jac, 1.0)
        with pytest.warns(RuntimeWarning, match="member 0 of the batch and 1 more"):
            assert np.isnan(numpy_tree(oc.linear_covariance(xp.namespace.stack([jac, jac]), 1.0))).all()
        return
    found = numpy_tree(oc.linear_covariance(jac, 1.0)) * 2 * float(jac[1, 1] * -1)
    np.testing.assert_allclose(found, np.eye(2), atol=1e-6 if xp.single else 1e-12)


def difficult(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Stable matrices: near instability, stiff, far from normal, defective, in units of all sizes."""
    n = int(rng.integers(2, 5))
    random, basis, skew = rng.standard_normal((3, n, n))

    def stable(matrix: np.ndarray, margin: float) -> np.ndarray:
        top = np.linalg.eigvals(matrix).real.max()
        return matrix - np.eye(n) * (top + margin * np.abs(matrix).max())

    turned = np.linalg.qr(basis)[0]
    units = 10.0 ** rng.uniform(-6, 6, n)
    return {
        "random": stable(random, 1e-3),
        "near": stable(random, 1e-9),
        "stiff": turned @ np.diag(-(10.0 ** rng.uniform(-5, 5, n))) @ turned.T,
        "diagonal": np.diag(-(10.0 ** rng.uniform(-8, 8, n))),
        "rows": 10.0 ** rng.uniform(-4, 4, (n, 1)) * (random / n - 3 * np.eye(n)),
        "far from normal": np.triu(random * 10.0 ** rng.uniform(0, 6), 1) - np.diag(rng.uniform(0.5, 2.0, n)),
        "defective": np.eye(n, k=1) * 10.0 ** rng.uniform(-2, 4) - np.eye(n),
        "turned": turned @ (3 * np.eye(n, k=1) - np.eye(n)) @ turned.T,
        "units": stable(random, 0.3) * units / units[:, None],
        "rotation": 1e3 * (skew - skew.T) - 1e-7 * np.diag(rng.uniform(0.5, 1.0, n)),
    }


def exact_covariance(mpmath: Any, jac: np.ndarray, intensity: np.ndarray) -> np.ndarray:
    """The Lyapunov equation's n (n + 1) / 2 equations, solved in many digits."""
    n = len(jac)
    place = {pair: k for k, pair in enumerate((i, j) for i in range(n) for j in range(i + 1))}
    matrix, right = mpmath.zeros(len(place)), mpmath.zeros(len(place), 1)
    for (i, j), row in place.items():
        right[row] = -mpmath.mpf(float(intensity[i, j]))
        for k in range(n):
            matrix[row, place[max(k, j), min(k, j)]] += mpmath.mpf(float(jac[i, k]))
            matrix[row, place[max(k, i), min(k, i)]] += mpmath.mpf(float(jac[j, k]))
    found = mpmath.lu_solve(matrix, right)
    return np.array([[float(found[place[max(i, j), min(i, j)]]) for j in range(n)] for i in range(n)])


@pytest.mark.filterwarnings("ignore:Input .a. has an eigenvalue pair")
@pytest.mark.filterwarnings("ignore:NaN for member:RuntimeWarning")
def test_difficult_covariances(xp: Library) -> None:
    """Against 100 digits: within the accuracy promised and ten times scipy's error, or NaN; never that in float64."""
    mpmath, linalg = pytest.importorskip("mpmath"), pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    for _ in range(max(1, xp.examples // 10)):
        named = difficult(rng)
        n = len(named["random"])
        factor = rng.integers(-3, 4, (n, n + 1)).astype(float)
        given = numpy_tree((xp.array(np.stack(list(named.values()))),))[0]
        covariances = numpy_tree(oc.linear_covariance(xp.array(given), xp.array(factor)))
        for name, jac, found in zip(named, given, covariances, strict=True):
            if np.isnan(found).any():
                assert xp.single, name
                continue
            with mpmath.workdps(100):
                want = exact_covariance(mpmath, jac, factor @ factor.T)
            size = np.max(np.abs(want))
            error = np.max(np.abs(found - want)) / size
            assert error < xp.eps**0.6, name
            if not xp.single:
                theirs = linalg.solve_continuous_lyapunov(jac, -factor @ factor.T)
                assert error <= 10 * max(np.max(np.abs(theirs - want)) / size, xp.eps), name


def test_bad_noise_is_named() -> None:
    circuit, state = stable_case(2)
    with pytest.raises(ValueError, match=r"noise must be a number, amplitudes \(..., 4\)"):
        oc.noise_covariance(circuit, state, np.ones(3))
    with pytest.raises(ValueError, match="noise must have 2 parts"):
        oc.noise_covariance(circuit, state, (1.0, 1.0, 1.0))
    with pytest.raises(TypeError, match="noise must be an array"):
        oc.noise_covariance(circuit, state, "loud")
    with pytest.raises(ValueError, match=r"frequencies must have shape \(F,\)"):
        oc.power_spectrum(circuit, state, 1.0, np.ones((2, 2)))


def total_variance(xp: Library, jac: oc.backend.Array, scale: oc.backend.Array) -> oc.backend.Array:
    return xp.namespace.sum(oc.linear_covariance(jac * scale, xp.array([[1.0], [0.5]])))


@pytest.mark.library("torch", "jax")
def test_covariance_is_differentiable(xp64: Library) -> None:
    """P(s J) = P(J) / s, so the derivative of its sum at s = 1 is minus the sum."""
    jac = xp64.array([[-1.0, 2.0], [-3.0, -2.0]])
    if xp64.name == "jax":
        import jax

        value, slope = jax.value_and_grad(lambda s: total_variance(xp64, jac, s))(xp64.array(1.0))
    else:
        scale = xp64.array(1.0).requires_grad_()
        value = total_variance(xp64, jac, scale)
        value.backward()
        slope = scale.grad
    assert float(slope) == pytest.approx(-float(value.detach() if xp64.name == "torch" else value), rel=1e-10)


@pytest.mark.library("jax")
def test_traced_unstable_states_give_nan(xp64: Library) -> None:
    import jax

    jac = xp64.array([[[-1.0, 0.0], [0.0, -2.0]], [[1.0, 0.0], [0.0, -2.0]]])
    found = np.asarray(jax.jit(lambda j: oc.linear_covariance(j, 1.0))(jac))
    np.testing.assert_allclose(found[0], [[0.5, 0.0], [0.0, 0.25]], rtol=1e-12)
    assert np.all(np.isnan(found[1]))


@pytest.mark.slow
def test_welch_spectra_of_a_long_simulation() -> None:
    """Welch estimates of a simulation under weak noise agree with the linear theory, and so does the covariance."""
    signal = pytest.importorskip("scipy.signal")
    circuit, z = small_circuit(2)[:2]
    state = oc.steady_state(circuit, z).state
    noise = 1e-3 * np.array([1.0, 0.5, 0.8, 0.2])
    h, members, count = 1e-4, 64, 20_001
    start = oc.State(*(np.broadcast_to(part, (members, 2)) for part in state))
    run = oc.simulate_sde(circuit, z, h * np.arange(count), noise=noise, seed=3, method="stochastic_heun", state0=start)
    x = np.concatenate([run.state.y, run.state.a], axis=-1)[1000:] - np.concatenate(state)
    covariance = np.einsum("tmi,tmj->ij", x, x) / x[..., 0].size
    want = oc.noise_covariance(circuit, state, noise)
    scale = np.sqrt(np.diag(want))
    # fixed seed; a standard error of a few thousandths: 64 members of 1.9 s against time constants of milliseconds
    np.testing.assert_allclose(covariance / np.outer(scale, scale), want / np.outer(scale, scale), atol=0.03)
    f, cross = signal.csd(x[..., :, None], x[..., None, :], fs=1 / h, nperseg=2000, detrend=False, axis=0)
    estimate = np.moveaxis(cross.mean(axis=1), -1, -2)[1:41]  # scipy's csd(x, y) conjugates x
    theory = 2 * oc.power_spectrum(circuit, state, noise, f[1:41])
    size = np.sqrt(np.real(np.einsum("fii->fi", theory)))
    # 64 members of 18 pieces: a standard error of 1 / sqrt(1152) = 0.03, here of 640 numbers and of means over 40
    relative = (estimate - theory) / (size[:, :, None] * size[:, None, :])
    assert np.max(np.abs(relative)) < 0.15
    assert np.abs(relative.mean(axis=0)).max() < 0.025


def test_any_linear_system_as_that_of_a_circuit(xp64: Library) -> None:
    """From its Jacobian: covariance, spectrum and coherence, the same."""
    circuit, state = (xp64.tree(part) for part in stable_case(2))
    jac, frequencies = oc.jacobian(circuit, state), xp64.array([0.0, 20.0])
    noise = xp64.array([0.1, 0.2, 0.0, 0.3])
    pairs = (
        (oc.linear_covariance(jac, noise), oc.noise_covariance(circuit, state, noise)),
        (oc.linear_power_spectrum(jac, noise, frequencies), oc.power_spectrum(circuit, state, noise, frequencies)),
        (oc.linear_coherence(jac, noise, frequencies), oc.coherence(circuit, state, noise, frequencies)),
    )
    for found, want in pairs:
        want = np.asarray(oc.backend.to_numpy(want))
        xp64.assert_close(found, want, rtol=1e-10, atol=1e-12 * np.max(np.abs(want)))


@pytest.mark.parametrize("function", [oc.linear_power_spectrum, oc.linear_coherence])
def test_bad_linear_systems_are_named(function: object) -> None:
    """The Jacobian's shape, values and stability, and the frequencies."""
    good, noise, frequencies = np.diag([-1.0, -2.0]), np.ones(2), np.array([1.0])
    for jac, f, word in (
        (np.ones((2, 3)), frequencies, "jacobian"),
        (np.diag([-1.0, np.nan]), frequencies, "jacobian"),
        (np.diag([-1.0, 2.0]), frequencies, "jacobian"),
        (good, np.ones((1, 1)), "frequencies"),
        (good, np.array([np.nan]), "frequencies"),
    ):
        with pytest.raises(ValueError, match=rf"\b{word}\b"):
            function(jac, noise, f)
