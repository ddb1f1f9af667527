"""The models by name: every public module of this package has one, as ``MODEL``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from organics_core import checks

if TYPE_CHECKING:
    from torch import nn

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


class Entry(NamedTuple):
    """One model of the registry.

    Attributes
    ----------
    title : str
        As tables print it.
    source : str
        Paper.
    make : callable
        ``make(input_size, hidden_size, classes, **options)`` is the model.
    static : bool
        Whether it sees all steps at once (and takes ``steps``).
    options : dict
        Fixed options.
    equations : callable, optional
        The published equations in numpy, to which the tests hold the model:
        ``equations(p, x, model)`` is what the readout sees after the sequence
        x (T, k), with the parameters and buffers ``p`` by name.
    """

    title: str
    source: str
    make: Callable[..., nn.Module]
    static: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012 - never written to
    equations: Callable[[Arrays, Array, Any], Array] | None = None


class Models(Mapping[str, Entry]):
    """The models by name. The names are those of the files, so that listing them imports nothing."""

    def __init__(self) -> None:
        found = sorted(module.name for module in iter_modules([str(Path(__file__).parent)]))
        self._modules = {name.replace("_", "-"): name for name in found if name[0] != "_"}

    def __getitem__(self, name: str) -> Entry:
        """The model, whose module is imported now; ImportError naming the extra where torch is missing."""
        module = self._modules[name]
        try:
            return import_module(f".{module}", __package__).MODEL
        except ImportError as error:
            if error.name != "torch":
                raise
            message = 'organics_baselines needs torch: pip install "organics-core[torch]"'
            raise ImportError(message, name="torch") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules


MODELS = Models()


def make_model(
    name: str,
    input_size: int,
    hidden_size: int,
    classes: int,
    *,
    steps: int = 1,
    every_step: bool = False,
    **options: Any,
) -> nn.Module:
    """A model of the table.

    Parameters
    ----------
    name : str
        One of ``MODELS``.
    input_size, hidden_size, classes : int
        k, n and the outputs of the readout.
    steps : int
        T; only the models that see all steps at once need it.
    every_step : bool
        Outputs (N, T, classes) instead of (N, classes).
    options
        Of the model; its docstring names them.

    Returns
    -------
    torch.nn.Module
        Maps (N, T, k) to logits (N, classes).

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong.
    ImportError
        Where torch is missing.

    Examples
    --------
    >>> import torch
    >>> make_model("lstm", 3, 8, 10)(torch.ones(2, 20, 3)).shape
    torch.Size([2, 10])
    """
    checks.one_of("model", name, MODELS)
    entry = MODELS[name]
    sizes = [
        checks.positive_integer(label, value)
        for label, value in (("input_size", input_size), ("hidden_size", hidden_size), ("classes", classes))
    ]
    own: dict[str, Any] = {**entry.options, **options}
    if entry.static:
        if every_step:
            raise ValueError(f"{name} sees all steps at once and has no output at every step")
        own["steps"] = checks.positive_integer("steps", steps)
    else:
        own["every_step"] = checks.flag("every_step", every_step)
    try:
        return entry.make(*sizes, **own)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        unknown = str(error).rsplit("argument ", 1)[-1].split(".")[0]
        raise TypeError(f"{name} has no option {unknown}") from None


def count_parameters(model: nn.Module) -> int:
    """Numbers that are trained.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    int

    Examples
    --------
    >>> count_parameters(make_model("gru", 3, 8, 10))
    402
    """
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
