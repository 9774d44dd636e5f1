"""OpenVINO against ONNX Runtime: another implementation on the same graph."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import SAMPLES
from small_graphs import SMALL, write_encoder, write_vgg16
from svrt.bundle import GRAPH_COSINE, VGG16
from svrt.errors import EngineError
from svrt.runtime.engines import EngineStore, load
from svrt.runtime.engines.trial import least_cosine
from svrt.runtime.sampler import Candidates, Sampler
from svrt.runtime.video import read_candidates

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
@pytest.mark.parametrize(
    ("backend", "name"),
    [(b, n) for b in ("openvino", "openvino-fp32") for n in ("vgg16", "encoder")],
)
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


def test_the_first_convolution_loses_nothing_and_maps_of_motion_lie_as_far_apart_as_in_float32(pocket, monkeypatch):
    """It is by these distances that keyframes are chosen."""
    from svrt.runtime.engines import openvino

    manifest, path = pocket.manifest, pocket.file(VGG16)
    seen, _ = read_candidates(SAMPLES / "make.mp4", 24, lambda: Candidates(manifest.sampler, manifest.encoder))
    maps = [np.repeat(motion[..., None], 3, axis=2) for motion in seen.motion[1:]]
    in_two_parts, errors = openvino._in_two_parts, []
    expected = steps(Sampler(manifest.sampler, load(path, "onnxruntime")).embed(maps))
    for way in (in_two_parts, lambda graph: None):
        monkeypatch.setattr(openvino, "_in_two_parts", way)
        engine = openvino.OpenVinoEngine(path, "openvino", "fp32", "bf16")
        assert engine.inputs == {"images": (None, 3, manifest.sampler.size, manifest.sampler.size)}
        errors.append(np.abs(steps(Sampler(manifest.sampler, engine).embed(maps)) / expected - 1).mean())
    assert errors[0] < 5e-3
    if engine.precision == "bf16":  # where the processor has none all is float32
        assert 0 < errors[0] < errors[1] / 1.5, errors


def steps(features):
    """How far each is from the one before, once all have the same length."""
    return np.linalg.norm(np.diff(features / np.linalg.norm(features, axis=1, keepdims=True), axis=0), axis=1)


@pytest.mark.parametrize("stored", ["fp32", "fp16"])
def test_operands_in_two_parts_give_what_one_gives_but_for_rest_times_rest(graphs, stored):
    """In float32, whatever this processor multiplies: parts that bfloat16 holds, and their sums."""
    from svrt.runtime.engines import openvino

    core = openvino._core()
    graph = core.read_model(str(graphs["vgg16", stored]))
    pixels = images(3)
    (expected,) = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([pixels]).to_tuple()
    operands = openvino._operands(pixels)
    in_parts = openvino._in_two_parts(graph)
    (found,) = core.compile_model(in_parts, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([operands]).to_tuple()
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < error < 1e-4
    high, rest, again = np.split(operands, 3, axis=1)
    np.testing.assert_array_equal(high + rest, pixels)
    np.testing.assert_array_equal(high, again)
    assert not (high.view(np.uint32) & 0xFFFF).any() and np.abs(rest).max() <= np.abs(pixels).max() / 128


def test_a_graph_that_begins_otherwise_stays_as_it_is(graphs):
    from svrt.runtime.engines import openvino

    assert openvino._in_two_parts(openvino._core().read_model(str(graphs["encoder", "fp32"]))) is None


@pytest.fixture
def large(monkeypatch, tmp_path):
    """Loads any graph as a large one; as a processor that multiplies bfloat16 does, if nothing else is asked."""
    from svrt.runtime.engines import compiled_graph, mapped_weights, openvino

    monkeypatch.setattr(mapped_weights, "LARGE", 1)
    monkeypatch.setattr(compiled_graph, "LARGEST", 1)

    def load_mapped(graph, cache=tmp_path / "cache", stored="fp16", hint="bf16", quantized=False):
        store = EngineStore(cache, 1, say=said.append)
        return openvino.OpenVinoEngine(graph, "openvino-int8" if quantized else "openvino", stored, hint, store)

    said = load_mapped.said = []
    return load_mapped


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_large_graph_is_converted_once_and_gives_what_it_gave(graphs, large, tmp_path, precision):
    path, hint = graphs["encoder", "fp16"], {"bf16": "bf16", "fp32": "f32"}[precision]
    expected = load(path, "onnxruntime", "fp16")(INPUTS["encoder"])
    first = large(path, hint=hint)
    assert large.said == ["converting encoder-fp16.onnx to OpenVINO's format (once)"]
    (file,) = (tmp_path / "cache").glob("*.bin")
    written, found = file.stat(), first(INPUTS["encoder"])
    assert least_cosine(found, expected) >= GRAPH_COSINE[precision]
    second = large(path, hint=hint)
    assert (len(large.said), file.stat().st_mtime_ns) == (1, written.st_mtime_ns)
    for engine in (first, second, first):  # the pages that were given back read the same
        np.testing.assert_array_equal(engine(INPUTS["encoder"])["video_tokens"], found["video_tokens"])


@pytest.mark.parametrize("hint", ["bf16", "f32"])
@pytest.mark.parametrize("kept", [True, False])
def test_dynamic_int8_agrees_within_its_limit_whether_its_file_can_be_kept_or_not(graphs, large, tmp_path, hint, kept):
    cache = tmp_path / "cache"
    if not kept:
        cache.write_text("a file where the folder should be")
    expected = load(graphs["encoder", "fp16"], "onnxruntime", "fp16")(INPUTS["encoder"])
    engine = large(graphs["encoder", "fp16"], cache, hint=hint, quantized=True)
    found = engine(INPUTS["encoder"])
    cosine = least_cosine(found, expected)
    assert engine.precision == "dynamic int8"
    assert GRAPH_COSINE["dynamic int8"] <= cosine < GRAPH_COSINE["fp32"], "it does round"
    if kept:
        assert large.said == ["converting encoder-fp16.onnx to OpenVINO's format, in int8 (once)"]
        again = large(graphs["encoder", "fp16"], cache, hint=hint, quantized=True)
        np.testing.assert_array_equal(again(INPUTS["encoder"])["video_tokens"], found["video_tokens"])
        assert len(large.said) == 1


def test_int8_and_float16_weights_of_a_graph_lie_in_files_of_their_own(graphs, large, tmp_path):
    for quantized in (False, True, False, True):
        large(graphs["encoder", "fp16"], quantized=quantized)
    smaller, larger = sorted(file.stat().st_size for file in (tmp_path / "cache").glob("*.bin"))
    assert len(large.said) == 2 and smaller < larger * 0.8


def test_products_of_weights_become_int8_but_for_the_ends_and_no_other(graphs):
    from svrt.runtime.engines import dynamic_int8, openvino

    graph = openvino._core().read_model(str(graphs["encoder", "fp32"]))
    before = [node.get_type_name() for node in graph.get_ordered_ops()].count("MatMul")
    dynamic_int8.quantize_products(graph)
    nodes = graph.get_ordered_ops()
    constants = [node.data for node in nodes if node.get_type_name() == "Constant"]
    shapes = [array.shape for array in constants if array.dtype == np.int8]
    layer = [(3 * 96, 96), (96, 96), (4 * 96, 96), (96, 4 * 96)]
    assert sorted(shapes) == sorted((layer * 2)[:-1]), "of two layers; the last product is one of theirs"
    assert [node.get_type_name() for node in nodes].count("MatMul") == before


def test_weights_are_rounded_to_the_nearest_step_of_their_own_row():
    from svrt.kernels.int8 import int8_weights

    rows = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    rows *= np.array([[1e-6], [1], [1e4], [1], [0]], np.float32)
    steps, scales = int8_weights(rows)
    scales = scales[:, None]
    assert (steps.dtype, scales.dtype, scales.shape) == (np.int8, np.float32, (5, 1))
    assert np.abs(steps).max(axis=1).tolist() == [127, 127, 127, 127, 0]
    assert (np.abs(steps * scales - rows) <= scales * 0.5001).all()


def test_int8_leaves_small_graphs_to_another(graphs, tmp_path):
    for name, stored in (("encoder", "fp16"), ("encoder", "fp32"), ("vgg16", "fp16")):
        assert load(graphs[name, stored], "openvino-int8", stored).name == "onnxruntime"
        store = EngineStore(tmp_path / "cache", 2)
        assert load(graphs[name, stored], "openvino-int8", stored, store).name == "onnxruntime"


def test_a_file_of_weights_that_was_cut_short_is_written_anew(graphs, large, tmp_path):
    found = large(graphs["encoder", "fp16"])(INPUTS["encoder"])["video_tokens"]
    (file,) = (tmp_path / "cache").glob("*.bin")
    whole = file.read_bytes()
    os.truncate(file, len(whole) // 2)
    again = large(graphs["encoder", "fp16"])(INPUTS["encoder"])["video_tokens"]
    np.testing.assert_array_equal(again, found)
    assert file.read_bytes() == whole and len(large.said) == 2


def test_what_a_process_that_was_killed_left_is_taken_away(graphs, large, tmp_path):
    large(graphs["encoder", "fp16"])
    (file,) = (tmp_path / "cache").glob("*.bin")
    file.unlink()
    partial = file.with_name(f".{file.stem}.partial")
    partial.mkdir()
    (partial / "graph.bin").write_bytes(b"half")
    large(graphs["encoder", "fp16"])
    assert file.is_file() and not partial.exists()


@pytest.mark.parametrize("cut", ["weights", "the last line"])
def test_what_a_full_disk_cut_short_is_not_kept(graphs, large, tmp_path, monkeypatch, cut):
    from svrt.runtime.engines import mapped_weights

    serialize = mapped_weights.ov.serialize

    def cut_short(graph, layers, weights):  # OpenVINO does not say so
        serialize(graph, layers, weights)
        if cut == "weights":
            os.truncate(weights, weights.stat().st_size // 2)
        else:
            os.truncate(layers, layers.stat().st_size - 4)

    monkeypatch.setattr(mapped_weights.ov, "serialize", cut_short)
    engine = large(graphs["encoder", "fp16"])
    assert "cannot be kept ([Errno 28] No space left on device)" in large.said[-1]
    assert not [file for file in (tmp_path / "cache").iterdir() if file.name != "weights.lock"]
    expected = load(graphs["encoder", "fp16"], "onnxruntime", "fp16")(INPUTS["encoder"])
    assert least_cosine(engine(INPUTS["encoder"]), expected) >= GRAPH_COSINE["bf16"]


def test_another_graphs_weights_have_a_file_of_their_own(large, tmp_path):
    for seed in (0, 1):
        large(write_encoder(tmp_path / str(seed) / "encoder.onnx", "fp16", seed=seed))
    assert len(list((tmp_path / "cache").glob("encoder-*.bin"))) == 2


def test_without_a_place_for_the_file_the_graph_runs_as_it_is(graphs, large, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    engine = large(graphs["encoder", "fp16"], blocked)
    assert "cannot be kept" in large.said[-1] and "three times the memory" in large.said[-1]
    expected = load(graphs["encoder", "fp16"], "onnxruntime", "fp16")(INPUTS["encoder"])
    assert least_cosine(engine(INPUTS["encoder"]), expected) >= GRAPH_COSINE["bf16"]


@pytest.mark.parametrize(("name", "stored"), [("encoder", "fp32"), ("vgg16", "fp32")])
def test_float32_graphs_stay_as_they_are(graphs, large, tmp_path, name, stored):
    large(graphs[name, stored], stored=stored)
    assert not (tmp_path / "cache").exists()


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from svrt.runtime.engines import load
engines = [load(Path(sys.argv[1]), "openvino") for _ in range(2)]
del engines[0]
engines.clear()
signal.signal(signal.SIGUSR1, lambda *_: print("came"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_signal_finds_its_stack_when_engines_went_in_the_order_in_which_they_came(graphs):
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(graphs["vgg16", "fp32"])], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "came"), done.stderr


PEAK = """
import sys
from pathlib import Path
from svrt.runtime.engines import EngineStore, load
graph, cache, backend = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
engine = load(graph, backend, "fp16", EngineStore(Path(cache), 1) if cache else None)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(engine.precision, int(status["VmRSS"].split()[0]) >> 10)
"""


def test_a_large_graph_takes_less_memory_with_its_weights_in_a_file(tmp_path):
    """75 MB of weights: two float32 copies of them, and more, are not there."""

    def resident_mib(cache, backend="openvino"):
        command = [sys.executable, "-c", PEAK, str(graph), str(cache), backend]
        precision, mib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rsplit(maxsplit=1)
        return precision, int(mib)

    shape = {**SMALL, "hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 12}
    graph = write_encoder(tmp_path / "encoder.onnx", "fp16", shape)
    weights = graph.with_name(f"{graph.name}.data").stat().st_size >> 20
    precision, as_it_is = resident_mib("")
    if precision != "bf16":
        pytest.skip("this processor does not multiply bfloat16")
    resident_mib(tmp_path / "cache")
    mapped = resident_mib(tmp_path / "cache")[1]
    assert as_it_is - mapped > 2 * weights
    assert resident_mib(tmp_path / "cache", "openvino-int8")[0] == "dynamic int8"
    assert resident_mib(tmp_path / "cache", "openvino-int8")[1] < mapped - 0.2 * weights


def test_onnxruntime_alone_does_not_import_it(graphs):
    code = "import sys; from svrt.runtime.engines import load; load(sys.argv[1]); print('openvino' in sys.modules)"
    code = code.replace("load(sys.argv[1])", "load(__import__('pathlib').Path(sys.argv[1]))")
    done = subprocess.run(
        [sys.executable, "-c", code, str(graphs["vgg16", "fp32"])], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
