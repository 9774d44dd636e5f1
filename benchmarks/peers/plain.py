"""Sampling as one writes it with OpenCV, PyWavelets and scikit-learn: the same method, on the same candidates."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pywt
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from ...bundle import EncoderSpec, SamplerSpec
from ...kernels.preprocess import fit_square, resize
from ...runtime.sampler import ITERATIONS, PCA_DIMS, SHRINKAGE

STARTS = 10  # of k-means++, of which scikit-learn takes the most compact


@dataclass
class Reduced:
    """What is kept of each candidate: pictures and motion maps for VGG-16, BGR or grey, and views for the encoder."""

    appearance: list[np.ndarray] = field(default_factory=list)
    motion: list[np.ndarray] = field(default_factory=list)
    views: list[np.ndarray] = field(default_factory=list)


def read_frames(clip: Path, limit: int) -> tuple[list[int], list[np.ndarray]]:
    """Numbers and pictures, uint8 BGR, of `limit` frames evenly spaced over what the container declares."""
    capture = cv2.VideoCapture(str(clip.absolute()))
    declared = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    last = max(0, declared - 1)
    wanted = {int(i) for i in np.linspace(0, last, min(limit, declared)).round()}
    indices, frames, index = [], [], 0
    while True:
        found, frame = capture.read()
        if not found:
            break
        if index in wanted:
            indices.append(index)
            frames.append(frame)
        index += 1
    capture.release()
    return indices, frames


def reduce_frames(frames: list[np.ndarray], sampler: SamplerSpec, encoder: EncoderSpec) -> Reduced:
    """Wavelet, motion and resizes of every frame."""
    found, before = Reduced(), None
    for frame in frames:
        grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY).astype(np.float32)
        band = pywt.wavedec2(grey, sampler.wavelet, level=sampler.level)[0]
        moved = np.zeros_like(band) if before is None else np.abs(band - before) / 2**sampler.level
        before = band
        found.appearance.append(resize(frame, sampler.size, sampler.size))
        found.motion.append(resize(moved.astype(np.float32), sampler.size, sampler.size))
        found.views.append(fit_square(frame, encoder.size, encoder.fit, encoder.resize))
    return found


def normalised(images: np.ndarray, spec: SamplerSpec | EncoderSpec) -> np.ndarray:
    """BGR [N, H, W, 3] to float32 [N, 3, H, W] as the bundle's networks expect it."""
    bgr = isinstance(spec, SamplerSpec) and spec.channels == "bgr"
    pixels: np.ndarray = images.astype(np.float32) if bgr else images[..., ::-1].astype(np.float32)
    pixels = (pixels / spec.scale - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)


def fuse(appearance: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """VGG-16's features of pictures and of maps, each row of each of length 1, beside each other."""
    rows = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in (appearance, motion)]
    return np.concatenate(rows, axis=1)


def choose(features: np.ndarray, count: int) -> list[int]:
    """Positions of `count` keyframes among features [N, D], N > count, in rising order."""
    clusters = KMeans(count, n_init=STARTS, max_iter=ITERATIONS, random_state=0)
    labels = clusters.fit_predict(features.astype(np.float32))
    scores = PCA(min(PCA_DIMS, len(features) - 1)).fit_transform(features.astype(np.float64))
    axes = LinearDiscriminantAnalysis(solver="eigen", shrinkage=SHRINKAGE).fit(scores, labels)
    space = axes.transform(scores)
    chosen = set()
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        distance = np.linalg.norm(space[members] - space[members].mean(axis=0), axis=1)
        chosen.add(int(members[np.argmin(distance)]))
    rest = [index for index in range(len(features)) if index not in chosen]
    return sorted([*chosen, *rest[: count - len(chosen)]])
