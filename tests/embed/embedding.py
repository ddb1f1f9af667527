"""What the embedding tests share: the circuit, our own answers, and the record of errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import organics_core as oc

ASKED = os.environ.get("ORGANICS_EMBED", "")


def framework(name: str, *modules: str) -> None:
    """Skip this file unless ``ORGANICS_EMBED`` asks for ``name``; then a missing module is an error."""
    if name not in ASKED.split(","):
        pytest.skip(f"embedding in {name} runs in its own session: nox -s embed-{name}", allow_module_level=True)
    for module in modules:
        import_module(module)


def examples(module: str) -> str:
    """What doctest says of the examples of a module, in a process of its own (without x64); empty if all is well."""
    code = f"import doctest, {module} as module; doctest.testmod(module)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


class Problem(NamedTuple):
    """A circuit, its drive, and where it is after 5 ms and at rest, by our own dopri5 and Newton."""

    circuit: oc.Circuit
    z: np.ndarray
    start: oc.State
    transient: oc.State
    fixed: oc.State


T_TRANSIENT = 0.005
T_FIXED = 0.25


def make_problem(identity: bool = False) -> Problem:
    """n = 8, no symmetry anywhere: W, W_r, gains and time constants all differ."""
    rng = np.random.default_rng(20240918)
    n = 8
    w = rng.uniform(0.05, 1.0, (n, n)) / 2
    w_r = rng.standard_normal((n, n))
    w_r = w_r / np.linalg.norm(w_r, 2)
    z = rng.uniform(0.2, 1.0, n) * np.where(rng.random(n) < 0.5, -1.0, 1.0)
    circuit = oc.Circuit(
        None if identity else w_r,
        w,
        b=rng.uniform(0.4, 0.9, n),
        b0=rng.uniform(0.4, 0.9, n),
        sigma=rng.uniform(0.2, 0.5, n),
        tau_y=rng.uniform(0.001, 0.003, n),
        tau_a=rng.uniform(0.002, 0.004, n),
    )
    run = oc.simulate(circuit, z, np.array([0.0, T_TRANSIENT]), rtol=1e-10, atol=1e-12)
    found = oc.steady_state(circuit, z, method="closed_form" if identity else "newton")
    assert run.success
    assert bool(found.converged)
    assert float(oc.spectral_abscissa(circuit, found.state)) < -100.0
    start = oc.resting_state(circuit, z)
    return Problem(circuit, z, start, oc.State(*(part[-1] for part in run.state)), found.state)


PROBLEM = make_problem()
IDENTITY = make_problem(identity=True)


def rectified_transient(variant: str) -> oc.State:
    """Where the rectified relatives of the problem are after 5 ms."""
    times = np.array([0.0, T_TRANSIENT])
    run = oc.simulate(PROBLEM.circuit, PROBLEM.z, times, rtol=1e-10, atol=1e-12, variant=variant)
    return oc.State(*(part[-1] for part in run.state))


def error(found: Any, expected: oc.State) -> float:
    """Largest absolute difference over y and a."""
    return max(float(np.max(np.abs(np.asarray(f) - e))) for f, e in zip(found, expected, strict=True))


def record(name: str, transient: float, fixed: float, *, package: str | None = None, note: str = "") -> None:
    """One line (framework, version, transient error, fixed-point error) for the summary table."""
    line = {
        "framework": name,
        "version": version(package or name),
        "transient_error": transient,
        "fixed_point_error": fixed,
        "note": note,
    }
    print(json.dumps(line))
    folder = os.environ.get("ORGANICS_EMBED_OUT")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / f"{ASKED or 'embed'}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
