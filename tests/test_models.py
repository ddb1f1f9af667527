"""What every model gets: families of the core and a user's own, in every array library."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from support import (
    NEEDS_RECENT_TORCH,
    FitzHughNagumo,
    Library,
    Membrane,
    assert_same_spectrum,
    largest,
    numpy_tree,
    to_numpy,
)

import organics_core as oc
from organics_core.model import Layout, packed_jacobian


class Case(NamedTuple):
    """A model with a drive under which its fixed point is stable, and how long it is followed."""

    model: Any
    z: np.ndarray
    end: float


CASES = {
    "V1": Case(
        oc.V1Circuit(
            np.array([[0.9, 0.1], [-0.1, 0.8]]),
            np.array([[0.5, 0.2], [0.1, 0.6]]),
            np.array([0.5, 0.4]), 0.1, 0.3, 0.002, np.array([0.002, 0.003]), 0.0015,
        ),
        np.array([0.8, 0.4]),
        0.03,
    ),
    "SSN": Case(
        oc.SSN(np.array([[1.25, -0.65], [1.2, -0.5]]), 0.04, np.array([2.0, 2.2]), np.array([0.02, 0.01]), 1.1),
        np.array([9.0, 6.0]),
        0.1,
    ),
    "Wilson-Cowan": Case(
        oc.WilsonCowan(
            np.array([[6.0, -4.0], [5.0, -1.0]]), np.array([1.2, 1.0]), np.array([2.8, 4.0]), 0.01, np.array([1.0, 0.5])
        ),
        np.array([1.5, 0.5]),
        0.1,
    ),
    "FitzHugh-Nagumo": Case(FitzHughNagumo(0.7, np.array([0.8, 0.7]), 0.08, 0.01), np.array([0.1, -0.2]), 0.2),
}  # fmt: skip
every = pytest.mark.parametrize("name", CASES)
QUICK = pytest.mark.library("numpy", "torch")
ALIKE = ("SSN", "Wilson-Cowan")
some = pytest.mark.parametrize("name", [pytest.param(name, marks=QUICK) if name in ALIKE else name for name in CASES])
"""In jax, which compiles for each, and in strict, where operations are slow, the model with solvers of its own and the
user's: the code is the same, and tests of ``every`` run the fields of the others."""


def given(xp: Library, name: str) -> tuple[Any, Any]:
    """Model and drive in the library's arrays."""
    return xp.tree(CASES[name].model), xp.array(CASES[name].z)


def packed_field(case: Case, z: np.ndarray | None = None) -> Any:
    """x' of a packed numpy state: what scipy takes."""
    layout = Layout((2,) * len(case.model.state._fields), case.model.state)

    def field(t: float, x: np.ndarray) -> np.ndarray:
        slope = oc.vector_field(case.model, layout.unpack(x), case.z if z is None else z)
        return np.concatenate(slope)

    return field


