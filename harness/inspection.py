"""Looking at a stranger's files without running, unpickling or decoding them, and without leaving their folder."""

from __future__ import annotations

import ast
import csv
import json
import math
import os
import pickletools
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MIB = 2**20
LARGEST_CODE = MIB
LARGEST_CHECKPOINT = 64 * 1024 * MIB
LARGEST_HEADER = 100 * MIB
LARGEST_PREDICTIONS = 4 * 1024 * MIB
LARGEST_PICKLE = 64 * MIB
MOST_FILES = 200_000
MOST_PIXELS = 64_000_000
MOST_CELL = 200
HIGHEST_RATIO = 200
# What a state dict is made of. Anything else in a checkpoint's pickle is code that would be called.
HARMLESS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter|tensor_v3|qtensor|device_tensor_from_numpy)"
    r"|torch (\w+Storage|Size|device|dtype|\w*float\w*|\w*int\w*|bool|half|double|complex\w*)"
    r"|torch\.storage (\w+Storage|_load_from_bytes)|torch\.nn\.parameter Parameter|torch\.serialization _get_layout"
    r"|_codecs encode|builtins (set|bytearray|complex|slice)|__builtin__ set"
)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file.

    Args:
        place: `file:line` where it is in the file itself; empty for the line that names the file.
    """

    code: str
    message: str
    fix: str
    place: str = ""


def inside(folder: Path, name: str, largest: int) -> Problem | None:
    """Return why a name is not a plain file of a folder that may be read; None where it is one.

    Absolute names, `..`, and links that lead out are refused before anything is opened.
    """
    pure = PurePosixPath(name)
    if not name or "\\" in name or "\0" in name or pure.is_absolute() or ".." in pure.parts or ":" in name:
        return Problem(
            "path", f"{name[:120]!r} is no path inside the folder.", "Name a file of the folder, without '..'."
        )
    path, root = folder / name, folder.resolve()
    try:
        real = path.resolve(strict=True)
        about = real.stat()
    except (OSError, RuntimeError, ValueError):
        return Problem("absent", f"There is no file {name!r} in the folder.", "Add it, or correct the name.")
    if not real.is_relative_to(root):
        return Problem("path", f"{name!r} is a link that leads out of the folder.", "Put the file itself there.")
    if not stat.S_ISREG(about.st_mode):
        return Problem("path", f"{name!r} is no plain file.", "Put a plain file there.")
    if about.st_size > largest:
        return Problem(
            "size", f"{name!r} has {about.st_size / MIB:,.0f} MiB.", f"The limit is {largest / MIB:,.2g} MiB."
        )
    if about.st_size == 0:
        return Problem("empty", f"{name!r} is empty.", "Copy it again.")
    return None


def inspect_code(folder: Path, name: str, entry: str) -> list[Problem]:
    """Return what is wrong with a Python file that shall define `entry`; it is parsed, never run."""
    if problem := inside(folder, name, LARGEST_CODE):
        return [problem]
    try:
        tree = ast.parse((folder / name).read_bytes(), filename=name)
    except SyntaxError as error:
        return [
            Problem("syntax", f"{name!r} is not Python ({error.msg}).", "Mend this line.", f"{name}:{error.lineno}")
        ]
    except (ValueError, RecursionError, MemoryError) as error:
        return [Problem("syntax", f"{name!r} cannot be parsed ({error}).", "Save plain Python source as UTF-8.")]
    defined = sorted(set(_defined(tree)))
    if entry not in defined:
        offer = f"It defines {', '.join(defined[:8])}." if defined else "It defines nothing."
        return [Problem("entry", f"{name!r} does not define {entry!r} at its top level. {offer}", "Correct the entry.")]
    return list(_check_signature(tree, name, entry))


def _defined(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module binds at its top level."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((name.asname or name.name).partition(".")[0] for name in node.names)
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _check_signature(tree: ast.Module, name: str, entry: str) -> Iterator[Problem]:
    """An entry is called with options by name at most."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name != entry:
            continue
        place = f"{name}:{node.lineno}"
        if isinstance(node, ast.AsyncFunctionDef):
            yield Problem("entry", f"{entry!r} is asynchronous.", "Use a plain function that returns a module.", place)
        needed = [one.arg for one in node.args.args[: len(node.args.args) - len(node.args.defaults)]]
        unknown = [one for one in needed if one not in ("num_classes", "image_size", "pretrained")]
        if unknown or node.args.posonlyargs:
            wrong = unknown or [one.arg for one in node.args.posonlyargs]
            message = f"{entry!r} needs the argument {wrong[0]!r}, which nobody gives it."
            yield Problem("entry", message, "Take num_classes=1000 and the like, with defaults.", place)


