"""Phase diagrams on all cores or on a Dask cluster, with a store from which an interrupted sweep resumes."""

from __future__ import annotations

try:
    import zarr  # noqa: F401
except ImportError as error:
    raise ImportError("organics_sweep needs zarr; install it with: pip install 'organics-core[sweep]'") from error

from .driver import run
from .spec import Sweep
from .store import Store, load


def register(app: object) -> None:
    """Add the command ``sweep`` to a command line.

    Parameters
    ----------
    app : typer.Typer
    """
    from .cli import register as add

    add(app)  # type: ignore[arg-type]


__all__ = ["Store", "Sweep", "load", "register", "run"]