def settled(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Fixed point, packed, and Jacobian of a case, by scipy and differences; so by nothing that is tested."""
    from scipy.optimize import approx_fprime, fsolve

    case = CASES[name]
    field = packed_field(case)
    start = np.concatenate(oc.simulate(case.model, case.z, np.array([0.0, 50 * case.end]), rtol=1e-6).state, axis=-1)
    x = fsolve(lambda x: case.end * field(0.0, x), start[-1], xtol=1e-11)
    h = 1e-3 * np.maximum(np.abs(x), 0.1)
    columns = [
        sum(w / h[j] * (field(0, x + m * h[j] * e) - field(0, x - m * h[j] * e)) for m, w in STENCIL)
        for j, e in enumerate(np.eye(len(x)))
    ]
    assert np.allclose(approx_fprime(x, lambda x: field(0, x)), np.stack(columns, -1), rtol=1e-3, atol=1e-2)
    return x, np.stack(columns, axis=-1)


STENCIL = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))


def packed(state: Any) -> np.ndarray:
    return np.concatenate(numpy_tree(state), axis=-1)


# Simulation.


@some
@pytest.mark.parametrize("method", ["dopri5", "rodas5p", "rk4"])
def test_simulations_are_those_of_scipy(xp64: Library, name: str, method: str) -> None:
    """From rest, against DOP853 at 1e-11; each method at a tolerance, or a step, that should give 1e-6."""
    integrate = pytest.importorskip("scipy.integrate")
    case = CASES[name]
    model, z = given(xp64, name)
    times = np.linspace(0.0, case.end, 7)
    run = oc.simulate(model, z, xp64.array(times), method=method, rtol=1e-8, atol=1e-10, substeps=200)
    assert run.success
    found = packed(run.state)
    want = integrate.solve_ivp(packed_field(case), (0, case.end), found[0], "DOP853", times, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(found, want.y.T, rtol=0, atol=1e-6 * np.abs(want.y).max())


@some
def test_drives_of_every_kind(xp64: Library, name: str) -> None:
    """A ramp sampled is a ramp as a function; members of a batch are what they are alone."""
    case = CASES[name]
    model, z = given(xp64, name)
    times = np.linspace(0.0, case.end, 11)
    clock = xp64.array(times)
    sampled = oc.simulate(model, xp64.array(times[:, None] / case.end * case.z), clock, drive="sampled", rtol=1e-9)
    function = oc.simulate(model, lambda t: t / case.end * z, clock, rtol=1e-9)
    np.testing.assert_allclose(packed(sampled.state), packed(function.state), rtol=1e-6, atol=1e-8)
    factors = np.array([[1.0], [0.5]])
    batch = oc.simulate(model, xp64.array(factors * case.z), clock, rtol=1e-9)
    for k in range(2):
        alone = oc.simulate(model, xp64.array(factors[k] * case.z), clock, rtol=1e-9)
        np.testing.assert_allclose(packed(batch.state)[:, k], packed(alone.state), rtol=1e-6, atol=1e-8)


@some
def test_parameters_may_have_batch_axes(xp64: Library, name: str) -> None:
    """A batch of time constants under one drive."""
    model, z = given(xp64, name)
    field = next(field for field in model._fields if field.startswith("tau"))
    taus = np.array([[0.002], [0.004]]) * np.ones(2)
    clock = xp64.array(np.linspace(0.0, 0.02, 3))
    run = oc.simulate(model._replace(**{field: xp64.array(taus)}), z, clock, rtol=1e-9)
    for k in range(2):
        alone = oc.simulate(model._replace(**{field: xp64.array(taus[k])}), z, clock, rtol=1e-9)
        np.testing.assert_allclose(packed(run.state)[:, k], packed(alone.state), rtol=1e-6, atol=1e-9)


@some
def test_noise_of_ones_own_drives_every_library_alike(xp64: Library, name: str) -> None:
    """The same increments give numpy's trajectory, and without noise that of the deterministic method."""
    case = CASES[name]
    model, z = given(xp64, name)
    times = np.linspace(0.0, case.end, 9)
    size = 2 * len(case.model.state._fields)
    kicks = np.sqrt(case.end / 80) * np.random.default_rng(3).standard_normal((80, size))
    options: dict[str, Any] = {"noise": 0.01, "substeps": 10, "method": "stochastic_heun"}
    want = oc.simulate_sde(case.model, case.z, times, increments=kicks, **options)
    run = oc.simulate_sde(model, z, xp64.array(times), increments=xp64.array(kicks), **options)
    np.testing.assert_allclose(packed(run.state), packed(want.state), rtol=1e-9, atol=1e-11)
    quiet = oc.simulate_sde(model, z, xp64.array(times), increments=xp64.array(0 * kicks), **options)
    heun = oc.simulate(model, z, xp64.array(times), method="heun", substeps=10)
    np.testing.assert_allclose(packed(quiet.state), packed(heun.state), rtol=1e-9, atol=1e-11)
    assert np.abs(packed(run.state) - packed(heun.state)).max() > 1e-4


# Fixed points and linearization.


@every
def test_steady_state_and_jacobian(xp64: Library, name: str) -> None:
    """Against scipy's root finder and central differences; Jacobian, its products and spectrum in one."""
    pytest.importorskip("scipy.optimize")
    model, z = given(xp64, name)
    found = oc.steady_state(model, z)
    assert bool(found.converged)
    x, want = settled(name)
    np.testing.assert_allclose(packed(found.state), x, rtol=1e-9, atol=1e-10 * np.abs(x).max())
    jac = numpy_tree((oc.jacobian(model, found.state, z=z),))[0]
    np.testing.assert_allclose(jac, want, rtol=1e-6, atol=1e-8 * np.abs(want).max())
    values = to_numpy(oc.spectrum(model, found.state, z=z))
    assert_same_spectrum(values, np.linalg.eigvals(want), rtol=1e-6)
    xp64.assert_close(oc.spectral_abscissa(model, found.state, z=z), values.real.max(), rtol=1e-9)
    direction = np.random.default_rng(0).standard_normal(len(x))
    layout = Layout.of(found.state)
    moved = oc.jacobian_product(model, found.state, layout.unpack(xp64.array(direction)), z=z)
    np.testing.assert_allclose(packed(moved), jac @ direction, rtol=1e-9, atol=1e-9 * np.abs(jac).max())


@some
def test_in_single_precision(xp: Library, name: str) -> None:
    """Library, dtype and shapes are kept; fixed point and Jacobian of numpy in float64."""
    case = CASES[name]
    model, z = xp.tree(case.model), xp.array(np.stack([case.z, 0.7 * case.z]))
    found, want = oc.steady_state(model, z), oc.steady_state(case.model, numpy_tree((z,))[0])
    n = 2 * len(found.state)
    jac, exact = oc.jacobian(model, found.state, z=z), oc.jacobian(case.model, want.state, z=numpy_tree((z,))[0])
    xp.assert_kind(jac, (2, n, n))
    xp.assert_close(jac, exact, rtol=1e-8, atol=3e-10 * np.abs(exact).max())
    for part, other in zip(found.state, want.state, strict=True):
        xp.assert_kind(part, (2, 2))
        xp.assert_close(part, other, rtol=1e-8, atol=1e-9)
    run = oc.simulate(model, z, xp.array(np.linspace(0, case.end, 3)))
    xp.assert_kind(run.state[0], (3, 2, 2))


@some
def test_from_a_state_far_away(xp64: Library, name: str) -> None:
    """``state0`` is where the search begins; solvers of a model's own refuse it."""
    model, z = given(xp64, name)
    start = model.state(*(xp64.array([0.5, 0.2]) for _ in model.state._fields))
    if hasattr(model, "equilibrium"):
        with pytest.raises(ValueError, match="state0 must be None"):
            oc.steady_state(model, z, state0=start)
        return
    found = oc.steady_state(model, z, state0=start)
    assert bool(found.converged)
    slope = largest(numpy_tree(oc.vector_field(model, found.state, z)))
    assert slope * CASES[name].end < 1e-11 * (1 + largest(numpy_tree(found.state)))


# Noise.


@some
def test_noise_at_the_fixed_point(xp64: Library, name: str) -> None:
    """The covariance zeroes Lyapunov's equation; the spectrum integrates to it; coherence lies between 0 and 1."""
    model, z = given(xp64, name)
    state = oc.steady_state(model, z).state
    n = 2 * len(state)
    factor = np.random.default_rng(1).standard_normal((n, n))
    noise = xp64.array(factor)
    p = to_numpy(oc.noise_covariance(model, state, noise, z=z))
    jac = to_numpy(oc.jacobian(model, state, z=z))
    residual = jac @ p + p @ jac.T + factor @ factor.T
    assert np.abs(residual).max() < 1e-10 * np.abs(jac @ p).max()
    # f = c tan(theta) maps all frequencies onto (-pi/2, pi/2), where the integrand is smooth and periodic:
    # the sum over equal steps converges exponentially
    theta = (np.arange(4000) + 0.5) * math.pi / 4000 - math.pi / 2
    c = np.abs(np.linalg.det(jac)) ** (1 / n) / (2 * math.pi)  # the geometric mean of the rates
    spectrum = to_numpy(oc.power_spectrum(model, state, noise, xp64.array(c * np.tan(theta)), z=z))
    total = np.sum(spectrum * (c / np.cos(theta) ** 2)[:, None, None], axis=0) * math.pi / 4000
    np.testing.assert_allclose(total.real, p, rtol=0, atol=1e-8 * np.abs(p).max())
    frequencies = np.array([1.0, 20.0, 60.0])
    got = to_numpy(oc.coherence(model, state, noise, xp64.array(frequencies), z=z))
    s = to_numpy(oc.power_spectrum(model, state, noise, xp64.array(frequencies), z=z))
    power = np.einsum("fii->fi", s).real
    np.testing.assert_allclose(got, np.abs(s) ** 2 / (power[:, :, None] * power[:, None, :]), rtol=1e-9)
    assert got.min() >= 0
    assert got.max() <= 1 + 1e-9


# What is refused.


def test_a_jacobian_that_depends_on_the_drive_asks_for_it(xp: Library) -> None:
    """Of the models that say that z only adds, as the circuits do, none is asked for."""
    for name in CASES:
        model, _ = given(xp, name)
        state = model.state(*(xp.array([0.5, 0.2]) for _ in model.state._fields))
        if name == "V1":
            xp.assert_kind(oc.jacobian(model, state), (6, 6))
            continue
        for function in (oc.jacobian, oc.spectrum, oc.spectral_abscissa):
            with pytest.raises(ValueError, match=rf"z must be given: the Jacobian of a {type(model).__name__}"):
                function(model, state)
        with pytest.raises(ValueError, match="z must be given"):
            oc.jacobian_product(model, state, state)
        with pytest.raises(ValueError, match="z must be given"):
            oc.noise_covariance(model, state, 1.0)
        assert not getattr(model, "additive", False)


def test_a_model_may_say_that_its_drive_only_adds(xp64: Library) -> None:
    """Then its Jacobian, analytic or not, is the same for every drive."""

    class Adding(FitzHughNagumo):
        additive = True

    model, z = Adding(*CASES["FitzHugh-Nagumo"].model), xp64.array([0.1, -0.2])
    model = xp64.tree(model)
    state = Membrane(xp64.array([-1.0, 0.3]), xp64.array([-0.5, 0.1]))
    want = to_numpy(oc.jacobian(model, state, z=z))
    xp64.assert_close(oc.jacobian(model, state), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("SSN", {"exponent": -1.0}, "exponent must be positive, got -1"),
        ("SSN", {"k": 0.0}, "k must be positive, got 0"),
        ("SSN", {"w": np.ones((2, 3))}, "w must be square"),
        ("SSN", {"tau": np.ones(3)}, r"tau must have shape \(\.\.\., 2\) or a scalar"),
        ("SSN", {"g": np.array([1.0, np.nan])}, "g must be finite"),
        ("Wilson-Cowan", {"slope": 0.0}, "slope must be positive, got 0"),
        ("Wilson-Cowan", {"refractory": -0.1}, "refractory must be non-negative, got -0.1"),
        ("Wilson-Cowan", {"k": -1.0}, "k must be positive, got -1"),
        ("Wilson-Cowan", {"threshold": np.ones(4)}, "threshold must have shape"),
        ("FitzHugh-Nagumo", {"tau": -0.01}, "tau must be positive, got -0.01"),
        ("FitzHugh-Nagumo", {"b": np.ones(3)}, "b must have shape"),
    ],
)
def test_wrong_parameters_are_named(name: str, fields: dict[str, Any], message: str) -> None:
    model, z = CASES[name].model._replace(**fields), CASES[name].z
    state = model.state(*(np.ones(2) for _ in model.state._fields))
    calls = {
        "simulate": lambda: oc.simulate(model, z, np.array([0.0, 0.1])),
        "simulate_sde": lambda: oc.simulate_sde(model, z, np.array([0.0, 0.1]), noise=0.1),
        "steady_state": lambda: oc.steady_state(model, z),
        "vector_field": lambda: oc.vector_field(model, state, z),
        "noise_covariance": lambda: oc.noise_covariance(model, state, 1.0, z=z),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=message):
            call()


