"""When torch may write into buffers."""

from __future__ import annotations

import torch


def of_torch_func(*tensors: torch.Tensor) -> bool:
    """Whether one of them is a tensor of a transform of torch.func."""
    if torch.compiler.is_compiling():
        return False
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # noqa: SLF001 - no public name
    return any(wrapped(tensor) for tensor in tensors)


def plain(*tensors: torch.Tensor) -> bool:
    """Whether no derivative is wanted and no tensor is one of torch.func's, so that buffers may be written in place."""
    if torch.autograd.forward_ad._current_level >= 0 or of_torch_func(*tensors):  # noqa: SLF001 - no public name
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
