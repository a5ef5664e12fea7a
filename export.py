#!/usr/bin/env python3
"""Writes a network as an .onnx, checked against torch: `python export.py X.weights`."""

from yolov4.cli import export

if __name__ == "__main__":
    export()
