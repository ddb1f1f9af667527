"""Wilson-Cowan populations, in continuous time.

Source: Wilson & Cowan, Biophysical Journal 12 (1972), equations 11, 12 and 15.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from array_api_compat import device

from ..backend import Array
from ..linalg import diagonal_matrix
from ..model import Parameter, rows
from ..weights import dense, matvec


class WilsonCowanState(NamedTuple):
    """State of Wilson-Cowan populations.

    Attributes
    ----------
    x : array (..., n)
        Share of the cells of each population that fire per unit of time.
    """

    x: Array


class _WilsonCowanFields(NamedTuple):
    w: Array
    slope: Array
    threshold: Array
    tau: Array
    refractory: Array = 1.0
    k: Array = None


class WilsonCowan(_WilsonCowanFields):
    """n populations of neurons after Wilson and Cowan.

    Attributes
    ----------
    w : array (..., n, n) or operator
        Weights W, any real matrix; ``w[i, j]`` is the weight from population j
        to population i. An inhibitory population has a column of negative ones.
    slope : array (..., n) or number
        Four times the steepest slope of the response function, positive.
    threshold : array (..., n) or number
        Input where the response function is steepest.
    tau : array (..., n) or number
        Time constants in seconds, positive.
    refractory : array (..., n) or number
        Refractory factor r, non-negative; 0 leaves refractoriness out.
    k : array (..., n), number or None
        What the refractory cells are subtracted from, positive. None, as in the
        source: the largest value of the response function.

    Raises
    ------
    TypeError, ValueError
        From whatever takes the populations, naming the field that is wrong.

    Notes
    -----
    With the response function S, which is 0 at 0, of slope a and threshold theta::

        tau x' = -x + (k - r x) S(W x + z)
        S(v) = 1 / (1 + exp(-a (v - theta))) - 1 / (1 + exp(a theta))

    whose largest value is 1 - 1 / (1 + exp(a theta)). At rest x = 0. Where W x + z is
    negative S is so too, down to -1 / (1 + exp(a theta)), and x may follow it below 0. With k = 1
    the factor of S is 1 - r x. The source's figures have a = 1.2 and theta = 2.8
    for excitatory, a = 1 and theta = 4 for inhibitory populations, with r = 1.

    Examples
    --------
    The limit cycle of the source (figure 11): weights 16, 12, 15 and 3, excitatory
    input 1.25; the fixed point that it surrounds is not stable.

    >>> import numpy as np
    >>> import organics_core as oc
    >>> w = np.array([[16.0, -12.0], [15.0, -3.0]])
    >>> a, theta = np.array([1.3, 2.0]), np.array([4.0, 3.7])
    >>> populations = oc.WilsonCowan(w, a, theta, tau=0.01)
    >>> z = np.array([1.25, 0.0])
    >>> run = oc.simulate(populations, z, np.linspace(0.0, 1.0, 1001))
    >>> late = run.state.x[500:, 0]
    >>> bool(late.max() - late.min() > 0.1)
    True
    >>> found = oc.steady_state(populations, z)
    >>> bool(found.converged), bool(oc.spectral_abscissa(populations, found.state, z=z) > 0)
    (True, True)
    """

    __slots__ = ()
    spec: ClassVar[dict[str, Parameter]] = {
        "w": Parameter(axes=2),
        "slope": Parameter("> 0"),
        "threshold": Parameter(),
        "tau": Parameter("> 0"),
        "refractory": Parameter(">= 0"),
        "k": Parameter("> 0", optional=True),
    }
    state = WilsonCowanState
    autonomous: ClassVar[bool] = True

    def field(self, xp: Any, t: Array, x: WilsonCowanState, z: Array) -> WilsonCowanState:
        """The vector field, unchecked: what loops call."""
        response = self._response(xp, self._argument(xp, x, z))
        return WilsonCowanState((self._ready(xp, x) * response - x.x) / self.tau)

    def rates(self, xp: Any, x: WilsonCowanState) -> WilsonCowanState:
        """Activities: the state itself."""
        return x

    def decay(self) -> WilsonCowanState:
        """The time constants."""
        return WilsonCowanState(self.tau)

    def jacobian(self, xp: Any, t: Array, x: WilsonCowanState, z: Array) -> Array:
        """The Jacobian (..., n, n), (-I - diag(r S) + diag((k - r x) S') W) / tau."""
        loss, gain = self._linear(xp, x, z)
        eye = xp.eye(gain.shape[-1], dtype=gain.dtype, device=device(gain))
        return (gain[..., None] * dense(xp, self.w, gain) - diagonal_matrix(xp, loss) - eye) / rows(self.tau)

    def product(
        self, xp: Any, t: Array, x: WilsonCowanState, z: Array, direction: WilsonCowanState
    ) -> WilsonCowanState:
        """The Jacobian times a direction, without the matrix."""
        loss, gain = self._linear(xp, x, z)
        moved = gain * matvec(xp, self.w, direction.x)
        return WilsonCowanState((moved - (1.0 + loss) * direction.x) / self.tau)

    def _argument(self, xp: Any, x: WilsonCowanState, z: Array) -> Array:
        """a (W x + z - theta) / 2, of which S is a hyperbolic tangent."""
        return 0.5 * self.slope * (matvec(xp, self.w, x.x) + z - self.threshold)

    def _response(self, xp: Any, argument: Array) -> Array:
        """S, as a hyperbolic tangent that cannot overflow."""
        return 0.5 * (xp.tanh(argument) + xp.tanh(0.5 * self.slope * self.threshold))

    def _ready(self, xp: Any, x: WilsonCowanState) -> Array:
        """k - r x."""
        k = 0.5 * (1.0 + xp.tanh(0.5 * self.slope * self.threshold)) if self.k is None else self.k
        return k - self.refractory * x.x

    def _linear(self, xp: Any, x: WilsonCowanState, z: Array) -> tuple[Array, Array]:
        """r S and (k - r x) S'."""
        argument = self._argument(xp, x, z)
        steep = 0.25 * self.slope * (1.0 - xp.tanh(argument) ** 2)
        return self.refractory * self._response(xp, argument), self._ready(xp, x) * steep
