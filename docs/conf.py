"""Configuration of the documentation; ``nox -s docs`` builds it."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import organics_core

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
exclude_patterns = ["_build", "_generated/*.md"]

myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence", "deflist"]
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
# The frameworks that the tutorials do not run need not be there to be documented.
autodoc_mock_imports = [
    name
    for name in ("brainpy", "brainstate", "brainunit", "brian2", "cupy", "keras", "lightning", "pyrates", "tvb")
    if find_spec(name) is None
]
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "organics-core"
html_static_path = ["_static"]
html_css_files = ["style.css"]
