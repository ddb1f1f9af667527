"""The recurrent layer's CUDA kernels without tensor cores: their text run on the CPU, and compiled for an H100."""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ELSEWHERE

import organics_core as oc
from organics_torch import ORGaNICs, sequence
from organics_torch import cuda_kernel as kernels

pytestmark = pytest.mark.library("torch")
HERE = Path(__file__).parent
SHARED = 227 * 1024
MAIN = """
typedef float *F;
typedef const float *C;
typedef const float4 *M;
typedef long long L;
extern "C" void organics_forward_on_cpu(unsigned blocks, unsigned threads, void **v) {
  launch(blocks, threads, organics_forward, (F)v[0], (M)v[1], (C)v[2], (C)v[3], (C)v[4], (F)v[5], (F)v[6], (F)v[7],
         (F)v[8], (F)v[9], (int)(L)v[10], (int)(L)v[11], (int)(L)v[12]);
}
extern "C" void organics_backward_on_cpu(unsigned blocks, unsigned threads, void **v) {
  launch(blocks, threads, organics_backward, (C)v[0], (C)v[1], (C)v[2], (C)v[3], (C)v[4], (F)v[5], (F)v[6], (F)v[7],
         (F)v[8], (M)v[9], (C)v[10], (C)v[11], (C)v[12], (F)v[13], (F)v[14], (int)(L)v[15], (int)(L)v[16],
         (int)(L)v[17]);
}
"""
FOLDER = tempfile.TemporaryDirectory()
LIBRARIES: dict[str, ctypes.CDLL] = {}


def launch(text: str, name: str, blocks: int, threads: int, memory: int, arguments: tuple[Any, ...]) -> None:
    """In place of the launch on a device: the text as C++, thread by thread."""
    assert memory <= SHARED
    assert blocks, "the driver refuses a launch of no blocks"
    if text not in LIBRARIES:
        compiler = shutil.which("c++") or shutil.which("g++")
        assert compiler, "these tests compile the kernels with a C++ compiler, and none was found"
        stem = Path(FOLDER.name) / hashlib.sha256(text.encode()).hexdigest()[:16]
        stem.with_suffix(".cpp").write_text(f'#include "cuda_on_cpu.h"\n{text}{MAIN}')
        command = [compiler, "-std=c++17", "-O0", "-shared", "-fPIC", "-w", f"-I{HERE / 'cuda_on_cpu'}"]
        subprocess.run([*command, "-o", f"{stem}.so", f"{stem}.cpp"], check=True)
        LIBRARIES[text] = ctypes.CDLL(f"{stem}.so")
    assert all(value.dtype == torch.float32 for value in arguments if isinstance(value, torch.Tensor))
    values = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in arguments]
    getattr(LIBRARIES[text], f"{name}_on_cpu")(blocks, threads, (ctypes.c_uint64 * len(values))(*values))


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels take tensors on the CPU."""
    monkeypatch.setattr(kernels, "launch", launch)
    monkeypatch.setattr(kernels, "memory", lambda _: SHARED)
    monkeypatch.setattr(sequence, "_obstacle", lambda *_: None)
    return


def errors(n: int, batch: int, *, outputs: bool = True, last: bool = True, **options: Any) -> list[float]:
    """Of values and every gradient, for a loss that weighs every number differently, against the core in float64."""
    found = []
    for dtype, how in ((torch.float32, "cuda"), (torch.float64, "reference")):
        layer = ORGaNICs(3, n, seed=1, max_rates=oc.MaxRates(0.4, 0.3, 0.3), dtype=dtype, implementation=how, **options)
        with torch.no_grad():  # away from the kinks of W = min(exp(V), 1) and of the spectral ball
            for name, parameter in layer.named_parameters():
                if name.endswith("log_w"):
                    parameter -= 0.3
                if name.endswith("w_r.original"):
                    parameter[0] *= 1.5
        noise = torch.Generator().manual_seed(3)

        def draw(*shape: int, noise: Any = noise, dtype: Any = dtype) -> torch.Tensor:
            return torch.randn(shape, generator=noise, dtype=torch.float64).to(dtype)

        xs = draw(4, batch, 3).requires_grad_()
        start = [part.clone().requires_grad_() for part in layer.start_state(batch)]
        ys, hn = layer(xs, oc.CellState(*start), outputs=outputs)
        loss = sum(((part * draw(*part.shape)).sum() for part in hn), torch.zeros((), dtype=dtype)) if last else 0.0
        if outputs:
            loss = loss + (ys * draw(*ys.shape)).sum()
        gradients = torch.autograd.grad(loss, [xs, *start, *layer.parameters()], allow_unused=True)
        found.append([part.detach() for part in (ys, *hn, *gradients) if part is not None])
    assert len(found[0]) == len(found[1])
    return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True)]


@pytest.mark.cpu
@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("n", "options"),
    [
        (5, {}),
        (20, {"variant": "main"}),
        (32, {"recurrent": "identity"}),
        (16, {"variant": "main", "recurrent": "identity"}),
        (16, {"num_layers": 2, "recurrent": "spectral", "learn_rates": False}),
        (64, {}),
        (100, {}),
        (128, {}),
    ],
    ids=str,
)
def test_kernels_are_the_core(n: int, options: dict[str, Any]) -> None:
    """Values and every gradient to float32's resolution; the last block is not full, nor every width."""
    assert max(errors(n, 3, **options)) < 2e-6


