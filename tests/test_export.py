"""An exported .onnx gives what torch gives, for any batch, and detect.py needs nothing beside it.
Source: yolov4.decode in torch, torchvision.ops.batched_nms, the same weights without ONNX."""

import re
import subprocess
import sys
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
import torch
from conftest import settled
from real_detections import photograph
from torchvision.ops import batched_nms, box_convert

from yolov4 import Darknet, Detector, decode, evaluate, labels
from yolov4.cfg import parse_cfg
from yolov4.data import read_image_list
from yolov4.weights import load_network, save_weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from yolov4 import export
from yolov4.export import OnnxNetwork

# two heads of two forms, at strides 8 and 16, letter box, DIoU in NMS
CFG = """[net] width=64 height=32 letter_box=1
[convolutional] batch_normalize=1 filters=8 size=3 stride=8 pad=1 activation=mish
[convolutional] batch_normalize=1 filters=8 activation=mish
[convolutional] filters=14 activation=linear
[yolo] mask=0,1 anchors=10,14,23,27,30,20 classes=2 num=3 scale_x_y=1.1
[route] layers=1
[maxpool] size=2 stride=2
[convolutional] filters=7 activation=logistic
[yolo] mask=2 anchors=10,14,23,27,30,20 classes=2 num=3 new_coords=1 scale_x_y=2.0
nms_kind=greedynms
""".replace(" ", "\n")
WITHOUT = pytest.mark.skipif(not find_spec("openvino"), reason="needs OpenVINO")
engines = pytest.mark.parametrize("openvino", [False, pytest.param(True, marks=WITHOUT)])
NAMES = ['Ä, "quoted"', "dog"]
THRESH, NMS_THRESH = 0.25, 0.4


def small_model() -> Darknet:
    return settled(Darknet(parse_cfg(CFG, "small.cfg"), torch.Generator().manual_seed(1))).eval()


def random_images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 64, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def in_torch(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """boxes xyxy, scores, written out here once more"""
    model = small_model()
    heads = [decode(logits, head) for logits, head in zip(model(images), model.heads, strict=True)]
    boxes = torch.cat([each.boxes.flatten(1, 3) for each in heads], 1)
    scores = [(each.classes * each.objectness[..., None]).flatten(1, 3) for each in heads]
    return box_convert(boxes, "cxcywh", "xyxy"), torch.cat(scores, 1)


def assert_close(found, expected, tolerance: float = 1e-5) -> None:
    for values, others in zip(found, expected, strict=True):
        torch.testing.assert_close(values, others, atol=tolerance, rtol=tolerance)


def assert_same(found, expected, image: np.ndarray, tolerance: float) -> None:
    """Class, box relative to the image and score equal as sets: equal scores may change places."""
    scale = torch.tensor(image.shape[1::-1] * 2)
    rows = [torch.cat((e.labels[:, None], e.boxes / scale, e.scores[:, None]), 1)
            for e in (found, expected)]  # fmt: skip
    assert len(rows[0]) == len(rows[1])
    if len(rows[0]):
        apart = torch.cdist(*rows, p=torch.inf)
        assert max(apart.amin(0).max(), apart.amin(1).max()) < tolerance


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The small network as .onnx without and with NMS, and as .weights with cfg and names."""
    folder = tmp_path_factory.mktemp("export")
    save_weights(small_model(), folder / "small.weights", seen=0)
    (folder / "small.cfg").write_text(CFG)
    (folder / "small.names").write_text("\n".join(NAMES), encoding="utf-8")
    export.export_onnx(small_model(), folder / "plain.onnx", NAMES)
    suppression = export.Suppression(THRESH, NMS_THRESH)
    export.export_onnx(small_model(), folder / "suppressed.onnx", NAMES, suppression)
    return folder


@pytest.fixture
def pictures():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (40 + 9 * i, 90 - 7 * i, 3), np.uint8) for i in range(3)]


@engines
def test_any_batch_gives_what_torch_gives_in_the_documented_order(files, openvino):
    network = OnnxNetwork(files / "plain.onnx", openvino=openvino)
    for batch in (1, 2, 3):
        assert_close(network(random_images(batch)), in_torch(random_images(batch)))
    graph = onnx.load(files / "plain.onnx").graph
    shapes = [value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output)]
    sizes = [[each.dim_param or each.dim_value for each in shape] for shape in shapes]
    assert sizes == [["batch", 3, 32, 64], ["batch", 72, 4], ["batch", 72, 2]]
    # prediction 11 is anchor 0, row 1, column 3 of 8: within scale_x_y of its cell
    box = network(random_images(1))[0][0, 11]
    centre = (box[:2] + box[2:]) / 2 * torch.tensor([8.0, 4.0])
    assert (centre - torch.tensor([3.5, 1.5])).abs().max() < 0.56


@engines
def test_nms_in_the_graph_keeps_what_torchvision_keeps(files, openvino):
    boxes, scores = in_torch(random_images(3))
    index, rows, labels = (scores > THRESH).nonzero(as_tuple=True)
    boxes, best, group = boxes[index, rows], scores[index, rows, labels], index * 2 + labels
    kept = batched_nms(boxes, best, group, NMS_THRESH)  # by falling score
    kept = kept[group[kept].argsort(stable=True)]
    assert 6 < len(kept) < len(best)
    expected = [values[kept] for values in (boxes, best, labels, index)]
    network = OnnxNetwork(files / "suppressed.onnx", openvino=openvino)
    assert_close(network(random_images(3)), expected)


FREED_ELSEWHERE = """
import os, signal, sys, threading
from yolov4.export import OnnxNetwork
networks = [OnnxNetwork(sys.argv[1])]
thread = threading.Thread(target=networks.clear)
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda *_: print("taken"))
os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_signal_is_taken_after_another_thread_freed_the_network(files):
    command = [sys.executable, "-c", FREED_ELSEWHERE, files / "plain.onnx"]
    assert subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout == b"taken\n"


