"""Circuits as values: what they accept, batch axes on any field, and pytrees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import VARIANTS, Library, numpy_tree, small_circuit

import organics_core as oc

CORE_AXES = {"w_r": 2, "w": 2, "b": 1, "b0": 1, "sigma": 1, "tau_y": 1, "tau_a": 1}


def local_results(circuit: oc.Circuit, state: oc.State, z: object) -> list:
    """The arrays that the public functions of a state return, flat."""
    slope = oc.vector_field(circuit, state, z)
    rest = oc.resting_state(circuit, z)
    return [
        *(slope.y, slope.a, rest.y, rest.a, oc.jacobian(circuit, state)),
        oc.spectral_abscissa(circuit, state),
    ]


def solver_results(circuit: oc.Circuit, state: oc.State, z: object, times: object) -> list:
    """The same for what runs in a loop."""
    steady = oc.steady_state(circuit, z)
    run = oc.simulate(circuit, z, times, state0=state, method="rk4", drive="constant").state
    return [
        *(steady.state.y, steady.state.a, steady.residual < 1e-4, steady.converged),
        *(run.y[-1, ...], run.a[-1, ...]),
    ]


def certificate_results(circuit: oc.Circuit, state: oc.State, z: object) -> list:
    """The same for what needs W_r = I."""
    certificate = oc.certify(circuit, z)
    form = oc.oscillator_form(circuit, z)
    return [
        *(certificate.p, certificate.q, certificate.margin, certificate.stable, certificate.state.y),
        *(oc.energy(circuit, state, z), form.mass, form.damping, form.stiffness),
    ]


@pytest.mark.parametrize("field", [*CORE_AXES, "z", "state"])
def test_batch_axis_on_one_argument_alone(xp64: Library, field: str) -> None:
    """A batch axis on any single argument gives what the members give one by one."""
    case = small_circuit(3, seed=4)
    factors = np.asarray([1.0, 0.8, 1.1])
    times = xp64.array([0.0, 0.0005, 0.001])

    def scaled(factor: float) -> tuple[oc.Circuit, np.ndarray, oc.State]:
        if field == "z":
            return case.circuit, factor * case.z, case.state
        if field == "state":
            return case.circuit, case.z, oc.State(factor * case.state.y, factor * case.state.a)
        return case.circuit._replace(**{field: factor * getattr(case.circuit, field)}), case.z, case.state

    members = [scaled(factor) for factor in factors]
    circuit, z, state = case.circuit, case.z, case.state
    if field == "z":
        z = np.stack([member[1] for member in members])
    elif field == "state":
        state = oc.State(*(np.stack([getattr(m[2], name) for m in members]) for name in ("y", "a")))
    else:
        circuit = circuit._replace(**{field: np.stack([getattr(m[0], field) for m in members])})

    def same(function: Callable[..., list], *extra: Any, **changes: Any) -> None:
        results = xp64.compiled(function)
        got = results(xp64.tree(circuit._replace(**changes)), xp64.tree(state), xp64.array(z), *extra)
        apart = [
            results(xp64.tree(c._replace(**changes)), xp64.tree(s), xp64.array(drive), *extra)
            for c, drive, s in members
        ]
        for k, result in enumerate(got):
            parts = numpy_tree(tuple(one[k] for one in apart))
            expected = np.stack(np.broadcast_arrays(*parts))
            # a result that does not depend on the batched argument need not have its axis
            pair = np.broadcast_arrays(numpy_tree(result), expected)
            np.testing.assert_allclose(*pair, rtol=1e-8, atol=1e-9, err_msg=f"{function.__name__}, result {k}")

    same(local_results)
    if xp64.name != "jax" or field in ("w_r", "w", "z"):  # a second of compilation each
        same(solver_results, times)
    if field != "w_r":
        same(certificate_results, w_r=None)


def test_results_have_the_dtype_and_device_of_the_inputs(xp: Library) -> None:
    """Nothing is promoted or moved on the way."""
    case = small_circuit(2)
    times = xp.array([0.0, 0.001])
    circuit, state, z = xp.tree(case.circuit), xp.tree(case.state), xp.array(case.z)
    circuit = circuit._replace(sigma=0.2, tau_y=0.002)  # numbers have no dtype of their own
    for variant in VARIANTS:
        for part in oc.vector_field(circuit, state, z, variant=variant):
            xp.assert_kind(part, (2,))
        xp.assert_kind(oc.jacobian(circuit, state, variant=variant), (4, 4))
    steady = oc.steady_state(circuit, z)
    for part in (*steady.state, *oc.resting_state(circuit, z)):
        xp.assert_kind(part, (2,))
    xp.assert_kind(steady.residual, ())
    xp.assert_kind(oc.spectral_abscissa(circuit, state), ())
    assert oc.spectrum(circuit, state).dtype == xp.complex_dtype
    for method in oc.INTEGRATORS:
        run = oc.simulate(circuit, z, times, method=method)
        xp.assert_kind(run.state.y, (2, 2))
        xp.assert_kind(run.state.a, (2, 2))
    unit = circuit._replace(w_r=None)
    certificate = oc.certify(unit, z)
    xp.assert_kind(certificate.p, (4, 4))
    xp.assert_kind(certificate.q, (4, 4))
    xp.assert_kind(certificate.margin, ())
    xp.assert_kind(oc.energy(unit, state, z), ())


NUMBERS = {"b": 0.5, "b0": 0.6, "sigma": 0.2, "tau_y": 0.002, "tau_a": 0.003}


@pytest.mark.parametrize("kind", ["float", "numpy float", "0-d array", "(1,) array"])
def test_numbers_and_scalars_stand_for_vectors(xp64: Library, kind: str) -> None:
    """b, b0, sigma and the time constants may be numbers, 0-d arrays or arrays of one element."""
    convert = {
        "float": float,
        "numpy float": np.float64,
        "0-d array": xp64.array,
        "(1,) array": lambda value: xp64.array([value]),
    }[kind]
    case = small_circuit(3)
    vectors = case.circuit._replace(**{name: np.full(3, value) for name, value in NUMBERS.items()})
    scalars = xp64.tree(case.circuit)._replace(**{name: convert(value) for name, value in NUMBERS.items()})
    state, z, times = xp64.tree(case.state), xp64.array(case.z), xp64.array([0.0, 0.001, 0.002])
    pairs = [(local_results(scalars, state, z), local_results(xp64.tree(vectors), state, z))]
    if xp64.name != "jax" or kind == "float":
        pairs.append(
            (solver_results(scalars, state, z, times), solver_results(xp64.tree(vectors), state, z, times)),
        )
    unit = scalars._replace(w_r=None)
    pairs.append(
        (
            certificate_results(unit, state, z),
            certificate_results(xp64.tree(vectors)._replace(w_r=None), state, z),
        )
    )
    for got, want in pairs:
        for one, other in zip(got, want, strict=True):
            np.testing.assert_allclose(numpy_tree(one), numpy_tree(other), rtol=1e-12)


def test_integer_numbers_are_numbers(xp64: Library) -> None:
    """A Python int is as good as a float for a scalar parameter."""
    case = small_circuit(2)
    circuit = xp64.tree(case.circuit)
    ints, floats = circuit._replace(w_r=None, b=1, sigma=2), circuit._replace(w_r=None, b=1.0, sigma=2.0)
    z = xp64.array(case.z)
    xp64.assert_close(oc.steady_state(ints, z).state.a, numpy_tree(oc.steady_state(floats, z).state.a), rtol=1e-14)


def test_float32_and_float64_together_give_float64(xp64: Library) -> None:
    """Mixed precision of one library follows the array API's promotion."""
    case = small_circuit(2)
    ns = xp64.namespace
    circuit, state = xp64.tree(case.circuit), xp64.tree(case.state)
    z = ns.astype(xp64.array(case.z), ns.float32)
    low = oc.State(*(ns.astype(part, ns.float32) for part in state))
    assert oc.vector_field(circuit, low, z).y.dtype == ns.float64
    assert oc.steady_state(circuit, z).state.y.dtype == ns.float64
    assert oc.jacobian(circuit, low).dtype == ns.float64
    times = ns.astype(xp64.array([0.0, 0.001]), ns.float32)
    assert oc.simulate(circuit, z, times).state.y.dtype == ns.float64


