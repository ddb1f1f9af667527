"""Other people's models, for comparison with ORGaNICs: short, cited, behind one interface; in torch.

These are no part of the product: they are here so that a table compares like
with like.

>>> import torch
>>> model = make_model("lstm", input_size=28, hidden_size=32, classes=10)
>>> model(torch.zeros(4, 28, 28)).shape
torch.Size([4, 10])
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:  # pragma: no cover - seen only without torch
    raise ImportError('organics_baselines needs torch: pip install "organics-core[torch]"') from error

from .registry import MODELS, Entry, count_parameters, make_model

__all__ = ["MODELS", "Entry", "count_parameters", "make_model"]
