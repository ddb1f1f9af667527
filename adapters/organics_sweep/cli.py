"""``organics sweep``."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from organics_cli.console import Debug, command, console, terminable, write_json
from organics_core.analysis.classification import KINDS
from organics_core.io.locks import alone_in

from . import Store, Sweep, load, run
from .driver import dask_distributed
from .store import TornStore


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(sweep)


def numbers(text: str) -> tuple[float, ...]:
    """``"0,0.5,1"`` or ``"first:last:count"`` as numbers."""
    try:
        if ":" in text:
            first, last, count = text.split(":")
            return tuple(float(value) for value in np.linspace(float(first), float(last), int(count)))
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers; write 0,0.5,1 or first:last:count") from None


@command
def sweep(
    n: Annotated[int, typer.Option("--n", help="Neurons.")] = 20,
    deltas: Annotated[str, typer.Option("--deltas", help="Strengths: a,b,c or first:last:count.")] = "0:2:9",
    norms: Annotated[str, typer.Option("--norms", help="Input norms, likewise.")] = "0.1,0.3,1,3,10",
    draws: Annotated[int, typer.Option("--draws", help="Random circuits per point.")] = 10,
    ensemble: Annotated[str, typer.Option("--ensemble", help="goe or gaussian.")] = "goe",
    variant: Annotated[str, typer.Option("--variant", help="main, rectified or rectified_recurrence.")] = "main",
    seed: Annotated[int, typer.Option("--seed")] = 0,
    block: Annotated[int, typer.Option("--block", help="Draws per task.")] = 5,
    workers: Annotated[int | None, typer.Option("--workers", min=0, help="Processes; default: all cores.")] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="Address of a Dask scheduler, such as tcp://host:8786.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--output", "--out", "-o", help="Folder of the store; resumed if it is there.")
    ] = Path("organics-output/sweep"),
    debug: Debug = False,
) -> None:
    """Phase diagram of random recurrence: who settles, oscillates or diverges. Interrupted sweeps resume."""
    spec = Sweep(
        n=n, deltas=numbers(deltas), norms=numbers(norms), draws=draws, ensemble=ensemble, variant=variant, seed=seed,
        block=block,
    )  # fmt: skip
    if scheduler is not None and workers is not None:
        raise ValueError("give --workers, processes here, or --scheduler, a cluster that has its own, not both")
    screen = console()
    store = out / "store.zarr"
    if store.exists():
        screen.print(f"Resuming {store}: reading what is there.", soft_wrap=True, markup=False)
        sys.stdout.flush()
    columns = (TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    cluster = nullcontext() if scheduler is None else dask_distributed().Client(scheduler)
    with terminable(), alone_in(out), cluster as client, Progress(*columns, console=screen) as bar:
        job = bar.add_task("tasks", total=None)
        said, resumed = -np.inf, store.exists()

        def progress(done: int, total: int) -> None:
            nonlocal said, resumed
            if resumed:
                screen.print(f"{done} of {total} tasks were there already.")
                resumed = False
            bar.update(job, completed=done, total=total)
            if not screen.is_terminal and (done == total or time.monotonic() > said + 10):
                said = time.monotonic()
                screen.print(f"{done} of {total} tasks done")
                sys.stdout.flush()

        def compute() -> None:
            run(spec, store, workers=workers, client=client, progress=progress)

        compute()
        try:
            found = load(store)
        except TornStore:
            count = Store(store, spec).forget_torn()
            screen.print(f"Tasks that could not be read and are computed again: {count}.")
            compute()
            found = load(store)
    counts = {name: int(np.sum(found.kind == code)) for code, name in enumerate(KINDS)}
    table = Table(title="share of stable fixed points", caption="columns: norm of the input")
    table.add_column("delta", justify="right")
    for norm in found.norms:
        table.add_column(f"{norm:g}", justify="right")
    for delta, row in zip(found.deltas, found.kind, strict=True):
        table.add_row(f"{delta:g}", *(f"{np.mean(cell == 0):.0%}" for cell in row))
    screen.print(table)
    screen.print(", ".join(f"{name} {count}" for name, count in counts.items()))
    circuits = int(found.kind.size)
    summary = {"sweep": spec.describe(), "circuits": circuits, "kinds": counts, "simulated": int(found.simulated.sum())}
    screen.print(f"Numbers: {write_json(out / 'summary.json', summary)}", soft_wrap=True, markup=False)