def inspect_checkpoint(folder: Path, name: str) -> list[Problem]:
    """Return what is wrong with a weights file; its header or its pickle's opcodes are read, nothing is loaded."""
    if problem := inside(folder, name, LARGEST_CHECKPOINT):
        return [problem]
    path = folder / name
    if name.endswith(".safetensors"):
        return _inspect_safetensors(path, name)
    if zipfile.is_zipfile(path):
        return _inspect_archive(path, name)
    message = f"{name!r} is neither safetensors nor a checkpoint as torch has saved them since 1.6."
    return [Problem("checkpoint", message, "Save torch.save(model.state_dict(), ...), or safetensors.")]


def _inspect_safetensors(path: Path, name: str) -> list[Problem]:
    """Check the header against the file's size: format `u64 length, JSON, bytes`."""
    fix, size = "Export it again.", path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            return [Problem("checkpoint", f"{name!r} has no header of safetensors that fits it.", fix)]
        try:
            entries = json.loads(file.read(length))
            ends = [entry["data_offsets"] for key, entry in entries.items() if key != "__metadata__"]
            end = max(last for first, last in ends if 0 <= first <= last)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return [Problem("checkpoint", f"The header of {name!r} cannot be read ({type(error).__name__}).", fix)]
    if end != size - 8 - length:
        return [Problem("checkpoint", f"{name!r} is cut short, or has something appended.", "Copy it again.")]
    return []


