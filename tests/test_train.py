"""The training driver: files, errors, interruption, tables; a run that is killed and resumed, in torch and jax."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from support import ELSEWHERE, PATIENCE

pytest.importorskip("safetensors", reason="safetensors is not installed")

from organics_core import rates_for
from organics_train import Config, datasets, loop, tables, train
from organics_train.checkpoint import load_checkpoint, save_checkpoint
from organics_train.config import closest_size
from organics_train.records import batch_indices

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

SCRIPT = """
import os, signal, sys, time
from organics_train import Config, train
framework, out, wait = sys.argv[1], sys.argv[2], sys.argv[3] == "wait"
config = Config(
    task="adding", framework=framework, hidden=8, length=12, samples=640, batch_size=40, epochs=2, seed=3,
    input_noise=0.1,
    schedule="onecycle",
)
if len(sys.argv) > 3 + 2:  # die in the middle of writing a checkpoint
    written = []

    def die(number):
        written.append(number)
        if len(written) == int(sys.argv[5]):
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = die

def tell(progress):
    print(progress.epoch, progress.step, flush=True)
    if wait and (progress.epoch, progress.step) == (2, 8):
        time.sleep(600)  # until killed, however late that is

train(config, out, resume=True, checkpoint_every=3, on_step=tell)
if len(sys.argv) == 5:
    train(config, sys.argv[4])
