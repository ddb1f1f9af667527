"""Circuit files: what is written is read back, to the last bit; mistakes are told in one sentence. Locks of folders."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array
from support import PATIENCE, small_circuit

import organics_core as oc
from organics_core.io import locks
from organics_core.io.circuits import SimulationSettings, load_circuit, save_circuit
from organics_core.io.locks import alone_in
from organics_core.io.trajectories import save_trajectory

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


def test_a_name_as_long_as_they_may_be(tmp_path: Path) -> None:
    """What is written beside it first has a name that is not longer."""
    circuit, z, _ = small_circuit(2, identity=True)
    path = tmp_path / f"{'ü' * 125}.toml"
    save_circuit(path, circuit, z)
    assert same(load_circuit(path).circuit, circuit)


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


HOLDER = """
import sys, time
from pathlib import Path
from organics_core.io.locks import alone_in
with alone_in(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_free_again_when_its_process_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "in\n"
    try:
        with pytest.raises(ValueError, match=rf"shared is in use by process {holder.pid} on .*another folder"):
            alone_in(folder).__enter__()
    finally:
        holder.kill()
        holder.wait(PATIENCE)
        holder.stdout.close()
    assert (folder / ".lock").exists()  # which means nothing any more
    with alone_in(folder), pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"):
        alone_in(tmp_path / "shared" / ".." / "shared").__enter__()
    assert list(tmp_path.iterdir()) == [folder]  # it was there before, and stays
    assert not list(folder.iterdir())
    with alone_in(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


def test_many_at_once_are_never_two_in_a_folder(tmp_path: Path) -> None:
    """Of processes that enter and leave as fast as they can, each is alone with a file that it makes and removes."""
    program = (
        "import os, sys, time; from pathlib import Path; from organics_core.io.locks import alone_in\n"
        "entered, folder, mine = 0, Path(sys.argv[1]), Path(sys.argv[1], 'mine')\n"
        "while entered < 100:\n"
        "    try:\n"
        "        with alone_in(folder):\n"
        "            os.close(os.open(mine, os.O_CREAT | os.O_EXCL)); mine.unlink(); entered += 1\n"
        "    except ValueError as error:\n"
        "        assert 'in use by' in str(error)\n"
    )
    (tmp_path / "shared").mkdir()
    words = [sys.executable, "-c", program, str(tmp_path / "shared")]
    several = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in several:
        assert process.communicate(timeout=PATIENCE)[1] == ""
        assert process.returncode == 0


def test_where_there_are_no_locks_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(handle: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(locks, "_lock", none)
    with alone_in(tmp_path):
        assert (tmp_path / ".lock").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        alone_in(tmp_path / "file").__enter__()


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    def full(handle: int, text: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(handle: int) -> None:
        closed.append(handle)
        really_close(handle)

    really_close = os.close
    with monkeypatch.context() as patch:
        patch.setattr(locks.os, "write", full)
        patch.setattr(locks.os, "close", close)
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
            alone_in(tmp_path).__enter__()
    assert len(closed) == 1
    assert not list(tmp_path.iterdir())
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize("ending", [".toml", ".npz"])
def test_what_is_saved_can_be_loaded(tmp_path: Path, ending: str) -> None:
    """Settings may be numbers of numpy; what no file can hold, or would be refused when read, is not written."""
    circuit, z, _ = small_circuit(2, identity=True)
    path = tmp_path / f"Kreis ⊛{ending}"
    save_circuit(path, circuit, z, SimulationSettings(duration=np.float64(0.2), points=np.int64(50)))  # type: ignore[arg-type]
    assert load_circuit(path).simulation == SimulationSettings(duration=0.2, points=50)
    before = path.read_bytes()
    wrong = [
        (circuit, z, SimulationSettings(points=1), ValueError, "points must be an integer from 2"),
        (circuit, z, SimulationSettings(method="best"), ValueError, "unknown method 'best'"),
        (circuit, np.array([np.nan, 1.0]), None, ValueError, "z must be finite"),
        (circuit._replace(w=csr_array(circuit.w)), z, None, TypeError, "w must be a dense array to be saved"),
        (circuit._replace(w_r=lambda v: v), z, None, TypeError, "w_r must be a dense array to be saved, got function"),
    ]
    for made, drive, settings, kind, message in wrong:
        with pytest.raises(kind, match=f"^{message}"):
            save_circuit(path, made, drive, settings)
    assert path.read_bytes() == before


def test_a_run_is_no_circuit(tmp_path: Path) -> None:
    """Saved by Trajectory.save or by the command line: what it is, and who reads it."""
    circuit, z, _ = small_circuit(2, identity=True)
    run, path = oc.simulate(circuit, z, np.linspace(0.0, 0.01, 9)), tmp_path / "run.npz"
    for prefix in ("state.", ""):
        save_trajectory(path, run, prefix=prefix)
        with pytest.raises(ValueError, match=r"run\.npz holds a trajectory, not a circuit; organics_core\.load"):
            load_circuit(path)


def test_damaged_archives_are_called_so(tmp_path: Path) -> None:
    """Whatever zip, zlib or numpy make of them: one ValueError that names the file, or what was there before."""
    circuit, z, _ = small_circuit(2, identity=True)
    run = oc.simulate(circuit, z, np.linspace(0.0, 0.01, 9))
    run.save(tmp_path / "run.npz")
    np.savez_compressed(tmp_path / "circuit.npz", z=z, **{k: v for k, v in circuit._asdict().items() if v is not None})
    oc.prove(circuit, z).save(tmp_path / "proof.npz")
    rng = np.random.default_rng(0)
    for name, load in (("run", oc.load_trajectory), ("circuit", load_circuit), ("proof", oc.load_proof)):
        whole = (tmp_path / f"{name}.npz").read_bytes()
        path = tmp_path / "damaged.npz"
        refused = 0
        for k in range(100):
            parts = bytearray(whole[: rng.integers(len(whole))] if k % 2 else whole)
            for place in rng.integers(len(parts), size=3) if parts else ():
                parts[place] ^= rng.integers(1, 256)
            path.write_bytes(parts)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    load(path)
            except ValueError as error:
                assert "damaged.npz" in str(error)  # noqa: PT017 - not all damage is seen
                refused += 1
        assert refused > 80
