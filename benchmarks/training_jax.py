"""Speed and memory of training in jax on the CPU: forward and backward passes over long sequences.

    python benchmarks/training_jax.py [--quick] [--clock wall|cpu]

Batch 256, one input, float32; 128 and 64 units on 784 steps, 32 units on 196.
``auto`` is the layer as it comes, with its native step where there is a compiler;
``chunked`` what serves where there is none; ``reference`` a ``lax.scan`` of the
core's step differentiated by jax, ``LSTM`` Equinox's cell under the same scan.
``torch`` is the layer of organics_torch, ``torch checkpointed`` that with
``checkpoint_every=28``. All take turns in one process; medians, and for the ratio
to torch the least of each. Peak memory is that of a process of its own, above what
it needs with its library, the model and the data, compilation included.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import measure

from organics_jax import ORGaNICs, native

BATCH = 256
SHAPES = ((128, 784), (64, 784), (32, 196))
"""Units and steps."""
CONTENDERS = ("LSTM", "reference", "chunked", "auto", "torch", "torch checkpointed")
CHECKPOINT_EVERY = 28
TIMES_TORCH = 1.2
"""What ``auto`` may take, of the time of ``torch``."""


def contender(name: str, hidden: int, steps: int) -> Callable[[], None]:
    """One compiled forward and backward pass, to the gradients of all parameters."""
    if name.startswith("torch"):
        return of_torch(hidden, steps, CHECKPOINT_EVERY if name.endswith("checkpointed") else None)
    key, xkey = jax.random.split(jax.random.key(0))
    x = jax.random.normal(xkey, (steps, BATCH, 1))
    model: Any
    if name == "LSTM":
        model = eqx.nn.LSTMCell(1, hidden, key=key)

        def loss(model: Any, x: Any) -> Any:
            def step(state: Any, row: Any) -> tuple[Any, None]:
                return jax.vmap(model)(row, state), None

            zero = jnp.zeros((BATCH, hidden))
            return jnp.sum(jax.lax.scan(step, (zero, zero), x)[0][0] ** 2)
    else:
        model = ORGaNICs(1, hidden, key=key, implementation=name)

        def loss(model: Any, x: Any) -> Any:
            return jnp.sum(model(x)[1].y ** 2)

    slope = eqx.filter_jit(eqx.filter_grad(loss))
    return lambda: jax.block_until_ready(slope(model, x))


def of_torch(hidden: int, steps: int, checkpoint_every: int | None) -> Callable[[], None]:
    """The same in torch."""
    import torch

    import organics_torch

    x = torch.randn(steps, BATCH, 1)
    model = organics_torch.ORGaNICs(1, hidden, checkpoint_every=checkpoint_every)

    def run() -> None:
        model.zero_grad()
        model(x, outputs=False)[1].y.square().sum().backward()

    return run


def memory(name: str, hidden: int, steps: int) -> float:
    """Peak megabytes of two passes above those before, in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, str(hidden), str(steps)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the steps, three repetitions")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu where other work disturbs")
    parser.add_argument("--memory", nargs=3, metavar=("CONTENDER", "HIDDEN", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        name, hidden, steps = options.memory
        run = contender(name, int(hidden), int(steps))
        before = measure.megabytes("VmRSS")
        run()
        run()
        print(measure.megabytes("VmHWM") - before)
        return
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    rows = []
    contenders = CONTENDERS if find_spec("torch") else CONTENDERS[:-2]
    for hidden, length in SHAPES:
        steps = length // 4 if options.quick else length
        runs = {name: contender(name, hidden, steps) for name in contenders}
        seconds, least = measure.in_turn_with_least(runs, 3 if options.quick else 5, clock)
        peak = {name: memory(name, hidden, steps) for name in contenders}
        rows.append({"hidden": hidden, "steps": steps, "seconds": seconds, "megabytes": peak})
        print(f"\n{hidden} units, {steps} steps, batch {BATCH}")
        for name in contenders:
            print(f"  {name:20}{seconds[name]:9.3f} s{seconds[name] / seconds['LSTM']:7.2f} x LSTM{peak[name]:8.0f} MB")
        if "torch" in least:
            rows[-1]["auto / torch"] = ratio = least["auto"] / least["torch"]
            print(f"  {'met' if ratio <= TIMES_TORCH else 'MISSED'} auto / torch: {ratio:.2f}, at most {TIMES_TORCH}")
    name = f"training-jax-cpu-{datetime.date.today().isoformat()}{'-quick' if options.quick else ''}"
    content = {
        "processor": measure.processor(),
        "batch": BATCH,
        "quick": options.quick,
        "clock": options.clock,
        "native": native.status(),
    }
    path = measure.save(name, content | {"shapes": rows}, ("organics-core", "jax", "equinox", "torch", "numpy"))
    print(f"\nwritten: benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
