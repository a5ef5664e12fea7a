"""An exported .onnx in ONNX Runtime: images in, detections out, by the cfg and names that export.py wrote into it.
Source: ONNX's specification (metadata_props), ONNX Runtime's Python interface."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from yolov4.boxes import xyxy_to_cxcywh
from yolov4.cfg import parse_cfg
from yolov4.decoding import Candidates, Detections, detections_from_candidates
from yolov4.plan import find_heads, plan_layers

INSTALL = 'pip install -e ".[onnx]"'


class OnnxNetwork:
    """A file that export.py wrote, on the CPU.

    Attributes: net and heads, of the cfg in it; names; suppression, the (thresh, nms_thresh) of a file with NMS in its
    graph, else None.  threads: 0 leaves their number to ONNX Runtime.  Raises ValueError without ONNX Runtime and for
    any other file.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        try:
            import onnxruntime
        except ImportError:
            raise ValueError(f"{path}: needs ONNX Runtime, expected {INSTALL}") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.path, content = path, Path(path).read_bytes()  # a path beyond ASCII is fine everywhere
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            written = self.session.get_modelmeta().custom_metadata_map
        except Exception as error:  # a class of its own for each reason, none of them public
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
            raise ValueError(f"{path}: ONNX Runtime cannot read it: {reason}") from None
        if missing := sorted({"cfg", "cfg_name", "names"} - written.keys()):
            raise ValueError(f"{path}: has no {', '.join(missing)} in its metadata, expected a file by export.py")
        network = parse_cfg(written["cfg"], f"{path}, its cfg")
        self.net, self.heads = network.net, find_heads(network, plan_layers(network))
        self.names = json.loads(written["names"])
        self.suppression = (float(written["thresh"]), float(written["nms_thresh"])) if "nms_thresh" in written else None

    def __call__(self, images: Tensor) -> list[Tensor]:
        """images (B, C, h, w) float, of the cfg's size -> the graph's outputs, see export.py."""
        outputs = self.session.run(None, {"images": images.contiguous().numpy()})
        return [torch.from_numpy(output) for output in outputs]

    def detections(
        self,
        images: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        thresh: float,
        nms_thresh: float,
        letter_box: bool,
    ) -> list[Detections]:
        """As `detections_from_logits`.  With NMS in the graph, thresh may be above that of the export and nms_thresh
        has to be the same: ValueError otherwise."""
        if self.suppression is None:
            boxes, scores = self(images)
            # no objectness here: none is below a score
            numbers, rows, labels = (scores > thresh).nonzero(as_tuple=True)
            found = [numbers, boxes[numbers, rows], scores[numbers, rows, labels], labels]
        else:
            self._check(thresh, nms_thresh)
            boxes, scores, labels, numbers = self(images)
            found = [values[scores > thresh] for values in (numbers, boxes, scores, labels)]
            nms_thresh = 0
        found[1] = xyxy_to_cxcywh(found[1])
        size = (self.net.width, self.net.height)
        return detections_from_candidates(Candidates(*found), self.heads[-1], image_sizes, size, nms_thresh, letter_box)

    def _check(self, thresh: float, nms_thresh: float) -> None:
        least, fixed = self.suppression
        if thresh < least or nms_thresh != fixed:
            raise ValueError(
                f"{self.path}: suppresses in the graph, thresh {least:g} and nms {fixed:g}, but {thresh:g} and "
                f"{nms_thresh:g} were asked for, expected a thresh of {least:g} or more and that nms, or another export"
            )
