"""Evaluating a submission in isolation, and taking in what came of it without trusting it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from harness import isolation
from harness.conformance import Check, blocking
from harness.errors import BenchError, RecordError, SetupError
from harness.inspection.files import printable
from harness.isolation import Limits, Way
from harness.metric import Metric
from harness.progress import say, waiting
from harness.published import published_record
from harness.record import Record, slug
from harness.store import Store, write_atomically
from harness.submission.manifest import Submission
from harness.submission.plan import Plan, expected_model, folder_sha256
from harness.submission.remains import checks_of, clear, problem_of, records_of
from harness.submission.worker import EXIT_DONE, EXIT_FAILED
from harness.submission.worker import REPORT as CONFORMANCE

REPORT = "report.json"
LAST_LINES, LONGEST_LINE = 5, 300


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a submission; beside its records in the work folder.

    Args:
        sha256: of the submission's folder.
        way: how its code was isolated; empty where nothing ran.
        lacks: what this isolation does not give.
        checks: of the conformance kit.
        records: the names of the records that came of it.
        failure: why it did not end well; empty where it did.
    """

    sha256: str
    way: str = ""
    lacks: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    records: tuple[str, ...] = ()
    failure: str = ""


def work_folder(work: Path, submission: Submission, folder: Path, sha256: str) -> Path:
    """Return where the records of a submission with this content are kept.

    Raises:
        SetupError: that is inside the submission's own folder.
    """
    place = (work / slug(submission.submission.name) / sha256[:8]).resolve()
    if place.is_relative_to(folder.resolve()):
        raise SetupError(f"--work {str(work)!r} is inside the submission: give a folder outside it.")
    return place


def evaluate(submission: Submission, folder: Path, plan: Plan, place: Path, limits: Limits, way: Way) -> Report:
    """Run a plan in isolation, and keep records, named as the submission is, in `place`.

    Raises:
        BenchError: nothing could be started.
    """
    isolated, log = place / "isolated", place / "log.txt"
    clear(isolated, CONFORMANCE)
    sha256 = folder_sha256(folder)
    words = [sys.executable, "-P", "-m", "harness.submission.worker", msgspec.json.encode(plan).decode()]
    say(f"{submission.submission.name} runs, isolated by {way}; what it says is in {log}")
    with waiting(f"{', '.join(plan.tasks)}"):
        ended = isolation.run(
            words, folder=isolated, readable=[folder, Path(plan.data).resolve()], limits=limits, log=log, way=way
        )
    base = Report(sha256=sha256, way=way, lacks=isolation.lacks(way))
    checks = checks_of(isolated, CONFORMANCE)
    if problem := problem_of(isolated):
        left = f"It left what is not read: {problem.message}"
        return replace(base, checks=checks, failure=" ".join(filter(None, (_failure(ended, checks, log), left))))
    report = replace(base, checks=checks, failure=_failure(ended, checks, log))
    records: list[Record] = []
    try:
        for record, outcomes in records_of(plan, expected_model(submission), Store(isolated)):
            details = {**record.details, **about(submission, sha256, way)}
            stamped = msgspec.structs.replace(record, model=submission.submission.name, details=details)
            records.append(Store(place).save(stamped, outcomes))
    except (BenchError, OSError, ValueError) as error:
        return replace(report, failure=report.failure or f"Its records cannot be used: {printable(str(error))[:300]}")
    missing = sorted(set(plan.tasks) - {record.task for record in records})
    failure = report.failure or (
        f"There is no record of {', '.join(missing)}." if missing and not plan.predictions else ""
    )
    return replace(report, records=tuple(record.name for record in records), failure=failure)


def claims(submission: Submission, folder: Path, place: Path) -> Report:
    """Keep a record for each claimed number; nothing runs."""
    sha256, store = folder_sha256(folder), Store(place)
    name, details = submission.submission.name, about(submission, folder_sha256(folder), "")
    records = [
        store.save(
            published_record(
                name, one.task, {Metric(one.metric, one.unit, one.higher_is_better): one.value}, one.source, **details
            )
        )
        for one in submission.claim
    ]
    return Report(sha256=sha256, records=tuple(record.name for record in records))


