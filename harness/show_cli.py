"""The command `show`: look at what was evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness import options
from harness.errors import SetupError

RECORD_HELP = "A record's JSON file, its key, or the beginning of its name. Not with --task."
TASK_HELP = "Show image and truth of a task's data, without any run."


def show(
    record: Annotated[str | None, typer.Argument(help=RECORD_HELP)] = None,
    task: Annotated[str | None, typer.Option(help=TASK_HELP)] = None,
    data: options.Data = None,
    annotations: Annotated[
        Path | None, typer.Option(help="With --task: the truth, where it is not in the data root.")
    ] = None,
    results: options.Results = "results",
    count: Annotated[int, typer.Option(min=1, help="How many images are drawn where no panels were saved.")] = 12,
) -> None:
    """Show panels of image, truth and prediction: those that `run --save-panels` kept, or the truth alone.

    Of a classification record without panels they are drawn from its outcomes; other tasks must run again.
    """
    from harness.show import find, show_data, show_record
    from harness.store import Store

    if (record is None) == (task is None):
        raise SetupError("There is nothing to show: give a record, or --task; not both.")
    store, root = Store(results), Path(data) if data else None
    if task is not None:
        shown = show_data(store, task, root, annotations, count)
    else:
        store, found = find(store, str(record))
        shown = show_record(store, found, root, count)
    for path in shown.pictures:
        print(path)
    for item in shown.absent:
        print(f"gone: the panel of {item}")
    print(f"{len(shown.pictures)} panels: {shown.page}")
