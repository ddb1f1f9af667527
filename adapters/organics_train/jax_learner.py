"""The driver's protocol in jax."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import organics_jax
from organics_jax import native

from .checkpoint import Arrays
from .config import Config
from .datasets import Dataset
from .jax_models import make_model
from .loop import TOLERANCE, Score


class JaxLearner:
    """An Equinox model, Adam of optax, and the data on the host."""

    def __init__(self, config: Config, data: Dataset) -> None:
        options = {"steps": data.steps, "every_step": data.every_step, **config.model_options(data.steps)}

        def build(hidden: int) -> Any:
            key = jax.random.key(config.seed)
            return make_model(config.resolved_model, data.input_size, hidden, data.outputs, key=key, **options)

        self.hidden = config.hidden_size(lambda hidden: _count(build(hidden)))
        self.model = build(self.hidden)
        self.parameter_count, self.device = _count(self.model), jax.default_backend()
        self.data, self.kind, self.scored = data, data.kind, data.scored_steps
        mask = organics_jax.trainable(self.model)
        transform = optax.chain(optax.add_decayed_weights(config.weight_decay), optax.scale_by_adam())
        self.optimizer = transform.init(eqx.filter(self.model, mask))

        @eqx.filter_jit
        def step(model: Any, optimizer: Any, seen: Any, x: Any, y: Any, rate: Any) -> tuple[Any, Any, Any]:
            params, fixed = eqx.partition(model, mask)

            def loss_of(params: Any) -> tuple[Any, tuple[Any, Any]]:
                model, extra = eqx.combine(params, fixed), 0.0
                if hasattr(model, "training_outputs"):
                    outputs, extra = model.training_outputs(seen, x)
                else:
                    outputs = model(seen)
                loss, accuracy = self.loss(outputs, y)
                return loss + extra, (loss, accuracy)

            gradient, (loss, accuracy) = jax.grad(loss_of, has_aux=True)(params)
            norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
            updates, new = transform.update(gradient, optimizer, params)
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            params = jax.tree.map(lambda p, u: jnp.where(finite, p - rate.astype(p.dtype) * u, p), params, updates)
            optimizer = jax.tree.map(lambda before, after: jnp.where(finite, after, before), optimizer, new)
            return eqx.combine(params, fixed), optimizer, (loss, accuracy, norm)

        self._step = step
        self._outputs = eqx.filter_jit(lambda model, x: model(x))

    @property
    def implementation(self) -> str | None:
        """How the recurrent layers are computed, where the layer chooses."""
        leaves = jax.tree.leaves(self.model, is_leaf=lambda part: isinstance(part, organics_jax.ORGaNICs))
        layers = [part for part in leaves if isinstance(part, organics_jax.ORGaNICs)]
        if not any(layer.implementation == "auto" for layer in layers):
            return None
        return "fused" if jax.default_backend() == "cpu" and native.load() is not None else "chunked"

    def use(self, implementation: str) -> str | None:
        """Why the layers cannot be computed so: the machine and the environment decide."""
        if implementation == self.implementation:
            return None
        off = f"; {native.VARIABLE}=0 gives 'chunked'" if implementation == "chunked" else ""
        return f"the native library is {native.status()}{off}"

    def loss(self, outputs: Any, y: Any) -> tuple[Any, Any]:
        """Loss and accuracy, means over the examples."""
        if self.kind == "numbers":
            error = outputs - y
            return jnp.mean(error**2), jnp.mean(jnp.all(jnp.abs(error[:, -self.scored :]) < TOLERANCE, axis=-1))
        if self.kind == "number":
            error = outputs[:, 0] - y
            return jnp.mean(error**2), jnp.mean(jnp.abs(error) < TOLERANCE)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), y[..., None], axis=-1)
        right = jnp.argmax(outputs, axis=-1) == y
        return -jnp.mean(chosen), jnp.mean(right[:, -self.scored :] if self.kind == "steps" else right)

    def _batch(self, part: str, index: Any) -> tuple[Any, Any]:
        x, y = getattr(self.data, f"x_{part}")[index], getattr(self.data, f"y_{part}")[index]
        return jnp.asarray(x), jnp.asarray(y if y.dtype.kind == "f" else y.astype(np.int32))

    def step(
        self, index: np.ndarray[Any, Any], learning_rate: float, noise: np.ndarray[Any, Any] | None = None
    ) -> tuple[float, float, float]:
        x, y = self._batch("train", index)
        seen = x if noise is None else x + noise
        rate = np.float32(learning_rate)
        self.model, self.optimizer, numbers = self._step(self.model, self.optimizer, seen, x, y, rate)
        loss, accuracy, norm = (float(number) for number in numbers)
        return loss, accuracy, norm

    def evaluate(self, part: str, batch_size: int) -> Score:
        count, parts = len(getattr(self.data, f"x_{part}")), []
        for begin in range(0, count, batch_size):
            size = min(batch_size, count - begin)
            x, y = self._batch(part, np.arange(begin, begin + size))
            outputs = self._outputs(self.model, x)
            finite = np.isfinite(np.asarray(outputs)).reshape(size, -1).all(axis=1)
            loss, accuracy = self.loss(outputs[finite], y[finite])
            parts.append((float(loss), float(accuracy), int(finite.sum()), size))
        y = getattr(self.data, f"y_{part}")
        return Score.of(parts, y[0, -self.scored :].shape[0] if self.data.every_step else 1)

    def parameters(self) -> Arrays:
        return _named(self.model)

    def state(self) -> Arrays:
        model = {f"model{name}": value for name, value in _named(self.model).items()}
        return {**model, **{f"optimizer{name}": value for name, value in _named(self.optimizer).items()}}

    def load_state(self, arrays: Arrays) -> None:
        self.model = _restored(self.model, "model", arrays)
        self.optimizer = _restored(self.optimizer, "optimizer", arrays)


def _named(tree: Any) -> Arrays:
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _restored(tree: Any, prefix: str, arrays: Arrays) -> Any:
    """``tree`` with its arrays replaced by those of a checkpoint."""
    dynamic, static = eqx.partition(tree, eqx.is_array)
    put = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(arrays[prefix + jax.tree_util.keystr(path)], dtype=leaf.dtype), dynamic
    )
    return eqx.combine(put, static)


def _count(model: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, organics_jax.trainable(model))))


def make(config: Config, data: Dataset, processes: object = None) -> JaxLearner:
    """The learner of a run; there is one process."""
    return JaxLearner(config, data)
