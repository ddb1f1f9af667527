"""torch: Python loops, autograd derivatives, eigenvalues from torch.linalg."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from organics_core.backend import Array, GenericBackend

if TYPE_CHECKING:
    from organics_core.integration import Tableau

T = TypeVar("T")


class TorchBackend(GenericBackend):
    """torch: Python loops, torch's derivatives and ``torch.compile``."""

    name = "torch"

    def is_concrete(self, array: Array) -> bool:
        if torch.compiler.is_compiling():
            return False
        return not torch._C._functorch.is_functorch_wrapped_tensor(array)  # noqa: SLF001 - no public name

    def stop_gradient(self, array: Array) -> Array:
        return array.detach()

    def compile(
        self, function: Callable[..., T], *, static: Sequence[int] = (), loops: bool = False
    ) -> Callable[..., T]:
        # a compiled Python loop would be unrolled
        return function if loops else torch.compile(function, fullgraph=True)

    def jvp(self, function: Callable[[Array], Array], x: Array, tangent: Array) -> Array:
        return torch.func.jvp(function, (x,), (tangent,))[1]

    def jacobian(self, function: Callable[[Array], Array], x: Array) -> Array:
        return torch.func.jacrev(function)(x)

    def normal(self, seed: int, shape: tuple[int, ...], like: Array) -> Array:
        generator = torch.Generator(device=like.device).manual_seed(seed)
        return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)

    def eigvals(self, matrix: Array) -> Any:
        finite = torch.isfinite(matrix).all(dim=-1).all(dim=-1)[..., None]
        values = torch.linalg.eigvals(torch.where(finite[..., None], matrix, torch.zeros_like(matrix)))
        return torch.where(finite, values, torch.full_like(values, complex(float("nan"), 0.0)))

    def runge_kutta(
        self,
        tableau: Tableau,
        slope: Callable[[Any, torch.Tensor], torch.Tensor],
        t: float,
        h: float,
        x: torch.Tensor,
        first: torch.Tensor,
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor], torch.Tensor] | None:
        """One step by the tableau, in buffers: the new state, the slopes, the estimate of the error."""
        if not _plain(x, first):
            return None
        rows = _rows(tableau, x.dtype, x.device)
        stages = x.new_empty((len(rows), *x.shape))
        columns, flat = stages.view(len(rows), -1).T, x.reshape(-1)
        stages[0] = first
        new = x
        for k, (node, row) in enumerate(zip((*tableau.nodes[1:], 1.0), rows[:-1], strict=True), 1):
            new = torch.addmv(flat, columns[:, :k], row, alpha=h).view(x.shape)
            stages[k] = slope(t + node * h, new)
        return new, stages, h * torch.mv(columns, rows[-1]).view(x.shape)

    def circuit_slope(
        self, variant: str, arguments: tuple[torch.Tensor, ...], start: torch.Tensor
    ) -> Callable[[Any, torch.Tensor], torch.Tensor] | None:
        """The circuit's vector field on packed states [y, a], in buffers; None where it does not apply."""
        w_r, w, drive, floor, tau_y, tau_a = arguments
        if w.ndim > 2 or (w_r is not None and w_r.ndim > 2):
            return None
        if not _plain(*(part for part in (*arguments, start) if part is not None)):
            return None
        n = w.shape[-1]
        half = (*start.shape[:-1], n)

        def packed(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
            return torch.cat([one.expand(half), two.expand(half)], dim=-1)

        base, rate = packed(drive, floor), 1.0 / packed(tau_y, tau_a)

        def product(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
            return torch.mv(matrix, vector) if vector.ndim == 1 else torch.matmul(vector, matrix.T)

        def slope(t: Any, x: torch.Tensor) -> torch.Tensor:
            y, a = x.tensor_split(2, dim=-1)
            pooled = torch.relu(a)
            response = y if variant == "main" else torch.relu(y)
            recurrent = response if variant == "rectified" else y
            if w_r is not None:
                recurrent = product(w_r, recurrent)
            if variant == "rectified_recurrence":
                recurrent = torch.relu(recurrent)
            gated = torch.addcmul(recurrent, torch.sqrt(pooled), recurrent, value=-1.0)
            result = torch.cat([gated, product(w, pooled.mul_(response).mul_(response))], dim=-1)
            return result.add_(base).sub_(x).mul_(rate)

        return slope


def _plain(*tensors: torch.Tensor) -> bool:
    """Whether no derivative is wanted, so that buffers may be written in place."""
    if torch.autograd.forward_ad._current_level >= 0:  # noqa: SLF001 - no public name
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


@cache
def _rows(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The rows of the tableau below the first, the weights, and the weights of the error."""
    rows = (*tableau.stages[1:], tableau.weights, tableau.error or ())
    return tuple(torch.asarray(row, dtype=dtype, device=device) for row in rows)


backend = TorchBackend()
