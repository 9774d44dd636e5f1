"""Results so far, a JSON line each, kept as they come: what is there is not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import OutputError
from ...models.pocket.renderer import Event
from ...records import RecordLog
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

    Raises `OutputError` as `RecordLog` does.
    """

    def __init__(self, folder: Path, bundle: str) -> None:
        self._bundle = bundle
        self._results: dict[tuple[str, str, str, str], Result] = {}
        self._log = RecordLog(folder / NAME, Result, "run", "is of another program or version")
        try:
            for result in self._log.read():
                self._remember(result)
        except OutputError:
            self.close()
            raise

    def _remember(self, result: Result) -> None:
        if result.bundle == self._bundle:
            self._results[result.group, result.clip, result.version, result.variant] = result

    def get(self, clip: Footage, variant: Variant) -> Result | None:
        """What this bundle gave for a clip under a variant, when that is known."""
        return self._results.get((clip.group, clip.name, clip.version, variant.name))

    def append(self, results: Sequence[Result]) -> None:
        """Keep one clip's results, on the disk before this returns."""
        self._log.append(*results)
        for result in results:
            self._remember(result)

    def close(self) -> None:
        """Let other processes have the file."""
        self._log.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
