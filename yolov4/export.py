"""A network with its decoding as an .onnx for any batch, also in int8, and what runs such a file.
Source: ONNX's operators, opset 18 (NonMaxSuppression, GatherND), metadata_props; NNCF."""

import json
import logging
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from yolov4.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from yolov4.cfg import format_cfg, names_of_classes, parse_cfg
from yolov4.decoding import class_scores, decode, detections_from_candidates
from yolov4.files import read_text, replacing
from yolov4.graph import find_heads, plan_layers
from yolov4.model import Darknet
from yolov4.weights import largest_difference, load_network

INSTALL = 'pip install -e ".[onnx]"'
OPSET = 18  # what torch's exporter writes by itself; a higher one is converted
LIMIT = 1e-3  # rounding gives the whole YOLOv4 1e-4, a wrong layer is far above
# Behind boxes_all (batch, N, 4) and scores_all (batch, N, C).  chosen (n, 3) holds image, class and
# box of each.
NMS = """<ir_version: 10, opset_import: ["": 18]>
main_graph (float[batch, N, 4] boxes_all, float[batch, N, C] scores_all)
=> (float[n, 4] boxes, float[n] scores, int64[n] labels, int64[n] image_index)
<int64[1] most = {{{most}}}, float[1] iou = {{{nms_thresh:.9f}}}, float[1] least = {{{thresh:.9f}}},
 int64[1] one = {{1}}> {{
    by_class = Transpose<perm = [0, 2, 1]>(scores_all)
    chosen = NonMaxSuppression(boxes_all, by_class, most, iou, least)
    images_of, classes_of, boxes_of = Split<axis = 1, num_outputs = 3>(chosen)
    indices = Concat<axis = 1>(images_of, boxes_of)
    boxes = GatherND(boxes_all, indices)
    scores = GatherND(by_class, chosen)
    labels = Squeeze(classes_of, one)
    image_index = Squeeze(images_of, one)
}}"""


class Suppression(NamedTuple):
    """NMS in the graph: plain IoU within a class, whatever the cfg's nms_kind is."""

    thresh: float = 0.25  # of the score
    nms_thresh: float = 0.45  # of the IoU


class Exported(NamedTuple):
    """What `export_onnx` wrote: predictions per image, and the largest differences from torch."""

    predictions: int
    boxes: float
    scores: float


class OtherNetwork:
    """A network in another program: images (B, C, h, w) float, of the cfg's size -> boxes (B, N, 4)
    xyxy relative to the network input, scores (B, N, classes).

    Attributes: net and heads, of its cfg; names; suppression, None without NMS in its graph.
    """

    names = suppression = None

    def read(self, text, name):
        network = parse_cfg(text, name)
        self.net, self.heads = network.net, find_heads(network, plan_layers(network))

    def detections(self, images, image_sizes, thresh, nms_thresh, letter_box):
        """As `detections_from_logits`.  Raises ValueError where NMS in the graph has a higher
        thresh or another nms_thresh."""
        if self.suppression is None:
            boxes, scores = self(images)
            index, rows, labels = (scores > thresh).nonzero(as_tuple=True)
            boxes, scores = boxes[index, rows], scores[index, rows, labels]
        else:
            least, fixed = self.suppression
            if thresh < least or nms_thresh != fixed:
                raise ValueError(
                    f"{self.path}: found thresh {thresh:g} and nms {nms_thresh:g}, but NMS in its "
                    f"graph has thresh {least:g} and nms {fixed:g}"
                )
            nms_thresh, (boxes, scores, labels, index) = 0, self(images)
            rows = boxes.unique(dim=0, return_inverse=True)[1]  # the classes of a box share it
        columns, head = (index, xyxy_to_cxcywh(boxes), scores, labels, rows), self.heads[-1]
        above = [each[scores > thresh] for each in columns]  # all of them without NMS in the graph
        return detections_from_candidates(
            above, head, image_sizes, head.size, nms_thresh, letter_box
        )


