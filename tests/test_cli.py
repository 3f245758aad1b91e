"""The command line: exit codes, clean standard output, and no heavy imports where none are needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
Make = Callable[..., Path]


def bench(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run_bench.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload,no-any-return]


def run_words(data: Path, results: Path, *words: str) -> list[str]:
    common = ["--data", str(data), "--results", str(results), "--workers", "0", "--executor", "inline"]
    return ["run", *common, *words]


def test_json_is_all_that_standard_output_holds(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    words = run_words(
        make_imagenet(), tmp_path / "r", "--model", f"{nets}:chatty", f"{nets}:tiny", "--task", "imagenet"
    )
    done = bench(*words, "--json")
    records = json.loads(done.stdout)
    assert [record["model"] for record in records] == ["nets.py:chatty", "nets.py:tiny"]
    assert "a model that talks" in done.stderr
    assert json.loads(bench(*words, "--json").stdout) == records, "records that were skipped are printed too"


def test_quiet_prints_nothing(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    done = bench(
        *run_words(make_imagenet(), tmp_path / "r", "--model", f"{nets}:tiny", "--task", "imagenet", "--quiet")
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_failed_pair_exits_with_1(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    done = bench(*run_words(make_imagenet(), tmp_path / "r", "--model", f"{nets}:raises", "--task", "imagenet"))
    assert done.returncode == 1
    assert "no_such_method" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--model", "no_such_model", "--task", "cost"),
        ("run", "--model", "timm:no_such_model", "--task", "cost"),
        ("run", "--model", "vit_t16", "--task", "no_such_task"),
        ("run", "--model", "vit_t16", "--task", "imagenet", "--data", "no/such/folder"),
        ("run", "--model", "vit_t16", "--task", "cost", "--mean", "a,b,c"),
        ("run", "--model", "vit_t16", "--task", "cost", "--image-size", "1,2,3"),
        ("run", "--model", "no/such/file.py:net", "--task", "cost"),
        ("board", "--results", "no/such/folder"),
    ],
)
def test_a_mistake_is_one_line_and_exits_with_2(words: tuple[str, ...], tmp_path: Path) -> None:
    done = bench(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_wrong_usage_exits_with_2() -> None:
    assert bench("run", "--no-such-option").returncode == 2
    assert bench("no-such-command").returncode == 2


def test_board_writes_markdown_and_csv_and_prints_the_page(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    results = tmp_path / "r"
    bench(*run_words(make_imagenet(train=2), results, "--model", f"{nets}:tiny", "--task", "imagenet:knn", "imagenet"))
    done = bench("board", "--results", results)
    assert done.returncode == 0
    assert done.stdout.strip() == (results / "README.md").read_text().strip()
    assert "random weights" in done.stdout
    assert "nets.py:tiny" in (results / "leaderboard.csv").read_text()


def test_board_is_reproducible(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    results = tmp_path / "r"
    bench(*run_words(make_imagenet(train=2), results, "--model", f"{nets}:tiny", "--task", "imagenet:knn"))
    pages = []
    for _ in range(2):
        bench("board", "--results", results)
        pages.append((results / "README.md").read_bytes() + (results / "leaderboard.csv").read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.parametrize("kind", ["models", "attentions", "wrappers", "tasks", "protocols", "costs"])
def test_list_shows_what_is_registered(kind: str) -> None:
    done = bench("list", kind)
    assert done.returncode == 0
    expected = {
        "models": "vit_s16_cls",
        "attentions": "agent",
        "tasks": "imagenet",
        "protocols": "knn",
        "costs": "macs",
        "wrappers": "tome",
    }
    assert expected[kind] in done.stdout


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["list", "tasks"], ["list", "protocols"]])
def test_help_and_light_lists_do_not_import_torch(words: list[str]) -> None:
    program = "import sys; from harness.cli import app; app(standalone_mode=False); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_doctor_says_what_there_is_and_what_is_missing(tmp_path: Path) -> None:
    done = bench("doctor", cwd=tmp_path)
    assert done.returncode == 0
    assert "processor" in done.stdout
    assert "task imagenet  not ready: " in done.stdout
    assert "task cost      ready" in done.stdout


def test_data_where_names_what_is_missing(make_imagenet: Make, tmp_path: Path) -> None:
    done = bench("data", "where", "--data", make_imagenet())
    assert "imagenet: 16 images of 8 classes" in done.stdout
    assert "cost: needs no data" in done.stdout
    assert "no data root" in bench("data", "where", "--data", tmp_path / "nowhere").stdout
