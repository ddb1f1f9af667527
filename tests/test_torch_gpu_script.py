"""benchmarks/gpu.py where there is no GPU: what it measures, on tiny sizes, and what it says without a device."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
import torch

pytestmark = pytest.mark.cpu
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.syspath_prepend(SCRIPT.parent)
    yield module
    monkeypatch.undo()


@pytest.fixture(scope="module")
def tiny(gpu: Any) -> Any:
    return gpu.Sizes(2, 3, (4,), 3, 2, 4, 6, 8, 1)


def test_without_a_device_it_says_so() -> None:
    """One sentence and exit code 2."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr == "No CUDA device is visible: nothing was run.\n"


def test_it_runs_from_the_source_tree(gpu: Any, tmp_path: Path) -> None:
    """Nothing installed: packages from wheels, the project from here, its backends found."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "tiny-1-py3-none-any.whl", "w") as archive:
        archive.writestr("tiny_package.py", "number = 5\n")
    path = gpu.prepare(wheels, tmp_path / "site")
    code = """
import json, importlib.metadata, tiny_package, organics_core, organics_backends, organics_torch
found = {e.name: e.value for e in importlib.metadata.distribution("organics-core").entry_points}
print(json.dumps([tiny_package.number, found["torch"], organics_core.__file__]))
"""
    path = [*path, *filter(None, [os.environ.get("PYTHONPATH")])]  # where these tests have packages from wheels, too
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    number, torch_backend, core = json.loads(run.stdout)
    assert number == 5
    assert torch_backend == "organics_backends.torch:backend"
    assert Path(core).parent.parent == SCRIPT.parent.parent


def test_training_is_measured(gpu: Any, tiny: Any) -> None:
    """Every row has its time, its ratio and its error against float64."""
    rows = gpu.training("cpu", tiny)
    names = [row["layer"] for row in rows]
    ours = ["ORGaNICs, core's step, eager", "ORGaNICs, plain torch, derivative by hand"]
    assert names == ["nn.LSTM", *ours, "the paper's cell, eager"]
    assert not any("error" in row for row in rows)
    for row in rows[1:3]:
        assert 0 < row["relative error"] < 1e-5
        assert row["times LSTM"] == pytest.approx(row["seconds"] / rows[0]["seconds"])
    assert rows[3]["faster than paper's cell"] == 1.0
    limits = gpu.ceilings("cpu", size=16, repeats=1)
    assert all(value > 0 for value in limits.values())
    gpu.fractions(rows, limits)
    assert all(row["fraction of limit"] > 0 for row in rows[1:3])


def test_all_steps_at_once_are_measured(gpu: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the sequential way, with iterations and error; jax, which fails here, costs its row alone."""
    monkeypatch.setattr(gpu, "jax_sequences", lambda *_: 1 / 0)
    kept: list[str] = []
    sizes = tiny._replace(sequences=(1, 2), long=20)
    *rows, failed = gpu.parallel("cpu", sizes, lambda rows: kept.append(json.dumps(rows)))
    assert json.loads(kept[-1]) == [*rows, failed]
    assert failed["error"] == "ZeroDivisionError: division by zero"
    assert [(row["at once"], row["sequences"]) for row in rows] == [("torch", 1), ("torch", 2)]
    for row in rows:
        assert "error" not in row
        assert row["converged"]
        assert row["iterations"] > 1
        assert row["relative error"] < 1e-5
        for name in ("forward", "forward and backward"):
            assert row[f"{name}, times faster"] == row[f"{name}, auto"] / row[f"{name}, parallel"] > 0


def test_sizes_of_the_batch_and_single_steps_are_measured(gpu: Any, tiny: Any) -> None:
    """Beside nn.LSTM; what cannot be had here costs its rows alone."""
    sizes = tiny._replace(batches=(1, 2))
    rows = gpu.batches("cpu", sizes, kernels=[("core", "reference", "highest"), ("none", "triton", "high")])
    assert [(row["layer"], row["batch"]) for row in rows] == [
        (name, batch) for batch in (1, 2) for name in ("nn.LSTM", "ORGaNICs, core", "ORGaNICs, none")
    ]
    for lstm, core, none in (rows[:3], rows[3:]):
        assert core["times LSTM"] == core["seconds"] / lstm["seconds"] > 0
        assert "CUDA" in none["error"]
    lstm, layer, one = gpu.stream("cpu", tiny)
    assert [layer["times LSTM"], one["times LSTM"]] == [
        row["seconds a step"] / lstm["seconds a step"] for row in (layer, one)
    ]


