"""Submissions from the first command to the board, as docs/submit.md tells it, and what is refused on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_records import accuracy
from msgspec.structs import replace
from submissions import CANARY, CHECKPOINT, CLAIM, MODEL, PREDICTIONS, put
from typer.testing import CliRunner

from harness import isolation
from harness.cli import app
from harness.errors import BenchError, DuplicateName, RecordError, SetupError
from harness.isolation import Ended, Limits
from harness.progress import QUIET
from harness.store import Store
from harness.submission.admission import admit
from harness.submission.evaluation import Report, evaluate, keep, preview
from harness.submission.plan import SUITES, folder_sha256, make_plan, tasks_of
from harness.submission.read import read
from harness.submission.template import NETS

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "submit.md").read_text()


@pytest.fixture(autouse=True)
def _quiet_here_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--quiet` and `--json` set a variable for worker processes, which other tests must not find."""
    monkeypatch.setenv(QUIET, "")


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, ["submit", *map(str, words)])


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def test_the_guide_shows_the_model_that_init_writes() -> None:
    assert re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) == [NETS]


@pytest.mark.slow
def test_the_guide_can_be_followed_word_for_word(tmp_path: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("this is no git checkout")
    clone, results = tmp_path / "clone", ("results/", "tests/", "docs/pictures/")
    for name in tracked.stdout.splitlines():
        if not name.startswith(results) and (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, clone / name)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    assert [line.split()[2:4] for line in commands()][-3:-1] == [["submit", "run"], ["submit", "admit"]]
    for line in commands():
        done = subprocess.run(line, shell=True, cwd=clone, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, line + done.stdout + done.stderr
    board = (clone / "results" / "README.md").read_text()
    assert "my-model" in board.partition("## Left out")[0]
    assert sorted(path.name for path in (clone / "my_net").iterdir()) == ["nets.py", "submission.toml"]
    (record,) = [one for one in Store(clone / "results").load() if one.task == "imagenet:knn"]
    about = record.details["submission"]
    assert (record.model, about["entry"], about["sha256"]) == (
        "my-model", "nets.py:my_net", folder_sha256(clone / "my_net"),
    )  # fmt: skip
    assert record.details["isolation"]["way"] == isolation.best_way()


def test_tasks_are_those_asked_for_or_named_or_of_a_suite(tmp_path: Path) -> None:
    put(tmp_path, MODEL, nets_py=NETS.replace("my_net", "net"))
    submission, _ = read(tmp_path)
    assert submission is not None
    assert tasks_of(submission, None, None) == ("imagenet:knn", "cost")
    assert tasks_of(submission, ["cost", "cost"], None) == ("cost",)
    for suite in SUITES:
        assert tasks_of(submission, None, suite)
    with pytest.raises(SetupError, match="There is no suite 'all'"):
        tasks_of(submission, None, "all")
    with pytest.raises(SetupError, match="give one of them"):
        tasks_of(submission, ["cost"], "quick")


def test_work_is_not_done_in_the_submission(tmp_path: Path) -> None:
    put(tmp_path, CLAIM)
    done = invoke("run", tmp_path, "--work", tmp_path / "work")
    assert "is inside the submission" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["submission.toml"]


def test_code_does_not_run_without_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    put(folder, MODEL, nets_py=f"open({str(tmp_path / CANARY)!r}, 'w')\n{NETS.replace('my_net', 'net')}")
    done = invoke("run", folder, "--data", tmp_path)
    assert isinstance(done.exception, BenchError)
    assert "--trust-code" in str(done.exception)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_submission_with_faults_is_not_run(tmp_path: Path) -> None:
    put(tmp_path, MODEL, nets_py="def other(): pass\n")
    for command in ("run", "admit"):
        done = invoke(command, tmp_path)
        assert (done.exit_code, "[entry]" in done.output) == (1, True)


def test_predictions_are_measured_without_trust(make_imagenet: Callable[..., Path], tmp_path: Path) -> None:
    data, folder, results = make_imagenet(), tmp_path / "mine", tmp_path / "results"
    folder.mkdir()
    names = sorted(path.relative_to(data / "imagenet" / "val") for path in data.rglob("*.JPEG"))
    rows = "".join(f"{name.as_posix()},{name.parts[0]}\n" for name in names)
    put(folder, PREDICTIONS, classes_csv="image,class\n" + rows)
    words = ("--results", results, "--work", tmp_path / "work")
    done = invoke("run", folder, "--data", data, *words, "--quiet")
    assert done.exit_code == 0, done.output
    assert re.search(r"\| mine +\| predictions: classes.csv \|", done.output)
    assert not results.exists()
    done = invoke("admit", folder, *words)
    assert done.exit_code == 0, done.output
    (record,) = Store(results).load()
    assert (record.values()["top1"], record.provenance, record.model) == (100.0, "predictions", "mine")
    assert Store(results).read_outcomes(record).rows
    assert invoke("admit", folder, *words).exit_code == 0


def test_a_claim_stands_beside_what_was_measured(tmp_path: Path) -> None:
    results, folder = Store(tmp_path / "results"), tmp_path / "mine"
    results.save(accuracy("mine", 80.0))
    folder.mkdir()
    put(folder, CLAIM)
    words = ("--results", results.root, "--work", tmp_path / "work")
    done = invoke("run", folder, *words)
    assert (done.exit_code, "| 81.20 |" in re.sub(" +", " ", done.output)) == (0, True)
    assert invoke("admit", folder, *words).exit_code == 0
    CliRunner().invoke(app, ["board", "--results", str(results.root), "-q"])
    row = re.sub(" +", " ", (results.root / "README.md").read_text())
    assert "| mine | claimed | – | top1 (%) | 81.20 | 80.00 | -1.20 | arXiv:2103.14030, Table 1 |" in row
    assert "| 1 | mine |" in row
    assert "Left out" not in row


# What the isolated process leaves is not trusted


def prepared(tmp_path: Path) -> tuple[Any, ...]:
    folder = tmp_path / "mine"
    folder.mkdir()
    put(folder, MODEL, nets_py=NETS.replace("my_net", "net"))
    submission, faults = read(folder)
    assert not faults
    place = tmp_path / "work"
    plan = make_plan(
        submission, folder, ("imagenet:knn",), results=place / "isolated", data=str(tmp_path), device="cpu", limit=None,
        threads=1, seconds=60,
    )  # type: ignore[arg-type] # fmt: skip
    return submission, folder, plan, place, Limits(), "limits alone"


def outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: Callable[[Store], None], code: int = 0) -> Report:
    def fake(*_: object, folder: Path, log: Path, **__: object) -> Ended:
        log.write_text("a line\n\x1b[2Jthe last line\n")
        leave(Store(folder))
        return Ended(code)

    monkeypatch.setattr(isolation, "run", fake)
    return evaluate(*prepared(tmp_path))


def good(store: Store) -> None:
    store.save(accuracy("nets.py:net", task="imagenet:knn"))


def edited(store: Store) -> None:
    good(store)
    (path,) = store.records.glob("*.json")
    path.write_text(path.read_text().replace("70.0", "99.0"))


def a_link(store: Store) -> None:
    store.records.mkdir(parents=True)
    (store.records / "a.json").symlink_to("/etc/passwd")


def test_records_get_the_submission_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = outcome(tmp_path, monkeypatch, good)
    assert report.failure == ""
    (record,) = Store(tmp_path / "work").load()
    assert (record.model, record.details["submission"]["entry"]) == ("mine", "nets.py:net")
    assert record.name in report.records


@pytest.mark.parametrize(("leave", "code", "said"), [
    (edited, 0, "not as the harness wrote it"),
    (a_link, 0, "It left what is not read: records: 'a.json' is a link."),
    (lambda store: store.save(accuracy("another", task="imagenet:knn")), 0, "There is no record of imagenet:knn."),
    (lambda store: store.save(accuracy("nets.py:net", task="imagenet")), 0, "There is no record of imagenet:knn."),
    (lambda store: None, 9, r"ended with 9: a line / \x1b[2Jthe last line"),
    (lambda store: (store.root / "conformance.json").write_text("["), 0,
     "It breaks the contract of models: report."),
    (lambda store: (store.root / "conformance.json").write_text('[{"name":"a","passed":false,"message":"b"}]'), 3,
     "It breaks the contract of models: a."),
])  # fmt: skip
def test_what_is_left_is_not_believed(
    leave: Callable[[Store], None], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = outcome(tmp_path, monkeypatch, leave, code)
    assert said in report.failure
    assert report.records == ()


def test_a_checkpoint_of_a_known_model_needs_no_trust(tmp_path: Path) -> None:
    import timm
    import torch

    folder = tmp_path / "mine"
    folder.mkdir()
    torch.save(timm.create_model("test_vit").state_dict(), folder / "weights.pt")
    put(folder, CHECKPOINT.replace("resnet18", "test_vit").replace('["cost"]', '["cost:parameters"]'))
    done = invoke("run", folder, "--work", tmp_path / "work", "--results", tmp_path / "results", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [check["passed"] for check in report["checks"]][:4] == [True] * 4
    (record,) = [one for path in (tmp_path / "work").rglob("records") for one in Store(path.parent).load()][:1]
    assert record.setup.weights.file == "weights.pt"
    assert record.values()["parameters"] == pytest.approx(0.371, abs=0.01)


def test_what_a_record_says_does_not_reach_the_terminal(tmp_path: Path) -> None:
    hostile = accuracy("mine", error="\x1b[2J<script>|", measurements=())
    name = Store(tmp_path / "work").save(hostile).name
    text = preview(Store(tmp_path / "results"), tmp_path / "work", Report(sha256="", records=(name,)))
    assert text == "Not ranked: imagenet: \\x1b\\[2J&lt;script&gt;\\|"


# Admission


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Store]:
    report = outcome(tmp_path, monkeypatch, good)
    keep(report, tmp_path / "work")
    return tmp_path / "mine", tmp_path / "work", Store(tmp_path / "results")


def test_admission_copies_what_was_run(ran: tuple[Path, Path, Store]) -> None:
    (record,) = admit(*ran)
    assert ran[2].load() == [record]
    assert admit(*ran) == [record]


@pytest.mark.parametrize("address", ["file://{}/shared/results", "memory://admitted{}"])
def test_admission_takes_an_address(ran: tuple[Path, Path, Store], address: str, tmp_path: Path) -> None:
    results = Store(address.format(tmp_path))
    (record,) = admit(ran[0], ran[1], results)
    again = Store(address.format(tmp_path))
    assert again.load() == [record]
    assert admit(ran[0], ran[1], again) == [record]
    assert results.read(f"{record.name}.json") == record
    done = invoke("admit", ran[0], "--work", tmp_path / "none", "--results", address.format(tmp_path))
    assert "was not run as it is now" in str(done.exception)


def test_a_folder_that_changed_is_not_admitted(ran: tuple[Path, Path, Store]) -> None:
    (ran[0] / "nets.py").write_text("# changed\n" + NETS)
    with pytest.raises(RecordError, match="was not run as it is now"):
        admit(*ran)


def test_an_edited_record_is_not_admitted(ran: tuple[Path, Path, Store]) -> None:
    (path,) = (ran[1] / "records").glob("*.json")
    path.write_text(path.read_text().replace("70.0", "99.0"))
    with pytest.raises(RecordError, match="was edited"):
        admit(*ran)
    assert not ran[2].root.exists()


def test_a_failed_run_is_not_admitted(ran: tuple[Path, Path, Store]) -> None:
    keep(Report(sha256=folder_sha256(ran[0]), failure="It was stopped: because."), ran[1])
    with pytest.raises(RecordError, match="It was stopped: because"):
        admit(*ran)


def test_a_name_that_is_taken_is_refused(ran: tuple[Path, Path, Store]) -> None:
    ran[2].save(accuracy("mine"))
    with pytest.raises(DuplicateName, match="a model that was not submitted"):
        admit(*ran)
    assert len(ran[2].load()) == 1


def test_other_content_of_the_same_record_is_refused(ran: tuple[Path, Path, Store]) -> None:
    (record,) = admit(*ran)
    ran[2].save(replace(record, seconds=9.0))
    with pytest.raises(DuplicateName, match="other content"):
        admit(*ran)


# Trusted code that does harm

HARM = {
    "an endless loop": ("while True: pass", "It was stopped: it ran for more than"),
    "a memory hog": (
        "import time\nkept = [bytearray(10**8) for _ in range(40)]\ntime.sleep(30)", "GiB of memory; the limit",
    ),
    "a fork bomb": (
        "import os, time\nfor _ in range(60):\n    if os.fork() == 0: time.sleep(40); os._exit(0)\ntime.sleep(40)",
        "processes at once; the limit is",
    ),
    "the network": ("import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9/', timeout=5)", "build"),
    "a file outside": ("open({canary!r}, 'w')", "build"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", HARM)
def test_trusted_code_that_does_harm_is_stopped(name: str, tmp_path: Path) -> None:
    if isolation.best_way() == "limits alone":
        pytest.skip(f"no namespaces here: {isolation.why_not('namespaces')}")
    code, said = HARM[name]
    folder = tmp_path / "mine"
    folder.mkdir()
    toml = MODEL.replace('"imagenet:knn", ', "")
    put(folder, toml, nets_py=code.format(canary=str(tmp_path / CANARY)) + "\n" + NETS.replace("my_net", "net"))
    # A busy machine needs half a minute to import torch, and only the loop is there to be stopped for its time.
    seconds = 12 if name == "an endless loop" else 300
    words = ("--work", tmp_path / "work", "--results", tmp_path / "results", "--time-limit", seconds, "--memory", 1.5)
    done = invoke("run", folder, "--trust-code", "--data", tmp_path, "--processes", 12, *words, "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert said in report["failure"]
    assert not (tmp_path / CANARY).exists()
    assert isinstance(invoke("admit", folder, *words[:4]).exception, RecordError)
