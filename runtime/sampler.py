"""Choosing keyframes: Haar motion, VGG-16 features, K-means, LDA (SV3.3B, arXiv 2507.17844, section on sampling).

The paper fixes the parts; these decisions are ours, as it does not say: each path is L2-normalised before the two are
joined; K-means starts from Ward's clusters; PCA, then LDA with shrinkage; the member nearest its cluster's mean in LDA
space; keyframes in time order; a clip with fewer frames than keyframes repeats them evenly.

Nothing is drawn at random: of random starts, as of k-means++, another one wins where features move in their third
digit, and most keyframes with it; so a processor that rounds would see other frames than one that does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import cv2
import numpy as np

from ..bundle import EncoderSpec, SamplerSpec
from ..kernels import haar
from ..kernels.preprocess import Normalisation, fit_square, normalise, resize
from ..kernels.shrink import shrink
from .engines import Engine
from .video import Frame

ITERATIONS = 100  # of K-means, at most
PCA_DIMS = 32  # at most; LDA needs fewer dimensions than frames
SHRINKAGE = 0.1  # of the within-class scatter towards its mean variance: clusters of 1 to 4 frames say little
VGG_BATCH = 8  # frames per inference, at most: bounds memory, costs no speed
# A processor is given as many as keep VGG-16's widest maps, one read and one written, 64 channels of float32 each, in
# this many bytes: more frames than its cache holds are not faster, and take 26 MB each at 224 pixels.
CACHED = 64 << 20
PROBE = 8  # pixels between those that tell most images apart
THUMBNAIL = 320  # pixels, longer side
# Bytes of a frame that is kept whole until it is known whether it is a keyframe: 32 MB of 64 candidates at most. Larger
# ones are reduced for the encoder as they come.
KEPT = 512 << 10
# OpenCV averages over areas in one thread, which is most of reducing a frame: half of it or more happens in another.
_BESIDE = ThreadPoolExecutor(max_workers=1, thread_name_prefix="svrt-reducer")


class Candidates:
    """What is kept of each candidate frame: small pictures alone, so a clip's size and length do not show in memory."""

    def __init__(self, sampler: SamplerSpec, encoder: EncoderSpec) -> None:
        self._sampler, self._encoder = sampler, encoder
        self._band: np.ndarray | None = None
        self.reduce_s = 0.0  # seconds spent in `add`
        self.indices: list[int] = []
        self.times_s: list[float] = []
        self._appearance: list[Callable[[], np.ndarray]] = []
        self.motion: list[np.ndarray] = []  # float32 [size, size], 0 to 255
        self._for_others: list[Callable[[], tuple[np.ndarray, np.ndarray]]] = []

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def appearance(self) -> list[np.ndarray]:
        """What VGG-16 reads of the candidates: uint8 BGR [size, size, 3] each."""
        return [picture() for picture in self._appearance]

    def view(self, place: int) -> np.ndarray:
        """What the encoder reads of a candidate: uint8 BGR [S, S, 3]."""
        return self._for_others[place]()[0]

    def thumbnail(self, place: int) -> np.ndarray:
        """A candidate for a person: uint8 BGR, longer side 320 at most."""
        return self._for_others[place]()[1]

    def add(self, frame: Frame) -> None:
        """Reduce one frame (uint8 BGR [H, W, 3]) to what the sampler, the encoder and a contact sheet need of it.

        Its image must not change after that: it is read later, too.
        """
        started = time.perf_counter()
        spec = self._sampler
        self._submit(frame.image)
        band = haar.approximation(haar.luma(frame.image), spec.level, spec.wavelet)
        moved = haar.motion(self._band, band, spec.level)
        self._band = band
        self.indices.append(frame.index)
        self.times_s.append(frame.time_s)
        self.motion.append(resize(moved, spec.size, spec.size))
        self.reduce_s += time.perf_counter() - started

    def _submit(self, image: np.ndarray) -> None:
        """Have what takes longest of a frame done in the other thread."""
        size = self._sampler.size
        for_others = partial(_reduced_for_others, image, self._encoder)
        if image.nbytes <= KEPT:
            self._appearance.append(_BESIDE.submit(shrink, image, size, size).result)
            self._for_others.append(cache(for_others))
            return
        if len(self) > 1:
            self._for_others[-2]()  # it may lag by a frame: of a large clip each takes 38 MB
        self._for_others.append(_BESIDE.submit(for_others).result)
        self._appearance.append(partial(np.asarray, shrink(image, size, size)))


