"""Circuit files: TOML for people, .npz for programs. Reading one never executes anything (no pickle).

A TOML file::

    [circuit]
    w_r = "identity"          # or a nested list; the identity where it is left out
    w = 0.5                   # a nested list, or a number: a uniform pool
    n = 3                     # only needed where nothing else tells the size
    b = 0.5                   # b, b0, sigma, tau_y, tau_a: numbers or lists of n
    b0 = 0.5
    sigma = 0.1
    tau_y = 0.002             # seconds
    tau_a = 0.002

    [input]
    z = [1.0, 0.5, 0.25]      # or a number, for all neurons

    [simulation]              # optional, and so is every key of it
    duration = 0.2            # seconds
    points = 200
    method = "dopri5"
    rtol = 1e-6
    atol = 1e-9
    variant = "main"
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..backend import Array, to_numpy
from ..circuit import VARIANTS, Circuit, validate_circuit
from ..methods import METHODS
from ..weights import is_operator
from .archives import UNREADABLE, open_npz
from .atomic import write_atomically

_VECTORS = ("b", "b0", "sigma", "tau_y", "tau_a")


_MOST_POINTS = 1_000_000
"""More output times fill the memory before anybody sees them."""


class SimulationSettings(NamedTuple):
    """How a circuit file asks to be simulated.

    Attributes
    ----------
    duration : float or None
        In seconds; None leaves it to the program.
    points : int
        Number of output times.
    method : str
        A name of :data:`organics_core.METHODS`.
    rtol, atol : float
        Tolerances of the adaptive method.
    variant : str
        ``"main"``, ``"rectified"`` or ``"rectified_recurrence"``.
    """

    duration: float | None = None
    points: int = 400
    method: str = "dopri5"
    rtol: float = 1e-6
    atol: float = 1e-9
    variant: str = "main"


class CircuitFile(NamedTuple):
    """What a circuit file holds.

    Attributes
    ----------
    circuit : Circuit
        Of numpy float64 arrays.
    z : numpy.ndarray (..., n)
        Input drive.
    simulation : SimulationSettings
        Defaults where the file says nothing.
    """

    circuit: Circuit
    z: np.ndarray[Any, Any]
    simulation: SimulationSettings = SimulationSettings()


def load_circuit(path: str | os.PathLike[str]) -> CircuitFile:
    """Read a circuit, its input drive and its simulation settings from a file.

    Parameters
    ----------
    path : path
        Ending in ``.toml`` or ``.npz``.

    Returns
    -------
    CircuitFile
        Numpy float64 throughout.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        One sentence that names the file and the culprit: broken TOML (with its
        line), an unknown or missing key, a wrong shape or value, or an archive
        that would need pickle, which is never loaded.

    Examples
    --------
    >>> circuit, z, simulation = load_circuit("examples/circuit.toml")  # doctest: +SKIP
    """
    path = Path(path)
    suffix = _suffix(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    tables = _read_toml(path) if suffix == ".toml" else _read_npz(path)
    try:
        return _build(tables)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def save_circuit(
    path: str | os.PathLike[str],
    circuit: Circuit,
    z: Array,
    simulation: SimulationSettings | None = None,
) -> None:
    """Write a circuit and its input drive, so that :func:`load_circuit` reads the same numbers back.

    The file appears whole or not at all: it is written beside its place and
    then moved there.

    Parameters
    ----------
    path : path
        Ending in ``.toml`` (one circuit) or ``.npz`` (batch axes allowed).
    circuit : Circuit
        Of any array library.
    z : array (..., n)
        Input drive.
    simulation : SimulationSettings, optional

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong; TypeError for weights that are no dense
        arrays, ValueError for batch axes in a TOML file.
    """
    path = Path(path)
    suffix = _suffix(path)
    validate_circuit(circuit, values=True, z=z)
    if simulation is not None and not isinstance(simulation, SimulationSettings):
        raise TypeError(f"simulation must be SimulationSettings, got {checks.describe(simulation)}")
    fields: dict[str, Any] = {}
    for name, value in circuit._asdict().items():
        if is_operator(value):
            raise TypeError(f"{name} must be a dense array to be saved, got {checks.describe(value)}")
        if value is not None:
            number = value if checks.is_number(value) else to_numpy(value)
            fields[name] = np.asarray(number, dtype=np.float64)
    drive = np.asarray(to_numpy(z), dtype=np.float64)
    checks.values(np, "z", drive, "any")
    settings: dict[str, Any] = {}
    if simulation is not None:
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in simulation._asdict().items()}
        settings = {k: v for k, v in _settings(plain)._asdict().items() if v is not None}
    if suffix == ".npz":
        write_atomically(path, lambda file: np.savez(file, z=drive, **fields, **settings))
        return
    for name, value in {**fields, "z": drive}.items():
        if value.ndim > (2 if name in ("w", "w_r") else 1):
            raise ValueError(
                f"{name} has batch axes (shape {value.shape}), for which a TOML file has no room; use .npz"
            )
    lines = ["[circuit]"]
    if "w_r" not in fields:
        lines.append('w_r = "identity"')
    lines += [f"{name} = {_toml(value)}" for name, value in fields.items()]
    lines += ["", "[input]", f"z = {_toml(drive)}"]
    if settings:
        lines += ["", "[simulation]", *(f"{name} = {_toml(value)}" for name, value in settings.items())]
    text = "\n".join(lines) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".npz"):
        raise ValueError(f"{path} must end in .toml or .npz, got {path.suffix or 'no ending'!r}")
    return suffix


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, np.ndarray):
        if value.ndim == 2:
            return "[\n" + "".join(f"    {_toml(row)},\n" for row in value) + "]"
        value = value.tolist()
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)


def _read_toml(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: byte {error.start} is not UTF-8 text") from None
    except RecursionError:
        raise ValueError(f"{path}: lists are nested too deeply") from None
    except ValueError as error:  # also of an integer of more than 4,300 digits
        raise ValueError(f"{path} is not valid TOML: {_lower(str(error))}") from None
    known = ("circuit", "input", "simulation")
    for name, table in tables.items():
        if name not in known:
            kind = "table" if isinstance(table, dict) else "key"
            raise ValueError(
                f"{path} has an unknown {kind} {name!r}{_hint(name, known, 'below')}; "
                "the tables are [circuit], [input] and [simulation]"
            )
        if not isinstance(table, dict):
            raise ValueError(f"{path}: {name} must be a table, [{name}]")
    for name in known[:2]:
        if name not in tables:
            raise ValueError(f"{path} has no table [{name}]")
    return tables


def _read_npz(path: Path) -> dict[str, dict[str, Any]]:
    try:
        archive = open_npz(path)
    except ValueError as error:
        raise ValueError(f"{path} is {error}; it should hold w, b, b0, sigma, tau_y, tau_a and z") from None
    tables: dict[str, dict[str, Any]] = {"circuit": {}, "input": {}, "simulation": {}}
    with archive:
        if {"about", "reason", "circuit.w"} <= set(archive.files):  # of Proof.save
            raise ValueError(f"{path} holds a proof, not a circuit; organics certify --check {path} verifies it")
        if {"about", "times", "status", "steps"} <= set(archive.files):  # of Trajectory.save
            raise ValueError(f"{path} holds a trajectory, not a circuit; organics_core.load_trajectory reads it")
        for name in archive.files:
            try:
                value = archive[name]
            except UNREADABLE as error:
                if "pickle" in str(error) or "Object arrays" in str(error):
                    raise ValueError(f"{path}: {name!r} is a pickled object array, which is never loaded") from None
                raise ValueError(f"{path}: {name!r} cannot be read: {_lower(str(error))}") from None
            table = "input" if name == "z" else "simulation" if name in SimulationSettings._fields else "circuit"
            if table == "simulation":
                if not isinstance(value, np.ndarray) or value.shape != ():
                    raise ValueError(
                        f"{path}: {name} must be a single value, got shape {getattr(value, 'shape', None)}"
                    )
                value = value.item()
            tables[table][name] = value
    return tables


def _lower(text: str) -> str:
    text = text.strip().rstrip(".")
    return text[:1].lower() + text[1:]


_TABLES = {
    **dict.fromkeys(("w_r", "w", "n", *_VECTORS), "circuit"),
    "z": "input",
    **dict.fromkeys(SimulationSettings._fields, "simulation"),
}
"""Where a key belongs."""


def _hint(name: str, known: Iterable[str], where: str = "to") -> str:
    """Where an unknown key belongs, or what it may be meant to be, in brackets; empty where neither is known."""
    if name in _TABLES:
        return f" (it belongs {where} [{_TABLES[name]}])"
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _check_keys(table: dict[str, Any], title: str, known: tuple[str, ...]) -> None:
    for name in table:
        if name not in known:
            keys = f"the keys are {', '.join(known)}" if len(known) > 1 else f"its key is {known[0]}"
            raise ValueError(f"unknown key {name!r} in [{title}]{_hint(name, known)}; {keys}")


def _build(tables: dict[str, dict[str, Any]]) -> CircuitFile:
    table = tables["circuit"]
    known = ("w_r", "w", "n", *_VECTORS)
    _check_keys(table, "circuit", known)
    _check_keys(tables["input"], "input", ("z",))
    for name in ("w", *_VECTORS):
        if name not in table:
            raise ValueError(f"{name} is missing from [circuit]")
    if "z" not in tables["input"]:
        raise ValueError("z is missing from [input]")
    n = table.get("n")
    if n is not None:
        if isinstance(n, np.ndarray) and n.shape == () and n.dtype.kind in "iu":
            n = int(n)
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be an integer of at least 1, got {n!r}")
    w_r = table.get("w_r", "identity")
    if isinstance(w_r, np.ndarray) and w_r.dtype.kind == "U" and w_r.shape == ():
        w_r = w_r.item()
    if isinstance(w_r, str):
        if w_r != "identity":
            raise ValueError(f'w_r must be "identity" or a nested list of numbers, got {w_r!r}')
        w_r = None
    else:
        w_r = _floats("w_r", w_r)
    w = _floats("w", table["w"])
    vectors = {name: _floats(name, table[name]) for name in _VECTORS}
    z = _floats("z", tables["input"]["z"])
    n = _size(n, w_r, w, vectors, z)
    if w.ndim == 0:
        w = np.full((n, n), float(w))
    if z.ndim == 0:
        z = np.full(n, float(z))
    for name, value, core in (("w", w, 2), ("w_r", w_r, 2), ("z", z, 1), *((k, v, 1) for k, v in vectors.items())):
        if value is None or (value.ndim == 0 and core == 1):
            continue
        if value.ndim < core or tuple(value.shape[-core:]) != (n,) * core:
            want = f"{n} x {n} numbers" if core == 2 else f"{n} numbers"
            raise ValueError(f"{name} must hold {want}, got shape {tuple(value.shape)}")
    circuit = Circuit(w_r, w, **vectors)
    validate_circuit(circuit, values=True, z=z)
    if not np.isfinite(z).all():
        raise ValueError("z must be finite, got NaN or infinity among its values")
    return CircuitFile(circuit, z, _settings(tables.get("simulation", {})))


def _size(
    n: int | None,
    w_r: np.ndarray[Any, Any] | None,
    w: np.ndarray[Any, Any],
    vectors: dict[str, np.ndarray[Any, Any]],
    z: np.ndarray[Any, Any],
) -> int:
    """The number of neurons: as said, or else that of the first array that has one."""
    if n is not None:
        return n
    for name, value in {"w": w, "w_r": w_r, "z": z, **vectors}.items():
        if value is not None and value.ndim > 0:
            if value.shape[-1] == 0:
                raise ValueError(f"{name} must not be empty")
            return int(value.shape[-1])
    raise ValueError("n is missing from [circuit], and nothing else tells the number of neurons")


def _floats(name: str, value: Any) -> np.ndarray[Any, Any]:
    """Numbers, or nested lists of them, as float64; ValueError naming ``name`` for anything else."""
    wrong = ValueError(f"{name} must be a number or a list of numbers, got {_short(value)}")
    if isinstance(value, list):
        bad = _first_other(value)
        if bad is not None:
            raise ValueError(f"{name} must hold numbers only, got {_short(bad[0])} among them")
        try:
            array = np.asarray(value)
        except ValueError:
            raise ValueError(f"{name} has rows of different lengths") from None
    elif isinstance(value, np.ndarray):
        array = value
    elif checks.is_number(value):
        array = np.asarray(value)
    else:
        raise wrong
    if array.dtype.kind == "O" and not isinstance(value, np.ndarray):  # Python's integers have no bound
        raise ValueError(f"{name} holds an integer too large for a floating-point number")
    if array.dtype.kind not in "iuf":
        raise wrong
    return array.astype(np.float64)


def _first_other(value: list[Any]) -> tuple[Any] | None:
    """The first thing in nested lists that is no number, in a tuple of one."""
    for item in value:
        if isinstance(item, list):
            found = _first_other(item)
            if found is not None:
                return found
        elif not checks.is_number(item):
            return (item,)
    return None


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _settings(table: dict[str, Any]) -> SimulationSettings:
    defaults = SimulationSettings()
    _check_keys(table, "simulation", defaults._fields)
    found = {**defaults._asdict(), **table}
    for name in ("duration", "rtol", "atol"):
        value = found[name]
        if name == "duration" and value is None:
            continue
        if not checks.is_number(value) or not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a positive number, got {_short(value)}")
        found[name] = float(value)
    points = found["points"]
    if isinstance(points, bool) or not isinstance(points, int) or not 2 <= points <= _MOST_POINTS:
        raise ValueError(f"points must be an integer from 2 to {_MOST_POINTS:,}, got {_short(points)}")
    checks.one_of("method", found["method"], METHODS)
    checks.one_of("variant", found["variant"], VARIANTS)
    return SimulationSettings(**found)
