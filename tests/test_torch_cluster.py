"""``organics train`` on two processes of torchrun: the numbers of one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import PATIENCE, RECENT_TORCH

pytest.importorskip("torch.distributed", reason="torch was built without torch.distributed")

from organics_train import Config, train
from organics_train.checkpoint import load_checkpoint
from organics_train.processes import ElsewhereError, joined

pytestmark = pytest.mark.cpu
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
RUNS: dict[str, dict[str, Any]] = {
    # noise, a rate that changes at every step, a validation set whose batches are shared unevenly
    "digits": {"task": "digits", "batch_size": 48, "epochs": 2, "input_noise": 0.1, "schedule": "cosine", "limit": 192},
    "static": {
        "task": "digits",
        "model": "organics-static",
        "batch_size": 32,
        "epochs": 1,
        "limit": 96,
    },  # a loss of its own
    "adding": {"task": "adding", "length": 6, "samples": 96, "batch_size": 32, "epochs": 2},
    "copy": {"task": "copy", "length": 4, "samples": 64, "batch_size": 32, "epochs": 1},
}
SCRIPT = """
import json, sys
from organics_train import Config, loop, train
from organics_train.processes import under_torchrun

runs, out, *ways = json.loads(sys.argv[1]), *sys.argv[2:]
loop._curve = lambda path, results: path.write_bytes(b"")  # which is slow, and another test's affair
said = {}
for how in ways:
    said[how] = []
    for name, (settings, resume) in runs.items():
        results = train(Config(**settings), f"{out}/{how}/{name}", parallel=how, resume=resume)
        said[how].append([name, results])
    try:
        train(Config(**{**settings, "batch_size": 31}), f"{out}/{how}/odd", parallel=how)
    except Exception as error:
        said[how].append([type(error).__name__, str(error)])
json.dump(said, open(f"{out}/{under_torchrun().rank}.json", "w"))
"""


def config(name: str, **other: Any) -> Config:
    return Config(**{**RUNS[name], "hidden": 8, **other})


def environment() -> dict[str, str]:
    """Of torchrun, which tells its processes the rest."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs in one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name in RUNS:
        train(config(name), folder / name)
    return folder


