"""Describing every clip of a table, a line on disk for each as it is done, so that a run that stops goes on.

`clips.jsonl` is a log: a line per clip, brought to the disk before the next clip begins. A clip is done when a line
gives a text for the same row of the table, the same file (size and time of change), the same bundle and the same
backend asked for; a clip that failed is tried again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import ClipError, DecoderError, EngineError
from ..records import RecordLog
from ..runtime.pipeline import Pipeline
from .table import Row

LOG = "clips.jsonl"
Progress = Callable[["Said | None", int, int], None]  # just said (None at the start), how many are done, of how many


@dataclass(frozen=True)
class Task:
    """One row to describe, and all that its text depends on. `bytes` and `modified_ns` are the file's."""

    row: Row
    path: Path
    bytes: int
    modified_ns: int
    bundle: str
    backend: str

    @classmethod
    def of(cls, row: Row, path: Path, bundle: str, backend: str) -> Task:
        """`bundle` is its manifest's sha256, `backend` the one asked for. Raises `ClipError` where the file is gone."""
        try:
            status = path.stat()
        except OSError as exc:
            raise ClipError(f"{path}: cannot be read: {exc.strerror}; check the path") from exc
        return cls(row, path, status.st_size, status.st_mtime_ns, bundle, backend)


@dataclass(frozen=True)
class Said:
    """A line of the log: a task, and the text or the reason that there is none."""

    video: str
    reference: str | None
    labels: dict[str, str]
    bytes: int
    modified_ns: int
    bundle: str
    backend: str
    text: str | None
    error: str | None
    warnings: list[str]
    timings_ms: dict[str, float]
    backends: dict[str, str]

    def answers(self, task: Task) -> bool:
        """Whether this is the text of `task`."""
        return self.text is not None and _key(task) == (
            *(self.video, self.reference, json.dumps(self.labels, sort_keys=True)),
            *(self.bytes, self.modified_ns, self.bundle, self.backend),
        )


def _key(task: Task) -> tuple[object, ...]:
    row = task.row
    labels = json.dumps(row.labels, sort_keys=True)
    return (row.video, row.reference, labels, task.bytes, task.modified_ns, task.bundle, task.backend)


class Log(RecordLog[Said]):
    """`clips.jsonl` in a folder; see `RecordLog`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / LOG, Said, "svrt eval")


def describe_all(
    tasks: Sequence[Task], log: Log, open_pipeline: Callable[[], AbstractContextManager[Pipeline]], progress: Progress
) -> list[Said]:
    """What is said of each task, in the tasks' order; only those that the log does not answer are described.

    One bad clip does not stop the others: its line carries the error. The pipeline is opened only if there is work.
    """
    found = _answered(tasks, log.read())
    left = [index for index, said in enumerate(found) if said is None]
    done = len(tasks) - len(left)
    progress(None, done, len(tasks))
    if left:
        with open_pipeline() as pipeline:
            for index in left:
                said = _describe(tasks[index], pipeline)
                log.append(said)
                found[index] = said
                done += 1
                progress(said, done, len(tasks))
    return [said for said in found if said is not None]


def _answered(tasks: Sequence[Task], lines: Sequence[Said]) -> list[Said | None]:
    by_video: dict[str, list[Said]] = {}
    for said in lines:
        by_video.setdefault(said.video, []).append(said)
    return [
        next((said for said in reversed(by_video.get(task.row.video, [])) if said.answers(task)), None)
        for task in tasks
    ]


def _describe(task: Task, pipeline: Pipeline) -> Said:
    text: str | None = None
    error: str | None = None
    warnings: list[str] = []
    timings: dict[str, float] = {}
    try:
        found = pipeline.describe(task.path)
        text, warnings = found.text, found.warnings
        timings = {stage: round(ms, 3) for stage, ms in asdict(found.timings_ms).items()}
    except (ClipError, EngineError, DecoderError) as exc:
        error = str(exc)
    row, backends = task.row, dict(pipeline.backends)
    stamp = (task.bytes, task.modified_ns, task.bundle, task.backend)
    return Said(row.video, row.reference, row.labels, *stamp, text, error, warnings, timings, backends)
