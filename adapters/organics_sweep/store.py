"""Where results go: a Zarr group on disk, one chunk per task, so that finished tasks are never computed again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import organics_core as oc
from organics_core.analysis.classification import KINDS, PhaseDiagram

from .spec import Sweep, Task

_FIELDS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "kind": ("int8", -1, {"codes": {"-1": "not computed yet", **{str(k): kind for k, kind in enumerate(KINDS)}}}),
    "abscissa": (
        "float64",
        np.nan,
        {"long_name": "spectral abscissa at the fixed point, positive where unstable; NaN: none", "units": "1/s"},
    ),
    "distance": (
        "float64",
        np.nan,
        {"long_name": "|y - y_I| / |y_I|, y_I the closed form for W_r = I; NaN: no fixed point", "units": "1"},
    ),
    "simulated": ("bool", False, {"long_name": "whether a simulation decided, not the linearization"}),
}
_DIMENSIONS = ("delta", "norm", "draw")
_ABOUT = (
    "Phase diagram of ORGaNICs circuits with W_r = I + delta M / sqrt(n), M a random matrix: kind of the motion over "
    "strength delta, norm of the input drive and draw. The attribute sweep holds every parameter."
)


class TornStore(ValueError):
    """A chunk of the store was not written to its end."""


class Store:
    """The store of one sweep at ``path``, made if it is not there.

    Parameters
    ----------
    path : str or Path
    spec : Sweep

    Raises
    ------
    ValueError
        Where the path holds another sweep, or something else.
    """

    def __init__(self, path: Path | str, spec: Sweep) -> None:
        self.spec = spec
        path = Path(path)
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            self._place(path)
        self.group = _open(path, "r+")
        if self.group.attrs["sweep"] != spec.describe():
            raise ValueError(f"{path} holds another sweep; choose another path, or give the options it was made with")

    def _place(self, path: Path) -> None:
        """Make the store whole, or find that another process has made one meanwhile."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as part:
            self._make(Path(part, "store"))
            try:
                if path.exists():
                    path.rmdir()  # empty
                Path(part, "store").rename(path)  # whole or not at all
            except OSError:
                if not (path.is_dir() and any(path.iterdir())):
                    raise

    def _make(self, path: Path) -> None:
        spec = self.spec
        self.group = zarr.open_group(path, mode="w")
        chunks = (1, 1, min(spec.block, spec.draws))
        for name, (dtype, fill, about) in _FIELDS.items():
            self.group.create_array(
                name, shape=spec.shape, chunks=chunks, dtype=dtype, fill_value=fill, attributes=about,
                dimension_names=_DIMENSIONS,
            )  # fmt: skip
        for name, values in zip(_DIMENSIONS, (spec.deltas, spec.norms), strict=False):
            self.group.create_array(name, data=np.array(values), dimension_names=(name,))
        done = (len(spec.deltas), len(spec.norms), spec.blocks)
        self.group.create_array("done", shape=done, chunks=(1, 1, 1), dtype="bool", fill_value=False)
        self.group.attrs.update({"description": _ABOUT, "organics_core": oc.__version__})
        self.group.attrs["sweep"] = spec.describe()

    def missing(self) -> list[Task]:
        """The tasks still to be done; those whose mark is torn are."""
        try:
            done = self.group["done"][:]
        except _TORN:
            return [task for task in self.spec.tasks() if not _readable(self.group["done"], task)]
        return [task for task in self.spec.tasks() if not done[task]]

    def forget_torn(self) -> int:
        """Mark finished tasks of which a chunk cannot be read as missing; how many there were."""
        missing, count = set(self.missing()), 0
        for task in self.spec.tasks():
            draws = self.spec.range_of(task)
            place = (task.delta, task.norm, slice(draws.start, draws.stop))
            if task not in missing and not all(_readable(self.group[name], place) for name in _FIELDS):
                self.group["done"][task] = False
                count += 1
        return count

    def write(self, task: Task, values: dict[str, np.ndarray]) -> None:
        """Append the result of a task; its mark comes last, so a torn write is computed again."""
        draws = self.spec.range_of(task)
        for name in _FIELDS:
            self.group[name][task.delta, task.norm, draws.start : draws.stop] = values[name]
        self.group["done"][task] = True


_TORN = (RuntimeError, ValueError, OSError)
"""What zarr raises for a chunk that was not written to its end."""


def _readable(array: Any, place: Any) -> bool:
    """Whether what stands at ``place`` can be read; of a mark, whether it is set, too."""
    try:
        value = array[place]
    except _TORN:
        return False
    return bool(value) if array.name.endswith("done") else True


def _open(path: Path, mode: str) -> zarr.Group:
    try:
        group = zarr.open_group(path, mode=mode)
        group.attrs["sweep"]
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not the store of a sweep; choose a path that does not exist") from error
    for name in (*_FIELDS, "done"):
        try:
            group[name]
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(
                f"{path}: the description of the array {name} is missing or torn; choose a path that does not exist"
            ) from error
    return group


def load(path: Path | str) -> PhaseDiagram:
    """The phase diagram in a store; ``kind`` is -1 where nothing has been computed yet.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    organics_core.PhaseDiagram
        Of numpy arrays.

    Raises
    ------
    FileNotFoundError, ValueError
        Where there is no store, and where a chunk of it was not written to its end.

    Examples
    --------
    >>> import tempfile
    >>> from organics_sweep import Sweep, run
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = run(Sweep(n=3, deltas=(0.0, 1.0), norms=(1.0,), draws=2, block=2), folder + "/sweep", workers=0)
    ...     diagram = load(folder + "/sweep")
    >>> diagram.kind[0, 0].tolist()  # W_r = I: every one has a fixed point, kind 0
    [0, 0]
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no sweep at {path}")
    group = _open(path, "r")
    described = group.attrs["sweep"]
    arrays = {}
    for name in _FIELDS:
        try:
            arrays[name] = group[name][:]
        except _TORN as error:
            raise TornStore(
                f"{path}: a chunk of {name} cannot be read ({error}); Store(...).forget_torn() marks its task as "
                "missing, and a run of the sweep computes it again"
            ) from error
    return PhaseDiagram(np.array(described["deltas"]), np.array(described["norms"]), **arrays)
