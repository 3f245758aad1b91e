"""The store: whole files or none, and outcomes that belong to their record."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from harness.errors import RecordError
from harness.metric import Outcomes
from harness.record import Record, from_json
from harness.store import Store, write_atomically

OUTCOMES = Outcomes(("item", "target", "top1"), (('a, "b".JPEG', 3, 3), ("c.JPEG", 1, -1)))
GOLDEN = Path(__file__).parent / "golden" / "record_v1.json"


@pytest.fixture
def record() -> Record:
    return from_json(GOLDEN.read_bytes(), GOLDEN.name)


def test_what_is_saved_is_found_again(tmp_path: Path, record: Record) -> None:
    store = Store(tmp_path)
    saved = store.save(record, OUTCOMES)
    assert store.find(record.name) == saved
    assert store.load() == [saved]
    assert store.read_outcomes(saved) == OUTCOMES
    assert store.find("no__such__record") is None


def test_the_file_is_named_after_task_model_and_key(tmp_path: Path, record: Record) -> None:
    Store(tmp_path).save(record)
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["imagenet-knn__vit_s16+agent__3191f74d.json"]


def test_equal_outcomes_are_equal_bytes(tmp_path: Path, record: Record) -> None:
    for name in ("one", "two"):
        Store(tmp_path / name).save(record, OUTCOMES)
    one, two = (next((tmp_path / name / "outcomes").iterdir()).read_bytes() for name in ("one", "two"))
    assert one == two


def test_outcomes_that_were_edited_are_refused(tmp_path: Path, record: Record) -> None:
    store = Store(tmp_path)
    saved = store.save(record, OUTCOMES)
    path = next(store.outcomes.iterdir())
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"3,3", b"3,4")))
    with pytest.raises(RecordError, match=r"is not what .* was made with"):
        store.read_outcomes(saved)


def test_outcomes_that_are_not_there_are_named(tmp_path: Path, record: Record) -> None:
    with pytest.raises(RecordError, match="Copy them beside the record"):
        Store(tmp_path).read_outcomes(record)


def test_a_broken_record_is_named(tmp_path: Path, record: Record) -> None:
    store = Store(tmp_path)
    store.save(record)
    (store.records / "broken.json").write_text("{")
    with pytest.raises(RecordError, match=r"broken\.json is not a record"):
        store.load()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_cannot_be_written_is_an_error_with_the_way_out(tmp_path: Path, record: Record) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="Give another --results"):
        Store(tmp_path / "file").save(record)


def test_results_can_be_read_by_others(tmp_path: Path, record: Record) -> None:
    mask = os.umask(0o022)
    try:
        Store(tmp_path).save(record)
    finally:
        os.umask(mask)
    assert next((tmp_path / "records").iterdir()).stat().st_mode & 0o777 == 0o644


def test_a_second_save_replaces_the_first(tmp_path: Path, record: Record) -> None:
    store = Store(tmp_path)
    store.save(record)
    store.save(replace(record, error="later"))
    assert [found.error for found in store.load()] == ["later"]
