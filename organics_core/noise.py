"""Noise at a stable fixed point: covariance, power spectral density, coherence.

Source: the linear noise approximation dx = J x dt + L dB around a stable fixed
point (Rawat & Martiniani, arXiv 2305.19890, for circuits of this kind). The
functions ``linear_*`` take any stable Jacobian, the others a circuit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from array_api_compat import device, is_array_api_obj

from . import checks
from .backend import Array, get_backend, to_numpy
from .circuit import VARIANTS, Circuit, kinks
from .linalg import broadcast_shapes, diagonal_matrix, solve, transpose
from .stability import Linear, linearized

Noise = Any
"""A number, amplitudes (..., N), a matrix L (..., N, m), or a tuple of amplitudes per population."""


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
    return xp.matmul(term.matrix, transpose(xp, term.matrix))


def noise_covariance(circuit: Any, state: Any, noise: Noise, *, variant: str = "main", z: Array | None = None) -> Array:
    """Stationary covariance of the linearized circuit driven by white noise.

    Parameters
    ----------
    circuit : Circuit or Model
    state : State of arrays (..., n)
        A stable fixed point, from :func:`steady_state` for instance.
    noise : number, array (..., 2n), array (..., 2n, m) or tuple
        L in dx = f(x) dt + L dB, in the order (y, a), in units of the state per
        square root of a second: one amplitude for all components; amplitudes,
        the diagonal of L; L itself (an array whose last axis but one has length
        2n is read as this); or a tuple of amplitudes (of y, of a).
    variant : {"main", "rectified", "rectified_recurrence"}
        Of a Circuit.
    z : array (..., n), optional
        Input drive, for models whose Jacobian depends on it; see :func:`jacobian`.

    Returns
    -------
    array (..., 2n, 2n)
        P, symmetric, in the order (y, a). NaN, while tracing, where the state
        is not stable.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError for a state that is not
        stable, with its spectral abscissa, and for one at a kink of a rectified
        variant (while tracing, what stands there is the noise of the silent side).

    Notes
    -----
    P solves the Lyapunov equation J P + P J^T + L L^T = 0, by Smith's doubling
    of the Cayley transform of J and one step of refinement. Batched, and
    differentiable in the circuit, the state and the noise.

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
    xp, jac, term = _linearized(circuit, state, noise, variant, z)
    return _covariance(xp, jac, _intensity(xp, term), "state")


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
        one-sided estimate, such as Welch's, is twice as large. NaN, while
        tracing, where the state is not stable.

    Raises
    ------
    TypeError, ValueError
        As :func:`noise_covariance`.

    Notes
    -----
    S(omega) = (i omega I - J)^-1 L L^T (i omega I - J)^-H.
    """
    xp, jac, term = _linearized(circuit, state, noise, variant, z, frequencies=frequencies)
    return _power_spectrum(xp, jac, term, frequencies, "state")


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
    """
    xp, jac, term = _linearized(circuit, state, noise, variant, z, frequencies=frequencies)
    return _coherence(xp, _power_spectrum(xp, jac, term, frequencies, "state"))


def linear_covariance(jacobian: Array, noise: Noise) -> Array:
    """Stationary covariance P of dx = J x dt + L dB, for any stable J.

    Parameters
    ----------
    jacobian : array (..., N, N)
        With all eigenvalues in the left half plane.
    noise : number, array (..., N) or array (..., N, m)
        As in :func:`noise_covariance`.

    Returns
    -------
    array (..., N, N)

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; ValueError for a Jacobian that is not
        stable.
    """
    xp, jac, term = _linear(jacobian, noise)
    return _covariance(xp, jac, _intensity(xp, term), "jacobian")


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
    """
    xp, jac, term = _linear(jacobian, noise, frequencies=frequencies)
    return _power_spectrum(xp, jac, term, frequencies, "jacobian")


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
    """
    xp, jac, term = _linear(jacobian, noise, frequencies=frequencies)
    return _coherence(xp, _power_spectrum(xp, jac, term, frequencies, "jacobian"))


def _check_frequencies(xp: Any, **frequencies: Array) -> None:
    for name, value in frequencies.items():
        if value.ndim != 1:
            raise ValueError(f"{name} must have shape (F,), got shape {tuple(value.shape)}")
        checks.values(xp, name, value, "any")


def _linearized(
    circuit: Any, state: Any, noise: Noise, variant: str, z: Array | None, **frequencies: Array
) -> tuple[Any, Array, NoiseTerm]:
    linear = linearized(circuit, state, variant, z, values=True)
    xp, like = linear.xp, linear.state[0]
    extra = noise_arrays(noise)
    checks.namespace({"state": like, **extra, **frequencies})
    _check_frequencies(xp, **frequencies)
    for name, value in extra.items():
        checks.values(xp, name, value, "any")
    _refuse_kinks(linear)
    sizes = tuple(int(part.shape[-1]) for part in linear.state)
    return xp, linear.jacobian, noise_term(xp, noise, sizes, like)


