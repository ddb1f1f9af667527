"""The command line: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from support import PATIENCE, small_circuit

pytest.importorskip("typer", reason="the command line is not installed")
pytest.importorskip("rich", reason="the command line is not installed")
pytest.importorskip("matplotlib", reason="the command line is not installed")
pytest.importorskip("sklearn", reason="the command line is not installed")

import typer
from test_files import EXAMPLE, WRONG, spoil
from typer.testing import CliRunner

import organics_agree as agree
import organics_core as oc
from organics_agree.libraries import MAKERS, numpy_columns
from organics_cli import demo, lazy, terminal
from organics_cli.app import app
from organics_cli.console import seconds
from organics_core.io.circuits import SimulationSettings, load_circuit, save_circuit


@pytest.fixture
def organics(monkeypatch):
    """Call ``organics`` with arguments; 100 columns, no colours."""
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="organics")


def assert_refused(result, told: str) -> None:
    """One line on standard error that says ``told``, exit code 2."""
    __tracebackhide__ = True
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert told in lines[0]


def test_version(organics) -> None:
    assert organics("--version").output.strip() == f"organics-core {oc.__version__}"


def test_help_lists_every_command_with_its_own_line(organics) -> None:
    """Also those that are imported only when called, whose lines are the commands' own."""
    shown = " ".join(organics("--help").output.replace("│", " ").split())
    own = {"demo", "init", "simulate", "certify"}
    elsewhere = {name: line for commands in lazy.ELSEWHERE.values() for name, line in commands.items()}
    group = typer.main.get_group(app)
    assert set(group.list_commands(None)) == own | set(elsewhere)
    for name in own:
        assert f" {name} " in shown
    for name, line in elsewhere.items():
        assert f" {name} {line}" in shown
        assert lazy.load(name).help.splitlines()[0] == line
        assert organics(name, "--help").exit_code == 0


def test_no_word_of_the_help_is_broken(organics, monkeypatch) -> None:
    """At 80 columns: every word is one of those of a very wide terminal, none elided or cut in two."""

    def words(width: str, name: str) -> set[str]:
        monkeypatch.setenv("COLUMNS", width)
        text = organics(name, "--help").output
        return {word for word in text.split() if not set(word) <= set("─│╭╮╰╯")}

    for name in typer.main.get_group(app).list_commands(None):
        narrow = words("80", name)
        assert narrow <= words("2000", name), name
        assert not any(word.endswith("…") for word in narrow), name


def test_all_output_goes_below_one_folder() -> None:
    """What a command writes unasked, it writes below organics-output."""
    group = typer.main.get_group(app)
    context = typer.Context(group)
    places = {
        name: parameter.default
        for name in group.list_commands(context)
        for parameter in group.get_command(context, name).params
        if "--output" in parameter.opts and parameter.default is not None
    }
    assert {"demo", "simulate", "agree", "figures", "sweep"} <= set(places)
    assert {name: Path(place).parts[0] for name, place in places.items()} == dict.fromkeys(places, "organics-output")


def test_help_shows_no_type_of_a_flag_and_brackets_once(organics) -> None:
    for name in ([], ["init"], ["certify"]):
        text = organics(*name, "--help").output
        assert "--help" in text
        assert "<bool>" not in text
        assert "[[" not in text


