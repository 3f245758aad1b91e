"""Several processes that train one model together, as `torchrun` starts them; without it this one is rank 0 of 1.

Each rank takes an equal share of every batch, torch averages the gradients, and rank 0 alone evaluates and writes.
"""

from __future__ import annotations

import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from harness.errors import ModelError, SetupError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

GRACE = 60.0  # seconds for the others to fail too, on a busy machine; else they wait for a rank that failed alone
POLL = 0.05  # seconds


class FailedAlone(ModelError):
    """This rank failed, and the others wait for it in vain."""


def active() -> bool:
    """Whether `torchrun` started this process."""
    return "LOCAL_WORLD_SIZE" in os.environ


def count() -> int:
    """Return how many ranks there are."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def rank() -> int:
    """Return which of them this process is, from 0."""
    return int(os.environ["LOCAL_RANK"]) if active() else 0


def first() -> bool:
    """Whether this is the rank that evaluates, writes and speaks."""
    return rank() == 0


def share(batch: int) -> int:
    """Return how many images of a batch each rank takes.

    Raises:
        SetupError: they do not divide.
    """
    if batch % count():
        raise SetupError(
            f"batch is {batch}, which {count()} ranks cannot share equally: give a multiple of {count()} as batch in "
            "the task id, or another --nproc-per-node."
        )
    return batch // count()


def check(task: str, batch: int | None, device: str) -> None:
    """Refuse what ranks cannot do together.

    Args:
        batch: images a step of the task's training; None where it has none that ranks share.

    Raises:
        SetupError: no such training, a batch that does not divide, several machines, or fewer GPUs than ranks.
    """
    if not active():
        return
    if os.environ["WORLD_SIZE"] != str(count()):
        raise SetupError(f"torchrun started {os.environ['WORLD_SIZE']} ranks, {count()} of them here: use one machine.")
    if batch is None:
        raise SetupError(f"{task} has no training that ranks could share: run it without torchrun.")
    share(batch)
    if device == "cpu":
        return
    import torch

    gpus = torch.cuda.device_count()
    if device != "cuda" or gpus < count():
        raise SetupError(
            f"--device {device} is not for {count()} ranks: each takes a GPU of its own, and torch sees {gpus}. "
            "Use --device cuda and --nproc-per-node with no more than these, or --device cpu."
        )


@dataclass
class Meeting:
    """What ranks that work on one job say to each other beside gradients.

    Args:
        store: of the job's own words.
        asked: how often rank 0 was asked for something.
    """

    store: Store
    asked: int = 0

    def fail(self, message: str) -> None:
        """Leave word of an error; the first is the cause of those that follow on other ranks."""
        self.store.compare_set("error", "", f"{rank()}:{message}")

    def end(self, error: str | None) -> str | None:
        """Wait until all ranks are done, and return the first error where there was one.

        Raises:
            FailedAlone: the others are not done, since they wait for this rank.
        """
        self.store.set(f"done/{rank()}", "")
        until = time.monotonic() + GRACE if error else math.inf
        together = self._await([f"done/{other}" for other in range(count())], until)
        if not self.store.check(["error"]):
            return None
        culprit, _, message = self.store.get("error").decode().partition(":")
        if message != error:
            message = f"rank {culprit} of {count()}: {message}"
        if not together:
            raise FailedAlone(message)
        return message

    def ask(self, compute: Callable[[], T]) -> T:
        """Return what rank 0 computes; the others wait as long as it takes."""
        from torch.distributed import broadcast_object_list

        self.asked += 1
        answer: list[Any] = [None, False]
        failure: Exception | None = None
        if first():
            try:
                answer = [compute(), True]
            except Exception as error:
                failure = error
            self.store.set(f"answer/{self.asked}", "")
        else:
            # A collective would run into its time-out.
            self._await([f"answer/{self.asked}"])
        broadcast_object_list(answer)
        if failure:
            raise failure
        if not answer[1]:
            self._await(["error"])
            raise ModelError("rank 0 failed")
        return answer[0]  # type: ignore[no-any-return]

    def _await(self, words: list[str], until: float = math.inf) -> bool:
        """Wait for words, interruptibly, and return whether they were left in time."""
        while not (found := bool(self.store.check(words))) and time.monotonic() < until:
            time.sleep(POLL)
        return found


_meeting: Meeting | None = None
_jobs = itertools.count()


@contextmanager
def joined(device: str) -> Iterator[Meeting]:
    """Connect the ranks for one job: by NCCL on GPUs, of which each takes its own, by Gloo on the CPU."""
    global _meeting
    import torch
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore

    if device != "cpu":
        torch.cuda.set_device(rank())
    store = PrefixStore(f"job/{next(_jobs)}", _store())
    backend = "gloo" if device == "cpu" else "nccl"
    distributed.init_process_group(backend, store=store, rank=rank(), world_size=count())
    _meeting = Meeting(store)
    try:
        with warnings.catch_warnings():
            # Of weights with sides of 1 the strides are ambiguous; nothing is wrong with them.
            warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)
            yield _meeting
    finally:
        _meeting = None
        distributed.destroy_process_group()


@cache
def _store() -> Store:
    """Where the ranks leave word for each other."""
    from torch.distributed.rendezvous import rendezvous

    found: Store = next(rendezvous("env://", rank(), count()))[0]
    return found


def by_first(compute: Callable[[], T]) -> T:
    """Return what rank 0 computes, on every rank of a job."""
    return _meeting.ask(compute) if _meeting else compute()


def total(value: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks."""
    if not _meeting:
        return value
    from torch.distributed import all_reduce

    value = value.detach().clone()
    all_reduce(value)
    return value


def synchronize_norms(module: nn.Module, device: str) -> str:
    """Let batch normalisation count the images of all ranks, where torch can, and return what it does, in words."""
    if not _meeting:
        return ""
    if device == "cpu":
        return "each rank's images"
    from timm.layers import convert_sync_batchnorm

    convert_sync_batchnorm(module)
    return "the images of all ranks"


def parallel(module: nn.Module, loss: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """Return a loss of a module's share of a batch, whose gradients are those of the mean over all ranks."""
    if not _meeting:
        return loss
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    class Loss(nn.Module):
        """What torch wraps: its parameters are the module's."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, batch: Any) -> Tensor:
            return loss(batch)

    # Which parameters a step uses can differ: detectors without objects, dropped branches, classifiers of no use.
    wrapped: Callable[[Any], Tensor] = DistributedDataParallel(Loss(), find_unused_parameters=True)
    return wrapped
