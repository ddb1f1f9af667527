"""``organics train``, ``organics table``, ``organics reproduce`` and ``organics analyse``."""

from __future__ import annotations

import ast
import json
import math
import shlex
import sys
import time
from contextlib import nullcontext, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from organics_cli.console import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    Debug,
    command,
    complain,
    console,
    counted,
    terminable,
    write_text,
)
from organics_core import checks

from .cognitive import PREFIX
from .config import FRAMEWORKS, SCHEDULES, TESTED, Config, completed
from .datasets import TASKS
from .processes import PARALLEL, ElsewhereError, alike, under_torchrun

Framework = StrEnum("Framework", {name: name for name in FRAMEWORKS})  # type: ignore[misc]  # mypy wants the names spelled out
Schedule = StrEnum("Schedule", {name: name for name in SCHEDULES})  # type: ignore[misc]
Tested = StrEnum("Tested", {name: name for name in TESTED})  # type: ignore[misc]
Parallel = StrEnum("Parallel", {name: name for name in PARALLEL})  # type: ignore[misc]
MODELS = (
    "organics", "organics-static", "october", "lstm", "gru", "antisymmetric", "cornn", "lipschitz", "unicornn", "urnn",
    "irnn", "deq", "ssn", "ssn5050", "wilsoncowan", "mlp",
)  # fmt: skip
"""Names of ``organics_baselines.MODELS``, which imports torch."""
OUTPUT = Path("organics-output") / "train"


def register(app: typer.Typer) -> None:
    """Add the commands ``train``, ``table``, ``reproduce`` and ``analyse`` to an app."""
    app.command()(train)
    app.command()(table)
    app.command()(reproduce)
    app.command()(analyse)


def refuse_idle(what: str, options: dict[str, Any], used: bool) -> None:
    """ValueError for an option that is given and would do nothing."""
    for name, value in options.items():
        if value is not None and not used:
            raise ValueError(f"{name} does nothing for {what}; leave it out")


def spare_results(path: Path | None) -> None:
    """ValueError where rows would be written over the results of a run."""
    if path is None or not path.is_file():
        return
    from .tables import is_run

    content = None
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_text())
    if is_run(content):
        raise ValueError(f"--json would write over {path}, the results of a run; choose another file")


