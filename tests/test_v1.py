"""The three-population V1 circuit: equations, Jacobian, steady state, simulation and the gamma peak."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support import Library, largest, numpy_tree

import organics_core as oc

pytestmark = pytest.mark.one_dtype


def random_circuit(n: int, rng: np.random.Generator, *, identity: bool = False) -> oc.V1Circuit:
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return oc.V1Circuit(
        None if identity else 0.8 * q,
        rng.uniform(0.1, 1.0, (n, n)) / n,
        rng.uniform(0.1, 0.6, n),
        rng.uniform(0.05, 0.3, n),
        rng.uniform(0.0, 2.0, n),
        rng.uniform(0.001, 0.004, n),
        rng.uniform(0.001, 0.004, n),
        rng.uniform(0.001, 0.004, n),
    )


def random_state(n: int, rng: np.random.Generator) -> oc.V1State:
    return oc.V1State(rng.standard_normal(n), rng.uniform(0.1, 0.9, n), rng.uniform(0.0, 1.0, n))


GAMMA = oc.V1Circuit(None, np.ones((1, 1)), 0.5, 0.1, 1.0, 0.001, 0.002, 0.001)
"""One neuron whose resonance lies in the gamma band."""


def test_vector_field_is_the_equations(xp: Library) -> None:
    """Written out neuron by neuron, with the derivative of the root in a as the equations have it."""
    rng = np.random.default_rng(0)
    circuit, state, z = random_circuit(3, rng), random_state(3, rng), rng.standard_normal(3)
    dy, du, da = np.zeros(3), np.zeros(3), np.zeros(3)
    for i in range(3):
        gain = circuit.b0[i] / (1 + circuit.b0[i])
        root = math.sqrt(state.u[i])
        recurrent = sum(circuit.w_r[i, j] * state.y[j] for j in range(3))
        pool = sum(circuit.w[i, j] * state.u[j] * state.y[j] ** 2 for j in range(3))
        dy[i] = (-state.y[i] + gain * z[i] + recurrent / (1 + state.a[i])) / circuit.tau_y[i]
        du[i] = (-state.u[i] + pool + (circuit.sigma[i] * gain) ** 2) / circuit.tau_u[i]
        driven = circuit.alpha[i] / (2 * root) * circuit.tau_u[i] * du[i]
        da[i] = (-state.a[i] + root + state.a[i] * root + driven) / circuit.tau_a[i]
    found = oc.vector_field(xp.tree(circuit), xp.tree(state), xp.array(z))
    for part, want in zip(found, (dy, du, da), strict=True):
        xp.assert_close(part, want, rtol=1e-11)


def test_closed_form_zeroes_the_field(xp: Library) -> None:
    """For W_r = I, over random circuits and a batch of contrasts; y**2 is the normalization equation."""
    rng = np.random.default_rng(1)
    for n in (1, 2, 5):
        circuit = random_circuit(n, rng, identity=True)
        z = rng.standard_normal(n) * np.array([[0.01], [0.3], [1.0]])
        found = oc.steady_state(xp.tree(circuit), xp.array(z))
        assert bool(xp.namespace.all(found.converged))
        slope = numpy_tree(oc.vector_field(xp.tree(circuit), found.state, xp.array(z)))
        assert largest(slope) * 0.001 < 50 * xp.eps * (1 + largest(numpy_tree(found.state)))
        drive, floor = (circuit.b0 / (1 + circuit.b0) * value for value in (z, circuit.sigma))
        xp.assert_close(found.state.y**2, drive**2 / (floor**2 + drive**2 @ circuit.w.T), rtol=1e-11)


def test_steady_state_with_recurrence(xp64: Library) -> None:
    """For another W_r, Newton's fixed point zeroes the field too."""
    rng = np.random.default_rng(2)
    circuit, z = random_circuit(4, rng), 0.5 * rng.standard_normal(4)
    found = oc.steady_state(xp64.tree(circuit), xp64.array(z))
    assert bool(found.converged)
    slope = numpy_tree(oc.vector_field(xp64.tree(circuit), found.state, xp64.array(z)))
    assert largest(slope) * 0.001 < 1e-11


