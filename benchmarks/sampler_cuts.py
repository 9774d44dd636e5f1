"""What each cut of the sampler's cost saves, and whether it keeps the keyframes.

    python -m svrt.benchmarks.sampler_cuts --bundle BUNDLE [--other BUNDLE ...] [--rounds N] [--json FILE] CLIP...

Every cut is held against the sampler without any: float32 in ONNX Runtime, every picture and every motion map seen,
8 at a time. Of another bundle (another input size or precision of VGG-16) its own sampler is the cut. The cuts take
turns on each clip, so that a noisy machine disturbs all alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..bundle import VGG16, Bundle, SamplerSpec
from ..errors import SvrtError
from ..runtime.engines import ANYWHERE, Engine, load
from ..runtime.engines.trial import installed
from ..runtime.sampler import VGG_BATCH, Candidates, Sampler, cached_batch, select
from ..runtime.video import read_candidates

ROUNDS = 3
BATCHES = (1, 2, 4, 8, 16)
BASE = "none: every picture, float32"

_PURPOSE = "What each cut of the sampler's cost saves, and whether it keeps the keyframes."
_T = TypeVar("_T")


class EveryPicture(Sampler):
    """The sampler without its cuts: the network sees pictures and maps that are equal, too."""

    def embed(self, images: list[np.ndarray]) -> np.ndarray:
        starts = range(0, len(images), VGG_BATCH)
        rows = [self._vgg16({"images": self._tensor(images[at : at + VGG_BATCH])})["features"] for at in starts]
        return np.concatenate(rows)


@dataclass(frozen=True)
class Cut:
    """A way to sample: from a bundle's candidates, with a sampler of its own."""

    name: str
    bundle: Bundle
    sampler: Sampler


@dataclass
class Row:
    """A cut over all clips: milliseconds of VGG-16 by clip (the shortest round), clips with exactly the keyframes of
    no cut, and keyframes shared with it out of all."""

    cut: str
    vgg16_ms: list[float]
    same_clips: int = 0
    shared: int = 0
    keyframes: int = 0


@dataclass(frozen=True)
class Remainder:
    """The sampler's milliseconds on a clip that are not VGG-16's: reducing frames, and choosing."""

    clip: str
    frames: int
    reduce_ms: float
    choose_ms: float


@dataclass(frozen=True)
class Found:
    rows: list[Row]
    remainders: list[Remainder]


def cuts(bundle: Bundle, others: Sequence[Bundle]) -> list[Cut]:
    """No cut first, then each by itself, then what `auto` may take."""
    spec = bundle.manifest.sampler
    plain = _engine(bundle, ANYWHERE)
    made = [Cut(BASE, bundle, EveryPicture(spec, plain))]
    made += [Cut(f"equal pictures once, {n} at a time", bundle, Sampler(spec, plain, n)) for n in BATCHES]
    chosen = cached_batch(spec.size)
    for backend in installed():
        engine = _engine(bundle, backend)
        name = f"{backend} in {engine.precision}, equal pictures once, {chosen} at a time"
        made.append(Cut(name, bundle, Sampler(spec, engine)))
    for other in others:
        theirs = other.manifest.sampler
        engine = _engine(other, ANYWHERE)
        name = f"{other.path.name}: {theirs.size} pixels, {other.manifest.files[VGG16].precision}"
        made.append(Cut(name, other, Sampler(theirs, engine)))
    return made


def _engine(bundle: Bundle, backend: str) -> Engine:
    return load(bundle.file(VGG16), backend, bundle.manifest.files[VGG16].precision)


def measure(
    clips: Sequence[Path], ways: Sequence[Cut], rounds: int, tell: Callable[[str], None] = lambda _: None
) -> Found:
    """Sample every clip in every way. Raises `ClipError` for a clip that cannot be read."""
    found = Found([Row(way.name, []) for way in ways], [])
    for clip in clips:
        tell(f"{clip}")
        read = {way.bundle.path: _read(clip, way.bundle) for way in ways}
        base = read[ways[0].bundle.path]
        shortest = [float("inf")] * len(ways)
        picks: list[list[int]] = [[] for _ in ways]
        choose_ms = float("inf")
        for _ in range(rounds):
            for at, way in enumerate(ways):
                features, ms = _timed(partial(way.sampler.features, read[way.bundle.path]))
                shortest[at] = min(shortest[at], ms)
                picks[at], chose = _timed(partial(_choose, features, way.bundle.manifest.sampler))
                choose_ms = min(choose_ms, chose)
        found.remainders.append(Remainder(str(clip), len(base), base.reduce_s * 1e3, choose_ms))
        for row, ms, picked in zip(found.rows, shortest, picks, strict=True):
            row.vgg16_ms.append(ms)
            row.same_clips += picked == picks[0]
            row.shared += len(set(picked) & set(picks[0]))
            row.keyframes += len(set(picks[0]))
    return found


def _read(clip: Path, bundle: Bundle) -> Candidates:
    manifest = bundle.manifest
    return read_candidates(clip, manifest.sampler.candidates, lambda: Candidates(manifest.sampler, manifest.encoder))[0]


def _choose(features: np.ndarray, spec: SamplerSpec) -> list[int]:
    """Every frame of a clip too short to choose from."""
    return select(features, spec.keyframes) if len(features) > spec.keyframes else list(range(len(features)))


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    started = time.perf_counter()
    result = work()
    return result, (time.perf_counter() - started) * 1e3


def table(found: Found) -> str:
    """The figures as Markdown."""
    clips, base = len(found.remainders), statistics.median(found.rows[0].vgg16_ms)
    lines = ["| cut | VGG-16, ms a clip | of no cut | clips with the same keyframes | keyframes shared |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for row in found.rows:
        ms, share = statistics.median(row.vgg16_ms), row.shared / max(1, row.keyframes)
        lines.append(f"| {row.cut} | {ms:.0f} | {ms / base:.2f} | {row.same_clips} of {clips} | {share:.1%} |")
    lines.append("")
    lines.append("| beside VGG-16, median of clips | ms | of no cut's VGG-16 |")
    lines.append("| --- | --- | --- |")
    for name, values in (
        ("reducing frames: luma, Haar, resizes", [one.reduce_ms for one in found.remainders]),
        ("K-means, PCA, LDA", [one.choose_ms for one in found.remainders]),
    ):
        ms = statistics.median(values)
        lines.append(f"| {name} | {ms:.1f} | {ms / base:.1%} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m svrt.benchmarks.sampler_cuts", description=_PURPOSE)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--other", type=Path, action="append", default=[], help="a bundle whose sampler is a cut")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="file for every figure")
    parser.add_argument("clips", type=Path, nargs="+", metavar="CLIP")
    given = parser.parse_args(arguments)
    try:
        bundle, others = Bundle.load(given.bundle), [Bundle.load(path) for path in given.other]
        found = measure(
            given.clips, cuts(bundle, others), max(1, given.rounds), lambda clip: print(clip, file=sys.stderr)
        )
    except SvrtError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    print(table(found))
    if given.json is not None:
        given.json.write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
