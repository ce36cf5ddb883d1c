"""OpenCV's dnn. An opened GRU refuses a second run, so that every run reads the file again; times have that in them."""

import cv2
import numpy as np

from .opened import Feeds, Run, Source


def version() -> str:
    return str(cv2.__version__)


def open_file(source: Source) -> Run:
    def run(feeds: Feeds) -> list[np.ndarray]:
        net = cv2.dnn.readNetFromONNX(source.path)
        for name, array in feeds.items():
            net.setInput(array, name)
        # All outputs of the file, or it raises.
        return list(net.forward(list(source.outputs)))

    return run