"""

EVERY_FRAMEWORK = pytest.mark.parametrize(
    "framework", [pytest.param(name, marks=pytest.mark.library(name)) for name in ("torch", "jax")]
)


class Fake:
    """A learner without a framework: its state counts the examples it saw, in order."""

    parameter_count, hidden, implementation, device = 1, 1, None, "cpu"

    def __init__(self, loss=1.0, norm=1.0):
        self.seen = np.zeros(0, dtype=np.int64)
        self.loss, self.norm, self.rates, self.noise = loss, norm, [], []

    def step(self, index, learning_rate, noise):
        self.noise.append(noise)
        self.seen = np.concatenate([self.seen, index])
        self.rates.append(learning_rate)
        late = len(self.seen) > 16
        return (self.loss if late else 1.0), 0.5, (self.norm if late else 2.0)

    def evaluate(self, part, batch_size):
        return loop.Score(1.0, 0.25, 0)

    def parameters(self):
        return {"seen": self.seen}

    def state(self):
        return {"seen": self.seen}

    def load_state(self, arrays):
        self.seen = arrays["seen"]


@pytest.fixture
def fake(monkeypatch):
    learners = []

    def use(**options):
        def make(config, data, processes):
            learners.append(Fake(**options))
            return learners[-1]

        monkeypatch.setattr(loop, "make_learner", make)
        return learners

    return use


SMALL = {"task": "adding", "length": 5, "samples": 24, "batch_size": 4, "epochs": 2}


def test_results_and_order_of_batches(fake, tmp_path):
    learners = fake()
    config = Config(**SMALL, lr_step=1, lr_gamma=0.5)
    results = train(config, tmp_path / "a", command="the command")
    expected = np.concatenate([index for epoch in (1, 2) for index in batch_indices(0, epoch, 24, 4)])
    assert np.array_equal(learners[0].seen, expected)
    assert learners[0].rates == [0.01] * 6 + [0.005] * 6
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == results
    assert results["command"] == "the command"
    assert results["gradient_clipping"] == "none"
    assert [record["gradient_norm"] for record in results["epochs"]] == [pytest.approx(10 / 6), 1.0]
    assert results["test_accuracy"] == 0.25
    assert not list((tmp_path / "a").glob("*.part"))


def test_a_checkpoint_says_how_it_was_computed(fake, tmp_path, monkeypatch):
    """A resumed run goes on so, or says that it cannot."""
    fake()
    monkeypatch.setattr(Fake, "implementation", "fast")
    monkeypatch.setattr(Fake, "use", lambda self, name: setattr(self, "implementation", name), raising=False)
    path = tmp_path / "checkpoint.safetensors"
    train(Config(**SMALL), tmp_path)
    assert load_checkpoint(path)[1]["implementation"] == "fast"
    monkeypatch.setattr(Fake, "implementation", "slow")
    assert train(Config(**SMALL), tmp_path, resume=True)["implementation"] == "fast"
    monkeypatch.setattr(Fake, "use", lambda self, name: "no compiler")
    with pytest.warns(RuntimeWarning, match=r"'fast', which cannot be had here \(no compiler\).* goes on by 'slow'"):
        train(Config(**SMALL), tmp_path, resume=True)


def test_a_record_names_every_session(fake, tmp_path, monkeypatch):
    """Of a run that was resumed elsewhere, all versions that had a part in it."""
    fake()
    train(Config(**SMALL), tmp_path)
    train(Config(**{**SMALL, "epochs": 3}), tmp_path, resume=True)
    monkeypatch.setattr(loop, "version", lambda name: f"{name} of tomorrow")
    results = train(Config(**{**SMALL, "epochs": 4}), tmp_path, resume=True)
    first, last = results["sessions"]
    assert last["environment"]["numpy"] == results["environment"]["numpy"] == "numpy of tomorrow"
    assert first["environment"]["numpy"] == np.__version__
    assert (first["device"], first["processes"], first["parallel"], first["implementation"]) == ("cpu", 1, None, None)


@pytest.mark.library("torch")
def test_the_implementation_is_settled_before_the_first_step(tmp_path):
    _needs("torch")
    from organics_torch import native
    from organics_train import torch_learner

    config = Config(task="adding", hidden=6, length=8, samples=64, batch_size=32, epochs=1)
    learner = torch_learner.make(config, config.data())
    best = "function" if native.load() is None else "fused"
    assert learner.implementation == best == learner.model.layer.implementation
    assert learner.use("function") is None
    assert learner.implementation == "function"
    train(config, tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.safetensors")[1]["implementation"] == best


@pytest.mark.library("jax")
def test_jax_records_how_it_computes(tmp_path, monkeypatch):
    """And a resumed run that cannot compute so says what to do."""
    _needs("jax")
    from organics_jax import native

    config = Config(framework="jax", task="adding", hidden=6, length=8, samples=64, batch_size=32, epochs=1)
    monkeypatch.setenv(native.VARIABLE, "0")
    train(config, tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.safetensors")[1]["implementation"] == "chunked"
    monkeypatch.delenv(native.VARIABLE)
    if native.load() is None:
        return
    from organics_train import jax_learner

    learner = jax_learner.JaxLearner(config, config.data())
    assert learner.implementation == "fused"
    assert learner.use("fused") is None
    assert learner.use("chunked") == "the native library is in use; ORGANICS_JAX_FUSED=0 gives 'chunked'"


def test_damage_is_noticed(fake, tmp_path):
    """100 bytes anywhere in the numbers, or one in the record."""
    fake()
    train(Config(**SMALL), tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    at = whole.index(b"epochs")
    for first, count in ((size, 100), (len(whole) - 100, 100), (at, 1)):
        damaged = bytearray(whole)
        damaged[first : first + count] = bytes(byte ^ 1 for byte in damaged[first : first + count])
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged"):
            train(Config(**SMALL), tmp_path, resume=True)
    path.write_bytes(whole)
    train(Config(**SMALL), tmp_path, resume=True)


def test_a_checkpoint_without_checksum_is_read(tmp_path):
    from safetensors.numpy import save_file

    arrays, metadata = {"a": np.ones(3)}, {"organics_train": "1", "record": '{"step": 1}'}
    save_file(arrays, tmp_path / "old", metadata=metadata)
    assert load_checkpoint(tmp_path / "old")[1] == {"step": 1}


def test_equal_runs_leave_equal_files(tmp_path):
    """In other processes, too: the order of the header does not hang on a hash."""
    program = (
        "import sys, numpy as np; from pathlib import Path; from organics_train.checkpoint import save_checkpoint\n"
        "save_checkpoint(Path(sys.argv[1]), {n: np.ones(3) for n in 'bca'}, {'x': 1})"
    )
    found = set()
    for name in "abcdef":
        subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], env=ENVIRONMENT, check=True)
        found.add((tmp_path / name).read_bytes())
    assert len(found) == 1


@pytest.mark.skipif(not hasattr(os, "symlink"), reason=f"{ELSEWHERE}no symbolic links")
def test_a_link_stays_a_link(fake, tmp_path):
    fake()
    (tmp_path / "run").mkdir()
    target, link = tmp_path / "elsewhere.safetensors", tmp_path / "run" / "model.safetensors"
    link.symlink_to(target)
    train(Config(**SMALL), tmp_path / "run")
    assert link.is_symlink()
    assert load_checkpoint(target)[0].keys() == {"seen"}


def test_curve_is_a_png(fake, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    fake()
    train(Config(**SMALL), tmp_path)
    assert (tmp_path / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": float("nan")}, "the loss is nan at epoch 1, step 5"),
        ({"loss": float("inf")}, "the loss is inf at epoch 1, step 5"),
        ({"norm": float("inf")}, "the gradient norm is inf at epoch 1, step 5"),
    ],
)
def test_not_finite_stops_and_names_the_step(fake, tmp_path, options, message):
    fake(**options)
    with pytest.raises(FloatingPointError, match=rf"{message}; .*smaller learning rate.*max_rates=Y,A,B"):
        train(Config(**SMALL), tmp_path, checkpoint_every=1)
    arrays, record = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert (record["epoch"], record["step"], len(arrays["seen"])) == (1, 4, 16)


def test_no_rates_are_advised_where_there_are_none(fake, tmp_path):
    fake(loss=float("nan"))
    with pytest.raises(FloatingPointError, match=r"a smaller learning rate may help$"):
        train(Config(**SMALL, model="lstm"), tmp_path)


def test_ctrl_c_leaves_a_checkpoint_and_resume_goes_on(fake, tmp_path):
    learners = fake()
    before = signal.getsignal(signal.SIGINT)  # which is ignored in a shell's background

    def interrupt(progress):
        if (progress.epoch, progress.step) == (2, 2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(Config(**SMALL), tmp_path, on_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert load_checkpoint(tmp_path / "checkpoint.safetensors")[1]["step"] == 2
    results = train(Config(**SMALL), tmp_path, resume=True)
    whole = train(Config(**SMALL), tmp_path / "whole")
    assert np.array_equal(learners[1].seen, learners[2].seen)
    for ours, theirs in zip(results["epochs"], whole["epochs"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_handlers_that_are_not_of_python(fake, tmp_path, monkeypatch):
    """Of a program that Python is embedded in, it knows them as None: the default is put in their place."""
    fake()
    put = signal.signal
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(signal, "signal", lambda number, handler: (put(number, handler), None)[1])
    try:
        train(Config(**SMALL), tmp_path)
        assert all(signal.getsignal(number) == signal.SIG_DFL for number in before)
    finally:
        for number, handler in before.items():
            put(number, handler)
    assert (tmp_path / "results.json").exists()


@pytest.mark.parametrize("stop", [None, (2, 3), (4, 1)])
def test_the_best_on_validation_is_tested(fake, tmp_path, monkeypatch, stop):
    """The first of two equal ones; also where the run was interrupted before or after it."""
    learners = fake()
    accuracies = {24: 0.2, 48: 0.5, 72: 0.5, 96: 0.4}

    def evaluate(self, part, batch_size):
        return loop.Score(1.0, accuracies[len(self.seen)] + 0.1 * (part == "test"), 0)

    def interrupt(progress):
        if (progress.epoch, progress.step) == stop:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Fake, "evaluate", evaluate)
    config = Config(**SMALL | {"epochs": 4}, tested="best")
    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path, on_step=interrupt)
    results = train(config, tmp_path, resume=True)
    assert results["test_accuracy"] == pytest.approx(0.6)
    assert "epoch 2, the best on the validation set" in results["measured_at"]
    assert len(load_checkpoint(tmp_path / "model.safetensors")[0]["seen"]) == len(learners[-1].seen) == 48
    last = train(Config(**SMALL | {"epochs": 4}), tmp_path / "last")
    assert (last["test_accuracy"], last["measured_at"][:31]) == (0.5, "the parameters after the last epoch"[:31])
    with pytest.raises(ValueError, match="is of a run with tested 'best', not 'last'"):
        train(Config(**SMALL | {"epochs": 4}), tmp_path, resume=True)


@pytest.mark.parametrize("killed", ["before", "after"])
def test_the_best_is_one_that_the_run_went_through(fake, tmp_path, monkeypatch, killed):
    """Killed before or after the checkpoint of a best epoch, and resumed where that epoch is the best no more."""
    fake()
    accuracies = {24: 0.2, 48: 0.5, 72: 0.6, 96: 0.4}
    monkeypatch.setattr(
        Fake, "evaluate", lambda self, part, size: loop.Score(1.0, accuracies[len(self.seen)] + (part == "test"), 0)
    )
    config = Config(**SMALL | {"epochs": 4}, tested="best")

    class Killed(BaseException):
        pass

    def die(path, arrays, record):
        if path.name == loop.CHECKPOINT and len(record["epochs"]) == 3:
            raise Killed
        save_checkpoint(path, arrays, record)

    def die_later(source, target):
        if os.path.basename(target) == loop.BEST and load_checkpoint(source)[1]["epoch"] == 3:
            raise Killed
        rename(source, target)

    rename = os.replace
    with monkeypatch.context() as patch:
        if killed == "before":
            patch.setattr(loop, "save_checkpoint", die)
        else:
            patch.setattr("os.replace", die_later)
        with pytest.raises(Killed):
            train(config, tmp_path)
    accuracies[72] = 0.3  # as on another machine; what was recorded stays
    results = train(config, tmp_path, resume=True)
    best = 2 if killed == "before" else 3
    assert f"epoch {best}, the best" in results["measured_at"]
    assert len(load_checkpoint(tmp_path / "model.safetensors")[0]["seen"]) == 24 * best
    assert not (tmp_path / loop.NEXT).exists()


def test_noise_is_that_of_seed_epoch_and_step(fake, tmp_path):
    learners = fake()
    config = Config(**SMALL, input_noise=0.5)
    train(config, tmp_path / "whole")
    train(Config(**{**SMALL, "epochs": 1}, input_noise=0.5), tmp_path / "two")
    train(config, tmp_path / "two", resume=True)
    train(Config(**{**SMALL, "seed": 1}, input_noise=0.5), tmp_path / "other")
    whole, first, second, other = (np.stack(learner.noise) for learner in learners)
    assert whole.shape == (12, 4, 5, 2)
    assert np.array_equal(whole, np.concatenate([first, second]))
    assert len(np.unique(np.concatenate([whole, other]))) == 2 * whole.size
    assert abs(whole.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * whole.size)  # five standard errors
    train(Config(**SMALL), tmp_path / "none")
    assert learners[-1].noise == [None] * 12


def test_a_finished_run_takes_more_epochs(fake, tmp_path):
    learners = fake()
    train(Config(**SMALL), tmp_path)
    results = train(Config(**{**SMALL, "epochs": 3}), tmp_path, resume=True)
    assert len(results["epochs"]) == 3
    assert len(learners[1].seen) == 72


def test_a_run_does_not_go_back(fake, tmp_path):
    """Results of more epochs, or of a part of one more, never stand under fewer."""
    fake()
    train(Config(**SMALL), tmp_path / "whole")

    def interrupt(progress):
        if (progress.epoch, progress.step) == (2, 2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(Config(**SMALL), tmp_path / "part", on_step=interrupt)
    for name in ("whole", "part"):
        with pytest.raises(ValueError, match="has begun its epoch 2: epochs must be at least that, got 1"):
            train(Config(**{**SMALL, "epochs": 1}), tmp_path / name, resume=True)
    train(Config(**{**SMALL, "epochs": 1}), tmp_path / "one")
    assert len(train(Config(**{**SMALL, "epochs": 1}), tmp_path / "one", resume=True)["epochs"]) == 1


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_the_learning_rate_falls_to_nothing_step_by_step(fake, tmp_path, schedule):
    learners = fake()
    config = Config(**{**SMALL, "epochs": 10}, schedule=schedule)
    results = train(config, tmp_path)
    rates = np.array(learners[0].rates)
    top = 0 if schedule == "cosine" else 6  # it rises in the first tenth of 60 steps
    assert rates.argmax() == top
    assert rates[top] == pytest.approx(0.01, rel=0.1)
    assert np.all(np.diff(rates[: top + 1]) > 0)
    assert np.all(np.diff(rates[top:]) < 0)
    assert 0 < rates[-1] < 1e-5
    assert rates[0] == pytest.approx(0.01 if schedule == "cosine" else 0.01 / 12, rel=0.01)
    assert [record["learning_rate"] for record in results["epochs"]] == [config.rate(epoch) for epoch in range(1, 11)]
    with pytest.raises(ValueError, match="is of a run with epochs 10, not 11"):
        train(Config(**{**SMALL, "epochs": 11}, schedule=schedule), tmp_path, resume=True)


def test_a_run_recorded_before_there_were_schedules_goes_on(fake, tmp_path):
    fake()
    train(Config(**SMALL), tmp_path)
    arrays, record = load_checkpoint(tmp_path / "checkpoint.safetensors")
    del record["config"]["schedule"]
    save_checkpoint(tmp_path / "checkpoint.safetensors", arrays, record)
    assert len(train(Config(**{**SMALL, "epochs": 3}), tmp_path, resume=True)["epochs"]) == 3
    with pytest.raises(ValueError, match="is of a run with schedule 'step', not 'cosine'"):
        train(Config(**{**SMALL, "epochs": 3}, schedule="cosine"), tmp_path, resume=True)


def test_a_run_goes_on_on_another_device(fake, tmp_path):
    """What was trained on a GPU is finished without one; a warning says so, and the record names both."""
    fake()
    train(Config(**SMALL), tmp_path)
    arrays, record = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert (record.pop("devices"), record.pop("device")) == (["cpu"], "cpu")
    record["config"]["device"] = "cuda"
    save_checkpoint(tmp_path / "checkpoint.safetensors", arrays, record)
    longer = Config(**{**SMALL, "epochs": 3})
    with pytest.warns(RuntimeWarning, match=r"was made on 'cuda' and the run goes on on 'cpu', whose numbers differ"):
        results = train(longer, tmp_path, resume=True)
    assert results["devices"] == ["cuda", "cpu"]
    assert train(longer, tmp_path, resume=True)["devices"] == ["cuda", "cpu"]


@pytest.mark.library("jax")
def test_the_device_of_the_record_is_the_one_that_computed(tmp_path):
    """jax takes its own, whatever is asked of torch."""
    import jax

    settings = {**SMALL, "epochs": 1, "hidden": 4, "framework": "jax"}
    assert train(Config(**settings, device="cuda"), tmp_path)["devices"] == [jax.default_backend()]


@pytest.mark.library("torch")
@pytest.mark.parametrize("device", ["tpu", "mps:7", "cuda:99"])
def test_a_device_that_is_not_there(device, tmp_path):
    with pytest.raises(ValueError, match=f"device must be one that is there, got '{device}', and torch finds none"):
        train(Config(**SMALL, hidden=4, device=device), tmp_path)


def test_another_run_in_the_folder(fake, tmp_path):
    fake()
    train(Config(**SMALL), tmp_path)
    with pytest.raises(FileExistsError, match="exists already: resume that run, or choose another folder"):
        train(Config(**SMALL), tmp_path)
    with pytest.raises(ValueError, match="is of a run with seed 0, not 1"):
        train(Config(**SMALL, seed=1), tmp_path, resume=True)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is not a readable"):
        train(Config(**SMALL), tmp_path, resume=True)


def test_a_run_with_data_of_its_own(fake, tmp_path):
    """The record says so, no table sets it beside the paper's number, and it goes on with the same data only."""
    fake()
    rng = np.random.default_rng(0)
    parts = [part for _ in range(3) for part in (rng.random((24, 5, 2), dtype=np.float32), np.arange(24) % 10)]
    mine = datasets.Dataset("mine", *parts, kind="classes", outputs=10)
    config = Config(task="smnist", hidden=64, batch_size=4, epochs=2)
    results = train(config, tmp_path / "mine", data=mine)
    assert results["given_data"]["name"] == "mine"
    (row,) = [row for row in tables.rows_of([results | {"hidden": 64}], ["smnist"]) if row["accuracy"] is not None]
    assert (row["task"], row["paper"]) == ("smnist, own data", None)
    again = train(config, tmp_path / "mine", resume=True, data=mine._replace(name="renamed"))
    assert again["test_accuracy"] == results["test_accuracy"]
    other = mine._replace(x_test=mine.x_test + np.float32(1))
    with pytest.raises(ValueError, match=r"with data of its own, 'mine' of sha256 .*, not data of its own"):
        train(config, tmp_path / "mine", resume=True, data=other)
    with pytest.raises(ValueError, match="not the data of its task"):
        train(config, tmp_path / "mine", resume=True)
    assert train(Config(**SMALL), tmp_path / "usual")["given_data"] is None
    with pytest.raises(ValueError, match="is of a run with the data of its task, not data of its own"):
        train(Config(**SMALL), tmp_path / "usual", resume=True, data=mine)


