"""Circuit files: what is written is read back, to the last bit; every mistake is told in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import small_circuit

import organics_core as oc
from organics_core.io.circuits import SimulationSettings, load_circuit, save_circuit

EXAMPLE = Path(__file__).parents[1] / "examples" / "circuit.toml"
SETTINGS = SimulationSettings(duration=0.1, points=33, method="rk4", rtol=1e-5, atol=1e-8, variant="rectified")


def same(circuit: oc.Circuit, other: oc.Circuit) -> bool:
    """Whether two circuits are the same numbers."""
    return all(
        (mine is None and theirs is None) or np.array_equal(mine, theirs)
        for mine, theirs in zip(circuit, other, strict=True)
    )


@pytest.mark.parametrize("ending", [".toml", ".npz"])
@pytest.mark.parametrize("identity", [True, False], ids=["identity", "matrix"])
def test_roundtrip(tmp_path: Path, ending: str, identity: bool) -> None:
    """Circuit, drive and settings come back unchanged, and nothing else is left in the folder."""
    circuit, z, _ = small_circuit(4, identity=identity)
    path = tmp_path / "new" / f"circuit{ending}"
    save_circuit(path, circuit, z, SETTINGS)
    found = load_circuit(path)
    assert same(found.circuit, circuit)
    np.testing.assert_array_equal(found.z, z)
    assert found.simulation == SETTINGS
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_batch_axes_need_npz(tmp_path: Path) -> None:
    """A TOML file holds one circuit; an archive holds any."""
    circuit, z, _ = small_circuit(3, identity=True)
    drives = np.stack([z, 2 * z])
    with pytest.raises(ValueError, match=r"^z has batch axes \(shape \(2, 3\)\)"):
        save_circuit(tmp_path / "circuit.toml", circuit, drives)
    save_circuit(tmp_path / "circuit.npz", circuit, drives)
    np.testing.assert_array_equal(load_circuit(tmp_path / "circuit.npz").z, drives)


def test_a_number_stands_for_all(tmp_path: Path) -> None:
    """One number is a uniform pool, or the same drive for every neuron, of the size given as n."""
    path = tmp_path / "pool.toml"
    vectors = "\n".join(f"{name} = 0.5" for name in ("b", "b0", "sigma", "tau_y", "tau_a"))
    path.write_text(f"[circuit]\nw = 0.25\nn = 3\n{vectors}\n[input]\nz = 1\n")
    circuit, z, simulation = load_circuit(path)
    np.testing.assert_array_equal(circuit.w, np.full((3, 3), 0.25))
    np.testing.assert_array_equal(z, np.ones(3))
    assert circuit.w_r is None
    assert simulation == SimulationSettings()
    path.write_text(path.read_text().replace("n = 3\n", ""))
    with pytest.raises(ValueError, match="n is missing"):
        load_circuit(path)


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is replaced whole or not at all."""
    circuit, z, _ = small_circuit(3, identity=True)
    path = tmp_path / "circuit.npz"
    save_circuit(path, circuit, z)
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        save_circuit(path, circuit, 2 * z)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


WRONG = {
    "no such file": (None, None, "there is no file"),
    "broken TOML": ("[circuit]", "[circuit", "is not valid TOML"),
    "unknown table": ("[simulation]", "[simulate]", "'simulate'"),
    "unknown key": ("sigma =", "sigmma =", "'sigmma'"),
    "unknown setting": ("points =", "point =", "'point'"),
    "wrong shape": ("z = [1.0,", "z = [", "z must hold 4 numbers, got shape (3,)"),
    "negative weight": ("[1.0, 0.6, 0.3, 0.6]", "[1.0, -0.6, 0.3, 0.6]", "w must"),
    "zero time constant": ("tau_y = 0.002", "tau_y = 0.0", "tau_y must"),
    "NaN": ("[1.0, 0.6, 0.3, 0.6]", "[1.0, nan, 0.3, 0.6]", "w must"),
    "infinite drive": ("z = [1.0,", "z = [inf,", "z must"),
    "an integer too large": ("z = [1.0,", f"z = [{10**400},", "z holds an integer too large"),
    "thousands of digits": ("z = [1.0,", f"z = [{'9' * 5000},", "is not valid TOML: exceeds the limit"),
    "thousands of brackets": ("z = [1.0,", f"z = [{'[' * 3000}", "nested too deeply"),
    "text": ("b = 0.5 ", 'b = "half" ', "b must be a number"),
    "boolean": ("b = 0.5 ", "b = true ", "b must be a number"),
    "method": ('"dopri5"', '"dopri"', "unknown method 'dopri'"),
    "variant": ('"main"', '"mean"', "unknown variant 'mean'"),
    "recurrence": ('"identity" ', '"unity" ', "w_r must"),
    "points": ("points = 400", "points = 1", "points must"),
    "points without end": ("points = 400", "points = 1_000_000_000", "points must be an integer from 2 to 1,000,000"),
    "duration": ("duration = 0.15", "duration = -1", "duration must"),
}


def spoil(kind: str, folder: Path) -> tuple[Path, str]:
    """The example with one mistake in it, and what the error must say."""
    path = folder / "spoilt.toml"
    old, new, told = WRONG[kind]
    if old is not None:
        text = EXAMPLE.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
    return path, told


@pytest.mark.parametrize("kind", WRONG)
def test_one_sentence_names_the_culprit(tmp_path: Path, kind: str) -> None:
    """Every mistake in the example is told with the file and what is wrong."""
    path, told = spoil(kind, tmp_path)
    with pytest.raises((ValueError, OSError)) as raised:
        load_circuit(path)
    text = str(raised.value)
    assert told in text
    assert "spoilt.toml" in text
    assert "\n" not in text


def test_other_endings(tmp_path: Path) -> None:
    """Only the two kinds of files."""
    with pytest.raises(ValueError, match=r"must end in \.toml or \.npz, got '\.json'"):
        load_circuit(tmp_path / "circuit.json")
