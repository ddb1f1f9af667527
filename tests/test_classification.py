"""Classification of what circuits do, and phase diagrams."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support import Library, largest, numpy_tree

import organics_core as oc
from organics_core.analysis.classification import DIVERGENCE, FIXED_POINT, LIMIT_CYCLE, UNDECIDED, _simulated_kind


def flat(n: int = 5) -> oc.Circuit:
    return oc.Circuit(None, np.full((n, n), 1.0 / n), 1.0, 1.0, 0.1, 0.002, 0.002)


def draw(circuit: oc.Circuit, delta: float, norm: float, index: int, ensemble: str) -> tuple[oc.Circuit, np.ndarray]:
    """The circuit and the drive that a phase diagram with seed 0 classifies."""
    n = circuit.w.shape[-1]
    keys = [int(key) for key in np.random.SeedSequence([0, index]).generate_state(2)]
    w_r = oc.random_recurrence(n, delta, ensemble=ensemble, seed=keys[0], like=circuit.w)
    z = np.random.default_rng(keys[1]).standard_normal(n)
    return circuit._replace(w_r=w_r), norm * z / np.linalg.norm(z)


@pytest.mark.one_dtype
def test_weak_recurrence_is_a_fixed_point(xp: Library) -> None:
    """At delta = 0 every circuit settles, on the closed form, without simulation; a small delta moves it little."""
    found = oc.phase_diagram(xp.tree(flat()), xp.array([0.0, 0.01]), xp.array([0.1, 1.0, 10.0]), 2)
    assert tuple(found.kind.shape) == (2, 3, 2)
    assert not numpy_tree((found.kind,))[0].any()
    assert not numpy_tree((found.simulated,))[0].any()
    distance = numpy_tree((found.distance,))[0]
    assert np.max(distance[0]) < 2e3 * xp.eps
    assert 1e-6 < np.min(distance[1]) < np.max(distance[1]) < 0.2
    assert np.max(numpy_tree((found.abscissa,))[0]) < 0


@pytest.mark.slow
def test_classification_agrees_with_simulation() -> None:
    """Strong recurrence, both ensembles: what is called settled, cycling or diverging does so when simulated anew."""
    circuit = flat(20)
    deltas, norms = np.array([0.6, 2.0]), np.array([1.0, 10.0])
    kinds = set()
    for ensemble in oc.analysis.classification.ENSEMBLES:
        found = oc.phase_diagram(circuit, deltas, norms, 3, ensemble=ensemble)
        for i, j, r in np.ndindex(found.kind.shape):
            kind = int(found.kind[i, j, r])
            kinds.add(kind)
            one, z = draw(circuit, deltas[i], norms[j], r, ensemble)
            if kind == FIXED_POINT:
                settled = oc.classify(one, z).state
                assert largest(oc.vector_field(one, settled, z)) * 0.002 < 1e-9 * (1 + largest(settled))
                nudged = oc.State(settled.y * (1 + 1e-4), settled.a)
                run = oc.simulate(
                    one, z, np.linspace(0.0, 40.0 / -found.abscissa[i, j, r], 3), state0=nudged, rtol=1e-9, atol=1e-12
                )
                np.testing.assert_allclose(run.state.y[-1], settled.y, atol=2e-5 * np.abs(settled.y).max())
            elif kind == DIVERGENCE:
                run = oc.simulate(one, z, np.linspace(0.0, 2.0, 2001), rtol=1e-4, max_steps=20_000)
                assert not run.success or np.abs(run.state.a).max() > 1e6
    assert {FIXED_POINT, DIVERGENCE} <= kinds


def test_a_limit_cycle_is_found() -> None:
    """Two neurons with a rotation in W_r circle for ever: one circuit with a cycle that a simulation shows."""
    w_r = np.array([[1.5, -2.0], [2.0, 1.5]])
    circuit = oc.Circuit(w_r, np.full((2, 2), 0.5), 1.0, 1.0, 0.1, 0.002, 0.002)
    z = np.array([0.05, 0.0])
    found = oc.classify(circuit, z)
    assert int(found.kind) == LIMIT_CYCLE
    assert bool(found.simulated)
    assert float(found.abscissa) > 0
    run = oc.simulate(circuit, z, np.linspace(0.0, 1.0, 2001))
    late = run.state.y[1000:, 0]
    assert np.ptp(late) > 0.5
    assert np.sum(np.diff(np.sign(late - late.mean())) != 0) > 10


@pytest.mark.parametrize("strength", [1.0, 300.0, 1000.0])
def test_a_cycle_beside_a_large_modulator(strength: float) -> None:
    """A third neuron that has nothing to do with two that circle, with a modulator of 0.1 to 1e5, changes nothing."""
    w_r, w = np.zeros((3, 3)), np.zeros((3, 3))
    w_r[:2, :2], w_r[2, 2] = [[1.5, -2.0], [2.0, 1.5]], 0.5
    w[:2, :2], w[2, 2] = 0.5, 0.1
    circuit = oc.Circuit(w_r, w, 1.0, 1.0, 0.1, 0.002, 0.002)
    found = oc.classify(circuit, np.array([0.05, 0.0, strength]), chunks=4)
    assert int(found.kind) == LIMIT_CYCLE


def test_an_oscillation_that_still_changes_is_undecided() -> None:
    """Close to where the fixed point loses its stability the swings take long: 6 % smaller after 100 tau, then 4 %."""
    circuit = oc.Circuit(np.array([[1.118, -2.0], [2.0, 1.118]]), np.full((2, 2), 0.5), 1.0, 1.0, 0.1, 0.002, 0.002)
    z = np.array([0.5, 0.0])
    assert int(oc.classify(circuit, z, chunks=2).kind) == UNDECIDED
    assert int(oc.classify(circuit, z, chunks=6).kind) == LIMIT_CYCLE


def test_a_motion_that_has_not_come_back_is_undecided() -> None:
    """Two chunks of the same extent, in the second of which the state never gets near its start once it has left."""
    circuit = flat(8)._replace(w_r=oc.random_recurrence(8, 2.5, ensemble="gaussian", seed=32, like=flat(8).w))
    z = 0.02 * np.random.default_rng(32).standard_normal(8)
    assert int(oc.classify(circuit, z, chunks=3).kind) == UNDECIDED
    assert int(oc.classify(circuit, z, chunks=5).kind) == LIMIT_CYCLE


@pytest.mark.slow
def test_chaos_is_undecided() -> None:
    """Six neurons whose neighbouring trajectories part for good, and stay bounded: no cycle for most drives nearby."""
    circuit = flat(6)._replace(w_r=oc.random_recurrence(6, 4.0, ensemble="gaussian", seed=9, like=flat(6).w))
    z = 0.1 * np.random.default_rng(9).standard_normal(6)
    times = np.linspace(0.0, 1.2, 601)
    one, other = (oc.simulate(circuit, drive, times, rtol=1e-8, atol=1e-11).state for drive in (z, z * (1 + 1e-9)))
    apart = np.max(np.abs(one.y - other.y), axis=-1)
    assert np.max(apart[:25]) < 1e-6
    assert np.max(apart[400:]) > 0.1
    assert np.max(np.abs(one.y)) < 100
    # a chaotic motion comes back to within 3 % by chance, rarely; on which drives depends on the last digit
    kinds = [int(oc.classify(circuit, z * (1 + 0.01 * k), chunks=2).kind) for k in range(4)]
    assert set(kinds) <= {LIMIT_CYCLE, UNDECIDED}
    assert kinds.count(UNDECIDED) >= 2


def test_batches_are_classified_member_by_member() -> None:
    """A batch over drives gives what each gives alone."""
    circuit = flat(6)._replace(w_r=oc.random_recurrence(6, 2.0, seed=4, like=flat(6).w))
    z = np.random.default_rng(0).standard_normal((4, 6)) * np.array([[0.1], [1.0], [3.0], [10.0]])
    together = oc.classify(circuit, z)
    for k in range(4):
        alone = oc.classify(circuit, z[k])
        assert int(alone.kind) == int(together.kind[k])
        assert bool(alone.simulated) == bool(together.simulated[k])


@pytest.mark.parametrize("z", [0.0, 0.3, 20.0])
def test_members_with_and_without_a_theorem_are_classified_alike(z: float) -> None:
    """One neuron with 0 < w_r <= 1 settles by a theorem, and nothing is followed; others beside it are."""
    w_r = np.array([0.5, 3.0, -1.0, -3.0])[:, None, None]
    circuit = oc.Circuit(w_r, np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.006)
    found = oc.classify(circuit, np.array([z]))
    for i in range(len(w_r)):
        one = oc.classify(circuit._replace(w_r=w_r[i]), np.array([z]))
        assert int(found.kind[i]) == int(one.kind)
        np.testing.assert_allclose(found.state.y[i], one.state.y, rtol=1e-9, atol=1e-12)
    assert int(found.kind[0]) == FIXED_POINT


@pytest.mark.parametrize("variant", ["main", "rectified", "rectified_recurrence"])
def test_neurons_that_share_a_pool_are_classified_as_any_others(variant: str) -> None:
    """Modulators that move as one, against a pool that differs in the thirteenth digit and is solved in full."""
    base = flat(8)
    nearly = base.w * (1.0 + 1e-13 * np.arange(8)[:, None])
    for seed, delta in ((0, 0.1), (1, 0.4), (2, 0.8), (3, 1.5)):
        w_r = oc.random_recurrence(8, delta, ensemble="gaussian", seed=seed, like=base.w)
        z = np.random.default_rng(seed).standard_normal(8)
        one = oc.classify(base._replace(w_r=w_r), z, variant=variant)
        other = oc.classify(base._replace(w_r=w_r, w=nearly), z, variant=variant)
        assert int(one.kind) == int(other.kind)
        np.testing.assert_allclose(one.abscissa, other.abscissa, rtol=1e-8)
        np.testing.assert_allclose(one.state.y, other.state.y, rtol=1e-8, atol=1e-10)


def test_random_recurrence(xp: Library) -> None:
    """GOE is symmetric with its edge at 2, the Gaussian ensemble fills the unit disk; seeds reproduce."""
    like = xp.array([0.0])
    goe = numpy_tree((oc.random_recurrence(200, 1.0, seed=1, like=like),))[0] - np.eye(200)
    np.testing.assert_allclose(goe, goe.T, atol=1e-6)
    assert 1.8 < np.max(np.linalg.eigvalsh(goe)) < 2.2
    m = numpy_tree((oc.random_recurrence(200, 0.5, ensemble="gaussian", seed=1, like=like),))[0] - np.eye(200)
    assert 0.45 < np.max(np.abs(np.linalg.eigvals(m))) < 0.58
    again = oc.random_recurrence(200, xp.array([0.0, 0.5]), ensemble="gaussian", seed=1, like=like)
    xp.assert_close(again[1, ...], m + np.eye(200), rtol=1e-6, atol=1e-6)


def test_bad_arguments_are_named() -> None:
    one = np.array([1.0])
    for arguments, options, message in (
        ((np.array([-1.0]), one, 1), {}, "deltas must be non-negative"),
        ((one, np.ones((1, 1)), 1), {}, r"norms must have shape \(K,\)"),
        ((one, one, 0), {}, "draws must be at least 1"),
        ((one, one, range(0)), {}, r"draws must be at least one, none of them negative, got range\(0, 0\)"),
        ((one, one, range(-1, 1)), {}, r"draws must be at least one, none of them negative, got range\(-1, 1\)"),
        ((one, one, 1), {"ensemble": "ginibre"}, "unknown ensemble 'ginibre'"),
    ):
        with pytest.raises(ValueError, match=message):
            oc.phase_diagram(flat(), *arguments, **options)


def test_bad_seeds_and_starts_are_named() -> None:
    for call in (
        lambda: oc.random_recurrence(3, 0.1, seed=-1, like=np.ones(1)),
        lambda: oc.phase_diagram(flat(), np.ones(1), np.ones(1), 1, seed=-1),
        lambda: oc.find_fixed_points(flat(), np.ones(5), seed=-1),
    ):
        with pytest.raises(ValueError, match="seed must not be negative, got -1"):
            call()
    with pytest.raises(ValueError, match="starts must be at least 1, got -1"):
        oc.classify(flat(), np.ones(5), starts=-1)
    with pytest.raises(ValueError, match="delta must be finite"):
        oc.random_recurrence(3, math.nan, like=np.ones(1))
    with pytest.raises(TypeError, match="delta must be a number or an array"):
        oc.random_recurrence(3, [0.1], like=np.ones(1))
    for distinct in (math.nan, -1.0):
        with pytest.raises(ValueError, match="distinct must be positive and finite"):
            oc.find_fixed_points(flat(), np.ones(5), distinct=distinct)
    with pytest.raises(ValueError, match=r"start\.a must be finite"):
        oc.classify(flat(), np.ones(5), start=oc.State(np.ones(5), np.full(5, np.nan)))


def test_weights_that_are_operators_are_classified_and_searched() -> None:
    """Sparse weights, and a function: as the matrices that they stand for."""
    sparse = pytest.importorskip("scipy.sparse")
    w_r, w = np.array([[2.0, 0.3], [0.0, 1.5]]), np.array([[1.0, 0.0], [0.2, 1.0]])
    circuit, z = oc.Circuit(w_r, w, 0.5, 0.5, 0.1, 0.002, 0.002), np.array([0.3, 0.2])
    every = oc.find_fixed_points(circuit, z)
    assert len(every) > 1
    for other in (
        circuit._replace(w_r=sparse.csr_array(w_r), w=sparse.csr_array(w)),
        circuit._replace(w=oc.Operator(lambda v: v @ w.T)),
    ):
        assert int(oc.classify(other, z).kind) == int(oc.classify(circuit, z).kind)
        found = oc.find_fixed_points(other, z)
        np.testing.assert_allclose([p.state.y for p in found], [p.state.y for p in every], rtol=1e-9)


def test_a_simulation_in_which_y_alone_grows_diverges() -> None:
    """Without a pool a stays at 0.05**2, and y grows at the rate (2 (1 - 0.05) - 1) / tau."""
    circuit = oc.Circuit(2.0 * np.eye(2), np.zeros((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002)
    circuit = oc.Circuit(*(np.asarray(part) for part in circuit))
    found = _simulated_kind(np, circuit, np.array([0.3, 0.4]), "main", 2, 1e-6, 10_000, None)
    assert found == (DIVERGENCE, None)


def test_draws_of_a_phase_diagram_are_classified_one_by_one() -> None:
    """The axes are strengths, norms, draws; a range of draws is a part of the whole."""
    circuit = oc.Circuit(None, np.full((3, 3), 0.4), 0.5, 0.5, 0.1, 0.002, 0.002)
    deltas, norms = np.array([0.0, 0.5]), np.array([0.1, 1.0, 3.0])
    found = oc.phase_diagram(circuit, deltas, norms, 2, seed=3)
    assert found.kind.shape == (2, 3, 2)
    second = oc.phase_diagram(circuit, deltas, norms, range(1, 2), seed=3)
    for whole, part in zip(found[2:], second[2:], strict=True):
        np.testing.assert_array_equal(whole[..., 1:], part)
