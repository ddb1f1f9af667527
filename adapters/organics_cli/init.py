"""``organics init``: a circuit file to begin with, with a comment at every line."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .console import console, write_text

Array = np.ndarray[Any, Any]
Drawn = tuple[str, Array | None, Array, Array]
"""What is described, W_r (None for the identity), W, z."""


def _hypercolumn(n: int, rng: np.random.Generator) -> Drawn:
    angle = np.arange(n) * np.pi / n
    about = f"A hypercolumn: {n} neurons that prefer orientations 0, {180 / n:.3g}, ... degrees, and all normalize all."
    return about, None, np.full((n, n), 1.0), np.maximum(0.0, np.cos(2 * (angle - angle[n // 3]))) ** 2


def _ring(n: int, rng: np.random.Generator) -> Drawn:
    step = np.abs(np.arange(n)[:, None] - np.arange(n))
    apart = 2 * np.pi * np.minimum(step, n - step) / n
    w_r = np.cos(apart) * (2 / n if n > 2 else 1 / 2)
    about = (
        f"A ring of {n} neurons: neighbours excite, opposites inhibit one another, and pools fall off with distance.\n"
        "W_r projects on the first harmonic, so its spectral norm is 1."
    )
    return about, w_r, np.exp(-((apart / 1.0) ** 2)), np.exp(-((apart[n // 4] / 0.6) ** 2))


def _random(n: int, rng: np.random.Generator) -> Drawn:
    w_r = rng.standard_normal((n, n))
    about = (
        f"{n} neurons with random recurrent weights of spectral norm 1, and random pools. Whether it is stable is\n"
        "for organics certify to say."
    )
    w_r /= np.linalg.norm(w_r, 2)
    return about, w_r, rng.uniform(0.0, 1.0, (n, n)), rng.uniform(-1.0, 1.0, n)


def _v1(n: int, rng: np.random.Generator) -> Drawn:
    angle = np.arange(n) * np.pi / n
    near = np.cos(2 * (angle[:, None] - angle))
    about = (
        f"Primary visual cortex: {n} orientations under a grating at half contrast; the pool is broad and favours\n"
        "similar orientations. (Its gamma oscillations need the population u: organics_core.V1Circuit in Python.)"
    )
    return about, None, 0.6 + 0.4 * near, 0.5 * np.exp(2.0 * (near[n // 2] - 1.0))


def _two_areas(n: int, rng: np.random.Generator) -> Drawn:
    half = n // 2
    first = np.arange(n) < half
    w_r = np.zeros((n, n))
    w_r[:half, :half] = 0.6 * np.eye(half)
    w_r[half:, half:] = 0.6 * np.eye(n - half)
    same = np.eye(n - half, half)
    w_r[half:, :half] = 0.5 * same  # forward
    w_r[:half, half:] = 0.2 * same.T  # feedback
    about = (
        f"Two areas of {half} and {n - half} neurons: the first, which alone has input, drives the second (0.5),\n"
        "which feeds back (0.2); each normalizes within itself."
    )
    w = np.where(first[:, None] == first, 0.5 + 0.5 * np.eye(n), 0.0)
    return about, w_r, w, np.where(first, 1.0 / (1.0 + np.arange(n)), 0.0)


KINDS: dict[str, tuple[int, Callable[[int, np.random.Generator], Drawn]]] = {
    "hypercolumn": (8, _hypercolumn),
    "ring": (12, _ring),
    "random": (10, _random),
    "v1": (12, _v1),
    "two-areas": (8, _two_areas),
}
"""How many neurons a kind has by default, and how it is drawn."""


def text_of(kind: str, neurons: int | None = None, seed: int = 0, name: str = "circuit.toml") -> str:
    """A circuit file of a kind, as text."""
    size, draw = KINDS[kind]
    n = size if neurons is None else neurons
    about, w_r, w, z = draw(n, np.random.default_rng(seed))
    z = np.round(z, 4)
    lines = [
        *(f"# {line}" for line in about.splitlines()),
        "#",
        f"#     organics simulate {name}",
        f"#     organics certify {name}",
        "",
        "[circuit]",
        'w_r = "identity"        # recurrent weights: "identity" is stable whatever the rest; or rows of numbers'
        if w_r is None
        else f"# recurrent weights, to row from column\nw_r = {_rows(w_r)}",
        "# normalization weights, to row from column, not negative; or one number for all",
        f"w = {_rows(w)}",
        "b = 0.5                 # input gain: one number for all neurons, or a list",
        'b0 = 0.5                # normalization gain; w_r = "identity" gives y = b z / sqrt((b0 sigma)^2 + W (b z)^2)',
        "sigma = 0.1             # semi-saturation: inputs well below it are not normalized",
        "tau_y = 0.002           # time constants of the principal neurons and of the modulators, in seconds",
        "tau_a = 0.002",
        "",
        "[input]",
        f"z = {_row(z)}  # input drive, constant in time",
        "",
        "[simulation]            # optional, and so is every key of it",
        "duration = 0.15         # seconds",
        "points = 400            # output times",
        'method = "dopri5"       # or "rk4", "euler", ...; "rodas5p" for time constants far apart',
        "rtol = 1e-6",
        "atol = 1e-9",
        'variant = "main"        # or "rectified", "rectified_recurrence"',
    ]
    return "\n".join(lines) + "\n"


def _row(values: Array) -> str:
    return "[" + ", ".join(f"{value + 0.0:.4g}" if value % 1 else f"{value + 0.0:.1f}" for value in values) + "]"


def _rows(matrix: Array) -> str:
    return "[\n" + "".join(f"    {_row(row)},\n" for row in np.round(matrix, 4)) + "]"


def init(path: Path, kind: str, neurons: int | None, seed: int, force: bool) -> None:
    """Write the file, unless there is one."""
    if kind not in KINDS:
        raise ValueError(f"--kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if neurons is not None and neurons < 2:
        raise ValueError(f"--neurons must be at least 2, got {neurons}")
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}")
    if not path.name:
        raise ValueError(f"NAME must be that of a file, got {str(path)!r}")
    if any(sign < " " or sign == "\x7f" for sign in str(path)):
        raise ValueError(f"NAME must have no line breaks or other control characters, got {str(path)!r}")
    if path.suffix.lower() != ".toml":
        path = path.with_name(path.name + ".toml")
    if path.exists() and not force:
        raise ValueError(f"{path} exists; choose another name, or add --force to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    word = shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))
    write_text(path, text_of(kind, neurons, seed, word))
    console().print(f"{path}\nNow: organics simulate {word}, or organics certify {word}", soft_wrap=True, markup=False)
