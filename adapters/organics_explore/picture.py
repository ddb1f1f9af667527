"""A panel that is drawn again and again: most of the time of a picture goes into what stands around the curves."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (5.2, 3.9)
PLACE = (0.18, 0.16, 0.69, 0.71)
"""Of the axes in the figure, said so that no layout is computed: left, bottom, width, height."""
DPI = 110


def new_axes() -> Axes:
    """Axes in a figure of their own, where everything has its place."""
    from matplotlib.figure import Figure

    ax = Figure(SIZE, dpi=DPI).add_axes(PLACE)
    ax.xaxis.set_label_coords(0.5, -0.12)
    ax.yaxis.set_label_coords(-0.2, 0.5)
    ax.yaxis.get_offset_text().set(x=-0.24, fontsize=9)  # a power of ten, beside the title
    return ax


class Picture:
    """A panel as a picture, drawn again at every move.

    The axes stay, and with them what was drawn around the curves: ticks, labels and
    title are drawn again only where they have changed. The rest is new in every picture.

    Parameters
    ----------
    panel : callable
        One of :data:`PANELS`.

    Attributes
    ----------
    panel : callable
    figure : matplotlib Figure
        As it was drawn last.

    Examples
    --------
    >>> import organics_plot
    >>> from organics_explore import PANELS, Settings, solve
    >>> with organics_plot.style():
    ...     Picture(PANELS[0]).png(solve(Settings(neurons=2)))[1:4]
    b'PNG'
    """

    def __init__(self, panel: Callable[[Any, Axes], None]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        self.panel = panel
        self._ax = new_axes()
        self.figure = self._ax.figure
        self._canvas = FigureCanvasAgg(self.figure)
        self._rest: tuple[Any, Any] = (None, None)  # what decides how it looks, and the pixels
        self._vertical: tuple[Any, Any] = (None, None)
        self._pixels = self._png = b""

    def png(self, solved: Any) -> bytes:
        """The picture of what :func:`solve` found, as PNG; to be called in the style."""
        ax, canvas = self._ax, self._canvas
        for artist in _content(ax):
            artist.remove()
        ax.set_axis_on()
        ax.set_aspect("auto")
        ax.relim()
        ax.autoscale(True)
        self.panel(solved, ax)
        ax.minorticks_off()
        content = [*_content(ax), *(line for line in ax.spines.values() if ax.axison and line.get_visible())]
        self._draw_around(content)
        for artist in sorted(content, key=lambda artist: artist.get_zorder()):
            ax.draw_artist(artist)
        pixels = bytes(canvas.buffer_rgba())
        if pixels != self._pixels:
            self._pixels, self._png = pixels, _png(np.asarray(canvas.buffer_rgba())[..., :3])
        return self._png

    def _draw_around(self, content: list[Any]) -> None:
        """Everything but the content: first all but the vertical axis, the one that changes most often, then that."""
        ax, canvas, label = self._ax, self._canvas, self._ax.yaxis.label
        words = (ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel())
        rest = (ax.get_xlim(), ax.get_xscale(), ax.get_aspect(), ax.axison, words)
        vertical = (rest, ax.get_ylim(), ax.get_yscale())
        if rest != self._rest[0]:
            for artist in (*content, ax.yaxis):
                artist.set_visible(False)
            canvas.draw()
            for artist in (*content, ax.yaxis):
                artist.set_visible(True)
            if ax.axison:
                ax.draw_artist(label)
            self._rest = rest, canvas.copy_from_bbox(self.figure.bbox)
        if vertical != self._vertical[0]:
            canvas.restore_region(self._rest[1])
            if ax.axison:
                label.set_visible(False)
                ax.draw_artist(ax.yaxis)
                label.set_visible(True)
            self._vertical = vertical, canvas.copy_from_bbox(self.figure.bbox)
        canvas.restore_region(self._vertical[1])


def _content(ax: Axes) -> list[Any]:
    return [*ax.lines, *ax.collections, *ax.patches, *ax.texts, *ax.images]


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    """Pixels (H, W, 3) as PNG without filters, in half the time that it takes with them."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 1)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