@pytest.mark.cpu
@pytest.mark.usefixtures("on_cpu")
def test_no_sequences() -> None:
    layer = ORGaNICs(3, 16, seed=1, implementation="cuda")
    xs = torch.zeros(4, 0, 3, requires_grad=True)
    output, hn = layer(xs)
    assert (output.shape, hn.y.shape) == ((4, 0, 16), (1, 0, 16))
    (output.sum() + hn.a.sum()).backward()
    assert xs.grad is not None
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


@pytest.mark.cpu
@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("options", [{"last": False}, {"outputs": False}], ids=str)
def test_losses_of_the_outputs_or_of_the_last_state_alone(options: dict[str, Any]) -> None:
    """Either way into the backward pass, and no outputs at all."""
    assert max(errors(16, 2, **options)) < 2e-6


@pytest.mark.cpu
@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    "plan", [(2, 8, 1, 6, 0), (4, 4, 1, 6, 0), (1, 4, 1, 4, 2), (2, 4, 2, 2, 3), (2, 4, 2, 0, 0)], ids=str
)
def test_every_plan_is_right(monkeypatch: pytest.MonkeyPatch, plan: tuple[int, ...]) -> None:
    """Wherever the matrices are, and however the work is divided."""
    monkeypatch.setitem(kernels.PLANS, 32, kernels.Plan(*plan))
    assert max(errors(32, 3)) < 2e-6


@pytest.mark.cpu
@pytest.mark.usefixtures("on_cpu")
def test_no_gradient() -> None:
    """The pass that keeps nothing."""
    layer = ORGaNICs(3, 16, seed=1, implementation="cuda")
    xs = torch.ones(3, 2, 3)
    with torch.no_grad():
        found, _ = layer(xs)
        layer.implementation = "reference"
        want, _ = layer(xs)
    torch.testing.assert_close(found, want)


def test_matrices_that_fit_no_more_stay_outside() -> None:
    """On devices with less shared memory."""
    plan = kernels.PLANS[128]
    counts = [kernels.fitting(plan, 128, kilobytes * 1024).shared for kilobytes in (227, 163, 99, 47)]
    assert counts == [3, 2, 1, 0]


def compiler_or_skip() -> None:
    """CUDA's own, which exists for Linux."""
    try:
        kernels.nvrtc()
    except RuntimeError as error:
        where = "" if sys.platform == "linux" else ELSEWHERE
        pytest.skip(f"{where}{error}: pip install nvidia-cuda-nvrtc")


