"""int8 encoders: what the graph computes, what the ranges are, and the parity that decides how much of it is int8."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import moving_ball, write_video
from onnx import TensorProto, helper, numpy_helper
from small_graphs import SMALL, write_encoder
from small_system import write_system
from svrt.bundle import GRAPH_COSINE, Bundle
from svrt.errors import CheckpointError, ClipError, RecipeError
from svrt.exporter import int8
from svrt.exporter.export import export
from svrt.exporter.parity import sample_clip
from svrt.exporter.recipe import EncoderRecipe, check_precision, read_recipe
from svrt.exporter.report import int8_line
from svrt.models import vjepa2
from svrt.models.checkpoint import Checkpoint
from svrt.models.graph import Graph
from svrt.runtime.engines import load
from svrt.runtime.engines.trial import least_cosine
from test_cli import refused, svrt
from test_stages import Journal

OPENVINO = pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="OpenVINO is not installed")
BACKENDS = pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino-fp32", marks=OPENVINO)])
PRODUCTS = [f"layer.{i}/{name}" for i in (0, 1) for name in ("attention/qkv", "attention/proj", "mlp/fc1", "mlp/fc2")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three clips, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(3):
        write_video(folder / f"{seed}.mp4", moving_ball(20, 64, 64, seed))
    (folder / "notes.txt").write_text("of another kind")
    return folder


@pytest.fixture(scope="module")
def clips(folder) -> int8.Clips:
    specs = read_recipe("pocket").sampler.spec(), EncoderRecipe("").spec(16, 64)
    return int8.Clips(*int8.find_clips(folder), *specs)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """A small encoder in float32, its checkpoint beside it in the folder `encoder`."""
    return write_encoder(tmp_path_factory.mktemp("graphs") / "encoder.onnx")


@pytest.fixture(scope="module")
def steps(graph, clips) -> dict[str, float]:
    return int8.steps(graph, clips, lambda *_: None)


def choose(graph, out, steps, clips):
    checkpoint = Checkpoint(graph.with_suffix(""))
    return int8.choose(graph, out, steps, lambda left: vjepa2.write(out, checkpoint, int8=left), clips, lambda *_: None)


@pytest.fixture(scope="module")
def whole(graph, steps, clips, tmp_path_factory):
    """The small encoder in int8, and what is said of it."""
    out = tmp_path_factory.mktemp("int8") / "encoder.onnx"
    return out, choose(graph, out, steps, clips)


@BACKENDS
def test_a_product_is_that_of_its_rounded_operands(tmp_path, backend):
    """Against numpy; a fifth of the inputs are beyond the range and are cut to it."""
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((24, 32), np.float32), rng.standard_normal(24, np.float32)
    weight *= np.logspace(-3, 3, 24, dtype=np.float32)[:, None]  # a step for each output, or the small ones are lost
    value, step = rng.standard_normal((8, 32), np.float32), 0.01
    with Graph(tmp_path / "linear.onnx", "linear", int8={"linear": step}) as graph:
        graph.output(graph.linear(graph.input("value", [8, 32]), weight, bias, "linear"), "product", [8, 24])
    found = load(tmp_path / "linear.onnx", backend, "int8")({"value": value})["product"]
    steps = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert 0.1 < np.mean(np.abs(value) > 127 * step) < 0.3
    rounded = np.clip(np.rint(value / np.float32(step)), -128, 127) * step
    expected = rounded @ (np.rint(weight / steps) * steps).T + bias
    size = np.abs(expected).max(axis=0)
    np.testing.assert_allclose(found / size, expected / size, atol=1e-5)


def test_weights_of_int8_products_lie_in_the_file_as_int8_and_nothing_else_does(whole):
    model = onnx.load(str(whole[0]))
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2}
    assert {name for name, kind in kinds.items() if kind == TensorProto.INT8} == {f"{name}.weight" for name in PRODUCTS}
    assert kinds["patch_embeddings/proj.weight"] == TensorProto.FLOAT
    width = SMALL["hidden_size"]
    weights = SMALL["num_hidden_layers"] * 12 * width * width
    others = width * 2 * 3 * 16 * 16 * 4 + 2 * 8 * 4 * 4 * (width // 2) * 4  # of patches, and the tables of positions
    assert weights + others <= whole[0].with_name("encoder.onnx.data").stat().st_size < 1.2 * (weights + others) + 2**17


def test_a_step_is_the_largest_value_on_any_calibration_clip(graph, clips, steps):
    """The values themselves, given out by the graph, one product at a time."""
    assert list(steps) == PRODUCTS
    model = onnx.load(str(graph))
    node = next(node for node in model.graph.node if node.name == "layer.1/mlp/fc2")
    model.graph.output.append(helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, None))
    path = graph.with_name("opened.onnx")
    onnx.save(model, str(path))
    engine = load(path)
    largest = max(np.abs(engine(inputs)[node.input[0]]).max() for inputs in clips.inputs(clips.calibration))
    assert steps["layer.1/mlp/fc2"] == pytest.approx(largest / 127, rel=1e-6)


def test_the_cosine_is_that_of_clips_that_were_not_calibrated_on(graph, whole, clips, folder):
    out, record = whole
    assert (set(record.calibration), set(record.judged)) == ({"0.mp4", "2.mp4"}, {"1.mp4"})
    inputs = next(clips.inputs([folder / "1.mp4"]))
    found = least_cosine(load(out, precision="int8")(inputs), load(graph)(inputs))
    assert 0.999 <= record.cosine == pytest.approx(found, abs=1e-7) and record.cosine < 0.9999999
    assert (record.products, record.int8, record.kept) == (9, 8, ["patch_embeddings/proj"])
    width = SMALL["hidden_size"]
    assert record.share == pytest.approx(1 - 1536 / (1536 + 24 * width), abs=1e-4)


@OPENVINO
@pytest.mark.parametrize("backend", ["openvino", "openvino-fp32"])
def test_openvino_agrees_with_onnxruntime_on_an_int8_encoder(whole, clips, backend):
    inputs = next(clips.inputs(clips.judged))
    engine = load(whole[0], backend, "int8")
    cosine = least_cosine(engine(inputs), load(whole[0], "onnxruntime", "int8")(inputs))
    assert cosine >= (0.9999 if backend == "openvino-fp32" else 0.999) >= GRAPH_COSINE[engine.precision]


@pytest.mark.parametrize("poisoned", [["layer.1/mlp/fc1"], ["layer.0/attention/qkv", "layer.1/mlp/fc2"]])
def test_products_that_int8_spoils_stay_float32_and_no_others(graph, steps, clips, tmp_path, poisoned):
    """As one frame with a wild value would: the steps are 300 times too large."""
    bad = {name: step * (300 if name in poisoned else 1) for name, step in steps.items()}
    record = choose(graph, tmp_path / "encoder.onnx", bad, clips)
    assert sorted(record.kept) == sorted(["patch_embeddings/proj", *poisoned])
    assert record.cosine >= 0.999 and record.int8 == 8 - len(poisoned)
    types = {t.name: t.data_type for t in onnx.load(str(tmp_path / "encoder.onnx")).graph.initializer}
    assert all(types[f"{name}.weight"] == TensorProto.FLOAT for name in poisoned)


def test_int8_is_refused_with_the_cosine_reached_where_half_of_it_in_float32_does_not_help(
    graph, steps, clips, tmp_path
):
    bad = {name: step * 300 for name, step in steps.items()}
    with pytest.raises(
        CheckpointError, match=r"reaches cosine [-0-9.]+ with .* and 0\.\d{6} with half .* 0\.999 is wan"
    ):
        choose(graph, tmp_path / "encoder.onnx", bad, clips)


def test_values_that_are_not_finite_are_told_by_the_product_that_reads_them(graph, clips, tmp_path):
    model = onnx.load(str(graph))
    bias = next(t for t in model.graph.initializer if t.name == "layer.1/mlp/norm2.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(SMALL["hidden_size"], np.nan, np.float32), bias.name))
    onnx.save(model, str(tmp_path / "encoder.onnx"))
    with pytest.raises(CheckpointError, match=r"what layer\.1/mlp/fc1 reads is not finite"):
        int8.steps(tmp_path / "encoder.onnx", clips, lambda *_: None)


def test_a_folder_needs_a_clip_to_calibrate_on_and_another_to_be_judged_by(folder, clips, tmp_path):
    shutil.copy(folder / "0.mp4", tmp_path)
    with pytest.raises(RecipeError, match="1 clips; int8 needs one to calibrate on and one to be judged by"):
        int8.find_clips(tmp_path)
    with pytest.raises(RecipeError, match=r"no: cannot be read: .*; --calibration is a folder of clips"):
        int8.find_clips(tmp_path / "no")
    (tmp_path / "1.mp4").write_bytes(b"no film")
    with pytest.raises(ClipError, match=r"1\.mp4"):
        list(clips.inputs([tmp_path / "1.mp4"]))
    assert int8.find_clips(None) == ([sample_clip()], [sample_clip().with_name("miss.mp4")])


def test_vgg16_is_never_int8(tmp_path):
    recipe = read_recipe("sv3.3b").with_precision(check_precision("INT8"))
    assert (recipe.sampler.precision, recipe.encoder.precision) == ("fp16", "int8")
    recipe = write_system(tmp_path)
    recipe.write_text(recipe.read_text().replace('precision = "fp16"', 'precision = "int8"', 1))
    with pytest.raises(RecipeError, match=r"small\.toml: .* VGG-16 is not offered in int8"):
        read_recipe(str(recipe))


def test_calibration_without_int8_is_refused(folder, tmp_path):
    assert "--precision int8" in refused(svrt("export", "--calibration", folder, "--out", tmp_path / "b"))


def test_an_interrupted_int8_export_goes_on_and_its_manifest_says_what_was_chosen(folder, tmp_path):
    recipe = read_recipe(str(write_system(tmp_path / "system"))).with_precision("int8")
    journals = Journal("speed"), Journal()
    with pytest.raises(KeyboardInterrupt):
        export(recipe, tmp_path / "b", journals[0], calibration=folder)
    manifest = export(recipe, tmp_path / "b", journals[1], calibration=folder).manifest
    assert journals[0].ended == ["sources", "vgg16", "calibrate", "encoder"]
    assert journals[1].began[:3] == ["sources", "speed", "parity"]
    assert Bundle.load(tmp_path / "b").manifest == manifest
    files = {name: record.precision for name, record in manifest.files.items()}
    assert (files["vgg16.onnx"], files["encoder.onnx"], files["encoder.onnx.data"]) == ("fp16", "int8", "int8")
    record = manifest.int8["encoder.onnx"]
    assert record.int8 == 9 and record.kept == ["patch_embeddings/proj", "projector/fc2"]
    assert 0.999 <= record.cosine < 1 and record.limit == 0.999
    assert set(record.calibration) == {"0.mp4", "2.mp4"} and record.speed > 0 and " in int8, " in record.timed
    assert not any("float" in name or "numbers" in name for name in files)
    slower = int8_line("encoder.onnx", replace(record, speed=0.8))
    assert "0.80 times as fast here" in slower and "export it without --precision int8" in slower
    assert "without" not in int8_line("encoder.onnx", replace(record, speed=1.2))
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["int8"]["encoder.onnx"]["int8"] == 9
