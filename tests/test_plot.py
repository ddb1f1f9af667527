"""Pictures: what is drawn is the user's own data, on the user's axes."""

from __future__ import annotations

import itertools
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.sparse import csr_array
from support import PATIENCE, small_circuit

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from matplotlib.colors import to_rgba  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import organics_core as oc  # noqa: E402
import organics_plot as op  # noqa: E402
from organics_plot.styles import CYCLE, log_axis, percent  # noqa: E402
from organics_train.records import EpochRecord  # noqa: E402


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


def test_contrasts_beyond_one_are_refused() -> None:
    population = op.tuned_population(4)
    for contrast in (50.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="contrast must be between 0 and 1, got"):
            op.contrast_experiment(population, (0.1, contrast))
    assert population.drive(1.0).max() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        op.tuned_population(0)


def test_a_population_of_whole_numbers_and_of_wrong_ones() -> None:
    """Half the largest rate at a contrast of sigma, whatever tuning and pool are."""
    for options in ({"sigma": 1}, {"gain": 2, "tau": 1}, {"tuning": 0, "pool": 3}, {"tuning": 5.0, "pool": 0.0}):
        population = op.tuned_population(7, **options)
        contrast = options.get("sigma", 0.15)
        y = oc.steady_state(population.circuit, population.drive(contrast, 0.0)).state.y
        assert y[0] ** 2 == pytest.approx(0.5), options
    for name, value in (("sigma", 0), ("gain", -1.0), ("tau", np.inf), ("tuning", -2.0), ("pool", np.nan)):
        with pytest.raises(ValueError, match=f"{name} must be .*, got {value:g}"):
            op.tuned_population(4, **{name: value})
    with pytest.raises(TypeError, match="sigma must be a number, got list"):
        op.tuned_population(2, sigma=[0.1, 0.2])
    for call in (population.drive, lambda c, at: population.nearest(at)):
        with pytest.raises(ValueError, match="orientation must be finite, got nan"):
            call(0.5, np.nan)


def test_an_experiment_of_wrong_arguments(ax) -> None:
    population = op.tuned_population(4)
    for contrasts in ((), 0.5, [[0.1, 0.2]]):
        with pytest.raises(ValueError, match=r"contrasts must have shape \(C,\) with C >= 1, got shape"):
            op.contrast_experiment(population, contrasts)
    for times in ({"on": 0.0}, {"on": 0.5}, {"end": 0.32}):
        with pytest.raises(ValueError, match="on, off and end must be rising times above zero"):
            op.contrast_experiment(population, (0.5,), **times)
    recurrent = population._replace(circuit=population.circuit._replace(w_r=-3.0 * np.eye(4)))
    with pytest.raises(ValueError, match=r"population\.circuit must have W_r = I"):  # as titles say
        op.contrast_experiment(recurrent, (0.5,))
    with pytest.raises(ValueError, match="off must be finite, got nan"):
        op.contrast_experiment(population, (0.5,), off=np.nan)
    blank = op.contrast_experiment(population, (0.0,), rtol=1e-4)
    op.responses(blank, ax=ax)
    with pytest.raises(ValueError, match="contrasts must hold one above zero for this picture"):
        op.contrast_response(blank, ax=ax)


def test_trajectory(ax) -> None:
    """One line per neuron, in milliseconds; the fixed point as dashed lines in their colours."""
    circuit, z, _ = small_circuit(3)
    run = oc.simulate(circuit, z, np.linspace(0, 0.05, 20))
    steady = oc.steady_state(circuit, z).state
    assert op.trajectory(run, part="a", steady=steady, ax=ax) is ax
    assert len(ax.lines) == 3
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), 1e3 * run.times)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), run.state.a[:, 1])
    (dashed,) = ax.collections
    ends = [[[0.0, a], [50.0, a]] for a in steady.a]
    np.testing.assert_allclose(dashed.get_segments(), ends, rtol=1e-15)
    assert [to_rgba(line.get_color(), 0.8) for line in ax.lines] == [tuple(color) for color in dashed.get_colors()]
    with pytest.raises(ValueError, match="part must be 'y' or 'a', got 'u'"):
        op.trajectory(run, part="u", ax=ax)
    batch = run._replace(state=oc.State(run.state.y[:, None], run.state.a[:, None]))
    with pytest.raises(ValueError, match=r"got shape \(20, 1, 3\)"):
        op.trajectory(batch, ax=ax)


def test_a_run_of_one_time(ax) -> None:
    """As of a simulation that stopped at once: dots, and the fixed point beside them."""
    circuit, z, _ = small_circuit(2, identity=True)
    run = oc.simulate(circuit, z, np.linspace(0.0, 0.01, 3))
    cut = run._replace(times=run.times[:1], state=oc.State(*(part[:1] for part in run.state)))
    op.trajectory(cut, steady=oc.steady_state(circuit, z).state, ax=ax)
    assert [line.get_marker() for line in ax.lines] == ["o", "o"]
    assert ax.get_xlim() == (-1.0, 1.0)
    assert [list(path[:, 0]) for path in ax.collections[0].get_segments()] == [[-1.0, 1.0]] * 2
    with pytest.raises(ValueError, match="one time at least"):
        op.trajectory(cut._replace(times=run.times[:0], state=oc.State(*(part[:0] for part in run.state))), ax=ax)


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


