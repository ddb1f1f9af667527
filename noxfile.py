"""Sessions: one per array library, and one per thing worth proving. `nox -l` lists them.

Plain `nox` runs the default set, everything that needs no GPU. Other virtual
environment makers work as well: `nox -db uv`, `nox -db venv`.
"""

from __future__ import annotations

import nox

import nox_embed  # noqa: F401  (the sessions embed-scipy, embed-diffrax, ..., and embed)

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True
nox.options.sessions = [
    "lint",
    "types",
    "tests-numpy",
    "tests-strict",
    "tests-torch",
    "tests-jax",
    "agreement",
    "demo",
]

TESTING = ("pytest>=8", "hypothesis>=6.100", "scipy>=1.13")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def install(session: nox.Session, *extras: str, more: tuple[str, ...] = ()) -> None:
    """The project, editable, with ``extras``, under the project's constraints."""
    target = f".[{','.join(extras)}]" if extras else "."
    session.install("-c", "constraints.txt", "-e", target, *more)


def run_tests(session: nox.Session, library: str, *extras: str, more: tuple[str, ...] = ()) -> None:
    """The tests of one array library; they fail, not skip, where it is missing."""
    install(session, *extras, more=(*TESTING, *more))
    session.run("pytest", "--library", library, *session.posargs, env=ONE_THREAD)


@nox.session(name="tests-numpy")
def tests_numpy(session: nox.Session) -> None:
    """numpy, the command line, files and figures."""
    run_tests(session, "numpy", "cli")


@nox.session(name="tests-strict")
def tests_strict(session: nox.Session) -> None:
    """array-api-strict: the standard and nothing else, through the generic backend."""
    run_tests(session, "strict", more=("array-api-strict>=2.3",))


@nox.session(name="tests-torch")
def tests_torch(session: nox.Session) -> None:
    """torch on the CPU, float64 and float32, and its adapter."""
    run_tests(session, "torch", "torch", more=("scikit-learn>=1.5",))


@nox.session(name="tests-jax")
def tests_jax(session: nox.Session) -> None:
    """jax on the CPU, and its adapter."""
    run_tests(session, "jax", "jax", more=("scikit-learn>=1.5",))


@nox.session(name="tests-cupy", default=False)
def tests_cupy(session: nox.Session) -> None:
    """cupy; needs an NVIDIA GPU, and fails where there is none."""
    run_tests(session, "cupy", "cupy")


@nox.session
def agreement(session: nox.Session) -> None:
    """All array libraries side by side on the same circuits; prints and saves the table."""
    install(session, "cli", "torch", "jax", more=("array-api-strict>=2.3",))
    session.run("organics", "agree", "--require", "torch", "--require", "jax", *session.posargs, env=ONE_THREAD)


@nox.session
def demo(session: nox.Session) -> None:
    """The tour that a newcomer sees."""
    install(session, "demo")
    session.run("organics", "demo", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and common mistakes."""
    session.install("ruff>=0.9")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Type hints, strict on the core."""
    install(session, more=("mypy>=1.14",))
    session.run("mypy")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Speed and memory, as ratios against peers in the same run; writes benchmarks/results/."""
    install(session, "cli", "torch", "jax", "simulators")
    session.run("python", "benchmarks/training.py", *session.posargs)
