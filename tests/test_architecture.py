"""The rules that keep the code readable: who imports whom, sizes, no swallowed errors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("harness", "tasks", "baselines")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# Inside the harness imports run one way, from the first to the last.
ORDER = (
    "errors", "distributed", "registry", "progress", "images", "metric", "journal", "statistics", "significance",
    "resampling", "details", "record", "skim", "cache", "location", "store", "album", "checkpoint",
    "cgroup", "nvml", "environment", "mmseg_config", "mmseg_segmentor", "factory", "models", "weights",
    "sources", "blocks", "features", "taps", "pyramid", "mmseg_backbone", "alone", "preprocessing",
    "device", "graphs", "training", "optimizer", "observe", "timing", "task_id", "task", "runner",
    "scaling", "growth", "costs",
    "executors", "predictions", "api",
    "race", "suite", "leaderboard", "figures", "published", "budget", "pairing", "interval_ranks", "ranking", "tables",
    "page_data", "page", "board", "tradeoff", "sweep", "plot", "multiples", "growth_report", "tradeoff_page",
    "compare", "gate", "gate_report", "baseline", "statements", "audit", "show",
    "inspection", "confine", "isolation", "conformance", "submission",
    "doctor", "breakdown", "reference",
    "options", "command", "cost_cli", "sweep_cli", "attention_cli",
    "compare_cli", "board_cli", "suite_cli", "audit_cli", "show_cli", "cache_cli", "submit_cli",
    "cli",
)  # fmt: skip


def imported(tree: ast.AST) -> list[str]:
    """Return the dotted names that a module imports, anywhere in it."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_import_only_what_they_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    others = {"harness": {"tasks", "baselines"}, "tasks": {"baselines"}, "baselines": {"tasks"}}[package]
    assert not others & {name.split(".")[0] for name in imported(parse(path))}


@pytest.mark.parametrize("path", sorted((ROOT / "baselines").rglob("*.py")), ids=lambda path: path.stem)
def test_no_baseline_imports_another(path: Path) -> None:
    if path.relative_to(ROOT).parts[1] == "layers":
        return
    from_baselines = [name for name in imported(parse(path)) if name.startswith("baselines")]
    assert all(name.startswith("baselines.layers") for name in from_baselines)


@pytest.mark.parametrize("path", sorted((ROOT / "harness").rglob("*.py")), ids=lambda path: path.stem)
def test_harness_imports_run_one_way(path: Path) -> None:
    part = path.relative_to(ROOT / "harness").with_suffix("").parts[0]
    if part == "__init__":
        return
    mine = ORDER.index(part)
    for name in imported(parse(path)):
        words = name.split(".")
        if words[0] == "harness" and len(words) > 1 and words[1] != part:
            assert ORDER.index(words[1]) < mine, f"{part} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 50, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_error_is_swallowed(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ExceptHandler):
            assert not all(isinstance(statement, ast.Pass) for statement in node.body), f"line {node.lineno}"


def test_tests_are_no_package() -> None:
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_fvcore_is_used_in_one_file_only() -> None:
    users = [path for path in FILES if any(name.split(".")[0] == "fvcore" for name in imported(parse(path)))]
    assert [path.name for path in users] == ["macs.py"]
