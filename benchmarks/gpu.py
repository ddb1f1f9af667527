"""Check and measure everything on a GPU, in one command, within ten minutes.

    python benchmarks/gpu.py [--wheels FOLDER] [--out FOLDER] [--skip|--only tests,agreement,training,simulation]
    python benchmarks/gpu.py --paper 540    # instead: nine minutes of the paper's tables, to be gone on with

It runs the tests that concern a GPU (cupy; torch and jax on CUDA), the
agreement table with columns for the GPU against numpy in float64, and the
benchmarks, and writes ``gpu-<device>-<date>.json`` and a short ``.md`` table.
Every piece runs in a process and a time of its own, and is written down row by
row: what hangs, crashes or is killed costs nothing but itself. A record of the
same day is added to. Nothing needs to be installed but the array libraries:
the project is taken from the source tree around this file, and what else it needs
from pure-Python wheels in FOLDER. Without a CUDA device it says so and exits with code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tests", "agreement", "training", "simulation")
PAPER_MODELS = (("organics", 64), ("organics", 128), ("lstm", 128))
TEST_RUNS = {
    "cupy": ("--library", "cupy"),
    "torch on CUDA": ("--library", "torch", "--device", "cuda"),
    "jax on CUDA": ("--library", "jax", "--device", "cuda"),
}
SHARES = {"cupy": 0.2, "torch on CUDA": 0.3, "jax on CUDA": 0.5}
"""Of the processors."""
LIMIT_SECONDS = 570
BUDGETS = {
    "training": 100,
    "simulation": 100,
    "parallel": 100,
    "batches": 60,
    "stream": 30,
    "ceilings": 40,
    "jax training": 100,
    "agreement": 90,
}
"""Seconds that a piece may take at most, what tells most first; the tests share what is left."""
GROUPS = dict.fromkeys(("parallel", "batches", "stream", "ceilings", "jax training"), "training")
"""The part that a piece belongs to, where it has another name."""
PAPER_RUNS = [(task, model, n) for task in ("smnist", "psmnist") for model, n in PAPER_MODELS]
"""What the paper's second table holds: sequences of 784 steps."""

PAPER_CELL = "the paper's cell, eager"

Keep = Callable[[Any], None]
"""Takes a piece's result so far, to be kept whatever comes after."""


def forget(result: Any) -> None:
    """Keeps nothing."""


class Sizes(NamedTuple):
    """How large the benchmarks are; the defaults are those of the record."""

    batch: int = 256
    steps: int = 784
    hidden: tuple[int, ...] = (64, 128)
    circuits: int = 10_000
    neurons: int = 64
    simulated: int = 1000
    large: int = 20_000
    ring: int = 1_000_000
    repeats: int = 10
    sequences: tuple[int, ...] = (1, 4, 16)
    long: int = 10_000
    batches: tuple[int, ...] = (16, 64, 256, 512, 1024, 2048, 4096)


# --- the environment


def prepare(wheels: Path | None, folder: Path) -> list[str]:
    """Unpack wheels, and describe the project, into ``folder``; the entries for the module path."""
    if wheels is not None:
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["organics_core.backends"]
    about = folder / "organics_core-0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: organics-core\nVersion: 0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (about / "entry_points.txt").write_text("\n".join(["[organics_core.backends]", *lines, ""]))
    return [
        str(folder),
        str(ROOT),
        str(ROOT / "backends"),
        str(ROOT / "adapters"),
        str(ROOT / "tests"),
        str(ROOT / "benchmarks"),
    ]


def cuda_device() -> str | None:
    """The name of the GPU, or None."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return str(torch.cuda.get_device_name())
    if importlib.util.find_spec("cupy") is not None:
        import cupy

        with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):
            if cupy.cuda.runtime.getDeviceCount():
                return str(cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())
    return None


def versions() -> dict[str, str]:
    """Of Python and of what takes part."""
    found = {"python": sys.version.split()[0]}
    for name in ("numpy", "torch", "triton", "jax", "jaxlib", "cupy-cuda13x", "equinox"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


# --- tests


def _interruptible() -> None:
    """A job in a shell's background inherits that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


RUNNING: set[subprocess.Popen[bytes]] = set()


def end_all(*_: Any) -> None:
    """What SIGTERM does: whatever this process has started ends with it."""
    for process in list(RUNNING):
        process.kill()
    sys.exit(128 + signal.SIGTERM)


