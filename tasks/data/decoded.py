"""Decoded images that many models share: each is decoded once for a geometry, whatever mean and deviation follow."""

from __future__ import annotations

from harness.cache import Cache, Rows, key_of
from harness.environment import versions
from harness.progress import say
from harness.record import Preprocessing
from harness.sources import own_sha256
from tasks.data.labelled import LabelledImages

GEOMETRY = ("image_size", "crop_pct", "crop_mode", "interpolation", "antialias", "decoder")


def decoded(cache: Cache, images: LabelledImages, preprocessing: Preprocessing) -> Rows | None:
    """Return the resized and cropped images (N, 3, H, W) of a split in bytes, as far as they were decoded.

    Returns:
        None where the limit of the cache has no room for all of them.
    """
    height, width = preprocessing.image_size or (0, 0)
    geometry = {name: getattr(preprocessing, name) for name in GEOMETRY}
    stamp = images.stamp
    key = key_of(
        kind="images", data=(stamp.name, stamp.split, stamp.fingerprint), geometry=geometry, versions=versions(),
        code=own_sha256(),
    )  # fmt: skip
    what = f"{height}x{width} crop={preprocessing.crop_pct} {preprocessing.crop_mode} {preprocessing.interpolation}"
    about = {"kind": "images", "data": f"{stamp.name} {stamp.split}", "what": what}
    try:
        cache.hold(key)
        return cache.find(key) or cache.create(key, about, (len(images), 3, height, width), "uint8")
    except OSError as error:
        say(f"Decoded images cannot be kept in {str(cache.folder)!r} ({error.strerror or error}).")
        return None
