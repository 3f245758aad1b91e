"""Running jobs in this process: for callables of a notebook, and for debugging."""

from __future__ import annotations

from harness.metric import Outcomes
from harness.record import Record
from harness.runner import Job, run_job


def execute(job: Job) -> tuple[Record, Outcomes | None]:
    """Run one job here."""
    return run_job(job)
