"""Matching, mAP, curves and confusion: by hand, and against `darknet detector map` in loops.
Source: Darknet's src/detector.c, validate_detector_map."""

import numpy as np
import pytest
import torch
from conftest import make_record
from slow_map import slow_map

from yolov4 import metrics
from yolov4.decoding import Detections
from yolov4.metrics import Evaluator, Settings, average_precision

SETTINGS = Settings(size=(416, 416))
SIZE = (200, 100)
BOX, OTHER = (0.5, 0.5, 0.2, 0.2), (0.5, 0.1, 0.1, 0.1)


def evaluate(*images, classes=1) -> Evaluator:
    """images: rows label, score, cx, cy, w, h; truths label, cx, cy, w, h; difficult likewise"""
    evaluator = Evaluator(classes, SETTINGS)
    for rows, truths, *difficult in images:
        values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
        half = values[:, 4:] / 2
        boxes = torch.cat((values[:, 2:4] - half, values[:, 2:4] + half), 1)
        found = Detections(boxes * torch.tensor(SIZE * 2), values[:, 1], values[:, 0].long())
        truths, *hard = (torch.tensor(rows).float().reshape(-1, 5) for rows in (truths, *difficult))
        evaluator.add(found, truths, SIZE, *hard)
    return evaluator


def random_images(random, images, classes, per_image):
    made = []
    for _ in range(images):
        truths, hard = (
            [[random.integers(classes), *random.uniform(0.2, 0.8, 2), *random.uniform(0.05, 0.4, 2)]
             for _ in range(random.integers(0, most))]
            for most in (6, 3)
        )  # fmt: skip
        rows, near = [], [*truths, *hard]
        for _ in range(random.integers(0, per_image)):
            row = [random.integers(classes), 0.5, 0.5, 0.2, 0.2]
            if near and random.random() < 0.7:
                row = near[random.integers(len(near))]
            box = np.array(row[1:]) + random.normal(0, 0.03, 4) * np.array(row[3:] * 2)
            rows.append([row[0], random.random(), *box[:2], *np.abs(box[2:])])
        made.append((rows, truths, hard))
    return made


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("iou_thresh", "points"), [(0.5, 0), (0.5, 11), (0.75, 101)])
def test_equals_the_loops_of_darknet(seed, iou_thresh, points):
    images = random_images(np.random.default_rng(seed), 30, 4, 25)
    result = evaluate(*images, classes=4).result(iou_thresh, points)
    ap, tp, fp, sums, count = slow_map(images, 4, iou_thresh, points)
    assert sum(tp) > 20 and sum(fp) > 20  # else the case shows nothing
    np.testing.assert_allclose(result.ap, ap, atol=1e-9)
    assert (result.tp.tolist(), result.fp.tolist(), result.detections) == (tp, fp, count)
    np.testing.assert_allclose(result.iou_sum, sums, atol=1e-4)


def test_average_precision_by_hand():
    # found, missed, found, of 4: precision 1 at recall 1/4, 2/3 at 1/2
    hits = torch.tensor([True, False, True])
    assert average_precision(hits, 4) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    # 11 points: recalls 0, .1, .2 have precision 1; .3, .4, .5 have 2/3
    assert average_precision(hits, 4, 11) == pytest.approx((3 + 3 * 2 / 3) / 11)
    # 101 points: 0 to .25 are 26, .26 to .5 are 25
    assert average_precision(hits, 4, 101) == pytest.approx((26 + 25 * 2 / 3) / 101)
    # the best precision at this recall or beyond
    assert average_precision(torch.tensor([False, True, True, True]), 3) == pytest.approx(0.75)
    # recall 0.3, but the point is 3 * 0.1 = 0.30000000000000004, as in the compiled Darknet
    assert average_precision(torch.ones(3, dtype=torch.bool), 10, 11) == pytest.approx(3 / 11)


def test_an_object_is_found_once_and_a_class_without_objects_counts_in_the_mean():
    evaluator = evaluate(([(0, 0.9, *BOX), (0, 0.8, *BOX)], [(0, *BOX)]), classes=2)
    result = evaluator.result()
    assert (result.tp[0], result.fp[0], result.ap.tolist(), result.map) == (1, 1, [1, 0], 0.5)
    assert (result.precision, result.recall, result.f1) == (0.5, 1, pytest.approx(2 / 3))
    assert result.average_iou == pytest.approx(0.5)  # the false positive counts as 0
    assert "11 recall points" in evaluator.result(0.75, 11).table(["cat", "dog"])
    plain = result.to_json(["cat", "dog"])
    assert (plain["map"], plain["classes"][0]["name"], plain["classes"][0]["tp"]) == (0.5, "cat", 1)


