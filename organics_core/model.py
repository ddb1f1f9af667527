"""What the core asks of a model, and the one validation and preparation of every model.

A model is a named tuple of parameters with a vector field. Everything that
simulates, linearizes, solves or draws takes any model; :class:`Circuit`,
:class:`V1Circuit` and the families in :mod:`organics_core.models` are models,
and so is a class of your own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from array_api_compat import device

from . import checks, weights
from .backend import Array, Tree, get_backend
from .linalg import broadcast_shapes, widen


class Parameter(NamedTuple):
    """What one field of a model may be.

    Attributes
    ----------
    allowed : {"any", ">= 0", "> 0"}
        Bounds of its values.
    axes : {1, 2}
        1: an array (..., n), one that broadcasts to it, or a number; 2: weights
        (..., n, n), dense, sparse or an :class:`Operator`.
    optional : bool
        Whether None is allowed (for weights: the identity).
    """

    allowed: str = "any"
    axes: int = 1
    optional: bool = False


class Model(Protocol):
    """A model: a named tuple of parameters with a vector field.

    Only what stands here is required. A model may also have these methods,
    whose ``xp`` is the array namespace and whose arrays are prepared (one
    dtype, numbers made arrays):

    ``rest(xp, z) -> state``
        Where simulations start, for the shape of z (..., n); zeros without it.
    ``jacobian(xp, t, x, z) -> array (..., N, N)``
        In the order of the state's parts; automatic without it: the library's
        derivatives, or central differences.
    ``product(xp, t, x, z, direction) -> state``
        The Jacobian times a direction, without the matrix.
    ``held(xp, z) -> function``
        The field under a constant drive as a function of the state alone, where
        it does not depend on the time, with what does not change computed once.
    ``decay() -> state``
        Time constants of the linear decay, for ``"exponential_euler"``.
    ``rates(xp, x) -> state``
        Firing rates, for :class:`FiringRateNoise`.
    ``equilibrium(z, **options) -> SteadyState``
        A solver of its own for :func:`steady_state`; without it the general one.

    and it may say of itself, by attributes that are true (false without them):

    ``autonomous``
        The field does not depend on t other than through z.
    ``additive``
        The Jacobian does not depend on z, which only adds to the field: what asks
        for the Jacobian then needs no z.

    Attributes
    ----------
    spec : mapping of str to Parameter
        What each parameter may be.
    state : type
        A named tuple whose fields are the parts of the state, arrays (..., n).

    Examples
    --------
    >>> from typing import Any, NamedTuple
    >>> import numpy as np
    >>> class Level(NamedTuple):
    ...     x: Any
    >>> class Leak(NamedTuple):
    ...     tau: Any
    ...     spec = {"tau": Parameter("> 0")}
    ...     state = Level
    ...     def field(self, xp, t, x, z):
    ...         return Level((z - x.x) / self.tau)
    >>> import organics_core as oc
    >>> run = oc.simulate(Leak(0.1), np.ones(1), np.array([0.0, 0.1]))
    >>> run.state.x[-1].round(4)
    array([0.6321])
    """

    @property
    def spec(self) -> Mapping[str, Parameter]:
        """What each parameter may be."""
        ...

    @property
    def state(self) -> Callable[..., Tree]:
        """The type of the states."""
        ...

    def field(self, xp: Any, t: Array, x: Any, z: Array) -> Tree:
        """Time derivative of the state ``x``, per second, under the input drive ``z`` at the time ``t``."""
        ...


def check_model(model: Any, name: str = "model", kind: type | None = None) -> None:
    """TypeError unless ``model`` is a model, of the ``kind`` given."""
    if kind is not None:
        if not isinstance(model, kind):
            article = "an" if kind.__name__[0] in "AEIOU" else "a"
            raise TypeError(f"{name} must be {article} {kind.__name__}, got {checks.describe(model)}")
        return
    parts = ("_fields", "spec", "state", "field")
    if not (isinstance(model, tuple) and all(hasattr(model, part) for part in parts)):
        raise TypeError(
            f"{name} must be a Circuit or another model (a named tuple with spec, state and field), "
            f"got {checks.describe(model)}"
        )
    known: Any = model
    owner = type(model).__name__
    if not hasattr(known.state, "_fields"):
        raise TypeError(f"state of {owner} must be the type of a named tuple, got {known.state!r}")
    for field in known._fields:
        if field not in known.spec:
            raise TypeError(f"spec of {owner} must describe every parameter, but lacks {field!r}")
        given = known.spec[field]
        if not (isinstance(given, Parameter) and given.axes in (1, 2) and given.allowed in checks.BOUNDS):
            raise TypeError(
                f"spec of {owner} must hold Parameters with axes 1 or 2 and allowed one of "
                f"{', '.join(map(repr, checks.BOUNDS))}, got {given!r} for {field!r}"
            )


def state_fields(model: Any, state: Any, name: str = "state") -> dict[str, Array]:
    """The parts of a state by name, for :func:`validate`; TypeError if it is no state of the model."""
    parts = model.state._fields
    if not isinstance(state, tuple) or len(state) != len(parts):
        wanted = f"{model.state.__name__}({', '.join(parts)})"
        raise TypeError(f"{name} must be a {wanted}, got {checks.describe(state)}")
    return {f"{name}.{part}": value for part, value in zip(parts, state, strict=True)}


def validate(
    model: Any, *, values: bool = False, name: str = "model", kind: type | None = None, **others: Array
) -> Any:
    """Check a model, and arrays (..., n) that go with it, and return their namespace: None where all are numbers.

    Parameters
    ----------
    model : Model
    values : bool
        Also check the values, where they can be seen.
    name : str
        Of the model in messages.
    kind : type, optional
        The model must be of this type.
    **others : array (..., n)
        Arrays that must share the model's library, device and n, by name.

    Raises
    ------
    TypeError, ValueError
        Naming the first field that is wrong.
    """
    check_model(model, name, kind)
    spec = model.spec
    fields = dict(zip(model._fields, model, strict=True))
    operators = {field for field, value in fields.items() if spec[field].axes == 2 and weights.is_operator(value)}
    plain = {field: value for field, value in fields.items() if field not in operators}
    optional = [field for field in plain if spec[field].optional]
    numbers = [field for field in plain if spec[field].axes == 1]
    arrays = {**plain, **others}
    bare = not others and all(
        checks.is_number(value) if field in numbers and value is not None else value is None and field in optional
        for field, value in plain.items()
    )
    xp = None if bare else checks.namespace(arrays, numbers=numbers, optional=optional)
    n = _size(spec, fields, others)

    def rank(field: str) -> tuple[bool, bool]:
        """What tells n comes first: matrices, those that must be there before others."""
        return field in operators or spec[field].axes == 1, spec[field].optional

    for field, value in sorted(fields.items(), key=lambda item: rank(item[0])):
        if value is None:
            continue
        if field in operators:
            weights.check_operator(field, value, n, values=values and spec[field].allowed != "any")
        elif spec[field].axes == 2:
            n = checks.matrix_shape(field, value, n)
        elif n is not None:
            checks.vector_shape(field, value, n, scalar=True)
    if n is not None:
        for field, value in others.items():
            checks.vector_shape(field, value, n)
    elif others:
        raise ValueError(f"{next(iter(others))} must have shape (..., n), got shape ()")
    checks.batch_shape({field: (value, spec[field].axes if field in plain else 1) for field, value in arrays.items()})
    if values:
        for field, value in plain.items():
            checks.values(xp, field, value, spec[field].allowed)
    return xp


def _size(spec: Mapping[str, Parameter], fields: dict[str, Any], others: dict[str, Array]) -> int | None:
    """n, where something tells it: weights, a state or drive, the longest parameter."""
    for field, value in fields.items():
        if spec[field].axes == 2 and value is not None:
            shape = getattr(value, "shape", None)
            if shape is not None and len(shape) >= 2:
                return None if not weights.is_operator(value) else int(shape[-1])  # dense: its own check says
    for value in others.values():
        if getattr(value, "ndim", 0):
            return int(value.shape[-1])
    lengths = [int(value.shape[-1]) for value in fields.values() if getattr(value, "ndim", 0)]
    return max(lengths) if lengths else None


def size(model: Any) -> int:
    """Number n of neurons of a model with weights.

    Parameters
    ----------
    model : Model

    Returns
    -------
    int

    Raises
    ------
    ValueError
        For a model in which nothing tells n.
    """
    fields = dict(zip(model._fields, model, strict=True))
    for field, value in fields.items():
        shape = getattr(value, "shape", None)
        if model.spec[field].axes == 2 and shape is not None:
            return int(shape[-1])
    n = _size(model.spec, fields, {})
    if n is None:
        raise ValueError(f"nothing in this {type(model).__name__} tells its number of neurons; give weights a shape")
    return n


def prepare(xp: Any, model: Any, *others: Array) -> tuple[Any, ...]:
    """The model with every field an array (or operator) of the common dtype, and ``others`` likewise."""
    spec = model.spec
    named = list(zip(model._fields, model, strict=True))
    arrays = [
        value
        for value in (*(v for f, v in named if not (spec[f].axes == 2 and weights.is_operator(v))), *others)
        if value is not None and not checks.is_number(value)
    ]
    dtype = xp.result_type(*arrays)
    like = arrays[-1] if others else arrays[0]
    where = device(like)

    def convert(field: str, value: Any) -> Any:
        if value is None:
            return None
        if checks.is_number(value):
            return xp.asarray(float(value), dtype=dtype, device=where)
        if spec[field].axes == 2 and weights.is_operator(value):
            return weights.operator(xp, value, dtype, like)
        return xp.astype(value, dtype, copy=False)

    made = model._make([convert(field, value) for field, value in named])
    return (made, *(xp.astype(value, dtype, copy=False) for value in others))


def check_products(xp: Any, model: Any, like: Array) -> None:
    """ValueError where the product of an operator with ones has another shape, or is negative where it must not be."""
    for field, value in zip(model._fields, model, strict=True):
        if isinstance(value, weights.Operator) and 0 not in like.shape:
            one = like if like.ndim == 1 else like[(*(0,) * (like.ndim - 1), ...)]
            weights.check_product(xp, field, value, one, values=model.spec[field].allowed != "any")


def full(xp: Any, model: Any, value: Array) -> Array:
    """``value`` (..., n) with all batch axes of the model."""
    shape = tuple(value.shape)
    for field, part in zip(model._fields, model, strict=True):
        ndim = getattr(part, "ndim", 0)
        if ndim and not isinstance(part, weights.Operator):
            own = tuple(part.shape)
            shape = broadcast_shapes(shape, own if model.spec[field].axes == 1 else (*own[:-2], 1))
    return value if shape == tuple(value.shape) else xp.broadcast_to(value, shape)


def check_parts(model: Any, name: str, parts: Any, like: Tree) -> None:
    """ValueError unless ``parts``, made by the model's method ``name``, are shaped like the state ``like``."""
    kind = type(model).__name__
    wanted = [tuple(part.shape) for part in like]
    if not isinstance(parts, tuple) or not all(hasattr(part, "shape") for part in parts):
        raise ValueError(f"{name} of {kind} must return a tuple of {len(wanted)} arrays, got {checks.describe(parts)}")
    got = [tuple(part.shape) for part in parts]
    if got != wanted:
        names = ", ".join(model.state._fields)
        raise ValueError(f"{name} of {kind} must return arrays ({names}) of shapes {wanted}, got {got}")
    check_real(f"{name} of {kind}", parts)


