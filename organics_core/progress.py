"""A line on the terminal that says how far a long computation is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from . import checks

Progress = bool | Callable[[float], Any] | None
"""True: a bar on the terminal; a callable: it gets the fraction done, from 0 to 1."""


def progress_of(progress: Progress, label: str) -> AbstractContextManager[Callable[[float], None]] | None:
    """What shows the progress, as a context; None where none is wanted.

    Raises
    ------
    TypeError
        If ``progress`` is neither a flag nor callable.
    """
    if progress is None or progress is False:
        return None
    if progress is True:
        return _bar(label)
    if callable(progress):
        return _told(progress)
    raise TypeError(f"progress must be True, False or a function of the fraction done, got {checks.describe(progress)}")


@contextmanager
def _told(function: Callable[[float], Any]) -> Iterator[Callable[[float], None]]:
    yield lambda fraction: function(fraction)


@contextmanager
def _bar(label: str) -> Iterator[Callable[[float], None]]:
    """Nothing in the first half second; then one line, written again at most ten times a second."""
    begun = last = time.monotonic()
    shown = False

    def tell(fraction: float) -> None:
        nonlocal last, shown
        now = time.monotonic()
        if now - begun < 0.5 or (now - last < 0.1 and fraction < 1.0):
            return
        last, shown = now, True
        left = (now - begun) * (1.0 - fraction) / max(fraction, 1e-9)
        filled = round(30 * fraction)
        sys.stderr.write(
            f"\r{label} [{'#' * filled}{'.' * (30 - filled)}] {100 * fraction:3.0f} %  {left:5.0f} s left "
        )
        sys.stderr.flush()

    try:
        yield tell
    finally:
        if shown:
            sys.stderr.write("\n")
