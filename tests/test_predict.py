"""Darknet's resize and letterbox; the Detector on arrays, files and lists; real models.
Source: golden/resize.npz and golden/detections_real, results of Darknet."""

import shutil
import threading

import cv2
import numpy as np
import pytest
import torch
from real_detections import REAL_MODELS, photograph, unmatched_detections
from torchvision.ops import box_iou

from yolov4.cfg import parse_cfg
from yolov4.checkpoint import load_network
from yolov4.data import load_image
from yolov4.model import Darknet
from yolov4.output import darknet_json
from yolov4.predict import Detector, choose_device, letterbox_image, resize_image
from yolov4.weights import save_weights

CFG = """[net]
width={width}
height={height}
letter_box={letter_box}
[convolutional]
filters=14
size=3
stride=8
pad=1
activation=linear
[yolo]
mask=0,1
anchors=10,14, 23,27
classes=2
num=2
"""


def small_model(width=64, height=32, letter_box=0) -> Darknet:
    text = CFG.format(width=width, height=height, letter_box=letter_box)
    return Darknet(parse_cfg(text), torch.Generator().manual_seed(1))


def pictures(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(0, 256, (40 + 7 * i, 90 - 5 * i, 3), np.uint8) for i in range(count)]


def same(a, b) -> bool:
    return len(a.scores) == len(b.scores) and all(torch.allclose(x, y, atol=1e-4) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["stretch_416", "stretch_96x160", "letter_208"])
def test_resize_is_darknets(golden, name):
    results = golden("resize.npz")
    wanted = results[name]  # (3, h, w)
    fit = resize_image if name.startswith("stretch") else letterbox_image
    found = fit(results["image_bgr"], wanted.shape[:0:-1])
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - wanted).max() <= 1e-6


def test_resize_to_the_same_size_only_scales():
    image = pictures(1)[0]
    found = resize_image(image, image.shape[1::-1])
    np.testing.assert_array_equal(found.numpy(), image[..., ::-1].transpose(2, 0, 1).astype(np.float32) / 255)


def test_resize_from_and_to_one_pixel():
    image = np.arange(5 * 3, dtype=np.uint8).reshape(1, 5, 3)
    assert resize_image(image[:, :1], (4, 6)).unique().numel() == 3
    # one column is Darknet's last one
    np.testing.assert_allclose(resize_image(image, (1, 1))[:, 0, 0], image[0, -1, ::-1] / np.float32(255))


def test_letterbox_of_a_line_keeps_a_pixel():
    found = letterbox_image(np.full((1, 500, 3), 255, np.uint8), (64, 64))
    assert (found == 1).sum() == 3 * 64


def test_an_image_alone_in_a_list_and_in_a_batch_is_the_same():
    detector, images = Detector.from_model(small_model()), pictures(5)
    singles = [detector(image, 0.1)[0] for image in images]
    assert sum(len(each.scores) for each in singles) > 5
    for batch in (1, 2, 5):
        assert all(map(same, singles, detector(images, 0.1, batch=batch)))


def test_plain_arrays_are_the_same_detections():
    (found,) = Detector.from_model(small_model())(pictures(1), 0.1)
    arrays = found.numpy()
    assert len(found.scores) and all(type(values) is np.ndarray for values in arrays)
    for values, tensor in zip(arrays, found, strict=True):
        np.testing.assert_array_equal(values, tensor.numpy())
    assert [values.shape[1:] for values in found._replace(boxes=found.boxes[:0]).numpy()] == [(4,), (), ()]


def test_live_pictures_are_asked_for_one_at_a_time():
    given, images = [], pictures(4)
    frames = (given.append(number) or image for number, image in enumerate(images))
    for number, _ in enumerate(Detector.from_model(small_model()).stream(frames, batch=3, live=True)):
        assert given == list(range(number + 1))


def test_paths_and_arrays_mixed_keep_their_order(tmp_path):
    images = pictures(3)
    path = tmp_path / "b.png"
    cv2.imwrite(str(path), images[1])
    detector = Detector.from_model(small_model())
    assert all(map(same, detector(images, 0.1), detector([images[0], path, images[2]], 0.1)))
    assert same(detector(images[1], 0.1)[0], detector(str(path), 0.1)[0])


