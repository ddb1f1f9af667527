"""Spectra of linear systems as rational functions of the frequency, by the recursion of Faddeev and LeVerrier.

Source: Rawat & Martiniani, arXiv 2305.19890, for spectra of circuits of this kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from array_api_compat import array_namespace, device

from . import checks
from .backend import Array, as_one, get_backend
from .linalg import broadcast_shapes, matmul, transpose, widen
from .noise import (
    Noise,
    _balance,
    _factor,
    _intensity,
    _linear,
    _linearized,
    _report,
    _response,
    _stability,
    _System,
)


class RationalSpectrum(NamedTuple):
    """Power spectral density matrix S = numerator / denominator, polynomials of x = omega / scale, omega = 2 pi f.

    Called with frequencies (F,) in Hz it returns the spectrum (..., F, N, N).

    Attributes
    ----------
    numerator : complex array (..., 2K-1, N, N)
        Coefficients of x**0 to x**(2K-2), K = N unless noise is coloured, which
        adds the filters' states; real for even powers, imaginary for odd ones.
    denominator : array (..., 2K+1)
        Coefficients of x**0 to x**(2K), the same for all pairs; 0 for odd powers.
    scale : array (...)
        In radians per second.
    error : array (...)
        Largest difference from :func:`power_spectrum` over frequencies around the
        system's own, relative to sqrt(S_ii S_jj).
    """

    numerator: Array
    denominator: Array
    scale: Array
    error: Array

    def __call__(self, frequencies: Array) -> Array:
        """The spectrum (..., F, N, N) at ``frequencies`` (F,) in Hz."""
        xp = checks.namespace({"denominator": self.denominator, "frequencies": frequencies})
        return self.at(xp, 2.0 * math.pi * frequencies / self.scale[..., None])

    def at(self, xp: Any, x: Array) -> Array:
        """The spectrum at x (..., F) = omega / scale."""
        far = xp.abs(x) > 1  # polynomials of 1 / x there: the powers of x leave the range of the dtype
        x = xp.where(far, 1.0 / xp.where(far, x, 1.0), x)
        near = self._ratio(x, 1)
        return xp.where(far[..., None, None], (x * x)[..., None, None] * self._ratio(x, -1), near)

    def _ratio(self, x: Array, order: int) -> Array:
        """Of the polynomials (order 1), or of those with their coefficients reversed (-1)."""
        above: Any = 0.0
        below: Any = 0.0
        for k in range(int(self.numerator.shape[-3]))[::-order]:
            above = above * x[..., None, None] + self.numerator[..., k, :, :][..., None, :, :]
        for k in range(int(self.denominator.shape[-1]))[::-order]:
            below = below * x + self.denominator[..., k, None]
        return above / below[..., None, None]


def rational_spectrum(
    circuit: Any, state: Any, noise: Noise, *, variant: str = "main", z: Array | None = None
) -> RationalSpectrum:
    """Power spectral density matrix of the linearized circuit as a rational function of the frequency.

    Parameters
    ----------
    circuit, state, noise, variant, z
        As in :func:`power_spectrum`.

    Returns
    -------
    RationalSpectrum
        With its ``error``. Coefficients lose digits as the number of components
        grows, in float64 all of them at some twenty. NaN for a member of a batch,
        and while tracing, where ``error`` is above ``eps**0.4`` of the dtype.

    Raises
    ------
    TypeError, ValueError
        As :func:`noise_covariance`; ValueError where too few digits are left.

    Notes
    -----
    (s I - J)^-1 = sum_k B_k s**k / sum_k c_k s**k, by the recursion of Faddeev and
    LeVerrier; the denominator is the product of omega**2 + lambda**2 over the
    eigenvalues of J.

    Examples
    --------
    >>> import numpy as np
    >>> from organics_core import Circuit, State
    >>> circuit = Circuit(None, np.ones((1, 1)), 1.0, 1.0, 1.0, 0.01, 0.01)
    >>> state = State(np.array([0.0]), np.array([1.0]))  # dy = -100 y dt + dB
    >>> found = rational_spectrum(circuit, state, (1.0, 0.0))
    >>> y = found.numerator[:, 0, 0].real  # 1 / scale**2 (1 + x**2) / (1 + x**2)**2
    >>> y.round(9), found.denominator.round(9), found.scale.round(9)
    (array([0.0001, 0.    , 0.0001]), array([1., 0., 2., 0., 1.]), np.float64(100.0))
    """
    return _rational(_linearized(circuit, state, noise, variant, z), "state")


def linear_rational_spectrum(jacobian: Array, noise: Noise) -> RationalSpectrum:
    """Power spectral density matrix of dx = J x dt + L dB as a rational function of the frequency.

    Parameters
    ----------
    jacobian, noise
        As in :func:`linear_covariance`.

    Returns
    -------
    RationalSpectrum

    Raises
    ------
    TypeError, ValueError
        As :func:`linear_covariance`.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> found = oc.linear_rational_spectrum(np.array([[-10.0]]), np.array([[2.0]]))
    >>> found.numerator.real.round(6), found.denominator.round(6)  # 0.04 / (1 + (omega / scale)**2)
    (array([[[0.04]]]), array([1., 0., 1.]))
    """
    return _rational(_linear(jacobian, noise), "jacobian")


def symbolic_spectrum(jacobian: Any, noise: Any, omega: Any) -> tuple[Any, Any]:
    """The spectrum of dx = J x dt + L dB in symbols (needs sympy).

    Parameters
    ----------
    jacobian : sympy.Matrix (N, N)
    noise : sympy.Matrix (N, m)
        L, with real entries.
    omega : sympy.Symbol
        2 pi f.

    Returns
    -------
    numerator : sympy.Matrix (N, N)
        Polynomials in omega.
    denominator : sympy expression
        Polynomial in omega, det(i omega I - J) det(-i omega I - J); the spectrum is numerator / denominator.

    Raises
    ------
    ImportError
        Without sympy.
    TypeError, ValueError
        For arguments that are no matrices of sympy, or of wrong shapes.

    Examples
    --------
    >>> import sympy
    >>> a, b, w = sympy.symbols("a b omega", positive=True)
    >>> above, below = symbolic_spectrum(sympy.Matrix([[-a]]), sympy.Matrix([[b]]), w)
    >>> above[0, 0] / below
    b**2/(a**2 + omega**2)
    """
    try:
        import sympy
    except ImportError as error:
        raise ImportError("symbolic_spectrum needs sympy; install it with: pip install sympy") from error
    for name, value in (("jacobian", jacobian), ("noise", noise)):
        if not isinstance(value, sympy.MatrixBase):
            raise TypeError(f"{name} must be a sympy.Matrix, got {checks.describe(value)}")
    n = jacobian.shape[0]
    if jacobian.shape[1] != n or noise.shape[0] != n:
        raise ValueError(f"jacobian must be square and noise have its rows, got {jacobian.shape} and {noise.shape}")
    adjoint, characteristic = leverrier(
        jacobian, sympy.eye(n), lambda a, b: (a * b).applyfunc(sympy.expand), lambda a: sympy.expand(a.trace())
    )
    s = sympy.I * omega
    forward = sum((part * s**k for k, part in enumerate(adjoint)), sympy.zeros(n, n))
    backward = sum((part * (-s) ** k for k, part in enumerate(adjoint)), sympy.zeros(n, n))
    determinants = [sum(c * (sign * s) ** k for k, c in enumerate(characteristic)) for sign in (1, -1)]
    numerator = (forward * noise * noise.T * backward.T).applyfunc(
        lambda entry: sympy.collect(sympy.expand(entry), omega)
    )
    return numerator, sympy.collect(sympy.expand(determinants[0] * determinants[1]), omega)


def leverrier(
    matrix: Any, identity: Any, product: Callable[[Any, Any], Any], trace: Callable[[Any], Any]
) -> tuple[list[Any], list[Any]]:
    """(s I - J)^-1 = sum_k B_k s**k / sum_k c_k s**k: the N matrices B and the N + 1 numbers c, the last one 1.

    For anything with a product and a trace: arrays, and matrices of symbols.
    """
    n = int(matrix.shape[-1])
    part, coefficient = identity, 1
    adjoint, characteristic = [part], [coefficient]
    for k in range(1, n + 1):
        moved = product(matrix, part)
        coefficient = -trace(moved) / k
        characteristic.append(coefficient)
        if k < n:
            part = moved + coefficient * identity
            adjoint.append(part)
    return adjoint[::-1], characteristic[::-1]


def _rational(system: _System, name: str) -> RationalSpectrum:
    xp, jac, term, size = system
    stable, values = _stability(xp, jac, name)
    arrays = jac, _intensity(xp, term), _factor(xp, term), values, stable
    made, error = as_one(_coefficients, *arrays, settings=(size,))
    accurate = error < float(xp.finfo(jac.dtype).eps) ** 0.4
    _report(
        xp,
        stable & ~accurate,
        f"{name} has too many components, {jac.shape[-1]}, for coefficients in {str(jac.dtype).rpartition('.')[2]}: "
        "cancellation leaves too few digits; power_spectrum has them all",
    )
    keep = (stable & accurate)[..., None]
    return RationalSpectrum(
        xp.where(keep[..., None, None], made[0], xp.nan), xp.where(keep, made[1], xp.nan), made[2], error
    )


def _coefficients(
    size: int, jac: Array, intensity: Array, factor: Array, values: Array, stable: Array
) -> tuple[tuple[Array, Array, Array], Array]:
    """Numerator, denominator and scale, and their largest error (...) at some frequencies."""
    xp = array_namespace(jac)
    batch = broadcast_shapes(tuple(jac.shape[:-2]), tuple(intensity.shape[:-2]))
    jac, intensity = (widen(xp, part, batch) for part in (jac, intensity))
    n = int(jac.shape[-1])
    eye = xp.eye(n, dtype=jac.dtype, device=device(jac))
    scale = xp.exp(xp.mean(xp.log(xp.where(stable[..., None], xp.abs(values), 1.0)), axis=-1))
    units = _balance(get_backend(xp).stop_gradient(jac))
    both = units[..., None, :] * units[..., :, None]
    scaled = jac * (units[..., None, :] / units[..., :, None]) / scale[..., None, None]
    source = intensity / both / scale[..., None, None] ** 2

    def trace(matrix: Array) -> Array:
        return xp.linalg.trace(matrix)[..., None, None]

    adjoint, _ = leverrier(scaled, eye + xp.zeros_like(scaled), lambda a, b: matmul(xp, a, b), trace)
    kind = values.dtype
    one = xp.asarray(1j, dtype=kind, device=device(jac))
    driven = [matmul(xp, part, source) for part in adjoint]
    numerator = []
    for power in range(2 * n - 1):
        terms = [
            (-1) ** ((2 * k - power) // 2) * matmul(xp, driven[k], transpose(xp, adjoint[power - k]))
            for k in range(max(0, power - n + 1), min(power, n - 1) + 1)
        ]
        total = xp.astype(sum(terms[1:], terms[0]) * both, kind)[..., :size, :size]
        numerator.append(total * one if power % 2 else total)
    made = RationalSpectrum(xp.stack(numerator, axis=-3), _from_roots(xp, values / scale[..., None]), scale, scale)
    sizes = xp.abs(values)
    omega = xp.concat([xp.zeros_like(scale)[..., None], sizes, 3.0 * xp.max(sizes, axis=-1, keepdims=True)], axis=-1)
    response = _response(xp, jac, factor, omega / (2.0 * math.pi))[..., :size, :]
    exact = matmul(xp, response, xp.conj(transpose(xp, response)))
    root = xp.sqrt(xp.real(xp.linalg.diagonal(exact)))
    least = float(xp.finfo(jac.dtype).smallest_normal)
    off = xp.abs(made.at(xp, omega / scale[..., None]) - exact) / (root[..., :, None] * root[..., None, :] + least)
    return (made.numerator, made.denominator, scale), xp.max(off, axis=(-3, -2, -1))


def _from_roots(xp: Any, values: Array) -> Array:
    """Coefficients (..., 2N+1) in x of the product of x**2 + value**2."""
    made = xp.ones_like(values[..., :1])
    nothing = xp.zeros_like(made)
    for k in range(int(values.shape[-1])):
        square = values[..., k, None] ** 2
        made = xp.concat([square * made, nothing], axis=-1) + xp.concat([nothing, made], axis=-1)
    made = xp.real(made)
    spread = xp.stack([made, xp.zeros_like(made)], axis=-1)
    return xp.reshape(spread, (*made.shape[:-1], 2 * int(made.shape[-1])))[..., :-1]
