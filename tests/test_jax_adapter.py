"""organics_jax: the recurrent layers against the core's cell, in values and gradients."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import run_python, two_devices

import organics_core as oc
from organics_core.cell import CellState, MaxRates, cell_rates
from organics_jax import ORGaNICs, ORGaNICsCell, ORGaNICsClassifier, fit, trainable
from organics_jax.sequence import sequence
from organics_jax.training import largest_abscissa

KEY = jax.random.key(7)
RATES = MaxRates(y=0.3, a=0.2, b=0.4)


def assert_trees_close(actual, desired, rtol=1e-10, atol=1e-12):
    actual, desired = jax.tree.leaves(actual), jax.tree.leaves(desired)
    assert len(actual) == len(desired)
    for a, d in zip(actual, desired, strict=True):
        np.testing.assert_allclose(a, d, rtol=rtol, atol=atol)


@pytest.mark.parametrize("recurrent", ["orthogonal", "identity", "spectral"])
@pytest.mark.parametrize("variant", ["rectified_recurrence", "main"])
def test_derivative_by_hand_is_that_of_the_core(recurrent, variant):
    """Values and every gradient of the chunked sequence, chunks that do not divide the length included."""
    cell = ORGaNICsCell(2, 5, key=KEY, recurrent=recurrent, variant=variant, max_rates=RATES, dtype=jnp.float64)
    xs = jax.random.normal(jax.random.key(1), (11, 3, 2))
    start = jax.tree.map(lambda p: p + 0.1 * jnp.arange(3.0)[:, None], cell.initial_state((3,)))

    def loss(implementation, cell, start, xs):
        final, ys = sequence(
            cell.effective(), start, xs, max_rates=RATES, variant=variant, implementation=implementation, chunk=4
        )
        weights = jnp.arange(ys.size).reshape(ys.shape) % 7 - 3.0
        return jnp.sum(weights * ys) + sum(jnp.sum((i + 1) * part**2) for i, part in enumerate(final)), (final, ys)

    results = [
        jax.jit(jax.value_and_grad(lambda *v, name=name: loss(name, *v), argnums=(0, 1, 2), has_aux=True))(
            *eqx.filter((cell, start, xs), eqx.is_array)
        )
        for name in ("chunked", "reference")
    ]
    assert_trees_close(*results)
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(results[0][1][1:]))


def test_layer_is_the_cell_repeated_and_the_cell_is_the_core():
    layer = ORGaNICs(2, 4, num_layers=2, key=KEY, max_rates=RATES, dtype=jnp.float64)
    xs = jax.random.normal(jax.random.key(1), (6, 3, 2))
    output, hn = layer(xs)
    states = [cell.initial_state((3,)) for cell in layer.cells]
    for step, x in enumerate(xs):
        for index, cell in enumerate(layer.cells):
            core = oc.cell_step(cell.effective(), states[index], x, max_rates=RATES)
            states[index] = cell(x, states[index])
            assert_trees_close(states[index], core, rtol=1e-14)
            x = states[index].y
        np.testing.assert_allclose(output[step], x, rtol=1e-12)
    assert_trees_close(hn, CellState(*map(jnp.stack, zip(*states, strict=True))), rtol=1e-12)


def test_conventions_of_axes():
    layer = ORGaNICs(2, 4, num_layers=2, key=KEY)
    first = ORGaNICs(2, 4, num_layers=2, key=KEY, batch_first=True)
    xs = jax.random.normal(jax.random.key(1), (6, 3, 2))
    output, hn = layer(xs)
    swapped, hn_first = first(jnp.swapaxes(xs, 0, 1))
    np.testing.assert_array_equal(output, jnp.swapaxes(swapped, 0, 1))
    assert output.shape == (6, 3, 4)
    assert hn.y.shape == hn_first.y.shape == (2, 3, 4)
    single, hn_single = layer(xs[:, 1])
    np.testing.assert_allclose(single, output[:, 1], rtol=1e-5, atol=1e-6)
    assert hn_single.a.shape == (2, 4)
    # two halves are the whole
    half, middle = layer(xs[:3])
    rest, end = layer(xs[3:], middle)
    assert_trees_close((jnp.concatenate([half, rest]), end), (output, hn), rtol=1e-5, atol=1e-6)


def test_lengths():
    """Each sequence of a padded batch is the sequence alone, whatever the padding holds."""
    layer = ORGaNICs(2, 4, num_layers=2, key=KEY, dtype=jnp.float64)
    lengths = jnp.asarray([2, 6, 4])
    xs = jax.random.normal(jax.random.key(1), (6, 3, 2))
    padded = jnp.where((jnp.arange(6)[:, None] < lengths)[..., None], xs, jnp.nan)

    def total(xs, lengths):
        output, hn = layer(xs, lengths=lengths)
        return jnp.sum(output**2) + jnp.sum(hn.a), (output, hn)

    gradient, (output, hn) = jax.jit(jax.grad(total, has_aux=True))(padded, lengths)
    for i, length in enumerate(lengths):
        alone, last = layer(xs[:length, i])
        np.testing.assert_allclose(output[:length, i], alone, rtol=1e-12)
        assert_trees_close(jax.tree.map(lambda p, i=i: p[:, i], hn), last, rtol=1e-12)
    assert not jnp.any(output[2:, 0])
    assert bool(jnp.all(jnp.isfinite(gradient)))
    for wrong, error in (
        (jnp.ones(3), TypeError),
        (jnp.asarray([1, 2]), ValueError),
        (jnp.asarray([0, 1, 7]), ValueError),
    ):
        with pytest.raises(error, match="lengths"):
            layer(xs, lengths=wrong)


def test_lengths_that_are_constants_of_a_compiled_function():
    layer = ORGaNICs(2, 4, key=KEY)
    xs = jax.random.normal(jax.random.key(1), (6, 3, 2))
    lengths = jnp.asarray([2, 6, 4])
    output, _ = jax.jit(lambda xs: layer(xs, lengths=lengths))(xs)
    np.testing.assert_allclose(output, layer(xs, lengths=lengths)[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="lengths must lie between 1 and the 6 steps"):
        jax.jit(lambda xs: layer(xs, lengths=np.asarray([2, 7, 4])))(xs)


@pytest.mark.parametrize("steps", [5, 40])
def test_a_batch_of_none(steps):
    layer = ORGaNICs(2, 3, key=KEY)
    value, gradient = eqx.filter_value_and_grad(lambda m: jnp.sum(m(jnp.ones((steps, 0, 2)))[0]))(layer)
    assert float(value) == 0.0
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_half_precision():
    """The norm of W_r is found in float32: half precision has no decomposition."""
    wide = ORGaNICs(2, 4, key=KEY, recurrent="spectral", dtype=jnp.float32)
    half = ORGaNICs(2, 4, key=KEY, recurrent="spectral", dtype=jnp.bfloat16)
    xs = jax.random.normal(jax.random.key(1), (6, 3, 2), jnp.float32)
    output, hn = half(xs)
    assert output.dtype == hn.b1.dtype == jnp.bfloat16
    unit = float(jnp.finfo(jnp.bfloat16).eps)  # a rounding in every step, of numbers around 1
    np.testing.assert_allclose(output.astype(jnp.float32), wide(xs)[0], atol=len(xs) * unit)


def test_float64_without_x64_says_so(request):
    request.addfinalizer(lambda: jax.config.update("jax_enable_x64", True))  # as conftest.py has it
    jax.config.update("jax_enable_x64", False)
    with pytest.warns(UserWarning, match="float64 requested .* is not available"):
        cell = ORGaNICsCell(1, 2, key=KEY, dtype=jnp.float64)
    assert cell.parameters.w_zx.dtype == jnp.float32


def test_leaves_to_a_file_and_back(tmp_path):
    model = ORGaNICsClassifier(2, 3, 4, num_layers=2, key=KEY)
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", model)
    like = ORGaNICsClassifier(2, 3, 4, num_layers=2, key=jax.random.key(8))
    read = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", like)
    xs = jax.random.normal(jax.random.key(1), (3, 6, 2))
    np.testing.assert_array_equal(read(xs), model(xs))
    assert not np.array_equal(like(xs), model(xs))


def test_what_is_trained():
    flags = trainable(ORGaNICs(1, 3, key=KEY))
    assert flags.cells[0].parameters.w_zx is True
    assert flags.cells[0].parameters.sigma is False
    assert flags.cells[0].start.y is False
    fixed = trainable(ORGaNICs(1, 3, key=KEY, learn_rates=False))
    assert fixed.cells[0].parameters.theta_y is False
    layer = ORGaNICs(1, 3, key=KEY, learn_rates=False)
    gradient = eqx.filter_grad(lambda m: jnp.sum(m(jnp.ones((4, 2, 1)))[0]))(layer)
    assert not jnp.any(gradient.cells[0].parameters.theta_y)
    assert jnp.any(gradient.cells[0].parameters.w_by1)


def test_spectral_keeps_the_norm_at_one():
    cell = ORGaNICsCell(1, 6, key=KEY, recurrent="spectral")
    grown = eqx.tree_at(lambda c: c.parameters.w_r, cell, 3.0 * cell.parameters.w_r)
    assert float(jnp.linalg.norm(grown.effective().w_r, 2)) == pytest.approx(1.0, rel=1e-5)
    shrunk = eqx.tree_at(lambda c: c.parameters.w_r, cell, 0.5 * cell.parameters.w_r)
    np.testing.assert_array_equal(shrunk.effective().w_r, 0.5 * cell.parameters.w_r)


def test_jit_vmap_and_ensembles():
    """Compiled equals eager; vmap over inputs equals the batch; keys make ensembles."""
    layer = ORGaNICs(2, 3, key=KEY)
    xs = jax.random.normal(jax.random.key(1), (5, 4, 2))
    output, _ = layer(xs)
    np.testing.assert_allclose(eqx.filter_jit(layer)(xs)[0], output, rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(lambda x: layer(x)[0], in_axes=1, out_axes=1)(xs)
    np.testing.assert_allclose(mapped, output, rtol=1e-5, atol=1e-6)
    keys = jax.random.split(KEY, 2)
    ensemble = eqx.filter_vmap(lambda key: ORGaNICsCell(2, 3, key=key))(keys)
    np.testing.assert_array_equal(ensemble.parameters.w_zx[1], ORGaNICsCell(2, 3, key=keys[1]).parameters.w_zx)


@pytest.mark.parametrize("variant", ["rectified_recurrence", "main"])
@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_nan_comes_through(implementation, variant):
    """From the input, from its step on, into the states and the gradients, and into no other sequence."""
    layer = ORGaNICs(2, 5, key=KEY, implementation=implementation, variant=variant, max_rates=RATES, dtype=jnp.float64)
    xs = jax.random.normal(jax.random.key(1), (40, 3, 2)).at[7, 1, 0].set(jnp.nan)
    output, hn = layer(xs)
    wanted = np.zeros(output.shape, bool)
    wanted[7:, 1] = True
    np.testing.assert_array_equal(np.isnan(output), wanted)
    assert all(np.isnan(part[0, 1]).all() for part in hn)
    assert all(np.isfinite(part[0, ::2]).all() for part in hn)
    slope = eqx.filter_grad(lambda layer: layer(xs)[0].sum())(layer)
    assert bool(jnp.isnan(slope.cells[0].parameters.w_by0).any())


@pytest.mark.parametrize("variant", ["rectified_recurrence", "main"])
def test_second_derivatives(variant):
    """Both orders of the modes against the reference's, at a = 0 too."""
    layer = ORGaNICs(2, 4, key=KEY, variant=variant, max_rates=RATES, dtype=jnp.float64)
    xs, hx = jax.random.normal(jax.random.key(1), (5, 2)), jax.tree.map(lambda p: p[None], layer.cells[0].start)
    hx = hx._replace(a=hx.a.at[0, 0].set(0.0))

    def loss(implementation, xs):
        made = eqx.tree_at(lambda m: m.cells[0].parameters.log_w, layer, layer.cells[0].parameters.log_w)
        object.__setattr__(made, "implementation", implementation)
        return jnp.sum(made(xs, hx)[0] ** 2)

    wanted = jax.jit(jax.hessian(lambda xs: loss("reference", xs)))(xs)
    assert float(jnp.abs(wanted).max()) > 1e-4
    for again in (jax.jacrev, jax.jacfwd):
        assert_trees_close(jax.jit(again(jax.grad(lambda xs: loss("auto", xs))))(xs), wanted)


