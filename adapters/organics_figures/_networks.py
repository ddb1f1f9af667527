"""Trained networks for the figures: read from a checkpoint, or small ones trained here. The core evaluates them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

import organics_core as oc
from organics_core import cell, static
from organics_core.io import checkpoints as checkpoint
from organics_train.records import batch_indices

Array = np.ndarray[Any, Any]


class StaticNetwork(NamedTuple):
    """An encoder, and static normalization layers on its code.

    Attributes
    ----------
    encoder : (array (k, pixels), array (k,))
        Weight and bias.
    layers : tuple of StaticParameters
    sigma : float
    """

    encoder: tuple[Array, Array]
    layers: tuple[oc.StaticParameters, ...]
    sigma: float

    def circuits(self, x: Array) -> list[tuple[oc.Circuit, oc.State, Array]]:
        """Of every layer under images x (N, pixels): circuit (time constants 1), fixed point, and whether it was found.

        The fixed point is the one that the layer puts out, whether it attracts
        or not; with one that is not found the layers after it have none, either.
        """
        layers = []
        x = x @ self.encoder[0].T + self.encoder[1]
        known = np.ones(len(x), dtype=bool)
        for layer in self.layers:
            circuit, z = static.static_circuit(np, layer, x, self.sigma)
            found = oc.steady_state(circuit, z, attracting=False)
            known = known & found.converged
            layers.append((circuit, found.state, known))
            x = np.where(known[:, None], static.squared_rates(np, found.state.y), 0.0)
        return layers

    def abscissae(self, x: Array) -> list[Array]:
        """Largest real eigenvalue part (N,) under every image, layer by layer, on all cores.

        NaN where no fixed point was found.
        """

        def one(piece: tuple[oc.Circuit, oc.State]) -> Array:
            return np.asarray(oc.spectral_abscissa(*piece))

        found = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for circuit, state, known in self.circuits(x):
                pieces = [slice(k, k + 100) for k in range(0, len(x), 100)]
                parts = [(circuit._replace(b=circuit.b[p]), oc.State(state.y[p], state.a[p])) for p in pieces]
                found.append(np.where(known, np.concatenate(list(pool.map(one, parts))), np.nan))
        return found


class Run(NamedTuple):
    """Sequences seen by a recurrent network.

    Attributes
    ----------
    y : array (N, T, n)
        Of the last layer.
    along : float
        Largest real eigenvalue part of the (y, a) circuits, per step, at five
        moments of every sequence, the gains frozen.
    settled : float
        The same at the fixed points of these circuits, under the input of the
        moment; of those that Newton's method finds, -inf where it finds none.
    found : float
        In what share of these circuits it finds one.
    radius : float
        Largest spectral radius of the Jacobian of the step itself, gains
        included, at these moments: of the discrete map that is trained.
    """

    y: Array
    along: float
    settled: float
    found: float
    radius: float


class RecurrentNetwork(NamedTuple):
    """Trained cells on top of each other.

    Attributes
    ----------
    layers : tuple of (CellParameters, CellState)
    max_rates : MaxRates
    variant : str
    """

    layers: tuple[tuple[oc.CellParameters, oc.CellState], ...]
    max_rates: oc.MaxRates
    variant: str

    def outputs(self, x: Array) -> Array:
        """y of the last layer (N, T, n) for sequences x (N, T, k)."""
        xs = np.moveaxis(x, 1, 0)
        for parameters, state in self.layers:
            xs = oc.cell_sequence(parameters, state, xs, max_rates=self.max_rates, variant=self.variant)[1]
        return np.moveaxis(xs, 0, 1)

    def run(self, x: Array) -> Run:
        """What becomes of sequences x (N, T, k)."""
        xs = np.moveaxis(x, 1, 0)
        along, settled, radius, converged = -np.inf, -np.inf, -np.inf, []
        for parameters, state in self.layers:
            rates = cell.cell_rates(np, parameters, self.max_rates)
            w = cell.normalization_weights(np, parameters.log_w)
            ys = []
            for part in np.array_split(xs, min(5, len(xs))):
                state, y = oc.cell_sequence(parameters, state, part, max_rates=self.max_rates, variant=self.variant)
                ys.append(y)
                circuit = oc.Circuit(parameters.w_r, w, state.b1, state.b0, parameters.sigma, 1 / rates.y, 1 / rates.a)
                z = np.maximum(part[-1] @ parameters.w_zx.T, 0.0)
                found = oc.steady_state(circuit, z, variant=self.variant, max_iterations=30, attracting=False)
                here, there = (
                    oc.spectral_abscissa(circuit, oc.State(*at), variant=self.variant)
                    for at in (state[:2], found.state)
                )
                along = max(along, float(np.max(here)))
                steps = oc.cell_jacobian(parameters, state, part[-1], max_rates=self.max_rates, variant=self.variant)
                radius = max(radius, float(np.abs(np.linalg.eigvals(steps)).max()))
                settled = max(settled, float(np.max(np.where(found.converged, there, -np.inf))))
                converged.append(np.mean(found.converged))
            xs = np.concatenate(ys)
        return Run(np.moveaxis(xs, 0, 1), along, settled, float(np.mean(converged)), radius)


def _network(arrays: dict[str, Array], config: Any, steps: int) -> StaticNetwork | RecurrentNetwork:
    """The network that a learner's parameters are; torch and jax name them a little differently."""
    spellings = (("[", "."), ("]", ""), (".parameters.", "."), (".start.", ".start_"))
    plain = {}
    for name, value in arrays.items():
        name = name.lstrip(".")
        for jax, torch in spellings:
            name = name.replace(jax, torch)
        plain[name] = np.asarray(value, dtype=np.float64)

    def w_r(prefix: str) -> Array | None:
        """Within the ball of spectral norm 1 where that is what is learned."""
        value = plain.get(f"{prefix}.w_r", plain.get(f"{prefix}.parametrizations.w_r.original"))
        if value is None or config.options.get("recurrent") != "spectral":
            return value
        return np.asarray(static.spectral_ball(array_namespace(value), value))

    if config.resolved_model == "organics-static":
        names = ("w_zx", "w_bx", "log_w", "beta")
        layers = tuple(
            oc.StaticParameters(**{name: plain[f"{part}.{name}"] for name in names}, w_r=w_r(part))
            for part in ("first", "second")[: config.options.get("layers", 2)]
        )
        sigma = float(config.options.get("sigma", 1.0))
        return StaticNetwork((plain["encoder.weight"], plain["encoder.bias"]), layers, sigma)
    if config.resolved_model != "organics":
        raise ValueError(f"the figures draw networks of ORGaNICs, not {config.resolved_model!r}")
    options = config.model_options(steps)
    cells: list[tuple[oc.CellParameters, oc.CellState]] = []
    while f"layer.cells.{len(cells)}.w_zx" in plain:
        prefix = f"layer.cells.{len(cells)}"
        fields = {name: plain.get(f"{prefix}.{name}") for name in oc.CellParameters._fields} | {"w_r": w_r(prefix)}
        start = oc.CellState(*(plain[f"{prefix}.start_{name}"] for name in oc.CellState._fields))
        cells.append((oc.CellParameters(**fields), start))
    variant = options.get("variant", "rectified_recurrence")
    return RecurrentNetwork(tuple(cells), oc.MaxRates(*options["max_rates"]), variant)


