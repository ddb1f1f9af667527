"""The cell for ``flax.nnx.RNN``.

>>> from flax import nnx
>>> from organics_jax.flax import ORGaNICsCell
>>> rnn = nnx.RNN(ORGaNICsCell(2, 8, rngs=nnx.Rngs(0)))
>>> rnn(jax.numpy.ones((4, 20, 2))).shape
(4, 20, 8)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from organics_core.cell import CellParameters, CellState, MaxRates

from .recurrent import ORGaNICsCell as _Cell
from .recurrent import check_state

try:
    from flax import nnx
except ImportError:
    raise ImportError("organics_jax.flax needs flax, which is not installed: pip install flax") from None

Array = Any


class Fixed(nnx.Variable):
    """An array of a cell that is not trained: the start state, sigma, and the rates where they are not learned."""


class ORGaNICsCell(nnx.RNNCellBase):
    """The trained ORGaNICs cell as an nnx module; the carry is a CellState, the output is y.

    Parameters
    ----------
    in_features, hidden_features : int
        k and n.
    rngs : flax.nnx.Rngs
    recurrent, variant, max_rates, steps, learn_rates, dtype
        As for :class:`organics_jax.ORGaNICsCell`.

    Attributes
    ----------
    w_zx, w_r, ... : nnx.Param
        The core's fields; ``w_r`` is None for the identity.
    start_y, start_a, start_b0, start_b1 : Fixed

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    Rawat, Heeger & Martiniani (NeurIPS 2024); see :func:`organics_core.cell_step`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        recurrent: str = "orthogonal",
        variant: str = "rectified_recurrence",
        max_rates: MaxRates | tuple[float, float, float] | str = MaxRates(),
        steps: int | None = None,
        learn_rates: bool = True,
        dtype: Any = None,
    ) -> None:
        cell = _Cell(
            in_features,
            hidden_features,
            key=jax.random.key_data(rngs.params()),
            recurrent=recurrent,
            variant=variant,
            max_rates=max_rates,
            steps=steps,
            learn_rates=learn_rates,
            dtype=dtype,
        )
        self.in_features = cell.input_size
        self.hidden_features = cell.hidden_size
        self.recurrent = cell.recurrent
        self.variant = cell.variant
        self.max_rates = cell.max_rates
        self.learn_rates = cell.learn_rates
        for name, value in cell.parameters._asdict().items():
            fixed = name == "sigma" or (name.startswith("theta") and not learn_rates)
            setattr(self, name, None if value is None else Fixed(value) if fixed else nnx.Param(value))
        for name, value in cell.start._asdict().items():
            setattr(self, f"start_{name}", Fixed(value))

    def _module(self) -> _Cell:
        """The Equinox cell over this module's arrays."""
        cell = object.__new__(_Cell)
        values = {name: getattr(self, name) for name in CellParameters._fields}
        values = {name: None if value is None else value[...] for name, value in values.items()}
        fields = {
            "parameters": CellParameters(**values),
            "start": CellState(*(getattr(self, f"start_{name}")[...] for name in CellState._fields)),
            "input_size": self.in_features,
            "hidden_size": self.hidden_features,
            "recurrent": self.recurrent,
            "variant": self.variant,
            "max_rates": self.max_rates,
            "learn_rates": self.learn_rates,
        }
        for name, value in fields.items():
            object.__setattr__(cell, name, value)
        return cell

    def __call__(self, carry: CellState, inputs: Array) -> tuple[CellState, Array]:  # type: ignore[override]
        """One step on inputs (..., k); the new state, and its y."""
        check_state("carry", carry)
        state = self._module()(inputs, carry)
        return state, state.y

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> CellState:
        """The start state for inputs of shape (..., k); ``rngs`` and ``carry_init`` are not needed.

        Raises
        ------
        TypeError
            Where the first argument is no shape, as when ``flax.linen.RNN`` calls.
        """
        if not isinstance(input_shape, (tuple, list)):
            raise TypeError(
                "input_shape must be a shape, as flax.nnx.RNN passes it; flax.linen.RNN passes a key first and has no "
                f"place for this cell: got {type(input_shape).__name__}"
            )
        shape = (*input_shape[:-1], self.hidden_features)
        return CellState(*(jnp.broadcast_to(part, shape) for part in self._module().initial_state()))

    @property
    def num_feature_axes(self) -> int:
        return 1
