"""The CUDA kernels of the recurrent layer: their arithmetic by Triton's interpreter, and who takes them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ahead
import numpy as np
import pytest
import torch
from support import ELSEWHERE, NEEDS_RECENT_TORCH, PATIENCE, run_python

from organics_torch import ORGaNICs

CHECKS = Path(__file__).parent / "interpreted" / "check_torch_kernels.py"
NO_TRITON = "CPU wheels of torch come without Triton: pip install triton"
if sys.platform != "linux":
    NO_TRITON = f"{ELSEWHERE}Triton is made for Linux"


def test_kernels_agree_with_the_core() -> None:
    """Every check of interpreted/check_torch_kernels.py, in a process where Triton interprets."""
    triton = pytest.importorskip("triton", reason=NO_TRITON)
    versions = [tuple(map(int, module.__version__.split(".")[:2])) for module in (triton, np)]
    if versions[0] < (3, 9) and versions[1] >= (2, 4):
        pytest.skip(f"the interpreter of Triton {triton.__version__} does not run with numpy {np.__version__}")
    command = [sys.executable, "-m", "pytest", "-q", "--library", "torch", str(CHECKS)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def triton_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing compiled before, nothing left behind."""
    pytest.importorskip("triton", reason=NO_TRITON)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@NEEDS_RECENT_TORCH
@pytest.mark.usefixtures("triton_cache")
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("n", "precision", "stack"),
    [
        (64, "highest", 160),
        (64, "high", 0),
        (64, "medium", 0),
        (128, "highest", 800),
        (128, "high", 600),
        (128, "medium", 400),
    ],
)
def test_kernels_compile_for_an_h100(direction: str, n: int, precision: str, stack: int) -> None:
    """Without a GPU: the shared memory fits, and little of what a thread holds lies outside its registers."""
    cost = ahead.layer_cost(direction, n, precision)
    assert cost.shared <= ahead.SHARED
    assert cost.stack <= stack


@NEEDS_RECENT_TORCH
@pytest.mark.usefixtures("triton_cache")
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    "options", [{"n": 1, "batch": 1, "main": True}, {"n": 20, "recurrent": False}], ids=["ones", "identity"]
)
def test_other_kinds_compile(direction: str, options: dict[str, Any]) -> None:
    """Triton makes a constant of every integer that is one; W_r = I leaves a product out."""
    assert ahead.layer_cost(direction, precision="highest", **options).shared <= ahead.SHARED


@NEEDS_RECENT_TORCH
@pytest.mark.usefixtures("triton_cache")
@pytest.mark.parametrize(("precision", "recurrent"), [("highest", True), ("high", True), ("medium", False)])
def test_the_tensor_cores_sum_products_only(precision: str, recurrent: bool) -> None:
    """They cut instead of rounding, so the gradient that goes from step to step is added outside.

    The compiler would move an addition into a product that starts from zero: it must not find one.
    """
    text = ahead.layer_compiled("backward", 16, precision, recurrent=recurrent).asm["ttgir"]
    dots = re.findall(r"(%\S+) = tt\.dot %\S+, %\S+, (%[^\s,]+)", text)
    assert len(dots) == (5 + recurrent) * (3 if precision == "highest" else 1)
    results = {result for result, _ in dots}
    assert sum(start.startswith("%cst") for _, start in dots) == 3
    assert all(start in results or start.startswith("%cst") for _, start in dots)


def test_the_cpu_takes_the_ordinary_way() -> None:
    """On the CPU "auto" never asks for Triton, and "triton" says what is in its way."""
    code = """
import os, sys, torch
os.environ.pop("TRITON_INTERPRET", None)
from organics_torch import ORGaNICs
xs = torch.zeros(2, 1, 3)
ORGaNICs(3, 4)(xs)
assert "organics_torch.triton_kernel" not in sys.modules
try:
    ORGaNICs(3, 4, implementation="triton")(xs)
except RuntimeError as error:
    print(error)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "the triton implementation cannot run this sequence" in result.stdout
    assert "it runs on CUDA, not on cpu" in result.stdout or "Triton is missing" in result.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason=f"{ELSEWHERE}no CUDA device")
@pytest.mark.parametrize("n", [20, 64, 128])
@pytest.mark.parametrize(("precision", "bound"), [("highest", 1e-5), ("high", 1e-2), ("medium", 5e-2)])
def test_kernels_on_the_device(n: int, precision: str, bound: float) -> None:
    """Outputs and all gradients against float64, 100 steps, a batch that does not fill its last program."""
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    xs = torch.randn(100, 40, 3, generator=generator, device="cpu").cuda()
    found = []
    for dtype, how in ((torch.float32, "triton"), (torch.float64, "function")):
        torch.set_float32_matmul_precision(precision)
        layer = ORGaNICs(3, n, seed=0, dtype=dtype, device="cuda", implementation=how)
        output, hn = layer(xs.to(dtype))
        loss = (output**2).mean() + sum((part**2).mean() for part in hn)
        found.append([output, *hn, *torch.autograd.grad(loss, list(layer.parameters()))])
    torch.set_float32_matmul_precision(before)
    for number, exact in zip(*found, strict=True):
        assert float((number.double() - exact).norm() / exact.norm()) < bound
