"""``organics train`` and ``organics table``."""

from __future__ import annotations

import json
import math

import pytest

pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("rich", reason="rich is not installed")


from organics_train import cli, tables


def result(task, model, accuracy, *, downsample=1, seed=0, hidden=64, **options):
    return {
        "kind": "organics train",
        "config": {"task": task, "framework": "torch", "downsample": downsample, "seed": seed, "options": options},
        "model": model,
        "hidden": hidden,
        "parameters": 26_000,
        "sequence": {"steps": 784},
        "examples": {"train": 57_000},
        "epochs": [{}, {}],
        "test_accuracy": accuracy,
    }


def test_table_puts_the_paper_beside_ours(invoke, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "results.json").write_text(json.dumps(result("smnist", "organics", 0.9512)))
    (tmp_path / "b.json").write_text(json.dumps(result("smnist", "organics", 0.8812, downsample=2)))
    (tmp_path / "other.json").write_text('{"kind": "something else"}')
    (tmp_path / "broken.json").write_text("{")
    done = invoke("table", tmp_path, "--json", tmp_path / "rows.json")
    assert done.exit_code == 0, done.output
    assert "95.12" in done.output
    assert "88.12" in done.output
    monkeypatch.setenv("COLUMNS", "80")
    narrow = invoke("table", tmp_path).output
    assert "…" not in narrow  # no number is cut
    assert "2 x 57k" in narrow
    assert "project page" in done.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    found = {
        (row["task"], row["model"], row["kind"], row["hidden"]): (row["accuracy"], row["paper"])
        for row in rows["sequential"]
    }
    assert found[("smnist", "organics", "learned", 64)] == (pytest.approx(95.12), 97.7)
    assert found[("smnist /2", "organics", "learned", 64)] == (pytest.approx(88.12), None)
    assert found[("psmnist", "lstm", "", 128)] == (None, 92.6)
    assert len(found) == 2 + len(rows["sequential"]) - 2 == 17  # one per number of the paper, and the coarse run
    assert [row["paper"] for row in rows["static"]] == [94.9, 95.2, 98.1, 98.2, 98.1]
    assert "project page" in rows["note"]


@pytest.mark.parametrize(
    ("model", "hidden", "options", "numbers"),
    [
        ("organics", 64, {}, (97.7, 89.9)),
        ("october", 64, {"max_rates": [0.02, 0.005, 0.1]}, (97.7, 89.9)),
        ("organics", 128, {}, (97.8, 90.7)),
        ("organics", 64, {"learn_rates": False}, (90.3, 80.3)),
        ("october", 128, {"learn_rates": False}, (94.8, 84.8)),
        ("organics", 63, {}, (None, None)),
        ("organics", 64, {"num_layers": 2}, (None, None)),
        ("lstm", 128, {}, (97.3, 92.6)),
        ("lstm", 64, {}, (None, None)),
        ("lstm", 128, {"num_layers": 2}, (None, None)),
        ("organics", 64, {"recurrent": "identity"}, (None, None)),
        ("organics", 64, {"recurrent": "orthogonal"}, (97.7, 89.9)),
        ("organics", 64, {"bidirectional": True}, (None, None)),
        ("antisymmetric", 128, {}, (98.0, 95.8)),
        ("antisymmetric", 128, {"gated": True}, (None, None)),
        ("cornn", 128, {}, (99.3, 96.6)),
        ("lipschitz", 128, {}, (99.4, 96.3)),
        ("gru", 128, {}, (None, None)),
    ],
)
def test_a_run_stands_beside_its_own_number(model, hidden, options, numbers):
    """Of its units and its kind of time constants, never beside another's."""
    for task, accuracy in zip(("smnist", "psmnist"), numbers, strict=True):
        rows = tables.rows_of([result(task, model, 0.5, hidden=hidden, **options)], ["smnist", "psmnist"])
        assert rows[0]["paper"] == accuracy
        assert len(rows) == (16 if accuracy else 17)  # the number that is met stands once


