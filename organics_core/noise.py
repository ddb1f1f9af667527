"""Noise at a stable fixed point: covariance, power spectral density, coherence.

Source: the linear noise approximation dx = J x dt + L dB around a stable fixed
point (Rawat & Martiniani, arXiv 2305.19890, for circuits of this kind). The
functions ``linear_*`` take any stable Jacobian, the others a circuit.
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any, NamedTuple

from array_api_compat import array_namespace, device, is_array_api_obj

from . import checks
from .backend import Array, as_one, get_backend, quiet, to_numpy
from .circuit import VARIANTS, Circuit, kinks, sqrt_relu
from .linalg import broadcast_shapes, diagonal_matrix, eigenvalues, matmul, solve, transpose, widen
from .model import Layout, block_matrix, packed_jacobian
from .stability import Linear, linearized

Noise = Any
"""A number, amplitudes (..., N), a matrix L (..., N, m), or a tuple of amplitudes per population; or one of the
descriptions below, or a function of the state that returns one of the forms above."""


class MultiplicativeNoise(NamedTuple):
    """White noise in proportion to the state: the amplitude of a component x is ``scale * abs(x)``.

    Attributes
    ----------
    scale : number, array (..., N) or tuple
        Per square root of a second: one for all components, one for each, or one
        number or array per population, y before a.

    Examples
    --------
    >>> import numpy as np
    >>> from organics_core import Circuit, State
    >>> circuit = Circuit(None, np.ones((1, 1)), 1.0, 1.0, 1.0, 0.01, 0.01)
    >>> state = State(np.array([0.0]), np.array([1.0]))
    >>> noise_covariance(circuit, state, MultiplicativeNoise((0.0, 2.0))).round(6)
    array([[0.  , 0.  ],
           [0.  , 0.02]])
    """

    scale: Any = 1.0

    def at(self, xp: Any, model: Any, state: Any) -> tuple[Array, ...]:
        """The amplitudes, one array per population."""
        return _times(xp, self.scale, [xp.abs(part) for part in state])


class FiringRateNoise(NamedTuple):
    """Poisson-like white noise: the variance per time of a component is ``scale**2`` times its firing rate.

    Attributes
    ----------
    scale : number, array (..., N) or tuple
        As in :class:`MultiplicativeNoise`. The rates are the model's: of a
        Circuit y**2, that of a neuron and its complement together, and sqrt(a).
    """

    scale: Any = 1.0

    def at(self, xp: Any, model: Any, state: Any) -> tuple[Array, ...]:
        """The amplitudes, one array per population."""
        rates = getattr(model, "rates", None)
        if rates is None:
            raise ValueError(
                f"noise must be another one than FiringRateNoise: a {type(model).__name__} does not say its rates "
                "(a method rates(xp, state)); a function of the state will do"
            )
        return _times(xp, self.scale, [sqrt_relu(xp, part) for part in rates(xp, state)])


class ColouredNoise(NamedTuple):
    """Noise through a low-pass filter (Ornstein-Uhlenbeck): dx = (f + L eta) dt, tau d eta = -eta dt + dB.

    For tau towards 0 it is the white noise L dB; its power is that of L dB over
    1 + (omega tau)**2, and the variance of eta 1 / (2 tau).

    Attributes
    ----------
    noise : number, array (..., N), array (..., N, m), tuple or description
        L, as for white noise.
    tau : number or array (..., m)
        Correlation time in seconds.
    """

    noise: Any
    tau: Any


def _times(xp: Any, scale: Any, sizes: list[Array]) -> tuple[Array, ...]:
    """``scale``, one, one per component or one per population, times the arrays ``sizes``."""
    edges = [0, *itertools.accumulate(int(size.shape[-1]) for size in sizes)]
    if not isinstance(scale, tuple):
        checks.vector_shape("scale", scale, edges[-1], scalar=True)
        of_all = getattr(scale, "ndim", 0) > 0 and scale.shape[-1] == edges[-1]
        scale = tuple(scale[..., low:high] if of_all else scale for low, high in itertools.pairwise(edges))
    if len(scale) != len(sizes):
        raise ValueError(f"scale must have {len(sizes)} parts, one per population, got {len(scale)}")
    for k, (one, size) in enumerate(zip(scale, sizes, strict=True)):
        checks.vector_shape(f"scale[{k}]", one, int(size.shape[-1]), scalar=True)
    return tuple(one * size for one, size in zip(scale, sizes, strict=True))


def is_function(noise: Noise) -> bool:
    """Whether white ``noise`` depends on the state."""
    return isinstance(noise, (MultiplicativeNoise, FiringRateNoise)) or callable(noise)


def noise_at(xp: Any, noise: Noise, model: Any, state: Any) -> Noise:
    """White ``noise`` at a state of the model: a number, an array or a tuple."""
    if isinstance(noise, (MultiplicativeNoise, FiringRateNoise)):
        return noise.at(xp, model, state)
    if not callable(noise):
        return noise
    made, total = noise(state), sum(int(part.shape[-1]) for part in state)
    batch = broadcast_shapes(*(tuple(part.shape[:-1]) for part in state))
    if batch and batch[-1] == total and tuple(getattr(made, "shape", ())) == (*batch, total):
        raise ValueError(
            f"noise(state) of shape {tuple(made.shape)} may be amplitudes of the members of the batch or a matrix L; "
            "return amplitudes as a tuple, one array per population, and a matrix with its batch axes, L[None, ...]"
        )
    return made


def read_colour(noise: Noise) -> tuple[Noise, Any]:
    """The white noise, and the time constant of its filter or None."""
    if not isinstance(noise, ColouredNoise):
        return noise, None
    if isinstance(noise.noise, ColouredNoise):
        raise TypeError("noise must be coloured once, got a ColouredNoise of a ColouredNoise")
    return noise.noise, checks.positive_number("tau", noise.tau) if checks.is_number(noise.tau) else noise.tau


class NoiseTerm(NamedTuple):
    """The diffusion L of dx = f dt + L dB; exactly one field is not None.

    Attributes
    ----------
    amplitude : array (..., N) or None
        Diagonal of L: independent noise in every component.
    matrix : array (..., N, m) or None
        L, m independent noises.
    """

    amplitude: Array
    matrix: Array


def noise_arrays(noise: Noise) -> dict[str, Any]:
    """The arrays inside ``noise`` by name, for the checks of library, dtype and device."""
    white, tau = read_colour(noise)
    if tau is not None:
        return {**noise_arrays(white), **({} if checks.is_number(tau) else {"tau": tau})}
    if isinstance(noise, (MultiplicativeNoise, FiringRateNoise)):
        return {name.replace("noise", "scale"): part for name, part in noise_arrays(noise.scale).items()}
    if callable(noise) and not is_array_api_obj(noise):
        return {}
    if isinstance(noise, tuple):
        return {f"noise[{i}]": part for i, part in enumerate(noise) if not checks.is_number(part)}
    return {} if checks.is_number(noise) else {"noise": noise}


def noise_term(xp: Any, noise: Noise, sizes: tuple[int, ...], like: Array) -> NoiseTerm:
    """Read ``noise`` for populations of ``sizes``, in the dtype and on the device of ``like``.

    Raises
    ------
    TypeError, ValueError
        If ``noise`` is none of the forms allowed.
    """
    total = sum(sizes)

    def full(name: str, value: Any, n: int) -> Array:
        checks.values(xp, name, value if checks.is_number(value) else None, "any")
        if checks.is_number(value):
            return xp.full((n,), float(value), dtype=like.dtype, device=device(like))
        checks.vector_shape(name, value, n, scalar=True)
        value = xp.astype(value, like.dtype, copy=False)
        return xp.broadcast_to(value, broadcast_shapes(tuple(value.shape), (n,)))

    if isinstance(noise, tuple):
        if len(noise) != len(sizes):
            raise ValueError(f"noise must have {len(sizes)} parts, one per population, got {len(noise)}")
        parts = [full(f"noise[{i}]", part, n) for i, (part, n) in enumerate(zip(noise, sizes, strict=True))]
        batch = broadcast_shapes(*(tuple(part.shape[:-1]) for part in parts))
        parts = [xp.broadcast_to(part, (*batch, part.shape[-1])) for part in parts]
        return NoiseTerm(xp.concat(parts, axis=-1), None)
    if checks.is_number(noise):
        return NoiseTerm(full("noise", noise, total), None)
    if not is_array_api_obj(noise):
        raise TypeError(f"noise must be a number, an array or a tuple of these, got {checks.describe(noise)}")
    if noise.ndim >= 2 and noise.shape[-2] == total:
        return NoiseTerm(None, xp.astype(noise, like.dtype, copy=False))
    if noise.ndim and noise.shape[-1] != total:
        raise ValueError(
            f"noise must be a number, amplitudes (..., {total}) or a matrix (..., {total}, m), "
            f"got shape {tuple(noise.shape)}"
        )
    return NoiseTerm(full("noise", noise, total), None)


def _factor(xp: Any, term: NoiseTerm) -> Array:
    """L (..., N, m)."""
    return term.matrix if term.amplitude is None else diagonal_matrix(xp, term.amplitude)


def _intensity(xp: Any, term: NoiseTerm) -> Array:
    """L L^T (..., N, N)."""
    if term.matrix is None:
        return diagonal_matrix(xp, term.amplitude**2)
    return matmul(xp, term.matrix, transpose(xp, term.matrix))


def noise_covariance(circuit: Any, state: Any, noise: Noise, *, variant: str = "main", z: Array | None = None) -> Array:
    """Stationary covariance of the linearized circuit driven by white noise.

    Parameters
    ----------
    circuit : Circuit or Model
    state : State of arrays (..., n)
        A stable fixed point, from :func:`steady_state` for instance.
    noise : number, array (..., 2n), array (..., 2n, m), tuple, description or callable
        L in dx = f(x) dt + L dB, in the order (y, a), in units of the state per
        square root of a second: one amplitude for all components; amplitudes,
        the diagonal of L; L itself (an array whose last axis but one has length
        2n is read as this); or a tuple of amplitudes (of y, of a). A
        :class:`MultiplicativeNoise`, a :class:`FiringRateNoise` or a function of
        the state that returns one of these forms (for a batch of 2n members
        amplitudes as a tuple) is taken at the state; a
        :class:`ColouredNoise` filters any of them.
    variant : {"main", "rectified", "rectified_recurrence"}
        Of a Circuit.
    z : array (..., n), optional
        Input drive, for models whose Jacobian depends on it; see :func:`jacobian`.

    Returns
    -------
    array (..., 2n, 2n)
        P, symmetric, in the order (y, a). NaN for a member of a batch, and while
        tracing, where the state is not stable or P not known to a relative
        accuracy of ``eps**0.6`` of the dtype (4e-10 in float64, 7e-5 in float32).

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError for a state (not in a
        batch) that is not stable, with its spectral abscissa, or whose P is not
        known to that accuracy, and for one at a kink of a rectified variant (while
        tracing, what stands there is the noise of the silent side).

    Warns
    -----
    RuntimeWarning
        That says which members of a batch are NaN, and why.

    Notes
    -----
    P solves the Lyapunov equation J P + P J^T + L L^T = 0, by Smith's doubling
    of the Cayley transform of J, refined until the corrections vanish by
    residuals whose products are formed without rounding (Ozaki et al. 2012).
    The accuracy is judged by the last correction. Batched, and differentiable
    in the circuit, the state and the noise.

    Examples
    --------
    >>> import numpy as np
    >>> from organics_core import Circuit, State
    >>> circuit = Circuit(None, np.ones((1, 1)), 1.0, 1.0, 1.0, 0.01, 0.01)
    >>> state = State(np.array([0.0]), np.array([1.0]))  # dy = -100 y dt + dB
    >>> noise_covariance(circuit, state, 1.0).round(6)
    array([[0.005, 0.   ],
           [0.   , 0.005]])
    """
    return _covariance(_linearized(circuit, state, noise, variant, z), "state")


def power_spectrum(
    circuit: Any, state: Any, noise: Noise, frequencies: Array, *, variant: str = "main", z: Array | None = None
) -> Array:
    """Power spectral density matrix of the linearized circuit driven by white noise.

    Parameters
    ----------
    circuit, state, noise, variant, z
        As in :func:`noise_covariance`.
    frequencies : array (F,)
        In Hz; negative ones are allowed.

    Returns
    -------
    complex array (..., F, 2n, 2n)
        S(omega) with omega = 2 pi f, two-sided and Hermitian, in units of the
        state squared per Hz: the integral of S over all frequencies f, from
        minus to plus infinity (of S d omega / 2 pi), is the covariance. A
        one-sided estimate, such as Welch's, is twice as large. NaN for a member
        of a batch, and while tracing, where the state is not stable.

    Raises
    ------
    TypeError, ValueError
        As :func:`noise_covariance`.

    Notes
    -----
    S(omega) = (i omega I - J)^-1 L L^T (i omega I - J)^-H.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit, z = oc.Circuit(None, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0, 0.5])
    >>> state = oc.steady_state(circuit, z).state
    >>> power = oc.power_spectrum(circuit, state, (1.0, 0.0), np.linspace(1.0, 200.0, 200))[:, 0, 0].real
    >>> int(power.argmax()) + 1  # the resonance, in Hz
    59
    """
    return _power_spectrum(
        _linearized(circuit, state, noise, variant, z, frequencies=frequencies), frequencies, "state"
    )


def transfer_function(
    model: Any, state: Any, frequencies: Array, *, variant: str = "main", z: Array | None = None
) -> Array:
    """Response of every component to small sinusoidal changes of the input drive.

    Parameters
    ----------
    model : Circuit or Model
    state : State of arrays (..., n)
        A stable fixed point, from :func:`steady_state` for instance.
    frequencies : array (F,)
        In Hz.
    variant : {"main", "rectified", "rectified_recurrence"}
        Of a Circuit.
    z : array (..., n), optional
        Input drive, for models whose Jacobian depends on it; see :func:`jacobian`.

    Returns
    -------
    complex array (..., F, N, n)
        H(omega) with omega = 2 pi f, in units of the state per unit of the drive:
        z + cos(omega t) dz moves the state by Re(H dz exp(i omega t)) to first
        order. NaN for a member of a batch, and while tracing, where the state is
        not stable.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError for a state (not in a batch) that is not stable, and for one
        at a kink of a rectified variant (while tracing, what stands there is the response of the silent side).

    Notes
    -----
    H(omega) = (i omega I - J)^-1 df/dz.

    Examples
    --------
    >>> import numpy as np
    >>> from organics_core import Circuit, steady_state
    >>> circuit = Circuit(None, np.ones((1, 1)), 1.0, 1.0, 1.0, 0.01, 0.01)
    >>> state = steady_state(circuit, np.array([0.0])).state  # a low-pass filter
    >>> abs(transfer_function(circuit, state, np.array([0.0, 50 / np.pi]))[:, 0, 0]).round(6)
    array([1.      , 0.707107])
    """
    linear = linearized(model, state, variant, z, values=True)
    _refuse_kinks(linear, "no response that is linear in the drive", "jacobian")
    xp, layout = linear.xp, Layout.of(linear.state)
    checks.namespace({"state": linear.state[0], "frequencies": frequencies})
    _check_frequencies(xp, frequencies=frequencies)
    time = xp.zeros((), dtype=linear.z.dtype, device=device(linear.z))

    def field(drive: Array) -> Array:
        parts = linear.model.field(xp, time, linear.state, drive)
        batch = broadcast_shapes(*(tuple(part.shape[:-1]) for part in parts))
        return layout.pack(xp, [xp.broadcast_to(part, (*batch, part.shape[-1])) for part in parts])

    jac = linear.jacobian
    stable, _ = _stability(xp, jac, "state")
    response = _response(xp, jac, packed_jacobian(xp, field, linear.z), frequencies)
    return xp.where(stable[..., None, None, None], response, xp.nan)


def _response(xp: Any, jac: Array, right: Array, frequencies: Array) -> Array:
    """(i omega I - J)^-1 right (..., F, N, m) at frequencies (F,) or (..., F)."""
    kind = xp.complex64 if xp.finfo(jac.dtype).bits == 32 else xp.complex128
    omega = 1j * xp.astype(2.0 * math.pi * xp.astype(frequencies, jac.dtype, copy=False), kind)
    eye = xp.eye(jac.shape[-1], dtype=kind, device=device(jac))
    matrix = omega[..., None, None] * eye - xp.astype(jac, kind)[..., None, :, :]
    return solve(xp, matrix, xp.astype(right, kind)[..., None, :, :])


def coherence(
    circuit: Any, state: Any, noise: Noise, frequencies: Array, *, variant: str = "main", z: Array | None = None
) -> Array:
    """Magnitude-squared coherence between all pairs of components.

    Parameters
    ----------
    circuit, state, noise, frequencies, variant, z
        As in :func:`power_spectrum`.

    Returns
    -------
    array (..., F, 2n, 2n)
        abs(S_ij)**2 / (S_ii S_jj), between 0 and 1; NaN for components without
        any power.

    Raises
    ------
    TypeError, ValueError
        As :func:`noise_covariance`.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit, z = oc.Circuit(None, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0, 0.5])
    >>> state = oc.steady_state(circuit, z).state
    >>> coherence = oc.coherence(circuit, state, (1.0, 0.0), np.array([10.0, 100.0]))
    >>> coherence.shape, bool(np.allclose(coherence[:, 0, 0], 1.0))
    ((2, 4, 4), True)
    """
    system = _linearized(circuit, state, noise, variant, z, frequencies=frequencies)
    return _coherence(system, frequencies, "state")


def linear_covariance(jacobian: Array, noise: Noise) -> Array:
    """Stationary covariance P of dx = J x dt + L dB, for any stable J.

    Parameters
    ----------
    jacobian : array (..., N, N)
        With all eigenvalues in the left half plane.
    noise : number, array (..., N), array (..., N, m) or ColouredNoise
        As in :func:`noise_covariance`.

    Returns
    -------
    array (..., N, N)
        NaN for members of a batch as in :func:`noise_covariance`.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError for a Jacobian (not in a
        batch) that is not stable, or whose covariance is not known accurately.

    Warns
    -----
    RuntimeWarning
        That says which members of a batch are NaN, and why.

    Examples
    --------
    >>> import numpy as np
    >>> np.diag(linear_covariance(np.array([[-1e-9, 1e3], [-1e3, -1e-9]]), 1.0) * 2e-9).round(12)
    array([1., 1.])
    """
    return _covariance(_linear(jacobian, noise), "jacobian")


def linear_power_spectrum(jacobian: Array, noise: Noise, frequencies: Array) -> Array:
    """Power spectral density matrix of dx = J x dt + L dB, for any stable J.

    Parameters
    ----------
    jacobian : array (..., N, N)
    noise : number, array (..., N) or array (..., N, m)
    frequencies : array (F,)
        In Hz.

    Returns
    -------
    complex array (..., F, N, N)
        With the conventions of :func:`power_spectrum`.

    Raises
    ------
    TypeError, ValueError
        As :func:`linear_covariance`.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> power = oc.linear_power_spectrum(np.array([[-10.0]]), np.array([[2.0]]), np.array([0.0]))
    >>> power.real  # 2**2 / 10**2
    array([[[0.04]]])
    """
    return _power_spectrum(_linear(jacobian, noise, frequencies=frequencies), frequencies, "jacobian")


def linear_coherence(jacobian: Array, noise: Noise, frequencies: Array) -> Array:
    """Magnitude-squared coherence of dx = J x dt + L dB, for any stable J.

    Parameters
    ----------
    jacobian, noise, frequencies
        As in :func:`linear_power_spectrum`.

    Returns
    -------
    array (..., F, N, N)
        NaN for components without any power.

    Raises
    ------
    TypeError, ValueError
        As :func:`linear_covariance`.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> mixing = np.array([[1.0, 0.0], [1.0, 1.0]])  # a source of its own, and one that both share
    >>> oc.linear_coherence(-10.0 * np.eye(2), mixing, np.array([5.0])).round(3)
    array([[[1. , 0.5],
            [0.5, 1. ]]])
    """
    system = _linear(jacobian, noise, frequencies=frequencies)
    return _coherence(system, frequencies, "jacobian")


def _check_frequencies(xp: Any, **frequencies: Array) -> None:
    for name, value in frequencies.items():
        if value.ndim != 1:
            raise ValueError(f"{name} must have shape (F,), got shape {tuple(value.shape)}")
        checks.values(xp, name, value, "any")


class _System(NamedTuple):
    """dx = J x dt + L dB; of the components the first ``size`` are asked for, the others are filters of the noise."""

    xp: Any
    jac: Array
    term: NoiseTerm
    size: int


def _linearized(circuit: Any, state: Any, noise: Noise, variant: str, z: Array | None, **frequencies: Array) -> _System:
    linear = linearized(circuit, state, variant, z, values=True)
    xp, like = linear.xp, linear.state[0]
    _refuse_kinks(linear, "no stationary noise of one", "linear_covariance of the Jacobian")
    sizes = tuple(int(part.shape[-1]) for part in linear.state)
    return _system(xp, linear.jacobian, noise, sizes, like, linear.model, linear.state, **frequencies)


def _refuse_kinks(linear: Linear, lacking: str, instead: str) -> None:
    """ValueError at a kink, where no one linear system describes what is asked; while tracing this is not seen."""
    if not isinstance(linear.model, Circuit) or not any(VARIANTS[linear.model.variant][:2]):
        return
    xp, made, state, _ = linear
    count = kinks(xp, made, state, made.variant).count
    if get_backend(xp).is_concrete(count) and bool(xp.any(count > 0)):
        raise ValueError(
            f"state lies at a kink of the variant {made.variant!r}: {int(xp.max(count))} of its rectified quantities "
            f"are zero, so that the circuit has another linearization on every side and {lacking}; "
            f"move the input drive, or take {instead} of one side"
        )


def _linear(jacobian: Array, noise: Noise, **frequencies: Array) -> _System:
    if is_function(read_colour(noise)[0]):
        raise TypeError(f"noise must not depend on the state here, got {checks.describe(noise)}")
    xp = checks.namespace({"jacobian": jacobian})
    n = checks.matrix_shape("jacobian", jacobian, None)
    checks.values(xp, "jacobian", jacobian, "any")
    return _system(xp, jacobian, noise, (n,), jacobian, None, None, **frequencies)


def _system(
    xp: Any, jac: Array, noise: Noise, sizes: tuple[int, ...], like: Array, model: Any, state: Any, **frequencies: Array
) -> _System:
    extra = noise_arrays(noise)
    checks.namespace({"jacobian": like, **extra, **frequencies})
    _check_frequencies(xp, **frequencies)
    for name, value in extra.items():
        checks.values(xp, name, value, "> 0" if name == "tau" else "any")
    white, tau = read_colour(noise)
    term, n = noise_term(xp, noise_at(xp, white, model, state), sizes, like), sum(sizes)
    _check_size(xp, term)
    if tau is None:
        return _System(xp, jac, term, n)
    factor = _factor(xp, term)
    m = int(factor.shape[-1])
    rate = filter_rates(xp, tau, m, like)
    nothing = xp.zeros((m, n), dtype=like.dtype, device=device(like))
    jac = block_matrix(xp, [[jac, factor], [nothing, diagonal_matrix(xp, -rate)]])
    drive = xp.zeros((n, m), dtype=like.dtype, device=device(like))
    return _System(xp, jac, NoiseTerm(None, block_matrix(xp, [[drive], [diagonal_matrix(xp, rate)]])), n)


def _check_size(xp: Any, term: NoiseTerm) -> None:
    """ValueError for noise that is not finite, or whose square is beyond the range of the dtype, where it is seen."""
    value = term.amplitude if term.matrix is None else term.matrix
    if not get_backend(xp).is_concrete(value) or 0 in value.shape:
        return
    checks.values(xp, "noise", value, "any")
    info = xp.finfo(value.dtype)
    largest = abs(to_numpy(value)).max(axis=-1 if term.matrix is None else (-2, -1)).reshape(-1)
    least = (float(info.smallest_normal) / float(info.eps)) ** 0.5
    most = (float(info.max) * float(info.eps)) ** 0.5
    wrong = largest[(largest > 0) & ~((largest >= least) & (largest <= most))]
    if wrong.size:
        name = str(value.dtype).rpartition(".")[2]
        raise ValueError(
            f"noise must be 0 or, at its largest, from {least:.0e} to {most:.0e}, where {name} has its square, "
            f"got {wrong[0]:.3g}; choose other units"
        )


def filter_rates(xp: Any, tau: Any, m: int, like: Array) -> Array:
    """1 / tau (..., m) of the filters of m noises."""
    if checks.is_number(tau):
        return xp.full((m,), 1.0 / tau, dtype=like.dtype, device=device(like))
    checks.vector_shape("tau", tau, m, scalar=True)
    checks.values(xp, "tau", tau, "> 0")
    return 1.0 / xp.broadcast_to(xp.astype(tau, like.dtype, copy=False), broadcast_shapes(tuple(tau.shape), (m,)))


def _report(xp: Any, bad: Array, sentence: str) -> None:
    """ValueError where one system is seen to be ``bad``, RuntimeWarning where members of a batch are."""
    if not get_backend(xp).is_concrete(bad) or not bool(xp.any(bad)):
        return
    if bad.ndim == 0:
        raise ValueError(sentence)
    members = [int(k) for k in to_numpy(bad).reshape(-1).nonzero()[0]]
    more = f" and {len(members) - 1} more" if len(members) > 1 else ""
    warnings.warn(f"NaN for member {members[0]} of the batch{more}: {sentence}", RuntimeWarning, stacklevel=4)


def _stability(xp: Any, jac: Array, name: str) -> tuple[Array, Array]:
    """Where (...) ``jac`` is stable, reported where it is not, and its eigenvalues."""
    backend = get_backend(xp)
    values = eigenvalues(xp, backend.stop_gradient(jac))
    slow = xp.min(-xp.real(values), axis=-1)
    stable = slow > 0  # false for NaN
    if backend.is_concrete(stable) and not bool(xp.all(stable)):
        slows, tops = (to_numpy(part).reshape(-1) for part in (slow, xp.max(xp.abs(values), axis=-1)))
        first = int((~(slows > 0)).argmax())
        abscissa, top = -float(slows[first]), float(tops[first])
        hidden = abscissa < 100.0 * float(xp.finfo(jac.dtype).eps) * top
        sentence = (
            f"but its fastest mode has {top:g} per second, and beside it rounding hides whether the slowest decays"
            if hidden
            else f"but its spectral abscissa is {abscissa:g} per second"
        )
        _report(xp, ~stable, f"{name} must be stable to have stationary noise, {sentence}")
    return stable, values


def _best_shift(values: Array) -> Array:
    """The s (...) of the Cayley transform (s + J) / (s - J) that damps the mode damped least the most."""
    xp = array_namespace(values)
    rates, sizes = -xp.real(values), xp.abs(values)
    fast = xp.max(sizes, axis=-1, keepdims=True)
    middle = xp.sqrt(xp.min(rates, axis=-1, keepdims=True) * fast)
    tried = xp.concat([sizes, xp.sqrt(sizes) * xp.sqrt(fast), middle], axis=-1)
    s, rates, turns = tried[..., :, None], rates[..., None, :], xp.imag(values)[..., None, :]
    damped = xp.min(s * rates / ((s + rates) ** 2 + turns**2), axis=-1)
    best = damped == xp.max(damped, axis=-1, keepdims=True)
    return xp.max(xp.where(best, tried, 0.0), axis=-1)


def _power_of_two(xp: Any, x: Array) -> Array:
    """A power of two near x > 0, exactly: the last bits of pow are no library's promise."""
    rough = xp.pow(xp.asarray(2.0, dtype=x.dtype, device=device(x)), xp.ceil(xp.log2(x)))
    carried = rough * (0.25 / float(xp.finfo(x.dtype).eps) + 1.0)
    return carried - (carried - rough)


