"""What a sweep computes, and the one task it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

import organics_core as oc
from organics_core import VARIANTS, checks
from organics_core.analysis.classification import ENSEMBLES


class Task(NamedTuple):
    """One strength, one norm, a block of draws."""

    delta: int
    norm: int
    block: int


def _not_negative(name: str, value: object) -> float:
    return 0.0 if checks.is_number(value) and value == 0 else checks.positive_number(name, value)


def _one_of(allowed: Iterable[str]) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        checks.one_of(name, value, allowed)
        return str(value)

    return check


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("n", "draws", "block"), checks.positive_integer),
    "seed": lambda _, value: checks.seed(value),
    "ensemble": _one_of(ENSEMBLES),
    "variant": _one_of(VARIANTS),
    "pool": _not_negative,
    **dict.fromkeys(("b", "b0", "sigma", "tau_y", "tau_a"), checks.positive_number),
}


@dataclass(frozen=True)
class Sweep:
    """A phase diagram: W_r = I + delta M / sqrt(n) for every strength, input norm and draw.

    Parameters
    ----------
    n : int
        Neurons.
    deltas, norms : tuple of float
    draws : int
        Random circuits per strength and norm.
    ensemble : {"goe", "gaussian"}
    seed : int
    variant : {"main", "rectified", "rectified_recurrence"}
    pool : float
        Every entry of W, times n.
    b, b0, sigma, tau_y, tau_a : float
    block : int
        Draws per task: tasks are what workers receive and what a resumed sweep skips.

    Examples
    --------
    >>> Sweep(n=3, deltas=(0.0, 1.0), norms=(1.0,), draws=4).draws
    4
    """

    n: int = 20
    deltas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    norms: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    draws: int = 10
    ensemble: str = "goe"
    seed: int = 0
    variant: str = "main"
    pool: float = 1.0
    b: float = 1.0
    b0: float = 1.0
    sigma: float = 0.1
    tau_y: float = 0.002
    tau_a: float = 0.002
    block: int = 5

    def __post_init__(self) -> None:
        # Python's own types, which the store keeps as JSON: numpy's scalars are welcome, arrays are not
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            object.__setattr__(self, name, check(name, value.item() if isinstance(value, np.generic) else value))
        for name in ("deltas", "norms"):
            given = getattr(self, name)
            if isinstance(given, str) or np.ndim(given) != 1:
                raise TypeError(f"{name} must be a tuple of numbers, got {checks.describe(given)}")
            values = tuple(float(value) for value in given)
            if not values or not all(0 <= value < float("inf") for value in values):
                raise ValueError(f"{name} must be numbers >= 0, one at least, got {values}")
            object.__setattr__(self, name, values)
        self.circuit()

    def circuit(self) -> oc.Circuit:
        """The circuit without its recurrence."""
        w = np.full((self.n, self.n), self.pool / self.n)
        return oc.Circuit(None, w, self.b, self.b0, self.sigma, self.tau_y, self.tau_a)

    @property
    def blocks(self) -> int:
        """How many blocks of draws each point of the plane has."""
        return -(-self.draws // self.block)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of deltas, norms and draws."""
        return len(self.deltas), len(self.norms), self.draws

    def tasks(self) -> Iterator[Task]:
        """All tasks, the draws outermost, so that an unfinished sweep covers the whole plane."""
        for block in range(self.blocks):
            for delta in range(len(self.deltas)):
                for norm in range(len(self.norms)):
                    yield Task(delta, norm, block)

    def range_of(self, task: Task) -> range:
        """Its draws."""
        return range(task.block * self.block, min((task.block + 1) * self.block, self.draws))

    def describe(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def compute(spec: Sweep, task: Task) -> dict[str, np.ndarray]:
    """One task: arrays (draws of the block,) by name. Pure, so that any worker may run it, and run it again."""
    found = oc.phase_diagram(
        spec.circuit(),
        np.array([spec.deltas[task.delta]]),
        np.array([spec.norms[task.norm]]),
        spec.range_of(task),
        ensemble=spec.ensemble,
        seed=spec.seed,
        variant=spec.variant,
    )
    return {name: getattr(found, name)[0, 0] for name in ("kind", "abscissa", "distance", "simulated")}
