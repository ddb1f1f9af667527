"""The circuit: its parameters, its state, and the one place where its equations stand.

The main circuit and its rectified relatives share the form

    tau_y y' = -y + b z + (1 - sqrt(max(a, 0))) rec(y)
    tau_a a' = -a + (b0 sigma)**2 + W (max(a, 0) resp(y)**2)

A variant is three flags (:class:`Variant`), and everything reads them: the
dynamics, the Jacobian, the fixed points, the fast kernels, the simulators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from array_api_compat import device, is_array_api_obj

from . import checks, weights
from .backend import Array, get_backend
from .model import Parameter, block_matrix, check_model, prepare, rows, size, state_fields, validate
from .model import rest as model_rest
from .weights import matvec

__all__ = ["VARIANTS", "Circuit", "State", "Variant", "prepare", "resting_state", "size", "vector_field"]


class Variant(NamedTuple):
    """What a variant of the circuit rectifies.

    Attributes
    ----------
    source : bool
        The potentials that drive the recurrence: W_r max(y, 0).
    drive : bool
        The recurrent drive: max(W_r y, 0).
    response : bool
        The responses in the pool: W (max(a, 0) max(y, 0)**2).
    """

    source: bool
    drive: bool
    response: bool


VARIANTS: dict[str, Variant] = {
    "main": Variant(source=False, drive=False, response=False),
    "rectified": Variant(source=True, drive=False, response=True),
    "rectified_recurrence": Variant(source=False, drive=True, response=True),
}
"""The variants by name; a line here makes one more."""


class _CircuitFields(NamedTuple):
    w_r: Array
    w: Array
    b: Array
    b0: Array
    sigma: Array
    tau_y: Array
    tau_a: Array


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


class Circuit(_CircuitFields):
    """An ORGaNICs circuit of n principal neurons and n modulators.

    A named tuple of arrays of one library, so that jax and torch see a pytree.
    Leading axes of any field are batch axes. The fields are checked when the
    circuit is made, their values where they can be seen (not while tracing).

    Parameters
    ----------
    w_r : array (..., n, n), operator or None
        Recurrent weights W_r, any real matrix. ``None`` stands for the
        identity, the case proven stable, and costs no product.
    w : array (..., n, n) or operator
        Normalization weights W, non-negative. Both may also be anything with a
        product: a sparse matrix of scipy, torch, cupy or jax (BCOO), a function
        of a vector (n,), an :class:`Operator` such as :func:`ring_convolution`.
        Of a function only W 1 >= 0 can be checked.
    b : array (..., n) or number
        Input gain, positive: it multiplies the input drive, b z. The authors' b1.
    b0 : array (..., n) or number
        Normalization gain, positive: it multiplies sigma and nothing else, so that
        the modulators rest at (b0 sigma)**2; a constant one only scales sigma.
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
    spec: ClassVar[dict[str, Parameter]] = {
        "w_r": Parameter(axes=2, optional=True),
        "w": Parameter(">= 0", axes=2),
        "b": Parameter("> 0"),
        "b0": Parameter("> 0"),
        "sigma": Parameter("> 0"),
        "tau_y": Parameter("> 0"),
        "tau_a": Parameter("> 0"),
    }
    state = State
    variant: ClassVar[str] = "main"
    autonomous: ClassVar[bool] = True
    additive: ClassVar[bool] = True

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
        if any(is_array_api_obj(value) or isinstance(value, list) or weights.is_operator(value) for value in circuit):
            validate_circuit(circuit, values=True)
        return circuit

    def field(self, xp: Any, t: Array, x: State, z: Array) -> State:
        """The vector field, unchecked: what loops call."""
        return field(xp, self, x, z, self.variant)

    def held(self, xp: Any, z: Array) -> Callable[[State], State]:
        """The vector field under a constant drive, of the state alone: what does not change is computed once."""
        drive, floor = self.b * z, (self.b0 * self.sigma) ** 2

        def field(x: State) -> State:
            dy, da = balance(xp, self.w_r, self.w, drive, floor, x, self.variant)
            return State(dy / self.tau_y, da / self.tau_a)

        return field

    def rest(self, xp: Any, z: Array) -> State:
        """y = 0 and a = (b0 sigma)**2."""
        zero = xp.zeros_like(z)
        return State(zero, zero + (self.b0 * self.sigma) ** 2)

    def jacobian(self, xp: Any, t: Array, x: State, z: Array) -> Array:
        """The Jacobian (..., 2n, 2n), unchecked; it does not depend on t and z."""
        return circuit_jacobian(xp, self, x, self.variant)

    def product(self, xp: Any, t: Array, x: State, z: Array, direction: State) -> State:
        """The Jacobian times a direction, without the matrix."""
        return circuit_product(xp, self, x, direction, self.variant)

    def rates(self, xp: Any, x: State) -> State:
        """Firing rates: of a neuron and its complement together, and of the modulators."""
        return State(x.y * x.y, sqrt_relu(xp, x.a))

    def decay(self) -> State:
        """The time constants."""
        return State(self.tau_y, self.tau_a)


