"""A bundle's weights as the checkpoints that PyTorch and transformers read, so that peers run the very same numbers.

The graphs' constants are put back as upstream has them: the query scale taken out, the rotary order undone, Q, K and V
apart. The decoder's matrices are what llama.cpp computes with, quantization undone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import save_file

from ...bundle import DECODER, ENCODER, VGG16, Bundle
from ...errors import SvrtError
from ...exporter.decoder import Base, open_base
from ...models.llama import ROPE_FACTORS, LlamaShape, from_ggml_rows, hugging_face_name
from ...models.vjepa2 import rotary_order

VGG_FILE, PROJECTOR_FILE, ROPE_FILE = "vgg16.safetensors", "projector.safetensors", "rope_factors.npy"
ENCODER_FOLDER, DECODER_FOLDER = "encoder", "decoder"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SPARE = 256 << 20  # bytes of disk beside the decoder


def write_vision(bundle: Bundle, folder: Path) -> None:
    """VGG-16, encoder and projector, float32, into `folder`. Raises `SvrtError` for a graph that is not ours."""
    save_file(_tensors(_constants(bundle.file(VGG16))), folder / VGG_FILE)
    graph = _Encoder(bundle)
    (folder / ENCODER_FOLDER).mkdir()
    (folder / ENCODER_FOLDER / "config.json").write_text(json.dumps(graph.config()), encoding="utf-8")
    save_file(_tensors(graph.checkpoint()), folder / ENCODER_FOLDER / SINGLE, metadata={"format": "pt"})
    save_file(_tensors(graph.projector()), folder / PROJECTOR_FILE)


def write_decoder(bundle: Bundle, folder: Path, dtype: str) -> None:
    """The decoder in `dtype` ("float32" or "bfloat16"), a shard a layer, into `folder`.

    Raises `SvrtError` where the disk is too small for it.
    """
    base = open_base(bundle.file(DECODER))
    kind: torch.dtype = getattr(torch, dtype)
    elements = sum(int(np.prod(shape)) for shape in base.tensors().values())
    _check_space(folder.parent, elements * kind.itemsize + _SPARE)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_llama_config(base.shape, dtype)), encoding="utf-8")
    places: dict[str, str] = {}
    for number, shard in enumerate(_shards(base)):
        tensors = {name: _decoder_tensor(base, ours, name).to(kind) for name, ours in shard.items()}
        places |= dict.fromkeys(tensors, f"model-{number:05}.safetensors")
        save_file(tensors, folder / f"model-{number:05}.safetensors", metadata={"format": "pt"})
    total = sum((folder / file).stat().st_size for file in set(places.values()))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    if ROPE_FACTORS in base.tensors():
        np.save(folder / ROPE_FILE, base.rows(ROPE_FACTORS)(0, base.shape.head_dim // 2))


def _check_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need:
        raise SvrtError(f"{folder}: {need / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free; set TMPDIR elsewhere")


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(np.ascontiguousarray(array, np.float32)) for name, array in arrays.items()}


def _constants(path: Path) -> dict[str, np.ndarray]:
    """Every constant of a graph, by the name that its writer gave."""
    model = onnx.load(str(path))
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def encoder_layer(bundle: Bundle) -> list[tuple[int, int]]:
    """[in, out] of the products with weights of one layer of the encoder, in the order of the graph."""
    graph = _Encoder(bundle)
    return [graph.of(f"layer.0/{name}.weight").shape for name in ("attention/qkv", "attention/proj", *_MLP)]  # type: ignore[misc]


_MLP = ("mlp/fc1", "mlp/fc2")


class _Encoder:
    """The encoder's graph, read back (`svrt.models.vjepa2` writes it)."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self.path = bundle, bundle.file(ENCODER)
        self._constants = _constants(self.path)
        _, self.tube, _, _, self.patch, _, _ = map(int, self.of("patch_embeddings/shape"))
        self.width = self.of("layernorm.weight").shape[0]
        self.heads = int(self.of("layer.0/attention/split")[1])
        self.layers = sum(name.endswith("/attention/qkv.weight") for name in self._constants)
        self.qkv_bias = "layer.0/attention/qkv.bias" in self._constants

    def of(self, name: str) -> np.ndarray:
        if name not in self._constants:
            raise SvrtError(f"{self.path}: has no constant {name!r}; its weights cannot be given to a peer")
        return self._constants[name]

    def config(self) -> dict[str, Any]:
        """`config.json` of `VJEPA2Model`; the predictor, which is not used, is as small as it goes."""
        model = onnx.load(str(self.path), load_external_data=False)
        norm = next(node for node in model.graph.node if node.name == "layernorm")
        return {
            "architectures": ["VJEPA2Model"],
            "model_type": "vjepa2",
            "crop_size": self._bundle.manifest.encoder.size,
            "frames_per_clip": self._bundle.manifest.encoder.frames,
            "hidden_size": self.width,
            "layer_norm_eps": next(a.f for a in norm.attribute if a.name == "epsilon"),
            "mlp_ratio": self.of("layer.0/mlp/fc1.weight").shape[1] / self.width,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "patch_size": self.patch,
            "qkv_bias": self.qkv_bias,
            "tubelet_size": self.tube,
            "pred_hidden_size": 12,
            "pred_num_attention_heads": 1,
            "pred_num_hidden_layers": 1,
            "pred_num_mask_tokens": 1,
        }

    def checkpoint(self) -> dict[str, np.ndarray]:
        """Tensors by upstream's names; weights [out, in]."""
        kernel = self.of("patch_embeddings/proj.weight").T
        found = {
            "embeddings.patch_embeddings.proj.weight": kernel.reshape(-1, 3, self.tube, self.patch, self.patch),
            "embeddings.patch_embeddings.proj.bias": self.of("patch_embeddings/proj.bias"),
            **self._norm("layernorm", "layernorm"),
        }
        for index in range(self.layers):
            layer = f"layer.{index}"
            found |= self._attention(layer)
            found |= self._norm(f"{layer}/attention/norm1", f"{layer}.norm1")
            found |= self._norm(f"{layer}/mlp/norm2", f"{layer}.norm2")
            found |= self._linear(f"{layer}/attention/proj", f"{layer}.attention.proj")
            for name in ("fc1", "fc2"):
                found |= self._linear(f"{layer}/mlp/{name}", f"{layer}.mlp.{name}")
        return {f"encoder.{name}": array for name, array in found.items()}

    def projector(self) -> dict[str, np.ndarray]:
        """`fc1`, `fc2` and, where it has one, `norm`."""
        found = self._linear("projector/fc1", "fc1") | self._linear("projector/fc2", "fc2")
        return found | (self._norm("projector/norm", "norm") if "projector/norm.weight" in self._constants else {})

    def _linear(self, ours: str, theirs: str) -> dict[str, np.ndarray]:
        return {f"{theirs}.weight": self.of(f"{ours}.weight").T, f"{theirs}.bias": self.of(f"{ours}.bias")}

    def _norm(self, ours: str, theirs: str) -> dict[str, np.ndarray]:
        return {f"{theirs}.{kind}": self.of(f"{ours}.{kind}") for kind in ("weight", "bias")}

    def _attention(self, layer: str) -> dict[str, np.ndarray]:
        """Q, K and V apart, Q without its scale, Q and K in the checkpoint's order."""
        found = {}
        head = self.width // self.heads
        back = np.argsort(rotary_order(head))
        stacked = {"weight": self.of(f"{layer}/attention/qkv.weight").T}
        if self.qkv_bias:
            stacked["bias"] = self.of(f"{layer}/attention/qkv.bias")
        for kind, fused in stacked.items():
            for name, part in zip(("query", "key", "value"), np.split(fused.astype(np.float32), 3), strict=True):
                if name != "value":
                    part = part.reshape(self.heads, head, -1)[:, back].reshape(part.shape)
                gain = np.float32(head**-0.5 if name == "query" else 1.0)
                found[f"{layer}.attention.{name}.{kind}"] = part / gain
        return found


def _llama_config(shape: LlamaShape, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": dtype,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "max_position_embeddings": shape.context,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.rms_epsilon,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tied,
        "vocab_size": shape.vocabulary,
    }


def _shards(base: Base) -> Iterator[dict[str, str]]:
    """Names by layer, upstream's to GGUF's; first those of no layer."""
    shards: dict[str, dict[str, str]] = {"": {}}
    for ours in base.tensors():
        if ours != ROPE_FACTORS:
            name = hugging_face_name(ours) or ours
            layer = name.split(".")[2] if ".layers." in name else ""
            shards.setdefault(layer, {})[name] = ours
    yield from shards.values()


def _decoder_tensor(base: Base, ours: str, name: str) -> torch.Tensor:
    values = base.rows(ours)(0, base.tensors()[ours][0])
    heads = base.shape.rotary_heads(name.removesuffix(".weight"))
    return torch.tensor(from_ggml_rows(values, heads) if heads else values)
