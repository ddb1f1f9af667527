"""Draw the picture at the top of README.md: ``python docs/hero.py [PATH]``."""

import sys
from pathlib import Path

import organics_plot as op

if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images" / "hero.png"
    op.save(op.overview_figure(op.contrast_experiment()), path)
