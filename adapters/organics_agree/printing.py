"""The agreement table on the terminal, as Markdown and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from organics_cli.console import versions, write_json, write_text

from .comparison import BOUND64, TORCH_JAX, Agreement, Cell


def rich_table(agreement: Agreement, pair: Cell | None = None) -> Table:
    """The table for the terminal."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title="Largest relative difference from numpy float64",
        title_justify="left",
        title_style="bold",
        padding=(0, 1),
    )
    table.add_column("quantity", ratio=None, min_width=18)
    others = [column for column in agreement.columns if not column.reference]
    for column in others:
        table.add_column(f"{column.library}\n{column.dtype}", justify="right", no_wrap=True)
    for quantity in agreement.quantities:
        table.add_row(quantity.name, *(_show(agreement.cell(quantity, column.key)) for column in others))
    if pair is not None:
        marks = [_show(pair) if column.key == "jax float64" else Text("") for column in others]
        table.add_row(TORCH_JAX, *marks)
    return table


def _show(cell: Cell | None) -> Text:
    if cell is None:
        return Text("-", style="dim")
    return Text(f"{cell.difference:.0e} {'✓' if cell.ok else '✗'}", style="green" if cell.ok else "bold red")


def markdown(agreement: Agreement, pair: Cell | None = None) -> str:
    """The table as Markdown, with the bounds."""
    others = [column for column in agreement.columns if not column.reference]
    head = ["quantity", *(f"{column.library} {column.dtype}" for column in others), "bound, float64", "bound, float32"]
    lines = [
        "# Agreement of the array libraries",
        "",
        "Largest relative difference from numpy float64 (of an array, relative to its largest value; worst circuit).",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "|".join(["---"] + ["--:"] * (len(head) - 1)) + "|",
    ]
    for quantity in agreement.quantities:
        row = [quantity.name]
        for column in others:
            cell = agreement.cell(quantity, column.key)
            row.append("-" if cell is None else f"{cell.difference:.1e} {'✓' if cell.ok else '✗'}")
        lines.append("| " + " | ".join([*row, f"{BOUND64:.0e}", f"{quantity.bound32:.0e} ({quantity.why32})"]) + " |")
    if pair is not None:
        lines += ["", f"Full gradients, torch against jax in float64: {pair.difference:.1e} {'✓' if pair.ok else '✗'}"]
    found = ", ".join(f"{name} {number}" for name, number in versions().items())
    return "\n".join([*lines, "", f"With {found}.", ""])


def as_json(agreement: Agreement, pair: Cell | None = None) -> dict[str, Any]:
    """The table as plain data."""
    return {
        "reference": "numpy float64",
        "ok": agreement.ok and (pair is None or pair.ok),
        "libraries": [column.key for column in agreement.columns],
        "seconds": agreement.wall,
        "versions": versions(),
        "differences": {
            quantity.name: {
                column.key: {"difference": cell.difference, "bound": cell.bound, "ok": cell.ok}
                for column in agreement.columns
                if (cell := agreement.cell(quantity, column.key)) is not None
            }
            for quantity in agreement.quantities
        },
        TORCH_JAX: None if pair is None else {"difference": pair.difference, "bound": pair.bound, "ok": pair.ok},
    }


def save(agreement: Agreement, path: Path, pair: Cell | None = None) -> tuple[Path, Path]:
    """Write the table as JSON, and as Markdown beside it."""
    return (
        write_json(path, as_json(agreement, pair)),
        write_text(path.with_suffix(".md"), markdown(agreement, pair)),
    )
