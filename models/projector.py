"""The projector of SV3.3B (arXiv 2507.17844): a two-layer MLP from encoder tokens to the decoder's embedding width.

Linear, ReLU, dropout (absent at inference), Linear, LayerNorm. The paper names these parts; that LayerNorm comes last,
where it sets the scale the decoder reads, is our choice, and a checkpoint may do without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .graph import Graph

NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's default
# Modules as checkpoints name them: first and second linear, and what a LayerNorm behind them may be called. Numbers
# are those of torch.nn.Sequential(Linear, ReLU, Linear, LayerNorm), without and with Dropout.
LAYOUTS = (
    ("fc1", "fc2", ("norm", "layer_norm", "ln")),
    ("linear_1", "linear_2", ("norm", "layer_norm", "ln")),
    ("0", "2", ("3", "norm", "layer_norm", "ln")),
    ("0", "3", ("4", "norm", "layer_norm", "ln")),
)


@dataclass(frozen=True)
class Names:
    """What one checkpoint calls the projector's modules, prefix included; `norm` is None where it has no LayerNorm."""

    first: str
    second: str
    norm: str | None

    @classmethod
    def find(cls, checkpoint: Checkpoint) -> Names:
        """Raises `CheckpointError`, listing the keys found, for names that are of no known layout or of too many."""
        names = set(checkpoint.names)
        for name in sorted(names):
            for first, second, norms in LAYOUTS:
                if name != f"{first}.weight" and not name.endswith(f".{first}.weight"):
                    continue
                prefix = name.removesuffix(f"{first}.weight")
                norm = next((prefix + n for n in norms if f"{prefix}{n}.weight" in names), None)
                found = cls(prefix + first, prefix + second, norm)
                if found.keys() == names:
                    return found
        layouts = ", ".join(f"{first}/{second}" for first, second, _ in LAYOUTS)
        listed = ", ".join(sorted(names)[:12]) + (" ..." if len(names) > 12 else "")
        raise CheckpointError(
            f"{checkpoint.path}: not a two-layer projector; expected weights and biases named {layouts}, with or "
            f"without a LayerNorm, and nothing else; keys found: {listed or 'none'}"
        )

    def keys(self) -> set[str]:
        """Every tensor of the projector."""
        modules = [self.first, self.second, *([] if self.norm is None else [self.norm])]
        return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


@dataclass(frozen=True)
class Projector:
    """Weights of the projector, float32: `fc1` [hidden, in], `fc2` [out, hidden], biases, and LayerNorm over out.

    `norm_weight` and `norm_bias` are None where the checkpoint has no LayerNorm.
    """

    fc1_weight: np.ndarray
    fc1_bias: np.ndarray
    fc2_weight: np.ndarray
    fc2_bias: np.ndarray
    norm_weight: np.ndarray | None
    norm_bias: np.ndarray | None

    @property
    def width(self) -> int:
        """Embedding width of the decoder this projector was trained for."""
        return int(self.fc2_weight.shape[0])

    @classmethod
    def read(cls, checkpoint: Checkpoint, encoder_width: int) -> Projector:
        """Read the weights; raises `CheckpointError`, listing the keys found, where they are others or do not fit."""
        names = Names.find(checkpoint)
        hidden, width = (checkpoint.shape(f"{module}.weight")[0] for module in (names.first, names.second))

        def pair(module: str, *shape: int) -> tuple[np.ndarray, np.ndarray]:
            return checkpoint.float32(f"{module}.weight", shape), checkpoint.float32(f"{module}.bias", shape[:1])

        norm = (None, None) if names.norm is None else pair(names.norm, width)
        return cls(*pair(names.first, hidden, encoder_width), *pair(names.second, width, hidden), *norm)

    def append(self, graph: Graph, tokens: str) -> str:
        """Add the projector behind `tokens` (float32 [..., in]); returns float32 [..., out]."""
        with graph.scope("projector"):
            value = graph.cast(tokens, graph.matmul_dtype)
            value = graph.node("Relu", [graph.linear(value, self.fc1_weight, self.fc1_bias, "fc1")])
            value = graph.linear(value, self.fc2_weight, self.fc2_bias, "fc2")
            value = graph.cast(value, np.dtype(np.float32))
            if self.norm_weight is None or self.norm_bias is None:
                return value
            return graph.layer_norm(value, self.norm_weight, self.norm_bias, NORM_EPSILON, "norm")
