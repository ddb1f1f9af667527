"""ORGaNICs for the tasks, in jax; the same models as ``organics_baselines`` has in torch."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import organics_jax

Array = Any


def _apply(linear: eqx.nn.Linear, x: Array) -> Array:
    """A linear layer on the last axis."""
    return x @ linear.weight.T + linear.bias


class EveryStep(eqx.Module):
    """ORGaNICs and a linear readout of y at every step."""

    rnn: organics_jax.ORGaNICs
    readout: eqx.nn.Linear

    def __init__(self, input_size: int, hidden: int, outputs: int, *, key: Array, **options: Any) -> None:
        first, second = jax.random.split(key)
        self.rnn = organics_jax.ORGaNICs(input_size, hidden, key=first, batch_first=True, **options)
        self.readout = eqx.nn.Linear(hidden, outputs, key=second)

    def __call__(self, x: Array) -> Array:
        """Outputs (N, T, outputs) of sequences x (N, T, k)."""
        return _apply(self.readout, self.rnn(x)[0])


class StaticClassifier(eqx.Module):
    """One or two static normalization layers on the code of an autoencoder, and a linear readout.

    Parameters
    ----------
    input_size, steps : int
        k and T: the encoder sees all T k numbers.
    hidden : int
        Of the first normalization layer; a second has half as many.
    outputs : int
    key : jax random key
    layers : {2, 1}
    code : int
        Of the autoencoder, 40 in the paper.
    reconstruction : float
        Weight of the mean squared error of the reconstruction in the loss.
    options
        Of :class:`organics_jax.DivisiveNorm`.

    Notes
    -----
    Rawat, Heeger & Martiniani (NeurIPS 2024), the static classifier of MNIST.
    """

    encoder: eqx.nn.Linear
    decoder: eqx.nn.Linear
    first: organics_jax.DivisiveNorm
    second: organics_jax.DivisiveNorm | eqx.nn.Identity
    readout: eqx.nn.Linear
    reconstruction: float = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden: int,
        outputs: int,
        *,
        key: Array,
        steps: int = 1,
        layers: int = 2,
        code: int = 40,
        reconstruction: float = 1.0,
        **options: Any,
    ) -> None:
        keys = jax.random.split(key, 5)
        pixels = input_size * steps
        if layers not in (1, 2):
            raise ValueError(f"layers must be 1 or 2, got {layers!r}")
        self.encoder = eqx.nn.Linear(pixels, code, key=keys[0])
        self.decoder = eqx.nn.Linear(code, pixels, key=keys[1])
        self.first = organics_jax.DivisiveNorm(code, hidden, key=keys[2], **options)
        self.second = eqx.nn.Identity()
        if layers == 2:
            self.second = organics_jax.DivisiveNorm(hidden, max(hidden // 2, 1), key=keys[3], **options)
        self.readout = eqx.nn.Linear(max(hidden // 2, 1) if layers == 2 else hidden, outputs, key=keys[4])
        self.reconstruction = reconstruction

    def _classify(self, code: Array) -> Array:
        return _apply(self.readout, self.second(self.first(code)))

    def training_outputs(self, x: Array, clean: Array) -> tuple[Array, Array]:
        """Logits (N, outputs) of x, and the loss of the reconstruction of ``clean`` that is added to theirs."""
        code = _apply(self.encoder, x.reshape(len(x), -1))
        error = jax.nn.sigmoid(_apply(self.decoder, code)) - clean.reshape(len(x), -1)
        return self._classify(code), self.reconstruction * jnp.mean(error**2)

    def __call__(self, x: Array) -> Array:
        """Logits (N, outputs) of x (N, T, k)."""
        return self._classify(_apply(self.encoder, x.reshape(len(x), -1)))


def make_model(
    name: str, input_size: int, hidden: int, outputs: int, *, key: Array, steps: int, every_step: bool, **options: Any
) -> Any:
    """The model ``"organics"``, with outputs at the last step or at every one, or ``"organics-static"``.

    ValueError for dropout, whose random numbers no checkpoint of jax has.
    """
    if options.get("dropout"):
        raise ValueError("a model with dropout is trained in torch only: choose the framework torch")
    if name == "organics-static":
        if every_step:
            raise ValueError(f"{name} sees all steps at once and has no output at every step")
        return StaticClassifier(input_size, hidden, outputs, key=key, steps=steps, **options)
    kind = EveryStep if every_step else organics_jax.ORGaNICsClassifier
    return kind(input_size, hidden, outputs, key=key, **options)