@command
@terminable()
def train(
    task: Annotated[
        str, typer.Option(metavar="NAME", help=f"What to learn: {', '.join(TASKS)}, or neurogym:NAME.")
    ] = "digits",
    model: Annotated[
        str, typer.Option(help=f"{', '.join(MODELS)}; on mnist organics is organics-static.")
    ] = "organics",
    framework: Annotated[Framework, typer.Option(help="Which library trains.")] = Framework.torch,  # type: ignore[attr-defined]
    hidden: Annotated[int | None, typer.Option(help="Hidden units; 64, on mnist 120.")] = None,
    parameters: Annotated[
        int | None, typer.Option(help="Or the size that comes closest to so many parameters.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training set; 10, on digits 60, on mnist 30, on neurogym 20.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per step; 256, on digits and neurogym 64.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", help="Of Adam; 0.01, on mnist 0.001, on neurogym 0.003.")
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Of Adam.")] = 1e-5,
    lr_step: Annotated[
        int | None, typer.Option(help="Epochs after which the learning rate falls, of step; 30.")
    ] = None,
    lr_gamma: Annotated[float | None, typer.Option(help="By which factor; 0.8.")] = None,
    schedule: Annotated[
        Schedule | None,
        typer.Option(help="How the learning rate falls; step, on neurogym onecycle, which as cosine ends at nothing."),
    ] = None,
    warm_up: Annotated[float | None, typer.Option(help="Part of the run in which it rises, of onecycle; 0.1.")] = None,
    skip_steps: Annotated[
        int, typer.Option(help="Steps of an epoch left out where loss or gradient is not finite; one more is an error.")
    ] = 0,
    tested: Annotated[
        Tested, typer.Option(help="Parameters scored on the test set: of the last epoch, or best on validation.")
    ] = Tested.last,  # type: ignore[attr-defined]
    criterion: Annotated[
        float | None,
        typer.Option(help="Stop at this accuracy on validation; of the ten tasks of NeuroGym each has its own."),
    ] = None,
    input_noise: Annotated[
        float, typer.Option(help="Standard deviation of Gaussian noise on the training inputs.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the initialization, the order of the batches and the noise.")] = 0,
    downsample: Annotated[int, typer.Option(help="MNIST coarser: 2 gives 14 x 14.")] = 1,
    limit: Annotated[int | None, typer.Option(help="Only the first so many training examples.")] = None,
    length: Annotated[int | None, typer.Option(help="Steps of adding, delay of copy; 100.")] = None,
    samples: Annotated[
        int | None, typer.Option(help="Training examples of adding and copy, 20000, and of neurogym, 10000.")
    ] = None,
    task_option: Annotated[
        list[str] | None, typer.Option(help="An option of NeuroGym's task, as name=value; repeatable.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the model, as name=value; repeatable.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="Of torch: cpu or cuda.")] = "cpu",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "--out",
            "-o",
            help="Folder of the run; one in organics-output/train by default.",
            show_default=False,
        ),
    ] = None,
    parallel: Annotated[
        Parallel | None,
        typer.Option(help="How the processes of torchrun share a model of torch; ddp.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    debug: Debug = False,
) -> None:
    """Train a model; leaves a checkpoint, results as JSON and a curve. Gradients are never clipped.

    On several processes: torchrun --nproc-per-node 2 -m organics_cli train ...
    """
    try:
        with alike():
            config = Config.recommended(
                task,
                model=model,
                framework=str(framework),
                hidden=hidden,
                parameters=parameters,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                lr_step=lr_step,
                lr_gamma=lr_gamma,
                schedule=None if schedule is None else str(schedule),
                warm_up=warm_up,
                skip_steps=skip_steps,
                tested=str(tested),
                criterion=criterion,
                input_noise=input_noise,
                seed=seed,
                downsample=downsample,
                limit=limit,
                length=length,
                samples=samples,
                task_options=dict(parse_option(text) for text in task_option) if task_option else None,
                options=dict(parse_option(text) for text in option or ()),
                device=device,
            )
            made = config.task in ("adding", "copy")
            refuse_idle(f"the task {config.task!r}", {"--length": length}, made)
            refuse_idle(f"the task {config.task!r}", {"--samples": samples}, made or config.task.startswith(PREFIX))
            falls = f"the schedule {config.schedule!r}"
            refuse_idle(falls, {"--lr-step": lr_step, "--lr-gamma": lr_gamma}, config.schedule == "step")
            refuse_idle(falls, {"--warm-up": warm_up}, config.schedule == "onecycle")
            elsewhere = None if device == "cpu" else device
            refuse_idle(f"the framework {config.framework!r}", {"--device": elsewhere}, config.framework == "torch")
        folder = OUTPUT / config.name if output is None else output
        how = None if parallel is None else str(parallel)
        _train(config, folder, resume=resume, checkpoint_every=checkpoint_every, parallel=how)
    except KeyboardInterrupt:
        if under_torchrun().first:
            typer.echo("stopped: add --resume to the same command to go on", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except ElsewhereError:
        time.sleep(5)  # the process that failed is to end first and say why; then torchrun ends this one
        raise typer.Exit(EXIT_BAD_INPUT) from None


@command
@terminable()
def table(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Results, or folders of them; ./organics-output by default.")
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the rows to a file, too.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Train this model first; repeatable, all for every one.", show_default=False),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="On this task, digits by default; repeatable.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="With this seed, 0 by default; repeatable.")] = None,
    framework: Annotated[Framework, typer.Option(help="Which library trains.")] = Framework.torch,  # type: ignore[attr-defined]
    parameters: Annotated[int | None, typer.Option(help="At the size closest to so many parameters.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", "--lr", help="Of Adam.")] = None,
    input_noise: Annotated[float, typer.Option(help="As for train.")] = 0.0,
    downsample: Annotated[int, typer.Option(help="MNIST coarser: 2 gives 14 x 14.")] = 1,
    limit: Annotated[int | None, typer.Option(help="Only the first so many training examples.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "--out", "-o", help="Folder that the runs of --model go to.")
    ] = OUTPUT,
    debug: Debug = False,
) -> None:
    """Collect results beside the paper's two tables; with --model, train what is missing first.

    A run that was stopped goes on, one that is finished is not repeated, one
    that fails is named and left out.
    """
    from .loop import RESULTS, complete
    from .tables import collect, grid, print_tables, rows_as_json

    spare_results(json_out)
    places = list(paths or ())
    if model:
        if under_torchrun().count > 1:
            raise ValueError("table trains in one process: start it without torchrun, or each run by train")
        shared = {
            "parameters": parameters,
            "epochs": epochs,
            "learning_rate": learning_rate,
            "input_noise": input_noise,
            "downsample": downsample,
            "limit": limit,
        }
        for config in grid(task or ["digits"], model, seed or [0], str(framework), **shared):
            folder = output / config.name
            if _is_finished(folder / RESULTS, config):
                complete(folder)
                continue
            console().print(f"[bold]{config.name}[/]")
            try:
                _train(config, folder, resume=True)
            except FloatingPointError as error:
                complain(f"{config.name}: {error}")
        places.append(output)
    elif (
        any(value is not None for value in (task, seed, parameters, epochs, learning_rate, limit))
        or (framework, input_noise, downsample, output) != (Framework.torch, 0.0, 1, OUTPUT)  # type: ignore[attr-defined]
    ):
        raise ValueError("settings of runs are given, but no --model to run")
    results = collect(places or [OUTPUT.parent], complain)
    if json_out is not None:
        write_text(json_out, rows_as_json(results))
    print_tables(results)


@command
@terminable()
def reproduce(
    rows: Annotated[
        list[str] | None, typer.Argument(help="Names of rows, see --list; all by default.", show_default=False)
    ] = None,
    which: Annotated[
        str, typer.Option("--table", help="Whose rows: paper, or cognitive, ten tasks of NeuroGym beside a GRU.")
    ] = "paper",
    list_rows: Annotated[
        bool, typer.Option("--list", help="Name the rows and their commands, and train nothing.")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="As --list, with time and memory, measured by a few steps.")
    ] = False,
    recipe: Annotated[
        str, typer.Option(help="ours, or october (2024) or january (2025), of both versions of the authors' code.")
    ] = "ours",
    seed: Annotated[
        list[int] | None,
        typer.Option("--seed", "--seeds", help="With this seed, 0 by default; repeatable.", show_default=False),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "--out", "-o", help="Folder that the runs go to, by recipe, row and seed.")
    ] = OUTPUT.parent / "reproduce",
    device: Annotated[str, typer.Option(help="Of torch: cpu or cuda; a run may change it when it goes on.")] = "cpu",
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the rows to a file, too.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One epoch of 64 coarse images or trials, to see that a row runs.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train the rows of the paper's two tables, and say how far they are from the authors' numbers.

    With --table cognitive: ten cognitive tasks, each to its criterion, and what the trained nets do.

    The same command goes on where it was stopped; a row that is finished is not
    repeated, one that fails is named and left out, and the exit code is 1 then.
    """
    from .analysis import ANALYSIS
    from .loop import RESULTS, complete
    from .reproduce import TABLES, config_of, epochs_done, train_command
    from .tables import collect, print_tables, rows_as_json

    if under_torchrun().count > 1:
        raise ValueError("reproduce trains in one process: start it without torchrun, or each run by train")
    checks.one_of("table", which, TABLES)
    refuse_idle(f"the table {which!r}", {"--recipe": None if recipe == "ours" else recipe}, which == "paper")
    refuse_idle("--list and --estimate", {"--json": json_out}, not (list_rows or estimate))
    spare_results(json_out)
    name = recipe if which == "paper" else which
    place = output / (f"{name}-quick" if quick else name)
    of_table = TABLES[which]
    for name in rows or ():
        checks.one_of("row", name, of_table)
    runs = {
        place / f"{name}-seed{number}": (name, config_of(name, recipe, number, quick=quick, device=device))
        for name in rows or of_table
        for number in seed or [0]
    }
    failed = False
    try:
        for folder, (name, config) in runs.items():
            try:
                finished = _is_finished(folder / RESULTS, config)
            except ValueError as error:
                complain(f"{name}, seed {config.seed}: {error}")
                failed = True
                continue
            analysed = which == "paper" or (folder / ANALYSIS).is_file()
            if finished and not (list_rows or estimate):
                complete(folder)
                if analysed:
                    continue
            console().print(f"[bold]{name}[/], seed {config.seed}{': finished' if finished else ''}")
            console().print(f"  {train_command(config, folder)}", soft_wrap=True, markup=False)
            if of_table[name].note:
                console().print(f"  {of_table[name].note}", soft_wrap=True, markup=False)
            if list_rows and not estimate:
                continue
            try:
                if estimate or not finished:
                    cost = _cost(config, 0 if finished else epochs_done(folder))
                    console().print(f"  {cost}", soft_wrap=True, markup=False)
                if not (estimate or finished):
                    _train(config, folder, resume=True, command=train_command(config, folder))
                    console().print(f"  {_distance(folder / RESULTS, config)}", soft_wrap=True)
                if which == "cognitive" and not estimate:
                    _analyse(folder)
            except (FloatingPointError, ValueError, RuntimeError, MemoryError, FileExistsError) as error:
                complain(f"{name}, seed {config.seed}: {error}")
                failed = True
    except KeyboardInterrupt:
        typer.echo("stopped: the same command goes on", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not (list_rows or estimate):
        results = collect([place], complain) if place.exists() else []
        if json_out is not None:
            write_text(json_out, rows_as_json(results))
        print_tables(results)
        for folder, (name, config) in runs.items():
            with suppress(ValueError):  # which was said above
                if not _is_finished(folder / RESULTS, config):
                    continue
                console().print(f"{name}, seed {config.seed}: {_distance(folder / RESULTS, config)}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


@command
def analyse(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Of runs on cognitive tasks; repeatable.")],
    debug: Debug = False,
) -> None:
    """Fixed points, trajectories and selectivity of nets that train taught a cognitive task.

    Prints tables; leaves analysis.json and analysis.png in the folder.
    """
    for folder in folders:
        _analyse(folder)


def _analyse(folder: Path) -> None:
    """The tables of a run, and its analysis in its folder."""
    from .analysis import analyse as run
    from .analysis import print_analysis, save

    found = run(folder)
    print_analysis(found)
    save(found, folder)


def _cost(config: Config, done: int) -> str:
    """Time and memory that the rest of a run will take, in words."""
    from .reproduce import estimate

    try:
        cost = estimate(config)
    except RuntimeError as error:
        return f"no estimate: {error}"
    seconds = cost.seconds * (config.epochs - done) / config.epochs
    hours = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
    every = counted(config.epochs, "epoch")
    rest = f"the other {config.epochs - done} of {every}" if done else every
    memory = "" if math.isnan(cost.megabytes) else f", {cost.megabytes / 1000:.2g} GB of memory"
    return f"about {hours} on this machine for {rest} ({1000 * cost.step:.0f} ms a step){memory}"


def _distance(path: Path, config: Config) -> str:
    """The result of a run beside the authors' number."""
    from .reproduce import number_of

    result = json.loads(path.read_text())
    accuracy, number = 100 * result["test_accuracy"], number_of(config, result["hidden"])
    if config.criterion is not None:
        reached, epochs = result["criterion_reached"], counted(len(result["epochs"]), "epoch")
        what = f"the criterion of {100 * config.criterion:g} % on validation"
        return f"{accuracy:.2f} %; {what} was {'reached after' if reached else 'not reached in'} {epochs}"
    if number is None:
        return f"{accuracy:.2f} % on coarse images, which the authors have no number for"
    gap = accuracy - number.accuracy
    return f"{accuracy:.2f} %, {abs(gap):.2f} {'above' if gap >= 0 else 'below'} the authors' {number.accuracy:.1f} %"


def _train(
    config: Config,
    folder: Path,
    *,
    resume: bool,
    checkpoint_every: int = 100,
    parallel: str | None = None,
    command: str | None = None,
) -> None:
    """One run under a progress bar, and its result in two lines; of several processes the first alone shows them."""
    from .loop import CURVE, RESULTS
    from .loop import train as run

    show = Display(config)
    first = under_torchrun().first
    with show if first else nullcontext():
        r = run(
            config,
            folder,
            resume=resume,
            checkpoint_every=checkpoint_every,
            on_step=show.step,
            on_epoch=show.epoch,
            command=command or command_line(),
            parallel=parallel,
        )
    if not first:
        return
    console().print(
        f"{r['model']}: {100 * r['test_accuracy']:.2f} % on the test set, {counted(r['hidden'], 'hidden unit')}, "
        f"{r['parameters']} parameters, {counted(len(r['epochs']), 'epoch')} in {r['seconds']:.0f} s\n"
        f"{folder / RESULTS}  {folder / CURVE}",
        soft_wrap=True,
        markup=False,
    )


def _is_finished(path: Path, config: Config) -> bool:
    """Whether there are results of just this run, on whatever device."""
    if not path.is_file():
        return False
    from .tables import check_results

    try:
        content = json.loads(path.read_text())
        before = None if content.get("given_data") else content.get("config")
        wanted = json.loads(json.dumps(config.asdict()))
        same = isinstance(before, dict) and completed(before) | {"device": config.device} == wanted
        if same:
            check_results(content)
            len(content["epochs"])
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read, remove it to train that run again: {error}") from None
    except KeyError as error:
        raise ValueError(f"{path} has no {error}, remove it to train that run again") from None
    return same


def parse_option(text: str) -> tuple[str, Any]:
    """``"name=value"``, a Python literal, true or false in any case, or else a string; ValueError without ``=``."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise ValueError(f"an option of the model is written name=value, got {text!r}")
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = {"true": True, "false": False}.get(value.lower(), value)
    return name, list(parsed) if isinstance(parsed, tuple) else parsed


def command_line() -> str:
    """The command as it was typed, without the program's folder."""
    name = Path(sys.argv[0]).name
    return shlex.join(["organics" if name == "__main__.py" else name, *sys.argv[1:]])


class Display:
    """The progress bar; without a terminal, one line per epoch."""

    def __init__(self, config: Config) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.config = config
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
            disable=not self.console.is_terminal,
        )
        self.line = self.bar.add_task("preparing", total=None, numbers="")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def step(self, progress: Any) -> None:
        """After a step."""
        p = progress
        numbers = (
            f"loss {p.loss:.3f} acc {100 * p.accuracy:.1f} % |grad| {p.gradient_norm:.1e} "
            f"{p.steps_per_second:.1f} steps/s"
        )
        self.bar.update(
            self.line,
            description=f"epoch {p.epoch}/{self.config.epochs}",
            total=p.steps * self.config.epochs,
            completed=(p.epoch - 1) * p.steps + p.step,
            numbers=numbers,
        )

    def epoch(self, record: dict[str, Any]) -> None:
        """After an epoch."""
        r = record
        self.console.print(
            f"epoch {r['epoch']}: loss {r['loss']:.3f}, train {100 * r['train_accuracy']:.2f} %, "
            f"val {100 * r['validation_accuracy']:.2f} %, |grad| {r['gradient_norm']:.3g} "
            f"max {r['gradient_norm_max']:.3g}, {r['seconds']:.0f} s"
            + (f", {r['validation_diverged']} val examples diverge" if r["validation_diverged"] else "")
            + (f", {r['skipped_steps']} steps skipped" if r["skipped_steps"] else ""),
            highlight=False,
            soft_wrap=True,
        )
