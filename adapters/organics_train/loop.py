"""The training driver, written once over a small protocol that torch and jax fulfil.

What a run does is a function of its :class:`Config` alone: the order of the
batches comes from (seed, epoch), noise on the inputs from (seed, epoch, step),
and a checkpoint holds parameters, optimizer
moments, random numbers, the position within the epoch and the implementation.
A run that is killed and resumed goes through the same numbers, bit by bit, on
the same machine.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from organics_backends.native import processors
from organics_core import checks
from organics_core.io.locks import alone_in

from .checkpoint import Arrays, load_checkpoint, save_checkpoint, write_atomically
from .cognitive import PREFIX
from .config import FRAMEWORKS, Config, completed
from .datasets import Dataset, checked, fingerprint
from .processes import Processes, alike, joined
from .records import batch_indices

CHECKPOINT = "checkpoint.safetensors"
MODEL = "model.safetensors"
BEST = "best.safetensors"
NEXT = "best.next.safetensors"
"""The best of an epoch that no checkpoint has yet."""
RESULTS = "results.json"
CURVE = "curve.png"
TOLERANCE = 0.04
"""Within which a number is right."""

__all__ = ["FRAMEWORKS", "Learner", "Progress", "Score", "train"]


class Learner(Protocol):
    """A model, its optimizer and its data in one framework.

    Attributes
    ----------
    parameter_count, hidden : int
    implementation : str or None
        How the numbers are computed, where there is more than one way.
    device : str
        The kind of device, as the framework calls it.
    """

    parameter_count: int
    hidden: int
    device: str

    implementation: str | None

    def use(self, implementation: str) -> str | None:
        """Compute as ``implementation`` says, that of another process; why that is impossible, or None."""

    def step(
        self, index: np.ndarray[Any, Any], learning_rate: float, noise: np.ndarray[Any, Any] | None = None
    ) -> tuple[float, float, float]:
        """One optimizer step on these training examples, noise added; returns loss, accuracy and gradient norm.

        Of several processes each has its part, and gets the numbers of all.
        Where loss or norm is not finite nothing is changed.
        """

    def evaluate(self, part: str, batch_size: int) -> Score:
        """Score on ``"validation"`` or ``"test"``."""

    def parameters(self) -> Arrays:
        """Parameters by name."""

    def state(self) -> Arrays:
        """All that training changes, by name."""

    def load_state(self, arrays: Arrays) -> None:
        """Put :meth:`state` back."""


class Score(NamedTuple):
    """Of a model on a part of the data.

    Attributes
    ----------
    loss : float
        Mean over the examples whose outputs are finite.
    accuracy : float
        Over all: one whose outputs are not finite counts as wrong.
    diverged : int
        How many outputs are not finite.
    """

    loss: float
    accuracy: float
    diverged: int

    @classmethod
    def of(cls, parts: Iterable[tuple[float, float, int, int]], answers: int = 1) -> Score:
        """From batches: loss and accuracy of the finite examples, their number, and that of all.

        Each example has so many ``answers``. The right ones are counted, so that the
        accuracy is not that of float32: 38 of 40 are 0.95, and no less.
        """
        loss, right = 0.0, 0
        finite = count = 0
        for mean, accuracy, fine, size in parts:
            if fine:
                loss, right = loss + mean * fine, right + round(accuracy * fine * answers)
            finite, count = finite + fine, count + size
        return cls(loss / finite if finite else math.nan, right / (count * answers), count - finite)


class Progress(NamedTuple):
    """What the driver reports after every step."""

    epoch: int
    step: int
    steps: int
    loss: float
    accuracy: float
    gradient_norm: float
    steps_per_second: float
    validation_accuracy: float


class _Epoch:
    """Sums over the steps of an epoch; part of the checkpoint."""

    def __init__(self, values: dict[str, float] | None = None) -> None:
        self.values = values or {"loss": 0.0, "accuracy": 0.0, "norm": 0.0, "norm_max": 0.0, "seconds": 0.0}
        self.values.setdefault("skipped", 0)

    def add(self, loss: float, accuracy: float, norm: float, seconds: float) -> None:
        v = self.values
        v["seconds"] += seconds
        if not (math.isfinite(loss) and math.isfinite(norm)):
            v["skipped"] += 1
            return
        v["loss"] += loss
        v["accuracy"] += accuracy
        v["norm"] += norm
        v["norm_max"] = max(v["norm_max"], norm)


def train(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    checkpoint_every: int = 100,
    on_step: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    command: str | None = None,
    data: Dataset | None = None,
    parallel: str | None = None,
) -> dict[str, Any]:
    """Train a model, and leave checkpoint, parameters, results and curve in a folder.

    Parameters
    ----------
    config : Config
    out : path
        The folder; made where there is none.
    resume : bool
        Go on from the checkpoint in ``out``; where there is none, begin.
    checkpoint_every : int
        Steps between two checkpoints; there is one after every epoch anyway.
    on_step, on_epoch : callable, optional
        Called with :class:`Progress`, and with the record of an epoch; of several processes in the first.
    command : str, optional
        The exact command, for the record.
    data : Dataset, optional
        Instead of the data of ``config``: the record has their name and a sha256, and a run is
        resumed with the same ones only. They are converted to float32, and classes to int64.
    parallel : {"ddp", "fsdp"}, optional
        How the processes that torchrun started, by which this one must have
        been started then, share a model of torch: a copy in each
        (``DistributedDataParallel``), the default there, or parameters,
        gradients and moments in parts (FSDP2's ``fully_shard``). Each step's
        batch is split evenly, so that the numbers are those of one process
        up to rounding, and models with dropout draw other numbers. The first
        process alone reads and writes the folder. A run may be resumed by
        another number of processes.

    Returns
    -------
    dict
        What ``results.json`` holds: how and by what it was computed is that of the last
        session, and ``sessions`` has all of them. There NaN, of an epoch all of whose steps were skipped, is null.

    Raises
    ------
    FileExistsError
        For a folder with a run in it, without ``resume``, and for one with results and no checkpoint.
    TypeError, ValueError
        For ``data`` whose shapes, dtypes or classes do not fit their kind, for a
        checkpoint of another run or other data, or of one that is beyond ``epochs``, for a
        folder that another process trains in now, and where the processes cannot
        share this one.
    FloatingPointError
        At a loss or gradient that is not finite, naming epoch and step: at the
        first, or where there have been ``skip_steps`` in the epoch.
    KeyboardInterrupt
        After Ctrl-C, or a polite request to end, once a checkpoint is written.
    ElsewhereError
        Where another process failed before this one, and says why.

    Examples
    --------
    >>> import tempfile
    >>> from organics_train import Config
    >>> config = Config(task="adding", length=6, samples=64, batch_size=32, hidden=4, epochs=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = train(config, folder)
    >>> results["epochs"][0]["epoch"]
    1
    """
    with alike():
        checkpoint_every = checks.positive_integer("checkpoint_every", checkpoint_every)
        given = None
        if data is not None:
            data, given = checked(data), {"name": data.name, "sha256": fingerprint(data)}
    with joined(config, parallel) as processes, ExitStack() as held:
        processes.from_first(lambda: held.enter_context(alone_in(Path(out))))
        return _train(config, Path(out), processes, resume, checkpoint_every, on_step, on_epoch, command, data, given)


def _train(
    config: Config,
    folder: Path,
    processes: Processes,
    resume: bool,
    checkpoint_every: int,
    on_step: Callable[[Progress], None] | None,
    on_epoch: Callable[[dict[str, Any]], None] | None,
    command: str | None,
    data: Dataset | None,
    given: dict[str, str] | None,
) -> dict[str, Any]:
    """One of the processes of a run; what is said of one process is true of all, and all go through the same steps."""
    path = folder / CHECKPOINT
    restored = processes.from_first(lambda: _restored(path, config, resume, given))
    data = config.data() if data is None else data
    count = len(data.x_train)
    batch_size = min(config.batch_size, count)
    if batch_size % processes.count:
        raise ValueError(
            f"the {batch_size} examples of a step cannot be split evenly over {processes.count} processes: choose a "
            "batch size that they divide"
        )
    steps = count // batch_size
    learner = make_learner(config, data, processes)

    epoch, done, records, current, devices, sessions = 1, 0, [], _Epoch(), [learner.device], []
    if restored is not None:
        arrays, record = restored
        learner.load_state(arrays)
        there = record.get("device", record["config"]["device"])
        devices = list(dict.fromkeys([*record.get("devices", [there]), learner.device]))
        before = record.get("implementation")
        if there != learner.device:
            if processes.first:
                warnings.warn(
                    f"{path} was made on {there!r} and the run goes on on {learner.device!r}, whose numbers differ by "
                    "rounding",
                    RuntimeWarning,
                    stacklevel=2,
                )
        elif before is not None and before != learner.implementation:
            problem = learner.use(before)
            if problem is not None:
                warnings.warn(
                    f"{path} was made by the implementation {before!r}, which cannot be had here ({problem}): the run "
                    f"goes on by {learner.implementation!r}, whose numbers differ by rounding",
                    RuntimeWarning,
                    stacklevel=2,
                )
        epoch, done, records, current = record["epoch"], record["step"], record["epochs"], _Epoch(record["current"])
        sessions = record.get("sessions", [])
    here = {
        "device": learner.device,
        "implementation": learner.implementation,
        "processes": processes.count,
        "parallel": processes.how,
        "environment": environment(config.framework, *(["neurogym"] if config.task.startswith(PREFIX) else [])),
    }
    if here not in sessions[-1:]:
        sessions = [*sessions, here]

    def save() -> None:
        record = {"config": config.asdict(), "epoch": epoch, "step": done, "epochs": records}
        record |= {"implementation": learner.implementation, "device": learner.device, "devices": devices}
        record |= {"sessions": sessions, "given_data": given}
        arrays = learner.state()  # all take part
        if processes.first:
            save_checkpoint(path, arrays, {**record, "current": current.values})

    with _interruptible() as asked:

        def stop() -> bool:
            return processes.any(asked())

        while epoch <= config.epochs and not reached(config, records):
            for index in islice(batch_indices(config.seed, epoch, count, config.batch_size), done, None):
                began = time.perf_counter()
                noise = input_noise(config, epoch, done + 1, (len(index), *data.x_train.shape[1:]))
                rate = config.rate(epoch, done + 1, steps)
                noise = None if noise is None else processes.part(noise)
                loss, accuracy, norm = learner.step(processes.part(index), rate, noise)
                if current.values["skipped"] >= config.skip_steps:
                    _finite({"loss": loss, "gradient norm": norm}, f"at epoch {epoch}, step {done + 1}", config)
                done += 1
                seconds = time.perf_counter() - began
                current.add(loss, accuracy, norm, seconds)
                if on_step is not None and processes.first:
                    last = records[-1]["validation_accuracy"] if records else math.nan
                    speed = done / current.values["seconds"]
                    on_step(Progress(epoch, done, steps, loss, accuracy, norm, speed, last))
                if stop():
                    save()
                    raise KeyboardInterrupt
                if done % checkpoint_every == 0 and done < steps:
                    save()
            validation = learner.evaluate("validation", config.batch_size)
            _finite({"validation loss": validation.loss}, f"after epoch {epoch}, step {done}", config)
            sums = current.values
            kept = done - sums["skipped"]
            records.append(
                {
                    "epoch": epoch,
                    "learning_rate": config.rate(epoch),
                    "loss": sums["loss"] / kept if kept else math.nan,
                    "train_accuracy": sums["accuracy"] / kept if kept else math.nan,
                    "validation_loss": validation.loss,
                    "validation_accuracy": validation.accuracy,
                    "validation_diverged": validation.diverged,
                    "skipped_steps": sums["skipped"],
                    "gradient_norm": sums["norm"] / kept if kept else math.nan,
                    "gradient_norm_max": sums["norm_max"] if kept else math.nan,
                    "seconds": sums["seconds"],
                }
            )
            better = config.tested == "best" and _is_best(records)
            if better:
                arrays = learner.state()  # all take part
                if processes.first:
                    save_checkpoint(folder / NEXT, arrays, {"config": config.asdict(), "epoch": epoch})
            epoch, done, current = epoch + 1, 0, _Epoch()
            save()
            if better and processes.first:
                os.replace(folder / NEXT, folder / BEST)
            if on_epoch is not None and processes.first:
                on_epoch(records[-1])
            if stop():
                raise KeyboardInterrupt
    measured, at = "the last epoch", len(records)
    if config.tested == "best":
        arrays, best = processes.from_first(lambda: load_checkpoint(folder / BEST))
        learner.load_state(arrays)
        measured, at = f"epoch {best['epoch']}, the best on the validation set", best["epoch"]
    test = learner.evaluate("test", config.batch_size)
    _finite({"test loss": test.loss}, f"after epoch {at}", config)
    results = {
        "kind": "organics train",
        "command": command,
        "config": config.asdict(),
        "given_data": given,
        "model": config.resolved_model,
        "hidden": learner.hidden,
        "parameters": learner.parameter_count,
        "sequence": {"steps": data.steps, "input_size": data.input_size, "outputs": data.outputs},
        "examples": {"train": count, "validation": len(data.x_validation), "test": len(data.x_test)},
        "steps_per_epoch": steps,
        "epochs": records,
        "criterion_reached": None if config.criterion is None else reached(config, records),
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "test_diverged": test.diverged,
        "measured_at": f"the parameters after {measured}; the test set had no part in choosing them",
        "gradient_clipping": "none",
        **{name: value for name, value in here.items() if name != "device"},
        "devices": devices,
        "sessions": sessions,
        "seconds": sum(record["seconds"] for record in records),
    }
    arrays = learner.parameters()
    if processes.first:
        save_checkpoint(folder / MODEL, arrays, {"config": config.asdict()})
        epochs = [{key: None if value != value else value for key, value in record.items()} for record in records]
        write_atomically(folder / RESULTS, (json.dumps(results | {"epochs": epochs}, indent=2) + "\n").encode())
        _curve(folder / CURVE, results)
    return results


def _restored(
    path: Path, config: Config, resume: bool, given: dict[str, str] | None
) -> tuple[Arrays, dict[str, Any]] | None:
    """The checkpoint to go on from, or None where there is none."""
    if not path.exists():
        left = path.with_name(RESULTS)
        if left.exists():
            raise FileExistsError(
                f"{left} is of a run without a checkpoint to go on from: choose another folder, or remove it"
            )
        return None
    if not resume:
        raise FileExistsError(f"{path} exists already: resume that run, or choose another folder")
    restored = load_run(path)
    record = restored[1]
    _same_run(path, record["config"], config)
    before = record.get("given_data", given)
    if (before and before["sha256"]) != (given and given["sha256"]):
        raise ValueError(f"{path} is of a run with {_said(before)}, not {_said(given)}")
    begun = record["epoch"] - (record["step"] == 0)
    if begun > config.epochs:
        raise ValueError(
            f"{path} is of a run that has begun its epoch {begun}: epochs must be at least that, got {config.epochs}"
        )
    after = path.with_name(NEXT)
    if after.exists():  # killed before or after the checkpoint of its epoch
        if load_checkpoint(after)[1]["epoch"] <= len(record["epochs"]):
            os.replace(after, path.with_name(BEST))
        else:
            after.unlink()
    return restored


def load_run(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """A checkpoint that a run can go on from; ValueError for parameters alone, too."""
    arrays, record = load_checkpoint(path)
    if not {"config", "epoch", "step", "epochs", "current"} <= set(record):
        raise ValueError(f"{path} holds parameters alone, and no run to go on with")
    return arrays, record


def _said(given: dict[str, str] | None) -> str:
    return f"data of its own, {given['name']!r} of sha256 {given['sha256'][:12]}" if given else "the data of its task"


def reached(config: Config, records: list[dict[str, Any]]) -> bool:
    """Whether the last epoch came to the criterion, where there is one."""
    return bool(config.criterion is not None and records and records[-1]["validation_accuracy"] >= config.criterion)


def _is_best(records: list[dict[str, Any]]) -> bool:
    """Whether the last epoch is better on the validation set than all before."""
    *before, last = (record["validation_accuracy"] for record in records)
    return all(last > accuracy for accuracy in before)


def make_learner(config: Config, data: Dataset, processes: Processes = Processes()) -> Learner:
    """The learner of the run's framework, imported now."""
    if config.framework == "jax":
        name = "jax_learner"
    else:
        name = "torch_learner"
    try:
        module = importlib.import_module(f".{name}", __package__)
    except ImportError as error:
        missing = error.name or config.framework
        if missing.split(".")[0] in ("organics_torch", "organics_jax", "organics_train", "organics_baselines"):
            raise
        raise ImportError(
            f'the framework {config.framework} needs {missing}: pip install "organics-core[{config.framework}]"'
        ) from None
    return module.make(config, data, processes)


def input_noise(config: Config, epoch: int, step: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any] | None:
    """The noise on the inputs of one step, the same in every framework and after every resumption."""
    if config.input_noise == 0:
        return None
    rng = np.random.default_rng((config.seed, epoch, step))
    return np.float32(config.input_noise) * rng.standard_normal(shape, dtype=np.float32)


def environment(*frameworks: str) -> dict[str, Any]:
    """Versions and machine, as a record holds them."""
    versions = {}
    for name in ("organics-core", "numpy", *frameworks):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": os.environ.get("OMP_NUM_THREADS", str(processors())),
        **versions,
    }


def _same_run(path: Path, before: dict[str, Any], config: Config) -> None:
    """ValueError naming the first field that differs, of those that may not; epochs may where the rate allows."""
    now, before = json.loads(json.dumps(asdict(config))), completed(before)
    for name, value in now.items():
        if name in ("skip_steps", "device"):
            continue
        if before[name] != value and (name != "epochs" or config.schedule != "step"):
            raise ValueError(f"{path} is of a run with {name} {before.get(name)!r}, not {value!r}")


def _finite(values: dict[str, float], when: str, config: Config) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            advice = "a smaller learning rate may help"
            if config.resolved_model in ("organics", "october"):
                advice += ", or smaller largest rates dt/tau of the layer (--option max_rates=Y,A,B)"
            raise FloatingPointError(f"the {name} is {value} {when}; {advice}")


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """While inside, the first SIGINT or SIGTERM is remembered, so that no step is cut in two; a second one ends it."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def remember(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():  # None: of the program that Python is embedded in
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def complete(folder: Path) -> None:
    """Draw the curve of a finished run that was killed just before, or had no matplotlib; where there is one now."""
    if not (folder / CURVE).exists() and find_spec("matplotlib") is not None:
        with suppress(OSError):  # where nothing can be written
            _curve(folder / CURVE, json.loads((folder / RESULTS).read_text()))


def _curve(path: Path, results: dict[str, Any]) -> None:
    """The curve as a PNG, where there is matplotlib."""
    try:
        from .curves import draw
    except ImportError:
        print("matplotlib is not installed: no curve is drawn", file=sys.stderr)
        return
    write_atomically(path, draw(results))
