"""Results so far, a JSON line each, kept as they come: what is there is not computed again."""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ...errors import OutputError, SvrtError
from ...models.pocket.renderer import Event
from ...records import from_json
from ..labels import stated
from .footage import Footage
from .variants import Variant

NAME = "clips.jsonl"


@dataclass(frozen=True)
class Result:
    """One clip under one variant, and what is true of the clip: a line of the journal.

    `keyframes` are frame numbers in a clip of `frames`. `text` is None for footage that is not described.
    """

    bundle: str
    group: str
    clip: str
    version: str
    variant: str
    frames: int
    keyframes: list[int]
    text: str | None
    outcome: str
    reference: str
    events: list[Event]

    @property
    def is_right(self) -> bool:
        """Whether there is a sentence that states the outcome, and the true one."""
        return self.text is not None and stated(self.text).get("outcome") == self.outcome


class Journal:
    """`clips.jsonl` in a folder, held by one process until `close`, and the results of one bundle in it.

    A line that a power cut tore off is dropped. Raises `OutputError` where the file is not such a journal or another
    process holds it, `OSError` where it cannot be written.
    """

    def __init__(self, folder: Path, bundle: str) -> None:
        self._path, self._bundle = folder / NAME, bundle
        self._results: dict[tuple[str, str, str, str], Result] = {}
        self._file = self._path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self.close()
            raise OutputError(f"{folder}: another run writes there; wait for it, or give another --out") from None
        except OutputError:
            self.close()
            raise

    def _read(self) -> None:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        torn = lines.pop()
        for number, line in enumerate(lines, start=1):
            try:
                self._remember(from_json(Result, json.loads(line), ""))
            except (ValueError, SvrtError) as exc:
                reason = f"line {number} is of another program or version ({exc})"
                raise OutputError(f"{self._path}: {reason}; give another --out") from exc
        self._file.truncate(self._file.seek(0, io.SEEK_END) - len(torn))

    def _remember(self, result: Result) -> None:
        if result.bundle == self._bundle:
            self._results[result.group, result.clip, result.version, result.variant] = result

    def get(self, clip: Footage, variant: Variant) -> Result | None:
        """What this bundle gave for a clip under a variant, when that is known."""
        return self._results.get((clip.group, clip.name, clip.version, variant.name))

    def append(self, results: Sequence[Result]) -> None:
        """Keep one clip's results, on the disk before this returns."""
        self._file.write(b"".join(json.dumps(asdict(result)).encode() + b"\n" for result in results))
        self._file.flush()
        os.fsync(self._file.fileno())
        for result in results:
            self._remember(result)

    def close(self) -> None:
        """Let other processes have the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
