"""The paper's two tables, static and sequential MNIST, beside what was measured here."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from organics_core import checks

from .cognitive import PREFIX
from .config import Config, completed

SEQUENTIAL = ("smnist", "psmnist", "rowmnist")
OTHERS = ("digits", "adding", "copy")
NOTE = (
    "The column 'paper' is read off the pictures of the tables on the authors' project page (Rawat, Heeger & "
    "Martiniani, NeurIPS 2024); a run stands beside the number with its own units and kind. Static rows as we read "
    "them: 50:50 and 80:80 of ORGaNICs are one layer of so many y and so many a; 50:50 and 80:20 of an SSN are its "
    "excitatory and inhibitory units, 100 in all; two layers are 120 and 60."
)


CRITERION = "goal: the accuracy on validation at which training stops; *: reached."


class Reported(NamedTuple):
    """A number of the paper.

    Attributes
    ----------
    task, model : str
        Of :class:`Config`.
    kind : str
        As :func:`kind_of` tells it.
    units : int
    weights : int or None
        Parameters, to the thousand.
    accuracy : float
        On the test set, in percent.
    """

    task: str
    model: str
    kind: str
    units: int
    weights: int | None
    accuracy: float


def _sequential() -> list[Reported]:
    rows = [
        ("lstm", "", 128, 68_000, 97.3, 92.6),
        ("antisymmetric", "", 128, 10_000, 98.0, 95.8),
        ("cornn", "", 128, 34_000, 99.3, 96.6),
        ("lipschitz", "", 128, 34_000, 99.4, 96.3),
        ("organics", "fixed", 64, 26_000, 90.3, 80.3),
        ("organics", "fixed", 128, 100_000, 94.8, 84.8),
        ("organics", "learned", 64, 26_000, 97.7, 89.9),
        ("organics", "learned", 128, 100_000, 97.8, 90.7),
    ]
    return [
        Reported(task, model, kind, units, weights, accuracies[place])
        for place, task in enumerate(("smnist", "psmnist"))
        for model, kind, units, weights, *accuracies in rows
    ]


PAPER = (
    Reported("mnist", "ssn", "50:50", 100, None, 94.9),
    Reported("mnist", "ssn", "80:20", 100, None, 95.2),
    Reported("mnist", "organics-static", "1 layer", 50, None, 98.1),
    Reported("mnist", "organics-static", "1 layer", 80, None, 98.2),
    Reported("mnist", "organics-static", "2 layers", 120, None, 98.1),
    *_sequential(),
)
"""Both tables."""
FAMILIES = {"october": "organics", "ssn5050": "ssn"}
"""Models that the tables have under another name."""


def kind_of(model: str, options: dict[str, Any]) -> str:
    """What tells rows of one model and size apart: learned or fixed time constants, layers, shares of excitation ..."""
    layers = options.get("num_layers", 1)
    more = f"{layers} layers" if layers > 1 else ""
    family = FAMILIES.get(model, model)
    if family == "organics":
        kinds = [
            "learned" if options.get("learn_rates", True) else "fixed",
            more,
            "W_r = I" if options.get("recurrent") == "identity" else "",
            "two directions" if options.get("bidirectional") else "",
        ]
        return ", ".join(filter(None, kinds))
    if family == "antisymmetric":
        return "gated" if options.get("gated") else ""
    if family == "organics-static":
        return "1 layer" if options.get("layers", 2) == 1 else "2 layers"
    if family == "ssn":
        share = options.get("excitatory", 0.5 if model == "ssn5050" else 0.8)
        return f"{100 * share:.0f}:{100 - 100 * share:.0f}"
    return more


def reported(task: str, model: str, options: dict[str, Any], units: int) -> Reported | None:
    """The number of the paper for a model with so many units, on the whole task; None where there is none."""
    wanted = (task, FAMILIES.get(model, model), kind_of(model, options), units)
    return next((number for number in PAPER if number[:4] == wanted), None)


def grid(
    tasks: Iterable[str], models: Iterable[str], seeds: Iterable[int], framework: str, **settings: Any
) -> list[Config]:
    """The runs of a table: every model on every task with every seed, with the recommended settings otherwise.

    Parameters
    ----------
    tasks : iterable of str
    models : iterable of str
        Names of ``organics_baselines.MODELS``, or ``"all"``: every one that
        the framework has and that has an output where the task wants it.
    seeds : iterable of int
    framework : {"torch", "jax"}
    settings
        Fields of :class:`Config` that all runs share; None for the recommended one.

    Returns
    -------
    list of Config

    Raises
    ------
    ValueError
        For a name or a setting that is wrong.
    ImportError
        For ``"all"`` without torch.
    """
    runs: dict[str, Config] = {}
    for task in tasks:
        for model in models:
            for name in _every_model(task, framework) if model == "all" else [model]:
                for seed in seeds:
                    run = Config.recommended(task, model=name, framework=framework, seed=seed, **settings)
                    runs.setdefault(run.name, run)
    return list(runs.values())


def _every_model(task: str, framework: str) -> list[str]:
    if framework == "jax":
        return ["organics"]
    from organics_baselines import MODELS

    return [name for name, entry in MODELS.items() if task != "copy" or not entry.static]


def is_run(content: Any) -> bool:
    """Whether what a JSON file holds calls itself the results of a run."""
    return isinstance(content, dict) and content.get("kind") == "organics train"


def collect(paths: Iterable[Path], say: Callable[[str], Any] = warnings.warn) -> list[dict[str, Any]]:
    """The results under some paths, in a fixed order.

    Parameters
    ----------
    paths : iterable of path
        Files, or folders that are searched for ``*.json``; JSON files of
        another kind in a folder are passed over.
    say : callable
        Is told which ``results.json`` in a folder cannot be read.

    Returns
    -------
    list of dict
        As :func:`organics_train.train` returns them; of a file under several of the paths once.

    Raises
    ------
    FileNotFoundError
        For a path that does not exist.
    ValueError
        For a file given by name that holds no results.
    """
    found: list[tuple[tuple[str, str, float, int], dict[str, Any]]] = []
    seen: set[Path] = set()
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            problem = None
            try:
                content = json.loads(file.read_text())
                if is_run(content):
                    check_results(content)
                    found.append((_place(content), content))
                    continue
            except (OSError, ValueError) as error:
                problem = str(error)
            except (KeyError, TypeError, AttributeError, RecursionError) as error:
                problem = f"{type(error).__name__} {error}"
            if not path.is_dir():
                raise ValueError(f"{file} holds no results of organics train" + (f": {problem}" if problem else ""))
            if problem and file.name == "results.json":
                say(f"{file} cannot be read and is left out: {problem}")
    return [content for _, content in sorted(found, key=lambda pair: pair[0])]


def check_results(content: dict[str, Any]) -> None:
    """An error unless the tables can show these results: a field that is missing, of another type, or out of range."""
    config = content["config"]
    for name, value in (("model", content["model"]), *((name, config[name]) for name in ("task", "framework"))):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a text, got {checks.describe(value)}")
    sizes = {name: content[name] for name in ("hidden", "parameters")} | {"train": content["examples"]["train"]}
    for name, value in sizes.items():
        checks.positive_integer(name, value)
    checks.seed(config["seed"])
    for name in ("options", "task_options"):
        if not isinstance(config.get(name, {}), dict):
            raise TypeError(f"{name} must be a dict, got {checks.describe(config[name])}")
    accuracy = content["test_accuracy"]
    if not (checks.is_number(accuracy) and 0 <= accuracy <= 1 + 1e-6):
        raise ValueError(f"test_accuracy must be from 0 to 1, got {accuracy!r}")
    for row in rows_of([content], [config["task"]]):
        _cells(row, row["criterion"] is not None)


def _place(r: dict[str, Any]) -> tuple[str, str, float, int]:
    """By which results are put in order."""
    return r["config"]["task"], r["model"], -r["test_accuracy"], r["config"]["seed"]


def rows_of(results: Iterable[dict[str, Any]], tasks: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of a table: one for every run of these tasks, and one for every number of the paper without a run."""
    rows = []
    tasks = tuple(tasks)
    met = set()
    for result in results:
        config = result["config"]
        if config["task"] not in tasks:
            continue
        coarse, options = config["downsample"] > 1, config.get("options", {})
        given = result.get("given_data") is not None
        number = None if coarse or given else reported(config["task"], result["model"], options, result["hidden"])
        met.add(number)
        more = ", own data" if given else f" /{config['downsample']}" if coarse else ""
        rows.append(
            {
                "task": config["task"] + more,
                "model": result["model"],
                "kind": kind_of(result["model"], options),
                "framework": config["framework"],
                "hidden": result["hidden"],
                "parameters": result["parameters"],
                "steps": result["sequence"]["steps"],
                "train_examples": result["examples"]["train"],
                "epochs": len(result["epochs"]),
                "seed": config["seed"],
                "accuracy": 100 * result["test_accuracy"],
                "criterion": config.get("criterion") and 100 * config["criterion"],
                "reached": result.get("criterion_reached"),
                "paper": None if number is None else number.accuracy,
                "paper_parameters": None if number is None else number.weights,
                "config": completed(config),
            }
        )
    blank = dict.fromkeys(
        ("framework", "steps", "train_examples", "epochs", "seed", "accuracy", "criterion", "reached", "config")
    )
    for number in PAPER:
        if number.task in tasks and number not in met:
            own = {"task": number.task, "model": number.model, "kind": number.kind, "hidden": number.units}
            size = {"parameters": number.weights, "paper_parameters": number.weights}
            rows.append({**own, **blank, **size, "paper": number.accuracy})
    return rows


