"""The numbers behind the figures, and the command that draws them."""

from __future__ import annotations

import json
import signal
from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="figures need matplotlib")
pytest.importorskip("typer", reason="the command needs typer")

from typer.testing import CliRunner

import organics_core as oc
from organics_cli.app import app
from organics_core.io.checkpoints import save_checkpoint
from organics_figures import FIGURES, SOURCES, _networks, _shared, phase_portraits
from organics_plot.styles import style


@cache
def quick(name: str) -> dict[str, np.ndarray]:
    return FIGURES[name].numbers(quick=True)


def test_all_random_circuits_of_order_one_are_stable():
    """900 of 900 with a spectral norm of W_r of one and gains up to one half; strong drive destabilizes many."""
    found = FIGURES["random-stability"].numbers()
    abscissa = np.concatenate([found[f"abscissa_{n}"] for n in found["sizes"]])
    assert abscissa.shape == (900,)
    assert (abscissa < 0).all()  # false for NaN: all were found
    assert 0.3 < (found["strong"] >= 0).mean() < 0.9
    # ten of two thousand pairs of neurons with gains up to one; a few to spare for those near zero
    assert 5 <= (found["gains_to_one"] >= 0).sum() <= 15


@pytest.fixture(scope="module")
def portraits() -> dict[str, np.ndarray]:
    return quick("phase-portraits")


def test_fixed_points_of_the_portraits(portraits):
    """How many, which of them stable, and that they are fixed points."""
    stable = {title: portraits[f"stable_{i}"].tolist() for i, title in enumerate(phase_portraits.PORTRAITS)}
    assert [len(flags) for flags in stable.values()] == [1, 3, 1, 1, 1, 1, 3, 3, 3]
    assert [sum(flags) for flags in stable.values()] == [1, 1, 1, 1, 1, 1, 1, 2, 1]
    for index, (changes, variant) in enumerate(phase_portraits.PORTRAITS.values()):
        circuit = _shared.one_neuron(**changes)
        for y, a in portraits[f"points_{index}"]:
            slope = oc.vector_field(circuit, oc.State(np.array([y]), np.array([a])), np.array([1.0]), variant=variant)
            assert abs(circuit.tau_y * slope.y[0]) < 1e-12
            assert abs(circuit.tau_a * slope.a[0]) < 1e-12


def test_basins_of_the_portraits(portraits):
    """All of the plane is one basin, or it has two, or part of it escapes; as simulations from its points say."""
    titles = list(phase_portraits.PORTRAITS)
    for index, (title, (changes, variant)) in enumerate(phase_portraits.PORTRAITS.items()):
        basin, points = portraits[f"basin_{index}"], portraits[f"points_{index}"]
        ends = set(np.unique(basin).tolist())
        if title == "w_r = -2":
            assert ends == {-1, 0}
            continue
        assert ends == set(np.flatnonzero(portraits[f"stable_{index}"]).tolist())
        circuit = _shared.one_neuron(**changes)
        i, j = np.random.default_rng(index).integers(0, basin.shape[0], (2, 6))
        if len(ends) > 1:
            i, j = np.indices(basin.shape).reshape(2, -1)
        start = oc.State(portraits[f"y_{index}"][j, None], portraits[f"rate_{index}"][i, None] ** 2)
        run = oc.simulate(circuit, np.array([1.0]), np.array([0.0, 3.0]), state0=start, variant=variant)
        np.testing.assert_allclose(run.state.y[-1, :, 0], points[basin[i, j], 0], atol=1e-3, err_msg=title)
    assert len(np.unique(portraits[f"basin_{titles.index('w_r = 2, tau_y = 20 tau_a')}"])) == 2


