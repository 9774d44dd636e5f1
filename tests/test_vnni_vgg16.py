"""VGG-16 by svrt's own kernels: convolutions against float64, and features against ONNX Runtime."""

import numpy as np
import pytest
from conftest import needs_vnni
from small_graphs import write_encoder, write_one_block, write_vgg16
from svrt.bundle import GRAPH_COSINE
from svrt.errors import EngineError
from svrt.kernels.vnni.convolution import LARGEST_SUM, Filters, Kernels, Map, packed
from svrt.models.graph import Graph
from svrt.runtime.engines import EngineStore, UnsuitedError, load, load_one
from svrt.runtime.engines.trial import least_cosine


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return EngineStore(tmp_path_factory.mktemp("cache"), 8)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def convolution(maps, weight, bias):
    """ReLU of a convolution with a margin of one, float64: [N, C, H, W] to [N, F, H, W]."""
    images, _, height, width = maps.shape
    margin = np.pad(maps.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    sums = np.zeros((images, len(weight), height, width))
    for row in range(3):
        for column in range(3):
            part = margin[:, :, row : row + height, column : column + width]
            sums += np.einsum("fc,nchw->nfhw", weight[:, :, row, column].astype(np.float64), part)
    return np.maximum(sums + bias[:, None, None], 0)


def halved(maps):
    height, width = (side // 2 for side in maps.shape[2:])
    return maps[:, :, : 2 * height, : 2 * width].reshape(*maps.shape[:2], height, 2, width, 2).max(axis=(3, 5))


def channels_last(maps):
    return maps.transpose(0, 2, 3, 1)


def off_by(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


SIDES = [(4, 4), (1, 1), (2, 7), (5, 3), (8, 12), (14, 14), (33, 21)]


@needs_vnni
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("height", "width"), SIDES)
def test_a_convolution_of_maps_of_any_sides(library, height, width, pooled):
    images, channels, filters = 3, 64, 128
    maps = np.maximum(noise(images, channels, height, width), 0)
    weight, bias = noise(filters, channels, 3, 3, seed=1) / 24, noise(filters, seed=2)
    sides = (height // 2, width // 2) if pooled else (height, width)
    source, to = Map(images, height, width, channels), Map(images, *sides, filters)
    source.values[:] = channels_last(maps)
    kernels = Kernels(library, 2)
    expected = convolution(source.values.transpose(0, 3, 1, 2), weight, bias)  # of maps as float16 holds them
    expected = channels_last(halved(expected) if pooled else expected)
    for _ in range(2):  # again, into maps that hold something
        kernels.convolve(source, Filters(*packed(weight), bias), to, images, pooled=pooled)
        if expected.size:
            assert off_by(to.values, expected) < 1e-3
            np.testing.assert_allclose(to.values, expected, rtol=0, atol=5e-3 * expected.max())
    around = to._whole.copy()
    around[:, 1 : sides[0] + 1, 1 : sides[1] + 1] = 0
    assert not around.any(), "nothing is written around the maps"


@needs_vnni
@pytest.mark.parametrize(("height", "width"), SIDES)
def test_the_first_convolution_is_float32(library, height, width):
    pixels, weight, bias = noise(2, 3, height, width) * 60, noise(128, 3, 3, 3, seed=1), noise(128, seed=2)
    to = Map(2, height, width, 128)
    Kernels(library, 2).first(pixels, np.ascontiguousarray(weight.transpose(1, 2, 3, 0)), bias, to)
    expected = channels_last(convolution(pixels, weight, bias))
    np.testing.assert_allclose(to.values, expected, rtol=2**-11, atol=2e-3)


def test_no_sum_can_overflow():
    """The largest sums of pixels with the signs of a filter's weights, whatever these are."""
    for weight in (noise(64, 512, 3, 3), np.ones((64, 512, 3, 3)), noise(64, 16, 3, 3) ** 9, np.zeros((64, 16, 3, 3))):
        values, steps = packed(weight)
        assert np.isfinite(steps).all() and (steps > 0).all()
        assert np.abs(values.astype(np.int64)).sum(axis=(2, 4)).max() * LARGEST_SUM < 2**31
        assert values.max() <= 2**15 - 1 and values.min() >= -(2**15 - 1)


@needs_vnni
def test_maps_beyond_float16_stay_at_its_largest(library):
    source, to = Map(1, 8, 8, 64), Map(1, 8, 8, 64)
    source.values[:] = 60000
    weight = np.full((64, 64, 3, 3), 1, np.float32)
    Kernels(library, 1).convolve(source, Filters(*packed(weight), np.zeros(64, np.float32)), to, 1, pooled=False)
    assert (to.values == 65504).all()


def images(count, size, seed=0):
    return {"images": (np.random.default_rng(seed).standard_normal((count, 3, size, size)) * 60).astype(np.float32)}


@needs_vnni
@pytest.mark.parametrize("stored", ["fp32", "fp16"])
@pytest.mark.parametrize("size", [32, 47, 96])
def test_features_are_nearer_to_float32_than_bfloat16_comes(store, tmp_path, size, stored):
    path = write_vgg16(tmp_path / "vgg16.onnx", stored, size)
    engine = load(path, "vnni", stored, store)
    found = engine(images(3, size))["features"]
    expected = load(path, "onnxruntime", "fp32")(images(3, size))["features"]
    assert (engine.name, engine.precision, engine.device) == ("vnni", "int16", "cpu")
    assert engine.inputs == {"images": (None, 3, size, size)}
    assert found.shape == (3, 512) and found.dtype == np.float32
    assert least_cosine({"y": found}, {"y": expected}) > GRAPH_COSINE["int16"]
    assert off_by(found, expected) < 5e-3


@needs_vnni
def test_an_images_features_depend_on_nothing_but_it(store, tmp_path):
    engine, batch = load(write_vgg16(tmp_path / "vgg16.onnx"), "vnni", "fp32", store), images(5, 32)["images"]
    whole = engine({"images": batch})["features"]
    kept = whole.copy()
    alone = [engine({"images": batch[at : at + 1]})["features"] for at in range(5)]
    np.testing.assert_array_equal(np.concatenate(alone), whole)
    np.testing.assert_array_equal(engine({"images": batch[::-1]})["features"][::-1], whole)
    np.testing.assert_array_equal(engine({"images": np.asfortranarray(batch)})["features"], whole)
    np.testing.assert_array_equal(whole, kept, "what a run gave is not changed by the next")


@needs_vnni
def test_weights_are_arranged_once_and_threads_change_nothing(tmp_path, monkeypatch):
    from svrt.runtime.engines import vnni_files

    path, said = write_vgg16(tmp_path / "vgg16.onnx"), []
    store = EngineStore(tmp_path / "cache", 8, say=said.append)
    found = load(path, "vnni", "fp32", store)(images(2, 32))["features"]
    for threads in (1, 7):
        monkeypatch.setattr(vnni_files, "usable_processors", lambda threads=threads: threads)
        np.testing.assert_array_equal(load(path, "vnni", "fp32", store)(images(2, 32))["features"], found)
    assert said == ["arranging the weights of vgg16.onnx for vnni (once)"]
    assert sorted(file.suffix for file in (tmp_path / "cache").iterdir()) == [".lock", ".so", ".vnni"]


@needs_vnni
@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"pictures": images(1, 32)["images"]},
        {**images(1, 32), "more": images(1, 32)["images"]},
        images(1, 48),
        {"images": images(1, 32)["images"][0]},
        {"images": images(1, 32)["images"].astype(np.float64)},
    ],
)
def test_inputs_that_do_not_fit_are_refused(store, tmp_path, inputs):
    engine = load(write_vgg16(tmp_path / "vgg16.onnx"), "vnni", "fp32", store)
    with pytest.raises(EngineError, match=r"vgg16\.onnx: input"):
        engine(inputs)


