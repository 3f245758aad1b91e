"""JSON files of known shape, read fast, with an error that names the entry at fault."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from harness.errors import DataError

T = TypeVar("T")


def read_json(path: Path, kind: type[T], expected: str) -> T:
    """Read a file into a typed structure; fields that the structure lacks are skipped.

    Args:
        expected: the content in a few words, for messages.

    Raises:
        DataError: it cannot be read, is no JSON (NaN and Infinity are none), or has another shape.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise DataError(f"{path.name} cannot be read ({error.strerror}). Check its path.") from error
    except msgspec.ValidationError as error:
        raise DataError(f"{path.name} is not {expected}: {error}. Correct it, or give another file.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        not_finite = any(word in path.read_bytes() for word in (b"NaN", b"Infinity"))
        hint = "it holds NaN or Infinity, which no score or box may be" if not_finite else str(error)
        raise DataError(f"{path.name} is not JSON: {hint}. Write it anew; expected {expected}.") from error
