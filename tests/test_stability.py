"""Jacobians, spectra, the oscillator form, and the certificate with its energy."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import assume
from support import (
    VARIANTS,
    Case,
    Library,
    assert_same_spectrum,
    central_difference,
    for_cases,
    numpy_tree,
    small_circuit,
)

import organics_core as oc
from organics_core.backend import to_numpy
from organics_core.circuit import Variant, circuit_jacobian, prepare, share_pool
from organics_core.linalg import m_matrix_inverse
from organics_core.stability import _scale_into_range


def difference_jacobian(case: Case, variant: str) -> np.ndarray:
    """The Jacobian (..., 2n, 2n) by central differences of numpy's vector field."""
    y, a = np.broadcast_arrays(*case.state)
    n = y.shape[-1]

    def along(h: float, direction: np.ndarray) -> np.ndarray:
        moved = oc.State(y + h * direction[:n], a + h * direction[n:])
        slope = oc.vector_field(case.circuit, moved, case.z, variant=variant)
        return np.concatenate(np.broadcast_arrays(*slope), axis=-1)

    columns = [central_difference(partial(along, direction=direction), 3e-4) for direction in np.eye(2 * n)]
    return np.stack(columns, axis=-1)


def away_from_kinks(case: Case, variant: str, reach: float = 0.003) -> bool:
    """Whether no rectifier of y changes its side within the reach of the differences."""
    y = case.state.y
    recurrent = y if case.circuit.w_r is None else np.einsum("...ij,...j->...i", case.circuit.w_r, y)
    flags = oc.VARIANTS[variant]
    kinks = (*((y,) if flags.source or flags.response else ()), *((recurrent,) if flags.drive else ()))
    return all(np.min(np.abs(kink)) > reach for kink in kinks)


@pytest.mark.one_dtype
@pytest.mark.parametrize("variant", VARIANTS)
@for_cases(decades=3.0)
def test_jacobian_is_the_finite_difference(xp: Library, case: Case, variant: str) -> None:
    """Every variant, on both sides of its rectifiers, negative modulators too."""
    case = case._replace(state=oc.State(case.state.y, case.state.a - 0.4))
    assume(np.min(np.abs(case.state.a)) > 0.03 and away_from_kinks(case, variant))
    want = difference_jacobian(case, variant)
    got = xp.compiled(oc.jacobian, variant=variant)(xp.tree(case.circuit), xp.tree(case.state))
    # the rows belong to different units, in 1/tau
    scale = np.max(np.abs(want), axis=-1, keepdims=True)
    normalized = numpy_tree(got) / scale
    # round-off of a field a thousand times as large as the derivative, over the step of 3e-4, makes 1e-9
    tolerance = 1e-4 if xp.single else 3e-8
    np.testing.assert_allclose(normalized, np.broadcast_to(want / scale, normalized.shape), rtol=0, atol=tolerance)
    assert got.dtype == xp.dtype


KINKS = oc.State(np.array([0.8, -0.5, 0.0, 0.3]), np.array([0.6, 0.0, -0.3, 1.44]))
"""Both signs and zeros of y and of a; the first row of W_r below makes a recurrent drive of zero, too."""


def kinked(w_r: str) -> oc.Circuit:
    rng = np.random.default_rng(5)
    recurrent = rng.standard_normal((4, 4))
    recurrent[0] = 0.0
    w = rng.uniform(0.1, 1.0, (4, 4))
    taus = np.array([1.0, 2.0, 4.0, 0.5]), np.array([2.0, 0.25, 1.0, 8.0])
    return oc.Circuit(None if w_r == "identity" else recurrent, w, 0.5, 0.7, 0.3, *taus)


def jacobian_by_hand(circuit: oc.Circuit, state: oc.State, variant: str) -> np.ndarray:
    """The derivatives of SPEC's equations, number by number; a rectifier has the derivative 0 at 0."""
    y, a = state
    n = len(y)
    w_r = np.eye(n) if circuit.w_r is None else circuit.w_r
    flags = oc.VARIANTS[variant]
    matrix = np.zeros((2 * n, 2 * n))
    for i in range(n):
        recurrent = sum(w_r[i, j] * (max(y[j], 0.0) if flags.source else y[j]) for j in range(n))
        on = recurrent > 0 or not flags.drive
        for j in range(n):
            slope = w_r[i, j] if on and (y[j] > 0 or not flags.source) else 0.0
            matrix[i, j] = (1.0 - math.sqrt(max(a[i], 0.0))) * slope
            response = max(y[j], 0.0) if flags.response else y[j]
            matrix[n + i, j] = circuit.w[i, j] * max(a[j], 0.0) * 2.0 * response
            matrix[n + i, n + j] = circuit.w[i, j] * response**2 if a[j] > 0 else 0.0
        matrix[i, i] -= 1.0
        matrix[n + i, n + i] -= 1.0
        if a[i] > 0 and on:
            matrix[i, n + i] = -recurrent / (2.0 * math.sqrt(a[i]))
    return matrix / np.concatenate([circuit.tau_y, circuit.tau_a])[:, None]


