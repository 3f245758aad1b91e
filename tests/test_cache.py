"""The cache's rows, locks and limit: nothing is lost that was written, nothing is believed that was damaged."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.cache import Cache, Lease, Rows, cache_folder, key_of

ABOUT = {"kind": "features", "data": "imagenet val", "model": "tiny", "what": "layer=last"}
MIB = 2**20


def created(cache: Cache, key: str = "k", shape: tuple[int, ...] = (5, 3), dtype: str = "float32") -> Rows:
    rows = cache.create(key, ABOUT, shape, dtype)
    assert rows is not None
    return rows


def row(index: int) -> np.ndarray:
    return np.full(3, index + 0.5, np.float32)


def test_rows_are_found_again(tmp_path: Path) -> None:
    rows = created(Cache(tmp_path))
    assert rows.absent().tolist() == [True] * 5
    assert rows.get(2) is None
    rows.put(2, row(2))
    again = Cache(tmp_path).find("k")
    assert again is not None
    assert again.absent().tolist() == [True, True, False, True, True]
    np.testing.assert_array_equal(again.get(2), row(2))
    np.testing.assert_array_equal(again.values[2], row(2))
    assert Cache(tmp_path).find("other") is None


def test_a_row_of_something_else_is_absent(tmp_path: Path) -> None:
    rows = created(Cache(tmp_path))
    rows.put(1, row(1), tag=7)
    assert rows.get(1, 8) is None
    np.testing.assert_array_equal(rows.get(1, 7), row(1))
    rows.put(1, row(3), tag=8)
    assert rows.get(1, 7) is None
    np.testing.assert_array_equal(rows.get(1, 8), row(3))


def test_what_is_written_to_the_values_stays_in_this_process(tmp_path: Path) -> None:
    rows = created(Cache(tmp_path))
    rows.put(0, row(0))
    rows.values[0] = 9
    assert (Rows(tmp_path / "k").values[0] == row(0)).all()


def test_rows_can_be_handed_to_another_process(tmp_path: Path) -> None:
    rows = created(Cache(tmp_path))
    pickle.loads(pickle.dumps(rows)).put(4, row(4))
    np.testing.assert_array_equal(rows.get(4), row(4))


def test_a_damaged_row_is_absent(tmp_path: Path) -> None:
    rows = created(Cache(tmp_path))
    for index in range(5):
        rows.put(index, row(index))
    content = bytearray((tmp_path / "k" / "rows.npy").read_bytes())
    content[-12 * 2] ^= 1  # a bit of the last row but one
    (tmp_path / "k" / "rows.npy").write_bytes(content)
    found = Cache(tmp_path).find("k")
    assert found is not None
    assert found.absent().tolist() == [False, False, False, True, False]
    assert found.damaged() == 1
    assert found.get(3) is None


def test_rows_that_changed_places_are_absent(tmp_path: Path) -> None:
    rows = created(Cache(tmp_path))
    for index in range(5):
        rows.put(index, row(index))
    for name, size in (("rows.npy", 12), ("sums.npy", 4)):
        path = tmp_path / "k" / name
        content = path.read_bytes()
        start = len(content) - 5 * size
        path.write_bytes(
            content[:start] + content[start + size : start + 2 * size] + content[start : start + size]
            + content[start + 2 * size :]
        )  # fmt: skip
    assert Rows(tmp_path / "k").absent().tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("name", ["rows.npy", "sums.npy", "about.json"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "gone"])
def test_a_damaged_file_is_said_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    created(Cache(tmp_path)).put(0, row(0))
    path = tmp_path / "k" / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5] if damage == "cut" else b"garbage")
    if name == "about.json" and damage != "gone":
        assert Cache(tmp_path).entries()[0].about == {}  # which is for people alone
        return
    assert Cache(tmp_path).find("k") is None
    assert "The cached k is damaged" in capsys.readouterr().err
    assert created(Cache(tmp_path)).absent().all()


def test_two_that_create_share_one(tmp_path: Path) -> None:
    created(Cache(tmp_path)).put(0, row(0))
    second = created(Cache(tmp_path))
    np.testing.assert_array_equal(second.get(0), row(0))
    assert not list(tmp_path.glob(".new-*"))


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_gib=3.5 / 1024)
    for age, key in enumerate("abc"):
        created(cache, key, (1, MIB), "uint8")
        os.utime(tmp_path / key / "about.json", (1000 + age, 1000 + age))
    assert cache.find("a") is not None  # which uses it
    created(cache, "d", (1, MIB), "uint8")
    assert sorted(entry.key for entry in cache.entries()) == ["a", "c", "d"]
    assert next(entry.key for entry in cache.entries()) == "c"


def test_what_is_in_use_never_goes(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_gib=2.5 / 1024)
    created(cache, "a", (1, MIB), "uint8")
    created(cache, "b", (1, MIB), "uint8")
    user = Cache(tmp_path)
    user.hold("a")
    assert not cache.remove("a")
    created(cache, "c", (1, MIB), "uint8")
    assert {entry.key for entry in cache.entries()} == {"a", "c"}
    user.hold("c")
    assert cache.create("d", ABOUT, (1, MIB), "uint8") is None
    del user
    assert cache.remove("a")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "a.lock").exists()


def test_what_exceeds_the_limit_removes_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_gib=1 / 1024)
    created(cache, "a", (1, 1000), "uint8")
    assert cache.create("b", ABOUT, (2, MIB), "uint8") is None
    assert [entry.key for entry in cache.entries()] == ["a"]


def test_a_disk_that_is_nearly_full_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 2**30})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    assert Cache(tmp_path).create("a", ABOUT, (1, 10), "uint8") is None


def test_what_a_killed_process_had_begun_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".new-x").mkdir()
    created(Cache(tmp_path))
    assert not (tmp_path / ".new-x").exists()


def test_a_lock_is_shared_or_taken_alone(tmp_path: Path) -> None:
    one, other = Lease(tmp_path / "lock"), Lease(tmp_path / "lock")
    one.share()
    other.share()
    assert not one.take(wait=False)
    other.release()
    assert one.take(wait=False)
    assert not other.take(wait=False)
    one.share()
    other.share()


def test_a_lock_ends_with_its_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys, time; from pathlib import Path; from harness.cache import Lease\n"
        f"Lease(Path({str(tmp_path / 'lock')!r})).take() and print('taken', flush=True); time.sleep(60)"
    )
    code = code.replace("Lease(Path", "lease = Lease(Path").replace(").take() and", "); lease.take() and")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "taken\n"
        lease = Lease(tmp_path / "lock")
        assert not lease.take(wait=False)
        holder.kill()
    assert lease.take(wait=False)


def test_keys() -> None:
    assert key_of(a=1, b="x") == key_of(b="x", a=1)
    assert len({key_of(a=1), key_of(a=2), key_of(b=1), key_of(a="1")}) == 4


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder("other") == Path("other")