def about(submission: Submission, sha256: str, way: str) -> dict[str, Any]:
    """Return what a record says of the submission that it came from."""
    stated = asdict(submission.submission)
    kept = {name: stated[name] for name in ("name", "kind", "authors", "paper", "license", "notes") if stated[name]}
    entry = {"entry": expected_model(submission)} if submission.model else {}
    found: dict[str, Any] = {"submission": {**kept, **entry, "sha256": sha256}}
    return found | ({"isolation": {"way": way, "lacks": list(isolation.lacks(way))}} if way else {})  # type: ignore[arg-type]


def keep(report: Report, place: Path) -> None:
    """Write a report into the work folder."""
    write_atomically(place / REPORT, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def kept(place: Path) -> Report | None:
    """Return the report of a work folder; None where there is none."""
    path = place / REPORT
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except msgspec.MsgspecError as error:
        raise RecordError(f"{str(path)!r} is no report ({error}). Run the submission again.") from error


def _failure(ended: isolation.Ended, checks: Sequence[Check], log: Path) -> str:
    """Why a run did not end well; empty where it did."""
    if ended.stopped:
        return f"It was stopped: {ended.stopped}."
    if wrong := blocking(checks):
        return f"It breaks the contract of models: {', '.join(check.name for check in wrong)}."
    if ended.code == EXIT_DONE:
        return ""
    if ended.code == EXIT_FAILED:
        return "A task failed; its record says why."
    return f"The process ended with {ended.code}: {last_lines(log)}"


def last_lines(log: Path) -> str:
    """Return the last lines of a log, as a terminal can show them."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LAST_LINES * LONGEST_LINE))
        text = file.read().decode(errors="replace")
    return " / ".join(printable(line)[:LONGEST_LINE] for line in text.splitlines()[-LAST_LINES:])


class Both(Store):
    """The records of a store, with those of another as if they had been admitted; nothing is written."""

    def __init__(self, first: Store, second: Store) -> None:
        super().__init__(first.location)
        self._second = second

    def has_outcomes(self, record: Record) -> bool:
        """Whether either has the outcomes of a record."""
        return super().has_outcomes(record) or self._second.has_outcomes(record)

    def read_outcomes(self, record: Record) -> Any:
        """Read the outcomes of a record from whichever has them."""
        return (
            self._second.read_outcomes(record) if self._second.has_outcomes(record) else super().read_outcomes(record)
        )


def preview(results: Store, place: Path, report: Report) -> str:
    """Return the rows of a submission as the boards would show them, with the rows next to them, in Markdown."""
    from harness.leaderboard import make_boards
    from harness.ranking import with_ranks
    from harness.tables import board_to_markdown, escape, published_to_markdown

    mine = [found for name in report.records if (found := Store(place).find(name))]
    names = {record.name for record in mine}
    others = [record for record in results.load() if record.name not in names]
    boards, left_out = make_boards([*others, *mine])
    parts = []
    for board in boards:
        places = [index for index, row in enumerate(board.rows) if row.record.name in names]
        if places:
            ranked = with_ranks(board, Both(results, Store(place)))
            rows = ranked.rows[max(0, places[0] - 2) : places[-1] + 3]
            parts += [f"## {escape(board.title)}", board_to_markdown(replace(ranked, rows=rows))]
    mine_out = [item for item in left_out if item.record.name in names]
    parts += published_to_markdown(boards, [item for item in mine_out if item.record.provenance == "published"])
    parts += [
        f"Not ranked: {escape(item.record.task)}: {escape(item.reason)}"
        for item in mine_out
        if item.record.provenance != "published"
    ]
    # Records hold text of the submission, which a terminal must not obey.
    return "\n".join(map(printable, "\n\n".join(parts).split("\n")))


def as_mapping(report: Report) -> Mapping[str, Any]:
    """Return a report as plain values, for JSON."""
    found: Mapping[str, Any] = msgspec.to_builtins(report)
    return found
