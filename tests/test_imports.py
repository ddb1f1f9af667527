"""What an import loads, what it asks for, and how a stranger's backend is found."""

from __future__ import annotations

import importlib.util
import pkgutil
import types
from pathlib import Path

import pytest
from support import run_python

import organics_core as oc

FRAMEWORKS = ("torch", "jax", "cupy", "array_api_strict", "scipy", "equinox", "matplotlib", "typer")
PACKAGES = ("organics_core", "organics_backends", "organics_torch", "organics_jax", "organics_cli", "organics_plot")

BLOCK = """
import sys

class Without:
    # a finder that does not find the named packages, as if they were not installed
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {names!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def test_the_core_loads_no_framework() -> None:
    """Neither by import nor by use with numpy."""
    code = f"""
import sys
import organics_core as oc
import numpy as np
circuit = oc.Circuit(None, np.ones((2, 2)), 0.5, 0.5, 0.1, 0.002, 0.002)
z = np.array([1.0, 0.5])
found = oc.steady_state(circuit, z)
oc.simulate(circuit, z, np.linspace(0, 0.01, 3))
assert oc.certify(circuit, z).stable
oc.spectral_abscissa(circuit, found.state)
print([name for name in {FRAMEWORKS!r} if name in sys.modules])
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_the_old_home_of_the_training_records_still_answers() -> None:
    """With a warning that names the new one."""
    import organics_train
    from organics_core import training

    for name in ("EpochRecord", "batch_indices"):
        with pytest.warns(DeprecationWarning, match="import it from organics_train"):
            assert getattr(training, name) is getattr(organics_train, name)
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        training.fit  # noqa: B018


def test_the_layers_bring_a_light_part_of_the_training_package() -> None:
    """Records and order of the batches: no framework, no command line."""
    heavy = (*FRAMEWORKS, "sklearn", "rich", "organics_torch", "organics_jax", "organics_cli", "organics_baselines")
    code = f"import sys, organics_train; print([name for name in {heavy!r} if name in sys.modules])"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_the_core_works_where_no_framework_is_installed() -> None:
    """Nothing optional is needed."""
    code = BLOCK.format(names=FRAMEWORKS) + "import organics_core as oc; print(oc.__version__)"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == oc.__version__


@pytest.mark.parametrize(
    ("package", "missing", "extra"),
    [
        ("organics_torch", "torch", "torch"),
        ("organics_jax", "jax", "jax"),
        ("organics_jax", "equinox", "jax"),
    ],
)
def test_a_missing_framework_names_its_extra(package: str, missing: str, extra: str) -> None:
    """One sentence: what is missing and what to install."""
    code = BLOCK.format(names=(missing,)) + f"import {package}"
    result = run_python(code)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert missing in last
    assert f'pip install "organics-core[{extra}]"' in last


def test_the_names_of_the_baselines_need_no_torch() -> None:
    """They are those of the files; a model that is asked for says what is missing."""
    code = BLOCK.format(names=("torch",)) + "from organics_baselines import MODELS; print(*MODELS); MODELS['lstm']"
    result = run_python(code)
    assert {"organics", "organics-static", "lstm"} <= set(result.stdout.split())
    assert result.stderr.strip().endswith('organics_baselines needs torch: pip install "organics-core[torch]"')


def test_a_strangers_backend_is_found(tmp_path: Path) -> None:
    """A package that registers an entry point for its array library is used, without a change here."""
    (tmp_path / "stranger.py").write_text(
        "from organics_core import GenericBackend\n"
        "class Backend(GenericBackend):\n"
        "    name = 'stranger'\n"
        "backend = Backend()\n"
        "half = object()\n"
    )
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[organics_core.backends]\nstrange_arrays = stranger:backend\nhalf_arrays = stranger:half\n"
    )
    code = """
import types
import organics_core as oc
print("strange_arrays" in oc.registered_backends())
print(oc.get_backend(types.ModuleType("strange_arrays.namespace")).name)
print(oc.get_backend(types.ModuleType("unheard_of")).name)
try:
    oc.get_backend(types.ModuleType("half_arrays"))
except TypeError as error:
    print(error)
"""
    result = run_python(code, str(tmp_path))
    assert result.returncode == 0, result.stderr
    found, name, other, complaint = result.stdout.strip().splitlines()
    assert found == "True"
    assert name == "stranger"
    assert other == "generic"
    assert "'stranger:half'" in complaint
    assert "scan" in complaint
    assert "traces_loops" in complaint


def test_backends_of_this_distribution_are_registered() -> None:
    """numpy, torch, jax and cupy."""
    assert {"numpy", "torch", "jax", "cupy"} <= set(oc.registered_backends())


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed(package: str) -> None:
    """Each carries the marker that type checkers look for."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert (Path(spec.origin).parent / "py.typed").is_file()


@pytest.mark.parametrize("package", ["organics_core", "organics_plot", "organics_sweep", "organics_train"])
def test_no_module_is_shadowed_by_what_its_package_exports(package: str) -> None:
    """``package.name`` is the module of that name, or there is none."""
    module = pytest.importorskip(package, exc_type=ImportError)  # without its extra
    names = [info.name for info in pkgutil.iter_modules(module.__path__)]
    shadowed = [name for name in names if not isinstance(vars(module).get(name, module), types.ModuleType)]
    assert shadowed == []
