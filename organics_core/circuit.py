"""The circuit and its state: named tuples of arrays, and their validation."""

from __future__ import annotations

from typing import Any, NamedTuple

from array_api_compat import device, is_array_api_obj

from . import checks
from .backend import Array, get_backend

_NUMBERS = ("b", "b0", "sigma", "tau_y", "tau_a")
_ALLOWED = {"w_r": "any", "w": ">= 0", "b": "> 0", "b0": "> 0", "sigma": "> 0", "tau_y": "> 0", "tau_a": "> 0"}


class _CircuitFields(NamedTuple):
    w_r: Array
    w: Array
    b: Array
    b0: Array
    sigma: Array
    tau_y: Array
    tau_a: Array


class Circuit(_CircuitFields):
    """An ORGaNICs circuit of n principal neurons and n modulators.

    A named tuple of arrays of one library, so that jax and torch see a pytree.
    Leading axes of any field are batch axes. The fields are checked when the
    circuit is made, their values where they can be seen (not while tracing).

    Parameters
    ----------
    w_r : array (..., n, n) or None
        Recurrent weights W_r, any real matrix. ``None`` stands for the
        identity, the case proven stable, and costs no product.
    w : array (..., n, n)
        Normalization weights W, non-negative.
    b, b0 : array (..., n) or number
        Input gain and normalization gain, positive.
    sigma : array (..., n) or number
        Semi-saturation constant, positive.
    tau_y, tau_a : array (..., n) or number
        Time constants of the principal neurons and of the modulators, in
        seconds, positive.

    Raises
    ------
    TypeError
        For lists, integer or complex arrays, or arrays of different libraries.
    ValueError
        For wrong shapes, arrays on different devices, or values out of range.

    Notes
    -----
    The dynamics are those of Rawat, Heeger & Martiniani (NeurIPS 2024)::

        tau_y y' = -y + b z + (1 - sqrt(max(a, 0))) (W_r y)
        tau_a a' = -a + (b0 sigma)**2 + W (max(a, 0) y**2)

    Examples
    --------
    >>> import numpy as np
    >>> circuit = Circuit(None, np.ones((2, 2)), b=0.5, b0=0.5, sigma=0.1, tau_y=0.002, tau_a=0.002)
    >>> size(circuit)
    2
    """

    __slots__ = ()

    def __new__(
        cls,
        w_r: Array,
        w: Array,
        b: Array,
        b0: Array,
        sigma: Array,
        tau_y: Array,
        tau_a: Array,
    ) -> Circuit:
        circuit = _Rebuilt(w_r, w, b, b0, sigma, tau_y, tau_a)
        # A tree of axes, flags or placeholders (vmap's in_axes, say) is no circuit yet.
        if any(is_array_api_obj(value) or isinstance(value, list) for value in circuit):
            validate_circuit(circuit, values=True)
        return circuit


class _Rebuilt(Circuit):
    """The type of every circuit, made without checks.

    jax and torch take circuits apart and call the type to build trees of the same
    form: gradients, tangents, axes, which need not be valid circuits.
    """

    __slots__ = ()

    def __new__(cls, *fields: Array, **named: Array) -> Circuit:  # type: ignore[misc]
        return _CircuitFields.__new__(cls, *fields, **named)

    def __reduce__(self) -> tuple[Any, ...]:
        return Circuit, tuple(self)


_Rebuilt.__name__ = _Rebuilt.__qualname__ = "Circuit"


class State(NamedTuple):
    """State of a circuit.

    Attributes
    ----------
    y : array (..., n)
        Membrane potentials of the principal neurons. Firing rates are
        ``max(y, 0)**2``, and ``max(-y, 0)**2`` for the complementary cell.
    a : array (..., n)
        Membrane potentials of the modulators; their rates are ``sqrt(max(a, 0))``.
    """

    y: Array
    a: Array


def size(circuit: Circuit) -> int:
    """Number n of principal neurons."""
    return int(circuit.w.shape[-1])


