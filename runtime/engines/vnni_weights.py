"""A vision transformer's weights in int8, arranged for `svrt.kernels.vnni`, in a file of the engine cache that is mapped.

Layer after layer, each the arrays of `LayerShape.arrays` without anything between them: rounding and arranging half a
gigabyte takes seconds, mapping it none, and the kernel may take its pages back at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels.vnni import COLUMNS, FOUR, GROUP, WIDEST_HEAD, Weights, packed
from . import EngineStore, UnsuitedError
from .files import digest_of, locked, write_whole
from .vit import Layer, VisionTransformer

LAYOUT = 1  # of the file: raised when it changes
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

    def arrays(self) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """Types and shapes of a layer's arrays, in the order of the file. Each takes whole lines of 64 bytes."""
        found: dict[str, tuple[Any, tuple[int, ...]]] = {}
        for name, (outputs, inputs) in self._sides().items():
            found[f"{name}_values"] = np.uint8, (outputs // COLUMNS, inputs // FOUR, COLUMNS, FOUR)
            found[f"{name}_steps"] = found[f"{name}_bias"] = np.float32, (outputs,)
        for name in NORMS:
            found[f"{name}_weight"] = found[f"{name}_bias"] = np.float32, (self.hidden,)
        return found

    @property
    def layer_bytes(self) -> int:
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in self.arrays().values())


@dataclass(frozen=True)
class LayerWeights:
    """A layer's arrays, as `LayerShape.arrays` names them."""

    arrays: dict[str, np.ndarray]

    def product(self, name: str) -> Weights:
        return Weights(*(self.arrays[f"{name}_{part}"] for part in ("values", "steps", "bias")))

    def norm(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of a LayerNorm."""
        return self.arrays[f"{name}_weight"], self.arrays[f"{name}_bias"]


def layer_weights(
    path: Path, vit: VisionTransformer, shape: LayerShape, store: EngineStore | None
) -> list[LayerWeights]:
    """The weights of every layer of the graph at `path`, in a mapped file of the store's cache.

    Where that cannot be written, which `store.say` is told, or without a store, they lie in memory.
    """
    data = None if store is None else _mapped(path, vit, shape, store)
    if data is None:
        data = np.concatenate([part.reshape(-1).view(np.uint8) for part in _rounded(vit, shape)])
    return [_layer(data[at : at + shape.layer_bytes], shape) for at in range(0, len(data), shape.layer_bytes)]


def _mapped(path: Path, vit: VisionTransformer, shape: LayerShape, store: EngineStore) -> np.ndarray | None:
    key = hashlib.sha256(f"{digest_of(path, store.digests)} {LAYOUT}".encode()).hexdigest()
    file = store.cache / f"{path.stem}-{key[:12]}.int8"
    try:
        with locked(store, "rounds weights", "weights.lock"):
            if not file.is_file() or file.stat().st_size != len(vit.layers) * shape.layer_bytes:
                store.say(f"rounding the weights of {path.name} to int8 (once)")
                write_whole(file, (memoryview(part.reshape(-1)).cast("B") for part in _rounded(vit, shape)))
        return np.memmap(file, np.uint8, "r")
    except OSError as exc:
        store.say(f"{file}: cannot be kept ({exc.strerror}); weights are rounded each time")
        return None


def _rounded(vit: VisionTransformer, shape: LayerShape) -> Iterator[np.ndarray]:
    """All arrays in the order of the file."""
    for layer in vit.layers:
        for name, (dtype, sides) in shape.arrays().items():
            if name.endswith("_values"):
                weight = vit.constant(layer, name.replace("_values", "_weight"))
                values, steps = packed(np.ascontiguousarray(weight.T, np.float32))
                yield values
            elif name.endswith("_steps"):
                yield steps
            else:
                yield np.ascontiguousarray(vit.constant(layer, name), dtype).reshape(sides)


def _layer(data: np.ndarray, shape: LayerShape) -> LayerWeights:
    """Views of a layer's bytes."""
    arrays, at = {}, 0
    for name, (dtype, sides) in shape.arrays().items():
        size = int(np.prod(sides)) * np.dtype(dtype).itemsize
        arrays[name] = data[at : at + size].view(dtype).reshape(sides)
        at += size
    return LayerWeights(arrays)
