"""Panels after the fact: those of a record, saved or drawn again, and the truth of a data set without any run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.album import Album, file_name, pictures, write_page
from harness.errors import RecordError, SetupError
from harness.record import Record, Setup, slug
from harness.store import Store
from harness.task import build_task


@dataclass(frozen=True)
class Shown:
    """A page of panels, its pictures, and the items whose pictures were removed."""

    page: Path
    pictures: list[Path]
    absent: list[str]


def find(store: Store, text: str) -> tuple[Store, Record]:
    """Return the record that a file, a key or the beginning of a record's name means, with the store that it is in.

    Raises:
        RecordError: none, or several.
    """
    path = Path(text)
    if path.is_file():
        store = Store(path.resolve().parent.parent)
        return store, store.read(path.name)
    names = [name.removesuffix(".json") for name in store.names()]
    matching = [name for name in names if name.startswith(text) or name.rpartition("__")[2].startswith(text)]
    if len(matching) != 1:
        what = (
            f"{len(matching)} records match {text!r}: {', '.join(matching[:5])}" if matching else f"No record: {text!r}"
        )
        raise RecordError(f"{what}. Expected a file of {str(store)!r}, a key, or the beginning of one record's name.")
    return store, store.read(f"{matching[0]}.json")


def show_record(store: Store, record: Record, data: Path | None, count: int) -> Shown:
    """Return the panels of a record; where none were saved they are drawn from its outcomes.

    Args:
        data: root of the data sets.
        count: how many are drawn where none were saved.

    Raises:
        BenchError: they cannot be drawn without running the model again.
    """
    folder = store.panels / record.name
    items = record.details.get("panels", {}).get("items", [])
    if not pictures(folder):
        _redraw(store, record, data, Album(folder, len(items) or count))
    absent = [item for place, item in enumerate(items, 1) if not (folder / file_name(place, item)).is_file()]
    return Shown(write_page(folder, record.name), pictures(folder), absent)


def show_data(store: Store, task_id: str, data: Path | None, annotations: Path | None, count: int) -> Shown:
    """Draw image and truth of some of the images that a task evaluates.

    Raises:
        BenchError: the task has no images, or its data is absent.
    """
    task = build_task(task_id, data, annotations=annotations)
    stamp = task.data()
    if stamp is None:
        raise SetupError(f"There is nothing to show of {task_id!r}: it has no data.")
    folder = store.panels / f"{slug(task_id)}__data__{stamp.fingerprint[:8]}"
    task.album = Album(folder, count)
    task.draw(Setup(), None)
    return Shown(write_page(folder, f"{task_id}: {stamp.name} {stamp.split}"), pictures(folder), [])


def _redraw(store: Store, record: Record, data: Path | None, album: Album) -> None:
    """Draw what the outcomes of a record tell."""
    again = (
        f"No panels of {record.name} are kept. Run it again with --save-panels {album.count} --rerun: {record.command}"
    )
    if record.error or not record.outcomes_sha256:
        raise RecordError(again)
    task = build_task(record.task, data)
    stamp = task.data()
    if stamp != record.data:
        raise RecordError(
            f"{record.name} was made on other data than is here, of another fingerprint: its outcomes cannot be drawn. "
            "Give its --data."
        )
    task.album = album
    try:
        task.draw(record.setup, store.read_outcomes(record))
    except SetupError as error:
        raise RecordError(f"{error} {again}") from error
