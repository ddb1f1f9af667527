"""The loops of a simulation: one step's control for every library, on the host or traced, and runs in parts.

The loops see the state packed into one array (..., N). Time is counted from the start of the run, so that the
answer does not depend on where the clock starts. Every member of a batch keeps its own error norm; members whose
time constants are alike take the same steps, of which the worst decides, and one that diverges is set aside while
the others go on.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, cast

import numpy as np
from array_api_compat import device

from . import checks, model
from .backend import Array, Backend, Tree, compiled, get_backend, kernel_for, quiet, to_numpy, tree_map
from .linalg import solve, vecdot
from .methods import Method, Step
from .model import Layout
from .noise import NoiseTerm, noise_at, noise_term
from .trajectory import NOT_FINITE, STEP_TOO_SMALL, STIFF, SUCCESS, TOO_MANY_STEPS
from .weights import Operator, matvec

_STIFF_ABOVE = 0.75
"""Steps whose h |lambda| comes so close to the bound of the method are limited by stability, not by accuracy."""
_STILL = 10.0
"""Steps at the bound of stability leave the state in motion by about the tolerance in a time constant."""
_SOLVED = 512
"""Up to so many numbers in a state, linear systems are solved to see whether it has settled."""
_MANY = 8192
"""Below so many numbers a step costs the same for a part of them: members of a batch go together."""
_PIECES = 50
"""Into so many parts a run is cut whose progress is shown."""


class Settings(NamedTuple):
    """Everything about a run that is not an array: hashable, so that a compiler can specialize on it."""

    field: Callable[..., Tree] | None  # a user's own field(t, x); None: the model's
    function: Callable[[Array], Array] | None  # a drive that is a function of time
    layout: Layout
    method: Method
    sampled: bool
    substeps: int
    rtol: float
    atol: float
    max_steps: int
    steady: bool = False
    noise: Any = None  # where it depends on the state
    shape: tuple[int, ...] = ()  # of what the drive returns


class Arguments(NamedTuple):
    """The arrays of a run."""

    model: Any
    z: Array  # the constant drive, or None
    values: Array  # (T, ..., n) of a sampled drive, or None
    start: Array  # packed
    origin: Array  # the first time
    last: Array  # the last
    times: Array  # (T,), from the first
    limits: Array  # (T-1,), longest step allowed in each interval, or None
    jumps: Array  # (J,), from the first time, or None
    step: Array  # length of the first step, or None
    noise: NoiseTerm | None
    increments: Array  # (T-1, substeps, ..., m), or None


class Found(NamedTuple):
    """What a run returns: packed states (T, ..., N), and its report."""

    states: Array
    status: Array
    steps: Array
    rejected: Array
    step: Array
    settled: Array


def run_in_parts(
    backend: Backend,
    settings: Settings,
    arguments: Arguments,
    concrete: bool,
    pieces: list[Any] | None,
    show: AbstractContextManager[Callable[[float], None]] | None,
) -> Found:
    """The whole run; where its progress is to be shown, in parts that continue each other."""

    def part(some: Arguments) -> Found:
        if settings.method.adaptive and (pieces is not None or not backend.traces_loops):
            groups = None if pieces is not None else _groups(settings, some)
            with quiet(backend):
                return run_once(settings, some, pieces) if groups is None else _run_groups(settings, some, groups)
        run: Callable[..., Any] = run_once
        if concrete and _hashable(settings):
            run = compiled(cast(Hashable, backend), run_once)
        return Found(*run(settings, some))

    count = int(arguments.times.shape[0]) - 1
    if show is None:
        return part(arguments)
    if count < 2 or pieces is not None or settings.steady:
        with show as tell:
            whole = part(arguments)
            tell(1.0)
        return whole
    xp = checks.namespace({"times": arguments.times})
    edges = sorted({round(k * count / min(_PIECES, count)) for k in range(min(_PIECES, count) + 1)})
    found: Found | None = None
    with show as tell:
        for first, last in itertools.pairwise(edges):
            cut = slice(first, last)
            some = arguments._replace(
                times=arguments.times[first : last + 1],
                values=None if arguments.values is None else arguments.values[first : last + 1, ...],
                limits=None if arguments.limits is None else arguments.limits[cut],
                increments=None if arguments.increments is None else arguments.increments[cut, ...],
            )
            if found is not None:
                some = some._replace(start=found.states[-1, ...], step=found.step)
            made = part(some)
            if found is not None:
                made = Found(
                    xp.concat([found.states, made.states[1:, ...]], axis=0),
                    xp.where(found.status == SUCCESS, made.status, found.status),
                    found.steps + made.steps,
                    found.rejected + made.rejected,
                    made.step,
                    made.settled,
                )
            found = made
            tell(last / count)
    return cast(Found, found)


def _groups(settings: Settings, arguments: Arguments) -> list[list[int]] | None:
    """Members of a batch that take steps of their own: those whose shortest time constants are within a factor 4.

    None where all go together: their time constants are alike, or unknown.
    """
    if arguments.start.ndim != 2:
        return None
    count = int(arguments.start.shape[0])
    decay = None if settings.field is not None else getattr(arguments.model, "decay", None)
    if (
        settings.steady
        or settings.function is not None
        or settings.method.stiff
        or decay is None
        or math.prod(arguments.start.shape) < _MANY
    ):
        return None
    taus = [to_numpy(tau) for tau in decay()]
    if all(tau.ndim < 2 for tau in taus):
        return None
    shortest = np.min([np.broadcast_to(tau.min(axis=-1) if tau.ndim else tau, (count,)) for tau in taus], axis=0)
    rank = np.floor(np.log2(shortest / shortest.min()) / 2.0).astype(int)
    groups = [np.flatnonzero(rank == k).tolist() for k in np.unique(rank)]
    return groups if len(groups) > 1 else None


def _run_groups(settings: Settings, arguments: Arguments, groups: list[list[int]]) -> Found:
    """Every group of members by itself; the report counts the steps of the group that took most."""
    xp = checks.namespace({"times": arguments.times})
    count, spec = int(arguments.start.shape[0]), arguments.model.spec
    found = []
    for members in groups:
        index = xp.asarray(members, dtype=xp.int64, device=device(arguments.start))

        def pick(value: Any, axis: int, index: Array = index) -> Any:
            own = getattr(value, "ndim", 0) >= -axis and value.shape[axis] == count
            return xp.take(value, index, axis=axis) if own else value

        fields = [
            value if isinstance(value, Operator) else pick(value, -1 - spec[name].axes)
            for name, value in zip(arguments.model._fields, arguments.model, strict=True)
        ]
        values = arguments.values
        some = arguments._replace(
            model=arguments.model._make(fields),
            z=pick(arguments.z, -2),
            values=values if values is None or values.ndim < 3 else pick(values, -2),
            start=pick(arguments.start, -2),
        )
        found.append(run_once(settings, some))
    order = np.argsort([member for members in groups for member in members], kind="stable").tolist()
    back = xp.asarray(order, dtype=xp.int64, device=device(arguments.start))
    return Found(
        xp.take(xp.concat([one.states for one in found], axis=1), back, axis=1),
        xp.take(xp.concat([one.status for one in found]), back, axis=0),
        xp.max(xp.stack([one.steps for one in found])),
        xp.max(xp.stack([one.rejected for one in found])),
        xp.min(xp.stack([one.step for one in found])),
        found[0].settled,
    )


def _hashable(settings: Settings) -> bool:
    try:
        hash(settings)
    except TypeError:
        return False
    return True


def run_once(settings: Settings, arguments: Arguments, pieces: list[Any] | None = None) -> Found:
    arguments = Arguments(*arguments)
    xp = checks.namespace({"times": arguments.times})
    backend = get_backend(xp)
    if not settings.method.adaptive:
        states, steps = _fixed_steps(backend, xp, settings, arguments)
        counts = {"dtype": xp.int32, "device": device(arguments.times)}
        nothing = xp.full((), xp.nan, dtype=arguments.times.dtype, device=device(arguments.times))
        found = Found(
            states,
            xp.zeros(arguments.start.shape[:-1], **counts),
            xp.full((), steps, **counts),
            xp.zeros((), **counts),
            nothing,
            nothing,
        )
    else:
        loop: Any = TracedLoop if backend.traces_loops and pieces is None else HostLoop
        found = loop(backend, xp, settings, arguments, pieces).run()
    states, status = finish(xp, arguments.start, found.states, found.status)
    return found._replace(states=states, status=status)


def finish(xp: Any, start: Array, states: Array, status: Array) -> tuple[Array, Array]:
    """States (T-1, ..., N) with the start in front, NaN from where they are not finite; the status says where."""
    fine = xp.all(xp.isfinite(states), axis=-1)
    states = xp.where(fine[..., None], states, xp.full_like(states, xp.nan))
    lost = (status == SUCCESS) & ~fine[-1, ...]
    status = xp.where(lost, xp.asarray(NOT_FINITE, dtype=status.dtype, device=device(start)), status)
    return xp.concat([start[None, ...], states], axis=0), status


class Slope:
    """x' on packed states at times counted from the start of the run: what a method sees of the problem."""

    def __init__(
        self,
        xp: Any,
        settings: Settings,
        arguments: Arguments,
        samples: tuple[Any, ...] | None = None,
        segment: tuple[Any, Any] | None = None,
        fast: Callable[[Any, Array], Array] | None = None,
        into: bool = False,
        held: Callable[[Tree], Tree] | None = None,
    ) -> None:
        self.xp = xp
        self._settings = settings
        self._arguments = arguments
        self._model = None if settings.field is not None else arguments.model
        self._samples = samples  # begin, end, and the values of the drive there
        self._segment = segment  # where a drive that is a function may be asked
        self.fast = fast
        own = getattr(self._model, "autonomous", False)
        self.autonomous = bool(own) and samples is None and settings.function is None
        self.into = into
        make = getattr(self._model, "held", None)
        if held is None and fast is None and make is not None and arguments.z is not None and samples is None:
            held = make(xp, arguments.z)
        self._held = held

    def at(self, *, samples: tuple[Any, ...] | None = None, segment: tuple[Any, Any] | None = None) -> Slope:
        """The same in another interval between samples, or on another side of a jump."""
        return Slope(
            self.xp,
            self._settings,
            self._arguments,
            samples or self._samples,
            segment or self._segment,
            self.fast,
            self.into,
            self._held,
        )

    @property
    def tau(self) -> Array:
        """Time constants of the linear decay, packed; None where there are none."""
        if self._model is None:
            return self._arguments.model
        parts = self._model.decay()
        like = self._settings.layout.unpack(self._arguments.start)
        zero = self.xp.zeros_like
        return self._settings.layout.pack(self.xp, [t + zero(x) for t, x in zip(parts, like, strict=True)])

    def drive(self, t: Any) -> Array:
        """The input drive."""
        xp = self.xp
        if self._samples is not None:
            begin, end, z0, z1 = self._samples
            return z0 + ((t - begin) / (end - begin)) * (z1 - z0)
        if self._settings.function is None:
            return self._arguments.z
        clock = self._clock(t)
        clock = self.xp.where(clock < self._arguments.last, clock, self._arguments.last)
        made = self._call("z", self._settings.function, clock)
        if getattr(made, "shape", None) != self._settings.shape:
            raise ValueError(
                f"z(t) must return an array of shape {self._settings.shape} at all times, as at the first, "
                f"got {checks.describe(made)}"
            )
        model.check_real("z(t)", (made,))
        return xp.astype(made, self._arguments.start.dtype, copy=False)

    def clock_size(self, t: Any) -> Any:
        """The size of the times that a function of time is asked for at ``t``: what their rounding goes by."""
        origin = self._arguments.origin
        if self._model is not None and self._settings.function is None and getattr(self._model, "autonomous", False):
            return abs(t)
        if checks.is_number(t):
            origin = float(get_backend(self.xp).stop_gradient(origin))
        return abs(origin) + abs(t)

    def _clock(self, t: Any) -> Array:
        """The time of the user's clock, on the side of a jump where the step lies."""
        return self._time(self._arguments.origin + (t if self._segment is None else self._clip(t)))

    def _clip(self, t: Any) -> Any:
        low, high = cast(tuple[Any, Any], self._segment)
        if checks.is_number(t):
            return min(max(t, low), high)
        t = self.xp.where(t > low, t, low)
        return self.xp.where(t < high, t, high)

    def _time(self, t: Any) -> Array:
        like = self._arguments.start
        return self.xp.asarray(t, dtype=like.dtype, device=device(like)) if checks.is_number(t) else t

    def _state(self, t: Any, x: Tree, z: Array) -> Tree:
        if self._model is not None:
            clock = t if getattr(self._model, "autonomous", False) else self._clock(t)
            return self._call("field", self._model.field, self.xp, clock, x, z)
        slope = self._call("field", self._settings.field, self._clock(t), x)
        shapes = [tuple(part.shape) for part in slope] if isinstance(slope, tuple) else None
        if shapes != [tuple(part.shape) for part in x]:
            raise ValueError(
                f"field must return a tuple of arrays shaped like state0, {[tuple(part.shape) for part in x]}, "
                f"got {shapes if shapes is not None else checks.describe(slope)}"
            )
        model.check_real("field", slope)
        return slope

    def _call(self, name: str, function: Any, *arguments: Any) -> Any:
        """What the user's function ``name`` returns; TypeError, naming it, where it looks at a value that is traced."""
        try:
            return function(*arguments)
        except TypeError as error:
            backend = get_backend(self.xp)
            if not isinstance(error, getattr(backend, "untraceable", ())):
                raise
            owner = "" if name == "z" or self._model is None else f" of {type(self._model).__name__}"
            raise TypeError(
                f"{name}{owner} must be a function that {backend.name} can trace, written with its operations: no "
                "numpy, math, float() or bool() of the time or the state, and where() in place of if"
            ) from error

    def __call__(self, t: Any, x: Array) -> Array:
        if self.fast is not None:
            return self.fast(t, x)
        layout = self._settings.layout
        if self._held is not None:
            return layout.pack(self.xp, self._held(layout.unpack(x)))
        return layout.pack(self.xp, self._state(t, layout.unpack(x), self.drive(t)))

    def jacobian(self, t: Any, x: Array) -> Array:
        """Derivative of the slope by the state, (..., N, N)."""
        layout, z = self._settings.layout, self.drive(t)
        if self._model is not None:
            return model.field_jacobian(self.xp, self._model, self._clock(t), layout.unpack(x), z)
        return model.packed_jacobian(self.xp, lambda at: layout.pack(self.xp, self._state(t, layout.unpack(at), z)), x)


