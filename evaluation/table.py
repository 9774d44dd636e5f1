"""The table of an evaluation: which clips, and what is true of each."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SvrtError
from ..models.pocket.shot import CONTACTS, ENTRIES, EXITS, OUTCOMES

# The NSVA subset's names first, then plain ones, then those of labelled rim-camera clips.
VIDEO_COLUMNS = ("video_path", "video", "file")
REFERENCE_COLUMNS = ("intent", "reference", "caption")
CONTACT_COLUMNS = ("contacts", "contact")  # in order, joined by "+": backboard+rim+net; none
BOARD = ("yes", "no")
NO_HOOP = "none"  # an outcome: no hoop in view, so no shot and nothing else to be right about
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "outcome": (*OUTCOMES, NO_HOOP),
    "entry": ENTRIES,
    "board": BOARD,
    "exit": EXITS,
}
SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")


class TableError(SvrtError):
    """A table that cannot be read, or lacks a column or a value; or clips of it that are not there."""


@dataclass(frozen=True)
class Row:
    """One clip of the table: its video as written there, its reference text, its labels by attribute (`ATTRIBUTES`).

    `line` is where it stands, for messages: the first line, or the first row of a parquet file, is 1.
    """

    video: str
    reference: str | None
    labels: dict[str, str]
    line: int = field(default=0, compare=False)


def read_table(path: Path) -> list[Row]:
    """The rows of a TSV, CSV, JSONL or parquet file, by its suffix.

    A video column and a reference column, or a video column and label columns, are needed; others are passed over.

    Raises `TableError`, naming the line, where a column or a value is missing, or a label is not a known one.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise TableError(f"{path}: not a table svrt reads; give one of {', '.join('*' + s for s in SUFFIXES)}")
    try:
        rows = [_row(path, line, values) for line, values in _records(path)]
    except (OSError, UnicodeDecodeError) as exc:
        reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
        raise TableError(f"{path}: cannot be read: {reason}") from exc
    if not rows:
        raise TableError(f"{path}: holds no row; a table of clips is needed")
    odd = next((row for row in rows if (row.reference is None) != (rows[0].reference is None)), None)
    if odd is not None:  # of JSONL, where each line has columns of its own
        bare = odd if odd.reference is None else rows[0]
        raise TableError(f"{path}: line {bare.line} has no {REFERENCE_COLUMNS[1]}, others have; give all, or none")
    return rows


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _read_jsonl(path)
    return _read_parquet(path) if suffix == ".parquet" else _read_separated(path, "\t" if suffix == ".tsv" else ",")


def _read_separated(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        lines = csv.reader(handle, delimiter=delimiter, strict=True)
        try:
            header = next(lines, [])
            _check_columns(path, header)
            for fields in filter(None, lines):
                if len(fields) != len(header):
                    there = f"line {lines.line_num} has {len(fields)} fields"
                    raise TableError(f"{path}: {there}, the header {len(header)}")
                yield lines.line_num, dict(zip(header, fields, strict=True))
        except csv.Error as exc:
            raise TableError(f"{path}: line {lines.line_num} cannot be read: {exc}") from exc


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as handle:
        for line, text in enumerate(handle, 1):
            if not text.strip():
                continue
            try:
                values = json.loads(text)
            except (ValueError, RecursionError) as exc:
                raise TableError(f"{path}: line {line} is not JSON: {exc}") from exc
            if not isinstance(values, dict):
                raise TableError(f"{path}: line {line} is not a JSON object")
            _check_columns(path, list(values), f" (line {line})")
            yield line, values


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise TableError(f"{path}: reading parquet needs pyarrow; run: pip install pyarrow") from None
    try:
        with path.open("rb") as handle, ParquetFile(handle) as file:
            _check_columns(path, file.schema_arrow.names)
            known = {*VIDEO_COLUMNS, *REFERENCE_COLUMNS, *CONTACT_COLUMNS, *ATTRIBUTES}
            columns = [name for name in file.schema_arrow.names if name in known]  # not pictures, or whole clips
            line = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for values in batch.to_pylist():
                    line += 1
                    yield line, values
    except pyarrow.ArrowException as exc:
        raise TableError(f"{path}: cannot be read as parquet: {str(exc).splitlines()[0]}") from exc


def _check_columns(path: Path, names: list[str], where: str = "") -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise TableError(f"{path}: two columns are named {twice!r}{where}; rename or remove one")
    if not set(names) & set(VIDEO_COLUMNS):
        raise TableError(f"{path}: no column {' or '.join(VIDEO_COLUMNS[:2])}{where}; found: {_listed(names)}")
    if not set(names) & {*REFERENCE_COLUMNS, *ATTRIBUTES, *CONTACT_COLUMNS}:
        wanted = f"{' or '.join(REFERENCE_COLUMNS[:2])}, nor labels ({', '.join(ATTRIBUTES)})"
        raise TableError(f"{path}: no column {wanted}{where}; found: {_listed(names)}")


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "") if names else "nothing"


