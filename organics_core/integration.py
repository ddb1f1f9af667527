"""Integrators as data, one loop for fixed steps and one for adaptive steps.

A state is a (named) tuple of arrays (..., n); leading axes are batch axes. The
whole batch takes the same steps, chosen by its worst member; a member that
diverges is set aside with its status while the others go on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast

from array_api_compat import device, is_array_api_obj

from . import checks
from .backend import Array, Backend, Tree, get_backend, to_numpy, tree_leaves, tree_map
from .circuit import Circuit, State, _resting_state, prepare, validate_circuit, validate_state
from .dynamics import balance
from .dynamics import field as circuit_field
from .linalg import broadcast_shapes


class Tableau(NamedTuple):
    """A Runge-Kutta method (or exponential Euler) as data.

    Attributes
    ----------
    name : str
    order : int
        Order of convergence.
    nodes : tuple of float
        Stage times c.
    stages : tuple of tuples of float
        Rows of the strictly lower triangle of the matrix A.
    weights : tuple of float
        b.
    error : tuple of float or None
        b minus the embedded method's weights, one more than the stages where
        the last stage of a step is the first of the next; None for fixed steps.
    dense : tuple of tuples of float or None
        Coefficients of theta, theta**2, ... per stage for interpolation.
    exponential : bool
        Multiply the increment by phi_1(-h/tau) = (1 - exp(-h/tau)) tau/h: exact
        for the linear decay.
    """

    name: str
    order: int
    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...] | None = None
    dense: tuple[tuple[float, ...], ...] | None = None
    exponential: bool = False


INTEGRATORS: dict[str, Tableau] = {
    tableau.name: tableau
    for tableau in (
        Tableau("euler", 1, (0.0,), ((),), (1.0,)),
        Tableau("exponential_euler", 1, (0.0,), ((),), (1.0,), exponential=True),
        Tableau("heun", 2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
        Tableau(
            "rk4", 4, (0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
        ),
        # Dormand & Prince 1980; interpolation of Shampine 1986.
        Tableau(
            "dopri5",
            5,
            (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
            (
                (),
                (1 / 5,),
                (3 / 40, 9 / 40),
                (44 / 45, -56 / 15, 32 / 9),
                (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
                (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            ),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
            (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
            (
                (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
                (0.0, 0.0, 0.0, 0.0),
                (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
                (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
                (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
                (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
                (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
            ),
        ),
    )
}
"""The integrators by name. A :class:`Tableau` of your own may be passed as ``method`` as well."""

SUCCESS, STEP_TOO_SMALL, TOO_MANY_STEPS, NOT_FINITE = 0, 1, 2, 3
MESSAGES = {
    SUCCESS: "reached the last time",
    STEP_TOO_SMALL: "stopped: the step size fell to the resolution of the clock; the solution is singular or diverges",
    TOO_MANY_STEPS: "stopped: max_steps reached before the last time; raise max_steps or loosen rtol and atol",
    NOT_FINITE: "stopped: the state is no longer finite; the solution diverges, or the step is too long",
}


class _Layout(NamedTuple):
    """How a tuple of arrays (..., n_i) is packed into one array (..., sum n_i), and back."""

    sizes: tuple[int, ...]
    kind: type[Any]

    def pack(self, xp: Any, state: Tree) -> Array:
        parts = list(state)
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-1)

    def unpack(self, packed: Array) -> Tree:
        parts = []
        start = 0
        for size in self.sizes:
            parts.append(packed[..., start : start + size])
            start += size
        return self.kind._make(parts) if hasattr(self.kind, "_make") else tuple(parts)


class DenseOutput(NamedTuple):
    """The solution between the accepted steps, as piecewise polynomials; call it with times.

    Attributes
    ----------
    starts, steps : arrays (S,)
        Start and length of every accepted step, in seconds.
    state : array (S, ..., m)
        State at the start of every step, its parts one after the other.
    stages : array (S, stages, ..., m)
        Slopes of every step.
    coefficients : tuple
        The method's interpolation coefficients.
    layout : tuple
        Sizes of the parts of the state, and their kind.
    """

    starts: Array
    steps: Array
    state: Array
    stages: Array
    coefficients: tuple[tuple[float, ...], ...]
    layout: _Layout

    def __call__(self, times: Array) -> Tree:
        """State at ``times`` (T,), each part (T, ..., n); ValueError outside the interval covered."""
        xp = checks.namespace({"times": times, "starts": self.starts})
        begin, end = float(self.starts[0]), float(self.starts[-1] + self.steps[-1])
        slack = 1e-9 * (end - begin)
        low, high = float(xp.min(times)), float(xp.max(times))
        if not (begin - slack <= low and high <= end + slack):
            raise ValueError(f"times must lie in [{begin:g}, {end:g}], got [{low:g}, {high:g}]")
        index = xp.searchsorted(self.starts, times, side="right") - 1
        index = xp.where(index < 0, 0, index)
        h = xp.take(self.steps, index, axis=0)
        theta = (times - xp.take(self.starts, index, axis=0)) / h
        chosen = xp.take(self.stages, index, axis=0)
        stages = [chosen[:, k, ...] for k in range(chosen.shape[1])]
        column = (..., *(None,) * (self.state.ndim - 1))
        state = xp.take(self.state, index, axis=0)
        return self.layout.unpack(_interpolate(self.coefficients, state, stages, theta[column], h[column]))


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
    """

    times: Array
    state: Tree
    status: Array
    steps: Array
    rejected: Array
    interpolant: DenseOutput | None = None

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
            return MESSAGES[int(codes[0])]
        return "; ".join(f"{count} of {codes.size} {MESSAGES[code]}" for code, count in kinds if count)

    @property
    def reached(self) -> int:
        """How many of the times every member of the batch reached."""
        finite: Any = None
        for leaf in tree_leaves(self.state):
            values = to_numpy(leaf)
            ok = (values == values).reshape(values.shape[0], -1).all(axis=1)
            finite = ok if finite is None else finite & ok
        return int(finite.sum())


