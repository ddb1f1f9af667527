"""All steps of a cell's sequence at once: the numbers of the loop, honest reports, and Lyapunov exponents."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace
from support import Library
from test_cell import random_cell

import organics_core as oc
from organics_core.cell import CELL_VARIANTS, cell_rates, normalization_weights, step_diagonal
from organics_core.parallel import linear_recurrence, solve_adjoint

RATES = oc.MaxRates(0.4, 0.3, 0.5)


def sequence(steps: int, recurrent: str = "orthogonal", gain: float = 1.0, seed: int = 1) -> tuple:
    """A cell at initialization, its start and inputs (steps, 3, 2)."""
    parameters, start = oc.init_cell(0, 2, 8, recurrent=recurrent)
    if parameters.w_r is not None:
        parameters = parameters._replace(w_r=gain * parameters.w_r)
    return parameters, start, np.random.default_rng(seed).standard_normal((steps, 3, 2))


def jacobian(parameters: tuple, state: tuple, x: np.ndarray, **options: object) -> np.ndarray:
    """Of the step, by central differences."""
    flat = np.concatenate(state)
    moves = 1e-6 * np.eye(len(flat))
    many = oc.CellState(*np.split(flat + np.concatenate([moves, -moves]), 4, axis=-1))  # all of them at once
    xs = np.broadcast_to(x, (2 * len(flat), len(x)))
    plus, minus = np.split(np.concatenate(oc.cell_step(parameters, many, xs, **options), axis=-1), 2)
    return (plus - minus).T / 2e-6


@pytest.mark.parametrize("variant", CELL_VARIANTS)
@pytest.mark.parametrize("recurrent", ["orthogonal", "identity"])
@pytest.mark.parametrize("seed", range(2))
def test_the_diagonal_is_that_of_the_jacobian(xp64: Library, variant: str, recurrent: str, seed: int) -> None:
    parameters, state, x = random_cell(seed=seed, recurrent=recurrent)
    want = np.diag(jacobian(parameters, state, x, max_rates=RATES, variant=variant))
    p = xp64.tree(parameters)
    module = array_namespace(p.log_w)
    w, rates = normalization_weights(module, p.log_w), cell_rates(module, p, RATES)
    got = step_diagonal(module, p, w, rates, xp64.tree(state), variant)
    for part, other in zip(got, np.split(want, 4), strict=True):
        xp64.assert_close(part, other, rtol=1e-7)


@pytest.mark.one_dtype
@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 33])
def test_linear_recurrence_is_the_loop(xp: Library, length: int) -> None:
    rng = np.random.default_rng(length)
    factor, term = rng.uniform(-1, 1, (length, 2, 3)), rng.standard_normal((length, 2, 3))
    want, state = [], np.zeros((2, 3))
    for f, t in zip(factor, term, strict=True):
        state = f * state + t
        want.append(state)
    factors = xp.array(factor)
    got = linear_recurrence(array_namespace(factors), factors, xp.array(term))
    xp.assert_close(got, np.stack(want), rtol=1e-12, atol=1e-12)


@pytest.mark.one_dtype
@pytest.mark.parametrize("variant", CELL_VARIANTS)
@pytest.mark.parametrize("recurrent", ["orthogonal", "identity"])
def test_all_steps_at_once_are_the_loop(xp: Library, variant: str, recurrent: str) -> None:
    """Within 1e-10 in float64 and 1e-5 in float32, in far fewer iterations than steps."""
    parameters, start, xs = sequence(120, recurrent)
    final, ys = oc.cell_sequence(parameters, start, xs, variant=variant)
    run = xp.compiled(oc.parallel_cell_sequence, variant=variant)
    got, found, report = run(xp.tree(parameters), xp.tree(start), xp.array(xs))
    assert bool(report.converged)
    assert int(report.iterations) < 40
    assert 0 < float(report.residual) < 1e-4
    tolerance = 1e-10 if xp.precision == "float64" else 1e-5
    for one, other in ((found, ys), *zip(got, final, strict=True)):
        xp.assert_close(one, other, rtol=0, atol=tolerance * float(np.abs(other).max()))


def test_after_k_iterations_k_steps_are_exact() -> None:
    """Undamped, whatever the recurrence; and the report says that the rest is not."""
    parameters, start, xs = sequence(40, gain=6.0)
    _, ys = oc.cell_sequence(parameters, start, xs, max_rates=RATES)
    for k in (1, 5, 12):
        _, found, report = oc.parallel_cell_sequence(
            parameters, start, xs, max_rates=RATES, max_iterations=k, damped=False
        )
        np.testing.assert_allclose(found[:k], ys[:k], rtol=1e-11)
        assert not report.converged
        assert report.iterations == k
        assert report.change > 1e-13


def test_damping_keeps_the_iterates_finite() -> None:
    """A net that runs away undamped."""
    parameters, start, xs = sequence(200, gain=20.0)
    parameters = parameters._replace(log_w=np.zeros_like(parameters.log_w))
    options = {"variant": "main", "max_rates": oc.MaxRates(0.8, 0.8, 0.8)}
    with np.errstate(all="ignore"):
        *_, report = oc.parallel_cell_sequence(parameters, start, 5 * xs, **options, damped=False)
    assert not report.converged
    _, ys, report = oc.parallel_cell_sequence(parameters, start, 5 * xs, **options, max_iterations=20)
    assert np.isfinite(ys).all()
    assert not report.converged


def test_lyapunov_exponents_of_a_batch_are_those_of_its_members(xp64: Library) -> None:
    """Also of few steps, after which they still hang on the direction they began with, and in every library."""
    p, s, _ = random_cell()
    xs = np.random.default_rng(0).standard_normal((6, 3, p.w_zx.shape[-1]))
    got = oc.cell_lyapunov_exponent(xp64.tree(p), xp64.tree(s), xp64.array(xs))
    want = [float(oc.cell_lyapunov_exponent(p, s, xs[:, k])) for k in range(3)]
    xp64.assert_close(got, want, rtol=1e-6)


@pytest.mark.library("numpy", "torch", "jax")
def test_lyapunov_exponent_is_that_of_the_product_of_jacobians(xp64: Library) -> None:
    """By QR of Jacobians from differences; a strong recurrence has a larger one."""
    exponents = []
    for gain in (1.0, 5.0):
        parameters, start, xs = sequence(160, gain=gain)
        p, s = xp64.tree(parameters), xp64.tree(start)
        got = xp64.compiled(oc.cell_lyapunov_exponent, max_rates=RATES)(p, s, xp64.array(xs[:, :2]))
        xp64.assert_kind(got, (2,))
        state, q, logs = start, np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))[0], []
        for x in xs[:, 0]:
            q, r = np.linalg.qr(jacobian(parameters, state, x, max_rates=RATES) @ q)
            logs.append(np.log(np.abs(r[0, 0])))
            state = oc.cell_step(parameters, state, x, max_rates=RATES)
        exponents.append(float(got[0]))
        assert abs(exponents[-1] - np.mean(logs[80:])) < 0.02
    assert exponents[0] < 0
    assert exponents[0] < exponents[1]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"variant": "rectified"}, ValueError, "variant"),
        ({"tolerance": 0.0}, ValueError, "tolerance"),
        ({"max_iterations": 0}, ValueError, "max_iterations"),
        ({"xs": np.ones((0, 3, 2))}, ValueError, "xs must have shape"),
        ({"xs": np.ones((4, 3, 5))}, ValueError, "x must have shape"),
    ],
)
def test_bad_arguments(options: dict, error: type[Exception], words: str) -> None:
    parameters, start, xs = sequence(4)
    xs = options.pop("xs", xs)
    with pytest.raises(error, match=words):
        oc.parallel_cell_sequence(parameters, start, xs, **options)
    if "xs" in words or "variant" in words:
        with pytest.raises(error, match=words):
            oc.cell_lyapunov_exponent(parameters, start, xs, **options)


@pytest.mark.parametrize(("precision", "size"), [("float32", 1e8), ("float64", 1e15)])
def test_a_damped_step_from_far_off_is_not_convergence(precision: str, size: float) -> None:
    """Without drive b1 decays by itself; a step of 1 is little of what it starts from."""
    parameters, start, xs = sequence(60)
    start = start._replace(y=0 * start.y, b1=np.full_like(start.b1, size))
    arrays = [tuple(None if part is None else np.asarray(part, precision) for part in p) for p in (parameters, start)]
    few = (oc.CellParameters(*arrays[0]), oc.CellState(*arrays[1]), np.asarray(0 * xs, precision))
    final, _ = oc.cell_sequence(*few)
    last, _, report = oc.parallel_cell_sequence(*few)
    assert not report.converged
    assert report.change > 1e-3
    last, _, report = oc.parallel_cell_sequence(*few, damped=False)
    assert report.converged
    np.testing.assert_allclose(last.b1, final.b1, rtol=1e-4)


@pytest.mark.one_dtype
def test_small_updates_that_grow_are_not_convergence(xp: Library) -> None:
    """Two units that excite each other leave their rest by less than the tolerance, beside one that stays at its."""
    n, weak = 3, 1e-9 if xp.precision == "float32" else 1e-14
    nothing = np.zeros((n, n))
    w_r = nothing.copy()
    w_r[0, 1] = w_r[1, 0] = 4.0
    drive, theta = np.array([[0.0], [0.0], [1.0]]), np.zeros(n)
    gates = (0 * drive, nothing, nothing)
    parameters = oc.CellParameters(drive, w_r, np.full((n, n), -40.0), *gates, *gates, *(theta,) * 4, np.ones(()))
    start = oc.CellState(np.array([weak, weak, 0.5]), np.full(n, 0.25), np.full(n, 0.5), np.full(n, 0.5))
    xs = np.ones((800, 1))
    _, ys = oc.cell_sequence(parameters, start, xs, variant="main")
    assert ys[-1, 0] > 1e4 * weak
    run = xp.compiled(oc.parallel_cell_sequence, variant="main")
    _, found, report = run(xp.tree(parameters), xp.tree(start), xp.array(xs))
    assert bool(report.converged)
    assert int(report.iterations) > 10
    xp.assert_close(found, ys, rtol=0, atol=2e-6 if xp.precision == "float32" else 1e-11)
    *_, report = run(xp.tree(parameters), xp.tree(start._replace(y=np.array([0, 0, 0.5]))), xp.array(xs))
    assert bool(report.converged)  # at rest, and nothing leaves it
    assert int(report.iterations) <= 2


@pytest.mark.one_dtype
def test_a_batch_of_cells_through_one_sequence(xp64: Library) -> None:
    """As many as there are steps, too: every cell by itself."""
    cells = [oc.init_cell(seed, 2, 4)[0] for seed in range(3)]
    start = oc.init_cell(0, 2, 4)[1]
    many = oc.CellParameters(*(np.stack(parts) for parts in zip(*cells, strict=True)))._replace(sigma=np.ones(()))
    xs = np.random.default_rng(0).standard_normal((3, 2))
    want = np.stack([oc.cell_sequence(cell, start, xs)[1] for cell in cells], 1)
    given = xp64.tree(many), xp64.tree(start), xp64.array(xs)
    last, ys = oc.cell_sequence(*given)
    xp64.assert_close(ys, want, rtol=1e-12)
    xp64.assert_close(last.y, want[-1], rtol=1e-12)
    last, ys, report = oc.parallel_cell_sequence(*given)
    assert bool(report.converged)
    xp64.assert_close(ys, want, rtol=0, atol=1e-12)
    xp64.assert_close(last.y, want[-1], rtol=0, atol=1e-12)
    _, ys = oc.cell_sequence(given[0], xp64.tree(oc.CellState(*(np.stack([part] * 3) for part in start))), given[2])
    xp64.assert_close(ys, want, rtol=1e-12)
    assert oc.cell_lyapunov_exponent(*given).shape == (3,)
    assert oc.cell_lyapunov_exponent(xp64.tree(cells[0]), given[1], xp64.array(np.ones((3, 0, 2)))).shape == (0,)
    for call in (oc.cell_sequence, oc.parallel_cell_sequence, oc.cell_lyapunov_exponent):
        with pytest.raises(ValueError, match=r"batch axes \(3,\) of w_zx .* do not broadcast with .* \(2,\) of xs"):
            call(many, start, np.ones((5, 2, 2)))


def test_no_sequences(xp: Library) -> None:
    """As the loop: arrays of no sequences, found at once."""
    parameters, start, xs = sequence(4)
    run = xp.compiled(oc.parallel_cell_sequence)
    last, ys, report = run(xp.tree(parameters), xp.tree(start), xp.array(xs[:, :0]))
    assert tuple(ys.shape) == (4, 0, 8)
    assert tuple(last.b1.shape) == (0, 8)
    assert bool(report.converged)


@pytest.mark.library("numpy", "torch", "jax")
def test_a_start_state_of_float32_does_not_decide_on_the_precision(xp64: Library) -> None:
    """Nor where the steps are taken one by one."""
    parameters, start, xs = sequence(60)
    start = oc.CellState(*(np.full_like(part, 0.25) for part in start))  # a number of few bits
    given, wanted = (xp64.tree(parameters), xp64.array(xs)), oc.cell_sequence(parameters, start, xs)[1]
    space = xp64.namespace
    few = oc.CellState(*(space.astype(part, space.float32) for part in xp64.tree(start)))
    _, ys, report = oc.parallel_cell_sequence(given[0], few, given[1])
    assert float(report.change) <= 1e-13
    xp64.assert_close(ys, wanted, rtol=0, atol=1e-12)
    xp64.assert_close(oc.cell_sequence(given[0], few, given[1])[1], wanted, rtol=0, atol=1e-12)


@pytest.mark.one_dtype
def test_adjoints_are_those_of_the_loop(xp64: Library) -> None:
    """l_t = g_t + J_{t+1}^T l_{t+1} from the last step back, for any Jacobians: all at once, as one by one."""
    steps, n = 7, 2
    rng = np.random.default_rng(0)
    jac = 0.3 * rng.standard_normal((steps, 4 * n, 4 * n))
    gradient = rng.standard_normal((steps, 4 * n))
    want = gradient.copy()
    for t in range(steps - 2, -1, -1):
        want[t] += jac[t + 1].T @ want[t + 1]

    def split(array: np.ndarray) -> oc.CellState:
        return xp64.tree(oc.CellState(*np.split(array, 4, axis=-1)))

    space, matrices = xp64.namespace, xp64.array(jac)

    def pull(adjoint: oc.CellState) -> oc.CellState:
        whole = space.concat(list(adjoint), axis=-1)
        made = space.sum(matrices * whole[..., None], axis=-2)
        return oc.CellState(*(made[..., k * n : (k + 1) * n] for k in range(4)))

    diagonal = split(np.diagonal(jac, axis1=-2, axis2=-1))
    found = solve_adjoint(space, pull, diagonal, split(gradient), tolerance=1e-13)
    assert bool(found.report.converged)
    assert int(found.report.iterations) <= steps + 1  # then every step has heard of all later ones
    for part, other in zip(found.states, np.split(want, 4, axis=-1), strict=True):
        xp64.assert_close(part, other, rtol=1e-11, atol=1e-12)
