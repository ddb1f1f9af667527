"""The three-population circuit of primary visual cortex, with its gamma-band resonance.

Source: Heeger & Zemlianova (PNAS 2020). It has the normalization steady state of
the main circuit; an extra population u makes its response to noise resonate in
the gamma band (30-80 Hz), at a frequency that rises with contrast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from array_api_compat import device

from .. import checks
from ..backend import Array
from ..circuit import Circuit
from ..dynamics import relu, sqrt_relu
from ..equilibria import METHODS, steady_state
from ..integration import Tableau, Trajectory, _check_times, _clock, _integrate, _read_drive
from ..linalg import broadcast_shapes, diagonal_matrix, matvec
from ..noise import Noise, linear_power_spectrum, noise_arrays
from ..stability import _block, _rows
from ..stochastic import run_sde

_NUMBERS = ("b0", "sigma", "alpha", "tau_y", "tau_u", "tau_a")
_ALLOWED = {
    "w_r": "any",
    "w": ">= 0",
    "b0": "> 0",
    "sigma": "> 0",
    "alpha": ">= 0",
    "tau_y": "> 0",
    "tau_u": "> 0",
    "tau_a": "> 0",
}


class V1Circuit(NamedTuple):
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
    """

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


class V1SteadyState(NamedTuple):
    """A fixed point of the three-population circuit, and how far to trust it.

    Attributes
    ----------
    state : V1State of arrays (..., n)
    converged : boolean array (...)
        Whether it is a fixed point with a >= 0, to the tolerance. False where
        u >= 1: the modulator then grows without bound.
    iterations : integer array (...)
    residual : array (...)
        As of :func:`steady_state`.
    """

    state: V1State
    converged: Array
    iterations: Array
    residual: Array


def _validate(circuit: V1Circuit, **others: Array) -> Any:
    if not isinstance(circuit, tuple) or getattr(circuit, "_fields", None) != V1Circuit._fields:
        raise TypeError(f"circuit must be a V1Circuit, got {checks.describe(circuit)}")
    fields = circuit._asdict()
    xp = checks.namespace({**fields, **others}, numbers=_NUMBERS, optional=("w_r",))
    n = checks.matrix_shape("w", circuit.w, None)
    if circuit.w_r is not None:
        checks.matrix_shape("w_r", circuit.w_r, n)
    for name in _NUMBERS:
        checks.vector_shape(name, fields[name], n, scalar=True)
    for name, value in others.items():
        checks.vector_shape(name, value, n)
    every = {**fields, **others}
    checks.batch_shape({name: (value, 2 if name in ("w", "w_r") else 1) for name, value in every.items()})
    for name, allowed in _ALLOWED.items():
        checks.values(xp, name, fields[name], allowed)
    return xp


def _prepare(xp: Any, circuit: V1Circuit, *others: Array) -> tuple[Any, ...]:
    """The circuit with every field an array of the common dtype, and ``others`` likewise."""
    arrays = [value for value in (*circuit, *others) if value is not None and not checks.is_number(value)]
    dtype, where = xp.result_type(*arrays), device(arrays[0])

    def convert(value: Any) -> Array:
        if value is None:
            return None
        if checks.is_number(value):
            return xp.asarray(float(value), dtype=dtype, device=where)
        return xp.astype(value, dtype, copy=False)

    return (V1Circuit(*(convert(value) for value in circuit)), *(convert(value) for value in others))


def _state_fields(state: V1State, name: str = "state") -> dict[str, Array]:
    if not isinstance(state, tuple) or len(state) != 3:
        raise TypeError(f"{name} must be a V1State(y, u, a), got {checks.describe(state)}")
    return {f"{name}.{field}": value for field, value in zip(V1State._fields, state, strict=True)}


def _gain(circuit: V1Circuit) -> Array:
    return circuit.b0 / (1.0 + circuit.b0)


def _slope_of_root(xp: Any, u: Array, root: Array) -> Array:
    """d sqrt(max(u, 0)) / du, 0 where u <= 0."""
    positive = u > 0
    return xp.where(positive, 0.5 / xp.where(positive, root, xp.ones_like(root)), xp.zeros_like(root))


