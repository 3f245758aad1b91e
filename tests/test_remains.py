"""What hostile code leaves for the harness to read: each thing is bounded, named, and shown as text."""

from __future__ import annotations

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_records import TOP1, accuracy
from msgspec.structs import replace

from harness.errors import RecordError, SetupError
from harness.isolation import Way, why_not
from harness.metric import Measurement, Outcomes
from harness.record import Record, content_sha256, sealed, to_json
from harness.store import Store
from harness.submission import remains
from harness.submission.plan import Plan
from harness.submission.remains import clear, problem_of, records_of

NAME = "nets.py:net"
PLAN = Plan(model=NAME, weights="own", tasks=("imagenet",), data="", results="")
OUTCOMES = Outcomes(("item", "target", "top1"), (("a", 1, 1),))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def found(store: Store) -> list[tuple[Record, Outcomes | None]]:
    return list(records_of(PLAN, NAME, store))


def metric(**changes: Any) -> Callable[[Store], Any]:
    """Return what leaves a record whose metric is changed."""
    changed = Measurement(replace(TOP1, **changes), 70.0)
    return lambda store: written(store, accuracy(NAME, measurements=(changed,)))


def written(store: Store, record: Record) -> None:
    """Write a record with its hash as it is, which `save` does not for one that cannot be read again."""
    content = to_json(replace(record, content_sha256=content_sha256(to_json(record))))
    store.location.write({f"records/{record.name}.json": content})


def test_what_the_harness_writes_is_read_as_it_is(store: Store) -> None:
    record = store.save(accuracy(NAME), OUTCOMES)
    assert found(store) == [(record, OUTCOMES)]


def bomb(store: Store) -> None:
    """Outcomes of a gigabyte in a megabyte, with the hash that they should have."""
    zeros = bytes(2**20)
    digest = hashlib.sha256()
    store.outcomes.mkdir(parents=True)
    record = accuracy(NAME)
    with gzip.open(store.outcomes / f"{record.name}.csv.gz", "wb", 1) as file:
        for _ in range(remains.LARGEST_OUTCOMES // 2**20 + 3):
            file.write(zeros)
            digest.update(zeros)
    store.save(replace(record, outcomes_sha256=digest.hexdigest()))


def nested(store: Store) -> None:
    store.records.mkdir(parents=True)
    text = to_json(sealed(accuracy(NAME))).decode()
    (store.records / "a.json").write_text(
        text.replace('"details": {}', '"details": {"a": ' + "[" * 9000 + "]" * 9000 + "}")
    )


def kept(content: bytes) -> Callable[[Store], None]:
    """Return what leaves outcomes with these bytes, and a record with the hash of them."""

    def leave(store: Store) -> None:
        store.outcomes.mkdir(parents=True)
        record = accuracy(NAME)
        (store.outcomes / f"{record.name}.csv.gz").write_bytes(gzip.compress(content))
        store.save(replace(record, outcomes_sha256=hashlib.sha256(content).hexdigest()))

    return leave


HOSTILE: dict[str, tuple[Callable[[Store], Any], str]] = {
    "outcomes that unpack without end": (bomb, "when it is unpacked"),
    "outcomes with an endless name": (kept(b"item,top1\n" + b"a" * 140_000), "holds no outcomes"),
    "outcomes of empty lines": (kept(b"item,top1\n\n"), "holds no outcomes"),
    "outcomes of a number of 5,000 digits": (kept(b"item,top1\na," + b"9" * 5000 + b"\n"), "holds no outcomes"),
    "a record nested without end": (nested, "nested|not a record"),
    "a number of a billion decimals": (metric(decimals=10**9), "is not a record"),
    "less than no decimals": (metric(decimals=-1), "is not a record"),
    "a script for a metric": (metric(name="<script>"), "no task has"),
    "a formula for a metric": (metric(name="=cmd|'/C calc'!A0"), "no task has"),
    "LaTeX for a unit": (metric(unit="\\input{x}"), "no task has"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_record_is_refused(name: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remains, "LARGEST_OUTCOMES", 8 * 2**20)
    leave, said = HOSTILE[name]
    leave(store)
    with pytest.raises(RecordError, match=said):
        found(store)


def test_all_records_together_have_a_largest_size(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remains, "LARGEST_RECORDS", 20_000)
    for number in range(20):
        store.save(replace(accuracy(NAME), key=f"{number:08x}"))
    with pytest.raises(RecordError, match="Its records have more than"):
        found(store)


def test_control_characters_become_escapes(store: Store) -> None:
    hostile = accuracy(NAME, error="\x1b[2J\nred", details={"\u202ea": ["b\x00"]})
    store.save(hostile)
    ((record, _),) = found(store)
    assert record.error == r"\x1b[2J\nred"
    assert record.details == {r"\u202ea": [r"b\x00"]}


def test_what_an_earlier_run_left_does_not_stop_the_next(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    (tmp_path / "outcomes").symlink_to("/etc")
    assert "outcomes" in str(problem_of(tmp_path))
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert Path("/etc/passwd").exists()
    Store(tmp_path).save(accuracy(NAME))
    (tmp_path / "report.json").write_text("[]")
    (tmp_path / "home").symlink_to("/etc")
    (tmp_path / "root").write_text("")
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["records"]


def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    monkeypatch.setattr(remains.shutil, "rmtree", lambda path: clear(path.parent))
    with pytest.raises(SetupError, match=r"deep' of an earlier run cannot be removed \(folders in folders without end"):
        clear(tmp_path)


@pytest.mark.parametrize("way", ["bubblewrap", "namespaces", "limits alone"])
def test_code_ends_with_a_harness_that_is_killed(way: Way, tmp_path: Path) -> None:
    if way != "limits alone" and (reason := why_not(way)):
        pytest.skip(f"{way}: {reason}")
    (tmp_path / "work").mkdir()
    code = f"""
import sys
from pathlib import Path
from harness.isolation import Limits, run
mine = "open('alive', 'w').close(); import time; time.sleep(300)"
run([sys.executable, "-c", mine], folder=Path("work"), readable=(), limits=Limits(), log=Path("log"), way={way!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment) as harness:
        deadline = time.monotonic() + 60
        while not (tmp_path / "work" / "alive").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        confined = psutil.Process(harness.pid).children(recursive=True)
        harness.send_signal(signal.SIGKILL)
    assert confined
    _, left = psutil.wait_procs(confined, timeout=20)
    for process in left:
        process.kill()
    assert left == []