def same_arrays(found: Path, wanted: Path) -> None:
    """Those of two safetensors files, but for rounding.

    Sums of some ten float32 numbers in another order differ by eps; measured after these
    few steps are 1e-6 of the largest entry, in the moments.
    """
    (mine, _), (theirs, _) = load_checkpoint(found), load_checkpoint(wanted)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert mine[name].dtype == value.dtype
        scale = np.abs(value).max() if value.dtype == np.float32 and value.size else 0.0
        np.testing.assert_allclose(mine[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)


def same_run(found: Path, wanted: Path, processes: int, parallel: str | None) -> None:
    """The same records, parameters and moments, up to rounding, in the same files."""
    assert {path.name for path in found.iterdir()} == {path.name for path in wanted.iterdir()}
    mine, theirs = (json.loads((folder / "results.json").read_text()) for folder in (found, wanted))
    assert (mine["processes"], mine["parallel"]) == (processes, parallel)
    for name in ("config", "hidden", "parameters", "examples", "steps_per_epoch", "implementation", "test_diverged"):
        assert mine[name] == theirs[name]
    assert len(mine["epochs"]) == len(theirs["epochs"])
    for left, right in zip([*mine["epochs"], mine], [*theirs["epochs"], theirs], strict=True):
        for name in set(right) & {"epoch", "learning_rate", "skipped_steps", "validation_diverged"}:
            assert left[name] == right[name]
        for name in set(right) & {"loss", "validation_loss", "test_loss", "gradient_norm", "gradient_norm_max"}:
            assert left[name] == pytest.approx(right[name], rel=2e-6), name
        for name in set(right) & {"train_accuracy", "validation_accuracy", "test_accuracy"}:
            assert left[name] == pytest.approx(right[name], abs=1e-6), name
    for name in ("model.safetensors", "checkpoint.safetensors"):
        same_arrays(found / name, wanted / name)


def on_two(
    ways: tuple[str, ...], out: Path, runs: dict[str, tuple[dict[str, Any], bool]]
) -> list[dict[str, list[list[Any]]]]:
    """Runs by SCRIPT, in every way; what each of its processes has got."""
    script = out / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [*TORCHRUN, str(script), json.dumps(runs), str(out), *ways],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(alone, tmp_path):
    """Also where they go on with the run of one, and where one goes on with theirs."""
    ways = ("ddp", "fsdp") if RECENT_TORCH else ("ddp",)
    runs = {name: (config(name).asdict(), False) for name in RUNS}
    runs |= {"on": (config("adding").asdict(), True), "half": (config("adding", epochs=1).asdict(), False)}
    for how in ways:
        train(config("adding", epochs=1), tmp_path / how / "on")
    said = on_two(ways, tmp_path, runs)
    for how in ways:
        folder = tmp_path / how
        for name in RUNS:
            same_run(folder / name, alone / name, 2, how)
        same_run(folder / "on", alone / "adding", 2, how)
        train(config("adding"), folder / "half", resume=True)
        same_run(folder / "half", alone / "adding", 1, None)
        *results, last = zip(*(mine[how] for mine in said), strict=True)
        for pair in results:  # every process returns them
            left, right = (re.sub(r'"seconds": [^,}]*', "", json.dumps(one)) for one in pair)
            assert left == right
        (quiet, _), (speaks, sentence) = sorted(last)
        assert (quiet, speaks) == ("ElsewhereError", "ValueError")
        assert "the 31 examples of a step cannot be split evenly over 2 processes" in sentence
        assert not (folder / "odd").exists()


DISTURBED = """
import json, os, signal, sys, time
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from organics_cli import app, main
from organics_train import loop
from organics_train.torch_learner import TorchLearner

rank, step, what, restarts, slow, command = json.loads(sys.argv[1])
go, done = TorchLearner.step, []
loop._curve = lambda path, results: path.write_bytes(b"")

def disturbed(*given):
    done.append(1)
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == str(rank) and len(done) == step:
        exec(what)
    return go(*given)

def work():
    TorchLearner.step = disturbed
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background takes away
    if os.environ["RANK"] == "0" and slow:  # it leaves last, when torchrun has seen the other one end
        leave = torch.distributed.destroy_process_group
        torch.distributed.destroy_process_group = lambda: (time.sleep(slow), leave())
    sys.argv[1:] = command
    main()

torch.optim.SGD([torch.zeros(1)])  # imports much, here once for all processes
settings = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
elastic_launch(LaunchConfig(**settings, max_restarts=restarts, start_method="fork"), work)()
"""


def disturbed(
    out: Path, rank: int, step: int, what: str, restarts: int = 0, slow: int = 0
) -> subprocess.CompletedProcess[str]:
    """``organics train`` on two processes, one of which does something before a step, at its first attempt.

    torchrun's launcher, whose processes come from one that has all imported.
    """
    command = ["train", "--resume", "--checkpoint-every", "1", "--task", "adding", "--hidden", "8", "--length", "6"]
    command += ["--samples", "96", "--batch-size", "32", "--epochs", "2", "--output", str(out / "run")]
    return subprocess.run(
        [sys.executable, "-c", DISTURBED, json.dumps([rank, step, what, restarts, slow, command])],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.slow
def test_interrupted_and_resumed_by_one(alone, tmp_path):
    """A signal to one process: all stop after the step, and the other one writes the checkpoint."""
    done = disturbed(tmp_path, 1, 5, "os.kill(os.getpid(), signal.SIGINT)", slow=3)
    said = done.stderr
    assert done.returncode != 0
    assert not (tmp_path / "run" / "results.json").exists()
    assert said.count("epoch 1: loss") == 1
    assert said.count("stopped: add --resume") == 1
    assert "error:" not in said
    _, record = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert (record["epoch"], record["step"]) == (2, 2)
    train(config("adding"), tmp_path / "run", resume=True)
    same_run(tmp_path / "run", alone / "adding", 1, None)


@pytest.mark.slow
def test_an_error_in_the_first_process_ends_all_with_its_sentence(tmp_path):
    done = disturbed(tmp_path, 0, 2, "raise OSError('no more of that')")
    assert done.returncode != 0
    assert re.findall("error: .*", done.stderr) == ["error: no more of that"], done.stderr
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_torchrun_starts_again_after_an_error_in_the_other_process(alone, tmp_path):
    """Its sentence, and then the run goes on from its last checkpoint."""
    done = disturbed(tmp_path, 1, 5, "raise OSError('no more of that')", restarts=1)
    assert done.returncode == 0, done.stderr
    assert re.findall("error: .*", done.stderr) == ["error: no more of that"], done.stderr
    assert done.stderr.count("epoch 1: loss") == 1
    same_run(tmp_path / "run", alone / "adding", 2, "ddp")


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({}, {"parallel": "zero"}, "unknown parallel 'zero'"),
        ({"framework": "jax"}, {}, "the framework jax trains in one process"),
        ({"device": "cuda:1"}, {}, "each on a device of its own, got 'cuda:1'"),
        ({}, {"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_wrong_use_is_said_once(tmp_path, monkeypatch, given, options, message, rank):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    kind, said = (ValueError, message) if rank == 0 else (ElsewhereError, "another process of this run failed before")
    with pytest.raises(kind, match=said):
        train(config("adding", **given), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_several_processes_want_torchrun(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2 -m organics_cli train"):
        train(config("adding"), tmp_path / "run", parallel="ddp")
    with joined(config("adding")) as processes:
        assert (processes.rank, processes.count, processes.how) == (0, 1, None)
        assert processes.gather(3) == [3]
        assert processes.any(True)
        assert not processes.any(False)
