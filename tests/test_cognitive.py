"""Cognitive tasks: trials of NeuroGym, training to a criterion, and the analysis of trained nets."""

from __future__ import annotations

import json
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from support import ELSEWHERE, ROOT

pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("rich", reason="rich is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")


import organics_core as oc
from organics_train import Config, analysis, cli, cognitive, datasets, load_dataset, reproduce, tables
from organics_train.analysis import Net, explained, fixed_points, groups, settle
from organics_train.checkpoint import save_checkpoint
from organics_train.config import completed

real = pytest.mark.skipif(
    find_spec("neurogym") is None, reason=f"{ELSEWHERE}NeuroGym takes older numpy: nox -s neurogym"
)


class Trial:
    """What NeuroGym's environments are, as far as trials of them go: a stimulus to be named after a delay of 1 to 3."""

    def __init__(self, strength=1.0, numbers=False):
        self.strength, self.numbers = strength, numbers

    @property
    def unwrapped(self):
        return self

    def seed(self, seed):
        self.rng = np.random.RandomState(seed)

    def new_trial(self):
        kind, delay = self.rng.choice([1, 2]), self.rng.choice([1, 2, 3])
        self.trial = {"kind": kind, "delay": delay, "noise": self.rng.rand()}
        self.start_ind = {"stimulus": 0, "delay": 2, "decision": 2 + delay}
        self.end_ind = {"stimulus": 2, "delay": 2 + delay, "decision": 4 + delay}
        self.ob = np.zeros((4 + delay, 3), dtype=np.float32)
        self.ob[:2, kind] = self.strength
        self.ob[2 + delay :, 0] = 1
        if self.numbers:
            self.gt = np.zeros((4 + delay, 2), dtype=np.float32)
            self.gt[2 + delay :] = kind / 4
        else:
            self.gt = np.zeros(4 + delay, dtype=int)
            self.gt[2 + delay :] = kind


class Rewarded(Trial):
    """One without a right action."""

    def new_trial(self):
        super().new_trial()
        del self.gt


@pytest.fixture
def fake(monkeypatch):
    """NeuroGym with one task under the names of two of the ten, and one that cannot be learned."""
    names = {"GoNogo-v0": Trial, "ReachingDelayResponse-v0": lambda: Trial(numbers=True), "Bandit-v0": Rewarded}
    parts = {name: ModuleType(name) for name in ("neurogym", "neurogym.envs", "neurogym.envs.registration")}
    parts["neurogym"].make = lambda name, **options: names[name](**options)
    parts["neurogym.envs.registration"].ALL_EXTENDED_ENVS = names
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(datasets, "TRIALS", (200, 100))


def test_trials_end_together(fake):
    trials = cognitive.make_trials("neurogym:GoNogo-v0", {}, 50, 3)
    assert trials.x.shape == (50, 7, 3)
    assert trials.x.dtype == np.float32
    env = Trial()
    env.seed(3)
    for x, y, condition, periods in zip(*trials, strict=True):
        env.new_trial()
        silence = 7 - len(env.ob)
        assert condition == env.trial
        assert not x[:silence].any()
        assert not y[:silence].any()
        assert np.array_equal(x[silence:], env.ob)
        assert np.array_equal(y[silence:], env.gt)
        assert periods == {name: (env.start_ind[name] + silence, env.end_ind[name] + silence) for name in periods}
        assert periods["decision"][1] == 7


@pytest.mark.parametrize(("task", "kind", "outputs"), [("GoNogo", "steps", 3), ("ReachingDelayResponse", "numbers", 2)])
def test_data_of_a_task(fake, task, kind, outputs):
    data = load_dataset(f"neurogym:{task}-v0", samples=80, limit=60)
    assert (data.kind, data.outputs, data.scored_steps, data.steps, data.input_size) == (kind, outputs, 1, 7, 3)
    assert [len(part) for part in (data.x_train, data.x_validation, data.x_test)] == [60, 200, 100]
    again = load_dataset(f"neurogym:{task}-v0", samples=80)
    assert np.array_equal(again.y_train[:60], data.y_train)
    assert np.array_equal(again.x_test, data.x_test)
    assert not np.array_equal(data.x_validation[:60], data.x_train)
    louder = load_dataset("neurogym:GoNogo-v0", samples=20, task_options={"strength": 2.0})
    assert louder.x_train.max() == 2
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        load_dataset(f"neurogym:{task}-v0", samples=0)


