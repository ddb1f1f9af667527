"""Commands that live in other packages, imported only when one of them is called.

To add a command: write ``register(app: typer.Typer)`` in a module of your package, and name the module, with its
commands and their first help lines, in :data:`ELSEWHERE`. A test compares these lines with the commands' own.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from .console import EXIT_BAD_INPUT, complain

ELSEWHERE: dict[str, dict[str, str]] = {
    "organics_agree.cli": {
        "agree": "Do all installed array libraries compute the same? Exit code 1 if any exceeds its bound.",
    },
    "organics_train.cli": {
        "train": "Train a model; leaves a checkpoint, results as JSON and a curve. Gradients are never clipped.",
        "reproduce": "Train the rows of the paper's two tables, and say how far they are from the authors' numbers.",
        "analyse": "Fixed points, trajectories and selectivity of nets that train taught a cognitive task.",
        "table": "Collect results beside the paper's two tables; with --model, train what is missing first.",
    },
    "organics_figures.cli": {
        "figures": "Draw the paper's figures and more, with the numbers behind them. See --list.",
    },
    "organics_explore.cli": {
        "explore": "Open a page whose sliders move a circuit, its responses, fixed points, stability and spectrum. "
        "Ctrl-C ends it.",
    },
    "organics_sweep.cli": {
        "sweep": "Phase diagram of random recurrence: who settles, oscillates or diverges. Interrupted sweeps resume.",
    },
}
"""Module: {command: first line of its help}."""


def load(name: str) -> Any:
    """Import the command ``name`` from where it lives."""
    module = next(module for module, commands in ELSEWHERE.items() if name in commands)
    app = typer.Typer()
    app.callback()(lambda: None)  # stays a group even with one command
    try:
        import_module(module).register(app)
    except ImportError as error:  # an extra is missing; the message names it
        complain(str(error))
        raise typer.Exit(EXIT_BAD_INPUT) from None
    return typer.main.get_group(app).commands[name]


def _readable(command: Any, ctx: Any) -> Any:
    """Flags without the type that typer's help gives them."""
    for parameter in (*command.params, command.get_help_option(ctx)) if command else ():
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return command


class Group(TyperGroup):
    """A group that knows the commands of :data:`ELSEWHERE`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All commands, those defined here first."""
        return [*super().list_commands(ctx), *(name for commands in ELSEWHERE.values() for name in commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command; while the group's own help is shown, a name and a line stand for one that lives elsewhere."""
        lines = {name: line for commands in ELSEWHERE.values() for name, line in commands.items()}
        if cmd_name not in lines:
            return _readable(super().get_command(ctx, cmd_name), ctx)
        return TyperCommand(cmd_name, help=lines[cmd_name]) if self._listing else _readable(load(cmd_name), ctx)

    _listing = False

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The group's help."""
        self._listing = True
        try:
            _readable(self, ctx)
            super().format_help(ctx, formatter)
        finally:
            self._listing = False
