"""Pictures: what is drawn is the user's own data, on the user's axes."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from support import small_circuit

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from matplotlib.figure import Figure  # noqa: E402

import organics_core as oc  # noqa: E402
import organics_plot as op  # noqa: E402
from organics_core.training import EpochRecord  # noqa: E402


@pytest.fixture
def ax():
    """Axes that pyplot does not know."""
    return Figure().subplots()


@pytest.fixture(scope="module")
def experiment() -> op.ContrastExperiment:
    return op.contrast_experiment(op.tuned_population(12), (0.1, 0.3, 1.0))


def points(artist) -> np.ndarray:
    return np.asarray(artist.get_offsets())


def test_population_obeys_the_normalization_equation(experiment: op.ContrastExperiment) -> None:
    """The preferring neuron's rate is c^2 / (sigma^2 + c^2), by the equation and at the simulation's end."""
    c = experiment.contrasts
    i = experiment.population.nearest(experiment.orientation)
    np.testing.assert_allclose(experiment.predicted[:, i], c**2 / (0.15**2 + c**2), rtol=1e-12)
    np.testing.assert_allclose(experiment.sustained, experiment.predicted, rtol=1e-4, atol=1e-9)
    assert bool(np.all(np.diff(experiment.times) > 0))


def test_trajectory(ax) -> None:
    """One line per neuron, in milliseconds; the fixed point as a dashed line."""
    circuit, z, _ = small_circuit(3)
    run = oc.simulate(circuit, z, np.linspace(0, 0.05, 20))
    steady = oc.steady_state(circuit, z).state
    assert op.trajectory(run, part="a", steady=steady, ax=ax) is ax
    assert len(ax.lines) == 6
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), 1e3 * run.times)
    np.testing.assert_array_equal(ax.lines[2].get_ydata(), run.state.a[:, 1])
    assert ax.lines[1].get_ydata()[0] == steady.a[0]
    with pytest.raises(ValueError, match="part must be 'y' or 'a', got 'u'"):
        op.trajectory(run, part="u", ax=ax)
    batch = run._replace(state=oc.State(run.state.y[:, None], run.state.a[:, None]))
    with pytest.raises(ValueError, match=r"got shape \(20, 1, 3\)"):
        op.trajectory(batch, ax=ax)


def test_many_neurons_are_thinned(ax) -> None:
    """Twelve of them, from the first to the last; or those asked for."""
    run = SimpleNamespace(times=np.arange(4.0), state=oc.State(np.arange(200.0).reshape(4, 50), np.ones((4, 50))))
    op.trajectory(run, ax=ax)
    assert [line.get_label() for line in ax.lines][:: len(ax.lines) - 1] == ["1", "50"]
    assert len(ax.lines) == 12
    ax.clear()
    op.trajectory(run, neurons=[7], ax=ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), run.state.y[:, 7])


@pytest.mark.parametrize("variant", ["main", "rectified"])
def test_eigenvalues(ax, variant: str) -> None:
    """Every eigenvalue of the user's circuit, at every state, within the limits."""
    circuit, z, state = small_circuit(4)
    states = [oc.steady_state(circuit, z, variant=variant).state, state]
    assert op.eigenvalues(circuit, states, labels=["steady", "other"], variant=variant, ax=ax) is ax
    clouds = ax.collections
    assert [cloud.get_label() for cloud in clouds] == ["steady", "other"]
    for cloud, where in zip(clouds, states, strict=True):
        spectrum = oc.spectrum(circuit, where, variant=variant)
        drawn = points(cloud)
        np.testing.assert_allclose(np.sort_complex(drawn[:, 0] + 1j * drawn[:, 1]), np.sort_complex(spectrum))
        assert ax.get_xlim()[0] < spectrum.real.min()
        assert ax.get_xlim()[1] > max(0, spectrum.real.max())
        assert ax.get_ylim()[1] > spectrum.imag.max()


