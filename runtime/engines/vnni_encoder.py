"""A large vision transformer in int8, by svrt's own kernels.

OpenVINO computes the products of weights in int8 too (`dynamic_int8`), but attention in bfloat16. Here both are int8,
and what is between two products is written as the next one reads it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...kernels.vnni.transformer import Kernels, Rows
from . import LARGE, VNNI, EngineStore, UnsuitedError, check_inputs
from .vit import Layer, VisionTransformer
from .vnni_encoder_weights import LayerShape, LayerWeights, layer_weights
from .vnni_files import bytes_of, load_kernels


class _Room:
    """What a run works in. Nothing needs it between two, when other stages have their room."""

    def __init__(self, shape: LayerShape, kernels: Kernels) -> None:
        self.rows, self.inner = Rows(shape.tokens, shape.hidden), Rows(shape.tokens, shape.inner)
        self.qkv = np.empty((shape.tokens, 3 * shape.hidden), np.float32)
        self.mixed = np.empty((shape.tokens, shape.hidden), np.float32)
        self.scratch = kernels.scratch(shape.heads, shape.tokens, shape.hidden // shape.heads)


class VnniEncoder:
    """A vision transformer's graph; see `svrt.runtime.engines.Engine`.

    Raises `UnsuitedError` for one that is small or of other sides, `EngineError` where the kernels cannot be compiled.
    """

    name = VNNI
    device = "cpu"
    precision = "dynamic int8"

    def __init__(self, path: Path, vit: VisionTransformer, store: EngineStore | None) -> None:
        self.path, self._vit = path, vit
        self._shape = LayerShape.of(path, vit)
        if 2 * len(vit.layers) * bytes_of(self._shape.layout()) < LARGE:
            raise UnsuitedError(f"{path}: {VNNI} runs large graphs alone")
        self.inputs: dict[str, tuple[int | None, ...]] = {vit.input: vit.shape}
        self._kernels = load_kernels(Kernels, store)
        self._cos, self._sin = (
            np.ascontiguousarray(vit.constant(vit.layers[0], name), np.float32) for name in ("cos", "sin")
        )
        self._weights = layer_weights(path, vit, self._shape, store)

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once. Raises `EngineError` where an input does not fit."""
        check_inputs(self.path, self.inputs, inputs)
        x = self._vit.first(inputs[self._vit.input])
        room = _Room(self._shape, self._kernels)
        for layer, weights in zip(self._vit.layers, self._weights, strict=True):
            self._attend(x, layer, weights, room)
            self._kernels.norm(x, *weights.norm("norm2"), layer.epsilons[1], room.rows)
            self._kernels.gelu_product(room.rows, weights.product("fc1"), room.inner)
            self._kernels.add_product(room.inner, weights.product("fc2"), x)
        return {self._vit.output: self._vit.last(x)}

    def _attend(self, x: np.ndarray, layer: Layer, weights: LayerWeights, room: _Room) -> None:
        """The first half of a layer, added to `x`."""
        self._kernels.norm(x, *weights.norm("norm1"), layer.epsilons[0], room.rows)
        self._kernels.product(room.rows, weights.product("qkv"), room.qkv)
        self._kernels.attention(room.qkv, self._cos, self._sin, self._shape.heads, room.mixed, room.scratch)
        self._kernels.round(room.mixed, room.rows)
        self._kernels.add_product(room.rows, weights.product("proj"), x)
