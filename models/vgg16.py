"""VGG-16's convolutions (arXiv 1409.1556, configuration D) with global average pooling: the sampler's eye.

Tensor names and shapes are torchvision's `vgg16().features`: `features.N.weight` [out, in, 3, 3], `features.N.bias`
[out]; `timm/vgg16.tv_in1k` has the same. Pooling over the whole map (our choice; the paper does not say) lets the
network run at any input of 32 pixels or more: 112 x 112 costs a quarter of 224 x 224.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .graph import Graph, Precision

# (index in torchvision's `features`, input channels, output channels); a max-pool follows each block.
BLOCKS: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
    ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
    ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
)
FEATURES = 512
PARAMETERS = sum(9 * channels * filters + filters for block in BLOCKS for _, channels, filters in block)
INPUT, OUTPUT = "images", "features"


def write(path: Path, checkpoint: Checkpoint, size: int, precision: Precision = "fp32") -> None:
    """Write the graph of `images` to `features` float32 [N, 512] to `path`, its weights beside it.

    `images` is float32 [N, 3, size, size], normalised as the checkpoint expects.

    Raises `CheckpointError` where a convolution is missing, has another shape, or is none of VGG-16's.
    """
    _refuse_other_networks(checkpoint)
    with Graph(path, "vgg16", precision) as graph:
        value = graph.cast(graph.input(INPUT, ["batch", 3, size, size]), graph.matmul_dtype)
        for block in BLOCKS:
            for index, channels, filters in block:
                stem = f"features.{index}"
                weight = checkpoint.float32(f"{stem}.weight", (filters, channels, 3, 3)).astype(graph.matmul_dtype)
                bias = checkpoint.float32(f"{stem}.bias", (filters,)).astype(graph.matmul_dtype)
                constants = [graph.constant(weight, f"{stem}.weight"), graph.constant(bias, f"{stem}.bias")]
                value = graph.node("Conv", [value, *constants], stem, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
                value = graph.node("Relu", [value], f"features.{index + 1}")
            value = graph.node("MaxPool", [value], kernel_shape=[2, 2], strides=[2, 2])
        value = graph.cast(value, np.dtype(np.float32))
        value = graph.node("Flatten", [graph.node("GlobalAveragePool", [value])], axis=1)
        graph.output(value, OUTPUT, ["batch", FEATURES])


def _refuse_other_networks(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` for convolutions that VGG-16 does not have: VGG-19, or one with batch norm."""
    known = {f"features.{index}.{kind}" for block in BLOCKS for index, _, _ in block for kind in ("weight", "bias")}
    unknown = [name for name in checkpoint.names if name.startswith("features.") and name not in known]
    if unknown:
        raise CheckpointError(f"{checkpoint.path}: unknown tensor {unknown[0]!r}; VGG-16 without batch norm has none")
