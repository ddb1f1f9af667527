"""Variants of the recurrent layer's kernels on a GPU, row by row, the most valuable first; within 150 seconds.

    python benchmarks/kernel_variants.py [--wheels FOLDER] [--seconds 150] [--sections cuda64,triton,...]

Every section has a process of its own, and every row is guarded, so a failure costs only itself.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gpu as bench

SECTIONS = {"cuda64": 45, "cuda128": 50, "sums": 30, "triton": 75, "batches": 45}
"""Seconds that each may take."""
QUICK = bool(os.environ.get("KERNEL_VARIANTS_ON_CPU"))
"""A rehearsal on the CPU: tiny sizes; CUDA's text runs as C++ by the module of this name."""
BATCH, STEPS = (3, 5) if QUICK else (256, 784)
DEVICE = "cpu" if QUICK else "cuda"
HEAD = "variant | units | precision | first call s | forward ms | backward ms | both ms | times LSTM | error | in"


def say(*cells: Any) -> None:
    print(" | ".join(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells), flush=True)


def guarded(label: str, call: Any) -> Any:
    try:
        return call()
    except Exception as error:
        say(label, f"FAILED {type(error).__name__}: {error}"[:600].replace("\n", " "))
        return None


def modules() -> Any:
    from organics_torch import cuda_kernel
    from organics_torch import triton_kernel as kernels

    if QUICK:
        import importlib

        import organics_torch.sequence as sequence

        cuda_kernel.launch = importlib.import_module(os.environ["KERNEL_VARIANTS_ON_CPU"]).launch
        cuda_kernel.memory = lambda _: 227 * 1024
        sequence._obstacle = lambda *_: None  # noqa: SLF001
    return kernels, cuda_kernel


class Peer:
    """What a width is compared with: cuDNN's LSTM in tf32, and the gradients in float64."""

    def __init__(self, n: int, batch: int = BATCH, exact: bool = True) -> None:
        import torch

        from organics_torch import ORGaNICs

        torch.manual_seed(0)
        self.n, self.wait = n, bench.torch_wait(DEVICE)
        self.xs = torch.rand(STEPS, batch, 1, device=DEVICE)
        self.weigh = torch.randn(batch, n, device=DEVICE)
        layer = torch.nn.LSTM(1, n, device=DEVICE)
        self.forward, self.both = self.seconds(layer)
        say(
            "nn.LSTM, tf32",
            n,
            f"batch {batch}",
            "",
            self.forward * 1e3,
            (self.both - self.forward) * 1e3,
            self.both * 1e3,
        )
        if exact:
            made = ORGaNICs(1, n, seed=0, dtype=torch.float64, device=DEVICE, implementation="function")
            self.exact = bench.gradients(made, self.xs)
            self.names = ["ys", *(name.removeprefix("cells.0.") for name, _ in made.named_parameters())]

    def seconds(self, layer: Any, repeats: int = 7) -> tuple[float, float]:
        """Of the forward pass that keeps its tapes, and of both."""
        repeats = 1 if QUICK else repeats

        def both() -> None:
            output, _ = layer(self.xs)
            layer.zero_grad(set_to_none=True)
            (output[-1] * self.weigh).sum().backward()

        return bench.median_seconds(lambda: layer(self.xs), self.wait, repeats), bench.median_seconds(
            both, self.wait, repeats
        )

    def short(self, layer: Any) -> None:
        """What is around the steps: a sequence of one."""
        xs = self.xs
        self.xs = xs[:1]
        forward, both = self.seconds(layer)
        self.xs = xs
        say("  the same, one step", self.n, "", "", forward * 1e3, (both - forward) * 1e3, both * 1e3)

    def errors(self, layer: Any) -> list[float]:
        found = bench.gradients(layer, self.xs)
        return [float((a - b).norm() / b.norm()) for a, b in zip(found, self.exact, strict=True)]

    def row(self, label: str, how: str, precision: str, *, error: bool = True) -> Any:
        """Measure the layer by an implementation."""
        import torch

        from organics_torch import ORGaNICs

        torch.set_float32_matmul_precision(precision)
        layer = ORGaNICs(1, self.n, seed=0, device=DEVICE, implementation=how)
        began = time.perf_counter()
        output, _ = layer(self.xs)
        (output[-1] * self.weigh).sum().backward()
        self.wait()
        first = time.perf_counter() - began
        forward, both = self.seconds(layer)
        cells = [label, self.n, precision, first, forward * 1e3, (both - forward) * 1e3, both * 1e3, both / self.both]
        if error:
            found = self.errors(layer)
            worst = max(range(len(found)), key=found.__getitem__)
            cells += [found[worst], self.names[worst]]
        say(*cells)
        return layer


