"""Keyframe choice, against scikit-learn."""

import gc
import itertools
import weakref

import numpy as np
import pytest
from conftest import SAMPLES, moving_ball
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import adjusted_rand_score
from small_graphs import write_one_block
from svrt.bundle import VGG16, EncoderSpec, SamplerSpec
from svrt.kernels.preprocess import Normalisation, fit_square, normalise, resize
from svrt.runtime import sampler
from svrt.runtime.engines import load
from svrt.runtime.video import Frame, read_candidates


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
    ours = sampler.kmeans(features, 16)
    theirs = KMeans(16, n_init=10, random_state=seed).fit_predict(features)
    assert adjusted_rand_score(ours, theirs) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_is_as_compact_as_scikit_learns_where_no_clusters_exist(seed):
    features = np.random.default_rng(seed).standard_normal((64, 40)).astype(np.float32)
    ours = inertia(features, sampler.kmeans(features, 16))
    theirs = KMeans(16, n_init=10, random_state=seed).fit(features).inertia_
    assert ours <= theirs  # the best of ten random starts


@pytest.mark.parametrize("seed", range(5))
def test_the_start_is_scikit_learns_ward_and_no_more_compact_than_what_comes_of_it(seed):
    features = np.random.default_rng(seed).standard_normal((64, 40)).astype(np.float32)
    ours = sampler.ward(features, 16)
    theirs = AgglomerativeClustering(16, linkage="ward").fit_predict(features)
    assert adjusted_rand_score(ours, theirs) == 1.0
    assert set(ours.tolist()) == set(range(16))
    labels = sampler.kmeans(features, 16)
    assert inertia(features, labels) <= inertia(features, ours)
    centres = np.stack([features[labels == label].mean(axis=0) for label in range(16)])
    nearest = np.linalg.norm(features[:, None] - centres, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(nearest, labels)


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
    chosen = sampler.select(features, 16)
    assert sorted(labels[chosen]) == list(range(16))


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(17, 64), kinds=st.integers(1, 64), seed=st.integers(0, 99))
def test_keyframes_are_distinct_and_in_time_order_even_for_a_still_picture(frames, kinds, seed):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((kinds, 64)).astype(np.float32)[rng.integers(0, kinds, frames)]
    chosen = sampler.select(features, 16)
    assert len(set(chosen)) == 16
    assert chosen == sorted(chosen)
    assert chosen[0] >= 0 and chosen[-1] < frames
    assert chosen == sampler.select(features.copy(), 16)


@given(frames=st.integers(1, 16))
def test_short_clips_repeat_their_frames_evenly(frames):
    chosen = sampler.repeat_evenly(frames, 16)
    uses = [chosen.count(index) for index in range(frames)]
    assert len(chosen) == 16 and chosen == sorted(chosen)
    assert max(uses) - min(uses) <= 1


NORM = {"scale": 1.0, "mean": [104.0, 117.0, 124.0], "std": [1.0, 1.0, 1.0]}
SPEC = SamplerSpec(16, 64, "haar", 2, 32, "bgr", **NORM)
VIEWS = EncoderSpec(16, 32, "stretch", 32, [8, 2, 2], **NORM)


class Eye:
    """An engine that keeps what it was shown, in front of a real one."""

    def __init__(self, engine):
        self.engine, self.device, self.shown = engine, engine.device, []

    def __call__(self, inputs):
        self.shown.append(inputs["images"])
        return self.engine(inputs)


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    return load(write_one_block(tmp_path_factory.mktemp("block") / "block.onnx"), "onnxruntime")


def reduced(images):
    candidates = sampler.Candidates(SPEC, VIEWS)
    for index, image in enumerate(images):
        candidates.add(Frame(index, index / 30, image))
    return candidates


def plain_features(candidates, engine):
    """Every picture and every map by itself, whatever it holds."""

    def embed(images):
        norm = Normalisation(SPEC.channels, SPEC.scale, SPEC.mean, SPEC.std)
        rows = [engine({"images": normalise(image[None], norm)})["features"] for image in images]
        rows = np.concatenate(rows)
        return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)

    maps = [np.repeat(m[..., None], 3, axis=2) for m in candidates.motion]
    return np.concatenate([embed(candidates.appearance), embed(maps)], axis=1)


BALL = list(moving_ball(30))
CLIPS = {
    "moving": BALL,
    "each frame twice, as 30 Hz stored at 60": [frame for frame in BALL for _ in range(2)],
    "stands still, moves, stands still": [BALL[0]] * 12 + BALL + [BALL[-1]] * 12,
    "back and forth": BALL + BALL[::-1],
    "still": [BALL[0]] * 20,
}


