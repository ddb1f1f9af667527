"""A plain training loop for classifiers of sequences."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from organics_core import checks
from organics_train.records import EpochRecord, batch_indices

from .introspection import measure_abscissa

ABSCISSA_SEQUENCES = 8


def fit(
    model: nn.Module,
    x_train: Any,
    y_train: Any,
    *,
    epochs: int,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    weight_decay: float = 1e-5,
    lr_step: int = 30,
    lr_gamma: float = 0.8,
    seed: int = 0,
    x_test: Any = None,
    y_test: Any = None,
    on_epoch: Callable[[EpochRecord], Any] | None = None,
    abscissa_every: int = 1,
) -> list[EpochRecord]:
    """Train a classifier by backpropagation through time: cross entropy, Adam, no gradient clipping.

    Parameters
    ----------
    model : nn.Module
        Maps (N, T, k) to logits (N, classes).
    x_train, y_train : arrays (M, T, k) and (M,)
        Inputs, and integer classes.
    epochs, batch_size : int
    learning_rate, weight_decay : float
        Of Adam.
    lr_step, lr_gamma : int, float
        Every ``lr_step`` epochs the learning rate is multiplied by ``lr_gamma``.
    seed : int
        Order of the batches.
    x_test, y_test : arrays, optional
        Test set, measured after every epoch; a sequence whose logits are not finite counts as wrong.
    on_epoch : callable, optional
        Called with every :class:`organics_train.EpochRecord`.
    abscissa_every : int
        Measure the largest real eigenvalue part every so many epochs, on a few
        test (else training) sequences; 0 for never.

    Returns
    -------
    list of EpochRecord

    Raises
    ------
    FloatingPointError
        When the loss is not finite, naming epoch and step.
    TypeError, ValueError
        For a setting that is wrong, for inputs and classes of different length, for classes that
        are no integers, and for such as the model has no output for.

    Examples
    --------
    >>> import numpy as np
    >>> from organics_torch import ORGaNICsClassifier
    >>> x = np.random.default_rng(0).random((64, 10, 1), dtype=np.float32)
    >>> y = (x.mean(axis=(1, 2)) > 0.5).astype(int)  # is the mean above one half?
    >>> model = ORGaNICsClassifier(1, 8, 2, seed=0, max_rates="auto", steps=10)
    >>> records = fit(model, x, y, epochs=3, batch_size=16)
    >>> records[-1].loss < records[0].loss
    True
    """
    epochs = checks.positive_integer("epochs", epochs)
    learning_rate = checks.positive_number("learning_rate", learning_rate)
    weight_decay = checks.not_negative("weight_decay", weight_decay)
    lr_step = checks.positive_integer("lr_step", lr_step)
    lr_gamma = checks.positive_number("lr_gamma", lr_gamma)
    like = next(model.parameters())
    x, y = _data("train", x_train, y_train, like)
    if (x_test is None) != (y_test is None):
        raise ValueError("x_test and y_test go together, got only one of them")
    test = None if x_test is None else _data("test", x_test, y_test, like)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, lr_step, lr_gamma)
    records = []
    for epoch in range(1, epochs + 1):
        model.train()
        begin = time.perf_counter()
        losses, norms, correct, count = [], [], 0, 0
        for step, index in enumerate(batch_indices(seed, epoch, len(x), batch_size), start=1):
            chosen = torch.as_tensor(index, device=like.device)
            logits = model(x[chosen])
            if epoch == step == 1:
                for name, (_, classes) in {"train": (x, y), **({"test": test} if test else {})}.items():
                    checks.classes(f"y_{name}", int(classes.min()), int(classes.max()), logits.shape[-1])
            loss = nn.functional.cross_entropy(logits, y[chosen])
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} in epoch {epoch}, step {step}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norms.append(gradient_norm(model))
            optimizer.step()
            losses.append(value)
            correct += int((logits.detach().argmax(-1) == y[chosen]).sum())
            count += len(index)
        schedule.step()
        seconds = time.perf_counter() - begin
        record = EpochRecord(
            epoch,
            float(np.mean(losses)),
            correct / count,
            accuracy(model, *test, batch_size) if test else math.nan,
            float(np.mean(norms)),
            float(np.max(norms)),
            measure_abscissa(model, (test[0] if test else x)[:ABSCISSA_SEQUENCES])
            if abscissa_every and epoch % abscissa_every == 0
            else math.nan,
            seconds,
        )
        records.append(record)
        if on_epoch is not None:
            on_epoch(record)
    return records


def gradient_norm(model: nn.Module) -> float:
    """Norm of the gradient over all parameters."""
    return float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))


def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 256) -> float:
    """Share of sequences classified correctly; one whose logits are not finite is not."""
    was_training = model.training
    model.eval()
    correct = 0
    with torch.no_grad():
        for part, classes in zip(x.split(batch_size), y.split(batch_size), strict=True):
            logits = model(part)
            correct += int(((logits.argmax(-1) == classes) & logits.isfinite().all(-1)).sum())
    model.train(was_training)
    return correct / len(x)


def _data(name: str, x: Any, y: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    inputs = torch.as_tensor(x).to(device=like.device, dtype=like.dtype)
    classes = torch.as_tensor(y)
    if classes.is_floating_point() or classes.is_complex():
        raise TypeError(f"y_{name} must be integer classes, got dtype {str(classes.dtype).removeprefix('torch.')}")
    classes = classes.to(device=like.device, dtype=torch.int64)
    if classes.ndim != 1 or len(inputs) != len(classes) or len(inputs) == 0:
        raise ValueError(
            f"y_{name} must hold one class per sequence: x_{name} has shape {tuple(inputs.shape)}, "
            f"y_{name} has shape {tuple(classes.shape)}"
        )
    return inputs, classes
