"""The table of all embedding sessions: ``python summary.py FOLDER FRAMEWORK ...``.

Reads what the sessions left in FOLDER, prints it, saves benchmarks/results/embed.json,
and fails where a framework left nothing.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

TARGET = Path(__file__).parents[2] / "benchmarks" / "results" / "embed.json"


def main(folder: str, *frameworks: str) -> int:
    """Print and save; 1 where a framework is missing."""
    files = {name: Path(folder, f"{name}.jsonl") for name in frameworks}
    rows = [json.loads(line) for file in files.values() if file.exists() for line in file.read_text().splitlines()]
    table = Table("framework", "version", "transient error", "fixed-point error", "note", title="Embedding")
    for row in rows:
        for key in ("transient_error", "fixed_point_error"):
            row[key] = None if math.isnan(row[key]) else row[key]
        errors = ["-" if row[key] is None else f"{row[key]:.1e}" for key in ("transient_error", "fixed_point_error")]
        table.add_row(row["framework"], row["version"], *errors, row["note"])
    Console(width=120).print(table)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps({"python": sys.version.split()[0], "rows": rows}, indent=2) + "\n")
    missing = [name for name, file in files.items() if not file.exists()]
    if missing:
        print(f"nothing from {', '.join(missing)}: see the sessions above", file=sys.stderr)
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
