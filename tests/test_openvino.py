"""OpenVINO against ONNX Runtime: another implementation on the same graph."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from small_graphs import write_encoder, write_vgg16
from svrt.bundle import GRAPH_COSINE
from svrt.errors import EngineError
from svrt.runtime.engines import load
from svrt.runtime.engines.trial import least_cosine

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="OpenVINO is not installed")


def images(count, size=32, seed=0):
    return (np.random.default_rng(seed).standard_normal((count, 3, size, size)) * 60).astype(np.float32)


def clip(seed=0):
    return np.random.default_rng(seed).standard_normal((1, 16, 3, 64, 64), dtype=np.float32)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    return {
        (name, precision): write(folder / f"{name}-{precision}.onnx", precision)
        for name, write in (("vgg16", write_vgg16), ("encoder", write_encoder))
        for precision in ("fp32", "fp16")
    }


INPUTS = {"vgg16": {"images": images(5)}, "encoder": {"pixel_values_videos": clip()}}


@pytest.mark.parametrize("stored", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["vgg16", "encoder"])
@pytest.mark.parametrize("backend", ["openvino", "openvino-fp32"])
def test_it_agrees_with_onnxruntime_within_the_limit_of_the_precision_it_tells(graphs, backend, name, stored):
    path = graphs[name, stored]
    engine = load(path, backend, stored)
    expected = load(path, "onnxruntime", stored)(INPUTS[name])
    found = engine(INPUTS[name])
    assert found.keys() == expected.keys()
    assert all(found[key].shape == expected[key].shape and found[key].dtype == np.float32 for key in expected)
    assert least_cosine(found, expected) >= GRAPH_COSINE[engine.precision]
    assert (engine.name, engine.device) == (backend, "cpu")


@pytest.mark.parametrize("backend", ["openvino", "openvino-fp32"])
def test_the_precision_it_tells_is_the_one_it_computes_in(graphs, backend):
    """Of float32 the error is some 1e-6, of bfloat16, with its 8 bits, some 1e-3."""
    path = graphs["encoder", "fp32"]
    engine = load(path, backend)
    found, expected = (e(INPUTS["encoder"])["video_tokens"] for e in (engine, load(path, "onnxruntime")))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert (error < 1e-5) == (engine.precision == "fp32")
    assert engine.precision == "fp32" if backend == "openvino-fp32" else engine.precision in ("bf16", "fp32")


def test_what_a_run_gave_is_not_changed_by_the_next(graphs):
    engine = load(graphs["vgg16", "fp32"], "openvino")
    first = engine({"images": images(2)})["features"]
    kept = first.copy()
    engine({"images": images(2, seed=1)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("backend", ["openvino", "openvino-fp32", "onnxruntime"])
def test_an_images_features_do_not_depend_on_those_beside_it(graphs, backend):
    """Which is why the sampler may show the network each image once, in batches of any size."""
    engine, batch = load(graphs["vgg16", "fp32"], backend), images(9)
    whole = engine({"images": batch})["features"]
    for size in (1, 4, 8):
        parts = [engine({"images": batch[at : at + size]})["features"] for at in range(0, 9, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"images": images(1, size=48)}, r"input 'images' is float32 \[1, 3, 48, 48\], expected float32 \[None, 3, 32"),
        ({"images": images(1).astype(np.float64)}, r"input 'images' is float64"),
        ({"pictures": images(1)}, r"inputs are \['images'\], not \['pictures'\]"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(graphs, inputs, says):
    with pytest.raises(EngineError, match=says):
        load(graphs["vgg16", "fp32"], "openvino")(inputs)


def test_a_graph_that_cannot_be_loaded_is_refused_in_a_line(tmp_path):
    graph = write_vgg16(tmp_path / "vgg16.onnx")
    graph.with_name("vgg16.onnx.data").unlink()
    with pytest.raises(EngineError, match=r"vgg16.onnx: OpenVINO cannot load it: .*vgg16.onnx.data") as caught:
        load(graph, "openvino")
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match=r"none.onnx: OpenVINO cannot load it: .*none.onnx"):
        load(tmp_path / "none.onnx", "openvino")


def test_onnxruntime_alone_does_not_import_it(graphs):
    code = "import sys; from svrt.runtime.engines import load; load(sys.argv[1]); print('openvino' in sys.modules)"
    code = code.replace("load(sys.argv[1])", "load(__import__('pathlib').Path(sys.argv[1]))")
    done = subprocess.run(
        [sys.executable, "-c", code, str(graphs["vgg16", "fp32"])], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
