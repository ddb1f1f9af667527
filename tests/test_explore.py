"""The explorer: settings, pictures and words, the notebook, and the page in a browser."""

from __future__ import annotations

import io
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import numpy as np
import pytest
from support import ELSEWHERE, PATIENCE

pytest.importorskip("typer", reason="the command line is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

import organics_core as oc
import organics_explore as explore
from organics_cli.app import app
from organics_explore import Settings, cli, panels
from organics_explore.picture import new_axes
from organics_plot import style

HAS_MARIMO = find_spec("marimo") is not None
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
ASKED = "ORGANICS_EXPLORE_OUT" in os.environ
"""By `nox -s explore`, which has installed everything: there nothing is skipped."""
needs_marimo = pytest.mark.skipif(
    not (ASKED or HAS_MARIMO), reason=f"{ELSEWHERE}marimo is not installed; nox -s explore has it"
)
SEVERAL = (
    Settings(),
    Settings(neurons=1, w_r=2.0),
    Settings(neurons=1, w_r=-2.0, contrast=1.0),
    Settings(neurons=2, kind="ring", w_r=1.5, tau_y=8.0),
    Settings(neurons=5, kind="random", w_r=3.0, seed=4, pool=4.0, contrast=1.0),
)
EXTREME = (
    Settings(neurons=3, kind="random", w_r=4.0, seed=44, sigma=0.01, contrast=1.0),
    Settings(neurons=36, kind="random", w_r=4.0, seed=1, sigma=0.01, contrast=0.3),
)
"""No fixed point is found; the simulation diverges."""


def test_a_link_restores_the_settings() -> None:
    for settings in SEVERAL:
        link = urlencode(settings._asdict())
        assert explore.settings_from(dict(parse_qsl(link))) == settings


def test_a_wrong_link_gives_defaults_and_ends_of_ranges() -> None:
    wrong = {"kind": "circle", "neurons": "nan", "w_r": "-inf", "sigma": "0", "b": [1], "tau_y": "1e9", "other": "1"}
    assert explore.settings_from(wrong) == Settings(w_r=-2.0, sigma=0.01, tau_y=40.0)
    assert explore.settings_from({"kind": ["ring", "random"], "neurons": 10**400}) == Settings()


def test_every_setting_has_a_slider_and_defaults_lie_on_it() -> None:
    assert set(explore.RANGES) | {"kind"} == set(Settings._fields)
    for name, (low, high, step) in explore.RANGES.items():
        value = getattr(Settings(), name)
        assert low <= value <= high
        steps = (value - low) / step
        assert abs(steps - round(steps)) < 1e-9, name


def test_the_fixed_point_obeys_the_normalization_equation() -> None:
    """(b z)^2 / ((b0 sigma)^2 + W (b z)^2), and the run ends there."""
    s = Settings(neurons=7, b=0.8, b0=0.6, sigma=0.4, pool=2.0, contrast=0.4)
    solved = explore.solve(s)
    ((state, stable),) = solved.points
    drive = s.b * solved.z
    expected = drive / np.sqrt((s.b0 * s.sigma) ** 2 + solved.circuit.w @ drive**2)
    np.testing.assert_allclose(state.y, expected, rtol=1e-12)
    np.testing.assert_allclose(solved.run.state.y[-1], expected, atol=1e-4)
    assert stable is True
    assert "certified stable" in explore.report(solved)


def test_one_neuron_has_the_roots_of_its_polynomial() -> None:
    """(s^2 - (b0 sigma)^2) (1 - w_r + w_r s)^2 = w s^2 (b z)^2 with s = sqrt(a) > 0."""
    s = Settings(neurons=1, w_r=2.0)
    solved = explore.solve(s)
    left = np.polymul([1.0, 0.0, -((s.b0 * s.sigma) ** 2)], np.polymul([s.w_r, 1 - s.w_r], [s.w_r, 1 - s.w_r]))
    roots = np.roots(np.polysub(left, [solved.circuit.w[0, 0] * (s.b * solved.z[0]) ** 2, 0.0, 0.0]))
    expected = np.sort(roots.real[(abs(roots.imag) < 1e-9) & (roots.real > 0)])
    found = np.sort([np.sqrt(state.a[0]) for state, _ in solved.points])
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert explore.report(solved).count("unstable") == sum(not stable for _, stable in solved.points) == 2
    assert explore.report(solved).count("i per second") == 2  # of the saddle the leading eigenvalue is real


@pytest.mark.parametrize("kind", ["identity", "random", "ring"])
@pytest.mark.parametrize("neurons", [1, 2, 36])
def test_recurrent_weights_have_the_norm_that_the_slider_says(kind: str, neurons: int) -> None:
    w_r = explore.solve(Settings(neurons=neurons, kind=kind, w_r=-0.6)).circuit.w_r
    assert np.linalg.norm(w_r, 2) == pytest.approx(0.6, rel=1e-12)


def axes_of(settings: Settings, name: str) -> Axes:
    """What a panel draws, by its name."""
    panel = {panel.__name__: panel for panel in explore.PANELS}[name]
    ax = Figure().subplots()
    panel(explore.solve(settings), ax)
    return ax


def shots(pictures: list[explore.Picture], settings: Settings) -> list[bytes]:
    solved = explore.solve(settings)
    return [picture.png(solved) for picture in pictures]


def test_no_picture_shows_anything_of_an_earlier_one() -> None:
    """After moves from each circuit to every other one: as when nothing was drawn before."""
    circuits = (*SEVERAL, *EXTREME)
    with style():
        fresh = {s: shots([explore.Picture(panel) for panel in explore.PANELS], s) for s in circuits}
        kept = [explore.Picture(panel) for panel in explore.PANELS]
        moves = [*itertools.chain.from_iterable(itertools.combinations(circuits, 2)), circuits[0]]
        assert set(itertools.pairwise(moves)) == set(itertools.permutations(circuits, 2))
        for settings in moves:
            assert shots(kept, settings) == fresh[settings], settings
    assert len({tuple(pictures) for pictures in fresh.values()}) == len(circuits)


@pytest.mark.parametrize("name", [*explore.RANGES, "kind"])
def test_every_slider_there_and_back_gives_the_same_pictures(name: str) -> None:
    start = Settings(neurons=3, kind="random", w_r=1.5, contrast=0.4)
    moved = {"kind": "ring"} if name == "kind" else {name: getattr(start, name) + 2 * explore.RANGES[name][2]}
    with style():
        pictures = [explore.Picture(panel) for panel in explore.PANELS]
        before, moving, after = (shots(pictures, s) for s in (start, start._replace(**moved), start))
    assert before == after
    assert moving != before


def test_extreme_circuits_are_extreme() -> None:
    nothing, diverging = (explore.solve(settings) for settings in EXTREME)
    assert not nothing.points
    assert not diverging.run.success
    assert "the simulation ended early" in explore.report(diverging)


@pytest.mark.parametrize("settings", [*SEVERAL, *EXTREME])
def test_a_picture_is_what_matplotlib_draws_of_the_panel(settings: Settings) -> None:
    """To the pixel, though drawn in parts."""
    solved = explore.solve(settings)
    with style():
        for panel in explore.PANELS:
            shown = Image.open(io.BytesIO(explore.Picture(panel).png(solved)))
            ax = new_axes()
            panel(solved, ax)
            ax.minorticks_off()
            canvas = FigureCanvasAgg(ax.figure)
            canvas.draw()
            whole = np.asarray(canvas.buffer_rgba())[..., :3]
            np.testing.assert_array_equal(np.asarray(shown), whole, err_msg=panel.__name__)
            assert (whole < 128).any(axis=-1).mean() > 0.002, panel.__name__  # something is drawn


def dots(settings: Settings, name: str) -> list[tuple[float, float]]:
    """What the picture draws with markers, stable ones only."""
    return [
        point
        for line in axes_of(settings, name).get_lines()
        if line.get_marker() == "o" and to_rgba(line.get_markerfacecolor()) != to_rgba("white")
        for point in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def test_the_contrast_response_is_the_equation() -> None:
    """Of the neuron that prefers the grating: c / sqrt(sigma^2 + c^2), as the weights are scaled, with b = b0."""
    shown = np.array(dots(Settings(neurons=6), "contrast_response"))
    assert len(shown) == len(explore.panels.CONTRASTS)
    np.testing.assert_allclose(shown[:, 1], shown[:, 0] / np.hypot(0.15, shown[:, 0]), rtol=1e-9)


@pytest.mark.parametrize("neurons", [2, 12])
def test_the_contrast_response_under_strong_recurrence_is_that_from_rest(neurons: int) -> None:
    """Rest repels at low contrast: the response is where the circuit settles, and it is stable."""
    solved = explore.solve(explore.Settings(neurons, w_r=1.6))
    ax = new_axes()
    panels.contrast_response(solved, ax)
    (filled,) = (line for line in ax.lines if line.get_marker() == "o")
    assert filled.get_markerfacecolor() != "white"
    np.testing.assert_allclose(filled.get_xdata(), panels.CONTRASTS)
    best = neurons // 2
    for k in (0, 6, 12):
        z = solved.population.drive(panels.CONTRASTS[k : k + 1], solved.population.orientations[best])[0]
        run = oc.simulate(solved.circuit, z, np.array([0.0, 2.0]), method="rodas5p")
        assert filled.get_ydata()[k] == pytest.approx(run.state.y[-1, best], rel=2e-3)  # a slow mode of 8 s


def test_where_nothing_is_stable_no_spectrum_is_drawn() -> None:
    settings = next(
        s
        for seed in range(100)
        if not explore.solve(s := Settings(neurons=6, kind="random", w_r=4.0, seed=seed, contrast=0.3)).stable
    )
    ax = axes_of(settings, "spectrum")
    assert not ax.get_lines()
    assert [text.get_text() for text in ax.texts] == ["no stable fixed point was found"]


@pytest.mark.parametrize("settings", SEVERAL)
def test_the_spectrum_is_that_of_the_neuron_under_noise_in_every_drive(settings: Settings) -> None:
    solved = explore.solve(settings)
    best = settings.neurons // 2
    line = axes_of(settings, "spectrum").get_lines()[0]
    full = oc.power_spectrum(solved.circuit, solved.stable, (1.0, 0.0), line.get_xdata())
    np.testing.assert_allclose(line.get_ydata(), full[:, best, best].real, rtol=1e-9)


@pytest.mark.parametrize("neurons", [2, 6, 7, 13, 36])
def test_neurons_that_are_drawn(neurons: int) -> None:
    """All of a few; of more six at most, with the one that prefers the grating, and no two that respond alike."""
    lines = axes_of(Settings(neurons), "responses").get_lines()
    shown = [int(line.get_label()) - 1 for line in lines]
    assert neurons // 2 in shown
    assert len(shown) == neurons if neurons <= 6 else 3 < len(shown) <= 6
    ends = sorted(line.get_ydata()[-1] for line in lines)
    assert neurons <= 6 or min(np.diff(ends)) > 1e-4


def test_limits_hold_what_is_drawn() -> None:
    for settings in SEVERAL:
        for name in ("responses", "contrast_response", "spectrum"):
            ax = axes_of(settings, name)
            (low, high), (least, most) = ax.get_ylim(), ax.dataLim.intervaly
            assert low <= least <= most <= high, (settings, name)


ODD = (
    Settings(contrast=0.01, sigma=1.0, b=0.05, b0=0.05),  # modulators move by 1e-7 of 2.5e-3
    Settings(neurons=36, kind="random", w_r=0.5, sigma=0.01, b=0.05, b0=0.05, contrast=0.01, tau_a=40.0),
    Settings(neurons=6, kind="ring", w_r=-2.0, sigma=0.79, b=0.05, b0=0.05, tau_y=40.0, tau_a=19.5, contrast=0.08),
    Settings(neurons=1, w_r=-2.0, sigma=0.01, b0=0.05, contrast=0.01),
)
"""Numbers that are small, or close to each other."""


@pytest.mark.parametrize("settings", [*SEVERAL, *EXTREME, *ODD])
def test_words_lie_in_the_picture_and_apart(settings: Settings) -> None:
    solved = explore.solve(settings)
    with style():
        for panel in explore.PANELS:
            ax = new_axes()
            panel(solved, ax)
            ax.minorticks_off()
            canvas = FigureCanvasAgg(ax.figure)
            canvas.draw()
            words = [*ax.texts, ax.title, ax._left_title]
            if ax.axison:
                for axis in (ax.xaxis, ax.yaxis):
                    low, high = sorted(axis.get_view_interval())
                    ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
                    words += [label for place, label in ticks if low <= place <= high]
                    words += [axis.label, axis.get_offset_text()]
            boxes = [(word, word.get_window_extent(canvas.get_renderer())) for word in words if word.get_text()]
            for word, box in boxes:
                inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= ax.figure.bbox.x1 and box.y1 <= ax.figure.bbox.y1
                assert inside, (panel.__name__, word)
            for (word, box), (other, its) in itertools.combinations(boxes, 2):
                apart = min(box.x1, its.x1) - max(box.x0, its.x0) < 1 or min(box.y1, its.y1) - max(box.y0, its.y0) < 1
                assert apart, (panel.__name__, word, other)


def test_no_axis_is_so_short_that_it_shows_the_errors_of_the_run() -> None:
    """Modulators that rest at 2.5e-3 are a line, not the oscillation of the solver's errors."""
    for settings in ODD[:3]:
        ax = axes_of(settings, "modulators")
        low, high = ax.get_ylim()
        assert high - low >= 0.05 * max(abs(line.get_ydata()).max() for line in ax.get_lines())


def test_a_run_that_ends_early_is_called_so_in_the_picture_and_by_the_code(capsys) -> None:
    assert axes_of(EXTREME[1], "responses").texts[0].get_text() == "the simulation ended early"
    exec(explore.python_code(EXTREME[1]), {})
    assert "the run stopped: " in capsys.readouterr().out
    exec(explore.python_code(Settings(neurons=2)), {})
    assert "the run reached the last time\n" in capsys.readouterr().out


def test_neurons_of_the_weights_are_numbered_as_beside_them() -> None:
    ax = axes_of(Settings(neurons=3), "weights")
    assert [ax.xaxis.get_major_formatter()(place) for place in (0, 2)] == ["1", "3"]


@pytest.mark.parametrize("settings", SEVERAL)
def test_the_code_that_is_shown_runs_and_says_what_the_page_says(settings: Settings) -> None:
    done = subprocess.run(
        [sys.executable, "-c", explore.python_code(settings)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    end = np.array(re.findall(r"-?\d+\.\d*(?:e[+-]\d+)?", done.stdout.partition("ends at y =")[2]), dtype=float)
    np.testing.assert_allclose(end, explore.solve(settings).run.state.y[-1], atol=1e-4)


def test_the_code_of_one_neuron_prints_the_fixed_points_of_the_page(capsys) -> None:
    """Also where none attracts, and steady_state finds none."""
    settings = Settings(neurons=1, w_r=-2.0, sigma=1.0, b=1.0, b0=1.0, contrast=0.45)
    exec(explore.python_code(settings), {})
    told = capsys.readouterr().out
    solved = explore.solve(settings)
    assert [stable for _, stable in solved.points] == [False]
    rates = [float(oc.spectral_abscissa(solved.circuit, state)) for state, _ in solved.points]
    assert rates[0] > 0
    np.testing.assert_allclose([float(x) for x in re.findall(r"abscissa \(1/s\): (\S+)", told)], rates, rtol=1e-9)


def test_without_marimo_the_command_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["explore"], prog_name="organics")
    assert done.exit_code == 2
    told = "error: organics explore needs marimo; install it with: pip install 'organics-core[explore]'"
    assert " ".join(done.stderr.split()) == told


def test_the_command_opens_the_notebook(monkeypatch) -> None:
    called = []
    monkeypatch.setattr(cli, "find_spec", lambda name: object())
    monkeypatch.setattr(
        cli.subprocess, "run", lambda words: called.append(words) or subprocess.CompletedProcess(words, 0)
    )
    assert CliRunner().invoke(app, ["explore", "--port", "2800", "--no-browser"]).exit_code == 0
    assert CliRunner().invoke(app, ["explore", "--edit"]).exit_code == 0
    run = [sys.executable, "-m", "marimo"]
    assert called == [
        [*run, "run", str(cli.NOTEBOOK), "--port", "2800", "--headless"],
        [*run, "edit", str(cli.NOTEBOOK)],
    ]


@pytest.mark.parametrize("port", ["0", "65536", "page"])
def test_ports_that_there_are_not(port: str) -> None:
    done = CliRunner().invoke(app, ["explore", "--port", port], prog_name="organics")
    assert done.exit_code == 2
    assert "'--port'" in done.stderr


@needs_marimo
def test_the_notebook_runs_from_end_to_end() -> None:
    from organics_explore.notebook import app as notebook

    _, names = notebook.run()
    assert names["settings"] == Settings()
    assert len(names["pictures"]) == len(explore.PANELS)


@needs_marimo
def test_the_notebook_is_one_that_marimo_would_write() -> None:
    """`marimo check`: no name defined twice, no cycle, nothing that it would format otherwise."""
    words = [sys.executable, "-m", "marimo", "check", "--strict", str(cli.NOTEBOOK)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def page_address(tmp_path: Path):
    """The page, served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "organics_cli", "explore", "--no-browser", "--port", str(port)]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
    yield f"http://127.0.0.1:{port}"
    os.killpg(server.pid, 15)
    server.wait(PATIENCE)


@needs_marimo
@pytest.mark.slow
@pytest.mark.skipif(not ASKED and BROWSER is None, reason=f"{ELSEWHERE}there is no chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(page_address: str, scheme: str, tmp_path: Path) -> None:
    """Every slider moves, what is shown follows, a link restores it, and the console has no error."""
    if not ASKED:
        pytest.importorskip("playwright", reason=f"{ELSEWHERE}playwright is not installed; nox -s explore has it")
    from playwright import sync_api as sync

    keep = Path(os.environ.get("ORGANICS_EXPLORE_OUT", tmp_path))
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 960}, color_scheme=scheme)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.set_default_timeout(1e3 * PATIENCE)
        for _ in range(100):  # until the server answers
            try:
                page.goto(page_address)
                break
            except sync.Error:
                page.wait_for_timeout(1000)
        link = page.get_by_role("link", name="Link to these settings")
        link.wait_for()
        sliders = page.get_by_role("slider")
        assert sliders.count() == len(explore.RANGES)
        now = Settings()._asdict()
        for place, (name, (_, _, step)) in enumerate(explore.RANGES.items()):
            now[name] = explore.settings_from({name: now[name] + step})._asdict()[name]
            sliders.nth(place).press("ArrowRight")
            page.wait_for_selector(f'a[href$="?{urlencode(now)}"]')
        assert page.get_by_role("img").count() >= len(explore.PANELS)
        page.screenshot(path=keep / f"moved-{scheme}.png")
        one = Settings(neurons=1, w_r=2.0)
        page.goto(f"{page_address}/?{urlencode(one._asdict())}")
        page.wait_for_selector(f'a[href$="?{urlencode(one._asdict())}"]')
        page.get_by_text("every fixed point of one neuron").wait_for()
        page.wait_for_timeout(1000)
        page.screenshot(path=keep / f"one-neuron-{scheme}.png")
        browser.close()
    assert errors == []
