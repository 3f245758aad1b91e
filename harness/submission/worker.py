"""The isolated process: the conformance kit, then the evaluation.

Run as `python -P -m harness.submission.worker PLAN`; what it prints goes to a log.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from harness import api
from harness.conformance import Check, Subject, blocking, examine
from harness.device import place
from harness.errors import BenchError
from harness.predictions import measure_predictions
from harness.progress import say
from harness.runner import Job, prepare
from harness.store import Store, write_atomically
from harness.submission.plan import Plan
from harness.task import build_task

REPORT = "conformance.json"
EXIT_DONE, EXIT_FAILED, EXIT_REFUSED, EXIT_MISTAKE = 0, 1, 3, 2


def work(plan: Plan) -> int:
    """Do what a plan says, and return the exit code: 1 where a task failed, 3 where the model breaks its contract.

    Raises:
        BenchError: what was asked cannot be run.
    """
    store = Store(Path(plan.results))
    if plan.predictions:
        measure_predictions(
            Path(plan.weights), plan.tasks, store, model=plan.model, data=Path(plan.data), rerun=plan.rerun
        )
        return EXIT_DONE
    options: dict[str, Any] = {
        "batch_size": plan.batch_size, "precision": plan.precision, "device": plan.device, "limit": plan.limit,
        "image_size": (plan.image_size, plan.image_size) if plan.image_size else None,
    }  # fmt: skip
    checks = _conformance(plan, options)
    write_atomically(store.root / REPORT, msgspec.json.encode(checks))
    for check in checks:
        say(str(check))
    if blocking(checks):
        return EXIT_REFUSED
    # This process is isolated already; loading data in others would only need more of what is watched.
    records = api.run(
        plan.model, plan.tasks, weights=plan.weights, data=plan.data, results=store.root, executor="inline", workers=0,
        threads=plan.threads, rerun=plan.rerun, **options,
    )  # fmt: skip
    return EXIT_FAILED if records.failed else EXIT_DONE


def _conformance(plan: Plan, options: dict[str, Any]) -> list[Check]:
    """Examine the model as the first task will have it."""
    setup, file = api.build_setup(plan.weights, **options)
    tasks = [build_task(task, Path(plan.data)) for task in plan.tasks]
    task = next((task for task in tasks if task.num_classes is not None), tasks[0])
    job = Job(model=plan.model, task=plan.tasks[0], setup=setup, data=Path(plan.data), weights_file=file)
    try:
        module, setup = prepare(job, task)
    except BenchError as error:
        return [Check("build", False, str(error))]
    images = sum(stamp.size for one in tasks if (stamp := one.data()) is not None)
    return examine(Subject(place(module, setup), setup, task.num_classes, plan.limit or images, plan.seconds))


if __name__ == "__main__":
    try:
        sys.exit(work(msgspec.json.decode(sys.argv[1], type=Plan)))
    except BenchError as mistake:
        say(f"Error: {mistake}")
        sys.exit(EXIT_MISTAKE)
