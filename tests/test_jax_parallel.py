"""implementation="parallel" in jax: the sequential numbers and gradients, its fallback, its reports, advice."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_jax_adapter import assert_trees_close

import organics_jax
from organics_core import CellState, MaxRates
from organics_jax import ORGaNICs, ORGaNICsCell, parallel
from organics_jax.sequence import sequence

KEY = jax.random.key(7)
T, N, K, H = 40, 3, 2, 5


def inputs(dtype=jnp.float64, steps=T):
    return jax.random.normal(jax.random.key(1), (steps, N, K), dtype=dtype)


def with_gradients(implementation, cell, xs):
    """Values and all gradients of a sequence, compiled."""
    dtype = xs.dtype
    start = jax.tree.map(lambda p: p + 0.1 * jnp.arange(3, dtype=dtype)[:, None], cell.initial_state((N,)))

    def loss(cell, start, xs):
        options = {"max_rates": cell.max_rates, "variant": cell.variant, "implementation": implementation}
        final, ys = sequence(cell.effective(), start, xs, **options)
        weights = jnp.arange(ys.size, dtype=dtype).reshape(ys.shape) % 7 - 3.0
        return jnp.sum(weights * ys) + sum(jnp.sum((i + 1) * part**2) for i, part in enumerate(final)), (final, ys)

    arguments = eqx.filter((cell, start, xs), eqx.is_array)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arguments)


def unstable(**options):
    """A cell whose largest Lyapunov exponent is positive."""
    cell = ORGaNICsCell(
        K, H + 1, key=KEY, variant="main", max_rates=MaxRates(0.5, 0.5, 0.5), initialization="oscillators", **options
    )
    return eqx.tree_at(lambda c: c.parameters.w_r, cell, 2 * cell.parameters.w_r)


@pytest.mark.parametrize(
    ("variant", "recurrent", "dtype"),
    [
        ("rectified_recurrence", "orthogonal", "float64"),  # compiled for each, which takes seconds
        ("rectified_recurrence", "identity", "float32"),
        ("main", "identity", "float64"),
        ("main", "spectral", "float64"),
        ("main", "spectral", "float32"),
    ],
)
def test_values_and_gradients_are_the_sequential_ones(variant, recurrent, dtype, monkeypatch):
    cell = ORGaNICsCell(K, H, key=KEY, recurrent=recurrent, variant=variant, dtype=dtype)
    xs = inputs(dtype)
    (_, values), gradients = with_gradients("reference", cell, xs)

    def spoiled(*arguments):  # what is computed one by one counts as wrong
        return jax.tree.map(lambda x: jnp.nan * x, sequential(*arguments))

    sequential = parallel._sequential
    monkeypatch.setattr(parallel, "_sequential", spoiled)
    (_, found), derivatives = with_gradients("parallel", cell, xs)
    one, two = (1e-10, 1e-10) if dtype == "float64" else (1e-5, 5e-5)
    for tolerance, mine, others in ((one, found, values), (two, derivatives, gradients)):
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(others), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.max(jnp.abs(b))))


def test_where_the_states_do_not_converge_the_steps_are_run_one_by_one():
    cell, xs = unstable(dtype=jnp.float64), inputs(steps=128)
    layer = eqx.tree_at(lambda m: m.cells[0].parameters.w_r, _layer_of(cell), cell.parameters.w_r)
    (report,) = organics_jax.parallel_report(layer, xs)
    assert not report.converged
    results = [with_gradients(name, cell, xs) for name in ("parallel", "chunked")]
    assert_trees_close(*results, rtol=1e-12)


def _layer_of(cell):
    return ORGaNICs(
        K, cell.hidden_size, key=KEY, variant="main", max_rates=cell.max_rates, initialization="oscillators",
        dtype=jnp.float64,
    )  # fmt: skip


def test_where_the_adjoints_do_not_converge_neither(monkeypatch):
    cell, xs = ORGaNICsCell(K, H, key=KEY, dtype=jnp.float64), inputs()
    wanted, solve = with_gradients("reference", cell, xs), parallel.solve_adjoint
    monkeypatch.setattr(parallel, "solve_adjoint", lambda *arguments: solve(*arguments, max_iterations=1))
    assert_trees_close(with_gradients("parallel", cell, xs), wanted, rtol=1e-9)


@pytest.mark.slow
def test_layers_transforms_and_an_empty_batch():
    layer = ORGaNICs(K, H, num_layers=2, key=KEY, implementation="parallel", dtype=jnp.float64)
    other = ORGaNICs(K, H, num_layers=2, key=KEY, implementation="reference", dtype=jnp.float64)
    xs = inputs()
    assert_trees_close(layer(xs), other(xs), rtol=1e-9)
    assert_trees_close(layer(xs[:, 0]), other(xs[:, 0]), rtol=1e-9)
    assert_trees_close(
        jax.vmap(lambda x: layer(x), in_axes=1)(xs), jax.vmap(lambda x: other(x), in_axes=1)(xs), rtol=1e-9
    )
    assert layer(xs[:, :0])[0].shape == (T, 0, H)
    lengths = jnp.array([T, 7, 20])
    assert_trees_close(layer(xs, lengths=lengths), other(xs, lengths=lengths), rtol=1e-9)


def test_reports_and_advice():
    layer = ORGaNICs(K, H, num_layers=2, key=KEY, batch_first=True)
    xs = jnp.swapaxes(inputs(jnp.float32), 0, 1)
    reports = organics_jax.parallel_report(layer, xs)
    assert [type(value) for value in reports[1]] == [bool, int, float, float]
    assert all(report.converged and report.iterations < 20 and report.change <= 1e-6 for report in reports)
    hx = CellState(*(0.5 * jnp.ones((2, N, H)) for _ in range(4)))
    assert organics_jax.parallel_report(layer, xs, hx) != reports
    advice = organics_jax.parallel_advice(layer, xs)
    assert advice.exponent < 0
    assert advice.iterations == max(report.iterations for report in reports)
    assert advice.pays == (advice.seconds_parallel < advice.seconds_sequential)
    assert f"{advice.iterations} iterations" in advice.reason


def test_bad_arguments():
    layer = ORGaNICs(K, H, key=KEY)
    with pytest.raises(TypeError, match="layer must be an ORGaNICs layer, got"):
        organics_jax.parallel_report(layer.cells[0], inputs())
    with pytest.raises(ValueError, match="inputs must have shape"):
        organics_jax.parallel_advice(layer, jnp.ones((4, 2, K + 1)))
    with pytest.raises(ValueError, match="steps must be"):
        organics_jax.parallel_advice(layer, inputs(), steps=0)


def test_nothing_to_advise_on():
    layer = ORGaNICs(K, H, key=KEY)
    assert organics_jax.parallel_report(layer, jnp.zeros((4, 0, K))) == ()
    advice = organics_jax.parallel_advice(layer, jnp.zeros((4, 0, K)))
    assert (advice.pays, advice.reason) == (False, "there was nothing to compute")
    with pytest.raises(ValueError, match="layer must have one direction"):
        organics_jax.parallel_report(ORGaNICs(K, H, key=KEY, bidirectional=True), inputs())


def test_bfloat16():
    """Whose rounding is far above the tolerance: it converges where an update is zero, or falls back."""
    results = []
    for name in ("parallel", "reference"):
        layer = ORGaNICs(K, H, key=KEY, implementation=name, dtype=jnp.bfloat16)
        results.append(eqx.filter_jit(layer)(inputs(jnp.bfloat16))[0])
    assert results[0].dtype == jnp.bfloat16
    assert_trees_close(*(value.astype(jnp.float64) for value in results), rtol=0, atol=2e-2)


def test_other_derivatives_are_refused():
    """From a state at rest the iterations stop at once, and their derivatives were wrong in the second digit."""
    cell = ORGaNICsCell(K, H, key=KEY, dtype=jnp.float64)
    start, xs = cell.initial_state(()), jnp.full((4, K), 0.5)

    def loss(xs):
        return sequence(cell.effective(), start, xs, implementation="parallel")[1].sum()

    for derivative in (jax.jacfwd(loss), jax.hessian(loss), jax.jacrev(jax.grad(loss))):
        with pytest.raises(TypeError, match=r"implementation 'parallel' has first derivatives|custom_vjp"):
            derivative(xs)
    _, pull = jax.vjp(loss, xs)
    with pytest.raises(TypeError, match="implementation 'parallel' has first derivatives in reverse mode"):
        jax.jvp(pull, (1.0,), (1.0,))