def test_wrong_tasks_are_one_sentence(fake, monkeypatch, invoke, tmp_path):
    def says(message, *arguments):
        done = invoke("train", *arguments, "--out", tmp_path / "run")
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())
        assert not (tmp_path / "run").exists()

    says("'adding', 'copy', 'neurogym:NAME'", "--task", "neurogim:GoNogo-v0")
    says("got 'neurogym:GoNoGo-v0': tried here are PerceptualDecisionMaking-v0, ", "--task", "neurogym:GoNoGo-v0")
    says("ReachingDelayResponse-v0; it also has Bandit-v0", "--task", "neurogym:GoNoGo-v0")
    says("neurogym:Bandit-v0 has no right action at every step", "--task", "neurogym:Bandit-v0")
    says("does not take the task options {'sigma': 2}", "--task", "neurogym:GoNogo-v0", "--task-option", "sigma=2")
    says("task options are for tasks of NeuroGym, not for 'digits'", "--task-option", "sigma=2")
    says("criterion must be a part of the trials", "--criterion", "1.5")
    monkeypatch.setitem(sys.modules, "neurogym", None)
    says('needs neurogym: pip install "organics-core[neurogym]"', "--task", "neurogym:GoNogo-v0")


def test_settings_of_the_ten():
    assert len(cognitive.TEN) == 10
    config = Config.recommended("neurogym:ContextDecisionMaking-v0", options={"variant": "main"})
    assert config.task_options == {"use_expl_context": True}
    assert (config.criterion, config.options) == (0.9, {"recurrent": "spectral", "variant": "main"})
    assert Config.recommended("neurogym:GoNogo-v0", model="gru").options == {}
    other = Config.recommended("neurogym:yang19.go-v0")
    assert (other.criterion, other.samples, other.name) == (None, 10_000, "neurogym-yang19.go-v0-organics-torch-seed0")
    assert list(reproduce.COGNITIVE)[:2] == ["PerceptualDecisionMaking-organics", "PerceptualDecisionMaking-gru"]
    assert len(reproduce.COGNITIVE) == 20


@pytest.mark.parametrize("name", reproduce.COGNITIVE)
def test_rows_are_those_of_the_records(name, invoke, monkeypatch):
    record = json.loads((ROOT / "benchmarks" / "results" / "train" / "cognitive" / name / "results.json").read_text())
    config = reproduce.config_of(name)
    monkeypatch.setattr(cli, "_train", lambda *run, **options: got.append(run))
    got: list = []
    assert invoke(*shlex.split(record["command"])[1:]).exit_code == 0
    assert got == [(config, Path("FOLDER"))]
    assert completed(record["config"]) == config.asdict()
    assert record["command"] == reproduce.train_command(config, Path("FOLDER"))