class OpenCvNetwork(OtherNetwork):
    """.cfg and .weights in OpenCV's Darknet importer, which OpenCV 5 has no more.
    Raises ValueError without it, and for what it refuses."""

    def __init__(self, cfg, weights):
        if not hasattr(cv2.dnn, "readNetFromDarknet"):
            raise ValueError(
                f"OpenCV {cv2.__version__} reads no Darknet files: opencv-python<5 does"
            )
        text = read_text(cfg)
        self.read(text, str(cfg))
        text = text.replace("[yolo]", "[yolo]\nthresh=0")  # or scores below 0.2 become 0
        files = np.frombuffer(text.encode(), np.uint8), np.fromfile(weights, np.uint8)
        try:
            self.opencv = cv2.dnn.readNetFromDarknet(*files)
        except cv2.error as error:
            raise ValueError(
                f"{cfg}: OpenCV {cv2.__version__} cannot run it: {error.err}"
            ) from None

    def __call__(self, images):
        rows, outputs = [], [f"yolo_{head.index}" for head in self.heads]
        for image in images.float():
            self.opencv.setInput(image[None].contiguous().numpy())
            for head, found in zip(self.heads, self.opencv.forward(outputs), strict=True):
                # by cell and anchor -> by anchor and cell
                rows.extend(found.reshape(-1, len(head.anchors), 5 + head.classes).swapaxes(0, 1))
        rows = torch.from_numpy(np.concatenate(rows)).unflatten(0, (len(images), -1))
        return cxcywh_to_xyxy(rows[..., :4]), rows[..., 5:]


@torch.no_grad()
def opencv_difference(cfg, weights, images):
    """The largest difference between our boxes and scores and those of OpenCV's Darknet importer,
    for images (B, C, h, w) of the cfg's size, with its epsilon of batch normalisation, 1e-6.
    Raises ValueError as `OpenCvNetwork`."""
    theirs = OpenCvNetwork(cfg, weights)(images)
    model, _ = load_network(weights, cfg)
    for module in model.eval().modules():
        module.eps = 1e-6  # only batch normalisation looks at it
    pairs = zip(theirs, Decoding(model)(images), strict=True)
    return max(largest_difference(their.numpy(), our.numpy()) for their, our in pairs)


