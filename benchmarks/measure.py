"""What the benchmarks share: timings taken in turn, so that a busy machine slows all alike, and a JSON of ratios."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def in_turn(
    functions: dict[str, Callable[[], Any]], repeats: int = 7, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each function, called in turn ``repeats`` times after a first call that is not counted."""
    return in_turn_with_least(functions, repeats, clock)[0]


def in_turn_with_least(
    functions: dict[str, Callable[[], Any]], repeats: int = 7, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, float], dict[str, float]]:
    """The medians, and the least of each, which other processes disturb less."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            function()
            times[name].append(clock() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return medians, {name: min(values) for name, values in times.items()}


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def megabytes(field: str) -> float:
    """``VmRSS`` (held now) or ``VmHWM`` (peak) of this process alone; NaN where the system does not say.

    The peak that ``getrusage`` reports would include that of the parent process.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition(f"{field}:")[2].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        return float("nan")


def save(name: str, content: dict[str, Any], packages: tuple[str, ...]) -> Path:
    """Write ``results/<name>.json`` with the versions of what was measured."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(
        json.dumps({"versions": versions, "processor": processor(), **content}, indent=2) + "\n", encoding="utf-8"
    )
    return path
