"""Results anywhere that fsspec reads: a record's whole way, errors in words, and nothing lost when a place fails."""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fake_records import accuracy, cost
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from msgspec.structs import replace
from test_gate import outcomes
from typer.testing import CliRunner, Result

from harness.api import run
from harness.cli import app
from harness.errors import BenchError, MissingPackage, RecordError, SetupError
from harness.location import Folder, Remote, locate, masked
from harness.store import Store


class Mounted(LocalFileSystem):
    """A disk that is reached as a remote system is, by fsspec alone."""

    protocol = "mounted"


class Failing(MemoryFileSystem):
    """A place that takes so many more files, and then fails."""

    protocol = "failing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    room = 0

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        if Failing.room <= 0:
            raise ConnectionError("the line is dead")
        Failing.room -= 1
        super().pipe_file(path, value, **options)


for system in (Mounted, Failing):
    fsspec.register_implementation(system.protocol, system)


@pytest.fixture
def failing() -> Iterator[str]:
    Failing.store.clear()
    Failing.room = 10**9
    yield f"failing://{uuid.uuid4().hex}/results"
    Failing.store.clear()


@pytest.fixture(params=["path", "file", "memory", "mounted"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return an address of each kind, where nothing is yet."""
    folder = tmp_path / "some results"
    return {
        "path": str(folder),
        "file": folder.as_uri().replace("%20", " "),
        "memory": f"memory://{uuid.uuid4().hex}/results",
        "mounted": f"mounted://{folder}",
    }[request.param]


def command(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def test_addresses_and_paths(tmp_path: Path) -> None:
    assert isinstance(locate("results"), Folder)
    assert isinstance(locate(tmp_path.as_uri()), Folder)
    assert isinstance(locate("memory://a/b"), Remote)
    assert locate("memory://a/b").key == locate("memory:///a/b/").key != locate("memory://a/c").key
    assert locate(tmp_path).key == locate(tmp_path.as_uri()).key


def test_a_record_goes_its_whole_way(place: str, make_imagenet: Callable[..., Path], nets: str) -> None:
    words: dict[str, Any] = {"data": make_imagenet(), "results": place, "executor": "inline", "workers": 0}
    first = run(f"{nets}:tiny", "imagenet", **words)
    again = run(f"{nets}:tiny", "imagenet", **words)
    assert (first.skipped, again.skipped, len(again.failed)) == (0, 1, 0)
    assert list(again) == list(first)
    store = Store(place)
    assert sorted(record.name for record in store.load()) == sorted(record.name for record in first)
    assert len(store.read_outcomes(first[0]).rows) == 16
    assert command("verify", "--results", place).exit_code == 0
    assert command("board", "--results", place, "-q").exit_code == 0
    assert command("board", "--results", place, "--check").exit_code == 0
    assert "tiny" in (store.location.read("README.md") or b"").decode()


def test_what_an_evaluation_has_found_stays_on_this_machine(place: str) -> None:
    store = Store(place)
    assert isinstance(store.unfinished, Path)
    assert store.unfinished == store.root / "unfinished"
    assert "://" not in str(store.unfinished)


@pytest.fixture
def filled(place: str) -> Store:
    store = Store(place)
    for model, right in (("a", 700), ("b", 600)):
        store.save(accuracy(model, right / 10), outcomes(right))
        store.save(cost(model, float(right)))
    return store


def test_a_stale_page_is_told_by_one_byte(filled: Store) -> None:
    assert command("board", "--results", filled, "-q").exit_code == 0
    for page in ("README.md", "leaderboard.csv", "leaderboard.tex", "leaderboard.html"):
        content = filled.location.read(page)
        assert content is not None
        filled.location.write({page: content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]})
        done = command("board", "--results", filled, "--check")
        assert (done.exit_code, f"Stale: {page}." in done.output) == (1, True)
        filled.location.write({page: content})
    assert command("board", "--results", filled, "--check").exit_code == 0


def test_compare_and_check_and_rerun_read_from_anywhere(filled: Store, tmp_path: Path) -> None:
    assert "+10.00" in command("compare", "b", "a", "--results", filled).output
    before = Store(tmp_path / "before")
    for record in filled.load():
        earlier = replace(record, seconds=record.seconds + 1)
        before.save(earlier, filled.read_outcomes(record) if record.outcomes_sha256 else None)
    assert command("check", "--results", filled, "--baseline", before).exit_code == 0
    assert command("check", "--results", before, "--baseline", filled).exit_code == 0
    itself = command("check", "--results", filled, "--baseline", filled)
    assert "is the candidate itself" in str(itself.exception)
    name = filled.names()[0]
    gone = command("rerun", f"{filled}/records/none.json")
    assert "There is no record" in str(gone.exception)
    weights = command("rerun", f"{filled}/records/{name}", "--weights", "none.safetensors")
    assert weights.exit_code != 0


def test_an_edit_is_found_anywhere(filled: Store) -> None:
    name = f"records/{filled.names()[0]}"
    record = json.loads(filled.location.read(name) or b"")
    filled.location.write({name: json.dumps({**record, "seconds": 2.0}).encode()})
    done = command("verify", "--results", filled)
    assert (done.exit_code, "was edited after it was written" in done.output) == (1, True)


def test_records_and_boards_are_equal_wherever_they_lie(filled: Store, tmp_path: Path) -> None:
    here = Store(tmp_path / "here")
    for record in filled.load():
        here.location.write(filled.files(record))
    for store in (filled, here):
        assert command("board", "--results", store, "-q").exit_code == 0
    for page in ("README.md", "leaderboard.html"):
        assert filled.location.read(page) == here.location.read(page) is not None


def test_a_revision_is_no_baseline_for_results_elsewhere() -> None:
    Store("memory://elsewhere").save(accuracy("a"))
    done = command("check", "--results", "memory://elsewhere", "--baseline", "HEAD")
    assert "no git revision holds" in str(done.exception)


# Merging


def copied(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def test_two_peoples_results_are_merged_by_copying_files(tmp_path: Path) -> None:
    mine, other = Store(tmp_path / "mine"), Store(tmp_path / "other")
    mine.save(accuracy("a", 70.0), outcomes(700))
    other.save(accuracy("b", 60.0), outcomes(600))
    copied(other.root, mine.root)
    assert command("verify", "--results", mine).exit_code == 0
    assert command("board", "--results", mine, "-q").exit_code == 0
    page = (mine.root / "README.md").read_text()
    assert page.count("imagenet val") == 1
    assert ("| a" in page, "| b" in page) == (True, True)
    assert command("compare", "b", "a", "--results", mine).exit_code == 0


def test_of_two_records_with_one_key_the_copied_one_stays(tmp_path: Path) -> None:
    mine, other = Store(tmp_path / "mine"), Store(tmp_path / "other")
    mine.save(accuracy("a", 70.0), outcomes(700))
    newer = other.save(accuracy("a", 65.0), outcomes(650))
    copied(other.root, mine.root)
    assert mine.load() == [newer]
    assert command("verify", "--results", mine).exit_code == 0


def test_a_record_with_the_outcomes_of_another_is_told(tmp_path: Path) -> None:
    mine, other = Store(tmp_path / "mine"), Store(tmp_path / "other")
    mine.save(accuracy("a", 70.0), outcomes(700))
    other.save(accuracy("a", 65.0), outcomes(650))
    copied(other.records, mine.records)  # without the outcomes
    done = command("verify", "--results", mine)
    assert (done.exit_code, "is not what" in done.output) == (1, True)


def test_one_record_under_two_names_makes_no_board(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = store.save(accuracy("a", 70.0))
    (store.records / "copy.json").write_bytes((store.records / f"{record.name}.json").read_bytes())
    with pytest.raises(RecordError, match=r"copy\.json and .* are both the record"):
        store.load()


# What goes wrong


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("fish://a/b", SetupError, r"'fish://a/b' cannot be used \(ValueError: Protocol not known: fish"),
        ("smb://host/share", MissingPackage, "pip install smbprotocol"),
        ("abfs://container/results", MissingPackage, "pip install adlfs"),
        ("sftp://user:secret@host/results", MissingPackage, r"'sftp://user:\*\*\*@host/results' needs .*paramiko"),
    ],
)
def test_addresses_that_cannot_be_used(
    address: str, error: type[BenchError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for absent in ("smbclient", "adlfs", "paramiko"):
        monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(error, match=message) as caught:
        Store(address)
    assert "secret" not in str(caught.value)
    assert "secret" not in masked(address)


def test_results_that_are_not_there(place: str) -> None:
    done = command("board", "--results", place)
    assert "There are no results in" in str(done.exception)
    assert command("verify", "--results", place).exit_code == 1


def test_what_may_not_be_read_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://forbidden")
    saved = store.save(accuracy("a"), outcomes(700))

    def refuse(*words: Any, **options: Any) -> None:
        raise PermissionError("Forbidden")

    for question in ("cat_file", "info", "ls"):
        monkeypatch.setattr(MemoryFileSystem, question, refuse)
    for ask in (lambda: store.find("x"), lambda: store.has_outcomes(saved), store.load, store.location.exists):
        with pytest.raises(RecordError, match=r"cannot be read from 'memory://forbidden' \(PermissionError: Forbidden"):
            ask()


def test_what_did_not_arrive_is_kept_and_sent_by_the_next_run(failing: str) -> None:
    store, record = Store(failing), accuracy("a", 70.0)
    Failing.room = 1  # The outcomes arrive, the record does not.
    with pytest.raises(RecordError, match=r"cannot be written to 'failing://.*the line is dead.*It is kept in"):
        store.save(record, outcomes(700))
    assert store.names() == []
    with pytest.raises(RecordError, match="the line is dead"):
        Store(failing).find(record.name)
    Failing.room = 10**9
    found = Store(failing).find(record.name)
    assert found is not None
    assert len(store.read_outcomes(found).rows) == 1000
    assert [path for path in store.root.rglob("*") if path.is_file()] == []
    assert command("verify", "--results", failing).exit_code == 0


def test_a_run_whose_results_do_not_arrive_is_not_measured_again(
    failing: str, make_imagenet: Callable[..., Path], nets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, Any] = {"data": make_imagenet(), "results": failing, "executor": "inline", "workers": 0}
    Failing.room = 3  # Both files of the first pair, and one of the second.
    with pytest.raises(RecordError, match="It is kept in"):
        run([f"{nets}:tiny", f"{nets}:normed"], "imagenet", **words)
    assert len(Store(failing).names()) == 1
    Failing.room = 10**9
    done = run([f"{nets}:tiny", f"{nets}:normed", f"{nets}:chatty"], "imagenet", **words)
    assert (done.skipped, len(done), len(done.failed)) == (2, 3, 0)
    assert len(Store(failing).load()) == 3


def test_two_writers_of_one_record_leave_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, move = f"mounted://{tmp_path / 'results'}", LocalFileSystem.mv

    def after_another(self: Mounted, *words: Any, **options: Any) -> None:
        monkeypatch.setattr(Mounted, "mv", move)
        Store(address).save(accuracy("a", 60.0))
        move(self, *words, **options)

    monkeypatch.setattr(Mounted, "mv", after_another)
    Store(address).save(accuracy("a", 70.0))
    assert [record.values() for record in Store(address).load()] == [{"top1": 70.0}]
    assert len(list((tmp_path / "results" / "records").iterdir())) == 1


def test_a_write_that_fails_leaves_the_old_object(failing: str) -> None:
    store = Store(failing)
    store.save(accuracy("a", 70.0))
    Failing.room = 0
    with pytest.raises(RecordError, match="the line is dead"):
        store.save(replace(accuracy("a", 70.0), seconds=5.0))
    assert [record.seconds for record in store.load()] == [1.0]
