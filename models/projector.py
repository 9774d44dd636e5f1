"""The projector of SV3.3B (arXiv 2507.17844): a two-layer MLP from encoder tokens to the decoder's embedding width.

Linear, ReLU, dropout (absent at inference), Linear, LayerNorm. The paper names these parts; that LayerNorm comes last,
where it sets the scale the decoder reads, is our choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .graph import Graph

NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's default
KEYS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
NORM_KEYS = ("norm.weight", "norm.bias")


@dataclass(frozen=True)
class Projector:
    """Weights of the projector, float32: `fc1` [hidden, in], `fc2` [out, hidden], biases, and LayerNorm over out."""

    fc1_weight: np.ndarray
    fc1_bias: np.ndarray
    fc2_weight: np.ndarray
    fc2_bias: np.ndarray
    norm_weight: np.ndarray
    norm_bias: np.ndarray

    @property
    def width(self) -> int:
        """Embedding width of the decoder this projector was trained for."""
        return int(self.fc2_weight.shape[0])

    @classmethod
    def read(cls, checkpoint: Checkpoint, encoder_width: int) -> Projector:
        """Read the weights; raises `CheckpointError`, listing the keys found, where one is missing or does not fit."""
        keys = (*KEYS, *NORM_KEYS)
        missing = [key for key in keys if key not in checkpoint]
        if missing:
            found = ", ".join(sorted(checkpoint.names)[:12]) or "none"
            raise CheckpointError(f"{checkpoint.path}: projector lacks {', '.join(missing)}; keys found: {found}")
        hidden, width = checkpoint.shape("fc1.weight")[0], checkpoint.shape("fc2.weight")[0]
        shapes = ((hidden, encoder_width), (hidden,), (width, hidden), (width,), (width,), (width,))
        return cls(*(checkpoint.float32(key, shape) for key, shape in zip(keys, shapes, strict=True)))

    def append(self, graph: Graph, tokens: str) -> str:
        """Add the projector behind `tokens` (float32 [..., in]); returns float32 [..., out]."""
        with graph.scope("projector"):
            value = graph.cast(tokens, graph.matmul_dtype)
            value = graph.node("Relu", [graph.linear(value, self.fc1_weight, self.fc1_bias, "fc1")])
            value = graph.linear(value, self.fc2_weight, self.fc2_bias, "fc2")
            value = graph.cast(value, np.dtype(np.float32))
            return graph.layer_norm(value, self.norm_weight, self.norm_bias, NORM_EPSILON, "norm")
