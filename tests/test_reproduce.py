"""``organics reproduce``: the rows of the paper's tables, their commands, and runs that stop, go on and fail."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shlex
import signal

import numpy as np
import pytest
from support import ELSEWHERE, ROOT

pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("rich", reason="rich is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")


from organics_train import Config, cli, datasets, reproduce
from organics_train.config import completed
from organics_train.tables import PAPER

ROWS, RECIPES = reproduce.ROWS, reproduce.RECIPES


@pytest.fixture
def tiny(monkeypatch):
    """128 sequences of 9 steps in place of MNIST, and no measurement."""
    pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(0)

    def part(count):
        return rng.random((count, 9, 1), dtype=np.float32), rng.integers(0, 10, count)

    data = datasets.Dataset("tiny", *part(128), *part(20), *part(40), kind="classes", outputs=10)
    monkeypatch.setattr(Config, "data", lambda self: data)
    monkeypatch.setattr(reproduce, "estimate", lambda config: reproduce.Estimate(0.25, 0.1, 7200.0, 1500.0))


def test_every_row_is_listed(invoke):
    done = invoke("reproduce", "--list")
    assert done.exit_code == 0, done.output
    assert len(ROWS) == 15
    for name in ROWS:
        assert f"{name}, seed 0\n  organics train --task {name.partition('-')[0]} " in done.output
    two = invoke("reproduce", "--list", "--seed", 1, "--seeds", 2, "smnist-lstm-128", "--recipe", "october").output
    assert two.count("smnist-lstm-128, seed ") == 2
    assert two.count("--epochs 300 --tested best --seed") == 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_row_has_a_number_of_its_own(recipe):
    """All of both tables that are of ORGaNICs, the LSTM and the SSN, once each."""
    found = [reproduce.number_of(reproduce.config_of(name, recipe), row.hidden) for name, row in ROWS.items()]
    models = ("organics", "organics-static", "lstm", "ssn")
    assert len(set(found)) == len(ROWS)
    assert set(found) == {number for number in PAPER if number.model in models}
    assert reproduce.number_of(reproduce.config_of("smnist-lstm-128", recipe, quick=True), 128) is None


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("quick", [False, True])
def test_commands_are_the_rows(invoke, monkeypatch, tmp_path, recipe, quick):
    got = []
    monkeypatch.setattr(cli, "_train", lambda config, folder, **options: got.append((config, folder)))
    wanted = []
    for name in ROWS:
        config = reproduce.config_of(name, recipe, 3, quick=quick)
        folder = tmp_path / "a folder" / name
        program, *arguments = shlex.split(reproduce.train_command(config, folder))
        assert program == "organics"
        assert invoke(*arguments).exit_code == 0
        wanted.append((config, folder))
    assert got == wanted


def test_rows_on_another_device(invoke, tmp_path):
    """Each command names it."""
    done = invoke("reproduce", "smnist-lstm-128", "--list", "--device", "cuda", "--out", tmp_path)
    assert done.exit_code == 0
    assert "--device cuda" in " ".join(done.output.split())
    assert reproduce.config_of("smnist-lstm-128", device="cuda").device == "cuda"
    rates = {
        name: (config.learning_rate, config.warm_up)
        for name in ("psmnist-organics-64", "psmnist-organics-128", "smnist-organics-128-fixed")
        if (config := reproduce.config_of(name))
    }
    assert list(rates.values()) == [(0.004, 0.01), (0.002, 0.1), (0.0015, 0.1)]
    assert reproduce.config_of("smnist-organics-128", "january").learning_rate == 0.005


RECORDS = ROOT / "benchmarks" / "results" / "train"


@pytest.mark.parametrize("name", [name for name in reproduce.ROWS if (RECORDS / name).exists()])
def test_our_recipe_is_that_of_the_record(name):
    config = completed(json.loads((RECORDS / name / "results.json").read_text())["config"])
    if name.endswith("mnist-organics-128"):  # shorter, for want of hours
        config["epochs"] = 60
    assert config == reproduce.config_of(name).asdict()


@pytest.mark.parametrize(
    ("recipe", "model", "epochs", "rate", "every", "max_rates"),
    [
        ("october", "october", 300, 0.01, 30, [0.02, 0.005, 0.1]),
        ("january", "organics", 500, 0.005, 50, [0.05, 0.01, 0.1]),
    ],
)
@pytest.mark.parametrize("fixed", [False, True])
def test_the_recipes_of_the_authors(recipe, model, epochs, rate, every, max_rates, fixed):
    config = reproduce.config_of("smnist-organics-128" + "-fixed" * fixed, recipe)
    assert (config.model, config.epochs, config.learning_rate, config.lr_step) == (model, epochs, rate, every)
    assert (config.lr_gamma, config.schedule, config.weight_decay, config.batch_size) == (0.8, "step", 1e-5, 256)
    assert (config.tested, config.hidden, config.skip_steps) == ("best", 128, 0)
    assert config.options == {"max_rates": max_rates} | ({"learn_rates": False} if fixed else {})


@pytest.mark.library("torch")
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_row_runs(invoke, tiny, tmp_path, recipe):
    """Of ours all, of the others one of every sort."""
    sorts = {(row.task == "mnist", row.model, "learn_rates" in row.options): name for name, row in ROWS.items()}
    names = list(ROWS) if recipe == "ours" else list(sorts.values())
    given = () if recipe == "ours" else names
    options = ["--quick", "--recipe", recipe, "--out", tmp_path, "--json", tmp_path / "rows.json"]
    done = invoke("reproduce", *given, *options)
    assert done.exit_code == 0, done.output
    for name in names:
        row = ROWS[name]
        result = json.loads((tmp_path / f"{recipe}-quick" / f"{name}-seed0" / "results.json").read_text())
        assert (result["hidden"], len(result["epochs"])) == (row.hidden, 1)
        assert result["command"] == reproduce.train_command(
            reproduce.config_of(name, recipe, quick=True), tmp_path / f"{recipe}-quick" / f"{name}-seed0"
        )
    rows = json.loads((tmp_path / "rows.json").read_text())
    accuracies = [row["accuracy"] for part in ("static", "sequential") for row in rows[part]]
    assert sum(accuracy is not None for accuracy in accuracies) == len(names) == (15 if recipe == "ours" else 5)
    assert done.output.count("which the authors have no number for") == 2 * len(names)


@pytest.mark.library("torch")
def test_a_row_that_is_stopped_goes_on(invoke, tiny, tmp_path, monkeypatch):
    """To the numbers of a run that was not; once finished it is not repeated."""
    name = "psmnist-organics-64"
    arguments = ["reproduce", name, "--out", tmp_path / "stopped"]

    def interrupt(self, progress):
        if (progress.epoch, progress.step) == (3, 1):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(cli.Display, "step", interrupt)
        stopped = invoke(*arguments)
    assert stopped.exit_code == 130
    assert "stopped: the same command goes on" in stopped.output
    assert "about 2.0 h on this machine for 60 epochs (250 ms a step), 1.5 GB of memory" in stopped.output
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    assert "about 1.9 h on this machine for the other 58 of 60 epochs" in done.output
    whole = invoke("reproduce", name, "--out", tmp_path / "whole")
    folders = [tmp_path / where / "ours" / f"{name}-seed0" / "results.json" for where in ("stopped", "whole")]
    ours, theirs = (json.loads(folder.read_text()) for folder in folders)
    assert [epoch["loss"] for epoch in ours["epochs"]] == [epoch["loss"] for epoch in theirs["epochs"]]
    accuracy = 100 * ours["test_accuracy"]
    said = f"{accuracy:.2f} %, {89.9 - accuracy:.2f} below the authors' 89.9 %"
    assert done.output.count(said) == whole.output.count(said) == 2

    def fail(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr("organics_train.loop.train", fail)
    curve = folders[0].parent / "curve.png"
    curve.unlink(missing_ok=True)  # as of a run that was killed before it was drawn
    for more in ((), ("--device", "cuda")):
        again = invoke(*arguments, *more)
        assert curve.exists() == (importlib.util.find_spec("matplotlib") is not None)
        assert again.exit_code == 0, again.output
        assert again.output.count(said) == 1
    assert f"{name}, seed 0: finished" in invoke(*arguments, "--list").output


@pytest.mark.library("torch")
def test_a_row_that_fails_is_named_and_left_out(invoke, tiny, tmp_path, monkeypatch):
    from organics_train import loop

    run = loop.train

    def fail(config, *arguments, **options):
        if config.model == "organics":
            raise FloatingPointError("the loss is nan at epoch 1, step 3")
        return run(config, *arguments, **options)

    monkeypatch.setattr(loop, "train", fail)
    done = invoke("reproduce", "smnist-organics-64", "smnist-lstm-128", "--quick", "--out", tmp_path)
    assert done.exit_code == 1
    assert "smnist-organics-64, seed 0: the loss is nan at epoch 1, step 3" in done.output
    assert "smnist-lstm-128, seed 0: " in done.output
    assert [path.parent.name for path in tmp_path.rglob("results.json")] == ["smnist-lstm-128-seed0"]


@pytest.mark.library("torch")
def test_a_row_with_broken_results_is_named_and_left_out(invoke, tiny, tmp_path):
    """Nor is one trained again over results whose checkpoint is gone."""
    names = ["psmnist-organics-64", "smnist-lstm-128"]
    folder = tmp_path / "ours-quick" / f"{names[0]}-seed0"
    arguments = ["reproduce", *names, "--quick", "--out", tmp_path]
    assert invoke(*arguments).exit_code == 0
    whole = json.loads((folder / "results.json").read_text())
    lacking = [{key: value for key, value in whole.items() if key != name} for name in ("test_accuracy", "epochs")]
    other = whole | {"config": whole["config"] | {"learning_rate": 0.5}}
    (folder / "checkpoint.safetensors").unlink()
    for content, said in (
        (json.dumps(lacking[0]), "results.json has no 'test_accuracy', remove it to train that run again"),
        (json.dumps(lacking[1]), "results.json has no 'epochs', remove it to train that run again"),
        (json.dumps(whole)[:99], "results.json cannot be read, remove it to train that run again"),
        (json.dumps(other), "results.json is of a run without a checkpoint to go on from"),
    ):
        (folder / "results.json").write_text(content)
        done = invoke(*arguments)
        assert done.exit_code == 1, done.output
        assert f"{names[0]}, seed 0: " in done.output
        assert said in " ".join(done.output.split())
        assert done.output.count(f"{names[1]}, seed 0: ") == 1
        assert (folder / "results.json").read_text() == content


def test_an_estimate_is_no_markup(invoke, monkeypatch):
    """What is missing is named with its extra."""

    def fail(config):
        raise RuntimeError('the task needs x: pip install "organics-core[neurogym]"')

    monkeypatch.setattr(reproduce, "estimate", fail)
    done = invoke("reproduce", "smnist-lstm-128", "--estimate")
    assert '"organics-core[neurogym]"' in done.output


def test_wrong_names_are_one_sentence(invoke):
    for arguments, message in (
        (("--table", "cognitive", "--recipe", "october"), "--recipe does nothing for the table 'cognitive'"),
        (("--list", "--json", "rows.json"), "--json does nothing for --list and --estimate"),
        (("psmnist",), "unknown row 'psmnist'; choose one of 'mnist-ssn-5050'"),
        (("--recipe", "march"), "unknown recipe 'march'; choose one of 'ours', 'october', 'january'"),
        (("--seed", "-1"), "seed must be an integer from 0"),
    ):
        done = invoke("reproduce", *arguments)
        assert done.exit_code == 2
        assert message in done.output
        assert "Traceback" not in done.output


@pytest.mark.library("torch")
def test_the_cost_of_a_run_is_measured_in_a_process_of_its_own(monkeypatch, capsys):
    pytest.importorskip("torch", reason="torch is not installed")
    config = Config(task="adding", model="gru", hidden=4, length=6, samples=100, batch_size=32, epochs=50)
    cost = reproduce.estimate(config)
    batches = 3 * 50, 32 * 50 + 32  # of training; of 1,000 examples each for validation and at the end
    assert cost.seconds == pytest.approx(batches[0] * cost.step + batches[1] * cost.evaluation)
    assert cost.step > 0
    assert math.isnan(cost.megabytes) or 50 < cost.megabytes < 20_000
    said = cli._cost(Config(task="adding", device="cuda:99", samples=100, length=6), 0)
    assert said.startswith("no estimate: ")
    assert "\n" not in said


@pytest.mark.slow
@pytest.mark.library("torch")
def test_a_row_of_mnist_end_to_end(invoke, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    try:
        datasets.mnist_folder(download=False)
    except FileNotFoundError as error:
        pytest.skip(ELSEWHERE + str(error))
    done = invoke("reproduce", "psmnist-organics-64", "--quick", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "ms a step), " in done.output
    assert "% on coarse images" in done.output
