"""A whole sequence in C++ (sequence.cpp of organics_backends), for float32 and float64 on the CPU.

Three operations of jax: the sequence; its derivative along tangents, which is linear in them; and the transpose of
that. The first and the last are native on one CPU device. They are jax's scan on other platforms, in exported
programs, and where arrays are spread over devices; forward derivatives and second ones are always its derivatives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, partial_eval

from organics_backends.native import ARGUMENTS, layout, processors

from . import native

Array = Any
WEIGHTS = (
    *("w_zx", "w_r", "w", "w_bx0", "w_by0", "w_ba0", "w_bx1", "w_by1", "w_ba1"),
    *("r_y", "r_a", "r_b0", "r_b1", "sigma"),
)
_FEW = 8  # sequences, below which the scan serves the members of a mapped batch faster


class Setup(NamedTuple):
    """Everything about a pass over a sequence that is no array.

    Attributes
    ----------
    main : bool
        The unrectified variant.
    identity : bool
        Whether there is no W_r.
    outputs : bool
        Whether y of every step is wanted.
    keep : bool
        Whether there will be a backward pass.
    """

    main: bool
    identity: bool
    outputs: bool = True
    keep: bool = False

    @property
    def operands(self) -> tuple[str, ...]:
        """Their names in sequence.cpp."""
        return (*(name for name in WEIGHTS if not (self.identity and name == "w_r")), "start", "x")

    @property
    def found(self) -> tuple[str, ...]:
        """Names of what a forward pass gives."""
        return ("last", *["ys"] * self.outputs, *["marks"] * self.keep)

    def numbers(self, avals: Sequence[Any]) -> dict[str, int]:
        """The first arguments; the states at the beginnings of periods of about sqrt(T) steps are kept."""
        *_, start, xs = avals[: len(self.operands)]
        (steps, batch, k), n = xs.shape, start.shape[-1]
        numbers = layout(steps, batch, k, n, self.main, _threads(), 0)
        if steps > 32:
            numbers["period"] = max(16, 16 * round(math.sqrt(steps) / 16))
            numbers["chunk"] = 1 << (numbers["chunk"].bit_length() - 1)  # at most 16: divides the period
        numbers["keep"] = 0
        for name, size in (("x", k), ("y", n), ("gy", n), ("gx", k)):
            numbers |= {f"{name}_t": batch * size, f"{name}_r": size}
        return numbers

    def results(self, avals: Sequence[Any]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what a forward pass gives."""
        *_, start, xs = avals
        marks = (math.ceil(xs.shape[0] / self.numbers(avals)["period"]), *start.shape)
        shapes = {"last": start.shape, "ys": (*xs.shape[:2], start.shape[-1]), "marks": marks}
        return {name: shapes[name] for name in self.found}


_threads = functools.cache(processors)


def obstacle(setup: Setup, operands: Sequence[Array]) -> str | None:
    """Why the sequence of these operands cannot be native, or None."""
    *_, start, xs = operands
    if jax.default_backend() != "cpu":
        return f"jax computes on {jax.default_backend()}"
    if xs.dtype not in (jnp.float32, jnp.float64) or any(value.dtype != xs.dtype for value in operands):
        return f"the dtypes are {', '.join(sorted({str(value.dtype) for value in operands}))}"
    if not hasattr(jax.sharding, "get_abstract_mesh"):
        return f"jax is of version {jax.__version__}"
    if not jax.sharding.get_abstract_mesh().empty:
        return "there is a mesh of devices around it"
    if xs.ndim != 3 or not all(isinstance(size, int) for size in xs.shape) or not xs.shape[0] * xs.shape[2]:
        return f"the inputs have shape {xs.shape}"
    (_, batch, k), n = xs.shape, start.shape[-1]
    special = {"start": (4, batch, n), "x": xs.shape, "sigma": (n,)}
    for name, value in zip(setup.operands, operands, strict=True):
        usual = (n,) if name.startswith("r_") else (n, k) if name.startswith(("w_zx", "w_bx")) else (n, n)
        if value.shape != special.get(name, usual):
            return f"{name} has shape {value.shape}"
    return None if native.load() is not None else f"the native library is {native.status()}"


def fused_sequence(setup: Setup, operands: Sequence[Array]) -> tuple[Array, Array]:
    """The last state (4, N, n) and ys (T, N, n)."""
    last, ys = _sequence.bind(*operands, setup=setup)
    return last, ys


# ---- by the scan ----


