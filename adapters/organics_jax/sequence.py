"""The cell over a whole sequence, with a derivative written by hand.

The sequence is cut into chunks of about sqrt(T) steps. The forward pass keeps
only the state at the start of every chunk; the backward pass computes a
chunk again, runs the adjoint recurrence through it, and forms the gradients
of the weights from the whole chunk, by one matrix product each.

With the rates r and their adjoints l_y, l_a, l_0, l_1 of the new state, and
g_y = r_y l_y, g_a = r_a l_a, one step of the recurrence reads::

    d(W_r y) = g_y (1 - sqrt(max(a, 0)))        where W_r y > 0 (everywhere for "main")
    d(logit of B0) = r_0 l_0 B0 (1 - B0)        B1 likewise
    du = W^T g_a                                u = max(a, 0) max(y, 0)**2, pooled by W
    l_y <- (1 - r_y) l_y + W_r^T d(W_r y) + W_by0^T d0 + W_by1^T d1 + 2 max(a, 0) max(y, 0) du
    l_a <- (1 - r_a) l_a + W_ba0^T d0 + W_ba1^T d1 + max(y, 0)**2 du - g_y max(W_r y, 0) / (2 sqrt(a))
    l_0 <- (1 - r_0) l_0 + 2 sigma**2 b0 g_a
    l_1 <- (1 - r_1) l_1 + z g_y
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from organics_backends.jax import vary, varying_axes
from organics_core import checks
from organics_core.cell import (
    CELL_VARIANTS,
    CellParameters,
    CellState,
    MaxRates,
    Rates,
    cell_rates,
    cell_sequence,
    normalization_weights,
    sigmoid,
    step,
)
from organics_core.circuit import relu, sqrt_relu

from .fused import WEIGHTS, Setup, fused_sequence, obstacle
from .parallel import parallel_sequence

Array = Any

IMPLEMENTATIONS = ("auto", "fused", "chunked", "parallel", "reference")


class _Weights(NamedTuple):
    """The parameters as the steps use them: transposed and side by side."""

    x: Array  # (k, 3n): z, and the logits of B0 and B1
    y: Array  # (n, 3n): recurrent drive, logits; (n, 2n) where W_r is the identity
    a: Array  # (n, 2n): logits
    w: Array  # (n, n): W
    rates: Rates
    sigma2: Array  # (n,)


class _Seen(NamedTuple):
    """What the adjoint recurrence needs of every step of a chunk."""

    state: CellState  # before the step
    drive: Array  # W_r y, or () where it is y itself
    target0: Array
    target1: Array


def sequence(
    parameters: CellParameters,
    state: CellState,
    xs: Array,
    *,
    max_rates: MaxRates = MaxRates(),
    variant: str = "rectified_recurrence",
    implementation: str = "auto",
    chunk: int | None = None,
) -> tuple[CellState, Array]:
    """Run the cell over a sequence: :func:`organics_core.cell_sequence`, faster and with less memory under ``grad``.

    Parameters
    ----------
    parameters : CellParameters
        Without batch axes of their own (``vmap`` adds them).
    state : CellState of arrays (n,) or (..., n)
    xs : array (T, ..., k)
    max_rates, variant
        As in :func:`organics_core.cell_step`.
    implementation : {"auto", "fused", "chunked", "parallel", "reference"}
        ``"fused"`` is native code, on one CPU device, for float32 and float64, with
        all derivatives: the first reverse one is native, too, others are those of a
        scan. ``"chunked"`` has a reverse derivative written by hand, and no forward
        derivative (``jvp``, ``jacfwd``); ``"parallel"``, with a first reverse
        derivative only, computes all steps at once, where its iterations
        converge, and is ``"auto"`` where they do not; ``"reference"`` is the
        core's scan, which jax differentiates every way. ``"auto"`` is ``"fused"`` where
        that can be had and no ``chunk`` is given, and ``"chunked"`` elsewhere.
        Where the number of steps is symbolic (``jax.export``) all are the core's scan.
    chunk : int, optional
        Steps between two states that are kept; about sqrt(T) by default.

    Returns
    -------
    state : CellState of arrays (..., n)
        The last state.
    y : array (T, ..., n)
        Membrane potentials after every step.

    Raises
    ------
    ValueError
        Naming the argument that is wrong.
    RuntimeError
        When ``"fused"`` was asked for by name and cannot be had.
    TypeError
        Where other derivatives of ``"parallel"`` than the first reverse one are taken.
    """
    checks.one_of("implementation", implementation, IMPLEMENTATIONS)
    checks.one_of("variant", variant, CELL_VARIANTS)
    parameters, state, xs = varying_alike((parameters, state, xs))
    symbolic = not isinstance(xs.shape[0], int)  # exported for any number of steps
    if implementation == "reference" or symbolic:
        return cell_sequence(parameters, state, xs, max_rates=max_rates, variant=variant)
    n, k = parameters.w_zx.shape[-2:]
    if xs.ndim < 2 or xs.shape[0] == 0 or xs.shape[-1] != k:
        raise ValueError(f"xs must have shape (T, ..., {k}) with T >= 1, got shape {xs.shape}")
    if implementation == "parallel":
        shape = (*xs.shape[1:-1], parameters.log_w.shape[-1])
        if math.prod(shape):
            start = CellState(*(jnp.broadcast_to(part, shape) for part in state))
            return parallel_sequence(variant, MaxRates(*max_rates), parameters, start, xs)
    p = parameters
    gains = (p.w_bx0, p.w_by0, p.w_ba0, p.w_bx1, p.w_by1, p.w_ba1)
    values = (p.w_zx, p.w_r, normalization_weights(jnp, p.log_w), *gains, *cell_rates(jnp, p, max_rates))
    operands = dict(zip(WEIGHTS, (*values, jnp.broadcast_to(p.sigma, (n,))), strict=True))
    operands = {name: value for name, value in operands.items() if value is not None}
    shape = xs.shape[1:-1]
    rows = math.prod(shape)
    operands["start"] = jnp.stack([jnp.broadcast_to(part, (*shape, n)).reshape(rows, n) for part in state])
    operands["x"] = xs.reshape(xs.shape[0], rows, xs.shape[-1])
    last, ys = _computed(implementation, variant == "main", operands, chunk)
    return CellState(*last.reshape(4, *shape, n)), ys.reshape(xs.shape[0], *shape, n)


def _computed(implementation: str, main: bool, operands: dict[str, Array], chunk: int | None) -> tuple[Array, Array]:
    if implementation == "fused" or (implementation == "auto" and chunk is None):
        setup = Setup(main, "w_r" not in operands)
        reason = obstacle(setup, list(operands.values()))
        if reason is None:
            return fused_sequence(setup, list(operands.values()))
        if implementation == "fused":
            raise RuntimeError(
                "implementation 'fused' needs float32 or float64 on one device of the CPU and a C++ compiler, and here "
                f"{reason}; choose 'auto'"
            )
    return scanned(main, operands, chunk=chunk)


def scanned(
    main: bool, operands: dict[str, Array], *, chunked: bool = True, chunk: int | None = None
) -> tuple[Array, Array]:
    """The last state (4, N, n) and ys (T, N, n) for operands named as in sequence.cpp, by jax.

    In chunks, which have a reverse derivative by hand, or as one scan, which has those that jax finds.
    """
    p = operands
    from_y = [p[name] for name in ("w_r", "w_by0", "w_by1") if name in p]
    weights = _Weights(
        x=jnp.concatenate([p["w_zx"], p["w_bx0"], p["w_bx1"]]).T,
        y=jnp.concatenate(from_y).T,
        a=jnp.concatenate([p["w_ba0"], p["w_ba1"]]).T,
        w=p["w"],
        rates=Rates(p["r_y"], p["r_a"], p["r_b0"], p["r_b1"]),
        sigma2=p["sigma"] ** 2,
    )
    variant = "main" if main else "rectified_recurrence"
    state, xs = CellState(*p["start"]), p["x"]
    if not chunked:
        state, ys, _ = _forward(variant, weights, state, xs, False)
        return jnp.stack(state), ys
    length = xs.shape[0]
    size = _chunk_length(length) if chunk is None else min(chunk, length)
    whole = length - length % size
    state, ys = _run(variant, size, weights, state, xs[:whole])
    if whole < length:
        state, rest = _run(variant, length - whole, weights, state, xs[whole:])
        ys = jnp.concatenate([ys, rest])
    return jnp.stack(state), ys


def masked_sequence(
    parameters: CellParameters,
    state: CellState,
    xs: Array,
    lengths: Array,
    *,
    max_rates: MaxRates = MaxRates(),
    variant: str = "rectified_recurrence",
) -> tuple[CellState, Array]:
    """Sequences of different lengths: each one's state stays after its own last step, and its y is 0 beyond.

    Parameters
    ----------
    parameters, state, max_rates, variant
        As in :func:`sequence`.
    xs : array (T, ..., k)
        What lies beyond a sequence's length does not matter.
    lengths : integer array (...)

    Returns
    -------
    state : CellState of arrays (..., n)
    y : array (T, ..., n)
    """
    parameters, state, xs, lengths = varying_alike((parameters, state, xs, lengths))
    rates = cell_rates(jnp, parameters, max_rates)
    w = normalization_weights(jnp, parameters.log_w)
    shape = (*xs.shape[1:-1], w.shape[-1])
    state = CellState(*(jnp.broadcast_to(part, shape) for part in state))
    inside = jnp.arange(xs.shape[0]).reshape(-1, *(1,) * lengths.ndim) < lengths
    xs = jnp.where(inside[..., None], xs, jnp.zeros_like(xs))

    @jax.checkpoint
    def body(state: CellState, at: tuple[Array, Array]) -> tuple[CellState, Array]:
        x, going = at
        new = step(jnp, parameters, w, rates, state, x, variant)
        new = CellState(*(jnp.where(going[..., None], a, b) for a, b in zip(new, state, strict=True)))
        return new, jnp.where(going[..., None], new.y, jnp.zeros_like(new.y))

    return jax.lax.scan(body, state, (xs, inside))


def varying_alike(tree: Any) -> Any:
    """Within ``shard_map``, every array as one that differs along all the mesh axes that any of them differs along.

    A loop must give back a state of the kind it got, and the derivative of a replicated array must be summed, which is
    what the derivative of this does.
    """
    axes = frozenset[str]().union(*map(varying_axes, jax.tree.leaves(tree)))
    return jax.tree.map(lambda leaf: vary(leaf, axes), tree) if axes else tree


def _unrolled() -> int:
    """Steps of the recurrence per turn of its loop: a GPU pays for every turn, a CPU gains nothing from longer ones."""
    return 8 if jax.default_backend() == "gpu" else 1


def _chunk_length(length: int) -> int:
    """About sqrt(length), and a divisor of ``length`` where there is one near by; short sequences are one chunk."""
    if length <= 32:
        return length
    best = math.isqrt(length)
    near = [size for size in range(max(best // 2, 1), 2 * best + 1) if length % size == 0]
    return min(near, key=lambda size: abs(size - best)) if near else best


_relu = functools.partial(relu, jnp)


def _forward(variant: str, weights: _Weights, state: CellState, xs: Array, keep: bool) -> tuple[CellState, Array, Any]:
    """A chunk: the last state, the y after every step, and what was seen, where it is kept."""
    n = weights.w.shape[-1]
    rectified = variant != "main"
    rates = weights.rates
    given = weights.y.shape[-1] - 2 * n  # columns of W_r: n or 0

    def body(state: CellState, px: Array) -> tuple[CellState, Any]:
        y, a, b0, b1 = state
        from_y, from_a = y @ weights.y, a @ weights.a
        positive = _relu(a)
        response = _relu(y) if rectified else y
        pool = (positive * response * response) @ weights.w.T
        z = _relu(px[..., :n])
        drive = from_y[..., :n] if given else y
        target0 = sigmoid(jnp, px[..., n : 2 * n] + from_y[..., given : given + n] + from_a[..., :n])
        target1 = sigmoid(jnp, px[..., 2 * n :] + from_y[..., given + n :] + from_a[..., n:])
        recurrent = _relu(drive) if rectified else drive
        new = CellState(
            y + rates.y * (-y + b1 * z + (1.0 - sqrt_relu(jnp, a)) * recurrent),
            a + rates.a * (-a + weights.sigma2 * b0 * b0 + pool),
            b0 + rates.b0 * (target0 - b0),
            b1 + rates.b1 * (target1 - b1),
        )
        seen = _Seen(state, drive if given else (), target0, target1) if keep else ()
        return new, (new.y, seen)

    final, (ys, seen) = jax.lax.scan(body, state, xs @ weights.x, unroll=_unrolled())
    return final, ys, seen


def _backward(
    variant: str, weights: _Weights, seen: _Seen, xs: Array, adjoint: CellState, ys_bar: Array
) -> tuple[CellState, _Weights, Array]:
    """The adjoint through a chunk: that of its start state, of the weights, and of the inputs."""
    n = weights.w.shape[-1]
    rectified = variant != "main"
    rates, sigma2 = weights.rates, weights.sigma2
    given = weights.y.shape[-1] - 2 * n
    back_y, back_a = weights.y.T, weights.a.T
    drives_z = xs @ weights.x[:, :n]

    def body(adjoint: CellState, at: Any) -> tuple[CellState, Any]:
        (y, a, b0, b1), drive, target0, target1, y_bar, drive_z = at
        drive = drive if given else y
        l_y, l_a, l_0, l_1 = adjoint
        l_y = l_y + y_bar
        g_y, g_a = rates.y * l_y, rates.a * l_a
        silent = a <= 0
        positive = _relu(a)
        root = sqrt_relu(jnp, a)
        response = _relu(y) if rectified else y
        recurrent = _relu(drive) if rectified else drive
        d_drive = g_y * (1.0 - root)
        if rectified:
            d_drive = jnp.where(drive <= 0, jnp.zeros_like(d_drive), d_drive)
        d_z = jnp.where(drive_z <= 0, jnp.zeros_like(g_y), g_y * b1)
        d_0 = rates.b0 * l_0 * target0 * (1.0 - target0)
        d_1 = rates.b1 * l_1 * target1 * (1.0 - target1)
        d_logits = jnp.concatenate([d_0, d_1], axis=-1)
        d_from_y = jnp.concatenate([d_drive, d_0, d_1], axis=-1) if given else d_logits
        d_pooled = g_a @ weights.w
        slope = g_y * recurrent * (0.5 / jnp.where(silent, jnp.ones_like(root), root))
        before = CellState(
            (l_y - g_y) + d_from_y @ back_y + 2.0 * d_pooled * positive * response,
            (l_a - g_a)
            + d_logits @ back_a
            + jnp.where(silent, jnp.zeros_like(slope), d_pooled * response * response - slope),
            (l_0 - rates.b0 * l_0) + 2.0 * sigma2 * g_a * b0,
            (l_1 - rates.b1 * l_1) + g_y * _relu(drive_z),
        )
        if not given:
            before = before._replace(y=before.y + d_drive)
        return before, (CellState(l_y, l_a, l_0, l_1), d_from_y, d_z)

    before, (adjoints, d_from_y, d_z) = jax.lax.scan(
        body, adjoint, (*seen, ys_bar, drives_z), reverse=True, unroll=_unrolled()
    )

    def rows(array: Array) -> Array:
        return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])

    y, a, b0, b1 = (rows(part) for part in seen.state)
    l_y, l_a, l_0, l_1 = (rows(part) for part in adjoints)
    drive = rows(seen.drive) if given else y
    d_from_y = rows(d_from_y)
    d_logits = d_from_y[:, given:]
    d_from_x = jnp.concatenate([rows(d_z), d_logits], axis=-1)
    positive = _relu(a)
    response = _relu(y) if rectified else y
    recurrent = _relu(drive) if rectified else drive
    pooled = positive * response * response
    products = l_a.T @ pooled  # the gradient of W is diag(r_a) times this, and W times this holds that of r_a
    field_y = b1 * _relu(rows(drives_z)) - y + (1.0 - sqrt_relu(jnp, a)) * recurrent
    gradient = _Weights(
        x=rows(xs).T @ d_from_x,
        y=y.T @ d_from_y,
        a=a.T @ d_logits,
        w=rates.a[:, None] * products,
        rates=Rates(
            jnp.sum(l_y * field_y, axis=0),
            jnp.sum(l_a * (sigma2 * b0 * b0 - a), axis=0) + jnp.sum(weights.w * products, axis=1),
            jnp.sum(l_0 * (rows(seen.target0) - b0), axis=0),
            jnp.sum(l_1 * (rows(seen.target1) - b1), axis=0),
        ),
        sigma2=rates.a * jnp.sum(l_a * b0 * b0, axis=0),
    )
    return before, gradient, (d_from_x @ weights.x.T).reshape(xs.shape)


def _run_forward(
    variant: str, size: int, weights: _Weights, state: CellState, xs: Array
) -> tuple[tuple[CellState, Array], Any]:
    chunks = xs.reshape(len(xs) // size, size, *xs.shape[1:])
    if chunks.shape[0] == 1:  # nothing to save by computing it twice
        final, ys, seen = _forward(variant, weights, state, xs, True)
        return (final, ys), (weights, xs, seen, None)

    def body(state: CellState, chunk: Array) -> tuple[CellState, Any]:
        final, ys, _ = _forward(variant, weights, state, chunk, False)
        return final, (ys, state)

    final, (ys, starts) = jax.lax.scan(body, state, chunks)
    return (final, ys.reshape(len(xs), *ys.shape[2:])), (weights, chunks, None, starts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(variant: str, size: int, weights: _Weights, state: CellState, xs: Array) -> tuple[CellState, Array]:
    """Chunks of ``size`` steps, a divisor of the length."""
    return _run_forward(variant, size, weights, state, xs)[0]


def _run_backward(variant: str, size: int, saved: Any, bars: tuple[CellState, Array]) -> Any:
    weights, chunks, seen, starts = saved
    adjoint, ys_bar = bars
    if seen is not None:
        adjoint, gradient, xs_bar = _backward(variant, weights, seen, chunks, adjoint, ys_bar)
        return gradient, adjoint, xs_bar

    def body(carry: Any, at: Any) -> tuple[Any, Array]:
        adjoint, total = carry
        start, chunk, chunk_bar = at
        _, _, seen = _forward(variant, weights, start, chunk, True)
        adjoint, gradient, xs_bar = _backward(variant, weights, seen, chunk, adjoint, chunk_bar)
        return (adjoint, jax.tree.map(jnp.add, total, gradient)), xs_bar

    zero = varying_alike((jax.tree.map(jnp.zeros_like, weights), adjoint))[0]
    chunk_bars = ys_bar.reshape(len(chunks), size, *ys_bar.shape[1:])
    (adjoint, gradient), xs_bar = jax.lax.scan(body, (adjoint, zero), (starts, chunks, chunk_bars), reverse=True)
    return gradient, adjoint, xs_bar.reshape(len(ys_bar), *xs_bar.shape[2:])


_run.defvjp(_run_forward, _run_backward)
