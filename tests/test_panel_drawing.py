"""What panels show: boxes where they are annotated, classes in their colours, and every difference."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.metrics.panoptic import Segment
from tasks.panels.canvas import (
    GAP,
    INK,
    NOTHING,
    STRIPES,
    TEXT,
    WRONG,
    blank,
    colour_of,
    factor,
    fit,
    font,
    side_by_side,
)
from tasks.panels.decision import describe, draw_decision, said, to_shares
from tasks.panels.labels import draw_labels, legend, name_of
from tasks.panels.objects import Shapes, draw_found, draw_objects, draw_truth, outline, remarks, worth_drawing
from tasks.panels.segments import categories, edges

SIZE = (60, 40)  # of the pictures here; six times as large on the panel
SCALE = 6
TOP = 2 * GAP + 2 * (TEXT + 6) - 4
NAMES = ["disc", "square", "star"]


def grey() -> Any:
    return Image.new("RGB", SIZE, (120, 120, 120))


def ground() -> Any:
    return grey().resize((SIZE[0] * SCALE, SIZE[1] * SCALE))


def shapes(
    *boxes: tuple[float, ...], labels: Any = None, flagged: Any = None, scores: Any = None, masks: Any = ()
) -> Shapes:
    count = len(boxes)
    return Shapes(
        np.array(range(count) if labels is None else labels, np.int64),
        np.array(boxes, float).reshape(-1, 4),
        np.zeros(count, bool) if flagged is None else np.array(flagged, bool),
        masks,
        None if scores is None else np.array(scores, float),
    )


def at(picture: Any, colour: tuple[int, int, int]) -> np.ndarray:
    """Where (H, W) a picture has a colour."""
    return (np.asarray(picture) == colour).all(-1)


def test_small_pictures_are_enlarged_by_whole_numbers_and_large_ones_reduced() -> None:
    assert factor(SIZE) == SCALE
    assert (factor((640, 480)), factor((1, 1)), factor((1280, 9))) == (1, 360, 0.5)


def test_an_annotated_box_is_drawn_on_its_pixels() -> None:
    drawn = draw_truth(ground(), SCALE, shapes((10, 15, 20, 12), labels=[1]), NAMES)
    box = at(drawn, colour_of(1))[15 * SCALE :]  # the name is above
    rows, columns = np.nonzero(box)
    assert (columns.min(), columns.max()) == (10 * SCALE, 30 * SCALE - 1)
    assert rows.max() == 12 * SCALE - 1
    assert box[-1 - (box.shape[0] - 12 * SCALE), 10 * SCALE : 30 * SCALE].all(), "its lower side is whole"
    assert box[: 12 * SCALE, 10 * SCALE].all()


def test_the_name_is_written_above_its_box_on_the_colour_of_the_class() -> None:
    drawn = draw_truth(ground(), SCALE, shapes((10, 15, 20, 12), labels=[1]), NAMES)
    wide = round(font(12).getlength("square"))
    patch = np.asarray(drawn)[15 * SCALE - 14 : 15 * SCALE - 2, 10 * SCALE : 10 * SCALE + wide]
    colours = {tuple(pixel) for pixel in patch.reshape(-1, 3).tolist()}
    assert colour_of(1) in colours
    assert (255, 255, 255) in colours or INK in colours, "letters on it"
    assert (120, 120, 120) not in colours


def test_masks_are_laid_over_and_crowds_are_striped() -> None:
    mask = np.zeros(SIZE[::-1], bool)
    mask[10:30, 20:50] = True
    box = (20.0, 10.0, 30.0, 20.0)
    plain, crowd = (
        np.asarray(draw_truth(ground(), SCALE, shapes(box, labels=[2], flagged=[flag], masks=[mask]), NAMES))
        for flag in (False, True)
    )
    inside = (slice(12 * SCALE, 28 * SCALE), slice(22 * SCALE, 48 * SCALE))
    assert len(np.unique(plain[inside].reshape(-1, 3), axis=0)) == 1
    assert 0 < abs(plain[inside][0, 0].astype(int) - 120).max() < abs(np.array(colour_of(2)) - 120).max()
    found = {tuple(pixel) for pixel in crowd[inside].reshape(-1, 3).tolist()}
    assert found == {colour_of(2), (255, 255, 255)}
    assert (plain[: 9 * SCALE, : 15 * SCALE] == 120).all(), "outside of it nothing changes"


def test_a_shifted_label_has_another_colour_and_a_dashed_box() -> None:
    boxes = [(10.0, 15.0, 20.0, 12.0)]
    right, shifted = (
        draw_found(ground(), SCALE, shapes(*boxes, labels=[label], flagged=[flag], scores=[0.9]), [0], NAMES)
        for label, flag in ((0, True), (1, False))
    )
    side = (27 * SCALE - 1, slice(10 * SCALE, 30 * SCALE))
    assert at(right, colour_of(0))[side].all()
    assert not at(right, colour_of(1)).any()
    assert not at(shifted, colour_of(0)).any()
    dashes = at(shifted, colour_of(1))[side]
    assert 0.4 < dashes.mean() < 0.6
    assert at(shifted, INK)[side][~dashes].all()


def test_corners_in_the_place_of_sizes_are_seen_and_said() -> None:
    truth = shapes((30, 20, 15, 10), labels=[0])
    corners = shapes((30, 20, 45, 30), labels=[0], flagged=[False], scores=[0.8])
    drawn = draw_found(ground(), SCALE, corners, [0], NAMES)
    assert at(drawn, colour_of(0))[20 * SCALE, 30 * SCALE : 36 * SCALE].any()
    assert not at(drawn, colour_of(0))[30 * SCALE - 1, 32 * SCALE : 44 * SCALE].any(), "no side where the object ends"
    texts = dict(remarks(truth, corners, [0], SIZE))
    assert texts["1 of them leave the image"] == WRONG
    assert any(text.startswith("0 of the 1 best") for text in texts)
    assert len(remarks(truth, shapes((30, 20, 15, 10), flagged=[True], scores=[0.8]), [0], SIZE)) == 1


def test_the_best_detections_are_drawn() -> None:
    found = shapes(*[(0, 0, 5, 5)] * 6, labels=[0] * 6, scores=[0.1, 0.2, 0.9, 0.3, 0.05, 0.6])
    assert worth_drawing(found, 0) == [2, 5]
    assert worth_drawing(found, 3) == [2, 5, 3]
    assert worth_drawing(shapes(scores=[]), 3) == []
    many = shapes(*[(0, 0, 5, 5)] * 100, labels=[0] * 100, scores=[0.9] * 100)
    assert len(worth_drawing(many, 2)) == 40


@pytest.mark.parametrize("box", [(-1e12, 3, 2e12, 5), (70, 50, 9, 9), (5, 5, 0, 0), (-20, -20, 5, 5)])
def test_boxes_anywhere_can_be_drawn(box: tuple[float, ...]) -> None:
    panel = draw_objects("x", grey(), SIZE, shapes(), shapes(box, scores=[0.5]), NAMES)
    assert panel.width > 3 * SIZE[0] * SCALE


def test_a_panel_has_image_truth_and_prediction_in_this_order() -> None:
    truth, found = shapes((10, 15, 20, 12), labels=[0]), shapes((30, 5, 20, 12), labels=[2], scores=[0.9])
    panel = draw_objects("x", grey(), SIZE, truth, found, NAMES)
    pictures = [
        panel.crop((left, TOP, left + SIZE[0] * SCALE, TOP + SIZE[1] * SCALE))
        for left in (GAP + n * (SIZE[0] * SCALE + GAP) for n in range(3))
    ]
    assert (np.asarray(pictures[0]) == 120).all()
    assert at(pictures[1], colour_of(0)).any()
    assert not at(pictures[1], colour_of(2)).any()
    assert at(pictures[2], colour_of(2)).any()
    assert not at(pictures[2], colour_of(0)).any()


def test_without_the_image_boxes_are_drawn_on_grey() -> None:
    panel = draw_objects("x", None, SIZE, shapes((10, 15, 20, 12), labels=[1]), None, NAMES)
    assert at(panel, colour_of(1)).any()
    assert blank(SIZE, "gone").size == (360, 240)


# --- labels ----------------------------------------------------------------------------------------------------------


def label_panel(truth: np.ndarray, found: np.ndarray | None) -> list[np.ndarray]:
    panel = draw_labels("x", grey(), truth, found, [f"class {n}" for n in range(1, 151)])
    step = SIZE[0] * SCALE + GAP
    count = 2 if found is None else 4
    return [
        np.asarray(panel)[TOP : TOP + SIZE[1] * SCALE, GAP + n * step : GAP + n * step + SIZE[0] * SCALE]
        for n in range(count)
    ]


def test_labels_have_colours_and_only_wrong_pixels_are_red() -> None:
    truth = np.full(SIZE[::-1], 3, np.uint8)
    truth[:, 30:] = 7
    truth[:5], truth[-2:] = 0, 255
    found = truth.copy()
    found[:5] = 3
    found[10:20, :10] = 7
    found[20:22] = 0
    _, drawn, guessed, differ = label_panel(truth, found)
    centre = slice(SCALE // 2, None, SCALE)  # one pixel of the panel for each of the image

    def where(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
        return (picture[centre, centre] == colour).all(-1)

    assert (where(drawn, colour_of(2)) == (truth == 3)).all()
    assert (where(drawn, colour_of(6)) == (truth == 7)).all()
    stripes = where(drawn, STRIPES[0]) | where(drawn, STRIPES[1])
    assert (stripes == ((truth == 0) | (truth == 255))).all()
    assert {tuple(pixel) for pixel in drawn[: 5 * SCALE].reshape(-1, 3).tolist()} == set(STRIPES)
    assert (where(guessed, NOTHING) == (found == 0)).all()
    counts = (truth > 0) & (truth < 151)
    assert (where(differ, WRONG) == (counts & (truth != found))).all()


def test_labels_that_are_shifted_by_one_are_all_red() -> None:
    truth = np.random.default_rng(0).integers(1, 150, SIZE[::-1], dtype=np.uint8)
    *_, differ = label_panel(truth, truth + 1)
    assert (differ == WRONG).all()
    *_, same = label_panel(truth, truth)
    assert not (same == WRONG).all(-1).any()


def test_no_two_classes_look_alike() -> None:
    colours = np.array([colour_of(label) for label in range(150)], float)
    assert len({tuple(colour) for colour in colours.tolist()}) == 150
    assert np.linalg.norm(np.diff(colours, axis=0), axis=1).min() > 100, "neighbours, as a shifted label has them"
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2)]
    assert min(apart) > 8


def test_the_legend_names_what_occurs() -> None:
    truth = np.array([[0, 2, 2, 2]], np.uint8)
    found = np.array([[5, 2, 2, 0]], np.uint8)
    labels = np.concatenate([truth[truth > 0], found.ravel()])
    names = ["wall", "building, edifice", "c", "d", "e"]
    assert legend(labels, truth, found, names) == [
        (colour_of(1), "2 building: 75.0% / 50.0%"), (colour_of(4), "5 e: 0.0% / 25.0%"),
        (None, "does not count"), (NOTHING, "nothing predicted"),
    ]  # fmt: skip
    assert name_of(200, names) == "200"


# --- segments --------------------------------------------------------------------------------------------------------


def test_pixels_of_segments_have_their_category_and_edges_lie_between() -> None:
    ids = np.array([[1, 1, 9], [1, 4, 0]])
    segments = [Segment(1, 27), Segment(9, 90), Segment(4, 27)]
    assert categories(ids, segments).tolist() == [[27, 27, 90], [27, 27, -1]]
    assert edges(ids).tolist() == [[False, True, True], [True, True, False]]


# --- decisions -------------------------------------------------------------------------------------------------------


def test_shares_are_probabilities_or_votes() -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, float("-inf")])
    best = torch.tensor([1, 0, 2, -1])
    shares, note = to_shares(logits, best, "logits")
    assert shares is not None
    assert shares[:3] == pytest.approx(logits.softmax(0)[[1, 0, 2]].tolist())
    assert np.isnan(shares[3])
    assert "probability" in note
    votes, _ = to_shares(torch.tensor([3.0, 1.0, float("-inf")]), torch.tensor([0, 1, -1]), "votes")
    assert votes is not None
    assert votes[:2] == [0.75, 0.25]
    assert to_shares(logits, best, "scores")[0] is None


def test_the_verdict_says_right_or_by_how_much_wrong() -> None:
    assert said(2, [2, 1])[0] == "right"
    assert said(1, [2, 1])[0] == "wrong: the true class has place 2"
    assert said(0, [2, 1])[0] == "wrong: not among the best 2"
    assert said(0, [-1, -1])[0].endswith("not finite")


def test_bars_are_as_long_as_shares_and_green_where_right() -> None:
    names = ["a", "b", "c"]
    panel = np.asarray(draw_decision("x", grey(), "image", 1, [0, 1], [0.5, 0.25], names))
    right, other = (0, 128, 70), (110, 110, 110)
    left, bars = 2 * GAP + SIZE[0] * SCALE, []
    for place, colour in ((0, other), (1, right)):
        row = panel[TOP + 4 + place * 48 + 28, left:]
        bars.append(int((row == colour).all(-1).sum()))
    assert bars == [176, 89]  # half and a quarter of 350 pixels, with the first


def test_words_of_wordnet_stand_beside_its_ids() -> None:
    assert describe(0, ["n01440764"]) == "n01440764 tench"
    assert describe(0, ["n99999999"]) == "n99999999"
    assert describe(1, ["x", "Laysan Albatross"]) == "Laysan Albatross"


def test_text_is_cut_to_its_place() -> None:
    assert fit("Café\nü \ud800", 500, 12) == "Cafe u ?"
    cut = fit("a rather long name of a class", 80, 12)
    assert cut.endswith("...")
    assert font(12).getlength(cut) <= 80
    assert side_by_side("x" * 5000, [("y" * 500, grey())], [("z" * 999, INK)], [(INK, "w" * 99)]).width == 480
    picture = ground()
    outline(picture, (0, 0, 3, 3), (1, 2, 3))
    assert at(picture, (1, 2, 3)).sum() == 16
