"""The three-population circuit of primary visual cortex, with its gamma-band resonance.

Source: Heeger & Zemlianova (PNAS 2020). It has the normalization steady state of
the main circuit; an extra population u makes its response to noise resonate in
the gamma band (30-80 Hz), at a frequency that rises with contrast.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from array_api_compat import device

from .. import checks
from ..backend import Array, get_backend, to_numpy
from ..circuit import Circuit, State, relu, sqrt_relu
from ..equilibria import NONE_ALLOWED, SteadyState, steady_state
from ..linalg import diagonal_matrix
from ..model import Parameter, block_matrix, prepare, rows, validate
from ..noise import Noise, power_spectrum
from ..weights import dense, matvec


class _V1Fields(NamedTuple):
    w_r: Array
    w: Array
    b0: Array
    sigma: Array
    alpha: Array
    tau_y: Array
    tau_u: Array
    tau_a: Array


class V1State(NamedTuple):
    """State of the three-population circuit.

    Attributes
    ----------
    y : array (..., n)
        Membrane potentials of the principal neurons.
    u : array (..., n)
        Membrane potentials of the population that computes the normalization pool.
    a : array (..., n)
        Membrane potentials of the modulators, which divide the recurrent drive by 1 + a.
    """

    y: Array
    u: Array
    a: Array


class V1Circuit(_V1Fields):
    """The three-population circuit of n principal neurons.

    Attributes
    ----------
    w_r : array (..., n, n) or None
        Recurrent weights; ``None`` is the identity.
    w : array (..., n, n)
        Normalization weights, non-negative.
    b0 : array (..., n) or number
        Input gain, positive; the input and sigma are multiplied by
        B = b0 / (1 + b0).
    sigma : array (..., n) or number
        Semi-saturation constant, positive.
    alpha : array (..., n) or number
        Gain of the derivative of u in the modulator a, non-negative.
    tau_y, tau_u, tau_a : array (..., n) or number
        Time constants in seconds, positive.

    Raises
    ------
    TypeError, ValueError
        From whatever takes the circuit, naming the field that is wrong.

    Notes
    -----
    With r = sqrt(max(u, 0)) and B = b0 / (1 + b0)::

        tau_y y' = -y + B z + (W_r y) / (1 + a)
        tau_u u' = -u + (u / r**2) (W (r**2 y**2) + (sigma B)**2)
        tau_a a' = -a + r + a r + alpha (dr/du) tau_u u'

    The factor u / r**2 is 1 where u > 0. It is taken as 1 for u <= 0 too, its
    continuous extension: u is then driven back above zero.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit = V1Circuit(None, np.ones((2, 2)), 0.5, 0.1, 0.1, 0.002, 0.002, 0.002)
    >>> run = oc.simulate(circuit, np.array([0.5, 0.1]), np.linspace(0, 1.0, 3))
    >>> bool(abs(run.state.y[-1] - oc.steady_state(circuit, np.array([0.5, 0.1])).state.y).max() < 1e-5)
    True
    """

    __slots__ = ()
    spec: ClassVar[dict[str, Parameter]] = {
        "w_r": Parameter(axes=2, optional=True),
        "w": Parameter(">= 0", axes=2),
        "b0": Parameter("> 0"),
        "sigma": Parameter("> 0"),
        "alpha": Parameter(">= 0"),
        "tau_y": Parameter("> 0"),
        "tau_u": Parameter("> 0"),
        "tau_a": Parameter("> 0"),
    }
    state = V1State
    autonomous: ClassVar[bool] = True
    additive: ClassVar[bool] = True

    def field(self, xp: Any, t: Array, x: V1State, z: Array) -> V1State:
        """The vector field, unchecked: what loops call."""
        y, u, a = x
        gain = _gain(self)
        root = sqrt_relu(xp, u)
        recurrent = y if self.w_r is None else matvec(xp, self.w_r, y)
        dy = -y + gain * z + recurrent / (1.0 + a)
        du = -u + matvec(xp, self.w, relu(xp, u) * y * y) + (self.sigma * gain) ** 2
        da = -a + root + a * root + self.alpha * _slope_of_root(xp, u, root) * du
        return V1State(dy / self.tau_y, du / self.tau_u, da / self.tau_a)

    def rest(self, xp: Any, z: Array) -> V1State:
        """The fixed point without input; ValueError where there is none (B sigma >= 1)."""
        root = _gain(self) * self.sigma
        if get_backend(xp).is_concrete(root) and bool(xp.any(root >= 1.0)):
            raise ValueError(
                "this circuit has no rest: B sigma, with B = b0 / (1 + b0), must be below 1, or the modulator grows "
                f"without bound; got {float(to_numpy(xp.max(root))):g}"
            )
        zero = xp.zeros_like(z)
        return V1State(zero, zero + root**2, zero + root / (1.0 - root))

    def rates(self, xp: Any, x: V1State) -> V1State:
        """Firing rates: y**2, of a neuron and its complement together, sqrt(u) and a."""
        return V1State(x.y * x.y, sqrt_relu(xp, x.u), x.a)

    def decay(self) -> V1State:
        """The time constants."""
        return V1State(self.tau_y, self.tau_u, self.tau_a)

    def jacobian(self, xp: Any, t: Array, x: V1State, z: Array) -> Array:
        """The Jacobian (..., 3n, 3n), which does not depend on t and z.

        For u > 0, with r = sqrt(u), g = 1 / (2 r) and f = tau_u u'::

            y:  -I + diag(1 / (1 + a)) W_r    0                                    -diag(W_r y / (1 + a)**2)
            u:  2 W diag(u y)                 -I + W diag(y**2)                    0
            a:  alpha g 2 W diag(u y)         diag((1 + a) g - alpha g f / (2 u))  -I + diag(r)
                                                + alpha g (-I + W diag(y**2))

        each row divided by its own tau.
        """
        y, u, a = x
        zero = xp.zeros_like(y + u + a)
        y, u, a = y + zero, u + zero, a + zero
        eye = xp.eye(y.shape[-1], dtype=y.dtype, device=device(y))
        root = sqrt_relu(xp, u)
        slope = _slope_of_root(xp, u, root)
        live = xp.where(u > 0, xp.ones_like(u), xp.zeros_like(u))
        w_r = eye if self.w_r is None else dense(xp, self.w_r, y, "w_r")
        w = dense(xp, self.w, y)
        recurrent = y if self.w_r is None else matvec(xp, self.w_r, y)
        du = -u + matvec(xp, self.w, relu(xp, u) * y * y) + (self.sigma * _gain(self)) ** 2
        inverse = 1.0 / (1.0 + a)
        u_y = 2.0 * w * (relu(xp, u) * y)[..., None, :]
        u_u = -eye + w * (live * y * y)[..., None, :]
        scale = self.alpha * slope
        # d(dr/du)/du = -2 (dr/du)**3
        bend = -2.0 * self.alpha * slope**3 * du
        a_u = diagonal_matrix(xp, (1.0 + a) * slope + bend + zero) + scale[..., None] * u_u
        per_y, per_u, per_a = rows(self.tau_y), rows(self.tau_u), rows(self.tau_a)
        nothing = xp.zeros_like(eye)
        return block_matrix(
            xp,
            [
                [
                    (-eye + inverse[..., None] * w_r) / per_y,
                    nothing,
                    -diagonal_matrix(xp, recurrent * inverse * inverse + zero) / per_y,
                ],
                [u_y / per_u, u_u / per_u, nothing],
                [
                    scale[..., None] * u_y / per_a,
                    a_u / per_a,
                    (-eye + diagonal_matrix(xp, root)) / per_a,
                ],
            ],
        )

    def equilibrium(self, z: Array, **options: Any) -> SteadyState:
        """The fixed point, from that of a main circuit.

        At a fixed point a = r + a r, so that 1 / (1 + a) = 1 - r with r = sqrt(u).
        What remains are the equations of the main circuit in (y, u) with
        b = b0 = B. For W_r = I, therefore::

            u = (B sigma)**2 + W (B z)**2,   y = B z / sqrt(u),   a = sqrt(u) / (1 - sqrt(u))
            y**2 = (B z)**2 / ((B sigma)**2 + W (B z)**2),  the normalization equation

        provided that u < 1; where some u >= 1 there is no fixed point with
        a >= 0, ``converged`` is false and ``message`` says so. With another W_r
        the main circuit may have several fixed points: where that to which the
        method leads has some u >= 1, or none is found, it starts once more, from rest.
        """
        xp = validate(self, values=True, name="circuit", z=z)
        circuit, z = prepare(xp, self, z)
        gain = _gain(circuit)
        main = Circuit(circuit.w_r, circuit.w, gain, gain, circuit.sigma, circuit.tau_y, circuit.tau_u)
        found = steady_state(main, z, attracting=False, **options)
        lacking = ~(found.converged & xp.all(found.state.a < 1.0, axis=-1))
        if circuit.w_r is not None and not (get_backend(xp).is_concrete(lacking) and not bool(xp.any(lacking))):
            zero = xp.zeros_like(found.state.y)
            other = steady_state(
                main, z, attracting=False, state0=State(zero, zero + (gain * circuit.sigma) ** 2), **options
            )
            take = lacking & other.converged & xp.all(other.state.a < 1.0, axis=-1)
            found = _where(xp, take, other, found)
        y, u = found.state
        root = xp.sqrt(u)
        exists = root < 1.0
        a = xp.where(exists, root / xp.where(exists, 1.0 - root, xp.ones_like(root)), xp.full_like(root, xp.inf))
        sound = xp.all(exists, axis=-1)
        status = xp.where(found.converged & ~sound, xp.full_like(found.status, NONE_ALLOWED), found.status)
        return found._replace(state=V1State(y, u, a), converged=found.converged & sound, status=status)


def _where(xp: Any, take: Array, new: SteadyState, old: SteadyState) -> SteadyState:
    """``new`` where ``take`` is true, else ``old``; the iterations are those of both together."""
    y, a = (xp.where(take[..., None], one, other) for one, other in zip(new.state, old.state, strict=True))
    residual, status = (xp.where(take, getattr(new, name), getattr(old, name)) for name in ("residual", "status"))
    iterations = xp.where(take, new.iterations + old.iterations, old.iterations)
    return old._replace(
        state=State(y, a), converged=take | old.converged, iterations=iterations, residual=residual, status=status
    )


def _gain(circuit: V1Circuit) -> Array:
    return circuit.b0 / (1.0 + circuit.b0)


def _slope_of_root(xp: Any, u: Array, root: Array) -> Array:
    """d sqrt(max(u, 0)) / du, 0 where u <= 0."""
    positive = u > 0
    return xp.where(positive, 0.5 / xp.where(positive, root, xp.ones_like(root)), xp.zeros_like(root))


def gamma_peak(
    circuit: V1Circuit,
    z: Array,
    noise: Noise = (1.0, 0.0, 0.0),
    *,
    unit: int = 0,
    band: tuple[float, float] = (1.0, 300.0),
    resolution: int = 600,
) -> tuple[Array, Array]:
    """Frequency at which the power of a principal neuron's fluctuations peaks.

    Parameters
    ----------
    circuit : V1Circuit
    z : array (..., n)
        Input drives; one contrast per batch member, say.
    noise
        L in dx = f dt + L dB, in the order (y, u, a), as in :func:`power_spectrum`;
        by default the input of the principal neurons is noisy.
    unit : int
        Which principal neuron.
    band : (float, float)
        In Hz, where to look.
    resolution : int
        Number of frequencies; the peak is refined by a parabola through three.

    Returns
    -------
    frequency : array (...)
        In Hz, of the highest peak inside the band; NaN where there is none, as where the power falls monotonically.
    power : array (..., resolution)
        Power spectral density of y at the frequencies ``linspace(*band, resolution)``.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError where no fixed point was
        found, or that of :func:`steady_state` is not stable.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit = oc.V1Circuit(None, np.ones((1, 1)), 0.5, 0.1, 0.1, 0.002, 0.002, 0.002)
    >>> frequency, power = oc.gamma_peak(circuit, np.array([[0.2], [1.0]]), band=(1.0, 200.0))
    >>> frequency.round(0), power.shape
    (array([20., 38.]), (2, 600))
    """
    resolution = checks.positive_integer("resolution", resolution)
    if not isinstance(band, (tuple, list)) or len(band) != 2:
        raise ValueError(f"band must be two rising frequencies with resolution >= 3, got {band!r} and {resolution}")
    low, high = (checks.positive_number("band", value) for value in band)
    if not (high > low and resolution >= 3):
        raise ValueError(f"band must be two rising frequencies with resolution >= 3, got {band} and {resolution}")
    xp = validate(circuit, values=True, name="circuit", kind=V1Circuit, z=z)
    n = int(z.shape[-1])
    one = hasattr(unit, "__index__") and not isinstance(unit, bool) and not getattr(unit, "shape", None)
    if not one or not 0 <= int(unit) < n:
        raise ValueError(f"unit must be one of the principal neurons 0 to {n - 1}, got {unit!r}")
    circuit, z = prepare(xp, circuit, z)
    frequencies = xp.linspace(low, high, resolution, dtype=z.dtype, device=device(z))
    found = steady_state(circuit, z)
    if get_backend(xp).is_concrete(z) and not bool(xp.all(found.converged)):
        bad = [int(i) for i in (~to_numpy(found.converged)).reshape(-1).nonzero()[0]]
        where = "" if z.ndim == 1 else f" for member {bad[0]} of the batch"
        raise ValueError(
            f"z must leave a fixed point with a >= 0 (every u < 1), and none was found{where}: lower the drive or b0"
        )
    spectrum = power_spectrum(circuit, found.state, noise, frequencies)
    power = xp.real(spectrum[..., unit, unit])
    inner = power[..., 1:-1]
    summit = (inner > power[..., :-2]) & (inner > power[..., 2:])
    height = xp.where(summit, inner, xp.zeros_like(inner))
    index = xp.argmax(height, axis=-1)
    chosen = index[..., None] == xp.arange(resolution - 2, device=device(z))

    def pick(values: Array) -> Array:
        return xp.sum(xp.where(chosen, values, xp.zeros_like(values)), axis=-1)

    left, middle, right = pick(power[..., :-2]), pick(inner), pick(power[..., 2:])
    found = xp.max(height, axis=-1) > 0
    curvature = xp.where(found, left - 2.0 * middle + right, xp.ones_like(middle))
    shift = 0.5 * (left - right) / curvature
    step = (high - low) / (resolution - 1)
    frequency = pick(xp.broadcast_to(frequencies[1:-1], inner.shape)) + step * shift
    return xp.where(found, frequency, xp.full_like(frequency, xp.nan)), power
