"""Event recall: how many of the things that happen in a clip have a keyframe beside them, and how sure that figure is.

Only rendered clips have events whose frame is known exactly; `svrt.models.pocket.renderer.Event` says what each kind
means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...models.pocket.renderer import Event, EventKind, ShotTruth
from ..bootstrap import LEVEL, RESAMPLES, SEED, Estimate, wilson

TOLERANCE = 1  # frames: a keyframe this near still shows the event
RECALLED: tuple[EventKind, ...] = ("backboard", "rim", "net", "through")  # contacts, and passing the net
EDGES: tuple[EventKind, ...] = ("entry", "exit")  # counted apart: the edge of the picture makes them, not the shot


class Watched(Protocol):
    """A clip's events, and the frame numbers of the keyframes that were chosen from it."""

    @property
    def events(self) -> Sequence[Event]: ...

    @property
    def keyframes(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class Share:
    """`hits` of `total`, and a 95 % interval."""

    hits: int
    total: int
    share: float
    low: float
    high: float

    @classmethod
    def of_clips(cls, hits: int, total: int) -> Share:
        """A share of clips, each right or wrong by itself: Wilson's interval."""
        return cls(hits, total, hits / total, *_wilson(hits, total))

    def __str__(self) -> str:
        return f"{self.share:.2f} [{self.low:.2f}, {self.high:.2f}]"


def seen_events(truth: ShotTruth) -> list[Event]:
    """The events that a viewer of the clip could see happen, in order.

    Left out: an entry in frame 0, where the ball was in the picture from the start, and a contact whose frame has the
    ball outside the picture.
    """
    return [event for event in truth.events if _is_seen(event, truth)]


def _is_seen(event: Event, truth: ShotTruth) -> bool:
    if event.kind == "exit":
        return True
    if event.kind == "entry":
        return event.frame > 0
    return bool(truth.ball[event.frame, 3])


def is_recalled(frame: int, keyframes: Sequence[int], tolerance: int = TOLERANCE) -> bool:
    """Whether one of the keyframes lies within `tolerance` frames of `frame`."""
    return any(abs(keyframe - frame) <= tolerance for keyframe in keyframes)


def coverage(keyframes: Sequence[int], frames: int, tolerance: int = TOLERANCE) -> float:
    """Share of a clip's `frames` frames that lie within `tolerance` of a keyframe: the recall of events at random."""
    return sum(is_recalled(frame, keyframes, tolerance) for frame in range(frames)) / frames


def recall(clips: Sequence[Watched], kinds: Sequence[str] = RECALLED, tolerance: int = TOLERANCE) -> Share | None:
    """Share of the events of `kinds` that have a keyframe within `tolerance` frames; None where there are none.

    The interval is a bootstrap's over clips. Where all events or none are recalled that would be a point: it is
    Wilson's then, of as many trials as clips have such events.
    """
    hits, totals = _counts(clips, kinds, tolerance)
    hit, total = int(hits.sum()), int(totals.sum())
    if total == 0:
        return None
    if hit in (0, total):
        trials = int(np.count_nonzero(totals))
        low, high = _wilson(trials if hit else 0, trials)
    else:
        low, high = _interval(resampled(hits, totals))
    return Share(hit, total, hit / total, low, high)


def recall_gain(clips: Sequence[Watched], others: Sequence[Watched]) -> Estimate | None:
    """Recall less that of `others`, which are the same clips in the same order, its interval a bootstrap's over clips.

    None where no clip has an event.
    """
    (hits, totals), (other_hits, _) = (_counts(each, RECALLED, TOLERANCE) for each in (clips, others))
    if totals.sum() == 0:
        return None
    gained = hits - other_hits
    return Estimate(float(gained.sum() / totals.sum()), *_interval(resampled(gained, totals)), len(clips))


def resampled(hits: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Hits over totals, int64 [N] by clip, of `RESAMPLES` draws of N clips with repeats: float64 [at most RESAMPLES].

    Clips are drawn, not events: what happens in one clip is seen or missed together. Draws without an event are left
    out.
    """
    drawn = np.random.default_rng(SEED).integers(len(hits), size=(RESAMPLES, len(hits)))
    total = totals[drawn].sum(axis=1)
    return np.asarray(hits[drawn].sum(axis=1)[total > 0] / total[total > 0])


def _wilson(hits: int, total: int) -> tuple[float, float]:
    low, high = wilson(hits, total)
    return min(low, hits / total), max(high, hits / total)  # at 0 and 1 it is off by one rounding


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(draws, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def _counts(clips: Sequence[Watched], kinds: Sequence[str], tolerance: int) -> tuple[np.ndarray, np.ndarray]:
    """By clip: how many events of these kinds are recalled, and how many there are; int64 [N] each."""
    hits, totals = [], []
    for clip in clips:
        frames = [event.frame for event in clip.events if event.kind in kinds]
        hits.append(sum(is_recalled(frame, clip.keyframes, tolerance) for frame in frames))
        totals.append(len(frames))
    return np.array(hits, np.int64), np.array(totals, np.int64)
