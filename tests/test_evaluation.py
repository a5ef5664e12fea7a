"""mAP on real photographs equals Darknet's; labels, lists and the model's state on the way there.
Source: golden/map_opencv, what `darknet detector map` printed."""

import math

import cv2
import pytest
import torch
from conftest import draw

from yolov4.boxes import relative_boxes
from yolov4.cfg import parse_cfg
from yolov4.decoding import detections_from_logits
from yolov4.detector import Detector
from yolov4.evaluation import collect, evaluate
from yolov4.model import Darknet
from yolov4.weights import save_weights

CFG = """[net] width=32 height=32
[convolutional] filters=14 size=1 stride=32 activation=linear
[yolo] mask=0,1 anchors=16,16,8,8 classes=2 num=2""".replace(" ", "\n")


def make_sure_model() -> Darknet:
    """Finds class 0 in the middle half of every image, and nothing else."""
    model = Darknet(parse_cfg(CFG))
    with torch.no_grad():
        model.layers[0][0].weight.zero_()
        model.layers[0][0].bias.copy_(torch.tensor([0, 0, 0, 0, 9, 9, -9.0, 0, 0, 0, 0, -9, 0, 0]))
    return model


sure_model = pytest.fixture(make_sure_model, name="sure_model")


@pytest.fixture
def listed(tmp_path):
    """listed(*labels): a list file of images with these label files, None for no file."""

    def make(*labels, name="valid"):
        for number, text in enumerate(labels):
            path = draw(tmp_path / name / f"{number}.png", (40, 50 + number))
            if text is not None:
                path.with_suffix(".txt").write_text(text)
        paths = "".join(f"{name}/{number}.png\n" for number in range(len(labels)))
        (tmp_path / f"{name}.txt").write_text(paths)
        return tmp_path / f"{name}.txt"

    return make


def test_boxes_in_pixels_are_an_error(sure_model, listed):
    images = listed("0 20 25 10 12\n", "0 9 9 4 4\n1 9 9 4 4\n")
    with pytest.raises(ValueError, match=r"valid\.txt: .*pixels"):
        evaluate(sure_model, images)


def test_list_files_paths_detectors_and_several_results_of_one_pass(sure_model, listed):
    images = listed("0 .5 .5 .5 .5\n", "0 .1 .1 .1 .1\n", "")
    result = evaluate(sure_model, images)
    # of three equal detections the first is right, one of two boxes: the area is a half
    assert (result.ap[0], result.objects.tolist(), result.tp.tolist()) == (0.5, [2, 0], [1, 0])
    assert (result.detections, result.images) == (3, 3)
    assert result.average_iou == pytest.approx(1 / 3, abs=1e-3)
    paths = [images.parent / line for line in images.read_text().split()]
    assert evaluate(sure_model, paths, batch=2).ap.tolist() == result.ap.tolist()
    evaluator = collect(sure_model, listed("0 .5 .5 .5 .4\n", name="flat"))
    assert [evaluator.result(thresh).map for thresh in (0.5, 0.75, 0.85)] == [0.5, 0.5, 0]
    detector = Detector.from_model(sure_model, names=["cat", "dog"], letter_box=True)
    assert evaluate(detector, paths).settings.letter_box


def test_difficult_objects_are_recorded_and_not_held_against_it(sure_model, listed):
    images = listed("0 .5 .5 .5 .5\n", "1 .1 .1 .1 .1\n", "")
    hard = listed("", "0 .5 .5 .5 .5\n", "0 .5 .5 .5 .5\n", name="difficult")
    evaluator = collect(sure_model.train(), images, difficult=hard)
    for number, record in enumerate(evaluator.records):
        assert (record.path.name, record.image_size) == (f"{number}.png", (40, 50 + number))
        assert record.labels[:, 0].tolist() == [[0], [1], []][number]
        assert record.difficult[:, 3].tolist() == [[], [0.5], [0.5]][number]
    box = torch.tensor([[10, 12.5, 30, 37.5]])
    torch.testing.assert_close(evaluator.records[0].detections.boxes, box, atol=0.1, rtol=0)
    result = evaluator.result()
    assert (result.detections, result.settings.difficult) == (1, True)
    assert sure_model.training and sure_model.layers[0][0].weight.requires_grad
    with pytest.raises(ValueError, match="2 images, expected 3"):
        evaluate(sure_model, images, difficult=listed("", "", name="short"))


def test_labels_that_do_not_fit_are_named(sure_model, listed):
    with pytest.raises(ValueError, match=r"valid\.txt: "):
        evaluate(sure_model, listed("", None))
    with pytest.raises(ValueError, match=r"1\.txt: class 2"):
        evaluate(sure_model, listed("0 .5 .5 .5 .5\n", "2 .5 .5 .5 .5\n", name="other"))


def test_missing_label_files_are_counted_and_an_unreadable_image_is_an_error(sure_model, listed):
    images = listed("0 .5 .5 .5 .5\n", None)
    with pytest.warns(UserWarning, match=r"1 of 2 images have no label file.*1\.txt"):
        assert evaluate(sure_model, images).images == 2
    (images.parent / "valid/1.txt").touch()
    (images.parent / "valid/1.png").write_text("no image")
    with pytest.raises(ValueError, match=r"1\.png"):
        evaluate(sure_model, images)


