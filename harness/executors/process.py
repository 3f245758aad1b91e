"""Running each job in a process of its own, so that a crash or a leak there is its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from types import ModuleType
from typing import Any

from harness.errors import BenchError
from harness.metric import Evaluation, Outcomes
from harness.record import Record
from harness.runner import Job, describe, request, run_job
from harness.task import build_task


def execute(job: Job) -> tuple[Record, Outcomes | None]:
    """Run one job in a fresh process; a process that dies becomes a record that says how.

    Raises:
        BenchError: what the job raised about its request.
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process: Any = context.Process(target=_serve, args=(job, sender))  # type: ignore[attr-defined]
    started = datetime.now(UTC)
    with _no_main_module():
        process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        return _died(job, process.exitcode, started), None
    except BaseException:
        process.terminate()
        raise
    finally:
        receiver.close()
        _stop(process)
    if isinstance(result, BenchError):
        raise result
    record, outcomes = result
    return record, outcomes


def _serve(job: Job, sender: Connection) -> None:
    """The life of the process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send(run_job(job))
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


def _died(job: Job, code: int | None, started: datetime) -> Record:
    """The record of a job whose process ended without an answer."""
    how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
    hint = " (often out of memory: try a smaller --batch-size)" if how == "SIGKILL" else ""
    seconds = (datetime.now(UTC) - started).total_seconds()
    error = f"The process that ran the model died: {how}{hint}. Run the model by itself to mend it."
    task = build_task(job.task, job.data)
    return describe(job, task, request(job), job.setup, Evaluation(()), error, started, seconds)
