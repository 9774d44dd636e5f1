"""From a decoded frame to the tensor a network reads: resize, crop, normalise, NCHW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

Fit = Literal["crop", "stretch"]
Resized = Callable[[np.ndarray, int, int], np.ndarray]  # of a frame, a width and a height


@dataclass(frozen=True)
class Normalisation:
    """What a network was trained to read: channel order, and (x / scale - mean) / std per channel of that order.

    VGG-16 of Oxford reads BGR 0 to 255 minus a mean; torchvision's and V-JEPA 2 read RGB 0 to 1 with ImageNet's mean
    and deviation.
    """

    channels: Literal["rgb", "bgr"]
    scale: float
    mean: Sequence[float]
    std: Sequence[float]


def resize(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize a uint8 or float32 frame [H, W] or [H, W, C], anti-aliased where it shrinks (area), else bilinear."""
    if frame.shape[:2] == (height, width):
        return frame
    shrinks = frame.shape[0] >= height and frame.shape[1] >= width
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def fit_square(
    frame: np.ndarray, size: int, fit: Fit = "crop", resize_to: int | None = None, resized: Resized = resize
) -> np.ndarray:
    """A frame [H, W] or [H, W, C] as a square [size, size] or [size, size, C] of the same dtype.

    "stretch" resizes both sides and keeps the whole view. "crop" brings the shorter side to `resize_to` pixels (default
    `size`) and cuts the centre square: V-JEPA 2 uses 292 for 256 (`VJEPA2VideoProcessor`: 256 x 256 / 224).
    `resized` gives a frame another width and height.
    """
    if fit == "stretch":
        return resized(frame, size, size)
    short = resize_to or size
    height, width = frame.shape[:2]
    ratio = short / min(height, width)
    frame = resized(frame, max(short, round(width * ratio)), max(short, round(height * ratio)))
    top, left = (frame.shape[0] - size) // 2, (frame.shape[1] - size) // 2
    return frame[top : top + size, left : left + size]


def normalise(frames: np.ndarray, norm: Normalisation) -> np.ndarray:
    """BGR frames [N, H, W, 3], or grey ones [N, H, W], uint8 or float32 0 to 255, as a C-contiguous float32 tensor
    [N, 3, H, W], grey ones thrice.

    Written one channel at a time: a channel is read once and lands where the network reads it.
    """
    count, height, width = frames.shape[:3]
    tensor = np.empty((count, 3, height, width), dtype=np.float32)
    for channel in range(3):
        source = frames if frames.ndim == 3 else frames[..., 2 - channel if norm.channels == "rgb" else channel]
        gain = 1.0 / (norm.scale * norm.std[channel])
        np.multiply(source, np.float32(gain), out=tensor[:, channel], casting="unsafe")
        tensor[:, channel] -= np.float32(norm.mean[channel] / norm.std[channel])
    return tensor
