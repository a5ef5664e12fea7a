"""Precision-recall, F1, confusion and mistakes, worked by hand; the curve has the AP of the table under it.
Source: none; the cases are drawn on paper: boxes of 10 pixels on images of 100."""

from pathlib import Path

import numpy as np
import pytest
import torch

from yolov4 import curves, mistakes
from yolov4.decoding import Detections
from yolov4.metrics import Evaluator
from yolov4.result import Record, Settings


def record(found, truths, difficult=(), path="a.jpg", size=(100, 100)) -> Record:
    """found: (class, score, left), truths and difficult: (class, left); boxes of 10 x 10 pixels in one row"""
    boxes = torch.tensor([[left, 0, left + 10, 10] for _, _, left in found], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([score for _, score, _ in found], dtype=torch.float32)
    detections = Detections(boxes, scores, torch.tensor([label for label, _, _ in found], dtype=torch.long))

    def labels(rows) -> torch.Tensor:
        unit = torch.tensor((1.0, *size, *size))
        return torch.tensor([[c, left + 5, 5, 10, 10] for c, left in rows], dtype=torch.float32).reshape(-1, 5) / unit

    return Record(Path(path), size, detections, labels(truths), labels(difficult))


def test_f1_and_its_best_threshold_by_hand():
    # above .8: TP; above .6: TP, FP; above .4: TP, FP, TP.  Two truths: F1 = 2 TP / (TP + FP + 2)
    matches = curves.match([record([(0, 0.8, 0), (0, 0.6, 50), (0, 0.4, 20)], [(0, 0), (0, 20)])], 2)
    f1, mean = curves.f1_scores(matches, np.array([0.1, 0.5, 0.7, 0.9]))
    np.testing.assert_allclose(f1, [[4 / 5, 2 / 4, 2 / 3, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(mean, f1[0])  # the class without truths has no say
    assert curves.best_threshold(matches) == (0, 0.8)


def test_best_threshold_leaves_false_boxes_out():
    matches = curves.match([record([(0, 0.8, 0), (0, 0.6, 50), (0, 0.4, 70)], [(0, 0)])], 1)
    threshold, f1 = curves.best_threshold(matches)
    assert f1 == 1 and 0.6 <= threshold < 0.61


def test_precision_recall_by_hand():
    matches = curves.match([record([(0, 0.9, 0), (0, 0.8, 50), (0, 0.7, 20)], [(0, 0), (0, 20), (0, 80)])], 1)
    recall, precision = curves.precision_recall(matches, 0)
    np.testing.assert_allclose(recall, [0, 1 / 3, 1 / 3, 2 / 3])
    np.testing.assert_allclose(precision, [1, 1, 2 / 3, 2 / 3])
    mean = curves.mean_precision(matches)
    assert mean[0] == mean[33] == 1 and mean[34] == mean[66] == pytest.approx(2 / 3) and mean[67] == mean[100] == 0


def test_the_second_box_on_a_truth_is_false_and_one_on_a_difficult_object_is_nothing():
    matches = curves.match([record([(0, 0.9, 0), (0, 0.8, 1), (0, 0.7, 40)], [(0, 0)], difficult=[(0, 40)])], 1)
    assert matches.hits.tolist() == [True, False]


def random_records(seed: int, classes: int) -> list[Record]:
    rng = np.random.default_rng(seed)
    records = []
    for index in range(12):
        truths = [(int(rng.integers(classes)), float(rng.integers(90))) for _ in range(rng.integers(5))]
        hard = [(int(rng.integers(classes)), float(rng.integers(90))) for _ in range(rng.integers(2))]
        found = [
            (c, float(rng.random()), left + float(rng.normal(0, 3))) for c, left in truths + hard for _ in range(2)
        ]
        found += [(int(rng.integers(classes)), float(rng.random()), float(rng.integers(90)))]
        found.sort(key=lambda row: -row[1])
        records.append(record(found, truths, hard, f"{index}.jpg"))
    return records


@pytest.mark.parametrize("seed", range(3))
def test_area_under_the_curve_is_the_ap_of_the_table(seed):
    records = random_records(seed, 3)
    evaluator = Evaluator(3, Settings(size=(100, 100)))
    for each in records:
        evaluator.add(each.detections, each.labels, each.image_size, each.difficult)
    result, matches = evaluator.result(), curves.match(records, 3)
    areas = [float((np.diff(r) * p[1:]).sum()) for r, p in (curves.precision_recall(matches, c) for c in range(3))]
    np.testing.assert_allclose(areas, result.ap, atol=1e-12)
    true, _ = curves.positives(matches, np.array([0.25]))
    assert true[:, 0].tolist() == result.tp.tolist() and matches.truths.tolist() == result.truths.tolist()


def test_confusion_matrix_by_hand():
    # a 0 found as 0 and, with a second box on it, as 1; a 0 found as 2; a 1 missed; a 2 on nothing; one not confident
    found = [(0, 0.9, 0), (1, 0.95, 0), (2, 0.8, 30), (2, 0.7, 80), (1, 0.2, 60)]
    each = record(found, [(0, 0), (0, 30), (1, 60)])
    pairing = curves.pair(each)
    # rows: truth 0, 1, 2, no object; columns: detected as 0, 1, 2, missed
    wanted = [[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert curves.confusion([each], [pairing], 3).tolist() == wanted
    missed, false = mistakes.find(each, pairing)
    assert missed.tolist() == [1, 2] and sorted(false.tolist()) == [1, 2, 3]


def test_pairs_go_by_falling_iou_and_one_to_one():
    each = record([(0, 0.9, 3), (0, 0.8, 0)], [(0, 0), (0, 5)])  # the first overlaps the second truth more
    assert dict(zip(*(row.tolist() for row in curves.pair(each)), strict=True)) == {0: 1, 1: 0}


def test_a_box_on_a_difficult_object_is_no_mistake():
    each = record([(0, 0.9, 40), (1, 0.9, 40)], [], difficult=[(0, 40)])
    assert curves.confusion([each], [curves.pair(each)], 2).tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_pairs_on_images_that_are_no_squares():
    each = record([(0, 0.9, 150)], [(0, 150)], size=(400, 50))
    assert curves.pair(each).truths.tolist() == [0]


def test_worst_images_come_first_and_good_ones_not_at_all():
    records = [
        record([(0, 0.9, 0)], [(0, 0)]),
        record([(0, 0.9, 50)], [(0, 0)]),  # a missed and a false box
        record([], []),
        record([(0, 0.9, 50), (0, 0.9, 30)], [(0, 0), (0, 70)]),
        record([], [(0, 0), (0, 20)]),
    ]
    pairings = [curves.pair(each) for each in records]
    for count in (9, 1):
        found = [
            next(i for i, other in enumerate(records) if other is each)
            for each, _ in mistakes.worst(records, pairings, count)
        ]
        assert found == [3, 1, 4][:count]
    assert mistakes.worst([records[3]._replace(path=None)], pairings[3:4], 9) == []


def test_nothing_found_and_nothing_to_find():
    for records in ([], [record([], [])], [record([], [(0, 5)])], [record([(0, 0.5, 0)], [])]):
        matches = curves.match(records, 1)
        assert curves.best_threshold(matches) == (0, 0)
        assert curves.mean_precision(matches).max() == 0
        assert curves.confusion(records, [curves.pair(each) for each in records], 1).sum() <= 1
