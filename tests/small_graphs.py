"""Graphs to run or to build: VGG-16 with its real weights, and V-JEPA 2 encoders of any size with random ones."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from svrt.models import vgg16, vjepa2
from svrt.models.checkpoint import Checkpoint
from svrt.models.graph import Graph

VGG16_WEIGHTS = Path(str(files("svrt.models.pocket") / "weights" / "vgg16.safetensors"))
SMALL = {"crop_size": 64, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT_L = {"crop_size": 256, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}


def write_vgg16(path: Path, precision="fp32", size=32) -> Path:
    path.parent.mkdir(exist_ok=True)
    vgg16.write(path, Checkpoint(VGG16_WEIGHTS), size, precision)
    return path


def write_one_block(path: Path, size=32) -> Path:
    """VGG-16 with its ends and its first convolution alone: `images` [batch, 3, size, size], `features` [batch, 64]."""
    path.parent.mkdir(exist_ok=True)
    checkpoint = Checkpoint(VGG16_WEIGHTS)
    with Graph(path, "block") as graph:
        value = graph.input("images", ["batch", 3, size, size])
        names = [graph.constant(checkpoint.float32(f"features.0.{part}"), part) for part in ("weight", "bias")]
        value = graph.node("Relu", [graph.node("Conv", [value, *names], pads=[1, 1, 1, 1])])
        value = graph.node("Flatten", [graph.node("GlobalAveragePool", [value])], axis=1)
        graph.output(value, "features", ["batch", 64])
    return path


def write_encoder(path: Path, precision="fp32", shape=SMALL, seed=0) -> Path:
    """The encoder without a projector; its checkpoint, in float16, is left beside it."""
    rng, width = np.random.default_rng(seed), shape["hidden_size"]

    def linear(stem, out, inner):
        tensors[f"{stem}.weight"] = rng.standard_normal((out, inner), np.float32).astype(np.float16) * width**-0.5
        tensors[f"{stem}.bias"] = np.zeros(out, np.float16)

    def norm(stem):
        tensors[f"{stem}.weight"], tensors[f"{stem}.bias"] = np.ones(width, np.float16), np.zeros(width, np.float16)

    tensors: dict[str, np.ndarray] = {}
    patches = "encoder.embeddings.patch_embeddings.proj"
    linear(patches, width, 3 * 2 * 16 * 16)
    tensors[f"{patches}.weight"] = tensors[f"{patches}.weight"].reshape(width, 3, 2, 16, 16)
    for index in range(shape["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        for part in ("query", "key", "value", "proj"):
            linear(f"{layer}.attention.{part}", width, width)
        linear(f"{layer}.mlp.fc1", 4 * width, width)
        linear(f"{layer}.mlp.fc2", width, 4 * width)
        norm(f"{layer}.norm1")
        norm(f"{layer}.norm2")
    norm("encoder.layernorm")
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    save_file({name: np.asarray(tensor, np.float16) for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "vjepa2", **shape}))
    vjepa2.write(path, Checkpoint(folder), precision=precision)
    return path
