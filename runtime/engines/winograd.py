"""3 x 3 convolutions of 16 products for 36: Winograd's F(2 x 2, 3 x 3) (Lavin and Gray, arXiv 1509.09308, section 4).

A map is cut into tiles of 4 x 4 pixels, two apart, each of which gives 2 x 2 outputs. OpenVINO has no such convolution,
but all that it is made of: 16 sums of a tile's pixels are convolutions of each channel by itself, their products with
weights are 1 x 1 convolutions, and the rest is addition. In bfloat16 what is between is rounded as well as the ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from .openvino_nodes import constant, only_reader

CHANNELS = 128  # that a convolution reads, at least: with fewer the sums take as long as the products that are saved

# What of a side of a tile is added up (transposed B there), and what it is multiplied with (G). The last row of G has
# the other sign, so that of what is done with the products (transposed A) one subtraction is left.
PIXELS = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
WEIGHTS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, -1]], np.float32)
TILE = range(4)


@dataclass(frozen=True)
class _Block:
    """A convolution with its bias and its ReLU: its constants, and the last of the nodes whose place is taken."""

    convolution: ov.Node
    weights: np.ndarray
    bias: np.ndarray
    last: ov.Node
    pooled: bool

    @property
    def source(self) -> Any:
        """What it reads: another node's output once the block before was replaced."""
        return self.convolution.input_value(0)

    @property
    def sides(self) -> list[int]:
        return [side.get_length() for side in list(self.source.get_partial_shape())[2:]]


def use_winograd(graph: ov.Model) -> bool:
    """Compute those convolutions of a float32 graph so that read channels enough and maps of even sides.

    Those of the smallest maps stay as they were: they are few products, and a mean over few pixels averages little of
    what they round. False where there are no others; the graph is then as it was.
    """
    found = [block for node in graph.get_ordered_ops() if (block := _block(node)) is not None]
    smallest = min((block.sides for block in found), default=[])
    suited = [block for block in found if block.sides > smallest and _suits(block)]
    for block in suited:
        readers = block.last.output(0).get_target_inputs()
        made = _pooled(block) if block.pooled else _joined(block)
        for reader in readers:
            reader.replace_source_output(made.output(0))
    graph.validate_nodes_and_infer_types()
    return bool(suited)


def _suits(block: _Block) -> bool:
    return block.weights.shape[1] >= CHANNELS and all(side % 2 == 0 for side in block.sides)


def _block(node: ov.Node) -> _Block | None:
    """The block that begins with a convolution of 3 x 3 pixels with a margin of one; None of other nodes."""
    if node.get_type_name() != "Convolution":
        return None
    how, weights = node.get_attributes(), constant(node.input_value(1))
    once = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1]}
    if weights is None or weights.shape[2:] != (3, 3) or any(list(how[name]) != value for name, value in once.items()):
        return None
    if any(side.is_dynamic for side in list(node.get_input_partial_shape(0))[2:]):
        return None
    added = _reader_of_kind(node, "Add")
    bias = None if added is None else constant(added.input_value(1))
    last = None if added is None else _reader_of_kind(added, "Relu")
    if bias is None or last is None or bias.shape != (1, len(weights), 1, 1):
        return None
    pool = _reader_of_kind(last, "MaxPool")
    pooled = pool is not None and _halves(pool.get_attributes())
    return _Block(node, weights, bias, pool if pool is not None and pooled else last, pooled)


def _halves(how: dict[str, Any]) -> bool:
    """Whether a pooling takes the largest of every 2 x 2."""
    wanted = {"kernel": [2, 2], "strides": [2, 2], "dilations": [1, 1], "pads_begin": [0, 0], "pads_end": [0, 0]}
    return all(list(how[name]) == value for name, value in wanted.items())


def _reader_of_kind(node: ov.Node, kind: str) -> Any:
    """The node that alone reads what `node` gives, if it is of that kind; else None."""
    reader = only_reader(node.output(0))
    return reader if reader is not None and reader.get_type_name() == kind else None


def _joined(block: _Block) -> ov.Node:
    """A block's output [N, F, H, W], of four quarters, every second row and column each."""
    quarters = [opset.relu(quarter) for quarter in _quarters(block)]
    return opset.depth_to_space(opset.concat(quarters, 1), "blocks_first", 2)


def _pooled(block: _Block) -> ov.Node:
    """The output [N, F, H / 2, W / 2] of a block that ends with the largest of every 2 x 2."""
    first, second, third, fourth = _quarters(block)
    return opset.relu(opset.maximum(opset.maximum(first, second), opset.maximum(third, fourth)))


def _quarters(block: _Block) -> list[ov.Node]:
    """Upper left, upper right, lower left and lower right of each 2 x 2 outputs, before ReLU."""
    filters, channels = block.weights.shape[:2]
    weights = np.kron(WEIGHTS, WEIGHTS) @ block.weights.reshape(filters * channels, 9).T
    weights = weights.reshape(4, 4, filters, channels, 1, 1)
    columns = [_sums([_products(block, weights, row, column) for row in TILE]) for column in TILE]
    return [quarter for half in (0, 1) for quarter in _sums([column[half] for column in columns])]


def _sums(products: list[ov.Node]) -> tuple[ov.Node, ov.Node]:
    """What four products along one side of a tile add up to: the first output and the second."""
    first, second, third, fourth = products
    less = opset.multiply(third, np.float32(-1))
    return opset.add(opset.add(first, second), third), opset.add(opset.add(second, fourth), less)


def _products(block: _Block, weights: np.ndarray, row: int, column: int) -> ov.Node:
    """Of every tile one of 16 sums, times its weights of [4, 4, F, C, 1, 1]: [N, C, H, W] to [N, F, H / 2, W / 2]."""
    top, bottom = _span(row)
    left, right = _span(column)
    signs = np.outer(PIXELS[row, top:bottom], PIXELS[column, left:right])
    channels = block.weights.shape[1]
    # Constants by name: given arrays, OpenVINO's functions go through lists of numbers, a hundred times as slow.
    each = opset.constant(np.ascontiguousarray(np.broadcast_to(signs, (channels, 1, 1, *signs.shape))))
    # A tile begins a pixel above and left of its outputs, and ends one below and right of them.
    sums = opset.group_convolution(block.source, each, [2, 2], [1 - top, 1 - left], [bottom - 3, right - 3], [1, 1])
    products = opset.convolution(sums, opset.constant(weights[row, column]), [1, 1], [0, 0], [0, 0], [1, 1])
    # This one is part of all four outputs, and added to each.
    return opset.add(products, block.bias) if row == column == 1 else products


def _span(row: int) -> tuple[int, int]:
    """The pixels of a tile's side that a sum is of: the first, and the one after the last."""
    used = np.flatnonzero(PIXELS[row])
    return int(used[0]), int(used[-1]) + 1
