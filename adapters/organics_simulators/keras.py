"""ORGaNICs for Keras 3: cells for ``keras.layers.RNN``, on Keras's torch and jax backends.

``reset_state()`` of a stateful layer writes zeros over the states, whatever the cell, and zeros are not where these
cells start. In its place::

    for state, start in zip(layer.states, layer.cell.get_initial_state(batch_size)):
        state.assign(start)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from organics_core import INTEGRATORS, VARIANTS, Circuit, MaxRates, State, Tableau, checks
from organics_core.cell import (
    CELL_VARIANTS,
    CellParameters,
    CellState,
    cell_rates,
    check_max_rates,
    init_cell,
    normalization_weights,
)
from organics_core.cell import step as cell_step
from organics_core.circuit import field, size

from ._common import explicit, host_circuit, require, start_state, step

require("keras", "keras")

import keras  # noqa: E402


def _namespace() -> Any:
    backend = keras.backend.backend()
    if backend == "torch":
        import array_api_compat.torch as xp
    elif backend == "jax":
        import jax.numpy as xp
    else:
        raise ImportError(
            f"organics_simulators.keras runs on Keras's torch and jax backends, not {backend!r}: set KERAS_BACKEND"
        )
    return xp


def _of_a_batch(value: Any, size: Any) -> Any:
    """(size, n) in memory of its own: a stateful layer writes to its states."""
    return keras.ops.zeros((size, *value.shape), dtype=value.dtype) + value


def _saved_name(method: Tableau) -> str:
    """What a saved model writes of a method; ValueError for one that is not in the table under its name."""
    if INTEGRATORS.get(method.name) is not method:
        raise ValueError(
            f"method must be one of organics_core.INTEGRATORS, by name, got another Tableau {method.name!r}"
        )
    return method.name


@keras.saving.register_keras_serializable(package="organics")
class CircuitCell(keras.layers.Layer):
    """A circuit as a cell: each input of the sequence is the drive z for ``dt`` seconds, each output y.

    Parameters
    ----------
    circuit : Circuit
        Without batch axes, of any library.
    dt : float
        Time between two inputs, in seconds.
    substeps : int
        Integration steps within dt.
    method : str
        An explicit method of :data:`organics_core.INTEGRATORS`.
    variant : {"main", "rectified", "rectified_recurrence"}

    Examples
    --------
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> layer = keras.layers.RNN(CircuitCell(circuit, dt=0.001), return_sequences=True)
    >>> layer(np.ones((3, 10, 2), dtype="float32")).shape == (3, 10, 2)
    True
    """

    def __init__(
        self,
        circuit: Circuit,
        dt: float,
        *,
        substeps: int = 1,
        method: str = "rk4",
        variant: str = "main",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _namespace()
        if isinstance(circuit, dict):  # from get_config
            circuit = Circuit(**{k: v if v is None else np.asarray(v) for k, v in circuit.items()})
        checks.one_of("variant", variant, VARIANTS)
        self.host = host_circuit(circuit, "keras")
        self.dt = checks.positive_number("dt", dt)
        self.substeps = checks.positive_integer("substeps", substeps)
        self.method = _saved_name(explicit(method))
        self.variant = variant
        n = size(self.host)
        self.state_size = [n, n]
        self.output_size = n
        self.rest = start_state(self.host, np.zeros(n), None)

    def build(self, shape: Any) -> None:
        """Nothing is learned: the circuit's fields are constants."""
        if shape[-1] != self.output_size:
            raise ValueError(f"inputs must have {self.output_size} features, one drive per unit, got {shape[-1]}")
        super().build(shape)

    def get_initial_state(self, batch_size: Any = None) -> list[Any]:
        """The state at rest for a batch."""
        return [_of_a_batch(self._constant(part), batch_size) for part in self.rest]

    def _constant(self, value: np.ndarray) -> Any:
        return keras.ops.convert_to_tensor(value, dtype=self.compute_dtype)

    def call(self, inputs: Any, states: Any) -> tuple[Any, list[Any]]:
        """One step of the sequence."""
        xp = _namespace()
        circuit = Circuit._make(None if value is None else self._constant(value) for value in self.host)
        state, h = State(*states), self.dt / self.substeps
        for _ in range(self.substeps):
            state = step(lambda t, s: field(xp, circuit, s, inputs, self.variant), 0.0, state, h, self.method)
        return state.y, list(state)

    def get_config(self) -> dict[str, Any]:
        """For saving and loading."""
        fields = {k: None if v is None else v.tolist() for k, v in self.host._asdict().items()}
        own = {"dt": self.dt, "substeps": self.substeps, "method": self.method, "variant": self.variant}
        return {**super().get_config(), "circuit": fields, **own}


