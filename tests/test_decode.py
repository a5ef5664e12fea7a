"""Decode and the detections of an image, against Darknet's results and cases worked by hand.
Source: golden/detections, golden/forward; Darknet's src/yolo_layer.c."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import golden_names

from yolov4.cfg import Head, parse_cfg, read_cfg
from yolov4.decoding import Detection, Detections, decode, detections_from_logits
from yolov4.graph import find_heads, plan_layers


def make_head(**keys):
    anchors = keys.setdefault("anchors", ((10.0, 20.0),))
    mask = tuple(range(len(anchors)))
    keys = {"mask": mask, "num": len(mask), "classes": 2, "index": 1, "stride": 32} | keys
    return Head(**keys, all_anchors=anchors)


def detect(logits, head=None, size=(32, 32), thresh=0.25, nms_thresh=0.45, **options):
    """Detections of the first image."""
    heads = [head or make_head()]
    return detections_from_logits([logits], heads, size, thresh, nms_thresh, **options)[0]


def heads_of(network):
    return find_heads(network, plan_layers(network))


def as_logits(layer_input, head):
    """What Darknet's layer received -> logits: with new_coords it is after the logistic."""
    values = torch.from_numpy(layer_input)
    return values.double().logit() if head.new_coords else values


def rows_of(detections, image_size):
    """Detections -> (n, 6) class, probability, cx, cy, w, h relative, as in the golden files."""
    boxes = detections.boxes.numpy() / np.tile(image_size, 2)
    boxes = np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1)
    return np.concatenate((detections.labels[:, None], detections.scores[:, None], boxes), 1)


def assert_same_rows(found, expected):
    """Equal as sets: class exactly, the rest within float32."""
    assert len(found) == len(expected)
    expected = expected[expected[:, 1].argsort()]
    used = np.zeros(len(expected), bool)
    for row in found:
        window = slice(*np.searchsorted(expected[:, 1], (row[1] - 4e-5, row[1] + 4e-5)))
        near = (np.abs(expected[window] - row) <= 2e-5 + 2e-5 * np.abs(row)).all(1) & ~used[window]
        assert near.any(), f"Darknet does not have {row}"
        used[window.start + near.argmax()] = True


def golden_detections(case, when, device="cpu"):
    """`before` or `after` NMS, and the size of their image."""
    heads = heads_of(parse_cfg(case["cfg"]))
    size = tuple(int(side) for side in case["image_size"])
    nms_thresh = case["nms"] if when == "after" else 0
    logits = [as_logits(case["layer_input"], heads[0]).to(device)]
    options = case["thresh"], nms_thresh, case["letter_box"]
    return detections_from_logits(logits, heads, size, *options)[0].cpu(), size


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", golden_names("detections"))
def test_detections_are_darknets(name, when, golden):
    case = golden(f"detections/{name}.npz")
    detections, size = golden_detections(case, when)
    assert (detections.scores.diff() <= 0).all() and detections.labels.dtype == torch.int64
    assert_same_rows(rows_of(detections, size), case[when])