class Sampler:
    """Picks keyframes with a VGG-16 engine (`images` [N, 3, size, size] to `features` [N, 512]), `batch` images at a
    time; as many as suit the engine's device if not given."""

    def __init__(self, spec: SamplerSpec, vgg16: Engine, batch: int | None = None) -> None:
        self.spec = spec
        self._vgg16 = vgg16
        self._batch = batch or suited_batch(vgg16, spec.size)
        self._norm = Normalisation(spec.channels, spec.scale, spec.mean, spec.std)

    def pick(self, candidates: Candidates) -> list[int]:
        """Positions among the candidates of the keyframes, in time order; repeats only where frames are too few."""
        count = self.spec.keyframes
        if len(candidates) <= count:
            return repeat_evenly(len(candidates), count)
        return select(self.features(candidates), count)

    def features(self, candidates: Candidates) -> np.ndarray:
        """Fused features, float32 [N, 1024]: appearance and motion through VGG-16, each row of each L2-normalised."""
        motion = self.embed(candidates.motion)
        appearance = self.embed(candidates.appearance)  # last: these may still be on their way
        return np.concatenate([_unit_rows(appearance), _unit_rows(motion)], axis=1)

    def embed(self, images: list[np.ndarray]) -> np.ndarray:
        """VGG-16's features, float32 [N, 512], of images, uint8 or float32 0 to 255: BGR [size, size, 3], or grey
        [size, size].

        Of equal images the network sees one: a map of no motion, a frame that the camera repeated. An image's features
        do not depend on those beside it, so nothing is chosen otherwise.
        """
        first, same = distinct(images)
        # Even batches: a small last one would run slower, and an engine prepares each size that it has not seen.
        batches = np.array_split(first, -(-len(first) // self._batch))
        rows = [self._vgg16({"images": self._tensor([images[at] for at in batch])})["features"] for batch in batches]
        features: np.ndarray = np.concatenate(rows)[same]
        return features

    def _tensor(self, images: list[np.ndarray]) -> np.ndarray:
        return normalise(np.stack(images), self._norm)


def _reduced_for_others(image: np.ndarray, encoder: EncoderSpec) -> tuple[np.ndarray, np.ndarray]:
    """What the encoder reads of a frame, and a person. Not of `Candidates`: they would hold themselves, and frames."""
    return fit_square(image, encoder.size, encoder.fit, encoder.resize, shrink).copy(), _thumbnail(image)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """For an eye alone: halved, which is many times as fast as other averages, then bilinear, which looks the same."""
    ratio = min(1.0, THUMBNAIL / max(image.shape[:2]))
    width, height = (max(1, round(side * ratio)) for side in image.shape[1::-1])
    while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
        rows, columns = image.shape[0] // 2, image.shape[1] // 2
        image = resize(image[: 2 * rows, : 2 * columns], columns, rows)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def suited_batch(vgg16: Engine, size: int) -> int:
    """Frames of `size` x `size` pixels that suit the engine's device at a time."""
    return cached_batch(size) if vgg16.device == "cpu" else VGG_BATCH


def cached_batch(size: int) -> int:
    """Frames of `size` x `size` pixels that a processor is given at a time."""
    return max(1, min(VGG_BATCH, CACHED // (2 * 64 * 4 * size * size)))


def distinct(images: list[np.ndarray]) -> tuple[list[int], list[int]]:
    """Where each different image is first, and for every image which of those it equals, bit for bit."""
    first: list[int] = []
    same: list[int] = []
    alike: dict[bytes, list[int]] = {}  # by every eighth pixel of every eighth row: the whole is seldom compared
    for at, image in enumerate(images):
        kin = alike.setdefault(image[::PROBE, ::PROBE].tobytes(), [])
        found = next((place for place in kin if np.array_equal(images[first[place]], image)), None)
        if found is None:
            found = len(first)
            kin.append(found)
            first.append(at)
        same.append(found)
    return first, same


def repeat_evenly(frames: int, count: int) -> list[int]:
    """`count` positions over `frames` <= count frames, in order, each used as evenly as can be."""
    return [index * frames // count for index in range(count)]


def select(features: np.ndarray, count: int) -> list[int]:
    """Positions of `count` keyframes among features float32 [N, D], N > count, in rising order without repeats."""
    labels = kmeans(features, count)
    return nearest_members(lda(pca(features, min(PCA_DIMS, len(features) - 1)), labels, count - 1), labels, count)


def nearest_members(space: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
    """Positions, in rising order, of the member nearest each cluster's mean among [N, D], filled up to `count` <= N."""
    chosen = set()
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        distance = np.linalg.norm(space[members] - space[members].mean(axis=0), axis=1)
        chosen.add(int(members[np.argmin(distance.round(6))]))  # rounded: the earlier of two equal frames
    # Identical frames (a still picture) leave clusters empty: fill up evenly from what was not chosen.
    rest = [index for index in range(len(space)) if index not in chosen]
    missing = count - len(chosen)
    chosen.update(rest[index * len(rest) // missing] for index in range(missing))
    return sorted(chosen)


def kmeans(features: np.ndarray, count: int) -> np.ndarray:
    """Cluster labels int [N] of features float32 [N, D], N >= count: K-means from the clusters of `ward`."""
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, ITERATIONS, 0.0)
    samples = np.ascontiguousarray(features, dtype=np.float32)
    start = ward(samples, count).astype(np.int32)
    _, labels, _ = cv2.kmeans(samples, count, start, criteria, 1, cv2.KMEANS_USE_INITIAL_LABELS)
    return np.asarray(labels).ravel()


def ward(features: np.ndarray, count: int) -> np.ndarray:
    """Cluster labels int [N] of features [N, D], N >= count: the two clusters are joined, again and again, that add
    least to the squares within, until `count` are left (Ward 1963; costs updated after Lance and Williams 1967).
    """
    rows = features.astype(np.float64)
    norms = (rows**2).sum(axis=1)
    # `rows @ rows.T` by itself: NumPy has BLAS work out one triangle. Of `2 * rows @ rows.T` it would share both among
    # threads, each of which spins for some 30 ms after it.
    cost = np.maximum(norms[:, None] + norms - 2 * (rows @ rows.T), 0) / 2
    np.fill_diagonal(cost, np.inf)
    sizes, labels = np.ones(len(rows)), np.arange(len(rows))
    for _ in range(len(rows) - count):
        kept, gone = divmod(int(cost.argmin()), len(rows))
        least = cost[kept, gone]
        joined = (sizes + sizes[kept]) * cost[kept] + (sizes + sizes[gone]) * cost[gone] - sizes * least
        cost[kept] = cost[:, kept] = joined / (sizes + sizes[kept] + sizes[gone])
        cost[gone] = cost[:, gone] = cost[kept, kept] = np.inf
        sizes[kept] += sizes[gone]
        labels[labels == gone] = kept
    return np.asarray(np.unique(labels, return_inverse=True)[1])


def pca(features: np.ndarray, dims: int) -> np.ndarray:
    """Scores on the first `dims` principal components: [N, D] to float64 [N, dims]."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    # Of N x N products, as rows are few: an SVD of N x D takes ten times as long.
    variances, axes = np.linalg.eigh(centred @ centred.T)
    return np.asarray(axes[:, ::-1][:, :dims] * np.sqrt(np.maximum(variances[::-1][:dims], 0)))


def lda(features: np.ndarray, labels: np.ndarray, dims: int, shrinkage: float = SHRINKAGE) -> np.ndarray:
    """Linear discriminant projection with shrinkage: [N, D] and labels [N] to float64 [N, at most `dims`].

    Axes are eigenvectors of (St - Sw) v = lambda Sw v with v' Sw v = 1, by falling lambda; both scatters are shrunk
    towards their mean variance. scikit-learn's `LinearDiscriminantAnalysis(solver="eigen", shrinkage=...)` is the same.
    """
    features = features.astype(np.float64)
    residual = features.copy()
    for label in np.unique(labels):
        residual[labels == label] -= features[labels == label].mean(axis=0)
    within = _shrink(residual.T @ residual / len(features), shrinkage)
    centred = features - features.mean(axis=0)
    total = _shrink(centred.T @ centred / len(features), shrinkage)
    variance, axes = np.linalg.eigh(within)
    if variance[-1] <= 0:  # clusters of identical frames: nothing to whiten, all members are equally near
        return features[:, :dims]
    whiten = axes / np.sqrt(np.maximum(variance, variance[-1] * np.finfo(np.float64).eps))
    ratio, turned = np.linalg.eigh(whiten.T @ (total - within) @ whiten)
    return np.asarray(features @ whiten @ turned[:, np.argsort(ratio)[::-1][:dims]])


def _shrink(scatter: np.ndarray, shrinkage: float) -> np.ndarray:
    mean_variance = np.trace(scatter) / len(scatter)
    return np.asarray((1.0 - shrinkage) * scatter + shrinkage * mean_variance * np.eye(len(scatter)))


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)
