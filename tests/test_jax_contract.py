"""What users of jax, Equinox and optax do with a layer: its options, and the transformations of jax around it."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from organics_core.cell import CellState
from organics_jax import (
    DivisiveNorm2d,
    DivisiveNormalization,
    ORGaNICs,
    ORGaNICsCell,
    ORGaNICsClassifier,
    fit,
    parallel_report,
    prove_stable,
    save,
    trainable,
)
from organics_jax.sequence import sequence
from organics_jax.training import largest_abscissa

KEY = jax.random.key(7)
STEPS, BATCH, K, H = 5, 3, 2, 4
XS = np.random.default_rng(0).standard_normal((STEPS, BATCH, K))
RATES = (0.5, 0.2, 0.5)


def make(layers=1, **options):
    return ORGaNICs(K, H, layers, key=KEY, **{"max_rates": RATES, "dtype": jnp.float64} | options)


def assert_close(found, wanted, rtol=1e-10):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)


def alone(cell, xs):
    """One cell over sequences (T, B, k)."""
    start = cell.initial_state((xs.shape[1],))
    return sequence(cell.effective(), start, xs, max_rates=cell.max_rates, variant=cell.variant)


def test_bidirectional():
    """Cell by cell, in torch's order; each sequence of a padded batch from its own end; a state goes on."""
    layer = make(2, bidirectional=True)
    output, hn = layer(XS)
    below, finals = XS, []
    for one, other in zip(layer.cells, layer.reverse_cells, strict=True):
        final, ahead = alone(one, below)
        last, back = alone(other, below[::-1])
        finals += [final, last]
        below = np.concatenate([ahead, back[::-1]], -1)
    np.testing.assert_allclose(output, below, rtol=1e-10)
    assert output.shape == (STEPS, BATCH, 2 * H)
    assert_close(hn, CellState(*(np.stack(parts) for parts in zip(*finals, strict=True))))
    lengths = np.array([2, 5, 3])
    output, hn = layer(XS, lengths=jnp.asarray(lengths))
    for row, length in enumerate(lengths):
        wanted, last = layer(XS[:length, row])
        np.testing.assert_allclose(output[:length, row], wanted, rtol=1e-10)
        assert_close(jax.tree.map(lambda part, row=row: part[:, row], hn), last)
        assert not np.any(output[length:, row])
    assert_close(layer(XS, hx=jax.tree.map(lambda part: 0.5 * part, hn))[1].y.shape, (4, BATCH, H))
    assert layer.cells[1].input_size == 2 * H
    assert trainable(layer).reverse_cells[1].start.y is False
    assert trainable(layer).reverse_cells[1].parameters.w_zx is True
    assert not np.array_equal(layer.cells[0].parameters.w_zx, layer.reverse_cells[0].parameters.w_zx)


def test_bidirectional_classifier_and_what_takes_one_direction(tmp_path):
    model = ORGaNICsClassifier(K, H, 3, key=KEY, bidirectional=True, dtype=jnp.float64)
    x = np.swapaxes(XS, 0, 1)
    _, hn = model.layer(x)
    both = np.concatenate([hn.y[0], hn.y[1]], -1)
    np.testing.assert_allclose(model(x), both @ model.readout.weight.T + model.readout.bias, rtol=1e-10)
    assert np.isnan(largest_abscissa(model, x))
    for refused in (
        lambda: save(tmp_path / "model.safetensors", model),
        lambda: prove_stable(model.layer, np.ones(K)),
        lambda: parallel_report(model.layer, x),
    ):
        with pytest.raises(ValueError, match="one direction"):
            refused()


def test_options_that_are_off_leave_no_trace():
    """A layer's leaves are those of its cells, so that files of older versions are read."""
    layer = make(2)
    assert len(jax.tree.leaves(layer)) == len(jax.tree.leaves(layer.cells))


def test_dropout():
    """Between layers, for a key; none in inference mode."""
    layer, key = make(2, dropout=0.4), jax.random.key(3)
    output, _ = layer(XS, key=key)
    _, ys = alone(layer.cells[0], XS)
    dropped = eqx.nn.Dropout(0.4)(ys, key=jax.random.fold_in(key, 1))
    assert 0.2 < float(jnp.mean(dropped == 0)) < 0.6
    np.testing.assert_allclose(output, alone(layer.cells[1], dropped)[1], rtol=1e-10)
    assert not np.allclose(output, layer(XS, key=jax.random.key(4))[0])
    np.testing.assert_array_equal(eqx.nn.inference_mode(layer)(XS)[0], make(2)(XS)[0])
    with pytest.raises(ValueError, match=r"dropout needs a random key: layer\(inputs, key=\.\.\.\)"):
        layer(XS)
    for wrong in (-0.1, 1.5, "half", True):
        with pytest.raises(ValueError, match=r"dropout must be a number in \[0, 1\]"):
            make(2, dropout=wrong)
    with pytest.warns(UserWarning, match=r"dropout 0.5 does nothing: it is between layers"):
        make(1, dropout=0.5)


def test_training_with_dropout():
    """Every step draws anew, for one seed the same; tests are in inference mode."""
    model = ORGaNICsClassifier(K, H, 2, key=KEY, num_layers=2, dropout=0.5)
    x, y = np.swapaxes(XS, 0, 1).astype(np.float32), np.array([0, 1, 1])
    options = {"epochs": 2, "batch_size": 3, "x_test": x, "y_test": y}
    (one, records), (again, same) = (fit(model, x, y, **options) for _ in range(2))
    assert_close(eqx.filter(one, eqx.is_array), eqx.filter(again, eqx.is_array), rtol=0)
    assert [record.loss for record in records] == [record.loss for record in same]
    other, _ = fit(model, x, y, **options | {"seed": 1})
    assert not np.allclose(other.readout.weight, one.readout.weight, rtol=1e-3)


