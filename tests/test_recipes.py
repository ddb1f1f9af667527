"""The recipes of CONTRIBUTING.md, followed in a copy of the tree: they work, and touch as many files as is said."""

from __future__ import annotations

import configparser
import hashlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from support import PATIENCE, ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
TREE = ("organics_core", "backends", "adapters", "tests", "examples", "pyproject.toml", "noxfile.py", "constraints.txt")
TABLE = {name: int(count) for name, count in re.findall(r"^\| (an? [a-z ]+?) \| (\d) \| .* \|$", PAGE, re.MULTILINE)}
"""What can be added, and how many files that takes."""


class Piece(NamedTuple):
    """A code block: a new file, or lines below one that is there."""

    path: str
    below: str | None
    lines: list[str]


class Recipe(NamedTuple):
    """What a section of the page says to write and to run."""

    pieces: list[Piece]
    commands: list[str]


def recipe(name: str) -> Recipe:
    """The section on ``name``."""
    section = PAGE.partition(f"## How to add {name}\n")[2].partition("\n## ")[0]
    pieces, commands = [], []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        if language == "bash":
            commands += block.splitlines()
            continue
        first, *lines = block.splitlines()
        path, _, below = first.removeprefix("# ").partition(", below: ")
        pieces.append(Piece(path, below or None, lines))
    return Recipe(pieces, commands)


def add(tree: Path, piece: Piece) -> None:
    """Write a piece into the copy of the tree."""
    file = tree / piece.path
    if piece.below is None:
        assert not file.exists(), f"{piece.path} is there already"
        file.write_text("\n".join([*piece.lines, ""]))
        return
    there = file.read_text().splitlines()
    places = [k for k, line in enumerate(there, start=1) if line.strip() == piece.below]
    assert len(places) == 1, f"{piece.path} has {len(places)} lines {piece.below}"
    file.write_text("\n".join([*there[: places[0]], *piece.lines, *there[places[0] :], ""]))


