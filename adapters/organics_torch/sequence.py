"""A whole sequence through the cell: the reference loop and the faster implementations to the same numbers.

``reference``
    The core's step in a loop, differentiated by autograd.
``function``
    Plain torch with a derivative by hand, on any device (plain.py).
``fused``
    C++ for float32 and float64 on the CPU, where a compiler is found (fused.py).
``cuda``
    One kernel per direction for float32 on CUDA, without tensor cores, for batches of up to about a thousand
    sequences (cuda_kernel.py).
``triton``
    Likewise with tensor cores, for larger ones, where Triton is (triton_kernel.py).
``parallel``
    All steps at once by iterations, on any device, where they converge (parallel.py).

An implementation is a module with ``kept_shapes``, ``forward`` and ``backward``.
"""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from organics_core.cell import CellParameters, CellState, Rates, step

from . import fused, native, parallel, plain
from .implementation import (
    WEIGHTS,
    Setup,
    check,
    constant,
    intercepted,
    is_ordinary,
    misfit,
    shapes_of,
    transformed,
    without_autocast,
)

IMPLEMENTATIONS = ("auto", "fused", "triton", "cuda", "function", "parallel", "reference")
SCAN_HAS_DERIVATIVE = torch.__version__ >= (2, 13)
"""Gradients of a program that torch 2.11 exported with a scan were zero where they are not."""
_MODULES: dict[str, Any] = {"fused": fused, "function": plain, "parallel": parallel}


def _module(name: str) -> Any:
    if name == "triton":
        from . import triton_kernel

        return triton_kernel
    if name == "cuda":
        from . import cuda_kernel

        return cuda_kernel
    return _MODULES[name]


def _obstacle(name: str, xs: Tensor, units: int, checkpoint_every: int | None) -> str | None:
    """Why the kernels for CUDA cannot run, or None."""
    try:
        return _module(name).obstacle(xs, units, checkpoint_every)
    except ImportError as error:
        return f"Triton is missing ({error})"


def reference_sequence(
    fields: CellParameters, w: Tensor, rates: Rates, state: CellState, xs: Tensor, variant: str
) -> tuple[Tensor, CellState]:
    """The core's step in a loop; ys (T, N, n) and the last state."""
    ys = []
    for x in xs.unbind(0):
        state = step(xp, fields, w, rates, state, x, variant)
        ys.append(state.y)
    return torch.stack(ys), state


def scanned_sequence(
    fields: CellParameters, w: Tensor, rates: Rates, state: CellState, xs: Tensor, variant: str
) -> tuple[Tensor, CellState]:
    """The same as one loop in a recorded graph, of as many steps as there will be: ONNX has an operator for it."""
    tensors = (*fields, w, *rates)

    def one(y: Tensor, a: Tensor, b0: Tensor, b1: Tensor, x: Tensor, *given: Tensor) -> list[Tensor]:
        rest = iter(given)
        *parts, w, r_y, r_a, r_b0, r_b1 = (None if value is None else next(rest) for value in tensors)
        new = step(xp, CellParameters(*parts), w, Rates(r_y, r_a, r_b0, r_b1), CellState(y, a, b0, b1), x, variant)
        return [*new, new.y.clone()]

    *last, ys = torch.ops.higher_order.scan(one, [*state], [xs], tuple(value for value in tensors if value is not None))
    return ys, CellState(*last)


def _reference_gradients(
    setup: Setup, tensors: list[Tensor | None], wanted: list[bool], g_ys: Tensor | None, g_last: Tensor | None
) -> list[Tensor | None]:
    """Gradients of xs, start, sigma and the weights by the core's step, for cotangents of any kind; differentiable."""
    if g_ys is None and g_last is None:  # what follows the sequence has no gradient
        return [None] * len(wanted)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # of its own each, so that one tensor in two places counts in each of them alone
        made: list[Any] = [value if value is None else value.view_as(value) for value in tensors]
        xs, start, sigma, *weights = made
        gains, rates = weights[3:9], Rates(*weights[9:])
        fields = CellParameters(*weights[:2], None, *gains, *(None,) * 4, sigma)  # type: ignore[call-arg]
        variant = "main" if setup.main else "rectified_recurrence"
        ys, state = reference_sequence(fields, weights[2], rates, CellState(*start.unbind(0)), xs, variant)
        pairs = [(ys, g_ys), (torch.stack(list(state)), g_last)]
        outputs, cotangents = zip(*(pair for pair in pairs if pair[1] is not None), strict=True)
        inputs = [value for value, needed in zip((xs, start, sigma, *weights), wanted, strict=True) if needed]
        found = iter(torch.autograd.grad(outputs, inputs, cotangents, create_graph=create_graph, allow_unused=True))
    return [next(found) if needed else None for needed in wanted]


