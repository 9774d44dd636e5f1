"""Haar and preprocessing against the plainest way to the same result, as ratios: `python -m svrt.benchmarks.kernels`.

The two ways alternate within one run, so that a noisy machine disturbs both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import pywt

from ..kernels import haar
from ..kernels.preprocess import Normalisation, normalise

ROUNDS = 30
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


def compare(name: str, ours: Callable[[], np.ndarray], plain: Callable[[], np.ndarray]) -> None:
    """Print the medians of both and the median of their ratios, after checking that they agree."""
    np.testing.assert_allclose(ours(), plain(), rtol=1e-4, atol=1e-4)
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


if __name__ == "__main__":
    main()
