"""ORGaNICs for BrainPy: a ``bp.dyn.NeuDyn`` for ``bp.DSRunner``."""

from __future__ import annotations

from typing import Any

import numpy as np

from organics_core import VARIANTS, Circuit, State, checks
from organics_core.circuit import field, size

from ._common import explicit, host_circuit, host_drive, require, start_state, step

require("brainpy", "jax", "brainpy")

import brainpy as bp  # noqa: E402
import brainpy.math as bm  # noqa: E402
import jax.numpy as jnp  # noqa: E402


class ORGaNICs(bp.dyn.NeuDyn):
    """The circuit as BrainPy neurons with the variables ``y`` and ``a``.

    Parameters
    ----------
    circuit : Circuit
        Without batch axes, of any library. BrainPy counts milliseconds; the
        circuit's time constants stay in seconds.
    z : array (n,), optional
        Constant input drive, added to the input of ``update``.
    substeps : int
        Integration steps within dt.
    method : str
        An explicit method of :data:`organics_core.INTEGRATORS`.
    variant : {"main", "rectified", "rectified_recurrence"}
    name, mode
        As for ``bp.dyn.NeuDyn``.

    Examples
    --------
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> runner = bp.DSRunner(ORGaNICs(circuit, z=np.array([1.0, 0.0])), monitors=["y", "a"], progress_bar=False)
    >>> _ = runner.run(100.0)
    >>> np.asarray(runner.mon.a)[-1].round(2)
    array([2., 2.], dtype=float32)
    """

    def __init__(
        self,
        circuit: Circuit,
        z: Any = None,
        *,
        substeps: int = 1,
        method: str = "rk4",
        variant: str = "main",
        name: str | None = None,
        mode: Any = None,
    ) -> None:
        host = host_circuit(circuit, "brainpy")
        n = size(host)
        self.tableau = explicit(method)
        super().__init__(n, name=name, mode=mode, method=self.tableau.name)
        checks.one_of("variant", variant, VARIANTS)
        self.variant = variant
        self.substeps = checks.positive_integer("substeps", substeps)
        self.circuit = Circuit._make(None if v is None else jnp.asarray(v) for v in host)
        self.z = jnp.zeros(n) if z is None else jnp.asarray(host_drive(z, n))
        self.rest = State(*(jnp.asarray(part) for part in start_state(host, np.zeros(n), None)))
        self.reset_state(self.mode)

    def reset_state(self, batch_or_mode: Any = None, **kwargs: Any) -> None:
        """Put the states back to rest."""
        for part in ("y", "a"):
            value = getattr(self.rest, part)
            setattr(self, part, self.init_variable(lambda shape, v=value: jnp.broadcast_to(v, shape), batch_or_mode))

    def update(self, x: Any = None) -> Any:
        """Advance by dt under the drive z + x, and return y."""
        z = self.z if x is None else self.z + bm.as_jax(x)
        h = 1e-3 * bp.share.load("dt") / self.substeps
        state = State(bm.as_jax(self.y.value), bm.as_jax(self.a.value))
        for _ in range(self.substeps):
            state = step(lambda t, s: field(jnp, self.circuit, s, z, self.variant), 0.0, state, h, self.tableau)
        self.y.value, self.a.value = state
        return self.y.value