@pytest.mark.parametrize("width", sorted(kernels.PLANS))
@pytest.mark.parametrize("recurrent", [True, False])
def test_kernels_compile_for_an_h100(width: int, recurrent: bool) -> None:
    """Without a GPU: the block fits, and next to nothing lies outside the registers."""
    compiler_or_skip()
    plan = kernels.PLANS[width]
    text = kernels.text(width, plan, main=False, recurrent=recurrent, outputs=True, save=True)
    code, report = kernels.compiled(f"{text}\n// {uuid.uuid4()}", "sm_90")  # what NVRTC has in its cache has no report
    assert b"organics_forward" in code
    registers, spilled = (
        [int(number) for number in re.findall(pattern, report)]
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores")
    )
    assert len(registers) == len(spilled) == 2
    assert max(registers) * plan.threads(width) <= 2**16
    assert max(spilled) <= (128 if width == 128 else 0)
    assert plan.memory(width) <= SHARED


def test_what_does_not_compile_is_reported() -> None:
    """With the compiler's words."""
    compiler_or_skip()
    with pytest.raises(RuntimeError, match="nothing"):
        kernels.compiled("__global__ void f(int *x) { *x = nothing; }", "sm_90")


@pytest.mark.cpu
def test_what_the_kernels_do_not_take() -> None:
    """By name an error that says why."""
    for options, xs, message in (
        ({"dtype": torch.float64}, torch.zeros(2, 1, 3).double(), "it takes float32, not torch.float64"),
        ({}, torch.zeros(2, 1, 3), "it runs on CUDA, not on cpu"),
    ):
        layer = ORGaNICs(3, 4, seed=0, implementation="cuda", **options)
        with pytest.raises(RuntimeError, match=f"the cuda implementation cannot run this sequence: {message}"):
            layer(xs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason=f"{ELSEWHERE}no CUDA device")
@pytest.mark.parametrize("n", [20, 64, 128])
def test_kernels_on_the_device(n: int) -> None:
    """Outputs and all gradients against float64, 100 steps, a batch that does not fill its last block."""
    generator = torch.Generator().manual_seed(0)
    xs = torch.randn(100, 41, 3, generator=generator, device="cpu").cuda()
    found = []
    for dtype, how in ((torch.float32, "cuda"), (torch.float64, "function")):
        layer = ORGaNICs(3, n, seed=0, dtype=dtype, device="cuda", implementation=how)
        output, hn = layer(xs.to(dtype))
        loss = (output**2).mean() + sum((part**2).mean() for part in hn)
        found.append([output, *hn, *torch.autograd.grad(loss, list(layer.parameters()))])
    for number, exact in zip(*found, strict=True):
        assert float((number.double() - exact).norm() / exact.norm()) < 1e-5


def test_auto_goes_by_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA: without tensor cores until the blocks take many turns, with them beyond; else what there is."""

    class There:
        dtype, device, is_cuda, shape = torch.float32, torch.device("cuda"), True, (10, 256, 1)

    few = type("Few", (), {"multi_processor_count": 132})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: few)
    missing: list[str] = []
    monkeypatch.setattr(sequence, "_obstacle", lambda name, *_: name if name in missing else None)
    most = {"highest": 1584, "high": 1056, "medium": 528}
    wanted = [(kind, batch, "cuda") for kind, limit in most.items() for batch in (256, limit)]
    wanted += [(kind, batch, "triton") for kind, limit in most.items() for batch in (limit + 1, 4096)]
    for kind, batch, name in wanted:
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda kind=kind: kind)
        There.shape = (10, batch, 1)
        assert sequence._choose("auto", There, 64, None) == name
        missing[:] = [name]
        assert sequence._choose("auto", There, 64, None) == {"cuda": "triton", "triton": "cuda"}[name]
        missing[:] = ["cuda", "triton"]
        assert sequence._choose("auto", There, 64, None) == "function"
        missing.clear()
    assert sequence._choose("auto", There, 200, None) == "triton"