@pytest.mark.one_dtype
@pytest.mark.parametrize("w_r", ["identity", "matrix"])
@pytest.mark.parametrize("flags", [*itertools.product([False, True], repeat=3)])
def test_jacobian_at_the_kinks_is_that_of_the_equations(
    xp: Library, flags: tuple[bool, bool, bool], w_r: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block, as a matrix, less a shift, and as a product with directions, where rectifiers are at zero.

    Of the variants there are, and of those that a line could make.
    """
    variant = f"rectifies {flags}"
    monkeypatch.setitem(oc.VARIANTS, variant, Variant(*flags))
    circuit = kinked(w_r)
    want = jacobian_by_hand(circuit, KINKS, variant)
    made, state = xp.tree(circuit), xp.tree(KINKS)
    xp.assert_close(oc.jacobian(made, state, variant=variant), want, rtol=1e-13, atol=1e-14)
    shift = np.array([0.7, -2.0])
    shifted = circuit_jacobian(xp.namespace, prepare(xp.namespace, made)[0], state, variant, shift=xp.array(shift))
    xp.assert_close(shifted, want - shift[:, None, None] * np.eye(8), rtol=1e-13, atol=1e-14)
    directions = np.random.default_rng(2).standard_normal((3, 8))
    moved = oc.jacobian_product(made, state, xp.tree(oc.State(directions[:, :4], directions[:, 4:])), variant=variant)
    wanted = directions @ want.T
    xp.assert_close(moved.y, wanted[:, :4], rtol=1e-12, atol=1e-13)
    xp.assert_close(moved.a, wanted[:, 4:], rtol=1e-12, atol=1e-13)


@pytest.mark.one_dtype
@pytest.mark.parametrize("variant", VARIANTS)
def test_jacobian_of_a_shared_pool_is_that_of_changes_common_to_all(xp: Library, variant: str) -> None:
    """Rows of y and of one a; its column adds up those of all a."""
    circuit = kinked("matrix")
    circuit = circuit._replace(w=np.broadcast_to(circuit.w[:1], (4, 4)).copy())
    ns, state = xp.namespace, xp.tree(KINKS)
    for tau_a in (0.25, np.full(4, 0.25)):
        one = circuit._replace(tau_a=tau_a)
        full = jacobian_by_hand(one._replace(tau_a=np.full(4, 0.25)), KINKS, variant)
        want = np.concatenate([full[:5, :4], full[:5, 4:].sum(axis=1, keepdims=True)], axis=1)
        made = prepare(ns, xp.tree(one))[0]
        assert share_pool(ns, made)
        xp.assert_close(circuit_jacobian(ns, made, state, variant, pooled=True), want, rtol=1e-13, atol=1e-14)
        shift = np.array([0.7, -2.0])
        shifted = circuit_jacobian(ns, made, state, variant, pooled=True, shift=xp.array(shift))
        xp.assert_close(shifted, want - shift[:, None, None] * np.eye(5), rtol=1e-13, atol=1e-14)


def test_what_makes_a_shared_pool(xp64: Library) -> None:
    """Equal rows of W and equal tau_a, in every member of a batch; one neuron and operators have none to share."""
    rows = np.tile(np.array([0.5, 0.25, 1.0]), (3, 1))
    other, columns = rows.copy(), rows.T.copy()
    other[2, 1] = 0.3
    taus = np.array([0.1, 0.1, 0.2])
    cases: list[tuple[Any, Any, bool]] = [
        (rows, 0.1, True),
        (rows, np.full(3, 0.1), True),
        (rows, np.array([0.1]), True),
        (rows, taus, False),
        (rows, np.stack([np.full(3, 0.1), taus]), False),
        (np.stack([rows, 2 * rows]), np.full((2, 3), 0.1), True),
        (np.stack([rows, other]), 0.1, False),
        (other, 0.1, False),
        (columns, 0.1, False),
        (rows[:1, :1], 0.1, False),
        (np.ones((1, 2, 2)), 0.1, True),
    ]
    for w, tau_a, shared in cases:
        circuit = xp64.tree(oc.Circuit(None, w, 0.5, 0.5, 0.1, 0.1, tau_a))
        assert share_pool(xp64.namespace, prepare(xp64.namespace, circuit)[0]) is shared, (w, tau_a)
    pool = xp64.array(rows)
    circuit = oc.Circuit(None, lambda v: pool @ v, 0.5, 0.5, 0.1, 0.1, 0.1)
    assert share_pool(xp64.namespace, prepare(xp64.namespace, circuit, pool[0, :])[0]) is False


@pytest.mark.parametrize("variant", VARIANTS)
@for_cases(decades=3.0, batch=False, sizes=(1, 3))
def test_jacobian_is_the_derivative_the_library_takes(xp64: Library, case: Case, variant: str) -> None:
    """Automatic differentiation in torch and jax; the backend's wide central differences elsewhere."""
    case = case._replace(state=oc.State(case.state.y, case.state.a + 0.5))
    assume(away_from_kinks(case, variant, reach=0.15))
    ns, n = xp64.namespace, case.z.shape[-1]

    def derivative(circuit: oc.Circuit, x: object, z: object) -> object:
        def packed(x: object) -> object:
            return ns.concat(list(oc.vector_field(circuit, oc.State(x[:n], x[n:]), z, variant=variant)))

        return oc.get_backend(ns).jacobian(packed, x)

    circuit = xp64.tree(case.circuit)
    x = xp64.array(np.concatenate(case.state))
    got = numpy_tree(derivative(circuit, x, xp64.array(case.z)))
    want = numpy_tree(oc.jacobian(circuit, xp64.tree(case.state), variant=variant))
    tolerance = 1e-13 if xp64.name in ("torch", "jax") else 1e-6
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.max(np.abs(want)))


