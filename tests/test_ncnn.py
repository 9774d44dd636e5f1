"""ncnn against ONNX Runtime, and the reader of its graphs against the onnx package."""

import importlib.util
import os

import numpy as np
import onnx
import pytest
from small_graphs import write_encoder, write_one_block, write_vgg16
from svrt.errors import EngineError
from svrt.models.graph import Graph
from svrt.runtime import engines
from svrt.runtime.engines import EngineStore, UnsuitedError, load, onnx_chain

needs_ncnn = pytest.mark.skipif(not importlib.util.find_spec("ncnn"), reason="ncnn is not installed")


def images(count, size=32, seed=0):
    return (np.random.default_rng(seed).standard_normal((count, 3, size, size)) * 2).astype(np.float32)


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    return write_vgg16(tmp_path_factory.mktemp("graph") / "vgg16.onnx")


def write_convolution(path, filters=8, kernel=3, then=(), **attributes):
    """A convolution of 3 channels, some nodes (op, attributes), and the mean over the map."""
    rng = np.random.default_rng(0)
    shape = (filters, 3 // attributes.get("group", 1), kernel, kernel)
    with Graph(path, "convolution") as graph:
        value = graph.input("images", ["batch", 3, 32, 32])
        weight, bias = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(filters).astype(np.float32)
        constants = [graph.constant(weight, "weight"), graph.constant(bias, "bias")]
        value = graph.node("Conv", [value, *constants], **attributes)
        for op, rest in then:
            value = graph.node(op, [value], **rest)
        value = graph.node("Flatten", [graph.node("GlobalAveragePool", [value])], axis=1)
        graph.output(value, "features", ["batch", filters])
    return path


@needs_ncnn
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("size", [32, 47, 224])
def test_its_features_are_those_of_onnxruntime_in_float32(tmp_path, size, precision):
    """47 is halved to 23, 11, 5 and 2: a row is dropped each time. Rounding to bfloat16 would show as some 1e-3."""
    graph = write_vgg16(tmp_path / "vgg16.onnx", precision, size)
    engine = load(graph, "ncnn", precision)
    found, expected = (one({"images": images(3, size)}) for one in (engine, load(graph, "onnxruntime", precision)))
    assert found.keys() == expected.keys() and found["features"].dtype == np.float32
    assert relative_error(found["features"], expected["features"]) < 1e-5
    assert (engine.name, engine.device, engine.precision) == ("ncnn", "cpu", "fp32")


@needs_ncnn
def test_an_images_features_depend_on_nothing_but_it(vgg16):
    engine, batch = load(vgg16, "ncnn"), images(5)
    whole = engine({"images": batch})["features"]
    kept = whole.copy()
    alone = [engine({"images": batch[at : at + 1]})["features"] for at in range(5)]
    np.testing.assert_array_equal(np.concatenate(alone), whole)
    np.testing.assert_array_equal(engine({"images": batch[::-1]})["features"][::-1], whole)
    np.testing.assert_array_equal(whole, kept, "what a run gave is not changed by the next")


@needs_ncnn
@pytest.mark.parametrize(
    "inputs",
    [
        {"pictures": images(1)},
        {"images": images(1), "more": images(1)},
        {"images": images(1, 48)},
        {"images": images(1)[0]},
        {"images": images(1).astype(np.float64)},
    ],
)
def test_an_input_that_does_not_fit_is_refused(vgg16, inputs):
    with pytest.raises(EngineError, match=r"vgg16\.onnx: input"):
        load(vgg16, "ncnn")(inputs)


@needs_ncnn
@pytest.mark.parametrize(
    "unlike",
    [
        {"strides": [2, 2]},
        {"pads": [0, 0, 1, 1]},
        {"dilations": [2, 2]},
        {"group": 3, "filters": 9},
        {"then": [("Tanh", {})]},
        {"then": [("GlobalAveragePool", {})]},
        {"then": [("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2]})]},
        {"then": [("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1})]},
    ],
)
def test_a_graph_that_it_would_not_run_as_written_is_left_to_onnxruntime(tmp_path, unlike):
    graph = write_convolution(tmp_path / "graph.onnx", **unlike)
    with pytest.raises(UnsuitedError, match="ncnn runs graphs such as VGG-16's"):
        engines.load_one(graph, "ncnn", "fp32", None)
    assert load(graph, "ncnn").name == "onnxruntime"


@needs_ncnn
@pytest.mark.parametrize("alike", [{"kernel": 5, "pads": [2] * 4}, {"kernel": 1}, {"then": [("Relu", {})]}])
def test_a_convolution_of_another_size_runs(tmp_path, alike):
    graph = write_convolution(tmp_path / "graph.onnx", **alike)
    found, expected = (load(graph, name)({"images": images(2)})["features"] for name in ("ncnn", "onnxruntime"))
    assert relative_error(found, expected) < 1e-5 and np.abs(expected).max() > 0.01


@needs_ncnn
def test_auto_passes_over_it_without_a_word_for_an_encoder_and_tries_it_on_vgg16(tmp_path, vgg16):
    said = []
    store = EngineStore(tmp_path / "cache", 2, say=said.append)
    assert load(write_encoder(tmp_path / "encoder.onnx"), "auto", "fp32", store).name != "ncnn"
    assert "ncnn" not in " ".join(said)
    load(vgg16, "auto", "fp32", store)
    assert "ncnn" in said[-1] and "failed" not in said[-1] and "differs" not in said[-1]


@needs_ncnn
def test_loading_leaves_no_file_open_and_none_behind(tmp_path):
    graph = write_one_block(tmp_path / "graph" / "block.onnx")
    load(graph, "ncnn")  # what the library opens once
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        load(graph, "ncnn")
    assert len(os.listdir("/proc/self/fd")) <= before
    assert sorted(path.name for path in graph.parent.iterdir()) == ["block.onnx", "block.onnx.data"]


def test_a_chain_is_read_as_the_onnx_package_reads_it(vgg16):
    chain, graph = onnx_chain.read(vgg16), onnx.load(vgg16).graph
    assert (chain.input, chain.output, chain.shape) == ("images", "features", (None, 3, 32, 32))
    assert [node.op for node in chain.nodes] == [node.op_type for node in graph.node]
    for found, expected in zip(chain.nodes, graph.node, strict=True):
        assert found.constants == tuple(expected.input[1:])
        values = {a.name: tuple(a.ints) if a.ints else (a.i,) for a in expected.attribute}
        assert found.attributes == values
    assert chain.weights.keys() == {tensor.name for tensor in graph.initializer}
    for tensor in graph.initializer:
        np.testing.assert_array_equal(chain.weights[tensor.name], onnx.numpy_helper.to_array(tensor))


def test_a_graph_that_is_no_chain_is_told(tmp_path):
    with pytest.raises(onnx_chain.NotAChainError, match=r"encoder\.onnx: "):
        onnx_chain.read(write_encoder(tmp_path / "encoder.onnx"))


def test_a_damaged_graph_is_refused_in_a_line(tmp_path):
    """Cut off anywhere, or with bytes changed: the arrays of a graph that can be read have the sizes that it says."""
    graph = write_one_block(tmp_path / "block.onnx")
    whole, rng, refused = graph.read_bytes(), np.random.default_rng(0), 0
    damaged = [whole[:end] for end in range(len(whole))]
    for _ in range(3000):
        bytes_ = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 4)):
            bytes_[at] = rng.integers(0, 256)
        damaged.append(bytes(bytes_))
    for data in damaged:
        graph.write_bytes(data)
        try:
            onnx_chain.read(graph)
        except EngineError as exc:
            refused += 1
            assert "\n" not in str(exc)
    assert refused > len(whole) // 2


def test_a_graph_without_its_weights_is_refused(tmp_path):
    graph = write_one_block(tmp_path / "block.onnx")
    data = tmp_path / "block.onnx.data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(EngineError, match=r"block\.onnx: is not a whole ONNX graph"):
        onnx_chain.read(graph)
    data.unlink()
    with pytest.raises(EngineError, match=r"block\.onnx\.data: cannot be read: No such file"):
        onnx_chain.read(graph)
