"""Trajectories: the states of a run at its output times, their interpolant, and events."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from . import checks
from .backend import Array, Tree, get_backend, to_numpy, tree_leaves, tree_map
from .drive import is_concrete
from .methods import Method
from .model import Layout

SUCCESS, STEP_TOO_SMALL, TOO_MANY_STEPS, NOT_FINITE, STIFF = 0, 1, 2, 3, 4
MESSAGES = {
    SUCCESS: "reached the last time",
    STEP_TOO_SMALL: "stopped: the step size fell to the resolution of the clock; the solution is singular or diverges, "
    "or its drive is not finite there",
    TOO_MANY_STEPS: "stopped: max_steps reached before the last time; raise max_steps or loosen rtol and atol",
    NOT_FINITE: "stopped: the state is no longer finite; the solution diverges, or the step is too long",
    STIFF: "stopped: max_steps would be reached before the last time, and stability, not accuracy, limits the steps: "
    "the problem is stiff; choose method='rodas5p'",
}


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
        if times.shape[0] and not (-slack <= float(xp.min(local)) and float(xp.max(local)) <= end + slack):
            raise ValueError(
                f"times must lie in [{self.origin:.12g}, {self.origin + end:.12g}], "
                f"got [{float(xp.min(times)):.12g}, {float(xp.max(times)):.12g}]"
            )
        return self.at(local)

    def at(self, local: Array) -> Tree:
        """State at times (T,) counted from the start of the run, unchecked: as exact wherever the clock starts."""
        xp = checks.namespace({"times": local})
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
        In seconds, rising. First derivatives see that it moves, and those of the states, too.
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
            settled = f"settled at {float(self.settled):.12g} s; later states repeat that one"
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
                f"later must begin at the last time of this run, {float(self.times[-1])!r}, "
                f"got {float(later.times[0])!r}"
            )
        state = tree_map(lambda one, two: xp.concat([one, two[1:, ...]], axis=0), self.state, later.state)
        return later._replace(
            times=xp.concat([self.times, later.times[1:]]),
            state=state,
            status=xp.where(self.status == SUCCESS, later.status, self.status),
            steps=self.steps + later.steps,
            rejected=self.rejected + later.rejected,
            interpolant=None,
            events=tuple(joined(xp, one, two) for one, two in zip(self.events, later.events, strict=True)),
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


def find_event(xp: Any, run: DenseOutput, event: Callable[..., Array]) -> Event:
    """Where ``event`` changes sign: between the ends of the steps, then by bisection on the interpolant."""
    ends = xp.concat([run.starts, (run.starts + run.steps)[-1:]])

    def values(local: Array) -> Array:
        state = run.at(local)
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
    found = np.sign(to_numpy(values(ends)))  # whose products do not underflow
    at = np.argwhere((found[:-1] * found[1:] < 0) | ((found[1:] == 0) & (found[:-1] != 0)))
    where, free = {"dtype": ends.dtype, "device": device(ends)}, get_backend(xp).stop_gradient
    moments, exact, states = [], [], []
    for index in at:
        k, member = int(index[0]), tuple(int(i) for i in index[1:])
        low, high, sign = float(ends[k]), float(ends[k + 1]), float(found[(k, *member)])
        for _ in range(60):
            middle = 0.5 * (low + high)
            if middle in (low, high):
                break
            here = values(xp.asarray([middle], **where))
            if sign * float(free(here[(0, *member)])) > 0:
                low = middle
            else:
                high = middle
        moments.append(high)
        delta = float(xp.finfo(ends.dtype).eps) ** (1.0 / 3.0) * (float(ends[k + 1]) - float(ends[k]))
        near = xp.asarray([max(high - delta, float(ends[k])), high, min(high + delta, float(ends[k + 1]))], **where)
        around = values(near)
        before, value, after = (xp.astype(around[(i, *member)], ends.dtype, copy=False) for i in range(3))
        speed = free(after - before) / (near[2] - near[0])
        known = xp.isfinite(speed) & (speed != 0) & xp.isfinite(value)
        # nothing but a derivative, by the implicit function theorem
        moment = near[1] - xp.where(known, (value - free(value)) / xp.where(known, speed, 1.0), 0.0)
        exact.append(moment)
        state = run.at(moment[None, ...])
        states.append(tree_map(lambda leaf, member=member: leaf[(0, *member, ...)], state))
    order = np.argsort(moments, kind="stable")
    clock = xp.stack([exact[i] + run.origin for i in order]) if exact else xp.zeros((0,), **where)
    chosen = [states[i] for i in order]
    sizes = run.layout.sizes
    parts = [
        xp.stack([state[i] for state in chosen]) if chosen else xp.zeros((0, sizes[i]), **where)
        for i in range(len(sizes))
    ]
    members = xp.asarray([int(k) for i in order for k in at[i][1:]], dtype=xp.int64, device=device(ends))
    return Event(clock, xp.reshape(members, (len(moments), found.ndim - 1)), run.layout.make(parts))


def no_event(xp: Any, layout: Layout, like: Array) -> Event:
    """Of a run without any step, whose states are like ``like`` (..., n)."""
    where = {"device": device(like)}
    parts = [xp.zeros((0, size), dtype=like.dtype, **where) for size in layout.sizes]
    members = xp.zeros((0, like.ndim - 1), dtype=xp.int64, **where)
    return Event(xp.zeros((0,), dtype=like.dtype, **where), members, layout.make(parts))


def joined(xp: Any, one: Event, two: Event) -> Event:
    return Event(
        xp.concat([one.times, two.times]),
        xp.concat([one.members, two.members], axis=0),
        tree_map(lambda a, b: xp.concat([a, b], axis=0), one.state, two.state),
    )