def validate_circuit(circuit: Circuit, *, values: bool = False, **others: Array) -> Any:
    """Check a circuit, and arrays (..., n) that go with it, and return their namespace.

    Parameters
    ----------
    circuit : Circuit
    values : bool
        Also check the values, where they can be seen.
    **others : array (..., n)
        Arrays that must share the circuit's library, device and n, by name.

    Raises
    ------
    TypeError, ValueError
        Naming the first field that is wrong.
    """
    if not isinstance(circuit, tuple) or getattr(circuit, "_fields", None) != _CircuitFields._fields:
        raise TypeError(f"circuit must be a Circuit, got {checks.describe(circuit)}")
    fields = circuit._asdict()
    xp = checks.namespace({**fields, **others}, numbers=_NUMBERS, optional=("w_r",))
    n = checks.matrix_shape("w", circuit.w, None)
    if circuit.w_r is not None:
        checks.matrix_shape("w_r", circuit.w_r, n)
    for name in _NUMBERS:
        checks.vector_shape(name, fields[name], n, scalar=True)
    for name, value in others.items():
        checks.vector_shape(name, value, n)
    core = {name: (value, 2 if name in ("w", "w_r") else 1) for name, value in {**fields, **others}.items()}
    checks.batch_shape(core)
    if values:
        for name, allowed in _ALLOWED.items():
            checks.values(xp, name, fields[name], allowed)
    return xp


def validate_state(state: State, name: str = "state") -> dict[str, Array]:
    """The fields of a state by name, for :func:`validate_circuit`; TypeError if it is none."""
    if not isinstance(state, tuple) or len(state) != 2:
        raise TypeError(f"{name} must be a State(y, a), got {checks.describe(state)}")
    return {f"{name}.y": state[0], f"{name}.a": state[1]}


def prepare(xp: Any, circuit: Circuit, *others: Array) -> tuple[Array, ...]:
    """The circuit with every field an array of the common dtype, and ``others`` likewise."""
    arrays = [value for value in (*circuit, *others) if value is not None and not checks.is_number(value)]
    dtype = xp.result_type(*arrays)
    where = device(arrays[0])
    fields: list[Array] = []
    for value in circuit:
        if value is None:
            fields.append(None)
        elif checks.is_number(value):
            fields.append(xp.asarray(float(value), dtype=dtype, device=where))
        else:
            fields.append(xp.astype(value, dtype, copy=False))
    return (Circuit._make(fields), *(xp.astype(value, dtype, copy=False) for value in others))


def is_identity(xp: Any, w_r: Array) -> bool | None:
    """Whether W_r is the identity; None where its values cannot be seen."""
    if w_r is None:
        return True
    if not get_backend(xp).is_concrete(w_r):
        return None
    return bool(xp.all(w_r == identity(xp, w_r)))


def identity(xp: Any, like: Array) -> Array:
    """The n x n identity of the dtype and device of ``like`` (..., n) or (..., n, n)."""
    return xp.eye(like.shape[-1], dtype=like.dtype, device=device(like))


def resting_state(circuit: Circuit, z: Array) -> State:
    """The fixed point without input, y = 0 and a = (b0 sigma)**2.

    Parameters
    ----------
    circuit : Circuit
    z : array (..., n)
        For its shape, dtype and device only.

    Returns
    -------
    State of arrays (..., n)
        In the shape of ``z`` and the circuit.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    xp = validate_circuit(circuit, z=z)
    circuit, z = prepare(xp, circuit, z)
    return _resting_state(xp, circuit, z)


def _resting_state(xp: Any, circuit: Circuit, z: Array) -> State:
    zero = xp.zeros_like(circuit.b * z)
    for field, core in zip(circuit, (2, 2, 1, 1, 1, 1, 1), strict=True):
        if field is not None and field.ndim > core:  # batch axes of the circuit itself
            zero = zero + xp.zeros_like(field if core == 1 else field[..., 0])
    return State(zero, zero + (circuit.b0 * circuit.sigma) ** 2)