def _balance(matrix: Array) -> Array:
    """Units (..., N), powers of two, in which rows and columns of ``matrix`` are of a size (Osborne 1960)."""
    xp = array_namespace(matrix)
    size = xp.abs(matrix)
    own = 1e-3 * xp.linalg.diagonal(size)
    units = xp.ones_like(own)
    for _ in range(8):
        scaled = size * (units[..., None, :] / units[..., :, None])
        row, column = (xp.sum(scaled, axis=axis) - 0.999 * xp.linalg.diagonal(size) for axis in (-1, -2))
        live = (row > 0) & (column > 0)
        units = units * xp.where(live, xp.sqrt(xp.sqrt(xp.where(live, row, 1.0) / xp.where(live, column, 1.0))), 1.0)
    units = _power_of_two(xp, units)
    return xp.where(xp.isfinite(units) & (units > 0), units, 1.0)


_SLICES = 4


def _slices(xp: Any, matrix: Array, axis: int) -> list[Array]:
    """Matrices whose sum is ``matrix`` (almost) and whose products with others so cut are exact (Ozaki et al. 2012)."""
    n = int(matrix.shape[-1])
    bits = (round(-math.log2(float(xp.finfo(matrix.dtype).eps))) + 1 - math.ceil(math.log2(max(n, 2)))) // 2
    top = xp.max(xp.abs(matrix), axis=axis, keepdims=True)
    unit = _power_of_two(xp, xp.where(top > 0, top, 1.0)) * 2.0**-bits
    parts = []
    for _ in range(_SLICES):
        part = xp.round(matrix / unit) * unit
        parts.append(part)
        matrix, unit = matrix - part, unit * 2.0**-bits
    return parts


