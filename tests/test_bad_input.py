"""Bad input: one table of it. Each case is one sentence that names the culprit."""

from __future__ import annotations

import gzip
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array
from support import Library, small_circuit

import organics_core as oc
from organics_core import checks
from organics_core.io.circuits import load_circuit


class Good:
    """Good arguments of one library; each case spoils one of them."""

    def __init__(self, xp: Library) -> None:
        case = small_circuit(3)
        self.xp = xp
        self.array = xp.array
        self.circuit, self.z, self.state = xp.tree(case.circuit), xp.array(case.z), xp.tree(case.state)
        self.unit = self.circuit._replace(w_r=None)
        self.times = xp.array([0.0, 0.001, 0.002])
        self.parameters, self.start = (xp.tree(part) for part in oc.init_cell(0, 2, 3))
        self.x = xp.array([0.5, -0.5])

    def integers(self, *shape: int) -> Any:
        return self.xp.namespace.ones(shape, dtype=self.xp.namespace.int64)

    def make(self, **changes: Any) -> Any:
        """A new circuit, checked as users' circuits are."""
        return oc.Circuit(**{**self.circuit._asdict(), **changes})

    def solve(self, **changes: Any) -> Any:
        return oc.steady_state(**{"circuit": self.circuit, "z": self.z, **changes})

    def run(self, **changes: Any) -> Any:
        return oc.simulate(**{"circuit": self.circuit, "z": self.z, "times": self.times, **changes})

    def cell(self, **changes: Any) -> Any:
        return oc.cell_step(**{"parameters": self.parameters, "state": self.start, "x": self.x, **changes})


def filled(g: Good, name: str, value: float) -> Any:
    """The field ``name`` with one of its values replaced."""
    field = np.array(oc.backend.to_numpy(getattr(g.circuit, name)))
    field.flat[1] = value
    return g.array(field)


Case = tuple[str, type[Exception], str, Callable[[Good], Any]]

OUT_OF_RANGE: list[Case] = [
    case
    for name in ("tau_y", "tau_a", "b", "b0", "sigma")
    for case in (
        (f"{name} = 0", ValueError, name, lambda g, name=name: g.make(**{name: 0.0})),
        (f"{name} < 0", ValueError, name, lambda g, name=name: g.make(**{name: -0.002})),
        (f"one {name} < 0", ValueError, name, lambda g, name=name: g.make(**{name: filled(g, name, -1.0)})),
    )
] + [
    ("one w < 0", ValueError, "w", lambda g: g.make(w=filled(g, "w", -0.1))),
    ("a fixed point asked for with tau_y = 0", ValueError, "tau_y", lambda g: g.solve(circuit=replaced(g, tau_y=0.0))),
]

NOT_FINITE: list[Case] = [
    (f"{value} in {name}", ValueError, name, lambda g, name=name, value=value: g.make(**{name: filled(g, name, value)}))
    for name in oc.Circuit._fields
    for value in (np.nan, np.inf)
] + [
    ("NaN number", ValueError, "sigma", lambda g: g.make(sigma=float("nan"))),
    ("NaN in z, steady state", ValueError, "z", lambda g: g.solve(z=g.z * np.nan)),
    ("NaN in z, simulation", ValueError, "z", lambda g: g.run(z=g.z * np.nan)),
    ("NaN in z, certificate", ValueError, "z", lambda g: oc.certify(g.unit, g.z * np.nan)),
    ("NaN in z, Euler steps", ValueError, "z", lambda g: oc.euler_step_bound(g.unit, g.z * np.nan)),
    ("NaN in z, fixed points", ValueError, "z", lambda g: oc.fixed_points(one_neuron(g), g.array([np.nan]))),
    ("NaN in state0", ValueError, "state0.a", lambda g: g.run(state0=oc.State(g.state.y, g.state.a * np.nan))),
    ("a number too large", ValueError, "b", lambda g: g.make(b=10**400)),
    ("NaN from z(t)", ValueError, "z(t)", lambda g: g.run(z=lambda t: g.z * np.nan)),
    ("NaN in times", ValueError, "times", lambda g: g.run(times=g.times * np.nan)),
]

