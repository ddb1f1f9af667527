"""What the adapters share: missing frameworks, circuits on the host, one Runge-Kutta step."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from organics_core import INTEGRATORS, Circuit, State, Tableau, checks, resting_state
from organics_core.backend import to_numpy, tree_map
from organics_core.circuit import size, validate_circuit, validate_state
from organics_core.weights import is_operator

Array = Any
Drive = Any


def require(extra: str, *modules: str) -> None:
    """ImportError naming the extra, unless every one of ``modules`` can be imported."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"organics_simulators.{extra} needs {' and '.join(missing)}, which this Python does not have: "
            f'pip install "organics-core[{extra}]"'
        )


def no_batch(circuit: Circuit, framework: str, **others: Array) -> None:
    """ValueError where a field of the circuit, or another array (n,), has batch axes; TypeError for operators."""
    dense(circuit, framework)
    for name, value in {**circuit._asdict(), **others}.items():
        core = 2 if name in ("w", "w_r") else 1
        if value is not None and not checks.is_number(value) and value.ndim > core:
            raise ValueError(
                f"{framework} takes one circuit at a time, but {name} has batch axes: shape {tuple(value.shape)}"
            )


def dense(circuit: Circuit, framework: str) -> None:
    """TypeError where the weights are sparse or functions."""
    for name in ("w_r", "w"):
        value = getattr(circuit, name)
        if is_operator(value):
            raise TypeError(f"{framework} takes weights as dense arrays, but {name} is {checks.describe(value)}")


def on_host(circuit: Circuit, framework: str) -> Circuit:
    """The circuit of any library as float64 numpy arrays of its own, numbers kept."""
    validate_circuit(circuit, values=True)
    dense(circuit, framework)
    fields = [v if v is None or checks.is_number(v) else np.array(to_numpy(v), dtype=np.float64) for v in circuit]
    return Circuit(*fields)


def host_circuit(circuit: Circuit, framework: str) -> Circuit:
    """One circuit as float64 numpy arrays: w (n, n), w_r (n, n) or None, the rest (n,)."""
    host = on_host(circuit, framework)
    no_batch(host, framework)
    n = size(host)
    vectors = [np.broadcast_to(np.asarray(v, dtype=np.float64), (n,)).copy() for v in host[2:]]
    return Circuit(host.w_r, host.w, *vectors)


def drive_at(z: Drive, t: Any) -> Array:
    """The input drive at time ``t``: constant, or a function of time."""
    return z(t) if callable(z) else z


def host_drive(z: Drive, n: int, *, name: str = "z") -> np.ndarray:
    """A constant drive as a float64 numpy array (n,) of its own, or an error naming it."""
    value = host_numbers(z, name)
    if value.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), got shape {value.shape}")
    return value


def host_numbers(values: Any, name: str) -> np.ndarray:
    """Finite real numbers of any library as a float64 numpy array of its own, or an error naming them."""
    given = np.asarray(to_numpy(values))
    if given.dtype.kind not in "fiu" and given.dtype.name != "bfloat16":  # a cast would hide it
        raise TypeError(f"{name} must hold real numbers, got dtype {given.dtype}")
    value = np.array(given, dtype=np.float64)
    checks.values(np, name, value, "any")
    return value


def start_state(circuit: Circuit, z: Array, state0: State | None) -> State:
    """``state0`` of any library, checked, or the state at rest, y = 0, a = (b0 sigma)**2: of a circuit on the host."""
    if state0 is None:
        return resting_state(circuit, z)
    parts = validate_state(state0, "state0")
    checks.namespace(parts)
    state0 = State(*(np.array(to_numpy(part), dtype=np.float64) for part in parts.values()))
    validate_circuit(circuit, z=z, **validate_state(state0, "state0"))
    for name, part in zip(parts, state0, strict=True):
        if part.shape != z.shape:
            raise ValueError(f"{name} must have shape {z.shape}, got shape {part.shape}")
        checks.values(np, name, part, "any")
    return state0


def step(slope: Callable[[Any, State], State], t: Any, state: State, h: Any, method: str | Tableau) -> State:
    """One step of an explicit method of the core's table, for frameworks that call once per time step."""
    tableau = explicit(method)
    stages: list[State] = []
    for node, row in zip(tableau.nodes, tableau.stages, strict=True):
        stages.append(slope(t + node * h, _advance(state, stages, row, h)))
    return _advance(state, stages, tableau.weights, h)


def explicit(method: str | Tableau) -> Tableau:
    """The method's table; ValueError for exponential methods, which need more than slopes."""
    if not isinstance(method, Tableau):
        allowed = [name for name, tableau in INTEGRATORS.items() if not tableau.exponential]
        checks.one_of("method", method, allowed)
        method = INTEGRATORS[method]
    if method.exponential:
        raise ValueError(f"method {method.name!r} is exponential; choose an explicit Runge-Kutta method")
    return method


def _advance(state: State, stages: list[State], weights: tuple[float, ...], h: Any) -> State:
    for weight, stage in zip(weights, stages, strict=True):
        if weight != 0.0:
            state = tree_map(lambda x, k, w=weight: x + (w * h) * k, state, stage)
    return state
