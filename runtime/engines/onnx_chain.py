"""ONNX graphs whose nodes form a chain, such as VGG-16's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import EngineError
from . import onnx_graph

PASSED_OVER = ("Identity", "Cast")  # by who computes as it likes, whatever a graph rounds to between
END = ["GlobalAveragePool", "Flatten"]  # of a graph such as VGG-16's


class NotAChainError(EngineError):
    """The graph branches, or has more than one input or output."""


@dataclass(frozen=True)
class Node:
    """One operation: its type, the names of its constant inputs, its attributes: integers, none of what is not."""

    op: str
    constants: tuple[str, ...]
    attributes: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Chain:
    """A graph of one input and one output, each node of which reads the output of the one before.

    `shape` is the input's, None for a dimension left to the caller; `weights` are float32 or float16 arrays by
    name, mapped from their file where they lie beside the graph.
    """

    input: str
    output: str
    shape: tuple[int | None, ...]
    nodes: tuple[Node, ...]
    weights: dict[str, np.ndarray] = field(repr=False)

    @property
    def computing(self) -> list[Node]:
        """The nodes but for those that pass on what they are given."""
        return [node for node in self.nodes if node.op not in PASSED_OVER]


def read(path: Path) -> Chain:
    """Read the graph at `path`. Raises `NotAChainError`, or `EngineError` where the file is damaged."""
    return chain_of(path, onnx_graph.read(path))


def chain_of(path: Path, graph: onnx_graph.Graph) -> Chain:
    """The graph read from `path` as a chain. Raises `NotAChainError`."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise NotAChainError(f"{path}: has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs")
    for name, weight in graph.constants.items():
        if weight.dtype not in (np.float32, np.float16):
            raise NotAChainError(f"{path}: {name} is neither float32 nor float16")
    ((name, shape),) = graph.inputs.items()
    value, nodes = name, []
    for node in graph.nodes:
        rest = node.inputs[1:]
        if node.inputs[:1] != (value,) or len(node.outputs) != 1 or not graph.constants.keys() >= set(rest):
            raise NotAChainError(f"{path}: {node.op} does not follow the node before it alone")
        whole = {key: given if isinstance(given, tuple) else () for key, given in node.attributes.items()}
        nodes.append(Node(node.op, rest, whole))
        (value,) = node.outputs
    if (value,) != graph.outputs:
        raise NotAChainError(f"{path}: its output is not the last node's")
    return Chain(name, value, shape, tuple(nodes), graph.constants)
