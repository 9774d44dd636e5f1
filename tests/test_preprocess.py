"""From frame to tensor."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from svrt.kernels.preprocess import Normalisation, fit_square, normalise, resize

IMAGENET = Normalisation("rgb", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OXFORD = Normalisation("bgr", 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_normalise_is_rgb_minus_mean_over_deviation_in_nchw():
    frames = noise(3, 20, 30, 3)
    rgb = torch.from_numpy(frames[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(IMAGENET.mean).view(3, 1, 1), torch.tensor(IMAGENET.std).view(3, 1, 1)
    result = normalise(frames, IMAGENET)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_allclose(result, ((rgb - mean) / std).numpy(), atol=2e-6)


def test_normalise_keeps_bgr_for_oxfords_weights_and_takes_float_maps():
    frames = noise(1, 8, 8, 3).astype(np.float32) + 0.25
    expected = (frames - np.array(OXFORD.mean)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(normalise(frames, OXFORD), expected, atol=1e-4)


def test_crop_is_the_centre_square_of_the_resized_frame():
    frame = noise(360, 640, 3)
    whole = cv2.resize(frame, (519, 292), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(fit_square(frame, 256, "crop", 292), whole[18:274, 131:387])


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    size=st.integers(1, 96),
    extra=st.integers(0, 20),
    fit=st.sampled_from(["crop", "stretch"]),
)
def test_every_frame_becomes_the_square_asked_for(height, width, size, extra, fit):
    frame = noise(height, width, 3)
    assert fit_square(frame, size, fit, size + extra).shape == (size, size, 3)


def test_stretch_keeps_the_borders_of_the_view():
    frame = np.zeros((100, 200, 3), np.uint8)
    frame[:, :10] = 255
    assert fit_square(frame, 50, "stretch")[:, 0].min() == 255
    assert fit_square(frame, 50, "crop").max() == 0


def test_shrinking_averages_rather_than_skips():
    board = np.indices((64, 64)).sum(axis=0) % 2 * np.float32(200)
    np.testing.assert_allclose(resize(board, 16, 16), 100)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_a_frame_of_the_right_size_is_left_alone(shape):
    frame = noise(*shape)
    assert resize(frame, 8, 8) is frame
