"""The agreement table: every installed array library computes the same circuits, side by side.

All libraries are given the same numbers, rounded to float32 first, so that a
difference is one of arithmetic and not of input. The reference is numpy in
float64. A difference is relative and taken per array: the largest absolute
difference over the largest absolute value of the reference, the worst over
the circuits of the batch.

The bound in float64 is 1e-10 throughout. In float32, whose resolution is
1.2e-7, each quantity has its own, for a reason given beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace
from rich import box
from rich.table import Table
from rich.text import Text

import organics_core as oc
from organics_core.backend import GenericBackend, to_numpy
from organics_core.cell import CellParameters, CellState, init_cell

from .console import console, output_folder, seconds, versions, write_json, write_text

BOUND64 = 1e-10
LIBRARIES = ("numpy", "strict", "torch", "jax", "cupy")
VARIANTS = ("main", "rectified", "rectified_recurrence")
Array = Any
Numbers = tuple[np.ndarray[Any, Any], ...]


class Column(NamedTuple):
    """One array library in one precision.

    Attributes
    ----------
    library : str
        "numpy", "strict", "torch", "jax" or "cupy".
    dtype : str
        "float64" or "float32".
    asarray : callable
        A numpy array to an array of the library; integers keep their kind.
    context : callable
        A context manager under which the library has the precision.
    gradient : callable or None
        ``gradient(f, x)`` for a scalar f of a vector, in reverse mode.
    compile : callable
        Compiles a function, where the library compiles whole functions with their loops.
    """

    library: str
    dtype: str
    asarray: Callable[[Any], Array]
    context: Callable[[], AbstractContextManager[Any]]
    gradient: Callable[[Callable[[Array], Array], Array], Array] | None
    compile: Callable[[Callable[[Any], Any]], Callable[[Any], Any]] = lambda function: function

    @property
    def key(self) -> str:
        return f"{self.library} {self.dtype}"

    @property
    def reference(self) -> bool:
        return self.key == "numpy float64"


class Quantity(NamedTuple):
    """One row of the table.

    Attributes
    ----------
    name : str
    compute : callable
        ``compute(problem, column)`` gives numpy arrays with a leading batch
        axis, or None where the library cannot.
    bound32 : float
        Bound in float32.
    why32 : str
        Reason for it.
    compact : bool
        Whether the short table has it.
    """

    name: str
    compute: Callable[[Problem, Column], Numbers | None]
    bound32: float
    why32: str
    compact: bool = False


class Cell(NamedTuple):
    """Largest relative difference of one quantity in one library, and its bound."""

    difference: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.bound  # false for NaN


class Agreement(NamedTuple):
    """The table.

    Attributes
    ----------
    columns : tuple of Column
    quantities : tuple of Quantity
    cells : dict of (quantity name, column key) to Cell
        Without the reference, and without what a library cannot compute.
    wall : dict of column key to float
        Seconds spent.
    """

    columns: tuple[Column, ...]
    quantities: tuple[Quantity, ...]
    cells: dict[tuple[str, str], Cell]
    wall: dict[str, float]

    def cell(self, quantity: Quantity, key: str) -> Cell | None:
        return self.cells.get((quantity.name, key))

    @property
    def ok(self) -> bool:
        return all(cell.ok for cell in self.cells.values())

    def worst(self, key: str) -> float:
        """Largest difference of a column; NaN counts as the largest."""
        found = [cell.difference for (_, column), cell in self.cells.items() if column == key]
        return math.nan if any(math.isnan(x) for x in found) else max(found, default=0.0)


def installed(missing: dict[str, str] | None = None) -> tuple[Column, ...]:
    """The libraries found here, numpy float64 (the reference) first.

    ``missing`` collects the name of every other one and the reason.
    """
    missing = {} if missing is None else missing
    columns: list[Column] = []
    makers = (_numpy_columns, _strict_columns, _torch_columns, _jax_columns, _cupy_columns)
    for library, make in zip(LIBRARIES, makers, strict=True):
        try:
            columns += make()
        except ImportError as error:
            missing[library] = f"not installed ({' '.join(str(error).split())})"
        except RuntimeError as error:
            missing[library] = " ".join(str(error).split())
    return tuple(columns)


def _as_kind(value: Any, dtype: str) -> np.ndarray[Any, Any]:
    value = np.asarray(value)
    return value.astype(dtype) if value.dtype.kind == "f" else value


def _numpy_columns() -> list[Column]:
    return [Column("numpy", "float64", lambda v: _as_kind(v, "float64"), nullcontext, None)]


def _strict_columns() -> list[Column]:
    import array_api_strict as xp

    return [Column("strict", "float64", lambda v: xp.asarray(_as_kind(v, "float64")), nullcontext, None)]


def _torch_columns() -> list[Column]:
    import torch

    def gradient(f: Callable[[Array], Array], x: Array) -> Array:
        x = x.clone().requires_grad_(True)
        return torch.autograd.grad(f(x), x)[0]

    return [
        Column("torch", dtype, lambda v, d=dtype: torch.as_tensor(np.array(_as_kind(v, d))), nullcontext, gradient)
        for dtype in ("float64", "float32")
    ]


def _jax_columns() -> list[Column]:
    import jax
    import jax.numpy as jnp

    enable = getattr(jax, "enable_x64", None)
    if not callable(enable):
        from jax.experimental import enable_x64 as enable
    cpu = jax.devices("cpu")[0]

    def context(wide: bool) -> AbstractContextManager[Any]:
        from contextlib import ExitStack

        stack = ExitStack()
        stack.enter_context(enable(wide))
        stack.enter_context(jax.default_device(cpu))
        return stack

    return [
        Column(
            "jax",
            dtype,
            lambda v, d=dtype: jnp.asarray(_as_kind(v, d)),
            lambda d=dtype: context(d == "float64"),
            lambda f, x: jax.jit(jax.grad(f))(x),
            jax.jit,
        )
        for dtype in ("float64", "float32")
    ]


def _cupy_columns() -> list[Column]:
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(f"installed, but no GPU in sight ({error})") from None
    if count == 0:
        raise RuntimeError("installed, but no GPU in sight")
    return [
        Column("cupy", dtype, lambda v, d=dtype: cupy.asarray(_as_kind(v, d)), nullcontext, None)
        for dtype in ("float64", "float32")
    ]


class Inputs(NamedTuple):
    """What the functions under comparison are given."""

    circuit: oc.Circuit
    identity: oc.Circuit
    state: oc.State
    z: Array
    times: Array
    fixed: tuple[oc.State, ...]


class Problem:
    """The circuits and the cell, drawn once, as numpy arrays of float32 precision.

    Parameters
    ----------
    seed : int
    neurons : int
    circuits : int
        Size of the batch.
    """

    def __init__(self, seed: int = 0, neurons: int = 12, circuits: int = 8) -> None:
        rng = np.random.default_rng(seed)
        n, batch = neurons, circuits
        q, _ = np.linalg.qr(rng.standard_normal((batch, n, n)))
        stretch = rng.uniform(0.2, 1.0, (batch, 1, n))
        self.w_r = _single(q * stretch)  # singular values in (0.2, 1)
        self.w = _single(rng.uniform(0.0, 2.0 / n, (batch, n, n)))
        self.b = _single(rng.uniform(0.3, 0.9, (batch, n)))
        self.b0 = _single(rng.uniform(0.3, 0.9, (batch, n)))
        self.sigma = _single(rng.uniform(0.2, 0.6, (batch, n)))
        self.tau_y = _single(rng.uniform(0.001, 0.004, (batch, n)))
        self.tau_a = _single(rng.uniform(0.001, 0.004, (batch, n)))
        drive = rng.standard_normal((batch, n))
        self.z = _single(drive / np.linalg.norm(drive, axis=-1, keepdims=True))
        self.y = _single(rng.standard_normal((batch, n)))
        self.a = _single(rng.uniform(0.05, 1.5, (batch, n)))
        self.times = np.arange(33) * 2.0**-10  # exact in float32; 32 ms
        self.direction_seed = seed + 1

    def inputs(self, column: Column) -> Inputs:
        """The arrays of the problem in a library."""
        vectors = [column.asarray(part) for part in (self.w, self.b, self.b0, self.sigma, self.tau_y, self.tau_a)]
        return Inputs(
            oc.Circuit(column.asarray(self.w_r), *vectors),
            oc.Circuit(None, *vectors),
            oc.State(column.asarray(self.y), column.asarray(self.a)),
            column.asarray(self.z),
            column.asarray(self.times),
            tuple(oc.State(*map(column.asarray, state)) for state in self.fixed),
        )

    @cached_property
    def fixed(self) -> tuple[oc.State, ...]:
        """Fixed points of every variant by numpy, for what is computed at one."""
        circuit = oc.Circuit(self.w_r, self.w, self.b, self.b0, self.sigma, self.tau_y, self.tau_a)
        return tuple(
            oc.State(*map(_single, oc.steady_state(circuit, self.z, variant=variant).state)) for variant in VARIANTS
        )

    @cached_property
    def cells(self) -> dict[str, TrainingStep]:
        # With these seeds no unit crosses the kink of its rectification within
        # the reach of the central differences, which are exact only between kinks.
        return {variant: TrainingStep(3, variant) for variant in ("rectified_recurrence", "main")}


class TrainingStep:
    """One training step of the cell: a batch of sequences, a linear readout and cross entropy.

    Parameters
    ----------
    seed : int
    variant : str
    """

    inputs, hidden, classes, steps, batch = 3, 6, 3, 6, 4
    rates = oc.MaxRates(0.5, 0.25, 0.25)

    def __init__(self, seed: int, variant: str) -> None:
        rng = np.random.default_rng(seed)
        parameters, start = init_cell(rng, self.inputs, self.hidden)
        # away from the kink of W = min(exp(V), 1), where training starts
        parameters = parameters._replace(log_w=parameters.log_w - 0.5)
        self.variant = variant
        self.start = CellState(*map(_single, start))
        learned = {name: value for name, value in parameters._asdict().items() if name != "sigma"}
        learned["readout"] = rng.uniform(-1, 1, (self.classes, self.hidden))
        learned["bias"] = rng.uniform(-1, 1, self.classes)
        self.shapes = {name: value.shape for name, value in learned.items()}
        self.vector = _single(np.concatenate([np.ravel(value) for value in learned.values()]))
        self.sigma = np.ones(())
        self.x = _single(rng.standard_normal((self.steps, self.batch, self.inputs)))
        self.target = np.eye(self.classes)[rng.integers(0, self.classes, self.batch)]
        self.directions = _single(rng.standard_normal((4, self.vector.size)))
        self._losses: dict[str, Callable[[Array], Array]] = {}
        self._gradients: dict[str, np.ndarray[Any, Any]] = {}

    def parameters(self, column: Column) -> Array:
        """All parameters in one vector."""
        return column.asarray(self.vector)

    def gradient(self, column: Column) -> np.ndarray[Any, Any]:
        """The gradient, computed once: in reverse mode, or by central differences of order eight."""
        if column.key not in self._gradients:
            function, x = self.loss(column), self.parameters(column)
            if column.gradient is not None:
                found = np.asarray(to_numpy(column.gradient(function, x)))
            else:
                found = np.asarray(_DIFFERENCES.jacobian(lambda v: np.reshape(function(v), (1,)), x))[0]
            self._gradients[column.key] = found
        return self._gradients[column.key]

    def loss(self, column: Column) -> Callable[[Array], Array]:
        """The loss as a function of all parameters in one vector, written once for every library."""
        if column.key not in self._losses:
            self._losses[column.key] = column.compile(self._loss(column))
        return self._losses[column.key]

    def _loss(self, column: Column) -> Callable[[Array], Array]:
        x, target, sigma = (column.asarray(part) for part in (self.x, self.target, self.sigma))
        start = CellState(*map(column.asarray, self.start))

        def function(vector: Array) -> Array:
            xp = array_namespace(vector)
            parts, begin = {}, 0
            for name, shape in self.shapes.items():
                end = begin + math.prod(shape)
                parts[name] = xp.reshape(vector[begin:end], shape)
                begin = end
            readout, bias = parts.pop("readout"), parts.pop("bias")
            parameters = CellParameters(**parts, sigma=sigma)
            state, _ = oc.cell_sequence(parameters, start, x, max_rates=self.rates, variant=self.variant)
            logits = xp.matmul(state.y, readout.T) + bias
            highest = xp.max(logits, axis=-1, keepdims=True)
            normalizer = xp.log(xp.sum(xp.exp(logits - highest), axis=-1, keepdims=True))
            return -xp.mean(xp.sum(target * (logits - highest - normalizer), axis=-1))

        return function


def _single(value: Any) -> np.ndarray[Any, Any]:
    """Rounded to float32, kept in float64."""
    return np.asarray(value, dtype=np.float32).astype(np.float64)


def _pure(function: Callable[[Inputs], tuple[Array, ...]]) -> Callable[[Problem, Column], Numbers]:
    """A quantity of a function of the circuits alone, which a library may compile."""

    def compute(problem: Problem, column: Column) -> Numbers:
        return tuple(np.asarray(to_numpy(array)) for array in column.compile(function)(problem.inputs(column)))

    return compute


def _field(inputs: Inputs) -> tuple[Array, ...]:
    circuit, state, z = inputs.circuit, inputs.state, inputs.z
    return tuple(part for variant in VARIANTS for part in oc.vector_field(circuit, state, z, variant=variant))


def _jacobian(inputs: Inputs) -> tuple[Array, ...]:
    return tuple(oc.jacobian(inputs.circuit, inputs.state, variant=variant) for variant in VARIANTS)


def _closed_form(inputs: Inputs) -> tuple[Array, ...]:
    return tuple(oc.steady_state(inputs.identity, inputs.z, method="closed_form").state)


def _steady(method: str, *variants: str) -> Callable[[Inputs], tuple[Array, ...]]:
    def function(inputs: Inputs) -> tuple[Array, ...]:
        xp = array_namespace(inputs.z)
        arrays: list[Array] = []
        for variant in variants:
            found = oc.steady_state(inputs.circuit, inputs.z, method=method, variant=variant)
            # a library that did not converge must not pass for one that agrees
            arrays += [xp.where(found.converged[:, None], part, xp.nan * part) for part in found.state]
        return tuple(arrays)

    return function


def _trajectory(method: str) -> Callable[[Inputs], tuple[Array, ...]]:
    def function(inputs: Inputs) -> tuple[Array, ...]:
        xp = array_namespace(inputs.z)
        tolerance = 1e-12 if xp.finfo(inputs.z.dtype).bits == 64 else 1e-6
        run = oc.simulate(
            inputs.circuit,
            inputs.z,
            inputs.times,
            method=method,
            rtol=tolerance,
            atol=tolerance,
            substeps=4,
            drive="constant",
        )
        return tuple(xp.moveaxis(part, 1, 0) for part in run.state)

    return function


def _certificate(inputs: Inputs) -> tuple[Array, ...]:
    found = oc.certify(inputs.identity, inputs.z)
    return found.p, found.q, found.margin[:, None]


def _abscissa(inputs: Inputs) -> tuple[Array, ...]:
    return tuple(
        oc.spectral_abscissa(inputs.circuit, state, variant=variant)[:, None]
        for variant, state in zip(VARIANTS, inputs.fixed, strict=True)
    )


_DIFFERENCES = GenericBackend()
_DIFFERENCES.step = 1e-3


def _loss(problem: Problem, column: Column) -> Numbers:
    values = [step.loss(column)(step.parameters(column)) for step in problem.cells.values()]
    return tuple(np.reshape(to_numpy(value), (1, 1)) for value in values)


def _directional(problem: Problem, column: Column) -> Numbers | None:
    """Derivatives of the loss along random directions: reverse mode, or central differences of order eight."""
    results = []
    for step in problem.cells.values():
        function, x = step.loss(column), step.parameters(column)
        if column.gradient is not None:
            slopes = step.directions @ step.gradient(column).astype(np.float64)
        elif column.dtype == "float64":
            slopes = np.stack(
                [
                    np.asarray(to_numpy(_DIFFERENCES.jvp(function, x, column.asarray(direction))))
                    for direction in step.directions
                ]
            )
        else:  # differences in float32 would measure the differences
            return None
        results.append(slopes[None, :])
    return tuple(results)


def _gradient(problem: Problem, column: Column) -> Numbers | None:
    """Every entry of the gradient: reverse mode; the reference by central differences."""
    if column.gradient is None and not column.reference:
        return None
    return tuple(step.gradient(column)[None, :] for step in problem.cells.values())


def _after_step(problem: Problem, column: Column) -> Numbers | None:
    """The loss after one step down the library's own gradient."""
    if column.gradient is None and not column.reference:
        return None
    results = []
    for step in problem.cells.values():
        moved = step.parameters(column) - 0.1 * column.asarray(step.gradient(column))
        results.append(np.reshape(to_numpy(step.loss(column)(moved)), (1, 1)))
    return tuple(results)


