"""Processor time of a move of a slider of `organics explore`, in milliseconds, without marimo and the browser.

    python benchmarks/explorer.py [--moves 20]

``afresh`` draws the same panels in new figures, with matplotlib's layout. Medians over one slider after the other.
"""

import argparse
import io
import itertools
import time

import measure

import organics_explore as explore
from organics_plot import style, styles


def afresh(panel, solved):
    figure, axes = styles.new_figure(1, 1, explore.picture.SIZE)
    panel(solved, axes[0, 0])
    figure.savefig(io.BytesIO(), dpi=explore.picture.DPI)


def moves(neurons, panels, draw):
    now = explore.Settings(neurons)
    for name in itertools.cycle(name for name in explore.RANGES if name != "neurons"):
        moved = explore.settings_from({name: getattr(now, name) + explore.RANGES[name][2]})
        now = now._replace(**{name: getattr(moved, name)})
        solved = explore.solve(now)
        with style():
            [draw(panel, solved) for panel in panels]
        yield explore.report(solved), explore.python_code(now)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--moves", type=int, default=20, help="for each number of neurons; default: 20")
count = parser.parse_args().moves
with style():
    pictures = [explore.Picture(panel) for panel in explore.PANELS]
print(f"{'neurons':>8}{'page':>8}{'afresh':>8}")
for neurons in (1, 2, 12, 36):
    runs = {"page": moves(neurons, pictures, explore.Picture.png), "afresh": moves(neurons, explore.PANELS, afresh)}
    seconds = measure.in_turn({name: run.__next__ for name, run in runs.items()}, count, time.process_time)
    print(f"{neurons:8}" + "".join(f"{1e3 * value:8.0f}" for value in seconds.values()))
