"""The networks in plain numpy, as their sources define them: what an exported graph is held against.

Nothing is fused, baked or reordered here, and nothing is shared with the code that writes the graphs, so that a mistake
there cannot hide. Arithmetic is float32, as in the sources: `torchvision/models/vgg.py` and transformers'
`modeling_vjepa2.py`.
"""

from __future__ import annotations

from math import erf

import numpy as np

from ..models.checkpoint import Checkpoint
from ..models.projector import NORM_EPSILON, Names
from ..models.vjepa2 import Config

VGG_LAYERS = (0, 2, "pool", 5, 7, "pool", 10, 12, 14, "pool", 17, 19, 21, "pool", 24, 26, 28, "pool")


def vgg16(checkpoint: Checkpoint, images: np.ndarray) -> np.ndarray:
    """Global average of VGG-16's last block: normalised images float32 [N, 3, S, S] to float32 [N, 512]."""
    return np.concatenate([_vgg16_one(checkpoint, image[None]) for image in images])


def _vgg16_one(checkpoint: Checkpoint, value: np.ndarray) -> np.ndarray:
    for layer in VGG_LAYERS:
        if layer == "pool":
            height, width = value.shape[2] // 2 * 2, value.shape[3] // 2 * 2
            corners = [value[:, :, y:height:2, x:width:2] for y in (0, 1) for x in (0, 1)]
            value = np.maximum.reduce(corners)
        else:
            weight = checkpoint.float32(f"features.{layer}.weight")
            value = np.maximum(_convolve3x3(value, weight, checkpoint.float32(f"features.{layer}.bias")), 0.0)
    return np.asarray(value.mean(axis=(2, 3)))


def _convolve3x3(images: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Same-size 3 x 3 convolution as a product over the nine shifted images: [N, C, H, W] to [N, F, H, W]."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    # [N, C, H, W, 3, 3]; numpy 2.2 types `axis` as one number
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))  # type: ignore[call-overload]
    result = np.tensordot(windows, weight, axes=([1, 4, 5], [1, 2, 3]))  # [N, H, W, F]
    return np.asarray(np.moveaxis(result + bias, -1, 1), dtype=np.float32)


def video_tokens(
    encoder: Checkpoint, projector: Checkpoint, pixels: np.ndarray, token_grid: tuple[int, int, int]
) -> np.ndarray:
    """Encoder, pooling and projector: pixels float32 [1, T, 3, S, S] to float32 [1, tokens, width]."""
    config = Config.read(encoder)
    hidden = vjepa2(encoder, config, pixels)
    have = (pixels.shape[1] // config.tubelet_size, config.grid, config.grid)
    grid: np.ndarray = hidden.reshape(*have, config.hidden_size)
    for axis, want in enumerate(token_grid):
        grid = np.stack([part.mean(axis=axis) for part in np.split(grid, want, axis=axis)], axis=axis)
    names = Names.find(projector)
    value = np.maximum(_linear(grid.reshape(-1, config.hidden_size), projector, names.first), 0.0)
    value = _linear(value, projector, names.second)
    return (value if names.norm is None else _layer_norm(value, projector, names.norm, NORM_EPSILON))[None]


def vjepa2(checkpoint: Checkpoint, config: Config, pixels: np.ndarray) -> np.ndarray:
    """Last hidden state: pixels float32 [1, T, 3, S, S] to float32 [tokens, hidden]."""
    frames, tube, patch, grid = pixels.shape[1], config.tubelet_size, config.patch_size, config.grid
    root = next(n for n in checkpoint.names if n.endswith("patch_embeddings.proj.weight")).split("embeddings.")[0]
    kernel = checkpoint.float32(f"{root}embeddings.patch_embeddings.proj.weight").reshape(config.hidden_size, -1)
    video = pixels[0].transpose(1, 0, 2, 3)  # channels first, as the Conv3d reads it
    tubelets = [
        video[:, t : t + tube, y : y + patch, x : x + patch].ravel()
        for t in range(0, frames, tube)
        for y in range(0, grid * patch, patch)
        for x in range(0, grid * patch, patch)
    ]
    hidden = np.stack(tubelets) @ kernel.T + checkpoint.float32(f"{root}embeddings.patch_embeddings.proj.bias")
    for index in range(config.num_hidden_layers):
        name = f"{root}layer.{index}"
        hidden = hidden + _attention(
            _layer_norm(hidden, checkpoint, f"{name}.norm1", config.layer_norm_eps), checkpoint, config, name
        )
        inner = _linear(
            _layer_norm(hidden, checkpoint, f"{name}.norm2", config.layer_norm_eps), checkpoint, f"{name}.mlp.fc1"
        )
        hidden = hidden + _linear(_gelu(inner), checkpoint, f"{name}.mlp.fc2")
    return _layer_norm(hidden, checkpoint, f"{root}layernorm", config.layer_norm_eps)


def _attention(value: np.ndarray, checkpoint: Checkpoint, config: Config, layer: str) -> np.ndarray:
    heads, width = config.num_attention_heads, config.head_dim
    query, key, values = (
        _linear(value, checkpoint, f"{layer}.attention.{part}").reshape(-1, heads, width).transpose(1, 0, 2)
        for part in ("query", "key", "value")
    )
    query, key = _rotary(query, config), _rotary(key, config)
    mixed = [_head(q, k, v, np.float32(width**-0.5)) for q, k, v in zip(query, key, values, strict=True)]
    return _linear(np.concatenate(mixed, axis=1), checkpoint, f"{layer}.attention.proj")


def _head(query: np.ndarray, key: np.ndarray, values: np.ndarray, scale: np.float32) -> np.ndarray:
    """One head by itself: all 16 of ViT-L at once would hold 270 MB of weights, twice. [tokens, width] each."""
    scores = query @ key.T * scale
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights @ values)


