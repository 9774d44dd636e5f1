"""2-D wavelet approximation of luma, and the motion between consecutive approximations.

SV3.3B (arXiv 2507.17844, section on sampling) takes the level-2 Haar LL band of each frame and calls the difference of
consecutive bands motion. Orthonormal Haar at level L has a closed form: LL = 2^L x the mean of each 2^L x 2^L block,
so resizing by halves computes it. Every other wavelet goes through PyWavelets.
"""

from __future__ import annotations

import cv2
import numpy as np

from .preprocess import resize

HAAR_NAMES = ("haar", "db1")


def luma(bgr: np.ndarray) -> np.ndarray:
    """Luma of a BGR frame, ITU-R BT.601 weights.

    `bgr` is uint8 [H, W, 3]; the result is float32 [H, W], 0 to 255.
    """
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), dtype=np.float32)


def approximation(plane: np.ndarray, level: int = 2, wavelet: str = "haar") -> np.ndarray:
    """Approximation (LL) band of `plane` at `level`, symmetric at the borders as PyWavelets is by default.

    `plane` is float32 [H, W] in any unit u; the result is float32 [ceil(H / 2^level), ceil(W / 2^level)] for Haar,
    in 2^level x u. Level 0 is the plane itself. Raises `ValueError` for a level below 0 or an unknown wavelet.
    """
    if level < 0:
        raise ValueError(f"wavelet level must be 0 or more, got {level}")
    plane = np.ascontiguousarray(plane, dtype=np.float32)
    if level == 0:
        return plane
    if wavelet not in HAAR_NAMES:
        import pywt  # 60 ms that the default wavelet need not pay

        return np.asarray(pywt.wavedec2(plane, wavelet, mode="symmetric", level=level)[0], dtype=np.float32)
    for _ in range(level):
        plane = _halved(plane)
    return np.asarray(plane * np.float32(1 << level))


def _halved(plane: np.ndarray) -> np.ndarray:
    """Means of 2 x 2. An odd edge is mirrored at every level, not once at the end: the two differ for 4n+2 rows."""
    height, width = plane.shape
    if height % 2 or width % 2:
        plane = cv2.copyMakeBorder(plane, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return resize(plane, plane.shape[1] // 2, plane.shape[0] // 2)


def motion(previous: np.ndarray | None, current: np.ndarray, level: int = 2) -> np.ndarray:
    """Motion map of one frame: absolute difference of two consecutive LL bands, as grey levels.

    Both bands are float32 [h, w] of luma 0 to 255 at `level`; the result is float32 [h, w], scaled by 2^-level back to
    0 to 255, the range VGG-16 expects. The first frame of a clip has no predecessor: its map is zero. (Absolute value,
    scaling and the zero are our choice; the paper does not say.)
    """
    if previous is None:
        return np.zeros_like(current)
    return np.asarray(np.abs(current - previous) * np.float32(2.0**-level))


def motion_maps(bands: np.ndarray, level: int = 2) -> np.ndarray:
    """Motion maps of a clip: float32 [N, h, w] bands to float32 [N, h, w] maps; see `motion`."""
    maps = np.zeros_like(bands, dtype=np.float32)
    for index in range(1, len(bands)):
        maps[index] = motion(bands[index - 1], bands[index], level)
    return maps