def test_forward_derivatives_need_the_reference():
    layer = ORGaNICs(1, 3, key=KEY, implementation="reference")
    xs = jnp.ones((4, 1))
    _, tangent = jax.jvp(lambda x: layer(x)[0], (xs,), (jnp.ones_like(xs),))
    assert bool(jnp.any(tangent != 0))


SHARDED = """
import numpy as np, jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from organics_jax import DivisiveNorm, ORGaNICsClassifier
import equinox as eqx
assert len(jax.devices()) == 2
model = ORGaNICsClassifier(3, 8, 4, key=jax.random.key(0))
x = jax.random.normal(jax.random.key(1), (8, 6, 3))
y = jnp.arange(8) % 4
@eqx.filter_jit
def gradient(model, x, y):
    loss = lambda m: -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(m(x)), y[:, None], 1))
    return eqx.filter_value_and_grad(loss)(model)
one = gradient(model, x, y)
rows = NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), P("batch"))
two = gradient(model, jax.device_put(x, rows), jax.device_put(y, rows))
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)
layer, steps = model.layer, jax.random.normal(jax.random.key(1), (8, 40, 3))
arrays, static = eqx.partition(layer, eqx.is_array)
mapped = jax.shard_map(lambda arrays, x: eqx.combine(arrays, static)(x)[0], mesh=rows.mesh,
                       in_specs=(P(), P("batch")), out_specs=P("batch"))
loss = lambda run: jax.jit(jax.value_and_grad(lambda arrays: jnp.sum(run(arrays, steps) ** 2)))(arrays)
one, two = loss(lambda arrays, x: eqx.combine(arrays, static)(x)[0]), loss(mapped)
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
norm, few = DivisiveNorm(3, 4, recurrent="spectral", key=jax.random.key(0)), steps[:, 0]  # a loop of the core
arrays, static = eqx.partition(norm, eqx.is_array)
mapped = jax.shard_map(lambda arrays, x: eqx.combine(arrays, static)(x), mesh=rows.mesh,
                       in_specs=(P(), P("batch")), out_specs=P("batch"))
np.testing.assert_allclose(jax.jit(mapped)(arrays, few), norm(few), rtol=2e-4, atol=1e-6)
print("same")
"""


