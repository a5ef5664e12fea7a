from pathlib import Path

from yolov4 import augment as augment
from yolov4.cfg import format_cfg as format_cfg
from yolov4.cfg import parse_cfg as parse_cfg
from yolov4.cfg import read_cfg as read_cfg
from yolov4.decoding import Decoded as Decoded
from yolov4.decoding import Detections as Detections
from yolov4.decoding import decode as decode
from yolov4.decoding import detections_from_logits as detections_from_logits
from yolov4.detector import Detector as Detector
from yolov4.evaluation import evaluate as evaluate
from yolov4.loss import DarknetLoss as DarknetLoss
from yolov4.model import Darknet as Darknet
from yolov4.schedule import learning_rate as learning_rate
from yolov4.weights import load_weights as load_weights
from yolov4.weights import save_weights as save_weights

__version__: str

def train(**options: object) -> Path: ...
