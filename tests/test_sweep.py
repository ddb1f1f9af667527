"""The driver of phase diagrams, on processes and on a cluster, and its store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache

import numpy as np
import pytest
from support import PATIENCE

import organics_core as oc
from organics_core.analysis.classification import KINDS

sweep = pytest.importorskip("organics_sweep", reason="zarr is not installed", exc_type=ImportError)


def test_bad_seeds_are_named() -> None:
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        sweep.Sweep(seed=-1)


def test_bad_numbers_of_workers_are_refused_before_a_store_is_made(tmp_path) -> None:
    spec = sweep.Sweep(n=3, deltas=(0.0,), norms=(1.0,), draws=1)
    for workers, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="workers must be a number of processes, 0 for none besides this one, got"):
            sweep.run(spec, tmp_path / "store.zarr", workers=workers)
    assert not (tmp_path / "store.zarr").exists()


def small(**changes: object) -> sweep.Sweep:
    values = {"n": 4, "deltas": (0.0, 0.4, 1.0), "norms": (0.3, 1.0), "draws": 4, "block": 2, **changes}
    return sweep.Sweep(**values)


@cache
def expected(spec: sweep.Sweep) -> oc.PhaseDiagram:
    return oc.phase_diagram(spec.circuit(), np.array(spec.deltas), np.array(spec.norms), spec.draws, seed=spec.seed)


def assert_same(found: oc.PhaseDiagram, want: oc.PhaseDiagram) -> None:
    for name in ("kind", "simulated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name))
    np.testing.assert_allclose(found.abscissa, want.abscissa, rtol=1e-9)


def test_sweep_in_this_process_equals_the_phase_diagram(tmp_path) -> None:
    spec = small()
    sweep.run(spec, tmp_path / "store", workers=0)
    assert_same(sweep.load(tmp_path / "store"), expected(spec))


def test_by_default_there_are_as_many_processes_as_this_one_may_use_cores(tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(sweep.driver, "processors", lambda: 3)
    monkeypatch.setattr(sweep.driver, "_on_processes", lambda spec, tasks, workers: asked.append(workers) or [])
    sweep.run(small(), tmp_path / "store")
    assert asked == [3]


def test_sweep_on_processes_and_resumed(tmp_path) -> None:
    """Interrupted after three tasks, then resumed on two processes: only the missing tasks run, nothing differs."""
    spec, path = small(), tmp_path / "store"
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run(spec, path, workers=0, progress=stop)
    assert seen[-1] == (3, 12)
    half = sweep.load(path)
    assert np.sum(half.kind >= 0) == 3 * spec.block
    after = []
    sweep.run(spec, path, workers=2, progress=lambda done, total: after.append(done))
    assert after == list(range(3, 13))
    assert_same(sweep.load(path), expected(spec))
    with pytest.raises(ValueError, match="holds another sweep"):
        sweep.run(small(seed=1), path, workers=0)


def test_a_killed_process_loses_nothing(tmp_path) -> None:
    """One worker process is killed in mid-run: the pool starts anew and the result is complete."""
    spec, killed = small(draws=8, block=1), []

    def kill(done: int, total: int) -> None:
        if done == 5 and not killed:
            import multiprocessing

            victim = multiprocessing.active_children()[0]
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(victim.pid)

    sweep.run(spec, tmp_path / "store", workers=2, progress=kill)
    assert killed
    assert_same(sweep.load(tmp_path / "store"), expected(spec))


def test_a_store_explains_itself(tmp_path) -> None:
    """Names of axes, their values, meaning of codes and units, for a reader without this library."""
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    spec = small()
    sweep.run(spec, tmp_path / "store", workers=0)
    group = zarr.open_group(tmp_path / "store", mode="r")
    assert group.attrs["sweep"]["deltas"] == list(spec.deltas)
    for name in ("kind", "abscissa", "distance", "simulated"):
        assert group[name].metadata.dimension_names == ("delta", "norm", "draw")
    np.testing.assert_array_equal(group["delta"][:], spec.deltas)
    np.testing.assert_array_equal(group["norm"][:], spec.norms)
    codes = group["kind"].attrs["codes"]
    assert {codes[str(kind)] for kind in np.unique(group["kind"][:])} <= set(KINDS)
    assert group["abscissa"].attrs["units"] == "1/s"


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> oc.PhaseDiagram:
    path = tmp_path_factory.mktemp("sweep") / "store"
    sweep.run(small(draws=10, block=1), path, workers=0)
    return sweep.load(path)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_sweep_resumes_bit_for_bit(tmp_path, never_killed: oc.PhaseDiagram, how: signal.Signals) -> None:
    """Its worker processes end with it, and the store, once completed, is that of a sweep that ran through."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time, organics_sweep as sweep\n"
        "def tell(done, total):\n"
        "    print(done, flush=True)\n"
        "    if done == 10: time.sleep(600)\n"  # until killed, however late that is
        "if __name__ == '__main__':\n"
        "    spec = sweep.Sweep(n=4, deltas=(0.0, 0.4, 1.0), norms=(0.3, 1.0), draws=10, block=1)\n"
        "    sweep.run(spec, sys.argv[1], workers=2, progress=tell)\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "store")]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # tests in a shell's background inherit that SIGINT is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as job:
        while int(job.stdout.readline()) < 10:
            pass
        job.send_signal(how)
        job.communicate(timeout=PATIENCE)  # the pipe is closed when the last of the workers has ended
    assert job.returncode == -how
    there = int(np.sum(sweep.load(tmp_path / "store").kind >= 0))
    assert 10 <= there < 60
    sweep.run(small(draws=10, block=1), tmp_path / "store", workers=2 if how == signal.SIGKILL else 0)
    for found, want in zip(sweep.load(tmp_path / "store"), never_killed, strict=True):
        np.testing.assert_array_equal(found, want)