def _row(path: Path, line: int, values: dict[str, Any]) -> Row:
    where = f"{path}: line {line}"
    video = _text(where, values, VIDEO_COLUMNS)
    assert video is not None  # the column is there: `_check_columns`
    return Row(video, _text(where, values, REFERENCE_COLUMNS), _labels(where, values), line)


def _text(where: str, values: dict[str, Any], columns: tuple[str, ...]) -> str | None:
    """The value of the first of `columns` that the table has; None where it has none of them."""
    name = next((column for column in columns if column in values), None)
    if name is None:
        return None
    value = values[name]
    if not isinstance(value, str) or not value.strip():
        raise TableError(f"{where}: {name} is {'empty' if value in (None, '') else repr(value)}; it must be text")
    return value.strip()


def _labels(where: str, values: dict[str, Any]) -> dict[str, str]:
    """Labels by attribute; an empty value leaves its attribute unlabelled."""
    if values.get("outcome") == NO_HOOP:
        named = (name for name in (*ATTRIBUTES, *CONTACT_COLUMNS) if values.get(name) not in (None, "", NO_HOOP))
        if (name := next(named, None)) is not None:
            raise TableError(f"{where}: outcome is none, for no hoop in view, and {name} is {values[name]!r}")
        return {"outcome": NO_HOOP}
    found = {name: values[name] for name in ATTRIBUTES if values.get(name) not in (None, "")}
    contacts = next((values[name] for name in CONTACT_COLUMNS if values.get(name) not in (None, "")), None)
    if contacts is not None:
        touched = str(contacts).split("+")
        if contacts != "none" and not set(touched) <= set(CONTACTS):
            known = f"{', '.join(CONTACTS)} joined by +, or none"
            raise TableError(f"{where}: contact is {contacts!r}; known: {known}")
        found.setdefault("board", "yes" if "backboard" in touched else "no")
    for name, value in found.items():
        if value not in ATTRIBUTES[name]:
            raise TableError(f"{where}: {name} is {value!r}; known: {', '.join(ATTRIBUTES[name])}")
    return found


def find_clips(table: Path, rows: list[Row], folder: Path) -> list[Path]:
    """The file of each row: `folder` / its video, or else the file of that name right in `folder`.

    Raises `TableError` where files are missing, saying how many and the first, or where two videos are one file.
    """
    if not folder.is_dir():
        raise TableError(f"{folder}: no such folder; give the folder of the clips with --clips")
    found = [_find(row.video, folder) for row in rows]
    missing = [row for row, path in zip(rows, found, strict=True) if path is None]
    if missing:
        first = f"the first is {missing[0].video!r} (line {missing[0].line})"
        raise TableError(f"{folder}: {len(missing)} of the {len(rows)} clips of {table} are not there; {first}")
    paths = [path for path in found if path is not None]
    videos: dict[Path, str] = {}
    for row, path in zip(rows, paths, strict=True):
        if videos.setdefault(path, row.video) != row.video:
            raise TableError(f"{path}: both {videos[path]!r} and {row.video!r} of {table} would be this one file")
    return paths


def _find(video: str, folder: Path) -> Path | None:
    try:
        return next((path for path in (folder / video, folder / Path(video).name) if path.is_file()), None)
    except (OSError, ValueError):  # a name too long for a file, or with a null character
        return None
