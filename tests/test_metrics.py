"""Matching and average precision: by hand, and against a slow transcription of `darknet detector map`.
Source: ../shared/darknet.md, `detector map`."""

import time

import numpy as np
import pytest
import torch
from slow_map import slow_map

from yolov4.decoding import Detections
from yolov4.metrics import Evaluator, average_precision, best_overlaps
from yolov4.result import Settings

SETTINGS = Settings(size=(416, 416))
SIZE = (200, 100)


def detections(*rows) -> Detections:
    """rows: label, score, cx, cy, w, h relative, of an image of SIZE"""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    half = values[:, 4:] / 2
    boxes = torch.cat((values[:, 2:4] - half, values[:, 2:4] + half), 1) * torch.tensor(SIZE * 2)
    return Detections(boxes, values[:, 1], values[:, 0].long())


def labels(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)


def random_images(random, images, classes, per_image):
    made = []
    for _ in range(images):
        truths = [
            [random.integers(classes), *random.uniform(0.2, 0.8, 2), *random.uniform(0.05, 0.4, 2)]
            for _ in range(random.integers(0, 6))
        ]
        hard = [
            [random.integers(classes), *random.uniform(0.2, 0.8, 2), 0.3, 0.3] for _ in range(random.integers(0, 3))
        ]
        rows = []
        for _ in range(random.integers(0, per_image)):
            near = [*truths, *hard]
            row = (
                near[random.integers(len(near))]
                if near and random.random() < 0.7
                else [random.integers(classes), 0.5, 0.5, 0.2, 0.2]
            )
            box = np.array(row[1:]) + random.normal(0, 0.03, 4) * np.array(row[3:] * 2)
            rows.append([row[0], random.random(), *box[:2], *np.abs(box[2:])])
        made.append((rows, truths, hard))
    return made


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("iou_thresh", "points"), [(0.5, 0), (0.5, 11), (0.75, 101), (0.3, 0)])
def test_equals_the_loops_of_darknet(seed, iou_thresh, points):
    images = random_images(np.random.default_rng(seed), 30, 4, 25)
    evaluator = Evaluator(4, SETTINGS)
    for rows, truths, hard in images:
        evaluator.add(detections(*rows), labels(*truths), SIZE, labels(*hard))
    result = evaluator.result(iou_thresh, points)
    ap, tp, fp, sums, count = slow_map(images, 4, iou_thresh, points)
    assert sum(tp) > 20 and sum(fp) > 20  # the case is worth something
    np.testing.assert_allclose(result.ap, ap, atol=1e-9)
    assert (result.tp.tolist(), result.fp.tolist(), result.detections) == (tp, fp, count)
    np.testing.assert_allclose(result.iou_sum, sums, atol=1e-4)


def test_area_by_hand():
    # found, missed, found, of 4: precision 1 at recall 1/4, 2/3 at 1/2
    hits = torch.tensor([True, False, True])
    assert average_precision(hits, 4) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    # 11 points: recalls 0, .1, .2 have precision 1; .3, .4, .5 have 2/3
    assert average_precision(hits, 4, 11) == pytest.approx((3 + 3 * 2 / 3) / 11)
    # 101 points: 0 to .25 are 26, .26 to .5 are 25
    assert average_precision(hits, 4, 101) == pytest.approx((26 + 25 * 2 / 3) / 101)


def test_precision_is_that_of_the_best_recall_beyond():
    assert average_precision(torch.tensor([False, True, True, True]), 3) == pytest.approx(0.75)


def test_recall_points_are_rounded_as_in_the_compiled_darknet():
    # 3 of 10 found: recall 0.3, but the point is 3 * 0.1 = 0.30000000000000004
    assert average_precision(torch.ones(3, dtype=torch.bool), 10, 11) == pytest.approx(3 / 11)


def test_a_truth_is_found_once_and_by_the_best_score():
    evaluator = Evaluator(1, SETTINGS)
    box = (0.5, 0.5, 0.2, 0.2)
    evaluator.add(detections((0, 0.9, *box), (0, 0.8, *box)), labels((0, *box)), SIZE)
    result = evaluator.result()
    assert (result.tp[0], result.fp[0], result.map) == (1, 1, 1.0)
    assert (result.precision, result.recall, result.f1) == (0.5, 1.0, pytest.approx(2 / 3))
    assert result.average_iou == pytest.approx(0.5)  # the false positive counts as 0


def test_the_first_in_the_list_finds_even_below_the_confidence():
    evaluator = Evaluator(1, SETTINGS)
    box = (0.5, 0.5, 0.2, 0.2)
    evaluator.add(detections((0, 0.1, *box), (0, 0.8, *box)), labels((0, *box)), SIZE)
    result = evaluator.result()
    assert (result.tp[0], result.fp[0], result.map) == (0, 1, 1.0)