def test_batch_sharded_over_two_devices():
    """Gradients do not depend on how many devices share the batch, by sharding the arrays or within shard_map."""
    done = run_python(SHARDED, **two_devices())
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("same")


def test_training_on_digits():
    """Plain Adam, nothing clipped; the caller's model is left alone; the records say what happened."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = (images[order] / 16).reshape(-1, 8, 8).astype(np.float32), labels[order]
    model = ORGaNICsClassifier(8, 32, 10, key=KEY, max_rates=MaxRates(y=1.0, a=0.5, b=0.1))
    before = jax.tree.leaves(eqx.filter(model, eqx.is_array))
    seen = []
    trained, records = fit(
        model,
        images[:1500],
        labels[:1500],
        epochs=16,
        batch_size=128,
        x_test=images[1500:],
        y_test=labels[1500:],
        on_epoch=seen.append,
        abscissa_every=8,
    )
    assert records == seen
    # rounding alone moves the end of a training as another seed does: 0.86 to 0.90, where chance is 0.1
    assert records[-1].test_accuracy > 0.75
    assert records[-1].loss < 0.3 * records[0].loss
    assert all(math.isfinite(r.gradient_norm_max) for r in records)
    assert math.isnan(records[0].spectral_abscissa)
    assert records[-1].spectral_abscissa == pytest.approx(largest_abscissa(trained, images[1500:1502]), rel=1e-4)
    for a, b in zip(before, jax.tree.leaves(eqx.filter(model, eqx.is_array)), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(trained.layer.cells[0].start.y, model.layer.cells[0].start.y)


def test_training_stops_at_a_loss_that_is_not_finite():
    model = ORGaNICsClassifier(2, 3, 2, key=KEY)
    x = np.zeros((8, 4, 2), np.float32)
    x[5] = np.nan
    with pytest.raises(FloatingPointError, match=r"epoch 1, step \d"):
        fit(model, x, np.zeros(8, int), epochs=1, batch_size=4)


def test_layers_of_oscillators_start_as_the_core_has_it():
    options = {"initialization": "oscillators", "rate_spread": 9.0, "max_rates": MaxRates(0.4, 0.2, 0.3)}
    for layer in (ORGaNICs(2, 6, key=KEY, **options), ORGaNICsClassifier(2, 6, 3, key=KEY, **options).layer):
        p = layer.cells[0].parameters
        skew = np.asarray(p.w_r) - np.eye(6)
        np.testing.assert_array_equal(skew, -skew.T)
        assert np.count_nonzero(skew) == 6
        rates = np.sort(np.asarray(cell_rates(jnp, p, options["max_rates"]).y))
        np.testing.assert_allclose(rates, 0.2 / np.array([9, 9, 3, 3, 1, 1]), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"input_size": 0}, ValueError, "input_size"),
        ({"hidden_size": 2.5}, (TypeError, ValueError), "hidden_size"),
        ({"recurrent": "random"}, ValueError, "recurrent 'random'.*'orthogonal'"),
        ({"variant": "rectified"}, ValueError, "variant"),
        ({"max_rates": MaxRates(y=-1.0)}, ValueError, "max_rates"),
        ({"initialization": "zeros"}, ValueError, "initialization"),
        ({"initialization": "oscillators", "recurrent": "spectral"}, ValueError, "oscillators are outside of the ball"),
        ({"num_layers": 0}, ValueError, "num_layers"),
        ({"implementation": "fast"}, ValueError, "implementation"),
        ({"dtype": jnp.int32}, TypeError, "dtype"),
        ({"dtype": "float33"}, TypeError, "dtype must be a real floating dtype, got 'float33'"),
        ({"key": 3}, TypeError, "key"),
        ({"learn_rates": "false"}, TypeError, "learn_rates must be True or False, got 'false'"),
        ({"batch_first": "no"}, TypeError, "batch_first must be True or False, got 'no'"),
        ({"bidirectional": 2}, TypeError, "bidirectional must be True or False, got 2"),
    ],
)
def test_bad_arguments(options, error, message):
    arguments = {"input_size": 2, "hidden_size": 3, "key": KEY, **options}
    with pytest.raises(error, match=message):
        ORGaNICs(arguments.pop("input_size"), arguments.pop("hidden_size"), **arguments)


@pytest.mark.parametrize(
    ("inputs", "hx", "error", "message"),
    [
        (jnp.ones((4, 2, 2), jnp.int32), None, TypeError, "inputs must have a real floating dtype"),
        (None, None, TypeError, "inputs must be an array, got NoneType"),
        ("abc", None, TypeError, "inputs must be an array, got str"),
        (jnp.ones((4, 2, 3)), None, ValueError, r"inputs must have shape \(..., 2\), got shape \(4, 2, 3\)"),
        (jnp.ones((1, 4, 2, 2)), None, ValueError, "inputs must have 3 axes"),
        (jnp.ones((0, 2, 2)), None, ValueError, "at least one step"),
        (jnp.ones((4, 2, 2)), jnp.ones(3), TypeError, "hx must be a CellState"),
        (jnp.ones((4, 2, 2)), CellState(*[jnp.ones((1, 3))] * 4), ValueError, r"hx.y must have shape \(1, 2, 3\)"),
        (jnp.ones((4, 2, 2)), CellState(*[1j * jnp.ones((1, 2, 3))] * 4), TypeError, "hx.y must have a real floating"),
    ],
)
def test_bad_inputs(inputs, hx, error, message):
    with pytest.raises(error, match=message):
        ORGaNICs(2, 3, key=KEY)(inputs, hx)


@pytest.mark.parametrize("state", [jnp.ones(4), (jnp.ones(3),) * 2])
def test_bad_state(state):
    with pytest.raises(TypeError, match=r"state must be a CellState\(y, a, b0, b1\)"):
        ORGaNICsCell(2, 3, key=KEY)(jnp.ones(2), state)


def test_bad_training_data():
    model = ORGaNICsClassifier(2, 3, 2, key=KEY)
    x = np.zeros((8, 4, 2), np.float32)
    for arguments, message in (
        ((x, np.zeros(7, int)), "x_train and y_train"),
        ((x.astype(int), np.zeros(8, int)), "x_train must have a real floating dtype"),
        ((x, np.zeros(8)), "y_train must be integer classes"),
        ((x, np.arange(8) % 2 - 1), "y_train must hold classes from 0 to 1, of a model with 2 outputs, got -1"),
        ((x, np.arange(8) % 3), "y_train must hold classes .* got 2"),
        ((x, 2**32 + np.arange(8) % 2), "y_train must hold classes .* got 4294967297"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            fit(model, *arguments, epochs=1)
    with pytest.raises(ValueError, match="x_test and y_test"):
        fit(model, x, np.zeros(8, int), epochs=1, x_test=x)
    with pytest.raises(ValueError, match="of a model with 2 outputs, got 5"):
        fit(model, x, np.zeros(8, int), epochs=1, x_test=x, y_test=np.full(8, 5))
    with pytest.raises(ValueError, match="weight_decay must be finite and at least 0, got -1"):
        fit(model, x, np.zeros(8, int), epochs=1, weight_decay=-1.0)


def test_an_example_that_diverges_is_wrong():
    """Its logits are NaN, whose argmax is class 0."""
    x, y = np.ones((8, 4, 2), np.float32), np.zeros(8, int)
    seen = x.copy()
    seen[:6] = np.nan
    options = {"epochs": 1, "batch_size": 5, "learning_rate": 0.1, "y_test": y, "abscissa_every": 0}
    for x_test, accuracy in ((x, 1.0), (seen, 2 / 8)):
        _, (record,) = fit(ORGaNICsClassifier(2, 3, 2, key=KEY), x, y, x_test=x_test, **options)
        assert record.test_accuracy == accuracy


def test_cell_in_flax():
    """The same numbers inside flax.nnx.RNN, and gradients to Param only."""
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")
    from organics_jax.flax import ORGaNICsCell as FlaxCell

    rnn = nnx.RNN(FlaxCell(2, 4, rngs=nnx.Rngs(0), recurrent="identity"))
    xs = jax.random.normal(jax.random.key(1), (3, 6, 2))
    cell = rnn.cell._module()
    _, want = oc.cell_sequence(cell.effective(), cell.start, jnp.swapaxes(xs, 0, 1))
    np.testing.assert_allclose(rnn(xs), jnp.swapaxes(want, 0, 1), rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match=r"carry must be a CellState\(y, a, b0, b1\)"):
        rnn.cell(jnp.ones(4), xs[:, 0])
    gradient = nnx.grad(lambda m: jnp.sum(m(xs) ** 2))(rnn)
    names = {path[-1] for path, _ in nnx.to_flat_state(gradient)}
    assert "w_zx" in names
    assert not {"sigma", "start_y"} & names


def test_unrolled_as_on_a_gpu_the_numbers_are_the_same(monkeypatch):
    """Turns of four steps, with a rest, forward and backward."""
    cell = ORGaNICsCell(2, 5, key=KEY, max_rates=RATES, dtype=jnp.float64)
    xs = jax.random.normal(jax.random.key(1), (21, 3, 2))

    def loss(cell, xs):
        return jnp.sum(sequence(cell.effective(), cell.initial_state((3,)), xs, max_rates=RATES, chunk=10)[1] ** 2)

    found = []
    for steps in (1, 4):
        monkeypatch.setattr("organics_jax.sequence._unrolled", lambda steps=steps: steps)
        jax.clear_caches()
        program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), allow_int=True)).trace(cell, xs)
        assert f"unroll={steps}" in str(program.jaxpr)
        found.append(program.lower().compile()(cell, xs))
    assert_trees_close(found[1], found[0])


def gpu_script():
    path = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_script", path)
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    return gpu


@pytest.mark.slow
def test_the_gpu_script_measures_all_steps_at_once_in_jax(monkeypatch):
    gpu = gpu_script()
    monkeypatch.setattr(gpu, "torch_sequences", lambda *_: 1 / 0)
    failed, row = gpu.parallel("cpu", gpu.Sizes(hidden=(4,), sequences=(2,), long=20))
    assert failed["error"] == "ZeroDivisionError: division by zero"
    assert (row["at once"], row["sequences"]) == ("jax", 2)
    assert "error" not in row
    assert row["converged"]
    assert row["iterations"] > 1
    assert row["relative error"] < 1e-5
    assert row["forward and backward, times faster"] > 0


def test_the_gpu_script_measures_jax():
    """In float32 and in tf32, every row kept at once, with the ratio to the torch kernel of the same precision."""
    gpu = gpu_script()
    kept = []
    rows = gpu.jax_training(gpu.Sizes(2, 3, (4,), repeats=1), lambda rows: kept.append(len(rows)))
    assert [row["layer"] for row in rows] == ["ORGaNICs, jax, highest", "ORGaNICs, jax, high"]
    assert kept == [1, 2]
    record = {"jax training": rows, "training": [{"layer": "ORGaNICs, kernel, high", "hidden": 4, "seconds": 2.0}]}
    gpu.compare_with_kernel(record)
    assert rows[1]["times kernel"] == rows[1]["seconds"] / 2.0
    assert "times kernel" not in rows[0]


def test_rates_from_the_length():
    layer = ORGaNICs(2, 3, 2, max_rates="auto", steps=8, key=KEY)
    assert [cell.max_rates for cell in layer.cells] == [(0.5, 0.2, 0.5)] * 2
    model = ORGaNICsClassifier(2, 3, 2, max_rates="auto", steps=100, key=KEY)
    assert model.layer.cells[0].max_rates == pytest.approx((0.2, 0.04, 0.4))
    with pytest.raises(ValueError, match="max_rates='auto' needs steps="):
        ORGaNICsCell(2, 3, max_rates="auto", key=KEY)
