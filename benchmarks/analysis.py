"""Newton and eigenvalues against simulation, the certificate against eigenvalues, throughput of a sweep.

Run it as ``python benchmarks/analysis.py``; it writes benchmarks/results/analysis.json.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

# for both sides alike: two threads slow down products and factorizations of 100 x 100
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from measure import in_turn, in_turn_with_least, save
from scipy.integrate import solve_ivp

import organics_core as oc
from organics_core.analysis.classification import KINDS
from organics_core.equilibria import REASONS

TAU = 0.002


def circuit(n: int) -> oc.Circuit:
    return oc.Circuit(None, np.full((n, n), 1.0 / n), 1.0, 1.0, 0.1, TAU, TAU)


def drawn(n: int, delta: float, seed: int) -> tuple[oc.Circuit, np.ndarray]:
    base = circuit(n)
    z = np.random.default_rng(seed).standard_normal(n)
    return base._replace(w_r=oc.random_recurrence(n, delta, seed=seed, like=base.w)), z / np.linalg.norm(z)


def simulate_until_settled(one: oc.Circuit, z: np.ndarray, chunks: int = 40) -> tuple[oc.State, int]:
    """Chunks of 100 tau of Euler steps of tau/20, until a chunk changes the state by less than 1e-6 of its size."""
    state = oc.resting_state(one, z)
    count = 0
    while count < chunks:
        count += 1
        run = oc.simulate(one, z, np.array([0.0, 100 * TAU]), state0=state, method="euler", substeps=2000)
        last, state = state, oc.State(run.state.y[-1], run.state.a[-1])
        change = max(np.abs(state.y - last.y).max(), np.abs(state.a - last.a).max())
        if change < 1e-6 * max(np.abs(state.y).max(), state.a.max()):
            break
    return state, count


def classification(n: int = 100, draws: int = 3) -> dict[str, object]:
    """Per circuit at n = 100, seconds by either path, and whether they agree: one pool for all, and random pools."""
    return {"n": n, "target": 50.0, **{pool: _classified(n, draws, pool) for pool in ("shared_pool", "random_pools")}}


def _classified(n: int, draws: int, pool: str) -> dict[str, object]:
    rows = []
    for delta in (0.1, 0.3, 0.5):
        for seed in range(draws):
            one, z = drawn(n, delta, seed)
            if pool == "random_pools":
                one = one._replace(w=2.0 / n * np.random.default_rng(seed).random((n, n)))
            kept: dict[str, Any] = {}
            seconds = in_turn(
                {
                    "classify_s": lambda one=one, z=z, kept=kept: kept.update(found=oc.classify(one, z)),
                    "simulation_s": lambda one=one, z=z, kept=kept: kept.update(settled=simulate_until_settled(one, z)),
                },
                repeats=3,
            )
            found, (state, chunks) = kept["found"], kept["settled"]
            gap = float(np.abs(state.y - found.state.y).max() / np.abs(state.y).max())
            rows.append({
                "delta": delta, "seed": seed, **seconds, "chunks": chunks, "kind": KINDS[int(found.kind)],
                "simulated": bool(found.simulated), "distance": gap,
                "ratio": seconds["simulation_s"] / seconds["classify_s"],
            })  # fmt: skip
    total = sum(row["simulation_s"] for row in rows) / sum(row["classify_s"] for row in rows)
    agree = all(row["kind"] == "fixed point" and row["distance"] < 1e-4 for row in rows)
    return {"ratio": total, "agree": agree, "circuits": rows}


def newton(n: int = 100, draws: int = 5) -> dict[str, object]:
    """Newton's method for ||W_r|| = 1 and random pools against the same simulation, at the fixed point of both."""
    rows = []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        w_r, z = rng.standard_normal((n, n)), rng.standard_normal(n)
        w = 2.0 / n * rng.random((n, n))
        one = circuit(n)._replace(w_r=w_r / np.linalg.norm(w_r, 2), w=w)
        z = z / np.linalg.norm(z)
        kept: dict[str, Any] = {}
        seconds = in_turn(
            {
                "newton_s": lambda one=one, z=z, kept=kept: kept.update(found=oc.steady_state(one, z, method="newton")),
                "simulation_s": lambda one=one, z=z, kept=kept: kept.update(settled=simulate_until_settled(one, z)),
            },
            repeats=3,
        )
        found, (state, _) = kept["found"], kept["settled"]
        rows.append({
            "seed": seed, **seconds, "iterations": int(found.iterations), "residual": float(found.residual),
            "distance": float(np.abs(state.y - found.state.y).max() / np.abs(state.y).max()),
        })  # fmt: skip
    total = sum(row["simulation_s"] for row in rows) / sum(row["newton_s"] for row in rows)
    return {"n": n, "ratio": total, "agree": all(row["distance"] < 1e-4 for row in rows), "circuits": rows}


