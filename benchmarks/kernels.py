"""Haar and preprocessing against the plainest way to the same result, as ratios: `python -m svrt.benchmarks.kernels`.

The two ways alternate within one run, so that a noisy machine disturbs both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import pywt

from ..kernels import haar
from ..kernels.preprocess import Normalisation, normalise, resize
from ..kernels.shrink import shrink

ROUNDS = 30
SIZES = ((360, 640), (480, 854), (540, 960), (720, 1280), (1080, 1920), (2160, 3840))
IMAGENET = Normalisation("rgb", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _pywavelets(plane: np.ndarray) -> np.ndarray:
    return np.asarray(pywt.wavedec2(plane, "haar", level=2)[0])


def _plain_normalise(frames: np.ndarray) -> np.ndarray:
    scaled = frames[..., ::-1].astype(np.float32) / np.float32(IMAGENET.scale)
    normal = (scaled - np.array(IMAGENET.mean, np.float32)) / np.array(IMAGENET.std, np.float32)
    return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))


def _ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def compare(name: str, ours: Callable[[], np.ndarray], plain: Callable[[], np.ndarray], within: float = 1e-4) -> None:
    """Print the medians of both and the median of their ratios, after checking that they agree."""
    np.testing.assert_allclose(ours().astype(float), plain().astype(float), rtol=1e-4, atol=within)
    pairs = [(_ms(ours), _ms(plain)) for _ in range(ROUNDS)]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{name:<46} {mine:8.2f} ms  plain {other:8.2f} ms  {ratio:5.1f} x")


def main() -> None:
    rng = np.random.default_rng(0)
    plane = rng.uniform(0, 255, (720, 1280)).astype(np.float32)
    odd = rng.uniform(0, 255, (718, 1279)).astype(np.float32)
    frames = rng.integers(0, 256, (16, 256, 256, 3), dtype=np.uint8)
    compare(
        "Haar LL, level 2, 1280x720, against PyWavelets", lambda: haar.approximation(plane), lambda: _pywavelets(plane)
    )
    compare("Haar LL, level 2, 1279x718, against PyWavelets", lambda: haar.approximation(odd), lambda: _pywavelets(odd))
    compare(
        "normalise 16 frames of 256x256 to NCHW",
        lambda: normalise(frames, IMAGENET),
        lambda: _plain_normalise(frames),
    )
    cv2.setNumThreads(1)  # where it uses two, both are taken from what runs beside it
    for high, wide in SIZES:
        frame = rng.integers(0, 256, (high, wide, 3), dtype=np.uint8)
        for size in (96, 192, 224):
            compare(
                f"{wide}x{high} to {size}x{size}, against OpenCV",
                partial(shrink, frame, size, size),
                partial(resize, frame, size, size),
                within=1,
            )


if __name__ == "__main__":
    main()