def arrays(peer: Peer, label: str, layer: Any) -> None:
    """The error of every array, and of the outputs after some steps."""
    import torch

    from organics_torch import ORGaNICs

    found = peer.errors(layer)
    say("  errors of", label, *(f"{name} {error:.1e}" for name, error in zip(peer.names, found, strict=True)))
    made = ORGaNICs(1, peer.n, seed=0, dtype=torch.float64, device=DEVICE, implementation="function")
    with torch.no_grad():
        ys, _ = layer(peer.xs[:, :32])
        want, _ = made(peer.xs[:, :32].double())
    steps = [k for k in (1, 10, 100, 784) if k <= STEPS]
    say("  outputs after", *(f"{k}: {float((ys[k - 1] - want[k - 1]).norm() / want[k - 1].norm()):.1e}" for k in steps))


def profile(layer: Any, peer: Peer) -> None:
    """The kernels that take longest, forward and backward."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU if QUICK else ProfilerActivity.CUDA]) as found:
        output, _ = layer(peer.xs)
        (output[-1] * peer.weigh).sum().backward()
        peer.wait()
    events = [(getattr(e, "device_time_total", 0.0), e.count, e.key) for e in found.key_averages()]
    for micro, count, name in sorted(events, reverse=True)[:9]:
        say("   ", micro / 1e3, "ms", count, name[:70])
    torch.cuda.synchronize() if not QUICK else None


def cuda(n: int) -> None:
    """The CUDA kernels: the plan, its parts, other plans."""
    _, made = modules()
    Plan = made.Plan
    others = {
        64: [
            Plan(2, 4, 1, 6, 0, 1, 0),
            Plan(2, 8, 1, 6, 0, 1, 4),
            Plan(4, 4, 1, 6, 0, 1, 4),
            Plan(2, 4, 2, 6, 0, 1, 4),
            Plan(2, 4, 1, 4, 2, 1, 4),
        ],
        128: [
            Plan(2, 4, 2, 3, 3, 1, 0),
            Plan(2, 4, 1, 2, 3, 1, 2),
            Plan(2, 4, 2, 2, 3, 1, 2),
            Plan(1, 4, 2, 3, 3, 1, 2),
        ],
    }[n]
    n = 32 if QUICK and n == 64 else n
    peer = Peer(n)
    usual = made.PLANS[n]
    layer = guarded("cuda", lambda: peer.row(f"cuda {tuple(usual)}", "cuda", "high"))
    guarded("cuda, highest", lambda: peer.row("cuda, the same", "cuda", "highest"))
    for plan in others:
        made.PLANS[n] = plan
        guarded(f"cuda {tuple(plan)}", lambda plan=plan: peer.row(f"cuda {tuple(plan)}", "cuda", "high"))
    made.PLANS[n] = usual
    if layer is not None:
        guarded("one step", lambda: peer.short(layer))
        guarded("profile", lambda: profile(layer, peer))
        guarded("arrays", lambda: arrays(peer, "cuda", layer))


CASES = [("high", 8), ("highest", 8), ("high", 4), ("medium", 8)]
CASES = [(n, precision, warps) for precision, warps in CASES for n in (64, 128)]


def one(case: str) -> None:
    """Compile a Triton variant into the cache: a short run of the same kind."""
    n, precision, warps = case.split(",")
    kernels, _ = modules()
    import torch

    from organics_torch import ORGaNICs

    kernels.WARPS = int(warps)
    torch.set_float32_matmul_precision(precision)
    output, _ = ORGaNICs(1, int(n), seed=0, device=DEVICE, implementation="triton")(
        torch.rand(16, BATCH, 1, device=DEVICE)
    )
    output[-1].sum().backward()


def triton() -> None:
    """The Triton kernels as they are now, with eight and four warps; compiled side by side before."""
    kernels, _ = modules()
    began = time.perf_counter()
    command = [sys.executable, str(Path(__file__).resolve()), "--case"]
    running = [subprocess.Popen([*command, ",".join(map(str, case))], stderr=subprocess.DEVNULL) for case in CASES]
    for process in running:
        try:
            process.wait(max(0.1, 45 - (time.perf_counter() - began)))
        except subprocess.TimeoutExpired:
            process.kill()
    say(f"compiled in {time.perf_counter() - began:.0f} s; exit codes", *(process.wait(5) for process in running))
    peers = {n: guarded("LSTM", lambda n=n: Peer(n)) for n in (64, 128)}
    for n, precision, warps in CASES:
        kernels.WARPS = warps
        kernels._fits.clear()  # noqa: SLF001
        label = f"triton, {warps} warps"
        layer = guarded(label, lambda n=n, p=precision, label=label: peers[n].row(label, "triton", p))
        if layer is not None and (precision, warps) == ("highest", 8):
            guarded("arrays", lambda n=n, layer=layer: arrays(peers[n], "triton, highest", layer))


def sums() -> None:
    """Whether the tensor cores round or cut: one, and a thousand times about its last bit."""
    import torch

    file = Path(tempfile.mkdtemp()) / "probe.py"
    file.write_text(PROBE)
    sys.path.insert(0, str(file.parent))
    import probe  # ty: ignore

    for start, part in ((1.0, 1.5), (1.0, 0.9), (1.0, -0.4)):
        found = torch.zeros(2, device=DEVICE)
        probe.probe[(1,)](found, start, part * 2.0**-23 / 16, 1000)
        inside, outside = ((found.double() - start) / 2.0**-23).tolist()
        what = f"from {start:g}, 1000 times {part} of 2^-23"
        say(what, f"in the tensor cores {inside:g}", f"added outside {outside:g}", f"exact {1000 * part:g}")


PROBE = """
import triton
import triton.language as tl