def test_a_detection_on_a_difficult_object_leaves_the_curve():
    truth, hard, nowhere = (0.2, 0.5, 0.2, 0.2), (0.8, 0.5, 0.2, 0.2), (0.5, 0.1, 0.1, 0.1)
    rows = detections((0, 0.9, *hard), (0, 0.8, *nowhere), (0, 0.7, *truth))
    with_list, without = Evaluator(1, SETTINGS), Evaluator(1, SETTINGS)
    with_list.add(rows, labels((0, *truth)), SIZE, labels((0, *hard)))
    without.add(rows, labels((0, *truth)), SIZE)
    assert with_list.result().map == pytest.approx(1 / 2)
    assert without.result().map == pytest.approx(1 / 3)
    assert with_list.result().fp[0] == 2  # Darknet still counts it here


def test_overlap_at_the_threshold_is_no_match():
    evaluator = Evaluator(1, SETTINGS)
    evaluator.add(detections((0, 0.9, 0.5, 0.5, 0.5, 0.5)), labels((0, 0.5, 0.5, 0.5, 0.25)), SIZE)
    assert evaluator.result(0.5).map == 0
    assert evaluator.result(0.49).map == 1


def test_another_class_or_image_is_no_match():
    evaluator = Evaluator(2, SETTINGS)
    box = (0.5, 0.5, 0.2, 0.2)
    evaluator.add(detections((1, 0.9, *box)), labels((0, *box)), SIZE)
    evaluator.add(detections((0, 0.9, *box)), labels(), SIZE)
    assert evaluator.result().map == 0
    assert evaluator.result().fp.tolist() == [1, 1]


def test_nothing_found_and_nothing_to_find():
    evaluator = Evaluator(3, SETTINGS)
    assert evaluator.result().map == 0
    evaluator.add(detections(), labels((0, 0.5, 0.5, 0.2, 0.2)), SIZE)
    evaluator.add(detections((1, 0.9, 0.5, 0.5, 0.2, 0.2)), labels(), SIZE)
    result = evaluator.result(points=11)
    assert result.ap.tolist() == [0, 0, 0]
    assert (result.precision, result.recall, result.f1, result.average_iou) == (0, 0, 0, 0)
    assert np.isfinite(result.class_f1).all()


def test_a_class_without_truths_counts_in_the_mean():
    evaluator = Evaluator(2, SETTINGS)
    box = (0.5, 0.5, 0.2, 0.2)
    evaluator.add(detections((0, 0.9, *box)), labels((0, *box)), SIZE)
    assert evaluator.result().map == 0.5


def test_best_overlap_takes_the_first_of_equals():
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    truths = boxes.repeat(3, 1)
    overlap, index = best_overlaps(boxes, torch.tensor([7]), truths, torch.tensor([3, 7, 7]))
    assert (overlap.item(), index.item()) == (pytest.approx(1.0), 1)


def test_the_record_of_an_image_is_by_falling_score():
    evaluator, box = Evaluator(2, SETTINGS), (0.5, 0.5, 0.2, 0.2)
    evaluator.add(detections((0, 0.2, *box), (1, 0.9, *box), (1, 0.2, *box)), labels((0, *box)), SIZE, path="a.jpg")
    record = evaluator.records[0]
    assert record.detections.labels.tolist() == [1, 0, 1]  # equals as they came
    assert (record.path, record.image_size, record.labels.tolist()) == ("a.jpg", SIZE, labels((0, *box)).tolist())
    assert record.difficult.shape == (0, 5)


def test_an_impossible_class_is_named():
    with pytest.raises(ValueError, match=r"class 2, expected 0\.\.1"):
        Evaluator(2, SETTINGS).add(detections(), labels((2, 0.5, 0.5, 0.2, 0.2)), SIZE)


@pytest.mark.parametrize(("iou_thresh", "points"), [(0.5, 1), (0.5, -1), (1.0, 0)])
def test_impossible_settings_are_named(iou_thresh, points):
    with pytest.raises(ValueError, match="expected points"):
        Evaluator(2, SETTINGS).result(iou_thresh, points)


def test_a_hundred_thousand_detections_take_less_than_two_seconds():
    random = torch.Generator().manual_seed(0)
    evaluator = Evaluator(20, SETTINGS)
    images = []
    for _ in range(1000):
        boxes = torch.rand(100, 4, generator=random) * 100
        scores = torch.rand(100, generator=random).sort(descending=True).values
        found = Detections(boxes, scores, torch.randint(20, (100,), generator=random))
        truths = torch.cat((torch.randint(20, (5, 1), generator=random), torch.rand(5, 4, generator=random)), 1)
        images.append((found, truths, SIZE))
    start = time.thread_time()
    for image in images:
        evaluator.add(*image)
    evaluator.result()
    evaluator.result(0.75, 101)
    assert time.thread_time() - start < 2


def test_table_and_json_say_what_was_measured():
    evaluator = Evaluator(2, SETTINGS)
    box = (0.5, 0.5, 0.2, 0.2)
    evaluator.add(detections((0, 0.9, *box)), labels((0, *box)), SIZE)
    result = evaluator.result(0.75, 11)
    table = result.table(["cat", "dog"])
    assert "mAP@0.75" in table and "50.00" in table and "11 recall points" in table and "416x416" in table
    plain = result.to_json(["cat", "dog"])
    assert plain["map"] == 0.5 and plain["classes"][0]["name"] == "cat" and plain["classes"][0]["tp"] == 1
