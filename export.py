#!/usr/bin/env python3
"""Writes a network as an .onnx, checked against torch: `python export.py X.weights`."""

from yolov4.cli import main

if __name__ == "__main__":
    main("export")