def _inspect_archive(path: Path, name: str) -> list[Problem]:
    """Check a zip archive: names, sizes, and which callables its pickle asks for."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > MOST_FILES or sum(entry.file_size for entry in entries) > LARGEST_CHECKPOINT:
            return [Problem("size", f"{name!r} unpacks to more than may be.", "Save a state dict alone.")]
        for entry in entries:
            pure = PurePosixPath(entry.filename)
            if (
                pure.is_absolute()
                or ".." in pure.parts
                or entry.file_size > HIGHEST_RATIO * max(entry.compress_size, 1)
            ):
                message = f"{name!r} holds {entry.filename[:80]!r}, whose path or compression torch does not write."
                return [Problem("archive", message, "Save it again with torch.save.")]
        pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
        if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
            return [Problem("checkpoint", f"{name!r} is no checkpoint of torch.", "Save it with torch.save.")]
        try:
            content = archive.read(pickles[0])
        except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
            return [Problem("checkpoint", f"{name!r} is damaged ({error}).", "Copy it again.")]
    return _inspect_pickle(content, name)


def _inspect_pickle(content: bytes, name: str) -> list[Problem]:
    """Name the callables of a pickle that a state dict does not need; the opcodes are read, not followed."""
    fix = "Save the bare state dict, torch.save(model.state_dict(), ...), or safetensors."
    strings: list[str] = []
    asked: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in ("GLOBAL", "INST"):
                asked.append(str(argument))
            elif opcode.name == "STACK_GLOBAL":
                asked.append(" ".join(strings[-2:]))
            elif opcode.name in ("EXT1", "EXT2", "EXT4"):
                asked.append(f"extension {argument}")
            elif isinstance(argument, str):
                strings.append(argument)
    except (ValueError, IndexError, EOFError, RecursionError) as error:
        return [Problem("checkpoint", f"The pickle of {name!r} cannot be read ({type(error).__name__}).", fix)]
    wrong = sorted({call for call in asked if not HARMLESS.fullmatch(call)})
    if not wrong:
        return []
    calls = ", ".join(call.replace(" ", ".")[:60] for call in wrong[:3])
    return [Problem("pickle", f"{name!r} asks for {calls}, and may run any code.", fix)]


def inspect_predictions(folder: Path, name: str) -> list[Problem]:
    """Return what is wrong with a predictions file or folder, as far as it can be told without the data."""
    if name and (folder / name).is_dir() and inside(folder, f"{name}/.", 0) is not None:
        return _inspect_folder(folder, name)
    if problem := inside(folder, name, LARGEST_PREDICTIONS):
        return [problem]
    path = folder / name
    if path.suffix == ".csv":
        return list(_inspect_table(path, name))
    if path.suffix == ".json":
        return _inspect_json(path, name)
    return [Problem("predictions", f"{name!r} is neither .json nor .csv.", "See docs/submit.md for the forms.")]


def _inspect_folder(folder: Path, name: str) -> list[Problem]:
    """Check a folder of label images: links, number, and the size that each header tells."""
    root, found = (folder / name).resolve(), []
    if ".." in PurePosixPath(name).parts or not root.is_relative_to(folder.resolve()):
        return [Problem("path", f"{name[:120]!r} is no path inside the folder.", "Name a folder inside.")]
    files = sorted(entry for entry in os.scandir(root) if not entry.name.startswith("."))  # type: ignore[type-var]
    if not files or len(files) > MOST_FILES:
        return [Problem("predictions", f"{name!r} holds {len(files)} files.", "Put one PNG an image there.")]
    for entry in files:
        problem = inside(root, entry.name, LARGEST_PREDICTIONS) or _inspect_png(
            Path(entry.path), f"{name}/{entry.name}"
        )
        if problem and problem.code != "ok":
            found.append(problem)
    return found[:20]


def _inspect_png(path: Path, name: str) -> Problem | None:
    """Check the first 24 bytes of a PNG: signature, and width times height."""
    if path.suffix == ".json":
        return None
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24 or not head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Problem("predictions", f"{name!r} is no PNG.", "Save label images as PNG.")
    width, height = struct.unpack(">II", head[16:24])
    if width * height > MOST_PIXELS or not width * height:
        return Problem("size", f"{name!r} has {width} x {height} pixels.", f"The limit is {MOST_PIXELS:,} in all.")
    return None


def _inspect_table(path: Path, name: str) -> Iterator[Problem]:
    """Check a table of classes by image: a header, cells of sane length, no image twice, no number that is none."""
    seen: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            width = len(next(rows, []))
            if width < 2:
                yield Problem(
                    "predictions", f"{name!r} has {width} columns.", "Give an item and its classes, with a header."
                )
                return
            for number, row in enumerate(rows, 2):
                place = f"{name}:{number}"
                if len(row) != width or max(map(len, row)) > MOST_CELL:
                    yield Problem(
                        "predictions", f"The row has {len(row)} cells for {width}, or a huge one.", "Mend it.", place
                    )
                    return
                if row[0] in seen:
                    message = f"{row[0][:80]!r} is there twice, first in line {seen[row[0]]}."
                    yield Problem("duplicate", message, "Remove one.", place)
                    return
                seen[row[0]] = number
                if any(cell.strip().lower() in ("nan", "inf", "-inf", "") for cell in row):
                    yield Problem("predictions", "The row has an empty cell, NaN or infinity.", "Mend it.", place)
                    return
    except (UnicodeDecodeError, csv.Error) as error:
        yield Problem("predictions", f"{name!r} is no CSV in UTF-8 ({error}).", "Save it again.")
    if not seen:
        yield Problem("predictions", f"{name!r} has no rows.", "Give one row an image.")


def _inspect_json(path: Path, name: str) -> list[Problem]:
    """Check that a file is JSON, and a list of detections or an object with annotations, with finite numbers."""
    import msgspec

    try:
        found = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, RecursionError) as error:
        return [
            Problem("predictions", f"{name!r} is not JSON ({error}).", "NaN is none either; mend or export it again.")
        ]
    entries = found.get("annotations") if isinstance(found, dict) else found
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        return [Problem("predictions", f"{name!r} holds no list of predictions.", "Save COCO's result format.")]
    if missing := next((entry for entry in entries if "image_id" not in entry), None):
        return [Problem("predictions", f"{name!r} has a prediction without image_id ({str(missing)[:60]}).", "Add it.")]
    scores = [entry["score"] for entry in entries if "score" in entry]
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        return [Problem("predictions", f"{name!r} has a score that is no finite number.", "Mend it.")]
    return []
