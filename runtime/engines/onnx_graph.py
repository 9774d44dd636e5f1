"""Reading ONNX files for what does not, without the `onnx` package: that is for who exports, not for a small board.

Only the wire format of the messages and the fields that svrt's graphs have are read
(https://protobuf.dev/programming-guides/encoding and `onnx/onnx.proto`, opset 17).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import EngineError

TYPES: dict[int, np.dtype] = {  # of TensorProto.DataType
    1: np.dtype(np.float32),
    3: np.dtype(np.int8),
    7: np.dtype(np.int64),
    10: np.dtype(np.float16),
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types

_Value = int | memoryview


@dataclass(frozen=True)
class Node:
    """One operation: its type, the names of its inputs and outputs, its attributes that are numbers."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, tuple[int, ...] | float]


@dataclass(frozen=True)
class Graph:
    """A graph: the shapes of its inputs by name, None for a dimension left to the caller, the names of its outputs, its
    nodes in the order in which they can be computed, and its constants by name, mapped from their file where they lie
    beside the graph."""

    inputs: dict[str, tuple[int | None, ...]]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: dict[str, np.ndarray] = field(repr=False)


def read(path: Path) -> Graph:
    """Read the graph at `path`. Raises `EngineError` where the file is damaged or holds what svrt's graphs do not."""
    try:
        return _graph(path, _fields(_one(_fields(memoryview(path.read_bytes())), 7)))
    except OSError as exc:
        raise EngineError(f"{exc.filename or path}: cannot be read: {exc.strerror}") from exc
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as exc:
        raise EngineError(f"{path}: is not a whole ONNX graph ({exc})") from exc


def _graph(path: Path, graph: dict[int, list[_Value]]) -> Graph:
    constants = dict(_constant(path, _fields(tensor)) for tensor in graph.get(5, []))
    inputs = [_fields(value) for value in graph.get(11, [])]
    return Graph(
        {_text(value, 1): _shape(value) for value in inputs if _text(value, 1) not in constants},
        tuple(_text(_fields(value), 1) for value in graph.get(12, [])),
        tuple(_node(_fields(node)) for node in graph.get(1, [])),
        constants,
    )


def _node(node: dict[int, list[_Value]]) -> Node:
    inputs, outputs = (tuple(bytes(_bytes(name)).decode() for name in node.get(number, [])) for number in (1, 2))
    return Node(_text(node, 4), inputs, outputs, dict(_attribute(_fields(each)) for each in node.get(5, [])))


def _attribute(attribute: dict[int, list[_Value]]) -> tuple[str, tuple[int, ...] | float]:
    """The name and the numbers of an attribute: a float (`f`), an integer (`i`) or a list of them (`ints`)."""
    name = _text(attribute, 1)
    if 2 in attribute:
        return name, float(np.frombuffer(_one(attribute, 2), "<f4")[0])
    return name, tuple(_integers(attribute, 3) + _integers(attribute, 8))


def _shape(value: dict[int, list[_Value]]) -> tuple[int | None, ...]:
    """The sides of a ValueInfoProto: type, tensor_type, shape, dim, dim_value."""
    shape = _fields(_one(_fields(_one(_fields(_one(value, 2)), 1)), 2))
    return tuple(next(iter(_integers(_fields(dim), 1)), None) for dim in shape.get(1, []))


def _constant(path: Path, tensor: dict[int, list[_Value]]) -> tuple[str, np.ndarray]:
    """A TensorProto's name and values."""
    name, (kind,) = _text(tensor, 8), _integers(tensor, 2)
    if kind not in TYPES:
        raise ValueError(f"{name} is of type {kind}")
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
    return _bytes(message[number][0])


def _bytes(value: _Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes should be")
    return value


def _text(message: dict[int, list[_Value]], number: int) -> str:
    return bytes(_one(message, number)).decode() if number in message else ""