def _residual(jac: Array, p: Array, intensity: Array) -> Array:
    """J P + P J^T + Q for a symmetric P as in about twice the precision."""
    xp = array_namespace(jac)
    left, right = _slices(xp, jac, -1), _slices(xp, p, -2)
    total, lost = intensity, xp.zeros_like(p)
    for order in range(_SLICES):
        for k in range(order + 1):
            product = matmul(xp, left[k], right[order - k])
            for term in (product, transpose(xp, product)):
                new = total + term
                back = new - total
                lost = lost + ((total - (new - back)) + (term - back))
                total = new
    return total + lost


_TRACED_DOUBLINGS = 50
_SWEEPS = 10
_TRACED_SWEEPS = 4


def _covariance(system: _System, name: str) -> Array:
    """P of J P + P J^T + Q = 0: Smith's doubling, refined by residuals of twice the precision."""
    xp, jac, intensity, size = system.xp, system.jac, _intensity(system.xp, system.term), system.size
    backend = get_backend(xp)
    stable, values = _stability(xp, jac, name)
    eye = xp.eye(int(jac.shape[-1]), dtype=jac.dtype, device=device(jac))
    jac = xp.where(stable[..., None, None], jac, -eye)
    values = xp.where(stable[..., None], values, xp.asarray(-1.0, dtype=values.dtype, device=device(jac)))
    batch = broadcast_shapes(tuple(jac.shape[:-2]), tuple(intensity.shape[:-2]))
    jac, intensity = (widen(xp, part, batch) for part in (jac, intensity))
    with quiet(backend):
        units = as_one(_balance, backend.stop_gradient(jac))
        jac = jac * (units[..., None, :] / units[..., :, None])
        both = units[..., None, :] * units[..., :, None]
        scale = _size(xp, backend.stop_gradient(intensity / both))[..., None, None]
        both = both * xp.where(scale > 0, scale, xp.ones_like(scale))
        result, error = _solve_lyapunov(xp, jac, intensity / both, as_one(_best_shift, values)[..., None, None])
        result = result * both
    tolerance = float(xp.finfo(jac.dtype).eps) ** 0.6
    accurate = error < tolerance
    _report(
        xp,
        stable & ~accurate,
        f"{name} is so near to instability, or so far from normal, that its covariance is not known to the relative "
        f"accuracy of {tolerance:.0e} that {str(jac.dtype).rpartition('.')[2]} must have here",
    )
    return xp.where((stable & accurate)[..., None, None], result[..., :size, :size], xp.nan)


