"""A pinhole camera at a fixed place, as a phone on a tripod or in a hand near the court."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Camera:
    """`position` in metres, rows of `axes` are the camera's right, down and forward, `focal` in pixels."""

    position: Array
    axes: Array
    focal: float
    centre: tuple[float, float]

    @classmethod
    def around_ring(
        cls,
        azimuth: float,
        elevation: float,
        distance: float,
        roll: float,
        ring_pixels: float,
        ring_at: tuple[float, float],
    ) -> Camera:
        """Look at the ring from `distance` metres.

        `azimuth` 0 is in front of the board, positive to the shooter's right; `elevation` is how far the ring is
        above the camera's horizon; `roll` turns the picture (radians all). The ring is `ring_pixels` wide and sits at
        pixel `ring_at`.
        """
        horizontal = distance * math.cos(elevation)
        position = np.array(
            [horizontal * math.sin(azimuth), -horizontal * math.cos(azimuth), -distance * math.sin(elevation)]
        )
        forward = -position / distance
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        right, down = (
            math.cos(roll) * right + math.sin(roll) * down,
            math.cos(roll) * down - math.sin(roll) * right,
        )
        focal = ring_pixels * distance / 0.4572
        return cls(position, np.stack([right, down, forward]), focal, ring_at)

    def project(self, points: Array) -> Array:
        """World points [..., 3] (m) to [..., 3]: pixel x, pixel y and depth (m) along the optical axis."""
        seen = (np.asarray(points, dtype=np.float64) - self.position) @ self.axes.T
        depth = np.maximum(seen[..., 2], 0.05)
        x = self.focal * seen[..., 0] / depth + self.centre[0]
        y = self.focal * seen[..., 1] / depth + self.centre[1]
        return np.stack([x, y, seen[..., 2]], axis=-1)

    def pixels_per_metre(self, depth: float = 0.0) -> float:
        """Scale at `depth` metres along the optical axis; at the ring when 0."""
        return self.focal / (depth or float(np.linalg.norm(self.position)))