def test_an_onnx_is_measured_as_the_weights_are(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from test_export import CFG as SMALL
    from test_export import random_images, small_model

    from yolov4.export import export_onnx

    (tmp_path / "small.cfg").write_text(SMALL)
    save_weights(small_model(), tmp_path / "small.weights")
    export_onnx(small_model(), tmp_path / "small.onnx")
    detector, paths = Detector(tmp_path / "small.weights"), []
    for number, pixels in enumerate((random_images(4) * 255).byte()):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), pixels.permute(1, 2, 0).numpy())
        found = detector(paths[-1])[0]  # every second one is an object
        boxes, labels = relative_boxes(found.boxes, (64, 32)).tolist(), found.labels.tolist()
        rows = [(label, *box) for label, box in zip(labels, boxes, strict=True)][::2]
        text = "\n".join(" ".join(map(str, row)) for row in rows)
        paths[-1].with_suffix(".txt").write_text(text)
    wanted, result = (
        evaluate(each, paths) for each in (detector, Detector(tmp_path / "small.onnx"))
    )
    assert 0.2 < wanted.map < 0.9 and result.ap == pytest.approx(wanted.ap, abs=1e-3)
    assert result.tp.tolist() == wanted.tp.tolist() and result.objects.sum() > 9


def darknet_list(head, *predictions) -> list[tuple[float, int]]:
    """Score and class of detections in the order of Darknet's list; predictions: column in a grid
    of 2 x 1, anchor, probabilities.  Boxes of one column are the same, those of two are apart."""
    logits = torch.full((2, 7, 1, 2), -20.0)
    logits[:, :4] = 0
    logits[1, 2:4] = math.log(2)  # the second anchor has half the size
    for column, anchor, probabilities in predictions:
        logits[anchor, 4, 0, column] = 20
        logits[anchor, 5:, 0, column] = torch.tensor(probabilities).logit()
    found = detections_from_logits([logits.view(1, 14, 1, 2)], [head], (100, 100), 0.1)[0]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    found = found[(found.prediction * 2 + found.labels).argsort()]
    scores = (round(score, 3) for score in found.scores.tolist())
    return list(zip(scores, found.labels.tolist(), strict=True))


def test_the_last_class_orders_the_list_even_where_it_is_suppressed(sure_model):
    # the first is better as class 0, but the second has class 1 too, which is sorted last
    found = darknet_list(sure_model.heads[-1], (0, 0, (0.9, 0)), (1, 0, (0.5, 0.3)))
    assert found == [(0.5, 0), (0.3, 1), (0.9, 0)]
    predictions = (0, 0, (0, 0.9)), (0, 1, (0.5, 0.6)), (1, 0, (0.4, 0.2))
    found = darknet_list(sure_model.heads[-1], *predictions)
    # the second loses class 1 to the first, but was sorted by it, before the third
    assert found == [(0.9, 1), (0.5, 0), (0.4, 0), (0.2, 1)]


def real(shared, name: str) -> Detector:
    folder = shared / "models" / name
    return Detector(next(folder.glob("*.cfg")), next(folder.glob("*.weights")), device="cpu")


@pytest.mark.parametrize("kind", ["map", "map11", "map75"])
@pytest.mark.parametrize("model", ["coco_yolov3-tiny", "voc_yolo-fastest-1.0-xl-voc"])
def test_photographs_equal_darknet_with_opencv(shared, golden, tmp_path, kind, model):
    """Every figure that `darknet detector map` prints, to its last digit."""
    data, _, name = model.partition("_")
    if data == "coco":
        paths = sorted((shared / "datasets/coco128_val/images").glob("*.jpg"))
    else:
        (tmp_path / "JPEGImages").symlink_to(
            shared / "datasets/voc2012_100/VOCdevkit/VOC2012/JPEGImages"
        )
        (tmp_path / "labels").symlink_to(shared / "golden/voc2012_100/labels")
        paths = sorted((tmp_path / "JPEGImages").glob("*.jpg"))
    wanted = golden(f"map_opencv/{kind}_{model}.json")
    iou_thresh, points = (0.75 if kind == "map75" else 0.5), (11 if kind == "map11" else 0)
    result = evaluate(real(shared, name), paths, iou_thresh, points)
    classes = [{key: row[key] for key in ("ap", "tp", "fp")} for row in wanted["classes"]]
    found = zip(*(each.tolist() for each in (result.ap, result.tp, result.fp)), strict=True)
    for row, (ap, tp, fp) in zip(classes, found, strict=True):
        assert row == {"ap": pytest.approx(100 * ap, abs=0.0051), "tp": tp, "fp": fp}
    assert result.detections == wanted["detections"]
    assert result.map == pytest.approx(wanted["map"], abs=1e-6)
    assert result.average_iou == pytest.approx(wanted["average_iou"], abs=5.1e-5)


def test_what_cannot_be_read_can_be_left_out(sure_model, listed):
    row = "0 .5 .5 .5 .5\n"
    images, failed = listed(row, row, "2 .5 .5 .5 .5\n", row), []
    picture = images.parent / "valid/1.png"
    picture.write_bytes(picture.read_bytes()[:60])
    hard = listed("", "", "", "0 .5 .5 .5 .5\n", name="difficult")
    found = collect(sure_model, images, difficult=hard, on_error=failed.append).records
    assert [record.path.name for record in found] == ["0.png", "3.png"]
    assert [len(record.difficult) for record in found] == [0, 1]
    assert ["2.txt" in str(failed[0]), "1.png" in str(failed[1]), len(failed)] == [True, True, 2]