@pytest.mark.one_dtype
def test_none_is_the_identity(xp: Library) -> None:
    """w_r=None and the identity matrix are the same circuit."""
    case = small_circuit(3, identity=True)
    implicit = xp.tree(case.circuit)
    explicit = implicit._replace(w_r=xp.array(np.eye(3)))
    state, z = xp.tree(case.state), xp.array(case.z)
    for variant in VARIANTS:
        for with_none, with_matrix in zip(
            oc.vector_field(implicit, state, z, variant=variant),
            oc.vector_field(explicit, state, z, variant=variant),
            strict=True,
        ):
            xp.assert_close(with_none, numpy_tree(with_matrix), rtol=1e-12, atol=1e-12)
        xp.assert_close(
            oc.jacobian(implicit, state, variant=variant),
            numpy_tree(oc.jacobian(explicit, state, variant=variant)),
            rtol=1e-12,
        )
    assert bool(oc.certify(explicit, z).stable)


def test_resting_state_is_the_fixed_point_without_input(xp: Library) -> None:
    """y = 0 and a = (b0 sigma)**2."""
    case = small_circuit(3)
    circuit = xp.tree(case.circuit)
    rest = oc.resting_state(circuit, xp.array(case.z))
    xp.assert_close(rest.y, np.zeros(3))
    xp.assert_close(rest.a, (case.circuit.b0 * case.circuit.sigma) ** 2)
    slope = oc.vector_field(circuit, rest, xp.array(np.zeros(3)))
    xp.assert_close(slope.y, np.zeros(3))
    xp.assert_close(slope.a, np.zeros(3), atol=1e-13)


def test_circuits_are_tuples_that_can_be_rebuilt() -> None:
    """_replace, _make and placeholders (as in vmap's in_axes) work."""
    circuit = small_circuit(2).circuit
    assert oc.Circuit._make(circuit) == circuit or all(
        a is b for a, b in zip(oc.Circuit._make(circuit), circuit, strict=True)
    )
    assert oc.Circuit(0, None, None, 0, None, 0, 0).w_r == 0
    flags = oc.Circuit(*([True] * 7))
    assert all(flags)
    marks = oc.Circuit(*(object() for _ in range(7)))
    assert isinstance(marks, oc.Circuit)
