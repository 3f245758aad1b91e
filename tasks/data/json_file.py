"""JSON files of known shape, read fast, with an error that names the entry at fault."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from harness.errors import DataError

T = TypeVar("T")
BOM = b"\xef\xbb\xbf"
NO_JSON = {
    b"\x1f\x8b": "compressed by gzip: run gunzip on it first",
    b"PK\x03\x04": "a zip archive: run unzip on it first",
    b"\xff\xfe": "text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "text in UTF-16: save it as UTF-8",
}


def read_json(path: Path, kind: type[T], expected: str) -> T:
    """Read a file into a typed structure; fields that the structure lacks are skipped.

    Args:
        expected: the content in a few words, for messages.

    Raises:
        DataError: it cannot be read, is no JSON (NaN and Infinity are none), or has another shape.
    """
    content = _content(path, expected)
    try:
        # Lax: pandas and numpy write whole numbers as 42.0.
        return msgspec.json.decode(content, type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise DataError(f"{path.name} is not {expected}: {error}. Correct it, or give another file.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        not_finite = any(word in content for word in (b"NaN", b"Infinity"))
        hint = "it holds NaN or Infinity, which no score or box may be" if not_finite else str(error)
        raise DataError(f"{path.name} is not JSON: {hint}. Write it anew; expected {expected}.") from error


def _content(path: Path, expected: str) -> bytes:
    """The bytes of a file, without a byte order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name} cannot be read ({error.strerror}). Check its path.") from error
    if fault := next((fault for head, fault in NO_JSON.items() if content.startswith(head)), None):
        raise DataError(f"{path.name} is {fault}; expected {expected}.")
    if not content.strip():
        raise DataError(f"{path.name} is empty: expected {expected}.")
    return content.removeprefix(BOM)