def _refuse_kinks(linear: Linear) -> None:
    """ValueError at a kink, where no one linear system describes the noise; while tracing this is not seen."""
    if not isinstance(linear.model, Circuit) or not any(VARIANTS[linear.model.variant][:2]):
        return
    xp, made, state, _ = linear
    count = kinks(xp, made, state, made.variant).count
    if get_backend(xp).is_concrete(count) and bool(xp.any(count > 0)):
        raise ValueError(
            f"state lies at a kink of the variant {made.variant!r}: {int(xp.max(count))} of its rectified quantities "
            "are zero, so that the circuit has another linearization on every side and no stationary noise of one; "
            "move the input drive, or take linear_covariance of the Jacobian of one side"
        )


def _linear(jacobian: Array, noise: Noise, **frequencies: Array) -> tuple[Any, Array, NoiseTerm]:
    extra = noise_arrays(noise)
    xp = checks.namespace({"jacobian": jacobian, **extra, **frequencies})
    n = checks.matrix_shape("jacobian", jacobian, None)
    checks.values(xp, "jacobian", jacobian, "any")
    _check_frequencies(xp, **frequencies)
    for name, value in extra.items():
        checks.values(xp, name, value, "any")
    return xp, jacobian, noise_term(xp, noise, (n,), jacobian)


class _Stability(NamedTuple):
    stable: Array  # (...)
    shift: Array  # (...), the geometric mean of the slowest and the fastest rate


def _stability(xp: Any, jac: Array, name: str) -> _Stability:
    """Where ``jac`` is stable; ValueError where that can be seen and is not so."""
    backend = get_backend(xp)
    values = backend.eigvals(backend.stop_gradient(jac))
    rates = -xp.real(values)
    slow, fast = xp.min(rates, axis=-1), xp.max(xp.abs(values), axis=-1)
    stable = slow > 0  # false for NaN
    if backend.is_concrete(jac) and not bool(xp.all(stable)):
        found = to_numpy(slow)
        bad = [int(k) for k in (~(found > 0)).reshape(-1).nonzero()[0]]
        where = "" if found.ndim == 0 else f" (member {bad[0]} of the batch)"
        raise ValueError(
            f"{name} must be stable to have stationary noise, but its spectral abscissa is "
            f"{-float(found.reshape(-1)[bad[0]]):g} per second{where}"
        )
    one = xp.ones_like(slow)
    shift = xp.sqrt(xp.where(stable, slow, one) * xp.where(stable, fast, one))
    return _Stability(stable, backend.stop_gradient(shift))


_TRACED_DOUBLINGS = 40


def _covariance(xp: Any, jac: Array, intensity: Array, name: str) -> Array:
    """P of J P + P J^T + Q = 0: the Cayley transform makes it P = A P A^T + Q', doubled until A**2**k vanishes."""
    backend = get_backend(xp)
    stable, shift = _stability(xp, jac, name)
    eye = xp.eye(jac.shape[-1], dtype=jac.dtype, device=device(jac))
    shift = shift[..., None, None]
    jac = xp.where(stable[..., None, None], jac, -shift * eye)
    inverse = solve(xp, shift * eye - jac, eye)
    power = xp.matmul(inverse, shift * eye + jac)
    concrete = backend.is_concrete(power)
    eps = float(xp.finfo(jac.dtype).eps)
    powers = []
    for _ in range(_TRACED_DOUBLINGS):
        powers.append(power)
        if concrete and float(xp.max(xp.abs(backend.stop_gradient(power)))) < 1e-3 * eps:
            break
        power = xp.matmul(power, power)

    def summed(right: Array) -> Array:
        total = 2.0 * shift * xp.matmul(inverse, xp.matmul(right, transpose(xp, inverse)))
        for a in powers:
            total = total + xp.matmul(a, xp.matmul(total, transpose(xp, a)))
        return total

    # The sum is linear in the right-hand side, so any constant guess gives the same P and the same derivatives.
    guess = backend.stop_gradient(summed(intensity))
    left = xp.matmul(jac, guess)
    result = guess + summed(intensity + left + transpose(xp, left))
    result = 0.5 * (result + transpose(xp, result))
    return xp.where(stable[..., None, None], result, xp.full_like(result, xp.nan))


def _power_spectrum(xp: Any, jac: Array, term: NoiseTerm, frequencies: Array, name: str) -> Array:
    stable, _ = _stability(xp, jac, name)
    kind = xp.complex64 if xp.finfo(jac.dtype).bits == 32 else xp.complex128
    omega = 1j * xp.astype(2.0 * math.pi * xp.astype(frequencies, jac.dtype, copy=False), kind)
    eye = xp.eye(jac.shape[-1], dtype=kind, device=device(jac))
    matrix = omega[:, None, None] * eye - xp.astype(jac, kind)[..., None, :, :]
    response = solve(xp, matrix, xp.astype(_factor(xp, term), kind)[..., None, :, :])
    result = xp.matmul(response, xp.conj(transpose(xp, response)))
    keep = stable[..., None, None, None]
    return xp.where(keep, result, xp.full_like(result, xp.nan))


def _coherence(xp: Any, spectrum: Array) -> Array:
    power = xp.real(xp.linalg.diagonal(spectrum))
    product = power[..., :, None] * power[..., None, :]
    live = product > 0
    squared = xp.real(spectrum) ** 2 + xp.imag(spectrum) ** 2
    ratio = squared / xp.where(live, product, xp.ones_like(product))
    return xp.where(live, ratio, xp.full_like(ratio, xp.nan))
