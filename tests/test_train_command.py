"""``organics train`` and ``organics table``."""

from __future__ import annotations

import json

import pytest

typer = pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("rich", reason="rich is not installed")

from typer.testing import CliRunner  # noqa: E402

from organics_train import cli, tables  # noqa: E402


@pytest.fixture
def invoke(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    app = typer.Typer()
    cli.register(app)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def result(task, model, accuracy, *, downsample=1, seed=0):
    return {
        "kind": "organics train",
        "config": {"task": task, "framework": "torch", "downsample": downsample, "seed": seed},
        "model": model,
        "hidden": 64,
        "parameters": 26_000,
        "sequence": {"steps": 784},
        "examples": {"train": 57_000},
        "epochs": [{}, {}],
        "test_accuracy": accuracy,
    }


def test_table_puts_the_paper_beside_ours(invoke, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "results.json").write_text(json.dumps(result("smnist", "organics", 0.9512)))
    (tmp_path / "b.json").write_text(json.dumps(result("smnist", "organics", 0.8812, downsample=2)))
    (tmp_path / "other.json").write_text('{"kind": "something else"}')
    (tmp_path / "broken.json").write_text("{")
    done = invoke("table", tmp_path, "--json", tmp_path / "rows.json")
    assert done.exit_code == 0, done.output
    assert "95.12" in done.output
    assert "88.12" in done.output
    assert "recalled from memory" in done.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    found = {(row["task"], row["model"]): (row["accuracy"], row["paper"]) for row in rows["sequential"]}
    assert found[("smnist", "organics")] == (pytest.approx(95.12), 97.7)
    assert found[("smnist /2", "organics")] == (pytest.approx(88.12), None)
    assert found[("psmnist", "lstm")] == (None, 92.6)
    assert rows["static"][0]["paper"] == 98.05
    assert "memory" in rows["note"]


def test_table_errors(invoke, tmp_path):
    missing = invoke("table", tmp_path / "nowhere")
    assert missing.exit_code == 2
    assert "does not exist" in missing.output
    (tmp_path / "x.json").write_text("{}")
    assert "holds no results" in invoke("table", tmp_path / "x.json").output
    assert tables.collect([tmp_path]) == []


def test_options_of_the_model():
    assert cli.parse_option("rate=0.4") == ("rate", 0.4)
    assert cli.parse_option("gated=True") == ("gated", True)
    assert cli.parse_option("max_rates=0.5,0.1,0.5") == ("max_rates", [0.5, 0.1, 0.5])
    assert cli.parse_option("recurrent=identity") == ("recurrent", "identity")
    with pytest.raises(ValueError, match="written name=value"):
        cli.parse_option("rate")


def test_train_errors_are_one_sentence(invoke, tmp_path):
    for arguments, message in (
        (("--option", "rate"), "written name=value"),
        (("--framework", "jax", "--model", "lstm"), "exists in torch only"),
        (("--epochs", "0"), "epochs must be at least 1"),
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
    assert "|gradient| mean" in done.output
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