def own_data(kind, *, outputs=3, scored=0, **other):
    """Small data of a kind, some arrays of which are others: name=function of the array."""
    rng = np.random.default_rng(0)
    shape = {"classes": (), "steps": (5,), "number": (), "numbers": (5, outputs)}[kind]
    made = {}
    for part, count in (("train", 16), ("validation", 6), ("test", 6)):
        made[f"x_{part}"] = rng.random((count, 5, 2), dtype=np.float32)
        made[f"y_{part}"] = rng.random((count, *shape), dtype=np.float32)
        if kind in ("classes", "steps"):
            made[f"y_{part}"] = rng.integers(0, outputs, (count, *shape))
    made |= {name: change(made[name]) for name, change in other.items()}
    return datasets.Dataset("mine", **made, kind=kind, outputs=outputs, scored_steps=scored)


def _with(value):
    def change(array):
        array = array.copy()
        array.flat[3] = value
        return array

    return change


@pytest.mark.parametrize(
    ("kind", "other", "message"),
    [
        ("classes", {"y_train": _with(-100)}, r"y_train must hold classes from 0 to 2, .* got -100"),
        ("classes", {"y_validation": _with(-1)}, r"y_validation must hold classes from 0 to 2, .* got -1"),
        ("classes", {"y_test": _with(3)}, r"y_test must hold classes from 0 to 2, .* got 3"),
        ("classes", {"y_train": lambda y: y.astype(float)}, "y_train must hold integer classes .*, got dtype float64"),
        ("classes", {"y_train": lambda y: np.eye(3)[y]}, r"y_train must have shape \(N,\) .*\(16,\), got \(16, 3\)"),
        ("classes", {"y_train": lambda y: np.tile(y, 2)}, r"y_train must have shape .*, here \(16,\), got \(32,\)"),
        ("classes", {"y_test": lambda y: y[:4]}, r"y_test must have shape .*, here \(6,\), got \(4,\)"),
        ("classes", {"x_test": lambda x: x[:0]}, r"x_test must hold numbers of shape \(N, 5, 2\), at least one"),
        ("classes", {"x_validation": lambda x: x[:, :3]}, r"x_validation must .* \(N, 5, 2\), .* shape \(6, 3, 2\)"),
        ("classes", {"x_train": lambda x: x[..., 0]}, r"x_train must hold numbers of shape \(N, T, k\), .* \(16, 5\)"),
        ("classes", {"x_train": lambda x: x + 0j}, "x_train must hold numbers of shape .*, got complex64"),
        ("classes", {"x_test": _with(np.nan)}, "x_test must be finite in float32, got nan"),
        ("classes", {"x_test": lambda x: 1e39 * x.astype(float)}, r"x_test must be finite in float32, got -?\d.*e\+3"),
        ("number", {"outputs": 1, "y_validation": _with(np.inf)}, "y_validation must be finite in float32, got inf"),
        ("steps", {"y_train": _with(-100)}, r"y_train must hold classes from 0 to 2, .* got -100"),
        ("steps", {"scored": 6}, "scored_steps must be from 0, all, to the 5 steps, got 6"),
        ("number", {"outputs": 1, "y_train": lambda y: y[:, None]}, r"y_train must have shape \(N,\) .* \(16, 1\)"),
        ("number", {}, "outputs must be 1 for kind 'number', got 3"),
        ("numbers", {"y_train": lambda y: y[..., :1]}, r"shape \(N, T, outputs\) .*\(16, 5, 3\), got \(16, 5, 1\)"),
    ],
)
def test_data_of_its_own_that_do_not_fit(kind, other, message, fake, tmp_path):
    """Targets were repeated along an axis or left out without a word, -1 was jax's last class."""
    learners = fake()
    with pytest.raises((TypeError, ValueError), match=message):
        train(Config(**SMALL), tmp_path, data=own_data(kind, **other))
    assert not learners
    assert not list(tmp_path.iterdir())


