"""Submissions that are broken and submissions that are hostile, each with the code of the fault that it must get."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ABOUT = '[submission]\nname = "mine"\nkind = "{kind}"\ntasks = {tasks}\n'
MODEL = ABOUT.format(kind="model", tasks='["imagenet:knn", "cost"]') + '[model]\nentry = "nets.py:net"\n'
CHECKPOINT = (
    ABOUT.format(kind="checkpoint", tasks='["cost"]') + '[model]\nentry = "timm:resnet18"\nweights = "weights.pt"\n'
)
PREDICTIONS = ABOUT.format(kind="predictions", tasks='["imagenet"]') + '[predictions]\nfile = "classes.csv"\n'
CLAIM = (
    '[submission]\nname = "mine"\nkind = "claim"\n[[claim]]\ntask = "imagenet"\nmetric = "top1"\nvalue = 81.2\n'
    'source = "arXiv:2103.14030, Table 1"\n'
)
CANARY = "canary"
# What would show that a line of the submission had run.
TOUCH = f"open({CANARY!r}, 'w').write('ran')\n"
NET = TOUCH + "def net(num_classes=1000):\n    return None\n"
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


class Case(NamedTuple):
    """How to make a submission, and what must be said of it.

    Args:
        make: writes into the folder.
        code: of the fault.
        place: where it begins, such as `submission.toml:2`.
    """

    make: Callable[[Path], Any]
    code: str
    place: str = ""


def put(folder: Path, toml: str, **files: str | bytes) -> None:
    """Write a submission's files; `nets_py` stands for `nets.py`."""
    (folder / "submission.toml").write_text(toml)
    for name, content in files.items():
        path = folder / name.replace("_", ".")
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def model(change: tuple[str, str] = ("", ""), code: str = NET) -> Callable[[Path], None]:
    """Return what writes a model of which a piece of the TOML is changed."""
    return lambda folder: put(folder, MODEL.replace(*change) if change[0] else MODEL, nets_py=code)


def claim(*change: str) -> Callable[[Path], None]:
    """Return what writes a claim of which a piece is changed."""
    return lambda folder: put(folder, CLAIM.replace(*change))


def weights(content: bytes, name: str = "weights.pt") -> Callable[[Path], None]:
    """Return what writes a checkpoint with these weights."""

    def make(folder: Path) -> None:
        put(folder, CHECKPOINT.replace("weights.pt", name))
        (folder / name).write_bytes(content)

    return make


def table(content: str) -> Callable[[Path], None]:
    """Return what writes a table of classes."""
    return lambda folder: put(folder, PREDICTIONS, classes_csv=content)


def archive(*pickles: bytes, kind: int = zipfile.ZIP_STORED, extra: tuple[str, bytes] | None = None) -> bytes:
    """Return a zip archive as torch writes it, with these pickles."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as file:
        for number, content in enumerate(pickles):
            file.writestr(f"archive/data{number or ''}.pkl", content)
        if extra:
            file.writestr(*extra)
    return out.getvalue()


def safetensors(header: Any, size: int, claimed: int | None = None) -> bytes:
    """Return a file of safetensors with a header and so many bytes after it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + bytes(size)