@for_cases(decades=2.0)
def test_spectrum_is_the_eigenvalues_of_the_jacobian(xp64: Library, case: Case) -> None:
    """And the spectral abscissa their largest real part."""
    circuit, state = xp64.tree(case.circuit), xp64.tree(case.state)
    values = np.asarray(oc.backend.to_numpy(xp64.compiled(oc.spectrum)(circuit, state)))
    matrices = oc.jacobian(case.circuit, case.state)
    for got, matrix in zip(
        values.reshape(-1, values.shape[-1]), matrices.reshape(-1, *matrices.shape[-2:]), strict=True
    ):
        assert_same_spectrum(got, np.linalg.eigvals(matrix), rtol=1e-7)
    abscissa = numpy_tree(xp64.compiled(oc.spectral_abscissa)(circuit, state))
    np.testing.assert_allclose(abscissa, values.real.max(axis=-1), rtol=1e-7, atol=1e-6)


def test_spectrum_names_what_is_wrong() -> None:
    """The state and the variant are checked before anything is computed."""
    case = small_circuit(3)
    for function in (oc.spectrum, oc.spectral_abscissa):
        with pytest.raises(ValueError, match=r"state\.y must have shape"):
            function(case.circuit, case.state._replace(y=np.ones(4)))
        with pytest.raises(ValueError, match="unknown variant"):
            function(case.circuit, case.state, variant="none")


def test_a_state_that_is_not_finite_has_no_abscissa(xp64: Library) -> None:
    """NaN for that member of a batch, numbers for the others."""
    case = small_circuit(3)
    y = np.stack([case.state.y, np.full(3, np.nan)])
    with pytest.warns(RuntimeWarning, match="state is not finite in member 1 of the batch"):
        abscissa = numpy_tree(oc.spectral_abscissa(xp64.tree(case.circuit), xp64.tree(oc.State(y, case.state.a))))
    assert np.isfinite(abscissa[0])
    assert np.isnan(abscissa[1])


