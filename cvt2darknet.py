#!/usr/bin/env python3
"""Converts a .pt checkpoint to .weights and back: `python cvt2darknet.py last.pt X.weights`."""

from yolov4.cli import main

if __name__ == "__main__":
    main("convert")