def test_no_steady_state_where_the_pool_is_too_strong(xp: Library) -> None:
    """Where u >= 1 the modulator grows without bound, and the report says so, member by member."""
    circuit = oc.V1Circuit(None, xp.array([[1.0]]), 1.0, 0.1, 0.0, 0.001, 0.001, 0.001)
    found = oc.steady_state(circuit, xp.array([[1.0], [3.0]]))
    assert [bool(value) for value in found.converged] == [True, False]
    assert "1: the fixed point has values that the model does not allow (of V1: some u >= 1)" in found.message


def test_another_fixed_point_where_the_first_is_not_allowed(xp: Library) -> None:
    """With W_r = -3 the method leads to u > 1 for one of these drives, and the circuit settles at a small u."""
    circuit = oc.V1Circuit(xp.array([[-3.0]]), xp.array([[1.0]]), 1.0, 0.1, 0.1, 0.002, 0.002, 0.002)
    squares = np.array([1.3, 1.5])  # of B z
    found = oc.steady_state(circuit, xp.array(2.0 * np.sqrt(squares)[:, None]))
    assert bool(xp.namespace.all(found.converged))
    assert found.message == "2: found by the method"
    u = numpy_tree(found.state)[1][:, 0].astype(float)
    for own, square in zip(u, squares, strict=True):  # the smallest root of (u - 0.05**2) (4 - 3 r)**2 = u (B z)**2
        r = np.linspace(0.05, 0.2, 100_001)
        above = (r**2 - 0.05**2) * (4 - 3 * r) ** 2 > r**2 * square
        assert own == pytest.approx(r[np.argmax(above)] ** 2, rel=1e-4)
    frequency, _ = oc.gamma_peak(circuit, xp.array([2.0 * math.sqrt(1.3)]))
    assert frequency.shape == ()
    if xp.eps < 1e-10:
        assert float(oc.spectral_abscissa(circuit, oc.V1State(*(part[0, ...] for part in found.state)))) < 0


def test_jacobian_is_the_derivative(xp64: Library) -> None:
    """Against sixth-order central differences of the field at random states; batched."""
    rng = np.random.default_rng(3)
    circuit, z = random_circuit(3, rng), rng.standard_normal(3)
    states = [random_state(3, rng) for _ in range(2)]
    batch = oc.V1State(*(np.stack(parts) for parts in zip(*states, strict=True)))
    found = numpy_tree(oc.jacobian(xp64.tree(circuit), xp64.tree(batch)))
    h = 1e-3
    for k, state in enumerate(states):
        x = np.concatenate(state)

        def field(x: np.ndarray) -> np.ndarray:
            return np.concatenate(oc.vector_field(circuit, oc.V1State(x[:3], x[3:6], x[6:]), z))

        for j in range(9):
            e = np.eye(9)[j]
            terms = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
            column = sum(w / h * (field(x + m * h * e) - field(x - m * h * e)) for m, w in terms)
            np.testing.assert_allclose(found[k, :, j], column, atol=1e-7 * np.abs(found).max())


def test_simulation_settles_on_the_steady_state(xp64: Library) -> None:
    """From rest, for constant, sampled and callable drives alike."""
    rng = np.random.default_rng(4)
    circuit, z = xp64.tree(random_circuit(2, rng)), xp64.array(0.5 * rng.standard_normal(2))
    times = xp64.array(np.linspace(0.0, 0.3, 31))
    want = numpy_tree(oc.steady_state(circuit, z).state)
    sampled = xp64.array(np.broadcast_to(numpy_tree((z,))[0], (31, 2)))
    for drive in (z, sampled, lambda t: z):
        run = oc.simulate(circuit, drive, times, drive="sampled" if drive is sampled else "auto")
        assert run.success
        for part, end in zip(run.state, want, strict=True):
            xp64.assert_close(part[-1, :], end, rtol=1e-4, atol=1e-6)


def test_gamma_peak_rises_with_contrast(xp: Library) -> None:
    """No resonance at low contrast; then a peak in the gamma band, at a frequency that rises with contrast."""
    contrast = xp.array([[0.02], [0.2], [0.4], [0.7], [1.0]])
    frequency, power = oc.gamma_peak(xp.tree(GAMMA), contrast)
    found = numpy_tree((frequency,))[0]
    assert math.isnan(found[0])
    assert np.all(np.diff(found[1:]) > 5.0)
    assert found[1] > 25.0
    assert 60.0 < found[-1] < 80.0
    grid = np.linspace(1.0, 300.0, 600)
    rough = grid[np.argmax(numpy_tree((power,))[0], axis=-1)]
    assert np.all(np.abs(found[1:] - rough[1:]) < 0.5)