def _rotary(value: np.ndarray, config: Config) -> np.ndarray:
    """`apply_rotary_embeddings`: frame, row and column each turn a third of a head [heads, tokens, width]."""
    tokens = np.arange(value.shape[1])
    row = config.grid
    positions = (tokens // (row * row), tokens % (row * row) // row, tokens % row)
    group = 2 * ((config.head_dim // 3) // 2)
    turned: np.ndarray = value.copy()
    for part, position in enumerate(positions):
        piece = value[..., part * group : (part + 1) * group]
        omega = (1.0 / 10000 ** (np.arange(group // 2) / (group / 2.0))).astype(np.float32)
        angle = np.tile(position[:, None].astype(np.float32) * omega, 2)
        other = np.stack([-piece[..., 1::2], piece[..., 0::2]], axis=-1).reshape(piece.shape)
        turned[..., part * group : (part + 1) * group] = piece * np.cos(angle) + other * np.sin(angle)
    return turned


def _linear(value: np.ndarray, checkpoint: Checkpoint, name: str) -> np.ndarray:
    product = value @ checkpoint.float32(f"{name}.weight").T
    return np.asarray(product + checkpoint.float32(f"{name}.bias") if f"{name}.bias" in checkpoint else product)


def _layer_norm(value: np.ndarray, checkpoint: Checkpoint, name: str, epsilon: float) -> np.ndarray:
    centred = value - value.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(epsilon))
    return np.asarray(scaled * checkpoint.float32(f"{name}.weight") + checkpoint.float32(f"{name}.bias"))


def _gelu(value: np.ndarray) -> np.ndarray:
    """Exact GELU, a few rows at a time: the steps between stay in the cache."""
    result = np.empty_like(value)
    for start in range(0, len(value), _GELU_ROWS):
        rows = value[start : start + _GELU_ROWS]
        result[start : start + _GELU_ROWS] = rows * 0.5 * (1.0 + _erf(rows.astype(np.float64) / np.sqrt(2.0)))
    return result


_GELU_ROWS = 8
# Error function from a table, to 2e-9: numpy has none, and Python's is one value at a time.
_ERF_REACH, _ERF_STEPS = 6.0, 10_000  # beyond 6 it is 1 in float32; steps per unit
_ERF = np.array([erf(i / _ERF_STEPS - _ERF_REACH) for i in range(int(2 * _ERF_REACH * _ERF_STEPS) + 2)])
_ERF_RISE = np.diff(_ERF, append=1.0)


def _erf(value: np.ndarray) -> np.ndarray:
    position = (np.clip(value, -_ERF_REACH, _ERF_REACH) + _ERF_REACH) * _ERF_STEPS
    index = position.astype(np.int32)
    return np.asarray(_ERF[index] + (position - index) * _ERF_RISE[index])
