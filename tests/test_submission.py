"""Checking a submission: 30 broken and 20 hostile ones get the right reason, and not a line of them runs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from submissions import (
    BROKEN,
    CANARY,
    CHECKPOINT,
    CLAIM,
    HIDDEN,
    HOSTILE,
    INST,
    MODEL,
    NET,
    PREDICTIONS,
    Case,
    Evil,
    put,
)  # fmt: skip
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import SetupError
from harness.inspection import predictions
from harness.inspection.checkpoints import HARMLESS, OPCODES, inspect_checkpoint
from harness.submission.manifest import json_schema
from harness.submission.read import read
from harness.submission.template import write
from harness.tables import defuse

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a submission, and a working directory in which its code would leave a trace."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside.py").write_text(NET)
    (tmp_path / "submitted").mkdir()
    return tmp_path / "submitted"


WATCHED: list[list[str]] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and WATCHED:
        WATCHED[-1].append(str(arguments[0]))


@pytest.fixture(scope="module")
def _hooked() -> None:
    """An audit hook, which cannot be taken away again."""
    sys.addaudithook(_hook)


@pytest.fixture
def opened(_hooked: None) -> Iterator[list[str]]:
    """The paths that are opened from here on."""
    WATCHED.append([])
    yield WATCHED[-1]
    WATCHED.pop()


def check(case: Case, folder: Path) -> None:
    case.make(folder)
    started = time.process_time()
    submission, faults = read(folder)
    assert time.process_time() - started < 5
    assert submission is None
    found = [(fault.code, fault.place) for fault in faults]
    assert any(code == case.code and place.startswith(case.place) for code, place in found), found
    assert all(fault.message and fault.fix and str(fault).isprintable() for fault in faults)
    assert not list(folder.parent.rglob(CANARY))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_submission_gets_its_reason_and_nothing_runs(name: str, folder: Path) -> None:
    check(BROKEN[name], folder)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_submission_gets_nowhere(name: str, folder: Path, opened: list[str]) -> None:
    HOSTILE[name].make(folder)
    before = sorted(folder.parent.iterdir())
    opened.clear()
    read(folder)
    # An editable installation puts a word on the path that is no folder, and Python looks for plugins there.
    paths = [Path(path).absolute() for path in opened if path not in sys.path]
    strange = [path for path in paths if path.is_relative_to(folder.parent) and not path.is_relative_to(folder)]
    assert not strange
    assert not [path for path in paths if str(path) in ("/etc/passwd", "/etc/nets.py")]
    assert sorted(folder.parent.iterdir()) == before


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_submission_gets_its_reason(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "submitted").mkdir()
    check(HOSTILE[name], tmp_path / "submitted")


@pytest.mark.parametrize("content", [HIDDEN, INST, pickle.dumps(Evil(), 2), pickle.dumps(Evil())])
def test_the_hostile_pickles_are_real(content: bytes, tmp_path: Path) -> None:
    code = "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, content.hex()], cwd=tmp_path, check=True)
    assert (tmp_path / CANARY).exists()


def test_there_are_as_many_as_promised() -> None:
    assert len(BROKEN) >= 30
    assert len(HOSTILE) >= 20


def test_a_table_has_a_most_of_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "MOST_ROWS", 10)
    put(folder, PREDICTIONS, classes_csv="".join(f"{number},1\n" for number in range(10)))
    assert read(folder)[1] == []
    put(folder, PREDICTIONS, classes_csv="".join(f"{number},1\n" for number in range(11)))
    assert [(fault.code, fault.place) for fault in read(folder)[1]] == [("size", "submission.toml:6")]


def test_every_bad_row_of_a_table_is_named_up_to_a_most(folder: Path) -> None:
    put(folder, PREDICTIONS, classes_csv="a.JPEG,3\nb.JPEG,nan\nc.JPEG,1,2\na.JPEG,5\nd.JPEG,4\n")
    found = [(fault.code, fault.place) for fault in read(folder)[1]]
    assert found == [
        ("predictions", "classes.csv:2"), ("predictions", "classes.csv:3"), ("duplicate", "classes.csv:4"),
    ]  # fmt: skip
    put(folder, PREDICTIONS, classes_csv="a.JPEG,nan\n" * 50)
    assert len(read(folder)[1]) == 20
    put(folder, PREDICTIONS, classes_csv="a.JPEG\n" * 50)
    assert len(read(folder)[1]) == 1


def test_what_a_pickle_asks_for_is_quoted_as_it_is(folder: Path) -> None:
    HOSTILE["a pickle that runs a command"].make(folder)
    assert "asks for posix.system, and may run" in read(folder)[1][0].message


def test_what_a_key_may_be_is_told(folder: Path) -> None:
    put(folder, MODEL.replace('"model"', '"Model"').replace("[model]", '[model]\nprecision = "fp8"'), nets_py=NET)
    assert [fault.fix for fault in read(folder)[1]] == [
        "Use model, checkpoint, predictions, claim.", "Use fp32, tf32, bf16, fp16.",
    ]  # fmt: skip


def test_one_bracket_of_a_claim_does_not_hide_its_faults(folder: Path) -> None:
    put(folder, CLAIM.replace("[[claim]]", "[claim]").replace("81.2", "812"))
    assert [fault.code for fault in read(folder)[1]] == ["type", "range"]


@pytest.mark.parametrize("start", ["=", " =", "\n=", "+", "\t", "-", "@", "\uff1d", "\uff20"])
def test_no_cell_of_a_table_begins_a_formula(start: str) -> None:
    assert defuse(f"{start}1+1") == f"'{start}1+1"
    assert defuse(f"a{start}") == f"a{start}"


def test_cells_that_only_look_odd_are_let_pass(folder: Path) -> None:
    put(folder, PREDICTIONS, classes_csv="nancy.JPEG,3,-0.5\ninfo/- x.JPEG,4,-1e-3\n")
    assert read(folder)[1] == []


def test_every_fault_is_named_at_once(folder: Path) -> None:
    text = '[submission]\nname = "my net"\nkind = "model"\ntasks = ["nothing"]\npaper = "x"\n'
    put(folder, text + '[model]\nentry = "a:b"\nsize = 3\n')
    _, faults = read(folder)
    assert {(fault.code, fault.place.partition(":")[2]) for fault in faults} == {
        ("name", "2"), ("task", "4"), ("citation", "5"), ("entry", "7"), ("unknown-key", "8"),
    }  # fmt: skip


def test_a_missing_key_does_not_hide_the_others(folder: Path) -> None:
    put(folder, '[submission]\nkind = "model"\ntasks = ["cost"]\n[model]\nentry = "gone.py:net"\n')
    assert {fault.code for fault in read(folder)[1]} == {"missing", "absent"}


@pytest.mark.parametrize(("toml", "files"), [
    (MODEL, {"nets_py": NET}),
    (MODEL, {"nets_py": "try:\n    from a import net\nexcept ImportError:\n    net = None\n"}),
    (MODEL, {"nets_py": "class net:\n    def __init__(self, num_classes):\n        pass\n"}),
    (PREDICTIONS, {"classes_csv": "image,class\na.JPEG,3\nb.JPEG,4\n"}),
    (PREDICTIONS.replace("classes.csv", "a.json"), {"a_json": '[{"image_id": 3, "score": 0.5, "bbox": [1, 2, 3, 4]}]'}),
    (CLAIM, {}),
    (CLAIM.replace('"mine"', '"timm:resnet18"'), {}),
])  # fmt: skip
def test_a_good_submission_has_no_faults(toml: str, files: dict[str, str], folder: Path) -> None:
    put(folder, toml, **files)
    submission, faults = read(folder)
    assert faults == []
    assert submission is not None
    assert not list(folder.parent.rglob(CANARY))


def test_what_torch_and_safetensors_write_has_no_faults(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8)
    state = {str(kind): torch.ones(3, 2).to(kind) for kind in kinds}
    save_file(state, folder / "w.safetensors")
    torch.save({"model": state, "parameter": torch.nn.Parameter(torch.ones(2)), "epoch": 3}, folder / "w.pt")
    assert inspect_checkpoint(folder, "w.safetensors") == []
    assert inspect_checkpoint(folder, "w.pt") == []


def test_nothing_is_harmless_that_torch_would_not_load() -> None:
    from torch._weights_only_unpickler import _get_allowed_globals

    allowed = {name.replace("builtins.bytearray", "__builtin__.bytearray") for name in _get_allowed_globals()}
    allowed |= set(_get_allowed_globals())
    asked = {name.rpartition(".")[::2] for name in allowed}
    assert sum(bool(HARMLESS.fullmatch(" ".join(words))) for words in asked) > 25
    for words in ("os system", "builtins eval", "torch load", "torch.storage _load_from_bytes", "torch hub"):
        assert not HARMLESS.fullmatch(words)
    assert not {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "NEWOBJ_EX", "REDUCE_EX"} & OPCODES


def test_init_writes_what_check_passes_and_overwrites_nothing(tmp_path: Path) -> None:
    for kind in ("model", "claim"):
        write(tmp_path / kind, kind)  # type: ignore[arg-type]
        assert read(tmp_path / kind)[1] == []
    for kind, missing in (("checkpoint", "weights.safetensors"), ("predictions", "predictions.csv")):
        write(tmp_path / kind, kind)  # type: ignore[arg-type]
        assert [(fault.code, missing in fault.message) for fault in read(tmp_path / kind)[1]] == [("absent", True)]
    with pytest.raises(SetupError, match="not overwritten"):
        write(tmp_path / "model", "model")


def test_check_answers_in_words_and_in_json(folder: Path) -> None:
    put(folder, CHECKPOINT)
    done = CliRunner().invoke(app, ["submit", "check", str(folder)])
    assert done.exit_code == 1
    assert "submission.toml:7: There is no file 'weights.pt' in the folder." in done.output
    done = CliRunner().invoke(app, ["submit", "check", str(folder), "--json"])
    (fault,) = json.loads(done.stdout)
    assert (done.exit_code, fault["code"], fault["place"]) == (1, "absent", "submission.toml:7")


def test_check_neither_imports_torch_nor_takes_five_seconds(folder: Path) -> None:
    put(folder, MODEL, nets_py=NET)
    code = (
        "import sys; from harness.cli import app; app(['submit', 'check', sys.argv[1]], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    started = sum(os.times()[2:4])  # the processor time of children: other work on the machine is none of it
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.partition(":")[0]) == (0, "mine"), done.stderr
    assert sum(os.times()[2:4]) - started < 5


def test_no_folder_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="submit init"):
        read(tmp_path / "gone")
    (tmp_path / "nets.py").touch()
    with pytest.raises(SetupError, match=r"nets.py' is a file: give the folder"):
        read(tmp_path / "nets.py")


def test_the_published_schema_is_that_of_the_classes() -> None:
    assert json.loads((ROOT / "docs" / "submission.schema.json").read_text()) == json_schema()
