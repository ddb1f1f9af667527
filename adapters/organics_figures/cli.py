"""``organics figures``."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from organics_cli.console import Debug, command, console, output_folder, quiet_matplotlib, versions, write_json


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(figures)


@command
def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Figures to draw; see --list.", metavar="[NAME]...")] = None,
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
    debug: Debug = False,
) -> None:
    """Draw the paper's figures as PNG and SVG, with the numbers behind them. See --list."""
    from . import FIGURES

    screen = console()
    if listing:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for name, entry in FIGURES.items():
            table.add_row(f"[bold]{name}[/]", entry.caption)
        screen.print(table)
        return
    chosen = list(FIGURES) if everything else list(dict.fromkeys(names or []))
    if not chosen:
        raise ValueError("name a figure, or ask for --all; --list shows what there is")
    for name in chosen:
        if name not in FIGURES:
            raise ValueError(f"unknown figure {name!r}; choose one of {', '.join(FIGURES)}")
    given = _checkpoints(checkpoint or [], chosen)
    quiet_matplotlib()
    output_folder(out)
    for index, name in enumerate(chosen, start=1):
        entry = FIGURES[name]
        begin = time.perf_counter()
        path, shown = given.get(entry.takes, (None, None))
        with screen.status(f"{index}/{len(chosen)} {name}: {entry.caption}"):
            options = {} if shown is None else {"checkpoint": shown}
            found = entry.numbers(seed=seed, quick=quick, **options)
            _write(out, name, entry, found, {"seed": seed, "quick": quick, "checkpoint": path})
        took = time.perf_counter() - begin
        screen.print(f"[green]✓[/] {index}/{len(chosen)} {out / name}.png  [dim]{took:.1f} s[/]", soft_wrap=True)


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


def _write(out: Path, name: str, entry: Any, found: dict[str, Any], settings: dict[str, Any]) -> None:
    """PNG, SVG, numbers and record, each moved into place when it is whole."""
    from organics_plot.styles import style

    with tempfile.TemporaryDirectory(dir=out, prefix=".part-") as part:
        with style():
            figure = entry.draw(found)
            for suffix in ("png", "svg"):
                figure.savefig(Path(part, f"{name}.{suffix}"), bbox_inches=None)
        arrays: dict[str, Any] = {key: np.asarray(value) for key, value in found.items()}
        np.savez_compressed(Path(part, f"{name}.npz"), **arrays)
        write_json(
            Path(part, f"{name}.json"),
            {
                "figure": name,
                "caption": entry.caption,
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