def test_what_is_no_state_or_weight_is_named() -> None:
    model, z = CASES["SSN"].model, CASES["SSN"].z
    with pytest.raises(TypeError, match=r"state must be a SSNState\(r\)"):
        oc.jacobian(model, (z, z), z=z)
    with pytest.raises(TypeError, match="w must be an array, got the number 1"):
        oc.simulate(model._replace(w=1.0), z, np.array([0.0, 0.1]))
    with pytest.raises(TypeError, match="k must be a number or an array"):
        oc.simulate(model._replace(k=None), z, np.array([0.0, 0.1]))
    with pytest.raises(ValueError, match="variant 'rectified' is one of a Circuit's; a SSN has none"):
        oc.simulate(model, z, np.array([0.0, 0.1]), variant="rectified")
    with pytest.raises(ValueError, match="method 'closed_form' is one of a Circuit's"):
        oc.steady_state(model, z, method="closed_form")


@pytest.mark.one_dtype
def test_parameters_that_are_numbers_alone(xp: Library) -> None:
    """The drive tells the library, and how many there are; a drive without axes is refused by name."""
    model = FitzHughNagumo(0.7, 0.8, 0.08, 0.01)
    times, z = xp.array([0.0, 0.01, 0.02]), xp.array([0.1, 0.2, 0.3])
    for drive in (z, lambda t: z):
        run = oc.simulate(model, drive, times)
        xp.assert_kind(run.state.v, (3, 3))
    assert bool(xp.namespace.all(oc.steady_state(model, z).converged))
    for call in (oc.simulate, lambda model, z, times: oc.steady_state(model, z)):
        with pytest.raises(ValueError, match=r"z must have shape \(\.\.\., n\), got shape \(\)"):
            call(model, xp.array(0.1), times)
    with pytest.raises(ValueError, match="tau must be positive"):
        oc.simulate(model._replace(tau=-1.0), z, times)