@triton.jit
def probe(found, start, part, count):
    zero = tl.zeros([16, 16], dtype=tl.float32)
    left, right = zero + part, zero + 1.0
    inside, outside = zero + start, zero + start
    for _ in range(count):
        inside = tl.dot(left, right, acc=inside, input_precision="tf32")
        product = tl.dot(left, right, acc=zero, input_precision="tf32")
        product = tl.dot(zero, right, acc=product, input_precision="tf32")
        outside = outside + product
    tl.store(found, tl.max(tl.max(inside, axis=1), axis=0))
    tl.store(found + 1, tl.max(tl.max(outside, axis=1), axis=0))
"""


def batches() -> None:
    """Other sizes of batches: where the tensor cores are worth more."""
    modules()
    for n in (64, 128):
        for batch in (16, 128, 512, 1024, 2048):
            peer = guarded("LSTM", lambda n=n, batch=batch: Peer(n, batch, exact=False))
            for how in ("cuda", "triton"):
                guarded(how, lambda how=how, peer=peer: peer.row(how, how, "high", error=False))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--section")
    parser.add_argument("--case")
    options = parser.parse_args()
    if options.case:
        one(options.case)
        return 0
    if options.section:
        calls = {"cuda64": lambda: cuda(64), "cuda128": lambda: cuda(128), "triton": triton, "sums": sums}
        {**calls, "batches": batches}[options.section]()
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = bench.prepare(options.wheels, Path(folder))
        if QUICK:
            path += os.environ.get("PYTHONPATH", "").split(os.pathsep)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
        print(bench.versions(), bench.cuda_device())
        print(HEAD, flush=True)
        for section in options.sections.split(","):
            left = options.seconds - (time.monotonic() - began)
            if left < 8 and not QUICK:
                print(f"no time for {section}")
                continue
            print(f"[{time.monotonic() - began:.0f} s] {section}", flush=True)
            command = [sys.executable, str(Path(__file__).resolve()), "--section", section]
            try:
                seconds = 600 if QUICK else min(SECTIONS[section], left)
                code = subprocess.run(command, env=environment, timeout=seconds, check=False).returncode
                if code:
                    print(f"{section}: exit code {code}", flush=True)
            except subprocess.TimeoutExpired:
                print(f"{section}: stopped", flush=True)
    print(f"[{time.monotonic() - began:.0f} s] done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
