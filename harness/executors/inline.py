"""Running jobs in this process: for callables of a notebook, and for debugging."""

from __future__ import annotations

from collections.abc import Sequence

from harness.metric import Outcomes
from harness.models import check_model_id
from harness.record import Record
from harness.runner import Request, run_request


def execute(request: Request) -> tuple[Record, Outcomes | None]:
    """Run one job here."""
    return run_request(request)


def check(model_ids: Sequence[str]) -> None:
    """Look up the names in model ids.

    Raises:
        BenchError: what `check_model_id` raises.
    """
    for model_id in model_ids:
        check_model_id(model_id)
