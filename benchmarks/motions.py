"""What `steady_state` says of the motion from rest, beside scipy's LSODA: how often it is right.

Run it as ``python benchmarks/motions.py [--draws 150]``; it writes benchmarks/results/motions.json. Random circuits of
1 to 20 and of 12 to 63 neurons: norm of W_r 0.5 to 5, drive 0.01 to 100. LSODA (rtol 1e-5) follows each from rest for
300 times the longer time constant (100 where it was said to move on), and for 1,500 where it has not yet done what was
said. ``settle``: it is within 1 % of the answer; ``diverge``: y or sqrt(a) passes 1e4 times the drive, and 1e4;
``move on``: after 100 time constants y still changes by more than a thousandth of its size in a time constant.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from measure import save
from scipy.integrate import solve_ivp

import organics_core as oc
from organics_core.equilibria import REASONS

TAU = 0.002
SAID = {0: "settle", 1: "settle", 3: "move on", 4: "diverge", 7: "move on", 8: "diverge"}
"""By the status of the answer; the others say nothing of the motion."""


def drawn(rng: np.random.Generator, low: int, high: int) -> tuple[oc.Circuit, np.ndarray]:
    n, norm = int(rng.integers(low, high + 1)), rng.uniform(0.5, 5.0)
    w_r, w = rng.standard_normal((n, n)), rng.random((n, n))
    slow = TAU * 10 ** rng.uniform(-1.0, 1.0)
    strength = 10 ** rng.uniform(-2.0, 2.0)
    circuit = oc.Circuit(norm * w_r / np.linalg.norm(w_r, 2), w, 0.5, 0.5, 0.1, TAU, slow)
    return circuit, strength * rng.standard_normal(n) / np.sqrt(n)


def does(circuit: oc.Circuit, z: np.ndarray, answer: np.ndarray, word: str) -> tuple[bool, bool]:
    """Whether the motion has done what was said at the first look, and at the last."""
    n, tau_a, far = len(z), float(circuit.tau_a), 1e4 * max(1.0, float(np.abs(z).max()))
    slow = max(TAU, tau_a)

    def field(t: float, x: np.ndarray) -> np.ndarray:
        y, a = x[:n], np.maximum(x[n:], 0.0)
        y_dot = (-y + 0.5 * z + (1.0 - np.sqrt(a)) * (circuit.w_r @ y)) / TAU
        return np.concatenate([y_dot, (-x[n:] + 0.05**2 + circuit.w @ (a * y * y)) / tau_a])

    def beyond(t: float, x: np.ndarray) -> float:
        return float(max(np.abs(x[:n]).max(), np.sqrt(np.abs(x[n:]).max()))) - far

    beyond.terminal = True  # type: ignore[attr-defined]

    def after(x: np.ndarray, span: float) -> tuple[np.ndarray, set[str]]:
        with np.errstate(all="ignore"):
            run = solve_ivp(field, (0.0, span * slow), x, "LSODA", rtol=1e-5, atol=1e-8, events=beyond)
        end = run.y[:, -1]
        if run.status or not np.isfinite(end).all():
            return end, {"diverge"}
        size = np.abs(end[:n]).max()
        near = bool(np.abs(end[:n] - answer).max() < 1e-2 * np.abs(answer).max())
        moves = bool(np.abs(field(0.0, end)[:n]).max() * slow > 1e-3 * size)
        return end, {name for name, holds in (("settle", near), ("move on", moves)) if holds}

    end, early = after(np.repeat([0.0, 0.05**2], n), 100.0 if word == "move on" else 300.0)
    if word in early or word == "move on" or "diverge" in early:
        return word in early, word in early
    return False, word in after(end, 1200.0)[1]


def motions(low: int, high: int, draws: int, seed: int = 3) -> dict[str, Any]:
    """How many were said to do what, and how many do."""
    rng, said, right, late, silent = np.random.default_rng(seed), Counter(), Counter(), Counter(), Counter()
    for _ in range(draws):
        circuit, z = drawn(rng, low, high)
        found = oc.steady_state(circuit, z, elsewhere=False)
        word = SAID.get(int(found.status))
        if word is None:
            silent[REASONS[int(found.status)]] += 1
            continue
        early, end = does(circuit, z, found.state.y, word)
        said[word] += 1
        right[word] += end
        late[word] += end and not early
    return {
        "circuits": draws,
        **{name: {"said": said[name], "do": right[name], "only after 300": late[name]} for name in sorted(said)},
        "nothing said": dict(silent),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=150, help="of either size; default: 150")
    draws = parser.parse_args().draws
    found = {f"{low} to {high} neurons": motions(low, high, draws) for low, high in ((1, 20), (12, 63))}
    print(found)
    print(save("motions", found, ("numpy", "scipy", "organics-core")))


if __name__ == "__main__":
    main()
