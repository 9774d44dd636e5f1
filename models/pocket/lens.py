"""What lens, sensor and compression add to a drawn picture."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Lens:
    """Blur, colour, grain and JPEG quality, the same for all frames of a clip; where the grain lies differs."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self._rng = rng
        self._blur = rng.uniform(0.3, 0.9) * size / 400
        self._noise = rng.uniform(0.5, 4.0)
        self._gain = rng.uniform(0.8, 1.15)
        self._tint = rng.normal(1.0, 0.018, 3)
        self._quality = int(rng.integers(45, 92))

    def expose(self, picture: Array) -> Array:
        """uint8 [S, S, 3] as it would be filmed."""
        soft = cv2.GaussianBlur(picture, (0, 0), self._blur).astype(np.float32)
        grain = self._rng.standard_normal((*picture.shape[:2], 1), dtype=np.float32) * self._noise
        shot = np.clip(soft * (self._gain * self._tint).astype(np.float32) + grain, 0, 255).astype(np.uint8)
        _, packed = cv2.imencode(".jpg", shot, (cv2.IMWRITE_JPEG_QUALITY, self._quality))
        return cast(Array, cv2.imdecode(packed, cv2.IMREAD_COLOR))


class QuickLens(Lens):
    """The same lens, its grain taken from a small stock: a quarter of the time."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        super().__init__(rng, size)
        grain = rng.standard_normal((4, size, size, 1), dtype=np.float32) * self._noise
        self._grain = np.repeat(np.round(grain), 3, axis=3).astype(np.int16)
        self._curve = np.clip(np.arange(256)[:, None] * self._gain * self._tint, 0, 255).astype(np.uint8)[:, None]

    def expose(self, picture: Array) -> Array:
        soft = cv2.LUT(cv2.GaussianBlur(picture, (0, 0), self._blur), self._curve)
        grain = np.roll(self._grain[int(self._rng.integers(4))], int(self._rng.integers(len(picture))), axis=0)
        shot = cv2.add(soft, grain, dtype=cv2.CV_8U)
        _, packed = cv2.imencode(".jpg", shot, (cv2.IMWRITE_JPEG_QUALITY, self._quality))
        return cast(Array, cv2.imdecode(packed, cv2.IMREAD_COLOR))