def _fixed_steps(backend: Backend, xp: Any, settings: Settings, arguments: Arguments) -> tuple[Array, int]:
    method, substeps, times, values = settings.method, settings.substeps, arguments.times, arguments.values
    kernel = None if backend.traces_loops else _kernel(xp, settings, arguments)
    every = Slope(xp, settings, arguments, fast=kernel)
    constant = None if arguments.noise is None else NoiseTerm(*arguments.noise)
    xs: Tree = (times[:-1], times[1:])
    if arguments.increments is not None:
        xs = (*xs, arguments.increments)
    if settings.sampled:
        xs = (*xs, values[:-1, ...], values[1:, ...])

    def interval(x: Array, inputs: Tree) -> tuple[Array, Array]:
        t0, t1, *rest = inputs
        if kernel is not None:  # on the host clocks are numbers
            t0, t1 = float(t0), float(t1)
        h = (t1 - t0) / substeps
        slope = every.at(segment=(t0, t1))
        if settings.sampled:
            slope = every.at(samples=(t0, t1, *rest[-2:]))

        def one(x: Array, inputs: Any) -> tuple[Array, None]:
            k, db = inputs
            t = t0 + (k if kernel is None else float(k)) * h
            kick = None if db is None else _kick(xp, constant or _noise(xp, settings, arguments, x), db)
            return method.step(slope, t, h, x, method.init(slope, t, x), kick).x, None

        if substeps == 1:
            x, _ = one(x, (0.0, None if arguments.increments is None else rest[0][0, ...]))
        else:
            counter = xp.arange(substeps, dtype=times.dtype, device=device(times))
            x, _ = backend.scan(one, x, (counter, None if arguments.increments is None else rest[0]))
        return x, x

    _, states = backend.scan(interval, arguments.start, xs)
    return states, substeps * (int(times.shape[0]) - 1)


