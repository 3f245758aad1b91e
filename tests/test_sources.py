"""The hash over a network's code changes with every file that has a part in it, and with no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
from torch import nn

from harness import sources
from harness.models import build_model
from harness.sources import code_sha256, files_sha256, own_sha256

NET = """
import math
from torch import nn
from near.parts import mix
import lonely

class Net(nn.Linear):
    def forward(self, images):
        from late import finish
        return finish(mix(super().forward(images)))

def net(num_classes=1000):
    return nn.Sequential(Net(3, num_classes))
"""
FILES = {
    "net.py": NET,
    "near/__init__.py": "from .deep import scale\n",
    "near/parts.py": "from . import deep\nfrom .deeper.well import water\nmix = abs\n",
    "near/deep.py": "scale = 2\n",
    "near/deeper/__init__.py": "",
    "near/deeper/well.py": "from ..other import thing\nwater = 1\n",
    "near/other.py": "thing = 1\n",
    "late.py": "finish = abs\n",
    "lonely.py": "import not_installed_anywhere\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {**FILES, "unrelated.py": "x = 1\n"}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    (tmp_path / "lonely.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_file_that_is_imported_counts(folder: Path) -> None:
    module = build_model(f"{folder / 'net.py'}:net")
    before = code_sha256(module)
    (folder / "unrelated.py").write_text("x = 2\n")
    assert code_sha256(module) == before
    seen = {before}
    for name in FILES:
        if name == "net.py":  # which is imported under another name once it is another file
            continue
        (folder / name).write_text(f"{(folder / name).read_text()}\n# another version\n")
        seen.add(code_sha256(module))
    assert len(seen) == len(FILES)


def test_a_file_of_another_python_counts_by_its_content(folder: Path) -> None:
    module = build_model(f"{folder / 'net.py'}:net")
    (folder / "late.py").write_text("def finish(:\n")
    before = code_sha256(module)
    (folder / "late.py").write_text("def finish(::\n")
    assert code_sha256(module) != before


def test_carriers_differ_by_their_mixers() -> None:
    names = ("vit_t16", "vit_t16+pooling", "vit_t16+identity")
    hashes = {code_sha256(build_model(name, num_classes=2)) for name in names}
    assert len(hashes) == 3
    assert code_sha256(build_model("vit_t16", num_classes=3)) in hashes


def test_libraries_count_by_their_versions() -> None:
    nothing = files_sha256()
    assert code_sha256(timm.create_model("test_vit")) == code_sha256(nn.Linear(1, 1)) == nothing


def test_the_harness_counts() -> None:
    assert own_sha256() != files_sha256()
    assert all((Path(sources.__file__).parent / f"{name}.py").is_file() for name in sources.OWN)
