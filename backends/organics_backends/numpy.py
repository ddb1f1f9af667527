"""numpy: Python loops, quiet about overflow (solvers report divergence themselves), fast kernels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from organics_core.attractors import Motion, NewtonInBoth, RosenbrockPair
from organics_core.backend import Array, GenericBackend, Tree, host_eigvals, register_kernel
from organics_core.circuit import Circuit
from organics_core.equilibria import SteadyState
from organics_core.methods import Rosenbrock, RungeKutta
from organics_core.weights import Operator

from .kernels import native_motion, numpy_circuit, numpy_motion, numpy_newton, numpy_rosenbrock, numpy_runge_kutta


class NumpyBackend(GenericBackend):
    """numpy: Python loops without overflow warnings, numpy's random numbers and eigenvalues."""

    name = "numpy"

    def quiet(self) -> AbstractContextManager[Any]:
        """No warnings from loops that look out for overflow themselves."""
        return np.errstate(all="ignore")

    def scan(self, step: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
        with self.quiet():
            return super().scan(step, carry, xs)

    def while_loop(
        self,
        condition: Callable[[Tree], Array],
        body: Callable[[Tree], Tree],
        carry: Tree,
        *,
        max_steps: int,
        differentiable: bool = False,
    ) -> Tree:
        with self.quiet():
            return super().while_loop(condition, body, carry, max_steps=max_steps)

    def normal(self, seed: int, shape: tuple[int, ...], like: Array) -> Array:
        return np.random.default_rng(seed).standard_normal(shape).astype(like.dtype)

    def eigvals(self, matrix: Array) -> Any:
        return host_eigvals(matrix)

    def sparse(self, matrix: Any, like: Array) -> Operator:
        rows = matrix.tocsr().astype(like.dtype)
        return Operator(
            lambda v: (rows @ v.reshape(-1, v.shape[-1]).T).T.reshape(v.shape), shape=matrix.shape, batched=True
        )


backend = NumpyBackend()

register_kernel(Circuit, "numpy", numpy_circuit.slope)
register_kernel(Motion, "numpy", native_motion.motion)
register_kernel(NewtonInBoth, "numpy", native_motion.newton)
register_kernel(RosenbrockPair, "numpy", numpy_motion.motion)
register_kernel(SteadyState, "numpy", numpy_newton.newton)
register_kernel(RungeKutta, "numpy", numpy_runge_kutta.step)
register_kernel(Rosenbrock, "numpy", numpy_rosenbrock.step)
