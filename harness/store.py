"""Records on disk: results/records/*.json, with the outcome of every item in results/outcomes/*.csv.gz.

While an evaluation runs, results/unfinished/ keeps what it has found. Pictures of a few items, where they were asked
for, lie in results/panels/.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from harness.errors import RecordError
from harness.metric import Outcomes
from harness.record import Record, from_json, sealed, to_json


class Store:
    """A folder of records. Every write is atomic, so an interrupted run leaves whole files only.

    Args:
        root: the results folder; made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.records = root / "records"
        self.outcomes = root / "outcomes"
        self.unfinished = root / "unfinished"
        self.panels = root / "panels"

    def find(self, name: str) -> Record | None:
        """Return the record whose files have this stem, if there is one."""
        path = self.records / f"{name}.json"
        return self.read(path) if path.is_file() else None

    def read(self, path: Path) -> Record:
        """Read one record.

        Raises:
            RecordError: it is not one.
        """
        return from_json(path.read_bytes(), path.name)

    def load(self) -> list[Record]:
        """Read all records, by name.

        Raises:
            RecordError: a file is not a record; it is named.
        """
        return [self.read(path) for path in sorted(self.records.glob("*.json"))]

    def save(self, record: Record, outcomes: Outcomes | None = None) -> Record:
        """Write a record and its outcomes, and return the record with the hashes of the outcomes and of itself.

        Raises:
            RecordError: the folder cannot be written.
        """
        try:
            if outcomes is not None:
                content = to_csv(outcomes)
                record = replace(record, outcomes_sha256=hashlib.sha256(content).hexdigest())
                # No name and no time in the gzip header: equal outcomes are equal bytes.
                write_atomically(
                    self.outcomes / f"{record.name}.csv.gz", gzip.compress(content, compresslevel=6, mtime=0)
                )
            record = sealed(record)
            write_atomically(self.records / f"{record.name}.json", to_json(record))
        except OSError as error:
            raise RecordError(
                f"The results cannot be written to {str(self.root)!r} ({error.strerror}). Give another --results."
            ) from error
        return record

    def has_outcomes(self, record: Record) -> bool:
        """Whether the outcomes of a record are beside it."""
        return (self.outcomes / f"{record.name}.csv.gz").is_file()

    def read_outcomes(self, record: Record) -> Outcomes:
        """Read the outcome of every item of a record.

        Raises:
            RecordError: they are absent, or not those that the record was made with.
        """
        path = self.outcomes / f"{record.name}.csv.gz"
        if not path.is_file():
            raise RecordError(
                f"The outcomes of {record.name} are not in {str(self.outcomes)!r}. Copy them beside the record."
            )
        content = gzip.decompress(path.read_bytes())
        if hashlib.sha256(content).hexdigest() != record.outcomes_sha256:
            raise RecordError(
                f"{path.name} is not what {record.name} was made with. Restore it, or run again with --rerun."
            )
        header, *rows = csv.reader(io.StringIO(content.decode()))
        return Outcomes(tuple(header), tuple((row[0], *map(int, row[1:])) for row in rows))


def to_csv(outcomes: Outcomes) -> bytes:
    """Return outcomes as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(outcomes.columns)
    writer.writerows(outcomes.rows)
    return text.getvalue().encode()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that others see the old one or the whole new one."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file whose content takes the place of `path` when all of it is written; after an error none of it does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads; results are for sharing.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
