"""What a net trained on a cognitive task does: fixed points, trajectories, selectivity of units."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import organics_core as oc

from .checkpoint import load_checkpoint, write_atomically
from .cognitive import PREFIX, Trials
from .config import Config, completed
from .datasets import of_trials, trial_parts
from .loop import MODEL, make_learner

Array = np.ndarray[Any, Any]
ANALYSIS, PICTURE = "analysis.json", "analysis.png"
ANALYSED = ("organics", "gru")
STARTS = 4
"""Trials of each input from whose states fixed points are looked for."""
SELECTIVE = 0.1
"""Share of a unit's variance from which on it is called selective."""


class Net(NamedTuple):
    """A trained recurrent net as a map, in float64.

    Attributes
    ----------
    units : int
        The first so many entries of the state are what the readout sees: y, or h.
    start : array (d,)
    step : callable
        From states (B, d) and inputs (B, k) to the next states.
    readout : callable
        From units (..., n) to outputs.
    bound : float
        No state has larger entries: 1 of a GRU.
    prove : callable or None
        From a constant input (k,) and a state near a fixed point to its
        :class:`organics_core.CellProof`.
    derivative : callable or None
        From a state (d,) and an input (k,) to the derivative (d, d) of the step.
    """

    units: int
    start: Array
    step: Callable[[Array, Array], Array]
    readout: Callable[[Array], Array]
    bound: float
    prove: Callable[[Array, Array], oc.CellProof] | None
    derivative: Callable[[Array, Array], Array] | None = None

    def run(self, x: Array) -> Array:
        """States (N, T, d) under inputs x (N, T, k)."""
        state, states = np.tile(self.start, (len(x), 1)), []
        for step in np.moveaxis(x, 1, 0):
            state = self.step(state, step)
            states.append(state)
        return np.stack(states, axis=1)

    def jacobian(self, state: Array, x: Array, h: float = 1e-6) -> Array:
        """Of the map at a state (d,), by central differences where it has no derivative."""
        if self.derivative is not None:
            return self.derivative(state, x)
        moves = h * np.eye(len(state))
        inputs = np.tile(x, (len(state), 1))
        return np.asarray((self.step(state + moves, inputs) - self.step(state - moves, inputs)).T / (2 * h))


def read(folder: Path) -> tuple[Config, Net, Trials]:
    """The config, the net and the test trials of a run of ``organics train``.

    Raises
    ------
    ValueError
        Where there is none, or none that can be analysed.
    """
    if not (folder / MODEL).is_file():
        raise ValueError(f"{folder} holds no finished run of organics train: there is no {MODEL}")
    arrays, record = load_checkpoint(folder / MODEL)
    config = Config(**completed(record["config"]))
    if not config.task.startswith(PREFIX):
        raise ValueError(f"{folder} was trained on {config.task}; only cognitive tasks, {PREFIX}NAME, are analysed")
    if config.framework != "torch" or config.model not in ANALYSED:
        models = " and ".join(ANALYSED)
        raise ValueError(f"{models} of torch are analysed, {folder} holds {config.model} of {config.framework}")
    import torch

    parts = trial_parts(config.task, config.task_options, config.samples)
    here = replace(config, device="cpu")  # wherever it was trained
    model: Any = make_learner(here, of_trials(config.task, parts)).model  # type: ignore[attr-defined]
    model.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
    model.double()
    layer, readout = model.layer, [p.detach().numpy() for p in (model.readout.weight, model.readout.bias)]
    if layer.num_layers > 1 or layer.bidirectional or (config.model == "organics" and layer.bias):
        raise ValueError(f"nets of one layer, one direction and without biases are analysed, {folder} holds another")
    bound, prove, derivative = math.inf, None, None
    if config.model == "gru":
        bound = 1.0

        def step(states: Array, x: Array) -> Array:
            with torch.no_grad():
                return np.asarray(layer(torch.tensor(x)[:, None], torch.tensor(states)[None])[1][0])

        start = np.zeros(layer.hidden_size)
    else:
        (cell,) = layer.cells
        p = oc.CellParameters(*(None if p is None else p.detach().numpy() for p in cell.fields()))
        options = {"max_rates": cell.max_rates, "variant": cell.variant}
        start = np.concatenate([part.detach().numpy() for part in cell.start_state()])

        def step(states: Array, x: Array) -> Array:
            return np.concatenate(oc.cell_step(p, oc.CellState(*np.split(states, 4, axis=-1)), x, **options), axis=-1)

        def prove(x: Array, state: Array) -> oc.CellProof:
            return oc.prove_cell(p, x, start=oc.CellState(*np.split(state, 4)), **options)

        def derivative(state: Array, x: Array) -> Array:
            return np.asarray(oc.cell_jacobian(p, oc.CellState(*np.split(state, 4)), x, **options))

    net = Net(layer.hidden_size, start, step, lambda y: y @ readout[0].T + readout[1], bound, prove, derivative)
    return config, net, parts[-1]


