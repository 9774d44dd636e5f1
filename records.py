"""Frozen dataclasses from decoded JSON or TOML, every key and type checked; and logs of them, a JSON line each."""

from __future__ import annotations

import fcntl
import io
import json
import os
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import OutputError, SvrtError

T = TypeVar("T")
Self = TypeVar("Self", bound="RecordLog[Any]")


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


class RecordLog(Generic[T]):
    """A file of dataclasses `kind`, a JSON object a line, held by one process. A line that a power cut tore off is
    dropped.

    `writer` is the program that writes it, for messages, `foreign` what is said of a line that it did not write. Raises
    `OutputError` where the folder cannot be written, another process writes there, or the file is not such a log.
    """

    def __init__(self, path: Path, kind: type[T], writer: str, foreign: str | None = None) -> None:
        self.path, self._kind, self._foreign = path, kind, foreign or f"is not of {writer}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as exc:
            raise self._unwritable(exc) from exc
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            reason = f"another {writer} writes there; wait for it, or give another --out"
            raise OutputError(f"{path.parent}: {reason}") from None

    def _unwritable(self, exc: OSError) -> OutputError:
        return OutputError(f"{self.path}: cannot write there: {exc.strerror}; give another --out")

    def read(self) -> list[T]:
        """Every whole line so far, in order."""
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        torn = lines.pop()
        found = [self._parse(number, line) for number, line in enumerate(lines, 1)]
        if torn:
            self._file.truncate(self._file.seek(0, io.SEEK_END) - len(torn))
        return found

    def _parse(self, number: int, line: bytes) -> T:
        try:
            return from_json(self._kind, json.loads(line), "")
        except (ValueError, RecursionError, SvrtError) as exc:
            raise OutputError(f"{self.path}: line {number} {self._foreign} ({exc}); give another --out") from exc

    def append(self, *records: T) -> None:
        """Add lines, and wait until they are on the disk."""
        lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in records]  # type: ignore[call-overload]
        try:
            self._file.write("".join(lines).encode("utf-8", "backslashreplace"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as exc:
            raise self._unwritable(exc) from exc

    def close(self) -> None:
        """Let other processes have the file: the lock goes with it."""
        self._file.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
