"""The input drive: constant, sampled, a function of time, pulses; its value, and the times where it jumps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, NamedTuple

from array_api_compat import is_array_api_obj

from . import checks
from .backend import Array, get_backend, to_numpy

DRIVES = ("auto", "constant", "sampled")


class AmbiguousDriveWarning(UserWarning):
    """An array z was read as one value per time, and could have been a batch of constant drives."""


class Drive(NamedTuple):
    """An input drive, read; two of the first three fields are None.

    Attributes
    ----------
    constant : array (..., n)
    sampled : array (T, ..., n)
        One value per time, linear in between.
    function : callable
        Of the time, a 0-d array.
    sample : array (..., n)
        The value at the first time.
    jumps : tuple of float
        Times where a function breaks.
    """

    constant: Array
    sampled: Array
    function: Callable[[Array], Array] | None
    sample: Array
    jumps: tuple[float, ...]

    @property
    def named(self) -> dict[str, Array]:
        """The sample under its name for messages."""
        return {"z" if self.function is None else "z(t)": self.sample}


def read_drive(
    xp: Any, z: Any, times: Array, how: str, jumps: Iterable[float] | None = None, *, timed: bool = False
) -> Drive:
    """What kind of drive ``z`` is; TypeError or ValueError, by name, for what is none.

    ``timed`` says that the model itself may depend on the time, and jump.
    """
    checks.one_of("drive", how, DRIVES)
    given = None if jumps is None else read_jumps(jumps)
    if is_array_api_obj(z):
        count = times.shape[0]
        fits = z.ndim >= 2 and z.shape[0] == count
        if how == "sampled" and not fits:
            raise ValueError(f"a sampled z must have shape ({count}, ..., n), one value per time, got {tuple(z.shape)}")
        if given is not None and not timed:
            raise ValueError("jumps are for a z that is a function of time; an array z has its breaks at the times")
        checks.namespace({"times": times, "z": z})
        checks.values(xp, "z", z, "any")
        if fits and how != "constant":
            if how == "auto":
                warnings.warn(
                    f"z of shape {tuple(z.shape)} is read as a drive sampled at the {count} times; say drive='sampled' "
                    f"if so, or drive='constant' for a batch of {count} constant drives",
                    AmbiguousDriveWarning,
                    stacklevel=4,
                )
            return Drive(None, z, None, z[0, ...], given or ())
        return Drive(z, None, None, z, given or ())
    if not callable(z):
        raise TypeError(f"z must be an array or a function of time, got {checks.describe(z)}{checks.remedy('z', z)}")
    if how != "auto":
        raise ValueError(f"drive={how!r} says how to read an array z, and z is a function of time: leave it out")
    sample = z(times[0])
    if not is_array_api_obj(sample):
        raise TypeError(f"z(t) must return an array, got {checks.describe(sample)}")
    checks.namespace({"times": times, "z(t)": sample})
    checks.values(xp, "z(t)", sample, "any")
    own = read_jumps(getattr(z, "jumps", ()))
    return Drive(None, None, z, sample, tuple(sorted({*own, *(given or ())})))


def read_jumps(jumps: Iterable[float]) -> tuple[float, ...]:
    """Times where a drive breaks, as sorted numbers."""
    if not is_array_api_obj(jumps) and not isinstance(jumps, Iterable):
        raise TypeError(f"jumps must be times in seconds, a list of numbers, got {checks.describe(jumps)}")
    if is_array_api_obj(jumps) and not get_backend(checks.namespace({"jumps": jumps})).is_concrete(jumps):
        raise ValueError("jumps must be numbers, known before tracing")
    values = to_numpy(jumps).reshape(-1).tolist() if is_array_api_obj(jumps) else list(jumps)
    for value in values:
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"jumps must be finite times in seconds, got {value!r} among them")
    return tuple(sorted({float(value) for value in values}))


class PulseTrain:
    """A drive of rectangular pulses that knows its own jumps; made by :func:`pulse_train`.

    Attributes
    ----------
    z, baseline : array (..., n)
        Drive during a pulse, and what lies under it.
    onsets, durations, amplitudes : tuple of float
        Of the pulses.
    jumps : tuple of float
        The times, in seconds, where a pulse begins or ends.
    """

    def __init__(
        self,
        z: Array,
        onsets: tuple[float, ...],
        durations: tuple[float, ...],
        amplitudes: tuple[float, ...],
        baseline: Array,
    ) -> None:
        self.z = z
        self.onsets = onsets
        self.durations = durations
        self.ends = tuple(onset + duration for onset, duration in zip(onsets, durations, strict=True))
        self.amplitudes = amplitudes
        self.baseline = baseline
        self.jumps = tuple(sorted({*self.onsets, *self.ends}))

    def __call__(self, t: Array) -> Array:
        """The drive (..., n) at the time ``t``."""
        xp = checks.namespace({"z": self.z})
        factor: Any = 0.0
        for onset, end, amplitude in zip(self.onsets, self.ends, self.amplitudes, strict=True):
            inside = (t >= onset) & (t < end)
            factor = (
                factor + (xp.astype(inside, self.z.dtype) if is_array_api_obj(inside) else float(inside)) * amplitude
            )
        return self.baseline + factor * self.z


def pulse_train(
    z: Array,
    onsets: Sequence[float],
    durations: float | Sequence[float],
    *,
    amplitudes: float | Sequence[float] = 1.0,
    baseline: Array | None = None,
) -> PulseTrain:
    """A drive of rectangular pulses, for :func:`simulate`: steps of the adaptive methods end where a pulse does.

    Parameters
    ----------
    z : array (..., n)
        Drive during a pulse.
    onsets : sequence of float
        When the pulses begin, in seconds.
    durations : float or sequence of float
        How long they last, in seconds: of all pulses, or one per pulse.
    amplitudes : float or sequence of float
        Factors of ``z``. Pulses that overlap add up.
    baseline : array (..., n), optional
        Drive between the pulses, and under them; zero by default.

    Returns
    -------
    PulseTrain
        A function of time with the attribute ``jumps``.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> drive = pulse_train(np.array([1.0, 0.5]), onsets=[0.1, 0.4], durations=[0.05, 0.01])
    >>> drive(np.asarray(0.12)), drive(np.asarray(0.2))
    (array([1. , 0.5]), array([0., 0.]))
    >>> drive.jumps
    (0.1, 0.15000000000000002, 0.4, 0.41000000000000003)
    """
    xp = checks.namespace({"z": z} if baseline is None else {"z": z, "baseline": baseline})
    if z.ndim == 0:
        raise ValueError("z must have shape (..., n), got shape ()")
    checks.values(xp, "z", z, "any")
    if baseline is not None:
        checks.vector_shape("baseline", baseline, int(z.shape[-1]), scalar=True)
        checks.values(xp, "baseline", baseline, "any")

    def numbers(name: str, value: Any, count: int | None) -> tuple[float, ...]:
        if is_array_api_obj(value):
            value = to_numpy(value).tolist()
        if isinstance(value, bool) or not isinstance(value, Real | Iterable):
            raise TypeError(f"{name} must be a number or numbers, got {value!r}")
        values = [value] * (count or 1) if isinstance(value, Real) else list(value)
        if count is not None and len(values) != count:
            raise ValueError(f"{name} must be a number or {count} numbers, one per onset, got {len(values)}")
        for one in values:
            if not isinstance(one, Real) or isinstance(one, bool) or not math.isfinite(one):
                raise ValueError(f"{name} must be finite numbers, got {one!r}")
        return tuple(float(one) for one in values)

    starts = numbers("onsets", onsets, None)
    if not starts:
        raise ValueError("onsets must hold at least one time, got none")
    lengths = numbers("durations", durations, len(starts))
    if min(lengths) <= 0:
        raise ValueError(f"durations must be positive, got {min(lengths):g}")
    for start, length in zip(starts, lengths, strict=True):
        if not start + length > start:
            raise ValueError(f"durations must be more than the rounding of the onsets, got {length:g} s at {start:g} s")
    if baseline is None:
        baseline = xp.zeros_like(z)
    return PulseTrain(z, starts, lengths, numbers("amplitudes", amplitudes, len(starts)), baseline)


def is_concrete(times: Array) -> bool:
    """Whether the values of ``times`` can be looked at."""
    return get_backend(checks.namespace({"times": times})).is_concrete(times)