class Given(NamedTuple):
    """A network from a checkpoint.

    Attributes
    ----------
    network : StaticNetwork or RecurrentNetwork
    task : str
    x, y : arrays (N, T, k), (N,)
        Test images of its task.
    """

    network: StaticNetwork | RecurrentNetwork
    task: str
    x: Array
    y: Array

    @property
    def kind(self) -> str:
        """``"static"`` or ``"recurrent"``."""
        return "static" if isinstance(self.network, StaticNetwork) else "recurrent"

    @property
    def static(self) -> StaticNetwork:
        """The network where it is a static one, else a ValueError."""
        if not isinstance(self.network, StaticNetwork):
            raise ValueError("this figure shows a static network, the checkpoint holds a recurrent one")
        return self.network

    @property
    def recurrent(self) -> RecurrentNetwork:
        """The network where it is a recurrent one, else a ValueError."""
        if not isinstance(self.network, RecurrentNetwork):
            raise ValueError("this figure shows a recurrent network, the checkpoint holds a static one")
        return self.network


def read(path: Path) -> Given:
    """The network of a checkpoint: a folder or ``model.safetensors`` of ``organics train``, or saved layers.

    Raises
    ------
    ValueError
        Naming the file and what is wrong with it.
    """
    from organics_train import Config
    from organics_train.checkpoint import load_checkpoint
    from organics_train.loop import MODEL

    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"there is no checkpoint file {file}")
    try:
        arrays, record = load_checkpoint(file)
    except ValueError as error:
        try:
            saved = checkpoint.load_checkpoint(file)
        except ValueError:
            raise error from None
        inputs = saved.layers[0].parameters.w_zx.shape[1]
        if inputs not in (8, 28):
            raise ValueError(
                f"{file} holds layers of {inputs} inputs; saved layers must take rows of digits (8) or of MNIST (28), "
                "checkpoints of organics train any task of images"
            ) from None
        config = Config(task="digits" if inputs == 8 else "rowmnist")
        layers = tuple((_doubles(layer.parameters), _doubles(layer.start)) for layer in saved.layers)
        network: Any = RecurrentNetwork(layers, saved.settings.max_rates, saved.settings.variant)
        data = config.data()
    else:
        config = Config(**record["config"])
        data = config.data()
        if data.kind != "classes":
            raise ValueError(f"{file} was trained on {config.task}; the figures show classifiers of images")
        if any(name.startswith("model") for name in arrays):
            arrays = {name.removeprefix("model"): value for name, value in arrays.items() if name.startswith("model")}
        try:
            network = _network(arrays, config, data.steps)
        except KeyError as error:
            raise ValueError(f"{file} lacks the array {error}") from None
    return Given(network, config.task, data.x_test.astype(np.float64), data.y_test)


