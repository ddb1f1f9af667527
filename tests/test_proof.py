"""Proofs of stability: against 50 digits, over boxes, their basins, batches and files."""

from __future__ import annotations

import importlib.util
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import Library, small_circuit

import organics_core as oc
from organics_core import cell_proof as cells
from organics_core import proof as parts
from organics_core.backend import to_numpy

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def proofs():
    """benchmarks/proofs.py: the random circuits, and their fixed points with 50 digits."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("benchmarks_proofs", BENCHMARKS / "proofs.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


SPEC_CIRCUIT = oc.Circuit(
    np.array([[-0.95, -0.04], [0.28, -0.33]]),
    np.array([[0.77, 0.99], [0.33, 0.25]]),
    np.array([0.98, 0.94]),
    np.array([0.68, 0.57]),
    np.array([0.75, 0.77]),
    0.002,
    0.002,
)
SPEC_Z = np.array([-0.89, 0.44])


def spec_proof(y: tuple[float, float]) -> oc.Proof:
    """Of the fixed point of SPEC_CIRCUIT near y, where a = (b0 sigma)^2 + W (a y^2)."""
    floor = (SPEC_CIRCUIT.b0 * SPEC_CIRCUIT.sigma) ** 2
    a = np.linalg.solve(np.eye(2) - SPEC_CIRCUIT.w * np.square(y), floor)
    return oc.prove(SPEC_CIRCUIT, SPEC_Z, state=oc.State(np.array(y), a))


def test_ordinary_circuits_are_decided(proofs) -> None:
    """At least 99 % of those with a largest singular value of W_r of one: 100 of 10 neurons, 20 of 50, 5 of 100."""
    rng = np.random.default_rng(0)
    for n, count in ((10, 100), (50, 20), (100, 5)):
        found = [oc.prove(*proofs.draw(rng, n)).stable for _ in range(count)]
        assert found.count(None) <= count // 100


@pytest.mark.slow
def test_no_proof_is_false(proofs) -> None:
    """18 circuits of all kinds, near-Hopf and near-fold ones too, against 50 digits; benchmarks/proofs.py has 2,000."""
    pytest.importorskip("mpmath", reason="mpmath is not installed")
    drawn = list(islice(proofs.circuits(np.random.default_rng(1)), 18))
    made = [oc.prove(one.circuit, one.z, state=one.state, variant=one.variant) for one in drawn]
    assert [proofs.wrong(proof) for proof in made] == [None] * len(made)
    assert {proof.stable for proof in made} == {True, False, None}
    # the comparison sees what is false
    proof = next(proof for proof in made if proof.stable)
    assert proofs.wrong(proof._replace(stable=False)).startswith("stable")
    assert proofs.wrong(proof._replace(decay_rate=100 * proof.decay_rate)).startswith("the decay rate")
    assert proofs.wrong(proof._replace(state=oc.State(proof.state.y + 1e-9, proof.state.a))) == "the enclosure"


def test_every_fixed_point_of_the_counterexample() -> None:
    """A circuit with a largest singular value of W_r below 1, five fixed points, one of them stable."""
    points = [((-0.656, 0.278), True), ((-0.980, 0.329), False), ((1.112, 0.193), False)]
    points += [((0.08844216, 1.97394209), False), ((0.23705622, -1.91722855), False)]
    for y, stable in points:
        proof = spec_proof(y)
        assert proof.stable is stable
        np.testing.assert_allclose(proof.state.y, y, atol=1e-3)
        assert proof.radius < 1e-10 * max(1.0, proof.state.a.max())


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3])
def test_scales(scale: float) -> None:
    """Weak and strong input, and modulators decades apart: enclosed to a few digits, decided as the eigenvalues say."""
    circuit, z, _ = small_circuit(4, scale=0.3)
    circuit = circuit._replace(b0=circuit.b0 * 10.0 ** np.arange(-3, 1), tau_a=circuit.tau_a * 10.0 ** np.arange(-2, 2))
    proof = oc.prove(circuit, scale * z)
    assert proof.stable is bool(oc.spectral_abscissa(circuit, proof.state) < 0)
    assert (proof.enclosure.a < 1e-9 * proof.state.a).all()


def test_no_input() -> None:
    """y = 0 exactly: in the enclosure, and stable or not as 1 - (1 - b0 sigma) w_r says."""
    circuit, z, _ = small_circuit(3)
    proof = oc.prove(circuit, 0 * z)
    assert proof.stable is True
    assert (np.abs(proof.state.y) <= proof.enclosure.y).all()
    one = oc.Circuit(np.full((1, 1), 3.0), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002)
    assert oc.prove(one, np.zeros(1), state=oc.State(np.zeros(1), np.full(1, 0.0025))).stable is False


@pytest.mark.parametrize("w_r", [None, 1.0, 0.4, 1e-9])
def test_what_is_proven_on_paper(w_r: float | None) -> None:
    """W_r = I, and one neuron with 0 < w_r <= 1: stable by theorem, where float64 resolves nothing as well."""
    circuit = oc.Circuit(w_r and np.full((1, 1), w_r), np.full((1, 1), 0.3), 0.5, 0.5, 0.1, 1e-3, 1e3)
    for z in (1.0, 1e8, 0.0):
        proof = oc.prove(circuit, np.array([z]))
        assert proof.stable is True
        assert "by theorem" in proof.reason
        assert oc.check_proof(proof).valid
    if w_r is None:
        silent = oc.Circuit(None, np.full((4, 4), 0.3), 0.5, 0.5, 0.1, 0.002, 0.002)
        proof = oc.prove(silent, 1e8 * np.array([0.0, 1.0, 0.5, -0.3]))
        assert proof.stable is True
        exact = oc.steady_state(silent, 1e8 * np.array([0.0, 1.0, 0.5, -0.3])).state
        assert (np.abs(proof.state.y - exact.y) <= proof.enclosure.y + 1e-15).all()


def test_kinks() -> None:
    """At a kink both slopes count: one that repels is undecided, two that attract are proven."""
    circuit = oc.Circuit(np.full((1, 1), 2.0), np.ones((1, 1)), 0.5, 0.5, 0.2, 0.002, 0.002)
    silent = oc.State(np.zeros(1), np.full(1, 0.01))
    undecided = oc.prove(circuit, np.zeros(1), variant="rectified", state=silent)
    assert undecided.stable is None
    assert "kink" in undecided.reason
    assert oc.prove(circuit, np.zeros(1), variant="rectified").stable is True  # where the circuit settles
    for variant in ("rectified", "rectified_recurrence"):
        assert oc.prove(circuit._replace(w_r=0.5 * circuit.w_r), np.zeros(1), variant=variant).stable is True
        case = small_circuit(4)
        silent = case.circuit._replace(w_r=np.diag([0.9, 0.5, 0.3, -0.5]))
        for circuit_, z in ((case.circuit, case.z), (silent, case.z * np.array([0.0, 1.0, 1.0, 0.0]))):
            proof = oc.prove(circuit_, z, variant=variant)
            assert proof.stable is True
            assert proof.basin > 0
            assert oc.check_proof(proof).valid


def test_no_recurrence_at_all_is_decided() -> None:
    """W_r = 0: y decays at 1 / tau_y, a at (1 - w y**2) / tau_a where y > 0; a recurrent drive of 0 is a kink that
    does nothing."""
    circuit = oc.Circuit(np.zeros((2, 2)), np.eye(2), 1.0, 1.0, 0.3, np.array([0.4, 0.002]), 0.001)
    proof = oc.prove(circuit, np.array([0.5, -0.2]), variant="rectified_recurrence")
    assert proof.stable is True
    assert 0.0 < proof.decay_rate <= 2.5
    assert oc.check_proof(proof).valid


def test_an_ellipsoid_over_a_kink_returns(proofs) -> None:
    """Silent units between both sides of the rectification, started on either."""
    case, rng = small_circuit(4), np.random.default_rng(8)
    circuit = case.circuit._replace(w_r=None)
    for variant in ("rectified", "rectified_recurrence"):
        proof = oc.prove(circuit, case.z * np.array([0.0, 1.0, 1.0, 0.0]), variant=variant)
        starts = proofs.boundary(rng, proof, 50)
        assert (starts.y[:, 0] > 0).any()
        assert (starts.y[:, 0] < 0).any()
        assert proofs.returned(proof, starts).all()


def test_boxes() -> None:
    """All drives and parameters of a range at once: its corners have their fixed points in the box, at that rate."""
    rng = np.random.default_rng(2)
    circuit, z, _ = small_circuit(4, scale=0.9)
    proof = oc.prove(circuit, z, z_radius=1e-3, parameter_fraction=1e-3)
    assert proof.stable is True
    assert 1e-4 < proof.radius < 0.1
    assert oc.check_proof(proof).valid
    tight = proof._replace(parameter_fraction=2e-3)
    assert not oc.check_proof(tight).valid
    for _ in range(50):
        one = oc.Circuit(*(part * (1 + 1e-3 * rng.choice((-1, 1), np.shape(part))) for part in circuit))
        found = oc.steady_state(one, z + 1e-3 * rng.choice((-1, 1), z.shape)).state
        assert (np.abs(found.y - proof.state.y) < proof.enclosure.y).all()
        assert (np.abs(found.a - proof.state.a) < proof.enclosure.a).all()
        assert oc.spectral_abscissa(one, found) < -proof.decay_rate
    assert oc.prove(circuit, z, parameter_fraction=0.4).stable is None


@pytest.mark.slow
def test_basins_return(proofs) -> None:
    """20 starts on the boundary of each of 10 ellipsoids; benchmarks/proofs.py has 100 of 100."""
    rng = np.random.default_rng(3)
    for n in (1, 2, 3, 5, 8):
        for variant in ("main", "rectified"):
            proof = oc.prove(*proofs.draw(rng, n), variant=variant)
            assert proof.basin > 0
            starts = proofs.boundary(rng, proof, 20)
            off = np.concatenate([starts.y - proof.state.y, starts.a - proof.state.a], axis=-1)
            np.testing.assert_allclose(np.einsum("ki,ij,kj->k", off, proof.p, off), proof.basin, rtol=1e-9)
            assert proofs.returned(proof, starts).all()


def test_a_basin_is_not_the_whole_space() -> None:
    """Between two attractors: neither ellipsoid holds the other, or the point that repels between them."""
    circuit = oc.Circuit(np.full((1, 1), 2.0), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002)
    points = oc.fixed_points(circuit, np.array([0.01]))
    assert [point.stable for point in points].count(True) == 2
    made = [oc.prove(circuit, np.array([0.01]), state=point.state) for point in points]
    assert [proof.stable for proof in made] == [point.stable for point in points]
    for proof in made:
        if proof.stable:
            for other in points:
                off = np.concatenate([other.state.y - proof.state.y, other.state.a - proof.state.a])
                assert off @ proof.p @ off > proof.basin or np.abs(off).max() < 1e-9


def test_batches_of_any_library(xp: Library) -> None:
    """As one by one, in float64 of the library that asked; stable is an object array."""
    cases = [small_circuit(3, seed) for seed in range(3)]
    circuit = oc.Circuit(*(np.stack(column) for column in zip(*(case.circuit for case in cases), strict=True)))
    circuit, z = xp.tree(circuit), xp.array(np.stack([case.z for case in cases]))
    made = oc.prove(circuit, z)
    assert made.stable.shape == made.reason.shape == (3,)
    assert list(made.stable) == [True] * 3
    assert tuple(made.p.shape) == (3, 6, 6)
    assert type(made.state.y) is type(z)
    assert str(made.state.y.dtype).endswith("float64")
    assert oc.check_proof(made).valid
    one = oc.prove(oc.Circuit(*(part[1, ...] for part in circuit)), z[1, ...])
    assert one.stable is True
    np.testing.assert_array_equal(to_numpy(one.state.y), to_numpy(made.state.y)[1])
    np.testing.assert_array_equal(to_numpy(one.decay_rate), to_numpy(made.decay_rate)[1])
    wide = oc.prove(oc.Circuit(*(part[1, ...] for part in circuit)), z)
    assert tuple(wide.state.a.shape) == (3, 3)


def test_operators_are_made_dense() -> None:
    kernel = np.array([0.5, 0.1, 0.0, 0.1])
    circuit, z, _ = small_circuit(4)
    made = oc.prove(circuit._replace(w=oc.ring_convolution(kernel)), z)
    dense = oc.prove(circuit._replace(w=np.stack([np.roll(kernel, i) for i in range(4)])), z)
    assert made.stable is dense.stable is True
    np.testing.assert_allclose(made.state.y, dense.state.y, rtol=1e-12)


@pytest.mark.parametrize("batch", [False, True])
def test_files(tmp_path: Path, batch: bool) -> None:
    """What is saved is what is read, and it is verified from the file alone."""
    circuit, z, _ = small_circuit(3)
    made = oc.prove(circuit, np.stack([z, 2 * z]) if batch else z)
    path = tmp_path / "proof.npz"
    made.save(path)
    again = oc.load_proof(path)
    assert type(again.stable) is type(made.stable)
    assert np.array_equal(again.stable, made.stable)
    assert np.array_equal(again.reason, made.reason)
    for name in ("radius", "decay_rate", "p", "basin", "z", "z_radius"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
    assert oc.check_proof(path) == (True, "every claim was verified")
    with pytest.raises(ValueError, match="must end in"):
        made.save(tmp_path / "proof.txt")
    with pytest.raises(FileNotFoundError, match="there is no"):
        oc.load_proof(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", x=z)
    with pytest.raises(ValueError, match="holds no proof"):
        oc.check_proof(tmp_path / "other.npz")


def test_false_claims_are_not_verified() -> None:
    """Every claim, made false, is found: no trust in how it was found."""
    circuit, z, _ = small_circuit(3)
    made = oc.prove(circuit, z)
    unstable = spec_proof((-0.980, 0.329))
    assert oc.check_proof(unstable).valid
    crooked = made.p.copy()
    crooked[0, 1] *= 1.01
    for false in (
        made._replace(stable=False),
        made._replace(z=1.001 * made.z),
        made._replace(circuit=circuit._replace(tau_y=100 * circuit.tau_y)),
        made._replace(state=oc.State(made.state.y + 1e-9, made.state.a)),
        made._replace(enclosure=oc.State(1e-4 * made.enclosure.y, made.enclosure.a)),
        made._replace(radius=0.5 * made.radius),
        made._replace(decay_rate=-1.2 * oc.spectral_abscissa(circuit, made.state)),
        made._replace(p=-made.p),
        made._replace(p=crooked),
        made._replace(p=np.eye(6)),
        made._replace(basin=3 * made.basin),
        made._replace(stable=None, enclosure=oc.State(made.enclosure.y * np.nan, made.enclosure.a)),
        unstable._replace(stable=True),
        unstable._replace(p=-unstable.p),
    ):
        assert not oc.check_proof(false).valid


def test_claims_without_an_enclosure_are_told_apart() -> None:
    """Nothing claimed, or claimed of no box; both are no proofs, unless a theorem says it."""
    circuit, z, _ = small_circuit(3)
    made, nan = oc.prove(circuit, z), np.asarray(np.nan)
    blank = oc.State(np.full(3, np.nan), np.full(3, np.nan))
    bare = made._replace(enclosure=blank, radius=nan, decay_rate=nan, basin=nan)
    for stable, reason in (
        (None, "nothing is claimed"),
        (False, "not verified: no enclosure of a fixed point is given"),
        (True, "not verified: no enclosure of a fixed point is given"),
    ):
        told = oc.check_proof(bare._replace(stable=stable))
        assert (told.valid, told.reason) == (False, reason)


def test_forged_radius_or_basin_without_their_ground_are_not_verified() -> None:
    """A radius without an enclosure, a basin of what is not claimed to attract: nothing proves them."""
    circuit, z, _ = small_circuit(2, identity=True)
    made = oc.prove(circuit, z)
    blank = oc.State(np.full(2, np.nan), np.full(2, np.nan))
    bare = made._replace(enclosure=blank, radius=np.asarray(np.nan), decay_rate=np.asarray(np.nan))
    assert oc.check_proof(bare._replace(basin=np.asarray(np.nan))).valid  # by theorem
    assert not oc.check_proof(bare._replace(basin=np.asarray(np.nan), radius=np.asarray(1e-3))).valid
    for stable in (None, False):
        told = oc.check_proof(made._replace(stable=stable))
        assert told.reason == "not verified: a decay rate or a basin, which only a point that attracts can have"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"stable": 1}, TypeError, "stable must be True, False or None, got 1"),
        ({"stable": "yes"}, TypeError, "stable must be True, False or None, got 'yes'"),
        ({"stable": [True]}, ValueError, r"stable must have shape \(\), got \(1,\)"),
        ({"z_radius": np.full(3, -1.0)}, ValueError, "z_radius must be non-negative"),
        ({"parameter_fraction": -0.3}, ValueError, "parameter_fraction must be a number from 0 to 0.5"),
        ({"p": np.eye(3)}, ValueError, r"p must have shape \(6, 6\), got \(3, 3\)"),
        ({"p": None}, TypeError, "p must be an array, got NoneType"),
        ({"circuit": 3}, TypeError, "circuit must be a Circuit, got int"),
        ({"variant": "mean"}, ValueError, "unknown variant 'mean'"),
    ],
)
def test_what_is_no_proof_is_refused(changes: dict, error: type[Exception], message: str) -> None:
    circuit, z, _ = small_circuit(3)
    with pytest.raises(error, match=message):
        oc.check_proof(oc.prove(circuit, z)._replace(**changes))
    with pytest.raises(TypeError, match="a proof must be a Proof or the path of a file, got int"):
        oc.check_proof(3)


def test_files_without_a_proof_say_what_they_lack(tmp_path: Path) -> None:
    circuit, z, _ = small_circuit(3)
    path = tmp_path / "proof.npz"
    oc.prove(circuit, z).save(path)
    content = dict(np.load(path))
    for name in content:
        if name != "circuit.w_r":
            np.savez(path, **{key: value for key, value in content.items() if key != name})
            with pytest.raises(ValueError, match=f"holds no proof: it lacks {name}$"):
                oc.check_proof(path)
    for changes, message in (
        ({"about": np.asarray("{}")}, "its text about itself lacks 'format'"),
        ({"about": np.asarray("3")}, "its text about itself is no JSON object"),
        ({"p": np.asarray("x")}, "its p must be numbers"),
        ({"stable": np.asarray(7)}, "its stable is none of 1, 0 and -1"),
    ):
        np.savez(path, **{**content, **changes})
        with pytest.raises(ValueError, match=f"holds no proof: {message}"):
            oc.check_proof(path)
    path.write_text("stable: yes")
    with pytest.raises(ValueError, match=r"holds no proof: no \.npz archive"):
        oc.check_proof(path)


def test_undecided_says_why() -> None:
    """No fixed point, one beyond floats, one on the border of stability."""
    kernel = oc.Circuit(np.array([[0.0, 1.0], [0.0, 0.0]]), np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002)
    proof = oc.prove(kernel, np.array([30.0, 20.0]))
    assert proof.stable is None
    assert "no fixed point was found" in proof.reason
    assert np.isnan(proof.radius)
    assert not oc.check_proof(proof).valid
    circuit, z, _ = small_circuit(2, identity=True)
    beyond = oc.prove(circuit, 1e300 * z)  # stable by theorem; where, floats cannot say
    assert beyond.stable is True
    assert np.isnan(beyond.radius)
    # y' = -y + (1 - s) w_r y = 0: w_r = 1 / (1 - s) leaves y without decay
    border = oc.Circuit(np.full((1, 1), 1 / (1 - 0.5)), np.ones((1, 1)), 1.0, 1.0, 0.5, 0.002, 0.002)
    proof = oc.prove(border, np.zeros(1), state=oc.State(np.zeros(1), np.full(1, 0.25)))
    assert proof.stable is None


def test_refusals() -> None:
    circuit, z, state = small_circuit(3)
    with pytest.raises(ValueError, match=r"state\.y must be finite"):
        oc.prove(circuit, z, state=oc.State(np.nan * state.y, state.a))
    with pytest.raises(ValueError, match=r"state\.a must be positive"):
        oc.prove(circuit, z, state=oc.State(state.y, -state.a))
    with pytest.raises(ValueError, match="unknown variant"):
        oc.prove(circuit, z, variant="mean")
    with pytest.raises(ValueError, match="z_radius must be non-negative"):
        oc.prove(circuit, z, z_radius=-1.0)
    with pytest.raises(ValueError, match="z_radius must have shape"):
        oc.prove(circuit, z, z_radius=np.ones(2))
    with pytest.raises(ValueError, match="parameter_fraction must be a number from 0 to"):
        oc.prove(circuit, z, parameter_fraction=1.0)
    with pytest.raises(ValueError, match="z must be finite"):
        oc.prove(circuit, z * np.nan)
    with pytest.raises(TypeError, match="state must be a State"):
        oc.prove(circuit, z, state=state.y)


@pytest.mark.one_dtype
def test_euler_steps_inherit_stability(xp: Library) -> None:
    """W_r = I over six decades of parameters: spectral radius below one at the bound; at 1.6 of it, some above one."""
    rng = np.random.default_rng(5)
    radii = {1.0: [], 1.6: []}
    for n in [1] * 60 + [2] * 60 + [6] * 60:
        decades = [10.0 ** rng.uniform(-3, 3, n) for _ in range(5)]
        w = 10.0 ** rng.uniform(-3, 3, (n, n)) * (rng.random((n, n)) < 0.7)
        circuit, z = oc.Circuit(None, w, *decades), rng.standard_normal(n) * 10.0 ** rng.uniform(-3, 3)
        bound = oc.euler_step_bound(circuit, z)
        fixed = oc.steady_state(circuit, z).state
        at_once = np.minimum(0.5 * circuit.tau_a, 4 / 3 * circuit.tau_y / np.sqrt(fixed.a)).min()
        np.testing.assert_allclose(bound, at_once, rtol=1e-12)
        xp.assert_close(oc.euler_step_bound(xp.tree(circuit), xp.array(z)), bound, rtol=1e-12)
        for factor, found in radii.items():
            eigenvalues = np.linalg.eigvals(np.eye(2 * n) + factor * bound * oc.jacobian(circuit, fixed))
            found.append(np.abs(eigenvalues).max())
    assert max(radii[1.0]) < 1 + 1e-12  # the slowest may be within rounding of the circle
    assert max(radii[1.6]) > 1.01
    with pytest.raises(ValueError, match="is for W_r = I"):
        oc.euler_step_bound(*small_circuit(2)[:2])


def test_the_inequality_behind_the_euler_bound() -> None:
    """|mu - (1 - r)| |mu - (1 - s)| >= r |mu - 1| outside the unit circle, for r <= 1/2, s <= 4/3, on a fine grid."""
    r, s, angle, size = np.meshgrid(
        np.linspace(1e-3, 0.5, 40),
        np.concatenate([np.geomspace(1e-6, 0.1, 20), np.linspace(0.1, 4 / 3, 60)]),
        np.concatenate([np.geomspace(1e-6, 0.1, 30), np.linspace(0.1, np.pi, 60)]),
        [1.0, 1.001, 1.1, 2.0],
        sparse=True,
    )
    mu = size * np.exp(1j * angle)
    left, right = np.abs(mu - (1 - r)) * np.abs(mu - (1 - s)), r * np.abs(mu - 1)
    assert (left >= right * (1 - 1e-9)).all()
    assert np.abs(-1 - (1 - 0.5)) * np.abs(-1 - (1 - 1.4)) < 0.5 * 2  # and not for s = 1.4


def cell_jacobian(parameters, state, x, options):
    """Of the map of one step, by central differences of 1e-6."""
    at = np.concatenate(state)

    def move(vector):
        return np.concatenate(oc.cell_step(parameters, oc.CellState(*np.split(vector, 4)), x, **options))

    return np.stack([(move(at + step) - move(at - step)) / 2e-6 for step in 1e-6 * np.eye(len(at))], axis=1)


def test_cells() -> None:
    """Trained or not, also where the map of one step is unstable and the circuit is not: as eigenvalues say."""
    rng = np.random.default_rng(0)
    seen = []
    for seed in range(24):
        parameters, start = oc.init_cell(seed, 3, 5, recurrent="orthogonal" if seed % 3 else "identity")
        gain = rng.uniform(1.0, 6.0)
        parameters = parameters._replace(
            w_zx=gain * parameters.w_zx, w_by0=gain * parameters.w_by0, w_ba1=-gain * parameters.w_ba1
        )
        rates = oc.MaxRates() if seed % 2 else oc.MaxRates(2 * 10 ** rng.uniform(-1, 0.3), 0.5, 1.0)
        options = {"max_rates": rates, "variant": ("main", "rectified_recurrence")[seed // 2 % 2]}
        x = rng.uniform(0, 1, 3)
        proof = oc.prove_cell(parameters, x, start=start, **options)
        seen.append((proof.continuous, proof.discrete))
        if proof.continuous is None:
            continue
        moved = oc.cell_step(parameters, proof.state, x, **options)
        for part, center, width in zip(moved, proof.state, proof.enclosure, strict=True):
            assert (np.abs(part - center) < 10 * width + 1e-14).all()
        if any(np.abs(proof.state.y) < 1e-6):
            continue  # a kink, where differences mean little
        values = np.linalg.eigvals(cell_jacobian(parameters, proof.state, x, options))
        share = (values - 1.0).real.max()
        assert share < -proof.decay_rate + 1e-6
        if proof.discrete:
            assert np.abs(values).max() < 1
        elif np.abs(values).max() > 1.001:
            seen.append("an unstable map")
    assert seen.count((True, True)) >= 12
    assert "an unstable map" in seen


def test_stacked_cells() -> None:
    """The second takes all rates that the first may have, itself and alone; after one that is undecided comes none."""
    first, second = oc.init_cell(0, 2, 4), oc.init_cell(1, 4, 3)
    rates, x = oc.MaxRates(), np.array([0.5, 0.2])
    layers = [(*first, rates, "main"), (*second, rates, "rectified_recurrence")]
    proofs = cells.prove_stack(layers, x)
    assert [proof.continuous for proof in proofs] == [True, True]
    alone = oc.prove_cell(first[0], x, start=first[1], variant="main")
    np.testing.assert_array_equal(proofs[0].state.y, alone.state.y)
    moved = oc.cell_step(second[0], proofs[1].state, alone.state.y, max_rates=rates, variant="rectified_recurrence")
    for part, center, width in zip(moved, proofs[1].state, proofs[1].enclosure, strict=True):
        assert (np.abs(part - center) < width).all()
    wider = oc.prove_cell(second[0], alone.state.y, start=second[1], x_radius=alone.enclosure.y)
    np.testing.assert_array_equal(np.concatenate(wider.enclosure), np.concatenate(proofs[1].enclosure))
    lost = (first[0]._replace(w_zx=first[0].w_zx * np.nan), *layers[0][1:])
    assert len(cells.prove_stack([lost, layers[1]], x)) == 1


def test_an_undecided_cell_is_told_in_nan() -> None:
    """Inputs over so wide a range that no box holds a fixed point: every field has its shape, and says nothing."""
    parameters, start = oc.init_cell(1, 3, 5)
    proof = oc.prove_cell(parameters, np.array([0.5, 0.2, 0.7]), start=start, x_radius=100.0)
    assert (proof.continuous, proof.discrete) == (None, None)
    assert proof.reason.startswith("undecided: no box")
    assert np.isnan([proof.radius, proof.decay_rate]).all()
    assert proof.p.shape == (20, 20)
    assert np.isnan(np.concatenate([*proof.state, *proof.enclosure, proof.p.ravel()])).all()
    assert [part.shape for part in (*proof.state, *proof.enclosure)] == [(5,)] * 8


def test_the_sigmoid_of_an_interval() -> None:
    """It holds the true value, with a relative width of rounding alone, far from 0 too."""
    mpmath = pytest.importorskip("mpmath", reason="mpmath is not installed")
    u = np.concatenate([np.linspace(-40, 40, 200), [-300.0, -600.0, 700.0]])
    found = cells._sigmoid(cells._point(u))
    with mpmath.workdps(400):
        for value, low, high in zip(u, found.low, found.high, strict=True):
            exact = 1 / (1 + mpmath.exp(-mpmath.mpf(float(value))))
            assert float(low) <= exact <= float(high)
            assert high - low < 1e-14 * high


def test_cells_over_a_range_of_inputs() -> None:
    """The enclosure holds the fixed points of all inputs of the range."""
    parameters, start = oc.init_cell(1, 3, 5)
    x = np.array([0.5, 0.2, 0.7])
    proof = oc.prove_cell(parameters, x, start=start, x_radius=1e-3)
    assert proof.discrete is True
    for corner in np.stack(np.meshgrid(*[[-1e-3, 1e-3]] * 3), axis=-1).reshape(-1, 3):
        one = oc.prove_cell(parameters, x + corner, start=proof.state)
        for part, center, width in zip(one.state, proof.state, proof.enclosure, strict=True):
            assert (np.abs(part - center) < width).all()
    with pytest.raises(TypeError, match="parameters must be CellParameters"):
        oc.prove_cell(start, x)
    with pytest.raises(ValueError, match="x must have shape"):
        oc.prove_cell(parameters, np.stack([x, x]))
    with pytest.raises(ValueError, match="x_radius must be non-negative"):
        oc.prove_cell(parameters, x, x_radius=-1.0)
    for shape in ((2,), (3, 1), (1, 3)):
        with pytest.raises(ValueError, match=r"x_radius must be a number or have shape \(3,\), got shape"):
            oc.prove_cell(parameters, x, x_radius=np.full(shape, 1e-3))
    with pytest.raises(ValueError, match=r"start.a must have shape \(\d+,\), got shape \(2, "):
        oc.prove_cell(parameters, x, start=start._replace(a=np.stack([start.a] * 2)))
    with pytest.raises(TypeError, match=r"start must be a CellState"):
        oc.prove_cell(parameters, x, start=tuple(start)[:3])
    for name in ("w_by0", "theta_y"):
        many = parameters._replace(**{name: np.stack([getattr(parameters, name)] * 2)})
        with pytest.raises(ValueError, match=f"{name} must be of one cell, without batch axes, got shape"):
            oc.prove_cell(many, x)
    with pytest.raises(ValueError, match="log_w must not be NaN"):
        oc.prove_cell(parameters._replace(log_w=parameters.log_w * np.nan), x)


def test_intervals_hold_what_they_should() -> None:
    """Every operation, against exact rational arithmetic at the ends."""
    from fractions import Fraction

    rng = np.random.default_rng(0)
    low, other = rng.standard_normal((2, 50)) * 10.0 ** rng.integers(-20, 20, (2, 50))
    x = parts._Interval(low, low + np.abs(other))
    y = parts._Interval(other, other + 0.1 * np.abs(low))
    for name, made in (("+", x + y), ("-", x - y), ("*", x * y)):
        for k in range(50):
            ends = [Fraction(v) for v in (x.low[k], x.high[k])], [Fraction(v) for v in (y.low[k], y.high[k])]
            values = [{"+": p + q, "-": p - q, "*": p * q}[name] for p in ends[0] for q in ends[1]]
            assert Fraction(made.low[k]) <= min(values)
            assert Fraction(made.high[k]) >= max(values)
    positive = parts._Interval(np.abs(low), np.abs(low) * 1.5)
    for k in range(50):
        least, most = Fraction(positive.low[k]), Fraction(positive.high[k])
        root, inverse, square = positive.sqrt(), positive.inverse(), positive.square()
        assert Fraction(root.low[k]) ** 2 <= least
        assert Fraction(root.high[k]) ** 2 >= most
        assert Fraction(inverse.low[k]) <= 1 / most
        assert Fraction(inverse.high[k]) >= 1 / least
        assert Fraction(square.low[k]) <= least**2
        assert Fraction(square.high[k]) >= most**2
    around = parts._Interval(np.array([-2.0]), np.array([1.0])).square()
    assert around.low == 0.0
    assert 4.0 <= around.high < 4.0001


def test_no_basin_without_bounds_of_the_ellipsoids() -> None:
    """Whether it is their widths or their speed that could not be bounded."""
    for level, spans in ((0.5, None), (0.0, np.ones(2))):
        stub = SimpleNamespace(level=lambda level=level: level, spans=lambda spans=spans: spans, p=np.eye(2))
        stub.linear = SimpleNamespace(x=np.ones(2))
        basin = parts._Basin(stub, np.full(2, 1e-12))
        assert np.isnan(basin.search())
        assert not basin.returns(1.0)
    stub = SimpleNamespace(level=lambda: 0.5, spans=lambda: np.ones(2), p=np.eye(2), off=lambda spread: spread)

    def spread(box: np.ndarray) -> float:
        if box.max() > 1.0:
            raise parts._NoSlope
        return 0.6 * box.max()  # beyond the level of 0.5 from a box of 0.83 on

    stub.linear = SimpleNamespace(x=np.ones(2), spread=spread)
    basin = parts._Basin(stub, np.full(2, 1e-12))
    assert [basin.returns(c) for c in (0.0, 0.5, 0.9, 4.0)] == [False, True, False, False]
    assert 0.6 < basin.search() < (0.5 / 0.6) ** 2


def bounds_of(spread, size):
    """The bounds of |J - matrix| column by column, from both products."""
    units = np.eye(size)
    return np.stack([spread.times(v) for v in units], axis=1), np.stack([spread.transposed(v) for v in units])


@pytest.mark.parametrize("variant", ["main", "rectified", "rectified_recurrence"])
def test_the_spread_holds_every_jacobian_of_a_box(variant: str) -> None:
    """Of all states of the box, on both sides of a kink, and all weights of the range; and is no idle bound."""
    n, fraction = 3, 0.01
    rng = np.random.default_rng(5)
    circuit, z, _ = small_circuit(n, seed=2)
    circuit = circuit._replace(tau_y=1.0, tau_a=1.0)
    y, a = np.array([0.7, -0.5, 0.02]), rng.uniform(0.5, 2.0, n)
    problem = parts._Problem(circuit, z, variant, np.zeros(n), fraction)
    x, radius = np.concatenate([y, a]), np.full(2 * n, 0.1)
    linear = parts._Linear(problem, x)
    columns, rows = bounds_of(linear.spread(radius), 2 * n)
    most = np.zeros((2 * n, 2 * n))
    for _ in range(500):
        at = x + radius * rng.choice([-1.0, 0.3, 1.0], 2 * n)
        w_r, w = (m * (1.0 + fraction * rng.choice([-1.0, 1.0], (n, n))) for m in (circuit.w_r, circuit.w))
        moved = circuit._replace(w_r=w_r, w=w)
        made = oc.jacobian(moved, oc.State(at[:n], at[n:]), variant=variant)
        most = np.maximum(most, np.abs(made - linear.matrix))
    for bound in (columns, rows):
        assert (most <= bound).all()
        assert (bound <= 2.0 * most + 1e-12).all()


@pytest.mark.parametrize("variant", ["main", "rectified_recurrence"])
def test_the_spread_holds_every_jacobian_of_a_cell(variant: str) -> None:
    """The same of the 4n variables of a cell, whose gates are variables too; differences are right to 1e-8."""
    parameters, _ = oc.init_cell(3, 2, 3)
    options = {"max_rates": oc.MaxRates(), "variant": variant}
    rng, given, n = np.random.default_rng(0), np.array([0.5, 0.8]), 3
    parts_of_x = rng.uniform(0.3, 0.8, n) * [1, -1, 1], rng.uniform(0.5, 2.0, n), *rng.uniform(0.3, 0.7, (2, n))
    x, radius = np.concatenate(parts_of_x), np.full(4 * n, 0.1)
    cell = cells._Cell(parameters, given, np.zeros(2), oc.MaxRates(), variant)
    linear = cells._CellLinear(cell, x)
    columns, rows = bounds_of(linear.spread(radius), 4 * n)
    most = np.zeros((4 * n, 4 * n))
    for _ in range(60):
        at = x + radius * rng.choice([-1.0, 0.3, 1.0], 4 * n)
        made = cell_jacobian(parameters, oc.CellState(*np.split(at, 4)), given, options) - np.eye(4 * n)
        most = np.maximum(most, np.abs(made / cell.rates.middle[:, None] - linear.matrix))
    for bound in (columns, rows):
        assert (most <= bound + 1e-6).all()
        assert (bound <= 20.0 * most + 1e-6).all()  # t (1 - t) is flat at 1/2, its interval is not


@pytest.mark.parametrize("n", [2, 5, 40])
def test_cholesky_proves_what_is_true(n: int) -> None:
    """Positive definite to 1e-6 is proven, indefinite by 1e-12 never, at any scale of the variables."""
    rng = np.random.default_rng(n)
    for _ in range(20):
        q = np.linalg.qr(rng.standard_normal((n, n)))[0]
        scale = 2.0 ** rng.integers(-40, 40, n)
        for least, wanted in ((1e-6, True), (-1e-12, False)):
            values = np.concatenate([[least], rng.uniform(0.5, 1.5, n - 1)])
            matrix = (q * values) @ q.T
            matrix = 0.5 * (matrix + matrix.T) * scale * scale[:, None]
            assert parts._exceeds(matrix, matrix, 0.0) is wanted
            assert not parts._exceeds(matrix, matrix, 1.0)
            diagonal = np.diag(np.diagonal(matrix))
            assert parts._exceeds(diagonal, matrix, 0.999)
            assert not parts._exceeds(diagonal, matrix, 1.0 - 1e-15)  # true, and beyond what rounding lets it see