def test_parts_are_chosen(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By what is left out, by what is taken, a part of a group by its own name; an unknown name is an error."""
    monkeypatch.setattr(gpu, "cuda_device", lambda: "A GPU")
    monkeypatch.setattr(gpu, "run_pieces", lambda device, options, chosen, *_: chosen)
    group = {"training", "parallel", "batches", "stream", "ceilings", "jax training"}
    assert gpu.main(["--out", str(tmp_path)]) == group | {"tests", "agreement", "simulation"}
    assert gpu.main(["--skip", "training,tests"]) == {"agreement", "simulation"}
    assert gpu.main(["--only", "training", "--skip", "stream"]) == group - {"stream"}
    assert gpu.main(["--only", "stream,tests"]) == {"stream", "tests"}
    with pytest.raises(SystemExit):
        gpu.main(["--only", "nothing"])


def test_an_implementation_that_fails_is_recorded(gpu: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its error; the other rows keep their times."""
    monkeypatch.setattr(gpu, "largest_difference", lambda *_: 1 / 0)
    rows = gpu.training("cpu", tiny)
    assert "seconds" in rows[0]
    assert rows[1]["error"] == "ZeroDivisionError: division by zero"


def test_the_error_is_a_norm(gpu: Any) -> None:
    """The worst array counts."""
    ones = torch.ones(4, dtype=torch.float64)
    assert gpu.largest_difference([ones, 1.1 * ones], [ones, ones]) == pytest.approx(0.1)


def test_simulations_are_measured(gpu: Any, tiny: Any) -> None:
    """With numpy in place of cupy, which leaves out the kernel."""
    standin.organics_cupy()
    rows = gpu.simulation(tiny, np, engines=("graph", "core"))
    assert len(rows) == 8
    assert not any("error" in row for row in rows)
    assert all(row["steps per second"] == row["steps"] / row["seconds"] for row in rows)


def test_the_paper_s_runs_go_on(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No time at all is one epoch; the next call goes on from there. Each leaves its results."""
    monkeypatch.setattr(gpu, "PAPER_RUNS", [("digits", "organics", 4), ("digits", "nothing", 4)])
    for epochs in (1, 2):
        good, bad = gpu.paper(tmp_path, 0.0, device="cpu", limit=64, batch_size=32)
        assert good["epochs"] == epochs
        assert 0 <= good["test accuracy"] <= 1
        assert "nothing" in bad["error"]
        files = {file.name for file in (tmp_path / "digits-organics-4").iterdir()}
        assert {"checkpoint.safetensors", "results.json"} <= files


def test_a_piece_that_hangs_or_dies_costs_itself_alone(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it had kept is in the record, with the reason; a record of the same day is added to."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time, pathlib, os\n"
        "piece, into = sys.argv[2], pathlib.Path(sys.argv[4])\n"
        'into.write_text(\'[{"simulation": "\' + piece + \'", "seconds": 1.5}]\')\n'
        "if piece == 'hangs': time.sleep(600)\n"
        "if piece == 'dies': os.abort()\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    options = argparse.Namespace(out=tmp_path, seconds=2000.0, paper=None)
    began = time.perf_counter()
    for budgets in ({"simulation": 600.0}, {"hangs": 3.0, "dies": 600.0}):
        if "hangs" in budgets:  # on a busy machine it takes long to get there
            budgets["hangs"] += round(5 * (time.perf_counter() - began))
        monkeypatch.setattr(gpu, "BUDGETS", budgets)
        code = gpu.run_pieces("A GPU", options, set(budgets), dict(os.environ))
        assert code == int("dies" in budgets)
    record = json.loads(next(tmp_path.glob("gpu-a-gpu-*.json")).read_text())
    assert [record[name][0]["simulation"] for name in ("simulation", "hangs", "dies")] == [
        "simulation",
        "hangs",
        "dies",
    ]
    assert record["errors"]["hangs"].startswith("stopped after ")
    assert record["errors"]["dies"].startswith("exit code -6")
    assert "| simulation | 1.5 |" in capsys.readouterr().out


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_rows_of_a_piece_outlive_the_script(gpu: Any, tmp_path: Path, how: signal.Signals) -> None:
    """They are beside the record where it is killed, and in it after the next call; only SIGTERM can end the piece."""
    piece = tmp_path / "piece.py"
    piece.write_text(
        "import sys, time, os, pathlib\n"
        'pathlib.Path(sys.argv[4]).write_text(\'[{"simulation": "half", "seconds": 1.5}]\')\n'
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    out = tmp_path / "out"
    script = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("gpu_script", {str(SCRIPT)!r})
gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)
gpu.cuda_device, gpu.__file__ = lambda: "A GPU", {str(piece)!r}
gpu.main(["--only", "simulation", "--out", {str(out)!r}])
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL) as run:
        until = time.monotonic() + 60
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        run.send_signal(how)
    worker = int((tmp_path / "pid").read_text())
    if how == signal.SIGTERM:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    else:
        os.kill(worker, signal.SIGKILL)
    (rows,) = out.glob("*.rows.json")
    assert gpu.run_pieces("A GPU", argparse.Namespace(out=out, seconds=9.0, paper=None), set(), {}) == 0
    record = json.loads(next(out.glob("gpu-a-gpu-????-??-??.json")).read_text())
    assert record["simulation"] == [{"simulation": "half", "seconds": 1.5}]
    assert record["errors"] == {"simulation": "the script was ended meanwhile"}
    assert not rows.exists()


def test_an_interrupted_test_run_says_how_far_it_came(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts of what had finished when its time was up."""
    test = tmp_path / "test_slow.py"
    test.write_text("def test_a(): pass\n")
    monkeypatch.setitem(gpu.TEST_RUNS, "slow", ("--noconftest", "-c", os.devnull, str(test)))
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 1)
    began = time.perf_counter()
    assert gpu.run_tests("slow", dict(os.environ), 600.0)["ok"]
    budget = 3.0 + 5 * (time.perf_counter() - began)  # on a busy machine it takes long to get to the first test
    test.write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(3600)\n")
    result = gpu.run_tests("slow", dict(os.environ), budget)
    assert result["ok"] is result["finished"] is False
    assert result["passed"] == 1


def test_agreement_has_columns_for_the_gpu(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside those that are always there; here the CPU stands in."""
    import organics_agree as agree
    from organics_agree.libraries import numpy_columns, torch_columns

    monkeypatch.setattr(agree, "installed", lambda: (*numpy_columns(), *torch_columns()))
    found = gpu.agreement("cpu", "cpu")
    assert found["ok"]
    assert set(found["worst"]) == {
        f"torch{where} {dtype}" for where in ("", " cpu") for dtype in ("float64", "float32")
    }
    assert found["worst"]["torch cpu float64"] == found["worst"]["torch float64"]


def test_counts_and_table(gpu: Any) -> None:
    """What pytest printed, and what the documentation shows."""
    assert gpu.counts("....\n3 failed, 120 passed, 2 skipped in 4.1s\n") == {"failed": 3, "passed": 120, "skipped": 2}
    record = {
        "device": "A GPU",
        "date": "2000-01-01",
        "versions": {"numpy": "2"},
        "tests": {"cupy": {"ok": False, "passed": 4, "failed": 1}},
        "agreement": {"ok": True},
        "training": [{"layer": "a", "seconds": 0.012345, "flop": 1.0}],
        "simulation": [{"simulation": "b", "error": "x|y"}],
    }
    text = gpu.markdown(record)
    assert "- tests, cupy: did not pass (4 passed, 1 failed, 0 errors)" in text
    assert "| layer | seconds |\n|---|---|\n| a | 0.0123 |" in text
    assert "| b | x/y |" in text
