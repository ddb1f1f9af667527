"""All steps of the recurrent layer at once: iterations, errors, Lyapunov exponents and times on the CPU.

Run it as ``python benchmarks/parallel.py`` (--quick: 784 steps only); it writes benchmarks/results/parallel.json. It
wants MNIST where ``organics train`` keeps it (``ORGANICS_DATA``).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for both sides alike

import array_api_compat.torch as xp
import numpy as np
import torch
from measure import RESULTS, processor, save
from torch import Tensor, nn

import organics_torch as ot
from organics_core.parallel import growth_rate, solve_states
from organics_torch import parallel
from organics_train.checkpoint import load_checkpoint
from organics_train.datasets import load_dataset

CHECKPOINT = RESULTS / "train" / "psmnist-organics-64" / "model.safetensors"
HEAD = (
    "net", "units", "steps", "sequences", "dtype", "exponent", "iterations", "adjoint", "error", "gradient",
    "grad_seq",
    "parallel_s", "sequential_s",
)  # fmt: skip


def scaled(units: int, gain: float) -> ot.ORGaNICsClassifier:
    """A net at initialization with W_r of norm ``gain``."""
    net = ot.ORGaNICsClassifier(1, units, 10, seed=0)
    with torch.no_grad():
        net.layer.cells[0].w_r.mul_(gain)
    return net


def checkpointed() -> ot.ORGaNICsClassifier:
    """The net of the record: oscillators, variant "main", 60 epochs of psMNIST."""
    arrays, record = load_checkpoint(Path(CHECKPOINT))
    net = ot.ORGaNICsClassifier(1, 64, 10, seed=0, **record["config"]["options"])
    net.load_state_dict({name: torch.as_tensor(value) for name, value in arrays.items()})
    return net


def trained(x: np.ndarray, y: np.ndarray, steps: int) -> ot.ORGaNICsClassifier:
    """The paper's initialization after so many steps of Adam (lr 0.005, batch 64) on psMNIST."""
    net = ot.ORGaNICsClassifier(1, 64, 10, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.005, weight_decay=1e-5)
    for first in range(0, 64 * steps, 64):
        part = slice(first, first + 64)
        loss = nn.functional.cross_entropy(net(torch.as_tensor(x[part])), torch.as_tensor(y[part]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def arguments(layer: ot.ORGaNICs, x: Tensor) -> tuple[Any, ...]:
    """Of the core's solver, for inputs x (N, T, 1)."""
    (cell,) = layer.cells
    fields = cell.fields()
    return xp, fields, *cell.derived(fields), cell.start_state(len(x)), x.transpose(0, 1), cell.variant


@torch.no_grad()
def exponents(layer: ot.ORGaNICs, x: Tensor, steps: int = 2000) -> Tensor:
    """Of every sequence, over the first so many steps."""
    return growth_rate(*arguments(layer, x[:, :steps]))


@torch.no_grad()
def count(layer: ot.ORGaNICs, x: Tensor, **options: Any) -> int | None:
    """Iterations, or None where they do not converge."""
    report = solve_states(*arguments(layer, x), **options).report
    return int(report.iterations) if report.converged else None


def forward(layer: ot.ORGaNICs, x: Tensor, implementation: str, observe: Any = None) -> tuple[Tensor, float]:
    layer.implementation = implementation
    if observe is not None:
        parallel.observers.append(observe)
    try:
        begin = time.perf_counter()
        with torch.no_grad():
            output, _ = layer(x)
        return output, time.perf_counter() - begin
    finally:
        if observe is not None:
            parallel.observers.remove(observe)


def gradients(net: ot.ORGaNICsClassifier, x: Tensor, implementation: str) -> tuple[list[Tensor], list[int]]:
    """Of the sum of squares of the logits, by every parameter; iterations forwards and backwards."""
    net.layer.implementation = implementation
    counts: list[int] = []

    def observe(found, *_):
        counts.append(int(found.report.iterations) if found.report.converged else -1)

    parallel.observers.append(observe)
    try:
        return list(torch.autograd.grad(net(x).square().sum(), list(net.parameters()))), counts
    finally:
        parallel.observers.remove(observe)


def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference, relative to the largest entry of each tensor."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


def row(
    name: str, net: ot.ORGaNICsClassifier, x: Tensor, dtype: torch.dtype, *, backward: bool = True
) -> dict[str, Any]:
    """One line of the table, for inputs x (N, T, 1)."""
    net, x = net.to(dtype), x.to(dtype)
    layer = net.layer
    forward(layer, x[:, :2], "auto")
    wanted, sequential = forward(layer, x, "auto")
    reports: list[Any] = []
    found, seconds = forward(layer, x, "parallel", lambda solution, *_: reports.append(solution.report))
    report = reports[0].on_host()
    line = {
        "net": name, "units": layer.hidden_size, "steps": x.shape[1], "sequences": x.shape[0],
        "dtype": str(dtype).removeprefix("torch."), "exponent": float(exponents(layer, x).max()),
        "iterations": report.iterations if report.converged else None,
        "adjoint": None,
        "error": apart([found], [wanted]) if report.converged else None, "gradient": None, "gradient_sequential": None,
        "parallel_s": seconds, "sequential_s": sequential,
    }  # fmt: skip
    if backward:
        by_one, _ = gradients(net, x, "auto")
        mine, counts = gradients(net, x, "parallel")
        right, _ = gradients(net.double(), x.double(), "auto")
        line |= {
            "gradient": apart(mine, right), "gradient_sequential": apart(by_one, right),
            "adjoint": counts[1] if len(counts) > 1 and counts[1] > 0 else None,
        }  # fmt: skip
    net.float()
    print(
        " ".join(f"{value:10.3g}" if isinstance(value, float) else f"{value!s:>10}" for value in line.values()),
        flush=True,
    )
    return line


def by_image(net: ot.ORGaNICsClassifier, x: Tensor) -> dict[str, Any]:
    """Exponent and iterations of every image by itself, float32."""
    damped = [count(net.layer, one[None], largest_update=1.0) for one in x]
    free = [count(net.layer, one[None], largest_update=None) for one in x]
    values = exponents(net.layer, x).tolist()
    return {
        "images": len(x), "exponents": values, "iterations": damped, "undamped": free,
        "converged": sum(each is not None for each in damped),
        "converged_undamped": sum(each is not None for each in free),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="784 steps only, and no training")
    parser.add_argument("--rows", action="store_true", help="the table of rows again, the rest from the record")
    given = parser.parse_args()
    quick = given.quick
    data = load_dataset("psmnist")
    images = torch.as_tensor(data.x_test[:30])
    nets: dict[str, Any] = {"60 epochs": checkpointed()}
    if not quick:
        nets["250 steps"] = trained(data.x_train, data.y_train, 250)
    content: dict[str, Any] = {"processor": processor(), "threads": 1}
    if given.rows:
        content |= json.loads((RESULTS / "parallel.json").read_text(encoding="utf-8"))
        del content["versions"]
    else:
        content["images"] = {name: by_image(net, images) for name, net in (*nets.items(), ("norm 1", scaled(64, 1.0)))}
        print({name: (found["converged"], found["converged_undamped"]) for name, found in content["images"].items()})
        content["gains"] = [
            {
                "gain": gain, "exponent": float(exponents(net.layer, images[:4]).max()),
                "iterations": count(net.layer, images[:4]),
                "undamped": count(net.layer, images[:4], largest_update=None),
            }
            for gain, net in ((gain, scaled(64, gain)) for gain in (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0))
        ]  # fmt: skip
        print(*content["gains"], sep="\n", flush=True)
    print(" ".join(f"{name:>10}" for name in HEAD))
    long = torch.as_tensor(np.resize(data.x_test[:256].reshape(-1), 10**5)).reshape(1, -1, 1)
    lines = [row(name, net, images[:8], torch.float32) for name, net in nets.items()]
    if not quick:
        lines.append(row("250 steps", nets["250 steps"], long[:, : 10**4], torch.float32))
        lines.append(row("250 steps", nets["250 steps"], long, torch.float32, backward=False))
    for units in (32, 64):
        for gain in (1.0, 2.0, 4.0):
            net, name = scaled(units, gain), f"norm {gain:g}"
            lines += [row(name, net, images[:8], dtype) for dtype in (torch.float32, torch.float64)]
            if not quick:
                precisions = (torch.float32, torch.float64) if units == 32 else (torch.float32,)
                lines += [row(name, net, long[:, : 10**4], dtype) for dtype in precisions]
                lines.append(row(name, net, long, torch.float32, backward=False))
    content["rows"] = lines
    if not quick:
        many = torch.as_tensor(np.resize(data.x_test[:400].reshape(-1), 30 * 10**4)).reshape(30, 10**4, 1)
        counts = [count(nets["250 steps"].layer, one[None], largest_update=1.0) for one in many]
        content["long"] = {"250 steps": {"sequences": len(many), "steps": 10**4, "iterations": counts}}
    print(save("parallel", content, ("torch", "numpy")))


if __name__ == "__main__":
    main()
