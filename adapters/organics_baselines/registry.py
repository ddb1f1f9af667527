"""The models by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from organics_core import checks


class Entry(NamedTuple):
    """One model of the registry.

    Attributes
    ----------
    title : str
        As tables print it.
    source : str
        Paper.
    place : str
        ``"module:name"`` of what makes the model; imported when it is asked for.
    static : bool
        Whether it sees all steps at once (and takes ``steps``).
    options : dict
        Fixed options.
    """

    title: str
    source: str
    place: str
    static: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012 - never written to

    def load(self) -> Callable[..., nn.Module]:
        """What makes the model, imported now."""
        module, name = self.place.split(":")
        return getattr(importlib.import_module(module, __package__), name)


MODELS: dict[str, Entry] = {
    "organics": Entry("ORGaNICs", "Rawat et al. 2024", ".product:organics"),
    "organics-static": Entry("ORGaNICs, static", "Rawat et al. 2024", ".product:StaticClassifier", static=True),
    "ssn": Entry("SSN (80:20)", "Ahmadian et al. 2013", ".neural:SSN", options={"excitatory": 0.8}),
    "ssn5050": Entry("SSN (50:50)", "Ahmadian et al. 2013", ".neural:SSN", options={"excitatory": 0.5}),
    "wilsoncowan": Entry("Wilson-Cowan", "Wilson & Cowan 1972", ".neural:WilsonCowan"),
    "lstm": Entry("LSTM", "Hochreiter & Schmidhuber 1997", ".machine:lstm"),
    "gru": Entry("GRU", "Cho et al. 2014", ".machine:gru"),
    "antisymmetric": Entry("AntisymmetricRNN", "Chang et al. 2019", ".machine:AntisymmetricRNN"),
    "cornn": Entry("coRNN", "Rusch & Mishra 2021", ".machine:CoRNN"),
    "unicornn": Entry("UnICORNN", "Rusch & Mishra 2021", ".machine:UnICORNN"),
    "lipschitz": Entry("Lipschitz RNN", "Erichson et al. 2021", ".machine:LipschitzRNN"),
    "irnn": Entry("IRNN", "Le et al. 2015", ".machine:IRNN"),
    "urnn": Entry("Unitary RNN", "Arjovsky et al. 2015", ".machine:UnitaryRNN"),
    "mlp": Entry("MLP", "Goodfellow et al. 2016", ".static:MLP", static=True),
    "deq": Entry("DEQ-style fixed point", "Bai et al. 2019", ".static:FixedPoint", static=True),
}


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
        own["every_step"] = bool(every_step)
    make = entry.load()
    try:
        return make(*sizes, **own)
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
    """
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
