"""The processes of one training run, as ``torchrun`` starts them: what they share, and what they tell each other."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from organics_core import checks

from .config import Config

PARALLEL = ("ddp", "fsdp")

T = TypeVar("T")
_ELSEWHERE = "another process of this run failed before, and says why"
_RUNS = itertools.count()
"""Numbers the runs of a process: with torchrun's restarts, so that none takes for its own what an earlier one left."""

__all__ = ["PARALLEL", "ElsewhereError", "Processes", "alike", "joined", "under_torchrun"]


class ElsewhereError(RuntimeError):
    """Another process of the run failed first, and says why."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Attributes
    ----------
    rank, count : int
        This one's number, from 0, and that of all.
    how : {"ddp", "fsdp"} or None
        How they share a model; None where there is one process and no group.
    """

    rank: int = 0
    count: int = 1
    how: str | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    def part(self, values: T) -> T:
        """This one's part of what a step takes, an array of examples; all parts are as long."""
        each = len(values) // self.count  # type: ignore[arg-type]
        return values[self.rank * each : (self.rank + 1) * each]  # type: ignore[index]

    def means(self, *values: float) -> tuple[float, ...]:
        """Means over the processes."""
        if self.how is None:
            return values
        import torch

        sums = torch.tensor(values, dtype=torch.float64, device="cpu")
        torch.distributed.all_reduce(sums)
        return tuple((sums / self.count).tolist())

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of them."""
        return self.means(float(flag))[0] > 0

    def gather(self, value: T) -> list[T]:
        """What each has, in order."""
        if self.how is None:
            return [value]
        import torch.distributed

        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` gives in the first one, where alone it is called."""
        if self.how is None:
            return make()
        import torch.distributed

        box = [make() if self.first else None]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]


def under_torchrun() -> Processes:
    """This process and how many there are, as torchrun tells in the environment; ``how`` is None."""
    rank, count = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    return Processes() if rank is None or count is None else Processes(int(rank), int(count))


@contextmanager
def joined(config: Config, parallel: str | None = None) -> Iterator[Processes]:
    """The processes of a run, connected while inside.

    Parameters
    ----------
    config : Config
    parallel : {"ddp", "fsdp"}, optional
        By default ``"ddp"`` where torchrun started several processes.

    Raises
    ------
    ValueError
        Where the processes cannot share the run.
    ElsewhereError
        In the place of an error inside, where another process failed before: one alone says what is wrong.
    """
    here = under_torchrun()
    if parallel is None and here.count == 1:
        yield here
        return
    with alike():
        _check(config, parallel)
        from torch import cuda, distributed

    on_cuda = config.device == "cuda" and cuda.is_available()
    store, rank, count = next(iter(distributed.rendezvous("env://")))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = distributed.PrefixStore(f"organics train {attempt} {next(_RUNS)}", store)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo", store=store, rank=rank, world_size=count
    )
    try:
        if on_cuda:
            place = int(os.environ.get("LOCAL_RANK", "0"))
            if place >= cuda.device_count():
                raise ValueError(f"{place + 1} processes or more on a machine with {cuda.device_count()} CUDA devices")
            cuda.set_device(place)
        yield Processes(rank, count, parallel or "ddp")
    except Exception as error:
        if not _is_first(store):
            raise ElsewhereError(_ELSEWHERE) from error
        raise
    finally:
        distributed.destroy_process_group()


@contextmanager
def alike() -> Iterator[None]:
    """Inside, an error is one that every process makes: the first says it, for all."""
    try:
        yield
    except Exception as error:
        if under_torchrun().first:
            raise
        raise ElsewhereError(_ELSEWHERE) from error


def _check(config: Config, parallel: str | None) -> None:
    """Whether processes can share this run."""
    if parallel is not None:
        checks.one_of("parallel", parallel, PARALLEL)
    if config.framework != "torch":
        raise ValueError(
            f"the framework {config.framework} trains in one process: start it without torchrun and --parallel, or "
            "choose the framework torch"
        )
    if "RANK" not in os.environ:
        raise ValueError(
            f"parallel={parallel!r} is for the processes of torchrun: torchrun --nproc-per-node 2 -m organics_cli "
            "train ..."
        )
    if config.device not in ("cpu", "cuda"):
        raise ValueError(
            f"device must be cpu or cuda where several processes train, each on a device of its own, got "
            f"{config.device!r}"
        )
    if importlib.util.find_spec("torch") is None:
        raise ImportError('several processes need torch: pip install "organics-core[torch]"')


def _is_first(store: Any) -> bool:
    """Whether no other process has asked so far."""
    try:
        return bool(store.add("failed", 1) == 1)
    except RuntimeError:  # the one that holds the store is gone
        return False
