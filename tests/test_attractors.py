"""Fixed points that attract: found where there are any, told from others, at kinks too; what happens from rest."""

from __future__ import annotations

import importlib
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace
from scipy.integrate import solve_ivp
from support import ELSEWHERE, Library, numpy_tree, small_circuit
from test_multistart import random_circuits

import organics_core as oc
from organics_core.analysis.classification import DIVERGENCE, FIXED_POINT, LIMIT_CYCLE, UNDECIDED
from organics_core.analysis.exhaustive import grid_of_two, none_exists
from organics_core.attractors import (
    _D,
    _E,
    DIVERGED,
    LARGE,
    SETTLED,
    RosenbrockPair,
    attraction,
    follow,
    newton_in_both,
    random_starts,
    relative_residual,
)
from organics_core.backend import kernel_for, tree_leaves
from organics_core.circuit import balance
from organics_core.linalg import inverse

RECTIFIED = ("rectified", "rectified_recurrence")


def doubled(n: int = 2, sigma: float = 0.1) -> oc.Circuit:
    """W_r = 2 I, W = I, b = b0 = 0.5."""
    return oc.Circuit(2.0 * np.eye(n), np.eye(n), 0.5, 0.5, sigma, 0.002, 0.002)


def end_from_rest(circuit: oc.Circuit, z: np.ndarray, duration: float = 2.0) -> oc.State:
    run = oc.simulate(circuit, z, np.array([0.0, duration]), rtol=1e-9, atol=1e-12, method="rodas5p")
    assert run.success
    return oc.State(run.state.y[-1], run.state.a[-1])


def abscissa(circuit: oc.Circuit, state: oc.State) -> float:
    """From a Jacobian by complex steps of the vector field, written out here."""
    y, a = (np.asarray(part, dtype=complex) for part in state)
    n, h = len(y), 1e-30
    columns = []
    for k in range(2 * n):
        moved = np.concatenate([y, a])
        moved[k] += 1j * h
        u, v = moved[:n], moved[n:]
        # the drive and the floor are constant
        dy = (-u + (1 - np.sqrt(v)) * (circuit.w_r @ u)) / circuit.tau_y
        da = (-v + circuit.w @ (v * u * u)) / circuit.tau_a
        columns.append(np.concatenate([dy, da]).imag / h)
    return float(np.linalg.eigvals(np.stack(columns, axis=-1)).real.max())


@pytest.mark.parametrize("method", ["auto", "newton", "iteration"])
def test_the_point_reached_from_rest_is_the_answer(xp64: Library, method: str) -> None:
    """W_r = 2 I: Newton's point repels at +446 /s; the circuit settles at (0.998, 0.997), by every method."""
    circuit, z = doubled(), np.array([1.0, 0.5])
    first = oc.steady_state(xp64.tree(circuit), xp64.array(z), attracting=False)
    np.testing.assert_allclose(numpy_tree(first.state.y), [-0.979, -0.279], atol=1e-3)
    assert not bool(first.stable)
    assert not bool(first.unstable)  # not asked for
    found = oc.steady_state(xp64.tree(circuit), xp64.array(z), method=method, abscissa=True)
    assert bool(found.converged)
    assert bool(found.stable)
    assert not bool(found.unstable)
    assert (
        found.message
        == "the method led to no attracting point, or to another; from rest the circuit settles here, as its steps tell"
    )
    end = end_from_rest(circuit, z)
    np.testing.assert_allclose(numpy_tree(found.state.y), end.y, rtol=1e-6)
    np.testing.assert_allclose(end.y, [0.998, 0.997], atol=1e-3)
    np.testing.assert_allclose(float(found.abscissa), abscissa(circuit, oc.State(*numpy_tree(found.state))), rtol=1e-8)


SEVERAL = (  # W_r, W, z: the method's point attracts, the motion from rest leads to another
    ([[2.2, -2.0], [1.3, -0.3]], [[1.0, 1.0], [0.5, 0.5]], [1.6, 1.8]),
    ([[-1.2, -2.4], [1.5, 2.6]], [[0.8, 0.5], [0.5, 0.7]], [-1.2, -1.9]),
)


def test_of_two_attracting_points_rest_decides(xp64: Library) -> None:
    rest_decides(xp64, oc.steady_state)


@pytest.mark.library("jax")
def test_of_two_attracting_points_rest_decides_under_jit(xp64: Library) -> None:
    import jax

    rest_decides(xp64, jax.jit(oc.steady_state))


def rest_decides(xp64: Library, find: Callable[..., oc.SteadyState]) -> None:
    for w_r, w, z in SEVERAL:
        circuit = oc.Circuit(np.array(w_r), np.array(w), 0.5, 0.5, 0.1, 0.002, 0.002)
        other = oc.steady_state(circuit, np.array(z), attracting=False)
        assert abscissa(circuit, other.state) < 0
        found = find(xp64.tree(circuit), xp64.array(z))
        assert bool(found.stable)
        assert int(found.status) == 1
        end = end_from_rest(circuit, np.array(z))
        np.testing.assert_allclose(numpy_tree(found.state.y), end.y, rtol=1e-6)
        assert np.abs(end.y - other.state.y).max() > 0.1


@pytest.mark.parametrize(
    ("w_r", "w", "b", "b0", "sigma", "tau_a", "z"),
    [
        (3.0, 0.642, 0.798, 0.461, 0.181, 0.000832, -0.0139),
        (2.0, 0.082, 0.192, 0.176, 0.465, 0.00044, -0.0139),
        (5.0, 0.33, 0.282, 0.758, 0.163, 0.0000319, -1.807),
    ],
)
def test_a_slow_spiral_is_followed_to_its_end(
    w_r: float, w: float, b: float, b0: float, sigma: float, tau_a: float, z: float
) -> None:
    """Bistable neurons that turn many times before they settle, once given up and answered by the other point."""
    circuit = oc.Circuit(np.array([[w_r]]), np.array([[w]]), b, b0, sigma, 0.002, tau_a)
    found = oc.steady_state(circuit, np.array([z]))
    assert bool(found.stable)
    assert int(found.status) < 2
    np.testing.assert_allclose(found.state.y, end_from_rest(circuit, np.array([z])).y, rtol=1e-4)


def test_a_point_that_rest_does_not_lead_to_says_so(xp64: Library) -> None:
    """From rest it diverges; a point attracts all the same."""
    w_r, w = np.array([[-1.2, -0.2], [-1.0, 2.3]]), np.array([[0.3, 1.1], [0.5, 1.1]])
    circuit = oc.Circuit(w_r, w, 0.5, 0.5, 0.1, 0.002, 0.002)
    z = np.array([-0.7, -1.7])
    assert not oc.simulate(circuit, z, np.linspace(0, 0.1, 2)).success
    found = oc.steady_state(xp64.tree(circuit), xp64.array(z))
    assert bool(found.stable)
    assert found.message == "found by the method, but from rest the circuit diverges"
    assert abscissa(circuit, oc.State(*numpy_tree(found.state))) < 0


def test_a_motion_that_settles_too_slowly_is_not_denied() -> None:
    """Oscillations of 860 rad/s that decay by 3.6 per second; both neurons are alone."""
    circuit = oc.Circuit(4.0 * np.eye(2), np.eye(2), 0.5, 0.5, 0.15, 0.002, 0.002)
    z = np.array([0.00915782, 0.5])
    found = oc.steady_state(circuit, z)
    alone = circuit._replace(w_r=np.array([[4.0]]), w=np.array([[1.0]]))
    low, high = (point.state.y[0] for point in oc.fixed_points(alone, z[:1]) if point.stable)
    end = oc.simulate(circuit, z, np.array([0.0, 2.0])).state.y[-1]
    np.testing.assert_allclose(end[0], high, atol=0.01)
    if int(found.status) == 1:
        np.testing.assert_allclose(found.state.y[0], high, rtol=1e-9)
    else:  # the steps ran out, as they do for slower ones
        np.testing.assert_allclose(found.state.y[0], low, rtol=1e-9)
        assert "nor the motion from rest within its steps" in found.message