QUANTITIES: tuple[Quantity, ...] = (
    Quantity("vector field, 3 variants", _pure(_field), 1e-5, "sums of n terms", True),
    Quantity("Jacobian, 3 variants", _pure(_jacobian), 1e-5, "sums of n terms", True),
    Quantity("steady state, closed form", _pure(_closed_form), 1e-5, "sums of n terms"),
    Quantity("steady state, iteration", _pure(_steady("iteration", "main")), 1e-4, "stops at a residual of 6e-6"),
    Quantity(
        "steady state, Newton", _pure(_steady("newton", "main")), 1e-4, "a linear solve at a residual of 6e-6", True
    ),
    Quantity(
        "steady state, rectified variants",
        _pure(_steady("newton", *VARIANTS[1:])),
        1e-4,
        "a linear solve at a residual of 6e-6",
    ),
    Quantity("trajectory, dopri5", _pure(_trajectory("dopri5")), 1e-4, "integrated at rtol 1e-6 against 1e-12", True),
    Quantity("trajectory, rk4", _pure(_trajectory("rk4")), 1e-4, "round-off of 128 steps"),
    Quantity("certificate: p, q, margin", _pure(_certificate), 1e-4, "a linear solve", True),
    Quantity("largest Re λ, 3 variants", _pure(_abscissa), 1e-4, "eigenvalues of a non-normal matrix", True),
    Quantity("cell: loss", _loss, 1e-5, "sums over 6 steps", True),
    Quantity(
        "cell: loss slope, 4 directions", _directional, 1e-4, "reverse mode over 6 steps, sums of 300 terms", True
    ),
    Quantity("cell: every gradient entry", _gradient, 1e-4, "reverse mode over 6 steps"),
    Quantity("cell: loss after a trained step", _after_step, 1e-5, "sums over 6 steps"),
)
TORCH_JAX = "gradients, torch against jax"