def _kernel(
    xp: Any, settings: Settings, arguments: Arguments, columns: bool = False
) -> Callable[[Any, Array], Array] | None:
    """The fast vector field of the model under a constant drive, where one is registered and applies.

    With ``columns`` for states (N, B), neurons before the members of the batch.
    """
    if arguments.z is None or settings.field is not None:
        return None
    make = kernel_for(type(arguments.model), xp)
    return None if make is None else make(arguments.model, arguments.z, arguments.start, columns)


def _noise(xp: Any, settings: Settings, arguments: Arguments, x: Array) -> NoiseTerm:
    """The noise that depends on the state, at the state ``x``."""
    layout = settings.layout
    model = None if settings.field is not None else arguments.model
    return noise_term(xp, noise_at(xp, settings.noise, model, layout.unpack(x)), layout.sizes, x)


def _kick(xp: Any, term: NoiseTerm, db: Array) -> Array:
    """L dB."""
    return term.amplitude * db if term.matrix is None else matvec(xp, term.matrix, db)


class _Carry(NamedTuple):
    """Carry of the adaptive loop."""

    t: Any  # a number on the host; traced a pair, whose sum has twice the digits
    h: Any
    x: Array
    memory: Any
    # the last attempt, for interpolation: loops end, and look at it, after an accepted one only
    t_old: Any
    h_old: Any
    dense: Any
    status: Array  # on the host None until a member fails
    steps: Any
    rejected: Any
    settled: Any
    grows: Any  # whether the next step may be longer: not where the last attempt was rejected


