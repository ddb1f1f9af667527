"""What a training run is made of; everything that determines its numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from numbers import Integral
from typing import Any

from organics_core import checks
from organics_core.cell import rates_for

from .cognitive import PREFIX, TEN
from .datasets import Dataset, check_task, load_dataset

FRAMEWORKS = ("torch", "jax")
SCHEDULES = ("step", "cosine", "onecycle")
TESTED = ("last", "best")

DEFAULT_HIDDEN = 64
SETTLED = ("input_size", "hidden_size", "classes", "steps", "every_step", "key")
"""Arguments of a model that are no options of a run."""
# What a task wants other than the defaults of Config.
COGNITIVE: dict[str, Any] = {
    "epochs": 20,
    "batch_size": 64,
    "learning_rate": 0.003,
    "schedule": "onecycle",
    "samples": 10_000,
    "options": {"recurrent": "spectral"},
}
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 60, "batch_size": 64},
    "mnist": {"epochs": 30, "hidden": 120, "learning_rate": 0.001},
    **{PREFIX + name: COGNITIVE | own for name, own in TEN.items()},
}


@dataclass(frozen=True)
class Config:
    """One training run.

    Attributes
    ----------
    task : str
        One of ``TASKS``, or ``"neurogym:NAME"``.
    model : str
        A name of ``organics_baselines.MODELS``; jax has ``"organics"`` and
        ``"organics-static"`` only. ``"organics"`` on the static task
        ``"mnist"`` is ``"organics-static"``.
    framework : {"torch", "jax"}
    hidden : int, optional
        Hidden units; by default 64, or what ``parameters`` asks for.
    parameters : int, optional
        Choose the hidden size that comes closest to so many parameters.
    epochs, batch_size : int
    learning_rate, weight_decay : float
        Of Adam, weight decay added to the gradient. The gradient is never
        clipped.
    lr_step, lr_gamma : int, float
        Of the schedule "step": every ``lr_step`` epochs the learning rate is
        multiplied by ``lr_gamma``.
    schedule : {"step", "cosine", "onecycle"}
        How the learning rate falls: in steps; or step by step of the optimizer
        along half a cosine, to nothing at the end of the run; or so after it has
        risen along a straight line, from nothing.
    warm_up : float
        Of the schedule "onecycle": the part of the run in which the rate rises.
    skip_steps : int
        Steps of an epoch that are left out, and counted, where their loss or
        gradient is not finite; one more ends the run. By default the first does.
    tested : {"last", "best"}
        Which parameters are scored on the test set: those after the last epoch,
        or after the first of the epochs with the best validation accuracy.
    criterion : float, optional
        Training ends after the first epoch with at least this accuracy on
        validation.
    input_noise : float
        Standard deviation of the Gaussian noise added to the training inputs; an
        autoencoder is still to give the clean ones.
    seed : int
        Of the initialization, of the order of the batches and of the noise.
    downsample, limit, length, samples, task_options
        Of the data; see :func:`organics_train.load_dataset`.
    options : dict
        Of the model.
    device : str
        Of torch: ``"cpu"``, ``"cuda"``. jax takes its default device.

    Examples
    --------
    >>> Config(task="digits", hidden=16, epochs=2).model
    'organics'
    """

    task: str = "digits"
    model: str = "organics"
    framework: str = "torch"
    hidden: int | None = None
    parameters: int | None = None
    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 0.01
    weight_decay: float = 1e-5
    lr_step: int = 30
    lr_gamma: float = 0.8
    schedule: str = "step"
    warm_up: float = 0.1
    skip_steps: int = 0
    tested: str = "last"
    criterion: float | None = None
    input_noise: float = 0.0
    seed: int = 0
    downsample: int = 1
    limit: int | None = None
    length: int = 100
    samples: int = 20_000
    task_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_task(self.task)
        checks.one_of("framework", self.framework, FRAMEWORKS)
        checks.one_of("schedule", self.schedule, SCHEDULES)
        checks.one_of("tested", self.tested, TESTED)
        for name in ("epochs", "batch_size", "lr_step", "downsample", "length", "samples"):
            object.__setattr__(self, name, _count(name, getattr(self, name)))
        for name, allowed, end in (("skip_steps", "of at least 0", math.inf), ("seed", "from 0 to 2**32 - 1", 2**32)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < end:
                raise ValueError(f"{name} must be an integer {allowed}, got {value!r}")
            object.__setattr__(self, name, int(value))
        for name in ("hidden", "parameters", "limit"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _count(name, getattr(self, name)))
        if self.hidden is not None and self.parameters is not None:
            raise ValueError("give hidden or parameters, not both")
        for name in ("learning_rate", "lr_gamma"):
            checks.positive_number(name, getattr(self, name))
        if not (checks.is_number(self.warm_up) and 0 <= self.warm_up < 1):
            raise ValueError(f"warm_up must be a part of the run, at least 0 and below 1, got {self.warm_up!r}")
        if self.criterion is not None and not (checks.is_number(self.criterion) and 0 < self.criterion <= 1):
            raise ValueError(f"criterion must be a part of the trials, above 0 and at most 1, got {self.criterion!r}")
        for name in ("task_options", "options"):
            _check_options(name, getattr(self, name))
        for name in SETTLED:
            if name in self.options:
                raise ValueError(f"options must not have {name!r}: the task and the hidden units say it")
        for name in ("model", "device"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a text, got {checks.describe(getattr(self, name))}")
        if self.task_options and not self.task.startswith(PREFIX):
            raise ValueError(f"task options are for tasks of NeuroGym, not for {self.task!r}")
        for name in ("weight_decay", "input_noise"):
            if not (checks.is_number(getattr(self, name)) and 0 <= getattr(self, name) < math.inf):
                raise ValueError(f"{name} must be a number of at least 0, got {getattr(self, name)!r}")
        if self.framework == "jax" and self.model not in ("organics", "organics-static"):
            raise ValueError(f"the model {self.model!r} exists in torch only: choose the framework torch")

    @classmethod
    def recommended(cls, task: str, **given: Any) -> Config:
        """A run with the recommended settings of the task, except those that are given and not None."""
        chosen = {name: value for name, value in given.items() if value is not None}
        recipe = dict(RECIPES.get(task, COGNITIVE if str(task).startswith(PREFIX) else {}))
        if "parameters" in chosen:
            recipe.pop("hidden", None)
        options = recipe.pop("options", {})
        if options and chosen.get("model", cls.model) == "organics":
            chosen["options"] = options | chosen.get("options", {})
        return cls(**{"task": task, **recipe, **chosen})

    @property
    def resolved_model(self) -> str:
        """The name in the registry: the static classifier for ORGaNICs on a static task."""
        return "organics-static" if self.model == "organics" and self.task == "mnist" else self.model

    @property
    def name(self) -> str:
        """Of the run's folder, by default."""
        coarse = f"-{self.downsample}" if self.downsample > 1 else ""
        return f"{self.task.replace(':', '-')}{coarse}-{self.resolved_model}-{self.framework}-seed{self.seed}"

    def data(self) -> Dataset:
        """The data of the run."""
        return load_dataset(
            self.task,
            downsample=self.downsample,
            limit=self.limit,
            length=self.length,
            samples=self.samples,
            task_options=self.task_options,
        )

    def hidden_size(self, count: Callable[[int], int]) -> int:
        """Hidden units of the model, where ``count(hidden)`` is its number of parameters."""
        if self.parameters is not None:
            return closest_size(count, self.parameters)
        return DEFAULT_HIDDEN if self.hidden is None else self.hidden

    def rate(self, epoch: int, step: int = 1, steps: int = 1) -> float:
        """Learning rate of a step of an epoch of ``steps``, both counted from 1; by default that in its middle."""
        if self.schedule == "step":
            return self.learning_rate * self.lr_gamma ** ((epoch - 1) // self.lr_step)
        done = (epoch - 1 + (step - 0.5) / steps) / self.epochs
        rise = self.warm_up if self.schedule == "onecycle" else 0.0
        if done < rise:
            return self.learning_rate * done / rise
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))

    def asdict(self) -> dict[str, Any]:
        """All fields, as JSON holds them."""
        return asdict(self)

    def model_options(self, steps: int) -> dict[str, Any]:
        """The model's options: those given, and for ORGaNICs rates that fit the length of the sequences."""
        options = dict(self.options)
        if self.resolved_model == "organics" and options.get("max_rates", "auto") == "auto":
            options["max_rates"] = rates_for(steps)
        if isinstance(options.get("max_rates"), list):  # as JSON and the command line have it
            options["max_rates"] = tuple(options["max_rates"])
        return options