def check_real(name: str, parts: Tree) -> None:
    """TypeError where what the function ``name`` returned is complex, which a cast would hide."""
    for part in parts:
        if "complex" in str(part.dtype):
            raise TypeError(f"{name} must return real numbers, got {part.dtype}")


def check_decay(xp: Any, name: str, tau: Any, like: Tree, *, values: bool) -> None:
    """TypeError or ValueError unless ``tau`` are time constants, one per part of the state ``like``."""
    if not isinstance(tau, tuple | list) or len(tau) != len(like):
        what = checks.describe(tau) + (f" of length {len(tau)}" if isinstance(tau, tuple | list) else "")
        raise ValueError(f"{name} must be a tuple of {len(like)} time constants, one per part of the state, got {what}")
    for k, (value, part) in enumerate(zip(tau, like, strict=True)):
        own = f"{name}[{k}]"
        checks.namespace({"state0": part, own: value}, numbers=(own,))
        shape, wanted = getattr(value, "shape", ()), tuple(part.shape)
        if len(shape) > len(wanted) or any(
            length not in (1, full) for length, full in zip(shape[::-1], wanted[::-1], strict=False)
        ):
            raise ValueError(f"{own} must be a number or broadcast to the shape {wanted}, got shape {tuple(shape)}")
        if values:
            checks.values(xp, own, value, "> 0")