def test_weight_decay_spares_what_is_not_trained():
    """``trainable`` as optax's mask; without it sigma and the start state shrink."""
    params = eqx.filter(make(learn_rates=False), eqx.is_inexact_array)
    gradient = jax.tree.map(jnp.zeros_like, params)
    for mask, spared in ((trainable, True), (None, False)):
        optimizer = optax.adamw(0.1, weight_decay=0.5, mask=mask)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        cell = updates.cells[0]
        fixed = (cell.parameters.sigma, cell.parameters.theta_y, *cell.start)
        assert all(not np.any(part) for part in fixed) == spared
        assert np.any(cell.parameters.w_by0)


def test_those_who_come_from_flax_are_told():
    cell, layer = ORGaNICsCell(K, H, key=KEY), make()
    carry = cell.initial_state()
    for call in (
        lambda: cell(carry, jnp.ones(K)),
        lambda: layer(layer(XS)[1], XS),
        lambda: cell.num_feature_axes,  # what flax.linen.RNN does first
        lambda: layer.initialize_carry(KEY, (3, K)),
    ):
        with pytest.raises(TypeError, match=r"cells of Flax as cell\(carry, x\); in Flax take organics_jax.flax"):
            call()


def test_the_flax_cell_in_linen_says_so():
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")
    linen = pytest.importorskip("flax.linen", reason="flax is not installed")
    from organics_jax.flax import ORGaNICsCell as FlaxCell

    with pytest.raises(TypeError, match=r"input_shape must be a shape.*flax.linen.RNN passes a key first"):
        linen.RNN(FlaxCell(K, H, rngs=nnx.Rngs(0))).init(KEY, jnp.ones((3, STEPS, K)))


def test_export_of_any_batch_and_number_of_steps():
    """One program for all, differentiable."""
    layer = make()
    steps, batch = jax.export.symbolic_shape("t, b")
    shape = jax.ShapeDtypeStruct((steps, batch, K), jnp.float64)
    program = jax.export.export(jax.jit(lambda xs: layer(xs)[0]))(shape)
    again = jax.export.deserialize(program.serialize(vjp_order=1))
    for xs in (XS, np.random.default_rng(1).standard_normal((40, 2, K))):
        np.testing.assert_allclose(again.call(xs), layer(xs)[0], rtol=1e-10)
    slope = jax.grad(lambda xs: jnp.sum(again.call(xs) ** 2))(XS)
    np.testing.assert_allclose(slope, jax.grad(lambda xs: jnp.sum(layer(xs)[0] ** 2))(XS), rtol=1e-9, atol=1e-12)


def test_donated_states_are_the_callers_alone():
    """Giving away the memory of a start state leaves the layer whole."""
    layer = make()
    cell = layer.cells[0]
    step = jax.jit(lambda state, x: cell(x, state), donate_argnums=0)
    found = step(step(cell.initial_state(), XS[0, 0]), XS[1, 0])
    assert_close(found, jax.tree.map(lambda part: part[0], layer(XS[:2, 0])[1]))
    go_on = eqx.filter_jit(lambda layer, hx, xs: layer(xs, hx), donate="all-except-first")
    output, hx = go_on(layer, layer(XS[:2])[1], jnp.asarray(XS[2:]))
    assert_close((output, hx), (layer(XS)[0][2:], layer(XS)[1]))


def test_streaming_with_equinox_state():
    """A stateful module that keeps the state between calls of one step."""

    class Stream(eqx.Module):
        layer: ORGaNICs
        index: eqx.nn.StateIndex

        def __init__(self, layer):
            self.layer = layer
            start = layer.cells[0].initial_state((BATCH,))
            self.index = eqx.nn.StateIndex(jax.tree.map(lambda part: part[None], start))

        def __call__(self, x, state):
            output, hx = self.layer(x[None], state.get(self.index))
            return output[0], state.set(self.index, hx)

    model, state = eqx.nn.make_with_state(Stream)(make())
    step = eqx.filter_jit(lambda model, x, state: model(x, state))
    outputs = []
    for x in XS:
        output, state = step(model, x, state)
        outputs.append(output)
    np.testing.assert_allclose(np.stack(outputs), make()(XS)[0], rtol=1e-10)


def test_checkpointed_gradients_and_no_nans_on_the_way():
    """jax.checkpoint around the layer, under jax_debug_nans; from a state of zeros, too, where a root is zero."""
    layer = make()
    zeros = CellState(*[jnp.zeros((1, BATCH, H))] * 4)

    def loss(layer):
        return jnp.sum(layer(XS)[0] ** 2) + jnp.sum(layer(XS, zeros)[0])

    wanted = eqx.filter_grad(loss)(layer)
    with jax.debug_nans(True):
        assert_close(eqx.filter_jit(eqx.filter_grad(eqx.filter_checkpoint(loss)))(layer), wanted)
        for norm in (DivisiveNorm2d(1, 2, 3, key=KEY), DivisiveNormalization(1, pool="both", key=KEY)):
            slope = eqx.filter_jit(eqx.filter_grad(lambda norm: jnp.sum(norm(jnp.zeros((1, 4, 4))))))(norm)
            assert not np.any(slope.beta)


def test_dtypes_under_x64():
    """They are those of the parameters, whatever the input's; the gradient's are too."""
    for dtype in (jnp.float32, jnp.float64):
        layer = make(dtype=dtype)
        value, slope = eqx.filter_value_and_grad(lambda layer: jnp.sum(layer(XS)[0]))(layer)
        assert {leaf.dtype for leaf in jax.tree.leaves(slope)} == {value.dtype} == {jnp.dtype(dtype)}
        assert layer(XS.astype(np.float32))[1].a.dtype == dtype
