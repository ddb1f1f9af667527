"""The driver's protocol in torch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from organics_baselines import count_parameters, make_model
from organics_torch import ORGaNICs, native
from organics_torch.sequence import settled

from .checkpoint import Arrays
from .config import Config
from .datasets import Dataset
from .loop import TOLERANCE, Score
from .processes import Processes


class Outputs(nn.Module):
    """What a step needs of a model, behind ``forward``, where DDP and FSDP2 come in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, clean: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Outputs, and in training, where clean inputs are given, what a model adds to the loss."""
        if clean is not None and hasattr(self.model, "training_outputs"):
            return self.model.training_outputs(x, clean)
        return self.model(x), None


class TorchLearner:
    """A torch model, Adam, and the data on the model's device."""

    def __init__(self, config: Config, data: Dataset, processes: Processes = Processes()) -> None:
        options: dict[str, Any] = {"steps": data.steps, **config.model_options(data.steps)}
        if data.every_step:
            options["every_step"] = True

        def build(hidden: int) -> nn.Module:
            torch.manual_seed(config.seed)
            with torch.device("cpu"):  # one seed is one start, wherever it is trained and whatever torch's default is
                return make_model(config.resolved_model, data.input_size, hidden, data.outputs, **options)

        try:
            torch.empty(0, device=config.device)
        except (RuntimeError, AssertionError, NotImplementedError):  # whichever it is that a kind of device raises
            raise ValueError(f"device must be one that is there, got {config.device!r}, and torch finds none") from None
        device = torch.device(config.device)
        self.device = device.type
        self.hidden = config.hidden_size(lambda hidden: count_parameters(build(hidden)))
        self.model = build(self.hidden).to(device)
        self.parameter_count = count_parameters(self.model)
        self.processes = processes
        self.outputs = self.trained = Outputs(self.model)
        if processes.how == "ddp":
            self.trained = DistributedDataParallel(self.outputs)
        elif processes.how == "fsdp":
            self.outputs = self.trained = _sharded(self.outputs, device, processes.count)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._settled = [
            module
            for module in self.model.modules()
            if isinstance(module, ORGaNICs) and module.implementation == "auto" and device.type == "cpu"
        ]
        for layer in self._settled:  # once, and before the first step: native code may have to be compiled
            layer.implementation = settled("auto", device, layer.cells[0].log_w.dtype)
        self.kind, self.scored = data.kind, data.scored_steps
        # torch's own memory: aligned alike in every process, so that sums come out alike
        self.parts = {
            part: tuple(torch.tensor(getattr(data, f"{axis}_{part}"), device=device) for axis in "xy")
            for part in ("train", "validation", "test")
        }

    @property
    def implementation(self) -> str | None:
        """How the recurrent layers are computed, where that has been settled."""
        return ", ".join(dict.fromkeys(layer.implementation for layer in self._settled)) or None

    def use(self, implementation: str) -> str | None:
        """Compute the recurrent layers so; why that is impossible, or None."""
        if implementation == "fused" and native.load() is None:
            return f"the native library is {native.status()}"
        for layer in self._settled:
            layer.implementation = implementation
        return None

    def loss(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and accuracy, means over the examples."""
        if self.kind == "numbers":
            error = outputs - y
            return (error**2).mean(), (error[:, -self.scored :].abs() < TOLERANCE).all(-1).float().mean()
        if self.kind == "number":
            error = outputs[:, 0] - y
            return (error**2).mean(), (error.abs() < TOLERANCE).float().mean()
        right = (outputs.argmax(-1) == y).float()
        if self.kind == "steps":
            return nn.functional.cross_entropy(outputs.flatten(0, 1), y.flatten()), right[:, -self.scored :].mean()
        return nn.functional.cross_entropy(outputs, y), right.mean()

    def step(
        self, index: np.ndarray[Any, Any], learning_rate: float, noise: np.ndarray[Any, Any] | None = None
    ) -> tuple[float, float, float]:
        x, y = (values[torch.as_tensor(index, device=values.device)] for values in self.parts["train"])
        seen = x if noise is None else x + torch.as_tensor(noise, device=x.device)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        outputs, extra = self.trained(seen, x)
        loss, accuracy = self.loss(outputs, y)
        (loss if extra is None else loss + extra).backward()
        norm = whole(nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        of_all, right = self.processes.means(float(loss.detach()), float(accuracy))
        numbers = of_all, right, float(norm)
        if math.isfinite(numbers[0]) and math.isfinite(numbers[2]):
            self.optimizer.step()
        return numbers

    @torch.no_grad()
    def evaluate(self, part: str, batch_size: int) -> Score:
        self.model.eval()
        xs, ys = self.parts[part]
        batches = list(zip(xs.split(batch_size), ys.split(batch_size), strict=True))
        parts = []
        for turn in range(0, len(batches), self.processes.count):
            mine = turn + self.processes.rank
            x, y = batches[
                min(mine, len(batches) - 1)
            ]  # without one left: the last again, since FSDP2 wants all to call
            outputs, _ = self.outputs(x)
            finite = outputs.isfinite().flatten(1).all(1)
            loss, accuracy = self.loss(outputs[finite], y[finite])
            if mine < len(batches):
                parts.append((mine, (float(loss), float(accuracy), int(finite.sum()), len(x))))
        answers = ys[0, -self.scored :].shape[0] if self.kind in ("steps", "numbers") else 1
        return Score.of((score for _, score in sorted(itertools.chain(*self.processes.gather(parts)))), answers)

    def parameters(self) -> Arrays:
        return {name: whole(value).detach().cpu().numpy() for name, value in self.model.state_dict().items()}

    def state(self) -> Arrays:
        arrays = {f"model.{name}": value for name, value in self.parameters().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                arrays[f"optimizer.{key}.{name}"] = whole(value).detach().cpu().numpy()
        for kind, generator in self._generators().items():
            arrays[f"random.{kind}"] = generator.get_rng_state().cpu().numpy()
        return arrays

    def load_state(self, arrays: Arrays) -> None:
        prefix = "model."
        named = dict(self.model.named_parameters())
        parameters = {
            name: placed(torch.tensor(arrays[prefix + name], device="cpu"), named.get(name))
            for name in (key.removeprefix(prefix) for key in arrays if key.startswith(prefix))
        }
        self.model.load_state_dict(parameters)  # copies into the tensors that are there
        for key, value in arrays.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                field, _, name = rest.partition(".")
                parameter = named[name]
                tensor = torch.tensor(value, device="cpu")
                self.optimizer.state[parameter][field] = tensor if field == "step" else placed(tensor, parameter)
        for kind, generator in self._generators().items():
            if f"random.{kind}" in arrays:  # not of a run that was on another device, or by an older version
                generator.set_rng_state(torch.tensor(arrays[f"random.{kind}"], device="cpu"))

    def _generators(self) -> dict[str, Any]:
        """What holds torch's random numbers, by the kind of device: the CPU's, and those that dropout draws there."""
        of_device = {} if self.device == "cpu" else {self.device: torch.get_device_module(self.device)}
        return {"cpu": torch} | {kind: it for kind, it in of_device.items() if hasattr(it, "get_rng_state")}


def _sharded(outputs: Outputs, device: torch.device, count: int) -> Outputs:
    """FSDP2 of the model in one piece: while it computes, its layers find ordinary tensors, and take their kernels."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(outputs, mesh=init_device_mesh(device.type, (count,)), reshard_after_forward=True)


def whole(value: Tensor) -> Tensor:
    """All of a tensor, of which each process may have a part; all call."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def placed(value: Tensor, like: Tensor | None) -> Tensor:
    """A value where a parameter is: on its device, or over the processes; as it is where there is no parameter."""
    if like is None:
        return value
    if not hasattr(like, "full_tensor"):
        return value.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements)


def make(config: Config, data: Dataset, processes: Processes = Processes()) -> TorchLearner:
    """The learner of a run."""
    return TorchLearner(config, data, processes)