class Loop:
    """Adaptive steps from output time to output time, for every library.

    What a step does stands here once. The two kinds of loops differ in what
    their clock, step lengths and decisions are: Python numbers on the host, arrays
    where the library traces.
    """

    def __init__(
        self, backend: Backend, xp: Any, settings: Settings, arguments: Arguments, pieces: list[Any] | None
    ) -> None:
        self.backend, self.xp, self.settings, self.arguments, self.pieces = backend, xp, settings, arguments, pieces
        self.method = settings.method
        self.exact = settings.sampled or not self.method.interpolates
        self.exponent = -1.0 / self.method.order
        self.axis = -1  # of the neurons
        self.batch = tuple(arguments.start.shape[:-1])
        self.eps = float(xp.finfo(arguments.start.dtype).eps)

    # What the two kinds define.
    traced: bool
    jumps: Any
    clock_eps: float
    span: Any  # the last time
    floor: Any
    where: Any  # (condition, one, other)
    lower: Any  # the smaller of two
    upper: Any
    invert: Any  # of a flag
    possible: Any  # whether a flag may be set
    step: Any  # (slope, time, step, state, memory)
    worst: Any  # (norm, status): the largest of the living members
    time: Any  # of the clock
    left: Any  # (end, clock)
    move: Any  # (clock, step, end, whether the step ends there)
    begin: Any  # the clock at the start
    number: Any  # a step length from an array
    pick: Any  # (accept, new, old)
    segment: Any  # the stretch between jumps
    restart: Any  # (landed, slope, clock, state, memory)
    keep: Any  # (accept, clock, step, dense)
    fraction: Any  # (carry, output time)

    def norm(self, error: Array, old: Array, new: Array) -> Array:
        """Root mean square over the neurons, relative to the tolerance; infinite where not finite."""
        xp, settings = self.xp, self.settings
        scaled = error / (settings.atol + settings.rtol * xp.maximum(xp.abs(old), xp.abs(new)))
        norm = xp.sqrt(vecdot(xp, scaled, scaled, self.axis) / scaled.shape[self.axis])
        return xp.where(xp.isfinite(norm), norm, xp.inf)

    def measure(self, error: Array, old: Array, new: Array) -> Any:
        """The norm of the error of a step; a number where there is one member, on the host."""
        return self.norm(error, old, new)

    def first_step(self, slope: Slope, x: Array, room: Any) -> Array:
        """Length of the first step (Hairer, Norsett & Wanner, Solving ODEs I, II.4), for the worst of the batch."""
        xp, free = self.xp, self.backend.stop_gradient
        x, begin = free(x), self.time(self.begin())
        first = free(slope(begin, x))
        power = 1.0 / self.method.order
        d0, d1 = self.norm(x, x, x), self.norm(first, x, x)
        small = (d0 < 1e-5) | (d1 < 1e-5) | ~xp.isfinite(d1)
        step = xp.min(xp.where(small, 1e-3 * room, 0.01 * d0 / xp.where(small, 1.0, d1)))
        step = xp.where(step < room, step, room)
        second = free(slope(begin + self.number(step), x + step * first))
        d2 = self.norm(second - first, x, x) / step
        largest = xp.where(d1 > d2, d1, d2)
        usable = (largest > 1e-15) & xp.isfinite(largest)
        guess = xp.min(xp.where(usable, (0.01 / xp.where(usable, largest, 1.0)) ** power, 1e-3 * step))
        guess = xp.where(guess < 100.0 * step, guess, 100.0 * step)
        guess = xp.where(guess > 0, guess, 1e-6 * room)  # where nothing is finite the loop is to say so
        return xp.where(guess < room, guess, room)

    def factor(self, worst: Any, grows: Any) -> Any:
        """By how much the next step is longer; no growth after a step that was found by rejections."""
        factor = 0.9 * self.upper(worst, 1e-10) ** self.exponent
        return self.lower(self.upper(factor, 0.2), self.where(grows, 10.0, 1.0))

    def attempt(self, c: _Carry, slope: Slope, end: Any, limit: Any) -> _Carry:
        """One step, accepted or not."""
        free = self.backend.stop_gradient
        room = self.left(end, c.t)
        wish = c.h if limit is None else self.lower(c.h, limit)
        clipped = wish >= room
        h = self.where(clipped, room, wish)
        if self.jumps:
            slope = slope.at(segment=self.segment(c.t))
        made = self.step(slope, self.time(c.t), h, c.x, c.memory)
        norm = self.measure(made.error, free(c.x), free(made.x))
        worst = self.worst(norm, c.status)
        accept = worst <= 1.0
        h_next = h * self.factor(worst, c.grows)
        # a step cut short by the end of its interval, or by its bound, says little about the next one
        h_next = self.where(accept & (clipped | (wish < c.h)), self.upper(c.h, h_next), h_next)
        t = self.where(accept, self.move(c.t, h, end, clipped), c.t)
        x, memory = self.pick(accept, (made.x, made.memory), (c.x, c.memory))
        if self.jumps:
            memory = self.restart(accept & clipped, slope, t, x, memory)
        status = c.status
        stuck = self.invert(accept) & (h_next <= 16.0 * self.clock_eps * self.upper(self.time(c.t), self.floor))
        if self.possible(stuck):
            x, memory, status = self.set_aside(stuck, norm, x, memory, status)
        settled = c.settled
        if self.settings.steady:
            settled = self.where(accept & self.steady(slope, t, x, status), self.time(t), settled)
        count = self.where(accept, 1, 0)
        self.keep(accept, c.t, h, made.dense)
        return _Carry(
            t, free(h_next) if self.traced else h_next, x, memory, c.t, h, made.dense, status,
            c.steps + count, c.rejected + 1 - count, settled, accept,
        )  # fmt: skip

    def set_aside(self, stuck: Any, norm: Array, x: Array, memory: Any, status: Array) -> tuple[Array, Any, Array]:
        """Members that no step of any length advances."""
        xp = self.xp
        if status is None:
            status = xp.zeros(self.batch, dtype=xp.int32, device=device(x))
        failed = (status == SUCCESS) & (norm > 1.0)
        if self.traced:
            failed = failed & stuck
        status = xp.where(failed, xp.asarray(STEP_TOO_SMALL, dtype=status.dtype, device=device(x)), status)
        ghost = xp.expand_dims(failed, axis=self.axis)
        x = xp.where(ghost, xp.nan, x)
        memory = tree_map(lambda leaf: xp.where(ghost, xp.nan, leaf) if leaf.shape == x.shape else leaf, memory)
        return x, memory, status

    def steady(self, slope: Slope, t: Any, x: Array, status: Array) -> Any:
        """Whether no living member moves by more than ten tolerances, soon or until the last time.

        Soon is the longest time constant. Slower modes show in the move until the last time, by one linearly implicit
        step of Euler's method.
        """
        xp, size = self.xp, int(x.shape[-1])
        free = self.backend.stop_gradient
        x = free(x)
        own = slope._model is not None and hasattr(slope._model, "decay")
        scale = xp.max(slope.tau, axis=-1)[..., None] if own else self.time(t)
        speed = slope(self.time(t), x)
        soon = self.worst(free(self.norm(scale * speed, x, x)), status)
        if size > _SOLVED or not (self.traced or soon <= _STILL):
            return soon <= _STILL

        def until_the_end(x: Array, speed: Array) -> Any:
            eye = xp.eye(size, dtype=x.dtype, device=device(x))
            system = eye / self.span - slope.jacobian(self.time(t), x)
            return self.worst(free(self.norm(solve(xp, system, speed[..., None])[..., 0], x, x)), status)

        if not self.traced:
            return until_the_end(x, speed) <= _STILL

        def turn(c: Any) -> Any:  # what it takes changes, else a compiler may compute the rest before it asks
            later = until_the_end(c[2], c[3])
            return xp.zeros_like(c[0]), later, xp.zeros_like(c[2]), xp.zeros_like(c[3])

        # a loop of one turn or none: the linear system is solved only where the answer hangs on it
        begin = (soon <= _STILL, soon, x, speed)
        return begin[0] & (self.backend.while_loop(lambda c: c[0], turn, begin, max_steps=1)[1] <= _STILL)

    def output(self, c: _Carry, goal: Any) -> Array:
        """The state at an output time that has been passed."""
        xp = self.xp
        if self.exact:
            return c.x
        theta = self.fraction(c, goal)
        here = self.method.interpolate(c.dense, theta, c.h_old)
        if c.status is None:
            return here
        return xp.where(xp.expand_dims(c.status == SUCCESS, axis=self.axis), here, xp.nan)

    def late(self, status: Array, shape: tuple[int, ...], code: int) -> Array:
        xp, like = self.xp, self.arguments.times
        new = xp.full(shape, code, dtype=xp.int32, device=device(like))
        return new if status is None else xp.where(status == SUCCESS, new, status)

    def is_stiff(self, c: _Carry) -> Array:
        """Whether h |lambda| of the last attempt stands at the bound of explicit methods, (...)."""
        nothing = self.xp.zeros(self.batch, dtype=self.xp.bool, device=device(c.x))
        if c.dense is None:  # no step was accepted
            return nothing
        dense = c.dense if self.axis == -1 else tree_map(self.xp.matrix_transpose, c.dense)
        size, reach = self.method.stiffness(dense, c.h_old), self.method.reach
        if size is None or reach is None:
            return nothing
        return size > _STIFF_ABOVE * reach


