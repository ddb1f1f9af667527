"""Whole figures, made of the functions that draw on one axes each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import organics_core as oc
from organics_train.records import EpochRecord

from .circuits import contrast_response, eigenvalues, responses, trajectory, tuning_curves
from .population import ContrastExperiment
from .styles import letters, log_axis, new_figure, percent, style
from .training import training_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def responses_figure(experiment: ContrastExperiment) -> Figure:
    """Responses over time of the preferring neuron, and tuning curves of the population.

    Parameters
    ----------
    experiment : ContrastExperiment
        As :func:`contrast_experiment` returns it.

    Returns
    -------
    matplotlib Figure

    Examples
    --------
    >>> import organics_plot as plot
    >>> experiment = plot.contrast_experiment(plot.tuned_population(4), (0.1, 1.0), rtol=1e-4)
    >>> len(plot.responses_figure(experiment).axes)
    2
    """
    with style():
        figure, axes = new_figure(1, 2, (11, 4.6), width_ratios=(1.25, 1))
        responses(experiment, ax=axes[0, 0])
        axes[0, 0].set_title("Responses to gratings of rising contrast")
        tuning_curves(experiment, ax=axes[0, 1])
        axes[0, 1].set_title("Tuning is invariant to contrast")
        axes[0, 1].legend(title="Contrast", loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    return letters(figure)


def contrast_response_figure(experiment: ContrastExperiment) -> Figure:
    """Contrast-response curves: simulation on the normalization equation.

    Parameters
    ----------
    experiment : ContrastExperiment
        As :func:`contrast_experiment` returns it.

    Returns
    -------
    matplotlib Figure

    Examples
    --------
    >>> import organics_plot as plot
    >>> experiment = plot.contrast_experiment(plot.tuned_population(4), (0.1, 1.0), rtol=1e-4)
    >>> len(plot.contrast_response_figure(experiment).axes)
    1
    """
    with style():
        figure, axes = new_figure(1, 1, (6.8, 5.0))
        contrast_response(experiment, ax=axes[0, 0])
        axes[0, 0].set_title("The simulation lands on the normalization equation")
    return letters(figure)


def overview_figure(experiment: ContrastExperiment) -> Figure:
    """The circuit in three panels: responses over time, contrast response on the equation, eigenvalues.

    Parameters
    ----------
    experiment : ContrastExperiment
        As :func:`contrast_experiment` returns it.

    Returns
    -------
    matplotlib Figure

    Examples
    --------
    >>> import organics_plot as plot
    >>> experiment = plot.contrast_experiment(plot.tuned_population(4), (0.1, 1.0), rtol=1e-4)
    >>> len(plot.overview_figure(experiment).axes)
    3
    """
    e = experiment
    with style():
        figure, axes = new_figure(1, 3, (15, 4.6), width_ratios=(1.1, 1, 1.05))
        responses(e, ax=axes[0, 0])
        axes[0, 0].set_title("A neuron sees gratings of rising contrast")
        axes[0, 0].legend(title="Contrast", loc="upper right", bbox_to_anchor=(0.77, 0.93), reverse=True)
        contrast_response(e, ax=axes[0, 1])
        axes[0, 1].set_title("It obeys the normalization equation")
        fine = np.geomspace(e.faintest, e.contrasts.max(), 24)
        found = oc.steady_state(e.population.circuit, e.population.drive(fine, e.orientation)).state
        eigenvalues(e.population.circuit, [oc.State(y, a) for y, a in zip(*found, strict=True)], ax=axes[0, 2])
        axes[0, 2].set_title("The circuit is stable at every contrast")
    return letters(figure)


def _fixed_points(experiment: ContrastExperiment) -> list[oc.State]:
    """The fixed point at every contrast."""
    return [oc.State(y, a) for y, a in zip(*experiment.steady.state, strict=True)]


def spectrum_figure(experiment: ContrastExperiment) -> Figure:
    """Eigenvalues at the fixed point of every contrast, and how damping and rotation change with contrast.

    Parameters
    ----------
    experiment : ContrastExperiment
        As :func:`contrast_experiment` returns it.

    Returns
    -------
    matplotlib Figure

    Examples
    --------
    >>> import organics_plot as plot
    >>> experiment = plot.contrast_experiment(plot.tuned_population(4), (0.1, 1.0), rtol=1e-4)
    >>> len(plot.spectrum_figure(experiment).axes)
    2
    """
    e = experiment
    circuit = e.population.circuit
    with style():
        figure, axes = new_figure(1, 2, (11, 4.8), width_ratios=(1.35, 1))
        eigenvalues(circuit, _fixed_points(e), labels=[percent(c) for c in e.contrasts], ax=axes[0, 0])
        axes[0, 0].set_title("All eigenvalues, at every contrast, are stable")
        fine = np.geomspace(e.faintest, e.contrasts.max(), 60)
        found = oc.steady_state(circuit, e.population.drive(fine, e.orientation)).state
        spectra = np.asarray(oc.spectrum(circuit, found))
        ax = axes[0, 1]
        ax.plot(fine, -1e3 / spectra.real.max(axis=-1), color="#0072B2", label="slowest decay time")
        log_axis(ax, float(fine[0]), float(fine[-1]), percent, (1.0, 3.0))
        ax.set_ylim(bottom=0)
        ax.grid(axis="y")
        ax.set(xlabel="Grating contrast", ylabel="Slowest decay time  1 / |max Re λ|  (ms)")
        ax.set_title("Higher contrast, faster circuit")
        axes[0, 0].legend(
            title="Contrast",
            loc="upper left",
            bbox_to_anchor=(0.0, 0.92),
            frameon=True,
            facecolor="white",
            edgecolor="0.8",
        )
    return letters(figure)


def training_figure(records: Mapping[str, Sequence[EpochRecord]], *, target: float | None = None) -> Figure:
    """Loss, accuracy, gradient norm and largest real eigenvalue part while training.

    Parameters
    ----------
    records : mapping of str to sequences of EpochRecord
        Runs by name.
    target : float, optional
        An accuracy to reach, drawn as a line.

    Returns
    -------
    matplotlib Figure

    Examples
    --------
    >>> from organics_train import EpochRecord
    >>> records = [EpochRecord(k, 2.0 / k, 0.5, 0.5, 1.0, 2.0, -0.01, 3.0) for k in (1, 2, 3)]
    >>> figure = training_figure({"torch": records}, target=0.9)
    """
    titles = {
        "loss": "Loss",
        "test_accuracy": "Test accuracy",
        "gradient_norm": "Gradients, never clipped (band: largest)",
        "spectral_abscissa": "Largest real eigenvalue part",
    }
    with style():
        figure, axes = new_figure(2, 2, (10.5, 7.2))
        for ax, (quantity, title) in zip(axes.flat, titles.items(), strict=True):
            training_curve(records, quantity, target=target if quantity == "test_accuracy" else None, ax=ax)
            ax.set_title(title)
        axes[0, 0].legend(loc="upper right")
    return letters(figure)


def simulation_figure(run: oc.Trajectory, steady: Any, *, title: str = "") -> Figure:
    """Every part of the state over time, such as principal neurons and modulators, with their fixed point dashed.

    Parameters
    ----------
    run : organics_core.Trajectory
        Of one circuit or other model, state (T, n), times in seconds.
    steady : state of the model, or None
        The fixed point, (n,).
    title : str

    Returns
    -------
    matplotlib Figure

    Examples
    --------
    >>> import numpy as np
    >>> import organics_core as oc
    >>> import organics_plot as plot
    >>> circuit, z = oc.Circuit(np.array([[2.0]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.array([1.0])
    >>> run = oc.simulate(circuit, z, np.linspace(0.0, 0.1, 50))
    >>> len(plot.simulation_figure(run, oc.steady_state(circuit, z).state, title="One neuron").axes)  # y and a
    2
    """
    titles = {"y": "Principal neurons", "a": "Modulators"}
    parts = run.state._fields
    with style():
        figure, axes = new_figure(1, len(parts), (5.5 * max(len(parts), 1.4), 4.4))
        for ax, part in zip(axes[0], parts, strict=True):
            trajectory(run, part=part, steady=steady, ax=ax)
            ax.set_title(titles.get(part, part))
        axes[0, -1].legend(title="Neuron", loc="center left", bbox_to_anchor=(1.0, 0.5))
        if title:
            figure.suptitle(title, x=0.01, ha="left")
    return letters(figure)


def agreement_figure(table: Any) -> Figure:
    """Largest relative differences of an agreement table on a logarithmic axis.

    Parameters
    ----------
    table : organics_agree.Agreement
        As ``organics agree`` makes it.

    Returns
    -------
    matplotlib Figure

    Examples
    --------
    >>> import organics_agree
    >>> columns = [column for column in organics_agree.installed() if column.library == "numpy"]
    >>> figure = agreement_figure(organics_agree.compare(columns, quantities=organics_agree.compact()[:1]))
    """
    from .styles import GRID, LIBRARY_COLORS, MARKERS, MUTED

    rows = table.quantities
    with style():
        figure, axes = new_figure(1, 1, (9.5, 1.6 + 0.3 * len(rows)))
        ax = axes[0, 0]
        floor = 1e-17
        for k, column in enumerate(table.columns):
            if column.reference:
                continue
            shown = [
                (row, max(cell.difference, floor)) for row, q in enumerate(rows) if (cell := table.cell(q, column.key))
            ]
            if not shown:
                continue
            single = column.dtype == "float32"
            color = LIBRARY_COLORS.get(column.library, MUTED)
            ax.plot(
                [value for _, value in shown],
                [row for row, _ in shown],
                ls="",
                marker=MARKERS[k % len(MARKERS)],
                color=color,
                mfc="white" if single else color,
                mew=1.5,
                ms=6.5,
                label=f"{column.library} {column.dtype}",
            )
        singles = any(column.dtype == "float32" for column in table.columns)
        for row, quantity in enumerate(rows):
            ax.axhline(row, color=GRID, lw=0.8, zorder=0)
            if singles:
                ax.plot([quantity.bound32] * 2, [row - 0.35, row + 0.35], color=MUTED, lw=1.2)
        if singles:
            ax.text(rows[0].bound32, -0.75, "float32 ", color=MUTED, ha="right", va="center", fontsize=9)
        ax.axvline(1e-10, color=MUTED, lw=1.2, ls=(0, (4, 3)))
        ax.text(1e-10, -0.75, "bound, float64 ", color=MUTED, ha="right", va="center", fontsize=9)
        ax.set_xscale("log")
        found = [cell.difference for cell in table.cells.values() if np.isfinite(cell.difference)]
        right = max(1e-2 if singles else 1e-8, 3.0 * max(found, default=0.0))
        ax.set_xlim(floor / 2, right)
        ticks = [floor, *(10.0**k for k in range(-16, 9, 2) if 10.0**k <= right)]
        ax.set_xticks(ticks, ["0", *(f"$10^{{{round(np.log10(tick))}}}$" for tick in ticks[1:])])
        ax.set_ylim(len(rows) - 0.4, -1.2)
        ax.set_yticks(range(len(rows)), [quantity.name for quantity in rows])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel("Largest relative difference from numpy float64")
        ax.set_title("Every array library computes the same circuit" if table.ok else "The array libraries disagree")
        if ax.get_legend_handles_labels()[1]:  # numpy alone has nothing beside it
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return letters(figure)
