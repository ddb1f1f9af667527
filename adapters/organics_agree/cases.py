"""What is compared: random circuits and training steps, and the quantities that are computed of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

import organics_core as oc
from organics_core import VARIANTS
from organics_core.backend import GenericBackend, to_numpy
from organics_core.cell import CellParameters, CellState, init_cell

from .libraries import Column

Array = Any
Numbers = tuple[np.ndarray[Any, Any], ...]


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
        """A training step of the cell, by variant."""
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
_DIFFERENCES.enough = 0.4


def _loss(problem: Problem, column: Column) -> Numbers:
    values = [step.loss(column)(step.parameters(column)) for step in problem.cells.values()]
    return tuple(np.reshape(to_numpy(value), (1, 1)) for value in values)


def directional(problem: Problem, column: Column) -> Numbers | None:
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


def every_gradient(problem: Problem, column: Column) -> Numbers | None:
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
    Quantity(f"vector field, {len(VARIANTS)} variants", _pure(_field), 1e-5, "sums of n terms", True),
    Quantity(f"Jacobian, {len(VARIANTS)} variants", _pure(_jacobian), 1e-5, "sums of n terms", True),
    Quantity("steady state, closed form", _pure(_closed_form), 1e-5, "sums of n terms"),
    Quantity("steady state, iteration", _pure(_steady("iteration", "main")), 1e-4, "stops at a residual of 6e-6"),
    Quantity(
        "steady state, Newton", _pure(_steady("newton", "main")), 1e-4, "a linear solve at a residual of 6e-6", True
    ),
    Quantity(
        "steady state, rectified variants",
        _pure(_steady("newton", *tuple(VARIANTS)[1:])),
        1e-4,
        "a linear solve at a residual of 6e-6",
    ),
    Quantity("trajectory, dopri5", _pure(_trajectory("dopri5")), 1e-4, "integrated at rtol 1e-6 against 1e-12", True),
    Quantity("trajectory, rk4", _pure(_trajectory("rk4")), 1e-4, "round-off of 128 steps"),
    Quantity("certificate: p, q, margin", _pure(_certificate), 1e-4, "a linear solve", True),
    Quantity(
        f"largest Re λ, {len(VARIANTS)} variants", _pure(_abscissa), 1e-4, "eigenvalues of a non-normal matrix", True
    ),
    Quantity("cell: loss", _loss, 1e-5, "sums over 6 steps", True),
    Quantity("cell: loss slope, 4 directions", directional, 1e-4, "reverse mode over 6 steps, sums of 300 terms", True),
    Quantity("cell: every gradient entry", every_gradient, 1e-4, "reverse mode over 6 steps"),
    Quantity("cell: loss after a trained step", _after_step, 1e-5, "sums over 6 steps"),
)


def compact(quantities: Sequence[Quantity] = QUANTITIES) -> tuple[Quantity, ...]:
    """The rows of the short table.

    Parameters
    ----------
    quantities : sequence of Quantity
        Of the long one.

    Returns
    -------
    tuple of Quantity

    Examples
    --------
    >>> [quantity.name for quantity in compact()][:2]
    ['vector field, 3 variants', 'Jacobian, 3 variants']
    """
    return tuple(quantity for quantity in quantities if quantity.compact)
