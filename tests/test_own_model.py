"""A model of one's own, with a vector field and nothing else: what the core adds, against what can be written down."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from support import Library

import organics_core as oc
from organics_core.backend import to_numpy
from organics_core.model import Parameter, size


class Excitable(NamedTuple):
    """Voltage and recovery of each neuron."""

    v: Any
    r: Any


SPEC = {"w": Parameter(axes=2), "tau": Parameter("> 0"), "rate": Parameter(">= 0")}
FEWER = {name: SPEC[name] for name in ("w", "tau")}
LEAKS = {"tau": Parameter("> 0"), "gain": Parameter()}


class FitzHughNagumo(NamedTuple):
    """v' = (v - v**3 / 3 - r + z + W v) / tau, r' = rate (v - r) + sin t."""

    w: Any
    tau: Any
    rate: Any

    spec = SPEC
    state = Excitable

    def field(self, xp: Any, t: Any, x: Any, z: Any) -> Excitable:
        v, r = x
        return Excitable(
            (v - v**3 / 3 - r + z + xp.matmul(v, self.w.T)) / self.tau, self.rate * (v - r) + xp.sin(t) + 0.0 * v
        )


W = np.array([[0.1, -0.3, 0.0], [0.2, 0.0, 0.4], [-0.5, 0.1, 0.2]])
TAU = np.array([0.5, 1.0, 2.0])
MODEL = FitzHughNagumo(W, TAU, 0.3)
Z = np.array([0.5, -0.2, 1.0])


def slope(t: float, x: np.ndarray) -> np.ndarray:
    v, r = x[:3], x[3:]
    return np.concatenate([(v - v**3 / 3 - r + Z + W @ v) / TAU, 0.3 * (v - r) + math.sin(t)])


def matrix(x: np.ndarray) -> np.ndarray:
    v = x[:3]
    top = np.concatenate([(np.diag(1 - v**2) + W) / TAU[:, None], -np.diag(1 / TAU)], axis=1)
    return np.concatenate([top, np.concatenate([0.3 * np.eye(3), -0.3 * np.eye(3)], axis=1)])


@pytest.mark.parametrize("method", ["dopri5", "rodas5p"])
def test_its_time_is_that_of_the_clock(method: str) -> None:
    """From rest at zero, as scipy has it, from a clock that starts at 2 s; with a Jacobian by differences."""
    times = 2.0 + np.linspace(0.0, 6.0, 5)
    run = oc.simulate(MODEL, Z, times, method=method, rtol=1e-8, atol=1e-10)
    want = solve_ivp(slope, (2, 8), np.zeros(6), "DOP853", times, rtol=1e-11, atol=1e-12).y
    assert isinstance(run.state, Excitable)
    np.testing.assert_allclose(run.state.v, want[:3].T, atol=1e-6)
    np.testing.assert_allclose(run.state.r, want[3:].T, atol=1e-6)
    assert int(run.rejected) < 0.3 * int(run.steps) + 5
    batch = oc.simulate(MODEL, np.stack([Z, Z]), times, method=method, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(batch.state.v[:, 1], run.state.v, atol=1e-6)


def test_its_slope_and_jacobian() -> None:
    """At the time zero; of one state, and of batches of any shape."""
    x = np.random.default_rng(0).standard_normal((2, 4, 6))
    state = Excitable(x[..., :3], x[..., 3:])
    found = oc.vector_field(MODEL, state, Z)
    made = oc.jacobian(MODEL, state, z=Z)
    assert isinstance(found, Excitable)
    assert made.shape == (2, 4, 6, 6)
    for i in np.ndindex(2, 4):
        np.testing.assert_allclose(np.concatenate([part[i] for part in found]), slope(0.0, x[i]), rtol=1e-12)
        np.testing.assert_allclose(made[i], matrix(x[i]), atol=1e-8)
    np.testing.assert_allclose(oc.jacobian(MODEL, Excitable(x[0, 0, :3], x[0, 0, 3:]), z=Z), matrix(x[0, 0]), atol=1e-8)


def test_what_is_wrong_with_it_is_named() -> None:
    """Parameters by their bounds, states by their parts, a specification that lacks one."""
    state = Excitable(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match=r"^tau must be positive"):
        oc.vector_field(MODEL._replace(tau=0.0), state, Z)
    with pytest.raises(ValueError, match=r"^rate must be non-negative"):
        oc.vector_field(MODEL._replace(rate=-1.0), state, Z)
    with pytest.raises(ValueError, match=r"^w must "):
        oc.vector_field(MODEL._replace(w=np.ones((3, 2))), state, Z)
    with pytest.raises(TypeError, match=r"^state must be a Excitable\(v, r\), got"):
        oc.vector_field(MODEL, (np.zeros(3),), Z)
    with pytest.raises(TypeError, match=r"^circuit must be a Circuit or another model \(a named tuple with spec"):
        oc.vector_field((1.0, 2.0), state, Z)

    class Forgetful(FitzHughNagumo):
        spec = FEWER

    with pytest.raises(TypeError, match=r"^spec of Forgetful must describe every parameter, but lacks 'rate'$"):
        oc.vector_field(Forgetful(W, TAU, 0.3), state, Z)
    with pytest.raises(ValueError, match="needs tau, the time constants of the linear decay"):
        oc.simulate(MODEL, Z, np.array([0.0, 1.0]), method="exponential_euler")


def test_what_its_slope_refuses() -> None:
    """A parameter out of range, another shape of the drive or the state, a variant."""
    state = Excitable(np.ones(3), np.ones(3))
    for call, error, said in (
        (lambda: oc.vector_field(MODEL._replace(tau=-TAU), state, Z), ValueError, "tau must be positive, got -2"),
        (
            lambda: oc.vector_field(MODEL, state, Z[:2]),
            ValueError,
            r"z must have shape \(\.\.\., 3\), got shape \(2,\)",
        ),
        (lambda: oc.vector_field(MODEL, state, Z * np.nan), ValueError, None),
        (lambda: oc.vector_field(MODEL, Excitable(Z, Z[:1]), Z), ValueError, r"state\.r must have shape \(\.\.\., 3\)"),
        (lambda: oc.vector_field(MODEL, Z, Z), TypeError, r"state must be a Excitable\(v, r\), got numpy\.ndarray of"),
        (lambda: oc.vector_field(Z, state, Z), TypeError, "circuit must be a Circuit or another model"),
        (
            lambda: oc.vector_field(MODEL, state, Z, variant="rectified"),
            ValueError,
            "variant 'rectified' is one of a Circuit's; a FitzHughNagumo has none$",
        ),
    ):
        if said is None:  # values of the arguments are not looked at, so that steps trace
            assert np.isnan(call().v).all()
            continue
        with pytest.raises(error, match=f"^{said}"):
            call()
    single = oc.vector_field(
        FitzHughNagumo(*(np.asarray(part, dtype=np.float32) for part in MODEL)),
        Excitable(*(part.astype(np.float32) for part in state)),
        Z.astype(np.float32),
    )
    assert {part.dtype for part in single} == {np.dtype(np.float32)}


def test_its_size() -> None:
    """Of weights, else of the longest parameter; nothing tells it where all are numbers."""

    class Leak(NamedTuple):
        tau: Any
        gain: Any
        spec = LEAKS
        state = Excitable

        def field(self, xp: Any, t: Any, x: Any, z: Any) -> Excitable:
            return Excitable((self.gain * z - x.v) / self.tau, 0.0 * x.r)

    assert size(MODEL) == 3
    assert size(MODEL._replace(w=W[None])) == 3
    assert size(Leak(np.ones(1), np.ones((2, 5)))) == 5
    with pytest.raises(ValueError, match=r"^nothing in this Leak tells its number of neurons; give weights a shape$"):
        size(Leak(1.0, 2.0))
    gains = np.array([[1.0], [2.0]])  # a batch in the model alone
    run = oc.simulate(Leak(1.0, gains), np.ones(4), np.array([0.0, 1.0]), rtol=1e-8)
    assert run.state.v.shape == (2, 2, 4)
    np.testing.assert_allclose(run.state.v[-1], gains * (1 - math.exp(-1)) * np.ones(4), rtol=1e-6)


class Level(NamedTuple):
    """One part."""

    x: Any


class Leak(NamedTuple):
    """Decays to its drive."""

    tau: Any
    spec = {"tau": Parameter("> 0")}  # noqa: RUF012
    state = Level

    def field(self, xp: Any, t: Any, x: Level, z: Any) -> Level:
        return Level((z - x.x) / self.tau)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        (
            "spec",
            {"tau": "> 0"},
            "^spec of Wrong must hold Parameters with axes 1 or 2 and allowed one of 'any', '>= 0', '> 0', "
            "got '> 0' for 'tau'$",
        ),
        ("spec", {"tau": Parameter("positive")}, "spec of Wrong must hold Parameters .* for 'tau'"),
        ("spec", {"tau": Parameter("> 0", axes=3)}, "spec of Wrong must hold Parameters .* for 'tau'"),
        ("state", tuple, "state of Wrong must be the type of a named tuple, got <class 'tuple'>"),
    ],
)
def test_a_model_that_describes_itself_wrongly(attribute: str, value: Any, message: str) -> None:
    """One sentence that names the class."""
    wrong = type("Wrong", (Leak,), {attribute: value})
    with pytest.raises(TypeError, match=message):
        oc.simulate(wrong(0.1), np.ones(1), np.array([0.0, 0.1]))


def test_a_parameter_that_is_a_number_of_numpy(xp: Library) -> None:
    """np.float64 is a float: with drives and times of any library the run is that of the float."""
    z, times = xp.array([1.0, 2.0]), xp.array([0.0, 0.1, 0.3])
    one, other = (oc.simulate(Leak(tau), z, times).state.x for tau in (np.float64(0.1), 0.1))
    np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    noisy = oc.simulate_sde(Leak(np.float64(0.1)), z, times, noise=0.1)
    assert noisy.success


@pytest.mark.parametrize("method", ["dopri5", "rodas5p", "rk4"])
def test_a_drive_that_returns_something_else_later(method: str) -> None:
    """Is refused by its name, with what it returned first and then."""
    for later, got in (
        (np.ones(2), r"numpy\.ndarray of shape \(2,\)"),
        (np.ones((4, 3)), r"numpy\.ndarray of shape \(4, 3\)"),
        (0.0, "float"),
    ):
        with pytest.raises(
            ValueError, match=rf"^z\(t\) must return an array of shape \(3,\) at all times, .* got {got}$"
        ):
            oc.simulate(Leak(0.1), lambda t, z=later: np.ones(3) if t < 0.5 else z, np.array([0.0, 1.0]), method=method)
    with pytest.raises(TypeError, match=r"^z\(t\) must return real numbers, got complex128$"):
        oc.simulate(
            Leak(0.1), lambda t: np.ones(3) if t < 0.5 else 1j * np.ones(3), np.array([0.0, 1.0]), method=method
        )


def test_time_constants_that_do_not_fit() -> None:
    """Of a model by its class, of a field by the argument, with their shape or value."""
    times, start = np.array([0.0, 0.1]), (np.ones(3),)
    for tau, said in (
        (0.1, "tau must be a tuple of 1 time constants, one per part of the state, got float"),
        ((0.1, 0.2), "tau must be a tuple of 1 time constants, .* got tuple of length 2"),
        ((np.ones(2),), r"tau\[0\] must be a number or broadcast to the shape \(3,\), got shape \(2,\)"),
        ((np.ones((4, 3)),), r"tau\[0\] must be a number or broadcast to the shape \(3,\), got shape \(4, 3\)"),
        ((0.0,), r"tau\[0\] must be positive, got 0"),
        ((np.array([1.0, -1.0, 1.0]),), r"tau\[0\] must be positive, got -1 as its smallest value"),
        ((math.nan,), r"tau\[0\] must be finite"),
    ):
        with pytest.raises(ValueError, match=f"^{said}"):
            oc.integrate(lambda t, x: (-x[0],), start, times, method="exponential_euler", tau=tau)
        if "positive" not in said and "finite" not in said:
            wrong = type("Wrong", (Leak,), {"decay": lambda self, tau=tau: tau})(0.1)
            with pytest.raises(ValueError, match=f"^{said.replace('tau', 'decay of Wrong', 1)}"):
                oc.simulate(wrong, np.ones(3), times, method="exponential_euler")
    for fine in ((0.5,), [np.array(0.5)], (np.full(3, 0.5),)):
        run = oc.integrate(lambda t, x: (-2.0 * x[0],), start, times, method="exponential_euler", tau=fine)
        np.testing.assert_allclose(run.state[0][-1], math.exp(-0.2), rtol=1e-14)


def test_a_jacobian_of_another_shape() -> None:
    """Is refused wherever it is asked for."""
    wrong = type("Wrong", (Leak,), {"jacobian": lambda self, xp, t, x, z: xp.ones((2, 2))})(0.1)
    for call in (
        lambda: oc.jacobian(wrong, Level(np.ones(1)), z=np.ones(1)),
        lambda: oc.steady_state(wrong, np.ones(1)),
        lambda: oc.simulate(wrong, np.ones(1), np.array([0.0, 0.1]), method="rodas5p"),
    ):
        with pytest.raises(
            ValueError, match=r"jacobian of Wrong must return an array \(\.\.\., 1, 1\), got .*\(2, 2\)"
        ):
            call()
