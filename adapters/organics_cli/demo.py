"""``organics demo``: simulate, solve, certify, cross-check and train, each on a page of its own."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import organics_agree
import organics_core as oc
from organics_agree.printing import as_json, rich_table
from organics_plot import (
    ContrastExperiment,
    agreement_figure,
    contrast_experiment,
    contrast_response_figure,
    overview_figure,
    responses_figure,
    save,
    spectrum_figure,
    training_figure,
)
from organics_plot.styles import percent
from organics_train.records import EpochRecord

from .console import console, output_folder, quiet_matplotlib, seconds, versions, write_json

FRAMEWORKS = ("jax", "torch")
"""Where the classifier can be trained."""
TARGET = 0.95
"""Test accuracy to reach."""
HIDDEN, CLASSES, EPOCHS, QUICK_EPOCHS, SEED = 64, 10, 40, 2, 1
RATES = oc.MaxRates(y=1.0, a=0.5, b=0.5)
"""Eight rows are a short sequence: the rates are larger than the paper's."""
CLOSE = 1e-4
"""Largest relative distance of a simulation's end from its fixed point."""


class Part(NamedTuple):
    """What a part of the tour found.

    Attributes
    ----------
    good : bool or None
        Whether it holds; None where it could not be looked at.
    line : str
        For the summary.
    facts : dict
        For the JSON.
    pictures : tuple of str
        Names of the files drawn.
    """

    good: bool | None
    line: str
    facts: dict[str, Any]
    pictures: tuple[str, ...]


class Digits(NamedTuple):
    """Scikit-learn's handwritten digits, rows as a sequence: inputs (N, 8, 8) in [0, 1] and classes (N,)."""

    x_train: np.ndarray[Any, Any]
    y_train: np.ndarray[Any, Any]
    x_test: np.ndarray[Any, Any]
    y_test: np.ndarray[Any, Any]


