"""What the variants choose from: a clip's candidates as VGG-16, colour histograms and wavelets see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ...bundle import EncoderSpec, SamplerSpec
from ...kernels import haar
from ...kernels.preprocess import resize
from ...runtime.sampler import Candidates, Sampler
from ...runtime.video import Frame

LEVELS = (0, 1, 2, 3)  # of the wavelet; 0 is the difference of whole frames
BINS = [16, 4, 4]  # of hue, saturation and value: 256 together


class Reduced:
    """A clip's candidates and, beside them, their motion at the other `LEVELS`: maps of float32 [size, size]."""

    def __init__(self, sampler: SamplerSpec, encoder: EncoderSpec) -> None:
        self.candidates = Candidates(sampler, encoder)
        self.motion: dict[int, list[np.ndarray]] = {level: [] for level in LEVELS if level != sampler.level}
        self._spec = sampler
        self._bands: dict[int, np.ndarray] = {}

    def add(self, frame: Frame) -> None:
        """Reduce one frame, uint8 BGR [H, W, 3]."""
        self.candidates.add(frame)
        plane, size = haar.luma(frame.image), self._spec.size
        for level, maps in self.motion.items():
            band = haar.approximation(plane, level, self._spec.wavelet)
            maps.append(resize(haar.motion(self._bands.get(level), band, level), size, size))
            self._bands[level] = band


@dataclass(frozen=True)
class Seen:
    """`appearance` float32 [N, D] and, by wavelet level, `motion` float32 [N, D] are VGG-16's, rows L2-normalised;
    `energy` float64 [N] and `colours` float32 [N, 256] are without it.
    """

    appearance: np.ndarray
    motion: dict[int, np.ndarray]
    energy: np.ndarray
    colours: np.ndarray

    def __len__(self) -> int:
        return len(self.appearance)


def look(sampler: Sampler, clip: Reduced) -> Seen:
    """Compute what the variants choose from, once per clip: VGG-16 sees each picture once."""
    spec, candidates = sampler.spec, clip.candidates
    fused = sampler.features(candidates)
    half = fused.shape[1] // 2
    motion = {spec.level: fused[:, half:]}
    for level, maps in clip.motion.items():
        rows = sampler.embed(list(maps))
        motion[level] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    energy = np.array([float(np.square(m, dtype=np.float64).mean()) for m in candidates.motion])
    return Seen(
        fused[:, :half],
        motion,
        energy,
        colour_histograms([candidates.thumbnail(place) for place in range(len(candidates))]),
    )


def colour_histograms(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Joint histogram of hue, saturation and value of uint8 BGR pictures: float32 [N, 256].

    Rows are square roots of shares of pixels, so that the Euclidean distance between two is Hellinger's.
    """
    rows = []
    for picture in pictures:
        hsv = cv2.cvtColor(picture, cv2.COLOR_BGR2HSV)
        counts = cv2.calcHist([hsv], [0, 1, 2], None, BINS, [0, 180, 0, 256, 0, 256])
        rows.append(np.sqrt(counts.ravel() / counts.sum()))
    return np.stack(rows).astype(np.float32)