class _Settings(NamedTuple):
    """Everything about a run that is not an array: hashable, so that a compiler can specialize on it."""

    field: Callable[..., Tree]
    layout: _Layout
    tableau: Tableau
    sampled: bool
    substeps: int
    rtol: float
    atol: float
    max_steps: int


def simulate(
    circuit: Circuit,
    z: Array | Callable[[Array], Array],
    times: Array,
    *,
    state0: State | None = None,
    method: str | Tableau = "dopri5",
    rtol: float = 1e-6,
    atol: float = 1e-9,
    variant: str = "main",
    drive: str = "auto",
    substeps: int = 1,
    max_steps: int = 100_000,
    dense: bool = False,
) -> Trajectory:
    """Simulate the circuit.

    Parameters
    ----------
    circuit : Circuit
    z : array (..., n), array (T, ..., n) or callable
        Input drive: constant; sampled at ``times`` and linear in between; or a
        function of the time (a 0-d array) that returns an array (..., n).
    times : array (T,)
        Output times in seconds, increasing; the first is the start.
    state0 : State, optional
        State at ``times[0]``; at rest (y = 0, a = (b0 sigma)**2) by default.
    method : {"dopri5", "euler", "exponential_euler", "heun", "rk4"} or Tableau
        ``"dopri5"`` chooses its own steps by ``rtol`` and ``atol``; the others
        take ``substeps`` equal steps between successive output times.
    rtol, atol : float
        Tolerances of the adaptive method.
    variant : {"main", "rectified", "rectified_recurrence"}
    drive : {"auto", "constant", "sampled"}
        How to read an array ``z``. ``"auto"`` reads it as sampled where it has
        at least two axes, the first of length T; say ``"constant"`` for a batch
        of T constant inputs.
    substeps : int
        Steps per output interval of the fixed-step methods.
    max_steps : int
        Bound on the adaptive method's steps in one output interval.
    dense : bool
        Also return an interpolant for any time between (adaptive methods, not
        while tracing).

    Returns
    -------
    Trajectory
        With one state per time. A singular or diverging circuit is no error:
        its ``status`` and ``message`` say so, and its states are NaN from there.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
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
    checks.one_of("variant", variant, checks.VARIANTS)
    checks.one_of("drive", drive, ("auto", "constant", "sampled"))
    xp, circuit, problem = _pose(circuit, z, times, state0, variant, drive)
    tau = State(circuit.tau_y, circuit.tau_a)
    return _integrate(
        xp,
        *problem[:4],
        tau,
        problem.values,
        method=method,
        rtol=rtol,
        atol=atol,
        substeps=substeps,
        max_steps=max_steps,
        dense=dense,
    )


class _Drive(NamedTuple):
    """An input drive, read: constant, sampled or a function of time; two of the first three are None."""

    constant: Array
    sampled: Array
    function: Callable[[Array], Array] | None
    named_sample: dict[str, Array]  # its value at the first time, under the name for messages


def _read_drive(xp: Any, z: Array | Callable[[Array], Array], times: Array, how: str) -> _Drive:
    checks.one_of("drive", how, ("auto", "constant", "sampled"))
    if is_array_api_obj(z):
        given: Array = z
        count = times.shape[0]
        fits = given.ndim >= 2 and given.shape[0] == count
        if how == "sampled" and not fits:
            raise ValueError(
                f"a sampled z must have shape ({count}, ..., n), one value per time, got {tuple(given.shape)}"
            )
        checks.namespace({"times": times, "z": given})
        checks.values(xp, "z", given, "any")
        if fits and how != "constant":
            return _Drive(None, given, None, {"z": given[0, ...]})
        return _Drive(given, None, None, {"z": given})
    if not callable(z):
        raise TypeError(f"z must be an array or a function of time, got {checks.describe(z)}")
    sample = z(times[0])
    if not is_array_api_obj(sample):
        raise TypeError(f"z(t) must return an array, got {checks.describe(sample)}")
    checks.namespace({"times": times, "z(t)": sample})
    checks.values(xp, "z(t)", sample, "any")
    return _Drive(None, None, z, {"z(t)": sample})


class _Problem(NamedTuple):
    """A circuit, its drive and its start, ready for the loops."""

    field: Callable[..., Tree]
    arguments: Any
    start: State
    times: Array
    values: Array


def _pose(
    circuit: Circuit,
    z: Array | Callable[[Array], Array],
    times: Array,
    state0: State | None,
    variant: str,
    drive: str,
    **more: Array,
) -> tuple[Any, Circuit, _Problem]:
    """Check the arguments of a simulation (``more``: other arrays of the same library) and prepare it."""
    checks.one_of("variant", variant, checks.VARIANTS)
    others = {} if state0 is None else validate_state(state0, "state0")
    xp = validate_circuit(circuit, values=True, **others)
    checks.namespace({"w": circuit.w, "times": times, **more}, optional=("increments",))
    times = _check_times(xp, times)
    given = _read_drive(xp, z, times, drive)
    validate_circuit(circuit, **given.named_sample, **others)
    for name, value in {**others, **more}.items():
        checks.values(xp, name, value, "any")
    circuit, sample, times, *start = prepare(xp, circuit, *given.named_sample.values(), times, *others.values())
    rest = _resting_state(xp, circuit, sample)
    shape = broadcast_shapes(*(tuple(part.shape) for part in (*start, *rest)))
    initial = State(*(xp.broadcast_to(part, shape) for part in (start or rest)))

    field: Callable[..., Tree]
    arguments: Any = circuit
    values: Array = None
    if given.function is not None:
        field = _CallableField(given.function, variant)
    elif given.sampled is not None:
        field, values = _SampledField(variant), xp.astype(given.sampled, times.dtype, copy=False)
    else:
        field = _ConstantField(variant)
        floor = (circuit.b0 * circuit.sigma) ** 2
        arguments = (circuit.w_r, circuit.w, circuit.b * sample, floor, circuit.tau_y, circuit.tau_a)
    return xp, circuit, _Problem(field, arguments, initial, times, values)


@dataclass(frozen=True)
class _ConstantField:
    variant: str

    def __call__(self, xp: Any, t: Array, state: State, arguments: Any, z: Array) -> State:
        w_r, w, drive, floor, tau_y, tau_a = arguments
        dy, da = balance(xp, w_r, w, drive, floor, state, self.variant)
        return State(dy / tau_y, da / tau_a)


@dataclass(frozen=True)
class _SampledField:
    variant: str

    def __call__(self, xp: Any, t: Array, state: State, arguments: Any, z: Array) -> State:
        return circuit_field(xp, Circuit._make(arguments), state, z, self.variant)


@dataclass(frozen=True)
class _CallableField:
    z: Callable[[Array], Array]
    variant: str

    def __call__(self, xp: Any, t: Array, state: State, arguments: Any, z: Array) -> State:
        drive = xp.astype(self.z(_clock(xp, t, state[0])), state[0].dtype, copy=False)
        return circuit_field(xp, Circuit._make(arguments), state, drive, self.variant)


@dataclass(frozen=True)
class _UserField:
    function: Callable[[Array, Tree], Tree]

    def __call__(self, xp: Any, t: Array, state: Tree, arguments: Any, z: Array) -> Tree:
        slope = self.function(_clock(xp, t, state[0]), state)
        shapes = [tuple(part.shape) for part in slope] if isinstance(slope, tuple) else None
        if shapes != [tuple(part.shape) for part in state]:
            raise ValueError(
                f"field must return a tuple of arrays shaped like state0, {[tuple(part.shape) for part in state]}, "
                f"got {shapes if shapes is not None else checks.describe(slope)}"
            )
        return slope


def _clock(xp: Any, t: Array, like: Array) -> Array:
    """The time as a 0-d array: host loops keep it as a Python number."""
    return xp.asarray(t, dtype=like.dtype, device=device(like)) if checks.is_number(t) else t


def integrate(
    field: Callable[[Array, Tree], Tree],
    state0: Tree,
    times: Array,
    *,
    method: str | Tableau = "dopri5",
    rtol: float = 1e-6,
    atol: float = 1e-9,
    tau: Tree = None,
    substeps: int = 1,
    max_steps: int = 100_000,
    dense: bool = False,
) -> Trajectory:
    """Integrate x' = field(t, x) for a user's own vector field.

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
    method, rtol, atol, substeps, max_steps, dense
        As in :func:`simulate`.

    Returns
    -------
    Trajectory

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    if not isinstance(state0, tuple) or not state0:
        raise TypeError(f"state0 must be a (named) tuple of arrays, got {checks.describe(state0)}")
    leaves = {f"state0[{i}]": leaf for i, leaf in enumerate(state0)}
    xp = checks.namespace({"times": times, **leaves})
    times = _check_times(xp, times)
    for name, leaf in leaves.items():
        if leaf.ndim == 0:
            raise ValueError(f"{name} must have shape (..., n), got shape ()")
        checks.values(xp, name, leaf, "any")
    dtype = xp.result_type(*leaves.values())
    batch = broadcast_shapes(*(tuple(leaf.shape[:-1]) for leaf in state0))
    parts = [xp.broadcast_to(xp.astype(leaf, dtype, copy=False), (*batch, leaf.shape[-1])) for leaf in state0]
    start = type(state0)._make(parts) if hasattr(state0, "_make") else tuple(parts)
    return _integrate(
        xp,
        _UserField(field),
        None,
        start,
        xp.astype(times, dtype, copy=False),
        tau,
        None,
        method=method,
        rtol=rtol,
        atol=atol,
        substeps=substeps,
        max_steps=max_steps,
        dense=dense,
    )


