"""Proofs in words: what ``organics certify`` prints of them, saves and verifies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

import organics_core as oc

from .console import EXIT_NOT_STABLE, EXIT_STABLE, console, seconds

_COUNTED = {True: "stable", False: "unstable", None: "of a fixed point alone"}
_UNTOLD = {True: "stable, by theorem", False: "unstable", None: "nothing is claimed of it"}
_STYLES = {True: "green", False: "red", None: "yellow"}


def check_name(option: str, path: Path) -> None:
    """ValueError, naming the option, for a file that cannot hold a proof."""
    if path.suffix != ".npz":
        raise ValueError(f"{option} must be a file of a proof, ending in .npz, got {str(path)!r}")


def prove(screen: Console, circuit: oc.Circuit, z: Any, variant: str, state: oc.State, save: Path | None) -> oc.Proof:
    """Prove what can be proven of the fixed point near ``state``, print it, and save it if asked."""
    proof = oc.prove(circuit, z, variant=variant, state=state)
    screen.print(_words(proof))
    if save is not None:
        proof.save(save)
        screen.print(f"saved to {save}; organics certify --check {save} verifies it", soft_wrap=True, markup=False)
    screen.print()
    return proof


def check(path: Path) -> int:
    """Verify the proof of a file, and print what it says if it holds; 0 where it does and says stable."""
    check_name("--check", path)
    proof = oc.load_proof(path)
    screen = console()
    verdict = oc.check_proof(proof)
    screen.print()
    screen.print(Text(f"{'✓' if verdict.valid else '✗'} {verdict.reason}", style="green" if verdict.valid else "red"))
    if not verdict.valid:
        return EXIT_NOT_STABLE
    if np.ndim(proof.radius):
        told = np.asarray(proof.stable, dtype=object)
        counts = ", ".join(f"{np.sum(told == key)} {word}" for key, word in _COUNTED.items())
        screen.print(f"a batch of {told.size} proofs: {counts}")
    else:
        screen.print(_words(proof._replace(reason=_UNTOLD[proof.stable])))  # its own words were not verified
    stable = bool(np.all(np.asarray(proof.stable, dtype=object) == True))  # noqa: E712
    return EXIT_STABLE if stable else EXIT_NOT_STABLE


def _words(proof: oc.Proof) -> Table:
    """What is proven, for a reader who has never heard of Lyapunov."""
    table = Table(
        box=None, show_header=False, padding=(0, 2, 0, 0), title="Proof", title_justify="left", title_style="bold"
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    if not np.isfinite(proof.radius):
        table.add_row("", Text(proof.reason, style=_STYLES[proof.stable]))
        return table
    where = f"exactly one in the box around this one, at most {_above(proof.radius)} away in every y and a"
    table.add_row("fixed point", where)
    if proof.stable is None:
        table.add_row("stability", Text(proof.reason, style="yellow"))
    elif proof.stable is False:
        table.add_row("stability", Text("repels, proven: some disturbances, however small, grow", style="red"))
    elif not np.isfinite(proof.decay_rate):
        table.add_row("stability", Text(proof.reason, style="green"))
    else:
        table.add_row("stability", Text("stable, proven: what is disturbed a little comes back", style="green"))
        table.add_row(
            "decay rate",
            f"at least {_below(proof.decay_rate)} /s: a small disturbance, measured by sqrt(x'px), falls to 37 % "
            f"within {seconds(1.01 / float(proof.decay_rate))}, and again in each such time",
        )
    if np.isfinite(proof.basin):
        alone = np.sqrt(proof.basin / np.diagonal(proof.p))
        n = len(proof.state.y)
        table.add_row(
            "basin",
            f"a kick to any single y of up to {_below(np.min(alone[:n]))}, or to any single a of up to "
            f"{_below(100 * np.min(alone[n:] / proof.state.a))} % of it, is undone; in general every start with "
            f"x'px <= {_below(proof.basin)} (x: the distance from here)",
        )
    if proof.parameter_fraction or np.any(proof.z_radius):
        table.add_row(
            "range", f"every parameter ± {100 * proof.parameter_fraction:g} %, z ± {np.max(proof.z_radius):g}, at once"
        )
    table.add_row("", Text("in float64 with every rounding bounded; no eigenvalue is trusted", style="dim"))
    return table


def _below(value: Any) -> str:
    """Three digits that do not exceed the value."""
    return f"{0.99 * float(value):.3g}"


def _above(value: Any) -> str:
    """Three digits that are not less than the value."""
    return f"{1.01 * float(value):.3g}"
