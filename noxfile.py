#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2024.10.9"]
# ///
"""Sessions: one per array library, and one per thing worth proving. `nox -l` lists them.

Plain `nox` runs the default set, the checks of every change; `nox -j auto` as many
sessions at a time as there are cores, what takes longest first. Other virtual
environment makers work as well: `nox -db uv`, `nox -db venv`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import tomllib
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True

ROOT = Path(__file__).parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["organics-core"]
LIBRARIES = SETTINGS["libraries"]
ON_CPU = [name for name, needs in LIBRARIES.items() if not needs.get("gpu")]
OWN_SESSION = [name for name in ON_CPU if "beside" not in LIBRARIES[name]]
nox.options.sessions = [*(f"tests-{name}" for name in reversed(OWN_SESSION)), "agreement", "demo", "types", "lint"]
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is imported is compiled once, not by every process
if hasattr(nox.options, "allow_parallel"):  # older releases of nox run one after the other
    nox.options.allow_parallel = True

TESTING = ("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "scipy>=1.13", "sympy>=1.12", "array-api-extra>=0.10")
WORKERS = ("-n", str(max(1, min(os.cpu_count() or 1, 4))), "--dist", "worksteal")
"""Tests run on as many processes as there are cores, each on one thread; `-- -n 0` for one process."""
OTHER_PYTHONS = ("3.12", "3.13")
LAZY = "--no-compile"
"""Python compiles what is imported; all that is installed takes pip four times as long as the rest."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
CORE_ALONE = {**ONE_THREAD, "ORGANICS_NATIVE_MOTION": "0"}
"""For sessions that ask which lines of the core the tests reach: native code would stand in for some."""


def install(session: nox.Session, *extras: str, more: tuple[str, ...] = ()) -> None:
    """The project, editable, with ``extras``, under the project's constraints."""
    target = f".[{','.join(extras)}]" if extras else "."
    session.install(LAZY, "-c", "constraints.txt", "-e", target, *more)


@nox.session(default=False)
def fast(session: nox.Session) -> None:
    """The quick tests of the core alone, in numpy: for while you work on it."""
    install(session, more=TESTING)
    session.run("pytest", "--core", "--library", "numpy", *WORKERS, *session.posargs, env=ONE_THREAD)


def run_tests(session: nox.Session, library: str) -> None:
    """The tests of a library and of those beside it. What is missing fails: all that they need is installed."""
    needs = LIBRARIES[library]
    others = [name for name, other in LIBRARIES.items() if other.get("beside") == library]
    packages = [package for name in (library, *others) for package in LIBRARIES[name].get("packages", ())]
    install(session, *needs["extras"], more=(*TESTING, *packages))
    options = () if needs.get("gpu") else WORKERS  # one process where there is one GPU
    if needs.get("complete", True) and not needs.get("gpu"):
        options = ("--complete", *options)
    libraries = [f"--library={name}" for name in (library, *others)]
    session.run("pytest", *libraries, *options, *session.posargs, env=ONE_THREAD)


def interpreter(version: str) -> str:
    """Python ``version`` for nox: the newest that pyenv keeps, whether it is switched on or not, or what PATH has."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    kept = root.glob(f"versions/{version}.*/bin/python{version}")
    return max(map(str, kept), key=lambda path: (len(path), path), default=version)


def _define_tests(library: str) -> None:
    """``tests-library`` on the Python that runs nox, and ``tests-library-3.12``, ... on others, where they are."""

    def tests(session: nox.Session) -> None:
        run_tests(session, library)

    def elsewhere(session: nox.Session) -> None:
        run_tests(session, library)

    tests.__doc__ = LIBRARIES[library]["about"]
    nox.session(name=f"tests-{library}", default=library in OWN_SESSION)(tests)
    for version in OTHER_PYTHONS if library in ON_CPU else ():
        elsewhere.__doc__ = f"The same on Python {version}."
        nox.session(name=f"tests-{library}-{version}", python=interpreter(version), default=False)(elsewhere)


for _library in LIBRARIES:
    _define_tests(_library)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Lines and branches of the core that the tests in numpy reach; fails below 95 %."""
    install(session, *LIBRARIES["numpy"]["extras"], more=(*TESTING, *LIBRARIES["numpy"]["packages"], "coverage>=7.10"))
    session.run("coverage", "erase")
    words = ("coverage", "run", "-m", "pytest", "--library", "numpy")  # pytest-cov begins after conftest.py
    session.run(*words, *WORKERS, *session.posargs, env=CORE_ALONE)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report", "--fail-under=95")