def test_rest_decides_in_random_circuits() -> None:
    """Strong positive or orthogonal weights: where the motion from rest settles, its end is the answer."""
    rng = np.random.default_rng(11)
    settled = 0
    for i in range(40):
        n = int(rng.integers(1, 6))
        w_r = np.abs(rng.standard_normal((n, n))) if i % 2 else np.linalg.qr(rng.standard_normal((n, n)))[0]
        w_r *= rng.uniform(1.0, 3.0) / np.linalg.norm(w_r, 2)
        circuit = oc.Circuit(w_r, rng.uniform(0, 1, (n, n)), 0.5, 0.5, 0.1, 0.002, 0.002 * rng.uniform(0.3, 3))
        z = rng.standard_normal(n)
        run = oc.simulate(circuit, z, np.array([0.0, 1.0, 1.1]))
        if not run.success or np.abs(run.state.y[-1] - run.state.y[-2]).max() > 1e-6:
            continue
        settled += 1
        found = oc.steady_state(circuit, z)
        np.testing.assert_allclose(found.state.y, run.state.y[-1], rtol=1e-3, atol=1e-5)
        assert bool(found.stable)
    assert settled > 20


def test_a_start_is_kept_to(xp64: Library) -> None:
    """``state0`` asks for the point near it: a repelling one is the answer, and said to repel."""
    circuit, z = xp64.tree(doubled()), xp64.array([1.0, 0.5])
    first = oc.steady_state(circuit, z, attracting=False)
    again = oc.steady_state(circuit, z, state0=first.state)
    xp64.assert_close(again.state.y, numpy_tree(first.state.y), rtol=1e-9)
    assert bool(again.unstable)
    assert not bool(again.stable)


@pytest.mark.library("numpy", "torch", "jax")
def test_a_batch_is_answered_member_by_member(xp64: Library) -> None:
    """Circuits with an attracting Newton point, one reached from rest, and none: each as by itself, compiled too."""
    rng = np.random.default_rng(11)
    circuit, z = random_circuits(6, 3, rng, gain=5.0, drive=0.3)
    found = oc.steady_state(xp64.tree(circuit), xp64.array(z))
    traced = xp64.compiled(oc.steady_state)(xp64.tree(circuit), xp64.array(z))
    assert {0, 1} <= set(numpy_tree(found.status))
    for k in range(6):
        one = oc.Circuit(*(part[k] for part in circuit))
        alone = oc.steady_state(one, z[k])
        assert bool(found.stable[k]) == bool(alone.stable)
        assert int(found.status[k]) == int(alone.status)
        np.testing.assert_allclose(numpy_tree(found.state.y)[k], alone.state.y, rtol=1e-6, atol=1e-9)
        if bool(traced.stable[k]):
            np.testing.assert_allclose(numpy_tree(traced.state.y)[k], alone.state.y, rtol=1e-6, atol=1e-9)
    assert ":" in found.message


def test_one_neuron_with_strong_recurrence_always_gets_its_attracting_point() -> None:
    """w_r in [1, 3], 300 random neurons: each has an attracting point (SPEC 6), which is the answer every time."""
    rng = np.random.default_rng(5)
    count = 300
    numbers = (rng.uniform(0.1, 1.0, (count, 1)) for _ in range(3))
    circuit = oc.Circuit(
        rng.uniform(1.0, 3.0, (count, 1, 1)), rng.uniform(0.1, 1.0, (count, 1, 1)), *numbers, 0.002, 0.002
    )
    z = rng.uniform(-1.0, 1.0, (count, 1))
    blind = oc.steady_state(circuit, z, attracting=False)
    assert np.mean(oc.spectral_abscissa(circuit, blind.state) >= 0) > 0.2
    found = oc.steady_state(circuit, z)
    assert found.stable.all()
    assert (oc.spectral_abscissa(circuit, found.state) < 0).all()


@pytest.mark.parametrize(
    ("n", "gain", "drive"), [(5, 2.0, 0.1), (2, 5.0, 0.1), (2, 5.0, 1.0), (5, 5.0, 1.0), (2, 2.0, 30.0), (6, 5.0, 10.0)]
)
def test_no_repelling_answer_where_a_search_finds_an_attracting_point(n: int, gain: float, drive: float) -> None:
    """Strong recurrence and drives: against 64 starts of the search, and the claim of stability against eigenvalues."""
    circuit, z = random_circuits(12, n, np.random.default_rng(7), gain=gain, drive=drive)
    found = oc.steady_state(circuit, z)
    for k in range(12):
        one = oc.Circuit(*(part[k] for part in circuit))
        state = oc.State(found.state.y[k], found.state.a[k])
        if found.converged[k]:
            assert bool(found.stable[k]) == (abscissa(one, state) < 0)
            assert bool(found.unstable[k]) != bool(found.stable[k])
        if not found.stable[k]:
            assert not any(point.stable for point in oc.find_fixed_points(one, z[k], starts=64))


def test_an_attracting_point_that_few_starts_lead_to(xp64: Library) -> None:
    """Newton's point repels and the motion from rest diverges; few random starts lead to the attracting one."""
    w_r = [[6, -15, -3, 0, 5], [-11, -8, -14, 4, -4], [-7, 7, -2, -15, 13], [11, 5, -13, 13, -8], [-23, -2, 21, -6, 7]]
    w = [[8, 3, 0, 4, 5], [5, 2, 3, 5, 2], [4, 0, 5, 4, 9], [9, 0, 3, 1, 3], [3, 0, 2, 3, 9]]
    circuit = oc.Circuit(0.1 * np.array(w_r), 0.1 * np.array(w), 0.5, 0.5, 0.1, 0.002, 0.002)
    z = np.array([0.1, -0.2, -1.5, 0.1, -0.8])
    assert not oc.simulate(circuit, z, np.linspace(0, 0.2, 3), max_steps=5000).success
    first = oc.steady_state(circuit, z, attracting=False)
    assert abscissa(circuit, first.state) > 0
    found = oc.steady_state(xp64.tree(circuit), xp64.array(z))
    assert bool(found.stable)
    assert int(found.status) == 2
    assert abscissa(circuit, oc.State(*numpy_tree(found.state))) < 0


