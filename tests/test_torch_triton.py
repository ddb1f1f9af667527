"""The CUDA kernels of the recurrent layer: their arithmetic by Triton's interpreter, and who takes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import run_python

CHECKS = Path(__file__).parent / "interpreted" / "check_torch_kernels.py"


def test_kernels_agree_with_the_core() -> None:
    """Every check of interpreted/check_torch_kernels.py, in a process where Triton interprets."""
    pytest.importorskip("triton", reason="CPU wheels of torch come without Triton: pip install triton")
    command = [sys.executable, "-m", "pytest", "-q", "--library", "torch", str(CHECKS)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


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
