"""The trained cell: its equations in loops, its start, its gradients and its extremes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import Library, central_difference, gradient, numpy_tree, to_numpy

import organics_core as oc
from organics_core.cell import CELL_VARIANTS, cell_jacobian_abscissa, check_max_rates

RATES = oc.MaxRates(0.4, 0.3, 0.5)


def random_cell(n: int = 4, k: int = 3, seed: int = 0, recurrent: str = "orthogonal") -> tuple:
    """Parameters away from their start values, a state with some signs mixed, and an input."""
    rng = np.random.default_rng(seed)
    parameters, _ = oc.init_cell(rng, k, n, recurrent=recurrent)
    noise = {
        name: getattr(parameters, name) + 0.5 * rng.standard_normal(np.shape(getattr(parameters, name)))
        for name in parameters._fields
        if name.startswith(("log_w", "theta", "w_b"))
    }
    parameters = parameters._replace(sigma=np.asarray(0.7), **noise)
    state = oc.CellState(
        rng.standard_normal(n), rng.uniform(-0.2, 1.5, n), rng.uniform(0.2, 1, n), rng.uniform(0.2, 1, n)
    )
    return parameters, state, rng.standard_normal(k)


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def by_hand(p: oc.CellParameters, state: oc.CellState, x: np.ndarray, variant: str) -> oc.CellState:
    """SPEC section 8 with plain floats and loops, unit by unit."""
    n, k = p.w_zx.shape
    y, a, b0, b1 = state
    w_r = np.eye(n) if p.w_r is None else p.w_r
    new = oc.CellState(*(np.zeros(n) for _ in range(4)))

    def row(matrix: np.ndarray, i: int, vector: np.ndarray, size: int) -> float:
        return sum(float(matrix[i, j]) * float(vector[j]) for j in range(size))

    for i in range(n):
        z = max(row(p.w_zx, i, x, k), 0.0)
        recurrent = row(w_r, i, y, n)
        if variant == "rectified_recurrence":
            recurrent = max(recurrent, 0.0)
        target0 = sigmoid(row(p.w_bx0, i, x, k) + row(p.w_by0, i, y, n) + row(p.w_ba0, i, a, n))
        target1 = sigmoid(row(p.w_bx1, i, x, k) + row(p.w_by1, i, y, n) + row(p.w_ba1, i, a, n))
        pool = 0.0
        for j in range(n):
            response = max(y[j], 0.0) if variant == "rectified_recurrence" else y[j]
            pool += min(math.exp(p.log_w[i, j]), 1.0) * max(a[j], 0.0) * response**2
        new.b0[i] = b0[i] + RATES.b * sigmoid(p.theta_b0[i]) * (-b0[i] + target0)
        new.b1[i] = b1[i] + RATES.b * sigmoid(p.theta_b1[i]) * (-b1[i] + target1)
        gate = 1.0 - math.sqrt(max(a[i], 0.0))
        new.y[i] = y[i] + RATES.y * sigmoid(p.theta_y[i]) * (-y[i] + b1[i] * z + gate * recurrent)
        new.a[i] = a[i] + RATES.a * sigmoid(p.theta_a[i]) * (-a[i] + (float(p.sigma) * b0[i]) ** 2 + pool)
    return new


@pytest.mark.parametrize("variant", CELL_VARIANTS)
@pytest.mark.parametrize("recurrent", ["orthogonal", "identity"])
@pytest.mark.parametrize("seed", range(3))
def test_step_is_the_equations(xp: Library, variant: str, recurrent: str, seed: int) -> None:
    """All right-hand sides at the old state, W = min(exp(V), 1), every dt/tau its own."""
    parameters, state, x = random_cell(seed=seed, recurrent=recurrent)
    want = by_hand(parameters, state, x, variant)
    step = xp.compiled(oc.cell_step, max_rates=RATES, variant=variant)
    got = step(xp.tree(parameters), xp.tree(state), xp.array(x))
    for one, other in zip(got, want, strict=True):
        xp.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("variant", CELL_VARIANTS)
def test_sequence_is_its_steps(xp64: Library, variant: str) -> None:
    """``cell_sequence`` over a batch is the step, repeated, with the start state broadcast."""
    parameters, state, _ = random_cell()
    xs = np.random.default_rng(1).standard_normal((5, 2, 3))
    p, start = xp64.tree(parameters), xp64.tree(state)
    options = {"max_rates": RATES, "variant": variant}
    final, ys = xp64.compiled(oc.cell_sequence, **options)(p, start, xp64.array(xs))
    xp64.assert_kind(ys, (5, 2, 4))
    for member in range(2):
        current = state
        for t in range(5):
            current = oc.cell_step(parameters, current, xs[t, member], **options)
            xp64.assert_close(ys[t, member, :], current.y, rtol=1e-12, atol=1e-13)
        for one, other in zip(final, current, strict=True):
            xp64.assert_close(one[member, :], other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("variant", CELL_VARIANTS)
def test_nan_comes_through(xp: Library, variant: str) -> None:
    """From the input, and from every part of the state, into what depends on it, and into no other sequence."""
    parameters, state, x = random_cell()
    batch = oc.CellState(*(np.stack([part, part]) for part in state))
    p, options = xp.tree(parameters), {"max_rates": RATES, "variant": variant}
    for name in ("x", *oc.CellState._fields):
        given = {**batch._asdict(), "x": np.stack([x, x])}
        given[name] = given[name].copy()
        given[name][0, 0] = np.nan
        last = xp.array(given.pop("x"))
        new = numpy_tree(oc.cell_step(p, xp.tree(oc.CellState(**given)), last, **options))
        for part in new:
            assert np.isfinite(part[1]).all()
        bad = {field: np.isnan(part[0]) for field, part in new._asdict().items()}
        if name == "x":
            assert bad["y"].all()
            assert bad["b0"].all()
            assert bad["b1"].all()
        assert bad[{"x": "y", "b0": "a", "b1": "y"}.get(name, name)].any()
        if name in ("y", "a"):
            assert bad["b0"].all()
            assert bad["a"].all()


def test_every_part_of_a_step_has_the_batch_and_the_dtype(xp: Library) -> None:
    """Of the modulators, too, which do not see the input within one step."""
    parameters, state, x = random_cell()
    p, s = xp.tree(parameters), xp.tree(state)
    for size in (2, 0):
        for part in oc.cell_step(p, s, xp.array(np.stack([x] * 2)[:size]), max_rates=RATES):
            xp.assert_kind(part, (size, *state.y.shape))
    other = xp.namespace.float32 if not xp.single else xp.namespace.float64
    mixed = oc.CellState(*(xp.namespace.astype(part, other) for part in s))
    run = oc.cell_sequence(p, mixed, xp.array(x)[None, ...], max_rates=RATES)[0]
    for part, one in zip(oc.cell_step(p, mixed, xp.array(x), max_rates=RATES), run, strict=True):
        assert part.dtype == one.dtype == xp.namespace.float64
        np.testing.assert_allclose(to_numpy(part), to_numpy(one), rtol=1e-13)
    many = oc.CellState(*(np.stack([part] * 3) for part in state))
    with pytest.raises(ValueError, match=r"batch axes \(2,\) of x .* do not broadcast with .* \(3,\) of state"):
        oc.cell_step(parameters, many, np.stack([x] * 2), max_rates=RATES)


def test_the_cell_is_euler_on_the_circuit() -> None:
    """With the gains held, one step is Euler's step of the circuit it stands for."""
    parameters, state, x = random_cell()
    new = oc.cell_step(parameters, state, x, max_rates=RATES)
    rates = [
        maximum / (1 + np.exp(-theta))
        for maximum, theta in ((RATES.y, parameters.theta_y), (RATES.a, parameters.theta_a))
    ]
    circuit = oc.Circuit(
        parameters.w_r, np.minimum(np.exp(parameters.log_w), 1), state.b1, state.b0, 0.7, *(1 / rate for rate in rates)
    )
    z = np.maximum(parameters.w_zx @ x, 0)
    slope = oc.vector_field(circuit, oc.State(state.y, state.a), z, variant="rectified_recurrence")
    np.testing.assert_allclose(new.y, state.y + slope.y, rtol=1e-12)
    np.testing.assert_allclose(new.a, state.a + slope.a, rtol=1e-12)
    abscissa = cell_jacobian_abscissa(parameters, state, x, max_rates=RATES)
    want = oc.spectral_abscissa(circuit, oc.State(state.y, state.a), variant="rectified_recurrence")
    np.testing.assert_allclose(abscissa, want, rtol=1e-10)