def test_stable_fixed_points_over_two_parameters():
    """For w_r > 0 there is always a stable one; for w_r < 0 not under strong input, or a strong pool."""
    found = quick("stability-boundary")
    for name in ("input", "pool"):
        w_r, other = found[f"{name}_values"]
        stable = found[f"{name}_abscissa"] < 0
        assert stable[w_r > 0].all()
        assert stable[:, other < 0.5].all()
        assert not stable[(w_r < 0) & (w_r > -1)][:, -1].any()
        assert len(found[f"{name}_segments"]) > 4
    stable = found["sigma_abscissa"] < 0
    assert stable.any()
    assert not stable.all()


def test_newton_is_much_faster_than_the_iteration():
    """A hundred circuits: Newton needs less than 8 iterations to machine precision in nearly all, and 20 at worst."""
    found = FIGURES["convergence"].numbers()
    newton, iteration = np.median(found["newton"], axis=1), np.median(found["iteration"], axis=1)
    assert newton[4] < 1e-14
    assert iteration[4] > 1e-8
    assert np.argmax(newton < 1e-12) < 0.4 * np.argmax(iteration < 1e-12)
    assert (found["newton"][6] < 1e-13).mean() >= 0.97
    assert found["newton"][19].max() < 1e-14
    assert found["iteration"][-1].max() < 1e-12


def test_iterates_end_at_newtons_fixed_point():
    found = FIGURES["iterates"].numbers()
    np.testing.assert_allclose(found["a"][-1], found["fixed"], rtol=1e-13)
    assert np.abs(found["a"][0] / found["fixed"] - 1).max() > 0.3
    assert np.linalg.norm(found["w_r"], 2) == pytest.approx(1.0)


def test_every_random_circuit_is_drawn():
    """The bars of each panel add up to the circuits whose point was found; the others are counted in words."""
    found = quick("random-stability")
    figure = FIGURES["random-stability"].draw(found)
    for ax, names in zip(figure.axes, (("abscissa_2", "abscissa_10"), ("gains_to_one",), ("strong",)), strict=True):
        low, high = ax.get_xlim()
        bars = [patch.get_data() for patch in ax.patches if hasattr(patch, "get_data")]
        shown = sum(
            steps.values[(steps.edges[:-1] >= low - 1e-9) & (steps.edges[1:] <= high + 1e-9)].sum() for steps in bars
        )
        values = np.concatenate([found[name] for name in names])
        assert shown == np.isfinite(values).sum()
        if np.isnan(values).any():
            assert f"{np.isnan(values).sum()} more: none found" in ax.get_legend().get_title().get_text()


def test_dots_of_the_pulses_are_their_own_ratios():
    """Not those in between of a coarse curve, which is 1 % too low at 200 ms."""
    numbers = FIGURES["temporal-pair"].numbers(quick=True)
    figure = FIGURES["temporal-pair"].draw(numbers)
    dots = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    found = [float(np.squeeze(dot.get_ydata())) for dot in dots]
    np.testing.assert_allclose(found, 100 * numbers["second"] / numbers["first"])