def check_field(xp: Any, model: Any, x: Tree, z: Array) -> None:
    """ValueError where the field of a model of one's own returns other shapes than those of the state."""
    if hasattr(model, "additive"):  # of the families here
        return
    check_parts(model, "field", model.field(xp, xp.zeros((), dtype=z.dtype, device=device(z)), x, z), x)


def rest(xp: Any, model: Any, z: Array) -> Tree:
    """Where simulations start, in the shape of z and the model's batch: the model's ``rest``, or zeros."""
    wide = full(xp, model, z)
    own = getattr(model, "rest", None)
    if own is not None:
        made = own(xp, wide)
        check_parts(model, "rest", made, (wide,) * len(model.state._fields))
        return made
    return model.state(*(xp.zeros_like(wide) for _ in model.state._fields))


class Layout(NamedTuple):
    """How a tuple of arrays (..., n_i) is packed into one array (..., sum n_i), and back."""

    sizes: tuple[int, ...]
    kind: type[Any]

    @classmethod
    def of(cls, state: Tree) -> Layout:
        kind = type(state) if hasattr(state, "_fields") else tuple
        return cls(tuple(int(part.shape[-1]) for part in state), kind)

    def pack(self, xp: Any, state: Tree) -> Array:
        parts = list(state)
        if len(parts) == 1:
            return parts[0]
        join = getattr(get_backend(xp), "join", None)  # of a backend that records loops
        return xp.concat(parts, axis=-1) if join is None else join(parts)

    def unpack(self, packed: Array) -> Tree:
        edges = [0, *itertools.accumulate(self.sizes)]
        return self.make(packed[..., low:high] for low, high in itertools.pairwise(edges))

    def make(self, parts: Any) -> Tree:
        """The state of these parts."""
        return tuple(parts) if self.kind is tuple else self.kind(*parts)


