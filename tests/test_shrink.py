"""Frames averaged over areas, against OpenCV."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from svrt.kernels import shrink as module
from svrt.kernels.preprocess import resize
from svrt.kernels.shrink import shrink


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def left(monkeypatch):
    """Width and height of each frame that was left to OpenCV."""
    sizes = []
    monkeypatch.setattr(module, "resize", lambda *args: sizes.append(args[1:]) or resize(*args))
    return sizes


def assert_as_opencv(frame, width, height, share=0.002):
    found, expected = shrink(frame, width, height), resize(frame, width, height)
    assert found.dtype == np.uint8 and found.shape == expected.shape
    off = np.abs(found.astype(int) - expected)
    assert off.max() <= 1 and (off > 0).mean() <= share


@pytest.mark.parametrize("size", [96, 192, 224])
@pytest.mark.parametrize("high, wide", [(1080, 1920), (720, 1280), (1920, 1080), (1081, 1917), (850, 478), (723, 723)])
def test_frames_of_cameras_are_off_by_a_level_in_a_thousandth_of_the_pixels(high, wide, size, left):
    assert_as_opencv(noise(high, wide, 3), size, size)
    assert left == []


def test_frames_below_a_megabyte_are_left_to_opencv(left):
    frame = noise(582, 600, 3)
    np.testing.assert_array_equal(shrink(frame, 96, 96), resize(frame, 96, 96))
    assert_as_opencv(noise(583, 600, 3), 96, 96)
    assert left == [(96, 96)]


@settings(max_examples=80, deadline=None)
@given(
    high=st.integers(1, 200),
    wide=st.integers(1, 200),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([(), (1,), (3,)]),
)
def test_any_frame_becomes_what_opencv_makes_of_it(high, wide, height, width, channels):
    frame = noise(high, wide, *channels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALL", 0)
        found = shrink(frame, width, height)
    expected = resize(frame, width, height)
    assert found.dtype == np.uint8
    assert np.abs(found.reshape(height, width, -1).astype(int) - expected.reshape(height, width, -1)).max() <= 1


def test_more_rows_than_a_strip_and_a_last_strip_of_one(left, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)
    for height in (module.STRIP, module.STRIP + 1, 2 * module.STRIP + 1):
        assert_as_opencv(noise(5 * height + 2, 400, 3), 70, height)
    assert left == []


@pytest.mark.parametrize("rows", [768, 766])
def test_white_stays_white_where_most_rows_become_one(rows, left, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)
    white = np.full((rows, 50, 3), 255, np.uint8)
    assert (shrink(white, 7, 3) == 255).all()
    assert left == []


def test_what_opencv_is_no_slower_at_or_alone_can_do_is_left_to_it(left, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)
    wanted = [
        (noise(299, 400, 3), 96, 100),  # fewer than three rows for one
        (noise(300, 90, 3), 96, 100),  # as many columns as are not there
        (noise(1080, 1920, 3), 480, 270),  # blocks of whole pixels
        (noise(771, 50, 3), 7, 3),  # more rows than 16 bits have room for
        (noise(400, 400, 3).astype(np.float32), 96, 96),
    ]
    for frame, width, height in wanted:
        np.testing.assert_array_equal(shrink(frame, width, height), resize(frame, width, height))
    assert left == [one[1:] for one in wanted]


def test_a_part_of_a_larger_picture(left, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)
    assert_as_opencv(noise(800, 900, 3)[40:740:2, 33:833], 60, 60)
    assert left == []
