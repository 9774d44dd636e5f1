"""Keyframe choice, against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import adjusted_rand_score
from svrt.runtime import sampler


def blobs(count, clusters, dims=1024, spread=0.05, seed=0):
    """Rows around `clusters` centres, each with at least two."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(clusters), 2), rng.integers(0, clusters, count - 2 * clusters)])
    centres = rng.standard_normal((clusters, dims)).astype(np.float32)
    return centres[labels] + spread * rng.standard_normal((count, dims)).astype(np.float32), labels


def inertia(features, labels):
    return sum(((features[labels == k] - features[labels == k].mean(axis=0)) ** 2).sum() for k in np.unique(labels))


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_finds_the_partition_that_scikit_learn_finds(seed):
    features, _ = blobs(64, 16, seed=seed)
    ours = sampler.kmeans(features, 16, seed)
    theirs = KMeans(16, n_init=10, random_state=seed).fit_predict(features)
    assert adjusted_rand_score(ours, theirs) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_is_as_compact_as_scikit_learns_where_no_clusters_exist(seed):
    features = np.random.default_rng(seed).standard_normal((64, 40)).astype(np.float32)
    ours = inertia(features, sampler.kmeans(features, 16, seed))
    theirs = KMeans(16, n_init=10, random_state=seed).fit(features).inertia_
    assert ours <= theirs * 1.03  # both are the best of ten random starts


@pytest.mark.parametrize("shrinkage", [0.05, 0.1, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_lda_is_scikit_learns_eigen_solver(seed, shrinkage):
    features, labels = blobs(64, 16, dims=32, spread=0.6, seed=seed)
    theirs = LinearDiscriminantAnalysis(solver="eigen", shrinkage=shrinkage, n_components=15)
    expected = theirs.fit(features.astype(np.float64), labels).transform(features.astype(np.float64))
    ours = sampler.lda(features, labels, 15, shrinkage)
    signs = np.sign((ours * expected).sum(axis=0))  # an axis may point either way
    np.testing.assert_allclose(ours * signs, expected, rtol=1e-6, atol=1e-6)


def test_pca_is_scikit_learns():
    features, _ = blobs(40, 8)
    expected = PCA(32, svd_solver="full").fit_transform(features.astype(np.float64))
    ours = sampler.pca(features, 32)
    np.testing.assert_allclose(np.abs(ours), np.abs(expected), rtol=1e-6, atol=1e-6)


def test_each_cluster_gives_one_keyframe():
    features, labels = blobs(64, 16, seed=3)
    chosen = sampler.select(features, 16, seed=0)
    assert sorted(labels[chosen]) == list(range(16))


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(17, 64), kinds=st.integers(1, 64), seed=st.integers(0, 99))
def test_keyframes_are_distinct_and_in_time_order_even_for_a_still_picture(frames, kinds, seed):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((kinds, 64)).astype(np.float32)[rng.integers(0, kinds, frames)]
    chosen = sampler.select(features, 16, seed=0)
    assert len(set(chosen)) == 16
    assert chosen == sorted(chosen)
    assert chosen[0] >= 0 and chosen[-1] < frames
    assert chosen == sampler.select(features.copy(), 16, seed=0)


@given(frames=st.integers(1, 16))
def test_short_clips_repeat_their_frames_evenly(frames):
    chosen = sampler.repeat_evenly(frames, 16)
    uses = [chosen.count(index) for index in range(frames)]
    assert len(chosen) == 16 and chosen == sorted(chosen)
    assert max(uses) - min(uses) <= 1