def difference(found: Numbers, reference: Numbers) -> float:
    """Largest relative difference; NaN where anything is missing or not finite."""
    worst = 0.0
    for mine, theirs in zip(found, reference, strict=True):
        if mine.shape != theirs.shape:
            raise ValueError(f"shapes differ: {mine.shape} and {theirs.shape}")
        axes = tuple(range(1, theirs.ndim))
        scale = np.max(np.abs(theirs), axis=axes)
        gap = np.max(np.abs(mine.astype(np.float64) - theirs), axis=axes)
        relative = gap / np.where(scale > 0, scale, 1.0)
        if not np.isfinite(relative).all():
            return math.nan
        worst = max(worst, float(relative.max()))
    return worst


def compare(
    columns: Sequence[Column] | None = None,
    *,
    quantities: Sequence[Quantity] = QUANTITIES,
    seed: int = 0,
    neurons: int = 12,
    circuits: int = 8,
    on_step: Callable[[str, str], Any] | None = None,
) -> Agreement:
    """Compute every quantity in every library and compare with numpy float64.

    Parameters
    ----------
    columns : sequence of Column, optional
        All that are installed by default; numpy float64 is added if missing.
    quantities : sequence of Quantity
    seed, neurons, circuits : int
        Of the random circuits.
    on_step : callable, optional
        Called with the names of the column and the quantity before each.

    Returns
    -------
    Agreement
    """
    chosen = tuple(installed() if columns is None else columns)
    if not any(column.reference for column in chosen):
        chosen = (*_numpy_columns(), *chosen)
    chosen = tuple(sorted(chosen, key=lambda column: not column.reference))
    problem = Problem(seed, neurons, circuits)
    reference: dict[str, Numbers] = {}
    cells: dict[tuple[str, str], Cell] = {}
    wall: dict[str, float] = {}
    for column in chosen:
        began = time.perf_counter()
        with column.context():
            for quantity in quantities:
                if on_step is not None:
                    on_step(column.key, quantity.name)
                found = quantity.compute(problem, column)
                if found is None:
                    continue
                if column.reference:
                    reference[quantity.name] = found
                    continue
                _check_dtype(found, column, quantity)
                bound = BOUND64 if column.dtype == "float64" else quantity.bound32
                cells[quantity.name, column.key] = Cell(difference(found, reference[quantity.name]), bound)
        wall[column.key] = time.perf_counter() - began
    return Agreement(chosen, tuple(quantities), cells, wall)


