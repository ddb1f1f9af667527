"""The stabilized supralinear network, as a circuit in continuous time.

Source: Ahmadian, Rubin & Miller, Neural Computation 25 (2013), equation 1; Rubin,
Van Hooser & Miller, Neuron 85 (2015).
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from array_api_compat import device

from ..backend import Array
from ..model import Parameter, rows
from ..weights import dense, matvec


class SSNState(NamedTuple):
    """State of a stabilized supralinear network.

    Attributes
    ----------
    r : array (..., n)
        Firing rates.
    """

    r: Array


class _SSNFields(NamedTuple):
    w: Array
    k: Array
    exponent: Array
    tau: Array
    g: Array = 1.0


class SSN(_SSNFields):
    """A stabilized supralinear network of n neurons.

    Attributes
    ----------
    w : array (..., n, n) or operator
        Weights W, any real matrix; ``w[i, j]`` is the weight from neuron j to
        neuron i. Dale's law is a matter of their signs: columns of one sign.
    k : array (..., n) or number
        Gain of the power law, positive; rates are in units of k times the
        input to that power, per second say.
    exponent : array (..., n) or number
        Power n of the power law, positive; "supralinear" where it exceeds 1.
    tau : array (..., n) or number
        Time constants in seconds, positive.
    g : array (..., n) or number
        Input gain.

    Raises
    ------
    TypeError, ValueError
        From whatever takes the network, naming the field that is wrong.

    Notes
    -----
    The rates of the neurons, driven by z::

        tau r' = -r + k max(W r + g z, 0)**exponent

    At rest r = 0. At the kink W r + g z = 0 the Jacobian is that of the silent side.

    Examples
    --------
    One excitatory and one inhibitory neuron; the excitatory one alone, whose
    effective weight 2 k sqrt(r / k) w exceeds 1, would run away:

    >>> import numpy as np
    >>> import organics_core as oc
    >>> w = np.array([[1.25, -0.65], [1.2, -0.5]])
    >>> network = oc.SSN(w, k=0.04, exponent=2.0, tau=np.array([0.02, 0.01]))
    >>> z = np.array([30.0, 30.0])
    >>> found = oc.steady_state(network, z)
    >>> run = oc.simulate(network, z, np.linspace(0.0, 1.0, 3))
    >>> bool(abs(run.state.r[-1] - found.state.r).max() < 1e-4 * found.state.r.max())
    True
    >>> bool(oc.spectral_abscissa(network, found.state, z=z) < 0)
    True
    """

    __slots__ = ()
    spec: ClassVar[dict[str, Parameter]] = {
        "w": Parameter(axes=2),
        "k": Parameter("> 0"),
        "exponent": Parameter("> 0"),
        "tau": Parameter("> 0"),
        "g": Parameter(),
    }
    state = SSNState
    autonomous: ClassVar[bool] = True

    def field(self, xp: Any, t: Array, x: SSNState, z: Array) -> SSNState:
        """The vector field, unchecked: what loops call."""
        on, drive = self._drive(xp, x, z)
        target = xp.where(on, self.k * drive**self.exponent, 0.0)
        return SSNState((target - x.r) / self.tau)

    def rates(self, xp: Any, x: SSNState) -> SSNState:
        """Firing rates: the state itself."""
        return x

    def decay(self) -> SSNState:
        """The time constants."""
        return SSNState(self.tau)

    def jacobian(self, xp: Any, t: Array, x: SSNState, z: Array) -> Array:
        """The Jacobian (..., n, n), (-I + diag(k exponent max(W r + g z, 0)**(exponent - 1)) W) / tau."""
        slope = self._slope(xp, x, z)
        eye = xp.eye(slope.shape[-1], dtype=slope.dtype, device=device(slope))
        return (slope[..., None] * dense(xp, self.w, slope) - eye) / rows(self.tau)

    def product(self, xp: Any, t: Array, x: SSNState, z: Array, direction: SSNState) -> SSNState:
        """The Jacobian times a direction, without the matrix."""
        moved = self._slope(xp, x, z) * matvec(xp, self.w, direction.r)
        return SSNState((moved - direction.r) / self.tau)

    def _drive(self, xp: Any, x: SSNState, z: Array) -> tuple[Array, Array]:
        """Where the input W r + g z is positive; and the input there, 1 elsewhere."""
        total = matvec(xp, self.w, x.r) + self.g * z
        on = total > 0
        return on, xp.where(on, total, 1.0)

    def _slope(self, xp: Any, x: SSNState, z: Array) -> Array:
        """Derivative of the power law."""
        on, drive = self._drive(xp, x, z)
        return xp.where(on, self.k * self.exponent * drive ** (self.exponent - 1.0), 0.0)
