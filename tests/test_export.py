"""An exported .onnx gives what torch gives, for any batch, and detect.py needs nothing beside it.
Source of what is expected: yolov4.decode in torch, torchvision.ops.batched_nms, the same weights without ONNX."""

import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from real_detections import photograph
from torchvision.ops import batched_nms

from yolov4 import Darknet, Detector, decode
from yolov4.cfg import parse_cfg
from yolov4.checkpoint import load_network
from yolov4.weights import save_weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from yolov4 import export  # noqa: E402
from yolov4.runtime import OnnxNetwork  # noqa: E402

# two heads of two forms, at strides 8 and 16, a letter box, DIoU in the suppression; [implicit] needs the batch's size
CFG = """[net]
width=64
height=32
letter_box=1
[convolutional]
batch_normalize=1
filters=8
size=3
stride=8
pad=1
activation=mish
[convolutional]
filters=14
size=1
activation=linear
[yolo]
mask=0,1
anchors=10,14, 23,27, 30,20
classes=2
num=3
scale_x_y=1.1
[route]
layers=0
[maxpool]
size=2
stride=2
[implicit]
filters=8
mean=1
[scale_channels]
from=-2
[convolutional]
filters=7
size=1
activation=logistic
[yolo]
mask=2
anchors=10,14, 23,27, 30,20
classes=2
num=3
new_coords=1
scale_x_y=2.0
nms_kind=greedynms
"""
NAMES = ['Ä, "quoted"', "dog"]
THRESH, NMS_THRESH = 0.25, 0.4


def small_model() -> Darknet:
    model = Darknet(parse_cfg(CFG, "small.cfg"), torch.Generator().manual_seed(1))
    model.layers[0][1].running_var.fill_(1.0)
    return model.eval()


def random_images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 64, generator=torch.Generator().manual_seed(count))


def flat(values: torch.Tensor, *shape: int) -> torch.Tensor:
    return values.reshape(len(values), -1, *shape)