SHAPES: list[Case] = [
    ("w not square", ValueError, "w", lambda g: g.make(w=g.array(np.ones((3, 2))))),
    ("w a vector", ValueError, "w", lambda g: g.make(w=g.array(np.ones(3)))),
    ("w empty", ValueError, "w", lambda g: g.make(w=g.array(np.ones((0, 0))))),
    ("w_r of another size", ValueError, "w_r", lambda g: g.make(w_r=g.array(np.eye(2)))),
    *(
        (f"{name} of another size", ValueError, name, lambda g, name=name: g.make(**{name: g.array(np.ones(2))}))
        for name in ("b", "b0", "sigma", "tau_y", "tau_a")
    ),
    ("batch axes that differ", ValueError, "b", lambda g: g.make(w=g.array(np.ones((2, 3, 3))), b=ones(g, 4, 3))),
    ("z of another size, steady state", ValueError, "z", lambda g: g.solve(z=ones(g, 2))),
    ("z of another size, simulation", ValueError, "z", lambda g: g.run(z=ones(g, 2))),
    ("z a scalar", ValueError, "z", lambda g: g.solve(z=g.array(1.0))),
    ("z's batch axes", ValueError, "z", lambda g: g.solve(circuit=g.make(b=ones(g, 4, 3)), z=ones(g, 2, 3))),
    ("state of another size", ValueError, "state.a", lambda g: oc.jacobian(g.circuit, oc.State(g.z, ones(g, 2)))),
    ("state0 of another size", ValueError, "state0.y", lambda g: g.run(state0=oc.State(ones(g, 2), g.z))),
    ("too few samples", ValueError, "z", lambda g: g.run(z=ones(g, 2, 3), drive="sampled")),
    ("z(t) of another size", ValueError, "z(t)", lambda g: g.run(z=lambda t: ones(g, 2))),
    ("one neuron asked of three", ValueError, "w", lambda g: oc.fixed_points(g.circuit, g.z)),
    *(
        (f"one neuron, a batch of {name}", ValueError, name, lambda g, name=name, n=n: one_of_many(g, name, n))
        for name, n in (("w_r", 2), ("b", 1), ("sigma", 1), ("tau_a", 1))
    ),
    ("a search, a batch of w_r", ValueError, "w_r", lambda g: oc.find_fixed_points(g.make(w_r=ones(g, 2, 3, 3)), g.z)),
    ("a search, a batch of tau_a", ValueError, "tau_a", lambda g: oc.find_fixed_points(tau_of_two(g), g.z)),
    ("times a number's array", ValueError, "times", lambda g: g.run(times=g.array(1.0))),
    ("a single time", ValueError, "times", lambda g: g.run(times=g.array([0.0]))),
    ("x of another size", ValueError, "x", lambda g: g.cell(x=ones(g, 5))),
    ("a cell's state", ValueError, "state.b1", lambda g: g.cell(state=g.start._replace(b1=ones(g, 2)))),
    ("a cell's weights", ValueError, "w_by0", lambda g: g.cell(parameters=g.parameters._replace(w_by0=ones(g, 3, 2)))),
    ("a cell's rates", ValueError, "theta_a", lambda g: g.cell(parameters=g.parameters._replace(theta_a=ones(g, 2)))),
    ("an empty batch", ValueError, "batch", lambda g: g.run(z=ones(g, 0, 3))),
    ("no steps", ValueError, "xs", lambda g: oc.cell_sequence(g.parameters, g.start, g.array(np.ones((0, 2))))),
]

