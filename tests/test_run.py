"""The main job: pairs, skips, failures that stay their own, and records that can be trusted to be the same again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas
import pytest
import torch
from safetensors.torch import save_file

from harness import run
from harness.errors import BenchError, DataError, DuplicateName, SetupError, UnknownName
from harness.journal import Journal
from harness.models import build_model
from harness.record import from_json
from harness.registry import MODELS
from harness.store import Store

ROOT = Path(__file__).resolve().parents[1]
Make = Callable[..., Path]


def go(model: str | list[str], data: Path, tmp_path: Path, **options: object) -> object:
    options = {"task": "imagenet", "executor": "inline", "workers": 0, "results": tmp_path / "results", **options}
    return run(model, data=data, **options)  # type: ignore[arg-type]


def test_a_users_five_lines_become_a_record(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    (record,) = go(f"{nets}:tiny", make_imagenet(), tmp_path)
    assert record.model == "nets.py:tiny"
    assert record.error is None
    assert record.data.size == 16
    assert record.setup.preprocessing.image_size == (32, 32)
    assert 0 <= record.values()["top1"] <= 100
    assert Store(tmp_path / "results").load() == [record]


def test_a_record_says_what_the_protocol_was(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    (record,) = go(f"{nets}:tiny", make_imagenet(train=2), tmp_path, task="imagenet:knn")
    assert (record.details["k"], record.details["temperature"]) == (20, 0.07)
    (record,) = go(f"{nets}:tiny", make_imagenet(), tmp_path)
    assert record.details["protocol"] == "the model's own classifier"


def test_every_image_has_its_outcome(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    (record,) = go(f"{nets}:tiny", make_imagenet(), tmp_path)
    outcomes = Store(tmp_path / "results").read_outcomes(record)
    assert outcomes.columns == ("item", "target", "top1", "top2", "top3", "top4", "top5")
    hits = sum(row[1] == row[2] for row in outcomes.rows)
    assert record.values()["top1"] == pytest.approx(100 * hits / 16)


def test_a_record_says_nothing_of_this_machine_outside_its_environment(
    make_imagenet: Make, nets: str, tmp_path: Path
) -> None:
    go(f"{nets}:tiny", make_imagenet(), tmp_path)
    text = next((tmp_path / "results" / "records").iterdir()).read_text()
    assert str(tmp_path) not in text
    assert str(ROOT) not in text


def strip(text: bytes) -> bytes:
    """Take the times, the environment and the hash that covers them out of a record's text."""
    content = json.loads(text)
    for name in ("environment", "started_at", "seconds", "content_sha256"):
        del content[name]
    return json.dumps(content).encode()


def test_records_are_byte_identical_but_for_times_and_environment(
    make_imagenet: Make, nets: str, tmp_path: Path
) -> None:
    data = make_imagenet(val=2, train=2)
    texts, outcomes = [], []
    for folder in ("one", "two"):
        run(f"{nets}:tiny", ["imagenet", "imagenet:knn"], data=data, results=tmp_path / folder, workers=0)
        texts.append([strip(path.read_bytes()) for path in sorted((tmp_path / folder / "records").iterdir())])
        outcomes.append([path.read_bytes() for path in sorted((tmp_path / folder / "outcomes").iterdir())])
    assert texts[0] == texts[1]
    assert outcomes[0] == outcomes[1]


def test_what_exists_is_skipped_unless_rerun(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    data = make_imagenet()
    first = go(f"{nets}:tiny", data, tmp_path)
    again = go(f"{nets}:tiny", data, tmp_path)
    assert (first.skipped, again.skipped) == (0, 1)
    assert again[0] == first[0]
    assert go(f"{nets}:tiny", data, tmp_path, rerun=True).skipped == 0


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"batch_size": 3}, {"crop_pct": 0.5}, {"limit": 4}, {"weights": "own"}]
)
def test_another_request_is_another_record(
    make_imagenet: Make, nets: str, tmp_path: Path, change: dict[str, object]
) -> None:
    data = make_imagenet()
    go(f"{nets}:tiny", data, tmp_path)
    assert go(f"{nets}:tiny", data, tmp_path, **change).skipped == 0
    assert len(Store(tmp_path / "results").load()) == 2


