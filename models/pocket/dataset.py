"""Clips for training the pocket model: real ones with labels, rendered ones with exact truth, and footage without a
hoop, all kept as small JPEGs.

The cache lives outside the project: real footage is not ours to publish, and rendered footage can be rendered again.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from . import elsewhere, renderer
from .photos import load_photos
from .shot import Contact, Entry, Exit, Outcome, Shot, View

Array = npt.NDArray[Any]
Crop = tuple[float, float, float, float]  # left, top, width, height in shares of the picture

FRAMES = 16  # frames a clip is described from
FRAME_SIZE = 192  # pixels, the encoder's input
STORED_SIZE = 224  # pixels, what the cache keeps
PANNED = 0.35  # share of views under a moving camera: without, a camera that moves is taken for footage without a hoop
WIDENED = 0.25  # share of views that reach beyond the picture's edges, so that hoops look further off
OTHER_COLOURS = 0.3  # share of views whose colours change places: red rims are not all that is to be learnt
MAX_CANDIDATES = 64  # frames a clip is thinned to before 16 are chosen
PATCH = 16
GRID = FRAME_SIZE // PATCH
BLOCK = 250  # clips made and kept at a time
RENDERED_HELD_OUT = 1_000_000_000  # seeds from here on are never trained on


@dataclass(frozen=True)
class StoredClip:
    """A clip at `STORED_SIZE`: JPEG of each frame, its labels, and where ball and ring are when that is known.

    `shot` and `view` are None where no hoop is in view. `ball` is float32 [N, 4] (x, y, radius in shares of the
    picture, 1 when inside it), `ring` float32 [N, 3] (x, y, width likewise); both None where they are not known.
    `picks` are the frames that the runtime's sampler chooses.
    """

    name: str
    jpegs: tuple[bytes, ...]
    shot: Shot | None
    view: View | None
    ball: Array | None = None
    ring: Array | None = None
    picks: tuple[int, ...] | None = None

    def frame(self, index: int) -> Array:
        """uint8 [STORED_SIZE, STORED_SIZE, 3], BGR."""
        return cast(Array, cv2.imdecode(np.frombuffer(self.jpegs[index], np.uint8), cv2.IMREAD_COLOR))

    def seems_made(self) -> bool:
        """Whether the ball is ever seen in front of the net or behind it, or in it; False where tracks are unknown."""
        if self.ball is None or self.ring is None:
            return False
        across, below = ((self.ball[:, :2] - self.ring[:, :2]) / self.ring[:, 2:]).T  # in ring widths
        return bool(((np.abs(across) < 0.45) & (below > 0.15) & (below < 1.0) & (self.ball[:, 3] > 0)).any())


@dataclass(frozen=True)
class Sample:
    """One clip as the network sees it: `frames` uint8 [16, 192, 192, 3] BGR and its labels, None without a hoop.

    `ball` is float32 [8, 12, 12], 1 where a tubelet's patch holds the ball's centre; `ring` likewise; `path` is float32
    [8, 3], the ball's place from the ring's centre in ring widths (right, up) and 1 when it is in the picture. `known`
    says whether these three are true (rendered) or absent (real).
    """

    frames: Array
    shot: Shot | None
    view: View | None
    ball: Array
    ring: Array
    path: Array
    known: bool


def default_cache() -> Path:
    """Folder for decoded clips: `$XDG_CACHE_HOME/svrt/pocket` or `~/.cache/svrt/pocket`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "svrt" / "pocket"


def read_labels(folder: Path) -> list[dict[str, str]]:
    """Rows of `labels.tsv`: file, split, outcome, view, entry, contact, exit, …"""
    with (folder / "labels.tsv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def shot_of(row: dict[str, str]) -> Shot:
    """The labels of one row of `labels.tsv`."""
    contacts = () if row["contact"] == "none" else tuple(row["contact"].split("+"))
    return Shot(
        cast(Outcome, row["outcome"]),
        cast(Entry, row["entry"]),
        cast("tuple[Contact, ...]", contacts),
        cast(Exit, row["exit"]),
    )


def decode_clip(path: Path) -> list[Array]:
    """Every frame of a video, uint8 [H, W, 3] BGR."""
    capture, frames = cv2.VideoCapture(str(path)), list[Array]()
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        frames.append(frame)
    if not frames:
        raise FileNotFoundError(f"{path}: no frames could be read")
    return frames


def stretch(frame: Array, size: int) -> Array:
    """Resize to a square, aspect ignored: area averages when shrinking, linear when enlarging."""
    shrinking = frame.shape[0] >= size and frame.shape[1] >= size
    return cast(Array, cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR))