KINDS: list[Case] = [
    *(
        (f"integer {name}", TypeError, name, lambda g, name=name, n=n: g.make(**{name: g.integers(*(3,) * n)}))
        for name, n in (("w_r", 2), ("w", 2), ("b", 1), ("sigma", 1), ("tau_y", 1))
    ),
    ("integer z", TypeError, "z", lambda g: g.solve(z=g.integers(3))),
    ("integer times", TypeError, "times", lambda g: g.run(times=g.integers(3))),
    ("boolean z", TypeError, "z", lambda g: g.solve(z=g.z > 0)),
    ("complex w", TypeError, "w", lambda g: g.make(w=g.xp.namespace.astype(g.circuit.w, g.xp.complex_dtype))),
    ("integer x", TypeError, "x", lambda g: g.cell(x=g.integers(2))),
    ("a list for w", TypeError, "w", lambda g: g.make(w=[[1.0, 0.0, 0.0]] * 3)),
    ("a list for z", TypeError, "z", lambda g: g.solve(z=[1.0, 0.5, 0.2])),
    ("a list for z, simulated", TypeError, "z", lambda g: g.run(z=[1.0, 0.5, 0.2])),
    ("a number for z", TypeError, "z", lambda g: g.solve(z=1.0)),
    ("a number for w", TypeError, "w", lambda g: g.make(w=1.0)),
    ("z(t) a list", TypeError, "z(t)", lambda g: g.run(z=lambda t: [1.0, 2.0, 3.0])),
    *((f"None for {name}", TypeError, name, lambda g, n=name: g.make(**{n: None})) for name in ("w", "b", "tau_a")),
    ("True for b", TypeError, "b", lambda g: g.make(b=True)),
    ("a complex number for b", TypeError, "b", lambda g: g.make(b=1.0 + 2.0j)),
    ("None for b in a circuit not checked", TypeError, "b", lambda g: g.solve(circuit=replaced(g, b=None))),
    ("None for z", TypeError, "z", lambda g: g.solve(z=None)),
    ("None for z, certified", TypeError, "z", lambda g: oc.certify(g.unit, None)),
    ("None for a of a state", TypeError, "state.a", lambda g: oc.jacobian(g.circuit, oc.State(g.z, None))),
    ("None for times", TypeError, "times", lambda g: g.run(times=None)),
    ("None for frequencies", TypeError, "frequencies", lambda g: oc.power_spectrum(g.unit, g.state, 0.1, None)),
    ("a dictionary for the circuit", TypeError, "circuit", lambda g: g.run(circuit=g.circuit._asdict())),
    ("a string for sigma", TypeError, "sigma", lambda g: g.solve(circuit=replaced(g, sigma="wide"))),
    ("a list for the circuit", TypeError, "circuit", lambda g: g.solve(circuit=[1, 2])),
    ("an array for the circuit", TypeError, "circuit", lambda g: g.run(circuit=g.z)),
    ("an array for the state", TypeError, "state", lambda g: oc.vector_field(g.circuit, g.z, g.z)),
    ("an array for state0", TypeError, "state0", lambda g: g.run(state0=g.z)),
    ("a list to integrate", TypeError, "state0", lambda g: oc.integrate(lambda t, x: x, [g.z], g.times)),
    ("a list for the parameters", TypeError, "parameters", lambda g: g.cell(parameters=[1])),
    ("a pair for the cell's state", TypeError, "state", lambda g: g.cell(state=(g.z, g.z))),
    ("a string for rtol", TypeError, "rtol", lambda g: g.run(rtol="small")),
    ("half an iteration", TypeError, "max_iterations", lambda g: g.solve(max_iterations=2.5)),
]