class SequenceFunction(torch.autograd.Function):
    """ys (T, N, n) or None, and the last state (4, N, n), by one of the implementations.

    Second derivatives, and cotangents that are more than their memory, go by the core's step.
    """

    @staticmethod
    def forward(
        ctx: Any, implementation: str, setup: Setup, xs: Tensor, start: Tensor, sigma: Tensor, *weights: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        with without_autocast(xs):
            ys, last, kept = _module(implementation).forward(setup, xs, start, sigma, weights)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(xs, start, sigma, *weights, *kept)
        ctx.implementation, ctx.setup = implementation, setup
        return ys, last

    @staticmethod
    def backward(ctx: Any, g_ys: Tensor | None, g_last: Tensor | None) -> tuple[Any, ...]:
        xs, start, sigma, *rest = ctx.saved_tensors
        weights, kept = rest[: len(WEIGHTS)], rest[len(WEIGHTS) :]
        wants_x = ctx.needs_input_grad[2]
        ordinary = all(value is None or is_ordinary(value) for value in (g_ys, g_last))
        with without_autocast(xs):
            if torch.is_grad_enabled() or not ordinary or intercepted():
                wanted = list(ctx.needs_input_grad[2:])
                tensors = [xs, start, sigma, *weights]
                return None, None, *_reference_gradients(ctx.setup, tensors, wanted, g_ys, g_last)
            check(xs, sigma, weights, {})  # someone may have put others in their places meanwhile
            found = _module(ctx.implementation).backward(ctx.setup, xs, sigma, weights, kept, g_ys, g_last, wants_x)
        g_x, g_start, gradients = found
        return None, None, g_x, g_start, None, *gradients


_TENSORS = ", ".join(f"Tensor{'?' if name == 'w_r' else ''} {name}" for name in WEIGHTS)
_SETUP = "str implementation, bool main, bool outputs, bool gradient, int checkpoint_every, int threads"


def module_for(wanted: str, xs: Tensor, units: int, checkpoint_every: int | None = None) -> Any:
    """The implementation that will run, as a module."""
    return _module(_choose(wanted, xs, units, checkpoint_every))


def _module_of_op(wanted: str, setup: Setup, xs: Tensor, units: int) -> Any:
    return module_for(wanted, xs, units, setup.checkpoint_every or None)


@torch.library.custom_op(
    "organics_torch::sequence",
    mutates_args=(),
    schema=f"({_SETUP}, Tensor xs, Tensor start, Tensor sigma, {_TENSORS}) -> Tensor[]",
)
def sequence_op(*arguments: Any) -> list[Tensor]:
    """:class:`SequenceFunction` as one operation that torch.compile need not look into: [ys, last, *kept]."""
    setup, (xs, start, sigma, *weights) = Setup(*arguments[1:6]), arguments[6:]
    check(xs, sigma, weights, {"start": start})
    with without_autocast(xs):
        ys, last, kept = _module_of_op(arguments[0], setup, xs, start.shape[-1]).forward(
            setup, xs, start, sigma, weights
        )
    return [xs.new_empty(0) if ys is None else ys, last, *kept]


@sequence_op.register_fake
def _(*arguments: Any) -> list[Tensor]:
    setup, (xs, start, _, _, w_r, *_) = Setup(*arguments[1:6]), arguments[6:]
    n = start.shape[-1]
    dynamic = any(isinstance(size, torch.SymInt) for size in xs.shape)
    like = xs.new_empty(1, 1, xs.shape[2]) if dynamic else xs
    kept = _module_of_op(arguments[0], setup, like, n).kept_shapes(setup, like, n, w_r is None)
    if dynamic:  # how much there will be is the implementation's own business, and depends on the sizes in steps
        context = torch.library.get_ctx()
        kept = [tuple(context.new_dynamic_size() for _ in shape) for shape in kept]
    ys = (*xs.shape[:2], n) if setup.outputs else (0,)
    return [xs.new_empty(shape) for shape in (ys, start.shape, *kept)]


@torch.library.custom_op(
    "organics_torch::sequence_backward",
    mutates_args=(),
    schema=(
        f"({_SETUP}, Tensor xs, Tensor sigma, {_TENSORS}, Tensor[] kept, Tensor? g_ys, Tensor? g_last, bool wants_x) "
        "-> Tensor[]"
    ),
)
def sequence_backward_op(*arguments: Any) -> list[Tensor]:
    """Its derivative: [g_xs or nothing, g_start, *g_weights without g_w_r for the identity]."""
    setup, (xs, sigma, *weights) = Setup(*arguments[1:6]), arguments[6:-4]
    check(xs, sigma, weights, dict(zip(("g_ys", "g_last"), arguments[-3:-1], strict=True)))
    with without_autocast(xs):
        g_x, g_start, gradients = _module_of_op(arguments[0], setup, xs, weights[0].shape[0]).backward(
            setup, xs, sigma, weights, *arguments[-4:]
        )
    found = [xs.new_empty(0) if g_x is None else g_x, g_start, *(g for g in gradients if g is not None)]
    return [gradient.clone() for gradient in found]  # no two in the same memory


@sequence_backward_op.register_fake
def _(*arguments: Any) -> list[Tensor]:
    xs, weights = arguments[6], arguments[8:-4]
    g_x = xs.shape if arguments[-1] else (0,)
    shapes = [g_x, (4, xs.shape[1], weights[0].shape[0]), *(w.shape for w in weights if w is not None)]
    return [xs.new_empty(shape) for shape in shapes]


def _keep_for_op(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.setup = inputs[:6]
    ctx.wants_x = inputs[6].requires_grad
    ctx.save_for_backward(*inputs[6:], *output[2:])


def _differentiate_op(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    xs, start, sigma, *rest = ctx.saved_tensors
    weights, kept = rest[: len(WEIGHTS)], rest[len(WEIGHTS) :]
    g_ys, g_last = gradients[0] if ctx.setup[2] else None, gradients[1]
    functorch = torch._C._functorch  # noqa: SLF001 - torch has no public name for it
    many = any(value is not None and functorch.is_legacy_batchedtensor(value) for value in (g_ys, g_last))
    if torch.is_grad_enabled() or transformed() or many:  # second derivatives, and many cotangents at once
        wanted = list(ctx.needs_input_grad[6:])
        with without_autocast(xs):
            found = _reference_gradients(Setup(*ctx.setup[1:]), [xs, start, sigma, *weights], wanted, g_ys, g_last)
        return *(None,) * 6, *found
    g_x, g_start, *found = torch.ops.organics_torch.sequence_backward(
        *ctx.setup, xs, sigma, *weights, kept, g_ys, g_last, ctx.wants_x
    )
    if weights[1] is None:
        found.insert(1, None)
    return *(None,) * 6, (g_x if ctx.wants_x else None), g_start, None, *found


torch.library.register_autograd(sequence_op, _differentiate_op, setup_context=_keep_for_op)


def _recorded() -> bool:
    """Whether operations are recorded, to be done later with other tensors."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _unsuitable(fields: CellParameters, xs: Tensor, state: CellState | None) -> str | None:
    """Why only the core's step can take these tensors, or None."""
    if fields.sigma.requires_grad:
        return "sigma is trained"
    if xs.dtype not in (torch.float32, torch.float64):
        return f"the dtype is {xs.dtype}"
    if _recorded():
        return transformed()
    n, k = fields.log_w.shape[-1], xs.shape[-1]
    p = fields
    underived = (p.w_zx, p.w_r, p.log_w, *p[3:9], p.theta_y, p.theta_a, p.theta_b0, p.theta_b1)
    tensors = dict(zip(WEIGHTS, underived, strict=True)) | {"sigma": p.sigma, "xs": xs}
    shapes = shapes_of(n, k) | {"sigma": (n,) if p.sigma.ndim else (), "xs": xs.shape}
    if state is not None:
        tensors |= state._asdict()
        shapes |= dict.fromkeys(CellState._fields, (xs.shape[1], n))
    return intercepted() or misfit(tensors, shapes, xs)


def choose_implementation(
    wanted: str,
    fields: CellParameters,
    xs: Tensor,
    checkpoint_every: int | None = None,
    state: CellState | None = None,
) -> str:
    """The implementation that will run: ``wanted``, or for "auto" the fastest there is for these tensors.

    Raises
    ------
    RuntimeError
        When an implementation was asked for by name and cannot be had.
    """
    if wanted == "reference" or torch.onnx.is_in_onnx_export():
        return "reference"
    reason = _unsuitable(fields, xs, state)
    if reason is not None:
        if wanted == "auto":
            return "reference"
        raise RuntimeError(
            f"implementation {wanted!r} needs float32 or float64, ordinary tensors of the cell's shapes and a fixed "
            f"sigma, and here {reason}; choose 'auto' or 'reference'"
        )
    if _recorded():
        return wanted  # the operation chooses when it runs
    return _choose(wanted, xs, fields.log_w.shape[-1], checkpoint_every)


def settled(implementation: str, device: torch.device, dtype: torch.dtype) -> str:
    """The implementation that "auto" is for ordinary tensors of a kind; elsewhere than on the CPU it hangs on sizes."""
    if implementation != "auto" or device.type != "cpu":
        return implementation
    if dtype not in (torch.float32, torch.float64):
        return "reference"
    return "fused" if fused.available(dtype, device) else "function"


def _choose(wanted: str, xs: Tensor, units: int, checkpoint_every: int | None) -> str:
    if wanted == "parallel":
        return wanted
    if wanted in ("auto", "fused"):
        if fused.available(xs.dtype, xs.device):
            return "fused"
        if wanted == "fused":
            raise RuntimeError(
                f"the fused implementation runs on the CPU only; the native library is {native.status()}"
            )
    names: tuple[str, ...] = (wanted,) if wanted in ("triton", "cuda") else ()
    if wanted == "auto" and xs.is_cuda:
        names = ("cuda", "triton") if _module("cuda").suits(xs, units) else ("triton", "cuda")
    for name in names:
        reason = _obstacle(name, xs, units, checkpoint_every)
        if reason is None:
            return name
        if wanted != "auto":
            raise RuntimeError(f"the {wanted} implementation cannot run this sequence: {reason}")
    return "function"


@constant
def _threads() -> int:
    return torch.get_num_threads()


def run_sequence(
    fields: CellParameters,
    w: Tensor,
    rates: Rates,
    state: CellState,
    xs: Tensor,
    variant: str,
    implementation: str = "auto",
    *,
    outputs: bool = True,
    checkpoint_every: int | None = None,
) -> tuple[Tensor | None, CellState]:
    """ys (T, N, n), or None where they are not wanted, and the last state (N, n), for inputs xs (T, N, k)."""
    chosen = choose_implementation(implementation, fields, xs, checkpoint_every, state)
    if chosen == "reference":
        onnx = torch.onnx.is_in_onnx_export()
        loop = onnx or isinstance(xs.shape[0], torch.SymInt)
        lost = loop and not onnx and not SCAN_HAS_DERIVATIVE and torch.is_grad_enabled()
        if lost and any(p is not None and p.requires_grad for p in (xs, *state, *fields)):
            raise RuntimeError(
                f"torch {torch.__version__} would give wrong gradients for a recorded loop of any number of steps by "
                "the core's step: record it within torch.no_grad(), with implementation 'function', for a fixed "
                "number of steps, or with torch 2.13"
            )
        compute = scanned_sequence if loop else reference_sequence
        with without_autocast(xs):
            ys, state = compute(fields, w, rates, state, xs, variant)
        return (ys if outputs else None), state
    gains = (fields.w_bx0, fields.w_by0, fields.w_ba0, fields.w_bx1, fields.w_by1, fields.w_ba1)
    weights = (fields.w_zx, fields.w_r, w, *gains, *rates)
    start = torch.stack(list(state))
    # what is recorded may be trained later although it is not now
    gradient = any(p is not None and p.requires_grad for p in (xs, start, *weights))
    gradient = gradient and (torch.is_grad_enabled() or torch.jit.is_tracing())
    setup = Setup(variant == "main", outputs, gradient, checkpoint_every or 0, _threads())
    if _recorded():
        ys, last, *_ = torch.ops.organics_torch.sequence(chosen, *setup, xs, start, fields.sigma, *weights)
        return (ys if outputs else None), CellState(*last.unbind(0))
    ys, last = SequenceFunction.apply(chosen, setup, xs, start, fields.sigma, *weights)
    return ys, CellState(*last.unbind(0))