def candidates(count: int) -> Array:
    """Indices of every frame up to 64, else 64 evenly spaced: int64 [min(count, 64)]."""
    if count <= MAX_CANDIDATES:
        return np.arange(count)
    return np.asarray(np.linspace(0, count - 1, MAX_CANDIDATES).round(), dtype=np.int64)


def _pack(frame: Array) -> bytes:
    _, data = cv2.imencode(".jpg", stretch(frame, STORED_SIZE), (cv2.IMWRITE_JPEG_QUALITY, 92))
    return data.tobytes()


def _store(path: Path, clips: Sequence[StoredClip]) -> None:
    """One .npz: all JPEGs end to end, with lengths, and the labels as arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    empty = np.zeros((0, 4), np.float32)
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial,
        data=np.frombuffer(b"".join(b"".join(c.jpegs) for c in clips), np.uint8),
        lengths=np.array([len(j) for c in clips for j in c.jpegs], np.int64),
        counts=np.array([len(c.jpegs) for c in clips], np.int64),
        names=np.array([c.name for c in clips]),
        labels=np.array([_label(c) for c in clips]),
        ball=np.concatenate([empty if c.ball is None else c.ball for c in clips]),
        ring=np.concatenate([empty[:, :3] if c.ring is None else c.ring for c in clips]),
        tracked=np.array([c.ball is not None for c in clips]),
    )
    partial.rename(path)


def _label(clip: StoredClip) -> tuple[str, ...]:
    shot = clip.shot
    if shot is None or clip.view is None:
        return ("none", "", "", "", "")
    return (shot.outcome, shot.entry, "+".join(shot.contacts), shot.exit, clip.view)


def _load(path: Path) -> list[StoredClip]:
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in stored.files}
    data, clips = arrays["data"].tobytes(), []
    ends = np.cumsum(arrays["lengths"])
    frame = track = 0
    for k, count in enumerate(arrays["counts"]):
        jpegs = tuple(data[ends[i] - arrays["lengths"][i] : ends[i]] for i in range(frame, frame + count))
        outcome, entry, contact, exit_, view = arrays["labels"][k]
        shot = None if outcome == "none" else Shot(outcome, entry, tuple(contact.split("+")) if contact else (), exit_)
        tracked = bool(arrays["tracked"][k])
        ball = arrays["ball"][track : track + count] if tracked else None
        ring = arrays["ring"][track : track + count] if tracked else None
        clips.append(StoredClip(str(arrays["names"][k]), jpegs, shot, view or None, ball, ring))
        frame, track = frame + count, track + count * tracked
    return clips


def _workers(processes: int) -> ProcessPoolExecutor:
    """Fresh interpreters: a fork would inherit OpenCV's threads half alive, and wait for them for ever."""
    return ProcessPoolExecutor(processes, get_context("spawn"))


def _decode_stored(folder: Path, row: dict[str, str]) -> StoredClip:
    cv2.setNumThreads(1)
    frames = decode_clip(folder / row["file"])
    jpegs = tuple(_pack(frames[i]) for i in candidates(len(frames)))
    return StoredClip(row["file"], jpegs, shot_of(row), cast(View, row["view"]))


def real_clips(folder: Path, split: str, cache: Path, processes: int = 2) -> list[StoredClip]:
    """The labelled clips of `folder` in one split ("train" or "val"), decoded once."""
    table = (folder / "labels.tsv").read_bytes()
    path = cache / f"real-{split}-{hashlib.sha256(table + str(STORED_SIZE).encode()).hexdigest()[:12]}.npz"
    if not path.exists():
        rows = [row for row in read_labels(folder) if row["split"] == split]
        with _workers(processes) as pool:
            _store(path, list(pool.map(_decode_stored, [folder] * len(rows), rows, chunksize=4)))
    return _load(path)


def _render_stored(seed: int) -> StoredClip:
    cv2.setNumThreads(1)
    clip = renderer.render(seed, size=STORED_SIZE)
    truth = clip.truth
    share = np.float32(1 / STORED_SIZE)
    ball = truth.ball * np.array([share, share, share, 1], np.float32)
    jpegs = tuple(_pack(frame) for frame in clip.frames)
    return StoredClip(f"rendered-{seed}", jpegs, truth.shot, truth.view, ball, truth.ring * share)


def _digest(films: Iterable[Array]) -> str:
    return hashlib.sha256(b"".join(film.tobytes() for film in films)).hexdigest()[:8]


def rendered_clips(first_seed: int, count: int, cache: Path, processes: int = 2) -> list[StoredClip]:
    """Clips of the seeds from `first_seed`, rendered in blocks that are kept in the cache."""
    looks = [renderer.render(seed, size=64) for seed in range(16)]
    labels = np.frombuffer(repr([clip.truth.shot for clip in looks]).encode(), np.uint8)
    look = _digest([labels, *(clip.frames for clip in looks[:3])])
    return _made(_render_stored, f"rendered-{look}", range(first_seed, first_seed + count), cache, processes)