def test_data_of_its_own_that_are_no_dataset(tmp_path):
    with pytest.raises(TypeError, match="data must be a Dataset, got tuple"):
        train(Config(**SMALL), tmp_path, data=tuple(own_data("classes")))
    with pytest.raises(ValueError, match="unknown kind 'class'; choose one of 'classes', 'steps', 'number', 'numbers'"):
        train(Config(**SMALL), tmp_path, data=own_data("classes")._replace(kind="class"))
    with pytest.raises(ValueError, match="outputs must be at least 1, got 0"):
        train(Config(**SMALL), tmp_path, data=own_data("classes")._replace(outputs=0))


@EVERY_FRAMEWORK
@pytest.mark.parametrize("kind", ["classes", "number"])
def test_data_of_its_own_in_other_dtypes(framework, kind, tmp_path):
    """They are what training computes with: the numbers of float32 and int64."""
    _needs(framework)
    config = Config(task="adding", framework=framework, hidden=3, batch_size=8, epochs=1)
    given = own_data(kind, outputs=3 if kind == "classes" else 1)
    other = {name: value.astype(np.float64) for name, value in given._asdict().items() if name.startswith("x")}
    kinds = np.uint8 if kind == "classes" else np.float64
    other |= {name: value.astype(kinds) for name, value in given._asdict().items() if name.startswith("y")}
    want = train(config, tmp_path / "a", data=given)
    found = train(config, tmp_path / "b", data=given._replace(**other))
    for name in ("test_loss", "test_accuracy"):
        assert found[name] == want[name]
    assert found["epochs"][0]["loss"] == want["epochs"][0]["loss"]