class HostLoop(Loop):
    """Python loops, with Python numbers for the clock."""

    traced = False

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        clock = [float(t) for t in self.arguments.times]
        self.clock = clock
        self.span = clock[-1]
        own = self.arguments.jumps
        self.jumps = [] if own is None else [t for t in map(float, own) if clock[0] <= t <= clock[-1]]
        self.limits = None if self.arguments.limits is None else [float(h) for h in self.arguments.limits]
        self.clock_eps = 2.220446049250313e-16
        self.floor = self.span * self.clock_eps
        self.origin = abs(float(self.arguments.origin))
        self.kernel = kernel_for(type(self.method), self.xp)

    where = staticmethod(lambda condition, one, other: one if condition else other)
    lower, upper = staticmethod(min), staticmethod(max)
    invert = staticmethod(lambda flag: not flag)
    possible = staticmethod(bool)
    time = staticmethod(lambda t: t)
    left = staticmethod(lambda end, t: end - t)
    number = staticmethod(float)
    pick = staticmethod(lambda accept, new, old: new if accept else old)

    def begin(self) -> float:
        return self.clock[0]

    def step(self, slope: Slope, t: float, h: float, x: Array, memory: Any) -> Step:
        made: Step | None = None if self.kernel is None else self.kernel(self.method, slope, t, h, x, memory, None)
        return self.method.plain_step(slope, t, h, x, memory) if made is None else made

    def measure(self, error: Array, old: Array, new: Array) -> Any:
        if error.ndim > 1:
            return self.norm(error, old, new)
        xp, settings = self.xp, self.settings
        scaled = error / (settings.atol + settings.rtol * xp.maximum(xp.abs(old), xp.abs(new)))
        square = float(xp.vecdot(scaled, scaled))
        return math.sqrt(square / scaled.shape[-1]) if math.isfinite(square) else math.inf

    def worst(self, norm: Any, status: Array) -> float:
        if isinstance(norm, float):
            return norm if status is None or int(status) == SUCCESS else 0.0
        norm = norm if status is None else self.xp.where(status == SUCCESS, norm, 0.0)
        return float(norm if norm.ndim == 0 else self.xp.max(norm))

    def move(self, t: float, h: float, end: float, clipped: bool) -> float:
        return end if clipped else t + h

    def segment(self, t: float) -> tuple[float, float]:
        """Just inside the stretch between two jumps in which a step from ``t`` lies."""
        k = bisect.bisect_right(self.jumps, t)
        low = self.jumps[k - 1] if k else self.clock[0]
        high = self.jumps[k] if k < len(self.jumps) else self.span
        nudge = 4.0 * self.eps * (self.origin + self.span)
        inside = min(nudge, 0.5 * (high - low))
        return (low + inside if k else low), (high - inside if k < len(self.jumps) else high)

    def restart(self, landed: bool, slope: Slope, t: float, x: Array, memory: Any) -> Any:
        return self.method.init(slope.at(segment=self.segment(t)), t, x) if landed and t < self.span else memory

    def keep(self, accept: bool, t: float, h: float, dense: Any) -> None:
        if accept and self.pieces is not None:
            self.pieces.append((t, h, dense))

    def fraction(self, c: _Carry, goal: float) -> float:
        return (goal - c.t_old) / c.h_old

    def outputs(self, c: _Carry, goals: list[float]) -> Array:
        """The states at several output times within the last step, (K, ..., N)."""
        xp, x = self.xp, c.x
        theta = xp.asarray([self.fraction(c, goal) for goal in goals], dtype=x.dtype, device=device(x))
        theta = xp.reshape(theta, (-1, *(1,) * x.ndim))
        here = self.method.interpolate(c.dense, theta, c.h_old)
        return here if c.status is None else xp.where(xp.expand_dims(c.status == SUCCESS, axis=self.axis), here, xp.nan)

    def end(self, k: int, t: float) -> float:
        end = self.clock[k] if self.exact else self.span
        if self.jumps:
            j = bisect.bisect_right(self.jumps, t)
            end = min(end, self.jumps[j]) if j < len(self.jumps) else end
        return end

    def run(self) -> Found:
        xp, settings, arguments = self.xp, self.settings, self.arguments
        values, x, clock = arguments.values, arguments.start, self.clock
        kernel = None
        if x.ndim == 2 and self.pieces is None and not settings.steady and not self.method.stiff:
            kernel = _kernel(xp, settings, arguments, columns=True)
        if kernel is not None:
            self.axis, x = 0, xp.asarray(xp.matrix_transpose(x), copy=True)
        else:
            kernel = _kernel(xp, settings, arguments)
        every = Slope(xp, settings, arguments, None, (clock[0], self.span), kernel, into=self.axis == 0)
        c: _Carry | None = None
        outputs = []
        finished = False  # every member failed
        passed = 0  # outputs that the last step has passed, and that have been interpolated with an earlier one
        for k in range(1, len(clock)):
            if k <= passed:
                continue
            goal = clock[k]
            slope = every
            if settings.sampled:
                slope = every.at(samples=(clock[k - 1], goal, values[k - 1, ...], values[k, ...]))
            limit = None if self.limits is None else self.limits[k - 1]
            if c is None:
                begun = slope.at(segment=self.segment(clock[0])) if self.jumps else slope
                h = self.given_step()
                if h is None:
                    room = xp.asarray(self.span - clock[0], dtype=x.dtype, device=device(x))
                    h = float(self.backend.stop_gradient(self.first_step(begun, x, room)))
                memory = self.method.init(begun, clock[0], x)
                c = _Carry(clock[0], h, x, memory, clock[0], 1.0, None, None, 0, 0, math.nan, True)
            tried = 0
            while c.t < goal and not finished and c.settled != c.settled:
                late = tried >= settings.max_steps // 4 and tried % 1000 == 0
                if tried >= settings.max_steps or (late and self.hopeless(c, goal)):
                    stiff = self.is_stiff(c)
                    status = self.late(c.status, self.batch, TOO_MANY_STEPS)
                    status = xp.where((status == TOO_MANY_STEPS) & stiff, STIFF, status)
                    c = c._replace(status=xp.astype(status, xp.int32))
                    finished = True
                    break
                tried += 1
                new = self.attempt(c, slope, self.end(k, c.t), limit)
                if new.steps == c.steps:  # the last accepted step stays in sight
                    new = new._replace(t_old=c.t_old, h_old=c.h_old, dense=c.dense)
                c = new
                finished = c.status is not None and bool(xp.all(c.status != SUCCESS))
            if finished:
                here = xp.full_like(x, xp.nan)
            elif c.t < goal or c.dense is None:
                here = c.x  # settled before
            else:
                passed = k if self.exact else bisect.bisect_right(clock, c.t) - 1
                if passed > k:
                    outputs.append(self.outputs(c, clock[k : passed + 1]))
                    continue
                here = self.output(c, goal)
            outputs.append(here[None, ...])
        c = cast(_Carry, c)
        like = {"dtype": arguments.times.dtype, "device": device(arguments.times)}
        counts = {"dtype": xp.int32, "device": device(arguments.times)}
        status = xp.zeros(self.batch, **counts) if c.status is None else c.status
        states = xp.concat(outputs, axis=0)
        return Found(
            states if self.axis == -1 else xp.matrix_transpose(states),
            status,
            xp.asarray(c.steps, **counts),
            xp.asarray(c.rejected, **counts),
            xp.asarray(c.h, **like),
            xp.asarray(c.settled, **like),
        )

    def given_step(self) -> float | None:
        if self.arguments.step is None:
            return None
        h = float(self.backend.stop_gradient(self.arguments.step))
        return h if h > 0 and math.isfinite(h) else None

    def hopeless(self, c: _Carry, goal: float) -> bool:
        """Whether stability limits the steps, and so much that the bound will be reached."""
        if (goal - c.t) < c.h * self.settings.max_steps or c.dense is None:
            return False
        return bool(self.xp.any(self.is_stiff(c)))