class OnnxNetwork(OtherNetwork):
    """A file by `export_onnx` on the CPU: in OpenVINO where it is installed, else in ONNX Runtime.

    half: "bf16", which OpenVINO then computes in.  engine: the name and version of what runs it.
    Raises ValueError without either, and for any other file."""

    def __init__(self, path, half=None, openvino=None):
        self.path = path
        content = Path(path).read_bytes()  # the engines have trouble with some paths
        try:
            inputs = _checked(content)
            if find_spec("openvino") if openvino is None else openvino:
                self.engine, self.run, written = _openvino(content, half)
            else:
                self.engine, self.run, written = _onnxruntime(content, half)
        except Exception as error:  # a class of its own for each reason, none of them public
            reason = str(error).strip().partition("\n")[0][:160] or type(error).__name__
            raise ValueError(f"{path}: cannot be run: {reason}") from None
        if "cfg" not in written:
            raise ValueError(f"{path}: has no cfg in its metadata, expected a file by export.py")
        self.read(written["cfg"], f"{path}, its cfg")
        expected = [[self.net.channels, self.net.height, self.net.width]]
        if inputs != expected:
            raise ValueError(f"{path}: found inputs {inputs}, expected {expected} as in its cfg")
        try:
            self.names = json.loads(written["names"])
            if not (self.heads and isinstance(self.names, list)):
                raise ValueError("no [yolo], or names that are no list")
            if "nms_thresh" in written:
                fields = Suppression._fields
                self.suppression = Suppression(*(float(written[key]) for key in fields))
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            expected = "expected those of export.py"
            raise ValueError(f"{path}: wrong metadata ({error!r}), {expected}") from None

    def __call__(self, images):
        """images (B, C, h, w) float, of the cfg's size -> the outputs that `export_onnx` names.
        Raises ValueError for others."""
        batch, classes = len(images), self.heads[-1].classes
        try:
            outputs = self.run(images.contiguous().numpy())
            found = boxes, scores, *rest = list(map(torch.from_numpy, outputs))
            count, each = (len(scores),), (batch, boxes.numel() // (4 * batch))
            expected = [(*each, 4), (*each, classes)]
            if self.suppression:
                expected = [(*count, 4), count, count, count]
            inside = all(
                ((values >= 0) & (values < limit)).all()
                for values, limit in zip(rest, (classes, batch), strict=False)
            )
            if [tuple(values.shape) for values in found] != expected or not inside:
                raise ValueError(f"outputs that do not fit {classes} classes, {batch} images")
        except Exception as error:  # those of the engines too
            reason = str(error).partition("\n")[0][:160]
            raise ValueError(f"{self.path}: cannot be run: {reason}") from None
        return found


def _onnxruntime(content, half):
    """The name of the engine, run(images) -> outputs, and the metadata of an .onnx."""
    if half:
        raise ValueError("half precision needs OpenVINO: pip install openvino")
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("needs OpenVINO or ONNX Runtime: pip install openvino onnx") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    written = session.get_modelmeta().custom_metadata_map
    engine = f"ONNX Runtime {onnxruntime.__version__}"
    return engine, lambda images: session.run(None, {"images": images}), written


@cache
def _core():
    """OpenVINO until the process ends: with its last network, and perhaps in another thread, it
    would free the stack on which it lets this thread take signals, such as Ctrl-C."""
    import openvino

    return openvino.Core()


def _openvino(content, half):
    """The same in OpenVINO: one image with all cores, several side by side."""
    import openvino

    model = _core().read_model(content)
    written, lock = dict(model.get_rt_info()).get("framework", {}), Lock()
    model.reshape([1, *model.input().partial_shape[1:]])

    @cache
    def queue(hint):
        hints = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": half or "f32"}
        return openvino.AsyncInferQueue(_core().compile_model(model, "CPU", hints))

    def run(images):
        found = [None] * len(images)

        def keep(request, number):
            found[number] = [tensor.data.copy() for tensor in request.output_tensors]
            for image_index in found[number][3:]:  # of NMS in the graph
                image_index += number

        with lock:
            requests = queue("LATENCY" if len(images) == 1 else "THROUGHPUT")
            requests.set_callback(keep)
            for number in range(len(images)):
                requests.start_async(images[number : number + 1], number)
            requests.wait_all()
        return [*map(np.concatenate, zip(*found, strict=True))]

    queue("LATENCY")
    engine = f"OpenVINO {openvino.__version__.partition('-')[0]}{', ' * bool(half)}{half or ''}"
    return engine, run, {key: value.astype(str) for key, value in written.items()}


def _checked(content):
    """The shapes of the inputs without the batch.  Raises ValueError for loops, which may never
    end, and for weights that are no numbers, or not in the file itself."""
    import onnx

    model = onnx.load_model_from_string(content)
    nodes = [*model.graph.node, *(node for each in model.functions for node in each.node)]
    attributes = [each for node in nodes for each in node.attribute]
    if any(each.HasField("g") for each in attributes):
        raise ValueError("found a loop or a branch in its graph, expected none")
    constants = [each.t for each in attributes if each.HasField("t")]
    for tensor in (*model.graph.initializer, *constants):
        if onnx.external_data_helper.uses_external_data(tensor):
            raise ValueError(f"{tensor.name} is in another file, expected it in this one")
        values = onnx.numpy_helper.to_array(tensor)
        if values.size > 1 and not np.isfinite(values).all():  # a single one pads for the maximum
            name = tensor.name.replace("model.layers.", "layer ") or "a constant"
            raise ValueError(f"{name} is not finite")
    shapes = (each.type.tensor_type.shape.dim[1:] for each in model.graph.input)
    return [[side.dim_value for side in shape] for shape in shapes]


class Decoding(nn.Module):
    """A network with its decoding.  images: (B, C, h, w) float RGB 0..1 of the cfg's size.

    Returns boxes (B, N, 4), xyxy relative to the network input and not clipped to it, and scores
    (B, N, classes) as `class_scores`; heads one after the other, in each by anchor, row and column.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        decoded = list(map(decode, self.model(images), self.model.heads))
        boxes = torch.cat([each.boxes.flatten(1, 3) for each in decoded], 1)
        scores = torch.cat([class_scores(each).flatten(1, 3) for each in decoded], 1)
        return cxcywh_to_xyxy(boxes), scores


@torch.no_grad()
def export_onnx(
    model: Darknet,
    path: str | Path,
    names: Sequence[str] | None = None,
    suppression: Suppression | None = None,
) -> Exported:
    """Writes a network at the cfg's size; it is fused by that, and moved to the CPU.

    The graph: images (batch, C, h, w) -> boxes, scores as `Decoding`; with suppression -> boxes
    (n, 4), scores (n,), labels (n,), image_index (n,), by image, class and falling score.  The
    metadata hold the cfg and names.  ONNX Runtime and torch are compared on batches of 1 and 2.
    Raises ValueError without the packages, and for a difference above LIMIT; `path` is then as it
    was.
    """
    packages = "onnx", "onnxscript", "onnxruntime"
    if missing := [package for package in packages if not find_spec(package)]:
        raise ValueError(f"{path}: needs {', '.join(missing)}: {INSTALL}")
    import onnx

    names = names_of_classes(names, model.heads[-1].classes, path)
    metadata = {"cfg": format_cfg(model.net, model.sections)}
    metadata["names"] = json.dumps(names, ensure_ascii=False)
    decoding, seed = Decoding(model.fuse()).cpu(), torch.Generator().manual_seed(0)
    images = torch.rand(2, *model.plan[0].input_shape, generator=seed)
    expected = decoding(images)
    predictions = expected[0].shape[1]
    exported = _trace(decoding, images, "_all" if suppression else "")
    onnx.helper.set_model_props(exported, metadata)
    with replacing(path) as beside:
        onnx.save(exported, beside)
        network = OnnxNetwork(beside, openvino=False)
        found = zip(expected, network(images), network(images[:1]), strict=True)
        boxes, scores = (
            largest_difference(torch.cat((two, one)).numpy(), wanted[[0, 1, 0]].numpy())
            for wanted, two, one in found
        )
        if max(boxes, scores) > LIMIT:
            raise ValueError(
                f"{path}: boxes in ONNX Runtime differ from torch by {boxes:.2g}, scores by "
                f"{scores:.2g}, expected at most {LIMIT:g}"
            )
        if suppression:
            text = NMS.format(most=predictions, **suppression._asdict())
            nms = onnx.parser.parse_model(text).graph
            del exported.graph.output[:], nms.input[:]
            for number, node in enumerate(nms.node):
                node.name = f"nms_{number}"  # NNCF looks for nodes by name
            exported.graph.MergeFrom(nms)
            metadata |= zip(Suppression._fields, map(str, suppression), strict=True)
            onnx.helper.set_model_props(exported, metadata)
            onnx.save(exported, beside)
            OnnxNetwork(beside, openvino=False)(images)
    return Exported(predictions, boxes, scores)


def _trace(decoding, images, suffix):
    """-> onnx.ModelProto for any batch, with outputs `boxes` and `scores`, and a suffix"""
    from onnxscript.optimizer import optimize

    batch = torch.export.Dim("batch", max=1 << 16)  # torch 2.6 takes no unbounded one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            decoding, (images,), dynamo=True, opset_version=OPSET, input_names=["images"],
            output_names=[f"boxes{suffix}", f"scores{suffix}"],
            dynamic_shapes={"images": {0: batch}}, verbose=False,
        )  # fmt: skip
    # the cells of a fine grid too, which NNCF stumbles over elsewhere
    exported = optimize(program.model_proto, input_size_limit=1 << 24, output_size_limit=1 << 24)
    for value in (*exported.graph.input, *exported.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"  # torch 2.6 has another name for it
    return exported


def quantise(path, sources, read):
    """Turns an .onnx of `export_onnx` into an int8 one by NNCF's post-training quantisation, with
    weights per channel and corrected biases.  Depthwise and the last convolutions, decoding and NMS
    stay in float.

    read(source) -> an image (1, C, h, w) as the network sees it, for the ranges of activations.
    Raises ValueError without NNCF."""
    try:
        import nncf
    except ImportError:
        raise ValueError(f'{path}: int8 needs NNCF: pip install -e ".[int8]"') from None
    import onnx

    model, network = onnx.load(path), OtherNetwork()
    network.read(next(each.value for each in model.metadata_props if each.key == "cfg"), str(path))
    last = {f"model.layers.{head.index - 1}.0.weight" for head in network.heads}
    outputs, nodes = {output.name for output in model.graph.output}, model.graph.node
    first = [node.name for node in nodes if last.intersection(node.input)]
    final = [node.name for node in nodes if outputs.intersection(node.output)]
    depthwise = [
        n.name for n in nodes for each in n.attribute if each.name == "group" and each.i > 1
    ]
    kept = nncf.IgnoredScope(names=depthwise, subgraphs=[nncf.Subgraph(first, final)])
    images = nncf.Dataset(sources, lambda source: {"images": read(source).numpy()})
    nncf.set_log_level(logging.ERROR)
    mixed = nncf.QuantizationPreset.MIXED  # activations with a zero point
    model = nncf.quantize(model, images, preset=mixed, subset_size=len(sources), ignored_scope=kept)
    # signed ones as unsigned, or OpenVINO computes in float
    del model.graph.value_info[:]
    zeros = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in zeros and tensor.data_type == onnx.TensorProto.INT8:
            zero = onnx.numpy_helper.to_array(tensor).view(np.uint8) ^ 128
            tensor.CopyFrom(onnx.numpy_helper.from_array(zero, tensor.name))
    with replacing(path) as beside:
        onnx.save(model, beside)