def digits() -> Digits:
    """1,437 digits to train on and 360 to test, every class in both alike."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = (data.images / 16.0).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        images, data.target, test_size=360, random_state=0, stratify=data.target
    )
    return Digits(x_train, y_train, x_test, y_test)


def simulated(screen: Any, experiment: ContrastExperiment, out: Path) -> Part:
    """Responses against the closed form."""
    e = experiment
    last = int(np.searchsorted(e.times, e.off, side="right")) - 1
    found = [part[last] for part in e.trajectory.state]
    gaps = [
        np.max(np.abs(mine - theirs), axis=-1) / np.max(np.abs(theirs), axis=-1)
        for mine, theirs in zip(found, e.steady.state, strict=True)
    ]
    gap = np.maximum(*gaps)
    preferred = e.population.nearest(e.orientation)
    table = _table("Firing rate ⌊y⌋² of the preferring neuron")
    for name in ("contrast", "simulation", "normalization equation", "distance"):
        table.add_column(name, justify="right")
    for k, contrast in enumerate(e.contrasts):
        table.add_row(
            percent(contrast), f"{e.sustained[k, preferred]:.6f}", f"{e.predicted[k, preferred]:.6f}", f"{gap[k]:.0e}"
        )
    screen.print(table)
    screen.print("[dim]distance: largest relative difference from the fixed point, over all neurons, y and a[/]")
    pictures = (
        save(overview_figure(e), out / "overview.png"),
        save(responses_figure(e), out / "responses.png"),
        save(contrast_response_figure(e), out / "contrast-response.png"),
    )
    facts = {
        "neurons": len(e.population.orientations),
        "contrasts": e.contrasts,
        "rates_simulated": e.sustained[:, preferred],
        "rates_predicted": e.predicted[:, preferred],
        "distance": gap,
    }
    worst = float(np.max(gap))
    return Part(
        bool(worst <= CLOSE),
        f"the simulation ends at its fixed point, to {worst:.0e}",
        facts,
        tuple(path.name for path in pictures),
    )


def certified(screen: Any, experiment: ContrastExperiment, out: Path) -> Part:
    """The certificate, and eigenvalues that must agree with it."""
    e = experiment
    circuit = e.population.circuit
    certificate = oc.certify(circuit, e.population.drive(e.contrasts, e.orientation))
    abscissa = np.asarray(oc.spectral_abscissa(circuit, certificate.state))
    smallest = oc.check_certificate(circuit, certificate).q
    table = _table("Stability at every contrast")
    for name in ("contrast", "certified", "margin", "smallest q", "largest Re λ", "slowest decay"):
        table.add_column(name, justify="right")
    for k, contrast in enumerate(e.contrasts):
        stable = bool(certificate.stable[k])
        table.add_row(
            percent(contrast),
            Text("stable", style="green") if stable else Text("no", style="bold red"),
            f"{certificate.margin[k]:.1e}",
            f"{smallest[k]:.0e}",
            f"{abscissa[k]:.1f} /s",
            seconds(-1.0 / abscissa[k]),
        )
    screen.print(table)
    screen.print(
        "[dim]certified: the damping matrix is an M-matrix (margin > 0), so the energy xᵀp x cannot grow "
        "(eigenvalues of q ≥ 0, to round-off)[/]"
    )
    good = bool(np.all(certificate.stable)) and bool(np.all(abscissa < 0))
    picture = save(spectrum_figure(e), out / "eigenvalues.png")
    facts = {
        "stable": certificate.stable,
        "margin": certificate.margin,
        "smallest_eigenvalue_of_q": smallest,
        "spectral_abscissa": abscissa,
    }
    line = f"certified stable at every contrast; largest Re λ {float(np.max(abscissa)):.0f} /s"
    return Part(good, line if good else "not stable at every contrast", facts, (picture.name,))


def agreed(screen: Any, out: Path, *, quick: bool) -> Part:
    """The short table of all installed libraries, in float64."""
    columns = [column for column in organics_agree.installed() if column.dtype == "float64"]
    quantities = organics_agree.compact()[: 2 if quick else None]
    with screen.status("comparing …") as status:
        table = organics_agree.compare(
            columns, quantities=quantities, on_step=lambda column, name: status.update(f"{column}: {name}")
        )
    screen.print(rich_table(table))
    others = [column.library for column in table.columns if not column.reference]
    if not others:
        screen.print("[dim]numpy is alone here; 'organics-core\\[jax]' and 'organics-core\\[torch]' bring others[/]")
        return Part(None, "numpy is the only array library here", as_json(table), ())
    screen.print("[dim]bound 1e-10; `organics agree` has more rows, and float32[/]")
    picture = save(agreement_figure(table), out / "agreement.png")
    worst = max(cell.difference for cell in table.cells.values())
    line = f"numpy and {', '.join(others)} agree, to {worst:.0e}" if table.ok else "the array libraries disagree"
    return Part(table.ok, line, as_json(table), (picture.name,))


def trained(screen: Any, frameworks: Sequence[str], out: Path, *, quick: bool) -> Part:
    """The digits, learned by backpropagation through time in every framework."""
    if not frameworks:
        line = "no training: neither jax nor torch is installed; pip install 'organics-core[jax]'"
        screen.print(Text(line, style="yellow"))
        return Part(None, line, {}, ())
    data = digits()
    epochs = QUICK_EPOCHS if quick else EPOCHS
    records: dict[str, list[EpochRecord]] = {}
    bar = Progress(
        TextColumn("{task.description:5}"),
        BarColumn(bar_width=24),
        TextColumn("epoch {task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        console=screen,
    )
    with bar:
        for name in frameworks:
            row = bar.add_task(name, total=epochs, numbers="compiling" if name == "jax" else "starting")

            def show(record: EpochRecord, row: Any = row) -> None:
                numbers = f"loss {record.loss:.3f}  test {100 * record.test_accuracy:.1f} %"
                bar.update(row, advance=1, numbers=numbers)

            records[name] = _train(name, data, epochs, show)
    table = _table(f"Digits read row by row: {HIDDEN} units, {epochs} epochs, no gradient clipping")
    for heading in ("framework", "test accuracy", "loss", "largest gradient", "largest Re λ", "time"):
        table.add_column(heading, justify="left" if heading == "framework" else "right")
    for name, run in records.items():
        good = run[-1].test_accuracy >= TARGET
        table.add_row(
            name,
            Text(f"{100 * run[-1].test_accuracy:.1f} %", style="green" if good else ""),
            f"{run[-1].loss:.4f}",
            f"{max(record.gradient_norm_max for record in run):.2g}",
            f"{run[-1].spectral_abscissa:+.2g} /step",
            seconds(sum(record.seconds for record in run)),
        )
    screen.print(table)
    if any(record.spectral_abscissa > 0 for run in records.values() for record in run):
        screen.print(
            "[dim]Re λ > 0: the learned W_r is no longer the identity, so the certificate does not speak of it; "
            "along a digit transients may grow. The gradients above are as they came, unclipped[/]"
        )
    picture = save(training_figure(records, target=None if quick else TARGET), out / "training.png")
    scores = {name: run[-1].test_accuracy for name, run in records.items()}
    told = ", ".join(f"{name} {100 * score:.1f} %" for name, score in scores.items())
    facts = {"test_accuracy": scores, "epochs": {name: [r._asdict() for r in run] for name, run in records.items()}}
    finite = all(math.isfinite(score) for score in scores.values())
    return Part(
        finite and (quick or min(scores.values()) >= TARGET),
        f"handwritten digits learned, test accuracy: {told}",
        facts,
        (picture.name,),
    )


def _train(name: str, data: Digits, epochs: int, on_epoch: Callable[[EpochRecord], None]) -> list[EpochRecord]:
    """Train the classifier in one framework."""
    options: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": 64,
        "learning_rate": 0.01,
        "lr_step": 20,
        "lr_gamma": 0.5,
        "seed": SEED,
        "x_test": data.x_test,
        "y_test": data.y_test,
        "on_epoch": on_epoch,
    }
    size = (data.x_train.shape[-1], HIDDEN, CLASSES)
    if name == "jax":
        import jax

        import organics_jax

        model = organics_jax.ORGaNICsClassifier(*size, key=jax.random.key(SEED), max_rates=RATES)
        _, records = organics_jax.fit(model, data.x_train, data.y_train, **options)
    else:
        import organics_torch

        module = organics_torch.ORGaNICsClassifier(*size, seed=SEED, max_rates=RATES)
        records = organics_torch.fit(module, data.x_train, data.y_train, **options)
    return list(records)


def chosen_frameworks(wanted: str) -> tuple[str, ...]:
    """The frameworks to train in; ValueError for an unknown one, ImportError for a missing one."""
    if wanted not in ("all", *FRAMEWORKS):
        raise ValueError(f"unknown framework {wanted!r} for --framework; choose one of all, {', '.join(FRAMEWORKS)}")
    here = tuple(name for name in FRAMEWORKS if importlib.util.find_spec(name) is not None)
    if wanted == "all":
        return here
    if wanted not in here:
        raise ImportError(f"{wanted} is not installed; install it with: pip install 'organics-core[{wanted}]'")
    return (wanted,)


def run(out: Path, *, quick: bool = False, framework: str = "all") -> int:
    """Take the tour; 1 if anything did not hold."""
    frameworks = chosen_frameworks(framework)
    out = output_folder(out)
    quiet_matplotlib()
    screen = console()
    began = time.perf_counter()
    screen.print("\n[bold]ORGaNICs[/]: recurrent circuits that compute divisive normalization, and are stable\n")
    parts: dict[str, Part] = {}

    screen.rule("[bold]1  Simulate and solve[/]", align="left")
    experiment = contrast_experiment()
    parts["simulate"] = simulated(screen, experiment, out)
    screen.print()
    screen.rule("[bold]2  Certify[/]", align="left")
    parts["certify"] = certified(screen, experiment, out)
    screen.print()
    screen.rule("[bold]3  Agree[/]", align="left")
    parts["agree"] = agreed(screen, out, quick=quick)
    screen.print()
    screen.rule("[bold]4  Train[/]", align="left")
    parts["train"] = trained(screen, frameworks, out, quick=quick)

    good = all(part.good is not False for part in parts.values())
    took = time.perf_counter() - began
    summary = {
        "ok": good,
        "seconds": took,
        "quick": quick,
        "versions": versions(),
        **{name: {**part.facts, "ok": part.good, "pictures": part.pictures} for name, part in parts.items()},
    }
    file = write_json(out / "summary.json", summary)
    pictures = [name for part in parts.values() for name in part.pictures]
    marks = {True: ("✓ ", "bold green"), False: ("✗ ", "bold red"), None: ("- ", "yellow")}
    lines = [Text.assemble(marks[part.good], part.line) for part in parts.values()]
    lines += [Text(""), Text(f"{len(pictures)} pictures and {file.name} in {out}{_slash(out)}, {seconds(took)}")]
    screen.print()
    screen.print(Panel(Text("\n").join(lines), title="Summary", title_align="left", expand=False))
    return 0 if good else 1


def _slash(path: Path) -> str:
    return "" if str(path).endswith("/") else "/"


def _table(title: str) -> Table:
    return Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", padding=(0, 1))
