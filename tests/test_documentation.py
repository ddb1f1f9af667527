"""The pages: tables are made from the newest records, and what code is said to print it prints."""

import contextlib
import importlib.util
import io
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("documentation_tables", ROOT / "docs" / "tables.py")
tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tables)

REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_noise" name="test_a[numpy-float64]"/>
<testcase classname="tests.test_noise" name="test_a[jax-float32]"><failure/></testcase>
<testcase classname="tests.test_noise" name="test_a[torch-float32]"><skipped/></testcase>
<testcase classname="tests.test_torch_layers" name="test_b"/>
</testsuite></testsuites>"""


def touch(folder, *names):
    for name in names:
        (folder / name).write_text("{}")


def test_the_newest_record_of_a_kind_is_taken(tmp_path):
    assert tables.newest("training-cpu", folder=tmp_path) is None
    touch(tmp_path, "training-cpu.json", "training-jax-cpu-2030-01-01.json", "training-cpu-2031-01-01-quick.json")
    assert tables.newest("training-cpu", folder=tmp_path).name == "training-cpu.json"
    touch(tmp_path, "training-cpu-2029-11-25.json", "training-cpu-2029-02-28.json")
    assert tables.newest("training-cpu", folder=tmp_path).name == "training-cpu-2029-11-25.json"
    touch(tmp_path, "gpu-one-2030-01-01.md", "gpu-two-2029-01-01.md", "gpu-two-2031-01-01.json")
    assert tables.newest("gpu-.+?", "md", folder=tmp_path).name == "gpu-one-2030-01-01.md"


@pytest.mark.parametrize("kind", ["training-cpu", "training-jax-cpu", "simulation", "analysis", "embed"])
def test_every_record_that_a_page_needs_is_there_and_read(kind):
    make = {"training-cpu": "torch_speed", "training-jax-cpu": "jax_speed", "embed": "embedding"}.get(kind, kind)
    assert getattr(tables, make)(tables.newest(kind)).count("\n| ") > 2


def test_the_page_of_the_command_line_has_every_command():
    typer = pytest.importorskip("typer", reason="typer is not installed")
    from organics_cli.app import app

    assert sorted(tables.COMMANDS) == sorted(typer.main.get_command(app).list_commands(None))


def test_losses_are_the_rows_that_are_behind_and_no_others(tmp_path):
    layers = {"LSTM": 2.0, "fused": 1.0, "checkpointed": 3.0, "function": 2.0, "auto": 1.9, "chunked": 2.2}
    shape = {"hidden": 8, "steps": 9, "seconds": layers, "megabytes": {**dict.fromkeys(layers, 1.0), "LSTM": 2.0}}
    runs = [{"library": "numpy", "peer": "scipy", "n": n, "batch": 1, "ratio": n / 100} for n in (94, 96)]
    stream = {"hidden": 8, "seconds_per_step": {"LSTM": 2.0, "layer": 5.0, "stream": 1.0}}
    contents = {"torch": {"shapes": [shape]}, "jax": {"shapes": [shape]}, "runs": {"adaptive": runs}}
    contents["streams"] = {"shapes": [stream]}
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert tables.losses(*(tmp_path / name for name in contents)).splitlines() == [
        "- torch, `checkpointed`, 8 units x 9 steps: 1.50 times the time of the LSTM",
        "- torch, `function`, 8 units x 9 steps: 1.00 times the time of the LSTM",
        "- jax, `chunked`, 8 units x 9 steps: 1.10 times the time of the LSTM",
        "- simulation, numpy, n = 96, batch 1: 0.96 times the time of scipy",
        "- one step of a stream, 8 units, layer: 2.50 times the time of the LSTM",
    ]
    found = tables.losses(*map(tables.newest, ("training-cpu", "training-jax-cpu", "simulation", "streaming-cpu")))
    assert found.count("\n") > 3


def test_a_record_says_on_which_processor():
    assert tables.measured_on({"processor": "P", "threads": 2, "versions": {"torch": "1"}}, "torch", "jax") == (
        "Measured on P, 2 threads, torch 1.\n"
    )
    assert "does not name (x86_64)" in tables.measured_on({"versions": {"machine": "x86_64"}})
    for make in (tables.torch_speed, tables.jax_speed, tables.simulation, tables.analysis):
        kind = {"torch_speed": "training-cpu", "jax_speed": "training-jax-cpu"}.get(make.__name__, make.__name__)
        assert make(tables.newest(kind)).startswith("Measured on ")


def test_capabilities_count_what_ran(tmp_path):
    report = tmp_path / "tests.xml"
    report.write_text(REPORT)
    lines = tables.capabilities(report).splitlines()
    noise = next(line for line in lines if "1 failed" in line)
    assert [cell.strip() for cell in noise.split("|")[2:7]] == ["1 passed", "", "", "0 passed, **1 failed**", ""]
    assert [cell.strip() for cell in lines[-1].split("|")[2:7]] == ["", "", "1 passed", "", ""]


@pytest.mark.library("jax", "torch", together=True)
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_page_of_ones_own_model_runs(monkeypatch):
    """Its cells, in order; the model of a user takes 25 lines at most, and the kinds of numbers are as told."""
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    jax = pytest.importorskip("jax")
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    text = (ROOT / "docs" / "how-to" / "your-own-model.md").read_text()
    cells = re.findall(r"^```\{code-cell\} python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len([line for line in cells[0].splitlines() if line]) <= 25
    names = {"__name__": "page"}
    with matplotlib.rc_context({"backend": "agg"}):
        for cell in cells:
            exec(cell, names)  # what the page shows
        matplotlib.pyplot.close("all")
    found, rest = names["found"], names["rest"]
    assert bool(found.converged.all())
    assert float(jax.numpy.max(jax.numpy.abs(names["resting_potential"](names["current"]) - rest.v[0]))) < 1e-5
    assert names["covariance"].shape == (2, 2)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_is_a_notebook_to_download(page):
    """Its code cells are those of the page, in order, among its prose; nothing is left that Sphinx alone reads."""
    text = page.read_text()
    assert f"\n{{download}}`This page as a Jupyter notebook <../_generated/notebooks/{page.stem}.ipynb>`\n" in text
    book = tables.notebook(text)
    assert (book["nbformat"], book["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    code, said = ([c["source"] for c in book["cells"] if c["cell_type"] == kind] for kind in ("code", "markdown"))
    lines, own, inside = text.splitlines(), [], False
    for line in lines:  # as Sphinx reads it
        if line.startswith("```"):
            inside = line == "```{code-cell} python"
            own += [[]] if inside else []
        elif inside:
            own[-1].append(line)
    assert code == ["\n".join(cell) for cell in own]
    assert len(code) >= 3
    for cell in code:
        compile(cell, page.name, "exec")
    assert said[0].startswith("# ")
    assert [line for line in lines if line.startswith("#")] == [
        line for cell in said for line in cell.splitlines() if line.startswith("#")
    ]
    prose = "\n".join(said)
    assert not re.search(r"\{[a-z:-]+\}|\.md\b|mystnb", prose)
    words = len(re.findall(r"\w+", text)) - len(re.findall(r"\w+", "\n".join(code)))
    assert len(re.findall(r"\w+", prose)) > 0.8 * words  # without the head, the words of roles and the targets of links


BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
LIBRARY = re.compile(r"^(?:import|from) (?:organics_)?(torch|jax)\b", re.MULTILINE)
PAGES = (
    *("index", "faq", "sharp-bits"),
    *(f"how-to/{name}" for name in ("fit", "from-authors-code", "long-sequences", "noise", "normalization")),
    *(f"how-to/{name}" for name in ("parameters", "pool", "stiff")),
)


def blocks(page):
    """The python blocks of a page: code, what the page says it prints, and the library that it imports beside numpy."""
    for code, said in BLOCK.findall((ROOT / "docs" / f"{page}.md").read_text()):
        library = LIBRARY.search(code)
        yield code, said, library[1] if library else "numpy"


NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:e[+-]?\d+)?")


def assert_says(printed, said):
    """The same words and numbers: to ten units of the last digit said, whole ones to 3 % (counts of draws)."""
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", said).split()
    for found, want in zip(NUMBER.findall(printed), NUMBER.findall(said), strict=True):
        digits, _, power = want.partition("e")
        unit = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
        assert abs(float(found) - float(want)) <= (10 * unit if "." in want or power else 0.03 * abs(float(want))), (
            found,
            want,
        )


@pytest.mark.parametrize(
    ("page", "library"),
    [
        pytest.param(page, library, marks=pytest.mark.library(library), id=f"{Path(page).name}-{library}")
        for page in PAGES
        for library in sorted({library for _, _, library in blocks(page)})
    ],
)
def test_the_code_of_a_page_prints_what_stands_below_it(page, library):
    """The blocks that need numpy alone, and those of one library, in order; numbers to their last printed digits."""
    names = {"__name__": "page"}
    for code, said, needs in blocks(page):
        if needs in ("numpy", library):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(code, names)
            assert_says(printed.getvalue(), said)