def rows_as_json(results: list[dict[str, Any]]) -> str:
    """Both tables as JSON."""
    tables = {"static": rows_of(results, ("mnist",)), "sequential": rows_of(results, SEQUENTIAL)}
    others = {"cognitive": rows_of(results, _cognitive(results)), "others": rows_of(results, OTHERS)}
    return json.dumps({"note": NOTE, **tables, **others}, indent=2) + "\n"


def _cognitive(results: list[dict[str, Any]]) -> set[str]:
    """The tasks of NeuroGym among these results."""
    return {result["config"]["task"] for result in results if result["config"]["task"].startswith(PREFIX)}


def print_tables(results: list[dict[str, Any]]) -> None:
    """Print the static and the sequential table, unless all runs are cognitive, and other runs where there are some."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    cognitive = _cognitive(results)
    alone = bool(cognitive) and all(result["config"]["task"] in cognitive for result in results)
    for title, tasks in (
        ("Static MNIST, test accuracy in %", ("mnist",)),
        ("Sequential MNIST, test accuracy in %", SEQUENTIAL),
        ("Cognitive tasks, test accuracy in %", cognitive),
        ("Other tasks, test accuracy in %", OTHERS),
    ):
        rows = [] if alone and tasks is not cognitive else rows_of(results, tasks)
        if not rows:
            continue
        table = Table(
            title=title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
            padding=(0, 1),
        )
        names, last = (("task", "model"), "goal") if tasks is cognitive else (("task", "model", "library"), "paper")
        for name in names:
            table.add_column(name, no_wrap=name != "model")
        for name in ("units", "weights", "data", "ours", last):
            table.add_column(name, justify="right", no_wrap=True)
        lines = [_cells(row, tasks is cognitive) for row in rows]
        marks, legend = _marks(rows, [(*line[:-2], line[-1].removesuffix(" *")) for line in lines])
        if legend:
            table.add_column("", no_wrap=True)
        for line, mark in zip(lines, marks, strict=True):
            table.add_row(*line, *([mark] if legend else []))
        console.print(table)
        if legend:
            console.print(f"Runs that look alike: {legend}.\n", highlight=False, markup=False)
    console.print("data: epochs x training examples.", highlight=False)
    if cognitive:
        console.print(CRITERION, highlight=False)
    if not alone:
        console.print(NOTE, highlight=False)


def _cells(row: dict[str, Any], cognitive: bool) -> list[str]:
    """What is printed of a row."""
    done = "-" if row["epochs"] is None else f"{row['epochs']} x {_thousands(row['train_examples'])}"
    named = [row["task"].removeprefix(PREFIX).replace("-v0", ""), _label(row["model"], row["kind"])]
    size = [str(row["hidden"]), "-" if row["parameters"] is None else _thousands(row["parameters"])]
    number = _text(row["paper"], 1)
    if cognitive:
        goal = "-" if row["criterion"] is None else f"{row['criterion']:g}"
        number = goal + (" *" if row["reached"] else "")
    else:
        named.append(row["framework"] or "-")
    return [*named, *size, done, _text(row["accuracy"], 2), number]


def _marks(rows: list[dict[str, Any]], seen: list[tuple[str, ...]]) -> tuple[list[str], str]:
    """A mark for each of the rows that are ``seen`` alike, and what the marks say: the settings that differ."""
    known: dict[str, str] = {}
    marks = [""] * len(rows)
    for cells in dict.fromkeys(seen):
        places = [place for place, other in enumerate(seen) if other == cells and rows[place]["config"] is not None]
        runs = [_flat(rows[place]["config"]) for place in places]
        names = [name for name in dict.fromkeys(chain(*runs)) if len({run.get(name) for run in runs}) > 1]
        for place, run in zip(places if names else [], runs, strict=False):
            text = ", ".join(f"{name.replace('_', ' ')} {run.get(name, 'by default')}" for name in names)
            marks[place] = known.setdefault(text, str(len(known) + 1))
    return marks, "; ".join(f"{mark}: {text}" for text, mark in known.items())


def _flat(config: dict[str, Any]) -> dict[str, str]:
    """Settings and options of the model as texts."""
    parts = {name: {name: value} for name, value in config.items()}
    parts |= {name: config[name] for name in ("options", "task_options")}
    return {name: f"{value}" for part in parts.values() for name, value in part.items()}


def _label(model: str, kind: str) -> str:
    """Model and kind in few letters."""
    kind = kind.removeprefix("learned, ")
    return model if kind in ("", "learned") else f"{model.removeprefix('organics-')}, {kind}"


def _thousands(count: int) -> str:
    """Three digits: 950, 26.4k, 2.4M."""
    if count < 1000:
        return str(count)
    return f"{count / 1e3:.3g}k" if count < 999_500 else f"{count / 1e6:.3g}M"


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
