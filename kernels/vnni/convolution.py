"""VGG-16's convolutions by Winograd's way with products of 16-bit integers: what `winograd.c` computes."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_int, c_void_p
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import COLUMNS, open_library

STEP, TILE, PAIR, LARGEST_SUM = 4, 36, 2, 8191  # as in winograd.c
INT16_MAX, INT32_MAX = 2**15 - 1, 2**31 - 1
# What weights of a side are multiplied with (G there), so that its transposed A and B are those of winograd.c.
WEIGHTS = np.array(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]],
    np.float64,
) / np.array(24)


class _Map(ctypes.Structure):
    _fields_ = (
        ("values", c_void_p),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("channels", ctypes.c_int32),
    )


class _Filters(ctypes.Structure):
    _fields_ = (
        ("values", c_void_p),
        ("steps", c_void_p),
        ("bias", c_void_p),
        ("filters", ctypes.c_int32),
        ("channels", ctypes.c_int32),
    )


class Map:
    """Room for maps of so many images: float16, none below 0, with zeros around each."""

    def __init__(self, images: int, height: int, width: int, channels: int) -> None:
        rows, columns = (-(-side // STEP) * STEP + 2 for side in (height, width))
        self._whole = np.zeros((images, rows, columns, channels), np.float16)
        self.images = images
        self.struct = _Map(self._whole.ctypes.data, height, width, channels)

    @property
    def values(self) -> np.ndarray:
        """The maps, a view: float16 [images, height, width, channels]."""
        return self._whole[:, 1 : self.struct.height + 1, 1 : self.struct.width + 1]


@dataclass(frozen=True)
class Filters:
    """Filters as `packed` gives them, biases float32 [filters]."""

    values: np.ndarray
    steps: np.ndarray
    bias: np.ndarray

    @property
    def struct(self) -> _Filters:
        panels, _, pairs, _, _ = self.values.shape
        pointers = (array.ctypes.data for array in (self.values, self.steps, self.bias))
        return _Filters(*pointers, panels * COLUMNS, pairs * PAIR)


def packed(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`weight` [filters, channels, 3, 3] as the products read it: int16 [filters / 64, 36, channels / 2, 64, 2], and
    their steps, float32 [filters / 64, 36, 64].

    Steps are as many as keep any sums of a tile's pixels times a filter's weights within 32 bits. filters: a multiple
    of 64, channels: of 16.
    """
    panels = [_panel(weight[at : at + COLUMNS]) for at in range(0, len(weight), COLUMNS)]
    return np.stack([values for values, _ in panels]), np.stack([steps for _, steps in panels])


def _panel(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and steps of 64 filters."""
    filters, channels = weight.shape[:2]
    sums = np.kron(WEIGHTS, WEIGHTS) @ weight.astype(np.float64).reshape(filters * channels, 9).T
    sums = sums.reshape(TILE, filters, channels)
    sizes = np.abs(sums)
    # Of a filter's weights in steps: less what rounding them, and the steps, may add.
    room = INT32_MAX * (1 - 1e-6) / LARGEST_SUM - channels / 2
    steps = np.maximum(sizes.max(axis=2) / INT16_MAX, sizes.sum(axis=2) / room)
    steps = np.maximum(steps, np.finfo(np.float32).tiny).astype(np.float32)
    whole = np.rint(sums / steps[..., None]).astype(np.int16)
    values = whole.reshape(TILE, filters, channels // PAIR, PAIR).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(values), steps


class Kernels:
    """The compiled library at `path`, on so many threads. Raises `EngineError` where it does not load."""

    def __init__(self, path: Path, threads: int) -> None:
        self.threads = threads
        self._first, self._winograd = open_library(path, "svrt_first_convolution", "svrt_winograd")
        self._first.argtypes = (c_void_p, c_void_p, c_void_p, c_int, c_int, POINTER(_Map), c_int)
        self._winograd.argtypes = (POINTER(_Map), POINTER(_Filters), POINTER(_Map), c_int, c_int, c_int)
        self._first.restype = self._winograd.restype = None

    def first(self, pixels: np.ndarray, weight: np.ndarray, bias: np.ndarray, to: Map) -> None:
        """ReLU of the convolution of a few channels, in float32: pixels [images, channels, height, width], weight
        [channels, 3, 3, filters], bias [filters], all contiguous. filters: a multiple of 64."""
        pointers = (array.ctypes.data for array in (pixels, weight, bias))
        self._first(*pointers, pixels.shape[1], len(pixels), byref(to.struct), self.threads)

    def convolve(self, maps: Map, filters: Filters, to: Map, images: int, *, pooled: bool) -> None:
        """ReLU of the convolution of the first `images` maps, and, `pooled`, the largest of every 2 x 2 of it."""
        self._winograd(byref(maps.struct), byref(filters.struct), byref(to.struct), images, pooled, self.threads)
