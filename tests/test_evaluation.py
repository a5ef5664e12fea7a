"""mAP on real photographs equals Darknet's; labels, lists and the model's state on the way there.
Source: golden/map, what `darknet detector map` printed."""

import cv2
import numpy as np
import pytest
import torch

from yolov4.boxes import nms
from yolov4.cfg import parse_cfg
from yolov4.checkpoint import load_network
from yolov4.decoding import Detections
from yolov4.evaluation import collect, evaluate, suppress
from yolov4.model import Darknet

CFG = """[net]
width=32
height=32
[convolutional]
filters=14
size=1
stride=32
activation=linear
[yolo]
mask=0,1
anchors=16,16, 8,8
classes=2
num=2
"""


@pytest.fixture
def sure_model() -> Darknet:
    """Finds class 0 in the middle half of every picture, and nothing else."""
    model = Darknet(parse_cfg(CFG))
    with torch.no_grad():
        model.layers[0][0].weight.zero_()
        model.layers[0][0].bias.copy_(torch.tensor([0, 0, 0, 0, 9, 9, -9.0, 0, 0, 0, 0, -9, 0, 0]))
    return model


@pytest.fixture
def photographs(tmp_path):
    """photographs(*labels): a list file of pictures with these label files, None for no file."""

    def make(*labels, name="valid"):
        for folder in ("images", "labels"):
            (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
        for number, text in enumerate(labels):
            cv2.imwrite(str(tmp_path / name / "images" / f"{number}.png"), np.zeros((50 + number, 40, 3), np.uint8))
            if text is not None:
                (tmp_path / name / "labels" / f"{number}.txt").write_text(text)
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}/images/{i}.png\n" for i in range(len(labels))))
        return tmp_path / f"{name}.txt"

    return make


def test_a_list_file_and_paths_give_the_same(sure_model, photographs):
    images = photographs("0 .5 .5 .5 .5\n", "0 .1 .1 .1 .1\n", "")
    result = evaluate(sure_model, images)
    # of three equal detections the first is right, one of two truths: the area is a half
    assert (result.ap[0], result.truths.tolist(), result.tp.tolist()) == (0.5, [2, 0], [1, 0])
    assert (result.detections, result.images) == (3, 3)
    assert result.average_iou == pytest.approx(1 / 3, abs=1e-3)
    paths = [images.parent / line for line in images.read_text().split()]
    assert evaluate(sure_model, paths, batch=2).ap.tolist() == result.ap.tolist()


def test_one_pass_gives_several_results(sure_model, photographs):
    evaluator = collect(sure_model, photographs("0 .5 .5 .5 .4\n"))
    assert [evaluator.result(thresh).map for thresh in (0.5, 0.75, 0.85)] == [0.5, 0.5, 0]


def test_every_image_leaves_a_record(sure_model, photographs):
    images = photographs("0 .5 .5 .5 .5\n", "1 .1 .1 .1 .1\n")
    hard = photographs("", "0 .5 .5 .5 .5\n", name="difficult")
    first, second = collect(sure_model, images, difficult=hard).records
    assert (first.path.name, first.image_size, first.labels[:, 0].tolist()) == ("0.png", (40, 50), [0])
    assert (second.path.name, second.image_size, second.labels[:, 0].tolist()) == ("1.png", (40, 51), [1])
    assert (len(first.difficult), second.difficult.tolist()) == (0, [[0, 0.5, 0.5, 0.5, 0.5]])
    torch.testing.assert_close(first.detections.boxes, torch.tensor([[10, 12.5, 30, 37.5]]), atol=0.1, rtol=0)


def test_the_model_stays_as_it_was(sure_model, photographs):
    before = {key: value.clone() for key, value in sure_model.state_dict().items()}
    evaluate(sure_model.train(), photographs("0 .5 .5 .5 .5\n"))
    assert sure_model.training
    assert sure_model.state_dict().keys() == before.keys()


def test_difficult_objects_are_not_held_against_it(sure_model, photographs):
    images = photographs("0 .5 .5 .5 .5\n", "1 .1 .1 .1 .1\n", "")
    hard = photographs("", "0 .5 .5 .5 .5\n", "0 .5 .5 .5 .5\n", name="difficult")
    result = evaluate(sure_model, images, difficult=hard)
    assert (result.detections, result.settings.difficult) == (1, True)
    with pytest.raises(ValueError, match="2 images, expected 3"):
        evaluate(sure_model, images, difficult=photographs("", "", name="short"))


