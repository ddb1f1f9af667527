"""What every command shares: consoles, one-line errors, atomic files, small formatters."""

from __future__ import annotations

import functools
import inspect
import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from .terminal import end_without_reader

EXIT_STABLE, EXIT_NOT_STABLE, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

F = TypeVar("F", bound=Callable[..., Any])

Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Troubleshooting")
]


def console() -> Console:
    """The console for results: standard output, whatever it is at the moment."""
    return Console(highlight=False)


def complain(text: str) -> None:
    """One red line on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] [red]{escape(text)}[/]")


def command(function: F) -> F:
    """Turn errors into one line on standard error and exit code 2, and Ctrl-C into a clean ending."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            result = function(*args, **kwargs)
            sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            Console(stderr=True, highlight=False).print(
                "\n[yellow]Stopped.[/] Pictures and files finished so far are kept."
            )
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:  # of rich before it had a hook for this
            raise end_without_reader() from None
        except (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError) as error:
            if kwargs.get("debug"):
                raise
            complain(_one_line(error))
            raise typer.Exit(EXIT_BAD_INPUT) from None

    wrapper.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


@contextmanager
def terminable() -> Iterator[None]:
    """While inside, a polite request to end (SIGTERM) is as Ctrl-C, so that nothing half written is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}"
    if isinstance(error, OSError) and error.strerror:  # without a name
        return error.strerror.lower()
    text = " ".join(str(error).split()) or type(error).__name__
    return f"not enough memory: {text[:1].lower()}{text[1:]}" if isinstance(error, MemoryError) else text


def quiet_matplotlib() -> None:
    """Draw without a display. Only the command line does this; the libraries leave the backend alone."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError("pictures need matplotlib; install it with: pip install 'organics-core[plot]'") from None
    matplotlib.use("Agg")


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all."""
    from organics_core.io.atomic import write_atomically  # --help imports no science

    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))  # of paths
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write strict JSON; numbers that are not finite become null."""
    return write_text(path, json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Arrays, numbers and tuples as what JSON knows."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def output_folder(path: Path) -> Path:
    """Make the folder, or say in one sentence why not."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, not a folder; choose another --output")
    path.mkdir(parents=True, exist_ok=True)
    return path


def counted(count: int, thing: str) -> str:
    """1 neuron, 2 neurons."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def seconds(value: float) -> str:
    """A time in a unit that suits it."""
    if not math.isfinite(value):
        return "-"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if float(f"{abs(value):.3g}") >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g} s"


def versions() -> dict[str, str]:
    """Versions of what is installed, for the records."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in ("organics-core", "numpy", "array-api-compat", "array-api-strict", "torch", "jax", "cupy-cuda13x"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
