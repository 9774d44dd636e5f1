"""The V-JEPA 2 video encoder (arXiv 2506.09985) as an ONNX graph, written from a checkpoint's tensors.

Layout and arithmetic are those of Hugging Face `VJEPA2Model` (transformers, `modeling_vjepa2.py`): pre-norm ViT on
2 x 16 x 16 tubelets, rotary positions over time, row and column. Exporting that module by tracing costs about 3,900
nodes; here the positions are constants, so about 33 nodes a layer remain:

- The checkpoint's rotary embedding multiplies interleaved pairs by tiled tables, which is not a rotation, and weights
  depend on it. Reordering each head as (even components, odd components) in Wq and Wk turns the pair swap into a
  half swap, and leaves q.k as it was because both are reordered alike.
- The query scale is folded into Wq, and Q, K, V are one product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, RecipeError
from .checkpoint import Checkpoint
from .graph import Graph, Precision
from .projector import Projector

ROTARY_BASE = 10000.0
INPUT, OUTPUT = "pixel_values_videos", "video_tokens"
PREFIXES = ("encoder.", "vjepa2.encoder.", "")  # VJEPA2Model, VJEPA2ForVideoClassification, a bare encoder


@dataclass(frozen=True)
class Config:
    """The numbers of a checkpoint's `config.json` that shape the graph (names as there, defaults of ViT-L)."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    mlp_ratio: float = 4.0
    patch_size: int = 16
    tubelet_size: int = 2
    crop_size: int = 256
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Config:
        """Read `config.json` beside the tensors; raises `CheckpointError` where it describes another network."""
        values = checkpoint.json("config.json")
        model_type = values.get("model_type", "vjepa2")
        if model_type != "vjepa2":
            raise CheckpointError(f"{checkpoint.folder / 'config.json'}: model_type {model_type!r}, expected 'vjepa2'")
        if values.get("hidden_act", "gelu") != "gelu" or values.get("in_chans", 3) != 3:
            raise CheckpointError(f"{checkpoint.folder / 'config.json'}: only hidden_act 'gelu' on 3 channels is known")
        config = cls(**{name: _config_value(values, name, checkpoint) for name in cls.__dataclass_fields__})
        if config.hidden_size % config.num_attention_heads or config.head_dim % 2 or config.head_dim < 6:
            raise CheckpointError(f"{checkpoint.folder / 'config.json'}: heads must be 6 wide or more, and even")
        if config.crop_size % config.patch_size:
            raise CheckpointError(f"{checkpoint.folder / 'config.json'}: crop_size is not a multiple of patch_size")
        return config

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        return self.crop_size // self.patch_size

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)


def _config_value(values: dict[str, Any], name: str, checkpoint: Checkpoint) -> Any:
    default: bool | int | float = getattr(Config, name)
    value: Any = values.get(name, default)
    if isinstance(value, list) and value and all(item == value[0] for item in value):  # patch_size may be [16, 16]
        value = value[0]
    if isinstance(default, bool):
        usable = isinstance(value, bool)
    else:
        usable = isinstance(value, (int, float) if isinstance(default, float) else int) and value > 0
    if not usable:
        raise CheckpointError(f"{checkpoint.folder / 'config.json'}: {name} = {value!r} is not usable")
    return value


def rotary_order(head_dim: int) -> np.ndarray:
    """The order of a head's components in the graph: even ones, then odd ones; int64 [head_dim]."""
    return np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])