@torch.no_grad()
def in_torch(model: Darknet, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """boxes xyxy, scores, written out here once more"""
    heads = [decode(logits, head) for logits, head in zip(model(images), model.heads, strict=True)]
    boxes = torch.cat([flat(each.boxes, 4) for each in heads], 1)
    scores = torch.cat([flat(each.classes * each.objectness[..., None], 2) for each in heads], 1)
    return torch.cat((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2), -1), scores


def assert_same(found, expected, picture: np.ndarray, tolerance: float) -> None:
    """Class, box relative to the picture and score equal as sets: those of nearly one score may change places."""
    scale = torch.tensor(picture.shape[1::-1] * 2)
    rows = [torch.cat((e.labels[:, None], e.boxes / scale, e.scores[:, None]), 1) for e in (found, expected)]
    assert len(rows[0]) == len(rows[1])
    if len(rows[0]):
        away = torch.cdist(*rows, p=torch.inf)
        assert max(away.amin(0).max(), away.amin(1).max()) < tolerance


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The small network as .onnx without and with NMS, and as .weights with cfg and names."""
    folder = tmp_path_factory.mktemp("export")
    model = small_model()
    save_weights(model, folder / "small.weights", seen=0)
    (folder / "small.cfg").write_text(CFG)
    (folder / "small.names").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")
    plain, suppressed = folder / "plain.onnx", folder / "suppressed.onnx"
    export.export_onnx(small_model(), plain, NAMES)
    export.export_onnx(small_model(), suppressed, NAMES, export.Suppression(THRESH, NMS_THRESH))
    return {"plain": plain, "suppressed": suppressed, "weights": folder / "small.weights", "cfg": folder / "small.cfg"}


@pytest.fixture
def pictures():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (40 + 9 * i, 90 - 7 * i, 3), np.uint8) for i in range(3)]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_any_batch_gives_what_torch_gives(files, batch):
    images = random_images(batch)
    found = OnnxNetwork(files["plain"])(images)
    for values, expected in zip(found, in_torch(small_model(), images), strict=True):
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)


def test_the_graph_says_its_shapes_and_predictions_lie_in_the_documented_order(files):
    network = OnnxNetwork(files["plain"])
    shapes = [value.shape for value in (*network.session.get_inputs(), *network.session.get_outputs())]
    assert shapes == [["batch", 3, 32, 64], ["batch", 72, 4], ["batch", 72, 2]]
    boxes, _ = network(random_images(1))
    # 2 anchors of 4 x 8 cells, then 1 of 2 x 4
    centres = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2
    # prediction 11 is anchor 0, row 1, column 3: within scale_x_y of its cell
    assert (centres[11] * torch.tensor([8.0, 4.0]) - torch.tensor([3.5, 1.5])).abs().max() < 0.56


def test_nms_in_the_graph_keeps_what_torchvision_keeps(files):
    images = random_images(3)
    boxes, scores = in_torch(small_model(), images)
    numbers, rows, labels = (scores > THRESH).nonzero(as_tuple=True)
    best, group = scores[numbers, rows, labels], numbers * 2 + labels
    kept = batched_nms(boxes[numbers, rows], best, group, NMS_THRESH)  # by falling score
    kept = kept[group[kept].argsort(stable=True)]
    assert 6 < len(kept) < len(best)
    found = OnnxNetwork(files["suppressed"])(images)
    for values, expected in zip(found, (boxes[numbers, rows], best, labels, numbers), strict=True):
        torch.testing.assert_close(values, expected[kept], atol=1e-5, rtol=1e-5)


def test_detector_of_the_file_finds_what_the_weights_find(files, pictures):
    exported, original = Detector(weights=files["plain"]), Detector(files["cfg"], files["weights"])
    assert exported.letter_box and exported.names == NAMES
    assert sum(len(each.scores) for each in original(pictures, 0.2)) > 10
    for options in ({}, {"batch": 3}, {"nms_thresh": 0}, {"thresh": 0.28}):
        both = [detector(pictures, **{"thresh": 0.2} | options) for detector in (exported, original)]
        for found, expected, picture in zip(*both, pictures, strict=True):
            assert_same(found, expected, picture, 1e-5)


def test_detector_of_a_file_with_nms_takes_its_thresholds_and_stricter_ones(files, pictures):
    detector = Detector(weights=files["suppressed"])
    loose, strict = (detector(pictures, thresh, NMS_THRESH) for thresh in (THRESH, 0.28))
    for all_found, found in zip(loose, strict, strict=True):
        assert (all_found.scores.diff() <= 0).all()
        assert found.scores.tolist() == [score for score in all_found.scores.tolist() if score > 0.28]
    assert 0 < sum(len(each.scores) for each in strict) < sum(len(each.scores) for each in loose)
    for thresh, nms_thresh in ((0.2, NMS_THRESH), (THRESH, 0.45)):
        with pytest.raises(ValueError, match=r"thresh 0\.25 and nms 0\.4, but"):
            detector(pictures, thresh, nms_thresh)


def test_metadata_tell_other_readers_what_they_need(files):
    written = {each.key: each.value for each in onnx.load(files["suppressed"]).metadata_props}
    assert (written["cfg_name"], written["width"], written["height"]) == ("small.cfg", "64", "32")
    assert (written["letter_box"], written["nms_kind"], written["beta_nms"]) == ("1", "greedynms", "0.6")
    assert (float(written["thresh"]), float(written["nms_thresh"])) == (THRESH, NMS_THRESH)
    assert OnnxNetwork(files["suppressed"]).heads == small_model().heads
    assert OnnxNetwork(files["plain"]).suppression is None


def test_the_script_prints_the_difference_and_detect_runs_the_file(files, root, tmp_path):
    def call(script, *arguments):
        command = [sys.executable, root / script, *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)

    out = tmp_path / "out" / "small.onnx"
    done = call("export.py", files["weights"], out)
    assert (done.returncode, done.stderr) == (0, "") and out.exists()
    boxes, scores = map(float, re.search(r"differ by (\S+) in boxes and (\S+) in scores", done.stdout).groups())
    assert 0 <= boxes < 1e-5 and 0 <= scores < 1e-5
    assert len(done.stdout.splitlines()) == 3
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(1).integers(0, 256, (50, 60, 3), np.uint8))
    done = call("detect.py", "a.png", "--weights", out, "--thresh", "0.2", "--save-txt")
    assert (done.returncode, done.stderr) == (0, "") and "dog: " in done.stdout
    assert (tmp_path / "runs/detect/labels/a.txt").read_text()


def test_a_difference_is_an_error_and_leaves_the_old_file(tmp_path, monkeypatch):
    class Wrong(export.OnnxNetwork):
        def __call__(self, images):
            boxes, scores = super().__call__(images)
            return [boxes, scores + 0.01 * (len(images) == 1)]

    monkeypatch.setattr(export, "OnnxNetwork", Wrong)
    (tmp_path / "x.onnx").write_text("before")
    with pytest.raises(
        ValueError, match=r"x\.onnx: in ONNX Runtime boxes differ by \S+ and scores by 0\.01 from torch"
    ):
        export.export_onnx(small_model(), tmp_path / "x.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"] and (tmp_path / "x.onnx").read_text() == "before"


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", None])
def test_what_export_did_not_write_is_one_sentence(tmp_path, content):
    path = tmp_path / "foreign.onnx"
    if content is None:
        onnx.save(
            onnx.parser.parse_model(
                '<ir_version: 8, opset_import: ["": 18]> g (float[1] x) => (float[1] y) {y = Neg(x)}'
            ),
            path,
        )
    else:
        path.write_bytes(content)
    expected = (
        "cannot read it" if content is not None else "has no cfg, cfg_name, names .*, expected a file by export.py"
    )
    with pytest.raises(ValueError, match=rf"foreign\.onnx: .*{expected}") as error:
        Detector(weights=path)
    assert "\n" not in str(error.value)


def test_missing_packages_are_named(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r'needs ONNX Runtime, expected pip install -e "\.\[onnx\]"'):
        Detector(weights=files["plain"])
    monkeypatch.setattr(export, "find_spec", lambda package: None if package == "onnxscript" else package)
    with pytest.raises(ValueError, match=r'needs onnxscript, expected pip install -e "\.\[onnx\]"'):
        export.export_onnx(small_model(), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_without_onnx_runtime_it_is_written_and_said_to_be_unchecked(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda package: None if package == "onnxruntime" else package)
    exported = export.export_onnx(small_model(), tmp_path / "x.onnx")
    assert exported == (72, None, None) and OnnxNetwork(tmp_path / "x.onnx").net.width == 64


def test_other_scripts_and_settings_refuse_the_file(files, root):
    done = subprocess.run([sys.executable, root / "val.py", "--images", "x", "--weights", files["plain"]],
                          check=False, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1 and "expected .weights or .pt" in done.stderr and done.stderr.count("\n") == 1
    for options in ({"cfg": files["cfg"]}, {"device": "cuda"}, {"compiled": True}, {"half": "bf16"}):
        with pytest.raises(ValueError, match="expected no other cfg, device, compiler"):
            Detector(weights=files["plain"], **options)


@pytest.mark.parametrize("name", ["yolov3-tiny/yolov3-tiny", "yolov4-tiny-apple/yolov4-tiny-apple"])
def test_real_pictures_as_without_onnx(shared, tmp_path, name):
    weights = shared / "models" / f"{name}.weights"
    model, names = load_network(weights, next(weights.parent.glob("*.cfg")))
    original = Detector.from_model(model, names)
    export.export_onnx(model, tmp_path / "x.onnx", names)
    exported = Detector(weights=tmp_path / "x.onnx")
    for picture in ("dog.jpg", "person.jpg", "applemosaic.png"):
        path = photograph(shared, picture)
        assert_same(exported(path)[0], original(path)[0], cv2.imread(str(path)), 1e-3)