def settle(net: Net, x: Array, state: Array, delay: float = 1.0) -> Array | None:
    """The fixed point to which the circuit leads from a state under a constant input, or None.

    Implicit Euler steps, which begin with ``delay`` steps of the net and lengthen as
    the motion slows (pseudo-transient continuation): in the end Newton's method.
    From ``delay=inf`` it is that throughout, and finds what repels, too.
    """
    motion = net.step(state[None], x[None])[0] - state
    for _ in range(100):
        size = np.linalg.norm(motion)
        if not np.isfinite(size):
            return None
        if np.max(np.abs(motion)) <= 1e-9 * (1 + np.max(np.abs(state))):
            return state
        here = (1 + 1 / delay) * np.eye(len(state)) - net.jacobian(state, x)
        try:
            state = state + np.linalg.solve(here, motion)
        except np.linalg.LinAlgError:
            return None
        motion = net.step(state[None], x[None])[0] - state
        delay = max(0.5, 1.1 * delay * float(np.clip(size / np.linalg.norm(motion), 0.5, 2.0)))
    return None


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a circuit without an attractor may go anywhere
def fixed_points(net: Net, x: Array, starts: Array, box: tuple[Array, Array]) -> dict[str, Any]:
    """The fixed points (F, d) under a constant input that are found from some states (S, d).

    From each state by the circuit's own course, where ``reached`` says how many come
    to each; and by Newton's method, which finds
    those that repel, too, of which those within a box are kept.
    """
    found: list[Array] = []
    reached: list[int] = []
    for delay in (1.0, math.inf):
        for start in starts:
            point = settle(net, x, start, delay)
            own = math.isfinite(delay)
            low, high = (-net.bound, net.bound) if own else box
            if point is None or not np.all((point >= low) & (point <= high)):
                continue
            for k, other in enumerate(found):
                if np.max(np.abs(point - other)) < 1e-5 * (1 + np.max(np.abs(other))):
                    reached[k] += own
                    break
            else:
                found.append(point)
                reached.append(int(own))
    return {"points": found, "reached": reached}


def groups(values: Any) -> Array | None:
    """Labels (N,) of trials: integers as they are, of other values the place among all that there are, in order.

    Of more than eight numbers their quarters. None where all are alike, and for more than eight texts.
    """
    values = np.asarray([str(v) if v is None or isinstance(v, (tuple, list, np.ndarray)) else v for v in values])
    kinds, labels = np.unique(values, return_inverse=True)
    if len(kinds) > 8:
        if values.dtype.kind not in "iuf":
            return None
        labels = np.searchsorted(np.quantile(values, (0.25, 0.5, 0.75)), values)
    elif values.dtype.kind in "iu":
        labels = values
    return labels if len(np.unique(labels)) > 1 else None


