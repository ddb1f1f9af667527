"""Old names: each says in a warning what to call, and gives what that gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import organics_core as oc

CIRCUIT = oc.Circuit(None, np.array([[1.0, 0.3], [0.2, 0.8]]), 0.5, 0.5, 0.1, 0.002, 0.003)
V1 = oc.V1Circuit(None, np.ones((2, 2)), 0.5, 0.1, 0.1, 0.002, 0.002, 0.002)
Z, TIMES = np.array([1.0, 0.4]), np.linspace(0.0, 0.01, 5)
STATE, V1_STATE = oc.steady_state(CIRCUIT, Z).state, oc.steady_state(V1, Z).state
FREQUENCIES = np.array([10.0, 50.0])
NOISE = (1.0, 0.0, 0.0)
CASES = {
    "LargeCircuit": (tuple(CIRCUIT), {}, lambda: CIRCUIT),
    "large_vector_field": ((CIRCUIT, STATE, Z), {}, lambda: oc.vector_field(CIRCUIT, STATE, Z)),
    "large_certify": ((CIRCUIT, Z), {}, lambda: oc.certify(CIRCUIT, Z, lyapunov=False)),
    "large_steady_state": ((CIRCUIT, Z), {}, lambda: oc.steady_state(CIRCUIT, Z)),
    "v1_vector_field": ((V1, V1_STATE, Z), {}, lambda: oc.vector_field(V1, V1_STATE, Z)),
    "v1_jacobian": ((V1, V1_STATE), {}, lambda: oc.jacobian(V1, V1_STATE)),
    "v1_steady_state": ((V1, Z), {}, lambda: oc.steady_state(V1, Z)),
    "v1_power_spectrum": (
        (V1, Z, NOISE, FREQUENCIES),
        {},
        lambda: oc.power_spectrum(V1, V1_STATE, NOISE, FREQUENCIES),
    ),
    "simulate_v1": ((V1, Z, TIMES), {"method": "rk4", "rtol": None}, lambda: oc.simulate(V1, Z, TIMES, method="rk4")),
}


def leaves(value):
    if isinstance(value, tuple):
        return [leaf for part in value for leaf in leaves(part)]
    return [] if value is None else [np.asarray(value)]


@pytest.mark.parametrize("name", CASES)
def test_an_old_name_warns_and_gives_the_same(name: str) -> None:
    arguments, options, expected = CASES[name]
    with pytest.warns(DeprecationWarning, match=rf"{name} is deprecated and goes in 0\.3: call "):
        found = getattr(oc, name)(*arguments, **options)
    pairs = list(zip(leaves(found), leaves(expected()), strict=True))
    assert pairs
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs)


def test_simulate_v1_with_noise() -> None:
    with pytest.warns(DeprecationWarning, match="simulate_v1"):
        found = oc.simulate_v1(V1, Z, TIMES, noise=NOISE, seed=3)
    expected = oc.simulate_sde(V1, Z, TIMES, noise=NOISE, seed=3, method="stochastic_heun")
    np.testing.assert_array_equal(found.state.y, expected.state.y)


@pytest.mark.parametrize("noise", [None, NOISE])
def test_simulate_v1_takes_all_that_it_took(noise: Any) -> None:
    """Options of the other kind of run are left unread, and None is the default, as in 0.1.0."""
    every = {"seed": 3, "increments": None, "rtol": 1e-6, "atol": 1e-9, "max_steps": 100_000, "method": None}
    with pytest.warns(DeprecationWarning, match="simulate_v1"):
        found = oc.simulate_v1(V1, Z, TIMES, noise=noise, state0=None, substeps=1, drive="auto", **every)
    sde = {"noise": NOISE, "seed": 3, "method": "stochastic_heun"}
    expected = oc.simulate(V1, Z, TIMES) if noise is None else oc.simulate_sde(V1, Z, TIMES, **sde)
    np.testing.assert_array_equal(found.state.y, expected.state.y)


def test_every_old_name_is_tried() -> None:
    old = {name for name in oc.__all__ if (getattr(oc, name).__doc__ or "").startswith("Deprecated: ")}
    assert old == set(CASES)
