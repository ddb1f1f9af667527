"""The commands and their options. The work is in the modules beside this one, imported when needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import Debug, command, console
from .lazy import Group

app = typer.Typer(
    name="organics",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="ORGaNICs: simulate, certify and train the recurrent circuit that computes divisive normalization.",
    epilog="Start with [bold]organics demo[/bold].",
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="Circuit file, .toml or .npz; organics init writes one.")]


def _version(value: bool) -> None:
    if value:
        import organics_core

        console().print(f"organics-core {organics_core.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
@command
def demo(
    output: Annotated[Path, typer.Option("--output", "--out", "-o", help="Folder for pictures and numbers.")] = Path(
        "organics-output/demo"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Two epochs, and fewer rows in the agreement table.")] = False,
    framework: Annotated[
        str, typer.Option("--framework", help="Where to train: jax, torch, or all that are installed.")
    ] = "all",
    debug: Debug = False,
) -> None:
    """The tour: simulate, solve, certify, cross-check and train a circuit, in under two minutes."""
    from .demo import run

    raise typer.Exit(run(output, quick=quick, framework=framework))


@app.command()
@command
def init(
    name: Annotated[Path, typer.Argument(metavar="NAME", help="Of the file.")] = Path("circuit.toml"),
    kind: Annotated[str, typer.Option("--kind", help="hypercolumn, ring, random, v1 or two-areas.")] = "hypercolumn",
    neurons: Annotated[int | None, typer.Option("--neurons", "-n", help="How many; default: what suits.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of what is random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a file of this name.")] = False,
    debug: Debug = False,
) -> None:
    """Write a commented circuit file to begin with."""
    from .init import init as run

    run(name, kind, neurons, seed, force)


@app.command()
@command
def simulate(
    file: File,
    output: Annotated[
        Path, typer.Option("--output", "--out", "-o", help="Folder for the picture and the numbers.")
    ] = Path("organics-output/simulate"),
    method: Annotated[
        str | None, typer.Option("--method", help="As dopri5, rk4 or rodas5p; default: the file's.")
    ] = None,
    duration: Annotated[float | None, typer.Option("--duration", help="Seconds; default: the file's.")] = None,
    variant: Annotated[
        str | None, typer.Option("--variant", help="main, rectified or rectified_recurrence; default: the file's.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Simulate a circuit from rest and compare its end with its steady state.

    Exit code 1 says that the simulation stopped early; what it reached is saved.
    """
    from .circuits import simulate as run

    raise typer.Exit(run(file, output, method=method, duration=duration, variant=variant))


@app.command()
@command
def certify(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="Circuit file, .toml or .npz.")] = None,
    proof: Annotated[Path | None, typer.Option("--proof", help="Save the proof, .npz.")] = None,
    check: Annotated[Path | None, typer.Option("--check", help="Verify a saved proof instead.")] = None,
    debug: Debug = False,
) -> None:
    """Is this circuit stable? With W_r = I: a certificate. Otherwise: steady state, eigenvalues, and a proof.

    Exit code 0 says stable, 1 not stable (or no steady state found, or a proof that does not hold), 2 bad input.
    """
    if (file is None) == (check is None):
        raise ValueError("certify takes a circuit file, or --check and a proof, and not both")
    if check is not None:
        from .proofs import check as verify

        raise typer.Exit(verify(check))
    from .circuits import certify as run

    assert file is not None
    raise typer.Exit(run(file, proof))
