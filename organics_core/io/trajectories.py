"""Trajectories in files: .npz for programs, .zarr for stores; axes are named. No pickle anywhere."""

from __future__ import annotations

import json
import os
import tempfile
from collections import namedtuple
from keyword import iskeyword
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from .. import checks
from ..backend import Array, to_numpy
from ..circuit import State
from ..models.v1 import V1State
from ..trajectory import Trajectory
from .archives import UNREADABLE, open_npz
from .atomic import write_atomically

_FORMAT = "organics trajectory 1"
_KINDS: dict[str, type[Any]] = {"State": State, "V1State": V1State}


def _parts(
    run: Trajectory, prefix: str
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, list[str]], dict[str, Any]]:
    """Arrays by name, the names of their axes, and what else belongs to the run."""
    state = run.state
    names = list(getattr(state, "_fields", [f"x{i}" for i in range(len(state))]))
    arrays = {"times": to_numpy(run.times)}
    axes = {"times": ["time"]}
    for name, value in zip(names, state, strict=True):
        arrays[prefix + name] = to_numpy(value)
        axes[prefix + name] = ["time", *(f"batch{i}" for i in range(value.ndim - 2)), "neuron"]
    arrays |= {name: to_numpy(getattr(run, name)) for name in ("status", "steps", "rejected")}
    axes |= {"status": [f"batch{i}" for i in range(run.status.ndim)], "steps": [], "rejected": []}
    for name in ("step", "settled"):
        if getattr(run, name) is not None:
            arrays[name], axes[name] = to_numpy(getattr(run, name)), []
    about = {
        "format": _FORMAT,
        "state": type(state).__name__,
        "parts": names,
        "prefix": prefix,
        "units": {"times": "s", "step": "s"},
        "message": run.message,
    }
    return arrays, axes, about


def save_trajectory(path: Any, run: Trajectory, *, prefix: str = "state.") -> None:
    """Write a run: times, states, status, step counts, with the names of all axes; not the interpolant, no events.

    Parameters
    ----------
    path : path-like
        Ending in .npz, or in .zarr (a store; needs zarr).
    run : Trajectory
    prefix : str
        Of the names of the state's arrays; what ``organics simulate`` writes has none.

    Raises
    ------
    ValueError
        For another ending, or a store that exists.
    ImportError
        For .zarr without zarr.
    """
    path = Path(os.fspath(path))
    arrays, axes, about = _parts(run, prefix)
    if path.suffix == ".npz":
        text = json.dumps({**about, "axes": axes})
        content: Any = {"about": np.asarray(text), **arrays}
        write_atomically(path, lambda file: np.savez_compressed(file, **content))
        return
    if path.suffix != ".zarr":
        raise ValueError(f"path must end in .npz or .zarr, got {str(path)!r}")
    zarr = _zarr()
    if path.exists():
        raise ValueError(f"path must be new, but {str(path)!r} exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part") as part:
        store = Path(part, "store")
        root = zarr.create_group(str(store), attributes=about)
        for name, value in arrays.items():
            names = tuple(axes[name]) or None
            root.create_array(name, shape=value.shape, dtype=value.dtype, dimension_names=names)[...] = value
        store.rename(path)  # whole or not there: what is missing in a store reads as zeros


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError(
            "trajectories in .zarr need zarr; install it with: pip install 'organics-core[sweep]'"
        ) from error
    return zarr


def load_trajectory(path: Any, *, like: Array | None = None) -> Trajectory:
    """Read a run that :meth:`Trajectory.save` or ``organics simulate`` wrote.

    Parameters
    ----------
    path : path-like
        Ending in .npz or .zarr.
    like : array, optional
        Whose library and device the arrays get; numpy's by default.

    Returns
    -------
    Trajectory
        Without interpolant and events; its last state continues the run.

    Raises
    ------
    FileNotFoundError
        Where there is nothing.
    ValueError
        For another ending, or a file that holds no trajectory.

    Examples
    --------
    >>> import tempfile, numpy as np, organics_core as oc
    >>> circuit = oc.Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> run = oc.simulate(circuit, np.array([1.0, 0.0]), np.linspace(0, 0.01, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run.save(f"{folder}/run.npz")
    ...     again = load_trajectory(f"{folder}/run.npz")
    >>> bool((again.state.y == run.state.y).all()), again.message
    (True, 'reached the last time')
    """
    path = Path(os.fspath(path))
    if path.suffix not in (".npz", ".zarr"):
        raise ValueError(f"path must end in .npz or .zarr, got {str(path)!r}")
    if not path.exists():
        raise FileNotFoundError(f"there is no {str(path)!r}")
    if like is not None:
        checks.namespace({"like": like})
    try:
        arrays, about = _read(path)
        parts = [str(name) for name in about["parts"]]
        states = [arrays[about.get("prefix", "state.") + name] for name in parts]
        fields = [arrays[name] for name in ("times", "status", "steps", "rejected")]
        kind = str(about["state"])
        state_type: Any = _KINDS.get(kind)
        if state_type is None or list(state_type._fields) != parts:
            made: Any = namedtuple
            state_type = made(kind if kind.isidentifier() and not iskeyword(kind) else "Loaded", parts)
        _check_fit(parts, states, *fields)
    except (KeyError, TypeError, *UNREADABLE) as error:
        raise ValueError(f"{str(path)!r} holds no trajectory: {error}") from None

    def convert(value: Any) -> Array:
        value = np.asarray(value)
        value = value.astype(value.dtype.newbyteorder("="), copy=False)
        if like is None:
            return value
        xp = array_namespace(like)
        return xp.asarray(np.array(value), device=device(like))

    times, status, steps, rejected = (convert(value) for value in fields)
    more = {name: convert(arrays[name]) for name in ("step", "settled") if name in arrays}
    return Trajectory(times, state_type(*(convert(value) for value in states)), status, steps, rejected, **more)


def _check_fit(parts: list[str], states: list[Any], times: Any, status: Any, steps: Any, rejected: Any) -> None:
    """ValueError unless the arrays of a file are those of one run."""
    if times.ndim != 1 or times.dtype.kind != "f":
        raise ValueError(f"times must have shape (T,) and be floating-point, got {times.dtype} of shape {times.shape}")
    if not states:
        raise ValueError("its state has no parts")
    for name, value in zip(parts, states, strict=True):
        if value.dtype.kind != "f":
            raise ValueError(f"{name} must be floating-point, got {value.dtype}")
        if value.ndim < 2 or value.shape[:1] != times.shape or value.shape[1:-1] != status.shape:
            want = ", ".join(map(str, (*times.shape, *status.shape, "n")))
            raise ValueError(f"{name} must have shape ({want}), one state per time, got {value.shape}")
    for name, value in (("status", status), ("steps", steps), ("rejected", rejected)):
        if value.dtype.kind not in "iu" or (name != "status" and value.ndim):
            raise ValueError(f"{name} must be integers, steps and rejected one each, got {value.dtype} {value.shape}")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if path.suffix == ".npz":
        with open_npz(path) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about")))
    else:
        root = _zarr().open_group(str(path), mode="r")
        arrays, about = {name: value[...] for name, value in root.arrays()}, dict(root.attrs)
    if not isinstance(about, dict):
        raise ValueError("its text about itself is no JSON object")
    if about.get("format") != _FORMAT:
        raise ValueError(f"its format is {about.get('format')!r}, not {_FORMAT!r}")
    checks.one_of("state", "times", arrays)
    return arrays, about
