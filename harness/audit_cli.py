"""The commands `verify` and `rerun`: are records as they were written, and do they come out again?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness import options
from harness.errors import RecordError

EXIT_DOUBT, EXIT_DIFFERS = 1, 1


def verify(results: options.Results = Path("results")) -> None:
    """Name records and outcomes that were edited or lost, and board values that no record supports.

    Exit code 1 where there are any.
    """
    from harness.audit import verify as find
    from harness.store import Store

    store = Store(results)
    doubts = find(store)
    for doubt in doubts:
        print(doubt)
    count = len(list(store.records.glob("*.json")))
    print(f"{count:,} records, {len(doubts):,} doubts." if doubts else f"{count:,} records are as they were written.")
    if doubts or not count:
        raise typer.Exit(EXIT_DOUBT)


def rerun(
    record: Annotated[Path, typer.Argument(help="The record's JSON file.")],
    model: Annotated[str, typer.Option(help="Where the user's file is that it names, as PATH.py:NAME.")] = "",
    weights: Annotated[Path | None, typer.Option(help="Where its weights file is.")] = None,
    data: options.Data = None,
    results: Annotated[Path, typer.Option(help="Where the new record goes.")] = Path("results/rerun"),
) -> None:
    """Run a record's request again, and say what differs: numbers, with a verdict each, and everything else.

    Exit code 1 where a number differs for the worse or the better, or could not be measured.
    """
    from harness.audit import job_of, repeat
    from harness.gate import Verdict
    from harness.store import Store

    if not record.is_file():
        raise RecordError(f"There is no record {str(record)!r}. Give a file of results/records.")
    source = Store(record.resolve().parent.parent)
    before = source.read(record)
    job = job_of(before, model, weights, Path(data) if data else None)
    _, findings, changes = repeat(job, before, source, Store(results))
    for finding in findings:
        print(f"{finding.cell[-1]}: {finding.verdict}. {finding.reason}")
    print("Beside the numbers nothing differs." if not changes else "Also different:\n  " + "\n  ".join(changes))
    if any(finding.verdict in (Verdict.WORSE, Verdict.BETTER, Verdict.NOT_MEASURED) for finding in findings):
        raise typer.Exit(EXIT_DIFFERS)
