"""Pages made from records: capabilities from a test report, embedding and speed from benchmark results, the gallery.

``nox -s docs`` runs it before Sphinx. What has no record yet is said to have none.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OUT = ROOT / "docs" / "_generated"
COLUMNS = tuple(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["organics-core"]["libraries"])
PAPER = "paper's cell"
HEADINGS = {"strict": "array-api-strict"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def capabilities(report: Path) -> str:
    """Feature (one test file) by array library, from pytest's JUnit report."""
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for case in ET.parse(report).iter("testcase"):
        name = case.get("classname", "").split(".")[-1]
        if any(case.find(kind) is not None for kind in ("skipped",)):
            continue
        parts = name.split("_")
        identifier = case.get("name", "")
        inside = identifier[identifier.find("[") + 1 : -1].split("-") if "[" in identifier else []
        library = next((column for column in COLUMNS if column in inside), None)
        library = library or (parts[1] if len(parts) > 2 and parts[1] in COLUMNS else "numpy")
        failed = case.find("failure") is not None or case.find("error") is not None
        counts[name][library][1 if failed else 0] += 1
    rows = []
    for name in sorted(counts):
        file = ROOT / "tests" / f"{name}.py"
        if not file.exists():
            continue
        what = (ast.get_docstring(ast.parse(file.read_text())) or name).splitlines()[0].rstrip(".")
        cells = []
        for column in COLUMNS:
            passed, failed = counts[name][column]
            cells.append(f"{passed} passed" + (f", **{failed} failed**" if failed else "") if passed + failed else "")
        rows.append([what, *cells])
    return table(["what is tested", *(HEADINGS.get(c, c) for c in COLUMNS)], rows)