def explained(units: Array, labels: Array) -> Array:
    """Share (..., n) of the variance of units (N, ..., n) over the trials that lies between groups: eta squared."""
    mean, total = units.mean(axis=0), units.var(axis=0)
    between = sum(
        np.mean(labels == label) * (units[labels == label].mean(axis=0) - mean) ** 2 for label in np.unique(labels)
    )
    return np.asarray(np.where(total > 1e-12, between / np.where(total > 1e-12, total, 1.0), 0.0))


def analyse(folder: Path) -> dict[str, Any]:
    """The analysis of a run in a folder, on its test trials.

    Returns
    -------
    dict
        ``config``; ``units`` (N, T, n); ``labels`` (N,) by variable; ``inputs``, each
        with its fixed points; ``selectivity`` by variable: the share of each unit's
        variance over the trials that the variable explains, ``"time"`` (T, n), and at
        the end of each period (n,).
    """
    config, net, trials = read(folder)
    x = trials.x.astype(np.float64)
    states = net.run(x)
    units = states[..., : net.units]
    answers = net.readout(units)[:, -1]
    classes = trials.y.ndim == 2
    labels: dict[str, Array] = {}
    variables = {name: [c.get(name) for c in trials.conditions] for name in trials.conditions[0]}
    actions = {
        "right action": trials.y[:, -1] if classes else trials.y[:, -1, -1],
        "choice": answers.argmax(-1) if classes else answers[:, -1],
    }
    for name, values in {**actions, **variables}.items():
        label = groups(values)
        if label is not None and not any(name != "choice" and _same(label, other) for other in labels.values()):
            labels[name] = label
    if not labels:
        raise ValueError(f"the trials of {config.task} are all alike: there is nothing to be selective for")
    rows = np.arange(len(x))
    low, high = states.min(axis=(0, 1)), states.max(axis=(0, 1))
    box = low - 0.5 * (high - low), high + 0.5 * (high - low)
    inputs: list[dict[str, Any]] = []
    selectivity: dict[str, dict[str, Array]] = {
        name: {"time": explained(units, label)} for name, label in labels.items()
    }
    for period in trials.periods[0]:
        lasts = np.array([own[period][1] - 1 for own in trials.periods])
        lengths = np.array([own[period][1] - own[period][0] for own in trials.periods])
        if not np.all(lengths > 0):
            continue
        ends = states[rows, lasts]
        for name, label in labels.items():
            selectivity[name][period] = explained(ends[:, : net.units], label)
        inside = np.stack([x[k, slice(*own[period])].mean(axis=0) for k, own in enumerate(trials.periods)])
        for given, mask in _inputs(inside, labels):
            drive = inside[mask].mean(axis=0)
            starts = ends[mask][:STARTS]
            found = fixed_points(net, drive, starts, box)
            here = {"period": period, "given": given, "input": drive, "starts": len(starts)}
            pairs = zip(found["points"], found["reached"], strict=True)
            points = [_point(net, drive, point, classes) | {"reached": reached} for point, reached in pairs]
            for point in points:
                if point["rate"] >= 0:  # long implicit steps may end at one that the circuit does not settle at
                    point["reached"] = 0
            inputs.append(here | {"unsettled": len(starts) - sum(p["reached"] for p in points), "points": points})
    return {
        "config": config,
        "units": units,
        "labels": labels,
        "inputs": inputs,
        "selectivity": selectivity,
    }


def _point(net: Net, x: Array, point: Array, classes: bool) -> dict[str, Any]:
    """What there is to say of a fixed point."""
    spectrum = np.linalg.eigvals(net.jacobian(point, x))
    rate, proof = float(spectrum.real.max() - 1), None
    if net.prove is not None and rate < 0:
        proof = net.prove(x, point)
        if not np.max(np.abs(np.concatenate(proof.state) - point)) < 1e-6 * (1 + np.max(np.abs(point))):
            proof = None  # of another fixed point
    output = net.readout(point[: net.units])
    return {
        "state": point,
        "spectrum": spectrum,
        "rate": rate,
        "growing": int((spectrum.real > 1).sum()),
        "radius": float(np.abs(spectrum).max()),
        "circuit_proven": None if net.prove is None else bool(proof and proof.continuous),
        "map_proven": None if net.prove is None else bool(proof and proof.discrete),
        "output": int(output.argmax()) if classes else output,
    }