def _check_dtype(found: Numbers, column: Column, quantity: Quantity) -> None:
    """A float64 column computed in float32, or the other way round, would compare something else."""
    wrong = [array.dtype for array in found if array.dtype.name != column.dtype]
    if wrong and quantity.compute is not _directional:  # that one is collected in float64
        raise TypeError(f"{column.key} computed {quantity.name} in {wrong[0]}")


def torch_against_jax(seed: int = 0, neurons: int = 12, circuits: int = 8) -> Cell | None:
    """Difference of the full reverse-mode gradients of torch and jax in float64; None if one is missing."""
    columns = {column.key: column for column in installed()}
    pair = [columns.get("torch float64"), columns.get("jax float64")]
    if None in pair:
        return None
    problem = Problem(seed, neurons, circuits)
    found = []
    for column in pair:
        assert column is not None
        with column.context():
            found.append(_gradient(problem, column))
    return Cell(difference(found[1], found[0]), BOUND64)  # type: ignore[arg-type]


def compact(quantities: Sequence[Quantity] = QUANTITIES) -> tuple[Quantity, ...]:
    """The rows of the short table."""
    return tuple(quantity for quantity in quantities if quantity.compact)


def rich_table(agreement: Agreement, pair: Cell | None = None) -> Table:
    """The table for the terminal."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title="Largest relative difference from numpy float64",
        title_justify="left",
        title_style="bold",
        padding=(0, 1),
    )
    table.add_column("quantity", ratio=None, min_width=18)
    others = [column for column in agreement.columns if not column.reference]
    for column in others:
        table.add_column(f"{column.library}\n{column.dtype}", justify="right", no_wrap=True)
    for quantity in agreement.quantities:
        table.add_row(quantity.name, *(_show(agreement.cell(quantity, column.key)) for column in others))
    if pair is not None:
        marks = [_show(pair) if column.key == "jax float64" else Text("") for column in others]
        table.add_row(TORCH_JAX, *marks)
    return table


def _show(cell: Cell | None) -> Text:
    if cell is None:
        return Text("-", style="dim")
    return Text(f"{cell.difference:.0e} {'✓' if cell.ok else '✗'}", style="green" if cell.ok else "bold red")


def markdown(agreement: Agreement, pair: Cell | None = None) -> str:
    """The table as Markdown, with the bounds."""
    others = [column for column in agreement.columns if not column.reference]
    head = ["quantity", *(f"{column.library} {column.dtype}" for column in others), "bound, float64", "bound, float32"]
    lines = [
        "# Agreement of the array libraries",
        "",
        "Largest relative difference from numpy float64 (of an array, relative to its largest value; worst circuit).",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "|".join(["---"] + ["--:"] * (len(head) - 1)) + "|",
    ]
    for quantity in agreement.quantities:
        row = [quantity.name]
        for column in others:
            cell = agreement.cell(quantity, column.key)
            row.append("-" if cell is None else f"{cell.difference:.1e} {'✓' if cell.ok else '✗'}")
        lines.append("| " + " | ".join([*row, f"{BOUND64:.0e}", f"{quantity.bound32:.0e} ({quantity.why32})"]) + " |")
    if pair is not None:
        lines += ["", f"Full gradients, torch against jax in float64: {pair.difference:.1e} {'✓' if pair.ok else '✗'}"]
    found = ", ".join(f"{name} {number}" for name, number in versions().items())
    return "\n".join([*lines, "", f"With {found}.", ""])


def as_json(agreement: Agreement, pair: Cell | None = None) -> dict[str, Any]:
    """The table as plain data."""
    return {
        "reference": "numpy float64",
        "ok": agreement.ok and (pair is None or pair.ok),
        "libraries": [column.key for column in agreement.columns],
        "seconds": agreement.wall,
        "versions": versions(),
        "differences": {
            quantity.name: {
                column.key: {"difference": cell.difference, "bound": cell.bound, "ok": cell.ok}
                for column in agreement.columns
                if (cell := agreement.cell(quantity, column.key)) is not None
            }
            for quantity in agreement.quantities
        },
        TORCH_JAX: None if pair is None else {"difference": pair.difference, "bound": pair.bound, "ok": pair.ok},
    }


def save(agreement: Agreement, path: Path, pair: Cell | None = None) -> tuple[Path, Path]:
    """Write the table as JSON, and as Markdown beside it."""
    return (
        write_json(path, as_json(agreement, pair)),
        write_text(path.with_suffix(".md"), markdown(agreement, pair)),
    )


def require_libraries(wanted: Sequence[str], columns: Sequence[Column], missing: dict[str, str]) -> None:
    """ValueError if one of ``wanted`` is not among ``columns``."""
    here = {column.library for column in columns}
    for name in wanted:
        if name not in here:
            raise ValueError(f"{name} is required but {missing.get(name, 'missing')}")


def run(path: Path, *, require: Sequence[str] = ()) -> int:
    """Print the table and save it in ``path``, a JSON file; 1 if any bound is exceeded."""
    if path.suffix != ".json":
        raise ValueError(f"--output must name a .json file, got {path}")
    for name in require:
        if name not in LIBRARIES:
            raise ValueError(f"unknown library {name!r} for --require; choose one of {', '.join(LIBRARIES)}")
    missing: dict[str, str] = {}
    columns = installed(missing)
    require_libraries(require, columns, missing)
    output_folder(path.parent)
    screen = console()
    with screen.status("comparing …") as status:
        agreement = compare(columns, on_step=lambda column, name: status.update(f"{column}: {name}"))
        pair = torch_against_jax()
    screen.print()
    screen.print(rich_table(agreement, pair))
    for name, reason in missing.items():
        screen.print(f"[dim]{name}: {reason}[/]")
    files = save(agreement, path, pair)
    good = agreement.ok and (pair is None or pair.ok)
    total = seconds(sum(agreement.wall.values()))
    screen.print(f"\nbounds: float64 {BOUND64:.0e}; float32 1e-05 to 1e-04, row by row in {files[1]}", soft_wrap=True)
    if good:
        screen.print(f"[bold green]✓ all {len(agreement.cells)} comparisons within their bounds[/] ({total})")
    else:
        bad = [f"{name} in {key}" for (name, key), cell in agreement.cells.items() if not cell.ok]
        bad += [TORCH_JAX] if pair is not None and not pair.ok else []
        screen.print(f"[bold red]✗ beyond their bounds: {'; '.join(bad)}[/]")
    return 0 if good else 1