def _solve_lyapunov(xp: Any, jac: Array, intensity: Array, shift: Array) -> tuple[Array, Array]:
    """P, and its relative error (...) as the last corrections tell it; infinite for a P with negative variances."""
    backend = get_backend(xp)
    n = int(jac.shape[-1])
    eye = xp.eye(n, dtype=jac.dtype, device=device(jac))
    inverse = solve(xp, shift * eye - jac, eye)
    power = matmul(xp, inverse, shift * eye + jac)
    concrete = backend.is_concrete(power)
    eps = float(xp.finfo(jac.dtype).eps)
    powers = []
    for _ in range(_TRACED_DOUBLINGS):
        powers.append(power)
        if concrete and bool(xp.all(xp.abs(backend.stop_gradient(power)) < 1e-3 * eps)):
            break
        power = matmul(xp, power, power)

    def summed(right: Array) -> Array:
        total = 2.0 * shift * matmul(xp, inverse, matmul(xp, right, transpose(xp, inverse)))
        for a in powers:
            total = total + matmul(xp, a, matmul(xp, total, transpose(xp, a)))
        return 0.5 * (total + transpose(xp, total))

    free, known = backend.stop_gradient(jac), backend.stop_gradient(intensity)
    guess = backend.stop_gradient(summed(intensity))
    residual = as_one(_residual, free, guess, known)
    change = xp.full(guess.shape[:-2], xp.inf, dtype=jac.dtype, device=device(jac))
    concrete = concrete and backend.is_concrete(guess)  # the noise alone may be traced
    for _ in range(_SWEEPS if concrete else _TRACED_SWEEPS):
        step = backend.stop_gradient(summed(residual))
        before, change = change, _size(xp, step) / (_size(xp, guess) + float(xp.finfo(jac.dtype).smallest_normal))
        guess = guess + step
        residual = as_one(_residual, free, guess, known)
        if concrete and bool(xp.all((change <= 4.0 * eps) | ~(change < 0.5 * before))):
            break
    # The sum is linear in the right-hand side, so any constant guess gives the same P and the same derivatives.
    left = matmul(xp, jac, guess)
    plain = intensity + left + transpose(xp, left)
    result = guess + summed(plain + (residual - backend.stop_gradient(plain)))
    variances = xp.min(xp.linalg.diagonal(backend.stop_gradient(result)), axis=-1)
    return result, xp.where(variances >= -(eps**0.5) * _size(xp, guess), change, xp.inf)


