"""Sessions that run the circuit inside real simulation frameworks, each in an environment of its own.

``nox -s embed-scipy`` and so on run one of them; ``nox -s embed`` runs them all,
prints the table and saves it as benchmarks/results/embed.json.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import nox

# name: (packages beside the project's extra, packages without their dependencies)
FRAMEWORKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "scipy": ((), ()),
    "diffrax": ((), ()),
    # norse asks for torchvision, whose wheels do not fit every torch, and needs it for its MNIST example only
    "torch": (("nir", "nirtorch"), ("norse>=1.1",)),
    "brainstate": ((), ()),
    "brainpy": ((), ()),
    "nengo": ((), ()),
    # brian2 2.9, the last for Python 3.11, does not work with numpy 2.4
    "brian2": (("numpy<2.4",) if sys.version_info < (3, 12) else (), ()),
    "pyrates": ((), ()),
    "keras": (("torch", "jax"), ()),
    "tvb": ((), ()),
}
EXTRAS = {"torch": "torch,torchdiffeq,torchode,ncps,lightning"}
MISSING: dict[str, str] = {}
"""Frameworks without a release for this Python, and why."""

ROOT = Path(__file__).parent
TABLE = ROOT / "benchmarks" / "results" / "embed.json"


def embed_one(session: nox.Session, name: str) -> None:
    """Install one framework and run its tests."""
    if name in MISSING:
        session.skip(f"{name}: {MISSING[name]}")
    packages, bare = FRAMEWORKS[name]
    session.install("-c", "constraints.txt", "-e", f".[{EXTRAS.get(name, name)}]", "pytest>=8", *packages)
    if bare:
        session.install("--no-deps", *bare)
    runs = [{}]
    if name == "keras":
        runs = [{"KERAS_BACKEND": backend} for backend in ("torch", "jax")]
    for more in runs:
        environment = {
            "ORGANICS_EMBED": name,
            "ORGANICS_EMBED_OUT": os.environ.get("ORGANICS_EMBED_OUT", str(Path(session.create_tmp()).resolve())),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # nengo's own plugin does not load in today's pytest
            "OMP_NUM_THREADS": "1",
            **more,
        }
        files = f"tests/embed/test_embed_{name}.py"
        session.run("pytest", "--confcutdir=tests/embed", files, *session.posargs, env=environment)


def _define(name: str) -> None:
    @nox.session(name=f"embed-{name}", default=False)
    def one(session: nox.Session) -> None:
        embed_one(session, name)

    one.__doc__ = f"The circuit inside {name}."


for _name in FRAMEWORKS:
    _define(_name)


@nox.session(default=False, venv_backend="none")
def embed(session: nox.Session) -> None:
    """All frameworks one after the other; prints (framework, version, transient error, fixed-point error)."""
    out = Path(session.create_tmp()).resolve() / "lines"
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in FRAMEWORKS:
        (out / f"{name}.jsonl").unlink(missing_ok=True)
        try:
            session.run(
                sys.executable, "-m", "nox", "-s", f"embed-{name}", external=True, env={"ORGANICS_EMBED_OUT": str(out)}
            )
        except nox.command.CommandFailed:
            failed.append(name)
    rows = [json.loads(line) for file in sorted(out.glob("*.jsonl")) for line in file.read_text().splitlines()]
    print(table(rows))
    for row in rows:
        for key in ("transient_error", "fixed_point_error"):
            if math.isnan(row[key]):
                row[key] = None
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(json.dumps({"python": sys.version.split()[0], "rows": rows, "skipped": MISSING}, indent=2) + "\n")
    if failed:
        session.error(f"failed: {', '.join(failed)}")


def table(rows: list[dict]) -> str:
    """The summary as text."""

    def number(value: float) -> str:
        return "-" if value is None or math.isnan(value) else f"{value:.1e}"

    lines = [f"{'framework':<14}{'version':<12}{'transient error':<18}{'fixed-point error':<19}note"]
    for row in rows:
        errors = f"{number(row['transient_error']):<18}{number(row['fixed_point_error']):<19}"
        lines.append(f"{row['framework']:<14}{row['version']:<12}{errors}{row['note']}")
    return "\n".join(lines)
