"""Simulation of any model: what the arguments mean, and what a run gives back.

A state is a (named) tuple of arrays (..., n); leading axes are batch axes. The loops are in
:mod:`organics_core.loops`, what they return in :mod:`organics_core.trajectory`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from . import checks, model
from .backend import Array, Tree, get_backend, quiet, tree_leaves, tree_map
from .circuit import Circuit, of_variant
from .drive import Drive, is_concrete, read_drive, read_jumps
from .linalg import broadcast_shapes
from .loops import Arguments, Found, Settings, run_in_parts
from .methods import METHODS, Method, Tableau, get_method
from .model import Layout
from .noise import Noise, filter_rates, is_function, noise_arrays, noise_at, noise_term, read_colour
from .progress import Progress, progress_of
from .trajectory import SUCCESS, DenseOutput, Trajectory, find_event, no_event
from .weights import is_operator

_CHUNK = 2**22
"""At most about this many random numbers are held at once."""


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
        ``"steady"`` stops when the state moves by less than ten tolerances, in the
        longest time constant (of a model without time constants: in the time
        since the start) and, by its linearization, until the last time; and
        repeats it for the later times. Needs a constant drive and an adaptive
        method. States of more than 512 numbers are not linearized: there a motion
        much slower than the time constants looks settled. A slow departure from
        an unstable fixed point always does.
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
    function. A method of an object that has changed is the same function.

    Differentiable in the circuit, the drive and the start state wherever the
    library is; step sizes count as constants.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit = oc.Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
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
        starts from its stationary distribution; its own values are exact in law, and
        their sum over a step is where the step is short or long against tau.
    seed : int
        Of the library's own generator: the same seed, library and shapes give
        the same noise. A run that continues another repeats the noise of that one
        unless it has another seed.
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
    >>> import organics_core as oc
    >>> circuit = oc.Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
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
    jumps: Iterable[float] | None = None,
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
    tau : tuple of arrays or numbers, optional
        Time constants of the linear decay, positive, one per part of the state,
        for ``"exponential_euler"`` only.
    method, rtol, atol, max_step, substeps, max_steps, dense, jumps, events, progress
        As in :func:`simulate`; without ``max_step`` steps are not bounded.

    Returns
    -------
    Trajectory

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    Where loops are compiled (jax) ``field`` is read when it is first used, as a
    function of time is by :func:`simulate`.

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> run = oc.integrate(lambda t, x: (-x[0],), (np.array([1.0]),), np.array([0.0, 1.0]), rtol=1e-8)
    >>> run.state[0][-1].round(6)  # 1 / e
    array([0.367879])
    """
    posed = _pose_field(field, state0, times, tau, read_jumps(() if jumps is None else jumps), {})
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

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> times = np.linspace(0.0, 1.0, 1001)
    >>> run = oc.integrate_sde(lambda t, x: (-10.0 * x[0],), (np.zeros((500, 1)),), times, noise=(1.0,))
    >>> bool(abs(run.state[0][-1].var() - 1 / 20) < 0.02)  # of an Ornstein-Uhlenbeck process
    True
    """
    posed = _pose_field(field, state0, times, None, (), {**noise_arrays(noise), "increments": increments})
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
    jumps: tuple[float, ...]


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
    arrays = [value for value in (*others.values(), *made) if hasattr(value, "dtype") and not checks.is_number(value)]
    if xp is None or not arrays:
        xp = checks.namespace({"times": times, **named})
    first = arrays[0] if arrays else times
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
    parts = start or _rest(xp, made, wide)
    shape = broadcast_shapes(tuple(wide.shape), *(tuple(part.shape) for part in parts))
    initial = made.state._make([xp.broadcast_to(part, shape) for part in parts])
    model.check_field(xp, made, initial, wide)
    given = given._replace(constant=None if given.constant is None else sample, sample=sample)
    values = None if given.sampled is None else xp.astype(given.sampled, times.dtype, copy=False)
    tau = made.decay() if hasattr(made, "decay") else None
    if tau is not None:
        model.check_decay(xp, f"decay of {type(made).__name__}", tau, initial, values=False)
    return Posed(xp, made, None, given, values, initial, times, tau, step, given.jumps)


def _rest(xp: Any, made: Any, wide: Array) -> list[Array]:
    """Where a simulation begins. ValueError where modulators are seen to be 0, where they would stay, or infinite."""
    if not isinstance(made, Circuit):
        return list(model.rest(xp, made, wide))
    backend = get_backend(xp)
    with quiet(backend):
        y, a = model.rest(xp, made, wide)
    inside = xp.all(xp.isfinite(a) & (a > 0))
    if backend.is_concrete(inside) and not bool(inside):
        raise ValueError(
            f"sigma must leave (b0 sigma)**2, the modulators at rest, within the range of "
            f"{str(a.dtype).rpartition('.')[2]}, where it overflows or vanishes; scale sigma or b0, or give state0"
        )
    return [y, a]


def _pose_field(
    field: Callable[..., Tree], state0: Tree, times: Array, tau: Tree, jumps: tuple[float, ...], more: dict[str, Array]
) -> Posed:
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
    dtype = xp.result_type(times, *leaves.values())
    batch = broadcast_shapes(*(tuple(leaf.shape[:-1]) for leaf in state0))
    parts = [xp.broadcast_to(xp.astype(leaf, dtype, copy=False), (*batch, leaf.shape[-1])) for leaf in state0]
    start = type(state0)._make(parts) if hasattr(state0, "_make") else tuple(parts)
    if tau is not None:
        model.check_decay(xp, "tau", tau, start, values=True)
    return Posed(xp, None, field, None, None, start, xp.astype(times, dtype, copy=False), tau, step, jumps)


def _continued(state0: Any, times: Array) -> tuple[Any, Array]:
    """The start state and the first step: of a state, or of a run to be continued."""
    if not isinstance(state0, Trajectory):
        return state0, None
    if is_concrete(times) and is_concrete(state0.times) and float(state0.times[-1]) != float(times[0]):
        raise ValueError(
            f"times must begin where the run state0 ends, at {float(state0.times[-1])!r}, got {float(times[0])!r}"
        )
    if get_backend(checks.namespace({"times": times})).is_concrete(state0.status) and not state0.success:
        raise ValueError(f"state0 must be a run that reached its last time, but it {state0.message}")
    return tree_map(lambda leaf: leaf[-1, ...], state0.state), state0.step


def check_times(xp: Any, times: Array) -> Array:
    if times.ndim != 1 or times.shape[0] < 2:
        raise ValueError(f"times must have shape (T,) with T >= 2, got shape {tuple(times.shape)}")
    checks.values(xp, "times", times, "any")
    if is_concrete(times) and not bool(xp.all(times[1:] > times[:-1])):
        clock = [float(t) for t in times]
        first, second = next((t, u) for t, u in itertools.pairwise(clock) if not u > t)
        raise ValueError(f"times must be strictly increasing, got {second!r} after {first!r}")
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
    if callable(events) or not isinstance(events, Sequence):
        raise TypeError(
            f"events must be a sequence of functions of time and state, such as a list, got {checks.describe(events)}"
        )
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
    found = run_in_parts(backend, settings, arguments, concrete, pieces, progress_of(progress, "simulate"))
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
    if events:
        nothing = no_event(xp, layout, start[0])  # of a run without a step
        made = made._replace(
            events=tuple(nothing if interpolant is None else find_event(xp, interpolant, event) for event in events)
        )
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
) -> tuple[Settings, Arguments]:
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
        if posed.jumps:
            jumps = xp.asarray(posed.jumps, dtype=times.dtype, device=device(times)) - times[0]
    settings = Settings(
        posed.field, function, layout, method, posed.values is not None, substeps, rtol, atol, max_steps, steady
    )
    if given is not None and function is not None:
        settings = settings._replace(shape=tuple(given.sample.shape))
    tau = None
    if posed.tau is not None and posed.model is None:
        tau = layout.pack(xp, [t + xp.zeros_like(part) for t, part in zip(posed.tau, posed.start, strict=True)])
    arguments = Arguments(
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

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> increments = oc.wiener_increments(np.linspace(0.0, 1.0, 101), 500)
    >>> increments.shape, bool(abs(increments.var() - 0.01) < 1e-3)  # the step
    ((100, 500), True)
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
    batch = broadcast_shapes(term_batch, tuple(arguments.start.shape[:-1]), tuple(getattr(tau, "shape", ())[:-1]))
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
    if 0 in batch:
        raise ValueError(f"the batch must not be empty, got batch axes of shape {batch}")
    wide = xp.broadcast_to(arguments.start, (*batch, arguments.start.shape[-1]))
    arguments = arguments._replace(start=wide, noise=None if is_function(noise) else term)
    filtered = None if tau is None else _filter(xp, tau, count, batch, seed, wide)
    leaves = _leaves((posed.model, posed.drive, start, times, tuple(term), increments))
    concrete = all(backend.is_concrete(leaf) for leaf in leaves)
    chunks = [(0, intervals)] if increments is not None else _chunks(intervals, substeps, (*batch, count))
    found: list[Found] = []
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
            found.append(run_in_parts(backend, settings, some, concrete, None, None))
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
