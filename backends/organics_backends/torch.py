"""torch: Python loops, autograd derivatives, eigenvalues from torch.linalg."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch.autograd import forward_ad

from organics_core.attractors import Motion, NewtonInBoth
from organics_core.backend import Array, GenericBackend, Tree, register_kernel
from organics_core.circuit import Circuit
from organics_core.implicit import Equations
from organics_core.methods import Rosenbrock, RungeKutta
from organics_core.weights import Operator

from .kernels import native_motion, torch_circuit, torch_rosenbrock, torch_runge_kutta
from .kernels.torch_buffers import of_torch_func
from .torch_root import check_closed, solve_root

T = TypeVar("T")


class TorchBackend(GenericBackend):
    """torch: Python loops, torch's derivatives and ``torch.compile``."""

    name = "torch"

    def is_concrete(self, array: Array) -> bool:
        if torch.compiler.is_compiling():
            return False
        functorch = torch._C._functorch  # noqa: SLF001 - no public name
        while functorch.is_functorch_wrapped_tensor(array):  # those of grad and jvp hold one value, those of vmap many
            if functorch.is_batchedtensor(array):
                return False
            array = functorch.get_unwrapped(array)
        return True

    def differentiates(self, array: Array) -> bool:
        """Whether derivatives by ``array`` may be asked for."""
        if torch._C._functorch.is_functorch_wrapped_tensor(array):  # noqa: SLF001 - no public name
            return True
        return (array.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(array).tangent is not None

    def stop_gradient(self, array: Array) -> Array:
        return array.detach()

    def compile(
        self, function: Callable[..., T], *, static: Sequence[int] = (), loops: bool = False
    ) -> Callable[..., T]:
        # a compiled Python loop would be unrolled
        return function if loops else torch.compile(function, fullgraph=True)

    def jvp(self, function: Callable[[Array], Array], x: Array, tangent: Array) -> Array:
        # the dual numbers of an expanded tensor cannot be written
        return torch.func.jvp(function, (x.contiguous(),), (tangent.contiguous(),))[1]

    def jacobian(self, function: Callable[[Array], Array], x: Array) -> Array:
        return torch.func.jacrev(function)(x)

    def root(self, equations: Equations, search: Callable[[Tree], Tree], theta: Tree) -> Tree:
        if torch.compiler.is_compiling():
            raise ValueError(
                "a search for a fixed point looks at values and cannot be compiled by torch; "
                "call it in a function decorated with torch.compiler.disable"
            )
        found = solve_root(equations, search, theta)
        if torch.is_grad_enabled():
            check_closed(equations, found, theta)
        return found

    def normal(self, seed: int, shape: tuple[int, ...], like: Array) -> Array:
        generator = torch.Generator(device=like.device).manual_seed(seed)
        return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)

    def eigvals(self, matrix: Array) -> Any:
        finite = torch.isfinite(matrix).all(dim=-1).all(dim=-1)[..., None]
        values = torch.linalg.eigvals(torch.where(finite[..., None], matrix, torch.zeros_like(matrix)))
        return torch.where(finite, values, torch.full_like(values, complex(float("nan"), 0.0)))

    def sparse(self, matrix: Any, like: Array) -> Operator:
        with torch._C._DisableFuncTorch():  # noqa: SLF001 - its transforms would wrap the matrix, and fail
            if not isinstance(matrix, torch.Tensor):
                rows = matrix.tocsr()
                parts = (torch.as_tensor(part, device=like.device) for part in (rows.indptr, rows.indices, rows.data))
                with warnings.catch_warnings():
                    warnings.filterwarnings(
                        "ignore", message="Sparse CSR tensor support is in beta", category=UserWarning
                    )
                    matrix = torch.sparse_csr_tensor(*parts, size=rows.shape, check_invariants=True)
            matrix = matrix.to(like.dtype)
        entries: list[torch.Tensor] = []  # row, column and value of each, made where they are needed

        def product(v: torch.Tensor) -> torch.Tensor:
            if _transformed(v):
                if not entries or matrix.requires_grad:
                    entries[:] = _entries(matrix)
                rows, columns, values = entries
                return torch.zeros_like(v).index_add(-1, rows, values * v[..., columns])
            return (matrix @ v.reshape(-1, v.shape[-1]).T).T.reshape(v.shape)

        return Operator(product, shape=tuple(matrix.shape), batched=True)


def _transformed(vector: torch.Tensor) -> bool:
    """Whether torch.func or forward derivatives are at work, which do not know sparse tensors."""
    if torch.compiler.is_compiling():
        return False
    return of_torch_func(vector) or forward_ad._current_level >= 0  # noqa: SLF001 - no public name


def _entries(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows, columns and values of a sparse matrix of any layout."""
    with torch._C._DisableFuncTorch():  # noqa: SLF001 - its transforms would wrap the matrix, and fail
        found = matrix.to_sparse_coo().coalesce()
        return *found.indices(), found.values()


backend = TorchBackend()

register_kernel(Circuit, "torch", torch_circuit.slope)
register_kernel(Motion, "torch", native_motion.motion)
register_kernel(NewtonInBoth, "torch", native_motion.newton)
register_kernel(RungeKutta, "torch", torch_runge_kutta.step)
register_kernel(Rosenbrock, "torch", torch_rosenbrock.step)
