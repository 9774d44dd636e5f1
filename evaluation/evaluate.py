"""`svrt eval`: a table and a folder of clips in; described, scored and written out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ..bundle import Bundle
from ..errors import OutputError
from ..runtime.pipeline import Pipeline
from .report import WRITTEN, Evaluation, write
from .run import LOG, Log, Progress, Said, Task, describe_all
from .scores import score
from .table import Row, find_clips, read_table

LIBRARIES = ("svrt", "rouge-score", "sacrebleu")


@dataclass(frozen=True)
class Job:
    """A table that was read, and the file of each of its rows: nothing is loaded before both are known to be there."""

    table: Path
    rows: list[Row]
    paths: list[Path]

    @classmethod
    def read(cls, table: Path, clips: Path) -> Job:
        """Raises `TableError` where the table or the clips are not as they must be."""
        rows = read_table(table)
        return cls(table, rows, find_clips(table, rows, clips))


def evaluate(
    job: Job,
    bundle: Bundle,
    out: Path,
    backend: str,
    open_pipeline: Callable[[], AbstractContextManager[Pipeline]],
    progress: Progress,
) -> Evaluation:
    """Describe the clips that `out` does not hold yet, score all, and write the report to `out`.

    Raises `OutputError` where `out` cannot be written, or the table is a file that would be; `SvrtError` where the
    pipeline cannot be opened.
    """
    if any(job.table.resolve() == (out / name).resolve() for name in (LOG, *WRITTEN)):
        raise OutputError(f"{job.table}: is where this would write its own {job.table.name}; give another --out")
    with Log(out) as log:
        tasks = [Task.of(row, path, bundle.sha256, backend) for row, path in zip(job.rows, job.paths, strict=True)]
        said = describe_all(tasks, log, open_pipeline, progress)
        found = Evaluation(
            job.table.name,
            bundle.manifest.name,
            bundle.sha256,
            _backends(said),
            {name: version(name) for name in LIBRARIES},
            score(said),
        )
        write(found, out)
    return found


def _backends(said: list[Said]) -> dict[str, str]:
    """What ran each part; where clips were described by different backends, all of them."""
    names: dict[str, list[str]] = {}
    for one in said:
        for part, name in one.backends.items():
            if name not in names.setdefault(part, []):
                names[part].append(name)
    return {part: " and ".join(found) for part, found in names.items()}