def field_jacobian(xp: Any, model: Any, t: Array, x: Tree, z: Array) -> Array:
    """The Jacobian (..., N, N) of a prepared model: its own, or the backend's derivative of the field."""
    own = getattr(model, "jacobian", None)
    layout = Layout.of(x)
    if own is not None:
        matrix, size = own(xp, t, x, z), sum(layout.sizes)
        if tuple(getattr(matrix, "shape", ()))[-2:] != (size, size):
            kind = type(model).__name__
            raise ValueError(
                f"jacobian of {kind} must return an array (..., {size}, {size}), got {checks.describe(matrix)}"
            )
        return matrix

    def packed(at: Array) -> Array:
        return layout.pack(xp, model.field(xp, t, layout.unpack(at), z))

    return packed_jacobian(xp, packed, layout.pack(xp, x))


def packed_jacobian(xp: Any, function: Callable[[Array], Array], x: Array) -> Array:
    """Derivative (..., N, N) of a function of (..., N), member by member: N directions as one more batch axis."""
    n = int(x.shape[-1])
    eye = xp.eye(n, dtype=x.dtype, device=device(x))
    eye = xp.reshape(eye, (n, *(1,) * (x.ndim - 1), n))
    tangents = xp.broadcast_to(eye, (n, *x.shape))
    columns = get_backend(xp).jvp(function, xp.broadcast_to(x, (n, *x.shape)), tangents)
    return xp.permute_dims(columns, (*range(1, columns.ndim), 0))  # where torch.func.vmap has no moveaxis


def block_matrix(xp: Any, blocks: list[list[Array]]) -> Array:
    """One matrix of blocks (..., k, l), their batch axes broadcast."""
    batch = broadcast_shapes(*(tuple(block.shape[:-2]) for row in blocks for block in row))
    rows = [xp.concat([widen(xp, block, batch) for block in row], axis=-1) for row in blocks]
    return xp.concat(rows, axis=-2)


def rows(tau: Any) -> Any:
    """Time constants as a column, so that they divide rows."""
    return tau if isinstance(tau, float) or tau.ndim == 0 else tau[..., None]
