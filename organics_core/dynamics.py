"""The vector fields of the circuit: the one place where its equations stand.

All variants share the same form,

    tau_y y' = -y + b z + (1 - sqrt(max(a, 0))) rec(y)
    tau_a a' = -a + (b0 sigma)**2 + W (max(a, 0) resp(y)**2)

and differ in the recurrent drive ``rec`` and in the pooled response ``resp``:

========================  ==================  ============
variant                   rec(y)              resp(y)
========================  ==================  ============
``main``                  W_r y               y
``rectified``             W_r max(y, 0)       max(y, 0)
``rectified_recurrence``  max(W_r y, 0)       max(y, 0)
========================  ==================  ============
"""

from __future__ import annotations

from typing import Any, NamedTuple

from . import checks
from .backend import Array
from .circuit import Circuit, State, identity, prepare, validate_circuit, validate_state
from .linalg import matvec


def relu(xp: Any, x: Array) -> Array:
    """max(x, 0), with derivative 0 at 0 in every library."""
    return xp.where(x > 0, x, 0.0)


def sqrt_relu(xp: Any, a: Array) -> Array:
    """sqrt(max(a, 0)), with derivative 0 (not NaN) where a <= 0."""
    positive = a > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, a, 1.0)), 0.0)


def pooled_response(xp: Any, y: Array, variant: str) -> Array:
    """The response whose square the normalization pool sums."""
    return y if variant == "main" else relu(xp, y)


def recurrent_drive(xp: Any, w_r: Array, y: Array, variant: str) -> Array:
    """The recurrent drive before its gate (1 - sqrt(max(a, 0)))."""
    source = relu(xp, y) if variant == "rectified" else y
    drive = source if w_r is None else matvec(xp, w_r, source)
    return relu(xp, drive) if variant == "rectified_recurrence" else drive


def recurrent_slope(xp: Any, w_r: Array, y: Array, variant: str) -> Array:
    """The matrix R (..., n, n) with rec(y) = R y, constant around y away from the kinks."""
    matrix = identity(xp, y) if w_r is None else w_r
    if variant == "main":
        return matrix
    if variant == "rectified":
        return matrix * _step(xp, y)[..., None, :]
    drive = y if w_r is None else matvec(xp, w_r, y)
    return matrix * _step(xp, drive)[..., :, None]


def _step(xp: Any, x: Array) -> Array:
    return xp.where(x > 0, xp.ones_like(x), xp.zeros_like(x))


class Imbalance(NamedTuple):
    """The right-hand sides tau_y y' and tau_a a' (no time constants)."""

    y: Array
    a: Array


def imbalance(xp: Any, circuit: Circuit, state: State, z: Array, variant: str) -> Imbalance:
    """tau_y y' and tau_a a': what a fixed point sets to zero."""
    return balance(xp, circuit.w_r, circuit.w, circuit.b * z, (circuit.b0 * circuit.sigma) ** 2, state, variant)


def balance(xp: Any, w_r: Array, w: Array, drive: Array, floor: Array, state: State, variant: str) -> Imbalance:
    """The two equations themselves, with the gated drive b z and the floor (b0 sigma)**2 already computed."""
    y, a = state
    dy = drive - y + (1.0 - sqrt_relu(xp, a)) * recurrent_drive(xp, w_r, y, variant)
    response = pooled_response(xp, y, variant)
    da = floor - a + matvec(xp, w, relu(xp, a) * response * response)
    return Imbalance(dy, da)


def field(xp: Any, circuit: Circuit, state: State, z: Array, variant: str) -> State:
    """The vector field, unchecked: for loops that have checked their arguments."""
    dy, da = imbalance(xp, circuit, state, z, variant)
    return State(dy / circuit.tau_y, da / circuit.tau_a)


def identity_fixed_point(xp: Any, circuit: Circuit, z: Array, variant: str) -> State:
    """The fixed point for W_r = I; rectified units with a negative drive settle at y = b z."""
    drive = circuit.b * z
    pooled = pooled_response(xp, drive, variant)
    a = (circuit.b0 * circuit.sigma) ** 2 + matvec(xp, circuit.w, pooled * pooled)
    y = drive / xp.sqrt(a)
    if variant != "main":
        y = xp.where(drive > 0, y, drive + xp.zeros_like(y))
    return State(y + xp.zeros_like(a), a + xp.zeros_like(y))


def vector_field(circuit: Circuit, state: State, z: Array, *, variant: str = "main") -> State:
    """Time derivative of the state.

    Parameters
    ----------
    circuit : Circuit
    state : State of arrays (..., n)
    z : array (..., n)
        Input drive z = W_zx x.
    variant : {"main", "rectified", "rectified_recurrence"}
        Which of the circuit's relatives: rectified responses use W_r max(y, 0)
        and W (max(a, 0) max(y, 0)**2); rectified recurrence max(W_r y, 0).

    Returns
    -------
    State of arrays (..., n)
        y' and a', per second.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong: its library, dtype, device or shape,
        or an unknown variant. Values are not looked at, so that steps trace.

    Notes
    -----
    Rawat, Heeger & Martiniani (NeurIPS 2024), equation of the circuit::

        tau_y y' = -y + b z + (1 - sqrt(max(a, 0))) (W_r y)
        tau_a a' = -a + (b0 sigma)**2 + W (max(a, 0) y**2)
    """
    checks.one_of("variant", variant, checks.VARIANTS)
    xp = validate_circuit(circuit, **validate_state(state), z=z)
    circuit, y, a, z = prepare(xp, circuit, *state, z)
    return field(xp, circuit, State(y, a), z, variant)