def _made(make: Callable[[int], StoredClip], name: str, seeds: range, cache: Path, processes: int) -> list[StoredClip]:
    """`make(seed)` for each of `seeds`, in blocks of `BLOCK` that are kept in the cache under `name`."""
    clips: list[StoredClip] = []
    for start in seeds[::BLOCK]:
        block = range(start, min(start + BLOCK, seeds.stop))
        path = cache / f"{name}-{start}-{len(block)}.npz"
        if not path.exists():
            with _workers(processes) as pool:
                _store(path, list(pool.map(make, block, chunksize=10)))
        clips.extend(_load(path))
    return clips


@lru_cache(1)
def _photos() -> list[Array]:
    return load_photos()


def _film_stored(seed: int) -> StoredClip:
    cv2.setNumThreads(1)
    jpegs = tuple(_pack(frame) for frame in elsewhere.film(seed, STORED_SIZE, _photos()))
    return StoredClip(f"elsewhere-{seed}", jpegs, None, None)


def clips_elsewhere(first_seed: int, count: int, cache: Path, processes: int = 2) -> list[StoredClip]:
    """Footage without a hoop of the seeds from `first_seed`, made in blocks that are kept in the cache."""
    look = _digest(elsewhere.film(seed, 64, _photos()) for seed in range(3))
    return _made(_film_stored, f"elsewhere-{look}", range(first_seed, first_seed + count), cache, processes)


def strata(count: int, rng: np.random.Generator) -> Array:
    """One random frame out of each of 16 equal stretches of a clip: rising int64 [16]."""
    edges = np.linspace(0, count, FRAMES + 1)
    return np.asarray(np.minimum(edges[:-1] + rng.random(FRAMES) * np.diff(edges), count - 1), dtype=np.int64)


def evenly(count: int) -> Array:
    """16 evenly spaced frames, the middle of each stretch: rising int64 [16]."""
    return np.minimum((np.arange(FRAMES) + 0.5) * count / FRAMES, count - 1).astype(np.int64)


def _choose(clip: StoredClip, rng: np.random.Generator) -> Array:
    """Strata, any 16 frames in order, or the runtime sampler's picks when they are known."""
    count, way = len(clip.jpegs), rng.random()
    if clip.picks is not None and way < 0.4:
        return np.array(clip.picks)
    if way < 0.75 or count <= FRAMES:
        return strata(count, rng)
    return np.sort(rng.choice(count, FRAMES, replace=False))


def plain_sample(clip: StoredClip) -> Sample:
    """A clip without any augmentation: the sampler's picks, or evenly spaced frames when there are none."""
    indices = evenly(len(clip.jpegs)) if clip.picks is None else np.array(clip.picks)
    frames = np.stack([stretch(clip.frame(int(i)), FRAME_SIZE) for i in indices])
    return _labelled(clip, frames, indices, np.array([[0.0, 0.0, 1.0, 1.0]]), False)


def augmented_sample(clip: StoredClip, rng: np.random.Generator) -> Sample:
    """A random mirror, crop, pan, choice of frames, colour, sharpness and noise of a clip."""
    low, high = (0.95, 1.25) if rng.random() < WIDENED else (0.7, 1.0)
    if rng.random() < PANNED:
        return _augmented(clip, rng, _crop(rng, low - 0.05, high - 0.1), _crop(rng, low - 0.05, high - 0.1))
    crop = _crop(rng, low + 0.05, high)
    return _augmented(clip, rng, crop, crop)


def _augmented(clip: StoredClip, rng: np.random.Generator, first: Crop, last: Crop) -> Sample:
    """A sample whose crop moves from `first` to `last` while the clip runs."""
    indices, mirror = _choose(clip, rng), bool(rng.random() < 0.5)
    run = (indices / max(len(clip.jpegs) - 1, 1))[:, None]
    crops = np.array(first) * (1 - run) + np.array(last) * run
    frames = _recoloured(
        np.stack([_cut(clip.frame(int(i)), *crop) for i, crop in zip(indices, crops, strict=True)]), rng
    )
    if mirror:
        frames = np.ascontiguousarray(frames[:, :, ::-1])
    return _labelled(clip, frames, indices, crops, mirror)