def _check_times(xp: Any, times: Array) -> Array:
    if times.ndim != 1 or times.shape[0] < 2:
        raise ValueError(f"times must have shape (T,) with T >= 2, got shape {tuple(times.shape)}")
    checks.values(xp, "times", times, "any")
    if get_backend(xp).is_concrete(times) and not bool(xp.all(times[1:] > times[:-1])):
        clock = [float(t) for t in times]
        first, second = next((t, u) for t, u in itertools.pairwise(clock) if not u > t)
        raise ValueError(f"times must be strictly increasing, got {second:g} after {first:g}")
    return times


def _integrate(
    xp: Any,
    field: Callable[..., Tree],
    arguments: Any,
    start: Tree,
    times: Array,
    tau: Tree,
    values: Array,
    *,
    method: str | Tableau,
    rtol: float,
    atol: float,
    substeps: int,
    max_steps: int,
    dense: bool,
) -> Trajectory:
    if isinstance(method, Tableau):
        tableau = _check_tableau(method)
    else:
        checks.one_of("method", method, INTEGRATORS)
        tableau = INTEGRATORS[method]
    rtol, atol = checks.positive_number("rtol", rtol), checks.positive_number("atol", atol)
    substeps = checks.positive_integer("substeps", substeps)
    max_steps = checks.positive_integer("max_steps", max_steps)
    if tableau.exponential and tau is None:
        raise ValueError(f"method {tableau.name!r} needs tau, the time constants of the linear decay")
    if dense and (tableau.dense is None or tableau.error is None):
        raise ValueError(
            f"dense=True needs an adaptive method with interpolation, such as 'dopri5', not {tableau.name!r}"
        )
    backend = get_backend(xp)
    leaves = tree_leaves((arguments, start, times, values))
    concrete = all(backend.is_concrete(leaf) for leaf in leaves)
    if not concrete and dense:
        raise ValueError("dense=True cannot be traced: the number of steps is not known; ask for output times instead")
    if not concrete and tableau.error is not None and not _traces_loops(backend):
        raise ValueError(
            f"method {tableau.name!r} chooses its steps from the data, which {backend.name} cannot trace; "
            "use a fixed-step method such as 'rk4', or give the batch as leading axes"
        )
    if any(0 in part.shape for part in start):
        raise ValueError(f"the batch must not be empty, got states of shape {tuple(start[0].shape)}")
    layout = _Layout(tuple(int(part.shape[-1]) for part in start), type(start))
    settings = _Settings(field, layout, tableau, values is not None, substeps, rtol, atol, max_steps)
    x0 = layout.pack(xp, start)
    if tableau.exponential:
        tau = layout.pack(xp, [t + xp.zeros_like(part) for t, part in zip(tau, start, strict=True)])
    else:
        tau = None
    pieces: list[Any] | None = [] if dense else None
    if tableau.error is not None and (dense or not _traces_loops(backend)):
        states, status, steps, rejected = _host_run(settings, arguments, x0, times, values, pieces)
    else:
        run: Callable[..., Any] = _compiled(cast(Hashable, backend)) if concrete else _run
        try:
            hash(settings)
        except TypeError:
            run = _run
        states, status, steps, rejected = run(settings, arguments, x0, times, tau, values)
    interpolant = None
    if pieces:
        starts, lengths, at, slopes = (list(part) for part in zip(*pieces, strict=True))
        clock = {"dtype": times.dtype, "device": device(times)}
        interpolant = DenseOutput(
            xp.asarray(starts, **clock),
            xp.asarray(lengths, **clock),
            xp.stack(at),
            xp.stack([xp.stack(list(k)) for k in slopes]),
            cast(tuple[tuple[float, ...], ...], tableau.dense),
            layout,
        )
    return Trajectory(times, layout.unpack(states), status, steps, rejected, interpolant)


