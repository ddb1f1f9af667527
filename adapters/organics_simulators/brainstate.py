"""ORGaNICs for brainstate: a ``Dynamics`` with the hidden states y and a, and units."""

from __future__ import annotations

from typing import Any

import numpy as np

from organics_core import VARIANTS, Circuit, State, checks
from organics_core.circuit import field, size

from ._common import explicit, host_circuit, require, start_state, step

require("brainstate", "jax", "brainstate", "brainunit")

import brainstate  # noqa: E402
import brainunit as u  # noqa: E402
import jax.numpy as jnp  # noqa: E402


class ORGaNICs(brainstate.nn.Dynamics):
    """The circuit as a brainstate module: ``update(z)`` advances it by ``brainstate.environ.get_dt()``.

    Parameters
    ----------
    circuit : Circuit
        Without batch axes, of any library.
    substeps : int
        Integration steps within dt.
    method : str or Tableau
        An explicit method of :data:`organics_core.INTEGRATORS`.
    variant : {"main", "rectified", "rectified_recurrence"}
    name : str, optional
        As for ``brainstate.nn.Dynamics``.

    Attributes
    ----------
    y, a : brainstate.HiddenState
        Made by ``init_state(batch_size)``: (n,) or (batch_size, n), at rest.

    Notes
    -----
    dt is a quantity such as ``0.1 * u.ms``; a plain number counts as
    milliseconds, as in the rest of the ecosystem.

    Examples
    --------
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> model = ORGaNICs(circuit)
    >>> model.init_state(batch_size=3)
    >>> with brainstate.environ.context(dt=0.1 * u.ms):
    ...     model.update(jnp.ones((3, 2))).shape
    (3, 2)
    """

    def __init__(
        self, circuit: Circuit, *, substeps: int = 1, method: Any = "rk4", variant: str = "main", name: Any = None
    ) -> None:
        self.host = host_circuit(circuit, "brainstate")
        super().__init__(size(self.host), name=name)
        checks.one_of("variant", variant, VARIANTS)
        self.substeps = checks.positive_integer("substeps", substeps)
        self.method = explicit(method)
        self.variant = variant
        self.circuit = Circuit._make(None if v is None else jnp.asarray(v) for v in self.host)

    def _rest(self, batch_size: int | None) -> State:
        n = size(self.host)
        shape = (n,) if batch_size is None else (batch_size, n)
        return State(*(jnp.broadcast_to(jnp.asarray(p), shape) for p in start_state(self.host, np.zeros(n), None)))

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        """Make the states, at rest."""
        y, a = self._rest(batch_size)
        self.y = brainstate.HiddenState(y)
        self.a = brainstate.HiddenState(a)

    def reset_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        """Put the states back to rest."""
        self.y.value, self.a.value = self._rest(batch_size)

    def derivative(self, z: Any) -> State:
        """y' and a' at the present state, in 1/second."""
        slope = field(jnp, self.circuit, State(self.y.value, self.a.value), jnp.asarray(z), self.variant)
        return State(*(part / u.second for part in slope))

    def update(self, z: Any) -> Any:
        """Advance by dt under the input drive z (..., n), and return y."""
        dt = brainstate.environ.get_dt()
        h = (dt.to_decimal(u.second) if isinstance(dt, u.Quantity) else 1e-3 * dt) / self.substeps
        state, z = State(self.y.value, self.a.value), jnp.asarray(z)
        for _ in range(self.substeps):
            state = step(lambda t, s: field(jnp, self.circuit, s, z, self.variant), 0.0, state, h, self.method)
        self.y.value, self.a.value = state
        return state.y