def attracting(draws: int = 300) -> dict[str, object]:
    """What it costs to look for an attracting point: steady_state against Newton's method alone, processor time.

    n from 1 to 20, norm of W_r 0.5 to 5, drive 0.01 to 100, and by how the answer was come by.
    """
    rng, rows = np.random.default_rng(11), []
    for _ in range(draws):
        n, norm = int(rng.integers(1, 21)), rng.uniform(0.5, 5.0)
        w_r, strength, w = rng.standard_normal((n, n)), 10 ** rng.uniform(-2.0, 2.0), rng.random((n, n))
        one = oc.Circuit(norm * w_r / np.linalg.norm(w_r, 2), w, 0.5, 0.5, 0.1, TAU, TAU * 10 ** rng.uniform(-1.0, 1.0))
        z = strength * rng.standard_normal(n) / np.sqrt(n)
        ways: dict[str, Any] = {
            "attracting": lambda one=one, z=z: oc.steady_state(one, z),
            "newton_alone": lambda one=one, z=z: oc.steady_state(one, z, attracting=False),
        }
        rows.append((int(oc.steady_state(one, z).status), in_turn_with_least(ways, 3, time.process_time)[1]))

    def summed(some: list[dict[str, float]]) -> dict[str, float]:
        middle = {f"{name}_ms": 1e3 * float(np.median([row[name] for row in some])) for name in some[0]}
        ratio = middle["attracting_ms"] / middle["newton_alone_ms"]
        mean = 1e3 * float(np.mean([row["attracting"] for row in some]))
        return {"circuits": len(some), **middle, "ratio": ratio, "attracting_mean_ms": mean}

    by_status = {
        REASONS[code]: summed([row for at, row in rows if at == code]) for code in sorted({at for at, _ in rows})
    }
    return {**summed([row for _, row in rows]), "by_status": by_status}


def reaching(draws: int = 24) -> dict[str, object]:
    """Larger circuits with strong recurrence, where a motion is followed: against LSODA from rest over 200 time
    constants at rtol 1e-3, processor time, of those that settle; and where LSODA is after 4,000 of them."""
    found: dict[str, object] = {}
    for low, high in ((21, 64), (65, 150)):
        rng, rows, agree = np.random.default_rng(5), [], 0
        for _ in range(draws):
            n, norm = int(rng.integers(low, high + 1)), rng.uniform(1.5, 4.0)
            w_r, w = rng.standard_normal((n, n)), rng.random((n, n)) / n
            slow = TAU * 10 ** rng.uniform(-0.5, 0.5)
            one = oc.Circuit(norm * w_r / np.linalg.norm(w_r, 2), w, 0.5, 0.5, 0.1, TAU, slow)
            z = 10 ** rng.uniform(-1.5, 0.5) * rng.standard_normal(n)
            point = oc.steady_state(one, z, elsewhere=False)
            if point.status > 1:
                continue

            ways: dict[str, Any] = {
                "steady_state": partial(oc.steady_state, one, z, elsewhere=False),
                "lsoda": partial(_simulated, one.w_r, w, z, slow, 200.0, 1e-3),
            }
            rows.append(in_turn_with_least(ways, 2, time.process_time)[1])
            off = np.abs(_simulated(one.w_r, w, z, slow, 4000.0, 1e-6) - point.state.y).max()
            agree += int(off < 1e-2 * np.abs(point.state.y).max())
        middle = {f"{name}_ms": 1e3 * float(np.median([row[name] for row in rows])) for name in rows[0]}
        ratio = float(np.median([row["lsoda"] / row["steady_state"] for row in rows]))
        found[f"{low} to {high}"] = {"circuits": draws, "settle": len(rows), "alike": agree, **middle, "ratio": ratio}
    return found


def _simulated(w_r: np.ndarray, w: np.ndarray, z: np.ndarray, tau_a: float, longest: float, rtol: float) -> np.ndarray:
    """y after so many of the longer time constants, from rest, by scipy, the equations as one would type them."""
    n = len(z)

    def field(t: float, x: np.ndarray) -> np.ndarray:
        y, a = x[:n], np.maximum(x[n:], 0.0)
        y_dot = (-y + 0.5 * z + (1.0 - np.sqrt(a)) * (w_r @ y)) / TAU
        return np.concatenate([y_dot, (-x[n:] + 0.05**2 + w @ (a * y * y)) / tau_a])

    end = longest * max(TAU, tau_a)
    run = solve_ivp(field, (0.0, end), np.repeat([0.0, 0.05**2], n), "LSODA", rtol=rtol, atol=1e-3 * rtol)
    return run.y[:n, -1]


def certificate(n: int = 1000) -> dict[str, float]:
    """The certificate, with and without its Lyapunov matrices, against the eigenvalues of the Jacobian."""
    rng = np.random.default_rng(0)
    base = circuit(n)._replace(w=2.0 / n * rng.random((n, n)))
    z = rng.standard_normal(n)
    state = oc.steady_state(base, z).state
    seconds = in_turn(
        {
            "certify": lambda: oc.certify(base, z, lyapunov=False),
            "certify_with_matrices": lambda: oc.certify(base, z),
            "eigenvalues": lambda: oc.spectral_abscissa(base, state),
        },
        repeats=1,
    )
    ratios = {f"eigenvalues_over_{name}": seconds["eigenvalues"] / seconds[name] for name in list(seconds)[:2]}
    return {"n": n, **seconds, **ratios}


def throughput() -> dict[str, float]:
    """Circuits per second of a sweep at n = 50, in one process and on all cores, their start of 0.3 s included."""
    import organics_sweep

    spec = organics_sweep.Sweep(n=50, deltas=(0.1, 0.2, 0.4), norms=(1.0, 3.0), draws=400, block=25)
    circuits, seconds = int(np.prod(spec.shape)), {}
    for name, workers in (("one_process", 0), ("all_cores", None)):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            organics_sweep.run(spec, Path(folder) / "store", workers=workers)
            seconds[name] = circuits / (time.perf_counter() - start)
    return {
        "n": 50,
        "circuits": circuits,
        "cores": os.cpu_count() or 1,
        **{f"{k}_per_s": v for k, v in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    results = {}
    for part in (classification, newton, attracting, reaching, certificate, throughput):
        results[part.__name__] = part()
        print(part.__name__, results[part.__name__], flush=True)
    print(save("analysis", results, ("numpy", "organics-core", "zarr")))


if __name__ == "__main__":
    main()
