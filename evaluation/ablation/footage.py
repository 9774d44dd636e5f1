"""The clips that the variants are tried on, and what is true of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...bundle import EncoderSpec, SamplerSpec
from ...errors import SvrtError
from ...models.pocket.captions import caption
from ...models.pocket.dataset import RENDERED_HELD_OUT, read_labels
from ...models.pocket.renderer import Event, render
from ...runtime.video import Frame, candidate_indices, read_candidates
from .recall import seen_events
from .seen import Reduced

SHORT, LONG, REAL = "rendered, 1 to 2 s", "rendered, 2 s", "real"
LONG_SECONDS = 2.0


@dataclass(frozen=True)
class Truth:
    """What is true of a clip: its outcome, a sentence, and its events, empty where they are not known."""

    outcome: str
    reference: str
    events: list[Event]


@dataclass(frozen=True)
class Footage:
    """A clip to try the variants on; `load` renders it or reads it, and may raise `ClipError`.

    `version` changes when the clip or its labels do. `is_described`: whether sentences are wanted too.
    """

    group: str
    name: str
    version: str
    is_described: bool
    load: Callable[[SamplerSpec, EncoderSpec], tuple[Reduced, Truth]]


def rendered_footage(count: int) -> list[Footage]:
    """`count` clips that were never trained on, each cut to exactly 2 s, and as long as it comes.

    The short ones are not described: that would be half of all the time, for clips as long as the real ones are.
    """
    seeds = range(RENDERED_HELD_OUT, RENDERED_HELD_OUT + count)
    long = [Footage(LONG, f"seed {seed}", "", True, partial(_render, seed, LONG_SECONDS)) for seed in seeds]
    return long + [Footage(SHORT, f"seed {seed}", "", False, partial(_render, seed, None)) for seed in seeds]


def _render(seed: int, seconds: float | None, sampler: SamplerSpec, encoder: EncoderSpec) -> tuple[Reduced, Truth]:
    clip, reduced = render(seed, seconds=seconds), Reduced(sampler, encoder)
    for index in candidate_indices(len(clip.frames), sampler.candidates):
        reduced.add(Frame(index, index / clip.fps, clip.frames[index]))
    return reduced, Truth(clip.truth.outcome, caption(clip.truth.shot).text, seen_events(clip.truth))


def real_footage(rim: Path) -> list[Footage]:
    """The validation clips that `labels.tsv` in `rim` lists.

    Raises `SvrtError` where there is no such table, or a clip of it is missing.
    """
    try:
        rows = [row for row in read_labels(rim) if row["split"] == "val"]
        return [_real(rim / row["file"], row) for row in rows]
    except KeyError as exc:
        raise SvrtError(f"{rim / 'labels.tsv'}: lacks the column {exc}; give the folder of labelled rim clips") from exc
    except OSError as exc:
        advice = "give the folder of labelled rim clips"
        raise SvrtError(f"{exc.filename}: cannot be read: {exc.strerror}; {advice}") from exc


def _real(path: Path, row: dict[str, str]) -> Footage:
    truth, status = Truth(row["outcome"], row["caption"], []), path.stat()
    known = (status.st_size, status.st_mtime_ns, truth.outcome, truth.reference)
    version = hashlib.sha256(repr(known).encode()).hexdigest()[:12]
    return Footage(REAL, row["file"], version, True, partial(_read, path, truth))


def _read(path: Path, truth: Truth, sampler: SamplerSpec, encoder: EncoderSpec) -> tuple[Reduced, Truth]:
    reduced, _ = read_candidates(path, sampler.candidates, lambda: Reduced(sampler, encoder))
    return reduced, truth
