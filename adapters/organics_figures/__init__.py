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

__all__ = ["FIGURES", "SOURCES", "Entry"]


SOURCES = ("the paper's", "phenomena", "more")
"""After figures of Rawat, Heeger & Martiniani (2024) or their notebooks; what normalization explains; more."""


class Entry(NamedTuple):
    """One figure, as its module has it.

    Attributes
    ----------
    numbers : callable
        ``numbers(seed=0, quick=False)`` returns a dict of arrays; with
        ``takes`` also ``checkpoint=``, a trained network that was read.
    draw : callable
        From that dict to a matplotlib Figure, its panels lettered.
    caption : str
        What it shows, and of which parameters: the docstring of the module.
    trains : bool
        Whether it trains a small network, with jax or torch: ``TRAINS`` of the
        module.
    takes : str
        The kind of network a checkpoint must hold to be shown instead:
        ``"static"``, ``"recurrent"``, or ``""`` for none. ``TAKES`` of the
        module.
    source : str
        One of :data:`SOURCES`; ``SOURCE`` of the module.
    seconds : float
        About how long it takes on one core; ``SECONDS`` of the module.
    summary : str
        The first sentence of the caption, without the parameters.
    """

    numbers: Callable[..., dict[str, Any]]
    draw: Callable[[dict[str, Any]], Any]
    caption: str
    trains: bool = False
    takes: str = ""
    source: str = SOURCES[2]
    seconds: float = 3.0
    summary: str = ""


def _entry(name: str) -> Entry:
    figure = import_module(f"{__name__}.{name}")
    text = figure.__doc__ or ""

    def draw(found: dict[str, Any]) -> Any:
        from organics_plot.styles import letters

        return letters(figure.draw(found))

    rest = {field: getattr(figure, field.upper()) for field in Entry._field_defaults if hasattr(figure, field.upper())}
    rest["summary"] = " ".join(text.split("\n\n")[0].split())
    return Entry(figure.numbers, draw, " ".join(text.split()), **rest)


FIGURES: dict[str, Entry] = {
    name.replace("_", "-"): _entry(name)
    for name in sorted(module.name for module in iter_modules(__path__))
    if name[0] != "_" and name != "cli"
}
"""The figures by name."""