CHOICES: list[Case] = [
    ("method of the fixed point", ValueError, "method", lambda g: g.solve(method="bisection")),
    ("method of integration", ValueError, "method", lambda g: g.run(method="rk45")),
    ("method that is no string", ValueError, "method", lambda g: g.run(method=None)),
    ("drive", ValueError, "drive", lambda g: g.run(drive="periodic")),
    *(
        (f"variant, {name}", ValueError, "variant", call)
        for name, call in {
            "vector_field": lambda g: oc.vector_field(g.circuit, g.state, g.z, variant="full"),
            "steady_state": lambda g: g.solve(variant="full"),
            "fixed_points": lambda g: oc.fixed_points(one_neuron(g), g.array([1.0]), variant="full"),
            "jacobian": lambda g: oc.jacobian(g.circuit, g.state, variant="full"),
            "spectrum": lambda g: oc.spectrum(g.circuit, g.state, variant="full"),
            "spectral_abscissa": lambda g: oc.spectral_abscissa(g.circuit, g.state, variant="full"),
            "simulate": lambda g: g.run(variant="full"),
            "cell_step": lambda g: g.cell(variant="rectified"),
        }.items()
    ),
    ("recurrence of a new cell", ValueError, "recurrent", lambda g: oc.init_cell(0, 2, 3, recurrent="random")),
    ("start of a new cell", ValueError, "initialization", lambda g: oc.init_cell(0, 2, 3, initialization="zeros")),
    ("spread below 1", ValueError, "rate_spread", lambda g: oc.init_cell(0, 2, 3, rate_spread=0.5)),
    (
        "identical oscillators",
        ValueError,
        "oscillators need recurrent weights",
        lambda g: oc.init_cell(0, 2, 3, recurrent="identity", initialization="oscillators"),
    ),
    ("rtol = 0", ValueError, "rtol", lambda g: g.run(rtol=0.0)),
    ("atol < 0", ValueError, "atol", lambda g: g.run(atol=-1e-9)),
    ("tol NaN", ValueError, "tol", lambda g: g.solve(method="newton", tol=float("nan"))),
    ("no iterations", ValueError, "max_iterations", lambda g: g.solve(max_iterations=0)),
    ("no substeps", ValueError, "substeps", lambda g: g.run(substeps=0)),
    ("no steps", ValueError, "max_steps", lambda g: g.run(max_steps=0)),
    ("no inputs", ValueError, "input_size", lambda g: oc.init_cell(0, 0, 3)),
    ("no units", ValueError, "hidden_size", lambda g: oc.init_cell(0, 2, 0)),
    ("times that stand still", ValueError, "times", lambda g: g.run(times=g.array([0.0, 0.1, 0.1]))),
    ("times that go back", ValueError, "times", lambda g: g.run(times=g.array([0.0, 0.2, 0.1]))),
    ("closed form of any W_r", ValueError, "w_r", lambda g: g.solve(method="closed_form")),
    ("certificate of any W_r", ValueError, "w_r", lambda g: oc.certify(g.circuit, g.z)),
    ("energy of any W_r", ValueError, "w_r", lambda g: oc.energy(g.circuit, g.state, g.z)),
    ("oscillators without drive", ValueError, "z", lambda g: oc.oscillator_form(g.unit, g.z * 0.0)),
    ("oscillators without a drive to speak of", ValueError, "z", lambda g: oc.oscillator_form(g.unit, g.z * 1e-160)),
    ("dense output of fixed steps", ValueError, "dense", lambda g: g.run(method="rk4", dense=True)),
    (
        "exponential without tau",
        ValueError,
        "tau",
        lambda g: oc.integrate(lambda t, x: x, (g.z,), g.times, method="exponential_euler"),
    ),
]

CASES = [*OUT_OF_RANGE, *NOT_FINITE, *SHAPES, *KINDS, *CHOICES]


def replaced(g: Good, **changes: Any) -> oc.Circuit:
    """A circuit that was changed without being checked."""
    return oc.Circuit._make({**g.circuit._asdict(), **changes}.values())


def one_neuron(g: Good) -> oc.Circuit:
    return oc.Circuit(None, ones(g, 1, 1), 0.5, 0.5, 0.1, 0.002, 0.002)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="longdouble is float64 here")
