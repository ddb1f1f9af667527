"""Other people's models, for comparison with ORGaNICs: short, cited, behind one interface; in torch.

These are no part of the product: they are here so that a table compares like
with like. A public module of this package is a model, found by its file and
imported, with torch, when it is asked for.

>>> import torch
>>> model = make_model("lstm", input_size=28, hidden_size=32, classes=10)
>>> model(torch.zeros(4, 28, 28)).shape
torch.Size([4, 10])
"""

from ._registry import MODELS, Entry, count_parameters, make_model

__all__ = ["MODELS", "Entry", "count_parameters", "make_model"]