# Families.


def test_a_family_is_found_by_its_file() -> None:
    """Every model and state that a file of the folder defines, and nothing else."""
    assert {"SSN", "SSNState", "V1Circuit", "V1State", "WilsonCowan", "WilsonCowanState"} <= set(oc.models.__all__)
    assert oc.models.SSN is oc.SSN
    for name in oc.models.__all__:
        assert getattr(oc.models, name).__module__.startswith("organics_core.models.")


def test_ssn_is_its_equation() -> None:
    """tau r' = -r + k max(W r + g z, 0)**n, neuron by neuron; a silent neuron decays."""
    w, k, n, tau, g = CASES["SSN"].model
    r, z = np.array([3.0, 2.0]), np.array([2.0, -40.0])
    got = oc.vector_field(oc.SSN(w, k, n, tau, g), oc.SSNState(r), z).r
    for i in range(2):
        drive = max(sum(w[i, j] * r[j] for j in range(2)) + g * z[i], 0.0)
        assert got[i] == pytest.approx((-r[i] + k * drive ** n[i]) / tau[i], rel=1e-14)
    assert got[1] == -r[1] / tau[1]


def test_wilson_cowan_is_its_equation() -> None:
    """tau x' = -x + (k - r x) S(W x + z) with S as published, whose value is 0 at 0; k given or its largest value."""
    w, a, theta, tau, refractory, _ = CASES["Wilson-Cowan"].model
    x, z = np.array([0.3, 0.1]), np.array([1.5, -800.0])
    for k in (None, 1.0):
        got = oc.vector_field(oc.WilsonCowan(w, a, theta, tau, refractory, k), oc.WilsonCowanState(x), z).x
        for i in range(2):
            v = sum(w[i, j] * x[j] for j in range(2)) + z[i]
            s = 1 / (1 + math.exp(-max(a[i] * (v - theta[i]), -700))) if a[i] * (v - theta[i]) > -700 else 0.0
            s -= 1 / (1 + math.exp(a[i] * theta[i]))
            largest = 1 - 1 / (1 + math.exp(a[i] * theta[i])) if k is None else k
            assert got[i] == pytest.approx((-x[i] + (largest - refractory[i] * x[i]) * s) / tau, rel=1e-12)
    zero = np.zeros(2)
    still = oc.vector_field(CASES["Wilson-Cowan"].model, oc.WilsonCowanState(zero), zero).x
    np.testing.assert_array_equal(still, zero)