def test_gamma_peak_lies_between_the_frequencies() -> None:
    """A parabola finds it to a thirtieth of their spacing, where the highest of them is a fifth of it off, or more."""
    contrast = np.array([[0.2], [0.4], [0.7], [1.0]])
    fine = oc.gamma_peak(GAMMA, contrast, resolution=29_901)[0]
    found, power = oc.gamma_peak(GAMMA, contrast)
    spacing = 299.0 / 599
    assert np.all(np.abs(found - fine) < spacing / 30)
    highest = np.linspace(1.0, 300.0, 600)[np.argmax(power, axis=-1)]
    assert np.all(np.abs(highest - fine) > spacing / 5)


def test_gamma_peak_is_the_resonance_of_the_jacobian() -> None:
    """Where the resonance is sharp the peak lies at the imaginary part of the least damped eigenvalue."""
    sharp = GAMMA._replace(alpha=0.0, tau_u=0.001, tau_y=0.002, tau_a=0.0005)
    z = np.array([1.0])
    state = oc.steady_state(sharp, z).state
    values = np.linalg.eigvals(oc.jacobian(sharp, state))
    slowest = values[np.argmax(np.where(values.imag > 0, values.real, -np.inf))]
    assert slowest.imag > 10 * abs(slowest.real)
    frequency, _ = oc.gamma_peak(sharp, z)
    assert float(frequency) == pytest.approx(slowest.imag / (2 * math.pi), rel=0.01)


@pytest.mark.slow
def test_noisy_simulation_has_the_spectrum_of_theory() -> None:
    """Welch's estimate for y in a long simulation under weak noise: the gamma bump, where theory puts it."""
    signal = pytest.importorskip("scipy.signal")
    z, h, members = np.array([1.0]), 1e-4, 64
    state = oc.steady_state(GAMMA, z).state
    start = oc.V1State(*(np.broadcast_to(part, (members, 1)) for part in state))
    noise = (1e-3, 0.0, 0.0)
    run = oc.simulate_sde(GAMMA, z, h * np.arange(10_001), state0=start, noise=noise, seed=8, method="stochastic_heun")
    f, estimate = signal.welch(run.state.y[500:, :, 0] - state.y, fs=1 / h, nperseg=2000, detrend=False, axis=0)
    # 64 members of 8 pieces: a standard error of 1 / sqrt(512) = 0.044, here of 37 numbers and of their mean
    theory = 2 * np.real(oc.power_spectrum(GAMMA, state, noise, f[4:41])[:, 0, 0])
    np.testing.assert_allclose(estimate.mean(axis=1)[4:41] / theory, 1.0, atol=0.2)
    assert np.mean(estimate.mean(axis=1)[4:41] / theory) == pytest.approx(1.0, abs=0.04)


def test_bad_circuits_are_named() -> None:
    z = np.array([1.0])
    state = oc.V1State(*(np.ones(1),) * 3)
    for fields, message in (
        ({"tau_u": -1.0}, "tau_u must be positive"),
        ({"alpha": -0.5}, "alpha must be non-negative"),
        ({"w": np.ones((1, 2))}, "w must be square"),
        ({"b0": np.ones(2)}, r"b0 must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            oc.vector_field(GAMMA._replace(**fields), state, z)
    with pytest.raises(TypeError, match="circuit must be a Circuit or another model"):
        oc.steady_state((1.0,), z)
    with pytest.raises(TypeError, match="state must be a V1State"):
        oc.jacobian(GAMMA, (z, z))
    with pytest.raises(ValueError, match="band must be two rising frequencies"):
        oc.gamma_peak(GAMMA, z, band=(50.0, 10.0))
    with pytest.raises(ValueError, match="band must be two rising frequencies"):
        oc.gamma_peak(GAMMA, z, band=(1.0, 10.0, 50.0))
    with pytest.raises(ValueError, match="none was found for member 1"):  # B z = 1.5
        oc.gamma_peak(GAMMA, np.array([[1.0], [4.5]]))
    assert math.isnan(float(oc.gamma_peak(GAMMA, z, band=(1.0, 20.0))[0]))  # the peak lies higher
    for unit in (len(z), -1, 1.5, "a", True, np.array([0])):
        with pytest.raises(ValueError, match="unit must be one of the principal neurons 0 to"):
            oc.gamma_peak(GAMMA, z, unit=unit)
