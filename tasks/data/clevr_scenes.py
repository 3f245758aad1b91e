"""The scenes of CLEVR: which image shows how many objects, and how far away each is."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from harness.errors import DataError
from tasks.data.labelled import images_in, unreadable

COUNTS = range(3, 11)
# Between the classes of the distance to the nearest object.
THRESHOLDS = (8.0, 8.5, 9.0, 9.5, 10.0)


@dataclass(frozen=True)
class Scene:
    """What is known of one image.

    Args:
        image: the name of its file.
        depths: of each object's centre along the camera's axis, in the generator's units of length.
    """

    image: str
    depths: tuple[float, ...]


def count_class(scene: Scene) -> int:
    """Return the number of objects less three, 0 to 7.

    Raises:
        DataError: there are fewer than three or more than ten.

    Source: VTAB (arXiv:1910.04867), task Clevr-Count.
    """
    count = len(scene.depths)
    if count not in COUNTS:
        raise DataError(
            f"The scene of {scene.image!r} has {count} objects: expected {COUNTS[0]} to {COUNTS[-1]}, since other "
            "counts have no class. Remove the scene with its image, or evaluate clevr_dist."
        )
    return count - COUNTS[0]


def distance_class(scene: Scene) -> int:
    """Return how many thresholds lie strictly below the depth of the nearest object, 0 to 5.

    Raises:
        DataError: there is no object.

    Source: VTAB (arXiv:1910.04867), task Clevr-Dist.
    """
    if not scene.depths:
        raise DataError(
            f"The scene of {scene.image!r} has no objects: expected one or more, since the nearest gives the class. "
            "Remove the scene with its image."
        )
    return sum(threshold < min(scene.depths) for threshold in THRESHOLDS)


class _Object(msgspec.Struct):
    pixel_coords: tuple[float, float, float]


class _Scene(msgspec.Struct):
    image_filename: str
    objects: list[_Object]
    split: str | None = None


class _File(msgspec.Struct):
    scenes: list[msgspec.Raw]


def read_scenes(home: Path, split: str) -> list[Scene]:
    """Read the scenes of an official split, sorted by image, after comparing them with the images that are there.

    Only image names and depths are read, so that the resolution of the images does not matter.

    Raises:
        DataError: scenes or images are absent, of another split, or do not match.
    """
    path = home / "scenes" / f"CLEVR_{split}_scenes.json"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File).scenes
    except FileNotFoundError as error:
        raise DataError(
            f"clevr has no scenes of its split {split!r}: expected {path.parent.name}/{path.name} beside images/. "
            "Add it."
        ) from error
    except OSError as error:
        raise unreadable(path.name, error) from error
    except msgspec.MsgspecError as error:
        raise DataError(f"{path.name} holds no scenes ({error}). Download it again.") from error
    scenes = [_scene(raw, position, path, split) for position, raw in enumerate(found)]
    if not scenes:
        raise DataError(f"{path.name} holds no scenes: expected one or more in its list 'scenes'. Download it again.")
    scenes.sort(key=lambda scene: scene.image)
    _match([scene.image for scene in scenes], home / "images" / split, path)
    return scenes


def _scene(raw: msgspec.Raw, position: int, path: Path, split: str) -> Scene:
    """Check one scene.

    Raises:
        DataError: it lacks something, is of another split, or has an object that no camera could see.
    """
    try:
        scene = msgspec.json.decode(raw, type=_Scene)
    except msgspec.MsgspecError as error:
        raise DataError(
            f"Scene {position} of {path.name}{_image(raw)} cannot be read ({error}): expected image_filename, and "
            "objects with pixel_coords (x, y, depth). Download it again."
        ) from error
    if scene.split not in (None, split):
        raise DataError(
            f"Scene {position} of {path.name} ({scene.image_filename!r}) is of the split {scene.split!r}: expected "
            f"{split!r}. Put the scenes of {split} there."
        )
    depths = tuple(each.pixel_coords[2] for each in scene.objects)
    if not all(0 < depth < math.inf for depth in depths):
        raise DataError(
            f"Scene {position} of {path.name} ({scene.image_filename!r}) has an object at depth {min(depths)}: "
            "expected more than 0, in front of the camera. Write the third of its pixel_coords again."
        )
    return Scene(scene.image_filename, depths)


def _image(raw: msgspec.Raw) -> str:
    """The image of a scene that cannot be read, where it has one."""
    named = re.search(rb'"image_filename"\s*:\s*"([^"]*)"', bytes(raw))
    return f" ({named[1].decode(errors='replace')!r})" if named else ""


def _match(names: Sequence[str], folder: Path, path: Path) -> None:
    """Raise DataError unless scenes and images are of each other."""
    if not folder.is_dir():
        raise DataError(f"clevr has no folder images/{folder.name}: expected the images of {path.name}. Add them.")
    there, wanted = set(images_in(folder)), set(names)
    if missing := sorted(wanted - there):
        raise DataError(
            f"{len(missing)} of {len(names)} scenes of {path.name} have no image in images/{folder.name}, the first "
            f"{missing[0]!r}. Unpack the images again, or take these scenes out."
        )
    if strange := sorted(there - wanted):
        raise DataError(
            f"{len(strange)} of {len(there)} images in images/{folder.name} have no scene in {path.name}, the first "
            f"{strange[0]!r}. Download the scenes again, or move these images away."
        )