def _check_tableau(tableau: Tableau) -> Tableau:
    """ValueError where its parts do not fit together, or the weights do not add up to one."""
    count = len(tableau.nodes)
    rows = tuple(len(row) for row in tableau.stages)
    for part, fits, wanted in (
        ("stages", rows == tuple(range(count)), f"{count} rows of 0, 1, ... numbers"),
        ("weights", len(tableau.weights) == count, f"{count} numbers"),
        ("error", tableau.error is None or len(tableau.error) == count + 1, f"{count + 1} numbers"),
        ("dense", tableau.dense is None or len(tableau.dense) == count + 1, f"{count + 1} rows"),
    ):
        if not fits:
            raise ValueError(f"{part} of the tableau {tableau.name!r} must have {wanted} for its {count} nodes")
    if abs(sum(tableau.weights) - 1.0) > 1e-9:
        raise ValueError(f"weights of the tableau {tableau.name!r} must add up to 1, got {sum(tableau.weights):g}")
    return tableau


def _traces_loops(backend: Any) -> bool:
    """Whether the library's loops are primitives that trace (jax); elsewhere loops run on the host."""
    return bool(backend.traces_loops)


@cache
def _compiled(backend: Any) -> Callable[..., Any]:
    """The whole run, compiled once per backend, settings and shapes, where the library compiles loops."""
    return backend.compile(_run, static=(0,), loops=True)


