"""Footage without a hoop: seeded, of any kind, and truly without a ring to judge a shot by."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from svrt.models.pocket.camera import Camera
from svrt.models.pocket.elsewhere import FAR_RING, Stage, film, set_stage
from svrt.models.pocket.figure import ACTIONS, Figure
from svrt.models.pocket.flight import NET_LENGTH, RING_RADIUS
from svrt.models.pocket.photos import load_photos
from svrt.models.pocket.renderer import SAMPLES, render

SIZE = 64
SEEDS = range(40)


@cache
def clip(seed: int) -> np.ndarray:
    return film(seed, SIZE)


@cache
def stage(seed: int) -> Stage:
    return set_stage(np.random.default_rng(seed), SIZE)


def of_world(world: str) -> list[Stage]:
    return [stage(seed) for seed in range(160) if stage(seed).world == world]


def circle_seen(camera: Camera, views: np.ndarray, z: float) -> np.ndarray:
    """A circle as wide as the ring about the origin, `z` metres up, in picture pixels: float64 [N, 90, 2]."""
    angles = np.linspace(0, 2 * np.pi, 90)
    points = np.stack([RING_RADIUS * np.cos(angles), RING_RADIUS * np.sin(angles), np.full(90, z)], axis=1)
    pixels = np.concatenate([camera.project(points)[:, :2], np.ones((90, 1))], axis=1)
    return np.stack([pixels @ view.T for view in views])


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others() -> None:
    assert np.array_equal(clip(5), film(5, SIZE))
    first_frames = {clip(seed)[0].tobytes() for seed in SEEDS}
    assert len(first_frames) == len(SEEDS)


def test_a_clip_is_one_to_two_seconds_of_pictures_of_the_asked_size() -> None:
    for seed in SEEDS:
        assert clip(seed).dtype == np.uint8
        assert clip(seed).shape[1:] == (SIZE, SIZE, 3)
        assert 30 <= len(clip(seed)) <= 60
    assert film(3, 96).shape[1:] == (96, 96, 3)
    assert len({len(clip(seed)) for seed in SEEDS}) > 10


def test_pictures_change_by_more_than_grain_in_nearly_all_clips() -> None:
    moving = 0
    for seed in SEEDS:
        frames = clip(seed).astype(np.float32)
        early, late = frames[:5].mean(axis=0), frames[-5:].mean(axis=0)  # grain and compression average out
        moving += float(np.abs(early - late).max()) > 25
    assert moving >= 0.85 * len(SEEDS)


def test_clips_differ_in_brightness_and_colour_as_places_do() -> None:
    means = np.array([clip(seed).mean(axis=(0, 1, 2)) for seed in SEEDS])
    assert np.ptp(means.mean(axis=1)) > 100
    assert (means.argmax(axis=1) != 0).any()
    assert (means.argmax(axis=1) != 2).any()


def test_every_world_is_visited_and_photos_only_where_there_are_some() -> None:
    assert {stage(seed).world for seed in range(160)} == {"place", "beside", "far"}
    photo = np.zeros((40, 60, 3), np.uint8)
    worlds = {set_stage(np.random.default_rng(seed), SIZE, [photo]).world for seed in range(40)}
    assert "photo" in worlds


def test_a_hoop_far_away_is_at_most_its_stated_share_of_the_picture() -> None:
    stages = of_world("far")
    assert len(stages) > 10
    shares = []
    for far in stages:
        assert far.hoop is not None
        seen = circle_seen(far.hoop, far.views, 0.0)
        shares.append(np.ptp(seen[:, :, 0], axis=1).max() / SIZE)
    assert max(shares) <= FAR_RING
    assert min(shares) < 0.03


def test_a_rim_camera_sees_its_ring_far_wider_than_a_hoop_elsewhere() -> None:
    widths = [render(seed, size=SIZE).truth.ring[:, 2].min() / SIZE for seed in SAMPLES.values()]
    assert min(widths) > 2 * FAR_RING


def test_beside_a_hoop_neither_ring_nor_net_comes_into_the_picture() -> None:
    stages = of_world("beside")
    assert len(stages) > 5
    for beside in stages:
        assert beside.hoop is not None
        for z in (0.0, -NET_LENGTH / 2, -NET_LENGTH):
            seen = circle_seen(beside.hoop, beside.views, z)
            assert not ((seen > 0) & (seen < SIZE)).all(axis=-1).any()


def test_places_have_people_in_them_and_no_hoop() -> None:
    stages = of_world("place")
    assert all(place.hoop is None for place in stages)
    assert np.mean([len(place.figures) > 0 for place in stages]) > 0.8


@pytest.mark.parametrize("seed", range(2 * len(ACTIONS)))
def test_a_figure_keeps_its_bones_lengths_and_does_not_sink_into_the_floor(seed: int) -> None:
    figure = Figure(np.random.default_rng(seed), (1.0, 5.0, 0.0), 2.0)
    joints = np.stack([figure.joints(time) for time in np.linspace(0, 2, 30)])
    thigh = np.linalg.norm(joints[:, 8] - joints[:, 5], axis=1)
    forearm = np.linalg.norm(joints[:, 3] - joints[:, 4], axis=1)
    assert np.allclose(thigh, thigh[0])
    assert np.allclose(forearm, forearm[0])
    assert joints[:, (6, 16), 2].min() >= 0.0


def test_pictures_of_a_folder_are_read_and_other_files_passed_over(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    (tmp_path / "LICENCE.txt").write_text("CC0")
    packaged, photos = load_photos(), load_photos(tmp_path)
    assert len(photos) == len(packaged) + 1
    assert np.array_equal(photos[-1], picture)


def test_a_photo_is_seen_behind_some_clips() -> None:
    blue = np.zeros((64, 64, 3), np.uint8)
    blue[..., 0] = 200
    seed = next(s for s in range(60) if set_stage(np.random.default_rng(s), SIZE, [blue]).world == "photo")
    frame = film(seed, SIZE, [blue])[0].astype(int)
    assert ((frame[..., 0] > frame[..., 1] + 60) & (frame[..., 0] > frame[..., 2] + 60)).mean() > 0.3
