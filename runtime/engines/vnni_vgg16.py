"""VGG-16 by svrt's own kernels: a quarter of the products, in 16 bits (`svrt.kernels.vnni.convolution`).

The first convolution, three channels deep, is float32, as is every sum; what lies between two is float16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...kernels.vnni import COLUMNS
from ...kernels.vnni.convolution import PAIR, TILE, Filters, Kernels, Map, packed
from . import VNNI, EngineStore, UnsuitedError, check_inputs
from .onnx_chain import END, Chain, Node
from .vnni_files import Layout, arranged, bytes_of, load_kernels, views

KIND = "int16 1"  # of the file of weights: another number where its layout changes
HALVED = {"kernel_shape": (2, 2), "strides": (2, 2)}
MOST_CHANNELS = 1024  # what a strip of tiles needs lies on a thread's stack


@dataclass(frozen=True)
class _Block:
    """A convolution and its ReLU: weight [filters, channels, 3, 3], bias [filters], as the graph holds them; `pooled`:
    the largest of every 2 x 2 follows."""

    weight: np.ndarray
    bias: np.ndarray
    pooled: bool

    def layout(self, *, first: bool) -> Layout:
        filters, channels = self.weight.shape[:2]
        if first:
            return {"weight": (np.float32, (channels, 3, 3, filters)), "bias": (np.float32, (filters,))}
        return {
            "values": (np.int16, (filters // COLUMNS, TILE, channels // PAIR, COLUMNS, PAIR)),
            "steps": (np.float32, (filters // COLUMNS, TILE, COLUMNS)),
            "bias": (np.float32, (filters,)),
        }


class VnniVgg16:
    """VGG-16's graph; see `svrt.runtime.engines.Engine`. An image's features do not depend on those beside it.

    Raises `UnsuitedError` for other chains, `EngineError` where the kernels cannot be compiled.
    """

    name = VNNI
    device = "cpu"
    precision = "int16"

    def __init__(self, path: Path, chain: Chain, store: EngineStore | None) -> None:
        self.path, self._output = path, chain.output
        self.inputs = {chain.input: chain.shape}
        self._blocks = _blocks(path, chain)
        self._sides = tuple(side for side in chain.shape[2:] if side is not None)
        self._kernels = load_kernels(Kernels, store)
        layouts = [block.layout(first=at == 0) for at, block in enumerate(self._blocks)]
        sizes = [bytes_of(layout) for layout in layouts]
        data = arranged(path, KIND, sum(sizes), lambda: _parts(self._blocks), store)
        ends = np.cumsum(sizes)
        found = [views(data[end - size : end], layout) for end, size, layout in zip(ends, sizes, layouts, strict=True)]
        self._first, self._filters = found[0], [Filters(**arrays) for arrays in found[1:]]
        self._maps: list[Map] = []

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph on each image. Raises `EngineError` where an input does not fit."""
        check_inputs(self.path, self.inputs, inputs)
        (images,) = map(np.ascontiguousarray, inputs.values())
        count = len(images)
        if not self._maps or self._maps[0].images < count:
            self._maps = self._room(count)
        maps = self._maps[0]
        self._kernels.first(images, self._first["weight"], self._first["bias"], maps)
        for block, filters, to in zip(self._blocks[1:], self._filters, self._maps[1:], strict=True):
            self._kernels.convolve(maps, filters, to, count, pooled=block.pooled)
            maps = to
        return {self._output: maps.values[:count].astype(np.float32).mean(axis=(1, 2))}

    def _room(self, images: int) -> list[Map]:
        """Maps of every block, kept from one run to the next: zeros around them are written once."""
        height, width = self._sides
        made = []
        for block in self._blocks:
            if block.pooled:
                height, width = height // 2, width // 2
            made.append(Map(images, height, width, len(block.weight)))
        return made


def _blocks(path: Path, chain: Chain) -> list[_Block]:
    """The convolutions of a graph of images. Raises `UnsuitedError` for other graphs."""
    nodes = chain.computing
    blocks: list[_Block] = []
    if [node.op for node in nodes[-2:]] == END and len(chain.shape) == 4 and None not in chain.shape[1:]:
        for node, after, beyond in zip(nodes, nodes[1:], nodes[2:], strict=False):
            if node.op == "Conv" and after.op == "Relu" and _suits(chain, node, first=not blocks):
                pooled = beyond.op == "MaxPool" and beyond.attributes == HALVED
                weight, bias = (chain.weights[name] for name in node.constants)
                blocks.append(_Block(weight, bias, pooled))
    pools = sum(block.pooled for block in blocks)
    if len(blocks) < 2 or blocks[0].pooled or 2 * len(blocks) + pools + len(END) != len(nodes):
        raise UnsuitedError(f"{path}: {VNNI} runs graphs such as VGG-16's here, and not this one")
    return blocks


def _suits(chain: Chain, node: Node, *, first: bool) -> bool:
    """Whether a convolution is one of 3 x 3 with a margin of one, and a bias, of sides that the kernels take."""
    weights = [chain.weights[name] for name in node.constants]
    attributes = {"kernel_shape": (3, 3), **node.attributes}
    if len(weights) != 2 or weights[0].shape[2:] != (3, 3) or attributes.pop("pads", None) != (1, 1, 1, 1):
        return False
    filters, channels = weights[0].shape[:2]
    fits = channels <= 4 if first else channels % COLUMNS == 0 and channels <= MOST_CHANNELS
    return attributes == {"kernel_shape": (3, 3)} and filters % COLUMNS == 0 and weights[1].shape == (filters,) and fits


def _parts(blocks: list[_Block]) -> Iterator[np.ndarray]:
    """All blocks' arrays, in the order of their layouts."""
    for at, block in enumerate(blocks):
        if at == 0:
            yield np.ascontiguousarray(block.weight.transpose(1, 2, 3, 0), np.float32)
        else:
            yield from packed(block.weight)
        yield np.ascontiguousarray(block.bias, np.float32)