def _scan(*operands: Array, setup: Setup) -> list[Array]:
    from .sequence import scanned

    p = dict(zip(setup.operands, operands, strict=True))
    if setup.keep:  # one period after another: who calls for the derivative may be native
        start, xs = p.pop("start"), p.pop("x")
        period = setup.numbers(operands)["period"]
        whole = len(xs) - len(xs) % period

        def body(state: Array, part: Array) -> tuple[Array, tuple[Array, Array]]:
            last, ys = scanned(setup.main, {**p, "start": state, "x": part}, chunked=False)
            return last, (state, ys)

        last, (marks, ys) = jax.lax.scan(body, start, xs[:whole].reshape(-1, period, *xs.shape[1:]))
        ys = ys.reshape(whole, *ys.shape[2:])
        if whole < len(xs):
            marks = jnp.concatenate([marks, last[None]])
            last, (_, rest) = body(last, xs[whole:])
            ys = jnp.concatenate([ys, rest])
    else:
        last, ys = scanned(setup.main, p, chunked=True)
    return [last, *[ys] * setup.outputs, *([marks] if setup.keep else [])]


def _scan_tangent(*operands: Array, setup: Setup) -> list[Array]:
    from .sequence import scanned

    count = len(setup.operands)

    def run(*values: Array) -> list[Array]:
        last, ys = scanned(setup.main, dict(zip(setup.operands, values, strict=True)), chunked=False)
        return [last, ys] if setup.outputs else [last]

    return jax.jvp(run, operands[:count], operands[count + 1 :])[1]


def _scan_transpose(*operands: Array, setup: Setup, given: tuple[bool, bool], wants_x: bool) -> list[Array]:
    from .sequence import scanned

    count = len(setup.operands)
    cotangents = iter(operands[count + 1 :])

    def run(*values: Array) -> tuple[Array, Array]:
        return scanned(setup.main, dict(zip(setup.operands, values, strict=True)), chunked=True)

    results, pull = jax.vjp(run, *operands[:count])
    bars = tuple(next(cotangents) if g else jnp.zeros_like(r) for g, r in zip(given, results, strict=True))
    found = pull(bars)
    return list(found if wants_x else found[:-1])


# ---- as operations of jax ----


def _operation(name: str, scan: Callable[..., list[Array]], shapes: Callable[..., Any], *static: str) -> Any:
    made = Primitive(f"organics_{name}")
    made.multiple_results = True
    compiled = jax.jit(lambda *values, **options: made.bind(*values, **options), static_argnames=static)

    def now(*values: Array, **options: Any) -> Any:
        with jax.disable_jit(False):  # an operation is compiled under disable_jit, too
            return compiled(*values, **options)

    made.def_impl(now)
    made.def_abstract_eval(
        lambda *avals, **options: [jax.core.ShapedArray(s, avals[0].dtype) for s in shapes(*avals, **options)]
    )
    mlir.register_lowering(made, mlir.lower_fun(scan, multiple_results=True))

    def derivative(primals: Any, tangents: Any, **options: Any) -> Any:
        return jax.jvp(functools.partial(scan, **options), tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))

    ad.primitive_jvps[made] = derivative
    return made


def _native(
    operation: Any, target: str, scan: Callable[..., list[Array]], places: Callable[..., tuple[Sequence[str], ...]]
) -> None:
    """On the CPU: what the operands and the results are, by their names in sequence.cpp."""
    elsewhere = mlir.lower_fun(scan, multiple_results=True)

    def lower(ctx: Any, *values: Any, setup: Setup, **options: Any) -> Any:
        module = ctx.module_context
        exported = getattr(module.lowering_parameters, "for_export", False)
        if exported or getattr(module.axis_context, "num_devices", 1) != 1 or native.load() is None:
            return elsewhere(ctx, *values, setup=setup, **options)
        numbers = setup.numbers(ctx.avals_in)
        given, found = (
            np.asarray([ARGUMENTS.index(name) for name in names], np.int64) for names in places(setup, **options)
        )
        head = np.asarray([numbers[name] for name in ARGUMENTS[: ARGUMENTS.index("x")]], np.int64)
        return jax.ffi.ffi_lowering(target)(ctx, *values, numbers=head, places=given, results=found)

    mlir.register_lowering(operation, lower, platform="cpu")


def _transposed_names(setup: Setup, given: tuple[bool, bool], wants_x: bool) -> tuple[list[str], list[str]]:
    bars = [name for name, there in zip(("g_last", "g_ys"), given, strict=True) if there]
    names = setup.operands if wants_x else setup.operands[:-1]
    return [*setup.operands, "marks", *bars], [f"g_{name}" for name in names]


_sequence = _operation("sequence", _scan, lambda *avals, setup: setup.results(avals).values(), "setup")
_native(
    _sequence,
    "organics_forward",
    _scan,
    lambda setup: (setup.operands, setup.found),
)
_tangent = _operation(
    "sequence_tangent",
    _scan_tangent,
    lambda *avals, setup: setup._replace(keep=False).results(avals[: len(setup.operands)]).values(),
    "setup",
)
_transpose = _operation(
    "sequence_transpose",
    _scan_transpose,
    lambda *avals, setup, given, wants_x: [a.shape for a in avals[: len(setup.operands) - (not wants_x)]],
    *("setup", "given", "wants_x"),
)
_native(_transpose, "organics_backward", _scan_transpose, _transposed_names)