def _field(xp: Any, circuit: V1Circuit, state: V1State, z: Array) -> V1State:
    y, u, a = state
    gain = _gain(circuit)
    root = sqrt_relu(xp, u)
    recurrent = y if circuit.w_r is None else matvec(xp, circuit.w_r, y)
    dy = -y + gain * z + recurrent / (1.0 + a)
    du = -u + matvec(xp, circuit.w, relu(xp, u) * y * y) + (circuit.sigma * gain) ** 2
    da = -a + root + a * root + circuit.alpha * _slope_of_root(xp, u, root) * du
    return V1State(dy / circuit.tau_y, du / circuit.tau_u, da / circuit.tau_a)


def v1_vector_field(circuit: V1Circuit, state: V1State, z: Array) -> V1State:
    """Time derivative of the state of the three-population circuit.

    Parameters
    ----------
    circuit : V1Circuit
    state : V1State of arrays (..., n)
    z : array (..., n)
        Input drive.

    Returns
    -------
    V1State of arrays (..., n)
        Per second.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    Heeger & Zemlianova (2020), with r = sqrt(max(u, 0)) and B = b0 / (1 + b0)::

        tau_y y' = -y + B z + (W_r y) / (1 + a)
        tau_u u' = -u + (u / r**2) (W (r**2 y**2) + (sigma B)**2)
        tau_a a' = -a + r + a r + alpha (dr/du) tau_u u'

    The factor u / r**2 is 1 where u > 0. It is taken as 1 for u <= 0 too, its
    continuous extension: u is then driven back above zero.
    """
    xp = _validate(circuit, **_state_fields(state), z=z)
    circuit, y, u, a, z = _prepare(xp, circuit, *state, z)
    return _field(xp, circuit, V1State(y, u, a), z)