def test_the_motion_of_one_circuit_is_that_of_a_batch_of_one() -> None:
    """numpy has a kernel for a single circuit: the same steps to the same end, or divergence, as the general code."""
    outcomes = set()
    for seed, gain, drive in (
        (0, 1.0, 1.0),
        (1, 3.0, 0.3),
        (2, 3.0, 3.0),
        (3, 4.0, 1.0),
        (5, 2.0, 30.0),
        (6, 5.0, 10.0),
    ):
        circuit, z = random_circuits(1, 4, np.random.default_rng(seed), gain=gain, drive=drive)
        start = oc.State(np.zeros((1, 4)), (circuit.b0 * circuit.sigma) ** 2)
        ends = []
        for pick in (lambda part: part, lambda part: part[0]):
            one, at, z0 = oc.Circuit(*map(pick, circuit)), oc.State(*map(pick, start)), pick(z)
            active, longest = np.ones(z0.shape[:-1], dtype=bool), np.full(z0.shape[:-1], np.inf)
            ends.append(follow(array_namespace(z0), one, at, z0, "main", active, longest=longest, rtol=1e-2, steps=250))
        batch, single = ends
        outcomes.add(int(single.outcome))
        assert int(single.outcome) == int(batch.outcome[0])
        np.testing.assert_allclose(single.state.y, batch.state.y[0], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(single.state.a, batch.state.a[0], rtol=1e-6)
    assert outcomes >= {SETTLED, DIVERGED}


def test_the_iterations_of_one_circuit_are_those_of_a_batch_of_one() -> None:
    """Newton's method of a single circuit, which numpy has a kernel for: as many iterations, to the same end."""
    for seed, gain, drive, method in (
        (0, 1.0, 1.0, "newton"),
        (1, 3.0, 0.3, "newton"),
        (2, 3.0, 3.0, "newton"),
        (3, 4.0, 1.0, "newton"),
        (4, 0.5, 1.0, "iteration"),
        (5, 2.0, 0.0, "newton"),
        (6, 5.0, 10.0, "newton"),
    ):
        circuit, z = random_circuits(1, 4, np.random.default_rng(seed), gain=gain, drive=drive)
        batch = oc.steady_state(circuit, z, method=method, attracting=False)
        single = oc.steady_state(oc.Circuit(*(part[0] for part in circuit)), z[0], method=method, attracting=False)
        assert bool(batch.converged[0])
        assert bool(single.converged)
        assert int(single.iterations) == int(batch.iterations[0]) > 0 or drive == 0.0
        np.testing.assert_allclose(single.state.y, batch.state.y[0], rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(single.state.a, batch.state.a[0], rtol=1e-8)


@pytest.mark.one_dtype
def test_newton_takes_the_closed_form_where_there_is_one(xp: Library) -> None:
    """W_r = eye(n) given as a matrix: no iteration, stable by the theorem."""
    circuit = oc.Circuit(xp.array(np.eye(30)), xp.array(np.full((30, 30), 0.1)), 0.5, 0.5, 0.1, 0.002, 0.002)
    z = xp.array(np.linspace(-1.0, 1.0, 150).reshape(5, 30))
    found = oc.steady_state(circuit, z, method="newton")
    assert numpy_tree(found.iterations).max() == 0
    assert numpy_tree(found.stable).all()
    xp.assert_close(found.state.y, numpy_tree(oc.steady_state(circuit, z, method="closed_form").state.y), rtol=1e-12)


def test_hopeless_circuits_say_why() -> None:
    """Strong drive: no attracting point, and the motion from rest diverges or goes on; the report says which."""
    circuit, z = random_circuits(8, 5, np.random.default_rng(3), gain=2.0, drive=100.0)
    found = oc.steady_state(circuit, z)
    hopeless = ~found.stable
    assert hopeless.sum() >= 4
    assert set(found.status[hopeless]) <= {3, 4, 5}
    for k in np.flatnonzero(found.status == 4)[:2]:
        one = oc.Circuit(*(part[k] for part in circuit))
        run = oc.simulate(one, z[k], np.linspace(0.0, 1.0, 101), rtol=1e-4, method="rodas5p", max_steps=20_000)
        assert not run.success or np.abs(run.state.a).max() > 1e6


def test_attraction_is_what_the_eigenvalues_say(xp: Library) -> None:
    """Random matrices, and spirals whose decay is a thousandth of their turning; an exact centre is undecided."""
    rng = np.random.default_rng(0)
    jac = rng.standard_normal((200, 6, 6)) - rng.uniform(0.0, 4.0, (200, 1, 1)) * np.eye(6)
    want = np.linalg.eigvals(jac).real.max(axis=-1)
    found = attraction(xp.namespace, xp.array(jac), xp.array(np.full(200, 0.5)))
    clear = np.abs(want) > (1e-2 if xp.single else 1e-6)
    np.testing.assert_array_equal(numpy_tree(found.stable)[clear] == 1, want[clear] < 0)
    np.testing.assert_array_equal(numpy_tree(found.unstable)[clear] == 1, want[clear] > 0)
    spirals = np.array([[[-d, 1.0], [-1.0, -d]] for d in (1e-3, -1e-3, 0.0)])
    found = attraction(xp.namespace, xp.array(spirals), xp.array(np.ones(3)))
    assert list(numpy_tree(found.stable)) == [1, 0, 0]
    assert list(numpy_tree(found.unstable)) == [0, 1, 0]


# Kinks.


@pytest.mark.library("numpy", "torch", "jax")
@pytest.mark.parametrize("variant", RECTIFIED)
def test_a_kink_is_judged_from_every_side(xp64: Library, variant: str) -> None:
    """w_r = 2, sigma = 0.2, z = 0: y = 0 is unstable, since a push of 1e-6 runs away to 0.61."""
    numbers = doubled(1, sigma=0.2)
    circuit, z = xp64.tree(numbers), xp64.array([0.0])
    rest = xp64.tree(oc.State(np.zeros(1), np.array([0.01])))
    assert float(oc.spectral_abscissa(circuit, rest, variant=variant)) == pytest.approx(400.0)
    states = oc.fixed_points(circuit, z, variant=variant)
    assert [point.stable for point in states] == [False, True]
    pushed = oc.State(np.array([1e-6]), np.array([0.01]))
    run = oc.simulate(numbers, np.zeros(1), np.array([0.0, 4.0]), state0=pushed, variant=variant)
    np.testing.assert_allclose(run.state.y[-1], numpy_tree(states[1].state.y), rtol=1e-4)
    found = oc.steady_state(circuit, z, variant=variant)
    assert bool(found.stable)
    np.testing.assert_allclose(numpy_tree(found.state.y), numpy_tree(states[1].state.y), rtol=1e-6)
    assert bool(oc.steady_state(circuit, z, variant=variant, state0=rest).unstable)
    for function, extra in ((oc.noise_covariance, ()), (oc.power_spectrum, (xp64.array([1.0]),))):
        with pytest.raises(ValueError, match="kink"):
            function(circuit, rest, 1.0, *extra, variant=variant)


@pytest.mark.parametrize("variant", RECTIFIED)
def test_all_pieces_around_a_kink_decide(variant: str) -> None:
    """Three units at zero: the abscissa is the largest of those a push along each sign pattern finds."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        w_r = 2.0 * rng.standard_normal((3, 3))
        circuit = oc.Circuit(w_r, rng.random((3, 3)), 0.5, 0.5, 0.3, 0.002, 0.003)
        rest = oc.State(np.zeros(3), np.full(3, 0.0225))
        gate = 1.0 - 0.15
        pieces = []
        for on in itertools.product((0.0, 1.0), repeat=3):
            slope = w_r * np.array(on) if variant == "rectified" else w_r * np.array(on)[:, None]
            pieces.append(np.linalg.eigvals((gate * slope - np.eye(3)) / 0.002).real.max())
        want = max([*pieces, -1 / 0.003])
        assert float(oc.spectral_abscissa(circuit, rest, variant=variant)) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("variant", RECTIFIED)
@pytest.mark.parametrize(("w_r", "decided"), [(0.5 * np.eye(12), True), (0.5 * np.eye(12) + 0.01, False)])
def test_many_units_at_zero_are_decided_where_they_do_not_drive_each_other(
    variant: str, w_r: np.ndarray, decided: bool
) -> None:
    """Of twelve there are 4096 pieces, more than are looked at; each alone has two, -1 and 0.9 / 2 - 1 per tau_y."""
    circuit = oc.Circuit(w_r, np.full((12, 12), 1 / 12), 0.5, 0.5, 0.2, 0.002, 0.002)
    rest = oc.State(np.zeros(12), np.full(12, 0.01))
    abscissa = float(oc.spectral_abscissa(circuit, rest, variant=variant))
    assert abscissa == pytest.approx(-275.0 if decided else math.nan, rel=1e-9, nan_ok=True)
    assert bool(oc.steady_state(circuit, np.zeros(12), variant=variant).stable) == decided


# The search for all.


def test_zero_drive_has_nine_points() -> None:
    """Two independent neurons with w_r = 2: three each, nine together, four of them stable."""
    found = oc.find_fixed_points(doubled(), np.zeros(2))
    assert len(found) == 9
    assert sum(point.stable for point in found) == 4
    assert not found.complete


@pytest.mark.parametrize("variant", RECTIFIED)
def test_rectified_neurons_are_found_as_products(variant: str) -> None:
    """Two neurons that do not touch, any drives: the pairs of what each has by itself."""
    rng = np.random.default_rng(4)
    for _ in range(12):
        w_r, z = rng.uniform(-3.0, 4.0, 2), rng.uniform(-1.0, 1.0, 2)
        circuit = oc.Circuit(np.diag(w_r), np.eye(2), 0.5, 0.5, 0.1, 0.002, 0.002)
        each = []
        for i in range(2):
            single = oc.Circuit(np.array([[w_r[i]]]), np.eye(1), 0.5, 0.5, 0.1, 0.002, 0.002)
            each.append([float(p.state.y[0]) for p in oc.fixed_points(single, z[i : i + 1], variant=variant)])
        found = oc.find_fixed_points(circuit, z, variant=variant)
        want = {tuple(np.round(pair, 7)) for pair in itertools.product(*each)}
        assert {tuple(np.round(point.state.y, 7)) for point in found} == want


@pytest.mark.parametrize("variant", oc.VARIANTS)
def test_one_neuron_has_them_all(variant: str) -> None:
    """50 random neurons a variant: what fixed_points gives, and the report says complete."""
    rng = np.random.default_rng(9)
    for _ in range(50):
        circuit = oc.Circuit(rng.uniform(-4.0, 4.0, (1, 1)), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002)
        z = rng.uniform(-3.0, 3.0, 1)
        found = oc.find_fixed_points(circuit, z, variant=variant)
        assert found.complete
        every = oc.fixed_points(circuit, z, variant=variant)
        assert [p.spectral_abscissa for p in found] == [p.spectral_abscissa for p in every]


def test_that_none_exists_is_proved(xp64: Library) -> None:
    """Nilpotent recurrence and a drive above 1 / sqrt(w_22): no y_2 = b z_2 can be; a weaker drive has a point."""
    w_r = np.array([[0.0, 1.0], [0.0, 0.0]])
    circuit = xp64.tree(oc.Circuit(w_r, np.eye(2), 1.0, 1.0, 0.1, 0.002, 0.002))
    found = oc.find_fixed_points(circuit, xp64.array([1.0, 2.0]))
    assert len(found) == 0
    assert found.complete
    assert found.report.startswith("none exists")
    weaker = oc.find_fixed_points(circuit, xp64.array([0.1, 0.5]))
    assert len(weaker) >= 1
    assert not weaker.complete


def test_no_proof_denies_a_point_that_exists() -> None:
    """Circuits made to have a given fixed point, close to its bound or not: never proved to have none."""
    rng = np.random.default_rng(6)
    for _ in range(40):
        w, w_r = rng.uniform(0.1, 1.0, (2, 2)), rng.standard_normal((2, 2))
        y = rng.choice([-1.0, 1.0], 2) * rng.uniform(0.1, 0.999) / np.sqrt(np.linalg.eigvals(w).real.max())
        floor = rng.uniform(1e-4, 1.0, 2)
        a = np.linalg.solve(np.eye(2) - w * y**2, floor)
        drive = y - (1.0 - np.sqrt(a)) * (w_r @ y)
        assert (a > 0).all()
        assert not none_exists(w_r, w, drive, floor)


@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_where_random_starts_lie(strength: float) -> None:
    """log a uniform up to ten times that of W_r = I, or 4: its ends and mean; half of the y uniform, half normal."""
    circuit = oc.Circuit(None, np.array([[0.5, 1.0], [0.2, 2.0]]), 0.5, 0.5, 0.1, 0.002, 0.002)
    z, count = strength * np.array([1.0, -0.5]), 4000
    y, a = random_starts(np, oc.Circuit(None, *map(np.asarray, circuit[1:])), z, "main", count, 0)
    reference = 0.05**2 + circuit.w @ (0.5 * z) ** 2
    low, high = np.log(0.05**2), np.log(np.maximum(10.0 * reference, 4.0))
    assert (np.log(a) >= low - 1e-12).all()
    assert (np.log(a) <= high + 1e-12).all()
    np.testing.assert_allclose(np.log(a).max(axis=0), high, rtol=0, atol=0.02 * (high - low).max())
    np.testing.assert_allclose(np.log(a).min(axis=0), low, rtol=0, atol=0.02 * (high - low).max())
    np.testing.assert_allclose(np.log(a).mean(axis=0), 0.5 * (low + high), rtol=0, atol=5 * 0.29 * 8 / np.sqrt(count))
    at_once = (np.log(a) - low) / (high - low)
    level = np.ptp(at_once, axis=-1) < 1e-9
    assert level.sum() == count / 2
    own = np.abs(0.5 * z / np.sqrt(reference)).max() + 1e-3 / np.sqrt(2.0)
    wide = np.arange(count) % 4 < 2
    bound = np.minimum(1.0 / np.sqrt(np.diag(circuit.w)), 1e3 * own)
    np.testing.assert_allclose(np.abs(y[wide]).max(axis=0), bound, rtol=0.01)
    np.testing.assert_allclose(y[wide].mean(axis=0), 0.0, rtol=0, atol=5 * bound.max() / np.sqrt(3 * count / 2))
    np.testing.assert_allclose(y[~wide].std(axis=0), own, rtol=5 / np.sqrt(count))


def test_the_grid_of_two_neurons_is_dense_where_y_is_small() -> None:
    """A bound of 100, or none, and states of order one: a start within a tenth of nearly each of them."""
    rng = np.random.default_rng(4)
    near = []
    for k in range(12):
        own = 1e-4 if k < 9 else 0.0
        w = np.array([[own, 1.0], [1.0, own]])
        w_r, y = rng.standard_normal((2, 2)), rng.uniform(0.2, 0.9, 2)
        floor = rng.uniform(0.01, 0.5, 2)
        a = np.linalg.solve(np.eye(2) - w * y**2, floor)
        with np.errstate(divide="raise"):
            starts, modulators = grid_of_two(w_r, w, y - (1.0 - np.sqrt(a)) * (w_r @ y), floor, "main")
        near.append(np.abs(starts - y).max(axis=-1).min())
        assert (modulators > 0).all()
    assert np.mean(np.array(near) < 0.1) >= 0.9


@pytest.mark.parametrize("batch", [(), (2,)])
def test_large_circuits_go_in_explicit_steps_where_they_are_not_stiff(
    batch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damped oscillation: few Jacobians, until it is slow; fast modulators: one a step; the same ends."""
    module = importlib.import_module("organics_core.attractors")
    monkeypatch.setenv("ORGANICS_NATIVE_MOTION", "0")
    n, inverted = LARGE, []
    monkeypatch.setattr(module, "inverse", lambda *given: inverted.append(1) or inverse(*given))
    balanced = []
    monkeypatch.setattr(module, "balance", lambda *given: balanced.append(1) or balance(*given))

    def settled(tau_a: float) -> tuple[int, int, np.ndarray]:
        """How many Jacobians and fields it took, and the end."""
        circuit = oc.Circuit(
            3.0 * np.eye(n), np.full((n, n), 1 / n), np.asarray(0.5), np.asarray(0.5), np.asarray(0.1),
            np.full((*batch, n), 0.002), np.full((*batch, n), tau_a),
        )  # fmt: skip
        z = 0.3 * np.cos(np.arange(n)) + np.zeros((*batch, n))
        rest = oc.State(np.zeros_like(z), np.full_like(z, 0.0025))
        inverted.clear()
        balanced.clear()
        end = follow(
            np, circuit, rest, z, "rectified", np.ones(batch, bool), longest=np.full(batch, np.inf), steps=2000
        )
        assert (end.outcome == SETTLED).all()
        field = np.concatenate(oc.vector_field(circuit, end.state, z, variant="rectified"), axis=-1)
        assert np.abs(field * np.repeat([0.002, tau_a], n)).max() < 1e-3
        return len(inverted), len(balanced), end.state.y

    jacobians, fields, end = settled(0.002)
    assert 0 < jacobians < 0.1 * fields
    jacobians, fields, other = settled(2e-8)
    assert jacobians > 50
    assert fields < 1e4  # explicit steps alone are a million and more
    np.testing.assert_allclose(other, end, rtol=0, atol=1e-2 * np.abs(end).max())


def test_steps_of_the_motion_are_those_of_shampine_and_reichelt() -> None:
    """Order 2, and with the estimated error order 3: in half the step the error falls by 8, that of the sum by 16.
    L-stable: the longest steps end where a decay does."""
    circuit, z, state = small_circuit(2, seed=1, scale=0.3)
    circuit = circuit._replace(tau_y=np.full(2, 0.002), tau_a=np.full(2, 0.003))
    tau = np.array([0.002, 0.002, 0.003, 0.003])
    advance = kernel_for(RosenbrockPair, np)(np, "main", circuit, z, tau, np.full(4, 1e-3), _D, _E)[1]

    def field(x: np.ndarray) -> np.ndarray:
        return np.concatenate(oc.vector_field(circuit, oc.State(x[:2], x[2:]), z))

    x = np.concatenate(state)
    errors, sums = [], []
    for h in (4e-5, 2e-5, 1e-5):
        moved, new, off = advance(x.copy(), field(x), h)
        moved, off = np.array(moved), np.array(off)
        exact = solve_ivp(lambda t, s: field(s), (0.0, h), x, "DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
        errors.append(np.abs(moved - exact).max())
        sums.append(np.abs(moved + h * off / 6.0 - exact).max())
        np.testing.assert_allclose(new, field(moved), rtol=1e-9)
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 8.0, rtol=0.1)
    np.testing.assert_allclose(np.divide(sums[:-1], sums[1:]), 16.0, rtol=0.1)
    rest = np.concatenate(oc.steady_state(circuit, z).state)
    near = rest * (1.0 + 1e-6 * np.array([1.0, -1.0, 1.0, -1.0]))
    moved = np.array(advance(near, field(near), 1e3)[0])
    assert np.abs(moved - rest).max() < 1e-4 * np.abs(near - rest).max()


def native_motion() -> Any:
    """The module of the native motion; a skip where no compiler is, or its variable says 0."""
    module = importlib.import_module("organics_backends.kernels.native_motion")
    if module.library.load() is None:
        status = module.library.status()
        assert "no C++ compiler" in status or "switched off" in status, status
        pytest.skip(f"{ELSEWHERE}native code is {status}")
    return module


def motion_cases(batch: tuple[int, ...], n: int, seed: int) -> tuple[oc.Circuit, oc.State, np.ndarray]:
    """Circuits of all kinds of shapes, a start of each and a drive."""
    rng = np.random.default_rng(seed)
    shared = () if seed % 2 else batch
    circuit = oc.Circuit(
        None if seed % 5 == 4 else rng.uniform(0.5, 3.0) * rng.standard_normal((*shared, n, n)) / np.sqrt(n),
        rng.random((*batch, n, n)) if seed % 3 else rng.random((n, n)),
        rng.uniform(0.3, 1.0, n),
        np.asarray(0.5),
        np.asarray(0.1),
        rng.uniform(0.001, 0.004, (*batch, n)),
        np.asarray(0.002),
    )
    start = oc.State(rng.standard_normal((*batch, n)), rng.uniform(0.1, 1.5, (*batch, n)))
    return circuit, start, rng.standard_normal((*batch, n)) if seed % 4 else rng.standard_normal(n)


@pytest.mark.library("numpy", "torch")
@pytest.mark.parametrize("variant", ["main", "rectified", "rectified_recurrence"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
def test_motion_in_native_code_is_that_of_the_core(
    xp: Library, variant: str, batch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps to rounding, whole motions to the same end; with and without a goal, also where not all take part."""
    native = native_motion()
    whole, agree, near = 0, [], []
    for seed in range(8):
        n = (1, 3, 5, 7, LARGE, LARGE + 1)[seed % 6]
        circuit, start, z = motion_cases(batch, n, seed)
        active = np.arange(np.prod(batch, dtype=int)).reshape(batch) != 1
        goal = oc.State(0.5 * start.y, start.a) if seed % 2 else None
        circuit, start, z, active, goal = xp.tree((circuit, start, z, active, goal))
        longest = xp.array(np.full(batch, np.inf))
        for steps, rtol in ((4, 1e-2), (600, 1e-3)):
            ends = []
            for switch in ("1", "0"):
                monkeypatch.setenv(native.VARIABLE, switch)
                target = goal if steps == 4 else None
                with np.errstate(all="ignore"):
                    ends.append(
                        follow(
                            xp.namespace,
                            circuit,
                            start,
                            z,
                            variant,
                            active,
                            steps=steps,
                            longest=longest,
                            rtol=rtol,
                            target=target,
                        )
                    )
            made, want = ends
            alike = numpy_tree(made.outcome) == numpy_tree(want.outcome)
            assert alike.all() or steps > 4
            agree.append(alike.ravel())
            assert made.outcome.dtype == want.outcome.dtype
            both = (numpy_tree(made.outcome) == SETTLED) & (numpy_tree(want.outcome) == SETTLED)
            whole += int(both.sum())
            if steps > 4:
                got, wanted = (np.concatenate(numpy_tree(tuple(end.state)), axis=-1)[both] for end in ends)
                near.append((np.abs(got - wanted) <= 1e-2 * np.abs(wanted).max(axis=-1, keepdims=True)).all(axis=-1))
            if steps == 4:  # each of 100 roundings of what is divided by small numbers
                for got, wanted in zip(made.state, want.state, strict=True):
                    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
                    xp.assert_close(got, numpy_tree(wanted), rtol=1e4 * xp.eps, atol=1e4 * xp.eps)
    # what is chaotic on its way need not end alike
    assert (whole > 2 and np.concatenate(agree).mean() > 0.9 and np.concatenate(near).mean() > 0.9) or batch == (0,)


@pytest.mark.library("numpy", "torch")
@pytest.mark.parametrize("variant", ["main", "rectified", "rectified_recurrence"])
def test_newtons_method_in_native_code_is_that_of_the_core(
    xp: Library, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same steps, to rounding, also those that leave the domain; the same points in the end."""
    native = native_motion()
    tolerance, arrived, total = xp.eps**0.75, 0, 0
    for seed, batch in enumerate(((), (3,), (2, 3), (40,), (0,))):
        circuit, start, z = xp.tree(motion_cases(batch, 1 + seed, seed))
        for steps, enough in ((1, 0.0), (30, tolerance)):
            ends = []
            for switch in ("1", "0"):
                monkeypatch.setenv(native.VARIABLE, switch)
                ends.append(newton_in_both(xp.namespace, circuit, start, z, variant, enough, steps))
            (made, residual), (want, wanted) = ends
            assert (residual.shape, residual.dtype) == (wanted.shape, wanted.dtype)
            for got, expected in zip(made, want, strict=True):
                assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
                if steps == 1:  # times the condition of the Jacobian
                    xp.assert_close(got, numpy_tree(expected), rtol=1e7 * xp.eps, atol=1e7 * xp.eps)
            if steps == 30:  # what rounding grows to on the way is not the point
                exact = numpy_tree(relative_residual(xp.namespace, circuit, oc.State(*made), z, variant))
                near = numpy_tree(residual) <= tolerance
                assert (exact[near] <= tolerance + 1e3 * xp.eps).all()
                arrived, total = arrived + near.sum(), total + (numpy_tree(wanted) <= tolerance).sum()
    assert abs(arrived - total) <= 0.2 * total
    assert total > 5


@pytest.mark.library("numpy", "torch")
def test_threads_share_a_batch_and_change_nothing(xp: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every member once, to the last bit, by one thread, three, or more than there are members."""
    native = native_motion()
    circuit, start, z = xp.tree(motion_cases((23,), 12, 2))
    active, longest = xp.array(np.arange(23) != 4), xp.array(np.full(23, np.inf))
    run, seen = native.Arguments, []
    monkeypatch.setattr(native, "Arguments", lambda *given: seen.append(given[2]) or run(*given))
    monkeypatch.setattr(native, "_FEW", 1e3)
    ends = []
    for threads in (1, 3, 40):
        monkeypatch.setattr(native, "_threads", lambda namespace, threads=threads: threads)
        moved = follow(xp.namespace, circuit, start, z, "main", active, longest=longest)
        state, residual = newton_in_both(xp.namespace, circuit, start, z, "main", 0.0)
        ends.append(numpy_tree((tuple(moved.state), moved.outcome, tuple(state), residual)))
    assert seen[0] == 1
    assert set(seen) == {1, 3, 23}
    for other in ends[1:]:
        for one, two in zip(tree_leaves(ends[0]), tree_leaves(other), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.library("numpy", "torch")
def test_how_many_threads_the_motion_takes(xp: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as torch takes; else what the variable for OpenMP says, at most the processors of the process."""
    native = native_motion()
    monkeypatch.setattr(native, "processors", lambda: 6)
    if xp.name == "torch":
        torch = importlib.import_module("torch")
        assert native._threads(xp.namespace) == torch.get_num_threads()
        return
    for text, want in (("2", 2), ("4,2", 4), ("99", 6), ("0", 6), ("many", 6), ("", 6)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert native._threads(np) == want


def test_a_long_motion_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of one call of native code, of minutes if nothing stopped it; the next call is whole."""
    native = native_motion()
    monkeypatch.setattr(native, "MOST", 1)
    monkeypatch.setattr(native, "_PRODUCTS", 1e18)
    monkeypatch.setattr(native, "_threads", lambda namespace: 2)
    turning = np.array([[2.0, -3.0], [3.0, 2.0]])
    circuit = oc.Circuit(turning, np.full((2, 2), 0.5), *map(np.asarray, (0.5, 0.5, 0.1, 0.002, 0.002)))

    def moved(count: int) -> Any:
        start, z = oc.State(np.full((count, 2), 0.1), np.full((count, 2), 0.5)), np.full((count, 2), 0.3)
        return follow(np, circuit, start, z, "main", np.ones(count, bool), longest=np.full(count, np.inf))

    whole = moved(3)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background takes away
    try:
        threading.Timer(1.0, signal.raise_signal, (signal.SIGINT,)).start()
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            moved(400_000)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < 60
    np.testing.assert_array_equal(moved(3).state.y, whole.state.y)


def test_native_motion_leaves_alone_what_it_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """More neurons than it is for, operators, no compiler; the arguments keep their values."""
    native = importlib.import_module("organics_backends.kernels.native_motion")
    circuit, start, z = motion_cases((), 3, 1)
    given = [np.array(part) for part in (*start, z)]
    tau = np.full(6, 0.002)
    rows, numbers = (np.concatenate(start), tau, tau, tau, tau, None, None), (0.002, 0.002, 1e-12, np.inf)
    numbers = tuple(np.asarray(number) for number in numbers)
    arguments = rows, numbers, np.asarray(True), (3, 1e-3, 1e-5, 1e-3)
    follow(np, circuit, start, z, "main", np.asarray(True), longest=np.asarray(np.inf))
    assert all(np.array_equal(*pair) for pair in zip(given, (*start, z), strict=True))
    operator = circuit._replace(w_r=oc.Operator(lambda v: v, shape=(3, 3)))
    assert native.motion(np, "main", operator, *arguments) is None
    monkeypatch.setattr(native, "MOST_MOVING", 2)
    assert native.motion(np, "main", circuit, *arguments) is None
    monkeypatch.setattr(native, "MOST_MOVING", 3)
    monkeypatch.setenv(native.VARIABLE, "0")
    assert native.motion(np, "main", circuit, *arguments) is None


# What happens from rest.


def test_divergence_from_rest_is_not_called_a_fixed_point() -> None:
    """A circuit with an attracting point that diverges from rest: so the answer is, and the point is listed."""
    circuit = oc.Circuit(
        np.array([[1.5, -0.25], [-0.73, -0.43]]), np.array([[0.31, 0.2], [0.49, 0.47]]), 0.5, 0.5, 0.1, 0.002, 0.002
    )
    z = np.array([3.0, 0.09])
    found = oc.classify(circuit, z)
    assert int(found.kind) == DIVERGENCE
    assert found.others.y.shape == (1, 2)
    point = oc.State(found.others.y[0], found.others.a[0])
    assert abscissa(circuit, point) < 0
    started = oc.classify(circuit, z, start=oc.State(1.01 * point.y, point.a))
    assert int(started.kind) == FIXED_POINT
    np.testing.assert_allclose(started.state.y, point.y, rtol=1e-8)
    assert started.others.y.shape == (0, 2)


def test_other_attractors_are_listed_beside_that_from_rest() -> None:
    """W_r = 4 I, weak drive: from rest one of the two attracting points of each neuron, 20 starts find another."""
    circuit = oc.Circuit(4.0 * np.eye(2), np.eye(2), 0.5, 1.0, 0.5, 0.002, 0.002)
    z = np.array([0.01, 0.01])
    found = oc.classify(circuit, z, starts=20)
    assert int(found.kind) == FIXED_POINT
    np.testing.assert_allclose(found.state.y, end_from_rest(circuit, z).y, rtol=1e-6)
    every = [point.state.y for point in oc.find_fixed_points(circuit, z) if point.stable]
    assert len(every) > 1
    assert 1 <= found.others.y.shape[0] < len(every)
    for y in found.others.y:
        assert min(np.abs(y - other).max() for other in every) < 1e-8
        assert np.abs(y - found.state.y).max() > 1e-3


def test_a_cycle_longer_than_a_chunk_is_found() -> None:
    """A slow rotation without drive: one turn takes 133 tau, and a simulation with other tolerances agrees."""
    w_r = np.array([[1.5, -0.0708], [0.0708, 1.5]])
    circuit = oc.Circuit(w_r, np.full((2, 2), 0.5), 1.0, 1.0, 0.1, 0.002, 0.002)
    z = np.array([1e-3, 0.0])
    run = oc.simulate(circuit, z, np.linspace(0.0, 4.0, 4001), rtol=1e-8, atol=1e-11)
    y = run.state.y[2000:, 0]
    crossings = np.flatnonzero((y[:-1] < 0) & (y[1:] >= 0))
    np.testing.assert_allclose(np.diff(crossings) * 1e-3 / 0.002, 133.0, atol=0.6)
    assert int(oc.classify(circuit, z).kind) == LIMIT_CYCLE


# Strong drive, other units, one neuron.


@pytest.mark.parametrize("drive", [1e7, 1e20, 1e150])
@pytest.mark.parametrize("w_r", [0.5, 0.001, 1.0])
def test_one_neuron_settles_by_theorem_however_strong_the_drive(xp64: Library, w_r: float, drive: float) -> None:
    """0 < w_r <= 1: one fixed point, to which all leads; y from 1 - y**2 = floor / a and (1 - w_r + w_r s) y = b z."""
    circuit = xp64.tree(oc.Circuit(np.array([[w_r]]), np.eye(1), 0.5, 0.5, 0.1, 0.002, 0.002))
    z = xp64.array([drive])
    found, kind = oc.steady_state(circuit, z), oc.classify(circuit, z)
    assert bool(found.stable)
    assert int(kind.kind) == FIXED_POINT
    assert not bool(kind.simulated)
    for state in (found.state, kind.state):
        y, a = (float(part[0]) for part in state)
        assert y == pytest.approx(1.0, rel=1e-6)
        assert (1.0 - w_r + w_r * a**0.5) * y == pytest.approx(0.5 * drive, rel=1e-9)


def test_the_theorem_for_one_neuron_is_that_of_its_simulation() -> None:
    """No closed orbit, whatever the time constants: 30 random neurons, far starts, all end at the one point."""
    rng = np.random.default_rng(3)
    for variant in oc.VARIANTS:
        for _ in range(10):
            circuit = oc.Circuit(
                rng.uniform(0.01, 1.0, (1, 1)), rng.uniform(0.1, 3.0, (1, 1)), *rng.uniform(0.1, 1.5, 3), 0.002,
                0.002 * 10 ** rng.uniform(-2, 2),
            )  # fmt: skip
            z = rng.uniform(-3.0, 3.0, 1)
            found = oc.steady_state(circuit, z, variant=variant)
            assert found.stable
            start = oc.State(rng.uniform(-4.0, 4.0, 1), rng.uniform(0.01, 30.0, 1))
            slow = 100.0 * max(circuit.tau_y, circuit.tau_a) / min(0.2, float(circuit.b0 * circuit.sigma))
            run = oc.simulate(circuit, z, np.array([0.0, slow]), state0=start, variant=variant, method="rodas5p")
            np.testing.assert_allclose(run.state.y[-1], found.state.y, rtol=1e-4, atol=1e-6)


def test_a_batch_of_neurons_of_both_kinds_is_classified_member_by_member() -> None:
    """Some settle by the theorem, some are followed; w_r = -0.5 under drive 100 has no stable point."""
    w_r = np.array([0.5, 2.0, -0.5, 0.001])[:, None, None]
    circuit, z = oc.Circuit(w_r, np.eye(1), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1e7, 1.0, 100.0, 1e5])[:, None]
    one = oc.Circuit(w_r[2], np.eye(1), 0.5, 0.5, 0.1, 0.002, 0.002)
    assert not any(point.stable for point in oc.fixed_points(one, z[2]))
    assert list(oc.classify(circuit, z).kind == FIXED_POINT) == [True, True, False, True]


@pytest.mark.parametrize("drive", [1e6, 1e8, 1e10, 1e13])
def test_strong_drive_is_no_divergence(drive: float) -> None:
    """Two neurons share a pool: at strong drive y is M^-1 b z, in the direction of W_r^-1 b z, normalized to one."""
    w_r = np.array([[0.5, 0.1], [0.0, 0.4]])
    circuit, z = oc.Circuit(w_r, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002), drive * np.array([1.0, 0.5])
    want = np.linalg.solve(w_r, z)
    want /= np.linalg.norm(want)
    found, kind = oc.steady_state(circuit, z), oc.classify(circuit, z)
    assert found.stable
    assert int(kind.kind) == FIXED_POINT
    np.testing.assert_allclose(found.state.y, want, rtol=10.0 / drive)
    np.testing.assert_allclose(kind.state.y, want, rtol=10.0 / drive)


def test_drives_at_the_end_of_the_range_say_so(recwarn: pytest.WarningsRecorder) -> None:
    """z = 1e155: its square is no float64; neither an answer nor a claim, and no warning of numpy's."""
    for w_r in (None, np.array([[0.5, 0.1], [0.0, 0.4]])):
        circuit, z = oc.Circuit(w_r, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1e155, 0.5e155])
        found = oc.steady_state(circuit, z)
        assert not found.converged
        assert not found.stable
        assert "range of the dtype" in found.message
        assert int(oc.classify(circuit, z).kind) == UNDECIDED
    assert not [one for one in recwarn if issubclass(one.category, RuntimeWarning)]


@pytest.mark.parametrize(
    ("dtype", "z", "b"), [("float64", 1e155, 0.5), ("float64", 1e200, 1e200), ("float32", 1e20, 1e20)]
)
@pytest.mark.parametrize("n", [1, 2])
def test_searches_name_a_drive_that_leaves_the_range(dtype: str, z: float, b: float, n: int) -> None:
    """All fixed points of what overflows are no result: a sentence about z; a drive that overflows is undecided."""
    eye, drive = np.eye(n, dtype=dtype), np.full(n, z, dtype=dtype)
    circuit = oc.Circuit(2.0 * eye, eye, np.asarray(b, dtype=dtype), 0.5, 0.1, 0.002, 0.002)
    searches = (oc.find_fixed_points, oc.fixed_points) if n == 1 else (oc.find_fixed_points,)
    with np.errstate(all="ignore"):
        for search in searches:
            with pytest.raises(ValueError, match=f"z must leave fixed points well within the range of {dtype}"):
                search(circuit, drive)
        assert int(oc.classify(circuit, drive).kind) == UNDECIDED
        assert "range of the dtype" in oc.steady_state(circuit, drive).message


NATIVE = pytest.mark.parametrize("native", ["1", "0"])


@NATIVE
def test_a_long_way_round_is_no_divergence(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of unequal time constants; modulators of 9e6 on the way, where drive, floor and W_r explain 2.5e3."""
    monkeypatch.setenv("ORGANICS_NATIVE_MOTION", native)
    circuit = oc.Circuit(
        np.array([[3.539, -1.858, -0.631], [3.413, 1.081, 1.108], [-0.8589, -2.754, 0.2798]]),
        np.array([[0.0, 0.0, 0.868], [0.0, 0.6814, 0.4399], [0.4164, 0.0, 0.0]]),
        0.5,
        0.5,
        0.1,
        np.array([0.005057, 0.03159, 0.03649]),
        np.array([0.008764, 0.03009, 0.04657]),
    )
    z = np.array([27.39, -104.7, -15.17])

    def field(t: float, x: np.ndarray) -> np.ndarray:
        return np.concatenate(oc.vector_field(circuit, oc.State(x[:3], x[3:]), z, variant="rectified"))

    path = solve_ivp(field, (0.0, 1.0), [0.0, 0.0, 0.0, 0.0025, 0.0025, 0.0025], "LSODA", rtol=1e-9, atol=1e-9).y
    assert path[3:].max() > 5e6
    found = oc.steady_state(circuit, z, variant="rectified")
    assert found.stable
    np.testing.assert_allclose(found.state.y, path[:3, -1], rtol=1e-6)
    assert int(oc.classify(circuit, z, variant="rectified").kind) == FIXED_POINT


@NATIVE
def test_a_step_that_fails_once_is_no_divergence(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit cycle in float32: one failure leads to steps far shorter than need be, not to ever shorter ones."""
    monkeypatch.setenv("ORGANICS_NATIVE_MOTION", native)
    w_r = [[0.0003462539, 0.28549773, 0.24455772], [0.11155067, 0.08457303, 0.01907858]]
    w = [[0.41217119, 0.0, 0.9461633], [0.0, 0.35195556, 0.0], [0.0, 0.3577243, 0.0]]
    circuit = oc.Circuit(
        np.asarray([*w_r, [0.078449436, 0.24734609, 0.1918107]], dtype=np.float32),
        np.asarray(w, dtype=np.float32),
        0.5,
        1.0,
        0.5,
        0.003058248986765651,
        np.asarray([0.058193415, 0.002802118, 0.012345527], dtype=np.float32),
    )
    z = np.asarray([18.413345, 110.55993, 57.583652], dtype=np.float32)
    found = oc.steady_state(circuit, z, variant="rectified")
    assert not found.converged
    assert "does not settle" in found.message
    assert int(oc.classify(circuit, z, variant="rectified").kind) == LIMIT_CYCLE


@NATIVE
def test_small_modulators_keep_their_digits_beside_large_ones(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 as in float64, with modulators of 1e-12 beside 10: a fixed point is come to, divergence is seen."""
    monkeypatch.setenv("ORGANICS_NATIVE_MOTION", native)
    circuit = oc.Circuit(
        np.array([[-0.5485361, 1.5445892], [0.63643706, 1.2703496]]),
        np.diag([0.24722208, 0.57755345]),
        np.asarray(0.5),
        np.array([0.05997464, 0.25183386]),
        np.asarray(1e-5),
        np.array([0.04015958, 0.03991682]),
        np.array([0.05512393, 0.01736674]),
    )
    z = np.array([0.06996475, 0.08501812])
    single, weak = oc.Circuit(*(part.astype(np.float32) for part in circuit)), z.astype(np.float32)
    rest = oc.State(np.zeros_like(weak), (single.b0 * single.sigma) ** 2)
    motion = follow(np, single, rest, weak, "rectified", np.asarray(True), longest=np.asarray(np.inf, dtype=np.float32))
    assert int(motion.outcome) == SETTLED
    found = oc.steady_state(single, weak, variant="rectified")
    assert found.stable
    np.testing.assert_allclose(found.state.y, oc.steady_state(circuit, z, variant="rectified").state.y, rtol=1e-4)

    rng = np.random.default_rng(0)
    gains = rng.standard_normal((40, 6, 6))
    gains *= rng.choice([1.0, 2.0, 5.0], (40, 1, 1)) / np.linalg.norm(gains, 2, axis=(-2, -1), keepdims=True)
    made = oc.Circuit(gains, rng.random((40, 6, 6)), 0.5, 0.5, 1e-4, 0.002, 10.0 ** rng.uniform(-3.0, -1.0, (40, 6)))
    drive, ends = rng.standard_normal((40, 6)) * 10.0 ** rng.uniform(-2.0, 2.0, (40, 1)), []
    for dtype in (np.float32, np.float64):
        cast = oc.Circuit(*(np.asarray(part, dtype=dtype) for part in made))
        ones, y = np.ones(40, dtype=dtype), np.zeros((40, 6), dtype=dtype)
        start = oc.State(y, y + np.asarray((0.5 * 1e-4) ** 2, dtype=dtype))
        with np.errstate(all="ignore"):
            moved = follow(np, cast, start, drive.astype(dtype), "main", ones > 0, longest=math.inf * ones)
        ends.append(moved.outcome)
    assert (ends[1] == DIVERGED).sum() > 10
    assert (ends[0] != ends[1]).sum() <= 3


@NATIVE
@pytest.mark.parametrize("batch", [(), (1,)])
def test_motions_begin_with_modulators_of_zero(native: str, batch: tuple[int, ...], monkeypatch: Any) -> None:
    """Where sqrt(a) has no derivative, nothing is lost: the motion leads to the fixed point all the same."""
    monkeypatch.setenv("ORGANICS_NATIVE_MOTION", native)
    circuit = oc.Circuit(*(np.asarray(part) for part in (2.0 * np.eye(2), np.eye(2), 0.5, 0.5, 0.1, 0.002, 0.002)))
    z, ones = np.ones((*batch, 2)), np.ones(batch)
    for a in ([0.0, 0.1], [0.0, 0.0]):
        start = oc.State(0.1 * z, z * a)
        made = follow(np, circuit, start, z, "main", ones > 0, longest=math.inf * ones)
        assert (made.outcome == SETTLED).all()
        np.testing.assert_allclose(made.state.y, 0.99777861 * z, rtol=1e-4)


@NATIVE
def test_what_is_not_a_number_is_seen_wherever_it_stands(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN or infinity in the drive of the first unit or of another: no residual, and nothing settles."""
    monkeypatch.setenv("ORGANICS_NATIVE_MOTION", native)
    circuit = oc.Circuit(*(np.asarray(part) for part in (2.0 * np.eye(3), np.eye(3), 0.5, 0.5, 0.1, 0.002, 0.002)))
    start = oc.State(np.zeros(3), np.full(3, 0.0025))
    for value, unit in itertools.product((math.nan, math.inf, -math.inf), range(3)):
        z = np.ones(3)
        z[unit] = value
        with np.errstate(all="ignore"):
            assert np.isnan(newton_in_both(np, circuit, start, z, "main", 1e-12)[1])
            made = follow(np, circuit, start, z, "main", np.asarray(True), longest=np.asarray(math.inf), steps=50)
        assert int(made.outcome) != SETTLED


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_native_code_loads_in_a_child_of_a_process_that_compiles() -> None:
    """A lock that another thread holds at a fork is not the child's: it would wait for ever."""
    native = importlib.import_module("organics_backends.kernels.native_motion")
    native.library.load()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with native.library._lock:
            held.set()
            done.wait(30.0)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        native.library.load()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    done.set()
    thread.join()
    assert status == 0


@pytest.mark.library("numpy", "strict", "torch")
@pytest.mark.parametrize("unit", [1e-14, 1e-7, 1e5, 1e14])
def test_units_of_y_change_nothing(xp: Library, unit: float) -> None:
    """y and z in other units, W in those of their inverse square: the same answers, with those that diverge too."""
    circuit, z = random_circuits(8, 3, np.random.default_rng(1), gain=2.0, drive=1.0)
    other, drive = circuit._replace(w=circuit.w / unit**2), z * unit
    plain = oc.steady_state(xp.tree(circuit), xp.array(z))
    found = oc.steady_state(xp.tree(other), xp.array(drive))
    assert numpy_tree(plain.stable).sum() >= 5
    np.testing.assert_array_equal(numpy_tree(found.stable), numpy_tree(plain.stable))
    np.testing.assert_array_equal(numpy_tree(found.unstable), numpy_tree(plain.unstable))
    at = numpy_tree(plain.stable) == 1
    y, want = numpy_tree(found.state.y)[at] / unit, numpy_tree(plain.state.y)[at]
    np.testing.assert_allclose(y, want, rtol=1e-3 if xp.single else 1e-9)


@pytest.mark.parametrize(("w_r", "drive"), [(1e-3, 1e5), (1e-6, 1e5), (1e-3, 1e8)])
def test_weak_recurrence_under_strong_drive_settles(w_r: float, drive: float) -> None:
    """W_r = w_r I: modulators rise to (b z / w_r y)**2, no divergence; the two y are equal and normalized."""
    circuit = oc.Circuit(w_r * np.eye(2), 0.9 * np.eye(2) + 0.1, 0.5, 0.5, 0.1, 0.002, 0.002)
    kind = oc.classify(circuit, np.full(2, drive))
    assert int(kind.kind) == FIXED_POINT
    np.testing.assert_allclose(kind.state.y, 1.0 / np.sqrt(1.1), rtol=1e-6)


def test_what_is_stiff_is_simulated_by_a_stiff_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """tau_a = 10^4 tau_y: stability would ask for more than 10^6 explicit steps, 10 or more an output."""
    module = importlib.import_module("organics_core.analysis.classification")
    runs = []

    def counted(*args: object, **options: object) -> oc.Trajectory:
        runs.append(module_simulate(*args, **options))
        return runs[-1]

    module_simulate = module.simulate
    monkeypatch.setattr(module, "simulate", counted)
    circuit = oc.Circuit(np.array([[-3.0]]), np.eye(1), 0.5, 0.5, 0.1, 2e-7, 0.002)
    module._simulated_kind(np, circuit, np.array([2.0]), "main", 2, 1e-6, 20_000, None)
    assert runs
    assert sum(int(run.steps) for run in runs) < 10_000
