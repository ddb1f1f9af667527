"""``organics simulate`` and ``organics certify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import organics_core as oc
from organics_core import VARIANTS
from organics_core.checks import one_of
from organics_core.circuit import is_identity, size
from organics_core.io.circuits import CircuitFile, SimulationSettings, load_circuit, save_circuit
from organics_core.io.trajectories import save_trajectory

from .console import (
    EXIT_NOT_STABLE,
    EXIT_STABLE,
    console,
    counted,
    output_folder,
    quiet_matplotlib,
    seconds,
    write_json,
)
from .proofs import check_name, prove

ROWS = 12
"""Neurons shown in a table; more are left to the files."""

DETERMINISTIC = tuple(name for name, method in oc.METHODS.items() if not method.stochastic)
"""Methods of ``simulate``; those for noise are left to Python."""

MOST_SEARCHED = 100
"""Neurons up to which ``certify`` looks for other fixed points."""


def load_one(path: Path) -> CircuitFile:
    """Load a circuit file that must hold one circuit, not a batch."""
    loaded = load_circuit(path)
    for name, value in {**loaded.circuit._asdict(), "z": loaded.z}.items():
        if value is not None and np.ndim(value) > (2 if name in ("w", "w_r") else 1):
            raise ValueError(f"{path}: {name} has batch axes (shape {np.shape(value)}); this command takes one circuit")
    return loaded


class Facts(NamedTuple):
    """A steady state and its linear stability."""

    steady: oc.SteadyState
    converged: bool
    abscissa: float
    eigenvalues: Any


def find(circuit: oc.Circuit, z: Any, variant: str) -> Facts:
    """Steady state and spectrum; NaN where none was found."""
    with np.errstate(all="ignore"):  # numbers too large for float64 are reported as not converged
        steady = oc.steady_state(circuit, z, variant=variant)
    converged = bool(steady.converged)
    if not converged:
        return Facts(steady, False, float("nan"), None)
    eigenvalues = oc.spectrum(circuit, steady.state, variant=variant)
    return Facts(steady, True, float(np.max(eigenvalues.real)), eigenvalues)


def simulate(
    path: Path, out: Path, *, method: str | None = None, duration: float | None = None, variant: str | None = None
) -> int:
    """Simulate the circuit of a file; print, plot and save. 1 if the simulation stopped early."""
    circuit, z, settings = load_one(path)
    one_of("method", method or settings.method, DETERMINISTIC)
    one_of("variant", variant or settings.variant, VARIANTS)
    if duration is not None and not (0 < duration < float("inf")):
        raise ValueError(f"--duration must be a positive number of seconds, got {duration:g}")
    settings = settings._replace(
        method=method or settings.method,
        variant=variant or settings.variant,
        duration=duration if duration is not None else settings.duration,
    )
    facts = find(circuit, z, settings.variant)
    stable = facts.converged and facts.abscissa < 0
    if settings.duration is None:
        slow = max(float(np.max(circuit.tau_y)), float(np.max(circuit.tau_a)))
        settings = settings._replace(duration=12.0 / -facts.abscissa if stable else 100.0 * slow)
    assert settings.duration is not None
    times = np.linspace(0.0, settings.duration, settings.points)
    fixed = not oc.METHODS[settings.method].adaptive
    quick = min(float(np.min(circuit.tau_y)), float(np.min(circuit.tau_a)))
    if facts.converged:  # strong drive is quicker than the time constants
        quick = min(quick, 1.0 / float(np.max(np.abs(facts.eigenvalues))))
    substeps = max(1, int(np.ceil((times[1] - times[0]) / (0.05 * quick)))) if fixed else 1
    if substeps > 1_000_000:
        raise ValueError(
            f"--method {settings.method} would need {substeps:.1g} steps between outputs: the circuit is as quick as "
            f"{seconds(quick)}; use dopri5 or rodas5p, which choose their steps, or a weaker input"
        )
    run = oc.simulate(
        circuit,
        z,
        times,
        method=settings.method,
        rtol=settings.rtol,
        atol=settings.atol,
        variant=settings.variant,
        drive="constant",
        substeps=substeps,
    )
    out = output_folder(out)
    stem = path.stem
    quiet_matplotlib()
    from organics_plot import save, simulation_figure

    reached = run.reached
    shown = oc.Trajectory(
        run.times[:reached], oc.State(*(part[:reached] for part in run.state)), run.status, run.steps, run.rejected
    )
    figure = simulation_figure(shown, facts.steady.state if facts.converged else None)
    picture = save(figure, out / f"{stem}.png")
    numbers = out / f"{stem}.json"
    last = oc.State(*(part[reached - 1] for part in run.state))
    distance = relative_distance(last, facts.steady.state) if facts.converged else float("nan")
    arrays = out / f"{stem}-trajectory.npz"
    save_trajectory(arrays, run, prefix="")
    copy = out / f"{stem}.npz"
    written = [numbers, arrays]
    if not same_file(copy, path):  # the file that was read stays as it is
        save_circuit(copy, circuit, z, settings)
        written.append(copy)
    write_json(
        numbers,
        {
            "file": str(path),
            "settings": settings,
            "status": run.message,
            "success": run.success,
            "steps": int(run.steps),
            "rejected": int(run.rejected),
            "end": {"time": float(run.times[reached - 1]), **last._asdict()},
            "steady_state": {
                "converged": facts.converged,
                "iterations": int(facts.steady.iterations),
                "residual": float(facts.steady.residual),
                **facts.steady.state._asdict(),
            },
            "spectral_abscissa": facts.abscissa,
            "relative_distance": distance,
        },
    )

    screen = console()
    screen.print()
    screen.print(_state_table(last, facts.steady.state if facts.converged else None, float(run.times[reached - 1])))
    screen.print()
    facts_table = _facts()
    facts_table.add_row("simulation", Text(run.message, style="green" if run.success else "red"))
    steps = counted(int(run.steps), "step")
    facts_table.add_row("", f"{settings.method}, {steps}, {seconds(settings.duration)}, variant {settings.variant}")
    facts_table.add_row("steady state", _found(facts))
    if facts.converged:
        facts_table.add_row("largest Re λ", _abscissa(facts.abscissa))
        facts_table.add_row("distance", f"{distance:.2g} (largest relative, simulation's end to steady state)")
        if stable and run.success and distance > 1e-2:
            facts_table.add_row("", Text(_apart(facts, last, settings), style="yellow"))
        if not stable:
            facts_table.add_row("", Text("unstable: expect the simulation to end elsewhere", style="yellow"))
    facts_table.add_row("saved", Text(str(picture)))
    for name in written:
        facts_table.add_row("", Text(str(name)))
    screen.print(facts_table)
    return 0 if run.success else EXIT_NOT_STABLE


def same_file(one: Path, other: Path) -> bool:
    """Whether two names stand for one file that exists."""
    return one.exists() and other.exists() and one.samefile(other)


def relative_distance(state: oc.State, other: oc.State) -> float:
    """Largest difference of y and of a, each relative to the largest value of ``other``."""
    worst = 0.0
    for mine, theirs in zip(state, other, strict=True):
        scale = float(np.max(np.abs(theirs))) or 1.0
        worst = max(worst, float(np.max(np.abs(mine - theirs))) / scale)
    return worst


def certify(path: Path, proof: Path | None = None) -> int:
    """Print the certificate, or what stands in for it; save the proof if asked; return the exit code."""
    if proof is not None:
        check_name("--proof", proof)
    circuit, z, settings = load_one(path)
    if proof is not None and same_file(proof, path):
        raise ValueError(f"--proof would replace the circuit file {path}; choose another name")
    screen = console()
    screen.print()
    n = size(circuit)
    variant = settings.variant
    identity = bool(is_identity(np, circuit.w_r))
    if identity and variant == "main":
        try:
            certificate = oc.certify(circuit, z)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        check = oc.check_certificate(circuit, certificate)
        abscissa = float(oc.spectral_abscissa(circuit, certificate.state))
        stable = bool(certificate.stable)
        table = Table(
            box=box.SIMPLE_HEAD,
            title=f"Certificate of stability, {counted(n, 'neuron')}",
            title_justify="left",
            title_style="bold",
        )
        table.add_column("quantity")
        table.add_column("value", justify="right")
        table.add_column("means", style="dim")
        table.add_row("stable", _yes(stable), "C v > 0: C is an M-matrix, decided by one product with W")
        table.add_row(
            "margin",
            f"{float(certificate.margin):.4g}",
            "min (C v) of the driven units, of its positive part; in (0, 1]",
        )
        table.add_row(
            "smallest eigenvalue of p",
            f"{check.p:.3g}",
            "of the largest, diagonal of p scaled to 1; > 0: energy is positive",
        )
        table.add_row("smallest eigenvalue of q", f"{check.q:.3g}", "likewise; ≥ 0 up to round-off: energy never grows")
        table.add_row("JᵀP + PJ + Q", f"{check.residual:.1g}", "of its largest term: 0 up to round-off")
        table.add_row(
            "largest Re λ", f"{abscissa:.4g} /s", f"slowest decay {seconds(-1 / abscissa) if abscissa else '-'}"
        )
        screen.print(table)
        if proof is not None:
            prove(screen, circuit, z, variant, certificate.state, proof)
        screen.print(
            _verdict(
                stable,
                "this fixed point is stable: proven by the certificate, whatever the time constants"
                if stable
                else "not certified",
            )
        )
        return EXIT_STABLE if stable else EXIT_NOT_STABLE
    why = "w_r is not the identity" if not identity else f"variant is {variant}"
    screen.print(f"The certificate is for W_r = I and the main circuit; here {why}.", soft_wrap=True)
    screen.print("Steady state and eigenvalues decide instead:\n")
    facts = find(circuit, z, variant)
    table = _facts()
    table.add_row("steady state", _found(facts))
    table.add_row("how", facts.steady.message)
    table.add_row("residual", f"{float(facts.steady.residual):.2g}")
    stable = facts.converged and facts.abscissa < 0
    with np.errstate(all="ignore"):
        every = oc.find_fixed_points(circuit, z, variant=variant) if n <= MOST_SEARCHED else ()
    if facts.converged:
        table.add_row("largest Re λ", _abscissa(facts.abscissa))
        others = [p for p in every if relative_distance(p.state, facts.steady.state) > 1e-6]
    else:
        others = list(every)
    for point in others[:ROWS]:
        says = "attracts" if point.stable else "repels"
        values = ", ".join(f"{value:.4g}" for value in point.state.y[:ROWS]) + (", …" if n > ROWS else "")
        table.add_row("another fixed point", Text(f"{says}, y = ({values})", style="green" if point.stable else "red"))
    if len(others) > ROWS:
        table.add_row("", f"{len(others) - ROWS} more")
    if n <= MOST_SEARCHED:
        table.add_row("search", every.report)  # type: ignore[union-attr]
    screen.print(table)
    screen.print()
    if facts.converged:
        prove(screen, circuit, z, variant, facts.steady.state, proof)
    attracting = sum(point.stable for point in others)
    if not facts.converged:
        verdict = "no steady state found, so nothing to certify"
    elif stable:
        verdict = "this fixed point is locally stable, by its eigenvalues"
    else:
        verdict = "this fixed point is not stable: it repels"
    if facts.converged and attracting:
        verdict += f"; {attracting} other{'s' if attracting > 1 else ''} found that attract{'s' * (attracting == 1)}"
    elif facts.converged and not stable:
        verdict += "; no fixed point that attracts was found"
    screen.print(_verdict(stable, verdict))
    return EXIT_STABLE if stable else EXIT_NOT_STABLE


def _facts() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _found(facts: Facts) -> Text:
    iterations = int(facts.steady.iterations)
    if not facts.converged:
        return Text(
            f"not found ({counted(iterations, 'iteration')}, residual {float(facts.steady.residual):.2g})", style="red"
        )
    return Text("closed form" if iterations == 0 else f"Newton, {counted(iterations, 'iteration')}")


def _abscissa(value: float) -> Text:
    if value < 0:
        return Text(f"{value:.4g} /s, falls to 37 % in {seconds(-1 / value)}", style="green")
    return Text(f"{value:.4g} /s, grows within {seconds(1 / value) if value else '∞'}", style="red")


def _apart(facts: Facts, end: oc.State, settings: SimulationSettings) -> str:
    """Why the end of a simulation may be far from the steady state that attracts."""
    largest = max(float(np.max(np.abs(state.y))) for state in (facts.steady.state, end))
    if oc.METHODS[settings.method].adaptive and 0 < largest < 100 * settings.atol:
        return f"y is hardly above atol, {settings.atol:g}, below which errors are not controlled: give a smaller one"
    return "not there yet: simulate longer, or another attractor took over"


def _yes(value: bool) -> Text:
    return Text("yes", style="bold green") if value else Text("no", style="bold red")


def _verdict(good: bool, text: str) -> Panel:
    style = "green" if good else "red"
    return Panel(Text(f"{'✓' if good else '✗'} {text}", style=f"bold {style}"), border_style=style, expand=False)


def _state_table(end: oc.State, steady: oc.State | None, time: float) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, title="Steady state and end of the simulation", title_justify="left", title_style="bold"
    )
    table.add_column("neuron", justify="right", style="dim")
    table.add_column("y steady", justify="right")
    table.add_column(f"y at {seconds(time)}", justify="right")
    table.add_column("a steady", justify="right")
    table.add_column(f"a at {seconds(time)}", justify="right")
    n = len(end.y)
    columns: list[list[str]] = []
    for place, last in enumerate(end):  # y, then a
        known = [last[:ROWS]] if steady is None else [steady[place][:ROWS], last[:ROWS]]
        largest = max(float(np.max(np.abs(part))) for part in known)
        style = ".6f" if 1e-2 <= largest < 1e5 or largest == 0 else ".6g"
        texts = [[format(value, style) for value in part] for part in known]
        columns += [["-"] * len(texts[0]), *texts] if steady is None else texts
    for i in range(min(n, ROWS)):
        table.add_row(str(i + 1), *(column[i] for column in columns))
    if n > ROWS:
        table.add_row("…", f"{n - ROWS} more", "", "", "in the JSON")
    return table
