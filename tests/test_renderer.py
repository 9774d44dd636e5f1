"""The rendered rim camera: the same seed gives the same pixels, and its truth is true."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from svrt.models.pocket.flight import (
    BALL_RADIUS,
    NET_LENGTH,
    RING_RADIUS,
    TUBE_RADIUS,
    Board,
    fly,
    launch,
    net_radius,
)
from svrt.models.pocket.renderer import RenderedClip, render

BOARD = Board(half_width=0.9, bottom=-0.15, top=0.9, fan=False)
SAMPLE = Path(__file__).parent.parent / "models" / "pocket" / "sample"
SEEDS = range(12)


@cache
def clip(seed: int) -> RenderedClip:
    return render(seed, size=96)


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others() -> None:
    first, again, other = render(3, size=128), render(3, size=128), render(4, size=128)
    assert np.array_equal(first.frames, again.frames)
    assert first.truth.shot == again.truth.shot
    assert first.frames.shape != other.frames.shape or not np.array_equal(first.frames, other.frames)


def test_a_clip_has_the_asked_length_size_and_outcome() -> None:
    for outcome in ("make", "miss"):
        made = render(5, outcome, seconds=2.0, size=112)
        assert made.frames.shape == (60, 112, 112, 3)
        assert made.frames.dtype == np.uint8
        assert made.fps == 30.0
        assert made.truth.outcome == outcome


def test_unasked_clips_last_one_to_two_seconds_and_vary() -> None:
    clips = [clip(seed) for seed in SEEDS]
    assert all(30 <= len(c.frames) <= 60 for c in clips)
    assert {c.truth.outcome for c in clips} == {"make", "miss"}
    assert len({c.truth.shot for c in clips}) > 5
    assert {c.truth.background for c in clips} == {"sky", "trees"}


@pytest.mark.parametrize("seed", SEEDS)
def test_events_are_in_order_and_agree_with_the_labels(seed: int) -> None:
    truth, frames = clip(seed).truth, clip(seed).frames
    kinds = [event.kind for event in truth.events]
    times = [event.frame for event in truth.events]
    assert kinds[0] == "entry"
    assert kinds[-1] == "exit"
    assert tuple(kinds[1:-1]) == truth.contacts
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < len(frames)
    assert (truth.contacts[-1:] == ("net",)) == (truth.outcome == "make")
    assert truth.exit == "down" or truth.outcome == "miss"


@pytest.mark.parametrize("seed", SEEDS)
def test_the_track_says_where_the_ball_is(seed: int) -> None:
    """Where the truth has the ball in free view, the picture there differs from the same place without the ball."""
    truth, frames = clip(seed).truth, clip(seed).frames.astype(np.float32)
    entry, exit_ = truth.events[0].frame, truth.events[-1].frame
    assert truth.ball.shape == (len(frames), 4)
    assert truth.ball[entry, 3] == 1
    assert truth.ball[exit_ - 1, 3] == 1
    assert truth.ball[exit_:, 3].max(initial=0) == 0
    still, nearer = np.median(frames, axis=0), []
    for (x, y, radius, shown), frame in zip(truth.ball, frames, strict=True):
        if shown and min(x, y) > 0 and max(x, y) < 96:
            change = np.abs(frame - still).mean(axis=2)
            around = change[
                max(int(y - radius), 0) : int(y + radius) + 1, max(int(x - radius), 0) : int(x + radius) + 1
            ]
            nearer.append(around.mean() > 1.5 * change.mean())
    assert np.mean(nearer) > 0.7


def test_a_ball_in_free_flight_follows_the_parabola() -> None:
    start, target = (-2.0, -4.0, -1.0), (0.0, 5.0, 3.0)
    flight = fly(start, launch(start, target, 1.0), 1.0, BOARD, 0.6, 0.6, 4.0)
    assert np.allclose(flight.positions[-1] + flight.velocities[-1] / 240, target, atol=0.05)
    assert flight.contacts == []


def test_a_ball_dropped_through_the_middle_is_a_make_that_touches_only_the_net() -> None:
    flight = fly((0.0, 0.0, 0.8), (0.0, 0.0, 0.0), 2.0, BOARD, 0.6, 0.6, 4.0)
    assert flight.made_at is not None
    assert [what for what, _ in flight.contacts] == ["net"]
    free = (2 * (0.8 + NET_LENGTH) / 9.81) ** 0.5
    assert flight.made_at / 240 > free, "the net slows the ball"


def test_a_ball_dropped_onto_the_ring_bounces_and_never_enters_it() -> None:
    flight = fly((-RING_RADIUS, 0.0, 0.8), (-0.1, 0.0, 0.0), 1.5, BOARD, 0.6, 0.6, 4.0)
    assert flight.contacts[0][0] == "rim"
    radial = np.hypot(flight.positions[:, 0], flight.positions[:, 1])
    gap = np.hypot(radial - RING_RADIUS, flight.positions[:, 2])
    assert gap.min() > BALL_RADIUS + TUBE_RADIUS - 0.03


def test_a_hard_level_shot_comes_back_off_the_board() -> None:
    flight = fly((0.0, -1.0, 0.5), (0.0, 6.0, 1.0), 0.4, BOARD, 0.6, 0.6, 4.0)
    assert flight.contacts[0][0] == "backboard"
    assert flight.velocities[-1, 1] < 0
    assert flight.positions[:, 1].max() < 0.38


def test_the_net_narrows_to_its_hem() -> None:
    radii = [net_radius(z) for z in (0.1, 0.0, -0.2, -NET_LENGTH, -1.0)]
    assert radii == sorted(radii, reverse=True)
    assert radii[1] == RING_RADIUS


@pytest.mark.parametrize("name", ["make", "miss"])
def test_the_sample_clips_are_two_small_seconds(name: str) -> None:
    path = SAMPLE / f"{name}.mp4"
    assert path.stat().st_size < 300_000
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.grab():
        count += 1
    assert count == 60
    assert capture.get(cv2.CAP_PROP_FPS) == 30.0