@pytest.mark.parametrize(
    ("model", "hidden", "options", "accuracy"),
    [
        ("ssn", 100, {}, 95.2),
        ("ssn5050", 100, {}, 94.9),
        ("ssn", 100, {"excitatory": 0.5}, 94.9),
        ("ssn", 117, {}, None),
        ("organics-static", 50, {"layers": 1}, 98.1),
        ("organics-static", 80, {"layers": 1}, 98.2),
        ("organics-static", 120, {"layers": 1}, None),
        ("organics-static", 120, {}, 98.1),
        ("organics-static", 240, {}, None),
    ],
)
def test_a_static_run_stands_beside_its_own_number(model, hidden, options, accuracy):
    assert tables.rows_of([result("mnist", model, 0.5, hidden=hidden, **options)], ["mnist"])[0]["paper"] == accuracy


@pytest.mark.library("torch")
def test_table_trains_what_is_missing(invoke, tmp_path, monkeypatch):
    """One command for a grid; a second time there is nothing to train; a run that fails does not end the others."""
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    arguments = ["table", "--model", "gru", "--model", "mlp", "--parameters", 900, "--epochs", 1, "--limit", 128]
    arguments += ["--seed", 0, "--seed", 1, "--out", tmp_path]
    done = invoke(*arguments, "--json", tmp_path / "rows" / "rows.json")
    assert done.exit_code == 0, done.output
    names = {f"digits-{model}-torch-seed{seed}" for model in ("gru", "mlp") for seed in (0, 1)}
    assert {path.name for path in tmp_path.iterdir()} == names | {"rows"}
    rows = json.loads((tmp_path / "rows" / "rows.json").read_text())["others"]
    assert [(row["model"], row["train_examples"]) for row in rows] == [("gru", 128)] * 2 + [("mlp", 128)] * 2
    assert all(abs(row["parameters"] - 900) < 200 for row in rows)

    def fail(*arguments, **options):
        raise FloatingPointError("the loss is nan at epoch 1, step 3")

    earlier = tmp_path / "digits-gru-torch-seed0" / "results.json"
    record = json.loads(earlier.read_text())
    del record["config"]["schedule"]  # as before there were any
    earlier.write_text(json.dumps(record))
    monkeypatch.setattr("organics_train.loop.train", fail)
    assert " parameters, 1 epoch in" in done.output
    again = invoke(*arguments)
    assert again.exit_code == 0, again.output
    assert "the loss is nan" not in again.output
    other = invoke(*arguments, "--model", "ssn")
    assert other.exit_code == 0, other.output
    assert "digits-ssn-torch-seed0: the loss is nan at epoch 1, step 3" in other.output
    assert "gru" in other.output.split("Other tasks")[1]


def test_the_grid_of_a_table():
    runs = tables.grid(["rowmnist", "mnist"], ["organics", "organics"], [0, 3], "jax", parameters=500, epochs=None)
    assert [run.name for run in runs] == [
        "rowmnist-organics-jax-seed0",
        "rowmnist-organics-jax-seed3",
        "mnist-organics-static-jax-seed0",
        "mnist-organics-static-jax-seed3",
    ]
    assert {(run.parameters, run.hidden) for run in runs} == {(500, None)}
    assert [run.epochs for run in runs] == [10, 10, 30, 30]


@pytest.mark.library("torch")
def test_all_models_of_a_table():
    pytest.importorskip("torch", reason="torch is not installed")
    from organics_baselines import MODELS

    assert {run.model for run in tables.grid(["digits"], ["all"], [0], "torch")} == set(MODELS)
    copy = {run.model for run in tables.grid(["copy"], ["all"], [0], "torch")}
    assert copy == {name for name, entry in MODELS.items() if not entry.static}
    assert len(tables.grid(["mnist"], ["all"], [0], "torch")) == len(MODELS) - 1
    assert [run.model for run in tables.grid(["copy"], ["all"], [0], "jax")] == ["organics"]


