"""Which source pixels each pixel of a resized view is made of, and how much of each: tables for `resize.cu`.

The tables of OpenCV 4's `resize` (resize.cpp: `computeResizeAreaTab`, `cv::hal::resize`), so that the GPU rounds as the
twins in `preprocess.py` do. They depend on sizes alone, and are made once for the frames of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .preprocess import Fit

# As `Span` in resize.cu: pixels `first` to `last`, and the weights of the first, those between, and the last.
SPAN = np.dtype([("first", "<i4"), ("last", "<i4"), ("head", "<f4"), ("body", "<f4"), ("tail", "<f4")])
QUARTER, WHOLE, AREA, LINEAR = range(4)  # as `Filter` in resize.cu
_LINEAR_ONE = 2048  # INTER_RESIZE_COEF_SCALE


@dataclass(frozen=True)
class View:
    """A square view of a frame: how it is filtered, and `SPAN` [size] of its columns and its rows."""

    filter: int
    columns: np.ndarray
    rows: np.ndarray


def view(width: int, height: int, size: int, fit: Fit = "crop", resize_to: int | None = None) -> View:
    """The view that `svrt.kernels.preprocess.fit_square` gives of a frame of that size."""
    if fit == "stretch":
        wide = high = size
    else:
        short = resize_to or size
        ratio = short / min(height, width)
        wide, high = max(short, round(width * ratio)), max(short, round(height * ratio))
    left, top = (wide - size) // 2, (high - size) // 2
    scales = [1.0 / (wide / width), 1.0 / (high / height)]  # rounded twice, as in OpenCV
    if width < wide or height < high:
        filter_, spans = LINEAR, (_linear(width, wide, scales[0], edge=True), _linear(height, high, scales[1]))
    elif all(abs(scale - round(scale)) < np.finfo(np.float64).eps for scale in scales):
        factors = [round(scale) for scale in scales]
        filter_ = QUARTER if factors == [2, 2] else WHOLE
        spans = (_whole(wide, factors[0]), _whole(high, factors[1]))
    else:
        filter_, spans = AREA, (_area(width, wide, scales[0]), _area(height, high, scales[1]))
    return View(filter_, spans[0][left : left + size], spans[1][top : top + size])


def _whole(target: int, factor: int) -> np.ndarray:
    """Spans [target] of `factor` pixels of equal weight."""
    spans = np.zeros(target, SPAN)
    spans["first"] = np.arange(target) * factor
    spans["last"] = spans["first"] + factor - 1
    return spans


def _area(source: int, target: int, scale: float) -> np.ndarray:
    """Spans [target] weighted by area; a share of a pixel below 0.001 is left out."""
    spans = np.zeros(target, SPAN)
    for index in range(target):
        start, end = index * scale, index * scale + scale
        cell = min(scale, source - start)
        last = min(int(np.floor(end)), source - 1)
        first = min(int(np.ceil(start)), last)
        weights = [np.float32(1.0 / cell)] * (last - first)
        begins = first
        if first - start > 1e-3:
            begins, weights = first - 1, [np.float32((first - start) / cell), *weights]
        if end - last > 1e-3:
            weights.append(np.float32(min(end - last, 1.0, cell) / cell))
        middle = weights[1] if len(weights) > 2 else 0.0
        spans[index] = (begins, begins + len(weights) - 1, weights[0], middle, weights[-1])
    return spans


def _linear(source: int, target: int, scale: float, edge: bool = False) -> np.ndarray:
    """Spans [target] of two neighbours, weights in 2048ths.

    Beyond the border OpenCV takes all of the last column (`edge`), but both halves of the last row, each rounded.
    """
    place = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    share = place - first.astype(np.float32)
    if edge:
        share[(first < 0) | (first >= source - 1)] = 0.0
    spans = np.zeros(target, SPAN)
    spans["first"], spans["last"] = first.clip(0, source - 1), (first + 1).clip(0, source - 1)
    spans["head"] = np.rint((np.float32(1.0) - share) * np.float32(_LINEAR_ONE))
    spans["tail"] = np.rint(share * np.float32(_LINEAR_ONE))
    return spans
