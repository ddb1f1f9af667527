"""``organics explore``."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from organics_cli.console import Debug, command

NOTEBOOK = Path(__file__).with_name("notebook.py")


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(explore)


@command
def explore(
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Of the page; default: a free one.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    edit: Annotated[bool, typer.Option("--edit", help="Open the notebook itself, to change it.")] = False,
    debug: Debug = False,
) -> None:
    """Open a page whose sliders move a circuit, its responses, fixed points, stability and spectrum. Ctrl-C ends it."""
    if find_spec("marimo") is None:
        raise ImportError("organics explore needs marimo; install it with: pip install 'organics-core[explore]'")
    words = [sys.executable, "-m", "marimo", "edit" if edit else "run", str(NOTEBOOK)]
    words += [] if port is None else ["--port", str(port)]
    words += [] if browser else ["--headless"]
    raise typer.Exit(subprocess.run(words).returncode)
