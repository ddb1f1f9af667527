"""Speed of simulation against peers, each in its own library, at the same tolerances, over 100 tau.

Run it as ``python benchmarks/simulation.py``; it writes benchmarks/results/simulation.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import torch
from measure import in_turn, save
from scipy.integrate import solve_ivp
from torchdiffeq import odeint

import organics_core as oc
from organics_core.circuit import prepare

jax.config.update("jax_enable_x64", True)

TAU, SIGMA, RTOL, ATOL = 0.002, 0.5, 1e-6, 1e-9
TIMES = np.array([0.0, 100 * TAU])
SIZES = ((10, 1), (100, 1), (1000, 1), (10, 256), (100, 256), (1000, 256))


def problem(n: int, batch: int) -> tuple[oc.Circuit, np.ndarray]:
    """A circuit that settles for every drive: ||W_r|| = 1/2, sums of W's rows below one, drives of norm one."""
    rng = np.random.default_rng(n)
    w_r = rng.standard_normal((n, n))
    z = rng.standard_normal((batch, n))
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    circuit = oc.Circuit(0.5 * w_r / np.linalg.norm(w_r, 2), rng.random((n, n)) / n, 1.0, 1.0, SIGMA, TAU, TAU)
    return circuit, z if batch > 1 else z[0]


def with_scipy(circuit: oc.Circuit, z: np.ndarray) -> Callable[[], Any]:
    """scipy's RK45 on one flat vector, the field written for numpy."""
    w_r, w, shape = circuit.w_r.T, circuit.w.T, z.shape

    def field(t: float, x: np.ndarray) -> np.ndarray:
        y, a = x.reshape(2, *shape)
        positive = np.maximum(a, 0.0)
        dy = z - y + (1.0 - np.sqrt(positive)) * (y @ w_r)
        da = SIGMA**2 - a + (positive * y * y) @ w
        return np.concatenate([dy.ravel(), da.ravel()]) / TAU

    start = np.concatenate([np.zeros(z.size), np.full(z.size, SIGMA**2)])
    return lambda: solve_ivp(field, TIMES, start, rtol=RTOL, atol=ATOL).y[:, -1]


def with_torchdiffeq(circuit: oc.Circuit, z: torch.Tensor) -> Callable[[], Any]:
    """torchdiffeq's dopri5, the field written for torch."""
    w_r, w = circuit.w_r.T, circuit.w.T

    def field(t: torch.Tensor, x: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        y, a = x
        positive = torch.relu(a)
        dy = z - y + (1.0 - torch.sqrt(positive)) * (y @ w_r)
        da = SIGMA**2 - a + (positive * y * y) @ w
        return dy / TAU, da / TAU

    start = (torch.zeros_like(z), torch.full_like(z, SIGMA**2))
    times = torch.asarray(TIMES)
    return lambda: odeint(field, start, times, rtol=RTOL, atol=ATOL, method="dopri5")[0][-1]


def with_diffrax(circuit: oc.Circuit, z: Any) -> Callable[[], Any]:
    def field(t: Any, x: Any, arguments: Any) -> Any:
        return tuple(oc.vector_field(arguments[0], oc.State(*x), arguments[1]))

    @jax.jit
    def solve(circuit: oc.Circuit, z: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            0.0,
            TIMES[-1],
            None,
            (jnp.zeros_like(z), jnp.full_like(z, SIGMA**2)),
            args=(circuit, z),
            stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=ATOL),
            saveat=diffrax.SaveAt(t1=True),
            max_steps=None,
        ).ys[0][-1]

    return lambda: jax.block_until_ready(solve(circuit, z))


def ours(circuit: oc.Circuit, z: Any, times: Any) -> Callable[[], Any]:
    return lambda: oc.simulate(circuit, z, times, drive="constant", rtol=RTOL, atol=ATOL).state.y[-1]


