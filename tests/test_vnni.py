"""svrt's int8 kernels against what they are meant to compute, in float64, and the encoder that they make up."""

import hashlib
import subprocess
from math import erf
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_vnni
from small_graphs import VIT_L, write_encoder
from svrt.bundle import GRAPH_COSINE
from svrt.errors import EngineError
from svrt.kernels import vnni
from svrt.kernels.int8 import int8_weights
from svrt.kernels.vnni import compiler
from svrt.kernels.vnni.transformer import GROUP, Kernels, Rows, Weights, packed
from svrt.models import vjepa2
from svrt.models.checkpoint import Checkpoint
from svrt.models.projector import Projector
from svrt.runtime.engines import (
    AbsentError,
    EngineStore,
    UnsuitedError,
    load,
    load_one,
    onnx_graph,
    trial,
    vit,
    vnni_encoder,
    vnni_encoder_weights,
    vnni_files,
)
from svrt.runtime.engines.trial import least_cosine

SHAPE = {"crop_size": 64, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def kernels(library) -> Kernels:
    return Kernels(library, 2)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights_of(weight, bias):
    return Weights(*packed(weight), bias)


def rounded(weight):
    """What a weight is in int8, float64."""
    whole, steps = int8_weights(weight)
    return whole * steps[:, None].astype(np.float64)


@needs_vnni
def test_rows_are_rounded_by_the_largest_of_each_group(kernels):
    x = noise(13, 3 * GROUP) * np.array([[1e-6], [1], [1e4]] * 4 + [[0]], np.float32)
    rows = Rows(13, 3 * GROUP)
    kernels.round(x, rows)
    groups, steps = x.reshape(13, 3, GROUP), rows.steps[:13]
    np.testing.assert_allclose(steps, np.maximum(np.abs(groups).max(axis=2), 1e-30) / 127, rtol=1e-6)
    values = rows.values[:13].reshape(13, 3, GROUP)
    assert (np.abs(values * steps[..., None] - groups) <= 0.5001 * steps[..., None]).all()
    assert np.abs(values[:12]).max(axis=2).tolist() == [[127] * 3] * 12 and not values[12].any()
    np.testing.assert_array_equal(rows.offsets[:13], -128 * values.sum(axis=2, dtype=np.int64))
    np.testing.assert_array_equal(rows.float32(), (values * steps[..., None]).reshape(x.shape))
    assert not rows.values[13:].any() and not rows.offsets[13:].any(), "rows that only fill a tile are nothing"


@needs_vnni
def test_norm_is_layer_norm(kernels):
    x, weight, bias = noise(70, 256) * 3 + 5, noise(256, seed=1), noise(256, seed=2)
    rows = Rows(70, 256)
    kernels.norm(x, weight, bias, 1e-3, rows)
    off = x.astype(np.float64) - x.mean(axis=1, keepdims=True, dtype=np.float64)
    expected = off / np.sqrt((off**2).mean(axis=1, keepdims=True) + 1e-3) * weight + bias
    error = np.abs(rows.float32() - expected).reshape(70, 2, GROUP)
    assert (error <= 0.51 * rows.steps[:70, :, None]).all()


@needs_vnni
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 128, 128), (13, 384, 256), (700, 256, 384)])
def test_products_are_those_of_the_rounded_numbers(kernels, rows, inputs, outputs):
    """Sums of integers are exact; what remains is float32's rounding."""
    x, weight, bias, before = (
        noise(rows, inputs),
        noise(outputs, inputs, seed=1),
        noise(outputs, seed=2),
        noise(rows, 1),
    )
    held, weights = Rows(rows, inputs), weights_of(weight, bias)
    kernels.round(x, held)
    expected = held.float32().astype(np.float64) @ rounded(weight).T + bias
    tolerance = 1e-6 * np.abs(expected).max()
    out = np.full((rows, outputs), np.nan, np.float32)
    kernels.product(held, weights, out)
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance)
    out = np.repeat(before, outputs, axis=1)
    kernels.add_product(held, weights, out)
    np.testing.assert_allclose(out, expected + before, rtol=0, atol=tolerance)
    after = Rows(rows, outputs)
    kernels.gelu_product(held, weights, after)
    gelu = 0.5 * expected * (1 + np.vectorize(erf)(expected / 2**0.5))
    error = np.abs(after.float32() - gelu).reshape(rows, -1, GROUP)
    assert (error <= 0.5 * after.steps[:rows, :, None] + 1e-3).all()


