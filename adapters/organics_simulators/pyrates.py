"""ORGaNICs for PyRates: one node per unit, W_r and W as edges.

PyRates generates code from text, so the equations stand here a second time; the
tests compare them with :func:`organics_core.vector_field`. In PyRates ``y``,
``sqrt`` and ``maximum`` cannot be used in equations, so the potential is called
``v``, the modulator ``av``, and max(a, 0) is left out: with a positive at the
start it stays positive.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from organics_core import Circuit, State, Trajectory, checks
from organics_core.circuit import size

from ._common import host_circuit, host_drive, require, start_state

require("pyrates", "pyrates")

from pyrates import CircuitTemplate, NodeTemplate, OperatorTemplate, clear_frontend_caches  # noqa: E402

EQUATIONS = (
    "v' = (-v + b*z + (1 - av**0.5)*r) / tau_y",
    "av' = (-av + c + s) / tau_a",
    "q = av*v**2",
)


def to_template(
    circuit: Circuit, z: Any, *, state0: State | None = None, name: str = "organics", ignore_below: float = 0.0
) -> CircuitTemplate:
    """The circuit as a PyRates ``CircuitTemplate`` with the nodes u0, u1, ... and the operator ``organics``.

    Parameters
    ----------
    circuit : Circuit
        Without batch axes, of any library.
    z : array (n,)
        Input drive; ``u3/organics/z`` is the drive of unit 3.
    state0 : State, optional
        The start, a positive; at rest by default.
    name : str
    ignore_below : float
        Leave out edges of smaller absolute weight; none by default.
        (``CircuitTemplate.add_edges_from_matrix`` drops those below 1e-6
        silently, so it is not used here.)

    Returns
    -------
    pyrates.CircuitTemplate
        Run it in double precision and with tolerances of your own, as
        :func:`run` does: PyRates' defaults are float32 and explicit Euler.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> sorted(to_template(circuit, np.array([1.0, 0.0])).nodes)
    ['u0', 'u1']
    """
    host = host_circuit(circuit, "pyrates")
    n = size(host)
    drive = host_drive(z, n)
    start = start_state(host, drive, state0)
    if not (start.a > 0).all():
        raise ValueError(f"state0.a must be positive, because PyRates cannot rectify it, got {start.a.min():g}")
    if not ignore_below >= 0:
        raise ValueError(f"ignore_below must be non-negative, got {ignore_below!r}")
    operator = OperatorTemplate(
        "organics",
        equations=list(EQUATIONS),
        variables={
            "v": "output(0.0)",
            "av": "variable(1.0)",
            "q": "variable(0.0)",
            "r": "input(0.0)",
            "s": "input(0.0)",
            **dict.fromkeys(("z", "b", "c", "tau_y", "tau_a"), 1.0),
        },
    )
    values = {"v": start.y, "av": start.a, "z": drive, "b": host.b, "c": (host.b0 * host.sigma) ** 2}
    values |= {"tau_y": host.tau_y, "tau_a": host.tau_a}
    nodes = {
        f"u{k}": NodeTemplate(f"u{k}", operators={operator: {key: float(v[k]) for key, v in values.items()}})
        for k in range(n)
    }
    w_r = np.eye(n) if host.w_r is None else host.w_r
    edges = []
    for weights, source, target in ((w_r, "v", "r"), (host.w, "q", "s")):
        for i, j in np.ndindex(n, n):  # row: to, column: from
            if abs(weights[i, j]) >= ignore_below:
                link = (f"u{j}/organics/{source}", f"u{i}/organics/{target}", None, {"weight": float(weights[i, j])})
                edges.append(link)
    return CircuitTemplate(name, nodes=nodes, edges=edges)


def outputs(n: int) -> dict[str, str]:
    """The ``outputs`` of ``CircuitTemplate.run`` for every y and a.

    Parameters
    ----------
    n : int
        Units of the circuit.

    Returns
    -------
    dict of str to str
        PyRates' paths under the names y0, y1, ..., a0, a1, ...
    """
    names = {f"y{k}": f"u{k}/organics/v" for k in range(n)}
    return names | {f"a{k}": f"u{k}/organics/av" for k in range(n)}


def fresh(rhs: Callable[..., Any]) -> Callable[..., Any]:
    """A generated right-hand side that returns a new array at every call, for ``CircuitTemplate.run(decorator=fresh)``.

    Parameters
    ----------
    rhs : callable
        As PyRates generates it for numpy or torch.

    Returns
    -------
    callable
    """

    @wraps(rhs)
    def call(*args: Any) -> Any:
        slope = rhs(*args)
        return slope.clone() if hasattr(slope, "clone") else slope.copy()

    return call


def run(
    circuit: Circuit,
    z: Any,
    duration: float,
    *,
    step_size: float | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    state0: State | None = None,
    **options: Any,
) -> Trajectory:
    """Run the circuit in PyRates, in double precision.

    Parameters
    ----------
    circuit, z, state0
        As for :func:`to_template`.
    duration : float
        In seconds.
    step_size : float, optional
        Sampling step, of which the duration is a multiple; a hundredth of it by default.
    rtol, atol : float
        Tolerances of the solver.
    **options
        For ``CircuitTemplate.run``: ``backend``, ``solver``, ``method``, ...

    Returns
    -------
    Trajectory
        Times from 0 to the duration, both included, and the states.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.

    Notes
    -----
    PyRates' generated function returns the same array at every call. scipy's
    DOP853, BDF and Radau keep what they were given, and are silently wrong
    between steps (or break down); so are PyRates' own Heun steps. Here every
    call returns a copy. Do the same in runs of your own, with ``decorator=fresh``.

    Examples
    --------
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> run(circuit, np.array([1.0, 0.0]), 0.1).state.a[-1].round(2)
    array([2., 2.])
    """
    duration = checks.positive_number("duration", duration)
    step_size = duration / 100 if step_size is None else checks.positive_number("step_size", step_size)
    steps = round(duration / step_size)
    if abs(steps * step_size - duration) > 1e-6 * duration:
        raise ValueError(f"duration must be a multiple of step_size, {step_size:g}, got {duration:g}")
    template = to_template(circuit, z, state0=state0)
    n = len(template.nodes)
    defaults = {"solver": "scipy", "method": "DOP853", "float_precision": "float64", "verbose": False}
    if options.get("backend", "default") in ("default", "numpy", "torch"):
        defaults["decorator"] = fresh
    clear_frontend_caches()  # or names of an earlier, uncleared model leak into this one
    with warnings.catch_warnings():
        # PyRates hands float_precision on to scipy, which warns that it has no use for it
        warnings.filterwarnings("ignore", message="The following arguments have no effect")
        table = template.run(
            simulation_time=(steps + 1) * step_size,  # its last sample is one step before the end
            step_size=step_size,
            outputs=outputs(n),
            rtol=rtol,
            atol=atol,
            **{**defaults, **options},
        )
    times, x = table.index.to_numpy(dtype=float), table.to_numpy(dtype=float)
    zero = np.zeros((), dtype=np.int32)
    return Trajectory(times, State(x[:, :n], x[:, n:]), zero, zero, zero)