def _differentiate(primals: Any, tangents: Any, *, setup: Setup) -> Any:
    *found, marks = _sequence.bind(*primals, setup=setup._replace(keep=True))
    along = _tangent.bind(*primals, marks, *map(ad.instantiate_zeros, tangents), setup=setup)
    if setup.keep:  # known from the operands: nothing depends on it
        return [*found, marks], [*along, jnp.zeros_like(marks)]
    return found, along


def _pull(cotangents: Any, *operands: Any, setup: Setup) -> list[Any]:
    count = len(setup.operands)
    primals, tangents = operands[: count + 1], operands[count + 1 :]
    open_ = [ad.is_undefined_primal(tangent) for tangent in tangents]
    bars = [*cotangents] if setup.outputs else [*cotangents, ad.Zero(None)]
    given = tuple(type(bar) is not ad.Zero for bar in bars)
    if not any(given):
        return [None] * len(operands)
    found = _transpose.bind(
        *primals, *(bar for bar, there in zip(bars, given, strict=True) if there),
        setup=setup, given=given, wants_x=open_[-1],
    )  # fmt: skip
    found = [*found, *[None] * (not open_[-1])]
    return [None] * (count + 1) + [bar if there else None for bar, there in zip(found, open_, strict=True)]


ad.primitive_jvps[_sequence] = _differentiate
ad.primitive_transposes[_tangent] = _pull


# ---- under vmap ----


def _size(values: Sequence[Array], dims: Sequence[int | None]) -> int:
    return next(value.shape[dim] for value, dim in zip(values, dims, strict=True) if dim is not None)


def _alone(value: Array, dim: int | None) -> Any:
    """Of which kind one member is."""
    shape = value.shape if dim is None else (*value.shape[:dim], *value.shape[dim + 1 :])
    return jax.ShapeDtypeStruct(shape, value.dtype)


def _mapped(operation: Any, scan: Callable[..., list[Array]], values: Any, dims: Any, **options: Any) -> Any:
    """One after another, where each is a batch; and by jax's own map of the scan, where it is not."""
    x = len(options["setup"].operands) - 1
    if _alone(values[x], dims[x]).shape[1] < _FEW:
        mapped = jax.vmap(functools.partial(scan, **options), in_axes=tuple(dims), axis_size=_size(values, dims))
        found = mapped(*values)
    else:
        moved = [v if d is None else jnp.moveaxis(v, d, 0) for v, d in zip(values, dims, strict=True)]

        def one(parts: list[Array]) -> list[Array]:
            rest = iter(parts)
            given = [v if d is None else next(rest) for v, d in zip(moved, dims, strict=True)]
            return operation.bind(*given, **options)

        found = jax.lax.map(one, [v for v, d in zip(moved, dims, strict=True) if d is not None])
    return found, [0] * len(found)


def _map_sequence(values: Any, dims: Any, *, setup: Setup) -> Any:
    """Inputs and states with the same weights are one larger batch."""
    *weights, start, xs = values
    *fixed, _, _ = dims
    size = _size(values, dims)

    if any(dim is not None for dim in fixed):
        return _mapped(_sequence, _scan, values, dims, setup=setup)

    def fold(value: Array, dim: int | None) -> Array:
        value = jnp.repeat(value[:, None], size, 1) if dim is None else jnp.moveaxis(value, dim, 1)
        return value.reshape(value.shape[0], size * value.shape[2], value.shape[-1])

    found = _sequence.bind(*weights, *map(fold, (start, xs), dims[-2:]), setup=setup)
    results = setup.results([_alone(value, dim) for value, dim in zip(values, dims, strict=True)])
    places = [len(shape) - 2 for shape in results.values()]
    return [
        value.reshape(*shape[:place], size, *shape[place:])
        for value, shape, place in zip(found, results.values(), places, strict=True)
    ], places


batching.primitive_batchers[_sequence] = _map_sequence
batching.primitive_batchers[_transpose] = functools.partial(_mapped, _transpose, _scan_transpose)


def _map_tangent(values: Any, dims: Any, *, setup: Setup) -> Any:
    found = jax.vmap(functools.partial(_scan_tangent, setup=setup), in_axes=tuple(dims))(*values)
    return found, [0] * len(found)


batching.primitive_batchers[_tangent] = _map_tangent


def _without_unused(used: list[bool], *given: Any) -> Any:
    """Nothing is written that nobody reads. jax 0.12 says before the equation which inputs are live."""
    equation = given[-1]
    if not any(used):
        return [False] * len(equation.invars), None
    setup = equation.params["setup"]
    read = {name for name, there in zip(setup.found, used, strict=True) if there}
    less = setup._replace(outputs="ys" in read, keep="marks" in read)
    variables = dict(zip(setup.found, equation.outvars, strict=True))
    outputs = [variables[name] for name in less.found]
    return [True] * len(equation.invars), equation.replace(outvars=outputs, params={"setup": less})


partial_eval.dce_rules[_sequence] = _without_unused
