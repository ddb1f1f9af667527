"""Normalization layers in torch, on the CPU: processor time beside torch's own norms, and the scale of a stack.

Run it as ``python benchmarks/normalization.py``; it writes benchmarks/results/normalization.json. Times: one forward
and backward pass over an input of (16, 32, 32, 32), one thread, the least of 15 turns. Scale: six ``DivisiveNorm2d`` of
16 channels on noise, a mean over pixels, a linear readout and cross entropy; over layers and seeds the least and the
largest mean output, and the least and the largest norm of a layer's gradient.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from typing import Any

import measure
import torch
from torch import nn

from organics_torch import DivisiveNorm2d, DivisiveNormalization

SHAPE = (16, 32, 32, 32)


def times() -> dict[str, float]:
    """Milliseconds of processor time by layer."""
    torch.manual_seed(0)
    channels = SHAPE[1]
    layers = {
        "nn.BatchNorm2d": nn.BatchNorm2d(channels),
        "nn.Conv2d, 3 x 3": nn.Conv2d(channels, channels, 3, padding=1),
        "nn.LocalResponseNorm": nn.LocalResponseNorm(5),
        **{f"pool={pool!r}": DivisiveNormalization(channels, pool=pool) for pool in ("channels", "space", "both")},
    }
    x = torch.randn(SHAPE, requires_grad=True)
    turns: dict[str, Any] = {name: lambda layer=layer: layer(x).sum().backward() for name, layer in layers.items()}
    least = measure.in_turn_with_least(turns, 15, time.process_time)[1]
    return {name: 1e3 * seconds for name, seconds in least.items()}


def scale(pixels: int, kind: str, seeds: int = 3) -> dict[str, list[float]]:
    """The range of mean outputs and of gradient norms over six layers and the seeds."""
    outputs, norms = [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        widths = [3] + [16] * 6
        layers = [DivisiveNorm2d(k, n, 3, padding="same", scale=kind) for k, n in pairwise(widths)]
        readout = nn.Linear(16, 10)
        y = torch.randn(32, 3, pixels, pixels)
        for layer in layers:
            y = layer(y)
            outputs.append(float(y.detach().mean()))
        nn.functional.cross_entropy(readout(y.mean((-2, -1))), torch.arange(32) % 10).backward()
        grads = [[p.grad.norm() for p in layer.parameters() if p.grad is not None] for layer in layers]
        norms += [float(torch.stack(of).norm()) for of in grads]
    return {"mean output": [min(outputs), max(outputs)], "gradient norm": [min(norms), max(norms)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"threads": 1, "clock": "processor", "shape": SHAPE, "milliseconds": times()}
    found["stack"] = {f"{p} pixels, scale={k!r}": scale(p, k) for k in ("rms", "norm") for p in (16, 32)}
    print(found)
    print(measure.save("normalization", found, ("organics-core", "torch")))


if __name__ == "__main__":
    main()
