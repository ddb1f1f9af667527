"""Learning rates and gradients of the torch layer beside nn.LSTM, nothing clipped, for docs/how-to/from-lstm.md.

Run it as ``python benchmarks/learning_rates.py``; it writes benchmarks/results/learning-rates.json. ``loss``: after 60
steps of Adam, 64 sequences of 8 inputs, 32 units, seed 0. ``norms``: the largest norm of the gradient in eight epochs
on the rows of scikit-learn's 8 x 8 digits (1,500 sequences, batches of 128, 64 units), and in four on their 64 pixels
one by one; minus the number of the first step whose gradient is not finite, where there is one.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from measure import save
from sklearn.datasets import load_digits
from torch import nn

from organics_torch import ORGaNICs

FAST = (1.0, 0.5, 0.1)
RATES = ("nn.LSTM", "default", "auto", "fast")


def layer(name: str, inputs: int, units: int, steps: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if name == "nn.LSTM":
        return nn.LSTM(inputs, units, batch_first=True)
    rates: dict[str, Any] = {"default": {}, "auto": {"max_rates": "auto", "steps": steps}, "fast": {"max_rates": FAST}}
    return ORGaNICs(inputs, units, batch_first=True, seed=seed, **rates[name])


def gradient_norm(parameters: list[torch.Tensor]) -> float:
    return float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())


def loss(task: str, steps: int, rate: float, name: str) -> float:
    """Cross entropy after 60 steps of Adam."""
    draw = torch.Generator().manual_seed(1)
    if task == "sign of the mean":
        mean = torch.randn(64, 1, 1, generator=draw).sign()
        x = mean + torch.randn(64, steps, 8, generator=draw)
        classes, labels = 2, (mean[:, 0, 0] > 0).long()
    else:
        x = torch.randn(64, steps, 8, generator=draw)
        classes, labels = 4, torch.randint(4, (64,), generator=draw)
    net, readout = layer(name, 8, 32, steps, 0), nn.Linear(32, classes)
    optimizer = torch.optim.Adam([*net.parameters(), *readout.parameters()], lr=rate)
    for _ in range(60):
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(readout(net(x)[0][:, -1]), labels)
        value.backward()
        optimizer.step()
    return float(nn.functional.cross_entropy(readout(net(x)[0][:, -1]), labels).detach())


def largest_norm(pixels: bool, rate: float, name: str, seed: int) -> float:
    """Of the layer's gradient; minus the number of the first step that is not finite, where there is one."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:1500] / 16, dtype=torch.float32).reshape(1500, *((64, 1) if pixels else (8, 8)))
    y = torch.tensor(labels[:1500])
    net = layer(name, x.shape[-1], 64, x.shape[1], seed)
    readout = nn.Linear(64, 10)
    optimizer = torch.optim.Adam([*net.parameters(), *readout.parameters()], lr=rate)
    largest, step = 0.0, 0
    for _ in range(4 if pixels else 8):
        for batch in torch.randperm(1500).split(128):
            step += 1
            optimizer.zero_grad()
            nn.functional.cross_entropy(readout(net(x[batch])[0][:, -1]), y[batch]).backward()
            norm = gradient_norm(list(net.parameters()))
            if not math.isfinite(norm):
                return -step
            largest = max(largest, norm)
            optimizer.step()
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"loss": [], "norms": []}
    for task, steps, rate in (
        *(("sign of the mean", steps, rate) for steps, rate in ((8, 0.01), (8, 0.001), (30, 0.01))),
        *(("memorize", steps, 0.01) for steps in (8, 30)),
    ):
        losses = {name: loss(task, steps, rate, name) for name in RATES}
        found["loss"].append({"task": task, "steps": steps, "learning rate": rate, **losses})
        print(found["loss"][-1], flush=True)
    for rate in (0.001, 0.01, 0.1, 1.0, 10.0):
        row: dict[str, Any] = {"learning rate": rate}
        for steps, names in ((8, RATES), (64, ("nn.LSTM", "auto"))):
            for name in names:
                seeds = ({8: 3, 64: 2}[steps]) if name == "auto" else 1
                row[f"{name}, {steps} steps"] = [largest_norm(steps == 64, rate, name, seed) for seed in range(seeds)]
        found["norms"].append(row)
        print(row, flush=True)
    print(save("learning-rates", found, ("organics-core", "torch", "scikit-learn")))


if __name__ == "__main__":
    main()
