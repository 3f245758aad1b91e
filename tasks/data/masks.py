"""Masks as COCO's files hold them: polygons, run lengths as numbers, and run lengths as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from tasks.metrics.overlap import mask_codes

if TYPE_CHECKING:
    from tasks.data.coco import Image

    Source = tuple[msgspec.Raw, Image, str]

Integers = NDArray[np.int64]

# Numbers of up to seven characters, each of which has five bits; `P` to `o` say that more follow.
CODE = re.compile(rb"(?:[P-o]{0,6}[0-O])*")
AT_ONCE = 1000


def to_codes(sources: Iterable[Source]) -> list[Any]:
    """Return the run-length codes of masks that are given with their image and the name of their owner.

    Raises:
        DataError: a mask is none, or does not cover the pixels of its image.
    """
    codes, owners = [], []
    for source in sources:
        codes.append(to_code(*source))
        owners.append(source[2])
    # Of masks that differ in their number of pixels pycocotools never finishes the overlap.
    for place in _unlike_their_sizes(codes):
        height, width = codes[place]["size"]
        raise DataError(
            f"The mask of {owners[place]} has run lengths that do not make up its {height} x {width} pixels (height x "
            "width). Encode it anew."
        )
    return codes


def to_code(segmentation: msgspec.Raw, image: Image, owner: str) -> Any:
    """Return the run-length code of a mask: from polygons, or from either form of run lengths.

    Raises:
        DataError: it is none of these, or of another size than its image.
    """
    codes, wrong = mask_codes(), ""
    try:
        mask = msgspec.json.decode(segmentation)
        if isinstance(mask, list):
            return codes.merge(codes.frPyObjects(mask, image.height, image.width))
        if list(mask["size"]) != [image.height, image.width]:
            wrong = f"is of size {mask['size']}; expected [{image.height}, {image.width}], that of image {image.id}"
        elif isinstance(mask["counts"], str):
            return mask | {"counts": mask["counts"].encode()}
        else:
            return codes.frPyObjects(mask, image.height, image.width)
    except Exception as error:
        wrong = f"cannot be read ({type(error).__name__}: {error})"
    raise DataError(f"The mask of {owner} {wrong}. Expected polygons or run lengths at the image's original size.")


def _unlike_their_sizes(codes: Sequence[Any]) -> Iterator[int]:
    """The places of the codes whose runs are not exactly the pixels of their sizes."""
    for start in range(0, len(codes), AT_ONCE):
        part = codes[start : start + AT_ONCE]
        pixels = np.array([code["size"][0] * code["size"][1] for code in part], np.int64)
        yield from (start + np.flatnonzero(_pixels([code["counts"] for code in part]) != pixels)).tolist()


def _pixels(texts: Sequence[bytes]) -> Integers:
    """The number of pixels that codes are of; -1 for what is no code."""
    sound = np.array([CODE.fullmatch(text) is not None for text in texts], bool)
    texts = [text if good else b"" for text, good in zip(texts, sound, strict=True)]
    counts, differences = _numbers(texts)
    firsts = counts.cumsum() - counts
    owner = np.repeat(np.arange(len(texts)), counts)
    place = np.arange(len(owner)) - firsts[owner]
    total = np.zeros(len(texts), np.int64)
    # The first three runs are as they are; each later one is the difference from the last but one, of its own colour.
    for members in (place == 0, place % 2 == 1, (place > 0) & (place % 2 == 0)):
        them = owner[members]
        many = np.bincount(them, minlength=len(texts))
        sums = np.concatenate([[0], differences[members].cumsum()])
        runs = sums[1:] - np.repeat(sums[many.cumsum() - many], many)
        total += np.diff(np.concatenate([[0], runs.cumsum()])[np.concatenate([[0], many.cumsum()])])
        sound[them[runs < 0]] = False
    return np.where(sound, total, -1)


def _numbers(texts: Sequence[bytes]) -> tuple[Integers, Integers]:
    """How many numbers each code has, and all of them one after the other."""
    bits = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero(bits < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    lengths = ends - starts + 1
    shift = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    values = np.add.reduceat((bits & 31) << shift, starts) if len(ends) else np.zeros(0, np.int64)
    values -= ((bits[ends] & 16) > 0) << (5 * lengths)
    bounds = np.searchsorted(ends, np.cumsum([len(text) for text in texts]))
    return np.diff(bounds, prepend=0), values
