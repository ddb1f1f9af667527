"""Processor time of a move of a slider of `organics explore`, in milliseconds, without marimo and the browser.

    python benchmarks/explorer.py [--moves 18] [--afresh]

Medians over one slider after the other, W_r = I and, by its norm at the start, a random W_r; it writes
benchmarks/results/explorer.json. With ``--afresh`` the same panels are drawn in new figures, with matplotlib's layout,
beside, and nothing is written.
"""

import argparse
import io
import itertools
import time

import measure

import organics_explore as explore
from organics_plot import style, styles

CASES = [explore.Settings(neurons) for neurons in (1, 2, 12, 36)]
CASES += [explore.Settings(neurons, kind="random", w_r=norm) for neurons in (12, 36) for norm in (1.0, 2.0, 3.0)]


def afresh(panel, solved):
    figure, axes = styles.new_figure(1, 1, explore.picture.SIZE)
    panel(solved, axes[0, 0])
    figure.savefig(io.BytesIO(), dpi=explore.picture.DPI)


def moves(now, panels, draw):
    for name in itertools.cycle(name for name in explore.RANGES if name != "neurons"):
        moved = explore.settings_from({name: getattr(now, name) + explore.RANGES[name][2]})
        now = now._replace(**{name: getattr(moved, name)})
        solved = explore.solve(now)
        with style():
            [draw(panel, solved) for panel in panels]
        yield explore.report(solved), explore.python_code(now)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--moves", type=int, default=18, help="of each row; default: 18, twice every slider")
parser.add_argument("--afresh", action="store_true", help="draw in new figures as well")
arguments = parser.parse_args()
with style():
    pictures = [explore.Picture(panel) for panel in explore.PANELS]
rows = []
for case in CASES:
    runs = {"page": moves(case, pictures, explore.Picture.png)}
    if arguments.afresh:
        runs["afresh"] = moves(case, explore.PANELS, afresh)
    seconds = measure.in_turn({name: run.__next__ for name, run in runs.items()}, arguments.moves, time.process_time)
    milliseconds = {name: 1e3 * value for name, value in seconds.items()}
    rows.append({"neurons": case.neurons, "kind": case.kind, "w_r": case.w_r, **milliseconds})
    print(rows[-1], flush=True)
if not arguments.afresh:
    found = {"clock": "processor", "moves": arguments.moves, "milliseconds": rows}
    print(measure.save("explorer", found, ("organics-core", "numpy", "matplotlib")))