def _run(settings: _Settings, arguments: Any, start: Array, times: Array, tau: Array, values: Array) -> Any:
    xp = checks.namespace({"times": times})
    backend = get_backend(xp)
    if settings.tableau.error is None:
        states, status, steps, rejected = _fixed_steps(backend, xp, settings, arguments, start, times, tau, values)
    else:
        states, status, steps, rejected = _traced_steps(backend, xp, settings, arguments, start, times, values)
    return *_finish(xp, start, states, status), steps, rejected


def _finish(xp: Any, start: Array, states: Array, status: Array) -> tuple[Array, Array]:
    """Put the start in front; where a member is no longer finite its states are NaN and its status says so."""
    states = xp.concat([start[None, ...], states])
    fine = xp.all(xp.isfinite(states), axis=-1)
    states = xp.where(fine[..., None], states, xp.nan)
    lost = xp.astype(~fine[-1, ...], status.dtype)
    return states, xp.where(status == SUCCESS, NOT_FINITE * lost, status)


def _slope(
    xp: Any, settings: _Settings, arguments: Any, t0: Any, t1: Any, z0: Array, z1: Array
) -> Callable[[Any, Array], Array]:
    """The packed vector field inside one output interval; a sampled drive is linear in it."""

    def slope(t: Any, x: Array) -> Array:
        z = z0 + ((t - t0) / (t1 - t0)) * (z1 - z0) if settings.sampled else None
        return settings.layout.pack(xp, settings.field(xp, t, settings.layout.unpack(x), arguments, z))

    return slope


def _add(x: Array, h: Any, weights: tuple[float, ...], stages: list[Array]) -> Array:
    """x + h sum_i weights_i stages_i."""
    for weight, stage in zip(weights, stages, strict=True):
        if weight != 0.0:
            x = x + (h * weight) * stage
    return x


def _stages(
    tableau: Tableau, slope: Callable[[Any, Array], Array], t: Any, h: Any, x: Array, first: Array
) -> list[Array]:
    """The slopes of one Runge-Kutta step, of which the first is known."""
    stages = [first]
    for node, row in zip(tableau.nodes[1:], tableau.stages[1:], strict=True):
        stages.append(slope(t + node * h, _add(x, h, row, stages)))
    return stages


