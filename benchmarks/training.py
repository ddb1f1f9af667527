"""Speed and memory of training in torch on the CPU: forward and backward passes over long sequences.

    python benchmarks/training.py [--quick] [--threads N] [--clock wall|cpu]

At the reference shapes (batch 256, one input, float32; 128 and 64 units on 784
steps, 32 units on 196), all contenders take turns in one process, so that a busy
machine slows all alike; the table shows medians and their ratios. ``floor`` is
the arithmetic of the hidden products at the rate of a large matrix product
measured in the same run. Peak memory is that of a process of its own, above
what the process needs with torch, the model and the data. On a busy machine
``--clock cpu --threads 1`` counts processor time instead of time on the wall.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import measure
import torch
from paper_cell import PaperCell

import organics_torch
from organics_torch import native, plain

BATCH = 256
CHECKPOINT_EVERY = 28
PRODUCTS = 6  # of n x n matrices in a step
CONTENDERS = ("paper's cell", "LSTM", "function", "fused", "checkpointed")


class Shape(NamedTuple):
    hidden: int
    steps: int
    lstm: float  # most that the layer may take, of an LSTM's time
    paper: float  # least that it is faster than the paper's cell
    function: float  # the same where no compiler is


SHAPES = (Shape(128, 784, 1.15, 2.6, 1.6), Shape(64, 784, 0.85, 3.5, 1.8), Shape(32, 196, 0.85, 5.0, 2.5))
LEAST_MEMORY = 0.25  # of the paper's cell
CHECKPOINTED_MEGABYTES = 100
CHECKPOINTED_TIME = 1.5


def contender(name: str, shape: Shape) -> Callable[[], None]:
    """One forward and backward pass, to the gradients of all parameters."""
    torch.manual_seed(0)
    x = torch.randn(shape.steps, BATCH, 1)
    model: Any
    if name == "paper's cell":
        model = PaperCell(1, shape.hidden)
    elif name == "LSTM":
        model = torch.nn.LSTM(1, shape.hidden)
    else:
        implementation = "function" if name == "function" else "auto"
        every = CHECKPOINT_EVERY if name == "checkpointed" else None
        model = organics_torch.ORGaNICs(1, shape.hidden, implementation=implementation, checkpoint_every=every)

    def run() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        if name == "paper's cell":
            last = model(x)
        elif name == "LSTM":
            last = model(x)[1][0]
        else:
            last = model(x, outputs=False)[1].y
        last.square().sum().backward()

    return run


def matrix_rate(clock: Callable[[], float], size: int = 2048) -> float:
    """FLOP per second of a large matrix product: the best of several, by torch's own product and by oneDNN's."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for product in (torch.mm, plain.times):
        for _ in range(6):
            start = clock()
            product(left, right)
            best = min(best, clock() - start)
    return 2 * size**3 / best


def floor_flop(shape: Shape) -> float:
    """Of the hidden products: forward, and twice as much backward."""
    return 3.0 * PRODUCTS * 2 * shape.hidden**2 * BATCH * shape.steps


def memory(name: str, shape: Shape, threads: int) -> float:
    """Peak megabytes of two passes above those before, in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, str(shape.hidden), str(shape.steps)]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure_shape(shape: Shape, repeats: int, threads: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds and megabytes of all contenders."""
    rates = [matrix_rate(clock)]
    seconds = measure.in_turn({name: contender(name, shape) for name in CONTENDERS}, repeats, clock)
    rates.append(matrix_rate(clock))
    return {
        "hidden": shape.hidden,
        "steps": shape.steps,
        "batch": BATCH,
        "matrix_flop_per_second": max(rates),
        "floor_seconds": floor_flop(shape) / max(rates),
        "seconds": seconds,
        "megabytes": {name: memory(name, shape, threads) for name in CONTENDERS},
    }


def verdicts(shape: Shape, found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every target of this shape: what was measured, the bound, and whether it is met."""
    seconds, megabytes = found["seconds"], found["megabytes"]
    paper, lstm = seconds["paper's cell"], seconds["LSTM"]
    rows = {
        "time of the layer / LSTM": (seconds["fused"] / lstm, shape.lstm, True),
        "paper's cell / layer, time": (paper / seconds["fused"], shape.paper, False),
        "paper's cell / function, time": (paper / seconds["function"], shape.function, False),
        "memory of the layer / paper's cell": (megabytes["fused"] / megabytes["paper's cell"], LEAST_MEMORY, True),
        "memory of the checkpointed layer, MB": (megabytes["checkpointed"], CHECKPOINTED_MEGABYTES, True),
        "checkpointed / layer, time": (seconds["checkpointed"] / seconds["fused"], CHECKPOINTED_TIME, True),
    }
    return {
        name: {"measured": value, "bound": bound, "at_most": below, "met": value <= bound if below else value >= bound}
        for name, (value, bound, below) in rows.items()
    }


def show(shape: Shape, found: dict[str, Any]) -> None:
    """The table of one shape."""
    seconds, megabytes = found["seconds"], found["megabytes"]
    print(f"\n{shape.hidden} units, {shape.steps} steps, batch {BATCH}")
    print(f"  {'':16}{'seconds':>9}{'/ LSTM':>9}{'paper /':>9}{'/ floor':>9}{'peak MB':>9}{'/ paper':>9}")
    for name in CONTENDERS:
        own = seconds[name]
        ratios = own / seconds["LSTM"], seconds["paper's cell"] / own, own / found["floor_seconds"]
        share = megabytes[name] / megabytes["paper's cell"]
        numbers = "".join(f"{ratio:9.2f}" for ratio in ratios)
        print(f"  {name:16}{own:9.3f}{numbers}{megabytes[name]:9.0f}{share:9.0%}")
    rate = found["matrix_flop_per_second"] / 1e9
    print(f"  {'floor':16}{found['floor_seconds']:9.3f}   arithmetic at {rate:.0f} GFLOP/s")
    for name, verdict in found["targets"].items():
        sign = "at most" if verdict["at_most"] else "at least"
        print(
            f"  {'met ' if verdict['met'] else 'MISSED'} {name}: {verdict['measured']:.2f}, {sign} {verdict['bound']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the steps, three repetitions")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--memory", nargs=3, metavar=("CONTENDER", "HIDDEN", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        name, hidden, steps = options.memory
        run = contender(name, Shape(int(hidden), int(steps), 0, 0, 0))
        native.load()
        before = measure.megabytes("VmRSS")
        run()
        run()
        print(measure.megabytes("VmHWM") - before)
        return
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    native.load()
    results = []
    for reference in SHAPES:
        shape = reference._replace(steps=reference.steps // 4) if options.quick else reference
        found = measure_shape(shape, 3 if options.quick else 5, options.threads, clock)
        found["targets"] = verdicts(shape, found)
        show(shape, found)
        results.append(found)
    content = {
        "processor": measure.processor(),
        "threads": options.threads,
        "clock": options.clock,
        "quick": options.quick,
        "native": native.status(),
        "checkpoint_every": CHECKPOINT_EVERY,
        "shapes": results,
    }
    name = f"training-cpu-{datetime.date.today().isoformat()}{'-quick' if options.quick else ''}"
    path = measure.save(name, content, ("organics-core", "torch", "numpy"))
    print(f"\nwritten: benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