def limited(command: list[str], environment: dict[str, str], seconds: float) -> tuple[int | None, str]:
    """Exit code and output; after so many seconds an interrupt, so that pytest still says how far it came, and None."""
    with tempfile.TemporaryFile() as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, preexec_fn=_interruptible
        )
        RUNNING.add(process)
        code: int | None = None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        finally:
            process.kill()
            process.wait()
            RUNNING.discard(process)
        stream.seek(0)
        return code, stream.read().decode(errors="replace")


def run_tests(name: str, environment: dict[str, str], seconds: float, log: Path | None = None) -> dict[str, Any]:
    """One run of TEST_RUNS: its counts and, where something failed, the end of its output (all of it in ``log``)."""
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=100", "--tb=short", "-p", "no:cacheprovider"]
    command += TEST_RUNS[name]
    if importlib.util.find_spec("xdist") is not None:
        part = SHARES.get(name, 1.0)
        command += ["-p", "xdist.plugin", "-n", str(max(1, int(part * (os.cpu_count() or 1))))]
    code, output = limited(command, {**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, seconds)
    result = {"ok": code == 0, "finished": code is not None, **counts(output)}
    if code != 0:
        result["output"] = output[-3000:]
        if log is not None:
            log.write_text(output)
    return result


def counts(output: str) -> dict[str, int]:
    """Passed, failed, ... of pytest's last line."""
    found = re.findall(r"(\d+) (passed|failed|error|errors|skipped|deselected)\b", output[-2000:])
    return {kind.rstrip("s") if kind == "errors" else kind: int(number) for number, kind in found}


# --- agreement


def agreement(torch_device: str = "cuda", jax_platform: str = "gpu") -> dict[str, Any]:
    """The agreement table with torch and jax on the GPU beside every other column."""
    import organics_agree as agree
    from organics_agree.libraries import as_kind
    from organics_agree.printing import as_json, markdown

    columns = list(agree.installed())
    if importlib.util.find_spec("torch") is not None:
        import torch

        for column in [c for c in columns if c.library == "torch"]:

            def on_device(value: Any, dtype: str = column.dtype) -> Any:
                return torch.as_tensor(as_kind(value, dtype)).to(torch_device)

            columns.append(column._replace(library=f"torch {torch_device}", asarray=on_device))
    if importlib.util.find_spec("jax") is not None:
        import jax

        for column in [c for c in columns if c.library == "jax"]:

            def context(make: Any = column.context) -> Any:
                stack = contextlib.ExitStack()
                stack.enter_context(make())
                stack.enter_context(jax.default_device(jax.devices(jax_platform)[0]))
                return stack

            columns.append(column._replace(library=f"jax {jax_platform}", context=context))
    found = agree.compare(columns)
    worst = {column.key: found.worst(column.key) for column in found.columns if not column.reference}
    return {"ok": found.ok, "worst": worst, "table": as_json(found), "markdown": markdown(found)}


# --- measuring


def median_seconds(call: Callable[[], Any], wait: Callable[[], Any], repeats: int) -> float:
    """Of one call, after two that are not counted; ``wait`` returns when the device is idle."""
    taken = []
    for k in range(repeats + 2):
        wait()
        began = time.perf_counter()
        call()
        wait()
        if k > 1:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


@contextlib.contextmanager
def attempt(row: dict[str, Any]) -> Iterator[None]:
    """A measurement that fails leaves its error in its row, and must not cost the others their record."""
    try:
        yield
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:500]


def torch_wait(device: str) -> Callable[[], None]:
    """Waits until the device has nothing to do."""
    import torch

    return torch.cuda.synchronize if device == "cuda" else lambda: None


