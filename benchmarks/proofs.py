"""Proofs of stability: how many circuits are decided, how many wrongly, how long it takes, whether basins return.

Run it as ``python benchmarks/proofs.py [decided|false|basins|times ...]``; all by default, hours at the paper's
counts, minutes with ``--quick``. It writes benchmarks/results/proofs.json. Needs mpmath for ``false``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from measure import save

import organics_core as oc

DIGITS = 50


class Drawn(NamedTuple):
    """A circuit, its drive, a state near a fixed point (None: whatever is found), and where it comes from."""

    circuit: oc.Circuit
    z: Any
    state: oc.State | None
    kind: str
    variant: str = "main"


def draw(rng: np.random.Generator, n: int, *, norm: float = 1.0, drive: float = 1.0) -> tuple[oc.Circuit, Any]:
    """A random circuit with a largest singular value of W_r of ``norm``, and a drive of that norm."""
    w_r = rng.standard_normal((n, n))
    z = rng.standard_normal(n)
    circuit = oc.Circuit(
        norm * w_r / np.linalg.norm(w_r, 2),
        rng.uniform(0.0, 1.0, (n, n)),
        rng.uniform(0.2, 1.0, n),
        rng.uniform(0.2, 1.0, n),
        rng.uniform(0.1, 0.5, n),
        rng.uniform(1e-3, 3e-3, n),
        rng.uniform(1e-3, 3e-3, n),
    )
    return circuit, drive * z / np.linalg.norm(z)


def near_hopf(rng: np.random.Generator, n: int = 2) -> Drawn:
    """Where the drive makes a fixed point lose its stability, off the border by a relative 1e-3 to 1e-15."""

    def unstable(strength: float) -> bool:
        found = oc.steady_state(circuit, strength * z, variant="main")
        return bool(found.converged) and float(oc.spectral_abscissa(circuit, found.state)) > 0.0

    while True:
        circuit, z = draw(rng, n, norm=rng.uniform(1.0, 5.0))
        low, high = 1e-2, 30.0
        if unstable(low) or not unstable(high):
            continue
        while high / low > 1.0 + 1e-15:
            middle = np.sqrt(low * high)
            if middle in (low, high):
                break
            low, high = (low, middle) if unstable(middle) else (middle, high)
        z = high * (1.0 + rng.choice((-1.0, 1.0)) * 10.0 ** rng.uniform(-15.0, -3.0)) * z
        found = oc.steady_state(circuit, z)
        if bool(found.converged):
            return Drawn(circuit, z, found.state, "near Hopf")


def near_fold(rng: np.random.Generator, n: int) -> Drawn:
    """A circuit made for a fixed point that a real eigenvalue is about to make unstable, off by 1e-3 to 1e-15."""
    while True:
        base, direction = draw(rng, n, norm=rng.uniform(1.0, 5.0))
        a = rng.uniform(0.05, 2.0, n)

        def made(size: float, base: oc.Circuit = base, direction: Any = direction, a: Any = a) -> Drawn:
            """b0 and z such that y = size * direction and a are fixed."""
            y = size * direction
            floor = a - base.w @ (a * y * y)
            z = (y - (1.0 - np.sqrt(a)) * (base.w_r @ y)) / base.b
            circuit = base._replace(b0=np.sqrt(floor) / base.sigma)
            return Drawn(circuit, z, oc.State(y, a), "near fold")

        def leading(size: float, made: Any = made) -> complex:
            found = oc.spectrum(made(size).circuit, made(size).state)
            return complex(found[np.argmax(found.real)])

        low, high = 1e-6, np.sqrt(0.999 * np.min(a / (base.w @ (a * direction**2))))
        if leading(low).real > 0.0 or leading(high).real < 0.0:
            continue
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if leading(middle).real > 0.0 else (middle, high)
        if leading(low).imag == 0.0:
            return made(low * (1.0 + rng.choice((-1.0, 1.0)) * 10.0 ** rng.uniform(-15.0, -3.0)))


def circuits(rng: np.random.Generator) -> Iterator[Drawn]:
    """Of every kind in turn: ordinary, strong recurrence, strong drive, near-Hopf, near-fold, rectified."""
    while True:
        n = int(rng.integers(1, 5))
        yield Drawn(*draw(rng, n), None, "ordinary")
        yield Drawn(*draw(rng, n, norm=rng.uniform(1.0, 5.0)), None, "strong recurrence")
        yield Drawn(*draw(rng, n, drive=10.0 ** rng.uniform(0.0, 3.0)), None, "strong drive")
        yield near_hopf(rng, int(rng.integers(2, 4)))
        yield near_fold(rng, n)
        variant = str(rng.choice(["rectified", "rectified_recurrence"]))
        yield Drawn(*draw(rng, n, norm=rng.uniform(0.5, 2.0)), None, "rectified", variant)


def exact(circuit: oc.Circuit, z: Any, state: oc.State, variant: str = "main") -> tuple[Any, Any]:
    """The fixed point that Newton's method reaches from the state, and its spectral abscissa, with 50 digits."""
    import mpmath

    rectified, recurrence = variant == "rectified", variant == "rectified_recurrence"
    with mpmath.workdps(DIGITS + 15):
        n = len(z)

        def number(value: Any) -> Any:
            return mpmath.mpf(float(value))

        w_r = [[number(circuit.w_r[i, j]) for j in range(n)] for i in range(n)]
        w = [[number(circuit.w[i, j]) for j in range(n)] for i in range(n)]
        b, b0, sigma, tau_y, tau_a = ([number(value[i]) for i in range(n)] for value in circuit[2:])
        drive = [number(z[i]) for i in range(n)]
        y, a = ([number(part[i]) for i in range(n)] for part in state)

        def on(value: Any) -> int:
            return int(value > 0)

        for _ in range(60):
            root = [mpmath.sqrt(value) for value in a]
            source = [on(v) if rectified else 1 for v in y]
            pool = [on(v) if rectified or recurrence else 1 for v in y]
            recurrent = [sum(w_r[i][j] * source[j] * y[j] for j in range(n)) for i in range(n)]
            gate = [on(v) if recurrence else 1 for v in recurrent]
            f = mpmath.matrix(2 * n, 1)
            jac = mpmath.matrix(2 * n, 2 * n)
            for i in range(n):
                f[i] = b[i] * drive[i] - y[i] + (1 - root[i]) * gate[i] * recurrent[i]
                f[n + i] = (b0[i] * sigma[i]) ** 2 - a[i] + sum(w[i][j] * a[j] * pool[j] * y[j] ** 2 for j in range(n))
                for j in range(n):
                    jac[i, j] = (1 - root[i]) * gate[i] * w_r[i][j] * source[j] - (i == j)
                    jac[n + i, j] = 2 * w[i][j] * a[j] * pool[j] * y[j]
                    jac[n + i, n + j] = w[i][j] * pool[j] * y[j] ** 2 - (i == j)
                jac[i, n + i] = -gate[i] * recurrent[i] / (2 * root[i])
            step = mpmath.lu_solve(jac, -f)
            y = [y[i] + step[i] for i in range(n)]
            a = [a[i] + step[n + i] for i in range(n)]
            if mpmath.norm(step) < mpmath.mpf(10) ** -DIGITS:
                break
        else:
            raise ArithmeticError("Newton's method did not converge")
        rates = [1 / tau for tau in (*tau_y, *tau_a)]
        jac = mpmath.matrix([[rates[i] * jac[i, j] for j in range(2 * n)] for i in range(2 * n)])
        eigenvalues = mpmath.eig(jac, left=False, right=False)
        return (y, a), max(mpmath.re(value) for value in eigenvalues)


