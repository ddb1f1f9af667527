"""Configuration of the documentation; ``nox -s docs`` builds it."""

from __future__ import annotations

import ast
import itertools
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.util.logging import getLogger

import organics_core

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))

project = "organics-core"
author = "The organics-core developers"
copyright = "2026, the organics-core developers"
release = organics_core.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_generated/*.md", "_generated/notebooks"]

myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence", "deflist"]
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"


def imported(package: str) -> set[str]:
    """What the modules of an adapter import at the top."""
    found = set()
    for file in (ROOT / "adapters" / package).glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).partition(".")[0])
    return found


# The frameworks that the tutorials do not run need not be there to be documented.
autodoc_mock_imports = sorted(name for name in {"cupy", *imported("organics_simulators")} if find_spec(name) is None)
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "organics-core"
html_static_path = ["_static"]
html_css_files = ["style.css"]


class Domain(PythonDomain):
    """Python's domain, in which a word of a docstring's type never links to an attribute that is called the same."""

    def find_obj(self, env, modname, classname, name, type, searchmode=0):  # type: ignore[no-untyped-def]
        """As in Sphinx, without the fallback from classes to attributes."""
        if searchmode == 1 and type in ("attr", "data"):
            return []
        return super().find_obj(env, modname, classname, name, type, searchmode)


PACKAGES = (
    *("core", "torch", "jax", "cupy", "plot", "figures", "explore", "train", "baselines", "sweep", "agree"),
    "simulators",
)


def complete(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of every public name that the API reference lacks."""
    described = {entry[0] for entry in env.domains["py"].get_objects()}
    short = {name.rpartition(".")[2] for name in described if name.startswith(("organics_core.", "organics_train."))}
    for package in (f"organics_{name}" for name in PACKAGES):
        init = next(file for folder in (ROOT, ROOT / "adapters") if (file := folder / package / "__init__.py").exists())
        listed = next(
            node.value
            for node in ast.parse(init.read_text()).body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        )
        if isinstance(listed, ast.List):
            names = ast.literal_eval(listed)
        else:  # all modules
            names = [file.stem for file in init.parent.glob("[!_]*.py")]
        for name in names:  # those of core and training may be handed on by others
            if f"{package}.{name}" not in described and (package == "organics_core" or name not in short):
                getLogger(__name__).warning("the API reference lacks %s.%s", package, name)


def split_attributes(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """``p, q : array`` of an Attributes section as two entries, which napoleon does for parameters only."""
    section, out = "", []
    blocks: list[list[str]] = []
    for line, after in itertools.pairwise([*lines, ""]):
        section = line if after.startswith("---") else section
        if section == "Attributes" and re.match(r"\w+(, \w+)+( :|$)", line):
            out += [part for block in blocks for part in block]
            names, colon, kind = line.partition(" :")
            blocks = [[f"{one}{colon}{kind}"] for one in names.split(", ")]
        elif blocks and (line.startswith(" ") and line.strip()):
            for block in blocks:
                block.append(line)
        else:
            out += [part for block in blocks for part in block] + [line]
            blocks = []
    lines[:] = out + [part for block in blocks for part in block]


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", split_attributes, priority=400)  # before napoleon
    app.connect("env-check-consistency", complete)
    app.add_domain(Domain, override=True)