def _cut(frame: Array, left: float, top: float, width: float, height: float) -> Array:
    """Part of a frame, in shares of it, as a square of `FRAME_SIZE`; edges may lie between pixels: a pan is smooth."""
    size = np.array([width, height]) * STORED_SIZE / FRAME_SIZE
    start = np.array([left, top]) * STORED_SIZE + size / 2 - 0.5
    matrix = np.array([[size[0], 0, start[0]], [0, size[1], start[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cast(
        Array, cv2.warpAffine(frame, matrix, (FRAME_SIZE, FRAME_SIZE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    )


def _crop(rng: np.random.Generator, least: float, most: float) -> Crop:
    width, height = rng.uniform(least, most, 2)
    left, top = (rng.uniform(min(0.0, 1 - side), max(0.0, 1 - side)) for side in (width, height))
    return left, top, width, height


def _recoloured(frames: Array, rng: np.random.Generator) -> Array:
    """Brightness, contrast, gamma, tint, saturation, and now and then other colours, blur and grain."""
    if rng.random() < OTHER_COLOURS:
        frames = frames[..., rng.permutation(3)]
    ramp = np.arange(256, dtype=np.float32) / 255
    tables = []
    gain, lift, gamma = rng.uniform(0.75, 1.25), rng.uniform(-0.08, 0.08), rng.uniform(0.75, 1.3)
    for tint in rng.normal(1.0, 0.05, 3):
        tables.append(np.clip((ramp**gamma * gain * tint + lift) * 255, 0, 255))
    frames = np.stack([np.stack(tables, axis=-1).astype(np.uint8)[frames[..., c], c] for c in range(3)], axis=-1)
    saturation, blur, noise = rng.uniform(0.4, 1.3), rng.uniform(0.4, 0.9), rng.uniform(1, 6)
    soften, grain = rng.random() < 0.2, rng.random() < 0.25
    for frame in frames:
        grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        cv2.addWeighted(frame, saturation, grey, 1 - saturation, 0, dst=frame)
        if soften:
            cv2.GaussianBlur(frame, (0, 0), blur, dst=frame)
        if grain:
            speckle = rng.standard_normal(frame.shape[:2], dtype=np.float32)[..., None] * noise
            frame[:] = np.clip(frame + speckle, 0, 255)
    return frames


def _labelled(clip: StoredClip, frames: Array, indices: Array, crops: Array, mirror: bool) -> Sample:
    """Attach labels, carried through the crop of each frame (left, top, width, height in shares) and the mirror."""
    shape = (FRAMES // 2, GRID, GRID)
    shot, view = clip.shot, clip.view
    if mirror and shot is not None:
        shot, view = shot.mirrored(), _mirrored_view(view)
    if clip.ball is None or clip.ring is None:
        nothing, still = np.zeros(shape, np.float32), np.zeros((FRAMES // 2, 3), np.float32)
        return Sample(frames, shot, view, nothing, nothing, still, False)
    ball, ring = clip.ball[indices], clip.ring[indices]
    origin, extent = crops[:, :2], crops[:, 2:]
    ball_at, ring_at = ((track[:, :2] - origin) / extent for track in (ball, ring))
    if mirror:
        ball_at[:, 0], ring_at[:, 0] = 1 - ball_at[:, 0], 1 - ring_at[:, 0]
    inside = ball[:, 3] * ((ball_at > -0.03) & (ball_at < 1.03)).all(axis=1)
    offset = (ball_at - ring_at) * extent / ring[:, 2:3] * (1, -1)
    maps = _heat(ball_at, inside), _heat(ring_at, np.ones(FRAMES))
    return Sample(frames, shot, view, *maps, _path(offset, inside), True)


def _path(offset: Array, inside: Array) -> Array:
    """Mean offset over the frames of each tubelet that show the ball, at most 3 ring widths, and whether any does."""
    shown = inside.reshape(-1, 2, 1)
    mean = (np.clip(offset, -3, 3).reshape(-1, 2, 2) * shown).sum(axis=1) / np.maximum(shown.sum(axis=1), 1)
    return np.asarray(np.concatenate([mean, shown.max(axis=1)], axis=1), dtype=np.float32)


def _heat(at: Array, shown: Array) -> Array:
    """float32 [8, 12, 12]: 1 at the patch that holds a point, falling to 0.1 a patch away; the nearer of two frames."""
    centres = (np.arange(GRID) + 0.5) / GRID
    across = np.exp(-2.3 * ((at[:, :1] - centres) * GRID) ** 2)
    down = np.exp(-2.3 * ((at[:, 1:] - centres) * GRID) ** 2)
    heat = down[:, :, None] * across[:, None, :] * shown[:, None, None]
    return cast(Array, heat.reshape(FRAMES // 2, 2, GRID, GRID).max(axis=1).astype(np.float32))


def _mirrored_view(view: View | None) -> View | None:
    return {"left": "right", "right": "left"}.get(view, view)  # type: ignore[arg-type, return-value]
