#!/usr/bin/env python3
"""Trains a network: `python train.py --data cfg/voc.data --cfg cfg/yolov4-voc.cfg`."""

from yolov4.cli import main

if __name__ == "__main__":
    main("train")
