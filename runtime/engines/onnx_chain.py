"""Reading ONNX files whose nodes form a chain, such as VGG-16's, for a library that does not read ONNX.

Only the wire format of the messages and the fields that such a graph has are read (https://protobuf.dev/programming-guides/encoding
and `onnx/onnx.proto`, opset 17), as the `onnx` package is for who exports and not for a small board.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import EngineError

TYPES: dict[int, np.dtype[np.floating]] = {
    1: np.dtype(np.float32),
    10: np.dtype(np.float16),
}  # of TensorProto.DataType: what weights are
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types

_Value = int | memoryview


class NotAChainError(EngineError):
    """The graph branches, or has more than one input or output."""


@dataclass(frozen=True)
class Node:
    """One operation: its type, the names of its constant inputs, its attributes that are integers."""

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


def read(path: Path) -> Chain:
    """Read the graph at `path`. Raises `NotAChainError`, or `EngineError` where the file is damaged."""
    try:
        graph = _one(_fields(memoryview(path.read_bytes())), 7)
        return _chain(path, _fields(graph))
    except OSError as exc:
        raise EngineError(f"{exc.filename or path}: cannot be read: {exc.strerror}") from exc
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as exc:
        raise EngineError(f"{path}: is not a whole ONNX graph ({exc})") from exc


def _chain(path: Path, graph: dict[int, list[_Value]]) -> Chain:
    weights = dict(_weight(path, _fields(tensor)) for tensor in graph.get(5, []))
    inputs = [_fields(value) for value in graph.get(11, []) if _text(_fields(value), 1) not in weights]
    outputs = [_text(_fields(value), 1) for value in graph.get(12, [])]
    if len(inputs) != 1 or len(outputs) != 1:
        raise NotAChainError(f"{path}: has {len(inputs)} inputs and {len(outputs)} outputs")
    name = value = _text(inputs[0], 1)
    nodes = []
    for node in map(_fields, graph.get(1, [])):
        operands = [bytes(operand).decode() for operand in node.get(1, [])]
        op = _text(node, 4)
        if not operands or operands[0] != value or len(node.get(2, [])) != 1 or not weights.keys() >= set(operands[1:]):
            raise NotAChainError(f"{path}: {op} does not follow the node before it alone")
        nodes.append(Node(op, tuple(operands[1:]), dict(_attribute(_fields(a)) for a in node.get(5, []))))
        value = _text(node, 2)
    if value != outputs[0]:
        raise NotAChainError(f"{path}: its output is not the last node's")
    return Chain(name, value, _shape(inputs[0]), tuple(nodes), weights)


def _attribute(attribute: dict[int, list[_Value]]) -> tuple[str, tuple[int, ...]]:
    """The name and the integers of an attribute: one (`i`) or a list (`ints`)."""
    return _text(attribute, 1), tuple(_integers(attribute, 3) + _integers(attribute, 8))


def _shape(value: dict[int, list[_Value]]) -> tuple[int | None, ...]:
    """The sides of a ValueInfoProto: type, tensor_type, shape, dim, dim_value."""
    shape = _fields(_one(_fields(_one(_fields(_one(value, 2)), 1)), 2))
    return tuple(next(iter(_integers(_fields(dim), 1)), None) for dim in shape.get(1, []))


def _weight(path: Path, tensor: dict[int, list[_Value]]) -> tuple[str, np.ndarray]:
    """A TensorProto's name and values. Raises `NotAChainError` for values that are no such floats."""
    name, (kind,) = _text(tensor, 8), _integers(tensor, 2)
    if kind not in TYPES:
        raise NotAChainError(f"{path}: {name} is neither float32 nor float16")
    dtype, dims = TYPES[kind], _integers(tensor, 1)
    if 9 in tensor:
        return name, np.frombuffer(_one(tensor, 9), dtype).reshape(dims)
    entries = {_text(_fields(entry), 1): _text(_fields(entry), 2) for entry in tensor[13]}
    file = path.with_name(Path(entries["location"]).name)
    return name, np.memmap(file, dtype, "r", int(entries.get("offset", 0)), (math.prod(dims),)).reshape(dims)


def _fields(message: _Value) -> dict[int, list[_Value]]:
    """The values of a message by field number, in the order of the file. Raises `ValueError`, `IndexError`."""
    found: dict[int, list[_Value]] = {}
    if isinstance(message, int):
        raise ValueError("a number where a message should be")
    for number, value in _values(message):
        found.setdefault(number, []).append(value)
    return found


def _values(message: memoryview) -> Iterator[tuple[int, _Value]]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(message):
            raise ValueError("it ends early")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """An unsigned number of up to 64 bits, and where it ends."""
    number = shift = 0
    while shift < 70:
        byte = message[at]
        number, at, shift = number | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise ValueError("a number of more than 64 bits")


def _integers(message: dict[int, list[_Value]], number: int) -> list[int]:
    """The numbers of a field, which are packed or not."""
    found: list[int] = []
    for value in message.get(number, []):
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value):
            one, at = _varint(value, at)
            found.append(one)
    return found


def _one(message: dict[int, list[_Value]], number: int) -> memoryview:
    value = message[number][0]
    if isinstance(value, int):
        raise ValueError(f"field {number} is a number")
    return value


def _text(message: dict[int, list[_Value]], number: int) -> str:
    return bytes(_one(message, number)).decode() if number in message else ""
