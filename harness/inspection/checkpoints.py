"""Whether a weights file holds tensors alone: its header or its pickle's opcodes are read, nothing is loaded."""

from __future__ import annotations

import json
import math
import pickletools
import re
import struct
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from harness.inspection.files import MIB, Problem, inside

LARGEST_CHECKPOINT = 64 * 1024 * MIB
# Of some 50,000 tensors.
LARGEST_HEADER = 4 * MIB
LARGEST_DIRECTORY = 16 * MIB
LARGEST_PICKLE = 8 * MIB
MOST_OPCODES = 1_000_000
MOST_DIMENSIONS = 64
WEIGHTS_NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)*", re.ASCII)
DTYPES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4,
    "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
# What torch's own restricted unpickler knows. Newer ways to name a callable take its name from the stack, where only
# running the pickle tells it.
OPCODES = frozenset({
    "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPERSID", "BINPUT", "BINUNICODE",
    "BUILD", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE", "GLOBAL", "LONG1", "LONG_BINGET", "LONG_BINPUT",
    "MARK", "NEWFALSE", "NEWOBJ", "NEWTRUE", "NONE", "PROTO", "REDUCE", "SETITEM", "SETITEMS", "SHORT_BINSTRING",
    "STOP", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
})  # fmt: skip
# What a state dict is made of. Anything else in a checkpoint's pickle is code that would be called.
HARMLESS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter|qtensor)"
    r"|torch (Bool|Byte|Char|Short|Int|Long|Half|BFloat16|Float|Double|ComplexFloat|ComplexDouble)Storage"
    r"|torch (Size|device|bool|uint8|int(8|16|32|64)|float(16|32|64)|bfloat16|complex(32|64|128))"
    r"|torch\.storage (Untyped|Typed)Storage|torch\.nn\.parameter Parameter|torch\.serialization _get_layout"
    r"|_codecs encode|builtins bytearray|__builtin__ bytearray"
)


def inspect_checkpoint(folder: Path, name: str) -> list[Problem]:
    """Return what is wrong with a weights file."""
    if problem := inside(folder, name, LARGEST_CHECKPOINT):
        return [problem]
    if not WEIGHTS_NAME.fullmatch(name):
        fix = "Use letters, digits, '_', '-', '+' and '.'."
        return [Problem("path", f"{name[:120]!r} cannot name a file on boards.", fix)]
    path = folder / name
    if name.endswith(".safetensors"):
        return _inspect_safetensors(path, name)
    with path.open("rb") as file:
        # Torch looks at these bytes, and reads anything else as a pickle.
        is_archive = file.read(4) == b"PK\x03\x04"
    if is_archive and zipfile.is_zipfile(path):
        return _inspect_archive(path, name)
    message = f"{name!r} is neither safetensors nor a checkpoint as torch has saved them since 1.6."
    return [Problem("checkpoint", message, "Save torch.save(model.state_dict(), ...), or safetensors.")]


def _inspect_safetensors(path: Path, name: str) -> list[Problem]:
    """Check the header against the file's size: format `u64 length, JSON, bytes`, the tensors one after another."""
    fix, size = "Export it again.", path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            return [Problem("checkpoint", f"{name!r} has no header of safetensors that fits it.", fix)]
        try:
            spans = _spans(json.loads(file.read(length), object_pairs_hook=_once))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return [Problem("checkpoint", f"The header of {name!r} cannot be read ({type(error).__name__}).", fix)]
    place = 0
    for first, last, expected in spans:
        if first != place or last - first != expected:
            return [Problem("checkpoint", f"The tensors of {name!r} overlap, or are of other sizes.", fix)]
        place = last
    if place != size - 8 - length or not spans:
        return [Problem("checkpoint", f"{name!r} is cut short, empty, or has something appended.", "Copy it again.")]
    return []


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _spans(header: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Begin, end and expected bytes of every tensor, in the file's order."""
    found = []
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        (first, last), shape = entry["data_offsets"], entry["shape"]
        if not all(type(number) is int and 0 <= number < 2**48 for number in (first, last, *shape)):
            raise ValueError("a size is no number that a file can have")
        if len(shape) > MOST_DIMENSIONS:
            raise ValueError("a tensor has more dimensions than torch takes, and their product takes long")
        found.append((first, last, math.prod(shape) * DTYPES[entry["dtype"]]))
    return sorted(found)


def _inspect_archive(path: Path, name: str) -> list[Problem]:
    """Check a zip archive: names, sizes, and which callables its pickle asks for."""
    if not 0 < _directory_size(path) <= LARGEST_DIRECTORY:
        return [Problem("archive", f"{name!r} lists more entries than torch writes.", "Save a state dict alone.")]
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if odd := _odd_entry(entries, path.stat().st_size):
                message = f"{name!r} holds {odd[:80]!r}, whose path, size or compression torch does not write."
                return [Problem("archive", message, "Save it again with torch.save.")]
            pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
            if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
                return [Problem("checkpoint", f"{name!r} is no checkpoint of torch.", "Save it with torch.save.")]
            content = archive.read(pickles[0])
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        return [Problem("checkpoint", f"{name!r} is damaged ({type(error).__name__}).", "Copy it again.")]
    return _inspect_pickle(content, name)


def _directory_size(path: Path) -> int:
    """Bytes of a zip archive's list of entries, from its end; 0 where there is none."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 66_000))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        return 0
    size: int = struct.unpack_from("<I", tail, end + 12)[0]
    large = tail.rfind(b"PK\x06\x06", 0, end)
    return max(size, struct.unpack_from("<Q", tail, large + 40)[0]) if size == 0xFFFFFFFF and large >= 0 else size


def _odd_entry(entries: list[zipfile.ZipInfo], size: int) -> str:
    """The name of an entry that torch would not have written: compressed, encrypted, outside, or there twice."""
    names = set()
    for entry in entries:
        pure = PurePosixPath(entry.filename)
        if pure.is_absolute() or ".." in pure.parts or entry.filename in names or entry.flag_bits & 1:
            return entry.filename
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            return entry.filename
        names.add(entry.filename)
    # Stored entries that overlap hold more than the file has.
    return entries[0].filename if sum(entry.file_size for entry in entries) > size else ""


def _inspect_pickle(content: bytes, name: str) -> list[Problem]:
    """Name the callables of a pickle that a state dict does not need; the opcodes are read, not followed."""
    fix = "Save the bare state dict, torch.save(model.state_dict(), ...), or safetensors."
    asked: set[str] = set()
    count = 0
    try:
        for opcode, argument, _ in pickletools.genops(content):
            count += 1
            if count > MOST_OPCODES:
                return [Problem("size", f"The pickle of {name!r} has over {MOST_OPCODES:,} steps.", fix)]
            if opcode.name not in OPCODES:
                message = f"{name!r} names what it calls by {opcode.name}, and may run any code."
                return [Problem("pickle", message, fix)]
            if opcode.name == "GLOBAL":
                asked.add(str(argument))
    except (ValueError, IndexError, EOFError, RecursionError, OverflowError, struct.error) as error:
        return [Problem("checkpoint", f"The pickle of {name!r} cannot be read ({type(error).__name__}).", fix)]
    wrong = sorted(call for call in asked if not HARMLESS.fullmatch(call))
    if not wrong:
        return []
    calls = ", ".join(ascii(call.replace(" ", "."))[1:-1][:60] for call in wrong[:3])
    return [Problem("pickle", f"{name!r} asks for {calls}, and may run any code.", fix)]
