"""ORGaNICs inside Keras 3, on the backend that KERAS_BACKEND names."""

import os

import numpy as np
import pytest
from embedding import IDENTITY, PROBLEM, T_TRANSIENT, error, framework, record, rectified_transient

framework("keras", "keras")

if os.environ.get("KERAS_BACKEND") == "jax":
    import jax

    jax.config.update("jax_enable_x64", True)

import keras  # noqa: E402

import organics_core as oc  # noqa: E402
from organics_simulators.keras import CircuitCell, ORGaNICsCell  # noqa: E402

BACKEND = keras.backend.backend()


def run(problem, duration, steps, *, substeps=20, **options):
    cell = CircuitCell(problem.circuit, duration / steps, substeps=substeps, dtype="float64", **options)
    layer = keras.layers.RNN(cell, return_state=True, dtype="float64")
    x = np.broadcast_to(problem.z, (2, steps, 8)).copy()
    _, y, a = layer(keras.ops.convert_to_tensor(x, dtype="float64"))
    return oc.State(keras.ops.convert_to_numpy(y)[1], keras.ops.convert_to_numpy(a)[1])


def test_transient_and_fixed_point():
    transient = error(run(PROBLEM, T_TRANSIENT, 10), PROBLEM.transient)
    fixed = error(run(PROBLEM, 0.2, 200, substeps=5), PROBLEM.fixed)
    record("keras", transient, fixed, note=f"{BACKEND} backend, rk4 of 0.025 ms")
    assert transient < 1e-7
    assert fixed < 1e-8


def test_closed_form_of_the_identity():
    assert error(run(IDENTITY, 0.2, 200, substeps=5), IDENTITY.fixed) < 1e-8


@pytest.mark.parametrize("variant", ["rectified", "rectified_recurrence"])
def test_variants(variant):
    assert error(run(PROBLEM, T_TRANSIENT, 10, variant=variant), rectified_transient(variant)) < 1e-5


def test_trained_cell_is_the_core_s():
    cell = ORGaNICsCell(5, seed=3)
    x = np.random.default_rng(0).standard_normal((4, 7, 6)).astype("float32")
    out = keras.ops.convert_to_numpy(keras.layers.RNN(cell, return_sequences=True)(x))
    parameters, start = oc.init_cell(3, 6, 5)
    _, ys = oc.cell_sequence(parameters, start, np.moveaxis(x, 1, 0).astype(float))
    np.testing.assert_allclose(out, np.moveaxis(ys, 0, 1), atol=1e-5)


def test_trains_saves_and_loads(tmp_path):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 128)
    x = (rng.standard_normal((128, 8, 3)) * 0.3 + (2.0 * labels - 1)[:, None, None]).astype("float32")
    cell = ORGaNICsCell(8, max_rates=(0.5, 0.2, 0.5))
    model = keras.Sequential([keras.Input((8, 3)), keras.layers.RNN(cell), keras.layers.Dense(2)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.optimizer.learning_rate = 0.02
    before = model.evaluate(x, labels, verbose=0)[0]
    model.fit(x, labels, epochs=8, batch_size=32, verbose=0)
    assert model.evaluate(x, labels, verbose=0)[0] < 0.7 * before
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


@pytest.mark.parametrize("kind", ["trained", "circuit"])
def test_a_stateful_layer_goes_on(kind):
    """Two halves of a sequence one after the other are the whole."""
    x = np.random.default_rng(0).random((4, 20, 8)).astype("float32")

    def layer(**options):
        cell = ORGaNICsCell(5, seed=0) if kind == "trained" else CircuitCell(PROBLEM.circuit, 0.001)
        return keras.layers.RNN(cell, return_sequences=True, **options)

    part = layer(stateful=True)
    halves = [keras.ops.convert_to_numpy(part(half)) for half in (x[:, :10], x[:, 10:])]
    want = keras.ops.convert_to_numpy(layer()(x))
    np.testing.assert_allclose(np.concatenate(halves, 1), want, rtol=1e-5, atol=1e-6)
    for state, start in zip(part.states, part.cell.get_initial_state(4), strict=True):  # as the module says
        state.assign(start)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(part(x[:, :10])), want[:, :10], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_policies_of_precision(policy, tmp_path):
    """The cell trains, and a saved model gives the same."""
    x, labels = np.random.default_rng(0).random((32, 6, 1)), np.arange(32) % 2
    keras.mixed_precision.set_global_policy(policy)
    try:
        rnn, read = keras.layers.RNN(ORGaNICsCell(4, seed=0)), keras.layers.Dense(2, "softmax", dtype="float32")
        model = keras.Sequential([keras.Input((6, 1)), rnn, read])
        model.compile("adam", "sparse_categorical_crossentropy")
        assert np.isfinite(model.fit(x, labels, verbose=0).history["loss"][0])
        model.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
        np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
        assert {keras.backend.standardize_dtype(weight.dtype) for weight in rnn.weights} == {
            policy.replace("mixed_bfloat16", "float32").replace("mixed_float16", "float32")
        }
    finally:
        keras.mixed_precision.set_global_policy("float32")


def test_circuit_cell_config():
    cell = CircuitCell(PROBLEM.circuit, 1e-3, variant="rectified")
    again = CircuitCell.from_config(cell.get_config())
    np.testing.assert_array_equal(again.host.w_r, cell.host.w_r)
    assert again.variant == "rectified"


def test_errors_name_the_culprit():
    with pytest.raises(ValueError, match="dt"):
        CircuitCell(PROBLEM.circuit, -1.0)
    with pytest.raises(ValueError, match="features"):
        keras.layers.RNN(CircuitCell(PROBLEM.circuit, 1e-3))(np.ones((2, 3, 5), dtype="float32"))
    with pytest.raises(ValueError, match="method must be one of"):
        CircuitCell(PROBLEM.circuit, 1e-3, method=oc.INTEGRATORS["euler"]._replace(name="rk4"))