def write_chain(path, filters=(64, 64), kernel=3, then=(("Relu", {}),), last=True, **attributes):
    """Two convolutions, of which the second, and what follows it, is as given."""
    with Graph(path, "chain") as graph:
        value, channels = graph.input("images", ["batch", 3, 16, 16]), 3
        for at, count in enumerate(filters):
            size = kernel if at else 3
            names = [graph.constant(noise(count, channels, size, size), "weight"), graph.constant(noise(count), "bias")]
            value = graph.node(
                "Conv", [value, *names], **({"pads": [1, 1, 1, 1], **attributes} if at else {"pads": [1] * 4})
            )
            for op, rest in then if at else [("Relu", {})]:
                value = graph.node(op, [value], **rest)
            channels = count
        if last:
            value = graph.node("Flatten", [graph.node("GlobalAveragePool", [value])], axis=1)
            graph.output(value, "features", ["batch", filters[-1]])
        else:
            graph.output(value, "features", ["batch", filters[-1], 16, 16])
    return path


@needs_vnni
def test_a_chain_of_two_is_run(store, tmp_path):
    path = write_chain(
        tmp_path / "chain.onnx", then=(("Relu", {}), ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}))
    )
    found, expected = (load(path, name, "fp32", store)(images(2, 16))["features"] for name in ("vnni", "onnxruntime"))
    assert off_by(found, expected) < 1e-3


@pytest.mark.parametrize(
    "unlike",
    [
        {"filters": (64, 96)},
        {"filters": (96, 64)},
        {"filters": (64,)},
        {"kernel": 5, "pads": [2] * 4},
        {"pads": [0] * 4},
        {"strides": [2, 2]},
        {"dilations": [2, 2], "pads": [2] * 4},
        {"then": ()},
        {"then": (("Relu", {}), ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2]}))},
        {"then": (("Relu", {}), ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}))},
        {"last": False},
    ],
    ids=str,
)
def test_other_chains_are_left_to_another(store, tmp_path, unlike):
    path = write_chain(tmp_path / "chain.onnx", **unlike)
    with pytest.raises(UnsuitedError, match=r"chain\.onnx: vnni runs graphs such as VGG-16's here"):
        load_one(path, "vnni", "fp32", store)
    assert load(path, "vnni", "fp32", store).name == "onnxruntime"


def test_other_graphs_are_left_to_another(store, tmp_path):
    for path in (write_one_block(tmp_path / "block.onnx"), write_encoder(tmp_path / "encoder.onnx")):
        assert load(path, "vnni", "fp32", store).name == "onnxruntime"
