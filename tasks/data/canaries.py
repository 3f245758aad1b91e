"""What a record says of its data beside the stamp: the classes, what is absent, and what should not be shared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from harness.progress import say
from tasks.data.labelled import LabelledImages
from tasks.data.overlap import shared_images

MOST_NAMES = 1000
NAMED = 5
# Official sets hold a few doubles, which move no score by more than this share of the images.
TOLERATED = 0.01


def examine(test: LabelledImages, trained: Sequence[LabelledImages]) -> tuple[dict[str, Any], list[str]]:
    """Return details of the evaluated split and of those trained on, and the reasons why a result does not rank."""
    details, doubts = _classes(test), []
    if absent := {images.stamp.split: _absence(images) for images in (test, *trained) if images.absent}:
        details["absent_images"] = absent
        doubts += [
            f"{part['absent']:,} of {part['listed']:,} listed {split} images are absent, such as {part['first'][0]}"
            for split, part in absent.items()
        ]
    for images in trained:
        if shared := shared_images(test, images):
            remark = f"{len(shared):,} of {len(test):,} {test.stamp.split} images are {images.stamp.split} images too"
            details.setdefault("shared_images", {})[images.stamp.split] = {
                "count": len(shared),
                "first": [list(pair) for pair in shared[:NAMED]],
            }
            if len(shared) >= TOLERATED * len(test):
                doubts.append(f"{remark}, such as {shared[0][0]}")
            else:
                say(f"{test.stamp.name}: {remark}, such as {shared[0][0]}.")
    return details, doubts


def _classes(images: LabelledImages) -> dict[str, Any]:
    """The class order where a file of the data set gives it: its hash, and the names where they are not too many."""
    if not images.order:
        return {}
    names = images.classes
    shown = {"classes": list(names)} if len(names) <= MOST_NAMES else {"classes_ends": [names[0], names[-1]]}
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return {"classes_from": images.order, "classes_sha256": digest, **shown}


def _absence(images: LabelledImages) -> dict[str, Any]:
    return {
        "absent": len(images.absent),
        "listed": len(images.absent) + len(images),
        "first": list(images.absent[:NAMED]),
    }