def tensor(first: int, last: int, shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    """Return one entry of such a header."""
    return {"dtype": "F32", "shape": shape, "data_offsets": [first, last]}


class Evil:
    """Whatever unpickles this runs a command."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {CANARY}",)


def _text(word: str) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word.encode()


# The callable's name is taken from the memo; the last words that are written there are harmless.
HIDDEN = (
    b"\x80\x04" + _text("posix") + b"\x94" + _text("system") + b"\x94" + _text("collections") + _text("OrderedDict")
    + b"0000h\x00h\x01\x93" + _text(f"touch {CANARY}") + b"\x85R."
)  # fmt: skip
INST = f"(S'touch {CANARY}'\nios\nsystem\n.".encode()
UNKNOWN_EXTENSION = b"\x80\x02\x82\x01."


def labels(width: int, height: int) -> Callable[[Path], None]:
    """Return what writes a folder with one PNG whose header tells this size."""

    def make(folder: Path) -> None:
        put(folder, PREDICTIONS.replace("classes.csv", "labels").replace('"imagenet"', '"ade20k"'))
        (folder / "labels").mkdir()
        (folder / "labels" / "a.png").write_bytes(PNG + struct.pack(">II", width, height) + bytes(5))

    return make


def linked(target: str, name: str = "nets.py") -> Callable[[Path], None]:
    """Return what writes a model whose file is a link."""

    def make(folder: Path) -> None:
        put(folder, MODEL)
        (folder / name).symlink_to(target)

    return make


def behind(folder: Path) -> None:
    """A model in a folder that is a link to the folder outside."""
    put(folder, MODEL.replace("nets.py", "sub/outside.py"))
    (folder.parent / "outside.py").write_text(NET)
    (folder / "sub").symlink_to(folder.parent)


def pipe(folder: Path) -> None:
    """A pipe in place of the code: whoever opens it waits for ever."""
    put(folder, MODEL)
    os.mkfifo(folder / "nets.py")


def pipe_among_images(folder: Path) -> None:
    """A pipe that is named like an image."""
    labels(10, 10)(folder)
    os.mkfifo(folder / "labels" / "b.png")


def unix_socket(folder: Path) -> None:
    """A socket beside a good model."""
    put(folder, MODEL, nets_py=NET)
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)
        server.bind("s")
        os.chdir(here)


def second_name(name: str) -> Callable[[Path], None]:
    """Return what writes a submission one file of which is also a file outside."""

    def make(folder: Path) -> None:
        (folder.parent / "secret").write_text("a.JPEG,3\nb.JPEG,4\n")
        put(folder, CHECKPOINT if name.endswith(".pt") else PREDICTIONS)
        os.link(folder.parent / "secret", folder / name)

    return make


def device(folder: Path) -> None:
    """A device in place of a checkpoint; a pipe for those who may make none."""
    put(folder, CHECKPOINT)
    if os.geteuid() == 0:
        os.mknod(folder / "weights.pt", 0o20666, os.makedev(1, 5))
    else:
        os.mkfifo(folder / "weights.pt")


def huge(folder: Path) -> None:
    """Two terabytes beside a good model, of which nobody said anything."""
    put(folder, MODEL, nets_py=NET)
    with (folder / "more.bin").open("wb") as file:
        file.truncate(2**41)


def named(name: str) -> Callable[[Path], None]:
    """Return what writes a checkpoint whose author has a name."""
    return model(("[model]", f'authors = ["{name}"]\n[model]'))


def results(content: str) -> Callable[[Path], None]:
    """Return what writes predictions in COCO's format."""
    toml = PREDICTIONS.replace("classes.csv", "a.json").replace('"imagenet"', '"coco"')
    return lambda folder: put(folder, toml, a_json=content)


def sparse(folder: Path) -> None:
    """A code file of a terabyte, which takes no room."""
    put(folder, MODEL)
    with (folder / "nets.py").open("wb") as file:
        file.truncate(2**40)


BROKEN: dict[str, Case] = {
    "nothing in the folder": Case(lambda folder: None, "absent", "submission.toml"),
    "an empty file": Case(lambda folder: put(folder, ""), "empty", "submission.toml"),
    "no TOML": Case(lambda folder: put(folder, "[submission]\nname = mine\n"), "toml", "submission.toml:2"),
    "not UTF-8": Case(
        lambda folder: (folder / "submission.toml").write_bytes(b'name = "\xff"'), "encoding", "submission.toml"
    ),
    "no table": Case(lambda folder: put(folder, "[model]\nentry = 'nets.py:net'\n"), "missing", "submission.toml"),
    "no name": Case(model(('name = "mine"\n', "")), "missing", "submission.toml:1"),
    "a name with spaces": Case(model(('"mine"', '"my net"')), "name", "submission.toml:2"),
    "an unknown kind": Case(model(('kind = "model"', 'kind = "net"')), "type", "submission.toml:3"),
    "an unknown key": Case(model(("[model]", "[model]\nbatch = 3")), "unknown-key", "submission.toml:6"),
    "an unknown table": Case(model(("[model]", "[extra]\n[model]")), "unknown-table", "submission.toml:5"),
    "a number for a text": Case(model(('"mine"', "3")), "type", "submission.toml:2"),
    "tasks as a text": Case(model(('["imagenet:knn", "cost"]', '"cost"')), "type", "submission.toml:4"),
    "no tasks": Case(model(('["imagenet:knn", "cost"]', "[]")), "tasks", "submission.toml:4"),
    "an unknown task": Case(model(('"cost"', '"imagenette"')), "task", "submission.toml:4"),
    "an unknown option of a task": Case(model(("knn", "knn,kk=3")), "task", "submission.toml:4"),
    "no [model]": Case(model(('[model]\nentry = "nets.py:net"\n', "")), "missing", "submission.toml:3"),
    "weights of a model file": Case(model(("[model]", '[model]\nweights = "w.pt"')), "weights", "submission.toml:6"),
    "a huge batch": Case(model(("[model]", "[model]\nbatch_size = 100000")), "range", "submission.toml:6"),
    "no file": Case(model(("nets.py", "net.py")), "absent", "submission.toml:6"),
    "a mistake in the code": Case(model(code="import os\ndef net(:\n"), "syntax", "nets.py:2"),
    "another function": Case(model(code="def nett():\n    pass\n"), "entry", "submission.toml:6"),
    "an argument without a default": Case(model(code="\ndef net(width):\n    pass\n"), "entry", "nets.py:2"),
    "a checkpoint without weights": Case(
        lambda folder: put(folder, CHECKPOINT.replace('weights = "weights.pt"\n', "")), "weights", "submission.toml:5"
    ),
    "weights cut short": Case(weights(archive(b"\x80\x02}.")[:-9]), "checkpoint", "submission.toml:7"),
    "safetensors cut short": Case(
        weights(safetensors({"a": tensor(0, 8)}, 4), "w.safetensors"), "checkpoint", "submission.toml:7"
    ),
    "a whole model pickled": Case(
        weights(archive(b"\x80\x02ctorchvision.models.resnet\nResNet\n)\x81.")), "pickle", "submission.toml:7"
    ),
    "an image twice": Case(table("image,class\na.JPEG,3\nb.JPEG,4\na.JPEG,5\n"), "duplicate", "classes.csv:4"),
    "NaN for a class": Case(table("a.JPEG,3\nb.JPEG,nan\n"), "predictions", "classes.csv:2"),
    "two tasks of predictions": Case(
        lambda folder: put(folder, PREDICTIONS.replace('["imagenet"]', '["imagenet", "coco"]'), classes_csv="a,1\n"),
        "tasks", "submission.toml:4",
    ),
    "predictions of costs": Case(
        lambda folder: put(folder, PREDICTIONS.replace('"imagenet"', '"cost"'), classes_csv="a,1\n"),
        "task", "submission.toml:4",
    ),
    "predictions of a probe": Case(
        lambda folder: put(folder, PREDICTIONS.replace('"imagenet"', '"imagenet:knn"'), classes_csv="a,1\n"),
        "task", "submission.toml:4",
    ),
    "a key twice": Case(model(("[model]", '[model]\nentry = "a.py:b"')), "toml", "submission.toml:7"),
    "a date for a name": Case(model(('"mine"', "1979-05-27")), "type", "submission.toml:2"),
    "a name of another alphabet": Case(model(('"mine"', '"m\u0456ne"')), "name", "submission.toml:2"),
    "an attribute of what is not there": Case(model(code="net.x = 1\n"), "entry", "submission.toml:6"),
    "NaN for a score": Case(results('[{"image_id": 1, "score": NaN}]'), "predictions", "submission.toml:6"),
    "an endless score": Case(results('[{"image_id": 1, "score": 1e999}]'), "predictions", "submission.toml:6"),
    "a claim without a source": Case(claim("arXiv:2103.14030, Table 1", "trust me"), "citation", "submission.toml:8"),
    "one bracket of a claim": Case(claim("[[claim]]", "[claim]"), "type", "submission.toml:4"),
    "a model id for a model file": Case(model(("nets.py:net", "timm:resnet18")), "entry", "submission.toml:6"),
    "a claim of 812 %": Case(claim("81.2", "812"), "range", "submission.toml:7"),
    "a second claim that is wrong": Case(
        lambda folder: put(folder, CLAIM + CLAIM.partition("[[")[1] + CLAIM.partition("[[")[2].replace("81.2", "nan")),
        "range", "submission.toml:12",
    ),
}  # fmt: skip

HOSTILE: dict[str, Case] = {
    "the code is a link outside": Case(linked("/etc/passwd"), "link", "submission.toml:6"),
    "a link that runs in a circle": Case(linked("nets.py"), "link", "submission.toml:6"),
    "code behind a link": Case(behind, "link", "submission.toml:6"),
    "a link beside a good model": Case(
        lambda folder: (put(folder, MODEL, nets_py=NET), (folder / "b").symlink_to("/etc")), "link", "."
    ),
    "a compressed checkpoint": Case(
        weights(archive(b"\x80\x02}.", kind=zipfile.ZIP_DEFLATED)), "archive", "submission.toml:7"
    ),
    "the manifest is a link": Case(lambda folder: (folder / "submission.toml").symlink_to("/etc/passwd"), "link"),
    "an absolute path": Case(model(("nets.py:net", "/etc/nets.py:net")), "path", "submission.toml:6"),
    "a path with ..": Case(model(("nets.py:net", "../outside.py:net")), "path", "submission.toml:6"),
    "a module that is installed": Case(model(("nets.py:net", "os:system")), "entry", "submission.toml:6"),
    "a pipe": Case(pipe, "special"),
    "a socket": Case(unix_socket, "special"),
    "a name with control characters": Case(
        lambda folder: (put(folder, MODEL, nets_py=NET), (folder / "a\x1b]0;b").touch()), "path"
    ),
    "a terabyte": Case(sparse, "size", "submission.toml:6"),
    "ten megabytes of TOML": Case(lambda folder: put(folder, MODEL + "#" * 10_000_000), "size", "submission.toml"),
    "TOML nested without end": Case(lambda folder: put(folder, MODEL + "x = " + "[" * 60_000), "toml"),
    "a key of 30,000 parts": Case(lambda folder: put(folder, MODEL + "a." * 30_000 + "a = 1"), "toml"),
    "a quoted key of 30,000 parts": Case(model(("[model]", '[model]\n"="' + ".a" * 30_000 + " = 1")), "toml"),
    "a table in one line of 30,000 parts": Case(
        model(("[model]", "[model]\nx = {" + "a." * 30_000 + "a = 1}")), "toml", "submission.toml:6"
    ),
    "a number of 60,000 digits": Case(
        model(("[model]", "[model]\nimage_size = 0x" + "f" * 60_000)), "range", "submission.toml:6"
    ),
    "a task behind a hundred": Case(
        model(('["imagenet:knn", "cost"]', str(["cost"] * 100 + ["evil"]))), "size", "submission.toml:4"
    ),
    "a task that turns the text around": Case(
        model(('"cost"', '"imagenet:knn,layer=\\u202e"')), "task", "submission.toml:4"
    ),
    "a checkpoint with a second name": Case(second_name("weights.pt"), "link", "submission.toml:7"),
    "predictions with a second name": Case(second_name("classes.csv"), "link"),
    "a device": Case(device, "special", "submission.toml:7"),
    "two terabytes beside the model": Case(huge, "size"),
    "an author whom nobody sees": Case(named("a\\u200bb\\U000E0041"), "text", "submission.toml:5"),
    "an author who turns the text around": Case(named("a\\u061cb"), "text", "submission.toml:5"),
    "an address that is a script": Case(
        model(("[model]", 'paper = "javascript:alert(1)"\n[model]')), "citation", "submission.toml:5"
    ),
    "a formula for a metric": Case(claim('"top1"', "\"=cmd|' /C calc'!A0\""), "name", "submission.toml:6"),
    "LaTeX for a task": Case(claim('"imagenet"', "'\\write18{id}'"), "task", "submission.toml:5"),
    "a formula that begins with minus": Case(table("a.JPEG,3\n-2+3+cmd|x!A0,4\n"), "formula", "classes.csv:2"),
    "a table that clears the screen": Case(table("a.JPEG,3\n\x1b[2J,4\n"), "text", "classes.csv:2"),
    "ten million objects": Case(results('[{"image_id":1}' + "{" * 10**7 + "]"), "size", "submission.toml:6"),
    "a header of 100,000 tensors": Case(
        weights(safetensors({str(n): tensor(0, 0, (0,)) for n in range(100_000)}, 0), "w.safetensors"), "checkpoint"
    ),
    "a pickle that runs a command": Case(weights(archive(pickle.dumps(Evil(), 2))), "pickle", "submission.toml:7"),
    "a command from the memo": Case(weights(archive(HIDDEN)), "pickle", "submission.toml:7"),
    "a command by INST": Case(weights(archive(INST)), "pickle", "submission.toml:7"),
    "a callable by number": Case(weights(archive(UNKNOWN_EXTENSION)), "pickle", "submission.toml:7"),
    "a bare pickle": Case(weights(pickle.dumps(Evil())), "checkpoint", "submission.toml:7"),
    "a pickle before an archive": Case(
        weights(pickle.dumps(Evil(), 2) + archive(b"\x80\x02}.")), "checkpoint", "submission.toml:7"
    ),
    "an old tar": Case(weights(b"storages\0" * 60 + pickle.dumps(Evil())), "checkpoint", "submission.toml:7"),
    "a zip bomb": Case(
        weights(archive(b"\x80\x02}.", kind=zipfile.ZIP_DEFLATED, extra=("archive/data/0", bytes(10**7)))), "archive"
    ),
    "an archive that leaves its folder": Case(
        weights(archive(b"\x80\x02}.", extra=("../../canary", b"x"))), "archive", "submission.toml:7"
    ),
    "a pickle of a million steps": Case(weights(archive(b"\x80\x02" + b"N" * 2_000_000 + b".")), "size"),
    "a header that lies about its size": Case(
        weights(safetensors({"a": tensor(0, 8)}, 8, claimed=2**62), "w.safetensors"), "checkpoint"
    ),
    "tensors that overlap": Case(
        weights(safetensors({"a": tensor(0, 8), "b": tensor(0, 8)}, 8), "w.safetensors"), "checkpoint"
    ),
    "a tensor of exabytes": Case(
        weights(safetensors({"a": tensor(0, 8, (2**40, 2**40))}, 8), "w.safetensors"), "checkpoint"
    ),
    "a header nested without end": Case(
        weights(safetensors(b"[" * 100_000, 8), "w.safetensors"), "checkpoint", "submission.toml:7"
    ),
    "a formula of full width": Case(table("a.JPEG,3\n\uff1d1+1,4\n"), "formula", "classes.csv:2"),
    "thirty million empty lines": Case(table("a.JPEG,3\n" + "\n" * 30_000_000), "size"),
    "a tensor of 200,000 dimensions": Case(
        weights(safetensors({"a": tensor(0, 8, (2**47,) * 200_000)}, 8), "w.safetensors"), "checkpoint"
    ),
    "a chain of 1,500 branches": Case(model(code="if 0:0\n" + "elif 0:0\n" * 1500 + NET), "syntax"),
    "an author of fillers": Case(named("\\u3164\\u115f"), "text", "submission.toml:5"),
    "percent by another unit": Case(claim("81.2", '812\nunit = " % "'), "range", "submission.toml:7"),
    "a pipe among the images": Case(pipe_among_images, "special"),
    "an image of 4 gigapixels": Case(labels(65_535, 65_535), "size", "submission.toml:6"),
    "a formula": Case(table('a.JPEG,3\n"=HYPERLINK(""x"")",4\n'), "formula", "classes.csv:2"),
    "a script for a name": Case(model(('"mine"', '"<script>alert(1)</script>"')), "name", "submission.toml:2"),
    "a formula for a name": Case(model(('"mine"', '"=1+1"')), "name", "submission.toml:2"),
    "a name of LaTeX": Case(model(('"mine"', "'\\input{/etc/passwd}'")), "name", "submission.toml:2"),
    "notes that turn the text around": Case(model(("[model]", 'notes = "\\u202e"\n[model]')), "text"),
    "a citation over several lines": Case(claim("Table 1", 'x\\n\\u001b[2J'), "citation", "submission.toml:8"),
    "a unit with a table": Case(claim("value =", 'unit = "| x |"\nvalue ='), "name", "submission.toml:7"),
    "predictions nested without end": Case(
        lambda folder: put(folder, PREDICTIONS.replace("classes.csv", "a.json"), a_json="[" * 1_000_000), "predictions"
    ),
    "code nested without end": Case(model(code="x = " + "-" * 120_000 + "1\n"), "syntax"),
    "code of 100 MB": Case(model(code="#" * 10**8), "size"),
}  # fmt: skip
