"""Simulation of any model: step-size control, one loop for every method and library, trajectories.

A state is a (named) tuple of arrays (..., n); leading axes are batch axes. The
loops see it packed into one array (..., N). Time is counted from the start of
the run, so that the answer does not depend on where the clock starts. Every
member of a batch keeps its own error norm; members whose time constants are
alike take the same steps, of which the worst decides, and one that diverges is
set aside while the others go on.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
from array_api_compat import device

from . import checks, model
from .backend import Array, Backend, Tree, get_backend, kernel_for, to_numpy, tree_leaves, tree_map
from .circuit import Circuit, of_variant
from .drive import Drive, is_concrete, read_drive
from .linalg import broadcast_shapes
from .methods import METHODS, Method, Step, Tableau, get_method
from .model import Layout
from .noise import Noise, NoiseTerm, filter_rates, is_function, noise_arrays, noise_at, noise_term, read_colour
from .progress import Progress, progress_of
from .weights import Operator, is_operator, matvec

SUCCESS, STEP_TOO_SMALL, TOO_MANY_STEPS, NOT_FINITE, STIFF = 0, 1, 2, 3, 4
MESSAGES = {
    SUCCESS: "reached the last time",
    STEP_TOO_SMALL: "stopped: the step size fell to the resolution of the clock; the solution is singular or diverges",
    TOO_MANY_STEPS: "stopped: max_steps reached before the last time; raise max_steps or loosen rtol and atol",
    NOT_FINITE: "stopped: the state is no longer finite; the solution diverges, or the step is too long",
    STIFF: "stopped: max_steps would be reached before the last time, and stability, not accuracy, limits the steps: "
    "the problem is stiff; choose method='rodas5p'",
}

_STIFF_ABOVE = 0.75
"""Steps whose h |lambda| comes so close to the bound of the method are limited by stability, not by accuracy."""
_STILL = 10.0
"""Steps at the bound of stability leave the state in motion by about the tolerance in a time constant."""
_MANY = 8192
"""Below so many numbers a step costs the same for a part of them: members of a batch go together."""
_CHUNK = 2**22
"""At most about this many random numbers are held at once."""


class DenseOutput(NamedTuple):
    """The solution between the accepted steps; call it with times.

    Attributes
    ----------
    starts, steps : arrays (S,)
        Start (from the start of the run) and length of every accepted step, in seconds.
    dense : tree of arrays (S, ...)
        What the method's interpolation needs.
    origin : float
        Time of the start of the run.
    method : Method
    layout : Layout
        Sizes of the parts of the state, and their kind.
    """

    starts: Array
    steps: Array
    dense: Any
    origin: float
    method: Method
    layout: Layout

    def __call__(self, times: Array) -> Tree:
        """State at ``times`` (T,), each part (T, ..., n); ValueError outside the interval covered."""
        xp = checks.namespace({"times": times, "starts": self.starts})
        if times.ndim != 1:
            raise ValueError(f"times must have shape (T,), got shape {tuple(times.shape)}")
        end = float(self.starts[-1] + self.steps[-1])
        slack = 1e-9 * end + 4.0 * float(xp.finfo(times.dtype).eps) * abs(self.origin)
        local = times - self.origin
        low, high = float(xp.min(local)), float(xp.max(local))
        if not (-slack <= low and high <= end + slack):
            raise ValueError(
                f"times must lie in [{self.origin:g}, {self.origin + end:g}], "
                f"got [{float(xp.min(times)):g}, {float(xp.max(times)):g}]"
            )
        index = xp.searchsorted(self.starts, local, side="right") - 1
        index = xp.where(index < 0, 0, index)
        h = xp.take(self.steps, index, axis=0)
        theta = (local - xp.take(self.starts, index, axis=0)) / h
        chosen = tree_map(lambda leaf: xp.take(leaf, index, axis=0), self.dense)
        column = (..., *(None,) * (tree_leaves(self.dense)[0].ndim - 1))
        return self.layout.unpack(self.method.interpolate(chosen, theta[column], h[column]))


class Event(NamedTuple):
    """Where a function of the state crossed zero.

    Attributes
    ----------
    times : array (K,)
        In seconds, rising.
    members : integer array (K, B)
        Index of the member of the batch (B batch axes).
    state : tuple of arrays (K, n)
    """

    times: Array
    members: Array
    state: Tree


class Trajectory(NamedTuple):
    """A simulated trajectory.

    Attributes
    ----------
    times : array (T,)
        In seconds.
    state : State (or the tuple that was integrated) of arrays (T, ..., n)
        The state at every time, the start included. NaN from where a member of
        the batch stopped.
    status : integer array (...)
        0 where the last time was reached; otherwise see ``message``.
    steps, rejected : integer arrays ()
        Steps accepted and rejected.
    interpolant : DenseOutput or None
        Callable with any times, where ``dense=True`` was asked for.
    step : array () or None
        Length that the next step would have had, in seconds; with the last state
        it continues the run.
    settled : array () or None
        With ``until="steady"``, the time from which on the state is repeated; NaN
        where it never settled.
    events : tuple of Event
        One per function asked for.
    """

    times: Array
    state: Tree
    status: Array
    steps: Array
    rejected: Array
    interpolant: DenseOutput | None = None
    step: Array | None = None
    settled: Array | None = None
    events: tuple[Event, ...] = ()

    @property
    def success(self) -> bool:
        """Whether every member of the batch reached the last time."""
        return not to_numpy(self.status).any()

    @property
    def message(self) -> str:
        """What happened, in one sentence per kind of ending."""
        codes = to_numpy(self.status).reshape(-1)
        kinds = [(code, int((codes == code).sum())) for code in MESSAGES]
        if max(count for _, count in kinds) == codes.size:
            sentence = MESSAGES[int(codes[0])]
        else:
            sentence = "; ".join(f"{count} of {codes.size} {MESSAGES[code]}" for code, count in kinds if count)
        if self.settled is not None and not math.isnan(float(self.settled)):
            settled = f"settled at {float(self.settled):.6g} s; later states repeat that one"
            return settled if self.success else f"{settled}; {sentence}"
        return sentence

    @property
    def reached(self) -> int:
        """How many of the times every member of the batch reached."""
        finite: Any = None
        for leaf in tree_leaves(self.state):
            values = to_numpy(leaf)
            ok = (values == values).reshape(values.shape[0], -1).all(axis=1)
            finite = ok if finite is None else finite & ok
        return int(finite.sum())

    def then(self, later: Trajectory) -> Trajectory:
        """This run and one that continues it (``state0=`` this run) as one.

        Parameters
        ----------
        later : Trajectory
            Whose first time is the last of this one.

        Returns
        -------
        Trajectory
            Without interpolant.

        Raises
        ------
        ValueError
            Where ``later`` does not begin where this one ends.
        """
        if not isinstance(later, Trajectory):
            raise TypeError(f"later must be a Trajectory, got {checks.describe(later)}")
        xp = checks.namespace({"times": self.times, "later.times": later.times})
        shapes = [[tuple(part.shape[1:]) for part in run.state] for run in (self, later)]
        if shapes[0] != shapes[1] or len(self.events) != len(later.events):
            raise ValueError(
                f"later must have states of shapes {shapes[0]} and {len(self.events)} kinds of events, "
                f"got {shapes[1]} and {len(later.events)}"
            )
        seen = is_concrete(self.times) and is_concrete(later.times)
        if seen and float(self.times[-1]) != float(later.times[0]):
            raise ValueError(
                f"later must begin at the last time of this run, {float(self.times[-1]):g}, "
                f"got {float(later.times[0]):g}"
            )
        state = tree_map(lambda one, two: xp.concat([one, two[1:, ...]], axis=0), self.state, later.state)
        return later._replace(
            times=xp.concat([self.times, later.times[1:]]),
            state=state,
            status=xp.where(self.status == SUCCESS, later.status, self.status),
            steps=self.steps + later.steps,
            rejected=self.rejected + later.rejected,
            interpolant=None,
            events=tuple(_joined(xp, one, two) for one, two in zip(self.events, later.events, strict=True)),
        )

    def save(self, path: Any) -> None:
        """Write the run to ``path``, .npz or (with zarr installed) .zarr; :func:`load_trajectory` reads it.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        ValueError
            For another ending.
        """
        from .io.trajectories import save_trajectory

        save_trajectory(path, self)


class _Settings(NamedTuple):
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


class _Arguments(NamedTuple):
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


def simulate(
    circuit: Any,
    z: Array | Callable[[Array], Array],
    times: Array,
    *,
    state0: Any = None,
    method: str | Tableau | Method = "dopri5",
    rtol: float = 1e-6,
    atol: float = 1e-9,
    max_step: float | None = None,
    variant: str = "main",
    drive: str = "auto",
    jumps: Iterable[float] | None = None,
    substeps: int = 1,
    max_steps: int = 100_000,
    dense: bool = False,
    until: str | None = None,
    events: Sequence[Callable[[Array, Any], Array]] = (),
    progress: Progress = None,
) -> Trajectory:
    """Simulate a circuit, or any other model.

    Parameters
    ----------
    circuit : Circuit or Model
    z : array (..., n), array (T, ..., n) or callable
        Input drive: constant; sampled at ``times`` and linear in between; or a
        function of the time (a 0-d array) that returns an array (..., n), such
        as a :func:`pulse_train`.
    times : array (T,)
        Output times in seconds, increasing; the first is the start. Functions
        of time are asked for times between the first and the last only.
    state0 : State or Trajectory, optional
        State at ``times[0]``; at rest (y = 0, a = (b0 sigma)**2) by default. A
        Trajectory that ends at ``times[0]`` is continued.
    method : str, Tableau or Method
        A name of :data:`METHODS`: ``"dopri5"`` and, for stiff circuits,
        ``"rodas5p"`` choose their own steps by ``rtol`` and ``atol``;
        ``"euler"``, ``"exponential_euler"``, ``"heun"`` and ``"rk4"`` take
        ``substeps`` equal steps between successive output times.
    rtol, atol : float
        Tolerances of the adaptive methods.
    max_step : float, optional
        Longest step of the adaptive methods, in seconds. By default steps under
        a function of time, and of a model whose field may depend on the time
        (one without ``autonomous = True``), do not exceed the distance of the
        output times around them, and others are not bounded; ``math.inf`` lifts
        the bound.
    variant : {"main", "rectified", "rectified_recurrence"}
        Of a Circuit.
    drive : {"auto", "constant", "sampled"}
        How to read an array ``z``. ``"auto"`` reads it as sampled where it has
        at least two axes, the first of length T, and warns that a batch of T
        constant drives looks the same.
    jumps : iterable of float, optional
        Times where a function of time breaks: steps of the adaptive methods end
        there, and the function is asked on the side of the step only.
    substeps : int
        Steps per output interval of the fixed-step methods.
    max_steps : int
        Bound on the adaptive methods' steps in one output interval.
    dense : bool
        Also return an interpolant for any time between (adaptive methods, not
        while tracing).
    until : {None, "steady"}
        ``"steady"`` stops when the state moves by less than ten tolerances in the
        longest time constant (of a model without time constants: in the time
        since the start), and repeats it for the later times; needs a constant
        drive and an adaptive method. A slow departure from an unstable fixed
        point looks the same.
    events : sequence of callables
        Each ``event(t, state) -> array (...)``; where its sign changes within a
        step is found on the interpolant. Two changes within one step are not
        seen: bound the steps by ``max_step``.
    progress : bool or callable, optional
        True shows a bar on the terminal; a callable gets the fraction done, from
        output time to output time; with ``dense``, ``events`` or ``until`` the
        end alone.

    Returns
    -------
    Trajectory
        With one state per time. A singular or diverging circuit is no error:
        its ``status`` and ``message`` say so, and its states are NaN from there.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Warns
    -----
    AmbiguousDriveWarning
        Where an array ``z`` fits both readings and ``drive`` does not say which.

    Notes
    -----
    A function of time is seen at the stages of the steps only. A feature longer
    than the distance of the output times (or ``max_step``) meets a stage of some
    step and is then resolved by the step-size control; a shorter one may be
    stepped over unless ``jumps`` names its edges.

    Where loops are compiled (jax) a function of time is read when it is first
    used, and what it refers to counts as constant: for other values pass another
    function.

    Differentiable in the circuit, the drive and the start state wherever the
    library is; step sizes count as constants.

    Examples
    --------
    >>> import numpy as np
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> run = simulate(circuit, np.array([1.0, 0.0]), np.linspace(0, 0.1, 3))
    >>> run.state.a[-1].round(4), run.message
    (array([2., 2.]), 'reached the last time')
    """
    posed = pose(circuit, z, times, state0, variant, drive, jumps)
    return _integrate(
        posed, method, rtol, atol, max_step, substeps, max_steps, dense, until=until, events=events, progress=progress
    )


def simulate_sde(
    circuit: Any,
    z: Array | Callable[[Array], Array],
    times: Array,
    *,
    noise: Noise,
    seed: int = 0,
    method: str | Method = "euler_maruyama",
    substeps: int = 1,
    state0: Any = None,
    variant: str = "main",
    drive: str = "auto",
    increments: Array | None = None,
    progress: Progress = None,
) -> Trajectory:
    """Simulate a circuit, or any other model, under noise.

    Parameters
    ----------
    circuit : Circuit or Model
    z : array (..., n), array (T, ..., n) or callable
        Input drive, as in :func:`simulate`.
    times : array (T,)
        Output times in seconds, increasing; the first is the start.
    noise : number, array (..., N), array (..., N, m), tuple, description or callable
        L in dx = f(x) dt + L dB, for the N components of the state, y before a,
        in units of the state per square root of a second; as in
        :func:`noise_covariance`. Where L depends on the state, it is taken at the
        start of each step: the equation is one of Ito. A :class:`ColouredNoise`
        starts from its stationary distribution.
    seed : int
        Of the library's own generator: the same seed, library and shapes give
        the same noise.
    method : {"euler_maruyama", "stochastic_heun"}
        With additive noise both converge strongly with order 1; weakly
        Euler-Maruyama has order 1 and stochastic Heun order 2. Where L depends on
        the state both have the strong order 1/2 and the weak order 1.
    substeps : int
        Equal steps between successive output times.
    state0 : State or Trajectory, optional
        At ``times[0]``; at rest by default.
    variant : {"main", "rectified", "rectified_recurrence"}
        Of a Circuit.
    drive : {"auto", "constant", "sampled"}
        How to read an array ``z``, as in :func:`simulate`.
    increments : array ((T-1)*substeps, ..., m), optional
        Wiener increments dB of your own, one per step, with the length of the
        step as their variance, in place of ``seed``: the same noise for several
        circuits or libraries. See :func:`wiener_increments`.
    progress : bool or callable, optional
        As in :func:`simulate`.

    Returns
    -------
    Trajectory
        A member of the batch that stops being finite says so in its status.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> times = np.linspace(0, 0.01, 101)
    >>> run = simulate_sde(circuit, np.array([1.0, 0.0]), times, noise=0.1, seed=1)
    >>> run.success, run.state.y.shape
    (True, (101, 2))
    """
    more = {**noise_arrays(noise), "increments": increments}
    posed = pose(circuit, z, times, state0, variant, drive, None, **more)
    return _integrate_sde(posed, noise, increments, seed, method, substeps, progress)


def integrate(
    field: Callable[[Array, Tree], Tree],
    state0: Tree,
    times: Array,
    *,
    method: str | Tableau | Method = "dopri5",
    rtol: float = 1e-6,
    atol: float = 1e-9,
    max_step: float | None = None,
    tau: Tree = None,
    substeps: int = 1,
    max_steps: int = 100_000,
    dense: bool = False,
    events: Sequence[Callable[[Array, Any], Array]] = (),
    progress: Progress = None,
) -> Trajectory:
    """Integrate x' = field(t, x) for a vector field of your own.

    Parameters
    ----------
    field : callable
        ``field(t, state) -> state``, of (named) tuples of arrays (..., n).
    state0 : tuple of arrays (..., n)
        State at ``times[0]``.
    times : array (T,)
        In seconds, increasing.
    tau : tuple of arrays, optional
        Time constants of the linear decay, for ``"exponential_euler"`` only.
    method, rtol, atol, max_step, substeps, max_steps, dense, events, progress
        As in :func:`simulate`; without ``max_step`` steps are not bounded.

    Returns
    -------
    Trajectory

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    posed = _pose_field(field, state0, times, tau)
    return _integrate(posed, method, rtol, atol, max_step, substeps, max_steps, dense, events=events, progress=progress)


