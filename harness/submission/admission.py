"""Taking the records of an evaluated submission into the results."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from harness.audit import verify
from harness.errors import DuplicateName, RecordError
from harness.record import Record
from harness.registry import MODELS
from harness.store import Store
from harness.submission.evaluation import kept
from harness.submission.plan import folder_sha256


def admit(folder: Path, place: Path, results: Store) -> list[Record]:
    """Copy the records and outcomes of a submission, and return the records; those that are there already stay.

    Raises:
        RecordError: it was not run, did not end well, or its records are not as they were written.
        DuplicateName: the results hold other content under its name.
    """
    report = kept(place)
    if report is None or report.sha256 != folder_sha256(folder):
        raise RecordError(f"{str(folder)!r} was not run as it is now: `run_bench.py submit run {folder}`.")
    if report.failure:
        raise RecordError(f"{str(folder)!r} is not admitted. {report.failure} Mend it and run it again.")
    source = Store(place)
    if doubts := verify(source):
        raise RecordError(f"The records of {str(folder)!r} changed since the run: {doubts[0]}. Run it again.")
    records = [record for name in report.records if (record := source.find(name))]
    if len(records) != len(report.records) or not records:
        raise RecordError(f"Records of {str(folder)!r} are gone: run it again with `run_bench.py submit run`.")
    _check_names(records, report.sha256, source, results)
    for record in records:
        results.location.write(source.files(record))
    return records


def _check_names(records: list[Record], sha256: str, source: Store, results: Store) -> None:
    """Refuse to overwrite, and to show two submissions under one name."""
    # Published figures stand beside a measured model, so that they have its name.
    names = {_alike(record.model): record.model for record in records if record.provenance != "published"}
    registered = [(model, "a model of this project") for model in MODELS] if names else []
    for other, what in [*registered, *_others(results, sha256)]:
        if name := names.get(_alike(other)):
            like = "is" if name == other else f"is too like {other!r},"
            raise DuplicateName(f"{name!r} {like} {what}: choose another name.")
    for record in records:
        for name, content in source.files(record).items():
            if results.location.read(name) not in (None, content):
                raise DuplicateName(
                    f"'{results}/{name}' is there with other content. Remove it to replace it, with the file of "
                    "outcomes."
                )


def _others(results: Store, sha256: str) -> Iterator[tuple[str, str]]:
    """Yield the names that results hold of anything but one submission, and what each is."""
    for other in results.load():
        owner = other.details.get("submission", {})
        if other.provenance != "published" and owner.get("sha256") != sha256:
            what = f"another submission (SHA-256 {owner['sha256'][:8]})" if owner else "a model that was not submitted"
            yield other.model, f"{what} in {str(results)!r}"


def _alike(name: str) -> str:
    """What is left of a name where letters have no case, and dots and dashes do not tell names apart."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