@pytest.mark.parametrize("name", ["SSN", "Wilson-Cowan"])
def test_weights_may_be_operators(xp64: Library, name: str) -> None:
    """The products of an operator are those of its matrix; the state is solved and simulated all the same."""
    model, z = given(xp64, name)
    free = model._replace(w=oc.Operator(lambda v: v @ model.w.T, shape=(2, 2), batched=True))
    times = xp64.array([0.0, CASES[name].end])
    for one, other in (
        (oc.simulate(free, z, times).state, oc.simulate(model, z, times).state),
        (oc.steady_state(free, z).state, oc.steady_state(model, z).state),
    ):
        np.testing.assert_allclose(packed(one), packed(other), rtol=1e-9)
    state = model.state(xp64.array([0.5, 0.2]))
    one, other = (to_numpy(oc.jacobian(m, state, z=z)) for m in (free, model))
    np.testing.assert_allclose(one, other, rtol=1e-12)


# Derivatives where a library has none.


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("state", [(-1.1, -0.5), (0.0, -0.5), (1e-9, -0.5), (0.0, 0.0)])
def test_differences_follow_the_size_of_the_state(scale: float, state: tuple[float, float]) -> None:
    """FitzHugh and Nagumo's v and w in other units: the same Jacobian, whatever the state is made of."""

    def field(x: np.ndarray) -> np.ndarray:
        v, w = x[..., 0] / scale, x[..., 1] / scale
        return scale * np.stack([v - v**3 / 3 - w + 0.1, 0.08 * (v + 0.7 - 0.8 * w)], axis=-1)

    import array_api_compat.numpy as namespace

    x = scale * np.array(state)
    want = np.array([[1 - state[0] ** 2, -1.0], [0.08, -0.064]])
    np.testing.assert_allclose(packed_jacobian(namespace, field, x), want, atol=1e-7)


