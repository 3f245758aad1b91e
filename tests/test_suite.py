"""A suite: what its file may say, and one command from nothing to the pages, which goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from harness.cli import app
from harness.errors import BenchError, DataError, SetupError, UnknownName
from harness.store import Store
from harness.suite import make_data, read_suite, run_suite

ROOT = Path(__file__).resolve().parents[1]
SUITE = """
attentions = ["pooling"]
[data.clevr]
train = 12
val = 6
[[runs]]
carrier = "pyramid_n"
tasks = ["clevr_count:scratch,budget=mini,steps=2,batch=4,size=32,seeds=2"]
[[runs]]
carrier = "pyramid_n"
tasks = ["cost:parameters"]
image_size = 32
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(SUITE)
    return path


def call(file: Path, *more: str) -> Result:
    folders = ["--results", str(file.parent / "r"), "--data", str(file.parent / "d")]
    return CliRunner().invoke(app, ["suite", str(file), *folders, "--executor", "inline", "--quiet", *more])


def test_one_command_from_nothing_to_the_pages(file: Path) -> None:
    done = call(file)
    assert done.exit_code == 0, done.output
    store = Store(file.parent / "r")
    records = {(record.model, record.task.partition(":")[0]): record for record in store.load()}
    assert {model for model, _ in records} == {"pyramid_n", "pyramid_n+pooling"}
    assert len(store.load()) == 4
    for record in store.load():
        assert record.error is None
        assert record.environment.threads == 1
    first, second = (records[model, "clevr_count"] for model in ("pyramid_n", "pyramid_n+pooling"))
    assert first.details["equal"] == second.details["equal"]
    assert len(first.measurements[0].samples) == 2
    page = (store.root / "tradeoff.md").read_text()
    assert "## pyramid\\_n" in page or "## pyramid_n" in page
    assert "control" in page
    assert "parameters (M)" in page
    assert (store.root / "tradeoff_pyramid_n_clevr_count_dark.svg").is_file()

    pages = {path: path.read_bytes() for path in store.root.iterdir() if path.is_file()}
    times = {path: path.stat().st_mtime_ns for path in store.records.iterdir()}
    assert call(file).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in store.records.iterdir()} == times
    assert {path: path.read_bytes() for path in pages} == pages

    assert call(file, "--only", "cost", "--rerun").exit_code == 0
    again = {path for path in times if path.stat().st_mtime_ns != times[path]}
    assert {path.name.partition("__")[0] for path in again} == {"cost-parameters"}
    assert len(again) == 2


def test_what_is_there_makes_pages(file: Path) -> None:
    assert call(file, "--only", "cost").exit_code == 0
    (file.parent / "r" / "tradeoff.md").unlink()
    assert call(file, "--pages").exit_code == 0
    assert "no trainings" in (file.parent / "r" / "tradeoff.md").read_text()
    assert not list((file.parent / "r" / "records").glob("clevr*"))


def test_failures_are_in_the_exit_code_and_the_pages_are_written(file: Path) -> None:
    file.write_text(SUITE.replace("budget=mini,", "budget=mini,lr=1e30,"))
    assert call(file, "--only", "clevr_count").exit_code == 1
    assert "The training loss is" in (file.parent / "r" / "README.md").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("attentions =", "attention =", r"has no 'attention'; expected any of attentions, runs"),
        ("carrier =", "model =", r"has no 'model' in runs\[0\]; expected any of carrier, tasks"),
        ('["pooling"]', "3", "cannot be used: Expected `array`"),
        ("[data.clevr]", "[data", "cannot be read"),
    ],
)
def test_a_file_that_is_no_suite(file: Path, old: str, new: str, message: str) -> None:
    file.write_text(SUITE.replace(old, new))
    with pytest.raises(SetupError, match=message):
        read_suite(file)


def test_names_are_checked_before_anything_runs(file: Path) -> None:
    with pytest.raises(
        SetupError, match=r"--only is 'costs'; the suite has: clevr_count, clevr_count:scratch, cost, cost:parameters"
    ):
        read_suite(file).pairs(["costs"])
    assert [task for _, task, _ in read_suite(file).pairs(["cost:parameters"])] == ["cost:parameters"] * 2
    make_data(read_suite(file), file.parent / "d")
    file.write_text(SUITE.replace("pooling", "poolin"))
    with pytest.raises(BenchError, match="poolin"):
        run_suite(read_suite(file), file.parent / "d", Store(file.parent / "r"), executor="inline")
    file.write_text(SUITE.replace("cost:parameters", "cost:parameter"))
    with pytest.raises(UnknownName, match="Did you mean 'parameters'"):
        read_suite(file).pairs()
    assert not (file.parent / "r").exists()


def test_data_of_other_parameters_are_neither_used_nor_replaced(file: Path) -> None:
    make_data(read_suite(file), file.parent / "d")
    file.write_text(SUITE.replace("train = 12", "train = 13"))
    with pytest.raises(DataError, match="train=12 instead of 13"):
        make_data(read_suite(file), file.parent / "d")
    file.write_text(SUITE.replace("train = 12", "training = 12"))
    with pytest.raises(SetupError, match=r"'clevr' cannot be drawn.*'training'"):
        make_data(read_suite(file), file.parent / "e")


def test_the_attention_suite_has_every_attention_on_both_carriers() -> None:
    from harness.registry import ATTENTIONS

    pairs = read_suite(ROOT / "results" / "suites" / "attention.toml").pairs()
    for carrier in ("vit_n16", "pyramid_n"):
        for task in ("clevr_dist:scratch", "clevr_count:scratch", "imagenet:scratch", "cost"):
            models = {model for model, name, _ in pairs if name.startswith(task) and model.startswith(carrier)}
            assert {model.partition("+")[2] or "softmax" for model in models} == set(ATTENTIONS), (carrier, task)
