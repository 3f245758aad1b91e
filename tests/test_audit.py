"""Verifying and repeating: every edit shows, and a repeated run says what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_records import accuracy, cost
from msgspec.structs import replace
from test_gate import outcomes
from typer.testing import CliRunner

from harness import run
from harness.audit import differing, job_of, verify
from harness.cli import app
from harness.errors import RecordError
from harness.growth_report import grouped, tables
from harness.metric import Measurement, Metric
from harness.record import Record, Setup, Weights
from harness.store import Store
from harness.suite_cli import render

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "results")
    found.save(accuracy("a", 70.0), outcomes(700))
    found.save(cost("a", 10.0))
    CliRunner().invoke(app, ["board", "--results", str(found.root), "-q"])
    return found


def path_of(store: Store, task: str) -> Path:
    (path,) = store.records.glob(f"{task}__*.json")
    return path


PAGES = ("README.md", "leaderboard.tex", "leaderboard.html")


def doubts(store: Store) -> str:
    return "\n".join(map(str, verify(store)))


def test_what_was_written_raises_no_doubt(store: Store) -> None:
    assert doubts(store) == ""
    done = CliRunner().invoke(app, ["verify", "--results", str(store.root)])
    assert (done.exit_code, done.output) == (0, "2 records are as they were written.\n")


def test_a_whole_number_raises_no_doubt(store: Store) -> None:
    store.save(accuracy("b", 49))
    CliRunner().invoke(app, ["board", "--results", str(store.root), "-q"])
    assert doubts(store) == ""


def test_an_edited_number_is_found_in_the_record_and_on_the_board(store: Store) -> None:
    path = path_of(store, "imagenet")
    path.write_text(path.read_text().replace("70.0", "79.0"))
    found = doubts(store)
    assert f"{path.name}: was edited" in found
    assert "leaderboard.csv:3: top1 is 70.0; the record gives 79.0" in found
    assert {line.partition(":")[0] for line in found.splitlines()} >= set(PAGES)
    assert CliRunner().invoke(app, ["verify", "--results", str(store.root)]).exit_code == 1


def test_an_edited_board_is_found(store: Store) -> None:
    path = store.root / "leaderboard.csv"
    path.write_text(path.read_text().replace("70.0", "79.0"))
    assert doubts(store) == "leaderboard.csv:3: top1 is 79.0; the record gives 70.0."


def test_a_row_without_a_record_is_found(store: Store) -> None:
    path_of(store, "imagenet").unlink()
    found = doubts(store)
    assert "leaderboard.csv:3: no record supports 'a' on 'imagenet'" in found
    assert {line.partition(":")[0] for line in found.splitlines()} == {"leaderboard.csv", *PAGES}


@pytest.mark.parametrize(("page", "old", "new"), [
    ("README.md", "**70.00**", "**79.00**"),
    ("README.md", "|   1 | a ", "|   1 | b "),
    ("README.md", "\n\n## imagenet on", "\n| 1 | forged | random | 224 | 99.00 |\n\n## imagenet on"),
    ("README.md", "100 images", "50,000 images"),
    ("README.md", "device a processor", "device a faster processor"),
    ("leaderboard.tex", "70.00", "79.00"),
    ("leaderboard.tex", "\\bottomrule", "1 & forged & random & 224 & 99.00 \\\\\n\\bottomrule"),
    ("leaderboard.html", ",[70.0,", ",[79.0,"),
    ("leaderboard.html", ",[70.0],", ",[79.0],"),
    ("leaderboard.html", '"cores":2', '"cores":64'),
    ("leaderboard.html", '"measured","",', '"measured","run",'),
    ("leaderboard.html", "2 ranked results", "2,000 ranked results"),
    ("leaderboard.html", "</style>", "#table td { font-size: 0 }</style>"),
    ("leaderboard.html", '{"summary"', '{"summary'),
])  # fmt: skip
def test_an_edited_page_is_found(page: str, old: str, new: str, store: Store) -> None:
    path = store.root / page
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    found = doubts(store)
    assert found.startswith(page)
    assert "no record supports" in found


def test_a_page_that_differs_in_its_layout_alone_is_found(store: Store) -> None:
    path = store.root / "README.md"
    path.write_text(re.sub(" +", " ", path.read_text()))
    assert doubts(store) == (
        "README.md: differs from what the records give in its ranks or its layout. Run `board` again."
    )


def test_forged_ranks_are_found(store: Store) -> None:
    store.save(accuracy("b", 69.9), outcomes(699))
    CliRunner().invoke(app, ["board", "--results", str(store.root), "-q"])
    assert doubts(store) == ""
    for page, old, new in (("README.md", "1= (1–2)", "1 "), ("leaderboard.html", "true,[1,2],", "true,[1,1],")):
        path = store.root / page
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        assert doubts(store).startswith(f"{page}: differs from what the records give in its ranks")
        path.write_text(text)


@pytest.mark.parametrize("name", ["tradeoff.md", "tradeoff.csv"])
def test_an_edited_trade_off_is_found(name: str, store: Store) -> None:
    store.location.write(render(store))
    assert doubts(store) == ""
    path = store.root / name
    path.write_text(path.read_text() + "softmax 99.00\n")
    assert doubts(store) == f"{name}: differs from what the records give. Run `suite --pages` again."


@pytest.mark.parametrize("name", ["README.md", "points.csv"])
def test_edited_token_counts_are_found(name: str, tmp_path: Path) -> None:
    committed, store = Store(ROOT / "results"), Store(tmp_path)
    there = [one for one in committed.names() if one.startswith("attention")]
    store.location.write({f"records/{one}": committed.text(one) for one in there})
    path = tmp_path / "token_counts" / name
    path.parent.mkdir()
    path.write_bytes(tables(grouped(store.load()))[name])
    assert len(there) > 10
    assert doubts(store) == ""
    path.write_text(path.read_text().replace("softmax", "soft", 1))
    assert doubts(store) == f"token_counts/{name}: differs from what the records give. Run `attention` again."


def test_a_record_in_another_layout_is_as_it_was_written(store: Store) -> None:
    path = path_of(store, "cost")
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert doubts(store) == ""


def test_boards_that_cannot_be_made_are_a_doubt(store: Store) -> None:
    for model in "bc":
        store.save(accuracy(model, 61.3), outcomes(613))  # Answers that no other test has left in the cache.
    for path in store.outcomes.glob("*"):
        path.write_bytes(b"not gzip")
    assert "boards: cannot be made of these records. imagenet__" in doubts(store)


def test_a_stale_csv_does_not_fill_the_screen(store: Store) -> None:
    for number in range(30):
        store.save(accuracy(f"net_{number}", float(number)))
    CliRunner().invoke(app, ["board", "--results", str(store.root), "-q"])
    for path in store.records.glob("imagenet__net*"):
        path.unlink()
    found = doubts(store).splitlines()
    assert sum(line.startswith("leaderboard.csv") for line in found) == 21
    assert "leaderboard.csv: 10 more are supported by no record." in found


def test_ranks_and_ties_of_a_page_raise_no_doubt(store: Store) -> None:
    for name, right in (("b", 699), ("c", 500)):
        store.save(accuracy(name, right / 10), outcomes(right))
        store.save(cost(name, 10.0 + right / 1000))
    CliRunner().invoke(app, ["board", "--results", str(store.root), "-q"])
    assert re.search(r"1= \(1–2\)", (store.root / "README.md").read_text())
    assert doubts(store) == ""


@pytest.mark.parametrize("damage", [b"", b"not gzip", b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 9, None])
def test_outcomes_that_were_lost_or_damaged_are_found(store: Store, damage: bytes | None) -> None:
    (path,) = store.outcomes.glob("*.csv.gz")
    path.unlink() if damage is None else path.write_bytes(damage)
    assert path_of(store, "imagenet").name in doubts(store)


def test_a_renamed_record_and_one_without_a_hash_are_found(store: Store) -> None:
    path = path_of(store, "cost")
    content = json.loads(path.read_text())
    content["content_sha256"] = ""
    path.unlink()
    (path.parent / "cost__b__00000000.json").write_text(json.dumps(content))
    (path.parent / "broken.json").write_text("{")
    found = doubts(store)
    assert "has no content hash" in found
    assert "is the record of cost__a__" in found
    assert "broken.json: broken.json is not a record" in found


def test_no_records_are_not_in_order(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["verify", "--results", str(tmp_path)]).exit_code == 1


def rerun(record: Record, results: Path, *more: str) -> tuple[int, str]:
    path = results / "records" / f"{record.name}.json"
    done = CliRunner().invoke(app, ["rerun", str(path), "--results", str(results / "again"), *more])
    assert done.exception is None or isinstance(done.exception, SystemExit | RecordError), done.exception
    return done.exit_code, done.output + str(done.exception or "")


def test_a_run_is_repeated(nets: str, make_imagenet: Callable[..., Path], tmp_path: Path) -> None:
    data, results = make_imagenet(), tmp_path / "results"
    (record,) = run(f"{nets}:tiny", "imagenet", data=data, results=results, workers=0, batch_size=4)
    where = ("--model", f"{nets}:tiny", "--data", str(data))
    code, told = rerun(record, results, *where)
    assert code == 0, told
    assert "top1: same. the same outcome on every item" in told
    Path(nets).write_text(Path(nets).read_text() + "\n# another file\n")
    code, told = rerun(record, results, *where)
    assert "source:" in told


def test_of_a_repeated_run_every_number_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minor = Metric("latency_n49", "ms", higher_is_better=False, minor=True)
    shares = Metric("share_fft", "%", higher_is_better=False, minor=True)
    store = Store(tmp_path / "results")

    def measured(*more: Measurement) -> Record:
        return cost("net", 10.0, measurements=(*cost("net", 10.0).measurements, *more))

    def run_again(again: Record) -> Callable[..., list[Record]]:
        return lambda jobs, target, *words, **options: [target.save(again)]

    before = store.save(measured(Measurement(minor, 5.0), Measurement(shares, 1.0)))
    after = measured(Measurement(minor, 9.0), Measurement(shares, 1.0))
    monkeypatch.setattr("harness.audit.run_jobs", run_again(after))
    code, told = rerun(before, store.root)
    assert (code, "latency_n49: inconclusive. +80.0 %" in told) == (0, True), told
    assert "leave out, and that are the same: 1" in told
    empty = cost("net", 10.0, measurements=(Measurement(minor, None, reason="no counter"),))
    monkeypatch.setattr("harness.audit.run_jobs", run_again(empty))
    code, told = rerun(store.save(empty), store.root)
    assert (code, "There is no number to compare with: net on cost: no latency_n49: no counter" in told) == (1, True)


def test_a_record_of_a_submission_is_repeated_as_what_ran(
    nets: str, make_imagenet: Callable[..., Path], tmp_path: Path
) -> None:
    data, store = make_imagenet(), Store(tmp_path / "results")
    (record,) = run(f"{nets}:tiny", "imagenet", data=data, results=tmp_path / "ran", workers=0, batch_size=4)
    stamped = replace(record, model="mine", details={**record.details, "submission": {"entry": "nets.py:tiny"}})
    stamped = store.save(stamped, Store(tmp_path / "ran").read_outcomes(record))
    with pytest.raises(RecordError, match=r"say where it is with --model FOLDER/nets.py:tiny"):
        job_of(stamped)
    code, told = rerun(stamped, store.root, "--model", f"{nets}:tiny", "--data", str(data))
    assert code == 0, told
    assert "top1: same. the same outcome on every item" in told


def test_what_a_record_needs_to_be_repeated_is_named() -> None:
    with pytest.raises(RecordError, match=r"made with nets.py: say where it is with --model FOLDER/nets.py:tiny"):
        job_of(accuracy("nets.py:tiny"))
    with pytest.raises(RecordError, match=r"made with w.pth: say where it is with --weights"):
        job_of(accuracy("vit_s16", setup=Setup(weights=Weights(source="file", file="w.pth"))))
    with pytest.raises(RecordError, match="failed when it was made"):
        job_of(accuracy("vit_s16", error="it broke", measurements=()))
    with pytest.raises(RecordError, match="published, not measured"):
        job_of(accuracy("vit_s16", provenance="published"))
    with pytest.raises(RecordError, match="is predictions, not measured"):
        job_of(accuracy("vit_s16", provenance="predictions"))
    with pytest.raises(RecordError, match="is of a race with others: run `race` again"):
        job_of(cost("vit_s16", 10.0, details={"race": {"id": "x"}}))


def test_what_differs_beside_the_numbers_is_said() -> None:
    before = accuracy("a")
    after = replace(before, environment=replace(before.environment, python="3.13.0", versions={"torch": "2.16.0"}))
    assert differing(before, after) == ["python: 3.11.7 became 3.13.0", "torch version: 2.15.0 became 2.16.0"]
    assert differing(before, before) == []
