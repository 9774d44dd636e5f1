"""Frozen dataclasses from decoded JSON or TOML, every key and type checked."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import SvrtError

T = TypeVar("T")


def from_json(kind: type[T], values: Any, where: str) -> T:
    """Build the dataclass `kind` from decoded JSON or TOML, refusing unknown or missing keys and wrong types.

    `where` is the dotted key of `values` ("" at the top), for the message. A field with metadata `{"key": False}` is
    not read from the document. Raises `SvrtError`.
    """
    if not isinstance(values, dict):
        raise SvrtError(f"{where or 'the document'} must be a table")
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if f.metadata.get("key", True)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise SvrtError(f"unknown key {_dotted(where, key)!r}; known here: {', '.join(known)}")
    arguments = {name: _convert(hints[name], value, _dotted(where, name)) for name, value in values.items()}
    for name, spec in known.items():  # after the values: a misspelt key explains a missing one
        if name not in values and spec.default is MISSING and spec.default_factory is MISSING:
            raise SvrtError(f"key {_dotted(where, name)!r} is missing")
    return kind(**arguments)


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`: dataclasses, str, int, float, bool, Any, Literal, list, dict, unions of those."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    if origin is Literal:
        if value in arguments:
            return value
        raise SvrtError(f"{where} = {value!r}; one of {', '.join(map(str, arguments))}")
    if origin in (Union, UnionType):
        plain = tuple(a for a in arguments if isinstance(a, type))
        if isinstance(value, plain) and not isinstance(value, bool):
            return value
        if value is None and NoneType in arguments:
            return None
        raise SvrtError(f"{where} = {value!r} has the wrong type")
    if origin is list and isinstance(value, list):
        return [_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, _dotted(where, key)) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else origin.__name__
    raise SvrtError(f"{where} = {value!r} must be of type {name}")
