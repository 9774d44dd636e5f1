"""The layers of a vision transformer in an ONNX graph, as `svrt export` writes V-JEPA 2's, and what is around them.

A layer is known by its operations and by what each reads, conversions between float16 and float32 aside. What is
before the first layer and behind the last, patches and the projector, is a hundredth of the arithmetic, and computed
with NumPy in float32 as it stands there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from . import UnsuitedError
from .onnx_graph import Graph, Node

LAYER = tuple(
    (op, reads.split(), gives.split())
    for op, reads, gives in (
        ("LayerNormalization", "x norm1_weight norm1_bias", "normed1"),
        ("MatMul", "normed1 qkv_weight", "qkv_product"),
        ("Add", "qkv_product qkv_bias", "qkv"),
        ("Reshape", "qkv heads_shape", "by_token"),
        ("Transpose", "by_token", "by_head"),
        ("Split", "by_head parts", "rotating values"),
        ("Split", "rotating", "first second"),
        ("Concat", "second first", "swapped"),
        ("Mul", "rotating cos", "straight"),
        ("Mul", "swapped sin", "crossed"),
        ("Add", "straight crossed", "rotated"),
        ("Split", "rotated", "queries keys"),
        ("Transpose", "keys", "key_columns"),
        ("MatMul", "queries key_columns", "scores"),
        ("Softmax", "scores", "weights"),
        ("MatMul", "weights values", "mixed"),
        ("Transpose", "mixed", "mixed_by_token"),
        ("Reshape", "mixed_by_token hidden_shape", "joined"),
        ("MatMul", "joined proj_weight", "proj_product"),
        ("Add", "proj_product proj_bias", "attended"),
        ("Add", "x attended", "y"),
        ("LayerNormalization", "y norm2_weight norm2_bias", "normed2"),
        ("MatMul", "normed2 fc1_weight", "fc1_product"),
        ("Add", "fc1_product fc1_bias", "inner"),
        ("Div", "inner root_of_2", "scaled"),
        ("Erf", "scaled", "erf"),
        ("Add", "erf one", "more"),
        ("Mul", "inner more", "twice"),
        ("Mul", "twice half", "activated"),
        ("MatMul", "activated fc2_weight", "fc2_product"),
        ("Add", "fc2_product fc2_bias", "outer"),
        ("Add", "y outer", "z"),
    )
)


@dataclass(frozen=True)
class Layer:
    """A layer: what its values are called in the graph, by their names in `LAYER`, and LayerNorm's epsilons."""

    names: dict[str, str]
    epsilons: tuple[float, ...]


@dataclass(frozen=True)
class VisionTransformer:
    """Layers one after another, and the nodes before and behind them. `names` of a layer are those of `constants`.

    The first layer reads `value`, float32 [tokens, hidden], the last gives `result`. `input` is float32 of that
    `shape`, `output` what the graph gives.
    """

    input: str
    shape: tuple[int, ...]
    before: tuple[Node, ...]
    value: str
    layers: tuple[Layer, ...]
    result: str
    after: tuple[Node, ...]
    output: str
    constants: dict[str, np.ndarray]

    @classmethod
    def of(cls, path: Path, graph: Graph) -> VisionTransformer:
        """The graph read from `path` as one. Raises `UnsuitedError` for others."""
        nodes = _without_casts(graph.nodes)
        found = [(at, layer) for at in range(len(nodes)) if (layer := _layer(nodes[at : at + len(LAYER)])) is not None]
        places, layers = [at for at, _ in found], tuple(layer for _, layer in found)
        inputs = list(graph.inputs.items())
        if (
            not layers
            or places != list(range(places[0], places[0] + len(LAYER) * len(layers), len(LAYER)))
            or any(one.names["z"] != other.names["x"] for one, other in pairwise(layers))
            or len(inputs) != 1
            or len(graph.outputs) != 1
            or None in inputs[0][1]
        ):
            raise UnsuitedError(f"{path}: holds no vision transformer as svrt exports it")
        before, after = tuple(nodes[: places[0]]), tuple(nodes[places[-1] + len(LAYER) :])
        if unknown := {node.op for node in before + after} - OPERATIONS.keys():
            raise UnsuitedError(f"{path}: {min(unknown)} is not computed around a vision transformer's layers")
        ((name, shape),), (output,) = inputs, graph.outputs
        sides = tuple(side for side in shape if side is not None)
        ends = layers[0].names["x"], layers[-1].names["z"]
        return cls(name, sides, before, ends[0], layers, ends[1], after, output, graph.constants)

    def constant(self, layer: Layer, name: str) -> np.ndarray:
        """A layer's constant by its name in `LAYER`, as the graph holds it. Raises `KeyError` where it is computed."""
        return self.constants[layer.names[name]]

    def first(self, pixels: np.ndarray) -> np.ndarray:
        """What the first layer reads, float32 [tokens, hidden], a copy of its own."""
        return np.array(evaluate(self.before, {self.input: pixels}, self.constants, self.value), np.float32, order="C")

    def last(self, result: np.ndarray) -> np.ndarray:
        """What the graph gives, of what the last layer gave."""
        return evaluate(self.after, {self.result: result}, self.constants, self.output)


def _without_casts(nodes: Iterable[Node]) -> list[Node]:
    """The other nodes, reading what was converted."""
    source: dict[str, str] = {}
    found = []
    for node in nodes:
        inputs = tuple(source.get(name, name) for name in node.inputs)
        if node.op == "Cast":
            source[node.outputs[0]] = inputs[0]
        else:
            found.append(Node(node.op, inputs, node.outputs, node.attributes))
    return found


def _layer(nodes: Sequence[Node]) -> Layer | None:
    """The layer that these nodes are; None of others."""
    names: dict[str, str] = {}
    epsilons = []
    if len(nodes) != len(LAYER):
        return None
    for node, (op, reads, gives) in zip(nodes, LAYER, strict=True):
        if node.op != op or len(node.inputs) != len(reads) or len(node.outputs) != len(gives):
            return None
        for known, name in zip([*reads, *gives], [*node.inputs, *node.outputs], strict=True):
            if names.setdefault(known, name) != name:
                return None
        if "epsilon" in node.attributes:
            epsilons.append(float(node.attributes["epsilon"]))  # type: ignore[arg-type]
    return Layer(names, tuple(epsilons))


def evaluate(
    nodes: Iterable[Node], values: dict[str, np.ndarray], constants: dict[str, np.ndarray], wanted: str
) -> np.ndarray:
    """The value of that name, by NumPy in float32."""

    def value(name: str) -> np.ndarray:
        array = values[name] if name in values else constants[name]
        return array.astype(np.float32) if array.dtype == np.float16 else array

    for node in nodes:
        values[node.outputs[0]] = OPERATIONS[node.op](node.attributes, *map(value, node.inputs))
    return values[wanted]


def _normed(given: dict[str, Any], x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    off = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((off * off).mean(axis=-1, keepdims=True) + np.float32(given["epsilon"]))
    return np.asarray(off / scale * weight + bias)


OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "Add": lambda _, a, b: a + b,
    "Identity": lambda _, x: x,
    "LayerNormalization": _normed,
    "MatMul": lambda _, a, b: a @ b,
    "ReduceMean": lambda given, x: x.mean(axis=given["axes"], keepdims=given["keepdims"] == (1,)),
    "Relu": lambda _, x: np.maximum(x, 0),
    "Reshape": lambda _, x, shape: x.reshape(shape),
    "Transpose": lambda given, x: x.transpose(given["perm"]),
}
