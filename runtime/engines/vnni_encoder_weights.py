"""A vision transformer's weights in int8, as `svrt.kernels.vnni.transformer` reads them.

Layer after layer, each the arrays of `LayerShape.layout`: rounding and arranging half a gigabyte takes seconds, mapping
it none, and the kernel may take its pages back at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...kernels.vnni import COLUMNS
from ...kernels.vnni.transformer import FOUR, GROUP, WIDEST_HEAD, Weights, packed
from . import EngineStore, UnsuitedError
from .vit import Layer, VisionTransformer
from .vnni_files import Layout, arranged, bytes_of, views

KIND = "int8 1"  # of the file: another number where its layout changes
PRODUCTS, NORMS = ("qkv", "proj", "fc1", "fc2"), ("norm1", "norm2")


@dataclass(frozen=True)
class LayerShape:
    """The sides of every layer: `inner` is the MLP's."""

    tokens: int
    hidden: int
    inner: int
    heads: int

    @classmethod
    def of(cls, path: Path, vit: VisionTransformer) -> LayerShape:
        """Raises `UnsuitedError` for sides that the kernels do not take, or that differ between layers."""
        try:
            shapes = {cls._of(vit, layer) for layer in vit.layers}
        except (KeyError, ValueError) as exc:
            raise UnsuitedError(f"{path}: a layer's constants are not of a vision transformer ({exc})") from exc
        if len(shapes) != 1:
            raise UnsuitedError(f"{path}: its layers differ in their shapes")
        return shapes.pop()

    @classmethod
    def _of(cls, vit: VisionTransformer, layer: Layer) -> LayerShape:
        (tokens, parts, dim), cos = vit.constant(layer, "heads_shape").tolist(), vit.constant(layer, "cos")
        hidden, inner = vit.constant(layer, "fc1_weight").shape
        shape = cls(tokens, hidden, inner, parts // 3)
        shapes = [vit.constant(layer, f"{name}_weight").shape for name in PRODUCTS]
        if shapes != [sides[::-1] for sides in shape._sides().values()] or cos.shape != (tokens, dim):
            raise ValueError(f"weights of {shapes}")
        if hidden % GROUP or inner % GROUP or tokens % COLUMNS or dim % FOUR or dim > WIDEST_HEAD:
            raise ValueError(f"{tokens} tokens of {hidden}, heads of {dim}")
        return shape

    def _sides(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of the products of weights."""
        hidden, inner = self.hidden, self.inner
        return {"qkv": (3 * hidden, hidden), "proj": (hidden, hidden), "fc1": (inner, hidden), "fc2": (hidden, inner)}

    def layout(self) -> Layout:
        """A layer's arrays. Each takes whole lines of 64 bytes."""
        found: Layout = {}
        for name, (outputs, inputs) in self._sides().items():
            found[f"{name}_values"] = np.uint8, (outputs // COLUMNS, inputs // FOUR, COLUMNS, FOUR)
            found[f"{name}_steps"] = found[f"{name}_bias"] = np.float32, (outputs,)
        for name in NORMS:
            found[f"{name}_weight"] = found[f"{name}_bias"] = np.float32, (self.hidden,)
        return found


@dataclass(frozen=True)
class LayerWeights:
    """A layer's arrays, as `LayerShape.layout` names them."""

    arrays: dict[str, np.ndarray]

    def product(self, name: str) -> Weights:
        return Weights(*(self.arrays[f"{name}_{part}"] for part in ("values", "steps", "bias")))

    def norm(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of a LayerNorm."""
        return self.arrays[f"{name}_weight"], self.arrays[f"{name}_bias"]


def layer_weights(
    path: Path, vit: VisionTransformer, shape: LayerShape, store: EngineStore | None
) -> list[LayerWeights]:
    """The weights of every layer of the graph at `path`, in a file of the store's cache."""
    layout = shape.layout()
    size = bytes_of(layout)
    data = arranged(path, KIND, len(vit.layers) * size, lambda: _parts(vit, layout), store)
    return [LayerWeights(views(data[at : at + size], layout)) for at in range(0, len(data), size)]


def _parts(vit: VisionTransformer, layout: Layout) -> Iterator[np.ndarray]:
    """All layers' arrays in their order."""
    for layer in vit.layers:
        for name, (dtype, shape) in layout.items():
            if name.endswith("_values"):
                weight = vit.constant(layer, name.replace("_values", "_weight"))
                values, steps = packed(np.ascontiguousarray(weight.T, np.float32))
                yield values
            elif name.endswith("_steps"):
                yield steps
            else:
                yield np.ascontiguousarray(vit.constant(layer, name), dtype).reshape(shape)
