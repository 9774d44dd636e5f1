"""Winograd's convolutions against OpenVINO's own, in float32, and which of a graph's become such."""

import importlib.util
from collections import Counter

import numpy as np
import pytest
from conftest import SAMPLES
from small_graphs import write_encoder, write_vgg16
from svrt.bundle import VGG16
from svrt.errors import EngineError
from svrt.runtime.engines import EngineStore, load, load_one
from svrt.runtime.engines.trial import least_cosine
from svrt.runtime.sampler import Candidates, Sampler
from svrt.runtime.video import read_candidates

if not importlib.util.find_spec("openvino"):
    pytest.skip("OpenVINO is not installed", allow_module_level=True)

import openvino as ov
from openvino import opset13 as opset
from svrt.runtime.engines import compiled_graph
from svrt.runtime.engines.openvino import _core
from svrt.runtime.engines.winograd import use_winograd

NAME = "openvino-winograd"
RNG = np.random.default_rng(0)


def in_float32(graph, pixels):
    (found,) = _core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([pixels]).to_tuple()
    return found


def rewritten(graph):
    """How many convolutions of a graph are Winograd's: each has 16 sums of pixels."""
    return Counter(node.get_type_name() for node in graph.get_ordered_ops())["GroupConvolution"] / 16


def block(value, filters=128, kernel=3, strides=1, pads=1, dilations=1, ends=("add", "relu")):
    """A convolution of random weights, its bias and its ReLU."""
    channels = value.get_partial_shape()[1].get_length()
    weights = RNG.standard_normal((filters, channels, kernel, kernel), np.float32) / (3 * channels**0.5)
    how = [[number, number] for number in (strides, pads, pads, dilations)]
    value = opset.convolution(value, weights, *how)
    if "add" in ends:
        value = opset.add(value, RNG.standard_normal((1, filters, 1, 1), np.float32))
    return (opset.relu(value) if "relu" in ends else value).output(0)


def pool(value, kernel=2, strides=2):
    return opset.max_pool(value, [strides] * 2, [1, 1], [0, 0], [0, 0], [kernel] * 2).output(0)


def model(*steps, shape=(-1, 128, 16, 24)):
    """Steps one after another on an image of no square, then a convolution of smaller maps, as the last ones stay."""
    pixels = opset.parameter(list(shape), ov.Type.f32)
    value = pixels.output(0)
    for step in steps:
        value = step(value)
    return ov.Model([value, block(pool(value, 4, 4), 4)], [pixels])


@pytest.mark.parametrize(
    "steps", [[block], [block, pool], [block, block], [block, block, pool], [block, lambda value: pool(value, 3, 2)]]
)
def test_every_pixel_is_that_of_the_convolution(steps):
    graph = model(*steps)
    pixels = RNG.standard_normal((3, 128, 16, 24), np.float32)
    compiled = {"INFERENCE_PRECISION_HINT": "f32"}
    expected = _core().compile_model(graph, "CPU", compiled)([pixels]).to_tuple()
    assert use_winograd(graph)
    assert rewritten(graph) == steps.count(block)
    found = _core().compile_model(graph, "CPU", compiled)([pixels]).to_tuple()
    for have, want in zip(found, expected, strict=True):
        assert have.shape == want.shape
        np.testing.assert_allclose(have, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    "unlike",
    [
        {"kernel": 1, "pads": 0},
        {"kernel": 5, "pads": 2},
        {"pads": 0},
        {"pads": 2, "dilations": 2},
        {"strides": 2},
        {"ends": ("add",)},
        {"ends": ("relu",)},
        {"ends": ()},
    ],
    ids=str,
)
def test_any_other_convolution_stays_as_it_is(unlike):
    graph = model(lambda value: block(value, **unlike))
    assert not use_winograd(graph)
    assert rewritten(graph) == 0


@pytest.mark.parametrize("shape", [(-1, 128, 16, -1), (-1, 128, 15, 24), (-1, 128, 16, 25), (-1, 127, 16, 24)])
def test_maps_of_odd_or_unknown_sides_or_few_channels_stay_as_they_are(shape):
    assert not use_winograd(model(block, shape=shape))