def test_the_first_in_the_list_finds_even_below_the_confidence():
    result = evaluate(([(0, 0.1, *BOX), (0, 0.8, *BOX)], [(0, *BOX)])).result()
    assert (result.tp[0], result.fp[0], result.map) == (0, 1, 1)


def test_a_detection_on_a_difficult_object_leaves_the_curve():
    truth, hard = (0.2, 0.5, 0.2, 0.2), (0.8, 0.5, 0.2, 0.2)
    rows = [(0, 0.9, *hard), (0, 0.8, *OTHER), (0, 0.7, *truth)]
    result = evaluate((rows, [(0, *truth)], [(0, *hard)])).result()
    assert (result.map, result.fp[0]) == (pytest.approx(1 / 2), 2)  # Darknet still counts it here
    assert evaluate((rows, [(0, *truth)])).result().map == pytest.approx(1 / 3)


def test_overlap_at_the_threshold_another_class_or_another_image_is_no_match():
    evaluator = evaluate(([(0, 0.9, 0.5, 0.5, 0.5, 0.5)], [(0, 0.5, 0.5, 0.5, 0.25)]))
    assert (evaluator.result(0.5).map, evaluator.result(0.49).map) == (0, 1)
    result = evaluate(([(1, 0.9, *BOX)], [(0, *BOX)]), ([(0, 0.9, *BOX)], []), classes=2).result()
    assert (result.map, result.fp.tolist()) == (0, [1, 1])


def test_nothing_found_and_nothing_to_find():
    images = ([], [(0, *BOX)]), ([(1, 0.9, *BOX)], [])
    result = evaluate(*images, classes=3).result(points=11)
    assert result.ap.tolist() == [0, 0, 0]
    assert (result.precision, result.recall, result.f1, result.average_iou) == (0, 0, 0, 0)


def of_record(record, classes=1):
    evaluator = Evaluator(classes, SETTINGS)
    evaluator.add(record.detections, record.labels, record.image_size, record.difficult)
    return evaluator.result()


def test_f1_and_its_best_threshold_by_hand():
    # above .8: TP; above .6: TP, FP; above .4: TP, FP, TP.  Two objects: F1 = 2 TP / (TP + FP + 2)
    record = make_record([(0, 0.8, 0), (0, 0.6, 50), (0, 0.4, 20)], [(0, 0), (0, 20)])
    f1, mean = metrics.f1_scores(of_record(record, classes=2).matches)
    np.testing.assert_allclose(f1[:, [100, 500, 700, 900]], [[4 / 5, 2 / 4, 2 / 3, 0], [0] * 4])
    np.testing.assert_allclose(mean, f1[0])  # without the class that has no objects
    record = make_record([(0, 0.8, 0), (0, 0.6, 50), (0, 0.4, 70)], [(0, 0)])
    _, mean = metrics.f1_scores(of_record(record).matches)
    assert mean.max() == 1 and 0.6 <= metrics.THRESHOLDS[mean.argmax()] < 0.61


def test_confusion_matrix_by_hand():
    # a 0 found as 0 and, with a second box on it, as 1; a 0 found as 2; a 1 missed; a 2 on nothing
    found = [(0, 0.9, 0), (1, 0.95, 0), (2, 0.8, 30), (2, 0.7, 80), (1, 0.2, 60)]
    pairing = metrics.pair(make_record(found, [(0, 0), (0, 30), (1, 60)]))
    # rows: 0, 1, 2, no object; columns: detected as 0, 1, 2, missed
    wanted = [[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert metrics.confusion([pairing], 3).tolist() == wanted
    assert pairing.missed.tolist() == [1, 2] and sorted(pairing.false.tolist()) == [1, 2, 3]


def test_pairs_go_by_falling_iou_and_one_to_one():
    # the first overlaps the second object more, which leaves the first object to the second
    pairing = metrics.pair(make_record([(0, 0.9, 3), (0, 0.8, 0)], [(0, 0), (0, 5)]))
    assert len(pairing.missed) == len(pairing.false) == 0
    pairing = metrics.pair(make_record([(0, 0.9, 150)], [(0, 150)], size=(400, 50)))
    assert len(pairing.missed) == len(pairing.false) == 0


def test_a_box_on_a_difficult_object_is_no_mistake():
    pairing = metrics.pair(make_record([(0, 0.9, 40), (1, 0.9, 40)], [], difficult=[(0, 40)]))
    assert metrics.confusion([pairing], 2).tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
