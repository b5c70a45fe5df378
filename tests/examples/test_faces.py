"""Boxes of faces: overlaps, what is picked, which are the same."""

from __future__ import annotations

import faces
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

side = st.integers(0, 12)
box = st.tuples(side, side, side, side).map(
    lambda b: [min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]) + 1, max(b[1], b[3]) + 1]
)


def count_cells(box: list[int], other: list[int]) -> float:
    """Intersection over union of boxes with whole corners, cell by cell."""

    def cells(one: list[int]) -> set[tuple[int, int]]:
        left, top, right, bottom = one
        return {(x, y) for x in range(left, right) for y in range(top, bottom)}

    return len(cells(box) & cells(other)) / len(cells(box) | cells(other))


@given(box, st.lists(box, min_size=1, max_size=5))
def test_overlaps_are_those_of_cells(one: list[int], others: list[list[int]]):
    found = faces.overlaps(np.float32(one), np.float32(others))
    assert np.allclose(found, [count_cells(one, other) for other in others], atol=1e-6)


def test_a_face_is_found_once_and_the_surest_box_of_it():
    boxes = np.float32([[0, 0, 4, 4], [0, 0, 4, 5], [8, 8, 9, 9], [20, 20, 30, 30]])
    scores = np.float32([[0.2, 0.8], [0.1, 0.9], [0.05, 0.95], [0.6, 0.4]])
    assert faces.pick_faces(scores, boxes).tolist() == [[8, 8, 9, 9], [0, 0, 4, 5]]


@given(st.lists(box, max_size=6))
def test_boxes_match_themselves_wholly(boxes: list[list[int]]):
    array = np.float32(boxes).reshape(-1, 4)
    assert faces.match(array, array) == [1.0] * len(boxes)


def test_each_box_is_matched_once():
    one = np.float32([[0, 0, 10, 10]])
    two = np.float32([[0, 0, 10, 9], [0, 0, 10, 10]])
    assert faces.match(two, one) == [np.float32(0.9)]
    assert faces.match(one, two) == [1.0]
    assert faces.match(one, np.zeros((0, 4), np.float32)) == []


def test_the_metric_is_the_share_of_the_original_s_faces_that_are_left():
    boxes = np.float32([[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]])
    sure, unsure = [0.1, 0.9], [0.9, 0.1]
    truth = np.float32([[sure, sure, unsure], [unsure] * 3])
    labels = np.concatenate([truth, np.stack([boxes, boxes])], axis=2)

    def score(*scores: list[list[float]]) -> list[float]:
        outputs = {"scores": np.float32(scores), "boxes": np.stack([boxes, boxes])}
        return faces.share_of_faces(outputs, labels).tolist()

    assert score(*truth.tolist()) == [1.0, 1.0]
    assert score([sure, unsure, unsure], [unsure] * 3) == [2 / 3, 1.0]
    assert score([unsure, unsure, sure], [unsure, sure, unsure]) == [0.0, 0.0]