def test_neurons_are_called_by_their_own_orientation(ax) -> None:
    """Eight neurons are 22.5° apart: nobody prefers what is 15° from a grating at 90°, or exactly one at 100°."""
    population = op.tuned_population(8)
    for orientation, want in ((90.0, ["preferred", "22.5°"]), (100.0, ["10°", "12.5°", "35°"])):
        ax.clear()
        experiment = op.contrast_experiment(population, (0.5,), orientation=np.deg2rad(orientation), rtol=1e-4)
        op.contrast_response(experiment, ax=ax)
        labels = [label for label in ax.get_legend_handles_labels()[1] if label != "normalization equation"]
        assert labels == [f"simulated, {name}" + " from preferred" * ("°" in name) for name in want]
        drawn = [line.get_ydata()[0] for line in ax.lines if line.get_marker() != "None"]
        angles = np.rad2deg(population.orientations) - orientation
        rates = experiment.sustained[0]
        for name, rate in zip(want, drawn, strict=True):
            apart = 0.0 if name == "preferred" else float(name[:-1])
            assert rate in rates[np.isclose(np.abs((angles + 90) % 180 - 90), apart)]
    with pytest.raises(ValueError, match="neuron must be one of the 8 neurons, got 8"):
        op.responses(experiment, neuron=8, ax=ax)


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [
        (0.02, 1.0, [0.1, 1.0]),
        (0.03, 0.8, [0.05, 0.1, 0.2, 0.5]),
        (0.25, 0.85, [0.4, 0.6, 0.8]),
        (0.081, 0.152, [0.1, 0.12, 0.14]),
        (0.5, 0.51, [0.5, 0.51]),
        (0.5, 0.5, [0.5]),
        (1e-9, 1e9, None),
    ],
)
def test_ticks_of_a_logarithmic_axis(ax, low: float, high: float, want: list[float] | None) -> None:
    """However narrow or wide it is, two to nine numbers in the one form, and no others."""
    log_axis(ax, low, high, percent)
    ticks = ax.get_xticks()
    if want is None:
        assert 2 <= len(ticks) <= 9
    else:
        np.testing.assert_allclose(ticks, sorted(want))
    assert [text.get_text() for text in ax.get_xticklabels()] == [percent(tick) for tick in ticks]
    assert len(ax.get_xticks(minor=True)) == 0


def test_a_matrix_with_holes(ax) -> None:
    """One NaN took the scale of colours away from all others."""
    op.matrix(np.array([[2.0, np.nan], [-0.5, np.inf]]), ax=ax)
    image = ax.images[0]
    assert image.get_clim() == (-2.0, 2.0)
    assert image.cmap(image.norm(image.get_array()))[0, 1].tolist() == list(to_rgba("#C9CFD5"))
    ax.clear()
    op.matrix(csr_array(np.array([[0.0, 3.0], [1.0, 0.0]])), ax=ax)
    np.testing.assert_array_equal(ax.images[0].get_array(), [[0.0, 3.0], [1.0, 0.0]])
    for kind in (oc.ring_convolution(np.ones(2)), 1j * np.ones((2, 2)), None):
        with pytest.raises(TypeError, match="values must be a matrix of real numbers, got"):
            op.matrix(kind, ax=ax)
    for wrong in (np.ones(3), np.ones((0, 0))):
        with pytest.raises(ValueError, match="values must be a matrix"):
            op.matrix(wrong, ax=ax)