@for_cases(decades=1.5, identity=True, batch=False, zeros=False)
def test_quadratic_eigenvalues_are_the_spectrum(xp64: Library, case: Case) -> None:
    """M w'' + C w' + K w = 0 oscillates and decays as the linearized circuit does."""
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    mass, damping, stiffness = numpy_tree(xp64.compiled(oc.oscillator_form)(circuit, z))
    n = mass.shape[-1]
    companion = np.block([[np.zeros((n, n)), np.eye(n)], [-np.diag(stiffness / mass), -damping / mass[:, None]]])
    state = oc.State(*numpy_tree(oc.steady_state(circuit, z).state))
    values = np.linalg.eigvals(oc.jacobian(case.circuit, state))
    assert_same_spectrum(np.linalg.eigvals(companion), values, rtol=1e-6)
    # the damping matrix is a Z-matrix that takes a positive vector to a positive vector
    assert (damping - np.diag(np.diag(damping)) <= 0).all()
    positive = state.a * state.y**2 / case.circuit.tau_y
    image = (case.circuit.b0 * case.circuit.sigma) ** 2 + case.circuit.tau_a * state.a**1.5 / case.circuit.tau_y
    np.testing.assert_allclose(damping @ positive, image, rtol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_closed_form_spectrum_of_rank_one_normalization(xp64: Library, seed: int) -> None:
    """W = alpha 1 1^T with equal time constants and floors: all eigenvalues in closed form."""
    rng = np.random.default_rng(seed)
    n = 6
    alpha, tau_y, tau_a, floor = 10 ** rng.uniform([-1, -3, -3, -2], [1, -1, -1, 0])
    b, z = rng.uniform(0.2, 1.0, n), rng.standard_normal(n)
    circuit = oc.Circuit(None, np.full((n, n), alpha), b, np.ones(n), np.full(n, floor), tau_y, tau_a)
    drive = xp64.array(z)
    state = oc.steady_state(xp64.tree(circuit), drive).state
    got = np.asarray(oc.backend.to_numpy(oc.spectrum(xp64.tree(circuit), state)))
    y, a = numpy_tree(tuple(state))
    root = np.sqrt(a[0])
    pair = np.roots([tau_a * tau_y, tau_y + tau_a * root - alpha * tau_y * y @ y, root])
    want = np.concatenate([np.full(n - 1, -1 / tau_a), np.full(n - 1, -root / tau_y), pair])
    assert_same_spectrum(got, want, rtol=1e-6)


def assert_certificate(circuit: oc.Circuit, z: np.ndarray, certificate: oc.Certificate) -> None:
    """All that the certificate claims, in numpy: its margin, p > 0, q >= 0 and the Lyapunov equation."""
    margin, state, p, q = numpy_tree(certificate[1:])
    assert numpy_tree(certificate.stable).all()
    y, a = state
    inertia = np.where(y == 0, 0.0, circuit.tau_a * a**1.5 / circuit.tau_y)
    floor = (circuit.b0 * circuit.sigma) ** 2
    share = np.where(y == 0, 1.0, (floor + inertia) / (a + inertia))
    np.testing.assert_allclose(margin, np.min(share, axis=-1), rtol=1e-12)
    assert (margin > 0).all()
    assert (margin <= 1 + 1e-12).all()
    # in units in which every diagonal is 1: the entries of p span many decades
    for matrix, least in ((p, 1e-14), (q, -1e-9)):
        np.testing.assert_allclose(matrix, np.swapaxes(matrix, -1, -2), rtol=1e-9)
        diagonal = np.sqrt(np.diagonal(p if least > 0 else matrix, axis1=-2, axis2=-1))
        diagonal = np.where(diagonal > 0, diagonal, 1.0)
        scaled = matrix / diagonal[..., :, None] / diagonal[..., None, :]
        assert (np.linalg.eigvalsh(scaled) > least).all()
    j = oc.jacobian(circuit, oc.State(y, a))
    jt = np.swapaxes(j, -1, -2)
    size = np.abs(jt) @ np.abs(p) + np.abs(p) @ np.abs(j)
    assert (np.abs(jt @ p + p @ j + q) <= 1e-9 * size).all()
    check = oc.check_certificate(circuit, oc.Certificate(None, margin, oc.State(y, a), p, q))
    assert (check.p > 0).all()
    assert (check.q > -1e-12).all()
    assert (check.residual < 1e-9).all()


def wide_circuits(
    rng: np.random.Generator, decades: float, n: int, batch: tuple[int, ...] = ()
) -> tuple[oc.Circuit, np.ndarray]:
    """Every parameter log-uniform over ``decades``, zeros among the weights and drives."""

    def draw(*shape: int) -> np.ndarray:
        return 10.0 ** rng.uniform(-decades / 2, decades / 2, (*batch, *shape))

    w = draw(n, n) * (rng.random((*batch, n, n)) < 0.8)
    circuit = oc.Circuit(None, w, *(draw(n) for _ in range(5)))
    signs = rng.choice([-1.0, 0.0, 1.0], (*batch, n), p=[0.4, 0.2, 0.4])
    return circuit, draw(n) * signs


@pytest.mark.parametrize("decades", [6, 12])
def test_no_circuit_with_identity_recurrence_is_called_unstable(xp: Library, decades: int) -> None:
    """Parameters over twelve decades: stable, with the margin of exact arithmetic; p > 0 and q >= 0 within range."""
    rng = np.random.default_rng(decades)
    for n in (1, 5):
        circuit, z = wide_circuits(rng, decades, n, (200,))
        mine, drive = xp.tree(circuit), xp.array(z)
        certificate = oc.certify(mine, drive)
        assert numpy_tree((certificate.stable,))[0].all()
        exact, g = numpy_tree(mine), numpy_tree((drive,))[0]  # as rounded to the dtype
        floor, g = (exact.b0 * exact.sigma) ** 2, exact.b * g
        a = floor + np.einsum("...ij,...j->...i", exact.w, g**2)
        inertia = exact.tau_a / exact.tau_y * np.sqrt(a)
        margin = np.min(np.where(g == 0, 1.0, (floor / a + inertia) / (1.0 + inertia)), axis=-1)
        # a sum of n + 1 positive terms, two products and a root
        np.testing.assert_allclose(numpy_tree((certificate.margin,))[0], margin, rtol=100 * xp.eps)
        if xp.single and decades > 6:  # p spans more than the range of float32
            continue
        check = oc.check_certificate(mine, certificate)
        # eigenvalues relative to the largest: 2n eps, and ten to spare
        assert (check.p > -20 * n * xp.eps).all()
        assert (check.q > -20 * n * xp.eps).all()


def test_the_check_of_a_certificate_believes_nothing() -> None:
    """A p that vanishes or has another sign, a q of another sign, and a pair that solves no equation."""
    circuit = oc.Circuit(None, np.full((2, 2), 0.5), 0.5, 0.5, 0.1, 0.002, 0.003)
    good = oc.certify(circuit, np.array([1.0, 0.5]))
    row = np.ones(4)
    row[1] = 0.0
    for forged in (good._replace(p=0 * good.p), good._replace(p=-good.p), good._replace(p=good.p * row * row[:, None])):
        assert not oc.check_certificate(circuit, forged).p > 0
    assert oc.check_certificate(circuit, good._replace(q=-good.q)).q < -1e-3
    for forged in (good._replace(q=-good.q), good._replace(q=1.01 * good.q), good._replace(p=np.diag(np.diag(good.p)))):
        assert oc.check_certificate(circuit, forged).residual > 1e-3


@pytest.mark.filterwarnings("error")
def test_no_warnings_of_numpy_at_the_ends_of_the_range() -> None:
    """What overflows on the way is looked out for, and said in words or not at all."""
    circuit = oc.Circuit(None, np.full((2, 2), 0.5), 0.5, 0.5, 0.1, 0.002, 0.003)
    general = circuit._replace(w_r=np.array([[0.5, 0.1], [0.0, 0.4]]))
    for size in (1e-300, 1e-160, 1e75, 1e140):
        z = size * np.array([1.0, 0.5])
        certificate = oc.certify(circuit, z)
        assert certificate.stable
        oc.check_certificate(circuit, certificate)
        for one in (circuit, general):
            found = oc.steady_state(one, z)
            oc.spectral_abscissa(one, found.state)
            if size < 1:
                oc.noise_covariance(one, found.state, 0.1, z=z)
                continue
            with pytest.raises(ValueError, match="rounding hides whether the slowest decays"):
                oc.noise_covariance(one, found.state, 0.1, z=z)


@pytest.mark.one_dtype
def test_circuits_once_called_unstable(xp: Library) -> None:
    """A silent unit beside strongly driven ones; a zero at drive 1000; a tiny floor with a quick modulator."""
    rng = np.random.default_rng(0)
    silent = oc.Circuit(None, np.full((4, 4), 0.3), 0.5, 0.5, 0.1, 0.002, 0.002)
    w, z = rng.uniform(0.0, 1.0, (300, 5, 5)), rng.standard_normal((300, 5))
    given = (
        (silent, 1e8 * np.array([0.0, 1.0, 0.5, -0.3])),
        (oc.Circuit(None, w, 0.5, 0.5, 0.1, 0.002, 0.002), 1e3 * z * np.array([0, 1, 1, 1, 1])),
        (oc.Circuit(None, w, 0.5, 1e-3, 0.1, 1.0, 1e-8), z),
    )
    for circuit, z in given:
        certificate = oc.certify(xp.tree(circuit), xp.array(z))
        assert numpy_tree((certificate.stable,))[0].all()
        check = oc.check_certificate(xp.tree(circuit), certificate)
        assert (check.p > -100 * xp.eps).all()
        assert (check.q > -100 * xp.eps).all()


@pytest.mark.one_dtype
def test_inverse_of_an_m_matrix(xp: Library) -> None:
    """Each entry as accurate as n eps however near to singular, against 60 digits; no accuracy is lost in a solve."""
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(1)
    with mpmath.workdps(60):
        for n, excess in ((1, 1e-3), (2, 1e-12), (5, 1e-20), (8, 1e-25)):
            couplings, sums = (
                values.astype(float) for values in numpy_tree(xp.tree((rng.random((n, n)), excess * rng.random(n))))
            )
            matrix = mpmath.matrix((np.diag(np.diag(couplings)) - couplings).tolist())
            for i in range(n):
                matrix[i, i] = mpmath.mpf(sums[i]) - mpmath.fsum(matrix[i, j] for j in range(n) if j != i)
            want = np.array((matrix**-1).tolist(), dtype=float)
            found = numpy_tree((m_matrix_inverse(xp.namespace, xp.array(couplings), xp.array(sums)),))[0]
            np.testing.assert_allclose(found, want, rtol=100 * n * xp.eps)


@pytest.mark.parametrize("scale", [1e100, 1e150])
def test_abscissa_under_enormous_drive(xp64: Library, scale: float) -> None:
    """The slow eigenvalues, -1 / tau_a, beside others 1e150 times as large; beyond the range of float64 a sentence."""
    z = np.array([0.0, 1.0, 0.5, -0.3])
    for w_r in (None, 0.9 * np.eye(4)):
        for w in (np.full((4, 4), 0.3), 0.1 + 0.3 * np.eye(4)):
            circuit = oc.Circuit(w_r, w, 0.5, 0.5, 0.1, 0.002, 0.003)
            state = oc.steady_state(circuit, scale * z).state
            found = oc.spectral_abscissa(xp64.tree(circuit), xp64.tree(state))
            xp64.assert_close(found, -1 / 0.003, rtol=1e-9)
    circuit = xp64.tree(oc.Circuit(None, np.full((4, 4), 0.3), 0.5, 0.5, 0.1, 0.002, 0.003))
    assert bool(oc.certify(circuit, xp64.array(scale * z), lyapunov=False).stable)
    with pytest.raises(ValueError, match="z must leave a fixed point within the range of float64"):
        oc.certify(circuit, xp64.array(1e155 * z))
    with pytest.raises(ValueError, match="member 1 of the batch"):
        oc.certify(circuit, xp64.array(np.stack([z, 1e155 * z])))
    beyond = oc.State(xp64.array(0 * z), xp64.array([np.inf, 1.0, 1.0, 1.0]))
    with pytest.warns(RuntimeWarning, match="state is not finite"):
        assert np.isnan(float(oc.spectral_abscissa(circuit, beyond)))


def test_squares_are_brought_into_the_range_of_the_dtype(xp: Library) -> None:
    """Where they, times a thousand over eps, would leave it, by what centres the largest and the smallest at one."""
    tiny = 2.0**-1022 if xp.dtype == xp.namespace.float64 else 2.0**-126
    low = 1e3 * math.sqrt(tiny) / xp.eps
    pairs = [(1.0, 2.0), (2.0 * low, 0.5 / low), (0.5 * low, low), (0.1 * low, 1.0), (1.0, 2.0 / low), (0.0, 1.0)]
    found = _scale_into_range(xp.namespace, *(xp.array([[pair[k]] for pair in pairs]) for k in (0, 1)))
    want = [1.0, 1.0, *(1.0 / (math.sqrt(a) * math.sqrt(b)) for a, b in pairs[2:-1]), 1.0 / math.sqrt(low)]
    xp.assert_close(found[:, 0] / xp.array(want), np.ones(6), rtol=1e-12, atol=10 * xp.eps)


def test_abscissae_of_a_batch_of_all_sizes(xp64: Library) -> None:
    """Every member's slow eigenvalues, whatever stands beside it."""
    circuit = oc.Circuit(None, 0.1 + 0.3 * np.eye(2), 0.5, 0.5, 0.1, 0.002, 0.003)
    z = np.array([[0.0, 1.0], [0.0, 1e100], [0.5, -0.3], [1e-3, 1e150], [0.0, 0.0]])
    state = oc.steady_state(circuit, z).state
    found = oc.spectral_abscissa(xp64.tree(circuit), xp64.tree(state))
    alone = [float(oc.spectral_abscissa(circuit, oc.State(*one))) for one in zip(*state, strict=True)]
    xp64.assert_close(found, np.array(alone), rtol=1e-9)
    np.testing.assert_allclose(alone[1::2], -1 / 0.003, rtol=1e-9)


def test_spectrum_of_any_size(xp: Library) -> None:
    """Rates of 1e-15 to 1e25 per second: builds of LAPACK differ in what they make of large entries."""
    rng = np.random.default_rng(3)
    z = rng.uniform(0.5, 1, 3)
    known = oc.Circuit(np.eye(3), rng.uniform(0, 1, (3, 3)), 0.5, 0.5, 0.1, 1.0, 2.0)
    want = np.linalg.eigvals(oc.jacobian(known, oc.steady_state(known, z).state))
    for tau in (1e15, 1.0, 1e-15, 1e-25):
        circuit = known._replace(tau_y=tau * known.tau_y, tau_a=tau * known.tau_a)
        state = oc.steady_state(circuit, z).state
        made, at = xp.tree(circuit), xp.tree(state)
        assert_same_spectrum(tau * to_numpy(oc.spectrum(made, at)), want, rtol=1e5 * xp.eps)
        xp.assert_close(oc.spectral_abscissa(made, at), want.real.max() / tau, rtol=1e3 * xp.eps)


def test_slow_eigenvalues_beside_fast_ones(xp64: Library) -> None:
    """W_r = I over twelve decades: the abscissa to 1e-8, against eigenvalues of 80 digits."""
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(2)
    with mpmath.workdps(120):
        for _ in range(xp64.examples // 10 + 2):
            n = int(rng.integers(1, 6)) if xp64.name == "numpy" else 3
            circuit, z = wide_circuits(rng, 12, n)
            c = [[mpmath.mpf(float(v)) for v in field] for field in circuit[2:]]
            w = mpmath.matrix(circuit.w.tolist())
            g = [c[0][i] * mpmath.mpf(float(z[i])) for i in range(n)]
            a = [(c[1][i] * c[2][i]) ** 2 + mpmath.fsum(w[i, j] * g[j] ** 2 for j in range(n)) for i in range(n)]
            matrix = mpmath.zeros(2 * n)
            for i in range(n):  # in units of y and a, g = sqrt(a) y
                root = mpmath.sqrt(a[i])
                matrix[i, i], matrix[i, n + i] = -root / c[3][i], -g[i] / (2 * a[i]) / c[3][i]
                for j in range(n):
                    matrix[n + i, j] = 2 * w[i, j] * g[j] * mpmath.sqrt(a[j]) / c[4][i]
                    matrix[n + i, n + j] = w[i, j] * g[j] ** 2 / a[j] / c[4][i]
                matrix[n + i, n + i] -= 1 / c[4][i]
            want = max(mpmath.re(value) for value in mpmath.eig(matrix, left=False, right=False))
            state = oc.certify(circuit, z, lyapunov=False).state
            found = oc.spectral_abscissa(xp64.tree(circuit), xp64.tree(state))
            assert float(found) == pytest.approx(float(want), rel=1e-8)


@for_cases(decades=3.0, identity=True)
def test_certificate_holds_and_eigenvalues_agree(xp64: Library, case: Case) -> None:
    """Parameters over three decades, units without drive among them: W_r = I is stable, with proof."""
    certificate = xp64.compiled(oc.certify)(xp64.tree(case.circuit), xp64.array(case.z))
    assert_certificate(case.circuit, case.z, certificate)
    state = oc.State(*numpy_tree(tuple(certificate.state)))
    assert (oc.spectral_abscissa(case.circuit, state) < 0).all()


def test_certificate_in_single_precision(xp: Library) -> None:
    """The decision and margin are those of double precision."""
    case = small_circuit(4, identity=True)
    certificate = oc.certify(xp.tree(case.circuit), xp.array(case.z))
    reference = oc.certify(case.circuit, case.z)
    assert bool(certificate.stable)
    xp.assert_close(certificate.margin, reference.margin, rtol=1e-10)
    xp.assert_close(certificate.p, reference.p, rtol=1e-9, atol=1e-10 * np.max(np.abs(reference.p)))


@pytest.mark.parametrize("silent", [(0,), (1, 3), (0, 1, 2, 3)])
def test_units_without_drive_are_treated_apart(xp64: Library, silent: tuple[int, ...]) -> None:
    """They decouple with the eigenvalue -sqrt(a)/tau_y, and the certificate still is one."""
    case = small_circuit(4, identity=True)
    z = np.where(np.isin(np.arange(4), silent), 0.0, case.z)
    circuit, drive = xp64.tree(case.circuit), xp64.array(z)
    certificate = oc.certify(circuit, drive)
    assert_certificate(case.circuit, z, certificate)
    values = np.asarray(oc.backend.to_numpy(oc.spectrum(circuit, certificate.state)))
    a = numpy_tree(certificate.state.a)
    for i in silent:
        assert np.min(np.abs(values + np.sqrt(a[i]) / case.circuit.tau_y[i])) < 1e-8 * np.max(np.abs(values))


def test_the_decision_alone_needs_no_matrices(xp64: Library) -> None:
    """``lyapunov=False`` decides the same."""
    case = small_circuit(4, identity=True)
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    quick, full = oc.certify(circuit, z, lyapunov=False), oc.certify(circuit, z)
    assert quick.p is None
    assert quick.q is None
    assert bool(quick.stable)
    xp64.assert_close(quick.margin, numpy_tree(full.margin), rtol=1e-12)
    for part, want in zip(quick.state, numpy_tree(tuple(full.state)), strict=True):
        xp64.assert_close(part, want, rtol=1e-12)


@pytest.mark.size
def test_certificate_of_two_thousand_neurons(xp64: Library) -> None:
    """Decided and proven; p and q tried on random directions."""
    n = 2000
    rng = np.random.default_rng(0)
    circuit = oc.Circuit(
        None, rng.random((n, n)) / n, 0.5, 0.5, 0.1, rng.uniform(0.001, 0.1, n), rng.uniform(0.001, 0.1, n)
    )
    z = rng.standard_normal(n)
    assert bool(oc.certify(xp64.tree(circuit), xp64.array(z), lyapunov=False).stable)
    if xp64.name != "numpy":
        return
    certificate = oc.certify(circuit, z)
    for _ in range(5):
        x = rng.standard_normal(2 * n)
        assert x @ certificate.p @ x > 0
        assert x @ certificate.q @ x > 0


@for_cases(decades=2.0, identity=True)
def test_energy_is_the_quadratic_form(xp64: Library, case: Case) -> None:
    """x^T p x with x the distance from the fixed point, in any batch."""
    circuit, state, z = xp64.tree(case.circuit), xp64.tree(case.state), xp64.array(case.z)
    got = numpy_tree(xp64.compiled(oc.energy)(circuit, state, z))
    certificate = oc.certify(case.circuit, case.z)
    x = np.concatenate([s - f for s, f in zip(case.state, certificate.state, strict=True)], axis=-1)
    np.testing.assert_allclose(got, np.einsum("...i,...ij,...j->...", x, certificate.p, x), rtol=1e-8)
    assert (got > 0).all()


@for_cases(decades=1.0, identity=True, batch=False, sizes=(1, 4), zeros=False)
def test_energy_falls_along_trajectories(xp64: Library, case: Case) -> None:
    """Near the fixed point the energy never rises, and is used up in the end."""
    fixed = oc.steady_state(case.circuit, case.z).state
    slowest = -1.0 / oc.spectral_abscissa(case.circuit, fixed)
    start = oc.State(fixed.y * (1 + 1e-5 * np.sign(case.state.y)), fixed.a * (1 + 1e-5))
    circuit, z = xp64.tree(case.circuit), xp64.array(case.z)
    times = xp64.array(np.linspace(0.0, 5.0 * slowest, 60))
    run = xp64.compiled(oc.simulate, rtol=1e-9, atol=1e-14)(circuit, z, times, state0=xp64.tree(start))
    energies = numpy_tree(xp64.compiled(oc.energy)(circuit, oc.State(*run.state), z))
    # nonlinear terms and the integrator's error are worth 1e-3 of it
    assert (np.diff(energies) <= 1e-3 * energies[:-1] + 1e-7 * energies[0]).all()
    assert energies[-1] < 0.2 * energies[0]


def test_energy_of_states_in_double_precision() -> None:
    """float64 if any array is: near the fixed point float32 would have nothing but its rounding."""
    single = oc.Circuit(None, np.ones((2, 2), dtype=np.float32), 0.5, 0.5, 0.5, 0.5, 0.5)
    z = np.array([1.0, 0.5], dtype=np.float32)
    double = single._replace(w=np.ones((2, 2)))
    fixed = oc.steady_state(double, z.astype(float)).state
    near = oc.State(fixed.y + 1e-9, fixed.a)
    assert oc.energy(single, near, z) == pytest.approx(oc.energy(double, near, z.astype(float)), rel=1e-12, abs=0.0)


def test_abscissa_of_neurons_that_share_a_pool(xp64: Library) -> None:
    """n + 1 eigenvalues decide, as well as all 2n, whatever the state; one circuit, a batch, and n = 2 at rest."""
    rng = np.random.default_rng(3)
    for n, batch in ((7, ()), (4, (3,)), (2, ())):
        pool = np.broadcast_to(rng.random((*batch, 1, n)), (*batch, n, n)).copy()
        w_r = 1.5 * rng.standard_normal((*batch, n, n))
        circuit = oc.Circuit(w_r, pool, 0.5, rng.uniform(0.2, 1.0, n), 0.3, rng.uniform(1e-3, 3e-3, n), 0.002)
        slow = circuit._replace(tau_a=np.full(n, 0.05), w_r=0.01 * w_r)  # -1 / tau_a itself is the largest
        for one in (circuit, slow, circuit._replace(w_r=None)):
            for scale in (0.0, 1.0):
                state = oc.State(scale * rng.standard_normal((*batch, n)), rng.uniform(0.1, 2.0, (*batch, n)))
                want = np.linalg.eigvals(oc.jacobian(one, state)).real.max(axis=-1)
                found = oc.spectral_abscissa(xp64.tree(one), xp64.tree(state))
                xp64.assert_close(found, want, rtol=1e-9, atol=1e-6)


@pytest.mark.library("torch", "jax")
def test_slope_of_the_abscissa_of_neurons_that_share_a_pool(xp64: Library) -> None:
    """Every row of W and every tau_a has a part in it, though the value needs one row alone."""
    rng = np.random.default_rng(0)
    circuit = oc.Circuit(
        0.5 * rng.standard_normal((3, 3)), np.full((3, 3), 0.4), 0.6, 1.0, np.array([0.1, 0.2, 0.3]), 0.002,
        np.full(3, 0.002),
    )  # fmt: skip
    state = oc.steady_state(circuit, rng.standard_normal(3)).state
    changes = rng.standard_normal((3, 3)), 1e-3 * rng.standard_normal(3)

    def along(one: oc.Circuit, at: oc.State, by: tuple[Any, Any]) -> Any:
        return lambda s: oc.spectral_abscissa(one._replace(w=one.w + s * by[0], tau_a=one.tau_a + s * by[1]), at)

    expected = central_difference(lambda s: float(along(circuit, state, changes)(s)), 1e-2)
    function = along(xp64.tree(circuit), xp64.tree(state), xp64.tree(changes))
    if xp64.name == "jax":
        import jax

        found = jax.grad(function)(xp64.array(0.0))
    else:
        import torch

        zero = xp64.array(0.0).requires_grad_()
        (found,) = torch.autograd.grad(function(zero), zero)
        with torch.no_grad():
            xp64.assert_close(torch.func.grad(function)(zero), expected, rtol=1e-7)
    xp64.assert_close(found, expected, rtol=1e-7)
