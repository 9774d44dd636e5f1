"""Frames averaged over areas as OpenCV averages them, but sooner where many pixels become one."""

from __future__ import annotations

from math import gcd

import cv2
import numpy as np

from .preprocess import resize

SMALL = 1 << 20  # bytes of a frame, and
FEWEST = 3  # rows of it for one of the result: with fewer OpenCV is hardly slower
MOST = 256  # the sum of so many bytes fits 16 bits
STRIP = 64  # rows of the result at a time: what is between stays in a processor's cache


def shrink(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """What `resize` gives of a frame uint8 [H, W] or [H, W, C]; of a pixel in a thousand it is one grey level off.

    OpenCV goes along each row, pixel by pixel. Here whole rows are added up first, as integers, which NumPy does as
    fast as memory allows, and OpenCV goes along the few that are left. Small frames, those that shrink by little, and
    those of another type are left to `resize`.
    """
    high, wide = frame.shape[:2]
    suited = frame.dtype == np.uint8 and FEWEST * height <= high <= MOST * height and width <= wide
    if not suited or frame.size < SMALL or high % height == wide % width == 0:  # blocks of whole pixels: it is fast
        return resize(frame, width, height)
    # So often do both begin a row at once, and what is alike in each period is one call. Few calls matter: each lets go
    # of the interpreter, and may wait for it, as another thread shrinks the same frame.
    periods = gcd(high, height)
    rows, made = frame.reshape(periods, high // periods, -1), height // periods
    result = np.empty((height, width, *frame.shape[2:]), np.uint8)
    starts, shares = np.divmod(np.arange(made + 1) * rows.shape[1], made)
    shares = (shares / made).astype(np.float32)
    at_once = max(1, STRIP // made)
    for first in range(0, periods, at_once):
        sums = _sums(rows[first : first + at_once], starts, shares).reshape(-1, *frame.shape[1:])
        strip = cv2.resize(sums, (width, len(sums)), interpolation=cv2.INTER_AREA)
        cv2.convertScaleAbs(strip, result[first * made : first * made + len(strip)], alpha=height / high)
    return result


def _sums(rows: np.ndarray, starts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Of uint8 rows [P, H, B] the sums, float32 [P, n, B], over `n` parts of each period.

    The i-th begins `shares[i]` of a row below row `starts[i]`, and ends where the next begins; both are [n + 1], from
    the first row to behind the last. A row that belongs to two parts is added to the second; what the first has of it
    is then moved.
    """
    parts = len(starts) - 1
    whole = np.empty((len(rows), parts, rows.shape[2]), np.uint16)
    for part in range(parts):
        np.add.reduce(rows[:, starts[part] : starts[part + 1]], axis=1, dtype=np.uint16, out=whole[:, part])
    sums = whole.astype(np.float32)
    if parts > 1:
        moved = rows[:, starts[1:-1]] * shares[1:-1, None]
        sums[:, 1:] -= moved
        sums[:, :-1] += moved
    return sums