def test_responses_and_tuning(ax, experiment: op.ContrastExperiment) -> None:
    """One line per contrast."""
    op.responses(experiment, neuron=2, ax=ax)
    lines = [line for line in ax.lines if len(line.get_xdata()) == len(experiment.times)]
    assert len(lines) == 3
    np.testing.assert_array_equal(lines[1].get_ydata(), experiment.rates[:, 1, 2])
    ax.clear()
    op.tuning_curves(experiment, ax=ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), experiment.predicted[0])


def test_contrast_response_draws_simulation_on_equation(ax, experiment: op.ContrastExperiment) -> None:
    """The curve is the normalization equation; the markers are the simulation."""
    op.contrast_response(experiment, offsets=(0,), ax=ax)
    curve, markers = ax.lines
    c = curve.get_xdata()
    np.testing.assert_allclose(curve.get_ydata(), c**2 / (0.15**2 + c**2), rtol=1e-12)
    i = experiment.population.nearest(experiment.orientation)
    np.testing.assert_array_equal(markers.get_ydata(), experiment.sustained[:, i])


@pytest.mark.parametrize(("values", "low"), [([[0.0, 2.0], [1.0, 0.5]], 0.0), ([[0.0, -2.0], [1.0, 0.5]], -2.0)])
def test_matrix(ax, values, low: float) -> None:
    """Zero is white: one-sided for weights, symmetric where there are signs."""
    op.matrix(values, title="W", ax=ax)
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array(), values)
    assert image.get_clim() == (low, 2.0)


def records(*abscissas: float) -> list[EpochRecord]:
    return [EpochRecord(k, 1.0 / k, 0.5, 0.9, 0.2, 0.4, value, 1.0) for k, value in enumerate(abscissas, start=1)]


def test_training_curve(ax) -> None:
    """One line per run; epochs that were not measured are left out."""
    op.training_curve({"jax": records(-0.2, np.nan, 0.3)}, "spectral_abscissa", ax=ax)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 3])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [-0.2, 0.3])
    assert ax.get_ylim()[1] > 0.3
    ax.clear()
    op.training_curve({"a": records(-1, -1), "b": records(-1, -1)}, "test_accuracy", target=0.95, ax=ax)
    assert [line.get_ydata()[0] for line in ax.lines] == [90.0, 90.0, 95.0]
    with pytest.raises(ValueError, match="unknown quantity 'luck'"):
        op.training_curve({}, "luck", ax=ax)


def test_figures_are_saved_without_a_backend(tmp_path, experiment: op.ContrastExperiment) -> None:
    """Whole figures, whose text all fits, and whose making leaves the global style alone."""
    before = dict(matplotlib.rcParams)
    circuit, z, _ = small_circuit(3)
    run = oc.simulate(circuit, z, np.linspace(0, 0.05, 20))
    figures = {
        "overview": op.overview_figure(experiment),
        "responses": op.responses_figure(experiment),
        "contrast": op.contrast_response_figure(experiment),
        "spectrum": op.spectrum_figure(experiment),
        "training": op.training_figure({"torch": records(-0.2, -0.1)}, target=0.95),
        "simulation": op.simulation_figure(run, None, title="A circuit"),
    }
    for name, figure in figures.items():
        path = op.save(figure, tmp_path / "new" / f"{name}.png")
        assert path.read_bytes().startswith(b"\x89PNG")
        width, height = figure.canvas.get_width_height()
        for one in figure.axes:
            box = one.get_tightbbox()
            assert box.x0 >= 0, name
            assert box.x1 <= width, name
            assert box.y1 <= height, name
    assert dict(matplotlib.rcParams) == before


def test_agreement_figure() -> None:
    """A marker per library and quantity; exact agreement stands at 0."""
    from organics_cli import agree

    column = agree._numpy_columns()[0]
    table = agree.compare([column, column._replace(library="torch")], quantities=agree.QUANTITIES[:2], neurons=3)
    ax = op.agreement_figure(table).axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [q.name for q in table.quantities]
    assert ax.get_xticklabels()[0].get_text() == "0"
    marks = next(line for line in ax.lines if line.get_label() == "torch float64")
    np.testing.assert_array_equal(marks.get_xdata(), [1e-17, 1e-17])


def test_import_chooses_no_backend_and_no_pyplot() -> None:
    code = "import sys, organics_plot; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