def test_a_convolution_that_something_else_reads_too_stays_as_it_is():
    pixels = opset.parameter([-1, 128, 16, 24], ov.Type.f32)
    inner = block(pixels.output(0), ends=())
    biased = opset.add(inner, np.zeros((1, 128, 1, 1), np.float32))
    graph = ov.Model([inner, block(pool(opset.relu(biased), 4, 4), 4)], [pixels])
    assert not use_winograd(graph)


def test_a_bias_that_belongs_to_columns_and_not_to_channels_stays_where_it_is():
    pixels = opset.parameter([-1, 128, 16, 128], ov.Type.f32)
    biased = opset.add(block(pixels.output(0), ends=()), RNG.standard_normal(128, np.float32))
    graph = ov.Model([block(pool(opset.relu(biased), 4, 4), 4)], [pixels])
    assert not use_winograd(graph)


@pytest.mark.parametrize(("size", "blocks"), [(32, 7), (36, 4), (224, 7)])
@pytest.mark.parametrize("stored", ["fp32", "fp16"])
def test_of_vgg16_those_are_with_channels_enough_and_even_sides_but_for_the_smallest_maps(
    tmp_path, monkeypatch, stored, size, blocks
):
    from svrt.runtime.engines import openvino

    seen = []
    monkeypatch.setattr(openvino, "use_winograd", lambda graph: (use_winograd(graph), seen.append(rewritten(graph)))[0])
    path = write_vgg16(tmp_path / "vgg16.onnx", stored, size)
    pixels = {"images": (RNG.standard_normal((2, 3, size, size)) * 60).astype(np.float32)}
    expected = load(path, "onnxruntime", "fp32")(pixels)  # float16's own steps are not what is held against here
    engine = openvino.OpenVinoEngine(path, NAME, stored, "f32")
    assert (seen, engine.precision) == ([blocks], "fp32")
    assert least_cosine(engine(pixels), expected) >= (0.9999999 if stored == "fp32" else 0.99999)


@pytest.mark.parametrize("name", ["a VGG-16 of odd sides", "an encoder"])
def test_a_graph_without_such_convolutions_is_left_to_onnxruntime(tmp_path, name):
    path = tmp_path / "graph.onnx"
    path = write_encoder(path) if "encoder" in name else write_vgg16(path, size=47)
    with pytest.raises(EngineError, match=r"graph.onnx: openvino-winograd runs graphs such as VGG-16's alone"):
        load_one(path, NAME, "fp32", None)
    assert load(path, NAME).name == "onnxruntime"


def test_it_is_compiled_once_and_has_a_file_of_its_own(tmp_path, monkeypatch):
    path = write_vgg16(tmp_path / "vgg16.onnx")
    store = EngineStore(tmp_path / "cache", 8)
    pixels = {"images": (RNG.standard_normal((5, 3, 32, 32)) * 60).astype(np.float32)}
    expected = load(path, NAME, "fp32", store)(pixels)["features"]
    load(path, "openvino", "fp32", store)
    assert len(list(store.cache.glob("*.blob"))) == 2
    monkeypatch.setattr(compiled_graph.CompiledGraph, "keep", lambda *_: pytest.fail("compiled again"))
    np.testing.assert_array_equal(load(path, NAME, "fp32", store)(pixels)["features"], expected)


def test_frames_lie_as_far_apart_as_in_float32_within_a_few_hundredths(pocket):
    """It is by these distances that keyframes are chosen. int8 is off by 4 to 8 hundredths."""
    manifest, path = pocket.manifest, pocket.file(VGG16)
    seen, _ = read_candidates(SAMPLES / "make.mp4", 24, lambda: Candidates(manifest.sampler, manifest.encoder))
    exact, found = (Sampler(manifest.sampler, load(path, name)).features(seen) for name in ("onnxruntime", NAME))
    assert np.linalg.norm(found - exact) < 0.03 * np.linalg.norm(exact - exact.mean(axis=0))
