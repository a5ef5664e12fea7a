#!/usr/bin/env python3
"""Draws what a network finds: `python detect.py PHOTO --weights X.weights`."""

from yolov4.cli import main

if __name__ == "__main__":
    main("detect")
