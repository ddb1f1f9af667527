"""The command line, ``organics``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line.

    Raises
    ------
    SystemExit
        With the exit code; without the command line's dependencies, naming the extra that brings them.
    """
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        print(
            f"error: the command line needs {error.name}; install it with: pip install 'organics-core[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None  # as bad input does; 1 would say "not stable"
    from rich.console import Console

    from .terminal import end_without_reader, prepare

    def nobody_reads(self: Console) -> None:
        raise end_without_reader()

    Console.on_broken_pipe = nobody_reads  # type: ignore[method-assign]  # of --help too; rich ends with 1
    prepare()
    from .app import app

    try:
        app(prog_name="organics")
    except BrokenPipeError:
        raise end_without_reader() from None


__all__ = ["main"]
