"""The paper's two tables, static and sequential MNIST, beside what was measured here."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .config import Config
from .datasets import TASKS

SEQUENTIAL = ("smnist", "psmnist", "rowmnist")
NOTE = "The column 'paper' is recalled from memory of Rawat, Heeger & Martiniani (NeurIPS 2024): check it before use."


class Reported(NamedTuple):
    """A number of the paper, in percent, and what it was measured with."""

    accuracy: float
    detail: str


# Recalled from memory of the paper and of its authors' own runs; not read off the paper's pages.
PAPER: dict[tuple[str, str], Reported] = {
    ("mnist", "organics-static"): Reported(98.05, "two layers, 120 and 60"),
    ("smnist", "organics"): Reported(97.7, "64 units, 26k parameters"),
    ("psmnist", "organics"): Reported(90.0, "64 units, 26k parameters"),
    ("smnist", "lstm"): Reported(97.3, "128 units"),
    ("psmnist", "lstm"): Reported(92.6, "128 units"),
}


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
        As :func:`organics_train.train` returns them.

    Raises
    ------
    FileNotFoundError
        For a path that does not exist.
    ValueError
        For a file given by name that holds no results.
    """
    found: list[tuple[tuple[str, str, float, int], dict[str, Any]]] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            problem = None
            try:
                content = json.loads(file.read_text())
                if isinstance(content, dict) and content.get("kind") == "organics train":
                    rows_of([content], TASKS)
                    found.append((_place(content), content))
                    continue
            except (OSError, ValueError) as error:
                problem = str(error)
            except (KeyError, TypeError, AttributeError) as error:
                problem = f"{type(error).__name__} {error}"
            if not path.is_dir():
                raise ValueError(f"{file} holds no results of organics train" + (f": {problem}" if problem else ""))
            if problem and file.name == "results.json":
                say(f"{file} cannot be read and is left out: {problem}")
    return [content for _, content in sorted(found, key=lambda pair: pair[0])]


def _place(r: dict[str, Any]) -> tuple[str, str, float, int]:
    """By which results are put in order."""
    return r["config"]["task"], r["model"], -r["test_accuracy"], r["config"]["seed"]


def rows_of(results: Iterable[dict[str, Any]], tasks: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of a table: one for every run of these tasks, and one for every number of the paper without a run."""
    rows = []
    open_numbers = {key: value for key, value in PAPER.items() if key[0] in set(tasks)}
    for result in results:
        config = result["config"]
        if config["task"] not in tasks:
            continue
        key = (config["task"], result["model"])
        coarse = config["downsample"] > 1
        reported = None if coarse else PAPER.get(key)
        if not coarse:
            open_numbers.pop(key, None)
        rows.append(
            {
                "task": config["task"] + (f" /{config['downsample']}" if coarse else ""),
                "model": result["model"],
                "framework": config["framework"],
                "hidden": result["hidden"],
                "parameters": result["parameters"],
                "steps": result["sequence"]["steps"],
                "train_examples": result["examples"]["train"],
                "epochs": len(result["epochs"]),
                "seed": config["seed"],
                "accuracy": 100 * result["test_accuracy"],
                "paper": None if reported is None else reported.accuracy,
                "paper_detail": None if reported is None else reported.detail,
            }
        )
    for (task, model), reported in open_numbers.items():
        blank = dict.fromkeys(
            ("framework", "hidden", "parameters", "steps", "train_examples", "epochs", "seed", "accuracy")
        )
        rows.append(
            {"task": task, "model": model, **blank, "paper": reported.accuracy, "paper_detail": reported.detail}
        )
    return rows


def rows_as_json(results: list[dict[str, Any]]) -> str:
    """Both tables as JSON."""
    tables = {"static": rows_of(results, ("mnist",)), "sequential": rows_of(results, SEQUENTIAL)}
    others = rows_of(results, ("digits", "adding", "copy"))
    return json.dumps({"note": NOTE, **tables, "others": others}, indent=2) + "\n"


def print_tables(results: list[dict[str, Any]]) -> None:
    """Print the static and the sequential table, and other runs where there are some."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    settings: list[str] = []
    for title, tasks in (
        ("Static MNIST, test accuracy in %", ("mnist",)),
        ("Sequential MNIST, test accuracy in %", SEQUENTIAL),
        ("Other tasks, test accuracy in %", ("digits", "adding", "copy")),
    ):
        rows = rows_of(results, tasks)
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
        for name in ("task", "model", "library"):
            table.add_column(name, no_wrap=True)
        for name in ("hidden", "weights", "data", "ours", "paper"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            done = "-" if row["epochs"] is None else f"{row['epochs']} x {_thousands(row['train_examples'])}"
            paper = _text(row["paper"], 2)
            if row["paper"] is not None:
                settings.append(f"{row['task']}, {row['model']}: {row['paper_detail']}")
            size = [_text(row[name]) for name in ("hidden", "parameters")]
            ours = _text(row["accuracy"], 2)
            table.add_row(row["task"], row["model"], row["framework"] or "-", *size, done, ours, paper)
        console.print(table)
    console.print("data: epochs x training examples.", highlight=False)
    if settings:
        console.print(f"{NOTE} Its settings: {'; '.join(dict.fromkeys(settings))}.", highlight=False)


def _thousands(count: int) -> str:
    return f"{count / 1000:.3g}k" if count >= 1000 else str(count)


def _text(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
