"""ORGaNICs for Nengo: a ``Process`` for ``nengo.Node``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from organics_core import VARIANTS, Circuit, State, checks
from organics_core.circuit import field, relu, size

from ._common import explicit, host_circuit, host_drive, require, start_state, step

require("nengo", "nengo")

import nengo  # noqa: E402
from nengo.params import Parameter  # noqa: E402

OUTPUTS = ("y", "a", "rate", "state")


class ORGaNICsProcess(nengo.Process):
    """The circuit as a Nengo process: the node's input is the drive z, its output the responses.

    The state is made in ``make_state``, so that ``sim.reset()`` restores it; the
    process is frozen and can be pickled.

    Parameters
    ----------
    circuit : Circuit
        Without batch axes, of any library; computed in float64 numpy.
    z : array (n,), optional
        Constant input drive, added to the node's input.
    substeps : int
        Integration steps per simulator step. Nengo's usual dt of 1 ms is half a
        time constant, too long for one step.
    out : {"y", "a", "rate", "state"}
        What the node puts out: potentials, modulators, firing rates
        max(y, 0)**2, or y and a together (2n,).
    state0 : State, optional
        The start; at rest by default.
    method : str or Tableau
        An explicit method of :data:`organics_core.INTEGRATORS`.
    variant : {"main", "rectified", "rectified_recurrence"}

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> with nengo.Network() as net:
    ...     drive = nengo.Node([1.0, 0.0])
    ...     node = nengo.Node(ORGaNICsProcess(circuit, out="a"))
    ...     _ = nengo.Connection(drive, node, synapse=None)
    ...     probe = nengo.Probe(node)
    >>> with nengo.Simulator(net, progress_bar=False) as sim:
    ...     sim.run(0.1)
    >>> sim.data[probe][-1].round(2)
    array([2., 2.])
    """

    circuit = Parameter("circuit", readonly=True)
    z = Parameter("z", optional=True, readonly=True)
    substeps = Parameter("substeps", readonly=True)
    out = Parameter("out", readonly=True)
    state0 = Parameter("state0", readonly=True)
    method = Parameter("method", readonly=True)
    variant = Parameter("variant", readonly=True)

    def __init__(
        self,
        circuit: Circuit,
        z: Any = None,
        *,
        substeps: int = 10,
        out: str = "y",
        state0: State | None = None,
        method: Any = "rk4",
        variant: str = "main",
        **options: Any,
    ) -> None:
        checks.one_of("out", out, OUTPUTS)
        checks.one_of("variant", variant, VARIANTS)
        host = host_circuit(circuit, "nengo")
        n = size(host)
        super().__init__(default_size_in=n, default_size_out=2 * n if out == "state" else n, **options)
        drive = np.zeros(n) if z is None else host_drive(z, n)
        self.circuit = host
        self.z = drive
        self.substeps = checks.positive_integer("substeps", substeps)
        self.out = out
        self.state0 = start_state(host, drive, state0)
        self.method = explicit(method)
        self.variant = variant

    def make_state(self, shape_in: Any, shape_out: Any, dt: float, dtype: Any = None) -> dict[str, np.ndarray]:
        """The start, as Nengo's own signals."""
        return {name: np.array(part, dtype=np.float64) for name, part in zip(("y", "a"), self.state0, strict=True)}

    def make_step(self, shape_in: Any, shape_out: Any, dt: float, rng: Any, state: Any) -> Callable[..., np.ndarray]:
        """A function of (t, z) that advances the state by ``dt``."""
        n, substeps, out = size(self.circuit), self.substeps, self.out
        if shape_in not in ((n,), (0,)):
            raise ValueError(f"the node's size_in must be {n}, the number of neurons, got {shape_in}")
        if shape_out != (self.default_size_out,):
            raise ValueError(f"the node's size_out must be {self.default_size_out} for out={out!r}, got {shape_out}")
        circuit, constant, method, variant = self.circuit, self.z, self.method, self.variant
        y, a = state["y"], state["a"]

        def advance(t: float, x: Any = 0.0) -> np.ndarray:
            z = constant + x
            now = State(y.copy(), a.copy())
            for _ in range(substeps):
                now = step(lambda _, s: field(np, circuit, s, z, variant), t, now, dt / substeps, method)
            y[...], a[...] = now
            if out == "state":
                return np.concatenate(now)
            return now.a if out == "a" else relu(np, now.y) ** 2 if out == "rate" else now.y

        return advance
