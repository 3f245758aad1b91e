"""The commands `verify` and `rerun`: are records as they were written, and do they come out again?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import options
from harness.errors import RecordError

if TYPE_CHECKING:
    from harness.record import Record
    from harness.store import Store

EXIT_DOUBT, EXIT_DIFFERS = 1, 1


def verify(results: options.Results = "results") -> None:
    """Name records and outcomes that were edited or lost, and board values that no record supports.

    Exit code 1 where there are any.
    """
    from harness.audit import verify as find
    from harness.inspection.files import printable
    from harness.store import Store

    store = Store(results)
    doubts = find(store)
    for doubt in doubts:
        print(printable(str(doubt)))
    count = len(store.names())
    print(f"{count:,} records, {len(doubts):,} doubts." if doubts else f"{count:,} records are as they were written.")
    if doubts or not count:
        raise typer.Exit(EXIT_DOUBT)


def rerun(
    record: Annotated[str, typer.Argument(help="The record's JSON file, or its address.")],
    model: Annotated[str, typer.Option(help="Where the user's file is that it names, as PATH.py:NAME.")] = "",
    weights: Annotated[Path | None, typer.Option(help="Where its weights file is.")] = None,
    data: options.Data = None,
    results: Annotated[str, typer.Option(help="Where the new record goes.")] = "results/rerun",
) -> None:
    """Run a record's request again, and say what differs: numbers, with a verdict each, and everything else.

    Exit code 1 where a number of the ranked tables differs for the worse or the better, could not be measured, or there
    is none.
    """
    from harness.api import summary
    from harness.audit import job_of, repeat
    from harness.gate import Verdict
    from harness.inspection.files import printable
    from harness.store import Store

    source, before = _opened(record)
    job = job_of(before, model, weights, Path(data) if data else None)
    _, findings, changes = repeat(job, before, source, Store(results))
    minor = {one.metric.name for one in before.measurements if one.metric.minor}
    quiet = [one for one in findings if one.cell[-1] in minor and one.verdict is Verdict.SAME]
    for finding in (one for one in findings if one not in quiet):
        print(printable(f"{finding.cell[-1]}: {finding.verdict}. {finding.reason}"))
    if quiet:
        print(f"Numbers that ranked tables leave out, and that are the same: {len(quiet):,}")
    if not findings:
        print(printable(f"There is no number to compare with: {summary(before)}"))
    print("Also different:" if changes else "Beside the numbers nothing differs.")
    for change in changes:
        print(printable(f"  {change}"))
    apart = (Verdict.WORSE, Verdict.BETTER, Verdict.NOT_MEASURED)
    if not findings or any(one.verdict in apart and one.cell[-1] not in minor for one in findings):
        raise typer.Exit(EXIT_DIFFERS)


def _opened(record: str) -> tuple[Store, Record]:
    """Return the store that a record's file lies in, and the record."""
    from harness.location import locate
    from harness.record import from_json
    from harness.store import Store

    folder, _, name = (record if "://" in record else Path(record).resolve().as_posix()).rpartition("/")
    content = locate(folder).read(name)
    if content is None:
        raise RecordError(f"There is no record {record!r}. Give a file of results/records.")
    return Store(folder.rpartition("/")[0]), from_json(content, name)
