"""The command ``organics agree``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from organics_cli.console import Debug, command, console, output_folder, seconds

from .comparison import BOUND64, TORCH_JAX, compare, torch_against_jax
from .libraries import LIBRARIES, installed, require_libraries
from .printing import rich_table, save


def register(app: typer.Typer) -> None:
    """Add ``agree`` to a command line.

    Parameters
    ----------
    app : typer.Typer
    """
    app.command()(agree)


@command
def agree(
    output: Annotated[
        Path, typer.Option("--output", "--out", "-o", help="Write the table here, and as Markdown beside it.")
    ] = Path("organics-output/agreement.json"),
    require: Annotated[
        list[str] | None, typer.Option("--require", help="Fail if this library is missing; may be repeated.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Do all installed array libraries compute the same? Exit code 1 if any exceeds its bound."""
    raise typer.Exit(run(output, require=require or []))


def run(path: Path, *, require: Sequence[str] = ()) -> int:
    """Print the table and save it in ``path``, a JSON file; 1 if any bound is exceeded."""
    if path.suffix != ".json":
        raise ValueError(f"--output must name a .json file, got {path}")
    for name in require:
        if name not in LIBRARIES:
            raise ValueError(f"unknown library {name!r} for --require; choose one of {', '.join(LIBRARIES)}")
    missing: dict[str, str] = {}
    columns = installed(missing)
    require_libraries(require, columns, missing)
    output_folder(path.parent)
    screen = console()
    with screen.status("comparing …") as status:
        agreement = compare(columns, on_step=lambda column, name: status.update(f"{column}: {name}"))
        pair = torch_against_jax()
    screen.print()
    screen.print(rich_table(agreement, pair))
    for name, reason in missing.items():
        screen.print(f"[dim]{name}: {reason}[/]")
    files = save(agreement, path, pair)
    good = agreement.ok and (pair is None or pair.ok)
    total = seconds(sum(agreement.wall.values()))
    screen.print(
        f"\nbounds: float64 {BOUND64:.0e}; float32 1e-05 to 1e-04, row by row in {files[1]}",
        soft_wrap=True,
        markup=False,
    )
    if good:
        screen.print(f"[bold green]✓ all {len(agreement.cells)} comparisons within their bounds[/] ({total})")
    else:
        bad = [f"{name} in {key}" for (name, key), cell in agreement.cells.items() if not cell.ok]
        bad += [TORCH_JAX] if pair is not None and not pair.ok else []
        screen.print(f"[bold red]✗ beyond their bounds: {'; '.join(bad)}[/]")
    return 0 if good else 1