def test_differences_of_components_of_different_size() -> None:
    """v of order 1e-6 beside w of order 1e6, each moved by its own size."""

    def field(x: np.ndarray) -> np.ndarray:
        v, w = 1e6 * x[..., 0], 1e-6 * x[..., 1]
        return np.stack([1e-6 * (v - v**3 / 3 - w + 0.1), 1e6 * 0.08 * (v + 0.7 - 0.8 * w)], axis=-1)

    import array_api_compat.numpy as namespace

    got = packed_jacobian(namespace, field, np.array([-1.1e-6, -0.5e6]))
    np.testing.assert_allclose(got, [[1 - 1.1**2, -1e-12], [0.08e12, -0.064]], rtol=1e-9)


def test_differences_shrink_where_the_function_is_steep() -> None:
    """A kink-like function of width 1e-6 at a state of order one, and a rational one near its pole."""
    import array_api_compat.numpy as namespace

    backend = oc.get_backend(namespace)
    one = np.ones(1)
    steep = backend.jvp(lambda x: np.tanh(1e6 * (x - 1.0)), one, one)
    np.testing.assert_allclose(steep, 1e6, rtol=1e-6)
    pole = backend.jvp(lambda x: 1 / (x - 0.99), one, one)
    np.testing.assert_allclose(pole, -1e4, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "at", "width", "error", "calls"),
    [
        # the step that fits is the first: eight points, and the error of order eight is below round-off
        (np.float64, 0.0, 1.0, 1e-13, 8),
        (np.float64, 1.0, 1.0, 1e-13, 8),
        (np.float64, 1e-6, 1e-6, 1e-13, 8),
        (np.float32, 0.0, 1.0, 5e-6, 8),
        (np.float32, 1.0, 1.0, 1e-5, 8),
        # one of the others does: at zero, which tells no size, from 1e-9 to 1e9; elsewhere as far as eps allows
        *((np.float64, 0.0, width, 1e-12, 60) for width in (1e-9, 1e-6, 1e-3, 1e3, 1e6, 1e9)),
        *((np.float32, 0.0, width, 1e-5, 60) for width in (1e-9, 1e-6, 1e-3, 1e3, 1e6)),
        *((np.float64, 1.0, width, error, 60) for width, error in ((1e-6, 1e-6), (1e-3, 1e-9), (1e3, 1e-12))),
        *((np.float64, 1e-6, width, 1e-9, 60) for width in (1e-9, 1e-3, 1.0, 1e3)),
    ],
)
def test_differences_find_the_width_of_the_function(
    dtype: Any, at: float, width: float, error: float, calls: int
) -> None:
    """tanh of any width, against its derivative; and in how many values of the function."""
    import array_api_compat.numpy as namespace

    x, count = np.array([at], dtype), [0]

    def function(x: np.ndarray) -> np.ndarray:
        count[0] += 1
        return np.tanh((x - dtype(at)) / dtype(width) + dtype(0.3))

    slope = oc.get_backend(namespace).jvp(function, x, np.ones(1, dtype))
    assert slope.dtype == dtype
    np.testing.assert_allclose(slope, 1 / math.cosh(0.3) ** 2 / width, rtol=error)
    assert count[0] <= calls