def test_table_errors(invoke, tmp_path):
    missing = invoke("table", tmp_path / "nowhere")
    assert missing.exit_code == 2
    assert "does not exist" in missing.output
    (tmp_path / "x.json").write_text("{}")
    assert "holds no results" in invoke("table", tmp_path / "x.json").output
    unused = invoke("table", tmp_path, "--epochs", 3)
    assert unused.exit_code == 2
    assert "no --model to run" in unused.output
    assert "exists in torch only" in invoke("table", "--model", "lstm", "--framework", "jax").output
    assert tables.collect([tmp_path]) == []
    for option in (("--out", tmp_path), ("--downsample", 2), ("--input-noise", 0.1), ("--framework", "jax")):
        unused = invoke("table", tmp_path, *option)
        assert unused.exit_code == 2
        assert "no --model to run" in unused.output


@pytest.mark.parametrize("arguments", [("table",), ("reproduce", "mnist-ssn-5050", "--quick")])
def test_rows_are_not_written_over_results_of_a_run(invoke, tmp_path, arguments):
    run = tmp_path / "results.json"
    run.write_text(json.dumps(result("smnist", "organics", 0.9)))
    before = run.read_bytes()
    place = (tmp_path,) if arguments == ("table",) else ("--out", tmp_path / "reproduce")
    done = invoke(*arguments, *place, "--json", run)
    assert done.exit_code == 2
    assert "the results of a run" in done.output
    assert run.read_bytes() == before
    assert not (tmp_path / "reproduce").exists()
    for _ in range(2):  # rows over rows
        assert invoke("table", tmp_path, "--json", tmp_path / "rows.json").exit_code == 0


def test_results_under_two_paths_stand_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "results.json").write_text(json.dumps(result("smnist", "organics", 0.9)))
    paths = [tmp_path, tmp_path / "a", tmp_path / "a" / ".." / "a" / "results.json"]
    assert len(tables.collect(paths)) == 1


def test_numbers_are_rounded_to_what_they_are(capsys):
    sizes = {999: "999", 1_000: "1k", 26_390: "26.4k", 999_499: "999k", 999_500: "1M", 2_412_345: "2.41M"}
    assert {count: tables._thousands(count) for count in sizes} == sizes
    run = result("neurogym:GoNogo-v0", "gru", 0.9)
    run["config"]["criterion"], run["criterion_reached"] = 0.999, True
    tables.print_tables([run])
    assert "90.00 99.9 *" in " ".join(capsys.readouterr().out.split())


def test_runs_that_look_alike_are_told_apart(invoke, tmp_path, monkeypatch):
    """Below the table, by the settings that differ; in the rows of --json by all of them."""
    runs = [
        result("psmnist", "organics", 0.91, seed=1),
        result("psmnist", "organics", 0.92, max_rates=[1.0, 0.2, 0.5]),
        result("psmnist", "organics", 0.93, learn_rates=False),
        result("neurogym:MultiSensoryIntegration-v0", "organics", 0.94, recurrent="identity"),
    ]
    runs[0]["config"]["input_noise"] = 0.5
    for place, run in enumerate(runs):
        (tmp_path / f"{place}.json").write_text(json.dumps(run))
    monkeypatch.setenv("COLUMNS", "80")
    done = invoke("table", tmp_path, "--json", tmp_path / "rows")
    text = " ".join(done.output.split())
    assert "92.00 89.9 1 psmnist" in text
    assert "91.00 89.9 2 " in text
    assert "93.00 80.3 psmnist" in text
    said = (
        "Runs that look alike: 1: input noise 0.0, seed 0, max rates [1.0, 0.2, 0.5]; 2: input noise 0.5, seed 1, "
        "max rates by default."
    )
    assert said in text
    assert "…" not in done.output
    rows = json.loads((tmp_path / "rows").read_text())["sequential"]
    assert [row["config"]["input_noise"] for row in rows[:3]] == [0.0, 0.0, 0.5]
    assert rows[3]["config"] is None


