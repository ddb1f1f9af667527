"""The kernel for batches of small circuits: its launch geometry, its source text, its arguments.

Nothing here imports cupy; the text is compiled and launched through the module
that the arrays belong to.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from organics_core.circuit import VARIANTS
from organics_core.methods import INTEGRATORS, Tableau

NOISES = ("none", "drawn", "given")

# dx = f dt + L dB: the noise enters a stage with the stage's own node.
SDE_TABLEAUS = {"euler_maruyama": INTEGRATORS["euler"], "stochastic_heun": INTEGRATORS["heun"]}

_WEIGHT_BYTES = 256
"""Bytes of weights that a thread holds in registers at most (64 of the 255 registers)."""
_THREADS = 128
"""Threads of a block, at least, where circuits can be packed."""
_MOST_THREADS = {"float32": 512, "float64": 256}
"""Threads of a block at most: more would leave too few registers for each."""


class Geometry(NamedTuple):
    """How a batch of circuits is laid out on the device.

    Attributes
    ----------
    neurons : int
    dtype : str
        "float32" or "float64".
    lanes : int
        Threads per neuron, a power of two.
    pack : int
        Circuits per block.
    threads : int
        Threads per block, whole warps.
    """

    neurons: int
    dtype: str
    lanes: int
    pack: int
    threads: int

    def blocks(self, batch: int) -> int:
        return -(-batch // self.pack)


def geometry(neurons: int, dtype: str) -> Geometry | None:
    """The layout for circuits of ``neurons``, or None where the weights of one do not fit into registers."""
    if dtype not in _MOST_THREADS:
        return None
    size = 4 if dtype == "float32" else 8
    lanes = 1
    while 2 * size * -(-neurons // lanes) > _WEIGHT_BYTES:
        lanes *= 2
    each = neurons * lanes
    if lanes > 32 or each > _MOST_THREADS[dtype]:
        return None
    pack = max(1, _THREADS // each)
    return Geometry(neurons, dtype, lanes, pack, -(-pack * each // 32) * 32)


def _braces(values: Any) -> str:
    if isinstance(values, (tuple, list)):
        return "{" + ", ".join(map(_braces, values)) + "}"
    return f"REAL({float(values)!r})"


@cache
def source(layout: Geometry, tableau: Tableau, variant: str, recurrent: bool, noise: str) -> str:
    """The kernel's text for one kind of circuit and method.

    Parameters
    ----------
    layout : Geometry
    tableau : Tableau
        A method of fixed steps.
    variant : {"main", "rectified", "rectified_recurrence"}
    recurrent : bool
        Whether there is a W_r other than the identity.
    noise : {"none", "drawn", "given"}

    Returns
    -------
    str
        CUDA C++, with one function ``organics_run``.
    """
    stages = len(tableau.nodes)
    matrix = [[*row, *(0.0,) * (stages - len(row))] for row in tableau.stages]
    names = {
        "REAL": "float" if layout.dtype == "float32" else "double",
        "N": layout.neurons,
        "LANES": layout.lanes,
        "PACK": layout.pack,
        "STAGES": stages,
        "A": _braces(matrix),
        "B": _braces(tableau.weights),
        "C": _braces(tableau.nodes),
        **{name.upper(): int(flag) for name, flag in VARIANTS[variant]._asdict().items()},
        "RECURRENT": int(recurrent),
        "NOISE": NOISES.index(noise),
        "EXPONENTIAL": int(tableau.exponential),
    }
    header = "".join(f"#define {name} {value}\n" for name, value in names.items())
    return header + (Path(__file__).parent / "circuit.cu").read_text()
