"""A system in SV3.3B's layouts through the exporter: what its bundle says, what is refused, and what stops it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_server import Hub
from safetensors.numpy import load_file, save_file
from small_llama import edit_json
from small_system import write_system
from svrt.bundle import Bundle, sha256_of
from svrt.errors import CheckpointError
from svrt.exporter.export import export
from svrt.exporter.parts import fingerprint
from svrt.exporter.recipe import read_recipe
from svrt.models import llama, vjepa2
from svrt.runtime.pipeline import Pipeline

ROLES = ("sampler", "encoder", "projector", "decoder", "adapter")
SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def system(tmp_path_factory) -> Path:
    """Folder of the parts, and of the recipe small.toml."""
    return write_system(tmp_path_factory.mktemp("system")).parent


@pytest.fixture(scope="module")
def bundle(system, tmp_path_factory) -> Bundle:
    return export(read_recipe(str(system / "small.toml")), tmp_path_factory.mktemp("bundles") / "b")


def test_the_bundle_says_what_it_is_made_of(system, bundle):
    manifest = Bundle.load(bundle.path).manifest
    assert set(manifest.files) == {
        "vgg16.onnx",
        "vgg16.onnx.data",
        "encoder.onnx",
        "encoder.onnx.data",
        "decoder.gguf",
    }
    assert {role: source.name for role, source in manifest.provenance.items()} == {role: role for role in ROLES}
    for role in ROLES:
        assert manifest.provenance[role].sha256 == fingerprint(system / role)
        assert manifest.provenance[role].revision is None
    assert manifest.files["encoder.onnx"].inputs[0].shape == [1, 16, 3, 64, 64]
    assert manifest.decoder.width == 256


def test_what_a_file_of_tensors_is_read_with_is_part_of_its_hash(system, tmp_path):
    shutil.copytree(system / "adapter", tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    before = fingerprint(file)
    edit_json(tmp_path / "lora" / "adapter_config.json", lora_alpha=320)
    assert fingerprint(file) != before  # the same tensors, ten times as much of them
    (tmp_path / "lora" / "adapter_config.json").unlink()
    assert fingerprint(file) == sha256_of(file)


def test_every_component_was_held_against_float32(bundle):
    parity = bundle.manifest.parity
    assert set(parity) == {"vgg16.onnx", "encoder.onnx", "merged.gguf", "decoder.gguf"}
    assert parity["vgg16.onnx"].cosine >= 0.9995 and parity["encoder.onnx"].cosine >= 0.9995
    assert 0 < parity["encoder.onnx"].relative_error < 0.03
    assert parity["merged.gguf"].cosine >= 0.9999 > parity["decoder.gguf"].cosine >= 0.99
    assert all(found.reference == "numpy float32" for found in parity.values())


def test_in_float32_graphs_are_within_1e_5(system, tmp_path):
    recipe = read_recipe(str(system / "small.toml")).with_precision("fp32")
    parity = export(recipe, tmp_path / "b").manifest.parity
    assert parity["vgg16.onnx"].relative_error <= 1e-5 and parity["encoder.onnx"].relative_error <= 1e-5


def test_it_describes_a_clip(bundle, clip):
    with Pipeline(bundle, "onnxruntime") as pipeline:
        found = pipeline.describe(clip)
    assert len(found.keyframes) == 16
    assert found.tokens.video == 16 and found.tokens.generated == 8
    assert found.text


@pytest.mark.parametrize(
    ("component", "module", "name", "broken"),
    [
        ("encoder.onnx", vjepa2, "rotary_order", np.arange),
        ("merged.gguf", llama, "to_ggml_rows", lambda weight, heads: weight),
    ],
)
def test_a_component_that_differs_from_its_reference_stops_the_export(
    system, tmp_path, monkeypatch, component, module, name, broken
):
    monkeypatch.setattr(module, name, broken)
    with pytest.raises(CheckpointError, match=rf"{component}: \w+ differs from its reference by .* over the limit"):
        export(read_recipe(str(system / "small.toml")), tmp_path / "b")
    assert os.listdir(tmp_path) == []


def test_random_weights_take_the_place_of_what_is_not_given(system, tmp_path, monkeypatch):
    """Projector and LoRA are drawn to fit the encoder and the decoder that were given."""
    text = (
        (system / "small.toml").read_text().replace('"projector"', '""').replace('adapter = "adapter"', 'adapter = ""')
    )
    (system / "part.toml").write_text(text)
    found = export(read_recipe(str(system / "part.toml")).with_random_weights(3), tmp_path / "b")
    assert found.manifest.provenance["projector"].name == "random:3"
    assert found.manifest.provenance["adapter"].name == "random:3"
    again = export(read_recipe(str(system / "part.toml")).with_random_weights(3), tmp_path / "again")
    assert again.sha256 == found.sha256
    other = export(read_recipe(str(system / "part.toml")).with_random_weights(4), tmp_path / "other")
    assert other.manifest.files["decoder.gguf"].sha256 != found.manifest.files["decoder.gguf"].sha256


def _without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


def _change_tensors(file: Path, change) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


BAD = {
    "a missing shard": (lambda s: (s / "decoder" / SHARD).unlink(), rf"{SHARD}: shard .* is missing"),
    "a truncated shard": (
        lambda s: os.truncate(s / "decoder" / SHARD, (s / "decoder" / SHARD).stat().st_size - 9),
        rf"{SHARD}: .*cannot be read",
    ),
    "a missing tensor": (
        lambda s: _change_tensors(
            s / "encoder" / "model.safetensors", lambda t: _without(t, "encoder.layer.1.norm2.weight")
        ),
        "'encoder.layer.1.norm2.weight' is missing",
    ),
    "a tensor of another shape": (
        lambda s: _change_tensors(
            s / "sampler" / "model.safetensors", lambda t: {**t, "features.28.bias": np.zeros(256, np.float32)}
        ),
        r"'features.28.bias' is \[256\], expected \[512\]",
    ),
    "an unknown tensor": (
        lambda s: _change_tensors(
            s / "encoder" / "model.safetensors", lambda t: {**t, "encoder.layer.9.x": np.zeros(3, np.float32)}
        ),
        "unknown tensor 'encoder.layer.9.x'",
    ),
    "an unknown tensor in a shard's index": (
        lambda s: edit_index(s / "decoder", "model.layers.0.self_attn.q_proj.scales"),
        r"unknown tensor 'model.layers.0.self_attn.q_proj.scales'",
    ),
    "a projector of unknown names": (
        lambda s: _change_tensors(
            s / "projector" / "model.safetensors", lambda t: {f"x{key}": value for key, value in t.items()}
        ),
        "keys found: xfc1.bias",
    ),
    "a projector for another encoder": (
        lambda s: _change_tensors(
            s / "projector" / "model.safetensors", lambda t: {**t, "fc1.weight": np.zeros((512, 64), np.float32)}
        ),
        "reads tokens of width 64, the encoder's width is 96",
    ),
    "a projector for another decoder": (
        lambda s: _change_tensors(
            s / "projector" / "model.safetensors", lambda t: {**t, "fc2.weight": np.zeros((128, 512), np.float32)}
        ),
        "gives tokens of width 128, the decoder's width is 256",
    ),
    "a LoRA for another base": (
        lambda s: _change_tensors(
            s / "adapter" / "adapter_model.safetensors",
            lambda t: {key.replace("layers.1.", "layers.7."): value for key, value in t.items()},
        ),
        r"layers\.7\..*trained for another base",
    ),
    "DoRA": (lambda s: edit_json(s / "adapter" / "adapter_config.json", use_dora=True), "DoRA is not supported"),
    "another kind of adapter": (
        lambda s: edit_json(s / "adapter" / "adapter_config.json", peft_type="IA3"),
        "peft_type 'IA3' is not supported",
    ),
    "a pickle": (
        lambda s: [(s / "encoder" / "model.safetensors").rename(s / "encoder" / "pytorch_model.bin")],
        r"found only pickles \(pytorch_model.bin\)",
    ),
    "another architecture": (
        lambda s: edit_json(s / "decoder" / "config.json", architectures=["Qwen2ForCausalLM"], model_type="qwen2"),
        "unsupported architecture Qwen2ForCausalLM",
    ),
    "answers that begin alike": (
        lambda s: edit_recipe(s, "max_tokens = 8", 'answers = { make = "Made", miss = "Made no basket" }'),
        "answers Made, Made no basket begin with the same token",
    ),
    "more tokens than the decoder's context": (
        lambda s: edit_recipe(s, "max_tokens = 8", "max_tokens = 4080"),
        "16 video tokens and 4080 of text do not fit into the decoder's context of 4096",
    ),
    "one file of a sharded decoder": (
        lambda s: edit_recipe(s, 'source = "decoder"', f'source = "decoder/{SHARD}"'),
        f"{SHARD}: is one file of a checkpoint; give its folder",
    ),
    "values that are not finite": (
        lambda s: _change_tensors(
            s / "adapter" / "adapter_model.safetensors",
            lambda t: {
                key: value * np.float32(np.inf) if "up_proj.lora_B" in key else value for key, value in t.items()
            },
        ),
        "is not finite",
    ),
}


def edit_recipe(folder: Path, before: str, after: str) -> None:
    recipe = folder / "small.toml"
    assert before in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(before, after))


def edit_index(folder: Path, name: str) -> None:
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"][name] = SHARD
    index.write_text(json.dumps(values))


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(system, tmp_path, case):
    harm, message = BAD[case]
    shutil.copytree(system, tmp_path / "system")
    harm(tmp_path / "system")
    (out := tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "svrt", "export", str(tmp_path / "system" / "small.toml"), "--out", str(out / "b")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    *stages, last = done.stderr.splitlines()
    assert last.startswith("svrt: error: ")
    assert re.search(message, last), last
    assert all(line.startswith("svrt: ") for line in stages)
    assert os.listdir(out) == []


def test_a_pickle_named_as_a_source_is_refused(system, tmp_path):
    (tmp_path / "vgg16.pth").write_bytes(b"\x80\x04.")
    recipe = read_recipe(str(system / "small.toml")).with_sources({"sampler": "vgg16.pth"}, tmp_path)
    with pytest.raises(CheckpointError, match=r"vgg16\.pth: a pickle can run code .* convert it to safetensors"):
        export(recipe, tmp_path / "b")
    assert os.listdir(tmp_path) == ["vgg16.pth"]


def test_what_cannot_be_made_is_told_before_any_work(system, tmp_path):
    command = [sys.executable, "-m", "svrt", "export", str(system / "small.toml"), "--out", str(tmp_path / "b")]
    for extra, message in (
        (["--engines", "tensorflow"], "'tensorflow'"),
        (["--compute-capability", "8.6"], "give --engines tensorrt-rtx too"),
        (["--engines", "tensorrt-rtx", "--compute-capability", "1.0"], "tensorrt-rtx"),
        (["--seed", "1"], "give --random-weights too"),
        (["--random-weights"], "has a source for every part"),
        (["--adapter", f"{'x' * 300}/lora"], "xxx/lora: cannot be read: File name too long"),
        (["--precision", "int4"], "one of fp32, fp16"),
        (["--calibration", str(tmp_path)], "give --precision int8 too"),
        (["--quant", "q3"], "one of f16"),
    ):
        done = subprocess.run([*command, *extra], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        assert os.listdir(tmp_path) == []


def test_parts_from_a_hub_give_the_same_bundle_and_their_commits(system, bundle, tmp_path):
    with Hub() as hub:
        commits = {}
        for role in ROLES:
            held = {file.name: file.read_bytes() for file in (system / role).iterdir()}
            commits[role] = hub.add(
                f"sv33b/{role}", {**held, "README.md": b"# Weights", "pytorch_model.bin": b"pickle"}
            )
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*"}
        command = [sys.executable, "-m", "svrt", "export", str(system / "small.toml"), "--out", str(tmp_path / "b")]
        sources = [word for role in ROLES for word in (f"--{role}", f"sv33b/{role}@main")]
        done = subprocess.run([*command, *sources], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = Bundle.load(tmp_path / "b").manifest
    assert {role: source.revision for role, source in found.provenance.items()} == commits
    assert found.provenance["decoder"].name == "sv33b/decoder@main"
    assert found.files == bundle.manifest.files
    for role in ROLES:
        assert found.provenance[role].sha256 == bundle.manifest.provenance[role].sha256