@pytest.mark.library("numpy", "torch", "jax")
@pytest.mark.parametrize("variant", CELL_VARIANTS)
@pytest.mark.parametrize("recurrent", ["orthogonal", "identity"])
def test_jacobian_of_the_step_is_its_derivative(xp64: Library, variant: str, recurrent: str) -> None:
    """Automatic differentiation in torch and jax; central differences elsewhere."""
    parameters, state, x = random_cell(recurrent=recurrent)
    given, drive, n = xp64.tree(parameters), xp64.array(x), len(state.y)
    ns = xp64.namespace

    def stepped(packed: Any) -> Any:
        parts = oc.CellState(*(packed[k * n : (k + 1) * n] for k in range(4)))
        return ns.concat(list(oc.cell_step(given, parts, drive, max_rates=RATES, variant=variant)))

    want = numpy_tree(oc.get_backend(ns).jacobian(stepped, xp64.array(np.concatenate(state))))
    found = oc.cell_jacobian(given, xp64.tree(state), drive, max_rates=RATES, variant=variant)
    exact = xp64.name in ("torch", "jax")
    np.testing.assert_allclose(numpy_tree(found), want, rtol=0, atol=1e-12 if exact else 1e-7)


@pytest.mark.library("numpy", "torch", "jax")
def test_jacobians_with_gains_of_any_sign(xp64: Library) -> None:
    """A step takes gains that are zero or negative, and so do its derivatives."""
    parameters, state, x = random_cell()
    state = state._replace(b0=state.b0 * [1, 0, -1, 1], b1=state.b1 * [0, 1, -1, 1])
    given, there, drive = xp64.tree(parameters), xp64.tree(state), xp64.array(x)
    found = oc.cell_jacobian(given, there, drive, max_rates=RATES)
    flat = np.concatenate(state)
    moves = 1e-6 * np.eye(16)
    many = oc.CellState(*np.split(np.concatenate([flat + moves, flat - moves]), 4, axis=-1))
    plus, minus = np.split(np.concatenate(oc.cell_step(parameters, many, x, max_rates=RATES), axis=-1), 2)
    xp64.assert_close(found, (plus - minus).T / 2e-6, rtol=0, atol=1e-8)
    other = oc.CellState(state.y, state.a, np.ones(4), np.ones(4))
    want = cell_jacobian_abscissa(parameters, other, x, max_rates=RATES)
    xp64.assert_close(cell_jacobian_abscissa(given, there, drive, max_rates=RATES), want, rtol=1e-10)


