"""ORGaNICs for Brian2: a ``NeuronGroup`` with the variables ``y`` and ``a``.

Brian2 generates code from text, so the equations stand here a second time; the
tests compare them with :func:`organics_core.vector_field`.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from organics_core import VARIANTS, Circuit, State, checks
from organics_core.circuit import field, size

from ._common import host_circuit, host_drive, require, start_state, step

require("brian2", "brian2")

import brian2  # noqa: E402
from brian2.devices.device import RuntimeDevice, get_device  # noqa: E402

COUPLINGS = ("operation", "summed")

_names = itertools.count()

_GATE = "int(a > 0) * a"


class BrianCircuit(NamedTuple):
    """A circuit in Brian2.

    Attributes
    ----------
    group : brian2.NeuronGroup
        With y, a, the drive z (may be set at any time), and the couplings
        ``recurrent`` and ``pool``; record it with ``brian2.StateMonitor``.
    objects : list
        Everything to add to a ``brian2.Network`` (the group included).
    """

    group: Any
    objects: list[Any]


def brian_group(
    circuit: Circuit,
    z: Any,
    dt: Any,
    coupling: str = "operation",
    *,
    method: str | None = None,
    state0: State | None = None,
    variant: str = "main",
) -> BrianCircuit:
    """The circuit as a Brian2 ``NeuronGroup``.

    Parameters
    ----------
    circuit : Circuit
        Without batch axes, of any library.
    z : array (n,)
        Input drive; change it later through ``group.z``.
    dt : brian2 time or float
        Time step (a number counts as seconds).
    coupling : {"operation", "summed"}
        ``"operation"`` takes one fourth-order Runge-Kutta step of the core's
        vector field in a ``network_operation``: accurate, but Python only, so
        it raises under the ``cpp_standalone`` device, where Brian2 would leave
        it out. ``"summed"`` sends W_r y and W (a y**2) through synapses with
        summed variables, which serves every code generation target; they are
        held constant within a step, so it is of first order in dt.
    method : str, optional
        Brian2's integration method for ``"summed"``; ``"rk4"`` by default.
    state0 : State, optional
        The start; at rest by default.
    variant : {"main", "rectified", "rectified_recurrence"}

    Returns
    -------
    BrianCircuit

    Raises
    ------
    NotImplementedError
        For ``coupling="operation"`` under ``cpp_standalone``.
    TypeError, ValueError
        Naming the argument that is wrong.

    Examples
    --------
    >>> brian2.prefs.codegen.target = "numpy"
    >>> circuit = Circuit(None, np.ones((2, 2)), 1.0, 1.0, 1.0, 0.002, 0.002)
    >>> group, objects = brian_group(circuit, np.array([1.0, 0.0]), 0.1 * brian2.ms)
    >>> brian2.Network(objects).run(100 * brian2.ms)
    >>> np.asarray(group.a).round(2)
    array([2., 2.])
    """
    checks.one_of("coupling", coupling, COUPLINGS)
    checks.one_of("variant", variant, VARIANTS)
    host = host_circuit(circuit, "brian2")
    n = size(host)
    drive = host_drive(z, n)
    start = start_state(host, drive, state0)
    step_size = _step_size(dt)
    if coupling == "operation":
        _no_standalone()
        if method is not None:
            raise ValueError("method is for coupling='summed'; coupling='operation' always takes Runge-Kutta steps")
        group, others = _operation(host, step_size, variant, n)
    else:
        group, others = _summed(host, step_size, variant, n, "rk4" if method is None else method)
    group.z = drive
    group.y, group.a = start
    return BrianCircuit(group, [group, *others])


def _step_size(dt: Any) -> Any:
    """A time of Brian2, positive and finite; Brian2 itself takes steps that are not, and never moves."""
    if not isinstance(dt, brian2.Quantity):
        return checks.positive_number("dt", dt) * brian2.second
    if dt.dim != brian2.second.dim or dt.ndim:
        raise ValueError(f"dt must be one time, got {dt!r}")
    return checks.positive_number("dt", float(dt)) * brian2.second


def _no_standalone() -> None:
    if not isinstance(get_device(), RuntimeDevice):
        raise NotImplementedError(
            "coupling='operation' runs Python code at every step, which Brian2's standalone devices leave out; "
            "use coupling='summed'"
        )


def _operation(circuit: Circuit, dt: Any, variant: str, n: int) -> tuple[Any, list[Any]]:
    name = f"organics_{next(_names)}"
    group = brian2.NeuronGroup(n, "y : 1\na : 1\nz : 1", dt=dt, name=name)
    h = float(dt / brian2.second)

    def advance() -> None:
        _no_standalone()
        z = np.array(group.z_[:])
        now = State(np.array(group.y_[:]), np.array(group.a_[:]))
        now = step(lambda t, s: field(np, circuit, s, z, variant), 0.0, now, h, "rk4")
        group.y_[:], group.a_[:] = now

    return group, [brian2.NetworkOperation(advance, dt=dt, when="groups", name=f"{name}_step")]


def _summed(circuit: Circuit, dt: Any, variant: str, n: int, method: str) -> tuple[Any, list[Any]]:
    name = f"organics_{next(_names)}"
    flags = VARIANTS[variant]
    rectify = "int(y_pre > 0) * " if flags.response else ""
    source = "int(y_pre > 0) * y_pre" if flags.source else "y_pre"
    recurrent = "int(recurrent > 0) * recurrent" if flags.drive else "recurrent"
    group = brian2.NeuronGroup(
        n,
        f"""
        dy/dt = (-y + b * z + (1 - sqrt({_GATE})) * drive) / tau_y : 1
        da/dt = (-a + floor_a + pool) / tau_a : 1
        drive = {recurrent} : 1
        recurrent : 1
        pool : 1
        z : 1
        b : 1 (constant)
        floor_a : 1 (constant)
        tau_y : second (constant)
        tau_a : second (constant)
        """,
        method=method,
        dt=dt,
        name=name,
    )
    group.b = circuit.b
    group.floor_a = (circuit.b0 * circuit.sigma) ** 2
    group.tau_y = circuit.tau_y * brian2.second
    group.tau_a = circuit.tau_a * brian2.second
    w_r = np.eye(n) if circuit.w_r is None else circuit.w_r
    others = []
    for target, term, weights in (
        ("recurrent", source, w_r),
        ("pool", f"{rectify}int(a_pre > 0) * a_pre * y_pre**2", circuit.w),
    ):
        post, pre = np.nonzero(weights)  # row: to, column: from
        if len(post) == 0:
            continue
        synapses = brian2.Synapses(
            group,
            group,
            f"weight : 1 (constant)\n{target}_post = weight * ({term}) : 1 (summed)",
            dt=dt,
            name=f"{name}_{target}",
        )
        synapses.connect(i=pre, j=post)
        synapses.weight = weights[post, pre]
        others.append(synapses)
    return group, others
