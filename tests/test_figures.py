"""The numbers behind the figures, and the command that draws them."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="figures need matplotlib")
pytest.importorskip("typer", reason="the command needs typer")

from typer.testing import CliRunner

import organics_core as oc
from organics_cli.app import app
from organics_figures import FIGURES, numbers


def test_all_random_circuits_of_order_one_are_stable():
    """900 of 900 with a spectral norm of W_r of one and gains up to one half; strong drive destabilizes many."""
    found = numbers.random_stability()
    abscissa = np.concatenate([found[f"abscissa_{n}"] for n in found["sizes"]])
    converged = np.concatenate([found[f"converged_{n}"] for n in found["sizes"]])
    assert abscissa.shape == (900,)
    assert converged.all()
    assert (abscissa < 0).all()
    assert 0.3 < (found["strong"] >= 0).mean() < 0.9
    # two of three hundred pairs of neurons with gains up to one
    assert (found["gains_to_one"] >= 0).sum() == 2


def test_fixed_points_of_the_portraits():
    found = numbers.phase_portraits(quick=True)
    stable = [found[f"stable_{i}"].tolist() for i in range(len(numbers.PORTRAITS))]
    assert [sum(s) for s in stable] == [1] * 6
    assert [len(s) for s in stable] == [1, 3, 1, 3, 1, 1]
    for index, (changes, variant) in enumerate(numbers.PORTRAITS.values()):
        circuit = numbers.one_neuron(**changes)
        for y, a in found[f"points_{index}"]:
            slope = oc.vector_field(circuit, oc.State(np.array([y]), np.array([a])), np.array([1.0]), variant=variant)
            assert abs(circuit.tau_y * slope.y[0]) < 1e-12
            assert abs(circuit.tau_a * slope.a[0]) < 1e-12
    # where a trajectory arrives, it is at the stable one
    for index, flags in enumerate(stable):
        arrived = found[f"basin_{index}"]
        assert set(np.unique(arrived)) <= {-1, flags.index(True)}
        assert (arrived >= 0).mean() > 0.3


def test_newton_is_much_faster_than_the_iteration():
    found = numbers.convergence()
    newton, iteration = np.median(found["newton"], axis=1), np.median(found["iteration"], axis=1)
    assert newton[4] < 1e-14
    assert iteration[4] > 1e-8
    assert np.argmax(newton < 1e-12) < 0.4 * np.argmax(iteration < 1e-12)


def test_energy_falls():
    found = numbers.energy()
    assert (np.diff(found["small"], axis=0) < 1e-12 * found["small"][0]).all()
    assert (found["small"][-1] < 1e-2 * found["small"][0]).all()


def test_gamma_peak_rises_with_contrast():
    found = numbers.noise_spectra()
    peak = found["gamma_peak"]
    seen = peak[np.isfinite(peak)]
    assert len(seen) >= 2
    assert (np.diff(seen) > 0).all()
    assert 30 < seen[-1] < 80


def test_weak_recurrence_keeps_normalization():
    found = numbers.phase_diagram(quick=True)
    assert (found["kind"][0] == 0).all()
    np.testing.assert_allclose(found["distance"][0], 0.0, atol=1e-10)
    assert (found["kind"][-1] != 0).any()


def test_command_writes_picture_numbers_and_record(tmp_path):
    done = CliRunner().invoke(app, ["figures", "energy", "iterates", "--quick", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{name}.{suffix}" for name in ("energy", "iterates") for suffix in ("png", "svg", "npz", "json")
    }
    record = json.loads((tmp_path / "energy.json").read_text())
    assert record["caption"] == FIGURES["energy"].caption
    with np.load(tmp_path / "energy.npz") as saved:
        np.testing.assert_array_equal(saved["small"], numbers.energy(quick=True)["small"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["bogus"], "unknown figure 'bogus'; choose one of phase-portraits"), ([], "name a figure, or ask for --all")],
)
def test_bad_requests(arguments, message, tmp_path):
    done = CliRunner().invoke(app, ["figures", *arguments, "--output", str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " ")


def test_list():
    done = CliRunner().invoke(app, ["figures", "--list"])
    assert all(name in done.output for name in FIGURES)