@needs_vnni
def test_the_largest_numbers_do_not_overflow(kernels):
    x, weight = np.full((6, 4096), 127, np.float32), np.full((128, 4096), -127, np.float32)
    rows, out = Rows(6, 4096), np.empty((6, 128), np.float32)
    kernels.round(x, rows)
    kernels.product(rows, weights_of(weight, np.zeros(128, np.float32)), out)
    assert (out == -4096 * 127 * 127).all()


def attention(qkv, cos, sin, heads):
    """Softmax(Q K^T) V in float64, queries and keys rotated; [tokens, heads x dim]."""
    tokens, dim = cos.shape
    query, key, value = qkv.astype(np.float64).reshape(tokens, 3, heads, dim).transpose(1, 2, 0, 3)
    query, key = (x * cos + np.roll(x, dim // 2, axis=-1) * sin for x in (query, key))
    scores = query @ key.transpose(0, 2, 1)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = weights / weights.sum(axis=-1, keepdims=True) @ value
    return mixed.transpose(1, 0, 2).reshape(tokens, -1)


def rotations(tokens, dim):
    angles = noise(tokens, dim, seed=3)
    return np.cos(angles), np.sin(angles)


def attended(kernels, qkv, tables, heads):
    out = np.full((len(qkv), qkv.shape[1] // 3), np.nan, np.float32)
    tokens, dim = tables[0].shape
    kernels.attention(qkv, *tables, heads, out, kernels.scratch(heads, tokens, dim))
    return out


def off_by(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@needs_vnni
@pytest.mark.parametrize(
    ("tokens", "heads", "dim"),
    [(64, 1, 24), (128, 3, 32), (320, 2, 64), (576, 1, 80), (64, 2, 88), (256, 1, 48), (512, 1, 128)],
)
@pytest.mark.parametrize("sharpness", [0.3, 1, 3])
def test_attention_is_attention(kernels, tokens, heads, dim, sharpness):
    qkv = noise(tokens, 3 * heads * dim)
    qkv[:, : heads * dim] *= sharpness / dim**0.5
    tables = rotations(tokens, dim)
    assert off_by(attended(kernels, qkv, tables, heads), attention(qkv, *tables, heads)) < 0.02 * max(1, sharpness)


@needs_vnni
def test_many_small_weights_are_not_lost_beside_a_large_one(kernels):
    """One key weighs as much as 600 of the 1,023 others. Of 255 steps for all of a query's weights each of those would
    be less than a half; they are lost in its own block of 256 keys alone."""
    tokens, dim = 1024, 32
    qkv = np.zeros((tokens, 3 * dim), np.float32)
    qkv[:, 0] = 1  # queries
    qkv[:, dim] = np.where(np.arange(tokens) == 5, np.log(600), 0)  # keys
    qkv[:, 2 * dim] = np.where(np.arange(tokens) == 5, 1, -1)  # values
    tables = np.ones((tokens, dim), np.float32), np.zeros((tokens, dim), np.float32)
    found = attended(kernels, qkv, tables, 1)[:, 0]
    np.testing.assert_allclose(found, (600 - 768) / (600 + 768), atol=0.01)


@needs_vnni
def test_what_all_keys_have_in_common_costs_nothing(kernels):
    """Softmax does not see it; rounded with the rest it would hide what differs."""
    tokens, dim = 128, 64
    qkv, tables = noise(tokens, 3 * dim), (np.ones((tokens, dim), np.float32), np.zeros((tokens, dim), np.float32))
    qkv[:, :dim] /= dim**0.5
    expected = attention(qkv, *tables, 1)
    qkv[:, dim : 2 * dim] += 200 * noise(dim, seed=1)
    assert off_by(attended(kernels, qkv, tables, 1), expected) < 0.02


@needs_vnni
def test_numbers_do_not_hang_on_how_many_threads_there_are(library):
    qkv, tables, weight = noise(320, 3 * 128), rotations(320, 64), weights_of(noise(256, 384, seed=1), noise(256))
    found = []
    for threads in (1, 2, 5, 100):
        kernels, rows, out = Kernels(library, threads), Rows(320, 384), np.empty((320, 256), np.float32)
        kernels.round(qkv, rows)
        kernels.product(rows, weight, out)
        found.append((out, attended(kernels, qkv, tables, 2)))
    for out, mixed in found[1:]:
        np.testing.assert_array_equal(out, found[0][0])
        np.testing.assert_array_equal(mixed, found[0][1])


@needs_vnni
def test_sources_compile_without_a_warning(tmp_path):
    folder = Path(vnni.__file__).parent
    command = [compiler.find_compiler(), *compiler.FLAGS, "-Wall", "-Wextra", "-Werror", "-o", str(tmp_path / "all.so")]
    done = subprocess.run([*command, *(folder / name for name in compiler.SOURCES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(compiler.SOURCES) == sorted(path.name for path in folder.glob("*.c"))


@pytest.fixture
def every_size(monkeypatch):
    """Any graph counts as a large one."""
    monkeypatch.setattr(vnni_encoder, "LARGE", 1)


def pixels(size=64, frames=16, seed=0):
    return {"pixel_values_videos": noise(1, frames, 3, size, size, seed=seed)}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {stored: write_encoder(folder / stored / "encoder.onnx", stored, SHAPE) for stored in ("fp16", "fp32")}


@pytest.fixture(scope="module")
def projected(encoders, tmp_path_factory):
    """An encoder with its tokens pooled, and a projector."""
    path = tmp_path_factory.mktemp("projected") / "encoder.onnx"
    sides = (96, 256), (96,), (64, 96), (64,), (64,), (64,)
    projector = Projector(*(noise(*side, seed=at) for at, side in enumerate(sides)))
    checkpoint = Checkpoint(encoders["fp16"].with_suffix(""))
    vjepa2.write(path, checkpoint, token_grid=(4, 2, 2), projector=projector, precision="fp16")
    return path


@needs_vnni
@pytest.mark.parametrize("stored", ["fp16", "fp32"])
def test_an_encoder_agrees_and_its_weights_are_rounded_once(encoders, every_size, tmp_path, stored):
    said: list[str] = []
    store = EngineStore(tmp_path / "cache", 1, say=said.append)
    engine = load(encoders[stored], "vnni", stored, store)
    found = engine(pixels())
    expected = load(encoders[stored], "onnxruntime", stored)(pixels())
    cosine = least_cosine(found, expected)
    assert GRAPH_COSINE["dynamic int8"] <= cosine < GRAPH_COSINE["fp32"], "it does round"
    assert (engine.name, engine.device, engine.precision) == ("vnni", "cpu", "dynamic int8")
    assert said == ["arranging the weights of encoder.onnx for vnni (once)"]
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert sorted(Path(name).suffix for name in kept) == [".lock", ".so", ".vnni"]
    again = load(encoders[stored], "vnni", stored, store)
    np.testing.assert_array_equal(again(pixels())["video_tokens"], found["video_tokens"])
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == kept
    assert len(said) == 1 and not np.array_equal(engine(pixels(seed=1))["video_tokens"], found["video_tokens"])


@needs_vnni
def test_pooling_and_projector_agree(projected, every_size, tmp_path):
    engine = load(projected, "vnni", "fp16", EngineStore(tmp_path, 1))
    found, expected = engine(pixels()), load(projected, "onnxruntime", "fp16")(pixels())
    assert found["video_tokens"].shape == (1, 16, 64) and found["video_tokens"].dtype == np.float32
    assert least_cosine(found, expected) > GRAPH_COSINE["dynamic int8"]


@needs_vnni
def test_a_file_of_weights_that_was_cut_off_is_written_anew(encoders, every_size, tmp_path):
    store = EngineStore(tmp_path, 1)
    expected = load(encoders["fp16"], "vnni", "fp16", store)(pixels())["video_tokens"]
    (file,) = tmp_path.glob("*.vnni")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(file.read_bytes()[:-1])
    np.testing.assert_array_equal(load(encoders["fp16"], "vnni", "fp16", store)(pixels())["video_tokens"], expected)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest


@needs_vnni
@pytest.mark.parametrize("stored_at_all", [True, False])
def test_without_a_cache_all_is_made_each_time(encoders, every_size, tmp_path, stored_at_all):
    (tmp_path / "cache").write_text("a file where the folder should be")
    said: list[str] = []
    store = EngineStore(tmp_path / "cache", 1, say=said.append) if stored_at_all else None
    found = load(encoders["fp16"], "vnni", "fp16", store)(pixels())
    expected = load(encoders["fp16"], "vnni", "fp16", EngineStore(tmp_path / "good", 1))(pixels())
    np.testing.assert_array_equal(found["video_tokens"], expected["video_tokens"])
    each_time = [line for line in said if line.endswith("each time")]
    assert len(each_time) == 2 * stored_at_all and not any("\n" in line for line in said)


@needs_vnni
@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"images": noise(1)},
        {**pixels(), "more": noise(1)},
        pixels(32),
        {"pixel_values_videos": np.zeros((1, 16, 3, 64, 64))},
    ],
)
def test_inputs_that_do_not_fit_are_refused(encoders, every_size, tmp_path, inputs):
    engine = load(encoders["fp16"], "vnni", "fp16", EngineStore(tmp_path, 1))
    with pytest.raises(EngineError, match=r"encoder\.onnx: input"):
        engine(inputs)


def transformer(path):
    return vit.VisionTransformer.of(path, onnx_graph.read(path))


def test_small_encoders_are_left_to_another(encoders):
    assert load(encoders["fp16"], "vnni", "fp16").name == "onnxruntime"
    with pytest.raises(UnsuitedError, match=r"encoder\.onnx: vnni runs large graphs alone"):
        load_one(encoders["fp16"], "vnni", "fp16", None)


@pytest.mark.parametrize(
    "shape", [{**SHAPE, "hidden_size": 96}, {**SHAPE, "num_attention_heads": 1}, {**SHAPE, "crop_size": 16}]
)
def test_sides_that_the_kernels_do_not_take_are_left_to_another(tmp_path, every_size, shape):
    path = write_encoder(tmp_path / "encoder.onnx", "fp16", shape)
    with pytest.raises(UnsuitedError, match=r"encoder\.onnx: a layer's constants are not"):
        vnni_encoder_weights.LayerShape.of(path, transformer(path))


def test_layers_are_found_by_what_each_operation_reads(encoders):
    found = transformer(encoders["fp16"])
    assert len(found.layers) == 2 and found.layers[0].epsilons == pytest.approx((1e-6, 1e-6))
    assert [node.op for node in found.before] == ["Reshape", "Transpose", "Reshape", "MatMul", "Add"]
    assert [node.op for node in found.after] == ["LayerNormalization", "Reshape", "Identity"]
    assert found.layers[1].names["fc1_weight"] == "layer.1/mlp/fc1.weight"
    nodes = vit._without_casts(onnx_graph.read(encoders["fp16"]).nodes)
    layer = nodes[len(found.before) : len(found.before) + len(vit.LAYER)]
    assert vit._layer(layer) is not None and vit._layer(layer[:-1]) is None
    for at, node in enumerate(layer):
        if len(set(node.inputs)) > 1:
            other = vit.Node(node.op, node.inputs[::-1], node.outputs, node.attributes)
            assert vit._layer([*layer[:at], other, *layer[at + 1 :]]) is None, node


def test_a_machine_without_what_it_takes_has_no_such_backend(encoders, every_size, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(vnni_files, "processor_flags", lambda: compiler.NEEDED - {"avx512_vnni"})
        patch.setattr(trial, "processor_flags", lambda: compiler.NEEDED - {"avx512_vnni"})
        assert "vnni" not in trial.installed()
        with pytest.raises(AbsentError, match="vnni needs a processor with AVX-512 VNNI"):
            load(encoders["fp16"], "vnni", "fp16")
    monkeypatch.setattr(vnni_files, "processor_flags", lambda: compiler.NEEDED)
    monkeypatch.setattr(trial, "processor_flags", lambda: compiler.NEEDED)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "vnni" not in trial.installed()
    with pytest.raises(EngineError, match=r"no C compiler .*; run: apt install gcc libc6-dev$"):
        load(encoders["fp16"], "vnni", "fp16", EngineStore(tmp_path / "cache", 1))
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'first line' >&2\necho 'x.c:1: error: no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert trial.installed()["vnni"] == compiler.recipe()
    with pytest.raises(EngineError, match=r"cc cannot compile svrt's kernels: x\.c:1: error: no such thing$"):
        load(encoders["fp16"], "vnni", "fp16", EngineStore(tmp_path / "cache", 1))
    assert not list((tmp_path / "cache").glob("*.so")), "nothing half is left"


def test_a_library_that_does_not_load_is_told(tmp_path):
    (tmp_path / "vnni.so").write_bytes(b"not a library")
    with pytest.raises(EngineError, match=r"vnni\.so: cannot be loaded .* remove it to have it compiled again"):
        Kernels(tmp_path / "vnni.so", 1)


@needs_vnni
@pytest.mark.full
def test_vit_l_agrees(tmp_path):
    path = write_encoder(tmp_path / "encoder.onnx", "fp16", VIT_L)
    inputs = pixels(256)
    found = load(path, "vnni", "fp16", EngineStore(tmp_path / "cache", 1))(inputs)
    expected = load(path, "onnxruntime", "fp16")(inputs)
    assert least_cosine(found, expected) >= GRAPH_COSINE["dynamic int8"]
