#!/usr/bin/env python3
"""Measures mAP as Darknet, VOC and COCO do: `python val.py --data X.data --weights X.weights`."""

from yolov4.cli import main

if __name__ == "__main__":
    main("val")