def wrong(proof: oc.Proof) -> str | None:
    """What a proof of one circuit claims falsely, by 50 digits; None where all is true."""
    if not np.isfinite(proof.radius):
        return None
    fixed, abscissa = exact(proof.circuit, proof.z, proof.state, proof.variant)
    for part, center, width in zip(fixed, proof.state, proof.enclosure, strict=True):
        if any(abs(value - float(c)) > float(w) for value, c, w in zip(part, center, width, strict=True)):
            return "the enclosure"
    if proof.stable is not None and proof.stable is not bool(abscissa < 0):
        return f"stable = {proof.stable}, but the abscissa is {float(abscissa):.3g}"
    if np.isfinite(proof.decay_rate) and abscissa > -float(proof.decay_rate):
        return f"the decay rate {float(proof.decay_rate):.3g}, but the abscissa is {float(abscissa):.3g}"
    return None


def boundary(rng: np.random.Generator, proof: oc.Proof, count: int) -> oc.State:
    """Random states (count, n) on the boundary of the basin of one proof."""
    n = len(proof.z)
    factor = np.linalg.cholesky(proof.p)
    direction = rng.standard_normal((count, 2 * n))
    direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    offsets = np.sqrt(proof.basin) * np.linalg.solve(factor.T, direction.T).T
    return oc.State(proof.state.y + offsets[:, :n], proof.state.a + offsets[:, n:])


