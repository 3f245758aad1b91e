"""Records: results/records/*.json, with the outcome of every item in results/outcomes/*.csv.gz.

While an evaluation runs, results/unfinished/ keeps what it has found; for results elsewhere, a folder on this machine.
There too are the pictures of a few items, where they were asked for: results/panels/.
"""

from __future__ import annotations

import csv
import gc
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from harness.errors import RecordError
from harness.location import Location, locate, replacing, write_atomically
from harness.metric import Outcomes
from harness.progress import track
from harness.record import Record, from_json, sealed, to_json

__all__ = ["Store", "replacing", "to_csv", "uncollected", "write_atomically"]


class Store:
    """A place of records. Every file is written whole, so that an interrupted run leaves whole files only.

    Of results in a folder, `root` is that folder. Of results elsewhere it is one on this machine, where `unfinished`
    lies, and in `records` and `outcomes` what has not arrived yet.

    Args:
        results: a folder, made when first written to, or an address that fsspec reads.

    Raises:
        BenchError: an address that cannot be used.
    """

    def __init__(self, results: str | Path | Location) -> None:
        self.location = locate(results) if isinstance(results, str | Path) else results
        self.root = self.location.here
        self.records = self.root / "records"
        self.outcomes = self.root / "outcomes"
        self.unfinished = self.root / "unfinished"
        self.panels = self.root / "panels"

    def __str__(self) -> str:
        return str(self.location)

    def find(self, name: str) -> Record | None:
        """Return the record whose files have this stem, if there is one."""
        self.location.deliver()
        content = self.location.read(_record_file(name))
        return None if content is None else from_json(content, f"{name}.json")

    def names(self) -> list[str]:
        """Return the names of the files of all records, sorted."""
        return [name for name in self.location.names("records") if name.endswith(".json")]

    def read(self, name: str) -> Record:
        """Read one record by its file's name.

        Raises:
            RecordError: it is none.
        """
        return from_json(self.text(name), name)

    def text(self, name: str) -> bytes:
        """Return the text of one record by its file's name."""
        (content,) = self.location.read_all([f"records/{name}"])
        return content

    def texts(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the content of the file of every record, by name."""
        names = self.names()
        contents = self.location.read_all([f"records/{name}" for name in names])
        return zip(names, track(contents, "read records"), strict=True)

    def load(self, read: Callable[[bytes, str], Record] = from_json) -> list[Record]:
        """Read all records, by name.

        Args:
            read: makes a record of the text of a file and the file's name.

        Raises:
            RecordError: a file is not a record, or is one that another file is too; it is named.
        """
        files: dict[str, str] = {}
        records = []
        with uncollected():
            for name, text in self.texts():
                record = read(text, name)
                if (other := files.setdefault(record.name, name)) != name:
                    raise RecordError(f"{other} and {name} are both the record {record.name}. Remove one of them.")
                records.append(record)
        return records

    def save(self, record: Record, outcomes: Outcomes | None = None) -> Record:
        """Write a record and its outcomes, and return the record with the hashes of the outcomes and of itself.

        Raises:
            RecordError: they cannot be written.
        """
        files = {}
        if outcomes is not None:
            content = to_csv(outcomes)
            record = replace(record, outcomes_sha256=hashlib.sha256(content).hexdigest())
            # No name and no time in the gzip header: equal outcomes are equal bytes.
            files[_outcomes_file(record.name)] = gzip.compress(content, compresslevel=6, mtime=0)
        record = sealed(record)
        self.location.write({**files, _record_file(record.name): to_json(record)})
        return record

    def has_outcomes(self, record: Record) -> bool:
        """Whether the outcomes of a record are beside it."""
        return self.location.has(_outcomes_file(record.name))

    def read_outcomes(self, record: Record) -> Outcomes:
        """Read the outcome of every item of a record.

        Raises:
            RecordError: they are absent, or not those that the record was made with.
        """
        packed = self.location.read(_outcomes_file(record.name))
        if packed is None:
            raise RecordError(f"The outcomes of {record.name} are not in {str(self)!r}. Copy them beside the record.")
        again = "Restore it, or run again with --rerun."
        try:
            content = gzip.decompress(packed)
        except (OSError, EOFError, zlib.error) as error:
            raise RecordError(f"{record.name}.csv.gz is damaged ({error}). {again}") from error
        if hashlib.sha256(content).hexdigest() != record.outcomes_sha256:
            raise RecordError(f"{record.name}.csv.gz is not what {record.name} was made with. {again}")
        try:
            header, *rows = csv.reader(io.StringIO(content.decode()))
            return Outcomes(tuple(header), tuple((row[0], *map(int, row[1:])) for row in rows))
        except (csv.Error, ValueError, IndexError) as error:
            raise RecordError(f"{record.name}.csv.gz holds no outcomes ({error}). {again}") from error

    def files(self, record: Record) -> dict[str, bytes]:
        """Return the files of a record by name, the outcomes first: a record without them would be a doubt.

        Raises:
            RecordError: one of them is gone.
        """
        names = [_outcomes_file(record.name)] if record.outcomes_sha256 else []
        names.append(_record_file(record.name))
        return dict(zip(names, self.location.read_all(names), strict=True))


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python from looking for cycles while very many objects are made: they have none, and it takes longer."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _record_file(name: str) -> str:
    return f"records/{name}.json"


def _outcomes_file(name: str) -> str:
    return f"outcomes/{name}.csv.gz"


def to_csv(outcomes: Outcomes) -> bytes:
    """Return outcomes as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(outcomes.columns)
    writer.writerows(outcomes.rows)
    return text.getvalue().encode()
