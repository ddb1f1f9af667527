"""Time of one step of one sequence, whose inputs come one by one, on the CPU.

    python benchmarks/streaming.py [--quick] [--clock wall|cpu]

Batch 1, one input, float32, one thread, no gradients. ``LSTM`` is ``nn.LSTM``
called with one step and its state, ``layer`` ours called likewise, ``stream``
what ``layer.stream()`` gives, ``without compiler`` the same by the core's step, and
``jax`` our layer of jax compiled with its parameters as constants. All take turns
in one process; the least time of each, and the ratios of these. On a busy machine
``--clock cpu`` counts processor time instead of time on the wall.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import measure
import torch

import organics_torch
from organics_torch import native

UNITS = (32, 64, 128)
CONTENDERS = ("LSTM", "layer", "stream", "without compiler", *(["jax"] if find_spec("equinox") else []))
TIMES_LSTM = 1.0
"""What ``stream`` may take, of the time of ``LSTM``."""


def contender(name: str, units: int, steps: int) -> Callable[[], Any]:
    """So many steps from the start state on."""
    torch.manual_seed(0)
    if name == "jax":
        return of_jax(units, steps)
    x = torch.randn(1, 1, 1)
    if name in ("LSTM", "layer"):
        layer = torch.nn.LSTM(1, units) if name == "LSTM" else organics_torch.ORGaNICs(1, units)

        @torch.inference_mode()
        def run() -> None:
            state = None
            for _ in range(steps):
                _, state = layer(x, state)

        return run
    stream = organics_torch.ORGaNICs(1, units, implementation="auto" if name == "stream" else "reference").stream()

    def run_stream() -> None:
        stream.reset()
        for _ in range(steps):
            stream(x[0])

    return run_stream


def of_jax(units: int, steps: int) -> Callable[[], Any]:
    """The layer of jax, compiled for one step."""
    import jax
    import jax.numpy as jnp

    import organics_jax

    layer = organics_jax.ORGaNICs(1, units, key=jax.random.key(0))
    step = jax.jit(lambda x, state: layer(x[None], state))
    x = jnp.ones((1, 1))
    _, start = step(x, None)

    def run() -> Any:
        state = start
        for _ in range(steps):
            _, state = step(x, state)
        return jax.block_until_ready(state)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps and turns")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    steps, turns = (100, 5) if options.quick else (500, 15)
    results = []
    print(f"microseconds per step (of LSTM)\n{'units':>5}" + "".join(f"{name:>24}" for name in CONTENDERS))
    for units in UNITS:
        functions = {name: contender(name, units, steps) for name in CONTENDERS}
        _, least = measure.in_turn_with_least(functions, turns, clock)
        seconds = {name: value / steps for name, value in least.items()}
        ratio = seconds["stream"] / seconds["LSTM"]
        cells = (f"{1e6 * value:.1f} ({value / seconds['LSTM']:.2f})" for value in seconds.values())
        print(f"{units:5}" + "".join(f"{cell:>24}" for cell in cells))
        verdict = {"measured": ratio, "bound": TIMES_LSTM, "at_most": True, "met": ratio <= TIMES_LSTM}
        results.append({"hidden": units, "seconds_per_step": seconds, "targets": {"step of a stream / LSTM": verdict}})
    content = {
        "processor": measure.processor(),
        "threads": 1,
        "clock": options.clock,
        "quick": options.quick,
        "native": native.status(),
        "shapes": results,
    }
    name = f"streaming-cpu-{datetime.date.today().isoformat()}{'-quick' if options.quick else ''}"
    path = measure.save(name, content, ("organics-core", "torch", "jax", "equinox", "numpy"))
    print(f"\nwritten: benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