@nox.session(default=False)
def mutation(session: nox.Session) -> None:
    """Faults put into the core one by one, and whether its quick tests see them; prints the score and the survivors.

    ``-- organics_core/noise.py`` for some modules only, every fault of which is tried (again). Without names it goes
    on where it was stopped; remove mutants/ after a change of the tests. ``-- --sample 150 --seed 3`` tries so many,
    drawn from the whole core, or from the modules named. Messages of errors and warnings are left as they are
    (``do_not_mutate_patterns`` in pyproject.toml).
    """
    options = argparse.ArgumentParser(prog="nox -s mutation --")
    options.add_argument("modules", nargs="*", default=[])
    options.add_argument("--sample", type=int)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args(session.posargs)
    install(session, more=(*TESTING, "mutmut>=3.8", "safetensors>=0.4", "mpmath>=1.3"))

    def results() -> list[tuple[str, str]]:
        lines = str(session.run("mutmut", "results", "--all", "true", silent=True) or "").splitlines()
        pairs = [line.strip().rsplit(": ", 1) for line in lines if ": " in line]
        return [(name, end) for name, end in pairs if name.startswith(within)]

    modules = [module.removesuffix(".py").replace("/", ".") for module in asked.modules]
    within, wanted = tuple(f"{name}." for name in modules or ["organics_core"]), [f"{module}.*" for module in modules]
    if asked.sample:
        session.run("mutmut", "run", "organics_core.progress.*", env=CORE_ALONE)  # makes all, times tests
        names = sorted(name for name, _ in results())
        wanted = random.Random(asked.seed).sample(names, min(asked.sample, len(names)))
    session.run("mutmut", "run", *wanted, env=CORE_ALONE)
    drawn = set(wanted) if asked.sample else {name for name, _ in results()}
    tried = [(name, end) for name, end in results() if end != "not checked" and name in drawn]
    alive = [(name, end) for name, end in tried if end in ("survived", "no tests", "suspicious")]
    for name, end in alive:
        session.log(f"{end}: {name}")
    share = 1 - len(alive) / max(1, len(tried))
    session.log(f"{share:.1%} of {len(tried)} mutants were seen; `mutmut show NAME` shows one that was not")


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """Everything on a CUDA GPU: tests, agreement, benchmarks; writes benchmarks/results/gpu-*."""
    install(
        session, "cli", "cupy", "torch", "jax", more=(*TESTING, "jax[cuda13]", "array-api-strict>=2.3", "pytest-xdist")
    )
    session.run("python", "benchmarks/gpu.py", *session.posargs)