def test_boxes_are_pixels_of_the_original():
    model = small_model()
    with torch.no_grad():  # objectness and class sure everywhere, boxes of the anchor's size in the cell's middle
        model.layers[0][0].weight.zero_()
        model.layers[0][0].bias.copy_(torch.tensor([0, 0, 0, 0, 9, 9, -9] * 2))
    image = np.zeros((100, 200, 3), np.uint8)
    stretched = Detector.from_model(model)(image, nms_thresh=0)[0]
    first = stretched.boxes[(stretched.boxes[:, :2].sum(1)).argmin()]
    # cell (0, 0): centre 4, 4 of 64 x 32; anchors 23 x 27
    centre, half = torch.tensor([12.5, 12.5]), torch.tensor([23 / 64 * 200, 27 / 32 * 100]) / 2
    torch.testing.assert_close(first, torch.cat((centre - half, centre + half)), atol=1e-3, rtol=0)
    boxed = Detector.from_model(model, letter_box=True)(np.zeros((100, 100, 3), np.uint8), nms_thresh=0)[0]
    # 100 x 100 fills 32 x 32 in the middle: a pixel of the network is 100 / 32
    first = boxed.boxes[(boxed.boxes[:, :2].sum(1)).argmin()]
    half = torch.tensor([23, 27]) * 100 / 32 / 2
    centre = torch.tensor([(4 - 16) * 100 / 32, 4 * 100 / 32])
    torch.testing.assert_close(first, torch.cat((centre - half, centre + half)), atol=1e-3, rtol=0)


def test_letter_box_of_the_cfg_holds_and_can_be_overruled():
    assert Detector.from_model(small_model(letter_box=1)).letter_box
    assert not Detector.from_model(small_model(letter_box=1), letter_box=False).letter_box


def test_the_model_stays_as_it_was():
    model = small_model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    Detector.from_model(model)(pictures(1))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_image_is_named(image):
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\)"):
        Detector.from_model(small_model())(image)


