"""Running each job in a process of its own, so that a crash or a leak there is its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from types import ModuleType
from typing import Any, TypeVar

from harness.errors import BenchError, ModelError
from harness.executors import inline
from harness.metric import Evaluation, Outcomes
from harness.models import public_id
from harness.record import Record
from harness.runner import Request, describe

T = TypeVar("T")
R = TypeVar("R")


def execute(request: Request) -> tuple[Record, Outcomes | None]:
    """Run one job in a fresh process; a process that dies becomes a record that says how."""
    started = datetime.now(UTC)
    try:
        return _call(inline.execute, request)
    except ProcessDied as death:
        hint = " (often out of memory: try a smaller --batch-size)" if str(death) == "SIGKILL" else ""
        error = f"The process that ran the model died: {death}{hint}. Run the model by itself to mend it."
    seconds = (datetime.now(UTC) - started).total_seconds()
    return describe(request, request.job.setup, Evaluation(()), error, started, seconds), None


def check(model_ids: Sequence[str]) -> None:
    """Look up the names in model ids, which runs the users' files, in a process that can die of it.

    Raises:
        BenchError: what `check_model_id` raises.
    """
    try:
        _call(inline.check, tuple(model_ids))
    except ProcessDied as death:
        raise ModelError(
            f"The process that imported {', '.join(map(public_id, model_ids))} died: {death}. Import them by hand."
        ) from None


class ProcessDied(Exception):
    """A process that ended without an answer; the text says how."""


def _call(function: Callable[[T], R], argument: T) -> R:
    """Return what a function returns in a fresh process, or raise the BenchError that it raised there."""
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process: Any = context.Process(target=_serve, args=(function, argument, sender))  # type: ignore[attr-defined]
    with _no_main_module():
        process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode
        raise ProcessDied(signal.Signals(-code).name if code < 0 else f"exit code {code}") from None
    except BaseException:
        process.terminate()
        raise
    finally:
        receiver.close()
        _stop(process)
    if isinstance(result, BenchError):
        raise result
    return result  # type: ignore[no-any-return]


def _serve(function: Callable[[T], R], argument: T, sender: Connection) -> None:
    """The life of the process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send(function(argument))
    except BenchError as error:
        sender.send(error)
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Keep multiprocessing from running the user's script once more in the new process, which needs nothing of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end_with_parent() -> None:
    """End this process when the one that asked for it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _stop(process: Any) -> None:
    """Wait for a process that is ending, and end one that is not."""
    process.join(timeout=5)
    if process.is_alive():
        process.terminate()
        process.join()


@cache
def _context() -> BaseContext:
    """A server that has imported torch and starts each job from that clean state within milliseconds."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm"])
    return context