def _fixed_steps(
    backend: Backend,
    xp: Any,
    settings: _Settings,
    arguments: Any,
    start: Array,
    times: Array,
    tau: Array,
    values: Array,
) -> tuple[Array, Array, Array, Array]:
    tableau, substeps = settings.tableau, settings.substeps
    xs: Tree = (times[:-1], times[1:])
    if settings.sampled:
        xs = (*xs, values[:-1, ...], values[1:, ...])

    def interval(x: Array, inputs: Tree) -> tuple[Array, Array]:
        t0, t1, z0, z1 = inputs if settings.sampled else (*inputs, None, None)
        h = (t1 - t0) / substeps
        slope = _slope(xp, settings, arguments, t0, t1, z0, z1)

        def one(x: Array, k: Any) -> tuple[Array, None]:
            t = t0 + k * h
            stages = _stages(tableau, slope, t, h, x, slope(t, x))
            if tableau.exponential:
                mean = _add(xp.zeros_like(x), 1.0, tableau.weights, stages)
                return x - tau * xp.expm1(-h / tau) * mean, None
            return _add(x, h, tableau.weights, stages), None

        if substeps == 1:
            x, _ = one(x, 0)
        else:
            x, _ = backend.scan(one, x, xp.arange(substeps, dtype=times.dtype, device=device(times)))
        return x, x

    _, states = backend.scan(interval, start, xs)
    counts = {"dtype": xp.int32, "device": device(times)}
    steps = xp.full((), substeps * (times.shape[0] - 1), **counts)
    return states, xp.zeros(start.shape[:-1], **counts), steps, xp.zeros((), **counts)


# The adaptive method. One attempt, its error and the rule for the next step stand here once;
# two loops use them: on the host, with Python numbers for the clock, and traced.


class _Attempt(NamedTuple):
    new: Array
    stages: Sequence[Array]  # the last is the slope at the new state
    norm: Array  # error relative to the tolerance, (...), infinite where not finite


def _attempt(
    backend: Backend,
    xp: Any,
    settings: _Settings,
    slope: Callable[[Any, Array], Array],
    t: Any,
    h: Any,
    x: Array,
    first: Array,
) -> _Attempt:
    tableau = settings.tableau
    fast = getattr(backend, "runge_kutta", None)
    made = None if fast is None else fast(tableau, slope, t, h, x, first)
    if made is not None:
        new, buffer, error = made
        return _Attempt(new, buffer, _error_norm(xp, settings, error, x, new))
    stages = _stages(tableau, slope, t, h, x, first)
    new = _add(x, h, tableau.weights, stages)
    stages.append(slope(t + h, new))
    free = [backend.stop_gradient(k) for k in stages]
    weights = cast(tuple[float, ...], tableau.error)
    index = next(i for i, weight in enumerate(weights) if weight != 0.0)
    error = _add((h * weights[index]) * free[index], h, weights[index + 1 :], free[index + 1 :])
    return _Attempt(new, stages, _error_norm(xp, settings, error, backend.stop_gradient(x), backend.stop_gradient(new)))


def _error_norm(xp: Any, settings: _Settings, error: Array, old: Array, new: Array) -> Array:
    """Root mean square over the neurons, relative to the tolerance; infinite where not finite."""
    scaled = error / (settings.atol + settings.rtol * xp.maximum(xp.abs(old), xp.abs(new)))
    norm = xp.sqrt(xp.vecdot(scaled, scaled) / scaled.shape[-1])
    return xp.where(xp.isfinite(norm), norm, xp.inf)


def _next_step(lower: Callable[..., Any], upper: Callable[..., Any], worst: Any, order: int, rejected: Any) -> Any:
    """Factor of the next step length; ``lower``/``upper`` are min and max of numbers or of arrays."""
    factor = 0.9 * upper(worst, 1e-10) ** (-1.0 / order)
    return lower(upper(factor, 0.2), 10.0 - 9.1 * rejected)  # no growth right after a rejection


def _interpolate(
    coefficients: tuple[tuple[float, ...], ...], x: Array, stages: Sequence[Array], theta: Any, h: Any
) -> Array:
    """State at the fraction theta of a step of length h."""
    for row, stage in zip(coefficients, stages, strict=True):
        weight: Any = 0.0
        for c in reversed(row):
            weight = (weight + c) * theta
        if any(row):
            x = x + (h * weight) * stage
    return x


def _first_step(
    xp: Any, settings: _Settings, slope: Callable[[Any, Array], Array], t0: Any, x: Array, first: Array, span: Array
) -> Array:
    """Length of the first step (Hairer, Norsett & Wanner, Solving ODEs I, II.4), for the worst of the batch."""
    power = 1.0 / settings.tableau.order
    d0, d1 = _error_norm(xp, settings, x, x, x), _error_norm(xp, settings, first, x, x)
    small = (d0 < 1e-5) | (d1 < 1e-5)
    step = xp.min(xp.where(small, 1e-3 * span, 0.01 * d0 / xp.where(small, 1.0, d1)))
    step = xp.where(step < span, step, span)
    second = slope(t0 + step, x + step * first)
    d2 = _error_norm(xp, settings, second - first, x, x) / step
    largest = xp.where(d1 > d2, d1, d2)
    usable = (largest > 1e-15) & xp.isfinite(largest)
    guess = xp.min(xp.where(usable, (0.01 / xp.where(usable, largest, 1.0)) ** power, 1e-3 * step))
    guess = xp.where(guess < 100.0 * step, guess, 100.0 * step)
    return xp.where(guess < span, guess, span)


