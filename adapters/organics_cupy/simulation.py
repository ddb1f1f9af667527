"""Simulations on the GPU: all steps of a batch of small circuits in one launch, the core's loops for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device, is_array_api_obj

import organics_core as oc
from organics_core import checks
from organics_core.backend import Array, get_backend, library_of
from organics_core.circuit import Circuit, State
from organics_core.integration import Posed, pose
from organics_core.integration import simulate_sde as core_simulate_sde
from organics_core.linalg import broadcast_shapes
from organics_core.loops import finish
from organics_core.methods import INTEGRATORS, Tableau, add_stages
from organics_core.noise import ColouredNoise, Noise, is_function, noise_arrays, noise_term
from organics_core.trajectory import Trajectory
from organics_core.weights import Operator, matvec

from . import kernel

ENGINES = ("auto", "kernel", "graph", "core")

Launch = Callable[[str, int, int, tuple[Any, ...]], None]
"""``launch(text, blocks, threads, arguments)`` runs a kernel's text."""


def launch_on_device(text: str, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
    """Compile the text, once, and run it on cupy's current stream."""
    from organics_backends.cupy import launch

    launch(text, "organics_run", blocks, threads, arguments)


class _Noise(NamedTuple):
    amplitude: Array
    increments: Array
    seed: int


def simulate(
    circuit: Circuit,
    z: Array | Callable[[Array], Array],
    times: Array,
    *,
    state0: State | None = None,
    method: str | Tableau = "dopri5",
    variant: str = "main",
    drive: str = "auto",
    substeps: int = 1,
    engine: str = "auto",
    launch: Launch = launch_on_device,
    **options: Any,
) -> Trajectory:
    """Simulate the circuit, as :func:`organics_core.simulate` does.

    Parameters
    ----------
    circuit, z, times, state0, method, variant, drive, substeps
        As for :func:`organics_core.simulate`, arrays of cupy. Weights may be
        sparse matrices or functions.
    engine : {"auto", "kernel", "core"}
        ``"kernel"`` takes every step of every circuit of the batch in one
        launch, with weights and states in registers: methods of fixed steps,
        a constant or sampled drive, plain matrices, and at most 128 neurons per
        circuit in float32 or 64 in float64. ``"graph"`` takes the steps one
        after another, recorded as a CUDA graph: any circuit, any drive, methods
        of fixed steps. ``"core"`` is the core's own loop. ``"auto"`` takes the
        first of them that can.
    launch : callable
        ``launch(text, blocks, threads, arguments)``, which runs the kernel; for
        tests of its text without a GPU.
    **options
        The other options of :func:`organics_core.simulate`. The kernel and the graph,
        whose steps are fixed, have no use for ``rtol``, ``atol``, ``max_step`` and ``max_steps``,
        and do nothing else that may be asked for.

    Returns
    -------
    Trajectory
        Its arrays stay on the device; :func:`to_host` fetches them.

    Raises
    ------
    TypeError, ValueError
        As the core's; ValueError for ``engine="kernel"`` or ``"graph"`` with what it cannot do.
    """
    checks.one_of("engine", engine, ENGINES)
    tableau = method if isinstance(method, Tableau) else INTEGRATORS.get(method)
    for name in options:
        if name not in signature(oc.simulate).parameters:
            raise TypeError(f"simulate has no argument {name!r}")
    more = [name for name in options if name not in ("rtol", "atol", "max_step", "max_steps")]
    if more and engine in ("kernel", "graph"):
        raise ValueError(f"engine {engine!r} has no {more[0]}; use 'core'")
    if engine != "core" and tableau is not None and not more:
        substeps = checks.positive_integer("substeps", substeps)
        problem = pose(circuit, z, times, state0, variant, drive, None)
        xp = problem.xp
        reason = _obstacle(problem, tableau, engine)
        if reason is None:
            return _run(problem, tableau, substeps, None, launch)
        _refuse(engine, reason)
        if engine == "graph" and tableau.error is not None:
            raise ValueError(f"engine 'graph' takes methods of fixed steps, not {tableau.name!r}")
        if tableau.error is None and (engine == "graph" or library_of(xp) == "cupy"):
            return _stepwise(_recordable(problem, circuit), tableau, substeps)
    return oc.simulate(
        circuit,
        z,
        times,
        state0=state0,
        method=method,
        variant=variant,
        drive=drive,
        substeps=substeps,
        **options,
    )


def simulate_sde(
    circuit: Circuit,
    z: Array | Callable[[Array], Array],
    times: Array,
    *,
    noise: Noise,
    seed: int = 0,
    method: str = "euler_maruyama",
    substeps: int = 1,
    state0: State | None = None,
    variant: str = "main",
    drive: str = "auto",
    increments: Array | None = None,
    engine: str = "auto",
    launch: Launch = launch_on_device,
) -> Trajectory:
    """Simulate the circuit under additive white noise, as :func:`organics_core.simulate_sde` does.

    Parameters
    ----------
    circuit, z, times, noise, seed, method, substeps, state0, variant, drive, increments
        As for the core's function, arrays of cupy.
    engine, launch
        As for :func:`simulate`; the kernel takes amplitudes, no noise matrix.
        The core's own loop is recorded as a CUDA graph as well.

    Returns
    -------
    Trajectory
        Its arrays stay on the device.

    Raises
    ------
    TypeError, ValueError
        As :func:`simulate`.

    Notes
    -----
    The kernel draws its noise itself (Philox 4x32-10, counted by step, circuit
    and neuron): other numbers than the core's for the same ``seed``, and the same
    ones for every batch size, dtype aside. Given ``increments``, both engines
    use those.
    """
    checks.one_of("engine", engine, ENGINES)
    checks.one_of("method", method, kernel.SDE_TABLEAUS)
    if engine in ("auto", "kernel"):
        substeps, number = checks.positive_integer("substeps", substeps), checks.seed(seed)
        more = {**noise_arrays(noise), "increments": increments}
        problem = pose(circuit, z, times, state0, variant, drive, None, **more)
        xp, tableau = problem.xp, kernel.SDE_TABLEAUS[method]
        reason = _obstacle(problem, tableau, engine)
        n = problem.start.y.shape[-1]
        term = None
        if is_function(noise) or isinstance(noise, ColouredNoise):
            reason = "it takes white noise that does not depend on the state"
        else:
            term = noise_term(xp, noise, (n, n), problem.start.y)
            if term.matrix is not None:
                reason = "it takes one amplitude per component, no noise matrix"
        steps = (problem.times.shape[0] - 1) * substeps
        if increments is not None and (increments.shape[0] != steps or increments.shape[-1] != 2 * n):
            reason = f"increments must have shape ({steps}, ..., {2 * n}), got {tuple(increments.shape)}"
        if reason is None and term is not None:
            given = _Noise(term.amplitude, increments, number)
            return _run(problem, tableau, substeps, given, launch)
        _refuse(engine, str(reason))
    return core_simulate_sde(
        circuit,
        z,
        times,
        noise=noise,
        seed=seed,
        method=method,
        substeps=substeps,
        state0=state0,
        variant=variant,
        drive=drive,
        increments=increments,
    )


def _recordable(problem: Posed, circuit: Circuit) -> Posed:
    """The problem with products by kernels of our own: a graph cannot hold cuBLAS's and cuSPARSE's."""
    xp, dtype = problem.xp, problem.times.dtype

    def product(given: Any, ready: Any) -> Any:
        if is_array_api_obj(given):
            return Operator(lambda vector: matvec(xp, ready, vector), batched=True)
        if not type(given).__module__.startswith("cupyx."):
            return ready
        from organics_backends.cupy import launch
        from organics_backends.products import sparse_operator

        return sparse_operator(given, dtype, launch) or ready

    made = problem.model
    made = made._replace(w_r=product(circuit.w_r, made.w_r), w=product(circuit.w, made.w))
    return problem._replace(model=made)


def _refuse(engine: str, reason: str) -> None:
    if engine == "kernel":
        raise ValueError(f"engine 'kernel' cannot run this simulation: {reason}; use 'auto' or 'core'")


def _obstacle(problem: Posed, tableau: Tableau, engine: str) -> str | None:
    """Why the kernel cannot run this, or None. ``engine="kernel"`` lets numpy pass, for tests."""
    xp, circuit = problem.xp, problem.model
    if not isinstance(circuit, Circuit):
        return "it has no kernel for models other than a Circuit"
    if engine == "graph":
        return "another engine was asked for"
    if library_of(xp) not in (("cupy", "numpy") if engine == "kernel" else ("cupy",)):
        return f"its arrays must be cupy's, got {library_of(xp)}'s"
    if tableau.error is not None:
        return f"method {tableau.name!r} chooses its own steps"
    if problem.drive is None or problem.drive.function is not None:
        return "its drive must be an array, not a function of time"
    if not all(matrix is None or is_array_api_obj(matrix) for matrix in circuit[:2]):
        return "its weights must be plain matrices"
    n, dtype = problem.start.y.shape[-1], str(problem.start.y.dtype)
    if kernel.geometry(n, dtype) is None:
        return f"{n} neurons in {dtype} do not fit into registers"
    return None


def _stepwise(problem: Posed, tableau: Tableau, substeps: int) -> Trajectory:
    """The core's fixed steps on states that stay two arrays: packing them in one would copy pointers to the device."""
    xp, circuit = problem.xp, problem.model
    backend = get_backend(xp)
    start, times, values, drive = problem.start, problem.times, problem.values, problem.drive
    assert drive is not None
    xs: Any = (times[:-1], times[1:])
    if values is not None:
        xs = (*xs, values[:-1, ...], values[1:, ...])

    def z_at(t: Any, x: Any) -> Array:
        if drive.function is not None:
            return xp.astype(drive.function(t), times.dtype, copy=False)
        if values is None:
            return drive.constant
        return x[2] + ((t - x[0]) / (x[1] - x[0])) * (x[3] - x[2])

    def interval(state: State, x: Any) -> tuple[State, State]:
        t0, h = x[0], (x[1] - x[0]) / substeps

        def one(state: State, k: Any) -> tuple[State, None]:
            t = t0 + k * h
            slopes: list[State] = []
            for node, row in zip(tableau.nodes, tableau.stages, strict=True):
                moved = State(*(add_stages(x, h, row, [s[i] for s in slopes]) for i, x in enumerate(state)))
                slopes.append(circuit.field(xp, t + node * h, moved, z_at(t + node * h, x)))
            parts = [[s[i] for s in slopes] for i in range(2)]
            if not tableau.exponential:
                new = (add_stages(x, h, tableau.weights, k) for x, k in zip(state, parts, strict=True))
                return State(*new), None
            means = (add_stages(xp.zeros_like(x), 1.0, tableau.weights, k) for x, k in zip(state, parts, strict=True))
            taus = circuit.decay()
            return State(
                *(x - tau * xp.expm1(-h / tau) * m for x, tau, m in zip(state, taus, means, strict=True))
            ), None

        if substeps == 1:
            state, _ = one(state, 0.0)
        else:
            state, _ = backend.scan(one, state, xp.arange(substeps, dtype=times.dtype, device=device(times)))
        return state, state

    _, states = backend.scan(interval, start, xs)
    return _trajectory(xp, times, start, states, substeps)


def _trajectory(xp: Any, times: Array, start: State, states: State, substeps: int) -> Trajectory:
    """A finished run, the start in front; members that are no longer finite say so."""
    counts = {"dtype": xp.int32, "device": device(times)}
    packed, first = xp.concat(list(states), axis=-1), xp.concat(list(start), axis=-1)
    packed, status = finish(xp, first, packed, xp.zeros(start.y.shape[:-1], **counts))
    n = start.y.shape[-1]
    steps = xp.full((), substeps * (times.shape[0] - 1), **counts)
    return Trajectory(times, State(packed[..., :n], packed[..., n:]), status, steps, xp.zeros((), **counts))


def _run(problem: Posed, tableau: Tableau, substeps: int, noise: _Noise | None, launch: Launch) -> Trajectory:
    xp, circuit, start, times = problem.xp, problem.model, problem.start, problem.times
    assert problem.drive is not None
    n, dtype, where = start.y.shape[-1], start.y.dtype, device(times)
    given = None if noise is None else noise.increments
    shapes = [tuple(start.y.shape[:-1])]
    if noise is not None:
        shapes.append(tuple(noise.amplitude.shape[:-1]))
    if given is not None:
        shapes.append(tuple(given.shape[1:-1]))
    batch = broadcast_shapes(*shapes)
    count, intervals = math.prod(batch), times.shape[0] - 1

    def full(value: Array, size: int) -> Array:
        """A contiguous array (count, size) of a value that broadcasts to (*batch, size)."""
        filled = xp.zeros((*batch, size), dtype=dtype, device=where) + value
        return xp.reshape(xp.ascontiguousarray(filled), (count, size))

    def over_time(value: Array, size: int) -> Array:
        """A contiguous array (T, count, size) of a value (T, ..., size) whose other axes broadcast to the batch."""
        between = (1,) * (len(batch) + 2 - value.ndim)
        value = xp.reshape(value, (value.shape[0], *between, *value.shape[1:]))
        value = xp.broadcast_to(xp.astype(value, dtype, copy=False), (value.shape[0], *batch, size))
        return xp.reshape(xp.ascontiguousarray(value), (value.shape[0], count, size))

    def matrix(value: Array) -> tuple[Any, np.int64]:
        if value is None:
            return np.intp(0), np.int64(0)
        if value.ndim == 2:
            return xp.ascontiguousarray(value), np.int64(0)
        value = xp.broadcast_to(value, (*batch, n, n))
        return xp.ascontiguousarray(xp.reshape(value, (count, n, n))), np.int64(n * n)

    layout = kernel.geometry(n, str(dtype))
    assert layout is not None
    kind = "none" if noise is None else "drawn" if given is None else "given"
    text = kernel.source(layout, tableau, circuit.variant, circuit.w_r is not None, kind)
    y0, a0 = (full(part, n) for part in start)
    out_y, out_a = (xp.empty((intervals, count, n), dtype=dtype, device=where) for _ in range(2))
    if problem.values is None:
        drive = full(circuit.b * problem.drive.constant, n)
    else:
        drive = over_time(problem.values, n) * full(circuit.b, n)
    arguments = (
        *matrix(circuit.w_r),
        *matrix(circuit.w),
        drive,
        np.int64(count * n if drive.ndim == 3 else 0),
        full((circuit.b0 * circuit.sigma) ** 2, n),
        full(circuit.tau_y, n),
        full(circuit.tau_a, n),
        np.intp(0) if noise is None else full(noise.amplitude, 2 * n),
        np.intp(0) if given is None else over_time(given, 2 * n),
        y0,
        a0,
        xp.ascontiguousarray(times),
        np.int64(intervals),
        np.int64(substeps),
        np.uint64(0 if noise is None else noise.seed % 2**64),
        np.int64(count),
        out_y,
        out_a,
    )
    launch(text, layout.blocks(count), layout.threads, arguments)
    states = State(*(xp.reshape(part, (intervals, *batch, n)) for part in (out_y, out_a)))
    return _trajectory(xp, times, State(*(xp.reshape(part, (*batch, n)) for part in (y0, a0))), states, substeps)
