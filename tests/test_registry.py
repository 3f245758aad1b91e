"""Names: what they may be, whose they are, and how they are found."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.errors import BenchError, DuplicateName, UnknownName
from harness.registry import (
    ATTENTIONS,
    COSTS,
    DETECTORS,
    HEADS,
    MODELS,
    PANOPTIC_SEGMENTERS,
    PROTOCOLS,
    ROOT,
    SEGMENTERS,
    TASKS,
    WRAPPERS,
    Registry,
)

PLUGIN = "from harness.registry import MODELS\n\n@MODELS.register({name!r})\ndef net(): ...\n"


def filled(**entries: Any) -> Registry[Any]:
    """Return a registry that has nothing to discover."""
    made: Registry[Any] = Registry("model", "none")
    made._discovered = True
    for name, build in entries.items():
        made.register(name)(build)
    return made


def execute(path: Path, name: str = "someone") -> None:
    """Import a file as a fresh module."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def in_python(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, where `path` comes before the project."""
    folders = [str(path)] if path else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*folders, str(ROOT)])}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT.parent
    )


@pytest.fixture
def models_undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take back what a test registers or loads."""
    assert len(MODELS) > 0
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    monkeypatch.setattr(registry, "_loaded_plugins", set())
    yield
    sys.modules.pop("their_nets", None)


def install_plugin(folder: Path, code: str, distribution: str = "their-nets") -> None:
    """Lay out what pip would install: a module, and a distribution that names it as an entry point."""
    module = distribution.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[backbone_bench.plugins]\nnets = {module}\n")


def test_an_entry_keeps_name_card_and_place() -> None:
    models = filled()

    @models.register("one", card="a card")
    def one() -> None: ...

    entry = models.get("one")
    assert (entry.name, entry.build, entry.card) == ("one", one, "a card")
    path, line = entry.place.rsplit(":", 1)
    assert path == "tests/test_registry.py"
    assert '@models.register("one"' in Path(__file__).read_text().splitlines()[int(line) - 1]


def test_names_are_sorted_and_counted() -> None:
    models = filled(b=int, a=int)
    assert list(models) == ["a", "b"]
    assert len(models) == 2
    assert "a" in models
    assert "c" not in models


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"No model is named 'vit_s61'\. Did you mean 'vit_s16'\?.* all 2\.$"):
        filled(vit_s16=int, other=int).get("vit_s61")


def test_unknown_name_without_a_near_one_gets_no_hint() -> None:
    with pytest.raises(UnknownName) as caught:
        filled(vit_s16=int).get("zzz")
    assert str(caught.value) == "No model is named 'zzz'. `run_bench.py list models` shows all 1."


def test_duplicate_names_both_places(tmp_path: Path) -> None:
    models = filled()
    models.register("twin")(int)
    other = tmp_path / "other.py"
    other.write_text("def add(models):\n    models.register('twin')(int)\n")
    scope: dict[str, Any] = {}
    exec(compile(other.read_text(), str(other), "exec"), scope)
    with pytest.raises(DuplicateName) as caught:
        scope["add"](models)
    assert "Two models are named 'twin'" in str(caught.value)
    assert "tests/test_registry.py:" in str(caught.value)
    assert f"{other}:2" in str(caught.value)


def test_duplicate_in_one_table_is_found() -> None:
    models = filled()
    rows = [models.register("twin") for _ in range(2)]
    rows[0](int)
    with pytest.raises(DuplicateName, match="'twin'"):
        rows[1](str)


def test_a_module_that_is_executed_again_is_no_duplicate(tmp_path: Path, models_undone: None) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN.format(name="mine"))
    execute(tmp_path / "mine.py")
    execute(tmp_path / "mine.py")
    assert "mine" in MODELS


@pytest.mark.parametrize("name", ["", "a+b", "a:b", "a/b", "a b", "a*", "a?", "[a]", "a,b", "a@b", "a\\b"])
def test_characters_with_a_meaning_are_refused(name: str) -> None:
    with pytest.raises(BenchError, match="cannot name a model: use letters"):
        filled().register(name)


@pytest.mark.parametrize("kind", ["tasks", "baselines"])
def test_a_strangers_package_is_named_and_not_run(kind: str, tmp_path: Path) -> None:
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "__init__.py").write_text("open('ran', 'w')")
    code = f"from harness.registry import discover; discover('{kind}')"
    done = in_python(f"import os; os.chdir({str(tmp_path)!r}); {code}", tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert f"The package '{kind}' was found in '{tmp_path / kind}'" in last
    assert "PYTHONPATH" in last
    assert not (tmp_path / "ran").exists()


def test_a_strangers_module_is_named(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("")
    done = in_python("from harness.registry import TASKS; list(TASKS)", tmp_path)
    assert f"was found in '{tmp_path / 'tasks.py'}'" in done.stderr.strip().splitlines()[-1]


def test_a_module_that_cannot_be_imported_is_named_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "broken_things"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "slip.py").write_text("x = 1\ny = (\n")
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    models: Registry[Any] = Registry("model", "broken_things")
    for _ in range(2):
        with pytest.raises(
            BenchError, match=r"'broken_things\.slip' cannot be imported \(SyntaxError: .*, slip\.py:2\)"
        ):
            models.get("anything")


def test_a_package_that_is_absent_is_said_so() -> None:
    with pytest.raises(BenchError, match="'no_such_package' was not found"):
        registry.discover("no_such_package")


def test_a_plugin_registers_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_undone: None) -> None:
    install_plugin(tmp_path, PLUGIN.format(name="their_net"))
    monkeypatch.syspath_prepend(tmp_path)
    registry.load_plugins()
    assert MODELS.get("their_net").place == f"{tmp_path / 'their_nets.py'}:3"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dependency', their_nets.py:1"),
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero, their_nets.py:2"),
        (PLUGIN.format(name="a b"), "BenchError: 'a b' cannot name a model"),
    ],
)
def test_a_broken_plugin_is_named_each_time(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_undone: None
) -> None:
    install_plugin(tmp_path, code)
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        with pytest.raises(BenchError) as caught:
            registry.load_plugins()
        assert str(caught.value).startswith(f"The plugin 'nets' of their-nets cannot be imported ({reason}")
        assert "\n" not in str(caught.value)


def test_a_plugin_cannot_take_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_undone: None) -> None:
    taken = next(iter(MODELS))
    install_plugin(tmp_path, PLUGIN.format(name=taken))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DuplicateName, match=rf"{taken}.*baselines/backbones/.*their_nets\.py:3"):
        registry.load_plugins()


def test_listing_tasks_and_protocols_does_not_import_torch() -> None:
    code = (
        "import sys; from harness.registry import *\n"
        "print(*TASKS, *PROTOCOLS, *SEGMENTERS, *DETECTORS, *PANOPTIC_SEGMENTERS)\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)"
    )
    done = in_python(code)
    assert done.returncode == 0, done.stderr
    assert {"imagenet", "cost", "native_head", "knn"} <= set(done.stdout.split())


@pytest.mark.parametrize(
    "found",
    [MODELS, ATTENTIONS, TASKS, PROTOCOLS, SEGMENTERS, DETECTORS, PANOPTIC_SEGMENTERS, HEADS, COSTS],
    ids=lambda r: r.kind,
)
def test_every_registry_holds_something_of_its_own(found: Registry[Any]) -> None:
    assert len(found) > 0
    for name in found:
        path, line = found.get(name).place.rsplit(":", 1)
        assert (ROOT / path).is_file()
        assert int(line) > 0


def test_wrappers_can_be_listed() -> None:
    assert list(WRAPPERS) == sorted(WRAPPERS)
