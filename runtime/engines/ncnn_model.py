"""A chain of convolutions in ncnn's own format: a text of layers, and the bytes of their weights one after another.

The format is ncnn's "param and model file structure" and "operation param weight table" (its wiki). What ncnn would not
compute as the ONNX graph says is refused: it knows other paddings, strides and kinds of pooling, which VGG-16 has not.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import UnsuitedError
from .onnx_chain import END, Chain, Node

MAGIC = 7767517  # first line of a text
AS_FLOAT32 = struct.pack("<I", 0)  # before the weights of a layer
FILTERS, KERNEL, PADDING, BIAS, SIZE, ACTIVATION = 0, 1, 4, 5, 6, 9  # of Convolution


@dataclass
class Layer:
    """A layer: its type, its parameters by their numbers, and the bytes of its weights."""

    kind: str
    parameters: dict[int, int]
    weights: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Model:
    """The text, the bytes of the weights in its order, and the name that the output has in it."""

    text: str
    weights: list[bytes]
    output: str


def converted(path: Path, chain: Chain) -> Model:
    """The model of a graph of images [batch, channels, height, width]. Raises `UnsuitedError` for other graphs."""
    if len(chain.shape) != 4 or None in chain.shape[1:]:
        raise UnsuitedError(f"{path}: ncnn runs graphs such as VGG-16's here, of images, not of {list(chain.shape)}")
    _, channels, height, width = chain.shape
    value = chain.input
    lines = [f"Input {value} 0 1 {value} 0={width} 1={height} 2={channels}"]
    layers = _layers(path, chain)
    for at, layer in enumerate(layers):
        parameters = " ".join(f"{number}={given}" for number, given in layer.parameters.items())
        lines.append(f"{layer.kind} layer{at} 1 1 {value} value{at} {parameters}")
        value = f"value{at}"
    text = "\n".join([str(MAGIC), f"{len(lines)} {len(lines)}", *lines, ""])
    return Model(text, [part for layer in layers for part in layer.weights], value)


def _layers(path: Path, chain: Chain) -> list[Layer]:
    layers: list[Layer] = []
    nodes = chain.computing
    if [node.op for node in nodes[-2:]] != END:
        raise UnsuitedError(f"{path}: ncnn runs graphs such as VGG-16's here, which end with {' and '.join(END)}")
    for node in nodes[:-2]:
        if node.op == "Relu" and layers and layers[-1].kind == "Convolution":
            layers[-1].parameters[ACTIVATION] = 1  # one pass over the map less
        else:
            layers.append(_layer(path, chain, node))
    return [*layers, Layer("Pooling", {0: 1, 4: 1})]  # both of END: what is pooled over the whole map is flat here


def _layer(path: Path, chain: Chain, node: Node) -> Layer:
    given, constants = dict(node.attributes), [chain.weights[name] for name in node.constants]
    if node.op == "MaxPool" and given == {"kernel_shape": (2, 2), "strides": (2, 2)}:
        return Layer("Pooling", {0: 0, 1: 2, 2: 2, 5: 1})  # 5: a row or column left over is dropped
    if node.op == "Conv" and len(constants) == 2 and constants[0].ndim == 4:
        weight, bias = constants
        filters, _, *kernel = weight.shape
        pads = given.pop("pads", (0, 0, 0, 0))
        if kernel[0] == kernel[1] and len(set(pads)) == 1 and given in ({}, {"kernel_shape": tuple(kernel)}):
            parameters = {FILTERS: filters, KERNEL: kernel[0], PADDING: pads[0], BIAS: 1, SIZE: weight.size}
            return Layer("Convolution", parameters, (AS_FLOAT32, _float32(weight), _float32(bias)))
    raise UnsuitedError(f"{path}: ncnn runs graphs such as VGG-16's here, and not {node.op} as it stands in this one")


def _float32(array: np.ndarray) -> bytes:
    return array.astype("<f4").tobytes()