def test_a_killed_worker_of_a_cluster_loses_nothing(tmp_path) -> None:
    """The same sweep on a local cluster of two worker processes, one of which is killed in mid-run."""
    distributed = pytest.importorskip("distributed", reason="dask is not installed")
    spec, killed = small(draws=8, block=1), []
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):

        def kill(done: int, total: int) -> None:
            if done == 5 and not killed:
                pids = client.run(os.getpid)
                victim = next(iter(pids.values()))
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
                time.sleep(0.1)

        sweep.run(spec, tmp_path / "store", client=client, progress=kill)
    assert killed
    assert_same(sweep.load(tmp_path / "store"), expected(spec))


@pytest.mark.slow
def test_command_on_a_cluster(tmp_path) -> None:
    """On a Dask cluster of two local processes, the store and the table of one process."""
    distributed = pytest.importorskip("distributed", reason="dask is not installed")
    options = ["--n", "4", "--deltas", "0:1:3", "--norms", "1,3", "--draws", "4", "--block", "1"]

    def organics_sweep(*more: str) -> str:
        command = [sys.executable, "-m", "organics_cli", "sweep", *options, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    alone = organics_sweep("--workers", "0", "--output", str(tmp_path / "alone"))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = organics_sweep("--scheduler", cluster.scheduler_address, "--output", str(tmp_path / "cluster"))
        worked = client.run(lambda: "organics_sweep" in sys.modules)  # a worker imports it with its first task
    assert len(worked) == 2
    assert any(worked.values())
    assert_same(sweep.load(tmp_path / "cluster" / "store.zarr"), sweep.load(tmp_path / "alone" / "store.zarr"))
    table = slice(found.index("delta"), found.index("Numbers"))
    assert found[table] == alone[alone.index("delta") : alone.index("Numbers")]


def test_numpys_scalars_are_pythons(tmp_path) -> None:
    """A sweep of them is made, and resumed by the same in Python's numbers; what is no scalar is refused."""
    values = {"n": 3, "draws": 1, "block": 1, "seed": 2, "pool": 0.5, "b": 0.75, "sigma": 0.25, "tau_y": 0.5}
    kinds = {int: np.int64, float: np.float32}  # these floats are exact in float32
    spec = sweep.Sweep(
        **{name: kinds[type(value)](value) for name, value in values.items()}, deltas=np.zeros(1), norms=np.ones(1)
    )
    plain = sweep.Sweep(**values, deltas=(0.0,), norms=(1.0,))
    assert spec == plain
    assert json.loads(json.dumps(spec.describe())) == plain.describe()
    sweep.run(spec, tmp_path / "store", workers=0)
    assert sweep.Store(tmp_path / "store", plain).missing() == []
    for name, wrong, error in (
        ("b", np.ones(2), TypeError), ("b", -1.0, ValueError), ("seed", 1.5, TypeError),
        ("n", np.float64(3), TypeError), ("pool", -1.0, ValueError),
        ("deltas", 0.5, TypeError), ("deltas", "01", TypeError), ("norms", np.ones((1, 1)), TypeError),
    ):  # fmt: skip
        with pytest.raises(error, match=f"{name} must"):
            small(**{name: wrong})


def test_a_store_is_made_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    """Where making it fails nothing is left, and the retry is welcome, in an empty folder too."""
    spec = small()
    (tmp_path / "store").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(sweep.Sweep, "describe", lambda _: {"b": object()})
        with pytest.raises(TypeError):
            sweep.Store(tmp_path / "store", spec)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert len(sweep.Store(tmp_path / "store", spec).missing()) == 12


def test_a_store_that_another_process_makes_meanwhile_is_taken(tmp_path, monkeypatch) -> None:
    """Or refused, where it is of another sweep; nothing else is left beside it."""
    made = sweep.Store._make
    for k, (other, refused) in enumerate(((small(), False), (small(seed=1), True))):
        path = tmp_path / f"store{k}"

        def both(self, part, other=other, path=path) -> None:
            made(self, part)
            monkeypatch.setattr(sweep.Store, "_make", made)
            sweep.Store(path, other)

        monkeypatch.setattr(sweep.Store, "_make", both)
        if refused:
            with pytest.raises(ValueError, match="holds another sweep"):
                sweep.Store(path, small())
        else:
            assert len(sweep.Store(path, small()).missing()) == 12
    assert sorted(file.name for file in tmp_path.iterdir()) == ["store0", "store1"]


@pytest.mark.parametrize("name", ["kind", "done"])
@pytest.mark.parametrize("torn", [True, False])
def test_a_store_without_a_description_says_so(tmp_path, name: str, torn: bool) -> None:
    spec = sweep.Sweep(n=3, deltas=(0.0,), norms=(1.0,), draws=2)
    store = tmp_path / "store"
    sweep.run(spec, store, workers=0)
    about = store / name / "zarr.json"
    if torn:
        about.write_bytes(about.read_bytes()[:5])
    else:
        about.unlink()
    for again in (lambda: sweep.load(store), lambda: sweep.run(spec, store, workers=0)):
        with pytest.raises(ValueError, match=f"store: the description of the array {name} is missing or torn"):
            again()


def test_a_torn_store_says_so(tmp_path) -> None:
    spec = small(deltas=(0.0,), norms=(1.0,))
    store = sweep.run(spec, tmp_path / "store", workers=0)
    want = sweep.load(tmp_path / "store")
    chunk = next(path for path in (tmp_path / "store" / "abscissa" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(b"")
    with pytest.raises(ValueError, match="a chunk of abscissa cannot be read"):
        sweep.load(tmp_path / "store")
    assert store.forget_torn() == 1
    sweep.run(spec, tmp_path / "store", workers=0)
    assert_same(sweep.load(tmp_path / "store"), want)


def test_a_script_without_a_guard_is_told_once(tmp_path) -> None:
    """Its first worker, which imports it, stops before it runs the sweep again."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('run', flush=True)\n"
        "from organics_sweep import Sweep, run\n"
        "run(Sweep(n=3, deltas=(0.0,), norms=(1.0,), draws=4, block=1), 'store', workers=2)\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert done.stdout.split() == ["run", "run"]
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("RuntimeError: a sweep on several processes must be started under")
    )
    assert done.stderr.count("Traceback") == 1
    assert "BrokenProcessPool" not in done.stderr
    script.write_text(script.read_text().replace("run(Sweep", "if __name__ == '__main__':\n    run(Sweep"))
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr


def test_failing_tasks_are_reported(tmp_path) -> None:
    with pytest.raises(ValueError, match="draws must be at least 1"):
        small(draws=0)
    with pytest.raises(ValueError, match="unknown ensemble"):
        small(ensemble="none")
    with pytest.raises(FileNotFoundError, match="no sweep at"):
        sweep.load(tmp_path / "nothing")


def test_command(tmp_path, monkeypatch) -> None:
    """The command runs a sweep with a progress bar, resumes it, and prints the table of kinds."""
    typer = pytest.importorskip("typer", reason="typer is not installed")
    from typer.testing import CliRunner

    monkeypatch.setenv("COLUMNS", "100")
    app = typer.Typer()

    @app.callback()
    def root() -> None: ...

    sweep.register(app)
    options = ["--n", "4", "--deltas", "0:1:3", "--norms", "1,3", "--draws", "2", "--workers", "0"]
    out = tmp_path / "[/bold]out"  # a path is no markup
    done = CliRunner().invoke(app, ["sweep", *options, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert f"Numbers: {out / 'summary.json'}" in done.output
    assert "fixed point" in done.output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["circuits"] == 12
    assert sum(summary["kinds"].values()) == 12
    again = CliRunner().invoke(app, ["sweep", *options, "--out", str(out)])
    assert again.exit_code == 0
    assert "6 of 6 tasks were there already" in again.output
    # a chunk that was not written to its end, and the mark of another task
    for name in ("kind", "done"):
        chunks = sorted(path for path in (out / "store.zarr" / name / "c").rglob("*") if path.is_file())
        chunk = chunks[0 if name == "kind" else -1]
        chunk.write_bytes(chunk.read_bytes()[:3])
    torn = CliRunner().invoke(app, ["sweep", *options, "--out", str(out)])
    assert torn.exit_code == 0, torn.output
    assert "5 of 6 tasks were there already" in torn.output
    assert "6 of 6 tasks done" in torn.output  # a bar shows nothing where there is no terminal
    assert "could not be read and are computed again: 1." in torn.output
    assert json.loads((out / "summary.json").read_text()) == summary
    for wrong, message in (
        (("--deltas", "a"), "not a list of numbers"),
        (("--workers", "1", "--scheduler", "tcp://localhost:8786"), "not both"),
        (("--workers", "-1"), "--workers"),
    ):
        bad = CliRunner().invoke(app, ["sweep", *wrong, "--out", str(out)])
        assert bad.exit_code == 2
        assert message in bad.output
        assert "classifying" not in bad.output  # nothing has begun


def test_one_command_at_a_time_in_a_folder(tmp_path) -> None:
    pytest.importorskip("typer", reason="the command line is not installed")
    from typer.testing import CliRunner

    from organics_cli.app import app
    from organics_core.io.locks import alone_in

    words = ["sweep", "--n", "3", "--deltas", "0", "--norms", "1", "--draws", "2", "--workers", "0", "--output"]
    with alone_in(tmp_path / "out"):
        done = CliRunner().invoke(app, [*words, str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "out is in use by process" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(app, [*words, str(tmp_path / "out")]).exit_code == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"store.zarr", "summary.json"}