def _host_run(
    settings: _Settings, arguments: Any, start: Array, times: Array, values: Array, pieces: list[Any] | None
) -> tuple[Array, Array, Array, Array]:
    """The adaptive loop on the host; appends accepted steps to ``pieces`` where wanted."""
    xp = checks.namespace({"times": times})
    backend = get_backend(xp)
    with getattr(backend, "quiet", nullcontext)():
        states, codes, steps, rejected = _host_steps(backend, xp, settings, arguments, start, times, values, pieces)
        counts = {"dtype": xp.int32, "device": device(times)}
        status = xp.zeros(start.shape[:-1], **counts) if codes is None else codes
        states, status = _finish(xp, start, states, status)
    return states, status, xp.asarray(steps, **counts), xp.asarray(rejected, **counts)


def _host_steps(
    backend: Backend,
    xp: Any,
    settings: _Settings,
    arguments: Any,
    start: Array,
    times: Array,
    values: Array,
    pieces: list[Any] | None,
) -> tuple[Array, Array, int, int]:
    tableau = settings.tableau
    eps = float(xp.finfo(start.dtype).eps)
    clock = [float(t) for t in times]
    exact = settings.sampled or tableau.dense is None
    t, x = clock[0], start
    first: Array = None
    h = 0.0
    codes: Array = None  # None while no member has failed
    finished = False  # every member failed
    last: tuple[float, float, Array, Sequence[Array]] | None = None
    steps = rejected = 0
    outputs = []
    kernel = getattr(backend, "circuit_slope", None) if isinstance(settings.field, _ConstantField) else None
    fixed = None if kernel is None else kernel(cast(_ConstantField, settings.field).variant, arguments, start)
    for k in range(1, len(clock)):
        goal = clock[k]
        end = goal if exact else (clock[-1] if pieces is not None else math.inf)
        z0, z1 = (values[k - 1, ...], values[k, ...]) if settings.sampled else (None, None)
        slope = fixed or _slope(xp, settings, arguments, clock[k - 1], goal, z0, z1)
        if first is None:
            first = slope(t, x)
            free = backend.stop_gradient(first)
            guess = _first_step(xp, settings, slope, t, backend.stop_gradient(x), free, times[-1] - times[0])
            h = float(backend.stop_gradient(guess))
        tried = 0
        while t < goal and not finished:
            if tried >= settings.max_steps:
                late = xp.full(start.shape[:-1], TOO_MANY_STEPS, dtype=xp.int32, device=device(times))
                codes = late if codes is None else xp.where(codes == SUCCESS, late, codes)
                finished = True
                break
            tried += 1
            clipped = t + h >= end
            length = end - t if clipped else h
            attempt = _attempt(backend, xp, settings, slope, t, length, x, first)
            norm = attempt.norm if codes is None else xp.where(codes == SUCCESS, attempt.norm, 0.0)
            worst = float(norm if norm.ndim == 0 else xp.max(norm))
            accept = worst <= 1.0
            h_next = length * _next_step(min, max, worst, tableau.order, not accept)
            if accept:
                steps += 1
                last = (t, length, x, attempt.stages)
                if pieces is not None:
                    pieces.append(last)
                t = end if clipped else t + length
                x, first = attempt.new, attempt.stages[-1]
                # a step cut short by the end of its interval says little about the next one
                h = max(h, h_next) if clipped else h_next
                continue
            rejected += 1
            h = h_next
            if h <= 16.0 * eps * max(abs(t), abs(clock[-1] - clock[0]) * eps):
                failed = norm > 1.0
                if codes is None:
                    codes = xp.zeros(start.shape[:-1], dtype=xp.int32, device=device(times))
                codes = xp.where(failed, STEP_TOO_SMALL, codes)
                x = xp.where(failed[..., None], xp.nan, x)
                first = xp.where(failed[..., None], xp.nan, first)
                finished = bool(xp.all(codes != SUCCESS))
        if finished:
            here = xp.full_like(start, xp.nan)
        elif exact or last is None:
            here = x
        else:
            t_old, length, x_old, stages = last
            dense = cast(tuple[tuple[float, ...], ...], tableau.dense)
            here = _interpolate(dense, x_old, stages, (goal - t_old) / length, length)
            if codes is not None:
                here = xp.where((codes == SUCCESS)[..., None], here, xp.nan)
        outputs.append(here)
    return xp.stack(outputs), codes, steps, rejected


class _Carry(NamedTuple):
    """Carry of the traced adaptive loop."""

    t: Array
    h: Array
    x: Array
    slope: Array
    # the last accepted step, for interpolation
    t_old: Array
    h_old: Array
    x_old: Array
    stages: tuple[Array, ...]
    status: Array
    steps: Array
    rejected: Array


