"""A network with its decoding as an .onnx for any batch, checked in ONNX Runtime against torch.
Source: ONNX's operators, opset 18 (NonMaxSuppression, GatherND); torch.onnx."""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from yolov4.boxes import cxcywh_to_xyxy
from yolov4.cfg import format_cfg, names_of_classes
from yolov4.decoding import class_scores, decode
from yolov4.files import replacing
from yolov4.model import Darknet
from yolov4.runtime import INSTALL, OnnxNetwork
from yolov4.verify import largest_difference

OPSET = 18  # what torch's exporter writes by itself; a higher one is converted
LIMIT = 1e-3  # rounding gives the whole YOLOv4 1e-4, a wrong layer is far above
# Behind boxes_all (batch, N, 4) and scores_all (batch, N, C).  chosen (n, 3) holds image, class and box of each.
NMS = """<ir_version: 10, opset_import: ["": 18]>
nms (float[batch, N, 4] boxes_all, float[batch, N, C] scores_all)
=> (float[n, 4] boxes, float[n] scores, int64[n] labels, int64[n] image_index)
<int64[1] most = {{{most}}}, float[1] iou = {{{iou}}}, float[1] least = {{{least}}}, int64[1] one = {{1}}> {{
    by_class = Transpose<perm = [0, 2, 1]>(scores_all)
    chosen = NonMaxSuppression(boxes_all, by_class, most, iou, least)
    images_of, classes_of, boxes_of = Split<axis = 1, num_outputs = 3>(chosen)
    places = Concat<axis = 1>(images_of, boxes_of)
    boxes = GatherND(boxes_all, places)
    scores = GatherND(by_class, chosen)
    labels = Squeeze(classes_of, one)
    image_index = Squeeze(images_of, one)
}}"""


class Suppression(NamedTuple):
    """NMS in the graph: plain IoU within a class, whatever the cfg's nms_kind is."""

    thresh: float = 0.25  # least score
    nms_thresh: float = 0.45  # largest IoU


class Exported(NamedTuple):
    """What `export_onnx` wrote: predictions of an image, and the largest differences, None if not checked."""

    predictions: int
    boxes: float | None
    scores: float | None


class Decoding(nn.Module):
    """A network with its decoding.  images: (B, C, h, w) float RGB 0..1 of the cfg's size.

    Returns boxes (B, N, 4), xyxy relative to the network input and not cut to it, and scores (B, N, classes) as
    `class_scores`; heads one after the other, in each by anchor, row and column.
    """

    def __init__(self, model: Darknet):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        decoded = [decode(logits, head) for logits, head in zip(self.model(images), self.model.heads, strict=True)]
        boxes = torch.cat([each.boxes.flatten(1, 3) for each in decoded], 1)
        scores = torch.cat([class_scores(each).flatten(1, 3) for each in decoded], 1)
        return cxcywh_to_xyxy(boxes), scores


@torch.no_grad()
def export_onnx(
    model: Darknet, path: str | Path, names: Sequence[str] | None = None, suppression: Suppression | None = None
) -> Exported:
    """Writes a network at the cfg's size; it is fused by that, and moved to the CPU.

    The graph: images (batch, C, h, w) -> boxes, scores as `Decoding`; with suppression -> boxes (n, 4), scores (n,),
    labels (n,), image_index (n,), by image, class and falling score.  The metadata hold the cfg and what else
    detecting needs.  Compared with torch on batches of 1 and 2 if ONNX Runtime is installed.  Raises ValueError without
    the packages, and for a difference above LIMIT; `path` is then as it was.
    """
    if missing := [package for package in ("onnx", "onnxscript") if find_spec(package) is None]:
        raise ValueError(f"{path}: needs {' and '.join(missing)}, expected {INSTALL}")
    import onnx

    decoding = Decoding(model.fuse()).cpu()
    names = names_of_classes(names, model.heads[-1].classes, path)
    images = torch.rand(
        2, model.net.channels, model.net.height, model.net.width, generator=torch.Generator().manual_seed(0)
    )
    exported = _trace(decoding, images, ("boxes_all", "scores_all") if suppression else ("boxes", "scores"))
    onnx.helper.set_model_props(exported, _metadata(model, names, suppression))
    with replacing(path) as beside:
        onnx.save(exported, beside)
        expected = decoding(images)
        differences = _differences(beside, images, expected)
        if differences and max(differences) > LIMIT:
            boxes, scores = differences
            raise ValueError(
                f"{path}: in ONNX Runtime boxes differ by {boxes:.2g} and scores by {scores:.2g} from torch, expected "
                f"{LIMIT:g} at most"
            )
        if suppression:
            _append_nms(exported, expected[0].shape[1], suppression)
            onnx.save(exported, beside)
            if differences:
                OnnxNetwork(beside)(images)
    return Exported(expected[0].shape[1], *(differences or (None, None)))


def _trace(decoding: Decoding, images: Tensor, outputs: Sequence[str]):
    """-> onnx.ModelProto, whose batch is free"""
    batch = torch.export.Dim("batch", max=1 << 16)  # torch 2.6 takes no unbounded one
    with _quiet():
        program = torch.onnx.export(
            decoding, (images,), dynamo=True, opset_version=OPSET, input_names=["images"], output_names=list(outputs),
            dynamic_shapes={"images": {0: batch}}, verbose=False,
        )  # fmt: skip
    exported = program.model_proto
    for value in (*exported.graph.input, *exported.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"  # torch 2.6 has another name for it
    return exported


def _metadata(model: Darknet, names: Sequence[str], suppression: Suppression | None) -> dict[str, str]:
    """What detecting needs; OnnxNetwork reads most from the cfg, the plain keys are for other readers."""
    net, head = model.net, model.heads[-1]
    values = {
        "cfg_name": Path(model.network.name).name, "cfg": format_cfg(*model.network[:2]),
        "names": json.dumps(names, ensure_ascii=False), "width": net.width, "height": net.height,
        "letter_box": int(net.letter_box), "nms_kind": head.nms_kind, "beta_nms": head.beta_nms,
    }  # fmt: skip
    values |= suppression._asdict() if suppression else {}
    return {key: str(value) for key, value in values.items()}


def _differences(path: Path, images: Tensor, expected: Sequence[Tensor]) -> tuple[float, float] | None:
    """The largest of boxes and of scores over batches of 1 and of all images; None without ONNX Runtime."""
    if find_spec("onnxruntime") is None:
        return None
    network = OnnxNetwork(path)
    found = [torch.cat(parts) for parts in zip(network(images), network(images[:1]), strict=True)]
    wanted = [torch.cat((each, each[:1])) for each in expected]
    return tuple(largest_difference(f.numpy(), w.numpy()) for f, w in zip(found, wanted, strict=True))


def _append_nms(exported, predictions: int, suppression: Suppression) -> None:
    import onnx

    thresh, nms_thresh = (f"{value:.9f}" for value in suppression)
    tail = onnx.parser.parse_model(NMS.format(most=predictions, iou=nms_thresh, least=thresh)).graph
    exported.graph.node.extend(tail.node)
    exported.graph.initializer.extend(tail.initializer)
    del exported.graph.output[:]
    exported.graph.output.extend(tail.output)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter and its parts say of themselves."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
