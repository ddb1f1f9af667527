"""The figures: ``organics figures``. Each is one module, which computes its numbers and draws them.

A public module of this package is a figure, found by its file: ``phase_portraits.py`` is ``phase-portraits``.

>>> from organics_figures import FIGURES
>>> sorted(FIGURES)[:2]
['attention', 'contrast-saturation']
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, NamedTuple

__all__ = ["FIGURES", "Entry"]


class Entry(NamedTuple):
    """One figure, as its module has it.

    Attributes
    ----------
    numbers : callable
        ``numbers(seed=0, quick=False)`` returns a dict of arrays; with
        ``takes`` also ``checkpoint=``, a trained network that was read.
    draw : callable
        From that dict to a matplotlib Figure.
    caption : str
        What it shows: the docstring of the module.
    trains : bool
        Whether it trains a small network, with jax or torch: ``TRAINS`` of the
        module.
    takes : str
        The kind of network a checkpoint must hold to be shown instead:
        ``"static"``, ``"recurrent"``, or ``""`` for none. ``TAKES`` of the
        module.
    """

    numbers: Callable[..., dict[str, Any]]
    draw: Callable[[dict[str, Any]], Any]
    caption: str
    trains: bool = False
    takes: str = ""


def _entry(name: str) -> Entry:
    figure = import_module(f"{__name__}.{name}")
    caption = " ".join((figure.__doc__ or "").split())
    return Entry(figure.numbers, figure.draw, caption, getattr(figure, "TRAINS", False), getattr(figure, "TAKES", ""))


FIGURES: dict[str, Entry] = {
    name.replace("_", "-"): _entry(name)
    for name in sorted(module.name for module in iter_modules(__path__))
    if name[0] != "_" and name != "cli"
}
"""The figures by name."""
