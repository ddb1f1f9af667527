"""A model of any library under a constant drive, in float64 numpy: what continuation and shooting work on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from .. import checks
from ..attractors import relative_residual
from ..backend import Array, to_numpy
from ..circuit import Circuit, State, of_variant
from ..linalg import broadcast_shapes
from ..model import Layout, check_field, check_model, field_jacobian, prepare, rest, state_fields, validate
from ..weights import Operator, dense

Vector = np.ndarray[Any, Any]
XP = array_namespace(np.zeros(1))
_OFF = 1e-9  # residual of a fixed point, far above rounding


class Hosted(NamedTuple):
    """A model and its drive in float64 numpy, and what its results should look like.

    Attributes
    ----------
    model : Model
    z : array (n,)
    layout : Layout
        Of its state, packed into one vector (N,).
    like : array
        Of the library, dtype and device of the arguments.
    """

    model: Any
    z: Vector
    layout: Layout
    like: Array

    def field(self, x: Vector) -> Vector:
        """The vector field (N,) at ``x``, at the time 0."""
        with np.errstate(all="ignore"):
            found = self.model.field(XP, np.zeros(()), self.layout.unpack(x), self.z)
            return np.concatenate([np.asarray(to_numpy(part), dtype=float) for part in found], axis=-1)

    def jacobian(self, x: Vector) -> Vector:
        """Its derivative (N, N)."""
        with np.errstate(all="ignore"):
            made = field_jacobian(XP, self.model, np.zeros(()), self.layout.unpack(x), self.z)
        return np.asarray(to_numpy(made), dtype=float)

    def quick_jacobian(self, x: Vector) -> Vector:
        """As :meth:`jacobian`; without one of the model's own by central differences of order 8 in one call."""
        if hasattr(self.model, "jacobian"):
            return self.jacobian(x)
        size = np.abs(x)
        h = 2e-3 * np.maximum(size, 1e-2 * size.max() or 1.0)
        steps = np.arange(1.0, 5.0)[:, None, None] * np.diag(h)
        difference = self.field(x + steps) - self.field(x - steps)
        return np.asarray(np.tensordot((4 / 5, -1 / 5, 4 / 105, -1 / 280), difference, 1).T / h)

    def solves(self, x: Vector) -> bool:
        """Whether ``x``, where Newton's method ended, is a fixed point of a Circuit by the measure of each modulator.

        One of 1e-5 beside one of 1e4 may be off by all of its size, or negative, in steps relative to the largest
        number of the state. True for other models.
        """
        if not isinstance(self.model, Circuit):
            return True
        state = State(*self.layout.unpack(x))
        with np.errstate(all="ignore"):
            off = relative_residual(XP, self.model, state, self.z, self.model.variant)
        return bool((state.a > 0).all() and off <= _OFF)

    def rest(self) -> Vector:
        """The state at rest (N,)."""
        return np.asarray(self.layout.pack(XP, rest(XP, self.model, self.z)))

    def give(self, values: Any) -> Array:
        """Numbers as an array of the library of the arguments."""
        xp = array_namespace(self.like)
        values = np.asarray(values)
        dtype = xp.bool if values.dtype == bool else self.like.dtype
        if values.dtype.kind == "c":
            dtype = xp.complex64 if xp.finfo(dtype).bits == 32 else xp.complex128
        return xp.reshape(xp.asarray(values.ravel().tolist(), dtype=dtype, device=device(self.like)), values.shape)

    def state(self, x: Vector) -> Any:
        """Packed vectors (..., N) as a state of the library of the arguments."""
        return self.layout.make(self.give(part) for part in self.layout.unpack(x))


def on_host(
    model: Any, z: Array, variant: str = "main", state0: Any = None, *, what: str = "continue_fixed_points"
) -> tuple[Hosted, Vector | None]:
    """Check one model (no batch), its drive and a state for ``what``; return them in numpy, the state packed.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    """
    made = of_variant(model, variant)
    check_model(made)
    others = {} if state0 is None else state_fields(made, state0, "state0")
    xp = validate(made, values=True, z=z, **others)
    for name, value in {"z": z, **others}.items():
        checks.values(xp, name, value, "any")
    checks.seen(xp, what, made, z, state0)
    made, z, *parts = prepare(xp, made, z, *others.values())
    fields = dict(zip(made._fields, made, strict=True))
    axes = {name: made.spec[name].axes for name in fields}
    for name, value in fields.items():
        if isinstance(value, Operator):
            matrix = dense(xp, value, z, name)
            if made.spec[name].allowed != "any":  # products have round-off where the matrix has zeros
                small = xp.abs(matrix) < 16 * xp.finfo(matrix.dtype).eps * xp.max(xp.abs(matrix))
                matrix = xp.where(small, 0.0, matrix)
                checks.values(xp, name, matrix, made.spec[name].allowed)
            fields[name] = matrix
    for name, value, core in (("z", z, 1), *((name, value, axes[name]) for name, value in fields.items())):
        if value is not None and (value.ndim > core or (name == "z" and value.ndim == 0)):
            raise ValueError(f"{name} must have no batch axes here, got shape {tuple(value.shape)}")

    def convert(value: Any) -> Any:
        return None if value is None else np.array(to_numpy(value), dtype=float)

    host, drive = made._make(map(convert, fields.values())), convert(z)
    shape = broadcast_shapes(drive.shape, *(value.shape[-1:] for value in host if value is not None))
    drive = np.broadcast_to(drive, shape)
    layout = Layout.of(made.state(*(drive for _ in made.state._fields)))
    hosted = Hosted(host, drive, layout, z)
    check_field(XP, host, host.state(*(drive for _ in made.state._fields)), drive)
    if state0 is None:
        return hosted, None
    return hosted, np.concatenate([np.broadcast_to(convert(part), shape) for part in parts])