def _traced_steps(
    backend: Backend, xp: Any, settings: _Settings, arguments: Any, start: Array, times: Array, values: Array
) -> tuple[Array, Array, Array, Array]:
    tableau = settings.tableau
    eps = float(xp.finfo(start.dtype).eps)
    exact = settings.sampled or tableau.dense is None
    span = times[-1] - times[0]
    xs: Tree = (times[:-1], times[1:])
    if settings.sampled:
        xs = (*xs, values[:-1, ...], values[1:, ...])

    def lower(a: Array, b: Any) -> Array:
        return xp.where(a < b, a, b)

    def upper(a: Array, b: Any) -> Array:
        return xp.where(a > b, a, b)

    def try_step(c: _Carry, slope: Callable[[Any, Array], Array], end: Any) -> _Carry:
        clipped = c.t + c.h >= end
        h = xp.where(clipped, end - c.t, c.h)
        attempt = _attempt(backend, xp, settings, slope, c.t, h, c.x, c.slope)
        alive = c.status == SUCCESS
        worst = xp.max(xp.where(alive, attempt.norm, 0.0))
        accept = worst <= 1.0
        h_next = h * _next_step(lower, upper, worst, tableau.order, xp.astype(~accept, h.dtype))
        h_next = xp.where(accept & clipped, upper(c.h, h_next), h_next)
        stuck = ~accept & (h_next <= 16.0 * eps * upper(xp.abs(c.t), xp.abs(span) * eps))
        failed = stuck & alive & (attempt.norm > 1.0)
        moves = (accept & alive)[..., None]

        def move(new: Array, old: Array) -> Array:
            return xp.where(failed[..., None], xp.nan, xp.where(moves, new, old))

        count = xp.astype(accept, c.steps.dtype)
        return _Carry(
            t=xp.where(accept, xp.where(clipped, end, c.t + h), c.t),
            h=backend.stop_gradient(h_next),
            x=move(attempt.new, c.x),
            slope=move(attempt.stages[-1], c.slope),
            # of the last attempt: the loop ends, and looks at them, after an accepted one only
            t_old=c.t,
            h_old=h,
            x_old=c.x,
            stages=tuple(attempt.stages),
            status=xp.where(failed, xp.asarray(STEP_TOO_SMALL, dtype=c.status.dtype), c.status),
            steps=c.steps + count,
            rejected=c.rejected + 1 - count,
        )

    def interval(c: _Carry, inputs: Tree) -> tuple[_Carry, Array]:
        t0, t1, z0, z1 = inputs if settings.sampled else (*inputs, None, None)
        slope = _slope(xp, settings, arguments, t0, t1, z0, z1)
        end = t1 if exact else xp.full_like(t1, xp.inf)
        before = c.steps + c.rejected

        def going(c: _Carry) -> Array:
            return (c.t < t1) & xp.any(c.status == SUCCESS) & (c.steps + c.rejected - before < settings.max_steps)

        def body(c: _Carry) -> _Carry:
            return try_step(_Carry(*c), slope, end)

        c = _Carry(*backend.while_loop(going, body, c, max_steps=settings.max_steps, differentiable=True))
        late = (c.t < t1) & (c.status == SUCCESS)
        c = c._replace(status=xp.where(late, xp.asarray(TOO_MANY_STEPS, dtype=c.status.dtype), c.status))
        if exact:
            here = c.x
        else:
            dense = cast(tuple[tuple[float, ...], ...], tableau.dense)
            here = _interpolate(dense, c.x_old, list(c.stages), (t1 - c.t_old) / c.h_old, c.h_old)
        return c, xp.where((c.status == SUCCESS)[..., None], here, xp.nan)

    slope = _slope(
        xp, settings, arguments, *tree_map(lambda leaf: leaf[0, ...], xs), *(() if settings.sampled else (None, None))
    )
    first = slope(times[0], start)
    free_x, free_slope = backend.stop_gradient(start), backend.stop_gradient(first)
    h = _first_step(xp, settings, slope, times[0], free_x, free_slope, span)
    counts = {"dtype": xp.int32, "device": device(times)}
    zero = xp.zeros((), **counts)
    carry = _Carry(
        t=times[0],
        h=backend.stop_gradient(h),
        x=start,
        slope=first,
        t_old=times[0],
        h_old=xp.ones_like(times[0]),
        x_old=start,
        stages=(first,) * (len(tableau.nodes) + 1),
        status=xp.zeros(start.shape[:-1], **counts),
        steps=zero,
        rejected=zero,
    )
    carry, states = backend.scan(interval, carry, xs)
    carry = _Carry(*carry)
    return states, carry.status, carry.steps, carry.rejected
