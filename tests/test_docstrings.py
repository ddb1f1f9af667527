"""Every public name of every package has a docstring that says what it takes, returns and raises."""

import ast
import doctest
import importlib
import re
from inspect import isclass, isfunction
from pathlib import Path

import pytest

import organics_core as oc

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT, ROOT / "backends", ROOT / "adapters")
PACKAGES = sorted(file.parent for folder in FOLDERS for file in folder.glob("*/py.typed"))
INHERITED = {"extra_repr", "trained"}  # told by torch, and by the base of the jax modules
INHERITED |= {"is_concrete", "stop_gradient", "scan", "while_loop", "compile"}  # told by the protocol Backend
INHERITED |= {"jvp", "jacobian", "root", "normal", "eigvals", "sparse", "recordable_product"}
CHECKS = re.compile(r"\b(raise|checks\.\w+|validate_\w+)\b")


def definitions(package):
    """Public functions and classes: those of ``__all__`` where they are imported from, and all of a public module."""
    trees = {file.stem: ast.parse(file.read_text()) for file in package.glob("*.py")}
    every = {
        f"{module}.{node.name}": node
        for module, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
    }
    init, names = trees["__init__"], public_names(trees)
    imports = [node for node in init.body if isinstance(node, ast.ImportFrom) and node.level == 1]
    source = {alias.asname or alias.name: node.module for node in imports for alias in node.names}
    wanted = {(source.get(name, "__init__"), name) for name in names}
    if not names:  # the backends: found through entry points, not imported
        return {name: node for name, node in every.items() if name.endswith("Backend")}
    if set(names) <= set(trees):  # modules, imported when first used
        public = {module for module in trees if module[0] != "_"}
    else:
        public = {name for name in names if name in source and source[name] is None}
    return {
        name: node for name, node in every.items() if (part := name.split("."))[0] in public or tuple(part) in wanted
    }


def public_names(trees):
    """What ``__all__`` lists; where it lists what is there, every public module."""
    for node in trees["__init__"].body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            listed = isinstance(node.value, ast.List)
            return ast.literal_eval(node.value) if listed else [name for name in trees if name[0] != "_"]
    return ()


def arguments(function):
    spec = function.args
    named = [argument.arg for argument in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
    return [name for name in named if name not in ("self", "cls") and not name.startswith("_")]


def fields(node):
    """What makes an instance: the arguments of ``__init__``, or the annotated fields."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return arguments(part)
    named = [part for part in node.body if isinstance(part, ast.AnnAssign) and part.target.id[0] != "_"]
    return [part.target.id for part in named if "ClassVar" not in ast.unparse(part.annotation)]


def described(doc):
    """The names that stand before a colon, or alone, at the margin of the sections."""
    sections = re.split(r"^[A-Z][A-Za-z ]+\n-+$", doc, flags=re.MULTILINE)[1:]
    heads = [line.split(" :")[0] for section in sections for line in section.splitlines() if re.match(r"[\w*`]", line)]
    return {name.strip(" *`") for head in heads for name in head.split(",")}


def missing(node):
    """What the docstring of a function or class does not say."""
    doc = ast.get_docstring(node)
    if not doc:
        return ["a docstring"]
    if doc.startswith("Deprecated: "):
        return []
    is_class = isinstance(node, ast.ClassDef)
    names = fields(node) if is_class else arguments(node)
    lacks = [f"the argument {name}" for name in names if name not in described(doc)]
    if is_class:
        methods = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name[0] != "_"]
        undone = [part.name for part in methods if not ast.get_docstring(part) and part.name not in INHERITED]
        return [*lacks, *(f"a docstring of {name}" for name in undone)]
    if names and "Parameters\n---" not in doc:
        lacks.append("Parameters")
    returns = ast.unparse(node.returns) if node.returns else "None"
    if returns not in ("None", "NoReturn") and not re.search(r"^(Returns|Yields)\n---", doc, re.MULTILINE):
        lacks.append("Returns")
    body = "\n".join(ast.unparse(part) for part in node.body[1:])
    if CHECKS.search(body) and "Raises\n---" not in doc:
        lacks.append("Raises")
    return lacks


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_public_docstrings_are_complete(package):
    found = definitions(package)
    problems = {name: missing(node) for name, node in found.items()}
    assert found or package.name == "organics_cli"
    assert {name: lacks for name, lacks in problems.items() if lacks} == {}


def test_no_package_is_forgotten():
    listed = re.search(r"^packages = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert sorted(str(package.relative_to(ROOT)) for package in PACKAGES) == sorted(re.findall('"(.*?)"', listed[1]))


def test_what_is_missing_is_noticed():
    text = '''
def bare(x): ...
def told(x, y) -> int:
    """Add.

    Parameters
    ----------
    x : int
    """
    raise ValueError
'''
    bare, told = ast.parse(text).body
    assert missing(bare) == ["a docstring"]
    assert missing(told) == ["the argument y", "Returns", "Raises"]


NEEDED = {"jax": "equinox", "torch": "safetensors", "train": "torch", "baselines": "torch", "sweep": "zarr"}
"""By the examples of adapters; others need matplotlib, which the command line brings."""
ADAPTERS = ("agree", "baselines", "explore", "figures", "jax", "plot", "sweep", "torch", "train")
CONCERNED = {"jax": "jax", "torch": "torch", "train": "torch", "baselines": "torch"}
"""The library in whose session they run, where it is not numpy."""


def files_with_examples():
    for file in sorted((ROOT / "organics_core").rglob("*.py")):
        yield pytest.param(file, id="/".join(file.parts[-2:]))
    for name in ADAPTERS:
        marks = [pytest.mark.library(CONCERNED[name])] if name in CONCERNED else []
        for file in sorted((ROOT / "adapters" / f"organics_{name}").glob("*.py")):
            if ">>> " in file.read_text():
                yield pytest.param(file, id="/".join(file.parts[-2:]), marks=marks)


@pytest.mark.parametrize("file", list(files_with_examples()))
def test_examples_run(file):
    """What the examples say is printed is printed (of the core, in numpy)."""
    root = ROOT / "adapters" if "adapters" in file.parts else ROOT
    if root != ROOT:
        needed = NEEDED.get(file.parent.name.removeprefix("organics_"), "typer")
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    if file.stem == "flax":
        pytest.importorskip("flax", reason="flax is not installed")
    name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_function_of_the_core_has_an_example():
    functions = [getattr(oc, name) for name in oc.__all__ if isfunction(getattr(oc, name))]
    functions += [f for name, f in vars(oc.phenomena).items() if isfunction(f) and name[0] != "_"]
    functions = [f for f in functions if f.__name__ in oc.__all__ or f.__module__ == "organics_core.phenomena"]
    current = [f for f in functions if not f.__doc__.startswith("Deprecated: ")]
    assert len(current) > 50
    assert [f.__name__ for f in current if ">>>" not in f.__doc__] == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.library(CONCERNED.get(name, "numpy"))) for name in ADAPTERS]
)
def test_every_public_function_of_an_adapter_has_an_example(name):
    """And so have the layers and the other classes that a user makes."""
    needed = NEEDED.get(name, "typer")
    pytest.importorskip(needed, reason=f"{needed} is not installed")
    package = importlib.import_module(f"organics_{name}")
    public = {public: getattr(package, public) for public in package.__all__}
    without = {
        public
        for public, value in public.items()
        if (hasattr(value, "forward") or (callable(value) and not isclass(value))) and ">>>" not in value.__doc__
    }
    assert without - {"register"} == set()  # which adds a command to a command line
