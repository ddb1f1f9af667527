"""Which array libraries the tests run on, and the fixtures that hand them to the tests.

``pytest --library torch`` (repeatable; or the environment variable
``ORGANICS_TEST_LIBRARIES=torch,jax``) runs what concerns torch: the tests that
take ``xp``, with torch's parameters; the tests marked ``library("torch")``; and
the files ``test_torch_*.py``. Tests that concern no library run with numpy. A
library that is asked for and missing is an error, never a skip. By default the
libraries are numpy, array-api-strict, and those of the others that are
installed and need no GPU. pyproject.toml describes them.

``--complete`` says that whatever the tests can use was installed: then a skip is
a failure, unless the machine is its reason (``support.elsewhere``). ``--core``
leaves out the adapters and what is marked ``slow`` or ``size``; ``--together``
keeps what needs several of the libraries at once. With pytest-xdist
(``-n 2``) every process computes on one thread.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything that starts threads is imported
    os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")})

import hypothesis
import pytest
from support import DESCRIBED, ELSEWHERE, LIBRARIES, PRECISIONS, Library

hypothesis.settings.register_profile(
    "stable",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("stable")

ADAPTERS = {
    "baselines",
    "checkpoint",
    "cli",
    "cognitive",
    "cupy",
    "datasets",
    "documentation",
    "explore",
    "figures",
    "graphs",
    "plot",
    "recipes",
    "sweep",
    "train",
    "train_command",
}
"""Files ``test_*.py`` that need more than the core, beside those of one library (``test_torch_*.py``)."""
QUICK_XLA = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
_SELECTED = pytest.StashKey[tuple[str, ...]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--library",
        action="append",
        choices=tuple(LIBRARIES),
        default=None,
        help="array library to test (repeatable); one that is missing is an error",
    )
    parser.addoption("--complete", action="store_true", help="all that tests need is installed: a skip is a failure")
    parser.addoption("--together", action="store_true", help="only what needs several array libraries at once")
    parser.addoption("--core", action="store_true", help="the quick tests of the core alone")
    parser.addoption(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where torch and jax compute; cupy is always on CUDA"
    )


def _keep_contexts() -> None:
    """One MLIR context per thread instead of one per program of jax, small as it is: a fifth of the time of all."""
    with contextlib.suppress(ImportError, AttributeError):  # nothing that jax promises: without it tests are slower
        from jax._src.interpreters import mlir

        made = mlir.make_ir_context
        of_thread = functools.cache(lambda thread: made())
        mlir.make_ir_context = lambda: of_thread(threading.get_ident())


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "library(*names, together=False): the test concerns these array libraries only (together: needs them all)",
    )
    config.addinivalue_line("markers", "one_dtype: in jax in float64 alone, since every dtype is compiled for itself")
    config.addinivalue_line("markers", "cpu: on every machine the test computes on the CPU")
    config.addinivalue_line("markers", "slow: a test of seconds, which --core leaves out")
    config.addinivalue_line("markers", "size: a test of a large problem, to show that it is feasible")
    asked = config.getoption("--library") or [
        name.strip() for name in os.environ.get("ORGANICS_TEST_LIBRARIES", "").split(",") if name.strip()
    ]
    unknown = [name for name in asked if name not in LIBRARIES]
    if unknown:
        raise pytest.UsageError(f"unknown library {unknown[0]!r}; choose from {', '.join(LIBRARIES)}")
    if asked:
        selected = tuple(dict.fromkeys(asked))
    else:
        here = [name for name, module in LIBRARIES.items() if importlib.util.find_spec(module.partition(".")[0])]
        selected = ("numpy", "strict", *(name for name in here if not DESCRIBED[name].get("gpu")))
        selected = tuple(dict.fromkeys(selected))
    for name in selected:
        try:
            importlib.import_module(LIBRARIES[name])
        except ImportError as error:
            raise pytest.UsageError(f"the library {name} was asked for but cannot be imported: {error}") from None
    on_cuda = config.getoption("--device") == "cuda"
    if "cupy" in selected:
        import cupy

        if cupy.cuda.runtime.getDeviceCount() < 1:
            raise pytest.UsageError("the library cupy was asked for but there is no CUDA device")
    if "jax" in selected:
        # Most of the time goes into compiling small programs that run once: with the older emitters of XLA a quarter.
        # jaxlib 0.11 has them no more, and XLA ends the process at a flag that it does not know.
        if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
            os.environ["XLA_FLAGS"] = f"{QUICK_XLA} {os.environ.get('XLA_FLAGS', '')}"
        import jax

        # Only here: the library itself never touches this switch.
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_disable_most_optimizations", True)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of the processes that tests start
        _keep_contexts()
        if on_cuda and jax.default_backend() != "gpu":
            raise pytest.UsageError("jax was asked for on CUDA but sees no GPU")
    if "torch" in selected:
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        if on_cuda:
            if not torch.cuda.is_available():
                raise pytest.UsageError("torch was asked for on CUDA but sees no GPU")
            torch.set_default_device("cuda")
    config.stash[_SELECTED] = selected


def _file_library(path: Path) -> str | None:
    """The library a file ``test_<library>_*.py`` belongs to."""
    parts = path.name.split("_")
    if path.name == "test_baselines.py":  # all of them are torch's
        return "torch"
    return parts[1] if len(parts) > 2 and parts[0] == "test" and parts[1] in LIBRARIES else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files of a library that was not selected are not imported: they may need it at the top."""
    name = _file_library(collection_path)
    if config.getoption("--core") and (name is not None or collection_path.stem.removeprefix("test_") in ADAPTERS):
        return True
    return True if name is not None and name not in config.stash[_SELECTED] else None