@pytest.mark.library("torch")
def test_training_stops_at_the_criterion(fake, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    from organics_train import train

    config = Config.recommended("neurogym:GoNogo-v0", hidden=16, samples=512, batch_size=32, learning_rate=0.01)
    results = train(config, tmp_path / "run")
    epochs = [epoch["validation_accuracy"] for epoch in results["epochs"]]
    assert results["criterion_reached"]
    assert {"torch", "neurogym"} <= results["environment"].keys()
    assert len(epochs) < config.epochs
    assert epochs[-1] >= config.criterion > max(epochs[:-1], default=0)
    again = train(config, tmp_path / "run", resume=True)
    assert [epoch["loss"] for epoch in again["epochs"]] == [epoch["loss"] for epoch in results["epochs"]]
    assert again["test_accuracy"] == results["test_accuracy"]
    with pytest.raises(ValueError, match=r"criterion 0\.95, not 0\.96"):
        train(Config(**{**config.asdict(), "criterion": 0.96}), tmp_path / "run", resume=True)
    (row,) = tables.rows_of([results], {config.task})
    assert (row["criterion"], row["reached"], row["paper"]) == (95, True, None)


@pytest.mark.library("torch")
def test_rows_of_cognitive_tasks(fake, invoke, tmp_path, monkeypatch):
    """Trained, analysed, collected, and not repeated."""
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.setattr(reproduce, "estimate", lambda config: reproduce.Estimate(0.1, 0.1, 60.0, 100.0))
    names = ["GoNogo-organics", "GoNogo-gru", "ReachingDelayResponse-organics"]
    arguments = ["reproduce", *names, "--table", "cognitive", "--quick", "--out", tmp_path]
    done = invoke(*arguments, "--json", tmp_path / "rows.json")
    assert done.exit_code == 0, done.output
    assert done.output.count("the criterion of 95 % on validation was not reached in 1 epoch") == 6
    assert done.output.count("Fixed points at mean inputs") == 3
    assert "Static MNIST" not in done.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert sorted(row["model"] for row in rows["cognitive"]) == ["gru", "organics", "organics"]
    assert [row["criterion"] for row in rows["cognitive"]] == [95] * 3
    folder = tmp_path / "cognitive-quick" / "GoNogo-organics-seed0"
    assert (folder / "analysis.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((folder / "analysis.json").read_text())
    assert {given["period"] for given in found["inputs"]} == {"stimulus", "delay", "decision"}
    stimuli = [(given["given"], given["input"]) for given in found["inputs"] if given["period"] == "stimulus"]
    assert stimuli == [({"right action": 1}, [0, 1, 0]), ({"right action": 2}, [0, 0, 1])]
    assert [given["given"] for given in found["inputs"] if given["period"] != "stimulus"] == [{}, {}]
    assert found["selectivity"].keys() <= {"right action", "choice", "delay", "noise"}  # kind divides them as the first
    again = invoke(*arguments)
    assert again.exit_code == 0
    assert "Fixed points" not in again.output
    (folder / "analysis.json").unlink()  # as where it was stopped in between
    rest = invoke(*arguments)
    assert rest.output.count("Fixed points at mean inputs") == 1
    assert "about " not in rest.output
    assert (folder / "analysis.json").is_file()
    assert "largest" in invoke("analyse", folder).output
    assert "unknown row 'smnist-lstm-128'" in invoke("reproduce", "smnist-lstm-128", "--table", "cognitive").output
    assert "unknown table 'all'" in invoke("reproduce", "--table", "all").output


@pytest.mark.library("torch")
@pytest.mark.parametrize("model", ["organics", "gru"])
def test_the_analysed_net_is_the_trained_one(fake, tmp_path, model):
    """Its outputs are the model's, and its fixed points those of the map."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from organics_train import train
    from organics_train.loop import make_learner

    config = Config.recommended(
        "neurogym:GoNogo-v0", model=model, hidden=6, samples=64, batch_size=32, epochs=2, task_options=None
    )
    train(config, tmp_path)
    data = config.data()
    arrays, record = analysis.load_checkpoint(tmp_path / "model.safetensors")
    record["config"]["device"] = "cuda"  # which need not be here
    save_checkpoint(tmp_path / "model.safetensors", arrays, record)
    read, net, _ = analysis.read(tmp_path)
    assert read == Config(**{**config.asdict(), "device": "cuda"})
    learner = make_learner(config, data)
    learner.load_state(
        {f"model.{name}": value for name, value in analysis.load_checkpoint(tmp_path / "model.safetensors")[0].items()}
        | {"random.cpu": torch.get_rng_state().numpy()}
    )
    with torch.no_grad():
        outputs = learner.model(torch.tensor(data.x_test)).numpy()
    states = net.run(data.x_test.astype(float))
    assert np.allclose(net.readout(states[..., : net.units]), outputs, atol=1e-4)
    x = np.array([0.0, 1.0, 0.0])
    box = np.full(states.shape[-1], -9.0), np.full(states.shape[-1], 9.0)
    found = fixed_points(net, x, states[:4, -1], box)
    assert found["points"]
    for point in found["points"]:
        assert np.allclose(net.step(point[None], x[None])[0], point, atol=1e-7)
    if model == "organics":
        proof = net.prove(x, found["points"][0])
        assert isinstance(proof, oc.CellProof)
        assert np.allclose(np.concatenate(proof.state), found["points"][0], atol=1e-6)
        away = np.linspace(0.1, 0.9, states.shape[-1])  # from every kink
        by_differences = net._replace(derivative=None).jacobian(away, x)
        assert np.allclose(net.jacobian(away, x), by_differences, atol=1e-8)  # eps / h = 2e-10, h**2 = 1e-12


def test_fixed_points_of_a_bistable_map():
    """s = tanh(2 s) has three: two that attract, at which each side ends, and zero, which Newton's method finds."""
    net = Net(1, np.zeros(1), lambda s, x: np.tanh(2 * s + x), lambda units: units, np.inf, None)
    zero = np.zeros(1)
    root = 0.9575040240772687  # of s = tanh(2 s), by mpmath.findroot
    found = fixed_points(net, zero, np.array([[0.5], [0.01], [-0.9]]), (-2 * np.ones(1), 2 * np.ones(1)))
    order = np.argsort(np.concatenate(found["points"]))
    assert np.allclose(np.concatenate(found["points"])[order], [-root, 0, root], atol=1e-9)
    assert [found["reached"][k] for k in order] == [1, 0, 2]
    assert np.allclose(net.jacobian(zero, zero), 2.0)
    assert settle(Net(1, zero, lambda s, x: s + 1.0, lambda units: units, np.inf, None), zero, zero) is None


def test_explained_variance_and_groups():
    rng = np.random.default_rng(0)
    labels = np.repeat([3, 5], 500)
    units = np.stack([labels * 1.0, rng.standard_normal(1000), (labels == 5) + rng.standard_normal(1000)], axis=-1)
    shares = explained(units, labels)
    assert shares[0] == pytest.approx(1)
    assert shares[1] < 0.01
    slope = np.corrcoef(units[:, 2], labels)[0, 1] ** 2  # of two groups, the squared correlation
    assert shares[2] == pytest.approx(slope)
    assert explained(np.ones((4, 2)), np.array([0, 0, 1, 1])).tolist() == [0, 0]
    assert groups([2, 2, 2]) is None
    assert groups([4, 2]).tolist() == [4, 2]
    assert groups(["b", "a"]).tolist() == [1, 0]
    assert groups([6.4, 0.0, 12.8]).tolist() == [1, 0, 2]
    assert groups([None, 2, None]).tolist() == [1, 0, 1]
    assert groups([(1, 3), (1, 4)]).tolist() == [0, 1]
    assert np.bincount(groups(np.arange(12) / 7)).tolist() == [3, 3, 3, 3]
    assert groups([f"{k}" for k in range(9)]) is None


def test_a_class_has_one_colour_in_the_picture(monkeypatch):
    """Also where none of its trials are among those that are drawn, here the class 0."""
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    from organics_plot import analysis as plot

    lines, drawn = {}, plot.hidden_trajectories

    def recorded(paths, labels, **options):
        before = len(options["ax"].lines)
        ax = drawn(paths, labels, **options)
        for line in ax.lines[before:]:
            lines.setdefault(line.get_label() if line.get_marker() == "o" else "path", []).append(line.get_color())
        return ax

    monkeypatch.setattr(plot, "hidden_trajectories", recorded)
    labels = {"right action": np.r_[np.repeat([1, 2], 40), np.zeros(10, dtype=int)]}
    units = np.random.default_rng(0).standard_normal((90, 5, 4))
    selectivity = {"right action": {"time": explained(units, labels["right action"])}}
    config = SimpleNamespace(model="organics", task="neurogym:X-v0")
    analysis.draw({"units": units, "labels": labels, "inputs": [], "config": config, "selectivity": selectivity})
    for name in "012":
        assert len(set(lines[name])) == 1, name


def test_inputs_are_told_apart_by_what_moves_them():
    """Not by the choice, nor by what is alike; by the first variable alone where there would be more than twelve."""
    a, b, c = (labels.ravel() for labels in np.meshgrid([0, 1], [4, 7], np.arange(5), indexing="ij"))
    means = np.stack([a * 1.0, b * 0.1, 0.001 * c], axis=-1)
    labels = {"choice": a, "a": a, "b": b, "c": c}
    found = analysis._inputs(means, labels)
    assert [given for given, _ in found] == [{"a": i, "b": j} for i in (0, 1) for j in (4, 7)]
    assert np.array_equal(np.stack([mask for _, mask in found]).sum(0), np.ones(20))
    assert all(np.all(a[mask] == given["a"]) and np.all(b[mask] == given["b"]) for given, mask in found)
    assert [given for given, _ in analysis._inputs(means + c[:, None], labels)] == [{"a": 0}, {"a": 1}]
    ((given, mask),) = analysis._inputs(0 * means, labels)
    assert given == {}
    assert mask.all()


@pytest.mark.library("torch")
def test_runs_that_cannot_be_analysed(fake, invoke, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    from organics_train import train

    for folder, message, given in (
        ("none", "holds no finished run", None),
        ("adding", "was trained on adding; only cognitive tasks", {"task": "adding", "model": "gru", "length": 6}),
        ("lstm", "holds lstm of torch", {"task": "neurogym:GoNogo-v0", "model": "lstm"}),
        ("deep", "nets of one layer", {"task": "neurogym:GoNogo-v0", "model": "gru", "options": {"num_layers": 2}}),
    ):
        if given:
            train(Config(**given, hidden=3, samples=32, epochs=1), tmp_path / folder)
        done = invoke("analyse", tmp_path / folder)
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.library(name)) for name in ("torch", "jax")])
def test_numbers_at_every_step_are_right_within_the_tolerance(name):
    """Counted at the last step, and all of them must be."""
    y = np.zeros((4, 5, 2), dtype=np.float32)
    outputs = y.copy()
    outputs[1, -1, 0] = 0.05
    outputs[2, :-1] = 1.0
    outputs[3, -1] = 0.03
    settings = SimpleNamespace(kind="numbers", scored=1)
    if name == "torch":
        torch = pytest.importorskip("torch", reason="torch is not installed")
        from organics_train.torch_learner import TorchLearner as Learner

        outputs, right = torch.tensor(outputs), torch.tensor(y)
    else:
        jnp = pytest.importorskip("jax.numpy", reason="jax is not installed")
        from organics_train.jax_learner import JaxLearner as Learner

        outputs, right = jnp.asarray(outputs), jnp.asarray(y)
    loss, accuracy = Learner.loss(settings, outputs, right)
    assert float(accuracy) == 0.75
    assert float(loss) == pytest.approx((0.05**2 + 8 + 2 * 0.03**2) / 40, rel=1e-5)


@real
@pytest.mark.parametrize("name", cognitive.TEN)
def test_the_ten_of_neurogym(name):
    config = Config.recommended(f"neurogym:{name}", samples=40)
    part, same = (cognitive.make_trials(config.task, config.task_options, 40, 1) for _ in range(2))
    assert np.array_equal(part.x, same.x)
    assert np.array_equal(part.y, same.y)
    assert part.conditions[0].keys() == same.conditions[0].keys()
    last = part.y[:, -1]
    assert len(np.unique(last)) > 1
    for x, periods in zip(part.x, part.periods, strict=True):
        assert max(end for _, end in periods.values()) == len(x)
        assert not x[: min(begin for begin, _ in periods.values())].any()


@real
@pytest.mark.library("torch")
def test_a_task_of_neurogym_is_learned(tmp_path):
    from organics_train import train

    config = Config.recommended("neurogym:GoNogo-v0", hidden=16, samples=1000, learning_rate=0.01)
    results = train(config, tmp_path)
    assert results["criterion_reached"]
    assert results["test_accuracy"] > 0.9