def test_help_imports_no_science() -> None:
    """The help comes at once: neither numpy nor what is built on it is imported for it."""
    code = (
        "import sys; from organics_cli.app import app\n"
        "try: app(['--help'], prog_name='organics')\n"
        "except SystemExit: pass\n"
        "print([m for m in ('numpy', 'organics_core', 'matplotlib', 'jax', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.strip().endswith("[]")


def test_simulate(organics, tmp_path: Path) -> None:
    """The example reaches its steady state; picture, numbers, trajectory and circuit are saved."""
    done = organics("simulate", EXAMPLE, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "reached the last time" in done.output
    assert "closed form" in done.output
    facts = json.loads((tmp_path / "out" / "circuit.json").read_text())
    circuit, z, _ = load_circuit(EXAMPLE)
    steady = oc.steady_state(circuit, z).state
    np.testing.assert_allclose(facts["end"]["y"], steady.y, atol=1e-5)
    np.testing.assert_allclose(facts["steady_state"]["a"], steady.a, rtol=1e-12)
    assert facts["success"]
    assert facts["relative_distance"] < 1e-5
    with np.load(tmp_path / "out" / "circuit-trajectory.npz") as saved:
        assert saved["y"].shape == (400, 4)
    run = oc.load_trajectory(tmp_path / "out" / "circuit-trajectory.npz")
    np.testing.assert_array_equal(run.state.y[-1], facts["end"]["y"])
    assert run.message == facts["status"]
    assert (tmp_path / "out" / "circuit.png").read_bytes().startswith(b"\x89PNG")
    again = organics("certify", tmp_path / "out" / "circuit.npz")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("method", sorted(name for name, method in oc.METHODS.items() if not method.stochastic))
def test_simulate_options(organics, tmp_path: Path, method: str) -> None:
    """Every method, another duration and variant, stand in the record."""
    options = ("--method", method, "--duration", 0.02, "--variant", "rectified")
    done = organics("simulate", EXAMPLE, "-o", tmp_path, *options)
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "circuit.json").read_text())
    assert facts["settings"]["method"] == method
    assert facts["end"]["time"] == pytest.approx(0.02)
    assert facts["settings"]["variant"] == "rectified"


def test_a_stiff_circuit_is_simulated_as_the_message_says(organics, tmp_path: Path) -> None:
    """dopri5 gives up and names rodas5p, which agrees with scipy's implicit method."""
    one = np.ones(1)
    path = tmp_path / "stiff.npz"
    circuit = oc.Circuit(None, np.eye(1), 0.5 * one, 0.5 * one, 0.1 * one, 1e-9 * one, 0.1 * one)
    save_circuit(path, circuit, one, SimulationSettings(duration=0.2, points=5))
    done = organics("simulate", path, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "choose method='rodas5p'" in " ".join(done.output.split())
    done = organics("simulate", path, "-o", tmp_path / "out", "--method", "rodas5p")
    assert done.exit_code == 0, done.output
    end = json.loads((tmp_path / "out" / "stiff.json").read_text())["end"]

    def field(t: float, x: np.ndarray) -> np.ndarray:
        root = np.sqrt(x[1])
        return np.array([(0.5 - root * x[0]) / 1e-9, (-x[1] + 0.0025 + x[1] * x[0] ** 2) / 0.1])

    exact = solve_ivp(field, (0.0, 0.2), [0.0, 0.0025], "Radau", rtol=1e-9, atol=1e-12).y[:, -1]
    np.testing.assert_allclose([*end["y"], *end["a"]], exact, rtol=1e-5)
    assert_refused(organics("simulate", path, "--method", "euler_maruyama"), "unknown method 'euler_maruyama'")


def test_the_file_that_is_read_is_not_replaced(organics, tmp_path: Path) -> None:
    """Not by the copy that simulate leaves beside the picture, and not by a proof."""
    path = tmp_path / "circuit.npz"
    circuit, z, _ = small_circuit(3)
    save_circuit(path, circuit, z)
    before = path.read_bytes()
    done = organics("simulate", path, "-o", tmp_path, "--method", "rk4", "--duration", 0.02)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "circuit.json").exists()
    assert "circuit.npz" not in done.output
    assert_refused(organics("certify", path, "--proof", path), "--proof would replace the circuit file")
    assert path.read_bytes() == before


def test_simulate_says_why_a_tiny_state_is_far_from_the_steady_one(organics, tmp_path: Path) -> None:
    path = tmp_path / "tiny.npz"
    circuit = oc.Circuit(None, np.eye(1), *(np.full(1, value) for value in (0.5, 0.5, 0.1, 0.002, 0.002)))
    save_circuit(path, circuit, np.full(1, 1e-12), SimulationSettings(duration=0.3))
    assert "hardly above atol, 1e-09" in organics("simulate", path, "-o", tmp_path / "out").output
    save_circuit(path, circuit, np.full(1, 1e-12), SimulationSettings(duration=0.3, atol=1e-18))
    assert "not controlled" not in organics("simulate", path, "-o", tmp_path / "out").output