def rotary_tables(config: Config, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and signed sine per token and component, in `rotary_order`: float32 [tokens, head_dim] each.

    With x' = x * cos + swap(x) * sin, where swap exchanges the halves. Components beyond the three rotated groups
    (4 of 64) have cos 1 and sin 0. Source: `rotate_queries_or_keys` and `get_position_ids` of `modeling_vjepa2.py`.
    """
    grid, depth = config.grid, frames // config.tubelet_size
    group = 2 * ((config.head_dim // 3) // 2)
    positions = np.stack(np.meshgrid(np.arange(depth), np.arange(grid), np.arange(grid), indexing="ij"), -1)
    omega = (1.0 / ROTARY_BASE ** (np.arange(group // 2, dtype=np.float64) / (group / 2.0))).astype(np.float32)
    angles = positions.reshape(-1, 3, 1).astype(np.float32) * omega  # float32, as upstream computes them
    angles = np.tile(angles, (1, 1, 2)).reshape(len(angles), 3 * group)
    cos = np.ones((len(angles), config.head_dim), np.float32)
    sin = np.zeros((len(angles), config.head_dim), np.float32)
    cos[:, : 3 * group], sin[:, : 3 * group] = np.cos(angles), np.sin(angles)
    sin[:, 0::2] *= -1.0  # x'[2i] = x[2i] cos - x[2i+1] sin
    order = rotary_order(config.head_dim)
    return cos[:, order], sin[:, order]


class _Encoder:
    """The graph of one checkpoint while it is being written."""

    def __init__(self, checkpoint: Checkpoint, config: Config, frames: int, graph: Graph) -> None:
        self.checkpoint, self.config, self.frames, self.graph = checkpoint, config, frames, graph
        self.prefix = self._find_prefix()
        self._read: set[str] = set()
        self.depth = frames // config.tubelet_size
        self.tokens = self.depth * config.grid * config.grid
        cos, sin = rotary_tables(config, frames)
        self.cos = graph.constant(cos.astype(graph.matmul_dtype), "rotary.cos")
        self.sin = graph.constant(sin.astype(graph.matmul_dtype), "rotary.sin")

    def _find_prefix(self) -> str:
        for prefix in PREFIXES:
            if f"{prefix}embeddings.patch_embeddings.proj.weight" in self.checkpoint:
                return prefix
        found = ", ".join(self.checkpoint.names[:4]) or "none"
        raise CheckpointError(f"{self.checkpoint.path}: no V-JEPA 2 encoder tensors; names found: {found} ...")

    def tensor(self, name: str, *shape: int) -> np.ndarray:
        self._read.add(self.prefix + name)
        return self.checkpoint.float32(self.prefix + name, shape)

    def check_all_read(self) -> None:
        """Raise `CheckpointError` for an encoder's tensor that the graph did not use: then it is another network."""
        parts = (f"{self.prefix}embeddings.", f"{self.prefix}layer.", f"{self.prefix}layernorm.")
        unknown = [name for name in self.checkpoint.names if name.startswith(parts) and name not in self._read]
        if unknown:
            where = self.checkpoint.path
            raise CheckpointError(f"{where}: unknown tensor {unknown[0]!r}; config.json describes another encoder")

    def patch_embedding(self, pixels: str) -> str:
        """Tubelets cut by reshape and transpose, then one product: the Conv3d of the checkpoint, stride = kernel."""
        config, graph = self.config, self.graph
        tube, patch, grid, width = config.tubelet_size, config.patch_size, config.grid, config.hidden_size
        with graph.scope("patch_embeddings"):
            value = graph.reshape(pixels, [self.depth, tube, 3, grid, patch, grid, patch])
            value = graph.node("Transpose", [value], perm=[0, 3, 5, 2, 1, 4, 6])
            value = graph.reshape(value, [self.tokens, 3 * tube * patch * patch])
            value = graph.cast(value, graph.matmul_dtype)
            weight = self.tensor("embeddings.patch_embeddings.proj.weight", width, 3, tube, patch, patch)
            bias = self.tensor("embeddings.patch_embeddings.proj.bias", width)
            value = graph.linear(value, weight.reshape(width, -1), bias, "proj")
            return graph.cast(value, np.dtype(np.float32))

    def fused_qkv(self, layer: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Q, K and V as one [3 x hidden, hidden] weight and bias: Q scaled, Q and K in rotary order."""
        config = self.config
        width, heads, head_dim = config.hidden_size, config.num_attention_heads, config.head_dim
        order = rotary_order(head_dim)
        weights, biases = [], []
        for part in ("query", "key", "value"):
            weight = self.tensor(f"{layer}.attention.{part}.weight", width, width)
            bias = self.tensor(f"{layer}.attention.{part}.bias", width) if config.qkv_bias else np.zeros(width, "f4")
            if part != "value":
                weight = weight.reshape(heads, head_dim, width)[:, order].reshape(width, width)
                bias = bias.reshape(heads, head_dim)[:, order].reshape(width)
            gain = np.float32(head_dim**-0.5 if part == "query" else 1.0)
            weights.append(weight * gain)
            biases.append(bias * gain)
        return np.concatenate(weights), np.concatenate(biases) if config.qkv_bias else None

    def rotate(self, value: str) -> str:
        graph = self.graph
        first, second = graph.nodes("Split", [value], 2, axis=-1)
        swapped = graph.node("Concat", [second, first], axis=-1)
        return graph.node("Add", [graph.node("Mul", [value, self.cos]), graph.node("Mul", [swapped, self.sin])])

    def attention(self, value: str, layer: str) -> str:
        """Self-attention of `value` [tokens, hidden], heads as the leading axis; softmax in float32."""
        graph, config = self.graph, self.config
        width, heads, head_dim = config.hidden_size, config.num_attention_heads, config.head_dim
        weight, bias = self.fused_qkv(layer)
        fused = graph.reshape(graph.linear(value, weight, bias, "qkv"), [self.tokens, 3 * heads, head_dim])
        fused = graph.node("Transpose", [fused], perm=[1, 0, 2])
        parts = graph.constant(np.array([2 * heads, heads], np.int64), "split")
        both, values = graph.nodes("Split", [fused, parts], 2, axis=0)
        query, key = graph.nodes("Split", [self.rotate(both)], 2, axis=0)
        scores = graph.node("MatMul", [query, graph.node("Transpose", [key], perm=[0, 2, 1])], "scores")
        weights = graph.node("Softmax", [graph.cast(scores, np.dtype(np.float32))], axis=-1)
        mixed = graph.node("MatMul", [graph.cast(weights, graph.matmul_dtype), values], "mixed")
        mixed = graph.reshape(graph.node("Transpose", [mixed], perm=[1, 0, 2]), [self.tokens, width])
        weight = self.tensor(f"{layer}.attention.proj.weight", width, width)
        return graph.linear(mixed, weight, self.tensor(f"{layer}.attention.proj.bias", width), "proj")

    def mlp(self, value: str, layer: str) -> str:
        graph, width, inner = self.graph, self.config.hidden_size, self.config.mlp_size
        weight, bias = self.tensor(f"{layer}.mlp.fc1.weight", inner, width), self.tensor(f"{layer}.mlp.fc1.bias", inner)
        value = graph.gelu(graph.linear(value, weight, bias, "fc1"))
        weight, bias = self.tensor(f"{layer}.mlp.fc2.weight", width, inner), self.tensor(f"{layer}.mlp.fc2.bias", width)
        return graph.linear(value, weight, bias, "fc2")

    def norm(self, value: str, name: str) -> str:
        width = self.config.hidden_size
        weight, bias = self.tensor(f"{name}.weight", width), self.tensor(f"{name}.bias", width)
        return self.graph.layer_norm(value, weight, bias, self.config.layer_norm_eps, name.rsplit(".", 1)[-1])

    def layer(self, value: str, index: int) -> str:
        graph, layer = self.graph, f"layer.{index}"
        with graph.scope(layer):
            with graph.scope("attention"):
                inner = self.attention(graph.cast(self.norm(value, f"{layer}.norm1"), graph.matmul_dtype), layer)
            value = graph.node("Add", [value, graph.cast(inner, np.dtype(np.float32))], "residual")
            with graph.scope("mlp"):
                inner = self.mlp(graph.cast(self.norm(value, f"{layer}.norm2"), graph.matmul_dtype), layer)
            return graph.node("Add", [value, graph.cast(inner, np.dtype(np.float32))], "residual")

    def pool(self, value: str, token_grid: tuple[int, int, int]) -> str:
        """Mean of blocks of tokens: [depth, grid, grid] tokens to `token_grid`, order (time, row, column)."""
        have = (self.depth, self.config.grid, self.config.grid)
        if have == token_grid:
            return value
        blocks = [side for want, size in zip(token_grid, have, strict=True) for side in (want, size // want)]
        value = self.graph.reshape(value, [*blocks, self.config.hidden_size])
        value = self.graph.node("ReduceMean", [value], axes=[1, 3, 5], keepdims=0)
        return self.graph.reshape(value, [int(np.prod(token_grid)), self.config.hidden_size])


def check_fit(config: Config, frames: int, token_grid: tuple[int, int, int] | None) -> None:
    """Raise `RecipeError` where frames or tokens do not divide into the encoder's tubelets and patches."""
    if frames <= 0 or frames % config.tubelet_size:
        raise RecipeError(f"encoder.frames = {frames} is not a multiple of the tubelet size {config.tubelet_size}")
    have = (frames // config.tubelet_size, config.grid, config.grid)
    if token_grid is not None and any(want <= 0 or size % want for size, want in zip(have, token_grid, strict=True)):
        raise RecipeError(f"encoder.token_grid = {list(token_grid)} does not divide the encoder's {list(have)} tokens")


def write(
    path: Path,
    checkpoint: Checkpoint,
    frames: int = 16,
    token_grid: tuple[int, int, int] | None = None,
    projector: Projector | None = None,
    precision: Precision = "fp32",
    int8: Mapping[str, float] | None = None,
) -> None:
    """Write the graph of `pixel_values_videos` float32 [1, frames, 3, S, S] (S = the checkpoint's crop_size) to
    `video_tokens` to `path`, its weights beside it.

    The output is float32 [1, tokens, width]: the last hidden state, mean-pooled to `token_grid` (time, rows, columns)
    if one is given, then through `projector` if one is given. `int8` is that of `Graph`.

    Raises `CheckpointError` for tensors that are missing, unknown or do not fit, `RecipeError` for frames or a grid
    that do not divide.
    """
    config = Config.read(checkpoint)
    check_fit(config, frames, token_grid)
    with Graph(path, "vjepa2", precision, int8) as graph:
        pixels = graph.input(INPUT, [1, frames, 3, config.crop_size, config.crop_size])
        encoder = _Encoder(checkpoint, config, frames, graph)
        value = encoder.patch_embedding(pixels)
        for index in range(config.num_hidden_layers):
            value = encoder.layer(value, index)
        value = encoder.norm(value, "layernorm")
        tokens, width = encoder.tokens, config.hidden_size
        if token_grid is not None:
            value, tokens = encoder.pool(value, token_grid), int(np.prod(token_grid))
        if projector is not None:
            value, width = projector.append(graph, value), projector.width
        encoder.check_all_read()
        graph.output(graph.reshape(value, [1, tokens, width]), OUTPUT, [1, tokens, width])