def test_results_without_a_checkpoint_are_not_written_over(fake, tmp_path):
    """As the committed records are: a new run, which takes hours, would replace them."""
    fake()
    train(Config(**SMALL), tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    (tmp_path / "checkpoint.safetensors").unlink()
    for resume in (False, True):
        with pytest.raises(
            FileExistsError, match=r"results\.json is of a run without a checkpoint to go on from: choose"
        ):
            train(Config(**SMALL, seed=1), tmp_path, resume=resume)
    assert (tmp_path / "results.json").read_bytes() == before
    os.replace(tmp_path / "model.safetensors", tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors holds parameters alone, and no run to go on with"):
        train(Config(**SMALL), tmp_path, resume=True)


def test_one_run_at_a_time_in_a_folder(fake, tmp_path):
    """The second is refused, with other settings or the same; the first goes on, and leaves nothing of the lock."""
    learners = fake()
    folder = tmp_path / "deep" / "run"
    refused = []

    def another(progress):
        assert not refused or (folder / "checkpoint.safetensors").exists()
        for seed in (0, 1):
            with pytest.raises(ValueError, match=f"run is in use by process {os.getpid()} on .*: wait until") as raised:
                train(Config(**SMALL, seed=seed), folder, resume=True)
            refused.append(raised.value)

    train(Config(**SMALL), folder, on_step=another, checkpoint_every=1)
    assert len(refused) == 2 * 12
    assert len(learners) == 1
    assert not (folder / ".lock").exists()
    with pytest.raises(ValueError, match="must be"):
        train(Config(**SMALL), tmp_path / "new" / "run", checkpoint_every=0)
    assert not (tmp_path / "new").exists()


def test_checkpoint_round_trip(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.float32(3.0), "c": np.zeros(0, np.uint8)}
    save_checkpoint(tmp_path / "c", arrays, {"step": 3, "list": [1.5]})
    loaded, record = load_checkpoint(tmp_path / "c")
    assert record == {"step": 3, "list": [1.5]}
    for name, value in arrays.items():
        assert np.array_equal(loaded[name], value)
        assert loaded[name].shape == np.shape(value)
        assert loaded[name].dtype == value.dtype


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c"
    save_checkpoint(path, {"a": np.ones(1)}, {"step": 1})

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        save_checkpoint(path, {"a": np.zeros(1)}, {"step": 2})
    assert load_checkpoint(path)[1] == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "imagenet"}, "unknown task 'imagenet'"),
        ({"framework": "tensorflow"}, "unknown framework 'tensorflow'"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"warm_up": 1.0}, "warm_up must be a part of the run"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"input_noise": -0.1}, "input_noise must be a number of at least 0"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"hidden": 3, "parameters": 3}, "give hidden or parameters, not both"),
        ({"framework": "jax", "model": "lstm"}, "the model 'lstm' exists in torch only"),
        ({"epochs": 10**400}, r"epochs must be below 2\*\*63, got 1000"),
        ({"hidden": 2**63}, r"hidden must be below 2\*\*63"),
        ({"options": {"every_step": True}}, "options must not have 'every_step': the task and the hidden units say it"),
        ({"options": {"steps": 5}}, "options must not have 'steps'"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_settings_may_be_integers_of_numpy():
    config = Config(seed=np.int64(3), skip_steps=np.uint8(2), epochs=np.int32(4))
    assert config == Config(seed=3, skip_steps=2, epochs=4)
    assert [type(value) for value in (config.seed, config.skip_steps, config.epochs)] == [int, int, int]
    for seed in (np.bool_(True), True, 1.0, np.array([1]), 2**32):
        with pytest.raises(ValueError, match="seed must be an integer from 0"):
            Config(seed=seed)


def test_settings_are_what_a_checkpoint_can_hold(fake, tmp_path):
    """Known before the first step, and not when the first checkpoint is written."""
    fake()
    for name, value in (("options", {"sigma": np.float32(0.3)}), ("task_options", {"sigma": np.ones(2)})):
        with pytest.raises(TypeError, match=f"{name} must hold what JSON holds, .*: 'sigma' is numpy"):
            Config(**SMALL, **{name: value})
    with pytest.raises(TypeError, match="options must be a dict, got list"):
        Config(options=["sigma"])
    with pytest.raises(TypeError, match="device must be a text, got"):
        Config(device=0)
    config = Config(**SMALL | {"epochs": np.int64(2)}, limit=np.int32(8))
    assert type(config.epochs) is type(config.limit) is int
    assert len(train(config, tmp_path)["epochs"]) == 2


def quadratic(hidden):
    return 7 + 3 * hidden + 2 * hidden**2


@pytest.mark.parametrize(
    "count",
    [
        quadratic,
        lambda hidden: 12 * hidden,
        lambda hidden: 5 + 2 * (hidden + hidden % 2) + hidden // 3,
        lambda hidden: 12 + (hidden // 8) ** 2,
        lambda hidden: 11 + hidden**3,
        lambda hidden: 3 + 9 * hidden - (hidden < 20) * hidden**2 // 8,
    ],
)
def test_equal_parameters_by_the_closest_size(count):
    for wanted in (12, 13, 100, 2_000, 54_321):
        best = min(range(1, 30_000), key=lambda hidden: abs(count(hidden) - wanted))
        assert abs(count(closest_size(count, wanted)) - wanted) == abs(count(best) - wanted)


def test_sizes_are_built_seldom():
    """Of models that do not fit in memory there is one, whose error says so."""
    built = []

    def counted(hidden):
        built.append(hidden)
        return quadratic(hidden)

    for wanted in (10, 100, 10**5, 10**13):
        built.clear()
        found = closest_size(counted, wanted)
        assert abs(quadratic(found) - wanted) <= min(
            abs(quadratic(found + step) - wanted) for step in (1, -1) if found + step
        )
        assert len(set(built)) == len(built) <= 6
    with pytest.raises(ValueError, match="12 parameters with one hidden unit, more than the 5 asked for"):
        closest_size(quadratic, 5)


def test_recommended_settings_give_way():
    assert Config.recommended("mnist").hidden == 120
    assert Config.recommended("mnist", hidden=7, learning_rate=0.1).learning_rate == 0.1
    assert Config.recommended("mnist", parameters=500).hidden is None
    assert Config.recommended("mnist").resolved_model == "organics-static"
    assert Config.recommended("rowmnist").resolved_model == "organics"


@pytest.mark.parametrize("options", [{"loss": float("nan")}, {"norm": float("inf")}])
def test_steps_that_are_not_finite_may_be_skipped(fake, tmp_path, options):
    """So many an epoch, counted; the means are over the others. One more ends the run, and a resumption allows it."""
    fake(**options)
    with pytest.raises(FloatingPointError, match="at epoch 1, step 6"):
        loop.train(Config(**SMALL, skip_steps=1), tmp_path / "few")
    results = loop.train(Config(**SMALL, skip_steps=6), tmp_path / "enough")
    assert [record["skipped_steps"] for record in results["epochs"]] == [2, 6]
    assert results["epochs"][0]["loss"] == 1.0
    assert results["epochs"][0]["gradient_norm"] == 2.0
    assert np.isnan([results["epochs"][1][name] for name in ("loss", "gradient_norm", "gradient_norm_max")]).all()
    text = (tmp_path / "enough" / "results.json").read_text()
    assert "NaN" not in text  # which is no JSON
    assert [json.loads(text)["epochs"][k]["loss"] for k in (0, 1)] == [1.0, None]


def test_accuracy_is_a_count():
    """38 of 40 by float32 are less than 0.95; a criterion is reached all the same, and equal epochs are equal."""
    parts = [(1.0, float(np.float32(38 / 40)), 40, 40)] * 25
    assert parts[0][1] < 38 / 40
    assert loop.Score.of(parts).accuracy == 0.95
    assert loop.Score.of([(1.0, float(np.float32(0.95)), 2, 4)], answers=10).accuracy == 19 / 40
    assert loop.Score.of([(float("nan"), float("nan"), 0, 4), (1.0, 0.5, 2, 4)]) == (1.0, 1 / 8, 6)


@EVERY_FRAMEWORK
@pytest.mark.parametrize(("task", "answers"), [("digits", 1), ("copy", 10)])
def test_scores_are_counts_in_every_framework(framework, task, answers):
    _needs(framework)
    config = Config(task=task, framework=framework, hidden=3, length=5, samples=8)
    data = config.data()
    x, y = data.x_validation[:90], data.y_validation[:90]
    learner = loop.make_learner(config, data._replace(x_validation=x, y_validation=y))
    accuracy = learner.evaluate("validation", 40).accuracy
    assert accuracy in {right / (90 * answers) for right in range(1, 90 * answers)}


@EVERY_FRAMEWORK
def test_an_example_that_diverges_is_wrong_and_counted(framework):
    """And a step with it changes nothing. The loss is the mean over the others."""
    config = Config(task="digits", framework=framework, hidden=4, limit=64, batch_size=32)
    data = config.data()
    learner = loop.make_learner(config, data)
    whole = learner.evaluate("validation", 32)
    assert whole.diverged == 0
    x = data.x_validation.copy()
    x[1] = np.nan
    mended = data._replace(x_validation=x, x_train=np.full_like(data.x_train, np.nan))
    learner = loop.make_learner(config, mended)
    score = learner.evaluate("validation", 32)
    kept = np.delete(np.arange(len(x)), 1)
    rest = loop.make_learner(
        config, data._replace(x_validation=data.x_validation[kept], y_validation=data.y_validation[kept])
    ).evaluate("validation", 32)
    assert score.diverged == 1
    np.testing.assert_allclose(score.loss, rest.loss, rtol=1e-5)
    np.testing.assert_allclose(score.accuracy * len(x), rest.accuracy * len(kept), rtol=1e-6)
    before = {name: value.copy() for name, value in learner.state().items()}
    loss, _, norm = learner.step(np.arange(8), 0.01)
    assert not (np.isfinite(loss) and np.isfinite(norm))
    for name, value in learner.state().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_validation_loss_that_is_not_finite_stops(fake, tmp_path, monkeypatch):
    fake()
    monkeypatch.setattr(Fake, "evaluate", lambda self, part, batch_size: loop.Score(float("nan"), 0.5, 3))
    with pytest.raises(FloatingPointError, match="the validation loss is nan after epoch 1, step 6"):
        train(Config(**SMALL), tmp_path)


def test_rates_fit_the_length():
    assert rates_for(784) == (0.05, 0.01, 0.1)
    assert rates_for(400) == (0.05, 0.01, 0.1)
    assert rates_for(196) == pytest.approx((0.102, 0.0204, 0.204), rel=1e-2)
    assert rates_for(8) == (0.5, 0.2, 0.5)
    assert Config(options={"max_rates": [0.1, 0.1, 0.1]}).model_options(8)["max_rates"] == (0.1, 0.1, 0.1)


def _needs(framework):
    for name in {"torch": ("torch",), "jax": ("jax", "equinox", "optax")}[framework]:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def _run(framework, out, *arguments):
    command = [sys.executable, "-c", SCRIPT, framework, *map(str, (out, *arguments))]
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(out.parent / "compiled")}  # once for all processes
    return subprocess.Popen(
        command, env=ENVIRONMENT | compiled, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@EVERY_FRAMEWORK
def test_killed_and_resumed_is_bit_identical(framework, tmp_path):
    _needs(framework)
    killed = _run(framework, tmp_path / "killed", "wait")
    for line in killed.stdout:
        if line.split() == ["2", "8"]:  # in the middle of the second epoch, two steps after a checkpoint
            killed.kill()
            break
    assert killed.wait() == -signal.SIGKILL, killed.stderr.read()
    assert not (tmp_path / "killed" / "results.json").exists()
    again = _run(framework, tmp_path / "killed", "on", "-", 2)
    out, error = again.communicate(timeout=PATIENCE)
    assert again.returncode == -signal.SIGKILL, error
    first = out.splitlines()[0]
    assert first in ("2 7", "2 4"), first  # the kill may outrun the printing, never the checkpoint
    assert len(list((tmp_path / "killed").glob("*.part"))) == 1
    resumed = _run(framework, tmp_path / "killed", "on", tmp_path / "whole")
    out, error = resumed.communicate(timeout=PATIENCE)
    assert resumed.returncode == 0, error
    left = [path.name for path in (tmp_path / "killed").iterdir() if path.name.startswith(".")]
    assert not left  # of the killed ones, neither parts nor a lock
    ours, theirs = (load_checkpoint(tmp_path / name / "checkpoint.safetensors") for name in ("killed", "whole"))
    assert ours[0].keys() == theirs[0].keys()
    for name, value in ours[0].items():
        assert value.tobytes() == theirs[0][name].tobytes(), name
    for mine, other in zip(ours[1]["epochs"], theirs[1]["epochs"], strict=True):
        assert {**mine, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.library("torch")
@pytest.mark.parametrize(
    ("task", "model"), [("adding", "gru"), ("copy", "organics"), ("copy", "irnn"), ("adding", "deq")]
)
def test_every_kind_of_task_in_torch(task, model, tmp_path):
    _needs("torch")
    config = Config(task=task, model=model, hidden=6, length=8, samples=256, batch_size=64, epochs=2)
    results = train(config, tmp_path)
    losses = [record["loss"] for record in results["epochs"]]
    assert losses[1] < losses[0]
    assert all(0 < record["gradient_norm"] <= record["gradient_norm_max"] for record in results["epochs"])


@pytest.mark.library("torch")
def test_digits_are_learned_by_torch(tmp_path):
    _needs("torch")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    results = train(Config(task="digits", hidden=24, batch_size=64, epochs=12), tmp_path)
    assert results["test_accuracy"] > 0.6  # other seeds, and rounding: 0.80 to 0.85; chance: 0.1


@pytest.mark.parametrize(
    "framework", [pytest.param(name, marks=pytest.mark.library(name)) for name in ("torch", "jax")]
)
def test_the_static_classifier_learns(framework, tmp_path):
    _needs(framework)
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    config = Config(
        model="organics-static", framework=framework, hidden=40, batch_size=60, epochs=12, options={"code": 20}
    )
    results = train(config, tmp_path)
    digits, code, first, second = 64, 20, 40, 20
    autoencoder = digits * code + code + code * digits + digits
    layers = sum(2 * k * n + n * n + n for k, n in ((code, first), (first, second)))
    assert results["parameters"] == autoencoder + layers + second * 10 + 10
    assert results["test_accuracy"] > 0.8
    assert all(record["gradient_norm"] > 0 for record in results["epochs"])


@EVERY_FRAMEWORK
def test_the_static_classifier_of_one_layer(framework, tmp_path):
    """Also with the parameters of its best epoch put back."""
    _needs(framework)
    options = {"model": "organics-static", "framework": framework, "hidden": 6, "tested": "best", "epochs": 2}
    config = Config(task="adding", length=5, samples=16, **options, options={"code": 3, "layers": 1})
    pixels, code, units = 10, 3, 6
    autoencoder = pixels * code + code + code * pixels + pixels
    assert train(config, tmp_path)["parameters"] == autoencoder + 2 * code * units + units**2 + units + units + 1
    wrong = Config(task="adding", length=5, samples=16, **options, options={"layers": 3})
    with pytest.raises(ValueError, match="layers must be 1 or 2, got 3"):
        train(wrong, tmp_path / "wrong")


@EVERY_FRAMEWORK
def test_the_noise_is_on_the_input_and_not_on_what_the_autoencoder_gives(framework, tmp_path):
    """A step on noisy inputs is a step on a data set that has the noise in it, but for the reconstruction."""
    _needs(framework)
    learner_module = importlib.import_module(f"organics_train.{framework}_learner")
    options = {"model": "organics-static", "framework": framework, "hidden": 6}
    options |= {"length": 5, "samples": 16, "task": "adding"}
    noise = np.random.default_rng(0).normal(size=(16, 5, 2)).astype(np.float32)
    for weight, same in ((0.0, True), (1.0, False)):
        config = Config(**options, options={"code": 3, "reconstruction": weight})
        data = config.data()
        noisy = data._replace(x_train=data.x_train + noise)
        ours = learner_module.make(config, data).step(np.arange(16), 0.1, noise)
        theirs = learner_module.make(config, noisy).step(np.arange(16), 0.1, None)
        clean = learner_module.make(config, data).step(np.arange(16), 0.1, None)
        assert ours[0] == pytest.approx(theirs[0], rel=1e-5) != clean[0]
        assert (ours[2] == pytest.approx(theirs[2], rel=1e-4)) == same


@pytest.mark.library("jax")
@pytest.mark.parametrize("task", ["adding", "copy"])
def test_every_kind_of_task_in_jax(task, tmp_path):
    _needs("jax")
    config = Config(task=task, framework="jax", parameters=600, length=8, samples=256, batch_size=64, epochs=2)
    results = train(config, tmp_path)
    assert results["epochs"][1]["loss"] < results["epochs"][0]["loss"]
    assert abs(results["parameters"] - 600) < 100


@pytest.mark.library("jax")
def test_models_that_jax_does_not_train():
    _needs("jax")
    from organics_train import jax_learner

    config = Config(task="copy", model="organics-static", framework="jax", length=3, samples=4)
    with pytest.raises(ValueError, match="no output at every step"):
        jax_learner.make(config, config.data())
    config = Config(task="adding", framework="jax", length=3, samples=4, options={"num_layers": 2, "dropout": 0.5})
    with pytest.raises(ValueError, match="a model with dropout is trained in torch only"):
        jax_learner.make(config, config.data())


@pytest.mark.library("torch")
def test_equal_parameters_and_the_gradient_norm(tmp_path):
    _needs("torch")
    import torch

    from organics_train import torch_learner

    config = Config(task="adding", model="lstm", parameters=500, length=6, samples=64, batch_size=64)
    learner = torch_learner.make(config, config.data())
    assert abs(learner.parameter_count - 500) < 60
    _, _, norm = learner.step(np.arange(64), 0.0)
    whole = torch.cat([p.grad.flatten() for p in learner.model.parameters()])
    assert norm == pytest.approx(float(whole.norm()), rel=1e-5)


@pytest.mark.library("torch")
def test_the_default_device_is_not_where_the_model_is():
    """Start, data and checkpoint are on the configured device whatever torch's default is."""
    _needs("torch")
    import torch

    from organics_train import torch_learner

    config = Config(task="adding", model="ssn", hidden=6, length=8, samples=64, batch_size=32, epochs=1)
    want = torch_learner.make(config, config.data())
    with torch.device("meta"):
        found = torch_learner.make(config, config.data())
        found.load_state(found.state())
        assert found.evaluate("test", 16) == want.evaluate("test", 16)
    for name, value in want.parameters().items():
        np.testing.assert_array_equal(found.parameters()[name], value)


@pytest.mark.library("torch")
def test_random_numbers_of_the_device_are_in_the_checkpoint(monkeypatch):
    """Dropout on CUDA draws from a generator of the device's, for which one of the CPU's stands in here."""
    _needs("torch")
    from types import SimpleNamespace

    import torch

    from organics_train import torch_learner

    config = Config(task="adding", model="ssn", hidden=6, length=8, samples=64, batch_size=32, epochs=1)
    learner = torch_learner.make(config, config.data())
    assert [name for name in learner.state() if name.startswith("random")] == ["random.cpu"]
    there = torch.Generator(device="cpu")
    module = SimpleNamespace(get_rng_state=there.get_state, set_rng_state=there.set_state)
    monkeypatch.setattr(torch, "get_device_module", {"cuda": module, "mps": SimpleNamespace()}.__getitem__)
    learner.device = "cuda"
    state = learner.state()
    want = torch.rand(5, generator=there), torch.rand(5)
    learner.load_state(state)
    assert torch.equal(torch.rand(5, generator=there), want[0])
    assert torch.equal(torch.rand(5), want[1])
    del state["random.cuda"]  # of an older version, or of the CPU
    learner.load_state(state)
    assert torch.equal(torch.rand(5), want[1])
    learner.device = "mps"
    assert [name for name in learner.state() if name.startswith("random")] == ["random.cpu"]


@pytest.mark.library("torch")
def test_the_same_seed_gives_the_same_run(tmp_path):
    _needs("torch")
    config = Config(task="adding", model="ssn", hidden=6, length=8, samples=64, batch_size=32, epochs=1)
    runs = [train(config, tmp_path / name) for name in "ab"]
    other = train(Config(**{**config.asdict(), "seed": 1}), tmp_path / "c")
    assert runs[0]["epochs"][0]["loss"] == runs[1]["epochs"][0]["loss"] != other["epochs"][0]["loss"]