def test_numbers_longer_than_double_are_refused() -> None:
    """numpy has no linear algebra for them."""
    circuit = oc.Circuit(None, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002)
    with pytest.raises(TypeError, match="z must be of float32 or float64, got float"):
        oc.steady_state(circuit, np.ones(2, dtype=np.longdouble))


def one_of_many(g: Good, name: str, axes: int) -> Any:
    """One neuron, but a field of it for two."""
    return oc.fixed_points(one_neuron(g)._replace(**{name: ones(g, 2, *(1,) * axes)}), g.array([1.0]))


def tau_of_two(g: Good) -> oc.Circuit:
    return g.make(tau_a=ones(g, 2, 1))


def ones(g: Good, *shape: int) -> Any:
    return g.array(np.ones(shape))


def assert_names(error: pytest.ExceptionInfo[Exception], name: str) -> None:
    """One sentence, with the argument's name in it as a word."""
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 300
    assert re.search(rf"(?<![\w.]){re.escape(name)}(?![\w(])", message), f"{name!r} is not named in: {message}"


@pytest.mark.parametrize(("error", "name", "call"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_named(xp64: Library, error: type[Exception], name: str, call: Callable[[Good], Any]) -> None:
    """Every case, in every library."""
    with pytest.raises(error) as raised:
        call(Good(xp64))
    assert type(raised.value) is error
    assert_names(raised, name)


def test_the_good_arguments_are_good(xp64: Library) -> None:
    """The cases above fail for what they spoil, not for what they share."""
    g = Good(xp64)
    assert bool(g.solve(circuit=g.make()).converged)
    assert g.run().success
    assert bool(oc.certify(g.unit, g.z).stable)
    assert g.cell().y.shape == (3,)
    assert len(oc.fixed_points(one_neuron(g), g.array([1.0]))) == 1


class Foreign:
    """An array of another library, or of numpy on a device of its own: as much of it as the checks look at."""

    def __init__(self, library: Any, where: str = "nowhere") -> None:
        self.library, self.device, self.dtype, self.shape, self.ndim = library, where, np.dtype(float), (3,), 1

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return self.library


def test_what_is_said() -> None:
    """The whole sentence: the argument, what is wanted, its value, shape, library or device."""
    case = small_circuit(3)
    good, z, times = case.circuit, case.z, np.array([0.0, 0.001])
    xp = oc.backend.array_namespace(z)
    foreign, away = Foreign(ModuleType("foreign")), Foreign(xp, "gpu:1")
    kinds = "of numpy, torch, jax, cupy or another array-API library, got"

    def make(**changes: Any) -> Any:
        return lambda: oc.Circuit(**{**good._asdict(), **changes})

    def run(**options: Any) -> Any:
        return lambda: oc.simulate(**{"circuit": good, "z": z, "times": times, **options})

    def noisy(**options: Any) -> Any:
        return lambda: oc.simulate_sde(good, z, times, noise=0.1, **options)

    cases: list[tuple[type[Exception], Callable[[], Any], str]] = [
        (ValueError, make(b=-0.5), "b must be positive, got -0.5"),
        (ValueError, make(sigma=0), "sigma must be positive, got 0"),
        (ValueError, make(w=good.w - 2), f"w must be non-negative, got {np.min(good.w - 2):g} as its smallest value"),
        (ValueError, make(tau_y=np.array([1.0, 0.0, 2.0])), "tau_y must be positive, got 0 as its smallest value"),
        (ValueError, make(b0=np.array([-1.0])), "b0 must be positive, got -1"),
        (ValueError, make(w_r=good.w_r * np.nan), "w_r must be finite, got NaN or infinity among its values"),
        (ValueError, make(b=10**400), "b must be finite, got NaN or infinity among its values"),
        (ValueError, make(w_r=np.eye(2)), "w_r must be square, of shape (..., 3, 3), got shape (2, 2)"),
        (ValueError, make(w=np.ones(3)), "w must be square, of shape (..., n, n), got shape (3,)"),
        (ValueError, make(w_r=None, w=np.ones((3, 2))), "w must be square, of shape (..., n, n), got shape (3, 2)"),
        (
            ValueError,
            make(w_r=None, w=np.ones((2, 3, 2))),
            "w must be square, of shape (..., n, n), got shape (2, 3, 2)",
        ),
        (ValueError, make(w_r=None, w=np.ones((0, 0))), "w must have at least one neuron, got shape (0, 0)"),
        (ValueError, make(w_r=None, w=np.ones((3, 0, 0))), "w must have at least one neuron, got shape (3, 0, 0)"),
        (ValueError, make(b=np.ones(2)), "b must have shape (..., 3) or a scalar, got shape (2,)"),
        (
            ValueError,
            make(w=np.ones((2, 3, 3)), b=np.ones((4, 3))),
            "the batch axes (4,) of b (shape (4, 3)) do not broadcast with the batch axes (2,) of w",
        ),
        (
            ValueError,
            make(w=np.ones((2, 3, 3)), b=np.ones((5, 1, 3)), sigma=np.ones(3), tau_a=np.ones((4, 3))),
            "the batch axes (4,) of tau_a (shape (4, 3)) do not broadcast with the batch axes (5, 2) of b",
        ),
        (
            ValueError,
            make(w=np.ones((1, 3, 3)), b=np.ones((2, 3)), tau_a=np.ones((4, 3))),
            "the batch axes (4,) of tau_a (shape (4, 3)) do not broadcast with the batch axes (2,) of b",
        ),
        (
            TypeError,
            lambda: checks.namespace({"w": None, "b": 1.0}, numbers=("b",), optional=("w",)),
            "at least one of w, b must be an array",
        ),
        (TypeError, make(w=1.0), "w must be an array, got the number 1.0"),
        (TypeError, make(b=True), f"b must be a number or an array {kinds} bool"),
        (TypeError, make(b="wide"), f"b must be a number or an array {kinds} str"),
        (TypeError, make(w=[[1.0]]), f"w must be an array {kinds} list; give np.asarray(w, dtype=float) or the like"),
        (
            TypeError,
            run(z=[1.0]),
            "z must be an array or a function of time, got list; give np.asarray(z, dtype=float) or the like",
        ),
        (TypeError, make(w=Path("w.npy")), f"w must be an array {kinds} pathlib.{type(Path()).__name__}"),
        (
            TypeError,
            make(w=np.ones((3, 3), dtype=int)),
            "w must have a real floating dtype, got int64; convert it first",
        ),
        (
            TypeError,
            make(w=np.ones((3, 3), dtype=np.float16)),
            "w must be of float32 or float64, got float16; convert it first",
        ),
        *(
            (TypeError, make(w=w), f"w must be of float32 or float64, got {np.dtype(np.longdouble)}; convert it first")
            for w in (np.ones((3, 3), np.longdouble), csr_array(np.ones((3, 3), np.longdouble)))
            if np.dtype(np.longdouble).itemsize > 8  # elsewhere it is float64
        ),
        (
            TypeError,
            lambda: oc.linear_covariance(np.eye(2, dtype=np.float16), 1.0),
            "jacobian must be of float32 or float64, got float16; convert it first",
        ),
        (
            TypeError,
            make(tau_y=foreign),
            "all arrays must come from one library, but w_r is numpy.ndarray of shape (3, 3) and tau_y is "
            "test_bad_input.Foreign of shape (3,)",
        ),
        (ValueError, make(tau_y=away), "all arrays must be on one device, but w_r is on cpu and tau_y is on gpu:1"),
        (
            ValueError,
            make(w_r=None, tau_y=0.1, tau_a=away),
            "all arrays must be on one device, but w is on cpu and tau_a is on gpu:1",
        ),
        (
            TypeError,
            make(b=csr_array(np.eye(3))),
            f"b must be a number or an array {kinds} scipy.csr_array of shape (3, 3)",
        ),
        (
            TypeError,
            run(z=foreign),
            "all arrays must come from one library, but times is numpy.ndarray of shape (2,) and z is "
            "test_bad_input.Foreign of shape (3,)",
        ),
        (
            TypeError,
            run(z=lambda t: foreign),
            "all arrays must come from one library, but times is numpy.ndarray of shape (2,) and z(t) is "
            "test_bad_input.Foreign of shape (3,)",
        ),
        (
            ValueError,
            run(z=lambda t: away),
            "all arrays must be on one device, but times is on cpu and z(t) is on gpu:1",
        ),
        (
            TypeError,
            run(times=foreign),
            "all arrays must come from one library, but circuit is numpy.ndarray of shape (3, 3) and times is "
            "test_bad_input.Foreign of shape (3,)",
        ),
        (
            ValueError,
            run(z=np.ones((2, 3)), drive="constant", state0=oc.State(np.ones((4, 3)), np.ones(3))),
            "the batch axes (4,) of state0.y (shape (4, 3)) do not broadcast with the batch axes (2,) of z",
        ),
        (TypeError, run(rtol="small"), "rtol must be a number, got str"),
        (ValueError, run(atol=float("inf")), "atol must be positive and finite, got inf"),
        (ValueError, run(max_step=10**400), "max_step must be positive and finite, got inf"),
        (TypeError, run(substeps=2.0), "substeps must be an integer, got float"),
        (TypeError, run(max_steps=np.array(3.7)), "max_steps must be an integer, got numpy.ndarray of shape ()"),
        (TypeError, run(max_steps=np.array([3])), "max_steps must be an integer, got numpy.ndarray of shape (1,)"),
        (TypeError, run(max_steps=True), "max_steps must be an integer, got bool"),
        (ValueError, run(max_steps=0), "max_steps must be at least 1, got 0"),
        (ValueError, run(variant="all"), f"unknown variant 'all'; choose one of {str([*oc.VARIANTS])[1:-1]}"),
        (TypeError, noisy(seed=1.0), "seed must be an integer, got float"),
        (TypeError, noisy(seed=True), "seed must be an integer, got bool"),
        (ValueError, noisy(seed=-1), "seed must not be negative, got -1"),
        (TypeError, lambda: oc.certify(3, z), "circuit must be a Circuit, got int"),
        (
            TypeError,
            lambda: oc.simulate({"w": 1}, z, times),
            "circuit must be a Circuit or another model (a named tuple with spec, state and field), got dict",
        ),
        (TypeError, lambda: oc.vector_field(good, (z,), z), "state must be a State(y, a), got tuple"),
        (
            ValueError,
            lambda: oc.vector_field(good, case.state, np.array(1.0)),
            "z must have shape (..., 3), got shape ()",
        ),
    ]
    for error, call, said in cases:
        with pytest.raises(error) as raised:
            call()
        assert str(raised.value) == said
    assert make(w=np.ones((5, 2, 3, 3)), w_r=np.ones((2, 3, 3)))().w.shape == (5, 2, 3, 3)
    assert noisy(seed=0)().success
    assert noisy(seed=np.int64(3), substeps=np.int32(1))().success


@pytest.mark.library("strict", "torch", "jax", "cupy")
@pytest.mark.parametrize("name", ["w", "b", "z", "z of a simulation", "times", "state0.y"])
def test_mixed_libraries(xp64: Library, name: str) -> None:
    """One numpy array among those of another library: both are named."""
    g = Good(xp64)
    case = small_circuit(3)
    calls = {
        "z": lambda: g.solve(z=case.z),
        "z of a simulation": lambda: g.run(z=case.z),
        "times": lambda: g.run(times=np.array([0.0, 0.001])),
        "state0.y": lambda: g.solve(state0=oc.State(case.state.y, g.state.a)),
        "w": lambda: g.make(w=case.circuit.w),
        "b": lambda: g.make(b=case.circuit.b),
    }
    with pytest.raises(TypeError) as raised:
        calls[name]()
    assert_names(raised, name.split(" ")[0])
    assert "numpy" in str(raised.value)


@pytest.mark.library("strict", "torch")
def test_mixed_devices(xp64: Library) -> None:
    """An array on another device is named, with both devices."""
    g = Good(xp64)
    if xp64.name == "torch":
        away = g.z.to("meta")
    else:
        away = xp64.namespace.asarray(g.z, device=xp64.module.Device("device1"))
    with pytest.raises(ValueError, match="must be on one device") as raised:
        oc.vector_field(g.circuit, g.state, away)
    assert_names(raised, "z")


# Files.

GOOD_TOML = """
[circuit]
w = [[1.0, 0.5], [0.5, 1.0]]
b = 0.5
b0 = 0.5
sigma = 0.1
tau_y = 0.002
tau_a = 0.002
[input]
z = [1.0, 0.5]
"""

TOMLS = {
    "syntax": ("[circuit\nw = 1", "broken.toml"),
    "no circuit": ("[input]\nz = [1.0]", "circuit"),
    "missing key": (GOOD_TOML.replace("tau_a = 0.002", ""), "tau_a"),
    "unknown key": (GOOD_TOML.replace("b0 =", "b00 ="), "b00"),
    "negative": (GOOD_TOML.replace("tau_y = 0.002", "tau_y = -0.002"), "tau_y"),
    "ragged": (GOOD_TOML.replace("[0.5, 1.0]]", "[0.5]]"), "w"),
    "text": (GOOD_TOML.replace("sigma = 0.1", 'sigma = "wide"'), "sigma"),
    "wrong size": (GOOD_TOML.replace("[1.0, 0.5]\n", "[1.0, 0.5, 0.2]\n"), "z"),
}


@pytest.mark.parametrize("kind", TOMLS)
def test_broken_toml(tmp_path: Path, kind: str) -> None:
    """What is wrong in the file, by its name."""
    text, name = TOMLS[kind]
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises((ValueError, TypeError)) as raised:
        load_circuit(path)
    assert_names(raised, name)


class Bomb:
    """What must never be unpickled."""

    def __reduce__(self) -> tuple:
        return (Path.write_text, (Path("exploded"), "boom"))


def test_reading_a_circuit_file_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle inside an .npz, or in its place, is refused."""
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "hidden.npz", w=np.array([Bomb()], dtype=object))
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Bomb()))
    for name in ("hidden.npz", "plain.npz"):
        with pytest.raises((ValueError, TypeError)) as raised:
            load_circuit(tmp_path / name)
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"circuit" * 9), "no .npz archive but packed by gzip; unpack it first"),
        (b"circuit" * 9, "no .npz archive: it does not begin as one"),
        (pickle.dumps([1.0]), "no .npz archive but looks like a pickle, which is never loaded"),
    ],
    ids=["gzip", "text", "pickle"],  # packed bytes hold the time at which they were packed
)
def test_what_is_no_archive_is_called_what_it_is(tmp_path, content: bytes, message: str) -> None:
    """Only a pickle is called one, and nobody is told to load it unsafely."""
    path = tmp_path / "file.npz"
    path.write_bytes(content)
    for load in (load_circuit, oc.load_trajectory, oc.load_proof):
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            load(path)
        assert "unsafely" not in str(caught.value)


def test_masked_arrays_are_refused() -> None:
    """Their mask would be dropped without a word."""
    circuit = oc.Circuit(None, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002)
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    for call in (
        lambda: oc.steady_state(circuit, masked),
        lambda: oc.certify(circuit, np.ma.array([1.0, 2.0])),
        lambda: oc.simulate(circuit, np.ones(2), np.ma.array([0.0, 0.1])),
        lambda: oc.steady_state(circuit._replace(b=masked), np.ones(2)),
    ):
        with pytest.raises(
            TypeError, match=r"(z|times|b) is a masked array, whose mask would be ignored; give .*filled"
        ):
            call()
