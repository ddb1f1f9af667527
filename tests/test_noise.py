"""Noise at a stable fixed point: covariance, spectra and coherence, against each other and against simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from support import Case, Library, for_cases, numpy_tree, small_circuit, to_numpy

import organics_core as oc


def stable_case(n: int = 3) -> tuple[oc.Circuit, oc.State]:
    """A circuit with its stable fixed point, in numpy."""
    case = small_circuit(n)
    return case.circuit, oc.steady_state(case.circuit, case.z).state


def slope_and_noise(circuit: oc.Circuit, state: oc.State, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return oc.jacobian(circuit, state), factor @ np.swapaxes(factor, -1, -2)


@pytest.mark.one_dtype
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


@pytest.mark.one_dtype
def test_covariance_of_one_oscillator(xp: Library) -> None:
    """For x'' + c x' + k x = s xi the textbook says var x = s**2 / (2 c k), var x' = s**2 / (2 c), no covariance."""
    c, k, s = 3.0, 50.0, 0.7
    p = oc.linear_covariance(xp.array([[0.0, 1.0], [-k, -c]]), xp.array([0.0, s]))
    # the covariance that is 0 is a difference of terms as large as var x'
    xp.assert_close(p, [[s**2 / (2 * c * k), 0.0], [0.0, s**2 / (2 * c)]], rtol=1e-12, atol=1e-11 * s**2 / (2 * c))


@pytest.mark.one_dtype
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
    total = np.einsum("f,fij->ij", weights, to_numpy(spectrum))
    want = numpy_tree(oc.noise_covariance(circuit, state, factor))
    assert np.max(np.abs(total.imag)) < 1e-10 * np.max(np.abs(want))
    np.testing.assert_allclose(total.real, want, rtol=1e-9, atol=1e-9 * np.max(np.abs(want)))


@pytest.mark.one_dtype
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


def test_an_empty_batch_has_empty_noise(xp64: Library) -> None:
    circuit, _ = stable_case(2)
    mine, nothing = xp64.tree(circuit), xp64.array(np.zeros((0, 2)))
    state, frequencies = oc.State(nothing, nothing), xp64.array([0.0, 10.0])
    assert tuple(oc.noise_covariance(mine, state, 0.1).shape) == (0, 4, 4)
    assert tuple(oc.power_spectrum(mine, state, 0.1, frequencies).shape) == (0, 2, 4, 4)
    assert tuple(oc.rational_spectrum(mine, state, 0.1)(frequencies).shape) == (0, 2, 4, 4)


@pytest.mark.one_dtype
def test_coherence(xp: Library) -> None:
    """Between 0 and 1, 1 on the diagonal; one source makes everything coherent, an unmixed pair nothing."""
    circuit, state = (xp.tree(part) for part in stable_case(3))
    frequencies = xp.array([0.0, 10.0, 100.0])
    found = numpy_tree(oc.coherence(circuit, state, 0.2, frequencies))
    assert np.all(found >= 0)
    assert np.all(found <= 1)
    np.testing.assert_allclose(np.diagonal(found, axis1=-2, axis2=-1), 1.0, rtol=100 * xp.eps)
    assert np.max(found - np.eye(6)) < 0.999
    one = oc.coherence(circuit, state, xp.array(np.ones((6, 1))), frequencies)
    xp.assert_close(one, np.ones((3, 6, 6)), rtol=1e-9)
    apart = oc.linear_coherence(xp.array([[-1.0, 0.0], [0.0, -3.0]]), 1.0, frequencies)
    xp.assert_close(apart, np.broadcast_to(np.eye(2), (3, 2, 2)), rtol=1e-12, atol=1e-14)
    silent = numpy_tree(oc.linear_coherence(xp.array([[-1.0, 0.0], [0.0, -3.0]]), xp.array([1.0, 0.0]), frequencies))
    assert np.all(np.isnan(silent[:, 0, 1]))


def test_rounding_makes_no_coherence_above_one() -> None:
    rng = np.random.default_rng(0)
    circuit = oc.Circuit(None, rng.random((3, 3)), 0.5, 0.5, 0.1, 0.002, 0.003)
    state = oc.steady_state(circuit, rng.standard_normal(3)).state
    found = oc.coherence(circuit, state, (1.0, 0.0), np.array([1.0, 50.0, 400.0]))
    assert found.max() == 1.0
    assert found.min() >= 0.0


@pytest.mark.one_dtype
@pytest.mark.parametrize("power", [-25, -12, -9, 9, 20])
def test_coherence_knows_no_units(xp: Library, power: int) -> None:
    """The noise over a thousand decades of power, where products of spectra leave the range of the dtype."""
    if power in (-25, 20) and xp.eps > 1e-10:
        power = {-25: -13, 20: 12}[power]
    jac = xp.array([[-100.0, 30.0], [-20.0, -200.0]])
    mixing = np.array([[1.0, 0.0], [0.5, 1.0]])
    frequencies = np.array([0.0, 10.0, 1000.0])
    want = []
    for f in frequencies:
        response = np.linalg.solve(2j * np.pi * f * np.eye(2) - numpy_tree((jac,))[0], mixing)
        s = response @ response.conj().T
        want.append(abs(s) ** 2 / np.outer(np.diagonal(s).real, np.diagonal(s).real))
    found = oc.linear_coherence(jac, xp.array(mixing * 10.0**power), xp.array(frequencies))
    xp.assert_close(found, np.array(want), rtol=1e-9, atol=1e-12)


@pytest.mark.one_dtype
def test_coherence_of_powers_beyond_the_dtype(xp: Library) -> None:
    """Two sources that mix alike, of weak noise far above the rates, and of one component far below the other."""
    single = xp.eps > 1e-10
    weak, high, low = (1e-15, 1e9, 1e-23) if single else (1e-140, 1e60, 1e-190)
    jac, mixing = xp.array([[-10.0, 0.0], [0.0, -10.0]]), np.array([[1.0, 0.5], [0.0, 1.0]])
    for scale, frequency in ((weak, high), (1.0, 1e21 if single else 1e170), (np.array([[low], [1.0]]), 1.0)):
        found = oc.linear_coherence(jac, xp.array(mixing * scale), xp.array([0.0, frequency]))
        xp.assert_close(found, np.array(2 * [[[1.0, 0.2], [0.2, 1.0]]]), rtol=1e-12)


def test_unstable_states_are_refused(xp: Library) -> None:
    with pytest.raises(ValueError, match=r"jacobian must be stable.*abscissa is 1 per second"):
        oc.linear_covariance(xp.array([[1.0, 0.0], [0.0, -1.0]]), 1.0)


@pytest.mark.one_dtype
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


@pytest.mark.parametrize("noise", [np.nan, np.inf, (np.nan, 1.0), oc.ColouredNoise(np.nan, 0.01)])
def test_noise_that_is_no_number_is_named(noise: object) -> None:
    circuit, state = stable_case(2)
    times, z = np.linspace(0.0, 0.01, 3), np.ones(2)
    for call in (
        lambda: oc.noise_covariance(circuit, state, noise),
        lambda: oc.power_spectrum(circuit, state, noise, np.ones(1)),
        lambda: oc.simulate_sde(circuit, z, times, noise=noise),
    ):
        with pytest.raises(ValueError, match=r"noise(\[0\])? must be finite"):
            call()
    if np.ndim(noise) == 0 and not isinstance(noise, oc.ColouredNoise):
        with pytest.raises(ValueError, match="noise must be finite"):
            oc.linear_covariance(-np.eye(2), noise)


def test_the_square_of_noise_has_a_range(xp: Library) -> None:
    """Within it P = L**2 / 2 for J = -1, relative to its own size; beyond it the noise is named, not the Jacobian."""
    jac = xp.array(-np.eye(2))
    least, most = (1e-15, 1e15) if xp.single else (1e-140, 1e140)
    for size in (least, most):
        found = numpy_tree(oc.linear_covariance(jac, size)) / size / size
        np.testing.assert_allclose(found, 0.5 * np.eye(2), atol=10 * xp.eps)
    for size in (1e-20, 1e20) if xp.single else (1e-150, 1e-200, 1e150, 1e200):
        with pytest.raises(ValueError, match="noise must be 0 or, at its largest, from"):
            oc.linear_covariance(jac, size)
    np.testing.assert_array_equal(numpy_tree(oc.linear_covariance(jac, 0.0)), 0.0)


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


def test_noise_that_depends_on_the_state(xp: Library) -> None:
    """Multiplicative, Poisson-like, a function: the same as the amplitudes at the fixed point, per population too."""
    circuit, state = stable_case(3)
    mine, here = xp.tree(circuit), xp.tree(state)
    y, a = state
    cases = (
        (oc.MultiplicativeNoise(0.3), (0.3 * np.abs(y), 0.3 * np.abs(a))),
        (oc.MultiplicativeNoise((0.3, xp.array([0.0, 0.1, 0.2]))), (0.3 * np.abs(y), np.array([0.0, 0.1, 0.2]) * a)),
        (
            oc.MultiplicativeNoise(xp.array([0.1, 0.2, 0.3, 0.0, 0.5, 0.6])),
            ([0.1, 0.2, 0.3] * abs(y), [0, 0.5, 0.6] * a),
        ),
        (oc.FiringRateNoise((0.2, 0.1)), (0.2 * np.abs(y), 0.1 * a**0.25)),
        (lambda s: (0.1 * abs(s.y), s.a), (0.1 * np.abs(y), a)),
    )
    frequencies = xp.array([0.0, 30.0])
    for noise, amplitudes in cases:
        plain = xp.tree(amplitudes)
        want = numpy_tree((oc.noise_covariance(mine, here, plain),))[0]
        xp.assert_close(oc.noise_covariance(mine, here, noise), want, rtol=1e-9, atol=1e-10 * np.max(want))
        want = np.asarray(oc.backend.to_numpy(oc.power_spectrum(mine, here, plain, frequencies)))
        found = oc.power_spectrum(mine, here, noise, frequencies)
        xp.assert_close(found, want, rtol=1e-9, atol=1e-10 * np.max(np.abs(want)))
    v1 = oc.V1Circuit(None, np.ones((1, 1)), 0.5, 0.1, 1.0, 0.004, 0.004, 0.008)
    fixed = oc.steady_state(v1, np.array([0.5])).state
    want = oc.noise_covariance(v1, fixed, (0.2 * fixed.y, 0.2 * fixed.u**0.25, 0.2 * np.sqrt(fixed.a)))
    np.testing.assert_allclose(oc.noise_covariance(v1, fixed, oc.FiringRateNoise(0.2)), want, rtol=1e-9)


@pytest.mark.one_dtype
def test_coloured_noise(xp: Library) -> None:
    """One leaky unit: var x = s**2 / (2 k (1 + k tau)); each source, white noise over 1 + (w tau)**2."""
    k, s, tau = 50.0, 0.7, 0.03
    jac = xp.array([[-k]])
    xp.assert_close(oc.linear_covariance(jac, oc.ColouredNoise(s, tau)), [[s**2 / (2 * k * (1 + k * tau))]], rtol=1e-10)
    circuit, state = stable_case(2)
    mine, here = xp.tree(circuit), xp.tree(state)
    amplitudes, taus = np.array([0.1, 0.2, 0.3, 0.0]), np.array([0.001, 0.01, 0.1, 1.0])
    frequencies = np.array([0.0, 3.0, 40.0])
    parts = [
        np.asarray(oc.power_spectrum(circuit, state, amplitudes * (np.arange(4) == i), frequencies)) for i in range(4)
    ]
    filters = 1 / (1 + (2 * math.pi * frequencies[:, None] * taus) ** 2)
    want = sum(part * filters[:, i, None, None] for i, part in enumerate(parts))
    noise = oc.ColouredNoise(xp.array(amplitudes), xp.array(taus))
    found = oc.power_spectrum(mine, here, noise, xp.array(frequencies))
    xp.assert_close(found, want, rtol=1e-8, atol=1e-10 * np.max(np.abs(want)))
    both = oc.ColouredNoise(oc.MultiplicativeNoise(0.3), 0.01)
    same = oc.ColouredNoise((0.3 * abs(here.y), 0.3 * abs(here.a)), 0.01)
    want = numpy_tree((oc.noise_covariance(mine, here, same),))[0]
    xp.assert_close(oc.noise_covariance(mine, here, both), want, rtol=1e-9, atol=1e-10 * np.max(want))


def test_transfer_function(xp: Library) -> None:
    """(i omega - J)^-1 df/dz for each member of a batch; at frequency 0 the slope of the fixed point by the drive."""
    case = small_circuit(2)
    z = case.z * np.array([[0.3], [1.0]])
    state = oc.steady_state(case.circuit, z).state
    frequencies = np.array([-20.0, 0.0, 40.0])
    found = oc.transfer_function(xp.tree(case.circuit), xp.tree(state), xp.array(frequencies))
    jac = oc.jacobian(case.circuit, state)
    into = np.concatenate([np.diag(case.circuit.b / case.circuit.tau_y), np.zeros((2, 2))])
    want = np.array([[np.linalg.solve(2j * np.pi * f * np.eye(4) - one, into) for f in frequencies] for one in jac])
    xp.assert_close(found, want, rtol=1e-8, atol=1e-9 * np.max(np.abs(want)))
    h = 1e-6
    up, down = (np.concatenate(oc.steady_state(case.circuit, z[1] + s * h * np.eye(2)[0]).state) for s in (1, -1))
    np.testing.assert_allclose(want[1, 1, :, 0].real, (up - down) / (2 * h), rtol=1e-6)


def test_transfer_function_of_other_models() -> None:
    """An SSN, whose Jacobian and gain depend on z; a saddle is refused."""
    network = oc.SSN(np.array([[0.3, -0.5], [0.4, -0.2]]), 0.04, 2.0, 0.02, 1.0)
    z = np.array([2.0, 1.5])
    state = oc.steady_state(network, z).state
    found = oc.transfer_function(network, state, np.array([0.0]), z=z)[0]
    h = 1e-5
    slope = np.stack(
        [
            (oc.steady_state(network, z + h * e).state.r - oc.steady_state(network, z - h * e).state.r) / (2 * h)
            for e in np.eye(2)
        ],
        axis=-1,
    )
    np.testing.assert_allclose(found.real, slope, rtol=1e-6, atol=1e-9)
    circuit, state = stable_case(2)
    with pytest.raises(ValueError, match="state must be stable"):
        oc.transfer_function(circuit, oc.State(3 * state.y, 40 * state.a), np.array([1.0]))


@pytest.mark.parametrize("variant", ["rectified", "rectified_recurrence"])
def test_no_transfer_function_at_a_kink(variant: str) -> None:
    """Without drive the slope of y by z is b / sqrt(a) on one side and b on the other: neither is the answer."""
    circuit = oc.Circuit(None, np.ones((1, 1)), 0.5, 0.5, 1.0, 0.002, 0.002)
    sides = [oc.steady_state(circuit, np.array([z]), variant=variant).state.y[0] / z for z in (1e-9, -1e-9)]
    assert sides == pytest.approx([1.0, 0.5])
    for z, side in zip((1e-9, -1e-9), sides, strict=True):
        near = oc.steady_state(circuit, np.array([z]), variant=variant).state
        found = oc.transfer_function(circuit, near, np.array([0.0]), variant=variant)
        assert found[0, 0, 0].real == pytest.approx(side)
    state = oc.steady_state(circuit, np.zeros(1), variant=variant).state
    with pytest.raises(ValueError, match="state lies at a kink"):
        oc.transfer_function(circuit, state, np.array([0.0]), variant=variant)


@pytest.mark.one_dtype
def test_rational_spectrum(xp: Library) -> None:
    """Numerators over the denominator are the spectrum; its parity; the pole polynomial; white and coloured."""
    case = small_circuit(2)
    z = case.z * np.array([[0.3], [1.0]])
    state = oc.steady_state(case.circuit, z).state
    mine, here = xp.tree(case.circuit), xp.tree(state)
    frequencies = xp.array([-50.0, 0.0, 5.0, 120.0])
    factor = np.random.default_rng(1).standard_normal((4, 3))
    for noise in (0.3, xp.array(factor), oc.ColouredNoise((0.1, 0.2), 0.01)):
        found = oc.rational_spectrum(mine, here, noise)
        want = np.asarray(oc.backend.to_numpy(oc.power_spectrum(mine, here, noise, frequencies)))
        xp.assert_close(found(frequencies), want, rtol=1e-7, atol=1e-8 * np.max(np.abs(want)))
        assert (np.asarray(oc.backend.to_numpy(found.error)) < (1e-2 if xp.single else 1e-8)).all()
        assert found.denominator.dtype == xp.dtype
        numerator = np.asarray(oc.backend.to_numpy(found.numerator))
        assert not numerator[:, 0::2].imag.any()
        assert not numerator[:, 1::2].real.any()
    found = oc.rational_spectrum(mine, here, 0.3)
    values = np.linalg.eigvals(oc.jacobian(case.circuit, state)) / numpy_tree((found.scale,))[0][:, None]
    x = np.linspace(0.0, 2.0, 5)
    poles = np.prod(x[:, None] ** 2 + values[:, None, :] ** 2, axis=-1).real
    polynomial = np.einsum("bk,xk->bx", numpy_tree((found.denominator,))[0], x[:, None] ** np.arange(9))
    np.testing.assert_allclose(polynomial, poles, rtol=1e4 * xp.eps)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_rational_spectrum_far_above_the_rates(xp: Library, n: int) -> None:
    """Where the powers of the frequency leave the range of the dtype, and their ratio does not."""
    circuit = oc.Circuit(None, np.full((n, n), 1 / n), 1.0, 1.0, 0.3, 0.01, 0.01)
    state = xp.tree(oc.steady_state(circuit, np.linspace(0.3, 1.0, n)).state)
    frequencies = np.array([-1e7, -10.0, 0.0, 15.0, 1e3, 1e5, 1e7])
    found = oc.rational_spectrum(xp.tree(circuit), state, 1.0)(xp.array(frequencies))
    power = to_numpy(found)
    exact = to_numpy(oc.power_spectrum(xp.tree(circuit), state, 1.0, xp.array(frequencies)))
    for k in range(2 * n):
        np.testing.assert_allclose(power[:, k, k].real, exact[:, k, k].real, rtol=1e-8 if xp.eps < 1e-10 else 1e-3)


def test_rational_spectra_that_lost_their_digits_are_refused() -> None:
    """Twenty neurons: too many for coefficients in float64."""
    circuit, state = stable_case(20)
    with pytest.raises(ValueError, match="state has too many components, 40, for coefficients in float64"):
        oc.rational_spectrum(circuit, state, 1.0)
    jac = oc.jacobian(circuit, state)
    with pytest.warns(RuntimeWarning, match="member 0 of the batch"):
        assert np.isnan(oc.linear_rational_spectrum(jac[None], 1.0).denominator).all()


def test_symbolic_spectrum() -> None:
    """In symbols, and with their numbers the same as in floats."""
    sympy = pytest.importorskip("sympy")
    c, k, s, w = sympy.symbols("c k s omega", positive=True)
    jac, noise = sympy.Matrix([[0, 1], [-k, -c]]), sympy.Matrix([[0], [s]])
    above, below = oc.symbolic_spectrum(jac, noise, w)
    assert sympy.simplify(below - ((k - w**2) ** 2 + c**2 * w**2)) == 0
    assert sympy.simplify(above[0, 0] - s**2) == 0
    assert sympy.simplify(above[0, 1] + sympy.I * w * s**2) == 0
    numbers = {c: 3.0, k: 50.0, s: 0.7}
    found = oc.linear_rational_spectrum(np.array([[0.0, 1.0], [-50.0, -3.0]]), np.array([[0.0], [0.7]]))
    for omega in (0.0, 2.0, 9.0):
        want = np.array((above / below).subs({**numbers, w: omega}).tolist(), dtype=complex)
        np.testing.assert_allclose(found(np.array([omega / (2 * math.pi)]))[0], want, rtol=1e-12, atol=1e-15)
    with pytest.raises(TypeError, match=r"jacobian must be a sympy.Matrix"):
        oc.symbolic_spectrum(np.eye(2), noise, w)
    with pytest.raises(ValueError, match="jacobian must be square"):
        oc.symbolic_spectrum(jac, sympy.Matrix([[1]]), w)


def test_bad_descriptions_of_noise_are_named() -> None:
    circuit, state = stable_case(2)
    for noise, message in (
        (oc.MultiplicativeNoise((0.1, 0.1, 0.1)), "scale must have 2 parts"),
        (oc.MultiplicativeNoise(np.array([0.1, np.nan])), "scale must be finite"),
        (
            oc.MultiplicativeNoise(np.array([0.1, 0.2])),
            r"scale must have shape \(..., 4\) or a scalar, got shape \(2,\)",
        ),
        (oc.FiringRateNoise((0.1, np.ones(4))), r"scale\[1\] must have shape \(..., 2\) or a scalar, got shape \(4,\)"),
        (oc.ColouredNoise(0.1, -1.0), "tau must be positive"),
        (oc.ColouredNoise(0.1, np.ones(3)), r"tau must have shape \(..., 4\)"),
        (lambda s: np.ones(3), "noise must be a number, amplitudes"),
    ):
        with pytest.raises(ValueError, match=message):
            oc.noise_covariance(circuit, state, noise)
    with pytest.raises(TypeError, match="coloured once"):
        oc.noise_covariance(circuit, state, oc.ColouredNoise(oc.ColouredNoise(0.1, 1.0), 1.0))
    with pytest.raises(TypeError, match="must not depend on the state"):
        oc.linear_covariance(-np.eye(2), oc.MultiplicativeNoise(0.1))


@pytest.mark.library("jax", "torch")
def test_mapped_noise_is_a_batch(xp64: Library) -> None:
    """The noise may be traced where the circuit is not, as within vmap over its amplitudes alone."""
    circuit, state = (xp64.tree(part) for part in stable_case(3))
    amplitudes = np.array([[0.1, 0.2, 0.3, 0.5, 0.5, 0.5], [1.0, 0.0, 2.0, 0.3, 0.1, 0.2]])
    if xp64.name == "jax":
        import jax

        vmap: Any = jax.vmap
    else:
        import torch

        vmap = torch.func.vmap
    found = vmap(lambda noise: oc.noise_covariance(circuit, state, noise))(xp64.array(amplitudes))
    for got, noise in zip(found, amplitudes, strict=True):
        want = numpy_tree(oc.noise_covariance(*stable_case(3), noise))
        xp64.assert_close(got, want, rtol=1e-10, atol=1e-12 * np.max(np.abs(want)))
