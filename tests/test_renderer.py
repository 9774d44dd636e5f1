"""The rendered rim camera: the same seed gives the same pixels, and its truth is true."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from svrt.models.pocket import renderer, take
from svrt.models.pocket.ball import BallLook
from svrt.models.pocket.camera import Camera
from svrt.models.pocket.court import choose_look
from svrt.models.pocket.dataset import decode_clip
from svrt.models.pocket.flight import (
    BALL_RADIUS,
    NET_LENGTH,
    RING_RADIUS,
    TUBE_RADIUS,
    Board,
    Flight,
    fly,
    launch,
    net_radius,
)
from svrt.models.pocket.renderer import SAMPLES, RenderedClip, render
from svrt.models.pocket.scene import NetState, Structure
from svrt.models.pocket.shot import Contact

BOARD = Board(half_width=0.9, bottom=-0.15, top=0.9, fan=False)
SAMPLE = Path(__file__).parent.parent / "models" / "pocket" / "sample"
SEEDS = range(12)


# Frames, contacts and passing the net, and the grey levels of a 4 x 4 thumbnail of the first contact's frame.
FILMED = {
    0: (32, "entry 5, rim 16, exit 27", "155 155 155 155 162 147 150 161 139 127 101 163 174 157 163 174"),
    1: (30, "entry 0, net 17, through 20, exit 22", "93 67 96 100 78 68 108 108 100 90 100 115 122 123 115 124"),
    3: (40, "entry 1, backboard 6, rim 8, exit 36", "100 71 77 58 65 68 98 102 119 174 132 208 99 111 97 79"),
    11: (33, "entry 0, net 16, through 19, exit 25", "56 41 44 38 58 99 125 40 93 154 119 33 96 85 100 87"),
}


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
    assert tuple(kind for kind in kinds[1:-1] if kind != "through") == truth.contacts
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < len(frames)
    assert (truth.contacts[-1:] == ("net",)) == (truth.outcome == "make")
    assert truth.exit == "down" or truth.outcome == "miss"


@pytest.mark.parametrize("seed", FILMED)
def test_a_seed_films_what_it_always_filmed(seed: int) -> None:
    """To a grey level: processors differ in the last bit, and any other random draw changes everything."""
    frames, events, levels = FILMED[seed]
    filmed = clip(seed)
    assert len(filmed.frames) == frames
    assert ", ".join(f"{event.kind} {event.frame}" for event in filmed.truth.events) == events
    grey = cv2.cvtColor(filmed.frames[filmed.truth.events[1].frame], cv2.COLOR_BGR2GRAY)
    thumbnail = cv2.resize(grey, (4, 4), interpolation=cv2.INTER_AREA).ravel().astype(int)
    np.testing.assert_allclose(thumbnail, [int(level) for level in levels.split()], atol=1)


@pytest.mark.parametrize("outcome", SAMPLES)
def test_the_committed_sample_clips_are_what_their_seeds_film(outcome: str) -> None:
    drawn = render(SAMPLES[outcome], outcome, seconds=2.0).frames.astype(np.float32)
    kept = np.stack(decode_clip(SAMPLE / f"{outcome}.mp4"))
    assert np.abs(drawn - kept).mean(axis=(1, 2, 3)).max() < 6, "grey levels; compression leaves 3, another clip 70"


def test_a_made_ball_has_passed_the_net_after_it_touched_it_and_before_it_leaves_the_picture() -> None:
    passed = 0
    for seed in range(60):
        truth = clip(seed).truth
        kinds = [event.kind for event in truth.events]
        assert kinds.count("through") <= (truth.outcome == "make")
        if "through" in kinds:
            passed += 1
            assert kinds[-3:] == ["net", "through", "exit"]
            net, through = truth.events[-3].frame, truth.events[-2].frame
            assert truth.ball[through, 3] == 1
            assert 0.04 < (through - net) / 30 < 0.7, "seconds from the top of a 0.42 m net to below its hem"
            assert truth.ball[through, 1] > truth.ball[net, 1], "lower in the picture"
    assert passed > 10


def test_an_events_frame_is_the_first_exposed_at_its_step_or_later() -> None:
    nothing = np.zeros((80, 3))
    flight = Flight(nothing, nothing, made_at=20)
    exposed = 3 + 8 * np.arange(10)  # steps 3, 11, 19, 27, ...
    touches: list[tuple[Contact, int]] = [("rim", 11), ("net", 12)]
    events = renderer._events(flight, touches, exposed, entered=0, left_at=5)
    assert [(event.kind, event.frame) for event in events] == [
        ("entry", 0),
        ("rim", 1),
        ("net", 2),
        ("through", 3),
        ("exit", 5),
    ]
    gone = renderer._events(flight, touches, exposed, entered=0, left_at=3)
    assert "through" not in [event.kind for event in gone], "it leaves the picture with the frame that would show it"


def camera_at(azimuth: float, elevation: float) -> Camera:
    """A camera 5 m from the ring (degrees), which is 30 pixels wide in the middle of a picture of 128."""
    return Camera.around_ring(math.radians(azimuth), math.radians(elevation), 5.0, 0.0, 30.0, (64.0, 64.0))


@pytest.mark.parametrize(
    ("azimuth", "elevation", "hidden"),
    [(0, 20, False), (84, 20, False), (96, 20, False), (110, 20, False), (180, 10, True), (150, 10, True)],
)
def test_the_board_hides_the_ring_from_behind_alone(azimuth: float, elevation: float, hidden: bool) -> None:
    assert renderer.hidden_by_board(camera_at(azimuth, elevation), BOARD) is hidden


@pytest.mark.parametrize(("azimuth", "covered"), [(0.0, False), (180.0, True)])
def test_ring_net_and_ball_are_before_the_board_for_a_camera_in_front_and_behind_it_for_one_behind(
    azimuth: float, covered: bool
) -> None:
    rng, camera = np.random.default_rng(2), camera_at(azimuth, 10)
    look, background = choose_look(rng), np.zeros((128, 128, 3), np.uint8)
    structure = Structure(background, camera, BOARD, look, rng)
    resting = Flight(np.zeros((40, 3)), np.zeros((40, 3)))  # a ball in the ring
    picture = renderer._compose(
        resting, 8, NetState.at_rest(rng), camera, structure, background, look, BallLook(rng, look), 0.01
    )
    solid = structure.mask[..., 0] == 1
    assert (picture[solid] == structure.image[solid]).all() == covered


@pytest.mark.parametrize(
    ("right", "up", "depth", "entry"),
    [
        (0, 50, 5.0, "top"),
        (18, 50, 5.0, "top"),
        (-22, 50, 5.0, None),  # on the diagonal
        (-28, 50, 5.0, "left"),
        (60, 5, 5.0, "right"),
        (60, -5, 5.0, "right"),  # barely below the ring
        (60, -30, 5.0, "right"),  # from behind the board, say
        (-40, -30, 5.0, None),
        (-30, -30, 5.0, "front"),
        (60, -5, 3.0, "front"),  # much nearer than the ring
        (5, 5, 5.0, None),  # at the ring itself
    ],
)
def test_the_side_from_which_a_ball_comes_is_what_a_person_would_say(
    right: float, up: float, depth: float, entry: str | None
) -> None:
    seen = np.array([64.0 + right, 64.0 - up, depth])
    assert take._entry(seen, camera_at(0, 20)) == entry


def test_a_ball_is_through_at_the_first_step_that_has_it_half_out_below_the_net() -> None:
    flight = fly((0.02, 0.0, 0.6), (0.0, 0.0, 0.0), 2.0, BOARD, 0.6, 0.6, 4.0)
    (_, touched), out = flight.contacts[-1], int(np.argmax(flight.positions[:, 2] < -NET_LENGTH - BALL_RADIUS / 2))
    assert touched < out
    assert flight.made_at is not None
    assert abs(flight.made_at - out) <= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_the_track_says_where_the_ball_is(seed: int) -> None:
    """Where the truth has the ball in free view, the picture there differs from the same place without the ball."""
    truth, frames = clip(seed).truth, clip(seed).frames.astype(np.float32)
    entry, exit_ = truth.events[0].frame, truth.events[-1].frame
    assert truth.ball.shape == (len(frames), 4)
    assert truth.ball[entry, 3] == 1
    assert truth.ball[exit_ - 1, 3] == 1
    assert truth.ball[exit_:, 3].max(initial=0) == 0
    nearer = []
    for k, (x, y, radius, shown) in enumerate(truth.ball):
        if shown and min(x, y) > 0 and max(x, y) < 96:
            still = np.median(frames[max(k - 4, 0) : k + 5], axis=0)  # a hand holds the camera: of these frames alone
            change = np.abs(frames[k] - still).mean(axis=2)
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