def _same(a: Array, b: Array) -> bool:
    """Whether two labellings divide the trials alike."""
    return len({*zip(a, b, strict=True)}) == len(np.unique(a)) == len(np.unique(b))


def _inputs(means: Array, labels: dict[str, Array]) -> list[tuple[dict[str, int], Array]]:
    """The trials (N,) of each kind of input (N, k), told by the variables that move its mean by more than 0.05.

    By the first of these alone where all would make more than twelve kinds.
    """
    moving = {
        name: label
        for name, label in labels.items()
        if name != "choice"
        and np.ptp([means[label == value].mean(axis=0) for value in np.unique(label)], axis=0).max() > 0.05
    }
    for count in (len(moving), 1):
        names = list(moving)[:count]
        kinds = np.stack([np.zeros(len(means), dtype=int), *(moving[name] for name in names)], axis=-1)
        found = np.unique(kinds, axis=0)
        if len(found) <= 12:
            break
    return [(dict(zip(names, kind[1:].tolist(), strict=True)), np.all(kinds == kind, axis=-1)) for kind in found]


def save(found: dict[str, Any], folder: Path) -> None:
    """The picture, where there is matplotlib, and then the numbers: where these are, all is."""
    from organics_cli.console import write_json

    try:
        write_atomically(folder / PICTURE, draw(found))
    except ImportError:
        print("matplotlib is not installed: no picture is drawn", file=sys.stderr)
    write_json(folder / ANALYSIS, record(found))


def record(found: dict[str, Any]) -> dict[str, Any]:
    """What ``analysis.json`` holds."""
    skipped = ("state", "spectrum")
    inputs = [
        i | {"points": [{k: v for k, v in p.items() if k not in skipped} for p in i["points"]]} for i in found["inputs"]
    ]
    ends = {n: {p: np.round(v, 4) for p, v in s.items() if p != "time"} for n, s in found["selectivity"].items()}
    return {"task": found["config"].task, "model": found["config"].model, "inputs": inputs, "selectivity": ends}