def test_detector_of_the_file_finds_what_the_weights_find(files, pictures):
    exported = Detector(weights=files / "plain.onnx")
    original = Detector(files / "small.cfg", files / "small.weights")
    assert exported.letter_box and exported.names == NAMES
    assert sum(len(each) for each in original(pictures, 0.2)) > 10
    for options in ({}, {"nms_thresh": 0.3}, {"nms_thresh": 0}, {"thresh": 0.28}):
        options = {"thresh": 0.2} | options
        both = exported(pictures, **options), original(pictures, **options)
        for each in zip(*both, pictures, strict=True):
            assert_same(*each, 1e-5)


def test_detector_of_a_file_with_nms_takes_its_thresholds_and_stricter_ones(files, pictures):
    detector = Detector(weights=files / "suppressed.onnx")
    loose, strict = (detector(pictures, thresh, NMS_THRESH) for thresh in (THRESH, 0.28))
    for all_found, found in zip(loose, strict, strict=True):
        assert (all_found.scores.diff() <= 0).all()
        assert torch.equal(found.scores, all_found.scores[all_found.scores > 0.28])
    assert 0 < sum(map(len, strict)) < sum(map(len, loose))
    for thresh, nms_thresh in ((0.2, NMS_THRESH), (THRESH, 0.45)):
        with pytest.raises(ValueError, match=r"suppressed\.onnx: found thresh"):
            detector(pictures, thresh, nms_thresh)


def test_the_script_prints_the_difference_and_detect_runs_the_file(call, files, tmp_path, pictures):
    code, printed, _ = call("export.py", files / "small.weights", "out/small.onnx")
    found = re.search(r"differ by (\S+) in boxes and (\S+) in scores", printed).groups()
    assert code == 0 and all(0 <= float(each) < 1e-5 for each in found)
    cv2.imwrite(str(tmp_path / "a.png"), pictures[0])
    call("detect.py", "a.png", "--weights", "out/small.onnx", "--thresh", 0.2, "--save-txt")
    assert (tmp_path / "runs/detect/labels/a.txt").read_text()


def test_a_difference_is_an_error_and_leaves_the_old_file(tmp_path, monkeypatch):
    class Wrong(export.OnnxNetwork):
        def __call__(self, images):
            boxes, scores = super().__call__(images)
            return [boxes, scores + 0.01 * (len(images) == 1)]

    monkeypatch.setattr(export, "OnnxNetwork", Wrong)
    (tmp_path / "x.onnx").write_text("before")
    with pytest.raises(ValueError, match=r"x\.onnx: boxes .* scores by 0\.01"):
        export.export_onnx(small_model(), tmp_path / "x.onnx")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", None])
def test_what_export_did_not_write_is_one_sentence(tmp_path, content):
    text = '<ir_version: 8, opset_import: ["": 18]> g (float[1] x) => (float[1] y) {y = Neg(x)}'
    foreign = onnx.parser.parse_model(text).SerializeToString()
    (tmp_path / "foreign.onnx").write_bytes(foreign if content is None else content)
    with pytest.raises(ValueError, match=r"foreign\.onnx: (has no cfg|cannot be run)") as error:
        Detector(weights=tmp_path / "foreign.onnx")
    assert "\n" not in str(error.value)


def not_a_number(model):
    weight = next(each for each in model.graph.initializer if "layers.0" in each.name)
    weight.raw_data = np.full(len(weight.raw_data) // 4, np.nan, np.float32).tobytes()


def not_a_number_in_a_constant(model):
    values = onnx.numpy_helper.from_array(np.full(2, np.inf, np.float32))
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["x"], value=values))


def endless(model):
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("Loop", ["", ""], [], body=body))


def of_another_size(model):
    next(each for each in model.metadata_props if each.key == "cfg").value = CFG.replace(
        "64", "128"
    )


def of_names_elsewhere(model):
    next(each for each in model.metadata_props if each.key == "names").value = '"/etc/passwd"'


def elsewhere(model):
    (values,) = [each for each in model.graph.initializer if "layers.0" in each.name]
    onnx.external_data_helper.set_external_data(values, "secret.bin")
    values.ClearField("raw_data")


def of_other_names(model):
    next(each for each in model.metadata_props if each.key == "names").value = "5"


def without_thresh(model):
    model.metadata_props.add(key="nms_thresh", value="0.4")