def integrate_sde(
    field: Callable[[Array, Tree], Tree],
    state0: Tree,
    times: Array,
    *,
    noise: Noise,
    seed: int = 0,
    method: str | Method = "euler_maruyama",
    substeps: int = 1,
    increments: Array | None = None,
) -> Trajectory:
    """Integrate dx = field(t, x) dt + L dB for a vector field of your own.

    Parameters
    ----------
    field : callable
        ``field(t, state) -> state``, of (named) tuples of arrays (..., n).
    state0 : tuple of arrays (..., n)
        State at ``times[0]``.
    times : array (T,)
        In seconds, increasing.
    noise : number, array (..., N), array (..., N, m), tuple, description or callable
        L, for the N components of all arrays of the state one after another; or
        one amplitude (number or array) per array of the state; or as in
        :func:`simulate_sde`.
    seed, method, substeps, increments
        As in :func:`simulate_sde`.

    Returns
    -------
    Trajectory

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    posed = _pose_field(field, state0, times, None, **noise_arrays(noise), increments=increments)
    return _integrate_sde(posed, noise, increments, seed, method, substeps, None)


# Reading the arguments.


class Posed(NamedTuple):
    """A problem whose arguments have been checked and prepared."""

    xp: Any
    model: Any  # None for a user's own field
    field: Callable[..., Tree] | None
    drive: Drive | None
    values: Array
    start: Tree
    times: Array
    tau: Tree
    step: Array


def pose(
    circuit: Any,
    z: Any,
    times: Array,
    state0: Any,
    variant: str,
    drive: str,
    jumps: Iterable[float] | None,
    **more: Array,
) -> Posed:
    made = of_variant(circuit, variant)
    model.check_model(made, "circuit")
    state0, step = _continued(state0, times)
    others = {} if state0 is None else model.state_fields(made, state0, "state0")
    named = {"z": z} if hasattr(z, "dtype") else {}
    xp = model.validate(made, name="circuit", values=True, **others)
    if xp is None or not any(hasattr(value, "dtype") for value in (*made, *others.values())):
        xp = checks.namespace({"times": times, **named})
    first = next((value for value in (*others.values(), *made) if hasattr(value, "dtype")), times)
    if not is_operator(first):
        checks.namespace({"circuit": first, "times": times, **more}, optional=("increments",))
    times = check_times(xp, times)
    given = read_drive(xp, z, times, drive, jumps, timed=not getattr(made, "autonomous", False))
    model.validate(made, name="circuit", **given.named, **others)
    for name, value in {**others, **more}.items():
        checks.values(xp, name, value, "any")
    made, sample, times, *start = model.prepare(xp, made, given.sample, times, *others.values())
    model.check_products(xp, made, sample)
    wide = model.full(xp, made, sample)
    parts = start or list(model.rest(xp, made, wide))
    shape = broadcast_shapes(tuple(wide.shape), *(tuple(part.shape) for part in parts))
    initial = made.state._make([xp.broadcast_to(part, shape) for part in parts])
    model.check_field(xp, made, initial, wide)
    given = given._replace(constant=None if given.constant is None else sample, sample=sample)
    values = None if given.sampled is None else xp.astype(given.sampled, times.dtype, copy=False)
    decay = getattr(made, "decay", None)
    return Posed(xp, made, None, given, values, initial, times, None if decay is None else decay(), step)


def _pose_field(field: Callable[..., Tree], state0: Tree, times: Array, tau: Tree, **more: Array) -> Posed:
    if not callable(field):
        raise TypeError(f"field must be a function of time and state, got {checks.describe(field)}")
    state0, step = _continued(state0, times)
    if not isinstance(state0, tuple) or not state0 or any(isinstance(part, tuple) for part in state0):
        raise TypeError(f"state0 must be a (named) tuple of arrays, got {checks.describe(state0)}")
    leaves = {f"state0[{i}]": leaf for i, leaf in enumerate(state0)}
    xp = checks.namespace({"times": times, **leaves, **more}, optional=("increments",))
    times = check_times(xp, times)
    for name, leaf in leaves.items():
        if leaf.ndim == 0:
            raise ValueError(f"{name} must have shape (..., n), got shape ()")
    for name, value in {**leaves, **more}.items():
        checks.values(xp, name, value, "any")
    dtype = xp.result_type(*leaves.values())
    batch = broadcast_shapes(*(tuple(leaf.shape[:-1]) for leaf in state0))
    parts = [xp.broadcast_to(xp.astype(leaf, dtype, copy=False), (*batch, leaf.shape[-1])) for leaf in state0]
    start = type(state0)._make(parts) if hasattr(state0, "_make") else tuple(parts)
    return Posed(xp, None, field, None, None, start, xp.astype(times, dtype, copy=False), tau, step)


def _continued(state0: Any, times: Array) -> tuple[Any, Array]:
    """The start state and the first step: of a state, or of a run to be continued."""
    if not isinstance(state0, Trajectory):
        return state0, None
    if is_concrete(times) and is_concrete(state0.times) and float(state0.times[-1]) != float(times[0]):
        raise ValueError(
            f"times must begin where the run state0 ends, at {float(state0.times[-1]):g}, got {float(times[0]):g}"
        )
    return tree_map(lambda leaf: leaf[-1, ...], state0.state), state0.step


def check_times(xp: Any, times: Array) -> Array:
    if times.ndim != 1 or times.shape[0] < 2:
        raise ValueError(f"times must have shape (T,) with T >= 2, got shape {tuple(times.shape)}")
    checks.values(xp, "times", times, "any")
    if is_concrete(times) and not bool(xp.all(times[1:] > times[:-1])):
        clock = [float(t) for t in times]
        first, second = next((t, u) for t, u in itertools.pairwise(clock) if not u > t)
        raise ValueError(f"times must be strictly increasing, got {second:g} after {first:g}")
    return times


# Runs.


def _integrate(
    posed: Posed,
    method: str | Tableau | Method,
    rtol: float,
    atol: float,
    max_step: float | None,
    substeps: int,
    max_steps: int,
    dense: bool,
    *,
    until: str | None = None,
    events: Sequence[Callable[..., Array]] = (),
    progress: Progress = None,
) -> Trajectory:
    xp, start, times = posed.xp, posed.start, posed.times
    chosen = get_method(method)
    if chosen.stochastic:
        raise ValueError(f"method {chosen.name!r} is for noise; call simulate_sde or integrate_sde with it")
    rtol, atol = checks.positive_number("rtol", rtol), checks.positive_number("atol", atol)
    substeps = checks.positive_integer("substeps", substeps)
    max_steps = checks.positive_integer("max_steps", max_steps)
    if max_step is not None and max_step != math.inf:
        max_step = checks.positive_number("max_step", max_step)
    if chosen.decays and posed.tau is None:
        raise ValueError(f"method {chosen.name!r} needs tau, the time constants of the linear decay")
    wanted = bool(dense) or bool(events)
    if wanted and not (chosen.adaptive and chosen.interpolates):
        raise ValueError(
            f"{'dense=True' if dense else 'events'} needs an adaptive method with interpolation, such as 'dopri5', "
            f"not {chosen.name!r}"
        )
    if until is not None:
        checks.one_of("until", until, ("steady",))
        if not chosen.adaptive or posed.drive is None or posed.drive.constant is None or _hangs_on_time(posed):
            raise ValueError(
                "until='steady' needs a constant drive, an adaptive method such as 'dopri5', and a model whose field "
                "does not hang on the time (which says so by autonomous = True)"
            )
    if callable(events):
        raise TypeError("events must be a sequence of functions of time and state, got one function; put it in a list")
    for k, event in enumerate(events):
        if not callable(event):
            raise TypeError(f"events[{k}] must be a function of time and state, got {checks.describe(event)}")
    backend = get_backend(xp)
    concrete = all(backend.is_concrete(leaf) for leaf in _leaves((posed.model, posed.drive, start, times)))
    if not concrete and (wanted or progress):
        what = "dense=True" if dense else "events" if events else "progress"
        raise ValueError(f"{what} cannot be traced: the number of steps is not known; ask for output times instead")
    if not concrete and chosen.adaptive and not backend.traces_loops:
        raise ValueError(
            f"method {chosen.name!r} chooses its steps from the data, which {backend.name} cannot trace; "
            "use a fixed-step method such as 'rk4', or give the batch as leading axes"
        )
    if any(0 in part.shape for part in start):
        raise ValueError(f"the batch must not be empty, got states of shape {tuple(start[0].shape)}")
    settings, arguments = _problem(posed, chosen, rtol, atol, substeps, max_steps, max_step, until == "steady")
    pieces: list[Any] | None = [] if wanted else None
    found = _run_pieces(backend, settings, arguments, concrete, pieces, progress_of(progress, "simulate"))
    layout = settings.layout
    interpolant = None
    if pieces:
        starts, lengths, parts = zip(*pieces, strict=True)
        clock = {"dtype": times.dtype, "device": device(times)}
        stacked = tree_map(lambda *leaves: xp.stack(list(leaves)), *parts)
        begin, long = xp.asarray(list(starts), **clock), xp.asarray(list(lengths), **clock)
        interpolant = DenseOutput(begin, long, stacked, float(times[0]), chosen, layout)
    made = Trajectory(
        times,
        layout.unpack(found.states),
        found.status,
        found.steps,
        found.rejected,
        interpolant,
        found.step,
        found.settled + times[0] if settings.steady else None,
    )
    if events and interpolant is not None:
        made = made._replace(events=tuple(_find_event(xp, interpolant, event) for event in events))
    return made if dense else made._replace(interpolant=None)


def _hangs_on_time(posed: Posed) -> bool:
    """Whether the field of the model may depend on the time itself."""
    return posed.model is not None and not getattr(posed.model, "autonomous", False)


def _leaves(tree: Any) -> list[Array]:
    """The arrays of nested tuples; functions, numbers and names are none."""
    return [leaf for leaf in tree_leaves(tree) if hasattr(leaf, "dtype")]


def _problem(
    posed: Posed,
    method: Method,
    rtol: float,
    atol: float,
    substeps: int,
    max_steps: int,
    max_step: float | None,
    steady: bool,
) -> tuple[_Settings, _Arguments]:
    xp, times, given = posed.xp, posed.times, posed.drive
    layout = Layout.of(posed.start)
    local = times - times[0]
    function = None if given is None else given.function
    limits = jumps = None
    if method.adaptive:
        spacing = local[1:] - local[:-1]
        if max_step is not None and max_step != math.inf:
            limits = xp.full_like(spacing, max_step)
        elif max_step is None and posed.field is None and (function is not None or _hangs_on_time(posed)):
            later = xp.concat([spacing[1:], spacing[-1:]])
            limits = xp.where(later < spacing, later, spacing)
        if given is not None and given.jumps:
            jumps = xp.asarray(given.jumps, dtype=times.dtype, device=device(times)) - times[0]
    settings = _Settings(
        posed.field, function, layout, method, posed.values is not None, substeps, rtol, atol, max_steps, steady
    )
    tau = None
    if posed.tau is not None and posed.model is None:
        tau = layout.pack(xp, [t + xp.zeros_like(part) for t, part in zip(posed.tau, posed.start, strict=True)])
    arguments = _Arguments(
        posed.model if posed.model is not None else tau,
        None if given is None else given.constant,
        posed.values,
        layout.pack(xp, posed.start),
        times[0],
        times[-1],
        local,
        limits,
        jumps,
        posed.step,
        None,
        None,
    )
    return settings, arguments


class _Found(NamedTuple):
    """What a run returns: packed states (T, ..., N), and its report."""

    states: Array
    status: Array
    steps: Array
    rejected: Array
    step: Array
    settled: Array


_PIECES = 50
"""Into so many parts a run is cut whose progress is shown."""


def _run_pieces(
    backend: Backend,
    settings: _Settings,
    arguments: _Arguments,
    concrete: bool,
    pieces: list[Any] | None,
    show: AbstractContextManager[Callable[[float], None]] | None,
) -> _Found:
    """The whole run; where its progress is to be shown, in parts that continue each other."""

    def part(some: _Arguments) -> _Found:
        if settings.method.adaptive and (pieces is not None or not backend.traces_loops):
            groups = None if pieces is not None else _groups(settings, some)
            with cast(Any, getattr(backend, "quiet", nullcontext))():
                return _run(settings, some, pieces) if groups is None else _run_groups(settings, some, groups)
        run: Callable[..., Any] = _compiled(cast(Hashable, backend)) if concrete and _hashable(settings) else _run
        return _Found(*run(settings, some))

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
    found: _Found | None = None
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
                made = _Found(
                    xp.concat([found.states, made.states[1:, ...]], axis=0),
                    xp.where(found.status == SUCCESS, made.status, found.status),
                    found.steps + made.steps,
                    found.rejected + made.rejected,
                    made.step,
                    made.settled,
                )
            found = made
            tell(last / count)
    return cast(_Found, found)


def _groups(settings: _Settings, arguments: _Arguments) -> list[list[int]] | None:
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


def _run_groups(settings: _Settings, arguments: _Arguments, groups: list[list[int]]) -> _Found:
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
        found.append(_run(settings, some))
    order = np.argsort([member for members in groups for member in members], kind="stable").tolist()
    back = xp.asarray(order, dtype=xp.int64, device=device(arguments.start))
    return _Found(
        xp.take(xp.concat([one.states for one in found], axis=1), back, axis=1),
        xp.take(xp.concat([one.status for one in found]), back, axis=0),
        xp.max(xp.stack([one.steps for one in found])),
        xp.max(xp.stack([one.rejected for one in found])),
        xp.min(xp.stack([one.step for one in found])),
        found[0].settled,
    )


def _hashable(settings: _Settings) -> bool:
    try:
        hash(settings)
    except TypeError:
        return False
    return True


@cache
def _compiled(backend: Any) -> Callable[..., Any]:
    """The whole run, compiled once per backend, settings and shapes, where the library compiles loops."""
    return backend.compile(_run, static=(0,), loops=True)


def _run(settings: _Settings, arguments: _Arguments, pieces: list[Any] | None = None) -> _Found:
    arguments = _Arguments(*arguments)
    xp = checks.namespace({"times": arguments.times})
    backend = get_backend(xp)
    if not settings.method.adaptive:
        states, steps = _fixed_steps(backend, xp, settings, arguments)
        counts = {"dtype": xp.int32, "device": device(arguments.times)}
        nothing = xp.full((), xp.nan, dtype=arguments.times.dtype, device=device(arguments.times))
        found = _Found(
            states,
            xp.zeros(arguments.start.shape[:-1], **counts),
            xp.full((), steps, **counts),
            xp.zeros((), **counts),
            nothing,
            nothing,
        )
    else:
        loop: Any = _TracedLoop if backend.traces_loops and pieces is None else _HostLoop
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


class _Slope:
    """x' on packed states at times counted from the start of the run: what a method sees of the problem."""

    def __init__(
        self,
        xp: Any,
        settings: _Settings,
        arguments: _Arguments,
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

    def at(self, *, samples: tuple[Any, ...] | None = None, segment: tuple[Any, Any] | None = None) -> _Slope:
        """The same in another interval between samples, or on another side of a jump."""
        return _Slope(
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
        clock = self._arguments.origin + (t if self._segment is None else self._clip(t))
        clock = self.xp.where(clock < self._arguments.last, clock, self._arguments.last)
        return xp.astype(self._settings.function(self._time(clock)), self._arguments.start.dtype, copy=False)

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
            clock = t if getattr(self._model, "autonomous", False) else self._time(self._arguments.origin + t)
            return self._model.field(self.xp, clock, x, z)
        slope = cast(Any, self._settings.field)(self._time(self._arguments.origin + t), x)
        shapes = [tuple(part.shape) for part in slope] if isinstance(slope, tuple) else None
        if shapes != [tuple(part.shape) for part in x]:
            raise ValueError(
                f"field must return a tuple of arrays shaped like state0, {[tuple(part.shape) for part in x]}, "
                f"got {shapes if shapes is not None else checks.describe(slope)}"
            )
        return slope

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
            time = self._time(self._arguments.origin + t)
            return model.field_jacobian(self.xp, self._model, time, layout.unpack(x), z)
        return model.packed_jacobian(self.xp, lambda at: layout.pack(self.xp, self._state(t, layout.unpack(at), z)), x)


def _fixed_steps(backend: Backend, xp: Any, settings: _Settings, arguments: _Arguments) -> tuple[Array, int]:
    method, substeps, times, values = settings.method, settings.substeps, arguments.times, arguments.values
    kernel = None if backend.traces_loops else _kernel(xp, settings, arguments)
    every = _Slope(xp, settings, arguments, fast=kernel)
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
    xp: Any, settings: _Settings, arguments: _Arguments, columns: bool = False
) -> Callable[[Any, Array], Array] | None:
    """The fast vector field of the model under a constant drive, where one is registered and applies.

    With ``columns`` for states (N, B), neurons before the members of the batch.
    """
    if arguments.z is None or settings.field is not None:
        return None
    make = kernel_for(type(arguments.model), xp)
    return None if make is None else make(arguments.model, arguments.z, arguments.start, columns)


def _noise(xp: Any, settings: _Settings, arguments: _Arguments, x: Array) -> NoiseTerm:
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


class _Loop:
    """Adaptive steps from output time to output time, for every library.

    What a step does stands here once. The two kinds of loops differ in what
    their clock, step lengths and decisions are: Python numbers on the host, arrays
    where the library traces.
    """

    def __init__(
        self, backend: Backend, xp: Any, settings: _Settings, arguments: _Arguments, pieces: list[Any] | None
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
        norm = xp.sqrt(xp.vecdot(scaled, scaled, axis=self.axis) / scaled.shape[self.axis])
        return xp.where(xp.isfinite(norm), norm, xp.inf)

    def measure(self, error: Array, old: Array, new: Array) -> Any:
        """The norm of the error of a step; a number where there is one member, on the host."""
        return self.norm(error, old, new)

    def first_step(self, slope: _Slope, x: Array, room: Any) -> Array:
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

    def attempt(self, c: _Carry, slope: _Slope, end: Any, limit: Any) -> _Carry:
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

    def steady(self, slope: _Slope, t: Any, x: Array, status: Array) -> Any:
        """Whether no living member moves by more than ten tolerances in the longest time constant."""
        xp = self.xp
        own = slope._model is not None and hasattr(slope._model, "decay")
        scale = xp.max(slope.tau, axis=-1)[..., None] if own else self.time(t)
        return self.worst(self.norm(scale * slope(self.time(t), x), x, x), status) <= _STILL

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


class _HostLoop(_Loop):
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

    def step(self, slope: _Slope, t: float, h: float, x: Array, memory: Any) -> Step:
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
        inside = min(nudge, 0.25 * (high - low))
        return (low + inside if k else low), (high - inside if k < len(self.jumps) else high)

    def restart(self, landed: bool, slope: _Slope, t: float, x: Array, memory: Any) -> Any:
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

    def run(self) -> _Found:
        xp, settings, arguments = self.xp, self.settings, self.arguments
        values, x, clock = arguments.values, arguments.start, self.clock
        kernel = None
        if x.ndim == 2 and self.pieces is None and not settings.steady and not self.method.stiff:
            kernel = _kernel(xp, settings, arguments, columns=True)
        if kernel is not None:
            self.axis, x = 0, xp.asarray(xp.matrix_transpose(x), copy=True)
        else:
            kernel = _kernel(xp, settings, arguments)
        every = _Slope(xp, settings, arguments, None, (clock[0], self.span), kernel, into=self.axis == 0)
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
        return _Found(
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


class _TracedLoop(_Loop):
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

    def step(self, slope: _Slope, t: Array, h: Array, x: Array, memory: Any) -> Step:
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
        inside = self.lower(nudge, 0.25 * (high - low))
        return (
            xp.where(xp.any(passed), low + inside, low),
            xp.where(xp.any(ahead), high - inside, high),
        )

    def restart(self, landed: Array, slope: _Slope, t: Any, x: Array, memory: Any) -> Any:
        new = self.method.init(slope.at(segment=self.segment(t)), self.time(t), x)
        return None if new is None else self.pick(landed, new, memory)

    def keep(self, accept: Any, t: Any, h: Any, dense: Any) -> None:
        """Nothing: while tracing no list of steps can be made."""

    def fraction(self, c: _Carry, goal: Array) -> Array:
        return self.left(goal, c.t_old) / c.h_old

    def run(self) -> _Found:
        xp, settings, arguments, backend = self.xp, self.settings, self.arguments, self.backend
        times, values, x = arguments.times, arguments.values, arguments.start
        every = _Slope(xp, settings, arguments, segment=(times[0], self.span))
        xs: Tree = (times[:-1], times[1:], arguments.limits)
        if settings.sampled:
            xs = (*xs, values[:-1, ...], values[1:, ...])

        def slope_of(inputs: Tree) -> _Slope:
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
        return _Found(states, status, c.steps, c.rejected, c.h, c.settled)


# Noise.


def wiener_increments(
    times: Array, size: int, *, seed: int = 0, substeps: int = 1, batch: tuple[int, ...] = ()
) -> Array:
    """The increments dB that :func:`simulate_sde` draws for a seed.

    Parameters
    ----------
    times : array (T,)
        In seconds, increasing.
    size : int
        Number m of independent noises: 2n for amplitudes, the columns of L otherwise.
    seed : int
    substeps : int
        Equal steps between successive times.
    batch : tuple of int
        Batch axes of the state.

    Returns
    -------
    array ((T-1)*substeps, *batch, size)
        Normal, with the length of the step as variance. Sums of k neighbours
        are the increments of steps k times as long.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    xp = checks.namespace({"times": times})
    times = check_times(xp, times)
    size = checks.positive_integer("size", size)
    substeps = checks.positive_integer("substeps", substeps)
    if not isinstance(batch, tuple):
        raise TypeError(f"batch must be a tuple of integers, got {checks.describe(batch)}")
    batch = tuple(checks.positive_integer("batch", length) for length in batch)
    parts = []
    for first, last in _chunks(times.shape[0] - 1, substeps, (*batch, size)):
        part = _draw(xp, checks.seed(seed), times, first, last, substeps, (*batch, size))
        parts.append(xp.reshape(part, ((last - first) * substeps, *batch, size)))
    return xp.concat(parts, axis=0)


def _chunks(intervals: int, substeps: int, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    length = max(1, _CHUNK // (substeps * math.prod(shape)))
    return [(first, min(first + length, intervals)) for first in range(0, intervals, length)]


def _draw(xp: Any, seed: int, times: Array, first: int, last: int, substeps: int, shape: tuple[int, ...]) -> Array:
    """Increments (last - first, substeps, *shape) of the output intervals first to last."""
    own = int(np.random.SeedSequence([seed, first]).generate_state(1)[0])
    numbers = get_backend(xp).normal(own, (last - first, substeps, *shape), times)
    root = xp.sqrt((times[first + 1 : last + 1] - times[first:last]) / substeps)
    return numbers * xp.reshape(root, (last - first, *(1,) * (1 + len(shape))))


def _integrate_sde(
    posed: Posed,
    noise: Noise,
    increments: Array | None,
    seed: int,
    method: str | Method,
    substeps: int,
    progress: Progress,
) -> Trajectory:
    xp, start, times = posed.xp, posed.start, posed.times
    if not isinstance(method, Method):
        checks.one_of("method", method, [name for name, known in METHODS.items() if known.stochastic])
    chosen = get_method(method)
    substeps = checks.positive_integer("substeps", substeps)
    seed = checks.seed(seed)
    backend = get_backend(xp)
    settings, arguments = _problem(posed, chosen, 1.0, 1.0, substeps, 1, None, False)
    noise, tau = read_colour(noise)
    term = noise_term(xp, noise_at(xp, noise, posed.model, start), settings.layout.sizes, start[0])
    if is_function(noise):
        settings = settings._replace(noise=noise)
    if term.matrix is None:
        count, term_batch = sum(settings.layout.sizes), tuple(term.amplitude.shape[:-1])
    else:
        count, term_batch = int(term.matrix.shape[-1]), tuple(term.matrix.shape[:-2])
    batch = broadcast_shapes(term_batch, tuple(arguments.start.shape[:-1]))
    intervals = times.shape[0] - 1
    if increments is not None:
        if increments.ndim < 2 or increments.shape[0] != intervals * substeps or increments.shape[-1] != count:
            raise ValueError(
                f"increments must have shape ({intervals * substeps}, ..., {count}), one per step, "
                f"got {tuple(increments.shape)}"
            )
        batch = broadcast_shapes(batch, tuple(increments.shape[1:-1]))
        increments = xp.astype(increments, times.dtype, copy=False)
        increments = xp.reshape(increments, (intervals, substeps, *increments.shape[1:]))
    wide = xp.broadcast_to(arguments.start, (*batch, arguments.start.shape[-1]))
    arguments = arguments._replace(start=wide, noise=None if is_function(noise) else term)
    filtered = None if tau is None else _filter(xp, tau, count, batch, seed, wide)
    leaves = _leaves((posed.model, posed.drive, start, times, tuple(term), increments))
    concrete = all(backend.is_concrete(leaf) for leaf in leaves)
    chunks = [(0, intervals)] if increments is not None else _chunks(intervals, substeps, (*batch, count))
    found: list[_Found] = []
    show = progress_of(progress, "simulate")
    with show or nullcontext(lambda fraction: None) as tell:
        for first, last in chunks:
            db = increments
            if db is None:
                db = _draw(xp, seed, times, first, last, substeps, (*batch, count))
            if filtered is not None:
                db, filtered = filtered(arguments.times[first : last + 1], db)
            some = arguments._replace(
                start=wide if not found else found[-1].states[-1, ...],
                times=arguments.times[first : last + 1],
                values=None if arguments.values is None else arguments.values[first : last + 1, ...],
                increments=db,
            )
            found.append(_run_pieces(backend, settings, some, concrete, None, None))
            tell(last / intervals)
    states = xp.concat([found[0].states, *(one.states[1:, ...] for one in found[1:])], axis=0)
    status = found[0].status
    for one in found[1:]:
        status = xp.where(status == SUCCESS, one.status, status)
    zero = xp.zeros((), dtype=xp.int32, device=device(times))
    return Trajectory(times, settings.layout.unpack(states), status, zero + substeps * intervals, zero)


def _filter(
    xp: Any, tau: Any, count: int, batch: tuple[int, ...], seed: int, like: Array, eta: Array = None
) -> Callable[[Array, Array], tuple[Array, Any]]:
    """What makes of the increments dB of a piece of the run those of a filter, the integral of eta; and its successor.

    tau d eta = -eta dt + dB, so the integral over a step is dB - tau (change of
    eta); eta itself has its exact variance and decay, whatever the step.
    """
    backend, rate = get_backend(xp), filter_rates(xp, tau, count, like)
    if eta is None:
        own = int(np.random.SeedSequence([seed, 0, 1]).generate_state(1)[0])
        eta = xp.sqrt(0.5 * rate) * backend.normal(own, (*batch, count), like)

    def run(times: Array, db: Array) -> tuple[Array, Any]:
        substeps = int(db.shape[1])
        steps = xp.reshape(db, (-1, *db.shape[2:]))
        lengths = xp.repeat((times[1:] - times[:-1]) / substeps, substeps)

        def one(eta: Array, inputs: Any) -> tuple[Array, Array]:
            h, kick = inputs
            size = xp.sqrt(-0.5 * rate * xp.expm1(-2.0 * rate * h) / h)
            new = xp.exp(-rate * h) * eta + size * kick
            return new, kick - (new - eta) / rate

        last, made = backend.scan(one, eta, (lengths, steps))
        return xp.reshape(made, db.shape), _filter(xp, tau, count, batch, seed, like, last)

    return run


# Events.


def _find_event(xp: Any, run: DenseOutput, event: Callable[..., Array]) -> Event:
    """Where ``event`` changes sign: between the ends of the steps, then by bisection on the interpolant."""
    ends = xp.concat([run.starts, (run.starts + run.steps)[-1:]])

    def values(local: Array) -> Array:
        state = run(local + run.origin)
        return xp.stack(
            [
                event(local[i] + run.origin, tree_map(lambda leaf, i=i: leaf[i, ...], state))
                for i in range(local.shape[0])
            ]
        )

    first = values(ends[:1])
    batch = tuple(tree_leaves(run.dense)[0].shape[1:-1])
    if tuple(first.shape) != (1, *batch) or not xp.isdtype(first.dtype, "real floating"):
        raise ValueError(
            f"an event must return a real array of the batch's shape {batch}, one number per member, whose sign "
            f"changes; got {first.dtype} of shape {tuple(first.shape[1:])}"
        )
    found = to_numpy(values(ends))
    at = np.argwhere((found[:-1] * found[1:] < 0) | ((found[1:] == 0) & (found[:-1] != 0)))
    moments, states = [], []
    for index in at:
        k, member = int(index[0]), tuple(int(i) for i in index[1:])
        low, high, sign = float(ends[k]), float(ends[k + 1]), float(np.sign(found[(k, *member)]))
        for _ in range(60):
            middle = 0.5 * (low + high)
            if middle in (low, high):
                break
            here = values(xp.asarray([middle], dtype=ends.dtype, device=device(ends)))
            if sign * float(here[(0, *member)]) > 0:
                low = middle
            else:
                high = middle
        moments.append(high)
        state = run(xp.asarray([high + run.origin], dtype=ends.dtype, device=device(ends)))
        states.append(tree_map(lambda leaf, member=member: leaf[(0, *member, ...)], state))
    order = np.argsort(moments, kind="stable")
    clock = xp.asarray([moments[i] + run.origin for i in order], dtype=ends.dtype, device=device(ends))
    chosen = [states[i] for i in order]
    sizes = run.layout.sizes
    parts = [
        xp.stack([state[i] for state in chosen])
        if chosen
        else xp.zeros((0, sizes[i]), dtype=ends.dtype, device=device(ends))
        for i in range(len(sizes))
    ]
    members = xp.asarray([int(k) for i in order for k in at[i][1:]], dtype=xp.int64, device=device(ends))
    return Event(clock, xp.reshape(members, (len(moments), found.ndim - 1)), run.layout.make(parts))


def _joined(xp: Any, one: Event, two: Event) -> Event:
    return Event(
        xp.concat([one.times, two.times]),
        xp.concat([one.members, two.members], axis=0),
        tree_map(lambda a, b: xp.concat([a, b], axis=0), one.state, two.state),
    )


__all__ = [
    "MESSAGES", "METHODS", "NOT_FINITE", "STEP_TOO_SMALL", "STIFF", "SUCCESS", "TOO_MANY_STEPS", "Circuit",
    "DenseOutput", "Event", "Trajectory", "integrate", "integrate_sde", "simulate", "simulate_sde",
    "wiener_increments",
]  # fmt: skip
