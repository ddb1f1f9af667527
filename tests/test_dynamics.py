"""The vector fields, against the equations written out neuron by neuron."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support import VARIANTS, Case, Library, for_cases, numpy_tree, small_circuit

import organics_core as oc


def by_hand(circuit: oc.Circuit, state: oc.State, z: np.ndarray, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """SPEC's equations with plain floats and loops, one neuron at a time; no batch axes."""
    n = z.shape[-1]
    w_r = np.eye(n) if circuit.w_r is None else circuit.w_r
    b, b0, sigma, tau_y, tau_a = (np.broadcast_to(np.asarray(value), (n,)) for value in circuit[2:])
    y, a = state
    flags = oc.VARIANTS[variant]
    dy, da = np.zeros(n), np.zeros(n)
    for i in range(n):
        recurrent = 0.0
        pool = 0.0
        for j in range(n):
            source = max(y[j], 0.0) if flags.source else y[j]
            response = max(y[j], 0.0) if flags.response else y[j]
            recurrent += w_r[i, j] * source
            pool += circuit.w[i, j] * max(a[j], 0.0) * response**2
        if flags.drive:
            recurrent = max(recurrent, 0.0)
        dy[i] = (-y[i] + b[i] * z[i] + (1.0 - math.sqrt(max(a[i], 0.0))) * recurrent) / tau_y[i]
        da[i] = (-a[i] + (b0[i] * sigma[i]) ** 2 + pool) / tau_a[i]
    return dy, da


def sum_of_terms(circuit: oc.Circuit, state: oc.State, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The terms of both equations added up without their signs."""
    y, a = np.abs(state.y), np.abs(state.a)
    recurrent = y if circuit.w_r is None else np.abs(circuit.w_r) @ y
    size_y = y + np.abs(circuit.b * z) + (1 + np.sqrt(a)) * recurrent
    return size_y / circuit.tau_y, (a + (circuit.b0 * circuit.sigma) ** 2 + circuit.w @ (a * y * y)) / circuit.tau_a


@pytest.mark.parametrize("variant", VARIANTS)
@for_cases(decades=3.0, batch=False)
def test_vector_field_is_the_equations(xp: Library, case: Case, variant: str) -> None:
    """Every variant equals the equations written out in loops, for negative modulators too."""
    state = oc.State(case.state.y, case.state.a - 0.4)  # some a < 0: the rectifiers at work
    want_y, want_a = by_hand(case.circuit, state, case.z, variant)
    # round-off is that of the terms, which may cancel: 30 units of float32, of 12 terms at most
    size_y, size_a = (np.max(part) for part in sum_of_terms(case.circuit, state, case.z))
    slope = xp.compiled(oc.vector_field, variant=variant)(xp.tree(case.circuit), xp.tree(state), xp.array(case.z))
    xp.assert_close(slope.y, want_y, rtol=1e-10, atol=3e-11 * size_y)
    xp.assert_close(slope.a, want_a, rtol=1e-10, atol=3e-11 * size_a)


def test_what_the_variants_rectify() -> None:
    """By SPEC, as (source, drive, response)."""
    flags = {"main": (0, 0, 0), "rectified": (1, 0, 1), "rectified_recurrence": (0, 1, 1)}
    assert {name: tuple(map(int, oc.VARIANTS[name])) for name in flags} == flags


def test_variants_agree_where_nothing_is_rectified(xp: Library) -> None:
    """With y > 0 and W_r y > 0 the three circuits are one."""
    case = small_circuit(3)
    circuit = xp.tree(case.circuit._replace(w_r=np.abs(case.circuit.w_r)))
    state = xp.tree(oc.State(np.abs(case.state.y) + 0.1, case.state.a))
    main, *others = (oc.vector_field(circuit, state, xp.array(case.z), variant=v) for v in VARIANTS)
    for other in others:
        for part, want in zip(other, numpy_tree(main), strict=True):  # compilers may contract differently
            xp.assert_close(part, want, rtol=1e-12, atol=1e-12 * np.max(np.abs(want)))


def test_leading_axes_are_batch_axes(xp: Library) -> None:
    """Two batch axes of the state against one of the circuit."""
    case = small_circuit(3)
    rng = np.random.default_rng(1)
    state = oc.State(rng.standard_normal((4, 2, 3)), rng.uniform(0.1, 1.0, (4, 2, 3)))
    w = np.stack([case.circuit.w, 2 * case.circuit.w])
    slope = oc.vector_field(xp.tree(case.circuit._replace(w=w)), xp.tree(state), xp.array(case.z))
    xp.assert_kind(slope.y, (4, 2, 3))
    for i in range(4):
        for j in range(2):
            member = case.circuit._replace(w=w[j])
            want_y, want_a = by_hand(member, oc.State(state.y[i, j], state.a[i, j]), case.z, "main")
            xp.assert_close(slope.y[i, j, :], want_y, rtol=1e-10, atol=1e-9)
            xp.assert_close(slope.a[i, j, :], want_a, rtol=1e-10, atol=1e-9)
