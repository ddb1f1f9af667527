"""Cognitive tasks of NeuroGym as data: trials, and the right action at every step of them.

NeuroGym: Molano-Mazón et al. (2022); it is an extra, imported where trials are made.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
PREFIX = "neurogym:"

TEN: dict[str, dict[str, Any]] = {
    "PerceptualDecisionMaking-v0": {"criterion": 0.86},
    "ContextDecisionMaking-v0": {"criterion": 0.90, "task_options": {"use_expl_context": True}},
    "MultiSensoryIntegration-v0": {"criterion": 0.90},
    "DelayMatchSample-v0": {"criterion": 0.95},
    "DelayMatchCategory-v0": {"criterion": 0.95, "task_options": {"dim_ring": 8}},  # of 2 both categories look alike
    "DelayPairedAssociation-v0": {"criterion": 0.95},
    "DelayComparison-v0": {"criterion": 0.95},
    "GoNogo-v0": {"criterion": 0.95},
    "IntervalDiscrimination-v0": {"criterion": 0.95},
    "ReachingDelayResponse-v0": {"criterion": 0.95, "epochs": 60, "schedule": "step"},
}
"""Fields of Config by task: the ten that are tried here."""


class Trials(NamedTuple):
    """Trials of one task, which end together: one that is shorter than others begins after silence.

    Attributes
    ----------
    x : float32 array (N, T, k)
        Observations; zeros before the trial.
    y : array (N, T), or float32 (N, T, m)
        The right action; before the trial that of its first step.
    conditions : tuple of dicts
        What NeuroGym says of each trial.
    periods : tuple of dicts of (int, int)
        First step of each period, and the one after its last.
    """

    x: Array
    y: Array
    conditions: tuple[dict[str, Any], ...]
    periods: tuple[dict[str, tuple[int, int]], ...]

    def ending_together(self, steps: int) -> Trials:
        """The same trials after more silence, ``steps`` long in all."""
        more = steps - self.x.shape[1]
        x, y = (np.concatenate([np.repeat(v[:, :1], more, 1), v], 1) for v in (self.x, self.y))
        x[:, :more] = 0
        periods = tuple({name: (a + more, b + more) for name, (a, b) in own.items()} for own in self.periods)
        return Trials(x, y, self.conditions, periods)


def environment(task: str, options: dict[str, Any]) -> Any:
    """The environment of a task ``neurogym:NAME``.

    Raises
    ------
    ImportError
        Naming the extra.
    ValueError
        For a name that NeuroGym does not have, with those that it has, and for
        options that its task refuses.
    """
    try:
        import neurogym
        from neurogym.envs.registration import ALL_EXTENDED_ENVS
    except ImportError as error:
        raise ImportError(
            f'the task {task} needs {error.name or "neurogym"}: pip install "organics-core[neurogym]"'
        ) from None
    name = task.removeprefix(PREFIX)
    if name not in ALL_EXTENDED_ENVS:
        others = ", ".join(sorted(set(ALL_EXTENDED_ENVS) - set(TEN)))
        raise ValueError(
            f"task must be {PREFIX} and a name that NeuroGym has, got {task!r}: tried here are {', '.join(TEN)}; "
            f"it also has {others}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium misses what only rendering needs
            return neurogym.make(name, **options).unwrapped
    except TypeError as error:
        raise ValueError(f"{task} does not take the task options {options!r}: {error}") from None


def make_trials(task: str, options: dict[str, Any], count: int, seed: int) -> Trials:
    """Trials of a task.

    Parameters
    ----------
    task : str
        ``neurogym:NAME``.
    options : dict
        Of the environment.
    count, seed : int

    Returns
    -------
    Trials

    Raises
    ------
    ImportError, ValueError
        As :func:`environment`, and for a task without a right action at every step.
    """
    env = environment(task, options)
    env.seed(seed)
    seen, right, conditions, periods = [], [], [], []
    for _ in range(count):
        try:
            env.new_trial()
            x, y = env.ob, env.gt
        except AttributeError:
            raise ValueError(f"{task} has no right action at every step to learn from") from None
        seen.append(np.array(x, dtype=np.float32))
        right.append(np.array(y, dtype=np.int64 if y.dtype.kind in "iu" else np.float32))
        conditions.append(dict(env.trial))
        periods.append({name: (env.start_ind[name], env.end_ind[name]) for name in env.start_ind})
    steps = max(map(len, seen))
    alone = (
        Trials(x[None], y[None], (c,), (p,)).ending_together(steps)
        for x, y, c, p in zip(seen, right, conditions, periods, strict=True)
    )
    xs, ys, cs, ps = zip(*alone, strict=True)
    return Trials(np.concatenate(xs), np.concatenate(ys), sum(cs, ()), sum(ps, ()))


def make_parts(task: str, options: dict[str, Any], counts: tuple[int, ...], seed: int) -> list[Trials]:
    """Several sets of trials of one length, each from a seed of its own."""
    parts = [make_trials(task, options, count, len(counts) * seed + k) for k, count in enumerate(counts)]
    steps = max(part.x.shape[1] for part in parts)
    return [part.ending_together(steps) for part in parts]