def embedding(record: Path) -> str:
    """Framework, version and errors, from the embedding sessions."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.1e}".replace("-", "\N{NON-BREAKING HYPHEN}")

    rows = [
        [r["framework"], r["version"], number(r["transient_error"]), number(r["fixed_point_error"]), r["note"]]
        for r in json.loads(record.read_text())["rows"]
    ]
    return table(["framework", "version", "transient error", "fixed-point error", "note"], rows)


ORIGINS = {"the paper's": ", after the paper", "phenomena": ", a phenomenon of cortex"}


def gallery(folder: Path) -> str:
    """Every figure with its caption."""
    parts = []
    for picture in sorted(folder.glob("*.png")):
        record = picture.with_suffix(".json")
        about = json.loads(record.read_text()) if record.exists() else {}
        caption, source = about.get("caption", ""), ORIGINS.get(about.get("source"), "")
        parts.append(f"## {picture.stem.replace('-', ' ').capitalize()}\n\n{caption}\n\n")
        parts.append(f"![{picture.stem}](_generated/figures/{picture.name})\n\n")
        parts.append(f"`organics figures {picture.stem}`{source}\n")
    return "\n".join(parts)


def simulators(folder: Path) -> str:
    """Every module of the adapter for other simulators: a table, and the place of its reference."""
    rows, parts = [], []
    for file in sorted(folder.glob("[!_]*.py")):
        tree = ast.parse(file.read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        extra = next(call.args[0].value for call in calls if getattr(call.func, "id", "") == "require")
        what = (ast.get_docstring(tree) or "").splitlines()[0].removeprefix("ORGaNICs for ").replace("``", "`")
        rows.append([f"`{file.stem}`", what, f"`organics-core[{extra}]`"])
        parts.append(f"## {file.stem}\n\n```{{eval-rst}}\n.. automodule:: {folder.name}.{file.stem}\n```\n")
    return "\n".join([table(["module", "for", "extra"], rows), *parts])


def notebook(page: str) -> dict[str, Any]:
    """A tutorial as a Jupyter notebook: its code cells, and its prose without what only Sphinx reads."""
    text = re.sub(r"\A---\n.*?\n---\n", "", page, flags=re.DOTALL)
    text = re.sub(r"^\{download\}.*\n", "", text, flags=re.MULTILINE)
    parts = re.split(r"^```\{code-cell\} python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    cells: list[dict[str, Any]] = []
    for place, part in enumerate(parts):
        source = part.strip("\n") if place % 2 else prose(part).strip()
        if source:
            of_kind = {"cell_type": "code", "execution_count": None, "outputs": []} if place % 2 else None
            cells.append(
                {"id": f"cell-{len(cells)}", "metadata": {}, "source": source, **(of_kind or {"cell_type": "markdown"})}
            )
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def prose(text: str) -> str:
    """MyST as plain Markdown: names for roles, the words of links to other pages, quotations for admonitions."""
    text = re.sub(r"\{[a-z:]+\}`(?:[^`<]*<)?([^`>]+)>?`", r"`\1`", text)
    text = re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)

    def quoted(found: re.Match[str]) -> str:
        head = f"**{found[1].capitalize()}.** {found[2].strip()}"
        return "\n".join(f"> {line}" for line in head.splitlines())

    return re.sub(r"^```\{(\w+)\}\n(.*?)^```$", quoted, text, flags=re.MULTILINE | re.DOTALL)


def commands(names: Iterable[str]) -> str:
    """The help of the command line and of every command, as it prints it."""
    parts = []
    for name in names:
        words = ["organics", *name.split(), "--help"]
        environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
        text = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
        parts.append(f"## {' '.join(words[:-1])}\n\n```text\n{text.strip()}\n```\n")
    return "\n".join(parts)


def measured_on(content: dict[str, Any], *packages: str) -> str:
    """Processor, threads and versions of a record, as far as it names them."""
    parts = [
        content.get("processor") or f"a processor that the record does not name ({content['versions']['machine']})"
    ]
    parts += [f"{content['threads']} threads"] if "threads" in content else []
    parts += [f"{name} {content['versions'][name]}" for name in packages if name in content["versions"]]
    return f"Measured on {', '.join(parts)}.\n"


def losses(torch: Path, jax: Path, numpy: Path, streams: Path) -> str:
    """Every row of the records on processors where ours takes at least as long as the peer, or more memory."""
    lines = []
    layers = (("torch", torch, ("fused", "checkpointed", "function")), ("jax", jax, ("auto", "chunked")))
    for name, record, own in layers:
        for shape in json.loads(record.read_text())["shapes"]:
            for what, unit in (("seconds", "time"), ("megabytes", "peak memory")):
                ratios = {layer: shape[what][layer] / shape[what]["LSTM"] for layer in own}
                lines += [
                    f"- {name}, `{layer}`, {shape['hidden']} units x {shape['steps']} steps: "
                    f"{ratio:.2f} times the {unit} of the LSTM"
                    for layer, ratio in ratios.items()
                    if ratio >= 1
                ]
    for row in json.loads(numpy.read_text())["adaptive"]:
        if row["ratio"] >= 0.95:
            lines.append(
                f"- simulation, {row['library']}, n = {row['n']}, batch {row['batch']}: "
                f"{row['ratio']:.2f} times the time of {row['peer']}"
            )
    for shape in json.loads(streams.read_text())["shapes"]:
        seconds = shape["seconds_per_step"]
        lines += [
            f"- one step of a stream, {shape['hidden']} units, {name}: "
            f"{own / seconds['LSTM']:.2f} times the time of the LSTM"
            for name, own in seconds.items()
            if name != "LSTM" and own >= seconds["LSTM"]
        ]
    return "\n".join(lines) + "\n"


def torch_speed(record: Path) -> str:
    """Seconds and megabytes of a forward and backward pass, per shape, from benchmarks/training.py."""
    content = json.loads(record.read_text())
    parts = [measured_on(content, "torch")]
    for shape in content["shapes"]:
        seconds, megabytes = shape["seconds"], shape["megabytes"]
        rows = [
            [
                name,
                f"{own:.3f}",
                f"{own / seconds['LSTM']:.2f}",
                f"{seconds[PAPER] / own:.2f}",
                f"{megabytes[name]:.0f}",
            ]
            for name, own in seconds.items()
        ]
        rows.append(["floor", f"{shape['floor_seconds']:.3f}", "", "", ""])
        parts.append(f"**{shape['hidden']} units, {shape['steps']} steps, batch {shape['batch']}**\n")
        parts.append(table(["", "seconds", "/ LSTM", f"{PAPER} /", "peak MB"], rows))
        missed = [
            f"{name} {row['measured']:.2f} (aim: at {'most' if row['at_most'] else 'least'} {row['bound']})"
            for name, row in shape["targets"].items()
            if not row["met"]
        ]
        parts.append(f"Missed: {'; '.join(missed)}.\n" if missed else "All aims met.\n")
    return "\n".join(parts)


def jax_speed(record: Path) -> str:
    """The same in jax, from benchmarks/training_jax.py."""
    content = json.loads(record.read_text())
    rows = [
        [
            f"{shape['hidden']} x {shape['steps']}",
            name,
            f"{own:.3f}",
            f"{own / shape['seconds']['LSTM']:.2f}",
            f"{shape['megabytes'][name]:.0f}",
        ]
        for shape in content["shapes"]
        for name, own in shape["seconds"].items()
    ]
    return measured_on(content, "jax") + "\n" + table(["units x steps", "", "seconds", "/ LSTM", "peak MB"], rows)


def accuracies(folder: Path) -> str:
    """Test accuracy of every training record, with its command."""
    rows = []
    for file in sorted(folder.glob("*/results.json")):
        run = json.loads(file.read_text())
        norm = max(epoch["gradient_norm_max"] for epoch in run["epochs"])
        accuracy = f"{100 * run['test_accuracy']:.2f} %"
        command = run["command"].partition(" --out")[0]
        epochs = str(len(run["epochs"]))
        rows.append([file.parent.name, f"{run['parameters']:,}", epochs, accuracy, f"{norm:.3g}", f"`{command}`"])
    return table(["run", "parameters", "epochs", "test accuracy", "largest gradient norm", "command"], rows)


def simulation(record: Path) -> str:
    """Adaptive integration against peers, at equal accuracy."""
    content = json.loads(record.read_text())
    rows = [
        [
            f"{row['library']} / {row['peer']}",
            str(row["n"]),
            str(row["batch"]),
            f"{1000 * row['seconds']:.2f}",
            f"{1000 * row['peer_seconds']:.2f}",
            f"{row['ratio']:.2f}",
        ]
        for row in content["adaptive"]
    ]
    peers = ("numpy", "scipy", "torch", "torchdiffeq", "jax", "diffrax")
    return (
        measured_on(content, *peers)
        + "\n"
        + table(["ours / peer", "n", "batch", "ours, ms", "peer, ms", "ratio"], rows)
    )


def analysis(record: Path) -> str:
    """Stability by eigenvalues and by the certificate, from benchmarks/analysis.py."""
    content = json.loads(record.read_text())
    proof, kinds = content["certificate"], content["classification"]
    rows = [
        ["eigenvalues of the Jacobian", f"{proof['eigenvalues']:.3g}", "1"],
        [
            "certificate with p and q",
            f"{proof['certify_with_matrices']:.3g}",
            f"{proof['eigenvalues_over_certify_with_matrices']:.3g}",
        ],
        ["certificate, the decision only", f"{proof['certify']:.3g}", f"{proof['eigenvalues_over_certify']:.3g}"],
    ]
    head = measured_on(content, "numpy") + f"\nStability of one circuit with W_r = I, n = {proof['n']}:\n\n"
    tail = (
        f"\nWhere a circuit with another W_r ends, n = {kinds['n']}: `oc.classify` (Newton's method, "
        f"and the motion from rest) took {kinds['shared_pool']['ratio']:.3g} times less than Euler steps until nothing "
        f"changes where all neurons share a pool, {kinds['random_pools']['ratio']:.3g} times less with random pools. "
        f"Newton's method alone finds the fixed point {content['newton']['ratio']:.3g} times as fast as such a "
        "simulation.\n"
    )
    if "attracting" in content:
        search = content["attracting"]
        tail += (
            f"\nThe attracting point that a circuit reaches from rest (`oc.steady_state`; {search['circuits']} random "
            "circuits of 1 to 20 neurons, norm of W_r 0.5 to 5, drive 0.01 to 100): "
            f"{search['attracting_ms']:.2g} ms of processor time (median;"
            f" mean {search['attracting_mean_ms']:.2g}), {search['ratio']:.2g} times Newton's method alone "
            "(`attracting=False`), which asks neither whether its point attracts nor where the circuit goes.\n\n"
        )
        ways = [
            [reason, str(way["circuits"]), f"{way['attracting_ms']:.2g}", f"{way['ratio']:.2g}"]
            for reason, way in search["by_status"].items()
        ]
        tail += table(["how it was come by", "circuits", "ms", "times Newton's method alone"], ways)
    if "reaching" in content:
        tail += (
            "\nLarger circuits with strong recurrence (norm of W_r 1.5 to 4), of those that settle, against scipy's "
            "LSODA from rest over 200 of the longer time constants at rtol 1e-3 (processor time, medians):\n\n"
        )
        ways = [
            [
                neurons,
                f"{way['settle']} of {way['circuits']}",
                *(f"{way[key]:.3g}" for key in ("steady_state_ms", "lsoda_ms", "ratio")),
            ]
            for neurons, way in content["reaching"].items()
        ]
        tail += table(["neurons", "settle", "`steady_state`, ms", "LSODA, ms", "times faster"], ways)
    return head + table(["", "seconds", "times faster"], rows) + tail


def newest(kind: str, suffix: str = "json", folder: Path = RESULTS) -> Path | None:
    """The record ``kind`` of the latest date in its name; one without a date comes first, a quick run never counts."""
    name = re.compile(rf"{kind}(?:-(\d{{4}}-\d\d-\d\d)(?!.*quick).*)?\.{suffix}")
    found = [(match[1] or "", file.name, file) for file in folder.glob("*") if (match := name.fullmatch(file.name))]
    return max(found)[2] if found else None


def write(name: str, source: Path | None, make: Any, missing: str) -> None:
    """One generated page part, with the name of the record that it was made from."""
    if source is None or not source.exists():
        (OUT / name).write_text(f"*{missing}*\n")
        return
    inside = source.is_relative_to(RESULTS)
    origin = f"\nRecord: `{source.relative_to(ROOT).as_posix()}`.\n" if inside else ""
    (OUT / name).write_text(make(source) + origin)


COMMANDS = (
    *("demo", "init", "simulate", "certify", "agree", "train", "table", "reproduce", "analyse"),
    *("figures", "explore", "sweep"),
)
"""Of the command line, in the order of its page."""


def main() -> int:
    """Write all parts."""
    OUT.mkdir(parents=True, exist_ok=True)
    write("capabilities.md", OUT / "tests.xml", capabilities, "No test report: build with `nox -s docs`.")
    write("gallery.md", OUT / "figures", gallery, "No figures: build with `nox -s docs`.")
    write("embedding.md", newest("embed"), embedding, "No record yet: run `nox -s embed`.")
    write("torch_speed.md", newest("training-cpu"), torch_speed, "No record yet: run `python benchmarks/training.py`.")
    write("jax_speed.md", newest("training-jax-cpu"), jax_speed, "No record: run `python benchmarks/training_jax.py`.")
    write("accuracies.md", RESULTS / "train", accuracies, "No record yet: run `organics train`.")
    write("simulation.md", newest("simulation"), simulation, "No record yet: run `python benchmarks/simulation.py`.")
    write("analysis.md", newest("analysis"), analysis, "No record yet: run `python benchmarks/analysis.py`.")
    records = [newest(kind) for kind in ("training-cpu", "training-jax-cpu", "simulation", "streaming-cpu")]
    found = losses(*[r for r in records if r]) if all(records) else "*Not all records are there.*\n"
    (OUT / "losses.md").write_text(found)
    write(
        "gpu.md", newest("gpu-.+?", "md"), Path.read_text, "No GPU has run anything yet: `nox -s gpu` makes a record."
    )
    (OUT / "simulators.md").write_text(simulators(ROOT / "adapters" / "organics_simulators"))
    (OUT / "notebooks").mkdir(exist_ok=True)
    for page in (ROOT / "docs" / "tutorials").glob("*.md"):
        (OUT / "notebooks" / f"{page.stem}.ipynb").write_text(json.dumps(notebook(page.read_text()), indent=1) + "\n")
    (OUT / "commands.md").write_text(commands(("", *COMMANDS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