@nox.session
def agreement(session: nox.Session) -> None:
    """All array libraries side by side on the same circuits; prints and saves the table. Checkpoints go both ways."""
    install(session, "cli", "torch", "jax", more=(*TESTING, "array-api-strict>=2.3"))
    together = ("--together", "--library", "torch", "--library", "jax")
    session.run("pytest", "-q", *together, env=ONE_THREAD)
    quick = {**ONE_THREAD, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # every program runs once
    session.run("organics", "agree", "--require", "torch", "--require", "jax", *session.posargs, env=quick)


@nox.session
def demo(session: nox.Session) -> None:
    """The tour that a newcomer sees."""
    install(session, "demo")
    session.run("organics", "demo", *session.posargs, env=ONE_THREAD)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and common mistakes."""
    session.install(LAZY, "ruff>=0.9", "codespell>=2.4")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")


@nox.session
def types(session: nox.Session) -> None:
    """Type hints of every package; the frameworks are not looked into, and need not be there."""
    install(session, more=("mypy>=1.14", "typer>=0.16", "rich>=13.8"))
    session.run("mypy")


LOWEST = (
    "numpy==2.0.*",
    "array-api-compat==1.15.*",
    "scipy==1.13.*",
    "safetensors==0.4.*",
    "zarr==3.1.*",
    "typer==0.16.*",
    "click==8.2.*",
    "rich==13.8.*",
    "matplotlib==3.9.*",
    "scikit-learn==1.5.*",
)


LOWEST_JAX = ("jax==0.6.0", "jaxlib==0.6.0", "equinox==0.13.0", "optax==0.2.5", "sympy==1.12.*")
LOWEST_TORCH = ("torch==2.6.*",)


@nox.session(default=False)
def lowest(session: nox.Session) -> None:
    """The lowest supported versions of the dependencies: numpy, jax, the command line."""
    run_lowest(session, "numpy", "jax", more=LOWEST_JAX)


@nox.session(name="lowest-torch", default=False)
def lowest_torch(session: nox.Session) -> None:
    """The same of torch, without what only later ones compile; from PyPI it brings CUDA, some gigabytes."""
    run_lowest(session, "torch", more=LOWEST_TORCH)


def run_lowest(session: nox.Session, *libraries: str, more: tuple[str, ...]) -> None:
    """The tests of ``libraries`` with the lowest versions of all that they need."""
    extras = ("cli", "plot", "sweep", *(name for name in libraries if name != "numpy"))
    testing = ("pytest==8.*", "pytest-xdist>=3.6", "hypothesis==6.100.*", "array-api-extra>=0.10")
    session.install(LAZY, "-e", f".[{','.join(extras)}]", *LOWEST, *more, *testing)
    session.run("pytest", *(f"--library={library}" for library in libraries), *session.posargs, env=ONE_THREAD)


def wheel_files(wheel: Path) -> dict[str, str]:
    """The files of a wheel, with their checksums."""
    with zipfile.ZipFile(wheel) as content:
        return {name: hashlib.sha256(content.read(name)).hexdigest() for name in content.namelist()}


@nox.session(default=False)
def wheel(session: nox.Session) -> None:
    """Builds sdist and wheel, installs the wheel in a clean environment, and runs the tour far from here.

    The wheel is built from the sdist; one built from here must have the same files, byte for byte.
    """
    session.install(LAZY, "build>=1.2", "twine>=6", "check-wheel-contents>=0.6")
    folder = Path(session.create_tmp()).resolve()
    dist, direct, away, venv = (folder / name for name in ("dist", "direct", "away", "venv"))
    for old in (dist, direct, away, venv):
        shutil.rmtree(old, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist), silent=True)
    built = sorted(dist.iterdir())
    session.run("twine", "check", "--strict", *map(str, built))
    wheel_file = next(file for file in built if file.suffix == ".whl")
    session.run("check-wheel-contents", str(wheel_file))  # as release.yml does
    session.run("python", "-m", "build", "--wheel", "--outdir", str(direct), silent=True)
    files, same = (wheel_files(file) for file in (wheel_file, direct / wheel_file.name))
    if files != same:
        session.error(f"sdist and tree build different wheels: {sorted(files.items() ^ same.items())}")
    packages = {name.split("/")[0] for name in files if "/" in name and ".dist-info" not in name}
    untyped = sorted(package for package in packages if f"{package}/py.typed" not in files)
    if untyped:
        session.error(f"no py.typed in {', '.join(untyped)}")
    session.log(f"{wheel_file.name}: {len(files)} files, typed: {', '.join(sorted(packages))}")
    session.run("python", "-m", "venv", str(venv))
    session.run(str(venv / "bin" / "pip"), "install", "--quiet", f"{wheel_file}[demo]", external=True)
    away.mkdir()
    with session.chdir(away):
        session.run(str(venv / "bin" / "organics"), "demo", external=True)


SPHINX = ("sphinx>=8", "myst-nb>=1.2", "furo", "sphinx-copybutton", "sphinx-design", "sphinx-mathjax-offline")


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The documentation in site/: a test run for the capability table, the gallery, the executed tutorials."""
    extras = ("cli", "plot", "sweep", "torch", "jax", "diffrax", "torchdiffeq", "nengo", "keras", "explore")
    packages = [package for name in ON_CPU for package in LIBRARIES[name].get("packages", ())]
    install(session, *extras, more=(*TESTING, *packages, *SPHINX, "ipykernel"))
    made = Path("docs", "_generated")
    if "--again" not in session.posargs:  # with it, keep the test report and the figures of the last build
        libraries = [f"--library={name}" for name in ON_CPU]
        environment = {**ONE_THREAD, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # nengo's own plugin does not load
        report = f"--junitxml={made / 'tests.xml'}"
        session.run("pytest", "-q", "-p", "xdist", *libraries, *WORKERS, report, env=environment)
        session.run("organics", "figures", "--all", "--output", str(made / "figures"))
    session.run("python", "docs/tables.py")
    session.run("python", "adapters/organics_explore/notebook.py")
    session.env["KERAS_BACKEND"] = "torch"
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "site")


@nox.session(default=False)
def explore(session: nox.Session) -> None:
    """The explorer, its page in the system's chromium too: every slider moves; pictures in organics-output/explore."""
    install(session, "explore", more=(*TESTING, "playwright>=1.50"))
    out = ROOT / "organics-output" / "explore"
    out.mkdir(parents=True, exist_ok=True)
    environment = {**ONE_THREAD, "ORGANICS_EXPLORE_OUT": str(out)}
    session.run("pytest", "--library", "numpy", "tests/test_explore.py", *session.posargs, env=environment)


@nox.session(default=False)
def neurogym(session: nox.Session) -> None:
    """Cognitive tasks of NeuroGym itself, which takes older numpy and matplotlib than the other sessions have."""
    install(session, "neurogym", "torch", "cli", more=TESTING)
    words = ("pytest", "--library", "torch", "--library", "numpy", "--complete", "tests/test_cognitive.py")
    session.run(*words, *session.posargs, env={**ONE_THREAD, "ORGANICS_NEUROGYM": "1"})


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Speed and memory, as ratios against peers in the same run; writes benchmarks/results/."""
    install(session, "cli", "torch", "jax", "simulators")
    session.run("python", "benchmarks/training.py", *session.posargs)
    session.run("python", "benchmarks/training_jax.py", *session.posargs)
    session.run("python", "benchmarks/streaming.py", *session.posargs)


# The circuit inside real simulation frameworks, each in an environment of its own.

FRAMEWORKS = sorted(file.stem.removeprefix("test_embed_") for file in ROOT.glob("tests/embed/test_embed_*.py"))
"""One for every test file; what is special about some stands in pyproject.toml, [tool.organics-core.embed]."""


def embed_one(session: nox.Session, name: str) -> None:
    """Install one framework and run its tests."""
    special = SETTINGS["embed"].get(name, {})
    if "missing" in special:
        session.skip(f"{name}: {special['missing']}")
    extras = ",".join(special.get("extras", [name]))
    session.install(LAZY, "-c", "constraints.txt", "-e", f".[{extras}]", "pytest>=8", *special.get("packages", ()))
    if "without-dependencies" in special:
        session.install(LAZY, "--no-deps", *special["without-dependencies"])
    for more in special.get("environments", [{}]):
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


@nox.session(default=False)
def embed(session: nox.Session) -> None:
    """All frameworks one after the other; prints and saves (framework, version, transient error, fixed-point error)."""
    session.install(LAZY, "nox", "rich>=13.8")
    out = Path(session.create_tmp()).resolve() / "lines"
    for name in FRAMEWORKS:
        (out / f"{name}.jsonl").unlink(missing_ok=True)
    wanted = [f"embed-{name}" for name in FRAMEWORKS]
    session.run(
        "nox", "-s", *wanted, "--", *session.posargs, env={"ORGANICS_EMBED_OUT": str(out)}, success_codes=[0, 1]
    )
    present = [name for name in FRAMEWORKS if "missing" not in SETTINGS["embed"].get(name, {})]
    session.run("python", "tests/embed/summary.py", str(out), *present)


if __name__ == "__main__":
    nox.main()