def ceilings(device: str, size: int = 8192, repeats: int = 10) -> dict[str, float]:
    """What the device reaches: products in tf32 and bfloat16, and copies, per second."""
    import torch

    wait = torch_wait(device)
    before = torch.get_float32_matmul_precision()
    found = {}
    for name, precision, dtype in (
        ("float32", "highest", torch.float32),
        ("tf32", "high", torch.float32),
        ("bfloat16", "high", torch.bfloat16),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        found[f"{name} products, flop/s"] = 2 * size**3 / median_seconds(lambda a=a, b=b: a @ b, wait, repeats)
    torch.set_float32_matmul_precision(before)
    a = torch.randn(4 * size * size, device=device)
    b = torch.empty_like(a)
    found["memory, bytes/s"] = 2 * a.nbytes / median_seconds(lambda: b.copy_(a), wait, repeats)
    return found


def training(device: str, sizes: Sizes, keep: Keep = forget) -> list[dict[str, Any]]:
    """Forward and backward of one layer over a sequence: nn.LSTM, the paper's cell under autograd, and ours."""
    import torch
    from paper_cell import PaperCell

    from organics_torch import ORGaNICs

    class LastOutput(torch.nn.Module):
        """The cell's last output where a layer's outputs are looked for."""

        def __init__(self, cell: PaperCell) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, xs: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self.cell(xs)[None], None

    wait = torch_wait(device)
    kernels = device == "cuda" and importlib.util.find_spec("triton") is not None
    before = torch.get_float32_matmul_precision()
    rows = []
    for n in sizes.hidden:
        torch.manual_seed(0)
        xs = torch.rand(sizes.steps, sizes.batch, 1, device=device)
        weigh = torch.randn(sizes.batch, n, device=device)

        def seconds(layer: Any, repeats: int, xs: Any = xs, weigh: Any = weigh) -> float:
            def call() -> None:
                output, _ = layer(xs)
                layer.zero_grad(set_to_none=True)
                (output[-1] * weigh).sum().backward()

            return median_seconds(call, wait, repeats)

        peer = seconds(torch.nn.LSTM(1, n, device=device), sizes.repeats)
        rows.append({"layer": "nn.LSTM", "hidden": n, "seconds": peer})
        keep(rows)
        if device == "cuda":  # cuDNN's products are tf32 unless it is told otherwise
            torch.backends.cudnn.allow_tf32 = False
            rows.append({"layer": "nn.LSTM, float32", "hidden": n})
            rows[-1]["seconds"] = seconds(torch.nn.LSTM(1, n, device=device), sizes.repeats)
            torch.backends.cudnn.allow_tf32 = True
        exact = gradients(ORGaNICs(1, n, seed=0, dtype=torch.float64, device=device, implementation="function"), xs)
        ways = [(f"kernel, {p}", "triton", p, sizes.repeats) for p in ("highest", "high", "medium") if kernels]
        ways += [("without tensor cores", "cuda", "high", sizes.repeats)] if device == "cuda" else []
        ways += [("core's step, eager", "reference", "highest", 1)]
        ways += [("plain torch, derivative by hand", "function", "highest", 3)]
        for name, how, precision, repeats in ways:
            torch.set_float32_matmul_precision(precision)
            layer = ORGaNICs(1, n, seed=0, device=device, implementation=how)
            row: dict[str, Any] = {"layer": f"ORGaNICs, {name}", "hidden": n}
            with attempt(row):
                row["seconds"] = seconds(layer, repeats)
                row["times LSTM"] = row["seconds"] / peer
                row["relative error"] = largest_difference(gradients(layer, xs), exact)
                row |= work(n, sizes.batch, sizes.steps)
            rows.append(row)
            keep(rows)
        torch.set_float32_matmul_precision("high")
        row = {"layer": PAPER_CELL, "hidden": n}
        slowest = None
        with attempt(row):
            row["seconds"] = slowest = seconds(LastOutput(PaperCell(1, n).to(device)), 1)
        rows.append(row)
        for row in rows:
            if row["hidden"] == n and slowest and "seconds" in row:
                row["faster than paper's cell"] = slowest / row["seconds"]
        keep(rows)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    torch.set_float32_matmul_precision(before)
    return rows


KERNELS = (("without tensor cores", "cuda", "high"), ("kernel, high", "triton", "high"))
KERNELS += (("kernel, highest", "triton", "highest"),)
"""Name, implementation, and torch's precision of products."""


def batches(device: str, sizes: Sizes, keep: Keep = forget, kernels: Any = KERNELS) -> list[dict[str, Any]]:
    """Forward and backward by all kernels beside nn.LSTM, at many sizes of the batch: from where on which is faster."""
    import torch

    from organics_torch import ORGaNICs

    wait = torch_wait(device)
    before = torch.get_float32_matmul_precision()
    rows: list[dict[str, Any]] = []
    for n in sizes.hidden:
        ways: list[Any] = [("nn.LSTM", torch.nn.LSTM(1, n, device=device), "high")]
        for name, how, precision in kernels:
            ways += [(f"ORGaNICs, {name}", ORGaNICs(1, n, seed=0, device=device, implementation=how), precision)]
        for batch in sizes.batches:
            xs = torch.rand(sizes.steps, batch, 1, device=device)
            peer = None
            recorded = [("ORGaNICs, without tensor cores, recorded", None, "high")] if device == "cuda" else []
            for name, layer, precision in [*ways, *recorded]:
                torch.set_float32_matmul_precision(precision)

                def call(layer: Any = layer, xs: Any = xs) -> None:
                    layer.zero_grad(set_to_none=True)
                    (layer(xs)[0][-1] ** 2).sum().backward()

                row: dict[str, Any] = {"layer": name, "hidden": n, "batch": batch}
                rows.append(row)
                with attempt(row):
                    if layer is None:  # as CUDA graphs, so that the host launches two instead of a hundred kernels
                        ours = ORGaNICs(1, n, seed=0, device=device, implementation="cuda")
                        layer = torch.cuda.make_graphed_callables(ours, (xs,))
                    row["seconds"] = median_seconds(lambda layer=layer: call(layer), wait, (sizes.repeats + 1) // 2)
                    peer = peer or row["seconds"]
                    row["times LSTM"] = row["seconds"] / peer
                keep(rows)
    torch.set_float32_matmul_precision(before)
    return rows


def stream(device: str, sizes: Sizes, keep: Keep = forget) -> list[dict[str, Any]]:
    """A step of one sequence whose inputs come one by one, without gradients."""
    import torch

    from organics_torch import ORGaNICs

    rows: list[dict[str, Any]] = []
    for n in sizes.hidden:
        x = torch.rand(1, 1, 1, device=device)
        ours = ORGaNICs(1, n, seed=0, device=device)
        stepper = ours.stream()
        calls = {"nn.LSTM": torch.nn.LSTM(1, n, device=device), "layer": ours}
        calls["stream"] = lambda x, state, stepper=stepper: (stepper(x[0]), None)
        peer = None
        for name, call in calls.items():

            @torch.inference_mode()
            def steps(call: Any = call, x: Any = x) -> None:
                state = None
                for _ in range(sizes.steps):
                    _, state = call(x, state)

            row: dict[str, Any] = {"one by one": name, "hidden": n}
            rows.append(row)
            with attempt(row):
                row["seconds a step"] = median_seconds(steps, torch_wait(device), 3) / sizes.steps
                peer = peer or row["seconds a step"]
                row["times LSTM"] = row["seconds a step"] / peer
            keep(rows)
    return rows


def gradients(layer: Any, xs: Any) -> list[Any]:
    """Of the mean square of the last output, for a part of the batch, with the outputs."""
    import torch

    output, _ = layer(xs[:, :32].to(layer.cells[0].w_zx.dtype))
    found = torch.autograd.grad((output[-1] ** 2).mean(), list(layer.parameters()))
    return [output.detach().double(), *(part.double() for part in found)]


def largest_difference(found: list[Any], exact: list[Any]) -> float:
    """The worst array's, in the norm of the array."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))


def work(n: int, batch: int, steps: int) -> dict[str, float]:
    """The least that forward and backward must do: products, and bytes of tapes written and read once."""
    return {"flop": 3 * 2 * 6 * n * n * batch * steps, "bytes": 4 * n * batch * steps * (3 + 2 * 8 + 2 * 6)}


def jax_training(sizes: Sizes, keep: Keep = forget) -> list[dict[str, Any]]:
    """The same layer in jax, one compiled program for forward and backward, with products in float32 and in tf32."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from organics_jax import ORGaNICs

    rows: list[dict[str, Any]] = []
    for n in sizes.hidden:
        for precision, meaning in (("highest", "highest"), ("tensorfloat32", "high")):
            layer = ORGaNICs(1, n, key=jax.random.key(0), dtype=jnp.float32)
            xs = jax.random.uniform(jax.random.key(1), (sizes.steps, sizes.batch, 1), dtype=jnp.float32)

            @eqx.filter_jit
            def call(layer: Any, xs: Any, precision: str = precision) -> Any:
                with jax.default_matmul_precision(precision):
                    return eqx.filter_value_and_grad(lambda layer: (layer(xs)[0][-1] ** 2).mean())(layer)

            def run(call: Any = call, layer: Any = layer, xs: Any = xs) -> Any:
                return jax.block_until_ready(call(layer, xs))

            row: dict[str, Any] = {"layer": f"ORGaNICs, jax, {meaning}", "hidden": n}
            with attempt(row):
                began = time.perf_counter()
                run()
                row["first call"] = time.perf_counter() - began
                row["seconds"] = median_seconds(run, lambda: None, sizes.repeats)
                row |= work(n, sizes.batch, sizes.steps)
            rows.append(row)
            keep(rows)
    return rows


def parallel(device: str, sizes: Sizes, keep: Keep = forget) -> list[dict[str, Any]]:
    """All steps of a long sequence at once beside the fastest sequential way; jax compiles long, and has one batch."""
    rows: list[dict[str, Any]] = []
    makers = {"torch": torch_sequences, "jax": jax_sequences}
    n, batches = sizes.hidden[0], sizes.sequences
    for library, batch in [*(("torch", batch) for batch in batches), ("jax", batches[len(batches) // 2])]:
        row: dict[str, Any] = {"at once": library, "hidden": n, "steps": sizes.long, "sequences": batch}
        rows.append(row)
        keep(rows)
        with attempt(row):
            report, output, passes, wait = makers[library](device, n, sizes.long, batch)
            row |= {"converged": bool(report.converged), "iterations": int(report.iterations)}
            keep(rows)
            wanted = output("auto")
            row["relative error"] = float(abs(output("parallel") - wanted).max() / abs(wanted).max())
            for name, call in passes.items():
                for how in ("parallel", "auto"):
                    row[f"{name}, {how}"] = median_seconds(lambda call=call, how=how: call(how), wait, 3)
                    keep(rows)
                row[f"{name}, times faster"] = row[f"{name}, auto"] / row[f"{name}, parallel"]
        keep(rows)
    return rows


def torch_sequences(device: str, n: int, steps: int, batch: int) -> tuple[Any, ...]:
    """The iterations' report; outputs, a pass and a pass with its gradients, by implementation; a wait."""
    import torch

    import organics_torch as ot

    layers = {how: ot.ORGaNICs(1, n, seed=0, device=device, implementation=how) for how in ("parallel", "auto")}
    xs = torch.rand(steps, batch, 1, generator=torch.Generator().manual_seed(0)).to(device)

    @torch.no_grad()
    def forward(how: str) -> Any:
        return layers[how](xs)[0]

    def both(how: str) -> None:
        layers[how].zero_grad(set_to_none=True)
        (layers[how](xs)[0][-1] ** 2).mean().backward()

    (report,) = ot.parallel_report(layers["parallel"], xs)
    return report, forward, {"forward": forward, "forward and backward": both}, torch_wait(device)


def jax_sequences(device: str, n: int, steps: int, batch: int) -> tuple[Any, ...]:
    """The same on jax's default device."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np

    import organics_jax as oj

    layers = {
        how: oj.ORGaNICs(1, n, key=jax.random.key(0), implementation=how, dtype=jnp.float32)
        for how in ("parallel", "auto")
    }
    xs = jax.random.uniform(jax.random.key(1), (steps, batch, 1), dtype=jnp.float32)

    @eqx.filter_jit
    def forward(layer: Any, xs: Any) -> Any:
        with jax.default_matmul_precision("highest"):  # iterations in tf32 would not get below its rounding
            return layer(xs)[0]

    @eqx.filter_jit
    def both(layer: Any, xs: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return eqx.filter_value_and_grad(lambda layer: (layer(xs)[0][-1] ** 2).mean())(layer)

    with jax.default_matmul_precision("highest"):
        (report,) = oj.parallel_report(layers["parallel"], xs)
    passes = {
        name: lambda how, call=call: jax.block_until_ready(call(layers[how], xs))
        for name, call in (("forward", forward), ("forward and backward", both))
    }
    return report, lambda how: np.asarray(forward(layers[how], xs)), passes, lambda: None


def compare_with_kernel(record: dict[str, Any]) -> None:
    """Add to jax's rows how often the torch kernel of the same precision fits into their time."""
    torch_rows = {(row["layer"], row["hidden"]): row for row in record.get("training", [])}
    for row in record.get("jax training", []):
        kernel = torch_rows.get((row["layer"].replace("jax", "kernel"), row["hidden"]), {})
        if "seconds" in row and "seconds" in kernel:
            row["times kernel"] = row["seconds"] / kernel["seconds"]


def simulation(
    sizes: Sizes,
    module: Any = None,
    engines: tuple[str, ...] = ("kernel", "graph", "core"),
    keep: Keep = forget,
) -> list[Any]:
    """Simulated steps per second: a batch of small circuits by every engine, with noise, and one large circuit."""
    import numpy as np

    import organics_cupy as og
    from organics_core import Circuit, ring_convolution

    if module is None:
        import cupy as module
    wait = module.cuda.Device().synchronize if hasattr(module, "cuda") else lambda: None
    rng = np.random.default_rng(0)
    rows = []

    def measure(name: str, steps: int, call: Callable[[], Any], repeats: int = 3) -> None:
        row: dict[str, Any] = {"simulation": name, "steps": steps}
        with attempt(row):
            row["seconds"] = median_seconds(call, wait, repeats)
            row["steps per second"] = steps / row["seconds"]
        rows.append(row)
        keep(rows)

    n, count = sizes.neurons, sizes.circuits
    circuit = og.Circuit(rng.standard_normal((n, n)) / (2 * n**0.5), rng.random((n, n)) / n, 0.5, 0.5, 0.1, 2e-3, 2e-3)
    z = rng.standard_normal((count, n)) / n**0.5
    for dtype in ("float32", "float64"):
        there, drive = og.to_device((circuit, z), dtype=dtype, module=module)
        for engine in engines:
            steps = max(20, sizes.simulated // 10) if engine == "core" else sizes.simulated
            times = module.asarray(np.asarray([0.0, 1e-4 * steps], dtype=dtype))
            options = {"method": "rk4", "substeps": steps, "drive": "constant", "engine": engine}
            label = f"{count} x {n} neurons, rk4, {engine}, {dtype}"
            measure(label, steps, lambda a=(there, drive, times), o=options: og.simulate(*a, **o))
        if "kernel" in engines:
            options = {"noise": 0.01, "substeps": sizes.simulated, "drive": "constant", "engine": "kernel"}
            times = module.asarray(np.asarray([0.0, 1e-4 * sizes.simulated], dtype=dtype))
            label = f"{count} x {n} neurons, Euler-Maruyama, kernel, {dtype}"
            measure(label, sizes.simulated, lambda a=(there, drive, times), o=options: og.simulate_sde(*a, **o))
    wide = sizes.large
    w = module.asarray(rng.random((wide, 64), dtype=np.float32))
    w = module.tile(w, (1, -(-wide // 64)))[:, :wide] / wide  # made on the device: the host never holds it
    large = og.Circuit(None, w, 0.5, 0.5, 0.1, 2e-3, 2e-3)
    drive = module.asarray(rng.standard_normal(wide).astype(np.float32))
    times = module.asarray(np.asarray([0.0, 5e-2], dtype=np.float32))
    for engine in [engine for engine in engines if engine != "kernel"]:
        steps = max(20, sizes.simulated // 20) if engine == "core" else sizes.simulated // 2
        options = {"method": "rk4", "substeps": steps, "engine": engine}
        label = f"one circuit of {wide} neurons, rk4, {engine}, float32"
        measure(label, steps, lambda o=options: og.simulate(large, drive, times, **o), 1)
    apart = module.minimum(module.arange(sizes.ring), sizes.ring - module.arange(sizes.ring)).astype(np.float32)
    pool = ring_convolution(module.exp(-((apart / 50) ** 2)) / 90)
    huge = Circuit(None, pool, 0.5, 0.5, 0.1, 2e-3, 2e-3)
    drive = module.asarray(rng.standard_normal(sizes.ring).astype(np.float32))
    options = {"method": "rk4", "substeps": sizes.simulated // 2, "engine": "graph"}
    label = f"one circuit of {sizes.ring} convolutional pools, rk4, graph, float32"
    measure(label, sizes.simulated // 2, lambda: og.simulate(huge, drive, times, **options), 1)
    sparse = importlib.import_module("scipy.sparse" if module is np else "cupyx.scipy.sparse")
    near = module.arange(-10, 11).repeat(sizes.ring), module.tile(module.arange(sizes.ring), 21)
    places = near[1], (near[0] + near[1]) % sizes.ring
    weights = module.full(21 * sizes.ring, 1 / 21, dtype=np.float32)
    pool = sparse.coo_matrix((weights, places), shape=(sizes.ring, sizes.ring)).tocsr()
    huge = Circuit(None, pool, 0.5, 0.5, 0.1, 2e-3, 2e-3)
    label = f"one circuit of {sizes.ring} sparse pools of 21, rk4, graph, float32"
    measure(label, sizes.simulated // 2, lambda: og.simulate(huge, drive, times, **options), 1)
    return rows


# --- the paper's tables


def paper(out: Path, seconds: float, device: str = "cuda", keep: Keep = forget, **given: Any) -> list[dict[str, Any]]:
    """Train what the paper's second table holds, each for its share of the time; what is in ``out`` goes on.

    Every run leaves its checkpoint, the results of the epochs so far with the
    accuracy on the test set, and its curve, in a folder of its own.
    """
    from organics_train import Config, train

    began, rows = time.monotonic(), []
    for k, (task, model, n) in enumerate(PAPER_RUNS):
        folder = out / f"{task}-{model}-{n}"
        until = time.monotonic() + (seconds - (time.monotonic() - began)) / (len(PAPER_RUNS) - k)
        settings = {"task": task, "model": model, "hidden": n, "device": device, **given}
        done: list[int] = []

        class Enough(Exception):
            pass

        def after(record: dict[str, Any], until: float = until, done: list[int] = done, enough: Any = Enough) -> None:
            done.append(record["epoch"])
            if time.monotonic() + 1.5 * record["seconds"] > until:  # the evaluation takes its time, too
                raise enough

        row: dict[str, Any] = {"task": task, "model": model, "hidden": n}
        with attempt(row):
            with contextlib.suppress(Enough):
                train(Config(**{"epochs": 100, **settings}), folder, resume=True, on_epoch=after)
            if done and done[-1] < 100:  # a run of as many epochs as there are is complete: it is tested
                train(Config(**{"epochs": done[-1], **settings}), folder, resume=True)
            results = json.loads((folder / "results.json").read_text())
            row |= {"parameters": results["parameters"], "epochs": len(results["epochs"])}
            row |= {"seconds": results["seconds"], "test accuracy": results["test_accuracy"]}
        rows.append(row)
        keep(rows)
    return rows


# --- the record


def counts_text(run: dict[str, Any]) -> str:
    """Of one run of tests."""
    return f"{run.get('passed', 0)} passed, {run.get('failed', 0)} failed, {run.get('error', 0)} errors"


def markdown(record: dict[str, Any]) -> str:
    """A short table for the documentation."""
    lines = [
        f"Measured on {record['device']}, {record['date']}; " + ", ".join(map(" ".join, record["versions"].items()))
    ]
    lines.append("")
    for name, run in record.get("tests", {}).items():
        result = "passed" if run["ok"] else "did not pass"
        lines.append(f"- tests, {name}: {result} ({counts_text(run)})")
    lines += [f"- {name}: {error}".splitlines()[0] for name, error in record.get("errors", {}).items()]
    if "agreement" in record:
        lines.append(f"- agreement: {'all within bounds' if record['agreement']['ok'] else 'beyond its bounds'}")
    training_rows = record.get("training", []) + record.get("jax training", [])
    for rows in (
        training_rows,
        *(record.get(name, []) for name in ("parallel", "batches", "stream", "simulation", "paper")),
    ):
        if rows:
            names = list(dict.fromkeys(key for row in rows for key in row if key not in ("flop", "bytes")))
            lines += ["", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
            lines += ["| " + " | ".join(shown(row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """One cell."""
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")


def fractions(rows: list[dict[str, Any]], limits: dict[str, float]) -> None:
    """Add the fraction of the larger of two limits, products in tf32 and bytes moved, that every row reaches."""
    for row in rows:
        if "flop" in row and "seconds" in row:
            least = max(row["flop"] / limits["tf32 products, flop/s"], row["bytes"] / limits["memory, bytes/s"])
            row["fraction of limit"] = least / row["seconds"]


def write_whole(file: Path, text: str) -> None:
    """Write a file at once, by the core, which is on the path of ``main`` and of its children."""
    from organics_core.io.atomic import write_atomically

    write_atomically(file, lambda part: part.write(text.encode()))


def child(piece: str, into: Path, out: Path, seconds: float) -> None:
    """Do one piece, and keep its result so far in a file, as the parent reads it."""

    def keep(result: Any) -> None:
        write_whole(into, json.dumps(result))

    sizes = Sizes()
    calls: dict[str, Callable[[], Any]] = {
        "ceilings": lambda: ceilings("cuda"),
        "training": lambda: training("cuda", sizes, keep),
        "jax training": lambda: jax_training(sizes, keep),
        "parallel": lambda: parallel("cuda", sizes, keep),
        "batches": lambda: batches("cuda", sizes, keep),
        "stream": lambda: stream("cuda", sizes, keep),
        "simulation": lambda: simulation(sizes, keep=keep),
        "agreement": agreement,
        "paper": lambda: paper(out, seconds, keep=keep),
    }
    keep(calls[piece]())


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    known = dict.fromkeys((*PARTS, *BUDGETS))
    parser.add_argument("--wheels", type=Path, help="folder of pure-Python wheels to use")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the record")
    parser.add_argument("--skip", default="", help=f"parts to leave out, of {', '.join(known)}; with commas")
    parser.add_argument("--only", default="", help="parts to take instead")
    parser.add_argument("--seconds", type=float, default=LIMIT_SECONDS, help="for everything; 570 by default")
    parser.add_argument("--paper", type=float, metavar="SECONDS", help="train the paper's tables, and nothing else")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(options.child, options.into, options.out, options.seconds)
        return 0
    skipped = set(filter(None, options.skip.split(",")))
    only = set(filter(None, options.only.split(",")))
    for name, parts in (("--skip", skipped), ("--only", only)):
        if parts - set(known):
            parser.error(f"{name}: unknown part {min(parts - set(known))!r}; choose from {', '.join(known)}")
    names = {part: {part, GROUPS.get(part, part)} for part in known}
    chosen = {part for part in known if not names[part] & skipped and (not only or names[part] & only)}
    with tempfile.TemporaryDirectory() as folder:
        path = prepare(options.wheels, Path(folder))
        sys.path[:0] = path
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        device = cuda_device()
        if device is None:
            print("No CUDA device is visible: nothing was run.", file=sys.stderr)
            return 2
        signal.signal(signal.SIGTERM, end_all)
        return run_pieces(device, options, chosen, environment)


def run_pieces(device: str, options: argparse.Namespace, chosen: set[str], environment: dict[str, str]) -> int:
    """Every piece in a process of its own; the record after each; the exit code.

    A piece's rows are in a file beside the record until they are in it, also where this process is killed: the next
    call of the day puts them there.
    """
    began = time.monotonic()
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / ("gpu-" + re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + f"-{date}")
    old, shown_at = stem.with_suffix(".json"), stem.with_suffix(".md")
    record: dict[str, Any] = json.loads(old.read_text()) if old.exists() else {}
    record |= {"device": device, "date": date, "versions": versions()}
    failed, one_at_a_time = False, threading.Lock()

    def rows_of(piece: str) -> Path:
        return stem.with_name(f"{stem.name}-{piece.replace(' ', '-')}.rows.json")

    def take(piece: str) -> bool:
        """Put a piece's rows into the record; whether there were any."""
        there = rows_of(piece).exists()
        if there:
            record[piece] = json.loads(rows_of(piece).read_text())
        return there

    def left() -> float:
        return options.seconds - (time.monotonic() - began)

    def say(what: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {what}", flush=True)

    def write() -> None:
        if "ceilings" in record:
            fractions(record.get("training", []) + record.get("jax training", []), record["ceilings"])
        compare_with_kernel(record)
        for file, text in ((old, json.dumps(record, indent=1) + "\n"), (shown_at, markdown(record))):
            write_whole(file, text)
        for piece in (*BUDGETS, "paper"):
            rows_of(piece).unlink(missing_ok=True)  # they are in the record

    def one(piece: str, seconds: float) -> bool:
        into = rows_of(piece)
        command = [sys.executable, str(Path(__file__).resolve()), "--child", piece, "--into", str(into)]
        command += ["--out", str(options.out.resolve() / "paper"), "--seconds", str(max(1.0, seconds - 30))]
        code, output = limited(command, environment, seconds)
        with one_at_a_time:
            take(piece)
            record.setdefault("errors", {}).pop(piece, None)
            if code != 0:
                reason = f"stopped after {seconds:.0f} s" if code is None else f"exit code {code}"
                record["errors"][piece] = f"{reason}\n{output[-2000:]}"
                say(f"{piece}: {reason}\n{output[-2000:]}")
            write()
        return code == 0

    pieces = ["paper"] if options.paper else [piece for piece in BUDGETS if piece in chosen]
    tests = TEST_RUNS if "tests" in chosen and not options.paper else ()

    def measured(piece: str) -> bool:
        say(piece)
        budget = options.paper + 30 if options.paper else min(BUDGETS[piece], left())
        return budget >= 1 and one(piece, budget)

    for piece in (*BUDGETS, "paper"):
        if take(piece):
            record.setdefault("errors", {})[piece] = "the script was ended meanwhile"
    write()

    for piece in [piece for piece in pieces if piece != "agreement"]:
        failed |= not measured(piece)
    with ThreadPoolExecutor(1 + len(TEST_RUNS)) as pool:  # nothing is measured any more: side by side
        agreed = pool.submit(measured, "agreement") if "agreement" in pieces else None
        seconds = max(1.0, left() - 20)
        logs = [stem.with_name(f"{stem.name}-{name.partition(' ')[0]}.log") for name in tests]
        runs = pool.map(lambda name, log: run_tests(name, environment, seconds, log), tests, logs)
        for name, run in zip(tests, runs, strict=True):
            with one_at_a_time:
                record.setdefault("tests", {})[name] = run
            failed |= not run["ok"]
            say(f"tests, {name}: {counts_text(run)}")
        failed |= agreed is not None and not agreed.result()
    write()
    print(shown_at.read_text())
    return int(failed or not record.get("agreement", {"ok": True})["ok"])


if __name__ == "__main__":
    sys.exit(main())
