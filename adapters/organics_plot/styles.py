"""One look for every picture: palette, fonts and the few helpers that keep axes tidy.

Colours are the colour-blind-safe set of Okabe and Ito, and for ordered
quantities (contrast, say) one ramp from light to dark blue, whose lightness
alone tells the order.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from organics_core.io.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK = "#22303C"
"""Text, axes."""
MUTED = "#74808B"
"""Secondary text, reference lines."""
GRID = "#E4E8EC"
SHADE = "#F1F4F7"
"""Background regions: a stimulus, the stable half-plane."""

COLORS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
}
CYCLE = tuple(COLORS.values())
CLASSES = (*CYCLE, INK, "#A3ACB5", "#8C5A2B", "#E8D81E")
"""For up to ten classes without an order."""
THEORY = COLORS["red"]
"""What an equation predicts, everywhere."""
MARKERS = ("o", "s", "^", "D", "v", "P")

LIBRARY_COLORS = {
    "numpy": INK,
    "strict": MUTED,
    "torch": COLORS["red"],
    "jax": COLORS["blue"],
    "cupy": COLORS["green"],
}

_RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 11,
    "axes.labelpad": 5,
    "axes.facecolor": "white",
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "axes.prop_cycle": f"cycler(color={list(CYCLE)})",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.9,
    "ytick.major.width": 0.9,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.title_fontsize": 10,
    "legend.handlelength": 1.4,
    "lines.linewidth": 2.0,
    "lines.markersize": 6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "figure.dpi": 110,
    "figure.titlesize": 14,
    "figure.titleweight": "bold",
    "savefig.dpi": 160,
    "savefig.facecolor": "auto",
    "svg.fonttype": "none",
}


_LOOK = (
    "lines patch hatch boxplot font text mathtext axes xtick ytick grid legend figure image contour errorbar hist "
    "scatter savefig path svg"
)
"""The groups of matplotlib's settings that decide how a picture looks."""


class _Inside:
    """One ``with style():`` that has begun, with the settings to go back to."""

    def __init__(self, before: dict[str, Any]) -> None:
        self.before = before


_LOCK = threading.Lock()
_INSIDE: list[_Inside] = []


@contextmanager
def style() -> Iterator[None]:
    """The style, for the figures made inside the ``with`` block only.

    It is whole: whatever style is in force, ``dark_background`` say, nothing of it
    shows. Threads may be inside at the same time; matplotlib has one set of
    settings for all of them, which is as it was before when the last has left.

    Yields
    ------
    None

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import organics_plot as plot
    >>> with plot.style():
    ...     ax = Figure().subplots()
    >>> ax.spines["top"].get_visible()
    False
    """
    import matplotlib

    default = {k: v for k, v in matplotlib.rcParamsDefault.items() if k.split(".")[0] in _LOOK.split()}
    with _LOCK:
        mine = _Inside(dict.copy(matplotlib.rcParams))
        _INSIDE.append(mine)
        matplotlib.rcParams.update(default | _RC)
    try:
        yield
    finally:
        with _LOCK:
            place = _INSIDE.index(mine)
            if place + 1 < len(_INSIDE):  # another thread is still inside: it goes back to what was before this one
                _INSIDE[place + 1].before = mine.before
            else:
                dict.update(matplotlib.rcParams, mine.before)
            del _INSIDE[place]


def ramp(first: str = "#A9D3EC") -> Colormap:
    """The colour map for ordered quantities, from ``first``, light, to dark."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("organics", [first, "#56B4E9", "#0072B2", "#0A2F56"])


def shades(count: int) -> list[tuple[float, ...]]:
    """``count`` colours of the ramp, light to dark."""
    colors = ramp()
    return [tuple(colors(i / max(count - 1, 1))) for i in range(count)]


def distinct(count: int) -> list[dict[str, Any]]:
    """``count`` looks of lines without an order: the colours, then the same dashed, dotted and dash-dotted."""
    return [{"color": CYCLE[i % len(CYCLE)], "ls": ("-", "--", ":", "-.")[i // len(CYCLE) % 4]} for i in range(count)]


def axes_or_current(ax: Axes | None) -> Axes:
    """``ax``, or pyplot's current axes."""
    if ax is None:
        import matplotlib.pyplot as plt

        return plt.gca()
    return ax


def new_figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A figure with constrained layout that pyplot does not know, and its axes (rows, columns).

    No window and no backend is involved, so that a program's own choice of one
    stays as it is.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.05, hspace=0.06)  # type: ignore[union-attr]
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:  # ticks are made when a figure is drawn, outside the style perhaps
        ax.tick_params(which="both", color=INK, labelcolor=INK, labelsize=_RC["xtick.labelsize"])
    return figure, axes


def letters(figure: Figure) -> Figure:
    """Put a, b, ... before the titles of a figure of several panels; colour bars have none."""
    panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    for letter, ax in zip("abcdefghijklmnopqrstuvwxyz", panels if len(panels) > 1 else [], strict=False):
        title = ax.get_title(loc="left")
        with style():
            ax.set_title(f"{letter}   {title}".rstrip(), loc="left")
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Save a figure in the style.

    Parameters
    ----------
    figure : matplotlib Figure
    path : str or Path
        Its ending says the format; missing folders are made. The file is whole or not there.

    Returns
    -------
    Path

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from matplotlib.figure import Figure
    >>> import organics_plot as plot
    >>> path = plot.save(Figure(), pathlib.Path(tempfile.mkdtemp()) / "new" / "empty.svg")
    >>> path.name, path.exists()
    ('empty.svg', True)
    """
    path = Path(path)
    form = path.suffix[1:] or None
    with style():
        write_atomically(path, lambda file: figure.savefig(file, format=form))
    return path


def log_ticks(low: float, high: float, steps: Sequence[float] = (1.0,)) -> list[float]:
    """Up to nine ticks from ``low`` to ``high``, both positive: ``steps`` times powers of ten, finer ones where fewer
    than two of these are there, evenly spaced ones within less than a decade, the ends of hardly any width.
    """
    from matplotlib.ticker import MaxNLocator

    if high < 1.05 * low:
        return sorted({low, high})
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for chosen in (steps, (1.0, 2.0, 5.0)):
        ticks = [step * 10.0**k for k in decades for step in chosen]
        ticks = [tick for tick in ticks if low / 1.01 <= tick <= 1.01 * high]
        if len(ticks) > 1:
            return ticks[:: -(-len(ticks) // 9)]
    return [float(tick) for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]


def log_axis(ax: Axes, low: float, high: float, name: Callable[[float], str], steps: Sequence[float] = (1.0,)) -> None:
    """A logarithmic x axis whose ticks are those of :func:`log_ticks`, called by ``name``, and no others."""
    ax.set_xscale("log")
    ticks = log_ticks(low, high, steps)
    ax.set_xticks(ticks, [name(tick) for tick in ticks])
    ax.set_xticks([], minor=True)


def plain(value: float) -> str:
    """A number in three digits at most, without an exponent up to a hundred thousand."""
    return f"{float(f'{value:.3g}'):g}"


def percent(value: float) -> str:
    """A fraction as a percentage, 3 % or 12.5 %, with a no-break space."""
    return f"{100 * value:.3g}\N{NO-BREAK SPACE}%"