def test_what_a_picture_cannot_be_made_of(ax) -> None:
    """Named, with what is allowed."""
    circuit, z, _ = small_circuit(2, identity=True)
    run = oc.simulate(circuit, z, np.linspace(0.0, 0.01, 3))
    state = oc.steady_state(circuit, z).state
    batch = oc.steady_state(circuit, np.stack([z, z, z])).state
    one, drive = oc.Circuit(np.array([[2.0]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002), np.ones(1)
    group, several = recurrent_circuits(2)
    for told, call in (
        (r"steady must be one fixed point, of shape \(2,\)", lambda: op.trajectory(run, steady=batch, ax=ax)),
        ("states must hold one state at least", lambda: op.eigenvalues(circuit, [], ax=ax)),
        ("labels must be 2, one per state, got 1", lambda: op.eigenvalues(circuit, [state] * 2, labels=["a"], ax=ax)),
        ("z must have one drive, or 2, one per state", lambda: op.eigenvalues(circuit, [state] * 2, z=batch.y, ax=ax)),
        ("states must be finite", lambda: op.eigenvalues(circuit, oc.State(state.y * np.nan, state.a), ax=ax)),
        ("grid must be at least 2, got 1", lambda: op.portrait(one, drive, grid=1)),
        ("y must be rising and evenly spaced", lambda: op.portrait(one, drive, y=[0.0, 0.1, 1.0])),
        ("rate must not be negative", lambda: op.portrait(one, drive, rate=[-1.0, 1.0])),
        ("arrows must be at least 1, got 0", lambda: op.phase_portrait(one, drive, arrows=0, grid=8, ax=ax)),
        ("iterations must be at least 1, got 0", lambda: op.residuals(group, several, iterations=0)),
        ("residuals must have shape", lambda: op.convergence(np.zeros((3, 0)), ax=ax)),
        ("iterates draws one circuit", lambda: op.iterates(group, several, ax=ax)),
        ("color must be one, or 2", lambda: op.abscissa_histogram({"a": [1.0], "b": [2.0]}, color=["r"], ax=ax)),
        ("relative must be False", lambda: op.energies(circuit, z, oc.Trajectory(*run[:1], batch, *run[2:]), ax=ax)),
        ("labels must be 1, one per drive, got 2", lambda: op.power_spectra(circuit, z, labels=["a", "b"], ax=ax)),
        ("frequencies must have shape", lambda: op.power_spectra(circuit, z, frequencies=np.zeros(0), ax=ax)),
        ("states must be finite", lambda: op.hidden_trajectories(np.full((2, 5, 3), np.nan), np.arange(2), ax=ax)),
        ("states must hold one step", lambda: op.hidden_trajectories(np.ones((2, 0, 2)), np.arange(2), ax=ax)),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_no_spectrum_of_what_is_no_fixed_point(ax) -> None:
    """A circuit that diverges was drawn at the state where the search for a fixed point had ended."""
    circuit = oc.Circuit(np.array([[0.0, 3.0], [0.0, 0.0]]), np.full((2, 2), 0.01), 1.0, 1.0, 0.1, 0.002, 0.002)
    drives = np.array([[0.1, 0.1], [5.0, -20.0]])
    assert oc.steady_state(circuit, drives).converged.tolist() == [True, False]
    with pytest.raises(ValueError, match=r"z must lead to a fixed point, and that of drive 1 was not.*diverges"):
        op.power_spectra(circuit, drives, ax=ax)


@pytest.mark.parametrize(("values", "low"), [([[0.0, 2.0], [1.0, 0.5]], 0.0), ([[0.0, -2.0], [1.0, 0.5]], -2.0)])
def test_matrix(ax, values, low: float) -> None:
    """Zero is white: one-sided for weights, symmetric where there are signs."""
    op.matrix(values, title="W", ax=ax)
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array(), values)
    assert ax.xaxis.get_major_formatter()(1.0, 0) == "2"  # as lines of the second neuron are labelled
    assert image.get_clim() == (low, 2.0)
    assert len(ax.get_figure().axes) == 2
    op.matrix(values, colorbar=False, ax=ax)
    assert len(ax.get_figure().axes) == 2


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
    import organics_agree as agree
    from organics_agree.libraries import numpy_columns

    column = numpy_columns()[0]
    table = agree.compare([column, column._replace(library="torch")], quantities=agree.QUANTITIES[:2], neurons=3)
    ax = op.agreement_figure(table).axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [q.name for q in table.quantities]
    assert ax.get_xticklabels()[0].get_text() == "0"
    marks = next(line for line in ax.lines if line.get_label() == "torch float64")
    np.testing.assert_array_equal(marks.get_xdata(), [1e-17, 1e-17])
    wrong = {key: cell._replace(difference=1e-3) for key, cell in table.cells.items()}
    ax = op.agreement_figure(table._replace(cells=wrong)).axes[0]
    assert ax.get_xlim()[1] > 1e-3
    assert "disagree" in ax.get_title(loc="left")


def test_phase_portrait_of_the_users_neuron(ax) -> None:
    """Nullclines, fixed points, basins, on any grid; a Portrait may be computed once and drawn."""
    circuit = oc.Circuit(np.array([[4.0]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002)
    z = np.array([0.3])
    plane = op.portrait(circuit, z, grid=12)
    want = oc.fixed_points(circuit, z)
    np.testing.assert_array_equal(plane.stable, [point.stable for point in want])
    assert op.phase_portrait(plane, ax=ax) is ax
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    at = np.array([[line.get_xdata()[0], line.get_ydata()[0]] for line in dots])
    np.testing.assert_allclose(at, [[point.state.y[0], np.sqrt(point.state.a[0])] for point in want])
    ax.clear()
    op.phase_portrait(circuit, z, y=np.linspace(-3.0, 3.0, 9), rate=np.linspace(0.0, 2.0, 7), ax=ax)
    assert ax.get_xlim() == (-3.0, 3.0)
    assert ax.get_ylim() == (0.0, 2.0)
    with pytest.raises(ValueError, match="for one neuron without batch axes"):
        op.phase_portrait(small_circuit(2).circuit, np.ones(2), ax=ax)
    with pytest.raises(TypeError, match="takes neither z nor options"):
        op.phase_portrait(plane, z, ax=ax)
    with pytest.raises(ValueError, match=r"rate must have shape \(K,\) with K >= 2"):
        op.portrait(circuit, z, rate=np.ones(1))


def test_a_portrait_under_strong_drive_shows_its_point() -> None:
    """The axis reached to b z, beside which the potential, 1 at most, was a dot at zero."""
    one = oc.Circuit(None, np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002)
    plane = op.portrait(one, np.array([1e6]), grid=5)
    assert plane.points[0, 0] == pytest.approx(1.0)
    assert plane.y[-1] == pytest.approx(20.0)
    assert op.portrait(one, np.array([1.0]), grid=5).y[-1] == pytest.approx(2 / np.sqrt(1 + 0.1**2))


def test_arrows_point_along_the_flow(ax) -> None:
    """On the screen: towards where the state goes, all of one length."""
    circuit, z = oc.Circuit(np.array([[2.0]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.003), np.array([1.0])
    plane = op.portrait(circuit, z, grid=8)
    op.phase_portrait(plane, arrows=4, basins=False, ax=ax)
    (quiver,) = [part for part in ax.collections if hasattr(part, "U")]
    assert quiver.N == 16
    np.testing.assert_allclose(np.hypot(quiver.U, quiver.V), 1.0, rtol=1e-12)
    at = np.reshape(quiver.XY, (4, 4, 2))[2, 1]
    here = oc.State(at[:1], at[1:] ** 2)
    later = oc.simulate(circuit, z, np.array([0.0, 1e-7]), state0=here).state
    ends = [at, [later.y[-1, 0], np.sqrt(later.a[-1, 0])]]
    step = np.diff(ax.transData.transform(ends), axis=0)[0]
    shown = np.array([quiver.U[9], quiver.V[9]])
    np.testing.assert_allclose(shown, step / np.hypot(*step), atol=1e-3)


def test_nullclines_are_where_the_field_is_zero(ax) -> None:
    circuit = oc.Circuit(np.array([[0.5]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002)
    z = np.array([1.0])
    op.phase_portrait(circuit, z, ax=ax)
    lines = [part for part in ax.collections if hasattr(part, "levels")]
    assert len(lines) == 2
    for k, contour in enumerate(lines):
        y, s = np.concatenate([path.vertices for path in contour.get_paths()]).T
        slope = oc.vector_field(circuit, oc.State(y[:, None], s[:, None] ** 2), z)[k][:, 0] * 0.002
        assert np.abs(slope).max() < 2e-3


def recurrent_circuits(count: int) -> tuple[oc.Circuit, np.ndarray]:
    circuit, z, _ = small_circuit(3)
    rng = np.random.default_rng(0)
    w_r = rng.standard_normal((count, 3, 3))
    return circuit._replace(w_r=w_r / np.linalg.norm(w_r, 2, axis=(1, 2))[:, None, None]), z


def test_convergence_where_some_do_not(ax) -> None:
    """A residual that is no number is larger than all: it hides the worst, not the median."""
    op.convergence(np.array([[1.0, 0.5, 0.25, np.nan], [0.4, 0.2, 0.1, np.inf]]), ax=ax)
    middle, worst = ax.lines
    np.testing.assert_allclose(middle.get_ydata(), [0.75, 0.3])
    assert not np.isfinite(worst.get_ydata()).any()


def test_neurons_that_are_not_driven(ax) -> None:
    """A phase portrait and an energy around y = 0."""
    one = oc.Circuit(None, np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002)
    op.phase_portrait(one, np.zeros(1), grid=8, ax=ax)
    assert ax.get_xlim() == (-1.0, 1.0)
    ax.clear()
    op.energy_landscape(one, np.zeros(1), ax=ax)
    assert ax.get_xlim() == (-1.2, 1.2)


def test_an_experiment_with_a_blank(ax) -> None:
    """No contrast, which a logarithmic axis lacks, and more neurons than there are markers."""
    experiment = op.contrast_experiment(op.tuned_population(8), (0.0, 0.1, 1.0), rtol=1e-4)
    op.contrast_response(experiment, offsets=range(0, 140, 20), ax=ax)
    assert ax.lines[0].get_xdata()[0] == pytest.approx(0.1 / 1.5)
    for figure in (op.overview_figure(experiment), op.spectrum_figure(experiment)):
        assert len(figure.axes) > 1


@pytest.mark.parametrize("method", ["newton", "iteration"])
def test_convergence_of_the_users_circuits(ax, method: str) -> None:
    """The median, the quartiles and the worst, as a report of the solver has them."""
    circuit, z = recurrent_circuits(4)
    assert op.convergence(circuit, z, method=method, iterations=3, color="k", lw=3.5, label="mine", ax=ax) is ax
    middle, worst = ax.lines
    assert (middle.get_color(), middle.get_linewidth(), middle.get_label()) == ("k", 3.5, "mine")
    report = oc.steady_state(circuit, z, method=method, tol=1e-300, max_iterations=3)
    assert worst.get_ydata()[2] == pytest.approx(report.residual.max())
    first, second, third, fourth = np.sort(np.maximum(report.residual, 1e-17))
    assert middle.get_ydata()[2] == pytest.approx((second + third) / 2)
    band = ax.collections[0].get_paths()[0].vertices
    edges = band[band[:, 0] == 3, 1]
    assert edges.min() == pytest.approx(first + 0.75 * (second - first))
    assert edges.max() == pytest.approx(third + 0.25 * (fourth - third))


def test_iterates_of_the_users_circuit(ax) -> None:
    circuits, z = recurrent_circuits(1)
    circuit = circuits._replace(w_r=circuits.w_r[0])
    assert op.iterates(circuit, z, iterations=6, ax=ax) is ax
    fixed = oc.steady_state(circuit, z).state.a
    paths, dots = ax.lines[::2], ax.lines[1::2]
    np.testing.assert_allclose([dot.get_ydata()[0] for dot in dots], fixed)
    start = oc.steady_state(circuit._replace(w_r=None), z).state.a
    np.testing.assert_allclose([path.get_ydata()[0] for path in paths], start)


def test_abscissa_histogram(ax) -> None:
    """Every finite value once, groups over each other, not stacked."""
    values = {"a": np.array([-3.0, -1.0, np.nan]), "b": np.array([[-2.0], [1.0]])}
    assert op.abscissa_histogram(values, bins=[-4.0, -2.5, 0.0, 2.0], unit="1/step", ax=ax) is ax
    counts = [steps.get_data() for steps in ax.patches if hasattr(steps, "get_data")]
    np.testing.assert_array_equal([steps.values for steps in counts], [[1, 1, 0], [0, 1, 1]])
    assert all(np.all(steps.baseline == 0) for steps in counts)
    assert "(1/step)" in ax.get_xlabel()
    ax.clear()
    op.abscissa_histogram(np.array([-1.0, -2.0]), color="red", ax=ax)
    assert ax.patches[0].get_facecolor()[:3] == (1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="no finite spectral abscissa"):
        op.abscissa_histogram(np.array([np.nan]), ax=ax)


def test_energies_along_the_users_trajectories(ax) -> None:
    circuit, z, state = small_circuit(3, identity=True)
    run = oc.simulate(circuit, z, np.linspace(0.0, 0.05, 9), state0=state)
    assert op.energies(circuit, z, run, color="g", ax=ax) is ax
    want = oc.energy(circuit, run.state, z)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), want / want[0])
    assert ax.lines[0].get_color() == "g"
    assert ax.get_ylabel() == "Energy, relative to the start"
    ax.clear()
    op.energies(circuit, z, run, relative=False, ax=ax)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), want)
    assert ax.get_ylabel() == "Energy"
    with pytest.raises(ValueError, match="energy_landscape is for one neuron"):
        op.energy_landscape(circuit, z, ax=ax)
    ax.clear()
    one = oc.Circuit(None, np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.006)
    run = oc.simulate(one, np.ones(1), np.linspace(0.0, 0.05, 9))
    assert op.energy_landscape(one, np.ones(1), run, ax=ax) is ax
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), run.state.a[:, 0])


def test_spectra_of_the_users_circuit(ax) -> None:
    """Both circuits; the dots of V1 are at the gamma peak."""
    circuit, z, _ = small_circuit(2, identity=True)
    drives = np.array([[0.2], [1.0]]) * z
    f = np.linspace(1.0, 300.0, 600)
    assert op.power_spectra(circuit, drives, 0.1, frequencies=f, unit=1, labels=["low", "high"], ax=ax) is ax
    lines = [line for line in ax.lines if len(line.get_xdata()) == len(f)]
    want = oc.power_spectrum(circuit, oc.steady_state(circuit, drives).state, 0.1, f)[..., 1, 1].real
    np.testing.assert_allclose([line.get_ydata() for line in lines], want)
    assert [line.get_label() for line in lines] == ["low", "high"]
    for unit in (2, -3, 1.0):  # 2 would be the first modulator
        with pytest.raises(ValueError, match=f"unit must be one of the 2 neurons, got {unit}"):
            op.power_spectra(circuit, drives, unit=unit, ax=ax)
    ax.clear()
    op.power_spectra(circuit, drives, 0.1, frequencies=f, part="a", unit=-1, ax=ax)
    want = oc.power_spectrum(circuit, oc.steady_state(circuit, drives).state, 0.1, f)[..., 3, 3].real
    np.testing.assert_allclose([line.get_ydata() for line in ax.lines if len(line.get_xdata()) == len(f)], want)
    ax.clear()
    v1 = oc.V1Circuit(None, np.ones((1, 1)), 0.5, 0.1, 1.0, 0.001, 0.002, 0.001)
    op.power_spectra(v1, np.ones((1, 1)), frequencies=f, ax=ax)
    assert ax.lines[1].get_xdata() == pytest.approx(float(oc.gamma_peak(v1, np.ones((1, 1)))[0][0]), abs=1.0)


def test_phase_map(ax) -> None:
    """Shares in percent of the draws; the distance is that of the stable ones alone."""
    kind = np.array([[[0, 0], [0, 1]], [[2, 2], [3, 0]]])
    distance = np.array([[[1.0, 3.0], [4.0, 9.0]], [[9.0, 9.0], [9.0, 5.0]]])
    diagram = oc.PhaseDiagram(np.array([0.0, 1.0]), np.array([0.1, 1.0]), kind, distance, distance, kind == 0)
    shares = {"fixed point": [100, 50, 0, 50], "limit cycle": [0, 50, 0, 0], "divergence": [0, 0, 100, 0]}
    for quantity, want in shares.items():
        ax.clear()
        assert op.phase_map(diagram, quantity, ax=ax) is ax
        np.testing.assert_array_equal(ax.collections[0].get_array().ravel(), want)
    ax.clear()
    op.phase_map(diagram, "distance", ax=ax)
    shown = ax.collections[0].get_array()
    np.testing.assert_array_equal(np.ma.filled(shown, -1).ravel(), [2.0, 4.0, -1, 5.0])
    with pytest.raises(ValueError, match="unknown quantity 'luck'; choose one of 'fixed point'"):
        op.phase_map(diagram, "luck", ax=ax)
    with pytest.raises(ValueError, match="two strengths and two norms, got 1 and 2"):
        op.phase_map(diagram._replace(deltas=np.zeros(1)), ax=ax)
    turned = oc.PhaseDiagram(*(part[::-1] for part in diagram))  # the strengths falling
    turned = turned._replace(norms=diagram.norms)
    ax.clear()
    op.phase_map(turned, ax=ax)
    np.testing.assert_array_equal(ax.collections[0].get_array().ravel(), shares["fixed point"])
    assert ax.get_ylim()[0] < ax.get_ylim()[1]
    with pytest.raises(ValueError, match="got one of them twice"):
        op.phase_map(diagram._replace(norms=np.ones(2)), ax=ax)


def test_boundary_map(ax) -> None:
    circuit = oc.Circuit(None, np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.002)
    grid = (np.linspace(-4.0, 4.0, 8), np.geomspace(0.1, 20.0, 8))
    found = oc.stability_boundary(circuit, np.array([1.0]), ("w_r", "z"), grid)
    assert op.boundary_map(found, color="k", ax=ax) is ax
    np.testing.assert_array_equal(ax.collections[1].get_segments(), found.segments)
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    np.testing.assert_array_equal(ax.collections[0].get_array(), (found.abscissa >= 0).T)
    op.boundary_map(found._replace(abscissa=np.where(np.eye(8) == 1, np.nan, -1.0)), ax=ax)
    mesh = ax.collections[2]
    fill = mesh.to_rgba(mesh.get_array())[:2, :2, :3]
    np.testing.assert_array_equal(fill[0, 0], [0.8] * 3)  # neither stable nor unstable
    assert fill[0, 1].min() < 1.0
    assert len(np.unique(fill.reshape(4, 3), axis=0)) == 2


def test_bifurcation_diagram(ax) -> None:
    """Solid where stable, dashed where not, meeting at the special points; extremes of the cycles; one legend entry."""
    w = np.array([[16.0, -12.0], [15.0, -3.0]])
    model = oc.WilsonCowan(w, np.array([1.3, 2.0]), np.array([4.0, 3.7]), 0.01)
    z = np.array([1.0, 0.0])
    branch = oc.continue_fixed_points(model, z, "z", (0.0, 3.0))
    assert [point.kind for point in branch.special] == ["fold", "fold", "hopf"]
    times = np.linspace(0.0, 0.1, 9)
    path = oc.WilsonCowanState(np.stack([0.2 + 0.1 * np.sin(20 * np.pi * times), times], axis=-1))
    cycle = oc.Cycle(0.1, times, path, np.ones(2), True, True, 0.0, "")
    lost = cycle._replace(converged=False)
    cycles = [(1.25, cycle), (1.5, cycle._replace(stable=False)), (1.6, lost)]
    assert op.bifurcation_diagram(branch, cycles=cycles, ax=ax) is ax
    lines = {line.get_label(): line for line in reversed(ax.lines)}
    assert ax.lines[0].get_linestyle() == "-"
    assert ax.lines[1].get_linestyle() == "--"
    corners = np.array([[point.value, point.state.x[0]] for point in branch.special])
    first, second, third = (line.get_xydata() for line in ax.lines[:3])
    for drawn, at, corner in ((first, -1, 0), (second, 0, 0), (second, -1, 2), (third, 0, 2)):
        np.testing.assert_array_equal(drawn[at], corners[corner])
    assert (second == corners[1]).all(axis=1).any()
    assert len(first) + len(second) + len(third) == len(branch.values) + 5
    np.testing.assert_array_equal(lines["Hopf point"].get_xydata(), corners[2:])
    np.testing.assert_allclose(lines["stable limit cycle, extremes"].get_xydata(), [[1.25, path.x[:, 0].min()]])
    assert lines["unstable limit cycle, extremes"].get_markerfacecolor() == "white"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Input drive  z  (multiple)", "x")
    assert [text.get_text() for text in ax.texts] == ["42.4 Hz"]
    op.bifurcation_diagram(branch, unit=1, ax=ax)
    labels = ax.get_legend_handles_labels()[1]
    assert len(labels) == len(set(labels)) == 6
    for options, message in (({"part": "y"}, "part must be 'x'"), ({"unit": 2}, "one of the 2 neurons, got 2")):
        with pytest.raises(ValueError, match=message):
            op.bifurcation_diagram(branch, ax=ax, **options)


def test_hidden_trajectories(ax) -> None:
    """In their principal plane, distances of points in it are kept; classes by colour."""
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((5, 7, 2)) * [3.0, 1.0]
    states = flat @ np.linalg.qr(rng.standard_normal((4, 4)))[0][:2] + 1.0
    labels = np.array([0, 1, 1, 0, 2])
    assert op.hidden_trajectories(states, labels, classes=(1,), alpha=1.0, ax=ax) is ax
    drawn = np.stack([np.stack(line.get_data(), axis=-1) for line in ax.lines[:2]])
    want = flat[labels == 1]
    np.testing.assert_allclose(np.linalg.norm(drawn[0] - drawn[1], axis=-1), np.linalg.norm(want[0] - want[1], axis=-1))
    for shape, names, message in (
        ((5, 7), labels, r"states must have shape \(N, T, n\)"),
        ((5, 7, 4), labels[:4], r"labels must have shape \(5,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            op.hidden_trajectories(np.ones(shape), names, ax=ax)
    with pytest.raises(ValueError, match="classes must be 10 at most"):
        op.hidden_trajectories(states, labels, classes=range(11), ax=ax)
    for explained, label in ((None, "Membrane potential  $y_1$"), ([0.9, 0.1], "First principal axis of y  (90")):
        op.hidden_trajectories(flat, labels, explained=explained, ax=ax)
        assert ax.get_xlabel().startswith(label)
    ax.clear()
    states = rng.standard_normal((20, 7, 4)) * [3.0, 2.0, 1.0, 0.5]
    op.hidden_trajectories(states, np.arange(20) % 10, ax=ax)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert len({line.get_color() for line in dots}) == len(dots) == 10
    variances = np.linalg.eigvalsh(np.cov(states.reshape(-1, 4).T))[::-1]
    for label, share in zip((ax.get_xlabel(), ax.get_ylabel()), variances / variances.sum(), strict=False):
        assert float(label.split("(")[1].split("\N{NO-BREAK SPACE}")[0]) == pytest.approx(100 * share, abs=0.06)


@pytest.mark.parametrize(("w_r", "whole"), [(1e-3, True), (0.7, True), (1.0, True), (1.001, False)])
def test_the_basin_of_a_neuron_that_settles_by_theorem(w_r: float, whole: bool) -> None:
    """Everything, however slow the way; the corners of the grid end at the point."""
    circuit = oc.Circuit(np.array([[w_r]]), np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.02)
    z = np.ones(1)
    plane = op.portrait(circuit, z, grid=6)
    if not whole:
        assert (plane.basin >= 0).any()
        return
    assert (plane.basin == 0).all()
    corners = np.array([[plane.y[i], plane.rate[j] ** 2] for i in (0, -1) for j in (0, -1)])
    start = oc.State(corners[:, :1], corners[:, 1:])
    drives = np.ones((4, 1))
    end = oc.simulate(
        circuit, drives, np.array([0.0, 400.0 * 0.02 / w_r]), state0=start, drive="constant", method="rodas5p"
    ).state
    np.testing.assert_allclose(np.concatenate([end.y[-1], end.a[-1]], axis=-1), [plane.points[0]] * 4, rtol=1e-4)


def test_basins_are_where_a_stiff_solver_ends() -> None:
    """A weakly damped point inside a cycle that repels: half of the plane spirals in for hundreds of time constants,
    the rest goes round for good."""
    circuit, z = oc.Circuit(np.array([[2.2]]), np.ones((1, 1)), 0.5, 0.5, 0.05, 0.002, 0.0006), np.array([0.05])
    plane = op.portrait(circuit, z, grid=12)
    assert plane.stable.tolist() == [False, False, True]
    assert 0.3 < (plane.basin == 2).mean() < 0.7

    def field(t: float, x: np.ndarray) -> list[float]:
        y, a = x
        a = max(a, 0.0)
        return [(-y + 0.025 + (1.0 - a**0.5) * 2.2 * y) / 0.002, (-a + 0.025**2 + a * y * y) / 0.0006]

    for row, column in itertools.product(range(1, 12, 3), range(0, 12, 4)):
        start = plane.y[column], plane.rate[row] ** 2
        end = solve_ivp(field, (0.0, 1.0), start, "LSODA", rtol=1e-8, atol=1e-11).y[:, -1]
        arrived = np.abs(end - plane.points[2]).max() < 1e-2
        assert plane.basin[row, column] == (2 if arrived else -1)


def test_a_basin_has_the_colour_of_the_sign_of_its_point(ax) -> None:
    """Two stable points and one: that with y > 0 has the same colour in both, that with y < 0 another."""

    def colors(circuit: oc.Circuit) -> dict[float, tuple[float, ...]]:
        plane = op.portrait(circuit, np.ones(1), grid=20)
        ax.clear()
        op.phase_portrait(plane, ax=ax)
        mesh = ax.collections[0]
        shown = mesh.to_rgba(mesh.get_array()).reshape(-1, 4)
        return {
            (np.sign(plane.points[k, 0]) if k >= 0 else 0.0): tuple(shown[plane.basin.ravel() == k][0])
            for k in np.unique(plane.basin)
        }

    def neuron(w_r: float, tau_y: float) -> oc.Circuit:
        return oc.Circuit(np.array([[w_r]]), np.ones((1, 1)), 0.5, 0.5, 0.1, tau_y, 0.002)

    one, two, escape = colors(neuron(0.5, 0.002)), colors(neuron(2.0, 0.04)), colors(neuron(-2.0, 0.002))
    assert set(one) == {1.0}
    assert set(two) == {1.0, -1.0}
    assert set(escape) == {1.0, 0.0}
    assert one[1.0] == two[1.0] == escape[1.0] != two[-1.0]
    assert escape[0.0][3] == 0.0  # transparent: the page


def test_the_slope_of_the_energy() -> None:
    """As the energy changes along a simulated step, per time constant."""
    from organics_plot.analysis import energy_slope

    circuit, z = oc.Circuit(None, np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.006), np.ones(1)
    fixed = oc.steady_state(circuit, z).state
    angle = np.linspace(0.0, 2 * np.pi, 24, endpoint=False)[:, None]
    start = oc.State(fixed.y + 0.6 * np.cos(angle), fixed.a * (1 + 0.8 * np.sin(angle)))
    step = 1e-6
    run = oc.simulate(circuit, z, np.array([0.0, step]), state0=start, rtol=1e-12, atol=1e-14)
    before, after = oc.energy(circuit, run.state, z)
    want = 0.002 * (after - before) / step
    np.testing.assert_allclose(energy_slope(circuit, start, z), want, atol=2e-3 * np.abs(want).max())
    assert (want > 0).any()
    assert (want < 0).sum() > 18


def test_a_page_is_the_same_under_any_style(experiment: op.ContrastExperiment) -> None:
    """dark_background, ggplot: the pixels of a figure, also when it is drawn later."""
    from matplotlib import style as styles
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    def pixels() -> np.ndarray:
        figure = op.overview_figure(experiment)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba()).copy()

    plain = pixels()
    assert (plain[0, 0] == 255).all()
    for name in ("dark_background", "ggplot"):
        with styles.context(name):
            np.testing.assert_array_equal(pixels(), plain, err_msg=name)


def test_ones_own_lines_have_the_colours_of_the_style() -> None:
    with op.style():
        lines = [Figure().subplots().plot([0, 1])[0], *Figure().subplots().plot(np.eye(2))]
    assert [line.get_color() for line in lines] == [CYCLE[0], *CYCLE[:2]]


def test_save_keeps_the_page_of_a_figure(tmp_path) -> None:
    from matplotlib import image
    from matplotlib import style as styles

    with styles.context("dark_background"):
        figure = Figure()
        figure.subplots()
        path = op.save(figure, tmp_path / "dark.png")
    assert image.imread(path)[0, 0, :3].max() == 0


def test_a_picture_is_whole_or_the_old_one(tmp_path, monkeypatch) -> None:
    """As where the disk is full half-way."""
    path = op.save(Figure(), tmp_path / "picture.png")
    before = path.read_bytes()

    def full(self, file, **options) -> None:
        file.write(before[:100])
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="no space left"):
        op.save(Figure(), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_panels_have_letters(experiment: op.ContrastExperiment) -> None:
    titles = [ax.get_title(loc="left") for ax in op.overview_figure(experiment).axes]
    assert [title[:4] for title in titles] == ["a   ", "b   ", "c   "]
    assert op.contrast_response_figure(experiment).axes[0].get_title(loc="left").startswith("The ")


def test_threads_leave_no_style_behind(experiment: op.ContrastExperiment) -> None:
    """In whatever order threads enter and leave; nested in one thread too."""
    import itertools
    from concurrent.futures import ThreadPoolExecutor

    before = dict(matplotlib.rcParams)
    for order in itertools.permutations(range(3)):
        inside = [op.style() for _ in range(3)]
        for one in inside:
            one.__enter__()
        for k in order:
            assert matplotlib.rcParams["axes.labelpad"] == 5
            inside[k].__exit__(None, None, None)
        assert dict(matplotlib.rcParams) == before
    with op.style():
        matplotlib.rcParams["axes.labelpad"] = 9.0
        with op.style():
            assert matplotlib.rcParams["axes.labelpad"] == 5
        assert matplotlib.rcParams["axes.labelpad"] == 9
    assert dict(matplotlib.rcParams) == before
    with ThreadPoolExecutor(4) as pool:
        for figure in pool.map(op.contrast_response_figure, [experiment] * 8):
            assert len(figure.axes) == 1
    assert dict(matplotlib.rcParams) == before


def test_pictures_change_nothing_global() -> None:
    """No style, no pyplot figure: a picture on given axes leaves no trace."""
    code = (
        "import matplotlib, numpy as np, organics_core as oc, organics_plot as op, sys\n"
        "from matplotlib.figure import Figure\n"
        "before = dict(matplotlib.rcParams)\n"
        "c = oc.Circuit(None, np.ones((1, 1)), 0.5, 0.5, 0.1, 0.002, 0.006)\n"
        "z = np.ones(1)\n"
        "run = oc.simulate(c, z, np.linspace(0, 0.05, 9))\n"
        "op.phase_portrait(c, z, grid=8, ax=Figure().subplots())\n"
        "op.energy_landscape(c, z, run, ax=Figure().subplots())\n"
        "op.power_spectra(c, z[None], ax=Figure().subplots())\n"
        "op.convergence(c, z, ax=Figure().subplots())\n"
        "plt = sys.modules.get('matplotlib.pyplot')\n"
        "print(dict(matplotlib.rcParams) == before, [] if plt is None else plt.get_fignums())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.split() == ["True", "[]"]


def test_import_chooses_no_backend_and_no_pyplot() -> None:
    code = "import sys, organics_plot; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.strip() == "False"


def test_pictures_of_any_model(ax) -> None:
    """Trajectories, eigenvalues and power spectra of a family without y and a, part by part."""
    w = np.array([[1.25, -0.65], [1.2, -0.5]])
    model, z = oc.SSN(w, 0.04, 2.0, np.array([0.02, 0.01])), np.array([[9.0, 6.0], [6.0, 4.0]])
    found = oc.steady_state(model, z).state
    run = oc.simulate(model, z[0], np.linspace(0.0, 0.1, 5))
    op.trajectory(run, steady=oc.SSNState(found.r[0]), ax=ax)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), run.state.r[:, 1])
    assert ax.get_ylabel() == "r"
    with pytest.raises(ValueError, match="part must be 'r', got 'y'"):
        op.trajectory(run, part="y", ax=ax)
    ax.clear()
    op.eigenvalues(model, [oc.SSNState(r) for r in found.r], z=z, ax=ax)
    for cloud, r, drive in zip(ax.collections, found.r, z, strict=True):
        drawn = points(cloud)
        want = oc.spectrum(model, oc.SSNState(r), z=drive)
        np.testing.assert_allclose(np.sort_complex(drawn[:, 0] + 1j * drawn[:, 1]), np.sort_complex(want))
    ax = Figure().subplots()
    f = np.geomspace(1.0, 100.0, 20)
    op.power_spectra(model, z, (0.5,), frequencies=f, part="r", unit=1, ax=ax)
    want = oc.power_spectrum(model, found, (0.5,), f, z=z)[1, :, 1, 1].real
    assert any(len(line.get_ydata()) == 20 and np.allclose(line.get_ydata(), want) for line in ax.lines)
    assert ax.get_ylabel() == "Two-sided power density of r  (r² / Hz)"
    assert len(op.simulation_figure(run, None).axes) == 1