def test_differences_of_members_of_a_batch_are_their_own() -> None:
    """One of 1e-6 beside one of 1e6, widths as the state: the steps of each are those that it has alone."""
    import array_api_compat.numpy as namespace

    backend = oc.get_backend(namespace)
    for dtype, error in ((np.float64, 1e-9), (np.float32, 1e-4)):
        x = np.array([[1e-6, 2e-6], [1e6, -3e6], [1.0, 0.0]], dtype)
        width = np.array([[1e-6], [1e6], [1.0]], dtype)
        slope = backend.jvp(lambda x, width=width: np.sinh(x / width), x, np.array([1.0, 0.0], dtype) + 0.0 * x)
        np.testing.assert_allclose(slope[:, 0], np.cosh(x[:, 0] / width[:, 0]) / width[:, 0], rtol=error)
        np.testing.assert_array_equal(slope[:, 1], 0.0)


# Tracing.


@pytest.mark.library("jax")
@every
def test_jit_vmap_and_grad(xp64: Library, name: str) -> None:
    """Mapped and compiled it is numpy, member by member; the gradient is a central difference."""
    import jax

    case = CASES[name]
    model, z = given(xp64, name)
    times = xp64.array(np.linspace(0.0, case.end, 4))

    def everything(model: Any, z: Any, times: Any = times) -> tuple[Any, ...]:
        found = oc.steady_state(model, z).state
        parts = (*found, oc.jacobian(model, found, z=z))
        if name in ALIKE:  # the loops are the same
            return parts
        run = oc.simulate(model, z, times, rtol=1e-9, atol=1e-11)
        return (*parts, *run.state, oc.noise_covariance(model, found, 0.1, z=z))

    want = everything(case.model, case.z, np.linspace(0.0, case.end, 4))
    mapped = jax.jit(jax.vmap(everything, in_axes=(None, 0)))(model, xp64.array(np.array([[1.0], [0.9]]) * case.z))
    for one, other in zip(mapped, want, strict=True):
        np.testing.assert_allclose(to_numpy(one)[0], other, rtol=1e-6, atol=1e-8 * np.abs(other).max())

    @jax.jit
    def scalar(factor: Any) -> Any:
        return sum((part**2).sum() for part in oc.steady_state(model, factor * z).state)

    one = xp64.array(1.0)
    slope = sum(w / 1e-3 * (scalar(one + m * 1e-3) - scalar(one - m * 1e-3)) for m, w in STENCIL)
    np.testing.assert_allclose(float(jax.grad(scalar)(one)), float(slope), rtol=1e-6)


