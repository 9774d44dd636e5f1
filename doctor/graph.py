"""A tiny ONNX graph, written by hand: y = x W, so that a backend can be tried without the `onnx` package or a bundle.

Field numbers are those of `onnx.proto3`; W and x are float32, 4x4 and 1x4.
"""

from __future__ import annotations

import struct

SIDE = 4
INPUT, OUTPUT = "x", "y"
WEIGHTS = [float(row - 2 * column) for row in range(SIDE) for column in range(SIDE)]

_FLOAT = 1  # TensorProto.DataType.FLOAT
_IR_VERSION, _OPSET = 8, 17  # read by ONNX Runtime from 1.13 on and by TensorRT from 10 on


def graph_bytes() -> bytes:
    """The model, serialised."""
    node = _text(1, INPUT) + _text(1, "w") + _text(2, OUTPUT) + _text(4, "MatMul")
    sides = _number(1, SIDE) + _number(1, SIDE)
    weights = sides + _number(2, _FLOAT) + _text(8, "w") + _bytes(9, struct.pack(f"<{SIDE * SIDE}f", *WEIGHTS))
    graph = _bytes(1, node) + _text(2, "tiny") + _bytes(5, weights) + _bytes(11, _row(INPUT)) + _bytes(12, _row(OUTPUT))
    return _number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, _text(1, "") + _number(2, _OPSET))


def answer(x: list[float]) -> list[float]:
    """y of that x, in plain Python."""
    return [sum(x[row] * WEIGHTS[row * SIDE + column] for row in range(SIDE)) for column in range(SIDE)]


def _row(name: str) -> bytes:
    """ValueInfoProto of a float32 tensor [1, SIDE]."""
    shape = b"".join(_bytes(1, _number(1, side)) for side in (1, SIDE))
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, shape)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])
