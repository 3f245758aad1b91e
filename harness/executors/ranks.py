"""Running jobs in this process as one of the ranks that `torchrun` started: all of them run every job together."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from harness import distributed
from harness.executors import inline
from harness.metric import Outcomes
from harness.record import Record
from harness.runner import Request


def execute(request: Request) -> tuple[Record, Outcomes | None]:
    """Run one job with the other ranks; the record's error is that of the first rank to fail.

    Raises:
        FailedAlone: this rank failed and the others cannot go on.
    """
    with distributed.joined(request.job.setup.device) as meeting:
        record, outcomes = inline.execute(request)
        if record.error:
            meeting.fail(record.error)
    cause = meeting.end(record.error)
    return replace(record, error=cause if record.error else None), outcomes


def check(model_ids: Sequence[str]) -> None:
    """Look up the names in model ids.

    Raises:
        BenchError: what `check_model_id` raises.
    """
    inline.check(model_ids)
