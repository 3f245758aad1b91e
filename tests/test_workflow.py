"""The workflow to copy: its own commands, run in a scratch repository for changes of every kind."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
COPIED = ROOT / "docs" / "ci"
BASE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, 2)
        self.head = nn.Linear(32, num_classes)
        self.preprocessing = {"input_size": (3, 64, 64), "crop_pct": 1.0}

    def forward_features(self, images):
        return self.stem(images).relu()

    def forward_head(self, maps, pre_logits=False):
        pooled = nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1)
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images):
        return self.forward_head(self.forward_features(images))

def my_net(num_classes=1000):
    return Net(num_classes)
"""
CHANGES = {
    "good": ("return self.stem(images).relu()", "maps = self.stem(images)\n        return maps.relu()"),
    "slower": ("return self.stem", "[self.stem(images) for _ in range(20)]\n        return self.stem"),
    "worse": ("return self.stem(images)", "return self.stem(images * 0 + torch.rand_like(images))"),
    "broken": ("return self.stem(images)", "return self.stem(image)"),
}


def workflow() -> dict[str, Any]:
    return dict(yaml.safe_load((COPIED / "workflow.yml").read_text()))


def steps() -> dict[str, str]:
    """Return the commands of the workflow's steps by their names."""
    return {step["name"]: step["run"] for step in workflow()["jobs"]["bench"]["steps"] if "run" in step}


class Repository:
    """A model repository with the copied workflow, and a runner for the workflow's steps."""

    def __init__(self, root: Path) -> None:
        self.root = root / "repository"
        self.temp = root / "runner"
        self.temp.mkdir(parents=True)
        self.root.mkdir()
        program = self.temp / "bin" / "backbone-bench"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "run_bench.py"}" "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.git("init", "-q", "-b", "main")
        shutil.copy(COPIED / "bench.toml", self.root)
        self.base = self.commit(BASE)

    def git(self, *words: str) -> str:
        told = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(told, cwd=self.root, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, code: str) -> str:
        (self.root / "nets.py").write_text(code)
        self.git("add", ".")
        self.git("commit", "-qm", "a change")
        return self.git("rev-parse", "HEAD")

    def step(self, name: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run one step as a runner does: bash, in the repository, with the workflow's environment."""
        script = re.sub(r"\$\{\{\s*github\.event\.pull_request\.base\.sha\s*\}\}", self.base, steps()[name])
        assert "${{" not in script, "an expression that this test does not know"
        stated: Mapping[str, str] = {key: value for key, value in workflow()["env"].items() if "${{" not in value}
        environment = {
            **os.environ,
            **stated,
            **more,
            "RUNNER_TEMP": str(self.temp),
            "PATH": f"{self.temp / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository whose base has been measured."""
    repository = Repository(tmp_path_factory.mktemp("workflow"))
    for name in ("Make the small data", "Measure the base"):
        done = repository.step(name)
        assert done.returncode == 0, done.stderr
    return repository


def propose(repository: Repository, change: str) -> None:
    """Commit a change on top of the base, and forget what an earlier one measured."""
    old, new = CHANGES[change]
    assert old in BASE
    shutil.rmtree(repository.temp / "after", ignore_errors=True)
    repository.commit(BASE.replace(old, new))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("good", 0, r"^## Regression check passed: .*\d same"),
        ("slower", 3, r"^\| worse +\|.*\| latency_b1 +\|"),
        ("worse", 3, r"^\| worse +\|.*\| top1 +\|"),
    ],
)
def test_the_copied_workflow_judges_a_change(measured: Repository, change: str, code: int, said: str) -> None:
    propose(measured, change)
    done = measured.step("Measure the change")
    assert done.returncode == 0, done.stderr
    summary = measured.temp / f"{change}.md"
    done = measured.step("Compare", GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == code, done.stdout + done.stderr
    assert re.search(said, summary.read_text(), re.MULTILINE)
    assert ("::error" in done.stdout + done.stderr) == (code != 0)
    assert (measured.temp / "bench.xml").read_text().startswith("<?xml")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_copied_workflow_is_red_where_a_model_is_broken(measured: Repository) -> None:
    propose(measured, "broken")
    done = measured.step("Measure the change")
    assert done.returncode != 0
    assert "name 'image' is not defined" in done.stdout + done.stderr
    # A runner stops here. Whoever goes on is told too: nothing measured is never green.
    assert measured.step("Compare").returncode == 4


def test_the_workflow_names_only_steps_and_files_that_exist() -> None:
    assert list(steps()) == [
        "Install the harness",
        "Make the small data",
        "Measure the base",
        "Measure the change",
        "Compare",
    ]
    assert "--policy bench.toml" in steps()["Compare"]
    assert (COPIED / "bench.toml").is_file()
