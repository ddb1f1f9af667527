"""``organics figures``."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape

from organics_cli.console import (
    Debug,
    command,
    console,
    output_folder,
    quiet_matplotlib,
    terminable,
    versions,
    write_json,
)

FORMATS = ("png", "svg", "pdf")


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(figures)


@command
def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Figures to draw; see --list.", metavar="NAME")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Say what there is, and stop.")] = False,
    out: Annotated[Path, typer.Option("--output", "--out", "-o", help="Folder.")] = Path("organics-output/figures"),
    seed: Annotated[int, typer.Option("--seed", help="Of the random circuits and of training.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller sizes.")] = False,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint",
            help="A trained network to show instead of one trained here: a folder or file of organics train, or saved "
            "layers; repeatable.",
            show_default=False,
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", help="png, svg or pdf; repeatable. Default: png and svg.", show_default=False),
    ] = None,
    dpi: Annotated[int | None, typer.Option("--dpi", help="Dots per inch of PNG; default: 160.")] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Inches: width, or width x height as 7x4; default: as suits.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw the paper's figures and more, with the numbers behind them. See --list."""
    from . import FIGURES, SOURCES

    screen = console()
    if listing:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column()
        titles = ("After the paper", "Phenomena of cortex", "More")
        for source, title in zip(SOURCES, titles, strict=True):
            table.add_row(f"[dim]{title}[/]", "", "")
            for name, entry in FIGURES.items():
                if entry.source == source:
                    table.add_row(f"[bold]{name}[/]", f"[dim]{_about(entry.seconds)}[/]", entry.summary)
        screen.print(table)
        return
    chosen = list(FIGURES) if everything else list(dict.fromkeys(names or []))
    if not chosen:
        raise ValueError("name a figure, or ask for --all; --list shows what there is")
    for name in chosen:
        if name not in FIGURES:
            raise ValueError(f"unknown figure {name!r}; choose one of {', '.join(FIGURES)}")
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}")
    options: dict[str, Any] = {"formats": _formats(formats), "dpi": _dpi(dpi), "size": _size(size)}
    given = _checkpoints(checkpoint or [], chosen)
    quiet_matplotlib()
    output_folder(out)
    estimate = "" if quick else f", {_about(sum(FIGURES[name].seconds for name in chosen))} on one core"
    screen.print(f"{len(chosen)} figure{'s' * (len(chosen) > 1)}{estimate}.")
    for index, name in enumerate(chosen, start=1):
        entry = FIGURES[name]
        begin = time.perf_counter()
        path, shown = given.get(entry.takes, (None, None))
        doing = f"{index}/{len(chosen)} {name}{'' if quick else f' ({_about(entry.seconds)})'}: {entry.summary}"
        if not screen.is_terminal:
            screen.print(doing, soft_wrap=True)
            sys.stdout.flush()
        with terminable(), screen.status(doing):
            found = entry.numbers(seed=seed, quick=quick, **({} if shown is None else {"checkpoint": shown}))
            _write(out, name, entry, found, {"seed": seed, "quick": quick, "checkpoint": path}, **options)
        took, file = time.perf_counter() - begin, escape(f"{out / name}.{options['formats'][0]}")
        screen.print(f"[green]✓[/] {index}/{len(chosen)} {file}  [dim]{took:.1f} s[/]", soft_wrap=True)
        sys.stdout.flush()


def _about(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} min"


def _formats(given: list[str] | None) -> list[str]:
    chosen = list(dict.fromkeys(given or ["png", "svg"]))
    for name in chosen:
        if name not in FORMATS:
            raise ValueError(f"--format must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {name!r}")
    return chosen


def _dpi(given: int | None) -> int | None:
    if given is not None and not 10 <= given <= 2400:
        raise ValueError(f"--dpi must be between 10 and 2400 dots per inch, got {given}")
    return given


def _size(given: str | None) -> tuple[float, float | None] | None:
    """Width and, where it is given, height."""
    if given is None:
        return None
    try:
        width, *rest = (float(part) for part in given.lower().replace("×", "x").split("x"))
        height = rest[0] if rest else None
        if len(rest) < 2 and all(1.0 <= value <= 60.0 for value in (width, *rest)):
            return width, height
    except ValueError:
        pass
    raise ValueError(f"--size must be inches from 1 to 60, a width as 7 or width x height as 7x4, got {given!r}")


def _checkpoints(paths: list[Path], chosen: list[str]) -> dict[str, tuple[Path, Any]]:
    """The networks by their kind; ValueError for one that no chosen figure shows."""
    from . import FIGURES, _networks

    found: dict[str, tuple[Path, Any]] = {}
    for path in paths:
        given = _networks.read(path)
        names = [name for name, entry in FIGURES.items() if entry.takes == given.kind]
        if not set(names) & set(chosen):
            raise ValueError(f"{path} holds a {given.kind} network, which only {', '.join(names)} can show")
        if given.kind in found:
            raise ValueError(f"there are two checkpoints of {given.kind} networks: {found[given.kind][0]} and {path}")
        found[given.kind] = (path, given)
    return found


def _write(
    out: Path,
    name: str,
    entry: Any,
    found: dict[str, Any],
    settings: dict[str, Any],
    *,
    formats: list[str],
    dpi: int | None,
    size: tuple[float, float | None] | None,
) -> None:
    """Pictures, numbers and record, each moved into place when it is whole."""
    from organics_plot.styles import style

    with tempfile.TemporaryDirectory(dir=out, prefix=".part-") as part:
        with style():
            figure = entry.draw(found)
            if size is not None:
                width, height = figure.get_size_inches()
                figure.set_size_inches(size[0], size[1] or size[0] * height / width)
            sharp = {} if dpi is None else {"dpi": dpi}
            for suffix in formats:
                about = {"Subject" if suffix == "pdf" else "Description": entry.caption}
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", message="constrained_layout not applied")
                    try:
                        figure.savefig(Path(part, f"{name}.{suffix}"), bbox_inches=None, metadata=about, **sharp)
                    except UserWarning:
                        width, height = figure.get_size_inches()
                        raise ValueError(
                            f"--size is too small for {name}: its words leave no room for axes on "
                            f"{width:g} x {height:g} inches"
                        ) from None
        arrays: dict[str, Any] = {key: np.asarray(value) for key, value in found.items()}
        np.savez_compressed(Path(part, f"{name}.npz"), **arrays)
        write_json(
            Path(part, f"{name}.json"),
            {
                "figure": name,
                "caption": entry.caption,
                "source": entry.source,
                **settings,
                "versions": versions(),
                "headline": _headline(found),
            },
        )
        for file in sorted(os.listdir(part)):
            shutil.move(Path(part, file), out / file)


def _headline(found: dict[str, Any]) -> dict[str, Any]:
    """The small numbers, and of each larger array its shape and range."""
    summary: dict[str, Any] = {}
    for key, value in found.items():
        array = np.asarray(value)
        if array.size <= 12:
            summary[key] = array
        elif array.dtype.kind == "f" and np.isfinite(array).any():
            summary[key] = {"shape": array.shape, "min": float(np.nanmin(array)), "max": float(np.nanmax(array))}
    return summary