def test_curves_are_sampled_finely():
    """Between neighbours a curve strays from the line drawn by less than a thousandth of the picture's height."""
    patches = FIGURES["surround-suppression"].numbers()
    pulses = FIGURES["temporal-pair"].numbers()
    pulse = (pulses["times"] > 0.05) & (pulses["times"] < 0.15)  # within the first, where the drive is smooth
    for x, rows in (
        (patches["diameters"], patches["rates"]),
        (pulses["fine_gaps"], pulses["ratio"][None]),
        (pulses["times"][pulse], pulses["rates"][pulse].T),
    ):
        for row in rows:
            # drawn by half of its points a smooth curve is four times as far off
            error = np.abs(row - np.interp(x, x[::2], row[::2]))[: 2 * (len(x) // 2) - 1].max() / 4
            assert error < 1e-3 * np.ptp(rows)


def test_where_training_finds_no_fixed_point_the_line_ends_with_a_cross():
    epochs = 5
    numbers = {"task": np.array("digits")}
    for name in ("free", "spectral", "identity"):
        for field in ("loss", "norm", "accuracy", "along", "settled", "found", "radius"):
            numbers[f"{field}_{name}"] = np.linspace(0.1, 1.0, epochs)
    numbers["settled_free"] = np.array([-0.1, -0.2, -0.3, -np.inf, -np.inf])
    ax = FIGURES["training"].draw(numbers).axes[2]
    crosses = [line.get_xydata() for line in ax.lines if line.get_marker() == "x"]
    np.testing.assert_allclose(np.concatenate(crosses), [[2.0, -0.3]])
    assert "none found after this" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_captions_name_parameters():
    for name, entry in FIGURES.items():
        assert len(entry.caption) > len(entry.summary) > 20, name
        assert entry.source in SOURCES
    assert {name for name, entry in FIGURES.items() if entry.source == "phenomena"} == {
        "attention", "contrast-saturation", "cross-orientation", "noise-spectra", "surround-suppression",
        "temporal-pair",
    }  # fmt: skip


def test_energy_falls():
    found = FIGURES["energy"].numbers()
    assert (np.diff(found["small"], axis=0) < 1e-12 * found["small"][0]).all()
    assert (found["small"][-1] < 1e-2 * found["small"][0]).all()


def test_gamma_peak_rises_with_contrast():
    found = FIGURES["noise-spectra"].numbers()
    peak = found["gamma_peak"]
    seen = peak[np.isfinite(peak)]
    assert len(seen) >= 2
    assert (np.diff(seen) > 0).all()
    assert 30 < seen[-1] < 80
    power = found["v1"].max(axis=1)
    assert (np.diff(power) < 0).all()  # as the caption says


def test_the_density_is_two_sided():
    """Twice the integral over positive frequencies is the variance, which the title of the axis says as well."""
    circuit = oc.Circuit(None, np.ones((1, 1)), 1.0, 1.0, 0.1, 0.004, 0.004)
    state = oc.steady_state(circuit, np.array([0.3])).state
    frequencies = np.linspace(0.0, 4000.0, 80001)
    power = oc.power_spectrum(circuit, state, (1.0, 0.0), frequencies)[:, 0, 0].real
    variance = oc.noise_covariance(circuit, state, (1.0, 0.0))[0, 0].real
    assert 2 * np.trapezoid(power, frequencies) == pytest.approx(variance, rel=2e-2)
    figure = FIGURES["noise-spectra"].draw(quick("noise-spectra"))
    assert "Two-sided" in figure.axes[0].get_ylabel()


def test_what_becomes_of_random_recurrence():
    """Without recurrence the fixed point of normalization; strong recurrence breaks it."""
    found = quick("phase-diagram")
    for ensemble in ("goe", "gaussian"):
        kind = found[f"{ensemble}_kind"]
        assert (kind[0] == 0).all()
        np.testing.assert_allclose(found[f"{ensemble}_distance"][0], 0.0, atol=1e-10)
        assert (kind[-1] != 0).any()
    assert not (found["goe_kind"] == 1).any()


PICTURES = [name for name, entry in FIGURES.items() if not entry.trains]


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_is_clipped(name):
    """Every text of every figure lies within it, and no axes is empty."""
    with style():
        figure = FIGURES[name].draw(quick(name))
        figure.draw_without_rendering()
        width, height = figure.canvas.get_width_height()
        for ax in figure.axes:
            box = ax.get_tightbbox()
            assert box.x0 > -1, (name, ax.get_title())
            assert box.y0 > -1, (name, ax.get_title())
            assert box.x1 < width + 1, (name, ax.get_title())
            assert box.y1 < height + 1, (name, ax.get_title())
            assert ax.has_data()


def test_command_writes_picture_numbers_and_record(tmp_path):
    tmp_path = tmp_path / "[dim]"  # which is no markup
    done = CliRunner().invoke(app, ["figures", "energy", "iterates", "--quick", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert f" {tmp_path / 'energy.png'} " in done.output
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{name}.{suffix}" for name in ("energy", "iterates") for suffix in ("png", "svg", "npz", "json")
    }
    record = json.loads((tmp_path / "energy.json").read_text())
    assert record["caption"] == FIGURES["energy"].caption
    with np.load(tmp_path / "energy.npz") as saved:
        np.testing.assert_array_equal(saved["small"], quick("energy")["small"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "unknown figure 'bogus'; choose one of attention"),
        ([], "name a figure, or ask for --all"),
        (["energy", "--format", "gif"], "--format must be png, svg or pdf, got 'gif'"),
        (["energy", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["energy", "--dpi", "1"], "--dpi must be between 10 and 2400 dots per inch, got 1"),
        (["energy", "--size", "7x"], "--size must be inches from 1 to 60"),
        (["energy", "--size", "nan"], "--size must be inches from 1 to 60"),
        (["attention", "--quick", "--size", "1x1"], "--size is too small for attention: its words leave no room"),
    ],
)
def test_bad_requests(arguments, message, tmp_path):
    done = CliRunner().invoke(app, ["figures", *arguments, "--output", str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_list(monkeypatch):
    """Every name, the kinds, and no word broken at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(app, ["figures", "--list"])
    assert all(name in done.output for name in FIGURES)
    assert "After the paper" in done.output
    known = " ".join(f"{name} about s min {entry.summary}" for name, entry in FIGURES.items()).split()
    known += [f"{entry.seconds / unit:.0f}" for entry in FIGURES.values() for unit in (1, 60)]
    assert set(done.output.split()) <= {*known, *["After", "the", "paper", "Phenomena", "of", "cortex", "More"]}


def test_format_size_and_dots(tmp_path):
    from matplotlib import image

    for size, shape in (("5x3", (150, 250)), ("5", None)):
        arguments = ["attention", "--quick", "--size", size, "--dpi", "50", "--format", "png", "-f", "pdf"]
        done = CliRunner().invoke(app, ["figures", *arguments, "--output", str(tmp_path)])
        assert done.exit_code == 0, done.output
        assert {file.suffix for file in tmp_path.iterdir()} == {".png", ".pdf", ".npz", ".json"}
        height, width = image.imread(tmp_path / "attention.png").shape[:2]
        assert width == 250
        assert (height, width) == shape or shape is None
    assert height == pytest.approx(250 * 4.2 / 10.5, abs=1)  # the shape of the figure's own size


def test_progress_without_a_terminal(tmp_path):
    """What is drawn is said before it is done, with an estimate of the time."""
    done = CliRunner().invoke(app, ["figures", "attention", "surround-suppression", "--output", str(tmp_path)])
    lines = done.output.splitlines()
    assert lines[0] == "2 figures, about 2 s on one core."
    assert lines[1].startswith("1/2 attention (about 1 s): Attention as a change")
    assert "1/2" in lines[2]
    assert "attention.png" in lines[2]
    assert lines[3].startswith("2/2 surround-suppression (about 1 s)")


TORCH, JAX = pytest.mark.library("torch"), pytest.mark.library("jax")
FRAMEWORKS = [pytest.param("torch", marks=TORCH), pytest.param("jax", marks=JAX)]


@pytest.fixture
def run_of(tmp_path):
    """Train by organics train, a little, and return the folder."""

    def train(task: str, framework: str, **options: object) -> Path:
        from organics_train import Config
        from organics_train import train as run

        config = Config(task=task, framework=framework, epochs=1, hidden=10, batch_size=128, **options)
        folder = tmp_path / f"{task}-{framework}"
        run(config, folder)
        return folder

    return train


@pytest.mark.parametrize(
    ("framework", "recurrent", "layers"),
    [
        *(pytest.param("torch", *case, marks=TORCH) for case in (("identity", 2), ("spectral", 2), ("identity", 1))),
        pytest.param("jax", "spectral", 2, marks=JAX),
    ],
)
def test_a_static_checkpoint_is_the_network_that_was_trained(framework, recurrent, layers, run_of):
    """The core's fixed points, with the readout of the checkpoint, give the classes that the framework gave."""
    from organics_train.checkpoint import load_checkpoint

    options = {"recurrent": recurrent, "sigma": 0.3, "layers": layers}
    folder = run_of("digits", framework, model="organics-static", options=options)
    given = _networks.read(folder)
    assert given.kind == "static"
    x = given.x.reshape(len(given.x), -1)
    circuits = given.network.circuits(x)
    rates = np.maximum(circuits[-1][1].y, 0) ** 2
    arrays = {name.lstrip("."): value for name, value in load_checkpoint(folder / "model.safetensors")[0].items()}
    right = np.argmax(rates @ arrays["readout.weight"].T + arrays["readout.bias"], axis=-1) == given.y
    want = json.loads((folder / "results.json").read_text())["test_accuracy"]
    assert right.mean() == pytest.approx(want, abs=1.5 / len(x))
    abscissae = given.network.abscissae(x[:150])
    assert [len(values) for values in abscissae] == [150] * layers
    for values, (circuit, state, known) in zip(abscissae, circuits, strict=True):
        assert known.all()
        first = oc.jacobian(circuit._replace(b=circuit.b[120]), oc.State(state.y[120], state.a[120]))
        assert values[120] == pytest.approx(np.linalg.eigvals(first).real.max(), rel=1e-9)
        if recurrent == "identity":
            assert (values < 0).all()


def test_the_static_figure_shows_the_fixed_points_that_layers_put_out():
    """Here one that repels, although another attracts; and an image without any, in the layer after it, too."""

    def logit(p):
        return np.log(p / (1 - np.array(p)))

    layer = oc.StaticParameters(
        w_zx=np.array([[-0.89], [0.44]]),
        w_bx=logit([[0.98], [0.94]]),
        log_w=np.log([[0.77, 0.99], [0.33, 0.25]]),
        beta=logit([0.68 * 0.75, 0.57 * 0.77]),
        w_r=np.array([[-0.95, -0.04], [0.28, -0.33]]),
    )
    network = _networks.StaticNetwork((np.ones((1, 1)), np.zeros(1)), (layer,), 1.0)
    x = np.ones((1, 1))
    circuit, state, known = network.circuits(x)[0]
    assert known.all()
    np.testing.assert_allclose(np.maximum(state.y, 0) ** 2, oc.static_rates(layer, x), rtol=1e-9)
    assert float(network.abscissae(x)[0][0]) == pytest.approx(0.3946, abs=1e-4)
    assert not bool(oc.steady_state(circuit, x @ layer.w_zx.T / np.hypot(0.89, 0.44)).unstable.any())
    # strong drive and a W_r with a kernel leave no fixed point
    lost = layer._replace(w_r=np.array([[0.0, 1.0], [0.0, 0.0]]), beta=np.full(2, -9.0), log_w=np.full((2, 2), 3.0))
    after = oc.init_static(0, 2, 2)
    values = _networks.StaticNetwork((np.ones((1, 1)), np.zeros(1)), (lost, after), 1.0).abscissae(x)
    found = oc.static_rates(lost, x)
    assert np.isnan(found).all()
    assert np.isnan(values).all()
    drawn = FIGURES["static-stability"].draw({"task": np.array("mnist"), "layer_1": np.array([-1.0, np.nan])})
    assert "Layer 1: 1 of 2 stable" in drawn.axes[0].get_title("left") + drawn.axes[0].get_title()


@pytest.mark.parametrize(
    ("framework", "recurrent"),
    [
        *(pytest.param("torch", case, marks=TORCH) for case in ("orthogonal", "spectral", "identity")),
        pytest.param("jax", "spectral", marks=JAX),
    ],
)
def test_a_recurrent_checkpoint_is_the_network_that_was_trained(framework, recurrent, run_of, tmp_path):
    """The core's sequence, with the readout of the checkpoint, gives the classes that the framework gave."""
    from organics_train.checkpoint import load_checkpoint

    folder = run_of("digits", framework, options={"recurrent": recurrent})
    given = _networks.read(folder / "checkpoint.safetensors")  # of a run that goes on, too
    assert given.kind == "recurrent"
    run = given.network.run(given.x)
    arrays = {name.lstrip("."): value for name, value in load_checkpoint(folder / "model.safetensors")[0].items()}
    right = np.argmax(run.y[:, -1] @ arrays["readout.weight"].T + arrays["readout.bias"], axis=-1) == given.y
    want = json.loads((folder / "results.json").read_text())["test_accuracy"]
    assert right.mean() == pytest.approx(want, abs=1.5 / len(given.x))
    assert np.isfinite(run.along)
    if recurrent == "identity":
        assert run.settled < 0
    out = tmp_path / "figures"
    done = CliRunner().invoke(app, ["figures", "trajectories", "--checkpoint", str(folder), "--output", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads((out / "trajectories.json").read_text())["checkpoint"] == str(folder)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_saved_layers_are_a_checkpoint_too(framework, tmp_path):
    path = tmp_path / "layers.safetensors"
    save_checkpoint(path, [oc.init_cell(0, 8, 6)])
    given = _networks.read(path)
    assert given.task == "digits"
    assert given.network.run(given.x[:3]).y.shape == (3, 8, 6)
    save_checkpoint(path, [oc.init_cell(0, 5, 6)])
    with pytest.raises(ValueError, match="holds layers of 5 inputs"):
        _networks.read(path)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_networks_trained_for_the_figures_learn(framework, monkeypatch):
    """The readout learns too: well above chance after ten epochs. The static network stays stable meanwhile."""
    monkeypatch.setattr(_networks, "framework", lambda: framework)
    _networks.train_static.cache_clear()
    try:
        found = FIGURES["static-stability"].numbers(quick=True)
        assert found["accuracy"][-1] > max(0.3, found["accuracy"][0] + 0.1)
        assert len(found["layer_1"]) == len(found["layer_2"])
        for index in (1, 2):
            assert (found[f"layer_{index}"] < 0).all()
            assert (found[f"highest_{index}"] < 0).all()
        assert np.isfinite(found["loss"][1:]).all()
        FIGURES["static-stability"].draw(found)
    finally:
        _networks.train_static.cache_clear()


@pytest.mark.library("torch", "jax")
def test_checkpoints_that_do_not_fit(tmp_path):
    path = tmp_path / "layers.safetensors"
    save_checkpoint(path, [oc.init_cell(0, 8, 6)])
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    for arguments, message in (
        (["energy", "--checkpoint", str(path)], "holds a recurrent network, which only trajectories can show"),
        (["trajectories", "--checkpoint", str(tmp_path / "none")], "there is no checkpoint file"),
        (
            ["trajectories", "--checkpoint", str(tmp_path / "bad.safetensors")],
            "bad.safetensors is not a readable safetensors file",
        ),
        (["trajectories", *("--checkpoint", str(path)) * 2], "there are two checkpoints of recurrent networks"),
    ):
        done = CliRunner().invoke(app, ["figures", *arguments, "--output", str(tmp_path / "out")])
        assert done.exit_code == 2
        assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_figure_leaves_nothing(tmp_path, monkeypatch, number):
    """Ctrl-C or SIGTERM while a figure is drawn: the ones before it are whole, of this one there is nothing."""
    before = signal.getsignal(signal.SIGTERM)

    def stop(found):
        if number == signal.SIGINT:  # which a shell's background ignores
            raise KeyboardInterrupt
        signal.raise_signal(number)

    monkeypatch.setitem(FIGURES, "energy", FIGURES["energy"]._replace(draw=stop))
    done = CliRunner().invoke(app, ["figures", "attention", "energy", "--quick", "--output", str(tmp_path)])
    assert done.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before
    assert {file.name for file in tmp_path.iterdir()} == {f"attention.{end}" for end in ("png", "svg", "npz", "json")}