def _doubles(fields: Any) -> Any:
    return type(fields)._make(None if value is None else np.asarray(value, np.float64) for value in fields)


class Trained(NamedTuple):
    """A network trained here.

    Attributes
    ----------
    given : Given
    history : dict of arrays (E,)
        By epoch: loss, largest gradient norm, test accuracy, and what was measured.
    """

    given: Given
    history: dict[str, Array]


LOOKED_AT = 4
"""Test sequences along which the eigenvalues are computed after every epoch."""


@cache
def train_recurrent(seed: int, quick: bool, recurrent: str) -> Trained:
    """A recurrent classifier that reads digits row by row: MNIST where it is found, else scikit-learn's small ones."""
    task = _task(quick, "rowmnist")
    options = {"options": {"recurrent": recurrent}, "batch_size": 128, "learning_rate": 0.01, "seed": seed}
    if quick:
        options |= {"epochs": 2, "hidden": 16}
    elif task == "digits":
        options |= {"epochs": 20, "hidden": 48}
    else:
        options |= {"epochs": 8, "limit": 6000, "hidden": 48}

    def measure(given: Given) -> dict[str, float]:
        run = given.recurrent.run(given.x[:LOOKED_AT])
        return {"along": run.along, "settled": run.settled, "found": run.found, "radius": run.radius}

    return _train(task, options, measure)


@cache
def train_static(seed: int, quick: bool) -> Trained:
    """A classifier with two static normalization layers: on MNIST where it is found, else on the small digits."""
    task = _task(quick, "mnist")
    options: dict[str, Any] = {"model": "organics-static", "seed": seed, "learning_rate": 0.003}
    if quick:
        options |= {"epochs": 10, "hidden": 16, "batch_size": 64, "learning_rate": 0.01}
    elif task == "digits":
        options |= {"epochs": 20, "hidden": 40, "batch_size": 64}
    else:
        options |= {"epochs": 8, "hidden": 40}

    def measure(given: Given) -> dict[str, float]:
        found = given.static.abscissae(given.x[:400].reshape(len(given.x[:400]), -1))
        return {
            f"{name}_{index}": float(reduce(values))
            for index, values in enumerate(found, start=1)
            for name, reduce in (("median", np.nanmedian), ("lowest", np.nanmin), ("highest", np.nanmax))
        }

    return _train(task, options, measure)


def _task(quick: bool, wanted: str) -> str:
    """The task on MNIST where it can be had without a download and the sizes are the full ones."""
    from organics_train.datasets import mnist_folder

    if quick:
        return "digits"
    try:
        mnist_folder(download=False)
    except FileNotFoundError:
        return "digits"
    return wanted


def _train(task: str, options: dict[str, Any], measure: Callable[[Given], dict[str, float]]) -> Trained:
    from organics_train import Config
    from organics_train.loop import make_learner

    config = Config.recommended(task, framework=framework(), **options)
    data = config.data()
    learner = make_learner(config, data)
    x_test = data.x_test.astype(np.float64)
    records: list[dict[str, float]] = []
    for epoch in range(config.epochs + 1):
        losses, norms = [np.nan], [np.nan]
        if epoch:
            count = len(data.x_train)
            steps = [
                learner.step(index, config.rate(epoch))
                for index in batch_indices(config.seed, epoch, count, config.batch_size)
            ]
            losses, _, norms = (list(values) for values in zip(*steps, strict=True))
            if not np.isfinite(losses).all():
                raise FloatingPointError(f"the loss of the network on {task} became infinite in epoch {epoch}")
        given = Given(_network(learner.parameters(), config, data.steps), task, x_test, data.y_test)
        accuracy = learner.evaluate("test", config.batch_size)[1]
        record = {"loss": float(np.mean(losses)), "norm": float(np.max(norms)), "accuracy": float(accuracy)}
        records.append(record | measure(given))
    return Trained(given, {name: np.array([record[name] for record in records]) for name in records[0]})


def framework() -> str:
    """jax or torch, whichever is installed; jax first, or an ImportError naming the extras."""
    from importlib.util import find_spec

    for name, needs in (("jax", ("jax", "equinox", "optax")), ("torch", ("torch",))):
        if all(find_spec(module) for module in needs):
            return name
    raise ImportError(
        'this figure trains a small network, which needs jax or torch: pip install "organics-core[jax]" or '
        '"organics-core[torch]"; or give it a checkpoint'
    )