def v1_jacobian(circuit: V1Circuit, state: V1State) -> Array:
    """Jacobian of the three-population circuit, analytically.

    Parameters
    ----------
    circuit : V1Circuit
    state : V1State of arrays (..., n)

    Returns
    -------
    array (..., 3n, 3n)
        In the order (y, u, a), per second.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    For u > 0, with r = sqrt(u), g = 1 / (2 r) and f = tau_u u'::

        y:  -I + diag(1 / (1 + a)) W_r    0                                        -diag(W_r y / (1 + a)**2)
        u:  2 W diag(u y)                 -I + W diag(y**2)                        0
        a:  alpha g 2 W diag(u y)         diag((1 + a) g - alpha g f / (2 u))      -I + diag(r)
                                            + alpha g (-I + W diag(y**2))

    each row divided by its own tau. It does not depend on z.
    """
    xp = _validate(circuit, **_state_fields(state))
    circuit, y, u, a = _prepare(xp, circuit, *state)
    zero = xp.zeros_like(y + u + a)
    y, u, a = y + zero, u + zero, a + zero
    eye = xp.eye(y.shape[-1], dtype=y.dtype, device=device(y))
    root = sqrt_relu(xp, u)
    slope = _slope_of_root(xp, u, root)
    live = xp.where(u > 0, xp.ones_like(u), xp.zeros_like(u))
    w_r = eye if circuit.w_r is None else circuit.w_r
    recurrent = y if circuit.w_r is None else matvec(xp, circuit.w_r, y)
    du = -u + matvec(xp, circuit.w, relu(xp, u) * y * y) + (circuit.sigma * _gain(circuit)) ** 2
    inverse = 1.0 / (1.0 + a)
    u_y = 2.0 * circuit.w * (relu(xp, u) * y)[..., None, :]
    u_u = -eye + circuit.w * (live * y * y)[..., None, :]
    scale = circuit.alpha * slope
    # d(dr/du)/du = -2 (dr/du)**3
    bend = -2.0 * circuit.alpha * slope**3 * du
    a_u = diagonal_matrix(xp, (1.0 + a) * slope + bend + zero) + scale[..., None] * u_u
    per_y, per_u, per_a = _rows(circuit.tau_y), _rows(circuit.tau_u), _rows(circuit.tau_a)
    nothing = xp.zeros_like(eye)
    return _block(
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


def v1_steady_state(
    circuit: V1Circuit, z: Array, *, method: str = "auto", tol: float | None = None, max_iterations: int = 500
) -> V1SteadyState:
    """Fixed point of the three-population circuit under a constant input drive.

    Parameters
    ----------
    circuit : V1Circuit
    z : array (..., n)
        Input drive.
    method, tol, max_iterations
        As of :func:`steady_state`.

    Returns
    -------
    V1SteadyState
        ``converged`` is false where some u >= 1: there is then no fixed point
        with a >= 0.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    At a fixed point a = r + a r, so that 1 / (1 + a) = 1 - r with r = sqrt(u).
    What remains are the equations of the main circuit in (y, u) with
    b = b0 = B. For W_r = I, therefore::

        u = (B sigma)**2 + W (B z)**2,   y = B z / sqrt(u),   a = sqrt(u) / (1 - sqrt(u))
        y**2 = (B z)**2 / ((B sigma)**2 + W (B z)**2),  the normalization equation

    provided that u < 1.
    """
    checks.one_of("method", method, METHODS)
    xp = _validate(circuit, z=z)
    circuit, z = _prepare(xp, circuit, z)
    gain = _gain(circuit)
    main = Circuit(circuit.w_r, circuit.w, gain, gain, circuit.sigma, circuit.tau_y, circuit.tau_u)
    found = steady_state(main, z, method=method, tol=tol, max_iterations=max_iterations)
    y, u = found.state
    root = xp.sqrt(u)
    exists = root < 1.0
    a = xp.where(exists, root / xp.where(exists, 1.0 - root, xp.ones_like(root)), xp.full_like(root, xp.inf))
    return V1SteadyState(V1State(y, u, a), found.converged & xp.all(exists, axis=-1), found.iterations, found.residual)


@dataclass(frozen=True)
class _V1Field:
    """The field for the loops; ``arguments`` are the circuit and a constant drive, if it is one."""

    function: Callable[[Array], Array] | None

    def __call__(self, xp: Any, t: Array, state: Any, arguments: Any, z: Array) -> V1State:
        circuit, constant = arguments
        if self.function is not None:
            drive = xp.astype(self.function(_clock(xp, t, state[0])), state[0].dtype, copy=False)
        else:
            drive = z if constant is None else constant
        return _field(xp, V1Circuit(*circuit), V1State(*state), drive)


def simulate_v1(
    circuit: V1Circuit,
    z: Array | Callable[[Array], Array],
    times: Array,
    *,
    state0: V1State | None = None,
    method: str | Tableau | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    drive: str = "auto",
    substeps: int = 1,
    max_steps: int = 100_000,
    noise: Noise = None,
    seed: int = 0,
    increments: Array | None = None,
) -> Trajectory:
    """Simulate the three-population circuit, with or without noise.

    Parameters
    ----------
    circuit : V1Circuit
    z : array (..., n), array (T, ..., n) or callable
        Input drive, as in :func:`simulate`.
    times : array (T,)
        In seconds, increasing.
    state0 : V1State, optional
        At ``times[0]``; by default the fixed point without input (y = 0).
    method : str or Tableau, optional
        One of :func:`simulate`'s, ``"dopri5"`` by default; with noise one of
        :func:`simulate_sde`'s, ``"stochastic_heun"`` by default.
    rtol, atol, max_steps
        Of the adaptive method.
    drive, substeps
        As in :func:`simulate`.
    noise : number, array (..., 3n), array (..., 3n, m) or tuple, optional
        L in dx = f dt + L dB, in the order (y, u, a).
    seed, increments
        As in :func:`simulate_sde`.

    Returns
    -------
    Trajectory
        Of V1State.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    others = {} if state0 is None else _state_fields(state0, "state0")
    extra = {} if noise is None else {**noise_arrays(noise), "increments": increments}
    xp = checks.namespace({"times": times, **others, **extra}, optional=("increments",))
    times = _check_times(xp, times)
    given = _read_drive(xp, z, times, drive)
    _validate(circuit, **given.named_sample, **others)
    for name, value in {**others, **extra}.items():
        checks.values(xp, name, value, "any")
    circuit, sample, times, *start = _prepare(xp, circuit, *given.named_sample.values(), times, *others.values())
    rest = v1_steady_state(circuit._replace(w_r=None), 0.0 * sample).state
    initial = V1State(*start) if start else rest
    shape = broadcast_shapes(*(tuple(part.shape) for part in (*initial, *rest)))
    if circuit.w_r is not None:
        shape = broadcast_shapes(shape, (*circuit.w_r.shape[:-2], shape[-1]))
    initial = V1State(*(xp.broadcast_to(part, shape) for part in initial))
    field = _V1Field(given.function)
    values = None if given.sampled is None else xp.astype(given.sampled, times.dtype, copy=False)
    arguments = (tuple(circuit), None if given.constant is None else sample)
    if noise is not None:
        chosen = "stochastic_heun" if method is None else method
        return run_sde(
            xp,
            field,
            arguments,
            initial,
            times,
            values,
            noise,
            increments,
            seed=seed,
            method=chosen,  # type: ignore[arg-type]
            substeps=substeps,
        )
    return _integrate(
        xp,
        field,
        arguments,
        initial,
        times,
        V1State(circuit.tau_y, circuit.tau_u, circuit.tau_a),
        values,
        method="dopri5" if method is None else method,
        rtol=rtol,
        atol=atol,
        substeps=substeps,
        max_steps=max_steps,
        dense=False,
    )


def v1_power_spectrum(circuit: V1Circuit, z: Array, noise: Noise, frequencies: Array) -> Array:
    """Power spectral density matrix of the noisy circuit around its fixed point.

    Parameters
    ----------
    circuit : V1Circuit
    z : array (..., n)
        Input drive.
    noise : number, array (..., 3n) or array (..., 3n, m) or tuple
        L in dx = f dt + L dB, in the order (y, u, a).
    frequencies : array (F,)
        In Hz.

    Returns
    -------
    complex array (..., F, 3n, 3n)
        With the conventions of :func:`power_spectrum`.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError where the circuit has no
        stable fixed point.
    """
    state = v1_steady_state(circuit, z).state
    if isinstance(noise, tuple):
        noise = _concatenated(state.y, noise)
    return linear_power_spectrum(v1_jacobian(circuit, state), noise, frequencies)


def _concatenated(like: Array, noise: tuple[Any, ...]) -> Array:
    from ..noise import noise_term

    xp = checks.namespace({"z": like, **noise_arrays(noise)})
    return noise_term(xp, noise, (int(like.shape[-1]),) * 3, like).amplitude


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
        As in :func:`v1_power_spectrum`; by default the input of the principal
        neurons is noisy.
    unit : int
        Which principal neuron.
    band : (float, float)
        In Hz, where to look.
    resolution : int
        Number of frequencies; the peak is refined by a parabola through three.

    Returns
    -------
    frequency : array (...)
        In Hz; NaN where the power falls monotonically: no resonance.
    power : array (..., resolution)
        Power spectral density of y at the frequencies ``linspace(*band, resolution)``.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError where the circuit has no
        stable fixed point.
    """
    resolution = checks.positive_integer("resolution", resolution)
    low, high = (checks.positive_number("band", value) for value in band)
    if not (high > low and math.isfinite(high) and resolution >= 3):
        raise ValueError(f"band must be two rising frequencies with resolution >= 3, got {band} and {resolution}")
    xp = _validate(circuit, z=z)
    circuit, z = _prepare(xp, circuit, z)
    frequencies = xp.linspace(low, high, resolution, dtype=z.dtype, device=device(z))
    spectrum = v1_power_spectrum(circuit, z, noise, frequencies)
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
