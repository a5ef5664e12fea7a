"""`python -m yolov4 COMMAND ...`: the commands of `cli`."""

from yolov4.cli import main

main()
