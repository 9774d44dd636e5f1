"""Haar and motion, against PyWavelets."""

import numpy as np
import pytest
import pywt
from hypothesis import given, settings
from hypothesis import strategies as st
from svrt.kernels import haar


def plane(height, width, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (height, width)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), level=st.integers(0, 4), seed=st.integers(0, 9))
def test_haar_equals_pywavelets_at_any_size_and_level(height, width, level, seed):
    image = plane(height, width, seed)
    expected = image
    for _ in range(level):
        expected = pywt.dwt2(expected.astype(np.float64), "haar")[0]
    result = haar.approximation(image, level)
    assert result.dtype == np.float32
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_level_2_is_four_times_the_mean_of_each_4x4_block():
    image = plane(48, 64)
    means = image.reshape(12, 4, 16, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(haar.approximation(image, 2), 4 * means, rtol=1e-5)


@pytest.mark.parametrize("wavelet", ["db2", "sym4", "bior2.2"])
def test_other_wavelets_are_those_of_pywavelets(wavelet):
    image = plane(75, 102)
    expected = pywt.wavedec2(image.astype(np.float64), wavelet, level=2)[0]
    np.testing.assert_allclose(haar.approximation(image, 2, wavelet), expected, rtol=1e-5, atol=1e-3)


def test_motion_is_the_absolute_difference_in_grey_levels_and_starts_at_zero():
    dark, bright = np.zeros((32, 32), np.float32), np.full((32, 32), 100, np.float32)
    bands = np.stack([haar.approximation(x, 2) for x in (dark, bright, dark)])
    maps = haar.motion_maps(bands, level=2)
    assert maps.shape == (3, 8, 8)
    np.testing.assert_allclose(maps[0], 0)
    np.testing.assert_allclose(maps[1:], 100, rtol=1e-6)


def test_luma_weighs_as_bt601():
    frame = np.zeros((1, 3, 3), np.uint8)
    frame[0, 0, 0] = frame[0, 1, 1] = frame[0, 2, 2] = 255
    np.testing.assert_allclose(haar.luma(frame)[0], [29, 150, 76], atol=0.5)


def test_a_negative_level_is_refused():
    with pytest.raises(ValueError, match="level"):
        haar.approximation(plane(8, 8), -1)