def test_a_file_that_is_no_image_is_raised_or_skipped(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    detector, skipped = Detector.from_model(small_model()), []
    with pytest.raises(ValueError, match=r"a\.jpg"):
        detector(tmp_path / "a.jpg")
    sources = [tmp_path / "a.jpg", pictures(1)[0]]
    found = list(detector.stream(sources, on_error=lambda source, error: skipped.append(source)))
    assert len(found) == 1 and skipped == [tmp_path / "a.jpg"]


def test_wrong_names_and_devices_are_named():
    with pytest.raises(ValueError, match="3 names, but the network has 2 classes"):
        Detector.from_model(small_model(), names=["a", "b", "c"])
    with pytest.raises(ValueError, match="device toaster"):
        choose_device("toaster")
    assert Detector.from_model(small_model()).names == ["0", "1"]


def test_a_checkpoint_needs_no_cfg(tmp_path):
    model = small_model()
    state = {"cfg": CFG.format(width=64, height=32, letter_box=0), "names": ["a", "b"], "model": model.state_dict(),
             "ema": None, "iteration": 0, "seen": 0}  # fmt: skip
    torch.save(state, tmp_path / "x.pt")
    detector = Detector(None, tmp_path / "x.pt")
    assert detector.names == ["a", "b"]
    image = pictures(1)[0]
    assert same(detector(image, 0.1)[0], Detector.from_model(model)(image, 0.1)[0])


@pytest.mark.parametrize("model", REAL_MODELS, ids=lambda model: model.folder)
def test_real_photographs_as_darknet(shared, golden, model):
    detector = Detector(*model.files(shared))
    for wanted in golden(model.detections):
        path = photograph(shared, wanted["image"])
        found, names = detector(path, 0.05)[0], detector.names
        objects = darknet_json(1, str(path), names, load_image(path).shape[1::-1], found)["objects"]
        assert unmatched_detections(model, wanted, objects) == [], path


@pytest.mark.parametrize(("number", "half"), [(0, "bf16"), (1, "bf16"), (1, "fp16"), (2, "bf16")])
def test_half_precision_finds_what_float32_finds(shared, golden, number, half):
    """What one is sure of the other finds: real weights on real photographs."""
    model = REAL_MODELS[number]
    whole, halved = (Detector(*model.files(shared), device="cpu", half=kind) for kind in (None, half))
    for wanted in golden(model.detections):
        path = photograph(shared, wanted["image"])
        for one, other in ((whole, halved), (halved, whole)):
            sure, there = one(path, 0.25)[0], other(path, 0.1)[0]
            alike = sure.labels[:, None] == there.labels
            alike &= (sure.scores[:, None] - there.scores).abs() < 0.1
            alike &= box_iou(sure.boxes, there.boxes) > 0.85
            assert alike.any(1).all(), path


def test_a_precision_that_is_none_is_refused(tmp_path):
    save_weights(small_model(), tmp_path / "x.weights")
    (tmp_path / "x.cfg").write_text(CFG.format(width=64, height=32, letter_box=0))
    with pytest.raises(ValueError, match="half: found fp8, expected one of bf16, fp16"):
        Detector(tmp_path / "x.cfg", tmp_path / "x.weights", half="fp8")


def test_a_network_of_only_its_first_layers_is_refused(shared, tmp_path):
    folder = shared / "models" / "yolov3-tiny"
    model, _ = load_network(folder / "yolov3-tiny.weights", folder / "yolov3-tiny.cfg")
    save_weights(model, tmp_path / "part.weights", upto=5)
    shutil.copy(folder / "yolov3-tiny.cfg", tmp_path)
    with pytest.raises(ValueError, match="holds 5 of 24 layers"):
        Detector(tmp_path / "yolov3-tiny.cfg", tmp_path / "part.weights")


def test_threads_that_read_leave_the_network_its_own():
    """torch counts threads for each thread that calls it: those that read take one each, this one keeps all."""
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        detector = Detector.from_model(Darknet.from_cfg("cfg/shapes.cfg"))
        read = detector._read
        detector._read = lambda source: (seen.append(torch.get_num_threads()), read(source))[1]
        detector([np.zeros((40, 60, 3), np.uint8)] * 4)
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert seen == [1] * 4 + [3] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_ctrl_c_before_the_first_picture_leaves_no_thread_waiting(monkeypatch):
    class Interrupted(threading.Barrier):
        def wait(self):
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            super().wait(30)

    monkeypatch.setattr("yolov4.predict.Barrier", Interrupted)
    before = threading.enumerate()
    with pytest.raises(KeyboardInterrupt):
        Detector.from_model(small_model())(np.zeros((40, 60, 3), np.uint8))
    begun = [thread for thread in threading.enumerate() if thread not in before]
    for thread in begun:
        thread.join(5)
    assert not any(thread.is_alive() for thread in begun)


def test_on_a_cpu_nothing_is_read_while_the_network_runs():
    detector, events = Detector.from_model(small_model()), []
    read, network = detector._read, detector.network
    detector._read = lambda source: (events.append("read"), read(source))[1]
    detector.network = lambda images: (events.append(len(images)), network(images))[1]
    assert len(list(detector.stream(pictures(5), batch=2))) == 5
    assert events == ["read", "read", 2, "read", "read", 2, "read", 1]


def test_pictures_come_to_the_network_in_its_order_in_memory(monkeypatch):
    detector, seen = Detector.from_model(Darknet.from_cfg("cfg/shapes.cfg")), []
    forward = Darknet.forward
    monkeypatch.setattr(Darknet, "forward", lambda self, images: (seen.append(images), forward(self, images))[1])
    pictures = [np.random.default_rng(n).integers(0, 256, (40, 60, 3), dtype=np.uint8) for n in range(3)]
    detector(pictures, batch=2)
    assert [len(images) for images in seen] == [2, 1]
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images in seen)
    size = detector.net.width, detector.net.height
    resized = torch.stack([resize_image(picture, size) for picture in pictures])
    assert torch.allclose(torch.cat(seen), resized, atol=1e-6)