def fingerprints(tree: Path) -> dict[str, str]:
    """Every file of the tree, and what it holds."""
    files = [file for file in tree.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return {str(file.relative_to(tree)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def as_installed(tree: Path, site: Path) -> None:
    """The entry points that an installation of the tree registers."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    points = configparser.ConfigParser(delimiters=("=",))
    points.read_dict(project["entry-points"])
    text = io.StringIO()
    points.write(text)
    info = site / "organics_core-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: organics-core\nVersion: 0\n")
    (info / "entry_points.txt").write_text(text.getvalue())


def mysim(site: Path) -> None:
    """A simulator that takes steps of the classical Runge-Kutta method."""
    (site / "mysim-1.0.dist-info").mkdir()
    (site / "mysim-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mysim\nVersion: 1.0\n")
    (site / "mysim.py").write_text('''
class Model:
    """Subclasses have a slope."""

    def __init__(self, x):
        self.x = x

    def run(self, duration, dt):
        """The state after ``duration``."""
        for _ in range(round(duration / dt)):
            one = self.slope(self.x)
            two = self.slope(self.x + dt / 2 * one)
            three = self.slope(self.x + dt / 2 * two)
            four = self.slope(self.x + dt * three)
            self.x = self.x + dt / 6 * (one + 2 * two + 2 * three + four)
        return self.x
''')


def mylibrary(site: Path) -> None:
    """An array library: array-api-strict by another name, with eigenvalues."""
    import array_api_strict

    source = Path(array_api_strict.__file__).parent
    shutil.copytree(source, site / "mylibrary", ignore=shutil.ignore_patterns("tests", "__pycache__"))
    for file in (site / "mylibrary").glob("*.py"):
        file.write_text(re.sub(r"\barray_api_strict\b", "mylibrary", file.read_text()))
    with (site / "mylibrary" / "__init__.py").open("a") as file:
        file.write(
            "\n\ndef eigenvalues(x):\n    import numpy\n\n"
            "    x = x._array\n"
            "    whole = numpy.isfinite(x).all(axis=(-2, -1))\n"
            "    found = numpy.linalg.eigvals(numpy.where(whole[..., None, None], x, 0.0)).astype('complex128')\n"
            "    return asarray(numpy.where(whole[..., None], found, numpy.nan))\n"
        )


def sessions(tree: Path) -> str:
    """The sessions of nox in the tree."""
    done = subprocess.run([sys.executable, "-m", "nox", "-l"], cwd=tree, capture_output=True, text=True, check=True)
    return done.stdout


AGREE = """
import sys
import organics_agree

columns = [column for column in organics_agree.installed() if column.library in ("numpy", sys.argv[1])]
found = organics_agree.compare(columns)
assert len(columns) == 2 and found.ok, found
"""
"""What ``organics agree`` says of one library; the others are compared elsewhere."""


def program(line: str) -> tuple[list[str], dict[str, str]]:
    """A command of the page as it runs here: a session of nox by what it runs, without installing anything."""
    word, *rest = shlex.split(line)
    if word == "nox":
        kind, _, name = rest[-1].partition("-")
        if kind == "embed":
            test = ["--confcutdir=tests/embed", f"tests/embed/test_embed_{name}.py"]
            return [sys.executable, "-m", "pytest", "-q", *test], {"ORGANICS_EMBED": name}
        return [sys.executable, "-m", "pytest", "-q", "--library", name, "tests/test_stability.py", "-k", name], {}
    if word == "organics" and rest[0] == "agree":
        return [sys.executable, "-c", AGREE, rest[-1]], {}
    if word == "pytest":  # with the least that shows it
        plain = any(part.startswith("tests/") for part in rest) and "--library" not in rest
        rest = [*rest, "-q", *(("--library", "numpy") if plain else ())]
    return [sys.executable, "-m", {"organics": "organics_cli"}.get(word, word), *rest], {}


@pytest.mark.parametrize(
    "name",
    [
        "an explicit integrator",
        "an implicit integrator",
        "a variant of the circuit",
        "a circuit family",
        "a simulator",
        "a figure",
        pytest.param("a backend", marks=pytest.mark.library("strict")),
        pytest.param("a baseline", marks=pytest.mark.library("torch")),
    ],
)
def test_recipe(name: str, tmp_path: Path) -> None:
    """As written: its files, no others, and its commands."""
    tree, site = tmp_path / "tree", tmp_path / "site"
    for part in TREE:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
        (tree / part).parent.mkdir(parents=True, exist_ok=True)
        options = {"ignore": shutil.ignore_patterns("*.so", "build")} if copy is shutil.copytree else {}
        copy(ROOT / part, tree / part, **options)  # with the times of its files, so that what is compiled holds
    before, found = fingerprints(tree), recipe(name)
    for piece in found.pieces:
        add(tree, piece)
    after = fingerprints(tree)
    changed = {path for path in after if after[path] != before.get(path)}
    assert changed == {piece.path for piece in found.pieces}
    assert len(changed) == TABLE[name]
    assert found.commands
    as_installed(tree, site)
    for make in (mysim, mylibrary):
        if any(make.__name__ in piece.path for piece in found.pieces):
            make(site)
    path = os.pathsep.join(map(str, (site, tree, tree / "backends", tree / "adapters")))
    for line in found.commands:
        arguments, more = program(line)
        if line.startswith("nox") and importlib.util.find_spec("nox"):
            assert line.split()[-1] in sessions(tree)
        kept = "PYTEST_DISABLE_PLUGIN_AUTOLOAD"
        environment = {
            name: value
            for name, value in os.environ.items()
            if name == kept or not name.startswith(("PYTEST", "ORGANICS"))
        }
        path = os.pathsep.join(filter(None, (path, os.environ.get("PYTHONPATH"))))
        environment |= {"PYTHONPATH": path, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", **more}
        done = subprocess.run(
            arguments, cwd=tree, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"


def test_every_row_of_the_table_has_a_recipe() -> None:
    """And every recipe a row."""
    assert list(TABLE) == re.findall(r"^## How to add (.*)$", PAGE, re.MULTILINE)
    assert {
        name: sorted({piece.path for piece in recipe(name).pieces}) for name in TABLE if not recipe(name).pieces
    } == {}