def test_a_changed_model_file_is_measured_again(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    data = make_imagenet()
    command = [
        sys.executable,
        "run_bench.py",
        "run",
        "--model",
        f"{nets}:tiny",
        "--task",
        "imagenet",
        "--data",
        str(data),
    ]
    command += ["--results", str(tmp_path / "results"), "--executor", "inline", "--workers", "0"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    Path(nets).write_text(Path(nets).read_text() + "\n# another version\n")
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert len(list((tmp_path / "results" / "records").iterdir())) == 2


def test_changed_data_is_measured_again(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    data = make_imagenet()
    go(f"{nets}:tiny", data, tmp_path)
    next((data / "imagenet" / "val").rglob("*.JPEG")).unlink()
    assert go(f"{nets}:tiny", data, tmp_path).skipped == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("all_nan", r"^All 16 outputs hold NaN or infinity"),
        ("too_few", r"^The model returned a tensor \(16, 7\); expected logits \(16, 8\)"),
        ("raises", r"^AttributeError: .*no_such_method.*, nets\.py:\d+\. Run"),
    ],
)
def test_a_model_that_fails_is_a_record_and_the_others_go_on(
    make_imagenet: Make, nets: str, tmp_path: Path, name: str, message: str
) -> None:
    records = go([f"{nets}:{name}", f"{nets}:tiny"], make_imagenet(), tmp_path)
    assert re.search(message, records[0].error)
    assert "\n" not in records[0].error
    assert records[1].error is None
    assert len(Store(tmp_path / "results").load()) == 2


def test_an_error_is_no_reason_to_skip(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    data = make_imagenet()
    go(f"{nets}:raises", data, tmp_path)
    assert go(f"{nets}:raises", data, tmp_path).skipped == 0


def test_a_row_of_nan_is_wrong_and_reported(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    (record,) = go(f"{nets}:first_row_nan", make_imagenet(), tmp_path, batch_size=4)
    assert record.details["not_finite"] == 4
    rows = Store(tmp_path / "results").read_outcomes(record).rows
    assert sum(row[2] == -1 for row in rows) == 4


def test_a_process_that_dies_is_a_record_that_says_how(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    records = go([f"{nets}:dies", f"{nets}:tiny"], make_imagenet(), tmp_path, executor="process")
    assert records[0].error.startswith("The process that ran the model died: SIGKILL (often out of memory")
    assert records[1].error is None


def test_inline_and_process_give_the_same(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    data = make_imagenet()
    (inline,) = go(f"{nets}:tiny", data, tmp_path)
    (process,) = go(f"{nets}:tiny", data, tmp_path, executor="process", rerun=True)
    assert inline.measurements == process.measurements
    assert inline.setup == process.setup
    assert inline.outcomes_sha256 == process.outcomes_sha256


def test_a_killed_run_resumes_where_it_was(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    results = tmp_path / "results"
    command = [sys.executable, "run_bench.py", "run", "--model", f"{nets}:tiny", f"{nets}:slow", "--task", "imagenet"]
    command += ["--data", str(make_imagenet()), "--results", str(results), "--batch-size", "1", "--workers", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 100
        while not list(results.glob("records/*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    (finished,) = results.glob("records/*.json")
    before = finished.read_bytes()
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "1 of 2 were measured before and are skipped" in done.stderr
    assert finished.read_bytes() == before
    assert {from_json(path.read_bytes(), "").model for path in results.glob("records/*.json")} == {
        "nets.py:tiny", "nets.py:slow",
    }  # fmt: skip
    assert not list(results.rglob(".*"))


def test_a_run_that_is_killed_within_a_pair_goes_on_after_its_last_batch(
    make_imagenet: Make, nets: str, tmp_path: Path
) -> None:
    data, results = make_imagenet(val=4), tmp_path / "results"
    command = [sys.executable, "run_bench.py", "run", "--model", f"{nets}:slow", "--task", "imagenet", "--workers", "0"]
    command += ["--data", str(data), "--results", str(results), "--batch-size", "3"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 100
        while len("".join(p.read_text() for p in results.glob("unfinished/*")).splitlines()) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    (journal,) = results.glob("unfinished/*")
    journal.write_text(journal.read_text() + '[["cut o')
    kept = len(journal.read_text().splitlines()) - 2
    done = subprocess.run([*command, "--json"], cwd=ROOT, check=True, capture_output=True)
    seconds = json.loads(done.stdout)[0]["seconds"]
    assert seconds < 0.2 * (11 - kept) + 1, "the whole batches before the kill are not evaluated again"
    assert not (results / "unfinished").exists()
    (resumed,) = Store(results).load()
    (whole,) = go(f"{nets}:slow", data, tmp_path, batch_size=3, results=tmp_path / "whole")
    assert resumed.outcomes_sha256 == whole.outcomes_sha256
    assert resumed.measurements == whole.measurements


def test_a_journal_of_other_weights_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "unfinished" / "x.jsonl"
    journal = Journal(path, "these weights")
    assert journal.read() == []
    journal.append([("a.JPEG", 0, 1), ("b.JPEG", 1, 1)])
    assert Journal(path, "these weights").read() == [("a.JPEG", 0, 1), ("b.JPEG", 1, 1)]
    assert Journal(path, "other weights").read() == []
    assert Journal(path, "these weights").read() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_exits_with_130_and_says_that_work_is_kept(
    number: signal.Signals, make_imagenet: Make, nets: str, tmp_path: Path
) -> None:
    command = [sys.executable, "run_bench.py", "run", "--model", f"{nets}:slow", "--task", "imagenet", "--workers", "0"]
    command += ["--data", str(make_imagenet(val=40)), "--results", str(tmp_path / "results"), "--batch-size", "1"]
    # A background job of a script's shell ignores SIGINT, and must end all the same when it is asked to.
    at_first = {signal.SIGTERM: signal.SIG_IGN, signal.SIGINT: signal.SIG_DFL}[number]
    prepare = partial(signal.signal, signal.SIGINT, at_first)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=prepare) as process:
        assert process.stderr is not None
        assert "nets.py:slow" in process.stderr.readline()
        time.sleep(1)
        process.send_signal(number)
        _, remarks = process.communicate(timeout=60)
    assert process.returncode == 130
    assert remarks.strip().splitlines()[-1].startswith("Interrupted. What was measured is saved")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "vit_s61"}, UnknownName, "Did you mean 'vit_s16'"),
        ({"task": "imagnet"}, UnknownName, "Did you mean 'imagenet'"),
        ({"task": "imagenet:knm"}, UnknownName, "Did you mean 'knn'"),
        ({"task": "cost:latencey"}, UnknownName, "Did you mean 'latency'"),
        ({"data": "no/such/place"}, DataError, "no data root"),
        ({"weights": "no/such/file.pth"}, BenchError, "no weights file"),
        ({"precision": "fp8"}, SetupError, "expected one of fp32"),
        ({"batch_size": 0}, SetupError, "expected 1 or more"),
        ({"limit": 0}, SetupError, "expected 1 or more"),
        ({"device": "tpu"}, SetupError, "expected cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, SetupError, "--device cpu"),
        ({"colour": "red"}, SetupError, "no option 'colour'"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(
    make_imagenet: Make, nets: str, tmp_path: Path, options: dict[str, object], error: type[BenchError], message: str
) -> None:
    asked: dict[str, object] = {"model": [f"{nets}:tiny"], "task": ["imagenet"], "data": make_imagenet()}
    for name, value in options.items():
        asked[name] = [*asked[name], value] if name in ("model", "task") else value  # type: ignore[misc]
    with pytest.raises(error, match=message):
        run(**asked, results=tmp_path / "results", executor="inline", workers=0)  # type: ignore[arg-type]
    assert not (tmp_path / "results").exists()


def test_two_models_of_one_name_are_refused(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    other = tmp_path / "other" / "nets.py"
    other.parent.mkdir()
    other.write_text(Path(nets).read_text())
    with pytest.raises(DuplicateName, match=r"are both shown as 'nets\.py:tiny': rename"):
        go([f"{nets}:tiny", f"{other}:tiny"], make_imagenet(), tmp_path)


def test_a_name_that_is_taken_is_refused_with_both_places(make_imagenet: Make, tmp_path: Path) -> None:
    taken = tmp_path / "mine.py"
    taken.write_text(
        "from harness.registry import MODELS\n\n@MODELS.register('vit_t16')\ndef net():\n    return None\n"
    )
    assert "vit_t16" in MODELS
    with pytest.raises(DuplicateName, match=r"baselines/backbones/vit\.py:\d+.*mine\.py:3"):
        go(f"{taken}:net", make_imagenet(), tmp_path)


def test_a_callable_is_a_model(make_imagenet: Make, tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    (record,) = run(squeezenet1_1, "cost", results=tmp_path, batch_size=2, image_size=64)
    assert record.model == "torchvision.models.squeezenet:squeezenet1_1"
    assert record.error is None, record.error


@pytest.mark.parametrize("threads", [None, 1])
def test_threads_are_pinned_and_recorded(
    nets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None
) -> None:
    pinned: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", pinned.append)
    (record,) = run(f"{nets}:tiny", "cost:parameters", results=tmp_path, threads=threads, executor="inline")
    assert pinned == [record.environment.threads] == [torch.get_num_threads()]
    assert ("--threads 1" in record.command) == (threads == 1)


def test_a_lambda_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="define it with a name"):
        run(lambda: None, "cost", results=tmp_path)


def test_a_script_needs_no_guard_around_its_call(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('the script runs')\nfrom harness import run\n"
        f"print(run({nets + ':tiny'!r}, 'imagenet', data={str(make_imagenet())!r}, "
        f"results={str(tmp_path / 'r')!r}, workers=0))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("the script runs") == 1
    assert "nets.py:tiny" in done.stdout
    assert "failed" not in done.stderr


def test_pandas_shows_the_result(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    records = go([f"{nets}:tiny", f"{nets}:raises"], make_imagenet(), tmp_path)
    frame = records.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["model"]) == ["nets.py:tiny", "nets.py:raises"]
    assert frame["top1 (%)"].notna().tolist() == [True, False]
    assert "nets.py:tiny" in repr(records)
    assert "<table" in records._repr_html_()
    assert len(records.failed) == 1


def test_the_command_of_a_record_makes_the_record_again(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    data = make_imagenet()
    options = {"seed": 3, "batch_size": 5, "crop_pct": 0.5, "mean": (0.4, 0.5, 0.6), "limit": 7, "channels_last": True}
    (record,) = go(f"{nets}:tiny", data, tmp_path, **options)
    command = [sys.executable, str(ROOT / record.command.split()[0]), *record.command.split()[1:]]
    command += ["--data", str(data), "--results", str(tmp_path / "again"), "--workers", "0", "--json", "--quiet"]
    done = subprocess.run(command, cwd=Path(nets).parent, check=True, capture_output=True)
    assert json.loads(done.stdout)[0]["key"] == record.key
    (again,) = Store(tmp_path / "again").load()
    assert again.measurements == record.measurements


@pytest.mark.parametrize("classes", [8, 1000])  # the data's, and the model's own
def test_frozen_features_take_weights_with_another_classifier(
    make_imagenet: Make, nets: str, tmp_path: Path, classes: int
) -> None:
    data, file = make_imagenet(val=1, train=1), tmp_path / "tiny.safetensors"
    save_file(build_model(f"{nets}:tiny", num_classes=classes).state_dict(), file)
    (frozen,) = go(f"{nets}:tiny", data, tmp_path, task="imagenet:knn", weights=file)
    assert (frozen.error, frozen.setup.weights.missing, frozen.setup.weights.unexpected) == (None, (), ())
    (native,) = go(f"{nets}:tiny", data, tmp_path, weights=file)
    assert ("does not match the model" in (native.error or "")) == (classes == 1000)