def ours_compiled(circuit: oc.Circuit, z: Any, times: Any) -> Callable[[], Any]:
    run = jax.jit(lambda c, z, t: oc.simulate(c, z, t, drive="constant", rtol=RTOL, atol=ATOL).state.y[-1])
    return lambda: jax.block_until_ready(run(circuit, z, times))


def adaptive(n: int, batch: int, repeats: int) -> list[dict[str, Any]]:
    """Every library's solver against its peer on the same problem."""
    circuit, z = problem(n, batch)
    tensors = oc.Circuit(*(torch.asarray(v) if isinstance(v, np.ndarray) else v for v in circuit))
    arrays = oc.Circuit(*(jnp.asarray(v) if isinstance(v, np.ndarray) else v for v in circuit))
    pairs = {
        "numpy": (ours(circuit, z, TIMES), "scipy", with_scipy(circuit, z)),
        "torch": (
            ours(tensors, torch.asarray(z), torch.asarray(TIMES)),
            "torchdiffeq",
            with_torchdiffeq(tensors, torch.asarray(z)),
        ),
        "jax": (
            ours_compiled(arrays, jnp.asarray(z), jnp.asarray(TIMES)),
            "diffrax",
            with_diffrax(arrays, jnp.asarray(z)),
        ),
    }
    exact = oc.simulate(circuit, z, TIMES, drive="constant", rtol=1e-10, atol=1e-12).state.y[-1]
    rows = []
    for library, (mine, peer, theirs) in pairs.items():
        # scipy holds the whole batch to one tolerance, the others report states shaped like ours
        ends = (np.asarray(call()) for call in (mine, theirs))
        error, peer_error = (float(np.abs(end.reshape(-1)[: exact.size] - exact.reshape(-1)).max()) for end in ends)
        seconds = in_turn({"seconds": mine, "peer_seconds": theirs}, repeats)
        row = {
            "library": library,
            "peer": peer,
            "n": n,
            "batch": batch,
            "error": error,
            "peer_error": peer_error,
            **seconds,
        }
        rows.append({**row, "ratio": seconds["seconds"] / seconds["peer_seconds"]})
        print({k: f"{v:.3g}" if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


def fixed_steps(n: int = 10, steps: int = 10_000) -> dict[str, float]:
    """Microseconds per compiled RK4 step in jax."""
    circuit, z = problem(n, 1)
    arrays = oc.Circuit(*(jnp.asarray(v) if isinstance(v, np.ndarray) else v for v in circuit))
    times = jnp.asarray([0.0, steps * TAU / 20])
    run = jax.jit(lambda c, z, t: oc.simulate(c, z, t, method="rk4", substeps=steps, drive="constant").state.y[-1])
    seconds = in_turn({"rk4": lambda: jax.block_until_ready(run(arrays, jnp.asarray(z), times))})["rk4"]
    return {"n": n, "steps": steps, "microseconds_per_step": 1e6 * seconds / steps, "target": 2.0}


def stiff(repeats: int, n: int = 10, end: float = 5.0) -> list[dict[str, Any]]:
    """Time constants 1e6 apart: rodas5p against Radau (numpy) and Kvaerno5 (jax) at equal error.

    Every solver runs at four tolerances; the error of our run is interpolated between
    its runs to the peer's errors, in logarithms.
    """
    rng = np.random.default_rng(0)
    tau_y, tau_a = (rng.permutation(np.geomspace(1e-6, 1.0, n)) for _ in range(2))
    circuit = oc.Circuit(None, rng.random((n, n)) / n, 1.0, 1.0, SIGMA, tau_y, tau_a)
    z = rng.standard_normal(n)
    times = np.array([0.0, end])
    arrays = oc.Circuit(*(jnp.asarray(v) if isinstance(v, np.ndarray) else v for v in circuit))
    exact = oc.simulate(circuit, z, times, method="rodas5p", rtol=1e-12, atol=1e-14).state.y[-1]
    start = oc.resting_state(circuit, z)

    made, drive = prepare(np, circuit, z)  # as the loops have it: nothing is checked in a call

    def packed(t: float, x: np.ndarray) -> np.ndarray:
        y, a = x[:n], x[n:]
        positive = np.maximum(a, 0.0)
        dy = z - y + (1.0 - np.sqrt(positive)) * y
        da = SIGMA**2 - a + circuit.w @ (positive * y * y)
        return np.concatenate([dy / tau_y, da / tau_a])

    def jacobian(t: float, x: np.ndarray) -> np.ndarray:
        return made.jacobian(np, t, oc.State(x[:n], x[n:]), drive)

    def radau(rtol: float) -> np.ndarray:
        x0 = np.concatenate(start)
        return solve_ivp(packed, times, x0, "Radau", jac=jacobian, rtol=rtol, atol=1e-3 * rtol).y[:n, -1]

    def field(t: Any, x: Any, arguments: Any) -> Any:
        return tuple(oc.vector_field(arguments[0], oc.State(*x), arguments[1]))

    @jax.jit
    def kvaerno(circuit: oc.Circuit, z: Any, rtol: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field), diffrax.Kvaerno5(), 0.0, end, None, tuple(map(jnp.asarray, start)),
            args=(circuit, z), stepsize_controller=diffrax.PIDController(rtol=rtol, atol=1e-3 * rtol),
            saveat=diffrax.SaveAt(t1=True), max_steps=None,
        ).ys[0][-1]  # fmt: skip

    def compiled(rtol: float) -> Callable[[], Any]:
        run = jax.jit(lambda c, z, t: oc.simulate(c, z, t, method="rodas5p", rtol=rtol, atol=1e-3 * rtol).state.y[-1])
        return lambda: jax.block_until_ready(run(arrays, jnp.asarray(z), jnp.asarray(times)))

    def plain(rtol: float) -> Callable[[], Any]:
        return lambda: oc.simulate(circuit, z, times, method="rodas5p", rtol=rtol, atol=1e-3 * rtol).state.y[-1]

    rows = []
    levels = (1e-4, 1e-5, 1e-6, 1e-7)
    for library, peer, mine, theirs in (
        ("numpy", "scipy Radau", plain, lambda r: lambda: radau(r)),
        (
            "jax",
            "diffrax Kvaerno5",
            compiled,
            lambda r: lambda: jax.block_until_ready(kvaerno(arrays, jnp.asarray(z), r)),
        ),
    ):
        measured: dict[str, list[tuple[float, float]]] = {"mine": [], "theirs": []}
        for level in levels:
            calls = {"mine": mine(level), "theirs": theirs(level)}
            errors = {name: float(np.abs(np.asarray(call()) - exact).max()) for name, call in calls.items()}
            seconds = in_turn(calls, repeats)
            for name in calls:
                measured[name].append((errors[name], seconds[name]))
        at, took = (np.log([row[i] for row in sorted(measured["mine"])]) for i in range(2))
        for error, seconds_of_peer in measured["theirs"]:
            ours_then = float(np.exp(np.interp(np.log(error), at, took)))
            rows.append(
                {
                    "library": library, "peer": peer, "n": n, "error": error, "seconds": ours_then,
                    "peer_seconds": seconds_of_peer, "ratio": ours_then / seconds_of_peer,
                }
            )  # fmt: skip
            print({k: f"{v:.3g}" if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--largest", type=int, default=256_000, help="leave out problems with more n x batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"rk4": fixed_steps()}
    print(results["rk4"], flush=True)
    results |= {"stiff": stiff(options.repeats), "target": 1.2, "adaptive": []}
    packages = ("numpy", "scipy", "torch", "torchdiffeq", "jax", "diffrax", "organics-core")
    for n, batch in SIZES:
        if n * batch <= options.largest:
            results["adaptive"] += adaptive(n, batch, options.repeats)
            path = save("simulation", results, packages)  # after each, so that what was measured is kept
    print(path)


if __name__ == "__main__":
    main()