def print_analysis(found: dict[str, Any]) -> None:
    """Both tables."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        for column in columns:
            made.add_column(column, no_wrap=True)
        return made

    console = Console()
    columns = ("period", "given", "reached by", "largest Re λ", "largest |λ|", "output")
    points = table("Fixed points at mean inputs, of the circuit (Re λ) and of its steps (|λ|)", *columns)
    for i in found["inputs"]:
        given = i["period"], ", ".join(f"{name} {value}" for name, value in i["given"].items())
        for p in i["points"]:
            output = str(p["output"] if isinstance(p["output"], int) else np.round(p["output"], 2))
            rate, radius = (
                f"{value:.3g}{' *' if proven else ''}"
                for value, proven in ((p["rate"], p["circuit_proven"]), (p["radius"], p["map_proven"]))
            )
            points.add_row(*given, f"{p['reached']} of {i['starts']}", rate, radius, output)
        if not i["points"]:
            points.add_row(*given, "none found", "-", "-", "-")
    console.print(points)
    console.print("*: proven stable. Stable: Re λ < 0, per step; |λ| < 1.", highlight=False)
    units = table(f"Selective units: more than {SELECTIVE:.0%} of the variance explained", "variable", "at the end of")
    for column in ("units", "largest"):
        units.add_column(column, justify="right")
    for name, own in found["selectivity"].items():
        for period, shares in own.items():
            if period != "time":
                count = f"{(shares > SELECTIVE).sum()} of {len(shares)}"
                units.add_row(name, period, count, f"{shares.max():.2f} (unit {shares.argmax()})")
    console.print(units)


def draw(found: dict[str, Any]) -> bytes:
    """Trajectories in the plane of two principal axes, eigenvalues, and selectivity over time and units, as a PNG."""
    from organics_plot.analysis import hidden_trajectories, principal_axes
    from organics_plot.styles import COLORS, INK, SHADE, distinct, letters, new_figure, ramp, style

    units, labels = found["units"], found["labels"]
    points = [point for given in found["inputs"] for point in given["points"]]
    shown = labels.get("right action", np.zeros(len(units)))
    config = found["config"]
    with style():
        figure, axes = new_figure(2, 2, (12.5, 9.5))
        center, directions, shares = principal_axes(units)
        paths = (units - center) @ directions.T
        kinds = np.unique(shown)  # of all trials, so that colours are the same where some are not drawn
        means = np.stack([paths[shown == label].mean(axis=0) for label in kinds])
        common: dict[str, Any] = {"explained": shares, "classes": list(kinds), "ax": axes[0, 0]}
        ax = hidden_trajectories(paths[:60], shown[:60], lw=0.6, alpha=0.3, **common)
        hidden_trajectories(means, kinds, lw=2.5, alpha=1.0, **common)
        handles = ax.get_legend_handles_labels()[0][: len(means)]
        for stable, fill in ((True, INK), (False, "white")):
            here = [p["state"][: units.shape[-1]] for p in points if (p["rate"] < 0) == stable]
            if here:
                at = (np.stack(here) - center) @ directions.T
                what = "fixed point, stable" if stable else "fixed point, unstable"
                handles += ax.plot(*at.T, "D", ms=6, mfc=fill, mec=INK, mew=1.2, zorder=6, label=what)
        of = "of y" if config.model == "organics" else "of h"
        ax.set(xlabel=ax.get_xlabel().replace("of y", of), ylabel=ax.get_ylabel().replace("of y", of))
        ax.set_title("Trials and their means")
        ax.legend(handles=handles, title="Right action")
        ax = axes[0, 1]
        turn = np.linspace(0, 2 * np.pi, 200)
        ax.fill(np.cos(turn), np.sin(turn), color=SHADE, lw=0, zorder=0)
        for stable, color in ((True, COLORS["blue"]), (False, COLORS["red"])):
            values = [p["spectrum"] for p in points if (p["rate"] < 0) == stable]
            if values:
                every = np.concatenate(values)
                label = f"{len(values)} {'' if stable else 'un'}stable"
                ax.plot(every.real, every.imag, ".", ms=4, color=color, label=label)
        ax.set(xlabel="Re λ", ylabel="Im λ", title="Eigenvalues of a step at the fixed points", aspect="equal")
        if points:
            ax.legend(title="Fixed points in continuous time")
        else:
            ax.text(0, 0, "no fixed point found", ha="center", va="center", color=INK)
        ax = axes[1, 0]
        steps = np.arange(1 - units.shape[1], 1)
        for (name, own), look in zip(found["selectivity"].items(), distinct(len(labels)), strict=True):
            ax.plot(steps, 100 * own["time"].mean(axis=-1), label=name, **look)
        ax.set(xlabel="Step before the end", ylabel="Variance explained (%)", title="Selectivity, mean of the units")
        ax.set_ylim(bottom=0)
        ax.legend()
        ax = axes[1, 1]
        last = np.stack([own["time"][-1] for own in found["selectivity"].values()])
        image = ax.imshow(
            100 * last[:, np.argsort(-last[0])],
            aspect="auto",
            cmap=ramp("#FFFFFF"),
            vmin=0,
            vmax=100,
            interpolation="none",
        )
        ax.set_yticks(range(len(labels)), list(labels))
        ax.set(xlabel="Units, in order of the first row", title="Selectivity at the last step")
        figure.colorbar(image, ax=ax, label="Variance explained (%)")
        result = letters(figure)
        result.suptitle(f"{config.model} on {config.task.removeprefix(PREFIX)}")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