@pytest.mark.parametrize("name", ["yolov4", "yolov4-tiny", "yolov4-csp"])
def test_decoded_values_are_those_of_darknets_layer(name, golden, root):
    case, network = golden(f"forward/{name}.npz"), read_cfg(root / f"cfg/{name}.cfg")
    width, height = (int(side) for side in case["size"])
    for head in heads_of(network._replace(net=replace(network.net, width=width, height=height))):
        raw, layer = case[f"raw{head.index}"][None], torch.from_numpy(case[f"yolo{head.index}"])
        h, w = layer.shape[1:]
        layer = layer.view(3, 85, h, w)
        boxes, objectness, classes = decode(as_logits(raw, head), head)
        assert boxes.dtype == torch.float32
        torch.testing.assert_close(objectness[0], layer[:, 4], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(classes[0].movedim(-1, 1), layer[:, 5:], rtol=1e-4, atol=1e-5)
        for anchor, row, column in ((0, 0, 0), (2, h - 1, w - 1), (1, h // 2, w // 3)):
            x, y, tw, th = layer[anchor, :4, row, column].tolist()
            wide, high = (4 * t * t if head.new_coords else math.exp(t) for t in (tw, th))
            sides = wide * head.anchors[anchor][0] / width, high * head.anchors[anchor][1] / height
            expected = torch.tensor(((column + x) / w, (row + y) / h, *sides))
            found = boxes[0, anchor, row, column]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_one_cell_by_hand():
    # anchor 10 x 20 in 32 x 32 pixels; x = 0.5, y = logistic(ln 3) = 0.75, w = 10 * 2, h = 20 * 1
    logits = torch.tensor([0, math.log(3), math.log(2), 0, -math.log(3), 0, 50]).view(1, 7, 1, 1)
    boxes, objectness, classes = decode(logits, make_head())
    torch.testing.assert_close(boxes.view(4), torch.tensor([0.5, 0.75, 0.625, 0.625]))
    assert objectness.item() == pytest.approx(0.25)
    assert classes.view(2).tolist() == pytest.approx([0.5, 1])
    boxes = decode(logits, make_head(scale_x_y=1.2)).boxes.view(4)
    torch.testing.assert_close(boxes, torch.tensor([0.5, 0.8, 0.625, 0.625]))  # 0.75 * 1.2 - 0.1
    boxes = decode(logits, make_head(scale_x_y=2.0, new_coords=True)).boxes.view(4)
    wide = (2 * 2 / 3) ** 2 * 10 / 32  # logistic(ln 2) = 2 / 3
    torch.testing.assert_close(boxes, torch.tensor([0.5, 1.0, wide, 0.625]))


def test_grid_of_other_height_than_width_counts_columns_for_x():
    logits = torch.zeros(2, 14, 2, 3, dtype=torch.bfloat16)
    boxes = decode(logits, make_head(anchors=((16.0, 16.0), (32.0, 8.0)))).boxes
    assert boxes.shape == (2, 2, 2, 3, 4) and boxes.dtype == torch.float32
    assert boxes[1, 0, 1, 2].tolist() == pytest.approx([2.5 / 3, 1.5 / 2, 16 / 96, 16 / 64])
    assert boxes[0, 1, 0, 1].tolist() == pytest.approx([1.5 / 3, 0.5 / 2, 32 / 96, 8 / 64])


def one_object(objectness=0.9, classes=(0.8, 0.1), cell=(0, 0), grid=(1, 1)):
    """Logits with a single prediction above any threshold."""
    logits = torch.full((1, 7, *grid), -20.0)
    logits[0, :4] = 0
    logits[0, 4:, cell[0], cell[1]] = torch.tensor((objectness, *classes)).logit()
    return logits


@pytest.mark.parametrize(("size", "letter_box", "expected"), [
    ((640, 320), False, (320 - 100, 160 - 100, 320 + 100, 160 + 100)),  # 10 x 20 of 32 x 32
    # the longer side fills the 32 pixels of the network: half of one is one of the image
    ((64, 32), True, (32 - 10, 16 - 20, 32 + 10, 16 + 20)),
    ((32, 64), True, (16 - 10, 32 - 20, 16 + 10, 32 + 20)),
])  # fmt: skip
def test_box_is_in_pixels_of_the_original_image(size, letter_box, expected):
    found = detect(one_object(), size=size, letter_box=letter_box)
    assert found.labels.tolist() == [0] and found.scores.item() == pytest.approx(0.72)
    assert found.boxes[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_several_classes_of_one_box_survive_and_share_their_prediction():
    logits = one_object(0.8, (0.75, 0.5))
    found = detect(logits, thresh=0.3)
    assert found.labels.tolist() == [0, 1] and found.scores.tolist() == pytest.approx([0.6, 0.4])
    assert found.prediction.tolist() == [0, 0] and found[1:].labels.tolist() == [1]
    assert detect(logits, thresh=0.5).labels.tolist() == [0]
    nothing = detect(logits, thresh=0.7)
    assert len(nothing) == 0 and nothing.boxes.shape == (0, 4)


def test_exactly_thresh_does_not_pass():
    for last in ((0, 50, -50), (50, 0, -50)):  # 0.5 and 1, or the other way round
        logits = torch.tensor([0.0, 0, 0, 0, *last]).view(1, 7, 1, 1)
        assert len(detect(logits, thresh=0.5)) == 0 and len(detect(logits, thresh=0.49)) == 1


def test_images_of_a_batch_are_apart_and_each_has_its_size():
    logits = torch.cat((one_object(0.9), torch.full((1, 7, 1, 1), -20.0), one_object(0.6)))
    sizes = [(32, 32), (8, 8), (320, 32)]
    found = detections_from_logits([logits], [make_head()], sizes)
    assert [len(each) for each in found] == [1, 0, 1]
    alone = detect(logits[2:], size=(320, 32))
    assert torch.equal(found[2].boxes, alone.boxes) and torch.equal(found[2].scores, alone.scores)


def test_heads_of_two_strides_suppress_each_other():
    heads = [make_head(stride=16), make_head(stride=32, index=2)]
    logits = [one_object(0.9, grid=(2, 2)), one_object(0.8)]
    logits[0][0, :2, 0, 0] = 6  # the fine cell's corner: the middle of the image, as the coarse one
    (both,) = detections_from_logits(logits, heads, (32, 32), nms_thresh=0)
    (found,) = detections_from_logits(logits, heads, (32, 32))
    assert len(both) == 2 and found.scores.tolist() == pytest.approx([0.72])


def test_detections_as_plain_values_by_number_mask_and_indices():
    boxes = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11.5]])
    columns = boxes, torch.tensor([0.75, 0.5, 0.25]), torch.tensor([1, 0, 1])
    found, numbered = Detections(*columns, names=["cat", "dog"]), Detections(*columns)
    rows = [Detection("dog", 0.75, [0, 1, 2, 3]), Detection("cat", 0.5, [4, 5, 6, 7]),
            Detection("dog", 0.25, [8, 9, 10, 11.5])]  # fmt: skip
    assert list(found) == rows and [each.name for each in numbered] == ["1", "0", "1"]
    assert found[-1] == rows[2] and found[found.scores.argmin()] == found[np.int64(2)] == rows[2]
    with pytest.raises(IndexError):
        found[3]
    wanted = {"name": "dog", "score": 0.25, "box": [8, 9, 10, 11.5]}
    assert json.loads(json.dumps(found.to_list()))[2] == wanted
    for which in (found.labels == 1, [2, 0], torch.tensor([2]), slice(1, 3), [], slice(0)):
        some = found[which]
        assert list(some) == [rows[i] for i in some.prediction]
        assert some.prediction.tolist() == torch.arange(3)[which].tolist()
        assert bool(some) == (len(some) > 0)
    assert "dog 0.75, cat 0.50, dog 0.25" in repr(found) and "1 0.75" in repr(numbered)