def test_jacobian_of_the_step_in_a_batch(xp: Library) -> None:
    """Of states and of inputs: member by member."""
    parameters, state, x = random_cell()
    given = xp.tree(parameters)
    states = oc.CellState(*(np.stack([part, 0.5 * part]) for part in state))
    inputs = np.stack([x, -x, 2 * x])
    found = numpy_tree(oc.cell_jacobian(given, xp.tree(states), xp.array(x), max_rates=RATES))
    many = numpy_tree(oc.cell_jacobian(given, xp.tree(state), xp.array(inputs), max_rates=RATES))
    assert (found.shape, many.shape) == ((2, 16, 16), (3, 16, 16))
    tolerance = 100 * xp.eps
    for k in range(2):
        one = oc.cell_jacobian(parameters, oc.CellState(*(part[k] for part in states)), x, max_rates=RATES)
        np.testing.assert_allclose(found[k], one, rtol=tolerance, atol=tolerance)
    for k in range(3):
        one = oc.cell_jacobian(parameters, state, inputs[k], max_rates=RATES)
        np.testing.assert_allclose(many[k], one, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("field", [*oc.CellParameters._fields, "y", "a", "b0", "b1", "x"])
def test_jacobian_where_one_array_alone_has_a_batch_axis(xp: Library, field: str) -> None:
    """Whichever it is: member by member, and so is the largest real part of the eigenvalues."""
    parameters, state, x = random_cell()
    values = {**parameters._asdict(), **state._asdict(), "x": x}
    scales = np.array([1.0, 0.7])
    members = [values | {field: scale * values[field]} for scale in scales]
    whole = values | {field: np.multiply.outer(scales, values[field])}
    if field == "sigma":
        whole[field] = whole[field][:, None]

    def parts(values: dict[str, Any]) -> tuple[Any, Any, Any]:
        return (
            oc.CellParameters(*(values[name] for name in oc.CellParameters._fields)),
            oc.CellState(*(values[name] for name in oc.CellState._fields)),
            values["x"],
        )

    given, there, drive = parts(whole)
    arguments = xp.tree(given), xp.tree(there), xp.array(drive)
    tolerance = 100 * xp.eps
    for function in (oc.cell_jacobian, cell_jacobian_abscissa):
        want = np.stack([function(*parts(member), max_rates=RATES) for member in members])
        found = numpy_tree(function(*arguments, max_rates=RATES))
        np.testing.assert_allclose(found, want, rtol=tolerance, atol=tolerance)


# The start.


@pytest.mark.parametrize(("k", "n"), [(1, 64), (28, 16), (3, 1)])
def test_initialization(k: int, n: int) -> None:
    """The properties SPEC section 8 lists."""
    p, start = oc.init_cell(0, k, n)
    np.testing.assert_allclose(np.linalg.norm(p.w_zx, 2), 1.0, rtol=1e-12)
    np.testing.assert_allclose(p.w_r @ p.w_r.T, np.eye(n), atol=1e-12)
    assert (np.diag(p.log_w) == 0).all()
    off = np.exp(p.log_w[~np.eye(n, dtype=bool)])
    assert ((off > 0) & (off <= 1)).all()
    for matrix, fan_in in ((p.w_bx0, k), (p.w_by0, n), (p.w_ba0, n), (p.w_bx1, k), (p.w_by1, n), (p.w_ba1, n)):
        assert matrix.shape == (n, fan_in)
        assert np.max(np.abs(matrix)) <= 1 / np.sqrt(fan_in)
    if n == 64:  # uniform, each in its range: means and variances of thousands of numbers
        # five standard errors: a variance of N uniform numbers is known to sqrt(0.8 / N) of itself
        np.testing.assert_allclose([off.mean(), off.var()], [1 / 2, 1 / 12], rtol=5 * np.sqrt(0.8 / off.size))
        np.testing.assert_allclose(p.w_by0.var() * n, 1 / 3, rtol=5 * np.sqrt(0.8 / p.w_by0.size))
        assert abs(p.w_by0.mean()) < 5 * np.sqrt(1 / (3 * n) / p.w_by0.size)
    for theta in (p.theta_y, p.theta_a, p.theta_b0, p.theta_b1):
        assert (theta == 0).all()
    assert p.sigma == 1.0
    np.testing.assert_allclose(np.linalg.norm(start.y), 1.0, rtol=1e-12)
    assert (start.y >= 0).all()
    for part in (start.a, start.b1):
        assert ((part >= 0) & (part < 1)).all()
    assert (start.b0 == 1).all()


def test_initialization_is_reproducible_and_of_any_dtype() -> None:
    """One seed, one cell; another seed, another; the fixed identity is None."""
    one, again, other = (oc.init_cell(seed, 2, 5)[0].w_r for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    parameters, start = oc.init_cell(3, 2, 5, recurrent="identity", dtype=np.float32)
    assert parameters.w_r is None
    assert {value.dtype for value in (*parameters, *start) if value is not None} == {np.dtype(np.float32)}


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_oscillators_remember_and_decay(n: int) -> None:
    """Pairs that turn, one rate a pair, evenly spread in the logarithm; every mode of the step within the circle."""
    rates = oc.MaxRates(y=0.8, a=0.2, b=0.5)
    p, start = oc.init_cell(0, 1, n, initialization="oscillators", rate_spread=160, max_rates=rates)
    rate = oc.cell.cell_rates(np, p, rates).y
    np.testing.assert_allclose(rate.max(), 0.4, rtol=1e-12)
    if n > 2:
        np.testing.assert_allclose(rate.min(), 0.4 / 160, rtol=1e-12)
    pairs = rate[: n // 2 * 2].reshape(-1, 2)
    np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])
    steps = np.diff(np.log(np.sort(np.concatenate([pairs[:, 0], rate[n // 2 * 2 :]]))))
    np.testing.assert_allclose(steps, steps.mean() if len(steps) else 0.0, rtol=1e-9)
    skew = p.w_r - np.eye(n)
    np.testing.assert_array_equal(skew, -skew.T)
    assert (np.count_nonzero(skew, axis=1)[: n // 2 * 2] == 1).all()
    root_a = 0.5  # a at rest
    modes = np.linalg.eigvals(np.eye(n) + rate[:, None] * ((1 - root_a) * p.w_r - np.eye(n)))
    assert (np.abs(modes) < 1).all()
    if n == 64:
        assert np.abs(np.angle(modes)).max() > 0.1
    usual, usual_start = oc.init_cell(0, 1, n)
    np.testing.assert_array_equal(p.w_zx, np.abs(usual.w_zx))
    np.testing.assert_allclose(np.exp(p.log_w), np.exp(usual.log_w) / max(n / 2, 1), rtol=1e-12)
    for name in set(p._fields) - {"w_zx", "w_r", "log_w", "theta_y"}:
        np.testing.assert_array_equal(getattr(p, name), getattr(usual, name))
    for one, other in zip(start, usual_start, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_spread_of_rates() -> None:
    """Rates of y from half of the largest downwards, in random order, and everything else as without."""
    p, _ = oc.init_cell(3, 2, 5, rate_spread=16.0)
    usual, _ = oc.init_cell(3, 2, 5)
    rate = np.sort(oc.cell.cell_rates(np, p, oc.MaxRates(y=1.0)).y)
    np.testing.assert_allclose(rate, 0.5 / np.array([16.0, 8.0, 4.0, 2.0, 1.0]), rtol=1e-12)
    for name in set(p._fields) - {"theta_y"}:
        np.testing.assert_array_equal(getattr(p, name), getattr(usual, name))


# Extremes.


def test_slow_rates_keep_their_digits(xp: Library) -> None:
    """In float32, too, where 1 + tanh has lost them."""
    theta = np.float32([-80.0, -40.0, -17.0, -9.2, -1.0, 0.0, 3.0, 30.0])
    p = oc.init_cell(0, 1, 8)[0]._replace(theta_y=theta)
    found = oc.cell.cell_rates(xp.namespace, xp.tree(p), oc.MaxRates(y=0.5)).y
    want = 0.5 / (1.0 + np.exp(-theta.astype(np.float64)))
    xp.assert_close(found, want, rtol=1e-14)


def test_closed_gates_keep_their_digits(xp: Library) -> None:
    """In float32, too, where 1 + tanh has lost them; b0 goes to sigmoid(-12.3)."""
    p, state = oc.init_cell(0, 1, 4)
    p = p._replace(w_bx0=np.full((4, 1), -12.3), w_by0=np.zeros((4, 4)), w_ba0=np.zeros((4, 4)))
    options = {"max_rates": oc.MaxRates(1.0, 1.0, 2.0)}  # times 0.5: in one step
    last, _ = oc.cell_sequence(
        xp.tree(p._replace(theta_b0=np.zeros(4))), xp.tree(state), xp.array(np.ones((3, 1))), **options
    )
    xp.assert_close(last.b0, np.full(4, 1.0 / (1.0 + np.exp(12.3))), rtol=1e-13)


def test_saturated_gains_and_rates(xp: Library) -> None:
    """Huge inputs and thetas: sigmoids at 0 and 1 exactly, and nothing is NaN."""
    parameters, state, _ = random_cell()
    fast, slow = np.full(4, 1e4), np.full(4, -1e4)
    gains = {name: np.zeros((4, 4)) for name in ("w_by0", "w_ba0", "w_by1", "w_ba1")}
    extreme = parameters._replace(
        theta_y=slow,
        theta_a=slow,
        theta_b0=fast,
        theta_b1=fast,
        w_bx0=np.full((4, 3), 1e6),
        w_bx1=np.full((4, 3), -1e6),
        **gains,
    )
    new = oc.cell_step(xp.tree(extreme), xp.tree(state), xp.array(np.ones(3)), max_rates=oc.MaxRates(1.0, 1.0, 1.0))
    xp.assert_close(new.y, state.y, rtol=1e-15)
    xp.assert_close(new.a, state.a, rtol=1e-15)
    xp.assert_close(new.b0, np.ones(4), rtol=1e-15)
    xp.assert_close(new.b1, np.zeros(4), atol=1e-15)


def test_normalization_weights_saturate_at_one(xp: Library) -> None:
    """W = min(exp(V), 1): V of 0, 3 and 1e4 are all the same; V of -1e4 is no connection."""
    parameters, state, x = random_cell()
    state = state._replace(a=np.abs(state.a))
    results = []
    for value in (0.0, 3.0, 1e4, -1e4):
        weights = xp.tree(parameters._replace(log_w=np.full((4, 4), value)))
        new = oc.cell_step(weights, xp.tree(state), xp.array(x), max_rates=RATES)
        results.append(numpy_tree(new.a))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    rate = RATES.a / (1 + np.exp(-parameters.theta_a))
    xp.assert_close(xp.array(results[3]), state.a + rate * (-state.a + (0.7 * state.b0) ** 2), rtol=1e-12)


# What is refused.


@pytest.mark.parametrize(
    "function", [oc.cell_step, oc.cell_sequence, oc.parallel_cell_sequence, oc.cell_lyapunov_exponent]
)
def test_largest_rates_and_starts_that_do_not_fit(function: Callable[..., Any]) -> None:
    """Three positive rates, also as arrays; a start state of the batch of the inputs, or of fewer axes."""
    p, state, x = random_cell()
    sequence = function is not oc.cell_step
    xs = np.ones((5, *x.shape)) if sequence else x
    for rates, message in ((3, "got int"), ((1, 2), "got tuple of 2"), ("high", "got str")):
        with pytest.raises(TypeError, match=rf"max_rates must be MaxRates\(y, a, b\), {message}"):
            function(p, state, xs, max_rates=rates)
    with pytest.raises(ValueError, match=r"max_rates.a must be .*-1"):
        function(p, state, xs, max_rates=(1, -1, 1))
    with pytest.raises(ValueError, match=r"max_rates.b must be .*-1"):
        function(p, state, xs, max_rates=(1, 1, np.float32(-1)))
    function(p, state, xs, max_rates=tuple(np.asarray([0.1, 0.1, 0.1])))
    if sequence:
        many = oc.CellState(*(np.broadcast_to(part, (3, 4)) for part in state))
        function(p, state, np.ones((5, 3, 3)))
        function(p, many, np.ones((5, 3, 3)))
        for shape in ((5, 2, 3), (5, 3)):
            with pytest.raises(
                ValueError, match=r"state.y has shape \(3, 4\), whose batch axes \(3,\) do not fit those"
            ):
                function(p, many, np.ones(shape))


def test_what_a_cell_refuses() -> None:
    """By the name of the argument, with its shape or value and what is wanted; a batch of cells is none of it."""
    p, state, x = random_cell()  # 4 units, 3 inputs
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: oc.cell_step(tuple(p), state, x), TypeError, "parameters must be CellParameters, got tuple"),
        (lambda: oc.cell_step([*p], state, x), TypeError, "parameters must be CellParameters, got list"),
        (lambda: oc.cell_step(p, state[:3], x), TypeError, "state must be a CellState(y, a, b0, b1), got tuple"),
        (lambda: oc.cell_step(p, [*state], x), TypeError, "state must be a CellState(y, a, b0, b1), got list"),
        (lambda: oc.cell_step(p._replace(log_w=np.ones((4, 3))), state, x), ValueError, "log_w must be square, of"),
        *(
            (
                lambda name=name: oc.cell_step(p._replace(**{name: np.ones((3, 3))}), state, x),
                ValueError,
                f"{name} must be square, of shape (..., 4, 4), got shape (3, 3)",
            )
            for name in ("w_r", "w_by0", "w_ba0", "w_by1", "w_ba1")
        ),
        *(
            (
                lambda name=name: oc.cell_step(p._replace(**{name: np.ones((3, 3))}), state, x),
                ValueError,
                f"{name} must have shape (..., 4, 3), got shape (3, 3)",
            )
            for name in ("w_zx", "w_bx0", "w_bx1")
        ),
        *(
            (
                lambda name=name: oc.cell_step(p._replace(**{name: np.ones(1)}), state, x),
                ValueError,
                f"{name} must have shape (..., 4), got shape (1,)",
            )
            for name in ("theta_y", "theta_a", "theta_b0", "theta_b1")
        ),
        (
            lambda: oc.cell_step(p._replace(sigma=np.ones(3)), state, x),
            ValueError,
            "sigma must have shape (..., 4) or a scalar, got shape (3,)",
        ),
        *(
            (
                lambda name=name: oc.cell_step(p, state._replace(**{name: np.ones(1)}), x),
                ValueError,
                f"state.{name} must have shape (..., 4), got shape (1,)",
            )
            for name in state._fields
        ),
        (lambda: oc.cell_step(p, state, np.ones(4)), ValueError, "x must have shape (..., 3), got shape (4,)"),
        (lambda: oc.cell_step(p, state, 1.0), TypeError, "x must be an array, got the number 1.0"),
        (
            lambda: oc.cell_step(p._replace(theta_y=0.0), state, x),
            TypeError,
            "theta_y must be an array, got the number",
        ),
        (lambda: oc.cell_step(p._replace(w_zx=None), state, x), TypeError, "w_zx must be an array of numpy, torch"),
        (
            lambda: oc.cell_sequence(p, state, x),
            ValueError,
            "xs must have shape (T, ..., k) with T >= 1, got shape (3,)",
        ),
        (
            lambda: oc.cell_sequence(p, state, np.ones((0, 3))),
            ValueError,
            "xs must have shape (T, ..., k) with T >= 1, got shape (0, 3)",
        ),
        (lambda: oc.init_cell(0, 0, 3), ValueError, "input_size must be at least 1, got 0"),
        (lambda: oc.init_cell(0, 3, 0), ValueError, "hidden_size must be at least 1, got 0"),
        (lambda: oc.init_cell(0, 3, 3, rate_spread=0.9), ValueError, "rate_spread must be at least 1, got 0.9"),
        (lambda: oc.init_cell(0, 3, 3, rate_spread=-1), ValueError, "rate_spread must be positive and finite, got -1"),
        (
            lambda: oc.init_cell(0, 3, 3, recurrent="identity", initialization="oscillators"),
            ValueError,
            "oscillators need recurrent weights, and recurrent is 'identity'",
        ),
        (lambda: oc.init_cell(0, 3, 3, max_rates=(1, 1)), TypeError, "max_rates must be MaxRates(y, a, b), got tuple"),
        (
            lambda: oc.init_cell(0, 3, 3, max_rates="auto"),
            ValueError,
            "max_rates='auto' needs steps=, the number of steps",
        ),
        (lambda: oc.init_cell(0, 3, 3, max_rates="fast"), ValueError, "unknown max_rates 'fast'; choose one of 'auto'"),
        (
            lambda: check_max_rates((1, 1, 1), 8),
            ValueError,
            "steps is for max_rates='auto', got steps 8 with max_rates (1",
        ),
        (lambda: oc.rates_for(0), ValueError, "steps must be at least 1, got 0"),
        (lambda: oc.init_cell(0, 3, 3, max_rates=0.1), TypeError, "max_rates must be MaxRates(y, a, b), got float"),
        *(
            (
                lambda k=k: oc.init_cell(0, 3, 3, max_rates=[0.1 * (i != k) for i in range(3)]),
                ValueError,
                f"max_rates.{name} must be positive and finite, got 0",
            )
            for k, name in enumerate("yab")
        ),
        *(
            (
                lambda call=call, xs=xs: call(p, state, xs, variant="rectified"),
                ValueError,
                "unknown variant 'rectified'; choose",
            )
            for call, xs in ((oc.cell_step, x), (oc.cell_sequence, x[None]), (cell_jacobian_abscissa, x))
        ),
        (lambda: oc.init_cell(0, 3, 3, recurrent="zero"), ValueError, "unknown recurrent 'zero'; choose one of 'orth"),
        (lambda: oc.init_cell(0, 3, 3, initialization="zero"), ValueError, "unknown initialization 'zero'; choose one"),
    ]
    for call, kind, said in cases:
        with pytest.raises(kind, match=f"^{re.escape(said)}"):
            call()
    many = p._replace(w_zx=np.stack([p.w_zx] * 2), w_by0=np.stack([p.w_by0] * 2), sigma=0.7)
    one, both = oc.cell_step(p._replace(sigma=0.7), state, x), oc.cell_step(many, state, x)
    for part, want in zip(both, one, strict=True):
        np.testing.assert_allclose(part, np.broadcast_to(want, part.shape), rtol=1e-12)
    assert both.y.shape == (2, 4)
    assert oc.init_cell(0, 3, 3, rate_spread=1)[0].theta_y.tolist() == [0.0, 0.0, 0.0]


# Gradients.


def loss(parameters: oc.CellParameters, start: oc.CellState, xs: Any) -> Any:
    """A scalar of the last state and of all outputs."""
    final, ys = oc.cell_sequence(parameters, start, xs, max_rates=RATES)
    total = (ys * ys).sum() + ys.sum()
    for part in final:
        total = total + (part * part).sum()
    return total


@pytest.mark.library("torch", "jax")
@pytest.mark.parametrize("recurrent", ["orthogonal", "identity"])
def test_gradients_are_finite_differences(xp64: Library, recurrent: str) -> None:
    """Of every parameter, the start state and the inputs, in double precision, along random directions."""
    parameters, state, _ = random_cell(recurrent=recurrent)
    state = state._replace(a=np.abs(state.a) + 0.1)
    xs = np.random.default_rng(2).standard_normal((4, 3))
    arguments = (parameters, state, (xs,))
    gradients = gradient(xp64, lambda tree: loss(tree[0], tree[1], tree[2][0]), arguments)
    rng = np.random.default_rng(3)
    for group, (fields, slopes) in enumerate(zip(arguments, gradients, strict=True)):
        for i, (value, slope) in enumerate(zip(fields, slopes, strict=True)):
            if value is None:
                assert slope is None
                continue
            direction = rng.standard_normal(np.shape(value))
            log_w = group == 0 and parameters._fields[i] == "log_w"
            if log_w:  # W saturates at V = 0: differences on one side of it only
                direction = np.where(np.abs(value) < 0.05, 0.0, direction)

            def along(
                h: float, group: int = group, i: int = i, value: Any = value, direction: Any = direction
            ) -> float:
                parts = list(arguments[group])
                parts[i] = value + h * direction
                changed = list(arguments)
                changed[group] = type(arguments[group])._make(parts) if group < 2 else tuple(parts)
                return float(loss(changed[0], changed[1], changed[2][0]))

            np.testing.assert_allclose(np.sum(slope * direction), central_difference(along), rtol=1e-7, atol=1e-8)


@pytest.mark.library("torch", "jax")
def test_gradients_at_the_kinks_are_finite(xp: Library) -> None:
    """a = 0 under the square root, y = 0, V = 0 (where training starts): no NaN, and V's gradient is exp's."""
    parameters, _, _ = random_cell()
    parameters = parameters._replace(log_w=np.zeros((4, 4)))
    state = oc.CellState(np.array([0.0, 0.5, -0.5, 1.0]), np.array([0.0, -0.1, 0.5, 1.0]), np.ones(4), np.ones(4))
    xs = np.zeros((3, 3))
    gradients = gradient(xp, lambda tree: loss(tree[0], tree[1], tree[2][0]), (parameters, state, (xs,)))
    for fields in gradients:
        for slope in fields:
            assert slope is None or np.isfinite(slope).all()
    assert np.abs(gradients[0].log_w).max() > 0
