"""Whether records are as they were written, whether boards say what records say, and whether a run can be repeated."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from harness.api import EXECUTORS, run_jobs
from harness.board import CSV, PAGES
from harness.errors import RecordError
from harness.gate import Finding, Policy, judge
from harness.leaderboard import Board, LeftOut, make_boards
from harness.ranking import with_ranks
from harness.record import Preprocessing, Record, Setup, Weights, content_sha256
from harness.runner import Job
from harness.skim import skim
from harness.statements import unsupported
from harness.store import Store, uncollected
from harness.weights import file_sha256

MOST_DOUBTS = 20
COUNTS = "token_counts"
# Pages beside those of the boards, and the command that writes them.
REPORTS = {
    "tradeoff.md": "suite --pages", "tradeoff.csv": "suite --pages", f"{COUNTS}/README.md": "attention",
    f"{COUNTS}/points.csv": "attention",
}  # fmt: skip


@dataclass(frozen=True)
class Doubt:
    """Something that no run has made."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def verify(store: Store) -> list[Doubt]:
    """Return what was edited, renamed or lost since it was written, and what pages say and no record supports."""
    found: list[Doubt] = []
    records: list[Record] = []
    with uncollected():
        for name, text in store.texts():
            try:
                record = skim(text, name)
            except RecordError as error:
                found.append(Doubt(name, str(error)))
                continue
            records.append(record)
            found += _check_record(store, record, name, text)
        try:
            boards, left_out = make_boards(records)
            boards = [with_ranks(board, store) for board in boards]
        except RecordError as error:
            return [*found, Doubt("boards", f"cannot be made of these records. {error}")]
        return [*found, *_check_pages(store, boards, left_out), *_check_reports(store, boards, records)]


def _check_record(store: Store, record: Record, name: str, text: bytes) -> Iterator[Doubt]:
    """Check a record's hash, its name, and the outcomes beside it."""
    if not record.content_sha256:
        yield Doubt(name, "has no content hash: written before there were any, or by hand. Run it again.")
    elif record.content_sha256 != content_sha256(text):
        yield Doubt(name, "was edited after it was written. Restore it, or run it again with --rerun.")
    if name != f"{record.name}.json":
        yield Doubt(name, f"is the record of {record.name}. Give it that name.")
    if record.outcomes_sha256:
        try:
            store.read_outcomes(record)
        except RecordError as error:
            yield Doubt(name, str(error))


def _check_pages(store: Store, boards: Sequence[Board], left_out: Sequence[LeftOut]) -> Iterator[Doubt]:
    """Hold every page of the boards that was written against what the records give."""
    for name, make in PAGES.items():
        content = store.location.read(name)
        if content is None or content == (fresh := make(boards, left_out)):
            continue
        check = _check_csv if name == CSV else _check_page
        found = list(check(name, content, fresh))
        yield from found[:MOST_DOUBTS]
        if not found:
            yield Doubt(name, "differs from what the records give in its ranks or its layout. Run `board` again.")
        if (more := len(found) - MOST_DOUBTS) > 0:
            yield Doubt(name, f"{more:,} more are supported by no record.")


def _check_reports(store: Store, boards: Sequence[Board], records: Sequence[Record]) -> Iterator[Doubt]:
    """Hold the pages of trade-offs and of token counts that were written against what the records give."""
    from harness.growth_report import TASK, grouped, tables
    from harness.tradeoff import tradeoffs
    from harness.tradeoff_page import pages

    there = [name for name in REPORTS if store.location.has(name)]
    if not there:
        return
    # Costs over token counts are told by the samples of a run, which skimming passes over.
    names = {f"{record.name}.json" for record in records if record.task.startswith(TASK)}
    whole = [store.read(name) for name in store.names() if name in names]
    fresh = pages(tradeoffs(boards, records))
    fresh |= {f"{COUNTS}/{name}": content for name, content in tables(grouped(whole)).items()}
    for name in there:
        if store.location.read(name) != fresh[name]:
            yield Doubt(name, f"differs from what the records give. Run `{REPORTS[name]}` again.")


def _check_page(name: str, page: bytes, fresh: bytes) -> Iterator[Doubt]:
    """Name what a written page says and the records do not."""
    for place, text in unsupported(name, page, fresh):
        yield Doubt(place, f"no record supports {text[:200]!r}. Run `board` again.")


