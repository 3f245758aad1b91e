"""An evaluation of a detector or a segmenter that is interrupted goes on after its last batch, to the same result."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.album import Album, pictures
from harness.errors import ModelError
from harness.journal import Journal
from harness.metric import Evaluation
from harness.record import Setup
from tasks.ade20k import Ade20k
from tasks.coco import Coco, from_entry, to_detections, to_entries
from tasks.coco_panoptic import CocoPanoptic
from tasks.data.coco_panoptic import read_ids, segments

Predict = Callable[[Any], list[Any]]


class Interrupted:
    """A function from images that is interrupted at the batch of a number, and counts its images."""

    def __init__(self, predict: Predict, at: int | None = None) -> None:
        self._predict = predict
        self._at = at
        self.batches = self.images = 0

    def __call__(self, images: Any) -> list[Any]:
        if self.batches == self._at:
            raise KeyboardInterrupt
        self.batches += 1
        self.images += len(images)
        return self._predict(images)


def detector(task: Coco, masks: bool = True) -> Predict:
    """Detections that the pixels of an image decide, in single precision and with ties."""
    codes = task.instances.objects(masks=True).masks

    def predict(images: Any) -> list[Any]:
        found = []
        for image in images:
            generator = torch.Generator().manual_seed(int(np.asarray(image).sum()))
            corner, size = (torch.rand(5, 2, generator=generator) * side for side in (100, 60))
            own = [code for code in codes if tuple(code["size"]) == image.size[::-1]][:5]
            own = (own * 5)[:5]
            found.append(
                {
                    "boxes": torch.cat([corner, corner + size], dim=1),
                    "labels": torch.randint(0, 6, (5,), generator=generator),
                    "scores": torch.rand(5, generator=generator).mul(4).round().div(4) / 3,
                    "masks": own if masks else None,
                }
            )
        return found

    return predict


def boxes_alone(task: Coco) -> Predict:
    return detector(task, masks=False)


def segmenter(task: Ade20k) -> Predict:
    def predict(images: Any) -> list[Any]:
        return [(np.asarray(image, np.int64).sum(-1) * 7 % 150) for image in images]

    return predict


def panoptic(task: CocoPanoptic) -> Predict:
    """The annotated segments, moved by some pixels."""
    truth = {(image.height, image.width, n): image for n, image in enumerate(task.panoptic.images)}

    def predict(images: Any) -> list[Any]:
        found = []
        for picture in images:
            height, width = picture.size[::-1]
            image = next(image for (h, w, _), image in truth.items() if (h, w) == (height, width))
            one = task.panoptic.maps[str(image.id)]
            found.append((np.roll(read_ids(task.panoptic.folder, one, image), 3, axis=1), segments(one)))
        return found

    return predict


def equal(one: Evaluation, other: Evaluation) -> bool:
    return repr(one) == repr(other)


@pytest.mark.parametrize("stop", [0, 1, 3])
@pytest.mark.parametrize("kind", ["boxes", "masks", "labels", "segments"])
def test_an_interrupted_evaluation_goes_on_to_the_same_result(
    kind: str, stop: int, scenes: Path, tmp_path: Path
) -> None:
    task: Any = {"labels": Ade20k, "segments": CocoPanoptic}.get(kind, Coco)(scenes)
    predict = {"labels": segmenter, "segments": panoptic, "masks": detector}.get(kind, boxes_alone)(task)
    setup = Setup(batch_size=1 if kind == "labels" else 2)
    images = 5 if kind == "labels" else 8
    whole = task.measure(predict, setup)
    assert len(whole.outcomes.rows) > images

    task.journal = Journal(tmp_path / "evaluation.jsonl", "state")
    with pytest.raises(KeyboardInterrupt):
        task.measure(Interrupted(predict, at=stop), setup)
    rest = Interrupted(predict)
    assert equal(task.measure(rest, setup), whole)
    assert rest.images == images - stop * setup.batch_size, "what was found before is not computed again"
    again = Interrupted(predict)
    assert equal(task.measure(again, setup), whole)
    assert again.images == 0


def test_a_batch_that_was_cut_off_is_computed_again(scenes: Path, tmp_path: Path) -> None:
    task, path = Coco(scenes), tmp_path / "evaluation.jsonl"
    whole = task.measure(detector(task), Setup(batch_size=2))
    task.journal = Journal(path, "state")
    task.measure(detector(task), Setup(batch_size=2))
    path.write_text(path.read_text()[:-20])
    rest = Interrupted(detector(task))
    assert equal(task.measure(rest, Setup(batch_size=2)), whole)
    assert rest.images == 2


def test_what_was_found_comes_back_bit_for_bit(scenes: Path) -> None:
    task = Coco(scenes)
    images = [np.full((9, 9, 3), n, np.uint8) for n in range(3)]
    found = [{**one, "masks": task.instances.objects(masks=True).masks[:5]} for one in _found(task, images)]
    back = [from_entry(json.loads(json.dumps(entry))) for entry in to_entries(found, 3)]
    for ours, theirs in zip(to_detections(back, [0, 1, 2], 6), to_detections(found, [0, 1, 2], 6), strict=True):
        assert ours is not None
        assert theirs is not None
        for name in ("image", "category", "boxes", "area", "scores"):
            assert (getattr(ours, name) == getattr(theirs, name)).all()
        assert list(ours.masks) == list(theirs.masks)
    with pytest.raises(ModelError, match="returned 3 results for 4 images"):
        to_entries(found, 4)


def _found(task: Coco, images: list[np.ndarray]) -> list[Any]:
    from PIL import Image

    return detector(task, masks=False)([Image.fromarray(image) for image in images])


def test_a_journal_under_other_weights_is_begun_anew(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "evaluation.jsonl", "state")
    one = journal.under("these weights")
    assert one.read() == []
    one.append([("a", [1.5, None])])
    assert journal.under("these weights").read() == [("a", [1.5, None])]
    assert journal.under("other weights").read() == []


def test_a_full_disk_ends_no_evaluation_and_loses_nothing_that_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evaluation.jsonl"
    journal = Journal(path, "state")
    journal.read()
    journal.append([("a", [1])])
    with path.open("a") as file:
        file.write('[["b", ')

    opened = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode != "r":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        again = Journal(path, "state")
        assert again.read() == [("a", [1])]
        again.append([("b", [2])])
    again.append([("c", [3])])
    assert capsys.readouterr().err.count("is not kept for another run (No space left on device)") == 1
    assert Journal(path, "state").read() == [("a", [1])], "what comes after a gap is of no use"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        assert Journal(path, "another").read() == []


def test_the_weights_of_a_trained_head_are_part_of_the_journal(scenes: Path, tmp_path: Path) -> None:
    """A head that a repeated training made other is not mixed with what the first one found."""

    class Protocol:
        def __init__(self, weights: str, predict: Predict) -> None:
            self.details = {"trained_sha256": weights}
            self.adapt = lambda model, task, setup: predict

    task = Ade20k(scenes)
    counts = []
    for weights in ("one", "one", "other"):
        task.journal = Journal(tmp_path / "evaluation.jsonl", "state")
        predict = Interrupted(segmenter(task))
        task.protocol = Protocol(weights, predict)
        evaluation = task.evaluate(torch.nn.Identity(), Setup())
        assert evaluation.details["trained_sha256"] == weights
        counts.append(predict.images)
    assert counts == [5, 0, 5]


def test_panels_of_before_an_interruption_are_kept_and_lost_ones_say_so(scenes: Path, tmp_path: Path) -> None:
    task, setup = Ade20k(scenes), Setup(batch_size=1)

    def measure(folder: str, at: int | None = None, panels: bool = True) -> dict[str, bytes]:
        task.journal = Journal(tmp_path / f"{folder}.jsonl", "state")
        task.album = Album(tmp_path / folder, 5) if panels else None
        if at is None:
            task.measure(segmenter(task), setup)
        else:
            with pytest.raises(KeyboardInterrupt):
                task.measure(Interrupted(segmenter(task), at=at), setup)
        return {path.name: path.read_bytes() for path in pictures(tmp_path / folder)}

    whole = measure("whole")
    assert len(whole) == 5
    before = measure("resumed", at=3)
    assert before == {name: whole[name] for name in list(whole)[:3]}
    assert measure("resumed") == whole
    measure("late", at=3, panels=False)
    late = measure("late")
    assert [late[name] == whole[name] for name in whole] == [False, False, False, True, True]
    assert all(len(late[name]) < len(whole[name]) for name in list(whole)[:3]), "image and truth alone"


def test_panels_of_detections_come_from_the_journal(scenes: Path, tmp_path: Path) -> None:
    task, setup = Coco(scenes), Setup(batch_size=2)
    made = []
    for folder, at in (("whole", None), ("resumed", 2)):
        task.journal, task.album = Journal(tmp_path / f"{folder}.jsonl", "state"), None
        if at is not None:
            with pytest.raises(KeyboardInterrupt):
                task.measure(Interrupted(detector(task), at=at), setup)
        task.album = Album(tmp_path / folder, 3)
        task.measure(detector(task), setup)
        made.append([path.read_bytes() for path in pictures(tmp_path / folder)])
    assert made[0] == made[1]
    assert len(made[0]) == 3
