"""Features and decoded images are made once, and no cache changes a record, hides a change or loses what was made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import run
from harness.cache import Cache

ROOT = Path(__file__).resolve().parents[1]
Make = Callable[..., Path]
KNN = "imagenet:knn"


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the images that are decoded, and those that go through a convolution."""
    from tasks.data import loader

    found: Counter[str] = Counter()
    decode, forward = loader.decode, torch.nn.Conv2d.forward

    def counted_decode(*args: Any) -> Any:
        found["decoded"] += 1
        return decode(*args)

    def counted_forward(self: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        found["embedded"] += len(images)
        return forward(self, images)

    monkeypatch.setattr(loader, "decode", counted_decode)
    monkeypatch.setattr(torch.nn.Conv2d, "forward", counted_forward)
    return found


@pytest.fixture
def go(tmp_path: Path, nets: str) -> Callable[..., Any]:
    """Return a function that runs the tiny model inline with a cache of the test's own, and returns the record."""

    def one(data: Path, task: str = KNN, **options: Any) -> Any:
        options = {"cache": tmp_path / "cache", "workers": 0, "batch_size": 8, "results": tmp_path / "r", **options}
        model = f"{nets}:{options.pop('model', 'tiny')}"
        return run(model, task, data=data, rerun=True, executor="inline", **options)[0]

    return one


def lines(record: Any) -> dict[str, Any]:
    from harness.record import to_json

    content = json.loads(to_json(record))
    for name in ("environment", "started_at", "seconds", "content_sha256"):
        del content[name]
    return content


def test_a_second_protocol_decodes_and_runs_nothing(make_imagenet: Make, go: Any, counts: Counter[str]) -> None:
    data = make_imagenet(val=2, train=3)
    first = go(data)
    assert counts == {"decoded": 40, "embedded": 40}
    counts.clear()
    second, again = go(data, f"{KNN},k=3"), go(data)
    assert counts == {}
    assert (second.details["k"], second.error) == (3, None)
    assert lines(again) == lines(first)
    assert first.details["features"] == {"layer": "last", "pooling": "default", "layout": "auto", "dim": 8}


@pytest.mark.parametrize(
    ("options", "embedded", "decoded"),
    [
        ({"task": f"{KNN},layer=stem"}, 40, 0),
        ({"batch_size": 5}, 40, 0),
        ({"precision": "bf16"}, 40, 0),
        ({"seed": 1}, 40, 0),
        ({"mean": (0.5, 0.5, 0.5)}, 40, 0),
        ({"crop_pct": 0.9}, 40, 40),
        ({"image_size": 40}, 40, 40),
        ({"limit": 5}, 5, 0),
        ({"limit": 16}, 0, 0),
        ({"workers": 2}, 0, 0),
        ({"model": "chatty"}, 40, 0),
        ({"task": "imagenet"}, 16, 0),
    ],
)
def test_whatever_features_depend_on_makes_them_anew(
    make_imagenet: Make, go: Any, counts: Counter[str], options: dict[str, Any], embedded: int, decoded: int
) -> None:
    data = make_imagenet(val=2, train=3)
    go(data)
    counts.clear()
    assert go(data, **options).error is None
    assert (counts["embedded"], counts["decoded"]) == (embedded, decoded)


def test_an_edited_model_is_run_again(make_imagenet: Make, go: Any, nets: str, counts: Counter[str]) -> None:
    data = make_imagenet(val=1, train=1)
    first = go(data)
    counts.clear()
    Path(nets).write_text(Path(nets).read_text().replace(".relu()", ".abs()"))
    second = go(data)
    assert counts["embedded"] == 16
    assert second.setup.weights.sha256 == first.setup.weights.sha256


def test_an_edited_part_of_a_model_is_run_again(
    make_imagenet: Make, go: Any, nets: str, counts: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    part = tmp_path / "part_of_nets.py"
    part.write_text("activation = abs\n")
    start = "def forward(self, images):"
    Path(nets).write_text(Path(nets).read_text().replace(start, f"{start}\n        import part_of_nets", 1))
    data = make_imagenet(val=1, train=1)
    go(data)
    go(data)
    assert counts["embedded"] == 16
    part.write_text("activation = None\n")
    go(data)
    assert counts["embedded"] == 32


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("task", ["imagenet", KNN])
def test_records_are_the_same_with_and_without(
    make_imagenet: Make, go: Any, tmp_path: Path, task: str, workers: int
) -> None:
    data = make_imagenet(val=2, train=3)
    records = [
        go(data, task, workers=workers, cache_limit=limit, results=tmp_path / name)
        for name, limit in (("none", 0), ("filling", 1), ("filled", 1))
    ]
    assert lines(records[0]) == lines(records[1]) == lines(records[2])
    assert records[0].outcomes_sha256 == records[1].outcomes_sha256 == records[2].outcomes_sha256
    assert {entry.about["kind"] for entry in Cache(tmp_path / "cache").entries()} >= {"images"}


def test_no_cache_leaves_nothing(make_imagenet: Make, go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_imagenet(val=1, train=1)
    go(data, cache_limit=0)
    monkeypatch.setenv("BENCH_CACHE_LIMIT", "0")
    go(data)
    assert not (tmp_path / "cache").exists()


def test_another_model_decodes_nothing(make_imagenet: Make, go: Any, counts: Counter[str]) -> None:
    data = make_imagenet(val=2, train=1)
    go(data, "imagenet")
    assert counts["decoded"] == 16
    go(data, "imagenet", model="chatty", std=(0.2, 0.2, 0.2))
    assert counts == {"decoded": 16, "embedded": 32}


def test_workers_share_what_they_decode(make_imagenet: Make, go: Any, counts: Counter[str]) -> None:
    data = make_imagenet(val=2)
    go(data, "imagenet", workers=2)
    go(data, "imagenet")
    assert counts["decoded"] == 0


def test_an_image_of_other_bytes_is_decoded_again(make_imagenet: Make, go: Any, counts: Counter[str]) -> None:
    data = make_imagenet(val=2)
    go(data, "imagenet")
    counts.clear()
    path = sorted((data / "imagenet" / "val").rglob("*.JPEG"))[3]
    content = bytearray(path.read_bytes())
    content[-20] ^= 255  # of the same size, so that the data's fingerprint is the same
    path.write_bytes(content)
    go(data, "imagenet")
    assert counts["decoded"] == 1


def test_a_broken_image_keeps_its_error(make_imagenet: Make, go: Any) -> None:
    data = make_imagenet(val=2)
    go(data, "imagenet")
    path = sorted((data / "imagenet" / "val").rglob("*.JPEG"))[3]
    path.write_bytes(b"\0" * path.stat().st_size)
    errors = {go(data, "imagenet", workers=workers).error for workers in (0, 2)}
    assert len(errors) == 1
    assert "is not a readable image" in errors.pop()


def test_damaged_features_are_said_and_made_again(
    make_imagenet: Make, go: Any, tmp_path: Path, counts: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_imagenet(val=2, train=3)
    first = go(data)
    counts.clear()
    (entry,) = [e for e in Cache(tmp_path / "cache").entries() if e.about["data"] == "imagenet train"
                and e.about["kind"] == "features"]  # fmt: skip
    path = tmp_path / "cache" / entry.key / "rows.npy"
    content = bytearray(path.read_bytes())
    content[-4 * 8 * 10] ^= 1  # the tenth row from the end: in the second of three batches of eight
    path.write_bytes(content)
    capsys.readouterr()
    assert lines(go(data)) == lines(first)
    assert counts["embedded"] == 8
    assert "1 of 24 cached features of train are damaged and are made again" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_no_failure(
    make_imagenet: Make, go: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    data = make_imagenet(val=1, train=1)
    record = go(data, cache=tmp_path / "file" / "below")
    assert record.error is None
    assert "cannot be kept" in capsys.readouterr().err
    record = go(data, cache_limit=1e-9)
    assert record.error is None


# Processes of their own

SLOW = """
import os, time
import torch
from torch import nn

class Slow(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3, num_classes)
        self.preprocessing = {"input_size": (3, 32, 32)}

    def forward(self, images):
        with open(os.environ["COUNT"], "a") as file:
            file.write(f"{len(images)}\\n")
        time.sleep(float(os.environ.get("SLEEP", "0")))
        return self.head(images.mean((2, 3)))

def slow(num_classes=1000):
    return Slow(num_classes)
"""


def start(tmp_path: Path, data: Path, name: str, **variables: str) -> subprocess.Popen[str]:
    (tmp_path / "slow.py").write_text(SLOW)
    command = [
        sys.executable, "run_bench.py", "run", "--model", f"{tmp_path / 'slow.py'}:slow", "--task", KNN, "--data",
        str(data), "--results", str(tmp_path / name), "--cache", str(tmp_path / "cache"), "--batch-size", "4",
        "--workers", "0", "--executor", "inline",
    ]  # fmt: skip
    environment = {**os.environ, "COUNT": str(tmp_path / f"{name}.count"), **variables}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def seen(tmp_path: Path, name: str) -> int:
    path = tmp_path / f"{name}.count"
    return sum(map(int, path.read_text().split())) if path.exists() else 0


def finished(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def test_a_kill_loses_at_most_one_batch(make_imagenet: Make, tmp_path: Path) -> None:
    data = make_imagenet(val=1, train=5)  # 40 training images in ten batches, 8 others
    process = start(tmp_path, data, "killed", SLEEP="0.2")
    while seen(tmp_path, "killed") < 16:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = seen(tmp_path, "killed")
    finished(start(tmp_path, data, "killed"))
    total = seen(tmp_path, "killed")
    assert before >= 16
    assert 48 <= total <= 48 + 4
    assert total - before < 48 - 8


def test_two_processes_share_one_extraction(make_imagenet: Make, tmp_path: Path) -> None:
    data = make_imagenet(val=1, train=5)
    both = [start(tmp_path, data, name, SLEEP="0.3") for name in ("one", "two")]
    for process in both:
        finished(process)
    assert seen(tmp_path, "one") + seen(tmp_path, "two") == 48
    records = [json.loads(next((tmp_path / name / "records").iterdir()).read_text()) for name in ("one", "two")]
    assert records[0]["measurements"] == records[1]["measurements"]
    assert records[0]["outcomes_sha256"] == records[1]["outcomes_sha256"]


def test_the_command_lists_and_clears(make_imagenet: Make, go: Any, tmp_path: Path) -> None:
    go(make_imagenet(val=1, train=1))
    command = [sys.executable, "run_bench.py", "cache"]

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words, "--cache", str(tmp_path / "cache")], cwd=ROOT, capture_output=True, text=True, check=True
        )

    listed = call("list")
    assert listed.stdout.count("features") == 2
    assert listed.stdout.count("images") == 2
    assert "nets.py:tiny" in listed.stdout
    assert "layer=last pooling=default fp32" in listed.stdout
    assert "4 entries" in listed.stderr
    assert "Removed 0 entries" in call("clear", "--data", "cub").stderr
    assert "Removed 2 entries" in call("clear", "--model", "nets.py:tiny").stderr
    assert "Removed 2 entries" in call("clear", "--data", "imagenet").stderr
    assert "0 entries" in call("list").stderr