def _check_csv(name: str, page: bytes, fresh: bytes) -> Iterator[Doubt]:
    """Compare every line of the CSV that was written with what the records give."""
    supported = {(row.get("task"), row.get("record")): row for _, row in _rows(fresh)}
    for number, row in _rows(page):
        place = f"{name}:{number}"
        expected = supported.get((row.get("task"), row.get("record")))
        if expected is None:
            yield Doubt(place, f"no record supports {row.get('model')!r} on {row.get('task')!r}. Run `board` again.")
            continue
        for column in row.keys() | expected.keys():
            if (written := row.get(column)) != (given := expected.get(column)):
                yield Doubt(place, f"{column} is {written or 'empty'}; the record gives {given or 'nothing'}.")


def _rows(page: bytes) -> Iterator[tuple[int, Mapping[str, str]]]:
    """The cells that hold something, by column, and the number of their line."""
    reader = csv.DictReader(io.StringIO(page.decode(errors="replace")), restkey="more")
    for row in reader:
        yield reader.line_num, {name: cell for name, cell in row.items() if cell}


def job_of(record: Record, model: str = "", weights: Path | None = None, data: Path | None = None) -> Job:
    """Return the job that a record came from.

    Args:
        model: where the user's file lies that a record names without its folder, such as `nets/mine.py:net`.
        weights: where the weights file lies.
        data: root of the data sets.

    Raises:
        RecordError: the record was not measured, or needs a file that was not given.
    """
    if record.provenance != "measured":
        raise RecordError(f"{record.name} is {record.provenance}, not measured: there is no run to repeat.")
    if record.error:
        raise RecordError(f"{record.name} failed when it was made ({record.error}): there are no numbers to repeat.")
    if "race" in record.details:
        raise RecordError(f"{record.name} is of a race with others: run `race` again with all of them.")
    # A submission's records have its name; they tell apart from that what was run.
    entry = record.details.get("submission", {}).get("entry", record.model)
    location = entry.partition("+")[0].rpartition(":")[0]
    if location.endswith(".py") and not model:
        raise RecordError(f"{record.name} was made with {location}: say where it is with --model FOLDER/{entry}.")
    stamp = record.setup.weights
    if stamp.source == "file" and weights is None:
        raise RecordError(f"{record.name} was made with {stamp.file}: say where it is with --weights FILE.")
    chosen = {name: getattr(record.setup.preprocessing, name) for name in record.setup.preprocessing.overridden}
    asked = Weights(
        source=stamp.source, file=stamp.file, allow_partial=stamp.allow_partial,
        file_sha256=file_sha256(weights) if weights else "",
    )  # fmt: skip
    setup: Setup = replace(record.setup, weights=asked, preprocessing=Preprocessing(**chosen))
    threads = record.environment.threads if record.machine_bound and setup.device == "cpu" else None
    return Job(model=model or entry, task=record.task, setup=setup, data=data, weights_file=weights, threads=threads)


def repeat(job: Job, before: Record, source: Store, target: Store) -> tuple[Record, list[Finding], list[str]]:
    """Run a job again, and return the new record, a finding for every metric, and what differs beside the numbers."""
    (after,) = run_jobs([job], target, EXECUTORS["process"], rerun=True)
    if "submission" in before.details:
        outcomes = target.read_outcomes(after) if after.outcomes_sha256 else None
        after = target.save(replace(after, model=before.model), outcomes)
    findings = judge([_with_minor(before)], [_with_minor(after)], Policy(), (source, target))
    return after, findings, differing(before, after)


def _with_minor(record: Record) -> Record:
    """A record whose every number is judged, also those that ranked tables leave out."""
    return replace(record, measurements=tuple(
        replace(one, metric=replace(one.metric, minor=False)) for one in record.measurements
    ))  # fmt: skip


def differing(before: Record, after: Record) -> list[str]:
    """Return what differs between two records beside their numbers, a line each."""
    sides = [_about(record) for record in (before, after)]
    return [
        f"{name}: {old or 'none'} became {new or 'none'}"
        for name in sorted(sides[0].keys() | sides[1].keys())
        if (old := sides[0].get(name, "")) != (new := sides[1].get(name, ""))
    ]


def _about(record: Record) -> dict[str, str]:
    """What decides a record's numbers, in words."""
    place, data, setup = record.environment, record.data, record.setup
    return {
        "task version": str(record.task_version),
        "data": f"{data.name} {data.split} {data.fingerprint}" if data else "",
        "source": record.source_sha256[:16],
        "weights": setup.weights.sha256[:16],
        "weights file": setup.weights.file_sha256[:16],
        "preprocessing": setup.preprocessing.fingerprint[:16],
        "device": place.device,
        "processor": place.cpu,
        "threads": str(place.threads),
        "system": place.system,
        "python": place.python,
        "commit": place.commit + (" with changes" if place.dirty else ""),
        **{f"{name} version": version for name, version in place.versions.items()},
    }
