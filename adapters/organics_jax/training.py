"""A plain training loop: Adam, no gradient clipping."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from organics_core import checks
from organics_core.cell import CellState
from organics_train.records import EpochRecord, batch_indices

from .modules import trainable
from .recurrent import ORGaNICs

Array = Any


def fit(
    model: Any,
    x_train: Any,
    y_train: Any,
    *,
    epochs: int,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    weight_decay: float = 1e-5,
    lr_step: int = 30,
    lr_gamma: float = 0.8,
    seed: int = 0,
    x_test: Any = None,
    y_test: Any = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    abscissa_every: int = 1,
) -> tuple[Any, list[EpochRecord]]:
    """Train a classifier by plain backpropagation through time: Adam, StepLR, no gradient clipping.

    Parameters
    ----------
    model : callable Equinox module
        From inputs (N, ...) to logits (N, classes), :class:`ORGaNICsClassifier` say.
        One that holds an ``eqx.nn.Dropout`` is called with ``key=`` too, and tested in inference mode.
    x_train, y_train : arrays (N, ...), (N,)
        Inputs and integer classes, on the host.
    epochs : int
    batch_size : int
    learning_rate, weight_decay : float
        Of Adam; the decay is added to the gradient, as torch's Adam does it.
    lr_step, lr_gamma : int, float
        Every ``lr_step`` epochs the learning rate is multiplied by ``lr_gamma``.
    seed : int
        Of the order of the batches, and of the dropout.
    x_test, y_test : arrays, optional
        Test set, looked at after every epoch; an example whose logits are not finite counts as wrong.
    on_epoch : callable, optional
        Called with every :class:`EpochRecord`.
    abscissa_every : int
        Epochs between two measurements of the largest real eigenvalue part
        (over points along the trajectories of the first test sequences, or
        training sequences where there is no test set); 0 for none.

    Returns
    -------
    model
        The trained model; the one passed in is left as it is.
    records : list of EpochRecord

    Raises
    ------
    FloatingPointError
        At the first loss that is not finite, naming epoch and step.
    TypeError, ValueError
        Naming the argument that is wrong.
    ImportError
        Without optax.

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> from organics_jax import ORGaNICsClassifier
    >>> x = np.random.default_rng(0).random((64, 10, 1), dtype=np.float32)
    >>> y = (x.mean(axis=(1, 2)) > 0.5).astype(int)  # is the mean above one half?
    >>> model = ORGaNICsClassifier(1, 8, 2, key=jax.random.key(0), max_rates="auto", steps=10)
    >>> model, records = fit(model, x, y, epochs=3, batch_size=16)
    >>> records[-1].loss < records[0].loss
    True
    """
    try:
        import optax
    except ImportError:
        raise ImportError('organics_jax.fit needs optax: pip install "organics-core[jax]"') from None
    epochs = checks.positive_integer("epochs", epochs)
    batch_size = checks.positive_integer("batch_size", batch_size)
    learning_rate = checks.positive_number("learning_rate", learning_rate)
    weight_decay = checks.not_negative("weight_decay", weight_decay)
    lr_step = checks.positive_integer("lr_step", lr_step)
    lr_gamma = checks.positive_number("lr_gamma", lr_gamma)
    x_train, y_train = _pairs("train", x_train, y_train)
    tests = None
    if (x_test is None) != (y_test is None):
        raise ValueError("x_test and y_test go together, got only one of them")
    if x_test is not None:
        tests = _pairs("test", x_test, y_test)

    outputs = eqx.filter_eval_shape(eqx.nn.inference_mode(model), x_train[:batch_size]).shape[-1]
    for name, y in {"train": y_train, **({"test": tests[1]} if tests else {})}.items():
        checks.classes(f"y_{name}", int(y.min()), int(y.max()), outputs)
    y_train = y_train.astype(np.int32)  # what jax has without x64, and now holds them

    mask = trainable(model)
    transform = optax.chain(optax.add_decayed_weights(weight_decay), optax.scale_by_adam())
    state = transform.init(eqx.filter(model, mask))

    def is_dropout(leaf: Any) -> bool:
        return isinstance(leaf, eqx.nn.Dropout)

    drops = any(map(is_dropout, jax.tree.leaves(model, is_leaf=is_dropout)))

    @eqx.filter_jit(donate="all-except-first")
    def step(
        batch: tuple[Array, Array, Array, Array], model: Any, state: Any
    ) -> tuple[Any, Any, tuple[Array, Array, Array]]:
        x, y, rate, count = batch
        options = {"key": jax.random.fold_in(jax.random.key(seed), count)} if drops else {}
        params, fixed = eqx.partition(model, mask)

        def loss_of(params: Any) -> tuple[Array, Array]:
            logits = eqx.combine(params, fixed)(x, **options)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1)
            return -jnp.mean(chosen), jnp.mean(jnp.argmax(logits, axis=-1) == y)

        (loss, accuracy), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = transform.update(gradient, state, params)
        params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, params, updates)
        return eqx.combine(params, fixed), state, (loss, accuracy, optax.tree.norm(gradient))

    @eqx.filter_jit
    def predict(model: Any, x: Array) -> Array:
        logits = eqx.nn.inference_mode(model)(x)
        return jnp.where(jnp.all(jnp.isfinite(logits), axis=-1), jnp.argmax(logits, axis=-1), -1)

    # the first step may give its arguments' memory away: not that of the caller's model
    model = jax.tree.map(lambda leaf: jnp.array(leaf) if eqx.is_array(leaf) else leaf, model)
    records: list[EpochRecord] = []
    count = itertools.count()
    for epoch in range(1, epochs + 1):
        began = time.perf_counter()
        rate = np.float32(learning_rate * lr_gamma ** ((epoch - 1) // lr_step))
        measured = []
        for number, index in enumerate(batch_indices(seed, epoch, len(x_train), batch_size), start=1):
            model, state, numbers = step((x_train[index], y_train[index], rate, np.uint32(next(count))), model, state)
            loss, accuracy, norm = (float(value) for value in numbers)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at epoch {epoch}, step {number}; try smaller learning_rate or max_rates"
                )
            measured.append((loss, accuracy, norm))
        seconds = time.perf_counter() - began
        losses, accuracies, norms = zip(*measured, strict=True)
        abscissa = math.nan
        if abscissa_every and (epoch % abscissa_every == 0 or epoch == epochs):
            abscissa = largest_abscissa(model, (x_train if tests is None else tests[0])[:2])
        record = EpochRecord(
            epoch=epoch,
            loss=float(np.mean(losses)),
            train_accuracy=float(np.mean(accuracies)),
            test_accuracy=math.nan if tests is None else _accuracy(predict, model, *tests, batch_size),
            gradient_norm=float(np.mean(norms)),
            gradient_norm_max=float(np.max(norms)),
            spectral_abscissa=abscissa,
            seconds=seconds,
        )
        records.append(record)
        if on_epoch is not None:
            on_epoch(record)
    return model, records


def _pairs(name: str, x: Any, y: Any) -> tuple[Array, Array]:
    x, y = np.asarray(x), np.asarray(y)
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(f"x_{name} must have a real floating dtype, got {x.dtype}; convert it first")
    if not np.issubdtype(y.dtype, np.integer):
        raise TypeError(f"y_{name} must be integer classes, got dtype {y.dtype}")
    if y.ndim != 1 or x.ndim < 2 or len(x) != len(y) or len(x) == 0:
        raise ValueError(f"x_{name} and y_{name} must have shapes (N, ...) and (N,), got {x.shape} and {y.shape}")
    return x, y


def _accuracy(predict: Callable[..., Array], model: Any, x: Any, y: Any, batch_size: int) -> float:
    """Share of right answers, in batches of one shape: the last one is filled up."""
    size = min(batch_size, len(x))
    right = 0
    for begin in range(0, len(x), size):
        index = np.minimum(np.arange(begin, begin + size), len(x) - 1)
        count = min(size, len(x) - begin)
        right += int(np.sum(np.asarray(predict(model, x[index]))[:count] == y[begin : begin + count]))
    return right / len(x)


def largest_abscissa(model: Any, x: Any, *, points: int = 4) -> float:
    """Largest real eigenvalue part of the cells' Jacobians along trajectories, per step.

    Parameters
    ----------
    model : module
        With an attribute ``layer`` that is an :class:`ORGaNICs`; or one itself.
    x : array (N, T, k)
        Inputs.
    points : int
        Steps looked at, equally spaced, the last one among them.

    Returns
    -------
    float
        NaN where the model has no such layer, or one of both directions.

    Notes
    -----
    The Jacobian is that of the (y, a) circuit, the gains frozen; see
    :func:`organics_core.cell.cell_jacobian_abscissa`.
    """
    layer = model if isinstance(model, ORGaNICs) else getattr(model, "layer", None)
    if not isinstance(layer, ORGaNICs) or layer.bidirectional or np.ndim(x) != 3:
        return math.nan
    length = np.shape(x)[1]
    points = min(points, length)
    return float(_abscissa(eqx.nn.inference_mode(layer), jnp.asarray(x), length // points, points))


@eqx.filter_jit
def _abscissa(layer: ORGaNICs, x: Array, stride: int, points: int) -> Array:
    hx = None
    worst = []
    first = x.shape[1] - stride * points
    if not layer.batch_first:
        x = jnp.swapaxes(x, 0, 1)
    axis = 1 if layer.batch_first else 0
    edges = [0, *(first + stride * (index + 1) for index in range(points))]
    for begin, end in itertools.pairwise(edges):
        _, hx = layer(jax.lax.slice_in_dim(x, begin, end, axis=axis), hx)
        for index, cell in enumerate(layer.cells):
            state = CellState(*(part[index] for part in hx))
            drive = jnp.zeros((*state.y.shape[:-1], cell.input_size), state.y.dtype)  # the Jacobian does not need it
            worst.append(jnp.max(cell.spectral_abscissa(state, drive)))
    return jnp.max(jnp.stack(worst))