@keras.saving.register_keras_serializable(package="organics")
class ORGaNICsCell(keras.layers.Layer):
    """The trained cell, in place of ``keras.layers.LSTMCell``.

    Parameters
    ----------
    units : int
    recurrent : {"orthogonal", "identity"}
    variant : {"rectified_recurrence", "main"}
    max_rates : MaxRates
    seed : int
        Of the initialization.

    Notes
    -----
    Rawat, Heeger & Martiniani (NeurIPS 2024); the equations stand in :func:`organics_core.cell_step`.

    Examples
    --------
    >>> layer = keras.layers.RNN(ORGaNICsCell(16))
    >>> layer(np.ones((3, 10, 4), dtype="float32")).shape == (3, 16)
    True
    """

    def __init__(
        self,
        units: int,
        *,
        recurrent: str = "orthogonal",
        variant: str = "rectified_recurrence",
        max_rates: Any = MaxRates(),
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _namespace()
        checks.one_of("recurrent", recurrent, ("orthogonal", "identity"))
        checks.one_of("variant", variant, CELL_VARIANTS)
        self.units = checks.positive_integer("units", units)
        self.recurrent, self.variant, self.seed = recurrent, variant, seed
        self.max_rates = check_max_rates(tuple(max_rates))
        self.state_size = [self.units] * 4
        self.output_size = self.units
        self.own: dict[str, Any] = {}

    def build(self, shape: Any) -> None:
        """Make the weights for the number of input features."""
        values, start = init_cell(self.seed, int(shape[-1]), self.units, recurrent=self.recurrent)
        for name, value in values._asdict().items():
            self.own[name] = None if value is None else self._weight(name, value, name != "sigma")
        for name, value in start._asdict().items():
            self.own[f"start_{name}"] = self._weight(f"start_{name}", value, False)
        super().build(shape)

    def _weight(self, name: str, value: np.ndarray, trainable: bool) -> Any:
        weight = self.add_weight(shape=value.shape, name=name, trainable=trainable, initializer="zeros")
        weight.assign(value)
        return weight

    def _value(self, name: str) -> Any:
        weight = self.own[name]
        return None if weight is None else keras.ops.convert_to_tensor(weight)

    def get_initial_state(self, batch_size: Any = None) -> list[Any]:
        """The start state for a batch."""
        return [_of_a_batch(self._value(f"start_{name}"), batch_size) for name in CellState._fields]

    def call(self, inputs: Any, states: Any) -> tuple[Any, list[Any]]:
        """One step of the sequence."""
        xp = _namespace()
        parameters = CellParameters(*(self._value(name) for name in CellParameters._fields))
        w, rates = normalization_weights(xp, parameters.log_w), cell_rates(xp, parameters, self.max_rates)
        state = cell_step(xp, parameters, w, rates, CellState(*states), inputs, self.variant)
        return state.y, list(state)

    def get_config(self) -> dict[str, Any]:
        """For saving and loading."""
        own = {"units": self.units, "recurrent": self.recurrent, "variant": self.variant}
        return {**super().get_config(), **own, "max_rates": list(self.max_rates), "seed": self.seed}
