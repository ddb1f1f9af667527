"""Speed and memory of training in jax on the CPU: forward and backward passes over long sequences.

    python benchmarks/training_jax.py [--quick]

Batch 256, one input, float32; 128 and 64 units on 784 steps, 32 units on 196.
``auto`` is the layer as it comes, ``reference`` a ``lax.scan`` of the core's step
differentiated by jax, ``LSTM`` Equinox's cell under the same scan. All take turns
in one process; medians. Peak memory is that of a process of its own, above what
it needs with jax, the model and the data, compilation included.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import measure

from organics_jax import ORGaNICs

BATCH = 256
SHAPES = ((128, 784, 1.70), (64, 784, 0.80), (32, 196, 0.079))
"""Units, steps, and the seconds to be reached on a machine of two cores."""
CONTENDERS = ("LSTM", "reference", "auto")
MEGABYTES = 750


def contender(name: str, hidden: int, steps: int) -> Callable[[], None]:
    """One compiled forward and backward pass, to the gradients of all parameters."""
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


def memory(name: str, hidden: int, steps: int) -> float:
    """Peak megabytes of two passes above those before, in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, str(hidden), str(steps)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the steps, three repetitions")
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
    rows = []
    for hidden, length, target in SHAPES:
        steps = length // 4 if options.quick else length
        seconds = measure.in_turn(
            {name: contender(name, hidden, steps) for name in CONTENDERS}, 3 if options.quick else 5
        )
        peak = {name: memory(name, hidden, steps) for name in CONTENDERS}
        rows.append({"hidden": hidden, "steps": steps, "seconds": seconds, "megabytes": peak, "target_seconds": target})
        print(f"\n{hidden} units, {steps} steps, batch {BATCH}")
        for name in CONTENDERS:
            print(f"  {name:12}{seconds[name]:9.3f} s{seconds[name] / seconds['LSTM']:7.2f} x LSTM{peak[name]:8.0f} MB")
        if not options.quick:
            print(f"  wanted: at most {target} s and {MEGABYTES} MB")
    name = f"training-jax-cpu-{datetime.date.today().isoformat()}{'-quick' if options.quick else ''}"
    content = {"processor": measure.processor(), "batch": BATCH, "quick": options.quick, "shapes": rows}
    path = measure.save(name, content, ("organics-core", "jax", "equinox", "numpy"))
    print(f"\nwritten: benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
