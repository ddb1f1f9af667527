"""ORGaNICs for The Virtual Brain: every region is a circuit, its units are TVB's modes."""

from __future__ import annotations

from typing import Any

import numpy as np

from organics_core import VARIANTS, Circuit, State, checks, resting_state
from organics_core.circuit import field, size

from ._common import host_circuit, host_numbers, require

require("tvb", "tvb")

from tvb.basic.neotraits.api import Final, List  # noqa: E402
from tvb.simulator.models.base import Model  # noqa: E402


class ORGaNICs(Model):
    """The circuit as a TVB model with the state variables ``y`` and ``a``, one mode per unit.

    The long-range coupling, of y, is added to the input drive. TVB counts
    milliseconds; the circuit's time constants stay in seconds.

    Parameters
    ----------
    circuit : Circuit
        Without batch axes, of any library; the same in every region.
    z : array (n,) or (regions, n)
        Constant input drive.
    variant : {"main", "rectified", "rectified_recurrence"}

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> model = ORGaNICs(circuit, np.array([1.0, 0.0]))
    >>> model.configure()
    >>> model.dfun(np.ones((2, 3, 2)), np.zeros((1, 3, 2))).shape
    (2, 3, 2)
    """

    state_variables = ("y", "a")
    _nvar = 2
    cvar = np.array([0], dtype=np.int32)
    state_variable_range = Final(
        label="State variable ranges [lo, hi]",
        default={"y": np.array([-1.0, 1.0]), "a": np.array([0.0, 1.0])},
        doc="Bounds of random initial conditions.",
    )
    variables_of_interest = List(
        of=str,
        label="Variables available to monitors",
        choices=("y", "a"),
        default=("y", "a"),
        doc="Potentials y and modulators a.",
    )

    def __init__(self, circuit: Circuit, z: Any, *, variant: str = "main", **options: Any) -> None:
        super().__init__(**options)
        checks.one_of("variant", variant, VARIANTS)
        self.circuit = host_circuit(circuit, "tvb")
        self.z = host_numbers(z, "z")
        self.variant = variant
        self.number_of_modes = size(self.circuit)
        if self.z.ndim not in (1, 2):
            raise ValueError(f"z must have shape (n,) or (regions, n), got shape {self.z.shape}")
        checks.vector_shape("z", self.z, self.number_of_modes)

    def initial_conditions(self, regions: int, horizon: int = 1) -> np.ndarray:
        """The state at rest in every region, (horizon, 2, regions, n), for ``Simulator.initial_conditions``."""
        state = resting_state(self.circuit, np.broadcast_to(self.z, (regions, self.number_of_modes)))
        return np.broadcast_to(np.stack(state), (horizon, 2, regions, self.number_of_modes)).copy()

    def dfun(self, state_variables: np.ndarray, coupling: np.ndarray, local_coupling: float = 0.0) -> np.ndarray:
        """y' and a', (2, regions, n), per millisecond."""
        state = State(state_variables[0], state_variables[1])
        z = self.z + coupling[0] + local_coupling * state.y
        return 1e-3 * np.stack(field(np, self.circuit, state, z, self.variant))