def _size(xp: Any, matrix: Array) -> Array:
    return xp.max(xp.abs(matrix), axis=(-2, -1))


def _filtered(system: _System, frequencies: Array, name: str) -> tuple[Array, Array]:
    """(i omega I - J)^-1 L (..., F, n, m), and whether J is stable (..., 1, 1, 1)."""
    xp, jac, term, size = system
    stable, _ = _stability(xp, jac, name)
    return _response(xp, jac, _factor(xp, term), frequencies)[..., :size, :], stable[..., None, None, None]


def _power_spectrum(system: _System, frequencies: Array, name: str) -> Array:
    xp = system.xp
    response, stable = _filtered(system, frequencies, name)
    result = matmul(xp, response, xp.conj(transpose(xp, response)))
    return xp.where(stable, result, xp.full_like(result, xp.nan))


def _coherence(system: _System, frequencies: Array, name: str) -> Array:
    """Squared cosines between the rows of the response, cut to length one: no power leaves the range of the dtype."""
    xp = system.xp
    response, stable = _filtered(system, frequencies, name)
    size = get_backend(xp).stop_gradient(xp.maximum(xp.abs(xp.real(response)), xp.abs(xp.imag(response))))
    largest = xp.max(size, axis=-1, keepdims=True)
    live = largest > 0
    response = response / xp.where(live, largest, xp.ones_like(largest))
    power = xp.sum(xp.real(response) ** 2 + xp.imag(response) ** 2, axis=-1, keepdims=True)
    response = response / xp.sqrt(xp.where(live, power, xp.ones_like(power)))
    cosine = matmul(xp, response, xp.conj(transpose(xp, response)))
    ratio = xp.real(cosine) ** 2 + xp.imag(cosine) ** 2
    ratio = xp.where(ratio > 1.0, xp.ones_like(ratio), ratio)  # by rounding
    live = live & transpose(xp, live) & stable
    return xp.where(live, ratio, xp.full_like(ratio, xp.nan))