def test_no_box_at_all_is_an_error(sure_model, photographs):
    with pytest.raises(ValueError, match=r"valid\.txt: found 0 boxes in 2 images"):
        evaluate(sure_model, photographs("", None))


def test_a_class_too_high_is_named_with_its_file(sure_model, photographs):
    with pytest.raises(ValueError, match=r"1\.txt: class 2, expected 0\.\.1"):
        evaluate(sure_model, photographs("0 .5 .5 .5 .5\n", "2 .5 .5 .5 .5\n"))


def test_missing_label_files_are_counted(sure_model, photographs):
    with pytest.warns(UserWarning, match=r"1 of 2 images have no label file.*1\.txt"):
        assert evaluate(sure_model, photographs("0 .5 .5 .5 .5\n", None)).images == 2


def test_an_unreadable_image_is_an_error(sure_model, photographs):
    images = photographs("0 .5 .5 .5 .5\n", "")
    (images.parent / "valid" / "images" / "1.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"1\.png"):
        evaluate(sure_model, images)


def test_the_last_class_orders_the_list(sure_model):
    head = sure_model.heads[-1]
    one, two = [10.0, 10, 20, 20], [60.0, 60, 80, 90]
    # `one` is better as class 0, but `two` has class 1 as well, which sorts last and so first
    found = suppress(
        Detections(torch.tensor([one, two, two]), torch.tensor([0.9, 0.5, 0.3]), torch.tensor([0, 0, 1])),
        (100, 100),
        head,
        0.45,
    )
    assert list(zip(found.scores.tolist(), found.labels.tolist(), strict=True)) == [
        (pytest.approx(0.5), 0), (pytest.approx(0.3), 1), (pytest.approx(0.9), 0)
    ]  # fmt: skip


def test_a_suppressed_class_still_orders_the_list(sure_model):
    head = sure_model.heads[-1]
    boxes = torch.tensor([[10.0, 10, 50, 50], [11, 10, 51, 50], [11, 10, 51, 50], [60, 60, 80, 80], [60, 60, 80, 80]])
    scores, labels = torch.tensor([0.9, 0.6, 0.5, 0.4, 0.2]), torch.tensor([1, 1, 0, 0, 1])
    found = suppress(Detections(boxes, scores, labels), (100, 100), head, 0.45)
    # the second box loses class 1 to the first, but has been sorted by it, before the third
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.5, 0.4, 0.2]))
    cxcywh = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1) / 100
    assert len(nms(cxcywh, scores, labels, 0.45)) == 4


def real(shared, name: str) -> Darknet:
    folder = shared / "models" / name
    return load_network(next(folder.glob("*.weights")), next(folder.glob("*.cfg")))[0]


def compare(result, wanted: dict, differing: int) -> None:
    """differing: classes whose TP or FP depend on the JPEG decoder; with the pixels of Darknet's own, stb_image, every
    TP and FP is Darknet's."""
    assert result.truths.sum() == wanted["truths"]
    assert abs(result.map - wanted["map"]) <= 0.002
    assert abs(result.detections / wanted["detections"] - 1) < 0.002
    at, classes = wanted["at_conf_thresh"], wanted["classes"]
    assert sum((result.tp[c["id"]], result.fp[c["id"]]) != (c["tp"], c["fp"]) for c in classes) <= differing
    for key, value in (("precision", result.precision), ("recall", result.recall), ("f1", result.f1)):
        assert abs(value - at[key]) <= 0.0151
    assert abs(result.average_iou * 100 - at["average_iou"]) <= 0.6


def test_voc_photographs_as_darknet(shared, golden, tmp_path):
    name = "yolo-fastest-1.0-xl-voc"
    photographs = shared / "datasets/voc2012_100/VOCdevkit/VOC2012/JPEGImages"
    (tmp_path / "JPEGImages").symlink_to(photographs)
    (tmp_path / "labels").symlink_to(shared / "golden/voc2012_100/labels")
    paths = sorted((tmp_path / "JPEGImages").glob("*.jpg"))
    evaluator = collect(real(shared, name), paths)
    for kind, iou_thresh, points in (("map", 0.5, 0), ("map11", 0.5, 11), ("map75", 0.75, 0)):
        compare(evaluator.result(iou_thresh, points), golden(f"map/{kind}_voc2012_100_{name}.json"), 2)


def test_coco_photographs_as_darknet(shared, golden):
    paths = sorted((shared / "datasets/coco128_val/images").glob("*.jpg"))
    result = evaluate(real(shared, "yolov3-tiny"), paths)
    compare(result, golden("map/map_coco128_val_yolov3-tiny.json"), 1)