def test_results_that_cannot_be_read_are_named(invoke, tmp_path):
    for name, text in (("broken", '{"kind": "organics tr'), ("partial", '{"kind": "organics train"}'), ("other", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    done = invoke("table", tmp_path)
    assert done.exit_code == 0
    for name in ("broken", "partial"):
        assert f"{tmp_path / name / 'results.json'} cannot be read and is left out" in done.output.replace("\n", "")
    assert "other" not in done.output
    with pytest.warns(UserWarning, match="cannot be read"):
        assert tables.collect([tmp_path]) == []
    with pytest.raises(ValueError, match="holds no results of organics train: KeyError"):
        tables.collect([tmp_path / "partial" / "results.json"])


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("test_accuracy",), None, "test_accuracy must be from 0 to 1, got None"),
        (("test_accuracy",), 94.2, "test_accuracy must be from 0 to 1, got 94.2"),
        (("test_accuracy",), math.nan, "test_accuracy must be from 0 to 1, got nan"),
        (("hidden",), "64", "hidden must be an integer, got str"),
        (("parameters",), None, "parameters must be an integer, got NoneType"),
        (("examples", "train"), "57k", "train must be an integer, got str"),
        (("config", "seed"), "a", "seed must be an integer, got str"),
        (("config", "task_options"), None, "task_options must be a dict, got NoneType"),
        (("config", "framework"), 7, "framework must be a text, got int"),
        (("model",), 5, "model must be a text, got int"),
    ],
)
def test_results_with_a_wrong_field_do_not_end_the_table(invoke, tmp_path, monkeypatch, place, value, said):
    """They are named and left out; the others stand in the table."""
    monkeypatch.setenv("COLUMNS", "80")
    good, bad = result("psmnist", "organics", 0.91), result("psmnist", "organics", 0.92)
    inner = bad
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    for name, content in (("good", good), ("bad", bad)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    done = invoke("table", tmp_path)
    assert done.exit_code == 0, done.output
    assert "91.00" in done.output
    assert "92.00" not in done.output
    assert said in " ".join(done.output.split())


def test_options_of_the_model():
    assert cli.parse_option("rate=0.4") == ("rate", 0.4)
    for text, value in (("True", True), ("true", True), ("FALSE", False), ("false", False)):
        assert cli.parse_option(f"gated={text}") == ("gated", value)
    assert cli.parse_option("max_rates=0.5,0.1,0.5") == ("max_rates", [0.5, 0.1, 0.5])
    assert cli.parse_option("recurrent=identity") == ("recurrent", "identity")
    with pytest.raises(ValueError, match="written name=value"):
        cli.parse_option("rate")


def test_train_errors_are_one_sentence(invoke, tmp_path):
    for arguments, message in (
        (("--option", "rate"), "written name=value"),
        (("--framework", "jax", "--model", "lstm"), "exists in torch only"),
        (("--epochs", "0"), "epochs must be at least 1"),
        (("--length", 50), "--length does nothing for the task 'digits'"),
        (("--samples", 50), "--samples does nothing for the task 'digits'"),
        (("--schedule", "cosine", "--lr-step", 3), "--lr-step does nothing for the schedule 'cosine'"),
        (("--warm-up", 0.2), "--warm-up does nothing for the schedule 'step'"),
        (("--framework", "jax", "--device", "cuda"), "--device does nothing for the framework 'jax'"),
    ):
        done = invoke("train", *arguments, "--out", tmp_path / "run")
        assert done.exit_code == 2
        assert message in done.output
        assert "Traceback" not in done.output


@pytest.mark.library("torch")
def test_train_from_the_command_line(invoke, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    arguments = ["train", "--task", "adding", "--model", "lstm", "--hidden", 5, "--length", 6, "--samples", 64]
    arguments += ["--epochs", 2, "--batch-size", 32, "--out", tmp_path / "run"]
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    assert "epoch 2: loss" in done.output
    assert "|grad| " in done.output
    assert " parameters, 2 epochs in" in done.output
    assert max(len(line) for line in done.output.splitlines() if line.startswith("epoch")) <= 80
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoint.safetensors",
        "model.safetensors",
        "results.json",
        "curve.png",
    }
    again = invoke(*arguments)
    assert again.exit_code == 2
    assert "exists already" in again.output
    assert invoke(*arguments, "--resume").exit_code == 0
    assert "lstm" in invoke("table", tmp_path).output