def of_other_outputs(model):
    del model.graph.output[1:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("boxes", 1, None))


HOSTILE = {
    not_a_number: r"layer 0\.0\.weight",
    not_a_number_in_a_constant: "a constant is not finite",
    endless: "loop",
    of_another_size: "inputs",
    of_names_elsewhere: "metadata",
    elsewhere: "in another file",
    of_other_names: "metadata",
    without_thresh: "metadata.*thresh",
    of_other_outputs: "do not fit",
}


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_a_hostile_file_is_one_sentence(files, tmp_path, pictures, change):
    model = onnx.load(files / "plain.onnx")
    change(model)
    (tmp_path / "hostile.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=rf"hostile\.onnx: .*{HOSTILE[change]}") as error:
        Detector(weights=tmp_path / "hostile.onnx")(pictures)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("output", ["labels", "image_index"])
def test_an_output_beyond_the_classes_or_the_batch_is_refused(files, tmp_path, pictures, output):
    model = onnx.load(files / "suppressed.onnx")
    node = next(node for node in model.graph.node if node.output[0] == output)
    node.output[0] = "before"
    nine = onnx.helper.make_tensor("nine", onnx.TensorProto.INT64, [], [9])
    model.graph.initializer.append(nine)
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "nine"], [output]))
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=r"x\.onnx: .*do not fit"):
        Detector(weights=tmp_path / "x.onnx")(pictures, THRESH, NMS_THRESH)


@pytest.mark.parametrize("name", ["yolov3-tiny", "yolov4-tiny-apple"])
def test_real_pictures_as_without_onnx(shared, tmp_path, name):
    weights = shared / f"models/{name}/{name}.weights"
    model, names = load_network(weights, next(weights.parent.glob("*.cfg")))
    original = Detector.from_model(model, names)
    export.export_onnx(model, tmp_path / "x.onnx", names)
    exported = Detector(weights=tmp_path / "x.onnx")
    for picture in ("dog.jpg", "applemosaic.png"):
        path = photograph(shared, picture)
        assert_same(exported(path)[0], original(path)[0], cv2.imread(str(path)), 1e-3)


@WITHOUT
def test_half_precision_is_of_openvino_and_of_bf16_alone(files, monkeypatch):
    image = np.zeros((32, 64, 3), np.uint8)
    (found,) = Detector(weights=files / "plain.onnx", half="bf16")(image, 0.01)
    (wanted,) = Detector(weights=files / "plain.onnx")(image, 0.01)
    assert_same(found, wanted, image, 0.02)
    with pytest.raises(ValueError, match=r"plain\.onnx: .* fp16"):
        Detector(weights=files / "plain.onnx", half="fp16")
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"plain\.onnx: .*OpenVINO"):
        Detector(weights=files / "plain.onnx", half="bf16")


@WITHOUT
@pytest.mark.parametrize("flags", [[], ["--nms"]])
def test_int8_is_measured_on_the_list_and_runs_in_both_engines(
    call, files, tmp_path, pictures, flags
):
    pytest.importorskip("nncf")
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
        (tmp_path / f"{number}.txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "list.txt").write_text("0.png\n1.png\n2.png\n")
    code, printed, _ = call(
        "export.py", files / "small.weights", "x.onnx", "--int8", "list.txt", *flags
    )
    assert code == 0 and len(re.findall(r"mAP@0\.50 \S+% on list\.txt, \S+ ms", printed)) == 2
    graph = onnx.load(tmp_path / "x.onnx").graph
    zeros = [node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"]
    kinds = {each.data_type for each in graph.initializer if each.name in zeros}
    assert kinds == {onnx.TensorProto.UINT8}  # OpenVINO computes in float with others
    fed = {name for node in graph.node if node.op_type == "Conv" for name in node.input}
    assert {"model.layers.2.0.weight", "model.layers.6.0.weight"} <= fed  # in float
    assert not {"model.layers.0.0.weight", "model.layers.1.0.weight"} & fed
    for openvino in (False, True):
        found = OnnxNetwork(tmp_path / "x.onnx", openvino=openvino)(random_images(2))
        if not flags:
            assert_close(found, in_torch(random_images(2)), 0.05)


def test_int8_keeps_the_map_of_pictures_that_it_was_not_made_with(shared, tmp_path):
    pytest.importorskip("nncf")
    labels.convert([shared / "datasets/voc2012_100/VOCdevkit"], tmp_path / "voc")
    paths = read_image_list(tmp_path / "voc/train.all.txt")
    name = "MobileNetV2-YOLOv3-Nano-voc"
    weights = shared / f"models/{name}/{name}.weights"
    model, names = load_network(weights, weights.with_suffix(".cfg"))
    export.export_onnx(model, tmp_path / "x.onnx", names)
    detector = Detector(weights=tmp_path / "x.onnx")
    before = evaluate(detector, paths[40:]).map
    export.quantise(tmp_path / "x.onnx", paths[:40], lambda path: detector.read(path)[3])
    after = evaluate(Detector(weights=tmp_path / "x.onnx"), paths[40:]).map
    assert before > 0.75 and after > before - 0.02