class _Rebuilt(Circuit):
    """The type of every circuit, made without checks.

    jax and torch take circuits apart and call the type to build trees of the same
    form: gradients, tangents, axes, which need not be valid circuits.
    """

    __slots__ = ()

    def __new__(cls, *fields: Array, **named: Array) -> Circuit:  # type: ignore[misc]
        return _CircuitFields.__new__(cls, *fields, **named)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.variant, *self)


_Rebuilt.__name__ = _Rebuilt.__qualname__ = "Circuit"
_OF_VARIANT: dict[str, type[_Rebuilt]] = {"main": _Rebuilt}


def _unpickled(variant: str, *fields: Any) -> Circuit:
    return of_variant(Circuit(*fields), variant)  # type: ignore[no-any-return]


def validate_circuit(circuit: Circuit, *, values: bool = False, **others: Array) -> Any:
    """As :func:`organics_core.model.validate`, for a Circuit and nothing else."""
    return validate(circuit, values=values, name="circuit", kind=Circuit, **others)


def validate_state(state: State, name: str = "state") -> dict[str, Array]:
    """The fields of a state by name, for :func:`validate_circuit`; TypeError if it is none."""
    return state_fields(Circuit, state, name)


def of_variant(model: Any, variant: str) -> Any:
    """The model as one of its variants; ValueError for an unknown one, or a model that has none."""
    if not isinstance(model, Circuit):
        if variant != "main":
            raise ValueError(f"variant {variant!r} is one of a Circuit's; a {type(model).__name__} has none")
        return model
    checks.one_of("variant", variant, VARIANTS)
    if variant == model.variant:
        return model
    if variant not in _OF_VARIANT:
        _OF_VARIANT[variant] = type("Circuit", (_Rebuilt,), {"variant": variant, "__slots__": ()})
    return _OF_VARIANT[variant]._make(model)


def is_identity(xp: Any, w_r: Array) -> bool | None:
    """Whether W_r is the identity; None where its values cannot be seen."""
    if w_r is None:
        return True
    if isinstance(w_r, weights.Operator) or weights.is_operator(w_r):
        return False
    if not get_backend(xp).is_concrete(w_r):
        return None
    return bool(xp.all(w_r == identity(xp, w_r)))


