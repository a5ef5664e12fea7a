"""COCO annotations -> Darknet's labels and lists; the same as `yolov4 labels`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from yolov4.cli import main

if __name__ == "__main__":
    main("labels")