def _count(name: str, value: object) -> int:
    """A positive integer that arrays and floats can count to."""
    number = checks.positive_integer(name, value)
    if number >= 2**63:
        raise ValueError(f"{name} must be below 2**63, got {number}")
    return number


def _check_options(name: str, options: object) -> None:
    """TypeError unless checkpoints can hold them, which are written long after the start."""
    if not isinstance(options, dict):
        raise TypeError(f"{name} must be a dict, got {checks.describe(options)}")
    for key, value in options.items():
        try:
            json.dumps({key: value})
        except TypeError:
            raise TypeError(
                f"{name} must hold what JSON holds, numbers, texts, true, false, None and lists of them: {key!r} is "
                f"{checks.describe(value)}"
            ) from None


def completed(record: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recorded run, with the defaults of those that there were not yet when it was recorded."""
    return asdict(Config()) | record


def closest_size(count: Callable[[int], int], parameters: int) -> int:
    """The hidden size whose number of parameters, ``count(hidden)``, is closest to ``parameters``.

    Raises
    ------
    ValueError
        Where even one hidden unit has more than twice as many.
    """
    count = cache(count)  # which builds a model
    if count(1) > 2 * parameters:
        raise ValueError(
            f"the model has {count(1)} parameters with one hidden unit, more than the {parameters} asked for"
        )
    # Most models have a + b n + c n**2 of them, which three small ones tell: few large ones are built.
    bend = (count(3) - 2 * count(2) + count(1)) / 2
    slope = count(2) - count(1) - 3 * bend
    missing = parameters - count(1) + bend + slope
    steep = slope + math.sqrt(max(0.0, slope**2 + 4 * bend * missing))
    least = max(1, int(2 * missing / steep)) if steep > 0 else 1
    most = least + 1
    while least > 1 and count(least) >= parameters:
        least, most = max(1, least - 2 * (most - least)), least
    while count(most) < parameters:
        least, most = most, most + 2 * (most - least)
    while most - least > 1:
        middle = (least + most) // 2
        if count(middle) < parameters:
            least = middle
        else:
            most = middle
    return min((least, most), key=lambda hidden: abs(count(hidden) - parameters))
