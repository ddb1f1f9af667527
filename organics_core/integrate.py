"""Integrators as data, one loop for fixed steps and one for adaptive steps.

A state is a (named) tuple of arrays (..., n); leading axes are batch axes. The
whole batch takes the same steps, chosen by its worst member; a member that
diverges is set aside with its status while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast

from array_api_compat import device, is_array_api_obj

from . import _checks
from ._linalg import broadcast_shapes
from .backend import Array, Backend, Tree, get_backend, to_numpy, tree_leaves, tree_map
from .circuit import Circuit, State, _resting_state, prepare, validate_circuit, validate_state
from .dynamics import field as circuit_field


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


class DenseOutput(NamedTuple):
    """The solution between the accepted steps, as piecewise polynomials; call it with times.

    Attributes
    ----------
    starts, steps : arrays (S,)
        Start and length of every accepted step.
    state : tuple of arrays (S, ..., n)
        State at the start of every step.
    stages : tuple of trees
        Slopes of every step, stage by stage.
    coefficients : tuple
        The method's interpolation coefficients.
    """

    starts: Array
    steps: Array
    state: Tree
    stages: tuple[Tree, ...]
    coefficients: tuple[tuple[float, ...], ...]

    def __call__(self, times: Array) -> Tree:
        """State at ``times`` (T,), each leaf (T, ..., n); ValueError outside the interval covered."""
        xp = _checks.namespace({"times": times, "starts": self.starts})
        end = float(self.starts[-1] + self.steps[-1])
        slack = 1e-9 * (end - float(self.starts[0]))
        low, high = float(xp.min(times)), float(xp.max(times))
        if not (float(self.starts[0]) - slack <= low and high <= end + slack):
            raise ValueError(f"times must lie in [{float(self.starts[0]):g}, {end:g}], got [{low:g}, {high:g}]")
        index = xp.searchsorted(self.starts, times, side="right") - 1
        index = xp.where(index < 0, xp.zeros_like(index), index)
        h = xp.take(self.steps, index, axis=0)
        theta = (times - xp.take(self.starts, index, axis=0)) / h
        stages = [tree_map(lambda leaf: xp.take(leaf, index, axis=0), stage) for stage in self.stages]
        state = tree_map(lambda leaf: xp.take(leaf, index, axis=0), self.state)
        return _interpolate(xp, self.coefficients, state, stages, theta, h)


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
    tableau: Tableau
    sampled: bool
    substeps: int
    rtol: float
    atol: float
    max_steps: int
    differentiable: bool


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
    _checks.one_of("variant", variant, _checks.VARIANTS)
    _checks.one_of("drive", drive, ("auto", "constant", "sampled"))
    others = {} if state0 is None else validate_state(state0, "state0")
    constant: Array = z if is_array_api_obj(z) else None
    if constant is None and not callable(z):
        raise TypeError(f"z must be an array or a function of time, got {_checks.describe(z)}")
    xp = _checks.namespace({"times": times, "w": circuit.w if isinstance(circuit, tuple) else circuit})
    times = _check_times(xp, times)
    if constant is None:
        sample = z(times[0])  # type: ignore[operator]
        if not is_array_api_obj(sample):
            raise TypeError(f"z(t) must return an array, got {_checks.describe(sample)}")
    else:
        sampled = drive == "sampled" or (drive == "auto" and constant.ndim >= 2 and constant.shape[0] == times.shape[0])
        if sampled and (constant.ndim < 2 or constant.shape[0] != times.shape[0]):
            raise ValueError(
                f"a sampled z must have shape ({times.shape[0]}, ..., n), one value per time, "
                f"got {tuple(constant.shape)}"
            )
        sample = constant[0, ...] if sampled else constant
    validate_circuit(circuit, values=True, **{"z" if constant is not None else "z(t)": sample}, **others)
    if constant is not None:
        _checks.values(xp, "z", constant, "any")
    for name, value in others.items():
        _checks.values(xp, name, value, "any")
    circuit, sample, times, *start = prepare(xp, circuit, sample, times, *others.values())
    rest = _resting_state(xp, circuit, sample)
    if start:
        shape = broadcast_shapes(*(tuple(part.shape) for part in (*start, rest.y)))
        initial = State(*(xp.broadcast_to(part, shape) for part in start))
    else:
        initial = rest

    field: Callable[..., Tree]
    arguments: Any = circuit
    values: Array = None
    if constant is None:
        field = _CallableField(z, variant)
    elif sampled:
        field, values = _SampledField(variant), xp.astype(constant, times.dtype, copy=False)
    else:
        field, arguments = _ConstantField(variant), (circuit, sample)
    tau = State(circuit.tau_y, circuit.tau_a)
    return _integrate(
        xp,
        field,
        arguments,
        initial,
        times,
        tau,
        values,
        method=method,
        rtol=rtol,
        atol=atol,
        substeps=substeps,
        max_steps=max_steps,
        dense=dense,
    )


@dataclass(frozen=True)
class _ConstantField:
    variant: str

    def __call__(self, xp: Any, t: Array, state: State, arguments: Any, z: Array) -> State:
        circuit, drive = arguments
        return circuit_field(xp, Circuit._make(circuit), State(*state), drive, self.variant)


@dataclass(frozen=True)
class _SampledField:
    variant: str

    def __call__(self, xp: Any, t: Array, state: State, arguments: Any, z: Array) -> State:
        return circuit_field(xp, Circuit._make(arguments), State(*state), z, self.variant)


@dataclass(frozen=True)
class _CallableField:
    z: Callable[[Array], Array]
    variant: str

    def __call__(self, xp: Any, t: Array, state: State, arguments: Any, z: Array) -> State:
        drive = xp.astype(self.z(t), state[0].dtype, copy=False)
        return circuit_field(xp, Circuit._make(arguments), State(*state), drive, self.variant)


@dataclass(frozen=True)
class _UserField:
    function: Callable[[Array, Tree], Tree]

    def __call__(self, xp: Any, t: Array, state: Tree, arguments: Any, z: Array) -> Tree:
        return self.function(t, state)


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
        raise TypeError(f"state0 must be a (named) tuple of arrays, got {_checks.describe(state0)}")
    leaves = {f"state0[{i}]": leaf for i, leaf in enumerate(tree_leaves(state0))}
    xp = _checks.namespace({"times": times, **leaves})
    times = _check_times(xp, times)
    dtype = xp.result_type(*leaves.values())
    start = tree_map(lambda leaf: xp.astype(leaf, dtype, copy=False), state0)
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
    _checks.values(xp, "times", times, "any")
    if get_backend(xp).is_concrete(times) and not bool(xp.all(times[1:] > times[:-1])):
        raise ValueError("times must be strictly increasing")
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
        tableau = method
    else:
        _checks.one_of("method", method, INTEGRATORS)
        tableau = INTEGRATORS[method]
    rtol, atol = _checks.positive_number("rtol", rtol), _checks.positive_number("atol", atol)
    substeps = _checks.positive_integer("substeps", substeps)
    max_steps = _checks.positive_integer("max_steps", max_steps)
    if tableau.exponential and tau is None:
        raise ValueError(f"method {tableau.name!r} needs tau, the time constants of the linear decay")
    if dense and (tableau.dense is None or tableau.error is None):
        raise ValueError(
            f"dense=True needs an adaptive method with interpolation, such as 'dopri5', not {tableau.name!r}"
        )
    backend = get_backend(xp)
    concrete = all(
        backend.is_concrete(leaf) for leaf in tree_leaves((arguments, start, times, values)) if leaf is not None
    )
    if dense:
        if not concrete:
            raise ValueError(
                "dense=True cannot be traced: the number of steps is not known; ask for output times instead"
            )
        settings = _Settings(field, tableau, values is not None, substeps, rtol, atol, max_steps, False)
        return _run_dense(backend, xp, settings, arguments, start, times, values)
    settings = _Settings(field, tableau, values is not None, substeps, rtol, atol, max_steps, True)
    run: Callable[..., Any] = _compiled(cast(Hashable, backend)) if concrete else _run
    try:
        hash(settings)
    except TypeError:
        run = _run
    states, status, steps, rejected = run(settings, arguments, start, times, tau, values)
    return Trajectory(times, type(start)._make(states) if hasattr(start, "_make") else states, status, steps, rejected)


@cache
def _compiled(backend: Any) -> Callable[..., Any]:
    """The whole run, compiled once per backend, settings and shapes, where the library compiles loops."""
    return backend.compile(_run, static=(0,), loops=True)


def _run(settings: _Settings, arguments: Any, start: Tree, times: Array, tau: Tree, values: Array) -> Any:
    xp = _checks.namespace({"times": times})
    backend = get_backend(xp)
    solve = _run_fixed if settings.tableau.error is None else _run_adaptive
    states, status, steps, rejected = solve(backend, xp, settings, arguments, start, times, tau, values)
    states = tree_map(lambda first, rest: xp.concat([first[None, ...], rest]), start, states)
    fine: Array = True
    for leaf in tree_leaves(states):
        fine = fine & xp.all(xp.isfinite(leaf), axis=-1)
    states = tree_map(lambda leaf: xp.where(fine[..., None], leaf, xp.full_like(leaf, xp.nan)), states)
    lost = xp.astype(~fine[-1, ...], status.dtype)
    status = xp.where((status == SUCCESS) & (lost > 0), NOT_FINITE * lost, status)
    return states, status, steps, rejected


def _segment(xp: Any, settings: _Settings, times: Array, values: Array) -> tuple[Tree, Callable[[Array, Tree], Array]]:
    """Per-interval inputs of the loops, and the drive at a time inside an interval."""
    xs: Tree = (times[:-1], times[1:])
    if not settings.sampled:
        return xs, lambda t, x: None
    xs = (*xs, values[:-1, ...], values[1:, ...])

    def drive(t: Array, x: Tree) -> Array:
        t0, t1, z0, z1 = x
        return z0 + ((t - t0) / (t1 - t0)) * (z1 - z0)

    return xs, drive


def _increments(
    tableau: Tableau, slope: Callable[[Array, Tree], Tree], t: Array, h: Array, state: Tree, first: Tree
) -> tuple[list[Tree], Tree]:
    """The stages of one Runge-Kutta step, and the weighted slope (no factor h)."""
    stages = [first]
    for node, row in zip(tableau.nodes[1:], tableau.stages[1:], strict=True):
        stages.append(slope(t + node * h, _advance(state, stages, row, h)))
    return stages, _combine(stages, tableau.weights)


def _combine(stages: list[Tree], weights: tuple[float, ...]) -> Tree:
    terms = [(weight, stage) for weight, stage in zip(weights, stages, strict=True) if weight != 0.0]

    def total(*parts: Array) -> Array:
        result = terms[0][0] * parts[0]
        for (weight, _), part in zip(terms[1:], parts[1:], strict=True):
            result = result + weight * part
        return result

    return tree_map(total, *(stage for _, stage in terms))


def _advance(state: Tree, stages: list[Tree], weights: tuple[float, ...], h: Array) -> Tree:
    return tree_map(lambda x, k: x + h * k, state, _combine(stages, weights))


def _run_fixed(
    backend: Backend, xp: Any, settings: _Settings, arguments: Any, start: Tree, times: Array, tau: Tree, values: Array
) -> tuple[Tree, Array, Array, Array]:
    tableau, substeps = settings.tableau, settings.substeps
    xs, drive = _segment(xp, settings, times, values)

    def interval(state: Tree, x: Tree) -> tuple[Tree, Tree]:
        h = (x[1] - x[0]) / substeps

        def slope(t: Array, at: Tree) -> Tree:
            return settings.field(xp, t, at, arguments, drive(t, x))

        def one(state: Tree, k: Array) -> tuple[Tree, None]:
            t = x[0] + k * h
            _, total = _increments(tableau, slope, t, h, state, slope(t, state))
            if tableau.exponential:
                return tree_map(lambda s, k, c: s - c * xp.expm1(-h / c) * k, state, total, tau), None
            return tree_map(lambda s, k: s + h * k, state, total), None

        if substeps == 1:
            state, _ = one(state, 0.0)
        else:
            counter = xp.arange(substeps, dtype=times.dtype, device=device(times))
            state, _ = backend.scan(one, state, counter)
        return state, state

    _, states = backend.scan(interval, start, xs)
    batch = tree_leaves(start)[0].shape[:-1]
    zero = xp.zeros((), dtype=xp.int32, device=device(times))
    steps = xp.full((), substeps * (times.shape[0] - 1), dtype=xp.int32, device=device(times))
    return states, xp.zeros(batch, dtype=xp.int32, device=device(times)), steps, zero


class _Adaptive(NamedTuple):
    """Carry of the adaptive loop."""

    t: Array
    h: Array
    state: Tree
    slope: Tree
    # the last accepted step, for interpolation
    t_old: Array
    h_old: Array
    state_old: Tree
    stages: tuple[Tree, ...]
    status: Array
    steps: Array
    rejected: Array


def _error_norm(xp: Any, settings: _Settings, error: Tree, old: Tree, new: Tree) -> Array:
    """Root mean square of the error over the neurons, relative to the tolerance; infinite where not finite."""
    total: Any = 0.0
    count = 0
    for e, x, y in zip(tree_leaves(error), tree_leaves(old), tree_leaves(new), strict=True):
        x, y = xp.abs(x), xp.abs(y)
        scaled = e / (settings.atol + settings.rtol * xp.where(x > y, x, y))
        total = total + xp.sum(scaled * scaled, axis=-1)
        count += int(e.shape[-1])
    norm = xp.sqrt(total / count)
    return xp.where(xp.isfinite(norm), norm, xp.full_like(norm, xp.inf))


def _try_step(
    backend: Backend, xp: Any, settings: _Settings, slope: Callable[[Array, Tree], Tree], carry: _Adaptive, end: Array
) -> _Adaptive:
    """Try one step of the adaptive method; ``end`` bounds it (infinite where steps are free)."""
    tableau = settings.tableau
    assert tableau.error is not None
    room = end - carry.t
    clipped = carry.h >= room
    h = xp.where(clipped, room, carry.h)
    stages, total = _increments(tableau, slope, carry.t, h, carry.state, carry.slope)
    new = tree_map(lambda s, k: s + h * k, carry.state, total)
    t_new = xp.where(clipped, end, carry.t + h)
    last = slope(t_new, new)
    error = tree_map(lambda k: h * k, _combine([*stages, last], tableau.error))
    detached = [tree_map(backend.stop_gradient, tree) for tree in (error, carry.state, new)]
    norm = _error_norm(xp, settings, *detached)
    alive = carry.status == SUCCESS
    worst = xp.max(xp.where(alive, norm, xp.zeros_like(norm)))
    accept = worst <= 1.0
    safe = xp.where(xp.isfinite(worst) & (worst > 1e-10), worst, xp.full_like(worst, 1e-10))
    factor = 0.9 * safe ** (-1.0 / tableau.order)
    factor = xp.where(factor > 10.0, xp.full_like(factor, 10.0), factor)
    factor = xp.where((factor < 0.2) | ~xp.isfinite(worst), xp.full_like(factor, 0.2), factor)
    factor = xp.where(~accept & (factor > 0.9), xp.full_like(factor, 0.9), factor)
    h_next = h * factor
    # a step cut short by the end of its interval says little about the next one
    h_next = xp.where(clipped & accept & (carry.h > h_next), carry.h, h_next)
    eps = float(xp.finfo(h.dtype).eps)
    resolution = 16.0 * eps * xp.where(xp.abs(carry.t) > h, xp.abs(carry.t), h)
    stuck = ~accept & (h_next <= resolution)
    failed = stuck & alive & (norm > 1.0)
    status = xp.where(failed, STEP_TOO_SMALL * xp.ones_like(carry.status), carry.status)
    moves = accept & alive[..., None]

    def pick(new_leaf: Array, old_leaf: Array) -> Array:
        kept = xp.where(moves, new_leaf, old_leaf)
        return xp.where(failed[..., None], xp.full_like(kept, xp.nan), kept)

    count = xp.astype(accept, carry.steps.dtype)
    return _Adaptive(
        t=xp.where(accept, t_new, carry.t),
        h=backend.stop_gradient(h_next),
        state=tree_map(pick, new, carry.state),
        slope=tree_map(pick, last, carry.slope),
        t_old=xp.where(accept, carry.t, carry.t_old),
        h_old=xp.where(accept, h, carry.h_old),
        state_old=tree_map(lambda now, old: xp.where(accept, now, old), carry.state, carry.state_old),
        stages=tuple(
            tree_map(lambda now, old: xp.where(accept, now, old), k, old)
            for k, old in zip((*stages, last), carry.stages, strict=True)
        ),
        status=status,
        steps=carry.steps + count,
        rejected=carry.rejected + 1 - count,
    )


def _interpolate(
    xp: Any, coefficients: tuple[tuple[float, ...], ...], state: Tree, stages: Any, theta: Array, h: Array
) -> Tree:
    """State at a fraction theta of the step; theta and h () or (T,), leaves with matching leading axis."""
    weights = []
    for row in coefficients:
        weight: Any = 0.0
        for c in reversed(row):
            weight = (weight + c) * theta
        weights.append(h * weight)

    def combine(x: Array, *ks: Array) -> Array:
        extra = x.ndim - theta.ndim
        result = x
        for weight, k in zip(weights, ks, strict=True):
            result = result + weight[(..., *(None,) * extra)] * k
        return result

    return tree_map(combine, state, *stages)


def _initial_carry(
    backend: Backend, xp: Any, settings: _Settings, slope: Callable[[Array, Tree], Tree], start: Tree, times: Array
) -> _Adaptive:
    """The first step by Hairer, Norsett & Wanner (Solving ODEs I, II.4), for the worst member of the batch."""
    order = settings.tableau.order
    t0 = times[0]
    first = slope(t0, start)

    def norm(tree: Tree) -> Array:
        detached = tree_map(backend.stop_gradient, tree)
        return _error_norm(xp, settings, detached, free_start, free_start)

    free_start = tree_map(backend.stop_gradient, start)
    d0, d1 = norm(start), norm(first)
    small = (d0 < 1e-5) | (d1 < 1e-5)
    h0 = xp.where(small, xp.full_like(d0, 1e-6), 0.01 * d0 / xp.where(small, xp.ones_like(d1), d1))
    step = xp.min(h0)
    moved = tree_map(lambda x, k: x + step * k, free_start, tree_map(backend.stop_gradient, first))
    second = slope(t0 + step, moved)
    d2 = norm(tree_map(lambda x, y: x - y, second, first)) / step
    largest = xp.where(d1 > d2, d1, d2)
    flat = ~(largest > 1e-15) | ~xp.isfinite(largest)
    h1 = xp.where(
        flat,
        step * 1e-3 + xp.zeros_like(largest),
        (0.01 / xp.where(flat, xp.ones_like(largest), largest)) ** (1.0 / order),
    )
    guess = xp.min(h1)
    guess = xp.where(guess > 100.0 * step, 100.0 * step, guess)
    span = times[-1] - times[0]
    guess = xp.where(guess > span, span, guess)
    floor = 1e3 * float(xp.finfo(times.dtype).eps) * (xp.abs(t0) + xp.abs(times[1]))
    guess = xp.where(guess < floor, floor, guess)
    zero = xp.zeros((), dtype=xp.int32, device=device(times))
    batch = tree_leaves(start)[0].shape[:-1]
    stages = tuple(first for _ in range(len(settings.tableau.nodes) + 1))
    return _Adaptive(
        t=t0,
        h=backend.stop_gradient(guess),
        state=start,
        slope=first,
        t_old=t0,
        h_old=xp.ones_like(t0),
        state_old=start,
        stages=stages,
        status=xp.zeros(batch, dtype=xp.int32, device=device(times)),
        steps=zero,
        rejected=zero,
    )


def _run_adaptive(
    backend: Backend, xp: Any, settings: _Settings, arguments: Any, start: Tree, times: Array, tau: Tree, values: Array
) -> tuple[Tree, Array, Array, Array]:
    xs, drive = _segment(xp, settings, times, values)
    coefficients = settings.tableau.dense
    # Without interpolation, or with a drive that has kinks at the times, steps end on the times.
    exact = settings.sampled or coefficients is None
    infinity = xp.full((), xp.inf, dtype=times.dtype, device=device(times))

    def slope_in(x: Tree) -> Callable[[Array, Tree], Tree]:
        return lambda t, state: settings.field(xp, t, state, arguments, drive(t, x))

    def interval(carry: _Adaptive, x: Tree) -> tuple[_Adaptive, Tree]:
        t1 = x[1]
        end = t1 if exact else infinity
        before = carry.steps + carry.rejected

        def going(c: _Adaptive) -> Array:
            return (c.t < t1) & xp.any(c.status == SUCCESS) & (c.steps + c.rejected - before < settings.max_steps)

        def body(c: _Adaptive) -> _Adaptive:
            return _try_step(backend, xp, settings, slope_in(x), _Adaptive(*c), end)

        carry = _Adaptive(
            *backend.while_loop(
                going, body, carry, max_steps=settings.max_steps, differentiable=settings.differentiable
            )
        )
        late = (carry.t < t1) & (carry.status == SUCCESS)
        carry = carry._replace(status=xp.where(late, TOO_MANY_STEPS * xp.ones_like(carry.status), carry.status))
        if exact:
            here = carry.state
        else:
            theta = (t1 - carry.t_old) / carry.h_old
            assert coefficients is not None
            here = _interpolate(xp, coefficients, carry.state_old, carry.stages, theta, carry.h_old)
        alive = (carry.status == SUCCESS)[..., None]
        output = tree_map(lambda leaf: xp.where(alive, leaf, xp.full_like(leaf, xp.nan)), here)
        return carry, output

    first = tree_map(lambda leaf: leaf[0, ...], xs)
    carry = _initial_carry(backend, xp, settings, slope_in(first), start, times)
    carry, states = backend.scan(interval, carry, xs)
    carry = _Adaptive(*carry)
    return states, carry.status, carry.steps, carry.rejected


def _run_dense(
    backend: Backend, xp: Any, settings: _Settings, arguments: Any, start: Tree, times: Array, values: Array
) -> Trajectory:
    """Step by step on the host, keeping every accepted step."""
    xs, drive = _segment(xp, settings, times, values)
    coefficients = settings.tableau.dense
    assert coefficients is not None
    # a sampled drive has kinks at the times, a smooth one only an end
    ends = list(range(1, times.shape[0])) if settings.sampled else [times.shape[0] - 1]
    pieces: list[_Adaptive] = []
    carry: _Adaptive | None = None
    for k in ends:
        x = tree_map(lambda leaf, k=k: leaf[k - 1, ...], xs)

        def slope(t: Array, state: Tree, x: Tree = x) -> Tree:
            return settings.field(xp, t, state, arguments, drive(t, x))

        if carry is None:
            carry = _initial_carry(backend, xp, settings, slope, start, times)
        tried = 0
        while bool(carry.t < times[k]) and bool(xp.any(carry.status == SUCCESS)):
            if tried >= settings.max_steps:
                carry = carry._replace(
                    status=xp.where(carry.status == SUCCESS, TOO_MANY_STEPS * xp.ones_like(carry.status), carry.status)
                )
                break
            before = int(carry.steps)
            carry = _try_step(backend, xp, settings, slope, carry, times[k])
            tried += 1
            if int(carry.steps) > before:
                pieces.append(carry)
    assert carry is not None
    if not pieces:
        nan = tree_map(
            lambda leaf: xp.full((times.shape[0], *leaf.shape), xp.nan, dtype=leaf.dtype, device=device(leaf)), start
        )
        return Trajectory(times, nan, carry.status, carry.steps, carry.rejected, None)
    interpolant = DenseOutput(
        xp.stack([piece.t_old for piece in pieces]),
        xp.stack([piece.h_old for piece in pieces]),
        tree_map(lambda *leaves: xp.stack(list(leaves)), *(piece.state_old for piece in pieces)),
        tuple(
            tree_map(lambda *leaves: xp.stack(list(leaves)), *(piece.stages[i] for piece in pieces))
            for i in range(len(pieces[0].stages))
        ),
        coefficients,
    )
    covered = interpolant.starts[-1] + interpolant.steps[-1]
    inside = times <= covered * (1 + 4 * float(xp.finfo(times.dtype).eps))
    states = interpolant(xp.where(inside, times, xp.ones_like(times) * times[0]))

    def blank(leaf: Array) -> Array:
        reached = xp.reshape(inside, (times.shape[0],) + (1,) * (leaf.ndim - 1))
        return xp.where(reached, leaf, xp.full_like(leaf, xp.nan))

    return Trajectory(times, tree_map(blank, states), carry.status, carry.steps, carry.rejected, interpolant)