@pytest.mark.parametrize("name", CLIPS)
def test_equal_pictures_are_seen_once_and_the_choice_is_that_of_seeing_each(block, name):
    candidates, eye = reduced(CLIPS[name]), Eye(block)
    chooser = sampler.Sampler(SPEC, eye)
    features, expected = chooser.features(candidates), plain_features(candidates, block)
    np.testing.assert_array_equal(features, expected)
    assert chooser.pick(candidates) == sampler.select(expected, SPEC.keyframes)
    shown = [image for batch in eye.shown for image in batch]
    pictures = {image.tobytes() for image in candidates.appearance}
    maps = {image.tobytes() for image in candidates.motion}
    assert len(shown) == 2 * (len(pictures) + len(maps)), "twice: for the features, and for the choice"


@pytest.mark.parametrize("kept", [0, sampler.KEPT])
def test_a_frame_kept_whole_gives_what_one_reduced_at_once_gives_and_goes_with_the_others(monkeypatch, kept):
    """Without waiting for a collection of garbage, as 64 of them take 32 MB."""
    monkeypatch.setattr(sampler, "KEPT", kept)
    images = [image.copy() for image in BALL[:5]]
    candidates = reduced(images)
    for place, image in enumerate(images):
        np.testing.assert_array_equal(candidates.appearance[place], resize(image, SPEC.size, SPEC.size))
        expected = fit_square(image, VIEWS.size, VIEWS.fit, VIEWS.resize)
        np.testing.assert_array_equal(candidates.view(place), expected)
        assert max(candidates.thumbnail(place).shape) <= sampler.THUMBNAIL
    held = [weakref.ref(image) for image in images]
    gc.disable()
    try:
        del candidates, images, image
        assert not any(one() is not None for one in held)
    finally:
        gc.enable()


def test_frames_without_motion_share_one_inference(block):
    candidates, eye = reduced([BALL[0]] * 20), Eye(block)
    sampler.Sampler(SPEC, eye).features(candidates)
    assert [len(batch) for batch in eye.shown] == [1, 1], "one picture, one empty map"


@given(kinds=st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_distinct_images_are_told_apart_wherever_they_differ(kinds):
    places = [(0, 0), (31, 31), (8, 16), (3, 5), (1, 0)]  # on the probe's grid, and off it
    images = []
    for kind in kinds:
        image = np.zeros((32, 32), np.float32)
        if kind:
            image[places[kind - 1]] = 1e-3
        images.append(image)
    first, same = sampler.distinct(images)
    assert [kinds[at] for at in first] == list(dict.fromkeys(kinds)), "each kind once, where it first is"
    assert [kinds[first[place]] for place in same] == kinds


def test_a_batch_keeps_the_widest_maps_in_the_cache():
    batches = {size: sampler.cached_batch(size) for size in (32, 112, 128, 160, 224, 448, 1024)}
    assert batches == {32: 8, 112: 8, 128: 8, 160: 5, 224: 2, 448: 1, 1024: 1}
    for size, other in itertools.product((128, 224), (1, 8)):
        frames = np.zeros((other, size, size, 64), np.float32).nbytes * 2
        assert (frames <= sampler.CACHED) == (other <= batches[size])


def test_a_gpu_is_given_even_batches_of_eight_at_most(block):
    eye = Eye(block)
    eye.device = "cuda:0"
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    sampler.Sampler(SPEC, eye).embed(list(noise))
    assert [len(batch) for batch in eye.shown] == [7, 7, 6]


def test_features_that_move_in_their_third_digit_keep_the_keyframes(pocket):
    """As they do from one processor to another. Of random starts 93 % are kept here."""
    manifest, kept = pocket.manifest, []
    chooser = sampler.Sampler(manifest.sampler, load(pocket.file(VGG16)))
    for clip in (SAMPLES / "make.mp4", SAMPLES / "miss.mp4"):
        seen, _ = read_candidates(clip, 64, lambda: sampler.Candidates(manifest.sampler, manifest.encoder))
        features = chooser.features(seen)
        chosen = set(sampler.select(features, 16))
        for seed in range(10):
            noise = np.random.default_rng(seed).standard_normal(features.shape, np.float32)
            kept.append(len(chosen & set(sampler.select(features * (1 + 3e-3 * noise), 16))) / 16)
    assert np.mean(kept) >= 0.96