def _marked(definition: pytest.Item | pytest.Function) -> set[str] | None:
    names: set[str] = set()
    for marker in definition.iter_markers("library"):
        names.update(marker.args)
    return names or None


def _libraries(config: pytest.Config, only: Iterable[str] | None, precisions: Iterable[str]) -> list[tuple[str, str]]:
    return [
        (name, precision)
        for name in config.stash[_SELECTED]
        if only is None or name in only
        for precision in PRECISIONS[name]
        if precision in precisions
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, precisions in (("xp", ("float64", "float32")), ("xp64", ("float64",))):
        if fixture in metafunc.fixturenames:
            pairs = _libraries(metafunc.config, _marked(metafunc.definition), precisions)
            if metafunc.definition.get_closest_marker("one_dtype"):
                pairs = [(name, precision) for name, precision in pairs if (name, precision) != ("jax", "float32")]
            # No pair: one placeholder, which is left out below (an empty list would count as a skip).
            ids = [f"{name}-{precision}" for name, precision in pairs] or ["none"]
            metafunc.parametrize(fixture, pairs or [None], indirect=True, ids=ids, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what concerns none of the selected libraries; what takes longest comes first."""
    selected = config.stash[_SELECTED]
    kept, left = [], []
    for item in items:
        marked = _marked(item)
        fixtures = getattr(item, "fixturenames", ())
        if "xp" in fixtures or "xp64" in fixtures:
            parameters = item.callspec.params
            pair = parameters.get("xp", parameters.get("xp64"))
            fits = pair is not None and (marked is None or pair[0] in marked)  # parameters may be marked, too
        elif marked is not None:
            together = any(marker.kwargs.get("together") for marker in item.iter_markers("library"))
            fits = marked <= set(selected) if together else bool(marked & set(selected))
        else:
            own = _file_library(item.path)
            fits = (own or "numpy") in selected
        if config.getoption("--together"):
            fits = fits and any(marker.kwargs.get("together") for marker in item.iter_markers("library"))
        if config.getoption("--core") and any(item.get_closest_marker(name) for name in ("slow", "size")):
            fits = False
        (kept if fits else left).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def _missing(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """Why a test or a file was skipped, unless it is the machine that cannot run it."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return None
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return None if ELSEWHERE in reason else f"--complete, and yet this was skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    reason = _missing(report) if item.config.getoption("--complete") else None
    if reason is not None:
        report.outcome, report.longrepr = "failed", reason
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    reason = _missing(report) if collector.config.getoption("--complete") else None
    if reason is not None:
        report.outcome, report.longrepr = "failed", reason
    return report


_MADE: dict[tuple[str, str], Library] = {}


def _library(request: pytest.FixtureRequest) -> Library:
    if request.param not in _MADE:
        _MADE[request.param] = Library(*request.param)
    return _MADE[request.param]


@pytest.fixture(autouse=True)
def _where(request: pytest.FixtureRequest) -> Iterator[None]:
    """With ``--device cuda``: the CPU for what is marked so, and layers of jax in float32 as on the CPU."""
    config = request.config
    with contextlib.ExitStack() as stack:
        if config.getoption("--device") == "cuda":
            selected, on_cpu = config.stash[_SELECTED], request.node.get_closest_marker("cpu") is not None
            if "torch" in selected and on_cpu:
                import torch

                stack.enter_context(torch.device("cpu"))
            if "jax" in selected:
                import jax

                if on_cpu:
                    stack.enter_context(jax.default_device(jax.devices("cpu")[0]))
                if not {"xp", "xp64"} & set(request.fixturenames):  # the core multiplies in full by itself
                    stack.enter_context(jax.default_matmul_precision("highest"))
        yield


@pytest.fixture(scope="session")
def xp(request: pytest.FixtureRequest) -> Library:
    """Every selected array library, in both precisions."""
    return _library(request)


@pytest.fixture(scope="session")
def xp64(request: pytest.FixtureRequest) -> Library:
    """Every selected array library, in double precision."""
    return _library(request)


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The commands of organics_train, 100 columns wide: what ``CliRunner`` makes of their arguments."""
    import typer
    from typer.testing import CliRunner

    from organics_train import cli

    monkeypatch.setenv("COLUMNS", "100")
    app = typer.Typer()
    cli.register(app)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
