"""What lens, sensor and compression add to a drawn picture."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
GRAINS = 4  # pictures of grain that a clip draws from: making one for each frame took a quarter of the time


class Lens:
    """Blur, colour, grain and JPEG quality, the same for all frames of a clip; where the grain lies differs."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self._rng = rng
        self._blur = rng.uniform(0.3, 0.9) * size / 400
        noise, gain, tint = rng.uniform(0.5, 4.0), rng.uniform(0.8, 1.15), rng.normal(1.0, 0.018, 3)
        self._quality = int(rng.integers(45, 92))
        grain = rng.standard_normal((GRAINS, size, size, 1), dtype=np.float32) * noise
        self._grain = np.repeat(np.round(grain), 3, axis=3).astype(np.int16)
        self._curve = np.clip(np.arange(256)[:, None] * gain * tint, 0, 255).astype(np.uint8)[:, None]

    def expose(self, picture: Array) -> Array:
        """uint8 [S, S, 3] as it would be filmed."""
        soft = cv2.LUT(cv2.GaussianBlur(picture, (0, 0), self._blur), self._curve)
        grain = np.roll(self._grain[int(self._rng.integers(GRAINS))], int(self._rng.integers(len(picture))), axis=0)
        shot = cv2.add(soft, grain, dtype=cv2.CV_8U)
        _, packed = cv2.imencode(".jpg", shot, (cv2.IMWRITE_JPEG_QUALITY, self._quality))
        return cast(Array, cv2.imdecode(packed, cv2.IMREAD_COLOR))