def returned(proof: oc.Proof, starts: oc.State) -> Any:
    """Which starts have come back after 40 times the slowest decay: there V is a millionth."""
    slow = -1.0 / float(oc.spectral_abscissa(proof.circuit, proof.state, variant=proof.variant))
    run = oc.simulate(
        proof.circuit,
        proof.z,
        np.array([0.0, 40.0 * slow]),
        state0=starts,
        variant=proof.variant,
        rtol=1e-8,
        atol=1e-12,
    )
    off = np.concatenate([run.state.y[-1] - proof.state.y, run.state.a[-1] - proof.state.a], axis=-1)
    return np.einsum("...i,ij,...j->...", off, proof.p, off) < 1e-6 * proof.basin


def decided(count: int) -> dict[str, Any]:
    """Shares decided of random circuits with a largest singular value of W_r of 1."""
    result = {}
    for n in (10, 50, 100):
        rng = np.random.default_rng(n)
        counts: Counter[Any] = Counter(str(oc.prove(*draw(rng, n)).stable) for _ in range(count))
        result[str(n)] = dict(counts)
        print(f"decided, n = {n}: {dict(counts)}", flush=True)
    return result


def false(count: int, seeds: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    """Proofs against 50 digits, by kind of circuit."""
    counts: Counter[str] = Counter()
    sources = [circuits(np.random.default_rng(seed)) for seed in seeds]
    for index in range(count):
        drawn = next(sources[index % len(seeds)])
        proof = oc.prove(drawn.circuit, drawn.z, state=drawn.state, variant=drawn.variant)
        counts[f"{drawn.kind}: {proof.stable}"] += 1
        fault = wrong(proof)
        if fault:
            counts["FALSE"] += 1
            print(drawn, fault, flush=True)
    print("against 50 digits:", dict(counts), flush=True)
    return {"false": counts.pop("FALSE", 0), **counts}


def basins(count: int) -> dict[str, Any]:
    """100 starts on the boundary of each ellipsoid."""
    rng = np.random.default_rng(1)
    done = back = 0
    while done < count:
        norm = rng.uniform(0.5, 2.0)
        circuit, z = draw(rng, int(rng.integers(1, 11)), norm=norm)
        proof = oc.prove(circuit, z)
        if proof.stable:
            back += int(returned(proof, boundary(rng, proof, 100)).sum())
            done += 1
    print(f"basins: {back} of {100 * done} starts returned", flush=True)
    return {"ellipsoids": done, "starts": 100 * done, "returned": back}


def times(count: int) -> dict[str, Any]:
    """Seconds a proof, of the clock and of the processor, the best of a few."""
    result = {}
    for n in (10, 100, 1000)[: 2 if count < 10 else 3]:
        circuit, z = draw(np.random.default_rng(0), n)
        best = np.full(2, np.inf)
        for _ in range(10 if n < 1000 else 2):
            start = time.perf_counter(), time.process_time()
            proof = oc.prove(circuit, z)
            best = np.minimum(best, np.array([time.perf_counter(), time.process_time()]) - start)
        assert proof.stable
        result[str(n)] = {"clock": float(best[0]), "processor": float(best[1])}
        print(f"n = {n}: {best[0]:.3g} s, {best[1]:.3g} s of processor", flush=True)
    return result


COUNTS = {"decided": 1000, "false": 2000, "basins": 100, "times": 10}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=COUNTS)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    made = {name: globals()[name](COUNTS[name] // (20 if arguments.quick else 1)) for name in arguments.parts or COUNTS}
    if not arguments.quick and not arguments.parts:
        save("proofs", made, ("organics-core", "numpy"))
