"""Phenomena of normalization, each as a ready circuit and a function that returns its numbers.

Sources: Carandini & Heeger (2012) for contrast saturation, cross-orientation
and surround suppression; Reynolds & Heeger (2009) for attention; Heeger &
Mackey (2019) for normalization in time. All circuits have W_r = I, so every
steady response is the normalization equation. Firing rates are max(y, 0)**2.
Contrasts are shares, 1 that of the strongest grating; larger ones are not
refused, and show where responses saturate.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, ClassVar, NamedTuple

from array_api_compat import device

from . import checks
from .backend import Array
from .circuit import Circuit, State, circuit_jacobian, relu
from .circuit import field as circuit_field
from .equilibria import steady_state
from .integration import simulate
from .model import Parameter, validate


class Responses(NamedTuple):
    """Steady responses of a population to a family of stimuli.

    Attributes
    ----------
    preferences : array (n,)
        Preferred orientations in radians, or positions in degrees.
    rates : array (..., n)
        Firing rates, one leading axis per parameter that was varied.
    circuit : Circuit
    drive : array (..., n)
        The input drives.
    """

    preferences: Array
    rates: Array
    circuit: Circuit
    drive: Array


class Attention(NamedTuple):
    """Contrast responses with and without attention.

    Attributes
    ----------
    contrasts : array (C,)
    attended, neutral : arrays (C,)
        Rates of the neuron at the centre of the stimulus.
    positions : array (n,)
        In degrees.
    gain : array (n,)
        The input gain b under attention.
    """

    contrasts: Array
    attended: Array
    neutral: Array
    positions: Array
    gain: Array


class TemporalPair(NamedTuple):
    """Responses to two equal pulses.

    Attributes
    ----------
    gaps : array (G,)
        Pauses between the pulses, in seconds.
    times : array (T,)
        In seconds.
    drive, rates : arrays (T, G)
        Input drive and firing rate.
    first, second : arrays (G,)
        Mean rates during each pulse.
    """

    gaps: Array
    times: Array
    drive: Array
    rates: Array
    first: Array
    second: Array


def _values(name: str, values: Array, allowed: str = ">= 0") -> Any:
    xp = checks.namespace({name: values})
    if values.ndim != 1 or values.shape[0] == 0:
        raise ValueError(f"{name} must have shape (K,) with K >= 1, got shape {tuple(values.shape)}")
    checks.values(xp, name, values, allowed)
    return xp


def _odd(n: int) -> int:
    """``n``, odd, so that one neuron is in the centre, and others are around it."""
    if checks.positive_integer("n", n) % 2 == 0:
        raise ValueError(f"n must be odd, so that one neuron is in the centre, got {n}")
    if n == 1:
        raise ValueError("n must be at least 3, so that there are neurons around the centre, got 1")
    return int(n)


def _grid(xp: Any, low: float, high: float, count: int, like: Array, *, endpoint: bool = True) -> Array:
    count = checks.positive_integer("n", count)
    return xp.linspace(low, high, count, endpoint=endpoint, dtype=like.dtype, device=device(like))


def _gaussian(xp: Any, x: Array, width: float) -> Array:
    return xp.exp(-0.5 * (x / width) ** 2)


def _respond(circuit: Circuit, preferences: Array, drive: Array) -> Responses:
    xp = checks.namespace({"drive": drive})
    rates = relu(xp, steady_state(circuit, drive).state.y) ** 2
    return Responses(preferences, rates, circuit, drive)


def orientation_circuit(n: int, *, sigma: float = 0.1, like: Array) -> Circuit:
    """A hypercolumn: n neurons that prefer all orientations and normalize each other equally.

    Parameters
    ----------
    n : int
    sigma : float
        Semi-saturation contrast.
    like : array
        Whose library, dtype and device the circuit has.

    Returns
    -------
    Circuit
        Sum over the pool 1 for a grating of contrast 1, in units of the tuned drive.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit = oc.phenomena.orientation_circuit(8, like=np.ones(1))
    >>> circuit.w.shape, bool(oc.certify(circuit, np.ones(8)).stable)
    ((8, 8), True)
    """
    xp = checks.namespace({"like": like})
    theta = _grid(xp, 0.0, math.pi, n, like, endpoint=False)
    pool = xp.sum(_tuning(xp, theta) ** 2)
    w = xp.ones((n, n), dtype=like.dtype, device=device(like)) / pool
    return Circuit(None, w, 0.5, 0.5, checks.positive_number("sigma", sigma), 0.002, 0.002)


def _tuning(xp: Any, angle: Array) -> Array:
    """Drive of a neuron whose preference differs by ``angle`` from a grating of contrast 1."""
    return xp.exp(2.0 * (xp.cos(2.0 * angle) - 1.0))


def contrast_saturation(contrasts: Array, *, n: int = 32, sigma: float = 0.1) -> Responses:
    """A hypercolumn's responses to a grating of rising contrast.

    The rates saturate, as c**2 / (sigma**2 + c**2), and the tuning keeps its
    width at every contrast.

    Parameters
    ----------
    contrasts : array (C,)
    n : int
        Neurons.
    sigma : float
        Contrast at half the maximum.

    Returns
    -------
    Responses
        ``rates`` (C, n).

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> found = oc.phenomena.contrast_saturation(np.array([0.1, 0.2, 0.4, 0.8]))
    >>> rates = found.rates.max(axis=-1)  # of the neuron that responds most
    >>> (rates[1:] / rates[:-1]).round(2)  # for twice the contrast
    array([1.6 , 1.18, 1.05])
    """
    xp = _values("contrasts", contrasts)
    theta = _grid(xp, 0.0, math.pi, n, contrasts, endpoint=False)
    circuit = orientation_circuit(n, sigma=sigma, like=contrasts)
    return _respond(circuit, theta, contrasts[:, None] * _tuning(xp, theta))


def cross_orientation_suppression(contrasts: Array, masks: Array, *, n: int = 32, sigma: float = 0.1) -> Responses:
    """A hypercolumn's responses to a grating under an orthogonal mask.

    The mask drives the neurons that prefer the grating hardly at all, yet
    suppresses them: it moves their contrast response to higher contrasts.

    Parameters
    ----------
    contrasts : array (C,)
        Of the grating, at orientation 0.
    masks : array (M,)
        Contrasts of the mask, at orientation pi/2.
    n, sigma
        As in :func:`contrast_saturation`.

    Returns
    -------
    Responses
        ``rates`` (M, C, n); neuron 0 prefers the grating, neuron n//2 of an even n the mask.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> found = oc.phenomena.cross_orientation_suppression(np.array([0.2]), np.array([0.0, 0.5]))
    >>> alone, masked = found.rates[:, 0, :]
    >>> best = alone.argmax()
    >>> bool(masked[best] < alone[best])
    True
    """
    xp = _values("contrasts", contrasts)
    _values("masks", masks)
    checks.namespace({"contrasts": contrasts, "masks": masks})
    theta = _grid(xp, 0.0, math.pi, n, contrasts, endpoint=False)
    grating = contrasts[:, None] * _tuning(xp, theta)
    mask = masks[:, None, None] * _tuning(xp, theta - 0.5 * math.pi)
    return _respond(orientation_circuit(n, sigma=sigma, like=contrasts), theta, grating + mask)


def space_circuit(
    positions: Array, *, pool: float = 3.0, sigma: float = 0.1, strength: float = 1.0, gain: Array = None
) -> Circuit:
    """Neurons along a line in space, each normalized by a Gaussian neighbourhood.

    Parameters
    ----------
    positions : array (n,)
        In degrees, evenly spaced.
    pool : float
        Standard deviation of the neighbourhood, in degrees.
    sigma : float
        Semi-saturation constant.
    strength : float
        Sum of a neighbourhood's weights.
    gain : array (n,), optional
        Input gain b; 0.5 by default.

    Returns
    -------
    Circuit

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> positions = np.linspace(-5.0, 5.0, 11)
    >>> circuit = oc.phenomena.space_circuit(positions)
    >>> bool(circuit.w[5, 5] > circuit.w[5, 0])  # neighbours normalize most
    True
    """
    xp = _values("positions", positions, "any")
    w = _gaussian(xp, positions[:, None] - positions[None, :], checks.positive_number("pool", pool))
    w = checks.positive_number("strength", strength) * w / xp.max(xp.sum(w, axis=-1))
    return Circuit(None, w, 0.5 if gain is None else gain, 0.5, checks.positive_number("sigma", sigma), 0.002, 0.002)


def _patch(xp: Any, positions: Array, diameters: Array, field: float) -> Array:
    """Drive (..., n) of receptive fields of width ``field`` by patches (...,) of contrast 1 in the centre."""
    from_left = _phi(xp, (positions + 0.5 * diameters[..., None]) / field)
    from_right = _phi(xp, (positions - 0.5 * diameters[..., None]) / field)
    return from_left - from_right


def _phi(xp: Any, x: Array) -> Array:
    """The normal distribution function, to 3e-4 (logistic approximation of Bowling et al. 2009)."""
    return 0.5 * (1.0 + xp.tanh(0.5 * (0.07056 * x**3 + 1.5976 * x)))


def surround_suppression(diameters: Array, contrasts: Array, *, n: int = 81, pool: float = 3.0) -> Responses:
    """Responses to patches of growing diameter, in the centre of a line of neurons.

    The neuron in the centre responds best to a patch that fills its receptive
    field; a larger one recruits only its normalization pool, and suppresses it.

    Parameters
    ----------
    diameters : array (D,)
        In degrees; receptive fields have a standard deviation of 1 degree, and
        the line reaches from -20 to 20.
    contrasts : array (C,)
    n : int
        Neurons; odd, so that one is in the centre.
    pool : float
        Standard deviation of the normalization pool, in degrees.

    Returns
    -------
    Responses
        ``rates`` (C, D, n); neuron n//2 is in the centre.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> diameters = np.array([1.0, 3.0, 30.0])
    >>> found = oc.phenomena.surround_suppression(diameters, np.array([1.0]))
    >>> found.rates[0, :, 40].round(2)  # of the neuron in the middle
    array([0.98, 0.78, 0.25])
    """
    xp = _values("diameters", diameters)
    _values("contrasts", contrasts)
    checks.namespace({"diameters": diameters, "contrasts": contrasts})
    positions = _grid(xp, -20.0, 20.0, _odd(n), diameters)
    circuit = space_circuit(positions, pool=pool, strength=4.0)
    return _respond(circuit, positions, contrasts[:, None, None] * _patch(xp, positions, diameters, 1.0))


def attention(
    contrasts: Array, *, stimulus: float = 1.0, attended: float = 8.0, gain: float = 2.0, n: int = 81, pool: float = 4.0
) -> Attention:
    """Attention as a change of the input gain b around a place.

    A small stimulus under a wide focus of attention has its drive and its pool
    multiplied alike: a contrast gain, which moves the response to lower
    contrasts and leaves its maximum. A large stimulus under a narrow focus has
    its drive multiplied more than its pool: a response gain.

    Parameters
    ----------
    contrasts : array (C,)
    stimulus : float
        Standard deviation of the stimulus, in degrees.
    attended : float
        Standard deviation of the focus of attention, in degrees.
    gain : float
        Factor of b in the middle of the focus.
    n : int
        Neurons; odd.
    pool : float
        Standard deviation of the normalization pool, in degrees.

    Returns
    -------
    Attention

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> found = oc.phenomena.attention(np.array([0.1, 0.5]))
    >>> bool((found.attended > found.neutral).all())
    True
    """
    xp = _values("contrasts", contrasts)
    positions = _grid(xp, -20.0, 20.0, _odd(n), contrasts)
    shape = _gaussian(xp, positions, checks.positive_number("attended", attended))
    focus = 0.5 * (1.0 + (checks.positive_number("gain", gain) - 1.0) * shape)
    drive = contrasts[:, None] * _gaussian(xp, positions, checks.positive_number("stimulus", stimulus))
    with_focus = _respond(space_circuit(positions, pool=pool, gain=focus, sigma=0.05), positions, drive)
    without = _respond(space_circuit(positions, pool=pool, sigma=0.05), positions, drive)
    middle = n // 2
    return Attention(contrasts, with_focus.rates[:, middle], without.rates[:, middle], positions, focus)


def temporal_pair(
    gaps: Array, *, duration: float = 0.1, contrast: float = 1.0, tau_y: float = 0.005, tau_a: float = 0.1
) -> TemporalPair:
    """Two equal pulses: the modulator outlasts the first and normalizes the second.

    Parameters
    ----------
    gaps : array (G,)
        Pauses between the pulses, in seconds.
    duration : float
        Of each pulse, in seconds.
    contrast : float
    tau_y, tau_a : float
        Time constants in seconds; the modulator's sets how long the memory lasts.

    Returns
    -------
    TemporalPair
        The times are a grid that has the edges of all pulses, with at most 250 points between two of them.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    ArithmeticError
        Where the simulation fails.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> found = oc.phenomena.temporal_pair(np.array([0.05, 0.4]))
    >>> (found.second / found.first).round(2)  # the second pulse recovers with the pause
    array([0.47, 0.95])
    """
    xp = _values("gaps", gaps)
    duration = checks.positive_number("duration", duration)
    contrast = checks.positive_number("contrast", contrast)
    like = {"dtype": gaps.dtype, "device": device(gaps)}
    onset, pauses = 0.5 * duration, [float(gap) for gap in gaps]
    starts = [onset + duration + gap for gap in pauses]
    end = 5.0 * duration + max(pauses)
    edges = sorted({0.0, end, onset, onset + duration, *starts, *(start + duration for start in starts)})
    apart = 100.0 * float(xp.finfo(gaps.dtype).eps) * end  # edges nearer than this are one
    if duration < 10.0 * apart:
        raise ValueError(
            f"duration must be at least {10.0 * apart:.1g} s for a clock of {gaps.dtype} that runs to {end:g} s, "
            f"got {duration:g}"
        )
    kept = [edge for k, edge in enumerate(edges) if k == 0 or edge - edges[k - 1] > apart]
    pieces = [
        low + (high - low) * k / count
        for low, high in itertools.pairwise(kept)
        for count in [max(1, math.ceil(min((high - low) / (0.005 * duration), 250.0)))]
        for k in range(count)
    ]
    clock = [*pieces, kept[-1]]
    times, first_on, first_off = (xp.asarray(value, **like) for value in (clock, onset, onset + duration))
    second_on = xp.asarray(starts, **like)[:, None]
    second_off = xp.asarray([start + duration for start in starts], **like)[:, None]

    def pulses(t: Array) -> Array:
        on = ((t >= first_on) & (t < first_off)) | ((t >= second_on) & (t < second_off))
        return xp.where(on, xp.asarray(contrast, **like), 0.0)

    one = xp.ones((1, 1), **like)
    circuit = _Counting(None, 4.0 * one, 1.0, 1.0, 0.5, tau_y, tau_a)
    validate(circuit, values=True, name="circuit")
    nothing = xp.zeros((len(pauses), 1), **like)
    run = simulate(
        circuit, pulses, times, state0=_Counted(nothing, nothing + 0.25, nothing), method="rodas5p",
        rtol=max(1e-6, 30.0 * float(xp.finfo(gaps.dtype).eps)), atol=1e-8 * min(1.0, contrast * duration / tau_y),
        max_step=math.inf, jumps=kept[1:-1],
    )  # fmt: skip
    if not run.success:
        raise ArithmeticError(f"the simulation of the pulses did not reach its end: {run.message}")
    total = run.state.total[..., 0]

    def mean(starts: list[float]) -> Array:
        rows = [min(range(len(clock)), key=lambda k: abs(clock[k] - edge)) for edge in starts]
        ends = [min(range(len(clock)), key=lambda k: abs(clock[k] - edge - duration)) for edge in starts]
        return xp.stack(
            [(total[j, g] - total[i, g]) / duration for g, (i, j) in enumerate(zip(rows, ends, strict=True))]
        )

    drive = xp.stack([pulses(times[k])[:, 0] for k in range(len(clock))])
    rates = relu(xp, run.state.y[..., 0]) ** 2
    return TemporalPair(gaps, times, drive, rates, mean([onset] * len(pauses)), mean(starts))


class _Counted(NamedTuple):
    y: Array
    a: Array
    total: Array  # integral of the firing rate


class _CountingFields(NamedTuple):
    w_r: Array
    w: Array
    b: Array
    b0: Array
    sigma: Array
    tau_y: Array
    tau_a: Array


class _Counting(_CountingFields):
    """A circuit that adds up its firing rate."""

    __slots__ = ()
    spec: ClassVar[dict[str, Parameter]] = Circuit.spec
    state = _Counted
    autonomous: ClassVar[bool] = True
    additive: ClassVar[bool] = True

    def field(self: Any, xp: Any, t: Array, x: _Counted, z: Array) -> _Counted:
        dy, da = circuit_field(xp, self, State(x.y, x.a), z, "main")
        return _Counted(dy, da, relu(xp, x.y) ** 2)

    def jacobian(self: Any, xp: Any, t: Array, x: _Counted, z: Array) -> Array:
        inner = circuit_jacobian(xp, self, State(x.y, x.a), "main")
        slope = (2.0 * relu(xp, x.y))[..., None]
        nothing = xp.zeros_like(slope)
        row = xp.concat([slope, nothing, nothing], axis=-1)
        column = xp.zeros_like(inner[..., :1])
        return xp.concat([xp.concat([inner, column], axis=-1), row], axis=-2)