class TracedLoop(Loop):
    """Loops that the library traces: clock and decisions are arrays."""

    traced = True

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        xp, times = self.xp, self.arguments.times
        self.span = times[-1]
        self.jumps = self.arguments.jumps is not None
        self.double = self.eps > 1e-10  # single precision: the clock is a pair
        self.clock_eps = 1.5e-14 if self.double else self.eps
        self.floor = xp.abs(self.span) * self.clock_eps

    def where(self, condition: Any, one: Any, other: Any) -> Any:
        return tree_map(lambda a, b: self.xp.where(condition, a, b), one, other)

    def lower(self, one: Any, other: Any) -> Any:
        return self.xp.where(one < other, one, other)

    def upper(self, one: Any, other: Any) -> Any:
        return self.xp.where(one > other, one, other)

    invert = staticmethod(lambda flag: ~flag)
    possible = staticmethod(lambda flag: True)
    number = staticmethod(lambda value: value)

    def step(self, slope: Slope, t: Array, h: Array, x: Array, memory: Any) -> Step:
        return self.method.plain_step(slope, t, h, x, memory)

    def begin(self) -> Any:
        t = self.arguments.times[0]
        return (t, self.xp.zeros_like(t)) if self.double else (t,)

    def time(self, t: Any) -> Array:
        return t[0] + t[1] if self.double else t[0]

    def left(self, end: Array, t: Any) -> Array:
        return (end - t[0]) - t[1] if self.double else end - t[0]

    def move(self, t: Any, h: Array, end: Array, clipped: Array) -> Any:
        if not self.double:
            return (self.xp.where(clipped, end, t[0] + h),)
        high, low = t  # the sum of two numbers and its rounding error (Knuth)
        total = high + h
        part = total - high
        low = low + ((high - (total - part)) + (h - part))
        new = total + low
        low = low - (new - total)
        return self.xp.where(clipped, end, new), self.xp.where(clipped, self.xp.zeros_like(low), low)

    def worst(self, norm: Array, status: Array) -> Array:
        return self.xp.max(self.xp.where(status == SUCCESS, norm, 0.0))

    def pick(self, accept: Array, new: Any, old: Any) -> Any:
        return tree_map(lambda a, b: self.xp.where(accept, a, b), new, old)

    def segment(self, t: Any) -> tuple[Array, Array]:
        xp, jumps = self.xp, self.arguments.jumps
        now, begin = self.time(t), self.arguments.times[0]
        passed = (jumps <= now) & (jumps >= begin)
        ahead = (jumps > now) & (jumps <= self.span)
        low = xp.max(xp.where(passed, jumps, begin))
        high = xp.min(xp.where(ahead, jumps, self.span))
        nudge = 4.0 * self.eps * (xp.abs(self.arguments.origin) + self.span)
        inside = self.lower(nudge, 0.5 * (high - low))
        return (
            xp.where(xp.any(passed), low + inside, low),
            xp.where(xp.any(ahead), high - inside, high),
        )

    def restart(self, landed: Array, slope: Slope, t: Any, x: Array, memory: Any) -> Any:
        new = self.method.init(slope.at(segment=self.segment(t)), self.time(t), x)
        return None if new is None else self.pick(landed, new, memory)

    def keep(self, accept: Any, t: Any, h: Any, dense: Any) -> None:
        """Nothing: while tracing no list of steps can be made."""

    def fraction(self, c: _Carry, goal: Array) -> Array:
        return self.left(goal, c.t_old) / c.h_old

    def run(self) -> Found:
        xp, settings, arguments, backend = self.xp, self.settings, self.arguments, self.backend
        times, values, x = arguments.times, arguments.values, arguments.start
        every = Slope(xp, settings, arguments, segment=(times[0], self.span))
        xs: Tree = (times[:-1], times[1:], arguments.limits)
        if settings.sampled:
            xs = (*xs, values[:-1, ...], values[1:, ...])

        def slope_of(inputs: Tree) -> Slope:
            return every.at(samples=(inputs[0], inputs[1], inputs[3], inputs[4])) if settings.sampled else every

        begin = self.begin()
        slope = slope_of(tree_map(lambda leaf: leaf[0, ...], xs))
        if self.jumps:
            slope = slope.at(segment=self.segment(begin))
        h = self.first_step(slope, x, self.span - times[0])
        if arguments.step is not None:
            given = backend.stop_gradient(arguments.step)
            h = xp.where(xp.isfinite(given) & (given > 0), given, h)
        memory = self.method.init(slope, times[0], x)
        shape = self.method.step(slope, times[0], h, x, memory).dense  # for its shapes only
        counts = {"dtype": xp.int32, "device": device(times)}
        zero, one = xp.zeros((), **counts), xp.ones_like(times[0])
        carry = _Carry(
            begin, backend.stop_gradient(h), x, memory, begin, one, tree_map(xp.zeros_like, shape),
            xp.zeros(x.shape[:-1], **counts), zero, zero, xp.full_like(times[0], xp.nan),
            xp.ones((), dtype=xp.bool, device=device(times)),
        )  # fmt: skip

        def interval(c: _Carry, inputs: Tree) -> tuple[_Carry, Array]:
            c = _Carry(*c)
            goal, limit = inputs[1], inputs[2]
            slope, before = slope_of(inputs), c.steps + c.rejected

            def going(c: _Carry) -> Array:
                c = _Carry(*c)
                going = (self.left(goal, c.t) > 0) & xp.any(c.status == SUCCESS)
                going = going & (c.steps + c.rejected - before < settings.max_steps)
                return going & xp.isnan(c.settled) if settings.steady else going

            def body(c: _Carry) -> _Carry:
                c = _Carry(*c)
                end = goal if self.exact else self.span
                if self.jumps:
                    ahead = (arguments.jumps > self.time(c.t)) & (arguments.jumps < end)
                    end = xp.min(xp.where(ahead, arguments.jumps, end))
                return self.attempt(c, slope, end, limit)

            c = _Carry(*backend.while_loop(going, body, c, max_steps=settings.max_steps, differentiable=True))
            short = self.left(goal, c.t) > 0
            settled = short & ~xp.isnan(c.settled)
            late = short & xp.isnan(c.settled)
            c = c._replace(status=xp.where(late, self.late(c.status, x.shape[:-1], TOO_MANY_STEPS), c.status))
            here = self.output(c, goal)
            if settings.steady:
                here = xp.where(settled, c.x, here)
            return c, xp.where((c.status == SUCCESS)[..., None], here, xp.nan)

        carry, states = backend.scan(interval, carry, xs)
        c = _Carry(*carry)
        stiff = (c.status == TOO_MANY_STEPS) & self.is_stiff(c)
        status = xp.where(stiff, xp.asarray(STIFF, dtype=c.status.dtype), c.status)
        return Found(states, status, c.steps, c.rejected, c.h, c.settled)