def without_time(xp: Any, circuit: Circuit) -> Circuit:
    """The circuit with time constants of one: its field is the balance of its equations."""
    one = xp.ones((), dtype=circuit.b.dtype, device=device(circuit.b))
    return circuit._replace(tau_y=one, tau_a=one)


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

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit, z = oc.Circuit(None, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0, 0.5])
    >>> oc.resting_state(circuit, z).a.round(6)  # (b0 sigma)**2
    array([0.0025, 0.0025])
    """
    xp = validate_circuit(circuit, z=z)
    circuit, z = prepare(xp, circuit, z)
    return State(*model_rest(xp, circuit, z))


def relu(xp: Any, x: Array) -> Array:
    """max(x, 0), with derivative 0 at 0 in every library; NaN stays NaN."""
    return xp.where(x <= 0, 0.0, x)


def sqrt_relu(xp: Any, a: Array) -> Array:
    """sqrt(max(a, 0)), with derivative 0 (not infinity) where a <= 0; NaN stays NaN."""
    silent = a <= 0
    return xp.where(silent, 0.0, xp.sqrt(xp.where(silent, 1.0, a)))


def pooled_response(xp: Any, y: Array, variant: str) -> Array:
    """The response whose square the normalization pool sums."""
    return relu(xp, y) if VARIANTS[variant].response else y


def recurrent_drive(xp: Any, w_r: Array, y: Array, variant: str) -> Array:
    """The recurrent drive before its gate (1 - sqrt(max(a, 0)))."""
    flags = VARIANTS[variant]
    source = relu(xp, y) if flags.source else y
    drive = source if w_r is None else matvec(xp, w_r, source)
    return relu(xp, drive) if flags.drive else drive


def recurrent_slope(xp: Any, w_r: Array, y: Array, variant: str) -> Array:
    """The matrix R (..., n, n) with rec(y) = R y, constant around y away from the kinks."""
    flags = VARIANTS[variant]
    matrix = identity(xp, y) if w_r is None else weights.dense(xp, w_r, y, "w_r")
    if flags.source:
        matrix = matrix * _step(xp, y)[..., None, :]
    if flags.drive:
        source = relu(xp, y) if flags.source else y
        matrix = matrix * _step(xp, source if w_r is None else matvec(xp, w_r, source))[..., :, None]
    return matrix


class Kinks(NamedTuple):
    """The pieces that meet where a rectified quantity is zero.

    Attributes
    ----------
    count : integer array (...)
        How many quantities are zero, as far as the dtype can tell.
    slopes : tuple of arrays (..., n, n)
        The matrix R of every piece, as :func:`recurrent_slope` gives it away from kinks; one where there are no kinks.
    complete : boolean array (...)
        Whether these are all the pieces: 2**count of them are listed where that is at most 256.
    """

    count: Array
    slopes: tuple[Array, ...]
    complete: Array


_MOST_KINKS = 8


def kinks(xp: Any, circuit: Circuit, state: State, variant: str) -> Kinks:
    """All linear pieces of the recurrence around states, at whose kinks a unit or its recurrent drive is zero.

    Zero is what is below eps**0.75 of the other terms, the tolerance of fixed points: its sign is not known.
    """
    flags = VARIANTS[variant]
    y = state.y + xp.zeros_like(state.a)
    w_r = identity(xp, y) if circuit.w_r is None else weights.dense(xp, circuit.w_r, y, "w_r")
    near = float(xp.finfo(y.dtype).eps) ** 0.75
    largest = xp.max(xp.abs(y), axis=-1, keepdims=True)
    source = relu(xp, y) if flags.source else y
    at_zero, positive = [], []
    if flags.source:
        at_zero.append((xp.abs(y) <= near * largest) & xp.any(w_r != 0, axis=-2))
        positive.append(y > 0)
    if flags.drive:
        drive = matvec(xp, w_r, source)
        size = xp.sum(xp.abs(w_r), axis=-1)
        at_zero.append((xp.abs(drive) <= near * size * largest) & (size > 0))
        positive.append(drive > 0)
    if not at_zero:
        everywhere = xp.zeros(y.shape[:-1], dtype=xp.int32, device=device(y))
        return Kinks(everywhere, (w_r,), everywhere == 0)
    zero, on = xp.concat(at_zero, axis=-1), xp.concat(positive, axis=-1)
    number = xp.astype(zero, xp.int32)
    count = xp.sum(number, axis=-1, dtype=xp.int32)
    rank = xp.cumulative_sum(number, axis=-1, dtype=xp.int32) - 1
    seen = get_backend(xp).is_concrete(count)
    most = int(xp.max(count)) if seen and 0 not in tuple(count.shape) else 2 * int(y.shape[-1])
    enough = seen and most <= _MOST_KINKS
    # the pieces by the units that are on: all combinations, or none, all, one, all but one
    singles: list[set[int]] = [{k} for k in range(most)] if seen else []
    everything = set(range(most))
    some = [set(), everything, *singles, *(everything - one for one in singles)]
    pieces = [{k for k in range(most) if p >> k & 1} for p in range(2**most)] if enough else some
    slopes = []
    for piece in pieces:
        chosen = xp.zeros_like(zero)
        if len(piece) == most:
            chosen = ~chosen
        elif piece:
            for k in piece:
                chosen = chosen | (rank == k)
        live = xp.astype(xp.where(zero, chosen, on), y.dtype)
        n = int(y.shape[-1])
        slope = w_r
        if flags.source:
            slope = slope * live[..., None, :n]
        if flags.drive:
            slope = slope * live[..., -n:][..., None]
        slopes.append(slope)
    alone = xp.all((w_r == 0) | (identity(xp, y) != 0), axis=(-2, -1))  # units that do not drive each other
    complete = xp.ones_like(count) > 0 if enough else (count <= 1) | alone
    return Kinks(count, tuple(slopes), complete)


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


def has_closed_form(variant: str) -> bool:
    """Whether W_r = I has a fixed point in closed form.

    Where the recurrence is rectified and the pool is not, units with a negative
    drive add a y**2 with y = b z, which is linear in a: a system of equations.
    """
    flags = VARIANTS[variant]
    return flags.response or not (flags.source or flags.drive)


def identity_fixed_point(xp: Any, circuit: Circuit, z: Array, variant: str) -> State:
    """The fixed point for W_r = I; where the recurrence is rectified, a negative drive settles at y = b z."""
    flags = VARIANTS[variant]
    drive = circuit.b * z
    pooled = pooled_response(xp, drive, variant)
    a = (circuit.b0 * circuit.sigma) ** 2 + matvec(xp, circuit.w, pooled * pooled)
    y = drive / xp.sqrt(a)
    if flags.source or flags.drive:
        y = xp.where(drive > 0, y, drive + xp.zeros_like(y))
    return State(y + xp.zeros_like(a), a + xp.zeros_like(y))


def circuit_jacobian(
    xp: Any,
    circuit: Circuit,
    state: State,
    variant: str,
    *,
    pooled: bool = False,
    shift: Array | None = None,
    slope: Array | None = None,
) -> Array:
    """The Jacobian, minus ``shift`` (...) on its diagonal; with ``pooled``, that of (y, change common to all a).

    ``slope`` is the matrix R of the recurrence, by default that of the silent side of every kink.

    Where all neurons share one pool (:func:`share_pool`), changes common to all a
    are an invariant subspace, on which the Jacobian has size n + 1; its other
    n - 1 eigenvalues are -1 / tau_a.
    """
    y, a = state
    y, a = y + xp.zeros_like(a), a + xp.zeros_like(y)
    w = weights.dense(xp, circuit.w, y)
    eye = identity(xp, y)
    positive = a > 0
    root = sqrt_relu(xp, a)
    slope = recurrent_slope(xp, circuit.w_r, y, variant) if slope is None else slope
    response = pooled_response(xp, y, variant)
    drive = recurrent_drive(xp, circuit.w_r, y, variant)
    half = xp.where(positive, 0.5 / xp.where(positive, root, 1.0), 0.0)
    live = xp.where(positive, response * response, 0.0)
    tau_y, tau_a = circuit.tau_y, circuit.tau_a
    coupling = -drive * half
    if pooled:
        w = w[..., :1, :]
        tau_a = tau_a if tau_a.ndim == 0 else tau_a[..., :1]
    decay_y, decay_a = (1.0, 1.0) if shift is None else (1.0 + shift[..., None] * tau for tau in (tau_y, tau_a))
    right = coupling[..., None] if pooled else eye * coupling[..., None]
    pool = w * live[..., None, :]
    pool = xp.sum(pool, axis=-1, keepdims=True) - rows(decay_a) if pooled else pool - eye * rows(decay_a)
    per_y, per_a = rows(tau_y), rows(tau_a)
    blocks = [
        [((1.0 - root)[..., None] * slope - eye * rows(decay_y)) / per_y, right / per_y],
        [w * (2.0 * relu(xp, a) * response)[..., None, :] / per_a, pool / per_a],
    ]
    return block_matrix(xp, blocks)


def share_pool(xp: Any, circuit: Circuit) -> bool:
    """Whether all modulators obey one equation but for their floor: equal rows of W, equal tau_a; seen, not traced.

    Not where derivatives are asked for by them: beside equal rows others are not, and each has its own derivative.
    """
    backend = get_backend(xp)
    w, tau = circuit.w, circuit.tau_a
    if isinstance(w, weights.Operator) or w.shape[-1] == 1 or not (backend.is_concrete(w) and backend.is_concrete(tau)):
        return False
    differentiates = getattr(backend, "differentiates", None)  # of a backend with derivatives
    if differentiates is not None and (differentiates(w) or differentiates(tau)):
        return False
    return bool(xp.all(w == w[..., :1, :])) and (tau.ndim == 0 or bool(xp.all(tau == tau[..., :1])))


def circuit_product(xp: Any, circuit: Circuit, state: State, direction: State, variant: str) -> State:
    """The Jacobian times a direction: the same derivatives as in :func:`circuit_jacobian`, by products only."""
    flags = VARIANTS[variant]
    (y, a), (dy, da) = state, direction
    root = sqrt_relu(xp, a)
    half = xp.where(a > 0, 0.5 / xp.where(a > 0, root, xp.ones_like(root)), xp.zeros_like(root))
    moved = dy * _step(xp, y) if flags.source else dy
    moved = moved if circuit.w_r is None else matvec(xp, circuit.w_r, moved)
    recurrent = recurrent_drive(xp, circuit.w_r, y, variant)
    if flags.drive:
        source = relu(xp, y) if flags.source else y
        moved = moved * _step(xp, source if circuit.w_r is None else matvec(xp, circuit.w_r, source))
    response = pooled_response(xp, y, variant)
    row_y = -dy + (1.0 - root) * moved - recurrent * half * da
    change = 2.0 * relu(xp, a) * response * dy + response * response * _step(xp, a) * da
    row_a = -da + matvec(xp, circuit.w, change)
    return State(row_y / circuit.tau_y, row_a / circuit.tau_a)


def vector_field(circuit: Any, state: Any, z: Array, *, variant: str = "main") -> Any:
    """Time derivative of the state.

    Parameters
    ----------
    circuit : Circuit or Model
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

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> circuit, z = oc.Circuit(None, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0, 0.5])
    >>> slope = oc.vector_field(circuit, oc.State(np.zeros(2), np.zeros(2)), z)
    >>> np.stack(slope).round(3)  # b z and (b0 sigma)**2, over tau
    array([[250.  , 125.  ],
           [  1.25,   1.25]])
    >>> slope = oc.vector_field(circuit, oc.steady_state(circuit, z).state, z)
    >>> bool(abs(slope.y).max() < 1e-9)
    True
    """
    if not isinstance(circuit, Circuit):
        of_variant(circuit, variant)
        check_model(circuit, "circuit")
        fields = state_fields(circuit, state)
        xp = validate(circuit, values=True, name="circuit", **fields, z=z)
        circuit, *parts, z = prepare(xp, circuit, *fields.values(), z)
        time = xp.zeros((), dtype=z.dtype, device=device(z))
        return circuit.field(xp, time, circuit.state(*parts), z)
    checks.one_of("variant", variant, VARIANTS)
    xp = validate_circuit(circuit, **validate_state(state), z=z)
    circuit, y, a, z = prepare(xp, circuit, *state, z)
    return field(xp, circuit, State(y, a), z, variant)