@NEEDS_RECENT_TORCH
@pytest.mark.library("torch")
@every
def test_torch_func_and_compile(xp64: Library, name: str) -> None:
    """torch.func differentiates and maps; the field and the Jacobian compile as one graph."""
    import torch

    case = CASES[name]
    model, z = given(xp64, name)
    state = model.state(*(xp64.array([0.5, 0.2]) for _ in model.state._fields))
    times = xp64.array(np.linspace(0.0, case.end, 4))

    def scalar(z: Any) -> Any:
        return sum((part**2).sum() for part in oc.simulate(model, z, times, method="rk4", substeps=20).state)

    slope = sum(w / 1e-4 * (scalar(z * (1 + m * 1e-4)) - scalar(z * (1 - m * 1e-4))) for m, w in STENCIL)
    np.testing.assert_allclose(float((torch.func.grad(scalar)(z) * z).sum()), float(slope), rtol=1e-6)
    batch = xp64.array(np.array([[1.0], [0.9]]) * case.z)

    def matrices(z: Any) -> Any:
        return oc.jacobian(model, state, z=z)

    mapped = torch.func.vmap(matrices)(batch)
    np.testing.assert_allclose(to_numpy(mapped)[1], to_numpy(matrices(batch[1])), rtol=1e-9, atol=1e-9)

    def step(z: Any) -> Any:
        return tuple(oc.vector_field(model, state, z))

    compiled = torch.compile(step, fullgraph=True, backend="eager")(z)
    for one, other in zip(compiled, step(z), strict=True):
        xp64.assert_close(one, to_numpy(other), rtol=1e-12)
    compiled = torch.compile(matrices, fullgraph=True, backend="eager")(z)
    np.testing.assert_allclose(to_numpy(compiled), to_numpy(matrices(z)), rtol=1e-12)


@pytest.mark.library("torch")
@pytest.mark.parametrize("method", ["dopri5", "rodas5p"])
def test_gradients_pass_through_adaptive_steps(xp64: Library, method: str) -> None:
    """Of a user's own model, by torch: the end of a run, against a central difference."""
    import torch

    model, z = given(xp64, "FitzHugh-Nagumo")
    times = xp64.array([0.0, 0.1])

    def end(z: Any) -> Any:
        return oc.simulate(model, z, times, method=method, rtol=1e-10, atol=1e-12).state.v[-1].sum()

    z = z.clone().requires_grad_()
    got = torch.autograd.grad(end(z), z)[0].sum()
    slope = sum(w / 1e-3 * (end(z.detach() + m * 1e-3) - end(z.detach() - m * 1e-3)) for m, w in STENCIL)
    np.testing.assert_allclose(float(got), float(slope), rtol=1e-5)