@pytest.mark.parametrize(("value", "text"), [(0.99996, "1 s"), (0.9996, "1 s"), (0.9994, "999 ms"), (2e-7, "2e-07 s")])
def test_times_in_units_that_suit_them(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sigma", [1e-300, 1e300])
def test_modulators_at_rest_beyond_the_range_of_floats(organics, tmp_path: Path, sigma: float) -> None:
    """At a = 0 they would stay, and y would grow without normalization."""
    circuit, z, _ = small_circuit(2, identity=True)
    path = tmp_path / "circuit.npz"
    save_circuit(path, circuit._replace(sigma=sigma * np.ones(2)), z, SimulationSettings(duration=0.1))
    assert_refused(organics("simulate", path, "-o", tmp_path), "sigma must leave (b0 sigma)**2")


def test_a_full_disk_is_one_line(organics, tmp_path: Path, monkeypatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("organics_cli.circuits.load_circuit", full)
    result = organics("certify", EXAMPLE)
    assert_refused(result, "error: no space left on device")
    assert "Errno" not in result.stderr


def test_certify_says_what_it_found(organics, tmp_path: Path) -> None:
    """Exit code 0 for stable, by certificate or eigenvalues; 1 for a steady state that repels."""
    done = organics("certify", EXAMPLE)
    assert done.exit_code == 0
    assert "proven by the certificate" in done.output
    path = tmp_path / "circuit.npz"
    circuit, z, _ = small_circuit(3)
    save_circuit(path, circuit, z)
    done = organics("certify", path)
    assert done.exit_code == 0
    assert "w_r is not the identity" in done.output
    assert "locally stable" in done.output
    one = np.ones(1)
    repelling = oc.Circuit(-20 * np.eye(1), np.eye(1), one, one, one, 0.1 * one, 0.001 * one)
    save_circuit(path, repelling, 20 * one)
    assert float(oc.spectral_abscissa(repelling, oc.steady_state(repelling, 20 * one).state)) > 0
    done = organics("certify", path)
    assert done.exit_code == 1
    assert "not stable" in done.output
    assert "repels, proven" in done.output


def test_certify_proves_and_verifies(organics, tmp_path: Path) -> None:
    """For any W_r: rate and basin in words, a file, and its verification; a false proof has exit code 1."""
    path, saved = tmp_path / "circuit.npz", tmp_path / "proof.npz"
    circuit, z, _ = small_circuit(3)
    save_circuit(path, circuit, z)
    done = organics("certify", path, "--proof", saved)
    assert done.exit_code == 0, done.output
    told = " ".join(done.output.split())
    for words in ("exactly one in the box", "stable, proven", "decay rate at least", "is undone"):
        assert words in told
    proof = oc.load_proof(saved)
    assert f"at least {0.99 * float(proof.decay_rate):.3g} /s" in told
    done = organics("certify", "--check", saved)
    assert done.exit_code == 0, done.output
    assert "every claim was verified" in done.output
    proof._replace(basin=10 * proof.basin).save(saved)
    done = organics("certify", "--check", saved)
    assert done.exit_code == 1
    told = " ".join(done.output.split())
    assert "not verified: that all that starts in the ellipsoid returns" in told
    assert "stable, proven" not in told  # nothing that was not verified
    nothing = np.asarray(np.nan)
    only = proof._replace(stable=None, decay_rate=nothing, basin=nothing, reason="this circuit is stable, I swear")
    only.save(saved)
    told = organics("certify", "--check", saved).output
    assert told.index("every claim was verified") < told.index("exactly one")
    assert "I swear" not in told
    assert "nothing is claimed of it" in told
    assert_refused(organics("certify", "--check", path), "holds no proof")
    assert_refused(organics("certify", saved), f"holds a proof, not a circuit; organics certify --check {saved}")
    assert_refused(organics("certify"), "takes a circuit file, or --check")
    done = organics("certify", EXAMPLE, "--proof", saved)
    assert done.exit_code == 0
    assert organics("certify", "--check", saved).exit_code == 0


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_the_range_of_floats(organics, tmp_path: Path) -> None:
    """A fixed point that overflows, rates beyond any fixed step: said in one line, without warnings from inside."""
    circuit, z, _ = small_circuit(2, identity=True)
    path = tmp_path / "huge.toml"
    save_circuit(path, circuit, 1e300 * z)
    assert_refused(organics("certify", path), "z must leave a fixed point within the range of float64")
    save_circuit(path, circuit, 1e100 * z, SimulationSettings(duration=0.01, method="euler"))
    assert_refused(organics("simulate", path, "-o", tmp_path), "--method euler would need")


def test_too_little_memory_is_one_line(organics, monkeypatch) -> None:
    """As for a pool of a million neurons written as one number."""

    def too_large(*arguments: object) -> None:
        raise MemoryError("Unable to allocate 7.28 TiB")

    monkeypatch.setattr("organics_cli.circuits.load_circuit", too_large)
    assert_refused(organics("certify", EXAMPLE), "not enough memory: unable to allocate 7.28 TiB")


@pytest.mark.parametrize("name", ["simulate", "certify"])
@pytest.mark.parametrize("kind", WRONG)
def test_bad_files(organics, tmp_path: Path, name: str, kind: str) -> None:
    path, told = spoil(kind, tmp_path)
    assert_refused(organics(name, path), told)


def test_bad_options(organics, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = ("--output", tmp_path / "new")
    assert_refused(organics("simulate", EXAMPLE, *output, "--method", "dopri"), "unknown method 'dopri'")
    assert_refused(organics("simulate", EXAMPLE, *output, "--variant", "mean"), "unknown variant 'mean'")
    assert_refused(organics("simulate", EXAMPLE, *output, "--duration", "nan"), "--duration must be")
    assert_refused(organics("simulate", EXAMPLE, "-o", tmp_path / "file"), "is a file, not a folder")
    assert_refused(organics("demo", "--framework", "tensorflow"), "unknown framework 'tensorflow'")
    assert_refused(organics("agree", "--require", "matlab"), "unknown library 'matlab'")
    assert_refused(organics("agree", "--output", "table.txt"), "--output must name a .json file, got table.txt")
    assert not (tmp_path / "new").exists()


def test_a_missing_library_is_told(organics, monkeypatch) -> None:
    monkeypatch.setitem(MAKERS, "jax", lambda: __import__("no_such_library"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused(organics("agree", "--require", "jax"), "jax is required but not installed")
    assert_refused(organics("demo", "--framework", "jax"), "jax is not installed; install it with: pip install")


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("rich", "error: the command line needs rich; install it with: pip install 'organics-core[cli]'"),
        ("matplotlib", "error: pictures need matplotlib; install it with: pip install 'organics-core[plot]'"),
    ],
)
def test_a_missing_extra_is_no_verdict(tmp_path: Path, missing: str, told: str) -> None:
    """Exit code 2, as of bad input: 1 says that a circuit is not stable."""
    code = f"import sys; sys.modules[{missing!r}] = None; from organics_cli import main; main()"
    words = [sys.executable, "-c", code, "simulate", str(EXAMPLE), "-o", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr.strip()) == (2, told)


def test_agree_fails_beyond_its_bound(organics, tmp_path: Path, monkeypatch) -> None:
    """A library that computes something else is told by name, in the JSON and by the exit code."""
    good = numpy_columns()[0]
    columns = [good, good._replace(library="strict")]
    some = agree.QUANTITIES[:3]
    monkeypatch.setattr("organics_agree.cli.installed", lambda missing=None: tuple(columns))
    monkeypatch.setattr("organics_agree.cli.torch_against_jax", lambda: None)
    compare = agree.compare
    monkeypatch.setattr(
        "organics_agree.cli.compare",
        lambda c, on_step: compare(c, quantities=some, neurons=3, circuits=2, on_step=on_step),
    )
    path = tmp_path / "new" / "table.json"
    done = organics("agree", "--output", path)
    assert done.exit_code == 0, done.output
    assert "all 3 comparisons within their bounds" in done.output
    assert json.loads(path.read_text())["ok"] is True
    columns[1] = columns[1]._replace(asarray=lambda value: good.asarray(value) * (1 + 1e-8))
    done = organics("agree", "--output", path)
    assert done.exit_code == 1
    assert "vector field, 3 variants in strict float64" in done.output
    saved = json.loads(path.read_text())
    assert saved["ok"] is False
    assert 1e-10 < saved["differences"]["vector field, 3 variants"]["strict float64"]["difference"] < 1e-6
    assert "✗" in path.with_suffix(".md").read_text()


def test_difference_knows_nan() -> None:
    one = (np.ones((2, 3)),)
    assert agree.difference((np.ones((2, 3)) + 1e-3,), one) == pytest.approx(1e-3)
    assert np.isnan(agree.difference((np.full((2, 3), np.nan),), one))
    assert not agree.Cell(np.nan, 1.0).ok


def test_demo(organics, tmp_path: Path, monkeypatch) -> None:
    """The short tour: the circuit part whole, two epochs in one framework where one is here."""
    frameworks = demo.chosen_frameworks("all")[-1:]
    monkeypatch.setattr(demo, "chosen_frameworks", lambda wanted: frameworks)
    columns = numpy_columns()
    monkeypatch.setattr(agree, "installed", lambda missing=None: (*columns, columns[0]._replace(library="strict")))
    done = organics("demo", "--quick", "--output", tmp_path / "tour")
    assert done.exit_code == 0, done.output
    assert "Summary" in done.output
    summary = json.loads((tmp_path / "tour" / "summary.json").read_text())
    assert summary["ok"] is True
    np.testing.assert_allclose(
        summary["simulate"]["rates_simulated"], summary["simulate"]["rates_predicted"], rtol=1e-3
    )
    assert all(summary["certify"]["stable"])
    assert max(summary["certify"]["spectral_abscissa"]) < 0
    promised = {name for part in ("simulate", "certify", "agree", "train") for name in summary[part]["pictures"]}
    there = {file.name for file in (tmp_path / "tour").iterdir()}
    assert there == promised | {"summary.json"}
    assert {"overview.png", "responses.png", "contrast-response.png", "eigenvalues.png"} <= there
    for name in frameworks:
        first, second = summary["train"]["epochs"][name]
        assert second["loss"] < first["loss"]
        assert summary["train"]["test_accuracy"][name] > 0.3


def test_demo_without_a_framework(organics, tmp_path: Path, monkeypatch) -> None:
    """It says what to install and goes on; what could not be looked at is null in the record."""
    monkeypatch.setattr(demo, "chosen_frameworks", lambda wanted: ())
    monkeypatch.setattr(agree, "installed", lambda missing=None: tuple(numpy_columns()))
    done = organics("demo", "--quick", "--output", tmp_path)
    assert done.exit_code == 0, done.output
    assert "pip install 'organics-core[jax]'" in done.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["train"]["ok"] is None
    assert summary["agree"]["ok"] is None


def test_demo_fails_when_something_does_not_hold(organics, tmp_path: Path, monkeypatch) -> None:
    """A simulation far from its fixed point is an exit code, not a picture."""
    monkeypatch.setattr(demo, "contrast_experiment", lambda: demo_too_short())
    monkeypatch.setattr(demo, "chosen_frameworks", lambda wanted: ())
    monkeypatch.setattr(agree, "installed", lambda missing=None: tuple(numpy_columns()))
    done = organics("demo", "--quick", "--output", tmp_path)
    assert done.exit_code == 1
    assert json.loads((tmp_path / "summary.json").read_text())["simulate"]["ok"] is False


def demo_too_short():
    from organics_plot import contrast_experiment

    return contrast_experiment(on=0.01, off=0.02, end=0.03)


def test_digits_are_split_once() -> None:
    data = demo.digits()
    assert data.x_train.shape == (1437, 8, 8)
    assert data.x_test.shape == (360, 8, 8)
    assert (data.x_train.min(), data.x_train.max()) == (0.0, 1.0)
    assert set(np.bincount(data.y_test)) <= {35, 36, 37}


@pytest.mark.parametrize("kind", ["hypercolumn", "ring", "random", "v1", "two-areas"])
def test_init_writes_a_circuit_file(organics, tmp_path: Path, kind: str) -> None:
    """It reads back, is simulated to its end, and is not replaced without being asked."""
    path = tmp_path / "mine.toml"
    result = organics("init", path.with_suffix(""), "--kind", kind, "--neurons", 6)
    assert result.exit_code == 0, result.output
    circuit, z, simulation = load_circuit(path)
    assert z.shape == (6,)
    assert np.isfinite(circuit.w).all()
    assert oc.simulate(circuit, z, np.linspace(0, simulation.duration, 3)).success
    assert organics("certify", path).exit_code == 0
    before = path.read_text()
    assert_refused(organics("init", path), "exists; choose another name, or add --force")
    assert path.read_text() == before
    assert organics("init", path, "--force").exit_code == 0
    assert load_circuit(path).z.shape == (8,)
    assert_refused(organics("init", tmp_path / "x", "--kind", "retina"), "--kind must be one of hypercolumn, ring")
    assert not (tmp_path / "x.toml").exists()


@pytest.mark.parametrize("kind", ["ring", "random"])
@pytest.mark.parametrize("neurons", [2, 3, 7])
def test_init_normalizes_recurrent_weights(organics, tmp_path: Path, kind: str, neurons: int) -> None:
    """To spectral norm 1, as the file says, up to its four decimals: of two neurons in a ring too."""
    assert organics("init", tmp_path / "c.toml", "--kind", kind, "-n", neurons).exit_code == 0
    circuit, _, _ = load_circuit(tmp_path / "c.toml")
    np.testing.assert_allclose(np.linalg.norm(circuit.w_r, 2), 1.0, atol=neurons * 1e-4)


def test_a_path_is_no_markup(organics, tmp_path: Path) -> None:
    path, proof = tmp_path / "a[red]b[x].toml", tmp_path / "p[dim].npz"
    assert f"Now: organics simulate '{path}', or" in organics("init", path, "-n", 3).output
    assert f"saved to {proof};" in organics("certify", path, "--proof", proof).output


def test_the_commands_that_init_names_are_those_of_a_shell(organics, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Now: organics simulate plain.toml, or organics certify plain.toml" in organics("init", "plain").output
    assert "Now: organics simulate 'my circuit.toml', or" in organics("init", "my circuit").output
    assert "#     organics simulate 'my circuit.toml'\n" in (tmp_path / "my circuit.toml").read_text()
    assert "Now: organics simulate ./-x.toml, or" in organics("init", "--", "-x").output


def test_init_needs_a_name(organics) -> None:
    assert_refused(organics("init", "."), "NAME must be that of a file, got '.'")
    assert_refused(organics("init", "two\nlines"), "NAME must have no line breaks")


def test_keys_of_a_file_that_are_nearly_right(organics, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    organics("init", path)
    text = path.read_text()
    for old, new, told in (
        ("tau_y =", "tauy =", "unknown key 'tauy' in [circuit] (did you mean tau_y?)"),
        ("[input]\nz =", "z =", "unknown key 'z' in [circuit] (it belongs to [input])"),
        ("points =", "sigma =", "unknown key 'sigma' in [simulation] (it belongs to [circuit])"),
        ("[input]", "[inputs]", "unknown table 'inputs' (did you mean input?)"),
        ("[circuit]", "w = 1\n[circuit]", "unknown key 'w' (it belongs below [circuit])"),
    ):
        assert old in text
        path.write_text(text.replace(old, new) + ("\n[input]\nz = 1.0\n" if old.startswith("[input]\n") else ""))
        assert_refused(organics("certify", path), told)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert organics("certify", path).exit_code == 0


END = "=== end of a command ==="
ONE_AFTER_THE_OTHER = f"""
import json, sys
from organics_cli import main

for k, command in enumerate(json.loads(sys.argv[1])):
    if k:
        print("{END}")
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


def one_after_the_other(
    commands: list[tuple[object, ...]], environment: dict[str, str], folder: Path
) -> subprocess.CompletedProcess[bytes]:
    """Commands in one process of its own, up to the first that fails; starting it is most of the work."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    return subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER, words],
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "utf-8"])
def test_output_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    """A stable circuit is stable where the terminal, or a redirection on Windows, knows few signs."""
    environment = {"PYTHONUTF8": "0", "PYTHONIOENCODING": encoding, "COLUMNS": "0"}
    done = one_after_the_other([("certify", EXAMPLE), ("simulate", EXAMPLE)], environment, tmp_path)
    assert done.returncode == 0, done.stderr
    for told in done.stdout.decode(encoding).split(END):
        assert len(told.splitlines()) > 5
        assert "?" not in told


def test_every_sign_that_commands_write_has_letters() -> None:
    """None of those in their sources, summaries of figures among them, becomes a question mark."""
    folder = Path(lazy.__file__).parents[1]
    sources = (path.read_text(encoding="utf-8") for path in folder.glob("organics_*/*.py"))
    signs = "".join(sorted({sign for text in sources for sign in text if not sign.isascii()}))
    assert "δ" in signs
    assert "?" not in terminal.plain(UnicodeEncodeError("ascii", signs, 0, len(signs), "they are not"))[0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere locales and names of files are others")
@pytest.mark.parametrize("utf8", ["0", "1"])
def test_the_locale_c_and_a_name_that_is_no_text(tmp_path: Path, utf8: str) -> None:
    """In the locale C errors of the output are not "strict"; a path may hold bytes that no encoding has."""
    name = os.fsdecode(b"n\xff.toml")
    shutil.copy(EXAMPLE, tmp_path / name)
    for locale in ("C", "C.UTF-8"):
        commands = [("init", "--force", name), ("certify", name), ("simulate", "-o", ".", name)]
        done = one_after_the_other(commands, {"PYTHONUTF8": utf8, "LC_ALL": locale}, tmp_path)
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / os.fsdecode(b"n\xff.json")).read_bytes())["file"] == name


@pytest.mark.parametrize("arguments", [["certify", str(EXAMPLE)], ["--help"], ["certify", "--help"]])
def test_an_answer_that_nobody_reads_is_no_answer(arguments: list[str]) -> None:
    """``organics certify FILE | head -0``: not the exit code of an unstable circuit."""
    writer = subprocess.Popen(
        [sys.executable, "-m", "organics_cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert writer.stdout is not None
    writer.stdout.close()
    assert writer.wait(PATIENCE) == 141
    assert writer.stderr is not None
    assert writer.stderr.read() == b""
    writer.stderr.close()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes the streams")
@pytest.mark.parametrize(("words", "code"), [(["certify", str(EXAMPLE)], 0), (["certify", "no.toml"], 2)])
def test_streams_that_are_closed(words: list[str], code: int) -> None:
    """``organics certify FILE >&-`` said "not stable" by its exit code, 1, of an error of ours."""
    line = " ".join(map(shlex.quote, [sys.executable, "-m", "organics_cli", *words]))
    for closed in (">&-", "2>&-", ">&- 2>&- <&-"):
        done = subprocess.run(["sh", "-c", f"{line} {closed}"], capture_output=True, timeout=PATIENCE)
        assert done.returncode == code, (closed, done.stderr)
        assert b"Traceback" not in done.stderr


def test_a_run_that_stopped_is_not_told_to_go_on(organics, tmp_path: Path) -> None:
    """ "Simulate longer" is for runs that reached their last time."""
    short = organics("simulate", EXAMPLE, "-o", tmp_path, "--duration", "1e-6")
    assert short.exit_code == 0
    assert "simulate longer" in short.output
    stopped = organics("simulate", EXAMPLE, "-o", tmp_path, "--duration", "1e12")
    assert stopped.exit_code == 1
    assert "rodas5p" in stopped.output
    assert "simulate longer" not in stopped.output


def test_small_potentials_keep_their_digits(organics, tmp_path: Path) -> None:
    """Beside modulators of ordinary size a y of 1e-5 was shown as 0.000010, and smaller ones as zero."""
    circuit = oc.Circuit(None, np.ones((2, 2)), 0.5, 0.5, 0.7, 0.002, 0.002)
    z = np.array([1.23456e-7, -4.2e-9])
    save_circuit(tmp_path / "small.npz", circuit, z)
    done = organics("simulate", tmp_path / "small.npz", "-o", tmp_path / "out")
    assert done.exit_code == 0
    rows = [line.split() for line in done.output.splitlines() if line.split()[:1] in (["1"], ["2"])]
    for row, y in zip(rows, z / 0.7, strict=True):  # b z / (b0 sigma), far below where the pool counts
        assert float(row[1]) == pytest.approx(y, rel=1e-5)
        assert row[3] == "0.122500"


def test_a_proof_has_its_ending(organics, tmp_path: Path) -> None:
    """Said before the work, by the name of the option."""
    for words in (("certify", EXAMPLE, "--proof", "proof.txt"), ("certify", "--check", "proof.txt")):
        done = organics(*words)
        assert_refused(done, f"{words[-2]} must be a file of a proof, ending in .npz, got 'proof.txt'")
        assert not done.stdout.strip()


@pytest.mark.library("torch")
def test_help_names_every_model() -> None:
    import organics_baselines
    from organics_train.cli import MODELS

    assert set(MODELS) == set(organics_baselines.MODELS)
